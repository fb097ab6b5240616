//! What is fetched at once: divided among the threads, and put together again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use super::read::PieceReader;
use super::{FetchDone, Fetched, Piece};
use crate::domain::batch::Taken;

/// A part ends with the payload that brings it to so many records.
const PART: usize = 16;

/// What somebody waits for.
pub(super) struct Job {
    bytes_max: u64,
    state: Mutex<State>,
}

struct State {
    /// Of those that are read, the first ones asked for.
    answers: Vec<Option<Taken>>,
    asked: usize,
    left: usize,
    done: Option<FetchDone>,
}

/// A part of it: neighbours in the log, and where each of them was asked for.
pub(super) struct Part {
    job: Arc<Job>,
    pieces: Vec<(usize, Piece)>,
}

impl Job {
    /// As many pieces as are likely to fit into `bytes_max`, the first at least, in parts; a payload's
    /// pieces are in one part.
    pub(super) fn divide(pieces: Vec<Piece>, bytes_max: u64, done: FetchDone) -> Vec<Part> {
        let mut bytes = 0u64;
        let fit = pieces.iter().take_while(|piece| {
            bytes = bytes.saturating_add(piece.bytes());
            bytes <= bytes_max
        });
        let many = fit.count().max(1);
        let asked = pieces.len();
        let mut order: Vec<(usize, Piece)> = pieces.into_iter().take(many).enumerate().collect();
        order.sort_unstable_by_key(|(_, piece)| *piece);
        let answers = vec![None; order.len()];
        let mut parts: Vec<Vec<(usize, Piece)>> = vec![Vec::new()];
        for payload in order.chunk_by(|a, b| a.1.place == b.1.place) {
            if let Some(last) = parts.last_mut().filter(|last| last.len() < PART) {
                last.extend_from_slice(payload);
            } else {
                parts.push(payload.to_vec());
            }
        }
        let job = Arc::new(Self {
            bytes_max,
            state: Mutex::new(State {
                answers,
                asked,
                left: parts.len(),
                done: Some(done),
            }),
        });
        let part = |pieces| Part {
            job: Arc::clone(&job),
            pieces,
        };
        parts.into_iter().map(part).collect()
    }

    /// What became of all, once the last part is read.
    fn answered(&self, part: Vec<(usize, Option<Taken>)>) -> Option<(FetchDone, Vec<Fetched>)> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, taken) in part {
            if let Some(answer) = state.answers.get_mut(at) {
                *answer = taken;
            }
        }
        state.left = state.left.saturating_sub(1);
        if state.left > 0 {
            return None;
        }
        let done = state.done.take()?;
        let mut left = Some(self.bytes_max);
        let mut fetched: Vec<Fetched> = Vec::with_capacity(state.asked);
        for taken in std::mem::take(&mut state.answers) {
            let is_first = fetched.is_empty();
            fetched.push(match (taken, left) {
                (_, None) => Fetched::Beyond,
                (None, Some(_)) => Fetched::Unreadable,
                (Some(taken), Some(room)) => {
                    let bytes = taken.bytes() as u64;
                    if bytes > room && !is_first {
                        left = None;
                        Fetched::Beyond
                    } else {
                        left = Some(room.saturating_sub(bytes));
                        Fetched::Taken(taken)
                    }
                }
            });
        }
        fetched.resize(state.asked, Fetched::Beyond);
        Some((done, fetched))
    }
}

impl Part {
    /// Reads it; whoever reads the last part answers.
    pub(super) fn read(self, reader: &PieceReader) {
        let pieces: Vec<Piece> = self.pieces.iter().map(|(_, piece)| *piece).collect();
        let taken = reader.read(&pieces);
        let places = self.pieces.into_iter().map(|(at, _)| at);
        if let Some((done, fetched)) = self.job.answered(places.zip(taken).collect()) {
            // A caller's panic must not take the thread with it.
            let _ = catch_unwind(AssertUnwindSafe(|| done(fetched)));
        }
    }
}

//! What is wished for, by when it will be due.
//!
//! - S1 What is due sooner comes first; what is due within the same [`WINDOW_MS`] comes in the order it lies
//!   in the log.
//! - S2 Never more memory than the bound: what is due last is forgotten first, and what comes last of what is
//!   due together.
//! - S3 What is due already is forgotten: who wants it has asked, or will before it could be here. Whoever went
//!   on reading it would always be a little too late, and never in time for what comes next.

use std::collections::BTreeMap;

use super::{Piece, Wish};
use crate::domain::entry::EntryPlace;
use crate::domain::id::LogPosition;

/// Wishes due within one such span are read together.
const WINDOW_MS: i64 = 256;

/// A wish, without the window it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Packed {
    position: u64,
    index: u32,
    length: u32,
    of: u32,
    into_ms: u16,
}

impl Packed {
    fn piece(self) -> Piece {
        Piece {
            place: EntryPlace {
                position: LogPosition(self.position),
                length: self.length,
            },
            index: self.index,
            of: self.of,
        }
    }
}

#[derive(Debug, Default)]
struct Window {
    wishes: Vec<Packed>,
    /// By falling position.
    sorted: bool,
}

impl Window {
    fn bytes(&self) -> usize {
        self.wishes.capacity() * size_of::<Packed>()
    }
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Next {
    /// None of it is due before.
    pub(super) from_ms: i64,
    /// How many at most.
    pub(super) many: usize,
    /// What it will take, as far as can be told.
    pub(super) bytes: u64,
}

/// The wishes.
#[derive(Debug)]
pub(super) struct Wishes {
    bytes_max: usize,
    bytes: usize,
    windows: BTreeMap<i64, Window>,
}

impl Wishes {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            windows: BTreeMap::new(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn add(&mut self, wishes: &[Wish]) {
        for wish in wishes {
            let number = wish.due_ms.div_euclid(WINDOW_MS);
            let window = self.windows.entry(number).or_default();
            let before = window.bytes();
            window.wishes.push(Packed {
                position: wish.piece.place.position.0,
                index: wish.piece.index,
                length: wish.piece.place.length,
                of: wish.piece.of,
                into_ms: u16::try_from(wish.due_ms.rem_euclid(WINDOW_MS)).unwrap_or(0),
            });
            window.sorted = false;
            self.bytes = (self.bytes + window.bytes()).saturating_sub(before);
            while self.bytes > self.bytes_max
                && self.windows.len() > 1
                && let Some((_, farthest)) = self.windows.pop_last()
            {
                self.bytes = self.bytes.saturating_sub(farthest.bytes());
            }
            if self.bytes > self.bytes_max {
                self.halve();
            }
        }
    }

    /// Forgets half of the only window there is.
    fn halve(&mut self) {
        if let Some(mut only) = self.windows.first_entry() {
            let wishes = &mut only.get_mut().wishes;
            wishes.truncate(wishes.len() / 2);
            wishes.shrink_to_fit();
            self.bytes = only.get().bytes();
        }
    }

    /// What the next are like: `many` at most, and no more bytes than so many unless it is one; windows that
    /// are empty or past go.
    pub(super) fn first(&mut self, now_ms: i64, many: usize, bytes_max: u64) -> Option<Next> {
        loop {
            let mut first = self.windows.first_entry()?;
            let from_ms = first.key().saturating_mul(WINDOW_MS);
            let is_stale = now_ms.saturating_sub(from_ms) >= WINDOW_MS;
            if is_stale || first.get().wishes.is_empty() {
                let gone = first.remove();
                self.bytes = self.bytes.saturating_sub(gone.bytes());
                continue;
            }
            let window = first.get_mut();
            if !window.sorted {
                // Most of them came in runs that are sorted.
                window.wishes.sort_by(|a, b| b.cmp(a));
                window.sorted = true;
            }
            let (mut many, mut bytes) = (many.max(1), 0u64);
            for (before, wish) in window.wishes.iter().rev().take(many).enumerate() {
                let with = bytes.saturating_add(wish.piece().bytes());
                if with > bytes_max && before > 0 {
                    many = before;
                    break;
                }
                bytes = with;
            }
            return Some(Next {
                from_ms,
                many,
                bytes,
            });
        }
    }

    /// Takes what [`Wishes::first`] told of, in the order it lies in the log, but for what is due by now.
    pub(super) fn take(&mut self, now_ms: i64, many: usize) -> Vec<Wish> {
        let Some(mut first) = self.windows.first_entry() else {
            return Vec::new();
        };
        let from_ms = first.key().saturating_mul(WINDOW_MS);
        let wishes = &mut first.get_mut().wishes;
        let taken = wishes.drain(wishes.len().saturating_sub(many)..).rev();
        taken
            .map(|wish| Wish {
                piece: wish.piece(),
                due_ms: from_ms + i64::from(wish.into_ms),
            })
            .filter(|wish| wish.due_ms > now_ms)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wish(position: u64, index: u32, due_ms: i64) -> Wish {
        Wish {
            piece: Piece {
                place: EntryPlace {
                    position: LogPosition(position),
                    length: 1_000,
                },
                index,
                of: 10,
            },
            due_ms,
        }
    }

    proptest! {
        /// Against a list that is sorted anew for each question.
        #[test]
        fn s1_s3_as_a_sorted_list_would(
            rounds in prop::collection::vec(
                (prop::collection::vec((0u64..20, 0u32..10, -600i64..4_000), 0..12), 0i64..900, 1usize..6),
                1..20,
            ),
        ) {
            let mut wishes = Wishes::new(1 << 20);
            let mut naive: Vec<Wish> = Vec::new();
            let mut now = 0;
            for (added, passed, many) in rounds {
                let added: Vec<Wish> =
                    added.into_iter().map(|(at, index, in_ms)| wish(at, index, now + in_ms)).collect();
                wishes.add(&added);
                naive.extend(added);
                now += passed;
                let window = |wish: &Wish| wish.due_ms.div_euclid(WINDOW_MS);
                naive.retain(|wish| now - window(wish) * WINDOW_MS < WINDOW_MS);
                naive.sort_by_key(|wish| (window(wish), wish.piece, wish.due_ms));
                let first = naive.first().map(window);
                let many = naive.iter().take(many).take_while(|wish| Some(window(wish)) == first).count();
                let expected: Vec<Wish> = naive.drain(..many).collect();
                let next = wishes.first(now, many.max(1), u64::MAX);
                prop_assert_eq!(next.map(|next| next.from_ms), first.map(|window| window * WINDOW_MS));
                if let Some(next) = next {
                    prop_assert_eq!(next.bytes, expected.iter().map(|wish| wish.piece.bytes()).sum::<u64>());
                    let taken = wishes.take(now, many);
                    let expected: Vec<Wish> =
                        expected.into_iter().filter(|wish| wish.due_ms > now).collect();
                    prop_assert_eq!(taken, expected);
                }
            }
        }
    }

    #[test]
    fn s2_what_is_due_last_is_forgotten_first() {
        let mut wishes = Wishes::new(10_000);
        for second in (0..20).rev() {
            let some: Vec<Wish> = (0..40).map(|at| wish(at, 0, second * 1_000)).collect();
            wishes.add(&some);
            assert!(wishes.bytes() <= 10_000);
        }
        let mut due = Vec::new();
        while wishes.first(-1, 100, u64::MAX).is_some() {
            due.extend(wishes.take(-1, 100).iter().map(|wish| wish.due_ms));
        }
        assert!(due.len() > 100 && due.is_sorted());
        assert_eq!(due.first(), Some(&0));
        assert_eq!(wishes.bytes(), 0);
        // All at one moment: some of them stay.
        for at in 0..1_000 {
            wishes.add(&[wish(at, 0, 500)]);
            assert!(wishes.bytes() <= 10_000);
        }
        let next = wishes.first(0, 1_000, 550);
        // 100 bytes each, and what a record costs beside.
        assert_eq!(next.map(|next| (next.many, next.bytes)), Some((1, 292)));
        assert!(wishes.take(0, 1_000).len() > 100);
    }
}

//! Records published by reference, each by itself: out of what was read ahead, or read alone now where
//! their payload is large and little of it is wanted.

use tokio::sync::oneshot;

use super::session::Session;
use crate::domain::batch::Taken;
use crate::domain::partition::index::BatchPlace;
use crate::log::{Fetched, Piece};

/// A payload longer than this is not read whole for a few of its records.
const WHOLE_BYTES: u32 = 32 << 10;

/// What is wanted of a place: so many records, from the one that is `skip` behind its first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) place: BatchPlace,
    pub(super) skip: u32,
    pub(super) count: u32,
    /// Whether little of a large payload is wanted, so that its records are read alone.
    pub(super) alone: bool,
}

impl Wanted {
    fn pieces(&self) -> impl Iterator<Item = Piece> {
        let place = self.place;
        let (first, of) = place.reference.map_or((0, place.count), |reference| {
            (reference.index, reference.of)
        });
        let first = first.saturating_add(self.skip);
        (first..first.saturating_add(self.count)).map(move |index| Piece {
            place: place.place(),
            index,
            of,
        })
    }
}

/// How the records of a place are to be had.
#[derive(Debug)]
pub(super) enum Pieces {
    /// Here they are.
    Taken(Vec<Taken>),
    /// By the whole payload.
    Whole,
    /// Not this time: those before fill the bound.
    Beyond,
}

/// Whether little of a large payload is meant.
pub(super) fn is_read_alone(place: &BatchPlace) -> bool {
    place.reference.is_some_and(|reference| {
        place.length > WHOLE_BYTES && u64::from(place.count) * 4 <= u64::from(reference.of)
    })
}

/// Whether so many records are so little of a batch that reading all of it would be a waste.
pub(super) fn are_few(count: u64, place: &BatchPlace) -> bool {
    place.length > WHOLE_BYTES && count * 16 <= u64::from(place.count)
}

/// Finds records, up to so many bytes; of the first place at least, by its whole payload where its records
/// alone are more.
pub(super) async fn pieces(session: &Session, wanted: &[Wanted], bytes_max: u64) -> Vec<Pieces> {
    let house = &session.shared.house;
    let mut found: Vec<Option<Pieces>> = Vec::with_capacity(wanted.len());
    let mut bytes = 0u64;
    let mut missing = Vec::new();
    for want in wanted {
        let place = &want.place;
        let index = place.reference.filter(|_| !place.is_whole());
        let index = index.map(|reference| reference.index.saturating_add(want.skip));
        let here = index.and_then(|index| house.ahead.lookup(place.position, index, want.count));
        found.push(match here {
            Some(taken) => {
                let sum = taken.iter().map(|taken| taken.bytes() as u64).sum::<u64>();
                bytes = bytes.saturating_add(sum);
                let fits = bytes <= bytes_max || found.is_empty();
                Some(if fits {
                    Pieces::Taken(taken)
                } else {
                    Pieces::Beyond
                })
            }
            None if !want.alone || house.cache.has(place.position) => Some(Pieces::Whole),
            None => {
                missing.extend(want.pieces());
                None
            }
        });
    }
    let mut fetched = Vec::new();
    if !missing.is_empty() {
        let (done, answer) = oneshot::channel();
        let left = bytes_max.saturating_sub(bytes);
        house.ahead.fetch(
            missing,
            left,
            Box::new(move |fetched| {
                let _ = done.send(fetched);
            }),
        );
        // It answers unless it is going away with the broker: then the payloads are tried.
        fetched = answer.await.unwrap_or_default();
    }
    let mut fetched = fetched.into_iter();
    let every = found.into_iter().zip(wanted);
    let mut found: Vec<Pieces> = every
        .map(|(pieces, want)| pieces.unwrap_or_else(|| together(&mut fetched, want.count)))
        .collect();
    if let Some(first @ Pieces::Beyond) = found.first_mut() {
        *first = Pieces::Whole;
    }
    found
}

/// The next records that were fetched, if all of them were.
fn together(fetched: &mut impl Iterator<Item = Fetched>, count: u32) -> Pieces {
    let mut taken = Vec::new();
    let mut otherwise = None;
    for _ in 0..count {
        match fetched.next() {
            Some(Fetched::Taken(record)) => taken.push(record),
            Some(Fetched::Beyond) => {
                otherwise.get_or_insert(Pieces::Beyond);
            }
            Some(Fetched::Unreadable) | None => otherwise = Some(Pieces::Whole),
        }
    }
    otherwise.unwrap_or(Pieces::Taken(taken))
}

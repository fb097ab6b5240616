//! Dead letters that are done with: brought back to a topic, or cleared.
//!
//! One group of the broker's own keeps account of every dead-letter topic ([`GROUP`]): a letter is open
//! until its record is settled there. Bringing one back is one tied run of its copy and its settlement, so
//! that it is open or back and never both, whatever is killed or asked again; clearing is the settlement
//! alone. The group has no members: nothing of it is ever leased.

use super::command::Answer;
use super::cursor::Cursor;
use super::delta::{Delta, Progress};
use super::ranges::RangeSet;
use super::rejection::GroupRejection;
use super::settle::Asked;
use super::{CursorNumber, Decided, Group};
use crate::domain::entry::Draft;
use crate::domain::id::{Offset, OwnerId, PartitionId, Token};
use crate::domain::rejection::Rejection;

/// The group that keeps account of dead letters. Nobody joins it, and nobody but the broker changes it.
pub const GROUP: &str = "waterwheel.dead-letters";

/// A letter, and the entries that bring it back: they stand or fall with its settlement.
pub type Returned = (Offset, Vec<(OwnerId, Draft)>);

impl Group {
    /// Which records between two offsets are open: neither settled nor on their way to be.
    pub(super) fn open_letters(&self, place: PartitionId, from: Offset, to: Offset) -> Decided {
        let cursor = self.letters_of(place)?;
        let open = open(cursor, from.0, to.0);
        let ranges = open.iter().map(|(a, b)| (Offset(a), b - a)).collect();
        Ok(Some(Answer::OpenLetters(ranges)))
    }

    /// Settles what of `cleared` and `returned` is open, with the copies of what is brought back, as one
    /// tied run; what is not open is left out. Everything below `start` is gone: it is settled on the way.
    pub(super) fn settle_letters(
        &mut self,
        token: Token,
        (place, start): (PartitionId, Offset),
        cleared: &[(Offset, u64)],
        returned: Vec<Returned>,
        effects: &mut Vec<super::command::Effect>,
    ) -> Decided {
        let number = self.letters_of(place)?.number;
        let (full, max) = (self.has_many_ranges(), self.settled_ranges_max());
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return Err(GroupRejection::UnknownSubscription.into());
        };
        let (mut done, mut settled) = (0, RangeSet::default());
        for (first, count) in cleared {
            let (from, to) = (first.0.max(start.0), first.0.saturating_add(*count));
            let found = open(cursor, from, to);
            if !found.is_empty() {
                // What is settled already may be again: as one range it is written shorter.
                done += found.len();
                settled.insert(from, to);
            }
        }
        let mut copies = Vec::new();
        for (offset, drafts) in returned {
            let is_open = !open(cursor, offset.0, offset.0.saturating_add(1)).is_empty();
            if is_open && !settled.contains(offset.0) {
                settled.insert(offset.0, offset.0 + 1);
                copies.extend(drafts);
                done += 1;
            }
        }
        if done == 0 {
            return Ok(Some(Answer::LettersSettled(0)));
        }
        if cursor.floor_or_zero() < start.0 {
            settled.insert(cursor.floor_or_zero(), start.0);
        }
        // What is settled in the middle is one more range; what is settled to an end makes none.
        let mut after = cursor.settled.clone();
        for (a, b) in settled.iter() {
            after.insert(a, b);
        }
        if full && after.ranges() > cursor.settled.ranges() {
            let max = u32::try_from(max).unwrap_or(u32::MAX);
            return Err(GroupRejection::ListFull { max }.into());
        }
        for (a, b) in settled.iter() {
            cursor.deciding.insert(a, b);
        }
        let progress = Progress {
            cursor: number,
            settled: settled.iter().map(|(a, b)| (Offset(a), b - a)).collect(),
            ..Progress::default()
        };
        let asked = Asked::answering(Some(token), Answer::LettersSettled(done));
        self.persist(copies, &Delta::Progress(vec![progress]), asked, effects);
        Ok(None)
    }

    /// The cursor of a place; one that is on its way is asked for again.
    fn letters_of(&self, place: PartitionId) -> Result<&Cursor, Rejection> {
        self.subscription(place.topic)?;
        let number: Option<&CursorNumber> = self.by_place.get(&(place, String::new()));
        number
            .and_then(|number| self.cursors.get(number))
            .ok_or(Rejection::Retry)
    }
}

/// What is neither settled, nor listed, nor leased, nor on its way.
fn open(cursor: &Cursor, from: u64, to: u64) -> RangeSet {
    let from = from.max(cursor.floor_or_zero());
    let mut open = RangeSet::default();
    if from >= to {
        return open;
    }
    for (a, b) in cursor.settled.gaps(from, to) {
        open.insert(a, b);
    }
    for taken in [&cursor.deciding, &cursor.leased] {
        for (a, b) in taken.within(from, to) {
            open.remove(a, b);
        }
    }
    for (offset, _) in cursor.listed.range(from..to) {
        open.remove(*offset, offset + 1);
    }
    open
}

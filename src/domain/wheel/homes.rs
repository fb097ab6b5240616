//! Which homes a level has on the disk, and what becomes of each.
//!
//! A home is *waiting* while nothing but the disk holds it; *open* while the level's memory holds its
//! alarms too and may rewrite it with more; *kept* where the level keeps its alarms until they are
//! settled; *moved* once its alarms have gone elsewhere without a home of their own yet, and it is
//! removed when a later lap has been marked.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::chunk::{self, RowId};
use crate::domain::alarm::Alarm;

/// Homes read at a time.
const READ_MAX: usize = 4;

/// What was read of a home; none if it was not there or does not read.
pub type Read = (RowId, Option<Bytes>);

/// Rows to write and to remove.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Homes as they are from now on.
    pub writes: Vec<(RowId, Vec<u8>)>,
    /// Homes that nothing needs any more.
    pub removes: Vec<RowId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Open,
    /// `asked`: the last round that had asked what is settled when it was written. What a round asked
    /// before says nothing about it: the clock may have stepped back in between.
    Kept {
        asked: Option<u64>,
    },
    /// `round`: the last lap when its alarms left. They have homes where they went once a later one
    /// is marked.
    Moved {
        round: Option<u64>,
    },
    /// Does not read: left for the next start, which rebuilds.
    Rotten,
    /// Handed to the store.
    Writing {
        closed: bool,
        asked: Option<u64>,
    },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Homes {
    shift: u32,
    chunks: BTreeMap<RowId, State>,
    /// The last round in which homes were written. None in a level's new life: which rounds are under way
    /// it cannot know, so whatever it does before its first counts as done just before that.
    round: Option<u64>,
    /// The last round that asked what is settled; none likewise.
    asked: Option<u64>,
    /// Writes the store has not confirmed.
    unconfirmed: usize,
    failed: bool,
}

impl Homes {
    /// The homes a level finds at its start: all are waiting.
    pub(super) fn new(shift: u32, found: impl IntoIterator<Item = RowId>) -> Self {
        Self {
            shift,
            chunks: found.into_iter().map(|id| (id, State::Waiting)).collect(),
            round: None,
            asked: None,
            unconfirmed: 0,
            failed: false,
        }
    }

    /// How many rows there are.
    pub(super) fn rows(&self) -> usize {
        self.chunks.len()
    }

    /// The store failed: nothing is written any more.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// The first slot with a waiting home.
    pub(super) fn first_waiting(&self) -> Option<i64> {
        self.chunks
            .iter()
            .find(|(_, state)| **state == State::Waiting)
            .map(|(id, _)| id.slot)
    }

    /// A few waiting homes to read, of `slot` or of any.
    pub(super) fn to_read(&self, slot: Option<i64>) -> Vec<RowId> {
        self.chunks
            .iter()
            .filter(|(id, state)| {
                **state == State::Waiting && slot.is_none_or(|slot| id.slot == slot)
            })
            .map(|(id, _)| *id)
            .take(READ_MAX)
            .collect()
    }

    /// A home was read, or could not be.
    pub(super) fn read(&mut self, (id, bytes): Read) -> Result<Vec<Alarm>, RowId> {
        let alarms = bytes.and_then(|bytes| chunk::decode(id.slot << self.shift, &bytes));
        let state = match alarms {
            Some(_) => State::Moved { round: self.round },
            None => State::Rotten,
        };
        self.chunks.insert(id, state);
        alarms.ok_or(id)
    }

    /// What the memory holds of a slot has gone elsewhere.
    pub(super) fn fell(&mut self, slot: i64) {
        let round = self.round;
        for (_, state) in self.chunks.range_mut(slot_range(slot)) {
            if matches!(state, State::Open | State::Writing { .. }) {
                *state = State::Moved { round };
            }
        }
    }

    /// Everything that has been read or is kept is wanted once more: who had it has lost its memory.
    /// `keep`: what is being written may have left this level since.
    pub(super) fn again(&mut self, keep: bool) {
        for state in self.chunks.values_mut() {
            match state {
                State::Moved { .. } | State::Kept { .. } => *state = State::Waiting,
                State::Writing { .. } if keep => *state = State::Waiting,
                State::Waiting | State::Open | State::Rotten | State::Writing { .. } => {}
            }
        }
    }

    /// A round asks what is settled.
    pub(super) fn asked(&mut self, round: u64) {
        if self.asked.replace(round).is_none() {
            for state in self.chunks.values_mut() {
                if let State::Kept { asked } | State::Writing { asked, .. } = state {
                    *asked = Some(round.saturating_sub(1));
                }
            }
        }
    }

    /// A lap: what is not needed any more. `marked` is the last round that was marked.
    pub(super) fn lap(&mut self, round: u64, marked: u64, settled_ms: i64, changes: &mut Changes) {
        if self.round.replace(round).is_none() {
            for state in self.chunks.values_mut() {
                if let State::Moved { round: at } = state {
                    *at = Some(round.saturating_sub(1));
                }
            }
        }
        if self.failed {
            return;
        }
        let shift = self.shift;
        self.chunks.retain(|id, state| {
            let gone = match state {
                State::Moved { round: at } => at.is_some_and(|at| marked > at),
                State::Kept { asked } => {
                    asked.is_some_and(|asked| round > asked) && (id.slot + 1) << shift <= settled_ms
                }
                State::Waiting | State::Open | State::Rotten | State::Writing { .. } => false,
            };
            if gone {
                changes.removes.push(*id);
            }
            !gone
        });
    }

    /// Writes the alarms of one slot. `closed_at`: with so many or more the memory forgets them.
    pub(super) fn write(
        &mut self,
        slot: i64,
        alarms: &mut [Alarm],
        closed_at: Option<usize>,
        changes: &mut Changes,
    ) {
        let closed = closed_at.is_some_and(|most| alarms.len() >= most);
        let open = closed_at.and_then(|_| {
            let mut of_slot = self.chunks.range(slot_range(slot));
            of_slot
                .find(|(_, state)| {
                    matches!(state, State::Open | State::Writing { closed: false, .. })
                })
                .map(|(id, _)| *id)
        });
        let mut ids = open.into_iter();
        for bytes in chunk::encode(slot << self.shift, alarms) {
            let id = ids.next().unwrap_or_else(|| self.free(slot));
            let asked = self.asked;
            self.chunks.insert(id, State::Writing { closed, asked });
            changes.writes.push((id, bytes));
        }
    }

    fn free(&self, slot: i64) -> RowId {
        let last = self.chunks.range(slot_range(slot)).next_back();
        RowId {
            slot,
            chunk: last.map_or(0, |(id, _)| id.chunk + 1),
        }
    }

    /// Changes have been handed to the store.
    pub(super) fn handed_over(&mut self) {
        self.unconfirmed += 1;
    }

    /// The store has written, or failed to. `keep`: the level keeps what it has written. Gives the
    /// slots whose alarms the memory may forget.
    pub(super) fn confirmed(&mut self, ok: bool, keep: bool) -> Vec<i64> {
        self.unconfirmed = self.unconfirmed.saturating_sub(1);
        self.failed |= !ok;
        if self.unconfirmed > 0 {
            return Vec::new();
        }
        let failed = self.failed;
        let mut forget = Vec::new();
        for (id, state) in &mut self.chunks {
            if let State::Writing { closed, asked } = *state {
                *state = match (keep, closed && !failed) {
                    (true, _) => State::Kept { asked },
                    (false, true) => {
                        forget.push(id.slot);
                        State::Waiting
                    }
                    (false, false) => State::Open,
                };
            }
        }
        forget.dedup();
        forget
    }
}

fn slot_range(slot: i64) -> std::ops::RangeInclusive<RowId> {
    RowId { slot, chunk: 0 }..=RowId {
        slot,
        chunk: u32::MAX,
    }
}

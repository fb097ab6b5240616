//! A batch that is kept: whole, or the rest of it that was not given out.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::OVERHEAD_BYTES;
use crate::domain::batch::{Opened, Taken};

/// What a record of a rest costs beside itself: its place in the map.
const RECORD_OVERHEAD_BYTES: usize = 48;
/// The rest is kept where one of so many records, at least, was given out since it was packed last: so what
/// is copied to make room is at most so many times the room that is made.
const GIVEN_OF: usize = 8;

/// See the module.
pub(super) struct Kept {
    held: Held,
    /// What it takes, as it was packed last.
    pub(super) bytes: usize,
    /// When it was asked for last.
    pub(super) asked: u64,
}

enum Held {
    Whole {
        opened: Arc<Opened>,
        given: Vec<bool>,
        /// How many of them are.
        many: usize,
    },
    Rest {
        records: BTreeMap<usize, Taken>,
        /// How many were there when it was packed.
        packed: usize,
    },
}

impl Kept {
    pub(super) fn new(opened: Arc<Opened>, bytes: usize, asked: u64) -> Self {
        let held = Held::Whole {
            given: vec![false; opened.len()],
            opened,
            many: 0,
        };
        Self { held, bytes, asked }
    }

    /// The batch, if it is here as a whole.
    pub(super) fn opened(&self) -> Option<&Arc<Opened>> {
        match &self.held {
            Held::Whole { opened, .. } => Some(opened),
            Held::Rest { .. } => None,
        }
    }

    /// The records of a rest.
    #[cfg(test)]
    pub(super) fn rest(&self) -> Option<Vec<usize>> {
        match &self.held {
            Held::Whole { .. } => None,
            Held::Rest { records, .. } => Some(records.keys().copied().collect()),
        }
    }

    /// A record was given out.
    pub(super) fn give(&mut self, index: usize) {
        match &mut self.held {
            Held::Whole { given, many, .. } => {
                if let Some(given) = given.get_mut(index)
                    && !*given
                {
                    *given = true;
                    *many += 1;
                }
            }
            Held::Rest { records, .. } => {
                records.remove(&index);
            }
        }
    }

    /// Takes all of these records out of a rest, or none.
    pub(super) fn take_rest(
        &mut self,
        indexes: impl Iterator<Item = usize> + Clone,
    ) -> Option<Vec<Taken>> {
        let Held::Rest { records, .. } = &mut self.held else {
            return None;
        };
        if !indexes.clone().all(|index| records.contains_key(&index)) {
            return None;
        }
        indexes.map(|index| records.remove(&index)).collect()
    }

    /// Lets go what was given out and packs the rest; says whether there is one and it was worth it.
    pub(super) fn pack(&mut self) -> bool {
        let records = match &mut self.held {
            Held::Whole {
                opened,
                given,
                many,
            } => {
                let is_worth = *many * GIVEN_OF >= given.len() && opened.is_plain();
                if !is_worth || *many == given.len() {
                    return false;
                }
                let left = given.iter().enumerate().filter(|(_, given)| !**given);
                let taken = left.map(|(index, _)| Some((index, opened.take(index).ok()?)));
                let Some(records) = taken.collect::<Option<BTreeMap<_, _>>>() else {
                    return false;
                };
                records
            }
            Held::Rest { records, packed } => {
                let given = packed.saturating_sub(records.len());
                if given * GIVEN_OF < *packed || records.is_empty() {
                    return false;
                }
                std::mem::take(records)
            }
        };
        let mut records = records;
        Taken::detach_all(records.values_mut());
        let own = |record: &Taken| record.bytes() + RECORD_OVERHEAD_BYTES;
        let bytes = records.values().map(own).sum::<usize>() + OVERHEAD_BYTES;
        if bytes >= self.bytes {
            // Records so small that their places outweigh them.
            return false;
        }
        let packed = records.len();
        self.held = Held::Rest { records, packed };
        self.bytes = bytes;
        true
    }
}

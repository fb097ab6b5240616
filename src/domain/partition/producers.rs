//! The producer table of a partition: duplicates are recognised, gaps refused.
//!
//! Per producer: its epoch, the next sequence expected, and the last batches with the place each got.
//! What is accepted but not yet durable is an overlay on it that an `apply` eats from the front and a
//! reset to the applied state throws away.
//!
//! - P1 A batch is applied at most once, whatever is repeated.
//! - P2 A gap is refused; a repeat is answered with its original offset.
//! - P3 State is bounded by refusing new producers, never by forgetting one that may still resend.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::domain::entry::EntryHeader;
use crate::domain::entry::PayloadFacts;
use crate::domain::id::{Offset, ProducerEpoch, ProducerId, ProducerSequence, RecordNumber, Token};
use crate::domain::rejection::Rejection;
use crate::domain::time::WallMs;

/// Batches per producer and partition that may be on their way, and that are remembered: a producer
/// that keeps to the first can always be answered from the second. Told in the handshake.
pub const WINDOW_BATCHES: usize = 64;

/// Where a batch was stored the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredBatch {
    /// The sender's number of its first record.
    pub first_sequence: ProducerSequence,
    /// How many records it has.
    pub count: u32,
    /// The offset of its first record, if it was published when it was stored.
    pub first_offset: Offset,
    /// The number of its first record.
    pub first_number: RecordNumber,
    /// When it was appended.
    pub appended: WallMs,
}

/// One producer as the log has it: a row of the view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct ProducerRow {
    /// The epoch in force.
    pub epoch: ProducerEpoch,
    /// The next sequence expected.
    pub next_sequence: ProducerSequence,
    /// When its last batch was appended.
    pub last_used: WallMs,
    /// The last batches, oldest first, at most [`WINDOW_BATCHES`].
    pub window: VecDeque<StoredBatch>,
}

/// A batch accepted, on its way to the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct InFlight {
    epoch: ProducerEpoch,
    first_sequence: ProducerSequence,
    count: u32,
    /// Repeats of it that wait for its outcome.
    repeats: Vec<Token>,
}

/// What is accepted of a producer beyond its row.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Accepted {
    epoch: ProducerEpoch,
    next_sequence: ProducerSequence,
    batches: VecDeque<InFlight>,
}

/// What to do with a batch that was offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// New and next in line: store it.
    Store,
    /// Stored before: answer this.
    Repeat(StoredBatch),
    /// The same batch is on its way to the disk; the token is answered when it is there.
    Waits,
}

/// All producers of one partition lane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProducerTable {
    rows: BTreeMap<ProducerId, ProducerRow>,
    accepted: BTreeMap<ProducerId, Accepted>,
}

impl ProducerTable {
    /// The rows, by producer.
    pub fn rows(&self) -> impl Iterator<Item = (ProducerId, &ProducerRow)> {
        self.rows.iter().map(|(id, row)| (*id, row))
    }

    /// One row.
    #[must_use]
    pub fn row(&self, producer: ProducerId) -> Option<&ProducerRow> {
        self.rows.get(&producer)
    }

    /// Puts a row as a view or a snapshot has it.
    pub fn restore(&mut self, producer: ProducerId, row: ProducerRow) {
        self.rows.insert(producer, row);
    }

    /// Drops every row not named; returns those dropped.
    pub fn keep_only(&mut self, producers: &[ProducerId]) -> Vec<ProducerId> {
        let gone: Vec<_> = self
            .rows
            .keys()
            .filter(|id| producers.binary_search(id).is_err())
            .copied()
            .collect();
        for id in &gone {
            self.rows.remove(id);
        }
        gone
    }

    /// Decides about a batch (P1, P2, P3). `Store` makes it part of what is on its way.
    ///
    /// # Errors
    /// [`Rejection`]: fenced, gap, state lost, too many producers, throttled.
    pub fn offer(
        &mut self,
        facts: &PayloadFacts,
        count: u32,
        token: Token,
        producers_max: u32,
    ) -> Result<Verdict, Rejection> {
        let (id, first) = (facts.producer, facts.first_sequence);
        let known = self.known(id);
        let expected = match known {
            Some((epoch, _)) if facts.epoch < epoch => {
                return Err(Rejection::ProducerFenced { current: epoch });
            }
            Some((epoch, next)) if facts.epoch == epoch => next,
            Some(_) if first.0 != 0 => {
                return Err(Rejection::SequenceGap {
                    expected: ProducerSequence(0),
                });
            }
            Some(_) => ProducerSequence(0),
            None if first.0 != 0 => return Err(Rejection::ProducerStateLost),
            None if self.known_producers() >= producers_max as usize => {
                return Err(Rejection::TooManyProducers { max: producers_max });
            }
            None => ProducerSequence(0),
        };
        if first > expected {
            return Err(Rejection::SequenceGap { expected });
        }
        if first < expected {
            return self.repeat(facts, count, token, expected);
        }
        let accepted = self.accepted.entry(id).or_insert_with(|| Accepted {
            epoch: facts.epoch,
            next_sequence: expected,
            batches: VecDeque::new(),
        });
        if accepted.batches.len() >= WINDOW_BATCHES {
            return Err(Rejection::Throttled { after_ms: 1 });
        }
        accepted.epoch = facts.epoch;
        accepted.next_sequence = ProducerSequence(first.0.saturating_add(u64::from(count)));
        accepted.batches.push_back(InFlight {
            epoch: facts.epoch,
            first_sequence: first,
            count,
            repeats: Vec::new(),
        });
        Ok(Verdict::Store)
    }

    /// Whether a batch is no new one: [`ProducerTable::offer`] will not say `Store`.
    #[must_use]
    pub fn has_passed(&self, facts: &PayloadFacts) -> bool {
        let known = self.known(facts.producer);
        facts.producer.0 != 0
            && known
                .is_some_and(|(epoch, next)| epoch == facts.epoch && facts.first_sequence < next)
    }

    /// The epoch of a producer and the sequence number it goes on with, what is on its way included.
    fn known(&self, id: ProducerId) -> Option<(ProducerEpoch, ProducerSequence)> {
        match (self.accepted.get(&id), self.rows.get(&id)) {
            (Some(accepted), _) => Some((accepted.epoch, accepted.next_sequence)),
            (None, Some(row)) => Some((row.epoch, row.next_sequence)),
            (None, None) => None,
        }
    }

    fn known_producers(&self) -> usize {
        let new = self
            .accepted
            .keys()
            .filter(|id| !self.rows.contains_key(id))
            .count();
        self.rows.len() + new
    }

    fn repeat(
        &mut self,
        facts: &PayloadFacts,
        count: u32,
        token: Token,
        expected: ProducerSequence,
    ) -> Result<Verdict, Rejection> {
        let first = facts.first_sequence;
        // Sequences start again with an epoch, and batches of the one before may still be on their way.
        let is_same = |batch: &&mut InFlight| {
            batch.epoch == facts.epoch && batch.first_sequence == first && batch.count == count
        };
        if let Some(accepted) = self.accepted.get_mut(&facts.producer)
            && let Some(batch) = accepted.batches.iter_mut().find(is_same)
        {
            batch.repeats.push(token);
            return Ok(Verdict::Waits);
        }
        self.rows
            .get(&facts.producer)
            .filter(|row| row.epoch == facts.epoch)
            .and_then(|row| {
                row.window
                    .iter()
                    .find(|batch| batch.first_sequence == first && batch.count == count)
            })
            .map(|batch| Verdict::Repeat(*batch))
            .ok_or(Rejection::SequenceGap { expected })
    }

    /// Takes in a durable batch; answers the repeats that waited for it.
    pub fn apply(
        &mut self,
        header: &EntryHeader,
        facts: &PayloadFacts,
    ) -> (StoredBatch, Vec<Token>) {
        let stored = StoredBatch {
            first_sequence: facts.first_sequence,
            count: header.numbers,
            first_offset: header.first_offset,
            first_number: header.first_number,
            appended: header.appended,
        };
        let row = self.rows.entry(facts.producer).or_default();
        // A row may have been written after the head it is folded from: then the batch is in it.
        let in_row = row.epoch > facts.epoch
            || (row.epoch == facts.epoch && facts.first_sequence < row.next_sequence);
        if in_row {
            return (stored, Vec::new());
        }
        if row.epoch != facts.epoch {
            *row = ProducerRow {
                epoch: facts.epoch,
                ..ProducerRow::default()
            };
        }
        row.next_sequence = ProducerSequence(
            facts
                .first_sequence
                .0
                .saturating_add(u64::from(header.numbers)),
        );
        row.last_used = header.appended;
        if row.window.len() == WINDOW_BATCHES {
            row.window.pop_front();
        }
        row.window.push_back(stored);
        let mut repeats = Vec::new();
        if let Some(accepted) = self.accepted.get_mut(&facts.producer) {
            let is_same = |batch: &InFlight| {
                batch.epoch == facts.epoch && batch.first_sequence == facts.first_sequence
            };
            if accepted.batches.front().is_some_and(is_same)
                && let Some(batch) = accepted.batches.pop_front()
            {
                repeats = batch.repeats;
            }
            if accepted.batches.is_empty() {
                self.accepted.remove(&facts.producer);
            }
        }
        (stored, repeats)
    }

    /// Forgets what was accepted and is not applied; returns the repeats that waited.
    pub fn reset(&mut self) -> Vec<Token> {
        std::mem::take(&mut self.accepted)
            .into_values()
            .flat_map(|accepted| accepted.batches)
            .flat_map(|batch| batch.repeats)
            .collect()
    }

    /// Producers with nothing on its way whose last batch is older than `before`.
    #[must_use]
    pub fn unused_since(&self, before: WallMs) -> Vec<ProducerId> {
        self.rows
            .iter()
            .filter(|(id, row)| row.last_used < before && !self.accepted.contains_key(id))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Forgets producers, as an applied entry says.
    pub fn forget(&mut self, producers: &[ProducerId]) {
        for id in producers {
            self.rows.remove(id);
        }
    }
}

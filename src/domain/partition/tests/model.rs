//! A list of what was sent and stored: what a partition should say.

use std::collections::{BTreeMap, VecDeque};

use super::super::Delta;
use super::super::index::BatchPlace;
use super::super::producers::{ProducerRow, StoredBatch, WINDOW_BATCHES};
use super::rig::Answer;
use crate::domain::entry::{AppliedEntry, EntryKind};
use crate::domain::id::{Offset, ProducerEpoch, ProducerId, ProducerSequence, Token};
use crate::domain::rejection::Rejection;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) producer: u64,
    pub(super) epoch: u32,
    pub(super) first: u64,
    pub(super) count: u32,
}

/// What a list says should be the case.
#[derive(Default)]
pub(super) struct Model {
    /// Applied batches of each producer, since it was last forgotten.
    pub(super) stored: BTreeMap<u64, Vec<(Sent, StoredBatch)>>,
    /// Accepted, in order, with repeats that wait.
    pub(super) queued: VecDeque<(Sent, Vec<Token>)>,
    pub(super) batches: Vec<BatchPlace>,
    pub(super) start: Offset,
}

pub(super) enum Expected {
    Queued,
    Waits,
    Answer(Answer),
}

impl Model {
    pub(super) fn end(&self) -> Offset {
        self.batches.last().map_or(Offset(0), BatchPlace::end)
    }

    /// Everything of a producer, stored and queued.
    pub(super) fn all(&self, producer: u64) -> Vec<Sent> {
        let stored = self
            .stored
            .get(&producer)
            .into_iter()
            .flatten()
            .map(|(sent, _)| *sent);
        let queued = self.queued.iter().map(|(sent, _)| *sent);
        stored
            .chain(queued.filter(|sent| sent.producer == producer))
            .collect()
    }

    pub(super) fn producers(&self) -> usize {
        let queued = self
            .queued
            .iter()
            .map(|(sent, _)| sent.producer)
            .filter(|id| *id != 0);
        let mut ids: Vec<u64> = self.stored.keys().copied().chain(queued).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.len()
    }

    /// The window of a producer: its last batches of one epoch.
    pub(super) fn window(&self, producer: u64) -> Vec<StoredBatch> {
        let stored = self.stored.get(&producer).map_or(&[][..], Vec::as_slice);
        let epoch = stored.last().map_or(0, |(sent, _)| sent.epoch);
        let from = stored
            .iter()
            .rposition(|(sent, _)| sent.epoch != epoch)
            .map_or(0, |at| at + 1);
        let same = &stored[from..];
        same[same.len().saturating_sub(WINDOW_BATCHES)..]
            .iter()
            .map(|(_, batch)| *batch)
            .collect()
    }

    pub(super) fn offer(&mut self, sent: Sent, token: Token) -> Expected {
        let refuse = |rejection| Expected::Answer(Answer::Refused(rejection));
        if sent.producer == 0 {
            self.queued.push_back((sent, Vec::new()));
            return Expected::Queued;
        }
        let mine = self.all(sent.producer);
        let expected = match mine.last() {
            None if sent.first != 0 => return refuse(Rejection::ProducerStateLost),
            None if self.producers() >= 3 => return refuse(Rejection::TooManyProducers { max: 3 }),
            None => 0,
            Some(last) if sent.epoch < last.epoch => {
                let current = ProducerEpoch(last.epoch);
                return refuse(Rejection::ProducerFenced { current });
            }
            Some(last) if sent.epoch == last.epoch => last.first + u64::from(last.count),
            Some(_) => 0,
        };
        let gap = Rejection::SequenceGap {
            expected: ProducerSequence(expected),
        };
        if sent.first > expected {
            return refuse(gap);
        }
        if sent.first == expected {
            let in_flight = self
                .queued
                .iter()
                .filter(|(other, _)| other.producer == sent.producer)
                .count();
            if in_flight >= WINDOW_BATCHES {
                return refuse(Rejection::Throttled { after_ms: 1 });
            }
            self.queued.push_back((sent, Vec::new()));
            return Expected::Queued;
        }
        if let Some((_, repeats)) = self.queued.iter_mut().find(|(other, _)| *other == sent) {
            repeats.push(token);
            return Expected::Waits;
        }
        let stored = self.stored.get(&sent.producer).and_then(|all| all.last());
        let window = match stored {
            Some((last, _)) if last.epoch == sent.epoch => self.window(sent.producer),
            _ => Vec::new(),
        };
        let first = window
            .iter()
            .find(|batch| batch.first_sequence.0 == sent.first && batch.count == sent.count);
        match first {
            Some(batch) => Expected::Answer(Answer::Stored(batch.first_offset)),
            None => refuse(gap),
        }
    }

    pub(super) fn apply(&mut self, entry: &AppliedEntry, expected: &mut BTreeMap<Token, Answer>) {
        let header = &entry.header;
        if header.kind == EntryKind::State {
            match rmp_serde::from_slice(&entry.body).expect("a delta") {
                Delta::StartOffset(start) => {
                    assert!(start > self.start && start <= self.end(), "P6");
                    self.start = start;
                }
                Delta::ForgetProducers(ids) => {
                    for id in ids {
                        self.stored.remove(&id.0);
                    }
                }
                Delta::Dropped(_) | Delta::Rescheduled { .. } | Delta::TransactionDropped(_) => {}
            }
        }
        if header.kind != EntryKind::Payload {
            return;
        }
        let (sent, repeats) = self.queued.pop_front().expect("it was queued");
        assert_eq!(
            entry.facts.producer.0, sent.producer,
            "P4: in the order accepted"
        );
        assert_eq!(header.first_offset, self.end(), "P4: dense");
        expected.extend(
            repeats
                .iter()
                .map(|token| (*token, Answer::Stored(header.first_offset))),
        );
        self.batches.push(BatchPlace {
            first_offset: header.first_offset,
            count: header.offsets,
            first_number: header.first_number,
            position: entry.place.position,
            length: entry.place.length,
            appended: header.appended,
            tags: 0,
            reference: None,
        });
        if sent.producer != 0 {
            let batch = StoredBatch {
                first_sequence: ProducerSequence(sent.first),
                count: sent.count,
                first_offset: header.first_offset,
                first_number: header.first_number,
                appended: header.appended,
            };
            self.stored
                .entry(sent.producer)
                .or_default()
                .push((sent, batch));
        }
    }

    pub(super) fn rows(&self) -> Vec<(ProducerId, ProducerRow)> {
        let row = |(id, stored): (&u64, &Vec<(Sent, StoredBatch)>)| {
            let (sent, last) = stored.last().expect("never empty");
            let row = ProducerRow {
                epoch: ProducerEpoch(sent.epoch),
                next_sequence: ProducerSequence(sent.first + u64::from(sent.count)),
                last_used: last.appended,
                window: self.window(*id).into(),
            };
            (ProducerId(*id), row)
        };
        self.stored.iter().map(row).collect()
    }

    pub(super) fn kept(&self) -> Vec<BatchPlace> {
        self.batches
            .iter()
            .filter(|batch| batch.end() > self.start)
            .copied()
            .collect()
    }
}

//! Producers that resend in order, readers that follow, and somebody who makes and deletes topics.

use std::collections::VecDeque;

use bytes::Bytes;
use waterwheel::domain::batch::Delivery;
use waterwheel::domain::entry::PayloadFacts;
use waterwheel::domain::id::{Offset, OwnerId, ProducerEpoch, ProducerId, ProducerSequence};

use crate::timers::column;

/// Batches a producer has on their way at most.
const OUTSTANDING_MAX: usize = 8;
/// Batches it remembers, to send one of them again for no reason.
const REMEMBERED: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Batch {
    pub(crate) producer: u64,
    pub(crate) epoch: u32,
    pub(crate) first: u64,
    pub(crate) count: u32,
    pub(crate) salt: u64,
    /// How long its records wait; 0: not at all.
    pub(crate) delay_ms: i64,
}

impl Batch {
    pub(crate) fn body(&self) -> Bytes {
        let mut body = Vec::new();
        body.extend(self.producer.to_le_bytes());
        body.extend(self.epoch.to_le_bytes());
        body.extend(self.first.to_le_bytes());
        body.extend(self.count.to_le_bytes());
        body.extend(self.salt.to_le_bytes());
        body.extend(self.delay_ms.to_le_bytes());
        body.resize(body.len() + (self.salt % 1_500) as usize, self.salt as u8);
        body.into()
    }

    pub(crate) fn read(body: &[u8]) -> Self {
        let word = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().expect("8 bytes"));
        let half = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().expect("4 bytes"));
        let batch = Self {
            producer: word(0),
            epoch: half(8),
            first: word(12),
            count: half(20),
            salt: word(24),
            delay_ms: word(32).cast_signed(),
        };
        assert_eq!(batch.body(), body, "whole");
        batch
    }

    pub(crate) fn facts(&self) -> PayloadFacts {
        let deliveries: Vec<Delivery> = (0..i64::from(self.count))
            .map(|at| Delivery::After(self.delay_ms + at * 37))
            .collect();
        PayloadFacts {
            deliveries: match self.delay_ms {
                0 => Bytes::new(),
                _ => column(&deliveries),
            },
            producer: ProducerId(self.producer),
            epoch: ProducerEpoch(self.epoch),
            first_sequence: ProducerSequence(self.first),
            ..PayloadFacts::default()
        }
    }
}

/// What the log finds in a payload by itself.
pub(crate) fn facts_of(body: &[u8]) -> Option<PayloadFacts> {
    Some(Batch::read(body).facts())
}

pub(crate) struct Producer {
    pub(crate) topic: &'static str,
    pub(crate) partition: u32,
    pub(crate) is_idempotent: bool,
    /// Everything it sends waits for its time.
    pub(crate) is_late: bool,
    /// 0 until the directory has given one.
    pub(crate) id: u64,
    pub(crate) owner: Option<OwnerId>,
    pub(crate) outstanding: VecDeque<(Batch, bool)>,
    epoch: u32,
    next: u64,
    remembered: VecDeque<(Batch, Offset)>,
}

/// What to send.
pub(crate) struct Sending {
    pub(crate) batch: Batch,
    /// Everything before it has been acknowledged.
    pub(crate) is_first: bool,
    /// It was acknowledged before, with this offset.
    pub(crate) repeats: Option<Offset>,
}

impl Producer {
    pub(crate) fn new(topic: &'static str, partition: u32, is_idempotent: bool) -> Self {
        Self {
            topic,
            partition,
            is_idempotent,
            is_late: false,
            id: 0,
            owner: None,
            outstanding: VecDeque::new(),
            epoch: 0,
            next: 0,
            remembered: VecDeque::new(),
        }
    }

    /// One that sends nothing but delayed records.
    pub(crate) fn late(topic: &'static str, partition: u32) -> Self {
        Self {
            is_late: true,
            ..Self::new(topic, partition, true)
        }
    }

    /// The partition is another one now: the topic was made anew.
    pub(crate) fn aim(&mut self, owner: OwnerId) {
        if self.owner != Some(owner) {
            self.owner = Some(owner);
            self.next = 0;
            self.outstanding.clear();
            self.remembered.clear();
        }
    }

    pub(crate) fn send(&mut self, random: u64, may_begin: bool) -> Option<Sending> {
        let unsent = self.outstanding.iter().position(|(_, sent)| !sent);
        if let Some(at) = unsent {
            self.outstanding[at].1 = true;
            let (batch, is_first) = (self.outstanding[at].0, at == 0);
            return Some(Sending {
                batch,
                is_first,
                repeats: None,
            });
        }
        if random.is_multiple_of(16) && !self.remembered.is_empty() {
            let at = (random / 16) as usize % self.remembered.len();
            let (batch, offset) = self.remembered[at];
            return Some(Sending {
                batch,
                is_first: false,
                repeats: Some(offset),
            });
        }
        if !may_begin || self.outstanding.len() >= OUTSTANDING_MAX {
            return None;
        }
        if self.is_idempotent && self.outstanding.is_empty() && random.is_multiple_of(101) {
            self.epoch += 1;
            self.next = 0;
            self.remembered.clear();
        }
        let count = 1 + (random % 5) as u32;
        let (producer, epoch) = (self.id, self.epoch);
        let batch = Batch {
            producer,
            epoch,
            first: self.next,
            count,
            salt: random,
            delay_ms: if self.is_late { delay_ms(random) } else { 0 },
        };
        self.next += u64::from(count);
        self.outstanding.push_back((batch, true));
        Some(Sending {
            batch,
            is_first: self.outstanding.len() == 1,
            repeats: None,
        })
    }

    pub(crate) fn acked(&mut self, batch: Batch, offset: Offset) {
        let before = self.outstanding.len();
        self.outstanding.retain(|(other, _)| *other != batch);
        if self.is_idempotent && self.outstanding.len() < before {
            self.remembered.push_back((batch, offset));
            if self.remembered.len() > REMEMBERED {
                self.remembered.pop_front();
            }
        }
    }

    /// It and what was sent behind it go again, in order; who is not idempotent does not send again.
    pub(crate) fn refused(&mut self, batch: Batch) {
        if !self.is_idempotent {
            return self.outstanding.retain(|(other, _)| *other != batch);
        }
        let from = self
            .outstanding
            .iter()
            .position(|(other, _)| *other == batch);
        if let Some(from) = from {
            self.outstanding
                .iter_mut()
                .skip(from)
                .for_each(|(_, sent)| *sent = false);
        }
    }

    /// The broker is another: nothing will be answered any more.
    pub(crate) fn reconnect(&mut self) {
        if self.is_idempotent {
            self.outstanding
                .iter_mut()
                .for_each(|(_, sent)| *sent = false);
        } else {
            self.outstanding.clear();
        }
    }
}

/// From a millisecond to a year, and around what levels of the wheel span.
fn delay_ms(random: u64) -> i64 {
    let some = (random >> 20).cast_signed() & 0xff_ffff;
    match random >> 8 & 15 {
        0..6 => 1 + some % 3_000,
        6..9 => 1 + some % 90_000,
        9 => 4_096 + some % 5 - 2,
        10 => 81_920 + (some % 5 - 2) * 1_024,
        11 => 72 * 65_536 + (some % 5 - 2) * 65_536,
        12..14 => 1 + some % 7_200_000,
        14 => 86_400_000 + some,
        _ => 365 * 86_400_000,
    }
}

pub(crate) struct Reader {
    pub(crate) topic: &'static str,
    pub(crate) partition: u32,
    pub(crate) owner: Option<OwnerId>,
    pub(crate) at: Offset,
    pub(crate) is_waiting: bool,
}

impl Reader {
    pub(crate) fn new(topic: &'static str, partition: u32) -> Self {
        Self {
            topic,
            partition,
            owner: None,
            at: Offset(0),
            is_waiting: false,
        }
    }

    pub(crate) fn aim(&mut self, owner: OwnerId) {
        if self.owner != Some(owner) {
            self.owner = Some(owner);
            self.at = Offset(0);
        }
    }
}

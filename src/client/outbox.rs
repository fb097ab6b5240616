//! What one producer has under way to one partition: a machine without I/O or clock.
//!
//! In: records, the moment, and what the broker answered. Out: batches to send, in order, and settled
//! completions. A record goes through three places: the *open* batch, where records gather; *full*
//! batches, waiting for their turn; the *queue*, batches with sequence numbers, sent or about to be.
//!
//! Invariants:
//! - O1: batches are sent in the order of their sequence numbers, and at most `in_flight_max` are unsettled.
//! - O2: after a disconnection or a refusal that passes, everything unsettled is sent again from the
//!   first on, with the sequence numbers it had; answers to earlier rounds can settle a batch but not
//!   refuse one.
//! - O3: a batch leaves the queue only settled: stored, or failed. At level memory an accepted batch
//!   stays until it is stored.
//! - O4: when a batch fails, everything behind it fails too, and what comes later is sent under
//!   another producer id: there is never a gap that the broker would take for lost records.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::SendError;
use super::pending::{Completion, Outcome, Pending, TimerFacts};
use crate::domain::batch::{BATCH_RECORDS_MAX, BatchBuilder, BatchStamp, Compression, Delivery};
use crate::domain::body::Body;
use crate::domain::id::{
    ClusterId, Lane, MessageId, PartitionIndex, ProducerSequence, TopicId, TransactionNumber,
};
use crate::domain::record::Record;
use crate::domain::time::WallMs;
use crate::wire::produce::{Ack, ProducerOk, SendStatus, Stored};

/// What does not change while a producer lives.
#[derive(Debug, Clone)]
pub(crate) struct OutboxConfig {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: u32,
    /// The priority level of its records.
    pub(crate) level: u8,
    /// Its place among the producer's outboxes.
    pub(crate) slot: u32,
    pub(crate) ack: Ack,
    /// A batch is full at so many bytes.
    pub(crate) batch_bytes: usize,
    /// No batch may have more: a larger record gets a batch of its own up to this.
    pub(crate) batch_bytes_max: usize,
    pub(crate) compression: Compression,
    /// How long records gather. Where nothing is set, until what is under way is answered, and at
    /// most [`LINGER_MAX`]: a lone record never waits.
    pub(crate) linger: Option<Duration>,
    pub(crate) in_flight_max: usize,
    pub(crate) flush_timeout: Option<Duration>,
    /// What handles of delayed records name.
    pub(crate) cluster: ClusterId,
    pub(crate) topic_id: TopicId,
}

/// Records that gather, and who waits for them.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub(crate) builder: BatchBuilder,
    completion: Arc<Completion>,
    /// Since when.
    since: Instant,
    /// What it counts in the producer's memory.
    charge: usize,
}

/// A batch that was taken to be finished: to be handed back with its bytes.
#[derive(Debug)]
pub(crate) struct Closing {
    pub(crate) gathered: Gathered,
    pub(crate) stamp: BatchStamp,
}

#[derive(Debug)]
struct Batch {
    bytes: Body,
    /// What it counts in the producer's memory.
    charge: usize,
    completion: Arc<Completion>,
    since: Instant,
    sent: Option<Instant>,
    /// Expected to be answered on the present connection.
    awaited: bool,
}

/// What a record's push came to.
#[derive(Debug)]
pub(crate) struct Pushed {
    /// Its place in its batch.
    pub(crate) index: u32,
    /// Something is there to do that was not before.
    pub(crate) wake: bool,
    /// It began a batch.
    pub(crate) began: bool,
}

/// What a batch to send consists of.
#[derive(Debug)]
pub(crate) struct ToSend {
    pub(crate) correlation: u64,
    pub(crate) bytes: Body,
}

/// What an answer changed: batches settled or failed, and the memory they gave back.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) batches: usize,
    pub(crate) charge: usize,
    /// How many answers are no longer waited for on this connection.
    pub(crate) heard: usize,
}

/// One partition's outbox.
#[derive(Debug)]
pub(crate) struct Outbox {
    config: OutboxConfig,
    open: Option<Gathered>,
    full: VecDeque<Gathered>,
    queue: VecDeque<Batch>,
    /// How many at the queue's front were sent in this round.
    sent: usize,
    /// The ordinal of the queue's front.
    first_ordinal: u32,
    round: u16,
    next_sequence: u64,
    identity: Option<ProducerOk>,
    paused_until: Option<Instant>,
    /// The next pause, where the broker does not say how long.
    pause: Duration,
    /// Close whatever has gathered.
    hurry: bool,
    spare: Vec<BatchBuilder>,
    /// Bytes of bodies and records of the last batch that was closed: room for the next is made at once.
    usual: (usize, usize),
}

/// The first pause after a refusal that passes; doubled for each one that follows.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long records gather at most where nothing is set.
const LINGER_MAX: Duration = Duration::from_millis(5);
/// Builders kept for their buffers.
const SPARE_MAX: usize = 2;

impl Outbox {
    pub(crate) fn new(config: OutboxConfig, identity: ProducerOk) -> Self {
        Self {
            config,
            open: None,
            full: VecDeque::new(),
            queue: VecDeque::new(),
            sent: 0,
            first_ordinal: 0,
            round: 0,
            next_sequence: 0,
            identity: Some(identity),
            paused_until: None,
            pause: PAUSE_MIN,
            hurry: false,
            spare: Vec::new(),
            usual: (0, 0),
        }
    }

    pub(crate) fn partition(&self) -> PartitionIndex {
        PartitionIndex(self.config.partition)
    }

    pub(crate) fn lane(&self) -> Lane {
        Lane(self.config.level)
    }

    /// Puts a record where others gather. `charge` is what it counts in the producer's memory, given
    /// back when its batch is settled.
    pub(crate) fn push(
        &mut self,
        record: &Record,
        id: MessageId,
        at: WallMs,
        charge: usize,
        now: impl FnOnce() -> Instant,
    ) -> Result<Pushed, SendError> {
        // A batch holds delayed records or immediate ones: the one that gathers the other kind is full.
        let is_delayed = record.delivery != Delivery::Now;
        if self
            .open
            .as_ref()
            .is_some_and(|open| open.completion.is_delayed() != is_delayed)
        {
            self.full.extend(self.open.take());
        }
        if let Some(open) = &mut self.open {
            let index = open.builder.len();
            if open
                .builder
                .push_with(record, id, at, record.priority, record.delivery)
                .is_ok()
            {
                open.charge += charge;
                open.completion.gathered(record.delivery);
                let full = open.builder.bytes() >= self.config.batch_bytes
                    || index + 1 >= BATCH_RECORDS_MAX;
                if full {
                    self.full.extend(self.open.take());
                }
                return Ok(Pushed {
                    index: index_of(index),
                    wake: full,
                    began: false,
                });
            }
            self.full.extend(self.open.take());
        }
        let mut gathered = self.gather(record, id, at, now())?;
        gathered.charge = charge;
        if gathered.builder.bytes() >= self.config.batch_bytes {
            self.full.push_back(gathered);
        } else {
            self.open = Some(gathered);
        }
        Ok(Pushed {
            index: 0,
            wake: true,
            began: true,
        })
    }

    /// Waits for the record that was pushed last.
    pub(crate) fn pending(&self, pushed: &Pushed) -> Option<Pending> {
        let newest = self.open.as_ref().or(self.full.back())?;
        Some(Pending::new(Arc::clone(&newest.completion), pushed.index))
    }

    /// A new batch with its first record.
    fn gather(
        &mut self,
        record: &Record,
        id: MessageId,
        at: WallMs,
        now: Instant,
    ) -> Result<Gathered, SendError> {
        let config = &self.config;
        let mut builder = self
            .spare
            .pop()
            .unwrap_or_else(|| BatchBuilder::new(config.batch_bytes, config.compression));
        let (body_bytes, records) = self.usual;
        builder.reserve(body_bytes, records);
        let pushed = builder.push_with(record, id, at, record.priority, record.delivery);
        if pushed.is_err() {
            self.spare.push(builder);
            builder = BatchBuilder::new(config.batch_bytes_max, config.compression);
            let limit = config.batch_bytes_max;
            builder
                .push_with(record, id, at, record.priority, record.delivery)
                .map_err(|_| SendError::TooLarge { limit })?;
        }
        let completion = Completion::new(&config.topic, config.partition, record.delivery);
        Ok(Gathered {
            builder,
            completion,
            since: now,
            charge: 0,
        })
    }

    /// Takes the next batch that is due, to be finished outside and handed back by [`Outbox::closed`].
    ///
    /// Due is a full batch; one in which records gathered for as long as they may; and, so that a lone
    /// record never waits, whatever there is when nothing is under way.
    pub(crate) fn close_due(&mut self, now: Instant) -> Option<Closing> {
        let identity = self.identity?;
        if self.queue.len() >= self.config.in_flight_max {
            return None;
        }
        let gathered = match self.full.pop_front() {
            Some(full) => full,
            None => {
                let lone = self.config.linger.is_none() && self.queue.is_empty();
                let due = self.hurry || lone || self.open.as_ref()?.since + self.linger() <= now;
                if !due {
                    return None;
                }
                self.open.take()?
            }
        };
        let stamp = BatchStamp {
            producer: identity.producer,
            epoch: identity.epoch,
            first_sequence: ProducerSequence(self.next_sequence),
            transaction: TransactionNumber(0),
        };
        let builder = &gathered.builder;
        // A little more: records of one size are not all of one length.
        let body_bytes = builder.body_bytes();
        self.usual = (body_bytes + body_bytes / 64, builder.len() + 1);
        if self.config.ack != Ack::None {
            self.next_sequence += builder.len() as u64;
        }
        Some(Closing { gathered, stamp })
    }

    fn linger(&self) -> Duration {
        self.config.linger.unwrap_or(LINGER_MAX)
    }

    /// A batch taken by [`Outbox::close_due`] is finished.
    pub(crate) fn closed(&mut self, gathered: Gathered, bytes: Body) {
        let Gathered {
            builder,
            completion,
            since,
            charge,
        } = gathered;
        if self.spare.len() < SPARE_MAX {
            self.spare.push(builder);
        }
        if self.open.is_none() && self.full.is_empty() {
            self.hurry = false;
        }
        self.queue.push_back(Batch {
            charge,
            bytes,
            completion,
            since,
            sent: None,
            awaited: false,
        });
    }

    /// The next batch to send, if any may be sent now.
    pub(crate) fn next_to_send(&mut self, now: Instant) -> Option<ToSend> {
        if self.paused_until.is_some_and(|until| now < until) {
            return None;
        }
        self.paused_until = None;
        let ordinal = self.first_ordinal.wrapping_add(index_of(self.sent));
        let correlation = self.correlation(ordinal);
        let batch = self.queue.get_mut(self.sent)?;
        batch.sent.get_or_insert(now);
        batch.awaited = true;
        self.sent += 1;
        Some(ToSend {
            correlation,
            bytes: batch.bytes.clone(),
        })
    }

    /// At level none a batch is settled by being written.
    pub(crate) fn written(&mut self, correlation: u64) -> Settled {
        self.settle(
            correlation,
            unacknowledged(SendStatus::SendOk),
            never_told(),
        )
    }

    /// The broker has stored a batch.
    pub(crate) fn stored(&mut self, correlation: u64, stored: &Stored) -> Settled {
        self.pause = PAUSE_MIN;
        let outcome = Outcome::Sent {
            first_offset: stored.first_offset.map(|offset| offset.0),
            time_ms: stored.appended.0,
            status: stored.status,
            duplicate: stored.duplicate,
            timers: stored.timers.map(|timers| TimerFacts {
                cluster: self.config.cluster,
                topic: self.config.topic_id,
                first: stored.first_number,
                timers,
            }),
        };
        let acknowledged = match self.config.ack {
            Ack::Durable => outcome.clone(),
            // An acknowledgement below durable says the same whether or not more is known by now.
            Ack::Memory | Ack::None => unacknowledged(stored.status),
        };
        self.settle(correlation, acknowledged, outcome)
    }

    /// The broker has a batch in memory: its senders are told, it is kept (O3).
    pub(crate) fn accepted(&mut self, correlation: u64) {
        self.pause = PAUSE_MIN;
        if let Some((_, batch)) = self.find(correlation) {
            let acknowledged = unacknowledged(SendStatus::SendOk);
            batch.completion.acknowledge(acknowledged);
        }
    }

    /// The broker did not take a batch this time: everything unsettled is sent again after a pause (O2).
    pub(crate) fn put_off(
        &mut self,
        correlation: u64,
        after: Option<Duration>,
        now: Instant,
    ) -> Settled {
        if !self.is_current(correlation) {
            return Settled::default();
        }
        let pause = after.unwrap_or(self.pause).min(Duration::from_secs(60));
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        self.paused_until = Some(now + pause);
        self.new_round()
    }

    /// Whether a refusal is about this round, and whether it is about the first unsettled batch.
    pub(crate) fn refusal_of(&mut self, correlation: u64) -> Refusing {
        if !self.is_current(correlation) {
            return Refusing::Past;
        }
        match self.find(correlation) {
            Some((0, _)) => Refusing::First,
            Some(_) => Refusing::Later,
            None => Refusing::Past,
        }
    }

    /// The batch will never be stored. It fails with `error`, everything behind it is aborted (O4);
    /// what lies before it is still waited for.
    pub(crate) fn fail_from(&mut self, correlation: u64, error: SendError) -> Settled {
        match self.find(correlation) {
            Some((index, _)) => self.fail_behind(index, error),
            None => Settled::default(),
        }
    }

    /// Nothing will be stored any more.
    pub(crate) fn fail_all(&mut self, error: SendError) -> Settled {
        self.fail_behind(0, error)
    }

    fn fail_behind(&mut self, index: usize, error: SendError) -> Settled {
        let mut settled = Settled::default();
        let aborted = if matches!(error, SendError::Refused(_)) {
            SendError::Aborted(Arc::new(error.clone()))
        } else {
            error.clone()
        };
        let mut error = Some(error);
        for batch in self.queue.drain(index.min(self.queue.len())..) {
            settled.batches += 1;
            settled.charge += batch.charge;
            settled.heard += usize::from(batch.awaited);
            let outcome = error.take().unwrap_or_else(|| aborted.clone());
            batch.completion.settle(Outcome::Failed(outcome));
        }
        for gathered in self.full.drain(..).chain(self.open.take()) {
            settled.batches += 1;
            settled.charge += gathered.charge;
            let outcome = error.take().unwrap_or_else(|| aborted.clone());
            gathered.completion.settle(Outcome::Failed(outcome));
        }
        self.sent = self.sent.min(self.queue.len());
        self.hurry = false;
        // Not to be mistaken for the batches that had these ordinals.
        self.round = self.round.wrapping_add(1);
        if self.config.ack != Ack::None {
            self.identity = None;
        }
        settled
    }

    /// The connection has ended. What was begun is sent again on the next one (O2), but at level none,
    /// where it may have arrived.
    pub(crate) fn disconnected(&mut self) -> Settled {
        self.paused_until = None;
        let mut settled = Settled::default();
        if self.config.ack == Ack::None {
            for batch in self.queue.drain(..self.sent) {
                settled.batches += 1;
                settled.charge += batch.charge;
                let acknowledged = unacknowledged(SendStatus::SendOk);
                batch.completion.acknowledge(acknowledged);
                batch.completion.settle(never_told());
            }
            self.first_ordinal = self.first_ordinal.wrapping_add(index_of(self.sent));
        }
        settled.heard = self.new_round().heard;
        settled
    }

    fn new_round(&mut self) -> Settled {
        self.round = self.round.wrapping_add(1);
        self.sent = 0;
        let mut settled = Settled::default();
        for batch in &mut self.queue {
            settled.heard += usize::from(batch.awaited);
            batch.awaited = false;
        }
        settled
    }

    /// Whether another producer id is wanted before anything can be sent. What is under the old one
    /// has to be settled first.
    pub(crate) fn wants_identity(&self) -> bool {
        self.identity.is_none() && (self.open.is_some() || !self.full.is_empty())
    }

    /// The identity under which what comes now is sent.
    pub(crate) fn identify(&mut self, identity: ProducerOk) {
        self.identity = Some(identity);
        self.next_sequence = 0;
    }

    /// Close whatever has gathered, as soon as there is room.
    pub(crate) fn hurry(&mut self) {
        self.hurry = self.open.is_some() || !self.full.is_empty();
    }

    /// Tells senders of durable batches that waited too long that the outcome is open.
    pub(crate) fn tell_late(&mut self, now: Instant) {
        let (Some(timeout), Ack::Durable) = (self.config.flush_timeout, self.config.ack) else {
            return;
        };
        for batch in &self.queue {
            if batch.sent.is_some_and(|sent| sent + timeout <= now) {
                batch
                    .completion
                    .acknowledge(unacknowledged(SendStatus::FlushDiskTimeout));
            }
        }
    }

    /// When something is to be done though nothing happens.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let room = self.queue.len() < self.config.in_flight_max && self.identity.is_some();
        let linger = self
            .open
            .as_ref()
            .filter(|_| room)
            .map(|open| open.since + self.linger());
        let late = self.config.flush_timeout.and_then(|timeout| {
            self.queue
                .iter()
                .filter(|batch| batch.completion.is_open())
                .find_map(|batch| Some(batch.sent? + timeout))
        });
        let resume = self.paused_until.filter(|_| !self.queue.is_empty());
        [linger, late, resume].into_iter().flatten().min()
    }

    /// Since when the oldest unsettled record waits.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.queue
            .front()
            .map(|batch| batch.since)
            .or_else(|| self.full.front().map(|full| full.since))
            .or_else(|| self.open.as_ref().map(|open| open.since))
    }

    /// Whether records are gathering that another one would join.
    pub(crate) fn is_gathering(&self) -> bool {
        self.open.is_some()
    }

    /// Whether something is there that was not sent (again) yet.
    pub(crate) fn has_unsent(&self) -> bool {
        self.open.is_some() || !self.full.is_empty() || self.sent < self.queue.len()
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_none() && self.full.is_empty() && self.queue.is_empty()
    }

    /// The completions of everything that is under way.
    pub(crate) fn completions(&self) -> impl Iterator<Item = Arc<Completion>> + '_ {
        let queued = self.queue.iter().map(|batch| &batch.completion);
        let gathered = self.full.iter().chain(&self.open);
        queued
            .chain(gathered.map(|gathered| &gathered.completion))
            .map(Arc::clone)
    }

    fn settle(&mut self, correlation: u64, acknowledged: Outcome, outcome: Outcome) -> Settled {
        let Some((index, _)) = self.find(correlation) else {
            return Settled::default();
        };
        if index != 0 {
            // Answers of one producer and partition come in order: this one is no broker's. What is
            // never answered in its turn times out.
            return Settled::default();
        }
        let Some(batch) = self.queue.pop_front() else {
            return Settled::default();
        };
        self.first_ordinal = self.first_ordinal.wrapping_add(1);
        self.sent = self.sent.saturating_sub(1);
        batch.completion.acknowledge(acknowledged);
        batch.completion.settle(outcome);
        Settled {
            batches: 1,
            charge: batch.charge,
            heard: usize::from(batch.awaited),
        }
    }

    /// Partition, ordinal and round of a batch as sent: 16, 32 and 16 bits.
    fn correlation(&self, ordinal: u32) -> u64 {
        u64::from(self.config.slot) << 48 | u64::from(ordinal) << 16 | u64::from(self.round)
    }

    fn is_current(&self, correlation: u64) -> bool {
        correlation & 0xffff == u64::from(self.round)
    }

    fn find(&mut self, correlation: u64) -> Option<(usize, &mut Batch)> {
        let ordinal = u32::try_from(correlation >> 16 & u64::from(u32::MAX)).ok()?;
        let index = usize::try_from(ordinal.wrapping_sub(self.first_ordinal)).ok()?;
        self.queue.get_mut(index).map(|batch| (index, batch))
    }
}

/// The outcome where nothing is known of the disk.
fn unacknowledged(status: SendStatus) -> Outcome {
    Outcome::Sent {
        first_offset: None,
        time_ms: 0,
        status,
        duplicate: false,
        timers: None,
    }
}

/// What has become of a batch of level none.
fn never_told() -> Outcome {
    Outcome::Failed(SendError::Unacknowledged)
}

/// What a refusal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusing {
    /// An earlier round, or something settled.
    Past,
    /// The first unsettled batch.
    First,
    /// One behind it.
    Later,
}

/// The place among the outboxes of what a correlation id is about.
pub(crate) fn partition_of_correlation(correlation: u64) -> usize {
    usize::try_from(correlation >> 48).unwrap_or(usize::MAX)
}

fn index_of(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;

//! What a sender waits on: one completion per batch, shared by the records in it.
//!
//! A batch is told of twice: when it is acknowledged as its producer's level asks, and when nothing more
//! can become of it. At level `durable` both come together, at `memory` the second comes later, with the
//! offset and what handles of delayed records are made of.
//!
//! - What was told of a batch once stays.
//! - Whoever was told that a batch is acknowledged may still hear that it failed; not the other way round.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};

use super::error::SendError;
use super::link::lock;
use crate::domain::batch::Delivery;
use crate::domain::id::{ClusterId, Lane, PartitionIndex, RecordNumber, TopicId};
pub use crate::wire::produce::SendStatus;
use crate::wire::timer::{StoredTimers, TimerHandle};

/// Where a record was stored, and how sure that is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// The offset; none below `durable`, or where the outcome is open.
    pub offset: Option<u64>,
    /// When the broker appended it, in Unix milliseconds; 0 where that is not known yet.
    pub time_ms: i64,
    /// How it went.
    pub status: SendStatus,
    /// Whether the broker had stored it before and this was a repeat.
    pub duplicate: bool,
    /// When it is due, in Unix milliseconds, if it was delayed and is durable.
    pub due_ms: Option<i64>,
    /// Names it, as long as it waits for its time: by this it can be cancelled and rescheduled. None of
    /// an immediate record, of one below `durable`, and of one whose time had passed: that one was
    /// published at once. At level `memory`, [`Pending::durable`] waits for it.
    pub timer: Option<TimerHandle>,
}

impl Receipt {
    /// Whether it was to be delayed, but its time had passed already: it was published at once.
    #[must_use]
    pub fn is_published_at_once(&self) -> bool {
        self.due_ms.is_some() && self.timer.is_none()
    }
}

/// What handles of a batch's records are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimerFacts {
    pub(crate) cluster: ClusterId,
    pub(crate) topic: TopicId,
    pub(crate) first: RecordNumber,
    pub(crate) timers: StoredTimers,
}

/// How a batch went.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Sent {
        first_offset: Option<u64>,
        time_ms: i64,
        status: SendStatus,
        duplicate: bool,
        timers: Option<TimerFacts>,
    },
    Failed(SendError),
}

/// Something that is told once, to everybody who waits.
#[derive(Debug, Default)]
struct Told {
    outcome: OnceLock<Outcome>,
    wakers: Mutex<Vec<Waker>>,
}

impl Told {
    /// Tells it; what was told first stays.
    fn tell(&self, outcome: Outcome) {
        if self.outcome.set(outcome).is_ok() {
            for waker in std::mem::take(&mut *lock(&self.wakers)) {
                waker.wake();
            }
        }
    }

    /// Whether it has been told; if not, whoever polls is woken then. `place` is where its waker is.
    fn poll(&self, place: &mut Option<usize>, context: &mut Context<'_>) -> Poll<&Outcome> {
        if let Some(outcome) = self.outcome.get() {
            return Poll::Ready(outcome);
        }
        let mut wakers = lock(&self.wakers);
        // Told between the look and the lock: the list was emptied, or is about to be.
        if let Some(outcome) = self.outcome.get() {
            return Poll::Ready(outcome);
        }
        match place.and_then(|place| wakers.get_mut(place)) {
            Some(waker) => waker.clone_from(context.waker()),
            None => {
                *place = Some(wakers.len());
                wakers.push(context.waker().clone());
            }
        }
        Poll::Pending
    }
}

/// The shared end of a batch's records: told by the producer's task, read by each.
#[derive(Debug)]
pub(crate) struct Completion {
    topic: Arc<str>,
    partition: u32,
    /// Of delayed records, in order; empty where they are immediate.
    delayed: Mutex<Vec<Delivery>>,
    is_delayed: bool,
    /// That it is acknowledged as the producer's level asks.
    acknowledged: Told,
    /// What has become of it in the end.
    settled: Told,
}

impl Completion {
    /// Of a batch whose first record is delivered so.
    pub(crate) fn new(topic: &Arc<str>, partition: u32, first: Delivery) -> Arc<Self> {
        let is_delayed = first != Delivery::Now;
        Arc::new(Self {
            topic: Arc::clone(topic),
            partition,
            delayed: Mutex::new(if is_delayed { vec![first] } else { Vec::new() }),
            is_delayed,
            acknowledged: Told::default(),
            settled: Told::default(),
        })
    }

    /// Whether its records are delayed.
    pub(crate) fn is_delayed(&self) -> bool {
        self.is_delayed
    }

    /// Another record has joined the batch.
    pub(crate) fn gathered(&self, delivery: Delivery) {
        if self.is_delayed {
            lock(&self.delayed).push(delivery);
        }
    }

    /// When a record is due, and by what it is named while it waits.
    fn timer(
        &self,
        index: u32,
        offset: Option<u64>,
        time_ms: i64,
        facts: Option<TimerFacts>,
    ) -> (Option<i64>, Option<TimerHandle>) {
        if !self.is_delayed {
            return (None, None);
        }
        let delivery = usize::try_from(index)
            .ok()
            .and_then(|index| lock(&self.delayed).get(index).copied())
            .unwrap_or_default();
        let wall_ms = facts.map_or(time_ms, |facts| facts.timers.wall.0);
        let due_ms = match delivery {
            Delivery::Now => return (None, None),
            Delivery::At(at) => at.0,
            Delivery::After(span) => wall_ms.saturating_add(span),
        };
        let Some(facts) = facts else {
            // Published where it was stored; or nothing is known yet.
            return (offset.is_some().then_some(due_ms), None);
        };
        let number = RecordNumber(facts.first.0.saturating_add(u64::from(index)));
        let handle = TimerHandle {
            cluster: facts.cluster,
            topic: facts.topic,
            partition: PartitionIndex(self.partition),
            lane: Lane::ZERO,
            first: facts.first,
            number,
            key: facts.timers.key.of_record(number),
        };
        // Of a batch that waits, a record whose time had passed is published as soon as it is stored.
        (Some(due_ms), (due_ms > wall_ms).then_some(handle))
    }

    /// Tells those who wait for an acknowledgement; more is to come.
    pub(crate) fn acknowledge(&self, outcome: Outcome) {
        self.acknowledged.tell(outcome);
    }

    /// Tells everybody: nothing more comes.
    pub(crate) fn settle(&self, outcome: Outcome) {
        self.acknowledged.tell(outcome.clone());
        self.settled.tell(outcome);
    }

    /// Whether nobody was told yet.
    pub(crate) fn is_open(&self) -> bool {
        self.acknowledged.outcome.get().is_none()
    }

    fn receipt(&self, index: u32, outcome: &Outcome) -> Result<Receipt, SendError> {
        match outcome {
            Outcome::Failed(error) => Err(error.clone()),
            Outcome::Sent {
                first_offset,
                time_ms,
                status,
                duplicate,
                timers,
            } => {
                let offset = first_offset.map(|first| first + u64::from(index));
                let (due_ms, timer) = self.timer(index, offset, *time_ms, *timers);
                Ok(Receipt {
                    topic: Arc::clone(&self.topic),
                    partition: self.partition,
                    offset,
                    time_ms: *time_ms,
                    status: *status,
                    duplicate: *duplicate,
                    due_ms,
                    timer,
                })
            }
        }
    }
}

/// A record on its way: resolves to its receipt.
///
/// Dropping it does not unsend the record; it only means that nobody will be told.
///
/// ```no_run
/// # async fn example(producer: waterwheel::client::Producer) -> Result<(), waterwheel::client::SendError> {
/// let pending = producer.enqueue("42 roses".into()).await?; // there was room
/// // ... something else meanwhile ...
/// let receipt = pending.await?; // it is stored
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "whether the record was stored is only known from its receipt"]
pub struct Pending {
    completion: Arc<Completion>,
    index: u32,
    /// Where this record's waker is in the list of those who wait.
    waker: Option<usize>,
}

impl Pending {
    pub(crate) fn new(completion: Arc<Completion>, index: u32) -> Self {
        Self {
            completion,
            index,
            waker: None,
        }
    }

    /// The receipt, if it is there already.
    #[must_use]
    pub fn now(&self) -> Option<Result<Receipt, SendError>> {
        let outcome = self.completion.acknowledged.outcome.get()?;
        Some(self.completion.receipt(self.index, outcome))
    }

    /// Waits until the record is on the disk, whatever the producer's level calls acknowledged, and
    /// resolves to a receipt that says all there is to say: the offset, the time, and of a delayed record
    /// the handle by which it is cancelled and rescheduled. It takes as long as the broker's next synced
    /// write does, and does not hurry it.
    ///
    /// At level `durable` it is the receipt itself; where that says `FLUSH_DISK_TIMEOUT`, the one that
    /// comes after all. The acknowledgement can be awaited first, and this then:
    ///
    /// ```no_run
    /// # async fn example(producer: waterwheel::client::Producer) -> Result<(), waterwheel::client::SendError> {
    /// # use std::time::Duration;
    /// # use waterwheel::client::Record;
    /// let reminder = Record::new("tea is ready").deliver_after(Duration::from_secs(180));
    /// let mut pending = producer.enqueue(reminder).await?;
    /// (&mut pending).await?; // at level memory: the broker has it
    /// let stored = pending.durable().await?; // it is on the disk
    /// println!("to be cancelled by {:?}", stored.timer);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Dropping it means that nobody will be told.
    ///
    /// # Errors
    /// As the receipt; an acknowledged record of level `memory` may still come to
    /// [`SendError::TimedOut`], [`SendError::Aborted`] or [`SendError::Refused`].
    /// [`SendError::Unacknowledged`] at level `none`, where nobody is ever told.
    pub fn durable(self) -> PendingDurable {
        PendingDurable {
            completion: self.completion,
            index: self.index,
            waker: None,
        }
    }

    /// The partition the record goes to, which never changes.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.completion.partition
    }
}

impl Future for Pending {
    type Output = Result<Receipt, SendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let told = this.completion.acknowledged.poll(&mut this.waker, context);
        told.map(|outcome| this.completion.receipt(this.index, outcome))
    }
}

/// A record on its way to the disk: resolves to its full receipt. Made by [`Pending::durable`].
#[derive(Debug)]
#[must_use = "whether the record is on the disk is only known from its receipt"]
pub struct PendingDurable {
    completion: Arc<Completion>,
    index: u32,
    waker: Option<usize>,
}

impl PendingDurable {
    /// The receipt, if it is there already.
    #[must_use]
    pub fn now(&self) -> Option<Result<Receipt, SendError>> {
        let outcome = self.completion.settled.outcome.get()?;
        Some(self.completion.receipt(self.index, outcome))
    }

    /// The partition the record goes to, which never changes.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.completion.partition
    }
}

impl Future for PendingDurable {
    type Output = Result<Receipt, SendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let told = this.completion.settled.poll(&mut this.waker, context);
        told.map(|outcome| this.completion.receipt(this.index, outcome))
    }
}

/// A run of records of one partition, enqueued together: in one batch, or in a few that follow each
/// other.
#[derive(Debug)]
#[must_use = "whether the records were stored is only known from their receipts"]
pub struct PendingRun {
    pub(crate) parts: Vec<(Pending, u32)>,
}

/// Neighbouring records of a run that share their fate: the receipt of the first, and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunReceipt {
    /// The receipt of the first record; the others' offsets follow it.
    pub first: Receipt,
    /// How many records.
    pub count: u32,
}

impl PendingRun {
    /// Waits for all of them.
    ///
    /// # Errors
    /// The first failure, when all have ended.
    pub async fn wait(self) -> Result<Vec<RunReceipt>, SendError> {
        all(self.parts.into_iter()).await
    }

    /// Waits until all of them are on the disk: see [`Pending::durable`].
    ///
    /// # Errors
    /// The first failure, when all have ended.
    pub async fn durable(self) -> Result<Vec<RunReceipt>, SendError> {
        let parts = self.parts.into_iter();
        all(parts.map(|(pending, count)| (pending.durable(), count))).await
    }
}

async fn all<F: Future<Output = Result<Receipt, SendError>>>(
    parts: impl Iterator<Item = (F, u32)>,
) -> Result<Vec<RunReceipt>, SendError> {
    let mut receipts = Vec::with_capacity(parts.size_hint().0);
    let mut failure = None;
    for (pending, count) in parts {
        match pending.await {
            Ok(first) => receipts.push(RunReceipt { first, count }),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(receipts), Err)
}

//! What a sender waits on: one completion per batch, shared by the records in it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};

use super::error::SendError;
use super::link::lock;
pub use crate::wire::produce::SendStatus;

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
}

/// How a batch went.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Sent {
        first_offset: Option<u64>,
        time_ms: i64,
        status: SendStatus,
        duplicate: bool,
    },
    Failed(SendError),
}

/// The shared end of a batch's records: set once, then read by each.
#[derive(Debug)]
pub(crate) struct Completion {
    topic: Arc<str>,
    partition: u32,
    outcome: OnceLock<Outcome>,
    wakers: Mutex<Vec<Waker>>,
}

impl Completion {
    pub(crate) fn new(topic: &Arc<str>, partition: u32) -> Arc<Self> {
        Arc::new(Self {
            topic: Arc::clone(topic),
            partition,
            outcome: OnceLock::new(),
            wakers: Mutex::new(Vec::new()),
        })
    }

    /// Settles it; the first outcome stays.
    pub(crate) fn settle(&self, outcome: Outcome) {
        if self.outcome.set(outcome).is_ok() {
            for waker in std::mem::take(&mut *lock(&self.wakers)) {
                waker.wake();
            }
        }
    }

    /// Whether nobody was told yet.
    pub(crate) fn is_open(&self) -> bool {
        self.outcome.get().is_none()
    }

    fn receipt(&self, index: u32) -> Option<Result<Receipt, SendError>> {
        Some(match self.outcome.get()? {
            Outcome::Failed(error) => Err(error.clone()),
            Outcome::Sent {
                first_offset,
                time_ms,
                status,
                duplicate,
            } => Ok(Receipt {
                topic: Arc::clone(&self.topic),
                partition: self.partition,
                offset: first_offset.map(|first| first + u64::from(index)),
                time_ms: *time_ms,
                status: *status,
                duplicate: *duplicate,
            }),
        })
    }
}

/// A record on its way: resolves to its receipt.
///
/// Dropping it does not unsend the record; it only means that nobody will be told.
#[derive(Debug)]
#[must_use = "whether the record was stored is only known from its receipt"]
pub struct Pending {
    completion: Arc<Completion>,
    index: u32,
    /// Where this record's waker is in the completion's list.
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
        self.completion.receipt(self.index)
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
        if let Some(receipt) = self.now() {
            return Poll::Ready(receipt);
        }
        let completion = Arc::clone(&self.completion);
        let mut wakers = lock(&completion.wakers);
        // Settled between the look and the lock: the list was emptied, or is about to be.
        if let Some(receipt) = self.now() {
            return Poll::Ready(receipt);
        }
        match self.waker.and_then(|place| wakers.get_mut(place)) {
            Some(waker) => waker.clone_from(context.waker()),
            None => {
                self.waker = Some(wakers.len());
                wakers.push(context.waker().clone());
            }
        }
        Poll::Pending
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
        let mut receipts = Vec::with_capacity(self.parts.len());
        let mut failure = None;
        for (pending, count) in self.parts {
            match pending.await {
                Ok(first) => receipts.push(RunReceipt { first, count }),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(receipts), Err)
    }
}

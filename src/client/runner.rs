//! Running a handler for every record: workers with a queue of their own, one key always on the same one.
//!
//! In: a consumer and a handler. Out: every record handled, those of one key in order, and settled by what
//! the handler answers. Leases of records that wait in a queue are extended while they wait; what was lost
//! meanwhile is not handled.
//!
//! Invariants: H1, records of one key are handled one after the other, in the order they came; H2, after
//! the end was asked for, everything in hand is handled and settled before the consumer leaves.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::consumer::Consumer;
use super::delivery::Delivery;
use super::error::ConsumeError;
use super::leased::{Hand, LeaseTag};
use super::link::lock;
use super::membership::Verdict;
use super::settle::Settler;
use crate::domain::id::LeaseId;
use crate::domain::key::key_hash;
use crate::wire::consume::RetryAfter;

/// Records that wait in a worker's queue at most; then the consumer waits.
const QUEUE_MAX: usize = 256;

/// Why a handler did not consume a record.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HandlerError {
    /// For people: kept with the record, and shown with its dead letter.
    pub reason: String,
    /// When it comes again; as the subscription's backoff says where there is none.
    pub after: Option<Duration>,
    /// It never will be consumed: to the dead letters at once.
    pub dead: bool,
}

impl HandlerError {
    /// The record comes again as the subscription's backoff says.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            after: None,
            dead: false,
        }
    }

    /// The record comes again after `after`.
    #[must_use]
    pub fn after(mut self, after: Duration) -> Self {
        self.after = Some(after);
        self
    }

    /// The record goes to the dead letters at once.
    #[must_use]
    pub fn dead(reason: impl Into<String>) -> Self {
        Self {
            dead: true,
            ..Self::new(reason)
        }
    }

    fn verdict(self) -> Verdict {
        let after = match self.after {
            _ if self.dead => RetryAfter::Dead,
            None => RetryAfter::Policy,
            Some(after) => match u64::try_from(after.as_millis()).unwrap_or(u64::MAX) {
                0 => RetryAfter::Now,
                ms => RetryAfter::Ms(ms),
            },
        };
        Verdict::Not(after, self.reason)
    }
}

impl<E: std::error::Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::new(error.to_string())
    }
}

/// What a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RunSummary {
    /// Records handled with success.
    pub consumed: u64,
    /// Records refused by the handler, panics among them.
    pub refused: u64,
    /// Records that were lost before their turn, and left to whoever has them now.
    pub lost: u64,
}

#[derive(Debug, Default)]
struct Counts {
    consumed: AtomicU64,
    refused: AtomicU64,
    lost: AtomicU64,
}

/// Leases in the workers' hands, by how many of their records are.
type InHand = Arc<Mutex<HashMap<LeaseId, (LeaseTag, u32)>>>;

impl Consumer {
    /// Hands every record to `handler` until `until` is done, on `workers` workers with a queue each: records
    /// of one key go to the same worker and are handled one after the other; records without a key go to
    /// that of their partition. What the handler answers settles the record; a panic refuses it.
    ///
    /// When `until` is done nothing more is taken; what is in hand is handled and settled, then the consumer
    /// leaves the group. Cancelling this drops what is in hand: it comes again.
    ///
    /// # Errors
    /// [`ConsumeError`] when the membership ends for good; what was in hand was handled before.
    pub async fn run<H, F>(
        mut self,
        workers: usize,
        until: impl Future<Output = ()>,
        handler: H,
    ) -> Result<RunSummary, ConsumeError>
    where
        H: Fn(Delivery) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let crew = Crew {
            handler: Arc::new(handler),
            settler: self.settler(),
            hand: self.hand(),
            in_hand: InHand::default(),
            counts: Arc::default(),
        };
        let mut tasks = JoinSet::new();
        let queues: Vec<mpsc::Sender<Delivery>> = (0..workers.max(1))
            .map(|_| {
                let (queue, waiting) = mpsc::channel(QUEUE_MAX);
                tasks.spawn(crew.clone().work(waiting));
                queue
            })
            .collect();
        let ended = self.distribute(&crew, &queues, until).await;
        drop(queues);
        // H2: each worker ends when its queue is empty.
        let mut extending = extending(&self);
        loop {
            tokio::select! {
                ended = tasks.join_next() => match ended {
                    Some(_) => {}
                    None => break,
                },
                _ = extending.tick() => crew.extend(),
            }
        }
        self.close().await;
        let summary = RunSummary {
            consumed: crew.counts.consumed.load(Ordering::Relaxed),
            refused: crew.counts.refused.load(Ordering::Relaxed),
            lost: crew.counts.lost.load(Ordering::Relaxed),
        };
        ended.map(|()| summary)
    }

    async fn distribute<H>(
        &mut self,
        crew: &Crew<H>,
        queues: &[mpsc::Sender<Delivery>],
        until: impl Future<Output = ()>,
    ) -> Result<(), ConsumeError> {
        tokio::pin!(until);
        let mut extending = extending(self);
        loop {
            let next = tokio::select! {
                biased;
                () = &mut until => return Ok(()),
                _ = extending.tick() => {
                    crew.extend();
                    continue;
                }
                next = StreamExt::next(self) => next,
            };
            let delivery = match next {
                None => return Ok(()),
                Some(Ok(delivery)) => delivery,
                // Behind one record that cannot be read it goes on.
                Some(Err(ConsumeError::Unreadable { .. } | ConsumeError::Damaged { .. })) => {
                    crew.counts.refused.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                Some(Err(error)) => return Err(error),
            };
            crew.take(&delivery);
            let worker = worker_of(&delivery, queues.len());
            let Some(queue) = queues.get(worker) else {
                return Ok(());
            };
            let sending = queue.send(delivery);
            tokio::pin!(sending);
            loop {
                tokio::select! {
                    biased;
                    sent = &mut sending => match sent {
                        Ok(()) => break,
                        Err(_) => return Ok(()),
                    },
                    _ = extending.tick() => crew.extend(),
                }
            }
        }
    }
}

/// A third of a lease: two extensions may be late before one expires.
fn extending(consumer: &Consumer) -> tokio::time::Interval {
    let mut ticks = interval(consumer.lease() / 3);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn worker_of(delivery: &Delivery, workers: usize) -> usize {
    let hash = match &delivery.key {
        Some(key) => key_hash(key),
        None => u64::from(delivery.partition),
    };
    let workers = u64::try_from(workers).unwrap_or(u64::MAX).max(1);
    usize::try_from(hash % workers).unwrap_or(0)
}

struct Crew<H> {
    handler: Arc<H>,
    settler: Settler,
    hand: Arc<Hand>,
    in_hand: InHand,
    counts: Arc<Counts>,
}

impl<H> Clone for Crew<H> {
    fn clone(&self) -> Self {
        Self {
            handler: Arc::clone(&self.handler),
            settler: self.settler.clone(),
            hand: Arc::clone(&self.hand),
            in_hand: Arc::clone(&self.in_hand),
            counts: Arc::clone(&self.counts),
        }
    }
}

impl<H> Crew<H> {
    fn take(&self, delivery: &Delivery) {
        if let Some(tag) = delivery.lease.filter(|tag| !tag.is_settled) {
            lock(&self.in_hand).entry(tag.lease).or_insert((tag, 0)).1 += 1;
        }
    }

    fn put(&self, delivery: &Delivery) {
        let Some(tag) = delivery.lease else { return };
        let mut in_hand = lock(&self.in_hand);
        if let Some((_, records)) = in_hand.get_mut(&tag.lease) {
            *records -= 1;
            if *records == 0 {
                in_hand.remove(&tag.lease);
            }
        }
    }

    /// More time for all that is in hand.
    fn extend(&self) {
        let tags: Vec<LeaseTag> = lock(&self.in_hand).values().map(|(tag, _)| *tag).collect();
        if !tags.is_empty() {
            self.settler.extend_all(tags);
        }
    }

    async fn work<F>(self, mut queue: mpsc::Receiver<Delivery>)
    where
        H: Fn(Delivery) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        while let Some(delivery) = queue.recv().await {
            let is_held = delivery
                .lease
                .is_some_and(|tag| tag.is_settled || self.hand.holds(tag, delivery.offset));
            if !is_held {
                if let Some(tag) = delivery.lease {
                    self.settler.pass_over(tag);
                }
                self.counts.lost.fetch_add(1, Ordering::Relaxed);
                self.put(&delivery);
                continue;
            }
            let handled = AssertUnwindSafe(async { (self.handler)(delivery.clone()).await });
            let outcome = handled
                .catch_unwind()
                .await
                .unwrap_or_else(|_| Err(HandlerError::new("the handler panicked")));
            self.put(&delivery);
            match outcome {
                Ok(()) => {
                    self.counts.consumed.fetch_add(1, Ordering::Relaxed);
                    self.settler.say_quietly(&delivery, Verdict::Consumed);
                }
                Err(error) => {
                    self.counts.refused.fetch_add(1, Ordering::Relaxed);
                    self.settler.say_quietly(&delivery, error.verdict());
                }
            }
        }
    }
}

//! What is counted of every actor: `status --actors` shows it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::id::OwnerId;

/// Counters of one actor, shared by it and whoever tells it something.
#[derive(Debug)]
pub struct ActorStats {
    /// The kind of actor.
    pub kind: &'static str,
    /// The owner, or 0 for a standing actor that owns nothing.
    pub id: OwnerId,
    /// A name for people.
    pub name: String,
    /// The capacity of its mailbox for those that ask.
    pub capacity: usize,
    told: AtomicU64,
    handled: AtomicU64,
    restarts: AtomicU64,
    rows: AtomicU64,
    wake_ups: AtomicU64,
    overflow_up: AtomicU64,
    cascade_down: AtomicU64,
    batches_read: AtomicU64,
    batches_skipped: AtomicU64,
}

impl ActorStats {
    /// The clock woke it.
    pub fn woke(&self) {
        self.wake_ups.fetch_add(1, Ordering::Relaxed);
    }

    /// So many alarms were passed on to the next coarser level.
    pub fn overflowed_up(&self, count: usize) {
        self.overflow_up.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// So many alarms fell into the next finer level.
    pub fn cascaded_down(&self, count: usize) {
        self.cascade_down.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// It looked into a batch for records with the right keys or of the right kind.
    pub fn read_batch(&self) {
        self.batches_read.fetch_add(1, Ordering::Relaxed);
    }

    /// It skipped a batch, whose summary says that none of its records is wanted.
    pub fn skipped_batch(&self) {
        self.batches_skipped.fetch_add(1, Ordering::Relaxed);
    }

    /// A message was put into its mailbox.
    pub fn told(&self) {
        self.told.fetch_add(1, Ordering::Relaxed);
    }

    /// It took a message out of its mailbox.
    pub fn handled(&self) {
        self.handled.fetch_add(1, Ordering::Relaxed);
    }

    /// It is re-created: what was in its mailbox went with it.
    pub fn restarted(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
        self.told
            .store(self.handled.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// It wrote this many rows more (or fewer) than were in its tree.
    pub fn rows(&self, count: u64) {
        self.rows.store(count, Ordering::Relaxed);
    }

    /// What `status --actors` shows.
    #[must_use]
    pub fn snapshot(&self) -> ActorStatus {
        let handled = self.handled.load(Ordering::Relaxed);
        ActorStatus {
            kind: self.kind,
            id: self.id,
            name: self.name.clone(),
            mailbox_capacity: self.capacity as u64,
            mailbox_depth: self.told.load(Ordering::Relaxed).saturating_sub(handled),
            handled,
            restarts: self.restarts.load(Ordering::Relaxed),
            rows: self.rows.load(Ordering::Relaxed),
            wake_ups: self.wake_ups.load(Ordering::Relaxed),
            overflow_up: self.overflow_up.load(Ordering::Relaxed),
            cascade_down: self.cascade_down.load(Ordering::Relaxed),
            batches_read: self.batches_read.load(Ordering::Relaxed),
            batches_skipped: self.batches_skipped.load(Ordering::Relaxed),
        }
    }
}

/// One line of `status --actors`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActorStatus {
    /// The kind of actor.
    pub kind: &'static str,
    /// The owner.
    pub id: OwnerId,
    /// A name for people.
    pub name: String,
    /// Messages its mailbox takes from those that ask.
    pub mailbox_capacity: u64,
    /// Messages waiting in it.
    pub mailbox_depth: u64,
    /// Messages handled.
    pub handled: u64,
    /// How often it was re-created.
    pub restarts: u64,
    /// Rows of the view it wrote.
    pub rows: u64,
    /// How often the clock woke it (levels of the timing wheel).
    pub wake_ups: u64,
    /// Alarms passed on to the next coarser level of the timing wheel.
    pub overflow_up: u64,
    /// Alarms that fell into the next finer level of the timing wheel.
    pub cascade_down: u64,
    /// Batches looked into for their records' keys or by a filter (groups).
    pub batches_read: u64,
    /// Batches skipped because their summary rules a match out (groups).
    pub batches_skipped: u64,
}

type ByKindAndOwner = BTreeMap<(&'static str, OwnerId), Arc<ActorStats>>;

/// The counters of every actor alive.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    actors: Arc<Mutex<ByKindAndOwner>>,
}

impl Registry {
    /// Counters for an actor; those of its earlier life if it had one.
    #[must_use]
    pub fn enter(
        &self,
        kind: &'static str,
        id: OwnerId,
        name: String,
        capacity: usize,
    ) -> Arc<ActorStats> {
        let mut actors = self.actors.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || {
            Arc::new(ActorStats {
                kind,
                id,
                name,
                capacity,
                told: AtomicU64::new(0),
                handled: AtomicU64::new(0),
                restarts: AtomicU64::new(0),
                rows: AtomicU64::new(0),
                wake_ups: AtomicU64::new(0),
                overflow_up: AtomicU64::new(0),
                cascade_down: AtomicU64::new(0),
                batches_read: AtomicU64::new(0),
                batches_skipped: AtomicU64::new(0),
            })
        };
        Arc::clone(actors.entry((kind, id)).or_insert_with(fresh))
    }

    /// The actor is gone for good.
    pub fn leave(&self, kind: &'static str, id: OwnerId) {
        self.actors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&(kind, id));
    }

    /// All of them.
    #[must_use]
    pub fn snapshot(&self) -> Vec<ActorStatus> {
        let actors = self.actors.lock().unwrap_or_else(PoisonError::into_inner);
        actors.values().map(|stats| stats.snapshot()).collect()
    }
}

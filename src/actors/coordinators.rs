//! The directory's part for transaction coordinators: one actor per shard, started with it, made anew
//! when one fails, stopped for good when it fails too often.

use std::sync::Arc;

use actix::Actor;
use actix_rt::ArbiterHandle;
use tokio::sync::Semaphore;

use super::directory::DirectoryActor;
use super::failures::{FAILURES_MAX, Failures};
use super::transaction::{CoordinatorActor, Fail, halves};
use super::{House, Link};
use crate::domain::id::OwnerId;
use crate::domain::rejection::Rejection;
use crate::domain::transaction::{SHARDS, shard_of_owner, shard_owner};

/// One shard's actor.
struct Running {
    link: Link<CoordinatorActor>,
    halves: Arc<Semaphore>,
    failures: Failures,
    stopped: bool,
}

/// All shards.
#[derive(Default)]
pub(super) struct Coordinators {
    running: Vec<Running>,
}

impl Coordinators {
    /// Starts every shard.
    pub(super) fn start(
        &mut self,
        house: &House,
        directory: &Link<DirectoryActor>,
        arbiters: &[ArbiterHandle],
    ) {
        self.running = (0..SHARDS)
            .map(|shard| {
                let halves = halves();
                Running {
                    link: raise(shard, house, directory, arbiters, &halves),
                    halves,
                    failures: Failures::default(),
                    stopped: false,
                }
            })
            .collect();
    }

    /// A shard's actor.
    pub(super) fn locate(&self, shard: u8) -> Result<Link<CoordinatorActor>, Rejection> {
        let running = self
            .running
            .get(usize::from(shard))
            .ok_or(Rejection::TransactionUnknown)?;
        if running.stopped {
            return Err(Rejection::OwnerStopped(name(shard)));
        }
        if running.link.is_alive() {
            Ok(running.link.clone())
        } else {
            Err(Rejection::Retry)
        }
    }

    /// The actor of an owner, if it is a coordinator.
    pub(super) fn of_owner(&self, owner: OwnerId) -> Option<Link<CoordinatorActor>> {
        self.locate(shard_of_owner(owner)?).ok()
    }

    /// One failed: it is made anew, but for the last time allowed within a minute.
    pub(super) fn died(
        &mut self,
        shard: u8,
        house: &House,
        directory: &Link<DirectoryActor>,
        arbiters: &[ArbiterHandle],
    ) {
        let now = house.clock.now().monotonic;
        let Some(running) = self.running.get_mut(usize::from(shard)) else {
            return;
        };
        let too_often = running.failures.count(now);
        running.stopped = too_often;
        if running.stopped {
            tracing::error!(
                target: "waterwheel::directory",
                coordinator = shard, "failed {FAILURES_MAX} times within a minute: it stays down until a restart"
            );
            return;
        }
        tracing::warn!(
            target: "waterwheel::directory",
            coordinator = shard, "failed: it is re-created from its rows and the log"
        );
        running.link = raise(shard, house, directory, arbiters, &running.halves);
        running.link.stats.restarted();
    }

    /// Makes a shard fail, for tests.
    pub(super) fn fail(&self, shard: u8) {
        if let Some(running) = self.running.get(usize::from(shard)) {
            running.link.tell(Fail);
        }
    }
}

fn name(shard: u8) -> String {
    format!("coordinator {shard}")
}

fn raise(
    shard: u8,
    house: &House,
    directory: &Link<DirectoryActor>,
    arbiters: &[ArbiterHandle],
    halves: &Arc<Semaphore>,
) -> Link<CoordinatorActor> {
    let owner = shard_owner(shard);
    let capacity = house.settings.partition_mailbox;
    let stats = house
        .registry
        .enter("transaction", owner, name(shard), capacity);
    let (house, directory, halves) = (house.clone(), directory.clone(), Arc::clone(halves));
    let (shared, limits) = (Arc::clone(&stats), house.settings.transactions);
    let make = move |_: &mut actix::Context<CoordinatorActor>| {
        CoordinatorActor::new(shard, limits, house, directory, halves, shared)
    };
    let at = usize::from(shard).checked_rem(arbiters.len()).unwrap_or(0);
    let addr = match arbiters.get(at) {
        Some(arbiter) => CoordinatorActor::start_in_arbiter(arbiter, make),
        None => CoordinatorActor::create(make),
    };
    Link::new(addr, stats)
}

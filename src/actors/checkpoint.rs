//! The checkpoint actor: decides when views are written, and moves the mark once they are.
//!
//! A round: the commit actor names a position and tells every owner touched since the last round to
//! write its rows; whatever lies before the position is in their mailboxes before that. Each hands its
//! rows to the store and says so here. When all have, so that whatever they armed is in the timing wheel's
//! mailboxes, its levels hand over homes for what has none; then the store syncs and writes the mark. A
//! round that is not complete when the next is due is given up: the mark stays, and who did not answer is asked
//! again. An idle broker has no timer running.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler};
use tokio::sync::oneshot;

use super::Link;
use super::cleaner::{CleanerActor, MarkMoved};
use super::commit::{BeginCheckpoint, CommitActor, NoteMark};
use super::nap::Nap;
use super::stats::ActorStats;
use super::store::{StoreActor, WriteMark};
use super::vigil::Watched;
use super::wheel::Wheel;
use crate::domain::id::{LogPosition, OwnerId};

tells!(
    Introduce,
    Pressure,
    Began,
    RowsWritten,
    Gone,
    Homed,
    Marked,
    Close
);

/// What a round waits for.
///
/// - K1 A mark is written only when every owner touched before its position has handed over its rows
///   since it was touched. So a round is not given up before the commit actor has named its owners:
///   nobody else knows them, and it names each only once.
#[derive(Debug, Default)]
struct Rounds {
    round: u64,
    /// The commit actor has not named the round's owners yet.
    asking: bool,
    position: Option<LogPosition>,
    /// Owners that have not handed over their rows in this round.
    waiting: BTreeSet<OwnerId>,
    /// Those that were quicker than the commit actor's answer.
    early: BTreeSet<OwnerId>,
}

impl Rounds {
    /// Begins another round; gives its number and the owners that did not answer in the one before.
    fn start(&mut self) -> Option<(u64, BTreeSet<OwnerId>)> {
        if self.asking {
            return None;
        }
        self.round += 1;
        self.asking = true;
        self.position = None;
        self.early.clear();
        Some((self.round, std::mem::take(&mut self.waiting)))
    }

    fn began(&mut self, position: LogPosition, owners: BTreeSet<OwnerId>) {
        self.asking = false;
        self.position = Some(position);
        self.waiting = owners;
        for owner in std::mem::take(&mut self.early) {
            self.waiting.remove(&owner);
        }
    }

    /// Nobody waits for this owner any more.
    fn done(&mut self, owner: OwnerId) {
        if self.asking {
            self.early.insert(owner);
        } else {
            self.waiting.remove(&owner);
        }
    }

    /// The round's position, once.
    fn complete(&mut self) -> Option<LogPosition> {
        if self.waiting.is_empty() {
            self.position.take()
        } else {
            None
        }
    }
}

/// When views are written.
#[derive(Debug)]
pub struct CheckpointActor {
    commit: Link<CommitActor>,
    store: Link<StoreActor>,
    cleaner: Option<Link<CleanerActor>>,
    wheel: Option<Wheel>,
    /// The position of the round for which the wheel writes homes.
    homing: Option<LogPosition>,
    /// The last round that was marked.
    marked: u64,
    stats: Arc<ActorStats>,
    every: Duration,
    rounds: Rounds,
    timer: Nap,
    closing: Option<oneshot::Sender<bool>>,
    /// Something was written while a round was under way.
    again: bool,
    busy: bool,
    _watched: Option<Watched>,
}

impl CheckpointActor {
    /// Writes views at the latest `every` after something changed.
    #[must_use]
    pub fn new(
        commit: Link<CommitActor>,
        store: Link<StoreActor>,
        stats: Arc<ActorStats>,
        every: Duration,
    ) -> Self {
        Self {
            commit,
            store,
            cleaner: None,
            wheel: None,
            homing: None,
            marked: 0,
            stats,
            every,
            rounds: Rounds::default(),
            timer: Nap::default(),
            closing: None,
            again: false,
            busy: false,
            _watched: None,
        }
    }

    /// Says when it is gone.
    #[must_use]
    pub fn watched(mut self, watched: Watched) -> Self {
        self._watched = Some(watched);
        self
    }

    fn link(&self, ctx: &Context<Self>) -> Link<Self> {
        Link::new(ctx.address(), Arc::clone(&self.stats))
    }

    fn start_round(&mut self, ctx: &mut Context<Self>) {
        self.timer.clear(ctx);
        if let Some((round, again)) = self.rounds.start() {
            self.busy = true;
            self.again = false;
            self.homing = None;
            let marked = self.marked;
            self.commit.tell(BeginCheckpoint {
                round,
                again,
                marked,
            });
        }
        // If an owner fails in between, the round is never complete: the next one asks again.
        self.arm(ctx);
    }

    fn arm(&mut self, ctx: &mut Context<Self>) {
        if !self.timer.is_set() {
            self.timer.set(
                ctx,
                self.every,
                |actor| &mut actor.timer,
                |actor, ctx| {
                    actor.start_round(ctx);
                },
            );
        }
    }

    fn finish_if_complete(&mut self, ctx: &mut Context<Self>) {
        if let Some(position) = self.rounds.complete() {
            let lap = Lap {
                round: self.rounds.round,
                marked: self.marked,
                reply: self.link(ctx),
            };
            match &self.wheel {
                Some(wheel) => {
                    self.homing = Some(position);
                    wheel.lap(lap);
                }
                None => self.mark(position, ctx),
            }
        }
    }

    fn mark(&self, position: LogPosition, ctx: &Context<Self>) {
        self.store.tell(WriteMark {
            round: self.rounds.round,
            position,
            clean: self.closing.is_some(),
            reply: self.link(ctx),
        });
    }
}

impl Actor for CheckpointActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.stats.capacity);
    }
}

/// Who hears of marks, and who has homes to write before.
#[derive(Debug)]
pub struct Introduce {
    /// Hears of marks.
    pub cleaner: Link<CleanerActor>,
    /// Its homes are written before the mark.
    pub wheel: Wheel,
}

impl Handler<Introduce> for CheckpointActor {
    type Result = ();

    fn handle(&mut self, message: Introduce, _: &mut Self::Context) {
        self.stats.handled();
        self.cleaner = Some(message.cleaner);
        self.wheel = Some(message.wheel);
    }
}

/// The log has entries the views do not hold.
#[derive(Debug, Clone, Copy)]
pub struct Pressure {
    /// So many that the views are due now.
    pub due: bool,
}

impl Handler<Pressure> for CheckpointActor {
    type Result = ();

    fn handle(&mut self, message: Pressure, ctx: &mut Self::Context) {
        self.stats.handled();
        if self.busy {
            self.again = true;
        } else if message.due {
            self.start_round(ctx);
        } else {
            self.arm(ctx);
        }
    }
}

/// A round has begun.
#[derive(Debug)]
pub struct Began {
    /// What lies before it is in the owners' mailboxes.
    pub position: LogPosition,
    /// Who was asked.
    pub owners: BTreeSet<OwnerId>,
}

impl Handler<Began> for CheckpointActor {
    type Result = ();

    fn handle(&mut self, message: Began, ctx: &mut Self::Context) {
        self.stats.handled();
        self.rounds.began(message.position, message.owners);
        self.finish_if_complete(ctx);
    }
}

/// An owner has handed its rows to the store.
#[derive(Debug, Clone, Copy)]
pub struct RowsWritten {
    /// The round.
    pub round: u64,
    /// The owner.
    pub owner: OwnerId,
}

impl Handler<RowsWritten> for CheckpointActor {
    type Result = ();

    fn handle(&mut self, message: RowsWritten, ctx: &mut Self::Context) {
        self.stats.handled();
        if message.round == self.rounds.round {
            self.rounds.done(message.owner);
            self.finish_if_complete(ctx);
        }
    }
}

/// An owner is gone for good: nobody waits for it.
#[derive(Debug, Clone, Copy)]
pub struct Gone {
    /// The owner.
    pub owner: OwnerId,
}

impl Handler<Gone> for CheckpointActor {
    type Result = ();

    fn handle(&mut self, message: Gone, ctx: &mut Self::Context) {
        self.stats.handled();
        self.rounds.done(message.owner);
        self.finish_if_complete(ctx);
    }
}

/// The timing wheel's part of a round: homes for every alarm that has none.
#[derive(Debug, Clone)]
pub struct Lap {
    /// The round.
    pub round: u64,
    /// The last round that was marked.
    pub marked: u64,
    /// Who hears that the homes have been handed to the store.
    pub reply: Link<CheckpointActor>,
}

/// Every level of the timing wheel has handed its homes to the store.
#[derive(Debug, Clone, Copy)]
pub struct Homed {
    /// The round.
    pub round: u64,
}

impl Handler<Homed> for CheckpointActor {
    type Result = ();

    fn handle(&mut self, message: Homed, ctx: &mut Self::Context) {
        self.stats.handled();
        if message.round == self.rounds.round
            && let Some(position) = self.homing.take()
        {
            self.mark(position, ctx);
        }
    }
}

/// The store has written the mark, or failed to.
#[derive(Debug, Clone, Copy)]
pub struct Marked {
    /// The round.
    pub round: u64,
    /// The mark.
    pub position: Option<LogPosition>,
}

impl Handler<Marked> for CheckpointActor {
    type Result = ();

    fn handle(&mut self, message: Marked, ctx: &mut Self::Context) {
        self.stats.handled();
        if message.position.is_some() {
            self.marked = message.round;
        }
        if let (Some(position), Some(cleaner)) = (message.position, &self.cleaner) {
            cleaner.tell(MarkMoved(position));
            if self.closing.is_none() {
                self.commit.tell(NoteMark(position));
            }
        }
        if message.round != self.rounds.round {
            return;
        }
        self.busy = false;
        self.timer.clear(ctx);
        if let Some(closing) = self.closing.take() {
            let _ = closing.send(message.position.is_some());
        } else if self.again {
            self.again = false;
            self.arm(ctx);
        }
    }
}

/// The last round: a clean mark, then nothing.
#[derive(Debug)]
pub struct Close {
    /// Told when it is done, and whether the views are marked.
    pub reply: oneshot::Sender<bool>,
}

impl Handler<Close> for CheckpointActor {
    type Result = ();

    fn handle(&mut self, message: Close, ctx: &mut Self::Context) {
        self.stats.handled();
        self.closing = Some(message.reply);
        self.start_round(ctx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners(ids: &[u64]) -> BTreeSet<OwnerId> {
        ids.iter().copied().map(OwnerId).collect()
    }

    #[test]
    fn k1_a_round_that_is_late_is_not_overtaken_before_its_owners_are_named() {
        let mut rounds = Rounds::default();
        assert_eq!(rounds.start(), Some((1, owners(&[]))));
        // The log is busy for longer than a round may take, or the broker stops at this moment.
        assert_eq!(rounds.start(), None);
        rounds.began(LogPosition(10), owners(&[7]));
        assert_eq!(rounds.complete(), None, "7 has not handed over its rows");
        assert_eq!(rounds.start(), Some((2, owners(&[7]))), "it is asked again");
        rounds.began(LogPosition(20), owners(&[7]));
        assert_eq!(rounds.complete(), None);
        rounds.done(OwnerId(7));
        assert_eq!(rounds.complete(), Some(LogPosition(20)));
        assert_eq!(rounds.complete(), None, "once");
    }

    #[test]
    fn an_owner_that_is_done_or_gone_before_it_is_named_is_not_waited_for() {
        let mut rounds = Rounds::default();
        rounds.start();
        rounds.done(OwnerId(7));
        rounds.done(OwnerId(8));
        rounds.began(LogPosition(10), owners(&[7, 8]));
        assert_eq!(rounds.complete(), Some(LogPosition(10)));
        // What was early in one round says nothing about the next.
        rounds.start();
        rounds.began(LogPosition(20), owners(&[7]));
        assert_eq!(rounds.complete(), None);
    }
}

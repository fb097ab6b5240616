//! The partition actor: one per topic partition and lane, started on first use.
//!
//! Its rows and the log behind them are folded before it takes a message; a panic in a handler ends it,
//! and the directory makes another from rows and log, never from old memory.

mod timers;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, ContextFutureSpawner, Handler,
    WrapFuture,
};

pub use self::timers::{AskTimer, AskTimers, BodiesLoaded, Inspect};
use super::admission::Permit;
use super::cleaner::Trimmed;
use super::commit::{Persist, Ticket};
use super::directory::DirectoryActor;
use super::load;
use super::reply::{Answer, ReplyTo};
use super::stats::ActorStats;
use super::store::{LoadBodies, LoadRun, Write};
use super::wheel::{Arm, Returned};
use super::{Applied, Fenced, House, Life, Link, OwnerLink, Restate, WriteRows};
use crate::domain::alarm::AlarmClock;
use crate::domain::body::Body;
use crate::domain::commit::{Need, Receipt};
use crate::domain::entry::{Author, Draft, EntryKind, PayloadFacts};
use crate::domain::id::{Offset, OwnerId, PartitionId, Token};
use crate::domain::partition::index::BatchPlace;
use crate::domain::partition::{self, Effect, Limits, Partition, ReadFrom, rows};
use crate::domain::rejection::Rejection;
use crate::domain::time::WallMs;
use crate::domain::transaction::TransactionId;
use crate::store::{RowChange, RowKey, Tree, layout};

tells!(
    Append, Read, FindHalf, Lookup, RunLoaded, Retain, Dismiss, Fail
);

/// Open questions below which none is looked for that nobody waits for.
const SWEEP_AT_MIN: usize = 64;

/// Whoever waits for an answer of this partition.
#[derive(Debug)]
struct Pending {
    reply: ReplyTo,
    permit: Option<Permit>,
}

/// The shell of one partition lane.
pub struct PartitionActor {
    owner: OwnerId,
    id: PartitionId,
    machine: Partition,
    /// Who it speaks as; none until it has begun.
    author: Option<Author>,
    house: House,
    stats: Arc<ActorStats>,
    life: Life,
    pending: HashMap<Token, Pending>,
    next_token: u64,
    /// So many open questions are looked through for those nobody waits for any more.
    sweep_at: usize,
    /// The start offset the cleaner knows of.
    trimmed: Offset,
}

impl std::fmt::Debug for PartitionActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartitionActor")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl PartitionActor {
    /// The shell of `owner`, not yet loaded.
    #[must_use]
    pub fn new(
        owner: OwnerId,
        id: PartitionId,
        house: House,
        directory: Link<DirectoryActor>,
        stats: Arc<ActorStats>,
    ) -> Self {
        let limits = limits(&house);
        Self {
            owner,
            id,
            machine: Partition::new(limits),
            author: None,
            life: Life::new(owner, directory),
            house,
            stats,
            pending: HashMap::new(),
            next_token: 0,
            sweep_at: SWEEP_AT_MIN,
            trimmed: Offset(0),
        }
    }

    fn token(&mut self, reply: ReplyTo, permit: Option<Permit>) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.pending.insert(token, Pending { reply, permit });
        token
    }

    fn link(&self, ctx: &Context<Self>) -> Link<Self> {
        Link::new(ctx.address(), Arc::clone(&self.stats))
    }

    fn begin(&mut self, ctx: &mut Context<Self>) {
        self.author = None;
        let limits = limits(&self.house);
        let link = OwnerLink::Partition(self.link(ctx));
        // Nothing else is taken from the mailbox until this is done.
        load::partition(self.house.clone(), self.owner, limits, link)
            .into_actor(self)
            .map(|loaded, actor, ctx| match loaded {
                Ok((machine, author, effects)) => {
                    actor.machine = machine;
                    actor.author = Some(author);
                    actor.tell_trimmed();
                    let link = OwnerLink::Partition(actor.link(ctx));
                    actor.house.wheel.enter(actor.owner, link);
                    // What the fold armed was perhaps never handed over by the life before.
                    let mut effects: Vec<Effect> = effects
                        .into_iter()
                        .filter(|effect| matches!(effect, Effect::Arm { .. }))
                        .collect();
                    actor.machine.begun(&mut effects);
                    actor.perform(effects, ctx);
                }
                Err(why) => {
                    tracing::error!(
                        target: "waterwheel::partition",
                        partition = ?actor.id, why, "cannot be loaded"
                    );
                    ctx.stop();
                }
            })
            .wait(ctx);
    }

    fn tell_trimmed(&mut self) {
        let start = self.machine.head().start_offset;
        if start > self.trimmed {
            self.trimmed = start;
            self.house.cleaner.tell(Trimmed {
                owner: self.owner,
                start,
            });
        }
    }

    fn perform(&mut self, effects: Vec<Effect>, ctx: &mut Context<Self>) {
        for effect in effects {
            match effect {
                Effect::Persist {
                    token,
                    drafts,
                    tied,
                } => self.persist(token, drafts, tied),
                Effect::Timer(token, answer) => self.answer(token, Answer::Timer(answer)),
                Effect::Arm {
                    mut alarms,
                    position,
                } => {
                    for alarm in &mut alarms {
                        alarm.owner = self.owner;
                    }
                    let owner = self.owner;
                    let arm = Arm {
                        owner,
                        alarms,
                        position,
                    };
                    self.house.wheel.arm(AlarmClock::Wall, arm);
                }
                Effect::Returned { batch, again_ms } => {
                    let owner = self.owner;
                    let returned = Returned {
                        owner,
                        batch,
                        again_ms,
                    };
                    self.house.wheel.returned(AlarmClock::Wall, returned);
                }
                Effect::Ahead(near) => self.read_ahead(&near),
                Effect::LoadBodies(first) => {
                    let reply = self.link(ctx);
                    self.house.store.tell(LoadBodies {
                        owner: self.owner,
                        first,
                        reply,
                    });
                }
                Effect::Accepted(token) => {
                    if let Some(pending) = self.pending.get(&token) {
                        pending.reply.accepted();
                    }
                }
                Effect::Stored(token, stored) => {
                    let receipt = Receipt {
                        first_offset: stored.first_offset,
                        first_number: stored.first_number,
                        appended: stored.appended,
                        wall: stored.appended,
                        owner: self.owner,
                        published: self.machine.was_published_at_once(stored.first_number),
                    };
                    self.answer(
                        token,
                        Answer::Stored {
                            receipt,
                            repeat: true,
                        },
                    );
                }
                Effect::Batches(token, answer) => self.answer(token, Answer::Batches(answer)),
                Effect::Found(token, bounds) => self.answer(token, Answer::Bounds(bounds)),
                Effect::Refuse(token, rejection) => self.answer(token, Answer::Refused(rejection)),
                Effect::LoadRun(first) => {
                    let reply = self.link(ctx);
                    self.house.store.tell(LoadRun {
                        owner: self.owner,
                        first,
                        reply,
                    });
                }
            }
        }
    }

    fn persist(&mut self, token: Option<Token>, drafts: Vec<Draft>, tied: Vec<(OwnerId, Draft)>) {
        let pending = token.and_then(|token| self.pending.remove(&token));
        let ticket = pending.map_or_else(
            || Ticket {
                reply: ReplyTo::nobody(),
                permit: None,
            },
            |pending| Ticket {
                reply: pending.reply,
                permit: pending.permit,
            },
        );
        let Some(author) = self.author else {
            ticket.reply.refuse(Rejection::Retry);
            // What was accepted is not on its way after all.
            let mut effects = Vec::new();
            self.machine.reset(&mut effects);
            for effect in effects {
                if let Effect::Refuse(token, rejection) = effect {
                    self.answer(token, Answer::Refused(rejection));
                }
            }
            return;
        };
        let payload = drafts.iter().any(|draft| draft.kind == EntryKind::Payload);
        let publishes = drafts.iter().any(|draft| draft.kind == EntryKind::Publish);
        let need = if payload {
            Need::Payload
        } else if publishes {
            Need::Decision
        } else {
            Need::Housekeeping
        };
        let drafts = drafts
            .into_iter()
            .map(|draft| (self.owner, draft))
            .chain(tied)
            .collect();
        self.house.commit.tell(Persist {
            author,
            drafts,
            need,
            ticket,
        });
    }

    /// Forgets reads whose asker is gone: on an idle partition nothing else would ever end them. Looking
    /// through twice as many as were left last time costs each of them once.
    fn sweep(&mut self) {
        if self.pending.len() < self.sweep_at {
            return;
        }
        let gone: HashSet<Token> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.reply.is_deaf() && pending.permit.is_none())
            .map(|(token, _)| *token)
            .collect();
        self.machine.forget_waiting(|token| gone.contains(&token));
        self.pending.retain(|token, _| !gone.contains(token));
        self.sweep_at = SWEEP_AT_MIN.max(self.pending.len() * 2);
    }

    fn answer(&mut self, token: Token, answer: Answer) {
        if let Some(pending) = self.pending.remove(&token) {
            pending.reply.answer(answer);
        }
    }
}

impl Actor for PartitionActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.stats.capacity);
        self.begin(ctx);
    }
}

/// Store a producer's batch.
#[derive(Debug)]
pub struct Append {
    /// The batch, checked.
    pub batch: Body,
    /// How many records it has.
    pub count: u32,
    /// What its header says.
    pub facts: PayloadFacts,
    /// The sender wants to hear that it was accepted, before it is durable.
    pub tell_accepted: bool,
    /// Entries of other owners that stand or fall with it.
    pub tied: Vec<(OwnerId, Draft)>,
    /// Where answers go.
    pub reply: ReplyTo,
    /// The bytes admitted for it.
    pub permit: Option<Permit>,
}

impl Handler<Append> for PartitionActor {
    type Result = ();

    fn handle(&mut self, message: Append, ctx: &mut Self::Context) {
        self.stats.handled();
        let Append {
            batch,
            count,
            facts,
            tell_accepted,
            tied,
            reply,
            permit,
        } = message;
        let token = self.token(reply, permit);
        let mut effects = Vec::new();
        let append = partition::Append {
            token,
            batch,
            count,
            facts,
            tell_accepted,
            now: self.house.clock.now().wall,
            timers: self.timer_limits(),
            tied,
        };
        self.machine.append(append, &mut effects);
        self.perform(effects, ctx);
    }
}

/// Ask for batches.
#[derive(Debug)]
pub struct Read {
    /// The first offset wanted.
    pub from: Offset,
    /// Stop at about so many bytes.
    pub bytes_max: u64,
    /// If there is nothing yet, answer when there is.
    pub wait: bool,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

impl Handler<Read> for PartitionActor {
    type Result = ();

    fn handle(&mut self, message: Read, ctx: &mut Self::Context) {
        self.stats.handled();
        self.sweep();
        let token = self.token(message.reply, None);
        let mut effects = Vec::new();
        let Read {
            from,
            bytes_max,
            wait,
            ..
        } = message;
        self.machine.read(
            partition::Read {
                token,
                from,
                bytes_max,
                wait,
            },
            &mut effects,
        );
        self.perform(effects, ctx);
    }
}

/// Ask where the first batch of an undecided transaction lies: answered with that one batch, or none.
#[derive(Debug)]
pub struct FindHalf {
    /// The transaction.
    pub id: TransactionId,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

impl Handler<FindHalf> for PartitionActor {
    type Result = ();

    fn handle(&mut self, message: FindHalf, _: &mut Self::Context) {
        self.stats.handled();
        let head = self.machine.head();
        message.reply.answer(Answer::Batches(partition::ReadAnswer {
            batches: self
                .machine
                .undecided_batch(message.id)
                .into_iter()
                .collect(),
            start: head.start_offset,
            high_watermark: head.next_offset,
        }));
    }
}

/// Ask where a reader begins.
#[derive(Debug)]
pub struct Lookup {
    /// Where it wants to.
    pub from: ReadFrom,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

impl Handler<Lookup> for PartitionActor {
    type Result = ();

    fn handle(&mut self, message: Lookup, ctx: &mut Self::Context) {
        self.stats.handled();
        let token = self.token(message.reply, None);
        let mut effects = Vec::new();
        self.machine.lookup(token, message.from, &mut effects);
        self.perform(effects, ctx);
    }
}

impl Handler<Applied> for PartitionActor {
    type Result = ();

    fn handle(&mut self, message: Applied, ctx: &mut Self::Context) {
        self.stats.handled();
        let mut effects = Vec::new();
        for entry in &message.0 {
            self.machine.apply(entry, &mut effects);
            tracing::trace!(
                target: "waterwheel::trace",
                topic = self.id.topic.0,
                partition = self.id.partition.0,
                offset = entry.header.first_offset.0,
                count = entry.header.offsets,
                appended_ms = entry.header.appended.0,
                "stored"
            );
        }
        self.machine.applied_all(&mut effects);
        self.perform(effects, ctx);
        self.tell_trimmed();
    }
}

impl Handler<Fenced> for PartitionActor {
    type Result = ();

    fn handle(&mut self, message: Fenced, ctx: &mut Self::Context) {
        self.stats.handled();
        if !message.ends(self.author) {
            return;
        }
        let mut effects = Vec::new();
        self.machine.reset(&mut effects);
        self.perform(effects, ctx);
        if message.rejection == Rejection::LogSealed {
            return;
        }
        load::begin_again(self, ctx);
    }
}

impl load::Begins for PartitionActor {
    fn owner(&self) -> OwnerId {
        self.owner
    }

    fn house(&self) -> &House {
        &self.house
    }

    fn owner_link(&self, ctx: &Context<Self>) -> OwnerLink {
        OwnerLink::Partition(self.link(ctx))
    }

    fn begun(&mut self, author: Option<Author>) {
        self.author = author;
    }
}

/// A run of the index was read.
#[derive(Debug)]
pub struct RunLoaded {
    /// Which.
    pub first: Offset,
    /// Its batches.
    pub run: Result<Vec<BatchPlace>, Rejection>,
}

impl Handler<RunLoaded> for PartitionActor {
    type Result = ();

    fn handle(&mut self, message: RunLoaded, ctx: &mut Self::Context) {
        self.stats.handled();
        let mut effects = Vec::new();
        self.machine
            .run_loaded(message.first, message.run, &mut effects);
        self.perform(effects, ctx);
    }
}

impl Handler<WriteRows> for PartitionActor {
    type Result = ();

    fn handle(&mut self, message: WriteRows, _: &mut Self::Context) {
        self.stats.handled();
        self.machine.rows_due(message.round, message.marked);
        let changes = row_changes(self.owner, &mut self.machine);
        self.stats.rows(self.machine.row_count());
        self.house.hand_over(message.round, self.owner, changes);
    }
}

fn limits(house: &House) -> Limits {
    Limits {
        producers_max: house.settings.producers_per_partition_max,
        snapshot_bytes_max: house.settings.snapshot_bytes_max,
    }
}

/// A partition's changed rows as the views take them.
pub fn row_changes(owner: OwnerId, machine: &mut Partition) -> Vec<RowChange> {
    let (folded, changes) = machine.take_rows();
    changes
        .into_iter()
        .map(|change| RowChange {
            tree: Tree::Partition,
            key: row_key(owner, change.id),
            value: change.value.map(|value| (folded, value)),
        })
        .collect()
}

fn row_key(owner: OwnerId, id: rows::RowId) -> RowKey {
    match id {
        rows::RowId::Head => RowKey {
            owner,
            kind: layout::HEAD,
            id: 0,
        },
        rows::RowId::Run(first) => RowKey {
            owner,
            kind: layout::PARTITION_INDEX_RUN,
            id: first.0,
        },
        rows::RowId::Producer(id) => RowKey {
            owner,
            kind: layout::PARTITION_PRODUCER,
            id: id.0,
        },
        rows::RowId::Chunk(id) => RowKey {
            owner,
            kind: layout::PARTITION_CHUNK,
            id,
        },
        rows::RowId::Bodies(first) => RowKey {
            owner,
            kind: layout::PARTITION_BODIES,
            id: first.0,
        },
        rows::RowId::Open(first) => RowKey {
            owner,
            kind: layout::PARTITION_OPEN,
            id: first.0,
        },
    }
}

/// Drop what retention takes.
#[derive(Debug, Clone, Copy)]
pub struct Retain {
    /// The wall clock.
    pub now: WallMs,
    /// The topic's retention by age.
    pub retention_ms: Option<u64>,
    /// The topic's retention by size.
    pub retention_bytes: Option<u64>,
}

impl Handler<Retain> for PartitionActor {
    type Result = ();

    fn handle(&mut self, message: Retain, ctx: &mut Self::Context) {
        self.stats.handled();
        let mut effects = Vec::new();
        let Retain {
            now,
            retention_ms,
            retention_bytes,
        } = message;
        self.machine
            .retain(now, retention_ms, retention_bytes, &mut effects);
        let keep = i64::try_from(self.house.settings.producer_state_ms).unwrap_or(i64::MAX);
        self.machine
            .forget_producers(WallMs(now.0.saturating_sub(keep)), &mut effects);
        self.perform(effects, ctx);
    }
}

impl Handler<Restate> for PartitionActor {
    type Result = ();

    fn handle(&mut self, _: Restate, ctx: &mut Self::Context) {
        self.stats.handled();
        let mut effects = Vec::new();
        self.machine.restate(&mut effects);
        self.perform(effects, ctx);
    }
}

/// The topic is gone: end.
#[derive(Debug, Clone, Copy)]
pub struct Dismiss;

impl Handler<Dismiss> for PartitionActor {
    type Result = ();

    fn handle(&mut self, _: Dismiss, ctx: &mut Self::Context) {
        self.stats.handled();
        self.life.dismiss();
        self.house.wheel.leave(self.owner);
        for (_, pending) in self.pending.drain() {
            pending.reply.refuse(Rejection::UnknownTopic);
        }
        let changes = vec![RowChange {
            tree: Tree::Partition,
            key: row_key(self.owner, rows::RowId::Head),
            value: None,
        }];
        self.house.store.tell(Write(changes));
        ctx.stop();
    }
}

/// Fail, as a bug would: only for tests of re-creation.
#[derive(Debug, Clone, Copy)]
pub struct Fail;

impl Handler<Fail> for PartitionActor {
    type Result = ();

    #[expect(clippy::panic, reason = "this is what it is for")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("asked to fail");
    }
}

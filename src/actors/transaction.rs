//! The coordinator actors: one per shard of transactional ids, all started with the directory, because
//! what is open has deadlines whether or not anybody asks.
//!
//! Halves and attachments come through here on their way to their owners; what is let through carries a
//! [`HalfGuard`] in its reply, which tells the coordinator when it is stored, refused, or lost with
//! whoever held it. A coordinator that is made anew after a failure waits until every guard of its
//! predecessor is gone, so that nothing lands behind a decision it knows nothing of (X3).

mod owner;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, ContextFutureSpawner, Handler,
    WrapFuture,
};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::commit::{Persist, Ticket};
use super::directory::DirectoryActor;
use super::group::{Do, GroupActor};
use super::load;
use super::nap::Nap;
use super::partition::{Append, PartitionActor};
use super::reply::{Answer, ReplyTo};
use super::stats::ActorStats;
use super::{House, Life, Link, OwnerLink};
use crate::domain::commit::Need;
use crate::domain::entry::{Author, Draft};
use crate::domain::group;
use crate::domain::group::command::{Attached, Command};
use crate::domain::id::{MemberId, OwnerId, PartitionId, ProducerEpoch, ProducerId, Token};
use crate::domain::partition;
use crate::domain::rejection::Rejection;
use crate::domain::time::{MonotonicMs, WallMs};
use crate::domain::transaction::{
    By, Coordinator, Decision, Description, Effect, Limits, Part, Participant, Registration,
    TransactionId, shard_owner,
};

pub use self::owner::row_changes;

tells!(
    OpenSession,
    Listen,
    Half,
    Attach,
    Settled,
    End,
    Checked,
    Tell,
    Resume,
    Fail
);

/// Halves a shard lets through at a time. Far above what admission by bytes allows.
const HALVES_MAX: u32 = 1 << 20;
/// What falls due at once is worked off so many at a time, with the mailbox in between.
const TICK_BUDGET: usize = 512;
/// Between two looks for sessions that were not used for long.
const FORGET_EVERY: Duration = Duration::from_secs(600);

/// The room a shard's halves take while they are on their way; it outlives the actor.
#[must_use]
pub fn halves() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(HALVES_MAX as usize))
}

/// Rides with the reply of what a coordinator let through.
#[derive(Debug)]
pub struct HalfGuard {
    coordinator: Link<CoordinatorActor>,
    id: TransactionId,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for HalfGuard {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.coordinator.tell(Settled { id: self.id });
    }
}

/// A question for a transaction's outcome, on its way to a live producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// The transaction.
    pub id: TransactionId,
    /// Where its first half lies.
    pub partition: Option<PartitionId>,
}

/// What waits to be let through.
#[derive(Debug)]
enum Waiting {
    Half(Append, Link<PartitionActor>),
    Attachment(Attachment, Link<GroupActor>),
}

/// What a member attaches.
#[derive(Debug)]
pub struct Attachment {
    /// Who.
    pub member: MemberId,
    /// What.
    pub what: Attached,
    /// To what.
    pub transaction: TransactionId,
}

/// The shell of one shard.
pub struct CoordinatorActor {
    shard: u8,
    owner: OwnerId,
    limits: Limits,
    machine: Coordinator,
    author: Option<Author>,
    house: House,
    stats: Arc<ActorStats>,
    _life: Life,
    halves: Arc<Semaphore>,
    pending: HashMap<Token, ReplyTo>,
    waiting: HashMap<Token, Waiting>,
    next_token: u64,
    /// The next deadline a timer runs for.
    armed: Option<MonotonicMs>,
    nap: Nap,
    /// Live producers by group, asked in turn.
    listeners: HashMap<String, Vec<UnboundedSender<Question>>>,
    turn: usize,
}

impl std::fmt::Debug for CoordinatorActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CoordinatorActor")
            .field("shard", &self.shard)
            .finish_non_exhaustive()
    }
}

impl CoordinatorActor {
    /// The shell of a shard, not yet loaded.
    #[must_use]
    pub fn new(
        shard: u8,
        limits: Limits,
        house: House,
        directory: Link<DirectoryActor>,
        halves: Arc<Semaphore>,
        stats: Arc<ActorStats>,
    ) -> Self {
        let owner = shard_owner(shard);
        Self {
            shard,
            owner,
            limits,
            machine: Coordinator::new(shard, limits),
            author: None,
            _life: Life::new(owner, directory),
            house,
            stats,
            halves,
            pending: HashMap::new(),
            waiting: HashMap::new(),
            next_token: 0,
            armed: None,
            nap: Nap::default(),
            listeners: HashMap::new(),
            turn: 0,
        }
    }

    fn link(&self, ctx: &Context<Self>) -> Link<Self> {
        Link::new(ctx.address(), Arc::clone(&self.stats))
    }

    fn token(&mut self, reply: ReplyTo) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.pending.insert(token, reply);
        token
    }

    fn begin(&mut self, ctx: &mut Context<Self>) {
        let (house, shard, limits) = (self.house.clone(), self.shard, self.limits);
        let link = OwnerLink::Coordinator(self.link(ctx));
        let halves = Arc::clone(&self.halves);
        // Nothing else is taken from the mailbox until this is done.
        async move {
            let quiet = halves.acquire_many_owned(HALVES_MAX).await;
            let loaded = load::coordinator(house, shard, limits, link).await;
            drop(quiet);
            loaded
        }
        .into_actor(self)
        .map(|loaded, actor, ctx| match loaded {
            Ok((machine, author)) => {
                actor.machine = machine;
                actor.author = Some(author);
                actor.resume(ctx);
            }
            Err(why) => {
                tracing::error!(
                    target: "waterwheel::transaction",
                    shard = actor.shard, why, "the coordinator cannot be loaded"
                );
                ctx.stop();
            }
        })
        .wait(ctx);
    }

    fn resume(&mut self, ctx: &mut Context<Self>) {
        let mut effects = Vec::new();
        self.machine.resume(self.house.clock.now(), &mut effects);
        self.perform(effects, ctx);
    }

    fn perform(&mut self, effects: Vec<Effect>, ctx: &mut Context<Self>) {
        for effect in effects {
            match effect {
                Effect::Persist(draft) => self.persist(vec![(self.owner, draft)]),
                Effect::LetThrough(token, id, draft) => self.let_through(token, id, draft, ctx),
                Effect::Decide {
                    id,
                    decision,
                    delta,
                    participants,
                } => {
                    let mut drafts = vec![(self.owner, delta)];
                    drafts.extend(participants.iter().map(|one| outcome(id, decision, one)));
                    self.persist(drafts);
                }
                Effect::Opened(token, producer, epoch) => {
                    self.answer(token, Answer::Session(producer, epoch));
                }
                Effect::Ended(token, decision, by) => {
                    self.answer(token, Answer::Ended(decision, by));
                }
                Effect::Refuse(token, rejection) => self.refuse(token, rejection),
                Effect::CheckBack {
                    group,
                    id,
                    partition,
                } => {
                    if self.ask(&group, Question { id, partition }) {
                        self.machine.heard(id);
                    }
                }
            }
        }
        self.arm(ctx);
    }

    fn persist(&mut self, drafts: Vec<(OwnerId, Draft)>) {
        let Some(author) = self.author else {
            // Between two lives: nothing is on its way after all.
            let mut effects = Vec::new();
            self.machine.reset(&Rejection::Retry, &mut effects);
            for effect in effects {
                if let Effect::Refuse(token, rejection) = effect {
                    self.refuse(token, rejection);
                }
            }
            return;
        };
        self.house.commit.tell(Persist {
            author,
            drafts,
            need: Need::Decision,
            ticket: Ticket {
                reply: ReplyTo::nobody(),
                permit: None,
            },
        });
    }

    fn let_through(&mut self, token: Token, id: TransactionId, draft: Draft, ctx: &Context<Self>) {
        let reply = self.pending.remove(&token);
        let waiting = self.waiting.remove(&token);
        let guard = HalfGuard {
            coordinator: self.link(ctx),
            id,
            permit: Arc::clone(&self.halves).try_acquire_owned().ok(),
        };
        let tied = vec![(self.owner, draft)];
        match (reply, waiting) {
            (Some(reply), Some(Waiting::Half(mut append, to))) => {
                append.tied = tied;
                append.reply = reply.guarded(guard);
                to.tell(append);
            }
            (Some(reply), Some(Waiting::Attachment(attachment, to))) => to.tell(Do {
                command: Command::Attach {
                    member: attachment.member,
                    what: attachment.what,
                    transaction: attachment.transaction,
                    tied,
                },
                events: None,
                reply: reply.guarded(guard),
            }),
            // There is nothing to let through: the guard says so as it goes.
            (None, _) | (_, None) => {}
        }
    }

    fn answer(&mut self, token: Token, answer: Answer) {
        if let Some(reply) = self.pending.remove(&token) {
            reply.answer(answer);
        }
    }

    fn refuse(&mut self, token: Token, rejection: Rejection) {
        self.waiting.remove(&token);
        self.answer(token, Answer::Refused(rejection));
    }

    /// Whether a live producer of the group takes the question.
    fn ask(&mut self, group: &str, question: Question) -> bool {
        let Some(listeners) = self.listeners.get_mut(group) else {
            return false;
        };
        listeners.retain(|listener| !listener.is_closed());
        self.turn = self.turn.wrapping_add(1);
        let at = self.turn.checked_rem(listeners.len()).unwrap_or(0);
        let asked = listeners
            .get(at)
            .is_some_and(|listener| listener.send(question).is_ok());
        if listeners.is_empty() {
            self.listeners.remove(group);
        }
        asked
    }

    /// One timer for the nearest deadline, however many transactions wait.
    fn arm(&mut self, ctx: &mut Context<Self>) {
        let next = self.machine.next_deadline();
        if self.armed == next {
            return;
        }
        self.nap.clear(ctx);
        self.armed = next;
        if let Some(at) = next {
            let now = self.house.clock.now().monotonic;
            let wait = Duration::from_millis(at.0.saturating_sub(now.0));
            self.nap.set(
                ctx,
                wait,
                |actor| &mut actor.nap,
                |actor, ctx| {
                    actor.armed = None;
                    actor.tick(ctx);
                },
            );
        }
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        if self.author.is_none() {
            return;
        }
        let mut effects = Vec::new();
        self.machine
            .tick(self.house.clock.now(), TICK_BUDGET, &mut effects);
        self.perform(effects, ctx);
    }

    fn forget(&mut self, ctx: &mut Context<Self>) {
        let keep = i64::try_from(self.house.settings.producer_state_ms).unwrap_or(i64::MAX);
        let before = self.house.clock.now().wall.0.saturating_sub(keep);
        let mut effects = Vec::new();
        self.machine.forget_sessions(WallMs(before), &mut effects);
        self.perform(effects, ctx);
    }
}

/// What a decision means to one it concerns.
fn outcome(id: TransactionId, decision: Decision, participant: &Participant) -> (OwnerId, Draft) {
    let draft = match (participant.part, decision) {
        (Part::Records { immediate, .. }, Decision::Commit) => {
            partition::publish_transaction_draft(id, immediate)
        }
        (Part::Records { .. }, Decision::Rollback) => partition::discard_transaction_draft(id),
        (Part::Attached, decision) => group::decision_draft(id, decision),
    };
    (participant.owner, draft)
}

impl Actor for CoordinatorActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.stats.capacity);
        ctx.run_interval(FORGET_EVERY, Self::forget);
        self.begin(ctx);
    }
}

impl load::Begins for CoordinatorActor {
    fn owner(&self) -> OwnerId {
        self.owner
    }

    fn house(&self) -> &House {
        &self.house
    }

    fn owner_link(&self, ctx: &Context<Self>) -> OwnerLink {
        OwnerLink::Coordinator(self.link(ctx))
    }

    fn begun(&mut self, author: Option<Author>) {
        self.author = author;
    }
}

/// Open a session of a transactional id.
#[derive(Debug)]
pub struct OpenSession {
    /// The transactional id.
    pub name: String,
    /// Who may be asked for outcomes.
    pub group: String,
    /// The session to go on with, after a lost connection.
    pub resume: Option<(ProducerId, ProducerEpoch)>,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

impl Handler<OpenSession> for CoordinatorActor {
    type Result = ();

    fn handle(&mut self, message: OpenSession, ctx: &mut Self::Context) {
        self.stats.handled();
        let OpenSession {
            name,
            group,
            resume,
            reply,
        } = message;
        let token = self.token(reply);
        let mut effects = Vec::new();
        self.machine
            .open(token, &name, &group, resume, &mut effects);
        self.perform(effects, ctx);
    }
}

/// A producer of this group can be asked for outcomes, until it drops its end.
#[derive(Debug)]
pub struct Listen {
    /// The producer group.
    pub group: String,
    /// Where questions go.
    pub questions: UnboundedSender<Question>,
}

impl Handler<Listen> for CoordinatorActor {
    type Result = ();

    fn handle(&mut self, message: Listen, _: &mut Self::Context) {
        self.stats.handled();
        let listeners = self.listeners.entry(message.group).or_default();
        listeners.retain(|listener| !listener.is_closed());
        listeners.push(message.questions);
    }
}

/// A half batch on its way to its partition.
#[derive(Debug)]
pub struct Half {
    /// What will be registered.
    pub registration: Registration,
    /// The batch, with the reply.
    pub append: Append,
    /// Its partition.
    pub to: Link<PartitionActor>,
}

impl Handler<Half> for CoordinatorActor {
    type Result = ();

    fn handle(&mut self, message: Half, ctx: &mut Self::Context) {
        self.stats.handled();
        let Half {
            registration,
            mut append,
            to,
        } = message;
        let reply = std::mem::replace(&mut append.reply, ReplyTo::nobody());
        let token = self.token(reply);
        self.waiting.insert(token, Waiting::Half(append, to));
        let mut effects = Vec::new();
        let now = self.house.clock.now();
        self.machine.half(token, registration, now, &mut effects);
        self.perform(effects, ctx);
    }
}

/// An attachment on its way to its group.
#[derive(Debug)]
pub struct Attach {
    /// The group's owner.
    pub owner: OwnerId,
    /// What.
    pub attachment: Attachment,
    /// The group.
    pub to: Link<GroupActor>,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

impl Handler<Attach> for CoordinatorActor {
    type Result = ();

    fn handle(&mut self, message: Attach, ctx: &mut Self::Context) {
        self.stats.handled();
        let Attach {
            owner,
            attachment,
            to,
            reply,
        } = message;
        let registration = Registration {
            id: attachment.transaction,
            participant: Participant {
                owner,
                part: Part::Attached,
            },
            immunity_ms: None,
        };
        let token = self.token(reply);
        self.waiting
            .insert(token, Waiting::Attachment(attachment, to));
        let mut effects = Vec::new();
        let now = self.house.clock.now();
        self.machine.half(token, registration, now, &mut effects);
        self.perform(effects, ctx);
    }
}

/// Something let through is stored, refused or lost.
#[derive(Debug, Clone, Copy)]
struct Settled {
    id: TransactionId,
}

impl Handler<Settled> for CoordinatorActor {
    type Result = ();

    fn handle(&mut self, message: Settled, ctx: &mut Self::Context) {
        self.stats.handled();
        let mut effects = Vec::new();
        self.machine.settled(message.id, &mut effects);
        self.machine.applied_all(&mut effects);
        self.perform(effects, ctx);
    }
}

/// End a transaction.
#[derive(Debug)]
pub struct End {
    /// Which.
    pub id: TransactionId,
    /// How.
    pub decision: Decision,
    /// Who wants it.
    pub by: By,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

impl Handler<End> for CoordinatorActor {
    type Result = ();

    fn handle(&mut self, message: End, ctx: &mut Self::Context) {
        self.stats.handled();
        let End {
            id,
            decision,
            by,
            reply,
        } = message;
        let token = self.token(reply);
        let mut effects = Vec::new();
        self.machine.end(token, id, decision, by, &mut effects);
        self.perform(effects, ctx);
    }
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, Copy)]
pub struct Checked {
    /// The transaction.
    pub id: TransactionId,
    /// What came of the question.
    pub answer: Heard,
}

/// What came of a question for an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// An outcome, or that it is not known.
    Answered(Option<Decision>),
    /// Nobody who was there to be asked: it was not heard after all, and another one is asked.
    ByNobody,
}

impl Handler<Checked> for CoordinatorActor {
    type Result = ();

    fn handle(&mut self, message: Checked, ctx: &mut Self::Context) {
        self.stats.handled();
        let mut effects = Vec::new();
        match message.answer {
            Heard::Answered(outcome) => self.machine.checked(message.id, outcome, &mut effects),
            Heard::ByNobody => self.machine.unheard(message.id, &mut effects),
        }
        self.perform(effects, ctx);
    }
}

/// What is told of transactions.
#[derive(Debug)]
pub enum Ask {
    /// Open ones, and finished ones that are kept, behind this one.
    List(Option<TransactionId>, usize),
    /// One.
    Describe(TransactionId),
}

/// A question about transactions, answered with [`Answer::Transactions`].
#[derive(Debug)]
pub struct Tell {
    /// The question.
    pub ask: Ask,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

impl Handler<Tell> for CoordinatorActor {
    type Result = ();

    fn handle(&mut self, message: Tell, _: &mut Self::Context) {
        self.stats.handled();
        let told: Result<Vec<Description>, Rejection> = match message.ask {
            Ask::List(after, max) => Ok(self.machine.list(after, max)),
            Ask::Describe(id) => self.machine.describe(id).map(|one| vec![one]),
        };
        match told {
            Ok(list) => message.reply.answer(Answer::Transactions(list)),
            Err(rejection) => message.reply.refuse(rejection),
        }
    }
}

/// Its next life has begun.
#[derive(Debug, Clone, Copy)]
struct Resume;

/// Fail, for tests.
#[derive(Debug, Clone, Copy)]
pub struct Fail;

impl Handler<Fail> for CoordinatorActor {
    type Result = ();

    #[expect(clippy::panic, reason = "this is what it is for")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("told to fail, for a test");
    }
}

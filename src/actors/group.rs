//! The group actor: one per consumer group, started on first use.
//!
//! Its rows and the log behind them are folded before it takes a message; a panic in a handler ends it,
//! and the directory makes another from rows and log, never from old memory. Records come to it as
//! directories (offsets and key hashes), found by tasks of [`super::feed`]; bodies never pass through it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, ContextFutureSpawner, Handler,
    WrapFuture,
};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;

use super::commit::{Persist, Ticket};
use super::directory::DirectoryActor;
use super::directory::groups::Watch;
use super::feed::{Feeder, Found, Waiting};
use super::find::Finder;
use super::reply::{Answer, ReplyTo};
use super::stats::ActorStats;
use super::store::Write;
use super::transaction::HalfGuard;
use super::wheel::{AlarmEvent, Arm, Returned};
use super::{Applied, Fenced, House, Life, Link, OwnerLink, Restate, WriteRows, load};
use crate::domain::alarm::{Alarm, AlarmClock};
use crate::domain::commit::Need;
use crate::domain::entry::{Author, Draft};
use crate::domain::group::command::{Command, CursorNumber, Effect, MemberEvent, TopicShape};
use crate::domain::group::rejection::GroupRejection;
use crate::domain::group::{self, Group, rows};
use crate::domain::id::{GroupId, LogPosition, MemberId, OwnerId, Token, TopicId};
use crate::domain::rejection::Rejection;
use crate::domain::time::MonotonicMs;
use crate::domain::transaction::shard_of_owner;
use crate::store::{RowChange, RowKey, Tree, layout};

tells!(Do, Found, Shape, Dismiss);

/// A consumer group as the directory knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its id, for ever.
    pub id: GroupId,
    /// Its name, an alias.
    pub name: String,
    /// Its owner.
    pub owner: OwnerId,
}

/// Whoever waits for an answer of this group.
#[derive(Debug)]
struct Pending {
    reply: ReplyTo,
    events: Option<UnboundedSender<MemberEvent>>,
}

/// The shell of one group.
pub struct GroupActor {
    known: Known,
    machine: Group,
    limits: group::Limits,
    /// Who it speaks as; none until it has begun.
    author: Option<Author>,
    house: House,
    directory: Link<DirectoryActor>,
    stats: Arc<ActorStats>,
    life: Life,
    pending: HashMap<Token, Pending>,
    next_token: u64,
    /// Attachments that were asked for and not yet written, oldest first: their coordinators hear when
    /// they are stored, refused or lost.
    attaching: VecDeque<(Token, HalfGuard)>,
    members: HashMap<MemberId, UnboundedSender<MemberEvent>>,
    feeds: HashMap<CursorNumber, JoinHandle<()>>,
    /// Those of them that wait for other groups.
    waiting: Waiting,
    /// When it wants to be woken.
    waking: Option<MonotonicMs>,
    alarms: u32,
}

impl std::fmt::Debug for GroupActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupActor")
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

impl GroupActor {
    /// The shell of a group, not yet loaded.
    #[must_use]
    pub fn new(
        known: Known,
        house: House,
        directory: Link<DirectoryActor>,
        stats: Arc<ActorStats>,
    ) -> Self {
        let limits = house.settings.groups;
        let owner = known.owner;
        Self {
            machine: Group::new(owner, limits, 0),
            limits,
            author: None,
            life: Life::new(owner, directory.clone()),
            known,
            house,
            directory,
            stats,
            pending: HashMap::new(),
            next_token: 0,
            attaching: VecDeque::new(),
            members: HashMap::new(),
            feeds: HashMap::new(),
            waiting: Waiting::default(),
            waking: None,
            alarms: 0,
        }
    }

    fn link(&self, ctx: &Context<Self>) -> Link<Self> {
        Link::new(ctx.address(), Arc::clone(&self.stats))
    }

    fn feeder(&self, ctx: &Context<Self>) -> Feeder {
        Feeder {
            finder: Finder {
                house: self.house.clone(),
                directory: self.directory.clone(),
            },
            group: self.link(ctx),
            owner: self.known.owner,
            waiting: self.waiting.clone(),
        }
    }

    fn begin(&mut self, ctx: &mut Context<Self>) {
        self.author = None;
        let link = OwnerLink::Group(self.link(ctx));
        // Nothing else is taken from the mailbox until this is done.
        load::group(self.house.clone(), self.known.owner, self.limits, link)
            .into_actor(self)
            .map(|loaded, actor, ctx| match loaded {
                Ok((machine, author)) => {
                    actor.machine = machine;
                    actor.author = Some(author);
                    let link = OwnerLink::Group(actor.link(ctx));
                    actor.house.wheel.enter(actor.known.owner, link);
                    actor.call(ctx, |machine, now, effects| machine.started(now, effects));
                }
                Err(why) => {
                    tracing::error!(
                        target: "waterwheel::group",
                        group = actor.known.name, why, "cannot be loaded"
                    );
                    ctx.stop();
                }
            })
            .wait(ctx);
    }

    /// Calls the machine and does what it says.
    fn call(
        &mut self,
        ctx: &mut Context<Self>,
        call: impl FnOnce(&mut Group, crate::domain::time::Now, &mut Vec<Effect>),
    ) {
        let mut effects = Vec::new();
        call(&mut self.machine, self.house.clock.now(), &mut effects);
        for effect in effects {
            self.perform(effect, ctx);
        }
        self.waiting.release(|cursor| self.machine.is_short(cursor));
    }

    fn perform(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        match effect {
            Effect::Persist(drafts) => self.persist(drafts),
            Effect::Reply(token, answer) => {
                // One that is refused was never written.
                self.attaching.retain(|(other, _)| *other != token);
                if let Some(pending) = self.pending.remove(&token) {
                    match answer {
                        Ok(answer) => pending.reply.answer(Answer::Group(answer)),
                        Err(rejection) => pending.reply.refuse(rejection),
                    }
                }
            }
            Effect::Tell(member, event) => {
                if let Some(events) = self.members.get(&member) {
                    // A session that is gone says so itself.
                    let _ = events.send(event);
                }
            }
            Effect::Welcome(token, member) => {
                let events = self
                    .pending
                    .get_mut(&token)
                    .and_then(|pending| pending.events.take());
                if let Some(events) = events {
                    self.members.insert(member, events);
                }
            }
            Effect::Dismiss(member) => {
                self.members.remove(&member);
            }
            Effect::Feed(feed) => {
                let cursor = feed.cursor;
                let is_short = self.machine.is_short(cursor);
                let task = tokio::task::spawn_local(self.feeder(ctx).feed(feed, is_short));
                self.replace_feed(cursor, Some(task));
            }
            Effect::StopFeed(cursor) => self.replace_feed(cursor, None),
            Effect::Fetch(feed) => {
                tokio::task::spawn_local(self.feeder(ctx).fetch(feed));
            }
            Effect::Lookup { job, place, start } => {
                tokio::task::spawn_local(self.feeder(ctx).look_up(job, place, start));
            }
            Effect::Watch(topic) => self.directory.tell(Watch {
                topic,
                owner: self.known.owner,
            }),
            Effect::DeadLetter(letter) => {
                let group = self.known.name.clone();
                tokio::task::spawn_local(self.feeder(ctx).bury(letter, group));
            }
            Effect::WakeAt(at) => self.wake_at(at),
        }
    }

    fn replace_feed(&mut self, cursor: CursorNumber, task: Option<JoinHandle<()>>) {
        let old = match task {
            Some(task) => self.feeds.insert(cursor, task),
            None => self.feeds.remove(&cursor),
        };
        if let Some(old) = old {
            old.abort();
        }
    }

    /// One alarm stands at a time; one that was armed before and comes all the same wakes for nothing.
    fn wake_at(&mut self, at: Option<MonotonicMs>) {
        self.waking = at;
        let Some(at) = at else { return };
        self.alarms = self.alarms.wrapping_add(1);
        let owner = self.known.owner;
        let alarm = Alarm {
            due_ms: i64::try_from(at.0).unwrap_or(i64::MAX),
            owner,
            token: 0,
            version: self.alarms,
        };
        let arm = Arm {
            owner,
            alarms: vec![alarm],
            position: LogPosition(0),
        };
        self.house.wheel.arm(AlarmClock::Monotonic, arm);
    }

    fn persist(&mut self, drafts: Vec<(OwnerId, Draft)>) {
        // A run that begins with a coordinator's registration is the oldest attachment's. Its guard goes with
        // it, so that it outlives this actor as the run does.
        let attaches = drafts
            .first()
            .is_some_and(|(owner, _)| shard_of_owner(*owner).is_some());
        let guard = match attaches {
            true => self.attaching.pop_front().map(|(_, guard)| guard),
            false => None,
        };
        let mut reply = ReplyTo::nobody();
        if let Some(guard) = guard {
            reply = reply.guarded(guard);
        }
        let Some(author) = self.author else {
            // The log refused something, and says so: all of it is gone back on then.
            return;
        };
        let ticket = Ticket {
            reply,
            permit: None,
        };
        self.house.commit.tell(Persist {
            author,
            drafts,
            need: Need::Decision,
            ticket,
        });
    }
}

impl Actor for GroupActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.stats.capacity);
        self.begin(ctx);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        for (_, task) in self.feeds.drain() {
            task.abort();
        }
    }
}

impl Drop for GroupActor {
    fn drop(&mut self) {
        for task in self.feeds.values() {
            task.abort();
        }
    }
}

/// A command of a session, answered once with [`super::reply::Answer::Group`] or a refusal.
#[derive(Debug)]
pub struct Do {
    /// Which.
    pub command: Command,
    /// With `Join`: where what the member hears goes. It is bounded by the credit the member grants.
    pub events: Option<UnboundedSender<MemberEvent>>,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

impl Handler<Do> for GroupActor {
    type Result = ();

    fn handle(&mut self, message: Do, ctx: &mut Self::Context) {
        self.stats.handled();
        let Do {
            command,
            events,
            mut reply,
        } = message;
        self.next_token += 1;
        let token = Token(self.next_token);
        self.attaching
            .extend(reply.unguarded().map(|guard| (token, guard)));
        self.pending.insert(token, Pending { reply, events });
        self.call(ctx, |machine, now, effects| {
            machine.handle(now, token, command, effects);
        });
    }
}

impl Handler<Found> for GroupActor {
    type Result = ();

    fn handle(&mut self, message: Found, ctx: &mut Self::Context) {
        self.stats.handled();
        self.call(ctx, |machine, now, effects| match message {
            Found::Offered {
                cursor,
                round,
                batches,
                high_watermark,
            } => machine.offered(now, cursor, round, &batches, high_watermark, effects),
            Found::Trimmed { cursor, start } => machine.trimmed(now, cursor, start, effects),
            Found::Nothing { cursor, round } => machine.not_found(now, cursor, round, effects),
            Found::Fetched {
                cursor,
                from,
                end,
                batches,
            } => machine.fetched(now, cursor, (from, end), &batches, effects),
            Found::Looked { job, place, found } => {
                machine.looked_up(now, job, place, found, effects);
            }
            Found::Copied {
                cursor,
                offset,
                copied,
            } => machine.dead_letter(now, cursor, offset, copied, effects),
        });
    }
}

/// The shape of a topic that is watched, or that it is gone.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// The topic.
    pub topic: TopicId,
    /// Its shape; none where it is gone.
    pub shape: Option<TopicShape>,
}

impl Handler<Shape> for GroupActor {
    type Result = ();

    fn handle(&mut self, message: Shape, ctx: &mut Self::Context) {
        self.stats.handled();
        self.call(ctx, |machine, now, effects| match message.shape {
            Some(shape) => machine.shape(now, shape, effects),
            None => machine.topic_gone(now, message.topic, effects),
        });
    }
}

impl Handler<Applied> for GroupActor {
    type Result = ();

    fn handle(&mut self, message: Applied, ctx: &mut Self::Context) {
        self.stats.handled();
        self.call(ctx, |machine, now, effects| {
            for entry in &message.0 {
                machine.apply(now, entry, effects);
            }
            machine.applied_all(now, effects);
        });
    }
}

impl Handler<Fenced> for GroupActor {
    type Result = ();

    fn handle(&mut self, message: Fenced, ctx: &mut Self::Context) {
        self.stats.handled();
        if !message.ends(self.author) {
            return;
        }
        // What it asks for from here on is the next life's.
        let sealed = message.rejection == Rejection::LogSealed;
        if sealed {
            self.author = None;
            return self.call(ctx, |machine, now, effects| {
                machine.fenced(now, &message.rejection, effects);
            });
        }
        let link = OwnerLink::Group(self.link(ctx));
        self.author = None;
        load::begin_life(self.house.clone(), self.known.owner, link)
            .into_actor(self)
            .map(move |life, actor, ctx| {
                actor.author = life.ok().map(|life| life.author);
                actor.call(ctx, |machine, now, effects| {
                    machine.fenced(now, &message.rejection, effects);
                });
            })
            .wait(ctx);
    }
}

impl Handler<AlarmEvent> for GroupActor {
    type Result = ();

    fn handle(&mut self, message: AlarmEvent, ctx: &mut Self::Context) {
        self.stats.handled();
        match message {
            AlarmEvent::Due { clock, batch, .. } => {
                let owner = self.known.owner;
                let returned = Returned {
                    owner,
                    batch,
                    again_ms: None,
                };
                self.house.wheel.returned(clock, returned);
                self.call(ctx, |machine, now, effects| machine.wake(now, effects));
            }
            AlarmEvent::Began {
                clock: AlarmClock::Monotonic,
            } => self.wake_at(self.waking),
            AlarmEvent::Began {
                clock: AlarmClock::Wall,
            }
            | AlarmEvent::Near { .. }
            | AlarmEvent::Armed { .. }
            | AlarmEvent::Lost => {}
        }
    }
}

impl Handler<WriteRows> for GroupActor {
    type Result = ();

    fn handle(&mut self, message: WriteRows, _: &mut Self::Context) {
        self.stats.handled();
        let changes = row_changes(self.known.owner, &mut self.machine);
        self.stats.rows(self.machine.row_count());
        self.house
            .hand_over(message.round, self.known.owner, changes);
    }
}

/// A group's changed rows as the views take them.
pub fn row_changes(owner: OwnerId, machine: &mut Group) -> Vec<RowChange> {
    let (folded, changes) = machine.take_rows();
    changes
        .into_iter()
        .map(|change| {
            let (kind, id) = match change.id {
                rows::RowId::Head => (layout::HEAD, 0),
                rows::RowId::Subscription(topic) => (layout::GROUP_SUBSCRIPTION, topic.0),
                rows::RowId::Cursor(number) => (layout::GROUP_CURSOR, number.0),
                rows::RowId::List(row) => (layout::GROUP_LIST, row),
            };
            RowChange {
                tree: Tree::Group,
                key: RowKey { owner, kind, id },
                value: change.value.map(|value| (folded, value)),
            }
        })
        .collect()
}

impl Handler<Restate> for GroupActor {
    type Result = ();

    fn handle(&mut self, _: Restate, ctx: &mut Self::Context) {
        self.stats.handled();
        self.call(ctx, |machine, _, effects| machine.restate(effects));
    }
}

/// The group is gone: end.
#[derive(Debug, Clone, Copy)]
pub struct Dismiss;

impl Handler<Dismiss> for GroupActor {
    type Result = ();

    fn handle(&mut self, _: Dismiss, ctx: &mut Self::Context) {
        self.stats.handled();
        self.life.dismiss();
        let gone = || Rejection::Group(GroupRejection::UnknownGroup);
        for (_, pending) in self.pending.drain() {
            pending.reply.refuse(gone());
        }
        for (_, events) in self.members.drain() {
            let _ = events.send(MemberEvent::Ended(gone()));
        }
        let changes = vec![RowChange {
            tree: Tree::Group,
            key: RowKey::head(self.known.owner),
            value: None,
        }];
        self.house.store.tell(Write(changes));
        self.house.wheel.leave(self.known.owner);
        ctx.stop();
    }
}

impl Handler<super::partition::Fail> for GroupActor {
    type Result = ();

    #[expect(clippy::panic, reason = "this is what it is for")]
    fn handle(&mut self, _: super::partition::Fail, _: &mut Self::Context) {
        panic!("asked to fail");
    }
}

//! The directory actor: names to ids and addresses; starts, watches and re-creates the owners' actors.
//!
//! A partition's actor is started by the first who asks for it, or by the log when it has something for
//! it. One that fails is made anew from rows and log; after three failures within a minute it stays
//! down, and everybody else goes on.

pub mod groups;
pub mod retention;

use std::collections::HashMap;
use std::sync::Arc;

use actix::{Actor, AsyncContext, Context, Handler};
use actix_rt::ArbiterHandle;

use super::checkpoint::Gone;
use super::commit::{Forget, Persist, Ticket};
use super::coordinators::Coordinators;
use super::failures::{FAILURES_MAX, Failures};
use super::load::{self, Begins};
use super::partition::{Dismiss, Inspect, PartitionActor};
use super::reply::{Answer, ReplyTo};
use super::stats::ActorStats;
use super::vigil::Watched;
use super::{Applied, Fenced, House, Link, OwnerLink, Restate, WriteRows};
use crate::domain::commit::{Need, OwnerRange};
use crate::domain::entry::{Author, Draft};
use crate::domain::id::{Lane, OwnerId, PartitionId, PartitionIndex, Token, TopicId};
use crate::domain::partition::rows::encode;
use crate::domain::rejection::Rejection;
use crate::domain::time::MonotonicMs;
use crate::domain::topics::{Command, Effect, Topics};
use crate::domain::transaction::shard_of_owner;
use crate::store::{RowChange, RowKey, Tree, layout};

tells!(
    Do,
    List,
    Locate,
    LocateCoordinator,
    StartOwner,
    RestateOwner,
    InspectOwner,
    Died,
    FailOwner
);

struct Running {
    link: Link<PartitionActor>,
    id: PartitionId,
    failures: Failures,
    stopped: bool,
}

/// The directory.
pub struct DirectoryActor {
    machine: Topics,
    house: House,
    arbiters: Vec<ArbiterHandle>,
    author: Option<Author>,
    stats: Arc<ActorStats>,
    running: HashMap<OwnerId, Running>,
    coordinators: Coordinators,
    pending: HashMap<Token, ReplyTo>,
    next_token: u64,
    /// When partitions without limits were last told to forget unused producers.
    forgot: MonotonicMs,
    groups: groups::Groups,
    _watched: Option<Watched>,
}

impl std::fmt::Debug for DirectoryActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirectoryActor")
            .field("running", &self.running.len())
            .finish_non_exhaustive()
    }
}

impl DirectoryActor {
    /// The directory as recovery left it; partitions are spread over `arbiters` by id.
    #[must_use]
    pub fn new(
        machine: Topics,
        house: House,
        arbiters: Vec<ArbiterHandle>,
        stats: Arc<ActorStats>,
    ) -> Self {
        Self {
            machine,
            house,
            arbiters,
            author: None,
            stats,
            running: HashMap::new(),
            coordinators: Coordinators::default(),
            pending: HashMap::new(),
            next_token: 0,
            forgot: MonotonicMs(0),
            groups: groups::Groups::default(),
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

    fn token(&mut self, reply: ReplyTo) -> Token {
        self.next_token += 1;
        self.pending.insert(Token(self.next_token), reply);
        Token(self.next_token)
    }

    fn command(&mut self, command: Command, reply: ReplyTo, ctx: &Context<Self>) {
        self.stats.handled();
        let token = self.token(reply);
        let mut effects = Vec::new();
        self.machine.handle(token, command, &mut effects);
        self.perform(effects, ctx);
    }

    fn answer(&mut self, token: Token, answer: Answer) {
        if let Some(reply) = self.pending.remove(&token) {
            reply.answer(answer);
        }
    }

    fn perform(&mut self, effects: Vec<Effect>, ctx: &Context<Self>) {
        for effect in effects {
            match effect {
                Effect::Group(token, group) => {
                    if let Some(reply) = self.pending.remove(&token) {
                        self.answer_group(reply, &group, ctx);
                    }
                }
                Effect::GroupDeleted(token) => {
                    self.answer(
                        token,
                        Answer::Group(crate::domain::group::command::Answer::Done),
                    );
                }
                Effect::Changed(topic) => self.topic_changed(topic),
                Effect::Persist(drafts) => self.persist(drafts, ctx),
                Effect::Topic(token, topic) => self.answer(token, Answer::Topic(Box::new(topic))),
                Effect::Producer(token, id) => self.answer(token, Answer::Producer(id)),
                Effect::Refuse(token, rejection) => self.answer(token, Answer::Refused(rejection)),
                Effect::Dropped(ranges) => self.dismiss(&ranges),
            }
        }
    }

    fn persist(&mut self, drafts: Vec<Draft>, ctx: &Context<Self>) {
        let Some(author) = self.author else {
            let mut effects = Vec::new();
            self.machine.reset(&Rejection::Retry, &mut effects);
            return self.perform(effects, ctx);
        };
        let drafts = drafts
            .into_iter()
            .map(|draft| (OwnerId::DIRECTORY, draft))
            .collect();
        let ticket = Ticket {
            reply: ReplyTo::nobody(),
            permit: None,
        };
        self.house.commit.tell(Persist {
            author,
            drafts,
            need: Need::Housekeeping,
            ticket,
        });
    }

    fn dismiss(&mut self, ranges: &[OwnerRange]) {
        self.dismiss_groups(ranges);
        let gone: Vec<OwnerId> = self
            .running
            .keys()
            .filter(|owner| ranges.iter().any(|range| range.contains(**owner)))
            .copied()
            .collect();
        for owner in gone {
            if let Some(running) = self.running.remove(&owner) {
                running.link.tell(Dismiss);
                self.house.registry.leave("partition", owner);
                self.house.wheel.leave(owner);
                self.house.commit.tell(Forget { owner });
                self.house.checkpoint.tell(Gone { owner });
            }
        }
    }

    /// The partition's actor, started if need be.
    fn locate(
        &mut self,
        topic: TopicId,
        partition: PartitionIndex,
        lane: Lane,
        ctx: &Context<Self>,
    ) -> Result<(OwnerId, Link<PartitionActor>), Rejection> {
        let topic = self.machine.topic(topic).ok_or(Rejection::UnknownTopic)?;
        let partitions = topic.partitions;
        let owner = topic
            .owner(partition, lane)
            .ok_or(Rejection::PartitionOutOfRange { partitions })?;
        let id = PartitionId {
            topic: topic.id,
            partition,
            lane,
        };
        let name = match lane {
            Lane::ZERO => format!("{}/{}", topic.name, partition.0),
            Lane(level) => format!("{}/{}/{level}", topic.name, partition.0),
        };
        if let Some(running) = self.running.get(&owner) {
            if running.stopped {
                return Err(Rejection::OwnerStopped(name));
            }
            if running.link.is_alive() {
                return Ok((owner, running.link.clone()));
            }
            // Its death notice is in the mailbox; whoever asks tries again.
            return Err(Rejection::Retry);
        }
        let link = self.raise(owner, id, name, ctx);
        let running = Running {
            link: link.clone(),
            id,
            failures: Failures::default(),
            stopped: false,
        };
        self.running.insert(owner, running);
        Ok((owner, link))
    }

    fn raise(
        &self,
        owner: OwnerId,
        id: PartitionId,
        name: String,
        ctx: &Context<Self>,
    ) -> Link<PartitionActor> {
        let capacity = self.house.settings.partition_mailbox;
        let stats = self
            .house
            .registry
            .enter("partition", owner, name, capacity);
        let (house, directory) = (self.house.clone(), self.link(ctx));
        let shared = Arc::clone(&stats);
        let make = move |_: &mut Context<PartitionActor>| {
            PartitionActor::new(owner, id, house, directory, shared)
        };
        let spread =
            usize::try_from(owner.0 / u64::from(crate::domain::id::LANES_MAX)).unwrap_or(0);
        let at = spread.checked_rem(self.arbiters.len()).unwrap_or(0);
        let addr = match self.arbiters.get(at) {
            Some(arbiter) => PartitionActor::start_in_arbiter(arbiter, make),
            None => PartitionActor::create(make),
        };
        Link::new(addr, stats)
    }

    fn start_owner(&mut self, owner: OwnerId, ctx: &Context<Self>) -> Option<Link<PartitionActor>> {
        let id = self
            .machine
            .iter()
            .find_map(|topic| topic.partition_of(owner))?;
        self.locate(id.topic, id.partition, id.lane, ctx)
            .ok()
            .map(|(_, link)| link)
    }
}

impl Actor for DirectoryActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.stats.capacity);
        for topic in self.machine.iter() {
            self.house.timer_limits.set(topic.id, topic.config.timers());
        }
        load::begin_again(self, ctx);
        let link = self.link(ctx);
        self.coordinators.start(&self.house, &link, &self.arbiters);
    }
}

impl Begins for DirectoryActor {
    fn owner(&self) -> OwnerId {
        OwnerId::DIRECTORY
    }

    fn house(&self) -> &House {
        &self.house
    }

    fn owner_link(&self, ctx: &Context<Self>) -> OwnerLink {
        OwnerLink::Directory(self.link(ctx))
    }

    fn begun(&mut self, author: Option<Author>) {
        self.author = author;
    }
}

/// A command for the machine.
#[derive(Debug)]
pub struct Do {
    /// Which.
    pub command: Command,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

impl Handler<Do> for DirectoryActor {
    type Result = ();

    fn handle(&mut self, message: Do, ctx: &mut Self::Context) {
        self.command(message.command, message.reply, ctx);
    }
}

/// Which topics there are.
#[derive(Debug)]
pub struct List {
    /// By name; none asks for all.
    pub names: Vec<String>,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

impl Handler<List> for DirectoryActor {
    type Result = ();

    fn handle(&mut self, message: List, _: &mut Self::Context) {
        self.stats.handled();
        let List { names, reply } = message;
        let (mut topics, mut unknown) = (Vec::new(), Vec::new());
        if names.is_empty() {
            topics.extend(self.machine.iter().cloned());
        }
        for name in names {
            match self.machine.named(&name) {
                Some(topic) => topics.push(topic.clone()),
                None => unknown.push(name),
            }
        }
        reply.answer(Answer::Topics(topics, unknown));
    }
}

/// Which actor a partition lane is.
#[derive(Debug)]
pub struct Locate {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionIndex,
    /// The lane.
    pub lane: Lane,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

impl Handler<Locate> for DirectoryActor {
    type Result = ();

    fn handle(&mut self, message: Locate, ctx: &mut Self::Context) {
        self.stats.handled();
        let Locate {
            topic,
            partition,
            lane,
            reply,
        } = message;
        match self.locate(topic, partition, lane, ctx) {
            Ok((owner, link)) => reply.answer(Answer::Partition(owner, link)),
            Err(rejection) => reply.refuse(rejection),
        }
    }
}

/// Which actor a coordinator's shard is.
#[derive(Debug)]
pub struct LocateCoordinator {
    /// The shard.
    pub shard: u8,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

impl Handler<LocateCoordinator> for DirectoryActor {
    type Result = ();

    fn handle(&mut self, message: LocateCoordinator, _: &mut Self::Context) {
        self.stats.handled();
        match self.coordinators.locate(message.shard) {
            Ok(link) => message.reply.answer(Answer::Coordinator(link)),
            Err(rejection) => message.reply.refuse(rejection),
        }
    }
}

/// The log has entries of an owner that is not running.
#[derive(Debug, Clone, Copy)]
pub struct StartOwner {
    /// The owner.
    pub owner: OwnerId,
}

impl Handler<StartOwner> for DirectoryActor {
    type Result = ();

    fn handle(&mut self, message: StartOwner, ctx: &mut Self::Context) {
        self.stats.handled();
        if shard_of_owner(message.owner).is_some() {
            // They always run, and one that is being made anew folds this from the log.
            return;
        }
        let exists = self
            .machine
            .iter()
            .any(|topic| topic.partition_of(message.owner).is_some());
        if exists {
            let _ = self.start_owner(message.owner, ctx);
        } else if !self.start_group(message.owner, ctx) {
            // Deleted meanwhile: no round of the checkpoint need wait for it, and its alarms are void.
            self.house.wheel.leave(message.owner);
            self.house.checkpoint.tell(Gone {
                owner: message.owner,
            });
        }
    }
}

/// An owner must restate its rows.
#[derive(Debug, Clone, Copy)]
pub struct RestateOwner {
    /// The owner.
    pub owner: OwnerId,
}

impl Handler<RestateOwner> for DirectoryActor {
    type Result = ();

    fn handle(&mut self, message: RestateOwner, ctx: &mut Self::Context) {
        self.stats.handled();
        if message.owner == OwnerId::DIRECTORY {
            let effect = self.machine.restate();
            self.perform(vec![effect], ctx);
        } else if let Some(link) = self.coordinators.of_owner(message.owner) {
            link.tell(Restate);
        } else if self.restate_group(message.owner, ctx) {
        } else if let Some(link) = self.start_owner(message.owner, ctx) {
            link.tell(Restate);
        }
    }
}

/// Have an owner say whether it needs what it stored in a segment.
#[derive(Debug, Clone, Copy)]
pub struct InspectOwner {
    /// The owner.
    pub owner: OwnerId,
    /// The question.
    pub inspect: Inspect,
}

impl Handler<InspectOwner> for DirectoryActor {
    type Result = ();

    fn handle(&mut self, message: InspectOwner, ctx: &mut Self::Context) {
        self.stats.handled();
        if let Some(link) = self.start_owner(message.owner, ctx) {
            link.tell(message.inspect);
        }
    }
}

impl Handler<Restate> for DirectoryActor {
    type Result = ();

    fn handle(&mut self, _: Restate, ctx: &mut Self::Context) {
        self.stats.handled();
        let effect = self.machine.restate();
        self.perform(vec![effect], ctx);
    }
}

/// A partition's actor was dropped without having been dismissed: it failed.
#[derive(Debug, Clone, Copy)]
pub struct Died {
    /// The owner.
    pub owner: OwnerId,
}

impl Handler<Died> for DirectoryActor {
    type Result = ();

    fn handle(&mut self, message: Died, ctx: &mut Self::Context) {
        self.stats.handled();
        let owner = message.owner;
        if let Some(shard) = shard_of_owner(owner) {
            let link = self.link(ctx);
            return self
                .coordinators
                .died(shard, &self.house, &link, &self.arbiters);
        }
        if self.group_died(owner, ctx) {
            return;
        }
        let now = self.house.clock.now().monotonic;
        let Some(mut running) = self.running.remove(&owner) else {
            return;
        };
        let too_often = running.failures.count(now);
        let Some(topic) = self.machine.topic(running.id.topic) else {
            return;
        };
        let name = format!("{}/{}", topic.name, running.id.partition.0);
        running.stopped = too_often;
        if running.stopped {
            tracing::error!(
                target: "waterwheel::directory",
                partition = name, "failed {FAILURES_MAX} times within a minute: it stays down until a restart"
            );
            // Not gone: the log has what its rows do not, so that the mark must not pass it.
            self.house.wheel.stopped(owner);
        } else {
            tracing::warn!(
                target: "waterwheel::directory",
                partition = name, "failed: it is re-created from its rows and the log"
            );
            running.link = self.raise(owner, running.id, name, ctx);
            running.link.stats.restarted();
        }
        self.running.insert(owner, running);
    }
}

impl Handler<Applied> for DirectoryActor {
    type Result = ();

    fn handle(&mut self, message: Applied, ctx: &mut Self::Context) {
        self.stats.handled();
        let mut effects = Vec::new();
        for entry in &message.0 {
            self.machine.apply(entry, &mut effects);
        }
        self.perform(effects, ctx);
    }
}

impl Handler<Fenced> for DirectoryActor {
    type Result = ();

    fn handle(&mut self, message: Fenced, ctx: &mut Self::Context) {
        self.stats.handled();
        if !message.ends(self.author) {
            return;
        }
        let mut effects = Vec::new();
        self.machine.reset(&message.rejection, &mut effects);
        self.perform(effects, ctx);
        if message.rejection != Rejection::LogSealed {
            load::begin_again(self, ctx);
        }
    }
}

impl Handler<WriteRows> for DirectoryActor {
    type Result = ();

    fn handle(&mut self, message: WriteRows, _: &mut Self::Context) {
        self.stats.handled();
        let changes = row_changes(&mut self.machine);
        self.stats.rows(1 + self.machine.iter().count() as u64);
        self.house
            .hand_over(message.round, OwnerId::DIRECTORY, changes);
    }
}

/// The directory's changed rows as the views take them.
pub fn row_changes(machine: &mut Topics) -> Vec<RowChange> {
    let Some((head, topics)) = machine.take_rows() else {
        return Vec::new();
    };
    let groups = machine.take_group_rows();
    let key = |kind, id| RowKey {
        owner: OwnerId::DIRECTORY,
        kind,
        id,
    };
    topics
        .into_iter()
        .map(|(id, value)| (key(layout::DIRECTORY_TOPIC, id.0), value))
        .chain(
            groups
                .into_iter()
                .map(|(id, value)| (key(layout::DIRECTORY_GROUP, id.0), value)),
        )
        .chain([(key(layout::HEAD, 0), Some(encode(&head)))])
        .map(|(key, value)| RowChange {
            tree: Tree::Meta,
            key,
            value: value.map(|value| (head.sequence, value)),
        })
        .collect()
}

/// Make a partition's actor fail, for tests.
#[derive(Debug, Clone, Copy)]
pub struct FailOwner {
    /// The partition.
    pub owner: OwnerId,
}

impl Handler<FailOwner> for DirectoryActor {
    type Result = ();

    fn handle(&mut self, message: FailOwner, _: &mut Self::Context) {
        self.stats.handled();
        if let Some(shard) = shard_of_owner(message.owner) {
            self.coordinators.fail(shard);
        } else if let Some(running) = self.running.get(&message.owner) {
            running.link.tell(super::partition::Fail);
        }
        self.fail_group(message.owner);
    }
}

//! What the directory does for consumer groups: finds and starts their actors, watches them, and tells
//! them of their topics.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use actix::{Actor, Context, Handler};

use super::super::checkpoint::Gone;
use super::super::commit::Forget;
use super::super::group::{Dismiss, GroupActor, Known, Shape};
use super::super::reply::{Answer, ReplyTo};
use super::super::{Link, Restate};
use super::{DirectoryActor, FAILURES_MAX, Failures};
use crate::domain::commit::OwnerRange;
use crate::domain::group::command::TopicShape;
use crate::domain::id::{OwnerId, TopicId};
use crate::domain::rejection::Rejection;
use crate::domain::topics::Command;
use crate::domain::topics::groups::Group;

tells!(OpenGroup, DeleteGroup, ListGroups, Watch);

struct Running {
    link: Link<GroupActor>,
    failures: Failures,
    stopped: bool,
}

/// The groups that run.
#[derive(Default)]
pub(super) struct Groups {
    running: HashMap<OwnerId, Running>,
    watchers: HashMap<TopicId, BTreeSet<OwnerId>>,
}

fn known(group: &Group) -> Known {
    Known {
        id: group.id,
        name: group.name.clone(),
        owner: group.owner(),
    }
}

impl DirectoryActor {
    /// The group's actor, started if need be.
    pub(super) fn locate_group(
        &mut self,
        group: &Group,
        ctx: &Context<Self>,
    ) -> Result<Link<GroupActor>, Rejection> {
        let owner = group.owner();
        if let Some(running) = self.groups.running.get(&owner) {
            if running.stopped {
                return Err(Rejection::OwnerStopped(group.name.clone()));
            }
            if running.link.is_alive() {
                return Ok(running.link.clone());
            }
            // Its death notice is in the mailbox; whoever asks tries again.
            return Err(Rejection::Retry);
        }
        let link = self.raise_group(group, ctx);
        let running = Running {
            link: link.clone(),
            failures: Failures::default(),
            stopped: false,
        };
        self.groups.running.insert(owner, running);
        Ok(link)
    }

    fn raise_group(&self, group: &Group, ctx: &Context<Self>) -> Link<GroupActor> {
        let owner = group.owner();
        let capacity = self.house.settings.partition_mailbox;
        let stats = self
            .house
            .registry
            .enter("group", owner, group.name.clone(), capacity);
        let (house, directory) = (self.house.clone(), self.link(ctx));
        let (shared, known) = (Arc::clone(&stats), known(group));
        let make =
            move |_: &mut Context<GroupActor>| GroupActor::new(known, house, directory, shared);
        let at = usize::try_from(owner.0)
            .unwrap_or(0)
            .checked_rem(self.arbiters.len())
            .unwrap_or(0);
        let addr = match self.arbiters.get(at) {
            Some(arbiter) => GroupActor::start_in_arbiter(arbiter, make),
            None => GroupActor::create(make),
        };
        Link::new(addr, stats)
    }

    /// Starts the group an owner is; whether it is one.
    pub(super) fn start_group(&mut self, owner: OwnerId, ctx: &Context<Self>) -> bool {
        let Some(group) = self.machine.group_of(owner).cloned() else {
            return false;
        };
        let _ = self.locate_group(&group, ctx);
        true
    }

    /// Lets a group restate; whether the owner is one.
    pub(super) fn restate_group(&mut self, owner: OwnerId, ctx: &Context<Self>) -> bool {
        let Some(group) = self.machine.group_of(owner).cloned() else {
            return false;
        };
        if let Ok(link) = self.locate_group(&group, ctx) {
            link.tell(Restate);
        }
        true
    }

    /// Lets a group fail, for tests; whether the owner is one.
    pub(super) fn fail_group(&self, owner: OwnerId) {
        if let Some(running) = self.groups.running.get(&owner) {
            running.link.tell(super::super::partition::Fail);
        }
    }

    pub(super) fn dismiss_groups(&mut self, ranges: &[OwnerRange]) {
        let gone: Vec<OwnerId> = self
            .groups
            .running
            .keys()
            .filter(|owner| ranges.iter().any(|range| range.contains(**owner)))
            .copied()
            .collect();
        for owner in gone {
            if let Some(running) = self.groups.running.remove(&owner) {
                running.link.tell(Dismiss);
                self.house.registry.leave("group", owner);
                self.house.commit.tell(Forget { owner });
                self.house.checkpoint.tell(Gone { owner });
            }
        }
    }

    /// A group's actor failed; whether the owner was one.
    pub(super) fn group_died(&mut self, owner: OwnerId, ctx: &Context<Self>) -> bool {
        let Some(mut running) = self.groups.running.remove(&owner) else {
            return false;
        };
        let now = self.house.clock.now().monotonic;
        let too_often = running.failures.count(now);
        let Some(group) = self.machine.group_of(owner).cloned() else {
            return true;
        };
        running.stopped = too_often;
        if running.stopped {
            tracing::error!(
                target: "waterwheel::directory",
                group = group.name, "failed {FAILURES_MAX} times within a minute: it stays down until a restart"
            );
        } else {
            tracing::warn!(
                target: "waterwheel::directory",
                group = group.name, "failed: it is re-created from its rows and the log"
            );
            running.link = self.raise_group(&group, ctx);
            running.link.stats.restarted();
        }
        self.groups.running.insert(owner, running);
        true
    }

    /// Tells whoever watches a topic what it is now, and everybody what bounds its delayed records have.
    pub(super) fn topic_changed(&mut self, topic: TopicId) {
        let timers = self.machine.topic(topic).map(|found| found.config.timers());
        self.house
            .timer_limits
            .set(topic, timers.unwrap_or_default());
        let Some(watchers) = self.groups.watchers.get(&topic) else {
            return;
        };
        let shape = self.shape_of(topic);
        for owner in watchers {
            if let Some(running) = self.groups.running.get(owner) {
                running.link.tell(Shape { topic, shape });
            }
        }
        if shape.is_none() {
            self.groups.watchers.remove(&topic);
        }
    }

    fn shape_of(&self, topic: TopicId) -> Option<TopicShape> {
        let found = self.machine.topic(topic)?;
        Some(TopicShape {
            topic,
            partitions: found.partitions,
            lanes: found.config.levels,
        })
    }

    pub(super) fn answer_group(&mut self, reply: ReplyTo, group: &Group, ctx: &Context<Self>) {
        match self.locate_group(group, ctx) {
            Ok(link) => reply.answer(Answer::GroupActor(known(group), link)),
            Err(rejection) => reply.refuse(rejection),
        }
    }
}

/// A consumer group's actor, by name; the answer is [`Answer::GroupActor`].
#[derive(Debug)]
pub struct OpenGroup {
    /// Which.
    pub name: String,
    /// Make the group if it is not there.
    pub create: bool,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

impl Handler<OpenGroup> for DirectoryActor {
    type Result = ();

    fn handle(&mut self, message: OpenGroup, ctx: &mut Self::Context) {
        let OpenGroup {
            name,
            create,
            reply,
        } = message;
        self.command(Command::OpenGroup { name, create }, reply, ctx);
    }
}

/// Remove a consumer group with its progress; its members hear that it ended. The answer is
/// [`Answer::Group`] with `Done`.
#[derive(Debug)]
pub struct DeleteGroup {
    /// Which.
    pub name: String,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

impl Handler<DeleteGroup> for DirectoryActor {
    type Result = ();

    fn handle(&mut self, message: DeleteGroup, ctx: &mut Self::Context) {
        let DeleteGroup { name, reply } = message;
        self.command(Command::DeleteGroup { name }, reply, ctx);
    }
}

/// Which consumer groups there are; the answer is [`Answer::Groups`].
#[derive(Debug)]
pub struct ListGroups {
    /// Where the answer goes.
    pub reply: ReplyTo,
}

impl Handler<ListGroups> for DirectoryActor {
    type Result = ();

    fn handle(&mut self, message: ListGroups, _: &mut Self::Context) {
        self.stats.handled();
        let groups = self.machine.groups().map(known).collect();
        message.reply.answer(Answer::Groups(groups));
    }
}

/// A group wants to hear of a topic's shape, now and whenever it changes.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    /// The topic.
    pub topic: TopicId,
    /// The group.
    pub owner: OwnerId,
}

impl Handler<Watch> for DirectoryActor {
    type Result = ();

    fn handle(&mut self, message: Watch, _: &mut Self::Context) {
        self.stats.handled();
        let Watch { topic, owner } = message;
        let shape = self.shape_of(topic);
        if shape.is_some() {
            self.groups.watchers.entry(topic).or_default().insert(owner);
        }
        if let Some(running) = self.groups.running.get(&owner) {
            running.link.tell(Shape { topic, shape });
        }
    }
}

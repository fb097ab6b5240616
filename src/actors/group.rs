//! The group actor: one per consumer group, started on first use.
//!
//! Its rows and the log behind them are folded before it takes a message; a panic in a handler ends it,
//! and the directory makes another from rows and log, never from old memory. Records come to it as
//! directories (offsets and key hashes), found by one feed per place; bodies never pass through it.

use std::sync::Arc;

use actix::{Actor, AsyncContext, Context, Message};
use tokio::sync::mpsc::UnboundedSender;

use super::reply::ReplyTo;
use super::stats::ActorStats;
use crate::domain::group::command::{Command, MemberEvent};
use crate::domain::id::{GroupId, OwnerId};

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

/// The shell of one group.
#[derive(Debug)]
pub struct GroupActor {
    stats: Arc<ActorStats>,
}

impl Actor for GroupActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.stats.capacity);
        let _ = ctx.address();
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

impl Message for Do {
    type Result = ();
}

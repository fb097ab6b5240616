//! Answers on their way to whoever asked.
//!
//! Only sessions, the console and in-process clients ask. They hand over a [`ReplyTo`], which is
//! answered exactly once as final; one that is dropped answers `Retry` by itself, so that no token is
//! lost with an actor that fails (C4).

use super::Link;
use tokio::sync::mpsc::UnboundedSender;

use super::group::{GroupActor, Known};
use super::partition::PartitionActor;
use super::transaction::{CoordinatorActor, HalfGuard};
use crate::domain::commit::Receipt;
use crate::domain::group::command;
use crate::domain::id::{OwnerId, ProducerEpoch, ProducerId};
use crate::domain::partition::delayed::TimerAnswer;
use crate::domain::partition::{Bounds, ReadAnswer};
use crate::domain::rejection::Rejection;
use crate::domain::topics::Topic;
use crate::domain::transaction::{By, Decision, Description};

/// What an actor answers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Answer {
    /// Durable.
    Stored {
        /// Its stamps.
        receipt: Receipt,
        /// It had been stored before.
        repeat: bool,
    },
    /// Accepted, not yet durable; a final answer follows.
    Accepted,
    /// Batches for a read.
    Batches(ReadAnswer),
    /// Where a partition begins and ends.
    Bounds(Bounds),
    /// A topic.
    Topic(Box<Topic>),
    /// Topics, and the names among those asked for that are unknown.
    Topics(Vec<Topic>, Vec<String>),
    /// A producer id.
    Producer(ProducerId),
    /// A session of a transactional id.
    Session(ProducerId, ProducerEpoch),
    /// A coordinator.
    Coordinator(Link<CoordinatorActor>),
    /// A transaction's decision, durable, and who made it.
    Ended(Decision, By),
    /// What is told of transactions.
    Transactions(Vec<Description>),
    /// About delayed records.
    Timer(TimerAnswer),
    /// The actor of a partition lane.
    Partition(OwnerId, Link<PartitionActor>),
    /// The actor of a consumer group.
    GroupActor(Known, Link<GroupActor>),
    /// Consumer groups.
    Groups(Vec<Known>),
    /// What a consumer group answers.
    Group(command::Answer),
    /// A refusal.
    Refused(Rejection),
}

/// An answer with the number of the question.
#[derive(Debug)]
pub struct Mail {
    /// The asker's number.
    pub correlation: u64,
    /// The answer.
    pub answer: Answer,
}

/// Where one answer goes.
#[derive(Debug)]
pub struct ReplyTo {
    to: Option<UnboundedSender<Mail>>,
    correlation: u64,
    /// Hears, behind whoever waits, that this is answered.
    guard: Option<HalfGuard>,
}

impl ReplyTo {
    /// Answers under `correlation` go to `to`. The channel is bounded by the asker: it has as many
    /// questions open as its admission allows.
    #[must_use]
    pub fn new(to: UnboundedSender<Mail>, correlation: u64) -> Self {
        Self {
            to: Some(to),
            correlation,
            guard: None,
        }
    }

    /// For a sender that wants no answer.
    #[must_use]
    pub fn nobody() -> Self {
        Self {
            to: None,
            correlation: 0,
            guard: None,
        }
    }

    /// The same, and a coordinator hears when it is answered or lost.
    #[must_use]
    pub fn guarded(mut self, guard: HalfGuard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Takes the guard off: what it stands for is in other hands.
    pub fn unguarded(&mut self) -> Option<HalfGuard> {
        self.guard.take()
    }

    /// The final answer.
    pub fn answer(mut self, answer: Answer) {
        self.post(answer);
        self.to = None;
    }

    /// A final refusal.
    pub fn refuse(self, rejection: Rejection) {
        self.answer(Answer::Refused(rejection));
    }

    /// An answer before the final one.
    pub fn accepted(&self) {
        self.post(Answer::Accepted);
    }

    /// Somebody else answers.
    pub fn forget(mut self) {
        self.to = None;
    }

    /// Whether nobody would hear the answer.
    #[must_use]
    pub fn is_deaf(&self) -> bool {
        self.to.as_ref().is_none_or(UnboundedSender::is_closed)
    }

    fn post(&self, answer: Answer) {
        if let Some(to) = &self.to {
            // A session that is gone has nobody to tell.
            let _ = to.send(Mail {
                correlation: self.correlation,
                answer,
            });
        }
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        self.post(Answer::Refused(Rejection::Retry));
    }
}

//! Keeps one consumer a member of its group, over as many connections as it takes.
//!
//! One task per consumer. In: frames of the member's stream, and what the consumer says of its records.
//! Out: leased batches in order, and answers. What is said is put together: one frame takes all that one
//! wake-up found. When the connection is lost, all that is in hand is void (its records come again) and
//! the task joins anew.
//!
//! Invariants: G1, credit given back is exactly what the broker charged, once per lease; G2, every settling
//! is answered, at the latest when its session ends; G3, what comes from an earlier session is never
//! delivered behind what comes from a later one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use super::credit::Credit;
use super::error::ConsumeError;
use super::leased::{Consumed, Hand, LeaseTag, LeasedBatch};
use super::link::{Link, RequestError};
use super::member_session::Session;
use super::settle::SettleError;
use super::switchboard::{Switchboard, next_link};
use crate::domain::id::TopicId;
use crate::domain::transaction::TransactionId;
use crate::wire::consume::{JoinGroup, Joined, LeaveGroup, RetryAfter};
use crate::wire::group::{Mode, Subscription};

/// Between two tries to join.
const PAUSE: Duration = Duration::from_millis(50);
/// How long leaving may take before the connection's end is left to say it.
pub(super) const LEAVE: Duration = Duration::from_secs(2);
/// Things said that are taken together.
pub(super) const SAID_MAX: usize = 4096;

/// What a membership is for.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) group: String,
    pub(crate) subscriptions: Vec<Subscription>,
    pub(crate) name: String,
    pub(crate) grace_ms: u64,
    pub(crate) at_most_once: bool,
    /// Credit is granted by the consumer, not by settling.
    pub(crate) pull: bool,
    pub(crate) prefetch_bytes: u64,
    pub(crate) prefetch_records: u64,
    /// How long to look for a broker.
    pub(crate) timeout: Duration,
}

/// How what was said went.
pub(crate) type Outcome = oneshot::Sender<Result<(), SettleError>>;

/// What a consumer says.
#[derive(Debug)]
pub(crate) enum Say {
    Settle {
        tag: LeaseTag,
        offset: u64,
        verdict: Verdict,
        outcome: Option<Outcome>,
    },
    UpTo {
        tag: LeaseTag,
        partition: u32,
        end: u64,
        outcome: Option<Outcome>,
    },
    /// Consumed if a transaction commits.
    Attach {
        transaction: TransactionId,
        records: Vec<(LeaseTag, u64)>,
        outcome: Outcome,
    },
    /// The same of all up to a place.
    AttachUpTo {
        transaction: TransactionId,
        tag: LeaseTag,
        end: u64,
        outcome: Outcome,
    },
    Extend {
        tags: Vec<LeaseTag>,
        lease_ms: u64,
        outcome: Option<Outcome>,
    },
    /// These will not be settled: they were when they came, or are lost.
    Taken(Vec<LeaseTag>),
    /// At least so many records more are wanted (pull).
    Want(u64),
    /// They are not wanted any more; answered in line by [`Told::Withdrawn`].
    Enough(u64),
    /// Leave; answered when it is done.
    Leave(oneshot::Sender<()>),
}

/// What becomes of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Consumed,
    Not(RetryAfter, String),
}

/// What a consumer is told, in order.
#[derive(Debug)]
pub(crate) enum Told {
    Batch(Box<LeasedBatch>),
    Withdrawn(u64),
    /// The subscription or the membership is over.
    Failed(ConsumeError),
}

/// Both ends of a running membership.
pub(crate) struct Wires {
    pub(crate) say: mpsc::UnboundedSender<Say>,
    pub(crate) told: mpsc::UnboundedReceiver<Told>,
    pub(crate) hand: Arc<Hand>,
    pub(crate) name: String,
    pub(crate) subscriptions: Vec<Subscription>,
}

/// Joins, and keeps joined from then on.
pub(crate) async fn start(plan: Plan, board: Switchboard) -> Result<Wires, ConsumeError> {
    let (say, said) = mpsc::unbounded_channel();
    let (tell, told) = mpsc::unbounded_channel();
    let hand = Arc::new(Hand::default());
    let mut keeper = Keeper {
        plan,
        board,
        stale: None,
        said,
        tell,
        hand: Arc::clone(&hand),
        topics: HashMap::new(),
        wanted: 0,
    };
    let (session, joined) = keeper.join().await?;
    // A name the broker made is kept, so that the member is known by it.
    if keeper.plan.name.is_empty() {
        keeper.plan.name.clone_from(&joined.name);
    }
    tokio::spawn(keeper.keep(session));
    Ok(Wires {
        say,
        told,
        hand,
        name: joined.name,
        subscriptions: joined.subscriptions,
    })
}

pub(super) struct Keeper {
    plan: Plan,
    board: Switchboard,
    stale: Option<Arc<Link>>,
    pub(super) said: mpsc::UnboundedReceiver<Say>,
    pub(super) tell: mpsc::UnboundedSender<Told>,
    pub(super) hand: Arc<Hand>,
    pub(super) topics: HashMap<TopicId, Consumed>,
    /// What the pull that is under way wants.
    pub(super) wanted: u64,
}

/// How a session ended.
pub(super) enum End {
    /// Join again.
    Lost,
    /// For good.
    Over,
}

impl Keeper {
    async fn keep(mut self, mut session: Session) {
        loop {
            let end = session.run(&mut self).await;
            session.fail_all(&self.tell);
            match end {
                End::Over => return,
                End::Lost => {}
            }
            if session.link.transport().is_closed() {
                self.stale = Some(Arc::clone(&session.link));
            }
            // What was said meanwhile is of the session that ended.
            match self.join().await {
                Ok((next, _)) => session = next,
                Err(error) => {
                    let _ = self.tell.send(Told::Failed(error));
                    return;
                }
            }
        }
    }

    /// Joins on the present connection, or the next.
    async fn join(&mut self) -> Result<(Session, Joined), ConsumeError> {
        let deadline = Instant::now() + self.plan.timeout;
        let unreachable = ConsumeError::Unreachable(self.plan.timeout.as_millis());
        loop {
            if self.said.is_closed() {
                return Err(ConsumeError::Protocol("the consumer is gone".to_owned()));
            }
            let link = next_link(&mut self.board, self.stale.as_ref());
            let link = match timeout_at(deadline, link).await {
                Ok(Some(link)) => link,
                Ok(None) => return Err(ConsumeError::Disconnected),
                Err(_) => return Err(unreachable),
            };
            let pause = match timeout_at(deadline, self.join_on(&link)).await {
                Err(_) => return Err(unreachable),
                Ok(Ok(joined)) => return Ok(joined),
                Ok(Err(RequestError::Protocol(reason))) => {
                    return Err(ConsumeError::Protocol(reason));
                }
                Ok(Err(RequestError::Refused(refusal))) => {
                    if !refusal.code.is_retriable() || Instant::now() >= deadline {
                        return Err(ConsumeError::Refused(refusal));
                    }
                    refusal.after_ms.map_or(PAUSE, Duration::from_millis)
                }
                Ok(Err(RequestError::Lost(reason))) => {
                    tracing::debug!(reason, "cannot join");
                    if link.transport().is_closed() {
                        self.stale = Some(link);
                        continue;
                    }
                    PAUSE
                }
            };
            sleep(pause).await;
        }
    }

    async fn join_on(&mut self, link: &Arc<Link>) -> Result<(Session, Joined), RequestError> {
        let (consumer, stream) = link.expect_stream();
        let mut guard = Guard {
            link: Arc::clone(link),
            consumer,
            joined: false,
        };
        let request = JoinGroup {
            consumer,
            group: self.plan.group.clone(),
            subscriptions: self.plan.subscriptions.clone(),
            name: self.plan.name.clone(),
            grace_ms: self.plan.grace_ms,
            at_most_once: self.plan.at_most_once,
        };
        let (joined, _) = link.ask::<_, Joined>(&request).await?;
        guard.joined = true;
        let ended = || RequestError::Lost("the member's stream did not come".to_owned());
        let stream = stream.await.map_err(|_| ended())?;
        self.topics = joined
            .subscriptions
            .iter()
            .map(|subscription| {
                let consumed = Consumed {
                    name: Arc::from(subscription.topic.as_str()),
                    is_ordered: matches!(subscription.mode, Mode::Exclusive | Mode::Broadcast),
                };
                (subscription.topic_id, consumed)
            })
            .collect();
        let shortest = joined.subscriptions.iter().map(|s| s.lease_ms).min();
        let lease = Duration::from_millis(shortest.unwrap_or(30_000).max(100));
        let mut session = Session {
            guard,
            link: Arc::clone(link),
            number: self.hand.begin(),
            stream,
            credit: Credit::new(&self.plan, self.topics.keys().copied()),
            leases: HashMap::new(),
            answers: FuturesUnordered::new(),
            waiting: Vec::new(),
            lease,
            renew_at: Instant::now() + lease,
        };
        if !self.plan.pull {
            session.grant_all();
        } else if self.wanted > 0 {
            let owed = session.credit.wanted(self.wanted);
            session.grant(owed);
        }
        Ok((session, joined))
    }
}

/// Leaves when it is dropped; forgets the stream that did not come.
pub(super) struct Guard {
    link: Arc<Link>,
    pub(super) consumer: u64,
    pub(super) joined: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.link.forget_stream(self.consumer);
        if self.joined {
            let leave = LeaveGroup {
                consumer: self.consumer,
            };
            let _ = self.link.send(&leave, 0);
        }
    }
}

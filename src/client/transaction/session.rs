//! A session of a transactional id: its identity, its order per partition, its place on connections.
//!
//! In: batches of transactions, ends. Out: that they are durable, or why not. What a session has under
//! way to one lane of a partition is one batch at a time, so that its numbers there never have a gap; a batch
//! whose outcome is open after a lost connection is sent again under the same numbers, and stored once.
//! Where even that leaves the outcome open, the session is done for, and the next one of its id, which
//! rolls back what it left open, begins anew.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use super::local::answer_check;
use super::{LocalTransaction, TransactionError};
use crate::client::error::Refusal;
use crate::client::link::{Link, RequestError, lock};
use crate::client::switchboard::next_link;
use crate::client::{Client, Code};
use crate::domain::batch::{BatchBuilder, BatchStamp};
use crate::domain::id::{Lane, PartitionIndex, ProducerSequence, TopicId, TransactionNumber};
use crate::domain::transaction::TransactionId;
use crate::wire::frame::{Frame, Header};
use crate::wire::produce::{Ack, Produce, Stored};
use crate::wire::topic::TopicInfo;
use crate::wire::transaction::{EndTransaction, OpenSession, Outcome, SessionOk, TransactionEnded};

/// Between two tries of a request that was put off.
const PAUSE: Duration = Duration::from_millis(20);

/// A batch of a transaction, ready to be numbered and sent.
#[derive(Debug)]
pub(super) struct HalfBatch {
    pub(super) topic: TopicId,
    pub(super) partition: u32,
    /// The priority level of its records.
    pub(super) lane: Lane,
    pub(super) builder: BatchBuilder,
    pub(super) immunity_ms: Option<u32>,
}

/// A partition lane: what numbers a session's records by itself.
type Place = (TopicId, u32, Lane);

/// The next sequence number of a partition lane, and its turn.
type Turn = Arc<tokio::sync::Mutex<u64>>;

/// What the clones of a transactional producer share.
pub(super) struct Session {
    pub(super) client: Client,
    name: String,
    group: String,
    pub(super) timeout: Duration,
    identity: SessionOk,
    next_number: AtomicU64,
    turns: Mutex<HashMap<Place, Turn>>,
    topics: tokio::sync::Mutex<HashMap<String, TopicInfo>>,
    /// The connection that knows this session.
    resumed: tokio::sync::Mutex<Weak<Link>>,
    checker: Option<Arc<dyn LocalTransaction>>,
    /// Dropped with the session: whoever keeps it known ends then.
    _alive: oneshot::Sender<()>,
    /// Its numbers are uncertain, or a later session has taken over: nothing more is sent.
    broken: AtomicBool,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("name", &self.name)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// Why an attempt has no answer.
enum Failed {
    /// The broker said no, for good.
    Refused(Refusal),
    /// Time is up.
    Late,
    Protocol(String),
    Closed,
}

impl From<Failed> for TransactionError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Refused(refusal) => Self::Refused(refusal),
            Failed::Late => Self::TimedOut,
            Failed::Protocol(reason) => Self::Protocol(reason),
            Failed::Closed => Self::Closed,
        }
    }
}

impl Session {
    /// Opens a session; its predecessor of the same id is fenced.
    pub(super) async fn open(
        client: Client,
        name: String,
        group: String,
        timeout: Duration,
        checker: Option<Arc<dyn LocalTransaction>>,
    ) -> Result<Arc<Self>, TransactionError> {
        let request = OpenSession {
            name: name.clone(),
            group: group.clone(),
            resume: None,
            checks: false,
        };
        let identity = client.ask::<_, SessionOk>(&request).await?.0;
        let (alive, dropped) = oneshot::channel();
        let session = Arc::new(Self {
            client,
            name,
            group,
            timeout,
            identity,
            next_number: AtomicU64::new(0),
            turns: Mutex::new(HashMap::new()),
            topics: tokio::sync::Mutex::new(HashMap::new()),
            resumed: tokio::sync::Mutex::new(Weak::new()),
            checker,
            _alive: alive,
            broken: AtomicBool::new(false),
        });
        if session.checker.is_some() {
            tokio::spawn(stay_known(Arc::downgrade(&session), dropped));
        }
        Ok(session)
    }

    pub(super) fn next_id(&self) -> TransactionId {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed) + 1;
        TransactionId {
            producer: self.identity.producer,
            epoch: self.identity.epoch,
            number: TransactionNumber(number),
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// A topic by name, looked up once.
    pub(super) async fn topic(&self, name: &str) -> Result<TopicInfo, TransactionError> {
        let mut topics = self.topics.lock().await;
        if let Some(topic) = topics.get(name) {
            return Ok(topic.clone());
        }
        let topic = self.client.topic(name).await?;
        topics.insert(name.to_owned(), topic.clone());
        Ok(topic)
    }

    /// A topic by this name may be another by now.
    async fn forget_topic(&self, id: TopicId) {
        self.topics.lock().await.retain(|_, topic| topic.id != id);
    }

    fn turn(&self, place: Place) -> Turn {
        Arc::clone(lock(&self.turns).entry(place).or_default())
    }

    /// Sends a batch of a transaction and waits until it is durable.
    pub(super) async fn send(
        &self,
        id: TransactionId,
        mut half: HalfBatch,
    ) -> Result<(), TransactionError> {
        let turn = self.turn((half.topic, half.partition, half.lane));
        let mut next = turn.lock().await;
        if self.is_broken() {
            return Err(TransactionError::SessionLost);
        }
        let count = half.builder.len() as u64;
        let stamp = BatchStamp {
            producer: id.producer,
            epoch: id.epoch,
            first_sequence: ProducerSequence(*next),
            transaction: id.number,
        };
        let Some(body) = half.builder.finish(stamp) else {
            return Ok(());
        };
        let header = Produce {
            topic: half.topic,
            partition: PartitionIndex(half.partition),
            lane: half.lane,
            leader_epoch: 0,
            ack: Ack::Durable,
            immunity_ms: half.immunity_ms,
        };
        let mut uncertain = false;
        let sent = self.ask::<_, Stored>(&header, &body, &mut uncertain).await;
        match sent {
            Ok(_) => {
                *next += count;
                Ok(())
            }
            Err(failed) => {
                let lost_count = matches!(
                    &failed,
                    Failed::Refused(refusal)
                        if matches!(refusal.code, Code::SequenceGap | Code::ProducerStateLost | Code::ProducerFenced)
                );
                if uncertain || lost_count {
                    self.broken.store(true, Ordering::Release);
                }
                if let Failed::Refused(refusal) = &failed
                    && refusal.code == Code::UnknownTopic
                {
                    self.forget_topic(half.topic).await;
                }
                Err(failed.into())
            }
        }
    }

    /// Decides a transaction and waits until that is durable.
    pub(super) async fn end(
        &self,
        id: TransactionId,
        outcome: Outcome,
    ) -> Result<(), TransactionError> {
        let request = EndTransaction {
            producer: id.producer,
            epoch: id.epoch,
            number: id.number,
            outcome,
            operator: false,
        };
        let ended = self
            .ask::<_, TransactionEnded>(&request, &Bytes::new(), &mut false)
            .await?;
        if ended.outcome == outcome {
            Ok(())
        } else {
            Err(TransactionError::Protocol(
                "the broker confirmed another decision than the one asked for".to_owned(),
            ))
        }
    }

    /// Asks over as many connections as it takes, within the timeout. `uncertain` is set where an attempt
    /// was lost, so that what it asked for may have happened.
    async fn ask<H: Header, A: Header>(
        &self,
        header: &H,
        body: &Bytes,
        uncertain: &mut bool,
    ) -> Result<A, Failed> {
        let deadline = Instant::now() + self.timeout;
        let mut board = self.client.board();
        let mut stale: Option<Arc<Link>> = None;
        loop {
            let link = match timeout_at(deadline, next_link(&mut board, stale.as_ref())).await {
                Ok(Some(link)) => link,
                Ok(None) => return Err(Failed::Closed),
                Err(_) => return Err(Failed::Late),
            };
            let asked = async {
                self.resume(&link).await?;
                link.ask_with(header, body).await
            };
            let pause = match timeout_at(deadline, asked).await {
                Err(_) => {
                    *uncertain = true;
                    return Err(Failed::Late);
                }
                Ok(Ok((answer, _))) => {
                    *uncertain = false;
                    return Ok(answer);
                }
                Ok(Err(RequestError::Protocol(reason))) => return Err(Failed::Protocol(reason)),
                Ok(Err(RequestError::Lost(_))) => {
                    *uncertain = true;
                    stale = Some(link);
                    continue;
                }
                Ok(Err(RequestError::Refused(refusal))) if refusal.code.is_retriable() => {
                    refusal.after_ms.map_or(PAUSE, Duration::from_millis)
                }
                Ok(Err(RequestError::Refused(refusal))) => return Err(Failed::Refused(refusal)),
            };
            if Instant::now() + pause >= deadline {
                return Err(Failed::Late);
            }
            sleep(pause).await;
        }
    }

    /// Makes this session known on a connection: the first one knows it already, but for whose outcomes
    /// it answers.
    async fn resume(&self, link: &Arc<Link>) -> Result<(), RequestError> {
        let mut resumed = self.resumed.lock().await;
        if std::ptr::eq(resumed.as_ptr(), Arc::as_ptr(link)) {
            return Ok(());
        }
        let request = OpenSession {
            name: self.name.clone(),
            group: self.group.clone(),
            resume: Some((self.identity.producer, self.identity.epoch)),
            checks: self.checker.is_some(),
        };
        let known = link.ask::<_, SessionOk>(&request).await;
        if let Err(RequestError::Refused(refusal)) = &known
            && !refusal.code.is_retriable()
        {
            self.broken.store(true, Ordering::Release);
        }
        known?;
        *resumed = Arc::downgrade(link);
        Ok(())
    }

    pub(super) fn group(&self) -> &str {
        &self.group
    }
}

/// Resumes a session on a connection, unless that ends first. False where the broker refuses it for good: a
/// session that was fenced is asked nothing any more, and must not take questions from its successor.
async fn make_known(session: &Weak<Session>, link: &Arc<Link>) -> bool {
    loop {
        let Some(strong) = session.upgrade() else {
            return false;
        };
        match strong.resume(link).await {
            Ok(()) => return true,
            Err(RequestError::Refused(refusal)) if !refusal.code.is_retriable() => return false,
            Err(_) if link.transport().is_closed() => return true,
            Err(_) => {}
        }
        drop(strong);
        sleep(PAUSE).await;
    }
}

/// Keeps a session that answers for its group known on whatever connection there is, and answers.
async fn stay_known(session: Weak<Session>, mut dropped: oneshot::Receiver<()>) {
    let Some(mut board) = session.upgrade().map(|session| session.client.board()) else {
        return;
    };
    let mut stale: Option<Arc<Link>> = None;
    loop {
        let link = tokio::select! {
            link = next_link(&mut board, stale.as_ref()) => link,
            _ = &mut dropped => return,
        };
        let Some(link) = link else { return };
        let (questions, mut asked) = mpsc::unbounded_channel();
        let Some(strong) = session.upgrade() else {
            return;
        };
        let group = strong.group().to_owned();
        drop(strong);
        link.on_check_back(&group, questions);
        if !make_known(&session, &link).await {
            return;
        }
        loop {
            let question: Frame = tokio::select! {
                question = asked.recv() => match question {
                    Some(question) => question,
                    None => break,
                },
                _ = &mut dropped => return,
                _ = link.transport().closed() => break,
            };
            let Some(strong) = session.upgrade() else {
                return;
            };
            if let Some(checker) = strong.checker.clone() {
                tokio::spawn(answer_check(checker, Arc::clone(&link), question));
            }
        }
        stale = Some(link);
    }
}

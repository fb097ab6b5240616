//! Transactions: records to any topics and partitions, all of them or none.
//!
//! In: records, a decision. Out: that the decision is durable. Nothing of a transaction is visible to
//! anybody before it is committed, and nothing of one that is rolled back ever is.
//!
//! ```no_run
//! # async fn example(client: waterwheel::client::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use waterwheel::client::Record;
//!
//! let producer = client.transactional_producer("till-7").open().await?;
//! let mut transaction = producer.transaction();
//! transaction.send("orders", Record::new("paid").key("order-17")).await?;
//! transaction.send("points", Record::new("+42").key("customer-3")).await?;
//! transaction.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Where the truth is somebody else's, a database's say, the order is the other way round: the message is
//! stored first, invisible (a *half message*), then the [`LocalTransaction`] is executed, and its outcome
//! decides. Should the outcome never arrive, because the process ended in between, the broker asks any live
//! producer of the same group ([`LocalTransaction::check`]).

mod attach;
mod session;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};

use self::attach::settle_all;
use self::session::{HalfBatch, Session};
use super::error::{AdminError, Refusal};
use super::link::Link;
use super::producer::{IdGenerator, now_ms};
use super::settle::Settlement;
use super::{Client, Record};
use crate::domain::batch::{BatchBuilder, BatchView, Compression};
use crate::domain::id::TopicId;
use crate::domain::key::{key_hash, partition_of};
use crate::domain::record::RecordBody;
use crate::wire::frame::Frame;
use crate::wire::topic::decode_list;
use crate::wire::transaction::{
    CheckBack, CheckedBack, EndTransaction, ListTransactions, Outcome, TransactionEnded,
    TransactionsOk,
};

pub use crate::domain::transaction::TransactionId;
pub use crate::wire::transaction::{ParticipantInfo, TransactionInfo};

/// A batch of a transaction is sent when it has so many bytes.
const BATCH_BYTES: usize = 256 * 1024;
/// How long one request of a transaction may take, unless configured otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// How long after a half message its group is asked for its outcome, unless configured otherwise.
const IMMUNITY_DEFAULT: Duration = Duration::from_secs(6);

/// Why a transaction was not decided as asked, or a record of it not taken.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TransactionError {
    /// The broker said no. Its code; `transaction-decided` where another decision stands.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A record that alone is larger than a batch may be. Code `record-too-large`.
    #[error("a record is larger than a batch may be ({limit} bytes)")]
    TooLarge {
        /// The most a batch may have.
        limit: usize,
    },
    /// No answer in time. A commit's outcome is then open: ask for it by the transaction's id. Code
    /// `timed-out`.
    #[error("no answer in time; the outcome is open: ask for it with `transaction describe`")]
    TimedOut,
    /// The session cannot go on: a later session of its transactional id has taken over, or it lost count
    /// after a lost connection. Open another. Code `session-lost`.
    #[error(
        "the session of this transactional id is over; open another, which rolls back what this one left open"
    )]
    SessionLost,
    /// Something of the transaction failed earlier, so that it can only be rolled back. Code
    /// `transaction-failed`.
    #[error("the transaction failed earlier and can only be rolled back: {0}")]
    Failed(Arc<TransactionError>),
    /// The answer makes no sense. Code `protocol`.
    #[error("the broker's answer cannot be read: {0}")]
    Protocol(String),
    /// A record that no consumer group delivered, or one that was settled before it came. Code `not-leased`.
    #[error("the record is under no lease of a consumer group: there is nothing to attach")]
    NotLeased,
    /// The client is closed, or there is no connection. Code `unreachable`.
    #[error("the client is closed")]
    Closed,
    /// No connection for as long as the client waits. Code `unreachable`.
    #[error("no broker can be reached: {0}")]
    Unreachable(String),
}

impl TransactionError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code.name(),
            Self::TooLarge { .. } => "record-too-large",
            Self::TimedOut => "timed-out",
            Self::SessionLost => "session-lost",
            Self::Failed(_) => "transaction-failed",
            Self::NotLeased => "not-leased",
            Self::Protocol(_) => "protocol",
            Self::Closed | Self::Unreachable(_) => "unreachable",
        }
    }

    /// Whether the whole transaction, begun anew, may succeed later.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.code.is_retriable(),
            Self::TimedOut | Self::Unreachable(_) => true,
            Self::Failed(why) => why.is_retriable(),
            Self::TooLarge { .. }
            | Self::NotLeased
            | Self::SessionLost
            | Self::Protocol(_)
            | Self::Closed => false,
        }
    }
}

impl From<AdminError> for TransactionError {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Refused(refusal) => Self::Refused(refusal),
            AdminError::TimedOut(_) => Self::TimedOut,
            AdminError::Unreachable(reason) => Self::Unreachable(reason),
            AdminError::Protocol(reason) => Self::Protocol(reason),
            AdminError::Disconnected => Self::Closed,
        }
    }
}

/// What a local transaction came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LocalOutcome {
    /// It happened: the message becomes visible.
    Commit,
    /// It did not, and will not.
    Rollback,
    /// Not known (yet): the broker asks later.
    Unknown,
}

impl From<LocalOutcome> for Outcome {
    fn from(outcome: LocalOutcome) -> Self {
        match outcome {
            LocalOutcome::Commit => Self::Commit,
            LocalOutcome::Rollback => Self::Rollback,
            LocalOutcome::Unknown => Self::Unknown,
        }
    }
}

/// A half message whose outcome is asked for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HalfMessage {
    /// Its transaction.
    pub id: TransactionId,
    /// The producer group.
    pub group: String,
    /// The topic of its first batch; empty where it is gone.
    pub topic: String,
    /// The records of its first batch; empty where they could not be read.
    pub records: Vec<Record>,
}

/// The side of a half message that lives elsewhere: a database's transaction, a call.
pub trait LocalTransaction: Send + Sync + 'static {
    /// Does it. Called only once the half message is durable. A panic, or the end of the process, leaves
    /// the outcome to [`LocalTransaction::check`].
    fn execute<'a>(&'a self, id: TransactionId, record: &'a Record) -> BoxFuture<'a, LocalOutcome>;

    /// Says what it came to, possibly in another process of the same producer group than the one that
    /// executed it, possibly long after. Must not guess: `Unknown` is asked about again.
    fn check<'a>(&'a self, half: &'a HalfMessage) -> BoxFuture<'a, LocalOutcome>;
}

/// Configures a transactional producer; made by [`Client::transactional_producer`].
#[must_use = "nothing happens before `open`"]
pub struct TransactionalProducerBuilder {
    client: Client,
    name: String,
    group: String,
    timeout: Duration,
    checker: Option<Arc<dyn LocalTransaction>>,
}

impl std::fmt::Debug for TransactionalProducerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransactionalProducerBuilder")
            .field("name", &self.name)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

impl TransactionalProducerBuilder {
    /// The producer group: whose live producers may be asked for the outcomes of each other's half
    /// messages. At most 200 bytes; default none.
    pub fn group(mut self, group: &str) -> Self {
        group.clone_into(&mut self.group);
        self
    }

    /// Who executes and checks local transactions; needed for [`TransactionalProducer::send_half`], and
    /// makes this producer one that is asked for outcomes of its group.
    pub fn local(mut self, local: impl LocalTransaction) -> Self {
        self.checker = Some(Arc::new(local));
        self
    }

    /// How long one request of a transaction may take, lost connections included. Default 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Opens a session of the transactional id. An earlier session of the same id, in whatever process, is
    /// fenced, and what it left open is rolled back, but for half messages, which are checked back.
    ///
    /// # Errors
    /// Refused with `invalid-name`; otherwise as for all requests.
    pub async fn open(self) -> Result<TransactionalProducer, TransactionError> {
        let session = Session::open(
            self.client,
            self.name,
            self.group,
            self.timeout,
            self.checker.clone(),
        )
        .await?;
        Ok(TransactionalProducer {
            session,
            local: self.checker,
            ids: Arc::new(IdGenerator::new()),
        })
    }
}

/// Begins transactions. Cheap to clone; clones share the session. Any number of transactions may be open
/// beside each other; what they send to one partition goes one batch after the other.
#[derive(Clone)]
pub struct TransactionalProducer {
    session: Arc<Session>,
    local: Option<Arc<dyn LocalTransaction>>,
    ids: Arc<IdGenerator>,
}

impl std::fmt::Debug for TransactionalProducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransactionalProducer")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

impl TransactionalProducer {
    /// Begins a transaction: no round trip, nothing at the broker before its first batch.
    pub fn transaction(&self) -> Transaction {
        Transaction {
            id: self.session.next_id(),
            producer: self.clone(),
            batches: BTreeMap::new(),
            immunity_ms: None,
            attaching: Vec::new(),
            sent: false,
            failed: None,
            decided: false,
        }
    }

    /// Runs a transaction whose effects are only messages: committed if `body` returns `Ok`, rolled back if it
    /// returns `Err`, panics or is cancelled.
    ///
    /// # Errors
    /// What `body` returned, or why the commit did not succeed.
    pub async fn run<T, E, F>(&self, body: F) -> Result<T, E>
    where
        E: From<TransactionError>,
        F: AsyncFnOnce(&mut Transaction) -> Result<T, E>,
    {
        let mut transaction = self.transaction();
        match body(&mut transaction).await {
            Ok(value) => {
                transaction.commit().await?;
                Ok(value)
            }
            Err(error) => {
                // The transaction is rolled back as well if this does not get through: by time.
                let _ = transaction.rollback().await;
                Err(error)
            }
        }
    }

    /// Stores a half message, executes the local transaction, and decides as it says. Goes on to the end
    /// though the returned future is dropped. `Unknown`, a panic and the end of the process leave the
    /// decision to check-back, 6 s after the message and then every 30 s, 15 times, unless the broker is
    /// configured otherwise.
    ///
    /// # Errors
    /// The half message could not be stored durably: the local transaction was then not executed. Or the
    /// decision could not be delivered: it is asked for later.
    pub async fn send_half(
        &self,
        topic: &str,
        record: Record,
    ) -> Result<LocalOutcome, TransactionError> {
        self.send_half_within(topic, record, IMMUNITY_DEFAULT).await
    }

    /// The same, with another time before the first question for the outcome.
    ///
    /// # Errors
    /// As [`TransactionalProducer::send_half`].
    pub async fn send_half_within(
        &self,
        topic: &str,
        record: Record,
        immunity: Duration,
    ) -> Result<LocalOutcome, TransactionError> {
        let Some(local) = self.local.clone() else {
            return Err(TransactionError::Protocol(
                "this producer has no local transaction: give it one with `local` before `open`"
                    .to_owned(),
            ));
        };
        let mut transaction = self.transaction();
        let immunity = u32::try_from(immunity.as_millis()).unwrap_or(u32::MAX);
        transaction.immunity_ms = Some(immunity);
        transaction.send(topic, record.clone()).await?;
        transaction.flush().await?;
        // From here on the outcome is the local transaction's: dropping must not roll back.
        transaction.decided = true;
        let (session, id) = (Arc::clone(&self.session), transaction.id);
        let executed = tokio::spawn(async move {
            let outcome = local.execute(id, &record).await;
            if outcome != LocalOutcome::Unknown {
                session.end(id, outcome.into()).await?;
            }
            Ok(outcome)
        });
        // A panic inside: nobody knows how far it came.
        executed.await.unwrap_or(Ok(LocalOutcome::Unknown))
    }
}

/// One partition of a topic.
type Target = (TopicId, u32);

/// A transaction that is open. Dropped without a decision it is rolled back, as well as can be done then: in
/// the background, or by the broker when its time is over.
#[must_use = "a transaction that is dropped is rolled back"]
pub struct Transaction {
    id: TransactionId,
    producer: TransactionalProducer,
    batches: BTreeMap<Target, BatchBuilder>,
    immunity_ms: Option<u32>,
    /// What was attached and is not known to be durable.
    attaching: Vec<Settlement>,
    /// The broker may know of it.
    sent: bool,
    failed: Option<Arc<TransactionError>>,
    decided: bool,
}

impl std::fmt::Debug for Transaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transaction")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Transaction {
    /// Its name for ever, by which it can be asked for.
    #[must_use]
    pub fn id(&self) -> TransactionId {
        self.id
    }

    /// Puts a record into the transaction. The partition is that of the key; keyless records take turns
    /// by transaction. Records gather; what fills a batch is sent, the rest with the commit. Cancelled, a
    /// full batch may be lost: the transaction can then only be rolled back.
    ///
    /// # Errors
    /// [`TransactionError`]; the transaction can then only be rolled back.
    pub async fn send(&mut self, topic: &str, record: Record) -> Result<(), TransactionError> {
        self.put(topic, None, record).await
    }

    /// The same, to a partition of the caller's choice.
    ///
    /// # Errors
    /// As [`Transaction::send`].
    pub async fn send_to(
        &mut self,
        topic: &str,
        partition: u32,
        record: Record,
    ) -> Result<(), TransactionError> {
        self.put(topic, Some(partition), record).await
    }

    async fn put(
        &mut self,
        topic: &str,
        partition: Option<u32>,
        record: Record,
    ) -> Result<(), TransactionError> {
        self.check()?;
        let session = Arc::clone(&self.producer.session);
        let topic = session.topic(topic).await?;
        let partitions = topic.config.partitions.max(1);
        let partition = match (partition, &record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_of(key_hash(key), partitions).0,
            (None, None) => {
                let turn = self.id.number.0 % u64::from(partitions);
                u32::try_from(turn).unwrap_or(0)
            }
        };
        let target = (topic.id, partition);
        let at = now_ms();
        let id = record.id.unwrap_or_else(|| self.producer.ids.next(at));
        let limit = usize::try_from(session.client.limits().batch_bytes_max).unwrap_or(usize::MAX);
        let bytes = BATCH_BYTES.min(limit);
        let open = self
            .batches
            .entry(target)
            .or_insert_with(|| BatchBuilder::new(bytes, Compression::None));
        if open.push_with(&record, id, at, 0, record.delivery).is_ok() {
            return Ok(());
        }
        if let Some(full) = self.batches.remove(&target).filter(|full| !full.is_empty()) {
            self.send_batches(vec![(target, full)]).await?;
        }
        let mut fresh = BatchBuilder::new(bytes, Compression::None);
        if fresh
            .push_with(&record, id, at, 0, record.delivery)
            .is_err()
        {
            fresh = BatchBuilder::new(limit, Compression::None);
            if fresh
                .push_with(&record, id, at, 0, record.delivery)
                .is_err()
            {
                return self.fail(TransactionError::TooLarge { limit });
            }
        }
        self.batches.insert(target, fresh);
        Ok(())
    }

    /// Sends what has gathered and waits until all of it is durable, though invisible.
    ///
    /// # Errors
    /// [`TransactionError`]; the transaction can then only be rolled back.
    pub async fn flush(&mut self) -> Result<(), TransactionError> {
        self.check()?;
        let batches = std::mem::take(&mut self.batches).into_iter().collect();
        self.send_batches(batches).await?;
        self.attached().await
    }

    async fn send_batches(
        &mut self,
        batches: Vec<(Target, BatchBuilder)>,
    ) -> Result<(), TransactionError> {
        if batches.is_empty() {
            return Ok(());
        }
        self.sent = true;
        // Cancelled from here on, something may or may not be stored.
        let before = self.failed.replace(Arc::new(TransactionError::TimedOut));
        let sending = batches.into_iter().map(|((topic, partition), builder)| {
            let half = HalfBatch {
                topic,
                partition,
                builder,
                immunity_ms: self.immunity_ms,
            };
            let (session, id) = (Arc::clone(&self.producer.session), self.id);
            // In a task of its own: dropped half way, the session would lose count.
            tokio::spawn(async move { session.send(id, half).await })
        });
        let sent = join_all(sending).await;
        self.failed = before;
        for outcome in sent {
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return self.fail(error),
                Err(_) => return self.fail(TransactionError::Closed),
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TransactionError> {
        match &self.failed {
            Some(why) => Err(TransactionError::Failed(Arc::clone(why))),
            None if self.producer.session.is_broken() => Err(TransactionError::SessionLost),
            None => Ok(()),
        }
    }

    fn fail<T>(&mut self, error: TransactionError) -> Result<T, TransactionError> {
        self.failed = Some(Arc::new(error.clone()));
        Err(error)
    }

    /// Commits: sends what has gathered, and decides. Once this returns, all of it is visible, for ever.
    ///
    /// # Errors
    /// [`TransactionError`]. `transaction-decided` where it was rolled back meanwhile, by time or a person.
    /// After `timed-out` the outcome is open; after anything else it is rolled back.
    pub async fn commit(mut self) -> Result<(), TransactionError> {
        self.flush().await?;
        if self.sent {
            self.producer.session.end(self.id, Outcome::Commit).await?;
        }
        self.decided = true;
        Ok(())
    }

    /// Rolls back: nothing of it was, is or will be visible.
    ///
    /// # Errors
    /// [`TransactionError`]; the broker then rolls back when its time is over.
    pub async fn rollback(mut self) -> Result<(), TransactionError> {
        self.decided = true;
        if self.sent {
            settle_all(&mut self.attaching).await;
            self.producer
                .session
                .end(self.id, Outcome::Rollback)
                .await?;
        }
        Ok(())
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if self.decided || !self.sent {
            return;
        }
        let (session, id) = (Arc::clone(&self.producer.session), self.id);
        let mut attaching = std::mem::take(&mut self.attaching);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                settle_all(&mut attaching).await;
                // Where it does not get through, the broker rolls back when its time is over. Where a commit
                // was on its way, this is refused with the decision that stands.
                let _ = session.end(id, Outcome::Rollback).await;
            });
        }
    }
}

/// Answers a question for an outcome; a checker that panics does not know.
async fn answer_check(checker: Arc<dyn LocalTransaction>, link: Arc<Link>, question: Frame) {
    let Ok(check) = question.decode::<CheckBack>() else {
        return;
    };
    let half = HalfMessage {
        id: TransactionId {
            producer: check.producer,
            epoch: check.epoch,
            number: check.number,
        },
        group: check.group,
        topic: check.topic,
        records: records_of(&question.body),
    };
    let checking = tokio::spawn(async move { checker.check(&half).await });
    let outcome = checking.await.unwrap_or(LocalOutcome::Unknown);
    let answer = CheckedBack {
        producer: check.producer,
        epoch: check.epoch,
        number: check.number,
        outcome: outcome.into(),
        nobody_of: None,
    };
    // Lost with its connection, it is asked again.
    let _ = link.send(&answer, 0);
}

fn records_of(batch: &Bytes) -> Vec<Record> {
    let Ok(view) = BatchView::parse(batch) else {
        return Vec::new();
    };
    let Ok(bodies) = view.bodies() else {
        return Vec::new();
    };
    bodies
        .filter_map(|body| RecordBody::decode(&body.ok()?.1).ok())
        .map(record_of)
        .collect()
}

fn record_of(body: RecordBody) -> Record {
    Record {
        value: body.value,
        key: body.key,
        tag: body.tag,
        headers: body.headers,
        id: Some(body.id),
        ..Record::default()
    }
}

impl Client {
    /// Configures a transactional producer. A transactional id (1 to 200 bytes) has one live session: opening
    /// another fences the one before.
    pub fn transactional_producer(&self, id: &str) -> TransactionalProducerBuilder {
        TransactionalProducerBuilder {
            client: self.clone(),
            name: id.to_owned(),
            group: String::new(),
            timeout: TIMEOUT_DEFAULT,
            checker: None,
        }
    }

    /// Transactions that are open, and finished ones that are kept: what time, check-back or a person decided.
    /// By name, those behind `after`, at most 1000.
    ///
    /// # Errors
    /// As for all requests.
    pub async fn transactions(
        &self,
        after: Option<TransactionId>,
    ) -> Result<Vec<TransactionInfo>, AdminError> {
        let request = ListTransactions {
            only: None,
            after,
            max: 0,
        };
        let (_, body) = self.ask::<_, TransactionsOk>(&request).await?;
        decode_list(&body).map_err(AdminError::Protocol)
    }

    /// One transaction.
    ///
    /// # Errors
    /// Refused with `transaction-unknown`; otherwise as for all requests.
    pub async fn describe_transaction(
        &self,
        id: TransactionId,
    ) -> Result<TransactionInfo, AdminError> {
        let request = ListTransactions {
            only: Some(id),
            ..ListTransactions::default()
        };
        let (_, body) = self.ask::<_, TransactionsOk>(&request).await?;
        let found: Vec<TransactionInfo> = decode_list(&body).map_err(AdminError::Protocol)?;
        found
            .into_iter()
            .next()
            .ok_or_else(|| AdminError::Protocol("the answer is empty".to_owned()))
    }

    /// Decides a transaction as a person, and marked as such.
    ///
    /// # Errors
    /// Refused with `transaction-unknown`, or `transaction-decided` where the other decision stands; otherwise
    /// as for all requests.
    pub async fn decide_transaction(
        &self,
        id: TransactionId,
        commit: bool,
    ) -> Result<(), AdminError> {
        let request = EndTransaction {
            producer: id.producer,
            epoch: id.epoch,
            number: id.number,
            outcome: if commit {
                Outcome::Commit
            } else {
                Outcome::Rollback
            },
            operator: true,
        };
        self.ask::<_, TransactionEnded>(&request).await.map(drop)
    }
}

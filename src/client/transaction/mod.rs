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
mod gather;
mod local;
mod session;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use self::attach::settle_all;
use self::gather::Target;
use self::session::Session;
use super::error::{AdminError, EncodeError, Refusal};
use super::producer::IdGenerator;
use super::settle::Settlement;
use super::{Client, Record};
use crate::domain::batch::BatchBuilder;
use crate::wire::topic::decode_list;
use crate::wire::transaction::{
    EndTransaction, ListTransactions, Outcome, TransactionEnded, TransactionsOk,
};

pub use self::local::{HalfMessage, LocalOutcome, LocalTransaction};
pub use crate::domain::transaction::TransactionId;
pub use crate::wire::transaction::{ParticipantInfo, TransactionInfo};

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
    /// A value that is no record: its `Serialize` says so. Code `encode`.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The topic has no such priority level. Code `priority-out-of-range`.
    #[error("the topic has priorities 0 to {last}; there is no priority {priority}")]
    Priority {
        /// The one asked for.
        priority: u8,
        /// The last there is.
        last: u8,
    },
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
            Self::Encode(error) => error.code(),
            Self::Priority { .. } => "priority-out-of-range",
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
            | Self::Encode(_)
            | Self::Priority { .. }
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
///
/// ```
/// # actix_rt::System::new().block_on(async {
/// # let broker = waterwheel::Broker::start(waterwheel::Config::temporary()).await?;
/// # let client = broker.client().await?;
/// use waterwheel::client::{Record, TopicConfig, TransactionError};
///
/// #[derive(serde::Serialize)]
/// struct Points {
///     customer: u32,
///     earned: u32,
/// }
///
/// for topic in ["orders", "points"] {
///     client.create_topic(topic, TopicConfig::new(1)).await?;
/// }
/// let till = client.transactional_producer("till-7").open().await?;
/// till.run(async |transaction| {
///     transaction.send("orders", Record::new("paid").key("order-17")).await?;
///     let points = Points { customer: 3, earned: 42 };
///     transaction.send("points", Record::encode(&points)?.key("customer-3")).await?;
///     Ok::<(), TransactionError>(())
/// })
/// .await?;
/// # broker.stop().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
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
    /// By name, those behind `after`: a page of at most 1000 or 256 KiB. None behind the last one.
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

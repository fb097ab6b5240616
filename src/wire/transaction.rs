//! Transactions: sessions, ends, questions for outcomes.
//!
//! A session numbers its transactions itself, so that beginning one needs no round trip. Its batches are
//! sent by `Produce` like any other, with the session's id, epoch and the number of the transaction in
//! their headers.

use serde::{Deserialize, Serialize};

use super::consume::LeaseRange;
use super::frame::header;
use crate::domain::id::{
    Lane, Offset, PartitionIndex, ProducerEpoch, ProducerId, TopicId, TransactionNumber,
};
use crate::domain::time::WallMs;
use crate::domain::transaction::TransactionId;

/// What becomes of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All of it is published.
    Commit,
    /// None of it ever was.
    Rollback,
    /// In the answer to a [`CheckBack`]: not known yet.
    Unknown,
}

/// Open a session of a transactional id.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OpenSession {
    /// The transactional id, 1 to 200 bytes.
    pub name: String,
    /// The producer group, whose live producers may be asked for outcomes; at most 200 bytes.
    #[serde(default)]
    pub group: String,
    /// The session to go on with after a lost connection; without it a new one fences the old.
    #[serde(default)]
    pub resume: Option<ProducerOkPair>,
    /// Whether this connection answers questions for outcomes of the group.
    #[serde(default)]
    pub checks: bool,
}
header!(OpenSession, OpenSession);

/// A session's id and epoch.
pub type ProducerOkPair = (ProducerId, ProducerEpoch);

/// The answer to [`OpenSession`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SessionOk {
    /// The session's producer id.
    pub producer: ProducerId,
    /// Its epoch.
    pub epoch: ProducerEpoch,
}
header!(SessionOk, SessionOk);

/// Decide a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndTransaction {
    /// The session.
    pub producer: ProducerId,
    /// Its epoch.
    pub epoch: ProducerEpoch,
    /// The transaction.
    pub number: TransactionNumber,
    /// Commit or roll back.
    pub outcome: Outcome,
    /// A person's decision, and marked as such.
    #[serde(default)]
    pub operator: bool,
}
header!(EndTransaction, EndTransaction);

/// The answer to [`EndTransaction`]: decided and durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionEnded {
    /// The decision.
    pub outcome: Outcome,
    /// Who made it: `producer`, `check-back`, `operator`, `fencing`, `timeout` or `expiry`.
    pub by: String,
}
header!(TransactionEnded, TransactionEnded);

/// These are consumed if and when the transaction commits: all of them, or the request is refused. Sent by the
/// member that has them, on its connection, whoever the transaction's producer is. Answered by
/// [`Settled`](super::consume::Settled) once durable. Positional.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Attach {
    /// Which member.
    pub consumer: u64,
    /// To what.
    pub transaction: TransactionId,
    /// At most [`RANGES_MAX`](super::consume::RANGES_MAX).
    pub ranges: Vec<LeaseRange>,
}
header!(Attach, Attach, positional);

/// The same of everything leased to the member in this place below `end`. Positional.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AttachUpTo {
    /// Which member.
    pub consumer: u64,
    /// To what.
    pub transaction: TransactionId,
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionIndex,
    /// The lane.
    pub lane: Lane,
    /// One past the last.
    pub end: Offset,
}
header!(AttachUpTo, AttachUpTo, positional);

/// To the client: what became of this transaction of your group? The body is the first batch of it, if
/// it could be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckBack {
    /// The session that began it.
    pub producer: ProducerId,
    /// Its epoch.
    pub epoch: ProducerEpoch,
    /// Its number.
    pub number: TransactionNumber,
    /// The producer group.
    #[serde(default)]
    pub group: String,
    /// The topic of its first batch.
    #[serde(default)]
    pub topic: String,
}
header!(CheckBack, CheckBack);

/// To the broker: the answer to a [`CheckBack`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedBack {
    /// The session that began it.
    pub producer: ProducerId,
    /// Its epoch.
    pub epoch: ProducerEpoch,
    /// Its number.
    pub number: TransactionNumber,
    /// Its outcome.
    pub outcome: Outcome,
    /// The group, where nobody of this client answers for it any more: another client is to be asked at once,
    /// and this one no further.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nobody_of: Option<String>,
}
header!(CheckedBack, CheckedBack);

/// Which transactions are there? Open ones, and finished ones that are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ListTransactions {
    /// Only this one; refused where it is not known.
    #[serde(default)]
    pub only: Option<TransactionId>,
    /// Those behind this one, in the order of their names.
    #[serde(default)]
    pub after: Option<TransactionId>,
    /// At most so many; 1000 where it is 0 or more.
    #[serde(default)]
    pub max: u32,
}
header!(ListTransactions, ListTransactions);

/// The answer to [`ListTransactions`]. The transactions travel in the frame's *body*, a MessagePack array
/// of [`TransactionInfo`] with named fields ([`encode_list`](super::topic::encode_list)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TransactionsOk {}
header!(TransactionsOk, TransactionsOk);

/// One transaction.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TransactionInfo {
    /// Its name for ever.
    pub id: TransactionId,
    /// Its session's transactional id.
    #[serde(default)]
    pub name: String,
    /// Its session's producer group.
    #[serde(default)]
    pub group: String,
    /// `open`, `deciding`, `committed` or `rolled-back`.
    #[serde(default)]
    pub state: String,
    /// Who decided, where it is not open.
    #[serde(default)]
    pub by: Option<String>,
    /// When it began, or was decided.
    #[serde(default)]
    pub at: WallMs,
    /// Whether its group is asked for its outcome.
    #[serde(default)]
    pub checked_back: bool,
    /// Questions that were heard.
    #[serde(default)]
    pub checks: u32,
    /// Batches and attachments.
    #[serde(default)]
    pub batches: u32,
    /// What it touches.
    #[serde(default)]
    pub participants: Vec<ParticipantInfo>,
}

/// What a transaction touches.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ParticipantInfo {
    /// The topic; none for a group.
    #[serde(default)]
    pub topic: Option<TopicId>,
    /// The topic's name now, if it still exists.
    #[serde(default)]
    pub topic_name: Option<String>,
    /// The partition.
    #[serde(default)]
    pub partition: PartitionIndex,
    /// The lane.
    #[serde(default)]
    pub lane: Lane,
    /// Records of the transaction in it.
    #[serde(default)]
    pub records: u32,
    /// The consumer group whose records are attached, if it is one and still exists.
    #[serde(default)]
    pub consumer_group: Option<String>,
}

//! Why a machine says no: expected, stable, small. The wire gives each its code.

use std::fmt;

use super::group::rejection::GroupRejection;
use super::id::{Offset, ProducerEpoch, ProducerSequence};

/// A refusal. Nothing of the refused command happened, unless the variant says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// A batch's sequence is above the next one expected: something before it is missing.
    SequenceGap {
        /// The sequence that would be accepted.
        expected: ProducerSequence,
    },
    /// The producer is unknown here, yet does not start at sequence 0.
    ProducerStateLost,
    /// A later session of the same producer id has been seen.
    ProducerFenced {
        /// The epoch in force.
        current: ProducerEpoch,
    },
    /// The partition keeps state for as many producers as it may.
    TooManyProducers {
        /// The bound.
        max: u32,
    },
    /// More batches of one producer on their way than its window holds, or too much work waits.
    Throttled {
        /// When to try again, in milliseconds.
        after_ms: u32,
    },
    /// Not stored, through no fault of the sender: send it again, in order.
    Retry,
    /// Below the start or above the end of the partition.
    OffsetOutOfRange {
        /// The first offset there is.
        start: Offset,
        /// One past the last.
        end: Offset,
    },
    /// No topic of that name or id, or no such partition or lane in it.
    UnknownTopic,
    /// The partition index is not below the topic's partition count.
    PartitionOutOfRange {
        /// How many partitions there are.
        partitions: u32,
    },
    /// A topic of that name exists.
    TopicExists,
    /// A name that is empty, too long, or has other characters than letters, digits, `.`, `_`, `-`.
    InvalidName(&'static str),
    /// A setting out of its bounds.
    InvalidConfig(String),
    /// The partition count of a keyed topic cannot change: keys would move between partitions.
    KeyedTopic,
    /// The log took a failed write or sync and accepts nothing until a restart has re-read the disk.
    LogSealed,
    /// Only the reserve is left on the disk.
    DiskFull,
    /// The owner failed three times within a minute and stays down.
    OwnerStopped(String),
    /// The record cannot be read: the disk returned something else than was written.
    Damaged(String),
    /// Larger than one flush of the log can take.
    TooLarge {
        /// The bound in bytes.
        bytes_max: u32,
    },
    /// No such transaction of that session, or not any more.
    TransactionUnknown,
    /// The transaction has been decided, or is being decided, in another way or before this came.
    TransactionDecided {
        /// The decision that stands.
        stands: super::transaction::Decision,
    },
    /// A bound on transactions is reached.
    TransactionLimit {
        /// What is bounded.
        what: &'static str,
        /// The bound.
        max: u32,
    },
    /// The broker is stopping.
    ShuttingDown,
    /// As many delayed records wait in the partition as may.
    TooManyTimers {
        /// The bound.
        max: u64,
    },
    /// Due farther ahead than allowed.
    DelayTooLong {
        /// The bound, in milliseconds.
        max_ms: u64,
    },
    /// A batch with both delayed and immediate records.
    MixedDelivery,
    /// A consumer group's own.
    Group(GroupRejection),
}

impl From<GroupRejection> for Rejection {
    fn from(rejection: GroupRejection) -> Self {
        Self::Group(rejection)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SequenceGap { expected } => write!(
                f,
                "a batch before this one is missing: sequence {expected} is expected; send again from there"
            ),
            Self::ProducerStateLost => f.write_str(
                "this partition knows nothing of the producer, which does not start at sequence 0; open a new producer",
            ),
            Self::ProducerFenced { current } => {
                write!(f, "a later session of this producer (epoch {current}) has taken over")
            }
            Self::TooManyProducers { max } => write!(
                f,
                "the partition already keeps state for {max} producers; close idle ones or raise producers_per_partition_max"
            ),
            Self::Throttled { after_ms } => {
                write!(f, "too much is on its way; try again in {after_ms} ms")
            }
            Self::Retry => f.write_str("not stored; send it again"),
            Self::OffsetOutOfRange { start, end } => {
                write!(f, "the offset is outside of what the partition holds: {start} to {end}")
            }
            Self::UnknownTopic => f.write_str("unknown topic"),
            Self::PartitionOutOfRange { partitions } => {
                write!(f, "no such partition: the topic has {partitions}, counted from 0")
            }
            Self::TopicExists => f.write_str(
                "a topic of that name exists; to be content with one that is as asked for: waterwheel topic create NAME --if-not-exists",
            ),
            Self::InvalidName(why) => write!(f, "not a name for a topic: {why}"),
            Self::InvalidConfig(why) => f.write_str(why),
            Self::KeyedTopic => f.write_str(
                "the topic is keyed: with another number of partitions its keys would move and lose their order; create a new topic instead",
            ),
            Self::LogSealed => f.write_str(
                "a write to the disk failed, so the log is sealed: nothing is accepted until the broker is restarted; reading goes on",
            ),
            Self::DiskFull => f.write_str(
                "the disk is full but for the reserve: free space, or let retention take old records",
            ),
            Self::OwnerStopped(why) => {
                write!(f, "failed three times within a minute and is stopped: {why}; restart the broker")
            }
            Self::Damaged(what) => write!(f, "cannot be read: {what}"),
            Self::TooLarge { bytes_max } => {
                write!(f, "larger than one write of the log: at most {bytes_max} bytes")
            }
            Self::TransactionUnknown => {
                f.write_str("no such transaction: it never began, or was finished long ago")
            }
            Self::TransactionDecided { stands } => {
                write!(f, "the transaction is {stands} already; that decision stands")
            }
            Self::TransactionLimit { what, max } => {
                write!(f, "too many {what}: at most {max}")
            }
            Self::ShuttingDown => f.write_str("the broker is stopping"),
            Self::TooManyTimers { max } => write!(
                f,
                "{max} delayed records wait in this partition already; raise the topic's or the broker's timers_max"
            ),
            Self::DelayTooLong { max_ms } => write!(
                f,
                "due farther ahead than the {max_ms} ms that the topic or the broker allows"
            ),
            Self::MixedDelivery => f.write_str(
                "a batch holds delayed records or immediate ones, not both: send them as two batches",
            ),
            Self::Group(rejection) => rejection.fmt(f),
        }
    }
}

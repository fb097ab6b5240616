//! Identities, numbers and positions: one newtype each, so that they cannot be mixed.
//!
//! What lasts outside the broker (handles, bookmarks, traces) names cluster, topic id, partition index,
//! lane and record number. Ids come from the log and are never reused; names are aliases.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Who an entry of the log belongs to: a partition lane, the directory, later a group or a
    /// transaction coordinator. Given out by the directory, never reused.
    OwnerId(u64)
);
number!(
    /// A topic, for ever: a topic re-created under an old name is another topic.
    TopicId(u64)
);
number!(
    /// The index of a partition within its topic, from 0.
    PartitionIndex(u32)
);
number!(
    /// A priority level within a partition, each with its own owner; 0 is the ordinary and lowest.
    Lane(u8)
);
number!(
    /// Counts the entries of one owner, from 1; 0 is "nothing yet". Folding goes by it.
    OwnerSequence(u64)
);
number!(
    /// The dense number of a stored record within its partition lane, visible or not.
    RecordNumber(u64)
);
number!(
    /// The dense place of a published record within its partition lane: what consumers see.
    Offset(u64)
);
number!(
    /// A byte position in the commit log, across segments. Never reused.
    LogPosition(u64)
);
number!(
    /// Counts the entries of a log, from 1: the Raft index later.
    LogIndex(u64)
);
number!(
    /// The Raft term later; 1 today.
    Term(u64)
);
number!(
    /// One life of an owner's actor: +1 whenever it is re-created.
    Incarnation(u32)
);
number!(
    /// Names one producer session for duplicate detection; 0 is "not idempotent".
    ProducerId(u64)
);
number!(
    /// Fences earlier sessions of the same producer id.
    ProducerEpoch(u32)
);
number!(
    /// Counts the records one producer sends to one partition lane, from 0.
    ProducerSequence(u64)
);
number!(
    /// Names a transaction of a producer; 0 is "not in a transaction".
    TransactionNumber(u64)
);
number!(
    /// A consumer group, for ever: one made again under an old name is another.
    GroupId(u64)
);
number!(
    /// A member of a group, as long as its session lasts; never given to another.
    MemberId(u64)
);
number!(
    /// A lease of a group; never given twice.
    LeaseId(u64)
);
number!(
    /// Counts the assignments of one place of a subscription.
    Generation(u64)
);
number!(
    /// Ties a command to its answer inside one actor.
    Token(u64)
);

impl OwnerId {
    /// The directory owns this id in every log.
    pub const DIRECTORY: Self = Self(1);
    /// The commit log's own entries (marks).
    pub const LOG: Self = Self(2);
    /// The timing wheel's level on the wall clock: its rows are under this id, in the log it has nothing.
    #[must_use]
    pub const fn wheel_level(level: u8) -> Self {
        Self(16 + level as u64)
    }
    /// The first id the directory gives out.
    pub const FIRST_FREE: Self = Self(1024);
}

/// The highest number of lanes (priority levels) a partition may have; owner ids are laid out by it.
pub const LANES_MAX: u8 = 32;

/// The highest number of partitions a topic may have.
pub const PARTITIONS_MAX: u32 = 10_000;

impl Lane {
    /// The lane of records without a priority.
    pub const ZERO: Self = Self(0);
}

/// Names the cluster a log, a handle or a certificate belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Names one message for its whole life: resend, firing, retry, dead letter and redrive keep it.
/// A UUID version 7 unless the sender gave another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MessageId(pub [u8; 16]);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a record lives: what survives outside the broker together with the cluster id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PartitionId {
    /// The topic.
    pub topic: TopicId,
    /// The partition within it.
    pub partition: PartitionIndex,
    /// The lane within the partition.
    pub lane: Lane,
}

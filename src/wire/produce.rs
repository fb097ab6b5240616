//! Producing: levels of acknowledgement, the request, its answers.

use serde::{Deserialize, Serialize};

use super::frame::header;
use super::timer::StoredTimers;
use crate::domain::id::{
    Lane, Offset, PartitionIndex, ProducerEpoch, ProducerId, RecordNumber, TopicId,
};
use crate::domain::time::WallMs;

/// What a producer waits for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(try_from = "u8", into = "u8")]
#[repr(u8)]
pub enum Ack {
    /// Nothing: unnumbered, never sent again.
    None = 0,
    /// That the broker has it: it survives the end of one of the two, not of both.
    Memory = 1,
    /// That it is on the disk.
    #[default]
    Durable = 2,
}

impl From<Ack> for u8 {
    fn from(ack: Ack) -> Self {
        ack as Self
    }
}

impl TryFrom<u8> for Ack {
    type Error = &'static str;
    fn try_from(byte: u8) -> Result<Self, Self::Error> {
        match byte {
            0 => Ok(Self::None),
            1 => Ok(Self::Memory),
            2 => Ok(Self::Durable),
            _ => Err("an acknowledgement level is 0 (none), 1 (memory) or 2 (durable)"),
        }
    }
}

/// How sending went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SendStatus {
    /// As good as was asked for.
    #[default]
    SendOk,
    /// Accepted, but not known to be on the disk in time: the outcome is open.
    FlushDiskTimeout,
    /// Reserved for replication: a replica did not answer in time.
    FlushSlaveTimeout,
    /// Reserved for replication: there is no replica.
    SlaveNotAvailable,
}

impl SendStatus {
    /// Its name on the wire and in receipts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SendOk => "SEND_OK",
            Self::FlushDiskTimeout => "FLUSH_DISK_TIMEOUT",
            Self::FlushSlaveTimeout => "FLUSH_SLAVE_TIMEOUT",
            Self::SlaveNotAvailable => "SLAVE_NOT_AVAILABLE",
        }
    }
}

/// A producer id for duplicate detection.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OpenProducer {
    /// What the producer calls itself, for logs.
    #[serde(default)]
    pub name: Option<String>,
}
header!(OpenProducer, OpenProducer);

/// The answer to [`OpenProducer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProducerOk {
    /// The id, never 0.
    pub producer: ProducerId,
    /// The epoch.
    pub epoch: ProducerEpoch,
}
header!(ProducerOk, ProducerOk);

/// Store the batch in the body. Positional.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Produce {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionIndex,
    /// The lane.
    pub lane: Lane,
    /// The leader epoch the sender knows; 0 today.
    pub leader_epoch: u32,
    /// What the sender waits for. At `none` there is no answer, not even a refusal.
    pub ack: Ack,
    /// Of a half message: how long after it its producer group is asked for the outcome, in milliseconds.
    /// Without it a transaction ends by timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub immunity_ms: Option<u32>,
}
header!(Produce, Produce, positional);

/// Answers [`Produce`]: the batch is durable, and visible unless delayed. Positional.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stored {
    /// The offset of the first record; none where the batch is not visible yet.
    pub first_offset: Option<Offset>,
    /// The number of the first record.
    pub first_number: RecordNumber,
    /// When it was appended.
    pub appended: WallMs,
    /// How it went.
    pub status: SendStatus,
    /// Whether it had been stored before: then everything here is of the first time.
    pub duplicate: bool,
    /// Of records that wait for their time: what handles are made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timers: Option<StoredTimers>,
}
header!(Stored, Stored, positional);

/// Answers [`Produce`] at level memory: the broker has it. [`Stored`] follows under the same correlation
/// id once it is durable; a refusal may come instead, and then the batch has to be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Accepted {}
header!(Accepted, Accepted);

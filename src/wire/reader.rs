//! Reading a partition: by standing credit (push) or by credit granted once with a deadline (pull).
//!
//! Credit is counted in bytes of delivered frame bodies. A batch is sent while credit is above zero and
//! may overdraw it once; what was overdrawn is made good by the next grant.

use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Serialize};

use super::code::Refused;
use super::frame::header;
pub use super::topic::At;
use crate::domain::id::{Lane, Offset, PartitionIndex, RecordNumber, TopicId};
use crate::domain::time::WallMs;

/// How long a reader lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReaderMode {
    /// Until it is closed; credit is renewed.
    #[default]
    Push,
    /// Until its credit, its records or its time is used up, whichever is first.
    Pull,
}

/// Deliver a partition's records from a place on. Answered by [`ReaderOk`]; the broker opens the
/// reader's stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenReader {
    /// The reader's id, the client's choice, unique on its connection.
    pub reader: u64,
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionIndex,
    /// The lane.
    #[serde(default)]
    pub lane: Lane,
    /// The leader epoch the client knows; 0 today.
    #[serde(default)]
    pub leader_epoch: u32,
    /// From where.
    pub from: At,
    /// How long it lives.
    #[serde(default)]
    pub mode: ReaderMode,
    /// The first credit, in bytes.
    pub credit_bytes: u64,
    /// Pull: how many records at most; 0 = as many as the credit allows.
    #[serde(default)]
    pub records_max: u32,
    /// Pull: how long to wait for records, in milliseconds.
    #[serde(default)]
    pub wait_ms: u64,
}
header!(OpenReader, OpenReader);

/// The answer to [`OpenReader`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReaderOk {
    /// The offset reading starts at.
    pub first_offset: Offset,
    /// The first offset that is still there.
    pub start_offset: Offset,
    /// One past the last durable offset.
    pub high_watermark: Offset,
}
header!(ReaderOk, ReaderOk);

/// The reader may be sent so many bytes more. Unanswered; for a reader that has ended it is void.
/// Positional.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Credit {
    /// The reader.
    pub reader: u64,
    /// Bytes added to its credit.
    pub bytes: u64,
}
header!(Credit, Credit, positional);

/// The reader is not wanted any more. The broker ends its stream with [`ReaderEnd`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CloseReader {
    /// The reader.
    pub reader: u64,
}
header!(CloseReader, CloseReader);

/// The first frame of a reader's stream: whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StreamOpen {
    /// The reader.
    pub reader: u64,
}
header!(StreamOpen, StreamOpen);

/// A batch of the reader's partition, untouched, in the body. Positional.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Deliver {
    /// The reader.
    pub reader: u64,
    /// The offset of the batch's first record, wanted or not.
    pub first_offset: Offset,
    /// The number of the batch's first record.
    pub first_number: RecordNumber,
    /// How many records the batch has.
    pub count: u32,
    /// How many at its front lie before the offset that is wanted.
    pub skip: u32,
    /// When it was appended.
    pub appended: WallMs,
    /// One past the last durable offset, as of now.
    pub high_watermark: Offset,
}
header!(Deliver, Deliver, positional);

/// Records of the reader's partition that were stored first and published later: timers that fired, a
/// transaction that was committed. In the body: [`RecordDetail`] of each, then a batch of them, put
/// together by the broker where they come from several. Positional.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeliverPublished {
    /// The reader.
    pub reader: u64,
    /// The offset of the first record.
    pub first_offset: Offset,
    /// How many records.
    pub count: u32,
    /// How many at their front lie before the offset that is wanted.
    pub skip: u32,
    /// One past the last durable offset, as of now.
    pub high_watermark: Offset,
}
header!(DeliverPublished, DeliverPublished, positional);

/// The length of a [`RecordDetail`] in bytes.
pub const DETAIL_BYTES: usize = 32;

/// What became of a record that was published after it was stored: number, when it was stored, when it
/// was published, when it was due (the least value where it was not delayed), each eight bytes
/// little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordDetail {
    /// Its number.
    pub number: RecordNumber,
    /// When it was stored.
    pub stored: WallMs,
    /// When it was published: of a delayed record, when it fired.
    pub published: WallMs,
    /// When it was due, if it was delayed.
    pub due: Option<WallMs>,
}

impl RecordDetail {
    /// Appends it.
    pub fn put(&self, out: &mut BytesMut) {
        out.put_u64_le(self.number.0);
        out.put_i64_le(self.stored.0);
        out.put_i64_le(self.published.0);
        out.put_i64_le(self.due.map_or(i64::MIN, |due| due.0));
    }

    /// Reads as many as there are.
    #[must_use]
    pub fn parse_all(bytes: &[u8]) -> Vec<Self> {
        let word = |row: &[u8], at: usize| -> u64 {
            row.get(at..)
                .and_then(|rest| rest.first_chunk())
                .map_or(0, |word| u64::from_le_bytes(*word))
        };
        let signed = |value: u64| i64::from_le_bytes(value.to_le_bytes());
        bytes
            .chunks_exact(DETAIL_BYTES)
            .map(|row| Self {
                number: RecordNumber(word(row, 0)),
                stored: WallMs(signed(word(row, 8))),
                published: WallMs(signed(word(row, 16))),
                due: Some(signed(word(row, 24)))
                    .filter(|due| *due != i64::MIN)
                    .map(WallMs),
            })
            .collect()
    }
}

/// Why a reader ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndReason {
    /// The client closed it.
    Closed,
    /// Pull: credit or records are used up.
    Filled,
    /// Pull: the time is over.
    Waited,
    /// The broker cannot go on, and why.
    Refused(Refused),
}

/// The last frame of a reader's stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReaderEnd {
    /// The reader.
    pub reader: u64,
    /// Why.
    pub reason: EndReason,
    /// Where a later reader would go on.
    pub next_offset: Offset,
}
header!(ReaderEnd, ReaderEnd);

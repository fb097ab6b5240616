//! Delayed records: the handle of one, and what can be asked about it or about many.
//!
//! # The handle
//!
//! It names a delayed record for good: cluster, topic id, partition, lane, the number of the first record
//! of its batch, its own number, and a key nobody can make who was not told it. The broker gives a
//! producer one key per stored batch, made from its secret; each record's key follows from that and its
//! number, so a handle passed on is good for its one record alone.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 16 | cluster id, big-endian |
//! | 17 | 8 | topic id |
//! | 25 | 4 | partition |
//! | 29 | 1 | lane |
//! | 30 | 8 | number of the first record of its batch |
//! | 38 | 8 | its number |
//! | 46 | 16 | its key |
//!
//! Integers little-endian but for the cluster id. As text: `wwt-` and the bytes in base64 for URLs
//! without padding.
//!
//! Batch key: the first 16 bytes of HMAC-SHA-256 under the broker's secret of `timer`, the owner id of the
//! partition lane and the first number (each `u64` little-endian). Record key: the first 16 bytes of
//! HMAC-SHA-256 under the batch key of its number (`u64` little-endian).

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde::{Deserialize, Serialize};

use super::frame::header;
use crate::domain::id::{ClusterId, Lane, Offset, OwnerId, PartitionIndex, RecordNumber, TopicId};
use crate::domain::time::WallMs;

/// What a handle's text starts with.
const PREFIX: &str = "wwt-";
const VERSION: u8 = 1;
const HANDLE_BYTES: usize = 62;

/// A key of a batch or of a record, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct TimerKey(pub u64, pub u64);

impl fmt::Debug for TimerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TimerKey")
    }
}

impl TimerKey {
    fn of(tag: &hmac::Tag) -> Self {
        let (first, rest) = tag
            .as_ref()
            .split_first_chunk::<8>()
            .map_or(([0; 8], &[][..]), |(first, rest)| (*first, rest));
        let second = rest.first_chunk::<8>().copied().unwrap_or_default();
        Self(u64::from_le_bytes(first), u64::from_le_bytes(second))
    }

    fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let (first, second) = bytes.split_at_mut(8);
        first.copy_from_slice(&self.0.to_le_bytes());
        second.copy_from_slice(&self.1.to_le_bytes());
        bytes
    }

    /// The key of a batch, from the broker's secret.
    #[must_use]
    pub fn of_batch(secret: &hmac::Key, owner: OwnerId, first: RecordNumber) -> Self {
        let mut context = hmac::Context::with_key(secret);
        context.update(b"timer");
        context.update(&owner.0.to_le_bytes());
        context.update(&first.0.to_le_bytes());
        Self::of(&context.sign())
    }

    /// The key of one of the batch's records.
    #[must_use]
    pub fn of_record(self, number: RecordNumber) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.bytes());
        Self::of(&hmac::sign(&key, &number.0.to_le_bytes()))
    }

    /// Whether two are the same, in a time that does not tell where they differ.
    #[must_use]
    pub fn is(self, other: Self) -> bool {
        (self.0 ^ other.0) | (self.1 ^ other.1) == 0
    }
}

/// Names one delayed record, for as long as its topic exists. Whoever has it can cancel and reschedule
/// the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TimerHandle {
    /// The cluster.
    pub cluster: ClusterId,
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionIndex,
    /// The lane.
    pub lane: Lane,
    /// The number of the first record of its batch.
    pub first: RecordNumber,
    /// Its number.
    pub number: RecordNumber,
    /// Its key.
    pub key: TimerKey,
}

/// Text that is no handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a timer handle: it starts with '{PREFIX}' and is copied as a whole from a receipt")]
pub struct NotAHandle;

impl fmt::Display for TimerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(HANDLE_BYTES);
        bytes.push(VERSION);
        bytes.extend(self.cluster.0);
        bytes.extend(self.topic.0.to_le_bytes());
        bytes.extend(self.partition.0.to_le_bytes());
        bytes.push(self.lane.0);
        bytes.extend(self.first.0.to_le_bytes());
        bytes.extend(self.number.0.to_le_bytes());
        bytes.extend(self.key.bytes());
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for TimerHandle {
    type Err = NotAHandle;

    fn from_str(text: &str) -> Result<Self, NotAHandle> {
        let text = text.trim().strip_prefix(PREFIX).ok_or(NotAHandle)?;
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| NotAHandle)?;
        let mut rest = bytes.as_slice();
        let handle = || -> Option<Self> {
            let [version] = take(&mut rest)?;
            if version != VERSION {
                return None;
            }
            let handle = Self {
                cluster: ClusterId(take(&mut rest)?),
                topic: TopicId(u64::from_le_bytes(take(&mut rest)?)),
                partition: PartitionIndex(u32::from_le_bytes(take(&mut rest)?)),
                lane: Lane(u8::from_le_bytes(take(&mut rest)?)),
                first: RecordNumber(u64::from_le_bytes(take(&mut rest)?)),
                number: RecordNumber(u64::from_le_bytes(take(&mut rest)?)),
                key: TimerKey(
                    u64::from_le_bytes(take(&mut rest)?),
                    u64::from_le_bytes(take(&mut rest)?),
                ),
            };
            rest.is_empty().then_some(handle)
        };
        let mut handle = handle;
        handle().ok_or(NotAHandle)
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*taken)
}

/// What was stored of delayed records, beside what [`Stored`](super::produce::Stored) says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StoredTimers {
    /// The wall clock as read when they were appended: what their spans count from.
    pub wall: WallMs,
    /// The key of their batch.
    pub key: TimerKey,
}

/// What is to be done about a delayed record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimerAction {
    /// It shall never be published.
    Cancel,
    /// It shall be published at this time.
    At(WallMs),
    /// It shall be published after this span, in milliseconds from now.
    After(i64),
    /// Nothing: how does it stand?
    Look,
}

/// Ask about one delayed record. Answered by [`TimerOk`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskTimer {
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
    /// The number of the first record of its batch.
    pub first: RecordNumber,
    /// Its number.
    pub number: RecordNumber,
    /// Its key.
    pub key: TimerKey,
    /// What is to be done.
    pub action: TimerAction,
}
header!(AskTimer, AskTimer);

/// How a delayed record stands. The same to everybody who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimerState {
    /// It was cancelled, now or before: it is never published.
    Cancelled,
    /// It has another time now.
    Rescheduled {
        /// When it is due.
        due: WallMs,
    },
    /// It was published before, and has this offset.
    AlreadyFired {
        /// Where.
        offset: Offset,
    },
    /// It waits.
    Pending {
        /// When it is due.
        due: WallMs,
    },
    /// There is no such delayed record, or not any more: the handle is not this cluster's, was changed,
    /// is of a deleted topic, or retention has taken the record.
    NotFound,
}

/// The answer to [`AskTimer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerOk {
    /// How it stands.
    pub state: TimerState,
}
header!(TimerOk, TimerOk);

/// Ask which delayed records of a partition wait. Answered by [`TimersOk`], a page at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListTimers {
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
    /// From this number on.
    #[serde(default)]
    pub from: RecordNumber,
    /// Due at this time or later; the least value for all.
    pub due_from: WallMs,
    /// Due before this time; the greatest value for all.
    pub due_before: WallMs,
    /// So many at most; the broker may give fewer.
    pub max: u32,
}
header!(ListTimers, ListTimers);

/// The answer to [`ListTimers`]; in the body a list of [`ListedTimer`], by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TimersOk {
    /// Where to go on; none at the end.
    pub next: Option<RecordNumber>,
    /// How many wait in the partition altogether.
    #[serde(default)]
    pub pending: u64,
}
header!(TimersOk, TimersOk);

/// One that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ListedTimer {
    /// Its number: of its handle both the first one and its own.
    pub number: RecordNumber,
    /// When it is due.
    pub due: WallMs,
    /// Its key.
    pub key: TimerKey,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn handle() -> TimerHandle {
        TimerHandle {
            cluster: ClusterId([3; 16]),
            topic: TopicId(7),
            partition: PartitionIndex(2),
            lane: Lane(0),
            first: RecordNumber(1_000),
            number: RecordNumber(1_007),
            key: TimerKey(11, 12),
        }
    }

    #[test]
    fn a_handle_is_written_as_ever() {
        assert_eq!(
            handle().to_string(),
            "wwt-AQMDAwMDAwMDAwMDAwMDAwMHAAAAAAAAAAIAAAAA6AMAAAAAAADvAwAAAAAAAAsAAAAAAAAADAAAAAAAAAA"
        );
        assert_eq!(handle().to_string().parse(), Ok(handle()));
    }

    #[test]
    fn a_key_is_of_one_record_of_one_batch_of_one_owner() {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
        let key = |owner, first, number| {
            TimerKey::of_batch(&secret, OwnerId(owner), RecordNumber(first))
                .of_record(RecordNumber(number))
        };
        assert!(key(1, 2, 3).is(key(1, 2, 3)));
        for other in [key(2, 2, 3), key(1, 3, 3), key(1, 2, 4)] {
            assert!(!key(1, 2, 3).is(other));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_handle_or_none(text in "\\PC*", bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = text.parse::<TimerHandle>();
            let encoded = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes));
            if let Ok(handle) = encoded.parse::<TimerHandle>() {
                prop_assert_eq!(handle.to_string(), encoded);
            }
        }
    }
}

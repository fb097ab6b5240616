//! Topics: making, changing and describing them, and where their partitions are.

use serde::{Deserialize, Serialize};

use super::frame::header;
use crate::domain::id::{Lane, Offset, PartitionIndex, RecordNumber, TopicId};
use crate::domain::time::WallMs;

/// The default level at which a topic's producers are acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlushMode {
    /// Durable.
    #[default]
    Sync,
    /// Memory.
    Async,
}

/// What a topic is like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicConfig {
    /// How many partitions, 1 to 10 000.
    pub partitions: u32,
    /// Whether its records may have keys: then its number of partitions is fixed.
    #[serde(default = "yes")]
    pub keyed: bool,
    /// The default level of its producers.
    #[serde(default)]
    pub flush: FlushMode,
    /// How long records are kept at least, in milliseconds; for ever where absent.
    #[serde(default)]
    pub retention_ms: Option<u64>,
    /// How many bytes a partition keeps at least; all where absent.
    #[serde(default)]
    pub retention_bytes: Option<u64>,
    /// How many priority levels its records may have, 1 to 32; fixed for ever.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub levels: u8,
    /// How many delayed records may wait in one partition; as many as the broker allows where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timers_max: Option<u64>,
    /// How far ahead a record may be delayed, in milliseconds; as far as the broker allows where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms_max: Option<u64>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes fields by reference"
)]
fn is_one(levels: &u8) -> bool {
    *levels == 1
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes fields by reference"
)]
fn is_none(count: &u64) -> bool {
    *count == 0
}

fn yes() -> bool {
    true
}

impl TopicConfig {
    /// A keyed topic of so many partitions that keeps everything.
    #[must_use]
    pub fn new(partitions: u32) -> Self {
        Self {
            partitions,
            keyed: true,
            flush: FlushMode::Sync,
            retention_ms: None,
            retention_bytes: None,
            levels: 1,
            timers_max: None,
            delay_ms_max: None,
        }
    }
}

/// A topic as the broker knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TopicInfo {
    /// Its name.
    pub name: String,
    /// Its id, never reused.
    pub id: TopicId,
    /// What it is like.
    pub config: TopicConfig,
    /// How many lanes each partition has.
    #[serde(default = "one")]
    pub lanes: u8,
    /// Who leads its partitions, by index. Fewer than there are partitions: the last one leads the
    /// rest; none: the answering node leads all, at epoch 0.
    #[serde(default)]
    pub leaders: Vec<Leader>,
}

fn one() -> u8 {
    1
}

/// Who leads a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Leader {
    /// The node.
    pub node: u32,
    /// Since when, as a count of changes.
    pub epoch: u32,
}

/// A partition lane as described.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PartitionInfo {
    /// The partition.
    pub partition: PartitionIndex,
    /// The lane.
    #[serde(default)]
    pub lane: Lane,
    /// The first offset that is still there.
    pub start_offset: Offset,
    /// One past the last durable offset.
    pub high_watermark: Offset,
    /// One past the last offset given out, durable or not.
    pub log_end_offset: Offset,
    /// The next record number.
    #[serde(default)]
    pub next_number: RecordNumber,
}

/// Which topics there are and who leads them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Metadata {
    /// The topics by name; empty asks for all.
    #[serde(default)]
    pub topics: Vec<String>,
}
header!(Metadata, Metadata);

/// The answer to [`Metadata`]: of named topics those that exist.
///
/// A header is at most 65 535 bytes, so the list travels as the frame's *body*: a MessagePack array of
/// [`TopicInfo`] with named fields.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MetadataOk {
    /// How many topics the body lists.
    pub topics: u32,
}
header!(MetadataOk, MetadataOk);

/// Make a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateTopic {
    /// Its name.
    pub name: String,
    /// What it is to be like.
    pub config: TopicConfig,
}
header!(CreateTopic, CreateTopic);

/// A topic's configuration and partitions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DescribeTopic {
    /// Its name.
    pub name: String,
}
header!(DescribeTopic, DescribeTopic);

/// Change a topic: what is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AlterTopic {
    /// Its name.
    pub name: String,
    /// More partitions; refused for keyed topics.
    #[serde(default)]
    pub partitions: Option<u32>,
    /// The default level of its producers.
    #[serde(default)]
    pub flush: Option<FlushMode>,
    /// How long records are kept; `Some(None)` is for ever.
    #[serde(default, with = "change")]
    pub retention_ms: Option<Option<u64>>,
    /// How many bytes a partition keeps; `Some(None)` is all.
    #[serde(default, with = "change")]
    pub retention_bytes: Option<Option<u64>>,
    /// How many delayed records may wait in one partition; `Some(None)` sets no bound.
    #[serde(default, with = "change", skip_serializing_if = "Option::is_none")]
    pub timers_max: Option<Option<u64>>,
    /// How far ahead a record may be delayed, in milliseconds; `Some(None)` sets no bound.
    #[serde(default, with = "change", skip_serializing_if = "Option::is_none")]
    pub delay_ms_max: Option<Option<u64>>,
}
header!(AlterTopic, AlterTopic);

/// A change of an optional value on the wire: nil leaves it, 0 takes it away, anything else sets it.
/// (A retention or bound of 0 would keep or let in nothing and is no valid value.)
mod change {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::option_option, reason = "unchanged, unset and set are three")]
    #[expect(clippy::ref_option, reason = "the signature serde asks for")]
    pub(super) fn serialize<S: Serializer>(
        change: &Option<Option<u64>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        change.map(|value| value.unwrap_or(0)).serialize(serializer)
    }

    #[expect(clippy::option_option, reason = "unchanged, unset and set are three")]
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Option<u64>>, D::Error> {
        let change = Option::<u64>::deserialize(deserializer)?;
        Ok(change.map(|value| (value != 0).then_some(value)))
    }
}

/// Delete a topic and what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeleteTopic {
    /// Its name.
    pub name: String,
}
header!(DeleteTopic, DeleteTopic);

/// The answer to the requests about one topic: the topic as it is (or was, when deleted).
///
/// The partitions travel in the frame's *body*, a MessagePack array of [`PartitionInfo`] with named
/// fields; only `DescribeTopic` fills it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicOk {
    /// The topic.
    pub topic: TopicInfo,
    /// When it was deleted: how many delayed records waited in it, which are gone with it.
    #[serde(default, skip_serializing_if = "is_none")]
    pub timers: u64,
}
header!(TopicOk, TopicOk);

/// A place in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum At {
    /// The first offset that is still there.
    Earliest,
    /// One past the last durable offset.
    Latest,
    /// An offset.
    Offset(Offset),
    /// The first offset appended at that time or later.
    Time(WallMs),
}

/// Where a partition begins, ends, or was at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupOffset {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionIndex,
    /// The lane.
    #[serde(default)]
    pub lane: Lane,
    /// Which place.
    pub at: At,
}
header!(LookupOffset, LookupOffset);

/// The answer to `LookupOffset`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OffsetOk {
    /// The offset found.
    pub offset: Offset,
    /// The first offset that is still there.
    pub start_offset: Offset,
    /// One past the last durable offset.
    pub high_watermark: Offset,
    /// One past the last offset given out.
    pub log_end_offset: Offset,
}
header!(OffsetOk, OffsetOk);

/// Encodes a list that travels in a frame's body.
#[must_use]
pub fn encode_list<T: Serialize>(list: &[T]) -> bytes::Bytes {
    let encoded = rmp_serde::to_vec_named(list);
    assert!(encoded.is_ok(), "every list has a MessagePack form");
    encoded.unwrap_or_default().into()
}

/// The same of as many items from the first on as take up to `bytes_max` bytes, and of one at least: a page of
/// a list whose items have no bound of their own.
#[must_use]
pub fn encode_page<T: Serialize>(list: &[T], bytes_max: usize) -> bytes::Bytes {
    let mut bytes = 0;
    let fits = list.iter().take_while(|item| {
        let is_first = bytes == 0;
        bytes += rmp_serde::to_vec_named(item).map_or(0, |item| item.len());
        is_first || bytes <= bytes_max
    });
    let count = fits.count();
    encode_list(list.get(..count).unwrap_or(list))
}

/// Decodes a list that travels in a frame's body; an empty body is an empty list.
///
/// # Errors
/// What is wrong with it, for people.
pub fn decode_list<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<Vec<T>, String> {
    if body.is_empty() {
        return Ok(Vec::new());
    }
    let mut decoder = rmp_serde::Deserializer::from_read_ref(body);
    decoder.set_max_depth(16);
    Vec::deserialize(&mut decoder).map_err(|error| error.to_string())
}

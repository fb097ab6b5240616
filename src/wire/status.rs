//! How the broker is.

use serde::{Deserialize, Serialize};

use super::frame::header;

/// How is the broker?
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// Whether to list the actors.
    #[serde(default)]
    pub actors: bool,
    /// Which kind comes first, for whoever has those before: an answer lists [`ACTORS_MAX`] at most.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from_kind: String,
    /// And which id of it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub from_id: u64,
}
header!(Status, Status);

/// Actors one answer lists: they fit a frame.
pub const ACTORS_MAX: usize = 2_000;

/// The answer to `Status`. The actors travel in the frame's *body*, a MessagePack array of
/// [`ActorInfo`] with named fields ([`encode_list`](super::topic::encode_list)).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StatusOk {
    /// Milliseconds since the broker started.
    #[serde(default)]
    pub uptime_ms: u64,
    /// Open connections.
    #[serde(default)]
    pub connections: u64,
    /// Bytes of the commit log.
    #[serde(default)]
    pub log_bytes: u64,
    /// Segments of the commit log.
    #[serde(default)]
    pub segments: u64,
    /// Bytes admitted and not yet written.
    #[serde(default)]
    pub bytes_in_flight: u64,
    /// Why the log is sealed, if it is.
    #[serde(default)]
    pub sealed: Option<String>,
    /// The broker's version.
    #[serde(default)]
    pub version: String,
    /// Whether it takes and serves records.
    #[serde(default)]
    pub ready: bool,
    /// Reads of the commit log that were issued to the disk, by whomever, since the broker started.
    #[serde(default)]
    pub reads: u64,
    /// Bytes held of records read ahead of their time, and of what tells where they lie.
    #[serde(default)]
    pub read_ahead_bytes: u64,
    /// Records that were read ahead by the time they were wanted.
    #[serde(default)]
    pub read_ahead_hits: u64,
    /// Single records that were not, and were read when they were wanted.
    #[serde(default)]
    pub read_ahead_misses: u64,
    /// The kind of standing actor that failed, if one did: a restart recovers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}
header!(StatusOk, StatusOk);

/// One actor.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ActorInfo {
    /// What it is.
    pub kind: String,
    /// Whom it embodies.
    pub id: u64,
    /// Its name, for people.
    #[serde(default)]
    pub name: String,
    /// How many messages its mailbox takes.
    #[serde(default)]
    pub mailbox_capacity: u64,
    /// How many wait in it.
    #[serde(default)]
    pub mailbox_depth: u64,
    /// How many it has handled.
    #[serde(default)]
    pub handled: u64,
    /// How often it was re-created.
    #[serde(default)]
    pub restarts: u64,
    /// How many rows its tree has of it.
    #[serde(default)]
    pub rows: u64,
    /// How often the clock woke it; levels of the timing wheel only.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub wake_ups: u64,
    /// Alarms it passed on to the next coarser level; levels of the timing wheel only.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub overflow_up: u64,
    /// Alarms that fell from it into the next finer level; levels of the timing wheel only.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cascade_down: u64,
    /// Batches it looked into for keys or by a filter; groups only.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub batches_read: u64,
    /// Batches it skipped because their summary rules a match out; groups only.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub batches_skipped: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

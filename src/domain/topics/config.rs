//! What a topic is made with: its configuration, how it is changed, and what is let in.

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

use crate::domain::id::{LANES_MAX, PARTITIONS_MAX};
use crate::domain::partition::TimerLimits;
use crate::domain::rejection::Rejection;

/// Characters a topic's name may have at most.
pub const NAME_BYTES_MAX: usize = 200;

/// The most lanes (partitions times priority levels) of a topic.
pub const TOPIC_LANES_MAX: u32 = 65_536;

/// The level of acknowledgement a topic's producers get unless they ask for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum Flush {
    /// Acknowledged once on disk.
    #[default]
    Sync,
    /// Acknowledged from memory.
    Async,
}

/// What can be changed about a topic.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TopicConfig {
    /// Records with equal keys go to one partition, so the partition count is fixed.
    pub keyed: bool,
    /// The default level of its producers.
    pub flush: Flush,
    /// Records older than this many milliseconds may be dropped; none: kept for ever.
    pub retention_ms: Option<u64>,
    /// A partition keeps at least this many bytes and may drop what is older; none: unbounded.
    pub retention_bytes: Option<u64>,
    /// How many priority levels it has, 1 to 32, each a lane of every partition; fixed for ever. Absent in
    /// what was written before there were any, and where there is one.
    #[serde(default = "one_level")]
    pub levels: u8,
    /// Delayed records that may wait in one partition; none: as many as the broker allows. This and the
    /// next are absent in what was written before there were any, and where neither is set.
    #[serde(default)]
    pub timers_max: Option<u64>,
    /// How far ahead a record may be delayed, in milliseconds; none: as far as the broker allows.
    #[serde(default)]
    pub delay_ms_max: Option<u64>,
}

/// By place, the last ones left out where they say nothing, so that a topic that has nothing of them is
/// written as it was before there were any.
impl Serialize for TopicConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let is_bounded = self.timers_max.is_some() || self.delay_ms_max.is_some();
        let fields = match (is_bounded, self.levels) {
            (true, _) => 7,
            (false, 1) => 4,
            (false, _) => 5,
        };
        let mut out = serializer.serialize_struct("TopicConfig", fields)?;
        out.serialize_field("keyed", &self.keyed)?;
        out.serialize_field("flush", &self.flush)?;
        out.serialize_field("retention_ms", &self.retention_ms)?;
        out.serialize_field("retention_bytes", &self.retention_bytes)?;
        if fields > 4 {
            out.serialize_field("levels", &self.levels)?;
        }
        if is_bounded {
            out.serialize_field("timers_max", &self.timers_max)?;
            out.serialize_field("delay_ms_max", &self.delay_ms_max)?;
        }
        out.end()
    }
}

impl TopicConfig {
    /// The bounds of its delayed records.
    #[must_use]
    pub fn timers(&self) -> TimerLimits {
        TimerLimits {
            pending_max: self.timers_max,
            delay_max_ms: self.delay_ms_max,
        }
    }
}

fn one_level() -> u8 {
    1
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            keyed: true,
            flush: Flush::Sync,
            retention_ms: None,
            retention_bytes: None,
            levels: 1,
            timers_max: None,
            delay_ms_max: None,
        }
    }
}

/// What shall be different about a topic; what is absent stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TopicChange {
    /// The default level of its producers.
    pub flush: Option<Flush>,
    /// The retention by age; `Some(None)` keeps for ever.
    pub retention_ms: Option<Option<u64>>,
    /// The retention by size; `Some(None)` keeps all.
    pub retention_bytes: Option<Option<u64>>,
    /// How many delayed records may wait in a partition; `Some(None)` sets no bound.
    pub timers_max: Option<Option<u64>>,
    /// How far ahead a record may be delayed; `Some(None)` sets no bound.
    pub delay_ms_max: Option<Option<u64>>,
}

impl TopicChange {
    pub(super) fn apply(self, config: &TopicConfig) -> TopicConfig {
        TopicConfig {
            keyed: config.keyed,
            flush: self.flush.unwrap_or(config.flush),
            retention_ms: self.retention_ms.unwrap_or(config.retention_ms),
            retention_bytes: self.retention_bytes.unwrap_or(config.retention_bytes),
            levels: config.levels,
            timers_max: self.timers_max.unwrap_or(config.timers_max),
            delay_ms_max: self.delay_ms_max.unwrap_or(config.delay_ms_max),
        }
    }
}

/// Whether a topic may have this name.
///
/// # Errors
/// [`Rejection::InvalidName`], and why.
pub fn check_name(name: &str) -> Result<(), Rejection> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match name {
        "" => Err(Rejection::InvalidName("it is empty")),
        "." | ".." => Err(Rejection::InvalidName("it would be a path")),
        _ if name.len() > NAME_BYTES_MAX => {
            Err(Rejection::InvalidName("it is longer than 200 characters"))
        }
        _ if !name.chars().all(allowed) => Err(Rejection::InvalidName(
            "only ASCII letters, digits, '.', '_' and '-' are allowed",
        )),
        _ => Ok(()),
    }
}

pub(super) fn check_partitions(partitions: u32) -> Result<(), Rejection> {
    if (1..=PARTITIONS_MAX).contains(&partitions) {
        return Ok(());
    }
    Err(Rejection::InvalidConfig(format!(
        "partitions must be 1 to {PARTITIONS_MAX}, not {partitions}"
    )))
}

pub(super) fn check_config(config: &TopicConfig) -> Result<(), Rejection> {
    if config.retention_ms == Some(0) || config.retention_bytes == Some(0) {
        return Err(Rejection::InvalidConfig(
            "a retention of 0 would drop every record at once; leave it out to keep all".into(),
        ));
    }
    if config.timers_max == Some(0) || config.delay_ms_max == Some(0) {
        return Err(Rejection::InvalidConfig(
            "a bound of 0 would let no delayed record in; leave it out to set none".into(),
        ));
    }
    Ok(())
}

pub(super) fn check_lanes(partitions: u32, levels: u8) -> Result<(), Rejection> {
    if levels == 0 || levels > LANES_MAX {
        return Err(Rejection::InvalidConfig(format!(
            "a topic has 1 to {LANES_MAX} priority levels, not {levels}"
        )));
    }
    let lanes = partitions.saturating_mul(u32::from(levels));
    if lanes > TOPIC_LANES_MAX {
        return Err(Rejection::InvalidConfig(format!(
            "{partitions} partitions of {levels} priority levels are {lanes} lanes; a topic has at most {TOPIC_LANES_MAX}"
        )));
    }
    Ok(())
}

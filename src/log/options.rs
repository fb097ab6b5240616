//! The log's knobs and the relations between them.

use crate::domain::entry::PayloadFacts;
use crate::domain::id::ClusterId;

use super::LogError;
use super::flush::FLUSH_HEADER_BYTES;
use super::header::SEGMENT_BYTES_MAX;

/// Derives what a fold must know of a payload from its body; `None` when the body is no batch.
pub type FactsOf = fn(&[u8]) -> Option<PayloadFacts>;

/// How a log is opened. Sizes are in bytes.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// Size of a segment file. Default 64 MiB. Fixed when the log is created: an existing log keeps its
    /// own.
    pub segment_bytes: u64,
    /// The most one flush writes, headers included. Default 8 MiB.
    pub flush_bytes_max: u32,
    /// Segments kept in reserve for a full disk. Default 2: payloads use neither, decisions one,
    /// housekeeping both.
    pub spare_segments: u32,
    /// A segment is not made while the file system would have less than this left. Default 64 MiB.
    pub disk_free_bytes_min: u64,
    /// The cluster the log must belong to, and the one a new log is given; a new log without it gets a
    /// random one. Default none.
    pub cluster: Option<ClusterId>,
    /// Which of a node's logs it is. Default 0.
    pub log_id: u32,
    /// The checksum seed of a new log. Default none: a random one.
    pub seed: Option<u32>,
    /// Whether segments are made ready on the caller's thread instead of one of their own. Default false;
    /// simulations set it.
    pub prepare_inline: bool,
    /// Reads a payload's facts out of its body, for segments that have no summary yet. Keeps the batch
    /// format out of this room. Default: none are found.
    pub facts_of: FactsOf,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            flush_bytes_max: 8 << 20,
            spare_segments: 2,
            disk_free_bytes_min: 64 << 20,
            cluster: None,
            log_id: 0,
            seed: None,
            prepare_inline: false,
            facts_of: |_| None,
        }
    }
}

impl LogOptions {
    /// Checks the relations between the limits.
    ///
    /// # Errors
    /// [`LogError::Options`] naming the first relation that does not hold.
    pub fn check(&self, write_unit: u32) -> Result<(), LogError> {
        let unit = u64::from(write_unit);
        let refuse = |why: String| Err(LogError::Options { why });
        if unit < 4096 || !unit.is_power_of_two() {
            return refuse(format!(
                "the write unit {unit} is not a power of two from 4096 up"
            ));
        }
        if !self.segment_bytes.is_multiple_of(unit) || self.segment_bytes > SEGMENT_BYTES_MAX {
            return refuse(format!(
                "log.segment_bytes must be a multiple of {unit} and at most 1 TiB, not {}",
                self.segment_bytes
            ));
        }
        if u64::from(self.flush_bytes_max) < unit {
            return refuse(format!("log.flush_bytes_max must be at least {unit}"));
        }
        // An entry's summary record is never longer than twice its frame, so that any flush that is
        // allowed fits an empty segment together with its summary.
        let least = 3 * u64::from(self.flush_bytes_max) + 24 * unit;
        if self.segment_bytes < least {
            return refuse(format!(
                "log.segment_bytes ({}) must be at least {least}: three times log.flush_bytes_max and 24 units",
                self.segment_bytes
            ));
        }
        Ok(())
    }

    /// What the entries of one flush may take together, as [`super::encoded_length`] counts.
    pub(crate) fn capacity(&self) -> u32 {
        self.flush_bytes_max
            .saturating_sub(u32::try_from(FLUSH_HEADER_BYTES).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_contradict_each_other_are_refused_by_name() {
        LogOptions::default().check(4096).unwrap();
        let small = LogOptions {
            segment_bytes: 16 << 20,
            ..LogOptions::default()
        };
        let why = small.check(4096).unwrap_err().to_string();
        assert!(why.contains("log.segment_bytes"), "{why}");
        assert!(LogOptions::default().check(1000).is_err());
    }
}

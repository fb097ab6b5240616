//! What can go wrong with a log, and damage as it is reported.

use std::fmt;
use std::io;

use crate::domain::entry::EntryHeader;
use crate::domain::id::{ClusterId, LogPosition};

use super::header::SegmentNumber;

/// Why the log refuses or fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Limits that contradict each other.
    #[error("the log's limits contradict each other: {why}")]
    Options {
        /// Which.
        why: String,
    },
    /// Not enough room for this kind of entry. Nothing was written; the log goes on.
    #[error("no room in the log: {why}; free disk space, delete topics or shorten their retention")]
    Full {
        /// What is missing.
        why: String,
    },
    /// The run is longer than a flush may be. Nothing was written; the log goes on.
    #[error("a run of {bytes} bytes is longer than a flush may be ({bytes_max})")]
    TooLarge {
        /// Its length with headers.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// A write or sync failed earlier. Reads go on; a restart recovers.
    #[error(
        "the log is sealed after a failed write ({why}); reads go on, restart the broker to recover"
    )]
    Sealed {
        /// The first failure.
        why: String,
    },
    /// Written by a later version of the program.
    #[error(
        "{file} has log format {found}; this program knows up to {known}: use a newer waterwheel"
    )]
    NewerFormat {
        /// The segment's file.
        file: String,
        /// Its format.
        found: u16,
        /// The newest this program knows.
        known: u16,
    },
    /// A segment of another log lies in the directory.
    #[error(
        "{file} belongs to cluster {found_cluster} log {found_log}, not to cluster {cluster} log {log}: move it away or use its own data directory"
    )]
    Foreign {
        /// The segment's file.
        file: String,
        /// The cluster it names.
        found_cluster: ClusterId,
        /// The log it names.
        found_log: u32,
        /// The cluster expected.
        cluster: ClusterId,
        /// The log expected.
        log: u32,
    },
    /// Two files say they are the same segment.
    #[error("{file} and {other} both say they are segment {number}: move one of them away")]
    Twice {
        /// One file.
        file: String,
        /// The other.
        other: String,
        /// The segment.
        number: SegmentNumber,
    },
    /// There are files, but none can be told to be a segment.
    #[error(
        "no segment header can be read in {files} file(s) of the log directory, {file} among them; restore them, or move them away to begin a new log"
    )]
    NoHeader {
        /// One of them.
        file: String,
        /// How many there are.
        files: usize,
    },
    /// The directory holds no log.
    #[error("there is no log in this directory")]
    NoLog,
    /// No such segment, or it is still written to.
    #[error("segment {number} cannot be recycled: {why}")]
    NotRecyclable {
        /// The segment asked for.
        number: SegmentNumber,
        /// Why not.
        why: &'static str,
    },
    /// The environment broke.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

impl LogError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// A range of the log that cannot be read as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The segment's file.
    pub file: String,
    /// First byte.
    pub from: LogPosition,
    /// First byte behind it.
    pub to: LogPosition,
    /// What is wrong.
    pub reason: DamageReason,
    /// The entry that is lost, where its header can be read: its owner, numbers and offsets.
    pub entry: Option<EntryHeader>,
}

/// What is wrong with a damaged range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DamageReason {
    /// Both copies of a segment's header are rotten: the whole file is out of reach.
    SegmentHeader,
    /// A flush header that later flushes prove to have been there.
    FlushHeader,
    /// Entry headers that cannot be read.
    EntryHeader,
    /// A body that does not have its checksum; the header is whole.
    Body,
    /// Flushes are missing where the next one begins.
    FlushesMissing,
    /// Padding that is not zero. Nothing is lost.
    Padding,
    /// A closed segment's summary or footer. Nothing is lost: the segment is read in full.
    Summary,
    /// The device does not give the bytes.
    Unreadable,
}

impl DamageReason {
    /// Whether no entry is lost by it.
    #[must_use]
    pub fn is_harmless(self) -> bool {
        matches!(self, Self::Padding | Self::Summary)
    }
}

impl fmt::Display for DamageReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SegmentHeader => "segment header unreadable",
            Self::FlushHeader => "flush header unreadable",
            Self::EntryHeader => "entry headers unreadable",
            Self::Body => "body does not have its checksum",
            Self::FlushesMissing => "flushes missing",
            Self::Padding => "padding is not zero, nothing lost",
            Self::Summary => "summary unreadable, nothing lost",
            Self::Unreadable => "the device does not give the bytes",
        })
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} positions {}..{}: {}",
            self.file, self.from, self.to, self.reason
        )?;
        if let Some(entry) = &self.entry {
            write!(f, " (owner {}", entry.owner)?;
            if entry.offsets > 0 {
                let end = entry.first_offset.0.saturating_add(entry.offsets.into());
                write!(f, ", offsets {}..{end} lost", entry.first_offset)?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

/// Why an entry cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The position lies in no segment: recycled, or never written.
    #[error("position {position} lies in no segment of the log")]
    Gone {
        /// The position asked for.
        position: LogPosition,
    },
    /// The bytes are not what was written.
    #[error("damaged: {0}")]
    Damaged(Box<Damage>),
    /// The device does not give the bytes.
    #[error("reading {file}: {why}")]
    Io {
        /// The segment's file.
        file: String,
        /// What the system said.
        why: String,
    },
}

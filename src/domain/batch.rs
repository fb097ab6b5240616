//! The record batch: the unit that is sent, stored, served and checked.
//!
//! What comes in is records (to a [`BatchBuilder`]) or the bytes of a batch from a peer or the disk
//! (to [`BatchHeader::parse`], which looks at header and directory alone, or [`BatchView::parse`],
//! which checks the bodies too). What goes out is the batch's bytes, or slices of them.
//!
//! # Layout, version 1 (integers little-endian)
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | compression: 0 none, 1 lz4 (raw block), 2 zstd |
//! | 2 | 2 | flags, see [`flags`]; unknown ones are refused |
//! | 4 | 4 | count of records, 1 to 65 536 |
//! | 8 | 8 | producer id; 0 = not idempotent |
//! | 16 | 4 | producer epoch |
//! | 20 | 8 | the producer's sequence number of the first record |
//! | 28 | 8 | transaction number; 0 = none |
//! | 36 | 8 | base timestamp, i64 Unix milliseconds: the least of the batch |
//! | 44 | 4 | length of the directory |
//! | 48 | 4 | length of the stored body section |
//! | 52 | 4 | length of the bodies uncompressed |
//! | 56 | 4 | CRC-32C of the stored body section; 0 where it is not compressed |
//! | 60 | 4 | CRC-32C of bytes 0 to 59 and the directory |
//! | 64 | | the directory, then the body section |
//!
//! The directory is columns of fixed width, each holding one value per record, in this order; only the
//! first two are always there:
//!
//! | column | width | present | what |
//! |---|---|---|---|
//! | body length | 4 | always | of the uncompressed body |
//! | body CRC | 4 | always | CRC-32C of the uncompressed body |
//! | key hash | 8 | `KEYS` | [`key_hash`](super::key::key_hash); 0 = no key |
//! | tag hash | 4 | `TAGS` | [`tag_hash`](super::key::tag_hash); 0 = no tag |
//! | priority | 1 | `PRIORITIES` | 0 is the ordinary one |
//! | timestamp delta | 4 | `TIMESTAMPS` | milliseconds above the base timestamp |
//! | delivery kind | 1 | `DELIVERIES` | 0 now, 1 after a span, 2 at a time |
//! | delivery value | 8 | `DELIVERIES` | i64: 0, the span in ms, or Unix milliseconds |
//! | stored length | 4 | `STORED_LENGTHS` | of the body as stored, where bodies are compressed one by one |
//!
//! A batch is compressed as a whole where all its records are immediate; record by record (flag
//! `STORED_LENGTHS`) where one is delayed, prioritised or in a transaction. A body whose stored length
//! equals its plain length is stored plain.
//!
//! Invariants: B1, parsing is total, and nothing is allocated before its length was checked; B2, a
//! parsed view's lengths add up, so every record's slice is there; B3, a parsed view's checksums held;
//! B4, nothing is decompressed beyond the lengths in the directory; B5, the bytes of a batch never
//! change on their way from producer to consumer.

mod builder;
mod compression;
mod cut;
mod head;
mod header;
mod pieces;
mod view;

pub use builder::{BatchBuilder, BatchFull, BatchStamp};
pub use compression::Compression;
pub use cut::{Cut, Opened, Taken};
pub use head::{BatchHead, head_bytes_max};
pub use header::{BatchHeader, Delivery, facts};
pub use pieces::{CheckedBatch, check};
pub use view::{BatchView, Bodies, Slot};

/// The version this code writes, and the only one it reads.
pub const BATCH_VERSION: u8 = 1;

/// The length of the fixed header in bytes.
pub const BATCH_HEADER_BYTES: usize = 64;

/// The most bytes of a batch, plain or stored, unless configured otherwise.
pub const BATCH_BYTES_MAX_DEFAULT: usize = 1024 * 1024;

/// The most bytes of a batch any configuration may allow: what a parser believes at most.
pub const BATCH_BYTES_CEILING: usize = 16 * 1024 * 1024;

/// The most records of a batch.
pub const BATCH_RECORDS_MAX: usize = 65_536;

/// The bits of a batch's flags: which optional columns its directory has.
pub mod flags {
    /// A key hash per record.
    pub const KEYS: u16 = 1;
    /// A tag hash per record.
    pub const TAGS: u16 = 1 << 1;
    /// A priority per record.
    pub const PRIORITIES: u16 = 1 << 2;
    /// A timestamp delta per record.
    pub const TIMESTAMPS: u16 = 1 << 3;
    /// A delivery kind and value per record.
    pub const DELIVERIES: u16 = 1 << 4;
    /// A stored length per record: bodies are compressed one by one.
    pub const STORED_LENGTHS: u16 = 1 << 5;
    /// Every bit that has a meaning.
    pub const KNOWN: u16 = KEYS | TAGS | PRIORITIES | TIMESTAMPS | DELIVERIES | STORED_LENGTHS;
}

/// Why bytes are no batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// The bytes end early or go on too long.
    #[error("the batch is {actual} bytes long; its header says {expected}")]
    Length {
        /// What the header says, or the length of a header.
        expected: usize,
        /// What is there.
        actual: usize,
    },
    /// A version this code does not read.
    #[error("batch version {0} is unknown here; version {BATCH_VERSION} is read")]
    Version(u8),
    /// A compression this code does not know.
    #[error("batch compression {0} is unknown here; 0 (none), 1 (lz4) and 2 (zstd) are")]
    Compression(u8),
    /// Flags this code does not know, or that contradict each other or the compression.
    #[error("the batch's flags {0:#06x} are unknown or contradict the rest of its header")]
    Flags(u16),
    /// No records, or too many.
    #[error("the batch has {0} records; it may have 1 to {BATCH_RECORDS_MAX}")]
    Count(u32),
    /// More bytes than any batch may have.
    #[error("the batch has {0} bytes; no batch may have more than {BATCH_BYTES_CEILING}")]
    TooLarge(u64),
    /// The directory's length, or the lengths in it, do not add up.
    #[error("the lengths in the batch's directory do not add up")]
    Directory,
    /// The header's checksum does not hold.
    #[error("the checksum of the batch's header and directory does not hold")]
    HeaderChecksum,
    /// The checksum of a compressed body section does not hold.
    #[error("the checksum of the batch's compressed bodies does not hold")]
    BodyChecksum,
    /// A record's checksum does not hold.
    #[error("the checksum of record {0} of the batch does not hold")]
    RecordChecksum(u32),
    /// A compressed body does not decompress to the length the directory gives.
    #[error("the batch's compressed bodies do not open to the lengths in its directory")]
    Decompression,
}

impl BatchError {
    /// Whether a checksum failed, as opposed to a structure that makes no sense.
    #[must_use]
    pub fn is_checksum(&self) -> bool {
        matches!(
            self,
            Self::HeaderChecksum | Self::BodyChecksum | Self::RecordChecksum(_)
        )
    }

    /// Whether a later version of this code might read the batch.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Version(_) | Self::Compression(_))
    }
}

#[cfg(test)]
mod tests;

//! A batch's header and directory, checked without looking at the bodies.

use std::ops::Range;

use bytes::Bytes;

use super::compression::Compression;
use super::{
    BATCH_BYTES_CEILING, BATCH_HEADER_BYTES, BATCH_RECORDS_MAX, BATCH_VERSION, BatchError, flags,
};
use crate::domain::entry::PayloadFacts;
use crate::domain::id::{ProducerEpoch, ProducerId, ProducerSequence, TransactionNumber};
use crate::domain::time::WallMs;

/// When a record becomes visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Delivery {
    /// When it is durable.
    #[default]
    Now,
    /// A span in milliseconds after the wall time of its append.
    After(i64),
    /// At a time.
    At(WallMs),
}

/// What the fixed header says, checked against the directory it was parsed with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchHeader {
    /// How the bodies are stored.
    pub compression: Compression,
    /// Which columns there are.
    pub flags: u16,
    /// How many records; 1 to 65 536.
    pub count: u32,
    /// Who sent it; 0 = not idempotent.
    pub producer: ProducerId,
    /// The sender's epoch.
    pub epoch: ProducerEpoch,
    /// The sender's number of the first record.
    pub first_sequence: ProducerSequence,
    /// The transaction it belongs to; 0 = none.
    pub transaction: TransactionNumber,
    /// The least timestamp.
    pub base_timestamp: WallMs,
    /// The length of the directory in bytes.
    pub directory_bytes: usize,
    /// The length of the body section in bytes, as stored.
    pub stored_bytes: usize,
    /// The length of all bodies in bytes, uncompressed.
    pub plain_bytes: usize,
    /// The checksum of the stored body section; 0 where it is not compressed.
    pub body_crc: u32,
}

/// The optional columns with their widths, in the order of the layout.
const COLUMNS: [(u16, usize); 6] = [
    (flags::KEYS, 8),
    (flags::TAGS, 4),
    (flags::PRIORITIES, 1),
    (flags::TIMESTAMPS, 4),
    (flags::DELIVERIES, 9),
    (flags::STORED_LENGTHS, 4),
];

/// Bytes a record takes in a directory with these flags.
pub(super) fn row_bytes(flags: u16) -> usize {
    COLUMNS
        .iter()
        .filter(|(flag, _)| flags & flag != 0)
        .fold(8, |sum, (_, width)| sum + width)
}

/// Reads little-endian integers from the front of a slice.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], BatchError> {
        let short = BatchError::Length {
            expected: BATCH_HEADER_BYTES,
            actual: self.0.len(),
        };
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(short)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, BatchError> {
        self.take().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, BatchError> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, BatchError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, BatchError> {
        self.take().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Result<i64, BatchError> {
        self.take().map(i64::from_le_bytes)
    }

    /// A length that no batch may exceed.
    fn length(&mut self) -> Result<usize, BatchError> {
        let length = self.u32()?;
        match usize::try_from(length) {
            Ok(bytes) if bytes <= BATCH_BYTES_CEILING => Ok(bytes),
            Ok(_) | Err(_) => Err(BatchError::TooLarge(u64::from(length))),
        }
    }
}

impl BatchHeader {
    /// Parses the header and checks it and the directory behind it: checksum, flags, and that the
    /// lengths in the directory add up. `bytes` may go on after the directory; the bodies are neither
    /// needed nor looked at.
    ///
    /// # Errors
    /// [`BatchError`] where the bytes do not start with the header and directory of a batch.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        let (header, header_crc) = Self::fields(bytes)?;
        header.check()?;
        let end = BATCH_HEADER_BYTES + header.directory_bytes;
        let short = BatchError::Length {
            expected: end,
            actual: bytes.len(),
        };
        let directory = bytes.get(BATCH_HEADER_BYTES..end).ok_or(short)?;
        let fixed = bytes.get(..BATCH_HEADER_BYTES - 4).ok_or(short)?;
        if crate::domain::checksum::crc32c_append(crate::domain::checksum::crc32c(fixed), directory)
            != header_crc
        {
            return Err(BatchError::HeaderChecksum);
        }
        header.check_lengths(directory)?;
        header.check_deliveries(directory)?;
        Ok(header)
    }

    /// The length of the whole batch in bytes.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        BATCH_HEADER_BYTES + self.directory_bytes + self.stored_bytes
    }

    /// The most a batch-size limit has to bear: the whole batch as stored or as opened.
    #[must_use]
    pub fn limit_bytes(&self) -> usize {
        BATCH_HEADER_BYTES + self.directory_bytes + self.stored_bytes.max(self.plain_bytes)
    }

    /// Whether bodies are compressed one by one.
    #[must_use]
    pub fn is_per_record(&self) -> bool {
        self.has(flags::STORED_LENGTHS)
    }

    /// Whether the batch has the columns of these flags.
    #[must_use]
    pub fn has(&self, wanted: u16) -> bool {
        self.flags & wanted == wanted
    }

    /// How many records, for indexing.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::try_from(self.count).unwrap_or(usize::MAX)
    }

    /// Never: a batch has a record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The range of an optional column within the directory, empty where it is absent.
    pub(super) fn column(&self, wanted: u16) -> Range<usize> {
        let rows = self.len();
        let mut start = 8 * rows;
        for (flag, width) in COLUMNS {
            let width = if self.flags & flag == 0 { 0 } else { width };
            if flag == wanted {
                return start..start + width * rows;
            }
            start += width * rows;
        }
        start..start
    }

    fn fields(bytes: &[u8]) -> Result<(Self, u32), BatchError> {
        let mut reader = Reader(bytes);
        let version = reader.u8()?;
        if version != BATCH_VERSION {
            return Err(BatchError::Version(version));
        }
        let compression = reader.u8()?;
        let header = Self {
            compression: Compression::from_byte(compression)
                .ok_or(BatchError::Compression(compression))?,
            flags: reader.u16()?,
            count: reader.u32()?,
            producer: ProducerId(reader.u64()?),
            epoch: ProducerEpoch(reader.u32()?),
            first_sequence: ProducerSequence(reader.u64()?),
            transaction: TransactionNumber(reader.u64()?),
            base_timestamp: WallMs(reader.i64()?),
            directory_bytes: reader.length()?,
            stored_bytes: reader.length()?,
            plain_bytes: reader.length()?,
            body_crc: reader.u32()?,
        };
        let header_crc = reader.u32()?;
        Ok((header, header_crc))
    }

    /// What can be said of the fields alone.
    fn check(&self) -> Result<(), BatchError> {
        if self.is_empty() || self.len() > BATCH_RECORDS_MAX {
            return Err(BatchError::Count(self.count));
        }
        let whole = self.compression != Compression::None && !self.is_per_record();
        let immediate = self.transaction == TransactionNumber(0)
            && self.flags & (flags::PRIORITIES | flags::DELIVERIES) == 0;
        let contradiction = (whole && !immediate)
            || (self.compression == Compression::None && self.is_per_record());
        if self.flags & !flags::KNOWN != 0 || contradiction {
            return Err(BatchError::Flags(self.flags));
        }
        let plain = self.compression == Compression::None;
        if self.directory_bytes != row_bytes(self.flags) * self.len()
            || (plain && (self.stored_bytes != self.plain_bytes || self.body_crc != 0))
        {
            return Err(BatchError::Directory);
        }
        let bytes = self.limit_bytes();
        if bytes > BATCH_BYTES_CEILING {
            return Err(BatchError::TooLarge(bytes as u64));
        }
        Ok(())
    }

    fn check_lengths(&self, directory: &[u8]) -> Result<(), BatchError> {
        let plain = column_sum(directory.get(..4 * self.len()).unwrap_or_default());
        if plain != self.plain_bytes as u64 {
            return Err(BatchError::Directory);
        }
        if self.is_per_record() {
            let stored = directory
                .get(self.column(flags::STORED_LENGTHS))
                .unwrap_or_default();
            let longer = integers(stored)
                .zip(integers(directory))
                .any(|(stored, plain)| stored > plain);
            if column_sum(stored) != self.stored_bytes as u64 || longer {
                return Err(BatchError::Directory);
            }
        }
        Ok(())
    }

    fn check_deliveries(&self, directory: &[u8]) -> Result<(), BatchError> {
        let column = self.column(flags::DELIVERIES);
        let column = directory.get(column).unwrap_or_default();
        let rows = column.len() / 9;
        let (kinds, values) = column.split_at_checked(rows).unwrap_or_default();
        let sound = kinds
            .iter()
            .zip(values.chunks_exact(8))
            .all(|(kind, value)| delivery(*kind, value).is_some());
        if sound {
            Ok(())
        } else {
            Err(BatchError::Directory)
        }
    }
}

/// The delivery a kind and a value stand for: spans are not negative, "now" has no value.
pub(super) fn delivery(kind: u8, value: &[u8]) -> Option<Delivery> {
    let value = i64::from_le_bytes(*value.first_chunk()?);
    match kind {
        0 if value == 0 => Some(Delivery::Now),
        1 if value >= 0 => Some(Delivery::After(value)),
        2 => Some(Delivery::At(WallMs(value))),
        _ => None,
    }
}

/// The 32-bit integers of a column.
pub(super) fn integers(column: &[u8]) -> impl Iterator<Item = u32> + '_ {
    column
        .chunks_exact(4)
        .map(|bytes| bytes.first_chunk().map_or(0, |b| u32::from_le_bytes(*b)))
}

fn column_sum(column: &[u8]) -> u64 {
    integers(column).map(u64::from).sum()
}

/// What a fold must know of a batch, from its header and directory alone: what recovery of the log
/// asks. Nothing where the bytes are no batch.
///
/// The tag summary sets, for each tag, the bit that the six high bits of its hash name.
#[must_use]
pub fn facts(bytes: &[u8]) -> Option<PayloadFacts> {
    let header = BatchHeader::parse(bytes).ok()?;
    let directory = bytes.get(BATCH_HEADER_BYTES..)?;
    Some(header.facts(directory))
}

impl BatchHeader {
    /// The priority all records have; none where they differ.
    pub(super) fn level(&self, directory: &[u8]) -> Option<u8> {
        let column = directory.get(self.column(flags::PRIORITIES))?;
        match column.split_first() {
            None => Some(0),
            Some((first, rest)) => rest.iter().all(|level| level == first).then_some(*first),
        }
    }

    pub(super) fn facts(&self, directory: &[u8]) -> PayloadFacts {
        let tags = directory.get(self.column(flags::TAGS)).unwrap_or_default();
        let deliveries = directory
            .get(self.column(flags::DELIVERIES))
            .unwrap_or_default();
        PayloadFacts {
            producer: self.producer,
            epoch: self.epoch,
            first_sequence: self.first_sequence,
            transaction: self.transaction,
            flags: self.flags,
            tags: integers(tags)
                .filter(|hash| *hash != 0)
                .fold(0, |bits, hash| bits | 1 << (hash >> 26)),
            deliveries: Bytes::copy_from_slice(deliveries),
        }
    }
}

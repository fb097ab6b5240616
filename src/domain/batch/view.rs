//! A batch that was checked: its columns and bodies by index.

use bytes::Bytes;

use super::compression::Compression;
use super::header::{self, BatchHeader, Delivery, integers};
use super::{BATCH_HEADER_BYTES, BatchError, flags};
use crate::domain::checksum::Shift;
use crate::domain::entry::PayloadFacts;
use crate::domain::time::WallMs;

/// Lengths checked as a whole are prepared for: so many, and one more for so many records.
const PREPARED_MIN: usize = 1;
const RECORDS_PER_PREPARED: usize = 8;

/// A whole batch whose structure and checksums were found to hold (B2, B3).
///
/// Of a plain batch every record's checksum was checked; of a compressed one the checksum of what is
/// stored. Opening it ([`BatchView::bodies`]) checks the records.
#[derive(Debug, Clone)]
pub struct BatchView {
    header: BatchHeader,
    bytes: Bytes,
}

/// One record's row of the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Slot {
    /// The length of the body, uncompressed.
    pub body_bytes: u32,
    /// The checksum of the body, uncompressed.
    pub body_crc: u32,
    /// The hash of the key; 0 = no key.
    pub key_hash: u64,
    /// The hash of the tag; 0 = no tag.
    pub tag_hash: u32,
    /// The priority; 0 is the ordinary one.
    pub priority: u8,
    /// When it happened, as its sender says.
    pub timestamp: WallMs,
    /// When it becomes visible.
    pub delivery: Delivery,
}

impl BatchView {
    /// Parses and checks a whole batch, in one pass and without copying.
    ///
    /// # Errors
    /// [`BatchError`] where the bytes are not exactly one batch whose checksums hold.
    pub fn parse(bytes: &Bytes) -> Result<Self, BatchError> {
        let view = Self::parse_structure(bytes)?;
        view.check_bodies()?;
        Ok(view)
    }

    /// The same for whoever was served the batch by a broker, which looked at every record's checksum
    /// when it took it: here they are checked together. What rots on the way or on a disk is found as
    /// surely, and named by its record; only a sender could make checksums that lie each and are right
    /// together.
    ///
    /// # Errors
    /// As [`BatchView::parse`].
    pub fn parse_served(bytes: &Bytes) -> Result<Self, BatchError> {
        let view = Self::parse_structure(bytes)?;
        if view.header.compression != Compression::None || !view.is_sound_as_a_whole() {
            view.check_bodies()?;
        }
        Ok(view)
    }

    /// The same without the body checksums: for whoever is about to check them while reading.
    ///
    /// # Errors
    /// [`BatchError`] where the bytes are not exactly one batch.
    pub fn parse_structure(bytes: &Bytes) -> Result<Self, BatchError> {
        let header = BatchHeader::parse(bytes)?;
        if bytes.len() != header.total_bytes() {
            return Err(BatchError::Length {
                expected: header.total_bytes(),
                actual: bytes.len(),
            });
        }
        Ok(Self {
            header,
            bytes: bytes.clone(),
        })
    }

    /// Header and directory alone, for whoever keeps the bodies elsewhere.
    pub(super) fn of_head(header: BatchHeader, head: Bytes) -> Self {
        Self {
            header,
            bytes: head,
        }
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The batch as it was parsed.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What a fold must know of it.
    #[must_use]
    pub fn facts(&self) -> PayloadFacts {
        self.header.facts(self.directory())
    }

    /// One record's row of the directory.
    #[must_use]
    pub fn slot(&self, index: usize) -> Option<Slot> {
        if index >= self.header.len() {
            return None;
        }
        Some(Slot {
            body_bytes: u32::from_le_bytes(chunk_at(self.directory(), 4 * index)?),
            body_crc: u32::from_le_bytes(chunk_at(
                self.directory(),
                4 * (self.header.len() + index),
            )?),
            key_hash: u64::from_le_bytes(self.cell(flags::KEYS, index).unwrap_or_default()),
            tag_hash: u32::from_le_bytes(self.cell(flags::TAGS, index).unwrap_or_default()),
            priority: u8::from_le_bytes(self.cell(flags::PRIORITIES, index).unwrap_or_default()),
            timestamp: self.timestamp(index),
            delivery: self.delivery(index),
        })
    }

    /// When a record happened, as its sender says.
    #[must_use]
    pub fn timestamp(&self, index: usize) -> WallMs {
        let delta = u32::from_le_bytes(self.cell(flags::TIMESTAMPS, index).unwrap_or_default());
        WallMs(
            self.header
                .base_timestamp
                .0
                .saturating_add(i64::from(delta)),
        )
    }

    /// The bodies, plain, in order: slices of the batch where it is not compressed, of one buffer (or
    /// one per record) where it is. Every record's checksum is checked on the way (B3, B4).
    ///
    /// # Errors
    /// [`BatchError::Decompression`] where a batch compressed as a whole does not open.
    pub fn bodies(&self) -> Result<Bodies, BatchError> {
        let stored = self.stored();
        let whole = self.header.compression != Compression::None && !self.header.is_per_record();
        let bodies = if whole {
            let mut plain = vec![0; self.header.plain_bytes];
            self.header.compression.open(&stored, &mut plain)?;
            Bytes::from(plain)
        } else {
            stored
        };
        Ok(Bodies {
            check: self.header.compression != Compression::None,
            batch: self.clone(),
            bodies,
            index: 0,
        })
    }

    pub(super) fn directory(&self) -> &[u8] {
        self.bytes
            .get(BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + self.header.directory_bytes)
            .unwrap_or_default()
    }

    fn stored(&self) -> Bytes {
        self.bytes
            .slice(BATCH_HEADER_BYTES + self.header.directory_bytes..)
    }

    /// The value of a record in an optional column.
    fn cell<const N: usize>(&self, column: u16, index: usize) -> Option<[u8; N]> {
        let column = self.directory().get(self.header.column(column))?;
        chunk_at(column, N * index)
    }

    fn delivery(&self, index: usize) -> Delivery {
        let column = self.directory().get(self.header.column(flags::DELIVERIES));
        let column = column.unwrap_or_default();
        let (kinds, values) = column
            .split_at_checked(column.len() / 9)
            .unwrap_or_default();
        kinds
            .get(index)
            .zip(values.get(8 * index..))
            .and_then(|(kind, value)| header::delivery(*kind, value))
            .unwrap_or_default()
    }

    fn check_bodies(&self) -> Result<(), BatchError> {
        let stored = self.stored();
        if self.header.compression != Compression::None {
            return if crate::domain::checksum::crc32c(&stored) == self.header.body_crc {
                Ok(())
            } else {
                Err(BatchError::BodyChecksum)
            };
        }
        let mut rest: &[u8] = &stored;
        for (index, (length, crc)) in (0..).zip(self.lengths_and_crcs()) {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let (body, after) = rest.split_at_checked(length).ok_or(BatchError::Directory)?;
            if crate::domain::checksum::crc32c(body) != crc {
                return Err(BatchError::RecordChecksum(index));
            }
            rest = after;
        }
        Ok(())
    }

    /// Whether the records' checksums, put together, are that of all bodies: one pass over long
    /// stretches costs a third of one over many short ones. Only tried where most records are of one
    /// length, since moving a checksum by another length has to be prepared.
    fn is_sound_as_a_whole(&self) -> bool {
        let mut shift = Shift::by(0);
        let (mut of, mut whole, mut prepared) = (0, 0, 0);
        for (length, crc) in self.lengths_and_crcs() {
            if length != of {
                prepared += 1;
                if prepared > PREPARED_MIN + self.header.len() / RECORDS_PER_PREPARED {
                    return false;
                }
                shift = Shift::by(usize::try_from(length).unwrap_or(usize::MAX));
                of = length;
            }
            whole = shift.combine(whole, crc);
        }
        whole == crate::domain::checksum::crc32c(&self.stored())
    }

    fn lengths_and_crcs(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let (lengths, crcs) = self
            .directory()
            .split_at_checked(4 * self.header.len())
            .unwrap_or_default();
        integers(lengths).zip(integers(crcs))
    }
}

fn chunk_at<const N: usize>(column: &[u8], at: usize) -> Option<[u8; N]> {
    column.get(at..)?.first_chunk().copied()
}

/// The plain bodies of a batch, in order, with their indexes.
#[derive(Debug)]
pub struct Bodies {
    batch: BatchView,
    /// What is left of the bodies.
    bodies: Bytes,
    index: usize,
    /// Whether the records' checksums are still to be checked.
    check: bool,
}

impl Iterator for Bodies {
    type Item = Result<(usize, Bytes), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.index;
        let directory = self.batch.directory();
        if index >= self.batch.header.len() {
            return None;
        }
        self.index += 1;
        let length = u32::from_le_bytes(chunk_at(directory, 4 * index)?);
        let crc = u32::from_le_bytes(chunk_at(directory, 4 * (self.batch.header.len() + index))?);
        Some(self.take(index, length, crc).map(|body| (index, body)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.batch.header.len() - self.index;
        (left, Some(left))
    }
}

impl Bodies {
    fn take(&mut self, index: usize, length: u32, crc: u32) -> Result<Bytes, BatchError> {
        let stored_length = if self.batch.header.is_per_record() {
            u32::from_le_bytes(
                self.batch
                    .cell(flags::STORED_LENGTHS, index)
                    .unwrap_or_default(),
            )
        } else {
            length
        };
        let plain_bytes = usize::try_from(length).unwrap_or(usize::MAX);
        let stored_bytes = usize::try_from(stored_length).unwrap_or(usize::MAX);
        if stored_bytes > self.bodies.len() || plain_bytes > self.batch.header.plain_bytes {
            return Err(BatchError::Directory);
        }
        let stored = self.bodies.split_to(stored_bytes);
        let body = if stored_bytes == plain_bytes {
            stored
        } else {
            let mut plain = vec![0; plain_bytes];
            self.batch.header.compression.open(&stored, &mut plain)?;
            Bytes::from(plain)
        };
        if self.check && crate::domain::checksum::crc32c(&body) != crc {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            return Err(BatchError::RecordChecksum(index));
        }
        Ok(body)
    }
}

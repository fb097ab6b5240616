//! A batch's directory, kept small, for whoever reads single records of it from the disk.
//!
//! Timers that fire in another order than they were written in want one record here and one there. With
//! the directory at hand the bytes of one record can be read alone: where they lie, and under which
//! checksum, is known. What a batch of ordinary records costs is about five bytes a record.
//!
//! Invariants: B1 and B4 hold; B7, a record taken here is the one [`Opened`](super::Opened) would take,
//! but for its delivery, which is forgotten: what published it says when it was due. Its checksum is
//! checked, because whoever reads a part of an entry cannot check the entry's.

use std::ops::Range;

use bytes::Bytes;

use super::compression::Compression;
use super::cut::{Origin, Taken};
use super::header::{BatchHeader, Delivery, integers, row_bytes};
use super::view::Slot;
use super::{BATCH_HEADER_BYTES, BatchError, flags};
use crate::domain::checksum::crc32c;
use crate::domain::id::ProducerSequence;
use crate::domain::time::WallMs;

/// The longest header and directory of a batch of so many records, in bytes.
#[must_use]
pub fn head_bytes_max(records: u32) -> usize {
    let records = usize::try_from(records).unwrap_or(usize::MAX);
    BATCH_HEADER_BYTES.saturating_add(row_bytes(flags::KNOWN).saturating_mul(records))
}

/// A column of 32-bit numbers that are often all the same, or all small.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Column {
    Same(u32),
    Small(Box<[u8]>),
    Each(Box<[u32]>),
}

impl Column {
    fn of(column: &[u8]) -> Self {
        let mut numbers = integers(column);
        let first = numbers.next().unwrap_or(0);
        if numbers.all(|number| number == first) {
            return Self::Same(first);
        }
        let small: Result<Box<[u8]>, _> = integers(column).map(u8::try_from).collect();
        small.map_or_else(|_| Self::Each(integers(column).collect()), Self::Small)
    }

    fn at(&self, index: usize) -> u32 {
        match self {
            Self::Same(number) => *number,
            Self::Small(numbers) => numbers.get(index).copied().map_or(0, u32::from),
            Self::Each(numbers) => numbers.get(index).copied().unwrap_or(0),
        }
    }

    fn before(&self, index: usize) -> u64 {
        match self {
            Self::Same(number) => u64::from(*number).saturating_mul(index as u64),
            Self::Small(_) | Self::Each(_) => (0..index).map(|at| u64::from(self.at(at))).sum(),
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Self::Same(_) => 0,
            Self::Small(numbers) => numbers.len(),
            Self::Each(numbers) => 4 * numbers.len(),
        }
    }
}

/// What of a batch's header and directory is needed to take a record out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchHead {
    header: BatchHeader,
    plain: Column,
    /// Where bodies are compressed one by one.
    stored: Option<Column>,
    timestamps: Column,
    /// The columns of checksums, key hashes, tag hashes and priorities, behind each other.
    columns: Box<[u8]>,
}

impl BatchHead {
    /// Reads the head of a batch; `bytes` may go on after the directory.
    ///
    /// # Errors
    /// [`BatchError`] where the bytes do not start with header and directory of a batch, or where it is
    /// compressed as a whole, so that no record can be read alone.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        let header = BatchHeader::parse(bytes)?;
        if header.compression != Compression::None && !header.is_per_record() {
            return Err(BatchError::Compression(header.compression as u8));
        }
        let directory = bytes
            .get(BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + header.directory_bytes)
            .ok_or(BatchError::Directory)?;
        let column = |flag| directory.get(header.column(flag)).unwrap_or_default();
        let count = header.len();
        let stored = header
            .is_per_record()
            .then(|| Column::of(column(flags::STORED_LENGTHS)));
        let mut columns = Vec::new();
        columns.extend_from_slice(directory.get(4 * count..8 * count).unwrap_or_default());
        for flag in [flags::KEYS, flags::TAGS, flags::PRIORITIES] {
            columns.extend_from_slice(column(flag));
        }
        Ok(Self {
            plain: Column::of(directory.get(..4 * count).unwrap_or_default()),
            stored,
            timestamps: Column::of(column(flags::TIMESTAMPS)),
            columns: columns.into_boxed_slice(),
            header,
        })
    }

    /// What it takes in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.columns.len()
            + self.plain.heap_bytes()
            + self.stored.as_ref().map_or(0, Column::heap_bytes)
            + self.timestamps.heap_bytes()
    }

    /// Where in the batch the stored body of a record lies; none where there is no such record.
    #[must_use]
    pub fn range(&self, index: usize) -> Option<Range<u64>> {
        if index >= self.header.len() {
            return None;
        }
        let lengths = self.stored.as_ref().unwrap_or(&self.plain);
        let bodies = (BATCH_HEADER_BYTES + self.header.directory_bytes) as u64;
        let start = bodies.saturating_add(lengths.before(index));
        Some(start..start.saturating_add(u64::from(lengths.at(index))))
    }

    /// The record whose stored body this is, its checksum checked.
    ///
    /// # Errors
    /// [`BatchError`] where it is not.
    pub fn take(&self, index: usize, stored: &[u8]) -> Result<Taken, BatchError> {
        let slot = self.slot(index).ok_or(BatchError::Directory)?;
        let range = self.range(index).unwrap_or_default();
        if stored.len() as u64 != range.end - range.start {
            return Err(BatchError::Directory);
        }
        let plain_bytes = usize::try_from(slot.body_bytes).unwrap_or(usize::MAX);
        let body = if stored.len() == plain_bytes {
            Bytes::copy_from_slice(stored)
        } else if plain_bytes <= self.header.plain_bytes {
            let mut plain = vec![0; plain_bytes];
            self.header.compression.open(stored, &mut plain)?;
            Bytes::from(plain)
        } else {
            return Err(BatchError::Directory);
        };
        if crc32c(&body) != slot.body_crc {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            return Err(BatchError::RecordChecksum(index));
        }
        let first = self.header.first_sequence.0;
        let origin = Origin {
            producer: self.header.producer,
            epoch: self.header.epoch,
            first_sequence: ProducerSequence(first.saturating_add(index as u64)),
            transaction: self.header.transaction,
        };
        Ok(Taken { slot, body, origin })
    }

    fn slot(&self, index: usize) -> Option<Slot> {
        if index >= self.header.len() {
            return None;
        }
        let mut at = 4 * self.header.len();
        let body_crc = u32::from_le_bytes(self.cell(0, index)?);
        let mut next = |flag: u16, width: usize| {
            let start = at;
            if self.header.has(flag) {
                at += width * self.header.len();
                Some(start)
            } else {
                None
            }
        };
        let (keys, tags) = (next(flags::KEYS, 8), next(flags::TAGS, 4));
        let priorities = next(flags::PRIORITIES, 1);
        let delta = i64::from(self.timestamps.at(index));
        Some(Slot {
            body_bytes: self.plain.at(index),
            body_crc,
            key_hash: keys
                .and_then(|at| self.cell(at, index))
                .map_or(0, u64::from_le_bytes),
            tag_hash: tags
                .and_then(|at| self.cell(at, index))
                .map_or(0, u32::from_le_bytes),
            priority: priorities
                .and_then(|at| self.cell(at, index))
                .map_or(0, u8::from_le_bytes),
            timestamp: WallMs(self.header.base_timestamp.0.saturating_add(delta)),
            delivery: Delivery::Now,
        })
    }

    fn cell<const N: usize>(&self, column: usize, index: usize) -> Option<[u8; N]> {
        self.columns
            .get(column + N * index..)?
            .first_chunk()
            .copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{BatchBuilder, BatchStamp, Cut, Opened};
    use super::*;
    use crate::domain::id::MessageId;
    use crate::domain::record::Record;

    fn batch(compression: Compression, lengths: &[usize], keyed: bool) -> Bytes {
        let mut builder = BatchBuilder::new(1 << 20, compression);
        for (index, length) in lengths.iter().enumerate() {
            let byte = u8::try_from(index % 251).unwrap();
            let mut record = Record::new(vec![byte; *length]);
            if keyed && index % 2 == 0 {
                record = record.key(vec![byte; 5]).tag("paid");
            }
            let at = WallMs(1_000 + i64::from(byte));
            let due = Delivery::At(WallMs(9_000 + i64::from(byte)));
            builder
                .push_with(&record, MessageId([byte; 16]), at, byte % 4, due)
                .unwrap();
        }
        builder.finish(BatchStamp::default()).unwrap()
    }

    proptest! {
        /// B7: however it is compressed, whatever columns it has.
        #[test]
        fn b7_a_record_read_alone_is_the_record_of_the_whole_batch(
            lengths in prop::collection::vec(0usize..600, 1..40),
            same in any::<bool>(),
            keyed in any::<bool>(),
            compression in prop_oneof![
                Just(Compression::None), Just(Compression::Lz4), Just(Compression::Zstd)
            ],
        ) {
            let lengths = if same { vec![lengths[0]; lengths.len()] } else { lengths };
            let bytes = batch(compression, &lengths, keyed);
            let count = u32::try_from(lengths.len()).unwrap();
            let head = &bytes[..bytes.len().min(head_bytes_max(count))];
            let head = BatchHead::parse(head).unwrap();
            let opened = Opened::open(&bytes.clone().into()).unwrap();
            for index in 0..lengths.len() {
                let range = head.range(index).unwrap();
                let stored = &bytes[usize::try_from(range.start).unwrap()
                    ..usize::try_from(range.end).unwrap()];
                let mut taken = head.take(index, stored).unwrap();
                prop_assert_eq!(taken.slot.delivery, Delivery::Now);
                let whole = opened.take(index).unwrap();
                taken.slot.delivery = whole.slot.delivery;
                prop_assert_eq!(taken, whole);
            }
            prop_assert_eq!(head.range(lengths.len()), None);
        }

        #[test]
        fn b1_any_damage_is_an_error_or_harmless(
            at in any::<prop::sample::Index>(),
            bits in 1u8..=255,
            cut in any::<prop::sample::Index>(),
        ) {
            let sound = batch(Compression::Lz4, &[40, 900, 12], true);
            let mut bytes = sound.to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
            let _ = BatchHead::parse(&bytes[..cut.index(bytes.len())]);
            let Ok(head) = BatchHead::parse(&bytes) else { return Ok(()) };
            let opened = Opened::open(&sound.into()).unwrap();
            for index in 0..4 {
                let Some(range) = head.range(index) else { continue };
                let stored = &bytes[usize::try_from(range.start).unwrap()
                    ..usize::try_from(range.end).unwrap()];
                if let Ok(taken) = head.take(index, stored) {
                    prop_assert_eq!(taken.body, opened.take(index).unwrap().body);
                }
            }
        }
    }

    #[test]
    fn a_batch_of_records_of_one_length_costs_few_bytes_a_record() {
        let bytes = batch(Compression::None, &[1000; 100], false);
        let head = BatchHead::parse(&bytes).unwrap();
        // Priorities differ here, and timestamps within less than 256 ms.
        assert_eq!(head.bytes(), size_of::<BatchHead>() + 100 * (4 + 1 + 1));
        let mut cut = Cut::new(1 << 20);
        let range = head.range(7).unwrap();
        let stored =
            &bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
        assert!(cut.push_taken(head.take(7, stored).unwrap()));
        assert!(head.take(7, &stored[1..]).is_err());
        assert!(head.take(8, stored).is_err(), "another one's body");
    }
}

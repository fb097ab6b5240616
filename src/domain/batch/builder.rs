//! Packing records into a batch.

use bytes::Bytes;

use super::compression::Compression;
use super::header::{Delivery, row_bytes};
use super::{BATCH_BYTES_CEILING, BATCH_HEADER_BYTES, BATCH_RECORDS_MAX, BATCH_VERSION, flags};
use crate::domain::body::Body;
use crate::domain::id::{
    MessageId, ProducerEpoch, ProducerId, ProducerSequence, TransactionNumber,
};
use crate::domain::key::{key_hash, tag_hash};
use crate::domain::record::{Record, encode_body};
use crate::domain::time::WallMs;

/// What a finished batch is stamped with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchStamp {
    /// Who sends it; 0 = not idempotent.
    pub producer: ProducerId,
    /// The sender's epoch.
    pub epoch: ProducerEpoch,
    /// The sender's number of the first record.
    pub first_sequence: ProducerSequence,
    /// The transaction it belongs to; 0 = none.
    pub transaction: TransactionNumber,
}

/// A record that does not fit any more: finish the batch and push it to the next one. A record that
/// does not fit an empty batch fits none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the record does not fit into the batch")]
pub struct BatchFull;

/// Packs records into a batch: bodies are encoded where they are pushed, and copied once at the end.
#[derive(Debug)]
pub struct BatchBuilder {
    bytes_max: usize,
    compression: Compression,
    flags: u16,
    bodies: Vec<u8>,
    rows: Vec<Row>,
}

/// What the directory says of a record; becomes columns at the end.
#[derive(Debug)]
struct Row {
    body_bytes: u32,
    body_crc: u32,
    key_hash: u64,
    tag_hash: u32,
    priority: u8,
    timestamp: i64,
    delivery: Delivery,
}

impl BatchBuilder {
    /// An empty builder of batches of at most `bytes_max` bytes, header and directory included.
    #[must_use]
    pub fn new(bytes_max: usize, compression: Compression) -> Self {
        Self {
            bytes_max: bytes_max.min(BATCH_BYTES_CEILING),
            compression,
            flags: 0,
            bodies: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Makes room for so many bytes of bodies and so many records at once: growing copies what is there.
    pub fn reserve(&mut self, body_bytes: usize, records: usize) {
        self.bodies.reserve(body_bytes.min(self.bytes_max));
        self.rows.reserve(records.min(BATCH_RECORDS_MAX));
    }

    /// Bytes of the bodies pushed so far.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.bodies.len()
    }

    /// How many records it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How long the batch would be if finished now, uncompressed.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes_with(self.flags, self.bodies.len(), self.len())
    }

    fn bytes_with(&self, flags: u16, body_bytes: usize, count: usize) -> usize {
        // The column of timestamps counts always: whether it is needed shows at the end.
        BATCH_HEADER_BYTES + row_bytes(flags | flags::TIMESTAMPS) * count + body_bytes
    }

    /// Adds a record of the ordinary priority, with the delivery it asks for. `id` and `timestamp` stand where the record
    /// has none of its own.
    ///
    /// # Errors
    /// [`BatchFull`] where it does not fit: the builder is as before.
    pub fn push(
        &mut self,
        record: &Record,
        id: MessageId,
        timestamp: WallMs,
    ) -> Result<(), BatchFull> {
        self.push_with(record, id, timestamp, 0, record.delivery)
    }

    /// Adds a record with its priority and delivery.
    ///
    /// # Errors
    /// [`BatchFull`] where it does not fit: the builder is as before.
    pub fn push_with(
        &mut self,
        record: &Record,
        id: MessageId,
        timestamp: WallMs,
        priority: u8,
        delivery: Delivery,
    ) -> Result<(), BatchFull> {
        let key_hash = record.key.as_ref().map_or(0, |key| key_hash(key));
        let tag_hash = record.tag.as_ref().map_or(0, |tag| tag_hash(tag));
        let flags = self.flags
            | if key_hash == 0 { 0 } else { flags::KEYS }
            | if tag_hash == 0 { 0 } else { flags::TAGS }
            | if priority == 0 { 0 } else { flags::PRIORITIES }
            | if delivery == Delivery::Now {
                0
            } else {
                flags::DELIVERIES
            };
        let start = self.bodies.len();
        let around = self.bytes_with(flags, 0, self.len() + 1);
        // A record that clearly cannot fit is not encoded first.
        if self.len() >= BATCH_RECORDS_MAX || around + start + record.value.len() > self.bytes_max {
            return Err(BatchFull);
        }
        encode_body(record, record.id.unwrap_or(id), &mut self.bodies);
        let body = self.bodies.get(start..).unwrap_or_default();
        let fits = around + self.bodies.len() <= self.bytes_max;
        let (true, Ok(length)) = (fits, u32::try_from(body.len())) else {
            self.bodies.truncate(start);
            return Err(BatchFull);
        };
        self.rows.push(Row {
            body_bytes: length,
            body_crc: crate::domain::checksum::crc32c(body),
            key_hash,
            tag_hash,
            priority,
            timestamp: record.timestamp.unwrap_or(timestamp).0,
            delivery,
        });
        self.flags = flags;
        Ok(())
    }

    /// The finished batch, or nothing where no record was pushed. The builder is empty afterwards.
    pub fn finish(&mut self, stamp: BatchStamp) -> Option<Bytes> {
        Some(self.finish_in_pieces(stamp)?.to_bytes())
    }

    /// The same in two pieces, the bodies in the buffer they were encoded into: nothing is copied.
    pub fn finish_in_pieces(&mut self, stamp: BatchStamp) -> Option<Body> {
        if self.is_empty() {
            return None;
        }
        let timestamps = self.rows.iter().map(|row| row.timestamp);
        let base = timestamps.clone().min().unwrap_or_default();
        if timestamps.clone().any(|timestamp| timestamp != base) {
            self.flags |= flags::TIMESTAMPS;
        }
        let (compression, packed, stored_lengths) = self.compressed(stamp);
        if !stored_lengths.is_empty() {
            self.flags |= flags::STORED_LENGTHS;
        }
        let stored: &[u8] = packed.as_deref().unwrap_or(&self.bodies);
        let directory_bytes = row_bytes(self.flags) * self.len();
        let body_crc = match compression {
            Compression::None => 0,
            Compression::Lz4 | Compression::Zstd => crate::domain::checksum::crc32c(stored),
        };

        let mut out = Vec::with_capacity(BATCH_HEADER_BYTES + directory_bytes);
        out.extend([BATCH_VERSION, compression as u8]);
        out.extend(self.flags.to_le_bytes());
        out.extend(word(self.len()));
        out.extend(stamp.producer.0.to_le_bytes());
        out.extend(stamp.epoch.0.to_le_bytes());
        out.extend(stamp.first_sequence.0.to_le_bytes());
        out.extend(stamp.transaction.0.to_le_bytes());
        out.extend(base.to_le_bytes());
        out.extend(word(directory_bytes));
        out.extend(word(stored.len()));
        out.extend(word(self.bodies.len()));
        out.extend(body_crc.to_le_bytes());
        let fixed_crc = crate::domain::checksum::crc32c(&out);
        out.extend([0; 4]);
        self.write_directory(base, &stored_lengths, &mut out);
        let directory = out.get(BATCH_HEADER_BYTES..).unwrap_or_default();
        let header_crc = crate::domain::checksum::crc32c_append(fixed_crc, directory);
        if let Some(place) = out.get_mut(BATCH_HEADER_BYTES - 4..BATCH_HEADER_BYTES) {
            place.copy_from_slice(&header_crc.to_le_bytes());
        }
        let stored = packed.unwrap_or_else(|| std::mem::take(&mut self.bodies));
        self.clear();
        Some(Body::from_pieces(vec![out.into(), stored.into()]))
    }

    /// Forgets what was pushed; keeps the buffers.
    pub fn clear(&mut self) {
        self.flags = 0;
        self.bodies.clear();
        self.rows.clear();
    }

    /// The body section compressed, as a whole or record by record; no compression at all where that
    /// saves nothing.
    fn compressed(&self, stamp: BatchStamp) -> (Compression, Option<Vec<u8>>, Vec<u32>) {
        let none = (Compression::None, None, Vec::new());
        if self.compression == Compression::None {
            return none;
        }
        let immediate = stamp.transaction == TransactionNumber(0)
            && self.flags & (flags::PRIORITIES | flags::DELIVERIES) == 0;
        if immediate {
            return match self.compression.compress(&self.bodies) {
                Some(packed) => (self.compression, Some(packed), Vec::new()),
                None => none,
            };
        }
        let mut packed = Vec::with_capacity(self.bodies.len());
        let mut stored_lengths = Vec::with_capacity(self.len());
        let mut rest: &[u8] = &self.bodies;
        for row in &self.rows {
            let length = usize::try_from(row.body_bytes).unwrap_or(usize::MAX);
            let (body, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
            let before = packed.len();
            match self.compression.compress(body) {
                Some(small) => packed.extend(small),
                None => packed.extend_from_slice(body),
            }
            stored_lengths.push(u32::from_le_bytes(word(packed.len() - before)));
            rest = after;
        }
        if packed.len() < self.bodies.len() {
            (self.compression, Some(packed), stored_lengths)
        } else {
            none
        }
    }

    fn write_directory(&self, base: i64, stored_lengths: &[u32], out: &mut Vec<u8>) {
        let rows = self.rows.iter();
        out.extend(rows.clone().flat_map(|row| row.body_bytes.to_le_bytes()));
        out.extend(rows.clone().flat_map(|row| row.body_crc.to_le_bytes()));
        if self.flags & flags::KEYS != 0 {
            out.extend(rows.clone().flat_map(|row| row.key_hash.to_le_bytes()));
        }
        if self.flags & flags::TAGS != 0 {
            out.extend(rows.clone().flat_map(|row| row.tag_hash.to_le_bytes()));
        }
        if self.flags & flags::PRIORITIES != 0 {
            out.extend(rows.clone().map(|row| row.priority));
        }
        if self.flags & flags::TIMESTAMPS != 0 {
            out.extend(rows.clone().flat_map(|row| {
                // 49 days above the least one: whatever lies beyond is told as that.
                u32::try_from(row.timestamp.saturating_sub(base))
                    .unwrap_or(u32::MAX)
                    .to_le_bytes()
            }));
        }
        if self.flags & flags::DELIVERIES != 0 {
            let parts = rows.map(|row| match row.delivery {
                Delivery::Now => (0u8, 0i64),
                Delivery::After(span) => (1, span),
                Delivery::At(at) => (2, at.0),
            });
            out.extend(parts.clone().map(|(kind, _)| kind));
            out.extend(parts.flat_map(|(_, value)| value.to_le_bytes()));
        }
        out.extend(stored_lengths.iter().flat_map(|n| n.to_le_bytes()));
    }
}

/// A length or count of a batch: bounded far below 4 GiB by `bytes_max`.
fn word(value: usize) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes()
}

//! Cutting chosen records out of batches, and putting them together as one batch to deliver.
//!
//! A batch that is wanted whole is served untouched. Where only some of its records are (a filter
//! passes some, timers of many batches fire together, a lease is of one record) it is [`Opened`], and
//! the chosen records are pushed to a [`Cut`]: their rows of the directory are copied, their plain
//! bodies follow as slices, and each record still stands under its producer's own checksum, because
//! lengths and checksums of the directory are of uncompressed bodies.
//!
//! What comes out is a batch of version 1 like any other, not compressed. Its records may come from
//! several batches; what a batch says of all its records together (producer, sequence, transaction) is
//! kept where they come from one, and zero where they do not: who receives a cut learns numbers and
//! offsets from the frame around it.
//!
//! Invariants: B4 holds of opening; B6, a record of a cut has the body, the checksum, the hashes, the
//! priority, the timestamp and the delivery it has in the batch it was cut from.

use bytes::{Bytes, BytesMut};

use super::compression::Compression;
use super::header::{BatchHeader, Delivery, integers, row_bytes};
use super::view::{BatchView, Slot};
use super::{
    BATCH_BYTES_CEILING, BATCH_HEADER_BYTES, BATCH_RECORDS_MAX, BATCH_VERSION, BatchError, flags,
};
use crate::domain::body::Body;
use crate::domain::checksum::{crc32c, crc32c_append};
use crate::domain::id::{ProducerEpoch, ProducerId, ProducerSequence, TransactionNumber};

/// A batch whose records can be taken one by one.
///
/// Opening a batch compressed as a whole decompresses it, bounded by its directory's lengths; of others
/// nothing is copied, and a record compressed by itself is decompressed when it is taken.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Header and directory.
    head: BatchView,
    /// The body section, plain unless bodies are compressed one by one.
    bodies: Body,
    /// Where each body starts in it; one more for the end.
    starts: Vec<usize>,
}

impl Opened {
    /// Opens a batch as it came from the log: structure and lengths are checked, the bodies'
    /// checksums are for the receiver, as they are where the batch is served untouched.
    ///
    /// # Errors
    /// [`BatchError`] where the bytes are not one batch, or a whole one does not decompress.
    pub fn open(body: &Body) -> Result<Self, BatchError> {
        let (head, stored) = split(body)?;
        let header = head.header();
        let whole = header.compression != Compression::None && !header.is_per_record();
        let bodies = if whole {
            let mut plain = vec![0; header.plain_bytes];
            header.compression.open(&stored.to_bytes(), &mut plain)?;
            Body::from(plain)
        } else {
            stored
        };
        let mut starts = Vec::with_capacity(header.len() + 1);
        let mut at = 0usize;
        starts.push(at);
        let directory = head.directory();
        let column = if header.is_per_record() {
            directory.get(header.column(flags::STORED_LENGTHS))
        } else {
            directory.get(..4 * header.len())
        };
        for length in integers(column.unwrap_or_default()) {
            at = at.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
            starts.push(at);
        }
        if at != bodies.len() || starts.len() != header.len() + 1 {
            return Err(BatchError::Directory);
        }
        Ok(Self {
            head,
            bodies,
            starts,
        })
    }

    /// What the header says.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        self.head.header()
    }

    /// How many records it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.header().len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether taking a record out of it copies nothing.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        !self.header().is_per_record()
    }

    /// One record's row of the directory.
    #[must_use]
    pub fn slot(&self, index: usize) -> Option<Slot> {
        self.head.slot(index)
    }

    /// One record's plain body: a slice of the batch wherever it can be. Its checksum is not checked.
    ///
    /// # Errors
    /// [`BatchError`] where there is no such record, or its body does not decompress.
    pub fn body(&self, index: usize) -> Result<Bytes, BatchError> {
        let slot = self.slot(index).ok_or(BatchError::Directory)?;
        let (start, end) = self
            .starts
            .get(index)
            .zip(self.starts.get(index + 1))
            .ok_or(BatchError::Directory)?;
        let stored = section(&self.bodies, *start, *end).ok_or(BatchError::Directory)?;
        let plain_bytes = usize::try_from(slot.body_bytes).unwrap_or(usize::MAX);
        if stored.len() == plain_bytes {
            return Ok(stored);
        }
        if plain_bytes > self.header().plain_bytes {
            return Err(BatchError::Directory);
        }
        let mut plain = vec![0; plain_bytes];
        self.header().compression.open(&stored, &mut plain)?;
        Ok(Bytes::from(plain))
    }

    /// What it takes in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.head.bytes().len()
            + self.bodies.len()
            + self.starts.len() * size_of::<usize>()
    }

    /// The same in memory of its own, where it is slices of something larger.
    #[must_use]
    pub fn detached(self) -> Self {
        let whole =
            self.header().compression != Compression::None && !self.header().is_per_record();
        let bodies = match whole {
            // They were decompressed: they are their own.
            true => self.bodies,
            false => Body::from(self.bodies.pieces().concat()),
        };
        let head = Bytes::copy_from_slice(self.head.bytes());
        Self {
            head: BatchView::of_head(self.head.header().clone(), head),
            bodies,
            starts: self.starts,
        }
    }
}

impl Opened {
    /// One record, taken out. Its checksum is not checked.
    ///
    /// # Errors
    /// [`BatchError`] where there is no such record, or its body does not decompress.
    pub fn take(&self, index: usize) -> Result<Taken, BatchError> {
        let slot = self.slot(index).ok_or(BatchError::Directory)?;
        let body = self.body(index)?;
        let header = self.header();
        let first = header.first_sequence.0;
        let origin = Origin {
            producer: header.producer,
            epoch: header.epoch,
            first_sequence: ProducerSequence(first.saturating_add(index as u64)),
            transaction: header.transaction,
        };
        Ok(Taken { slot, body, origin })
    }
}

/// Header and directory in one piece, and the body section behind them.
fn split(body: &Body) -> Result<(BatchView, Body), BatchError> {
    let first = body.pieces().first().cloned().unwrap_or_default();
    if let Ok(header) = BatchHeader::parse(&first)
        && body.len() == header.total_bytes()
    {
        let end = BATCH_HEADER_BYTES + header.directory_bytes;
        let mut pieces = vec![first.slice(end..)];
        pieces.extend(body.pieces().iter().skip(1).cloned());
        let head = BatchView::of_head(header, first.slice(..end));
        return Ok((head, Body::from_pieces(pieces)));
    }
    // The directory is cut, or the bytes are none: put together they say which.
    let bytes = body.to_bytes();
    let view = BatchView::parse_structure(&bytes)?;
    let end = BATCH_HEADER_BYTES + view.header().directory_bytes;
    let head = BatchView::of_head(view.header().clone(), bytes.slice(..end));
    Ok((head, Body::from(bytes.slice(end..))))
}

/// A range of a body: a slice where it lies in one piece, copied together where it does not.
fn section(body: &Body, start: usize, end: usize) -> Option<Bytes> {
    let mut at = 0usize;
    let mut joined = BytesMut::new();
    for piece in body.pieces() {
        let piece_end = at + piece.len();
        if piece_end > start && at < end {
            let part = piece.slice(start.max(at) - at..end.min(piece_end) - at);
            if part.len() == end - start {
                return Some(part);
            }
            joined.extend_from_slice(&part);
        }
        at = piece_end;
    }
    (joined.len() == end.checked_sub(start)?).then(|| joined.freeze())
}

/// What the records of a cut have in common, as far as they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) producer: ProducerId,
    pub(super) epoch: ProducerEpoch,
    pub(super) first_sequence: ProducerSequence,
    pub(super) transaction: TransactionNumber,
}

/// A record taken out of a batch, for a [`Cut`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub(super) slot: Slot,
    pub(super) body: Bytes,
    pub(super) origin: Origin,
}

impl Taken {
    /// What it takes in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.body.len()
    }

    /// The same with a body of its own, where it is a slice of something larger.
    #[must_use]
    pub fn detached(mut self) -> Self {
        self.body = Bytes::copy_from_slice(&self.body);
        self
    }

    /// Gives several records memory of their own, one piece for all of them.
    pub fn detach_all<'a>(records: impl Iterator<Item = &'a mut Self>) {
        let records: Vec<&mut Self> = records.collect();
        let bytes = records.iter().map(|record| record.body.len()).sum();
        let mut bodies = BytesMut::with_capacity(bytes);
        for record in &records {
            bodies.extend_from_slice(&record.body);
        }
        let mut bodies = bodies.freeze();
        for record in records {
            record.body = bodies.split_to(record.body.len());
        }
    }
}

/// Puts chosen records together as one batch. Empty to begin with and after [`Cut::finish`].
#[derive(Debug)]
pub struct Cut {
    bytes_max: usize,
    slots: Vec<Slot>,
    bodies: Vec<Bytes>,
    body_bytes: usize,
    flags: u16,
    /// None until a record is pushed; then of the first one.
    origin: Option<Origin>,
    mixed: bool,
}

impl Cut {
    /// Cuts of at most `bytes_max` bytes, header and directory included; a single record may be larger,
    /// up to what any batch may be.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max: bytes_max.min(BATCH_BYTES_CEILING),
            slots: Vec::new(),
            bodies: Vec::new(),
            body_bytes: 0,
            flags: 0,
            origin: None,
            mixed: false,
        }
    }

    /// How many records it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// How long the batch would be if finished now, at most.
    #[must_use]
    pub fn bytes(&self) -> usize {
        bytes_of(self.flags, self.body_bytes, self.len())
    }

    /// Adds a record; says whether there was room. Without room the cut is as before: finish it and
    /// push the record to the next.
    ///
    /// # Errors
    /// [`BatchError`] where the batch has no such record or its body does not decompress.
    pub fn push(&mut self, batch: &Opened, index: usize) -> Result<bool, BatchError> {
        let slot = batch.slot(index).ok_or(BatchError::Directory)?;
        if !self.has_room(&slot) {
            return Ok(false);
        }
        Ok(self.push_taken(batch.take(index)?))
    }

    fn has_room(&self, slot: &Slot) -> bool {
        let body_bytes = usize::try_from(slot.body_bytes).unwrap_or(usize::MAX);
        let bytes = bytes_of(
            self.flags | needed(slot),
            self.body_bytes.saturating_add(body_bytes),
            self.len() + 1,
        );
        let limit = if self.is_empty() {
            BATCH_BYTES_CEILING
        } else {
            self.bytes_max
        };
        self.len() < BATCH_RECORDS_MAX && bytes <= limit
    }

    /// Adds a record that was taken out already; says whether there was room, as [`Cut::push`] does.
    pub fn push_taken(&mut self, taken: Taken) -> bool {
        let Taken { slot, body, origin } = taken;
        if !self.has_room(&slot) {
            return false;
        }
        let first = *self.origin.get_or_insert(origin);
        self.mixed |= (first.producer, first.epoch, first.transaction)
            != (origin.producer, origin.epoch, origin.transaction);
        self.flags |= needed(&slot);
        self.slots.push(slot);
        self.body_bytes += body.len();
        self.bodies.push(body);
        true
    }

    /// The finished batch; none where no record was pushed. Empty afterwards.
    pub fn finish(&mut self) -> Option<Body> {
        let origin = self.origin.take()?;
        let slots = std::mem::take(&mut self.slots);
        let bodies = std::mem::take(&mut self.bodies);
        let body_bytes = std::mem::take(&mut self.body_bytes);
        let mut flags = std::mem::take(&mut self.flags);
        let mixed = std::mem::take(&mut self.mixed);
        let base = slots.iter().map(|slot| slot.timestamp.0).min()?;
        if slots.iter().any(|slot| slot.timestamp.0 != base) {
            flags |= flags::TIMESTAMPS;
        }
        let origin = (!mixed).then_some(origin);
        let directory_bytes = row_bytes(flags) * slots.len();
        let mut out = Vec::with_capacity(BATCH_HEADER_BYTES + directory_bytes);
        out.extend([BATCH_VERSION, Compression::None as u8]);
        out.extend(flags.to_le_bytes());
        out.extend(word(slots.len()));
        out.extend(origin.map_or(0, |o| o.producer.0).to_le_bytes());
        out.extend(origin.map_or(0, |o| o.epoch.0).to_le_bytes());
        out.extend(origin.map_or(0, |o| o.first_sequence.0).to_le_bytes());
        out.extend(origin.map_or(0, |o| o.transaction.0).to_le_bytes());
        out.extend(base.to_le_bytes());
        out.extend(word(directory_bytes));
        out.extend(word(body_bytes));
        out.extend(word(body_bytes));
        out.extend([0; 4]);
        let fixed_crc = crc32c(&out);
        out.extend([0; 4]);
        write_directory(&slots, flags, base, &mut out);
        let directory = out.get(BATCH_HEADER_BYTES..).unwrap_or_default();
        let header_crc = crc32c_append(fixed_crc, directory);
        if let Some(place) = out.get_mut(BATCH_HEADER_BYTES - 4..BATCH_HEADER_BYTES) {
            place.copy_from_slice(&header_crc.to_le_bytes());
        }
        let mut pieces = Vec::with_capacity(1 + bodies.len());
        pieces.push(Bytes::from(out));
        pieces.extend(bodies);
        Some(Body::from_pieces(pieces))
    }
}

fn bytes_of(flags: u16, body_bytes: usize, count: usize) -> usize {
    // The column of timestamps counts always: whether it is needed shows at the end.
    (BATCH_HEADER_BYTES + row_bytes(flags | flags::TIMESTAMPS) * count).saturating_add(body_bytes)
}

/// The optional columns a record needs, but for that of timestamps.
fn needed(slot: &Slot) -> u16 {
    let mut needed = 0;
    if slot.key_hash != 0 {
        needed |= flags::KEYS;
    }
    if slot.tag_hash != 0 {
        needed |= flags::TAGS;
    }
    if slot.priority != 0 {
        needed |= flags::PRIORITIES;
    }
    if slot.delivery != Delivery::Now {
        needed |= flags::DELIVERIES;
    }
    needed
}

fn write_directory(slots: &[Slot], columns: u16, base: i64, out: &mut Vec<u8>) {
    out.extend(slots.iter().flat_map(|slot| slot.body_bytes.to_le_bytes()));
    out.extend(slots.iter().flat_map(|slot| slot.body_crc.to_le_bytes()));
    if columns & flags::KEYS != 0 {
        out.extend(slots.iter().flat_map(|slot| slot.key_hash.to_le_bytes()));
    }
    if columns & flags::TAGS != 0 {
        out.extend(slots.iter().flat_map(|slot| slot.tag_hash.to_le_bytes()));
    }
    if columns & flags::PRIORITIES != 0 {
        out.extend(slots.iter().map(|slot| slot.priority));
    }
    if columns & flags::TIMESTAMPS != 0 {
        out.extend(slots.iter().flat_map(|slot| {
            u32::try_from(slot.timestamp.0.saturating_sub(base))
                .unwrap_or(u32::MAX)
                .to_le_bytes()
        }));
    }
    if columns & flags::DELIVERIES != 0 {
        let parts = slots.iter().map(|slot| match slot.delivery {
            Delivery::Now => (0u8, 0i64),
            Delivery::After(span) => (1, span),
            Delivery::At(at) => (2, at.0),
        });
        out.extend(parts.clone().map(|(kind, _)| kind));
        out.extend(parts.flat_map(|(_, value)| value.to_le_bytes()));
    }
}

/// A length or count of a batch: bounded far below 4 GiB by the ceiling.
fn word(value: usize) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{BatchBuilder, BatchStamp};
    use super::*;
    use crate::domain::id::MessageId;
    use crate::domain::record::Record;
    use crate::domain::time::WallMs;

    #[derive(Debug, Clone)]
    struct Plan {
        records: Vec<(Record, u8, Delivery, i64)>,
        compression: Compression,
        transaction: u64,
        cuts: Vec<usize>,
    }

    fn any_delivery() -> impl Strategy<Value = Delivery> {
        prop_oneof![
            Just(Delivery::Now),
            (0i64..1 << 40).prop_map(Delivery::After),
            any::<i64>().prop_map(|at| Delivery::At(WallMs(at))),
        ]
    }

    fn any_plan() -> impl Strategy<Value = Plan> {
        let record = (
            proptest::collection::vec(0u8..4, 0..120),
            proptest::option::of("[a-c]"),
            proptest::option::of("[x-z]"),
        )
            .prop_map(|(value, key, tag)| {
                let mut record = Record::new(value);
                if let Some(key) = key {
                    record = record.key(key);
                }
                if let Some(tag) = tag {
                    record = record.tag(tag);
                }
                record
            });
        // Batches whose records are all immediate are compressed as a whole, the others one by one.
        let plain = (record.clone(), Just(0u8), Just(Delivery::Now), 0i64..1000);
        let special = (record, 0u8..3, any_delivery(), 0i64..1000);
        (
            prop_oneof![
                proptest::collection::vec(plain, 1..12),
                proptest::collection::vec(special, 1..12)
            ],
            prop_oneof![
                Just(Compression::None),
                Just(Compression::Lz4),
                Just(Compression::Zstd)
            ],
            0u64..2,
            proptest::collection::vec(0usize..1500, 0..4),
        )
            .prop_map(|(records, compression, transaction, cuts)| Plan {
                records,
                compression,
                transaction,
                cuts,
            })
    }

    fn built(plan: &Plan) -> Bytes {
        let mut builder = BatchBuilder::new(1 << 20, plan.compression);
        for (index, (record, priority, delivery, at)) in plan.records.iter().enumerate() {
            let id = MessageId([u8::try_from(index).unwrap(); 16]);
            builder
                .push_with(record, id, WallMs(*at), *priority, *delivery)
                .unwrap();
        }
        let stamp = BatchStamp {
            producer: ProducerId(7),
            first_sequence: ProducerSequence(100),
            transaction: TransactionNumber(plan.transaction),
            ..BatchStamp::default()
        };
        builder.finish(stamp).unwrap()
    }

    fn in_pieces(bytes: &Bytes, cuts: &[usize]) -> Body {
        let mut rest = bytes.clone();
        let mut pieces: Vec<_> = cuts
            .iter()
            .map(|at| rest.split_to((*at).min(rest.len())))
            .collect();
        pieces.push(rest);
        Body::from_pieces(pieces)
    }

    proptest! {
        /// B6, for every compression, every choice and every way the bytes lie in memory.
        #[test]
        fn b6_a_record_of_a_cut_is_the_record_it_was_cut_from(
            plans in proptest::collection::vec(any_plan(), 1..4),
            chosen in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..20),
        ) {
            let batches: Vec<_> = plans.iter().map(built).collect();
            let opened: Vec<_> = plans
                .iter()
                .zip(&batches)
                .map(|(plan, bytes)| Opened::open(&in_pieces(bytes, &plan.cuts)).unwrap())
                .collect();
            let mut cut = Cut::new(1 << 20);
            let mut expected = Vec::new();
            for (batch, record) in chosen {
                let batch = batch.index(batches.len());
                let view = BatchView::parse(&batches[batch]).unwrap();
                let record = record.index(view.header().len());
                prop_assert!(cut.push(&opened[batch], record).unwrap());
                let body = view.bodies().unwrap().nth(record).unwrap().unwrap().1;
                expected.push((view.slot(record).unwrap(), body));
            }
            let at_most = cut.bytes();
            let bytes = cut.finish().unwrap().to_bytes();
            prop_assert!(bytes.len() <= at_most);
            let view = BatchView::parse(&bytes).unwrap();
            let got: Vec<_> = view
                .bodies()
                .unwrap()
                .map(|found| found.unwrap())
                .map(|(index, body)| (view.slot(index).unwrap(), body))
                .collect();
            prop_assert_eq!(got, expected);
            prop_assert!(cut.is_empty() && cut.finish().is_none());
        }

        #[test]
        fn opening_any_damaged_batch_is_total(plan in any_plan(), at in any::<prop::sample::Index>(), bits in 1u8..=255) {
            let mut bytes = built(&plan).to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
            if let Ok(opened) = Opened::open(&in_pieces(&Bytes::from(bytes), &plan.cuts)) {
                let mut cut = Cut::new(1 << 20);
                for index in 0..=opened.header().len() {
                    let _ = cut.push(&opened, index);
                }
                let _ = cut.finish();
            }
        }
    }

    fn two() -> Opened {
        let record = |value: &'static str| (Record::new(value), 0, Delivery::Now, 5);
        let plan = Plan {
            records: vec![record("first"), record("second")],
            compression: Compression::None,
            transaction: 0,
            cuts: Vec::new(),
        };
        Opened::open(&built(&plan).into()).unwrap()
    }

    #[test]
    fn what_came_from_one_producer_says_so_and_what_did_not_does_not() {
        let mut cut = Cut::new(1 << 20);
        assert!(cut.push(&two(), 1).unwrap());
        let bytes = cut.finish().unwrap().to_bytes();
        let header = BatchHeader::parse(&bytes).unwrap();
        assert_eq!(
            (header.producer, header.first_sequence),
            (ProducerId(7), ProducerSequence(101))
        );
        let mut builder = BatchBuilder::new(1 << 20, Compression::None);
        builder
            .push(&Record::new("x"), MessageId::default(), WallMs(1))
            .unwrap();
        let other = Opened::open(&builder.finish(BatchStamp::default()).unwrap().into()).unwrap();
        assert!(cut.push(&two(), 0).unwrap());
        assert!(cut.push(&other, 0).unwrap());
        let bytes = cut.finish().unwrap().to_bytes();
        assert_eq!(BatchHeader::parse(&bytes).unwrap().producer, ProducerId(0));
    }

    #[test]
    fn a_full_cut_is_left_as_it_was_and_one_record_always_has_room() {
        let mut cut = Cut::new(10);
        assert!(cut.push(&two(), 0).unwrap());
        assert!(!cut.push(&two(), 1).unwrap());
        assert_eq!(cut.len(), 1);
        assert!(cut.push(&two(), 2).is_err());
    }
}

//! Where stored batches lie, and the rows that say so.

use bytes::Bytes;

use crate::domain::entry::EntryPlace;
use crate::domain::id::{LogPosition, ProducerEpoch, ProducerId, RecordNumber, TransactionNumber};
use crate::domain::partition::packed::{Reader, Writer};
use crate::domain::partition::publication::PublishPlace;
use crate::domain::time::WallMs;
use crate::domain::transaction::TransactionId;

const VERSION: u8 = 1;
const TAGS: u8 = 4;

/// A batch that was stored and not published with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredPlace {
    /// The number of its first record.
    pub first_number: RecordNumber,
    /// How many records it has.
    pub count: u32,
    /// Where its frame starts.
    pub position: LogPosition,
    /// The frame's length.
    pub length: u32,
    /// When it was appended.
    pub appended: WallMs,
    /// Bloom summary of its tags.
    pub tags: u64,
}

impl StoredPlace {
    /// One past its last number.
    #[must_use]
    pub fn end(&self) -> RecordNumber {
        RecordNumber(self.first_number.0.saturating_add(u64::from(self.count)))
    }

    /// Where one of its records lies.
    #[must_use]
    pub fn record(&self, number: RecordNumber) -> Option<PublishPlace> {
        let index = number.0.checked_sub(self.first_number.0)?;
        let index = u32::try_from(index)
            .ok()
            .filter(|index| *index < self.count)?;
        Some(PublishPlace {
            position: self.position,
            length: self.length,
            index,
            of: self.count,
            stored: self.appended,
            tags: self.tags,
        })
    }
}

/// A batch of a transaction that is not decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::domain::partition) struct Open {
    pub(in crate::domain::partition) key: TransactionId,
    pub(in crate::domain::partition) place: StoredPlace,
    pub(in crate::domain::partition) deliveries: Bytes,
}

pub(super) fn encode_bodies(places: &[StoredPlace], dues: &[i64]) -> Bytes {
    let mut writer = Writer::default();
    writer.byte(VERSION);
    writer.number(places.len() as u64);
    let (mut number, mut position, mut appended) = (0u64, 0u64, 0i64);
    for place in places {
        writer.step(number, place.first_number.0);
        writer.number(u64::from(place.count));
        number = place.end().0;
        writer.step(position, place.position.0);
        position = place.position.0;
        writer.number(u64::from(place.length));
        writer.signed_step(appended, place.appended.0);
        appended = place.appended.0;
        if place.tags == 0 {
            writer.byte(0);
        } else {
            writer.byte(TAGS);
            writer.word(place.tags);
        }
    }
    let mut last = 0i64;
    for due in dues {
        writer.signed_step(last, *due);
        last = *due;
    }
    Bytes::from(writer.0)
}

/// The batches a row of bodies names, and the due times of their records, one after the other; none if it does not
/// read.
#[must_use]
pub fn decode_bodies(row: &[u8]) -> Option<(Vec<StoredPlace>, Vec<i64>)> {
    let mut reader = Reader(row);
    if reader.byte()? != VERSION {
        return None;
    }
    let count = usize::try_from(reader.number()?).ok()?;
    // Nothing is allocated for what a wrong count promises: a batch has six bytes at least.
    let mut places = Vec::with_capacity(count.min(row.len() / 6));
    let (mut number, mut position, mut appended) = (0u64, 0u64, 0i64);
    let mut records = 0u64;
    for _ in 0..count {
        let first_number = reader.step(number)?;
        let count = reader.short()?;
        position = reader.step(position)?;
        let length = reader.short()?;
        appended = reader.signed_step(appended)?;
        let tags = match reader.byte()? {
            0 => 0,
            TAGS => reader.word()?,
            _ => return None,
        };
        let place = StoredPlace {
            first_number: RecordNumber(first_number),
            count,
            position: LogPosition(position),
            length,
            appended: WallMs(appended),
            tags,
        };
        number = place.end().0;
        records += u64::from(count);
        places.push(place);
    }
    let mut dues = Vec::with_capacity(usize::try_from(records).ok()?.min(reader.0.len()));
    let mut last = 0i64;
    for _ in 0..records {
        last = reader.signed_step(last)?;
        dues.push(last);
    }
    reader.is_at_end().then_some((places, dues))
}

impl Open {
    pub(super) fn encode(&self) -> Bytes {
        let mut writer = Writer::default();
        writer.byte(VERSION);
        writer.number(self.key.producer.0);
        writer.number(u64::from(self.key.epoch.0));
        writer.number(self.key.number.0);
        writer.number(self.place.first_number.0);
        writer.number(u64::from(self.place.count));
        writer.number(self.place.position.0);
        writer.number(u64::from(self.place.length));
        writer.signed(self.place.appended.0);
        writer.number(self.place.tags);
        writer.0.extend_from_slice(&self.deliveries);
        Bytes::from(writer.0)
    }

    pub(super) fn decode(row: &[u8]) -> Option<Self> {
        let mut reader = Reader(row);
        if reader.byte()? != VERSION {
            return None;
        }
        let key = TransactionId {
            producer: ProducerId(reader.number()?),
            epoch: ProducerEpoch(reader.short()?),
            number: TransactionNumber(reader.number()?),
        };
        let place = StoredPlace {
            first_number: RecordNumber(reader.number()?),
            count: reader.short()?,
            position: LogPosition(reader.number()?),
            length: reader.short()?,
            appended: WallMs(reader.signed()?),
            tags: reader.number()?,
        };
        Some(Self {
            key,
            place,
            deliveries: Bytes::copy_from_slice(reader.0),
        })
    }
}

/// Where a stored place is read.
impl From<StoredPlace> for EntryPlace {
    fn from(place: StoredPlace) -> Self {
        Self {
            position: place.position,
            length: place.length,
        }
    }
}

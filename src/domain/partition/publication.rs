//! What a `Publish` entry says: records that were stored earlier take their place among the offsets.
//!
//! The entry's header says how many offsets it gives and the first of them; the body which records get
//! them, in that order. Payloads are never written again: a publication is a reference.
//!
//! # Layout of the body
//!
//! Byte 0 says the kind.
//!
//! **1, records**: composed by the partition that owns them, which knows where they lie. Then the number
//! of runs, and each run: distance of its first record number from the end of the run before (from 0),
//! count, flags (1 a due time, 2 a place, 4 a tag summary); with 1 the distance of the due time from the
//! one before (from 0); with 2 the distance of the log position from the one before (from 0), the length
//! of the frame, the index of the first record in its payload, how many records the payload has, and the
//! distance of its append time from the one before (from 0); with 4 eight bytes little-endian. All
//! numbers are packed.
//!
//! **2, a transaction**: composed by its coordinator, which asks nobody: producer id `u64`, producer
//! epoch `u32`, transaction number `u64`, little-endian. Every record stored here for that transaction
//! that is not delayed is published, in the order stored; the delayed ones wait for their time from the
//! entry's wall time on.
//!
//! Invariants: decoding is total; what was encoded decodes to the same.

use bytes::Bytes;

use super::index::{BatchPlace, Reference};
use super::packed::{Reader, Writer};
use crate::domain::entry::{Draft, EntryKind, PayloadFacts};
use crate::domain::id::{
    LogPosition, Offset, ProducerEpoch, ProducerId, RecordNumber, TransactionNumber,
};
use crate::domain::time::WallMs;
use crate::domain::transaction::TransactionId;

const RECORDS: u8 = 1;
const TRANSACTION: u8 = 2;
const DUE: u8 = 1;
const PLACE: u8 = 2;
const TAGS: u8 = 4;

/// Where records lie that get an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishPlace {
    /// Where the frame of their payload starts.
    pub position: LogPosition,
    /// The frame's length in bytes.
    pub length: u32,
    /// The index of the first one within the payload.
    pub index: u32,
    /// How many records the payload has.
    pub of: u32,
    /// When the payload was appended.
    pub stored: WallMs,
    /// The payload's tag summary.
    pub tags: u64,
}

/// Records with consecutive numbers, of one payload, that get consecutive offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishRun {
    /// The first one's number.
    pub first_number: RecordNumber,
    /// How many.
    pub count: u32,
    /// When they were due, where they were delayed.
    pub due: Option<WallMs>,
    /// Where they lie; where whoever composed it did not know, the partition looks.
    pub place: Option<PublishPlace>,
}

/// The body of a `Publish` entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publication {
    /// These records, in this order.
    Records(Vec<PublishRun>),
    /// What this transaction stored here.
    Transaction(TransactionId),
}

impl Publication {
    /// The body.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::default();
        match self {
            Self::Records(runs) => {
                writer.byte(RECORDS);
                writer.number(runs.len() as u64);
                write_runs(runs, &mut writer);
            }
            Self::Transaction(key) => {
                writer.byte(TRANSACTION);
                writer.0.extend(key.producer.0.to_le_bytes());
                writer.0.extend(key.epoch.0.to_le_bytes());
                writer.0.extend(key.number.0.to_le_bytes());
            }
        }
        Bytes::from(writer.0)
    }

    /// Reads a body; none where the bytes are none.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut reader = Reader(body);
        let decoded = match reader.byte()? {
            RECORDS => Self::Records(read_runs(&mut reader)?),
            TRANSACTION => {
                let producer = ProducerId(reader.word()?);
                let (epoch, rest) = reader.0.split_first_chunk::<4>()?;
                reader.0 = rest;
                Self::Transaction(TransactionId {
                    producer,
                    epoch: ProducerEpoch(u32::from_le_bytes(*epoch)),
                    number: TransactionNumber(reader.word()?),
                })
            }
            _ => return None,
        };
        reader.is_at_end().then_some(decoded)
    }

    /// The entry that publishes `offsets` records.
    #[must_use]
    pub fn draft(&self, offsets: u32) -> Draft {
        Draft {
            kind: EntryKind::Publish,
            numbers: 0,
            offsets,
            body: self.encode().into(),
            facts: PayloadFacts::default(),
        }
    }
}

fn write_runs(runs: &[PublishRun], writer: &mut Writer) {
    let (mut number, mut due, mut position, mut stored) = (0u64, 0i64, 0u64, 0i64);
    for run in runs {
        writer.step(number, run.first_number.0);
        writer.number(u64::from(run.count));
        number = run.first_number.0.wrapping_add(u64::from(run.count));
        let tags = run.place.map_or(0, |place| place.tags);
        let flag = |is: bool, bit: u8| if is { bit } else { 0 };
        writer.byte(
            flag(run.due.is_some(), DUE) | flag(run.place.is_some(), PLACE) | flag(tags != 0, TAGS),
        );
        if let Some(at) = run.due {
            writer.signed_step(due, at.0);
            due = at.0;
        }
        if let Some(place) = run.place {
            writer.step(position, place.position.0);
            writer.number(u64::from(place.length));
            writer.number(u64::from(place.index));
            writer.number(u64::from(place.of));
            writer.signed_step(stored, place.stored.0);
            (position, stored) = (place.position.0, place.stored.0);
        }
        if tags != 0 {
            writer.word(tags);
        }
    }
}

fn read_runs(reader: &mut Reader<'_>) -> Option<Vec<PublishRun>> {
    let count = usize::try_from(reader.number()?).ok()?;
    // Nothing is allocated for what a wrong count promises: a run has three bytes at least.
    let mut runs = Vec::with_capacity(count.min(reader.0.len() / 3));
    let (mut number, mut due, mut position, mut stored) = (0u64, 0i64, 0u64, 0i64);
    for _ in 0..count {
        let first_number = RecordNumber(reader.step(number)?);
        let count = reader.short()?;
        number = first_number.0.wrapping_add(u64::from(count));
        let flags = reader.byte()?;
        let mut run = PublishRun {
            first_number,
            count,
            due: None,
            place: None,
        };
        if flags & DUE != 0 {
            due = reader.signed_step(due)?;
            run.due = Some(WallMs(due));
        }
        if flags & PLACE != 0 {
            position = reader.step(position)?;
            let (length, index, of) = (reader.short()?, reader.short()?, reader.short()?);
            stored = reader.signed_step(stored)?;
            run.place = Some(PublishPlace {
                position: LogPosition(position),
                length,
                index,
                of,
                stored: WallMs(stored),
                tags: 0,
            });
        }
        if flags & TAGS != 0 {
            run.place.as_mut()?.tags = reader.word()?;
        }
        runs.push(run);
    }
    Some(runs)
}

impl PublishRun {
    /// The place in the index of a run whose place is known.
    #[must_use]
    pub fn indexed(&self, first_offset: Offset, published: WallMs) -> Option<BatchPlace> {
        let place = self.place?;
        Some(BatchPlace {
            first_offset,
            count: self.count,
            first_number: self.first_number,
            position: place.position,
            length: place.length,
            appended: published,
            tags: place.tags,
            reference: Some(Reference {
                index: place.index,
                of: place.of,
                stored: place.stored,
                due: self.due,
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_run() -> impl Strategy<Value = PublishRun> {
        let place = (
            any::<u64>(),
            any::<u32>(),
            any::<u32>(),
            any::<u32>(),
            any::<i64>(),
            prop_oneof![Just(0u64), any::<u64>()],
        )
            .prop_map(|(position, length, index, of, stored, tags)| PublishPlace {
                position: LogPosition(position),
                length,
                index,
                of,
                stored: WallMs(stored),
                tags,
            });
        (
            any::<u64>(),
            any::<u32>(),
            proptest::option::of(any::<i64>().prop_map(WallMs)),
            proptest::option::of(place),
        )
            .prop_map(|(first, count, due, place)| PublishRun {
                first_number: RecordNumber(first),
                count,
                due,
                place,
            })
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes_to_the_same(runs in proptest::collection::vec(any_run(), 0..20)) {
            let publication = Publication::Records(runs);
            prop_assert_eq!(Publication::decode(&publication.encode()), Some(publication));
        }

        #[test]
        fn decoding_any_bytes_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..100), kind in 0u8..4) {
            let _ = Publication::decode(&bytes);
            let bytes: Vec<u8> = [kind].into_iter().chain(bytes).collect();
            let _ = Publication::decode(&bytes);
        }
    }

    #[test]
    fn publications_are_written_as_ever() {
        let hex = |publication: &Publication| {
            let bytes = publication.encode();
            bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        let run = |first, count, tags| PublishRun {
            first_number: RecordNumber(first),
            count,
            due: Some(WallMs(1_700_000_000_000)),
            place: Some(PublishPlace {
                position: LogPosition(1 << 33),
                length: 4_242,
                index: 7,
                of: 100,
                stored: WallMs(1_699_999_999_000),
                tags,
            }),
        };
        assert_eq!(
            hex(&Publication::Records(vec![run(300, 1, 0), run(301, 2, 9)])),
            "0102d804010380a0abfef962808080804092210764b090abfef962000207000092210764000900000000000000"
        );
        let key = TransactionId {
            producer: ProducerId(5),
            epoch: ProducerEpoch(2),
            number: TransactionNumber(77),
        };
        assert_eq!(
            hex(&Publication::Transaction(key)),
            "020500000000000000020000004d00000000000000"
        );
    }
}

//! The end of a closed segment: a summary of its entries and a footer, so that a rebuild reads these and
//! the bodies of state entries, and no payload.
//!
//! The footer lies in the segment's last write unit, the summary right before it, padded with zeros at
//! its end; both go out in one write.
//!
//! **Summary record**, one per entry in log order: the entry's fixed header as in [`super::frame`] (96
//! bytes). For a payload entry there follow, little-endian:
//!
//! | at | bytes | field |
//! |---:|---:|---|
//! | 96 | 8 | producer id |
//! | 104 | 4 | producer epoch |
//! | 108 | 2 | batch flags |
//! | 110 | 2 | zero |
//! | 112 | 8 | first producer sequence |
//! | 120 | 8 | transaction number |
//! | 128 | 8 | tag summary |
//! | 136 | 4 | length of the delivery column |
//! | 140 | 4 | zero |
//! | 144 | | the delivery column, padded with zeros to a multiple of 8 |
//!
//! **Footer** (96 bytes):
//!
//! | at | bytes | field |
//! |---:|---:|---|
//! | 0 | 4 | magic `WFTR` |
//! | 4 | 2 | format version, 1 |
//! | 6 | 2 | flags: 1 = a summary lies before it; without, the segment is read in full (it holds damage) |
//! | 8 | 8 | segment number: what another life of the file left names another |
//! | 16 | 8 | position where its last flush ends |
//! | 24 | 8 | number of its last flush |
//! | 32 | 8 | next log index after it |
//! | 40 | 8 | entries |
//! | 48 | 8 | summary length in bytes, without padding |
//! | 56 | 4 | CRC-32C, seeded, of the summary |
//! | 60 | 4 | incarnation that closed it |
//! | 64 | 8 | append time of its newest entry, Unix milliseconds; least value if it has none |
//! | 72 | 20 | zero |
//! | 92 | 4 | CRC-32C, seeded, of bytes 0..92 |

use bytes::Bytes;

use crate::domain::entry::{EntryKind, PayloadFacts};
use crate::domain::id::{ProducerEpoch, ProducerId, ProducerSequence, TransactionNumber};

use super::codec::{Put, Seed, Take, is_sealed, round_up};
use super::frame::{FRAME_BYTES, Frame};
use super::header::{SegmentNumber, VERSION};

pub(crate) const FOOTER_BYTES: usize = 96;
const FACTS_BYTES: usize = 48;
const MAGIC: [u8; 4] = *b"WFTR";
const SUMMARISED: u16 = 1;

/// One entry in a summary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SummaryRecord {
    pub(crate) frame: Frame,
    /// Of a payload; default elsewhere.
    pub(crate) facts: PayloadFacts,
}

/// How long an entry's record in the summary is.
pub(crate) fn record_bytes(kind: EntryKind, facts: &PayloadFacts) -> u64 {
    if kind == EntryKind::Payload {
        round_up(
            (FRAME_BYTES + FACTS_BYTES + facts.deliveries.len()) as u64,
            8,
        )
    } else {
        FRAME_BYTES as u64
    }
}

/// Appends an entry's record to a summary being built.
pub(crate) fn push_record(
    summary: &mut Vec<u8>,
    frame: &[u8; FRAME_BYTES],
    kind: EntryKind,
    facts: &PayloadFacts,
) {
    summary.extend_from_slice(frame);
    if kind != EntryKind::Payload {
        return;
    }
    let deliveries = u32::try_from(facts.deliveries.len()).unwrap_or(u32::MAX);
    let fixed = Put::<FACTS_BYTES>::new()
        .u64(facts.producer.0)
        .u32(facts.epoch.0)
        .u16(facts.flags)
        .u16(0)
        .u64(facts.first_sequence.0)
        .u64(facts.transaction.0)
        .u64(facts.tags)
        .u32(deliveries)
        .done();
    summary.extend_from_slice(&fixed);
    summary.extend_from_slice(&facts.deliveries);
    summary.resize(summary.len().next_multiple_of(8), 0);
}

/// The record `summary` starts with, which is cut off; `None` at its end and where it is not one.
pub(crate) fn take_record(summary: &mut Bytes, seed: Seed) -> Option<SummaryRecord> {
    let frame = Frame::decode_anywhere(summary, seed)?;
    let mut rest = summary.slice(FRAME_BYTES..);
    let mut facts = PayloadFacts::default();
    if frame.header.kind == EntryKind::Payload {
        let mut fields = Take::new(&rest);
        facts.producer = ProducerId(fields.u64()?);
        facts.epoch = ProducerEpoch(fields.u32()?);
        facts.flags = fields.u16()?;
        let _zero = fields.u16()?;
        facts.first_sequence = ProducerSequence(fields.u64()?);
        facts.transaction = TransactionNumber(fields.u64()?);
        facts.tags = fields.u64()?;
        let length = fields.u32()? as usize;
        let end = FACTS_BYTES
            .checked_add(length)?
            .checked_next_multiple_of(8)?;
        let deliveries = rest.get(FACTS_BYTES..FACTS_BYTES + length)?;
        if rest.len() < end {
            return None;
        }
        // Copied: a slice would hold the whole segment's summary for as long as the owner holds it.
        facts.deliveries = Bytes::copy_from_slice(deliveries);
        rest = rest.slice(end..);
    }
    *summary = rest;
    Some(SummaryRecord { frame, facts })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) summarised: bool,
    pub(crate) number: SegmentNumber,
    pub(crate) end: u64,
    pub(crate) last_flush: u64,
    pub(crate) next_index: u64,
    pub(crate) entries: u64,
    pub(crate) summary_bytes: u64,
    pub(crate) summary_crc: u32,
    pub(crate) incarnation: u32,
    pub(crate) newest: i64,
}

impl Footer {
    pub(crate) fn encode(&self, seed: Seed) -> [u8; FOOTER_BYTES] {
        Put::<FOOTER_BYTES>::new()
            .bytes(&MAGIC)
            .u16(VERSION)
            .u16(if self.summarised { SUMMARISED } else { 0 })
            .u64(self.number.0)
            .u64(self.end)
            .u64(self.last_flush)
            .u64(self.next_index)
            .u64(self.entries)
            .u64(self.summary_bytes)
            .u32(self.summary_crc)
            .u32(self.incarnation)
            .i64(self.newest)
            .seal(seed)
    }

    /// The footer of segment `number` that `bytes` start with, if one does.
    pub(crate) fn decode(bytes: &[u8], seed: Seed, number: SegmentNumber) -> Option<Self> {
        let bytes = bytes.get(..FOOTER_BYTES)?;
        if !bytes.starts_with(&MAGIC) || !is_sealed(bytes, seed) {
            return None;
        }
        let mut fields = Take::new(bytes);
        let _magic = fields.u32()?;
        let version = fields.u16()?;
        let flags = fields.u16()?;
        let footer = Self {
            summarised: flags & SUMMARISED != 0,
            number: SegmentNumber(fields.u64()?),
            end: fields.u64()?,
            last_flush: fields.u64()?,
            next_index: fields.u64()?,
            entries: fields.u64()?,
            summary_bytes: fields.u64()?,
            summary_crc: fields.u32()?,
            incarnation: fields.u32()?,
            newest: fields.i64()?,
        };
        (version == VERSION && footer.number == number).then_some(footer)
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::tests::frame;
    use super::*;

    const SEED: Seed = Seed(0xdead_beef);

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn facts() -> PayloadFacts {
        PayloadFacts {
            producer: ProducerId(1),
            epoch: ProducerEpoch(2),
            first_sequence: ProducerSequence(3),
            transaction: TransactionNumber(4),
            flags: 5,
            tags: 6,
            deliveries: Bytes::from_static(b"deliver"),
        }
    }

    #[test]
    fn the_layouts_on_disk_are_what_the_module_head_says() {
        let mut summary = Vec::new();
        push_record(
            &mut summary,
            &frame().encode(SEED),
            EntryKind::Payload,
            &facts(),
        );
        assert_eq!(
            summary.len() as u64,
            record_bytes(EntryKind::Payload, &facts())
        );
        assert_eq!(
            hex(&summary[FRAME_BYTES..]),
            "0100000000000000020000000500000003000000000000000400000000000000\
             0600000000000000070000000000000064656c6976657200"
        );
        assert_eq!(
            hex(&footer().encode(SEED)),
            "5746545201000100030000000000000004000000000000000500000000000000\
             060000000000000007000000000000000800000000000000090000000a000000\
             f5ffffffffffffff0000000000000000000000000000000000000000a771cdf1"
        );
    }

    fn footer() -> Footer {
        Footer {
            summarised: true,
            number: SegmentNumber(3),
            end: 4,
            last_flush: 5,
            next_index: 6,
            entries: 7,
            summary_bytes: 8,
            summary_crc: 9,
            incarnation: 10,
            newest: -11,
        }
    }

    #[test]
    fn records_come_back_as_they_were_and_cut_ones_do_not() {
        let mut summary = Vec::new();
        let mut state = frame();
        state.header.kind = EntryKind::State;
        push_record(
            &mut summary,
            &frame().encode(SEED),
            EntryKind::Payload,
            &facts(),
        );
        push_record(
            &mut summary,
            &state.encode(SEED),
            EntryKind::State,
            &PayloadFacts::default(),
        );
        let mut bytes = Bytes::from(summary.clone());
        let first = take_record(&mut bytes, SEED).unwrap();
        assert_eq!((first.frame, first.facts), (frame(), facts()));
        assert_eq!(take_record(&mut bytes, SEED).unwrap().frame, state);
        assert!(bytes.is_empty() && take_record(&mut bytes, SEED).is_none());
        for cut in 0..FRAME_BYTES + FACTS_BYTES + 8 {
            let mut short = Bytes::copy_from_slice(&summary[..cut]);
            assert_eq!(take_record(&mut short, SEED), None);
        }
    }

    #[test]
    fn a_footer_of_another_life_of_the_file_is_none() {
        let bytes = footer().encode(SEED);
        assert_eq!(
            Footer::decode(&bytes, SEED, SegmentNumber(3)),
            Some(footer())
        );
        assert_eq!(Footer::decode(&bytes, SEED, SegmentNumber(4)), None);
        assert_eq!(Footer::decode(&bytes, Seed(0), SegmentNumber(3)), None);
    }
}

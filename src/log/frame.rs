//! The entry frame: the fixed header in front of every entry's body.
//!
//! The logical header (from index to wall time, with kind and flags) is unchanged when the cleaner moves
//! an entry; position and header checksum are those of the place it lies in. Layout (little-endian, 96
//! bytes; the body follows, padded with zeros to a multiple of 8):
//!
//! | at | bytes | field |
//! |---:|---:|---|
//! | 0 | 4 | length in bytes: this header and the body, without the padding |
//! | 4 | 1 | kind ([`EntryKind`]) |
//! | 5 | 1 | flags: 1 = tied to the next entry, 2 = moved |
//! | 6 | 1 | format version, 1 |
//! | 7 | 1 | magic `0xE7` |
//! | 8 | 8 | position of this frame |
//! | 16 | 8 | log index |
//! | 24 | 8 | term |
//! | 32 | 8 | owner id |
//! | 40 | 8 | owner sequence |
//! | 48 | 8 | first record number |
//! | 56 | 8 | first offset |
//! | 64 | 4 | records stored |
//! | 68 | 4 | records published |
//! | 72 | 8 | append time, Unix milliseconds, signed |
//! | 80 | 8 | wall time, Unix milliseconds, signed |
//! | 88 | 4 | CRC-32C, seeded, of the body |
//! | 92 | 4 | CRC-32C, seeded, of bytes 0..92 |
//!
//! The two checksums are apart, so that a rotten body can be stepped over.

use crate::domain::entry::{EntryHeader, EntryKind, EntryPlace};
use crate::domain::id::{
    LogIndex, LogPosition, Offset, OwnerId, OwnerSequence, RecordNumber, Term,
};
use crate::domain::time::WallMs;

use super::codec::{Put, Seed, Take, is_sealed, round_up};

pub(crate) const FRAME_BYTES: usize = 96;
/// Frames start at multiples of this.
pub(crate) const FRAME_ALIGNMENT: u64 = 8;
const MAGIC: u8 = 0xE7;
const VERSION: u8 = 1;
const TIED: u8 = 1;
const MOVED: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) header: EntryHeader,
    pub(crate) place: EntryPlace,
    pub(crate) body_crc: u32,
}

impl Frame {
    pub(crate) fn encode(&self, seed: Seed) -> [u8; FRAME_BYTES] {
        let header = &self.header;
        let tied = if header.tied_to_next { TIED } else { 0 };
        let moved = if header.moved { MOVED } else { 0 };
        Put::<FRAME_BYTES>::new()
            .u32(self.place.length)
            .u8(header.kind as u8)
            .u8(tied | moved)
            .u8(VERSION)
            .u8(MAGIC)
            .u64(self.place.position.0)
            .u64(header.index.0)
            .u64(header.term.0)
            .u64(header.owner.0)
            .u64(header.sequence.0)
            .u64(header.first_number.0)
            .u64(header.first_offset.0)
            .u32(header.numbers)
            .u32(header.offsets)
            .i64(header.appended.0)
            .i64(header.wall.0)
            .u32(self.body_crc)
            .seal(seed)
    }

    /// The frame `bytes` start with, if it is one that was written at `position`.
    pub(crate) fn decode(bytes: &[u8], seed: Seed, position: u64) -> Option<Self> {
        let frame = Self::decode_anywhere(bytes, seed)?;
        (frame.place.position.0 == position).then_some(frame)
    }

    /// As [`Frame::decode`], for the copy of a frame in a summary, which lies elsewhere.
    pub(crate) fn decode_anywhere(bytes: &[u8], seed: Seed) -> Option<Self> {
        let bytes = bytes.get(..FRAME_BYTES)?;
        let mut fields = Take::new(bytes);
        let length = fields.u32()?;
        let kind = fields.u8()?;
        let flags = fields.u8()?;
        let version = fields.u8()?;
        // The magic is looked at first because a search for frames asks at every eighth byte.
        if fields.u8()? != MAGIC || version != VERSION || !is_sealed(bytes, seed) {
            return None;
        }
        let position = LogPosition(fields.u64()?);
        let header = EntryHeader {
            kind: EntryKind::from_byte(kind)?,
            tied_to_next: flags & TIED != 0,
            moved: flags & MOVED != 0,
            index: LogIndex(fields.u64()?),
            term: Term(fields.u64()?),
            owner: OwnerId(fields.u64()?),
            sequence: OwnerSequence(fields.u64()?),
            first_number: RecordNumber(fields.u64()?),
            first_offset: Offset(fields.u64()?),
            numbers: fields.u32()?,
            offsets: fields.u32()?,
            appended: WallMs(fields.i64()?),
            wall: WallMs(fields.i64()?),
        };
        let body_crc = fields.u32()?;
        (length as usize >= FRAME_BYTES).then_some(Self {
            header,
            place: EntryPlace { position, length },
            body_crc,
        })
    }

    /// What it takes on disk, padding included.
    pub(crate) fn padded(&self) -> u64 {
        round_up(u64::from(self.place.length), FRAME_ALIGNMENT)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn frame() -> Frame {
        Frame {
            header: EntryHeader {
                kind: EntryKind::Payload,
                tied_to_next: true,
                moved: true,
                index: LogIndex(1),
                term: Term(2),
                owner: OwnerId(3),
                sequence: OwnerSequence(4),
                first_number: RecordNumber(5),
                first_offset: Offset(6),
                numbers: 7,
                offsets: 8,
                appended: WallMs(9),
                wall: WallMs(-1),
            },
            place: EntryPlace {
                position: LogPosition(0x0003_1040),
                length: 100,
            },
            body_crc: 0x1122_3344,
        }
    }

    #[test]
    fn the_layout_on_disk_is_what_the_module_head_says() {
        let bytes = frame().encode(Seed(0xdead_beef));
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "64000000010301e7401003000000000001000000000000000200000000000000\
             0300000000000000040000000000000005000000000000000600000000000000\
             07000000080000000900000000000000ffffffffffffffff44332211802ecff2"
        );
    }

    #[test]
    fn a_frame_is_valid_only_where_it_was_written_and_unchanged() {
        let bytes = frame().encode(Seed(1));
        assert_eq!(Frame::decode(&bytes, Seed(1), 0x0003_1040), Some(frame()));
        assert_eq!(Frame::decode(&bytes, Seed(1), 0x0003_1048), None);
        assert_eq!(Frame::decode(&bytes, Seed(3), 0x0003_1040), None);
        for at in 0..bytes.len() {
            let mut rotten = bytes;
            rotten[at] ^= 0x01;
            assert_eq!(Frame::decode(&rotten, Seed(1), 0x0003_1040), None);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_header_comes_back_and_any_bytes_are_decoded_without_a_panic(
            words in proptest::array::uniform12(proptest::num::u64::ANY),
            kind in 1u8..=6,
            flags in 0u8..4,
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
        ) {
            let [length, position, index, term, owner, sequence, number, offset, counts, appended, wall, crc] = words;
            let [low, high] = [counts, counts >> 32].map(|half| (half & 0xffff_ffff).try_into().unwrap());
            let frame = Frame {
                header: EntryHeader {
                    kind: EntryKind::from_byte(kind).unwrap(),
                    tied_to_next: flags & 1 != 0,
                    moved: flags & 2 != 0,
                    index: LogIndex(index),
                    term: Term(term),
                    owner: OwnerId(owner),
                    sequence: OwnerSequence(sequence),
                    first_number: RecordNumber(number),
                    first_offset: Offset(offset),
                    numbers: low,
                    offsets: high,
                    appended: WallMs(appended.cast_signed()),
                    wall: WallMs(wall.cast_signed()),
                },
                place: EntryPlace {
                    position: LogPosition(position),
                    length: 96 + u32::from(length.to_le_bytes()[0]),
                },
                body_crc: u32::from(crc.to_le_bytes()[1]),
            };
            let encoded = frame.encode(Seed(7));
            assert_eq!(Frame::decode(&encoded, Seed(7), position), Some(frame));
            assert_eq!(Frame::decode_anywhere(&bytes, Seed(7)), None);
        }
    }
}

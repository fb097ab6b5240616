//! The segment header: who a segment is. A segment is known by it and never by its file's name.
//!
//! It lies in the segment's first write unit, twice: at byte 0 and again at byte 2048. A whole header is
//! smaller than a sector, which every device writes whole or not at all; the copy is for rot. Layout
//! (little-endian, 128 bytes):
//!
//! | at | bytes | field |
//! |---:|---:|---|
//! | 0 | 8 | magic `WWLOGSEG` |
//! | 8 | 2 | format version, 1 |
//! | 10 | 2 | flags: 1 = spare (ready, holds nothing; number 0) |
//! | 12 | 4 | write unit in bytes |
//! | 16 | 16 | cluster id |
//! | 32 | 4 | log id |
//! | 36 | 4 | checksum seed: the log's secret random |
//! | 40 | 8 | segment number, from 1 |
//! | 48 | 8 | base position = segment number x segment bytes |
//! | 56 | 8 | segment bytes |
//! | 64 | 8 | the number its first flush has |
//! | 72 | 8 | the next log index when it was begun |
//! | 80 | 8 | the log's end when it was begun: where the segment before it ends |
//! | 88 | 4 | incarnation that began it |
//! | 92 | 32 | zero |
//! | 124 | 4 | CRC-32C of bytes 0..124, not seeded |
//!
//! In every version to come magic, version and checksum stay where they are, so that a newer format is
//! named as such and not taken for rot. A program with a newer format of anything (flushes, entries,
//! summaries) begins a new segment before it writes any of it: an older one then refuses by this header.

use crate::domain::id::{ClusterId, LogPosition};

use super::codec::{Put, Seed, Take, is_sealed};

pub(crate) const MAGIC: [u8; 8] = *b"WWLOGSEG";
/// The format this code writes: segment headers, flushes, entries and footers alike.
pub(crate) const VERSION: u16 = 1;
pub(crate) const SEGMENT_HEADER_BYTES: usize = 128;
/// The largest segment: positions and lengths within one stay far from overflow.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 40;
/// Where the copy lies.
pub(crate) const COPY_AT: usize = 2048;
const SPARE: u16 = 1;

/// What all segments of one log have in common; fixed when the log is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogIdentity {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Which of a node's logs it is.
    pub log_id: u32,
    /// The size of a segment; a position is segment number x this + offset.
    pub segment_bytes: u64,
    /// What the device's direct I/O asks offsets and lengths to be multiples of.
    pub write_unit: u32,
    pub(crate) seed: Seed,
}

/// Counts a log's segments, from 1; never reused, though their files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNumber(pub u64);

impl std::fmt::Display for SegmentNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl LogIdentity {
    pub(crate) fn unit(&self) -> u64 {
        u64::from(self.write_unit)
    }

    pub(crate) fn base(&self, number: SegmentNumber) -> u64 {
        number.0.saturating_mul(self.segment_bytes)
    }

    /// Where a segment begins, and where the next does.
    #[must_use]
    pub fn bounds(&self, number: u64) -> (LogPosition, LogPosition) {
        let base = self.base(SegmentNumber(number));
        (
            LogPosition(base),
            LogPosition(base.saturating_add(self.segment_bytes)),
        )
    }

    /// The segment a position lies in.
    #[must_use]
    pub fn segment_of(&self, position: LogPosition) -> SegmentNumber {
        SegmentNumber(position.0 / self.segment_bytes)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) identity: LogIdentity,
    /// `None` in a spare.
    pub(crate) number: Option<SegmentNumber>,
    pub(crate) first_flush: u64,
    pub(crate) first_index: u64,
    pub(crate) previous_end: u64,
    pub(crate) incarnation: u32,
}

/// What the first bytes of a file turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HeaderFound {
    Header(SegmentHeader),
    /// Nothing was ever written: a segment that was not made ready to the end.
    Blank,
    /// Written by a later version of the program.
    Newer(u16),
    Unreadable,
}

impl SegmentHeader {
    pub(crate) fn spare(identity: LogIdentity) -> Self {
        Self {
            identity,
            number: None,
            first_flush: 0,
            first_index: 0,
            previous_end: 0,
            incarnation: 0,
        }
    }

    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let number = self.number.unwrap_or(SegmentNumber(0));
        Put::<SEGMENT_HEADER_BYTES>::new()
            .bytes(&MAGIC)
            .u16(VERSION)
            .u16(if self.number.is_none() { SPARE } else { 0 })
            .u32(self.identity.write_unit)
            .bytes(&self.identity.cluster.0)
            .u32(self.identity.log_id)
            .u32(self.identity.seed.0)
            .u64(number.0)
            .u64(self.identity.base(number))
            .u64(self.identity.segment_bytes)
            .u64(self.first_flush)
            .u64(self.first_index)
            .u64(self.previous_end)
            .u32(self.incarnation)
            .seal(Seed(0))
    }

    /// Both copies, in what is one synced write: the whole first unit.
    pub(crate) fn fill(&self, unit: &mut [u8]) {
        unit.fill(0);
        let header = self.encode();
        for at in [0, COPY_AT] {
            if let Some(slot) = unit.get_mut(at..at + SEGMENT_HEADER_BYTES) {
                slot.copy_from_slice(&header);
            }
        }
    }

    /// Looks for the header in a segment's first write unit, in the copy if need be.
    pub(crate) fn find(unit: &[u8]) -> HeaderFound {
        if unit.iter().all(|byte| *byte == 0) {
            return HeaderFound::Blank;
        }
        for at in [0, COPY_AT] {
            let Some(bytes) = unit.get(at..at + SEGMENT_HEADER_BYTES) else {
                continue;
            };
            if bytes.starts_with(&MAGIC) && is_sealed(bytes, Seed(0)) {
                match Self::decode(bytes) {
                    Some(Ok(header)) => return HeaderFound::Header(header),
                    Some(Err(version)) => return HeaderFound::Newer(version),
                    None => {}
                }
            }
        }
        HeaderFound::Unreadable
    }

    fn decode(bytes: &[u8]) -> Option<Result<Self, u16>> {
        let mut fields = Take::new(bytes);
        let _magic: [u8; 8] = fields.array()?;
        let version = fields.u16()?;
        if version > VERSION {
            return Some(Err(version));
        }
        let flags = fields.u16()?;
        let write_unit = fields.u32()?;
        let cluster = ClusterId(fields.array()?);
        let log_id = fields.u32()?;
        let seed = Seed(fields.u32()?);
        let number = SegmentNumber(fields.u64()?);
        let base = fields.u64()?;
        let segment_bytes = fields.u64()?;
        let identity = LogIdentity {
            cluster,
            log_id,
            segment_bytes,
            write_unit,
            seed,
        };
        let header = Self {
            identity,
            number: (flags & SPARE == 0).then_some(number),
            first_flush: fields.u64()?,
            first_index: fields.u64()?,
            previous_end: fields.u64()?,
            incarnation: fields.u32()?,
        };
        let consistent = base == identity.base(number)
            && write_unit.is_power_of_two()
            && segment_bytes > u64::from(write_unit)
            && segment_bytes <= SEGMENT_BYTES_MAX
            && number
                .0
                .checked_add(2)
                .and_then(|n| n.checked_mul(segment_bytes))
                .is_some()
            && (number.0 == 0) == header.number.is_none();
        consistent.then_some(Ok(header))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            identity: LogIdentity {
                cluster: ClusterId(*b"0123456789abcdef"),
                log_id: 7,
                segment_bytes: 65536,
                write_unit: 4096,
                seed: Seed(0xdead_beef),
            },
            number: Some(SegmentNumber(3)),
            first_flush: 9,
            first_index: 10,
            previous_end: 0x0002_f000,
            incarnation: 4,
        }
    }

    #[test]
    fn the_layout_on_disk_is_what_the_module_head_says() {
        let hex: String = header()
            .encode()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(hex, GOLDEN);
    }

    const GOLDEN: &str = "57574c4f47534547010000000010000030313233343536373839616263646566\
             07000000efbeadde030000000000000000000300000000000000010000000000\
             09000000000000000a0000000000000000f00200000000000400000000000000\
             000000000000000000000000000000000000000000000000000000008eac75a6";

    #[test]
    fn a_rotten_header_is_read_from_its_copy_and_two_rotten_ones_are_said_to_be_unreadable() {
        let mut unit = vec![0u8; 4096];
        header().fill(&mut unit);
        unit[41] ^= 1;
        assert_eq!(SegmentHeader::find(&unit), HeaderFound::Header(header()));
        unit[COPY_AT + 41] ^= 1;
        assert_eq!(SegmentHeader::find(&unit), HeaderFound::Unreadable);
        assert_eq!(SegmentHeader::find(&[0; 4096]), HeaderFound::Blank);
    }

    #[test]
    fn a_newer_format_is_named_and_not_taken_for_rot() {
        let mut unit = vec![0u8; 4096];
        header().fill(&mut unit);
        unit[8] = 2;
        let crc = Seed(0).crc(&unit[..124]);
        unit[124..128].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::find(&unit), HeaderFound::Newer(2));
    }
}

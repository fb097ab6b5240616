//! The flush header: one write of the log.
//!
//! A flush starts on a write unit and is padded with zeros to the next. Layout (little-endian, 64 bytes):
//!
//! | at | bytes | field |
//! |---:|---:|---|
//! | 0 | 4 | magic `WFLS` |
//! | 4 | 2 | format version, 1 |
//! | 6 | 2 | flags: 1 = the log was stopped cleanly here |
//! | 8 | 4 | incarnation: +1 at every opening for writing |
//! | 12 | 4 | entries in it |
//! | 16 | 8 | flush number: +1 per flush |
//! | 24 | 8 | position of this header |
//! | 32 | 4 | length in bytes: this header and the entries, without the padding |
//! | 36 | 4 | CRC-32C, seeded, over all the entries' fixed headers, which hold their bodies' checksums |
//! | 40 | 8 | next log index after it |
//! | 48 | 12 | zero |
//! | 60 | 4 | CRC-32C, seeded, of bytes 0..60 |
//!
//! A flush without entries closes the tail: whatever lies before it was whole.

use super::codec::{Put, Seed, Take, is_sealed};
use super::header::VERSION;

pub(crate) const FLUSH_HEADER_BYTES: usize = 64;
const MAGIC: [u8; 4] = *b"WFLS";
const CLEAN_STOP: u16 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlushHeader {
    pub(crate) clean_stop: bool,
    pub(crate) incarnation: u32,
    pub(crate) entries: u32,
    pub(crate) number: u64,
    pub(crate) position: u64,
    pub(crate) length: u32,
    pub(crate) frames_crc: u32,
    pub(crate) next_index: u64,
}

impl FlushHeader {
    pub(crate) fn encode(&self, seed: Seed) -> [u8; FLUSH_HEADER_BYTES] {
        Put::<FLUSH_HEADER_BYTES>::new()
            .bytes(&MAGIC)
            .u16(VERSION)
            .u16(if self.clean_stop { CLEAN_STOP } else { 0 })
            .u32(self.incarnation)
            .u32(self.entries)
            .u64(self.number)
            .u64(self.position)
            .u32(self.length)
            .u32(self.frames_crc)
            .u64(self.next_index)
            .seal(seed)
    }

    /// The flush header that lies at `position`, if one does. What another life of the segment left
    /// names another position.
    pub(crate) fn decode(bytes: &[u8], seed: Seed, position: u64) -> Option<Self> {
        Self::decode_anywhere(bytes, seed).filter(|header| header.position == position)
    }

    /// As [`FlushHeader::decode`], for a segment whose place in the log is not known.
    pub(crate) fn decode_anywhere(bytes: &[u8], seed: Seed) -> Option<Self> {
        let bytes = bytes.get(..FLUSH_HEADER_BYTES)?;
        if !bytes.starts_with(&MAGIC) || !is_sealed(bytes, seed) {
            return None;
        }
        let mut fields = Take::new(bytes);
        let _magic = fields.u32()?;
        let version = fields.u16()?;
        let flags = fields.u16()?;
        let header = Self {
            clean_stop: flags & CLEAN_STOP != 0,
            incarnation: fields.u32()?,
            entries: fields.u32()?,
            number: fields.u64()?,
            position: fields.u64()?,
            length: fields.u32()?,
            frames_crc: fields.u32()?,
            next_index: fields.u64()?,
        };
        (version == VERSION && header.length as usize >= FLUSH_HEADER_BYTES).then_some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> FlushHeader {
        FlushHeader {
            clean_stop: true,
            incarnation: 2,
            entries: 3,
            number: 0x0102_0304,
            position: 0x0005_1000,
            length: 700,
            frames_crc: 0xaabb_ccdd,
            next_index: 12,
        }
    }

    #[test]
    fn the_layout_on_disk_is_what_the_module_head_says() {
        let bytes = header().encode(Seed(0xdead_beef));
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "57464c5301000100020000000300000004030201000000000010050000000000\
             bc020000ddccbbaa0c00000000000000000000000000000000000000514985bc"
        );
    }

    #[test]
    fn a_flush_is_valid_only_where_it_was_written_and_under_its_logs_seed() {
        let bytes = header().encode(Seed(1));
        assert_eq!(
            FlushHeader::decode(&bytes, Seed(1), 0x0005_1000),
            Some(header())
        );
        assert_eq!(FlushHeader::decode(&bytes, Seed(1), 0x0006_1000), None);
        assert_eq!(FlushHeader::decode(&bytes, Seed(2), 0x0005_1000), None);
        for at in 0..bytes.len() {
            let mut rotten = bytes;
            rotten[at] ^= 0x10;
            assert_eq!(FlushHeader::decode(&rotten, Seed(1), 0x0005_1000), None);
        }
    }
}

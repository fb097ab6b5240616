//! CRC-32C (Castagnoli), the checksum of every format here.
//!
//! Computed by `crc-fast`, which folds with carry-less multiplication as wide as the processor has it:
//! against the three-way instruction it is 1.5 times as fast for 1 kB and 3 times for 100 kB.

use crc_fast::{CrcAlgorithm, Digest};

/// The checksum of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_append(0, bytes)
}

/// The checksum of what `crc` was computed of, followed by `bytes`. Begun with another number than 0, it
/// is a checksum nobody can forge who does not know that number.
#[must_use]
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!crc));
    digest.update(bytes);
    // The upper half of a 32-bit checksum is empty.
    u32::try_from(digest.finalize()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-32/ISCSI in the catalogue of parametrised algorithms, and RFC 3720, B.4.
    #[test]
    fn published_values_come_out() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn it_can_be_computed_in_pieces_from_any_start() {
        let bytes: Vec<u8> = (0..5000u32)
            .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect();
        for start in [0, 1, 0xdead_beef, u32::MAX] {
            for cut in [0, 1, 63, 64, 1000, 16_384, bytes.len()] {
                let (head, tail) = bytes.split_at(cut);
                let whole = crc32c_append(start, &bytes);
                assert_eq!(
                    crc32c_append(crc32c_append(start, head), tail),
                    whole,
                    "{cut}"
                );
            }
        }
        assert_ne!(crc32c_append(1, &bytes), crc32c(&bytes));
    }
}

//! Compressing and opening body sections, always into a buffer whose length was decided before (B4).

use super::BatchError;

/// How a batch's bodies are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Compression {
    /// As they are.
    #[default]
    None = 0,
    /// lz4, raw blocks: cheap, good for text.
    Lz4 = 1,
    /// zstd at level 1: smaller, dearer.
    Zstd = 2,
}

/// Level 1 compresses at several hundred MB/s; higher ones cost more than the log's bandwidth is worth.
const ZSTD_LEVEL: i32 = 1;

impl Compression {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::None,
            1 => Self::Lz4,
            2 => Self::Zstd,
            _ => return None,
        })
    }

    /// `plain` compressed; nothing where that is not smaller.
    pub(super) fn compress(self, plain: &[u8]) -> Option<Vec<u8>> {
        let packed = match self {
            Self::None => return None,
            Self::Lz4 => lz4_flex::block::compress(plain),
            Self::Zstd => zstd::bulk::compress(plain, ZSTD_LEVEL).ok()?,
        };
        (packed.len() < plain.len()).then_some(packed)
    }

    /// Opens `stored` into `plain`, filling it exactly.
    pub(super) fn open(self, stored: &[u8], plain: &mut [u8]) -> Result<(), BatchError> {
        let opened = match self {
            Self::None => None,
            Self::Lz4 => lz4_flex::block::decompress_into(stored, plain).ok(),
            Self::Zstd => zstd::bulk::decompress_to_buffer(stored, plain).ok(),
        };
        if opened == Some(plain.len()) {
            Ok(())
        } else {
            Err(BatchError::Decompression)
        }
    }
}

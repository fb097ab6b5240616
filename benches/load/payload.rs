//! Incompressible bytes, made before anything is measured.

use bytes::Bytes;

/// A generator of bytes no compressor finds anything in: xorshift64*, seeded, the same every time.
#[derive(Debug, Clone)]
pub(crate) struct Noise(u64);

impl Noise {
    /// A stream of its own per seed.
    pub(crate) fn new(seed: u64) -> Self {
        // Neighbouring seeds must not give neighbouring streams, and 0 would stand still.
        Self((seed ^ 0x9E37_79B9_7F4A_7C15).wrapping_mul(0xBF58_476D_1CE4_E5B9) | 1)
    }

    /// The next 64 bits.
    pub(crate) fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Overwrites a buffer.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let word = self.word().to_le_bytes();
            for (place, byte) in chunk.iter_mut().zip(word) {
                *place = byte;
            }
        }
    }

    /// So many fresh bytes.
    pub(crate) fn bytes(&mut self, length: usize) -> Bytes {
        let mut buffer = vec![0; length];
        self.fill(&mut buffer);
        Bytes::from(buffer)
    }
}

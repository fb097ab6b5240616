//! The bytes under every layout of this room: little-endian fields in, little-endian fields out, and
//! the seeded checksum.

/// Checksums of one log: CRC-32C started from a random that no client ever sees, so that bytes a
/// client chose cannot pose as a flush or an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed(pub(crate) u32);

impl Seed {
    pub(crate) fn crc(self, bytes: &[u8]) -> u32 {
        crate::domain::checksum::crc32c_append(self.0, bytes)
    }
}

/// Reads fields one after the other; `None` once the bytes are used up.
pub(crate) struct Take<'a>(&'a [u8]);

impl<'a> Take<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }
}

/// Writes fields one after the other into `N` bytes; what is not written stays zero.
pub(crate) struct Put<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Put<N> {
    pub(crate) fn new() -> Self {
        Self {
            bytes: [0; N],
            at: 0,
        }
    }

    pub(crate) fn bytes(mut self, field: &[u8]) -> Self {
        let end = self.at.saturating_add(field.len());
        let slot = self.bytes.get_mut(self.at..end);
        assert!(slot.is_some(), "a layout is as long as its fields");
        if let Some(slot) = slot {
            slot.copy_from_slice(field);
        }
        self.at = end;
        self
    }

    pub(crate) fn u8(self, field: u8) -> Self {
        self.bytes(&[field])
    }

    pub(crate) fn u16(self, field: u16) -> Self {
        self.bytes(&field.to_le_bytes())
    }

    pub(crate) fn u32(self, field: u32) -> Self {
        self.bytes(&field.to_le_bytes())
    }

    pub(crate) fn u64(self, field: u64) -> Self {
        self.bytes(&field.to_le_bytes())
    }

    pub(crate) fn i64(self, field: i64) -> Self {
        self.bytes(&field.to_le_bytes())
    }

    /// Skips to the last four bytes and ends with the checksum over all before them.
    pub(crate) fn seal(mut self, seed: Seed) -> [u8; N] {
        let crc_at = N.saturating_sub(4);
        let crc = seed.crc(self.bytes.get(..crc_at).unwrap_or_default());
        self.at = crc_at;
        self.u32(crc).bytes
    }

    pub(crate) fn done(self) -> [u8; N] {
        self.bytes
    }
}

/// Whether the last four bytes are the checksum of all before them.
pub(crate) fn is_sealed(bytes: &[u8], seed: Seed) -> bool {
    bytes
        .split_last_chunk::<4>()
        .is_some_and(|(before, crc)| seed.crc(before) == u32::from_le_bytes(*crc))
}

/// `value` rounded up to a multiple of `unit`, which is a power of two.
pub(crate) const fn round_up(value: u64, unit: u64) -> u64 {
    value.saturating_add(unit - 1) & !(unit - 1)
}

/// `value` rounded down to a multiple of `unit`, which is a power of two.
pub(crate) const fn round_down(value: u64, unit: u64) -> u64 {
    value & !(unit - 1)
}

/// A length within memory: what does not fit an index fits no slice either.
pub(crate) fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// The part of `bytes` that starts at `at`, empty when it lies outside.
pub(crate) fn from(bytes: &[u8], at: u64) -> &[u8] {
    bytes.get(index(at)..).unwrap_or_default()
}

//! Whole numbers written as few bytes as they need: for rows that hold thousands of them.
//!
//! Unsigned ones as LEB128 (seven bits a byte, the least first, the high bit says that more follow);
//! signed ones zigzag (0, -1, 1, -2, ...) and then so. Reading is total: a number that is cut off or
//! longer than 64 bits is none.

/// Writes.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    pub(super) fn number(&mut self, mut value: u64) {
        loop {
            let [low, ..] = (value & 0x7f).to_le_bytes();
            value >>= 7;
            if value == 0 {
                return self.0.push(low);
            }
            self.0.push(low | 0x80);
        }
    }

    pub(super) fn signed(&mut self, value: i64) {
        let zigzag = (value << 1) ^ (value >> 63);
        self.number(u64::from_le_bytes(zigzag.to_le_bytes()));
    }

    /// The wrapping distance of two numbers.
    pub(super) fn step(&mut self, from: u64, to: u64) {
        self.signed(i64::from_le_bytes(to.wrapping_sub(from).to_le_bytes()));
    }

    /// The wrapping distance of two signed numbers.
    pub(super) fn signed_step(&mut self, from: i64, to: i64) {
        self.signed(to.wrapping_sub(from));
    }

    pub(super) fn word(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }
}

/// Reads.
#[derive(Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    pub(super) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    pub(super) fn short(&mut self) -> Option<u32> {
        u32::try_from(self.number()?).ok()
    }

    pub(super) fn signed(&mut self) -> Option<i64> {
        let zigzag = self.number()?;
        let half = i64::from_le_bytes((zigzag >> 1).to_le_bytes());
        Some(if zigzag & 1 == 0 { half } else { !half })
    }

    pub(super) fn step(&mut self, from: u64) -> Option<u64> {
        Some(from.wrapping_add(u64::from_le_bytes(self.signed()?.to_le_bytes())))
    }

    pub(super) fn signed_step(&mut self, from: i64) -> Option<i64> {
        Some(from.wrapping_add(self.signed()?))
    }

    pub(super) fn word(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*word))
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(values in proptest::collection::vec((any::<u64>(), any::<i64>(), any::<u64>()), 0..20)) {
            let mut writer = Writer::default();
            for (number, signed, to) in &values {
                writer.number(*number);
                writer.signed(*signed);
                writer.step(*number, *to);
                writer.signed_step(*signed, -5);
                writer.word(*to);
            }
            let mut reader = Reader(&writer.0);
            for (number, signed, to) in values {
                prop_assert_eq!(reader.number(), Some(number));
                prop_assert_eq!(reader.signed(), Some(signed));
                prop_assert_eq!(reader.step(number), Some(to));
                prop_assert_eq!(reader.signed_step(signed), Some(-5));
                prop_assert_eq!(reader.word(), Some(to));
            }
            prop_assert!(reader.is_at_end());
        }

        #[test]
        fn reading_any_bytes_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut reader = Reader(&bytes);
            while reader.number().is_some() {}
            let mut reader = Reader(&bytes);
            while reader.signed().is_some() {}
        }
    }

    #[test]
    fn small_numbers_are_short() {
        let mut writer = Writer::default();
        writer.number(127);
        writer.signed(-64);
        assert_eq!(writer.0, [0x7f, 0x7f]);
        writer.number(300);
        assert_eq!(writer.0, [0x7f, 0x7f, 0xac, 0x02]);
    }
}

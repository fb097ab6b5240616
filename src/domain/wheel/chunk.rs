//! Home chunks: packed alarms of one slot, as a row of the views holds them.
//!
//! # Layout, version 1
//! Integers are LEB128 varints unless said otherwise.
//!
//! | what | meaning |
//! |---|---|
//! | u8 | version, 1 |
//! | varint | alarms in all |
//! | then per owner, by id: | |
//! | varint | owner id less the one before (the first: its id) |
//! | varint | 2 × alarms of this owner + 1 if versions follow |
//! | then per alarm, by token: | |
//! | varint | token less the one before (the first: its token) |
//! | varint | milliseconds after the beginning of the slot |
//! | varint | version, where versions follow |
//!
//! The slot is in the row's id ([`RowId`]), so a chunk means nothing under another.
//! A timer of a topic with consecutive numbers takes five bytes in a slot of 70 minutes.

use crate::domain::alarm::{Alarm, DUE_MS_MAX};
use crate::domain::id::OwnerId;

/// Alarms in one chunk at most: a row of about 40 kB.
pub const CHUNK_ALARMS_MAX: usize = 8_192;
/// The version this build writes, and the only one it reads.
const VERSION: u8 = 1;
const CHUNK_BITS: u32 = 24;

/// Which home: the slot and the number of the chunk within it. As a row id the slot is in the high 40
/// bits, so that a level's homes lie in the order of their moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId {
    /// The slot's number since the clock's zero, by the width of the level's homes.
    pub slot: i64,
    /// Below 2^24.
    pub chunk: u32,
}

impl RowId {
    /// As the row id.
    #[must_use]
    pub fn pack(self) -> u64 {
        self.slot.unsigned_abs() << CHUNK_BITS | u64::from(self.chunk)
    }

    /// From a row id.
    #[must_use]
    pub fn unpack(id: u64) -> Self {
        let chunk = id & ((1 << CHUNK_BITS) - 1);
        Self {
            slot: i64::try_from(id >> CHUNK_BITS).unwrap_or(i64::MAX),
            chunk: u32::try_from(chunk).unwrap_or(0),
        }
    }
}

/// Packs alarms of one slot that begins at `start_ms` into chunks. Sorts them.
#[must_use]
pub fn encode(start_ms: i64, alarms: &mut [Alarm]) -> Vec<Vec<u8>> {
    alarms.sort_unstable_by_key(|alarm| (alarm.owner, alarm.token, alarm.version, alarm.due_ms));
    alarms
        .chunks(CHUNK_ALARMS_MAX)
        .map(|alarms| encode_one(start_ms, alarms))
        .collect()
}

fn encode_one(start_ms: i64, alarms: &[Alarm]) -> Vec<u8> {
    let mut out = Vec::with_capacity(alarms.len() * 6 + 16);
    out.push(VERSION);
    put(&mut out, alarms.len() as u64);
    let mut owner = 0;
    for group in alarms.chunk_by(|a, b| a.owner == b.owner) {
        let id = group.first().map_or(0, |alarm| alarm.owner.0);
        put(&mut out, id - owner);
        owner = id;
        let versions = group.iter().any(|alarm| alarm.version != 0);
        put(&mut out, group.len() as u64 * 2 + u64::from(versions));
        let mut token = 0;
        for alarm in group {
            put(&mut out, alarm.token - token);
            token = alarm.token;
            let within = alarm.due_ms.clamp(0, DUE_MS_MAX).saturating_sub(start_ms);
            put(&mut out, within.unsigned_abs());
            if versions {
                put(&mut out, u64::from(alarm.version));
            }
        }
    }
    out
}

/// The alarms of a chunk; none if the bytes are no chunk of this version.
#[must_use]
pub fn decode(start_ms: i64, bytes: &[u8]) -> Option<Vec<Alarm>> {
    let (&version, mut rest) = bytes.split_first()?;
    if version != VERSION {
        return None;
    }
    let count = usize::try_from(take(&mut rest)?).ok()?;
    // A lie about the count costs no memory: an alarm takes at least two bytes.
    if count > rest.len() {
        return None;
    }
    let mut alarms = Vec::with_capacity(count);
    let mut owner = 0u64;
    while alarms.len() < count {
        owner = owner.checked_add(take(&mut rest)?)?;
        let head = take(&mut rest)?;
        let (group, versions) = (head / 2, head % 2 == 1);
        if group == 0 || group > (count - alarms.len()) as u64 {
            return None;
        }
        let mut token = 0u64;
        for _ in 0..group {
            token = token.checked_add(take(&mut rest)?)?;
            let within = i64::try_from(take(&mut rest)?).ok()?;
            let version = if versions {
                u32::try_from(take(&mut rest)?).ok()?
            } else {
                0
            };
            alarms.push(Alarm {
                due_ms: start_ms.checked_add(within)?,
                owner: OwnerId(owner),
                token,
                version,
            });
        }
    }
    rest.is_empty().then_some(alarms)
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_chunk_is_these_bytes() {
        let alarm = |owner, token, version, due_ms| Alarm {
            due_ms,
            owner: OwnerId(owner),
            token,
            version,
        };
        let mut alarms = [
            alarm(1056, 9, 3, 65_536),
            alarm(1024, 301, 0, 131_071),
            alarm(1024, 300, 0, 65_546),
        ];
        let chunks = encode(65_536, &mut alarms);
        let hex: String = chunks[0].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            concat!(
                "01", "03", "8008", "04", "ac02", "0a", "01", "ffff03", "20", "03", "09", "00",
                "03"
            )
        );
        assert_eq!(chunks.len(), 1);
        let row = RowId { slot: 27, chunk: 5 };
        assert_eq!(row.pack(), 0x1b00_0005);
        assert_eq!(RowId::unpack(row.pack()), row);
        assert_eq!(decode(65_536, &chunks[0]).as_deref(), Some(&alarms[..]));
        assert_eq!(decode(65_536, &[2, 0]), None, "another version");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn what_was_packed_is_unpacked(
            start in 0i64..1 << 40,
            alarms in proptest::collection::vec((0u64..4, any::<u64>(), 0i64..1 << 28, 0u32..3), 0..40),
        ) {
            let mut alarms: Vec<Alarm> = alarms.into_iter().map(|(owner, token, within, version)| Alarm {
                due_ms: start + within, owner: OwnerId(owner), token, version,
            }).collect();
            let chunks = encode(start, &mut alarms);
            let read: Vec<Alarm> = chunks.iter().flat_map(|chunk| decode(start, chunk).unwrap()).collect();
            prop_assert_eq!(read, alarms);
        }

        #[test]
        fn decoding_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode(0, &bytes);
            let mut bytes = bytes;
            bytes.insert(0, VERSION);
            let _ = decode(i64::MAX, &bytes);
        }
    }

    #[test]
    fn a_large_slot_becomes_several_chunks_of_about_five_bytes_an_alarm() {
        let mut alarms: Vec<Alarm> = (0..CHUNK_ALARMS_MAX as u64 + 1)
            .map(|token| Alarm {
                due_ms: (token as i64 * 7919) % (1 << 22),
                owner: OwnerId(1024),
                token: 5_000_000 + token,
                version: 0,
            })
            .collect();
        let chunks = encode(0, &mut alarms);
        assert_eq!(chunks.len(), 2);
        assert!(chunks[0].len() < 6 * CHUNK_ALARMS_MAX);
    }
}

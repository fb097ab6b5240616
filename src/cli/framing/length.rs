//! Length-prefixed records: any bytes, in both directions.
//!
//! | what | type |
//! |---|---|
//! | key length | u32 big-endian; `ffffffff` = no key |
//! | key | bytes |
//! | value length | u32 big-endian |
//! | value | bytes |

use bytes::Bytes;

use super::{Fault, Front};
use crate::client::{Delivery, Record};

/// The length that says there is no key.
const NO_KEY: u32 = u32::MAX;

pub(super) fn front(rest: &mut Bytes, at_end: bool, limit: usize) -> Result<Front, Fault> {
    match extent(rest, limit)? {
        Some(Extent { key, value }) => {
            let whole = rest.split_to(value.end);
            let mut record = Record::new(whole.slice(value));
            record.key = key.map(|key| whole.slice(key));
            Ok(Front::Record(record))
        }
        None if at_end => Err(Fault::Truncated),
        None => Ok(Front::Unfinished),
    }
}

/// Where the parts of the first record are.
struct Extent {
    key: Option<std::ops::Range<usize>>,
    value: std::ops::Range<usize>,
}

/// Nothing where the record is not complete. Lengths are checked before anything is waited for.
fn extent(rest: &[u8], limit: usize) -> Result<Option<Extent>, Fault> {
    let too_large = Fault::TooLarge { limit };
    let length_at = |at: usize| {
        let bytes = rest.get(at..).and_then(<[u8]>::first_chunk);
        bytes.map(|bytes| u32::from_be_bytes(*bytes))
    };
    let bytes = |length: u32| usize::try_from(length).ok().filter(|bytes| *bytes <= limit);
    let key = match length_at(0) {
        None => return Ok(None),
        Some(NO_KEY) => None,
        Some(length) => Some(4..4 + bytes(length).ok_or(too_large.clone())?),
    };
    let value_at = key.as_ref().map_or(4, |key| key.end);
    let Some(length) = length_at(value_at) else {
        return Ok(None);
    };
    let value = value_at + 4..value_at + 4 + bytes(length).ok_or(too_large.clone())?;
    if key.as_ref().map_or(0, |key| key.len()) + value.len() > limit {
        return Err(too_large);
    }
    Ok((rest.len() >= value.end).then_some(Extent { key, value }))
}

/// Appends a delivery's key and value.
pub fn write_lengths(delivery: &Delivery, out: &mut Vec<u8>) {
    match &delivery.key {
        Some(key) => write_part(key, out),
        None => out.extend_from_slice(&NO_KEY.to_be_bytes()),
    }
    write_part(&delivery.value, out);
}

fn write_part(part: &[u8], out: &mut Vec<u8>) {
    // A part comes out of a batch, whose lengths are u32 as well.
    let length = u32::try_from(part.len()).unwrap_or(NO_KEY);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(part);
}

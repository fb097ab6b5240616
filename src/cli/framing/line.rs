//! One record per line: the bytes before `\n`. A `\r` stays, the last line may lack its `\n`.

use std::io::BufRead;

use bytes::Bytes;

use super::{Fault, Front};
use crate::client::{Delivery, Record};

/// A line has more bytes than it may.
#[derive(Debug)]
pub(super) struct TooLong;

/// Takes the line at the front, without its `\n`; nothing where it has not ended yet.
pub(super) fn take_line(
    rest: &mut Bytes,
    at_end: bool,
    bytes_max: usize,
) -> Result<Option<Bytes>, TooLong> {
    // Searching a slice in memory cannot fail; the standard library does it many bytes at a time.
    let length = rest.as_ref().skip_until(b'\n').unwrap_or(rest.len());
    let ended = length.checked_sub(1).and_then(|last| rest.get(last)) == Some(&b'\n');
    let content = length - usize::from(ended);
    if content > bytes_max {
        return Err(TooLong);
    }
    if !ended && !at_end {
        return Ok(None);
    }
    let mut line = rest.split_to(length);
    line.truncate(content);
    Ok(Some(line))
}

pub(super) fn front(
    rest: &mut Bytes,
    at_end: bool,
    separator: Option<&[u8]>,
    limit: usize,
) -> Result<Front, Fault> {
    // The separator is no part of the record.
    let around = separator.map_or(0, <[u8]>::len);
    let line = match take_line(rest, at_end, limit.saturating_add(around)) {
        Ok(Some(line)) => line,
        Ok(None) => return Ok(Front::Unfinished),
        Err(TooLong) => return Err(Fault::TooLarge { limit }),
    };
    let Some(separator) = separator else {
        return Ok(Front::Record(Record::new(line)));
    };
    let at = find(&line, separator).ok_or(Fault::NoSeparator)?;
    let value = line.slice(at + separator.len()..);
    Ok(Front::Record(Record::new(value).key(line.slice(..at))))
}

fn find(line: &[u8], separator: &[u8]) -> Option<usize> {
    match separator {
        [byte] => line.iter().position(|found| found == byte),
        _ => line
            .windows(separator.len().max(1))
            .position(|found| found == separator),
    }
}

/// Appends a delivery's value and `\n`.
pub fn write_value(delivery: &Delivery, out: &mut Vec<u8>) {
    out.extend_from_slice(&delivery.value);
    out.push(b'\n');
}

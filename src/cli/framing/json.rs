//! One JSON object per line, the one `consume --format json` prints. Blank lines count, and are none.

use bytes::Bytes;

use super::line::{TooLong, take_line};
use super::{Fault, Front};
use crate::cli::json::parse_record;

/// A line may be so many times what the record in it may be: every byte may be written as `\u0000`.
const ESCAPED_BYTES_MAX: usize = 6;

/// Names, topic, id and numbers of the object.
const OBJECT_BYTES_MAX: usize = 64 * 1024;

pub(super) fn front(rest: &mut Bytes, at_end: bool, limit: usize) -> Result<Front, Fault> {
    let line_max = limit
        .saturating_mul(ESCAPED_BYTES_MAX)
        .saturating_add(OBJECT_BYTES_MAX);
    let line = match take_line(rest, at_end, line_max) {
        Ok(Some(line)) => line,
        Ok(None) => return Ok(Front::Unfinished),
        // The limit that is told is the record's.
        Err(TooLong) => return Err(Fault::TooLarge { limit }),
    };
    if line.trim_ascii().is_empty() {
        return Ok(Front::Blank);
    }
    let record = parse_record(&line).map_err(Fault::Json)?;
    let bytes = record.value.len() + record.key.as_ref().map_or(0, Bytes::len);
    if bytes > limit {
        return Err(Fault::TooLarge { limit });
    }
    Ok(Front::Record(record))
}

//! How records are told apart in a stream of bytes, whatever pieces it is read in.
//!
//! In: what was read. Out: [`Input`]s, records with their number in the input, from 1: the line in the
//! framings `line` and `json`, the record in `length`. A record is copied once, from what was read
//! into a buffer that the records' parts are then slices of.
//!
//! Invariants: F1, how the input is cut into reads changes nothing; F2, memory is bounded: what is
//! larger than a record may be is refused with its number before more of it is read; F3, what comes
//! before a fault is handed out.

pub mod json;
pub mod length;
pub mod line;
pub mod separator;

use bytes::{Bytes, BytesMut};

use crate::client::Record;

/// How records are told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Framing {
    /// One per line; with a separator, what comes before its first occurrence is the key.
    Line {
        /// The bytes between key and value.
        separator: Option<Vec<u8>>,
    },
    /// Length-prefixed keys and values.
    Length,
    /// One JSON object per line.
    Json,
}

/// A record with its number in the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// From 1.
    pub number: u64,
    /// The record.
    pub record: Record,
}

/// What is wrong with a record of the input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A line without the key separator.
    #[error("has no key separator")]
    NoSeparator,
    /// More than a batch may hold.
    #[error("is larger than the broker's batch limit of {limit} bytes")]
    TooLarge {
        /// In bytes.
        limit: usize,
    },
    /// The input ends within it.
    #[error("is cut off by the end of the input")]
    Truncated,
    /// Not the JSON object of a record.
    #[error("is no JSON record: {0}")]
    Json(String),
}

/// Where the input goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{unit} {number} {fault}")]
pub struct FramingError {
    /// What is counted: `line` or `record`.
    pub unit: &'static str,
    /// From 1.
    pub number: u64,
    /// What is wrong.
    pub fault: Fault,
}

/// What is at the front of the input.
#[derive(Debug)]
enum Front {
    /// A record; it was taken off.
    Record(Record),
    /// Something that counts but is none; it was taken off.
    Blank,
    /// The beginning of a record.
    Unfinished,
}

/// Cuts a stream into records.
#[derive(Debug)]
pub struct Splitter {
    framing: Framing,
    /// No record may have more bytes of key and value.
    limit: usize,
    unread: BytesMut,
    number: u64,
}

impl Splitter {
    /// `limit` is how many bytes of key and value a record may have.
    #[must_use]
    pub fn new(framing: Framing, limit: usize) -> Self {
        Self {
            framing,
            limit,
            unread: BytesMut::new(),
            number: 0,
        }
    }

    /// What the framing counts.
    #[must_use]
    pub fn unit(&self) -> &'static str {
        match self.framing {
            Framing::Line { .. } | Framing::Json => "line",
            Framing::Length => "record",
        }
    }

    /// Takes what was read, and appends the records that are complete now.
    ///
    /// # Errors
    /// [`FramingError`]; the records before it were appended, and the splitter is of no further use.
    pub fn feed(&mut self, read: &[u8], records: &mut Vec<Input>) -> Result<(), FramingError> {
        self.unread.extend_from_slice(read);
        self.take(false, records)
    }

    /// The input has ended: appends the record it ended with, if any.
    ///
    /// # Errors
    /// As [`Splitter::feed`].
    pub fn finish(&mut self, records: &mut Vec<Input>) -> Result<(), FramingError> {
        self.take(true, records)
    }

    fn take(&mut self, at_end: bool, records: &mut Vec<Input>) -> Result<(), FramingError> {
        let mut rest = self.unread.split().freeze();
        while !rest.is_empty() {
            match self.front(&mut rest, at_end) {
                Ok(Front::Record(record)) => {
                    self.number += 1;
                    let number = self.number;
                    records.push(Input { number, record });
                }
                Ok(Front::Blank) => self.number += 1,
                Ok(Front::Unfinished) => break,
                Err(fault) => {
                    return Err(FramingError {
                        unit: self.unit(),
                        number: self.number + 1,
                        fault,
                    });
                }
            }
        }
        self.unread.extend_from_slice(&rest);
        Ok(())
    }

    fn front(&self, rest: &mut Bytes, at_end: bool) -> Result<Front, Fault> {
        match &self.framing {
            Framing::Line { separator } => {
                line::front(rest, at_end, separator.as_deref(), self.limit)
            }
            Framing::Length => length::front(rest, at_end, self.limit),
            Framing::Json => json::front(rest, at_end, self.limit),
        }
    }
}

#[cfg(test)]
mod tests;

//! Scanning the log in order: what every fold is made of.
//!
//! A closed segment is read by its summary: payloads are not touched, state entries' bodies are read
//! together. A segment without a usable one (open, or with damage in it) is walked in full.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::domain::entry::{EntryHeader, EntryKind, EntryPlace, PayloadFacts};
use crate::domain::id::LogPosition;

use super::codec::{index, round_up};
use super::error::{Damage, DamageReason, ReadError};
use super::reader::LogReader;
use super::segments::Segment;
use super::summary::{SummaryRecord, take_record};
use super::walk::{Found, Unreadable, Walk};

/// Summary records whose bodies are asked for together.
const RECORDS_PER_READ: usize = 512;

/// One step of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scanned {
    /// An entry.
    Entry {
        /// Its stamps.
        header: EntryHeader,
        /// Where it lies.
        place: EntryPlace,
        /// A payload's facts; default elsewhere.
        facts: PayloadFacts,
        /// The body of every entry but a payload.
        body: Option<Bytes>,
    },
    /// A range that cannot be read. Entries behind it follow.
    Damaged(Damage),
}

/// An iterator over a part of the log, in log order.
pub struct Scan {
    reader: LogReader,
    from: LogPosition,
    to: LogPosition,
    segments: VecDeque<Arc<Segment>>,
    source: Source,
    ready: VecDeque<Scanned>,
}

enum Source {
    None,
    /// The segment is held so that it is not recycled before its entries' bodies are read.
    Summary(Arc<Segment>, Bytes),
    Walk(Box<Walk>),
}

impl Scan {
    pub(crate) fn new(reader: LogReader, from: LogPosition, to: Option<LogPosition>) -> Self {
        let all = reader.table().all();
        let end = all.last().map_or(LogPosition(0), |last| last.end());
        let to = to.map_or(end, |to| to.min(end));
        let segments = all
            .into_iter()
            .filter(|segment| segment.end() > from && segment.base() < to.0)
            .collect();
        Self {
            reader,
            from,
            to,
            segments,
            source: Source::None,
            ready: VecDeque::new(),
        }
    }

    /// Where it ends.
    #[must_use]
    pub fn to(&self) -> LogPosition {
        self.to
    }

    /// Gets the next few steps ready; false at the end.
    fn refill(&mut self) -> bool {
        match &mut self.source {
            Source::None => match self.segments.pop_front() {
                Some(segment) => self.begin(segment),
                None => return false,
            },
            Source::Summary(segment, summary) => {
                let seed = self.reader.identity().seed;
                let mut records = Vec::new();
                while records.len() < RECORDS_PER_READ
                    && let Some(record) = take_record(summary, seed)
                {
                    records.push(record);
                }
                if records.is_empty() {
                    // A summary has its checksum, so that this is never met; but nothing is lost unsaid.
                    if !summary.is_empty() {
                        let end = segment.state().end;
                        let damage = segment.damage(0, end, DamageReason::EntryHeader);
                        self.ready.push_back(Scanned::Damaged(damage));
                    }
                    self.source = Source::None;
                } else {
                    self.take_records(records);
                }
            }
            Source::Walk(walk) => match walk.next() {
                Ok(Some(flush)) => self.ready.extend(flush.found.into_iter().map(scanned)),
                Ok(None) => self.source = Source::None,
                Err(_) => {
                    let segment = walk.segment();
                    let to = segment.state().end;
                    let damage = segment.damage(walk.at(), to, DamageReason::Unreadable);
                    self.ready.push_back(Scanned::Damaged(damage));
                    self.source = Source::None;
                }
            },
        }
        true
    }

    fn begin(&mut self, segment: Arc<Segment>) {
        if let Some(summary) = summary_of(&self.reader, &segment) {
            self.source = Source::Summary(segment, summary);
            return;
        }
        let table = self.reader.table();
        let end = segment.state().end;
        match table.file(&segment) {
            Ok(file) => {
                let facts_of = table.options.facts_of;
                let walk = Walk::new(segment, file, facts_of, Some(end), Unreadable::IsDamage);
                self.source = Source::Walk(Box::new(walk));
            }
            Err(_) => {
                let damage = segment.damage(0, end, DamageReason::Unreadable);
                self.ready.push_back(Scanned::Damaged(damage));
            }
        }
    }

    /// Reads the bodies that records of a summary leave out.
    fn take_records(&mut self, mut records: Vec<SummaryRecord>) {
        let (from, to) = (self.from, self.to);
        records.retain(|record| (from..to).contains(&record.frame.place.position));
        let is_payload = |record: &SummaryRecord| record.frame.header.kind == EntryKind::Payload;
        let places: Vec<EntryPlace> = records
            .iter()
            .filter(|record| !is_payload(record))
            .map(|record| record.frame.place)
            .collect();
        let mut bodies = self.reader.read(&places).into_iter();
        for record in records {
            let body = if is_payload(&record) {
                None
            } else {
                match bodies.next() {
                    Some(Ok(read)) => Some(Bytes::copy_from_slice(&read.body)),
                    Some(Err(error)) => {
                        let damage = self.lost(&record, error);
                        self.ready.push_back(Scanned::Damaged(damage));
                        continue;
                    }
                    None => None,
                }
            };
            self.ready.push_back(Scanned::Entry {
                header: record.frame.header,
                place: record.frame.place,
                facts: record.facts,
                body,
            });
        }
    }

    fn lost(&self, record: &SummaryRecord, error: ReadError) -> Damage {
        let place = record.frame.place;
        let (file, reason) = match error {
            ReadError::Damaged(damage) => (damage.file, damage.reason),
            ReadError::Io { file, .. } => (file, DamageReason::Unreadable),
            ReadError::Gone { .. } => (String::new(), DamageReason::Unreadable),
        };
        Damage {
            file,
            from: place.position,
            to: LogPosition(place.position.0.saturating_add(place.length.into())),
            reason,
            entry: Some(record.frame.header),
        }
    }

    fn is_wanted(&self, scanned: &Scanned) -> bool {
        match scanned {
            Scanned::Entry { place, .. } => (self.from..self.to).contains(&place.position),
            Scanned::Damaged(damage) => damage.to > self.from && damage.from < self.to,
        }
    }
}

impl Iterator for Scan {
    type Item = Scanned;

    fn next(&mut self) -> Option<Scanned> {
        loop {
            while let Some(scanned) = self.ready.pop_front() {
                if self.is_wanted(&scanned) {
                    return Some(scanned);
                }
            }
            if !self.refill() {
                return None;
            }
        }
    }
}

fn scanned(found: Found) -> Scanned {
    match found {
        Found::Damaged(damage) => Scanned::Damaged(damage),
        Found::Entry(entry) => Scanned::Entry {
            header: entry.frame.header,
            place: entry.frame.place,
            facts: entry.facts,
            body: entry.body,
        },
    }
}

/// A closed segment's summary, whole and unchanged; `None` where it has none that can be used.
pub(crate) fn summary_of(reader: &LogReader, segment: &Segment) -> Option<Bytes> {
    let footer = segment.state().footer.filter(|footer| footer.summarised)?;
    let identity = reader.identity();
    let padded = round_up(footer.summary_bytes, identity.unit());
    let footer_at = identity.segment_bytes - identity.unit();
    let offset = footer_at.checked_sub(padded)?;
    let read = reader.read_range(segment, offset, padded).ok()?;
    let summary = read.slice(..index(footer.summary_bytes).min(read.len()));
    let is_whole = identity.seed.crc(&summary) == footer.summary_crc;
    is_whole.then_some(summary)
}

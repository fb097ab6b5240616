//! Reading and checking every byte, for `check` and for tests.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::domain::entry::EntryHeader;

use super::error::{Damage, DamageReason};
use super::frame::Frame;
use super::header::SegmentNumber;
use super::reader::LogReader;
use super::scan::summary_of;
use super::segments::Segment;
use super::summary::take_record;
use super::walk::{Found, Unreadable, Walk, WalkedFlush};

/// What was found in one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentReport {
    /// Its number.
    pub number: SegmentNumber,
    /// Its file's name.
    pub file: String,
    /// Whole flushes.
    pub flushes: u64,
    /// Whole entries.
    pub entries: u64,
    /// Bytes of their frames.
    pub bytes: u64,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verified {
    /// A segment has been read to its end.
    Segment(SegmentReport),
    /// A range is not what was written. Comes before the report of its segment.
    Damaged(Damage),
}

/// An iterator over findings, in log order.
pub struct Verify {
    reader: LogReader,
    segments: VecDeque<Arc<Segment>>,
    ready: VecDeque<Verified>,
}

impl Verify {
    pub(crate) fn new(reader: LogReader) -> Self {
        Self {
            segments: reader.table().all().into(),
            reader,
            ready: VecDeque::new(),
        }
    }

    fn check(&mut self, segment: &Arc<Segment>) {
        let mut report = SegmentReport {
            number: segment.number,
            file: segment.name.clone(),
            flushes: 0,
            entries: 0,
            bytes: 0,
        };
        let mut damages = Vec::new();
        let end = segment.state().end;
        let table = self.reader.table();
        match table.file(segment) {
            Ok(file) => {
                let facts_of = table.options.facts_of;
                let segment = Arc::clone(segment);
                let mut walk = Walk::new(segment, file, facts_of, Some(end), Unreadable::IsDamage);
                while let Ok(Some(flush)) = walk.next() {
                    damages.extend(padding(&mut walk, &flush));
                    take(flush, &mut report, &mut damages);
                }
            }
            Err(_) => damages.push(segment.damage(0, end, DamageReason::Unreadable)),
        }
        self.check_summary(segment, &report, &mut damages);
        self.ready
            .extend(damages.into_iter().map(Verified::Damaged));
        self.ready.push_back(Verified::Segment(report));
    }

    /// The summary tells which entries lay in ranges whose own headers are gone.
    fn check_summary(&self, segment: &Segment, report: &SegmentReport, damages: &mut Vec<Damage>) {
        let state = segment.state().clone();
        let is_expected = match &state.footer {
            Some(footer) => footer.summarised,
            None => state.closed,
        };
        if !is_expected {
            return;
        }
        let bytes = segment.header.identity.segment_bytes;
        let rotten = segment.damage(state.end, bytes, DamageReason::Summary);
        let Some(mut summary) = summary_of(&self.reader, segment) else {
            damages.push(rotten);
            return;
        };
        let seed = segment.header.identity.seed;
        let mut frames: Vec<Frame> = Vec::new();
        while let Some(record) = take_record(&mut summary, seed) {
            frames.push(record.frame);
        }
        if damages.is_empty() && frames.len() as u64 != report.entries {
            damages.push(rotten);
        }
        *damages = std::mem::take(damages)
            .into_iter()
            .flat_map(|damage| named(damage, &frames))
            .collect();
    }
}

/// A damaged range entry by entry, where a summary knows what lay there.
fn named(damage: Damage, frames: &[Frame]) -> Vec<Damage> {
    if damage.entry.is_some() || damage.reason.is_harmless() {
        return vec![damage];
    }
    let inside: Vec<EntryHeader> = frames
        .iter()
        .filter(|frame| (damage.from..damage.to).contains(&frame.place.position))
        .map(|frame| frame.header)
        .collect();
    if inside.is_empty() {
        return vec![damage];
    }
    let entries = inside.into_iter();
    entries
        .map(|entry| Damage {
            entry: Some(entry),
            ..damage.clone()
        })
        .collect()
}

fn take(flush: WalkedFlush, report: &mut SegmentReport, damages: &mut Vec<Damage>) {
    report.flushes += u64::from(flush.header.is_some());
    for found in flush.found {
        match found {
            Found::Entry(entry) => {
                report.entries += 1;
                report.bytes += u64::from(entry.frame.place.length);
            }
            Found::Damaged(damage) => damages.push(damage),
        }
    }
}

/// What lies behind a whole flush's entries must be zeros up to the next unit.
fn padding(walk: &mut Walk, flush: &WalkedFlush) -> Option<Damage> {
    let header = flush.header?;
    let from = flush.span.0.saturating_add(header.length.into());
    let length = flush.span.1.saturating_sub(from);
    let bytes = walk.bytes(from, length).ok()?;
    let is_zero = bytes.iter().all(|byte| *byte == 0);
    let damage = || {
        walk.segment()
            .damage(from, flush.span.1, DamageReason::Padding)
    };
    (!is_zero).then(damage)
}

impl Iterator for Verify {
    type Item = Verified;

    fn next(&mut self) -> Option<Verified> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            let segment = self.segments.pop_front()?;
            self.check(&segment);
        }
    }
}

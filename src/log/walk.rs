//! Walking a segment flush by flush, with what is damaged told apart from what was torn.
//!
//! In goes a segment and, where it is known, its end; out come flushes with their entries in log order,
//! and damaged ranges. Where the end is not known (the log's tail in recovery), bytes that do not count
//! and have no later flush behind them end the walk (L3).

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::domain::entry::{EntryKind, PayloadFacts};
use crate::domain::id::LogPosition;

use super::buffer::AlignedBuffer;
use super::codec::{from, index, round_down, round_up};
use super::disk::DiskFile;
use super::error::{Damage, DamageReason};
use super::flush::{FLUSH_HEADER_BYTES, FlushHeader};
use super::frame::{FRAME_ALIGNMENT, FRAME_BYTES, Frame};
use super::options::FactsOf;
use super::segments::Segment;

/// How much is read ahead at a time.
const WINDOW_BYTES: u64 = 1 << 20;

pub(crate) struct WalkedFlush {
    /// `None` for a damaged range whose readable entries were picked up.
    pub(crate) header: Option<FlushHeader>,
    /// Offset of its first byte, and of the first unit behind it.
    pub(crate) span: (u64, u64),
    pub(crate) found: Vec<Found>,
}

pub(crate) enum Found {
    Entry(WalkedEntry),
    Damaged(Damage),
}

pub(crate) struct WalkedEntry {
    pub(crate) frame: Frame,
    pub(crate) facts: PayloadFacts,
    /// Of every entry but a payload.
    pub(crate) body: Option<Bytes>,
}

/// What to do where the device does not give the bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// An error: recovery must not take a passing fault for the end of the log.
    Fails,
    /// Damage: it is stepped over.
    IsDamage,
}

pub(crate) struct Walk {
    segment: Arc<Segment>,
    window: Window,
    facts_of: FactsOf,
    at: u64,
    end: Option<u64>,
    expected: u64,
    is_done: bool,
}

impl Walk {
    pub(crate) fn new(
        segment: Arc<Segment>,
        file: Arc<dyn DiskFile>,
        facts_of: FactsOf,
        end: Option<u64>,
        unreadable: Unreadable,
    ) -> Self {
        let identity = segment.header.identity;
        Self {
            window: Window {
                file,
                unit: identity.unit(),
                limit: identity.segment_bytes,
                buffer: AlignedBuffer::new(0),
                start: 0,
                filled: 0,
                unreadable,
            },
            facts_of,
            at: identity.unit(),
            end,
            expected: segment.header.first_flush,
            is_done: false,
            segment,
        }
    }

    /// Offset behind the last flush that counts.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// The number the next flush must have.
    pub(crate) fn next_number(&self) -> u64 {
        self.expected
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// The next flush or damaged range; `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<WalkedFlush>> {
        if self.is_done || self.at >= self.limit() {
            return Ok(None);
        }
        let step = match self.header_at(self.at)? {
            Some(header) if header.number == self.expected => self.whole_flush(header)?,
            _ => self.damaged_range()?,
        };
        self.is_done = step.is_none();
        Ok(step)
    }

    /// Bytes of the segment, for checks of what lies between flushes.
    pub(crate) fn bytes(&mut self, offset: u64, length: u64) -> io::Result<&[u8]> {
        self.window.bytes(offset, length)
    }

    /// No flush reaches behind this offset: the footer's unit is never one's.
    fn limit(&self) -> u64 {
        let identity = &self.segment.header.identity;
        let footer = identity.segment_bytes.saturating_sub(identity.unit());
        self.end.map_or(footer, |end| end.min(footer))
    }

    fn header_at(&mut self, offset: u64) -> io::Result<Option<FlushHeader>> {
        let seed = self.segment.header.identity.seed;
        let position = self.segment.base().saturating_add(offset);
        let limit = self.limit();
        let bytes = self.window.bytes(offset, FLUSH_HEADER_BYTES as u64)?;
        Ok(FlushHeader::decode(bytes, seed, position)
            .filter(|header| offset.saturating_add(header.length.into()) <= limit))
    }

    fn whole_flush(&mut self, header: FlushHeader) -> io::Result<Option<WalkedFlush>> {
        let start = self.at;
        let length = u64::from(header.length);
        let next = round_up(start + length, self.segment.header.identity.unit());
        let entries = (start + FLUSH_HEADER_BYTES as u64, start + length);
        let (found, frames_crc) = self.entries(entries, DamageReason::EntryHeader)?;
        let damaged = found.iter().any(|found| matches!(found, Found::Damaged(_)));
        let is_whole =
            !damaged && frames_crc == header.frames_crc && found.len() == header.entries as usize;
        if !is_whole && self.end.is_none() && self.later_flush(next, header.number)?.is_none() {
            return Ok(None);
        }
        self.at = next;
        self.expected = header.number.saturating_add(1);
        Ok(Some(WalkedFlush {
            header: Some(header),
            span: (start, next),
            found,
        }))
    }

    fn damaged_range(&mut self) -> io::Result<Option<WalkedFlush>> {
        let start = self.at;
        let later = self.later_flush(start, self.expected)?;
        let stop = match (later, self.end) {
            (Some((offset, _)), _) => offset,
            (None, Some(_)) => self.limit(),
            (None, None) => return Ok(None),
        };
        let found = if stop == start {
            let missing = DamageReason::FlushesMissing;
            vec![Found::Damaged(self.segment.damage(start, start, missing))]
        } else {
            self.entries((start, stop), DamageReason::FlushHeader)?.0
        };
        self.at = stop;
        if let Some((_, header)) = later {
            self.expected = header.number;
        }
        Ok(Some(WalkedFlush {
            header: None,
            span: (start, stop),
            found,
        }))
    }

    /// The first flush header from `offset` on whose number is higher than `number`.
    fn later_flush(&mut self, offset: u64, number: u64) -> io::Result<Option<(u64, FlushHeader)>> {
        let mut at = offset;
        while at < self.limit() {
            if let Some(header) = self.header_at(at)?
                && header.number > number
            {
                return Ok(Some((at, header)));
            }
            at = at.saturating_add(self.segment.header.identity.unit());
        }
        Ok(None)
    }

    /// The entries between two offsets, with everything between them that is not one as damage; and the
    /// checksum over the fixed headers met. `first` is what a gap at the very start is called.
    fn entries(
        &mut self,
        (start, stop): (u64, u64),
        first: DamageReason,
    ) -> io::Result<(Vec<Found>, u32)> {
        let segment = Arc::clone(&self.segment);
        let identity = segment.header.identity;
        let bytes = self.window.bytes(start, stop.saturating_sub(start))?;
        let mut found = Vec::new();
        let mut frames_crc = identity.seed.0;
        let mut gap: Option<u64> = None;
        let mut at = 0;
        let length = stop.saturating_sub(start);
        while at < length {
            let rest = from(bytes, at);
            let position = segment.base() + start + at;
            let frame = Frame::decode(rest, identity.seed, position)
                .filter(|frame| u64::from(frame.place.length) <= length - at);
            let Some(frame) = frame else {
                gap.get_or_insert(at);
                at += FRAME_ALIGNMENT;
                continue;
            };
            if let Some(gap) = gap.take() {
                found.extend(gap_in(&segment, bytes, start, (gap, at), first).map(Found::Damaged));
            }
            frames_crc = crate::domain::checksum::crc32c_append(
                frames_crc,
                rest.get(..FRAME_BYTES).unwrap_or_default(),
            );
            let body = rest
                .get(FRAME_BYTES..frame.place.length as usize)
                .unwrap_or_default();
            found.push(if identity.seed.crc(body) == frame.body_crc {
                Found::Entry(entry(frame, body, self.facts_of))
            } else {
                Found::Damaged(rotten_body(&segment.name, &frame))
            });
            at += frame.padded();
        }
        if let Some(gap) = gap {
            found.extend(gap_in(&segment, bytes, start, (gap, length), first).map(Found::Damaged));
        }
        Ok((found, frames_crc))
    }
}

fn entry(frame: Frame, body: &[u8], facts_of: FactsOf) -> WalkedEntry {
    let is_payload = frame.header.kind == EntryKind::Payload;
    let facts = is_payload.then(|| facts_of(body)).flatten();
    WalkedEntry {
        frame,
        facts: facts.unwrap_or_default(),
        body: (!is_payload).then(|| Bytes::copy_from_slice(body)),
    }
}

pub(crate) fn rotten_body(file: &str, frame: &Frame) -> Damage {
    let position = frame.place.position;
    Damage {
        file: file.to_owned(),
        from: position,
        to: LogPosition(position.0.saturating_add(frame.place.length.into())),
        reason: DamageReason::Body,
        entry: Some(frame.header),
    }
}

/// A gap between entries as damage, unless it is the zeros between one flush and the next.
fn gap_in(
    segment: &Segment,
    bytes: &[u8],
    start: u64,
    (gap, stop): (u64, u64),
    first: DamageReason,
) -> Option<Damage> {
    let gap_bytes = bytes.get(index(gap)..index(stop)).unwrap_or_default();
    let is_padding = first == DamageReason::FlushHeader
        && stop.saturating_sub(gap) < segment.header.identity.unit()
        && gap_bytes.iter().all(|byte| *byte == 0);
    let reason = if gap == 0 {
        first
    } else {
        DamageReason::EntryHeader
    };
    (!is_padding).then(|| segment.damage(start + gap, start + stop, reason))
}

/// A sliding view of a file.
struct Window {
    file: Arc<dyn DiskFile>,
    unit: u64,
    limit: u64,
    buffer: AlignedBuffer,
    start: u64,
    filled: u64,
    unreadable: Unreadable,
}

impl Window {
    fn bytes(&mut self, offset: u64, length: u64) -> io::Result<&[u8]> {
        let end = offset.saturating_add(length);
        if offset < self.start || end > self.start + self.filled {
            self.fill(offset, length)?;
        }
        let from = index(offset - self.start);
        let to = index(end - self.start);
        Ok(self.buffer.bytes().get(from..to).unwrap_or_default())
    }

    fn fill(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let start = round_down(offset, self.unit);
        let wanted = length.max(WINDOW_BYTES).saturating_add(offset - start);
        let room = self.limit.saturating_sub(start);
        let size = round_up(wanted, self.unit).min(room);
        if (self.buffer.len() as u64) < size {
            self.buffer = AlignedBuffer::new(index(size));
        }
        (self.start, self.filled) = (start, 0);
        let into = self.buffer.bytes_mut();
        let into = into.get_mut(..index(size)).unwrap_or_default();
        match self.file.read_at(start, into) {
            Ok(()) => {}
            Err(error) if self.unreadable == Unreadable::Fails => return Err(error),
            Err(_) => self.fill_by_unit(start, size),
        }
        self.filled = size;
        Ok(())
    }

    /// As zeros, a unit the device does not give is no flush and no entry.
    fn fill_by_unit(&mut self, start: u64, size: u64) {
        let into = self.buffer.bytes_mut();
        let into = into.get_mut(..index(size)).unwrap_or_default();
        let mut at = start;
        for unit in into.chunks_mut(index(self.unit)) {
            if self.file.read_at(at, unit).is_err() {
                unit.fill(0);
            }
            at += self.unit;
        }
    }
}

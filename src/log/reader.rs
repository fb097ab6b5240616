//! Reading entries by place, from any thread.
//!
//! Places that lie near each other are read together, directly into pooled aligned memory; bodies are
//! slices of it. What is lent out keeps its extent's memory until the last slice is dropped.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::domain::entry::{EntryHeader, EntryPlace};
use crate::domain::id::LogPosition;

use super::codec::{index, round_down, round_up};
use super::error::{Damage, DamageReason, ReadError};
use super::extents::Extents;
use super::frame::{FRAME_BYTES, Frame};
use super::header::{LogIdentity, SegmentNumber};
use super::scan::Scan;
use super::segments::{Segment, SegmentInfo, Table};
use super::verify::Verify;
use super::walk::rotten_body;

/// The longest stretch read at once, unless one entry alone is longer.
const EXTENT_BYTES_MAX: u64 = 1 << 20;
/// Reading across a gap of this much costs less than another read.
const GAP_BYTES_MAX: u64 = 64 << 10;

/// An entry as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryRead {
    /// Its stamps.
    pub header: EntryHeader,
    /// Its body: a slice of the extent it was read with.
    pub body: Bytes,
}

/// Blocks of what is to be read that are here already.
#[derive(Default)]
struct Edges {
    front: Option<Bytes>,
    back: Option<Bytes>,
}

/// Reads a log; clones share everything.
#[derive(Clone)]
pub struct LogReader {
    table: Arc<Table>,
}

impl LogReader {
    pub(crate) fn new(table: Arc<Table>) -> Self {
        Self { table }
    }

    /// Reads entries by place, in any order; answers are in the order asked. Checksums of header and body
    /// are checked. Blocks until the device has answered.
    #[must_use]
    pub fn read(&self, places: &[EntryPlace]) -> Vec<Result<EntryRead, ReadError>> {
        self.read_shared(places, None)
    }

    /// The same, from what others read where that is kept; what is read is kept for others.
    pub(crate) fn read_shared(
        &self,
        places: &[EntryPlace],
        kept: Option<&Extents>,
    ) -> Vec<Result<EntryRead, ReadError>> {
        let mut answers = vec![None; places.len()];
        let mut order: Vec<(usize, EntryPlace)> = places.iter().copied().enumerate().collect();
        if let Some(kept) = kept {
            order.retain(|(asked, place)| !self.found(kept, (*asked, *place), &mut answers));
        }
        order.sort_unstable_by_key(|(_, place)| place.position);
        let mut rest = order.as_slice();
        while let Some((first, _)) = rest.split_first() {
            let together = self.extent(first.1, rest);
            let (extent, after) = rest.split_at_checked(together).unwrap_or((rest, &[]));
            self.read_extent(extent, kept, &mut answers);
            rest = after;
        }
        let gone = |position| Err(ReadError::Gone { position });
        answers
            .into_iter()
            .zip(places)
            .map(|(answer, place)| answer.unwrap_or_else(|| gone(place.position)))
            .collect()
    }

    /// Reads a part of an entry, counted from where its frame starts. A part that lies outside it is gone.
    fn read_part(&self, place: EntryPlace, part: Range<u64>) -> Result<Bytes, ReadError> {
        let gone = || ReadError::Gone {
            position: place.position,
        };
        let segment = self
            .table
            .segment(self.segment_of(place))
            .filter(|segment| end_of(place) <= segment.end().0)
            .ok_or_else(gone)?;
        if part.start > part.end || part.end > u64::from(place.length) {
            return Err(gone());
        }
        let unit = self.table.identity.unit();
        let from = place.position.0.saturating_add(part.start);
        let start = round_down(from, unit);
        let end = place.position.0.saturating_add(part.end);
        let length = round_up(end - start, unit);
        let read = self
            .read_range(&segment, start - segment.base(), length)
            .map_err(|why| ReadError::Io {
                file: segment.name.clone(),
                why: why.to_string(),
            })?;
        let within = index(from - start)..index(end - start);
        read.get(within.clone()).ok_or_else(gone)?;
        Ok(read.slice(within))
    }

    /// The head of a payload: what its frame says is checked, what follows it up to `bytes` is not.
    ///
    /// # Errors
    /// As for a whole entry, where the frame is not the one of this place.
    pub fn read_head(&self, place: EntryPlace, bytes: u64) -> Result<Bytes, ReadError> {
        let end = bytes
            .saturating_add(FRAME_BYTES as u64)
            .min(u64::from(place.length));
        let read = self.read_part(place, 0..end)?;
        let frame = Frame::decode(&read, self.table.identity.seed, place.position.0);
        if frame.is_none_or(|frame| frame.place != place) || read.len() < FRAME_BYTES {
            return Err(ReadError::Gone {
                position: place.position,
            });
        }
        Ok(read.slice(FRAME_BYTES..))
    }

    /// Reads a part of an entry's body, in one read. No checksum is looked at: whoever reads a part has to
    /// know what it must look like.
    ///
    /// # Errors
    /// As for a whole entry.
    pub fn read_body_part(&self, place: EntryPlace, part: Range<u64>) -> Result<Bytes, ReadError> {
        let frame = FRAME_BYTES as u64;
        let (start, end) = (
            part.start.saturating_add(frame),
            part.end.saturating_add(frame),
        );
        self.read_part(place, start..end)
    }

    /// How many reads were issued to the disk since the log was opened.
    #[must_use]
    pub fn reads_issued(&self) -> u64 {
        self.table.reads.load(Ordering::Relaxed)
    }

    /// Everything in log order from a position up to another, or up to the end as of now. Segments in it
    /// are not recycled before the scan has passed them.
    #[must_use]
    pub fn scan(&self, from: LogPosition, to: Option<LogPosition>) -> Scan {
        Scan::new(self.clone(), from, to)
    }

    /// Reads and checks every byte, in log order.
    #[must_use]
    pub fn verify(&self) -> Verify {
        Verify::new(self.clone())
    }

    /// All segments in log order.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.table.infos()
    }

    /// Who the log is.
    #[must_use]
    pub fn identity(&self) -> LogIdentity {
        self.table.identity
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    fn segment_of(&self, place: EntryPlace) -> SegmentNumber {
        self.table.identity.segment_of(place.position)
    }

    /// How many of `rest` are read together with the first of them.
    fn extent(&self, first: EntryPlace, rest: &[(usize, EntryPlace)]) -> usize {
        let number = self.segment_of(first);
        let start = first.position.0;
        let mut end = end_of(first);
        rest.iter()
            .skip(1)
            .take_while(|(_, place)| {
                let is_near = self.segment_of(*place) == number
                    && place.position.0 <= end.saturating_add(GAP_BYTES_MAX)
                    && end_of(*place).saturating_sub(start) <= EXTENT_BYTES_MAX;
                if is_near {
                    end = end.max(end_of(*place));
                }
                is_near
            })
            .count()
            + 1
    }

    fn read_extent(
        &self,
        extent: &[(usize, EntryPlace)],
        kept: Option<&Extents>,
        answers: &mut [Option<Result<EntryRead, ReadError>>],
    ) {
        let (Some((_, first)), Some((_, last))) = (extent.first(), extent.last()) else {
            return;
        };
        let reading = kept.map(|kept| (kept, kept.begin(first.position.0..end_of(*last))));
        let mut extent = extent.to_vec();
        if let Some((kept, _)) = &reading {
            // Whoever was waited for may have read it.
            extent.retain(|(asked, place)| !self.found(kept, (*asked, *place), answers));
        }
        let Some((_, first)) = extent.first() else {
            return;
        };
        let Some(segment) = self.table.segment(self.segment_of(*first)) else {
            return;
        };
        let base = segment.base();
        let durable = segment.end().0;
        let unit = self.table.identity.unit();
        let is_inside = |place: &EntryPlace| end_of(*place) <= durable;
        let end = extent
            .iter()
            .filter(|(_, place)| is_inside(place))
            .map(|(_, place)| end_of(*place))
            .max();
        let Some(end) = end else {
            return;
        };
        let start = round_down(first.position.0, unit);
        let length = round_up(end - start, unit);
        // Blocks are written once: the first and the last, which neighbours share, may be here already.
        let block = |at: u64| kept.and_then(|kept| kept.part(&(at..at.saturating_add(unit))));
        let edges = Edges {
            front: block(start),
            back: block(start.saturating_add(length).saturating_sub(unit)),
        };
        let read = self.read_between(&segment, start - base, length, &edges);
        if let (Some((_, reading)), Ok(bytes)) = (reading, &read) {
            // The buffer is longer than what was read into it.
            let read = bytes.slice(..index(length).min(bytes.len()));
            reading.done(start, &read);
        }
        for (asked, place) in extent.iter().filter(|(_, place)| is_inside(place)) {
            let answer = match &read {
                Ok(bytes) => self.entry_in(&segment, bytes, start, *place),
                Err(why) => Err(ReadError::Io {
                    file: segment.name.clone(),
                    why: why.to_string(),
                }),
            };
            if let Some(slot) = answers.get_mut(*asked) {
                *slot = Some(answer);
            }
        }
    }

    /// Answers from what is kept, if it is.
    fn found(
        &self,
        kept: &Extents,
        (asked, place): (usize, EntryPlace),
        answers: &mut [Option<Result<EntryRead, ReadError>>],
    ) -> bool {
        let Some((start, bytes)) = kept.find(&(place.position.0..end_of(place))) else {
            return false;
        };
        // What is gone is gone, whoever still holds its bytes.
        let Some(segment) = self.table.segment(self.segment_of(place)) else {
            return false;
        };
        if let Some(slot) = answers.get_mut(asked) {
            *slot = Some(self.entry_in(&segment, &bytes, start, place));
        }
        true
    }

    pub(crate) fn read_range(
        &self,
        segment: &Segment,
        offset: u64,
        length: u64,
    ) -> std::io::Result<Bytes> {
        self.read_between(segment, offset, length, &Edges::default())
    }

    /// The same, but for blocks at its edges that are here already.
    fn read_between(
        &self,
        segment: &Segment,
        offset: u64,
        length: u64,
        edges: &Edges,
    ) -> std::io::Result<Bytes> {
        let file = self.table.file(segment)?;
        let mut lent = self.table.buffers.lend(index(length));
        let into = lent
            .bytes_mut()
            .get_mut(..index(length))
            .unwrap_or_default();
        let front = edges.front.as_deref().unwrap_or_default();
        let back = edges.back.as_deref().unwrap_or_default();
        let (front_end, back_start) = (front.len(), into.len().saturating_sub(back.len()));
        if let Some(edge) = into.get_mut(back_start..) {
            edge.copy_from_slice(back);
        }
        if let Some(edge) = into.get_mut(..front_end) {
            edge.copy_from_slice(front);
        }
        // Nothing where one block is all there is.
        if let Some(middle) = into
            .get_mut(front_end..back_start)
            .filter(|middle| !middle.is_empty())
        {
            self.table.reads.fetch_add(1, Ordering::Relaxed);
            file.read_at(offset.saturating_add(front_end as u64), middle)?;
        }
        Ok(lent.share())
    }

    fn entry_in(
        &self,
        segment: &Segment,
        extent: &Bytes,
        start: u64,
        place: EntryPlace,
    ) -> Result<EntryRead, ReadError> {
        let seed = self.table.identity.seed;
        let at = index(place.position.0 - start);
        let end = at.saturating_add(place.length as usize);
        let frame = extent
            .get(at..end)
            .and_then(|bytes| Frame::decode(bytes, seed, place.position.0))
            .filter(|frame| frame.place == place);
        let Some(frame) = frame else {
            return Err(ReadError::Damaged(Box::new(Damage {
                file: segment.name.clone(),
                from: place.position,
                to: LogPosition(end_of(place)),
                reason: DamageReason::EntryHeader,
                entry: None,
            })));
        };
        let body = extent.slice(at.saturating_add(FRAME_BYTES)..end);
        if seed.crc(&body) != frame.body_crc {
            let damage = rotten_body(&segment.name, &frame);
            return Err(ReadError::Damaged(Box::new(damage)));
        }
        Ok(EntryRead {
            header: frame.header,
            body,
        })
    }
}

fn end_of(place: EntryPlace) -> u64 {
    place.position.0.saturating_add(place.length.into())
}

//! The log's single writer: runs in, places out, one flush each.

use std::sync::Arc;

use crate::domain::checksum::{crc32c_append, crc32c_combine};
use crate::domain::entry::{EntryPlace, NewEntry};
use crate::domain::id::LogPosition;

use super::active::{Active, Closing, begin_segment};
use super::buffer::{AlignedBuffer, put, zero};
use super::codec::{index, round_up};
use super::error::LogError;
use super::flush::{FLUSH_HEADER_BYTES, FlushHeader};
use super::frame::{FRAME_ALIGNMENT, FRAME_BYTES, Frame};
use super::header::{LogIdentity, SegmentHeader, SegmentNumber};
use super::reader::LogReader;
use super::segments::{SegmentInfo, Table, Taken};
use super::spares::{Filling, Spares};
use super::summary::{push_record, record_bytes};

/// Bodies are copied and summed in pieces that stay in the nearest cache.
const COPY_BYTES: usize = 16 << 10;
/// The next segment is made once this part (a quarter) of the active one is used.
const AHEAD_PART: u64 = 4;
/// From this mean size on, flushes gain less from blocks written before than the writing costs.
const LARGE_FLUSH_BYTES: u64 = 64 << 10;
/// Units of the very last room that only openings use, so that a full log can still be opened.
const OPENING_UNITS: u64 = 16;

/// What a run is for: how much of the reserve it may use when the disk is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Room {
    /// Payloads: none of the reserve.
    Normal,
    /// Acknowledgements, decisions: all but the last segment of it.
    Decisions,
    /// Deletes, retention, snapshots, the mark, the cleaner: all of it.
    Housekeeping,
}

/// How much may be appended now, in bytes as [`encoded_length`] counts, nearly: flush headers and padding
/// are not taken off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomLeft {
    /// For [`Room::Normal`]; 0 means payloads are refused.
    pub normal_bytes: u64,
    /// For [`Room::Decisions`].
    pub decisions_bytes: u64,
    /// For [`Room::Housekeeping`].
    pub housekeeping_bytes: u64,
    /// Why no more segments can be made ready, if so; otherwise the figures grow as they are used.
    pub full: Option<String>,
}

/// What became of a recycled segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Recycled {
    /// Its file is ready for a new segment.
    Kept,
    /// There are enough spares: its file is gone.
    Deleted,
    /// A reader holds it; nothing has happened.
    Busy,
}

/// How much of a flush an entry takes, in bytes.
#[must_use]
pub fn encoded_length(entry: &NewEntry) -> u32 {
    let length = round_up((FRAME_BYTES + entry.body.len()) as u64, FRAME_ALIGNMENT);
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// An open log and its only writer.
pub struct Log {
    pub(super) table: Arc<Table>,
    pub(super) spares: Spares,
    pub(super) active: Active,
    pub(super) buffer: AlignedBuffer,
    pub(super) incarnation: u32,
    pub(super) next_flush: u64,
    pub(super) next_index: u64,
    pub(super) tail_closed: bool,
    pub(super) next_segment: u64,
    pub(super) sealed: Option<String>,
}

impl Log {
    /// Appends one run in one flush; it is durable when this returns `Ok`, with the place of each entry.
    /// The last entry must not be tied to a next one.
    ///
    /// # Errors
    /// [`LogError::Full`] and [`LogError::TooLarge`] are refusals: nothing was written, the log goes on.
    /// Anything else seals the log; what was being written may or may not be found by the next opening.
    pub fn append(
        &mut self,
        entries: &[NewEntry],
        room: Room,
    ) -> Result<Vec<EntryPlace>, LogError> {
        self.check_open()?;
        assert!(
            entries.last().is_none_or(|last| !last.header.tied_to_next),
            "a tied run lies in one flush (L4)"
        );
        let bytes: u64 = entries.iter().map(|e| u64::from(encoded_length(e))).sum();
        let bytes_max = u64::from(self.append_capacity());
        if bytes > bytes_max {
            return Err(LogError::TooLarge { bytes, bytes_max });
        }
        let summary = entries
            .iter()
            .map(|entry| record_bytes(entry.header.kind, &entry.facts))
            .sum();
        self.make_room(bytes, summary, room)?;
        let places = self.flush(entries, false)?;
        self.ask_for_spares();
        Ok(places)
    }

    /// Closes the tail with an empty flush, unless it is closed already: for idle moments. What lies
    /// before it can no longer be taken for torn.
    ///
    /// # Errors
    /// As [`Log::append`]; a log too full for it is left as it is.
    pub fn close_tail(&mut self) -> Result<(), LogError> {
        self.check_open()?;
        if self.tail_closed {
            return Ok(());
        }
        self.empty_flush(false)
    }

    /// Closes the tail and notes that the log was stopped cleanly; the next opening says so.
    ///
    /// # Errors
    /// As [`Log::close_tail`].
    pub fn stop(&mut self) -> Result<(), LogError> {
        self.check_open()?;
        self.empty_flush(true)
    }

    fn empty_flush(&mut self, clean_stop: bool) -> Result<(), LogError> {
        match self.make_room(0, 0, Room::Housekeeping) {
            Ok(()) => self.flush(&[], clean_stop).map(drop),
            Err(LogError::Full { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// How many bytes, as [`encoded_length`] counts them, one append may carry.
    #[must_use]
    pub fn append_capacity(&self) -> u32 {
        self.table.options.capacity()
    }

    /// Where the next flush begins.
    #[must_use]
    pub fn end(&self) -> LogPosition {
        LogPosition(self.active.segment.base().saturating_add(self.active.end))
    }

    /// Which opening for writing this is, from 1.
    #[must_use]
    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// What the next entry's log index must be.
    #[must_use]
    pub fn next_index(&self) -> u64 {
        self.next_index
    }

    /// Who this log is.
    #[must_use]
    pub fn identity(&self) -> LogIdentity {
        self.table.identity
    }

    /// Why the log is sealed, if it is.
    #[must_use]
    pub fn sealed(&self) -> Option<&str> {
        self.sealed.as_deref()
    }

    /// A way to read it from any thread.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::clone(&self.table))
    }

    /// All segments in log order.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.table.infos()
    }

    /// Takes a closed segment out of the log, durably; its file becomes a spare or goes.
    ///
    /// # Errors
    /// [`LogError::NotRecyclable`] for a segment that is unknown or still written to; a failed write seals.
    pub fn recycle(&mut self, number: SegmentNumber) -> Result<Recycled, LogError> {
        let Some(name) = self.take_out(number)? else {
            return Ok(Recycled::Busy);
        };
        match self.spares.retire_here(&name) {
            Ok(true) => Ok(Recycled::Kept),
            Ok(false) => Ok(Recycled::Deleted),
            Err(error) => Err(self.seal(format!("recycling {name}"), error)),
        }
    }

    /// The same, without waiting for the disk: it is out of the log at once, and its file is put away behind
    /// those of earlier ones, on the thread that makes segments ready, where `retired` is called when that is
    /// durable. Until then it may be part of the log again after a restart. What the disk refuses seals the log
    /// when it is used next. False, and nothing has happened, where a reader holds it.
    ///
    /// # Errors
    /// [`LogError::NotRecyclable`] for a segment that is unknown or still written to; a sealed log.
    pub fn retire(
        &mut self,
        number: SegmentNumber,
        retired: impl FnOnce() + Send + 'static,
    ) -> Result<bool, LogError> {
        if self.table.options.prepare_inline {
            let is_out = self.recycle(number)? != Recycled::Busy;
            if is_out {
                retired();
            }
            return Ok(is_out);
        }
        let Some(name) = self.take_out(number)? else {
            return Ok(false);
        };
        self.spares.retire(name, Box::new(retired));
        Ok(true)
    }

    /// Takes a closed segment out of the table, and says what its file is called; nothing where it is held.
    fn take_out(&mut self, number: SegmentNumber) -> Result<Option<String>, LogError> {
        self.check_open()?;
        let refuse = |why| Err(LogError::NotRecyclable { number, why });
        if number == self.active.segment.number {
            return refuse("it is being written to");
        }
        match self.table.take_unheld(number) {
            Taken::Out(segment) => Ok(Some(segment.name.clone())),
            Taken::Held => Ok(None),
            Taken::Unknown => refuse("there is no such segment"),
        }
    }

    /// What may be appended now, for admission.
    #[must_use]
    pub fn free_room(&self) -> RoomLeft {
        let identity = self.table.identity;
        let stock = self.spares.stock();
        let fixed = 3 * identity.unit() + self.active.summary.len() as u64;
        let here = if self.active.closed {
            0
        } else {
            identity
                .segment_bytes
                .saturating_sub(self.active.end + fixed)
        };
        let each = identity.segment_bytes.saturating_sub(4 * identity.unit());
        let behind = |keep: usize| match (stock.ready.checked_sub(keep), &stock.failed) {
            (Some(spares), Some(_)) => here + each.saturating_mul(spares as u64),
            (None, Some(_)) => 0,
            (spares, None) => here + each.saturating_mul(spares.unwrap_or(0).max(1) as u64),
        };
        RoomLeft {
            normal_bytes: behind(self.kept_by(Room::Normal)),
            decisions_bytes: behind(self.kept_by(Room::Decisions)),
            housekeeping_bytes: behind(0),
            full: stock.failed,
        }
    }

    fn spares_kept(&self) -> usize {
        self.table.options.spare_segments as usize
    }

    fn kept_by(&self, room: Room) -> usize {
        match room {
            Room::Normal => self.spares_kept(),
            Room::Decisions => self.spares_kept().saturating_sub(1),
            Room::Housekeeping => 0,
        }
    }

    /// One more than the reserve once a part of the active segment is used.
    pub(super) fn ask_for_spares(&self) {
        let active = &self.active;
        let ahead = usize::from(active.end > self.table.identity.segment_bytes / AHEAD_PART);
        let flushes = self
            .next_flush
            .saturating_sub(active.segment.header.first_flush);
        let filling = if active.end / flushes.max(1) >= LARGE_FLUSH_BYTES {
            Filling::Allocated
        } else {
            Filling::Zeros
        };
        self.spares.want(self.spares_kept() + ahead, filling);
    }

    fn check_open(&mut self) -> Result<(), LogError> {
        if let Some((name, error)) = self.spares.stuck() {
            return Err(self.seal(format!("recycling {name}"), error));
        }
        match &self.sealed {
            Some(why) => Err(LogError::Sealed { why: why.clone() }),
            None => Ok(()),
        }
    }

    fn seal(&mut self, what: String, source: std::io::Error) -> LogError {
        self.sealed
            .get_or_insert_with(|| format!("{what}: {source}"));
        LogError::Io { what, source }
    }

    /// Sees to it that a flush of so many entry bytes fits the active segment together with its summary,
    /// beginning the next segment if need be.
    pub(super) fn make_room(
        &mut self,
        bytes: u64,
        summary: u64,
        room: Room,
    ) -> Result<(), LogError> {
        let identity = self.table.identity;
        let unit = identity.unit();
        let flush = round_up(FLUSH_HEADER_BYTES as u64 + bytes, unit);
        // Behind every flush there stays room for an empty one that closes the tail, and the footer.
        let needed = |end: u64, summed: u64| end + flush + unit + round_up(summed, unit) + unit;
        if needed(unit, summary) > identity.segment_bytes {
            let bytes_max = identity.segment_bytes.saturating_sub(4 * unit + summary);
            return Err(LogError::TooLarge { bytes, bytes_max });
        }
        let keep = self.kept_by(room);
        let summed = self.active.summary.len() as u64 + summary;
        let needed = needed(self.active.end, summed);
        if self.active.closed || needed > identity.segment_bytes {
            return self.roll(keep);
        }
        let stock = self.spares.stock();
        let Some(why) = stock.failed else {
            return Ok(());
        };
        let last_room = needed + OPENING_UNITS * unit > identity.segment_bytes;
        if stock.ready < keep || (stock.ready == 0 && last_room && bytes > 0) {
            return Err(LogError::Full { why });
        }
        Ok(())
    }

    /// Ends the active segment and begins the next. The spare is taken first: without one nothing happens.
    fn roll(&mut self, keep: usize) -> Result<(), LogError> {
        let spare = self.spares.take(keep)?;
        let closing = Closing {
            last_flush: self.next_flush.saturating_sub(1),
            next_index: self.next_index,
            incarnation: self.incarnation,
        };
        if !self.active.closed
            && let Err(error) = self.active.close(closing, &mut self.buffer)
        {
            let what = format!("writing the summary of {}", self.active.segment.name);
            return Err(self.seal(what, error));
        }
        let header = SegmentHeader {
            identity: self.table.identity,
            number: Some(SegmentNumber(self.next_segment)),
            first_flush: self.next_flush,
            first_index: self.next_index,
            previous_end: self.end().0,
            incarnation: self.incarnation,
        };
        match begin_segment(header, spare, &mut self.buffer) {
            Ok((segment, file)) => {
                self.next_segment += 1;
                self.table.add(Arc::clone(&segment));
                self.active = Active::begin(segment, file);
                Ok(())
            }
            Err(error) => Err(self.seal("beginning a segment".to_owned(), error)),
        }
    }

    /// Lays the run out in the buffer and writes it; there is room for it.
    pub(super) fn flush(
        &mut self,
        entries: &[NewEntry],
        clean_stop: bool,
    ) -> Result<Vec<EntryPlace>, LogError> {
        let position = self.end().0;
        let (places, length, frames_crc) = self.lay_out(position, entries);
        let newest_index = entries
            .iter()
            .map(|entry| entry.header.index.0.saturating_add(1))
            .max();
        let next_index = self.next_index.max(newest_index.unwrap_or(0));
        let header = FlushHeader {
            clean_stop,
            incarnation: self.incarnation,
            entries: u32::try_from(entries.len()).unwrap_or(u32::MAX),
            number: self.next_flush,
            position,
            length: u32::try_from(length).unwrap_or(u32::MAX),
            frames_crc,
            next_index,
        };
        let identity = self.table.identity;
        let padded = round_up(length as u64, identity.unit());
        let out = self.buffer.bytes_mut().get_mut(..index(padded));
        let out = out.unwrap_or_default();
        put(out, 0, &header.encode(identity.seed));
        zero(out, length);
        if let Err(error) = self.active.file.write_at_synced(self.active.end, out) {
            let what = format!("writing to {}", self.active.segment.name);
            return Err(self.seal(what, error));
        }
        self.next_flush += 1;
        self.next_index = next_index;
        self.tail_closed = entries.is_empty();
        self.note_flushed(entries, &places, padded);
        Ok(places)
    }

    fn lay_out(&mut self, position: u64, entries: &[NewEntry]) -> (Vec<EntryPlace>, usize, u32) {
        let seed = self.table.identity.seed;
        let out = self.buffer.bytes_mut();
        let mut places = Vec::with_capacity(entries.len());
        let mut frames_crc = seed.0;
        let mut at = FLUSH_HEADER_BYTES;
        for entry in entries {
            let frame_end = at + FRAME_BYTES;
            let known = entry.body.crc();
            let known = known.map(|crc| crc32c_combine(seed.0, crc, entry.body.len()));
            let mut body_crc = seed.0;
            let mut copied = frame_end;
            let pieces = entry.body.pieces().iter();
            for piece in pieces.flat_map(|piece| piece.chunks(COPY_BYTES)) {
                put(out, copied, piece);
                if known.is_none() {
                    body_crc = crc32c_append(body_crc, piece);
                }
                copied += piece.len();
            }
            let place = EntryPlace {
                position: LogPosition(position + at as u64),
                length: u32::try_from(copied - at).unwrap_or(u32::MAX),
            };
            let frame = Frame {
                header: entry.header,
                place,
                body_crc: known.unwrap_or(body_crc),
            };
            let encoded = frame.encode(seed);
            put(out, at, &encoded);
            frames_crc = crc32c_append(frames_crc, &encoded);
            push_record(
                &mut self.active.summary,
                &encoded,
                entry.header.kind,
                &entry.facts,
            );
            places.push(place);
            at = copied.next_multiple_of(index(FRAME_ALIGNMENT));
            zero(out.get_mut(..at).unwrap_or_default(), copied);
        }
        (places, at, frames_crc)
    }

    fn note_flushed(&mut self, entries: &[NewEntry], places: &[EntryPlace], padded: u64) {
        let active = &mut self.active;
        active.end += padded;
        active.entries += places.len() as u64;
        let newest = entries
            .iter()
            .filter(|entry| !entry.header.moved)
            .map(|entry| entry.header.appended)
            .max();
        active.newest = active.newest.max(newest);
        let mut state = active.segment.state();
        state.end = active.end;
        state.entries = active.entries;
        state.newest = active.newest;
    }
}

#[cfg(test)]
mod tests;

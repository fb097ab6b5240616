//! The segment being appended to, from a spare to its footer.

use std::sync::Arc;

use crate::domain::time::WallMs;

use super::buffer::{AlignedBuffer, put, zero};
use super::codec::{index, round_up};
use super::disk::DiskFile;
use super::header::{LogIdentity, SegmentHeader, SegmentNumber};
use super::options::LogOptions;
use super::segments::{Segment, SegmentState};
use super::spares::Spare;
use super::summary::{FOOTER_BYTES, Footer};

/// The segment being appended to.
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) end: u64,
    pub(super) summary: Vec<u8>,
    /// False where damage was found in it: a summary would hide that.
    pub(super) summarised: bool,
    pub(super) entries: u64,
    pub(super) newest: Option<WallMs>,
    pub(super) closed: bool,
}

impl Active {
    pub(super) fn begin(segment: Arc<Segment>, file: Arc<dyn DiskFile>) -> Self {
        let end = segment.header.identity.unit();
        Self {
            segment,
            file,
            end,
            summary: Vec::new(),
            summarised: true,
            entries: 0,
            newest: None,
            closed: false,
        }
    }

    /// Ends it: summary and footer, in pieces of what the buffer holds, the footer last.
    pub(super) fn close(
        &mut self,
        closing: Closing,
        buffer: &mut AlignedBuffer,
    ) -> std::io::Result<()> {
        let identity = self.segment.header.identity;
        let unit = identity.unit();
        let summary: &[u8] = if self.summarised { &self.summary } else { &[] };
        let footer = Footer {
            summarised: self.summarised,
            number: self.segment.number,
            end: self.segment.base() + self.end,
            last_flush: closing.last_flush,
            next_index: closing.next_index,
            entries: self.entries,
            summary_bytes: summary.len() as u64,
            summary_crc: identity.seed.crc(summary),
            incarnation: closing.incarnation,
            newest: self.newest.map_or(i64::MIN, |newest| newest.0),
        };
        let mut at = identity.segment_bytes - unit - round_up(summary.len() as u64, unit);
        for piece in summary.chunks(buffer.len()) {
            let length = index(round_up(piece.len() as u64, unit));
            let out = buffer.bytes_mut().get_mut(..length).unwrap_or_default();
            put(out, 0, piece);
            zero(out, piece.len());
            self.file.write_at_synced(at, out)?;
            at += length as u64;
        }
        let out = buffer.bytes_mut().get_mut(..index(unit));
        let out = out.unwrap_or_default();
        put(out, 0, &footer.encode(identity.seed));
        zero(out, FOOTER_BYTES);
        self.file.write_at_synced(at, out)?;
        self.closed = true;
        let mut state = self.segment.state();
        state.closed = true;
        state.footer = Some(footer);
        Ok(())
    }
}

/// What the log knows when a segment ends.
pub(super) struct Closing {
    pub(super) last_flush: u64,
    pub(super) next_index: u64,
    pub(super) incarnation: u32,
}

/// Turns a spare into the segment `header` names, durably.
pub(super) fn begin_segment(
    header: SegmentHeader,
    spare: Spare,
    buffer: &mut AlignedBuffer,
) -> std::io::Result<(Arc<Segment>, Arc<dyn DiskFile>)> {
    let unit = buffer.bytes_mut().get_mut(..index(header.identity.unit()));
    let unit = unit.unwrap_or_default();
    header.fill(unit);
    spare.file.write_at_synced(0, unit)?;
    let number = header.number.unwrap_or(SegmentNumber(0));
    let state = SegmentState {
        end: header.identity.unit(),
        ..SegmentState::default()
    };
    let segment = Segment::new(number, spare.name, header, state);
    Ok((Arc::new(segment), spare.file))
}

/// A write buffer for flushes of these options.
pub(super) fn flush_buffer(options: &LogOptions, identity: LogIdentity) -> AlignedBuffer {
    let bytes = u64::from(options.flush_bytes_max).max(identity.unit());
    AlignedBuffer::new(index(round_up(bytes, identity.unit())))
}

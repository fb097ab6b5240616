//! The segments of an open log: the table that the writer changes and every reader looks into.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::domain::id::LogPosition;
use crate::domain::time::WallMs;

use super::buffer::BufferPool;
use super::disk::{Disk, DiskFile};
use super::error::{Damage, DamageReason};
use super::header::{LogIdentity, SegmentHeader, SegmentNumber};
use super::options::LogOptions;
use super::summary::Footer;

/// Files kept open for reading; older ones are opened again when they are asked for.
const OPEN_FILES_MAX: usize = 512;

/// One segment as the outside sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number.
    pub number: SegmentNumber,
    /// Its file's name, for messages.
    pub file: String,
    /// Where it starts.
    pub base: LogPosition,
    /// Where its last flush ends.
    pub end: LogPosition,
    /// Whether nothing will be appended to it any more.
    pub closed: bool,
    /// Its size on disk.
    pub bytes: u64,
    /// Entries in it; 0 where a closed segment's footer cannot be read.
    pub entries: u64,
    /// The append time of its newest entry.
    pub newest: Option<WallMs>,
}

pub(crate) struct Segment {
    pub(crate) number: SegmentNumber,
    pub(crate) name: String,
    pub(crate) header: SegmentHeader,
    state: Mutex<SegmentState>,
}

#[derive(Clone, Default)]
pub(crate) struct SegmentState {
    /// Open for reading, while it is among those kept.
    pub(crate) file: Option<Arc<dyn DiskFile>>,
    /// Offset in the segment behind its last durable flush.
    pub(crate) end: u64,
    pub(crate) closed: bool,
    pub(crate) footer: Option<Footer>,
    pub(crate) entries: u64,
    pub(crate) newest: Option<WallMs>,
}

impl Segment {
    pub(crate) fn new(
        number: SegmentNumber,
        name: String,
        header: SegmentHeader,
        state: SegmentState,
    ) -> Self {
        Self {
            number,
            name,
            header,
            state: Mutex::new(state),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, SegmentState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn base(&self) -> u64 {
        self.header.identity.base(self.number)
    }

    pub(crate) fn end(&self) -> LogPosition {
        LogPosition(self.base().saturating_add(self.state().end))
    }

    pub(crate) fn damage(&self, from: u64, to: u64, reason: DamageReason) -> Damage {
        Damage {
            file: self.name.clone(),
            from: LogPosition(self.base().saturating_add(from)),
            to: LogPosition(self.base().saturating_add(to)),
            reason,
            entry: None,
        }
    }

    fn info(&self) -> SegmentInfo {
        let state = self.state().clone();
        SegmentInfo {
            number: self.number,
            file: self.name.clone(),
            base: LogPosition(self.base()),
            end: LogPosition(self.base().saturating_add(state.end)),
            closed: state.closed,
            bytes: self.header.identity.segment_bytes,
            entries: state.entries,
            newest: state.newest,
        }
    }
}

/// All segments of a log by number.
pub(crate) struct Table {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) identity: LogIdentity,
    pub(crate) options: LogOptions,
    pub(crate) buffers: BufferPool,
    /// Reads issued to the disk.
    pub(crate) reads: AtomicU64,
    segments: RwLock<BTreeMap<SegmentNumber, Arc<Segment>>>,
    opened: Mutex<VecDeque<SegmentNumber>>,
}

impl Table {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        identity: LogIdentity,
        options: LogOptions,
        segments: BTreeMap<SegmentNumber, Arc<Segment>>,
    ) -> Self {
        Self {
            disk,
            identity,
            options,
            buffers: BufferPool::new(),
            reads: AtomicU64::new(0),
            segments: RwLock::new(segments),
            opened: Mutex::default(),
        }
    }

    pub(crate) fn segment(&self, number: SegmentNumber) -> Option<Arc<Segment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.get(&number).cloned()
    }

    /// A snapshot in log order. Whoever holds a segment keeps it from being recycled.
    pub(crate) fn all(&self) -> Vec<Arc<Segment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.values().cloned().collect()
    }

    pub(crate) fn infos(&self) -> Vec<SegmentInfo> {
        self.all().iter().map(|segment| segment.info()).collect()
    }

    pub(crate) fn add(&self, segment: Arc<Segment>) {
        let mut segments = self
            .segments
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        segments.insert(segment.number, segment);
    }

    /// Takes a segment out, unless somebody else holds it.
    pub(crate) fn take_unheld(&self, number: SegmentNumber) -> Taken {
        let mut segments = self
            .segments
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match segments.get(&number) {
            None => Taken::Unknown,
            Some(segment) if Arc::strong_count(segment) > 1 => Taken::Held,
            Some(_) => segments.remove(&number).map_or(Taken::Unknown, Taken::Out),
        }
    }

    /// The segment's open file; opens it if need be.
    pub(crate) fn file(&self, segment: &Segment) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = &segment.state().file {
            return Ok(Arc::clone(file));
        }
        let file = self.disk.open(&segment.name)?;
        segment.state().file = Some(Arc::clone(&file));
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.push_back(segment.number);
        let oldest = (opened.len() > OPEN_FILES_MAX)
            .then(|| opened.pop_front())
            .flatten();
        drop(opened);
        if let Some(oldest) = oldest.and_then(|number| self.segment(number)) {
            oldest.state().file = None;
        }
        Ok(file)
    }
}

pub(crate) enum Taken {
    Out(Arc<Segment>),
    Held,
    Unknown,
}

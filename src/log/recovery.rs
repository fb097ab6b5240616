//! Opening a log: who the files are, where the log ends, and a new incarnation.
//!
//! [`survey`] only reads; [`Log::open`] then syncs again what it keeps, and writes an empty flush of the
//! next incarnation behind it. Dying anywhere in between leaves what the next opening does again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::domain::id::{ClusterId, LogPosition};
use crate::domain::time::WallMs;

use super::active::{Active, begin_segment, flush_buffer};
use super::buffer::AlignedBuffer;
use super::codec::{Seed, index};
use super::disk::{Disk, DiskFile};
use super::error::{Damage, DamageReason, LogError};
use super::flush::FlushHeader;
use super::header::{HeaderFound, LogIdentity, SegmentHeader, SegmentNumber, VERSION};
use super::options::LogOptions;
use super::reader::LogReader;
use super::segments::{Segment, SegmentState, Table};
use super::spares::{SUFFIX, Spare, Spares};
use super::summary::{Footer, push_record};
use super::walk::{Found, Unreadable, Walk};
use super::writer::{Log, Room};

/// A log just opened for writing.
pub struct Opened {
    /// The log.
    pub log: Log,
    /// Whether it holds no entry and never held one.
    pub fresh: bool,
    /// Which opening for writing this is, from 1.
    pub incarnation: u32,
    /// Where the next flush begins.
    pub end: LogPosition,
    /// What the next entry's log index must be.
    pub next_index: u64,
    /// The newest append time found in footers and in the tail: times go on from it.
    pub newest: Option<WallMs>,
    /// Damage met while opening: in headers and in the last segment. Older segments tell theirs when they
    /// are scanned.
    pub damage: Vec<Damage>,
    /// Whether the last stop was none: the tail does not end with the note of a clean one.
    pub unclean: bool,
    /// Who it is.
    pub identity: LogIdentity,
}

/// A log looked at without writing a byte, for offline checks.
pub struct Inspected {
    /// A way to read it.
    pub reader: LogReader,
    /// Where it ends.
    pub end: LogPosition,
    /// The next log index.
    pub next_index: u64,
    /// Damage met in headers and in the last segment.
    pub damage: Vec<Damage>,
    /// Whether the last stop was none.
    pub unclean: bool,
    /// Who it is.
    pub identity: LogIdentity,
}

impl Log {
    /// Opens the log of a directory for writing, creating it if there is none. Whoever calls this holds
    /// the directory alone.
    ///
    /// # Errors
    /// [`LogError::Options`], [`LogError::NewerFormat`], [`LogError::Foreign`], [`LogError::Twice`],
    /// [`LogError::NoHeader`]; [`LogError::Full`] when there is no room for the first segment;
    /// [`LogError::Io`].
    pub fn open(disk: Arc<dyn Disk>, mut options: LogOptions) -> Result<Opened, LogError> {
        options.check(disk.write_unit())?;
        let survey = survey(&disk, &options)?;
        for name in &survey.blank {
            disk.remove(name)
                .map_err(LogError::io(format!("removing {name}, never made ready")))?;
        }
        disk.sync_dir()
            .map_err(LogError::io("syncing the log directory"))?;
        let identity = match survey.identity {
            Some(identity) => identity,
            None => new_identity(&options, disk.write_unit())?,
        };
        options.segment_bytes = identity.segment_bytes;
        check_unit(&options, identity, disk.write_unit())?;
        let spares = Spares::start(
            Arc::clone(&disk),
            identity,
            &options,
            survey.spares,
            survey.next_name,
        )?;
        let mut buffer = flush_buffer(&options, identity);
        let fresh = survey.tail.as_ref().is_none_or(|tail| {
            tail.next_index == 1 && survey.segments.len() == 1 && survey.damage.is_empty()
        });
        let tail = match survey.tail {
            Some(tail) => tail,
            None => first_segment(identity, &spares, &mut buffer)?,
        };
        settle_tail(disk.as_ref(), &tail, &mut buffer)
            .map_err(LogError::io("syncing the tail of the log"))?;
        let highest = tail.active.segment.number.0;
        let table = Table::new(Arc::clone(&disk), identity, options, survey.segments);
        table.add(Arc::clone(&tail.active.segment));
        let mut log = Log {
            table: Arc::new(table),
            spares,
            active: tail.active,
            buffer,
            incarnation: tail.incarnation.saturating_add(1),
            next_flush: tail.next_flush,
            next_index: tail.next_index,
            tail_closed: true,
            next_segment: highest.saturating_add(1 + survey.unknown),
            sealed: None,
        };
        log.make_room(0, 0, Room::Housekeeping)?;
        log.flush(&[], false)?;
        log.ask_for_spares();
        Ok(Opened {
            fresh,
            incarnation: log.incarnation,
            end: log.end(),
            next_index: log.next_index,
            newest: survey.newest,
            damage: survey.damage,
            unclean: !fresh && !tail.clean_stop,
            identity,
            log,
        })
    }

    /// Looks at the log of a directory without writing a byte.
    ///
    /// # Errors
    /// As [`Log::open`]; [`LogError::NoLog`] where there is none.
    pub fn inspect(disk: Arc<dyn Disk>, mut options: LogOptions) -> Result<Inspected, LogError> {
        let survey = survey(&disk, &options)?;
        let (Some(identity), Some(tail)) = (survey.identity, survey.tail) else {
            return Err(LogError::NoLog);
        };
        options.segment_bytes = identity.segment_bytes;
        let end = tail.active.segment.end();
        let table = Arc::new(Table::new(disk, identity, options, survey.segments));
        Ok(Inspected {
            reader: LogReader::new(table),
            end,
            next_index: tail.next_index,
            damage: survey.damage,
            unclean: !tail.clean_stop,
            identity,
        })
    }
}

struct Survey {
    disk: Arc<dyn Disk>,
    options: LogOptions,
    identity: Option<LogIdentity>,
    segments: BTreeMap<SegmentNumber, Arc<Segment>>,
    spares: VecDeque<Spare>,
    /// Files that were not made ready to the end.
    blank: Vec<String>,
    damage: Vec<Damage>,
    newest: Option<WallMs>,
    next_name: u64,
    /// Files that may be any segment: their numbers are not given out again.
    unknown: u64,
    tail: Option<Tail>,
}

struct Tail {
    active: Active,
    next_flush: u64,
    next_index: u64,
    incarnation: u32,
    clean_stop: bool,
    /// First and last offset of the last flush that counts.
    last_flush: (u64, u64),
}

/// Makes durable what will be served. Through a cache a sync alone does not do that: pages whose sync
/// failed in an earlier life read back as written, count as clean, and are not on disk. What no later
/// write proves durable, the header and the last flush, is written again as it reads.
fn settle_tail(disk: &dyn Disk, tail: &Tail, buffer: &mut AlignedBuffer) -> std::io::Result<()> {
    let file = &tail.active.file;
    let unit = tail.active.segment.header.identity.unit();
    if disk.fallback().is_some() {
        for (from, to) in [(0, unit), tail.last_flush] {
            let mut at = from;
            while at < to {
                let length = index(to - at).min(buffer.len());
                let piece = buffer.bytes_mut().get_mut(..length).unwrap_or_default();
                file.read_at(at, piece)?;
                file.write_at_synced(at, piece)?;
                at += length as u64;
            }
        }
    }
    file.sync()
}

fn survey(disk: &Arc<dyn Disk>, options: &LogOptions) -> Result<Survey, LogError> {
    let mut survey = Survey {
        disk: Arc::clone(disk),
        options: options.clone(),
        identity: None,
        segments: BTreeMap::new(),
        spares: VecDeque::new(),
        blank: Vec::new(),
        damage: Vec::new(),
        newest: None,
        next_name: 0,
        unknown: 0,
        tail: None,
    };
    let mut names = disk
        .list()
        .map_err(LogError::io("listing the log directory"))?;
    names.retain(|name| name.ends_with(SUFFIX));
    names.sort_unstable();
    let mut unreadable = Vec::new();
    for name in names {
        survey.meet(name, &mut unreadable)?;
    }
    let Some(identity) = survey.identity else {
        return match unreadable.first() {
            None => Ok(survey),
            Some((file, _)) => Err(LogError::NoHeader {
                file: file.clone(),
                files: unreadable.len(),
            }),
        };
    };
    for (name, file) in unreadable {
        survey.identify_by_flush(identity, name, &file)?;
    }
    survey.find_ends()?;
    Ok(survey)
}

impl Survey {
    /// Sorts one file in by its header.
    fn meet(
        &mut self,
        name: String,
        unreadable: &mut Vec<(String, Arc<dyn DiskFile>)>,
    ) -> Result<(), LogError> {
        let counted = u64::from_str_radix(name.trim_end_matches(SUFFIX), 16);
        self.next_name = self.next_name.max(counted.unwrap_or(0));
        let file = self
            .disk
            .open(&name)
            .map_err(LogError::io(format!("opening {name}")))?;
        let unit = read(&file, &name, 0, u64::from(self.disk.write_unit()))?;
        let header = match SegmentHeader::find(unit.bytes()) {
            HeaderFound::Header(header) => header,
            HeaderFound::Blank => {
                self.blank.push(name);
                return Ok(());
            }
            HeaderFound::Newer(found) => {
                return Err(LogError::NewerFormat {
                    file: name,
                    found,
                    known: VERSION,
                });
            }
            HeaderFound::Unreadable => {
                unreadable.push((name, file));
                return Ok(());
            }
        };
        self.check_identity(&name, header.identity)?;
        match header.number {
            None => self.spares.push_back(Spare { name, file }),
            Some(number) => self.add(number, name, header, &file)?,
        }
        Ok(())
    }

    fn check_identity(&mut self, file: &str, found: LogIdentity) -> Result<(), LogError> {
        let options = &self.options;
        let cluster = options.cluster.unwrap_or(found.cluster);
        let identity = *self.identity.get_or_insert(found);
        if found != identity || found.cluster != cluster || found.log_id != options.log_id {
            return Err(LogError::Foreign {
                file: file.to_owned(),
                found_cluster: found.cluster,
                found_log: found.log_id,
                cluster: options.cluster.unwrap_or(identity.cluster),
                log: options.log_id,
            });
        }
        Ok(())
    }

    fn add(
        &mut self,
        number: SegmentNumber,
        name: String,
        header: SegmentHeader,
        file: &Arc<dyn DiskFile>,
    ) -> Result<(), LogError> {
        let identity = header.identity;
        let unit = identity.unit();
        let last = read(file, &name, identity.segment_bytes - unit, unit)?;
        let footer = Footer::decode(last.bytes(), identity.seed, number);
        let base = identity.base(number);
        // A footer's end outside its segment was never written by this program.
        let footer = footer
            .filter(|footer| (base + unit..base + identity.segment_bytes).contains(&footer.end));
        let newest = footer
            .map(|footer| footer.newest)
            .filter(|ms| *ms > i64::MIN);
        let state = SegmentState {
            end: footer.map_or(unit, |footer| footer.end - base),
            closed: footer.is_some(),
            entries: footer.map_or(0, |footer| footer.entries),
            newest: newest.map(WallMs),
            footer,
            ..SegmentState::default()
        };
        self.newest = self.newest.max(state.newest);
        let segment = Arc::new(Segment::new(number, name, header, state));
        if let Some(other) = self.segments.insert(number, Arc::clone(&segment)) {
            return Err(LogError::Twice {
                file: segment.name.clone(),
                other: other.name.clone(),
                number,
            });
        }
        Ok(())
    }

    /// A segment whose header is rotten twice is known by its first flush, if that can be read.
    fn identify_by_flush(
        &mut self,
        identity: LogIdentity,
        name: String,
        file: &Arc<dyn DiskFile>,
    ) -> Result<(), LogError> {
        let unit = identity.unit();
        let first = read(file, &name, unit, unit)?;
        let flush = FlushHeader::decode_anywhere(first.bytes(), identity.seed);
        let flush = flush.filter(|flush| flush.position % identity.segment_bytes == unit);
        let mut damage = Damage {
            file: name.clone(),
            from: LogPosition(0),
            to: LogPosition(0),
            reason: DamageReason::SegmentHeader,
            entry: None,
        };
        if let Some(flush) = flush {
            let number = identity.segment_of(LogPosition(flush.position));
            let base = identity.base(number);
            (damage.from, damage.to) = (LogPosition(base), LogPosition(base + unit));
            let header = SegmentHeader {
                identity,
                number: Some(number),
                first_flush: flush.number,
                first_index: 1,
                previous_end: 0,
                incarnation: flush.incarnation,
            };
            self.add(number, name, header, file)?;
        } else {
            self.unknown += 1;
        }
        self.damage.push(damage);
        Ok(())
    }

    /// Finds where each segment ends that has no footer, and the log's tail.
    fn find_ends(&mut self) -> Result<(), LogError> {
        let segments: Vec<Arc<Segment>> = self.segments.values().cloned().collect();
        for (segment, next) in segments.iter().zip(segments.iter().skip(1)) {
            if segment.state().closed {
                continue;
            }
            let base = segment.base();
            let said = next.header.previous_end.checked_sub(base);
            let said = said.filter(|end| (1..segment.header.identity.segment_bytes).contains(end));
            let end = match said {
                Some(end) => end,
                None => self.walk_tail(segment)?.active.end,
            };
            let mut state = segment.state();
            state.end = end;
            state.closed = true;
        }
        if let Some(last) = segments.last() {
            let tail = self.tail(last)?;
            let mut state = last.state();
            state.end = tail.active.end;
            state.entries = tail.active.entries;
            state.newest = tail.active.newest;
            self.newest = self.newest.max(tail.active.newest);
            drop(state);
            self.tail = Some(tail);
        }
        Ok(())
    }

    fn tail(&mut self, last: &Arc<Segment>) -> Result<Tail, LogError> {
        let state = last.state().clone();
        let Some(footer) = state.footer else {
            return self.walk_tail(last);
        };
        let mut active = Active::begin(Arc::clone(last), self.open(last)?);
        active.end = state.end;
        active.entries = state.entries;
        active.newest = state.newest;
        active.closed = true;
        Ok(Tail {
            active,
            next_flush: footer.last_flush.saturating_add(1),
            next_index: footer.next_index,
            incarnation: footer.incarnation.max(last.header.incarnation),
            clean_stop: false,
            last_flush: (0, 0),
        })
    }

    fn open(&self, segment: &Segment) -> Result<Arc<dyn DiskFile>, LogError> {
        let file = self.disk.open(&segment.name);
        file.map_err(LogError::io(format!("opening {}", segment.name)))
    }

    /// Reads a segment without a footer to its end, building the summary it will be closed with.
    fn walk_tail(&mut self, segment: &Arc<Segment>) -> Result<Tail, LogError> {
        let file = self.open(segment)?;
        let identity = segment.header.identity;
        let mut walk = Walk::new(
            Arc::clone(segment),
            Arc::clone(&file),
            self.options.facts_of,
            None,
            Unreadable::Fails,
        );
        let mut tail = Tail {
            active: Active::begin(Arc::clone(segment), file),
            next_flush: segment.header.first_flush,
            next_index: segment.header.first_index,
            incarnation: segment.header.incarnation,
            clean_stop: false,
            last_flush: (0, 0),
        };
        let reading = || LogError::io(format!("reading {}", segment.name));
        while let Some(flush) = walk.next().map_err(reading())? {
            if let Some(header) = flush.header {
                tail.next_index = tail.next_index.max(header.next_index);
                tail.incarnation = tail.incarnation.max(header.incarnation);
                tail.clean_stop = header.clean_stop;
                tail.last_flush = flush.span;
            }
            for found in flush.found {
                match found {
                    Found::Damaged(damage) => {
                        self.damage.push(damage);
                        tail.active.summarised = false;
                    }
                    Found::Entry(entry) => {
                        let header = &entry.frame.header;
                        push_record(
                            &mut tail.active.summary,
                            &entry.frame.encode(identity.seed),
                            header.kind,
                            &entry.facts,
                        );
                        tail.active.entries += 1;
                        let appended = (!header.moved).then_some(header.appended);
                        tail.active.newest = tail.active.newest.max(appended);
                    }
                }
            }
        }
        tail.active.end = walk.at();
        tail.next_flush = walk.next_number();
        Ok(tail)
    }
}

fn read(
    file: &Arc<dyn DiskFile>,
    name: &str,
    offset: u64,
    length: u64,
) -> Result<AlignedBuffer, LogError> {
    let mut buffer = AlignedBuffer::new(index(length));
    file.read_at(offset, buffer.bytes_mut())
        .map_err(LogError::io(format!("reading {name}")))?;
    Ok(buffer)
}

fn check_unit(
    options: &LogOptions,
    identity: LogIdentity,
    write_unit: u32,
) -> Result<(), LogError> {
    if identity.write_unit < write_unit {
        return Err(LogError::Options {
            why: format!(
                "the log was made for units of {} bytes, this disk asks for {write_unit}: copy it to a disk like its own",
                identity.write_unit
            ),
        });
    }
    options.check(identity.write_unit)
}

fn new_identity(options: &LogOptions, write_unit: u32) -> Result<LogIdentity, LogError> {
    let random = || {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)
            .map(|()| bytes)
            .map_err(|error| LogError::Io {
                what: "asking the system for randomness".to_owned(),
                source: std::io::Error::other(error.to_string()),
            })
    };
    let cluster = match options.cluster {
        Some(cluster) => cluster,
        None => ClusterId(random()?),
    };
    let seed = match options.seed {
        Some(seed) => seed,
        None => random()?
            .first_chunk()
            .map_or(0, |bytes| u32::from_le_bytes(*bytes)),
    };
    Ok(LogIdentity {
        cluster,
        log_id: options.log_id,
        segment_bytes: options.segment_bytes,
        write_unit,
        seed: Seed(seed),
    })
}

/// Only this one has to be ready before a new log opens; the reserve follows.
fn first_segment(
    identity: LogIdentity,
    spares: &Spares,
    buffer: &mut AlignedBuffer,
) -> Result<Tail, LogError> {
    let header = SegmentHeader {
        identity,
        number: Some(SegmentNumber(1)),
        first_flush: 1,
        first_index: 1,
        previous_end: 0,
        incarnation: 0,
    };
    let (segment, file) = begin_segment(header, spares.take(0)?, buffer)
        .map_err(LogError::io("beginning the first segment"))?;
    Ok(Tail {
        active: Active::begin(segment, file),
        next_flush: 1,
        next_index: 1,
        incarnation: 0,
        clean_stop: false,
        last_flush: (0, 0),
    })
}

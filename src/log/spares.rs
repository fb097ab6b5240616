//! Segments made ready ahead, so that a full disk is met here and never by a write of the log (L6).
//!
//! A spare is a file with a spare's header, synced, its name too. Its zeros are really written, so that
//! small flushes into it touch no metadata; where flushes are large the room is only allocated, which
//! costs them less than writing every byte twice. One thread of its own makes spares, a piece at a time so
//! that flushes under way are not held up; in simulations the caller's thread does. None is made while one
//! is left that has been in the log before.
//!
//! The same thread puts away what has left the log, one after the other, each durably before the next. As many
//! as were begun lately become spares: retention lets go of dozens at a time, the log begins the next dozens
//! soon, and to remove a file of 64 MB and make another is some 10 ms each of the file system's journal, for
//! which the log's own writes wait. Once it slows down, those beyond the reserve go.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::LogError;
use super::buffer::AlignedBuffer;
use super::codec::index;
use super::disk::{Disk, DiskFile};
use super::header::{LogIdentity, SegmentHeader};
use super::options::LogOptions;

/// How segment files are named; told apart by header, the name only has to be new.
pub(crate) const SUFFIX: &str = ".segment";
const PIECE_BYTES: u64 = 1 << 20;
/// The pause after each piece while nobody waits: at most 250 MB/s beside the log's own writes.
const PACE: Duration = Duration::from_millis(4);
/// The pause after a file was removed: the file system's journal is the log's too, and what is written waits
/// for it.
const REMOVED: Duration = Duration::from_millis(50);
/// With more segments to put away than this, there is none.
const LEAVING_MANY: usize = 64;
/// As many spares are kept as segments were begun within this time: longer than from one round of retention to
/// the next.
const KEPT_FOR: Duration = Duration::from_secs(10);
/// More than the reserve and so many are never kept.
const KEPT_MAX: usize = 128;
/// How often it is looked whether there are too many.
const LOOK: Duration = Duration::from_secs(1);
/// How long after a failure the disk is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A segment file that is ready and holds nothing.
pub(crate) struct Spare {
    pub(crate) name: String,
    pub(crate) file: Arc<dyn DiskFile>,
}

/// What is done to the room of a new segment before it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filling {
    /// Every block is written once: small flushes then change no metadata.
    Zeros,
    /// It is taken from the disk and no more.
    Allocated,
}

/// What hears that a segment is put away.
pub(crate) type Retired = Box<dyn FnOnce() + Send>;

/// The file of a segment that has left the log.
struct Leaving {
    name: String,
    retired: Retired,
}

/// How many spares there are, and why there are not more.
pub(crate) struct Stock {
    pub(crate) ready: usize,
    pub(crate) failed: Option<String>,
}

pub(crate) struct Spares {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    identity: LogIdentity,
    disk_free_bytes_min: u64,
    /// Spares that are kept in any case.
    reserve: usize,
    state: Mutex<State>,
    changed: Condvar,
    /// Whether pieces are written with pauses: not on a caller's own thread.
    is_paced: bool,
    is_urgent: AtomicBool,
    is_stopping: AtomicBool,
}

struct State {
    ready: VecDeque<Spare>,
    leaving: VecDeque<Leaving>,
    /// The segment that could not be put away, and why: nothing is tried again (L2).
    stuck: Option<(String, io::Error)>,
    target: usize,
    filling: Filling,
    failed: Option<String>,
    next_name: u64,
    /// When segments were begun, of late.
    begun: VecDeque<Instant>,
    /// A spare could not be removed: the rest stay until the next opening.
    clings: bool,
}

impl State {
    /// How many segments were begun within [`KEPT_FOR`].
    fn begun_lately(&mut self, now: Instant) -> usize {
        let is_old = |begun: &Instant| now.duration_since(*begun) >= KEPT_FOR;
        while self.begun.front().is_some_and(is_old) {
            self.begun.pop_front();
        }
        self.begun.len()
    }
}

impl Spares {
    pub(crate) fn start(
        disk: Arc<dyn Disk>,
        identity: LogIdentity,
        options: &LogOptions,
        ready: VecDeque<Spare>,
        next_name: u64,
    ) -> Result<Self, LogError> {
        let inline = options.prepare_inline;
        let shared = Arc::new(Shared {
            disk,
            identity,
            disk_free_bytes_min: options.disk_free_bytes_min,
            reserve: options.spare_segments as usize + 1,
            state: Mutex::new(State {
                ready,
                leaving: VecDeque::new(),
                stuck: None,
                target: 0,
                filling: Filling::Zeros,
                failed: None,
                next_name,
                begun: VecDeque::new(),
                clings: false,
            }),
            changed: Condvar::new(),
            is_paced: !inline,
            is_urgent: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
        });
        let thread = if inline {
            None
        } else {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name("log-spares".to_owned());
            let thread = builder.spawn(move || shared.run());
            Some(thread.map_err(LogError::io(
                "starting the thread that makes segments ready",
            ))?)
        };
        Ok(Self { shared, thread })
    }

    /// Asks for so many spares to be kept ready, new ones filled so.
    pub(crate) fn want(&self, target: usize, filling: Filling) {
        let mut state = self.shared.lock();
        let is_more = state.target < target;
        state.target = target;
        state.filling = filling;
        drop(state);
        if self.thread.is_none() {
            self.shared.fill_up();
        } else if is_more {
            self.shared.changed.notify_all();
        }
    }

    pub(crate) fn stock(&self) -> Stock {
        let state = self.shared.lock();
        Stock {
            ready: state.ready.len(),
            failed: state.failed.clone(),
        }
    }

    /// Takes a spare but leaves `keep`; waits for one that can still be made.
    pub(crate) fn take(&self, keep: usize) -> Result<Spare, LogError> {
        let mut state = self.shared.lock();
        state.target = state.target.max(keep.saturating_add(1));
        if self.thread.is_none() {
            drop(state);
            self.shared.fill_up();
            state = self.shared.lock();
        }
        loop {
            if state.ready.len() > keep
                && let Some(spare) = state.ready.pop_front()
            {
                // What a simulation keeps must not depend on the time of day.
                if self.thread.is_some() {
                    state.begun.push_back(Instant::now());
                    if state.begun.len() > KEPT_MAX {
                        state.begun.pop_front();
                    }
                }
                return Ok(spare);
            }
            // What is leaving may still become one.
            if let Some(why) = state.failed.as_ref().filter(|_| state.leaving.is_empty()) {
                return Err(LogError::Full { why: why.clone() });
            }
            self.shared.is_urgent.store(true, Ordering::Relaxed);
            self.shared.changed.notify_all();
            let waited = self.shared.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
            self.shared.is_urgent.store(false, Ordering::Relaxed);
        }
    }

    /// Puts away the file of a segment that has left the log, on the thread that makes spares.
    pub(crate) fn retire(&self, name: String, retired: Retired) {
        let leaving = Leaving { name, retired };
        self.shared.lock().leaving.push_back(leaving);
        self.shared.changed.notify_all();
    }

    /// What could not be put away, once: nothing behind it is.
    pub(crate) fn stuck(&self) -> Option<(String, io::Error)> {
        self.shared.lock().stuck.take()
    }

    /// The same on the caller's thread: whether it became a spare.
    pub(crate) fn retire_here(&self, name: &str) -> io::Result<bool> {
        self.shared.put_away(name)
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Relaxed);
        // Taken and let go, so that the thread is either before its look at the flag or in its wait.
        drop(self.shared.lock());
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It has no result, and a panic in it has been reported by its hook.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    /// The thread's life: what leaves may become what is missing, so it is seen to first.
    fn run(&self) {
        while !self.is_stopping() {
            if self.retire_one() {
                continue;
            }
            let is_short = {
                let state = self.lock();
                state.ready.len() < state.target
            };
            let failed = is_short && !self.make_one();
            if !is_short && self.give_back_one() {
                continue;
            }
            let state = self.lock();
            if self.is_stopping() {
                return;
            }
            if !state.leaving.is_empty() {
                continue;
            }
            if failed {
                drop(self.changed.wait_timeout(state, RETRY));
            } else if state.ready.len() > self.reserve && !state.clings {
                drop(self.changed.wait_timeout(state, LOOK));
            } else if state.ready.len() >= state.target {
                drop(self.changed.wait(state));
            }
        }
    }

    /// Removes a spare that is no longer worth keeping; says whether there was one.
    fn give_back_one(&self) -> bool {
        let (ready, clings) = {
            let state = self.lock();
            (state.ready.len(), state.clings)
        };
        if clings || self.is_worth_keeping(ready.saturating_sub(1)) {
            return false;
        }
        let spare = {
            let mut state = self.lock();
            // One may have been taken meanwhile.
            let is_left = state.ready.len() == ready;
            is_left.then(|| state.ready.pop_back()).flatten()
        };
        let Some(Spare { name, file }) = spare else {
            return false;
        };
        drop(file);
        let removed = self.remove(&name);
        let mut state = self.lock();
        if let Err(error) = removed {
            // It holds nothing: whatever of it is left is a spare at the next opening.
            tracing::warn!(target: "waterwheel::log", %name, %error, "a spare segment cannot be removed");
            state.clings = true;
        } else if state.leaving.is_empty() && !self.is_stopping() {
            drop(self.changed.wait_timeout(state, REMOVED));
        }
        true
    }

    /// Whether a spare is worth keeping beside so many others: as one of the reserve, or of those the log soon
    /// begins, while the disk has what a segment is made of.
    fn is_worth_keeping(&self, others: usize) -> bool {
        if others < self.reserve {
            return true;
        }
        let begun = self.lock().begun_lately(Instant::now());
        let needed = self.needed_bytes();
        let has_room = || self.disk.free_bytes().is_ok_and(|free| free >= needed);
        others < self.reserve + begun && has_room()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)?;
        self.disk.sync_dir()
    }

    fn needed_bytes(&self) -> u64 {
        let segment = self.identity.segment_bytes;
        segment.saturating_add(self.disk_free_bytes_min)
    }

    /// Puts the next away; says whether there was one. Behind one that cannot be, none is.
    fn retire_one(&self) -> bool {
        let next = self.lock().leaving.pop_front();
        let Some(leaving) = next else {
            return false;
        };
        match self.put_away(&leaving.name) {
            Ok(is_spare) => {
                (leaving.retired)();
                let state = self.lock();
                let is_short = state.ready.len() < state.target;
                let is_many = state.leaving.len() > LEAVING_MANY;
                if !is_spare && !is_short && !is_many && !self.is_stopping() {
                    drop(self.changed.wait_timeout(state, REMOVED));
                }
            }
            Err(error) => {
                let mut state = self.lock();
                state.stuck = Some((leaving.name, error));
                state.leaving.clear();
            }
        }
        true
    }

    /// Makes a spare of the file, or removes it, durably: whether it became a spare.
    fn put_away(&self, name: &str) -> io::Result<bool> {
        let ready = self.lock().ready.len();
        if !self.is_worth_keeping(ready) {
            return self.remove(name).map(|()| false);
        }
        let file = self.disk.open(name)?;
        let mut scratch = AlignedBuffer::new(index(self.identity.unit()));
        write_spare_header(&file, self.identity, scratch.bytes_mut())?;
        let mut state = self.lock();
        state.ready.push_back(Spare {
            name: name.to_owned(),
            file,
        });
        if state.ready.len() >= state.target {
            state.failed = None;
        }
        drop(state);
        self.changed.notify_all();
        Ok(true)
    }

    /// Makes what is missing on the caller's thread, up to the first failure.
    fn fill_up(&self) {
        loop {
            let state = self.lock();
            if state.ready.len() >= state.target {
                return;
            }
            drop(state);
            if !self.make_one() {
                return;
            }
        }
    }

    fn make_one(&self) -> bool {
        let (name, filling) = {
            let mut state = self.lock();
            state.next_name = state.next_name.saturating_add(1);
            (format!("{:016x}{SUFFIX}", state.next_name), state.filling)
        };
        let made = self.make(&name, filling);
        let mut state = self.lock();
        let outcome = match made {
            Ok(spare) => {
                state.ready.push_back(spare);
                state.failed = None;
                true
            }
            Err(error) => {
                state.failed = Some(format!("a segment cannot be made ready: {error}"));
                false
            }
        };
        drop(state);
        self.changed.notify_all();
        outcome
    }

    fn make(&self, name: &str, filling: Filling) -> io::Result<Spare> {
        let needed = self.needed_bytes();
        let free = self.disk.free_bytes()?;
        if free < needed {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "the disk has {free} bytes left, a segment and the rest to keep are {needed}"
                ),
            ));
        }
        let made = self
            .disk
            .create(name, self.identity.segment_bytes)
            .and_then(|file| self.fill(&file, filling).map(|()| file))
            .and_then(|file| self.disk.sync_dir().map(|()| file));
        match made {
            Ok(file) => Ok(Spare {
                name: name.to_owned(),
                file,
            }),
            Err(error) => {
                // What cannot be removed now is found blank and removed at the next opening.
                let _ = self.disk.remove(name);
                Err(error)
            }
        }
    }

    /// Zeros first and synced, the header last: a header on disk says that all behind it is.
    fn fill(&self, file: &Arc<dyn DiskFile>, filling: Filling) -> io::Result<()> {
        let unit = self.identity.unit();
        let mut piece = AlignedBuffer::new(index(PIECE_BYTES.min(self.identity.segment_bytes)));
        let mut at = match filling {
            Filling::Zeros => unit,
            Filling::Allocated => self.identity.segment_bytes,
        };
        while at < self.identity.segment_bytes {
            if self.is_stopping() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let length = PIECE_BYTES.min(self.identity.segment_bytes - at);
            let zeros = piece.bytes().get(..index(length)).unwrap_or_default();
            file.write_at(at, zeros)?;
            at += length;
            self.pause();
        }
        file.sync()?;
        write_spare_header(file, self.identity, piece.bytes_mut())
    }

    fn pause(&self) {
        let state = self.lock();
        if self.is_paced && !self.is_urgent.load(Ordering::Relaxed) && !self.is_stopping() {
            drop(self.changed.wait_timeout(state, PACE));
        }
    }
}

/// Makes a file a spare, durably. `scratch` is at least a unit of aligned memory.
pub(crate) fn write_spare_header(
    file: &Arc<dyn DiskFile>,
    identity: LogIdentity,
    scratch: &mut [u8],
) -> io::Result<()> {
    let unit = scratch.get_mut(..identity.write_unit as usize);
    let unit = unit.unwrap_or_default();
    SegmentHeader::spare(identity).fill(unit);
    file.write_at_synced(0, unit)
}

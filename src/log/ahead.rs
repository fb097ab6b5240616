//! Single records of payloads, read before they are asked for: what timers fire is served from here.
//!
//! Timers fire in another order than they were written in. A few seconds before its moment a record is
//! wished for by whoever will publish it; threads of this room read what is due soonest, in the order it
//! lies in the log, one record at a time where its payload is large. A record that is asked for and not
//! here is read at once, in the same way; many that are asked for together are read by all threads, because
//! a device answers many small reads at a time in little more time than one.
//!
//! In: [`Wish`]es, [`ReadAhead::lookup`], [`ReadAhead::fetch`]. Out: records, checked by their checksums;
//! what does not read this way is simply not here, and whoever wants it reads the payload and is told
//! what is wrong with it.
//!
//! - A1 Records, those that are being read ahead with them, directories and wishes together stay within the
//!   bound, but for one record that is larger; on top of it the threads hold what they read of payloads to
//!   find records in, and what somebody waits for.
//! - A2 What is due sooner is read sooner; a wish whose moment has come is dropped.
//! - A3 Nothing is read ahead while nobody reads the log.
//! - A4 What is not due soon is read by few threads, so that the log's writes find the device idle; what is,
//!   by all of them.
//!
//! Nothing of it survives a crash, or has to: it is a copy.

mod job;
mod read;
mod shelf;
mod wishes;

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use self::job::{Job, Part};
use self::read::PieceReader;
use self::shelf::Shelf;
use self::wishes::Wishes;
use super::reader::LogReader;
use super::tail_cache::TailCache;
use crate::domain::batch::Taken;
use crate::domain::entry::EntryPlace;
use crate::domain::id::LogPosition;

/// Wishes one thread takes at a time, and of what is due soon, so that all threads have some.
const TAKEN_MAX: usize = 64;
const TAKEN_SOON: usize = 16;
/// So many of them fill the shelf.
const TASKS: u64 = 16;
/// Threads that read what is not due soon (A4).
const UNHURRIED: usize = 4;
/// What is due within this is due soon.
const SOON_MS: i64 = 500;
/// How long a thread waits for room before it looks at the clock again.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// One record of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    /// The payload's entry.
    pub place: EntryPlace,
    /// The index of the record within the payload.
    pub index: u32,
    /// How many records the payload has.
    pub of: u32,
}

impl Piece {
    fn key(&self) -> (LogPosition, u32) {
        (self.place.position, self.index)
    }

    /// What it will take, as far as can be told.
    fn bytes(&self) -> u64 {
        u64::from(self.place.length) / u64::from(self.of.max(1)) + shelf::OVERHEAD_BYTES as u64
    }
}

/// A record that will be wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// Which.
    pub piece: Piece,
    /// When, in milliseconds of the wall clock.
    pub due_ms: i64,
}

/// What became of a record that was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// Here it is.
    Taken(Taken),
    /// It does not read alone.
    Unreadable,
    /// Those before it fill the bound.
    Beyond,
}

/// What a fetch is handed to, on a reading thread.
pub type FetchDone = Box<dyn FnOnce(Vec<Fetched>) + Send>;

/// What was read ahead so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AheadCounts {
    /// Bytes held now: records, directories and wishes.
    pub bytes: u64,
    /// Records that were asked for and here.
    pub hits: u64,
    /// Records that were asked for and not here.
    pub misses: u64,
}

/// Reads single records ahead. Dropping it ends its threads; what was asked to be fetched is answered.
pub struct ReadAhead {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    reader: PieceReader,
    cache: Arc<TailCache>,
    now_ms: Box<dyn Fn() -> i64 + Send + Sync>,
    state: Mutex<State>,
    changed: Condvar,
    hits: AtomicU64,
    misses: AtomicU64,
}

struct State {
    urgent: VecDeque<Part>,
    wishes: Wishes,
    shelf: Shelf,
    /// Bytes that are being read for the shelf.
    coming: u64,
    /// Threads that read ahead.
    ahead: usize,
    /// Whether one of them looks every now and then whether there is room.
    is_watched: bool,
    closed: bool,
}

/// What a thread does next.
enum Task {
    Fetch(Part),
    Ahead(Vec<Wish>, u64),
    End,
}

impl ReadAhead {
    /// How many threads a broker starts unless told: so many reads are on their way to the device at most.
    /// Four gave half as many reads where it was measured, and half as many nine tenths (`benches/README.md`).
    pub const THREADS_DEFAULT: usize = 32;

    /// Starts the threads, at least one. Of `bytes_max` an eighth is for wishes, five for directories of
    /// payloads, two for records, which may use what directories do not fill. `now_ms` is the wall clock.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        reader: LogReader,
        cache: Arc<TailCache>,
        bytes_max: u64,
        threads: usize,
        now_ms: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let eighth = usize::try_from(bytes_max / 8).unwrap_or(usize::MAX / 8);
        let shared = Arc::new(Shared {
            reader: PieceReader::new(reader, Arc::clone(&cache), 5 * eighth),
            cache,
            now_ms: Box::new(now_ms),
            state: Mutex::new(State {
                urgent: VecDeque::new(),
                wishes: Wishes::new(eighth),
                shelf: Shelf::new(2 * eighth),
                coming: 0,
                ahead: 0,
                is_watched: false,
                closed: false,
            }),
            changed: Condvar::new(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        });
        let mut ahead = Self {
            shared,
            threads: Vec::new(),
        };
        for number in 0..threads.max(1) {
            let shared = Arc::clone(&ahead.shared);
            let builder = std::thread::Builder::new().name(format!("read-ahead-{number}"));
            ahead.threads.push(builder.spawn(move || shared.run())?);
        }
        Ok(ahead)
    }

    /// Has records read by the time they are due, as far as there is room. Never blocks.
    pub fn wish(&self, wishes: &[Wish]) {
        if !self.shared.cache.is_attended() || wishes.is_empty() {
            return;
        }
        self.shared.state().wishes.add(wishes);
        self.shared.changed.notify_one();
    }

    /// The records of a payload from `index` on, if all of them are here.
    #[must_use]
    pub fn lookup(&self, position: LogPosition, index: u32, count: u32) -> Option<Vec<Taken>> {
        let now = (self.shared.now_ms)();
        let mut state = self.shared.state();
        let found: Option<Vec<Taken>> = (index..index.saturating_add(count))
            .map(|index| state.shelf.give((position, index), now))
            .collect();
        drop(state);
        if found.is_some() {
            self.shared
                .hits
                .fetch_add(u64::from(count), Ordering::Relaxed);
        }
        found
    }

    /// Reads records now, before all wishes, and hands as many as fit into `bytes_max` (one at least) to
    /// `done`, in their order. Never blocks; how much is outstanding is the callers' business.
    pub fn fetch(&self, pieces: Vec<Piece>, bytes_max: u64, done: FetchDone) {
        self.shared
            .misses
            .fetch_add(pieces.len() as u64, Ordering::Relaxed);
        let parts = Job::divide(pieces, bytes_max, done);
        let many = parts.len();
        self.shared.state().urgent.extend(parts);
        for _ in 0..many.min(self.threads.len()) {
            self.shared.changed.notify_one();
        }
    }

    /// What it holds and how it was used.
    #[must_use]
    pub fn counts(&self) -> AheadCounts {
        let state = self.shared.state();
        let bytes = state.shelf.bytes() + state.wishes.bytes();
        drop(state);
        AheadCounts {
            bytes: (bytes + self.shared.reader.heads_bytes()) as u64,
            hits: self.shared.hits.load(Ordering::Relaxed),
            misses: self.shared.misses.load(Ordering::Relaxed),
        }
    }

    /// Reads issued to the disk, by whomever, since the log was opened.
    #[must_use]
    pub fn reads_issued(&self) -> u64 {
        self.shared.reader.reads_issued()
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        loop {
            match self.next() {
                Task::End => return,
                Task::Fetch(part) => part.read(&self.reader),
                Task::Ahead(wishes, coming) => self.read_ahead(&wishes, coming),
            }
        }
    }

    fn next(&self) -> Task {
        let mut state = self.state();
        loop {
            if let Some(part) = state.urgent.pop_front() {
                if !state.is_watched {
                    // Who was woken for this may be who looked after the wishes.
                    self.changed.notify_one();
                }
                return Task::Fetch(part);
            }
            if state.closed {
                return Task::End;
            }
            let now = (self.now_ms)();
            self.settle(&mut state, now);
            state = match state.next_ahead(now) {
                Ahead::Task(wishes, coming) => {
                    state.ahead += 1;
                    // Another one goes on where there is more, which it finds out by itself.
                    self.changed.notify_one();
                    return Task::Ahead(wishes, coming);
                }
                Ahead::Full if !state.is_watched => {
                    state.is_watched = true;
                    let waited = self.changed.wait_timeout(state, LOOK_EVERY);
                    let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
                    state.is_watched = false;
                    state
                }
                Ahead::Full | Ahead::Nothing => {
                    let waited = self.changed.wait(state);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    /// Shares the room between records and directories.
    fn settle(&self, state: &mut State, now_ms: i64) {
        let lent = self.reader.lend(state.shelf.borrows(state.coming));
        state.shelf.lent(lent);
        // What was given out already goes where it must.
        state.shelf.make_room(state.coming, now_ms);
    }

    fn read_ahead(&self, wishes: &[Wish], coming: u64) {
        let pieces: Vec<Piece> = wishes.iter().map(|wish| wish.piece).collect();
        // Whatever happens there, nobody waits for what comes no more.
        let taken = catch_unwind(AssertUnwindSafe(|| self.reader.read(&pieces)));
        let taken = taken.unwrap_or_default();
        let now = (self.now_ms)();
        let mut state = self.state();
        self.settle(&mut state, now);
        state.ahead = state.ahead.saturating_sub(1);
        state.coming = state.coming.saturating_sub(coming);
        for (wish, taken) in wishes.iter().zip(taken) {
            if let Some(taken) = taken {
                state.shelf.put(wish.piece.key(), wish.due_ms, taken, now);
            }
        }
    }
}

enum Ahead {
    Task(Vec<Wish>, u64),
    Full,
    Nothing,
}

impl State {
    /// The next wishes to be read, if there is room for them (A1, A2, A4).
    fn next_ahead(&mut self, now_ms: i64) -> Ahead {
        loop {
            let task_bytes = self.shelf.bytes_max() / TASKS;
            let Some(mut next) = self.wishes.first(now_ms, TAKEN_MAX, task_bytes) else {
                return Ahead::Nothing;
            };
            let is_soon = next.from_ms.saturating_sub(now_ms) <= SOON_MS;
            if is_soon && let Some(fewer) = self.wishes.first(now_ms, TAKEN_SOON, task_bytes) {
                next = fewer;
            } else if self.ahead >= UNHURRIED {
                return Ahead::Full;
            }
            let coming = self.coming.saturating_add(next.bytes);
            // Where nothing is coming and nothing is held, one record may be larger than the bound.
            let has_room = self.shelf.make_room(coming, now_ms);
            if !has_room || (self.coming > 0 && self.shelf.exceeds(coming)) {
                return Ahead::Full;
            }
            let mut taken = self.wishes.take(now_ms, next.many);
            taken.retain(|wish| !self.shelf.has(wish.piece.key()));
            if !taken.is_empty() {
                self.coming = coming;
                return Ahead::Task(taken, next.bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! Single records of payloads, read before they are asked for: what timers fire is served from here.
//!
//! Timers fire in another order than they were written in. A few seconds before its moment a record is
//! wished for by whoever will publish it; threads of this room read what is due soonest, in the order it
//! lies in the log, one record at a time where its payload is large. A record that is asked for and not
//! here is read at once, in the same way.
//!
//! In: [`Wish`]es, [`ReadAhead::lookup`], [`ReadAhead::fetch`]. Out: records, checked by their checksums;
//! what does not read this way is simply not here, and whoever wants it reads the payload and is told
//! what is wrong with it.
//!
//! - A1 Records, directories and wishes together stay within the bound; the threads hold at most a stretch
//!   each on top of it.
//! - A2 What is due sooner is read sooner; a wish whose moment is long past is dropped.
//! - A3 Nothing is read ahead while nobody reads the log.
//!
//! Nothing of it survives a crash, or has to: it is a copy.

mod read;
mod shelf;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use self::read::PieceReader;
use self::shelf::Shelf;
use super::reader::LogReader;
use super::tail_cache::TailCache;
use crate::domain::batch::Taken;
use crate::domain::entry::EntryPlace;
use crate::domain::id::LogPosition;

/// Wishes due within one such span are read together, in the order they lie in the log.
const WINDOW_MS: i64 = 256;
/// A window that ended so long ago is not read any more: who wanted it has asked.
const STALE_MS: i64 = 500;
/// Wishes one thread takes at a time.
const TAKEN_MAX: usize = 64;
/// What a wish costs.
const WISH_BYTES: usize = 64;
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
    wishes_max: usize,
    state: Mutex<State>,
    changed: Condvar,
    hits: AtomicU64,
    misses: AtomicU64,
}

struct State {
    urgent: VecDeque<(Vec<Piece>, u64, FetchDone)>,
    windows: BTreeMap<i64, Window>,
    wishes: usize,
    shelf: Shelf,
    /// Bytes that are being read for the shelf.
    coming: u64,
    closed: bool,
}

#[derive(Default)]
struct Window {
    wishes: Vec<Wish>,
    /// By falling position.
    sorted: bool,
}

/// What a thread does next.
enum Task {
    Fetch(Vec<Piece>, u64, FetchDone),
    Ahead(Vec<Wish>, u64),
    End,
}

impl ReadAhead {
    /// How many threads a broker starts unless told: so many reads are on their way to the device.
    pub const THREADS_DEFAULT: usize = 4;

    /// Starts the threads, at least one. Of `bytes_max` an eighth is for wishes, five for directories of
    /// payloads, two for records. `now_ms` is the wall clock.
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
            wishes_max: eighth / WISH_BYTES,
            state: Mutex::new(State {
                urgent: VecDeque::new(),
                windows: BTreeMap::new(),
                wishes: 0,
                shelf: Shelf::new(2 * eighth),
                coming: 0,
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
        let mut state = self.shared.state();
        for wish in wishes {
            let window = wish.due_ms.div_euclid(WINDOW_MS);
            let window = state.windows.entry(window).or_default();
            window.wishes.push(*wish);
            window.sorted = false;
        }
        state.wishes += wishes.len();
        while state.wishes > self.shared.wishes_max
            && let Some((_, farthest)) = state.windows.pop_last()
        {
            state.wishes = state.wishes.saturating_sub(farthest.wishes.len());
        }
        drop(state);
        self.shared.changed.notify_all();
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
        let mut state = self.shared.state();
        state.urgent.push_back((pieces, bytes_max, done));
        drop(state);
        self.shared.changed.notify_one();
    }

    /// What it holds and how it was used.
    #[must_use]
    pub fn counts(&self) -> AheadCounts {
        let state = self.shared.state();
        let bytes = state.shelf.bytes() + state.wishes * WISH_BYTES;
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
                Task::Fetch(pieces, bytes_max, done) => {
                    let fetched = self.reader.fetch(&pieces, bytes_max);
                    // A caller's panic must not take the thread with it.
                    let _ = catch_unwind(AssertUnwindSafe(|| done(fetched)));
                }
                Task::Ahead(wishes, coming) => self.read_ahead(&wishes, coming),
            }
        }
    }

    fn next(&self) -> Task {
        let mut state = self.state();
        loop {
            if let Some((pieces, bytes_max, done)) = state.urgent.pop_front() {
                return Task::Fetch(pieces, bytes_max, done);
            }
            if state.closed {
                return Task::End;
            }
            state = match state.next_ahead((self.now_ms)()) {
                Ahead::Task(wishes, coming) => return Task::Ahead(wishes, coming),
                Ahead::Full => {
                    let waited = self.changed.wait_timeout(state, LOOK_EVERY);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                Ahead::Nothing => {
                    let waited = self.changed.wait(state);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    fn read_ahead(&self, wishes: &[Wish], coming: u64) {
        let pieces: Vec<Piece> = wishes.iter().map(|wish| wish.piece).collect();
        let taken = self.reader.read(&pieces);
        let now = (self.now_ms)();
        let mut state = self.state();
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
    /// The next wishes to be read: of the window due soonest, from the front of the log (A1, A2).
    fn next_ahead(&mut self, now_ms: i64) -> Ahead {
        loop {
            let Some(mut first) = self.windows.first_entry() else {
                return Ahead::Nothing;
            };
            let end_ms = first.key().saturating_add(1).saturating_mul(WINDOW_MS);
            if first.get().wishes.is_empty() || now_ms.saturating_sub(end_ms) > STALE_MS {
                let gone = first.remove();
                self.wishes = self.wishes.saturating_sub(gone.wishes.len());
                continue;
            }
            let window = first.get_mut();
            if !window.sorted {
                window
                    .wishes
                    .sort_unstable_by_key(|wish| std::cmp::Reverse(wish.piece));
                window.sorted = true;
            }
            let many = window.wishes.len().min(TAKEN_MAX);
            let from = window.wishes.len() - many;
            let asked = window.wishes.get(from..).unwrap_or_default();
            let coming = asked.iter().map(|wish| wish.piece.bytes()).sum::<u64>();
            if !self
                .shelf
                .make_room(self.coming.saturating_add(coming), now_ms)
            {
                return Ahead::Full;
            }
            let mut taken = window.wishes.split_off(from);
            taken.reverse();
            self.wishes = self.wishes.saturating_sub(taken.len());
            taken.retain(|wish| !self.shelf.has(wish.piece.key()));
            if taken.is_empty() {
                continue;
            }
            self.coming = self.coming.saturating_add(coming);
            return Ahead::Task(taken, coming);
        }
    }
}

#[cfg(test)]
mod tests;

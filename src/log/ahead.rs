//! Single records of payloads, read before they are asked for: what timers fire is served from here.
//!
//! Timers fire in another order than they were written in. A few seconds before its moment a record is
//! wished for by whoever will publish it; threads of this room read what is due soonest, in the order it
//! lies in the log. Where little of a payload is due, its records are read one by one; where much is,
//! a read for each costs more than all of it (4 kB read directly cost the processor a fifth of what 1 MB
//! does), so that payloads are read whole, with their neighbours, and with what of them is due a little
//! later. A record that is asked for and not here is read at once.
//!
//! *Example.* 50 000 records of 1 kB fire a second, out of a gigabyte in no order. One by one that is
//! 50 000 reads a second. A payload of 100 kB has one of them due in each quarter of a second: when the
//! first is wanted, those of the next three quarters are taken along, and the log is swept once a second
//! with a thousand reads.
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

use std::collections::{BTreeMap, BTreeSet, VecDeque};
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
/// A window is read so long before it begins; earlier while a quarter of the shelf is enough.
const LEAD_MS: i64 = 256;
/// While a payload is looked into, what of it is due within so many more windows is read with it: where
/// much is due, this is a sweep over the log that comes to each payload about once a second.
const WINDOWS_ALONG: i64 = 3;
/// What a wish costs: its place in its window.
const WISH_BYTES: usize = 40;
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

/// Records of the payload at a position: from an index on, so many.
pub type Stretch = (LogPosition, u32, u32);

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
    /// By the span of time they are due in, each in the order of the log.
    windows: BTreeMap<i64, BTreeSet<Piece>>,
    wishes: usize,
    stock: Stock,
    closed: bool,
}

/// What is held of records, and what will be.
struct Stock {
    shelf: Shelf,
    /// The most it may be while there are no directories.
    bytes_max: usize,
    /// Bytes that are being read for the shelf.
    coming: u64,
}

impl Stock {
    /// Makes room for so many bytes within one so-manieth of what it may be.
    fn make_room(&mut self, reader: &PieceReader, bytes: u64, part: usize, now_ms: i64) -> bool {
        let coming = self.coming.saturating_add(bytes);
        let part = self.bytes_max / part.max(1);
        reader.beside(|left| {
            let made = self.shelf.make_room(coming, left.min(part), now_ms);
            (made, self.held(if made { coming } else { self.coming }))
        })
    }

    fn held(&self, coming: u64) -> usize {
        let coming = usize::try_from(coming).unwrap_or(usize::MAX);
        self.shelf.bytes().saturating_add(coming)
    }
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

    /// Starts the threads, at least one. Of `bytes_max` three sixteenths are for wishes, up to five for
    /// directories of payloads, what is left for records. `now_ms` is the wall clock.
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
        let sixteenth = usize::try_from(bytes_max / 16).unwrap_or(usize::MAX / 16);
        let shared = Arc::new(Shared {
            reader: PieceReader::new(reader, Arc::clone(&cache), 5 * sixteenth, 13 * sixteenth),
            cache,
            now_ms: Box::new(now_ms),
            wishes_max: 3 * sixteenth / WISH_BYTES,
            state: Mutex::new(State {
                urgent: VecDeque::new(),
                windows: BTreeMap::new(),
                wishes: 0,
                stock: Stock {
                    shelf: Shelf::default(),
                    bytes_max: 13 * sixteenth,
                    coming: 0,
                },
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
            let is_new = window.insert(wish.piece);
            state.wishes += usize::from(is_new);
        }
        while state.wishes > self.shared.wishes_max
            && let Some((_, farthest)) = state.windows.pop_last()
        {
            state.wishes = state.wishes.saturating_sub(farthest.len());
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// The records of a payload from `index` on, if all of them are here.
    #[must_use]
    pub fn lookup(&self, position: LogPosition, index: u32, count: u32) -> Option<Vec<Taken>> {
        let found = self.lookup_each(&[Some((position, index, count))]);
        found.into_iter().next().flatten()
    }

    /// The same for many at once: who names none gets none.
    #[must_use]
    pub fn lookup_each(&self, wanted: &[Option<Stretch>]) -> Vec<Option<Vec<Taken>>> {
        if wanted.iter().all(Option::is_none) {
            return vec![None; wanted.len()];
        }
        let now = (self.shared.now_ms)();
        let mut state = self.shared.state();
        let mut hits = 0;
        let found = wanted
            .iter()
            .map(|wanted| {
                let (position, index, count) = (*wanted)?;
                let records = index..index.saturating_add(count);
                let found: Option<Vec<Taken>> = records
                    .map(|index| state.stock.shelf.give((position, index), now))
                    .collect();
                hits += if found.is_some() { u64::from(count) } else { 0 };
                found
            })
            .collect();
        drop(state);
        self.shared.hits.fetch_add(hits, Ordering::Relaxed);
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
        let bytes = state.stock.shelf.bytes() + state.wishes * WISH_BYTES;
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
            state = match state.next_ahead(&self.reader, (self.now_ms)()) {
                Ahead::Task(wishes, coming) => return Task::Ahead(wishes, coming),
                Ahead::Wait => {
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
        let stock = &mut state.stock;
        stock.coming = stock.coming.saturating_sub(coming);
        self.reader.beside(|bytes_max| {
            for (wish, taken) in wishes.iter().zip(taken) {
                if let Some(taken) = taken {
                    let (key, bound) = (wish.piece.key(), (bytes_max, now));
                    stock.shelf.put(key, wish.due_ms, taken, bound);
                }
            }
            ((), stock.held(stock.coming))
        });
    }
}

enum Ahead {
    Task(Vec<Wish>, u64),
    /// There is no room, or it is too soon.
    Wait,
    Nothing,
}

impl State {
    /// The next wishes to be read: of the window due soonest, from the front of the log (A1, A2).
    fn next_ahead(&mut self, reader: &PieceReader, now_ms: i64) -> Ahead {
        loop {
            let Some(mut first) = self.windows.first_entry() else {
                return Ahead::Nothing;
            };
            let window = *first.key();
            let end_ms = window.saturating_add(1).saturating_mul(WINDOW_MS);
            if first.get().is_empty() || now_ms.saturating_sub(end_ms) > STALE_MS {
                let gone = first.remove();
                self.wishes = self.wishes.saturating_sub(gone.len());
                continue;
            }
            let next = first.get().iter().take(TAKEN_MAX);
            let bytes = next.map(Piece::bytes).sum::<u64>();
            let is_soon = end_ms.saturating_sub(WINDOW_MS + LEAD_MS) <= now_ms;
            let part = if is_soon { 1 } else { 4 };
            if !self.stock.make_room(reader, bytes, part, now_ms) {
                return Ahead::Wait;
            }
            let mut taken = Vec::with_capacity(TAKEN_MAX);
            while taken.len() < TAKEN_MAX
                && let Some(piece) = first.get_mut().pop_first()
            {
                taken.push(Wish {
                    piece,
                    due_ms: end_ms,
                });
            }
            self.wishes = self.wishes.saturating_sub(taken.len());
            self.take_along(reader, window, &mut taken, (bytes, now_ms));
            taken.retain(|wish| !self.stock.shelf.has(wish.piece.key()));
            if taken.is_empty() {
                continue;
            }
            let coming = taken.iter().map(|wish| wish.piece.bytes()).sum::<u64>();
            self.stock.coming = self.stock.coming.saturating_add(coming);
            return Ahead::Task(taken, coming);
        }
    }

    /// Adds what of the same payloads is due soon after, unless what is due first may need the room.
    fn take_along(
        &mut self,
        reader: &PieceReader,
        window: i64,
        taken: &mut Vec<Wish>,
        (mut bytes, now_ms): (u64, i64),
    ) {
        let mut payloads: Vec<(EntryPlace, u32)> = taken
            .iter()
            .map(|wish| (wish.piece.place, wish.piece.of))
            .collect();
        payloads.dedup();
        for (later, pieces) in self
            .windows
            .range_mut(window.saturating_add(1)..=window.saturating_add(WINDOWS_ALONG))
        {
            let due_ms = later.saturating_add(1).saturating_mul(WINDOW_MS);
            for (place, of) in &payloads {
                let piece = |index| Piece {
                    place: *place,
                    index,
                    of: *of,
                };
                let range = piece(0)..=piece(u32::MAX);
                while let Some(along) = pieces.range(range.clone()).next().copied() {
                    bytes = bytes.saturating_add(along.bytes());
                    if !self.stock.make_room(reader, bytes, 2, now_ms) {
                        return;
                    }
                    pieces.remove(&along);
                    self.wishes = self.wishes.saturating_sub(1);
                    taken.push(Wish {
                        piece: along,
                        due_ms,
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;

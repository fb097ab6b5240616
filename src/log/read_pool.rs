//! A few plain threads that read, so that no actor ever waits for the disk.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::domain::entry::EntryPlace;

use super::error::ReadError;
use super::extents::Extents;
use super::reader::{EntryRead, LogReader};
use super::tail_cache::TailCache;

/// What a read's answers are handed to, on a reading thread.
pub type ReadDone = Box<dyn FnOnce(Vec<Result<EntryRead, ReadError>>) + Send>;

/// Threads around a [`LogReader`]. Jobs are taken in the order they came; how many are outstanding is the
/// callers' business, who know what they may hold. Dropping it finishes what was submitted.
pub struct ReadPool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    reader: LogReader,
    extents: Extents,
    queue: Mutex<Queue>,
    changed: Condvar,
}

struct Job {
    places: Vec<EntryPlace>,
    share: Share,
    done: ReadDone,
}

/// Whether others are likely to read the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// They are: what is read is kept for them, and what they read is used.
    Kept,
    /// They are not.
    Alone,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    is_closed: bool,
}

impl ReadPool {
    /// How many threads a broker starts unless told.
    pub const THREADS_DEFAULT: usize = 2;

    /// Starts the threads, at least one. At most `kept_bytes_max` bytes are kept of what is read for
    /// several.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(reader: LogReader, threads: usize, kept_bytes_max: usize) -> io::Result<Self> {
        Self::with(reader, threads, Extents::new(kept_bytes_max, None))
    }

    /// The same; what the tail does not fill of its own bound may be kept besides.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start_beside(
        reader: LogReader,
        threads: usize,
        kept_bytes_max: usize,
        tail: &Arc<TailCache>,
    ) -> io::Result<Self> {
        let extents = Extents::new(kept_bytes_max, Some(Arc::clone(tail)));
        let pool = Self::with(reader, threads, extents)?;
        let shared = Arc::downgrade(&pool.shared);
        tail.lends_to(Box::new(move || {
            if let Some(shared) = shared.upgrade() {
                shared.extents.give_back();
            }
        }));
        Ok(pool)
    }

    /// Bytes that may be kept now of what is read for several.
    #[must_use]
    pub fn kept_bytes_max(&self) -> usize {
        self.shared.extents.bytes_max()
    }

    fn with(reader: LogReader, threads: usize, extents: Extents) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            reader,
            extents,
            queue: Mutex::default(),
            changed: Condvar::new(),
        });
        let mut pool = Self {
            shared,
            threads: Vec::new(),
        };
        for number in 0..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let builder = std::thread::Builder::new().name(format!("log-read-{number}"));
            pool.threads.push(builder.spawn(move || shared.run())?);
        }
        Ok(pool)
    }

    /// Reads places as [`LogReader::read`] does and hands the answers to `done`. Never blocks.
    pub fn submit(&self, places: Vec<EntryPlace>, share: Share, done: ReadDone) {
        let mut queue = self.shared.queue();
        queue.jobs.push_back(Job {
            places,
            share,
            done,
        });
        drop(queue);
        self.shared.changed.notify_one();
    }

    /// Reads that wait for a thread.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.queue().jobs.len()
    }
}

impl Drop for ReadPool {
    fn drop(&mut self) {
        self.shared.queue().is_closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // It ends with an empty queue; a panic in a callback was caught and reported by its hook.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        loop {
            let mut queue = self.queue();
            let job = loop {
                if let Some(job) = queue.jobs.pop_front() {
                    break job;
                }
                if queue.is_closed {
                    return;
                }
                let waited = self.changed.wait(queue);
                queue = waited.unwrap_or_else(PoisonError::into_inner);
            };
            drop(queue);
            let Job {
                places,
                share,
                done,
            } = job;
            let kept = (share == Share::Kept).then_some(&self.extents);
            let answers = self.reader.read_shared(&places, kept);
            // A caller's panic must not take the thread with it: the others still read.
            let _ = catch_unwind(AssertUnwindSafe(|| done(answers)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use bytes::Bytes;

    use super::super::disk::RealDisk;
    use super::super::frame::tests::frame;
    use super::super::options::LogOptions;
    use super::super::writer::{Log, Room};
    use super::*;
    use crate::domain::entry::{NewEntry, PayloadFacts};

    /// A log of 40 entries, five to a flush, so that neighbours share blocks; every byte of an entry's body
    /// is its number.
    fn forty(directory: &std::path::Path) -> (Log, Vec<EntryPlace>) {
        let disk = Arc::new(RealDisk::open(directory).unwrap());
        let options = LogOptions {
            segment_bytes: 1 << 20,
            flush_bytes_max: 64 << 10,
            disk_free_bytes_min: 0,
            ..LogOptions::default()
        };
        let mut log = Log::open(disk, options).unwrap().log;
        let mut header = frame().header;
        header.tied_to_next = false;
        let entry = |n: u8| NewEntry {
            header,
            body: vec![n; 5000].into(),
            facts: PayloadFacts::default(),
        };
        let places: Vec<EntryPlace> = (0..8)
            .map(|flush| (5 * flush..5 * flush + 5).map(entry).collect::<Vec<_>>())
            .flat_map(|flush| log.append(&flush, Room::Normal).unwrap())
            .collect();
        (log, places)
    }

    #[test]
    fn what_several_read_is_what_each_would_read_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (log, places) = forty(directory.path());
        // Room for a few stretches: some are found, some are gone again.
        let pool = ReadPool::start(log.reader(), 2, 64 << 10).unwrap();
        let (sender, answers) = mpsc::channel();
        for n in 0..400 {
            let (first, count) = (n * 17 % 40, 1 + n % 7);
            let asked: Vec<EntryPlace> = places[first..].iter().take(count).copied().collect();
            let sender = sender.clone();
            let done = move |read: Vec<Result<EntryRead, ReadError>>| {
                let bodies: Vec<Bytes> = read.into_iter().map(|read| read.unwrap().body).collect();
                sender.send((first, bodies)).unwrap();
            };
            pool.submit(asked, Share::Kept, Box::new(done));
        }
        drop((sender, pool));
        let mut answered = 0;
        for (first, bodies) in answers {
            answered += 1;
            for (n, body) in (u8::try_from(first).unwrap()..).zip(bodies) {
                assert_eq!(body, vec![n; 5000]);
            }
        }
        assert_eq!(answered, 400);
    }

    #[test]
    fn every_job_is_answered_and_a_panic_in_one_harms_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let (log, places) = forty(directory.path());
        let pool = ReadPool::start(log.reader(), 2, 1 << 16).unwrap();
        let (sender, answers) = mpsc::channel();
        for (n, place) in (0u8..).zip(&places) {
            let share = [Share::Kept, Share::Alone][usize::from(n % 2)];
            pool.submit(vec![], share, Box::new(|_| panic!("a caller's panic")));
            let sender = sender.clone();
            let done = move |mut read: Vec<Result<EntryRead, ReadError>>| {
                sender.send((n, read.pop().unwrap().unwrap().body)).unwrap();
            };
            pool.submit(vec![*place], share, Box::new(done));
        }
        drop((sender, pool));
        let mut answered: Vec<(u8, Bytes)> = answers.into_iter().collect();
        answered.sort_unstable();
        assert_eq!(answered.len(), 40);
        assert!(answered.iter().all(|(n, body)| body == &vec![*n; 5000]));
    }
}

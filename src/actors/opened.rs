//! Batches that are taken apart, shared by everybody on the broker who takes records out of them.
//!
//! Records of one batch go to many members, and one after the other as their keys come free: each lease on
//! its own would have the whole batch read, checked and opened again. Here it is opened once and stays as
//! long as it is asked for, in memory of its own, because a slice of the stretch it was read with would hold
//! the whole stretch.
//!
//! Whoever takes records out says so ([`OpenedBatches::given`]). Where room is needed, what was given out of
//! the oldest batch is let go and the rest of it stays, record by record: records wait behind their keys for
//! long after most of their batch has gone, and a batch would be read again for each of them.
//!
//! In: places. Out: [`Opened`] batches, from here, from the log's tail, or read. What is here was read from
//! the log, whose entries never change; nothing of it has to survive a crash.
//!
//! - O1 What is held is bounded in bytes; what was asked for least recently goes first, what was given out of
//!   it before the rest. What is lent out counts for whoever holds it.
//! - O2 No batch is opened twice at a time: whoever comes meanwhile waits for the first. Nobody waits while
//!   others wait for them.
//! - O3 Whoever is dropped while opening leaves it to those who wait.
//! - O4 A record of a rest is given once: whoever wants it again reads it.

mod kept;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};

use self::kept::Kept;
use crate::domain::batch::{BatchError, Opened, Taken};
use crate::domain::body::Body;
use crate::domain::entry::EntryPlace;
use crate::domain::id::LogPosition;
use crate::log::{ReadError, ReadPool, Share, TailCache};

/// What a batch costs beside itself: its places in the maps.
const OVERHEAD_BYTES: usize = 192;

/// See the module.
pub struct OpenedBatches {
    bytes_max: usize,
    tail: Arc<TailCache>,
    pool: Arc<ReadPool>,
    state: Mutex<State>,
}

/// Why a batch could not be opened.
#[derive(Debug, Clone)]
pub enum NotOpened {
    /// The log does not give it.
    Unread(ReadError),
    /// It is not one batch, or does not decompress.
    Unsound(BatchError),
    /// The broker goes away.
    Stopping,
}

#[derive(Default)]
struct State {
    batches: HashMap<LogPosition, Kept>,
    /// By when they were asked for last.
    by_age: BTreeMap<u64, LogPosition>,
    asked: u64,
    bytes: usize,
    /// What is being opened, and how it is heard that it was.
    opening: HashMap<LogPosition, watch::Receiver<()>>,
}

impl OpenedBatches {
    /// At most so many bytes, from the tail or the pool.
    #[must_use]
    pub fn new(bytes_max: usize, tail: Arc<TailCache>, pool: Arc<ReadPool>) -> Self {
        Self {
            bytes_max,
            tail,
            pool,
            state: Mutex::default(),
        }
    }

    /// Opens batches; answers are in the order asked. May be dropped at any time.
    pub async fn open(&self, places: &[EntryPlace]) -> Vec<Result<Arc<Opened>, NotOpened>> {
        let mut answers: Vec<Option<Result<Arc<Opened>, NotOpened>>> = vec![None; places.len()];
        loop {
            let (claim, waiting) = self.claim(places, &mut answers);
            if !claim.places.is_empty() {
                let found = self.read(&claim.places).await;
                for (place, found) in claim.places.iter().zip(found) {
                    let asked = places.iter().position(|asked| asked == place);
                    let found = found.and_then(|body| self.keep(place.position, &body));
                    if let Some(answer) = asked.and_then(|asked| answers.get_mut(asked)) {
                        *answer = Some(found);
                    }
                }
            } else if let Some(mut waiting) = waiting {
                // It never says anything: that it goes away is what is heard.
                let _ = waiting.changed().await;
            } else {
                let all = answers.into_iter();
                return all
                    .map(|answer| answer.unwrap_or(Err(NotOpened::Stopping)))
                    .collect();
            }
        }
    }

    /// Whether a batch is here, opened.
    #[must_use]
    pub fn has(&self, position: LogPosition) -> bool {
        let state = self.state();
        let kept = state.batches.get(&position);
        kept.is_some_and(|kept| kept.opened().is_some())
    }

    /// Records, by their indexes, were taken out of an opened batch: they are not likely to be asked for
    /// again.
    pub fn given(&self, position: LogPosition, indexes: impl Iterator<Item = usize>) {
        if let Some(kept) = self.state().batches.get_mut(&position) {
            indexes.for_each(|index| kept.give(index));
        }
    }

    /// Takes records, by their indexes, out of what is left of a batch that is not here as a whole any more;
    /// none where not all of them are there.
    #[must_use]
    pub fn take_rest(
        &self,
        position: LogPosition,
        indexes: impl Iterator<Item = usize> + Clone,
    ) -> Option<Vec<Taken>> {
        let mut state = self.state();
        let taken = state.batches.get_mut(&position)?.take_rest(indexes)?;
        state.touch(position);
        Some(taken)
    }

    /// What it holds now, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// Answers what is here; of the rest, what nobody opens is the caller's now, and the first that
    /// somebody opens is waited for.
    fn claim(
        &self,
        places: &[EntryPlace],
        answers: &mut [Option<Result<Arc<Opened>, NotOpened>>],
    ) -> (Claim<'_>, Option<watch::Receiver<()>>) {
        let (told, heard) = watch::channel(());
        let mut claim = Claim {
            batches: self,
            places: Vec::new(),
            _told: told,
        };
        let mut waiting = None;
        let mut state = self.state();
        for (place, answer) in places.iter().zip(answers) {
            if answer.is_some() {
                continue;
            }
            if let Some(opened) = state.find(place.position) {
                *answer = Some(Ok(opened));
            } else if let Some(other) = state.opening.get(&place.position) {
                waiting.get_or_insert_with(|| other.clone());
            } else {
                state.opening.insert(place.position, heard.clone());
                claim.places.push(*place);
            }
        }
        drop(state);
        (claim, waiting)
    }

    async fn read(&self, places: &[EntryPlace]) -> Vec<Result<Body, NotOpened>> {
        let cached = places.iter().map(|place| self.tail.lookup(place.position));
        let mut found: Vec<Option<Body>> = cached.collect();
        let missing = places.iter().zip(&found);
        let missing: Vec<EntryPlace> = missing
            .filter(|(_, body)| body.is_none())
            .map(|(place, _)| *place)
            .collect();
        let mut read = Vec::new();
        if !missing.is_empty() {
            let (done, answer) = oneshot::channel();
            self.pool.submit(
                missing,
                Share::Kept,
                Box::new(move |entries| {
                    let _ = done.send(entries);
                }),
            );
            // It answers unless it is going away with the broker.
            read = answer.await.unwrap_or_default();
        }
        let mut read = read.into_iter();
        found
            .iter_mut()
            .map(|body| match body.take() {
                Some(body) => Ok(body),
                None => match read.next() {
                    Some(Ok(entry)) => Ok(entry.body.into()),
                    Some(Err(error)) => Err(NotOpened::Unread(error)),
                    None => Err(NotOpened::Stopping),
                },
            })
            .collect()
    }

    fn keep(&self, position: LogPosition, body: &Body) -> Result<Arc<Opened>, NotOpened> {
        let opened = Opened::open(body).map_err(NotOpened::Unsound)?;
        let opened = Arc::new(opened.detached());
        self.state()
            .keep(position, Arc::clone(&opened), self.bytes_max);
        Ok(opened)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for OpenedBatches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenedBatches").finish_non_exhaustive()
    }
}

/// What the holder opens. Others hear when it is dropped, and look again.
struct Claim<'a> {
    batches: &'a OpenedBatches,
    places: Vec<EntryPlace>,
    _told: watch::Sender<()>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.places.is_empty() {
            return;
        }
        let mut state = self.batches.state();
        for place in &self.places {
            state.opening.remove(&place.position);
        }
    }
}

impl State {
    fn find(&mut self, position: LogPosition) -> Option<Arc<Opened>> {
        let opened = Arc::clone(self.batches.get(&position)?.opened()?);
        self.touch(position);
        Some(opened)
    }

    /// It was asked for.
    fn touch(&mut self, position: LogPosition) {
        if let Some(kept) = self.batches.get_mut(&position) {
            self.by_age.remove(&kept.asked);
            self.asked += 1;
            kept.asked = self.asked;
            self.by_age.insert(self.asked, position);
        }
    }

    fn keep(&mut self, position: LogPosition, opened: Arc<Opened>, bytes_max: usize) {
        let bytes = opened.bytes().saturating_add(OVERHEAD_BYTES);
        // It would drive out all others and itself.
        if bytes > bytes_max {
            return;
        }
        self.remove(position);
        while self.bytes.saturating_add(bytes) > bytes_max
            && let Some((_, oldest)) = self.by_age.first_key_value()
        {
            self.shrink(*oldest);
        }
        self.asked += 1;
        self.bytes += bytes;
        self.by_age.insert(self.asked, position);
        let kept = Kept::new(opened, bytes, self.asked);
        self.batches.insert(position, kept);
    }

    /// Lets go what was given out of a batch, where that is much; otherwise all of it.
    fn shrink(&mut self, position: LogPosition) {
        let Some(kept) = self.batches.get_mut(&position) else {
            return;
        };
        let before = kept.bytes;
        if !kept.pack() {
            return self.remove(position);
        }
        self.bytes = self.bytes.saturating_sub(before.saturating_sub(kept.bytes));
        self.touch(position);
    }

    fn remove(&mut self, position: LogPosition) {
        if let Some(gone) = self.batches.remove(&position) {
            self.by_age.remove(&gone.asked);
            self.bytes = self.bytes.saturating_sub(gone.bytes);
        }
    }
}

#[cfg(test)]
mod tests;

//! What was read last, shared: whoever reads the same a little later is served without another read.
//!
//! Consumers that go through a backlog together ask for the same stretches of the log within moments. A
//! stretch that is read for one of them stays here while there is room, the oldest go first; one that is
//! being read is waited for instead of being read twice. What the cache of the log's tail does not fill, as
//! after a start, is used here until it does.
//!
//! - E1 What is held is bounded in bytes, together with what the tail holds; what is lent out counts for
//!   whoever holds it.
//! - E2 No byte is read twice at a time, but for the blocks that neighbours share.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::tail_cache::TailCache;

/// How many stretches are looked at that begin before what is looked for: they may overlap.
const NEIGHBOURS: usize = 4;

/// Stretches of the log that were read, by position.
pub(crate) struct Extents {
    own_bytes_max: usize,
    tail: Option<Arc<TailCache>>,
    /// What the state says, to be had without waiting for it.
    bytes: AtomicUsize,
    state: Mutex<State>,
    read: Condvar,
}

#[derive(Default)]
struct State {
    by_start: BTreeMap<u64, Bytes>,
    /// Starts in the order they came.
    order: VecDeque<u64>,
    bytes: usize,
    /// What is being read, and by whom: positions.
    reading: Vec<Range<u64>>,
}

/// The right to read a stretch nobody else reads meanwhile.
pub(crate) struct Reading<'a> {
    extents: &'a Extents,
    range: Range<u64>,
}

impl Extents {
    pub(crate) fn new(own_bytes_max: usize, tail: Option<Arc<TailCache>>) -> Self {
        Self {
            own_bytes_max,
            tail,
            bytes: AtomicUsize::new(0),
            state: Mutex::default(),
            read: Condvar::new(),
        }
    }

    /// A stretch that holds all of this, and where it begins.
    pub(crate) fn find(&self, range: &Range<u64>) -> Option<(u64, Bytes)> {
        self.state().find(range)
    }

    /// Exactly this stretch, if something that holds all of it is kept.
    pub(crate) fn part(&self, range: &Range<u64>) -> Option<Bytes> {
        let (start, bytes) = self.find(range)?;
        let from = usize::try_from(range.start.checked_sub(start)?).ok()?;
        let to = usize::try_from(range.end.checked_sub(start)?).ok()?;
        (from <= to && to <= bytes.len()).then(|| bytes.slice(from..to))
    }

    /// Waits until nobody reads anything of this; then it is the caller's to read.
    pub(crate) fn begin(&self, range: Range<u64>) -> Reading<'_> {
        let mut state = self.state();
        while state.is_being_read(&range) {
            let waited = self.read.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        state.reading.push(range.clone());
        drop(state);
        Reading {
            extents: self,
            range,
        }
    }

    /// Bytes that may be held now.
    pub(crate) fn bytes_max(&self) -> usize {
        let lent = self.tail.as_ref().map_or(0, |tail| tail.unused());
        self.own_bytes_max.saturating_add(lent)
    }

    /// The tail has grown: what it lent goes back.
    pub(crate) fn give_back(&self) {
        if self.bytes.load(Ordering::Relaxed) > self.own_bytes_max {
            let bytes_max = self.bytes_max();
            let mut state = self.state();
            state.shrink(bytes_max);
            self.bytes.store(state.bytes, Ordering::Relaxed);
        }
    }

    fn keep(&self, start: u64, bytes: Bytes) {
        let bytes_max = self.bytes_max();
        let mut state = self.state();
        state.keep(start, bytes, bytes_max);
        self.bytes.store(state.bytes, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn find(&self, range: &Range<u64>) -> Option<(u64, Bytes)> {
        let before = self.by_start.range(..=range.start).rev();
        before
            .take(NEIGHBOURS)
            .find(|(start, bytes)| start.saturating_add(bytes.len() as u64) >= range.end)
            .map(|(start, bytes)| (*start, bytes.clone()))
    }

    fn is_being_read(&self, range: &Range<u64>) -> bool {
        let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
        self.reading.iter().any(overlaps)
    }

    fn keep(&mut self, start: u64, bytes: Bytes, bytes_max: usize) {
        self.bytes = self.bytes.saturating_add(bytes.len());
        match self.by_start.insert(start, bytes) {
            Some(before) => self.bytes = self.bytes.saturating_sub(before.len()),
            None => self.order.push_back(start),
        }
        self.shrink(bytes_max);
    }

    fn shrink(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max
            && let Some(oldest) = self.order.pop_front()
        {
            let gone = self.by_start.remove(&oldest);
            let freed = gone.map_or(0, |bytes| bytes.len());
            self.bytes = self.bytes.saturating_sub(freed);
        }
    }
}

impl Reading<'_> {
    /// What was read: from now on others find it.
    pub(crate) fn done(self, start: u64, bytes: &Bytes) {
        self.extents.keep(start, bytes.clone());
    }
}

/// Read or given up: whoever waited looks again.
impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut state = self.extents.state();
        if let Some(at) = state.reading.iter().position(|range| *range == self.range) {
            state.reading.swap_remove(at);
        }
        drop(state);
        self.extents.read.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::body::Body;
    use crate::domain::entry::EntryPlace;
    use crate::domain::id::LogPosition;

    fn keep(extents: &Extents, start: u64, length: usize) {
        let reading = extents.begin(start..start + length as u64);
        reading.done(start, &Bytes::from(vec![0; length]));
    }

    #[test]
    fn what_is_being_read_is_waited_for_and_then_found() {
        let extents = Arc::new(Extents::new(1000, None));
        let reading = extents.begin(100..200);
        let (told, waits) = std::sync::mpsc::channel();
        let other = Arc::clone(&extents);
        let waiting = std::thread::spawn(move || {
            told.send(()).unwrap();
            let second = other.begin(150..250);
            let found = other.find(&(150..200)).is_some();
            drop(second);
            found
        });
        waits.recv().unwrap();
        // Something that overlaps with neither is free meanwhile.
        drop(extents.begin(300..400));
        reading.done(100, &Bytes::from(vec![0; 100]));
        assert!(waiting.join().unwrap(), "E2");
    }

    #[test]
    fn a_read_that_is_given_up_leaves_nothing_behind() {
        let extents = Extents::new(1000, None);
        drop(extents.begin(0..10));
        assert!(extents.find(&(0..10)).is_none());
        keep(&extents, 0, 10);
        assert!(extents.find(&(0..10)).is_some());
    }

    #[test]
    fn e1_what_the_tail_does_not_fill_is_used_until_it_does() {
        let tail = Arc::new(TailCache::new(10_000));
        let _reader = tail.attend();
        let extents = Arc::new(Extents::new(1000, Some(Arc::clone(&tail))));
        let borrower = Arc::clone(&extents);
        tail.lends_to(Box::new(move || borrower.give_back()));
        for start in 0..20 {
            keep(&extents, start * 1000, 1000);
        }
        assert_eq!(extents.state().bytes, 11_000);
        for position in 0..20 {
            let place = EntryPlace {
                position: LogPosition(position),
                length: 1,
            };
            tail.insert(place, Body::from(vec![0; 1000]));
            assert!(tail.bytes() + extents.state().bytes <= 11_000);
        }
        assert!(tail.bytes() > 8_000 && extents.state().bytes >= 1000);
    }

    proptest::proptest! {
        #[test]
        fn it_holds_the_latest_within_its_bound(
            reads in proptest::collection::vec((0u64..400, 1usize..120), 1..60),
        ) {
            let extents = Extents::new(300, None);
            let mut naive: Vec<(u64, usize)> = Vec::new();
            for (start, length) in reads {
                keep(&extents, start, length);
                match naive.iter_mut().find(|held| held.0 == start) {
                    Some(held) => held.1 = length,
                    None => naive.push((start, length)),
                }
                while naive.iter().map(|held| held.1).sum::<usize>() > 300 {
                    naive.remove(0);
                }
                proptest::prop_assert_eq!(
                    extents.state().bytes,
                    naive.iter().map(|held| held.1).sum::<usize>(),
                    "E1"
                );
                for (start, length) in &naive {
                    let (at, bytes) = extents.find(&(*start..start + *length as u64)).unwrap();
                    proptest::prop_assert!(at <= *start);
                    proptest::prop_assert!(at + bytes.len() as u64 >= start + *length as u64);
                    let part = extents.part(&(*start..start + *length as u64));
                    proptest::prop_assert_eq!(part.map(|bytes| bytes.len()), Some(*length));
                    proptest::prop_assert_eq!(extents.part(&(*start..start + 1_000)), None);
                }
            }
        }
    }
}

//! What was read last, shared: whoever reads the same a little later is served without another read.
//!
//! Consumers that go through a backlog together ask for the same stretches of the log within moments. A
//! stretch that is read for one of them stays here while there is room, the oldest go first; one that is
//! being read is waited for instead of being read twice.
//!
//! - E1 What is held is bounded in bytes; what is lent out counts for whoever holds it.
//! - E2 No byte is read twice at a time.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// How many stretches are looked at that begin before what is looked for: they may overlap.
const NEIGHBOURS: usize = 4;

/// Stretches of the log that were read, by position.
pub(crate) struct Extents {
    bytes_max: usize,
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
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            state: Mutex::default(),
            read: Condvar::new(),
        }
    }

    /// A stretch that holds all of this, and where it begins.
    pub(crate) fn find(&self, range: &Range<u64>) -> Option<(u64, Bytes)> {
        self.state().find(range)
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
        let bytes_max = self.extents.bytes_max;
        self.extents.state().keep(start, bytes.clone(), bytes_max);
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
    use std::sync::Arc;

    use super::*;

    fn keep(extents: &Extents, start: u64, length: usize) {
        let reading = extents.begin(start..start + length as u64);
        reading.done(start, &Bytes::from(vec![0; length]));
    }

    #[test]
    fn what_is_being_read_is_waited_for_and_then_found() {
        let extents = Arc::new(Extents::new(1000));
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
        let extents = Extents::new(1000);
        drop(extents.begin(0..10));
        assert!(extents.find(&(0..10)).is_none());
        keep(&extents, 0, 10);
        assert!(extents.find(&(0..10)).is_some());
    }

    proptest::proptest! {
        #[test]
        fn it_holds_the_latest_within_its_bound(
            reads in proptest::collection::vec((0u64..400, 1usize..120), 1..60),
        ) {
            let extents = Extents::new(300);
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
                }
            }
        }
    }
}

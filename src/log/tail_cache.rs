//! The most recent bodies by position, shared: what live readers are served from without a read.
//!
//! Bounded in bytes; the oldest positions go first, whatever the order they came in. What is not filled of the
//! bound may be used by another cache, which is told whenever this one has grown.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::domain::body::Body;
use crate::domain::entry::EntryPlace;
use crate::domain::id::LogPosition;

/// What an entry costs beside its body.
const OVERHEAD_BYTES: usize = 256;

/// What is kept while nobody reads, in bytes: enough for a reader that comes back at once. More would
/// only keep memory cold that the next batches can be put together in.
const UNREAD_BYTES: usize = 4 << 20;

/// A cache in front of the log. Entries never change, so that what is in it is never stale.
pub struct TailCache {
    bytes_max: usize,
    readers: AtomicUsize,
    kept: Mutex<Kept>,
    borrower: OnceLock<Borrower>,
}

/// Hears that the tail has grown.
type Borrower = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Kept {
    /// By rising position.
    entries: VecDeque<(EntryPlace, Body)>,
    bytes: usize,
}

impl TailCache {
    /// A cache of at most so many bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            readers: AtomicUsize::new(0),
            kept: Mutex::default(),
            borrower: OnceLock::new(),
        }
    }

    /// Somebody uses what is not filled, and is told whenever it is less; only the first is.
    pub(crate) fn lends_to(&self, borrower: Borrower) {
        let _ = self.borrower.set(borrower);
    }

    /// What is not filled of the bound, in bytes.
    #[must_use]
    pub fn unused(&self) -> usize {
        self.bytes_max.saturating_sub(self.bytes())
    }

    /// Takes an entry in, and lets the oldest go as the bound asks; one older than all that is kept is
    /// only taken while there is room.
    pub fn insert(&self, place: EntryPlace, body: Body) {
        let cost = cost(&body);
        let mut kept = self.kept();
        let at = kept
            .entries
            .partition_point(|(held, _)| held.position < place.position);
        if kept
            .entries
            .get(at)
            .is_some_and(|(held, _)| held.position == place.position)
        {
            return;
        }
        kept.entries.insert(at, (place, body));
        kept.bytes = kept.bytes.saturating_add(cost);
        let bound = match self.readers.load(Ordering::Relaxed) {
            0 => self.bytes_max.min(UNREAD_BYTES),
            _ => self.bytes_max,
        };
        while kept.bytes > bound
            && let Some((_, gone)) = kept.entries.pop_front()
        {
            kept.bytes = kept.bytes.saturating_sub(self::cost(&gone));
        }
        drop(kept);
        if let Some(borrower) = self.borrower.get() {
            borrower();
        }
    }

    /// A reader is there, until what this returns is dropped: the whole bound is used.
    #[must_use]
    pub fn attend(self: &Arc<Self>) -> Attendance {
        self.readers.fetch_add(1, Ordering::Relaxed);
        Attendance(Arc::clone(self))
    }

    /// Whether the entry at a position is still here.
    #[must_use]
    pub fn has(&self, position: LogPosition) -> bool {
        let kept = self.kept();
        kept.entries
            .binary_search_by_key(&position, |(place, _)| place.position)
            .is_ok()
    }

    /// Whether a reader is there.
    #[must_use]
    pub fn is_attended(&self) -> bool {
        self.readers.load(Ordering::Relaxed) > 0
    }

    /// The body of the entry at a position, if it is still here.
    #[must_use]
    pub fn lookup(&self, position: LogPosition) -> Option<Body> {
        let kept = self.kept();
        let at = kept
            .entries
            .binary_search_by_key(&position, |(place, _)| place.position);
        let entry = at.ok().and_then(|at| kept.entries.get(at));
        entry.map(|(_, body)| body.clone())
    }

    /// What it holds now, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.kept().bytes
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader's presence.
pub struct Attendance(Arc<TailCache>);

impl Drop for Attendance {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

fn cost(body: &Body) -> usize {
    body.len().saturating_add(OVERHEAD_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(position: u64) -> EntryPlace {
        EntryPlace {
            position: LogPosition(position),
            length: 100,
        }
    }

    #[test]
    fn while_nobody_reads_little_is_kept() {
        let cache = Arc::new(TailCache::new(4 * UNREAD_BYTES));
        let fill = |from: u64| {
            for position in from..from + 20 {
                cache.insert(place(position), Body::from(vec![0; 1 << 20]));
            }
        };
        fill(0);
        assert!(cache.bytes() <= UNREAD_BYTES);
        let reader = cache.attend();
        fill(100);
        assert!(cache.bytes() > 3 * UNREAD_BYTES && cache.bytes() <= 4 * UNREAD_BYTES);
        drop(reader);
        fill(200);
        assert!(cache.bytes() <= UNREAD_BYTES);
    }

    #[test]
    fn it_holds_the_highest_positions_within_its_bound() {
        let cache = TailCache::new(3 * (1000 + OVERHEAD_BYTES));
        for position in [30u8, 10, 20, 50, 40] {
            let body = Body::from(vec![position; 1000]);
            cache.insert(place(position.into()), body);
            assert!(cache.bytes() <= 3 * (1000 + OVERHEAD_BYTES));
        }
        let held = |position| {
            cache
                .lookup(LogPosition(position))
                .map(|body| body.to_bytes()[0])
        };
        assert_eq!(held(10), None);
        assert_eq!(held(20), None);
        assert_eq!(held(30), Some(30));
        assert_eq!(held(40), Some(40));
        assert_eq!(held(50), Some(50));
        cache.insert(place(50), Body::from(&b"again"[..]));
        assert_eq!(held(50), Some(50), "entries never change");
    }

    proptest::proptest! {
        #[test]
        fn it_holds_what_a_sorted_list_cut_to_its_bound_would(
            inserts in proptest::collection::vec((0u64..60, 0usize..900), 1..80),
        ) {
            let bytes_max = 4000;
            let cache = TailCache::new(bytes_max);
            let mut naive: Vec<(u64, usize)> = Vec::new();
            for (position, bytes) in inserts {
                cache.insert(place(position), Body::from(vec![0; bytes]));
                if naive.iter().all(|held| held.0 != position) {
                    naive.push((position, bytes));
                    naive.sort_unstable();
                }
                let total = |held: &[(u64, usize)]| -> usize {
                    held.iter().map(|(_, bytes)| bytes + OVERHEAD_BYTES).sum()
                };
                while total(&naive) > bytes_max {
                    naive.remove(0);
                }
                assert_eq!(cache.bytes(), total(&naive));
                for position in 0..60 {
                    let held = naive.iter().find(|held| held.0 == position);
                    let found = cache.lookup(LogPosition(position));
                    assert_eq!(found.map(|body| body.len()), held.map(|held| held.1));
                }
            }
        }
    }
}

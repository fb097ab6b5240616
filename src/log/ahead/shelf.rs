//! Records that were read before they were asked for, within a bound.
//!
//! - H1 Never more than the bound and what is lent to it, but for one record that is larger.
//! - H2 Room is made by what was given out already, or has not been asked for long after it was due; what
//!   is still expected stays.

use std::collections::{BTreeSet, HashMap};

use crate::domain::batch::Taken;
use crate::domain::id::LogPosition;

/// What a record costs beside itself: its places in both maps.
pub(super) const OVERHEAD_BYTES: usize = 192;
/// So long after it was due a record is not expected to be asked for any more.
const EXPECTED_MS: i64 = 2_000;

/// Which record.
pub(super) type Key = (LogPosition, u32);

struct Kept {
    taken: Taken,
    /// Until when it is expected to be asked for.
    until_ms: i64,
}

/// The shelf.
pub(super) struct Shelf {
    bytes_max: usize,
    /// What may be used beyond that.
    beyond: usize,
    bytes: usize,
    kept: HashMap<Key, Kept>,
    /// Those that may go first, first.
    by_end: BTreeSet<(i64, Key)>,
}

impl Shelf {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            beyond: 0,
            bytes: 0,
            kept: HashMap::new(),
            by_end: BTreeSet::new(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// So much is lent.
    pub(super) fn lent(&mut self, beyond: usize) {
        self.beyond = beyond;
    }

    /// What it uses of what is lent, with so much that is coming.
    pub(super) fn borrows(&self, coming: u64) -> usize {
        let coming = usize::try_from(coming).unwrap_or(usize::MAX);
        self.bytes
            .saturating_add(coming)
            .saturating_sub(self.bytes_max)
    }

    /// What it may hold.
    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max.saturating_add(self.beyond) as u64
    }

    /// Whether so many bytes more are more than it may hold.
    pub(super) fn exceeds(&self, bytes: u64) -> bool {
        (self.bytes as u64).saturating_add(bytes) > self.bytes_max()
    }

    pub(super) fn has(&self, key: Key) -> bool {
        self.kept.contains_key(&key)
    }

    /// Makes room for so many bytes, if it can be made (H2); what would not fit into an empty shelf either
    /// has room in an empty one.
    pub(super) fn make_room(&mut self, bytes: u64, now_ms: i64) -> bool {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let bytes_max = self.bytes_max.saturating_add(self.beyond);
        while self.bytes.saturating_add(bytes) > bytes_max {
            match self.by_end.first().copied() {
                None => return true,
                Some((until_ms, key)) if until_ms < now_ms => self.remove(key, until_ms),
                Some(_) => return false,
            }
        }
        true
    }

    /// Takes a record in, if there is room.
    pub(super) fn put(&mut self, key: Key, due_ms: i64, taken: Taken, now_ms: i64) {
        let cost = taken.bytes() + OVERHEAD_BYTES;
        if self.has(key) || !self.make_room(cost as u64, now_ms) {
            return;
        }
        self.bytes += cost;
        let until_ms = due_ms.saturating_add(EXPECTED_MS);
        self.by_end.insert((until_ms, key));
        self.kept.insert(key, Kept { taken, until_ms });
    }

    /// Gives a record out; it stays for others until room is needed.
    pub(super) fn give(&mut self, key: Key, now_ms: i64) -> Option<Taken> {
        let kept = self.kept.get_mut(&key)?;
        let until_ms = kept.until_ms.min(now_ms.saturating_sub(1));
        if until_ms != kept.until_ms {
            self.by_end.remove(&(kept.until_ms, key));
            self.by_end.insert((until_ms, key));
            kept.until_ms = until_ms;
        }
        Some(kept.taken.clone())
    }

    fn remove(&mut self, key: Key, until_ms: i64) {
        self.by_end.remove(&(until_ms, key));
        if let Some(gone) = self.kept.remove(&key) {
            self.bytes = self
                .bytes
                .saturating_sub(gone.taken.bytes() + OVERHEAD_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::batch::{BatchBuilder, BatchStamp, Compression, Opened};
    use crate::domain::id::MessageId;
    use crate::domain::record::Record;
    use crate::domain::time::WallMs;

    fn taken(bytes: usize) -> Taken {
        let mut builder = BatchBuilder::new(1 << 20, Compression::None);
        builder
            .push(
                &Record::new(vec![7; bytes]),
                MessageId::default(),
                WallMs(1),
            )
            .unwrap();
        let batch = builder.finish(BatchStamp::default()).unwrap();
        Opened::open(&batch.into()).unwrap().take(0).unwrap()
    }

    #[derive(Debug, Clone)]
    enum Op {
        Put(u64, i64, usize),
        Give(u64),
        Room(u64),
        Wait(i64),
    }

    fn any_op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0u64..12, 0i64..4_000, 0usize..900).prop_map(|(k, d, b)| Op::Put(k, d, b)),
            3 => (0u64..12).prop_map(Op::Give),
            1 => (0u64..4_000).prop_map(Op::Room),
            2 => (0i64..1_500).prop_map(Op::Wait),
        ]
    }

    proptest! {
        /// Against a list that is looked through from end to end.
        #[test]
        fn h1_h2_as_a_naive_list_would(ops in prop::collection::vec(any_op(), 1..80)) {
            const MAX: usize = 3_000;
            let mut shelf = Shelf::new(MAX);
            // (key, until, cost)
            let mut naive: Vec<(u64, i64, usize)> = Vec::new();
            let mut now = 0;
            fn room(naive: &mut Vec<(u64, i64, usize)>, bytes: usize, now: i64) -> bool {
                loop {
                    let held: usize = naive.iter().map(|kept| kept.2).sum();
                    if held + bytes <= MAX {
                        return true;
                    }
                    naive.sort_unstable_by_key(|kept| (kept.1, kept.0));
                    match naive.first() {
                        None => return true,
                        Some(first) if first.1 < now => { naive.remove(0); }
                        Some(_) => return false,
                    }
                }
            }
            for op in ops {
                match op {
                    Op::Put(key, ahead, bytes) => {
                        let taken = taken(bytes);
                        let cost = taken.bytes() + OVERHEAD_BYTES;
                        shelf.put((LogPosition(key), 0), now + ahead, taken, now);
                        if naive.iter().all(|kept| kept.0 != key) && room(&mut naive, cost, now) {
                            naive.push((key, now + ahead + EXPECTED_MS, cost));
                        }
                    }
                    Op::Give(key) => {
                        let given = shelf.give((LogPosition(key), 0), now);
                        let kept = naive.iter_mut().find(|kept| kept.0 == key);
                        prop_assert_eq!(given.is_some(), kept.is_some());
                        if let Some(kept) = kept {
                            kept.1 = kept.1.min(now - 1);
                        }
                    }
                    Op::Room(bytes) => {
                        let made = shelf.make_room(bytes, now);
                        prop_assert_eq!(made, room(&mut naive, usize::try_from(bytes).unwrap(), now));
                    }
                    Op::Wait(ms) => now += ms,
                }
                let held: usize = naive.iter().map(|kept| kept.2).sum();
                prop_assert_eq!(shelf.bytes(), held);
                prop_assert!(held <= MAX || naive.len() == 1);
                for key in 0..12 {
                    let has = naive.iter().any(|kept| kept.0 == key);
                    prop_assert_eq!(shelf.has((LogPosition(key), 0)), has);
                }
            }
        }
    }
}

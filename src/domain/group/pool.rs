//! Which cursor is served next: the highest lane first, but nobody waits for ever.
//!
//! Lanes are priority levels. A lane below the highest that has had something ready for `ageing_ms`
//! without being served is served once, whatever is above it or about to be, and waits again: so every lane
//! gets at least one lease per `ageing_ms`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::command::CursorNumber;
use crate::domain::id::{Lane, MemberId};
use crate::domain::time::MonotonicMs;

/// Cursors served to the same members.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool {
    ready: BTreeMap<Lane, BTreeSet<CursorNumber>>,
    since: BTreeSet<(MonotonicMs, CursorNumber)>,
    places: BTreeMap<CursorNumber, (Lane, MonotonicMs)>,
    /// Lanes with records that are known of and not found yet: nothing lower is served meanwhile.
    coming: BTreeMap<Lane, BTreeSet<CursorNumber>>,
    last: CursorNumber,
    /// Cursors nothing is being looked for at the moment.
    pub(super) hungry: BTreeSet<CursorNumber>,
    /// Members with credit, whose turn it is first.
    pub(super) turn: VecDeque<MemberId>,
}

impl Pool {
    /// A cursor has something ready.
    pub(super) fn put(&mut self, cursor: CursorNumber, lane: Lane, since: MonotonicMs) {
        if self.places.contains_key(&cursor) {
            return;
        }
        self.places.insert(cursor, (lane, since));
        self.since.insert((since, cursor));
        self.ready.entry(lane).or_default().insert(cursor);
    }

    /// It has nothing any more.
    pub(super) fn take(&mut self, cursor: CursorNumber) {
        let Some((lane, since)) = self.places.remove(&cursor) else {
            return;
        };
        self.since.remove(&(since, cursor));
        if let Some(cursors) = self.ready.get_mut(&lane) {
            cursors.remove(&cursor);
            if cursors.is_empty() {
                self.ready.remove(&lane);
            }
        }
    }

    /// It was served and has more: it waits from now on.
    pub(super) fn served(&mut self, cursor: CursorNumber, now: MonotonicMs) {
        self.last = cursor;
        if let Some((_, since)) = self.places.get_mut(&cursor) {
            self.since.remove(&(*since, cursor));
            *since = now;
            self.since.insert((now, cursor));
        }
    }

    /// Whether a cursor has more than was found.
    pub(super) fn coming(&mut self, cursor: CursorNumber, lane: Lane, is_coming: bool) {
        if is_coming {
            self.coming.entry(lane).or_default().insert(cursor);
        } else if let Some(cursors) = self.coming.get_mut(&lane) {
            cursors.remove(&cursor);
            if cursors.is_empty() {
                self.coming.remove(&lane);
            }
        }
    }

    /// Forgets a cursor.
    pub(super) fn forget(&mut self, cursor: CursorNumber, lane: Lane) {
        self.take(cursor);
        self.coming(cursor, lane, false);
        self.hungry.remove(&cursor);
    }

    /// Whoever has something ready, the highest lane first.
    pub(super) fn highest_first(&self) -> impl Iterator<Item = CursorNumber> {
        self.ready.values().rev().flatten().copied()
    }

    /// Who has waited for longest, and when that is too long.
    pub(super) fn oldest(&self, ageing_ms: u64) -> Option<(MonotonicMs, CursorNumber)> {
        let (since, cursor) = self.since.first()?;
        Some((MonotonicMs(since.0.saturating_add(ageing_ms)), *cursor))
    }

    /// Who is served next; none where nobody can be, or a higher lane is about to have something.
    pub(super) fn next(&self, now: MonotonicMs, ageing_ms: u64) -> Option<CursorNumber> {
        let (top, cursors) = self.ready.last_key_value()?;
        let coming = self.coming.last_key_value().map(|(lane, _)| lane);
        let highest = coming.map_or(top, |coming| coming.max(top));
        let aged = self
            .since
            .iter()
            .take_while(|(since, _)| now.0.saturating_sub(since.0) >= ageing_ms)
            .find(|(_, cursor)| {
                let place = self.places.get(cursor);
                place.is_some_and(|(lane, _)| lane < highest)
            });
        if let Some((_, aged)) = aged {
            return Some(*aged);
        }
        if highest > top {
            return None;
        }
        cursors
            .range((
                std::ops::Bound::Excluded(self.last),
                std::ops::Bound::Unbounded,
            ))
            .next()
            .or(cursors.first())
            .copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGEING_MS: u64 = 100;

    fn next(pool: &Pool, now: u64) -> Option<u64> {
        pool.next(MonotonicMs(now), AGEING_MS)
            .map(|cursor| cursor.0)
    }

    #[test]
    fn the_highest_lane_comes_first_and_its_cursors_in_turn() {
        let mut pool = Pool::default();
        pool.put(CursorNumber(1), Lane(0), MonotonicMs(0));
        pool.put(CursorNumber(2), Lane(3), MonotonicMs(0));
        pool.put(CursorNumber(3), Lane(3), MonotonicMs(0));
        assert_eq!(next(&pool, 1), Some(2));
        pool.served(CursorNumber(2), MonotonicMs(1));
        assert_eq!(next(&pool, 1), Some(3));
        pool.served(CursorNumber(3), MonotonicMs(1));
        assert_eq!(next(&pool, 1), Some(2));
        pool.take(CursorNumber(2));
        pool.take(CursorNumber(3));
        assert_eq!(next(&pool, 1), Some(1));
    }

    #[test]
    fn a_lane_that_has_waited_for_long_is_served_once() {
        let mut pool = Pool::default();
        pool.put(CursorNumber(1), Lane(0), MonotonicMs(0));
        pool.put(CursorNumber(2), Lane(3), MonotonicMs(50));
        assert_eq!(next(&pool, 99), Some(2));
        assert_eq!(next(&pool, 100), Some(1));
        pool.served(CursorNumber(1), MonotonicMs(100));
        assert_eq!(next(&pool, 100), Some(2));
        assert_eq!(next(&pool, 199), Some(2));
        assert_eq!(next(&pool, 200), Some(1));
    }

    #[test]
    fn nothing_lower_is_served_while_something_higher_is_coming() {
        let mut pool = Pool::default();
        pool.put(CursorNumber(1), Lane(0), MonotonicMs(0));
        pool.coming(CursorNumber(2), Lane(3), true);
        assert_eq!(next(&pool, 1), None);
        // Not for ever, though.
        assert_eq!(next(&pool, AGEING_MS), Some(1));
        assert_eq!(
            pool.oldest(AGEING_MS),
            Some((MonotonicMs(AGEING_MS), CursorNumber(1)))
        );
        pool.coming(CursorNumber(2), Lane(3), false);
        assert_eq!(next(&pool, 1), Some(1));
    }
}

//! Groups that go through the same backlog at about the same time, kept near each other, so that what one of
//! them reads from the disk is still there for the others.
//!
//! In: where each of them looks for records next ([`Convoys::at`]). Out: whether whoever is ahead may go on
//! ([`Convoys::wait`]). A group waits only while somebody is behind it who is near enough to be served from
//! what is kept, and moves; who falls further behind, or stands still, is on its own and holds nobody. And a
//! group waits only while its members have enough to do: that is its own business, see
//! [`super::feed::Feeder`].
//!
//! - V1 Nobody waits for who is ahead, so that somebody always goes on.
//! - V2 Nobody waits for who was not heard of for `ACTIVE`.
//!
//! Nothing of it is ever written.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::domain::group::command::CursorNumber;
use crate::domain::id::{Offset, OwnerId, PartitionId};
use crate::log::ReadPool;

/// Who was not heard of for so long is waited for no longer.
const ACTIVE: Duration = Duration::from_secs(1);
/// Of what is kept of a partition, the part whoever leads may be ahead of the others.
const LEAD_OF: u64 = 4;
/// A lead in bytes that everybody may have: less than what is looked for at a time would be none.
const LEAD_BYTES_MIN: u64 = 512 << 10;

/// One group's way through one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Traveller {
    /// The group.
    pub group: OwnerId,
    /// Its cursor.
    pub cursor: CursorNumber,
}

/// See the module.
pub struct Convoys {
    /// How much is kept of everything that is read, in bytes.
    kept_bytes: Box<dyn Fn() -> usize + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    convoys: HashMap<PartitionId, Convoy>,
    swept_at: Option<Instant>,
}

#[derive(Default)]
struct Convoy {
    travellers: HashMap<Traveller, Seen>,
    moved: Arc<Notify>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    from: Offset,
    at: Instant,
}

impl Convoys {
    /// For readers who share what this pool keeps.
    #[must_use]
    pub fn new(pool: Arc<ReadPool>) -> Self {
        Self::sharing(Box::new(move || pool.kept_bytes_max()))
    }

    fn sharing(kept_bytes: Box<dyn Fn() -> usize + Send + Sync>) -> Self {
        Self {
            kept_bytes,
            state: Mutex::default(),
        }
    }

    /// A group looks for what lies from an offset on, on the disk.
    pub fn at(&self, place: PartitionId, traveller: Traveller, from: Offset) {
        self.note(place, traveller, from, Instant::now());
    }

    fn note(&self, place: PartitionId, traveller: Traveller, from: Offset, now: Instant) {
        let mut state = self.state();
        state.sweep(now);
        let convoy = state.convoys.entry(place).or_default();
        convoy.travellers.retain(|_, seen| seen.is_active(now));
        convoy.travellers.insert(traveller, Seen { from, at: now });
        let moved = Arc::clone(&convoy.moved);
        drop(state);
        moved.notify_waiters();
    }

    /// Waits while a group is ahead of others by more than it may be; records are of so many bytes each.
    /// May be dropped at any time.
    pub async fn wait(&self, place: PartitionId, from: Offset, record_bytes: u64) {
        loop {
            let Some(moved) = self.moved(place) else {
                return;
            };
            let notified = moved.notified();
            tokio::pin!(notified);
            // From here on no move is missed.
            notified.as_mut().enable();
            let Some(until) = self.until(place, from, record_bytes, Instant::now()) else {
                return;
            };
            let _ = timeout_at(until, notified).await;
        }
    }

    /// Whether it would have to wait.
    #[must_use]
    pub fn is_ahead(&self, place: PartitionId, from: Offset, record_bytes: u64) -> bool {
        self.until(place, from, record_bytes, Instant::now())
            .is_some()
    }

    fn moved(&self, place: PartitionId) -> Option<Arc<Notify>> {
        let state = self.state();
        let convoy = state.convoys.get(&place)?;
        Some(Arc::clone(&convoy.moved))
    }

    /// Until when those are waited for that are behind by too much, unless they move.
    fn until(
        &self,
        place: PartitionId,
        from: Offset,
        record_bytes: u64,
        now: Instant,
    ) -> Option<Instant> {
        let kept_bytes = (self.kept_bytes)() as u64;
        let state = self.state();
        let kept = kept_bytes / state.convoys.len().max(1) as u64;
        let lead = (kept / LEAD_OF).max(LEAD_BYTES_MIN)..=kept.max(2 * LEAD_BYTES_MIN);
        let convoy = state.convoys.get(&place)?;
        let behind = convoy.travellers.values().filter(|seen| {
            let records = from.0.saturating_sub(seen.from.0);
            seen.is_active(now) && lead.contains(&records.saturating_mul(record_bytes))
        });
        behind.map(|seen| seen.at + ACTIVE).max()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Convoys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Convoys").finish_non_exhaustive()
    }
}

impl State {
    /// Forgets partitions nobody reads any more, now and then.
    fn sweep(&mut self, now: Instant) {
        let is_due = |swept: Instant| now.saturating_duration_since(swept) >= ACTIVE;
        if !self.swept_at.is_none_or(is_due) {
            return;
        }
        self.swept_at = Some(now);
        self.convoys.retain(|_, convoy| {
            let mut seen = convoy.travellers.values();
            seen.any(|seen| seen.is_active(now))
        });
    }
}

impl Seen {
    fn is_active(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < ACTIVE
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;
    use crate::domain::id::{Lane, PartitionIndex, TopicId};

    const PLACE: PartitionId = PartitionId {
        topic: TopicId(1),
        partition: PartitionIndex(0),
        lane: Lane::ZERO,
    };
    const RECORD_BYTES: u64 = 1 << 10;

    fn traveller(group: u64) -> Traveller {
        Traveller {
            group: OwnerId(group),
            cursor: CursorNumber(1),
        }
    }

    #[tokio::test]
    async fn who_is_ahead_waits_until_the_others_have_come_near() {
        let convoys = Convoys::sharing(Box::new(|| 4 << 20));
        // Nobody is given up while the test runs.
        let later = Instant::now() + 600 * ACTIVE;
        let note = |group, from| convoys.note(PLACE, traveller(group), Offset(from), later);
        note(1, 0);
        note(2, 2048);
        assert!(!convoys.is_ahead(PLACE, Offset(0), RECORD_BYTES), "V1");
        assert!(!convoys.is_ahead(PLACE, Offset(1023), RECORD_BYTES));
        let mut ahead = pin!(convoys.wait(PLACE, Offset(2048), RECORD_BYTES));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(ahead.as_mut().poll(&mut cx).is_pending());
        note(1, 1000);
        assert!(ahead.as_mut().poll(&mut cx).is_pending(), "not near yet");
        note(1, 1025);
        ahead.await;
    }

    #[test]
    fn v2_who_stands_still_or_is_far_behind_holds_nobody() {
        let convoys = Convoys::sharing(Box::new(|| 4 << 20));
        let now = Instant::now();
        convoys.note(PLACE, traveller(1), Offset(0), now);
        let until = |from, now| convoys.until(PLACE, Offset(from), RECORD_BYTES, now);
        assert_eq!(until(8192, now), None, "far behind");
        assert_eq!(until(2048, now), Some(now + ACTIVE));
        let later = now + ACTIVE / 2;
        convoys.note(PLACE, traveller(1), Offset(100), later);
        assert_eq!(until(2048, later), Some(later + ACTIVE));
        assert_eq!(until(2048, later + ACTIVE), None, "it stands still");
    }

    #[test]
    fn what_is_kept_is_divided_among_partitions_and_those_not_read_any_more_are_forgotten() {
        let convoys = Convoys::sharing(Box::new(|| 256 << 20));
        let now = Instant::now();
        let place = |partition| PartitionId {
            partition: PartitionIndex(partition),
            ..PLACE
        };
        let until = |from, now| convoys.until(PLACE, Offset(from), RECORD_BYTES, now);
        convoys.note(PLACE, traveller(1), Offset(0), now);
        assert_eq!(until(32 << 10, now), None);
        for partition in 0..64 {
            convoys.note(place(partition), traveller(1), Offset(0), now);
        }
        assert!(until(2 << 10, now).is_some());
        let later = now + 2 * ACTIVE;
        convoys.note(PLACE, traveller(1), Offset(0), later);
        assert_eq!(convoys.state().convoys.len(), 1);
        assert_eq!(until(32 << 10, later), None);
    }
}

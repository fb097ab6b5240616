//! Records found: into the window, and from there to whoever may have them.

use super::command::{CursorNumber, Effect, Offered};
use super::cursor::WindowBatch;
use super::dead::Burial;
use super::delta::Why;
use super::subscription::Mode;
use super::{Group, Timer};
use crate::domain::id::Offset;
use crate::domain::partition::index::BatchPlace;
use crate::domain::time::{MonotonicMs, Now};

impl Group {
    /// What a search found: consecutive batches from where it was asked for, and the end of the partition.
    /// A search that was replaced meanwhile is void.
    pub fn offered(
        &mut self,
        now: Now,
        number: CursorNumber,
        round: u64,
        batches: &[Offered],
        high_watermark: Offset,
        effects: &mut Vec<Effect>,
    ) {
        self.now = now;
        let keyed = self.mode_of(number) == Some(Mode::KeyOrdered);
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return;
        };
        if cursor.round != round || !cursor.feeding {
            return;
        }
        cursor.feeding = false;
        cursor.surveyed = true;
        cursor.high_watermark = cursor.high_watermark.max(high_watermark.0);
        for offered in batches {
            self.take_in(number, offered, keyed);
        }
        self.touched.insert(number);
        self.finish(effects);
    }

    fn take_in(&mut self, number: CursorNumber, offered: &Offered, keyed: bool) {
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return;
        };
        let now = self.now.monotonic;
        let mut queued = Vec::new();
        if offered.from.0 > cursor.next {
            // Damage took what lies between: it is not there to be consumed.
            let lost = cursor
                .settled
                .gaps(cursor.next.max(cursor.floor_or_zero()), offered.from.0);
            for (from, to) in lost {
                cursor.deciding.insert(from, to);
                self.pending.settle(number, from, to);
                self.pending.expire(number, to - from);
            }
            cursor.next = offered.from.0;
        }
        let taken = cursor.take_in(offered);
        let mut listed = taken.listed.into_iter().peekable();
        for (from, to) in taken.fresh {
            if !keyed {
                cursor.ready.insert(from, to);
                continue;
            }
            for offset in from..to {
                // G3: a listed record stands in the line of its key before what comes behind it.
                while let Some(earlier) = listed.next_if(|earlier| *earlier < offset) {
                    cursor.queue(earlier, now);
                    queued.push(earlier);
                }
                if cursor.queue(offset, now) {
                    cursor.ready.insert(offset, offset + 1);
                }
            }
        }
        queued.extend(listed);
        let durable = cursor.durable;
        for (from, to) in taken.filtered {
            if durable {
                cursor.deciding.insert(from, to);
                self.pending.settle(number, from, to);
            } else {
                cursor.floor.get_or_insert(from);
                cursor.settled.insert(from, to);
                cursor.advance();
            }
        }
        for offset in queued {
            self.activate(number, offset);
        }
    }

    /// A listed record's turn has come, as far as looking from the floor up goes: it stands in the line of
    /// its key, and what it waits for decides.
    pub(super) fn activate(&mut self, number: CursorNumber, offset: u64) {
        let is_doomed = self.is_doomed(number, offset);
        let is_buried = self.burying.contains_key(&(number, offset));
        let now = self.now.monotonic;
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return;
        };
        self.touched.insert(number);
        // What is not looked at yet may hide an earlier record of the same key.
        if offset >= cursor.next.max(cursor.floor_or_zero()) || !cursor.queue(offset, now) {
            return;
        }
        let Some(listed) = cursor.listed.get(&offset) else {
            return;
        };
        // On its way to the dead letters it is in nobody else's hand: what came of it there would be written
        // behind its letter, and make it another.
        if is_buried || cursor.is_in_hand(offset) || cursor.fetching.contains(offset) {
            return;
        }
        match &listed.why {
            _ if is_doomed => {
                self.dying.insert((number, offset));
            }
            Why::Attached(_) | Why::Dead { .. } => {}
            Why::Retry { since, span_ms, .. } => {
                let passed = u64::try_from(self.now.wall.0.saturating_sub(since.0)).unwrap_or(0);
                let left = span_ms.saturating_sub(passed);
                if left == 0 {
                    cursor.ready.insert(offset, offset + 1);
                } else {
                    let due = MonotonicMs(self.now.monotonic.0.saturating_add(left));
                    self.timers.insert((due, Timer::Retry(number, offset)));
                }
            }
            Why::Held => {
                cursor.ready.insert(offset, offset + 1);
            }
        }
    }

    /// A listed record's wait is over.
    pub(super) fn retry_due(&mut self, number: CursorNumber, offset: u64) {
        match self.burying.get(&(number, offset)) {
            Some(Burial::Later) => {
                self.burying.remove(&(number, offset));
                return self.activate(number, offset);
            }
            Some(Burial::Asked | Burial::Written) => return,
            None => {}
        }
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return;
        };
        let waits = cursor
            .listed
            .get(&offset)
            .is_some_and(|listed| matches!(listed.why, Why::Retry { .. }));
        let is_free = !cursor.deciding.contains(offset)
            && !cursor.leased.contains(offset)
            && offset < cursor.next.max(cursor.floor_or_zero());
        if waits && is_free && cursor.is_head(offset) {
            cursor.ready.insert(offset, offset + 1);
            self.touched.insert(number);
        }
    }

    /// What was asked for with [`Effect::Fetch`]: the batches there are from `from` up to `end`. Records that
    /// are in none of them cannot be read any more: they are counted as expired.
    pub fn fetched(
        &mut self,
        now: Now,
        number: CursorNumber,
        (from, end): (Offset, Offset),
        batches: &[BatchPlace],
        effects: &mut Vec<Effect>,
    ) {
        self.now = now;
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return;
        };
        if cursor.fetch_asked != Some(from.0) {
            return;
        }
        cursor.fetch_asked = None;
        self.touched.insert(number);
        let mut here = Vec::new();
        for place in batches {
            let (first, end) = (place.first_offset.0, place.end().0);
            let wanted = cursor.fetching.within(first, end);
            if wanted.is_empty() {
                continue;
            }
            cursor.fetching.remove(first, end);
            let batch = WindowBatch {
                place: *place,
                keys: Vec::new(),
            };
            cursor.batches.entry(first).or_insert(batch);
            here.extend(wanted);
        }
        // One is found or gone: it is not asked for twice.
        let end = end.0.max(from.0.saturating_add(1));
        let gone = cursor.fetching.within(from.0, end);
        cursor.fetching.remove(from.0, end);
        for offset in here.into_iter().flat_map(|(from, to)| from..to) {
            self.found_again(number, offset);
        }
        for offset in gone.into_iter().flat_map(|(from, to)| from..to) {
            if self.is_to_be_had(number, offset) {
                self.settle_range(number, offset, offset + 1);
                self.pending.expire(number, 1);
            }
        }
        self.fetch(number, effects);
        self.finish(effects);
    }

    fn found_again(&mut self, number: CursorNumber, offset: u64) {
        if !self.is_to_be_had(number, offset) {
            return;
        }
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return;
        };
        if cursor.listed.contains_key(&offset) {
            self.activate(number, offset);
        } else {
            cursor.ready.insert(offset, offset + 1);
        }
    }

    /// A search may have found a record meanwhile: then somebody has it, or it is consumed.
    fn is_to_be_had(&self, number: CursorNumber, offset: u64) -> bool {
        let cursor = self.cursors.get(&number);
        cursor.is_some_and(|cursor| !cursor.is_in_hand(offset) && !cursor.is_settled(offset))
    }

    /// Retention has taken everything below `start`: what was not consumed of it never will be. Leased
    /// records may still be settled, attached ones are never taken.
    pub fn trimmed(
        &mut self,
        now: Now,
        number: CursorNumber,
        start: Offset,
        effects: &mut Vec<Effect>,
    ) {
        self.now = now;
        let Some(cursor) = self.cursors.get_mut(&number).filter(|c| !c.resetting) else {
            return;
        };
        if cursor.feeding && cursor.next < start.0 {
            cursor.feeding = false;
            cursor.surveyed = true;
            cursor.next = start.0;
        }
        let is_new = cursor.floor.is_none();
        let from = cursor.floor_or_zero();
        let mut gone: super::RangeSet = cursor.settled.gaps(from, start.0).into_iter().collect();
        let mut waited = 0;
        for (offset, listed) in cursor.listed.range(..start.0) {
            if !matches!(listed.why, Why::Attached(_)) {
                gone.insert(*offset, offset + 1);
                let in_hand = cursor.leased.contains(*offset) || cursor.deciding.contains(*offset);
                waited += u64::from(!in_hand);
            } else {
                gone.remove(*offset, offset + 1);
            }
        }
        for (a, b) in cursor.leased.within(0, start.0) {
            gone.remove(a, b);
        }
        for (a, b) in cursor.deciding.within(0, start.0) {
            gone.remove(a, b);
        }
        cursor.ready.remove(0, start.0);
        let expired = gone.len();
        let durable = cursor.durable;
        for (a, b) in gone.iter().collect::<Vec<_>>() {
            if durable {
                self.settle_range(number, a, b);
            } else {
                let progress = super::delta::Progress {
                    cursor: number,
                    settled: vec![(Offset(a), b - a)],
                    ..super::delta::Progress::default()
                };
                self.apply_progress(&progress, effects);
            }
        }
        // A subscription that begins at the first record there is has lost nothing by what was before, but
        // for records that came back to it: in order, others wait behind those.
        let expired = if is_new { waited } else { expired };
        if expired > 0 {
            self.pending.expire(number, expired);
        }
        self.touched.insert(number);
        self.finish(effects);
    }

    /// A search came to nothing, through no fault of the records: it is begun again.
    pub fn not_found(
        &mut self,
        now: Now,
        number: CursorNumber,
        round: u64,
        effects: &mut Vec<Effect>,
    ) {
        self.now = now;
        if let Some(cursor) = self.cursors.get_mut(&number)
            && cursor.round == round
        {
            cursor.feeding = false;
            // A lane that cannot be searched holds no other up.
            cursor.surveyed = true;
            self.touched.insert(number);
        }
        self.finish(effects);
    }
}

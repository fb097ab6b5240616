//! One place of a subscription: how far it is consumed, and what of it is in hand.
//!
//! **Progress** is applied state, a fold of the log: a floor, settled ranges above it, and a listed
//! exception for each record that waits. **Hand** is memory: the window of records found and not settled
//! yet, which of them may be leased, which keys are busy.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::command::{CursorNumber, Offered};
use super::deliver::is_ordered;
use super::delta::{Listed, NewCursor, Progress, Why};
use super::ranges::RangeSet;
use super::subscription::Mode;
use crate::domain::id::{Generation, LeaseId, MemberId, Offset, PartitionId};
use crate::domain::partition::index::BatchPlace;
use crate::domain::time::MonotonicMs;
use crate::domain::transaction::TransactionId;

/// Batches in hand below which none in the middle is looked for.
const BATCHES_SWEPT: usize = 64;

/// The applied state of a cursor, but for what is listed: its row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Where.
    pub place: PartitionId,
    /// Whose, in broadcast mode.
    pub member: String,
    /// Everything below is settled or listed. None: it begins at the first record there is.
    pub floor: Option<Offset>,
    /// Settled above the floor: first offset and count.
    pub settled: Vec<(Offset, u64)>,
    /// Records retention took unsettled.
    pub expired: u64,
    /// Records dead-lettered.
    pub dead_lettered: u64,
}

/// A batch with records in the window.
#[derive(Debug, Clone)]
pub(super) struct WindowBatch {
    pub(super) place: BatchPlace,
    /// Sorted by offset; none where keys do not matter.
    pub(super) keys: Vec<(u64, u64)>,
}

/// A busy key: its oldest unsettled record may be leased, the others wait.
#[derive(Debug, Clone)]
struct Key {
    head: u64,
    /// Since when that is its oldest.
    since: MonotonicMs,
    waiting: BTreeSet<u64>,
}

/// A partition on its way from one member to another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drain {
    pub(super) until: MonotonicMs,
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Cursor {
    pub(super) number: CursorNumber,
    pub(super) place: PartitionId,
    /// Whose, in broadcast mode.
    pub(super) member: String,
    /// Its progress is in the log. Only nameless broadcast members have cursors that are not.
    pub(super) durable: bool,

    // Applied.
    pub(super) floor: Option<u64>,
    pub(super) settled: RangeSet,
    pub(super) listed: BTreeMap<u64, Listed>,
    pub(super) expired: u64,
    pub(super) dead_lettered: u64,

    // In hand.
    pub(super) generation: Generation,
    pub(super) assigned: Option<MemberId>,
    pub(super) drain: Option<Drain>,
    /// It stands still: see [`Group::close`](super::Group::close).
    pub(super) resetting: bool,
    /// The next offset to look for.
    pub(super) next: u64,
    pub(super) high_watermark: u64,
    /// The search on its way.
    pub(super) round: u64,
    pub(super) feeding: bool,
    /// It is known how far the partition goes, or that this cannot be had: until then a lower lane waits.
    pub(super) surveyed: bool,
    /// Found, not settled, not listed.
    pub(super) window: RangeSet,
    pub(super) batches: BTreeMap<u64, WindowBatch>,
    /// May be leased.
    pub(super) ready: RangeSet,
    /// On their way to the log: settled or listed anew.
    pub(super) deciding: RangeSet,
    /// Those of them that are being listed.
    pub(super) listing: BTreeSet<u64>,
    /// Leases by the offset they began with.
    pub(super) leases: BTreeSet<(u64, LeaseId)>,
    /// What members have.
    pub(super) leased: RangeSet,
    /// How often records that came back have been delivered, where that is not listed.
    pub(super) returned: BTreeMap<u64, u16>,
    /// Attachments on their way to the log.
    pub(super) attaching: RangeSet,
    /// What was attached, or on its way to be, when the place was last assigned.
    pub(super) inherited: RangeSet,
    /// So many batches are looked through for those nobody needs.
    sweep_at: usize,
    /// Records that would be ready, were it known where they lie: their batches are being found again.
    pub(super) fetching: RangeSet,
    /// From where on batches are being found again.
    pub(super) fetch_asked: Option<u64>,
    keys: HashMap<u64, Key>,
    keyed: bool,
    /// Busy keys somebody waits behind.
    lines: usize,
    /// When it was last looked for more, or seen to move by itself.
    pub(super) looked_at: MonotonicMs,
    /// Records of the window consumed since.
    pub(super) moved: u64,
    /// Until then it is not looked again whether keys are stuck.
    pub(super) stuck_look_at: MonotonicMs,
    /// Since when something is ready: for ageing.
    pub(super) ready_since: Option<MonotonicMs>,
}

impl Cursor {
    pub(super) fn new(new: &NewCursor, durable: bool, keyed: bool) -> Self {
        let floor = new.floor.map(|floor| floor.0);
        Self {
            number: new.number,
            place: new.place,
            member: new.member.clone(),
            durable,
            floor,
            settled: RangeSet::default(),
            listed: BTreeMap::new(),
            expired: 0,
            dead_lettered: 0,
            generation: Generation(0),
            assigned: None,
            drain: None,
            resetting: false,
            next: floor.unwrap_or(0),
            high_watermark: 0,
            round: 0,
            feeding: false,
            surveyed: false,
            window: RangeSet::default(),
            batches: BTreeMap::new(),
            ready: RangeSet::default(),
            deciding: RangeSet::default(),
            listing: BTreeSet::new(),
            leases: BTreeSet::new(),
            leased: RangeSet::default(),
            returned: BTreeMap::new(),
            attaching: RangeSet::default(),
            inherited: RangeSet::default(),
            sweep_at: BATCHES_SWEPT,
            fetching: RangeSet::default(),
            fetch_asked: None,
            keys: HashMap::new(),
            keyed,
            lines: 0,
            looked_at: MonotonicMs(0),
            moved: 0,
            stuck_look_at: MonotonicMs(0),
            ready_since: None,
        }
    }

    pub(super) fn from_row(number: CursorNumber, row: Row) -> Self {
        let new = NewCursor {
            number,
            place: row.place,
            member: row.member,
            floor: row.floor,
        };
        let mut cursor = Self::new(&new, true, false);
        cursor.settled = row
            .settled
            .iter()
            .map(|(first, count)| (first.0, first.0.saturating_add(*count)))
            .collect();
        cursor.expired = row.expired;
        cursor.dead_lettered = row.dead_lettered;
        cursor
    }

    pub(super) fn row(&self) -> Row {
        Row {
            place: self.place,
            member: self.member.clone(),
            floor: self.floor.map(Offset),
            settled: ranges_of(&self.settled),
            expired: self.expired,
            dead_lettered: self.dead_lettered,
        }
    }

    pub(super) fn floor_or_zero(&self) -> u64 {
        self.floor.unwrap_or(0)
    }

    /// Whether there may be records that were not found yet.
    pub(super) fn may_have_more(&self) -> bool {
        !self.surveyed || self.next < self.high_watermark
    }

    /// Whether nothing is ready, but is about to be: it is known to be there, and being looked for.
    pub(super) fn is_coming(&self) -> bool {
        let more = self.feeding && self.may_have_more();
        self.ready.is_empty() && (more || !self.fetching.is_empty())
    }

    /// Whether a record is consumed, durably.
    pub(super) fn is_settled(&self, offset: u64) -> bool {
        !self.listed.contains_key(&offset)
            && (self.floor.is_some_and(|floor| offset < floor) || self.settled.contains(offset))
    }

    /// Whether somebody has a record, or what became of it is on its way to the log.
    pub(super) fn is_in_hand(&self, offset: u64) -> bool {
        self.leased.contains(offset) || self.deciding.contains(offset)
    }

    /// Whether something that is listed, or follows what is not consumed, was not found again yet: after a
    /// start, or where members were lost.
    pub(super) fn is_behind(&self) -> bool {
        let listed = self.listed.last_key_value().map(|(at, _)| at + 1);
        let settled = self.settled.last().map(|(_, to)| to);
        listed.max(settled).is_some_and(|end| self.next < end)
    }

    /// The first record that can be leased although the list is full: one that is listed, or which those that
    /// are listed come behind.
    pub(super) fn first_needing_no_room(&self, mode: Mode) -> Option<u64> {
        let (first, _) = self.ready.first()?;
        if is_ordered(mode) {
            let mut listed = self.listed.range(first..);
            return listed.next().map(|_| first);
        }
        self.ready
            .iter()
            .find_map(|(from, to)| self.listed.range(from..to).next())
            .map(|(at, _)| *at)
    }

    // ---- applied state --------------------------------------------------------------------------

    /// Takes in what became of records: the only way progress is made. Says which were listed anew.
    pub(super) fn apply(&mut self, progress: &Progress) -> Vec<u64> {
        for (first, count) in &progress.settled {
            let (from, to) = (first.0, first.0.saturating_add(*count));
            let mut listed: Vec<u64> = self.listed.range(from..to).map(|(at, _)| *at).collect();
            for at in listed.drain(..) {
                self.listed.remove(&at);
            }
            // A cursor that begins at the first record there is learns of it with its first settlement.
            let floor = *self.floor.get_or_insert(0);
            self.settled.insert(from.max(floor), to);
        }
        for (offset, listed) in &progress.listed {
            self.listed.insert(offset.0, listed.clone());
            self.settled.remove(offset.0, offset.0 + 1);
        }
        self.expired += progress.expired;
        self.dead_lettered += progress.dead_lettered;
        self.advance();
        progress.listed.iter().map(|(offset, _)| offset.0).collect()
    }

    /// Raises the floor as far as everything below is settled or listed.
    pub(super) fn advance(&mut self) {
        let Some(mut floor) = self.floor else { return };
        loop {
            if let Some((from, to)) = self.settled.first()
                && from <= floor
            {
                floor = floor.max(to);
                self.settled.remove(from, to);
            } else if self.listed.contains_key(&floor) {
                floor += 1;
            } else {
                break;
            }
        }
        self.floor = Some(floor);
    }

    /// Everything but attachments is void, and it goes on at `floor`.
    pub(super) fn apply_reset(&mut self, floor: u64) {
        self.floor = Some(floor);
        self.settled.clear();
        self.listed
            .retain(|_, listed| matches!(listed.why, Why::Attached(_)));
        self.advance();
    }

    /// A transaction was decided. Says which records come again.
    pub(super) fn apply_decision(
        &mut self,
        transaction: TransactionId,
        committed: bool,
    ) -> (Vec<u64>, Vec<u64>) {
        let attached: Vec<u64> = self
            .listed
            .iter()
            .filter(|(_, listed)| listed.why == Why::Attached(transaction))
            .map(|(offset, _)| *offset)
            .collect();
        if committed {
            if !attached.is_empty() {
                // As with any other settlement, where it begins at the first record there is.
                self.floor.get_or_insert(0);
            }
            for offset in &attached {
                self.listed.remove(offset);
                // As with a settlement: it begins at the first record there is.
                if *offset >= *self.floor.get_or_insert(0) {
                    self.settled.insert(*offset, offset + 1);
                }
            }
            self.advance();
            return (attached, Vec::new());
        }
        for offset in &attached {
            if let Some(listed) = self.listed.get_mut(offset) {
                listed.why = Why::Held;
            }
        }
        (Vec::new(), attached)
    }

    // ---- in hand --------------------------------------------------------------------------------

    /// Forgets everything in hand and looks again from the floor.
    pub(super) fn empty_hand(&mut self, keyed: bool) {
        self.keyed = keyed;
        self.generation = Generation(self.generation.0 + 1);
        self.next = self.floor_or_zero();
        self.round += 1;
        self.feeding = false;
        self.window.clear();
        self.batches.clear();
        self.ready.clear();
        self.deciding.clear();
        self.attaching.clear();
        self.listing.clear();
        self.returned.clear();
        self.forget_fetches();
        self.keys.clear();
        self.lines = 0;
        self.ready_since = None;
    }

    /// Nothing is being found again any more.
    pub(super) fn forget_fetches(&mut self) {
        self.fetching.clear();
        self.fetch_asked = None;
    }

    /// Takes found records into the window. Says which of them may be looked at as candidates now: those
    /// not settled; and which do not pass the filter.
    pub(super) fn take_in(&mut self, offered: &Offered) -> TakenIn {
        let from = offered.from.0.max(self.next);
        let end = offered.batch.end().0;
        let mut taken = TakenIn::default();
        if from >= end {
            return taken;
        }
        self.next = end;
        let floor = self.floor_or_zero();
        let mut keys = Vec::new();
        let mut wanted = RangeSet::default();
        match &offered.records {
            None => {
                wanted.insert(from, end);
            }
            Some(records) => {
                for record in records
                    .iter()
                    .filter(|record| (from..end).contains(&record.offset.0))
                {
                    keys.push((record.offset.0, record.key_hash));
                }
                for run in keys.chunk_by(|(before, _), (at, _)| before + 1 == *at) {
                    if let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) {
                        wanted.insert(*first, last + 1);
                    }
                }
                taken.filtered = wanted.gaps(from.max(floor), end);
            }
        }
        // What is settled or listed already is not new.
        let listed: Vec<u64> = self.listed.range(from..end).map(|(at, _)| *at).collect();
        for at in &listed {
            wanted.remove(*at, at + 1);
        }
        taken.listed = listed;
        wanted.remove(0, floor);
        for (a, b) in self.settled.within(from, end) {
            wanted.remove(a, b);
        }
        taken.filtered = std::mem::take(&mut taken.filtered)
            .into_iter()
            .flat_map(|(a, b)| self.settled.gaps(a, b))
            .collect();
        for at in &taken.listed {
            // Listed under another filter, it stays wanted.
            taken.filtered = std::mem::take(&mut taken.filtered)
                .into_iter()
                .flat_map(|(a, b)| [(a, b.min(*at)), (a.max(at + 1), b)])
                .filter(|(a, b)| a < b)
                .collect();
        }
        if wanted.is_empty() && taken.listed.is_empty() {
            return taken;
        }
        for (a, b) in wanted.iter() {
            self.window.insert(a, b);
        }
        taken.fresh = wanted.iter().collect();
        let batch = WindowBatch {
            place: offered.batch,
            keys,
        };
        self.batches.insert(offered.batch.first_offset.0, batch);
        taken
    }

    /// The batch a record is in, if it is in hand.
    pub(super) fn batch_of(&self, offset: u64) -> Option<&WindowBatch> {
        let (_, batch) = self.batches.range(..=offset).next_back()?;
        (offset < batch.place.end().0).then_some(batch)
    }

    /// The hash of a record's key; 0 where it has none, or none is known.
    pub(super) fn key_of(&self, offset: u64) -> u64 {
        if let Some(listed) = self.listed.get(&offset) {
            return listed.key_hash;
        }
        let Some(batch) = self.batch_of(offset) else {
            return 0;
        };
        batch
            .keys
            .binary_search_by_key(&offset, |(at, _)| *at)
            .ok()
            .and_then(|at| batch.keys.get(at))
            .map_or(0, |(_, key)| *key)
    }

    /// A record stands in the line of its key; says whether it is at its head.
    pub(super) fn queue(&mut self, offset: u64, now: MonotonicMs) -> bool {
        let key = if self.keyed { self.key_of(offset) } else { 0 };
        if key == 0 {
            return true;
        }
        match self.keys.entry(key) {
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(Key {
                    head: offset,
                    since: now,
                    waiting: BTreeSet::new(),
                });
                true
            }
            std::collections::hash_map::Entry::Occupied(mut busy) => {
                if busy.get().head != offset {
                    let waiting = &mut busy.get_mut().waiting;
                    self.lines += usize::from(waiting.is_empty());
                    waiting.insert(offset);
                }
                busy.get().head == offset
            }
        }
    }

    /// A record is settled: its key goes to the next in line, which is returned.
    pub(super) fn unqueue(&mut self, offset: u64, key: u64, now: MonotonicMs) -> Option<u64> {
        if !self.keyed || key == 0 {
            return None;
        }
        let line = self.keys.get_mut(&key)?;
        let had_waiting = !line.waiting.is_empty();
        if line.head != offset {
            line.waiting.remove(&offset);
            self.lines -= usize::from(had_waiting && line.waiting.is_empty());
            return None;
        }
        let Some(next) = line.waiting.pop_first() else {
            self.keys.remove(&key);
            return None;
        };
        self.lines -= usize::from(line.waiting.is_empty());
        line.head = next;
        line.since = now;
        Some(next)
    }

    /// Whether a record may be leased as far as its key goes.
    pub(super) fn is_head(&self, offset: u64) -> bool {
        let key = if self.keyed { self.key_of(offset) } else { 0 };
        key == 0 || self.keys.get(&key).is_none_or(|line| line.head == offset)
    }

    /// Records of the window that wait behind keys whose head has been the same for `stuck_ms`, or in lines
    /// longer than `long`: oldest first, at most `max`. And when the next key will be stuck if it does not
    /// move.
    pub(super) fn stuck_in_window(
        &self,
        now: MonotonicMs,
        stuck_ms: u64,
        long: usize,
        max: usize,
    ) -> (Vec<u64>, Option<MonotonicMs>) {
        let mut stuck = Vec::new();
        let mut next: Option<MonotonicMs> = None;
        for line in self.keys.values().filter(|line| !line.waiting.is_empty()) {
            let at = MonotonicMs(line.since.0.saturating_add(stuck_ms));
            if at > now && line.waiting.len() <= long {
                next = Some(next.map_or(at, |next| next.min(at)));
                continue;
            }
            let waiting = line.waiting.iter().copied();
            stuck.extend(waiting.filter(|offset| {
                self.window.contains(*offset) && !self.deciding.contains(*offset)
            }));
        }
        stuck.sort_unstable();
        stuck.truncate(max);
        (stuck, next)
    }

    /// Whether as many busy keys have somebody waiting behind them as have nobody. Members then have eight
    /// tenths of what they would have of a window without bounds, from one that is a tenth as long.
    pub(super) fn has_lines(&self) -> bool {
        self.lines * 2 >= self.keys.len()
    }

    /// Whether a record below this one is about to be listed.
    pub(super) fn deciding_listed_below(&self, offset: u64) -> bool {
        self.listing.first().is_some_and(|first| *first < offset)
    }

    /// How often a record has been delivered before.
    pub(super) fn attempts(&self, offset: u64) -> u16 {
        let listed = self.listed.get(&offset).map_or(0, |listed| listed.attempts);
        listed.max(self.returned.get(&offset).copied().unwrap_or(0))
    }

    /// Drops batches nothing is wanted of any more: from the front at once, for batches are consumed about
    /// in order; all of them once many have gathered.
    pub(super) fn forget_batches(&mut self) {
        let (window, ready) = (&self.window, &self.ready);
        let is_needed = |batch: &WindowBatch| {
            let (from, to) = (batch.place.first_offset.0, batch.place.end().0);
            window.meets(from, to) || ready.meets(from, to)
        };
        while let Some(front) = self.batches.first_entry() {
            if is_needed(front.get()) {
                break;
            }
            front.remove();
        }
        if self.batches.len() > self.sweep_at {
            self.batches.retain(|_, batch| is_needed(batch));
            self.sweep_at = BATCHES_SWEPT.max(2 * self.batches.len());
        }
    }
}

/// See [`Cursor::take_in`].
#[derive(Debug, Default)]
pub(super) struct TakenIn {
    /// Ranges that are new in the window.
    pub(super) fresh: Vec<(u64, u64)>,
    /// Listed records of the batch.
    pub(super) listed: Vec<u64>,
    /// Ranges that do not pass the filter, not settled yet.
    pub(super) filtered: Vec<(u64, u64)>,
}

pub(super) fn ranges_of(set: &RangeSet) -> Vec<(Offset, u64)> {
    set.iter()
        .map(|(from, to)| (Offset(from), to - from))
        .collect()
}

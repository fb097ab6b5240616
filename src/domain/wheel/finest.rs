//! The finest level: slots of a millisecond, and for each owner what has been said due to it.
//!
//! In: what owners arm, what falls from above, what owners return. Out: what is due, in due order, at most
//! [`DUE_WINDOW`] per owner at a time; what overflows. A turn says a bounded number due, so that a
//! backlog does not starve what else is in the mailbox.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::chunk::RowId;
use super::homes::{Changes, Homes, Read};
use super::slots::{Held, Slots};
use super::{Effect, Moment, home_shift, span_ms};
use crate::domain::alarm::Alarm;
use crate::domain::id::OwnerId;

/// Alarms that may be said due to one owner and not be returned.
pub const DUE_WINDOW: usize = 16_384;
/// Alarms said due in one batch at most.
pub const DUE_BATCH_MAX: usize = 1_024;
/// Alarms taken from the ring in one turn.
pub const TURN_MAX: usize = 4_096;
/// With more alarms said due or waiting to be than this, no further slot is asked for.
const BACKLOG_MAX: usize = 262_144;

/// What is due at one owner.
#[derive(Debug, Default)]
struct Outbox {
    /// Due, and not said yet.
    queue: VecDeque<Held>,
    /// Said, and not returned.
    said: BTreeMap<u64, Vec<Held>>,
    saying: usize,
    /// Refused by the log: to be said again then.
    later: BTreeMap<(u64, u64), Vec<Held>>,
    running: bool,
    asked: bool,
}

impl Outbox {
    fn first_due(&self) -> Option<i64> {
        let said = self.said.values().chain(self.later.values()).flatten();
        self.queue
            .iter()
            .chain(said)
            .map(|held| held.alarm.due_ms)
            .min()
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.said.is_empty() && self.later.is_empty()
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Held> {
        let said = self.said.values_mut().chain(self.later.values_mut());
        self.queue.iter_mut().chain(said.flatten())
    }

    /// Everything is to be said once more, in due order.
    fn begin_again(&mut self) {
        let said = std::mem::take(&mut self.said);
        let later = std::mem::take(&mut self.later);
        let mut all: Vec<Held> = said
            .into_values()
            .chain(later.into_values())
            .flatten()
            .chain(self.queue.drain(..))
            .collect();
        all.sort_unstable();
        self.queue = all.into();
        self.saying = 0;
    }
}

/// See the module.
#[derive(Debug)]
pub struct Finest {
    levels: u8,
    ring: Slots,
    outboxes: BTreeMap<OwnerId, Outbox>,
    /// Owners that run; their outboxes come and go.
    running: BTreeSet<OwnerId>,
    next_batch: u64,
    /// Alarms due at owners that run.
    backlog: usize,
    owed: Option<i64>,
    homes: Homes,
    reading: bool,
    /// Taken, but not said to be, for want of memory.
    withheld: BTreeMap<OwnerId, usize>,
}

impl Finest {
    /// The finest of so many levels; `homes` are those it has on the disk.
    #[must_use]
    pub fn new(levels: u8, homes: impl IntoIterator<Item = RowId>) -> Self {
        Self {
            levels,
            ring: Slots::new(0),
            outboxes: BTreeMap::new(),
            running: BTreeSet::new(),
            next_batch: 0,
            backlog: 0,
            owed: None,
            homes: Homes::new(home_shift(0), homes),
            reading: false,
            withheld: BTreeMap::new(),
        }
    }

    /// Alarms in memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ring.len() + self.due()
    }

    /// Whether it has neither alarms in memory nor homes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.homes.rows() == 0
    }

    fn due(&self) -> usize {
        let boxes = self.outboxes.values();
        boxes
            .map(|outbox| {
                let later: usize = outbox.later.values().map(Vec::len).sum();
                outbox.queue.len() + outbox.saying + later
            })
            .sum()
    }

    /// Alarms in memory without a home, near enough.
    #[must_use]
    pub fn unhomed(&self) -> usize {
        self.ring.unhomed()
    }

    /// Homes on the disk.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.homes.rows()
    }

    /// An owner arms alarms. `full`: the wheel has more in memory than it should, so that the owner is
    /// not told yet that they are taken.
    pub fn arm(
        &mut self,
        now: Moment,
        owner: OwnerId,
        mut alarms: Vec<Alarm>,
        full: bool,
        out: &mut Vec<Effect>,
    ) {
        *self.withheld.entry(owner).or_default() += alarms.len();
        let end = now.clock_ms.saturating_add(span_ms(0, self.levels));
        let kept = alarms.iter().filter(|alarm| alarm.due_ms < end);
        self.ring.insert(kept.map(|alarm| Held {
            alarm: *alarm,
            homed: false,
        }));
        alarms.retain(|alarm| alarm.due_ms >= end);
        if !alarms.is_empty() {
            out.push(Effect::Over(alarms));
        }
        self.room(full, out);
        self.advance(now, out);
    }

    /// Tells owners that what they armed is taken, unless memory is `full`.
    pub fn room(&mut self, full: bool, out: &mut Vec<Effect>) {
        if !full {
            let told = std::mem::take(&mut self.withheld);
            out.extend(
                told.into_iter()
                    .map(|(owner, count)| Effect::Armed { owner, count }),
            );
        }
    }

    /// Part of a slot of the level above, or with `last` the rest of it.
    pub fn fell(
        &mut self,
        now: Moment,
        alarms: Vec<Held>,
        last: Option<i64>,
        out: &mut Vec<Effect>,
    ) {
        self.ring.insert(alarms);
        self.owed = last.or(self.owed);
        self.advance(now, out);
    }

    /// Homes were read.
    pub fn loaded(&mut self, now: Moment, read: Vec<Read>, out: &mut Vec<Effect>) {
        self.reading = false;
        for home in read {
            match self.homes.read(home) {
                Ok(alarms) => self.ring.insert(alarms.into_iter().map(|alarm| Held {
                    alarm,
                    homed: false,
                })),
                Err(id) => out.push(Effect::Unreadable(id)),
            }
        }
        self.advance(now, out);
    }

    /// An owner begins a life: what was said to the one before is said again.
    pub fn entered(&mut self, now: Moment, owner: OwnerId, out: &mut Vec<Effect>) {
        self.running.insert(owner);
        self.withheld.remove(&owner);
        if let Some(outbox) = self.outboxes.get_mut(&owner) {
            if !outbox.running {
                outbox.running = true;
                self.backlog += outbox.queue.len();
            }
            let before = outbox.queue.len() + outbox.saying;
            outbox.begin_again();
            self.backlog = (self.backlog + outbox.queue.len()).saturating_sub(before);
            self.say(now, owner, out);
        }
        self.advance(now, out);
    }

    /// An owner's actor failed and is not started again before a restart of the broker. What is due to it
    /// is kept, and holds nobody up.
    pub fn stopped(&mut self, now: Moment, owner: OwnerId, out: &mut Vec<Effect>) {
        self.running.remove(&owner);
        self.withheld.remove(&owner);
        if let Some(outbox) = self.outboxes.get_mut(&owner)
            && outbox.running
        {
            let held = outbox.queue.len() + outbox.saying;
            self.backlog = self.backlog.saturating_sub(held);
            outbox.begin_again();
            outbox.running = false;
        }
        self.advance(now, out);
    }

    /// An owner is gone for good.
    pub fn left(&mut self, now: Moment, owner: OwnerId, out: &mut Vec<Effect>) {
        self.running.remove(&owner);
        self.withheld.remove(&owner);
        if let Some(outbox) = self.outboxes.remove(&owner)
            && outbox.running
        {
            let held = outbox.queue.len() + outbox.saying;
            self.backlog = self.backlog.saturating_sub(held);
        }
        self.advance(now, out);
    }

    /// A batch comes back; see [`Effect::Due`].
    pub fn returned(
        &mut self,
        now: Moment,
        owner: OwnerId,
        batch: u64,
        again_ms: Option<u64>,
        out: &mut Vec<Effect>,
    ) {
        if let Some(outbox) = self.outboxes.get_mut(&owner)
            && let Some(alarms) = outbox.said.remove(&batch)
        {
            outbox.saying -= alarms.len();
            self.backlog = self.backlog.saturating_sub(alarms.len());
            if let Some(after) = again_ms {
                let at = now.monotonic_ms.saturating_add(after);
                outbox.later.insert((at, batch), alarms);
            }
            self.say(now, owner, out);
            if self.outboxes.get(&owner).is_some_and(Outbox::is_empty) {
                self.outboxes.remove(&owner);
            }
        }
        self.advance(now, out);
    }

    /// Says due what is, as far as a turn goes; whether another turn is wanted.
    pub fn advance(&mut self, now: Moment, out: &mut Vec<Effect>) -> bool {
        self.read_homes(out);
        self.retry(now, out);
        let (mut taken, mut touched) = (0, BTreeSet::new());
        while taken < TURN_MAX
            && let Some(slot) = self.ring.first()
            && slot <= now.clock_ms
        {
            for held in self.ring.take(slot) {
                taken += 1;
                let owner = held.alarm.owner;
                let running = self.running.contains(&owner);
                let outbox = self.outboxes.entry(owner).or_default();
                outbox.running = running;
                outbox.queue.push_back(held);
                self.backlog += usize::from(running);
                touched.insert(owner);
            }
        }
        for owner in touched {
            self.say(now, owner, out);
        }
        if let Some(slot) = self.owed
            && self.backlog + self.ring.before(now.clock_ms.saturating_add(1)) <= BACKLOG_MAX
        {
            self.owed = None;
            out.push(Effect::Landed(slot));
        }
        self.ring.first().is_some_and(|slot| slot <= now.clock_ms)
    }

    fn read_homes(&mut self, out: &mut Vec<Effect>) {
        if !self.reading {
            let ids = self.homes.to_read(None);
            if !ids.is_empty() {
                self.reading = true;
                out.push(Effect::Load(ids));
            }
        }
    }

    fn retry(&mut self, now: Moment, out: &mut Vec<Effect>) {
        let mut ready = Vec::new();
        for (owner, outbox) in &mut self.outboxes {
            while let Some(entry) = outbox.later.first_entry()
                && entry.key().0 <= now.monotonic_ms
            {
                let alarms = entry.remove();
                self.backlog += alarms.len();
                for held in alarms.into_iter().rev() {
                    outbox.queue.push_front(held);
                }
                ready.push(*owner);
            }
        }
        for owner in ready {
            self.say(now, owner, out);
        }
    }

    /// Fills an owner's window.
    fn say(&mut self, now: Moment, owner: OwnerId, out: &mut Vec<Effect>) {
        let Some(outbox) = self.outboxes.get_mut(&owner) else {
            return;
        };
        if !outbox.running {
            if !outbox.asked && !outbox.is_empty() {
                outbox.asked = true;
                out.push(Effect::Start(owner));
            }
            return;
        }
        while outbox.saying < DUE_WINDOW && !outbox.queue.is_empty() {
            let room = (DUE_WINDOW - outbox.saying).min(DUE_BATCH_MAX);
            let count = room.min(outbox.queue.len());
            let mut held: Vec<Held> = outbox.queue.drain(..count).collect();
            // The clock may have stepped back while these waited.
            let ahead = held.extract_if(.., |held| held.alarm.due_ms > now.clock_ms);
            let ahead: Vec<Held> = ahead.collect();
            self.backlog = self.backlog.saturating_sub(ahead.len());
            self.ring.insert(ahead);
            if held.is_empty() {
                continue;
            }
            self.next_batch += 1;
            out.push(Effect::Due {
                owner,
                batch: self.next_batch,
                alarms: held.iter().map(|held| held.alarm).collect(),
            });
            outbox.saying += held.len();
            outbox.said.insert(self.next_batch, held);
        }
    }

    /// When something is due; when something is to be said again, by the monotonic clock.
    #[must_use]
    pub fn next_wake(&self) -> (Option<i64>, Option<u64>) {
        let later = self.outboxes.values().filter_map(|outbox| {
            let ((at, _), _) = outbox.later.first_key_value()?;
            Some(*at)
        });
        (self.ring.first(), later.min())
    }

    /// A lap on its way up: everything due before this, as far as this level knows, is settled.
    #[must_use]
    pub fn settled(&mut self, round: u64, now_ms: i64) -> i64 {
        self.homes.asked(round);
        let due = self.outboxes.values().filter_map(Outbox::first_due);
        due.chain(self.ring.first())
            .chain(self.homes.first_waiting().map(|slot| slot << home_shift(0)))
            .fold(now_ms, i64::min)
    }

    /// A lap on its way down: the homes to write and to remove.
    pub fn lap(&mut self, round: u64, marked: u64, settled_ms: i64) -> Changes {
        let mut changes = Changes::default();
        self.homes.lap(round, marked, settled_ms, &mut changes);
        if self.homes.has_failed() {
            return changes;
        }
        let mut slots: BTreeMap<i64, Vec<Alarm>> = BTreeMap::new();
        let ring = self
            .ring
            .home(false)
            .into_iter()
            .flat_map(|(_, alarms)| alarms);
        let due = self.outboxes.values_mut().flat_map(Outbox::all);
        let due = due.filter(|held| !held.homed).map(|held| {
            held.homed = true;
            held.alarm
        });
        for alarm in ring.chain(due) {
            let slot = alarm.due_ms.max(0) >> home_shift(0);
            slots.entry(slot).or_default().push(alarm);
        }
        for (slot, mut alarms) in slots {
            self.homes.write(slot, &mut alarms, None, &mut changes);
        }
        self.homes.handed_over();
        changes
    }

    /// The store has written what a lap gave it, or failed to.
    pub fn homed(&mut self, ok: bool) {
        self.homes.confirmed(ok, true);
    }
}

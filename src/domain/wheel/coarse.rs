//! A level above the finest: keeps what is too far ahead for the next finer one.
//!
//! In: alarms that overflowed from below or fell from above, homes that were read, the clock. Out: what
//! overflows further up, what falls, which homes to read. One slot falls at a time: the next waits until
//! the finer level says that it has landed, which it does not while it has more than enough that is
//! overdue. So after a step of the clock or a long stop, what is due comes down in order, and what is not
//! needed yet stays on the disk.
//!
//! A full slot falls part by part, a millisecond between them: tens of thousands of alarms that are seconds
//! ahead must not hold up what is due now.

use std::collections::VecDeque;

use super::chunk::RowId;
use super::homes::{Changes, Homes, Read};
use super::slots::{Held, Slots, in_due_order};
use super::{Effect, home_shift, span_ms, tick_shift};
use crate::domain::alarm::Alarm;

/// With more alarms that should have fallen than this, no further slot is asked for.
const OVERDUE_MAX: usize = 131_072;
/// Alarms in a fall at most: the finer level does something else in between.
const FALL_MAX: usize = 8_192;
/// Alarms in a part of a slot, if they are spread over it evenly.
const PART: usize = 512;
/// Parts of a slot at most, a power of two.
const PARTS_MAX: usize = 256;
/// A slot that begins so soon falls at once, in milliseconds.
const HASTE_MS: i64 = 1_000;
/// Alarms of a slot from which on its home is closed, and they are forgotten. With fewer the home is
/// written again with whatever comes later, so that a slot filled slowly is not thousands of rows.
const CLOSED_AT: usize = 1_024;

/// See the module.
#[derive(Debug)]
pub struct Coarse {
    level: u8,
    levels: u8,
    slots: Slots,
    homes: Homes,
    /// The slot that is being read in order to fall.
    falling: Option<i64>,
    /// Homes are being read.
    reading: bool,
    /// The slot that fell, or is falling part by part, and has not landed.
    fallen: Option<i64>,
    /// What of it has not fallen yet, in due order.
    parts: VecDeque<Vec<Held>>,
    /// How many of those have no home.
    parts_unhomed: usize,
    /// When the next part falls.
    part_at: i64,
    /// Alarms in a part.
    part: usize,
    /// The slot from above that has not been said to have landed.
    owed: Option<i64>,
}

impl Coarse {
    /// A level of a wheel with so many levels; `homes` are those it has on the disk.
    #[must_use]
    pub fn new(level: u8, levels: u8, homes: impl IntoIterator<Item = RowId>) -> Self {
        Self {
            level,
            levels,
            slots: Slots::new(tick_shift(level)),
            homes: Homes::new(home_shift(level), homes),
            falling: None,
            reading: false,
            fallen: None,
            parts: VecDeque::new(),
            parts_unhomed: 0,
            part_at: 0,
            part: PART,
            owed: None,
        }
    }

    /// The same with slots that fall in parts of so many alarms, instead of 512.
    #[must_use]
    pub fn in_parts_of(mut self, alarms: usize) -> Self {
        self.part = alarms.max(1);
        self
    }

    /// Alarms in memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() + self.parts.iter().map(Vec::len).sum::<usize>()
    }

    /// Whether it has neither alarms in memory nor homes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.homes.rows() == 0
    }

    /// Alarms in memory without a home.
    #[must_use]
    pub fn unhomed(&self) -> usize {
        self.slots.unhomed() + self.parts_unhomed
    }

    /// Homes on the disk.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.homes.rows()
    }

    /// Keeps the homes of what it has in memory until that is settled.
    fn is_near(&self) -> bool {
        home_shift(self.level) != tick_shift(self.level)
    }

    /// Alarms too far ahead for the level below.
    pub fn overflowed(&mut self, now_ms: i64, mut alarms: Vec<Alarm>, out: &mut Vec<Effect>) {
        let span = span_ms(self.level, self.levels);
        let end = now_ms.saturating_add(span);
        let kept = alarms
            .iter()
            .filter(|alarm| alarm.due_ms < end || span == i64::MAX);
        self.slots.insert(kept.map(|alarm| Held {
            alarm: *alarm,
            homed: false,
        }));
        alarms.retain(|alarm| alarm.due_ms >= end && span != i64::MAX);
        if !alarms.is_empty() {
            out.push(Effect::Over(alarms));
        }
        self.advance(now_ms, out);
    }

    /// Part of a slot of the level above, or with `last` the rest of it.
    pub fn fell(
        &mut self,
        now_ms: i64,
        alarms: Vec<Held>,
        last: Option<i64>,
        out: &mut Vec<Effect>,
    ) {
        self.slots.insert(alarms);
        self.owed = last.or(self.owed);
        self.advance(now_ms, out);
    }

    /// A slot has landed on the level below.
    pub fn landed(&mut self, now_ms: i64, slot: i64, out: &mut Vec<Effect>) {
        if self.fallen == Some(slot) {
            self.fallen = None;
        }
        self.advance(now_ms, out);
    }

    /// Homes were read.
    pub fn loaded(&mut self, now_ms: i64, read: Vec<Read>, out: &mut Vec<Effect>) {
        self.reading = false;
        for home in read {
            match self.homes.read(home) {
                Ok(alarms) => self.arrived(&alarms, out),
                Err(id) => out.push(Effect::Unreadable(id)),
            }
        }
        if let Some(slot) = self.falling.take() {
            self.fall(now_ms, slot, out);
        }
        self.advance(now_ms, out);
    }

    fn arrived(&mut self, alarms: &[Alarm], out: &mut Vec<Effect>) {
        let held = alarms.iter().map(|alarm| Held {
            alarm: *alarm,
            homed: false,
        });
        if self.is_near() {
            self.slots.insert(held);
        } else {
            out.push(Effect::Fall {
                alarms: held.collect(),
                last: None,
            });
        }
    }

    /// Does what the clock asks for.
    pub fn advance(&mut self, now_ms: i64, out: &mut Vec<Effect>) {
        if self.is_near() && !self.reading {
            let ids = self.homes.to_read(None);
            if !ids.is_empty() {
                self.reading = true;
                out.push(Effect::Load(ids));
            }
        }
        self.fall_on(now_ms, out);
        while self.fallen.is_none()
            && self.falling.is_none()
            && !(self.is_near() && self.reading)
            && let Some(slot) = self.next_slot()
            && self.falls_at(slot) <= now_ms
        {
            self.fall(now_ms, slot, out);
        }
        if let Some(slot) = self.owed
            && self.overdue(now_ms) <= OVERDUE_MAX
        {
            self.owed = None;
            out.push(Effect::Landed(slot));
        }
    }

    fn fall(&mut self, now_ms: i64, slot: i64, out: &mut Vec<Effect>) {
        if !self.is_near() {
            let ids = self.homes.to_read(Some(slot));
            if !ids.is_empty() {
                self.falling = Some(slot);
                self.reading = true;
                out.push(Effect::Load(ids));
                return;
            }
            self.homes.fell(slot);
        }
        // Above the near levels the home is left behind: the alarms get another where they come to.
        let near = self.is_near();
        let parts = (self.slots.held(slot) / self.part).clamp(1, PARTS_MAX);
        self.parts = self
            .slots
            .take_parts(slot, parts.next_power_of_two())
            .into();
        for held in self.parts.iter_mut().flatten() {
            held.homed &= near;
        }
        self.parts_unhomed = self.parts.iter().map(|part| unhomed(part)).sum();
        self.fallen = Some(slot);
        self.part_at = now_ms;
        self.fall_on(now_ms, out);
    }

    /// Lets fall what it is time for, of the slot that falls part by part.
    fn fall_on(&mut self, now_ms: i64, out: &mut Vec<Effect>) {
        // A part is never further away than a millisecond, but for a clock that stepped back: what was falling
        // falls then, because the slots before it must be free to.
        let stepped_back = self.part_at.saturating_sub(now_ms) > 1;
        if self.parts.is_empty() || (now_ms < self.part_at && !stepped_back) {
            return;
        }
        let begins = |slot: i64| slot << tick_shift(self.level);
        let is_far = |slot| begins(slot).saturating_sub(now_ms) > HASTE_MS;
        let many = match self.fallen.is_some_and(is_far) && !stepped_back {
            true => 1,
            false => self.parts.len(),
        };
        self.let_fall(many, out);
        self.part_at = now_ms.saturating_add(1);
    }

    fn let_fall(&mut self, many: usize, out: &mut Vec<Effect>) {
        for _ in 0..many {
            let Some(mut alarms) = self.parts.pop_front() else {
                return;
            };
            self.parts_unhomed = self.parts_unhomed.saturating_sub(unhomed(&alarms));
            in_due_order(&mut alarms);
            while alarms.len() > FALL_MAX {
                let rest = alarms.split_off(FALL_MAX);
                out.push(Effect::Fall { alarms, last: None });
                alarms = rest;
            }
            let last = self.fallen.filter(|_| self.parts.is_empty());
            out.push(Effect::Fall { alarms, last });
        }
    }

    fn next_slot(&self) -> Option<i64> {
        let waiting = if self.is_near() {
            None
        } else {
            self.homes.first_waiting()
        };
        match (self.slots.first(), waiting) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// A slot falls as soon as the level below spans it whole.
    fn falls_at(&self, slot: i64) -> i64 {
        let end = (slot + 1) << tick_shift(self.level);
        end - span_ms(self.level.saturating_sub(1), self.levels)
    }

    fn overdue(&self, now_ms: i64) -> usize {
        let below = span_ms(self.level.saturating_sub(1), self.levels);
        self.slots
            .before(now_ms.saturating_add(below) >> tick_shift(self.level))
    }

    /// When the clock asks for something again; none while it waits for a message, or has nothing.
    #[must_use]
    pub fn next_wake(&self) -> Option<i64> {
        if !self.parts.is_empty() {
            return Some(self.part_at);
        }
        if self.fallen.is_some() || self.falling.is_some() {
            return None;
        }
        self.next_slot().map(|slot| self.falls_at(slot))
    }

    /// A lap on its way up: everything due before the answer is settled, as far as this level and those
    /// below know. Only the near levels have a say.
    #[must_use]
    pub fn settled(&mut self, round: u64, below_ms: i64) -> i64 {
        self.homes.asked(round);
        if !self.is_near() {
            return below_ms;
        }
        let tick = tick_shift(self.level);
        [
            self.slots.first().map(|slot| slot << tick),
            self.fallen.map(|slot| slot << tick),
            self.homes
                .first_waiting()
                .map(|slot| slot << home_shift(self.level)),
        ]
        .into_iter()
        .flatten()
        .fold(below_ms, i64::min)
    }

    /// A lap on its way down: the homes to write and to remove. What the level above let fall before
    /// is here by now, and what of this level is falling falls before the lap goes on.
    pub fn lap(
        &mut self,
        round: u64,
        marked: u64,
        settled_ms: i64,
        out: &mut Vec<Effect>,
    ) -> Changes {
        self.let_fall(self.parts.len(), out);
        let mut changes = Changes::default();
        self.homes.lap(round, marked, settled_ms, &mut changes);
        if self.homes.has_failed() {
            return changes;
        }
        let (near, by) = (
            self.is_near(),
            home_shift(self.level) - tick_shift(self.level),
        );
        let closed_at = (!near).then_some(CLOSED_AT);
        let homes = self.slots.home(!near);
        for group in homes.chunk_by(|(a, _), (b, _)| a >> by == b >> by) {
            let slot = group.first().map_or(0, |(slot, _)| slot >> by);
            let mut alarms: Vec<Alarm> = group
                .iter()
                .flat_map(|(_, alarms)| alarms)
                .copied()
                .collect();
            self.homes.write(slot, &mut alarms, closed_at, &mut changes);
        }
        self.homes.handed_over();
        changes
    }

    /// The store has written what a lap gave it, or failed to.
    pub fn homed(&mut self, ok: bool) {
        for slot in self.homes.confirmed(ok, self.is_near()) {
            self.slots.forget_homed(slot);
        }
    }

    /// The level below, or one further down, has lost its memory: what fell and has no home there is
    /// read and falls again.
    pub fn again(&mut self, now_ms: i64, out: &mut Vec<Effect>) {
        self.homes.again(self.is_near());
        self.slots.insert(self.parts.drain(..).flatten());
        self.parts_unhomed = 0;
        self.fallen = None;
        self.advance(now_ms, out);
    }
}

fn unhomed(alarms: &[Held]) -> usize {
    alarms.iter().filter(|held| !held.homed).count()
}

//! Looking places up, and setting where a live subscription goes on.

use std::collections::{BTreeMap, BTreeSet};

use super::command::{Answer, CursorNumber, Effect, PlaceReset, ResetTo};
use super::cursor::Cursor;
use super::delta::{Delta, Why};
use super::settle::Asked;
use super::subscription::{Mode, Start, SubscriptionSpec};
use super::{Decided, Group, Timer};
use crate::domain::id::{Offset, PartitionId, PartitionIndex, Token, TopicId};
use crate::domain::partition::Bounds;
use crate::domain::rejection::Rejection;
use crate::domain::time::Now;

/// What follows once the places are known.
#[derive(Debug, Clone)]
pub(super) enum Then {
    /// A subscription begins.
    Make(SubscriptionSpec),
    /// A broadcast member's cursors begin.
    Cursors(TopicId, String),
    /// A reset is told, or done.
    Reset {
        token: Token,
        to: ResetTo,
        dry_run: bool,
    },
}

/// Places being looked up.
#[derive(Debug, Clone)]
pub(super) struct Job {
    left: BTreeSet<PartitionId>,
    places: Vec<PartitionId>,
    found: BTreeMap<PartitionId, Bounds>,
    then: Then,
}

impl Group {
    pub(super) fn look_up(
        &mut self,
        places: Vec<PartitionId>,
        start: Start,
        then: Then,
        effects: &mut Vec<Effect>,
    ) {
        self.next_job += 1;
        let job = self.next_job;
        effects.extend(places.iter().map(|place| Effect::Lookup {
            job,
            place: *place,
            start,
        }));
        let looking = Job {
            left: places.iter().copied().collect(),
            places,
            found: BTreeMap::new(),
            then,
        };
        self.jobs.insert(job, looking);
    }

    /// A place was found, or cannot be.
    pub fn looked_up(
        &mut self,
        now: Now,
        job: u64,
        place: PartitionId,
        found: Result<Bounds, Rejection>,
        effects: &mut Vec<Effect>,
    ) {
        self.now = now;
        let Some(looking) = self.jobs.get_mut(&job) else {
            return;
        };
        match found {
            Ok(bounds) => {
                looking.left.remove(&place);
                looking.found.insert(place, bounds);
                if looking.left.is_empty()
                    && let Some(job) = self.jobs.remove(&job)
                {
                    self.all_found(job, effects);
                }
            }
            Err(rejection) => {
                if let Some(job) = self.jobs.remove(&job) {
                    self.not_all_found(job, &rejection, effects);
                }
            }
        }
        self.finish(effects);
    }

    fn all_found(&mut self, job: Job, effects: &mut Vec<Effect>) {
        match job.then {
            Then::Make(spec) => self.made(&spec, &job.places, &job.found, effects),
            Then::Cursors(topic, name) => {
                self.cursors_found(topic, &name, &job.places, &job.found, effects);
            }
            Then::Reset { token, to, dry_run } => {
                self.reset_found(token, to, dry_run, &job.found, effects);
            }
        }
    }

    fn not_all_found(&mut self, job: Job, rejection: &Rejection, effects: &mut Vec<Effect>) {
        match job.then {
            Then::Make(spec) => self.not_made(spec.topic, rejection, effects),
            Then::Cursors(topic, name) => {
                self.cursors_under_way.remove(&(topic, name));
                self.not_made(topic, rejection, effects);
            }
            Then::Reset { token, .. } => effects.push(Effect::Reply(token, Err(rejection.clone()))),
        }
    }

    pub(super) fn reset(
        &mut self,
        token: Token,
        topic: TopicId,
        partition: Option<PartitionIndex>,
        to: ResetTo,
        dry_run: bool,
        effects: &mut Vec<Effect>,
    ) -> Decided {
        let subscription = self.subscription(topic)?;
        let places: BTreeSet<PartitionId> = subscription
            .cursors
            .iter()
            .filter_map(|number| self.cursors.get(number))
            .map(|cursor| cursor.place)
            .filter(|place| partition.is_none_or(|partition| place.partition == partition))
            .collect();
        if places.is_empty() {
            let partitions = self.shapes.get(&topic).map_or(0, |shape| shape.partitions);
            return match partition {
                Some(_) => Err(Rejection::PartitionOutOfRange { partitions }),
                None => Ok(Some(Answer::Reset(Vec::new()))),
            };
        }
        let start = match to {
            ResetTo::Start(start) => start,
            ResetTo::Shift(_) => Start::Earliest,
        };
        let then = Then::Reset { token, to, dry_run };
        self.look_up(places.into_iter().collect(), start, then, effects);
        Ok(None)
    }

    fn reset_found(
        &mut self,
        token: Token,
        to: ResetTo,
        dry_run: bool,
        found: &BTreeMap<PartitionId, Bounds>,
        effects: &mut Vec<Effect>,
    ) {
        let mut resets = Vec::new();
        let mut floors = Vec::new();
        for cursor in self.cursors.values().filter(|cursor| cursor.durable) {
            let Some(bounds) = found.get(&cursor.place) else {
                continue;
            };
            let reset = place_reset(cursor, to, bounds);
            floors.push((cursor.number, reset.to));
            resets.push(reset);
        }
        if dry_run {
            return effects.push(Effect::Reply(token, Ok(Answer::Reset(resets))));
        }
        if floors.iter().any(|(number, _)| {
            self.cursors
                .get(number)
                .is_some_and(|cursor| cursor.resetting)
        }) {
            // One after the other.
            let busy = Rejection::Throttled { after_ms: 5 };
            return effects.push(Effect::Reply(token, Err(busy)));
        }
        // What was settled before the reset stays before it.
        self.flush_now(effects);
        for (number, _) in &floors {
            self.close(*number, effects);
        }
        let asked = Asked::answering(Some(token), Answer::Reset(resets));
        self.persist(Vec::new(), &Delta::Reset(floors), asked, effects);
    }

    pub(super) fn apply_reset(
        &mut self,
        floors: &[(CursorNumber, Offset)],
        effects: &mut Vec<Effect>,
    ) {
        for (number, floor) in floors {
            self.give_back_all(*number, false, effects);
            self.pending.drop_cursor(*number);
            let Some(cursor) = self.cursors.get_mut(number) else {
                continue;
            };
            let before = std::mem::take(&mut cursor.listed);
            cursor.listed.clone_from(&before);
            cursor.apply_reset(floor.0);
            cursor.resetting = false;
            let after = cursor.listed.clone();
            self.forget_listed(&before);
            self.note_listed(&after);
            self.rows.reset(*number, before.keys().copied());
            self.restart_cursor(*number);
        }
    }

    /// A cursor stands still until what is asked for now is applied: nothing of it is leased, found, listed or
    /// settled meanwhile, for that would be written behind, and told of what is in hand anew then.
    pub(super) fn close(&mut self, number: CursorNumber, effects: &mut Vec<Effect>) {
        self.give_back_all(number, false, effects);
        self.touched.insert(number);
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return;
        };
        cursor.resetting = true;
        cursor.round += 1;
        cursor.forget_fetches();
        if std::mem::take(&mut cursor.feeding) {
            effects.push(Effect::StopFeed(number));
        }
    }

    /// Whatever a cursor has in hand is dropped, and it looks again from its floor.
    pub(super) fn restart_cursor(&mut self, number: CursorNumber) {
        self.leave_pool(number);
        let keyed = self.mode_of(number) == Some(Mode::KeyOrdered);
        self.forget_burials(number);
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return;
        };
        cursor.empty_hand(keyed);
        if !cursor.listed.is_empty() {
            let is_its = |timer: &Timer| matches!(timer, Timer::Retry(of, _) if *of == number);
            self.timers.retain(|(_, timer)| !is_its(timer));
        }
        let below: Vec<u64> = cursor
            .listed
            .range(..cursor.next)
            .map(|(offset, _)| *offset)
            .collect();
        for offset in below {
            self.activate(number, offset);
        }
        self.touched.insert(number);
    }
}

/// What a reset would do to one cursor.
fn place_reset(cursor: &Cursor, to: ResetTo, bounds: &Bounds) -> PlaceReset {
    let from = cursor.floor_or_zero().max(bounds.start.0);
    let target = match to {
        ResetTo::Start(_) => bounds.offset.0,
        ResetTo::Shift(by) => from.saturating_add_signed(by),
    };
    let end = bounds.high_watermark.0.max(bounds.start.0);
    let target = target.clamp(bounds.start.0, end);
    let attached = |listed: &super::delta::Listed| matches!(listed.why, Why::Attached(_));
    let unsettled: u64 = cursor
        .settled
        .gaps(from, target)
        .into_iter()
        .map(|(a, b)| b - a)
        .sum();
    let listed_between = cursor.listed.range(from..target.max(from)).count() as u64;
    let listed_below = cursor
        .listed
        .range(..target)
        .filter(|(_, listed)| !attached(listed))
        .count() as u64;
    let held = cursor
        .listed
        .range(target..)
        .filter(|(_, l)| attached(l))
        .count() as u64;
    PlaceReset {
        place: cursor.place,
        from: Offset(from),
        to: Offset(target),
        high_watermark: Offset(end),
        comes: (end - target).saturating_sub(held),
        skipped: unsettled.saturating_sub(listed_between) + listed_below,
    }
}

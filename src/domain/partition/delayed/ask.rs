//! Questions about delayed records: cancel, move, look, list, and where one that fired went (D1).

use super::{Busy, LISTED_MAX, ListTimers, TimerAnswer, TimerCommand, Waits, within_delay};
use crate::domain::alarm::DUE_MS_MAX;
use crate::domain::batch::Delivery;
use crate::domain::id::{Offset, RecordNumber, Token};
use crate::domain::partition::index::{BatchPlace, Found};
use crate::domain::partition::stored::{Lookup, Pending, State};
use crate::domain::partition::{Delta, Effect, Partition, TimerLimits, Waiting, state};
use crate::domain::time::WallMs;

/// Runs of bodies one answer looks through at most; then it names the place to go on from.
const LISTED_RUNS_MAX: usize = 64;

impl Partition {
    /// Decides about one delayed record; what needs the log is answered when it is applied.
    pub fn timer(
        &mut self,
        token: Token,
        number: RecordNumber,
        command: TimerCommand,
        now: WallMs,
        limits: TimerLimits,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(busy) = self.timers.busy.get_mut(&number) {
            return busy.behind.push((token, command, now, limits));
        }
        match self.stored.state(number) {
            None => effects.push(Effect::Timer(token, TimerAnswer::NotFound)),
            Some(State::Dropped) => effects.push(Effect::Timer(token, TimerAnswer::Cancelled)),
            Some(State::Published) => self.seek_due(token, number, effects),
            Some(State::Waiting) if self.stored.is_undecided(number) => {
                effects.push(Effect::Timer(token, TimerAnswer::NotFound));
            }
            Some(State::Waiting) => match command {
                TimerCommand::Look => self.look(token, number, effects),
                TimerCommand::Cancel => {
                    let delta = Delta::Dropped(vec![(number, 1)]);
                    self.ask_about(token, number, &delta, effects);
                }
                TimerCommand::Reschedule(delivery) => {
                    let due = match delivery {
                        Delivery::Now => now,
                        Delivery::After(span) => WallMs(now.0.saturating_add(span)),
                        Delivery::At(at) => at,
                    };
                    let due = WallMs(due.0.min(DUE_MS_MAX));
                    if let Err(rejection) = within_delay(now, due, limits) {
                        return effects.push(Effect::Refuse(token, rejection));
                    }
                    let delta = Delta::Rescheduled {
                        number,
                        version: self.stored.version(number).saturating_add(1),
                        due,
                    };
                    self.ask_about(token, number, &delta, effects);
                }
            },
        }
    }

    pub(super) fn ask_about(
        &mut self,
        token: Token,
        number: RecordNumber,
        delta: &Delta,
        effects: &mut Vec<Effect>,
    ) {
        let busy = Busy {
            asker: Some(token),
            ..Busy::default()
        };
        self.timers.busy.insert(number, busy);
        self.ask(None, vec![state(delta)], effects);
    }

    pub(super) fn look(&mut self, token: Token, number: RecordNumber, effects: &mut Vec<Effect>) {
        let answer = match self.stored.state(number) {
            Some(State::Waiting) => match self.stored.due(number) {
                Lookup::Load(run) => {
                    return self.wait_for_bodies(run, Waits::Look(token, number), effects);
                }
                Lookup::Known(Some(due)) => TimerAnswer::Pending(Pending {
                    number,
                    version: self.stored.version(number),
                    due,
                }),
                Lookup::Known(None) | Lookup::Nothing => TimerAnswer::NotFound,
            },
            Some(State::Dropped) => TimerAnswer::Cancelled,
            Some(State::Published) => return self.seek_due(token, number, effects),
            None => TimerAnswer::NotFound,
        };
        effects.push(Effect::Timer(token, answer));
    }

    /// Looks for the offset of a published record: it was published when it was due, or later.
    pub(super) fn seek_due(
        &mut self,
        token: Token,
        number: RecordNumber,
        effects: &mut Vec<Effect>,
    ) {
        match self.stored.due(number) {
            Lookup::Load(run) => self.wait_for_bodies(run, Waits::Seek(token, number), effects),
            Lookup::Known(Some(due)) => self.seek_time(token, number, due, effects),
            Lookup::Known(None) | Lookup::Nothing => {
                self.seek_all(token, number, effects);
            }
        }
    }

    pub(in crate::domain::partition) fn seek_time(
        &mut self,
        token: Token,
        number: RecordNumber,
        time: WallMs,
        effects: &mut Vec<Effect>,
    ) {
        match self.index.find_time(time) {
            Found::Batches(run, at) => {
                let from = run.get(at).map(|place| place.first_offset);
                let from = from.or_else(|| run.last().map(BatchPlace::end));
                self.seek(token, number, from.unwrap_or_default(), false, effects);
            }
            Found::Load(run) => {
                self.wait_for_run(run, Waiting::SeekTime(token, number, time), effects);
            }
            Found::Nothing => self.seek_all(token, number, effects),
        }
    }

    pub(in crate::domain::partition) fn seek(
        &mut self,
        token: Token,
        number: RecordNumber,
        mut from: Offset,
        whole: bool,
        effects: &mut Vec<Effect>,
    ) {
        loop {
            match self.index.find(from) {
                Found::Batches(run, at) => {
                    let found = run
                        .get(at..)
                        .unwrap_or_default()
                        .iter()
                        .find_map(|place| offset_of(place, number));
                    if let Some(offset) = found {
                        // What lies below the start is not served any more, and not told of.
                        let answer = if offset < self.head.start_offset {
                            TimerAnswer::NotFound
                        } else {
                            TimerAnswer::AlreadyFired(offset)
                        };
                        return effects.push(Effect::Timer(token, answer));
                    }
                    let end = run.last().map_or(from, BatchPlace::end);
                    if end <= from {
                        return self.not_found(token, number, whole, effects);
                    }
                    from = end;
                }
                Found::Load(run) => {
                    let waiting = Waiting::Seek(token, number, from, whole);
                    return self.wait_for_run(run, waiting, effects);
                }
                Found::Nothing => return self.not_found(token, number, whole, effects),
            }
        }
    }

    /// Looks through all there is: where the clock was set back between the moment a record was due and
    /// its publication, the log's times do not tell where that is.
    pub(super) fn seek_all(
        &mut self,
        token: Token,
        number: RecordNumber,
        effects: &mut Vec<Effect>,
    ) {
        self.seek(token, number, self.head.start_offset, true, effects);
    }

    pub(super) fn not_found(
        &mut self,
        token: Token,
        number: RecordNumber,
        whole: bool,
        effects: &mut Vec<Effect>,
    ) {
        if whole {
            effects.push(Effect::Timer(token, TimerAnswer::NotFound));
        } else {
            self.seek_all(token, number, effects);
        }
    }

    /// Lists what waits for its time.
    pub fn list_timers(&mut self, token: Token, list: ListTimers, effects: &mut Vec<Effect>) {
        self.list_on(token, list, Vec::new(), effects);
    }

    pub(super) fn list_on(
        &mut self,
        token: Token,
        mut list: ListTimers,
        mut found: Vec<Pending>,
        effects: &mut Vec<Effect>,
    ) {
        let max = list.max.clamp(1, LISTED_MAX);
        for _ in 0..LISTED_RUNS_MAX {
            let (here, next) = match self.stored.pending_from(list.from, list.due_from) {
                Lookup::Known(known) => known,
                Lookup::Load(run) => {
                    let waits = Waits::List(token, list, found);
                    return self.wait_for_bodies(run, waits, effects);
                }
                Lookup::Nothing => {
                    let answer = self.listed(found, None);
                    return effects.push(Effect::Timer(token, answer));
                }
            };
            let wanted = here
                .into_iter()
                .filter(|pending| pending.due >= list.due_from && pending.due < list.due_before);
            for pending in wanted {
                if found.len() == max {
                    let answer = self.listed(found, Some(pending.number));
                    return effects.push(Effect::Timer(token, answer));
                }
                found.push(pending);
            }
            let Some(next) = next else {
                let answer = self.listed(found, None);
                return effects.push(Effect::Timer(token, answer));
            };
            list.from = next;
        }
        let answer = self.listed(found, Some(list.from));
        effects.push(Effect::Timer(token, answer));
    }
}

impl Partition {
    pub(super) fn listed(&self, found: Vec<Pending>, next: Option<RecordNumber>) -> TimerAnswer {
        TimerAnswer::Listed {
            found,
            next,
            pending: self.stored.pending(),
        }
    }
}

/// The offset of a record, if it is one of a place's.
fn offset_of(place: &BatchPlace, number: RecordNumber) -> Option<Offset> {
    let within = number.0.checked_sub(place.first_number.0)?;
    (within < u64::from(place.count)).then_some(Offset(place.first_offset.0.saturating_add(within)))
}

//! Publishing what is due, and taking in what the log says of it (D2-D4).

use std::collections::BTreeMap;

use super::{AGAIN_MS, Busy, TimerAnswer, Waits, alarm_of};
use crate::domain::alarm::{self, Alarm};
use crate::domain::entry::AppliedEntry;
use crate::domain::id::{LogPosition, Offset, RecordNumber};
use crate::domain::partition::publication::{Publication, PublishRun};
use crate::domain::partition::stored::{Lookup, Override, Pending, State};
use crate::domain::partition::{Effect, Partition};
use crate::domain::rejection::Rejection;
use crate::domain::time::WallMs;
use crate::domain::transaction::TransactionId;

impl Partition {
    /// Brings a row of bodies back, or the reason why it cannot be.
    pub fn bodies_loaded(
        &mut self,
        first: RecordNumber,
        row: Result<&[u8], Rejection>,
        effects: &mut Vec<Effect>,
    ) {
        let waiting = self.timers.loading.remove(&first).unwrap_or_default();
        let failed = match row {
            Ok(row) if self.stored.load(first, row) => None,
            Ok(_) => Some(Rejection::Damaged(format!(
                "the row of stored records from number {first} is missing from the views; restart the broker to rebuild it"
            ))),
            Err(rejection) => Some(rejection),
        };
        let mut due: BTreeMap<u64, Vec<Alarm>> = BTreeMap::new();
        let mut near = Vec::new();
        for waits in waiting {
            match (&failed, waits) {
                (None, Waits::Fire(batch, alarm)) => due.entry(batch).or_default().push(alarm),
                (Some(_), Waits::Fire(batch, _)) => self.repeat(batch, effects),
                (
                    Some(why),
                    Waits::Look(token, _) | Waits::Seek(token, _) | Waits::List(token, ..),
                ) => {
                    effects.push(Effect::Refuse(token, why.clone()));
                }
                (None, Waits::Look(token, number)) => self.look(token, number, effects),
                (None, Waits::Seek(token, number)) => self.seek_due(token, number, effects),
                (None, Waits::List(token, list, found)) => {
                    self.list_on(token, list, found, effects);
                }
                (_, Waits::HandOver) => self.timers.handing_over = false,
                (None, Waits::Near(alarm)) => near.push(alarm),
                (Some(_), Waits::Near(_)) => {}
            }
        }
        self.near(&near, effects);
        for (batch, alarms) in due {
            if self.timers.outstanding.contains_key(&batch) {
                self.fire(batch, &alarms, effects);
                self.settle_batch(batch, alarms.len(), effects);
            }
        }
        if failed.is_none() {
            self.hand_over(effects);
        }
    }

    /// A batch of which something could not be done: the wheel says all of it again.
    pub(super) fn repeat(&mut self, batch: u64, effects: &mut Vec<Effect>) {
        if self.timers.outstanding.remove(&batch).is_some() {
            effects.push(Effect::Returned {
                batch,
                again_ms: Some(AGAIN_MS * 20),
            });
        }
    }

    /// The time of these has come: publishes those that still stand (D2, D3).
    pub fn due(&mut self, batch: u64, alarms: &[Alarm], effects: &mut Vec<Effect>) {
        // One more than the alarms that wait: until all are looked at it is not over.
        self.timers.outstanding.insert(batch, 1);
        self.fire(batch, alarms, effects);
        self.settle_batch(batch, 1, effects);
    }

    pub(super) fn fire(&mut self, batch: u64, alarms: &[Alarm], effects: &mut Vec<Effect>) {
        let mut runs: Vec<PublishRun> = Vec::new();
        let mut waiting = 0;
        for alarm in alarms {
            let number = RecordNumber(alarm.token);
            if let Some(busy) = self.timers.busy.get_mut(&number) {
                busy.batches.push(batch);
                waiting += 1;
                continue;
            }
            let stands = self.stored.state(number) == Some(State::Waiting)
                && !self.stored.is_undecided(number)
                && self.stored.version(number) == alarm.version;
            if !stands {
                continue;
            }
            let place = match self.stored.place(number) {
                Lookup::Known(place) => place.record(number),
                Lookup::Load(run) => {
                    waiting += 1;
                    self.wait_for_bodies(run, Waits::Fire(batch, *alarm), effects);
                    continue;
                }
                Lookup::Nothing => None,
            };
            // Damage took it: nothing is left to publish.
            let Some(place) = place else { continue };
            let run = PublishRun {
                first_number: number,
                count: 1,
                due: Some(WallMs(alarm.due_ms)),
                place: Some(place),
            };
            push_run(&mut runs, run);
            waiting += 1;
            let busy = Busy {
                batches: vec![batch],
                ..Busy::default()
            };
            self.timers.busy.insert(number, busy);
        }
        if let Some(left) = self.timers.outstanding.get_mut(&batch) {
            *left += waiting;
        }
        if !runs.is_empty() {
            let offsets = runs.iter().map(|run| run.count).sum();
            self.accepted = self.accepted.saturating_add(u64::from(offsets));
            let draft = Publication::Records(runs).draft(offsets);
            self.ask(None, vec![draft], effects);
        }
    }

    pub(super) fn settle_batch(&mut self, batch: u64, count: usize, effects: &mut Vec<Effect>) {
        if let Some(left) = self.timers.outstanding.get_mut(&batch) {
            *left = left.saturating_sub(count);
            if *left == 0 {
                self.timers.outstanding.remove(&batch);
                effects.push(Effect::Returned {
                    batch,
                    again_ms: None,
                });
            }
        }
    }

    /// Takes in a publication. Says whether this partition asked for it.
    pub(in crate::domain::partition) fn apply_publication(
        &mut self,
        entry: &AppliedEntry,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let header = &entry.header;
        match Publication::decode(&entry.body) {
            Some(Publication::Records(runs)) => {
                self.accepted = self.accepted.saturating_sub(u64::from(header.offsets));
                let mut offset = header.first_offset;
                for mut run in runs {
                    if run.place.is_none()
                        && let Lookup::Known(place) = self.stored.place(run.first_number)
                    {
                        run.place = place.record(run.first_number);
                    }
                    offset = self.publish(&run, offset, header.appended, effects);
                }
                true
            }
            Some(Publication::Transaction(key)) => {
                self.publish_transaction(key, entry, effects);
                false
            }
            None => false,
        }
    }

    /// Gives the records of a run their offsets; returns the next.
    pub(super) fn publish(
        &mut self,
        run: &PublishRun,
        first: Offset,
        published: WallMs,
        effects: &mut Vec<Effect>,
    ) -> Offset {
        let end = Offset(first.0.saturating_add(u64::from(run.count)));
        self.head.next_offset = self.head.next_offset.max(end);
        if let Some(place) = run.indexed(first, published)
            && place.end() > self.head.start_offset
        {
            self.index.push(place);
        }
        for at in 0..u64::from(run.count) {
            let number = RecordNumber(run.first_number.0.saturating_add(at));
            let offset = Offset(first.0.saturating_add(at));
            self.stored.published(number, offset);
            self.outcome(number, &TimerAnswer::AlreadyFired(offset), effects);
        }
        end
    }

    pub(super) fn publish_transaction(
        &mut self,
        key: TransactionId,
        entry: &AppliedEntry,
        effects: &mut Vec<Effect>,
    ) {
        let header = &entry.header;
        let mut offset = header.first_offset;
        let end = Offset(offset.0.saturating_add(u64::from(header.offsets)));
        for open in self.stored.close(key) {
            let mut delayed = BTreeMap::new();
            for (index, due) in alarm::dues_of(&open.deliveries, header.wall.0) {
                let number = open.place.first_number.0.saturating_add(u64::from(index));
                delayed.insert(RecordNumber(number), WallMs(due));
            }
            let mut runs: Vec<PublishRun> = Vec::new();
            for number in (open.place.first_number.0..open.place.end().0).map(RecordNumber) {
                if let Some(due) = delayed.get(&number) {
                    let change = Override {
                        version: 0,
                        due: *due,
                    };
                    self.stored.reschedule(number, change);
                } else if let Some(place) = open.place.record(number) {
                    let run = PublishRun {
                        first_number: number,
                        count: 1,
                        due: None,
                        place: Some(place),
                    };
                    push_run(&mut runs, run);
                }
            }
            if !delayed.is_empty() {
                // Only these rows know of them: the wheel cannot find them in the log.
                self.stored
                    .unarmed(open.place.first_number, open.place.end());
            }
            for mut run in runs {
                // The coordinator counted what it let through; more than that has no offset.
                let left = u32::try_from(end.0.saturating_sub(offset.0)).unwrap_or(u32::MAX);
                run.count = run.count.min(left);
                if run.count > 0 {
                    offset = self.publish(&run, offset, header.appended, effects);
                }
            }
        }
        self.hand_over(effects);
    }

    pub(in crate::domain::partition) fn apply_dropped(
        &mut self,
        runs: &[(RecordNumber, u32)],
        effects: &mut Vec<Effect>,
    ) {
        for (first, count) in runs {
            for number in first.0..first.0.saturating_add(u64::from(*count)) {
                let number = RecordNumber(number);
                self.stored.dropped(number, self.head.next_offset);
                self.outcome(number, &TimerAnswer::Cancelled, effects);
            }
        }
    }

    pub(in crate::domain::partition) fn apply_rescheduled(
        &mut self,
        number: RecordNumber,
        change: Override,
        effects: &mut Vec<Effect>,
    ) {
        self.stored.reschedule(number, change);
        let pending = Pending {
            number,
            version: change.version,
            due: change.due,
        };
        let end = RecordNumber(number.0.saturating_add(1));
        let position = match self.stored.place(number) {
            Lookup::Known(place) => place.position,
            Lookup::Load(_) | Lookup::Nothing => LogPosition(0),
        };
        self.arm(vec![alarm_of(pending)], (number, end), position, effects);
        self.outcome(number, &TimerAnswer::Rescheduled(pending), effects);
    }

    /// What was on its way about a record is applied: tells who asked, decides what waited (D1).
    pub(super) fn outcome(
        &mut self,
        number: RecordNumber,
        answer: &TimerAnswer,
        effects: &mut Vec<Effect>,
    ) {
        let Some(busy) = self.timers.busy.remove(&number) else {
            return;
        };
        for batch in busy.batches {
            self.settle_batch(batch, 1, effects);
        }
        if let Some(token) = busy.asker {
            effects.push(Effect::Timer(token, answer.clone()));
        }
        for (token, command, now, limits) in busy.behind {
            if let TimerAnswer::AlreadyFired(_) = answer {
                effects.push(Effect::Timer(token, answer.clone()));
            } else {
                self.timer(token, number, command, now, limits, effects);
            }
        }
    }
}

/// Adds a record to what is published, to the run before it if it follows there.
fn push_run(runs: &mut Vec<PublishRun>, run: PublishRun) {
    if let Some(last) = runs.last_mut()
        && let (Some(here), Some(there)) = (&last.place, &run.place)
        && here.position == there.position
        && here.index.checked_add(last.count) == Some(there.index)
        && last.first_number.0.checked_add(u64::from(last.count)) == Some(run.first_number.0)
        && last.due == run.due
    {
        last.count += run.count;
        return;
    }
    runs.push(run);
}

//! What became of every delayed record, told from the log alone, and whether everybody says the same.

use waterwheel::domain::commit::OwnerRange;
use waterwheel::domain::entry::{AppliedEntry, EntryKind};
use waterwheel::domain::id::{LogPosition, Offset, OwnerId, RecordNumber, Token};
use waterwheel::domain::partition::delayed::{TimerAnswer, TimerCommand};
use waterwheel::domain::partition::publication::Publication;
use waterwheel::domain::partition::rows::RowId;
use waterwheel::domain::partition::stored::Pending;
use waterwheel::domain::partition::{Delta, Effect, Head, Partition, TimerLimits, alarms_of};
use waterwheel::domain::time::WallMs;
use waterwheel::log::{LogReader, Scanned};

use super::clients::Batch;
use super::recovery::run;
use super::truth::Truth;
use super::views::Views;

/// What the log says of a delayed record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timer {
    Waits { due: i64, version: u32 },
    Fired(Offset),
    Cancelled,
}

impl Truth {
    /// An entry is durable: told once, in the order of the log.
    pub(crate) fn landed(&mut self, entry: &AppliedEntry) {
        let (owner, header) = (entry.header.owner, &entry.header);
        if self.folded.is_some_and(|at| entry.place.position <= at) {
            return;
        }
        self.folded = Some(entry.place.position);
        match header.kind {
            EntryKind::Delete => {
                let range: OwnerRange = rmp_serde::from_slice(&entry.body).expect("a range");
                let of_range = self
                    .owners
                    .iter_mut()
                    .filter(|(id, _)| range.contains(**id));
                of_range.for_each(|(_, promised)| promised.timers.clear());
                self.deleted.push(range);
            }
            _ if owner == OwnerId::LOG || owner == OwnerId::DIRECTORY => {}
            EntryKind::Payload if header.offsets == 0 => {
                let timers = &mut self.owners.entry(owner).or_default().timers;
                for alarm in alarms_of(entry) {
                    let (due, version) = (alarm.due_ms, 0);
                    let before = timers.insert(alarm.token, Timer::Waits { due, version });
                    assert_eq!(before, None, "{owner}: a number is given twice");
                }
            }
            EntryKind::Publish => self.published(owner, entry),
            EntryKind::State => self.changed(owner, entry),
            _ => {}
        }
    }

    /// What was found in the log that nobody was told of.
    pub(crate) fn found(&mut self, reader: &LogReader) {
        for scanned in reader.scan(LogPosition(0), None) {
            let Scanned::Entry {
                header,
                place,
                facts,
                body,
            } = scanned
            else {
                panic!("{scanned:?}")
            };
            let body = body.unwrap_or_default();
            self.landed(&AppliedEntry {
                header,
                place,
                body,
                facts,
            });
        }
    }

    fn published(&mut self, owner: OwnerId, entry: &AppliedEntry) {
        let Some(Publication::Records(runs)) = Publication::decode(&entry.body) else {
            panic!("{owner}: a publication of another kind")
        };
        let timers = &mut self.owners.entry(owner).or_default().timers;
        let mut offset = entry.header.first_offset;
        for run in runs {
            for number in run.first_number.0..run.first_number.0 + u64::from(run.count) {
                let before = timers.insert(number, Timer::Fired(offset));
                let Some(Timer::Waits { due, .. }) = before else {
                    panic!("{owner}/{number} is back from the dead: {before:?}");
                };
                assert_eq!(run.due, Some(WallMs(due)), "by the time in force");
                offset.0 += 1;
                self.fired += 1;
            }
        }
    }

    fn changed(&mut self, owner: OwnerId, entry: &AppliedEntry) {
        let Ok(delta) = rmp_serde::from_slice::<Delta>(&entry.body) else {
            return;
        };
        let timers = &mut self.owners.entry(owner).or_default().timers;
        let mut change = |number: u64, to: Timer| {
            let before = timers.insert(number, to);
            let waited = matches!(before, Some(Timer::Waits { .. }));
            assert!(waited, "{owner}/{number} was {before:?} and becomes {to:?}");
        };
        match delta {
            Delta::Dropped(runs) => {
                for (first, count) in runs {
                    for number in first.0..first.0 + u64::from(count) {
                        change(number, Timer::Cancelled);
                        self.cancelled += 1;
                    }
                }
            }
            Delta::Rescheduled {
                number,
                version,
                due,
            } => {
                let due = due.0;
                change(number.0, Timer::Waits { due, version });
            }
            _ => {}
        }
    }

    /// A delayed batch was acknowledged.
    pub(crate) fn note_late(&self, owner: OwnerId, first: RecordNumber, batch: Batch) {
        let timers = self.owners.get(&owner).map(|promised| &promised.timers);
        if self.is_deleted(owner) {
            return;
        }
        for number in first.0..first.0 + u64::from(batch.count) {
            let is_known = timers.is_some_and(|timers| timers.contains_key(&number));
            assert!(is_known, "{owner}/{number}: acknowledged and not stored");
        }
    }

    /// A record that was stored as this number was read at this offset.
    pub(crate) fn note_fired(&self, owner: OwnerId, offset: Offset, number: RecordNumber) {
        if self.is_deleted(owner) {
            return;
        }
        let timer = self.owners.get(&owner);
        let timer = timer.and_then(|promised| promised.timers.get(&number.0));
        assert_eq!(timer, Some(&Timer::Fired(offset)), "{owner}/{number}");
    }

    fn is_deleted(&self, owner: OwnerId) -> bool {
        self.deleted.iter().any(|range| range.contains(owner))
    }

    pub(crate) fn timer(&self, owner: OwnerId, number: RecordNumber) -> Option<Timer> {
        let timers = &self.owners.get(&owner)?.timers;
        timers.get(&number.0).copied()
    }

    /// What is said of a record is what the log says, as far as the partition has applied it.
    pub(crate) fn check(
        &self,
        owner: OwnerId,
        number: RecordNumber,
        answer: &TimerAnswer,
        was: Option<Timer>,
        head: &Head,
    ) {
        // Of what went with its topic it may still be told what it was.
        if self.is_deleted(owner) {
            return;
        }
        let timer = self.timer(owner, number);
        let (next, start) = (head.next_number, head.start_offset);
        let holds = match answer {
            TimerAnswer::Cancelled => timer == Some(Timer::Cancelled),
            TimerAnswer::AlreadyFired(offset) => timer == Some(Timer::Fired(*offset)),
            TimerAnswer::Rescheduled(pending) => timer == Some(waits(pending)),
            // Whoever only looks may hear how it stood between question and answer.
            TimerAnswer::Pending(pending) => match was {
                Some(Timer::Waits { version, .. }) => version <= pending.version,
                _ => timer == Some(waits(pending)),
            },
            TimerAnswer::NotFound => match timer {
                None => true,
                Some(Timer::Waits { .. }) => number >= next,
                // Retention has taken what was beside it.
                Some(Timer::Cancelled) => number >= next || start.0 > 0,
                Some(Timer::Fired(offset)) => number >= next || offset < start,
            },
            TimerAnswer::Listed { .. } => false,
        };
        assert!(
            holds,
            "{owner}/{number} is {timer:?}, start {start}; told {answer:?}"
        );
    }

    /// Whether a segment must keep a stored payload for these numbers.
    pub(crate) fn needs(&self, owner: OwnerId, first: RecordNumber, count: u32) -> bool {
        let Some(promised) = self.owners.get(&owner) else {
            return false;
        };
        let numbers = first.0..first.0 + u64::from(count);
        promised
            .timers
            .range(numbers)
            .any(|(_, timer)| match timer {
                Timer::Waits { .. } => true,
                Timer::Fired(offset) => *offset >= promised.start,
                Timer::Cancelled => false,
            })
    }

    /// Numbers of a partition's records that wait.
    pub(crate) fn waiting_of(&self, owner: OwnerId) -> Vec<u64> {
        let timers = self.owners.get(&owner).map(|promised| &promised.timers);
        let waits = |(_, timer): &(&u64, &Timer)| matches!(timer, Timer::Waits { .. });
        let waiting = timers.into_iter().flatten().filter(waits);
        waiting.map(|(number, _)| *number).collect()
    }

    /// The last number of its delayed records.
    pub(crate) fn last_of(&self, owner: OwnerId) -> u64 {
        let timers = self.owners.get(&owner).map(|promised| &promised.timers);
        let last = timers.and_then(|timers| timers.last_key_value());
        last.map_or(0, |(number, _)| *number)
    }

    /// Everything that waits.
    pub(crate) fn waiting(&self) -> Vec<(OwnerId, u64)> {
        let owners = self.owners.keys();
        let waiting = owners.flat_map(|owner| {
            let numbers = self.waiting_of(*owner).into_iter();
            numbers.map(|number| (*owner, number))
        });
        waiting.collect()
    }

    /// Everything that a recovered partition says of its delayed records.
    pub(crate) fn audit_timers(&self, owner: OwnerId, mut machine: Partition, views: &Views) {
        let Some(promised) = self.owners.get(&owner) else {
            return;
        };
        let head = machine.head();
        for number in promised.timers.keys().map(|number| RecordNumber(*number)) {
            assert!(number < head.next_number, "{owner}/{number} is not there");
            let answer = look(&mut machine, owner, number, views);
            self.check(owner, number, &answer, None, &head);
        }
    }
}

fn waits(pending: &Pending) -> Timer {
    Timer::Waits {
        due: pending.due.0,
        version: pending.version,
    }
}

fn look(
    machine: &mut Partition,
    owner: OwnerId,
    number: RecordNumber,
    views: &Views,
) -> TimerAnswer {
    let (mut effects, limits) = (Vec::new(), TimerLimits::default());
    let command = TimerCommand::Look;
    machine.timer(Token(1), number, command, WallMs(0), limits, &mut effects);
    while let Some(effect) = effects.pop() {
        match effect {
            Effect::Timer(_, answer) => return answer,
            Effect::LoadBodies(first) => {
                let row = views.row(owner, RowId::Bodies(first));
                let row = row.cloned().unwrap_or_default();
                machine.bodies_loaded(first, Ok(&row), &mut effects);
            }
            Effect::LoadRun(first) => {
                machine.run_loaded(first, Ok(run(views, owner, first)), &mut effects);
            }
            other => panic!("{owner}/{number}: {other:?}"),
        }
    }
    panic!("{owner}/{number}: no answer")
}

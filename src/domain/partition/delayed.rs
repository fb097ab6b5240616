//! Delayed records: what a partition decides when their time comes, and when somebody asks.
//!
//! A delayed record is stored with a number and without an offset. Its alarm goes to the wheel, which
//! says when it is due; then the partition publishes it by reference. Until then it can be cancelled or
//! rescheduled. All of this meets in this machine, one record at a time:
//!
//! - D1 While something about a record is on its way to the disk, whatever else concerns it waits for
//!   the outcome and is decided then: what the log takes first, wins, and everybody is told the same.
//! - D2 A record is published at most once, and never after its drop was applied.
//! - D3 An alarm is heeded only in the version in force: a stale one fires nothing.
//! - D4 Every batch of alarms said due is returned, once what it led to is applied, or to be said again
//!   where the log refused it.
//! - D5 At most [`ARM_WINDOW`] alarms are on their way to the wheel; what comes beyond is marked in its
//!   chunk and handed over when there is room. Beyond [`UNARMED_CHUNKS_MAX`] such chunks new delayed
//!   records are refused for a while.
//!
//! The offset of a record that fired is not kept beside its state: it is in the index, and found there by
//! the time it was due, for it was published then or soon after.

use std::collections::BTreeMap;

use super::index::Found;
use super::publication::PublishRun;
use super::stored::{Pending, State};
use super::{
    AppliedEntry, BatchPlace, Delta, Draft, Effect, EntryKind, LogPosition, Lookup, Offset,
    Override, Partition, PayloadFacts, Publication, RecordNumber, Rejection, StoredPlace,
    TimerLimits, Token, Waiting, WallMs, alarm, state,
};
use crate::domain::alarm::{Alarm, DUE_MS_MAX};
use crate::domain::batch::Delivery;
use crate::domain::id::OwnerId;
use crate::domain::transaction::TransactionId;

/// Alarms armed and not confirmed by the wheel at most.
pub const ARM_WINDOW: usize = 65_536;

/// Chunks of records whose alarms are not handed over, at most: about 16 million records.
pub const UNARMED_CHUNKS_MAX: usize = 4096;

/// Milliseconds after which the wheel says again what the log refused.
const AGAIN_MS: u64 = 50;

/// Timers one answer lists at most.
pub const LISTED_MAX: usize = 1000;

/// Runs of bodies one answer looks through at most; then it names the place to go on from.
const LISTED_RUNS_MAX: usize = 64;

/// What is asked about one delayed record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimerCommand {
    /// It shall not be published.
    Cancel,
    /// It shall be published at another time.
    Reschedule(Delivery),
    /// How it stands.
    Look,
}

/// What is asked about many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListTimers {
    /// From this number on.
    pub from: RecordNumber,
    /// Due at this time or later.
    pub due_from: WallMs,
    /// Due before this time.
    pub due_before: WallMs,
    /// So many at most; at most [`LISTED_MAX`].
    pub max: usize,
}

/// The answer to a question about delayed records. The same to every asker, whenever he asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimerAnswer {
    /// It was cancelled, now or before: it is never published.
    Cancelled,
    /// It is due at another time now.
    Rescheduled(Pending),
    /// It was published before anything could be done about it, and has this offset.
    AlreadyFired(Offset),
    /// It waits.
    Pending(Pending),
    /// Nobody knows of such a delayed record, or not any more: retention has taken it.
    NotFound,
    /// Some of those that wait.
    Listed {
        /// By number.
        found: Vec<Pending>,
        /// Where to go on, if that is not the end.
        next: Option<RecordNumber>,
        /// How many wait altogether.
        pending: u64,
    },
}

/// What is on its way to the disk about a record, and who waits for it.
#[derive(Debug, Clone, Default)]
struct Busy {
    /// Batches of the wheel that wait for it.
    batches: Vec<u64>,
    /// Whoever asked for what is on its way.
    asker: Option<Token>,
    /// What came meanwhile (D1).
    behind: Vec<(Token, TimerCommand, WallMs, TimerLimits)>,
}

/// A question that waits for a row of bodies.
#[derive(Debug, Clone)]
enum Waits {
    Fire(u64, Alarm),
    Look(Token, RecordNumber),
    Seek(Token, RecordNumber),
    List(Token, ListTimers, Vec<Pending>),
    HandOver,
}

/// What is under way about delayed records: nothing of it outlasts a life.
#[derive(Debug, Clone, Default)]
pub(super) struct Timers {
    busy: BTreeMap<RecordNumber, Busy>,
    /// Alarms of each batch said due that are not settled.
    outstanding: BTreeMap<u64, usize>,
    loading: BTreeMap<RecordNumber, Vec<Waits>>,
    /// Alarms armed and not confirmed.
    armed: usize,
    /// There is a wheel to arm.
    live: bool,
    handing_over: bool,
    /// The last round of the checkpoint this partition took part in.
    round: u64,
}

impl Timers {
    /// What was on its way is refused: whoever waits for it is told, the wheel is asked to repeat (D4).
    pub(super) fn reset(&mut self, effects: &mut Vec<Effect>) {
        for busy in std::mem::take(&mut self.busy).into_values() {
            let tokens = busy
                .asker
                .into_iter()
                .chain(busy.behind.into_iter().map(|(token, ..)| token));
            effects.extend(tokens.map(|token| Effect::Refuse(token, Rejection::Retry)));
        }
        for waits in self.loading.values_mut() {
            waits.retain(|waits| !matches!(waits, Waits::Fire(..)));
        }
        for batch in std::mem::take(&mut self.outstanding).into_keys() {
            effects.push(Effect::Returned {
                batch,
                again_ms: Some(AGAIN_MS),
            });
        }
    }
}

impl Partition {
    /// Records that wait for their time.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.stored.pending()
    }

    /// Whether an alarm still means something: its record waits for its time, in this version.
    #[must_use]
    pub fn stands(&self, alarm: &Alarm) -> bool {
        let number = RecordNumber(alarm.token);
        self.stored.state(number) == Some(State::Waiting)
            && !self.stored.is_undecided(number)
            && self.stored.version(number) == alarm.version
    }

    /// Whether a record got its offset where it was stored, as far as is known: what waited once and has
    /// been forgotten since counts as that.
    #[must_use]
    pub fn was_published_at_once(&self, number: RecordNumber) -> bool {
        self.stored.state(number).is_none()
    }

    /// Records that wait for their transaction.
    #[must_use]
    pub fn undecided(&self) -> u64 {
        self.stored.undecided()
    }

    /// The batches of undecided transactions, by number: transaction, first number, records.
    pub fn open_batches(
        &self,
    ) -> impl Iterator<Item = (TransactionId, RecordNumber, u32)> + use<'_> {
        self.stored.open()
    }

    /// Where the first batch of an undecided transaction lies, to be read as a whole; it has no offset.
    #[must_use]
    pub fn undecided_batch(&self, key: TransactionId) -> Option<BatchPlace> {
        let place = self.stored.first_open(key)?;
        Some(BatchPlace {
            first_offset: Offset(0),
            count: place.count,
            first_number: place.first_number,
            position: place.position,
            length: place.length,
            appended: place.appended,
            tags: place.tags,
            reference: None,
        })
    }

    /// States, changed times and undecided batches as they would be restated: for comparison.
    #[must_use]
    pub fn stored_state(&self) -> Vec<(u64, bytes::Bytes)> {
        self.stored.seen()
    }

    /// Whether something stored in this part of the log is still needed though it has no offset of its
    /// own: pending, undecided, or published by reference and kept.
    #[must_use]
    pub fn needs(&self, from: LogPosition, end: LogPosition) -> bool {
        self.stored.needs(from, end, self.head.start_offset)
    }

    /// Whether a batch is published where it is stored: all of its records are immediate, or due
    /// already.
    pub(super) fn published_at_once(
        &self,
        facts: &PayloadFacts,
        count: u32,
        now: WallMs,
        limits: TimerLimits,
    ) -> Result<bool, Rejection> {
        if facts.deliveries.is_empty() {
            return Ok(facts.transaction.0 == 0);
        }
        let mut delayed = 0u64;
        let mut farthest = i64::MIN;
        for (_, due) in alarm::dues_of(&facts.deliveries, now.0) {
            delayed += 1;
            farthest = farthest.max(due);
        }
        if farthest <= now.0 {
            return Ok(facts.transaction.0 == 0);
        }
        within_delay(now, WallMs(farthest), limits)?;
        if facts.transaction.0 == 0 && delayed < u64::from(count) {
            return Err(Rejection::MixedDelivery);
        }
        if let Some(max) = limits.pending_max
            && self.stored.pending().saturating_add(delayed) > max
        {
            return Err(Rejection::TooManyTimers { max });
        }
        if self.stored.unarmed_chunks() > UNARMED_CHUNKS_MAX {
            return Err(Rejection::Throttled { after_ms: 100 });
        }
        Ok(false)
    }

    /// Takes in a payload that is not published with it.
    pub(super) fn apply_stored(&mut self, entry: &AppliedEntry, effects: &mut Vec<Effect>) {
        let header = &entry.header;
        let place = StoredPlace {
            first_number: header.first_number,
            count: header.numbers,
            position: entry.place.position,
            length: entry.place.length,
            appended: header.appended,
            tags: entry.facts.tags,
        };
        if entry.facts.transaction.0 != 0 {
            let key = TransactionId {
                producer: entry.facts.producer,
                epoch: entry.facts.epoch,
                number: entry.facts.transaction,
            };
            let deliveries = entry.facts.deliveries.clone();
            return self.stored.push_open(key, place, deliveries);
        }
        let count = usize::try_from(header.numbers).unwrap_or(0);
        let mut dues = vec![i64::MIN; count];
        for (index, due) in alarm::dues_of(&entry.facts.deliveries, header.wall.0) {
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            if let Some(place) = dues.get_mut(index) {
                *place = due;
            }
        }
        self.stored.push(place, dues);
        let alarms: Vec<Alarm> = alarm::alarms_of_payload(header, &entry.facts).collect();
        self.arm(
            alarms,
            (place.first_number, place.end()),
            place.position,
            effects,
        );
    }

    /// Arms, or marks for later where the window is full (D5). A fold without a wheel does neither: the
    /// wheel arms again by itself what lies behind the mark.
    fn arm(
        &mut self,
        alarms: Vec<Alarm>,
        numbers: (RecordNumber, RecordNumber),
        position: LogPosition,
        effects: &mut Vec<Effect>,
    ) {
        if !self.timers.live || alarms.is_empty() {
            return;
        }
        if self.timers.armed + alarms.len() > ARM_WINDOW || self.stored.first_unarmed().is_some() {
            return self.stored.unarmed(numbers.0, numbers.1);
        }
        self.timers.armed += alarms.len();
        effects.push(Effect::Arm { alarms, position });
    }

    /// A life begins: there is a wheel now, nothing is on its way to it or from it.
    pub fn begun(&mut self, effects: &mut Vec<Effect>) {
        self.timers.live = true;
        self.timers.outstanding.clear();
        self.timers.armed = 0;
        self.hand_over(effects);
    }

    /// The wheel has taken so many alarms.
    pub fn armed(&mut self, count: usize, effects: &mut Vec<Effect>) {
        self.timers.armed = self.timers.armed.saturating_sub(count);
        self.hand_over(effects);
    }

    /// The wheel's level begins again: what was armed and not confirmed is not waited for.
    pub fn wheel_began(&mut self, effects: &mut Vec<Effect>) {
        self.timers.armed = 0;
        self.stored.hand_over_again();
        self.hand_over(effects);
    }

    /// Homes of the wheel do not read: everything that waits is handed over once more.
    pub fn lost(&mut self, effects: &mut Vec<Effect>) {
        self.stored.all_unarmed();
        self.dirty = true;
        self.hand_over(effects);
    }

    /// A round of the checkpoint takes this partition's rows; `marked` is the last one that was marked.
    pub fn rows_due(&mut self, round: u64, marked: u64) {
        self.timers.round = round;
        self.dirty |= self.stored.marked(marked);
    }

    /// Hands chunks over whose alarms are not armed, as long as there is room (D5).
    fn hand_over(&mut self, effects: &mut Vec<Effect>) {
        if !self.timers.live || self.timers.handing_over {
            return;
        }
        while self.timers.armed < ARM_WINDOW / 2
            && let Some((first, end)) = self.stored.first_unarmed()
        {
            // A batch belongs to the chunk it begins in, and may reach into the next.
            let mut from = self.stored.batch_start(first);
            let mut alarms = Vec::new();
            loop {
                match self.stored.pending_from(from, WallMs(i64::MIN)) {
                    Lookup::Load(run) => {
                        self.timers.handing_over = true;
                        return self.wait_for_bodies(run, Waits::HandOver, effects);
                    }
                    Lookup::Nothing => break,
                    Lookup::Known((found, next)) => {
                        alarms.extend(
                            found
                                .into_iter()
                                .filter(|pending| pending.number >= first && pending.number < end)
                                .map(alarm_of),
                        );
                        match next.filter(|next| *next < end) {
                            Some(next) => from = next,
                            None => break,
                        }
                    }
                }
            }
            self.stored.armed(first, self.timers.round);
            let position = match self.stored.place(first) {
                Lookup::Known(place) => place.position,
                Lookup::Load(_) | Lookup::Nothing => LogPosition(0),
            };
            if !alarms.is_empty() {
                self.timers.armed += alarms.len();
                effects.push(Effect::Arm { alarms, position });
            }
        }
    }

    fn wait_for_bodies(&mut self, run: RecordNumber, waits: Waits, effects: &mut Vec<Effect>) {
        let queue = self.timers.loading.entry(run).or_default();
        if queue.is_empty() {
            effects.push(Effect::LoadBodies(run));
        }
        queue.push(waits);
    }

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
            }
        }
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
    fn repeat(&mut self, batch: u64, effects: &mut Vec<Effect>) {
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

    fn fire(&mut self, batch: u64, alarms: &[Alarm], effects: &mut Vec<Effect>) {
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

    fn settle_batch(&mut self, batch: u64, count: usize, effects: &mut Vec<Effect>) {
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
    pub(super) fn apply_publication(
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
    fn publish(
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

    fn publish_transaction(
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

    pub(super) fn apply_dropped(
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

    pub(super) fn apply_rescheduled(
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
    fn outcome(&mut self, number: RecordNumber, answer: &TimerAnswer, effects: &mut Vec<Effect>) {
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

    fn ask_about(
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

    fn look(&mut self, token: Token, number: RecordNumber, effects: &mut Vec<Effect>) {
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
    fn seek_due(&mut self, token: Token, number: RecordNumber, effects: &mut Vec<Effect>) {
        match self.stored.due(number) {
            Lookup::Load(run) => self.wait_for_bodies(run, Waits::Seek(token, number), effects),
            Lookup::Known(Some(due)) => self.seek_time(token, number, due, effects),
            Lookup::Known(None) | Lookup::Nothing => {
                self.seek_all(token, number, effects);
            }
        }
    }

    pub(super) fn seek_time(
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

    pub(super) fn seek(
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
    fn seek_all(&mut self, token: Token, number: RecordNumber, effects: &mut Vec<Effect>) {
        self.seek(token, number, self.head.start_offset, true, effects);
    }

    fn not_found(
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

    fn list_on(
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
    fn listed(&self, found: Vec<Pending>, next: Option<RecordNumber>) -> TimerAnswer {
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

/// The owner is the shell's to fill in.
fn alarm_of(pending: Pending) -> Alarm {
    Alarm {
        due_ms: pending.due.0,
        owner: OwnerId(0),
        token: pending.number.0,
        version: pending.version,
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

fn within_delay(now: WallMs, due: WallMs, limits: TimerLimits) -> Result<(), Rejection> {
    let Some(max_ms) = limits.delay_max_ms else {
        return Ok(());
    };
    let ahead = u64::try_from(due.0.saturating_sub(now.0)).unwrap_or(0);
    if ahead > max_ms {
        return Err(Rejection::DelayTooLong { max_ms });
    }
    Ok(())
}

/// The alarms an entry of a partition arms, from the entry alone: what the wheel's recovery asks of
/// everything behind the mark. Those of a committed transaction's delayed records are not among them:
/// the partition's rows have them marked as not armed, and it hands them over.
#[must_use]
pub fn alarms_of(entry: &AppliedEntry) -> Vec<Alarm> {
    let header = &entry.header;
    match header.kind {
        EntryKind::Payload => alarm::alarms_of_payload(header, &entry.facts).collect(),
        EntryKind::State => match rmp_serde::from_slice(&entry.body) {
            Ok(Delta::Rescheduled {
                number,
                version,
                due,
            }) => vec![Alarm {
                due_ms: due.0,
                owner: header.owner,
                token: number.0,
                version,
            }],
            Ok(_) | Err(_) => Vec::new(),
        },
        EntryKind::Publish | EntryKind::Snapshot | EntryKind::Delete | EntryKind::Mark => {
            Vec::new()
        }
    }
}

/// The entry by which a coordinator publishes what a transaction stored in a partition: `immediate` is
/// how many of those records are not delayed.
#[must_use]
pub fn publish_transaction_draft(key: TransactionId, immediate: u32) -> Draft {
    Publication::Transaction(key).draft(immediate)
}

/// The entry by which a coordinator drops what a transaction stored in a partition.
#[must_use]
pub fn discard_transaction_draft(key: TransactionId) -> Draft {
    state(&Delta::TransactionDropped(key))
}

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

mod arm;
mod ask;
mod fire;
mod near;

use std::collections::BTreeMap;

use super::stored::{Pending, State};
use super::{
    AppliedEntry, BatchPlace, Delta, Draft, Effect, EntryKind, LogPosition, Offset, Partition,
    PayloadFacts, Publication, RecordNumber, Rejection, StoredPlace, TimerLimits, Token, WallMs,
    alarm, state,
};
use crate::domain::alarm::Alarm;
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
    Near(Alarm),
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

#[cfg(test)]
mod tests;

//! Records that were stored before they are published: delayed ones, and those of a transaction.
//!
//! Two things are kept of them, apart, because they are asked for differently:
//!
//! - **States**, by chunks of [`CHUNK_NUMBERS`] record numbers: two bits a record (not one of these,
//!   waiting, published, dropped), overrides for the modified ones, whether the chunk's alarms must
//!   still be handed to the wheel. All of them are in memory: a quarter of a byte a record.
//! - **Bodies**, by runs of stored batches: where each payload lies and when its records are due. Those
//!   of the last run and those not yet written are in memory, others as far as `PLACES_KEPT` goes; the
//!   rest is loaded from the view when a timer fires or somebody asks.
//!
//! A chunk is forgotten when nothing in it waits and retention has taken the last of it: from then on
//! nobody finds its records any more. An answer about a dropped record lasts until something published
//! after it is taken.
//!
//! # Layout of the rows
//!
//! A chunk (row id: its first number divided by [`CHUNK_NUMBERS`]): byte 1; then packed
//! numbers: published end, answer end, flags (1 unarmed), count of overrides, each override as distance
//! of its place within the chunk from the one before, version, due time; then the states as runs: state,
//! length, until the chunk is full.
//!
//! A run of bodies (row id: its first number): byte 1; count of batches, each as distance of its first
//! number from the end of the one before (from 0), records, distance of its position from the one before,
//! frame length, distance of its append time from the one before, flags (4 a tag summary), the summary in
//! eight bytes; then every record's due time as distance from the one before (from 0).
//!
//! An open batch (row id: its first number): byte 1; producer, epoch, transaction; first number, records,
//! position, frame length, append time, tag summary, all packed; then its delivery column as it came.
//!
//! - S1 A state only ever moves from waiting to published or dropped.
//! - S2 What waits can always be found: its body is in memory or in a row that is written.

mod bodies;
mod chunk;
mod rows;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use self::bodies::Open;
pub use self::bodies::{StoredPlace, decode_bodies};
use self::chunk::Chunk;
pub use self::chunk::{Override, State};
use crate::domain::id::{LogPosition, Offset, RecordNumber};
use crate::domain::time::WallMs;
use crate::domain::transaction::TransactionId;

/// Record numbers of a chunk of states: a row of about 1 kB where they are mixed, less where not.
pub const CHUNK_NUMBERS: u64 = 4096;

/// Batches, and records, after which a run of bodies is full: a row of 20 to 100 kB.
const RUN_BATCHES: usize = 512;
const RUN_RECORDS: usize = 4096;

/// Batches whose places are kept in memory beyond those that are not written yet: about 12 MB.
const PLACES_KEPT: usize = 262_144;
/// Due times that are kept likewise: 2 MB.
const DUES_KEPT: usize = 262_144;

/// Consecutive stored batches.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bodies {
    end: RecordNumber,
    /// One past the position of the last frame's start.
    positions_end: LogPosition,
    /// Where the first frame starts.
    position: LogPosition,
    latest_due: WallMs,
    places: Option<Vec<StoredPlace>>,
    /// One per record, in the order of the places; the least value where it has none of its own.
    dues: Option<Vec<i64>>,
    batches: usize,
    records: usize,
    dirty: bool,
    touched: u64,
}

/// What was found of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup<T> {
    Known(T),
    /// The run that starts here must be loaded first.
    Load(RecordNumber),
    /// There is none: damage took it.
    Nothing,
}

/// A record that waits, with the time in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// Its number.
    pub number: RecordNumber,
    /// Which modification.
    pub version: u32,
    /// When it is due.
    pub due: WallMs,
}

/// The table of one partition lane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    chunks: BTreeMap<u64, Chunk>,
    runs: BTreeMap<RecordNumber, Bodies>,
    open: BTreeMap<RecordNumber, Open>,
    /// The same by transaction: a hundred thousand may be open while one is decided.
    by_transaction: BTreeSet<(TransactionId, RecordNumber)>,
    /// Records of open batches.
    undecided: u64,
    waiting: u64,
    dirty_open: BTreeSet<RecordNumber>,
    gone: Vec<Gone>,
    clock: u64,
}

/// A row that is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    Chunk(u64),
    Bodies(RecordNumber),
    Open(RecordNumber),
}

fn chunk_of(number: RecordNumber) -> (u64, u16) {
    let within = u16::try_from(number.0 % CHUNK_NUMBERS).unwrap_or(u16::MAX);
    (number.0 / CHUNK_NUMBERS, within)
}

impl Table {
    /// Records that wait for their time.
    pub(super) fn pending(&self) -> u64 {
        self.waiting.saturating_sub(self.undecided)
    }

    /// Records that wait for their transaction.
    pub(super) fn undecided(&self) -> u64 {
        self.undecided
    }

    pub(super) fn state(&self, number: RecordNumber) -> Option<State> {
        let (chunk, at) = chunk_of(number);
        self.chunks.get(&chunk)?.state(at)
    }

    /// Whether the record belongs to a transaction that is not decided.
    pub(super) fn is_undecided(&self, number: RecordNumber) -> bool {
        self.open
            .range(..=number)
            .next_back()
            .is_some_and(|(_, open)| number < open.place.end())
    }

    pub(super) fn change(&self, number: RecordNumber) -> Option<Override> {
        let (chunk, at) = chunk_of(number);
        self.chunks.get(&chunk)?.overrides.get(&at).copied()
    }

    /// Which modification of a record is in force.
    pub(super) fn version(&self, number: RecordNumber) -> u32 {
        self.change(number).map_or(0, |change| change.version)
    }

    /// Takes in a batch whose records are not published with it. One that is there already (a row may
    /// have been written after the head it is folded from) only replaces its place.
    pub(super) fn push(&mut self, place: StoredPlace, dues: Vec<i64>) {
        for number in place.first_number.0..place.end().0 {
            let (chunk, at) = chunk_of(RecordNumber(number));
            let chunk = self.chunks.entry(chunk).or_default();
            if chunk.state(at).is_none() {
                chunk.set(at, State::Waiting);
                self.waiting += 1;
            }
        }
        self.push_body(place, dues);
    }

    fn push_body(&mut self, place: StoredPlace, dues: Vec<i64>) {
        self.clock += 1;
        let latest = dues.iter().copied().max().unwrap_or(i64::MIN);
        if let Some(mut last) = self.runs.last_entry() {
            let run = last.get_mut();
            if place.first_number < run.end {
                return;
            }
            if let (Some(places), Some(known)) = (&mut run.places, &mut run.dues)
                && run.batches < RUN_BATCHES
                && run.records < RUN_RECORDS
            {
                places.push(place);
                known.extend(dues);
                run.end = place.end();
                run.positions_end = LogPosition(place.position.0.saturating_add(1));
                run.latest_due = run.latest_due.max(WallMs(latest));
                run.batches += 1;
                run.records = known.len();
                run.dirty = true;
                run.touched = self.clock;
                return;
            }
        }
        self.runs.insert(
            place.first_number,
            Bodies {
                end: place.end(),
                position: place.position,
                positions_end: LogPosition(place.position.0.saturating_add(1)),
                latest_due: WallMs(latest),
                batches: 1,
                records: dues.len(),
                places: Some(vec![place]),
                dues: Some(dues),
                dirty: true,
                touched: self.clock,
            },
        );
    }

    /// A batch of a transaction: its records wait for the decision.
    pub(super) fn push_open(&mut self, key: TransactionId, place: StoredPlace, deliveries: Bytes) {
        let undecided = vec![i64::MIN; usize::try_from(place.count).unwrap_or(0)];
        // A restored row knows what was decided: its records are settled already.
        let known = self.state(place.first_number).is_some();
        self.push(place, undecided);
        if known {
            return;
        }
        self.undecided += u64::from(place.count);
        self.dirty_open.insert(place.first_number);
        let open = Open {
            key,
            place,
            deliveries,
        };
        self.by_transaction.insert((key, place.first_number));
        self.open.insert(place.first_number, open);
    }

    /// The open batches of a transaction, in the order stored; they are open no more.
    pub(super) fn close(&mut self, key: TransactionId) -> Vec<Open> {
        let of_it: Vec<RecordNumber> = self.firsts(key).collect();
        of_it
            .iter()
            .filter_map(|first| self.close_batch(*first))
            .collect()
    }

    fn firsts(&self, key: TransactionId) -> impl Iterator<Item = RecordNumber> {
        let all = RecordNumber(0)..=RecordNumber(u64::MAX);
        self.by_transaction
            .range((key, *all.start())..=(key, *all.end()))
            .map(|(_, first)| *first)
    }

    /// Where the first open batch of a transaction lies.
    pub(super) fn first_open(&self, key: TransactionId) -> Option<StoredPlace> {
        let first = self.firsts(key).next()?;
        self.open.get(&first).map(|open| open.place)
    }

    fn close_batch(&mut self, first: RecordNumber) -> Option<Open> {
        let open = self.open.remove(&first)?;
        self.by_transaction.remove(&(open.key, first));
        self.undecided = self.undecided.saturating_sub(u64::from(open.place.count));
        self.dirty_open.remove(&first);
        self.gone.push(Gone::Open(first));
        Some(open)
    }

    /// What is open, for whoever has to know after a restart: transaction, first number and records.
    pub(super) fn open(&self) -> impl Iterator<Item = (TransactionId, RecordNumber, u32)> {
        self.open
            .values()
            .map(|open| (open.key, open.place.first_number, open.place.count))
    }

    /// A record got its offset (S1).
    pub(super) fn published(&mut self, number: RecordNumber, offset: Offset) {
        let (chunk, at) = chunk_of(number);
        let Some(chunk) = self.chunks.get_mut(&chunk) else {
            return;
        };
        if chunk.state(at) == Some(State::Waiting) {
            chunk.set(at, State::Published);
            self.waiting = self.waiting.saturating_sub(1);
        }
        chunk.published_end = chunk.published_end.max(Offset(offset.0.saturating_add(1)));
        chunk.answer_end = chunk.answer_end.max(chunk.published_end);
    }

    /// A record is not wanted any more (S1). `end` is one past the last offset given so far.
    pub(super) fn dropped(&mut self, number: RecordNumber, end: Offset) {
        let (chunk, at) = chunk_of(number);
        let Some(chunk) = self.chunks.get_mut(&chunk) else {
            return;
        };
        if chunk.state(at) == Some(State::Waiting) {
            chunk.set(at, State::Dropped);
            self.waiting = self.waiting.saturating_sub(1);
            chunk.answer_end = chunk.answer_end.max(Offset(end.0.saturating_add(1)));
        }
    }

    /// A record is due at another time.
    pub(super) fn reschedule(&mut self, number: RecordNumber, change: Override) {
        let (chunk, at) = chunk_of(number);
        if let Some(chunk) = self.chunks.get_mut(&chunk)
            && chunk
                .overrides
                .get(&at)
                .is_none_or(|known| known.version <= change.version)
        {
            chunk.overrides.insert(at, change);
            chunk.dirty = true;
        }
    }

    fn run_of(&mut self, number: RecordNumber) -> Option<(RecordNumber, &mut Bodies)> {
        self.clock += 1;
        let clock = self.clock;
        let (first, run) = self.runs.range_mut(..=number).next_back()?;
        if number >= run.end {
            return None;
        }
        run.touched = clock;
        Some((*first, run))
    }

    /// Where a record lies.
    pub(super) fn place(&mut self, number: RecordNumber) -> Lookup<StoredPlace> {
        let Some((first, run)) = self.run_of(number) else {
            return Lookup::Nothing;
        };
        let Some(places) = &run.places else {
            return Lookup::Load(first);
        };
        let at = places.partition_point(|place| place.end() <= number);
        match places.get(at) {
            Some(place) if place.first_number <= number => Lookup::Known(*place),
            Some(_) | None => Lookup::Nothing,
        }
    }

    /// When a record is (or was) due; none for one that is not delayed.
    pub(super) fn due(&mut self, number: RecordNumber) -> Lookup<Option<WallMs>> {
        if let Some(change) = self.change(number) {
            return Lookup::Known(Some(change.due));
        }
        let Some((first, run)) = self.run_of(number) else {
            return Lookup::Nothing;
        };
        let (Some(places), Some(dues)) = (&run.places, &run.dues) else {
            return Lookup::Load(first);
        };
        let mut before = 0usize;
        for place in places {
            let Some(index) = number.0.checked_sub(place.first_number.0) else {
                return Lookup::Nothing;
            };
            if number < place.end() {
                let due = usize::try_from(index)
                    .ok()
                    .and_then(|index| dues.get(before + index));
                return Lookup::Known(due.copied().filter(|due| *due != i64::MIN).map(WallMs));
            }
            before += usize::try_from(place.count).unwrap_or(usize::MAX);
        }
        Lookup::Nothing
    }

    /// Records that wait for their time, from `from` on: up to the end of a run of bodies, with the
    /// number to go on from, if there are more.
    pub(super) fn pending_from(
        &mut self,
        from: RecordNumber,
        due_from: WallMs,
    ) -> Lookup<(Vec<Pending>, Option<RecordNumber>)> {
        self.clock += 1;
        let clock = self.clock;
        let starts = self
            .runs
            .range(..=from)
            .next_back()
            .filter(|(_, run)| from < run.end)
            .map(|(first, _)| *first);
        let first = starts.or_else(|| self.runs.range(from..).next().map(|(first, _)| *first));
        let Some(first) = first else {
            return Lookup::Nothing;
        };
        let next = self
            .runs
            .range(RecordNumber(first.0.saturating_add(1))..)
            .next()
            .map(|(next, _)| *next);
        let Some(run) = self.runs.get(&first) else {
            return Lookup::Nothing;
        };
        let end = run.end;
        let anything = self.waits_within(first, end)
            && (run.latest_due >= due_from || self.has_overrides(first, end));
        if !anything {
            return Lookup::Known((Vec::new(), next));
        }
        if let Some(run) = self.runs.get_mut(&first) {
            run.touched = clock;
        }
        let Some(run) = self.runs.get(&first) else {
            return Lookup::Nothing;
        };
        let (Some(places), Some(dues)) = (&run.places, &run.dues) else {
            return Lookup::Load(first);
        };
        let numbers = places
            .iter()
            .flat_map(|place| (place.first_number.0..place.end().0).map(RecordNumber));
        let found = numbers
            .zip(dues)
            .filter(|(number, _)| *number >= from)
            .filter_map(|(number, due)| {
                let (chunk, at) = chunk_of(number);
                let chunk = self.chunks.get(&chunk)?;
                if chunk.state(at) != Some(State::Waiting) || self.is_undecided(number) {
                    return None;
                }
                let change = chunk.overrides.get(&at);
                let due = change.map_or(*due, |change| change.due.0);
                (due != i64::MIN).then_some(Pending {
                    number,
                    version: change.map_or(0, |change| change.version),
                    due: WallMs(due),
                })
            })
            .collect();
        Lookup::Known((found, next))
    }

    fn chunks_within(
        &self,
        first: RecordNumber,
        end: RecordNumber,
    ) -> impl Iterator<Item = &Chunk> {
        let last = end.0.saturating_sub(1).max(first.0) / CHUNK_NUMBERS;
        self.chunks
            .range(first.0 / CHUNK_NUMBERS..=last)
            .map(|(_, chunk)| chunk)
    }

    fn waits_within(&self, first: RecordNumber, end: RecordNumber) -> bool {
        self.chunks_within(first, end)
            .any(|chunk| chunk.waiting > 0)
    }

    fn has_overrides(&self, first: RecordNumber, end: RecordNumber) -> bool {
        self.chunks_within(first, end)
            .any(|chunk| !chunk.overrides.is_empty())
    }

    /// Forgets what nobody is told about any more.
    pub(super) fn trim(&mut self, start: Offset) {
        let over: Vec<u64> = self
            .chunks
            .iter()
            .filter(|(_, chunk)| chunk.waiting == 0 && chunk.answer_end <= start)
            .map(|(id, _)| *id)
            .collect();
        for id in &over {
            self.forget_chunk(*id);
        }
        if !over.is_empty() {
            self.forget_bodies();
        }
    }

    fn forget_chunk(&mut self, id: u64) {
        if let Some(chunk) = self.chunks.remove(&id) {
            self.waiting = self.waiting.saturating_sub(u64::from(chunk.waiting));
            self.gone.push(Gone::Chunk(id));
        }
    }

    fn forget_bodies(&mut self) {
        let idle: Vec<RecordNumber> = self
            .runs
            .iter()
            .filter(|(first, run)| self.chunks_within(**first, run.end).next().is_none())
            .map(|(first, _)| *first)
            .collect();
        for first in idle {
            self.runs.remove(&first);
            self.gone.push(Gone::Bodies(first));
        }
    }

    /// Whether something stored in this part of the log is still needed: by whole runs.
    pub(super) fn needs(&self, from: LogPosition, end: LogPosition, start: Offset) -> bool {
        self.runs
            .iter()
            .filter(|(_, run)| run.position < end && run.positions_end > from)
            .any(|(first, run)| {
                self.chunks_within(*first, run.end)
                    .any(|chunk| chunk.waiting > 0 || chunk.published_end > start)
            })
    }

    // What must be handed to the wheel later.

    /// The alarms of these records are not handed over yet.
    pub(super) fn unarmed(&mut self, first: RecordNumber, end: RecordNumber) {
        let last = end.0.saturating_sub(1).max(first.0) / CHUNK_NUMBERS;
        for (_, chunk) in self.chunks.range_mut(first.0 / CHUNK_NUMBERS..=last) {
            chunk.unarmed = true;
            chunk.handed = None;
            chunk.dirty = true;
        }
    }

    /// No alarm of those that wait can be relied on.
    pub(super) fn all_unarmed(&mut self) {
        for chunk in self.chunks.values_mut().filter(|chunk| chunk.waiting > 0) {
            chunk.unarmed = true;
            chunk.handed = None;
            chunk.dirty = true;
        }
    }

    /// What was handed over and is not safe yet may have been lost.
    pub(super) fn hand_over_again(&mut self) {
        for chunk in self.chunks.values_mut() {
            chunk.handed = None;
        }
    }

    /// What was handed over before a round that is marked by now is safe. Whether there is any.
    pub(super) fn marked(&mut self, marked: u64) -> bool {
        let mut safe = false;
        for chunk in self.chunks.values_mut() {
            if chunk.handed.is_some_and(|round| marked > round) {
                chunk.handed = None;
                chunk.unarmed = false;
                chunk.dirty = true;
                safe = true;
            }
        }
        safe
    }

    /// How many chunks have alarms to hand over.
    pub(super) fn unarmed_chunks(&self) -> usize {
        let unarmed = |chunk: &&Chunk| chunk.unarmed && chunk.handed.is_none();
        self.chunks.values().filter(unarmed).count()
    }

    /// The numbers of the first chunk that has alarms to hand over.
    pub(super) fn first_unarmed(&self) -> Option<(RecordNumber, RecordNumber)> {
        let id = self
            .chunks
            .iter()
            .find(|(_, chunk)| chunk.unarmed && chunk.handed.is_none())
            .map(|(id, _)| *id)?;
        Some((
            RecordNumber(id.saturating_mul(CHUNK_NUMBERS)),
            RecordNumber((id + 1).saturating_mul(CHUNK_NUMBERS)),
        ))
    }

    /// The chunk that starts here has been handed over, in `round` or the one after it.
    pub(super) fn armed(&mut self, first: RecordNumber, round: u64) {
        if let Some(chunk) = self.chunks.get_mut(&(first.0 / CHUNK_NUMBERS)) {
            chunk.handed = Some(round);
        }
    }

    /// The first number of the batch that holds `number`, or of the first one behind it.
    pub(super) fn batch_start(&mut self, number: RecordNumber) -> RecordNumber {
        match self.place(number) {
            Lookup::Known(place) => place.first_number,
            Lookup::Load(_) | Lookup::Nothing => number,
        }
    }
}

#[cfg(test)]
mod tests;

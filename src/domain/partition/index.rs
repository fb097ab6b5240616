//! The index of a partition: which batch holds an offset, and where it lies.
//!
//! Batches are kept in runs of [`RUN_BATCHES`]; a run is a row of the view. The last run and those not
//! yet written are in memory, of older ones only a summary (a run's first offset, times, bytes); a
//! reader of old records has them loaded again. So memory grows with the backlog by about 100 bytes a
//! run, not a batch.
//!
//! A place is a whole batch, or records of a batch stored earlier that were published by reference (a
//! timer fired, a transaction committed): [`Reference`].
//!
//! # Layout of a run's row
//!
//! Without references: a MessagePack array of places, each an array of its seven fields. With one: the
//! byte 0xc1 (which MessagePack never uses), the byte 1, then packed numbers: how many
//! places; the first offset of the first; and of each place: count, distance of its first number from
//! the end of the one before (from 0), distance of its position from the one before (from 0), length,
//! distance of its append time from the one before (from 0), flags (1 a reference, 2 a due time, 4 a tag
//! summary, 8 a first offset that does not follow the place before); with 8 that offset's distance from
//! the end of the one before, with 1 index, payload's count, distance of the stored time from the one
//! before (from 0), with 2 distance of the due time from the append time, with 4 eight bytes
//! little-endian.
//!
//! - I1 The runs cover every offset from the start offset to the end, without hole or overlap.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::packed::{Reader, Writer};
use crate::domain::entry::EntryPlace;
use crate::domain::id::{LogPosition, Offset, RecordNumber};
use crate::domain::time::WallMs;

/// Batches in a full run: a row of about 10 kB.
pub const RUN_BATCHES: usize = 512;

/// Loaded runs that are kept beside the last one when they are already written.
const RUNS_KEPT: usize = 4;

/// One published batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchPlace {
    /// The offset of its first record.
    pub first_offset: Offset,
    /// How many records it publishes.
    pub count: u32,
    /// The number of its first record.
    pub first_number: RecordNumber,
    /// Where its entry's frame starts.
    pub position: LogPosition,
    /// The frame's length.
    pub length: u32,
    /// When it was appended.
    pub appended: WallMs,
    /// Bloom summary of its tags.
    pub tags: u64,
    /// None: the payload at `position` is this batch, whole. Otherwise only some of its records are
    /// meant: see there.
    #[serde(skip)]
    pub reference: Option<Reference>,
}

/// Records published by reference to a payload that was stored earlier: those from `index` on, as many
/// as the place counts. Their record numbers are consecutive, like their offsets; the place's `appended`
/// is when they were published, from when retention counts (and, where they were delayed, when they
/// fired).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// The index of the first record within the payload.
    pub index: u32,
    /// How many records the payload has.
    pub of: u32,
    /// When the payload was appended.
    pub stored: WallMs,
    /// When they were due, where they were delayed.
    pub due: Option<WallMs>,
}

impl BatchPlace {
    /// Whether the payload is wanted whole, so that it can be served untouched.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.reference
            .is_none_or(|reference| reference.index == 0 && reference.of == self.count)
    }

    /// The index within its payload of the record `skip` behind the place's first.
    #[must_use]
    pub fn record(&self, skip: u32) -> usize {
        let first = self.reference.map_or(0, |reference| reference.index);
        usize::try_from(first.saturating_add(skip)).unwrap_or(usize::MAX)
    }

    /// Its bytes in the log: of a reference its part of the payload's frame.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let length = u64::from(self.length);
        match self.reference {
            Some(reference) if reference.of > self.count => {
                length * u64::from(self.count) / u64::from(reference.of)
            }
            Some(_) | None => length,
        }
    }

    /// One past its last offset.
    #[must_use]
    pub fn end(&self) -> Offset {
        Offset(self.first_offset.0.saturating_add(u64::from(self.count)))
    }

    /// Where to read it.
    #[must_use]
    pub fn place(&self) -> EntryPlace {
        EntryPlace {
            position: self.position,
            length: self.length,
        }
    }
}

#[derive(Debug, Clone)]
struct Run {
    end: Offset,
    last_appended: WallMs,
    bytes: u64,
    batches: Option<Arc<Vec<BatchPlace>>>,
    dirty: bool,
    /// When it was last asked for, in the index's own count of questions.
    touched: u64,
}

/// What the index answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The batches from the one that holds the offset on, up to the end of its run.
    Batches(Arc<Vec<BatchPlace>>, usize),
    /// The run that starts here must be loaded first.
    Load(Offset),
    /// At or beyond the end.
    Nothing,
}

/// The index of one partition lane.
#[derive(Debug, Clone, Default)]
pub struct Index {
    runs: BTreeMap<Offset, Run>,
    bytes: u64,
    clock: u64,
}

impl Index {
    /// Bytes of the batches indexed, as framed in the log.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many runs there are, loaded or not.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Adds the batch that follows the last one (I1). One that is there already is left alone: a row
    /// may have been written after the head it is folded from.
    pub fn push(&mut self, batch: BatchPlace) {
        if self
            .runs
            .values()
            .next_back()
            .is_some_and(|last| batch.first_offset < last.end)
        {
            return;
        }
        self.bytes = self.bytes.saturating_add(batch.bytes());
        if let Some(mut last) = self.runs.last_entry() {
            let run = last.get_mut();
            if let Some(batches) = &mut run.batches
                && batches.len() < RUN_BATCHES
            {
                Arc::make_mut(batches).push(batch);
                run.end = batch.end();
                run.last_appended = batch.appended;
                run.bytes = run.bytes.saturating_add(batch.bytes());
                run.dirty = true;
                return;
            }
        }
        self.insert(vec![batch], true);
    }

    fn insert(&mut self, batches: Vec<BatchPlace>, dirty: bool) {
        let (Some(first), Some(last)) = (batches.first().copied(), batches.last().copied()) else {
            return;
        };
        let bytes = batches.iter().map(BatchPlace::bytes).sum();
        self.runs.insert(
            first.first_offset,
            Run {
                end: last.end(),
                last_appended: last.appended,
                bytes,
                batches: Some(Arc::new(batches)),
                dirty,
                touched: self.clock,
            },
        );
    }

    /// A batch was moved in the log: its later position wins.
    /// Returns the run to load first if the batch's run is not in memory.
    pub fn moved(&mut self, offset: Offset, place: EntryPlace) -> Option<Offset> {
        let (first, run) = self.runs.range_mut(..=offset).next_back()?;
        let Some(batches) = &mut run.batches else {
            return Some(*first);
        };
        let batches = Arc::make_mut(batches);
        if let Ok(at) = batches.binary_search_by_key(&offset, |batch| batch.first_offset)
            && let Some(batch) = batches.get_mut(at)
            && batch.reference.is_none()
            && batch.position < place.position
        {
            batch.position = place.position;
            run.dirty = true;
        }
        None
    }

    /// The batches from `offset` on.
    pub fn find(&mut self, offset: Offset) -> Found {
        self.clock += 1;
        let Some((first, run)) = self.runs.range_mut(..=offset).next_back() else {
            return Found::Nothing;
        };
        let first = *first;
        if offset >= run.end {
            return match self.runs.range(offset..).next() {
                // A hole (damage took the batches): go on with what follows.
                Some((next, _)) => {
                    let next = *next;
                    self.find(next)
                }
                None => Found::Nothing,
            };
        }
        run.touched = self.clock;
        match &run.batches {
            Some(batches) => {
                let at = batches.partition_point(|batch| batch.end() <= offset);
                Found::Batches(Arc::clone(batches), at)
            }
            None => Found::Load(first),
        }
    }

    /// The first offset appended at or after `time`.
    pub fn find_time(&mut self, time: WallMs) -> Found {
        self.clock += 1;
        let hit = self
            .runs
            .iter_mut()
            .find(|(_, run)| run.last_appended >= time);
        let Some((first, run)) = hit else {
            return Found::Nothing;
        };
        run.touched = self.clock;
        let Some(batches) = &run.batches else {
            return Found::Load(*first);
        };
        let at = batches.partition_point(|batch| batch.appended < time);
        Found::Batches(Arc::clone(batches), at)
    }

    /// Takes in a run as its row has it, for instance after [`Found::Load`]; keeps memory bounded by
    /// letting go of others. Says whether it is the run: a row that does not reach as far as the run
    /// does was written before it was full, and what followed was lost.
    pub fn load(&mut self, batches: &[BatchPlace]) -> bool {
        let (Some(first), Some(end)) = (
            batches.first().map(|batch| batch.first_offset),
            batches.last().map(BatchPlace::end),
        ) else {
            return false;
        };
        if self.runs.get(&first).is_some_and(|run| run.end != end) {
            return false;
        }
        // The one just loaded is the last to go, or its asker would have it loaded again, for ever.
        self.clock += 1;
        if let Some(run) = self.runs.get_mut(&first) {
            if run.batches.is_none() {
                run.batches = Some(Arc::new(batches.to_vec()));
            }
            run.touched = self.clock;
        }
        self.shed();
        true
    }

    /// Takes in a run at the start of an incarnation.
    pub fn restore(&mut self, batches: Vec<BatchPlace>) {
        self.bytes = self
            .bytes
            .saturating_add(batches.iter().map(BatchPlace::bytes).sum());
        // Rows come in order, so only the last of them stays in memory.
        if let Some(mut last) = self.runs.last_entry()
            && !last.get().dirty
        {
            last.get_mut().batches = None;
        }
        self.insert(batches, false);
    }

    /// Lets go of written runs beyond the last one and the few used last.
    pub fn shed(&mut self) {
        let Some(last) = self.runs.keys().next_back().copied() else {
            return;
        };
        let mut clean: Vec<(u64, Offset)> = self
            .runs
            .iter()
            .filter(|(first, run)| **first != last && run.batches.is_some() && !run.dirty)
            .map(|(first, run)| (run.touched, *first))
            .collect();
        if clean.len() <= RUNS_KEPT {
            return;
        }
        clean.sort_unstable();
        let surplus = clean.len() - RUNS_KEPT;
        for (_, first) in clean.into_iter().take(surplus) {
            if let Some(run) = self.runs.get_mut(&first) {
                run.batches = None;
            }
        }
    }

    /// The runs changed since the last call, to be written as rows.
    pub fn take_dirty(&mut self) -> Vec<(Offset, Arc<Vec<BatchPlace>>)> {
        let mut dirty = Vec::new();
        for (first, run) in &mut self.runs {
            if run.dirty
                && let Some(batches) = &run.batches
            {
                dirty.push((*first, Arc::clone(batches)));
                run.dirty = false;
            }
        }
        self.shed();
        dirty
    }

    /// Drops every batch that ends at or below `start`. Returns the runs dropped as a whole.
    /// The run that straddles keeps its row: what lies below the start offset is simply not served.
    pub fn trim(&mut self, start: Offset) -> Vec<Offset> {
        let gone: Vec<Offset> = self
            .runs
            .iter()
            .take_while(|(_, run)| run.end <= start)
            .map(|(first, _)| *first)
            .collect();
        for first in &gone {
            if let Some(run) = self.runs.remove(first) {
                self.bytes = self.bytes.saturating_sub(run.bytes);
            }
        }
        gone
    }

    /// Up to where records are older than `before`, or not needed to keep at least `bytes_kept`: the new
    /// start offset, by whole batches where the run is loaded, else by whole runs.
    #[must_use]
    pub fn expired(&self, before: Option<WallMs>, bytes_kept: Option<u64>) -> Option<Offset> {
        let mut start = None;
        let mut left = self.bytes;
        for run in self.runs.values() {
            let old = |appended: WallMs| before.is_some_and(|before| appended < before);
            let enough = |left: u64| bytes_kept.is_some_and(|kept| left >= kept);
            if old(run.last_appended) || enough(left.saturating_sub(run.bytes)) {
                start = Some(run.end);
                left = left.saturating_sub(run.bytes);
                continue;
            }
            for batch in run.batches.iter().flat_map(|batches| batches.iter()) {
                let without = left.saturating_sub(batch.bytes());
                if !old(batch.appended) && !enough(without) {
                    break;
                }
                start = Some(batch.end());
                left = without;
            }
            break;
        }
        start
    }

    /// Everything indexed, for comparison; runs that are not loaded as their bounds.
    #[must_use]
    pub fn bounds(&self) -> Vec<(Offset, Offset)> {
        self.runs
            .iter()
            .map(|(first, run)| (*first, run.end))
            .collect()
    }
}

/// The first byte of a packed run.
const PACKED: u8 = 0xc1;
const PACKED_VERSION: u8 = 1;
const REFERENCE: u8 = 1;
const DUE: u8 = 2;
const TAGS: u8 = 4;
const APART: u8 = 8;

/// The row of a run.
#[must_use]
pub fn encode_run(run: &Vec<BatchPlace>) -> Bytes {
    if run.iter().all(|place| place.reference.is_none()) {
        return super::rows::encode(run);
    }
    let mut writer = Writer::default();
    writer.byte(PACKED);
    writer.byte(PACKED_VERSION);
    writer.number(run.len() as u64);
    let first = run.first().map_or(Offset(0), |place| place.first_offset);
    writer.number(first.0);
    let (mut next, mut number, mut position) = (first.0, 0u64, 0u64);
    let (mut appended, mut stored) = (0i64, 0i64);
    for place in run {
        writer.number(u64::from(place.count));
        writer.step(number, place.first_number.0);
        number = place.first_number.0.wrapping_add(u64::from(place.count));
        writer.step(position, place.position.0);
        writer.number(u64::from(place.length));
        writer.signed_step(appended, place.appended.0);
        (position, appended) = (place.position.0, place.appended.0);
        let due = place.reference.and_then(|reference| reference.due);
        let flag = |is: bool, bit: u8| if is { bit } else { 0 };
        writer.byte(
            flag(place.reference.is_some(), REFERENCE)
                | flag(due.is_some(), DUE)
                | flag(place.tags != 0, TAGS)
                | flag(place.first_offset.0 != next, APART),
        );
        if place.first_offset.0 != next {
            writer.step(next, place.first_offset.0);
        }
        next = place.end().0;
        if let Some(reference) = place.reference {
            writer.number(u64::from(reference.index));
            writer.number(u64::from(reference.of));
            writer.signed_step(stored, reference.stored.0);
            stored = reference.stored.0;
        }
        if let Some(due) = due {
            writer.signed_step(place.appended.0, due.0);
        }
        if place.tags != 0 {
            writer.word(place.tags);
        }
    }
    Bytes::from(writer.0)
}

/// Reads the row of a run, packed or not.
#[must_use]
pub fn decode_run(value: &[u8]) -> Option<Vec<BatchPlace>> {
    match value {
        [PACKED, PACKED_VERSION, packed @ ..] => decode_packed(packed),
        _ => rmp_serde::from_slice(value).ok(),
    }
}

fn decode_packed(packed: &[u8]) -> Option<Vec<BatchPlace>> {
    let mut reader = Reader(packed);
    let count = usize::try_from(reader.number()?).ok()?;
    let mut next = reader.number()?;
    // Nothing is allocated for what a wrong count promises: a place has six bytes at least.
    let mut run = Vec::with_capacity(count.min(packed.len() / 6));
    let (mut number, mut position) = (0u64, 0u64);
    let (mut appended, mut stored) = (0i64, 0i64);
    for _ in 0..count {
        let count = reader.short()?;
        let first_number = reader.step(number)?;
        number = first_number.wrapping_add(u64::from(count));
        position = reader.step(position)?;
        let length = reader.short()?;
        appended = reader.signed_step(appended)?;
        let flags = reader.byte()?;
        if flags & APART != 0 {
            next = reader.step(next)?;
        }
        let mut reference = None;
        if flags & REFERENCE != 0 {
            let (index, of) = (reader.short()?, reader.short()?);
            stored = reader.signed_step(stored)?;
            reference = Some(Reference {
                index,
                of,
                stored: WallMs(stored),
                due: None,
            });
        }
        if flags & DUE != 0 {
            reference.as_mut()?.due = Some(WallMs(reader.signed_step(appended)?));
        }
        let tags = if flags & TAGS != 0 { reader.word()? } else { 0 };
        let place = BatchPlace {
            first_offset: Offset(next),
            count,
            first_number: RecordNumber(first_number),
            position: LogPosition(position),
            length,
            appended: WallMs(appended),
            tags,
            reference,
        };
        next = place.end().0;
        run.push(place);
    }
    reader.is_at_end().then_some(run)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_place() -> impl Strategy<Value = BatchPlace> {
        let reference = (
            any::<u32>(),
            any::<u32>(),
            any::<i64>(),
            proptest::option::of(any::<i64>().prop_map(WallMs)),
        )
            .prop_map(|(index, of, stored, due)| Reference {
                index,
                of,
                stored: WallMs(stored),
                due,
            });
        (
            (any::<u64>(), any::<u32>(), any::<u64>()),
            (any::<u64>(), any::<u32>(), any::<i64>()),
            prop_oneof![Just(0u64), any::<u64>()],
            proptest::option::of(reference),
        )
            .prop_map(
                |((offset, count, number), (position, length, appended), tags, reference)| {
                    BatchPlace {
                        first_offset: Offset(offset),
                        count,
                        first_number: RecordNumber(number),
                        position: LogPosition(position),
                        length,
                        appended: WallMs(appended),
                        tags,
                        reference,
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn a_run_reads_as_it_was_written(run in proptest::collection::vec(any_place(), 0..30)) {
            prop_assert_eq!(decode_run(&encode_run(&run)), Some(run));
        }

        #[test]
        fn reading_any_bytes_as_a_packed_run_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode_run(&bytes);
            let bytes: Vec<u8> = [PACKED, PACKED_VERSION].into_iter().chain(bytes).collect();
            let _ = decode_run(&bytes);
        }
    }

    #[test]
    fn a_packed_run_is_written_as_ever() {
        let fired = |offset, number, due| BatchPlace {
            reference: Some(Reference {
                index: 3,
                of: 100,
                stored: WallMs(1_700_000_000_000),
                due: Some(WallMs(due)),
            }),
            position: LogPosition(1 << 33),
            length: 4_242,
            first_number: RecordNumber(number),
            appended: WallMs(1_700_000_060_001),
            ..batch(offset)
        };
        let run = vec![
            batch(500),
            fired(501, 40, 1_700_000_060_000),
            fired(502, 39, 1_700_000_060_001),
        ];
        let hex: String = encode_run(&run)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hex, PACKED_GOLDEN);
    }

    const PACKED_GOLDEN: &str = "c10103f40301e807a08d06640000019907e0f2f9ff3f9221c2c9b2fef96203036480a0abfef962010103009221000303640000";

    fn batch(offset: u64) -> BatchPlace {
        BatchPlace {
            first_offset: Offset(offset),
            count: 1,
            first_number: RecordNumber(offset),
            position: LogPosition(offset * 100),
            length: 100,
            appended: WallMs(0),
            tags: 0,
            reference: None,
        }
    }

    /// A view that could not be written any more has the run as it was when it last could.
    #[test]
    fn a_row_from_before_the_run_was_full_is_not_the_run() {
        let run = RUN_BATCHES as u64;
        let mut index = Index::default();
        (0..run * (RUNS_KEPT as u64 + 2))
            .map(batch)
            .for_each(|batch| index.push(batch));
        let rows = index.take_dirty();
        let (first, whole) = rows.first().unwrap();
        assert_eq!(index.find(*first), Found::Load(*first));
        assert!(!index.load(&[]));
        assert!(!index.load(whole.split_last().unwrap().1));
        assert_eq!(
            index.find(Offset(run - 1)),
            Found::Load(*first),
            "nothing half is answered from"
        );
        assert!(index.load(whole));
        assert_eq!(
            index.find(Offset(run - 1)),
            Found::Batches(Arc::clone(whole), RUN_BATCHES - 1)
        );
    }
}

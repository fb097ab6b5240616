//! The ledger against the entries themselves: whatever it lets go of, what is left still tells every
//! owner's state; and it lets go of everything else.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of a test are small"
)]

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::Step as Todo;
use super::{Ledger, SegmentNumber};
use crate::domain::commit::OwnerRange;
use crate::domain::entry::{EntryHeader, EntryKind};
use crate::domain::id::{
    LogIndex, LogPosition, Offset, OwnerId, OwnerSequence, RecordNumber, Term,
};
use crate::domain::time::WallMs;

const ENTRIES_PER_SEGMENT: usize = 6;
const OWNERS: u64 = 4;

#[derive(Debug, Clone)]
enum Step {
    Payload {
        owner: u64,
        records: u32,
    },
    State {
        owner: u64,
    },
    /// The owner restates itself without having been asked: so many rows.
    Snapshot {
        owner: u64,
        rows: usize,
    },
    /// Retention takes so many of the records in 256 that there are.
    Trim {
        owner: u64,
        part: u64,
    },
    Delete {
        owner: u64,
    },
    Mark,
    /// One thing the ledger asks for is done.
    Work {
        which: usize,
    },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let owner = || 0..OWNERS;
    prop_oneof![
        20 => (owner(), 1u32..4).prop_map(|(owner, records)| Step::Payload { owner, records }),
        5 => owner().prop_map(|owner| Step::State { owner }),
        2 => (owner(), 1usize..4).prop_map(|(owner, rows)| Step::Snapshot { owner, rows }),
        6 => (owner(), 0u64..=256).prop_map(|(owner, part)| Step::Trim { owner, part }),
        1 => owner().prop_map(|owner| Step::Delete { owner }),
        4 => Just(Step::Mark),
        10 => (0usize..8).prop_map(|which| Step::Work { which }),
        1 => Just(Step::Restart),
    ]
}

#[derive(Default, Clone, Copy)]
struct Truth {
    sequence: u64,
    end: u64,
    start: u64,
}

/// A log of headers only, with what is true of its owners.
struct World {
    ledger: Ledger,
    /// Entries that are still there, by segment; with the range where one deletes.
    segments: BTreeMap<SegmentNumber, Vec<(EntryHeader, Option<OwnerRange>)>>,
    current: SegmentNumber,
    mark: LogPosition,
    owners: BTreeMap<u64, Truth>,
    /// Each slot's owner; one that is deleted is followed by another.
    slots: [u64; OWNERS as usize],
    next_owner: u64,
}

fn end_of(segment: SegmentNumber) -> LogPosition {
    LogPosition((segment + 1) * 1_000)
}

impl World {
    fn new() -> Self {
        let first = OwnerId::FIRST_FREE.0;
        Self {
            ledger: Ledger::default(),
            segments: BTreeMap::from([(0, Vec::new())]),
            current: 0,
            mark: LogPosition(0),
            owners: (first..first + OWNERS)
                .map(|id| (id, Truth::default()))
                .collect(),
            slots: std::array::from_fn(|at| first + at as u64),
            next_owner: first + OWNERS,
        }
    }

    fn roll(&mut self) {
        self.ledger.closed(self.current, end_of(self.current));
        self.current += 1;
        self.segments.insert(self.current, Vec::new());
    }

    fn append(&mut self, owner: u64, kind: EntryKind, records: u32, tied: bool) {
        let truth = self.owners.entry(owner).or_default();
        truth.sequence += 1;
        let header = EntryHeader {
            kind,
            tied_to_next: tied,
            moved: false,
            index: LogIndex(0),
            term: Term(1),
            owner: OwnerId(owner),
            sequence: OwnerSequence(truth.sequence),
            first_number: RecordNumber(truth.end),
            first_offset: Offset(truth.end),
            numbers: records,
            offsets: records,
            appended: WallMs(0),
            wall: WallMs(0),
        };
        truth.end += u64::from(records);
        self.ledger.appended(self.current, &header);
        self.segments
            .entry(self.current)
            .or_default()
            .push((header, None));
        let is_full = self.segments[&self.current].len() >= ENTRIES_PER_SEGMENT;
        if is_full && !tied {
            self.roll();
        }
    }

    fn snapshot(&mut self, owner: u64, rows: usize) {
        (1..=rows).for_each(|row| self.append(owner, EntryKind::Snapshot, 0, row < rows));
    }

    fn trim(&mut self, owner: u64, start: u64) {
        self.append(owner, EntryKind::State, 0, false);
        let truth = self.owners.get_mut(&owner).expect("a slot's owner");
        truth.start = truth.start.max(start);
        self.ledger.trimmed(OwnerId(owner), Offset(truth.start));
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Payload { owner, records } => {
                self.append(
                    self.slots[owner as usize],
                    EntryKind::Payload,
                    records,
                    false,
                );
            }
            Step::State { owner } => {
                self.append(self.slots[owner as usize], EntryKind::State, 0, false)
            }
            Step::Snapshot { owner, rows } => self.snapshot(self.slots[owner as usize], rows),
            Step::Trim { owner, part } => {
                let owner = self.slots[owner as usize];
                let truth = self.owners[&owner];
                self.trim(owner, truth.start + (truth.end - truth.start) * part / 256);
            }
            Step::Delete { owner } => self.delete(owner as usize),
            Step::Mark => {
                self.mark = end_of(self.current - 1.min(self.current));
                self.append(OwnerId::LOG.0, EntryKind::Mark, 0, false);
                self.ledger.marked(self.mark);
            }
            Step::Work { which } => {
                let steps = self.ledger.steps();
                if let Some(step) = steps.get(which % steps.len().max(1)) {
                    self.work(*step);
                }
            }
            Step::Restart => self.restart(),
        }
    }

    fn delete(&mut self, slot: usize) {
        let owner = self.slots[slot];
        let segment = self.current;
        self.append(OwnerId::DIRECTORY.0, EntryKind::Delete, 0, false);
        let range = OwnerRange {
            first: OwnerId(owner),
            count: 1,
        };
        let entries = self.segments.get_mut(&segment).expect("just appended to");
        entries.last_mut().expect("just appended").1 = Some(range);
        self.ledger.deleted(range);
        self.owners.remove(&owner);
        self.slots[slot] = self.next_owner;
        self.owners.insert(self.next_owner, Truth::default());
        self.next_owner += 1;
    }

    fn work(&mut self, step: Todo) {
        match step {
            Todo::Restate(owner) => self.snapshot(owner.0, 2),
            Todo::Inspect(segment, owner) => self.ledger.released(segment, owner),
            Todo::Recycle(segment) => {
                assert!(
                    end_of(segment) <= self.mark,
                    "L1: the views do not hold segment {segment}"
                );
                self.segments.remove(&segment).expect("L1: it is there");
                self.ledger.recycled(segment);
                self.check();
            }
        }
    }

    /// L1: from what is left every owner's state can be told.
    fn check(&self) {
        let left: Vec<&EntryHeader> = self.segments.values().flatten().map(|(h, _)| h).collect();
        for (id, truth) in &self.owners {
            if *id == OwnerId::LOG.0 {
                continue;
            }
            let mine: Vec<_> = left.iter().filter(|header| header.owner.0 == *id).collect();
            // The last complete run of snapshots stands for all before it.
            let mut from = 1;
            let mut run = None;
            for header in &mine {
                if header.kind != EntryKind::Snapshot {
                    run = None;
                    continue;
                }
                let first = *run.get_or_insert(header.sequence.0);
                if !header.tied_to_next {
                    from = first;
                    run = None;
                }
            }
            let there = |sequence| mine.iter().any(|header| header.sequence.0 == sequence);
            for sequence in from..=truth.sequence {
                assert!(
                    there(sequence),
                    "L1: entry {sequence} of {id} is gone and not restated"
                );
            }
            let payloads = mine
                .iter()
                .filter(|header| header.kind == EntryKind::Payload);
            let records: u64 = payloads
                .map(|header| header.first_offset.0)
                .zip(
                    mine.iter()
                        .filter(|h| h.kind == EntryKind::Payload)
                        .map(|h| u64::from(h.offsets)),
                )
                .map(|(first, count)| (first + count).saturating_sub(first.max(truth.start)))
                .sum();
            assert_eq!(
                records,
                truth.end - truth.start,
                "L1: live records of {id} are gone"
            );
        }
    }

    /// The ledger is made again from what is left, as at a start of the broker.
    fn restart(&mut self) {
        let before = self.ledger.steps();
        self.ledger = Ledger::default();
        for (segment, entries) in &self.segments {
            for (header, range) in entries {
                self.ledger.appended(*segment, header);
                range.iter().for_each(|range| self.ledger.deleted(*range));
            }
            if *segment != self.current {
                self.ledger.closed(*segment, end_of(*segment));
            }
        }
        let range = |id: &u64| OwnerRange {
            first: OwnerId(*id),
            count: 1,
        };
        self.ledger.existing(
            self.slots.iter().map(range).collect(),
            OwnerId(self.next_owner),
        );
        for (id, truth) in &self.owners {
            self.ledger.trimmed(OwnerId(*id), Offset(truth.start));
        }
        self.ledger.marked(self.mark);
        assert_eq!(
            self.ledger.steps(),
            before,
            "a restart forgets or invents something"
        );
    }

    /// Works until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..60 {
            // Traffic goes on, so that segments close and the mark moves.
            (0..ENTRIES_PER_SEGMENT)
                .for_each(|_| self.append(OwnerId::LOG.0, EntryKind::Mark, 0, false));
            self.step(&Step::Mark);
            for step in self.ledger.steps() {
                self.work(step);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// L1, and a restart of the ledger forgets nothing.
    #[test]
    fn what_is_left_always_tells_every_owners_state(steps in vec(step(), 1..300)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.step(&Step::Restart);
    }

    /// L1, L2: in the end only live records, and the last statements of the owners, hold segments.
    #[test]
    fn everything_dead_is_recycled_and_an_idle_owner_holds_only_its_own_segments(
        steps in vec(step(), 1..150),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        let idle = world.slots[0];
        for slot in 1..OWNERS as usize {
            let owner = world.slots[slot];
            world.trim(owner, world.owners[&owner].end);
        }
        world.settle();
        let start = world.owners[&idle].start;
        let is_live = |header: &EntryHeader| {
            header.owner.0 == idle
                && header.kind == EntryKind::Payload
                && header.first_offset.0 + u64::from(header.offsets) > start
        };
        let live = world
            .segments
            .values()
            .filter(|entries| entries.iter().any(|(header, _)| is_live(header)))
            .count();
        // The statements of at most OWNERS + 1 owners circulate at the end of the log.
        let most = live + 2 * (OWNERS as usize + 2);
        let found = world.segments.len();
        prop_assert!(found <= most, "{found} segments, {live} of them live");
    }
}

/// L1: what was stored before it is published holds its segment until its owner lets go, and so does a
/// publication until retention has taken what it published.
#[test]
fn what_is_stored_unpublished_holds_its_segment_until_its_owner_lets_go() {
    let owner = OwnerId(OwnerId::FIRST_FREE.0);
    let header = |kind, sequence, first_offset, offsets| EntryHeader {
        kind,
        tied_to_next: false,
        moved: false,
        index: LogIndex(sequence),
        term: Term(1),
        owner,
        sequence: OwnerSequence(sequence),
        first_number: RecordNumber(0),
        first_offset: Offset(first_offset),
        numbers: u32::from(kind == EntryKind::Payload),
        offsets,
        appended: WallMs(0),
        wall: WallMs(0),
    };
    let mut ledger = Ledger::default();
    ledger.appended(0, &header(EntryKind::Payload, 1, 0, 0));
    ledger.appended(1, &header(EntryKind::Publish, 2, 0, 1));
    ledger.appended(2, &header(EntryKind::Snapshot, 3, 1, 0));
    for segment in 0..2 {
        ledger.closed(segment, LogPosition(segment));
    }
    ledger.marked(LogPosition(10));
    assert_eq!(ledger.steps(), [Todo::Inspect(0, owner)]);
    ledger.released(1, owner);
    assert_eq!(
        ledger.steps(),
        [Todo::Inspect(0, owner)],
        "another segment's"
    );
    ledger.released(0, owner);
    assert_eq!(ledger.steps(), [Todo::Recycle(0)], "it was published");
    ledger.trimmed(owner, Offset(1));
    assert_eq!(ledger.steps(), [Todo::Recycle(0), Todo::Recycle(1)]);
}

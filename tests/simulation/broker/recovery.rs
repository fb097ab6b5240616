//! Recovery as the broker does it: rows that are believed and the log behind them, or the whole log.

use std::collections::BTreeMap;

use bytes::Bytes;
use waterwheel::domain::alarm::Alarm;
use waterwheel::domain::commit::{Counters, OwnerRange};
use waterwheel::domain::entry::{AppliedEntry, EntryKind};
use waterwheel::domain::id::{LogPosition, Offset, OwnerId, OwnerSequence};
use waterwheel::domain::ledger::Ledger;
use waterwheel::domain::partition::index::BatchPlace;
use waterwheel::domain::partition::rows::{RowId, decode_run, encode};
use waterwheel::domain::partition::{Partition, alarms_of};
use waterwheel::domain::time::WallMs;
use waterwheel::domain::topics::{Topic, Topics};
use waterwheel::log::{LogReader, Scanned};

use super::house::LIMITS;
use super::views::{Change, Key, Views};
use super::wheel::find_homes;

pub(crate) struct Recovered {
    pub(crate) views: Views,
    pub(crate) topics: Topics,
    pub(crate) counters: BTreeMap<OwnerId, Counters>,
    pub(crate) starts: BTreeMap<OwnerId, Offset>,
    pub(crate) ledger: Ledger,
    pub(crate) newest: Option<WallMs>,
}

pub(crate) fn partition_changes(owner: OwnerId, machine: &mut Partition) -> Vec<Change> {
    let (_, changes) = machine.take_rows();
    changes
        .into_iter()
        .map(|change| (Key::Partition(owner, change.id), change.value))
        .collect()
}

pub(crate) fn directory_changes(machine: &mut Topics) -> Vec<Change> {
    let Some((head, topics)) = machine.take_rows() else {
        return Vec::new();
    };
    let rows = topics
        .into_iter()
        .map(|(id, value)| (Key::Topic(id), value));
    rows.chain([(Key::DirectoryHead, Some(encode(&head)))])
        .collect()
}

pub(crate) fn no_head(owner: OwnerId) -> Change {
    (Key::Partition(owner, RowId::Head), None)
}

pub(crate) fn run(views: &Views, owner: OwnerId, first: Offset) -> Vec<BatchPlace> {
    let row = views.row(owner, RowId::Run(first));
    row.and_then(|row| decode_run(row)).unwrap_or_default()
}

pub(crate) fn load(views: &Views, owner: OwnerId) -> Partition {
    let rows: BTreeMap<RowId, Bytes> = views.partition(owner);
    let rows = rows.iter().map(|(id, value)| (*id, value.as_ref()));
    Partition::from_rows(LIMITS, rows).expect("rows read")
}

fn entries(reader: &LogReader, from: LogPosition) -> impl Iterator<Item = AppliedEntry> {
    reader.scan(from, None).map(|scanned| match scanned {
        Scanned::Entry {
            header,
            place,
            facts,
            body,
        } => AppliedEntry {
            header,
            place,
            body: body.unwrap_or_default(),
            facts,
        },
        Scanned::Damaged(damage) => panic!("nothing was damaged: {damage}"),
    })
}

/// Folds the log behind the views' mark, writes what came of it and marks it.
pub(crate) fn recover(
    mut views: Views,
    reader: &LogReader,
    end: LogPosition,
    newest: Option<WallMs>,
    now: WallMs,
) -> Recovered {
    let from = views.marked();
    assert!(
        from <= end,
        "the views are marked at {from}, the log ends at {end}"
    );
    let (head, rows) = views.directory();
    let rows = rows.into_iter().map(Bytes::as_ref);
    let mut topics = Topics::from_rows(head.map(Bytes::as_ref), rows).expect("rows read");
    let mut partitions: BTreeMap<OwnerId, Partition> = BTreeMap::new();
    let mut deleted: Vec<OwnerRange> = Vec::new();
    let mut alarms: Vec<Alarm> = Vec::new();
    let mut log_sequence = OwnerSequence(0);
    for entry in entries(reader, from) {
        let owner = entry.header.owner;
        match owner {
            OwnerId::LOG => log_sequence = log_sequence.max(entry.header.sequence),
            OwnerId::DIRECTORY => {
                if entry.header.kind == EntryKind::Delete {
                    let range: OwnerRange = rmp_serde::from_slice(&entry.body).expect("a range");
                    partitions.retain(|owner, _| !range.contains(*owner));
                    deleted.push(range);
                }
                topics.apply(&entry, &mut Vec::new());
            }
            _ if deleted.iter().any(|range| range.contains(owner)) => {}
            _ => {
                alarms.extend(alarms_of(&entry));
                let machine = partitions
                    .entry(owner)
                    .or_insert_with(|| load(&views, owner));
                machine.apply(&entry, &mut Vec::new());
            }
        }
    }
    // What fired or was cancelled behind the mark need not be said due to be ignored.
    alarms.retain(|alarm| {
        let machine = partitions.get(&alarm.owner);
        machine.is_none_or(|machine| machine.stands(alarm))
    });
    find_homes(&mut views, alarms, now.0);
    for (owner, machine) in &mut partitions {
        views.write(partition_changes(*owner, machine));
    }
    views.write(directory_changes(&mut topics));
    let ranges: Vec<OwnerRange> = topics.iter().flat_map(Topic::ranges).collect();
    let (mut counters, mut starts) = (BTreeMap::new(), BTreeMap::new());
    for owner in views.owners() {
        if !ranges.iter().any(|range| range.contains(owner)) {
            views.write(vec![no_head(owner)]);
            continue;
        }
        let head = load(&views, owner).head();
        let (next_number, next_offset) = (head.next_number, head.next_offset);
        counters.insert(
            owner,
            Counters {
                sequence: head.sequence,
                next_number,
                next_offset,
            },
        );
        starts.insert(owner, head.start_offset);
    }
    let sequence = topics.head().sequence;
    counters.insert(
        OwnerId::DIRECTORY,
        Counters {
            sequence,
            ..Counters::default()
        },
    );
    counters.insert(
        OwnerId::LOG,
        Counters {
            sequence: log_sequence,
            ..Counters::default()
        },
    );
    views.mark(end);
    let ledger = ledger(reader, end, &topics, &ranges, &starts);
    Recovered {
        views,
        topics,
        counters,
        starts,
        ledger,
        newest,
    }
}

fn ledger(
    reader: &LogReader,
    mark: LogPosition,
    topics: &Topics,
    ranges: &[OwnerRange],
    starts: &BTreeMap<OwnerId, Offset>,
) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.marked(mark);
    for entry in entries(reader, LogPosition(0)) {
        ledger.appended(
            reader.identity().segment_of(entry.place.position).0,
            &entry.header,
        );
        if entry.header.kind == EntryKind::Delete {
            ledger.deleted(rmp_serde::from_slice(&entry.body).expect("a range"));
        }
    }
    ledger.existing(ranges.to_vec(), topics.head().next_owner);
    for (owner, start) in starts {
        ledger.trimmed(*owner, *start);
    }
    ledger
}

//! What the broker has said, and whether a recovered one still stands by it.

use std::collections::{BTreeMap, BTreeSet};

use waterwheel::domain::commit::OwnerRange;
use waterwheel::domain::entry::EntryPlace;
use waterwheel::domain::id::{
    Lane, LogPosition, Offset, OwnerId, ProducerId, RecordNumber, Token, TopicId,
};
use waterwheel::domain::partition::index::BatchPlace;
use waterwheel::domain::partition::producers::ProducerRow;
use waterwheel::domain::partition::{Effect, Head, Partition, Read};
use waterwheel::domain::time::WallMs;
use waterwheel::log::LogReader;

use super::clients::Batch;
use super::recovery::{Recovered, load, recover, run};
use super::timers::Timer;
use super::views::Views;

#[derive(Default)]
pub(crate) struct Promised {
    /// Acknowledged or shown to a reader, by offset.
    pub(crate) records: BTreeMap<Offset, Batch>,
    /// The first offset, as far as it was durably moved.
    pub(crate) start: Offset,
    /// Counters and producers as applied before a crash.
    pub(crate) applied: Option<(Head, Vec<(ProducerId, ProducerRow)>)>,
    /// Delayed records by number.
    pub(crate) timers: BTreeMap<u64, Timer>,
}

/// What a partition serves.
#[derive(Debug, PartialEq, Eq)]
struct Served {
    /// Batches that were published where they were stored.
    batches: BTreeMap<Offset, Batch>,
    /// Numbers of records that were published by reference.
    fired: BTreeMap<Offset, RecordNumber>,
}

#[derive(Default)]
pub(crate) struct Truth {
    pub(crate) owners: BTreeMap<OwnerId, Promised>,
    pub(crate) topics: BTreeMap<String, TopicId>,
    pub(crate) gone: BTreeSet<TopicId>,
    /// Names with commands whose outcome is not known.
    pub(crate) in_doubt: BTreeMap<String, u32>,
    pub(crate) producers: BTreeSet<ProducerId>,
    /// The last entry that was told of.
    pub(crate) folded: Option<LogPosition>,
    /// What was deleted with its topic.
    pub(crate) deleted: Vec<OwnerRange>,
    pub(crate) fired: u64,
    pub(crate) cancelled: u64,
}

impl Truth {
    /// A record is there, for ever, until retention takes it.
    pub(crate) fn note(&mut self, owner: OwnerId, offset: Offset, batch: Batch) {
        let before = self
            .owners
            .entry(owner)
            .or_default()
            .records
            .insert(offset, batch);
        assert!(
            before.is_none_or(|before| before == batch),
            "{owner}/{offset} was {before:?}"
        );
    }

    /// Compares everything a recovered broker has with what was said before.
    pub(crate) fn audit(&mut self, recovered: &Recovered, reader: &LogReader, end: LogPosition) {
        self.audit_topics(recovered);
        self.found(reader);
        for topic in recovered.topics.iter() {
            for partition in 0..topic.partitions {
                let partition = waterwheel::domain::id::PartitionIndex(partition);
                let owner = topic
                    .owner(partition, Lane::ZERO)
                    .expect("a partition's owner");
                let stored = stored(&recovered.views, owner, reader);
                let machine = load(&recovered.views, owner);
                self.audit_partition(owner, &machine, stored);
                self.audit_timers(owner, machine, &recovered.views);
            }
        }
        audit_rebuild(recovered, reader, end);
    }

    fn audit_topics(&mut self, recovered: &Recovered) {
        let doubt = std::mem::take(&mut self.in_doubt);
        for (name, id) in &self.topics {
            let found = recovered.topics.named(name).map(|topic| topic.id);
            let is_as_said = found == Some(*id);
            assert!(
                is_as_said || doubt.contains_key(name),
                "topic {name} ({id}) became {found:?}"
            );
        }
        self.topics.clear();
        for topic in recovered.topics.iter() {
            assert!(
                !self.gone.contains(&topic.id),
                "deleted topic {} is back",
                topic.name
            );
            self.topics.insert(topic.name.clone(), topic.id);
        }
    }

    fn audit_partition(&mut self, owner: OwnerId, machine: &Partition, served: Served) {
        let promised = self.owners.entry(owner).or_default();
        let (head, producers, _) = machine.applied_state();
        assert!(
            head.start_offset >= promised.start,
            "{owner}: the start offset fell"
        );
        if let Some((before, producers_before)) = promised.applied.take() {
            assert!(
                head.sequence >= before.sequence,
                "{owner}: entries are gone"
            );
            assert!(
                head.next_offset >= before.next_offset,
                "{owner}: offsets are given again"
            );
            if head.sequence == before.sequence {
                assert_eq!(head, before, "{owner}: other counters");
                assert_eq!(producers, producers_before, "{owner}: other producers");
            }
        }
        let start = head.start_offset;
        promised.start = start;
        let Served {
            batches: stored,
            fired,
        } = served;
        for (number, timer) in &promised.timers {
            if let Timer::Fired(offset) = timer
                && *offset >= start
            {
                let found = fired.get(offset);
                assert_eq!(found, Some(&RecordNumber(*number)), "{owner}/{offset}");
            }
        }
        for (offset, number) in &fired {
            let timer = promised.timers.get(&number.0);
            assert_eq!(timer, Some(&Timer::Fired(*offset)), "{owner}/{number}");
        }
        for (offset, batch) in &promised.records {
            if offset.0 + u64::from(batch.count) > start.0 {
                assert_eq!(
                    stored.get(offset),
                    Some(batch),
                    "{owner}/{offset}: acked and gone"
                );
            }
        }
        let mut last: BTreeMap<(u64, u32), u64> = BTreeMap::new();
        for (offset, batch) in stored.iter().filter(|(_, batch)| batch.producer != 0) {
            let end = batch.first + u64::from(batch.count);
            let before = last.insert((batch.producer, batch.epoch), end);
            let follows = before.is_none_or(|before| before == batch.first);
            assert!(
                follows,
                "{owner}/{offset}: {batch:?} follows sequence {before:?}"
            );
        }
        promised.records = stored;
    }
}

/// Everything a partition serves, read through its index and by place.
fn stored(views: &Views, owner: OwnerId, reader: &LogReader) -> Served {
    let mut machine = load(views, owner);
    let head = machine.head();
    let (mut at, mut batches) = (head.start_offset, Vec::<BatchPlace>::new());
    while at < head.next_offset {
        let mut effects = Vec::new();
        let read = Read {
            token: Token(0),
            from: at,
            bytes_max: u64::MAX,
            wait: false,
        };
        machine.read(read, &mut effects);
        while let Some(effect) = effects.pop() {
            match effect {
                Effect::LoadRun(first) => {
                    machine.run_loaded(first, Ok(run(views, owner, first)), &mut effects);
                }
                Effect::Batches(_, answer) => {
                    assert!(!answer.batches.is_empty(), "{owner}: nothing at {at}");
                    for batch in answer.batches {
                        assert!(
                            batch.first_offset <= at && at < batch.end(),
                            "{owner}: a hole at {at}: {batch:?} {head:?} {:?}",
                            machine.applied_state().2
                        );
                        at = batch.end();
                        batches.push(batch);
                    }
                }
                other => panic!("{owner}: a read at {at} is answered with {other:?}"),
            }
        }
    }
    let places: Vec<EntryPlace> = batches.iter().map(BatchPlace::place).collect();
    let mut served = Served {
        batches: BTreeMap::new(),
        fired: BTreeMap::new(),
    };
    for (read, place) in reader.read(&places).into_iter().zip(batches) {
        let read = read.expect("what is served is readable");
        assert_eq!(read.header.owner, owner);
        let batch = Batch::read(&read.body);
        let Some(reference) = place.reference else {
            assert_eq!(read.header.first_offset, place.first_offset);
            served.batches.insert(place.first_offset, batch);
            continue;
        };
        assert_eq!(reference.of, batch.count);
        let first = read.header.first_number.0 + u64::from(reference.index);
        assert_eq!(place.first_number, RecordNumber(first));
        for at in 0..u64::from(place.count) {
            let offset = Offset(place.first_offset.0 + at);
            served.fired.insert(offset, RecordNumber(first + at));
        }
    }
    served
}

/// A fold of the whole log, without views, gives the same.
fn audit_rebuild(recovered: &Recovered, reader: &LogReader, end: LogPosition) {
    let rebuilt = recover(Views::default(), reader, end, None, WallMs(0));
    assert_eq!(
        rebuilt.topics.head(),
        recovered.topics.head(),
        "the directory, rebuilt"
    );
    assert!(
        rebuilt.topics.iter().eq(recovered.topics.iter()),
        "the topics, rebuilt"
    );
    for (owner, counters) in &recovered.counters {
        if *owner != OwnerId::LOG {
            assert_eq!(
                rebuilt.counters.get(owner),
                Some(counters),
                "{owner}, rebuilt"
            );
        }
    }
    assert_eq!(rebuilt.starts, recovered.starts, "start offsets, rebuilt");
    for owner in recovered.starts.keys() {
        let (one, two) = (load(&rebuilt.views, *owner), load(&recovered.views, *owner));
        assert_eq!(
            one.applied_state().1,
            two.applied_state().1,
            "{owner}: producers, rebuilt"
        );
        let (one, two) = (
            stored(&rebuilt.views, *owner, reader),
            stored(&recovered.views, *owner, reader),
        );
        assert_eq!(one, two, "{owner}: records, rebuilt");
    }
}

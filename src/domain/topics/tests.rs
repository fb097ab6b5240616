//! The directory against a list of what was asked and answered, through crashes between asking and
//! applying; and the bytes it writes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

use super::*;
use crate::domain::entry::{EntryHeader, EntryPlace};
use crate::domain::id::{LogIndex, LogPosition, Offset, RecordNumber, Term};
use crate::domain::time::WallMs;

#[derive(Debug, Clone)]
enum Step {
    Create {
        name: usize,
        partitions: u32,
        keyed: bool,
    },
    Alter {
        name: usize,
        partitions: Option<u32>,
        retention_ms: Option<u64>,
    },
    Delete {
        name: usize,
    },
    Group {
        name: usize,
        delete: bool,
    },
    OpenProducers {
        count: usize,
    },
    Flush {
        runs: usize,
    },
    Refuse,
    Restate,
    /// Rows are written: all, or the first few before a crash.
    Rows {
        written: Option<usize>,
    },
    Crash,
}

const NAMES: [&str; 4] = ["orders", "payments", "a", "not a name"];

fn step() -> impl Strategy<Value = Step> {
    let name = 0..NAMES.len();
    let create =
        (name.clone(), 0u32..4, any::<bool>()).prop_map(|(name, partitions, keyed)| Step::Create {
            name,
            partitions,
            keyed,
        });
    let alter =
        (name.clone(), of(1u32..6), of(0u64..3)).prop_map(|(name, partitions, retention_ms)| {
            Step::Alter {
                name,
                partitions,
                retention_ms,
            }
        });
    prop_oneof![
        6 => create,
        4 => alter,
        4 => name.clone().prop_map(|name| Step::Delete { name }),
        4 => (name, any::<bool>()).prop_map(|(name, delete)| Step::Group { name, delete }),
        3 => (1usize..1500).prop_map(|count| Step::OpenProducers { count }),
        8 => (1usize..4).prop_map(|runs| Step::Flush { runs }),
        1 => Just(Step::Refuse),
        2 => Just(Step::Restate),
        3 => of(0usize..4).prop_map(|written| Step::Rows { written }),
        2 => Just(Step::Crash),
    ]
}

/// The directory between a naive sequencer and a naive store, with what it must have.
#[derive(Default)]
struct World {
    live: Topics,
    log: Vec<AppliedEntry>,
    queue: VecDeque<Vec<Draft>>,
    head: Option<Bytes>,
    rows: BTreeMap<TopicId, Bytes>,
    tokens: u64,
    open: BTreeMap<Token, String>,
    /// Durable topics, by name, as answered or applied.
    topics: BTreeMap<String, Topic>,
    used_topics: BTreeSet<TopicId>,
    used_owners: Vec<(OwnerRange, TopicId)>,
    used_producers: BTreeSet<ProducerId>,
    answered: BTreeSet<Token>,
}

impl World {
    fn handle(&mut self, command: Command) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        let name = match &command {
            Command::Create { name, .. }
            | Command::Alter { name, .. }
            | Command::Delete { name } => name.clone(),
            Command::OpenProducer => String::new(),
            Command::OpenGroup { name, .. } | Command::DeleteGroup { name } => {
                format!("group:{name}")
            }
        };
        self.open.insert(token, name);
        let mut effects = Vec::new();
        self.live.handle(token, command, &mut effects);
        self.perform(effects);
        token
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Persist(drafts) => self.queue.push_back(drafts),
                Effect::Topic(token, topic) => {
                    let name = self.answer(token);
                    assert_eq!(name, topic.name, "D3: the answer is to the question");
                }
                Effect::Producer(token, id) => {
                    self.answer(token);
                    assert!(
                        self.used_producers.insert(id),
                        "D1: producer id {id} is given twice"
                    );
                }
                Effect::Refuse(token, _) => {
                    self.answer(token);
                }
                Effect::Dropped(ranges) => assert!(!ranges.is_empty()),
                Effect::Changed(_) => {}
                Effect::Group(token, group) => {
                    let name = self.answer(token);
                    assert_eq!(
                        name,
                        format!("group:{}", group.name),
                        "D3: the answer is to the question"
                    );
                }
                Effect::GroupDeleted(token) => {
                    self.answer(token);
                }
            }
        }
    }

    fn answer(&mut self, token: Token) -> String {
        assert!(self.answered.insert(token), "{token} is answered twice");
        self.open.remove(&token).expect("it was asked")
    }

    fn flush(&mut self, runs: usize) {
        for drafts in self
            .queue
            .drain(..runs.min(self.queue.len()))
            .collect::<Vec<_>>()
        {
            let last = drafts.len() - 1;
            let entries: Vec<_> = drafts
                .into_iter()
                .enumerate()
                .map(|(at, draft)| stamp(self.log.len() + at, draft, at < last))
                .collect();
            for entry in entries {
                self.note(&entry);
                let mut effects = Vec::new();
                self.live.apply(&entry, &mut effects);
                self.log.push(entry);
                self.perform(effects);
            }
        }
    }

    /// What an entry makes true, whoever applies it.
    fn note(&mut self, entry: &AppliedEntry) {
        if entry.header.kind != EntryKind::State {
            return;
        }
        match rmp_serde::from_slice(&entry.body).expect("a delta") {
            Delta::Topic(topic) => {
                let before = self.topics.insert(topic.name.clone(), topic.clone());
                match before {
                    Some(before) => assert_eq!(before.id, topic.id, "D2: one topic per name"),
                    None => assert!(
                        self.used_topics.insert(topic.id),
                        "D1: a topic id is given twice"
                    ),
                }
                for range in topic.ranges() {
                    let is_taken = |(used, by): &(OwnerRange, TopicId)| {
                        let apart = range.first.0 + range.count <= used.first.0
                            || used.first.0 + used.count <= range.first.0;
                        !apart && *by != topic.id
                    };
                    assert!(
                        !self.used_owners.iter().any(is_taken),
                        "D1: an owner id is given twice"
                    );
                    self.used_owners.push((range, topic.id));
                }
            }
            Delta::Deleted(id) => self.topics.retain(|_, topic| topic.id != id),
            Delta::ProducersBelow(_) | Delta::GroupDeleted(_) => {}
            Delta::Group(group) => {
                let range = group.range();
                let is_taken = |(used, _): &(OwnerRange, TopicId)| used.contains(range.first);
                assert!(
                    !self.used_owners.iter().any(is_taken),
                    "D1: an owner id is given twice"
                );
                self.used_owners.push((range, TopicId(0)));
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Create {
                name,
                partitions,
                keyed,
            } => {
                let config = TopicConfig {
                    keyed,
                    levels: LANES_MAX,
                    ..TopicConfig::default()
                };
                self.handle(Command::Create {
                    name: NAMES[name].into(),
                    partitions,
                    config,
                });
            }
            Step::Alter {
                name,
                partitions,
                retention_ms,
            } => {
                let change = TopicChange {
                    retention_ms: Some(retention_ms),
                    ..TopicChange::default()
                };
                self.handle(Command::Alter {
                    name: NAMES[name].into(),
                    partitions,
                    change,
                });
            }
            Step::Delete { name } => {
                self.handle(Command::Delete {
                    name: NAMES[name].into(),
                });
            }
            Step::Group { name, delete } => {
                let name = format!("group-{name}");
                self.handle(if delete {
                    Command::DeleteGroup { name }
                } else {
                    Command::OpenGroup { name, create: true }
                });
            }
            Step::OpenProducers { count } => {
                (0..count).for_each(|_| {
                    self.handle(Command::OpenProducer);
                });
            }
            Step::Flush { runs } => self.flush(runs),
            Step::Refuse => {
                self.queue.clear();
                let mut effects = Vec::new();
                self.live.reset(&Rejection::Retry, &mut effects);
                self.perform(effects);
                assert!(self.open.is_empty(), "unanswered: {:?}", self.open);
            }
            Step::Restate => {
                let effect = self.live.restate();
                self.perform(vec![effect]);
            }
            Step::Rows { written } => self.write_rows(written),
            Step::Crash => self.crash(),
        }
        self.check();
    }

    fn write_rows(&mut self, written: Option<usize>) {
        let Some((head, changes)) = self.live.take_rows() else {
            return;
        };
        for (id, value) in changes.into_iter().take(written.unwrap_or(usize::MAX)) {
            match value {
                Some(value) => self.rows.insert(id, value),
                None => self.rows.remove(&id),
            };
        }
        match written {
            None => self.head = Some(encode(&head)),
            Some(_) => self.crash(),
        }
    }

    fn crash(&mut self) {
        self.queue.clear();
        self.open.clear();
        let rows = self.rows.values().map(Bytes::as_ref);
        let mut live = Topics::from_rows(self.head.as_deref(), rows).expect("rows read");
        for entry in &self.log {
            live.apply(entry, &mut Vec::new());
        }
        self.live = live;
    }

    fn check(&self) {
        check(&self.live, &self.topics);
    }
}

fn check(directory: &Topics, topics: &BTreeMap<String, Topic>) {
    for topic in topics.values() {
        assert_eq!(directory.named(&topic.name), Some(topic), "D2, D3");
        assert_eq!(directory.topic(topic.id), Some(topic), "D3");
        for index in 0..topic.partitions {
            let (partition, lane) = (PartitionIndex(index), Lane(3));
            let owner = topic.owner(partition, lane).expect("a partition's owner");
            let id = PartitionId {
                topic: topic.id,
                partition,
                lane,
            };
            assert_eq!(topic.partition_of(owner), Some(id));
            assert_eq!(
                topic
                    .ranges()
                    .iter()
                    .filter(|range| range.contains(owner))
                    .count(),
                1
            );
        }
    }
    assert_eq!(
        directory.iter().count(),
        topics.len(),
        "D2: none beside those"
    );
    assert_eq!(directory.names.len(), topics.len());
}

fn stamp(place: usize, draft: Draft, tied: bool) -> AppliedEntry {
    let sequence = place as u64 + 1;
    let header = EntryHeader {
        kind: draft.kind,
        tied_to_next: tied,
        moved: false,
        index: LogIndex(sequence),
        term: Term(1),
        owner: OwnerId::DIRECTORY,
        sequence: OwnerSequence(sequence),
        first_number: RecordNumber(0),
        first_offset: Offset(0),
        numbers: 0,
        offsets: 0,
        appended: WallMs(0),
        wall: WallMs(0),
    };
    let place = EntryPlace {
        position: LogPosition(sequence * 4096),
        length: 200,
    };
    AppliedEntry {
        header,
        place,
        body: draft.body.to_bytes(),
        facts: PayloadFacts::default(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// D1, D2, D3: whatever is asked, refused, restated, half written and lost in between.
    #[test]
    fn ids_are_given_once_names_stand_for_one_topic_and_answers_survive_crashes(
        steps in vec(step(), 1..80),
    ) {
        let mut world = World::default();
        for step in &steps {
            world.step(step);
        }
        // Nothing is left unanswered once the log has taken everything.
        while !world.queue.is_empty() {
            world.flush(1);
        }
        prop_assert!(world.open.is_empty(), "unanswered: {:?}", world.open);
        world.crash();
        world.check();
    }

    /// What a snapshot stands for may leave the log; a topic it does not name is gone, even if the entry
    /// that made it is still there.
    #[test]
    fn a_snapshot_stands_for_everything_before_it(
        steps in vec(step(), 1..60),
        more in vec(step(), 0..6),
        dead_kept in any::<u64>(),
    ) {
        let mut world = World::default();
        for step in steps.iter().chain([&Step::Restate]).chain(&more) {
            world.step(step);
        }
        world.flush(usize::MAX);
        world.flush(usize::MAX);
        let last = world.log.iter().rposition(|entry| entry.header.kind == EntryKind::Snapshot);
        let Some(last) = last else { return Ok(()) };
        let others = world.log[..last].iter().rposition(|entry| !entry.header.tied_to_next);
        let from = others.map_or(0, |at| at + 1);
        let mut folded = Topics::default();
        for (at, entry) in world.log.iter().enumerate() {
            if at >= from || dead_kept & (1 << (at % 64)) != 0 {
                folded.apply(entry, &mut Vec::new());
            }
        }
        check(&folded, &world.topics);
        let (head, live) = (folded.head(), world.live.head());
        prop_assert!(head == live, "D1: {head:?} is not {live:?}");
    }
}

fn is_written_as<T>(value: &T, golden: &str)
where
    T: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let bytes = encode(value);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, golden, "{value:?}");
    assert_eq!(
        rmp_serde::from_slice::<T>(&bytes).ok().as_ref(),
        Some(value)
    );
}

#[test]
fn rows_deltas_and_snapshots_are_written_as_ever() {
    let topic = Topic {
        id: TopicId(3),
        name: "orders".into(),
        partitions: 5,
        owners: vec![(0, OwnerId(1024)), (4, OwnerId(1152))],
        config: TopicConfig {
            keyed: false,
            flush: Flush::Async,
            retention_ms: Some(86_400_000),
            retention_bytes: None,
            levels: 1,
            timers_max: None,
            delay_ms_max: None,
        },
    };
    let head = Head {
        sequence: OwnerSequence(12),
        next_topic: TopicId(4),
        next_owner: OwnerId(1184),
        producers_below: ProducerId(2001),
    };
    is_written_as(
        &topic,
        "9503a66f726465727305929200cd04009204cd048094c2a54173796e63ce05265c00c0",
    );
    is_written_as(&head, "940c04cd04a0cd07d1");
    is_written_as(
        &Delta::Topic(topic.clone()),
        "81a5546f7069639503a66f726465727305929200cd04009204cd048094c2a54173796e63ce05265c00c0",
    );
    is_written_as(&Delta::Deleted(TopicId(3)), "81a744656c6574656403");
    let group = Group {
        id: GroupId(1344),
        name: "billing".into(),
    };
    is_written_as(
        &Delta::Group(group.clone()),
        "81a547726f757092cd0540a762696c6c696e67",
    );
    is_written_as(
        &Delta::GroupDeleted(group.id),
        "81ac47726f757044656c65746564cd0540",
    );
    is_written_as(
        &Snapshot::Group(group),
        "81a547726f757092cd0540a762696c6c696e67",
    );
    is_written_as(
        &Delta::ProducersBelow(ProducerId(2001)),
        "81ae50726f64756365727342656c6f77cd07d1",
    );
    is_written_as(
        &Snapshot::Topic(topic),
        "81a5546f7069639503a66f726465727305929200cd04009204cd048094c2a54173796e63ce05265c00c0",
    );
    is_written_as(
        &Snapshot::Head {
            head,
            topics: vec![TopicId(3)],
            groups: Vec::new(),
        },
        "81a44865616492940c04cd04a0cd07d19103",
    );
    is_written_as(
        &OwnerRange {
            first: OwnerId(1024),
            count: 160,
        },
        "92cd0400cca0",
    );
}

#[test]
fn a_topic_with_one_priority_level_is_written_as_before_there_were_any() {
    let one = TopicConfig::default();
    let many = TopicConfig {
        levels: 32,
        ..TopicConfig::default()
    };
    let (old, new) = (
        rmp_serde::to_vec(&one).unwrap(),
        rmp_serde::to_vec(&many).unwrap(),
    );
    assert_eq!(old, b"\x94\xc3\xa4Sync\xc0\xc0");
    assert_eq!(new, b"\x95\xc3\xa4Sync\xc0\xc0\x20");
    assert_eq!(rmp_serde::from_slice::<TopicConfig>(&old).unwrap(), one);
    assert_eq!(rmp_serde::from_slice::<TopicConfig>(&new).unwrap(), many);
}

#[test]
fn bounds_of_delayed_records_are_written_behind_the_rest_and_zero_is_none() {
    let bounded = TopicConfig {
        delay_ms_max: Some(60_000),
        ..TopicConfig::default()
    };
    let bytes = rmp_serde::to_vec(&bounded).unwrap();
    assert_eq!(bytes, b"\x97\xc3\xa4Sync\xc0\xc0\x01\xc0\xcd\xea\x60");
    assert_eq!(
        rmp_serde::from_slice::<TopicConfig>(&bytes).unwrap(),
        bounded
    );
    let mut directory = Topics::default();
    for config in [
        TopicConfig {
            timers_max: Some(0),
            ..TopicConfig::default()
        },
        TopicConfig {
            delay_ms_max: Some(0),
            ..TopicConfig::default()
        },
    ] {
        let mut effects = Vec::new();
        let command = Command::Create {
            name: "t".into(),
            partitions: 1,
            config,
        };
        directory.handle(Token(1), command, &mut effects);
        let refused = matches!(
            effects.pop(),
            Some(Effect::Refuse(_, Rejection::InvalidConfig(_)))
        );
        assert!(refused);
    }
}

#[test]
fn a_topic_has_as_many_lanes_as_it_has_levels_and_no_more_than_may_be() {
    let mut effects = Vec::new();
    let mut directory = Topics::default();
    for (partitions, levels) in [(1, 0), (1, 33), (10_000, 7)] {
        let config = TopicConfig {
            levels,
            ..TopicConfig::default()
        };
        let command = Command::Create {
            name: "t".into(),
            partitions,
            config,
        };
        directory.handle(Token(1), command, &mut effects);
        assert!(
            matches!(
                effects.pop(),
                Some(Effect::Refuse(_, Rejection::InvalidConfig(_)))
            ),
            "{partitions} {levels}"
        );
    }
    let topic = Topic {
        id: TopicId(1),
        name: "t".into(),
        partitions: 2,
        owners: vec![(0, OwnerId(2000))],
        config: TopicConfig {
            levels: 3,
            ..TopicConfig::default()
        },
    };
    assert_eq!(
        topic.owner(PartitionIndex(1), Lane(2)),
        Some(OwnerId(2000 + 32 + 2))
    );
    assert_eq!(topic.owner(PartitionIndex(1), Lane(3)), None);
}

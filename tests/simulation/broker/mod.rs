//! The broker on one thread: every machine, the real log over the simulated disk, clients that resend,
//! a virtual clock and one seed. After every crash what was said is compared with what is there.
//!
//! `WATERWHEEL_SEED=n` runs that one seed; `WATERWHEEL_TEST=full` runs many more of them.

#![allow(
    clippy::expect_used,
    clippy::wildcard_enum_match_arm,
    clippy::cast_sign_loss,
    reason = "a simulation says what broke by panicking"
)]

mod clients;
mod clocks;
mod directory;
mod ending;
mod house;
mod message;
mod recovery;
mod shell;
mod timers;
mod truth;
mod views;
mod wheel;

use std::collections::BTreeMap;
use std::sync::Arc;

use waterwheel::domain::entry::EntryPlace;
use waterwheel::domain::id::{Lane, Offset, OwnerId, PartitionIndex, RecordNumber};
use waterwheel::domain::partition::ReadAnswer;
use waterwheel::domain::partition::index::BatchPlace;
use waterwheel::domain::rejection::Rejection;
use waterwheel::domain::time::WallMs;
use waterwheel::domain::topics::{Command, TopicChange, TopicConfig};
use waterwheel::log::{Log, LogOptions};

use self::clients::{Batch, Producer, Reader, facts_of};
use self::house::House;
use self::message::{Answer, Message, Reply, To};
use self::timers::Timer;
use self::truth::Truth;
use self::views::Views;
use self::wheel::LEVELS;
use crate::disk::{Rng, SimDisk};
use crate::log::seeded;

const TOPICS: [&str; 4] = ["hot", "idle", "extra-a", "extra-b"];
/// Segments beside those with live records: the one written to, those ready, and the last statements.
const SEGMENTS_BESIDE: usize = 9;
const HOUR_MS: i64 = 3_600_000;
/// Producers are not forgotten within it.
const RUN_MS_MAX: i64 = 48 * HOUR_MS;

#[derive(Debug, Clone)]
enum Asked {
    Batch {
        producer: usize,
        owner: OwnerId,
        batch: Batch,
        is_first: bool,
        repeats: Option<Offset>,
    },
    Read {
        reader: usize,
        owner: OwnerId,
    },
    Topic {
        name: &'static str,
        deletes: bool,
    },
    Producer {
        producer: usize,
    },
    Timer {
        owner: OwnerId,
        number: RecordNumber,
        /// What the log said of it then.
        was: Option<Timer>,
    },
}

struct World {
    rng: Rng,
    disk: SimDisk,
    house: Option<House>,
    views: Views,
    now: WallMs,
    monotonic: u64,
    /// How far the clock was let run beside the steps.
    passed_ms: i64,
    truth: Truth,
    producers: Vec<Producer>,
    readers: Vec<Reader>,
    asked: BTreeMap<u64, Asked>,
    questions: u64,
    faults: bool,
    trace: u64,
    counts: Counts,
}

/// What a run has seen: a simulation in which nothing happens proves nothing.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    crashes: u64,
    acked: u64,
    repeats: u64,
    read: u64,
    refused: u64,
    full: u64,
    sealed: u64,
    failures: u64,
    rebuilds: u64,
    segments: u64,
    answers: u64,
    fired: u64,
    cancelled: u64,
}

fn options() -> LogOptions {
    LogOptions {
        facts_of,
        ..crate::log::options()
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            rng: Rng(seed),
            disk: SimDisk::new(seed ^ 0xB0B0),
            house: None,
            views: Views::default(),
            now: WallMs(1_700_000_000_000),
            monotonic: 0,
            passed_ms: 0,
            truth: Truth::default(),
            producers: vec![
                Producer::new("hot", 0, true),
                Producer::new("hot", 0, true),
                Producer::new("hot", 0, false),
                Producer::new("hot", 1, true),
                Producer::new("idle", 0, true),
                Producer::new("extra-a", 0, true),
                Producer::new("extra-b", 1, true),
                Producer::late("hot", 0),
                Producer::late("hot", 1),
                Producer::late("extra-a", 0),
            ],
            readers: vec![
                Reader::new("hot", 0),
                Reader::new("hot", 1),
                Reader::new("idle", 0),
                Reader::new("extra-a", 0),
            ],
            asked: BTreeMap::new(),
            questions: 0,
            faults: true,
            trace: 0,
            counts: Counts::default(),
        };
        world.recover();
        world
    }

    fn go(seed: u64, steps: u32) -> Self {
        let mut world = Self::new(seed);
        for _ in 0..steps {
            world.step();
        }
        world.finish();
        world
    }

    fn note(&mut self, what: u64) {
        self.trace = Rng(self.trace ^ what).next();
    }

    fn step(&mut self) {
        let span = self.rng.below(3) as i64;
        self.pass(span);
        match self.rng.below(1_000) {
            0..600 => self.deliver(),
            600..780 => self.produce(),
            780..800 => self.ask_timer(),
            800..850 => self.read(),
            850..880 => {
                let level = self.rng.below(LEVELS as u64) as usize;
                self.house_now().look(level);
            }
            880..895 => self.administer(),
            895..920 => self.house().tell(To::Checkpoint, Message::Round),
            920..955 => self.house().tell(To::Cleaner, Message::Tick),
            955..965 => self.house().tell(To::Commit, Message::CloseTail),
            965..970 => self.fail_actor(),
            // The wall clock may step back.
            970..975 => self.set_clock(),
            980..988 => self.let_run(),
            975..980 if self.faults => self.fault(),
            _ => self.deliver(),
        }
        self.drain();
        assert!(
            !self.house().unreadable || self.disk.is_off(),
            "the log cannot be read"
        );
        if self.disk.is_off() || (self.house().sealed && self.rng.chance(2)) {
            self.crash();
        }
    }

    fn house(&mut self) -> &mut House {
        self.house.as_mut().expect("it is up between steps")
    }

    fn deliver(&mut self) {
        let ready = self.house().ready();
        if ready.is_empty() {
            return;
        }
        let to = ready[self.rng.below(ready.len() as u64) as usize];
        self.note(ready.len() as u64);
        self.house_now().deliver(to);
    }

    /// The broker, with the clocks as they are.
    fn house_now(&mut self) -> &mut House {
        let (now, monotonic) = (self.now, self.monotonic);
        let house = self.house();
        (house.now, house.monotonic) = (now, monotonic);
        house
    }

    fn ask(&mut self, to: To, asked: Asked, message: impl FnOnce(Reply) -> Message) {
        self.questions += 1;
        let reply = Reply {
            client: 0,
            question: self.questions,
        };
        self.asked.insert(self.questions, asked);
        self.house().tell(to, message(reply));
    }

    /// The mailbox and owner of a partition, if there is such a topic.
    fn locate(&mut self, name: &str, partition: u32) -> Option<(To, OwnerId)> {
        let house = self.house();
        let topic = house.directory.named(name)?;
        let owner = topic.owner(PartitionIndex(partition), Lane::ZERO)?;
        Some((house.locate(name, partition)?, owner))
    }

    fn produce(&mut self) {
        let at = self.rng.below(self.producers.len() as u64) as usize;
        let random = self.rng.next();
        let (topic, partition) = (self.producers[at].topic, self.producers[at].partition);
        if self.producers[at].is_idempotent && self.producers[at].id == 0 {
            let is_asked =
                |asked: &Asked| matches!(asked, Asked::Producer { producer } if *producer == at);
            if !self.asked.values().any(is_asked) {
                let command = Command::OpenProducer;
                let asked = Asked::Producer { producer: at };
                self.ask(To::Directory, asked, |reply| Message::Do { command, reply });
            }
            return;
        }
        let Some((to, owner)) = self.locate(topic, partition) else {
            return;
        };
        let producer = &mut self.producers[at];
        producer.aim(owner);
        // The idle topic gets a little, once.
        let is_idle = topic == "idle"
            && self
                .truth
                .owners
                .get(&owner)
                .is_some_and(|p| p.records.len() > 5);
        let Some(sending) = producer.send(random, !is_idle) else {
            return;
        };
        let batch = sending.batch;
        let (is_first, repeats) = (sending.is_first, sending.repeats);
        let asked = Asked::Batch {
            producer: at,
            owner,
            batch,
            is_first,
            repeats,
        };
        let (facts, count, body) = (batch.facts(), batch.count, batch.body());
        self.ask(to, asked, |reply| Message::Append {
            facts,
            count,
            batch: body,
            reply,
        });
    }

    fn read(&mut self) {
        let at = self.rng.below(self.readers.len() as u64) as usize;
        let (topic, partition) = (self.readers[at].topic, self.readers[at].partition);
        let Some((to, owner)) = self.locate(topic, partition) else {
            return;
        };
        let reader = &mut self.readers[at];
        if std::mem::replace(&mut reader.is_waiting, true) {
            return;
        }
        reader.aim(owner);
        let from = reader.at;
        self.ask(to, Asked::Read { reader: at, owner }, |reply| {
            Message::Read { from, reply }
        });
    }

    fn administer(&mut self) {
        let name = TOPICS[self.rng.below(TOPICS.len() as u64) as usize];
        let is_extra = name.starts_with("extra");
        let mut deletes = false;
        let command = match self.rng.below(6) {
            0 if is_extra => {
                deletes = true;
                Command::Delete { name: name.into() }
            }
            1 => Command::Alter {
                name: name.into(),
                partitions: None,
                change: TopicChange::default(),
            },
            _ => {
                let retention_bytes = (name != "idle").then_some(60_000);
                let config = TopicConfig {
                    retention_bytes,
                    ..TopicConfig::default()
                };
                Command::Create {
                    name: name.into(),
                    partitions: 2,
                    config,
                }
            }
        };
        *self.truth.in_doubt.entry(name.into()).or_default() += 1;
        let asked = Asked::Topic { name, deletes };
        self.ask(To::Directory, asked, |reply| Message::Do { command, reply });
    }

    fn fail_actor(&mut self) {
        let owners: Vec<OwnerId> = self.house().shells.keys().copied().collect();
        if owners.is_empty() {
            return;
        }
        let owner = owners[self.rng.below(owners.len() as u64) as usize];
        self.counts.failures += 1;
        if self.rng.chance(20) {
            let level = self.rng.below(LEVELS as u64) as usize;
            return self.house_now().fail_level(level);
        }
        self.house().fail(owner);
    }

    fn fault(&mut self) {
        match self.rng.below(10) {
            0..5 => {
                let operations = 1 + self.rng.below(40);
                self.disk.cut_power_in(operations);
            }
            5..7 => self.crash(),
            7 => self.disk.fail_synced_writes(1),
            8 => {
                let room = self.rng.below(3) * options().segment_bytes;
                let files = self.disk.file_names().len() as u64;
                self.disk
                    .set_capacity(files * options().segment_bytes + room);
            }
            _ => self.disk.set_capacity(u64::MAX),
        }
    }

    /// What the broker has said is taken down.
    fn drain(&mut self) {
        for entry in std::mem::take(&mut self.house().landed) {
            self.truth.landed(&entry);
        }
        for (reply, answer) in std::mem::take(&mut self.house().released) {
            self.note(reply.question);
            let asked = self.asked.remove(&reply.question).expect("answered once");
            match asked {
                Asked::Batch {
                    producer,
                    owner,
                    batch,
                    is_first,
                    repeats,
                } => {
                    self.produced(producer, owner, batch, is_first, repeats, answer);
                }
                Asked::Read { reader, owner } => self.has_read(reader, owner, answer),
                Asked::Topic { name, deletes } => self.administered(name, deletes, answer),
                Asked::Timer { owner, number, was } => match answer {
                    Answer::Timer(answer) => {
                        self.counts.answers += 1;
                        let shell = self.house().shells.get(&owner);
                        let head = shell.map(|shell| shell.machine.head()).unwrap_or_default();
                        self.truth.check(owner, number, &answer, was, &head);
                    }
                    Answer::Refused(_) => {}
                    other => panic!("{owner}/{number} is answered with {other:?}"),
                },
                Asked::Producer { producer } => {
                    if let Answer::Producer(id) = answer {
                        assert!(
                            self.truth.producers.insert(id),
                            "producer id {id} is given twice"
                        );
                        self.producers[producer].id = id.0;
                    }
                }
            }
        }
        let starts = self.house().starts.clone();
        for (owner, start) in starts {
            let promised = self.truth.owners.entry(owner).or_default();
            promised.start = promised.start.max(start);
        }
    }

    fn produced(
        &mut self,
        producer: usize,
        owner: OwnerId,
        batch: Batch,
        is_first: bool,
        repeats: Option<Offset>,
        answer: Answer,
    ) {
        let is_current = self.producers[producer].owner == Some(owner);
        match answer {
            Answer::Stored { offset, number } => {
                self.counts.acked += 1;
                // Delayed records have no offset yet: their number is what stays the same.
                let offset = if batch.delay_ms == 0 {
                    offset
                } else {
                    Offset(number.0)
                };
                if let Some(first) = repeats {
                    assert_eq!(offset, first, "{batch:?} is stored twice");
                    self.counts.repeats += 1;
                }
                if batch.delay_ms == 0 {
                    self.truth.note(owner, offset, batch);
                } else if is_current {
                    self.truth.note_late(owner, number, batch);
                }
                if is_current {
                    self.producers[producer].acked(batch, offset);
                }
            }
            Answer::Refused(rejection) => {
                self.counts.refused += 1;
                self.counts.full += u64::from(rejection == Rejection::DiskFull);
                self.counts.sealed += u64::from(rejection == Rejection::LogSealed);
                let is_lost = matches!(
                    rejection,
                    Rejection::SequenceGap { .. } | Rejection::ProducerStateLost
                );
                // Whatever came before it was acknowledged: the partition must know the producer.
                assert!(
                    !(is_lost && is_first),
                    "{owner}: {batch:?} is refused: {rejection}"
                );
                if is_current && repeats.is_none() {
                    self.producers[producer].refused(batch);
                }
            }
            other => panic!("{batch:?} is answered with {other:?}"),
        }
    }

    fn has_read(&mut self, reader: usize, owner: OwnerId, answer: Answer) {
        self.readers[reader].is_waiting = false;
        let is_current = self.readers[reader].owner == Some(owner);
        match answer {
            Answer::Batches(ReadAnswer { batches, .. }) if is_current => {
                let places: Vec<EntryPlace> = batches.iter().map(BatchPlace::place).collect();
                let read = self.house().reader.read(&places);
                for (read, place) in read.into_iter().zip(batches) {
                    // Its segment may have been recycled since, or the power may be off.
                    let Ok(read) = read else { return };
                    self.counts.read += 1;
                    assert!(place.end() > self.readers[reader].at, "read in order");
                    let (batch, first) = (Batch::read(&read.body), place.first_offset);
                    if place.reference.is_none() {
                        self.truth.note(owner, first, batch);
                    } else {
                        for at in 0..u64::from(place.count) {
                            let number = RecordNumber(place.first_number.0 + at);
                            self.truth.note_fired(owner, Offset(first.0 + at), number);
                        }
                    }
                    self.readers[reader].at = place.end();
                }
            }
            Answer::Refused(Rejection::OffsetOutOfRange { start, end }) if is_current => {
                let at = self.readers[reader].at;
                assert!(
                    at < start,
                    "{owner}: {at} was visible, now there is {start} to {end}"
                );
                self.readers[reader].at = start;
            }
            Answer::Refused(_) | Answer::Batches(_) => {}
            other => panic!("a read is answered with {other:?}"),
        }
    }

    fn administered(&mut self, name: &'static str, deletes: bool, answer: Answer) {
        match answer {
            Answer::Topic(topic) if deletes => {
                self.truth.topics.remove(name);
                self.truth.gone.insert(topic.id);
            }
            Answer::Topic(topic) => {
                assert_eq!(topic.name, name);
                self.truth.topics.insert(name.into(), topic.id);
            }
            // What was being written when the log sealed may be found by the next opening.
            Answer::Refused(Rejection::LogSealed) => return,
            Answer::Refused(_) => {}
            other => panic!("{name} is answered with {other:?}"),
        }
        let doubts = self.truth.in_doubt.get_mut(name).expect("it was asked");
        *doubts -= 1;
        if *doubts == 0 {
            self.truth.in_doubt.remove(name);
        }
    }

    /// The process is gone; perhaps the power as well.
    fn crash(&mut self) {
        self.drain();
        self.counts.crashes += 1;
        if let Some(house) = self.house.take() {
            for (owner, machine) in house.machines() {
                let (head, producers, _) = machine.applied_state();
                let promised = self.truth.owners.entry(owner).or_default();
                promised.applied = Some((head, producers));
            }
            let segments = house.log.segments();
            let newest = segments.last().map_or(0, |segment| segment.number.0);
            self.counts.segments = self.counts.segments.max(newest);
            self.views = house.views;
        }
        self.go_down();
        self.asked.clear();
        self.producers.iter_mut().for_each(Producer::reconnect);
        self.readers
            .iter_mut()
            .for_each(|reader| reader.is_waiting = false);
        self.recover();
    }

    fn go_down(&mut self) {
        if self.disk.is_off() || self.rng.chance(50) {
            self.disk.power_cut();
            self.views.power_cut(&mut self.rng);
        } else {
            self.disk.kill();
        }
    }

    fn recover(&mut self) {
        let opened = loop {
            if self.faults && self.rng.chance(20) {
                let operations = 1 + self.rng.below(60);
                self.disk.cut_power_in(operations);
            }
            match Log::open(Arc::new(self.disk.clone()), options()) {
                // The power may have gone in something that opening can do without.
                Ok(opened) if !self.disk.is_off() => break opened,
                Ok(_) => {}
                Err(error) => assert!(self.disk.is_off(), "{error}"),
            }
            self.go_down();
        };
        self.disk.keep_power();
        assert_eq!(opened.damage, []);
        if self.rng.chance(15) {
            self.counts.rebuilds += 1;
            self.views = Views::default();
        }
        let views = std::mem::take(&mut self.views);
        let reader = opened.log.reader();
        let recovered = recovery::recover(views, &reader, opened.end, opened.newest, self.now);
        self.truth.audit(&recovered, &reader, opened.end);
        self.note(opened.end.0);
        self.house = Some(House::raise(
            opened.log,
            opened.next_index,
            recovered,
            self.now,
        ));
    }
}

fn seeds(quick: u64, full: u64) -> std::ops::Range<u64> {
    if let Some(seed) = std::env::var("WATERWHEEL_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
    {
        return seed..seed + 1;
    }
    let is_full = std::env::var("WATERWHEEL_TEST").is_ok_and(|tier| tier == "full");
    0..if is_full { full } else { quick }
}

#[test]
fn what_was_acked_is_there_once_and_in_order_whatever_fails() {
    let mut all = Vec::new();
    for seed in seeds(24, 3_000) {
        seeded(seed, |seed| {
            World::go(seed, 10_000);
        });
        if seed < 4 {
            all.push(World::go(seed, 10_000).counts);
        }
    }
    let sum = |count: fn(&Counts) -> u64| all.iter().map(count).sum::<u64>();
    if all.len() == 4 {
        assert!(sum(|c| c.crashes) > 40, "{all:?}");
        assert!(
            sum(|c| c.rebuilds) > 4 && sum(|c| c.failures) > 100,
            "{all:?}"
        );
        assert!(
            sum(|c| c.repeats) > 100 && sum(|c| c.read) > 1_000,
            "{all:?}"
        );
        assert!(sum(|c| c.full) > 0 && sum(|c| c.sealed) > 0, "{all:?}");
        assert!(sum(|c| c.segments) > 50, "{all:?}");
        assert!(sum(|c| c.fired) > 1_000, "{all:?}");
        assert!(sum(|c| c.cancelled) > 20, "{all:?}");
        assert!(sum(|c| c.answers) > 100, "{all:?}");
    }
}

#[test]
fn one_seed_twice_is_one_run_of_the_broker() {
    let run = |seed| {
        let world = World::go(seed, 5_000);
        (
            world.trace,
            world.disk.trace(),
            world.disk.operations(),
            world.counts,
        )
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

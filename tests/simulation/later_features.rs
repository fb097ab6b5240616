//! What is built later, as a model driven through the real log: does the format carry it?
//!
//! Timers with a cancel that races the firing, half batches, leases attached to a transaction and a decision
//! over eight owners and their group, a dead letter, a payload moved by a cleaner, a deleted owner. A naive model does what was meant; beside it the
//! log gets the entries the features will write. After every crash a fold of what is durable must equal
//! the model before the run in flight, or after it, and nothing between.

mod stamps;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use waterwheel::domain::entry::{EntryHeader, EntryKind, EntryPlace, PayloadFacts};
use waterwheel::domain::id::{LogPosition, TransactionNumber};
use waterwheel::log::{Log, LogOptions, Room, Scanned};

use self::stamps::encode;
use super::disk::{Rng, SimDisk};
use super::log::{is_full, options, seeded};

const PARTITIONS: [u64; 8] = [1024, 1025, 1026, 1027, 1028, 1029, 1030, 1031];
const DEAD_LETTERS: u64 = 1040;
/// What a transaction consumed.
const SOURCE: u64 = 1050;
const GROUP: u64 = 1100;
const COORDINATOR: u64 = 1200;

/// One record: its partition and its number there.
type Record = (u64, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Pending { version: u64 },
    Half { transaction: u64 },
    Published { offset: u64 },
    Cancelled,
}

/// What everybody can see: the same whether it was meant or folded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct World {
    records: BTreeMap<Record, Status>,
    published: BTreeMap<u64, u64>,
    settled: BTreeSet<Record>,
    /// Held by the group until a transaction is decided.
    attached: BTreeMap<Record, u64>,
    decided: BTreeMap<u64, bool>,
    registered: BTreeMap<u64, BTreeSet<Record>>,
    deleted: BTreeSet<u64>,
}

#[derive(Debug, Clone)]
enum Command {
    Send {
        owner: u64,
        delayed: bool,
    },
    Fire(Record),
    Cancel(Record),
    Modify(Record, u64),
    Half {
        owner: u64,
        transaction: u64,
    },
    Attach {
        record: Record,
        transaction: u64,
    },
    Decide {
        transaction: u64,
        commit: bool,
    },
    DeadLetter(Record),
    Move(Record),
    /// Deletes the owner, and what came for it too late is tied into the same run.
    Delete {
        owner: u64,
        other: u64,
    },
}

impl World {
    fn stored(&self, owner: u64) -> u64 {
        self.records.range((owner, 0)..(owner, u64::MAX)).count() as u64
    }

    fn publish(&mut self, record: Record) {
        let offset = self.published.entry(record.0).or_default();
        let status = Status::Published { offset: *offset };
        *offset += 1;
        self.records.insert(record, status);
    }

    fn halves(&self, transaction: u64) -> BTreeSet<Record> {
        self.registered
            .get(&transaction)
            .cloned()
            .unwrap_or_default()
    }

    fn is_open(&self, record: Record) -> bool {
        !self.settled.contains(&record) && !self.attached.contains_key(&record)
    }

    /// What is attached to it is consumed, or comes again.
    fn decide_attached(&mut self, transaction: u64, commit: bool) {
        let of_it = self.attached.extract_if(.., |_, of| *of == transaction);
        let of_it: Vec<Record> = of_it.map(|(record, _)| record).collect();
        if commit {
            self.settled.extend(of_it);
        }
    }

    /// What the command means, said plainly.
    fn intend(&mut self, command: &Command) {
        match *command {
            Command::Send { owner, delayed } => {
                let record = (owner, self.stored(owner));
                if delayed {
                    self.records.insert(record, Status::Pending { version: 0 });
                } else {
                    self.publish(record);
                }
            }
            Command::Fire(record) => self.publish(record),
            Command::Cancel(record) => {
                self.records.insert(record, Status::Cancelled);
            }
            Command::Modify(record, version) => {
                self.records.insert(record, Status::Pending { version });
            }
            Command::Half { owner, transaction } => {
                let record = (owner, self.stored(owner));
                self.records.insert(record, Status::Half { transaction });
                self.registered
                    .entry(transaction)
                    .or_default()
                    .insert(record);
            }
            Command::Attach {
                record,
                transaction,
            } => {
                self.attached.insert(record, transaction);
            }
            Command::Decide {
                transaction,
                commit,
            } => {
                self.decide_attached(transaction, commit);
                for record in self.halves(transaction) {
                    if self.deleted.contains(&record.0) {
                        continue;
                    }
                    if commit {
                        self.publish(record);
                    } else {
                        self.records.insert(record, Status::Cancelled);
                    }
                }
                self.decided.insert(transaction, commit);
            }
            Command::DeadLetter(record) => {
                self.publish((DEAD_LETTERS, self.stored(DEAD_LETTERS)));
                self.settled.insert(record);
            }
            Command::Move(_) => {}
            Command::Delete { owner, other } => {
                self.deleted.insert(owner);
                self.records.retain(|record, _| record.0 != owner);
                self.published.remove(&owner);
                self.publish((other, self.stored(other)));
            }
        }
    }
}

/// The fold: the world, and where payloads lie.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct View {
    world: World,
    folded: BTreeMap<u64, u64>,
    places: BTreeMap<Record, (EntryPlace, EntryHeader)>,
    next_index: u64,
}

impl View {
    fn apply(
        &mut self,
        header: &EntryHeader,
        place: EntryPlace,
        facts: &PayloadFacts,
        body: &[u8],
    ) {
        let owner = header.owner.0;
        let first = header.first_number.0;
        self.next_index = self.next_index.max(header.index.0 + 1);
        let folded = self.folded.entry(owner).or_default();
        if header.moved {
            let moved = (owner, first);
            if let Some(held) = self.places.get_mut(&moved).filter(|held| held.0 < place) {
                assert_eq!(held.1.sequence, header.sequence);
                held.0 = place;
            }
            return;
        }
        assert_eq!(header.sequence.0, *folded + 1, "no gap in owner {owner}");
        *folded += 1;
        if self.world.deleted.contains(&owner) {
            return;
        }
        let words = words(body);
        match header.kind {
            EntryKind::Payload => {
                self.places.insert((owner, first), (place, *header));
                let record = (owner, first);
                assert_eq!(first, self.world.stored(owner), "numbers are dense");
                if facts.transaction.0 > 0 {
                    let transaction = facts.transaction.0;
                    self.world
                        .records
                        .insert(record, Status::Half { transaction });
                } else if facts.deliveries.is_empty() {
                    self.publish(header, record);
                } else {
                    let pending = Status::Pending { version: 0 };
                    self.world.records.insert(record, pending);
                }
            }
            EntryKind::Publish => {
                for number in words {
                    self.publish(header, (owner, number));
                }
            }
            EntryKind::State => self.state(owner, &words),
            EntryKind::Delete => {
                for owner in words {
                    self.world.deleted.insert(owner);
                    self.world.records.retain(|record, _| record.0 != owner);
                    self.world.published.remove(&owner);
                    self.places.retain(|record, _| record.0 != owner);
                }
            }
            EntryKind::Snapshot | EntryKind::Mark => {}
        }
    }

    fn publish(&mut self, header: &EntryHeader, record: Record) {
        let next = self.world.published.get(&record.0).copied();
        let end = header.first_offset.0 + u64::from(header.offsets);
        assert!((header.first_offset.0..end).contains(&next.unwrap_or(0)));
        self.world.publish(record);
    }

    fn state(&mut self, owner: u64, words: &[u64]) {
        let world = &mut self.world;
        match *words {
            [1, number] => {
                world.records.insert((owner, number), Status::Cancelled);
            }
            [2, number, version] => {
                let pending = Status::Pending { version };
                world.records.insert((owner, number), pending);
            }
            [3, transaction, partition, number] => {
                let halves = world.registered.entry(transaction).or_default();
                halves.insert((partition, number));
            }
            [4, transaction, commit] => {
                world.decided.insert(transaction, commit == 1);
            }
            [5, partition, number] => {
                assert!(world.is_open((partition, number)), "G9");
                world.settled.insert((partition, number));
            }
            [6, transaction, partition, number] => {
                assert!(world.is_open((partition, number)), "G9");
                world.attached.insert((partition, number), transaction);
            }
            [7, _] => {}
            [8, transaction, commit] => world.decide_attached(transaction, commit == 1),
            _ => panic!("no state entry is like {words:?}"),
        }
    }

    fn of(log: &Log) -> Self {
        let mut view = Self {
            next_index: 1,
            ..Self::default()
        };
        for scanned in log.reader().scan(LogPosition(0), None) {
            match scanned {
                Scanned::Damaged(damage) => panic!("{damage}"),
                Scanned::Entry {
                    header,
                    place,
                    facts,
                    body,
                } => view.apply(&header, place, &facts, &body.unwrap_or_default()),
            }
        }
        view
    }

    /// Every payload is where the view says, and is the one it says.
    fn check_places(&self, log: &Log) {
        let places: Vec<EntryPlace> = self.places.values().map(|held| held.0).collect();
        let read = log.reader().read(&places);
        for ((record, held), read) in self.places.iter().zip(read) {
            let read = read.unwrap();
            assert_eq!(words(&read.body)[2..4], [record.0, record.1]);
            assert_eq!(read.header.index, held.1.index);
            assert_eq!(read.header.sequence, held.1.sequence);
        }
    }
}

fn words(body: &[u8]) -> Vec<u64> {
    let words = body.chunks_exact(8);
    words
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect()
}

fn bytes(words: &[u64]) -> Bytes {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A payload's body: transaction, delayed or not, and who it is, long enough to fill segments.
fn payload(transaction: u64, delayed: bool, record: Record) -> Bytes {
    let mut words = vec![transaction, u64::from(delayed), record.0, record.1];
    words.resize(64, 0x77);
    bytes(&words)
}

fn facts_of(body: &[u8]) -> Option<PayloadFacts> {
    let words = words(body);
    let delayed = *words.get(1)? == 1;
    let column: &[u8] = if delayed { &[2; 9] } else { &[] };
    Some(PayloadFacts {
        transaction: TransactionNumber(*words.first()?),
        deliveries: Bytes::copy_from_slice(column),
        ..PayloadFacts::default()
    })
}

/// A command that the owners would accept now, if chance finds one.
fn choose(rng: &mut Rng, world: &World) -> Option<Command> {
    let alive: Vec<u64> = PARTITIONS
        .into_iter()
        .filter(|owner| !world.deleted.contains(owner))
        .collect();
    let owner = alive[rng.below(alive.len() as u64) as usize];
    let transaction = 1 + rng.below(40);
    let records: Vec<(&Record, &Status)> = world.records.iter().collect();
    let any = rng.below(records.len().max(1) as u64) as usize;
    let picked = records
        .get(any)
        .map(|(record, status)| (**record, **status));
    Some(match (rng.below(100), picked) {
        (0..30, _) => Command::Send {
            owner,
            delayed: rng.chance(60),
        },
        (30..50, _) if !world.decided.contains_key(&transaction) => {
            Command::Half { owner, transaction }
        }
        (50..58, _) if !world.decided.contains_key(&transaction) => Command::Decide {
            transaction,
            commit: rng.chance(70),
        },
        (58..60, _) if alive.len() > 3 && owner != alive[0] => Command::Delete {
            owner,
            other: alive[0],
        },
        (60..64, Some((record, Status::Published { .. }))) if world.is_open(record) => {
            Command::DeadLetter(record)
        }
        (64..72, Some((record, Status::Published { .. })))
            if world.is_open(record) && !world.decided.contains_key(&transaction) =>
        {
            Command::Attach {
                record,
                transaction,
            }
        }
        (72..82, Some((record, _))) => Command::Move(record),
        (_, Some((record, Status::Pending { version }))) => match rng.below(3) {
            0 => Command::Fire(record),
            1 => Command::Cancel(record),
            _ => Command::Modify(record, version + 1),
        },
        _ => return None,
    })
}

fn feature_options() -> LogOptions {
    LogOptions {
        facts_of,
        ..options()
    }
}

fn recover(disk: &SimDisk) -> (Log, View) {
    let opened = Log::open(Arc::new(disk.clone()), feature_options()).unwrap();
    assert_eq!(opened.damage, []);
    let view = View::of(&opened.log);
    view.check_places(&opened.log);
    assert!(opened.next_index >= view.next_index);
    (opened.log, view)
}

/// Runs a history; the outcomes of runs that were in flight when the power went, and the last world.
fn history(seed: u64, steps: u32) -> (Vec<bool>, World) {
    let disk = SimDisk::new(seed);
    let mut rng = Rng(seed);
    let (mut log, mut view) = recover(&disk);
    let mut meant = World::default();
    let mut survived = Vec::new();
    for _ in 0..steps {
        let Some(command) = choose(&mut rng, &meant) else {
            continue;
        };
        let run = encode(&view, &log, &command);
        if rng.chance(15) {
            disk.cut_power_in(1 + rng.below(2));
        }
        let appended = log.append(&run, Room::Normal);
        if !disk.is_off() {
            disk.keep_power();
        }
        let mut after = meant.clone();
        after.intend(&command);
        if let Ok(places) = &appended {
            meant = after.clone();
            for (entry, place) in run.iter().zip(places) {
                view.apply(&entry.header, *place, &entry.facts, &entry.body.to_bytes());
            }
            assert_eq!(view.world, meant, "live, after {command:?}");
        }
        if appended.is_err() || disk.is_off() || rng.chance(3) {
            drop(log);
            disk.power_cut();
            let live = view.clone();
            (log, view) = recover(&disk);
            if appended.is_ok() {
                assert_eq!(view, live, "a fold is the live machine");
            } else {
                let is_whole = view.world == after && after != meant;
                assert!(
                    is_whole || view.world == meant,
                    "{command:?} is there in part"
                );
                survived.push(is_whole);
                meant = view.world.clone();
            }
        }
    }
    let (_, view) = {
        drop(log);
        disk.kill();
        recover(&disk)
    };
    assert_eq!(view.world, meant);
    (survived, meant)
}

#[test]
fn folding_the_durable_prefix_is_what_was_meant_at_that_prefix() {
    let mut outcomes = BTreeMap::new();
    let (mut fired, mut cancelled, mut decided, mut dead, mut deleted) = (0, 0, 0, 0, 0);
    let (mut consumed, mut held) = (0, 0);
    for seed in 0..if is_full() { 1000 } else { 60 } {
        let (survived, world) = seeded(seed, |seed| history(seed, 250));
        for whole in survived {
            *outcomes.entry(whole).or_insert(0) += 1;
        }
        let statuses = || world.records.values();
        fired += statuses()
            .filter(|status| matches!(status, Status::Published { .. }))
            .count();
        cancelled += statuses()
            .filter(|status| **status == Status::Cancelled)
            .count();
        decided += world.decided.len();
        dead += world.published.get(&DEAD_LETTERS).copied().unwrap_or(0);
        consumed += world.settled.len();
        held += world.attached.len();
        deleted += world.deleted.len();
    }
    // A run over everything means everything was met.
    assert!(
        fired > 500 && cancelled > 100 && decided > 100,
        "{fired} {cancelled} {decided}"
    );
    assert!(dead > 50 && deleted > 20, "{dead} {deleted}");
    let by_transactions = consumed as u64 - dead;
    assert!(
        by_transactions > 30 && held > 50,
        "{by_transactions} {held}"
    );
    assert!(
        outcomes[&true] > 20 && outcomes[&false] > 20,
        "{outcomes:?}"
    );
}

#[test]
fn a_decision_over_eight_owners_and_what_was_consumed_is_whole_or_not_there() {
    let (mut whole, mut none) = (0, 0);
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let (mut log, mut view) = recover(&disk);
        let apply = |log: &mut Log, view: &mut View, command: &Command| {
            let run = encode(view, log, command);
            let places = log.append(&run, Room::Decisions)?;
            for (entry, place) in run.iter().zip(places) {
                view.apply(&entry.header, place, &entry.facts, &entry.body.to_bytes());
            }
            Ok::<(), waterwheel::log::LogError>(())
        };
        for owner in PARTITIONS {
            let half = Command::Half {
                owner,
                transaction: 9,
            };
            apply(&mut log, &mut view, &half).unwrap();
        }
        let source = Command::Send {
            owner: SOURCE,
            delayed: false,
        };
        apply(&mut log, &mut view, &source).unwrap();
        let consumed = (SOURCE, 0);
        let attach = Command::Attach {
            record: consumed,
            transaction: 9,
        };
        apply(&mut log, &mut view, &attach).unwrap();
        let decision = Command::Decide {
            transaction: 9,
            commit: true,
        };
        assert_eq!(encode(&view, &log, &decision).len(), 10);
        disk.cut_power_in(1);
        apply(&mut log, &mut view, &decision).unwrap_err();
        drop(log);
        disk.power_cut();
        let (_, view) = recover(&disk);
        // What was consumed is a place of its own.
        let published = view.world.published.len() - 1;
        assert_eq!(view.world.settled.contains(&consumed), published == 8);
        assert_eq!(view.world.attached.contains_key(&consumed), published == 0);
        assert!([0, 8].contains(&published), "{published} of 8, seed {seed}");
        assert_eq!(view.world.decided.contains_key(&9), published == 8);
        *(if published == 8 {
            &mut whole
        } else {
            &mut none
        }) += 1;
    }
    assert!(whole > 10 && none > 10, "{whole} whole, {none} not there");
}

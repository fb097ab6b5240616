//! A consumer group over the real log and the disk that loses and tears: members that join, leave, are lost
//! and take too long, records that are refused, letters, rules that are altered, kills and power cuts.
//!
//! Everything is judged from outside, by what members were told: no record in two live leases, none again
//! after an answer that it is settled, letters once each and never beside a settlement, order where the mode
//! promises it; and in the end nothing left over.

#![allow(
    clippy::expect_used,
    clippy::cast_sign_loss,
    reason = "a test fails by panicking, and its numbers are small"
)]

mod durable;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use waterwheel::domain::entry::{
    AppliedEntry, Draft, EntryHeader, EntryKind, NewEntry, PayloadFacts,
};
use waterwheel::domain::group::command::{
    Answer, Command, CursorNumber, DeadLetter, Description, Effect, Feed, Join, Lease, LeasedRange,
    MemberEvent, Offered, OfferedRecord, RetryAfter, Settle, TopicShape,
};
use waterwheel::domain::group::dead::Copied;
use waterwheel::domain::group::subscription::{
    Backoff, Mode, Poison, RetryPolicy, SubscriptionChange, SubscriptionSpec,
};
use waterwheel::domain::group::{Group, Limits};
use waterwheel::domain::id::{
    LeaseId, LogIndex, LogPosition, MemberId, Offset, OwnerId, OwnerSequence, ProducerId,
    RecordNumber, Term, Token, TopicId,
};
use waterwheel::domain::partition::index::BatchPlace;
use waterwheel::domain::rejection::Rejection;
use waterwheel::domain::time::{MonotonicMs, Now, WallMs};
use waterwheel::log::{Log, LogOptions, Room, Scanned};

use super::disk::{Rng, SimDisk};
use super::log::{is_full, options, seeded};

const OWNER: OwnerId = OwnerId(5000);
const LETTERS: OwnerId = OwnerId(6000);
const TOPIC: TopicId = TopicId(1);
const PARTITIONS: u32 = 2;
const LEASE_MS: u64 = 1000;
/// The payload of a letter.
const LETTER_BYTES: usize = 40;

/// Partition and offset.
type Record = (u32, u64);

#[derive(Debug, Default)]
struct Part {
    keys: Vec<u64>,
    batches: Vec<BatchPlace>,
}

/// What a member holds: of each lease its partition and what is open.
type Held = BTreeMap<LeaseId, (u32, BTreeSet<u64>)>;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    crashes: u64,
    torn: u64,
    leased: u64,
    expired: u64,
    settled: u64,
    letters: u64,
    moved: u64,
    altered: u64,
}

struct World {
    rng: Rng,
    disk: SimDisk,
    log: Log,
    group: Group,
    mode: Mode,
    now: Now,
    lives: u64,
    parts: Vec<Part>,
    /// By owner: its next sequence, number and offset.
    next: BTreeMap<OwnerId, (u64, u64)>,
    queue: VecDeque<Vec<(OwnerId, Draft)>>,
    feeds: BTreeMap<CursorNumber, Feed>,
    fetches: Vec<Feed>,
    dying: Vec<DeadLetter>,
    wake: Option<MonotonicMs>,
    members: BTreeMap<MemberId, Held>,
    tokens: u64,
    saying: BTreeMap<Token, Vec<Record>>,
    /// Somebody who had it said that it is done.
    said: BTreeSet<Record>,
    /// And was answered.
    settled: BTreeSet<Record>,
    /// Somebody who had it refused it, or lost it.
    refused: BTreeSet<Record>,
    letters: BTreeSet<Record>,
    described: Option<Description>,
    counts: Counts,
}

fn record_of(facts: &PayloadFacts) -> Record {
    let word = facts.producer.0;
    ((word >> 32) as u32, word & 0xFFFF_FFFF)
}

fn facts_of(body: &[u8]) -> PayloadFacts {
    let word = body
        .first_chunk()
        .map_or(0, |first| u64::from_le_bytes(*first));
    PayloadFacts {
        producer: ProducerId(word),
        ..PayloadFacts::default()
    }
}

fn group_options() -> LogOptions {
    LogOptions {
        facts_of: |body| Some(facts_of(body)),
        ..options()
    }
}

fn open(disk: &SimDisk) -> Log {
    let opened = Log::open(Arc::new(disk.clone()), group_options()).expect("it opens");
    assert_eq!(opened.damage, []);
    opened.log
}

fn limits() -> Limits {
    Limits {
        window_max: 40,
        listed_max: 60,
        drain_ms: 200,
        ..Limits::default()
    }
}

fn spec(mode: Mode) -> SubscriptionSpec {
    let mut spec = SubscriptionSpec::new(TOPIC, mode);
    spec.lease_ms = LEASE_MS;
    spec.retry.backoff = Backoff::Listed(vec![50, 300]);
    spec.retry.attempts_max = 3;
    spec.retry.poison = Poison::DeadLetter;
    spec
}

impl World {
    fn new(seed: u64, mode: Mode) -> Self {
        let disk = SimDisk::new(seed);
        let mut world = Self {
            rng: Rng(seed),
            log: open(&disk),
            disk,
            group: Group::new(OWNER, limits(), 1),
            mode,
            now: Now {
                wall: WallMs(1_700_000_000_000),
                monotonic: MonotonicMs(0),
            },
            lives: 1,
            parts: (0..PARTITIONS).map(|_| Part::default()).collect(),
            next: BTreeMap::new(),
            queue: VecDeque::new(),
            feeds: BTreeMap::new(),
            fetches: Vec::new(),
            dying: Vec::new(),
            wake: None,
            members: BTreeMap::new(),
            tokens: 0,
            saying: BTreeMap::new(),
            said: BTreeSet::new(),
            settled: BTreeSet::new(),
            refused: BTreeSet::new(),
            letters: BTreeSet::new(),
            described: None,
            counts: Counts::default(),
        };
        world.call(|group, now, effects| group.started(now, effects));
        world
    }

    fn call(&mut self, act: impl FnOnce(&mut Group, Now, &mut Vec<Effect>)) {
        let mut effects = Vec::new();
        act(&mut self.group, self.now, &mut effects);
        for effect in effects {
            self.perform(effect);
        }
    }

    fn command(&mut self, command: Command) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        self.call(|group, now, effects| group.handle(now, token, command, effects));
        token
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Persist(run) => self.queue.push_back(run),
            Effect::Reply(token, answer) => self.answered(token, &answer),
            Effect::Tell(member, event) => self.tell(member, event),
            Effect::Welcome(_, member) => drop(self.members.insert(member, Held::new())),
            Effect::Dismiss(member) => {
                let held = self.members.remove(&member).unwrap_or_default();
                held.into_values().for_each(|held| self.given_up(held));
            }
            Effect::Feed(feed) => drop(self.feeds.insert(feed.cursor, feed)),
            Effect::StopFeed(cursor) => drop(self.feeds.remove(&cursor)),
            Effect::Fetch(feed) => self.fetches.push(feed),
            Effect::Watch(topic) => {
                let shape = TopicShape {
                    topic,
                    partitions: PARTITIONS,
                    lanes: 1,
                };
                self.call(|group, now, effects| group.shape(now, shape, effects));
            }
            Effect::DeadLetter(letter) => self.dying.push(letter),
            Effect::WakeAt(at) => self.wake = at,
            Effect::Lookup { .. } => panic!("it begins with the first record"),
        }
    }

    fn answered(&mut self, token: Token, answer: &Result<Answer, Rejection>) {
        if let Ok(Answer::Described(described)) = answer {
            self.described = Some((**described).clone());
        }
        let said = self.saying.remove(&token).unwrap_or_default();
        if let Ok(Answer::Settled(refused)) = answer
            && refused.is_empty()
        {
            self.counts.settled += said.len() as u64;
            self.settled.extend(said);
        }
    }

    fn tell(&mut self, member: MemberId, event: MemberEvent) {
        match event {
            MemberEvent::Leased(leases) => {
                for lease in leases {
                    self.leased(member, &lease);
                }
            }
            MemberEvent::Lost(leases) => {
                let held = self.members.get_mut(&member);
                let lost: Vec<_> = held
                    .map(|held| leases.iter().filter_map(|lease| held.remove(lease)))
                    .into_iter()
                    .flatten()
                    .collect();
                self.counts.expired += lost.len() as u64;
                lost.into_iter().for_each(|held| self.given_up(held));
            }
            // Another of its name has come.
            MemberEvent::Ended(_) => {
                let held = self.members.get_mut(&member).map(std::mem::take);
                let held = held.unwrap_or_default();
                held.into_values().for_each(|held| self.given_up(held));
            }
            MemberEvent::Revoked { .. } => self.counts.moved += 1,
            MemberEvent::Assigned { .. } => {}
            MemberEvent::Unsubscribed { .. } => panic!("nobody took it away"),
        }
    }

    /// Lost with its lease or its member, which counts as an attempt.
    fn given_up(&mut self, (partition, open): (u32, BTreeSet<u64>)) {
        let records = open.into_iter().map(|offset| (partition, offset));
        self.refused.extend(records);
    }

    /// The heart of it: may this member have these records now?
    fn leased(&mut self, member: MemberId, lease: &Lease) {
        let partition = lease.place.partition.0;
        let offsets = lease.first.0..lease.first.0 + u64::from(lease.count);
        for offset in offsets.clone() {
            let record = (partition, offset);
            assert!(!self.settled.contains(&record), "{record:?} was settled");
            assert!(!self.letters.contains(&record), "{record:?} is a letter");
            let is_first = lease.attempt == 1;
            assert!(
                is_first || self.refused.contains(&record),
                "{record:?} counts as tried"
            );
            for (other, held) in &self.members {
                let mut held = held.values();
                let is_held = held.any(|(at, open)| *at == partition && open.contains(&offset));
                assert!(!is_held, "{record:?} is in a live lease of {other}");
            }
            self.check_order(member, record, lease.first.0);
        }
        self.counts.leased += u64::from(lease.count);
        let held = self.members.get_mut(&member).expect("leased to a member");
        held.insert(lease.id, (partition, offsets.collect()));
    }

    fn check_order(&self, member: MemberId, (partition, offset): Record, leased_from: u64) {
        let keys = &self.parts[partition as usize].keys;
        let done = |earlier: u64| {
            let record = (partition, earlier);
            self.said.contains(&record) || self.letters.contains(&record)
        };
        let key = keys[offset as usize];
        for earlier in 0..offset {
            let is_before = match self.mode {
                Mode::KeyOrdered => key != 0 && keys[earlier as usize] == key,
                Mode::Exclusive => earlier < leased_from,
                Mode::Shared | Mode::Broadcast => false,
            };
            let mut held = self.members[&member].values();
            let has = held.any(|(at, open)| *at == partition && open.contains(&earlier));
            let may = done(earlier) || self.mode == Mode::Exclusive && has;
            assert!(
                !is_before || may,
                "{offset} of {partition} before {earlier}"
            );
        }
    }

    // ---- the world ------------------------------------------------------------------------------

    fn produce(&mut self) {
        let at = self.rng.below(u64::from(PARTITIONS)) as usize;
        let count = 1 + self.rng.below(8);
        let keys: Vec<u64> = (0..count).map(|_| self.rng.below(4)).collect();
        let appended = self.now.wall;
        let part = &mut self.parts[at];
        let first = part.keys.len() as u64;
        part.keys.extend(keys);
        part.batches.push(BatchPlace {
            first_offset: Offset(first),
            count: count as u32,
            first_number: RecordNumber(first),
            position: LogPosition(first * 1000),
            length: 100 * count as u32,
            appended,
            tags: 0,
            reference: None,
        });
    }

    fn feed(&mut self) -> bool {
        let has_more = |feed: &&Feed| {
            let part = &self.parts[feed.place.partition.0 as usize];
            feed.from.0 < part.keys.len() as u64
        };
        let Some(feed) = self.feeds.values().find(has_more).cloned() else {
            return false;
        };
        self.feeds.remove(&feed.cursor);
        let part = &self.parts[feed.place.partition.0 as usize];
        let there = part.batches.iter().filter(|batch| batch.end() > feed.from);
        let found: Vec<Offered> = there
            .take(3)
            .map(|batch| offer(part, batch, &feed))
            .collect();
        let high = Offset(part.keys.len() as u64);
        let (cursor, round) = (feed.cursor, feed.round);
        self.call(|group, now, effects| {
            group.offered(now, cursor, round, &found, high, effects);
        });
        true
    }

    fn fetch(&mut self) -> bool {
        let Some(feed) = self.fetches.pop() else {
            return false;
        };
        let part = &self.parts[feed.place.partition.0 as usize];
        let there = part.batches.iter().filter(|batch| batch.end() > feed.from);
        let batches: Vec<BatchPlace> = there.take(2).copied().collect();
        let end = batches.last().map_or(feed.from, BatchPlace::end);
        self.call(|group, now, effects| {
            group.fetched(now, feed.cursor, (feed.from, end), &batches, effects);
        });
        true
    }

    fn bury(&mut self) -> bool {
        let Some(letter) = self.dying.pop() else {
            return false;
        };
        let copied = if self.rng.chance(20) {
            Copied::Later
        } else {
            let word = u64::from(letter.place.partition.0) << 32 | letter.offset.0;
            let mut body = word.to_le_bytes().to_vec();
            body.resize(LETTER_BYTES, 0);
            let facts = facts_of(&body);
            let draft = Draft {
                kind: EntryKind::Payload,
                numbers: 1,
                offsets: 1,
                body: Bytes::from(body).into(),
                facts,
            };
            Copied::To(vec![(LETTERS, draft)])
        };
        self.call(|group, now, effects| {
            group.dead_letter(now, letter.cursor, letter.offset, copied, effects);
        });
        true
    }

    fn advance(&mut self, ms: u64) {
        self.now.monotonic.0 += ms;
        self.now.wall.0 += ms as i64;
        if self.wake.is_some_and(|at| at <= self.now.monotonic) {
            self.wake = None;
            self.call(|group, now, effects| group.wake(now, effects));
        }
    }

    // ---- members --------------------------------------------------------------------------------

    fn join(&mut self, name: &str, grace_ms: u64) {
        // Whoever joins asks for what there is.
        let there = self.describe().subscriptions.pop();
        let join = Join {
            subscriptions: vec![there.unwrap_or_else(|| spec(self.mode))],
            name: name.to_owned(),
            grace_ms,
            settle: Settle::OnAcknowledge,
        };
        self.command(Command::Join(join));
    }

    /// Other rules, so that everything is looked at again while this and that is on its way to the log.
    fn alter(&mut self) {
        let Some(there) = self.describe().subscriptions.pop() else {
            return;
        };
        let filter = if there.filter.is_empty() { "some" } else { "" };
        let retry = RetryPolicy {
            attempts_max: 2 + self.rng.below(3) as u16,
            ..there.retry
        };
        let change = SubscriptionChange {
            filter: Some(filter.to_owned()),
            retry: Some(retry),
            ..SubscriptionChange::default()
        };
        self.command(Command::Alter {
            topic: TOPIC,
            change,
        });
        self.counts.altered += 1;
    }

    fn describe(&mut self) -> Description {
        self.command(Command::Describe);
        self.described.take().expect("it is answered at once")
    }

    fn pick(&mut self) -> Option<MemberId> {
        let all: Vec<MemberId> = self.members.keys().copied().collect();
        let which = self.rng.below(all.len().max(1) as u64);
        all.get(which as usize).copied()
    }

    fn pick_record(&mut self) -> Option<(MemberId, LeaseId, Record)> {
        let member = self.pick()?;
        let leases: Vec<LeaseId> = self.members[&member].keys().copied().collect();
        let which = self.rng.below(leases.len().max(1) as u64);
        let lease = *leases.get(which as usize)?;
        let (partition, open) = &self.members[&member][&lease];
        Some((member, lease, (*partition, *open.first()?)))
    }

    /// Takes a record out of what a member holds; in order, what is behind it goes too where it is refused.
    fn part(&mut self, member: MemberId, lease: LeaseId, offset: u64, refused: bool) {
        let held = self.members.get_mut(&member).expect("a member");
        let (_, open) = held.get_mut(&lease).expect("its lease");
        open.remove(&offset);
        if refused && self.mode == Mode::Exclusive {
            open.retain(|other| *other < offset);
        }
        if open.is_empty() {
            held.remove(&lease);
        }
    }

    fn acknowledge(&mut self, (member, lease, record): (MemberId, LeaseId, Record)) {
        self.part(member, lease, record.1, false);
        self.said.insert(record);
        self.saying.insert(Token(self.tokens + 1), vec![record]);
        let ranges = vec![range(lease, record.1)];
        self.command(Command::Acknowledge { member, ranges });
    }

    fn refuse(&mut self, (member, lease, record): (MemberId, LeaseId, Record)) {
        self.part(member, lease, record.1, true);
        let after = match self.rng.below(8) {
            0 => RetryAfter::Now,
            1 | 2 => RetryAfter::DeadLetter,
            3 => RetryAfter::Undelivered,
            4 => RetryAfter::Unseen,
            _ => RetryAfter::Policy,
        };
        if after != RetryAfter::Unseen {
            self.refused.insert(record);
        }
        let ranges = vec![range(lease, record.1)];
        let reason = "it would not do".to_owned();
        self.command(Command::Refuse {
            member,
            ranges,
            after,
            reason,
        });
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..10 => self.produce(),
            10..14 => {
                let name = format!("m{}", self.rng.below(3));
                match self.rng.below(3) {
                    0 => self.join(&name, 300),
                    _ => self.join("", 0),
                }
            }
            14..17 => {
                if let Some(member) = self.pick() {
                    let command = match self.rng.below(2) {
                        0 => Command::Leave { member },
                        _ => Command::Lost { member },
                    };
                    self.command(command);
                }
            }
            17..19 => self.alter(),
            19..27 => {
                if let Some(member) = self.pick() {
                    let records = 1 + self.rng.below(12);
                    self.credit(member, records);
                }
            }
            27..44 => {
                if let Some(held) = self.pick_record() {
                    self.acknowledge(held);
                }
            }
            44..52 => {
                if let Some(held) = self.pick_record() {
                    self.refuse(held);
                }
            }
            52..62 => drop(self.feed()),
            62..66 => drop(self.fetch()),
            66..71 => drop(self.bury()),
            71..91 => drop(self.flush(true)),
            // Now and then longer than a lease: members are slow.
            91..99 => {
                let ms = 1 + self.rng.below(LEASE_MS / 2);
                self.advance(ms);
            }
            _ => {
                let power = self.rng.chance(50);
                self.crash(power);
            }
        }
    }

    fn credit(&mut self, member: MemberId, records: u64) {
        self.command(Command::Credit {
            member,
            topic: TOPIC,
            bytes: 1 << 20,
            records,
        });
    }

    fn come_to_rest(&mut self) {
        while self.flush(false) || self.feed() || self.fetch() || self.bury() {}
    }

    /// A member that takes its time for nothing consumes what is left: all of it was settled, or died.
    fn finish(&mut self) {
        self.crash(false);
        self.join("", 0);
        self.come_to_rest();
        for _ in 0..300 {
            let member = *self.members.keys().next().expect("it joined");
            self.credit(member, 100);
            self.come_to_rest();
            while let Some(held) = self.pick_record() {
                self.acknowledge(held);
            }
            self.come_to_rest();
            self.advance(400);
            if self.left().is_empty() && self.is_consumed() {
                return;
            }
        }
        panic!("left over: {:?}", self.left());
    }

    /// Whether the group says that nothing is left of it.
    fn is_consumed(&mut self) -> bool {
        self.describe().places.iter().all(|place| {
            let all = self.parts[place.place.partition.0 as usize].keys.len() as u64;
            let waiting = place.retrying + place.attached + place.held + place.leased;
            place.floor.0 == all && waiting == 0
        })
    }

    fn left(&self) -> Vec<Record> {
        let all = self.parts.iter().enumerate();
        let all =
            all.flat_map(|(at, part)| (0..part.keys.len() as u64).map(move |o| (at as u32, o)));
        all.filter(|record| !self.said.contains(record) && !self.letters.contains(record))
            .collect()
    }
}

fn range(lease: LeaseId, offset: u64) -> LeasedRange {
    LeasedRange {
        lease,
        first: Offset(offset),
        count: 1,
    }
}

fn offer(part: &Part, batch: &BatchPlace, feed: &Feed) -> Offered {
    let from = feed.from.max(batch.first_offset);
    let records = (from.0..batch.end().0).map(|offset| OfferedRecord {
        offset: Offset(offset),
        key_hash: part.keys[offset as usize],
    });
    Offered {
        batch: *batch,
        from,
        records: (feed.keys || !feed.filter.is_empty()).then(|| records.collect()),
    }
}

fn wander(seed: u64, mode: Mode) -> Counts {
    let mut world = World::new(seed, mode);
    for _ in 0..400 {
        world.step();
    }
    world.finish();
    world.counts
}

fn hold(mode: Mode) {
    let mut all = Counts::default();
    for seed in 0..if is_full() { 1000 } else { 60 } {
        let counts = seeded(seed, |seed| wander(seed, mode));
        all.crashes += counts.crashes;
        all.torn += counts.torn;
        all.leased += counts.leased;
        all.expired += counts.expired;
        all.settled += counts.settled;
        all.letters += counts.letters;
        all.moved += counts.moved;
        all.altered += counts.altered;
    }
    // A run over everything means that everything was met.
    assert!(all.crashes > 150 && all.torn > 20, "{all:?}");
    assert!(all.leased > 2_000 && all.settled > 1_000, "{all:?}");
    assert!(all.expired > 50 && all.letters > 50, "{all:?}");
    assert!(all.altered > 200, "{all:?}");
    assert!(mode != Mode::Exclusive || all.moved > 20, "{all:?}");
}

#[test]
fn no_record_is_in_two_live_leases_lost_or_twice_a_letter_in_a_shared_group() {
    hold(Mode::Shared);
}

#[test]
fn no_record_is_in_two_live_leases_or_before_another_of_its_key_in_a_key_ordered_group() {
    hold(Mode::KeyOrdered);
}

#[test]
fn no_record_is_in_two_live_leases_or_out_of_order_in_an_exclusive_group() {
    hold(Mode::Exclusive);
}

#[test]
fn one_seed_twice_is_one_run() {
    for mode in [Mode::Shared, Mode::KeyOrdered, Mode::Exclusive] {
        assert_eq!(wander(7, mode), wander(7, mode));
    }
}

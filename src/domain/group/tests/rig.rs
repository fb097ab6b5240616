//! A group, the log it writes to, partitions it reads, members it leases to, and a model that checks every
//! step: what is leased twice, out of order, or again after it was settled is found at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::domain::entry::{AppliedEntry, Draft, EntryHeader, EntryPlace, PayloadFacts};
use crate::domain::group::command::*;
use crate::domain::group::dead::Copied;
use crate::domain::group::rows::RowId;
use crate::domain::group::subscription::{Mode, SubscriptionSpec};
use crate::domain::group::{Group, Limits};
use crate::domain::id::*;
use crate::domain::partition::Bounds;
use crate::domain::partition::index::BatchPlace;
use crate::domain::rejection::Rejection;
use crate::domain::time::{MonotonicMs, Now, WallMs};

pub(super) const OWNER: OwnerId = OwnerId(5000);
pub(super) const DEAD: OwnerId = OwnerId(6000);
pub(super) const TOPIC: TopicId = TopicId(1);

/// A record as the model knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    pub(super) key: u64,
    pub(super) wanted: bool,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Part {
    pub(super) records: Vec<Stored>,
    pub(super) batches: Vec<BatchPlace>,
    pub(super) start: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Client {
    /// What it holds: lease, place, open offsets.
    pub(super) leases: BTreeMap<LeaseId, (PartitionId, BTreeSet<u64>, u16)>,
    pub(super) ended: bool,
}

type Run = Vec<(OwnerId, Draft)>;

#[derive(Clone)]
pub(super) struct Rig {
    pub(super) spec: SubscriptionSpec,
    pub(super) group: Group,
    pub(super) limits: Limits,
    pub(super) lives: u64,
    pub(super) now: Now,
    pub(super) log: Vec<AppliedEntry>,
    pub(super) queue: VecDeque<Run>,
    pub(super) parts: BTreeMap<PartitionId, Part>,
    pub(super) feeds: BTreeMap<CursorNumber, Feed>,
    pub(super) fetches: Vec<Feed>,
    pub(super) dying: Vec<DeadLetter>,
    pub(super) wake: Option<MonotonicMs>,
    pub(super) clients: BTreeMap<MemberId, Client>,
    pub(super) answers: BTreeMap<Token, Result<Answer, Rejection>>,
    /// What an acknowledgement on its way settles.
    pub(super) acking: BTreeMap<Token, Vec<(PartitionId, u64)>>,
    pub(super) settled: BTreeSet<(PartitionId, u64)>,
    pub(super) dead: BTreeSet<(PartitionId, u64)>,
    pub(super) next_token: u64,
    /// No lane ages: nothing is given out while a higher one has something.
    pub(super) strict_lanes: bool,
}

pub(super) fn place(partition: u32) -> PartitionId {
    PartitionId {
        topic: TOPIC,
        partition: PartitionIndex(partition),
        lane: Lane(0),
    }
}

impl Rig {
    pub(super) fn new(spec: SubscriptionSpec, partitions: u32, limits: Limits) -> Self {
        let parts = (0..partitions)
            .map(|p| (place(p), Part::default()))
            .collect();
        let mut rig = Self {
            spec,
            group: Group::new(OWNER, limits, 1),
            limits,
            lives: 1,
            now: Now {
                wall: WallMs(1_000_000),
                monotonic: MonotonicMs(0),
            },
            log: Vec::new(),
            queue: VecDeque::new(),
            parts,
            feeds: BTreeMap::new(),
            fetches: Vec::new(),
            dying: Vec::new(),
            wake: None,
            clients: BTreeMap::new(),
            answers: BTreeMap::new(),
            acking: BTreeMap::new(),
            settled: BTreeSet::new(),
            dead: BTreeSet::new(),
            next_token: 0,
            strict_lanes: false,
        };
        rig.call(|group, now, effects| group.started(now, effects));
        rig
    }

    pub(super) fn call(&mut self, f: impl FnOnce(&mut Group, Now, &mut Vec<Effect>)) {
        let mut effects = Vec::new();
        f(&mut self.group, self.now, &mut effects);
        if self.strict_lanes {
            self.check_lanes(&effects);
        }
        self.perform(effects);
    }

    pub(super) fn command(&mut self, command: Command) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.call(|group, now, effects| group.handle(now, token, command, effects));
        token
    }

    pub(super) fn join(&mut self, name: &str, grace_ms: u64, settle: Settle) -> Token {
        let join = Join {
            subscriptions: vec![self.spec.clone()],
            name: name.to_owned(),
            grace_ms,
            settle,
        };
        self.command(Command::Join(join))
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Persist(drafts) => self.queue.push_back(drafts),
                Effect::Reply(token, answer) => self.reply(token, answer),
                Effect::Tell(member, event) => self.tell(member, event),
                Effect::Welcome(_, member) => {
                    self.clients.insert(member, Client::default());
                }
                Effect::Dismiss(member) => {
                    if let Some(client) = self.clients.get_mut(&member) {
                        client.ended = true;
                        client.leases.clear();
                    }
                }
                Effect::Feed(feed) => {
                    self.feeds.insert(feed.cursor, feed);
                }
                Effect::StopFeed(cursor) => {
                    self.feeds.remove(&cursor);
                }
                Effect::Fetch(feed) => self.fetches.push(feed),
                Effect::Lookup { job, place, start } => {
                    let part = &self.parts[&place];
                    let end = part.records.len() as u64;
                    let found = match start {
                        super::super::subscription::Start::Latest => end,
                        super::super::subscription::Start::Offset(offset) => {
                            offset.0.clamp(part.start, end)
                        }
                        super::super::subscription::Start::Time(time) => part
                            .batches
                            .iter()
                            .find(|batch| batch.appended >= time)
                            .map_or(end, |batch| batch.first_offset.0)
                            .max(part.start),
                        super::super::subscription::Start::Earliest => part.start,
                    };
                    let bounds = Bounds {
                        offset: Offset(found),
                        start: Offset(part.start),
                        high_watermark: Offset(end),
                        log_end: Offset(end),
                        next_number: RecordNumber(end),
                    };
                    self.call(|group, now, effects| {
                        group.looked_up(now, job, place, Ok(bounds), effects)
                    });
                }
                Effect::Watch(topic) => {
                    let shape = TopicShape {
                        topic,
                        partitions: self.shape().0,
                        lanes: self.shape().1,
                    };
                    self.call(|group, now, effects| group.shape(now, shape, effects));
                }
                Effect::DeadLetter(letter) => self.dying.push(letter),
                Effect::WakeAt(at) => self.wake = at,
            }
        }
    }

    fn reply(&mut self, token: Token, answer: Result<Answer, Rejection>) {
        let acked = self.acking.remove(&token).unwrap_or_default();
        if let Ok(Answer::Settled(refused)) = &answer
            && refused.is_empty()
        {
            for record in acked {
                self.settled.insert(record);
            }
        }
        assert!(
            self.answers.insert(token, answer).is_none(),
            "answered twice"
        );
    }

    fn tell(&mut self, member: MemberId, event: MemberEvent) {
        match event {
            MemberEvent::Leased(leases) => {
                for lease in leases {
                    self.leased(member, &lease);
                }
            }
            MemberEvent::Lost(leases) => {
                let client = self.clients.get_mut(&member).unwrap();
                for lease in leases {
                    assert!(
                        client.leases.remove(&lease).is_some(),
                        "lost a lease it did not have"
                    );
                }
            }
            MemberEvent::Ended(_) => {
                let client = self.clients.get_mut(&member).unwrap();
                client.leases.clear();
                client.ended = true;
            }
            MemberEvent::Unsubscribed { .. } => {
                self.clients.get_mut(&member).unwrap().leases.clear();
            }
            MemberEvent::Assigned { .. } | MemberEvent::Revoked { .. } => {}
        }
    }

    /// The heart of the model: may this member get these records now?
    fn leased(&mut self, member: MemberId, lease: &Lease) {
        let part = &self.parts[&lease.place];
        assert!(lease.count > 0);
        assert!(lease.first >= lease.batch.first_offset);
        assert!(lease.first.0 + u64::from(lease.count) <= lease.batch.end().0);
        let offsets = lease.first.0..lease.first.0 + u64::from(lease.count);
        for offset in offsets.clone() {
            let record = (lease.place, offset);
            assert!(
                part.records[usize::try_from(offset).unwrap()].wanted,
                "it does not pass the filter"
            );
            if self.spec.mode != Mode::Broadcast {
                assert!(
                    !self.settled.contains(&record),
                    "G4: {record:?} was settled"
                );
                assert!(
                    !self.dead.contains(&record),
                    "G4: {record:?} was dead-lettered"
                );
                for (id, client) in &self.clients {
                    for (other, open, _) in client.leases.values() {
                        assert!(
                            *other != lease.place || !open.contains(&offset),
                            "G2: {record:?} is in a live lease of {id}"
                        );
                    }
                }
            }
            self.check_order(member, lease.place, offset, lease.first.0);
        }
        if lease.lease_ms == 0 {
            for offset in offsets {
                assert!(self.settled.insert((lease.place, offset)), "at most once");
            }
            return;
        }
        let client = self.clients.get_mut(&member).unwrap();
        assert!(!client.ended, "leased to who is gone");
        client
            .leases
            .insert(lease.id, (lease.place, offsets.collect(), lease.attempt));
    }

    /// G3.
    fn check_order(&self, member: MemberId, at: PartitionId, offset: u64, leased_from: u64) {
        let part = &self.parts[&at];
        let done = |earlier: u64| {
            let record = (at, earlier);
            self.settled.contains(&record)
                || self.dead.contains(&record)
                || !part.records[usize::try_from(earlier).unwrap()].wanted
                || earlier < part.start
        };
        // As it is now, if that was altered.
        let known = self.group.subscriptions.get(&TOPIC);
        match known.map_or(self.spec.mode, |known| known.spec.mode) {
            Mode::KeyOrdered => {
                let key = part.records[usize::try_from(offset).unwrap()].key;
                if key == 0 {
                    return;
                }
                for earlier in part.start..offset {
                    if part.records[usize::try_from(earlier).unwrap()].key == key {
                        assert!(
                            done(earlier) || self.durably_settled(at, earlier),
                            "G3: {offset} of {at:?} before {earlier} of its key"
                        );
                    }
                }
            }
            Mode::Exclusive => {
                let theirs = &self.clients[&member];
                let behind = self
                    .clients
                    .values()
                    .flat_map(|client| client.leases.values());
                let behind = behind.filter(|(place, ..)| *place == at);
                let held_behind = behind.flat_map(|(_, open, _)| open.range(offset + 1..));
                assert_eq!(
                    held_behind.min(),
                    None,
                    "G10: {offset} of {at:?} though what is behind it is in hand"
                );
                for earlier in part.start..leased_from.min(offset) {
                    let held = theirs
                        .leases
                        .values()
                        .any(|(place, open, _)| *place == at && open.contains(&earlier));
                    // An acknowledgement on its way is the member's word that it is done.
                    let acking = self
                        .acking
                        .values()
                        .flatten()
                        .any(|record| *record == (at, earlier));
                    assert!(
                        held || acking || done(earlier) || self.durably_settled(at, earlier),
                        "G3: {offset} of {at:?} before {earlier}"
                    );
                }
            }
            Mode::Shared | Mode::Broadcast => {}
        }
    }

    /// Whether the group's applied state has it settled: an acknowledgement whose answer was lost.
    fn durably_settled(&self, at: PartitionId, offset: u64) -> bool {
        self.group
            .cursors
            .values()
            .any(|cursor| cursor.place == at && cursor.is_settled(offset))
    }

    // ---- the world ------------------------------------------------------------------------------

    pub(super) fn produce(&mut self, at: PartitionId, records: &[Stored]) {
        let part = self.parts.get_mut(&at).unwrap();
        let first = part.records.len() as u64;
        part.records.extend(records);
        part.batches.push(BatchPlace {
            first_offset: Offset(first),
            count: u32::try_from(records.len()).unwrap(),
            first_number: RecordNumber(first),
            position: LogPosition(first * 1000),
            length: 100 * u32::try_from(records.len()).unwrap(),
            appended: self.now.wall,
            tags: 0,
            reference: None,
        });
    }

    /// One search is answered, if there is something to answer with.
    pub(super) fn feed(&mut self, which: usize) -> bool {
        let ready: Vec<CursorNumber> = self
            .feeds
            .values()
            .filter(|feed| {
                let part = &self.parts[&feed.place];
                feed.from.0 < part.start || feed.from.0 < part.records.len() as u64
            })
            .map(|feed| feed.cursor)
            .collect();
        if ready.is_empty() {
            return false;
        }
        let cursor = ready[which % ready.len()];
        let feed = self.feeds.remove(&cursor).unwrap();
        let part = &self.parts[&feed.place];
        if feed.from.0 < part.start {
            let start = Offset(part.start);
            self.call(|group, now, effects| group.trimmed(now, cursor, start, effects));
            return true;
        }
        let mut found = Vec::new();
        let mut bytes = 0;
        for batch in &part.batches {
            if batch.end() <= feed.from || bytes > feed.bytes_max / 4096 {
                continue;
            }
            bytes += u64::from(batch.length);
            found.push(offer(part, batch, feed.from, &feed));
        }
        let high = Offset(part.records.len() as u64);
        self.call(|group, now, effects| {
            group.offered(now, cursor, feed.round, &found, high, effects)
        });
        true
    }

    pub(super) fn fetch(&mut self) -> bool {
        let Some(feed) = self.fetches.pop() else {
            return false;
        };
        let part = &self.parts[&feed.place];
        let (from, start) = (feed.from, Offset(part.start));
        let there = part.batches.iter().filter(|batch| batch.end() > from);
        // Not much at a time, so that it takes several.
        let batches: Vec<BatchPlace> = there
            .take(if from < start { 0 } else { 2 })
            .copied()
            .collect();
        let end = batches.last().map_or(start, BatchPlace::end);
        self.call(|group, now, effects| {
            group.fetched(now, feed.cursor, (from, end), &batches, effects)
        });
        true
    }

    pub(super) fn bury(&mut self) -> bool {
        let Some(letter) = self.dying.pop() else {
            return false;
        };
        let copy = Draft {
            kind: crate::domain::entry::EntryKind::Payload,
            numbers: 1,
            offsets: 1,
            body: bytes::Bytes::copy_from_slice(&[
                u8::try_from(letter.place.partition.0).unwrap(),
                u8::try_from(letter.offset.0 >> 8).unwrap(),
                u8::try_from(letter.offset.0 & 255).unwrap(),
            ])
            .into(),
            facts: PayloadFacts::default(),
        };
        let copied = Copied::To(vec![(DEAD, copy)]);
        self.call(|group, now, effects| {
            group.dead_letter(now, letter.cursor, letter.offset, copied, effects)
        });
        true
    }

    /// A dead letter cannot be written now: no topic for it yet, no room.
    pub(super) fn put_off_burial(&mut self) -> bool {
        let Some(letter) = self.dying.pop() else {
            return false;
        };
        self.call(|group, now, effects| {
            group.dead_letter(now, letter.cursor, letter.offset, Copied::Later, effects)
        });
        true
    }

    /// The log writes what is queued, up to `runs` of it.
    pub(super) fn commit(&mut self, runs: usize) -> bool {
        let mut applied = Vec::new();
        for _ in 0..runs {
            let Some(run) = self.queue.pop_front() else {
                break;
            };
            let last = run.len() - 1;
            for (at, (owner, draft)) in run.into_iter().enumerate() {
                if owner == DEAD {
                    let body = draft.body.to_bytes();
                    let record = (
                        place(u32::from(body[0])),
                        u64::from(body[1]) << 8 | u64::from(body[2]),
                    );
                    assert!(self.dead.insert(record), "dead-lettered twice: {record:?}");
                    continue;
                }
                let sequence = self.log.len() as u64 + 1;
                let entry = AppliedEntry {
                    header: EntryHeader {
                        kind: draft.kind,
                        tied_to_next: at < last,
                        moved: false,
                        index: LogIndex(sequence),
                        term: Term(1),
                        owner,
                        sequence: OwnerSequence(sequence),
                        first_number: RecordNumber(0),
                        first_offset: Offset(0),
                        numbers: 0,
                        offsets: 0,
                        appended: self.now.wall,
                        wall: self.now.wall,
                    },
                    place: EntryPlace {
                        position: LogPosition(sequence),
                        length: 1,
                    },
                    body: draft.body.to_bytes(),
                    facts: PayloadFacts::default(),
                };
                self.log.push(entry.clone());
                applied.push(entry);
            }
        }
        if applied.is_empty() {
            return false;
        }
        self.call(|group, now, effects| {
            for entry in &applied {
                group.apply(now, entry, effects);
            }
            group.applied_all(now, effects);
        });
        true
    }

    pub(super) fn advance(&mut self, ms: u64) {
        self.now.monotonic.0 += ms;
        self.now.wall.0 += i64::try_from(ms).unwrap();
        if self.wake.is_some_and(|at| at <= self.now.monotonic) {
            self.wake = None;
            self.call(|group, now, effects| group.wake(now, effects));
        }
    }

    /// The actor dies: what the log has is folded again, from the start or from rows.
    pub(super) fn crash(&mut self, from_rows: bool) {
        self.queue.clear();
        self.lives += 1;
        let mut rows: BTreeMap<RowId, bytes::Bytes> = BTreeMap::new();
        let mut fresh = Group::new(OWNER, self.limits, self.lives);
        let middle = self.log.len() / 2;
        for (at, entry) in self.log.iter().enumerate() {
            if from_rows && at == middle {
                for change in fresh.take_rows().1 {
                    match change.value {
                        Some(value) => rows.insert(change.id, value),
                        None => rows.remove(&change.id),
                    };
                }
                let pairs = rows.iter().map(|(id, value)| (*id, &**value));
                fresh = Group::from_rows(OWNER, self.limits, self.lives, pairs).unwrap();
            }
            let now = Now {
                wall: entry.header.wall,
                monotonic: MonotonicMs(0),
            };
            fresh.apply(now, entry, &mut Vec::new());
        }
        assert_eq!(fresh.applied_state(), self.group.applied_state(), "G7");
        self.group = fresh;
        self.now.monotonic = MonotonicMs(0);
        for client in self.clients.values_mut() {
            client.ended = true;
            client.leases.clear();
        }
        self.feeds.clear();
        self.fetches.clear();
        self.dying.clear();
        self.acking.clear();
        self.wake = None;
        self.call(|group, now, effects| group.started(now, effects));
        // An acknowledgement that was durable counts, whether its answer came or not.
        self.settle_durable();
    }

    pub(super) fn settle_durable(&mut self) {
        for cursor in self.group.cursors.values() {
            for offset in 0..self.parts[&cursor.place].records.len() as u64 {
                let record = (cursor.place, offset);
                if cursor.is_settled(offset) && !self.dead.contains(&record) {
                    self.settled.insert(record);
                }
            }
        }
    }

    /// Members that listen.
    pub(super) fn live(&self) -> Vec<MemberId> {
        self.clients
            .iter()
            .filter(|(_, client)| !client.ended)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Acknowledges offsets of a lease.
    pub(super) fn ack(&mut self, member: MemberId, lease: LeaseId, first: u64, count: u32) {
        let client = self.clients.get_mut(&member).unwrap();
        let (at, open, _) = client.leases.get_mut(&lease).unwrap();
        let at = *at;
        let mut acked = Vec::new();
        for offset in first..first + u64::from(count) {
            if open.remove(&offset) {
                acked.push((at, offset));
            }
        }
        if open.is_empty() {
            client.leases.remove(&lease);
        }
        self.acking.insert(Token(self.next_token + 1), acked);
        let first = Offset(first);
        let ranges = vec![LeasedRange {
            lease,
            first,
            count,
        }];
        self.command(Command::Acknowledge { member, ranges });
    }

    /// Refuses them.
    pub(super) fn nack(
        &mut self,
        member: MemberId,
        lease: LeaseId,
        first: u64,
        count: u32,
        after: RetryAfter,
    ) {
        let client = self.clients.get_mut(&member).unwrap();
        let (_, open, _) = client.leases.get_mut(&lease).unwrap();
        let mut given = Vec::new();
        for offset in first..first + u64::from(count) {
            if open.remove(&offset) {
                given.push(offset);
            }
        }
        if open.is_empty() {
            client.leases.remove(&lease);
        }
        if self.spec.mode == Mode::Exclusive
            && let Some(refused) = given.first()
            && let Some((_, open, _)) = client.leases.get_mut(&lease)
        {
            // In order, what is behind it in the same lease is given back with it.
            open.retain(|offset| offset < refused);
            if open.is_empty() {
                client.leases.remove(&lease);
            }
        }
        let first = Offset(first);
        let ranges = vec![LeasedRange {
            lease,
            first,
            count,
        }];
        let reason = "it would not do".to_owned();
        self.command(Command::Refuse {
            member,
            ranges,
            after,
            reason,
        });
    }

    /// Everything that can happen by itself does.
    pub(super) fn settle_down(&mut self) {
        for _ in 0..5_000 {
            let moved = self.commit(usize::MAX) | self.feed(0) | self.fetch() | self.bury();
            if !moved {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// A well-behaved member takes and acknowledges everything there is.
    pub(super) fn consume_all(&mut self) {
        self.settle_down();
        for member in self.live() {
            self.command(Command::Lost { member });
        }
        self.settle_down();
        self.advance(100_000);
        self.join("", 0, Settle::OnAcknowledge);
        self.settle_down();
        let member = *self.live().last().unwrap();
        for _ in 0..200 {
            let topic = TOPIC;
            self.command(Command::Credit {
                member,
                topic,
                bytes: 1 << 20,
                records: 1000,
            });
            self.settle_down();
            let held: Vec<(LeaseId, BTreeSet<u64>)> = self.clients[&member]
                .leases
                .iter()
                .map(|(lease, (_, open, _))| (*lease, open.clone()))
                .collect();
            for (lease, open) in &held {
                for offset in open {
                    self.ack(member, *lease, *offset, 1);
                }
            }
            self.settle_down();
            if held.is_empty() {
                self.advance(50_000);
                self.settle_down();
                if self.clients[&member].leases.is_empty() && self.all_done() {
                    return;
                }
            }
        }
        panic!("stuck: {:?}", self.left());
    }

    fn left(&self) -> Vec<(PartitionId, u64)> {
        self.parts
            .iter()
            .flat_map(|(at, part)| {
                (part.start..part.records.len() as u64).map(move |offset| (*at, offset))
            })
            .filter(|(at, offset)| {
                self.parts[at].records[usize::try_from(*offset).unwrap()].wanted
                    && !self.settled.contains(&(*at, *offset))
                    && !self.dead.contains(&(*at, *offset))
            })
            .collect()
    }

    fn all_done(&self) -> bool {
        self.left().is_empty()
    }
}

fn offer(part: &Part, batch: &BatchPlace, from: Offset, feed: &Feed) -> Offered {
    let from = from.max(batch.first_offset);
    let records = (from.0..batch.end().0).filter_map(|offset| {
        let record = part.records[usize::try_from(offset).unwrap()];
        record.wanted.then_some(OfferedRecord {
            offset: Offset(offset),
            key_hash: record.key,
        })
    });
    let listed = feed.keys || !feed.filter.is_empty();
    Offered {
        batch: *batch,
        from,
        records: listed.then(|| records.collect()),
    }
}

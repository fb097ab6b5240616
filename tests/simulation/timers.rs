//! A partition with delayed records, the timing wheel and the checkpoint between them, on one thread: with
//! mailboxes emptied in any order, a clock that steps, kills, power cuts and levels that fail alone.
//!
//! What is durable is told twice: by the machines, and by a plain list of what the log says of each record.
//! 0 early, 0 lost, 0 back from the dead; and what was answered once is answered for ever.

#![allow(
    clippy::expect_used,
    clippy::wildcard_enum_match_arm,
    clippy::cast_sign_loss,
    clippy::field_reassign_with_default,
    reason = "a test fails by panicking, and its numbers are small"
)]

mod scenes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use waterwheel::domain::alarm::Alarm;
use waterwheel::domain::batch::Delivery;
use waterwheel::domain::entry::{
    AppliedEntry, Draft, EntryHeader, EntryKind, EntryPlace, PayloadFacts,
};
use waterwheel::domain::id::{
    LogIndex, LogPosition, Offset, OwnerId, OwnerSequence, RecordNumber, Term, Token,
};
use waterwheel::domain::partition::delayed::{TimerAnswer, TimerCommand};
use waterwheel::domain::partition::publication::{Publication, PublishPlace};
use waterwheel::domain::partition::rows::RowId;
use waterwheel::domain::partition::{
    Append, Delta, Effect as Wants, Limits, Partition, TimerLimits, alarms_of,
};
use waterwheel::domain::time::WallMs;
use waterwheel::domain::wheel::chunk::{self, RowId as Home};
use waterwheel::domain::wheel::coarse::Coarse;
use waterwheel::domain::wheel::finest::Finest;
use waterwheel::domain::wheel::{
    Effect, Held, Moment, Read, WALL_LEVELS, home_shift, level_for, span_ms, tick_shift,
};

use super::disk::Rng;

const OWNER: OwnerId = OwnerId(1024);
const START: i64 = 1_790_000_000_000;
const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;
const LEVELS: usize = WALL_LEVELS as usize;

#[derive(Debug)]
enum Message {
    Arm(Vec<Alarm>),
    Over(Vec<Alarm>),
    Fall(Vec<Held>, Option<i64>),
    Landed(i64),
    Loaded(Vec<Read>),
    Returned(u64, Option<u64>),
    Up(u64, i64),
    Down(u64, i64),
    Homed,
}

/// What the partition is told.
#[derive(Debug)]
enum Told {
    Due(u64, Vec<Alarm>),
    Near(Vec<Alarm>),
    Armed(usize),
    Applied(AppliedEntry),
}

/// What the log says of a record.
#[derive(Debug, Clone, PartialEq)]
enum Truth {
    Waits { due: i64, version: u32 },
    Fired(Offset),
    Cancelled,
}

/// What survives a kill.
#[derive(Debug, Clone, Default)]
struct Views {
    rows: BTreeMap<RowId, Bytes>,
    homes: Vec<BTreeMap<Home, Bytes>>,
    /// Entries of the log it holds.
    mark: usize,
}

struct World {
    now: i64,
    monotonic: u64,
    log: Vec<AppliedEntry>,
    views: Views,
    /// What a power cut leaves of the views.
    synced: Views,
    next: (u64, u64, u64),
    partition: Partition,
    finest: Finest,
    coarse: Vec<Coarse>,
    mail: Vec<VecDeque<Message>>,
    told: VecDeque<Told>,
    /// Asked for and not on the disk.
    queue: VecDeque<Vec<Draft>>,
    asked: BTreeMap<Token, RecordNumber>,
    tokens: u64,
    round: u64,
    marked: u64,
    covering: usize,
    truth: BTreeMap<u64, Truth>,
    answers: usize,
    came_near: usize,
}

pub(crate) fn column(deliveries: &[Delivery]) -> Bytes {
    let parts = deliveries.iter().map(|delivery| match delivery {
        Delivery::Now => (0_u8, 0_i64),
        Delivery::After(span) => (1, *span),
        Delivery::At(at) => (2, at.0),
    });
    let mut column: Vec<u8> = parts.clone().map(|(kind, _)| kind).collect();
    column.extend(parts.flat_map(|(_, value)| value.to_le_bytes()));
    column.into()
}

impl World {
    fn new() -> Self {
        let mut views = Views::default();
        views.homes = vec![BTreeMap::new(); LEVELS];
        let mut world = Self {
            now: START,
            monotonic: 0,
            log: Vec::new(),
            synced: views.clone(),
            views,
            next: (1, 0, 0),
            partition: Partition::new(Limits::default()),
            finest: Finest::new(WALL_LEVELS, []),
            coarse: Vec::new(),
            mail: Vec::new(),
            told: VecDeque::new(),
            queue: VecDeque::new(),
            asked: BTreeMap::new(),
            tokens: 0,
            round: 0,
            marked: 0,
            covering: 0,
            truth: BTreeMap::new(),
            answers: 0,
            came_near: 0,
        };
        world.begin();
        world
    }

    fn moment(&self) -> Moment {
        Moment {
            clock_ms: self.now,
            monotonic_ms: self.monotonic,
        }
    }

    fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    /// Starts everything from the views and the log behind their mark, as the broker does.
    fn begin(&mut self) {
        let rows = self.views.rows.iter().map(|(id, row)| (*id, &row[..]));
        self.partition = Partition::from_rows(Limits::default(), rows).expect("rows read");
        let mut alarms = Vec::new();
        for entry in &self.log[self.views.mark..] {
            alarms.extend(alarms_of(entry));
            self.partition.apply(entry, &mut Vec::new());
        }
        alarms.retain(|alarm| self.partition.stands(alarm));
        for alarm in alarms {
            let level = level_for(alarm.due_ms, self.now, WALL_LEVELS);
            let homes = &mut self.views.homes[usize::from(level)];
            let slot = alarm.due_ms.max(0) >> home_shift(level);
            let last = homes.keys().rev().find(|home| home.slot == slot);
            let chunk = last.map_or(0, |home| home.chunk + 1);
            let bytes = chunk::encode(slot << home_shift(level), &mut [alarm]);
            homes.insert(Home { slot, chunk }, bytes[0].clone().into());
        }
        self.write_rows(0, 0);
        self.views.mark = self.log.len();
        self.synced = self.views.clone();
        (self.round, self.marked) = (0, 0);
        let found =
            |level: usize| -> Vec<Home> { self.views.homes[level].keys().copied().collect() };
        self.finest = Finest::new(WALL_LEVELS, found(0));
        self.coarse = (1..LEVELS)
            .map(|level| Coarse::new(level as u8, WALL_LEVELS, found(level)))
            .collect();
        self.mail = (0..LEVELS).map(|_| VecDeque::new()).collect();
        self.told.clear();
        self.queue.clear();
        self.asked.clear();
        self.act(Partition::begun);
        let mut out = Vec::new();
        self.finest.entered(self.moment(), OWNER, &mut out);
        self.perform(0, out);
        self.look();
    }

    /// Calls the partition and performs what it wants.
    fn act(&mut self, act: impl FnOnce(&mut Partition, &mut Vec<Wants>)) {
        let mut wants = Vec::new();
        act(&mut self.partition, &mut wants);
        let mut wants = VecDeque::from(wants);
        while let Some(want) = wants.pop_front() {
            match want {
                Wants::Persist { drafts, .. } => self.queue.push_back(drafts),
                Wants::Arm { alarms, .. } => {
                    let alarms = alarms.into_iter().map(|alarm| Alarm {
                        owner: OWNER,
                        ..alarm
                    });
                    self.mail[0].push_back(Message::Arm(alarms.collect()));
                }
                Wants::Returned { batch, again_ms } => {
                    self.mail[0].push_back(Message::Returned(batch, again_ms));
                }
                Wants::LoadBodies(first) => {
                    let row = self
                        .views
                        .rows
                        .get(&RowId::Bodies(first))
                        .cloned()
                        .unwrap_or_default();
                    let mut more = Vec::new();
                    self.partition.bodies_loaded(first, Ok(&row), &mut more);
                    wants.extend(more);
                }
                Wants::LoadRun(first) => {
                    let run = self
                        .views
                        .rows
                        .get(&RowId::Run(first))
                        .cloned()
                        .unwrap_or_default();
                    let run =
                        waterwheel::domain::partition::rows::decode_run(&run).unwrap_or_default();
                    let mut more = Vec::new();
                    self.partition.run_loaded(first, Ok(run), &mut more);
                    wants.extend(more);
                }
                Wants::Timer(token, answer) => self.answered(token, answer),
                Wants::Refuse(token, _) => drop(self.asked.remove(&token)),
                Wants::Ahead(near) => self.came_near(&near),
                Wants::Accepted(_) | Wants::Stored(..) | Wants::Batches(..) | Wants::Found(..) => {}
            }
        }
    }

    /// What is read ahead lies where it was stored.
    fn came_near(&mut self, near: &[(PublishPlace, WallMs)]) {
        for (place, due) in near {
            let entry = &self.log[usize::try_from(place.position.0 / 4096).expect("small")];
            assert_eq!(entry.header.kind, EntryKind::Payload);
            assert_eq!(place.length, entry.place.length);
            assert_eq!(place.of, entry.header.numbers);
            assert!(place.index < place.of);
            let number = entry.header.first_number.0 + u64::from(place.index);
            // It may be settled or moved by now, though not applied; it never was unknown.
            if let Some(Truth::Waits {
                due: at,
                version: 0,
            }) = self.truth.get(&number)
            {
                assert_eq!(due.0, *at);
            }
            assert!(self.truth.contains_key(&number));
            self.came_near += 1;
        }
    }

    /// An answer is what the log says, at the moment it is given.
    fn answered(&mut self, token: Token, answer: TimerAnswer) {
        let Some(number) = self.asked.remove(&token) else {
            return;
        };
        self.answers += 1;
        let truth = self.truth.get(&number.0);
        match answer {
            TimerAnswer::Cancelled => assert_eq!(truth, Some(&Truth::Cancelled)),
            TimerAnswer::AlreadyFired(offset) => assert_eq!(truth, Some(&Truth::Fired(offset))),
            TimerAnswer::Rescheduled(pending) | TimerAnswer::Pending(pending) => {
                let (due, version) = (pending.due.0, pending.version);
                assert_eq!(truth, Some(&Truth::Waits { due, version }));
            }
            TimerAnswer::NotFound => {
                // What it has not applied nobody was told of.
                let unknown = truth.is_none() || number >= self.partition.head().next_number;
                assert!(unknown, "{number}: {truth:?}");
            }
            TimerAnswer::Listed { .. } => {}
        }
    }

    fn send(&mut self, deliveries: &[Delivery]) {
        let (token, now) = (self.token(), WallMs(self.now));
        let append = Append {
            token,
            batch: Bytes::from(vec![0; 64]).into(),
            count: deliveries.len() as u32,
            facts: PayloadFacts {
                deliveries: column(deliveries),
                ..PayloadFacts::default()
            },
            tell_accepted: false,
            now,
            timers: TimerLimits::default(),
            tied: Vec::new(),
        };
        self.act(|partition, wants| partition.append(append, wants));
    }

    fn ask(&mut self, number: u64, command: TimerCommand) {
        let (token, now) = (self.token(), WallMs(self.now));
        self.asked.insert(token, RecordNumber(number));
        self.act(|partition, wants| {
            partition.timer(
                token,
                RecordNumber(number),
                command,
                now,
                TimerLimits::default(),
                wants,
            );
        });
    }

    /// Makes durable what was asked for, and has it told to the partition.
    fn flush(&mut self, runs: usize) {
        for _ in 0..runs {
            let Some(drafts) = self.queue.pop_front() else {
                return;
            };
            for draft in drafts {
                let entry = self.stamp(draft);
                self.audit(&entry);
                self.log.push(entry.clone());
                self.told.push_back(Told::Applied(entry));
            }
        }
    }

    fn stamp(&mut self, draft: Draft) -> AppliedEntry {
        let (place, now) = (self.log.len() as u64, WallMs(self.now));
        let appended = self
            .log
            .last()
            .map_or(now, |last| last.header.appended.max(now));
        let header = EntryHeader {
            kind: draft.kind,
            tied_to_next: false,
            moved: false,
            index: LogIndex(place + 1),
            term: Term(1),
            owner: OWNER,
            sequence: OwnerSequence(self.next.0),
            first_number: RecordNumber(self.next.1),
            first_offset: Offset(self.next.2),
            numbers: draft.numbers,
            offsets: draft.offsets,
            appended,
            wall: now,
        };
        self.next.0 += 1;
        self.next.1 += u64::from(draft.numbers);
        self.next.2 += u64::from(draft.offsets);
        let payload = draft.kind == EntryKind::Payload;
        let body = if payload {
            Bytes::new()
        } else {
            draft.body.to_bytes()
        };
        AppliedEntry {
            header,
            place: EntryPlace {
                position: LogPosition(place * 4096),
                length: 200,
            },
            body,
            facts: draft.facts,
        }
    }

    /// The plain list, and what must never be in the log.
    fn audit(&mut self, entry: &AppliedEntry) {
        let header = &entry.header;
        match header.kind {
            EntryKind::Payload if header.offsets == 0 => {
                for alarm in alarms_of(entry) {
                    let truth = Truth::Waits {
                        due: alarm.due_ms,
                        version: 0,
                    };
                    self.truth.insert(alarm.token, truth);
                }
            }
            EntryKind::Publish => {
                let Some(Publication::Records(runs)) = Publication::decode(&entry.body) else {
                    panic!()
                };
                let mut offset = header.first_offset;
                for run in runs {
                    for number in run.first_number.0..run.first_number.0 + u64::from(run.count) {
                        let Some(Truth::Waits { due, .. }) =
                            self.truth.insert(number, Truth::Fired(offset))
                        else {
                            panic!("{number} is back from the dead");
                        };
                        assert_eq!(run.due, Some(WallMs(due)), "by the time in force");
                        offset.0 += 1;
                    }
                }
            }
            EntryKind::State => match rmp_serde::from_slice(&entry.body).unwrap() {
                Delta::Dropped(runs) => {
                    for (first, count) in runs {
                        for number in first.0..first.0 + u64::from(count) {
                            let before = self.truth.insert(number, Truth::Cancelled);
                            assert!(matches!(before, Some(Truth::Waits { .. })), "{before:?}");
                        }
                    }
                }
                Delta::Rescheduled {
                    number,
                    version,
                    due,
                } => {
                    let truth = Truth::Waits {
                        due: due.0,
                        version,
                    };
                    let before = self.truth.insert(number.0, truth);
                    assert!(matches!(before, Some(Truth::Waits { .. })), "{before:?}");
                }
                other => panic!("{other:?}"),
            },
            _ => {}
        }
    }

    /// The partition takes its next message.
    fn tell(&mut self) {
        match self.told.pop_front() {
            Some(Told::Due(batch, alarms)) => {
                self.act(|partition, wants| partition.due(batch, &alarms, wants))
            }
            Some(Told::Near(alarms)) => self.act(|partition, wants| partition.near(&alarms, wants)),
            Some(Told::Armed(count)) => self.act(|partition, wants| partition.armed(count, wants)),
            Some(Told::Applied(entry)) => self.act(|partition, wants| {
                partition.apply(&entry, wants);
                partition.applied_all(wants);
            }),
            None => {}
        }
    }

    /// The log refuses what it has not written.
    fn refuse(&mut self) {
        while !self.told.is_empty() {
            self.tell();
        }
        self.queue.clear();
        self.act(Partition::reset);
    }

    fn perform(&mut self, level: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Over(alarms) => self.mail[level + 1].push_back(Message::Over(alarms)),
                Effect::Fall { alarms, last } => {
                    if level == 1 {
                        let near = alarms.iter().map(|held| held.alarm).collect();
                        self.told.push_back(Told::Near(near));
                    }
                    self.mail[level - 1].push_back(Message::Fall(alarms, last))
                }
                Effect::Landed(slot) => self.mail[level + 1].push_back(Message::Landed(slot)),
                Effect::Load(ids) => {
                    let homes = &self.views.homes[level];
                    let read = ids.iter().map(|id| (*id, homes.get(id).cloned())).collect();
                    self.mail[level].push_back(Message::Loaded(read));
                }
                Effect::Unreadable(id) => panic!("{id:?} of level {level} does not read"),
                Effect::Due { batch, alarms, .. } => {
                    assert!(alarms.iter().all(|alarm| alarm.due_ms <= self.now), "early");
                    self.told.push_back(Told::Due(batch, alarms));
                }
                Effect::Armed { count, .. } => self.told.push_back(Told::Armed(count)),
                Effect::Start(_) => {}
            }
        }
    }

    /// A level takes its next message.
    fn handle(&mut self, level: usize) {
        let Some(message) = self.mail[level].pop_front() else {
            return;
        };
        let (now, moment, mut out) = (self.now, self.moment(), Vec::new());
        if level == 0 {
            let finest = &mut self.finest;
            match message {
                Message::Arm(alarms) => finest.arm(moment, OWNER, alarms, false, &mut out),
                Message::Returned(batch, again) => {
                    finest.returned(moment, OWNER, batch, again, &mut out)
                }
                Message::Fall(alarms, last) => finest.fell(moment, alarms, last, &mut out),
                Message::Loaded(read) => finest.loaded(moment, read, &mut out),
                Message::Homed => finest.homed(true),
                Message::Up(round, _) => {
                    let settled = finest.settled(round, now);
                    self.mail[1].push_back(Message::Up(round, settled));
                }
                Message::Down(round, settled) => self.home(0, round, settled),
                Message::Over(_) | Message::Landed(_) => unreachable!(),
            }
        } else {
            let coarse = &mut self.coarse[level - 1];
            match message {
                Message::Over(alarms) => coarse.overflowed(now, alarms, &mut out),
                Message::Fall(alarms, last) => coarse.fell(now, alarms, last, &mut out),
                Message::Landed(slot) => coarse.landed(now, slot, &mut out),
                Message::Loaded(read) => coarse.loaded(now, read, &mut out),
                Message::Homed => coarse.homed(true),
                Message::Up(round, below) => {
                    let settled = coarse.settled(round, below);
                    if level + 1 < LEVELS {
                        self.mail[level + 1].push_back(Message::Up(round, settled));
                    } else {
                        self.mail[level].push_back(Message::Down(round, settled));
                    }
                }
                Message::Down(round, settled) => self.home(level, round, settled),
                Message::Arm(_) | Message::Returned(..) => unreachable!(),
            }
        }
        self.perform(level, out);
    }

    fn home(&mut self, level: usize, round: u64, settled: i64) {
        let changes = match level {
            0 => self.finest.lap(round, self.marked, settled),
            _ => self.coarse[level - 1].lap(round, self.marked, settled),
        };
        let homes = &mut self.views.homes[level];
        for id in changes.removes {
            homes.remove(&id);
        }
        homes.extend(
            changes
                .writes
                .into_iter()
                .map(|(id, bytes)| (id, bytes.into())),
        );
        self.mail[level].push_back(Message::Homed);
        if level > 0 {
            self.mail[level - 1].push_back(Message::Down(round, settled));
        } else if round == self.round {
            self.views.mark = self.covering;
            self.marked = round;
            self.synced = self.views.clone();
        }
    }

    fn write_rows(&mut self, round: u64, marked: u64) {
        self.partition.rows_due(round, marked);
        let (_, changes) = self.partition.take_rows();
        for change in changes {
            match change.value {
                Some(value) => self.views.rows.insert(change.id, value),
                None => self.views.rows.remove(&change.id),
            };
        }
    }

    /// Begins a round: the partition hears of everything before it, and hands over its rows.
    fn checkpoint(&mut self) {
        while !self.told.is_empty() {
            self.tell();
        }
        self.round += 1;
        self.covering = self.log.len();
        self.write_rows(self.round, self.marked);
        self.mail[0].push_back(Message::Up(self.round, i64::MAX));
    }

    /// Every level looks at the clock, the coarsest first.
    fn look(&mut self) {
        for level in (0..LEVELS).rev() {
            let mut out = Vec::new();
            match level {
                0 => drop(self.finest.advance(self.moment(), &mut out)),
                _ => self.coarse[level - 1].advance(self.now, &mut out),
            }
            self.perform(level, out);
        }
    }

    /// Everybody does what there is to do, and the log writes what it is asked.
    fn quiet(&mut self) {
        loop {
            if !self.told.is_empty() {
                self.tell();
            } else if let Some(level) = (0..LEVELS).find(|level| !self.mail[*level].is_empty()) {
                self.handle(level);
            } else if !self.queue.is_empty() {
                self.flush(usize::MAX);
            } else {
                return;
            }
        }
    }

    fn run_until(&mut self, until: i64) {
        loop {
            self.quiet();
            let (due, later) = self.finest.next_wake();
            let later = later.map(|at| self.now + at.saturating_sub(self.monotonic) as i64);
            let wakes = self
                .coarse
                .iter()
                .map(Coarse::next_wake)
                .chain([due, later]);
            let Some(next) = wakes.flatten().min().filter(|next| *next <= until) else {
                break;
            };
            self.pass(next - self.now);
            self.look();
        }
        self.pass(until - self.now);
    }

    fn pass(&mut self, span: i64) {
        self.now += span.max(0);
        self.monotonic += span.max(0).unsigned_abs();
    }

    fn kill(&mut self) {
        self.begin();
    }

    fn power_cut(&mut self) {
        self.views = self.synced.clone();
        self.begin();
    }

    fn rebuild(&mut self) {
        self.views = Views::default();
        self.views.homes = vec![BTreeMap::new(); LEVELS];
        self.begin();
    }

    fn level_fails(&mut self, level: usize) {
        let found: Vec<Home> = self.views.homes[level].keys().copied().collect();
        self.mail[level].clear();
        let alarms: Vec<Alarm> = self.log[self.views.mark..]
            .iter()
            .flat_map(alarms_of)
            .collect();
        let mut out = Vec::new();
        if level == 0 {
            self.finest = Finest::new(WALL_LEVELS, found);
            self.finest
                .arm(self.moment(), OWNER, alarms, true, &mut out);
            self.finest.entered(self.moment(), OWNER, &mut out);
            self.finest.advance(self.moment(), &mut out);
        } else {
            let mut coarse = Coarse::new(level as u8, WALL_LEVELS, found);
            coarse.overflowed(self.now, alarms, &mut out);
            self.coarse[level - 1] = coarse;
        }
        self.perform(level, out);
        for above in level + 1..LEVELS {
            let mut out = Vec::new();
            self.coarse[above - 1].again(self.now, &mut out);
            self.perform(above, out);
        }
        self.act(Partition::wheel_began);
    }

    /// Lets everything come due, and looks at what became of it.
    fn finish(&mut self) {
        self.now = self.now.max(START);
        self.look();
        self.run_until(START + 900 * DAY);
        let waiting: Vec<_> = self
            .truth
            .iter()
            .filter(|(_, truth)| matches!(truth, Truth::Waits { .. }))
            .collect();
        assert!(waiting.is_empty(), "lost: {waiting:?}");
        let offsets: BTreeSet<u64> = self
            .truth
            .values()
            .filter_map(|truth| match truth {
                Truth::Fired(offset) => Some(offset.0),
                _ => None,
            })
            .collect();
        let fired = self
            .truth
            .values()
            .filter(|truth| matches!(truth, Truth::Fired(_)))
            .count();
        assert_eq!(offsets.len(), fired, "an offset each");
        // Asked again, everybody hears the same.
        for number in 0..self.next.1 {
            self.ask(number, TimerCommand::Cancel);
        }
        self.quiet();
        assert!(self.asked.is_empty());
    }
}

fn delivery(rng: &mut Rng) -> Delivery {
    let level = rng.below(4) as u8;
    let (span, tick) = (span_ms(level, WALL_LEVELS), 1_i64 << tick_shift(level));
    let after = match rng.below(8) {
        0 => rng.below(2_000) as i64,
        1 => rng.below(100_000) as i64,
        2 => rng.below(2 * HOUR as u64) as i64,
        3 => rng.below(9 * DAY as u64) as i64,
        // One tick more or less than a level holds.
        4 => span + rng.below(3) as i64 - 1,
        // Exactly on the edge of a slot.
        5 => {
            return Delivery::At(WallMs(
                (START + span + tick) / tick * tick + rng.below(3) as i64 - 1,
            ));
        }
        6 => 365 * DAY,
        _ => rng.below(5_000) as i64,
    };
    Delivery::After(after)
}

fn wander(seed: u64) -> (usize, usize, Vec<Truth>) {
    let mut rng = Rng(seed);
    let mut world = World::new();
    for _ in 0..150 {
        let known = world.next.1.max(1);
        match rng.below(40) {
            0..=7 => {
                let deliveries: Vec<Delivery> =
                    (0..1 + rng.below(6)).map(|_| delivery(&mut rng)).collect();
                world.send(&deliveries);
            }
            8..=10 => world.ask(rng.below(known), TimerCommand::Cancel),
            11..=13 => {
                let to = delivery(&mut rng);
                world.ask(rng.below(known), TimerCommand::Reschedule(to));
            }
            14 => world.ask(rng.below(known), TimerCommand::Look),
            15..=19 => world.flush(1 + rng.below(3) as usize),
            20..=27 => {
                for _ in 0..rng.below(12) {
                    match rng.below(LEVELS as u64 + 2) as usize {
                        level if level < LEVELS => world.handle(level),
                        _ => world.tell(),
                    }
                }
            }
            28 => world.refuse(),
            29..=32 => {
                let span = [300, 5_000, 90_000, 2 * HOUR][rng.below(4) as usize];
                let until = world.now + rng.below(span as u64) as i64;
                world.run_until(until);
            }
            33 => {
                world.now += [HOUR, -HOUR][rng.below(2) as usize];
                world.look();
            }
            34..=36 => world.checkpoint(),
            37 => world.kill(),
            38 => match rng.below(3) {
                0 => world.power_cut(),
                1 => world.rebuild(),
                _ => world.level_fails(rng.below(LEVELS as u64) as usize),
            },
            _ => world.quiet(),
        }
    }
    world.finish();
    (
        world.log.len(),
        world.answers,
        world.truth.into_values().collect(),
    )
}

#[test]
fn timers_are_never_early_never_lost_and_never_back_from_the_dead() {
    let mut answers = 0;
    for seed in 0..250 {
        let outcome = std::panic::catch_unwind(|| wander(seed));
        let Ok(outcome) = outcome else {
            panic!("seed {seed}")
        };
        answers += outcome.1;
    }
    assert!(answers > 2_500, "{answers} answers");
    assert_eq!(wander(7), wander(7), "one seed twice is one run");
}

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

mod log;
mod scenes;
mod truth;
mod wander;
mod wheel;

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
            .map(|level| Coarse::new(level as u8, WALL_LEVELS, found(level)).in_parts_of(2))
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
}

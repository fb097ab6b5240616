//! The whole wheel on one thread, with mailboxes that are emptied in any order, a disk, and a naive list
//! of alarms beside it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use proptest::prelude::*;

use super::coarse::Coarse;
use super::finest::Finest;
use super::*;

const OWNERS: u64 = 3;
const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;
const START: i64 = 1_790_000_000_000;

#[derive(Debug)]
enum Message {
    Arm(OwnerId, Vec<Alarm>),
    Over(Vec<Alarm>),
    Fall(Vec<Held>, Option<i64>),
    Landed(i64),
    Loaded(Vec<Read>),
    Returned(OwnerId, u64, Option<u64>),
    Up(u64, i64),
    Down(u64, i64),
    Homed,
}

struct Rig {
    levels: u8,
    finest: Finest,
    coarse: Vec<Coarse>,
    mail: Vec<VecDeque<Message>>,
    disk: Vec<BTreeMap<RowId, Bytes>>,
    now: i64,
    monotonic: u64,
    round: u64,
    marked: u64,
    /// Everything ever armed, in order: the log.
    log: Vec<Alarm>,
    /// How much of it the lap under way, and the last that was marked, cover.
    covering: usize,
    mark: usize,
    settled: BTreeSet<Alarm>,
    said: Vec<(i64, Alarm)>,
    returning: VecDeque<Message>,
    over: Vec<usize>,
    down: Vec<usize>,
    wakes: usize,
    loads: usize,
}

impl Rig {
    fn new() -> Self {
        let levels = WALL_LEVELS;
        let mut rig = Self {
            levels,
            finest: Finest::new(levels, []),
            coarse: (1..levels)
                .map(|level| Coarse::new(level, levels, []).in_parts_of(2))
                .collect(),
            mail: (0..levels).map(|_| VecDeque::new()).collect(),
            disk: (0..levels).map(|_| BTreeMap::new()).collect(),
            now: START,
            monotonic: 0,
            round: 0,
            marked: 0,
            log: Vec::new(),
            covering: 0,
            mark: 0,
            settled: BTreeSet::new(),
            said: Vec::new(),
            returning: VecDeque::new(),
            over: vec![0; usize::from(levels)],
            down: vec![0; usize::from(levels)],
            wakes: 0,
            loads: 0,
        };
        rig.enter_all();
        rig
    }

    fn moment(&self) -> Moment {
        Moment {
            clock_ms: self.now,
            monotonic_ms: self.monotonic,
        }
    }

    fn enter_all(&mut self) {
        for owner in 0..OWNERS {
            let mut out = Vec::new();
            self.finest.entered(self.moment(), OwnerId(owner), &mut out);
            self.perform(0, out);
        }
    }

    fn arm(&mut self, token: u64, after: i64) -> Alarm {
        let alarm = Alarm {
            due_ms: self.now + after,
            owner: OwnerId(token % OWNERS),
            token,
            version: 0,
        };
        self.log.push(alarm);
        self.mail[0].push_back(Message::Arm(alarm.owner, vec![alarm]));
        alarm
    }

    fn perform(&mut self, level: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Over(alarms) => {
                    self.over[level] += alarms.len();
                    self.mail[level + 1].push_back(Message::Over(alarms));
                }
                Effect::Fall { alarms, last } => {
                    self.down[level] += alarms.len();
                    self.mail[level - 1].push_back(Message::Fall(alarms, last));
                }
                Effect::Landed(slot) => self.mail[level + 1].push_back(Message::Landed(slot)),
                Effect::Load(ids) => {
                    self.loads += 1;
                    let disk = &self.disk[level];
                    let read = ids.iter().map(|id| (*id, disk.get(id).cloned())).collect();
                    self.mail[level].push_back(Message::Loaded(read));
                }
                Effect::Unreadable(id) => panic!("{id:?} of level {level} does not read"),
                Effect::Due {
                    owner,
                    batch,
                    alarms,
                } => {
                    for alarm in &alarms {
                        assert!(alarm.due_ms <= self.now, "W1: early");
                        self.said.push((self.now, *alarm));
                    }
                    // Every seventh batch is refused by the log at first.
                    let again = (batch % 7 == 3).then_some(batch % 5);
                    if again.is_none() {
                        self.settled.extend(alarms);
                    }
                    self.returning
                        .push_back(Message::Returned(owner, batch, again));
                }
                Effect::Start(owner) => {
                    let mut out = Vec::new();
                    self.finest.entered(self.moment(), owner, &mut out);
                    self.perform(0, out);
                }
                Effect::Armed { .. } => {}
            }
        }
    }

    /// One message of one level.
    fn handle(&mut self, level: usize) {
        let Some(message) = self.mail[level].pop_front() else {
            return;
        };
        let (now, moment, mut out) = (self.now, self.moment(), Vec::new());
        let top = usize::from(self.levels) - 1;
        match (message, level) {
            (Message::Arm(owner, alarms), _) => {
                self.finest.arm(moment, owner, alarms, false, &mut out)
            }
            (Message::Returned(owner, batch, again), _) => {
                self.finest.returned(moment, owner, batch, again, &mut out);
            }
            (Message::Fall(alarms, last), 0) => self.finest.fell(moment, alarms, last, &mut out),
            (Message::Loaded(read), 0) => self.finest.loaded(moment, read, &mut out),
            (Message::Homed, 0) => self.finest.homed(true),
            (Message::Over(alarms), _) => self.coarse[level - 1].overflowed(now, alarms, &mut out),
            (Message::Fall(alarms, last), _) => {
                self.coarse[level - 1].fell(now, alarms, last, &mut out)
            }
            (Message::Landed(slot), _) => self.coarse[level - 1].landed(now, slot, &mut out),
            (Message::Loaded(read), _) => self.coarse[level - 1].loaded(now, read, &mut out),
            (Message::Homed, _) => self.coarse[level - 1].homed(true),
            (Message::Up(round, settled), _) => {
                let settled = match level {
                    0 => self.finest.settled(round, now),
                    _ => self.coarse[level - 1].settled(round, settled),
                };
                let (next, message) = if level == top {
                    (level, Message::Down(round, settled))
                } else {
                    (level + 1, Message::Up(round, settled))
                };
                self.mail[next].push_back(message);
            }
            (Message::Down(round, settled), _) => self.home(level, round, settled),
        }
        self.perform(level, out);
    }

    fn home(&mut self, level: usize, round: u64, settled: i64) {
        let mut out = Vec::new();
        let changes = match level {
            0 => self.finest.lap(round, self.marked, settled),
            _ => self.coarse[level - 1].lap(round, self.marked, settled, &mut out),
        };
        self.perform(level, out);
        for id in changes.removes {
            self.disk[level].remove(&id);
        }
        for (id, bytes) in changes.writes {
            self.disk[level].insert(id, bytes.into());
        }
        self.mail[level].push_back(Message::Homed);
        if level > 0 {
            self.mail[level - 1].push_back(Message::Down(round, settled));
        } else if round == self.round {
            self.mark = self.covering;
            self.marked = round;
        }
    }

    fn begin_lap(&mut self) {
        self.round += 1;
        self.covering = self.log.len();
        self.mail[0].push_back(Message::Up(self.round, i64::MAX));
    }

    fn quiet(&mut self) {
        loop {
            while let Some(level) = (0..self.mail.len()).find(|level| !self.mail[*level].is_empty())
            {
                self.handle(level);
            }
            match self.returning.pop_front() {
                Some(message) => self.mail[0].push_back(message),
                None => break,
            }
        }
    }

    fn lap(&mut self) {
        self.begin_lap();
        self.quiet();
    }

    /// Every level looks at the clock, the coarsest first.
    fn look(&mut self) {
        for level in (0..usize::from(self.levels)).rev() {
            let mut out = Vec::new();
            match level {
                0 => {
                    self.finest.advance(self.moment(), &mut out);
                }
                _ => self.coarse[level - 1].advance(self.now, &mut out),
            }
            self.perform(level, out);
        }
    }

    /// Lets the clock run until `until`, waking levels when they asked for it and at no other time.
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
            let next = next.max(self.now);
            self.monotonic += (next - self.now).unsigned_abs();
            self.now = next;
            for level in (0..usize::from(self.levels)).rev() {
                let mut out = Vec::new();
                match level {
                    0 if due.is_some_and(|due| due <= next)
                        || later.is_some_and(|at| at <= next) =>
                    {
                        self.wakes += 1;
                        self.finest.advance(self.moment(), &mut out);
                    }
                    0 => {}
                    _ if self.coarse[level - 1]
                        .next_wake()
                        .is_some_and(|at| at <= next) =>
                    {
                        self.wakes += 1;
                        self.coarse[level - 1].advance(next, &mut out);
                    }
                    _ => {}
                }
                self.perform(level, out);
            }
        }
        self.monotonic += (until - self.now).max(0).unsigned_abs();
        self.now = self.now.max(until);
    }

    fn crash(&mut self) {
        let found = |level: usize, disk: &[BTreeMap<RowId, Bytes>]| {
            disk[level].keys().copied().collect::<Vec<_>>()
        };
        self.finest = Finest::new(self.levels, found(0, &self.disk));
        self.coarse = (1..self.levels)
            .map(|level| {
                Coarse::new(level, self.levels, found(usize::from(level), &self.disk))
                    .in_parts_of(2)
            })
            .collect();
        self.mail.iter_mut().for_each(VecDeque::clear);
        self.returning.clear();
        self.round = 0;
        self.marked = 0;
        self.enter_all();
        for alarm in &self.log[self.mark..] {
            let alarm = *alarm;
            self.mail[0].push_back(Message::Arm(alarm.owner, vec![alarm]));
        }
        self.look();
    }

    fn level_fails(&mut self, level: usize) {
        let found: Vec<RowId> = self.disk[level].keys().copied().collect();
        self.mail[level].clear();
        let (again, now, mut out) = (self.log[self.mark..].to_vec(), self.now, Vec::new());
        if level == 0 {
            self.finest = Finest::new(self.levels, found);
            self.returning.clear();
            self.enter_all();
            for alarm in again {
                self.finest
                    .arm(self.moment(), alarm.owner, vec![alarm], false, &mut out);
            }
        } else {
            let mut machine =
                Coarse::new(u8::try_from(level).unwrap(), self.levels, found).in_parts_of(2);
            machine.overflowed(now, again, &mut out);
            self.coarse[level - 1] = machine;
        }
        self.perform(level, out);
        for above in level.max(1) + usize::from(level > 0)..usize::from(self.levels) {
            let mut out = Vec::new();
            self.coarse[above - 1].again(now, &mut out);
            self.perform(above, out);
        }
    }

    fn memory(&self) -> usize {
        self.finest.len() + self.coarse.iter().map(Coarse::len).sum::<usize>()
    }

    fn check_all_settled(&self) {
        let lost: Vec<_> = self
            .log
            .iter()
            .filter(|alarm| !self.settled.contains(alarm))
            .collect();
        assert_eq!(lost, Vec::<&Alarm>::new(), "W2: lost");
    }
}

#[test]
fn the_levels_are_what_the_table_says() {
    let of = |level| (1i64 << tick_shift(level), span_ms(level, WALL_LEVELS));
    assert_eq!(
        [of(0), of(1), of(2), of(3)],
        [
            (1, 4_096),
            (1_024, 81_920),
            (65_536, 4_718_592),
            (4_194_304, 301_989_888)
        ]
    );
    assert_eq!(of(4), (1 << 28, i64::MAX));
    for level in 1..WALL_LEVELS {
        // The level below spans a whole slot and then some: a slot can fall before it begins.
        assert!(span_ms(level - 1, WALL_LEVELS) > 1 << tick_shift(level));
    }
}

#[test]
fn an_hour_ahead_takes_few_wake_ups_and_every_level_passes_it_on() {
    let mut rig = Rig::new();
    let alarm = rig.arm(0, HOUR);
    rig.run_until(alarm.due_ms - 1);
    assert_eq!(rig.said, []);
    assert!(rig.wakes <= 10, "{} wake-ups", rig.wakes);
    rig.run_until(alarm.due_ms);
    assert_eq!(rig.said, [(alarm.due_ms, alarm)], "to the millisecond");
    assert_eq!(rig.over, [1, 1, 0, 0, 0]);
    assert_eq!(rig.down, [0, 1, 1, 0, 0]);
}

#[test]
fn ten_minutes_and_a_year_overflow_and_cascade() {
    for (after, over) in [(600_000, 2), (365 * DAY, 4), (5 * 365 * DAY, 4)] {
        let mut rig = Rig::new();
        let alarm = rig.arm(1, after);
        rig.lap();
        assert!(rig.memory() <= 1);
        rig.run_until(alarm.due_ms - 1);
        assert_eq!(rig.said, []);
        rig.run_until(alarm.due_ms);
        assert_eq!(rig.said, [(alarm.due_ms, alarm)]);
        assert_eq!(rig.over.iter().sum::<usize>(), over);
        assert_eq!(rig.down.iter().sum::<usize>(), over);
    }
}

#[test]
fn slot_edges_and_one_tick_more_than_a_level_holds() {
    for level in 0..4 {
        let (span, tick) = (span_ms(level, WALL_LEVELS), 1i64 << tick_shift(level));
        let edge = tick - START.rem_euclid(tick);
        for after in [
            span - 1,
            span,
            span + 1,
            edge,
            edge - 1,
            edge + 1,
            edge + span,
            0,
            -1,
            -HOUR,
        ] {
            let mut rig = Rig::new();
            let alarm = rig.arm(0, after);
            rig.quiet();
            let keeps = rig.over.iter().filter(|count| **count > 0).count();
            assert_eq!(
                keeps,
                usize::from(level_for(alarm.due_ms, START, WALL_LEVELS))
            );
            rig.run_until(alarm.due_ms.max(START) - 1);
            assert_eq!(rig.said.len(), usize::from(after <= 0));
            rig.run_until(alarm.due_ms.max(START));
            assert_eq!(rig.said, [(alarm.due_ms.max(START), alarm)]);
        }
    }
}

#[test]
fn w5_a_step_forward_says_what_is_due_in_order_and_a_step_back_holds() {
    let mut rig = Rig::new();
    for token in 0..5_000 {
        rig.arm(token * OWNERS, (token as i64 * 7_919) % (2 * HOUR));
    }
    rig.lap();
    rig.run_until(START + 60_000);
    let before = rig.said.len();
    rig.now -= HOUR;
    rig.look();
    rig.run_until(START + 60_000);
    assert_eq!(rig.said.len(), before, "W6: held for an hour");
    rig.now += HOUR;
    rig.look();
    rig.quiet();
    let said: Vec<i64> = rig.said.iter().map(|(_, alarm)| alarm.due_ms).collect();
    assert!(said.len() > before + 2_000);
    let firsts: Vec<i64> = {
        let mut seen = BTreeSet::new();
        rig.said
            .iter()
            .filter(|(_, alarm)| seen.insert(*alarm))
            .map(|(_, alarm)| alarm.due_ms)
            .collect()
    };
    assert!(firsts.is_sorted(), "in the order of their moments");
    rig.run_until(START + 2 * HOUR);
    rig.check_all_settled();
}

#[test]
fn what_is_far_is_forgotten_once_it_has_a_home_and_homes_go_when_it_is_settled() {
    let mut rig = Rig::new();
    let mut out = Vec::new();
    for token in 0..20_000u64 {
        out.push(rig.arm(token, 5 * HOUR + (token as i64 * 104_729) % (20 * HOUR)));
    }
    rig.lap();
    assert!(
        rig.memory() < 4 * 1_024,
        "{} alarms in memory",
        rig.memory()
    );
    let mut most = 0;
    while rig.now < START + 25 * HOUR {
        rig.run_until(rig.now + 120_000);
        rig.lap();
        most = most.max(rig.memory());
    }
    rig.check_all_settled();
    assert!(most < 6_000, "{most} alarms in memory");
    rig.lap();
    rig.lap();
    let rows: usize = rig.disk.iter().map(BTreeMap::len).sum();
    assert_eq!(rows, 0, "nothing is left behind");
}

#[test]
fn a_slot_that_fills_slowly_is_one_row() {
    let mut rig = Rig::new();
    for token in 0..500 {
        rig.arm(token, 6 * HOUR);
        rig.lap();
    }
    assert_eq!(rig.disk.iter().map(BTreeMap::len).sum::<usize>(), 1);
    rig.crash();
    rig.run_until(START + 7 * HOUR);
    rig.check_all_settled();
}

#[test]
fn w3_an_owner_that_returns_nothing_is_told_no_more_than_the_window() {
    let mut machine = Finest::new(WALL_LEVELS, []);
    let moment = Moment {
        clock_ms: START,
        monotonic_ms: 0,
    };
    let mut out = Vec::new();
    machine.entered(moment, OwnerId(1), &mut out);
    let alarms = (0..40_000u64).map(|token| Alarm {
        due_ms: START,
        owner: OwnerId(1),
        token,
        version: 0,
    });
    machine.arm(moment, OwnerId(1), alarms.collect(), false, &mut out);
    let said = |out: &[Effect]| -> usize {
        let due = out.iter().filter_map(|effect| {
            let Effect::Due { alarms, .. } = effect else {
                return None;
            };
            Some(alarms.len())
        });
        due.sum()
    };
    assert_eq!(said(&out), finest::DUE_WINDOW);
    out.clear();
    machine.returned(moment, OwnerId(1), 1, None, &mut out);
    assert_eq!(said(&out), finest::DUE_BATCH_MAX, "one back, one more");
    out.clear();
    // Another life of the owner: its window is empty, and nothing is forgotten.
    machine.entered(moment, OwnerId(1), &mut out);
    assert_eq!(said(&out), finest::DUE_WINDOW);
    let Some(Effect::Due { alarms, .. }) = out.first() else {
        panic!()
    };
    assert_eq!(
        alarms[0].token, 1_024,
        "from the first that was not returned"
    );
    machine.left(moment, OwnerId(1), &mut out);
    assert!(machine.is_empty());
}

#[test]
fn an_owner_that_is_refused_is_told_again_after_its_time() {
    let mut machine = Finest::new(WALL_LEVELS, []);
    let mut moment = Moment {
        clock_ms: START,
        monotonic_ms: 50,
    };
    let mut out = Vec::new();
    machine.entered(moment, OwnerId(1), &mut out);
    let alarm = Alarm {
        due_ms: START,
        owner: OwnerId(1),
        token: 1,
        version: 0,
    };
    machine.arm(moment, OwnerId(1), vec![alarm], false, &mut out);
    out.clear();
    machine.returned(moment, OwnerId(1), 1, Some(100), &mut out);
    assert_eq!((out.len(), machine.next_wake()), (0, (None, Some(150))));
    moment.monotonic_ms = 150;
    machine.advance(moment, &mut out);
    assert!(matches!(&out[..], [Effect::Due { batch: 2, .. }]));
}

#[test]
fn without_room_an_owner_is_not_told_that_its_alarms_are_taken() {
    let mut machine = Finest::new(WALL_LEVELS, []);
    let (moment, mut out) = (
        Moment {
            clock_ms: START,
            monotonic_ms: 0,
        },
        Vec::new(),
    );
    let alarm = Alarm {
        due_ms: START + 9,
        owner: OwnerId(1),
        token: 1,
        version: 0,
    };
    machine.arm(moment, OwnerId(1), vec![alarm], true, &mut out);
    assert_eq!(out, []);
    machine.room(false, &mut out);
    assert_eq!(
        out,
        [Effect::Armed {
            owner: OwnerId(1),
            count: 1
        }]
    );
}

#[derive(Debug, Clone)]
enum Op {
    Arm(Vec<i64>),
    Run(i64),
    Step(i64),
    Handle(Vec<u8>),
    Lap,
    Crash,
    Fail(u8),
}

fn any_after() -> impl Strategy<Value = i64> {
    prop_oneof![
        -5_000i64..5_000,
        0i64..100_000,
        0i64..2 * HOUR,
        0i64..8 * DAY,
        (0u8..4, -1i64..2).prop_map(|(level, more)| span_ms(level, WALL_LEVELS) + more),
        Just(365 * DAY),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => proptest::collection::vec(any_after(), 1..20).prop_map(Op::Arm),
        3 => prop_oneof![0i64..200, 0i64..100_000, 0i64..3 * HOUR].prop_map(Op::Run),
        1 => prop_oneof![Just(HOUR), Just(-HOUR), Just(9 * DAY)].prop_map(Op::Step),
        4 => proptest::collection::vec(0u8..WALL_LEVELS, 1..40).prop_map(Op::Handle),
        3 => Just(Op::Lap),
        1 => Just(Op::Crash),
        1 => (0u8..WALL_LEVELS).prop_map(Op::Fail),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]
    /// Against the naive list: every alarm is said at its moment or later, whatever order the mailboxes
    /// are emptied in, wherever it crashes.
    #[test]
    fn w1_w2_w4_never_early_never_lost(ops in proptest::collection::vec(any_op(), 1..60)) {
        let (mut rig, mut token) = (Rig::new(), 0);
        for op in ops {
            match op {
                Op::Arm(afters) => for after in afters {
                    rig.arm(token, after);
                    token += 1;
                },
                Op::Run(span) => rig.run_until(rig.now + span),
                Op::Step(by) => {
                    rig.now += by;
                    rig.look();
                }
                Op::Handle(levels) => for level in levels {
                    rig.handle(usize::from(level));
                    if level == 0 && let Some(message) = rig.returning.pop_front() {
                        rig.mail[0].push_back(message);
                    }
                },
                Op::Lap => rig.begin_lap(),
                Op::Crash => rig.crash(),
                Op::Fail(level) => rig.level_fails(usize::from(level)),
            }
        }
        rig.now = rig.now.max(START);
        rig.look();
        rig.run_until(START + 800 * DAY);
        rig.check_all_settled();
    }

    /// What is not disturbed is said at its millisecond.
    #[test]
    fn undisturbed_alarms_are_said_to_the_millisecond(afters in proptest::collection::vec(any_after(), 1..40)) {
        let mut rig = Rig::new();
        for (token, after) in afters.into_iter().enumerate() {
            rig.arm(token as u64, after);
        }
        rig.quiet();
        rig.run_until(START + 400 * DAY);
        let mut seen = BTreeSet::new();
        for (at, alarm) in &rig.said {
            if seen.insert(*alarm) {
                prop_assert_eq!(*at, alarm.due_ms.max(START));
            }
        }
        rig.check_all_settled();
    }
}

#[test]
fn a_full_slot_falls_in_parts_and_holds_nobody_up_when_the_clock_steps_back() {
    let mut rig = Rig::new();
    let tick = 1i64 << tick_shift(1);
    let begins = (START / tick + 20) * tick;
    let full: Vec<Alarm> = (0..64)
        .map(|at| rig.arm(at, begins - START + 16 * at.cast_signed()))
        .collect();
    // When its last moment comes within reach of the finest level, it begins to fall.
    rig.run_until(begins + tick - span_ms(0, WALL_LEVELS) + 3);
    let falling = rig.coarse[0].len();
    assert!(0 < falling && falling < 64, "{falling} of 64 wait");
    rig.now -= HOUR;
    rig.look();
    rig.quiet();
    assert_eq!(rig.coarse[0].len(), 0);
    let near = rig.arm(100, 10_000);
    rig.run_until(near.due_ms);
    assert_eq!(rig.said, [(near.due_ms, near)], "to the millisecond");
    rig.run_until(begins + tick);
    for alarm in full {
        // What is refused is said again.
        let first = rig.said.iter().find(|(_, said)| *said == alarm);
        assert_eq!(first, Some(&(alarm.due_ms, alarm)));
    }
}

//! The machine of delayed records against a plain list of what the log says of each, with a wheel that is
//! a set, through refusals and restarts from rows.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "what a test does not expect fails it"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use proptest::prelude::*;

use super::super::index::BatchPlace;
use super::super::rows::{RowId, decode_run};
use super::super::{Append, Limits};
use super::*;
use crate::domain::entry::{EntryHeader, EntryPlace};
use crate::domain::id::{LogIndex, OwnerSequence, Term};

const LIMITS: Limits = Limits {
    producers_max: 3,
    snapshot_bytes_max: 1 << 20,
};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Truth {
    Waits { due: i64, version: u32 },
    Fired(Offset),
    Cancelled,
}

#[derive(Debug, Clone)]
enum Op {
    Accept(Vec<i64>),
    Ask(prop::sample::Index, TimerCommand),
    Fire,
    Flush(usize),
    Refuse,
    Pass(i64),
    Checkpoint,
    Restart,
}

fn any_op() -> impl Strategy<Value = Op> {
    let command = prop_oneof![
        Just(TimerCommand::Cancel),
        Just(TimerCommand::Look),
        (0i64..500).prop_map(|span| TimerCommand::Reschedule(Delivery::After(span))),
    ];
    prop_oneof![
        3 => prop::collection::vec(1i64..400, 1..5).prop_map(Op::Accept),
        4 => (any::<prop::sample::Index>(), command).prop_map(|(at, what)| Op::Ask(at, what)),
        3 => Just(Op::Fire),
        4 => (1usize..4).prop_map(Op::Flush),
        1 => Just(Op::Refuse),
        3 => (0i64..200).prop_map(Op::Pass),
        2 => Just(Op::Checkpoint),
        1 => Just(Op::Restart),
    ]
}

struct Rig {
    live: Partition,
    rows: BTreeMap<RowId, Bytes>,
    log: Vec<AppliedEntry>,
    queue: VecDeque<Vec<Draft>>,
    now: i64,
    next: (u64, u64, u64),
    truth: BTreeMap<u64, Truth>,
    /// Everything armed and not said due.
    wheel: BTreeSet<(i64, u64, u32)>,
    said: BTreeMap<u64, Vec<Alarm>>,
    asked: BTreeMap<Token, RecordNumber>,
    tokens: u64,
}

impl Rig {
    fn new() -> Self {
        let mut rig = Self {
            live: Partition::new(LIMITS),
            rows: BTreeMap::new(),
            log: Vec::new(),
            queue: VecDeque::new(),
            now: 1_000,
            next: (1, 0, 0),
            truth: BTreeMap::new(),
            wheel: BTreeSet::new(),
            said: BTreeMap::new(),
            asked: BTreeMap::new(),
            tokens: 0,
        };
        rig.act(Partition::begun);
        rig
    }

    fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    fn act(&mut self, act: impl FnOnce(&mut Partition, &mut Vec<Effect>)) {
        let mut effects = Vec::new();
        act(&mut self.live, &mut effects);
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            let mut more = Vec::new();
            match effect {
                Effect::Persist { drafts, .. } => self.queue.push_back(drafts),
                Effect::Arm { alarms, .. } => {
                    let count = alarms.len();
                    self.wheel.extend(alarms.iter().map(key_of));
                    self.live.armed(count, &mut more);
                }
                Effect::Returned { batch, again_ms } => {
                    let alarms = self.said.remove(&batch).expect("it was said due, once");
                    if again_ms.is_some() {
                        self.wheel.extend(alarms.iter().map(key_of));
                    }
                }
                Effect::LoadBodies(first) => {
                    let row = self.rows.get(&RowId::Bodies(first)).cloned();
                    let row = row.unwrap_or_default();
                    self.live.bodies_loaded(first, Ok(&row), &mut more);
                }
                Effect::LoadRun(first) => {
                    let row = self.rows.get(&RowId::Run(first));
                    let run: Vec<BatchPlace> =
                        row.and_then(|row| decode_run(row)).unwrap_or_default();
                    self.live.run_loaded(first, Ok(run), &mut more);
                }
                Effect::Timer(token, answer) => self.answered(token, &answer),
                Effect::Refuse(token, why) => {
                    assert_eq!(why, Rejection::Retry);
                    self.asked.remove(&token);
                }
                Effect::Accepted(_)
                | Effect::Stored(..)
                | Effect::Batches(..)
                | Effect::Found(..)
                | Effect::Ahead(_) => {}
            }
            effects.extend(more);
        }
    }

    /// An answer is what the log says when it is given.
    fn answered(&mut self, token: Token, answer: &TimerAnswer) {
        let Some(number) = self.asked.remove(&token) else {
            return;
        };
        let expected = match self.truth.get(&number.0) {
            None => TimerAnswer::NotFound,
            Some(Truth::Cancelled) => TimerAnswer::Cancelled,
            Some(Truth::Fired(offset)) => TimerAnswer::AlreadyFired(*offset),
            Some(Truth::Waits { due, version }) => {
                let pending = Pending {
                    number,
                    version: *version,
                    due: WallMs(*due),
                };
                match answer {
                    TimerAnswer::Rescheduled(_) => TimerAnswer::Rescheduled(pending),
                    _ => TimerAnswer::Pending(pending),
                }
            }
        };
        assert_eq!(*answer, expected, "{number}");
    }

    fn accept(&mut self, ahead: &[i64]) {
        let mut deliveries = vec![2u8; ahead.len()];
        deliveries.extend(
            ahead
                .iter()
                .flat_map(|span| (self.now + span).to_le_bytes()),
        );
        let append = Append {
            token: self.token(),
            batch: Bytes::from_static(&[0; 64]).into(),
            count: u32::try_from(ahead.len()).unwrap(),
            facts: PayloadFacts {
                deliveries: deliveries.into(),
                ..PayloadFacts::default()
            },
            tell_accepted: false,
            now: WallMs(self.now),
            timers: TimerLimits::default(),
            tied: Vec::new(),
        };
        self.act(|live, effects| live.append(append, effects));
    }

    fn ask(&mut self, number: u64, command: TimerCommand) {
        let (token, now) = (self.token(), WallMs(self.now));
        let number = RecordNumber(number);
        self.asked.insert(token, number);
        let limits = TimerLimits::default();
        self.act(|live, effects| live.timer(token, number, command, now, limits, effects));
    }

    fn fire(&mut self) {
        let due: Vec<Alarm> = self
            .wheel
            .iter()
            .take_while(|(due, ..)| *due <= self.now)
            .map(|(due_ms, token, version)| Alarm {
                due_ms: *due_ms,
                owner: OwnerId(0),
                token: *token,
                version: *version,
            })
            .collect();
        for alarm in &due {
            self.wheel.remove(&key_of(alarm));
        }
        self.act(|live, effects| live.near(&due, effects));
        self.tokens += 1;
        let batch = self.tokens;
        self.said.insert(batch, due.clone());
        self.act(|live, effects| live.due(batch, &due, effects));
    }

    fn flush(&mut self, runs: usize) {
        for _ in 0..runs {
            for draft in self.queue.pop_front().unwrap_or_default() {
                let entry = self.stamp(draft);
                self.audit(&entry);
                self.log.push(entry.clone());
                self.act(|live, effects| live.apply(&entry, effects));
                self.act(Partition::applied_all);
            }
        }
    }

    fn stamp(&mut self, draft: Draft) -> AppliedEntry {
        let place = self.log.len() as u64;
        let header = EntryHeader {
            kind: draft.kind,
            tied_to_next: false,
            moved: false,
            index: LogIndex(place + 1),
            term: Term(1),
            owner: OwnerId(1024),
            sequence: OwnerSequence(self.next.0),
            first_number: RecordNumber(self.next.1),
            first_offset: Offset(self.next.2),
            numbers: draft.numbers,
            offsets: draft.offsets,
            appended: WallMs(self.now),
            wall: WallMs(self.now),
        };
        self.next.0 += 1;
        self.next.1 += u64::from(draft.numbers);
        self.next.2 += u64::from(draft.offsets);
        let body = match draft.kind {
            EntryKind::Payload => Bytes::new(),
            _ => draft.body.to_bytes(),
        };
        AppliedEntry {
            header,
            place: EntryPlace {
                position: LogPosition(place * 4_096),
                length: 200,
            },
            body,
            facts: draft.facts,
        }
    }

    /// What the log says, and what it must never say.
    fn audit(&mut self, entry: &AppliedEntry) {
        let header = &entry.header;
        let waits = |truth: Option<&Truth>| match truth {
            Some(Truth::Waits { due, version }) => (*due, *version),
            other => panic!("settled twice: {other:?}"),
        };
        match header.kind {
            EntryKind::Payload if header.offsets == 0 => {
                for alarm in alarms_of(entry) {
                    let (due, version) = (alarm.due_ms, 0);
                    self.truth
                        .insert(alarm.token, Truth::Waits { due, version });
                }
            }
            EntryKind::Publish => {
                let Some(Publication::Records(runs)) = Publication::decode(&entry.body) else {
                    panic!("not a publication of records")
                };
                let mut offset = header.first_offset;
                for run in runs {
                    for number in run.first_number.0..run.first_number.0 + u64::from(run.count) {
                        let (due, _) = waits(self.truth.get(&number));
                        assert!(due <= self.now, "early");
                        assert_eq!(run.due, Some(WallMs(due)));
                        self.truth.insert(number, Truth::Fired(offset));
                        offset.0 += 1;
                    }
                }
            }
            EntryKind::State => match rmp_serde::from_slice(&entry.body).unwrap() {
                Delta::Dropped(runs) => {
                    for (first, count) in runs {
                        for number in first.0..first.0 + u64::from(count) {
                            waits(self.truth.get(&number));
                            self.truth.insert(number, Truth::Cancelled);
                        }
                    }
                }
                Delta::Rescheduled {
                    number,
                    version,
                    due,
                } => {
                    let (_, before) = waits(self.truth.get(&number.0));
                    assert_eq!(version, before + 1);
                    let due = due.0;
                    self.truth.insert(number.0, Truth::Waits { due, version });
                }
                other => panic!("{other:?}"),
            },
            _ => {}
        }
    }

    fn checkpoint(&mut self) {
        let (_, changes) = self.live.take_rows();
        for change in changes {
            match change.value {
                Some(value) => self.rows.insert(change.id, value),
                None => self.rows.remove(&change.id),
            };
        }
    }

    /// Everything but rows and log is forgotten.
    fn restart(&mut self) {
        let rows = self.rows.iter().map(|(id, row)| (*id, &row[..]));
        let from_rows = Partition::from_rows(LIMITS, rows);
        self.live = from_rows.unwrap_or_else(|| Partition::new(LIMITS));
        let mut whole = Partition::new(LIMITS);
        for entry in &self.log {
            self.live.apply(entry, &mut Vec::new());
            whole.apply(entry, &mut Vec::new());
        }
        assert_eq!(self.live.stored_state(), whole.stored_state(), "P7");
        self.queue.clear();
        self.said.clear();
        self.asked.clear();
        let armed = self.log.iter().flat_map(alarms_of);
        self.wheel = armed.map(|alarm| key_of(&alarm)).collect();
        self.checkpoint();
        self.act(Partition::begun);
    }

    fn finish(&mut self) {
        for _ in 0..20 {
            self.flush(1_000);
            self.now += 1_000;
            self.fire();
        }
        self.flush(1_000);
        assert_eq!(self.live.pending(), 0);
        assert!(self.said.is_empty(), "D4: {:?}", self.said);
        let numbers: Vec<u64> = self.truth.keys().copied().collect();
        for number in numbers {
            assert!(
                !matches!(self.truth[&number], Truth::Waits { .. }),
                "{number} is lost"
            );
            self.ask(number, TimerCommand::Cancel);
        }
        assert!(self.asked.is_empty(), "everybody was told");
    }
}

fn key_of(alarm: &Alarm) -> (i64, u64, u32) {
    (alarm.due_ms, alarm.token, alarm.version)
}

proptest! {
    #[test]
    fn d1_to_d4_hold_whatever_is_asked_refused_or_forgotten(
        ops in prop::collection::vec(any_op(), 1..80),
    ) {
        let mut rig = Rig::new();
        for op in ops {
            match op {
                Op::Accept(ahead) => rig.accept(&ahead),
                Op::Ask(at, command) => {
                    let number = at.index(usize::try_from(rig.next.1).unwrap() + 1);
                    rig.ask(number as u64, command);
                }
                Op::Fire => rig.fire(),
                Op::Flush(runs) => rig.flush(runs),
                Op::Refuse => {
                    rig.queue.clear();
                    rig.act(Partition::reset);
                }
                Op::Pass(ms) => rig.now += ms,
                Op::Checkpoint => rig.checkpoint(),
                Op::Restart => rig.restart(),
            }
        }
        rig.finish();
    }
}

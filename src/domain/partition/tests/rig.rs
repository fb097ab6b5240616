//! A partition between a naive sequencer and a naive store: nothing of it but the machine can be wrong.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of a test are small"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::super::index::BatchPlace;
use super::super::rows::{RowId, decode_run};
use super::super::{
    Append, Bounds, Effect, Limits, Partition, Read, ReadAnswer, ReadFrom, TimerLimits,
};
use crate::domain::entry::{AppliedEntry, Draft, EntryHeader, EntryKind, EntryPlace, PayloadFacts};
use crate::domain::id::{
    LogIndex, LogPosition, Offset, OwnerId, OwnerSequence, ProducerEpoch, ProducerId,
    ProducerSequence, RecordNumber, Term, Token,
};
use crate::domain::rejection::Rejection;
use crate::domain::time::WallMs;

pub(super) const LIMITS: Limits = Limits {
    producers_max: 3,
    snapshot_bytes_max: 1 << 20,
};

/// What a token's owner heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Stored(Offset),
    Refused(Rejection),
    Batches(ReadAnswer),
    Found(Bounds),
}

pub(super) type Rows = BTreeMap<RowId, Bytes>;

pub(super) struct Rig {
    pub(super) live: Partition,
    pub(super) log: Vec<AppliedEntry>,
    pub(super) rows: Rows,
    pub(super) answers: BTreeMap<Token, Answer>,
    pub(super) now: WallMs,
    queue: VecDeque<(Option<Token>, Vec<Draft>)>,
    accepted: BTreeSet<Token>,
    tokens: u64,
    next: (u64, u64, u64),
}

impl Rig {
    pub(super) fn new() -> Self {
        Self {
            live: Partition::new(LIMITS),
            log: Vec::new(),
            rows: Rows::new(),
            answers: BTreeMap::new(),
            now: WallMs(1_000),
            queue: VecDeque::new(),
            accepted: BTreeSet::new(),
            tokens: 0,
            next: (1, 0, 0),
        }
    }

    fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    pub(super) fn append(&mut self, sent: (u64, u32, u64), count: u32, bytes: usize) -> Token {
        let token = self.token();
        let facts = PayloadFacts {
            producer: ProducerId(sent.0),
            epoch: ProducerEpoch(sent.1),
            first_sequence: ProducerSequence(sent.2),
            ..PayloadFacts::default()
        };
        let batch = Bytes::from(vec![0; bytes]);
        let append = Append {
            token,
            batch: batch.into(),
            count,
            facts,
            tell_accepted: true,
            now: self.now,
            timers: TimerLimits::default(),
            tied: Vec::new(),
        };
        self.act(|live, effects| live.append(append, effects));
        token
    }

    pub(super) fn read(&mut self, from: Offset, bytes_max: u64, wait: bool) -> Token {
        let token = self.token();
        self.act(|live, effects| {
            live.read(
                Read {
                    token,
                    from,
                    bytes_max,
                    wait,
                },
                effects,
            )
        });
        token
    }

    pub(super) fn lookup(&mut self, from: ReadFrom) -> Bounds {
        let token = self.token();
        self.act(|live, effects| live.lookup(token, from, effects));
        match self.answers.get(&token) {
            Some(Answer::Found(bounds)) => *bounds,
            other => panic!("{from:?} is answered with {other:?}"),
        }
    }

    /// Calls the machine and performs what it says.
    pub(super) fn act(&mut self, act: impl FnOnce(&mut Partition, &mut Vec<Effect>)) {
        let mut effects = Vec::new();
        act(&mut self.live, &mut effects);
        let mut effects = VecDeque::from(effects);
        let mut loads = 0;
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Persist { token, drafts, .. } => self.queue.push_back((token, drafts)),
                Effect::Accepted(token) => assert!(self.accepted.insert(token), "accepted twice"),
                Effect::Stored(token, stored) => {
                    self.answer(token, Answer::Stored(stored.first_offset));
                }
                Effect::Batches(token, answer) => self.answer(token, Answer::Batches(answer)),
                Effect::Found(token, bounds) => self.answer(token, Answer::Found(bounds)),
                Effect::Refuse(token, rejection) => self.answer(token, Answer::Refused(rejection)),
                Effect::LoadRun(first) => {
                    loads += 1;
                    assert!(loads < 100, "a run is loaded over and over");
                    let row = self.rows.get(&RowId::Run(first));
                    let run = row.and_then(|row| decode_run(row)).unwrap_or_default();
                    let mut more = Vec::new();
                    self.live.run_loaded(first, Ok(run), &mut more);
                    effects.extend(more);
                }
                Effect::Timer(..)
                | Effect::Arm { .. }
                | Effect::Returned { .. }
                | Effect::LoadBodies(_)
                | Effect::Ahead(_) => panic!("nothing is delayed here"),
            }
        }
    }

    fn answer(&mut self, token: Token, answer: Answer) {
        let before = self.answers.insert(token, answer);
        assert_eq!(before, None, "{token} is answered twice");
    }

    /// Makes up to so many queued runs durable, as one flush; returns what was applied.
    pub(super) fn flush(&mut self, runs: usize) -> Vec<AppliedEntry> {
        let (mut entries, mut receipts) = (Vec::new(), Vec::new());
        for (token, drafts) in self.queue.drain(..runs.min(self.queue.len())) {
            receipts.extend(token.map(|token| (token, Offset(self.next.2))));
            let last = drafts.len() - 1;
            for (at, draft) in drafts.into_iter().enumerate() {
                let place = (self.log.len() + entries.len()) as u64;
                entries.push(stamp(&mut self.next, place, self.now, draft, at < last));
            }
        }
        for entry in &entries {
            self.act(|live, effects| live.apply(entry, effects));
        }
        self.act(Partition::applied_all);
        self.log.extend(entries.iter().cloned());
        for (token, offset) in receipts {
            self.answer(token, Answer::Stored(offset));
        }
        entries
    }

    /// The commit machine refuses whatever is queued.
    pub(super) fn refuse(&mut self) {
        for (token, _) in std::mem::take(&mut self.queue) {
            if let Some(token) = token {
                self.answer(token, Answer::Refused(Rejection::Retry));
            }
        }
        self.act(Partition::reset);
    }

    /// Hands the changed rows over; the store takes the first `written` of them, or all.
    pub(super) fn take_rows(&mut self, written: Option<usize>) {
        let (_, changes) = self.live.take_rows();
        let written = written.unwrap_or(changes.len());
        for change in changes.into_iter().take(written) {
            match change.value {
                Some(value) => self.rows.insert(change.id, value),
                None => self.rows.remove(&change.id),
            };
        }
    }

    /// Everything but rows and log is gone.
    pub(super) fn crash(&mut self) {
        self.queue.clear();
        self.answers.clear();
        self.live = fold(&self.rows, &self.log);
    }

    /// Everything that is served, by reading it.
    pub(super) fn served(&mut self) -> Vec<BatchPlace> {
        let mut at = self.live.head().start_offset;
        let mut served: Vec<BatchPlace> = Vec::new();
        while at < self.live.head().next_offset {
            let token = self.read(at, u64::MAX, false);
            match self.answers.get(&token) {
                Some(Answer::Batches(answer)) if !answer.batches.is_empty() => {
                    served.extend(&answer.batches);
                    at = answer.batches[answer.batches.len() - 1].end();
                }
                other => panic!("I1: nothing at {at}: {other:?}"),
            }
        }
        served
    }
}

/// A machine from rows and the log behind them.
pub(super) fn fold<'a>(rows: &Rows, log: impl IntoIterator<Item = &'a AppliedEntry>) -> Partition {
    let rows = rows.iter().map(|(id, value)| (*id, value.as_ref()));
    let mut machine = Partition::from_rows(LIMITS, rows).expect("rows read");
    for entry in log {
        let mut effects = Vec::new();
        machine.apply(entry, &mut effects);
        assert!(effects.is_empty(), "a fold answers nobody");
    }
    machine
}

fn stamp(
    next: &mut (u64, u64, u64),
    place: u64,
    now: WallMs,
    draft: Draft,
    tied: bool,
) -> AppliedEntry {
    let header = EntryHeader {
        kind: draft.kind,
        tied_to_next: tied,
        moved: false,
        index: LogIndex(place + 1),
        term: Term(1),
        owner: OwnerId(1024),
        sequence: OwnerSequence(next.0),
        first_number: RecordNumber(next.1),
        first_offset: Offset(next.2),
        numbers: draft.numbers,
        offsets: draft.offsets,
        appended: now,
        wall: now,
    };
    *next = (
        next.0 + 1,
        next.1 + u64::from(draft.numbers),
        next.2 + u64::from(draft.offsets),
    );
    let length = draft.body.len() as u32 + 100;
    let is_payload = draft.kind == EntryKind::Payload;
    AppliedEntry {
        header,
        place: EntryPlace {
            position: LogPosition(place * 4096),
            length,
        },
        body: if is_payload {
            Bytes::new()
        } else {
            draft.body.to_bytes()
        },
        facts: draft.facts,
    }
}

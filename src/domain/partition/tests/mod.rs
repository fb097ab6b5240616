//! The partition against a list of what was sent and stored, whatever happens in between.

mod formats;
mod model;
mod rig;

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use self::model::{Expected, Model, Sent};
use self::rig::{Answer, Rig, fold};
use super::ReadFrom;
use super::index::{BatchPlace, RUN_BATCHES};
use crate::domain::entry::{AppliedEntry, EntryKind};
use crate::domain::id::{Offset, ProducerSequence, Token};
use crate::domain::rejection::Rejection;
use crate::domain::time::WallMs;

#[derive(Debug, Clone)]
enum Step {
    Append {
        producer: u64,
        what: What,
        count: u32,
    },
    /// Many batches of one producer, beyond its window.
    Burst {
        producer: u64,
        batches: usize,
    },
    /// Many batches of nobody, over several runs of the index.
    Bulk {
        batches: usize,
    },
    Flush {
        runs: usize,
    },
    Refuse,
    Tick {
        ms: i64,
    },
    Retain {
        age_ms: Option<u64>,
        bytes: Option<u64>,
    },
    Forget {
        age_ms: i64,
    },
    Restate,
    /// Rows are written, all of them or only the first few.
    Rows {
        written: Option<usize>,
    },
    Crash,
    Read {
        at: u64,
        bytes_max: u64,
    },
    Wait,
    Time {
        back_ms: i64,
    },
}

#[derive(Debug, Clone, Copy)]
enum What {
    Next,
    Again { back: usize },
    Ahead { by: u64 },
    OldEpoch,
    NewEpoch { first: u64 },
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        6 => Just(What::Next),
        4 => (1usize..70).prop_map(|back| What::Again { back }),
        3 => (1usize..4).prop_map(|back| What::Again { back }),
        1 => (1u64..3).prop_map(|by| What::Ahead { by }),
        1 => Just(What::OldEpoch),
        1 => prop_oneof![4 => Just(0u64), 1 => Just(2)].prop_map(|first| What::NewEpoch { first }),
    ]
}

fn step(bulk: usize, crashes: u32) -> impl Strategy<Value = Step> {
    let append = (0u64..6, what(), 1u32..4).prop_map(|(producer, what, count)| Step::Append {
        producer,
        what,
        count,
    });
    let retain = (
        proptest::option::of(0u64..400),
        proptest::option::of(0u64..400_000),
    )
        .prop_map(|(age_ms, bytes)| Step::Retain { age_ms, bytes });
    prop_oneof![
        40 => append,
        3 => (1u64..4, 1usize..70).prop_map(|(producer, batches)| Step::Burst { producer, batches }),
        12 => (1usize..=bulk).prop_map(|batches| Step::Bulk { batches }),
        25 => (1usize..80).prop_map(|runs| Step::Flush { runs }),
        3 => Just(Step::Refuse),
        8 => (0i64..100).prop_map(|ms| Step::Tick { ms }),
        3 => retain,
        2 => (0i64..300).prop_map(|age_ms| Step::Forget { age_ms }),
        3 => Just(Step::Restate),
        5 => proptest::option::of(0usize..8).prop_map(|written| Step::Rows { written }),
        crashes => Just(Step::Crash),
        10 => (any::<u64>(), 0u64..60_000).prop_map(|(at, bytes_max)| Step::Read { at, bytes_max }),
        4 => Just(Step::Wait),
        8 => (0i64..600).prop_map(|back_ms| Step::Time { back_ms }),
    ]
}

/// The machine and the list side by side.
struct World {
    rig: Rig,
    model: Model,
    expected: BTreeMap<Token, Answer>,
    waiting: Vec<(Token, Offset)>,
    /// Up to here retention was ever allowed to take.
    may_go: Offset,
}

impl World {
    fn new() -> Self {
        Self {
            rig: Rig::new(),
            model: Model::default(),
            expected: BTreeMap::new(),
            waiting: Vec::new(),
            may_go: Offset(0),
        }
    }

    fn go(steps: &[Step]) -> Self {
        let mut world = Self::new();
        for step in steps {
            world.step(step);
            world.check_answers();
        }
        while !world.model.queued.is_empty() {
            world.flush(usize::MAX);
        }
        world.check_answers();
        world.check_state();
        world
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Append {
                producer,
                what,
                count,
            } => self.append(producer, what, count),
            Step::Burst { producer, batches } => {
                (0..batches).for_each(|_| self.append(producer, What::Next, 1));
            }
            Step::Bulk { batches } => {
                (0..batches).for_each(|_| self.append(0, What::Next, 2));
                self.flush(usize::MAX);
            }
            Step::Flush { runs } => self.flush(runs),
            Step::Refuse => self.refuse(),
            Step::Tick { ms } => self.rig.now.0 += ms,
            Step::Retain { age_ms, bytes } => self.retain(age_ms, bytes),
            Step::Forget { age_ms } => {
                let before = WallMs(self.rig.now.0 - age_ms);
                self.rig
                    .act(|live, effects| live.forget_producers(before, effects));
            }
            Step::Restate => self.rig.act(super::Partition::restate),
            Step::Rows { written: None } => self.rig.take_rows(None),
            Step::Rows { written } => {
                // Only a crash leaves rows half written.
                self.rig.take_rows(written);
                self.crash();
            }
            Step::Crash => self.crash(),
            Step::Read { at, bytes_max } => self.read(at, bytes_max),
            Step::Wait => {
                let end = self.model.end();
                let token = self.rig.read(end, 1, true);
                self.waiting.push((token, end));
            }
            Step::Time { back_ms } => self.time(WallMs(self.rig.now.0 - back_ms)),
        }
    }

    fn append(&mut self, producer: u64, what: What, count: u32) {
        let mine = self.model.all(producer);
        let last = mine.last().copied().unwrap_or(Sent {
            producer,
            epoch: 0,
            first: 0,
            count: 0,
        });
        let next = Sent {
            producer,
            epoch: last.epoch,
            first: last.first + u64::from(last.count),
            count,
        };
        let sent = match what {
            _ if producer == 0 => Sent {
                producer,
                epoch: 0,
                first: 0,
                count,
            },
            What::Next => next,
            What::Again { back } => mine.iter().rev().nth(back - 1).copied().unwrap_or(next),
            What::Ahead { by } => Sent {
                first: next.first + by,
                ..next
            },
            What::OldEpoch => Sent {
                epoch: next.epoch.saturating_sub(1),
                ..next
            },
            What::NewEpoch { first } => Sent {
                epoch: next.epoch + 1,
                first,
                ..next
            },
        };
        let bytes = 10 * sent.count as usize;
        let token = self
            .rig
            .append((sent.producer, sent.epoch, sent.first), sent.count, bytes);
        match self.model.offer(sent, token) {
            Expected::Queued => {
                // Its receipt comes with its place, like the answer to its repeats.
                self.model
                    .queued
                    .back_mut()
                    .expect("just queued")
                    .1
                    .push(token);
            }
            Expected::Waits => {}
            Expected::Answer(answer) => {
                self.expected.insert(token, answer);
            }
        }
    }

    fn flush(&mut self, runs: usize) {
        let applied = self.rig.flush(runs);
        for entry in &applied {
            self.model.apply(entry, &mut self.expected);
        }
        let end = self.model.end();
        let start = self.model.start;
        self.waiting.retain(|(token, from)| {
            let answer = self.rig.answers.remove(token);
            match answer {
                None => assert!(
                    *from >= end,
                    "P5: a read at {from} waits though the end is {end}"
                ),
                Some(Answer::Batches(answer)) => {
                    assert_eq!(answer.batches[0].first_offset, *from);
                    return false;
                }
                Some(Answer::Refused(Rejection::OffsetOutOfRange { .. })) => {
                    assert!(*from < start);
                    return false;
                }
                other => panic!("a waiting read is answered with {other:?}"),
            }
            true
        });
    }

    fn refuse(&mut self) {
        self.rig.refuse();
        for (_, tokens) in std::mem::take(&mut self.model.queued) {
            let refused = |token| (token, Answer::Refused(Rejection::Retry));
            self.expected.extend(tokens.into_iter().map(refused));
        }
    }

    fn crash(&mut self) {
        self.check_answers();
        self.rig.crash();
        self.model.queued.clear();
        self.waiting.clear();
        self.check_state();
    }

    fn retain(&mut self, age_ms: Option<u64>, bytes: Option<u64>) {
        let now = self.rig.now;
        // Half of the time nothing is on its way: an earlier request, a snapshot and what it holds back.
        let is_quiet = now.0 % 2 == 0;
        for _ in 0..if is_quiet { 3 } else { 0 } {
            self.flush(usize::MAX);
        }
        self.rig
            .act(|live, effects| live.retain(now, age_ms, bytes, effects));
        // Judged by what it leaves: nothing is dropped that the settings keep.
        let old = |batch: &BatchPlace| {
            age_ms.is_some_and(|ms| batch.appended.0 < now.0 - i64::try_from(ms).unwrap())
        };
        let kept = self.model.kept();
        let mut left: u64 = kept.iter().map(|batch| u64::from(batch.length)).sum();
        let mut ideal = self.model.start;
        for batch in &kept {
            let without = left - u64::from(batch.length);
            if !old(batch) && bytes.is_none_or(|kept| without < kept) {
                break;
            }
            ideal = batch.end();
            left = without;
        }
        self.flush(usize::MAX);
        self.may_go = self.may_go.max(ideal);
        let (start, may_go) = (self.model.start, self.may_go);
        assert!(
            start <= may_go,
            "retention takes up to {start}, the settings allow {may_go}"
        );
        // A run that is not in memory goes as a whole or stays: not more than one.
        let behind = self
            .model
            .kept()
            .iter()
            .filter(|batch| batch.end() <= ideal)
            .count();
        assert!(
            !is_quiet || behind <= RUN_BATCHES,
            "{behind} batches stay that should go"
        );
    }

    fn read(&mut self, at: u64, bytes_max: u64) {
        let (start, end) = (self.model.start, self.model.end());
        let from = Offset(at % (end.0 + 3));
        let token = self.rig.read(from, bytes_max, false);
        let answer = self
            .rig
            .answers
            .remove(&token)
            .expect("a read that does not wait is answered");
        if from < start || from > end {
            let out = Rejection::OffsetOutOfRange { start, end };
            return assert_eq!(answer, Answer::Refused(out));
        }
        let Answer::Batches(answer) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!((answer.start, answer.high_watermark), (start, end));
        let at = self
            .model
            .batches
            .partition_point(|batch| batch.end() <= from);
        let there = &self.model.batches[at..];
        assert!(there.starts_with(&answer.batches), "I1");
        assert_eq!(answer.batches.is_empty(), there.is_empty());
        let bytes: u64 = answer
            .batches
            .iter()
            .rev()
            .skip(1)
            .map(|b| u64::from(b.length))
            .sum();
        assert!(bytes == 0 || bytes < bytes_max);
    }

    fn time(&mut self, time: WallMs) {
        let found = self.rig.lookup(ReadFrom::Time(time));
        let first = self
            .model
            .batches
            .iter()
            .find(|batch| batch.appended >= time);
        let offset = first.map_or(self.model.end(), |batch| batch.first_offset);
        assert_eq!(found.offset, offset.max(self.model.start));
        let on_its_way: u64 = self
            .model
            .queued
            .iter()
            .map(|(sent, _)| u64::from(sent.count))
            .sum();
        assert_eq!(found.log_end.0, self.model.end().0 + on_its_way);
    }

    fn check_answers(&mut self) {
        let heard = std::mem::take(&mut self.rig.answers);
        let waiting = |token: &Token| self.waiting.iter().any(|(waits, _)| waits == token);
        let heard: BTreeMap<_, _> = heard
            .into_iter()
            .filter(|(token, answer)| {
                !waiting(token) && !matches!(answer, Answer::Found(_) | Answer::Batches(_))
            })
            .collect();
        assert_eq!(heard, std::mem::take(&mut self.expected));
    }

    /// The whole state is what the list says.
    fn check_state(&mut self) {
        let (head, producers, _) = self.rig.live.applied_state();
        assert_eq!(head.next_offset, self.model.end());
        assert_eq!(head.start_offset, self.model.start);
        assert_eq!(producers, self.model.rows());
        assert_eq!(self.rig.served(), self.model.kept());
        self.rig.answers.clear();
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(200))]

    /// P1, P2, P3, P4, and the snapshots of P8: they change nothing.
    #[test]
    fn a_batch_is_stored_once_and_in_order_and_a_repeat_gets_its_first_offset(
        steps in vec(step(3, 1), 1..200),
    ) {
        World::go(&steps);
    }

    /// P7: rows of any earlier moment, also half written, and the log behind them give the live state.
    #[test]
    fn whatever_rows_were_written_they_and_the_log_give_the_live_state(
        steps in vec(step(3, 10), 1..150),
    ) {
        World::go(&steps);
    }

    /// P7, P8: what a snapshot stands for may leave the log, in part or as a whole.
    #[test]
    fn a_snapshot_stands_for_everything_before_it_but_live_payloads(
        steps in vec(step(3, 2), 1..150),
        more in vec(step(3, 1), 1..20),
        dead_kept in any::<u64>(),
    ) {
        let mut world = World::go(&steps);
        world.step(&Step::Restate);
        for step in &more {
            world.step(step);
        }
        world.flush(usize::MAX);
        world.flush(usize::MAX);
        let is_snapshot = |entry: &&AppliedEntry| entry.header.kind == EntryKind::Snapshot;
        let Some(last) = world.rig.log.iter().rposition(|entry| is_snapshot(&entry)) else {
            return Ok(()); // it was refused
        };
        let others = world.rig.log[..last].iter().rposition(|entry| !entry.header.tied_to_next);
        let from = others.map_or(0, |at| at + 1);
        let start = world.model.start;
        let kept: Vec<_> = world.rig.log.iter().enumerate().filter(|(at, entry)| {
            let end = Offset(entry.header.first_offset.0 + u64::from(entry.header.offsets));
            let is_live = entry.header.kind == EntryKind::Payload && end > start;
            *at >= from || is_live || dead_kept & (1 << (at % 64)) != 0
        }).map(|(_, entry)| entry.clone()).collect();
        world.rig.log = kept;
        world.rig.rows.clear();
        world.crash();
    }
}

proptest! {
    #![proptest_config(config(24))]

    /// I1, P5, P6: over many runs of the index, loaded and not, trimmed by age and size.
    #[test]
    fn reads_lookups_and_retention_agree_with_a_list(steps in vec(step(1200, 3), 1..120)) {
        World::go(&steps);
    }
}

#[test]
fn lookups_by_time_over_many_runs_load_each_once() {
    let mut world = World::new();
    for _ in 0..12 {
        world.step(&Step::Bulk {
            batches: RUN_BATCHES,
        });
        world.step(&Step::Tick { ms: 10 });
    }
    world.rig.take_rows(None);
    world.crash();
    // Backwards: each run that is loaded lies below those loaded before it.
    for back_ms in 0..120 {
        world.step(&Step::Time { back_ms });
    }
}

#[test]
fn a_snapshot_waits_for_what_is_on_its_way_and_what_comes_later_waits_for_it() {
    let mut world = World::new();
    world.append(1, What::Next, 3);
    world.step(&Step::Restate);
    world.append(1, What::Next, 2);
    assert_eq!(
        world.rig.flush(usize::MAX).len(),
        1,
        "P8: only what was on its way"
    );
    let kinds: Vec<_> = world
        .rig
        .flush(usize::MAX)
        .iter()
        .map(|entry| entry.header.kind)
        .collect();
    assert_eq!(
        kinds,
        [
            EntryKind::Snapshot,
            EntryKind::Snapshot,
            EntryKind::Snapshot,
            EntryKind::Payload
        ]
    );
    let folded = fold(&rig::Rows::new(), &world.rig.log);
    assert_eq!(folded.applied_state(), world.rig.live.applied_state());
    assert_eq!(
        folded.applied_state().1[0].1.next_sequence,
        ProducerSequence(5)
    );
}

//! Dead letters against a naive model: each is brought back once or cleared once, whatever is asked twice,
//! refused or crashes.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::rig::{DEAD, Rig, TOPIC, place};
use crate::domain::entry::{Draft, EntryKind, PayloadFacts};
use crate::domain::group::Limits;
use crate::domain::group::command::{Answer, Command};
use crate::domain::group::rejection::GroupRejection;
use crate::domain::group::subscription::{Mode, SubscriptionSpec};
use crate::domain::id::{Offset, PartitionId, Token};
use crate::domain::rejection::Rejection;

const LETTERS: u64 = 40;

#[derive(Debug, Clone)]
enum Step {
    Redrive(u32, Vec<u64>),
    Purge(u32, u64, u64),
    Trim(u32, u64),
    Commit(usize),
    Fence,
    Crash(bool),
    Restate,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..2u32, proptest::collection::vec(0..LETTERS, 1..6)).prop_map(|(p, at)| Step::Redrive(p, at)),
        3 => (0..2u32, 0..LETTERS, 1..6u64).prop_map(|(p, at, count)| Step::Purge(p, at, count)),
        1 => (0..2u32, 0..4u64).prop_map(|(p, by)| Step::Trim(p, by)),
        4 => (1..4usize).prop_map(Step::Commit),
        1 => Just(Step::Fence),
        1 => any::<bool>().prop_map(Step::Crash),
        1 => Just(Step::Restate),
    ]
}

/// The copy of a letter, as the rig knows it again.
fn copy(at: PartitionId, offset: u64) -> Draft {
    let bytes = [
        u8::try_from(at.partition.0).unwrap(),
        0,
        u8::try_from(offset).unwrap(),
    ];
    Draft {
        kind: EntryKind::Payload,
        numbers: 1,
        offsets: 1,
        body: bytes::Bytes::copy_from_slice(&bytes).into(),
        facts: PayloadFacts::default(),
    }
}

fn begin() -> Rig {
    let spec = SubscriptionSpec::new(TOPIC, Mode::Shared);
    let mut rig = Rig::new(spec.clone(), 2, Limits::default());
    rig.command(Command::Subscribe(spec));
    rig.commit(usize::MAX);
    rig
}

fn redrive(rig: &mut Rig, partition: u32, offsets: &[u64]) -> Token {
    let at = place(partition);
    let start = Offset(rig.parts[&at].start);
    let returned = offsets
        .iter()
        .map(|offset| (Offset(*offset), vec![(DEAD, copy(at, *offset))]));
    rig.command(Command::SettleLetters {
        place: at,
        start,
        cleared: Vec::new(),
        returned: returned.collect(),
    })
}

fn purge(rig: &mut Rig, partition: u32, from: u64, count: u64) -> Token {
    let at = place(partition);
    rig.command(Command::SettleLetters {
        place: at,
        start: Offset(rig.parts[&at].start),
        cleared: vec![(Offset(from), count)],
        returned: Vec::new(),
    })
}

fn open(rig: &mut Rig, partition: u32) -> BTreeSet<u64> {
    let token = rig.command(Command::OpenLetters {
        place: place(partition),
        from: Offset(0),
        to: Offset(LETTERS),
    });
    let Some(Ok(Answer::OpenLetters(ranges))) = rig.answers.remove(&token) else {
        panic!("it is always answered");
    };
    ranges
        .iter()
        .flat_map(|(first, count)| first.0..first.0 + count)
        .collect()
}

fn done(rig: &Rig, tokens: &[Token]) -> u64 {
    tokens
        .iter()
        .filter_map(|token| match rig.answers.get(token) {
            Some(Ok(Answer::LettersSettled(done))) => Some(*done),
            Some(Ok(_)) => panic!("another answer"),
            Some(Err(_)) | None => None,
        })
        .sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_letter_is_open_or_back_or_cleared_and_never_two_of_them(steps in proptest::collection::vec(step(), 0..60)) {
        let mut rig = begin();
        let (mut tokens, mut purged) = (Vec::new(), BTreeSet::new());
        let mut unanswered = false;
        for step in steps {
            match step {
                // What is copied twice fails in the rig.
                Step::Redrive(partition, offsets) => tokens.push(redrive(&mut rig, partition, &offsets)),
                Step::Purge(partition, from, count) => {
                    purged.extend((from..from + count).map(|at| (place(partition), at)));
                    tokens.push(purge(&mut rig, partition, from, count));
                }
                Step::Trim(partition, by) => {
                    let part = rig.parts.get_mut(&place(partition)).unwrap();
                    part.start = (part.start + by).min(LETTERS);
                }
                Step::Commit(runs) => drop(rig.commit(runs)),
                Step::Fence => {
                    rig.queue.clear();
                    rig.call(|group, now, effects| group.fenced(now, &Rejection::Retry, effects));
                }
                Step::Crash(from_rows) => {
                    unanswered = true;
                    rig.crash(from_rows);
                }
                Step::Restate => rig.call(|group, _, effects| group.restate(effects)),
            }
        }
        rig.commit(usize::MAX);
        rig.commit(usize::MAX);
        // Nothing is on its way: all that was cleared or brought back is not open, all else is.
        let mut gone = 0;
        for partition in 0..2 {
            let at = place(partition);
            let open = open(&mut rig, partition);
            for offset in 0..LETTERS {
                let back = rig.dead.contains(&(at, offset));
                let below = offset < rig.parts[&at].start;
                prop_assert!(!(back && open.contains(&offset)), "{offset} is open and back");
                prop_assert!(back || below || open.contains(&offset) || purged.contains(&(at, offset)));
                gone += u64::from(!open.contains(&offset) && !below);
            }
        }
        // Every letter counts in one answer, but for answers a crash took away.
        let answered = done(&rig, &tokens);
        if !unanswered {
            prop_assert!(answered >= gone, "{answered} of {gone}");
            prop_assert!(answered >= rig.dead.len() as u64);
        }
        rig.crash(true);
    }
}

#[test]
fn what_is_asked_twice_before_the_first_is_durable_is_done_once() {
    let mut rig = begin();
    let first = redrive(&mut rig, 0, &[3, 4]);
    let again = redrive(&mut rig, 0, &[4, 5]);
    let purged = purge(&mut rig, 0, 0, 10);
    let nothing = redrive(&mut rig, 0, &[3, 5, 9]);
    assert!(
        !rig.answers.contains_key(&first),
        "not before it is durable"
    );
    rig.commit(usize::MAX);
    let of = |token| done(&rig, &[token]);
    assert_eq!(
        (of(first), of(again), of(purged), of(nothing)),
        (2, 1, 7, 0)
    );
    assert_eq!(open(&mut rig, 0), (10..LETTERS).collect());
    assert_eq!(open(&mut rig, 1), (0..LETTERS).collect());
}

#[test]
fn letters_that_retention_took_are_gone_and_count_for_nothing() {
    let mut rig = begin();
    rig.parts.get_mut(&place(0)).unwrap().start = 20;
    let purged = purge(&mut rig, 0, 0, 25);
    rig.commit(usize::MAX);
    assert_eq!(done(&rig, &[purged]), 5);
    assert_eq!(open(&mut rig, 0), (25..LETTERS).collect());
    let cursor = rig
        .group
        .cursors
        .values()
        .find(|cursor| cursor.place == place(0));
    assert_eq!(
        cursor.unwrap().row().floor,
        Some(Offset(25)),
        "one floor, no ranges"
    );
}

#[test]
fn a_place_without_an_account_is_refused() {
    let spec = SubscriptionSpec::new(TOPIC, Mode::Shared);
    let mut rig = Rig::new(spec, 1, Limits::default());
    let token = redrive(&mut rig, 0, &[1]);
    let unknown = Rejection::Group(GroupRejection::UnknownSubscription);
    assert_eq!(rig.answers[&token], Err(unknown));
}

#[test]
fn gaps_are_bounded_and_what_leaves_none_is_still_taken() {
    let spec = SubscriptionSpec::new(TOPIC, Mode::Shared);
    let limits = Limits {
        snapshot_bytes_max: 640,
        ..Limits::default()
    };
    let mut rig = Rig::new(spec.clone(), 1, limits);
    rig.command(Command::Subscribe(spec));
    rig.commit(usize::MAX);
    let mut last = None;
    for offset in (1..LETTERS).step_by(2) {
        let token = purge(&mut rig, 0, offset, 1);
        rig.commit(usize::MAX);
        last = Some(rig.answers[&token].clone());
    }
    let full = GroupRejection::ListFull { max: 10 };
    assert_eq!(last, Some(Err(Rejection::Group(full))));
    let rest = purge(&mut rig, 0, 0, LETTERS);
    rig.commit(usize::MAX);
    assert_eq!(done(&rig, &[rest]), LETTERS - 11);
}

use proptest::prelude::*;

use super::rig::*;
use crate::domain::group::Limits;
use crate::domain::group::command::*;
use crate::domain::group::subscription::{Backoff, Mode, Poison, SubscriptionSpec};
use crate::domain::id::*;
use crate::domain::rejection::Rejection;

#[derive(Debug, Clone)]
pub(super) enum Step {
    Produce(u32, Vec<(u64, bool)>),
    Join(u8, bool),
    Leave(usize),
    Lose(usize),
    Credit(usize, u64, u64),
    Withdraw(usize),
    Ack(usize, usize, u64, u32),
    AckUpTo(usize, usize),
    Nack(usize, usize, u64, u32, u8),
    Extend(usize, usize),
    Feed(usize),
    Fetch,
    Bury,
    PutOff,
    Commit(usize),
    Advance(u64),
    Crash(bool),
    Fence,
    Restate,
    Trim(u32, u64),
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let index = any::<usize>;
    prop_oneof![
        4 => (0u32..3, proptest::collection::vec((0u64..5, prop::bool::weighted(0.8)), 1..12))
            .prop_map(|(p, records)| Step::Produce(p, records)),
        2 => (0u8..6, prop::bool::weighted(0.3)).prop_map(|(n, grace)| Step::Join(n, grace)),
        1 => index().prop_map(Step::Leave),
        1 => index().prop_map(Step::Lose),
        5 => (index(), 1u64..5000, 1u64..40).prop_map(|(m, b, r)| Step::Credit(m, b, r)),
        1 => index().prop_map(Step::Withdraw),
        10 => (index(), index(), 0u64..8, 1u32..8).prop_map(|(m, l, f, c)| Step::Ack(m, l, f, c)),
        2 => (index(), index()).prop_map(|(m, l)| Step::AckUpTo(m, l)),
        4 => (index(), index(), 0u64..8, 1u32..4, 0u8..6).prop_map(|(m, l, f, c, a)| Step::Nack(m, l, f, c, a)),
        1 => (index(), index()).prop_map(|(m, l)| Step::Extend(m, l)),
        8 => index().prop_map(Step::Feed),
        3 => Just(Step::Fetch),
        3 => Just(Step::Bury),
        2 => Just(Step::PutOff),
        10 => (1usize..4).prop_map(Step::Commit),
        4 => (1u64..400).prop_map(Step::Advance),
        1 => any::<bool>().prop_map(Step::Crash),
        1 => Just(Step::Fence),
        1 => Just(Step::Restate),
        1 => (0u32..3, 0u64..20).prop_map(|(p, by)| Step::Trim(p, by)),
    ]
}

pub(super) fn pick(rig: &Rig, which: usize) -> Option<MemberId> {
    let live = rig.live();
    (!live.is_empty()).then(|| live[which % live.len()])
}

pub(super) fn pick_lease(rig: &Rig, member: MemberId, which: usize) -> Option<(LeaseId, u64)> {
    let leases: Vec<_> = rig.clients[&member].leases.iter().collect();
    if leases.is_empty() {
        return None;
    }
    let (lease, (_, open, _)) = leases[which % leases.len()];
    Some((*lease, *open.first().unwrap()))
}

pub(super) fn run(rig: &mut Rig, step: Step) {
    match step {
        Step::Produce(partition, records) => {
            let filtered = !rig.spec.filter.is_empty();
            let records: Vec<Stored> = records
                .into_iter()
                .map(|(key, wanted)| Stored {
                    key,
                    wanted: wanted || !filtered,
                })
                .collect();
            rig.produce(place(partition), &records);
        }
        Step::Join(name, grace) => {
            let name = if name < 3 {
                format!("m{name}")
            } else {
                String::new()
            };
            let grace = if grace && !name.is_empty() { 300 } else { 0 };
            rig.join(&name, grace, Settle::OnAcknowledge);
        }
        Step::Leave(which) => {
            if let Some(member) = pick(rig, which) {
                rig.command(Command::Leave { member });
            }
        }
        Step::Lose(which) => {
            if let Some(member) = pick(rig, which) {
                rig.command(Command::Lost { member });
            }
        }
        Step::Credit(which, bytes, records) => {
            if let Some(member) = pick(rig, which) {
                rig.command(Command::Credit {
                    member,
                    topic: TOPIC,
                    bytes,
                    records,
                });
            }
        }
        Step::Withdraw(which) => {
            if let Some(member) = pick(rig, which) {
                rig.command(Command::Withdraw {
                    member,
                    topic: TOPIC,
                });
            }
        }
        Step::Ack(which, lease, skip, count) => {
            if let Some(member) = pick(rig, which)
                && let Some((lease, first)) = pick_lease(rig, member, lease)
            {
                rig.ack(member, lease, first + skip, count);
            }
        }
        Step::AckUpTo(which, lease) => ack_up_to(rig, which, lease),
        Step::Nack(which, lease, skip, count, after) => {
            let after = match after {
                0 => RetryAfter::Now,
                1 => RetryAfter::Ms(50),
                2 => RetryAfter::DeadLetter,
                3 => RetryAfter::Unseen,
                _ => RetryAfter::Policy,
            };
            if let Some(member) = pick(rig, which)
                && let Some((lease, first)) = pick_lease(rig, member, lease)
            {
                rig.nack(member, lease, first + skip, count, after);
            }
        }
        Step::Extend(which, lease) => {
            if let Some(member) = pick(rig, which)
                && let Some((lease, _)) = pick_lease(rig, member, lease)
            {
                let leases = vec![lease];
                let lease_ms = 500;
                rig.command(Command::Extend {
                    member,
                    leases,
                    lease_ms,
                });
            }
        }
        Step::Feed(which) => drop(rig.feed(which)),
        Step::Fetch => drop(rig.fetch()),
        Step::Bury => drop(rig.bury()),
        Step::PutOff => drop(rig.put_off_burial()),
        Step::Commit(runs) => drop(rig.commit(runs)),
        Step::Advance(ms) => rig.advance(ms),
        Step::Crash(from_rows) => rig.crash(from_rows),
        Step::Fence => {
            rig.queue.clear();
            rig.acking.clear();
            rig.call(|group, now, effects| group.fenced(now, &Rejection::Retry, effects));
        }
        Step::Restate => rig.call(|group, _, effects| group.restate(effects)),
        Step::Trim(partition, by) => {
            let part = rig.parts.get_mut(&place(partition)).unwrap();
            part.start = (part.start + by).min(part.records.len() as u64);
        }
    }
}

fn ack_up_to(rig: &mut Rig, which: usize, lease: usize) {
    let Some(member) = pick(rig, which) else {
        return;
    };
    let Some((lease, first)) = pick_lease(rig, member, lease) else {
        return;
    };
    let client = rig.clients.get_mut(&member).unwrap();
    let at = client.leases[&lease].0;
    let mut acked = Vec::new();
    for (place, open, _) in client
        .leases
        .values_mut()
        .filter(|(place, _, _)| *place == at)
    {
        let below: Vec<u64> = open.range(..=first).copied().collect();
        for offset in below {
            open.remove(&offset);
            acked.push((*place, offset));
        }
    }
    client.leases.retain(|_, (_, open, _)| !open.is_empty());
    rig.acking.insert(Token(rig.next_token + 1), acked);
    rig.command(Command::AcknowledgeUpTo {
        member,
        place: at,
        end: Offset(first + 1),
    });
}

pub(super) fn spec(mode: Mode) -> SubscriptionSpec {
    let mut spec = SubscriptionSpec::new(TOPIC, mode);
    spec.lease_ms = 1000;
    spec.retry.backoff = Backoff::Exponential {
        first_ms: 100,
        max_ms: 400,
    };
    spec.retry.attempts_max = 4;
    spec
}

/// Room in the list: so little that it is full most of the time, or enough.
pub(super) fn room() -> impl Strategy<Value = u32> {
    prop_oneof![Just(5), Just(60)]
}

pub(super) fn tight(listed_max: u32) -> Limits {
    Limits {
        window_max: 24,
        listed_max,
        drain_ms: 200,
        ..Limits::default()
    }
}

fn hold(spec: SubscriptionSpec, room: u32, steps: Vec<Step>) {
    let mut rig = Rig::new(spec, 3, tight(room));
    for step in steps {
        run(&mut rig, step);
    }
    rig.consume_all();
    rig.crash(true);
    rig.consume_all();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, max_shrink_iters: 1500, ..ProptestConfig::default() })]

    #[test]
    fn g1_to_g7_hold_in_shared_mode(room in room(), steps in proptest::collection::vec(step(), 0..150)) {
        hold(spec(Mode::Shared), room, steps);
    }

    #[test]
    fn g1_to_g7_hold_in_shared_mode_with_a_filter(room in room(), steps in proptest::collection::vec(step(), 0..150)) {
        hold(SubscriptionSpec { filter: "some".into(), ..spec(Mode::Shared) }, room, steps);
    }

    #[test]
    fn g1_to_g7_hold_in_key_ordered_mode(room in room(), steps in proptest::collection::vec(step(), 0..150)) {
        hold(spec(Mode::KeyOrdered), room, steps);
    }

    #[test]
    fn g1_to_g7_hold_in_exclusive_mode_that_blocks(room in room(), steps in proptest::collection::vec(step(), 0..150)) {
        hold(spec(Mode::Exclusive), room, steps);
    }

    #[test]
    fn g1_to_g7_hold_in_exclusive_mode_with_dead_letters_and_a_filter(room in room(), steps in proptest::collection::vec(step(), 0..150)) {
        let mut spec = spec(Mode::Exclusive);
        spec.retry.poison = Poison::DeadLetter;
        spec.filter = "some".into();
        hold(spec, room, steps);
    }
}

#[test]
fn g4_what_was_taken_back_is_not_settled_by_all_up_to_it() {
    let record = Stored {
        key: 0,
        wanted: true,
    };
    let mut rig = Rig::new(spec(Mode::Exclusive), 1, tight(60));
    rig.produce(place(0), &[record; 4]);
    rig.join("", 0, Settle::OnAcknowledge);
    rig.settle_down();
    let member = rig.live()[0];
    rig.command(Command::Credit {
        member,
        topic: TOPIC,
        bytes: 1 << 20,
        records: 4,
    });
    rig.settle_down();
    let (lease, _) = pick_lease(&rig, member, 0).unwrap();
    rig.ack(member, lease, 0, 2);
    let up_to = |rig: &mut Rig, end| {
        let token = rig.command(Command::AcknowledgeUpTo {
            member,
            place: place(0),
            end: Offset(end),
        });
        rig.commit(usize::MAX);
        rig.commit(usize::MAX);
        rig.answers.remove(&token).unwrap()
    };
    // What is on its way, or done, is as good said twice.
    assert_eq!(up_to(&mut rig, 2), Ok(Answer::Settled(Vec::new())));
    assert_eq!(up_to(&mut rig, 2), Ok(Answer::Settled(Vec::new())));
    // The lease is over, and its member does not know yet.
    rig.advance(2000);
    assert!(up_to(&mut rig, 4).is_err());
    rig.settle_down();
    assert!(
        rig.group
            .cursors
            .values()
            .all(|cursor| !cursor.is_settled(3))
    );
}

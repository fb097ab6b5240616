//! Dead letters: each once, whatever is put off, altered, refused by the log or died of meanwhile.

use proptest::prelude::*;

use super::modes::{pick, pick_lease, spec, tight};
use super::rig::*;
use crate::domain::group::Limits;
use crate::domain::group::command::*;
use crate::domain::group::subscription::{Mode, RetryPolicy, SubscriptionChange, SubscriptionSpec};
use crate::domain::id::*;
use crate::domain::rejection::Rejection;

const RECORD: Stored = Stored {
    key: 0,
    wanted: true,
};
const KEYED: Stored = Stored {
    key: 1,
    wanted: true,
};

fn strict(mode: Mode, attempts_max: u16) -> SubscriptionSpec {
    let mut spec = spec(mode);
    spec.lease_ms = 60_000;
    spec.retry.attempts_max = attempts_max;
    spec
}

/// The only member, with credit for whatever comes.
fn member(rig: &mut Rig) -> MemberId {
    rig.join("", 0, Settle::OnAcknowledge);
    rig.settle_down();
    let member = rig.live()[0];
    credit(rig, member);
    rig.settle_down();
    member
}

fn credit(rig: &mut Rig, member: MemberId) {
    rig.command(Command::Credit {
        member,
        topic: TOPIC,
        bytes: 1 << 20,
        records: 100,
    });
}

impl Rig {
    /// Other rules. Another filter makes the group look again from where it has come to.
    fn alter(&mut self, attempts_max: u16, filter: &str, mode: Mode) {
        let retry = RetryPolicy {
            attempts_max,
            ..self.spec.retry.clone()
        };
        let change = SubscriptionChange {
            retry: Some(retry),
            filter: Some(filter.to_owned()),
            mode: Some(mode),
            ..SubscriptionChange::default()
        };
        self.command(Command::Alter {
            topic: TOPIC,
            change,
        });
    }

    fn dead_lettered(&self) -> u64 {
        let cursors = self.group.cursors.values();
        cursors.map(|cursor| cursor.dead_lettered).sum()
    }
}

#[test]
fn a_letter_that_was_put_off_is_written_once() {
    let mut rig = Rig::new(strict(Mode::Shared, 1), 1, Limits::default());
    rig.produce(place(0), &[RECORD; 2]);
    let member = member(&mut rig);
    let (lease, first) = pick_lease(&rig, member, 0).unwrap();
    rig.nack(member, lease, first, 1, RetryAfter::Policy);
    rig.commit(1);
    assert!(rig.put_off_burial());
    // What is refused now is on its way to the log when the letter's time has come.
    rig.nack(member, lease, first + 1, 1, RetryAfter::Policy);
    rig.advance(1000);
    assert!(rig.bury());
    rig.settle_down();
    rig.advance(10_000);
    rig.settle_down();
    assert_eq!((rig.dead.len(), rig.dead_lettered()), (2, 2));
}

#[test]
fn a_record_that_gets_more_attempts_while_it_is_copied_is_there_or_dead_never_both() {
    for is_copied_first in [true, false] {
        let mut rig = Rig::new(strict(Mode::Shared, 1), 1, Limits::default());
        rig.produce(place(0), &[RECORD]);
        let member = member(&mut rig);
        let (lease, first) = pick_lease(&rig, member, 0).unwrap();
        rig.nack(member, lease, first, 1, RetryAfter::Now);
        rig.commit(1);
        if is_copied_first {
            assert!(rig.bury());
        }
        rig.alter(5, "some", Mode::Shared);
        rig.spec.filter = "some".to_owned();
        rig.settle_down();
        let is_leased = pick_lease(&rig, member, 0).is_some();
        assert_eq!(
            (rig.dead.len() == 1, is_leased),
            (is_copied_first, !is_copied_first)
        );
    }
}

#[test]
fn letters_of_a_subscription_that_is_gone_take_no_room_of_others() {
    let mut rig = Rig::new(strict(Mode::Shared, 1), 1, Limits::default());
    rig.produce(place(0), &[RECORD; 80]);
    for is_last in [false, true] {
        let member = member(&mut rig);
        while let Some((lease, first)) = pick_lease(&rig, member, 0) {
            rig.nack(member, lease, first, 1, RetryAfter::Now);
        }
        rig.commit(usize::MAX);
        rig.commit(usize::MAX);
        if is_last {
            rig.settle_down();
            assert_eq!(rig.dead.len(), 80);
            return;
        }
        // Many are asked for when it goes, and written behind that.
        assert!(!rig.dying.is_empty());
        rig.command(Command::Unsubscribe { topic: TOPIC });
        rig.settle_down();
        rig.command(Command::Lost { member });
        rig.settle_down();
        // The next subscription begins anew.
        rig.dead.clear();
    }
}

#[derive(Debug, Clone)]
enum Step {
    Produce(usize),
    Join,
    Lose(usize),
    Credit(usize),
    Refuse(usize, usize, bool),
    Feed,
    Fetch,
    Bury,
    PutOff,
    Commit(usize),
    Advance(u64),
    Alter(u16, bool, bool),
    Crash(bool),
    Fence,
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<usize>;
    prop_oneof![
        2 => (1usize..6).prop_map(Step::Produce),
        2 => Just(Step::Join),
        1 => index().prop_map(Step::Lose),
        6 => index().prop_map(Step::Credit),
        12 => (index(), index(), prop::bool::weighted(0.1)).prop_map(|(m, l, dead)| Step::Refuse(m, l, dead)),
        4 => Just(Step::Feed),
        2 => Just(Step::Fetch),
        5 => Just(Step::Bury),
        5 => Just(Step::PutOff),
        10 => (1usize..4).prop_map(Step::Commit),
        6 => (1u64..1500).prop_map(Step::Advance),
        2 => (1u16..4, any::<bool>(), any::<bool>()).prop_map(|(attempts, again, keyed)| Step::Alter(attempts, again, keyed)),
        1 => any::<bool>().prop_map(Step::Crash),
        1 => Just(Step::Fence),
    ]
}

fn run(rig: &mut Rig, step: Step) {
    match step {
        Step::Produce(count) => rig.produce(place(0), &[KEYED, RECORD].repeat(count)),
        Step::Join => drop(rig.join("", 0, Settle::OnAcknowledge)),
        Step::Lose(which) => {
            if let Some(member) = pick(rig, which) {
                rig.command(Command::Lost { member });
            }
        }
        Step::Credit(which) => {
            if let Some(member) = pick(rig, which) {
                credit(rig, member);
            }
        }
        Step::Refuse(which, lease, dead) => {
            if let Some(member) = pick(rig, which)
                && let Some((lease, first)) = pick_lease(rig, member, lease)
            {
                let after = if dead {
                    RetryAfter::DeadLetter
                } else {
                    RetryAfter::Policy
                };
                rig.nack(member, lease, first, 1, after);
            }
        }
        Step::Feed => drop(rig.feed(0)),
        Step::Fetch => drop(rig.fetch()),
        Step::Bury => drop(rig.bury()),
        Step::PutOff => drop(rig.put_off_burial()),
        Step::Commit(runs) => drop(rig.commit(runs)),
        Step::Advance(ms) => rig.advance(ms),
        Step::Alter(attempts, again, keyed) => {
            let filter = if again == rig.spec.filter.is_empty() {
                "some"
            } else {
                ""
            };
            // Never back: of what is listed in a mode without keys, none is known.
            let mode = if keyed { rig.spec.mode } else { Mode::Shared };
            rig.alter(attempts, filter, mode);
        }
        Step::Crash(from_rows) => rig.crash(from_rows),
        Step::Fence => {
            rig.queue.clear();
            rig.acking.clear();
            rig.call(|group, now, effects| group.fenced(now, &Rejection::Retry, effects));
        }
    }
    // Whoever joins asks for what there is.
    if let Some(subscription) = rig.group.subscriptions.get(&TOPIC) {
        rig.spec = subscription.spec.clone();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, max_shrink_iters: 1500, ..ProptestConfig::default() })]

    #[test]
    fn what_is_refused_too_often_is_a_letter_once(keyed in any::<bool>(), steps in proptest::collection::vec(step(), 0..150)) {
        let mode = if keyed { Mode::KeyOrdered } else { Mode::Shared };
        let mut rig = Rig::new(strict(mode, 2), 1, tight(60));
        rig.produce(place(0), &[KEYED; 4]);
        for step in steps {
            run(&mut rig, step);
        }
        rig.settle_down();
        rig.spec = rig.group.subscriptions.get(&TOPIC).map_or_else(|| rig.spec.clone(), |known| known.spec.clone());
        rig.consume_all();
        prop_assert_eq!(rig.dead_lettered(), rig.dead.len() as u64);
    }
}

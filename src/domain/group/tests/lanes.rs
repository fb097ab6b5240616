//! Lanes: a higher one comes first whatever credit members have.

use proptest::prelude::*;

use super::modes::{pick, pick_lease, spec};
use super::rig::*;
use crate::domain::group::Limits;
use crate::domain::group::command::*;
use crate::domain::group::cursor::Cursor;
use crate::domain::group::delta::Why;
use crate::domain::group::subscription::{Mode, SubscriptionSpec};
use crate::domain::id::*;
use crate::domain::rejection::Rejection;

impl Rig {
    /// How many partitions the topic has, and how many lanes each.
    pub(super) fn shape(&self) -> (u32, u8) {
        let partitions = self.parts.keys().map(|place| place.partition.0 + 1).max();
        let lanes = self.parts.keys().map(|place| place.lane.0 + 1).max();
        (partitions.unwrap_or(0), lanes.unwrap_or(1))
    }

    /// Everything that is on its way arrives, searches that find nothing and do not wait among it.
    fn arrive(&mut self) {
        while self.survey() || self.feed(0) || self.fetch() || self.commit(1) {}
    }

    /// A search that does not wait comes back with nothing.
    fn survey(&mut self) -> bool {
        let empty = self
            .feeds
            .values()
            .find(|feed| !feed.wait && feed.from.0 >= self.parts[&feed.place].records.len() as u64);
        let Some(feed) = empty.cloned() else {
            return false;
        };
        self.feeds.remove(&feed.cursor);
        let high = Offset(self.parts[&feed.place].records.len() as u64);
        self.call(|group, now, effects| {
            group.offered(now, feed.cursor, feed.round, &[], high, effects)
        });
        true
    }

    /// Nothing is given out while a higher lane has a record the group was told of, that nobody has or has
    /// decided about, and that waits for nothing.
    pub(super) fn check_lanes(&self, effects: &[Effect]) {
        let mut given: Vec<&Lease> = Vec::new();
        for effect in effects {
            if let Effect::Tell(_, MemberEvent::Leased(leases)) = effect {
                given.extend(leases);
            }
        }
        given.sort_by_key(|lease| lease.id);
        for (at, lease) in given.iter().enumerate() {
            let cursors = self.group.cursors.values();
            for higher in cursors.filter(|cursor| cursor.place.lane > lease.place.lane) {
                for offset in higher.floor_or_zero()..higher.high_watermark {
                    let later = given[at..].iter().any(|later| {
                        let end = later.first.0 + u64::from(later.count);
                        later.place == higher.place && (later.first.0..end).contains(&offset)
                    });
                    assert!(
                        !(self.is_there(higher, offset) || later),
                        "{:?} at {} before {offset} of {:?}",
                        lease.place,
                        lease.first,
                        higher.place
                    );
                }
                // Listed below the floor, it waits as well.
                for offset in higher
                    .listed
                    .range(..higher.floor_or_zero())
                    .map(|(at, _)| *at)
                {
                    assert!(
                        !self.is_there(higher, offset),
                        "{offset} of {:?}",
                        higher.place
                    );
                }
            }
        }
    }

    fn is_there(&self, cursor: &Cursor, offset: u64) -> bool {
        if cursor.is_in_hand(offset) || cursor.is_settled(offset) {
            return false;
        }
        cursor
            .listed
            .get(&offset)
            .is_none_or(|listed| match &listed.why {
                Why::Retry { since, span_ms, .. } => {
                    let waited = self.now.wall.0 - since.0;
                    listed.attempts < self.spec.retry.attempts_max
                        && waited >= i64::try_from(*span_ms).unwrap()
                }
                Why::Dead { .. } | Why::Attached(_) => false,
                Why::Held => true,
            })
    }

    /// The lanes of what a member holds.
    fn lanes_held(&self, member: MemberId) -> Vec<(LeaseId, u8, u64)> {
        let leases = self.clients[&member].leases.iter();
        leases
            .flat_map(|(id, (place, open, _))| {
                open.iter().map(|offset| (*id, place.lane.0, *offset))
            })
            .collect()
    }
}

#[test]
fn a_member_that_takes_one_record_at_a_time_is_given_the_higher_lane_next() {
    const HIGH: u8 = 2;
    let record = Stored {
        key: 0,
        wanted: true,
    };
    let spec = SubscriptionSpec::new(TOPIC, Mode::Shared);
    let mut rig = Rig::new(spec, 1, Limits::default());
    let lane = |lane| PartitionId {
        lane: Lane(lane),
        ..place(0)
    };
    for number in 1..=HIGH {
        rig.parts.insert(lane(number), Part::default());
    }
    rig.produce(lane(0), &[record; 60]);
    rig.join("m", 0, Settle::OnAcknowledge);
    rig.arrive();
    let member = rig.live()[0];
    for round in 0..20 {
        let credit = Command::Credit {
            member,
            topic: TOPIC,
            bytes: 1 << 20,
            records: 1,
        };
        rig.command(credit);
        rig.arrive();
        let held = rig.lanes_held(member);
        let [(lease, from, offset)] = held[..] else {
            panic!("it holds {held:?}");
        };
        // From the third on, one of each two was sent while the record before it was in hand.
        let expected = if round >= 3 && round % 2 == 1 {
            HIGH
        } else {
            0
        };
        assert_eq!(from, expected, "round {round}");
        if round >= 2 && round % 2 == 0 {
            rig.produce(lane(HIGH), &[record]);
        }
        rig.ack(member, lease, offset, 1);
        rig.arrive();
    }
}

fn lane_of(partition: u32, lane: u8) -> PartitionId {
    PartitionId {
        lane: Lane(lane),
        ..place(partition)
    }
}

#[test]
fn a_lane_that_cannot_be_searched_holds_those_below_up_for_no_longer_than_ageing() {
    let record = Stored {
        key: 0,
        wanted: true,
    };
    let limits = Limits::default();
    let mut rig = Rig::new(spec(Mode::Shared), 1, limits);
    rig.parts.insert(lane_of(0, 1), Part::default());
    rig.produce(lane_of(0, 0), &[record; 3]);
    rig.produce(lane_of(0, 1), &[record; 3]);
    rig.join("m", 0, Settle::OnAcknowledge);
    rig.arrive();
    let member = rig.live()[0];
    let credit = Command::Credit {
        member,
        topic: TOPIC,
        bytes: 1 << 20,
        records: 10,
    };
    rig.command(credit);
    // The higher one is asked and never answers.
    let low: Vec<CursorNumber> = rig
        .feeds
        .values()
        .filter(|feed| feed.place.lane == Lane(0))
        .map(|feed| feed.cursor)
        .collect();
    rig.feeds.retain(|cursor, _| low.contains(cursor));
    rig.arrive();
    assert_eq!(rig.lanes_held(member), []);
    rig.advance(limits.ageing_ms);
    let held = rig.lanes_held(member);
    assert!(held.iter().all(|(_, lane, _)| *lane == 0));
    assert_eq!(held.len(), 3);
}

#[derive(Debug, Clone)]
enum Step {
    Produce(u32, u8, usize),
    Join,
    Lose(usize),
    Credit(usize, u64),
    Ack(usize, usize),
    Nack(usize, usize, u8),
    Survey,
    Feed(usize),
    Fetch,
    Commit(usize),
    Advance(u64),
    Fence,
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<usize>;
    prop_oneof![
        6 => (0u32..2, 0u8..3, 1usize..6).prop_map(|(p, l, n)| Step::Produce(p, l, n)),
        2 => Just(Step::Join),
        1 => index().prop_map(Step::Lose),
        10 => (index(), 1u64..6).prop_map(|(m, n)| Step::Credit(m, n)),
        10 => (index(), index()).prop_map(|(m, l)| Step::Ack(m, l)),
        8 => (index(), index(), 0u8..3).prop_map(|(m, l, a)| Step::Nack(m, l, a)),
        6 => Just(Step::Survey),
        8 => index().prop_map(Step::Feed),
        4 => Just(Step::Fetch),
        10 => (1usize..4).prop_map(Step::Commit),
        6 => (1u64..400).prop_map(Step::Advance),
        1 => Just(Step::Fence),
    ]
}

fn run(rig: &mut Rig, step: Step) {
    let record = Stored {
        key: 0,
        wanted: true,
    };
    match step {
        Step::Produce(partition, lane, count) => {
            rig.produce(lane_of(partition, lane), &vec![record; count]);
        }
        Step::Join => drop(rig.join("", 0, Settle::OnAcknowledge)),
        Step::Lose(which) => {
            if let Some(member) = pick(rig, which) {
                rig.command(Command::Lost { member });
            }
        }
        Step::Credit(which, records) => {
            if let Some(member) = pick(rig, which) {
                rig.command(Command::Credit {
                    member,
                    topic: TOPIC,
                    bytes: 1 << 20,
                    records,
                });
            }
        }
        Step::Ack(which, lease) => {
            if let Some(member) = pick(rig, which)
                && let Some((lease, first)) = pick_lease(rig, member, lease)
            {
                rig.ack(member, lease, first, 1);
            }
        }
        Step::Nack(which, lease, after) => {
            let after = match after {
                0 => RetryAfter::Now,
                1 => RetryAfter::Ms(50),
                _ => RetryAfter::Policy,
            };
            if let Some(member) = pick(rig, which)
                && let Some((lease, first)) = pick_lease(rig, member, lease)
            {
                rig.nack(member, lease, first, 1, after);
            }
        }
        Step::Survey => drop(rig.survey()),
        Step::Feed(which) => drop(rig.feed(which)),
        Step::Fetch => drop(rig.fetch()),
        Step::Commit(runs) => drop(rig.commit(runs)),
        Step::Advance(ms) => rig.advance(ms),
        Step::Fence => {
            rig.queue.clear();
            rig.acking.clear();
            rig.call(|group, now, effects| group.fenced(now, &Rejection::Retry, effects));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, max_shrink_iters: 1500, ..ProptestConfig::default() })]

    #[test]
    fn where_no_lane_ages_nothing_is_given_out_while_a_higher_one_has_something(steps in proptest::collection::vec(step(), 0..150)) {
        let limits = Limits { ageing_ms: u64::MAX, ..Limits::default() };
        let spec = SubscriptionSpec { lease_ms: 60_000, ..spec(Mode::Shared) };
        let mut rig = Rig::new(spec, 2, limits);
        for lane in 1..3 {
            for partition in 0..2 {
                rig.parts.insert(lane_of(partition, lane), Part::default());
            }
        }
        rig.strict_lanes = true;
        rig.join("", 0, Settle::OnAcknowledge);
        for step in steps {
            run(&mut rig, step);
        }
    }
}

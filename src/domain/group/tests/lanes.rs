//! Lanes: a higher one comes first whatever credit members have.

use super::rig::*;
use crate::domain::group::Limits;
use crate::domain::group::command::*;
use crate::domain::group::subscription::{Mode, SubscriptionSpec};
use crate::domain::id::*;

impl Rig {
    /// How many partitions the topic has, and how many lanes each.
    pub(super) fn shape(&self) -> (u32, u8) {
        let partitions = self.parts.keys().map(|place| place.partition.0 + 1).max();
        let lanes = self.parts.keys().map(|place| place.lane.0 + 1).max();
        (partitions.unwrap_or(0), lanes.unwrap_or(1))
    }

    /// Everything that is on its way arrives, searches that find nothing and do not wait among it.
    fn arrive(&mut self) {
        loop {
            let empty = self.feeds.values().find(|feed| {
                !feed.wait && feed.from.0 >= self.parts[&feed.place].records.len() as u64
            });
            let Some(feed) = empty.cloned() else {
                if self.feed(0) || self.fetch() || self.commit(1) {
                    continue;
                }
                return;
            };
            self.feeds.remove(&feed.cursor);
            let high = Offset(self.parts[&feed.place].records.len() as u64);
            self.call(|group, now, effects| {
                group.offered(now, feed.cursor, feed.round, &[], high, effects)
            });
        }
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

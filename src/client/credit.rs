//! A member's credit: what it granted, what is leased of it, what may be granted again.
//!
//! In: leases as they come, and what is settled or lost of them. Out: what to grant. Nothing here survives the
//! session it is of.
//!
//! G1: credit given back is exactly what the broker charged, once per lease.

use std::collections::BTreeMap;

use super::membership::Plan;
use crate::domain::id::{Lane, PartitionIndex, TopicId};

/// What is granted and not used up, per topic, and what may be granted again.
pub(super) struct Credit {
    pub(super) by_topic: BTreeMap<TopicId, Balance>,
    bytes_max: u64,
    records_max: u64,
    pub(super) pull: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Balance {
    /// Granted and not leased yet; negative where a lease overdrew.
    left_bytes: i64,
    left_records: i64,
    /// Leased and not given back yet.
    out_bytes: u64,
    out_records: u64,
}

impl Credit {
    pub(super) fn new(plan: &Plan, topics: impl Iterator<Item = TopicId>) -> Self {
        Self {
            by_topic: topics.map(|topic| (topic, Balance::default())).collect(),
            bytes_max: plan.prefetch_bytes,
            records_max: plan.prefetch_records,
            pull: plan.pull,
        }
    }

    pub(super) fn leased(&mut self, topic: TopicId, records: u64, bytes: u64) {
        if let Some(balance) = self.by_topic.get_mut(&topic) {
            balance.left_bytes -= signed(bytes);
            balance.left_records -= signed(records);
            balance.out_bytes += bytes;
            balance.out_records += records;
        }
    }

    pub(super) fn returned(&mut self, topic: TopicId, records: u64, bytes: u64) {
        if let Some(balance) = self.by_topic.get_mut(&topic) {
            balance.out_bytes = balance.out_bytes.saturating_sub(bytes);
            balance.out_records = balance.out_records.saturating_sub(records);
        }
    }

    /// What push owes each topic: up to the prefetch, once it is worth a frame.
    pub(super) fn owed(&mut self, all: bool) -> Vec<(TopicId, u64, u64)> {
        let (bytes_max, records_max) = (self.bytes_max, self.records_max);
        let mut owed = Vec::new();
        for (topic, balance) in &mut self.by_topic {
            let bytes = signed(bytes_max) - balance.left_bytes - signed(balance.out_bytes);
            let records = signed(records_max) - balance.left_records - signed(balance.out_records);
            let (bytes, records) = (unsigned(bytes), unsigned(records));
            if all || bytes * 4 >= bytes_max || records * 4 >= records_max {
                balance.left_bytes += signed(bytes);
                balance.left_records += signed(records);
                owed.push((*topic, bytes, records));
            }
        }
        owed
    }

    /// What a pull for so many records owes each topic.
    pub(super) fn wanted(&mut self, records: u64) -> Vec<(TopicId, u64, u64)> {
        let bytes_max = self.bytes_max;
        let mut owed = Vec::new();
        for (topic, balance) in &mut self.by_topic {
            let bytes = unsigned(signed(bytes_max) - balance.left_bytes);
            let records = unsigned(signed(records) - balance.left_records);
            balance.left_bytes += signed(bytes);
            balance.left_records += signed(records);
            owed.push((*topic, bytes, records));
        }
        owed
    }

    /// Nothing is granted any more.
    pub(super) fn withdrawn(&mut self) {
        for balance in self.by_topic.values_mut() {
            balance.left_bytes = balance.left_bytes.min(0);
            balance.left_records = balance.left_records.min(0);
        }
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A lease in hand.
pub(super) struct Held {
    pub(super) topic: TopicId,
    pub(super) partition: PartitionIndex,
    pub(super) lane: Lane,
    pub(super) first: u64,
    pub(super) count: u32,
    pub(super) records_left: u32,
    pub(super) bytes_left: u64,
}

impl Held {
    /// What settling so many of its records gives back: all that is left with the last.
    pub(super) fn take(&mut self, records: u32) -> (u64, u64) {
        let records = records.min(self.records_left);
        let bytes = if records == self.records_left {
            self.bytes_left
        } else {
            self.bytes_left * u64::from(records) / u64::from(self.records_left.max(1))
        };
        self.records_left -= records;
        self.bytes_left -= bytes;
        (u64::from(records), bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOPIC: TopicId = TopicId(1);

    fn credit(pull: bool) -> Credit {
        Credit {
            by_topic: BTreeMap::from([(TOPIC, Balance::default())]),
            bytes_max: 1000,
            records_max: 100,
            pull,
        }
    }

    #[test]
    fn a_pull_asks_for_what_is_missing_and_takes_back_what_did_not_come() {
        let mut credit = credit(true);
        assert_eq!(credit.wanted(10), [(TOPIC, 1000, 10)]);
        credit.leased(TOPIC, 4, 400);
        assert_eq!(credit.wanted(10), [(TOPIC, 400, 4)], "6 are under way");
        credit.withdrawn();
        assert_eq!(credit.wanted(3), [(TOPIC, 1000, 3)]);
        credit.leased(TOPIC, 5, 5000);
        assert_eq!(
            credit.wanted(3),
            [(TOPIC, 5000, 5)],
            "an overdraft is made good"
        );
    }

    proptest! {
        #[test]
        fn g1_what_is_granted_unused_and_held_never_exceeds_the_prefetch_and_nothing_leaks(
            steps in prop::collection::vec((1u32..20, 1u64..300, 1u32..30), 1..60)
        ) {
            let mut credit = credit(false);
            let mut balance = (0i64, 0i64);
            let mut held: Vec<Held> = Vec::new();
            let grant = |credit: &mut Credit, all, balance: &mut (i64, i64)| {
                for (_, bytes, records) in credit.owed(all) {
                    balance.0 += signed(bytes);
                    balance.1 += signed(records);
                }
            };
            grant(&mut credit, true, &mut balance);
            for (count, bytes, settle) in steps {
                // The broker leases while there is credit, overdrawing by one lease at most.
                if balance.0 > 0 && balance.1 > 0 {
                    credit.leased(TOPIC, u64::from(count), bytes);
                    balance.0 -= signed(bytes);
                    balance.1 -= i64::from(count);
                    held.push(Held { topic: TOPIC, partition: PartitionIndex(0), lane: Lane(0), first: 0, count, records_left: count, bytes_left: bytes });
                }
                if let Some(lease) = held.first_mut() {
                    let (records, bytes) = lease.take(settle);
                    credit.returned(TOPIC, records, bytes);
                    if lease.records_left == 0 {
                        prop_assert_eq!(lease.bytes_left, 0);
                        held.remove(0);
                    }
                }
                grant(&mut credit, false, &mut balance);
                let out: i64 = held.iter().map(|lease| signed(lease.bytes_left)).sum();
                prop_assert!(balance.0 + out <= 1000);
            }
            // Once everything is settled all of it is granted again: nothing has leaked.
            for mut lease in held {
                let (records, bytes) = lease.take(u32::MAX);
                credit.returned(TOPIC, records, bytes);
            }
            grant(&mut credit, true, &mut balance);
            prop_assert_eq!(balance, (1000, 100));
        }
    }
}

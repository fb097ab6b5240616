//! The owners that are gone for good, as ranges that neither touch nor overlap.
//!
//! Ids are given in order and never again, so what is deleted grows together: a broker that has made and
//! deleted a million topics keeps a handful of ranges, and a question costs one search.

use std::collections::BTreeMap;

use super::OwnerRange;
use crate::domain::id::OwnerId;

/// From the first owner of each range to one past its last.
#[derive(Debug, Clone, Default)]
pub(super) struct Deleted(BTreeMap<u64, u64>);

impl Deleted {
    /// These are gone too.
    pub(super) fn insert(&mut self, range: OwnerRange) {
        let (mut first, mut end) = (range.first.0, range.first.0.saturating_add(range.count));
        if first >= end {
            return;
        }
        // What begins at or before its end and reaches its beginning becomes one with it.
        while let Some((&other, &other_end)) = self.0.range(..=end).next_back()
            && other_end >= first
        {
            self.0.remove(&other);
            first = first.min(other);
            end = end.max(other_end);
        }
        self.0.insert(first, end);
    }

    /// Whether the owner is gone.
    pub(super) fn contains(&self, owner: OwnerId) -> bool {
        let range = self.0.range(..=owner.0).next_back();
        range.is_some_and(|(_, end)| owner.0 < *end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a set of all of them.
        #[test]
        fn exactly_what_was_deleted_is_gone_and_ranges_grow_together(
            ranges in vec((0u64..60, 0u64..8), 0..30),
        ) {
            let (mut deleted, mut all) = (Deleted::default(), BTreeSet::new());
            for (first, count) in ranges {
                deleted.insert(OwnerRange { first: OwnerId(first), count });
                all.extend(first..first + count);
                for owner in 0..80 {
                    prop_assert_eq!(deleted.contains(OwnerId(owner)), all.contains(&owner));
                }
                let gaps = all.iter().filter(|owner| !all.contains(&(*owner + 1))).count();
                prop_assert_eq!(deleted.0.len(), gaps);
            }
        }
    }

    #[test]
    fn a_million_topics_made_and_deleted_in_order_are_one_range() {
        let mut deleted = Deleted::default();
        for topic in 0..1_000_000 {
            let first = OwnerId(1024 + topic * 32);
            deleted.insert(OwnerRange { first, count: 32 });
        }
        assert_eq!(deleted.0.len(), 1);
        assert!(deleted.contains(OwnerId(1024)) && !deleted.contains(OwnerId(1023)));
        deleted.insert(OwnerRange {
            first: OwnerId(u64::MAX),
            count: 9,
        });
        assert!(!deleted.contains(OwnerId(u64::MAX - 1)));
    }
}

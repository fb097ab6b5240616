//! Who gets which partitions in exclusive mode: balanced, and moving as few as possible.

use std::collections::BTreeMap;

use crate::domain::id::{MemberId, PartitionIndex};

/// Spreads `partitions` over `members` so that their shares differ by at most one, leaving every
/// partition where it is unless its member has gone or has more than its share. Nobody gets anything
/// where there is nobody.
#[must_use]
pub fn assign(
    partitions: impl IntoIterator<Item = PartitionIndex>,
    members: &[MemberId],
    current: &BTreeMap<PartitionIndex, MemberId>,
) -> BTreeMap<PartitionIndex, MemberId> {
    let partitions: Vec<PartitionIndex> = partitions.into_iter().collect();
    if members.is_empty() {
        return BTreeMap::new();
    }
    let least = partitions.len() / members.len();
    // So many members may have one more than the least.
    let mut larger = partitions.len() % members.len();
    let mut shares: BTreeMap<MemberId, Vec<PartitionIndex>> =
        members.iter().map(|member| (*member, Vec::new())).collect();
    let mut free = Vec::new();
    for partition in partitions {
        match current
            .get(&partition)
            .and_then(|member| shares.get_mut(member))
        {
            Some(share) => share.push(partition),
            None => free.push(partition),
        }
    }
    // Who has most keeps the larger share.
    let mut by_size: Vec<(MemberId, usize)> = shares
        .iter()
        .map(|(member, share)| (*member, share.len()))
        .collect();
    by_size.sort_by_key(|(member, size)| (std::cmp::Reverse(*size), *member));
    let mut bounds = BTreeMap::new();
    for (member, size) in by_size {
        let extra = usize::from(larger > 0 && size > least);
        larger -= extra;
        bounds.insert(member, least + extra);
        if let Some(share) = shares.get_mut(&member) {
            free.extend(share.drain((least + extra).min(share.len())..));
        }
    }
    free.sort_unstable();
    let mut free = free.into_iter();
    for (member, share) in &mut shares {
        let bound = bounds.get(member).copied().unwrap_or(least);
        share.extend(free.by_ref().take(bound.saturating_sub(share.len())));
    }
    // What is left is the larger shares nobody had.
    for (member, share) in &mut shares {
        if bounds.get(member) == Some(&least) && larger > 0 {
            let Some(partition) = free.next() else { break };
            share.push(partition);
            larger -= 1;
        }
    }
    shares
        .into_iter()
        .flat_map(|(member, share)| share.into_iter().map(move |partition| (partition, member)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn shares_are_balanced_and_no_more_moves_than_must(
            partitions in 0u32..40,
            members in proptest::collection::btree_set(1u64..12, 0..8),
            current in proptest::collection::btree_map(0u32..40, 1u64..12, 0..40),
        ) {
            let ids: Vec<MemberId> = members.iter().copied().map(MemberId).collect();
            let current: BTreeMap<_, _> = current.into_iter().map(|(p, m)| (PartitionIndex(p), MemberId(m))).collect();
            let all = || (0..partitions).map(PartitionIndex);
            let assigned = assign(all(), &ids, &current);
            if ids.is_empty() {
                prop_assert!(assigned.is_empty());
                return Ok(());
            }
            prop_assert_eq!(assigned.keys().copied().collect::<BTreeSet<_>>(), all().collect());
            let share = |member: &MemberId, of: &BTreeMap<PartitionIndex, MemberId>| {
                all().filter(|p| of.get(p) == Some(member)).count()
            };
            let least = partitions as usize / ids.len();
            let larger = partitions as usize % ids.len();
            for member in &ids {
                prop_assert!((least..=least + 1).contains(&share(member, &assigned)), "{assigned:?}");
            }
            // The most that can stay: every member its share, the larger ones to who has more.
            let mut had: Vec<usize> = ids.iter().map(|member| share(member, &current)).collect();
            had.sort_unstable_by(|a, b| b.cmp(a));
            let could: usize = had.iter().enumerate().map(|(at, had)| (*had).min(least + usize::from(at < larger))).sum();
            let stayed = all().filter(|p| assigned.get(p).is_some() && assigned.get(p) == current.get(p)).count();
            prop_assert_eq!(stayed, could);
        }
    }
}

//! A set of offsets kept as ranges: what is settled, ready, on its way.

use std::collections::BTreeMap;

/// Offsets as half-open ranges, apart and not touching each other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeSet {
    ranges: BTreeMap<u64, u64>,
    len: u64,
}

impl RangeSet {
    /// How many offsets are in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many ranges it takes.
    #[must_use]
    pub fn ranges(&self) -> usize {
        self.ranges.len()
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(from, to)| (*from, *to))
    }

    /// The lowest range.
    #[must_use]
    pub fn first(&self) -> Option<(u64, u64)> {
        self.iter().next()
    }

    /// The highest range.
    #[must_use]
    pub fn last(&self) -> Option<(u64, u64)> {
        self.ranges.last_key_value().map(|(from, to)| (*from, *to))
    }

    /// Whether an offset is in it.
    #[must_use]
    pub fn contains(&self, offset: u64) -> bool {
        self.ranges
            .range(..=offset)
            .next_back()
            .is_some_and(|(_, to)| offset < *to)
    }

    /// Whether any of `from..to` is in it.
    #[must_use]
    pub fn meets(&self, from: u64, to: u64) -> bool {
        // Of those that begin below `to`, the last ends last.
        let last = || self.ranges.range(..to).next_back();
        from < to && last().is_some_and(|(_, end)| *end > from)
    }

    /// Adds `from..to`; says how many were new.
    pub fn insert(&mut self, from: u64, to: u64) -> u64 {
        if from >= to {
            return 0;
        }
        let (mut end, mut had) = (to, 0);
        // From the last that it touches backwards: mostly there is one or none, found with one search.
        while let Some((at, its_end)) = self.ranges.range_mut(..=to).next_back()
            && *its_end >= from
        {
            let start = *at;
            had += *its_end - start;
            end = end.max(*its_end);
            if start <= from {
                *its_end = end;
                let new = (end - start) - had;
                self.len += new;
                return new;
            }
            self.ranges.remove(&start);
        }
        self.ranges.insert(from, end);
        let new = (end - from) - had;
        self.len += new;
        new
    }

    /// Takes `from..to` out; says how many were in it.
    pub fn remove(&mut self, from: u64, to: u64) -> u64 {
        if from >= to {
            return 0;
        }
        let mut removed = 0;
        while let Some((at, its_end)) = self.ranges.range_mut(..to).next_back()
            && *its_end > from
        {
            let (start, end) = (*at, *its_end);
            removed += end.min(to) - start.max(from);
            if start < from {
                *its_end = from;
            } else {
                self.ranges.remove(&start);
            }
            if end > to {
                self.ranges.insert(to, end);
            }
            if start <= from {
                break;
            }
        }
        self.len -= removed;
        removed
    }

    /// The parts of it within `from..to`, in order.
    #[must_use]
    pub fn within(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        if from >= to {
            return Vec::new();
        }
        let mut parts: Vec<(u64, u64)> = self
            .ranges
            .range(..to)
            .rev()
            .take_while(|(_, end)| **end > from)
            .map(|(start, end)| ((*start).max(from), (*end).min(to)))
            .collect();
        parts.reverse();
        parts
    }

    /// What of `from..to` is not in it, in order.
    #[must_use]
    pub fn gaps(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = from;
        for (start, end) in self.within(from, to) {
            if start > at {
                gaps.push((at, start));
            }
            at = end;
        }
        if at < to {
            gaps.push((at, to));
        }
        gaps
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.ranges.clear();
        self.len = 0;
    }
}

impl FromIterator<(u64, u64)> for RangeSet {
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(ranges: I) -> Self {
        let mut set = Self::default();
        for (from, to) in ranges {
            set.insert(from, to);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn it_is_the_set_of_its_offsets(steps in proptest::collection::vec((any::<bool>(), 0u64..60, 0u64..12), 0..60), probe in (0u64..60, 0u64..20)) {
            let mut set = RangeSet::default();
            let mut model = BTreeSet::new();
            for (add, from, length) in steps {
                let to = from + length;
                let before = model.len() as u64;
                if add {
                    model.extend(from..to);
                    prop_assert_eq!(set.insert(from, to), model.len() as u64 - before);
                } else {
                    model.retain(|at| !(from..to).contains(at));
                    prop_assert_eq!(set.remove(from, to), before - model.len() as u64);
                }
                prop_assert_eq!(set.len(), model.len() as u64);
                let flat: Vec<u64> = set.iter().flat_map(|(from, to)| from..to).collect();
                prop_assert_eq!(&flat, &model.iter().copied().collect::<Vec<_>>());
                let mut last = None;
                for (from, to) in set.iter() {
                    prop_assert!(from < to);
                    prop_assert!(last.is_none_or(|last| last < from), "ranges touch");
                    last = Some(to);
                }
            }
            let (from, length) = probe;
            let to = from + length;
            prop_assert_eq!(set.meets(from, to), model.range(from..to).next().is_some());
            let within: Vec<u64> = set.within(from, to).into_iter().flat_map(|(a, b)| a..b).collect();
            prop_assert_eq!(within, model.range(from..to).copied().collect::<Vec<_>>());
            let gaps: Vec<u64> = set.gaps(from, to).into_iter().flat_map(|(a, b)| a..b).collect();
            prop_assert_eq!(gaps, (from..to).filter(|at| !model.contains(at)).collect::<Vec<_>>());
        }
    }
}

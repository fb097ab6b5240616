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
        from < to && (self.contains(from) || self.ranges.range(from..to).next().is_some())
    }

    /// Adds `from..to`; says how many were new.
    pub fn insert(&mut self, from: u64, to: u64) -> u64 {
        if from >= to {
            return 0;
        }
        let (mut start, mut end) = (from, to);
        let mut had = 0;
        if let Some((before, before_end)) = self.ranges.range(..from).next_back()
            && *before_end >= from
        {
            if *before_end >= to {
                return 0;
            }
            start = *before;
        }
        while let Some((next, next_end)) = self.ranges.range(start..=end).next() {
            let (next, next_end) = (*next, *next_end);
            had += next_end - next;
            end = end.max(next_end);
            self.ranges.remove(&next);
        }
        self.ranges.insert(start, end);
        let new = (end - start) - had;
        self.len += new;
        new
    }

    /// Takes `from..to` out; says how many were in it.
    pub fn remove(&mut self, from: u64, to: u64) -> u64 {
        if from >= to {
            return 0;
        }
        let mut removed = 0;
        if let Some((before, end)) = self.ranges.range(..from).next_back() {
            let (before, end) = (*before, *end);
            if end > from {
                self.ranges.insert(before, from);
                removed += end.min(to) - from;
                if end > to {
                    self.ranges.insert(to, end);
                }
            }
        }
        while let Some((next, end)) = self.ranges.range(from..to).next() {
            let (next, end) = (*next, *end);
            self.ranges.remove(&next);
            removed += end.min(to) - next;
            if end > to {
                self.ranges.insert(to, end);
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
        let before = self
            .ranges
            .range(..from)
            .next_back()
            .filter(|(_, end)| **end > from);
        before
            .into_iter()
            .chain(self.ranges.range(from..to))
            .map(|(start, end)| ((*start).max(from), (*end).min(to)))
            .collect()
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

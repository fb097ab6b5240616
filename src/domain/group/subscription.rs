//! A subscription: how one group consumes one topic. Named by the pair, durable, the only ground for
//! delivery; made by the first join or by an administrator, changed only by an administrator.

use serde::{Deserialize, Serialize};

use super::rejection::GroupRejection;
use crate::domain::filter::Filter;
use crate::domain::id::{Offset, TopicId};
use crate::domain::time::WallMs;

/// Steps of a listed backoff at most.
pub const BACKOFF_STEPS_MAX: usize = 64;
/// The longest time a lease, a backoff or a delay may be: 30 days in milliseconds.
pub const SPAN_MS_MAX: u64 = 30 * 24 * 60 * 60 * 1000;

/// Who gets which records.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum Mode {
    /// A partition belongs to one member, in order, through retries.
    Exclusive,
    /// Every record goes to any one member; no order.
    #[default]
    Shared,
    /// As shared, but a key's next record is leased only when its previous one is settled.
    KeyOrdered,
    /// Every member gets every record; a member with a name of its own keeps its place.
    Broadcast,
}

impl Mode {
    /// Its name, as printed and as the command line takes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
            Self::KeyOrdered => "key-ordered",
            Self::Broadcast => "broadcast",
        }
    }
}

/// Where a subscription begins when it is made, and where a reset goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Start {
    /// The first record there is.
    #[default]
    Earliest,
    /// Behind the last record there is.
    Latest,
    /// The first record stored at or after this time.
    Time(WallMs),
    /// This offset in every partition, as far as it exists.
    Offset(Offset),
}

/// How long a nacked record waits before its next delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backoff {
    /// `first_ms`, then doubled each time, at most `max_ms`.
    Exponential {
        /// After the first attempt.
        first_ms: u64,
        /// At most.
        max_ms: u64,
    },
    /// `step_ms` more each time, at most `max_ms`.
    Linear {
        /// After the first attempt, and added after each.
        step_ms: u64,
        /// At most.
        max_ms: u64,
    },
    /// These, in order; the last for all that follow. 1 to 64.
    Listed(Vec<u64>),
}

impl Default for Backoff {
    /// 1 s, doubled up to 5 minutes.
    fn default() -> Self {
        Self::Exponential {
            first_ms: 1000,
            max_ms: 300_000,
        }
    }
}

impl Backoff {
    /// What follows attempt `attempt` (counted from 1), without jitter.
    #[must_use]
    pub fn after(&self, attempt: u16) -> u64 {
        let nth = u32::from(attempt.max(1) - 1);
        match self {
            Self::Exponential { first_ms, max_ms } => first_ms
                .saturating_mul(1u64.checked_shl(nth).unwrap_or(u64::MAX))
                .min(*max_ms),
            Self::Linear { step_ms, max_ms } => {
                step_ms.saturating_mul(u64::from(nth) + 1).min(*max_ms)
            }
            Self::Listed(steps) => {
                let at = usize::try_from(nth).unwrap_or(usize::MAX);
                steps.get(at).or(steps.last()).copied().unwrap_or(0)
            }
        }
    }
}

/// What an exclusive partition does with a record that cannot be consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Poison {
    /// It is tried for ever and holds what is behind it: order goes before progress.
    #[default]
    Block,
    /// It is tried in its place up to the limit, then dead-lettered, and the next follows.
    DeadLetter,
}

/// What happens to records that are not consumed at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// How long a record waits.
    pub backoff: Backoff,
    /// A random part of the wait is added or taken off, at most this many percent of it. 0 to 100.
    pub jitter_percent: u8,
    /// Deliveries of one record at most, the first counted; then it is dead-lettered. 1 to 10 000.
    pub attempts_max: u16,
    /// In exclusive mode.
    pub poison: Poison,
    /// The topic dead letters go to; by default one is made for the group.
    pub dead_letter_topic: Option<String>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            backoff: Backoff::default(),
            jitter_percent: 10,
            attempts_max: 16,
            poison: Poison::Block,
            dead_letter_topic: None,
        }
    }
}

/// A subscription as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriptionSpec {
    /// The topic.
    pub topic: TopicId,
    /// Who gets what.
    pub mode: Mode,
    /// Which records are wanted, in the filter language; all where it is empty.
    pub filter: String,
    /// Where it begins.
    pub start: Start,
    /// What happens to records that are not consumed at once.
    pub retry: RetryPolicy,
    /// How long a member has a record before it is given to another. 100 ms to 30 days.
    pub lease_ms: u64,
    /// A place the format keeps: written as false, read as anything.
    pub reserved: bool,
}

impl SubscriptionSpec {
    /// A shared subscription of everything, with a lease of 30 s.
    #[must_use]
    pub fn new(topic: TopicId, mode: Mode) -> Self {
        Self {
            topic,
            mode,
            filter: String::new(),
            start: Start::Earliest,
            retry: RetryPolicy::default(),
            lease_ms: 30_000,
            reserved: false,
        }
    }

    /// Whether it may be.
    ///
    /// # Errors
    /// [`GroupRejection::InvalidFilter`], naming the place where the filter stops being one;
    /// [`GroupRejection::InvalidSubscription`], naming the setting and its bounds.
    pub fn check(&self) -> Result<(), GroupRejection> {
        let no = |why: String| Err(GroupRejection::InvalidSubscription(why));
        if !self.filter.is_empty()
            && let Err(error) = Filter::parse(&self.filter)
        {
            return Err(GroupRejection::InvalidFilter {
                position: u32::try_from(error.position).unwrap_or(u32::MAX),
                why: error.message,
            });
        }
        if !(100..=SPAN_MS_MAX).contains(&self.lease_ms) {
            return no(format!(
                "a lease is 100 ms to 30 days, not {} ms",
                self.lease_ms
            ));
        }
        if !(1..=10_000).contains(&self.retry.attempts_max) {
            return no("a record is delivered 1 to 10000 times at most".into());
        }
        if self.retry.jitter_percent > 100 {
            return no("jitter is 0 to 100 percent".into());
        }
        let spans: &[u64] = match &self.retry.backoff {
            Backoff::Exponential { first_ms, max_ms } => &[*first_ms, *max_ms],
            Backoff::Linear { step_ms, max_ms } => &[*step_ms, *max_ms],
            Backoff::Listed(steps) => {
                if steps.is_empty() || steps.len() > BACKOFF_STEPS_MAX {
                    return no(format!(
                        "a listed backoff has 1 to {BACKOFF_STEPS_MAX} steps"
                    ));
                }
                steps
            }
        };
        if spans.iter().any(|span| *span > SPAN_MS_MAX) {
            return no("a backoff is at most 30 days".into());
        }
        if let Some(topic) = &self.retry.dead_letter_topic
            && crate::domain::topics::check_name(topic).is_err()
        {
            return no("the dead-letter topic's name is none a topic may have".into());
        }
        Ok(())
    }

    /// What a join that names `other` asks for differently: mode and filter are part of what a member
    /// relies on, the rest is the subscription's own business.
    #[must_use]
    pub fn differs(&self, other: &Self) -> Option<String> {
        if self.mode != other.mode {
            return Some(format!(
                "its mode is {}, not {}",
                self.mode.name(),
                other.mode.name()
            ));
        }
        (self.filter != other.filter)
            .then(|| format!("its filter is '{}', not '{}'", self.filter, other.filter))
    }
}

/// What shall be different about a subscription; what is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SubscriptionChange {
    /// Another mode: leases are given back, progress stays. What was refused in a mode that does not look at
    /// keys comes again outside the order of its key.
    pub mode: Option<Mode>,
    /// Another filter, for what has not been looked at yet.
    pub filter: Option<String>,
    /// Another policy.
    pub retry: Option<RetryPolicy>,
    /// Another lease, for what is leased from now on.
    pub lease_ms: Option<u64>,
}

impl SubscriptionChange {
    /// The subscription with the change.
    #[must_use]
    pub fn apply(self, spec: &SubscriptionSpec) -> SubscriptionSpec {
        SubscriptionSpec {
            topic: spec.topic,
            mode: self.mode.unwrap_or(spec.mode),
            filter: self.filter.unwrap_or_else(|| spec.filter.clone()),
            start: spec.start,
            retry: self.retry.unwrap_or_else(|| spec.retry.clone()),
            lease_ms: self.lease_ms.unwrap_or(spec.lease_ms),
            reserved: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoffs_grow_as_they_say_and_stop_at_their_bound() {
        let exponential = Backoff::Exponential {
            first_ms: 100,
            max_ms: 1000,
        };
        let waits: Vec<u64> = (1..=6).map(|n| exponential.after(n)).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(exponential.after(u16::MAX), 1000);
        let linear = Backoff::Linear {
            step_ms: 300,
            max_ms: 1000,
        };
        let waits: Vec<u64> = (1..=5).map(|n| linear.after(n)).collect();
        assert_eq!(waits, [300, 600, 900, 1000, 1000]);
        let listed = Backoff::Listed(vec![10, 30]);
        let waits: Vec<u64> = (1..=4).map(|n| listed.after(n)).collect();
        assert_eq!(waits, [10, 30, 30, 30]);
    }

    #[test]
    fn settings_out_of_their_bounds_are_named() {
        let good = SubscriptionSpec::new(TopicId(1), Mode::Shared);
        assert_eq!(good.check(), Ok(()));
        let bad = |change: fn(&mut SubscriptionSpec)| {
            let mut spec = good.clone();
            change(&mut spec);
            assert!(spec.check().is_err(), "{spec:?}");
        };
        bad(|spec| spec.lease_ms = 99);
        bad(|spec| spec.lease_ms = SPAN_MS_MAX + 1);
        bad(|spec| spec.retry.attempts_max = 0);
        bad(|spec| spec.retry.jitter_percent = 101);
        bad(|spec| spec.retry.backoff = Backoff::Listed(vec![]));
        bad(|spec| spec.retry.backoff = Backoff::Listed(vec![1; 65]));
        bad(|spec| spec.retry.dead_letter_topic = Some("no/such".into()));
        let unfinished = SubscriptionSpec {
            filter: "amount > ".into(),
            ..good.clone()
        };
        let Err(GroupRejection::InvalidFilter { position, .. }) = unfinished.check() else {
            panic!("{unfinished:?}");
        };
        assert_eq!(position, 10);
        bad(|spec| spec.filter = "x".repeat(crate::domain::filter::FILTER_BYTES_MAX + 1));
    }
}

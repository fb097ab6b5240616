//! Groups and subscriptions as JSON: what a flag sets is written as the flag takes it.
//!
//! A subscription has `topic`, `topic_id`, `mode` (as `--mode`), `filter`, `start` (as `--from`), `lease_ms`, and
//! `retry`: `backoff` (as `--retry`), `jitter_percent`, `attempts_max`, `poison` (as `--poison`),
//! `dead_letter_topic`. A group has `group`, its name, `subscriptions`, `members` and `places`. What was removed
//! has `group`, `topic` where it was a subscription, and `removed`.

use serde::Serialize;

use super::retry::argument;
use crate::client::{GroupState, MemberInfo, PlaceInfo, Poison, RetryPolicy, Subscription};
use crate::wire::group::At;

#[derive(Serialize)]
pub(super) struct SubscriptionLine<'a> {
    topic: &'a str,
    topic_id: u64,
    mode: &'static str,
    filter: &'a str,
    start: String,
    lease_ms: u64,
    retry: RetryLine,
}

#[derive(Serialize)]
struct RetryLine {
    backoff: String,
    jitter_percent: u8,
    attempts_max: u16,
    poison: &'static str,
    dead_letter_topic: Option<String>,
}

impl<'a> SubscriptionLine<'a> {
    pub(super) fn new(subscription: &'a Subscription) -> Self {
        Self {
            topic: &subscription.topic,
            topic_id: subscription.topic_id.0,
            mode: subscription.mode.name(),
            filter: &subscription.filter,
            start: match subscription.start {
                At::Earliest => "earliest".to_owned(),
                At::Latest => "latest".to_owned(),
                At::Offset(offset) => format!("offset:{}", offset.0),
                At::Time(time) => format!("time:{}", time.0),
            },
            lease_ms: subscription.lease_ms,
            retry: RetryLine::new(subscription.retry.clone().unwrap_or_default()),
        }
    }
}

impl RetryLine {
    fn new(policy: RetryPolicy) -> Self {
        Self {
            backoff: argument(&policy.backoff),
            jitter_percent: policy.jitter_percent,
            attempts_max: policy.attempts_max,
            poison: match policy.poison {
                Poison::Block => "block",
                Poison::DeadLetter => "dead-letter",
            },
            dead_letter_topic: policy.dead_letter_topic,
        }
    }
}

#[derive(Serialize)]
pub(super) struct GroupLine<'a> {
    group: &'a str,
    subscriptions: Vec<SubscriptionLine<'a>>,
    members: &'a [MemberInfo],
    places: &'a [PlaceInfo],
}

impl<'a> GroupLine<'a> {
    pub(super) fn new(group: &'a str, state: &'a GroupState) -> Self {
        Self {
            group,
            subscriptions: state
                .subscriptions
                .iter()
                .map(SubscriptionLine::new)
                .collect(),
            members: &state.members,
            places: &state.places,
        }
    }
}

#[derive(Serialize)]
pub(super) struct Gone<'a> {
    group: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<&'a str>,
    removed: bool,
}

impl<'a> Gone<'a> {
    pub(super) fn group(group: &'a str) -> Self {
        Self {
            group,
            topic: None,
            removed: true,
        }
    }

    pub(super) fn subscription(group: &'a str, topic: &'a str) -> Self {
        Self {
            topic: Some(topic),
            ..Self::group(group)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Mode;
    use crate::domain::id::Offset;

    #[test]
    fn what_a_flag_sets_is_written_as_the_flag_takes_it() {
        let mut subscription = Subscription::new("fruit");
        subscription.mode = Mode::KeyOrdered;
        subscription.start = At::Offset(Offset(7));
        subscription.lease_ms = 30_000;
        assert_eq!(
            serde_json::to_string(&SubscriptionLine::new(&subscription)).unwrap(),
            r#"{"topic":"fruit","topic_id":0,"mode":"key-ordered","filter":"","start":"offset:7","lease_ms":30000,"retry":{"backoff":"exponential:1s..5m","jitter_percent":10,"attempts_max":16,"poison":"block","dead_letter_topic":null}}"#
        );
        assert_eq!(
            serde_json::to_string(&Gone::subscription("g", "t")).unwrap(),
            r#"{"group":"g","topic":"t","removed":true}"#
        );
    }
}

//! A subscription's retry policy as arguments: `--retry exponential:1s..5m`, `--attempts 5`.

use std::time::Duration;

use clap::ValueEnum;

use super::duration::parse_duration;
use super::output::counted;
use crate::client::{Backoff, Poison, RetryPolicy};
use crate::config::human::exact_span;

/// What happens to records that are not consumed at once.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Retry {
    /// How long a refused record waits: `exponential:1s..5m` (doubled up to the second), `linear:10s..5m`
    /// (so much more each time), or `1s,10s,1m` (one after the other, the last for all that follow).
    #[arg(long, value_name = "BACKOFF", value_parser = parse_backoff)]
    pub retry: Option<Backoff>,
    /// Deliveries of a record at most; then it is a dead letter. By default 16.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub attempts: Option<u16>,
    /// A random part of the wait is added or taken off, at most this many percent. By default 10.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub jitter: Option<u8>,
    /// What an exclusive partition does with a record that cannot be consumed.
    #[arg(long, value_enum)]
    pub poison: Option<PoisonName>,
    /// The topic dead letters go to. By default GROUP.dead-letters.
    #[arg(long, value_name = "TOPIC")]
    pub dead_letters: Option<String>,
}

/// `--poison`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PoisonName {
    /// It is tried for ever and holds up what is behind it.
    Block,
    /// It becomes a dead letter in its turn, and the next follows.
    DeadLetter,
}

impl Retry {
    /// Whether anything is asked for.
    #[must_use]
    pub fn is_any(&self) -> bool {
        let Self {
            retry,
            attempts,
            jitter,
            poison,
            dead_letters,
        } = self;
        retry.is_some()
            || attempts.is_some()
            || jitter.is_some()
            || poison.is_some()
            || dead_letters.is_some()
    }

    /// The policy with what is asked for.
    #[must_use]
    pub fn put_on(self, policy: RetryPolicy) -> RetryPolicy {
        RetryPolicy {
            backoff: self.retry.unwrap_or(policy.backoff),
            jitter_percent: self.jitter.unwrap_or(policy.jitter_percent),
            attempts_max: self.attempts.unwrap_or(policy.attempts_max),
            poison: match self.poison {
                None => policy.poison,
                Some(PoisonName::Block) => Poison::Block,
                Some(PoisonName::DeadLetter) => Poison::DeadLetter,
            },
            dead_letter_topic: self.dead_letters.or(policy.dead_letter_topic),
        }
    }
}

/// Reads a backoff.
///
/// # Errors
/// What to write instead.
pub fn parse_backoff(text: &str) -> Result<Backoff, String> {
    let (kind, spans) = text.split_once(':').unwrap_or(("", text));
    match kind {
        "exponential" => {
            let (first_ms, max_ms) = parse_range(spans)?;
            Ok(Backoff::Exponential { first_ms, max_ms })
        }
        "linear" => {
            let (step_ms, max_ms) = parse_range(spans)?;
            Ok(Backoff::Linear { step_ms, max_ms })
        }
        "" | "listed" => {
            let steps: Result<Vec<u64>, String> = spans.split(',').map(parse_ms).collect();
            Ok(Backoff::Listed(steps?))
        }
        _ => Err(format!(
            "{kind:?} is no backoff; write exponential:1s..5m, linear:10s..5m, or 1s,10s,1m"
        )),
    }
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (first, max) = text
        .split_once("..")
        .ok_or_else(|| format!("{text:?} has no end; write e.g. 1s..5m"))?;
    Ok((parse_ms(first)?, parse_ms(max)?))
}

fn parse_ms(text: &str) -> Result<u64, String> {
    let span: Duration = parse_duration(text)?;
    Ok(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}

/// A policy in words.
#[must_use]
pub fn words(policy: &RetryPolicy) -> String {
    let backoff = match &policy.backoff {
        Backoff::Exponential { first_ms, max_ms } => {
            format!("after {first_ms} ms, doubled up to {max_ms} ms")
        }
        Backoff::Linear { step_ms, max_ms } => {
            format!("after {step_ms} ms, so much more each time up to {max_ms} ms")
        }
        Backoff::Listed(steps) => {
            let steps: Vec<String> = steps.iter().map(|ms| format!("{ms} ms")).collect();
            format!("after {}", steps.join(", "))
        }
    };
    let attempts = counted(policy.attempts_max.into(), "attempt");
    format!("{attempts}, {backoff}")
}

/// A backoff as `--retry` takes it.
#[must_use]
pub fn argument(backoff: &Backoff) -> String {
    match backoff {
        Backoff::Exponential { first_ms, max_ms } => {
            format!(
                "exponential:{}..{}",
                exact_span(*first_ms),
                exact_span(*max_ms)
            )
        }
        Backoff::Linear { step_ms, max_ms } => {
            format!("linear:{}..{}", exact_span(*step_ms), exact_span(*max_ms))
        }
        Backoff::Listed(steps) => {
            let steps: Vec<String> = steps.iter().copied().map(exact_span).collect();
            steps.join(",")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoffs_are_written_in_three_ways() {
        let exponential = Backoff::Exponential {
            first_ms: 1000,
            max_ms: 300_000,
        };
        assert_eq!(parse_backoff("exponential:1s..5m"), Ok(exponential));
        let linear = Backoff::Linear {
            step_ms: 250,
            max_ms: 2000,
        };
        assert_eq!(parse_backoff("linear:250ms..2s"), Ok(linear));
        let listed = Backoff::Listed(vec![1000, 10_000, 60_000]);
        assert_eq!(parse_backoff("1s,10s,1m"), Ok(listed.clone()));
        assert_eq!(parse_backoff("listed:1s,10s,1m"), Ok(listed));
        for text in ["", "exponential:1s", "linear:..", "cubic:1s..2s", "1s,,2s"] {
            assert!(parse_backoff(text).is_err(), "{text}");
        }
        for text in ["exponential:1s..5m", "linear:250ms..2s", "1s,10s,1m"] {
            assert_eq!(argument(&parse_backoff(text).unwrap()), text);
        }
    }

    #[test]
    fn what_is_not_asked_for_stays() {
        assert!(!Retry::default().is_any());
        let asked = Retry {
            attempts: Some(3),
            poison: Some(PoisonName::DeadLetter),
            ..Retry::default()
        };
        assert!(asked.is_any());
        let before = RetryPolicy {
            jitter_percent: 7,
            dead_letter_topic: Some("dead".into()),
            ..RetryPolicy::default()
        };
        let wanted = RetryPolicy {
            attempts_max: 3,
            poison: Poison::DeadLetter,
            ..before.clone()
        };
        assert_eq!(asked.put_on(before), wanted);
    }
}

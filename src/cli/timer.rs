//! `waterwheel timer`: cancel, modify, get and list delayed records.
//!
//! With `--json`, one object a line: an answer has `state` (`pending`, `cancelled`, `rescheduled`,
//! `already-fired`, `not-found`), and `due_ms` or `offset` where there is one; a listed timer has
//! `partition`, `due_ms` and `timer`, its handle.

use std::time::Duration;

use clap::Subcommand;
use serde::Serialize;

use super::connect::Connect;
use super::duration::parse_duration;
use super::exit::{CliError, Outcome};
use super::hint::Asked;
use super::output::say;
use super::{print, print_json};
use crate::client::{Client, TimerHandle, TimerState, WallMs};

/// Cancel, modify, get and list delayed records.
///
/// A timer is named by its handle, which `produce --receipts` and `timer list` print. The answer is exact:
/// exit code 0 if what was asked holds (cancelled, moved, pending), 1 if it came too late or there is no
/// such timer.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    connect: Connect,
    /// Print JSON, one object a line.
    #[arg(long, global = true)]
    json: bool,
}

impl Arguments {
    /// The topic it asks about.
    pub(super) fn asked(&self) -> Option<Asked> {
        let Action::List { topic, .. } = &self.action else {
            return None;
        };
        Some(Asked {
            connect: self.connect.clone(),
            topic: topic.clone(),
            makes: false,
        })
    }
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Cancel a delayed record: unless it has fired, it never will.
    Cancel {
        /// Its handle.
        #[arg(value_name = "TIMER")]
        timer: TimerHandle,
    },
    /// Move a delayed record to another time, earlier or later.
    Modify {
        /// Its handle.
        #[arg(value_name = "TIMER")]
        timer: TimerHandle,
        #[command(flatten)]
        when: When,
    },
    /// Show how a delayed record stands.
    Get {
        /// Its handle.
        #[arg(value_name = "TIMER")]
        timer: TimerHandle,
    },
    /// List a topic's delayed records that wait.
    List {
        /// The topic.
        topic: String,
        /// Only those due at this time or later.
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        from: Option<WallMs>,
        /// Only those due before this time.
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        before: Option<WallMs>,
        /// Stop after so many.
        #[arg(long, value_name = "N")]
        max: Option<u64>,
    },
}

/// When a record is to be delivered.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(multiple = false)]
pub struct When {
    /// So long after the broker has taken it, e.g. 30s.
    #[arg(long, value_name = "SPAN", value_parser = parse_duration)]
    pub delay: Option<Duration>,
    /// At this time, as RFC 3339 or in Unix milliseconds.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub at: Option<WallMs>,
}

/// Reads a time: RFC 3339, or Unix milliseconds. A part of a millisecond counts as the whole one, so that
/// nothing is early.
///
/// # Errors
/// What to write instead.
pub fn parse_time(text: &str) -> Result<WallMs, String> {
    if let Ok(ms) = text.parse::<i64>() {
        return Ok(WallMs(ms));
    }
    let at: jiff::Timestamp = text.parse().map_err(|_| {
        format!("{text:?} is no time; write e.g. 2030-01-31T08:00:00Z, or Unix milliseconds")
    })?;
    let ms = at.as_millisecond();
    let part = at.subsec_nanosecond().rem_euclid(1_000_000) != 0;
    Ok(WallMs(if part && at.as_nanosecond() > 0 {
        ms + 1
    } else {
        ms
    }))
}

#[derive(Serialize)]
struct Answer {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    due_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
}

#[derive(Serialize)]
struct Listed {
    partition: u32,
    due_ms: i64,
    timer: String,
}

pub(super) async fn run(arguments: Arguments) -> Result<Outcome, CliError> {
    let client = arguments.connect.client().await?;
    let timers = client.timers();
    let json = arguments.json;
    match arguments.action {
        Action::Cancel { timer } => {
            let state = timers.cancel(&timer).await?;
            show(state, json)?;
            Ok(yes_if(state == TimerState::Cancelled))
        }
        Action::Modify { timer, when } => {
            let state = match (when.delay, when.at) {
                (Some(span), _) => timers.reschedule_after(&timer, span).await?,
                (None, Some(at)) => timers.reschedule_at(&timer, at).await?,
                (None, None) => {
                    return Err(CliError::Usage(
                        "say when: --delay SPAN from now, or --at TIME".to_owned(),
                    ));
                }
            };
            show(state, json)?;
            Ok(yes_if(matches!(state, TimerState::Rescheduled { .. })))
        }
        Action::Get { timer } => {
            let state = timers.get(&timer).await?;
            show(state, json)?;
            Ok(yes_if(state != TimerState::NotFound))
        }
        Action::List {
            topic,
            from,
            before,
            max,
        } => list(&client, &topic, (from, before), max, json).await,
    }
}

async fn list(
    client: &Client,
    topic: &str,
    (from, before): (Option<WallMs>, Option<WallMs>),
    max: Option<u64>,
    json: bool,
) -> Result<Outcome, CliError> {
    let mut list = client
        .timers()
        .list(topic)
        .due_from(from.unwrap_or(WallMs(i64::MIN)))
        .due_before(before.unwrap_or(WallMs(i64::MAX)))
        .page_size(1000);
    let most = max.unwrap_or(u64::MAX);
    let mut left = most;
    while left > 0 {
        let Some(page) = list.page().await? else {
            break;
        };
        for timer in page.timers {
            if left == 0 {
                break;
            }
            left -= 1;
            let listed = Listed {
                partition: timer.partition,
                due_ms: timer.due_ms,
                timer: timer.handle.to_string(),
            };
            if json {
                print_json(&listed)?;
            } else {
                print(format_args!(
                    "{}  partition {}  {}",
                    time_text(listed.due_ms),
                    listed.partition,
                    listed.timer
                ))?;
            }
        }
    }
    if left == most {
        say(format_args!(
            "no delayed records wait in {topic} for that time"
        ));
    }
    Ok(Outcome::Done)
}

fn yes_if(yes: bool) -> Outcome {
    if yes { Outcome::Done } else { Outcome::No }
}

fn show(state: TimerState, json: bool) -> Result<(), CliError> {
    let (name, due_ms, offset) = match state {
        TimerState::Cancelled => ("cancelled", None, None),
        TimerState::Rescheduled { due } => ("rescheduled", Some(due.0), None),
        TimerState::AlreadyFired { offset } => ("already-fired", None, Some(offset.0)),
        TimerState::Pending { due } => ("pending", Some(due.0), None),
        TimerState::NotFound => ("not-found", None, None),
    };
    if json {
        return print_json(&Answer {
            state: name,
            due_ms,
            offset,
        });
    }
    match (due_ms, offset) {
        (Some(due_ms), _) => print(format_args!("{name}, due {}", time_text(due_ms))),
        (None, Some(offset)) => print(format_args!("{name} at offset {offset}")),
        (None, None) => print(name),
    }
}

/// A time as RFC 3339 where the calendar reaches that far.
fn time_text(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| format!("{ms} ms"), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_taken_as_text_or_milliseconds_and_never_become_earlier() {
        assert_eq!(parse_time("1700000000123"), Ok(WallMs(1_700_000_000_123)));
        assert_eq!(parse_time("1970-01-01T00:00:01Z"), Ok(WallMs(1_000)));
        assert_eq!(parse_time("1970-01-01T00:00:00.0001Z"), Ok(WallMs(1)));
        let said = parse_time("tomorrow").unwrap_err();
        assert!(said.contains("2030-01-31"), "{said}");
    }
}

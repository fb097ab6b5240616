//! `waterwheel dead-letter`: what groups gave up: listed, brought back, cleared.
//!
//! With `--json`, one object a line. A listed letter has `topic`, `partition`, `offset` (where it is), `id`,
//! `time_ms`, `key` or `key_base64`, `value_bytes`, and `origin` with `group`, `reason`, `attempts`, `topic`,
//! `partition`, `lane`, `offset`. Bringing back and clearing print `topic`, `done`, `faulty`, and a line for
//! each letter that stays: `partition`, `offset`, `code`, `message`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Subcommand;
use serde::Serialize;

use super::connect::Connect;
use super::exit::{CliError, Outcome};
use super::hint::Asked;
use super::output::{counted, say};
use super::{print, print_json};
use crate::client::{Client, DeadLetter, DeadLetters, LetterOrigin, LettersDone, MessageId};

/// List, bring back and clear dead letters: records that a consumer group could not consume.
///
/// A letter is open until it is brought back or cleared, each of which happens once, however often it is
/// asked for. Exit code 1 where letters could not be brought back.
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
        let (Action::List { select }
        | Action::Redrive { select, .. }
        | Action::Purge { select, .. }) = &self.action;
        let topic = match &self.action {
            Action::Redrive { to: Some(to), .. } => Some(to),
            Action::List { .. } | Action::Redrive { .. } | Action::Purge { .. } => {
                select.topic.as_ref()
            }
        };
        Some(Asked {
            connect: self.connect.clone(),
            topic: topic?.clone(),
            makes: false,
        })
    }
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List open dead letters: where each comes from, why and after how many attempts.
    List {
        #[command(flatten)]
        select: Select,
    },
    /// Publish them again, under their message ids, where they come from.
    Redrive {
        #[command(flatten)]
        select: Select,
        /// To this topic instead.
        #[arg(long, value_name = "TOPIC")]
        to: Option<String>,
    },
    /// Clear them: they are not listed any more, and retention takes their records.
    Purge {
        #[command(flatten)]
        select: Select,
        /// All of the topic's, whatever put them there.
        #[arg(long, conflicts_with_all = ["group", "origin", "partition", "ids", "max"])]
        all: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Select {
    /// The dead-letter topic; by default those the dead letters of --group go to.
    topic: Option<String>,
    /// Only what this consumer group gave up.
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Only what comes from this topic.
    #[arg(long, value_name = "TOPIC")]
    origin: Option<String>,
    /// Only this partition of the dead-letter topic.
    #[arg(long, value_name = "P")]
    partition: Option<u32>,
    /// Only the message with this id; may be given more than once.
    #[arg(long = "id", value_name = "UUID", value_parser = parse_id)]
    ids: Vec<MessageId>,
    /// So many at most.
    #[arg(long, value_name = "N")]
    max: Option<u64>,
}

fn parse_id(text: &str) -> Result<MessageId, String> {
    let id = uuid::Uuid::parse_str(text)
        .map_err(|_| format!("{text:?} is no message id; it is printed by: dead-letter list"))?;
    Ok(MessageId(*id.as_bytes()))
}

impl Select {
    /// The dead-letter topics that are meant and there.
    async fn topics(&self, client: &Client) -> Result<Vec<String>, CliError> {
        if let Some(topic) = &self.topic {
            return Ok(vec![topic.clone()]);
        }
        let Some(group) = self.group.as_deref() else {
            return Err(CliError::Usage(
                "whose dead letters? write --group GROUP, or the name of a dead-letter topic"
                    .to_owned(),
            ));
        };
        let there = client.topics().await?;
        let mut topics = client.dead_letter_topics(group).await?;
        // One is made with the first letter.
        topics.retain(|topic| there.iter().any(|info| info.name == *topic));
        Ok(topics)
    }

    /// Whether it says which letters of a topic.
    fn is_narrow(&self) -> bool {
        self.group.is_some()
            || self.origin.is_some()
            || self.partition.is_some()
            || self.max.is_some()
            || !self.ids.is_empty()
    }

    fn letters(&self, client: &Client, topic: &str) -> DeadLetters {
        let mut letters = client.dead_letters(topic).ids(self.ids.iter().copied());
        if let Some(group) = &self.group {
            letters = letters.of_group(group);
        }
        if let Some(origin) = &self.origin {
            letters = letters.of_topic(origin);
        }
        if let Some(partition) = self.partition {
            letters = letters.partition(partition);
        }
        letters
    }
}

#[derive(Serialize)]
struct Printed<'a> {
    topic: &'a str,
    partition: u32,
    offset: u64,
    id: String,
    time_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    value_bytes: u64,
    origin: Option<&'a LetterOrigin>,
}

#[derive(Serialize)]
struct Summary<'a> {
    topic: &'a str,
    done: u64,
    faulty: u64,
}

pub(super) async fn run(arguments: Arguments) -> Result<Outcome, CliError> {
    let json = arguments.json;
    let (Action::List { select } | Action::Redrive { select, .. } | Action::Purge { select, .. }) =
        &arguments.action;
    // A topic that is no dead-letter topic would be cleared from end to end by a slip of the name.
    if let (Action::Purge { all: false, .. }, Some(topic)) = (&arguments.action, &select.topic)
        && !select.is_narrow()
    {
        return Err(CliError::Usage(format!(
            "that clears everything in {topic}; say which with --group, --origin, --partition, --id or --max, or --all"
        )));
    }
    let client = arguments.connect.client().await?;
    let mut left = select.max.unwrap_or(u64::MAX);
    let mut outcome = Outcome::Done;
    let topics = select.topics(&client).await?;
    let mut found = 0;
    for topic in &topics {
        let letters = select.letters(&client, topic).max(left);
        let (done, what) = match &arguments.action {
            Action::List { .. } => {
                let listed = list(letters, topic, json).await?;
                found += listed;
                left = left.saturating_sub(listed);
                continue;
            }
            Action::Redrive { to: None, .. } => (letters.redrive().await?, "brought back"),
            Action::Redrive { to: Some(to), .. } => (letters.redrive_to(to).await?, "brought back"),
            Action::Purge { .. } => (letters.purge().await?, "cleared"),
        };
        found += 1;
        if left != u64::MAX {
            left = left.saturating_sub(done.done);
        }
        if done.faulty > 0 {
            outcome = Outcome::No;
        }
        tell(topic, &done, what, json)?;
    }
    if found == 0 {
        match (&select.topic, &select.group) {
            (Some(topic), _) => say(format_args!("no open dead letters of that kind in {topic}")),
            (None, group) => say(format_args!(
                "no open dead letters of that kind of the group {}",
                group.as_deref().unwrap_or_default()
            )),
        }
    }
    Ok(outcome)
}

async fn list(mut letters: DeadLetters, topic: &str, json: bool) -> Result<u64, CliError> {
    let mut listed = 0;
    while let Some(page) = letters.page().await? {
        for letter in page {
            listed += 1;
            show(topic, &letter, json)?;
        }
    }
    Ok(listed)
}

fn show(topic: &str, letter: &DeadLetter, json: bool) -> Result<(), CliError> {
    let text = letter.key.as_deref().map(std::str::from_utf8);
    let key = text.and_then(Result::ok);
    if json {
        let bytes = letter.key.as_ref().filter(|_| key.is_none());
        return print_json(&Printed {
            topic,
            partition: letter.partition,
            offset: letter.offset,
            id: letter.id.to_string(),
            time_ms: letter.time_ms,
            key,
            key_base64: bytes.map(|bytes| BASE64.encode(bytes)),
            value_bytes: letter.value_bytes,
            origin: letter.origin.as_ref(),
        });
    }
    let when = jiff::Timestamp::from_millisecond(letter.time_ms)
        .map_or_else(|_| letter.time_ms.to_string(), |time| time.to_string());
    let origin = match &letter.origin {
        None => "not put there by a group".to_owned(),
        Some(origin) => format!(
            "from {}/{} offset {}, given up by {} after {}: {}",
            origin.topic,
            origin.partition,
            origin.offset,
            origin.group,
            counted(origin.attempts.into(), "attempt"),
            origin.reason
        ),
    };
    print(format_args!(
        "{topic}/{} offset {}: {}, {when}, {origin}",
        letter.partition, letter.offset, letter.id
    ))
}

fn tell(topic: &str, done: &LettersDone, what: &str, json: bool) -> Result<(), CliError> {
    if json {
        for fault in &done.faults {
            print_json(fault)?;
        }
        return print_json(&Summary {
            topic,
            done: done.done,
            faulty: done.faulty,
        });
    }
    for fault in &done.faults {
        print(format_args!(
            "{topic}/{} offset {} stays: {} ({})",
            fault.partition, fault.offset, fault.message, fault.code
        ))?;
    }
    print(format_args!("{topic}: {} {what}", done.done))
}

//! `waterwheel transaction`: list, describe, commit and roll back transactions.
//!
//! With `--json` a transaction is one object a line: `id`, `name`, `group`, `state`, `by`, `at_ms`,
//! `checked_back`, `checks`, `batches`, `participants` (an array of `topic`, `partition`, `records`; a
//! group's attachment has no topic).

use clap::Subcommand;
use serde::Serialize;

use super::connect::Connect;
use super::exit::{CliError, Outcome};
use super::output::{counted, say};
use super::table::Table;
use super::{print, print_json};
use crate::client::{AdminError, ParticipantInfo, TransactionId, TransactionInfo};

/// List, describe, commit and roll back transactions.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object per transaction.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List open transactions, and finished ones that time, check-back or a person decided.
    List,
    /// Show one transaction and what it touches.
    Describe {
        /// Its id, as `list` prints it.
        id: TransactionId,
    },
    /// Commit one, as a person's decision and marked as such. There is no way back.
    Commit {
        /// Its id, as `list` prints it.
        id: TransactionId,
    },
    /// Roll one back, as a person's decision and marked as such. There is no way back.
    Rollback {
        /// Its id, as `list` prints it.
        id: TransactionId,
    },
}

#[derive(Serialize)]
struct Shown<'a> {
    id: String,
    name: &'a str,
    group: &'a str,
    state: &'a str,
    by: Option<&'a str>,
    at_ms: i64,
    checked_back: bool,
    checks: u32,
    batches: u32,
    participants: Vec<Touched<'a>>,
}

#[derive(Serialize)]
struct Touched<'a> {
    topic: Option<&'a str>,
    partition: u32,
    records: u32,
}

pub(super) async fn run(arguments: Arguments) -> Result<Outcome, CliError> {
    let client = arguments.connect.client().await?;
    let json = arguments.json;
    match arguments.action {
        Action::List => {
            let mut after = None;
            let mut table =
                Table::new(&["id", "state", "by", "name", "group", "batches", "checks"]);
            loop {
                let page = client.transactions(after).await?;
                let Some(last) = page.last() else { break };
                after = Some(last.id);
                for one in &page {
                    if json {
                        print_json(&shown(one))?;
                    } else {
                        table.row(row(one));
                    }
                }
            }
            if after.is_none() {
                say("no open transactions, and none that a producer did not decide");
            }
            table.print()?;
        }
        Action::Describe { id } => {
            let found = client.describe_transaction(id).await?;
            if json {
                print_json(&shown(&found))?;
            } else {
                describe(&found)?;
            }
        }
        Action::Commit { id } => decide(&client, id, true, json).await?,
        Action::Rollback { id } => decide(&client, id, false, json).await?,
    }
    Ok(Outcome::Done)
}

async fn decide(
    client: &crate::client::Client,
    id: TransactionId,
    commit: bool,
    json: bool,
) -> Result<(), CliError> {
    client.decide_transaction(id, commit).await?;
    match client.describe_transaction(id).await {
        Ok(found) if json => print_json(&shown(&found)),
        Ok(found) => describe(&found),
        // Decided long ago by its producer, and the details forgotten since.
        Err(AdminError::Refused(_)) => print(format_args!("{id} is decided as asked")),
        Err(error) => Err(error.into()),
    }
}

fn row(one: &TransactionInfo) -> [String; 7] {
    [
        one.id.to_string(),
        one.state.clone(),
        one.by.clone().unwrap_or_default(),
        one.name.clone(),
        one.group.clone(),
        one.batches.to_string(),
        one.checks.to_string(),
    ]
}

fn describe(one: &TransactionInfo) -> Result<(), CliError> {
    let by = one
        .by
        .as_ref()
        .map(|by| format!(" by {by}"))
        .unwrap_or_default();
    print(format_args!("{} {}{by}", one.id, one.state))?;
    if !one.name.is_empty() {
        print(format_args!("transactional id {}", one.name))?;
    }
    if !one.group.is_empty() {
        print(format_args!("producer group {}", one.group))?;
    }
    if one.checked_back {
        print(format_args!(
            "asked back {}",
            counted(one.checks.into(), "time")
        ))?;
    }
    let mut table = Table::new(&["topic", "partition", "records"]);
    for participant in &one.participants {
        table.row([
            topic_of(participant).unwrap_or("(gone)").to_owned(),
            participant.partition.0.to_string(),
            participant.records.to_string(),
        ]);
    }
    table.print()
}

fn topic_of(participant: &ParticipantInfo) -> Option<&str> {
    participant.topic_name.as_deref()
}

fn shown(one: &TransactionInfo) -> Shown<'_> {
    Shown {
        id: one.id.to_string(),
        name: &one.name,
        group: &one.group,
        state: &one.state,
        by: one.by.as_deref(),
        at_ms: one.at.0,
        checked_back: one.checked_back,
        checks: one.checks,
        batches: one.batches,
        participants: one
            .participants
            .iter()
            .map(|participant| Touched {
                topic: topic_of(participant),
                partition: participant.partition.0,
                records: participant.records,
            })
            .collect(),
    }
}

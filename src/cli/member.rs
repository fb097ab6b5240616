//! `consume TOPIC --group G`: prints records as a member of a consumer group.
//!
//! A record counts as consumed once it was written (`--ack auto`), when a line on stdin says so
//! (`manual`: `ack`, `nack REASON` or `reject REASON`, one line per record in the order printed), or before
//! it is sent (`none`). It ends at `--max`, or without `--follow` when nothing has come for `--wait`.

use std::collections::VecDeque;
use std::io::{BufRead, stdin};
use std::time::Duration;

use clap::ValueEnum;

use super::consume::{Arguments, Printer};
use super::exit::{CliError, Outcome};
use super::output::{Output, say};
use crate::client::{AckMode, Client, Delivery, SettleError};

/// Records taken together.
const BATCH: usize = 512;

/// `--ack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ack {
    /// Once it was written: at least once.
    Auto,
    /// As stdin says, a line per record: ack, nack REASON or reject REASON.
    Manual,
    /// Before it is sent: at most once.
    None,
}

/// Consumes as a member of `group`.
///
/// # Errors
/// [`CliError`]: no broker, no such topic, another subscription, or stdout cannot be written.
pub(super) async fn run(
    arguments: &Arguments,
    group: &str,
    client: &Client,
) -> Result<Outcome, CliError> {
    // What is not said is what the subscription has, if there is one.
    let found = client.describe_group(group).await.ok().and_then(|group| {
        let mut subscriptions = group.state.subscriptions.into_iter();
        subscriptions.find(|subscription| subscription.topic == arguments.topic)
    });
    let (mode, filter) = found.map_or_else(Default::default, |found| (found.mode, found.filter));
    let builder = client
        .consumer(group)
        .topic(&arguments.topic)
        .from(arguments.from)
        .mode(arguments.mode.map_or(mode, Into::into))
        .filter(arguments.filter.as_ref().unwrap_or(&filter))
        .ack(match arguments.ack {
            Ack::None => AckMode::None,
            Ack::Auto | Ack::Manual => AckMode::Manual,
        });
    let mut consumer = builder.open().await?;
    let mut printer = Printer::new(Output::stdout(), arguments.format, arguments.max);
    let mut left = arguments.max.unwrap_or(u64::MAX);
    let mut undecided = VecDeque::new();
    while left > 0 {
        let max = usize::try_from(left).unwrap_or(BATCH).min(BATCH);
        let wait = match arguments.follow {
            true => Duration::from_secs(3600),
            false => arguments.wait,
        };
        let batch = consumer.next_batch(max, wait).await?;
        if batch.is_empty() && !arguments.follow {
            break;
        }
        left = left.saturating_sub(u64::try_from(batch.len()).unwrap_or(u64::MAX));
        for delivery in &batch {
            let _ = printer.take(delivery).await;
        }
        if printer.flush().await.is_break() {
            break;
        }
        match arguments.ack {
            Ack::None => {}
            Ack::Auto => told(consumer.ack_batch(&batch).await),
            Ack::Manual => {
                undecided.extend(batch);
                decide(&consumer, &mut undecided).await?;
            }
        }
    }
    consumer.close().await;
    printer.finish().await?;
    Ok(Outcome::Done)
}

/// One line of stdin settles one record, in the order printed; its end leaves the rest undecided.
async fn decide(
    consumer: &crate::client::Consumer,
    undecided: &mut VecDeque<Delivery>,
) -> Result<(), CliError> {
    while let Some(delivery) = undecided.pop_front() {
        let mut line = String::new();
        let read = stdin()
            .lock()
            .read_line(&mut line)
            .map_err(|error| CliError::Failed(format!("cannot read stdin: {error}")))?;
        if read == 0 {
            return Ok(());
        }
        let (verb, reason) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        told(match verb {
            "" | "ack" => consumer.ack(&delivery).await,
            "nack" => consumer.nack(&delivery, reason).await,
            "reject" => consumer.reject(&delivery, reason).await,
            other => {
                return Err(CliError::Usage(format!(
                    "{other:?} settles nothing; write ack, nack REASON or reject REASON"
                )));
            }
        });
    }
    Ok(())
}

fn told(settled: Result<(), SettleError>) {
    if let Err(error) = settled {
        say(format_args!("{error} [{}]", error.code()));
    }
}

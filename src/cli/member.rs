//! `consume TOPIC --group G`: prints records as a member of a consumer group.
//!
//! A record counts as consumed once it was written (`--ack auto`), when a line on stdin says so
//! (`manual`: `ack`, `nack REASON` or `reject REASON`, one line per record in the order printed), or before
//! it is sent (`none`). It ends at `--max`, at the end of stdin where that decides, at SIGINT or SIGTERM, or
//! without `--follow` when nothing has come for `--wait`. However it ends it leaves the group, so that what
//! it has not settled comes to others at once; what is left, and with whom, is said on stderr.

use std::collections::VecDeque;
use std::io::stdin;
use std::time::Duration;

use clap::ValueEnum;
use tokio::sync::mpsc;

use super::consume::{Arguments, Printer};
use super::exit::{CliError, Outcome};
use super::interrupt::Interrupt;
use super::output::{Output, counted, say};
use crate::client::{
    AckMode, Client, Consumer, Delivery, GroupState, Mode, PlaceInfo, SettleError,
};

/// Records taken together.
const BATCH: usize = 512;

/// Lines of stdin that may wait for the records they are about.
const LINES_MAX: usize = 1024;

/// How long a consumer that follows waits before it looks again.
const FOLLOW: Duration = Duration::from_secs(3600);

/// `--ack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ack {
    /// Once it was written: at least once.
    Auto,
    /// As stdin says, a line per record in the order printed: ack, nack REASON or reject REASON. Records
    /// are printed ahead of it. Where stdin ends the rest comes again.
    Manual,
    /// Before it is sent: at most once.
    None,
}

/// Why no more is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nothing came for `--wait`.
    Quiet,
    /// As many as were asked for.
    Enough,
    /// Nobody reads what is printed.
    Unread,
    /// Nobody settles what is printed.
    Undecided,
    Signal,
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
    let mut interrupt = Interrupt::listen()?;
    // What is not said is what the subscription has, if there is one.
    let found = client.describe_group(group).await.ok().and_then(|group| {
        let mut subscriptions = group.state.subscriptions.into_iter();
        subscriptions.find(|subscription| subscription.topic == arguments.topic)
    });
    if found.is_some() && arguments.from.is_some() {
        say(format_args!(
            "{group} has a subscription of {} and goes on where it is: --from is where a new one begins; to set it back: waterwheel group reset {group} --topic {} --to WHERE",
            arguments.topic, arguments.topic
        ));
    }
    let (mode, filter) = found.map_or_else(Default::default, |found| (found.mode, found.filter));
    let mode = arguments.mode.map_or(mode, Into::into);
    let builder = client
        .consumer(group)
        .topic(&arguments.topic)
        .from(arguments.start())
        .mode(mode)
        .filter(arguments.filter.as_ref().unwrap_or(&filter))
        .ack(match arguments.ack {
            Ack::None => AckMode::None,
            Ack::Auto | Ack::Manual => AckMode::Manual,
        });
    let consumer = tokio::select! {
        consumer = builder.open() => consumer?,
        () = interrupt.wait() => return Ok(Outcome::No),
    };
    let name = consumer.name().to_owned();
    let mut member = Member {
        consumer,
        printer: Printer::new(Output::stdout(), arguments.printed(), arguments.max),
        interrupt,
        lines: (arguments.ack == Ack::Manual).then(lines_of_stdin),
        undecided: VecDeque::new(),
    };
    let taken = member.take(arguments).await;
    let undecided = member.undecided.len();
    member.consumer.close().await;
    member.printer.finish().await?;
    let end = taken?;
    if undecided > 0 {
        let undecided = u64::try_from(undecided).unwrap_or(u64::MAX);
        say(format_args!(
            "{} not settled: what was printed last comes again, here or to others",
            counted(undecided, "record")
        ));
    }
    if end == End::Quiet
        && let Ok(group) = client.describe_group(group).await
        && let Some(left) = left(&group.state, &arguments.topic, mode, &name)
    {
        say(left);
    }
    Ok(match end {
        End::Signal if !arguments.follow => Outcome::No,
        End::Signal | End::Quiet | End::Enough | End::Unread | End::Undecided => Outcome::Done,
    })
}

struct Member {
    consumer: Consumer,
    printer: Printer,
    interrupt: Interrupt,
    /// What stdin says of the records, where it decides.
    lines: Option<mpsc::Receiver<std::io::Result<String>>>,
    undecided: VecDeque<Delivery>,
}

impl Member {
    /// Prints and settles until it ends.
    async fn take(&mut self, arguments: &Arguments) -> Result<End, CliError> {
        let mut left = arguments.max.unwrap_or(u64::MAX);
        let wait = match arguments.follow {
            true => FOLLOW,
            false => arguments.wait,
        };
        while left > 0 {
            let max = usize::try_from(left).unwrap_or(BATCH).min(BATCH);
            let batch = tokio::select! {
                biased;
                () = self.interrupt.wait() => return Ok(End::Signal),
                batch = self.consumer.next_batch(max, wait) => batch?,
            };
            if batch.is_empty() && !arguments.follow {
                return Ok(End::Quiet);
            }
            left = left.saturating_sub(u64::try_from(batch.len()).unwrap_or(u64::MAX));
            for delivery in &batch {
                let _ = self.printer.take(delivery).await;
            }
            if self.printer.flush().await.is_break() {
                return Ok(End::Unread);
            }
            match arguments.ack {
                Ack::None => {}
                Ack::Auto => told(self.consumer.ack_batch(&batch).await),
                Ack::Manual => {
                    self.undecided.extend(batch);
                    if let Some(end) = self.decide().await? {
                        return Ok(end);
                    }
                }
            }
        }
        Ok(End::Enough)
    }

    /// One line of stdin settles one record, in the order printed; its end leaves the rest undecided.
    async fn decide(&mut self) -> Result<Option<End>, CliError> {
        while let (Some(delivery), Some(lines)) = (self.undecided.front(), &mut self.lines) {
            let line = tokio::select! {
                biased;
                () = self.interrupt.wait() => return Ok(Some(End::Signal)),
                line = lines.recv() => line,
            };
            let Some(line) = line else {
                return Ok(Some(End::Undecided));
            };
            let line =
                line.map_err(|error| CliError::Failed(format!("cannot read stdin: {error}")))?;
            let (verb, reason) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            told(match verb {
                "" | "ack" => self.consumer.ack(delivery).await,
                "nack" => self.consumer.nack(delivery, reason).await,
                "reject" => self.consumer.reject(delivery, reason).await,
                other => {
                    return Err(CliError::Usage(format!(
                        "{other:?} settles nothing; write ack, nack REASON or reject REASON"
                    )));
                }
            });
            self.undecided.pop_front();
        }
        Ok(None)
    }
}

/// Reads stdin on a thread of its own, that is left behind where it waits when the command ends: whoever
/// types slowly keeps neither leases from being renewed nor a signal from being heard.
fn lines_of_stdin() -> mpsc::Receiver<std::io::Result<String>> {
    let (said, lines) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in stdin().lines() {
            if said.blocking_send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// What the group has not consumed of the topic, once this member has left; none where that is nothing.
fn left(group: &GroupState, topic: &str, mode: Mode, member: &str) -> Option<String> {
    let mine = |place: &&PlaceInfo| {
        place.topic == topic && (mode != Mode::Broadcast || place.member == member)
    };
    let sum =
        |count: fn(&PlaceInfo) -> u64| -> u64 { group.places.iter().filter(mine).map(count).sum() };
    let lag = sum(|place| place.lag);
    if lag == 0 {
        return None;
    }
    let parts: Vec<String> = [
        (sum(|place| place.leased), "with other members"),
        (sum(|place| place.retrying), "waiting for a retry"),
        (sum(|place| place.attached), "in an open transaction"),
        (sum(|place| place.held), "behind one of their key"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, how)| format!("{count} {how}"))
    .collect();
    let parts = match parts.as_slice() {
        [] => String::new(),
        parts => format!(": {}", parts.join(", ")),
    };
    Some(format!(
        "{} of {topic} not consumed yet{parts}",
        counted(lag, "record")
    ))
}

fn told(settled: Result<(), SettleError>) {
    if let Err(error) = settled {
        say(format_args!("{error} [{}]", error.code()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(topic: &str, member: &str, lag: u64, leased: u64) -> PlaceInfo {
        PlaceInfo {
            topic: topic.to_owned(),
            member: member.to_owned(),
            lag,
            leased,
            ..PlaceInfo::default()
        }
    }

    #[test]
    fn what_is_left_is_said_with_whom_it_is() {
        let mut group = GroupState {
            places: vec![
                place("t", "", 3, 1),
                place("t", "", 2, 0),
                place("u", "", 9, 9),
            ],
            ..GroupState::default()
        };
        group.places[1].retrying = 2;
        let said = left(&group, "t", Mode::Shared, "me").unwrap();
        assert_eq!(
            said,
            "5 records of t not consumed yet: 1 with other members, 2 waiting for a retry"
        );
        assert_eq!(left(&group, "v", Mode::Shared, "me"), None);
        group.places = vec![place("t", "me", 0, 0), place("t", "other", 7, 0)];
        assert_eq!(left(&group, "t", Mode::Broadcast, "me"), None);
    }
}

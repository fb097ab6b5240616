//! The command line: one file per subcommand, [`exit`] for how each ends.
//!
//! Results go to stdout, what is to be said about them to stderr. `--json` prints one object per line.

pub mod connect;
pub mod consume;
pub mod duration;
pub mod exit;
pub mod framing;
pub mod json;
pub mod output;
pub mod produce;

mod certs;
mod check;
mod dead_letter;
mod demo;
pub mod group;
mod hint;
mod interrupt;
mod line;
mod manual;
pub mod member;
mod notify;
pub mod retry;
mod scratch;
mod serve;
mod status;
mod subscription;
mod table;
pub mod timer;
mod topic;
mod transaction;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use serde::Serialize;

use connect::Connect;
use exit::{CliError, Outcome};
use hint::Asked;
use output::say;

/// Turns of the runtime in which a client's tasks close its connection: several times what they take.
const GOODBYE_TURNS: u32 = 128;

/// A durable message broker built of actors: one commit log, QUIC on the wire.
///
/// Exit codes: 0 done; 1 the answer is no (unacknowledged, damaged, a timer not found); 2 usage or
/// configuration; 3 no broker answers, or TLS; 4 the broker refused, its stable code on stderr.
#[derive(Debug, Parser)]
#[command(
    name = "waterwheel",
    version,
    after_help = "Client commands take --server ADDR, --ca FILE, --cert FILE, --key FILE, --server-name NAME and --patience SPAN, before the command or behind it."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Arguments),
    Topic(topic::Arguments),
    Transaction(transaction::Arguments),
    Timer(timer::Arguments),
    /// Send records read from a file or stdin.
    Produce {
        #[command(flatten)]
        arguments: produce::Arguments,
        #[command(flatten)]
        connect: Connect,
    },
    /// Read a topic and print its records.
    Consume {
        #[command(flatten)]
        arguments: consume::Arguments,
        #[command(flatten)]
        connect: Connect,
    },
    Group(group::Arguments),
    Subscription(group::SubscriptionArguments),
    DeadLetter(dead_letter::Arguments),
    Status(status::Arguments),
    Check(check::Arguments),
    Certs(certs::Arguments),
    Demo(demo::Arguments),
    Completions(manual::Completions),
    Man(manual::Man),
}

impl Command {
    /// Which topic it asks about, where it asks about one.
    fn asked(&self) -> Option<Asked> {
        let asked = |topic: &str, makes, connect: &Connect| Asked {
            connect: connect.clone(),
            topic: topic.to_owned(),
            makes,
        };
        match self {
            Self::Topic(arguments) => arguments.asked(),
            Self::Timer(arguments) => arguments.asked(),
            Self::Group(arguments) => arguments.asked(),
            Self::Subscription(arguments) => arguments.asked(),
            Self::DeadLetter(arguments) => arguments.asked(),
            Self::Produce { arguments, connect } => Some(asked(&arguments.topic, true, connect)),
            Self::Consume { arguments, connect } => Some(asked(&arguments.topic, true, connect)),
            Self::Serve(_)
            | Self::Transaction(_)
            | Self::Status(_)
            | Self::Check(_)
            | Self::Certs(_)
            | Self::Demo(_)
            | Self::Completions(_)
            | Self::Man(_) => None,
        }
    }
}

/// Up to this size freed memory stays with the process for the next use, and twice as much at the end of
/// each heap: more than what passes between socket and log in one go.
const MEMORY_KEPT_BYTES: usize = 4 << 20;

/// Keeps the system's allocator from giving buffers back to the kernel that are asked for again at once:
/// what a datagram or a batch lies in would be cleared, page by page, each time.
///
/// The GNU allocator does so by itself once it has seen a buffer of that size freed; others take no
/// notice.
pub fn keep_freed_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(
        MEMORY_KEPT_BYTES,
    )));
}

/// Runs the command line of this process and says how it went.
#[must_use]
pub fn run() -> ExitCode {
    keep_freed_memory();
    let command = arguments().command;
    let asked = command.asked();
    let outcome = match command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Topic(arguments) => on_a_runtime(asked, topic::run(arguments)),
        Command::Transaction(arguments) => on_a_runtime(asked, transaction::run(arguments)),
        Command::Timer(arguments) => on_a_runtime(asked, timer::run(arguments)),
        Command::Produce { arguments, connect } => {
            on_a_runtime(
                asked,
                async move { produce::run(arguments, &connect).await },
            )
        }
        Command::Consume { arguments, connect } => {
            on_a_runtime(
                asked,
                async move { consume::run(arguments, &connect).await },
            )
        }
        Command::Group(arguments) => on_a_runtime(asked, group::run(arguments)),
        Command::DeadLetter(arguments) => on_a_runtime(asked, dead_letter::run(arguments)),
        Command::Subscription(arguments) => on_a_runtime(asked, group::run_subscription(arguments)),
        Command::Status(arguments) => on_a_runtime(asked, status::run(arguments)),
        Command::Check(arguments) => check::run(&arguments),
        Command::Certs(arguments) => certs::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Completions(arguments) => manual::completions(&arguments),
        Command::Man(arguments) => manual::man(&arguments),
    };
    ExitCode::from(match outcome {
        Ok(outcome) => outcome.exit_code(),
        Err(error) => {
            say(format_args!("{} {error}", output::alarming("waterwheel:")));
            error.exit_code()
        }
    })
}

/// The command line of this process; ends it, as clap does, where that is help or makes no sense.
fn arguments() -> Arguments {
    match Arguments::try_parse_from(line::in_order(std::env::args_os())) {
        Ok(arguments) => arguments,
        Err(error) => {
            let meant = line::meant(&error, &Arguments::command());
            if !meant.is_empty() {
                say(format_args!("perhaps: {}\n", meant.join(", or ")));
            }
            error.exit()
        }
    }
}

/// Client commands need one thread and no actors.
fn on_a_runtime(
    asked: Option<Asked>,
    command: impl Future<Output = Result<Outcome, CliError>>,
) -> Result<Outcome, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|fault| CliError::Failed(format!("cannot start: {fault}")))?;
    runtime.block_on(async {
        let outcome = match command.await {
            Ok(outcome) => Ok(outcome),
            Err(error) => Err(hint::with_hint(error, asked).await),
        };
        // The client is gone by now; its tasks have yet to tell the broker, or the broker would keep
        // the connection until it times out.
        for _ in 0..GOODBYE_TURNS {
            tokio::task::yield_now().await;
        }
        outcome
    })
}

/// Prints a line on stdout. A closed pipe is nobody's loss.
fn print(line: impl std::fmt::Display) -> Result<(), CliError> {
    match writeln!(io::stdout().lock(), "{line}") {
        Err(fault) if fault.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::Failed(format!("cannot write to stdout: {fault}")))
        }
        _ => Ok(()),
    }
}

/// Prints an object as one line of JSON.
fn print_json(object: &impl Serialize) -> Result<(), CliError> {
    let line = serde_json::to_string(object)
        .map_err(|fault| CliError::Failed(format!("cannot write JSON: {fault}")))?;
    print(line)
}

//! The command line: one file per subcommand.
//!
//! Exit codes: 0 done; 1 the answer is no (something not acknowledged, damaged, not found); 2 usage or
//! configuration; 3 no broker reached, or TLS; 4 refused, with the stable code on stderr. Results go to
//! stdout, everything about them to stderr. `--json` prints one object per line.

mod failure;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A durable message broker built of actors: one commit log, QUIC on the wire.
#[derive(Debug, Parser)]
#[command(name = "waterwheel", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
}

/// Runs the command line of this process and says how it went.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Command::Serve(command) => serve::run(command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

//! `waterwheel serve`: a broker until a signal ends it.
//!
//! Prints `listening on ADDR` on stdout when it is ready; logs go to stderr (`RUST_LOG` chooses, by
//! default `info`). SIGTERM or SIGINT: nothing more is admitted, what is in flight is answered, views are
//! written, exit 0 within 5 s. A second signal ends it at once.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::exit::{CliError, Outcome};
use super::print;
use crate::broker::{Broker, StartError};
use crate::config::Config;

/// What a second signal ends the process with.
const HURRIED_EXIT: i32 = 130;

/// Run a broker.
///
/// Further settings, each as `--set NAME=VALUE`, as WATERWHEEL_<NAME> or as a line `NAME = VALUE` of the
/// --config file: arbiters, memory_bytes, admission_bytes, tail_cache_bytes, views_cache_bytes,
/// segment_bytes, flush_bytes_max, batch_bytes_max, connections_max, readers_per_connection_max,
/// producers_per_partition_max, producer_state_ms, timers_max, delay_ms_max, checkpoint_bytes, checkpoint_ms, retention_check_ms,
/// partition_mailbox, standing_mailbox.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The data directory.
    #[arg(
        long,
        value_name = "DIR",
        env = "WATERWHEEL_DATA",
        default_value = "waterwheel-data"
    )]
    data: PathBuf,
    /// Where to listen (UDP); port 0 takes a free one.
    #[arg(
        long,
        value_name = "ADDR",
        env = "WATERWHEEL_LISTEN",
        default_value = "127.0.0.1:7411"
    )]
    listen: SocketAddr,
    /// The server's certificate, PEM; by default a development one is made in DATA/tls.
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The certificate's private key, PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// A file of settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A setting; may be given more than once.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    settings: Vec<String>,
    /// How to log.
    #[arg(long, value_enum, default_value = "text")]
    log: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

impl Arguments {
    fn config(&self) -> Result<Config, CliError> {
        let usage = |error: crate::config::ConfigError| CliError::Usage(error.to_string());
        let mut config = Config::default();
        if let Some(path) = &self.config {
            config.read_file(path).map_err(usage)?;
        }
        config
            .read_environment(|name| std::env::var(name).ok())
            .map_err(usage)?;
        for setting in &self.settings {
            let (name, value) = setting
                .split_once('=')
                .ok_or_else(|| CliError::Usage(format!("--set {setting}: write NAME=VALUE")))?;
            config.set(name.trim(), value).map_err(usage)?;
        }
        config.data.clone_from(&self.data);
        config.listen = Some(self.listen);
        config.cert.clone_from(&self.cert);
        config.key.clone_from(&self.key);
        config.check().map_err(usage)?;
        Ok(config)
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<Outcome, CliError> {
    let config = arguments.config()?;
    log_to_stderr(arguments.log);
    let system = actix_rt::System::new();
    let outcome = system.block_on(serve(config));
    // Dropping it would wait, deaf to signals, for whatever still blocks: a recovery that was
    // interrupted, a disk that does not answer. The process ends anyway.
    std::mem::forget(system);
    outcome
}

async fn serve(config: Config) -> Result<Outcome, CliError> {
    let broken = |fault: io::Error| CliError::Failed(format!("cannot listen for signals: {fault}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(broken)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(broken)?;
    let broker = tokio::select! {
        started = Broker::start(config) => started.map_err(not_started)?,
        // Nothing is open yet that a kill would hurt.
        _ = terminate.recv() => return Ok(Outcome::Done),
        _ = interrupt.recv() => return Ok(Outcome::Done),
    };
    if let Some(address) = broker.local_addr() {
        print(format_args!("listening on {address}"))?;
        // Whoever does not want to hear it may have closed it.
        let _ = io::stdout().flush();
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(target: "waterwheel::broker", "stopping; a second signal ends it at once");
    tokio::select! {
        () = broker.stop() => Ok(Outcome::Done),
        _ = terminate.recv() => std::process::exit(HURRIED_EXIT),
        _ = interrupt.recv() => std::process::exit(HURRIED_EXIT),
    }
}

/// What keeps a broker from starting is the configuration's, unless it is the data's.
pub(super) fn not_started(error: StartError) -> CliError {
    let said = error.to_string();
    match error {
        StartError::Config(_)
        | StartError::Locked(_)
        | StartError::Net(_)
        | StartError::Io { .. } => CliError::Usage(said),
        StartError::Log(_)
        | StartError::Views(_)
        | StartError::NoSystem
        | StartError::Interrupted(_) => CliError::Failed(said),
    }
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    // Only fails where one is set already, which then stays.
    let _ = match format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn config(line: &[&str]) -> Result<Config, CliError> {
        let words = ["waterwheel", "serve"].iter().chain(line);
        let arguments = super::super::Arguments::try_parse_from(words).unwrap();
        let super::super::Command::Serve(serve) = arguments.command else {
            panic!("{arguments:?}");
        };
        serve.config()
    }

    #[test]
    fn settings_are_taken_by_name_and_refused_by_name() {
        let taken = config(&["--data", "d", "--set", "checkpoint_ms=1_000"]).unwrap();
        assert_eq!((taken.checkpoint_ms, taken.data), (1000, "d".into()));
        let unknown = config(&["--set", "checkpoint=1"]).unwrap_err();
        let unknown = unknown.to_string();
        assert!(unknown.contains("no setting checkpoint"), "{unknown}");
        let senseless = config(&["--set", "segment_bytes=1048576"]).unwrap_err();
        assert_eq!(senseless.exit_code(), 2);
        assert!(config(&["--set", "checkpoint_ms"]).is_err());
    }

    #[test]
    fn the_help_names_every_setting() {
        use clap::CommandFactory;
        let mut arguments = super::super::Arguments::command();
        let serve = arguments.find_subcommand_mut("serve").unwrap();
        let help = serve.render_long_help().to_string();
        for name in Config::NAMES {
            assert!(help.contains(name), "{name}");
        }
    }
}

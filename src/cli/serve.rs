//! `waterwheel serve`: a broker until a signal ends it.
//!
//! Prints `listening on ADDR` on stdout when it is ready; logs go to stderr (`RUST_LOG` chooses, by
//! default `info`). SIGTERM or SIGINT: nothing more is admitted, what is in flight is answered, views are
//! written, exit 0 within 5 s. A second signal ends it at once. SIGHUP reads the certificates anew. Under
//! systemd (`Type=notify`) the service is ready when the broker is.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::exit::{CliError, Outcome};
use super::notify::Manager;
use super::output::{in_colour, say};
use super::{print, print_json};
use crate::broker::{Broker, StartError};
use crate::config::{Config, ConfigError, LogFormat, Origin, Settings};
use crate::log::LogError;

/// What a second signal ends the process with.
const HURRIED_EXIT: i32 = 130;

/// Run a broker.
#[derive(Debug, clap::Args)]
#[command(after_long_help = settings_help())]
pub(super) struct Arguments {
    /// A TOML file of settings.
    #[arg(long, value_name = "FILE", env = "WATERWHEEL_CONFIG")]
    config: Option<PathBuf>,
    /// The data directory [default: waterwheel-data]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Where to listen (UDP); port 0 takes a free one [default: 127.0.0.1:7411]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// The server's certificate, PEM; by default a development one is made in DATA/tls
    #[arg(long, value_name = "FILE")]
    cert: Option<String>,
    /// The certificate's private key, PEM
    #[arg(long, value_name = "FILE")]
    key: Option<String>,
    /// The authority that vouches for clients, PEM: whoever shows no certificate of its is refused
    #[arg(long, value_name = "FILE")]
    client_ca: Option<String>,
    /// Listen on an address that is not loopback without --client-ca: whoever reaches it is let in
    #[arg(long)]
    insecure_open: bool,
    /// How to log to stderr: text or json [default: text]
    #[arg(long, alias = "log", value_name = "FORMAT")]
    log_format: Option<String>,
    /// Any setting; may be given more than once
    #[arg(long = "set", value_name = "NAME=VALUE")]
    settings: Vec<String>,
    /// Print the settings in force and where each was written, as a TOML file, and start nothing
    #[arg(long)]
    print_config: bool,
    /// With --print-config: one JSON object per setting
    #[arg(long, requires = "print_config")]
    json: bool,
}

/// What `serve --help` says of the settings.
fn settings_help() -> String {
    let mut help = "Settings, each as --set NAME=VALUE, as WATERWHEEL_<NAME> in the environment, or as a line \
                    NAME = VALUE of the --config file; flags win over the environment, and that over the \
                    file. Sizes and spans may carry a unit: 64MiB, 5s.\n"
        .to_owned();
    for knob in Settings::knobs() {
        let (default, bounds) = knob.default_and_bounds();
        let doc = knob.doc();
        help.push_str(&format!(
            "\n  {}\n          {doc} [default: {default}; {bounds}]",
            knob.name
        ));
    }
    help
}

impl Arguments {
    /// Gathers the settings; answers also what is to be said about them.
    fn settings(
        &self,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(Settings, Vec<String>), CliError> {
        let usage = |error: ConfigError| CliError::Usage(error.to_string());
        let mut settings = Settings::default();
        if let Some(path) = &self.config {
            settings.read_file(path).map_err(usage)?;
        }
        let told = settings.read_environment(environment).map_err(usage)?;
        for setting in &self.settings {
            let (name, value) = setting
                .split_once('=')
                .ok_or_else(|| CliError::Usage(format!("--set {setting}: write NAME=VALUE")))?;
            let name = name.trim();
            let origin = Origin::Flag(format!("--set {name}"));
            settings.set(name, value, origin).map_err(usage)?;
        }
        let flags = [
            ("data", "--data", self.data.as_deref()),
            ("listen", "--listen", self.listen.as_deref()),
            ("cert", "--cert", self.cert.as_deref()),
            ("key", "--key", self.key.as_deref()),
            ("client_ca", "--client-ca", self.client_ca.as_deref()),
            (
                "insecure_open",
                "--insecure-open",
                self.insecure_open.then_some("true"),
            ),
            ("log_format", "--log-format", self.log_format.as_deref()),
        ];
        for (name, flag, value) in flags {
            if let Some(value) = value {
                let origin = Origin::Flag(flag.to_owned());
                settings.set(name, value, origin).map_err(usage)?;
            }
        }
        settings.config.check().map_err(usage)?;
        Ok((settings, told))
    }
}

#[derive(Serialize)]
struct SettingLine {
    name: &'static str,
    value: Option<String>,
    origin: String,
}

fn print_config(settings: &Settings, json: bool) -> Result<Outcome, CliError> {
    for line in settings.in_force() {
        match json {
            true => print_json(&SettingLine {
                name: line.knob.name,
                origin: line.origin.to_string(),
                value: line.value,
            })?,
            false => print(line.toml())?,
        }
    }
    Ok(Outcome::Done)
}

/// What is set in the environment and is text.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

pub(super) fn run(arguments: &Arguments) -> Result<Outcome, CliError> {
    let (settings, told) = arguments.settings(environment())?;
    if arguments.print_config {
        told.iter().for_each(say);
        return print_config(&settings, arguments.json);
    }
    log_to_stderr(settings.log_format);
    for told in told {
        tracing::warn!(target: "waterwheel::config", "{told}");
    }
    let config = settings.config;
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
    let mut hangup = signal(SignalKind::hangup()).map_err(broken)?;
    let manager = Manager::of_environment();
    let data = config.data.display().to_string();
    tracing::info!(target: "waterwheel::broker", data, version = env!("CARGO_PKG_VERSION"), "starting");
    let broker = tokio::select! {
        started = Broker::start(config) => started.map_err(not_started)?,
        // Nothing is open yet that a kill would hurt.
        _ = terminate.recv() => return Ok(Outcome::Done),
        _ = interrupt.recv() => return Ok(Outcome::Done),
    };
    if let Some(address) = broker.local_addr() {
        let listening = format!("listening on {address}");
        print(&listening)?;
        // Whoever does not want to hear it may have closed it.
        let _ = io::stdout().flush();
        tracing::info!(target: "waterwheel::broker", %address, cluster = %broker.shared().cluster, "serving");
        manager.ready(&listening);
    }
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            // What came of it is in the log.
            _ = hangup.recv() => drop(broker.reload_certificates()),
        }
    }
    tracing::info!(target: "waterwheel::broker", "stopping; a second signal ends it at once");
    manager.stopping();
    tokio::select! {
        () = broker.stop() => {
            tracing::info!(target: "waterwheel::broker", "stopped");
            Ok(Outcome::Done)
        }
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
        | StartError::Io { .. }
        | StartError::Log(LogError::Foreign { .. } | LogError::Options { .. }) => {
            CliError::Usage(said)
        }
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
        .with_ansi(in_colour());
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

    fn settings(line: &[&str], environment: &[(&str, &str)]) -> Result<Settings, CliError> {
        let words = ["waterwheel", "serve"].iter().chain(line);
        let arguments = super::super::Arguments::try_parse_from(words).unwrap();
        let super::super::Command::Serve(serve) = arguments.command else {
            panic!("{arguments:?}");
        };
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        serve
            .settings(environment.iter().map(owned))
            .map(|(settings, _)| settings)
    }

    #[test]
    fn settings_are_taken_by_name_and_refused_by_name() {
        let environment = [
            ("WATERWHEEL_DATA", "e"),
            ("WATERWHEEL_LISTEN", "127.0.0.1:1"),
        ];
        let line = ["--data", "d", "--set", "checkpoint_ms=1_000"];
        let taken = settings(&line, &environment).unwrap().config;
        assert_eq!((taken.checkpoint_ms, taken.data), (1000, "d".into()));
        assert_eq!(taken.listen, Some(([127, 0, 0, 1], 1).into()));
        let unknown = settings(&["--set", "checkpoint=1"], &[]).unwrap_err();
        let unknown = unknown.to_string();
        assert!(
            unknown.starts_with("--set checkpoint: there is no setting checkpoint"),
            "{unknown}"
        );
        let senseless = settings(&["--set", "segment_bytes=1048576"], &[]).unwrap_err();
        assert_eq!(senseless.exit_code(), 2);
        assert!(settings(&["--set", "checkpoint_ms"], &[]).is_err());
        let open = settings(&["--listen", "0.0.0.0:0"], &[]).unwrap_err();
        assert!(open.to_string().contains("--insecure-open"), "{open}");
        settings(&["--listen", "0.0.0.0:0", "--insecure-open"], &[]).unwrap();
    }

    #[test]
    fn the_help_names_every_setting() {
        use clap::CommandFactory;
        let mut arguments = super::super::Arguments::command();
        let serve = arguments.find_subcommand_mut("serve").unwrap();
        let help = serve.render_long_help().to_string();
        for knob in Settings::knobs() {
            assert!(help.contains(knob.name), "{}", knob.name);
        }
    }
}

//! The broker under test: the `waterwheel` binary, in a process of its own, on a directory of its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use waterwheel::client::Connect;

use super::process::{Process, READY_WITHIN, Usage};
use super::{Bench, Outcome};

/// A clean stop takes no longer.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// The broker's budget, in every scenario the same.
pub(crate) const MEMORY_BYTES: u64 = 512_000_000;

/// Nothing written for this long: it has settled.
const QUIET: Duration = Duration::from_secs(1);

/// A running broker.
#[derive(Debug)]
pub(crate) struct Broker {
    process: Process,
    home: Home,
}

/// What outlives a broker's process: where its data is, and where it listened.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    /// The data directory.
    pub(crate) data: PathBuf,
    /// The address its clients know.
    pub(crate) address: SocketAddr,
    /// How long it may take to be ready.
    pub(crate) ready_within: Duration,
    /// How to reach it where it lives in this process.
    pub(crate) in_process: Option<Connect>,
}

impl Home {
    /// An empty directory; the port is chosen at the first start.
    pub(crate) fn fresh(bench: &Bench, name: &str) -> Outcome<Self> {
        let data = bench.dir.join(name);
        if data.exists() {
            fs::remove_dir_all(&data)?;
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Ok(Self {
            data,
            address,
            ready_within: READY_WITHIN,
            in_process: None,
        })
    }

    /// Starts the broker on it.
    pub(crate) fn start(self) -> Outcome<Broker> {
        self.start_with(&[])
    }

    /// The same, with settings other than the usual ones, by their environment variables.
    pub(crate) fn start_with(self, settings: &[(&str, &str)]) -> Outcome<Broker> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waterwheel"));
        command.arg("serve").arg("--data").arg(&self.data);
        command.arg("--listen").arg(self.address.to_string());
        command.env("WATERWHEEL_MEMORY_BYTES", MEMORY_BYTES.to_string());
        // Warnings are wanted: a harness that hides them measures something else unawares.
        command.env("RUST_LOG", "warn");
        command.envs(settings.iter().copied());
        let process = Process::start(command, self.ready_within)?;
        let home = Self {
            address: process.address,
            ..self
        };
        Ok(Broker { process, home })
    }

    /// The certificate authority its clients trust.
    pub(crate) fn authority(&self) -> PathBuf {
        self.data.join("tls/ca.pem")
    }

    /// Takes the views away: the next start has to rebuild them from the log.
    pub(crate) fn distrust_views(&self) -> Outcome<()> {
        Ok(fs::remove_dir_all(self.data.join("views"))?)
    }

    /// The sum of the lengths of all files.
    pub(crate) fn bytes(&self) -> Outcome<u64> {
        bytes_below(&self.data)
    }
}

impl Broker {
    /// A fresh one.
    pub(crate) fn fresh(bench: &Bench, name: &str) -> Outcome<Self> {
        Home::fresh(bench, name)?.start()
    }

    /// Where it lives.
    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// From `exec` to "listening".
    pub(crate) fn ready_after(&self) -> Duration {
        self.process.ready_after
    }

    /// What the kernel has counted for it.
    pub(crate) fn usage(&self) -> Outcome<Usage> {
        self.process.usage()
    }

    /// The same, once it writes nothing any more: spare segments are filled and views written behind what
    /// asked for them, and would else be counted to whatever comes next.
    pub(crate) fn settled_usage(&self) -> Outcome<Usage> {
        let mut last = self.usage()?;
        loop {
            std::thread::sleep(QUIET);
            let now = self.usage()?;
            if now.written_bytes == last.written_bytes {
                return Ok(now);
            }
            last = now;
        }
    }

    /// Resident memory in bytes.
    pub(crate) fn resident_bytes(&self) -> Outcome<u64> {
        self.process.resident_bytes()
    }

    /// Fails where it has ended by itself.
    pub(crate) fn still_runs(&mut self) -> Outcome<()> {
        self.process.still_runs()
    }

    /// `kill -9`.
    pub(crate) fn kill(self) -> Outcome<Home> {
        self.process.kill()?;
        Ok(self.home)
    }

    /// SIGTERM.
    pub(crate) fn stop(self) -> Outcome<Home> {
        self.process.stop(STOP_WITHIN)?;
        Ok(self.home)
    }
}

fn bytes_below(dir: &Path) -> Outcome<u64> {
    let mut total = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let facts = entry.metadata()?;
        total += if facts.is_dir() {
            bytes_below(&entry.path())?
        } else {
            facts.len()
        };
    }
    Ok(total)
}

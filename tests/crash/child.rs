//! The broker as a child process that can be killed.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long a start may take before the test gives up: far above what it takes.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How a broker is started.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    /// The data directory.
    pub(crate) data: PathBuf,
    /// Small sizes, so that a short run meets every kind of work: `NAME=value` of the environment.
    pub(crate) settings: Vec<(&'static str, String)>,
}

/// A running broker.
#[derive(Debug)]
pub(crate) struct Broker {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Launch {
    /// Starts a broker on `port` (0: a free one); `None` if it ended before it listened, as one with
    /// a crash point on its way does.
    pub(crate) fn start(&self, port: u16, crash_at: Option<&str>) -> Option<Broker> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waterwheel"));
        command
            .arg("serve")
            .arg("--data")
            .arg(&self.data)
            .arg("--listen")
            .arg(format!("127.0.0.1:{port}"))
            .envs(
                self.settings
                    .iter()
                    .map(|(name, value)| (*name, value.clone())),
            )
            .env("RUST_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        if let Some(point) = crash_at {
            command.env("WATERWHEEL_CRASH_AT", point);
        }
        let mut child = command.spawn().expect("the broker's binary starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let (line, listening) = mpsc::channel();
        std::thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(address) = text.strip_prefix("listening on ") {
                    let _ = line.send(address.parse::<SocketAddr>());
                }
            }
        });
        match listening.recv_timeout(START_TIMEOUT) {
            Ok(Ok(address)) => Some(Broker { child, address }),
            Ok(Err(error)) => panic!("not an address: {error}"),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                child.wait().expect("a child that ended can be waited for");
                None
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                panic!("the broker did not listen within {START_TIMEOUT:?}");
            }
        }
    }
}

impl Broker {
    /// Kills it as `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a killed child ends");
    }

    /// Whether it has ended by itself: a crash point was reached.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("a child can be asked")
            .is_some()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Throws the views away, as an operator might.
pub(crate) fn delete_views(data: &Path) {
    let views = data.join("views");
    if views.exists() {
        std::fs::remove_dir_all(&views).expect("the views can be deleted");
    }
}

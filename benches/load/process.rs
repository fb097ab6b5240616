//! Processes started for a measurement, and what the kernel says of them.
//!
//! A child is killed by its id when its handle goes (H4). It announces itself by a line
//! `listening on ADDR` on its standard output.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::Outcome;

/// How long a process may take to say that it listens, unless a scenario expects more.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(30);

/// What the kernel has counted for a process so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// User and system time, in seconds.
    pub(crate) cpu_s: f64,
    /// Bytes it caused to be written to a device.
    pub(crate) written_bytes: u64,
    /// Calls that read from files and devices.
    pub(crate) read_calls: u64,
    /// Bytes it caused to be fetched from a device.
    pub(crate) read_bytes: u64,
}

impl Usage {
    /// What this process has used.
    pub(crate) fn own() -> Outcome<Self> {
        Self::of("self")
    }

    fn of(process: &str) -> Outcome<Self> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The command's name is in parentheses and may hold anything; the fields follow the last one.
        let fields = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest)
            .unwrap_or_default();
        let mut times = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(str::parse::<u64>);
        let mut tick = || {
            times
                .next()
                .ok_or("/proc/PID/stat is short")?
                .map_err(|why| why.to_string())
        };
        let ticks = tick()? + tick()?;
        let io = fs::read_to_string(format!("/proc/{process}/io")).unwrap_or_default();
        Ok(Self {
            cpu_s: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
            written_bytes: named(&io, "write_bytes:").unwrap_or(0),
            read_calls: named(&io, "syscr:").unwrap_or(0),
            read_bytes: named(&io, "read_bytes:").unwrap_or(0),
        })
    }

    /// What was used since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            cpu_s: self.cpu_s - earlier.cpu_s,
            written_bytes: self.written_bytes.saturating_sub(earlier.written_bytes),
            read_calls: self.read_calls.saturating_sub(earlier.read_calls),
            read_bytes: self.read_bytes.saturating_sub(earlier.read_bytes),
        }
    }
}

/// A child process that listens.
#[derive(Debug)]
pub(crate) struct Process {
    child: Guard,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// From `exec` to the line that says so.
    pub(crate) ready_after: Duration,
    /// Closing it tells a role of this harness to end.
    _stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts a process and waits until it says where it listens.
    pub(crate) fn start(mut command: Command, within: Duration) -> Outcome<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let begun = Instant::now();
        let mut child = Guard::spawn(&mut command)?;
        let stdin = child.0.stdin.take();
        let stdout = child
            .0
            .stdout
            .take()
            .ok_or("the child has no standard output")?;
        let (found, address) = mpsc::channel();
        // The thread goes on reading so that the child never blocks on a full pipe; it ends with it.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(text) = line.strip_prefix("listening on ") {
                    let _ = found.send((text.trim().parse::<SocketAddr>(), begun.elapsed()));
                }
            }
        });
        let (address, ready_after) = address.recv_timeout(within).map_err(|_| {
            format!(
                "{:?} did not say where it listens within {within:?}",
                command.get_program()
            )
        })?;
        let address = address?;
        Ok(Self {
            child,
            address,
            ready_after,
            _stdin: stdin,
        })
    }

    /// What the kernel has counted for it.
    pub(crate) fn usage(&self) -> Outcome<Usage> {
        Usage::of(&self.child.id().to_string())
    }

    /// Resident memory in bytes.
    pub(crate) fn resident_bytes(&self) -> Outcome<u64> {
        resident_bytes(self.child.id())
    }

    /// Fails where it has ended.
    pub(crate) fn still_runs(&mut self) -> Outcome<()> {
        self.child.still_runs()
    }

    /// Waits for it to end by itself, which has to be a success.
    pub(crate) fn finish(mut self, within: Duration) -> Outcome<()> {
        let begun = Instant::now();
        while begun.elapsed() < within {
            match self.child.0.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("a process ended with {status}").into()),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        Err(format!("a process did not end within {within:?}").into())
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) fn kill(mut self) -> Outcome<()> {
        self.child.0.kill()?;
        self.child.0.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for a clean end; says how long it took.
    pub(crate) fn stop(mut self, within: Duration) -> Outcome<Duration> {
        let begun = Instant::now();
        let id = self.child.0.id().to_string();
        let told = Command::new("kill").args(["-TERM", &id]).status()?;
        if !told.success() {
            return Err(format!("kill -TERM {id}: {told}").into());
        }
        while begun.elapsed() < within {
            if let Some(status) = self.child.0.try_wait()? {
                let took = begun.elapsed();
                return if status.success() {
                    Ok(took)
                } else {
                    Err(format!("after SIGTERM the process ended with {status}").into())
                };
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(format!("the process did not end within {within:?} of SIGTERM").into())
    }
}

/// A child that does not outlive its handle (H4).
#[derive(Debug)]
pub(crate) struct Guard(Child);

impl Guard {
    /// Starts a process.
    pub(crate) fn spawn(command: &mut Command) -> Outcome<Self> {
        Ok(Self(command.spawn()?))
    }

    /// Its id.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Fails where it has ended.
    pub(crate) fn still_runs(&mut self) -> Outcome<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("the process ended by itself: {status}").into()),
        }
    }
}

/// Resident memory of a process, in bytes.
pub(crate) fn resident_bytes(process: u32) -> Outcome<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let kibibytes = named(&status, "VmRSS:").ok_or("no VmRSS: is the process gone?")?;
    Ok(kibibytes * 1024)
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Memory of this process that no file lies behind, in bytes.
pub(crate) fn own_anonymous_bytes() -> Outcome<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    Ok(named(&status, "RssAnon:").ok_or("no RssAnon in /proc/self/status")? * 1024)
}

/// The number behind a name in a list of `name: number` lines.
fn named(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

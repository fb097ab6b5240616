//! The harness, from the command line to the exit code.
//!
//! In: scenario names, or `goals FAMILY`. Out: a table on stdout, progress on stderr, JSON if asked.
//!
//! - H1 A figure that could not be measured is not held.
//! - H2 A goal is judged by the median of its runs; the spread is printed beside it.
//! - H3 A ceiling below the broker's own figure is a fault of the measurement: the scenario fails.
//! - H4 Every process started here is killed, by its id, when its handle goes.
//! - H5 Every run is bounded in time.

mod arguments;
mod broker;
mod ceilings;
mod clients;
mod crew;
mod disk;
mod environment;
mod guest;
mod hostile;
mod latency;
mod pace;
mod payload;
mod process;
mod quic;
mod records;
mod redis;
mod report;
mod role;
mod scenario;

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use arguments::{Arguments, Asked};
use report::{Report, Samples};
use scenario::Scenario;

/// What can go wrong here ends up as a line for whoever runs the harness.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What every scenario is given.
#[derive(Debug, Clone)]
pub(crate) struct Bench {
    /// Tiny sizes, data verified, goals not judged.
    pub(crate) quick: bool,
    /// How often each measurement is repeated.
    pub(crate) runs: usize,
    /// A directory on a disk, gone afterwards.
    pub(crate) dir: PathBuf,
    /// Which cases of a scenario are wanted; all of them, unless told.
    only: Option<String>,
    /// Of the size and the length of the longest scenarios one so-manieth: 1 for all of it.
    pub(crate) part: u64,
}

impl Bench {
    /// The full size, or the one that only proves that it works.
    pub(crate) fn size<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Whether a case of a scenario is to be measured.
    pub(crate) fn wants(&self, case: &str) -> bool {
        self.only.as_deref().is_none_or(|text| case.contains(text))
    }

    /// How long a throughput measurement lasts.
    pub(crate) fn span(&self) -> Duration {
        self.size(Duration::from_secs(4), Duration::from_millis(300))
    }
}

impl Bench {
    /// H3, where the sizes are such that a figure means anything.
    pub(crate) fn defend(&self, sound: bool, fault: &str, samples: &mut Samples) {
        if !sound && !self.quick {
            samples.fault(fault);
        }
    }
}

/// Parses, measures, prints, judges.
pub(crate) fn main() -> ExitCode {
    // As the product's own processes do: both sides of every comparison.
    waterwheel::cli::keep_freed_memory();
    if let Some(code) = role::play() {
        return code;
    }
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(fault) => {
            say(&format!("load: {fault}"));
            ExitCode::from(2)
        }
    }
}

/// A line for whoever watches.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn run(arguments: &Arguments) -> Outcome<bool> {
    let chosen: Vec<&Scenario> = match arguments.asked()? {
        Asked::Nothing => {
            print(&scenario::catalogue())?;
            return Ok(true);
        }
        Asked::Named(chosen) => chosen,
    };
    let scratch = tempfile::Builder::new()
        .prefix("load-")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let bench = Bench {
        quick: arguments.quick,
        runs: arguments.runs(),
        dir: scratch.path().to_owned(),
        only: arguments.only.clone(),
        part: arguments.part.max(1),
    };
    print(&environment::describe(&bench))?;
    // A part of the size proves no goal either.
    let mut report = Report::new(arguments.quick || bench.part > 1);
    for scenario in chosen {
        let figures = scenario.measure(&bench);
        print(&report::table(scenario.name, &figures))?;
        report.extend(figures);
    }
    if let Some(path) = &arguments.json {
        std::fs::write(path, report.json()?)?;
    }
    print(&report.verdict())?;
    Ok(report.held())
}

/// A line on stdout.
pub(crate) fn print(text: &str) -> Outcome<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

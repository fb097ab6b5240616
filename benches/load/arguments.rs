//! The command line.

use std::path::PathBuf;

use clap::Parser;

use super::Outcome;
use super::scenario::{self, Family, Scenario};

/// How often a measurement is repeated at full size, unless told.
const RUNS: usize = 3;

/// Measures the broker beside the ceilings of this machine.
#[derive(Debug, Parser)]
#[command(name = "load")]
pub(crate) struct Arguments {
    /// Scenario names, or `goals core`, `goals timers`; nothing lists the scenarios.
    names: Vec<String>,
    /// Where to write the figures: a list of {scenario, name, value, unit, goal, held}.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Tiny sizes, one run each: data is verified, goals are not judged.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Interleaved runs per scenario; goals ask for at least 3.
    #[arg(long, value_name = "N")]
    runs: Option<usize>,
    /// Of a scenario with several cases, those whose names contain this; `budget` and `timers-near` have
    /// some.
    #[arg(long, value_name = "TEXT")]
    pub(crate) only: Option<String>,
    /// Where a scenario takes long (timers): this fraction of its size and length. Goals mean nothing then.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) part: u64,
    /// Cargo passes it; it means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What was asked for.
pub(crate) enum Asked {
    /// The list of scenarios.
    Nothing,
    /// These, in their order.
    Named(Vec<&'static Scenario>),
}

impl Arguments {
    /// The arguments of this process; ends it on a usage error.
    pub(crate) fn parse() -> Self {
        <Self as Parser>::parse()
    }

    /// How often each measurement is repeated.
    pub(crate) fn runs(&self) -> usize {
        let usual = if self.quick { 1 } else { RUNS };
        self.runs.unwrap_or(usual).max(1)
    }

    /// Resolves the names.
    pub(crate) fn asked(&self) -> Outcome<Asked> {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        match names.as_slice() {
            [] => Ok(Asked::Nothing),
            ["goals", name] => Family::ALL
                .into_iter()
                .find(|family| family.name() == *name)
                .map(|family| {
                    let all = scenario::ALL.iter();
                    Asked::Named(all.filter(|scenario| scenario.family == family).collect())
                })
                .ok_or_else(|| {
                    let known = Family::ALL.map(Family::name).join(", ");
                    format!("there are goals of: {known}; not of {name}").into()
                }),
            ["goals", ..] => Err("goals of what? goals core".into()),
            names => names
                .iter()
                .map(|name| {
                    scenario::ALL
                        .iter()
                        .find(|scenario| scenario.name == *name)
                        .ok_or_else(|| {
                            format!("no scenario is called {name}; without a name they are listed")
                                .into()
                        })
                })
                .collect::<Outcome<Vec<_>>>()
                .map(Asked::Named),
        }
    }
}

//! The scenarios by name, each with what it promises.

mod produce;

use std::fmt::Write as _;

use super::report::{Figures, Goal, Samples};
use super::{Bench, Outcome, ceilings, say};

/// How many runs a goal is judged by at least (H2).
const RUNS_MIN: usize = 3;

/// One scenario.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    about: &'static str,
    goals: &'static [Goal],
    perform: fn(&Bench, &mut Samples) -> Outcome<()>,
}

/// Every scenario, in the order of `goals core`.
pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        name: "ceilings",
        about: "raw quinn and the raw disk, no broker",
        goals: &[],
        perform: ceilings::measure,
    },
    Scenario {
        name: "produce-durable",
        about: "8 producers, 100 kB batches, durable, beside the raw transport",
        goals: &[
            Goal::at_least("share of the raw transport", 0.6),
            Goal::at_most("broker CPU over sink CPU", 1.8),
        ],
        perform: produce::durable,
    },
    Scenario {
        name: "produce-one-in-flight",
        about: "one durable record at a time, beside a round trip and a synced write",
        goals: &[Goal::at_most("p50 over (round trip + synced write)", 1.5)],
        perform: produce::one_in_flight,
    },
    Scenario {
        name: "produce-singles",
        about: "4 producers, records one by one, gathered for at most 5 ms",
        goals: &[Goal::at_least("records a second, flat out", 400_000.0)],
        perform: produce::singles,
    },
];

impl Scenario {
    /// Measures; a failure leaves its goals not held (H1).
    pub(crate) fn measure(&self, bench: &Bench) -> Figures {
        say(&format!("measuring {}", self.name));
        let mut samples = Samples::default();
        let fault = (self.perform)(bench, &mut samples).err();
        let runs_min = if bench.quick { 1 } else { RUNS_MIN };
        let fault = fault.map(|fault| format!("{}: {fault}", self.name));
        samples.figures(self.name, self.goals, runs_min, fault)
    }
}

/// The list for whoever named none.
pub(crate) fn catalogue() -> String {
    let mut text = String::from(
        "cargo bench --bench load -- SCENARIO... | goals core [--json FILE] [--quick] [--runs N]\n\n",
    );
    for scenario in ALL {
        let _ = writeln!(text, "  {:<22} {}", scenario.name, scenario.about);
    }
    text
}

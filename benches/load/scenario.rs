//! The scenarios by name, each with what it promises.

mod budget;
mod embedded;
pub(crate) mod groups;
mod idle;
mod produce;
mod read;
mod restart;
mod timers;
pub(crate) mod transactions;

use std::fmt::Write as _;

use super::report::{Figures, Goal, Samples};
use super::{Bench, Outcome, ceilings, say};

/// How many runs a goal is judged by at least (H2).
const RUNS_MIN: usize = 3;

/// What scenarios are judged together: `goals FAMILY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// The durable core.
    Core,
    /// Delayed and timer messages.
    Timers,
    /// Transactions and half messages.
    Transactions,
    /// Consumer groups.
    Groups,
}

impl Family {
    /// Every family.
    pub(crate) const ALL: [Self; 4] = [Self::Core, Self::Timers, Self::Transactions, Self::Groups];

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Timers => "timers",
            Self::Transactions => "transactions",
            Self::Groups => "groups",
        }
    }
}

/// One scenario.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// With which others it is judged.
    pub(crate) family: Family,
    about: &'static str,
    goals: &'static [Goal],
    perform: fn(&Bench, &mut Samples) -> Outcome<()>,
}

/// Every scenario, in the order of `goals FAMILY`.
pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        name: "ceilings",
        family: Family::Core,
        about: "raw quinn and the raw disk, no broker",
        goals: &[],
        perform: ceilings::measure,
    },
    Scenario {
        name: "produce-durable",
        family: Family::Core,
        about: "8 producers, 100 kB batches, durable, beside the raw transport",
        goals: &[
            Goal::at_least("share of the raw transport", 0.6),
            Goal::at_most("broker CPU over sink CPU", 1.8),
        ],
        perform: produce::durable,
    },
    Scenario {
        name: "produce-one-in-flight",
        family: Family::Core,
        about: "one durable record at a time, beside a round trip and a synced write",
        goals: &[Goal::at_most("p50 over (round trip + synced write)", 1.5)],
        perform: produce::one_in_flight,
    },
    Scenario {
        name: "produce-singles",
        family: Family::Core,
        about: "4 producers, records one by one, gathered for at most 5 ms",
        goals: &[Goal::at_least("records a second, flat out", 400_000.0)],
        perform: produce::singles,
    },
    Scenario {
        name: "in-process",
        family: Family::Core,
        about: "durable produce and reading with the broker in this process, beside over QUIC",
        goals: &[
            Goal::at_least("durable produce: in process over QUIC", 1.0),
            Goal::at_least("records one by one: in process over QUIC", 1.0),
            Goal::at_least("one in flight: in process over QUIC", 1.0),
            Goal::at_least("reading: in process over QUIC", 1.0),
        ],
        perform: embedded::beside_quic,
    },
    Scenario {
        name: "backlog-read",
        family: Family::Core,
        about: "20 times the cache, after a restart, 8 readers, beside the raw transport",
        goals: &[Goal::at_least("share of the raw transport", 0.7)],
        perform: read::backlog,
    },
    Scenario {
        name: "push-latency",
        family: Family::Core,
        about: "10 000 records a second, open loop, produced and read live",
        goals: &[Goal::at_most("end to end over produce, p50", 1.3)],
        perform: read::push,
    },
    Scenario {
        name: "idle",
        family: Family::Core,
        about: "memory of an idle broker, CPU of 100 idle readers",
        goals: &[
            Goal::at_most("RSS, idle", 60.0),
            Goal::at_most("CPU, 100 idle readers", 0.5),
        ],
        perform: idle::idle,
    },
    Scenario {
        name: "topic-10k",
        family: Family::Core,
        about: "10 000 partitions, each written once: memory and restart",
        goals: &[
            Goal::at_most("RSS, each partition written once", 500.0),
            Goal::at_most("restart", 5.0),
        ],
        perform: restart::wide_topic,
    },
    Scenario {
        name: "fresh-start",
        family: Family::Core,
        about: "exec to listening on an empty directory, and its size",
        goals: &[
            Goal::at_most("exec to listening", 1.0),
            Goal::at_most("data directory", 256.0),
        ],
        perform: idle::fresh_start,
    },
    Scenario {
        name: "recover-10gb",
        family: Family::Core,
        about: "10 GB in the log: serving after kill -9, and with the views gone",
        goals: &[
            Goal::at_most("serving after kill -9", 3.0),
            Goal::at_most("serving after kill -9 without views", 15.0),
        ],
        perform: restart::recover,
    },
    Scenario {
        name: "reconnect-storm",
        family: Family::Core,
        about: "100 clients, kill -9, restart: listening to the first new acknowledgement",
        goals: &[Goal::at_most("listening to first new ack, p99", 1_000.0)],
        perform: restart::storm,
    },
    Scenario {
        name: "budget",
        family: Family::Core,
        about: "512 MB: flat-out producers, stalled readers, silence, 4-GiB frames",
        goals: &[
            Goal::at_most("flat out: RSS", 512.0),
            Goal::at_most("flat out: p99 over (round trip + two flushes)", 2.0),
            Goal::at_most("100 stalled readers: RSS", 512.0),
            Goal::at_most("100 stalled readers: p99 over before", 2.0),
            Goal::at_most("1 000 silent connections: RSS", 512.0),
            Goal::at_most("1 000 silent connections: p99 over before", 2.0),
            Goal::at_most("frames of 4 GiB: RSS", 512.0),
            Goal::at_most("frames of 4 GiB: p99 over before", 2.0),
        ],
        perform: budget::budget,
    },
    Scenario {
        name: "timers-accept",
        family: Family::Timers,
        about: "10 million timers over a day: rate, memory, kill -9",
        goals: &[
            Goal::at_least("timers accepted a second", 100_000.0),
            Goal::at_least("last tenth over first", 0.8),
            Goal::at_most("RSS above idle, all waiting", 300.0),
            Goal::at_most("kill -9: first durable acknowledgement", 10.0),
            Goal::at_most("kill -9: first due fire", 10.0),
        ],
        perform: timers::accept,
    },
    Scenario {
        name: "timers-killed",
        family: Family::Timers,
        about: "a million due within 20 s, killed in the middle: each once, none early",
        goals: &[Goal::at_most("killed in the middle: early", 0.0)],
        perform: timers::killed,
    },
    Scenario {
        name: "timers-near",
        family: Family::Timers,
        about: "due in the next half minute, 20 000 and 50 000 a second: lateness",
        goals: &[
            Goal::at_most("near, 20000 fires/s: lateness p99", 5.0),
            Goal::at_most("near, 20000 fires/s: early", 0.0),
            Goal::at_most("near, 50000 fires/s: lateness p99", 20.0),
            Goal::at_most("near, 50000 fires/s: early", 0.0),
        ],
        perform: timers::near,
    },
    Scenario {
        name: "timers-far",
        family: Family::Timers,
        about: "10 million in no order, due over 10 minutes after a restart: lateness, reads",
        goals: &[
            Goal::at_most("far: lateness p99", 50.0),
            Goal::at_most("far: early", 0.0),
            Goal::at_most("far: reads issued per fire", 1.3),
            Goal::at_most("far: read-ahead held, most seen", 67.2),
            Goal::at_least("far: fires checked for being early", 10_000_000.0),
        ],
        perform: timers::far::far,
    },
    Scenario {
        name: "timers-burst",
        family: Family::Timers,
        about: "100 000 due in one millisecond, and within one second",
        goals: &[
            Goal::at_most("100 000 in the same millisecond: all delivered within", 2.0),
            Goal::at_most("100 000 in the same millisecond: early", 0.0),
            Goal::at_most("100 000 within one second: all delivered within", 2.0),
            Goal::at_most("100 000 within one second: early", 0.0),
        ],
        perform: timers::burst,
    },
    Scenario {
        name: "timers-cancel",
        family: Family::Timers,
        about: "moved and cancelled by their handles, and what nine in ten cancelled leave in memory",
        goals: &[
            Goal::at_least(
                "modifications a second, earlier, 1 million waiting",
                20_000.0,
            ),
            Goal::at_least("modifications a second, later, 1 million waiting", 20_000.0),
            Goal::at_least("cancellations a second, 1 million waiting", 20_000.0),
            Goal::at_most("RSS above idle, 9 of 10 million cancelled", 300.0),
        ],
        perform: timers::cancel::cancel,
    },
    Scenario {
        name: "timers-levels",
        family: Family::Timers,
        about: "what the levels count while two timers wait",
        goals: &[Goal::at_most("wake-ups of all levels", 10.0)],
        perform: timers::levels,
    },
    Scenario {
        name: "timers-early",
        family: Family::Timers,
        about: "fires of all scenarios together, filled up to 10 million: none early",
        goals: &[
            Goal::at_most("early, all scenarios", 0.0),
            Goal::at_least("fires checked for being early, all scenarios", 10_000_000.0),
        ],
        perform: timers::early::zero_early,
    },
    Scenario {
        name: "transactions-small",
        family: Family::Transactions,
        about: "64 producers, one transaction of 1 kB each in flight",
        goals: &[
            Goal::at_least("durable commits a second", 10_000.0),
            Goal::at_most("commit over a durable record, p50", 1.5),
            Goal::at_most("begin to committed over a durable record, p50", 3.0),
        ],
        perform: transactions::small,
    },
    Scenario {
        name: "transactions-wide",
        family: Family::Transactions,
        about: "100 x 1 kB over 8 partitions in a transaction, and plainly",
        goals: &[
            Goal::at_most("bytes written over plain sends", 1.3),
            Goal::at_most("broker CPU over plain sends", 1.3),
        ],
        perform: transactions::wide,
    },
    Scenario {
        name: "transactions-pending",
        family: Family::Transactions,
        about: "100 000 half messages that wait for check-back",
        goals: &[
            Goal::at_most("coordinator's memory per half message", 200.0),
            Goal::at_most("CPU between check-backs", 1.0),
            Goal::at_most("an answer applied", 1.0),
        ],
        perform: transactions::pending::pending,
    },
    Scenario {
        name: "transactions-pipeline",
        family: Family::Transactions,
        about: "1 million records through workers, which are killed at random like the broker",
        goals: &[
            Goal::at_most("pipeline: results lost", 0.0),
            Goal::at_most("pipeline: results duplicated", 0.0),
            Goal::at_least("pipeline: output equal to the sequential result", 1.0),
        ],
        perform: transactions::pipeline::pipeline,
    },
    Scenario {
        name: "groups-rates",
        family: Family::Groups,
        about: "exclusive, shared and key-ordered over one backlog, beside the raw transport",
        goals: &[
            Goal::at_least("exclusive: share of the raw transport", 0.7),
            Goal::at_least("shared, single durable acks, over exclusive", 0.5),
            Goal::at_least("key-ordered, 10 000 keys, over shared", 0.8),
        ],
        perform: groups::rates::rates,
    },
    Scenario {
        name: "groups-handover",
        family: Family::Groups,
        about: "a member closes, a member is killed: its successor, and everybody else",
        goals: &[
            Goal::at_most("orderly close: first delivery to the successor", 100.0),
            Goal::at_most("SIGKILL: first delivery to the successor", 5_100.0),
            Goal::at_most("orderly close: gap of the others beyond control", 20.0),
            Goal::at_most("SIGKILL: gap of the others beyond control", 20.0),
        ],
        perform: groups::handover::handover,
    },
    Scenario {
        name: "groups-together",
        family: Family::Groups,
        about: "ten groups over one backlog, started together: what is read from the disk",
        goals: &[Goal::at_most("kernel read bytes over the data", 1.1)],
        perform: groups::many::together,
    },
    Scenario {
        name: "groups-idle",
        family: Family::Groups,
        about: "10 000 groups with a member each that wait",
        goals: &[
            Goal::at_most("RSS, 10 000 idle groups", 1_000.0),
            Goal::at_most("wake-ups of 10 000 idle groups", 0.0),
            Goal::at_most("CPU, 10 000 idle groups", 0.5),
        ],
        perform: groups::many::idle,
    },
    Scenario {
        name: "groups-stalled",
        family: Family::Groups,
        about: "a member that takes its prefetch and stalls for a minute, beside three that do not",
        goals: &[
            Goal::at_most("RSS growth beyond the stalled prefetch", 10.0),
            Goal::at_most("p99 of the others over without", 1.25),
        ],
        perform: groups::stalled::stalled,
    },
    Scenario {
        name: "groups-retries",
        family: Family::Groups,
        about: "100 000 refused: back on time, at last dead letters, each once",
        goals: &[
            Goal::at_most("refused: early", 0.0),
            Goal::at_most("refused: lateness p99", 1_000.0),
            Goal::at_most("dead letters missing or doubled", 0.0),
            Goal::at_most("brought back missing or doubled", 0.0),
        ],
        perform: groups::retries::retries,
    },
    Scenario {
        name: "groups-retries-killed",
        family: Family::Groups,
        about: "the same through kill -9 at every stage",
        goals: &[Goal::at_most(
            "kill -9: dead letters missing or doubled",
            0.0,
        )],
        perform: groups::retries::killed,
    },
    Scenario {
        name: "groups-filter",
        family: Family::Groups,
        about: "one record in a hundred by its tag: batches touched that cannot match",
        goals: &[
            Goal::at_most("a rare tag among common ones: touched in vain", 5.0),
            Goal::at_most("a hundred tags, batch by batch: touched in vain", 5.0),
        ],
        perform: groups::choosing::filter,
    },
    Scenario {
        name: "groups-priority",
        family: Family::Groups,
        about: "a high record beside 10 million low ones; a backlog at every level",
        goals: &[
            Goal::at_most("high beside low: latency over idle, p50", 2.0),
            Goal::at_most("lowest level: longest wait behind higher ones", 1_200.0),
            Goal::at_most("delivered while a higher level was deliverable", 0.0),
            Goal::at_most("refused and not back at its level", 0.0),
        ],
        perform: groups::choosing::priority,
    },
    Scenario {
        name: "groups-reset",
        family: Family::Groups,
        about: "live exclusive and shared groups set back by time",
        goals: &[
            Goal::at_most("missing or foreign after a reset", 0.0),
            Goal::at_most("twice to live leases", 0.0),
            Goal::at_most("dry run tells other numbers", 0.0),
        ],
        perform: groups::places::reset,
    },
    Scenario {
        name: "groups-pull",
        family: Family::Groups,
        about: "N records if they are there, else what there is after T",
        goals: &[
            Goal::at_most("wake-ups while a pull waits", 0.0),
            Goal::at_most("a pull that waited, beyond its time", 50.0),
        ],
        perform: groups::places::pull,
    },
    Scenario {
        name: "groups-workers",
        family: Family::Groups,
        about: "1 000 keys, 16 workers, random handler times: order, and a drain in the middle",
        goals: &[
            Goal::at_most("out of order within a key", 0.0),
            Goal::at_most("handled twice around a drain", 0.0),
        ],
        perform: groups::workers::workers,
    },
    Scenario {
        name: "groups-at-most-once",
        family: Family::Groups,
        about: "consumers killed again and again: repeats",
        goals: &[Goal::at_most("at most once: repeats", 0.0)],
        perform: groups::workers::at_most_once,
    },
];

impl Scenario {
    /// Measures; a failure leaves its goals not held (H1).
    pub(crate) fn measure(&self, bench: &Bench) -> Figures {
        say(&format!("measuring {}", self.name));
        let mut samples = Samples::default();
        let ended = (self.perform)(bench, &mut samples);
        let whole = !bench.quick && bench.part == 1;
        let runs_min = whole.then_some(RUNS_MIN);
        samples.figures(self.name, self.goals, runs_min, ended)
    }
}

/// The list for whoever named none.
pub(crate) fn catalogue() -> String {
    let mut text = String::from(
        "cargo bench --bench load -- SCENARIO... | goals core|timers|transactions|groups [--json FILE] [--quick] [--runs N]\n\n",
    );
    for scenario in ALL {
        let _ = writeln!(text, "  {:<22} {}", scenario.name, scenario.about);
    }
    text
}

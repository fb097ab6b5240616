//! The other processes of a measurement: this binary again, under a hidden first argument.
//!
//! | role | arguments | does |
//! |---|---|---|
//! | `quic-server` | settings, directory | raw quinn: discards, answers and pumps ([`super::quic::server`]) |
//! | `quic-flood` | settings, directory, address, connections | raw quinn, flat out, until it is ended |
//! | `pour` | data directory, address, topic, producers, milliseconds | the product's producers, flat out |
//! | `square` | data directory, address, number | a worker of the pipeline, until it is killed |
//! | `halves` | count | holds so many half messages in a coordinator's machine and says what each takes |
//! | `consume` | data directory, address, topic, group, mode, acknowledged, file | a member of a group, until it is killed; what it had goes into the file |
//!
//! A role ends when its standard input does: the harness is gone then.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use super::broker::Home;
use super::clients::{self, Until};
use super::process::READY_WITHIN;
use super::quic::{self, Settings};
use super::records::{Pool, VALUE_BYTES};
use super::scenario;
use super::{Outcome, say};

/// The word that tells a role from a command line.
const ROLE: &str = "role";

/// The raw quinn server.
pub(crate) const QUIC_SERVER: &str = "quic-server";
/// The raw quinn source that never stops.
pub(crate) const QUIC_FLOOD: &str = "quic-flood";

/// The product's producers, flat out.
pub(crate) const POUR: &str = "pour";
/// A member of a consumer group that is killed sooner or later.
pub(crate) const CONSUME: &str = "consume";

/// A worker of the exactly-once pipeline that is killed sooner or later.
pub(crate) const SQUARE: &str = "square";

/// A coordinator's machine by itself.
pub(crate) const HALVES: &str = "halves";

/// This binary in another role.
pub(crate) fn command(role: &str) -> Outcome<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([ROLE, role]);
    Ok(command)
}

/// Plays the role this process was started for, if it was.
pub(crate) fn play() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next()? != ROLE {
        return None;
    }
    let role = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    end_with_standard_input();
    Some(match perform(&role, &rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            say(&format!("{role}: {fault}"));
            ExitCode::FAILURE
        }
    })
}

fn perform(role: &str, rest: &[String]) -> Outcome<()> {
    match (role, rest) {
        (QUIC_SERVER, [settings, dir]) => {
            quic::server::serve(Settings::named(settings)?, &PathBuf::from(dir))
        }
        (QUIC_FLOOD, [settings, dir, address, connections]) => {
            let target = quic::Target {
                settings: Settings::named(settings)?,
                dir: PathBuf::from(dir),
                address: address.parse()?,
            };
            quic::source::flood(&target, connections.parse()?)
        }
        (POUR, [data, address, topic, producers, span_ms]) => {
            let home = home(data, address)?;
            announce(home.address)?;
            let until = Until::Elapsed(Duration::from_millis(span_ms.parse()?));
            let pool = Pool::new(VALUE_BYTES);
            clients::pour(&home, topic, &pool, producers.parse()?, until)?;
            Ok(())
        }
        (CONSUME, [data, address, rest @ ..]) => {
            let home = home(data, address)?;
            scenario::groups::consume_until_killed(&home, rest)
        }
        (SQUARE, [data, address, number]) => {
            let home = home(data, address)?;
            scenario::transactions::pipeline::work_until_killed(&home, number.parse()?)
        }
        (HALVES, [count]) => scenario::transactions::pending::hold_halves(count.parse()?),
        _ => Err("no such role".into()),
    }
}

/// Where the broker under test lives.
fn home(data: &str, address: &str) -> Outcome<Home> {
    Ok(Home {
        data: PathBuf::from(data),
        address: address.parse()?,
        ready_within: READY_WITHIN,
        in_process: None,
    })
}

/// The line by which a process says that it is under way.
pub(crate) fn announce(address: SocketAddr) -> Outcome<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "listening on {address}")?;
    Ok(out.flush()?)
}

fn end_with_standard_input() {
    std::thread::spawn(|| {
        let mut sink = [0; 64];
        while std::io::stdin()
            .read(&mut sink)
            .is_ok_and(|count| count > 0)
        {}
        std::process::exit(0);
    });
}

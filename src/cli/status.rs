//! `waterwheel status`: how the broker is.
//!
//! With `--json` one object: `version`, `uptime_ms`, `connections`, `log_bytes`, `segments`,
//! `bytes_in_flight`, `sealed` (why, or null), `ready`, `cluster`, `reads` (issued to the disk),
//! `read_ahead_bytes`, `read_ahead_hits`, `read_ahead_misses` (records of timers read before they were due,
//! and not), `failed` (which standing actor, only if one did); with `--actors` then one object per actor:
//! `kind`, `id`, `name`, `mailbox_capacity`, `mailbox_depth`, `handled`, `restarts`, `rows`; of levels of
//! the timing wheel also `wake_ups`, `overflow_up` and `cascade_down`, a consumer group `batches_read` and
//! `batches_skipped`, where they are not zero.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::connect::Connect;
use super::duration::parse_duration;
use super::exit::{CliError, Outcome};
use super::output::counted;
use super::table::Table;
use super::{print, print_json};
use crate::client::{ActorInfo, BrokerStatus, StatusOk};
use crate::config::human::{rough_bytes, rough_span};

/// How long to wait between two looks at a broker that is not ready.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Show how the broker is. Exit code 1 if its log is sealed or a standing actor failed.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// One line per actor too.
    #[arg(long)]
    actors: bool,
    /// Say `ready` and nothing else where the broker takes and serves records; exit code 1 where it does
    /// not, 3 where nobody answers. For probes.
    #[arg(long, conflicts_with = "actors")]
    ready: bool,
    /// Wait so long for the broker to be reached and ready, e.g. 30s.
    #[arg(long, value_name = "SPAN", value_parser = parse_duration)]
    wait: Option<Duration>,
    /// Print JSON, one object per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(arguments: Arguments) -> Result<Outcome, CliError> {
    let deadline = arguments.wait.map(|span| Instant::now() + span);
    let (status, cluster) = loop {
        let asked = ask(&arguments, deadline).await;
        let is_late = deadline.is_none_or(|deadline| Instant::now() >= deadline);
        match asked {
            Ok(answer) if is_late || is_ready(&answer.0.broker) => break answer,
            Err(error @ CliError::Unreachable(_)) if is_late => return Err(error),
            Ok(_) | Err(CliError::Unreachable(_)) => tokio::time::sleep(LOOK_EVERY).await,
            Err(error) => return Err(error),
        }
    };
    let is_ready = is_ready(&status.broker);
    if arguments.json {
        print_json(&BrokerLine::new(&status.broker, &cluster))?;
        for actor in &status.actors {
            print_json(actor)?;
        }
    } else if arguments.ready {
        print(state(&status.broker))?;
    } else {
        print(text(&status.broker, &cluster))?;
        actors(&status.actors).print()?;
    }
    let asks_for_readiness = arguments.ready || arguments.wait.is_some();
    let is_broken = status.broker.sealed.is_some() || status.broker.failed.is_some();
    Ok(match (is_broken, is_ready) {
        (false, true) => Outcome::Done,
        (false, false) if !asks_for_readiness => Outcome::Done,
        (false, false) | (true, _) => Outcome::No,
    })
}

/// One look, no longer than what is left of the wait.
async fn ask(
    arguments: &Arguments,
    deadline: Option<Instant>,
) -> Result<(BrokerStatus, String), CliError> {
    let mut connect = arguments.connect.clone();
    if let Some(deadline) = deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        connect.patience = connect.patience.min(left.max(LOOK_EVERY));
    }
    let client = connect.client().await?;
    let cluster = client.broker().cluster.to_string();
    Ok((client.status(arguments.actors).await?, cluster))
}

fn is_ready(status: &StatusOk) -> bool {
    status.ready && status.sealed.is_none()
}

#[derive(Serialize)]
struct BrokerLine<'a> {
    version: &'a str,
    uptime_ms: u64,
    connections: u64,
    log_bytes: u64,
    segments: u64,
    bytes_in_flight: u64,
    sealed: Option<&'a str>,
    ready: bool,
    cluster: &'a str,
    reads: u64,
    read_ahead_bytes: u64,
    read_ahead_hits: u64,
    read_ahead_misses: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<&'a str>,
}

impl<'a> BrokerLine<'a> {
    fn new(status: &'a StatusOk, cluster: &'a str) -> Self {
        Self {
            version: &status.version,
            uptime_ms: status.uptime_ms,
            connections: status.connections,
            log_bytes: status.log_bytes,
            segments: status.segments,
            bytes_in_flight: status.bytes_in_flight,
            sealed: status.sealed.as_deref(),
            ready: status.ready,
            cluster,
            reads: status.reads,
            read_ahead_bytes: status.read_ahead_bytes,
            read_ahead_hits: status.read_ahead_hits,
            read_ahead_misses: status.read_ahead_misses,
            failed: status.failed.as_deref(),
        }
    }
}

fn state(status: &StatusOk) -> String {
    if let (None, Some(actor)) = (&status.sealed, &status.failed) {
        return format!("FAILED, its {actor} actor is gone; restart the broker");
    }
    match (&status.sealed, status.ready) {
        (Some(why), _) => format!("SEALED, reads only: {why}; restart the broker"),
        (None, true) => "ready".to_owned(),
        (None, false) => "not ready".to_owned(),
    }
}

fn text(status: &StatusOk, cluster: &str) -> String {
    format!(
        "waterwheel {}, up {}, {}\n{}, {} in flight, log of {} in {}, cluster {cluster}\n\
         {}, {} of delayed records read ahead ({} in time, {} not)",
        status.version,
        rough_span(status.uptime_ms),
        state(status),
        counted(status.connections, "connection"),
        rough_bytes(status.bytes_in_flight),
        rough_bytes(status.log_bytes),
        counted(status.segments, "segment"),
        counted(status.reads, "read"),
        rough_bytes(status.read_ahead_bytes),
        status.read_ahead_hits,
        status.read_ahead_misses,
    )
}

fn actors(actors: &[ActorInfo]) -> Table {
    let mut table = Table::new(&[
        "actor", "id", "mailbox", "depth", "handled", "restarts", "rows", "name",
    ]);
    for actor in actors {
        let numbers = [
            actor.id,
            actor.mailbox_capacity,
            actor.mailbox_depth,
            actor.handled,
            actor.restarts,
            actor.rows,
        ];
        let cells =
            std::iter::once(actor.kind.clone()).chain(numbers.map(|number| number.to_string()));
        table.row(cells.chain([format!("{}{}", actor.name, turns(actor))]));
    }
    table
}

/// What a level of the timing wheel did, or what a group's filters and keys cost.
fn turns(actor: &ActorInfo) -> String {
    if actor.batches_read + actor.batches_skipped > 0 {
        return format!(
            ": {} batches looked into, {} skipped",
            actor.batches_read, actor.batches_skipped
        );
    }
    if actor.kind != "wheel" {
        return String::new();
    }
    format!(
        ": {} wake-ups, {} overflow up, {} cascade down",
        actor.wake_ups, actor.overflow_up, actor.cascade_down
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_objects_have_these_fields() {
        let mut status = StatusOk {
            version: "0.1.0".to_owned(),
            uptime_ms: 61_005,
            ready: true,
            ..StatusOk::default()
        };
        assert_eq!(
            serde_json::to_string(&BrokerLine::new(&status, "c1")).unwrap(),
            r#"{"version":"0.1.0","uptime_ms":61005,"connections":0,"log_bytes":0,"segments":0,"bytes_in_flight":0,"sealed":null,"ready":true,"cluster":"c1","reads":0,"read_ahead_bytes":0,"read_ahead_hits":0,"read_ahead_misses":0}"#
        );
        assert!(text(&status, "c1").starts_with("waterwheel 0.1.0, up 1m 1s, ready\n"));
        status.sealed = Some("a write failed".to_owned());
        assert!(text(&status, "c1").contains("SEALED, reads only: a write failed"));
        let actor = ActorInfo {
            kind: "partition".to_owned(),
            ..ActorInfo::default()
        };
        assert_eq!(
            serde_json::to_string(&actor).unwrap(),
            r#"{"kind":"partition","id":0,"name":"","mailbox_capacity":0,"mailbox_depth":0,"handled":0,"restarts":0,"rows":0}"#
        );
    }
}

//! `waterwheel status`: how the broker is.
//!
//! With `--json` one object: `version`, `uptime_ms`, `connections`, `log_bytes`, `segments`,
//! `bytes_in_flight`, `sealed` (why, or null), `ready`; with `--actors` then one object per actor:
//! `kind`, `id`, `name`, `mailbox_capacity`, `mailbox_depth`, `handled`, `restarts`, `rows`; of levels of
//! the timing wheel also `wake_ups`, `overflow_up` and `cascade_down`, where they are not zero.

use serde::Serialize;

use super::connect::Connect;
use super::exit::{CliError, Outcome};
use super::{print, print_json};
use crate::client::{ActorInfo, StatusOk};

/// Show how the broker is. Exit code 1 if its log is sealed.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// One line per actor too.
    #[arg(long)]
    actors: bool,
    /// Print JSON, one object per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(arguments: Arguments) -> Result<Outcome, CliError> {
    let client = arguments.connect.client().await?;
    let status = client.status(arguments.actors).await?;
    if arguments.json {
        print_json(&BrokerLine::from(&status.broker))?;
        for actor in &status.actors {
            print_json(actor)?;
        }
    } else {
        print(text(&status.broker))?;
        if arguments.actors {
            print(format_args!(
                "{:<12} {:>8} {:>8} {:>6} {:>12} {:>8} {:>8}  name",
                "actor", "id", "mailbox", "depth", "handled", "restarts", "rows"
            ))?;
        }
        for actor in &status.actors {
            print(actor_text(actor))?;
        }
    }
    Ok(match status.broker.sealed {
        None => Outcome::Done,
        Some(_) => Outcome::No,
    })
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
}

impl<'a> From<&'a StatusOk> for BrokerLine<'a> {
    fn from(status: &'a StatusOk) -> Self {
        Self {
            version: &status.version,
            uptime_ms: status.uptime_ms,
            connections: status.connections,
            log_bytes: status.log_bytes,
            segments: status.segments,
            bytes_in_flight: status.bytes_in_flight,
            sealed: status.sealed.as_deref(),
            ready: status.ready,
        }
    }
}

fn text(status: &StatusOk) -> String {
    let state = match (&status.sealed, status.ready) {
        (Some(why), _) => format!("SEALED, reads only: {why}; restart the broker"),
        (None, true) => "ready".to_owned(),
        (None, false) => "not ready".to_owned(),
    };
    format!(
        "waterwheel {}, up {}.{:03} s, {state}\n{} connections, {} bytes in flight, log of {} bytes in {} segments",
        status.version,
        status.uptime_ms / 1000,
        status.uptime_ms % 1000,
        status.connections,
        status.bytes_in_flight,
        status.log_bytes,
        status.segments,
    )
}

fn actor_text(actor: &ActorInfo) -> String {
    let wheel = if actor.kind == "wheel" {
        format!(
            ": {} wake-ups, {} overflow up, {} cascade down",
            actor.wake_ups, actor.overflow_up, actor.cascade_down
        )
    } else {
        String::new()
    };
    format!(
        "{:<12} {:>8} {:>8} {:>6} {:>12} {:>8} {:>8}  {}{wheel}",
        actor.kind,
        actor.id,
        actor.mailbox_capacity,
        actor.mailbox_depth,
        actor.handled,
        actor.restarts,
        actor.rows,
        actor.name,
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
            serde_json::to_string(&BrokerLine::from(&status)).unwrap(),
            r#"{"version":"0.1.0","uptime_ms":61005,"connections":0,"log_bytes":0,"segments":0,"bytes_in_flight":0,"sealed":null,"ready":true}"#
        );
        assert!(text(&status).starts_with("waterwheel 0.1.0, up 61.005 s, ready\n"));
        status.sealed = Some("a write failed".to_owned());
        assert!(text(&status).contains("SEALED, reads only: a write failed"));
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

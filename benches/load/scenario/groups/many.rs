//! Many groups: ten that read the same, ten thousand that wait.

use std::time::Duration;

use waterwheel::client::{Mode, TopicConfig};

use super::places::stirred;
use super::{LOOK, Seen, filled, keyed, make, number};
use crate::load::broker::{Broker, Home};
use crate::load::clients::{self, PATIENCE};
use crate::load::crew::{Line, muster};
use crate::load::records::VALUE_BYTES;
use crate::load::report::Samples;
use crate::load::{Bench, Outcome};

const TOPIC: &str = "many";
/// Groups that start together.
const TOGETHER: usize = 10;
/// Idle members of one connection.
const PER_CONNECTION: usize = 200;

/// Ten groups over one backlog: what the kernel read for the broker, over the values there are.
pub(crate) fn together(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let count = bench.size(500_000, 20_000);
    samples.note("1 kB records, 4 partitions, read after a restart; read bytes: /proc/PID/io of the broker, direct reads");
    let mut broker = Broker::fresh(bench, "together")?;
    filled(&broker, TOPIC, TopicConfig::new(4), count, |n| {
        keyed(n, 1_000, VALUE_BYTES)
    })?;
    for run in 0..bench.runs {
        for (groups, figure) in [
            (1, "kernel read bytes over the data, one group"),
            (TOGETHER, "kernel read bytes over the data"),
        ] {
            broker = broker.stop()?.start()?;
            let before = broker.usage()?;
            let repeats = read_together(broker.home(), run, groups, count)?;
            if repeats > 0 {
                samples.fault("a group was given records twice");
            }
            let read = broker.usage()?.since(before).read_bytes as f64;
            let data = count as f64 * VALUE_BYTES as f64;
            samples.add(figure, read / data, "");
        }
    }
    Ok(())
}

/// Each group takes everything; says how often something came twice.
fn read_together(home: &Home, run: usize, groups: usize, count: u64) -> Outcome<u64> {
    let line = Line::of(groups);
    let repeats = muster(groups, PATIENCE * 10, |group| {
        let line = line.clone();
        async move {
            let client = clients::connect(home).await?;
            let group = format!("{groups}-together-{run}-{group}");
            let consumer = client.consumer(&group).topic(TOPIC).mode(Mode::Exclusive);
            line.wait().await;
            let mut consumer = consumer.open().await?;
            let seen = Seen::of(count)?;
            while seen.distinct() < count {
                let batch = consumer.next_batch(512, LOOK).await?;
                for run in batch.chunk_by(|a, b| a.partition == b.partition) {
                    for delivery in run {
                        seen.note(number(delivery)?)?;
                    }
                    drop(run.last().map(|last| consumer.ack_cumulative(last)));
                }
            }
            consumer.close().await;
            Ok(seen.repeats())
        }
    })?;
    Ok(repeats.into_iter().sum())
}

/// Ten thousand groups with a member each and nothing to consume.
pub(crate) fn idle(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let connections = bench.size(10_000, 400) / PER_CONNECTION;
    samples.note("50 connections with 200 members each, every member the only one of its group; wake-ups: messages of group actors and wake-ups of the wheel");
    for run in 0..bench.runs {
        let broker = Broker::fresh(bench, &format!("idle-groups-{run}"))?;
        let home = broker.home();
        make(home, TOPIC, TopicConfig::new(1))?;
        let done = Line::of(connections);
        let found = muster(connections, PATIENCE * 20, |connection| {
            let (done, broker) = (done.clone(), &broker);
            async move {
                let client = clients::connect(home).await?;
                let mut members = Vec::new();
                for member in 0..PER_CONNECTION {
                    let group = format!("idle-{connection}-{member}");
                    members.push(client.consumer(&group).topic(TOPIC).open().await?);
                }
                done.wait().await;
                let measured = match connection {
                    0 => Some(watch(bench, broker).await?),
                    _ => None,
                };
                done.wait().await;
                Ok(measured)
            }
        })?;
        let (resident, stirred, cpu) = found
            .into_iter()
            .flatten()
            .next()
            .ok_or("nobody measured")?;
        samples.add("RSS, 10 000 idle groups", resident, "MB");
        samples.add("wake-ups of 10 000 idle groups", stirred, "");
        samples.add("CPU, 10 000 idle groups", cpu, "% core");
    }
    Ok(())
}

/// RSS in MB, messages and wake-ups, CPU in percent of a core.
async fn watch(bench: &Bench, broker: &Broker) -> Outcome<(f64, f64, f64)> {
    let settle = bench.size(Duration::from_secs(20), Duration::from_millis(500));
    let span = bench.size(Duration::from_secs(60), Duration::from_secs(1));
    tokio::time::sleep(settle).await;
    let resident = broker.resident_bytes()? as f64 / 1e6;
    let watcher = clients::connect(broker.home()).await?;
    let before = stirred(&watcher).await?;
    tokio::time::sleep(settle / 10).await;
    let used = broker.usage()?;
    tokio::time::sleep(span).await;
    let used = broker.usage()?.since(used);
    let stirred = stirred(&watcher).await?.saturating_sub(before);
    Ok((
        resident,
        stirred as f64,
        used.cpu_s / span.as_secs_f64() * 100.0,
    ))
}

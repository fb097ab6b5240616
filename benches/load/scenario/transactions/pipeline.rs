//! Consume, transform, produce, exactly once: workers in processes of their own, killed at random like the broker
//! they work for; what comes out beside what one loop makes of the same records.

#[path = "../../../../tests/shared/squares.rs"]
mod squares;

use std::thread::sleep;
use std::time::{Duration, Instant};

use waterwheel::client::Client;

use crate::load::broker::{Broker, Home};
use crate::load::clients::{self, PATIENCE};
use crate::load::crew::bounded;
use crate::load::payload::Noise;
use crate::load::process::{Process, READY_WITHIN};
use crate::load::quic::server::runtime;
use crate::load::report::Samples;
use crate::load::{Bench, Outcome, role};

const WORKERS: usize = 2;
/// Between two looks at how far the workers are.
const LOOK: Duration = Duration::from_millis(5);
/// What a run at full size may take: the broker starts some twenty times.
const WITHIN: Duration = Duration::from_secs(400);

/// What was killed on the way.
#[derive(Debug, Clone, Copy, Default)]
struct Kills {
    broker: u32,
    workers: u32,
}

/// Kills until all results are there, and audits them.
pub(crate) fn pipeline(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let records = bench.size(1_000_000, 4_000);
    samples.note("2 workers, transactions of up to 400 records with what they were made of; killed about every 25 000 records: the broker or a worker; a third of the broker's starts without its views");
    for run in 0..bench.runs {
        let broker = Broker::fresh(bench, &format!("pipeline-{run}"))?;
        let home = broker.home().clone();
        bounded(PATIENCE * 5, async {
            squares::fill(&clients::connect(&home).await?, records).await
        })?;
        let begun = Instant::now();
        let mut noise = Noise::new(run as u64 + 1);
        // So many results, at most, between two kills.
        let stretch = bench.size(50_000, 1_500);
        let (broker, kills) = torment(broker, records, stretch, &mut noise)?;
        let took = begun.elapsed();
        let (audit, left) = bounded(PATIENCE * 5, async {
            let client = clients::connect(&home).await?;
            let group = client.describe_group(squares::GROUP).await?;
            Ok((squares::audit(&client, records).await?, group.lag(None)))
        })?;
        drop(broker);
        samples.add("pipeline: results lost", audit.lost as f64, "");
        samples.add("pipeline: results duplicated", audit.duplicated as f64, "");
        let equal = audit.is_equal() && left == 0;
        samples.add(
            "pipeline: output equal to the sequential result",
            f64::from(u8::from(equal)),
            "",
        );
        if !equal {
            samples.fault(format!("{audit:?}, {left} records not consumed"));
        }
        samples.add("pipeline: kills of the broker", kills.broker.into(), "");
        samples.add("pipeline: kills of workers", kills.workers.into(), "");
        samples.add(
            "pipeline: records a second, kills included",
            records as f64 / took.as_secs_f64(),
            "/s",
        );
    }
    Ok(())
}

/// Kills the broker and its workers in turn until all results are there; the broker that is left.
fn torment(
    mut broker: Broker,
    records: u64,
    stretch: u64,
    noise: &mut Noise,
) -> Outcome<(Broker, Kills)> {
    let home = broker.home().clone();
    let runtime = runtime()?;
    let client = runtime.block_on(clients::connect(&home))?;
    let begun = Instant::now();
    let look = |until: u64| -> Outcome<u64> {
        loop {
            let seen = runtime.block_on(seen(&client));
            if seen >= until {
                return Ok(seen);
            }
            if begun.elapsed() > WITHIN {
                return Err(format!("{seen} results of {records} after {WITHIN:?}").into());
            }
            sleep(LOOK);
        }
    };
    let start = |index: usize| worker(&home, index);
    let mut workers = (0..WORKERS).map(start).collect::<Outcome<Vec<Process>>>()?;
    let (mut kills, mut done) = (Kills::default(), 0);
    while done < records {
        done = look((done + 1 + noise.word() % stretch).min(records))?;
        // And a little later, so that it is anywhere in the next transaction.
        sleep(Duration::from_micros(noise.word() % 3_000));
        let index = usize::try_from(noise.word() % WORKERS as u64)?;
        match noise.word() % 6 {
            views @ 0..3 => {
                let killed = broker.kill()?;
                if views == 0 {
                    killed.distrust_views()?;
                }
                broker = killed.start()?;
                kills.broker += 1;
            }
            _ => {
                workers.remove(index).kill()?;
                workers.insert(index, start(index)?);
                kills.workers += 1;
            }
        }
    }
    // What is made twice after the last kill would show as more.
    look(records)?;
    Ok((broker, kills))
}

/// Results so far; while the broker is away, as many as it takes to ask again.
async fn seen(client: &Client) -> u64 {
    squares::results(client).await.unwrap_or(0)
}

fn worker(home: &Home, index: usize) -> Outcome<Process> {
    let mut command = role::command(role::SQUARE)?;
    command.arg(&home.data).arg(home.address.to_string());
    command.arg(index.to_string());
    Process::start(command, READY_WITHIN)
}

/// The other end of [`worker`]: whatever goes wrong, it begins anew.
pub(crate) fn work_until_killed(home: &Home, index: usize) -> Outcome<()> {
    role::announce(home.address)?;
    bounded(WITHIN * 2, async {
        loop {
            let worked = async {
                let client = clients::connect(home).await?;
                squares::work(&client, index).await
            };
            // A broker that is killed fails what is under way.
            let Err(_) = worked.await;
        }
    })
}

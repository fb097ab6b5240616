//! Starting again: after a kill, without views, with ten thousand partitions, under a hundred clients.

use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use waterwheel::client::{Ack, Record};

use super::idle::SETTLED;
use crate::load::broker::{Broker, Home};
use crate::load::clients::{self, PATIENCE, Until};
use crate::load::crew::{Line, muster};
use crate::load::latency::Latencies;
use crate::load::records::{Check, Pool, VALUE_BYTES};
use crate::load::report::Samples;
use crate::load::{Bench, Outcome};

/// A start may take this long before it is given up.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// Partitions of the wide topic.
const PARTITIONS: u64 = 10_000;
/// Producers that fill the log.
const STREAMS: usize = 8;
/// What is in the log before it is killed.
const LOG_BYTES: u64 = 10_000_000_000;
/// Clients of the storm.
const CLIENTS: usize = 100;
const MEGABYTE: f64 = 1e6;

/// Starts the broker and waits until it serves: seconds from `exec`.
fn seconds_to_serving(home: Home, topic: &str) -> Outcome<(Broker, f64)> {
    let begun = Instant::now();
    let broker = Home {
        ready_within: READY_WITHIN,
        ..home
    }
    .start()?;
    clients::await_serving(broker.home(), topic)?;
    Ok((broker, begun.elapsed().as_secs_f64()))
}

/// 10 GB in the log: serving again after `kill -9`, and with the views gone.
pub(crate) fn recover(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let mut broker = Broker::fresh(bench, "recover")?;
    let pool = Pool::new(VALUE_BYTES);
    // One partition more: what asks whether the broker serves must not disturb the check.
    clients::create_topic(broker.home(), "filled", u32::try_from(STREAMS + 1)?)?;
    let each = bench.size(LOG_BYTES, 40_000_000) / VALUE_BYTES as u64 / STREAMS as u64;
    let poured = clients::pour(broker.home(), "filled", &pool, STREAMS, Until::Sent(each))?;
    samples.note(
        "serving = a durable acknowledgement and the first read from the oldest segment, from exec",
    );
    samples.add("payload in the log", poured.gigabytes(), "GB");
    for _ in 0..bench.runs {
        let (again, seconds) = seconds_to_serving(broker.kill()?, "filled")?;
        samples.add("serving after kill -9", seconds, "s");
        let home = again.kill()?;
        home.distrust_views()?;
        let (again, seconds) = seconds_to_serving(home, "filled")?;
        samples.add("serving after kill -9 without views", seconds, "s");
        samples.add(
            "data directory",
            again.home().bytes()? as f64 / MEGABYTE,
            "MB",
        );
        broker = again;
    }
    clients::read_back(broker.home(), "filled", &pool, &poured.sent)?;
    Ok(())
}

/// A topic of 10 000 partitions, each written once: memory, and a restart.
pub(crate) fn wide_topic(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let partitions = bench.size(PARTITIONS, 200);
    let pool = Pool::new(VALUE_BYTES);
    samples.note("RSS = VmRSS after 30 s; restart = SIGTERM, exec to serving");
    for run in 0..bench.runs {
        let broker = Broker::fresh(bench, &format!("wide-{run}"))?;
        clients::create_topic(broker.home(), "wide", u32::try_from(partitions)?)?;
        write_each_once(&broker, partitions, &pool)?;
        sleep(bench.size(SETTLED, Duration::from_millis(200)));
        samples.add(
            "RSS, each partition written once",
            broker.resident_bytes()? as f64 / MEGABYTE,
            "MB",
        );
        samples.add(
            "data directory",
            broker.home().bytes()? as f64 / MEGABYTE,
            "MB",
        );
        let (broker, seconds) = seconds_to_serving(broker.stop()?, "wide")?;
        samples.add("restart", seconds, "s");
        read_each_once(&broker, partitions, &pool)?;
        broker.stop()?;
    }
    Ok(())
}

fn write_each_once(broker: &Broker, partitions: u64, pool: &Pool) -> Outcome<()> {
    muster(1, PATIENCE * 2, |_| async {
        let client = clients::connect(broker.home()).await?;
        let producer = client
            .producer("wide")
            .ack(Ack::Durable)
            .linger(Duration::ZERO)
            .open()
            .await?;
        for partition in 0..partitions {
            let record = Record::new(pool.value(partition, 0));
            drop(
                producer
                    .enqueue_to(u32::try_from(partition)?, record)
                    .await?,
            );
        }
        // Tells of every record's failure.
        Ok(producer.flush().await?)
    })?;
    Ok(())
}

fn read_each_once(broker: &Broker, partitions: u64, pool: &Pool) -> Outcome<()> {
    let readers = STREAMS as u64;
    muster(STREAMS, PATIENCE * 2, |first| async move {
        let client = clients::connect(broker.home()).await?;
        let mut partition = first as u64;
        while partition < partitions {
            let mut check = Check::new(pool, partition);
            let mut reader =
                clients::open_reader(&client, "wide", u32::try_from(partition)?).await?;
            let taken = clients::take_some(&mut reader, &mut check, 1, PATIENCE).await?;
            if taken != 1 {
                return Err(format!("partition {partition} gave {taken} records").into());
            }
            partition += readers;
        }
        Ok(())
    })?;
    Ok(())
}

/// 100 clients with one record in flight each, `kill -9`, restart: from "listening" to each client's
/// first new acknowledgement.
pub(crate) fn storm(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let pool = Pool::new(VALUE_BYTES);
    let clients = bench.size(CLIENTS, 10);
    samples.note("100 clients = 100 connections, one durable record in flight each");
    for run in 0..bench.runs {
        let broker = Broker::fresh(bench, &format!("storm-{run}"))?;
        clients::create_topic(broker.home(), "storm", u32::try_from(clients)?)?;
        let (broker, sent, first) = weather(bench, broker, clients, &pool)?;
        samples.add(
            "listening to first new ack, p50",
            first.p50_us() / 1e3,
            "ms",
        );
        samples.add(
            "listening to first new ack, p99",
            first.p99_us() / 1e3,
            "ms",
        );
        clients::read_back(broker.home(), "storm", &pool, &sent)?;
    }
    Ok(())
}

/// What the clients of a storm are told.
#[derive(Debug, Clone, Copy)]
enum Weather {
    Calm,
    /// The broker listens again, since then.
    Back(Instant),
    Over,
}

fn weather(
    bench: &Bench,
    broker: Broker,
    clients: usize,
    pool: &Pool,
) -> Outcome<(Broker, Vec<u64>, Latencies)> {
    let calm = bench.size(Duration::from_secs(3), Duration::from_millis(300));
    let home = broker.home().clone();
    let line = Line::of(clients);
    let (tell, told) = watch::channel(Weather::Calm);
    scope(|scope| {
        let (home, line, told) = (&home, &line, &told);
        let crew = scope.spawn(move || {
            muster(clients, PATIENCE * 3, |stream| {
                let (line, told) = (line.clone(), told.clone());
                async move { sit_out(home, pool, stream as u64, &line, &told).await }
            })
        });
        sleep(calm * 2);
        let again = broker.kill().and_then(|home| {
            Home {
                ready_within: READY_WITHIN,
                ..home
            }
            .start()
        });
        if again.is_ok() {
            tell.send_replace(Weather::Back(Instant::now()));
            sleep(calm * 2);
        }
        tell.send_replace(Weather::Over);
        let members = crew
            .join()
            .map_err(|_| "a client of the storm panicked")??;
        let again = again?;
        let mut latencies = Latencies::new()?;
        for (_, first) in &members {
            latencies.record(first.ok_or("a client got no acknowledgement after the restart")?);
        }
        Ok((
            again,
            members.into_iter().map(|(sent, _)| sent).collect(),
            latencies,
        ))
    })
}

/// One client: sends one record after the other until it is over; says how many, and how long after the
/// broker listened again the first acknowledgement came.
async fn sit_out(
    home: &Home,
    pool: &Pool,
    stream: u64,
    line: &Line,
    told: &watch::Receiver<Weather>,
) -> Outcome<(u64, Option<Duration>)> {
    let client = clients::connect(home).await?;
    let producer = client
        .producer("storm")
        .ack(Ack::Durable)
        .linger(Duration::ZERO)
        .open()
        .await?;
    line.wait().await;
    let (mut sent, mut first) = (0, None);
    loop {
        let record = Record::new(pool.value(stream, sent));
        let receipt = producer.send_to(u32::try_from(stream)?, record).await?;
        if receipt.offset != Some(sent) {
            return Err(
                format!("record {sent} of stream {stream} got the receipt {receipt:?}").into(),
            );
        }
        sent += 1;
        match *told.borrow() {
            Weather::Calm => {}
            Weather::Back(since) => {
                first.get_or_insert_with(|| since.elapsed());
            }
            Weather::Over => return Ok((sent, first)),
        }
    }
}

//! A member that takes what it may have and then nothing any more: what it costs the broker and the others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use waterwheel::client::{Ack, Mode, Record, TopicConfig};

use super::{LOOK, fill, keyed, make, number};
use crate::load::broker::{Broker, Home};
use crate::load::clients::{self, PATIENCE};
use crate::load::crew::{bounded, muster};
use crate::load::latency::Latencies;
use crate::load::records::VALUE_BYTES;
use crate::load::report::Samples;
use crate::load::scenario::timers::{now_us, value};
use crate::load::{Bench, Outcome};

const TOPIC: &str = "stalled";
const GROUP: &str = "g";
const PARTITIONS: u32 = 4;
/// The members that go on.
const MEMBERS: usize = 3;
/// Records sent together, every [`BEAT`]: 2 000 a second.
const TOGETHER: u32 = 4;
const BEAT: Duration = Duration::from_millis(2);
/// What the stalled member may hold.
const PREFETCH_BYTES: u64 = 8 << 20;
const PREFETCH_RECORDS: u32 = 10_000;
/// Pairs of runs: the median of five is asked for.
const PAIRS: usize = 5;

/// Pairs of runs, without and with it.
pub(crate) fn stalled(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    samples.note("shared, 2 000 records of 1 kB a second, from planned to in the consumer's hands; the stalled one holds 8 MiB or 10 000 records, leased for an hour");
    for pair in 0..bench.size(bench.runs.max(PAIRS), 1) {
        let broker = Broker::fresh(bench, &format!("stalled-{pair}"))?;
        let home = broker.home();
        make(home, TOPIC, TopicConfig::new(PARTITIONS))?;
        // The cache of recent batches is full before anything is compared.
        let warm = bench.size(120_000, 1_000);
        make(home, "warm", TopicConfig::new(PARTITIONS))?;
        fill(home, "warm", 0..warm, |n| keyed(n, 100, VALUE_BYTES))?;
        let span = bench.size(Duration::from_secs(60), Duration::from_millis(800));
        // The group's first records are nobody's measure.
        load(home, bench.size(Duration::from_secs(5), span / 4))?;
        let without = load(home, span)?;
        let before = broker.resident_bytes()?;
        let with = beside_a_stalled_one(home, span)?;
        let grown = broker.resident_bytes()?.saturating_sub(before) as f64;
        samples.add("without: p50", without.p50_us(), "us");
        samples.add("without: p99", without.p99_us(), "us");
        samples.add("beside a stalled one: p50", with.p50_us(), "us");
        samples.add("beside a stalled one: p99", with.p99_us(), "us");
        samples.add(
            "p99 of the others over without",
            with.p99_us() / without.p99_us(),
            "",
        );
        samples.add("RSS growth", grown / 1e6, "MB");
        samples.add(
            "RSS growth beyond the stalled prefetch",
            (grown - PREFETCH_BYTES as f64).max(0.0) / 1e6,
            "MB",
        );
    }
    Ok(())
}

/// The same load beside a member that takes its fill and stops.
fn beside_a_stalled_one(home: &Home, span: Duration) -> Outcome<Latencies> {
    let over = AtomicBool::new(false);
    scope(|scope| {
        let stalls = scope.spawn(|| {
            bounded(span + PATIENCE, async {
                let client = clients::connect(home).await?;
                let consumer = client.consumer(GROUP).topic(TOPIC).mode(Mode::Shared);
                let consumer = consumer
                    .prefetch(PREFETCH_BYTES, PREFETCH_RECORDS)
                    .open()
                    .await?;
                while !over.load(Ordering::Relaxed) {
                    tokio::time::sleep(LOOK).await;
                }
                drop(consumer);
                Ok(())
            })
        });
        let found = load(home, span);
        over.store(true, Ordering::Relaxed);
        stalls.join().map_err(|_| "the stalled member panicked")??;
        found
    })
}

/// Open loop for `span`, and three members that take what comes at its first attempt.
fn load(home: &Home, span: Duration) -> Outcome<Latencies> {
    let over = AtomicBool::new(false);
    let over = &over;
    scope(|scope| {
        let producing = scope.spawn(move || {
            let sent = produce(home, span);
            // What is on its way still counts.
            sleep(LOOK * 2);
            over.store(true, Ordering::Relaxed);
            sent
        });
        let taken = muster(MEMBERS, span + PATIENCE, |_| async {
            let client = clients::connect(home).await?;
            let consumer = client.consumer(GROUP).topic(TOPIC).mode(Mode::Shared);
            let consumer = consumer.lease(Duration::from_secs(3_600));
            let mut consumer = consumer.open().await?;
            let mut latencies = Latencies::new()?;
            while !over.load(Ordering::Relaxed) {
                let batch = consumer.next_batch(256, LOOK).await?;
                let now = now_us().unsigned_abs();
                for delivery in &batch {
                    if delivery.attempt == 1 {
                        let waited = now.saturating_sub(number(delivery)?);
                        latencies.record(Duration::from_micros(waited));
                    }
                    drop(consumer.ack(delivery));
                }
            }
            consumer.close().await;
            Ok(latencies)
        });
        producing.join().map_err(|_| "the producer panicked")??;
        let mut all = Latencies::new()?;
        taken?.iter().try_for_each(|one| all.merge(one))?;
        Ok(all)
    })
}

/// Every value begins with the moment it was planned for.
fn produce(home: &Home, span: Duration) -> Outcome<()> {
    bounded(span + PATIENCE, async {
        let client = clients::connect(home).await?;
        let producer = client
            .producer(TOPIC)
            .ack(Ack::Durable)
            .linger(Duration::ZERO)
            .open()
            .await?;
        let (begun, begun_us) = (Instant::now(), now_us());
        for beat in 0.. {
            let due = BEAT * beat;
            if due >= span {
                break;
            }
            tokio::time::sleep_until((begun + due).into()).await;
            let planned = begun_us + i64::try_from(due.as_micros())?;
            for n in 0..TOGETHER {
                let record = Record::new(value(planned.unsigned_abs(), VALUE_BYTES));
                drop(producer.enqueue_to(n % PARTITIONS, record).await?);
            }
        }
        producer.flush().await?;
        Ok(())
    })
}

//! Transactions: how many a second, what a commit costs beside a durable send, what many records in one
//! cost beside plain ones.
//!
//! Every transaction is counted where it is read back: all of its records, once, or the run fails.

pub(crate) mod pending;
pub(crate) mod pipeline;

use std::time::{Duration, Instant};

use waterwheel::client::{Ack, Record};

use crate::load::broker::{Broker, Home};
use crate::load::clients::{self, PATIENCE};
use crate::load::crew::{Line, muster};
use crate::load::latency::Latencies;
use crate::load::payload::Noise;
use crate::load::report::Samples;
use crate::load::{Bench, Outcome};

const TOPIC: &str = "transactions";
const PARTITIONS: u32 = 8;
const PRODUCERS: usize = 64;
const VALUE_BYTES: usize = 1_000;
/// Records of a wide transaction.
const WIDE: u64 = 100;
fn fresh(bench: &Bench, name: &str) -> Outcome<Broker> {
    let broker = Broker::fresh(bench, name)?;
    clients::create_topic(broker.home(), TOPIC, PARTITIONS)?;
    Ok(broker)
}

fn record(noise: &mut Noise) -> Record {
    Record::new(noise.bytes(VALUE_BYTES))
}

/// Records in the topic, all partitions.
fn count(home: &Home) -> Outcome<u64> {
    let counted = muster(1, PATIENCE * 5, |_| async {
        let client = clients::connect(home).await?;
        let topic = client.describe_topic(TOPIC).await?;
        let offsets = topic.partitions.iter().map(|one| one.high_watermark.0);
        Ok(offsets.sum::<u64>())
    })?;
    Ok(counted.into_iter().sum())
}

/// What one producer saw.
struct Seen {
    done: u64,
    /// From the first call to the decision.
    whole: Latencies,
    /// The commit call alone.
    commit: Latencies,
}

/// Latencies and how many, of all.
fn gather(members: Vec<Seen>) -> Outcome<Seen> {
    let mut all = Seen {
        done: 0,
        whole: Latencies::new()?,
        commit: Latencies::new()?,
    };
    for member in members {
        all.done += member.done;
        all.whole.merge(&member.whole)?;
        all.commit.merge(&member.commit)?;
    }
    Ok(all)
}

/// One durable record in flight per producer, for as long.
fn singles(home: &Home, span: Duration) -> Outcome<Seen> {
    let line = Line::of(PRODUCERS);
    let members = muster(PRODUCERS, span + PATIENCE, |member| {
        let line = line.clone();
        async move {
            let client = clients::connect(home).await?;
            let producer = client
                .producer(TOPIC)
                .ack(Ack::Durable)
                .linger(Duration::ZERO)
                .open()
                .await?;
            let mut noise = Noise::new(member as u64 + 1);
            let partition = u32::try_from(member)? % PARTITIONS;
            let (mut done, mut whole) = (0, Latencies::new()?);
            line.wait().await;
            let begun = Instant::now();
            while begun.elapsed() < span {
                let record = record(&mut noise);
                let sent = Instant::now();
                producer.send_to(partition, record).await?;
                whole.record(sent.elapsed());
                done += 1;
            }
            Ok(Seen {
                done,
                whole,
                commit: Latencies::new()?,
            })
        }
    })?;
    gather(members)
}

/// One transaction of one record in flight per producer, for as long.
fn small_ones(home: &Home, span: Duration) -> Outcome<Seen> {
    let line = Line::of(PRODUCERS);
    let members = muster(PRODUCERS, span + PATIENCE, |member| {
        let line = line.clone();
        async move {
            let client = clients::connect(home).await?;
            let id = format!("bench-{member}");
            let producer = client.transactional_producer(&id).open().await?;
            let mut noise = Noise::new(member as u64 + 1);
            let partition = u32::try_from(member)? % PARTITIONS;
            let (mut done, mut whole, mut commit) = (0, Latencies::new()?, Latencies::new()?);
            line.wait().await;
            let begun = Instant::now();
            while begun.elapsed() < span {
                let record = record(&mut noise);
                let started = Instant::now();
                let mut transaction = producer.transaction();
                transaction.send_to(TOPIC, partition, record).await?;
                transaction.flush().await?;
                let flushed = Instant::now();
                transaction.commit().await?;
                commit.record(flushed.elapsed());
                whole.record(started.elapsed());
                done += 1;
            }
            Ok(Seen {
                done,
                whole,
                commit,
            })
        }
    })?;
    gather(members)
}

/// 64 producers, one transaction of 1 kB each in flight; beside it one durable record each in flight.
pub(crate) fn small(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    samples.note("64 producers, 8 partitions, 1 kB, one in flight each, durable");
    for run in 0..bench.runs {
        let broker = fresh(bench, &format!("transactions-{run}"))?;
        let plain = singles(broker.home(), bench.span())?;
        let seen = small_ones(broker.home(), bench.span())?;
        let found = count(broker.home())?;
        bench.defend(
            found == plain.done + seen.done,
            "committed records are missing, or there are others",
            samples,
        );
        let rate = seen.done as f64 / bench.span().as_secs_f64();
        samples.add("durable commits a second", rate, "/s");
        samples.add("one durable record, p50", plain.whole.p50_us(), "us");
        samples.add("commit, p50", seen.commit.p50_us(), "us");
        samples.add("commit p99", seen.commit.p99_us(), "us");
        let single = plain.whole.p50_us().max(1.0);
        samples.add(
            "commit over a durable record, p50",
            seen.commit.p50_us() / single,
            "",
        );
        samples.add(
            "begin to committed over a durable record, p50",
            seen.whole.p50_us() / single,
            "",
        );
    }
    Ok(())
}

/// Transactions of 100 x 1 kB over 8 partitions beside the same records sent plainly in as large batches:
/// bytes written and CPU of the broker.
pub(crate) fn wide(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    const STREAMS: usize = 4;
    let each = bench.size(1_000_u64, 20);
    samples.note("4 producers, 100 records of 1 kB over 8 partitions at a time, durable");
    for run in 0..bench.runs {
        let broker = fresh(bench, &format!("wide-{run}"))?;
        let before = broker.settled_usage()?;
        muster(STREAMS, PATIENCE * 5, |member| {
            let home = broker.home();
            async move {
                let client = clients::connect(home).await?;
                let producer = client.producer(TOPIC).ack(Ack::Durable).open().await?;
                let mut noise = Noise::new(member as u64 + 1);
                for _ in 0..each {
                    for n in 0..WIDE {
                        let record = record(&mut noise).key(n.to_string());
                        drop(producer.enqueue(record).await?);
                    }
                    producer.flush().await?;
                }
                Ok(())
            }
        })?;
        let plain = broker.settled_usage()?.since(before);
        let before = broker.settled_usage()?;
        muster(STREAMS, PATIENCE * 5, |member| {
            let home = broker.home();
            async move {
                let client = clients::connect(home).await?;
                let id = format!("wide-{member}");
                let producer = client.transactional_producer(&id).open().await?;
                let mut noise = Noise::new(member as u64 + 1);
                for _ in 0..each {
                    let mut transaction = producer.transaction();
                    for n in 0..WIDE {
                        let record = record(&mut noise).key(n.to_string());
                        transaction.send(TOPIC, record).await?;
                    }
                    transaction.commit().await?;
                }
                Ok(())
            }
        })?;
        let transactional = broker.settled_usage()?.since(before);
        let found = count(broker.home())?;
        bench.defend(
            found == 2 * STREAMS as u64 * each * WIDE,
            "committed records are missing, or there are others",
            samples,
        );
        samples.add(
            "bytes written over plain sends",
            transactional.written_bytes as f64 / (plain.written_bytes as f64).max(1.0),
            "",
        );
        samples.add(
            "broker CPU over plain sends",
            transactional.cpu_s / plain.cpu_s.max(1e-9),
            "",
        );
    }
    Ok(())
}

//! Which records come at all, and which first: filters by tag, priority levels.

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use waterwheel::client::{Ack, Client, Consumer, Mode, Producer, Record, TopicConfig};

use super::{LOOK, Seen, make, number};
use crate::load::broker::{Broker, Home};
use crate::load::clients::{self, PATIENCE};
use crate::load::crew::bounded;
use crate::load::latency::Latencies;
use crate::load::report::Samples;
use crate::load::scenario::timers::value;
use crate::load::{Bench, Outcome};

/// One record in so many is wanted.
const ONE_IN: u64 = 100;
/// Producers whose batches are written together.
const PRODUCERS: u64 = 64;
/// Priority levels.
const LEVELS: u8 = 4;

/// Which tag a record of a batch has.
#[derive(Debug, Clone, Copy)]
struct Tags {
    /// As the figure calls it.
    name: &'static str,
    /// Records of a batch.
    batch: u64,
    /// Of the record's batch and of its own number.
    tag: fn(u64, u64) -> u64,
}

const KINDS: [Tags; 3] = [
    Tags {
        name: "a rare tag among common ones",
        batch: 10,
        tag: |_, number| u64::from(!scattered(number).is_multiple_of(ONE_IN)),
    },
    Tags {
        name: "a hundred tags, batch by batch",
        batch: 100,
        tag: |batch, _| scattered(batch) % ONE_IN,
    },
    // Not judged: a summary of 64 bits cannot tell ten tags from a hundred.
    Tags {
        name: "a hundred tags, ten in a batch",
        batch: 10,
        tag: |_, number| scattered(number) % ONE_IN,
    },
];

const fn scattered(number: u64) -> u64 {
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33
}

/// One record in a hundred is wanted: which batches without any were looked into.
pub(crate) fn filter(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    samples.note("100 B values; touched in vain: batches that hold no wanted record and were looked into, in percent of all that hold none, as the group counts them");
    samples
        .note("ten of a hundred tags in each batch is not judged: a batch's summary has 64 bits");
    for run in 0..bench.runs {
        let broker = Broker::fresh(bench, &format!("filter-{run}"))?;
        for (at, kind) in KINDS.iter().enumerate() {
            let batches = bench.size(200_000, 4_000) / kind.batch;
            let topic = format!("tags-{at}");
            let touched = bounded(PATIENCE * 5, async {
                let client = clients::connect(broker.home()).await?;
                selective(&client, &topic, *kind, batches).await
            })?;
            samples.add(format!("{}: touched in vain", kind.name), touched, "%");
        }
    }
    Ok(())
}

async fn selective(client: &Client, topic: &str, kind: Tags, batches: u64) -> Outcome<f64> {
    client.create_topic(topic, TopicConfig::new(1)).await?;
    let sent = (0..PRODUCERS).map(|first| async move {
        let producer = client.producer(topic).ack(Ack::Durable);
        let producer = producer.linger(Duration::ZERO).open().await?;
        let (mut wanted, mut matching) = (0, 0);
        for batch in (first..batches).step_by(usize::try_from(PRODUCERS)?) {
            let numbers = batch * kind.batch..(batch + 1) * kind.batch;
            let tags: Vec<u64> = numbers.clone().map(|n| (kind.tag)(batch, n)).collect();
            let hits = tags.iter().filter(|tag| **tag == 0).count() as u64;
            (wanted, matching) = (wanted + hits, matching + u64::from(hits > 0));
            let records = numbers
                .zip(tags)
                .map(|(number, tag)| Record::new(value(number, 100)).tag(format!("t{tag}")));
            // Awaited, so that the next run is a batch of its own.
            producer.enqueue_run(0, records).await?.wait().await?;
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((wanted, matching))
    });
    let sent = try_join_all(sent).await?;
    let wanted: u64 = sent.iter().map(|(wanted, _)| wanted).sum();
    let matching: u64 = sent.iter().map(|(_, matching)| matching).sum();
    let group = format!("only-{topic}");
    let consumer = client.consumer(&group).topic(topic).filter("t0");
    let mut consumer = consumer.open().await?;
    let seen = Seen::of(batches * kind.batch)?;
    while seen.distinct() < wanted {
        for delivery in consumer.next_batch(256, PATIENCE).await? {
            let is_wanted = delivery.tag.as_ref().map(AsRef::as_ref) == Some("t0");
            if !is_wanted || !seen.note(number(&delivery)?)? {
                return Err(
                    "the filter lets something through that it should not, or twice".into(),
                );
            }
            drop(consumer.ack(&delivery));
        }
    }
    while super::lag(client, &group).await? > 0 {
        tokio::time::sleep(LOOK).await;
    }
    consumer.close().await;
    let status = client.status(true).await?;
    let actor = status.actors.into_iter().find(|actor| actor.name == group);
    let actor = actor.ok_or("the group is not among the actors")?;
    if actor.batches_read + actor.batches_skipped < batches {
        return Err(format!(
            "{} batches counted of {batches}",
            actor.batches_read + actor.batches_skipped
        )
        .into());
    }
    let in_vain = actor.batches_read.saturating_sub(matching) as f64;
    Ok(in_vain / ((batches - matching) as f64).max(1.0) * 100.0)
}

/// A high record while millions of low ones wait; then a backlog at every level.
pub(crate) fn priority(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    samples.note("a member that holds one record at a time; from sent to in its hands, one high record after the other; 100 B values");
    let waiting = bench.size(10_000_000, 20_000);
    let probes = bench.size(500, 20);
    for run in 0..bench.runs {
        let broker = Broker::fresh(bench, &format!("priority-{run}"))?;
        let home = broker.home();
        let mut config = TopicConfig::new(1);
        config.levels = LEVELS;
        make(home, "urgent", config.clone())?;
        let idle = probe(home, probes)?;
        super::fill(home, "urgent", 0..waiting, |n| Record::new(value(n, 100)))?;
        let beside = probe(home, probes)?;
        samples.add("high, idle: p50", idle.p50_us(), "us");
        samples.add("high, idle: p99", idle.p99_us(), "us");
        samples.add("high beside low: p50", beside.p50_us(), "us");
        samples.add("high beside low: p99", beside.p99_us(), "us");
        samples.add(
            "high beside low: latency over idle, p50",
            beside.p50_us() / idle.p50_us(),
            "",
        );
        make(home, "aged", config.clone())?;
        let waited = lowest_waits(home, bench.size(10_000, 2_000))?;
        samples.add(
            "lowest level: longest wait behind higher ones",
            waited.as_secs_f64() * 1e3,
            "ms",
        );
        drop(broker.stop()?);
        // Working all of it off takes longer than ageing lets a level wait: here none ages.
        let home = Home::fresh(bench, &format!("levels-{run}"))?;
        let broker = home.start_with(&[("WATERWHEEL_GROUP_AGEING_MS", "3600000")])?;
        make(broker.home(), "levels", config)?;
        let (inverted, strayed) = backlog(broker.home(), bench.size(2_000, 200))?;
        samples.add(
            "delivered while a higher level was deliverable",
            inverted as f64,
            "",
        );
        samples.add("refused and not back at its level", strayed as f64, "");
    }
    Ok(())
}

/// Sends high records one by one to a member that works off whatever comes, low ones too.
fn probe(home: &Home, probes: u64) -> Outcome<Latencies> {
    bounded(PATIENCE * 3, async {
        let client = clients::connect(home).await?;
        let producer = client.producer("urgent").ack(Ack::Durable);
        let producer = producer.linger(Duration::ZERO).open().await?;
        let consumer = client.consumer("g").topic("urgent").mode(Mode::Shared);
        let mut consumer = consumer.prefetch(1 << 20, 1).open().await?;
        let mut latencies = Latencies::new()?;
        for number in 0..probes {
            let begun = Instant::now();
            let record = Record::new(value(number, 100)).priority(LEVELS - 1);
            drop(producer.enqueue_to(0, record).await?);
            loop {
                let delivery = consumer.next().await.ok_or("the membership ended")??;
                drop(consumer.ack(&delivery));
                if delivery.priority == LEVELS - 1 {
                    latencies.record(begun.elapsed());
                    break;
                }
            }
        }
        consumer.close().await;
        Ok(latencies)
    })
}

/// How long the lowest level waited at most, from one of its records to the next, while there was always
/// something above it.
fn lowest_waits(home: &Home, high: u64) -> Outcome<Duration> {
    const SERVED: u32 = 4;
    const LOW: u64 = 1_000;
    bounded(PATIENCE, async {
        let client = clients::connect(home).await?;
        let producer = client.producer("aged").ack(Ack::Durable).open().await?;
        for number in 0..high {
            drop(send(&producer, number, LEVELS - 1).await?);
        }
        for number in high..high + LOW {
            drop(send(&producer, number, 0).await?);
        }
        producer.flush().await?;
        let consumer = client.consumer("aged").topic("aged").pull();
        let mut consumer = consumer.open().await?;
        let (mut sent, mut served) = (high + LOW, 0);
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        while served < SERVED {
            let batch = consumer.next_batch(20, PATIENCE).await?;
            let is_low = batch.iter().any(|delivery| delivery.priority == 0);
            // As much comes above as is taken, so that there is always something.
            let taken = batch.iter().filter(|delivery| delivery.priority > 0);
            for _ in taken {
                drop(send(&producer, sent, LEVELS - 1).await?);
                sent += 1;
            }
            if is_low {
                served += 1;
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            for delivery in &batch {
                consumer.ack(delivery).await?;
            }
        }
        Ok(longest)
    })
}

/// Everything lies there before anybody joins.
fn backlog(home: &Home, each: u64) -> Outcome<(u64, u64)> {
    bounded(PATIENCE, async {
        let client = clients::connect(home).await?;
        let producer = client.producer("levels").ack(Ack::Durable).open().await?;
        for number in 0..each * u64::from(LEVELS) {
            let level = u8::try_from(number % u64::from(LEVELS))?;
            drop(send(&producer, number, level).await?);
        }
        producer.flush().await?;
        let consumer = client.consumer("levels").topic("levels").pull();
        let mut consumer = consumer.open().await?;
        in_order(&mut consumer, each).await
    })
}

async fn send(producer: &Producer, number: u64, level: u8) -> Outcome<waterwheel::client::Pending> {
    let record = Record::new(value(number, 100)).priority(level);
    Ok(producer.enqueue_to(0, record).await?)
}

/// Takes them in small pulls and refuses the first of each level once: how many came while a higher level
/// had something, and how many refused ones came back behind a lower level or at another.
async fn in_order(consumer: &mut Consumer, each: u64) -> Outcome<(u64, u64)> {
    let mut left = [each; LEVELS as usize];
    let mut refused: Vec<(u64, u8)> = Vec::new();
    let (mut inverted, mut strayed) = (0, 0);
    while left.iter().any(|left| *left > 0) {
        let wanted = left.iter().sum::<u64>().min(20);
        let batch = consumer
            .next_batch(usize::try_from(wanted)?, PATIENCE)
            .await?;
        for delivery in batch {
            let (number, level) = (number(&delivery)?, delivery.priority);
            let (higher, at) = (usize::from(level) + 1, usize::from(level));
            inverted += u64::from(left.iter().skip(higher).any(|left| *left > 0));
            if delivery.attempt > 1 {
                strayed += u64::from(!refused.contains(&(number, level)));
            } else if !refused.iter().any(|(_, of)| *of == level) {
                refused.push((number, level));
                let again = consumer.nack_after(&delivery, "once", Duration::ZERO);
                again.await?;
                continue;
            }
            let left = left.get_mut(at).ok_or("there is no such level")?;
            *left = left.checked_sub(1).ok_or("a level gave more than it had")?;
            consumer.ack(&delivery).await?;
        }
    }
    strayed += u64::from(LEVELS).saturating_sub(refused.len() as u64);
    Ok((inverted, strayed))
}

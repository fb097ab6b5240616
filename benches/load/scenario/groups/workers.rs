//! Handlers on workers with a queue per key, and at most once under kills.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

use tokio::sync::Notify;
use waterwheel::client::{AckMode, Delivery, HandlerError, Mode, RunSummary, TopicConfig};

use super::{LOOK, await_consumed, filled, keyed, left_behind, member_process, number};
use crate::load::broker::{Broker, Home};
use crate::load::clients::{self, PATIENCE};
use crate::load::crew::bounded;
use crate::load::payload::Noise;
use crate::load::report::Samples;
use crate::load::{Bench, Outcome};

const TOPIC: &str = "work";
const WORKERS: usize = 16;
const KEYS: u64 = 1_000;

/// What handlers saw, by key, in the order they ended.
#[derive(Debug, Default)]
struct Handled {
    by_key: BTreeMap<Vec<u8>, Vec<(u32, u64)>>,
    count: u64,
    repeats: u64,
    seen: BTreeSet<u64>,
}

/// Drained in the middle, gone on with, until all is handled.
pub(crate) fn workers(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let count = bench.size(50_000, 2_000);
    samples.note("handlers take 0 to 2 ms at random; key-ordered group, 4 partitions; drained twice on the way");
    for run in 0..bench.runs {
        let broker = Broker::fresh(bench, &format!("workers-{run}"))?;
        filled(&broker, TOPIC, TopicConfig::new(4), count, |n| {
            keyed(n, KEYS, 100)
        })?;
        let handled = Arc::new(Mutex::new(Handled::default()));
        for until in [count / 3, count * 2 / 3, count] {
            let summary = bounded(PATIENCE * 5, work(broker.home(), &handled, until))?;
            // What is drained is settled: nobody is left with anything in hand.
            let total = handled.lock().map_err(|_| "a handler panicked")?.count;
            if summary.refused + summary.lost > 0 || total < until {
                return Err(format!("a run of the workers came to {summary:?}").into());
            }
        }
        await_consumed(broker.home(), "workers")?;
        let handled = handled.lock().map_err(|_| "a handler panicked")?;
        let out_of_order: usize = handled
            .by_key
            .values()
            .map(|seen| {
                seen.windows(2)
                    .filter(|pair| pair.first() >= pair.last())
                    .count()
            })
            .sum();
        if handled.seen.len() as u64 != count {
            return Err("a record was never handled".into());
        }
        samples.add("out of order within a key", out_of_order as f64, "");
        samples.add("handled twice around a drain", handled.repeats as f64, "");
    }
    Ok(())
}

async fn work(home: &Home, handled: &Arc<Mutex<Handled>>, until: u64) -> Outcome<RunSummary> {
    let client = clients::connect(home).await?;
    let consumer = client
        .consumer("workers")
        .topic(TOPIC)
        .mode(Mode::KeyOrdered);
    // What a drain has in hand is small beside what is left.
    let consumer = consumer.prefetch(1 << 20, 500).open().await?;
    let enough = Arc::new(Notify::new());
    let noise = Arc::new(Mutex::new(Noise::new(until)));
    let (book, reached) = (Arc::clone(handled), Arc::clone(&enough));
    let handler = move |delivery: Delivery| {
        let (book, reached, noise) = (Arc::clone(&book), Arc::clone(&reached), Arc::clone(&noise));
        async move {
            let poisoned = |_| HandlerError::new("another handler panicked");
            let byte = noise
                .lock()
                .map_err(|_| HandlerError::new("a handler panicked"))?
                .bytes(1);
            let pause = byte.first().copied().unwrap_or_default();
            tokio::time::sleep(Duration::from_micros(u64::from(pause) * 8)).await;
            let number = number(&delivery).map_err(|why| HandlerError::new(why.to_string()))?;
            let mut book = book.lock().map_err(poisoned)?;
            let key = delivery
                .key
                .as_ref()
                .map_or_else(Vec::new, |key| key.to_vec());
            let place = (delivery.partition, delivery.offset);
            book.by_key.entry(key).or_default().push(place);
            book.count += 1;
            book.repeats += u64::from(!book.seen.insert(number));
            if book.count >= until {
                reached.notify_one();
            }
            Ok(())
        }
    };
    let ended = async move { enough.notified().await };
    Ok(consumer.run(WORKERS, ended, handler).await?)
}

/// Members in processes of their own are killed in the middle; what they had, nobody else gets.
pub(crate) fn at_most_once(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let count = bench.size(200_000, 4_000);
    let kills = bench.size(5, 2);
    samples.note("settled before it is sent; members killed while they take records; lost: settled and in nobody's hands, as at most once allows");
    for run in 0..bench.runs {
        let broker = Broker::fresh(bench, &format!("at-most-once-{run}"))?;
        let home = broker.home();
        filled(&broker, TOPIC, TopicConfig::new(4), count, |n| {
            keyed(n, KEYS, 100)
        })?;
        let (mut seen, mut repeats) = (BTreeSet::new(), 0_u64);
        for kill in 0..=kills {
            let file = bench.dir.join(format!("given-{run}-{kill}"));
            let member = member_process(home, TOPIC, "once", Mode::Shared, AckMode::None, &file)?;
            if kill < kills {
                sleep(Duration::from_millis(40 + 20 * kill));
            } else {
                await_consumed(home, "once")?;
                // What was settled last is still on its way to the file.
                sleep(LOOK * 5);
            }
            member.kill()?;
            for number in left_behind(&file)? {
                repeats += u64::from(!seen.insert(number));
            }
        }
        samples.add("at most once: repeats", repeats as f64, "");
        samples.add(
            "at most once: lost",
            (count - seen.len() as u64) as f64,
            "records",
        );
    }
    Ok(())
}

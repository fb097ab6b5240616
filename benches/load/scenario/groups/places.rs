//! Setting live groups back by time, and taking by the batch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use waterwheel::client::{ActorInfo, Client, Mode, Record, ResetTo, Start, TopicConfig};

use super::{LOOK, await_consumed, fill, keyed, make, number, read_all};
use crate::load::broker::{Broker, Home};
use crate::load::clients::{self, PATIENCE};
use crate::load::crew::bounded;
use crate::load::report::Samples;
use crate::load::scenario::timers::{now_ms, value};
use crate::load::{Bench, Outcome};

const TOPIC: &str = "places";
const PARTITIONS: u32 = 4;
/// Live members.
const MEMBERS: usize = 2;

/// What came to whom: how often each number, and whether a number was in two hands at a time.
#[derive(Debug, Default)]
struct Given {
    counts: BTreeMap<u64, u64>,
    /// Given and not acknowledged yet.
    in_hand: BTreeSet<u64>,
    doubled: u64,
}

type Book = Arc<Mutex<Given>>;

/// Both modes, several times each.
pub(crate) fn reset(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let count = bench.size(200_000, 4_000);
    samples.note("half of the records stored before T, half at or after it, all consumed; two members live; expected: what a reader finds stored at or after T");
    for run in 0..bench.runs {
        let broker = Broker::fresh(bench, &format!("reset-{run}"))?;
        let home = broker.home();
        make(home, TOPIC, TopicConfig::new(PARTITIONS))?;
        fill(home, TOPIC, 0..count / 2, |n| keyed(n, 100, 100))?;
        sleep(Duration::from_millis(20));
        let at_ms = now_ms();
        sleep(Duration::from_millis(20));
        fill(home, TOPIC, count / 2..count, |n| keyed(n, 100, 100))?;
        for mode in [Mode::Exclusive, Mode::Shared] {
            let found = set_back(home, mode, at_ms, count)?;
            samples.add("missing or foreign after a reset", found.wrong as f64, "");
            samples.add("twice to live leases", found.doubled as f64, "");
            samples.add(
                "dry run tells other numbers",
                found.told_otherwise as f64,
                "",
            );
        }
    }
    Ok(())
}

struct Found {
    wrong: u64,
    doubled: u64,
    told_otherwise: u64,
}

fn set_back(home: &Home, mode: Mode, at_ms: i64, count: u64) -> Outcome<Found> {
    let group = format!("back-{}", mode.name());
    let (book, over) = (Book::default(), AtomicBool::new(false));
    scope(|scope| {
        let members: Vec<_> = (0..MEMBERS)
            .map(|_| {
                let (group, book, over) = (&group, &book, &over);
                scope.spawn(move || member(home, group, mode, book, over))
            })
            .collect();
        let found = await_all(&book, count)
            .and_then(|()| await_consumed(home, &group))
            .and_then(|()| judge(home, &group, at_ms, &book));
        over.store(true, Ordering::Relaxed);
        for member in members {
            member.join().map_err(|_| "a member panicked")??;
        }
        found
    })
}

fn await_all(book: &Book, count: u64) -> Outcome<()> {
    let begun = Instant::now();
    while (book.lock().map_err(|_| "a member panicked")?.counts.len() as u64) < count {
        if begun.elapsed() > PATIENCE {
            return Err("the group does not get everything".into());
        }
        sleep(LOOK);
    }
    Ok(())
}

fn judge(home: &Home, group: &str, at_ms: i64, book: &Book) -> Outcome<Found> {
    let expected: BTreeSet<u64> = bounded(PATIENCE, async {
        let client = clients::connect(home).await?;
        let all = read_all(&client, TOPIC).await?;
        let later = all.iter().filter(|delivery| delivery.time_ms >= at_ms);
        later.map(number).collect()
    })?;
    let before = book.lock().map_err(|_| "a member panicked")?.counts.clone();
    let (dry, done) = bounded(PATIENCE, async {
        let client = clients::connect(home).await?;
        let to = ResetTo::Start(Start::Time(at_ms));
        let dry = client.reset_group(group, TOPIC, None, to, true).await?;
        let done = client.reset_group(group, TOPIC, None, to, false).await?;
        Ok((dry, done))
    })?;
    await_consumed(home, group)?;
    let given = book.lock().map_err(|_| "a member panicked")?;
    let again: BTreeMap<u64, u64> = given
        .counts
        .iter()
        .map(|(number, times)| (*number, times - before.get(number).copied().unwrap_or(0)))
        .filter(|(_, times)| *times > 0)
        .collect();
    let right = again
        .iter()
        .filter(|(number, times)| **times == 1 && expected.contains(number))
        .count();
    let comes: u64 = done.iter().map(|place| place.comes).sum();
    Ok(Found {
        wrong: (expected.len() + again.len() - 2 * right) as u64,
        doubled: given.doubled,
        told_otherwise: u64::from(dry != done) + u64::from(comes != expected.len() as u64),
    })
}

fn member(home: &Home, group: &str, mode: Mode, book: &Book, over: &AtomicBool) -> Outcome<()> {
    bounded(PATIENCE * 3, async {
        let client = clients::connect(home).await?;
        let mut consumer = client
            .consumer(group)
            .topic(TOPIC)
            .mode(mode)
            .open()
            .await?;
        while !over.load(Ordering::Relaxed) {
            let batch = consumer.next_batch(500, LOOK).await?;
            let mut numbers = Vec::with_capacity(batch.len());
            {
                let mut book = book.lock().map_err(|_| "a member panicked")?;
                for delivery in &batch {
                    let number = number(delivery)?;
                    *book.counts.entry(number).or_default() += 1;
                    book.doubled += u64::from(!book.in_hand.insert(number));
                    numbers.push(number);
                }
            }
            for number in numbers {
                book.lock()
                    .map_err(|_| "a member panicked")?
                    .in_hand
                    .remove(&number);
            }
            drop(consumer.ack_batch(&batch));
        }
        consumer.close().await;
        Ok(())
    })
}

/// A pull that finds enough, and one that waits.
pub(crate) fn pull(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let wait = bench.size(Duration::from_secs(5), Duration::from_millis(600));
    samples.note("pull of 100: with 100 there, and with 10; wake-ups: messages of the group's actor and wake-ups of the wheel between a fifth and four fifths of the wait");
    for run in 0..bench.runs {
        let broker = Broker::fresh(bench, &format!("pull-{run}"))?;
        make(broker.home(), TOPIC, TopicConfig::new(PARTITIONS))?;
        let (found, beyond, woken) = bounded(PATIENCE, pulls(broker.home(), wait))?;
        samples.add("a pull that found all", found.as_secs_f64() * 1e3, "ms");
        samples.add(
            "a pull that waited, beyond its time",
            beyond.as_secs_f64() * 1e3,
            "ms",
        );
        samples.add("wake-ups while a pull waits", woken as f64, "");
    }
    Ok(())
}

async fn pulls(home: &Home, wait: Duration) -> Outcome<(Duration, Duration, u64)> {
    let client = clients::connect(home).await?;
    let watcher = clients::connect(home).await?;
    let producer = client.producer(TOPIC).open().await?;
    for n in 0..110 {
        drop(
            producer
                .enqueue(Record::new(value(n, 100)).key(n.to_string()))
                .await?,
        );
    }
    producer.flush().await?;
    let mut consumer = client.consumer("pulls").topic(TOPIC).pull().open().await?;
    let begun = Instant::now();
    let first = consumer.next_batch(100, wait).await?;
    let found = begun.elapsed();
    if first.len() != 100 || found >= wait {
        return Err(format!("{} records came after {found:?} where 100 lay", first.len()).into());
    }
    consumer.ack_batch(&first).await?;
    let begun = Instant::now();
    let watching = async {
        tokio::time::sleep(wait / 5).await;
        let before = stirred(&watcher).await?;
        tokio::time::sleep(wait * 3 / 5).await;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(stirred(&watcher).await? - before)
    };
    let (rest, woken) = tokio::join!(consumer.next_batch(100, wait), watching);
    let (rest, took) = (rest?, begun.elapsed());
    if rest.len() != 10 || took < wait {
        return Err(format!("{} records came after {took:?} where 10 lay", rest.len()).into());
    }
    consumer.ack_batch(&rest).await?;
    consumer.close().await;
    Ok((found, took - wait, woken?))
}

/// Messages of group actors and wake-ups of the wheel so far.
pub(super) async fn stirred(client: &Client) -> Outcome<u64> {
    let of = |actor: &ActorInfo| match actor.kind.as_str() {
        "group" => actor.handled,
        "wheel" => actor.wake_ups,
        _ => 0,
    };
    let status = client.status(true).await?;
    Ok(status.actors.iter().map(of).sum())
}

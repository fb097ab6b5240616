//! Refused again and again: back on time through the wheel, and at last among the dead letters, each once.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use waterwheel::client::{Backoff, Consumer, Mode, RetryPolicy, TopicConfig};

use super::{LOOK, Seen, await_consumed, filled, keyed, number, read_all};
use crate::load::broker::{Broker, Home};
use crate::load::clients::{self, PATIENCE};
use crate::load::crew::{bounded, muster};
use crate::load::latency::Latencies;
use crate::load::report::Samples;
use crate::load::scenario::timers::now_us;
use crate::load::{Bench, Outcome};

const TOPIC: &str = "refused";
const GROUP: &str = "g";
const LETTERS: &str = "g.dead-letters";
const MEMBERS: usize = 4;
/// Deliveries of each record.
const ATTEMPTS: u16 = 3;

fn fresh(bench: &Bench, name: &str, count: u64) -> Outcome<Broker> {
    let broker = Broker::fresh(bench, name)?;
    let config = TopicConfig::new(u32::try_from(MEMBERS)?);
    filled(&broker, TOPIC, config, count, |n| keyed(n, 1_000, 100))?;
    Ok(broker)
}

async fn join(home: &Home, backoff_ms: u64) -> Outcome<Consumer> {
    let client = clients::connect(home).await?;
    let policy = RetryPolicy {
        backoff: Backoff::Listed(vec![backoff_ms]),
        jitter_percent: 0,
        attempts_max: ATTEMPTS,
        ..RetryPolicy::default()
    };
    let consumer = client.consumer(GROUP).topic(TOPIC).mode(Mode::Shared);
    Ok(consumer.retry(policy).open().await?)
}

/// Refuses everything. In time, the lateness of what came again; then the dead letters are counted.
pub(crate) fn retries(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let count = bench.size(100_000, 2_000);
    let backoff = bench.size(Duration::from_secs(10), Duration::from_secs(1));
    samples.note("100 B values, shared, 4 members, 3 attempts, no jitter; lateness from the refusal's durable answer plus the backoff to the consumer's hands; early: before the refusal plus the backoff");
    for run in 0..bench.runs {
        let broker = fresh(bench, &format!("refused-{run}"), count)?;
        let home = broker.home();
        let (lateness, early) = refuse_all(home, count, backoff)?;
        samples.add("refused: lateness p50", lateness.p50_us() / 1e3, "ms");
        samples.add("refused: lateness p99", lateness.p99_us() / 1e3, "ms");
        samples.add("refused: early", early as f64, "");
        await_consumed(home, GROUP)?;
        let wrong = letters(home, count)?;
        samples.add("dead letters missing or doubled", wrong as f64, "");
        redrive(home)?;
        let wrong = back(home, count)?;
        samples.add("brought back missing or doubled", wrong as f64, "");
    }
    Ok(())
}

/// Refuses every delivery until each record had its last; says how late the later ones came.
fn refuse_all(home: &Home, count: u64, backoff: Duration) -> Outcome<(Latencies, u64)> {
    let last = Seen::of(count)?;
    let last = &last;
    // When each record was refused, and when that was answered; in microseconds.
    let refused: Mutex<HashMap<u64, (i64, i64)>> = Mutex::default();
    let refused = &refused;
    let early = AtomicU64::new(0);
    let early = &early;
    let backoff_us = i64::try_from(backoff.as_micros())?;
    let members = muster(MEMBERS, PATIENCE * 10, |_| async move {
        let mut consumer = join(home, u64::try_from(backoff.as_millis())?).await?;
        let mut lateness = Latencies::new()?;
        while last.distinct() < count {
            let batch = consumer.next_batch(1_000, LOOK).await?;
            let now = now_us();
            let mut open = Vec::with_capacity(batch.len());
            for delivery in &batch {
                let number = number(delivery)?;
                let before = refused
                    .lock()
                    .map_err(|_| "a member panicked")?
                    .remove(&number);
                if let Some((said, answered)) = before {
                    early.fetch_add(u64::from(now < said + backoff_us), Ordering::Relaxed);
                    let late = now - answered - backoff_us;
                    lateness.record(Duration::from_micros(late.max(0).unsigned_abs()));
                } else if delivery.attempt > 1 {
                    return Err(
                        format!("record {number} came before its refusal was answered").into(),
                    );
                }
                if delivery.attempt >= ATTEMPTS {
                    last.note(number)?;
                }
                open.push((number, now_us(), consumer.nack(delivery, "always")));
            }
            // Those of one batch are answered together: the last answer is everybody's.
            let mut said = Vec::with_capacity(open.len());
            for (number, at, settlement) in open {
                settlement.await?;
                said.push((number, at));
            }
            let answered = now_us();
            let mut refused = refused.lock().map_err(|_| "a member panicked")?;
            refused.extend(
                said.into_iter()
                    .map(|(number, at)| (number, (at, answered))),
            );
        }
        consumer.close().await;
        Ok(lateness)
    })?;
    let mut all = Latencies::new()?;
    members.iter().try_for_each(|one| all.merge(one))?;
    Ok((all, early.load(Ordering::Relaxed)))
}

/// How many records are not among the dead letters exactly once, with the group and the reason they tell.
fn letters(home: &Home, count: u64) -> Outcome<u64> {
    bounded(PATIENCE * 5, async {
        let client = clients::connect(home).await?;
        let seen = Seen::of(count)?;
        for letter in read_all(&client, LETTERS).await? {
            seen.note(number(&letter)?)?;
            let of = |name: &str| {
                let mut headers = letter.headers.iter();
                headers.any(|(header, _)| header.as_str() == format!("waterwheel-dead-{name}"))
            };
            if !(of("group") && of("reason") && of("attempts") && of("offset")) {
                return Err("a dead letter does not say where it comes from".into());
            }
        }
        Ok(count - seen.distinct() + seen.repeats())
    })
}

/// Killed in the middle of the first refusals, of the second, of the last, and of the copies, while the
/// members go on.
pub(crate) fn killed(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let count = bench.size(100_000, 2_000);
    let backoff = bench.size(2_000, 500);
    samples.note("killed while the first, the second and the last refusals are said, and while dead letters are copied; the members stay and join again");
    for run in 0..bench.runs {
        let mut broker = fresh(bench, &format!("refused-killed-{run}"), count)?;
        let home = broker.home().clone();
        let said = AtomicU64::new(0);
        broker = scope(|scope| {
            let refusing = scope.spawn(|| refuse_the_rest(&home, backoff, &said));
            // Of the thirty tenths of refusals there will be, how many were said when it is killed.
            for tenths in [5, 10, 15, 25, 29] {
                let target = count * tenths / 10;
                let begun = Instant::now();
                while said.load(Ordering::Relaxed) < target && !refusing.is_finished() {
                    sleep(Duration::from_millis(2));
                    if begun.elapsed() > PATIENCE * 2 {
                        return Err("the refusals do not go on".into());
                    }
                }
                broker = broker.kill()?.start()?;
            }
            refusing.join().map_err(|_| "a member panicked")??;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(broker)
        })?;
        let wrong = letters(broker.home(), count)?;
        samples.add("kill -9: dead letters missing or doubled", wrong as f64, "");
        samples.add(
            "kill -9: refusals for each record",
            said.load(Ordering::Relaxed) as f64 / count as f64,
            "",
        );
        let home = broker.home().clone();
        let broker = scope(|scope| {
            let redriving = scope.spawn(|| redrive(&home));
            sleep(bench.size(Duration::from_millis(500), Duration::from_millis(30)));
            let broker = broker.kill()?.start()?;
            redriving.join().map_err(|_| "the redrive panicked")??;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(broker)
        })?;
        let wrong = back(broker.home(), count)?;
        samples.add("kill -9: brought back missing or doubled", wrong as f64, "");
    }
    Ok(())
}

/// Brings all letters back, again where it did not come to an end: none comes back twice by that.
fn redrive(home: &Home) -> Outcome<()> {
    bounded(PATIENCE * 5, async {
        let client = clients::connect(home).await?;
        loop {
            match client.dead_letters(LETTERS).redrive().await {
                Ok(done) if done.faulty == 0 => return Ok(()),
                Ok(done) => return Err(format!("letters stay where they are: {done:?}").into()),
                Err(why) if why.is_retriable() => tokio::time::sleep(LOOK).await,
                Err(why) => return Err(why.into()),
            }
        }
    })
}

/// Consumes what was brought back: how many records did not come exactly once, from their first attempt on.
fn back(home: &Home, count: u64) -> Outcome<u64> {
    let seen = Seen::of(count)?;
    let seen = &seen;
    muster(MEMBERS, PATIENCE * 5, |_| async move {
        let client = clients::connect(home).await?;
        let mut consumer = join(home, 1_000).await?;
        loop {
            let batch = consumer.next_batch(1_000, LOOK).await?;
            for delivery in &batch {
                if delivery.attempt > 1 {
                    return Err("what was brought back does not begin anew".into());
                }
                seen.note(number(delivery)?)?;
            }
            consumer.ack_batch(&batch).await?;
            if batch.is_empty() && super::lag(&client, GROUP).await? == 0 {
                consumer.close().await;
                return Ok(());
            }
        }
    })?;
    Ok(count - seen.distinct() + seen.repeats())
}

/// Refuses until nothing is left, whatever happens to the broker meanwhile.
fn refuse_the_rest(home: &Home, backoff_ms: u64, said: &AtomicU64) -> Outcome<()> {
    muster(MEMBERS, PATIENCE * 10, |_| async move {
        let client = clients::connect(home).await?;
        let mut consumer = join(home, backoff_ms).await?;
        loop {
            let batch = consumer.next_batch(200, LOOK).await?;
            for delivery in &batch {
                // Nobody waits for the answers: kills come in between.
                drop(consumer.nack(delivery, "always"));
                said.fetch_add(1, Ordering::Relaxed);
            }
            if batch.is_empty() && super::lag(&client, GROUP).await? == 0 {
                consumer.close().await;
                return Ok(());
            }
        }
    })?;
    Ok(())
}

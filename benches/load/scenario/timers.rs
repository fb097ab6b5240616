//! Delayed records: how fast they are taken, how late they come, what waiting for them costs.
//!
//! Every value begins with its number, so that a record lost, doubled or early shows as such. Lateness is
//! counted to the consumer's hands: the wall clock there against the due time, on one machine.

pub(super) mod cancel;
pub(super) mod early;
pub(super) mod far;
mod sorted_set;

use std::collections::VecDeque;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use waterwheel::client::{Ack, PendingRun, Record, Start};
use waterwheel::domain::time::WallMs;

use crate::load::broker::{Broker, Home};
use crate::load::clients::{self, PATIENCE};
use crate::load::crew::{Line, muster};
use crate::load::disk::Disk;
use crate::load::latency::Latencies;
use crate::load::report::Samples;
use crate::load::{Bench, Outcome};

/// Partitions, producers, consumers.
const STREAMS: usize = 4;
/// Records of one batch.
const RUN: u64 = 100;
/// Batches on their way per producer.
const RUNS_OPEN: usize = 16;
/// The least a direct write or read is made of.
const BLOCK_BYTES: usize = 4_096;
/// How long near timers fire.
const SPAN: Duration = Duration::from_secs(20);
const TOPIC: &str = "timers";
const SECOND_MS: i64 = 1_000;
const HOUR_MS: i64 = 3_600_000;
const MEGABYTE: f64 = 1e6;

/// The wall clock, in microseconds.
pub(super) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(0))
}

/// The same in milliseconds.
pub(super) fn now_ms() -> i64 {
    now_us() / 1_000
}

/// When each of a stream's records is due: spread over a window without any order, or all but in the order
/// they are written in.
#[derive(Debug, Clone, Copy)]
struct Spread {
    from_ms: i64,
    window_ms: i64,
    /// How many share the window in their order; none where they have no order.
    in_order: Option<u64>,
}

impl Spread {
    fn at_random(from_ms: i64, window_ms: i64) -> Self {
        Self {
            from_ms,
            window_ms,
            in_order: None,
        }
    }

    fn due(self, stream: usize, number: u64) -> i64 {
        // The multiplier of SplitMix64: a bijection that leaves no order.
        let mixed = (number + 1)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .wrapping_add(stream as u64)
            .rotate_left(29)
            .wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let window = self.window_ms.max(1).unsigned_abs();
        let into = match self.in_order {
            None => (mixed >> 20) % window,
            // Neighbours are due within the same second, in no order.
            Some(all) => number * window / all.max(1) + (mixed >> 20) % 1_000,
        };
        self.from_ms + i64::try_from(into).unwrap_or(0)
    }
}

/// What arming came to.
struct Armed {
    took: Duration,
    /// The first and the last tenth, in records a second.
    first: f64,
    last: f64,
}

/// Durably sends `each` delayed records per stream.
fn arm(home: &Home, each: u64, value_bytes: usize, spread: Spread) -> Outcome<Armed> {
    let line = Line::of(STREAMS);
    let within = PATIENCE * 20;
    let members = muster(STREAMS, within, |stream| {
        let line = line.clone();
        async move {
            let client = clients::connect(home).await?;
            let producer = client
                .producer(TOPIC)
                .ack(Ack::Durable)
                .batch_bytes(100 * (value_bytes + 48))
                .buffer_bytes(8 << 20)
                .linger(Duration::from_millis(2))
                .open()
                .await?;
            line.wait().await;
            let begun = Instant::now();
            let mut marks = vec![Duration::ZERO];
            let mut open: VecDeque<PendingRun> = VecDeque::new();
            let mut sent = 0;
            while sent < each {
                let run = RUN.min(each - sent);
                let records = (sent..sent + run).map(|number| {
                    let due = WallMs(spread.due(stream, number));
                    Record::new(value(number, value_bytes)).deliver_at(due)
                });
                open.push_back(
                    producer
                        .enqueue_run(u32::try_from(stream)?, records)
                        .await?,
                );
                sent += run;
                while open.len() > RUNS_OPEN
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.wait().await?;
                }
                if sent * 10 / each >= marks.len() as u64 {
                    marks.push(begun.elapsed());
                }
            }
            for run in open {
                run.wait().await?;
            }
            Ok((marks, begun.elapsed()))
        }
    })?;
    type Member = (Vec<Duration>, Duration);
    let slowest = |of: &dyn Fn(&Member) -> Duration| {
        members
            .iter()
            .map(of)
            .max()
            .unwrap_or_default()
            .as_secs_f64()
    };
    let tenth = each as f64 * STREAMS as f64 / 10.0;
    let at = |marks: &[Duration], place: usize| marks.get(place).copied().unwrap_or_default();
    Ok(Armed {
        took: Duration::from_secs_f64(slowest(&|member| member.1)),
        first: tenth / slowest(&|member| at(&member.0, 1)).max(1e-9),
        last: tenth / slowest(&|member| member.1.saturating_sub(at(&member.0, 9))).max(1e-9),
    })
}

/// A value that begins with its number.
pub(super) fn value(number: u64, bytes: usize) -> Bytes {
    let mut value = BytesMut::with_capacity(bytes);
    value.put_u64_le(number);
    value.resize(bytes.max(8), 0x5a);
    value.freeze()
}

/// What the consumers saw.
struct Fired {
    lateness: Latencies,
    early: u64,
    /// When the last one was in somebody's hands.
    last_us: i64,
}

/// Reads until every stream has given `each` records; each exactly once, none early.
fn take(home: &Home, each: u64, within: Duration) -> Outcome<Fired> {
    let members = muster(STREAMS, within, |stream| async move {
        let client = clients::connect(home).await?;
        let mut reader = client
            .reader(TOPIC)
            .partition(u32::try_from(stream)?)
            .from(Start::Earliest)
            .open()
            .await?;
        let mut seen = vec![0_u64; usize::try_from(each / 64 + 1)?];
        let (mut lateness, mut early, mut last_us, mut taken) = (Latencies::new()?, 0, 0, 0);
        while taken < each {
            let deliveries = reader.next_deliveries().await?.ok_or("the reader ended")?;
            let now = now_us();
            for delivery in &deliveries {
                let number = delivery
                    .value
                    .first_chunk()
                    .map(|bytes| u64::from_le_bytes(*bytes));
                let number = number.ok_or("a value is cut short")?;
                let due_ms = delivery.due_ms.ok_or(
                    "a timer was due before it was accepted: this machine needs a longer lead",
                )?;
                let word = seen
                    .get_mut(usize::try_from(number / 64)?)
                    .ok_or("a foreign record")?;
                if *word >> (number % 64) & 1 == 1 {
                    return Err(format!("record {number} of stream {stream} came twice").into());
                }
                *word |= 1 << (number % 64);
                let late_us = now - due_ms * 1_000;
                let fired_early = delivery.fired_ms.is_none_or(|fired| fired < due_ms);
                early += u64::from(late_us < 0 || fired_early);
                last_us = last_us.max(now);
                lateness.record(Duration::from_micros(late_us.max(0).unsigned_abs()));
                taken += 1;
            }
        }
        Ok(Fired {
            lateness,
            early,
            last_us,
        })
    })?;
    let mut all = Fired {
        lateness: Latencies::new()?,
        early: 0,
        last_us: 0,
    };
    for member in members {
        all.lateness.merge(&member.lateness)?;
        all.early += member.early;
        all.last_us = all.last_us.max(member.last_us);
    }
    early::count(all.lateness.len(), all.early);
    Ok(all)
}

fn fresh(bench: &Bench, name: &str) -> Outcome<Broker> {
    let broker = Broker::fresh(bench, name)?;
    clients::create_topic(broker.home(), TOPIC, u32::try_from(STREAMS)?)?;
    Ok(broker)
}

/// 10 million timers over a day: accepted how fast, at which memory; then `kill -9`.
pub(crate) fn accept(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let each = bench.size(2_500_000, 5_000);
    samples.note("100 B values, batches of 100, durable, due at random over 24 h; first and last: tenths of all");
    for run in 0..bench.runs {
        let broker = fresh(bench, &format!("accept-{run}"))?;
        sleep(bench.size(Duration::from_secs(2), Duration::from_millis(50)));
        let idle = broker.resident_bytes()? as f64;
        let spread = Spread::at_random(now_ms() + HOUR_MS, 24 * HOUR_MS);
        let armed = arm(broker.home(), each, 100, spread)?;
        let all = each as f64 * STREAMS as f64;
        samples.add(
            "timers accepted a second",
            all / armed.took.as_secs_f64(),
            "/s",
        );
        samples.add("last tenth over first", armed.last / armed.first, "");
        sleep(bench.size(Duration::from_secs(10), Duration::from_millis(50)));
        let waiting = (broker.resident_bytes()? as f64 - idle) / MEGABYTE;
        samples.add("RSS above idle, all waiting", waiting, "MB");
        let broker = serve_again(broker, samples)?;
        samples.add(
            "RSS, all waiting, after kill -9",
            broker.resident_bytes()? as f64 / MEGABYTE,
            "MB",
        );
        drop(broker);
        sorted_set::compare(bench, run, samples)?;
    }
    Ok(())
}

/// `kill -9` with all of them waiting, and one due every 100 ms: until the first durable acknowledgement,
/// and until the first one that fires after the start is in somebody's hands.
fn serve_again(broker: Broker, samples: &mut Samples) -> Outcome<Broker> {
    let home = broker.home();
    clients::create_topic(home, "beacon", 1)?;
    muster(1, PATIENCE, |_| async {
        let client = clients::connect(home).await?;
        let producer = client.producer("beacon").ack(Ack::Durable).open().await?;
        let from = now_ms() + 2 * SECOND_MS;
        let records = (0..600).map(|n| Record::new("beacon").deliver_at(WallMs(from + n * 100)));
        producer.enqueue_run(0, records).await?.wait().await?;
        Ok(())
    })?;
    sleep(Duration::from_secs(3));
    let home = broker.kill()?;
    let (begun, begun_ms) = (Instant::now(), now_ms());
    let broker = Home {
        ready_within: PATIENCE * 2,
        ..home
    }
    .start()?;
    let home = broker.home();
    let served = muster(1, PATIENCE, |_| async {
        let client = clients::connect(home).await?;
        let producer = client
            .producer("beacon")
            .ack(Ack::Durable)
            .linger(Duration::ZERO)
            .open()
            .await?;
        producer.send_to(0, Record::new("serving?")).await?;
        let acknowledged = begun.elapsed();
        let mut reader = clients::open_reader(&client, "beacon", 0).await?;
        loop {
            let deliveries = reader.next_deliveries().await?.ok_or("the reader ended")?;
            if deliveries
                .iter()
                .any(|delivery| delivery.fired_ms.is_some_and(|at| at >= begun_ms))
            {
                return Ok((acknowledged, begun.elapsed()));
            }
        }
    })?;
    for (acknowledged, fired) in served {
        samples.add(
            "kill -9: first durable acknowledgement",
            acknowledged.as_secs_f64(),
            "s",
        );
        samples.add("kill -9: first due fire", fired.as_secs_f64(), "s");
    }
    Ok(broker)
}

/// Killed in the middle of its fires: each comes once, none early.
pub(crate) fn killed(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let each = bench.size(250_000, 1_000);
    for run in 0..bench.runs {
        let broker = fresh(bench, &format!("killed-{run}"))?;
        let lead = bench.size(15 * SECOND_MS, 5 * SECOND_MS);
        let window_ms = bench.size(20 * SECOND_MS, SECOND_MS);
        let spread = Spread::at_random(now_ms() + lead, window_ms);
        arm(broker.home(), each, 1_000, spread)?;
        let middle = spread.from_ms + window_ms / 2 - now_ms();
        sleep(Duration::from_millis(middle.max(0).unsigned_abs()));
        let broker = broker.kill()?.start()?;
        let fired = take(broker.home(), each, PATIENCE * 3)?;
        earliness(samples, "killed in the middle", &fired);
    }
    Ok(())
}

/// Timers of the next half minute.
pub(crate) fn near(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    samples.note("near: 1 kB values, armed within 10 s, due spread over the 20 s after that");
    let disk = Disk::prepare(&bench.dir, bench.quick)?;
    for run in 0..bench.runs {
        for rate in [20_000_u64, 50_000] {
            let name = format!("near, {rate} fires/s");
            if !bench.wants(&name) {
                continue;
            }
            let broker = fresh(bench, &format!("near-{rate}-{run}"))?;
            let each = bench.size(rate * SPAN.as_secs(), 2_000) / STREAMS as u64;
            let span = bench.size(SPAN, Duration::from_secs(1));
            let spread = Spread::at_random(
                now_ms() + bench.size(10 * SECOND_MS, 5 * SECOND_MS),
                i64::try_from(span.as_millis())?,
            );
            let fired = arm_and_take(&broker, each, 1_000, spread)?;
            lateness(samples, &name, &fired);
            drop(broker);
            let (raw, reads) = disk.lateness(BLOCK_BYTES, rate, span)?;
            let name = format!("{name}: raw synced writes beside as many reads");
            samples.add(format!("{name}: reads a second"), reads, "/s");
            samples.add(format!("{name}: lateness p50"), raw.p50_us() / 1e3, "ms");
            samples.add(format!("{name}: lateness p99"), raw.p99_us() / 1e3, "ms");
        }
    }
    Ok(())
}

/// Readers wait before the first timer is armed.
fn arm_and_take(broker: &Broker, each: u64, value_bytes: usize, spread: Spread) -> Outcome<Fired> {
    let home = broker.home();
    scope(|scope| {
        let taking = scope.spawn(|| take(home, each, PATIENCE * 15));
        arm(home, each, value_bytes, spread)?;
        taking.join().map_err(|_| "a consumer panicked")?
    })
}

fn lateness(samples: &mut Samples, name: &str, fired: &Fired) {
    samples.add(
        format!("{name}: lateness p50"),
        fired.lateness.p50_us() / 1e3,
        "ms",
    );
    samples.add(
        format!("{name}: lateness p99"),
        fired.lateness.p99_us() / 1e3,
        "ms",
    );
    earliness(samples, name, fired);
}

/// How many came before their time, and among how many; each of them came exactly once.
fn earliness(samples: &mut Samples, name: &str, fired: &Fired) {
    samples.add(format!("{name}: early"), fired.early as f64, "");
    samples.add(
        format!("{name}: fires checked for being early"),
        fired.lateness.len() as f64,
        "",
    );
}

/// 100 000 at once, and within a second.
pub(crate) fn burst(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let each = bench.size(100_000, 1_000) / STREAMS as u64;
    for run in 0..bench.runs {
        for (name, window_ms) in [
            ("in the same millisecond", 1),
            ("within one second", SECOND_MS),
        ] {
            let broker = fresh(bench, &format!("burst-{window_ms}-{run}"))?;
            let from_ms = now_ms() + bench.size(8 * SECOND_MS, 5 * SECOND_MS);
            let fired = arm_and_take(&broker, each, 1_000, Spread::at_random(from_ms, window_ms))?;
            let took_s = (fired.last_us - from_ms * 1_000) as f64 / 1e6;
            samples.add(
                format!("100 000 {name}: all delivered within"),
                took_s,
                "s of the first",
            );
            earliness(samples, &format!("100 000 {name}"), &fired);
        }
    }
    Ok(())
}

/// What the levels count: one timer ten minutes ahead, one an hour.
pub(crate) fn levels(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    samples.note("levels: wake-ups of all levels while one timer waits, an hour ahead, for a while; the whole hour is a counted test by a virtual clock");
    let broker = fresh(bench, "levels")?;
    let home = broker.home();
    let counted = muster(1, PATIENCE * 2, |_| async {
        let client = clients::connect(home).await?;
        let producer = client.producer(TOPIC).ack(Ack::Durable).open().await?;
        for ahead in [600, 3_600] {
            let span = Duration::from_secs(ahead);
            producer
                .send_to(0, Record::new("ahead").deliver_after(span))
                .await?;
        }
        tokio::time::sleep(bench.size(Duration::from_secs(30), Duration::from_millis(500))).await;
        let status = client.status(true).await?;
        let wheel = status
            .actors
            .into_iter()
            .filter(|actor| actor.kind == "wheel");
        Ok(wheel
            .filter(|actor| actor.name.starts_with("wall"))
            .collect::<Vec<_>>())
    })?;
    for actors in counted {
        let wakes: u64 = actors.iter().map(|actor| actor.wake_ups).sum();
        samples.add("wake-ups of all levels", wakes as f64, "");
        for (level, actor) in actors.iter().enumerate() {
            samples.add(
                format!("level {level}: overflow up"),
                actor.overflow_up as f64,
                "",
            );
        }
    }
    Ok(())
}

//! Sending: flat out in batches, one record at a time, and one by one in numbers.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use waterwheel::client::{Ack, Producer, Record};

use crate::load::broker::{Broker, Home};
use crate::load::ceilings::{SLOWER, Transport};
use crate::load::clients::{self, PATIENCE, Poured, Until};
use crate::load::crew::{Line, bounded, muster};
use crate::load::disk::Disk;
use crate::load::latency::Latencies;
use crate::load::pace::{Timed, time_receipts};
use crate::load::process::Usage;
use crate::load::quic::source::Way;
use crate::load::records::{Pool, VALUE_BYTES};
use crate::load::report::Samples;
use crate::load::{Bench, Outcome};

/// Producers of the flat-out scenario, a connection each.
const PRODUCERS: usize = 8;
/// Producers of records one by one.
const SINGLE_PRODUCERS: usize = 4;
/// The most a record may wait for company.
const LINGER: Duration = Duration::from_millis(5);
/// The share of the flat-out rate at which latency is measured.
const STEADY_SHARE: f64 = 0.7;
/// One record in so many is timed.
const SAMPLED: u64 = 16;

/// Durable, 1 kB records in 100 kB batches, 8 producers, beside the raw transport.
pub(crate) fn durable(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let transport = Transport::start(bench)?;
    let broker = Broker::fresh(bench, "produce-durable")?;
    let pool = Pool::new(VALUE_BYTES);
    samples.note("acknowledged durable; 1 kB records, 100 kB batches, 8 producers = 8 connections, 8 partitions");
    for run in 0..bench.runs {
        let ceiling = transport.best(bench, Way::Pour, samples)?;
        let topic = format!("durable-{run}");
        clients::create_topic(broker.home(), &topic, u32::try_from(PRODUCERS)?)?;
        let (before, own) = (broker.usage()?, Usage::own()?);
        let until = Until::Elapsed(bench.span());
        let poured = clients::pour(broker.home(), &topic, &pool, PRODUCERS, until)?;
        let (used, own) = (broker.usage()?.since(before), Usage::own()?.since(own));
        let gigabytes = poured.gigabytes();
        let rate = gigabytes / poured.took.as_secs_f64();
        samples.add("durable produce", rate, "GB/s");
        samples.add("broker", used.cpu_s / gigabytes, "CPU-s/GB");
        samples.add("clients", own.cpu_s / gigabytes, "CPU-s/GB");
        samples.add(
            "written per payload byte",
            used.written_bytes as f64 / gigabytes / 1e9,
            "",
        );
        samples.add("share of the raw transport", rate / ceiling.gb_per_s(), "");
        let sink = ceiling.server_cpu_s_per_gb().max(f64::MIN_POSITIVE);
        samples.add(
            "broker CPU over sink CPU",
            used.cpu_s / gigabytes / sink,
            "",
        );
        bench.defend(rate <= ceiling.gb_per_s(), SLOWER, samples);
        clients::read_back(broker.home(), &topic, &pool, &poured.sent)?;
    }
    Ok(())
}

/// One durable record at a time, beside a raw round trip and a raw synced write.
pub(crate) fn one_in_flight(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let transport = Transport::start(bench)?;
    let disk = Disk::prepare(&bench.dir, bench.quick)?;
    let broker = Broker::fresh(bench, "one-in-flight")?;
    let pool = Pool::new(VALUE_BYTES);
    samples.note("acknowledged durable; one 1 kB record in flight, linger 0, one connection");
    for run in 0..bench.runs {
        let trip = transport.round_trip_us(bench, samples)?;
        let write = disk.write(4_096, bench.span() / 2)?.latencies;
        samples.add("synced write 4 kB, p50", write.p50_us(), "us");
        let topic = format!("one-{run}");
        clients::create_topic(broker.home(), &topic, 1)?;
        let before = broker.usage()?;
        let latencies = bounded(bench.span() + PATIENCE, async {
            let client = clients::connect(broker.home()).await?;
            let producer = client
                .producer(&topic)
                .ack(Ack::Durable)
                .linger(Duration::ZERO)
                .open()
                .await?;
            one_by_one(&producer, &pool, bench.span()).await
        })?;
        let used = broker.usage()?.since(before);
        let records = latencies.len() as f64;
        samples.add("durable produce, p50", latencies.p50_us(), "us");
        samples.add("durable produce, p99", latencies.p99_us(), "us");
        samples.add("broker CPU per record", used.cpu_s * 1e6 / records, "us");
        samples.add(
            "written per payload byte",
            used.written_bytes as f64 / records / VALUE_BYTES as f64,
            "",
        );
        let ratio = latencies.p50_us() / (trip + write.p50_us());
        samples.add("p50 over (round trip + synced write)", ratio, "");
        let fault = "a raw round trip and a raw write took longer than both of them in the broker";
        bench.defend(ratio >= 1.0, fault, samples);
        clients::read_back(broker.home(), &topic, &pool, &[latencies.len()])?;
    }
    Ok(())
}

pub(super) async fn one_by_one(
    producer: &Producer,
    pool: &Pool,
    span: Duration,
) -> Outcome<Latencies> {
    let mut latencies = Latencies::new()?;
    let begun = Instant::now();
    while begun.elapsed() < span {
        let number = latencies.len();
        let record = Record::new(pool.value(0, number));
        let sent = Instant::now();
        let receipt = producer.send_to(0, record).await?;
        latencies.record(sent.elapsed());
        if receipt.offset != Some(number) {
            return Err(format!("record {number} got the receipt {receipt:?}").into());
        }
    }
    Ok(latencies)
}

/// Records handed over one by one, gathered by the client for at most 5 ms.
pub(crate) fn singles(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let broker = Broker::fresh(bench, "singles")?;
    let pool = Pool::new(VALUE_BYTES);
    samples.note(
        "acknowledged durable; 1 kB records one by one, 4 producers = 4 connections, linger 5 ms",
    );
    for run in 0..bench.runs {
        let topic = format!("flat-{run}");
        let (before, own) = (broker.usage()?, Usage::own()?);
        let (poured, _) = send_singles(bench, broker.home(), &topic, &pool, None)?;
        let (used, own) = (broker.usage()?.since(before), Usage::own()?.since(own));
        let rate = poured.records() as f64 / poured.took.as_secs_f64();
        samples.add("records a second, flat out", rate, "/s");
        samples.add("broker", used.cpu_s / poured.gigabytes(), "CPU-s/GB");
        samples.add("clients", own.cpu_s / poured.gigabytes(), "CPU-s/GB");
        samples.add(
            "written per payload byte",
            used.written_bytes as f64 / poured.gigabytes() / 1e9,
            "",
        );

        let topic = format!("steady-{run}");
        let steady = rate * STEADY_SHARE;
        let (_, latencies) = send_singles(bench, broker.home(), &topic, &pool, Some(steady))?;
        samples.add("p50 at 0.7 of that, open loop", latencies.p50_us(), "us");
        samples.add("p99 at 0.7 of that, open loop", latencies.p99_us(), "us");
    }
    Ok(())
}

/// Sends one by one for the bench's span, flat out or at a rate, and reads all of it back.
pub(super) fn send_singles(
    bench: &Bench,
    home: &Home,
    topic: &str,
    pool: &Pool,
    rate: Option<f64>,
) -> Outcome<(Poured, Latencies)> {
    clients::create_topic(home, topic, u32::try_from(SINGLE_PRODUCERS)?)?;
    let pace = rate.map(|rate| Duration::from_secs_f64(SINGLE_PRODUCERS as f64 / rate.max(1.0)));
    let line = Line::of(SINGLE_PRODUCERS);
    let members = muster(SINGLE_PRODUCERS, bench.span() + PATIENCE, |stream| {
        let line = line.clone();
        async move {
            let client = clients::connect(home).await?;
            let producer = client.producer(topic).ack(Ack::Durable).linger(LINGER);
            let producer = producer.buffer_bytes(4 << 20).open().await?;
            let (timed, receipts) = mpsc::unbounded_channel();
            let timing = tokio::spawn(time_receipts(receipts));
            line.wait().await;
            let begun = Instant::now();
            let hand_over = HandOver {
                pool,
                stream: u32::try_from(stream)?,
                begun,
                span: bench.span(),
                pace,
            };
            let sent = hand_over.all(&producer, &timed).await?;
            producer.flush().await?;
            let ended = Instant::now();
            drop(timed);
            Ok(((sent, begun, ended), timing.await??))
        }
    })?;
    let (counts, timings): (Vec<_>, Vec<_>) = members.into_iter().unzip();
    let poured = Poured::of(&counts);
    let mut latencies = Latencies::new()?;
    timings.iter().try_for_each(|one| latencies.merge(one))?;
    clients::read_back(home, topic, pool, &poured.sent)?;
    Ok((poured, latencies))
}

struct HandOver<'a> {
    pool: &'a Pool,
    stream: u32,
    begun: Instant,
    span: Duration,
    /// Between two records; flat out without it.
    pace: Option<Duration>,
}

impl HandOver<'_> {
    async fn all(&self, producer: &Producer, timed: &mpsc::UnboundedSender<Timed>) -> Outcome<u64> {
        let mut number = 0;
        loop {
            let due = match self.pace {
                Some(pace) => self.begun + pace.mul_f64(number as f64),
                None => Instant::now(),
            };
            if due >= self.begun + self.span {
                return Ok(number);
            }
            if self.pace.is_some() && due > Instant::now() {
                tokio::time::sleep_until(due.into()).await;
            } else if number % SAMPLED == 0 {
                // The client's own tasks share this thread.
                tokio::task::yield_now().await;
            }
            let record = Record::new(self.pool.value(self.stream.into(), number));
            let pending = producer.enqueue_to(self.stream, record).await?;
            // The others' failures are told by the flush at the end.
            if number % SAMPLED == 0 {
                timed.send((due, pending))?;
            }
            number += 1;
        }
    }
}

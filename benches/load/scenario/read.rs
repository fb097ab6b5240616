//! Reading: a backlog flat out, and live records as they come.

use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::load::broker::{Broker, MEMORY_BYTES};
use crate::load::ceilings::{SLOWER, Transport};
use crate::load::clients::{self, PATIENCE, Until};
use crate::load::crew::bounded;
use crate::load::latency::Latencies;
use crate::load::pace::{self, Plan};
use crate::load::process::Usage;
use crate::load::quic::source::Way;
use crate::load::records::{Check, Pool, VALUE_BYTES};
use crate::load::report::Samples;
use crate::load::{Bench, Outcome};

/// Readers of the backlog, a connection each.
const READERS: usize = 8;
/// The broker's cache of recent batches: an eighth of its budget.
const CACHE_BYTES: u64 = MEMORY_BYTES / 8;
/// How much more than the cache the backlog is.
const CACHES: u64 = 20;
/// Live records a second.
const LIVE_RATE: u32 = 10_000;

/// A backlog of at least ten times the cache, read from the start after a restart.
pub(crate) fn backlog(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let transport = Transport::start(bench)?;
    let mut broker = Broker::fresh(bench, "backlog")?;
    let pool = Pool::new(VALUE_BYTES);
    samples.note("1 kB records in 100 kB batches, 8 readers = 8 connections, 8 partitions, every record compared");
    clients::create_topic(broker.home(), "backlog", u32::try_from(READERS)?)?;
    let bytes = bench.size(CACHES * CACHE_BYTES, CACHE_BYTES / 4);
    let each = bytes / VALUE_BYTES as u64 / READERS as u64;
    let poured = clients::pour(broker.home(), "backlog", &pool, READERS, Until::Sent(each))?;
    for _ in 0..bench.runs {
        let ceiling = transport.best(bench, Way::Draw, samples)?;
        broker = broker.stop()?.start()?;
        let (before, own) = (broker.usage()?, Usage::own()?);
        let read = clients::read_back(broker.home(), "backlog", &pool, &poured.sent)?;
        let (used, own) = (broker.usage()?.since(before), Usage::own()?.since(own));
        let rate = read.gigabytes / read.took.as_secs_f64();
        samples.add("backlog read", rate, "GB/s");
        samples.add("broker", used.cpu_s / read.gigabytes, "CPU-s/GB");
        samples.add("clients", own.cpu_s / read.gigabytes, "CPU-s/GB");
        samples.add("share of the raw transport", rate / ceiling.gb_per_s(), "");
        bench.defend(rate <= ceiling.gb_per_s(), SLOWER, samples);
    }
    Ok(())
}

/// 10 000 records a second, open loop: from planned to read, beside from planned to acknowledged.
pub(crate) fn push(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let broker = Broker::fresh(bench, "push")?;
    let pool = Pool::new(VALUE_BYTES);
    samples.note("acknowledged durable; 1 kB records, 10 000 a second, linger 0, latency from the planned instant");
    for run in 0..bench.runs {
        let topic = format!("live-{run}");
        clients::create_topic(broker.home(), &topic, 1)?;
        let before = broker.usage()?;
        let plan = Plan::new(
            LIVE_RATE,
            bench.size(Duration::from_secs(15), Duration::from_secs(1)),
        );
        let (produced, consumed) = live(&broker, &topic, &pool, &plan)?;
        let used = broker.usage()?.since(before);
        samples.add("durable produce, p50", produced.p50_us(), "us");
        samples.add("durable produce, p99", produced.p99_us(), "us");
        samples.add("end to end, p50", consumed.p50_us(), "us");
        samples.add("end to end, p99", consumed.p99_us(), "us");
        samples.add(
            "broker CPU per record",
            used.cpu_s * 1e6 / plan.count as f64,
            "us",
        );
        let payload = plan.count as f64 * VALUE_BYTES as f64;
        samples.add(
            "written per payload byte",
            used.written_bytes as f64 / payload,
            "",
        );
        samples.add(
            "end to end over produce, p50",
            consumed.p50_us() / produced.p50_us(),
            "",
        );
    }
    Ok(())
}

fn live(broker: &Broker, topic: &str, pool: &Pool, plan: &Plan) -> Outcome<(Latencies, Latencies)> {
    let home = broker.home();
    let (ready, waiting) = channel();
    thread::scope(|scope| {
        let reading = scope.spawn(move || {
            bounded(plan.span() + PATIENCE, async {
                let client = clients::connect(home).await?;
                let mut reader = clients::open_reader(&client, topic, 0).await?;
                ready.send(())?;
                let mut check = Check::new(pool, 0);
                let mut latencies = Latencies::new()?;
                while check.taken() < plan.count {
                    let first = check.taken();
                    clients::take(&mut reader, &mut check, PATIENCE).await?;
                    let now = Instant::now();
                    for number in first..check.taken() {
                        let due = plan
                            .due(number)
                            .ok_or("a record came before the loop began")?;
                        latencies.record(now.saturating_duration_since(due));
                    }
                }
                check.finish(plan.count)?;
                Ok(latencies)
            })
        });
        // Where the reader does not get ready, joining tells why.
        let produced = match waiting.recv_timeout(PATIENCE) {
            Ok(()) => pace::send(home, topic, pool, plan),
            Err(_) => Err("the reader did not get ready".into()),
        };
        let consumed = reading.join().map_err(|_| "the reader panicked")?;
        Ok((produced?, consumed?))
    })
}

//! The memory budget, and what a well-behaved client notices of those who are not.
//!
//! Four cases, each beside a well-behaved client that sends 200 durable records a second, open loop.
//! Flat-out producers take what there is, so its latency is judged against a raw round trip beside flat-out
//! raw connections and two flushes of the largest size; against mischief, by its own latency before.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use waterwheel::client::TopicConfig;

use crate::load::broker::{Broker, Home};
use crate::load::ceilings::{ANSWER_BYTES, REQUEST_BYTES};
use crate::load::clients::{self, PATIENCE, Until};
use crate::load::crew::bounded;
use crate::load::disk::Disk;
use crate::load::hostile::{self, Mischief};
use crate::load::latency::Latencies;
use crate::load::pace::{self, Plan};
use crate::load::process::{Process, READY_WITHIN};
use crate::load::quic::Settings;
use crate::load::quic::source::RawServer;
use crate::load::records::{Pool, VALUE_BYTES};
use crate::load::report::Samples;
use crate::load::role;
use crate::load::{Bench, Outcome};

/// Records a second of the well-behaved client.
const RATE: u32 = 200;
/// Flat-out producers, and raw connections beside the raw round trip.
const PRODUCERS: usize = 8;
/// The largest flush of the log.
const FLUSH_BYTES: usize = 8 << 20;
/// The largest beside which a lone record waits.
const SHORT_FLUSH_BYTES: usize = 2 << 20;
/// The name of their case.
const FLAT_OUT: &str = "flat out";
/// Partitions of the backlog that stalled readers ask for.
const PARTITIONS: u32 = 8;
/// What a partition of the flood keeps at least, in bytes.
const FLOOD_KEPT: u64 = 1_000_000_000;
/// Topics the well-behaved client sends to beside the flood, one after the other. A segment stays as long as
/// anything in it is kept: were they one, 50 GB of the flood would stay beside 10 MB of it.
const TURNS: u32 = 6;
/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(100);

struct Case {
    name: &'static str,
    mischief: fn(&Bench, &Home) -> Outcome<Mischief>,
}

const CASES: [Case; 3] = [
    Case {
        name: "100 stalled readers",
        mischief: stalled_readers,
    },
    Case {
        name: "1 000 silent connections",
        mischief: |bench, _| {
            Ok(Mischief::Silence {
                count: bench.size(1_000, 50),
            })
        },
    },
    Case {
        name: "frames of 4 GiB",
        mischief: |_, _| Ok(Mischief::Giants),
    },
];

/// The four cases.
pub(crate) fn budget(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let disk = Disk::prepare(&bench.dir, bench.quick)?;
    let pool = Pool::new(VALUE_BYTES);
    samples.note("budget 512 MB (memory_bytes = 512 000 000); RSS is the highest seen, looked at every 100 ms");
    for run in 0..bench.runs {
        if bench.wants(FLAT_OUT) {
            settle(bench, &disk, samples)?;
            flat_out(bench, &disk, &pool, samples, run)?;
        }
        for case in CASES.iter().filter(|case| bench.wants(case.name)) {
            settle(bench, &disk, samples)?;
            mischief(bench, case, &pool, samples, run)?;
        }
    }
    Ok(())
}

/// What is compared are latencies of synced writes: the disk must have done with what came before.
fn settle(bench: &Bench, disk: &Disk, samples: &mut Samples) -> Outcome<()> {
    if !bench.quick && !disk.settle()? {
        samples.note("the disk was not quiet before each case: it stalled synced writes by itself");
    }
    Ok(())
}

fn span(bench: &Bench) -> Duration {
    bench.size(Duration::from_secs(60), Duration::from_secs(1))
}

/// Eight producers that send what they can.
fn flat_out(
    bench: &Bench,
    disk: &Disk,
    pool: &Pool,
    samples: &mut Samples,
    run: usize,
) -> Outcome<()> {
    let span = span(bench);
    let raw = RawServer::start(Settings::Product, &bench.dir)?;
    let flood = raw.flood(PRODUCERS)?;
    let trip = raw
        .round_trips(REQUEST_BYTES, ANSWER_BYTES, span / 4)?
        .p99_us();
    drop((flood, raw));
    let flush = disk.write(FLUSH_BYTES, span / 10)?.latencies.p50_us();
    let alone = disk.write(SHORT_FLUSH_BYTES, span / 4)?.latencies;
    let mut broker = Broker::fresh(bench, &format!("flat-out-{run}"))?;
    let home = broker.home();
    // Some 50 GB would come together in a minute: what nobody reads need not stay.
    let brief = TopicConfig {
        retention_bytes: Some(FLOOD_KEPT),
        ..TopicConfig::new(PARTITIONS)
    };
    clients::create_topic_as(home, "flood", brief)?;
    let mut producers = role::command(role::POUR)?;
    producers
        .arg(&home.data)
        .arg(home.address.to_string())
        .args(["flood", &PRODUCERS.to_string()]);
    producers.arg(span.as_millis().to_string());
    let producers = Process::start(producers, READY_WITHIN)?;
    let (calm, peak) = watched(&broker, || {
        let mut all = Latencies::new()?;
        for turn in 0..TURNS {
            let topic = format!("calm-{turn}");
            all.merge(&calm(&broker, &topic, pool, span * 4 / 5 / TURNS)?)?;
            clients::delete_topic(home, &topic)?;
        }
        Ok(all)
    })?;
    producers.finish(span + PATIENCE * 2)?;
    broker.still_runs()?;
    let allowed = trip + 2.0 * flush;
    samples.add("flat out: RSS", peak, "MB");
    samples.add("flat out: raw round trip beside a flood, p99", trip, "us");
    samples.add("flat out: flush of 8 MB, p50", flush, "us");
    samples.add(
        "flat out: what is left of a synced write of 2 MB under way, p99",
        alone.under_way_us(0.99),
        "us",
    );
    samples.add("flat out: well-behaved client, p50", calm.p50_us(), "us");
    samples.add("flat out: well-behaved client, p99", calm.p99_us(), "us");
    samples.add(
        "flat out: p99 over (round trip + two flushes)",
        calm.p99_us() / allowed,
        "",
    );
    broker.stop()?;
    Ok(())
}

/// The well-behaved client before, and beside, those who are not.
fn mischief(
    bench: &Bench,
    case: &Case,
    pool: &Pool,
    samples: &mut Samples,
    run: usize,
) -> Outcome<()> {
    let (span, name) = (span(bench), case.name);
    let mut broker = Broker::fresh(bench, &format!("mischief-{run}"))?;
    let mischief = (case.mischief)(bench, broker.home())?;
    let before = calm(&broker, "before", pool, span / 2)?;
    let ((beside, made), peak) = watched(&broker, || {
        scope(|scope| {
            let trouble = scope.spawn(|| hostile::make(broker.home(), mischief, span));
            let beside = calm(&broker, "beside", pool, span * 9 / 10)?;
            Ok((beside, trouble.join().map_err(|_| "the mischief panicked")?))
        })
    })?;
    made?;
    broker.still_runs()?;
    samples.add(format!("{name}: RSS"), peak, "MB");
    samples.add(format!("{name}: p99 before"), before.p99_us(), "us");
    samples.add(format!("{name}: p99 beside"), beside.p99_us(), "us");
    samples.add(
        format!("{name}: p99 over before"),
        beside.p99_us() / before.p99_us(),
        "",
    );
    broker.stop()?;
    Ok(())
}

/// What the well-behaved client sees; all of it is read back.
fn calm(broker: &Broker, topic: &str, pool: &Pool, span: Duration) -> Outcome<Latencies> {
    clients::create_topic(broker.home(), topic, 1)?;
    let plan = Plan::new(RATE, span);
    let latencies = pace::send(broker.home(), topic, pool, &plan)?;
    clients::read_back(broker.home(), topic, pool, &[plan.count])?;
    Ok(latencies)
}

/// A backlog of more than any buffer holds, for readers that stop reading.
fn stalled_readers(bench: &Bench, home: &Home) -> Outcome<Mischief> {
    clients::create_topic(home, "backlog", PARTITIONS)?;
    let each = bench.size(100_000, 2_000);
    let pool = Pool::new(VALUE_BYTES);
    clients::pour(
        home,
        "backlog",
        &pool,
        usize::try_from(PARTITIONS)?,
        Until::Sent(each),
    )?;
    let topic = bounded(PATIENCE, async {
        Ok(clients::connect(home).await?.topic("backlog").await?)
    })?;
    let count = bench.size(100, 10);
    Ok(Mischief::StalledReaders {
        count,
        topic: topic.id,
        partitions: PARTITIONS,
    })
}

/// Does something and says how much memory the broker had at most meanwhile, in MB.
fn watched<T>(broker: &Broker, act: impl FnOnce() -> Outcome<T>) -> Outcome<(T, f64)> {
    let (over, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    let done = scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // A broker that is gone is told by whoever talks to it.
                peak.fetch_max(broker.resident_bytes().unwrap_or(0), Ordering::Relaxed);
                sleep(LOOK);
            }
        });
        let done = act();
        over.store(true, Ordering::Relaxed);
        done
    })?;
    Ok((done, peak.into_inner() as f64 / 1e6))
}

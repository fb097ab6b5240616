//! In process beside over QUIC: the same sending and reading, once with the broker in this process and once
//! with one in a process of its own.
//!
//! Both are measured in turn within each run, so that what else the machine does meets both.

use std::time::Duration;

use waterwheel::client::Ack;

use super::produce::{one_by_one, send_singles};
use crate::load::broker::{Broker, Home};
use crate::load::clients::{self, PATIENCE, Until};
use crate::load::crew::bounded;
use crate::load::guest::Guest;
use crate::load::latency::Latencies;
use crate::load::records::{Pool, VALUE_BYTES};
use crate::load::report::Samples;
use crate::load::{Bench, Outcome};

/// Producers and readers flat out, a connection each.
const STREAMS: usize = 8;

/// What one carrier came to.
struct Came {
    durable: f64,
    singles: f64,
    one_in_flight: f64,
    read: f64,
}

/// Durable produce and backlog read in process, at least as fast as over QUIC.
pub(crate) fn beside_quic(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let pool = Pool::new(VALUE_BYTES);
    samples.note("acknowledged durable; as produce-durable, produce-singles and produce-one-in-flight; reading what the first sent");
    for run in 0..bench.runs {
        // One after the other in the same place: each leaves some 10 GB behind.
        let here = {
            let guest = Guest::fresh(bench, "beside")?;
            measure(bench, guest.home(), &pool, run)?
        };
        let there = {
            let broker = Broker::fresh(bench, "beside")?;
            measure(bench, broker.home(), &pool, run)?
        };
        let figures = [
            ("durable produce", here.durable, there.durable, "GB/s"),
            ("records one by one", here.singles, there.singles, "/s"),
            ("reading", here.read, there.read, "GB/s"),
        ];
        for (name, here, there, unit) in figures {
            samples.add(format!("{name}, in process"), here, unit);
            samples.add(format!("{name}, over QUIC"), there, unit);
            samples.add(format!("{name}: in process over QUIC"), here / there, "");
        }
        samples.add("one in flight, p50, in process", here.one_in_flight, "us");
        samples.add("one in flight, p50, over QUIC", there.one_in_flight, "us");
        let faster = there.one_in_flight / here.one_in_flight;
        samples.add("one in flight: in process over QUIC", faster, "");
    }
    Ok(())
}

fn measure(bench: &Bench, home: &Home, pool: &Pool, run: usize) -> Outcome<Came> {
    let topic = format!("durable-{run}");
    clients::create_topic(home, &topic, u32::try_from(STREAMS)?)?;
    let until = Until::Elapsed(bench.span());
    let poured = clients::pour(home, &topic, pool, STREAMS, until)?;
    let read = clients::read_back(home, &topic, pool, &poured.sent)?;
    let (singles, _) = send_singles(bench, home, &format!("singles-{run}"), pool, None)?;
    let latencies = one_in_flight(bench, home, pool, &format!("one-{run}"))?;
    Ok(Came {
        durable: poured.gigabytes() / poured.took.as_secs_f64(),
        singles: singles.records() as f64 / singles.took.as_secs_f64(),
        one_in_flight: latencies.p50_us(),
        read: read.gigabytes / read.took.as_secs_f64(),
    })
}

fn one_in_flight(bench: &Bench, home: &Home, pool: &Pool, topic: &str) -> Outcome<Latencies> {
    clients::create_topic(home, topic, 1)?;
    bounded(bench.span() + PATIENCE, async {
        let client = clients::connect(home).await?;
        let producer = client.producer(topic).ack(Ack::Durable);
        let producer = producer.linger(Duration::ZERO).open().await?;
        one_by_one(&producer, pool, bench.span()).await
    })
}

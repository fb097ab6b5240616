//! How fast a backlog is consumed in each mode.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use waterwheel::client::{Consumer, Mode, SettleError, Settlement, TopicConfig};

use super::{LOOK, Seen, filled, keyed, number};
use crate::load::broker::{Broker, Home};
use crate::load::ceilings::{SLOWER, Transport};
use crate::load::clients::{self, PATIENCE};
use crate::load::crew::{Line, muster};
use crate::load::process::Usage;
use crate::load::quic::source::Way;
use crate::load::records::VALUE_BYTES;
use crate::load::report::Samples;
use crate::load::{Bench, Outcome};

const TOPIC: &str = "rates";
/// Members of each group, a connection each, and partitions.
const MEMBERS: usize = 8;
/// Keys of the records.
const KEYS: u64 = 10_000;
/// Records unsettled of all members together.
const IN_FLIGHT: usize = 10_000;
/// Taken at a time.
const TAKEN: usize = 512;

/// Exclusive beside the raw transport; shared and key-ordered, each record acknowledged by itself and
/// durably, beside exclusive.
pub(crate) fn rates(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let transport = Transport::start(bench)?;
    let broker = Broker::fresh(bench, "rates")?;
    samples.note("1 kB records with 10 000 keys in 8 partitions, 8 members = 8 connections, every number checked");
    samples.note("shared and key-ordered: one acknowledgement per record, each awaited until durable, 10 000 in flight");
    let count = bench.size(1_000_000, 4_000);
    let config = TopicConfig::new(u32::try_from(MEMBERS)?);
    filled(&broker, TOPIC, config, count, |n| {
        keyed(n, KEYS, VALUE_BYTES)
    })?;
    for run in 0..bench.runs {
        let ceiling = transport.best(bench, Way::Draw, samples)?;
        let exclusive = mode(&broker, run, Mode::Exclusive, count, samples)?;
        let shared = mode(&broker, run, Mode::Shared, count, samples)?;
        let key_ordered = mode(&broker, run, Mode::KeyOrdered, count, samples)?;
        samples.add(
            "exclusive: share of the raw transport",
            exclusive / ceiling.gb_per_s(),
            "",
        );
        bench.defend(exclusive <= ceiling.gb_per_s(), SLOWER, samples);
        samples.add(
            "shared, single durable acks, over exclusive",
            shared / exclusive,
            "",
        );
        samples.add(
            "key-ordered, 10 000 keys, over shared",
            key_ordered / shared,
            "",
        );
    }
    Ok(())
}

/// Consumes all of it as a new group: GB of values a second.
fn mode(
    broker: &Broker,
    run: usize,
    mode: Mode,
    count: u64,
    samples: &mut Samples,
) -> Outcome<f64> {
    let group = format!("{}-{run}", mode.name());
    let seen = Seen::of(count)?;
    let (before, own) = (broker.usage()?, Usage::own()?);
    let took = consume(broker.home(), &group, mode, &seen, count)?;
    let (used, own) = (broker.usage()?.since(before), Usage::own()?.since(own));
    // What moved with its partition before it was acknowledged is at least once, as it should be.
    if seen.repeats() > 0 && !seen.is_any_gone() {
        samples.fault(format!("{}: {} repeats", mode.name(), seen.repeats()));
    }
    let gigabytes = count as f64 * VALUE_BYTES as f64 / 1e9;
    let (name, rate) = (mode.name(), gigabytes / took.as_secs_f64());
    samples.add(name, rate, "GB/s");
    samples.add(
        format!("{name}: records a second"),
        count as f64 / took.as_secs_f64(),
        "/s",
    );
    samples.add(
        format!("{name}: broker"),
        used.cpu_s / gigabytes,
        "CPU-s/GB",
    );
    samples.add(
        format!("{name}: clients"),
        own.cpu_s / gigabytes,
        "CPU-s/GB",
    );
    Ok(rate)
}

fn consume(home: &Home, group: &str, mode: Mode, seen: &Seen, count: u64) -> Outcome<Duration> {
    let line = Line::of(MEMBERS);
    let members = muster(MEMBERS, PATIENCE * 10, |member| {
        let line = line.clone();
        async move {
            let client = clients::connect(home).await?;
            let records = u32::try_from(IN_FLIGHT / MEMBERS)?;
            // Prefetch is what bounds a member that acknowledges by the batch.
            let records = if mode == Mode::Exclusive {
                u32::MAX
            } else {
                records
            };
            let consumer = client.consumer(group).topic(TOPIC).mode(mode);
            let consumer = consumer
                .name(&format!("m{member}"))
                .prefetch(8 << 20, records);
            line.wait().await;
            let begun = Instant::now();
            let mut consumer = consumer.open().await?;
            let ended = if mode == Mode::Exclusive {
                by_batch(&mut consumer, seen, count).await?
            } else {
                one_by_one(&mut consumer, seen, count).await?
            };
            consumer.close().await;
            Ok((begun, ended))
        }
    })?;
    let begun = members.iter().map(|(begun, _)| *begun).min();
    let ended = members.iter().filter_map(|(_, ended)| *ended).max();
    let took = begun.zip(ended).map(|(begun, ended)| ended - begun);
    took.ok_or_else(|| "nothing was consumed".into())
}

/// Acknowledges what it took of a partition up to its last. Says when the last answer came.
async fn by_batch(consumer: &mut Consumer, seen: &Seen, count: u64) -> Outcome<Option<Instant>> {
    let mut ended = None;
    let mut open: VecDeque<Settlement> = VecDeque::new();
    loop {
        let batch = consumer.next_batch(TAKEN, LOOK).await?;
        for run in batch.chunk_by(|a, b| a.partition == b.partition) {
            for delivery in run {
                seen.note(number(delivery)?)?;
            }
            open.extend(run.last().map(|last| consumer.ack_cumulative(last)));
        }
        let all = seen.distinct() >= count;
        while (all || open.len() > 8)
            && let Some(oldest) = open.pop_front()
        {
            match oldest.await {
                Ok(()) => ended = Some(Instant::now()),
                // Moved to another member while it lay in the queue here: it comes again there.
                Err(SettleError::Lost) => seen.gone(),
                Err(why) => return Err(why.into()),
            }
        }
        if all {
            return Ok(ended);
        }
    }
}

/// Acknowledges each by itself and hears of each that it is durable.
async fn one_by_one(consumer: &mut Consumer, seen: &Seen, count: u64) -> Outcome<Option<Instant>> {
    let mut ended = None;
    let mut open: VecDeque<Settlement> = VecDeque::new();
    loop {
        let batch = consumer.next_batch(TAKEN, LOOK).await?;
        for delivery in &batch {
            seen.note(number(delivery)?)?;
            open.push_back(consumer.ack(delivery));
        }
        let all = seen.distinct() >= count;
        while (all || open.len() > IN_FLIGHT / MEMBERS)
            && let Some(oldest) = open.pop_front()
        {
            oldest.await?;
            ended = Some(Instant::now());
        }
        if all {
            return Ok(ended);
        }
    }
}

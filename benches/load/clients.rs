//! The product's client as the scenarios use it: connect, fill, read back and compare.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use waterwheel::client::{
    Ack, Client, PendingRun, Producer, Reader, Record, SendStatus, Start, TopicConfig,
};

use super::broker::Home;
use super::crew::{Line, bounded, muster};
use super::records::{Check, Pool};
use super::{Outcome, records};

/// What needs no measuring takes no longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Records handed over at a time where batches are wanted full.
const RUN_RECORDS: u64 = 480;
/// Runs whose receipts are waited for at a time.
const RUNS_OPEN: usize = 16;

/// A connection of its own.
pub(crate) async fn connect(home: &Home) -> Outcome<Client> {
    if let Some(in_process) = &home.in_process {
        return Ok(in_process.clone().await?);
    }
    Ok(Client::connect(&home.address.to_string())
        .ca(home.authority())
        .await?)
}

/// Makes a topic.
pub(crate) fn create_topic(home: &Home, name: &str, partitions: u32) -> Outcome<()> {
    create_topic_as(home, name, TopicConfig::new(partitions))
}

/// Makes a topic that is not like the others.
pub(crate) fn create_topic_as(home: &Home, name: &str, config: TopicConfig) -> Outcome<()> {
    bounded(PATIENCE, async {
        connect(home).await?.create_topic(name, config).await?;
        Ok(())
    })
}

/// Deletes a topic and what is in it.
pub(crate) fn delete_topic(home: &Home, name: &str) -> Outcome<()> {
    bounded(PATIENCE, async {
        connect(home).await?.delete_topic(name).await?;
        Ok(())
    })
}

/// How long a producer goes on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// For this long.
    Elapsed(Duration),
    /// For this many records.
    Sent(u64),
}

/// What a crew of producers came to.
#[derive(Debug)]
pub(crate) struct Poured {
    /// Records acknowledged, by stream.
    pub(crate) sent: Vec<u64>,
    /// From the first record to the last receipt.
    pub(crate) took: Duration,
}

impl Poured {
    /// Values of the usual size, in GB.
    pub(crate) fn gigabytes(&self) -> f64 {
        self.records() as f64 * records::VALUE_BYTES as f64 / 1e9
    }

    /// Records in all.
    pub(crate) fn records(&self) -> u64 {
        self.sent.iter().sum()
    }

    /// Gathers what the members say: how much, from when to when.
    pub(crate) fn of(members: &[(u64, Instant, Instant)]) -> Self {
        let begun = members.iter().map(|(_, begun, _)| *begun).min();
        let ended = members.iter().map(|(_, _, ended)| *ended).max();
        Self {
            sent: members.iter().map(|(sent, _, _)| *sent).collect(),
            took: begun
                .zip(ended)
                .map(|(begun, ended)| ended - begun)
                .unwrap_or_default(),
        }
    }
}

/// Durable, flat out, 100 kB batches: stream `n` goes to partition `n`, each over its own connection.
pub(crate) fn pour(
    home: &Home,
    topic: &str,
    pool: &Pool,
    streams: usize,
    until: Until,
) -> Outcome<Poured> {
    let line = Line::of(streams);
    let within = match until {
        Until::Elapsed(span) => span + PATIENCE,
        Until::Sent(_) => PATIENCE * 10,
    };
    let members = muster(streams, within, |stream| {
        let line = line.clone();
        async move {
            let client = connect(home).await?;
            let producer = client
                .producer(topic)
                .ack(Ack::Durable)
                .batch_bytes(100_000)
                .linger(Duration::from_millis(5))
                .buffer_bytes(4 << 20)
                .open()
                .await?;
            line.wait().await;
            let begun = Instant::now();
            let sent = pour_stream(&producer, pool, u32::try_from(stream)?, begun, until).await?;
            Ok((sent, begun, Instant::now()))
        }
    })?;
    Ok(Poured::of(&members))
}

async fn pour_stream(
    producer: &Producer,
    pool: &Pool,
    stream: u32,
    begun: Instant,
    until: Until,
) -> Outcome<u64> {
    let (mut sent, mut acknowledged) = (0, 0);
    let mut open: VecDeque<PendingRun> = VecDeque::new();
    loop {
        let run = match until {
            Until::Elapsed(span) if begun.elapsed() < span => RUN_RECORDS,
            Until::Elapsed(_) => break,
            Until::Sent(records) if sent < records => RUN_RECORDS.min(records - sent),
            Until::Sent(_) => break,
        };
        let records =
            (sent..sent + run).map(|number| Record::new(pool.value(stream.into(), number)));
        open.push_back(producer.enqueue_run(stream, records).await?);
        sent += run;
        if open.len() > RUNS_OPEN
            && let Some(oldest) = open.pop_front()
        {
            settle(oldest, &mut acknowledged).await?;
        }
    }
    for run in open {
        settle(run, &mut acknowledged).await?;
    }
    if acknowledged != sent {
        return Err(format!("{acknowledged} records acknowledged of {sent} sent").into());
    }
    Ok(sent)
}

/// Waits for a run's receipts: each durable, each where the one before ended.
async fn settle(run: PendingRun, acknowledged: &mut u64) -> Outcome<()> {
    for receipt in run.wait().await? {
        let first = receipt.first;
        if first.status != SendStatus::SendOk || first.offset != Some(*acknowledged) {
            return Err(format!("after {acknowledged} records came the receipt {first:?}").into());
        }
        *acknowledged += u64::from(receipt.count);
    }
    Ok(())
}

/// What reading everything came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadBack {
    /// Values of the usual size, in GB.
    pub(crate) gigabytes: f64,
    /// From the first request to the last record.
    pub(crate) took: Duration,
}

/// Reads every stream from its first record, each over its own connection, and compares all of it.
pub(crate) fn read_back(home: &Home, topic: &str, pool: &Pool, sent: &[u64]) -> Outcome<ReadBack> {
    let line = Line::of(sent.len());
    let members = muster(sent.len(), PATIENCE * 10, |stream| {
        let line = line.clone();
        async move {
            let wanted = sent.get(stream).copied().unwrap_or_default();
            let client = connect(home).await?;
            line.wait().await;
            let begun = Instant::now();
            let mut check = Check::new(pool, stream as u64);
            let mut reader = open_reader(&client, topic, u32::try_from(stream)?).await?;
            while check.taken() < wanted {
                take(&mut reader, &mut check, PATIENCE).await?;
            }
            let ended = Instant::now();
            check.finish(wanted)?;
            Ok((wanted, begun, ended))
        }
    })?;
    let all = Poured::of(&members);
    Ok(ReadBack {
        gigabytes: all.gigabytes(),
        took: all.took,
    })
}

/// A reader of a partition from its first record.
pub(crate) async fn open_reader(client: &Client, topic: &str, partition: u32) -> Outcome<Reader> {
    Ok(client
        .reader(topic)
        .partition(partition)
        .from(Start::Earliest)
        .open()
        .await?)
}

/// Takes what has come, or waits for it, and compares it; says how many records it was.
pub(crate) async fn take(reader: &mut Reader, check: &mut Check, wait: Duration) -> Outcome<usize> {
    take_some(reader, check, usize::MAX, wait).await
}

/// The same, but at most `most` of the next batch; what is left of it is dropped.
pub(crate) async fn take_some(
    reader: &mut Reader,
    check: &mut Check,
    most: usize,
    wait: Duration,
) -> Outcome<usize> {
    let deliveries = tokio::time::timeout(wait, reader.next_deliveries())
        .await
        .map_err(|_| format!("no record came within {wait:?}"))??
        .ok_or("the reader ended")?;
    let wanted = deliveries.iter().take(most);
    wanted
        .map(|delivery| check.take(delivery.offset, &delivery.value))
        .collect::<Outcome<Vec<()>>>()
        .map(|all| all.len())
}

/// Waits until the broker serves: a durable acknowledgement, and the first byte of a read from the
/// oldest segment, in which partition 0 of this topic begins. Not checked any further.
pub(crate) fn await_serving(home: &Home, topic: &str) -> Outcome<()> {
    bounded(PATIENCE, async {
        let client = connect(home).await?;
        let producer = client
            .producer(topic)
            .ack(Ack::Durable)
            .linger(Duration::ZERO)
            .open()
            .await?;
        let last = producer.partitions().saturating_sub(1);
        producer.send_to(last, Record::new("serving?")).await?;
        let mut reader = open_reader(&client, topic, 0).await?;
        reader.next_deliveries().await?;
        Ok(())
    })
}

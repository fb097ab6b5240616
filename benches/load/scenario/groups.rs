//! Consumer groups: how fast each way of consuming is, who waits for whom, what comes again and what must
//! not.
//!
//! Every value begins with its number, so that a record lost, repeated or foreign shows as such.

pub(crate) mod choosing;
pub(crate) mod handover;
pub(crate) mod many;
pub(crate) mod places;
pub(crate) mod rates;
pub(crate) mod retries;
pub(crate) mod stalled;
pub(crate) mod workers;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use waterwheel::client::{Ack, AckMode, Client, Delivery, Mode, Record, Start, TopicConfig};

use super::timers::value;
use crate::load::Outcome;
use crate::load::broker::{Broker, Home};
use crate::load::clients::{self, PATIENCE, create_topic_as as make};
use crate::load::crew::{bounded, muster};
use crate::load::process::{Process, READY_WITHIN};
use crate::load::role;

/// Streams that fill a topic, a connection each.
const STREAMS: usize = 4;
/// Handed over before the next look at others on the thread.
const FILLED: u64 = 512;
/// How long a member waits for records before it looks whether all came.
const LOOK: Duration = Duration::from_millis(100);

/// Which numbers have come, whoever took them.
#[derive(Debug)]
struct Seen {
    words: Vec<AtomicU64>,
    distinct: AtomicU64,
    repeats: AtomicU64,
    /// Acknowledgements that were told that the record is another's by then.
    gone: AtomicU64,
}

impl Seen {
    fn of(count: u64) -> Outcome<Self> {
        let words = usize::try_from(count / 64 + 1)?;
        Ok(Self {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            distinct: AtomicU64::new(0),
            repeats: AtomicU64::new(0),
            gone: AtomicU64::new(0),
        })
    }

    /// An acknowledgement came too late: what it was of may come again.
    fn gone(&self) {
        self.gone.fetch_add(1, Ordering::Relaxed);
    }

    fn is_any_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed) > 0
    }

    /// Notes one; says whether it is the first of its number.
    fn note(&self, number: u64) -> Outcome<bool> {
        let word = self.words.get(usize::try_from(number / 64)?);
        let bit = 1 << (number % 64);
        let before = word
            .ok_or_else(|| format!("record {number} was never sent"))?
            .fetch_or(bit, Ordering::Relaxed);
        let first = before & bit == 0;
        let count = if first { &self.distinct } else { &self.repeats };
        count.fetch_add(1, Ordering::Relaxed);
        Ok(first)
    }

    fn distinct(&self) -> u64 {
        self.distinct.load(Ordering::Relaxed)
    }

    fn repeats(&self) -> u64 {
        self.repeats.load(Ordering::Relaxed)
    }
}

/// The number a value begins with.
fn number(delivery: &Delivery) -> Outcome<u64> {
    let bytes = delivery.value.first_chunk();
    let number = bytes.map(|bytes| u64::from_le_bytes(*bytes));
    number.ok_or_else(|| "a value is cut short".into())
}

/// A topic of this configuration with the records of the numbers below `count`, in batches of about
/// 100 kB, each where its key says or, without one, where its stream is.
fn filled(
    broker: &Broker,
    topic: &str,
    config: TopicConfig,
    count: u64,
    record: impl Fn(u64) -> Record + Sync,
) -> Outcome<()> {
    let home = broker.home();
    make(home, topic, config)?;
    fill(home, topic, 0..count, record)
}

/// Sends the records of these numbers, durably.
fn fill(
    home: &Home,
    topic: &str,
    numbers: std::ops::Range<u64>,
    record: impl Fn(u64) -> Record + Sync,
) -> Outcome<()> {
    let record = &record;
    muster(STREAMS, PATIENCE * 20, |stream| {
        let numbers = numbers.clone();
        async move {
            let client = clients::connect(home).await?;
            let producer = client
                .producer(topic)
                .ack(Ack::Durable)
                .batch_bytes(100_000)
                .linger(Duration::from_millis(5))
                .buffer_bytes(8 << 20)
                .open()
                .await?;
            let partition = u32::try_from(stream)? % producer.partitions();
            for number in numbers.skip(stream).step_by(STREAMS) {
                let record = record(number);
                drop(match record.key {
                    Some(_) => producer.enqueue(record).await?,
                    None => producer.enqueue_to(partition, record).await?,
                });
                if (number / STREAMS as u64).is_multiple_of(FILLED) {
                    tokio::task::yield_now().await;
                }
            }
            // A failure of any of them is told here.
            producer.flush().await?;
            Ok(())
        }
    })?;
    Ok(())
}

/// A numbered record of a key.
fn keyed(number: u64, keys: u64, bytes: usize) -> Record {
    // A bijection of the key's number: neighbours are of different keys, and in no pattern.
    let key = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
    Record::new(value(number, bytes)).key(format!("k{}", key % keys))
}

/// What a group has not consumed yet.
async fn lag(client: &Client, group: &str) -> Outcome<u64> {
    Ok(client.describe_group(group).await?.lag(None))
}

/// Fails unless the group has consumed everything soon.
fn await_consumed(home: &Home, group: &str) -> Outcome<()> {
    bounded(PATIENCE, async {
        let client = clients::connect(home).await?;
        while lag(&client, group).await? > 0 {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    })
}

/// A member in a process of its own; `file` gets the numbers it was given, a line each, before it
/// acknowledges them.
fn member_process(
    home: &Home,
    topic: &str,
    group: &str,
    mode: Mode,
    ack: AckMode,
    file: &Path,
) -> Outcome<Process> {
    let mut command = role::command(role::CONSUME)?;
    command.arg(&home.data).arg(home.address.to_string());
    command.args([topic, group, mode.name()]);
    command.arg(match ack {
        AckMode::None => "none",
        AckMode::Manual | AckMode::Auto => "manual",
    });
    command.arg(file);
    Process::start(command, READY_WITHIN)
}

/// The other end of [`member_process`].
pub(crate) fn consume_until_killed(home: &Home, rest: &[String]) -> Outcome<()> {
    let [topic, group, mode, ack, file] = rest else {
        return Err(
            "a consumer needs a topic, a group, a mode, when it acknowledges, a file".into(),
        );
    };
    let modes = [
        Mode::Exclusive,
        Mode::Shared,
        Mode::KeyOrdered,
        Mode::Broadcast,
    ];
    let mode = modes.into_iter().find(|known| known.name() == mode);
    let ack = match ack.as_str() {
        "none" => AckMode::None,
        _ => AckMode::Manual,
    };
    let mut file = OpenOptions::new().create(true).append(true).open(file)?;
    bounded(PATIENCE * 60, async move {
        let client = clients::connect(home).await?;
        let mut consumer = client
            .consumer(group)
            .topic(topic)
            .mode(mode.ok_or("no such mode")?)
            .ack(ack)
            // What is in its hands when it is killed is little beside what there is.
            .prefetch(1 << 20, 200)
            .open()
            .await?;
        role::announce(home.address)?;
        while let Some(delivery) = consumer.next().await {
            let delivery = delivery?;
            writeln!(file, "{}", number(&delivery)?)?;
            drop(consumer.ack(&delivery));
        }
        Ok(())
    })
}

/// What [`member_process`] left in its file; a last line that was cut off by the kill does not count.
fn left_behind(file: &Path) -> Outcome<Vec<u64>> {
    let text = fs::read_to_string(file)?;
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let numbers = whole.lines().map(str::parse::<u64>);
    Ok(numbers.collect::<Result<_, _>>()?)
}

/// Reads a whole topic: every record once, in no order between partitions.
async fn read_all(client: &Client, topic: &str) -> Outcome<Vec<Delivery>> {
    let mut reader = client
        .reader(topic)
        .from(Start::Earliest)
        .until_end()
        .open()
        .await?;
    let mut all = Vec::new();
    while let Some(delivery) = reader.next().await {
        all.push(delivery?);
    }
    Ok(all)
}

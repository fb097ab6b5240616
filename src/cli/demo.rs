//! `waterwheel demo`: a broker in a temporary directory, real traffic over QUIC, and what happened.

mod scenes;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::exit::{CliError, Outcome};
use super::print;
use super::scratch::Scratch;
use super::serve::not_started;
use crate::broker::Broker;
use crate::client::{Client, Delivery, Record, Start, TopicConfig};
use crate::config::Config;

const TOPIC: &str = "orders";
const PARTITIONS: u32 = 4;
const KEYS: u64 = 1000;
const RECORDS: u64 = 200_000;
const VISITS: u64 = 200;

/// Show a broker at work: real traffic over QUIC in a temporary directory, under 30 seconds.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {}

pub(super) fn run(_arguments: &Arguments) -> Result<Outcome, CliError> {
    let scratch = Scratch::new("demo")?;
    actix_rt::System::new().block_on(show(&scratch))
}

async fn show(scratch: &Scratch) -> Result<Outcome, CliError> {
    print(format_args!(
        "A broker starts in {}.",
        scratch.path().display()
    ))?;
    let (broker, client) = start(scratch).await?;
    let topic = client
        .create_topic(TOPIC, TopicConfig::new(PARTITIONS))
        .await?;
    print(format_args!(
        "Topic {TOPIC} with {PARTITIONS} partitions is made (id {}).",
        topic.id
    ))?;
    one_by_one(&client).await?;
    let sent = send_all(&client).await?;
    let checked = read_all(&client, Start::Earliest).await?;
    tell_read("All partitions are read back", &checked)?;
    let timers = scenes::timers(&client).await?;
    let transactions = scenes::transactions(&client).await?;
    let groups = scenes::groups(&client).await?;

    print("The broker stops and starts again in the same directory.")?;
    drop(client);
    broker.stop().await;
    let started = Instant::now();
    let (broker, client) = start(scratch).await?;
    print(format_args!(
        "It is back after {} ms.",
        started.elapsed().as_millis()
    ))?;
    let again = read_all(&client, Start::Earliest).await?;
    tell_read("Everything is read once more", &again)?;
    drop(client);
    broker.stop().await;

    let whole = |read: &Read| read.records == sent && read.disorder == 0;
    if !timers || !transactions || !groups {
        print(
            "A timer, a transaction or a group did not do what it must: this is a fault of the broker.",
        )?;
        return Ok(Outcome::No);
    }
    if whole(&checked) && whole(&again) {
        print(format_args!(
            "{sent} records: each there once, in the order of its key, before and after the restart."
        ))?;
        Ok(Outcome::Done)
    } else {
        print("Something is missing, doubled or out of order: this is a fault of the broker.")?;
        Ok(Outcome::No)
    }
}

async fn start(scratch: &Scratch) -> Result<(Broker, Client), CliError> {
    let config = Config {
        data: scratch.path().to_owned(),
        listen: Some(([127, 0, 0, 1], 0).into()),
        ..Config::default()
    };
    let broker = Broker::start(config).await.map_err(not_started)?;
    let address = broker
        .local_addr()
        .ok_or_else(|| CliError::Failed("the broker does not listen".to_owned()))?;
    let client = Client::connect(&address.to_string())
        .ca(scratch.path().join("tls/ca.pem"))
        .await?;
    Ok((broker, client))
}

/// A few records, each waited for: what one durable acknowledgement takes.
async fn one_by_one(client: &Client) -> Result<(), CliError> {
    let producer = client.producer(TOPIC).open().await?;
    let mut took = Vec::new();
    for number in 0..VISITS {
        let began = Instant::now();
        let record = Record::new(format!("visit {number}")).key("visitors");
        producer.send(record).await.map_err(not_sent)?;
        took.push(began.elapsed());
    }
    took.sort_unstable();
    let median = took.get(took.len() / 2).copied().unwrap_or_default();
    print(format_args!(
        "{VISITS} records one by one: each is on the disk before it is acknowledged, median {} us.",
        median.as_micros()
    ))?;
    producer.close().await.map_err(not_sent)
}

/// Many records, batched; answers how many there are in the topic now.
async fn send_all(client: &Client) -> Result<u64, CliError> {
    let producer = client.producer(TOPIC).open().await?;
    let began = Instant::now();
    for number in 0..RECORDS {
        let key = format!("customer-{:03}", number % KEYS);
        let record = Record::new(format!("{number}: an order of {key}")).key(key);
        producer.send_one_way(record).await.map_err(not_sent)?;
    }
    producer.close().await.map_err(not_sent)?;
    let rate = per_second(RECORDS, began.elapsed());
    print(format_args!(
        "{RECORDS} records of {KEYS} keys in batches: all durable, {rate} records/s."
    ))?;
    Ok(RECORDS + VISITS)
}

#[derive(Debug)]
struct Read {
    records: u64,
    bytes: u64,
    disorder: u64,
    took: Duration,
}

async fn read_all(client: &Client, from: Start) -> Result<Read, CliError> {
    let mut reader = client.reader(TOPIC).from(from).until_end().open().await?;
    let began = Instant::now();
    let mut read = Read {
        records: 0,
        bytes: 0,
        disorder: 0,
        took: Duration::ZERO,
    };
    let mut last: HashMap<Vec<u8>, u64> = HashMap::new();
    while let Some(deliveries) = reader.next_deliveries().await? {
        for delivery in deliveries {
            read.records += 1;
            read.bytes += delivery.value.len() as u64;
            read.disorder += u64::from(!in_order(&mut last, &delivery));
        }
    }
    read.took = began.elapsed();
    Ok(read)
}

/// Whether a key's numbers go up by one record of that key at a time.
fn in_order(last: &mut HashMap<Vec<u8>, u64>, delivery: &Delivery) -> bool {
    let text = String::from_utf8_lossy(&delivery.value);
    let Some(number) = text
        .split(':')
        .next()
        .and_then(|number| number.parse().ok())
    else {
        return true;
    };
    let key = delivery.key.as_deref().unwrap_or_default().to_vec();
    match last.insert(key, number) {
        None => number < KEYS,
        Some(before) => number == before + KEYS,
    }
}

fn tell_read(what: &str, read: &Read) -> Result<(), CliError> {
    print(format_args!(
        "{what}: {} records, {} bytes of values, {} out of order, {} records/s.",
        read.records,
        read.bytes,
        read.disorder,
        per_second(read.records, read.took)
    ))
}

fn per_second(count: u64, took: Duration) -> u64 {
    let micros = took.as_micros().max(1);
    u64::try_from(u128::from(count) * 1_000_000 / micros).unwrap_or(u64::MAX)
}

fn not_sent(error: crate::client::SendError) -> CliError {
    CliError::Failed(error.to_string())
}

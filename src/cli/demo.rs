//! `waterwheel demo`: a broker in a temporary directory, real traffic over QUIC, and what happened.
//!
//! With `--json` one object per line and scene: `scene`, what was counted in it, and `ok` where there is
//! something that can go wrong. The last one is `{"scene":"end","records","ok"}`.

mod scenes;

use std::collections::HashMap;
use std::fmt::Display;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::exit::{CliError, Outcome};
use super::scratch::Scratch;
use super::serve::not_started;
use super::{print, print_json};
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
pub(super) struct Arguments {
    /// One JSON object per scene: what was counted in it, and whether it went as it must.
    #[arg(long)]
    json: bool,
}

/// Says what a scene showed, in one of two forms.
#[derive(Debug, Clone, Copy)]
struct Teller {
    json: bool,
}

/// A line of `--json`.
#[derive(Serialize)]
struct Scene<'a> {
    scene: &'a str,
    #[serde(flatten)]
    facts: serde_json::Value,
}

impl Teller {
    fn tell(
        self,
        scene: &str,
        facts: serde_json::Value,
        sentence: impl Display,
    ) -> Result<(), CliError> {
        match self.json {
            true => print_json(&Scene { scene, facts }),
            false => print(sentence),
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<Outcome, CliError> {
    let scratch = Scratch::new("demo")?;
    let teller = Teller {
        json: arguments.json,
    };
    actix_rt::System::new().block_on(show(&scratch, teller))
}

async fn show(scratch: &Scratch, teller: Teller) -> Result<Outcome, CliError> {
    let place = scratch.path().display();
    teller.tell(
        "start",
        json!({ "data": place.to_string() }),
        format_args!("A broker starts in {place}."),
    )?;
    let (broker, client) = start(scratch).await?;
    let topic = client
        .create_topic(TOPIC, TopicConfig::new(PARTITIONS))
        .await?;
    teller.tell(
        "topic",
        json!({ "topic": TOPIC, "partitions": PARTITIONS, "id": topic.id.0 }),
        format_args!(
            "Topic {TOPIC} with {PARTITIONS} partitions is made (id {}).",
            topic.id
        ),
    )?;
    one_by_one(&client, teller).await?;
    let sent = send_all(&client, teller).await?;
    let checked = read_all(&client, Start::Earliest).await?;
    tell_read(teller, "read", "All partitions are read back", &checked)?;
    let timers = scenes::timers(&client, teller).await?;
    let transactions = scenes::transactions(&client, teller).await?;
    let groups = scenes::groups(&client, teller).await?;

    if !teller.json {
        print("The broker stops and starts again in the same directory.")?;
    }
    drop(client);
    broker.stop().await;
    let started = Instant::now();
    let (broker, client) = start(scratch).await?;
    let took = started.elapsed().as_millis();
    teller.tell(
        "restart",
        json!({ "ms": u64::try_from(took).unwrap_or(u64::MAX) }),
        format_args!("It is back after {took} ms."),
    )?;
    let again = read_all(&client, Start::Earliest).await?;
    tell_read(teller, "read-again", "Everything is read once more", &again)?;
    drop(client);
    broker.stop().await;

    let whole = |read: &Read| read.records == sent && read.disorder == 0;
    let whole = whole(&checked) && whole(&again);
    let scenes = timers && transactions && groups;
    let sentence = match (scenes, whole) {
        (false, _) => "A timer, a transaction or a group did not do what it must: this is a fault of the broker."
            .to_owned(),
        (true, false) => {
            "Something is missing, doubled or out of order: this is a fault of the broker.".to_owned()
        }
        (true, true) => format!(
            "{sent} records: each there once, in the order of its key, before and after the restart."
        ),
    };
    let ok = scenes && whole;
    teller.tell("end", json!({ "records": sent, "ok": ok }), sentence)?;
    Ok(if ok { Outcome::Done } else { Outcome::No })
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
async fn one_by_one(client: &Client, teller: Teller) -> Result<(), CliError> {
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
    let median = u64::try_from(median.as_micros()).unwrap_or(u64::MAX);
    teller.tell(
        "one-by-one",
        json!({ "records": VISITS, "median_us": median }),
        format_args!(
            "{VISITS} records one by one: each is on the disk before it is acknowledged, median {median} us."
        ),
    )?;
    producer.close().await.map_err(not_sent)
}

/// Many records, batched; answers how many there are in the topic now.
async fn send_all(client: &Client, teller: Teller) -> Result<u64, CliError> {
    let producer = client.producer(TOPIC).open().await?;
    let began = Instant::now();
    for number in 0..RECORDS {
        let key = format!("customer-{:03}", number % KEYS);
        let record = Record::new(format!("{number}: an order of {key}")).key(key);
        producer.send_one_way(record).await.map_err(not_sent)?;
    }
    producer.close().await.map_err(not_sent)?;
    let rate = per_second(RECORDS, began.elapsed());
    teller.tell(
        "batches",
        json!({ "records": RECORDS, "keys": KEYS, "records_per_s": rate }),
        format_args!("{RECORDS} records of {KEYS} keys in batches: all durable, {rate} records/s."),
    )?;
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

fn tell_read(teller: Teller, scene: &str, what: &str, read: &Read) -> Result<(), CliError> {
    let Read {
        records,
        bytes,
        disorder,
        took,
    } = *read;
    let rate = per_second(records, took);
    teller.tell(
        scene,
        json!({
            "records": records, "value_bytes": bytes, "out_of_order": disorder, "records_per_s": rate,
            "ok": disorder == 0,
        }),
        format_args!(
            "{what}: {records} records, {bytes} bytes of values, {disorder} out of order, {rate} records/s."
        ),
    )
}

fn per_second(count: u64, took: Duration) -> u64 {
    let micros = took.as_micros().max(1);
    u64::try_from(u128::from(count) * 1_000_000 / micros).unwrap_or(u64::MAX)
}

fn not_sent(error: crate::client::SendError) -> CliError {
    CliError::Failed(error.to_string())
}

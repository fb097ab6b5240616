//! A data directory written by an earlier build must open ever after, and give back what is in it.
//!
//! `tests/fixtures/v1` was written once by [`write_fixture`] (`WATERWHEEL_MAKE_FIXTURE=1 cargo test --test
//! fixture`) and is never written again: a change of a format adds another directory, and a way to read
//! this one.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it did"
)]

use std::path::{Path, PathBuf};

use futures::StreamExt;
use waterwheel::broker::Broker;
use waterwheel::client::{Client, Compression, Record, Start, TopicConfig};
use waterwheel::config::Config;

const RECORDS: u64 = 500;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1")
}

fn config(data: &Path) -> Config {
    Config {
        data: data.to_path_buf(),
        listen: Some("127.0.0.1:0".parse().expect("an address")),
        segment_bytes: 1 << 20,
        flush_bytes_max: 128 << 10,
        batch_bytes_max: 32 << 10,
        ..Config::default()
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory can be made");
    for entry in std::fs::read_dir(from).expect("the fixture is there") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a file can be copied");
        }
    }
}

async fn client(broker: &Broker, data: &Path) -> Client {
    let address = broker.local_addr().expect("it listens").to_string();
    Client::connect(&address)
        .ca(data.join("tls/ca.pem"))
        .await
        .expect("it answers")
}

fn record(number: u64) -> Record {
    Record::new(format!("value {number}"))
        .key(format!("key {}", number % 9))
        .tag(if number.is_multiple_of(2) {
            "even"
        } else {
            "odd"
        })
        .header("number", number.to_string())
}

async fn write_fixture(data: &Path) {
    let broker = Broker::start(config(data)).await.expect("it starts");
    let client = client(&broker, data).await;
    for (topic, compression) in [
        ("plain", Compression::None),
        ("lz4", Compression::Lz4),
        ("zstd", Compression::Zstd),
    ] {
        client
            .create_topic(topic, TopicConfig::new(2))
            .await
            .expect("a new topic");
        let producer = client
            .producer(topic)
            .compression(compression)
            .batch_bytes(4096)
            .open()
            .await
            .expect("it opens");
        let sent: Vec<_> = futures::stream::iter(0..RECORDS)
            .then(|number| producer.enqueue(record(number)))
            .collect()
            .await;
        for pending in sent {
            pending.expect("there is room").await.expect("it is stored");
        }
    }
    client
        .create_topic("gone", TopicConfig::new(1))
        .await
        .expect("a new topic");
    client.delete_topic("gone").await.expect("it is there");
    broker.stop().await;
}

async fn check(data: &Path) {
    let broker = Broker::start(config(data))
        .await
        .expect("it opens what was written before");
    let client = client(&broker, data).await;
    let names: Vec<String> = client
        .topics()
        .await
        .expect("topics")
        .into_iter()
        .map(|topic| topic.name)
        .collect();
    assert_eq!(names, ["plain", "lz4", "zstd"]);
    for topic in names {
        let mut numbers = Vec::new();
        for partition in 0..2 {
            let mut reader = client
                .reader(&topic)
                .partition(partition)
                .from(Start::Earliest)
                .until_end()
                .open()
                .await
                .expect("it can be read");
            while let Some(delivery) = reader.next().await {
                let delivery = delivery.expect("every record can be read");
                let (_, number) = delivery.headers.first().expect("a header");
                let number: u64 = std::str::from_utf8(number)
                    .expect("text")
                    .parse()
                    .expect("a number");
                assert_eq!(delivery.value, format!("value {number}"));
                assert_eq!(
                    delivery.key.as_deref(),
                    Some(format!("key {}", number % 9).as_bytes())
                );
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (0..RECORDS).collect::<Vec<_>>(), "{topic}");
    }
    let producer = client.producer("plain").open().await.expect("it opens");
    producer
        .send(Record::new("one more"))
        .await
        .expect("it goes on");
    broker.stop().await;
}

fn run(work: impl Future<Output = ()> + 'static) {
    actix_rt::System::new().block_on(work);
}

#[test]
fn a_directory_of_the_first_format_opens_and_gives_back_what_is_in_it() {
    if std::env::var_os("WATERWHEEL_MAKE_FIXTURE").is_some() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let data = dir.path().to_path_buf();
        run(async move { write_fixture(&data).await });
        for part in ["log", "views"] {
            copy(&dir.path().join(part), &fixture().join(part));
        }
        for mark in ["views.mark.0", "views.mark.1"] {
            let _ = std::fs::copy(dir.path().join(mark), fixture().join(mark));
        }
    }
    for views in ["believed", "missing"] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        copy(&fixture(), dir.path());
        if views == "missing" {
            std::fs::remove_dir_all(dir.path().join("views")).expect("views can be deleted");
        }
        let data = dir.path().to_path_buf();
        run(async move { check(&data).await });
    }
}

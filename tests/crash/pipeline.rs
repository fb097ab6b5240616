//! A pipeline that consumes, transforms and produces, exactly once: workers are processes of their own that
//! are killed like the broker is, and what comes out is what one undisturbed worker would have made.
//!
//! The source is consumed in order, so that the results of each partition come in the order of their
//! sources, through every kill.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use waterwheel::client::{
    Client, ConsumeError, Mode, Record, Start, TopicConfig, TransactionError,
};

use crate::child::delete_views;
use crate::load::connect;
use crate::{Dice, full, launch, run};

const PARTITIONS: u32 = 4;
const WORKERS: usize = 2;
const GROUP: &str = "squares";
/// Names the broker a worker works for.
const WORK_FOR: &str = "WATERWHEEL_TEST_WORK_FOR";

fn records() -> u64 {
    if full() { 1_000_000 } else { 20_000 }
}

/// What is made of a number.
fn transform(n: u64) -> u64 {
    n.wrapping_mul(n).wrapping_add(1)
}

fn number(value: &[u8]) -> u64 {
    let text = std::str::from_utf8(value).expect("values are text");
    text.parse().expect("a number")
}

/// The worker's process: this test binary, told to be one. It never ends by itself.
#[test]
#[ignore = "a worker that the pipeline's test starts and kills"]
fn worker() {
    let Ok(work_for) = std::env::var(WORK_FOR) else {
        return;
    };
    let mut parts = work_for.splitn(3, ' ');
    let mut next = || parts.next().expect("address, number and directory");
    let (address, index, data) = (next(), next(), next());
    let address = address.parse().expect("an address");
    run(async {
        let client = connect(address, Path::new(data)).await;
        let id = format!("square-{index}");
        loop {
            // A broker that is killed fails what is under way: begin anew, as a new process would.
            if let Err(error) = work(&client, &id).await {
                assert!(!error.is_empty());
            }
        }
    });
}

async fn work(client: &Client, id: &str) -> Result<(), String> {
    let failed = |error: TransactionError| error.to_string();
    let lost = |error: ConsumeError| error.to_string();
    // First the session, which rolls back what its predecessor left; then what that held comes again.
    let producer = client
        .transactional_producer(id)
        .timeout(Duration::from_secs(20))
        .open()
        .await
        .map_err(failed)?;
    let builder = client.consumer(GROUP).topic("numbers");
    let mut consumer = builder.mode(Mode::Exclusive).open().await.map_err(lost)?;
    loop {
        let batch = consumer
            .next_batch(400, Duration::from_secs(5))
            .await
            .map_err(lost)?;
        let mut transaction = producer.transaction();
        for delivery in &batch {
            let result = transform(number(&delivery.value));
            let record = Record::new(result.to_string());
            transaction
                .send_to("squares", delivery.partition, record)
                .await
                .map_err(failed)?;
        }
        transaction
            .attach(&consumer.settler(), &batch)
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
    }
}

/// A worker that is killed when it is dropped.
struct Worker(Child);

impl Worker {
    fn start(address: &str, index: usize, data: &Path) -> Self {
        let work_for = format!("{address} {index} {}", data.display());
        let program = std::env::current_exe().expect("this test has a path");
        let child = Command::new(program)
            .args(["--exact", "pipeline::worker", "--ignored"])
            .env(WORK_FOR, work_for)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("a worker starts");
        Self(child)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How many results there are.
async fn done(client: &Client) -> u64 {
    match client.describe_topic("squares").await {
        Ok(topic) => topic
            .partitions
            .iter()
            .map(|one| one.high_watermark.0)
            .sum(),
        Err(_) => 0,
    }
}

async fn fill(client: &Client, records: u64) {
    for topic in ["numbers", "squares"] {
        let config = TopicConfig::new(PARTITIONS);
        client.create_topic(topic, config).await.expect("a topic");
    }
    let producer = client.producer("numbers").open().await.expect("it opens");
    for n in 0..records {
        let partition = (n % u64::from(PARTITIONS)) as u32;
        let record = Record::new(n.to_string());
        let sent = producer.enqueue_to(partition, record).await;
        drop(sent.expect("there is room"));
    }
    producer.close().await.expect("everything is stored");
}

/// Every partition's results are those of its numbers, in order, each once.
async fn audit(client: &Client, records: u64) {
    for partition in 0..PARTITIONS {
        let reader = client
            .reader("squares")
            .partition(partition)
            .from(Start::Earliest)
            .until_end();
        let mut reader = reader.open().await.expect("it can be read");
        let mut expected =
            (0..records).filter(|n| n % u64::from(PARTITIONS) == u64::from(partition));
        while let Some(delivery) = reader.next().await {
            let found = number(&delivery.expect("it can be read").value);
            let wanted = expected.next().map(transform);
            assert_eq!(
                Some(found),
                wanted,
                "in order and once, in partition {partition}"
            );
        }
        assert_eq!(
            expected.next(),
            None,
            "nothing is missing in partition {partition}"
        );
    }
}

#[test]
fn a_pipeline_whose_workers_and_broker_are_killed_makes_what_an_undisturbed_one_would() {
    run(async {
        let mut dice = Dice::new();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut launch = launch(dir.path());
        launch
            .settings
            .push(("WATERWHEEL_TRANSACTION_DURATION_MS", "5000".to_owned()));
        let mut broker = launch.start(0, None).expect("it starts");
        let (address, records) = (broker.address, records());
        let client = connect(address, dir.path()).await;
        fill(&client, records).await;
        let name = address.to_string();
        let start = |index| Worker::start(&name, index, dir.path());
        let mut workers: Vec<Worker> = (0..WORKERS).map(start).collect();
        let (mut kills, mut worker_kills, mut seen) = (0, 0, 0);
        while seen < records {
            let until = (seen + 200 + dice.below(records / 20)).min(records);
            while seen < until {
                tokio::time::sleep(Duration::from_millis(10)).await;
                seen = seen.max(done(&client).await);
            }
            if dice.below(2) == 0 {
                broker.kill();
                kills += 1;
                if dice.below(3) == 0 {
                    delete_views(dir.path());
                }
                broker = launch
                    .start(address.port(), None)
                    .expect("it starts on what a kill left");
            } else {
                let index = dice.below(WORKERS as u64) as usize;
                // Dropped first: the session of its successor rolls back what it left.
                drop(workers.remove(index));
                workers.insert(index, start(index));
                worker_kills += 1;
            }
        }
        println!(
            "{records} records through {kills} kills of the broker and {worker_kills} of workers"
        );
        // What was read again after the last kill would show as more.
        audit(&client, records).await;
        let group = client.describe_group(GROUP).await.expect("it is there");
        assert_eq!(
            group.lag(None),
            0,
            "everything is consumed with its results"
        );
        drop(workers);
    });
}

//! Consume, transform, produce, exactly once, though the worker is killed again and again, and an audit of it
//! in SQLite.
//!
//! ```text
//! cargo run --example pipeline [DATABASE-FILE]
//! ```
//!
//! Deposits come in by account. The worker converts each into another currency and passes it on by the same
//! account, in transactions: what was consumed is attached to what it became ([`convert_all`]). It is a process
//! of its own, this program started with other arguments, killed at random moments; the next one goes on.
//!
//! In the end the results, in the order of the log, are put into a table beside those that one loop over the
//! same deposits gives, and the database is asked for differences: none is missing, none is there twice, none
//! is wrong, and every account has its own in order.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};
use waterwheel::client::{Client, Mode, Record, TopicConfig, TransactionError};
use waterwheel::{Broker, Config};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const DEPOSITS: u32 = 4_000;
const ACCOUNTS: u32 = 20;
const KILLS: u32 = 5;
/// Records of one transaction, at most.
const BATCH: usize = 20;
/// So many commits are seen before a worker is killed, at most: all five are killed in the middle of it.
const COMMITS: u32 = 25;
/// What the last worker may take for the rest.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is done to each. The number stays with it, so that the audit can tell them apart.
fn convert(deposit: &str) -> Result<String, Failure> {
    let (number, cents) = deposit.split_once(' ').ok_or("not a deposit")?;
    let cents: u64 = cents.parse()?;
    Ok(format!("{number} {}", cents * 1955 / 1000))
}

/// Amounts that differ, the same in every run.
fn deposit(number: u32) -> (String, String) {
    let cents = number.wrapping_mul(2_654_435_761) % 100_000;
    let account = format!("account-{}", number % ACCOUNTS);
    (account, format!("{number} {cents}"))
}

/// The worker, until it is killed. Where its leases are lost, its transaction is rolled back, and it begins
/// anew as the next worker would.
async fn work(address: &str, ca: &str) -> Result<(), Failure> {
    let client = Client::connect(address).ca(ca).await?;
    loop {
        let Err(why) = convert_all(&client).await else {
            continue;
        };
        let lost = why.downcast_ref::<TransactionError>();
        if lost.is_none_or(|lost| lost.code() != "unknown-lease") {
            return Err(why);
        }
    }
}

/// Says after every commit how many records it had.
#[expect(clippy::print_stdout, reason = "whoever kills it reads this")]
async fn convert_all(client: &Client) -> Result<(), Failure> {
    // First the session: it rolls back what the worker before it left open, which then comes again.
    let producer = client.transactional_producer("converter").open().await?;
    // By the same name, it takes over from the worker before it, though the broker still waits for that one.
    let consumer = client
        .consumer("converters")
        .topic("deposits")
        .name("converter");
    let mut consumer = consumer.mode(Mode::Exclusive).open().await?;
    loop {
        let batch = consumer.next_batch(BATCH, Duration::from_secs(60)).await?;
        if batch.is_empty() {
            continue;
        }
        let mut transaction = producer.transaction();
        for delivery in &batch {
            let result = convert(std::str::from_utf8(&delivery.value)?)?;
            let key = delivery.key.clone().unwrap_or_default();
            transaction
                .send("results", Record::new(result).key(key))
                .await?;
        }
        transaction.attach(&consumer.settler(), &batch)?;
        transaction.commit().await?;
        println!("{}", batch.len());
    }
}

struct Worker {
    child: Child,
    commits: BufReader<std::process::ChildStdout>,
}

impl Worker {
    fn start(address: &str, ca: &str) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["work", address, ca]).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let commits = BufReader::new(child.stdout.take().ok_or("a worker has no output")?);
        Ok(Self { child, commits })
    }

    /// Waits for so many commits. Says how many records they had.
    fn watch(&mut self, commits: u32) -> Result<u32, Failure> {
        let mut records = 0;
        for _ in 0..commits {
            let mut line = String::new();
            if self.commits.read_line(&mut line)? == 0 {
                return Err("a worker ended by itself".into());
            }
            records += line.trim().parse::<u32>()?;
        }
        Ok(records)
    }
}

impl Drop for Worker {
    /// As `kill -9`, wherever it is: between two sends, behind an attachment, within a commit.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts workers, one after the other, and kills them. The last one may go on: it is returned.
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
fn kill_workers(address: &str, ca: &str) -> Result<Worker, Failure> {
    for n in 1..=KILLS {
        let mut worker = Worker::start(address, ca)?;
        let commits = 1 + getrandom::u32()? % COMMITS;
        let records = worker.watch(commits)?;
        // And a little later, so that it is in the middle of the next.
        let later = Duration::from_micros(u64::from(getrandom::u32()? % 5_000));
        std::thread::sleep(later);
        println!("worker {n} is killed after {commits} commits of {records} records");
    }
    Worker::start(address, ca)
}

async fn deposit_all(client: &Client) -> Result<(), Failure> {
    let producer = client.producer("deposits").open().await?;
    let mut pending = Vec::new();
    for number in 0..DEPOSITS {
        let (account, value) = deposit(number);
        let record = Record::new(value).key(account);
        pending.push(producer.enqueue(record).await?);
    }
    for deposit in pending {
        deposit.await?;
    }
    Ok(())
}

/// Puts side by side what came out, in the order of the log, and what one loop gives.
async fn keep(client: &Client, database: &mut Connection) -> Result<(), Failure> {
    database.execute_batch(
        "DROP TABLE IF EXISTS expected;
         DROP TABLE IF EXISTS results;
         CREATE TABLE expected (number INTEGER PRIMARY KEY, account TEXT, result TEXT);
         CREATE TABLE results (place INTEGER PRIMARY KEY, number INTEGER, account TEXT, result TEXT);",
    )?;
    let transaction = database.transaction()?;
    for number in 0..DEPOSITS {
        let (account, value) = deposit(number);
        let sql = "INSERT INTO expected VALUES (?1, ?2, ?3)";
        transaction.execute(sql, params![number, account, convert(&value)?])?;
    }
    let mut reader = client.reader("results").until_end().open().await?;
    while let Some(result) = reader.next().await {
        let result = result?;
        let account = String::from_utf8(result.key.as_deref().unwrap_or_default().to_vec())?;
        let value = std::str::from_utf8(&result.value)?;
        let number: u32 = value.split(' ').next().unwrap_or_default().parse()?;
        let sql = "INSERT INTO results (number, account, result) VALUES (?1, ?2, ?3)";
        transaction.execute(sql, params![number, account, value])?;
    }
    Ok(transaction.commit()?)
}

/// What to ask the database for, and how it is named where it is found.
const DIFFERENCES: [(&str, &str); 4] = [
    ("missing", "SELECT count(*) FROM expected WHERE number NOT IN (SELECT number FROM results)"),
    ("twice", "SELECT count(*) - count(DISTINCT number) FROM results"),
    (
        "wrong",
        "SELECT count(*) FROM results r LEFT JOIN expected e USING (number)
         WHERE e.number IS NULL OR r.result <> e.result OR r.account <> e.account",
    ),
    (
        "out of order",
        "SELECT count(*) FROM (SELECT number, lag(number) OVER (PARTITION BY account ORDER BY place) AS before
                               FROM results) WHERE number < before",
    ),
];

#[expect(clippy::print_stdout, reason = "an example shows what it does")]
fn audit(database: &Connection) -> Result<bool, Failure> {
    let results: u32 = database.query_row("SELECT count(*) FROM results", [], |row| row.get(0))?;
    let mut said = format!("audit: {results} results");
    let mut right = results == DEPOSITS;
    for (name, sql) in DIFFERENCES {
        let found: i64 = database.query_row(sql, [], |row| row.get(0))?;
        said = format!("{said}, {found} {name}");
        right &= found == 0;
    }
    println!("{said}");
    Ok(right)
}

async fn run() -> Result<bool, Failure> {
    let mut database = match std::env::args_os().nth(1) {
        Some(file) => Connection::open(file)?,
        None => Connection::open_in_memory()?,
    };
    let config = Config {
        listen: Some(([127, 0, 0, 1], 0).into()), // the workers are processes of their own
        ..Config::temporary()
    };
    let ca = config.data.join("tls/ca.pem").display().to_string();
    let broker = Broker::start(config.clone()).await?;
    let address = broker.local_addr().ok_or("the broker does not listen")?;
    let client = broker.client().await?;
    client.create_topic("deposits", TopicConfig::new(4)).await?;
    client.create_topic("results", TopicConfig::new(4)).await?;
    deposit_all(&client).await?;

    let address = address.to_string();
    let killed = tokio::task::spawn_blocking(move || kill_workers(&address, &ca));
    let mut worker = killed.await??;
    let deadline = Instant::now() + PATIENCE;
    while client.describe_group("converters").await?.lag(None) > 0 {
        if let Some(status) = worker.child.try_wait()? {
            return Err(format!("the last worker ended by itself: {status}").into());
        }
        if Instant::now() > deadline {
            return Err("the last worker does not come to the end".into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(worker);
    keep(&client, &mut database).await?;
    let right = audit(&database)?;
    broker.stop().await;
    Ok(right)
}

#[expect(clippy::print_stdout, reason = "an example shows what it does")]
fn main() -> Result<ExitCode, Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let system = actix_rt::System::new();
    if let [what, address, ca] = arguments.as_slice()
        && what == "work"
    {
        system.block_on(work(address, ca))?;
        return Ok(ExitCode::SUCCESS);
    }
    let right = system.block_on(run())?;
    println!("{}", if right { "all is right" } else { "WRONG" });
    Ok(if right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

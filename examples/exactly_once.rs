//! Effects that happen once, although every record is delivered again: sales are added up in SQLite, the
//! message ids noted in the same transaction.
//!
//! Whatever can come between a commit and its acknowledgement is made to: the consumer forgets to acknowledge
//! and leaves, refuses what it has committed, and dies before it commits. All in one process, with a broker
//! that is gone afterwards: `cargo run --example exactly_once [DATABASE-FILE]`.

use std::time::Duration;

use rusqlite::{Connection, Transaction, params};
use waterwheel::client::{Client, Delivery, Effect, Inbox, MessageId, Record, TopicConfig};
use waterwheel::{Broker, Config};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const SALES: u64 = 200;

/// A transaction that notes what it has consumed.
struct Sales<'t>(Transaction<'t>);

impl Inbox for Sales<'_> {
    type Error = rusqlite::Error;

    fn note(&mut self, consumer: &str, id: MessageId) -> Result<bool, rusqlite::Error> {
        let sql = "INSERT OR IGNORE INTO inbox (consumer, id) VALUES (?1, ?2)";
        Ok(self.0.execute(sql, params![consumer, id.0])? == 1)
    }
}

fn prepare(database: &Connection) -> Result<(), rusqlite::Error> {
    database.execute_batch(
        "CREATE TABLE IF NOT EXISTS inbox (consumer TEXT, id BLOB, PRIMARY KEY (consumer, id)) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS stock (sold INTEGER NOT NULL);
         INSERT INTO stock SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM stock);",
    )
}

/// The effect and the note of it, or neither where it is `cut_off`: the transaction is dropped then.
fn sell(database: &mut Connection, sold: &Delivery, cut_off: bool) -> Result<Effect<()>, Failure> {
    let amount: i64 = std::str::from_utf8(&sold.value)?.parse()?;
    let mut sales = Sales(database.transaction()?);
    let done = sold.apply_once("sales", &mut sales, |sales| {
        let sql = "UPDATE stock SET sold = sold + ?1";
        sales.0.execute(sql, params![amount])?;
        Ok(())
    })?;
    if !cut_off {
        sales.0.commit()?;
    }
    Ok(done)
}

async fn produce(client: &Client) -> Result<(), Failure> {
    let producer = client.producer("sales").open().await?;
    for amount in 1..=SALES {
        producer
            .send_one_way(Record::new(amount.to_string()))
            .await?;
    }
    Ok(producer.close().await?)
}

/// Consumes everything, badly: each record comes at least twice. Says how often anything came, and how often
/// it had its effect.
async fn consume(client: &Client, database: &mut Connection) -> Result<(u64, u64), Failure> {
    let (mut deliveries, mut effects) = (0, 0);
    for round in 0.. {
        let mut consumer = client.consumer("till").topic("sales").open().await?;
        loop {
            let wait = Duration::from_millis(200);
            let Some(sold) = consumer.next_batch(1, wait).await?.pop() else {
                break;
            };
            deliveries += 1;
            // In the first round nothing goes well.
            let cut_off = round == 0 && deliveries % 3 == 0;
            let done = sell(database, &sold, cut_off)?;
            effects += u64::from(done == Effect::Applied(()) && !cut_off);
            if round > 0 {
                consumer.ack(&sold).await?;
            } else if deliveries % 3 == 1 && sold.attempt == 1 {
                // As if the handler had failed behind its commit.
                let refused = consumer.nack_after(&sold, "committed, and refused", Duration::ZERO);
                refused.await?;
            }
        }
        // What was not acknowledged comes again.
        consumer.close().await;
        if client.describe_group("till").await?.lag(None) == 0 {
            break;
        }
    }
    Ok((deliveries, effects))
}

#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn run() -> Result<(), Failure> {
    let mut database = match std::env::args_os().nth(1) {
        Some(file) => Connection::open(file)?,
        None => Connection::open_in_memory()?,
    };
    prepare(&database)?;
    let broker = Broker::start(Config::temporary()).await?;
    let client = broker.client().await?;
    client.create_topic("sales", TopicConfig::new(4)).await?;
    produce(&client).await?;
    let (deliveries, effects) = consume(&client, &mut database).await?;
    let sold: i64 = database.query_row("SELECT sold FROM stock", [], |row| row.get(0))?;
    println!("{deliveries} deliveries, {effects} effects, together {sold}");
    broker.stop().await;
    Ok(())
}

fn main() -> Result<(), Failure> {
    actix_rt::System::new().block_on(run())
}

//! An ordered pipeline: account movements go in by key, a stage computes balances from them and passes each
//! on by the same key, and a last stage checks that no account ever saw its movements out of order.
//!
//! All in one process, with a broker that is gone afterwards: `cargo run --example ordered_pipeline`.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use waterwheel::client::{Client, Record, SendError, TopicConfig};
use waterwheel::{Broker, Config};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const ACCOUNTS: u64 = 50;
const MOVEMENTS: u64 = 5_000;

#[derive(Serialize, Deserialize)]
struct Movement {
    account: u64,
    number: u64,
    cents: i64,
}

#[derive(Serialize, Deserialize)]
struct Balance {
    account: u64,
    after: u64,
    cents: i64,
}

/// Records of one key go to one partition and stay in order there.
fn keyed(value: &impl Serialize, account: u64) -> Result<Record, Failure> {
    Ok(Record::encode(value)?.key(format!("account-{account}")))
}

async fn deposit(client: Client) -> Result<(), Failure> {
    let movements = client.producer("movements").open().await?;
    for number in 0..MOVEMENTS {
        let account = number % ACCOUNTS;
        let cents = i64::try_from(number)? - 2_000;
        let movement = Movement {
            account,
            number: number / ACCOUNTS,
            cents,
        };
        // Not waited for one by one: they are batched, and stay in order all the same.
        movements.send_one_way(keyed(&movement, account)?).await?;
    }
    Ok(movements.close().await?)
}

async fn add_up(client: Client) -> Result<(), Failure> {
    let balances = client.producer("balances").open().await?;
    let mut reader = client.reader("movements").open().await?;
    let mut sums: HashMap<u64, i64> = HashMap::new();
    for _ in 0..MOVEMENTS {
        let delivery = reader.next().await.ok_or("a reader without end ended")??;
        let movement: Movement = delivery.decode()?;
        let sum = sums.entry(movement.account).or_default();
        *sum += movement.cents;
        let balance = Balance {
            account: movement.account,
            after: movement.number,
            cents: *sum,
        };
        balances
            .send_one_way(keyed(&balance, movement.account)?)
            .await?;
    }
    balances
        .close()
        .await
        .map_err(|error: SendError| error.into())
}

async fn audit(client: Client) -> Result<i64, Failure> {
    let mut reader = client.reader("balances").open().await?;
    let mut latest: HashMap<u64, Balance> = HashMap::new();
    for _ in 0..MOVEMENTS {
        let delivery = reader.next().await.ok_or("a reader without end ended")??;
        let balance: Balance = delivery.decode()?;
        let expected = latest
            .get(&balance.account)
            .map_or(0, |last| last.after + 1);
        if balance.after != expected {
            return Err(format!("account {} is out of order", balance.account).into());
        }
        latest.insert(balance.account, balance);
    }
    Ok(latest.values().map(|balance| balance.cents).sum())
}

#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn run() -> Result<(), Failure> {
    let broker = Broker::start(Config::temporary()).await?;
    let client = broker.client().await?;
    for topic in ["movements", "balances"] {
        client.create_topic(topic, TopicConfig::new(8)).await?;
    }
    let stages = (
        deposit(client.clone()),
        add_up(client.clone()),
        audit(client),
    );
    let ((), (), total) = tokio::try_join!(stages.0, stages.1, stages.2)?;
    println!("{MOVEMENTS} movements of {ACCOUNTS} accounts in order; together {total} cents");
    broker.stop().await;
    Ok(())
}

fn main() -> Result<(), Failure> {
    actix_rt::System::new().block_on(run())
}

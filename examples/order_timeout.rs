//! An order that is not paid in time is closed: a delayed record per order, which paying cancels.
//!
//! ```text
//! cargo run --example order_timeout
//! ```
//!
//! Paying and the timeout race. Whichever the log took first has happened, and both sides are told the
//! same: a cancelled timer never fires, and one that has fired cannot be cancelled any more.

use std::time::Duration;

use waterwheel::broker::Broker;
use waterwheel::client::{Client, Record, TimerHandle, TimerState, TopicConfig};
use waterwheel::config::Config;

const PAY_WITHIN: Duration = Duration::from_millis(1500);

/// Takes an order: from now on the clock is ticking.
async fn order(client: &Client, name: &str) -> Result<TimerHandle, Box<dyn std::error::Error>> {
    let producer = client.producer("order-timeouts").open().await?;
    let close = Record::new(format!("close {name}"))
        .key(name.to_owned())
        .deliver_after(PAY_WITHIN);
    let receipt = producer.send(close).await?;
    // Kept with the order, as text if need be: `handle.to_string()` and back by `parse()`.
    receipt.timer.ok_or_else(|| "no timer".into())
}

/// Pays an order. The answer says which came first.
async fn pay(client: &Client, timer: &TimerHandle) -> Result<bool, Box<dyn std::error::Error>> {
    Ok(match client.timers().cancel(timer).await? {
        TimerState::Cancelled => true,
        TimerState::AlreadyFired { .. } => false,
        other @ (TimerState::Rescheduled { .. }
        | TimerState::Pending { .. }
        | TimerState::NotFound) => return Err(format!("unexpected: {other:?}").into()),
    })
}

#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let data = std::env::temp_dir().join(format!("waterwheel-orders-{}", std::process::id()));
    let config = Config {
        data: data.clone(),
        listen: Some(([127, 0, 0, 1], 0).into()),
        ..Config::default()
    };
    let broker = Broker::start(config).await?;
    let client = broker.client().await?;
    client
        .create_topic("order-timeouts", TopicConfig::new(1))
        .await?;

    let paid = order(&client, "roses").await?;
    order(&client, "tulips").await?;
    let late = order(&client, "lilies").await?;
    println!("three orders, to be paid within {PAY_WITHIN:?}");
    println!("roses are paid in time: {}", pay(&client, &paid).await?);

    // Whoever closes orders reads the topic like any other.
    let mut closing = client.reader("order-timeouts").open().await?;
    let mut closed = Vec::new();
    while closed.len() < 2 {
        let Some(delivery) = closing.next().await else {
            break;
        };
        let delivery = delivery?;
        let what = String::from_utf8_lossy(&delivery.value).into_owned();
        let (due, fired) = (delivery.due_ms, delivery.fired_ms);
        let late_ms = fired.zip(due).map_or(0, |(fired, due)| fired - due);
        println!("{what}: fired {late_ms} ms after it was due");
        closed.push(what);
    }
    println!("lilies are paid too late: {}", !pay(&client, &late).await?);
    println!(
        "roses were never closed: {}",
        !closed.contains(&"close roses".to_owned())
    );

    drop((closing, client));
    broker.stop().await;
    std::fs::remove_dir_all(data)?;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    actix_rt::System::new().block_on(run())
}

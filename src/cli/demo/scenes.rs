//! What the demo shows beside plain traffic: a delayed message that is paid for in time, and an order whose
//! points are credited with it or not at all.

use std::time::{Duration, Instant};

use super::super::exit::CliError;
use super::super::print;
use super::not_sent;
use crate::client::{Client, ConsumeError, Record, TimerState, TopicConfig, TransactionError};

/// How long an order may wait for its payment in the demo.
const PAY_WITHIN: Duration = Duration::from_millis(400);

/// Two orders with a deadline: one is paid, one is not. Whether it went as it must.
pub(super) async fn timers(client: &Client) -> Result<bool, CliError> {
    const TOPIC: &str = "order-timeouts";
    client.create_topic(TOPIC, TopicConfig::new(1)).await?;
    let producer = client.producer(TOPIC).open().await?;
    let mut timers = Vec::new();
    for order in ["roses", "tulips"] {
        let close = Record::new(format!("close {order}"))
            .key(order)
            .deliver_after(PAY_WITHIN);
        timers.extend(producer.send(close).await.map_err(not_sent)?.timer);
    }
    let paid = timers.first().ok_or_else(no_timer)?;
    let unpaid = timers.last().ok_or_else(no_timer)?;
    let cancelled = client.timers().cancel(paid).await? == TimerState::Cancelled;
    let mut reader = client.reader(TOPIC).open().await?;
    let fired = reader.next().await.ok_or_else(ended)??;
    let late = fired.fired_ms.zip(fired.due_ms);
    let late = late.map_or(-1, |(fired, due)| fired - due);
    let too_late = client.timers().cancel(unpaid).await?;
    let exact = matches!(too_late, TimerState::AlreadyFired { .. });
    print(format_args!(
        "Two delayed messages: the paid order's was cancelled; {:?} came {late} ms after its time, and \
         cancelling it then says that it was too late.",
        String::from_utf8_lossy(&fired.value),
    ))?;
    Ok(cancelled && exact && late >= 0 && fired.value.as_ref() == b"close tulips")
}

/// The order and the points: both or neither. Whether it went as it must.
pub(super) async fn transactions(client: &Client) -> Result<bool, CliError> {
    for topic in ["payments", "points"] {
        client.create_topic(topic, TopicConfig::new(2)).await?;
    }
    let producer = client
        .transactional_producer("till-1")
        .open()
        .await
        .map_err(not_decided)?;
    let began = Instant::now();
    for order in 0..100_u32 {
        let mut transaction = producer.transaction();
        let customer = format!("customer-{}", order % 7);
        let payment = Record::new(format!("order {order} is paid")).key(customer.clone());
        let points = Record::new(format!("10 points for order {order}")).key(customer);
        transaction
            .send("payments", payment)
            .await
            .map_err(not_decided)?;
        transaction
            .send("points", points)
            .await
            .map_err(not_decided)?;
        if order % 10 == 9 {
            transaction.rollback().await.map_err(not_decided)?;
        } else {
            transaction.commit().await.map_err(not_decided)?;
        }
    }
    let took = began.elapsed();
    let (payments, points) = (
        count(client, "payments").await?,
        count(client, "points").await?,
    );
    print(format_args!(
        "100 transactions over two topics in {} ms, every tenth rolled back: {payments} payments and {points} \
         credits are visible.",
        took.as_millis()
    ))?;
    Ok((payments, points) == (90, 90))
}

async fn count(client: &Client, topic: &str) -> Result<u64, CliError> {
    let mut reader = client.reader(topic).until_end().open().await?;
    let mut count = 0;
    while let Some(deliveries) = reader.next_deliveries().await? {
        count += deliveries.len() as u64;
    }
    Ok(count)
}

fn no_timer() -> CliError {
    CliError::Failed("a delayed record came without a timer".to_owned())
}

fn ended() -> ConsumeError {
    ConsumeError::Protocol("the reader ended".to_owned())
}

fn not_decided(error: TransactionError) -> CliError {
    CliError::Failed(error.to_string())
}

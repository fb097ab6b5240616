//! What the demo shows beside plain traffic: a delayed message that is paid for in time, an order that is
//! consumed, paid and credited or none of it, and a parcel that nobody could deliver and that comes back.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::exit::CliError;
use super::{Teller, not_sent};
use crate::client::{
    Backoff, Client, Code, ConsumeError, Consumer, DeadLetter, DeadLetters, Delivery, Mode, Record,
    RetryPolicy, SettleError, TimerState, TopicConfig, Transaction, TransactionError,
    TransactionalProducer,
};

/// How long an order may wait for its payment in the demo.
const PAY_WITHIN: Duration = Duration::from_millis(400);

/// How long a dead letter may take to be written.
const LETTER_WITHIN: Duration = Duration::from_secs(10);

/// Two orders with a deadline: one is paid, one is not. Whether it went as it must.
pub(super) async fn timers(client: &Client, teller: Teller) -> Result<bool, CliError> {
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
    let ok = cancelled && exact && late >= 0 && fired.value.as_ref() == b"close tulips";
    let value = String::from_utf8_lossy(&fired.value);
    teller.tell(
        "timers",
        json!({ "cancelled": cancelled, "fired": value, "late_ms": late, "ok": ok }),
        format_args!(
            "Two delayed messages: the paid order's was cancelled; {value:?} came {late} ms after its time, and \
             cancelling it then says that it was too late."
        ),
    )?;
    Ok(ok)
}

/// Parcels for a group of two: one cannot be delivered, is tried again, becomes a dead letter, and is brought
/// back once what was wrong is mended. Whether it went as it must.
pub(super) async fn groups(client: &Client, teller: Teller) -> Result<bool, CliError> {
    const TOPIC: &str = "parcels";
    const PARCELS: u32 = 50;
    client.create_topic(TOPIC, TopicConfig::new(2)).await?;
    let producer = client.producer(TOPIC).open().await?;
    for parcel in 0..PARCELS {
        let street = format!("street {}", parcel % 10);
        let record = Record::new(format!("parcel {parcel}")).key(street);
        producer.send(record).await.map_err(not_sent)?;
    }
    let retry = RetryPolicy {
        backoff: Backoff::Listed(vec![20, 40]),
        attempts_max: 3,
        ..RetryPolicy::default()
    };
    let member = |name: &str| {
        let group = client.consumer("couriers").topic(TOPIC).name(name);
        group.mode(Mode::KeyOrdered).retry(retry.clone()).open()
    };
    let (mut ann, mut bob) = (member("ann").await?, member("bob").await?);
    let (mut delivered, mut tries, mut given_up) = (0, 0, None);
    while delivered < PARCELS - 1 || given_up.is_none() {
        let (courier, delivery) = tokio::select! {
            delivery = ann.next() => (&ann, delivery),
            delivery = bob.next() => (&bob, delivery),
        };
        let delivery = delivery.ok_or_else(ended)??;
        if delivery.value.as_ref() != b"parcel 13" {
            delivered += 1;
            courier.ack(&delivery).await.map_err(not_settled)?;
            continue;
        }
        tries = delivery.attempt;
        let nobody = courier.nack(&delivery, "nobody is at home");
        nobody.await.map_err(not_settled)?;
        if tries == retry.attempts_max {
            given_up = Some(delivery.id);
        }
    }
    let letters = client.dead_letters("couriers.dead-letters");
    let letter = first_letter(&letters).await?;
    let reason = letter.origin.as_ref().map(|origin| origin.reason.clone());
    let (back, again) = (letters.clone().redrive().await?, letters.redrive().await?);
    let last = tokio::select! {
        delivery = ann.next() => (&ann, delivery),
        delivery = bob.next() => (&bob, delivery),
    };
    let (courier, delivery) = (last.0, last.1.ok_or_else(ended)??);
    courier.ack(&delivery).await.map_err(not_settled)?;
    let same = Some(delivery.id) == given_up && letter.id == delivery.id;
    ann.close().await;
    bob.close().await;
    let ok = same && (back.done, again.done) == (1, 0) && delivery.attempt == 1;
    let reason = reason.unwrap_or_default();
    teller.tell(
        "groups",
        json!({
            "records": PARCELS, "attempts": tries, "reason": reason, "brought_back": back.done + again.done, "ok": ok,
        }),
        format_args!(
            "A group of two consumes {PARCELS} parcels, in order for each street; one failed {tries} times \
             (\"{reason}\") and became a dead letter. Brought back twice it came once, under its old id."
        ),
    )?;
    Ok(ok)
}

/// The first letter there is. It is written by the broker itself, soon after the last attempt.
async fn first_letter(letters: &DeadLetters) -> Result<DeadLetter, CliError> {
    let deadline = Instant::now() + LETTER_WITHIN;
    loop {
        match letters.clone().list().await {
            Ok(found) => {
                if let Some(letter) = found.into_iter().next() {
                    return Ok(letter);
                }
            }
            Err(error) if error.code() != Code::UnknownTopic.name() => return Err(error.into()),
            Err(_) => {}
        }
        if Instant::now() > deadline {
            return Err(CliError::Failed("no dead letter came".to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The order and the points: an order is consumed, paid and credited, all of it or none. Whether it went as it
/// must.
pub(super) async fn transactions(client: &Client, teller: Teller) -> Result<bool, CliError> {
    const ORDERS: u64 = 100;
    for topic in ["orders-to-pay", "payments", "points"] {
        client.create_topic(topic, TopicConfig::new(2)).await?;
    }
    let orders = client.producer("orders-to-pay").open().await?;
    for order in 0..ORDERS {
        let record = Record::new(format!("order {order}"));
        let record = record.key(format!("customer-{}", order % 7));
        orders.send_one_way(record).await.map_err(not_sent)?;
    }
    orders.close().await.map_err(not_sent)?;
    let till = client.transactional_producer("till-1");
    let till = till.open().await.map_err(not_decided)?;
    let group = client.consumer("tills").topic("orders-to-pay").name("till");
    let mut consumer = group.mode(Mode::Exclusive).open().await?;
    let began = Instant::now();
    let (mut paid, mut declined) = (0, HashSet::new());
    while paid < ORDERS {
        let order = consumer.next().await.ok_or_else(ended)??;
        let transaction = pay(&till, &consumer, &order).await.map_err(not_decided)?;
        // Every tenth card is declined at first: all of it is rolled back, and the order comes again.
        if order.value.ends_with(b"9") && declined.insert(order.id) {
            transaction.rollback().await.map_err(not_decided)?;
            continue;
        }
        match transaction.commit().await {
            Ok(()) => paid += 1,
            // It is behind one that was rolled back, and comes again behind that.
            Err(error) if error.code() == Code::UnknownLease.name() => {}
            Err(error) => return Err(not_decided(error)),
        }
    }
    let took = began.elapsed();
    consumer.close().await;
    let left = client.describe_group("tills").await?.lag(None);
    let (payments, points) = (
        count(client, "payments").await?,
        count(client, "points").await?,
    );
    let declined = declined.len();
    let ok = (payments, points, left) == (ORDERS, ORDERS, 0) && declined == 10;
    let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    teller.tell(
        "transactions",
        json!({
            "orders": ORDERS, "rolled_back": declined, "payments": payments, "credits": points, "orders_left": left,
            "ms": took, "ok": ok,
        }),
        format_args!(
            "{ORDERS} orders, each consumed, paid and credited in one transaction, in {took} ms. {declined} cards \
             were declined at first, and what was rolled back came again: {payments} payments and {points} credits \
             are visible, and {left} orders are left."
        ),
    )?;
    Ok(ok)
}

/// The payment of an order, the points for it, and that it is consumed: undecided yet.
async fn pay(
    till: &TransactionalProducer,
    consumer: &Consumer,
    order: &Delivery,
) -> Result<Transaction, TransactionError> {
    let name = String::from_utf8_lossy(&order.value);
    let customer = order.key.clone().unwrap_or_default();
    let payment = Record::new(format!("{name} is paid")).key(customer.clone());
    let points = Record::new(format!("10 points for {name}")).key(customer);
    let mut transaction = till.transaction();
    transaction.send("payments", payment).await?;
    transaction.send("points", points).await?;
    transaction.attach(&consumer.settler(), [order])?;
    Ok(transaction)
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

fn not_settled(error: SettleError) -> CliError {
    CliError::Failed(error.to_string())
}

fn not_decided(error: TransactionError) -> CliError {
    CliError::Failed(error.to_string())
}

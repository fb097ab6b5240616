//! The product's client against the broker: what becomes of calls that are dropped, cancelled, raced, and
//! of clients whose broker goes away.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures::{FutureExt, SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use waterwheel::client::{
    Ack, AdminError, AlterTopic, Client, Code, Compression, ConnectError, ConsumeError, Delivery,
    Producer, Record, SendError, Start, TopicConfig,
};

use crate::rig::{Node, Rig, config, run};

async fn topic(rig: &Rig, partitions: u32) -> Client {
    let client = rig.node.connect().await.unwrap();
    let config = TopicConfig::new(partitions);
    client.create_topic("orders", config).await.unwrap();
    client
}

fn numbered(n: usize) -> Record {
    Record::new(n.to_string())
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.value.to_vec()).unwrap()
}

/// Everything there is now, in the order it comes.
async fn everything(client: &Client) -> Vec<String> {
    let mut reader = client.reader("orders").until_end().open().await.unwrap();
    let mut values = Vec::new();
    while let Some(delivery) = reader.next().await {
        values.push(text(&delivery.unwrap()));
    }
    values
}

fn expected(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

/// Polls a future so many times at most.
async fn poll_times<F: Future>(future: F, times: usize) -> Option<F::Output> {
    let mut future = Box::pin(future);
    let mut left = times;
    std::future::poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        left = left.saturating_sub(1);
        if left == 0 {
            return Poll::Ready(None);
        }
        Poll::Pending
    })
    .await
}

#[test]
fn every_way_of_sending_arrives_and_tells_where() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig, 1).await;
        let mut producer = client.producer("orders").open().await.unwrap();
        let receipt = producer.send(numbered(0)).await.unwrap();
        assert_eq!((receipt.partition, receipt.offset), (0, Some(0)));
        let pending = producer.enqueue(numbered(1)).await.unwrap();
        assert_eq!(pending.await.unwrap().offset, Some(1));
        let run = producer.enqueue_run(0, [numbered(2), numbered(3)]);
        let receipts = run.await.unwrap().wait().await.unwrap();
        assert_eq!(receipts.iter().map(|r| r.count).sum::<u32>(), 2);
        producer.send_one_way(numbered(4)).await.unwrap();
        producer.flush().await.unwrap();
        SinkExt::send(&mut producer, numbered(5)).await.unwrap();
        SinkExt::close(&mut producer).await.unwrap();
        assert_eq!(everything(&client).await, expected(0..6));
        let error = producer.send(numbered(6)).await.unwrap_err();
        assert_eq!(error.code(), "closed");
    });
}

#[test]
fn levels_and_compressions_store_the_same() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig, 1).await;
        let mut sent = Vec::new();
        for (ack, compression) in [
            (Ack::Durable, Compression::None),
            (Ack::Memory, Compression::Lz4),
            (Ack::None, Compression::Zstd),
        ] {
            let producer = client.producer("orders").ack(ack).compression(compression);
            let producer = producer.open().await.unwrap();
            for part in 0..3 {
                // Large ones travel in pieces, small ones together.
                let value = format!("{ack:?} {part} ").repeat(1 + part * 10_000);
                let pending = producer.enqueue(Record::new(value.clone())).await;
                drop(pending.unwrap());
                sent.push(value);
            }
            producer.close().await.unwrap();
        }
        let mut reader = client.reader("orders").open().await.unwrap();
        for value in sent {
            let delivery = reader.next().await.unwrap().unwrap();
            assert!(text(&delivery) == value, "offset {}", delivery.offset);
        }
    });
}

#[test]
fn dropping_a_pending_record_does_not_unsend_it() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig, 1).await;
        let producer = client.producer("orders").open().await.unwrap();
        for n in 0..50 {
            let pending = producer.enqueue(numbered(n)).await.unwrap();
            if n % 2 == 0 {
                // Looked at once, then given up.
                let _ = pending.now_or_never();
            }
        }
        producer.close().await.unwrap();
        assert_eq!(everything(&client).await, expected(0..50));
    });
}

#[test]
fn a_producer_that_is_dropped_still_sends_what_was_enqueued() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig, 1).await;
        let producer = client.producer("orders").linger(Duration::from_secs(60));
        let producer = producer.open().await.unwrap();
        let mut last = None;
        for n in 0..20 {
            last = Some(producer.enqueue(numbered(n)).await.unwrap());
        }
        drop(producer);
        last.unwrap().await.unwrap();
        assert_eq!(everything(&client).await, expected(0..20));
    });
}

#[test]
fn sends_that_are_given_up_at_any_moment_are_stored_once_or_not_at_all() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig, 4).await;
        let producer = client.producer("orders").open().await.unwrap();
        let mut told = BTreeSet::new();
        for n in 0..200 {
            let record = numbered(n).key(format!("key-{}", n % 7));
            if let Some(receipt) = poll_times(producer.send(record), 1 + n % 5).await {
                receipt.unwrap();
                told.insert(n.to_string());
            }
        }
        producer.close().await.unwrap();
        let stored = everything(&client).await;
        let once: BTreeSet<String> = stored.iter().cloned().collect();
        assert_eq!(once.len(), stored.len(), "nothing twice");
        assert!(told.is_subset(&once), "what was acknowledged is there");
    });
}

#[test]
fn next_under_select_loses_nothing() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig, 4).await;
        let mut reader = client.reader("orders").open().await.unwrap();
        let sending = {
            let client = client.clone();
            tokio::spawn(async move {
                let producer = client.producer("orders").open().await.unwrap();
                for n in 0..300 {
                    let record = numbered(n).key((n % 13).to_string());
                    producer.send(record).await.unwrap();
                }
            })
        };
        let mut found = Vec::new();
        let mut rounds = 0;
        while found.len() < 300 {
            rounds += 1;
            match rounds % 3 {
                0 => {
                    if let Some(next) = poll_times(reader.next(), 1 + rounds % 4).await {
                        found.push(text(&next.unwrap().unwrap()));
                    }
                }
                1 => tokio::select! {
                    biased;
                    () = tokio::task::yield_now() => {}
                    next = reader.next() => found.push(text(&next.unwrap().unwrap())),
                },
                _ => {
                    let batch = reader.next_batch(7, Duration::from_millis(2)).await;
                    found.extend(batch.unwrap().iter().map(text));
                }
            }
        }
        sending.await.unwrap();
        let once: BTreeSet<String> = found.iter().cloned().collect();
        assert_eq!(once.len(), 300, "each once");
        let order = |of: usize| found.iter().filter_map(move |v| v.parse().ok().filter(|n: &usize| n % 13 == of));
        for key in 0..13 {
            assert!(order(key).is_sorted(), "key {key} in its order");
        }
    });
}

#[test]
fn readers_that_are_dropped_give_their_place_and_their_credit_back() {
    run(async {
        // Sixteen readers are all a connection may have.
        let rig = Rig::start().await;
        let client = topic(&rig, 8).await;
        let producer = client.producer("orders").open().await.unwrap();
        producer.send(numbered(0)).await.unwrap();
        for round in 0..20 {
            let mut reader = loop {
                // The broker hears of a dropped one a little later.
                match client.reader("orders").open().await {
                    Ok(reader) => break reader,
                    Err(error) => assert_eq!(error.code(), "too-many-readers", "{round}"),
                }
            };
            assert!(reader.next().await.unwrap().is_ok());
            drop(reader);
        }
    });
}

#[test]
fn opening_that_is_given_up_leaves_nothing_behind() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig, 1).await;
        let producer = client.producer("orders").open().await.unwrap();
        producer.send(numbered(0)).await.unwrap();
        for times in 1..40 {
            let _ = poll_times(client.reader("orders").open(), times % 6 + 1).await;
            let _ = poll_times(client.producer("orders").open(), times % 6 + 1).await;
            let _ = poll_times(client.topics(), times % 3 + 1).await;
        }
        // The broker hears of the last ones a little later; then all the credit is free again.
        let all = client.broker().limits.credit_bytes_max;
        while let Err(error) = client.reader("orders").credit_bytes(all).open().await {
            assert_eq!(error.code(), "credit-exceeded");
        }
        rig.node.assert_serves().await;
    });
}

#[test]
fn many_tasks_share_a_client() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig, 4).await;
        let producer = client.producer("orders").open().await.unwrap();
        let tasks: Vec<_> = (0..8)
            .map(|task| {
                let producer = producer.clone();
                tokio::spawn(async move {
                    for n in 0..50 {
                        producer.send(numbered(task * 50 + n)).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let stored: BTreeSet<String> = everything(&client).await.into_iter().collect();
        assert_eq!(stored.len(), 400);
    });
}

#[test]
fn typed_values_go_there_and_back() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Order {
        item: String,
        count: u32,
    }
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig, 1).await;
        let producer = client.producer("orders").open().await.unwrap();
        let order = Order {
            item: "rose".to_owned(),
            count: 42,
        };
        let record = Record::encode(&order).unwrap().key("17").tag("flowers");
        producer.send(record.header("shop", "Delft")).await.unwrap();
        producer.send(Record::new("no order")).await.unwrap();
        let mut reader = client.reader("orders").open().await.unwrap();
        let first = reader.next().await.unwrap().unwrap();
        assert_eq!(first.decode::<Order>().unwrap(), order);
        assert_eq!(first.tag.as_deref(), Some("flowers"));
        let second = reader.next().await.unwrap().unwrap();
        assert_eq!(second.decode::<Order>().unwrap_err().offset, 1);
    });
}

#[test]
fn everything_the_command_line_does_a_client_does() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig, 2).await;
        let error = client.create_topic("orders", TopicConfig::new(1)).await;
        let AdminError::Refused(refusal) = error.unwrap_err() else {
            panic!("refused");
        };
        assert_eq!(refusal.code, Code::TopicExists);
        let change = AlterTopic {
            name: "orders".to_owned(),
            retention_ms: Some(Some(3_600_000)),
            ..AlterTopic::default()
        };
        let altered = client.alter_topic(&change).await.unwrap();
        assert_eq!(altered.config.retention_ms, Some(3_600_000));
        let producer = client.producer("orders").open().await.unwrap();
        producer.send_to(1, numbered(0)).await.unwrap();
        let described = client.describe_topic("orders").await.unwrap();
        assert_eq!(described.partitions[1].high_watermark.0, 1);
        let end = client.lookup_offset(&described.topic, 1, Start::Latest);
        assert_eq!(end.await.unwrap().offset.0, 1);
        assert_eq!(client.topics().await.unwrap().len(), 1);
        let status = client.status(true).await.unwrap();
        assert!(status.broker.ready);
        assert!(status.actors.iter().any(|actor| actor.kind == "partition"));
        client.delete_topic("orders").await.unwrap();
        assert!(client.topics().await.unwrap().is_empty());
    });
}

#[test]
fn a_client_that_is_closed_says_so_to_all_its_users() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig, 1).await;
        let producer = client.producer("orders").open().await.unwrap();
        producer.send(numbered(0)).await.unwrap();
        let mut reader = client.reader("orders").open().await.unwrap();
        reader.next().await.unwrap().unwrap();
        let other = client.clone();
        let waiting = tokio::spawn(async move { reader.next().await });
        client.close().await;
        let disconnected = waiting.await.unwrap().unwrap().unwrap_err();
        assert!(matches!(disconnected, ConsumeError::Disconnected));
        let error = other.topics().await.unwrap_err();
        assert_eq!((error.code(), error.is_retriable()), ("disconnected", false));
        let error = producer.send(numbered(1)).await.unwrap_err();
        assert!(
            matches!(error, SendError::Disconnected | SendError::Closed),
            "{error}"
        );
        assert_eq!(everything(&rig.node.connect().await.unwrap()).await, ["0"]);
    });
}

#[test]
fn whoever_waits_while_the_broker_stops_is_told_at_last() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig, 1).await;
        let timeout = Duration::from_millis(500);
        let producer = client.producer("orders").timeout(timeout);
        let producer = producer.open().await.unwrap();
        let mut reader = client
            .reader("orders")
            .timeout(timeout)
            .open()
            .await
            .unwrap();
        let reading = tokio::spawn(async move { reader.next().await });
        let told = Arc::new(AtomicUsize::new(0));
        let sending = {
            let (producer, told) = (producer.clone(), Arc::clone(&told));
            tokio::spawn(async move {
                for n in 0.. {
                    match producer.send(numbered(n)).await {
                        Ok(_) => told.fetch_add(1, Ordering::SeqCst),
                        Err(error) => return error,
                    };
                }
                unreachable!("it ends with the broker");
            })
        };
        while told.load(Ordering::SeqCst) < 20 {
            tokio::task::yield_now().await;
        }
        let Rig { dir, node, .. } = rig;
        node.stop().await;
        let error = sending.await.unwrap();
        assert!(
            matches!(
                error,
                SendError::TimedOut(_) | SendError::Disconnected | SendError::Closed
            ),
            "{error}"
        );
        let first = reading.await.unwrap();
        assert!(first.is_some(), "what was there, or why there is no more");
        // What was acknowledged is there afterwards, in order and once.
        let node = Node::try_start(config(dir.path()), None).await.unwrap();
        let stored = everything(&node.connect().await.unwrap()).await;
        let told = told.load(Ordering::SeqCst);
        assert_eq!(stored, expected(0..stored.len()));
        assert!(stored.len() >= told, "{} of {told}", stored.len());
        node.stop().await;
    });
}

#[test]
fn a_stopped_broker_is_no_broker_to_connect_to() {
    run(async {
        let rig = Rig::start().await;
        let connect = rig.node.connect().timeout(Duration::from_millis(300));
        rig.node.stop().await;
        let error = connect.await.unwrap_err();
        assert!(
            matches!(
                error,
                ConnectError::Stopped | ConnectError::Unreachable { .. }
            ),
            "{error}"
        );
    });
}

#[test]
fn a_producer_is_a_sink_for_streams() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig, 1).await;
        let producer: Producer = client.producer("orders").open().await.unwrap();
        let records = futures::stream::iter(0..100).map(|n| Ok(numbered(n)));
        records.forward(producer).await.unwrap();
        assert_eq!(everything(&client).await, expected(0..100));
    });
}

//! Consumer groups as applications use them: a broker with real files, clients over QUIC.
//!
//! No test sleeps to let something happen: it waits for the delivery or the answer that shows it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::field_reassign_with_default,
    clippy::wildcard_enum_match_arm,
    reason = "a test that meets what it did not expect fails there"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use waterwheel::broker::Broker;
use waterwheel::client::{
    AckMode, Backoff, Client, Delivery, HandlerError, Mode, Record, ResetTo, RetryPolicy, Start,
    Subscription, TopicConfig,
};
use waterwheel::config::Config;

const TOPIC: &str = "orders";
const WAIT: Duration = Duration::from_secs(20);

/// A broker with the topic, and a conversation with it over QUIC.
fn with_topic<F: Future<Output = ()>>(config: TopicConfig, test: impl FnOnce(Client) -> F) {
    with_node(config, |node, client| async move {
        test(client).await;
        node
    });
}

/// The same for a test that does something to the broker; it gives back the one it ends with.
fn with_node<F: Future<Output = Node>>(config: TopicConfig, test: impl FnOnce(Node, Client) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let data = tempfile::tempdir().unwrap();
        let node = Node::start(data.path(), ([127, 0, 0, 1], 0).into()).await;
        let client = node.client().await;
        client.create_topic(TOPIC, config).await.unwrap();
        let node = tokio::time::timeout(Duration::from_secs(60), test(node, client))
            .await
            .unwrap();
        node.finish(End::Stop).await;
    });
}

enum End {
    Stop,
    Kill,
}

/// A broker on a thread of its own.
struct Node {
    data: PathBuf,
    address: SocketAddr,
    end: oneshot::Sender<End>,
    thread: std::thread::JoinHandle<()>,
}

impl Node {
    async fn start(data: &Path, listen: SocketAddr) -> Self {
        let config = Config {
            data: data.to_owned(),
            listen: Some(listen),
            ..Config::default()
        };
        let (end, ended) = oneshot::channel();
        let (ready, started) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            actix_rt::System::new().block_on(async {
                let broker = Broker::start(config).await.unwrap();
                ready.send(broker.local_addr().unwrap()).unwrap();
                match ended.await {
                    Ok(End::Kill) => drop(broker),
                    Ok(End::Stop) | Err(_) => broker.stop().await,
                }
            });
        });
        Self {
            data: data.to_owned(),
            address: started.await.unwrap(),
            end,
            thread,
        }
    }

    async fn client(&self) -> Client {
        Client::connect(&self.address.to_string())
            .ca(self.data.join("tls/ca.pem"))
            .await
            .unwrap()
    }

    async fn finish(self, how: End) {
        let Self { end, thread, .. } = self;
        let _ = end.send(how);
        tokio::task::spawn_blocking(move || thread.join())
            .await
            .unwrap()
            .unwrap();
    }

    /// Ends it as a kill would, and starts another on its directory and at its address.
    async fn kill_and_restart(self) -> Self {
        let (data, address) = (self.data.clone(), self.address);
        self.finish(End::Kill).await;
        Self::start(&data, address).await
    }
}

async fn send(client: &Client, records: impl IntoIterator<Item = Record>) {
    let producer = client.producer(TOPIC).open().await.unwrap();
    for record in records {
        producer.send_one_way(record).await.unwrap();
    }
    producer.close().await.unwrap();
}

fn keyed(count: u32, keys: u32) -> impl Iterator<Item = Record> {
    (0..count).map(move |n| Record::new(n.to_string()).key(format!("k{}", n % keys)))
}

fn number(delivery: &Delivery) -> u32 {
    std::str::from_utf8(&delivery.value)
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn every_mode_delivers_each_record_once_and_goes_on_where_it_was() {
    with_topic(TopicConfig::new(3), |client| async move {
        send(&client, keyed(300, 10)).await;
        for mode in [
            Mode::Exclusive,
            Mode::Shared,
            Mode::KeyOrdered,
            Mode::Broadcast,
        ] {
            let group = format!("g-{}", mode.name());
            let open = || {
                client
                    .consumer(&group)
                    .topic(TOPIC)
                    .mode(mode)
                    .name("m")
                    .open()
            };
            let mut consumer = open().await.unwrap();
            let mut seen: BTreeMap<String, Vec<u32>> = BTreeMap::new();
            for _ in 0..300 {
                let delivery = consumer.next().await.unwrap().unwrap();
                let key = String::from_utf8(delivery.key.clone().unwrap().to_vec()).unwrap();
                seen.entry(key).or_default().push(number(&delivery));
                assert_eq!(delivery.attempt, 1, "{mode:?}");
                drop(consumer.ack(&delivery));
            }
            let all: BTreeSet<u32> = seen.values().flatten().copied().collect();
            assert_eq!(all.len(), 300, "{mode:?}");
            assert!(
                seen.values().all(|key| key.is_sorted()),
                "{mode:?}: {seen:?}"
            );
            consumer.close().await;
            send(&client, [Record::new("999").key("k0")]).await;
            let mut again = open().await.unwrap();
            let next = again.next().await.unwrap().unwrap();
            assert_eq!(number(&next), 999, "{mode:?}");
            again.ack(&next).await.unwrap();
            again.close().await;
            // Not for the next mode.
            let mut reset = client
                .consumer(&group)
                .topic(TOPIC)
                .mode(mode)
                .name("m")
                .open()
                .await
                .unwrap();
            assert!(
                reset
                    .next_batch(1, Duration::from_millis(50))
                    .await
                    .unwrap()
                    .is_empty()
            );
            reset.close().await;
            return_to_start(&client, mode).await;
        }
    });
}

/// The record that was added for one mode is not counted by the next: each has a group of its own, which
/// begins at the first record, so the topic is made anew.
async fn return_to_start(client: &Client, mode: Mode) {
    client
        .delete_group(&format!("g-{}", mode.name()))
        .await
        .unwrap();
    client.delete_topic(TOPIC).await.unwrap();
    client
        .create_topic(TOPIC, TopicConfig::new(3))
        .await
        .unwrap();
    send(client, keyed(300, 10)).await;
}

#[test]
fn what_is_refused_comes_again_and_in_the_end_is_put_aside() {
    with_topic(TopicConfig::new(1), |client| async move {
        let mut policy = RetryPolicy::default();
        policy.backoff = Backoff::Listed(vec![20]);
        policy.jitter_percent = 0;
        policy.attempts_max = 3;
        send(&client, [Record::new("1"), Record::new("2")]).await;
        let mut consumer = client
            .consumer("g")
            .topic(TOPIC)
            .retry(policy)
            .open()
            .await
            .unwrap();
        let mut attempts = Vec::new();
        while attempts.len() < 3 {
            let delivery = consumer.next().await.unwrap().unwrap();
            if number(&delivery) == 2 {
                consumer.ack(&delivery).await.unwrap();
            } else {
                attempts.push(delivery.attempt);
                consumer.nack(&delivery, "not today").await.unwrap();
            }
        }
        assert_eq!(attempts, [1, 2, 3]);
        let dead = loop {
            if let Ok(reader) = client.reader("g.dead-letters").open().await {
                break reader;
            }
            tokio::task::yield_now().await;
        };
        let mut dead = dead;
        let letter = dead.next().await.unwrap().unwrap();
        assert_eq!(number(&letter), 1);
        assert!(
            consumer
                .next_batch(1, Duration::from_millis(50))
                .await
                .unwrap()
                .is_empty()
        );
        consumer.close().await;
    });
}

#[test]
fn in_order_nothing_behind_a_refused_record_is_delivered_before_it_comes_again() {
    with_topic(TopicConfig::new(1), |client| async move {
        // Several batches: what is behind lies in the same lease and in others.
        for from in [0, 10, 20] {
            send(
                &client,
                (from..from + 10).map(|n| Record::new(n.to_string())),
            )
            .await;
        }
        let mut consumer = client
            .consumer("g")
            .topic(TOPIC)
            .mode(Mode::Exclusive)
            .prefetch(1 << 20, 30)
            .open()
            .await
            .unwrap();
        let held = consumer.next_batch(4, WAIT).await.unwrap();
        assert_eq!(number(&held[0]), 0);
        let mut order: Vec<(u32, u16)> = Vec::new();
        for delivery in &held {
            consumer.ack(delivery).await.unwrap();
        }
        let mut next = held.len() as u32;
        while order.len() < 32 - held.len() {
            let delivery = consumer.next().await.unwrap().unwrap();
            order.push((number(&delivery), delivery.attempt));
            assert_eq!(number(&delivery), next, "{order:?}");
            if [5, 15].contains(&next) && delivery.attempt == 1 {
                let span = Duration::from_millis(30);
                drop(consumer.nack_after(&delivery, "not yet", span));
                assert!(consumer.holds(&delivery));
            } else {
                drop(consumer.ack(&delivery));
                next += 1;
            }
        }
        consumer.close().await;
        let description = client.describe_group("g").await.unwrap();
        assert_eq!(description.lag(None), 0, "{description:?}");
    });
}

#[test]
fn a_filter_passes_what_it_says() {
    with_topic(TopicConfig::new(1), |client| async move {
        let tagged = |n: u32| {
            let tag = if n.is_multiple_of(10) { "paid" } else { "open" };
            Record::new(n.to_string())
                .tag(tag)
                .header("amount", n.to_string())
        };
        send(&client, (0..100).map(tagged)).await;
        for (filter, wanted) in [
            ("paid", 10),
            ("tag = 'paid' AND amount >= 50", 5),
            ("amount BETWEEN 3 AND 4", 2),
        ] {
            let group = format!("g{wanted}");
            let mut consumer = client
                .consumer(&group)
                .topic(TOPIC)
                .filter(filter)
                .ack(AckMode::Auto)
                .open()
                .await
                .unwrap();
            let mut found = 0;
            while found < wanted {
                let _ = consumer.next().await.unwrap().unwrap();
                found += 1;
            }
            assert!(
                consumer
                    .next_batch(1, Duration::from_millis(50))
                    .await
                    .unwrap()
                    .is_empty()
            );
            consumer.close().await;
        }
        let error = client
            .consumer("bad")
            .topic(TOPIC)
            .filter("tag = ")
            .open()
            .await
            .unwrap_err();
        assert_eq!(error.code(), "invalid-filter");
        assert!(error.to_string().contains("at character 7"), "{error}");
        let error = client
            .create_subscription(
                "bad",
                Subscription {
                    filter: "amount >>".to_owned(),
                    ..Subscription::new(TOPIC)
                },
            )
            .await
            .unwrap_err();
        assert_eq!(error.code(), "invalid-filter");
        let error = client
            .consumer("g10")
            .topic(TOPIC)
            .filter("other")
            .open()
            .await
            .unwrap_err();
        assert_eq!(error.code(), "subscription-mismatch");
    });
}

#[test]
fn a_pull_brings_as_many_as_it_asks_for_or_what_there_is_in_time() {
    with_topic(TopicConfig::new(1), |client| async move {
        send(&client, keyed(10, 1)).await;
        let mut consumer = client
            .consumer("g")
            .topic(TOPIC)
            .pull()
            .ack(AckMode::Auto)
            .open()
            .await
            .unwrap();
        let first = consumer.next_batch(4, WAIT).await.unwrap();
        assert_eq!(first.iter().map(number).collect::<Vec<_>>(), [0, 1, 2, 3]);
        let rest = consumer
            .next_batch(100, Duration::from_millis(200))
            .await
            .unwrap();
        assert_eq!(rest.len(), 6);
        assert!(
            consumer
                .next_batch(1, Duration::from_millis(50))
                .await
                .unwrap()
                .is_empty()
        );
        consumer.close().await;
    });
}

#[test]
fn the_successor_goes_on_as_soon_as_a_member_leaves() {
    with_topic(TopicConfig::new(1), |client| async move {
        send(&client, keyed(2, 1)).await;
        let open = || {
            client
                .consumer("g")
                .topic(TOPIC)
                .mode(Mode::Exclusive)
                .open()
        };
        let mut first = open().await.unwrap();
        let taken = first.next().await.unwrap().unwrap();
        first.ack(&taken).await.unwrap();
        let mut second = open().await.unwrap();
        first.close().await;
        let next = second.next().await.unwrap().unwrap();
        assert_eq!((number(&taken), number(&next)), (0, 1));
        second.close().await;
    });
}

#[test]
fn higher_priorities_come_first() {
    let mut config = TopicConfig::new(1);
    config.levels = 3;
    with_topic(config, |client| async move {
        let records =
            (0..30u32).map(|n| Record::new(n.to_string()).priority(u8::try_from(n % 3).unwrap()));
        send(&client, records).await;
        for mode in [Mode::Shared, Mode::Exclusive] {
            let mut consumer = client
                .consumer(mode.name())
                .topic(TOPIC)
                .mode(mode)
                .pull()
                .ack(AckMode::Auto)
                .open()
                .await
                .unwrap();
            let mut levels = Vec::new();
            while levels.len() < 30 {
                for delivery in consumer.next_batch(1, WAIT).await.unwrap() {
                    assert_eq!(number(&delivery) % 3, u32::from(delivery.priority));
                    levels.push(delivery.priority);
                }
            }
            assert!(levels.is_sorted_by(|a, b| a >= b), "{mode:?}: {levels:?}");
            consumer.close().await;
        }
        let error = client
            .producer(TOPIC)
            .open()
            .await
            .unwrap()
            .send(Record::new("x").priority(3))
            .await
            .unwrap_err();
        assert_eq!(error.code(), "priority-out-of-range");
    });
}

#[test]
fn workers_keep_the_order_of_each_key_and_settle_what_is_in_hand() {
    with_topic(TopicConfig::new(4), |client| async move {
        const RECORDS: u32 = 5_000;
        send(&client, keyed(RECORDS, 1_000)).await;
        let seen: Arc<Mutex<BTreeMap<Vec<u8>, Vec<u32>>>> = Arc::default();
        let done = Arc::new(tokio::sync::Notify::new());
        let consumer = client
            .consumer("g")
            .topic(TOPIC)
            .mode(Mode::KeyOrdered)
            .open()
            .await
            .unwrap();
        let (list, finished) = (Arc::clone(&seen), Arc::clone(&done));
        let handler = move |delivery: Delivery| {
            let (list, finished) = (Arc::clone(&list), Arc::clone(&finished));
            async move {
                let turns = number(&delivery) % 3;
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
                let mut list = list.lock().unwrap();
                list.entry(delivery.key.clone().unwrap().to_vec())
                    .or_default()
                    .push(number(&delivery));
                if list.values().map(Vec::len).sum::<usize>() == RECORDS as usize {
                    finished.notify_one();
                }
                Ok::<(), HandlerError>(())
            }
        };
        let summary = consumer.run(16, done.notified(), handler).await.unwrap();
        assert_eq!(summary.consumed, u64::from(RECORDS));
        let seen = seen.lock().unwrap().clone();
        assert_eq!(seen.len(), 1_000);
        assert!(seen.values().all(|key| key.is_sorted()));
        let description = client.describe_group("g").await.unwrap();
        assert_eq!(description.lag(None), 0, "{description:?}");
    });
}

#[test]
fn a_reset_says_before_what_it_does_then() {
    with_topic(TopicConfig::new(1), |client| async move {
        send(&client, keyed(20, 1)).await;
        let mut consumer = client.consumer("g").topic(TOPIC).open().await.unwrap();
        for _ in 0..20 {
            let delivery = consumer.next().await.unwrap().unwrap();
            consumer.ack(&delivery).await.unwrap();
        }
        let to = ResetTo::Start(Start::Offset(15));
        let dry = client
            .reset_group("g", TOPIC, None, to, true)
            .await
            .unwrap();
        let real = client
            .reset_group("g", TOPIC, None, to, false)
            .await
            .unwrap();
        assert_eq!(dry, real);
        assert_eq!(real[0].comes, 5);
        for wanted in 15..20 {
            let delivery = consumer.next().await.unwrap().unwrap();
            assert_eq!(number(&delivery), wanted);
            consumer.ack(&delivery).await.unwrap();
        }
        consumer.close().await;
        assert_eq!(client.groups().await.unwrap()[0].name, "g");
        client.delete_group("g").await.unwrap();
        let error = client.describe_group("g").await.unwrap_err();
        assert_eq!(error.code(), "unknown-group");
    });
}

/// Everything of a group there is, acknowledged; nothing more may come.
async fn drain(client: &Client, group: &str, mode: Mode, count: usize) -> Vec<Delivery> {
    let mut consumer = client
        .consumer(group)
        .topic(TOPIC)
        .mode(mode)
        .open()
        .await
        .unwrap();
    let mut found = Vec::new();
    while found.len() < count {
        let delivery = consumer.next().await.unwrap().unwrap();
        consumer.ack(&delivery).await.unwrap();
        found.push(delivery);
    }
    let more = consumer.next_batch(1, Duration::from_millis(100)).await;
    assert!(more.unwrap().is_empty(), "{mode:?}");
    consumer.close().await;
    let description = client.describe_group(group).await.unwrap();
    assert_eq!(description.lag(None), 0, "{description:?}");
    found
}

#[test]
fn what_is_published_by_reference_is_consumed_like_everything_else() {
    with_topic(TopicConfig::new(1), |client| async move {
        // Some of a batch fire at times of their own, the others come at once.
        let records = (0..20u32).map(|n| {
            let record = Record::new(n.to_string()).key(format!("k{}", n % 3));
            match n % 5 {
                0 => record.deliver_after(Duration::from_millis(u64::from(50 + 20 * (n % 3)))),
                _ => record,
            }
        });
        let groups = [Mode::Shared, Mode::Exclusive, Mode::KeyOrdered];
        // One that is there before, and waits.
        let mut waiting = client
            .consumer("waiting")
            .topic(TOPIC)
            .mode(Mode::Exclusive)
            .open()
            .await
            .unwrap();
        send(&client, records).await;
        let producer = client.transactional_producer("till").open().await.unwrap();
        for (values, committed) in [(20..25u32, true), (100..105, false), (25..30, true)] {
            let mut transaction = producer.transaction();
            for n in values {
                let record = Record::new(n.to_string()).key(format!("k{}", n % 3));
                transaction.send(TOPIC, record).await.unwrap();
            }
            transaction.flush().await.unwrap();
            if committed {
                transaction.commit().await.unwrap();
            } else {
                transaction.rollback().await.unwrap();
            }
        }
        let mut seen = Vec::new();
        while seen.len() < 30 {
            let delivery = waiting.next().await.unwrap().unwrap();
            waiting.ack(&delivery).await.unwrap();
            assert_eq!(delivery.offset, seen.len() as u64);
            seen.push(number(&delivery));
        }
        waiting.close().await;
        for mode in groups {
            let found = drain(&client, mode.name(), mode, 30).await;
            assert!(found.iter().all(|delivery| delivery.attempt == 1));
            let by_offset: BTreeMap<u64, u32> = found
                .iter()
                .map(|delivery| (delivery.offset, number(delivery)))
                .collect();
            // Every group is given the same records at the same offsets.
            assert_eq!(by_offset.len(), 30, "{mode:?}");
            assert_eq!(
                by_offset.into_values().collect::<Vec<_>>(),
                seen,
                "{mode:?}"
            );
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..30).collect::<Vec<u32>>());
    });
}

#[test]
fn what_a_member_held_that_was_killed_comes_to_another() {
    with_node(TopicConfig::new(2), |node, client| async move {
        send(&client, keyed(40, 4)).await;
        let (address, ca) = (node.address.to_string(), node.data.join("tls/ca.pem"));
        let (holds, held) = oneshot::channel();
        let victim = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let mut consumers = runtime.block_on(async {
                let client = Client::connect(&address).ca(ca).await.unwrap();
                let mut consumers = Vec::new();
                for mode in [Mode::Shared, Mode::Exclusive] {
                    let mut consumer = client
                        .consumer(mode.name())
                        .topic(TOPIC)
                        .mode(mode)
                        .open()
                        .await
                        .unwrap();
                    let mut settled = Vec::new();
                    for n in 0..40 {
                        let delivery = consumer.next().await.unwrap().unwrap();
                        if n < 10 {
                            consumer.ack(&delivery).await.unwrap();
                            settled.push((delivery.partition, delivery.offset));
                        }
                    }
                    consumers.push((consumer, client.clone(), settled));
                }
                consumers
            });
            let settled: Vec<_> = consumers
                .iter_mut()
                .map(|(_, _, settled)| std::mem::take(settled))
                .collect();
            // Nobody speaks for it any more: it says no goodbye.
            runtime.shutdown_background();
            holds.send(settled).unwrap();
        });
        let settled = held.await.unwrap();
        victim.join().unwrap();
        for (mode, settled) in [Mode::Shared, Mode::Exclusive].into_iter().zip(settled) {
            let found = drain(&client, mode.name(), mode, 30).await;
            let places: BTreeSet<(u32, u64)> = found
                .iter()
                .map(|delivery| (delivery.partition, delivery.offset))
                .collect();
            assert_eq!(places.len(), 30, "{mode:?}");
            assert!(
                settled.iter().all(|place| !places.contains(place)),
                "{mode:?}"
            );
        }
        node
    });
}

#[test]
fn what_was_acknowledged_before_the_broker_is_killed_does_not_come_again_and_the_rest_does() {
    with_node(TopicConfig::new(1), |node, client| async move {
        const RECORDS: u32 = 200;
        send(&client, keyed(RECORDS, RECORDS)).await;
        let modes = [Mode::Shared, Mode::Exclusive, Mode::KeyOrdered];
        let mut consumers = Vec::new();
        for mode in modes {
            let mut consumer = client
                .consumer(mode.name())
                .topic(TOPIC)
                .mode(mode)
                .open()
                .await
                .unwrap();
            let mut held = Vec::new();
            while held.len() < RECORDS as usize {
                held.push(consumer.next().await.unwrap().unwrap());
            }
            let even = held
                .iter()
                .filter(|delivery| number(delivery).is_multiple_of(2));
            consumer.ack_batch(even).await.unwrap();
            consumers.push((consumer, held));
        }
        let node = node.kill_and_restart().await;
        for ((mut consumer, held), mode) in consumers.into_iter().zip(modes) {
            let mut again = Vec::new();
            while again.len() < RECORDS as usize / 2 {
                let delivery = consumer.next().await.unwrap().unwrap();
                again.push(delivery);
            }
            let mut values: Vec<u32> = again.iter().map(number).collect();
            if mode == Mode::Exclusive {
                assert!(values.is_sorted(), "{values:?}");
            }
            values.sort_unstable();
            let odd: Vec<u32> = (0..RECORDS).filter(|n| n % 2 == 1).collect();
            assert_eq!(values, odd, "{mode:?}");
            // What was in hand is void.
            assert!(held.iter().all(|delivery| !consumer.holds(delivery)));
            assert!(consumer.ack(&held[1]).await.is_err());
            consumer.ack_batch(&again).await.unwrap();
            consumer.close().await;
            let description = client.describe_group(mode.name()).await.unwrap();
            assert_eq!(description.lag(None), 0, "{description:?}");
        }
        // Once more, with nothing left to come.
        let node = node.kill_and_restart().await;
        send(&client, [Record::new("1000").key("k")]).await;
        for mode in modes {
            let found = drain(&client, mode.name(), mode, 1).await;
            assert_eq!(number(&found[0]), 1000, "{mode:?}");
        }
        node
    });
}

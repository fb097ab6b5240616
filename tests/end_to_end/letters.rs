//! Dead letters: listed with where they come from, brought back once under their ids, cleared; through
//! repeated calls, calls at the same time, and a broker that is killed.

use std::collections::BTreeMap;
use std::time::Duration;

use waterwheel::client::{
    AdminError, Client, Code, DeadLetter, Delivery, MessageId, Mode, Record,
    TopicConfig,
};

use crate::rig::{Rig, run};

const TOPIC: &str = "orders";
const LETTERS: &str = "billing.dead-letters";
const WAIT: Duration = Duration::from_secs(20);

/// A broker with the topic, and its client.
async fn stage() -> (Rig, Client) {
    let rig = Rig::start_with(|config| config.checkpoint_ms = 50).await;
    let client = rig.node.connect().await.unwrap();
    let config = TopicConfig {
        levels: 2,
        ..TopicConfig::new(3)
    };
    client.create_topic(TOPIC, config).await.unwrap();
    (rig, client)
}

fn record(number: u32) -> Record {
    Record::new(format!("order {number}"))
        .key(format!("customer {}", number % 7))
        .tag("paid")
        .header("number", number.to_string())
        .priority(u8::from(number.is_multiple_of(5)))
}

/// Sends records that nobody can consume, and waits until all are dead letters.
async fn give_up(client: &Client, count: u32) -> Vec<DeadLetter> {
    let producer = client.producer(TOPIC).open().await.unwrap();
    for number in 0..count {
        producer.send_one_way(record(number)).await.unwrap();
    }
    producer.close().await.unwrap();
    bury(client, count).await
}

/// A member of the group refuses what comes for good; waits until it is dead letters.
async fn bury(client: &Client, count: u32) -> Vec<DeadLetter> {
    let mut consumer = client
        .consumer("billing")
        .topic(TOPIC)
        .mode(Mode::Shared)
        .open()
        .await
        .unwrap();
    for _ in 0..count {
        let delivery = consumer.next().await.unwrap().unwrap();
        consumer.reject(&delivery, "no such account").await.unwrap();
    }
    consumer.close().await;
    listed(client, count as usize).await
}

/// Asks until so many letters are open.
async fn listed(client: &Client, count: usize) -> Vec<DeadLetter> {
    loop {
        match client.dead_letters(LETTERS).list().await {
            Ok(letters) if letters.len() >= count => {
                assert_eq!(letters.len(), count);
                return letters;
            }
            Ok(_) => {}
            Err(AdminError::Refused(refusal)) => assert_eq!(refusal.code, Code::UnknownTopic),
            Err(other) => panic!("{other}"),
        }
        tokio::task::yield_now().await;
    }
}

/// Everything a topic holds.
async fn all(client: &Client, topic: &str) -> Vec<Delivery> {
    let mut reader = client.reader(topic).until_end().open().await.unwrap();
    let mut found = Vec::new();
    while let Some(deliveries) = reader.next_deliveries().await.unwrap() {
        found.extend(deliveries);
    }
    found
}

/// Every message is there so often, and each time the same, in the same partition.
fn assert_each(deliveries: &[Delivery], times: usize, count: usize) {
    let mut by_id: BTreeMap<MessageId, Vec<&Delivery>> = BTreeMap::new();
    for delivery in deliveries {
        by_id.entry(delivery.id).or_default().push(delivery);
    }
    assert_eq!(by_id.len(), count);
    for (id, same) in by_id {
        assert_eq!(same.len(), times, "{id}");
        let (first, last) = (same[0], same[same.len() - 1]);
        assert_eq!(
            (first.partition, &first.key, &first.value, first.priority),
            (last.partition, &last.key, &last.value, last.priority)
        );
        assert_eq!((&first.tag, &first.headers), (&last.tag, &last.headers));
        assert_eq!(first.timestamp_ms, last.timestamp_ms);
    }
}

fn refused<T: std::fmt::Debug>(answer: Result<T, AdminError>) -> Code {
    match answer {
        Err(AdminError::Refused(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn letters_say_where_they_come_from_and_come_back_once() {
    run(async {
        let (rig, client) = stage().await;
        let letters = give_up(&client, 40).await;
        let originals = all(&client, TOPIC).await;
        for letter in &letters {
            let origin = letter.origin.as_ref().unwrap();
            let original = originals.iter().find(|record| record.id == letter.id);
            let original = original.unwrap();
            assert_eq!(
                (origin.group.as_str(), origin.topic.as_str()),
                ("billing", TOPIC)
            );
            assert_eq!((origin.reason.as_str(), origin.attempts), ("no such account", 1));
            assert_eq!(
                (origin.partition.0, origin.offset.0, origin.lane.0),
                (original.partition, original.offset, original.priority)
            );
            assert_eq!(letter.key, original.key);
            assert_eq!(letter.value_bytes, original.value.len() as u64);
            assert!(letter.time_ms >= original.time_ms);
        }
        // A page at a time is the same.
        let (mut pages, mut paged) = (client.dead_letters(LETTERS).page_size(7), Vec::new());
        while let Some(page) = pages.page().await.unwrap() {
            assert!(page.len() <= 7);
            paged.extend(page);
        }
        assert_eq!(paged, letters);

        // Some by their ids, some by number, the rest by two who ask at the same time.
        let ids = letters.iter().take(3).map(|letter| letter.id);
        let by_id = client.dead_letters(LETTERS).ids(ids.clone());
        assert_eq!(by_id.clone().redrive().await.unwrap().done, 3);
        assert_eq!(by_id.redrive().await.unwrap().done, 0, "they are back already");
        let some = client.dead_letters(LETTERS).max(4);
        assert_eq!(some.redrive().await.unwrap().done, 4);
        assert_eq!(listed(&client, 33).await, letters[7..]);
        let rest = || client.dead_letters(LETTERS).redrive();
        let (one, other) = tokio::join!(rest(), rest());
        let (one, other) = (one.unwrap(), other.unwrap());
        assert_eq!((one.done + other.done, one.faulty + other.faulty), (33, 0));
        assert_each(&all(&client, TOPIC).await, 2, 40);

        // That is remembered, whatever happens to the broker.
        drop(client);
        let rig = rig.kill_and_restart(|_| {}).await;
        let client = rig.node.connect().await.unwrap();
        assert!(listed(&client, 0).await.is_empty());
        let again = client.dead_letters(LETTERS).redrive().await.unwrap();
        assert_eq!((again.done, again.faulty), (0, 0));
        assert_each(&all(&client, TOPIC).await, 2, 40);
        // What came back is consumed as if it were new, at its first attempt.
        let mut consumer = client.consumer("billing").topic(TOPIC).open().await.unwrap();
        for _ in 0..40 {
            let delivery = consumer.next().await.unwrap().unwrap();
            assert_eq!(delivery.attempt, 1);
            consumer.ack(&delivery).await.unwrap();
        }
        consumer.close().await;
        rig.node.stop().await;
    });
}

#[test]
fn a_broker_killed_while_letters_come_back_brings_back_each_once() {
    run(async {
        let (mut rig, mut client) = stage().await;
        give_up(&client, 300).await;
        for round in 0..4 {
            let mut reader = client.reader(TOPIC).open().await.unwrap();
            for _ in 0..300 + 20 * round {
                reader.next().await.unwrap().unwrap();
            }
            let back = {
                let letters = client.dead_letters(LETTERS).max(60);
                tokio::spawn(async move { letters.redrive().await })
            };
            // One is back: the others are on their way.
            let _ = tokio::time::timeout(WAIT, reader.next()).await.unwrap();
            drop(reader);
            drop(client);
            rig = rig.kill_and_restart(|_| {}).await;
            back.abort();
            client = rig.node.connect().await.unwrap();
            let back = all(&client, TOPIC).await.len() - 300;
            let open = client.dead_letters(LETTERS).list().await.unwrap();
            assert_eq!(open.len(), 300 - back, "a letter is open or back");
        }
        client.dead_letters(LETTERS).redrive().await.unwrap();
        assert_each(&all(&client, TOPIC).await, 2, 300);
        assert!(listed(&client, 0).await.is_empty());
        rig.node.stop().await;
    });
}

#[test]
fn what_dies_again_is_a_new_letter_and_no_walk_goes_in_circles() {
    run(async {
        let (rig, client) = stage().await;
        let first = give_up(&client, 10).await;
        client.dead_letters(LETTERS).redrive().await.unwrap();
        let second = bury(&client, 10).await;
        assert!(second.iter().all(|letter| letter.offset >= 10));
        let ids = |letters: &[DeadLetter]| {
            let mut ids: Vec<MessageId> = letters.iter().map(|letter| letter.id).collect();
            ids.sort_unstable();
            ids
        };
        assert_eq!(ids(&first), ids(&second));
        let origin = second[0].origin.as_ref().unwrap();
        assert_eq!((origin.topic.as_str(), origin.attempts), (TOPIC, 1));
        rig.node.stop().await;
    });
}

#[test]
fn purged_letters_are_listed_no_more_and_come_back_never() {
    run(async {
        let (rig, client) = stage().await;
        let letters = give_up(&client, 20).await;
        let of = |group| client.dead_letters(LETTERS).of_group(group);
        assert_eq!(of("nobody").purge().await.unwrap().done, 0);
        let ids = letters.iter().skip(5).take(2).map(|letter| letter.id);
        let purged = client.dead_letters(LETTERS).ids(ids).purge().await.unwrap();
        assert_eq!(purged.done, 2);
        assert_eq!(of("billing").max(3).purge().await.unwrap().done, 3);
        assert_eq!(
            client.dead_letters(LETTERS).of_topic(TOPIC).max(5).purge().await.unwrap().done,
            5
        );
        drop(client);
        let rig = rig.kill_and_restart(|_| {}).await;
        let client = rig.node.connect().await.unwrap();
        assert_eq!(listed(&client, 10).await, letters[10..]);
        let in_first = client.dead_letters(LETTERS).partition(0);
        assert_eq!(in_first.clone().purge().await.unwrap().done, 10);
        assert_eq!(in_first.purge().await.unwrap().done, 0);
        assert_eq!(client.dead_letters(LETTERS).redrive().await.unwrap().done, 0);
        assert_eq!(all(&client, TOPIC).await.len(), 20);
        // The records themselves stay until retention takes them.
        assert_eq!(all(&client, LETTERS).await.len(), 20);
        rig.node.stop().await;
    });
}

#[test]
fn letters_go_to_another_topic_and_what_cannot_go_stays_and_says_why() {
    run(async {
        let (rig, client) = stage().await;
        give_up(&client, 6).await;
        // Somebody else put a record there.
        let producer = client.producer(LETTERS).open().await.unwrap();
        producer.send(Record::new("stray")).await.unwrap();
        producer.close().await.unwrap();
        client.create_topic("repair", TopicConfig::new(2)).await.unwrap();
        let letters = || client.dead_letters(LETTERS);
        assert_eq!(refused(letters().redrive_to(LETTERS).await), Code::InvalidConfig);
        assert_eq!(refused(letters().redrive_to("nowhere").await), Code::UnknownTopic);
        assert_eq!(refused(letters().partition(9).list().await), Code::PartitionOutOfRange);
        assert_eq!(
            refused(client.dead_letters("nowhere").list().await),
            Code::UnknownTopic
        );

        let done = letters().max(2).redrive_to("repair").await.unwrap();
        assert_eq!((done.done, done.faulty), (2, 0));
        client.delete_topic(TOPIC).await.unwrap();
        let done = letters().redrive().await.unwrap();
        assert_eq!((done.done, done.faulty), (0, 5));
        assert!(done.faults.iter().all(|fault| fault.code == "unknown-topic"));
        let done = letters().redrive_to("repair").await.unwrap();
        assert_eq!((done.done, done.faulty), (5, 0));
        let repaired = all(&client, "repair").await;
        assert_each(&repaired, 1, 7);
        assert!(listed(&client, 0).await.is_empty());
        rig.node.stop().await;
    });
}

#[test]
fn the_account_of_letters_is_nobody_elses() {
    run(async {
        let (rig, client) = stage().await;
        let group = "waterwheel.dead-letters";
        let join = client.consumer(group).topic(TOPIC).open().await;
        assert_eq!(join.unwrap_err().code(), "invalid-name");
        let subscription = waterwheel::client::Subscription::new(TOPIC);
        assert_eq!(
            refused(client.create_subscription(group, subscription).await),
            Code::InvalidName
        );
        assert_eq!(refused(client.delete_group(group).await), Code::InvalidName);
        let start = waterwheel::client::ResetTo::Start(waterwheel::client::Start::Earliest);
        let reset = client.reset_group(group, TOPIC, None, start, false).await;
        assert_eq!(refused(reset), Code::InvalidName);
        // It can be looked at: what it lags behind by are the open letters.
        give_up(&client, 3).await;
        client.dead_letters(LETTERS).max(1).purge().await.unwrap();
        let state = client.describe_group(group).await.unwrap().state;
        assert_eq!(state.subscriptions[0].topic, LETTERS);
        assert_eq!(state.places[0].floor.0, 1);
        rig.node.stop().await;
    });
}

#[test]
fn a_group_hears_when_a_delayed_record_was_stored_due_and_fired() {
    run(async {
        let (rig, client) = stage().await;
        let producer = client.producer(TOPIC).open().await.unwrap();
        let later = Record::new("later").deliver_after(Duration::from_millis(80));
        let receipt = producer.send(later).await.unwrap();
        producer.send(Record::new("now")).await.unwrap();
        let mut consumer = client.consumer("billing").topic(TOPIC).open().await.unwrap();
        let mut reader = client.reader(TOPIC).open().await.unwrap();
        let mut read = Vec::new();
        for _ in 0..2 {
            read.push(reader.next().await.unwrap().unwrap());
        }
        for _ in 0..2 {
            let delivery = consumer.next().await.unwrap().unwrap();
            let same = read.iter().find(|read| read.id == delivery.id).unwrap();
            assert_eq!(
                (delivery.time_ms, delivery.due_ms, delivery.fired_ms),
                (same.time_ms, same.due_ms, same.fired_ms)
            );
            if delivery.value.as_ref() == b"now" {
                assert_eq!((delivery.due_ms, delivery.fired_ms), (None, None));
            } else {
                assert_eq!(delivery.due_ms, receipt.due_ms);
                assert!(delivery.fired_ms >= delivery.due_ms);
                assert!(delivery.time_ms < delivery.due_ms.unwrap());
            }
            consumer.ack(&delivery).await.unwrap();
        }
        consumer.close().await;
        rig.node.stop().await;
    });
}

//! Transactions through the product's client: all or nothing, once, whatever is killed; half messages and
//! the questions for their outcomes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use futures::FutureExt;
use tokio::sync::Notify;
use waterwheel::client::{
    AckMode, Client, Code, HalfMessage, LocalOutcome, LocalTransaction, Record, TopicConfig,
    TransactionError, TransactionId, WallMs,
};
use waterwheel::domain::transaction::{SHARDS, shard_owner};

use crate::rig::{Rig, run};

const TOPICS: [&str; 2] = ["orders", "points"];

async fn topics(rig: &Rig) -> Client {
    let client = rig.node.connect().await.unwrap();
    for topic in TOPICS {
        let mut config = TopicConfig::new(2);
        config.levels = 2;
        client.create_topic(topic, config).await.unwrap();
    }
    client
}

async fn values(client: &Client, topic: &str) -> Vec<String> {
    let mut reader = client.reader(topic).until_end().open().await.unwrap();
    let mut values = Vec::new();
    while let Some(delivery) = reader.next().await {
        values.push(String::from_utf8(delivery.unwrap().value.to_vec()).unwrap());
    }
    values.sort_unstable();
    values
}

fn refused(error: TransactionError) -> Code {
    let TransactionError::Refused(refusal) = &error else {
        panic!("not refused but {error}");
    };
    refusal.code
}

#[test]
fn a_committed_transaction_is_visible_in_every_topic_and_not_before() {
    run(async {
        let rig = Rig::start().await;
        let client = topics(&rig).await;
        let producer = client.transactional_producer("till").open().await.unwrap();
        let mut transaction = producer.transaction();
        for n in 0..10 {
            transaction
                .send("orders", Record::new(format!("order {n}")).key(n.to_string()))
                .await
                .unwrap();
        }
        transaction
            .send_to("points", 1, Record::new("10 points"))
            .await
            .unwrap();
        transaction.flush().await.unwrap();
        assert!(values(&client, "orders").await.is_empty(), "nothing is visible");
        let open = client.describe_transaction(transaction.id()).await.unwrap();
        assert_eq!(open.state, "open");
        assert_eq!(open.participants.iter().map(|one| one.records).sum::<u32>(), 11);
        transaction.commit().await.unwrap();
        assert_eq!(values(&client, "orders").await.len(), 10);
        assert_eq!(values(&client, "points").await, ["10 points"]);
        // Ordinary records follow without a gap.
        let plain = client.producer("points").open().await.unwrap();
        let receipt = plain.send_to(1, Record::new("next")).await.unwrap();
        assert_eq!(receipt.offset, Some(1));
    });
}

#[test]
fn delayed_records_of_a_transaction_wait_for_their_time_from_the_commit_on() {
    run(async {
        let rig = Rig::start().await;
        let client = topics(&rig).await;
        let producer = client.transactional_producer("till").open().await.unwrap();
        let mut transaction = producer.transaction();
        let soon = Duration::from_millis(300);
        for (value, delayed) in [("a", false), ("b", true), ("c", false), ("d", true)] {
            let record = Record::new(value);
            let record = if delayed { record.deliver_after(soon) } else { record };
            transaction.send_to("orders", 0, record).await.unwrap();
        }
        transaction.commit().await.unwrap();
        let mut reader = client.reader("orders").partition(0).open().await.unwrap();
        for (offset, value) in (0..).zip(["a", "c", "b", "d"]) {
            let delivery = reader.next().await.unwrap().unwrap();
            assert_eq!((delivery.offset, delivery.value.as_ref()), (offset, value.as_bytes()));
            assert_eq!(delivery.due_ms.is_some(), offset > 1);
            assert!(delivery.due_ms <= delivery.fired_ms, "never early");
        }
    });
}

/// A topic of one partition with three levels.
async fn three_levels(rig: &Rig) -> Client {
    let client = rig.node.connect().await.unwrap();
    let mut config = TopicConfig::new(1);
    config.levels = 3;
    client.create_topic("urgent", config).await.unwrap();
    client
}

/// What each level has, in the order of its offsets.
async fn by_level(client: &Client) -> Vec<(u8, u64, String)> {
    let mut reader = client.reader("urgent").until_end().open().await.unwrap();
    let mut all = Vec::new();
    while let Some(delivery) = reader.next().await {
        let delivery = delivery.unwrap();
        let value = String::from_utf8(delivery.value.to_vec()).unwrap();
        all.push((delivery.priority, delivery.offset, value));
    }
    all.sort_unstable();
    all
}

#[test]
fn records_of_a_transaction_keep_their_priority_each_level_with_an_order_of_its_own() {
    run(async {
        let rig = Rig::start_with(|config| config.checkpoint_ms = 50).await;
        let client = three_levels(&rig).await;
        let producer = client.transactional_producer("till").open().await.unwrap();
        let mut gone = producer.transaction();
        gone.send("urgent", Record::new("gone").priority(1)).await.unwrap();
        gone.flush().await.unwrap();
        gone.rollback().await.unwrap();
        let mut transaction = producer.transaction();
        // Twice to every level, in batches of their own: each level counts for itself.
        for round in 0..2 {
            for level in [0, 2, 1] {
                let record = Record::new(format!("{round}{level}")).priority(level);
                transaction.send("urgent", record).await.unwrap();
            }
            transaction.flush().await.unwrap();
        }
        assert!(by_level(&client).await.is_empty(), "nothing is visible");
        let id = transaction.id();
        let open = client.describe_transaction(id).await.unwrap();
        let mut lanes: Vec<(u8, u32)> =
            open.participants.iter().map(|one| (one.lane.0, one.records)).collect();
        lanes.sort_unstable();
        assert_eq!(lanes, [(0, 2), (1, 2), (2, 2)], "levels are participants");
        // The broker is killed between the halves and the decision.
        std::mem::forget(transaction);
        drop((producer, client));
        let rig = rig
            .kill_and_restart(|dir| std::fs::remove_dir_all(dir.join("views")).unwrap())
            .await;
        let client = rig.node.connect().await.unwrap();
        assert!(by_level(&client).await.is_empty(), "nothing is visible");
        client.decide_transaction(id, true).await.unwrap();
        let wanted = [(0, 0, "00"), (0, 1, "10"), (1, 0, "01"), (1, 1, "11"), (2, 0, "02"), (2, 1, "12")];
        let wanted = wanted.map(|(level, offset, value)| (level, offset, value.to_owned()));
        assert_eq!(by_level(&client).await, wanted);
        let builder = client.consumer("urgents").topic("urgent").ack(AckMode::Auto).pull();
        let mut consumer = builder.open().await.unwrap();
        let mut levels = Vec::new();
        while levels.len() < 6 {
            let batch = consumer.next_batch(1, Duration::from_secs(5)).await.unwrap();
            levels.extend(batch.iter().map(|delivery| delivery.priority));
        }
        assert_eq!(levels, [2, 2, 1, 1, 0, 0], "groups are given the urgent ones first");
    });
}

#[test]
fn delayed_records_of_a_transaction_wait_at_their_level() {
    run(async {
        let rig = Rig::start().await;
        let client = three_levels(&rig).await;
        let producer = client.transactional_producer("till").open().await.unwrap();
        let mut reader = client.reader("urgent").open().await.unwrap();
        let mut transaction = producer.transaction();
        let later = Duration::from_millis(200);
        for (value, level, delayed) in [("later", 2, true), ("now", 2, false), ("low", 0, true)] {
            let record = Record::new(value).priority(level);
            let record = if delayed { record.deliver_after(later) } else { record };
            transaction.send("urgent", record).await.unwrap();
        }
        transaction.flush().await.unwrap();
        let committing = WallMs::from(SystemTime::now()).0;
        transaction.commit().await.unwrap();
        let mut seen = Vec::new();
        for _ in 0..3 {
            let delivery = reader.next().await.unwrap().unwrap();
            let value = String::from_utf8(delivery.value.to_vec()).unwrap();
            if let Some(due) = delivery.due_ms {
                assert!(due >= committing + 200, "spans run from the commit");
                assert!(delivery.fired_ms >= Some(due), "never early");
            }
            seen.push((delivery.priority, delivery.offset, value, delivery.due_ms.is_some()));
        }
        seen.sort_unstable();
        let wanted = [(0, 0, "low", true), (2, 0, "now", false), (2, 1, "later", true)];
        let wanted = wanted.map(|(level, offset, value, due)| (level, offset, value.to_owned(), due));
        assert_eq!(seen, wanted);
    });
}

#[test]
fn a_priority_that_the_topic_does_not_have_fails_the_transaction() {
    run(async {
        let rig = Rig::start().await;
        let client = three_levels(&rig).await;
        let producer = client.transactional_producer("till").open().await.unwrap();
        let mut transaction = producer.transaction();
        transaction.send("urgent", Record::new("kept back")).await.unwrap();
        let error = transaction.send("urgent", Record::new("x").priority(3)).await.unwrap_err();
        assert_eq!(error.code(), "priority-out-of-range");
        assert!(!error.is_retriable());
        assert_eq!(transaction.commit().await.unwrap_err().code(), "transaction-failed");
        assert!(by_level(&client).await.is_empty());
    });
}

#[test]
fn what_is_rolled_back_dropped_or_failed_is_never_seen() {
    run(async {
        let rig = Rig::start().await;
        let client = topics(&rig).await;
        let producer = client.transactional_producer("till").open().await.unwrap();
        let mut rolled_back = producer.transaction();
        rolled_back.send("orders", Record::new("one")).await.unwrap();
        rolled_back.flush().await.unwrap();
        rolled_back.rollback().await.unwrap();
        let mut dropped = producer.transaction();
        dropped.send("orders", Record::new("two")).await.unwrap();
        dropped.flush().await.unwrap();
        let id = dropped.id();
        drop(dropped);
        let closed: Result<(), TransactionError> = producer
            .run(async |transaction| {
                transaction.send("orders", Record::new("three")).await?;
                transaction.flush().await?;
                Err(TransactionError::Closed)
            })
            .await;
        assert!(matches!(closed, Err(TransactionError::Closed)));
        while client.describe_transaction(id).await.unwrap().state != "rolled-back" {
            tokio::task::yield_now().await;
        }
        let seen: Result<u32, TransactionError> = producer
            .run(async |transaction| {
                transaction.send("orders", Record::new("four")).await?;
                Ok(4)
            })
            .await;
        assert_eq!(seen.unwrap(), 4);
        assert_eq!(values(&client, "orders").await, ["four"]);
    });
}

#[test]
fn a_decision_survives_a_kill_and_what_was_open_is_decided_by_its_producer_afterwards() {
    run(async {
        let rig = Rig::start_with(|config| config.checkpoint_ms = 50).await;
        let client = topics(&rig).await;
        let producer = client.transactional_producer("till").open().await.unwrap();
        let mut committed = producer.transaction();
        committed.send("orders", Record::new("kept")).await.unwrap();
        committed.commit().await.unwrap();
        let mut open = producer.transaction();
        open.send("orders", Record::new("open")).await.unwrap();
        open.flush().await.unwrap();
        let id = open.id();
        std::mem::forget(open);
        drop((producer, client));
        let rig = rig
            .kill_and_restart(|dir| std::fs::remove_dir_all(dir.join("views")).unwrap())
            .await;
        let client = rig.node.connect().await.unwrap();
        assert_eq!(values(&client, "orders").await, ["kept"]);
        assert_eq!(client.describe_transaction(id).await.unwrap().state, "open");
        client.decide_transaction(id, true).await.unwrap();
        let rig = rig.kill_and_restart(|_| {}).await;
        let client = rig.node.connect().await.unwrap();
        assert_eq!(values(&client, "orders").await, ["kept", "open"]);
        let decided = client.describe_transaction(id).await.unwrap();
        assert_eq!((decided.state.as_str(), decided.by.as_deref()), ("committed", Some("operator")));
        let opposite = client.decide_transaction(id, false).await.unwrap_err();
        assert_eq!(opposite.code(), "transaction-decided");
        client.decide_transaction(id, true).await.unwrap();
    });
}

#[test]
fn a_new_session_of_an_id_fences_the_old_one_and_rolls_back_what_it_left() {
    run(async {
        let rig = Rig::start().await;
        let client = topics(&rig).await;
        let old = client.transactional_producer("till").open().await.unwrap();
        let mut left = old.transaction();
        left.send("orders", Record::new("left")).await.unwrap();
        left.flush().await.unwrap();
        let new = client.transactional_producer("till").open().await.unwrap();
        let late = left.commit().await.unwrap_err();
        assert!(
            matches!(refused(late), Code::TransactionDecided | Code::ProducerFenced),
            "the decision stands"
        );
        let mut zombie = old.transaction();
        zombie.send("orders", Record::new("zombie")).await.unwrap();
        assert_eq!(refused(zombie.commit().await.unwrap_err()), Code::ProducerFenced);
        let mut fresh = new.transaction();
        fresh.send("orders", Record::new("fresh")).await.unwrap();
        fresh.commit().await.unwrap();
        assert_eq!(values(&client, "orders").await, ["fresh"]);
    });
}

#[test]
fn a_transaction_nobody_ends_is_rolled_back_by_time() {
    run(async {
        let rig = Rig::start_with(|config| config.transaction_duration_ms = 100).await;
        let client = topics(&rig).await;
        let producer = client.transactional_producer("till").open().await.unwrap();
        let mut slow = producer.transaction();
        slow.send("orders", Record::new("slow")).await.unwrap();
        slow.flush().await.unwrap();
        while client.describe_transaction(slow.id()).await.unwrap().state != "rolled-back" {
            tokio::task::yield_now().await;
        }
        assert_eq!(refused(slow.commit().await.unwrap_err()), Code::TransactionDecided);
        assert!(values(&client, "orders").await.is_empty());
    });
}

#[test]
fn limits_unknown_transactions_and_deleted_topics_have_their_own_codes() {
    run(async {
        let rig = Rig::start_with(|config| {
            config.transactions_per_session_max = 2;
            config.transaction_participants_max = 1;
        })
        .await;
        let client = topics(&rig).await;
        let producer = client.transactional_producer("till").timeout(Duration::from_millis(300));
        let producer = producer.open().await.unwrap();
        let mut wide = producer.transaction();
        wide.send_to("orders", 0, Record::new("a")).await.unwrap();
        wide.flush().await.unwrap();
        wide.send_to("orders", 1, Record::new("b")).await.unwrap();
        // A limit passes when others end, so that the client tries on until its time is over.
        assert!(matches!(wide.commit().await, Err(TransactionError::TimedOut)));
        let nobody = TransactionId::default();
        let unknown = client.decide_transaction(nobody, true).await.unwrap_err();
        assert_eq!(unknown.code(), "transaction-unknown");
        let mut over_deleted = producer.transaction();
        over_deleted.send_to("points", 0, Record::new("gone")).await.unwrap();
        over_deleted.flush().await.unwrap();
        client.delete_topic("points").await.unwrap();
        over_deleted.commit().await.unwrap();
        assert!(values(&client, "orders").await.is_empty());
    });
}

/// A ledger of outcomes that two processes of a group would share: a database.
#[derive(Clone, Default)]
struct Till {
    outcomes: Arc<Mutex<BTreeMap<TransactionId, LocalOutcome>>>,
    executed: Arc<AtomicUsize>,
    checked: Arc<Notify>,
    silent: bool,
}

impl LocalTransaction for Till {
    fn execute<'a>(&'a self, id: TransactionId, record: &'a Record) -> BoxFuture<'a, LocalOutcome> {
        async move {
            self.executed.fetch_add(1, Ordering::SeqCst);
            let outcome = match record.value.as_ref() {
                b"pay" | b"forget" => LocalOutcome::Commit,
                b"panic" => panic!("the till breaks"),
                _ => LocalOutcome::Rollback,
            };
            self.outcomes.lock().unwrap().insert(id, outcome);
            // The database knows; the answer is lost.
            if record.value.as_ref() == b"forget" { LocalOutcome::Unknown } else { outcome }
        }
        .boxed()
    }

    fn check<'a>(&'a self, half: &'a HalfMessage) -> BoxFuture<'a, LocalOutcome> {
        async move {
            assert_eq!(half.topic, "orders");
            assert_eq!(half.records.len(), 1);
            let urgent = half.records[0].value.as_ref() == b"forget";
            assert_eq!(half.records[0].priority, u8::from(urgent));
            self.checked.notify_one();
            let known = self.outcomes.lock().unwrap().get(&half.id).copied();
            match known {
                _ if self.silent => LocalOutcome::Unknown,
                Some(outcome) => outcome,
                // Asked before it was executed, on a busy machine: whoever guessed would overrule it.
                None => LocalOutcome::Unknown,
            }
        }
        .boxed()
    }
}

async fn till(client: &Client, name: &str, till: &Till) -> waterwheel::client::TransactionalProducer {
    let builder = client.transactional_producer(name).group("tills").local(till.clone());
    builder.open().await.unwrap()
}

#[test]
fn a_half_message_follows_its_local_transaction_and_is_asked_for_where_the_answer_is_lost() {
    run(async {
        let rig = Rig::start_with(|config| config.transaction_check_ms = 20).await;
        let client = topics(&rig).await;
        let book = Till::default();
        let producer = till(&client, "till-1", &book).await;
        let immunity = Duration::from_millis(10);
        let send = |value: &'static str| {
            let record = Record::new(value).priority(u8::from(value == "forget"));
            producer.send_half_within("orders", record, immunity)
        };
        assert_eq!(send("pay").await.unwrap(), LocalOutcome::Commit);
        assert_eq!(send("cancel").await.unwrap(), LocalOutcome::Rollback);
        assert_eq!(send("forget").await.unwrap(), LocalOutcome::Unknown);
        assert_eq!(send("panic").await.unwrap(), LocalOutcome::Unknown);
        while values(&client, "orders").await != ["forget", "pay"] {
            tokio::task::yield_now().await;
        }
        assert_eq!(book.executed.load(Ordering::SeqCst), 4);
    });
}

#[test]
fn another_producer_of_the_group_answers_after_both_sides_were_killed() {
    run(async {
        let rig = Rig::start_with(|config| config.transaction_check_ms = 50).await;
        let client = topics(&rig).await;
        let book = Till::default();
        let producer = till(&client, "till-1", &book).await;
        let sent = producer.send_half_within("orders", Record::new("forget").priority(1), Duration::from_secs(1));
        assert_eq!(sent.await.unwrap(), LocalOutcome::Unknown);
        // The process that executed it is gone, the broker is killed, and another till takes over.
        drop((producer, client));
        let rig = rig.kill_and_restart(|_| {}).await;
        let client = rig.node.connect().await.unwrap();
        assert!(values(&client, "orders").await.is_empty());
        let _other = till(&client, "till-2", &book).await;
        while values(&client, "orders").await != ["forget"] {
            tokio::task::yield_now().await;
        }
        let listed = client.transactions(None).await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].by.as_deref(), Some("check-back"));
    });
}

#[test]
fn a_half_message_nobody_knows_of_expires_and_can_still_be_asked_for() {
    run(async {
        let rig = Rig::start_with(|config| {
            config.transaction_check_ms = 10;
            config.transaction_checks_max = 3;
        })
        .await;
        let client = topics(&rig).await;
        let book = Till { silent: true, ..Till::default() };
        let producer = till(&client, "till-1", &book).await;
        let sent = producer.send_half_within("orders", Record::new("forget").priority(1), Duration::from_millis(10));
        assert_eq!(sent.await.unwrap(), LocalOutcome::Unknown);
        book.checked.notified().await;
        loop {
            let listed = client.transactions(None).await.unwrap();
            if listed[0].state == "rolled-back" {
                assert_eq!(listed[0].by.as_deref(), Some("expiry"));
                break;
            }
            tokio::task::yield_now().await;
        }
        assert!(values(&client, "orders").await.is_empty());
    });
}

#[test]
fn producers_that_are_gone_take_no_questions_from_those_that_live() {
    run(async {
        let rig = Rig::start_with(|config| {
            config.transaction_check_ms = 10;
            config.transaction_checks_max = 3;
        })
        .await;
        let client = topics(&rig).await;
        let book = Till::default();
        // The process of one that is gone goes on without it.
        let others = rig.node.connect().await.unwrap();
        let mute = Till { silent: true, ..Till::default() };
        let gone = till(&others, "till-1", &mute).await;
        let living = till(&client, "till-2", &book).await;
        drop(gone);
        for _ in 0..8 {
            let sent = living.send_half_within("orders", Record::new("forget").priority(1), Duration::from_millis(10));
            assert_eq!(sent.await.unwrap(), LocalOutcome::Unknown);
        }
        while values(&client, "orders").await.len() < 8 {
            let listed = client.transactions(None).await.unwrap();
            assert!(listed.iter().all(|one| one.by.as_deref() != Some("expiry")), "{listed:?}");
        }
        // With nobody left, nothing is asked, and nothing expires unasked.
        let sent = living.send_half_within("orders", Record::new("forget").priority(1), Duration::from_millis(10));
        assert_eq!(sent.await.unwrap(), LocalOutcome::Unknown);
        drop(living);
        let _heir = till(&others, "till-3", &book).await;
        while values(&client, "orders").await.len() < 9 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn an_unstored_half_message_executes_nothing() {
    run(async {
        let rig = Rig::start().await;
        let client = topics(&rig).await;
        let book = Till::default();
        let producer = till(&client, "till-1", &book).await;
        let nowhere = producer.send_half("nowhere", Record::new("pay")).await.unwrap_err();
        assert_eq!(refused(nowhere), Code::UnknownTopic);
        assert_eq!(book.executed.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn coordinators_that_fail_are_made_anew_and_every_transaction_is_still_all_or_nothing() {
    run(async {
        let rig = Rig::start_with(|config| config.checkpoint_ms = 50).await;
        let client = topics(&rig).await;
        let mut tasks = Vec::new();
        for session in 0..4 {
            let client = client.clone();
            tasks.push(tokio::spawn(async move {
                let name = format!("till-{session}");
                let producer = client.transactional_producer(&name).open().await.unwrap();
                for n in 0..30 {
                    let mut transaction = producer.transaction();
                    for topic in TOPICS {
                        let record = Record::new(format!("{session}/{n}"));
                        transaction.send(topic, record).await.unwrap();
                    }
                    transaction.commit().await.unwrap();
                }
            }));
        }
        for shard in 0..SHARDS {
            let owner = shard_owner(shard);
            rig.node.shared.directory.tell(waterwheel::actors::directory::FailOwner { owner });
            tokio::task::yield_now().await;
        }
        for task in tasks {
            task.await.unwrap();
        }
        let (orders, points) = (values(&client, "orders").await, values(&client, "points").await);
        assert_eq!(orders.len(), 120, "each once");
        assert_eq!(orders, points, "all or nothing");
    });
}

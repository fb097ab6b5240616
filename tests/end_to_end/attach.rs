//! Consuming within a transaction: what is attached is consumed exactly if it commits, whatever is killed.

use std::time::Duration;

use waterwheel::client::{
    AckMode, Client, Code, Consumer, Delivery, Mode, Record, TopicConfig, TransactionError,
    TransactionalProducer,
};

use crate::rig::{Rig, run};

const WAIT: Duration = Duration::from_secs(20);
/// Long enough that nothing more comes where nothing more is to come: what is there is delivered at once.
const NOTHING: Duration = Duration::from_millis(200);
const GROUP: &str = "doublers";

async fn fill(client: &Client, records: u32) {
    client.create_topic("numbers", TopicConfig::new(1)).await.unwrap();
    client.create_topic("doubles", TopicConfig::new(2)).await.unwrap();
    let producer = client.producer("numbers").open().await.unwrap();
    for n in 0..records {
        producer.send(Record::new(n.to_string())).await.unwrap();
    }
}

async fn consumer(client: &Client, mode: Mode) -> Consumer {
    let builder = client.consumer(GROUP).topic("numbers").mode(mode);
    builder.open().await.unwrap()
}

async fn session(client: &Client) -> TransactionalProducer {
    client.transactional_producer("doubler").open().await.unwrap()
}

async fn take(consumer: &mut Consumer, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let more = consumer.next_batch(count - taken.len(), WAIT).await.unwrap();
        assert!(!more.is_empty(), "{} of {count} came", taken.len());
        taken.extend(more);
    }
    taken
}

fn values(deliveries: &[Delivery]) -> Vec<u32> {
    let value = |delivery: &Delivery| std::str::from_utf8(&delivery.value).unwrap().parse().unwrap();
    let mut values: Vec<u32> = deliveries.iter().map(value).collect();
    values.sort_unstable();
    values
}

async fn doubles(client: &Client) -> Vec<u32> {
    let mut reader = client.reader("doubles").until_end().open().await.unwrap();
    let mut found = Vec::new();
    while let Some(delivery) = reader.next().await {
        found.push(delivery.unwrap());
    }
    values(&found)
}

async fn lag_and_attached(client: &Client) -> (u64, u64) {
    let group = client.describe_group(GROUP).await.unwrap();
    let attached = group.state.places.iter().map(|place| place.attached).sum();
    (group.lag(None), attached)
}

/// A decision is durable when its commit returns; the group hears of it a moment later.
async fn comes_to(client: &Client, lag: u64, attached: u64) {
    while lag_and_attached(client).await != (lag, attached) {
        tokio::task::yield_now().await;
    }
}

fn code(error: &TransactionError) -> Option<Code> {
    if let TransactionError::Failed(why) = error {
        return code(why);
    }
    if let TransactionError::Refused(refusal) = error {
        return Some(refusal.code);
    }
    None
}

#[test]
fn a_commit_settles_what_is_attached_with_what_it_publishes_and_a_rollback_gives_it_back() {
    run(async {
        let rig = Rig::start().await;
        let client = rig.node.connect().await.unwrap();
        fill(&client, 6).await;
        let mut consumer = consumer(&client, Mode::Shared).await;
        let producer = session(&client).await;
        let batch = take(&mut consumer, 6).await;
        let (first, second) = batch.split_at(3);

        let mut kept = producer.transaction();
        kept.attach(&consumer.settler(), first).unwrap();
        kept.send("doubles", Record::new("0")).await.unwrap();
        kept.flush().await.unwrap();
        comes_to(&client, 6, 3).await;
        assert!(doubles(&client).await.is_empty());
        let open = client.describe_transaction(kept.id()).await.unwrap();
        let groups: Vec<_> = open.participants.iter().filter_map(|one| one.consumer_group.clone()).collect();
        assert_eq!(groups, [GROUP]);
        kept.commit().await.unwrap();
        comes_to(&client, 3, 0).await;
        assert_eq!(doubles(&client).await, [0]);

        let mut undone = producer.transaction();
        undone.send("doubles", Record::new("9")).await.unwrap();
        undone.attach(&consumer.settler(), second).unwrap();
        undone.flush().await.unwrap();
        undone.rollback().await.unwrap();
        let again = take(&mut consumer, 3).await;
        assert_eq!(values(&again), [3, 4, 5]);
        assert!(again.iter().all(|delivery| delivery.attempt == 2));
        assert_eq!(doubles(&client).await, [0]);
        let mut dropped = producer.transaction();
        dropped.attach(&consumer.settler(), &again).unwrap();
        drop(dropped);
        let again = take(&mut consumer, 3).await;
        let mut last = producer.transaction();
        last.attach(&consumer.settler(), &again).unwrap();
        last.commit().await.unwrap();
        comes_to(&client, 0, 0).await; // a transaction of nothing but consumption
        assert!(consumer.next_batch(1, NOTHING).await.unwrap().is_empty());
    });
}

#[test]
fn in_order_a_position_is_attached_and_what_is_rolled_back_comes_before_what_is_behind_it() {
    run(async {
        let rig = Rig::start().await;
        let client = rig.node.connect().await.unwrap();
        fill(&client, 10).await;
        let mut consumer = consumer(&client, Mode::Exclusive).await;
        let producer = session(&client).await;
        let batch = take(&mut consumer, 10).await;
        let mut kept = producer.transaction();
        kept.attach_up_to(&consumer.settler(), &batch[3]).unwrap();
        kept.commit().await.unwrap();
        comes_to(&client, 6, 0).await;

        let mut undone = producer.transaction();
        undone.attach_up_to(&consumer.settler(), &batch[6]).unwrap();
        undone.flush().await.unwrap();
        comes_to(&client, 6, 3).await;
        undone.rollback().await.unwrap();
        let again = take(&mut consumer, 6).await;
        let order: Vec<u64> = again.iter().map(|delivery| delivery.offset).collect();
        assert_eq!(order, [4, 5, 6, 7, 8, 9], "what was behind comes behind");
        let mut rest = producer.transaction();
        rest.attach_up_to(&consumer.settler(), &again[5]).unwrap();
        rest.commit().await.unwrap();
        comes_to(&client, 0, 0).await;
    });
}

#[test]
fn in_order_the_next_member_waits_for_what_the_one_before_left_undecided() {
    run(async {
        let rig = Rig::start().await;
        let (old, client) = (
            rig.node.connect().await.unwrap(),
            rig.node.connect().await.unwrap(),
        );
        fill(&client, 6).await;
        let mut killed = consumer(&old, Mode::Exclusive).await;
        let producer = session(&old).await;
        let batch = take(&mut killed, 6).await;
        let mut open = producer.transaction();
        open.attach_up_to(&killed.settler(), &batch[1]).unwrap();
        open.flush().await.unwrap();
        let id = open.id();
        std::mem::forget(open);
        drop((killed, producer, old));
        let mut next = consumer(&client, Mode::Exclusive).await;
        let early = next.next_batch(1, NOTHING).await.unwrap();
        assert!(early.is_empty(), "what is before it may still come again");
        client.decide_transaction(id, false).await.unwrap();
        let order: Vec<u64> = take(&mut next, 6).await.iter().map(|one| one.offset).collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 5]);
    });
}

#[test]
fn a_broker_killed_between_attachment_and_decision_still_holds_what_is_attached() {
    run(async {
        let rig = Rig::start_with(|config| config.checkpoint_ms = 50).await;
        let client = rig.node.connect().await.unwrap();
        fill(&client, 6).await;
        let mut first = consumer(&client, Mode::Shared).await;
        let producer = session(&client).await;
        let batch = take(&mut first, 6).await;
        let mut ids = Vec::new();
        for half in [&batch[..3], &batch[3..]] {
            let mut open = producer.transaction();
            open.attach(&first.settler(), half).unwrap();
            let record = Record::new(values(half)[0].to_string());
            open.send("doubles", record).await.unwrap();
            open.flush().await.unwrap();
            ids.push(open.id());
            std::mem::forget(open);
        }
        drop((first, producer, client));
        let rig = rig
            .kill_and_restart(|dir| std::fs::remove_dir_all(dir.join("views")).unwrap())
            .await;
        let client = rig.node.connect().await.unwrap();
        let mut second = consumer(&client, Mode::Shared).await;
        comes_to(&client, 6, 6).await;
        assert!(second.next_batch(1, NOTHING).await.unwrap().is_empty());
        client.decide_transaction(ids[0], true).await.unwrap();
        client.decide_transaction(ids[1], false).await.unwrap();
        drop((second, client));
        let rig = rig.kill_and_restart(|_| {}).await;
        let client = rig.node.connect().await.unwrap();
        let mut third = consumer(&client, Mode::Shared).await;
        assert_eq!(values(&take(&mut third, 3).await), [3, 4, 5]);
        assert_eq!(doubles(&client).await, [0], "all or nothing, with what was consumed");
    });
}

#[test]
fn what_a_killed_worker_had_attached_comes_to_the_next_one() {
    run(async {
        let rig = Rig::start().await;
        let (old, client) = (
            rig.node.connect().await.unwrap(),
            rig.node.connect().await.unwrap(),
        );
        fill(&client, 4).await;
        let mut killed = consumer(&old, Mode::Shared).await;
        let producer = session(&old).await;
        let batch = take(&mut killed, 4).await;
        let mut open = producer.transaction();
        open.attach(&killed.settler(), &batch).unwrap();
        open.send("doubles", Record::new("8")).await.unwrap();
        open.flush().await.unwrap();
        std::mem::forget(open);
        drop((killed, producer, old));
        // The next one opens a session of the same transactional id: what its predecessor left is rolled back.
        let mut next = consumer(&client, Mode::Shared).await;
        let producer = session(&client).await;
        let again = take(&mut next, 4).await;
        let mut transaction = producer.transaction();
        transaction.attach(&next.settler(), &again).unwrap();
        transaction.send("doubles", Record::new("7")).await.unwrap();
        transaction.commit().await.unwrap();
        assert_eq!(doubles(&client).await, [7]);
        comes_to(&client, 0, 0).await;
    });
}

#[test]
fn what_cannot_be_attached_is_refused_by_its_own_code_and_nothing_of_it_happens() {
    run(async {
        let rig = Rig::start().await;
        let client = rig.node.connect().await.unwrap();
        fill(&client, 4).await;
        let lease = Duration::from_millis(100);
        let builder = client.consumer(GROUP).topic("numbers").lease(lease);
        let mut expiring = builder.open().await.unwrap();
        let producer = session(&client).await;
        let commit = async |transaction: waterwheel::client::Transaction| {
            code(&transaction.commit().await.unwrap_err())
        };
        // An expired lease.
        let batch = take(&mut expiring, 4).await;
        let again = take(&mut expiring, 4).await;
        assert_eq!(values(&again), values(&batch));
        let mut transaction = producer.transaction();
        transaction.attach(&expiring.settler(), &batch).unwrap();
        assert_eq!(commit(transaction).await, Some(Code::UnknownLease));
        drop((expiring, batch, again));
        let longer = waterwheel::client::AlterSubscription {
            group: GROUP.into(),
            topic: "numbers".into(),
            lease_ms: Some(60_000),
            ..Default::default()
        };
        client.alter_subscription(&longer).await.unwrap();
        let mut holder = consumer(&client, Mode::Shared).await;
        let batch = take(&mut holder, 4).await;
        // One record of it is another transaction's: nothing of the second is attached.
        let mut first = producer.transaction();
        first.attach(&holder.settler(), &batch[..1]).unwrap();
        first.flush().await.unwrap();
        let mut second = producer.transaction();
        second.attach(&holder.settler(), &batch).unwrap();
        assert_eq!(commit(second).await, Some(Code::UnknownLease));
        comes_to(&client, 4, 1).await;
        // A transaction that is decided already.
        client.decide_transaction(first.id(), false).await.unwrap();
        first.attach(&holder.settler(), &batch[1..2]).unwrap();
        assert_eq!(commit(first).await, Some(Code::TransactionDecided));
        // Nothing to attach.
        let mut reader = client.reader("numbers").open().await.unwrap();
        let read = reader.next().await.unwrap().unwrap();
        let mut transaction = producer.transaction();
        let refused = transaction.attach(&holder.settler(), [&read]).unwrap_err();
        assert_eq!(refused.code(), "not-leased");
        let before = client.consumer("others").topic("numbers").ack(AckMode::None);
        let mut before = before.open().await.unwrap();
        let settled = take(&mut before, 1).await;
        let refused = transaction.attach(&before.settler(), &settled).unwrap_err();
        assert_eq!(refused.code(), "not-leased");
        drop(transaction);
        // A group the consumer is no member of any more.
        let settler = holder.settler();
        holder.close().await;
        let mut transaction = producer.transaction();
        transaction.attach(&settler, &batch[1..]).unwrap();
        assert_eq!(commit(transaction).await, Some(Code::UnknownLease));
        let fenced = session(&client).await;
        let mut holder = consumer(&client, Mode::Shared).await;
        let batch = take(&mut holder, 4).await;
        let mut late = producer.transaction();
        late.attach(&holder.settler(), &batch).unwrap();
        assert_eq!(commit(late).await, Some(Code::ProducerFenced));
        let mut good = fenced.transaction();
        good.attach(&holder.settler(), &batch).unwrap();
        good.commit().await.unwrap();
        comes_to(&client, 0, 0).await;
    });
}

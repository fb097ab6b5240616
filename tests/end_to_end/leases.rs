//! How long a record is its member's: renewed while it waits for an application that goes on, and given back
//! where a rollback puts something before it. And what is left to consume, whoever looks for it or nobody.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::time::Duration;

use waterwheel::client::{Client, Mode, Record, SettleError, TopicConfig};

use crate::disk::FaultyDisk;
use crate::rig::{Node, Rig, config, run};

const WAIT: Duration = Duration::from_secs(20);
const LEASE: Duration = Duration::from_millis(600);

async fn fill(client: &Client, records: u32) {
    client.create_topic("numbers", TopicConfig::new(1)).await.unwrap();
    client.create_topic("doubles", TopicConfig::new(1)).await.unwrap();
    let producer = client.producer("numbers").open().await.unwrap();
    for n in 0..records {
        producer.send(Record::new(n.to_string())).await.unwrap();
    }
}

#[test]
fn a_record_that_waits_for_a_consumer_that_goes_on_stays_its_own() {
    run(async {
        let rig = Rig::start().await;
        let client = rig.node.connect().await.unwrap();
        fill(&client, 12).await;
        for mode in [Mode::Exclusive, Mode::Shared] {
            let group = client.consumer(mode.name()).topic("numbers");
            let mut consumer = group.mode(mode).lease(LEASE).open().await.unwrap();
            // All are sent ahead; the last is worked on when three times the lease has passed.
            for n in 0..12 {
                let delivery = consumer.next().await.unwrap().unwrap();
                assert_eq!((delivery.offset, delivery.attempt), (n, 1), "{mode:?}");
                // The work takes its time, which is what this is about.
                tokio::time::sleep(LEASE / 4).await;
                consumer.ack(&delivery).await.unwrap();
            }
            consumer.close().await;
        }
    });
}

#[test]
fn a_record_that_waits_for_a_consumer_that_has_stopped_comes_to_another() {
    run(async {
        let rig = Rig::start().await;
        let client = rig.node.connect().await.unwrap();
        fill(&client, 3).await;
        let open = async || {
            let builder = client.consumer("stopped").topic("numbers");
            builder.lease(LEASE).open().await.unwrap()
        };
        let mut stopped = open().await;
        let taken = stopped.next().await.unwrap().unwrap();
        assert!(stopped.ack(&taken).await.is_ok());
        let mut other = open().await;
        // Either is offered them in turn as they come again; only one takes them.
        let mut offsets = BTreeSet::new();
        while offsets.len() < 2 {
            let delivery = tokio::time::timeout(WAIT, other.next()).await;
            let delivery = delivery.expect("they stay with who has stopped");
            let delivery = delivery.unwrap().unwrap();
            if other.ack(&delivery).await.is_ok() {
                offsets.insert(delivery.offset);
            }
        }
        assert_eq!(offsets, BTreeSet::from([1, 2]));
    });
}

#[test]
fn what_nobody_was_given_of_a_partition_that_moves_goes_with_it_at_once() {
    run(async {
        // What moves within this test was given back.
        let rig = Rig::start_with(|config| config.group_drain_ms = 600_000).await;
        let client = rig.node.connect().await.unwrap();
        client.create_topic("numbers", TopicConfig::new(2)).await.unwrap();
        let producer = client.producer("numbers").open().await.unwrap();
        // Ten to each, each by itself.
        for n in 0..20 {
            producer.send(Record::new(n.to_string())).await.unwrap();
        }
        let open = async || {
            let builder = client.consumer("moving").topic("numbers");
            builder.mode(Mode::Exclusive).open().await.unwrap()
        };
        let mut first = open().await;
        let taken = first.next().await.unwrap().unwrap();
        let mut second = open().await;
        first.ack(&taken).await.unwrap();
        // The first takes nothing meanwhile: it is not asked for what it was sent.
        let mut offsets = Vec::new();
        let mut moved = None;
        while offsets.last() != Some(&9) {
            let delivery = tokio::time::timeout(WAIT, second.next()).await;
            let delivery = delivery.expect("it stays with who does not take it");
            let delivery = delivery.unwrap().unwrap();
            assert_eq!(delivery.attempt, 1, "nobody had seen it");
            assert_eq!(*moved.get_or_insert(delivery.partition), delivery.partition);
            offsets.push(delivery.offset);
            second.ack(&delivery).await.unwrap();
        }
        let from = u64::from(moved == Some(taken.partition));
        assert!(offsets.into_iter().eq(from..10));
        // And the other is the first's still, from where it was.
        let from = 1 - from;
        for offset in from..10 {
            let delivery = first.next().await.unwrap().unwrap();
            assert_eq!((delivery.offset, delivery.attempt), (offset, 1));
            first.ack(&delivery).await.unwrap();
        }
    });
}

#[test]
fn the_rest_of_what_was_begun_moves_when_its_consumer_comes_for_more() {
    run(async {
        let rig = Rig::start_with(|config| config.group_drain_ms = 600_000).await;
        let client = rig.node.connect().await.unwrap();
        client.create_topic("numbers", TopicConfig::new(2)).await.unwrap();
        let producer = client.producer("numbers").open().await.unwrap();
        // A batch of ten to each.
        let mut pending = Vec::new();
        for n in 0..20 {
            let record = Record::new(n.to_string());
            pending.push(producer.enqueue_to(n % 2, record).await.unwrap());
        }
        for receipt in pending {
            receipt.await.unwrap();
        }
        let open = async || {
            let builder = client.consumer("moving").topic("numbers");
            builder.mode(Mode::Exclusive).open().await.unwrap()
        };
        let mut first = open().await;
        // Of two partitions the second will move: it is in the middle of that.
        let mut given = 0;
        while given == 0 {
            let delivery = first.next().await.unwrap().unwrap();
            first.ack(&delivery).await.unwrap();
            given += u64::from(delivery.partition);
        }
        let mut second = open().await;
        let came = loop {
            tokio::select! {
                biased;
                came = second.next() => break came.unwrap().unwrap(),
                // Before it hears that it is to let go it may be given more.
                delivery = first.next() => {
                    let delivery = delivery.unwrap().unwrap();
                    first.ack(&delivery).await.unwrap();
                    given += u64::from(delivery.partition);
                    assert!(given < 10, "all of it stayed");
                }
            }
        };
        assert_eq!((came.partition, came.offset, came.attempt), (1, given, 1));
    });
}

#[test]
fn in_order_what_is_rolled_back_comes_before_what_was_sent_with_it() {
    run(async {
        let rig = Rig::start().await;
        let client = rig.node.connect().await.unwrap();
        fill(&client, 6).await;
        let builder = client.consumer("ordered").topic("numbers");
        let mut consumer = builder.mode(Mode::Exclusive).open().await.unwrap();
        let producer = client.transactional_producer("doubler").open().await.unwrap();
        let first = consumer.next().await.unwrap().unwrap();
        assert_eq!(first.offset, 0);
        let mut transaction = producer.transaction();
        transaction.attach(&consumer.settler(), [&first]).unwrap();
        transaction.send("doubles", Record::new("0")).await.unwrap();
        transaction.flush().await.unwrap();
        transaction.rollback().await.unwrap();
        // Whatever was in the consumer's hand behind it is void once it hears of that, and comes again.
        let mut offsets = Vec::new();
        let mut settled = Vec::new();
        while settled.len() < 6 {
            let delivery = consumer.next().await.unwrap().unwrap();
            offsets.push(delivery.offset);
            if consumer.ack(&delivery).await.is_ok() {
                settled.push(delivery.offset);
            }
        }
        assert_eq!(settled, [0, 1, 2, 3, 4, 5], "of {offsets:?}");
    });
}

#[test]
fn a_group_is_not_behind_by_what_it_does_not_want() {
    run(async {
        let rig = Rig::start().await;
        let client = rig.node.connect().await.unwrap();
        fill(&client, 5).await;
        let builder = client.consumer("picky").topic("numbers").filter("red");
        let _consumer = builder.open().await.unwrap();
        let picky = async || client.describe_group("picky").await.unwrap();
        while picky().await.lag(None) != 0 {
            tokio::task::yield_now().await;
        }
        let producer = client.producer("numbers").open().await.unwrap();
        producer.send(Record::new("wanted").tag("red")).await.unwrap();
        producer.send(Record::new("not wanted")).await.unwrap();
        // What is wanted is still to be consumed, and what is not wanted behind it no more.
        while picky().await.state.places.iter().all(|place| place.settled_above != 1) {
            tokio::task::yield_now().await;
        }
        let place = picky().await.state.places.remove(0);
        assert_eq!((place.floor.0, picky().await.lag(None)), (5, 1));
    });
}

#[test]
fn a_group_without_members_is_behind_by_what_nobody_has_looked_for() {
    run(async {
        let rig = Rig::start().await;
        let client = rig.node.connect().await.unwrap();
        fill(&client, 3).await;
        let builder = client.consumer("away").topic("numbers");
        let mut consumer = builder.open().await.unwrap();
        for _ in 0..3 {
            let delivery = consumer.next().await.unwrap().unwrap();
            consumer.ack(&delivery).await.unwrap();
        }
        consumer.close().await;
        let lag = async |client: &Client| client.describe_group("away").await.unwrap().lag(None);
        assert_eq!(lag(&client).await, 0);
        let producer = client.producer("numbers").open().await.unwrap();
        producer.send(Record::new("4")).await.unwrap();
        assert_eq!(lag(&client).await, 1, "nobody has looked for it");
        drop((producer, client));
        let rig = rig.kill_and_restart(|_| {}).await;
        let client = rig.node.connect().await.unwrap();
        assert_eq!(lag(&client).await, 1, "nobody has looked since the start");
    });
}

#[test]
fn what_a_failing_device_does_not_give_comes_when_it_does_and_is_not_counted_as_tried() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        // Whatever is delivered is read.
        config.tail_cache_bytes = 1;
        let (disk, faults) = FaultyDisk::of(dir.path());
        let node = Node::try_start(config, Some(disk)).await.unwrap();
        let client = node.connect().await.unwrap();
        fill(&client, 4).await;
        for mode in [Mode::Shared, Mode::Exclusive] {
            faults.reads_fail.store(true, Ordering::SeqCst);
            let builder = client.consumer(mode.name()).topic("numbers");
            let mut consumer = builder.mode(mode).open().await.unwrap();
            let places = async || client.describe_group(mode.name()).await.unwrap().state.places;
            // Until it has tried: what it could not read waits, or is gone for good.
            while places().await.iter().all(|place| place.retrying + place.expired == 0) {
                tokio::task::yield_now().await;
            }
            faults.reads_fail.store(false, Ordering::SeqCst);
            let mut offsets = Vec::new();
            for _ in 0..4 {
                let delivery = tokio::time::timeout(WAIT, consumer.next()).await;
                let delivery = delivery.expect("it was given up").unwrap().unwrap();
                assert_eq!(delivery.attempt, 1, "{mode:?}");
                offsets.push(delivery.offset);
                consumer.ack(&delivery).await.unwrap();
            }
            if mode == Mode::Shared {
                offsets.sort_unstable();
            }
            assert_eq!(offsets, [0, 1, 2, 3], "{mode:?}");
            assert_eq!(places().await.iter().map(|place| place.expired).sum::<u64>(), 0);
            consumer.close().await;
        }
        node.stop().await;
    });
}

#[test]
fn what_moved_on_with_its_partition_is_told_lost_to_who_settles_it_late_and_nobody_ends_by_that() {
    run(async {
        let rig = Rig::start_with(|config| config.group_drain_ms = 20).await;
        let client = rig.node.connect().await.unwrap();
        client.create_topic("numbers", TopicConfig::new(2)).await.unwrap();
        let producer = client.producer("numbers").open().await.unwrap();
        for n in 0..40 {
            producer.send_to(n % 2, Record::new(n.to_string())).await.unwrap();
        }
        let open = async || {
            let builder = client.consumer("moving").topic("numbers");
            builder.mode(Mode::Exclusive).open().await.unwrap()
        };
        let mut first = open().await;
        let mut in_hand = HashMap::new();
        while in_hand.len() < 2 {
            let delivery = first.next().await.unwrap().unwrap();
            in_hand.entry(delivery.partition).or_insert(delivery);
        }
        // One of the two moves, with all that the first was sent of it and does not settle in time.
        let mut second = open().await;
        let moved = second.next().await.unwrap().unwrap();
        let late = in_hand.remove(&moved.partition).unwrap();
        assert_eq!((moved.offset, late.offset), (0, 0));
        for settled in [first.ack_cumulative(&late), first.ack(&late), first.nack(&late, "late")] {
            assert_eq!(settled.await, Err(SettleError::Lost));
        }
        for stayed in in_hand.values() {
            first.ack(stayed).await.unwrap();
        }
        second.close().await;
        let again = loop {
            let delivery = first.next().await.unwrap().unwrap();
            if delivery.partition == moved.partition {
                break delivery;
            }
        };
        assert_eq!(again.offset, 0, "what came of it before was passed over");
        first.ack_cumulative(&again).await.unwrap();
    });
}

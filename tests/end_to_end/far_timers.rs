//! Timers whose payloads are on the disk when their time comes: read ahead, record by record.

use std::collections::BTreeSet;
use std::time::Duration;

use waterwheel::client::{Ack, Client, Delivery, Record, TopicConfig, WallMs};

use crate::rig::{Rig, run};

const TOPIC: &str = "far";
const RECORDS: u32 = 200;
const VALUE_BYTES: usize = 1_500;
/// Longer than the finest level of the wheel spans: what is due then comes near once more.
const LEAD_MS: i64 = 6_000;

/// Two large payloads, due in another order than they were written in.
async fn arm(client: &Client) {
    client.create_topic(TOPIC, TopicConfig::new(1)).await.unwrap();
    let producer = client
        .producer(TOPIC)
        .ack(Ack::Durable)
        .batch_bytes(200 << 10)
        .linger(Duration::from_millis(20))
        .open()
        .await
        .unwrap();
    let from = WallMs::from(std::time::SystemTime::now()).0 + LEAD_MS;
    let records = (0..RECORDS).map(|number| {
        let mut value = vec![7; VALUE_BYTES];
        value[..4].copy_from_slice(&number.to_le_bytes());
        let due = from + i64::from(number * 37 % RECORDS) * 5;
        Record::new(value).deliver_at(WallMs(due))
    });
    let run = producer.enqueue_run(0, records).await.unwrap();
    run.wait().await.unwrap();
}

fn number(delivery: &Delivery) -> u32 {
    assert_eq!(delivery.value.len(), VALUE_BYTES);
    assert!(delivery.fired_ms >= delivery.due_ms, "never early");
    u32::from_le_bytes(*delivery.value.first_chunk().unwrap())
}

#[test]
fn what_fires_long_after_it_was_written_is_read_before_its_time_one_read_each() {
    run(async {
        let rig = Rig::start().await;
        arm(&rig.node.connect().await.unwrap()).await;
        // Nothing of it is in memory any more.
        let rig = rig.kill_and_restart(|_| ()).await;
        let client = rig.node.connect().await.unwrap();
        let before = client.status(false).await.unwrap().broker.reads;
        let mut reader = client.reader(TOPIC).partition(0).open().await.unwrap();
        let mut seen = BTreeSet::new();
        while seen.len() < RECORDS as usize {
            let delivery = reader.next().await.unwrap().unwrap();
            assert!(seen.insert(number(&delivery)), "each comes once");
        }
        let status = client.status(false).await.unwrap().broker;
        let (hits, misses) = (status.read_ahead_hits, status.read_ahead_misses);
        assert!(hits >= u64::from(RECORDS) * 9 / 10, "{hits} hits, {misses} misses");
        assert!(status.read_ahead_bytes > 0);
        let reads = status.reads - before;
        assert!(reads * 10 <= u64::from(RECORDS) * 13, "{reads} reads");
        rig.node.stop().await;
    });
}

#[test]
fn without_room_to_read_ahead_each_is_read_when_it_fired_for_a_group_too() {
    run(async {
        let rig = Rig::start_with(|config| config.read_ahead_bytes = 1).await;
        arm(&rig.node.connect().await.unwrap()).await;
        // There is no room to read anything ahead: each is read when it fired.
        let rig = rig.kill_and_restart(|_| ()).await;
        let client = rig.node.connect().await.unwrap();
        let mut consumer = client.consumer("g").topic(TOPIC).open().await.unwrap();
        let mut seen = BTreeSet::new();
        while seen.len() < RECORDS as usize {
            let delivery = consumer.next().await.unwrap().unwrap();
            assert!(seen.insert(number(&delivery)), "each comes once");
            consumer.ack(&delivery).await.unwrap();
        }
        let status = client.status(false).await.unwrap().broker;
        assert_eq!(status.read_ahead_hits, 0);
        assert!(status.read_ahead_misses >= u64::from(RECORDS));
        rig.node.stop().await;
    });
}

#[test]
fn homes_that_rotted_are_skipped_and_what_waits_comes_all_the_same() {
    rotten_rows(|kind| kind != 0);
}

#[test]
fn heads_of_levels_that_rotted_take_their_homes_along_and_what_waits_comes_all_the_same() {
    rotten_rows(|kind| kind == 0);
}

/// Behind the owner comes the kind of a row; a head's is 0.
fn rotten_rows(rots: fn(u8) -> bool) {
    run(async {
        let rig = Rig::start().await;
        let client = rig.node.connect().await.unwrap();
        arm(&client).await;
        // A stop writes rows and homes; then each such row loses a bit.
        let rig = rig
            .restart_after(|data| {
                let views = sled::open(data.join("views")).unwrap();
                let wheel = views.open_tree("wheel").unwrap();
                let mut rotten = 0;
                for row in wheel.iter() {
                    let (key, value) = row.unwrap();
                    if rots(key[8]) {
                        let mut value = value.to_vec();
                        *value.last_mut().unwrap() ^= 1;
                        wheel.insert(key, value).unwrap();
                        rotten += 1;
                    }
                }
                assert!(rotten > 0, "there are rows");
                views.flush().unwrap();
            })
            .await;
        let client = rig.node.connect().await.unwrap();
        let mut reader = client.reader(TOPIC).partition(0).open().await.unwrap();
        let mut seen = BTreeSet::new();
        while seen.len() < RECORDS as usize {
            let delivery = reader.next().await.unwrap().unwrap();
            assert!(seen.insert(number(&delivery)), "each comes once");
        }
        rig.node.stop().await;
    });
}

//! Retention: what goes, goes with whole segments, and takes no number and no producer's memory with it.

use std::path::Path;
use std::time::Duration;

use waterwheel::config::Config;
use waterwheel::domain::id::Offset;
use waterwheel::wire::code::Code;
use waterwheel::wire::produce::Ack;
use waterwheel::wire::topic::{AlterTopic, At, DeleteTopic, TopicConfig, TopicInfo, TopicOk};

use crate::client::{Client, Producer, batch, to};
use crate::rig::{Rig, run};

/// The value of a record: about a sixteenth of a segment.
const VALUE_BYTES: usize = 60_000;
/// Segments of 1 MiB the directory may hold while one topic keeps 1 MB and another is idle: the one of the
/// idle topic, what is kept, what is written, what waits for its checkpoint, and the spares.
const SEGMENTS_MAX: usize = 16;

/// Small segments, looked at often.
fn small(config: &mut Config) {
    config.batch_bytes_max = 64 << 10;
    config.flush_bytes_max = 256 << 10;
    config.segment_bytes = 1 << 20;
    config.retention_check_ms = 10;
    config.checkpoint_ms = 10;
}

fn keeps(ms: Option<u64>, bytes: Option<u64>) -> TopicConfig {
    TopicConfig {
        retention_ms: ms,
        retention_bytes: bytes,
        ..TopicConfig::new(1)
    }
}

fn value() -> [Vec<u8>; 1] {
    [vec![b'v'; VALUE_BYTES]]
}

/// Asks until the partition's start is as wanted: retention is looked at by the clock.
async fn start_of(
    client: &mut Client,
    topic: &TopicInfo,
    is_wanted: impl Fn(Offset) -> bool,
) -> (Offset, Offset) {
    loop {
        let bounds = client.lookup(topic.id, 0, At::Latest).await.unwrap();
        if is_wanted(bounds.start_offset) {
            return (bounds.start_offset, bounds.high_watermark);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn segments(data: &Path) -> usize {
    std::fs::read_dir(data.join("log")).unwrap().count()
}

async fn fill(producer: &mut Producer, topic: &TopicInfo, batches: usize) {
    for _ in 0..batches {
        producer.store(topic, 0, &value()).await;
    }
}

#[test]
fn by_size_the_oldest_go_and_at_least_so_much_stays() {
    run(async {
        let rig = Rig::start_with(small).await;
        let mut client = rig.client().await;
        let kept_bytes = 500_000;
        let topic = client
            .create_with("orders", keeps(None, Some(kept_bytes)))
            .await
            .unwrap();
        let all = client.create("all", 1).await;
        let mut producer = client.producer().await;
        fill(&mut producer, &topic, 40).await;
        fill(&mut producer, &all, 5).await;
        // Nine of them are more than that, eight are less.
        let (start, end) = start_of(&mut client, &topic, |start| start.0 >= 31).await;
        assert_eq!(start, Offset(31));
        assert_eq!(end, Offset(40));
        assert_eq!(
            client.read_all(topic.id, 0).await.len() as u64,
            40 - start.0
        );
        let refused = client
            .read_from(topic.id, 0, At::Offset(Offset(0)))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::OffsetOutOfRange);
        assert_eq!(refused.detail["start_offset"], start.to_string());
        assert_eq!(
            client.read_all(all.id, 0).await.len(),
            5,
            "another topic's are its own business"
        );
    });
}

#[test]
fn by_age_everything_goes_and_offsets_go_on() {
    run(async {
        let rig = Rig::start_with(small).await;
        let mut client = rig.client().await;
        let topic = client
            .create_with("orders", keeps(Some(1), None))
            .await
            .unwrap();
        let young = client
            .create_with("young", keeps(Some(3_600_000), None))
            .await
            .unwrap();
        let mut producer = client.producer().await;
        fill(&mut producer, &topic, 20).await;
        fill(&mut producer, &young, 3).await;
        let (start, end) = start_of(&mut client, &topic, |start| start == Offset(20)).await;
        assert_eq!((start, end), (Offset(20), Offset(20)));
        assert!(client.read_all(topic.id, 0).await.is_empty());
        // Kept for ever from now on: the next ones stay.
        let change = AlterTopic {
            name: "orders".to_owned(),
            retention_ms: Some(None),
            ..AlterTopic::default()
        };
        client.ask::<_, TopicOk>(&change).await.unwrap();
        assert_eq!(producer.store(&topic, 0, &["next"]).await, Offset(20));
        assert_eq!(client.read_all(topic.id, 0).await, ["next"]);
        assert_eq!(client.read_all(young.id, 0).await.len(), 3);
    });
}

#[test]
fn a_reader_overtaken_by_retention_is_told_where_to_go_on() {
    run(async {
        let rig = Rig::start_with(small).await;
        let mut client = rig.client().await;
        let topic = client
            .create_with("orders", keeps(None, Some(200_000)))
            .await
            .unwrap();
        let mut producer = client.producer().await;
        fill(&mut producer, &topic, 3).await;
        // Credit for one batch only: then it stands while the log moves on.
        let open = crate::client::push(topic.id, 0, At::Earliest, 1);
        let (_, mut reader) = client.open_reader(&open).await.unwrap();
        reader.batch().await;
        fill(&mut producer, &topic, 60).await;
        let (start, _) = start_of(&mut client, &topic, |start| start.0 > 50).await;
        let credit = waterwheel::wire::reader::Credit {
            reader: reader.id,
            bytes: 1 << 20,
        };
        client.control.event(&credit).await;
        let (_, end) = reader.read_to_end().await;
        let waterwheel::wire::reader::EndReason::Refused(refused) = end.reason else {
            panic!("its place is gone: {end:?}");
        };
        assert_eq!(refused.code(), Code::OffsetOutOfRange);
        assert!(refused.detail["start_offset"].parse::<u64>().unwrap() >= start.0);
    });
}

#[test]
fn a_hundred_segments_of_traffic_beside_an_idle_topic_leave_the_directory_small() {
    run(async {
        let rig = Rig::start_with(small).await;
        let mut client = rig.client().await;
        let idle = client.create("idle", 1).await;
        let topic = client
            .create_with("busy", keeps(None, Some(1_000_000)))
            .await
            .unwrap();
        let mut producer = client.producer().await;
        producer.store(&idle, 0, &["kept"]).await;
        let mut most = 0;
        for round in 1..=100_u64 {
            let mut sent = Vec::new();
            for _ in 0..17 {
                sent.push(producer.offer(&topic, 0, &value(), Ack::Durable).await);
            }
            for correlation in sent {
                producer.stream.stored(correlation).await.unwrap();
            }
            // A sender faster than retention is looked at would be measured, not retention.
            start_of(&mut client, &topic, |start| start.0 + 60 > round * 17).await;
            most = most.max(segments(rig.dir.path()));
        }
        // What is on its way out leaves without more traffic.
        while segments(rig.dir.path()) > SEGMENTS_MAX / 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(most <= SEGMENTS_MAX, "{most} segment files");
        assert_eq!(client.read_all(idle.id, 0).await, ["kept"]);
        drop(client);
        let rig = rig.kill_and_restart(|_| {}).await;
        let mut client = rig.client().await;
        assert_eq!(client.read_all(idle.id, 0).await, ["kept"]);
        let (start, end) = start_of(&mut client, &topic, |_| true).await;
        assert_eq!(end, Offset(1700));
        assert!(start.0 > 1600);
    });
}

#[test]
fn expired_recycled_and_rebuilt_a_partition_still_knows_its_numbers_and_producers() {
    run(async {
        let rig = Rig::start_with(small).await;
        let mut client = rig.client().await;
        let quiet = client
            .create_with("quiet", keeps(Some(1), None))
            .await
            .unwrap();
        let busy = client
            .create_with("busy", keeps(Some(1), None))
            .await
            .unwrap();
        let mut producer = client.producer().await;
        for sequence in 0..5 {
            producer.store(&quiet, 0, &[format!("{sequence}")]).await;
        }
        let first = rig_first_segment(rig.dir.path());
        // Traffic elsewhere until the segment that held all of it is used again or gone.
        while first.same(rig.dir.path()) {
            fill(&mut producer, &busy, 17).await;
        }
        start_of(&mut client, &quiet, |start| start == Offset(5)).await;
        let before = describe(&mut client).await;
        drop(client);
        let rig = rig
            .kill_and_restart(|data| std::fs::remove_dir_all(data.join("views")).unwrap())
            .await;
        let mut client = rig.client().await;
        let after = describe(&mut client).await;
        assert_eq!(before[0], after[0]);
        assert_eq!(
            before[1].1, after[1].1,
            "the end is the same; retention may have gone on"
        );
        let mut stream = client.stream().await;
        let header = to(quiet.id, 0, Ack::Durable);
        for sequence in 0..5 {
            let again = batch(producer.stamp(sequence), &[format!("{sequence}")]);
            let stored = stream.produce(header, again).await.unwrap();
            assert_eq!(
                (stored.first_offset, stored.duplicate),
                (Some(Offset(sequence)), true)
            );
        }
        let next = batch(producer.stamp(5), &["5"]);
        let stored = stream.produce(header, next).await.unwrap();
        assert_eq!(
            (stored.first_offset, stored.duplicate),
            (Some(Offset(5)), false)
        );
    });
}

async fn describe(client: &mut Client) -> Vec<(Offset, Offset)> {
    let mut bounds = Vec::new();
    for name in ["quiet", "busy"] {
        let (_, partitions) = client.describe(name).await.unwrap();
        bounds.push((partitions[0].start_offset, partitions[0].high_watermark));
    }
    bounds
}

/// The file that holds the beginning of the log, as it is now.
struct FirstSegment {
    name: std::ffi::OsString,
    head: Vec<u8>,
}

impl FirstSegment {
    fn same(&self, data: &Path) -> bool {
        head(&data.join("log").join(&self.name)).is_some_and(|head| head == self.head)
    }
}

fn head(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 4096];
    let file = std::fs::File::open(path).ok()?;
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).ok()?;
    Some(bytes)
}

fn rig_first_segment(data: &Path) -> FirstSegment {
    let names = std::fs::read_dir(data.join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    // The one with entries in it: spares hold nothing but their header.
    let written = names.filter(|name| {
        let bytes = std::fs::read(data.join("log").join(name)).unwrap();
        bytes[8192..].iter().any(|byte| *byte != 0)
    });
    let names: Vec<_> = written.collect();
    assert_eq!(names.len(), 1, "little has been written yet");
    let name = names.into_iter().next().unwrap();
    let head = head(&data.join("log").join(&name)).unwrap();
    FirstSegment { name, head }
}

#[test]
fn a_deleted_topic_gives_its_segments_back() {
    run(async {
        let rig = Rig::start_with(small).await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let mut producer = client.producer().await;
        fill(&mut producer, &topic, 120).await;
        let before = segments(rig.dir.path());
        assert!(before > 6, "{before} segments of seven megabytes");
        let question = DeleteTopic {
            name: "orders".to_owned(),
        };
        client.ask::<_, TopicOk>(&question).await.unwrap();
        while segments(rig.dir.path()) > 5 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(client);
        rig.kill_and_restart(|_| {})
            .await
            .node
            .assert_serves()
            .await;
    });
}

#[test]
fn an_unused_producer_is_forgotten_where_everything_is_kept_too() {
    run(async {
        let rig = Rig::start_with(|config| {
            small(config);
            config.producers_per_partition_max = 1;
            config.producer_state_ms = 1000;
        })
        .await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        client.producer().await.store(&topic, 0, &["a"]).await;
        let mut other = client.producer().await;
        loop {
            let record = batch(other.stamp(0), &["b"]);
            let header = to(topic.id, 0, Ack::Durable);
            match other.stream.produce(header, record).await {
                Ok(stored) => break assert_eq!(stored.first_offset, Some(Offset(1))),
                Err(refused) => assert_eq!(refused.code(), Code::TooManyProducers),
            }
        }
    });
}

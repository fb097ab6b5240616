//! Reading: from any place, by credit, waiting without a timer, and byte for byte what was sent.

use std::collections::BTreeMap;

use bytes::Bytes;
use waterwheel::domain::batch::{BatchStamp, Compression};
use waterwheel::domain::id::Offset;
use waterwheel::domain::time::WallMs;
use waterwheel::wire::produce::Ack;
use waterwheel::wire::reader::{CloseReader, Credit, EndReason, OpenReader};
use waterwheel::wire::topic::{At, TopicInfo};

use crate::client::{Client, Event, batch, batch_with, pull, push, to, values};
use crate::rig::{Rig, run};

/// A topic of one partition with these values, a batch each.
async fn topic_with(client: &mut Client, values: &[&str]) -> TopicInfo {
    let topic = client.create("orders", 1).await;
    let mut producer = client.producer().await;
    for value in values {
        producer.store(&topic, 0, &[value]).await;
    }
    topic
}

#[test]
fn reading_starts_at_the_ends_an_offset_or_a_time() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let mut stream = client.stream().await;
        let header = to(topic.id, 0, Ack::Durable);
        let mut appended = Vec::new();
        for value in 0..6 {
            let pair = [format!("{value}a"), format!("{value}b")];
            let stored = stream
                .produce(header, batch(BatchStamp::default(), &pair))
                .await
                .unwrap();
            appended.push(stored.appended);
            // Times must differ for a lookup by time to tell them apart.
            while WallMs(wall_ms()) <= stored.appended {
                tokio::task::yield_now().await;
            }
        }
        let found = |at| lookup_of(at, topic.id);
        let mut offset_of = BTreeMap::new();
        for (name, at) in [
            ("earliest", At::Earliest),
            ("latest", At::Latest),
            ("in the middle of a batch", At::Offset(Offset(5))),
            ("the end", At::Offset(Offset(12))),
            ("a batch's time", At::Time(appended[3])),
            ("just behind it", At::Time(WallMs(appended[3].0 + 1))),
            ("before all", At::Time(WallMs(0))),
            ("after all", At::Time(WallMs(i64::MAX))),
        ] {
            let (ok, mut reader) = client.open_reader(&found(at)).await.unwrap();
            let lookup = client.lookup(topic.id, 0, at).await.unwrap();
            assert_eq!(ok.first_offset, lookup.offset, "{name}");
            assert_eq!(
                (ok.start_offset, ok.high_watermark),
                (Offset(0), Offset(12))
            );
            let (batches, end) = reader.read_to_end().await;
            let read: Vec<_> = batches
                .iter()
                .flat_map(|(deliver, batch)| values(deliver, batch))
                .collect();
            let all: Vec<_> = (0..6)
                .flat_map(|value| [format!("{value}a"), format!("{value}b")])
                .collect();
            let from = usize::try_from(lookup.offset.0).unwrap();
            assert_eq!(read, all[from..], "{name}");
            assert_eq!(end.next_offset, Offset(12));
            offset_of.insert(name, lookup.offset.0);
        }
        assert_eq!(offset_of["earliest"], 0);
        assert_eq!(offset_of["latest"], 12);
        assert_eq!(offset_of["a batch's time"], 6);
        assert_eq!(offset_of["just behind it"], 8);
        assert_eq!(offset_of["before all"], 0);
        assert_eq!(offset_of["after all"], 12);
    });
}

fn lookup_of(at: At, topic: waterwheel::domain::id::TopicId) -> OpenReader {
    pull(topic, 0, at)
}

fn wall_ms() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

#[test]
fn push_never_sends_more_than_was_granted_and_one_batch() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let mut stream = client.stream().await;
        let one = batch(BatchStamp::default(), &[vec![b'v'; 1000]]);
        let size = one.len() as u64;
        for _ in 0..40 {
            stream
                .produce(to(topic.id, 0, Ack::Durable), one.clone())
                .await
                .unwrap();
        }
        let mut granted = 3 * size + 10;
        let (_, mut reader) = client
            .open_reader(&push(topic.id, 0, At::Earliest, granted))
            .await
            .unwrap();
        let mut received = 0_u64;
        for grant in [1, size, 5 * size, 7, 2 * size - 1] {
            // All that the credit allows comes without another word.
            while received < granted {
                received += reader.batch().await.1.len() as u64;
            }
            assert!(received < granted + size, "overdrawn by less than a batch");
            // Nothing more came meanwhile: behind a ping, the next batch answers the next grant.
            client
                .control
                .event(&Credit {
                    reader: reader.id,
                    bytes: grant,
                })
                .await;
            granted += grant;
        }
        client
            .control
            .event(&CloseReader { reader: reader.id })
            .await;
        let (rest, end) = reader.read_to_end().await;
        received += rest
            .iter()
            .map(|(_, batch)| batch.len() as u64)
            .sum::<u64>();
        assert!(
            received < granted + size,
            "what was sent in all: {received} of {granted}"
        );
        assert_eq!(end.reason, EndReason::Closed);
        assert_eq!(end.next_offset, Offset(received / size));
    });
}

#[test]
fn what_was_overdrawn_is_made_good_by_the_next_grant() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let mut stream = client.stream().await;
        let large = batch(BatchStamp::default(), &[vec![b'v'; 100_000]]);
        let size = large.len() as u64;
        for _ in 0..3 {
            stream
                .produce(to(topic.id, 0, Ack::Durable), large.clone())
                .await
                .unwrap();
        }
        let (_, mut reader) = client
            .open_reader(&push(topic.id, 0, At::Earliest, 1))
            .await
            .unwrap();
        reader.batch().await;
        // Still below zero afterwards: nothing comes for it.
        client
            .control
            .event(&Credit {
                reader: reader.id,
                bytes: size - 1,
            })
            .await;
        client
            .control
            .event(&CloseReader { reader: reader.id })
            .await;
        let (batches, end) = reader.read_to_end().await;
        assert_eq!((batches.len(), end.next_offset), (0, Offset(1)));
    });
}

#[test]
fn a_pull_ends_when_its_credit_its_records_or_its_time_is_used_up() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = topic_with(&mut client, &["a", "b", "c", "d"]).await;
        let by_credit = OpenReader {
            credit_bytes: 1,
            ..pull(topic.id, 0, At::Earliest)
        };
        let (_, mut reader) = client.open_reader(&by_credit).await.unwrap();
        let (batches, end) = reader.read_to_end().await;
        assert_eq!((batches.len(), end.reason), (1, EndReason::Filled));
        assert_eq!(end.next_offset, Offset(1));
        let by_records = OpenReader {
            records_max: 3,
            wait_ms: 60_000,
            ..pull(topic.id, 0, At::Earliest)
        };
        let (_, mut reader) = client.open_reader(&by_records).await.unwrap();
        let (batches, end) = reader.read_to_end().await;
        assert_eq!((batches.len(), end.reason), (3, EndReason::Filled));
        let by_time = OpenReader {
            wait_ms: 20,
            ..pull(topic.id, 0, At::Earliest)
        };
        let started = std::time::Instant::now();
        let (_, mut reader) = client.open_reader(&by_time).await.unwrap();
        let (batches, end) = reader.read_to_end().await;
        assert_eq!((batches.len(), end.reason), (4, EndReason::Waited));
        assert!(started.elapsed().as_millis() >= 20, "it waited for more");
    });
}

#[test]
fn a_reader_that_waits_is_woken_by_what_is_produced() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = topic_with(&mut client, &["old"]).await;
        let (_, mut pushed) = client
            .open_reader(&push(topic.id, 0, At::Latest, 1 << 20))
            .await
            .unwrap();
        let waits = OpenReader {
            wait_ms: 60_000,
            records_max: 1,
            ..pull(topic.id, 0, At::Latest)
        };
        let (_, mut pulled) = client.open_reader(&waits).await.unwrap();
        client.producer().await.store(&topic, 0, &["new"]).await;
        let (deliver, bytes) = pushed.batch().await;
        assert_eq!(values(&deliver, &bytes), ["new"]);
        assert_eq!(
            (deliver.first_offset, deliver.high_watermark),
            (Offset(1), Offset(2))
        );
        let (batches, end) = pulled.read_to_end().await;
        assert_eq!(values(&batches[0].0, &batches[0].1), ["new"]);
        assert_eq!(end.reason, EndReason::Filled);
    });
}

#[test]
fn whoever_was_acknowledged_reads_his_own_write() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let mut producer = client.producer().await;
        for round in 0..100_u64 {
            producer.store(&topic, 0, &["x"]).await;
            let end = client.lookup(topic.id, 0, At::Latest).await.unwrap();
            assert_eq!(end.high_watermark, Offset(round + 1));
        }
    });
}

#[test]
fn many_readers_of_many_partitions_share_a_connection() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 8).await;
        let mut readers = Vec::new();
        for partition in 0..8 {
            let open = push(topic.id, partition, At::Earliest, 1 << 19);
            readers.push(client.open_reader(&open).await.unwrap().1);
        }
        let mut producer = client.producer().await;
        for round in 0..20 {
            for partition in 0..8 {
                producer
                    .store(&topic, partition, &[format!("{partition}:{round}")])
                    .await;
            }
        }
        for (partition, reader) in readers.iter_mut().enumerate() {
            let mut read = Vec::new();
            while read.len() < 20 {
                let (deliver, batch) = reader.batch().await;
                read.extend(values(&deliver, &batch));
            }
            let expected: Vec<_> = (0..20)
                .map(|round| format!("{partition}:{round}"))
                .collect();
            assert_eq!(read, expected);
        }
    });
}

/// Batches of every compression and of sizes from a byte to nearly the largest.
fn batches() -> Vec<Bytes> {
    let mut batches = Vec::new();
    for round in 0..30_usize {
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let value = |at: usize| vec![(at * 7 + round) as u8; 1 + round * round * 80];
            let values: Vec<_> = (0..1 + round % 3).map(value).collect();
            batches.push(batch_with(BatchStamp::default(), compression, &values));
        }
    }
    batches
}

#[test]
fn what_is_read_is_byte_for_byte_what_was_sent_from_memory_from_disk_and_after_a_restart() {
    run(async {
        for cache_bytes in [1, 16 << 20] {
            let rig = Rig::start_with(|config| config.tail_cache_bytes = cache_bytes).await;
            let mut client = rig.client().await;
            let topic = client.create("orders", 1).await;
            let sent = batches();
            let mut stream = client.stream().await;
            for batch in &sent {
                stream
                    .produce(to(topic.id, 0, Ack::Durable), batch.clone())
                    .await
                    .unwrap();
            }
            let read = client.read_from(topic.id, 0, At::Earliest).await.unwrap();
            assert_same(&sent, &read);
            // From the middle: the first batch is still whole, and says what to skip.
            let (_, mut reader) = client
                .open_reader(&pull(topic.id, 0, At::Offset(Offset(4))))
                .await
                .unwrap();
            let (deliver, _) = reader.batch().await;
            assert_eq!(deliver.first_offset.0 + u64::from(deliver.skip), 4);
            drop(client);
            let rig = rig.kill_and_restart(|_| {}).await;
            let mut client = rig.client().await;
            assert_same(
                &sent,
                &client.read_from(topic.id, 0, At::Earliest).await.unwrap(),
            );
            drop(client);
            let rig = rig.restart().await;
            let mut client = rig.client().await;
            assert_same(
                &sent,
                &client.read_from(topic.id, 0, At::Earliest).await.unwrap(),
            );
        }
    });
}

fn assert_same(sent: &[Bytes], read: &[(waterwheel::wire::reader::Deliver, Bytes)]) {
    assert_eq!(sent.len(), read.len());
    let mut next = 0;
    for (sent, (deliver, read)) in sent.iter().zip(read) {
        assert!(
            sent == read,
            "the batch at {} is another",
            deliver.first_offset
        );
        assert_eq!(deliver.first_offset, Offset(next));
        next += u64::from(deliver.count);
    }
}

#[test]
fn a_partition_of_more_runs_than_are_kept_is_read_from_any_place() {
    run(async {
        // More batches than the index holds in memory: old runs come back from the views.
        let rig = Rig::start_with(|config| config.checkpoint_ms = 50).await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let mut stream = client.stream().await;
        let mut sent = Vec::new();
        for value in 0..4000 {
            let batch = batch(BatchStamp::default(), &[value.to_string()]);
            sent.push(stream.request(&to(topic.id, 0, Ack::Durable), batch).await);
            if sent.len() == 200 {
                for correlation in sent.drain(..) {
                    stream.stored(correlation).await.unwrap();
                }
            }
        }
        let expected: Vec<_> = (0..4000).map(|value| value.to_string()).collect();
        assert_eq!(client.read_all(topic.id, 0).await, expected);
        for from in [0, 511, 512, 1500, 2047, 3999] {
            let at = OpenReader {
                records_max: 1,
                ..pull(topic.id, 0, At::Offset(Offset(from)))
            };
            let (_, mut reader) = client.open_reader(&at).await.unwrap();
            let (deliver, batch) = reader.batch().await;
            assert_eq!(values(&deliver, &batch), [from.to_string()]);
        }
        drop(client);
        let rig = rig.kill_and_restart(|_| {}).await;
        let mut client = rig.client().await;
        assert_eq!(client.read_all(topic.id, 0).await, expected);
    });
}

#[test]
fn a_reader_ends_with_the_stream_its_client_refuses() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = topic_with(&mut client, &["a"]).await;
        let open = push(topic.id, 0, At::Earliest, 1 << 20);
        let (_, mut reader) = client.open_reader(&open).await.unwrap();
        reader.batch().await;
        reader.refuse();
        // Its place is free once the broker has met the refusal.
        let mut producer = client.producer().await;
        loop {
            producer.store(&topic, 0, &["more"]).await;
            if let Ok((_, mut again)) = client.open_reader(&open).await {
                assert!(matches!(again.next().await, Event::Batch(..)));
                break;
            }
        }
    });
}

//! Sending: each batch once, in order, and an answer that says exactly what is on the disk.

use std::sync::atomic::Ordering;

use waterwheel::domain::batch::BatchStamp;
use waterwheel::domain::id::{Offset, ProducerEpoch, ProducerId};
use waterwheel::wire::code::Code;
use waterwheel::wire::frame::FrameKind;
use waterwheel::wire::produce::{Ack, SendStatus, Stored};
use waterwheel::wire::topic::{At, OffsetOk};

use crate::client::{batch, lookup, to};
use crate::disk::FaultyDisk;
use crate::rig::{Node, Rig, config, run};

#[test]
fn a_batch_sent_again_is_answered_with_its_first_offset() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let mut producer = client.producer().await;
        producer.store(&topic, 0, &["a", "b"]).await;
        let again = batch(producer.stamp(0), &["a", "b"]);
        let header = to(topic.id, 0, Ack::Durable);
        let first = producer.store(&topic, 0, &["c"]).await;
        assert_eq!(first, Offset(2));
        let stored = producer.stream.produce(header, again).await.unwrap();
        assert_eq!(stored.first_offset, Some(Offset(0)));
        assert!(stored.duplicate);
        assert_eq!(stored.status, SendStatus::SendOk);
        assert_eq!(client.read_all(topic.id, 0).await, ["a", "b", "c"]);
    });
}

#[test]
fn a_repeat_of_what_is_in_flight_waits_for_it() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let (disk, faults) = FaultyDisk::of(dir.path());
        let node = Node::try_start(config(dir.path()), Some(disk))
            .await
            .unwrap();
        let mut client = node.client().await;
        let topic = client.create("orders", 1).await;
        let mut producer = client.producer().await;
        producer.store(&topic, 0, &["warm"]).await;
        faults.hold();
        let first = producer.offer(&topic, 0, &["once"], Ack::Durable).await;
        faults.is_holding().await;
        let again = batch(producer.stamp(1), &["once"]);
        let header = to(topic.id, 0, Ack::Durable);
        let second = producer.stream.request(&header, again).await;
        // A lookup behind it shows that the repeat has reached the partition.
        let lookup = lookup(topic.id, 0, At::Latest);
        let (seen, _) = producer
            .stream
            .ask_with_body::<_, OffsetOk>(&lookup)
            .await
            .unwrap();
        assert_eq!(
            (seen.high_watermark, seen.log_end_offset),
            (Offset(1), Offset(2))
        );
        faults.release();
        let first = producer.stream.stored(first).await.unwrap();
        let second = producer.stream.stored(second).await.unwrap();
        assert_eq!(first.first_offset, Some(Offset(1)));
        assert_eq!(
            second,
            Stored {
                duplicate: true,
                ..first
            }
        );
        assert_eq!(client.read_all(topic.id, 0).await, ["warm", "once"]);
        node.stop().await;
    });
}

#[test]
fn a_gap_is_refused_and_names_what_is_expected() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let mut producer = client.producer().await;
        producer.store(&topic, 0, &["a"]).await;
        let header = to(topic.id, 0, Ack::Durable);
        let gap = batch(producer.stamp(2), &["c"]);
        let refused = producer.stream.produce(header, gap).await.unwrap_err();
        assert_eq!(refused.code(), Code::SequenceGap);
        assert_eq!(refused.detail["expected"], "1");
        let unknown = BatchStamp {
            producer: ProducerId(4_000_000),
            ..producer.stamp(5)
        };
        let refused = producer
            .stream
            .produce(header, batch(unknown, &["x"]))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::ProducerStateLost);
        assert_eq!(client.read_all(topic.id, 0).await, ["a"]);
    });
}

#[test]
fn a_later_epoch_fences_the_earlier_one() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let mut producer = client.producer().await;
        producer.store(&topic, 0, &["old"]).await;
        let header = to(topic.id, 0, Ack::Durable);
        let later = BatchStamp {
            epoch: ProducerEpoch(3),
            ..producer.stamp(0)
        };
        producer
            .stream
            .produce(header, batch(later, &["new"]))
            .await
            .unwrap();
        let earlier = batch(producer.stamp(1), &["late"]);
        let refused = producer.stream.produce(header, earlier).await.unwrap_err();
        assert_eq!(refused.code(), Code::ProducerFenced);
        assert_eq!(refused.detail["epoch"], "3");
        assert_eq!(client.read_all(topic.id, 0).await, ["old", "new"]);
    });
}

#[test]
fn memory_is_answered_before_the_disk_and_durable_after_it() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let (disk, faults) = FaultyDisk::of(dir.path());
        let node = Node::try_start(config(dir.path()), Some(disk))
            .await
            .unwrap();
        let mut client = node.client().await;
        let topic = client.create("orders", 1).await;
        let mut producer = client.producer().await;
        producer.store(&topic, 0, &["warm"]).await;
        faults.hold();
        let sent = producer.offer(&topic, 0, &["quick"], Ack::Memory).await;
        producer.stream.accepted(sent).await;
        // Accepted is not visible: the disk stands still.
        assert_eq!(client.read_all(topic.id, 0).await, ["warm"]);
        faults.release();
        let stored = producer.stream.stored(sent).await.unwrap();
        assert_eq!(stored.first_offset, Some(Offset(1)));
        assert_eq!(client.read_all(topic.id, 0).await, ["warm", "quick"]);
        node.stop().await;
    });
}

#[test]
fn what_was_only_accepted_is_sent_again_after_the_broker_died_and_stored_once() {
    run(async {
        // The write under way fails, or gets through and is not told of: the sender cannot know.
        for is_written in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (disk, faults) = FaultyDisk::of(dir.path());
            let node = Node::try_start(config(dir.path()), Some(disk))
                .await
                .unwrap();
            let mut client = node.client().await;
            let topic = client.create("orders", 1).await;
            let mut producer = client.producer().await;
            producer.store(&topic, 0, &["0"]).await;
            faults.hold();
            for sequence in 1..=10_u64 {
                let sent = producer
                    .offer(&topic, 0, &[sequence.to_string()], Ack::Memory)
                    .await;
                producer.stream.accepted(sent).await;
            }
            client.connection.close(0, "");
            faults.writes_fail.store(!is_written, Ordering::SeqCst);
            faults.release();
            node.kill().await;
            let node = Node::try_start(config(dir.path()), None).await.unwrap();
            let mut client = node.client().await;
            let mut stream = client.stream().await;
            for sequence in 1..=10_u64 {
                let again = batch(producer.stamp(sequence), &[sequence.to_string()]);
                let stored = stream
                    .produce(to(topic.id, 0, Ack::Durable), again)
                    .await
                    .unwrap();
                assert_eq!(stored.first_offset, Some(Offset(sequence)));
                assert!(
                    is_written || !stored.duplicate,
                    "what was not written is not known"
                );
            }
            let expected: Vec<_> = (0..=10).map(|value| value.to_string()).collect();
            assert_eq!(client.read_all(topic.id, 0).await, expected);
            node.stop().await;
        }
    });
}

#[test]
fn none_is_never_answered_not_even_with_a_refusal() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let mut stream = client.stream().await;
        let unnumbered = batch(BatchStamp::default(), &["gone"]);
        stream
            .request(&to(topic.id, 0, Ack::None), unnumbered.clone())
            .await;
        stream
            .request(&to(topic.id, 77, Ack::None), unnumbered.clone())
            .await;
        stream
            .request(&to(topic.id, 0, Ack::None), unnumbered.slice(..9))
            .await;
        // The first answer on the stream is the one to the only batch that wants one.
        let last = stream
            .request(&to(topic.id, 0, Ack::Durable), unnumbered)
            .await;
        let frame = stream.try_next().await.unwrap();
        assert_eq!(
            (frame.kind(), frame.correlation()),
            (Some(FrameKind::Stored), last)
        );
        assert_eq!(client.read_all(topic.id, 0).await, ["gone", "gone"]);
    });
}

#[test]
fn batches_of_one_stream_are_stored_in_the_order_they_were_sent() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 4).await;
        let mut producer = client.producer().await;
        let mut sent = Vec::new();
        for round in 0..60 {
            for partition in 0..4 {
                let value = [format!("{partition}:{round}")];
                sent.push(
                    producer
                        .offer(&topic, partition, &value, Ack::Durable)
                        .await,
                );
            }
        }
        for correlation in sent {
            producer.stream.stored(correlation).await.unwrap();
        }
        for partition in 0..4 {
            let expected: Vec<_> = (0..60)
                .map(|round| format!("{partition}:{round}"))
                .collect();
            assert_eq!(client.read_all(topic.id, partition).await, expected);
        }
    });
}

#[test]
fn a_repeat_after_a_restart_is_answered_with_its_first_offset() {
    run(async {
        for is_killed in [false, true] {
            let rig = Rig::start().await;
            let mut client = rig.client().await;
            let topic = client.create("orders", 1).await;
            let mut producer = client.producer().await;
            let mut batches = Vec::new();
            for round in 0..5 {
                let value = [format!("v{round}")];
                batches.push(batch(producer.stamp(round), &value));
                producer.store(&topic, 0, &value).await;
            }
            drop(client);
            let rig = match is_killed {
                true => rig.kill_and_restart(|_| {}).await,
                false => rig.restart().await,
            };
            let mut client = rig.client().await;
            let mut stream = client.stream().await;
            let header = to(topic.id, 0, Ack::Durable);
            for (round, batch) in batches.into_iter().enumerate() {
                let stored = stream.produce(header, batch).await.unwrap();
                assert_eq!(stored.first_offset, Some(Offset(round as u64)));
                assert!(stored.duplicate);
            }
            let next = batch(producer.stamp(5), &["v5"]);
            let stored = stream.produce(header, next).await.unwrap();
            assert_eq!(
                (stored.first_offset, stored.duplicate),
                (Some(Offset(5)), false)
            );
            let expected: Vec<_> = (0..6).map(|round| format!("v{round}")).collect();
            assert_eq!(client.read_all(topic.id, 0).await, expected);
        }
    });
}

//! Clients that take more than their share: bounded each, at nobody else's cost.

use std::time::{Duration, Instant};

use bytes::Bytes;
use waterwheel::domain::batch::BatchStamp;
use waterwheel::domain::id::Offset;
use waterwheel::wire::code::Code;
use waterwheel::wire::frame::FrameKind;
use waterwheel::wire::produce::Ack;
use waterwheel::wire::reader::{CloseReader, Credit, EndReason, OpenReader, ReaderOk};
use waterwheel::wire::topic::{At, Metadata, MetadataOk, TopicInfo, TopicOk, decode_list};

use crate::client::{Client, answer_of, batch, close_code, pull, push, to};
use crate::hostile::{frame, pings};
use crate::rig::{BATCH_BYTES_MAX, Rig, run};

#[test]
fn half_a_frame_and_then_silence_costs_the_connection_and_nobody_waits_for_it() {
    run(async {
        let rig = Rig::start().await;
        let silent = [rig.client().await, rig.client().await, rig.client().await];
        let mut streams = Vec::new();
        // As much as they can begin: far more than the broker admits at once.
        for client in &silent {
            for _ in 0..250 {
                let mut stream = client.stream().await;
                stream
                    .raw(&frame(
                        BATCH_BYTES_MAX,
                        FrameKind::Produce as u16,
                        &[0x95],
                        1,
                    ))
                    .await;
                stream.raw(&[0; 100]).await;
                streams.push(stream);
            }
        }
        for _ in 0..5 {
            rig.node.assert_serves().await;
            let mut client = rig.client().await;
            let (_, topics) = client
                .control
                .ask_with_body::<_, MetadataOk>(&Metadata::default())
                .await
                .unwrap();
            let topic = decode_list::<TopicInfo>(&topics).unwrap().remove(0);
            // Large enough to need admission before it is whole.
            client
                .producer()
                .await
                .store(&topic, 0, &[vec![b'v'; 200_000]])
                .await;
        }
        for client in &silent {
            assert_eq!(client.closed_with().await, Code::FrameMalformed);
        }
        rig.node.assert_serves().await;
    });
}

#[test]
fn a_client_that_never_reads_holds_up_nobody() {
    run(async {
        let rig = Rig::start().await;
        let mut deaf = rig.client().await;
        let topic = deaf.create("orders", 1).await;
        let credit = deaf.hello.limits.credit_bytes_max;
        let _: ReaderOk = deaf
            .ask(&push(topic.id, 0, At::Earliest, credit))
            .await
            .unwrap();
        let mut client = rig.client().await;
        let mut producer = client.producer().await;
        let value = [vec![b'v'; 200_000]];
        for _ in 0..30 {
            producer.store(&topic, 0, &value).await;
        }
        assert_eq!(
            client
                .read_from(topic.id, 0, At::Earliest)
                .await
                .unwrap()
                .len(),
            30
        );
        // Its own control stream goes on too: what it does not read is bounded by its stream's window.
        pings(&mut deaf.control).await;
        rig.node.assert_serves().await;
    });
}

#[test]
fn a_client_that_never_reads_its_answers_is_not_answered_into_memory() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        for number in 0..100 {
            client
                .create(&format!("{number}{}", "x".repeat(190)), 1)
                .await;
        }
        let questions = 1500;
        let before = handled(&mut client).await;
        let mut deaf = rig.client().await;
        let mut asked = Vec::new();
        for _ in 0..questions {
            asked.push(
                deaf.control
                    .request(&Metadata::default(), Bytes::new())
                    .await,
            );
        }
        // The directory was asked as often as answers could leave, and then no more.
        let mut seen = before;
        loop {
            rig.node.assert_serves().await;
            let now = handled(&mut client).await;
            // Three requests of the witness, and what they take of the log.
            if now - seen < 20 && seen > before + 20 {
                break;
            }
            seen = now;
        }
        let seen = seen - before;
        assert!(
            seen < questions / 2,
            "{seen} of {questions} answered to a client that reads none"
        );
        // Once it reads, it gets them all.
        for correlation in asked {
            let frame = deaf.control.answer(correlation).await;
            assert!(answer_of::<MetadataOk>(&frame).unwrap().topics >= 100);
        }
    });
}

#[test]
fn a_client_that_reads_what_was_stored_late_gets_all_of_it() {
    run(async {
        let rig = Rig::start().await;
        let mut deaf = rig.client().await;
        let topic = deaf.create("orders", 1).await;
        let mut stream = deaf.stream().await;
        let one = batch(BatchStamp::default(), &["x"]);
        let mut sent = Vec::new();
        for _ in 0..2000 {
            sent.push(
                stream
                    .request(&to(topic.id, 0, Ack::Durable), one.clone())
                    .await,
            );
        }
        rig.node.assert_serves().await;
        for correlation in sent {
            stream.stored(correlation).await.unwrap();
        }
        let end = deaf.lookup(topic.id, 0, At::Latest).await.unwrap();
        assert_eq!(
            end.high_watermark,
            Offset(2000),
            "nothing was lost by waiting"
        );
    });
}

async fn handled(client: &mut Client) -> u64 {
    client.actors("directory").await[0].handled
}

#[test]
fn more_credit_than_allowed_is_refused_or_costs_the_connection() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let max = client.hello.limits.credit_bytes_max;
        let too_much = push(topic.id, 0, At::Latest, max + 1);
        let refused = client.ask::<_, TopicOk>(&too_much).await.unwrap_err();
        assert_eq!(refused.code(), Code::CreditExceeded);
        let (_, reader) = client
            .open_reader(&push(topic.id, 0, At::Latest, max - 10))
            .await
            .unwrap();
        let other = push(topic.id, 0, At::Latest, 11);
        let refused = client.ask::<_, TopicOk>(&other).await.unwrap_err();
        assert_eq!(refused.code(), Code::CreditExceeded, "the sum counts");
        client
            .control
            .event(&Credit {
                reader: reader.id,
                bytes: 10,
            })
            .await;
        pings(&mut client.control).await;
        client
            .control
            .event(&Credit {
                reader: reader.id,
                bytes: u64::MAX,
            })
            .await;
        assert_eq!(client.closed_with().await, Code::CreditExceeded);
        rig.node.assert_serves().await;
    });
}

#[test]
fn readers_are_counted_and_their_ids_are_theirs() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let max = client.hello.limits.readers_max;
        let mut readers = Vec::new();
        for _ in 0..max {
            let open = push(topic.id, 0, At::Latest, 1000);
            readers.push(client.open_reader(&open).await.unwrap().1);
        }
        let more = push(topic.id, 0, At::Latest, 1000);
        let refused = client.ask::<_, TopicOk>(&more).await.unwrap_err();
        assert_eq!(refused.code(), Code::TooManyReaders);
        let mut last = readers.pop().unwrap();
        client.control.event(&CloseReader { reader: last.id }).await;
        assert_eq!(last.read_to_end().await.1.reason, EndReason::Closed);
        let twin = OpenReader {
            reader: readers[0].id,
            ..more.clone()
        };
        let refused = client.ask::<_, TopicOk>(&twin).await.unwrap_err();
        assert_eq!(refused.code(), Code::ReaderExists);
        // The place and the credit of the one that was closed are free again.
        client.open_reader(&more).await.unwrap();
        // Credit for one that is gone is void.
        client
            .control
            .event(&Credit {
                reader: last.id,
                bytes: u64::MAX,
            })
            .await;
        pings(&mut client.control).await;
        rig.node.assert_serves().await;
    });
}

#[test]
fn a_thousand_short_waits_at_the_end_leave_nothing_behind() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        for _ in 0..1000 {
            let (_, mut reader) = client
                .open_reader(&pull(topic.id, 0, At::Latest))
                .await
                .unwrap();
            assert_eq!(reader.read_to_end().await.1.reason, EndReason::Waited);
        }
        client.producer().await.store(&topic, 0, &["a"]).await;
        assert_eq!(client.read_all(topic.id, 0).await, ["a"]);
    });
}

#[test]
fn only_so_many_connections_get_in_and_a_place_that_is_left_is_free() {
    run(async {
        let rig = Rig::start_with(|config| config.connections_max = 3).await;
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(rig.client().await);
        }
        let refused = rig.node.try_client().await.err().expect("there is no room");
        assert_eq!(close_code(&refused), Code::TooManyConnections);
        clients.pop().unwrap().connection.close(0, "");
        let mut first = clients.pop().unwrap();
        while first.status().await.0.connections > 2 {
            tokio::task::yield_now().await;
        }
        rig.client().await;
    });
}

#[test]
fn a_connection_that_says_nothing_costs_nobody_anything() {
    run(async {
        let rig = Rig::start().await;
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(rig.node.dial().await);
        }
        let started = Instant::now();
        rig.node.assert_serves().await;
        assert!(started.elapsed() < Duration::from_secs(2));
        assert!(
            silent
                .iter()
                .all(|(_, connection)| connection.ended().is_none())
        );
    });
}

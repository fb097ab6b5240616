//! Bad input: a stable code or a closed stream each, and nobody else notices.

use bytes::Bytes;
use waterwheel::domain::batch::{BatchBuilder, BatchStamp, Compression, Delivery};
use waterwheel::domain::id::{MessageId, Offset, TopicId, TransactionNumber};
use waterwheel::domain::record::Record;
use waterwheel::domain::time::WallMs;
use waterwheel::wire::code::{Code, Refused};
use waterwheel::wire::frame::{FrameKind, PREFIX_BYTES};
use waterwheel::wire::hello::{Ping, Pong};
use waterwheel::wire::produce::{Ack, Stored};
use waterwheel::wire::topic::{At, DescribeTopic, Metadata, MetadataOk, TopicConfig, TopicOk};

use crate::client::{Client, Stream, answer_of, batch, batch_with, close_code, pull, to};
use crate::rig::{BATCH_BYTES_MAX, Rig, run};

/// Offences against one broker: after more of them it lets their address in slowly.
const OFFENCES: usize = 7;

/// A frame whose fields say what they are told to say.
pub(crate) fn frame(length: u32, kind: u16, header: &[u8], correlation: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(length.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend(correlation.to_le_bytes());
    bytes.extend(header);
    bytes
}

/// A frame whose length is right.
pub(crate) fn whole(kind: u16, header: &[u8], correlation: u64) -> Vec<u8> {
    let length = u32::try_from(PREFIX_BYTES - 4 + header.len()).unwrap();
    frame(length, kind, header, correlation)
}

/// Bytes nobody meant, the same in every run.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

pub(crate) async fn pings(stream: &mut Stream) {
    stream
        .ask_with_body::<_, Pong>(&Ping {})
        .await
        .expect("the stream goes on");
}

async fn refused(client: &mut Client, bytes: &[u8], correlation: u64) -> Refused {
    client.control.raw(bytes).await;
    answer_of::<Pong>(&client.control.answer(correlation).await).expect_err("refused")
}

#[test]
fn a_frame_that_declares_more_than_is_taken_closes_its_connection() {
    run(async {
        let rig = Rig::start().await;
        for length in [u32::MAX, 1 << 30, BATCH_BYTES_MAX + (64 << 10) + 1] {
            let mut client = rig.client().await;
            client
                .control
                .raw(&frame(length, FrameKind::Produce as u16, &[], 1))
                .await;
            assert_eq!(client.closed_with().await, Code::FrameTooLarge);
        }
        rig.node.assert_serves().await;
    });
}

#[test]
fn lengths_that_contradict_each_other_close_their_connection() {
    run(async {
        let rig = Rig::start().await;
        for length in [0, 11, PREFIX_BYTES as u32 - 4 + 2] {
            let mut client = rig.client().await;
            client
                .control
                .raw(&frame(length, FrameKind::Ping as u16, &[0x80; 3], 1))
                .await;
            assert_eq!(client.closed_with().await, Code::FrameMalformed);
        }
        rig.node.assert_serves().await;
    });
}

#[test]
fn a_truncated_frame_ends_with_its_stream_and_nothing_else() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        for cut in [1, 4, PREFIX_BYTES, PREFIX_BYTES + 1] {
            let mut stream = client.stream().await;
            let bytes = whole(FrameKind::Metadata as u16, &[0x80, 0xc0, 0xc0], 1);
            stream.raw(&bytes[..cut]).await;
            stream.send.finish();
            assert!(stream.try_next().await.is_none(), "there was no question");
        }
        pings(&mut client.control).await;
        rig.node.assert_serves().await;
    });
}

#[test]
fn an_unknown_request_is_refused_and_an_unknown_event_skipped() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        for kind in [0x0000, 0x0777, 0x3fff] {
            let refused = refused(&mut client, &whole(kind, b"whatever", 4711), 4711).await;
            assert_eq!(refused.code(), Code::Unsupported);
            assert!(
                refused.message.contains(&format!("{kind:#06x}")),
                "{}",
                refused.message
            );
        }
        for kind in [0x4002, 0x4fff, 0x8005, 0xffff] {
            client.control.raw(&whole(kind, b"whatever", 0)).await;
        }
        pings(&mut client.control).await;
        rig.node.assert_serves().await;
    });
}

#[test]
fn whoever_does_not_say_hello_first_is_shown_the_door() {
    run(async {
        for kinds in FrameKind::ALL.chunks(OFFENCES) {
            let rig = Rig::start().await;
            for kind in kinds.iter().filter(|kind| **kind != FrameKind::Hello) {
                let (_endpoint, connection) = rig.node.dial().await;
                let (send, recv) = connection.open_bi().await.unwrap();
                Stream::new(send, recv)
                    .raw(&whole(*kind as u16, &[0x80], 1))
                    .await;
                assert_eq!(
                    close_code(&connection.closed().await),
                    Code::HelloRequired,
                    "{kind:?}"
                );
            }
            rig.node.assert_serves().await;
        }
    });
}

#[test]
fn a_header_that_is_not_its_kinds_is_malformed() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        // Requests that are answered refuse it and go on; nesting does not exhaust the stack.
        let mut nested = vec![0x81, 0xa1, b'x'];
        nested.extend([0x91; 60_000]);
        for header in [&b"\xc1"[..], &[], &[0x81, 0xa6], &nested] {
            let bytes = whole(FrameKind::CreateTopic as u16, header, 9);
            assert_eq!(
                refused(&mut client, &bytes, 9).await.code(),
                Code::FrameMalformed
            );
        }
        // The others end the connection.
        for kind in [
            FrameKind::Hello,
            FrameKind::Produce,
            FrameKind::OpenReader,
            FrameKind::Credit,
        ] {
            let mut client = rig.client().await;
            client
                .control
                .raw(&whole(kind as u16, b"\xc1\xc1", 1))
                .await;
            assert_eq!(client.closed_with().await, Code::FrameMalformed, "{kind:?}");
        }
        rig.node.assert_serves().await;
    });
}

#[test]
fn noise_is_closed_with_a_code() {
    run(async {
        for some in (0..40).collect::<Vec<_>>().chunks(OFFENCES) {
            let rig = Rig::start().await;
            for seed in some {
                let mut client = rig.client().await;
                let mut stream = client.stream().await;
                stream.raw(&noise(*seed, 64 << 10)).await;
                stream.send.finish();
                // Whatever it was taken for, it ends: by a code, or because what it began was never whole.
                while stream.try_next().await.is_some() {}
                if let Some(error) = client.connection.ended() {
                    close_code(&error);
                } else {
                    pings(&mut client.control).await;
                }
            }
            rig.node.assert_serves().await;
        }
    });
}

#[test]
fn lying_checksums_are_refused_one_by_one() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let mut stream = client.stream().await;
        let values = [vec![7_u8; 3000], vec![8; 3000]];
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let good = batch_with(BatchStamp::default(), compression, &values);
            // The header, the directory, the last body (compressed, or a record of its own).
            for at in [20, 70, good.len() - 1] {
                let mut bad = good.to_vec();
                bad[at] ^= 0x10;
                let answer = stream
                    .produce(to(topic.id, 0, Ack::Durable), bad.into())
                    .await;
                assert_eq!(
                    answer.unwrap_err().code(),
                    Code::BatchChecksum,
                    "{compression:?} {at}"
                );
            }
            stream
                .produce(to(topic.id, 0, Ack::Durable), good)
                .await
                .unwrap();
        }
        let end = client.lookup(topic.id, 0, At::Latest).await.unwrap();
        assert_eq!(
            end.high_watermark,
            Offset(6),
            "nothing but the good ones is stored"
        );
        rig.node.assert_serves().await;
    });
}

#[test]
fn what_is_no_batch_is_refused() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let mut stream = client.stream().await;
        let good = batch(BatchStamp::default(), &["a", "b"]);
        let longer = [&good[..], b"more"].concat();
        let cases: [&[u8]; 5] = [b"", b"\x01", &good[..good.len() - 1], &good[..63], &longer];
        for bad in cases {
            let bad = Bytes::copy_from_slice(bad);
            let answer = stream.produce(to(topic.id, 0, Ack::Durable), bad).await;
            assert_eq!(answer.unwrap_err().code(), Code::BatchMalformed);
        }
        let _: Stored = stream
            .produce(to(topic.id, 0, Ack::Durable), good)
            .await
            .unwrap();
        rig.node.assert_serves().await;
    });
}

#[test]
fn records_nobody_could_ever_show_are_refused() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let of = |priority, transaction| {
            let mut builder = BatchBuilder::new(usize::MAX, Compression::None);
            let id = MessageId::default();
            builder
                .push_with(&Record::new("x"), id, WallMs(1), priority, Delivery::Now)
                .unwrap();
            builder
                .finish(BatchStamp {
                    transaction,
                    ..BatchStamp::default()
                })
                .unwrap()
        };
        let batches = [
            // A transaction of nobody's session.
            (of(0, TransactionNumber(1)), Code::TransactionUnknown),
            // A priority the topic's lane does not have.
            (of(3, TransactionNumber(0)), Code::BatchMalformed),
        ];
        for (batch, code) in batches {
            let answer = client
                .control
                .produce(to(topic.id, 0, Ack::Durable), batch)
                .await;
            assert_eq!(answer.unwrap_err().code(), code);
        }
        assert!(client.read_all(topic.id, 0).await.is_empty());
        rig.node.assert_serves().await;
    });
}

#[test]
fn an_unknown_topic_is_refused_by_its_name() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let refused = client.describe("orders").await.unwrap_err();
        assert_eq!(refused.code(), Code::UnknownTopic);
        assert!(
            refused.message.contains("there is no topic 'orders'"),
            "{}",
            refused.message
        );
        let question = Metadata {
            topics: vec!["orders".to_owned()],
        };
        let (ok, body) = client
            .control
            .ask_with_body::<_, MetadataOk>(&question)
            .await
            .unwrap();
        assert_eq!(
            (ok.topics, body.as_ref()),
            (0, &[0x90][..]),
            "of named topics those that exist"
        );
        let unknown = TopicId(999);
        let refused = client.lookup(unknown, 0, At::Latest).await.unwrap_err();
        assert_eq!(refused.code(), Code::UnknownTopic);
        let refused = client
            .ask::<_, TopicOk>(&pull(unknown, 0, At::Latest))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::UnknownTopic);
        let good = batch(BatchStamp::default(), &["a"]);
        let answer = client
            .control
            .produce(to(unknown, 0, Ack::Durable), good)
            .await;
        assert_eq!(answer.unwrap_err().code(), Code::UnknownTopic);
        rig.node.assert_serves().await;
    });
}

#[test]
fn odd_names_are_refused() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let long = "x".repeat(201);
        let longer = "x".repeat(60_000);
        let odd = [
            "", ".", "..", "a/b", "a b", "ü", "a\0", "a\n", "'; drop", &long, &longer,
        ];
        for name in odd {
            let refused = client
                .create_with(name, TopicConfig::new(1))
                .await
                .unwrap_err();
            assert_eq!(refused.code(), Code::InvalidName, "{name:?}");
            let question = DescribeTopic {
                name: name.to_owned(),
            };
            let refused = client.ask::<_, TopicOk>(&question).await.unwrap_err();
            assert_eq!(refused.code(), Code::UnknownTopic, "{name:?}");
        }
        client.create(&"x".repeat(200), 1).await;
        client.create("A-z_0.9", 1).await;
        rig.node.assert_serves().await;
    });
}

#[test]
fn offsets_out_of_range_are_refused_with_the_range() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        client.producer().await.store(&topic, 0, &["a", "b"]).await;
        for offset in [3, 1 << 40, u64::MAX] {
            let at = At::Offset(Offset(offset));
            let by_lookup = client.lookup(topic.id, 0, at).await.unwrap_err();
            let by_reader = client
                .ask::<_, TopicOk>(&pull(topic.id, 0, at))
                .await
                .unwrap_err();
            for refused in [by_lookup, by_reader] {
                assert_eq!(refused.code(), Code::OffsetOutOfRange);
                assert_eq!(refused.detail["start_offset"], "0");
                assert_eq!(refused.detail["high_watermark"], "2");
            }
        }
        rig.node.assert_serves().await;
    });
}

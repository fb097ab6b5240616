//! Bad input: a stable code or a closed stream each, and nobody else notices.

use std::time::{Duration, Instant};

use bytes::Bytes;
use waterwheel::domain::batch::{BatchStamp, Compression};
use waterwheel::domain::id::{Offset, TopicId};
use waterwheel::wire::ALPN;
use waterwheel::wire::code::{Code, Refused};
use waterwheel::wire::frame::{FrameKind, PREFIX_BYTES};
use waterwheel::wire::hello::{Ping, Pong};
use waterwheel::wire::produce::{Ack, Stored};
use waterwheel::wire::reader::{CloseReader, Credit, EndReason, OpenReader};
use waterwheel::wire::topic::{
    At, DescribeTopic, Metadata, MetadataOk, TopicConfig, TopicInfo, TopicOk, decode_list,
};

use crate::client::{Client, Stream, answer_of, batch, batch_with, close_code, pull, push, to};
use crate::rig::{BATCH_BYTES_MAX, Node, Rig, run};

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
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

async fn pings(stream: &mut Stream) {
    stream.ask_with_body::<_, Pong>(&Ping {}).await.expect("the stream goes on");
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
            client.control.raw(&frame(length, FrameKind::Produce as u16, &[], 1)).await;
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
            client.control.raw(&frame(length, FrameKind::Ping as u16, &[0x80; 3], 1)).await;
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
            stream.send.finish().unwrap();
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
            assert!(refused.message.contains(&format!("{kind:#06x}")), "{}", refused.message);
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
        let rig = Rig::start().await;
        for kind in FrameKind::ALL.iter().filter(|kind| **kind != FrameKind::Hello) {
            let (_endpoint, connection) = rig.node.dial().await;
            let (send, recv) = connection.open_bi().await.unwrap();
            Stream::new(send, recv).raw(&whole(*kind as u16, &[0x80], 1)).await;
            assert_eq!(close_code(&connection.closed().await), Code::HelloRequired, "{kind:?}");
        }
        rig.node.assert_serves().await;
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
            assert_eq!(refused(&mut client, &bytes, 9).await.code(), Code::FrameMalformed);
        }
        // The others end the connection.
        for kind in [FrameKind::Hello, FrameKind::Produce, FrameKind::OpenReader, FrameKind::Credit] {
            let mut client = rig.client().await;
            client.control.raw(&whole(kind as u16, b"\xc1\xc1", 1)).await;
            assert_eq!(client.closed_with().await, Code::FrameMalformed, "{kind:?}");
        }
        rig.node.assert_serves().await;
    });
}

#[test]
fn noise_is_closed_with_a_code() {
    run(async {
        let rig = Rig::start().await;
        for seed in 0..40 {
            let mut client = rig.client().await;
            let mut stream = client.stream().await;
            stream.raw(&noise(seed, 64 << 10)).await;
            let _ = stream.send.finish();
            // Whatever it was taken for, it ends: by a code, or because what it began was never whole.
            while stream.try_next().await.is_some() {}
            if let Some(error) = client.connection.close_reason() {
                close_code(&error);
            } else {
                pings(&mut client.control).await;
            }
        }
        rig.node.assert_serves().await;
    });
}

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
                stream.raw(&frame(BATCH_BYTES_MAX, FrameKind::Produce as u16, &[0x95], 1)).await;
                stream.raw(&[0; 100]).await;
                streams.push(stream);
            }
        }
        for _ in 0..5 {
            rig.node.assert_serves().await;
            let mut client = rig.client().await;
            let (_, topics) = client.control.ask_with_body::<_, MetadataOk>(&Metadata::default()).await.unwrap();
            let topic = decode_list::<TopicInfo>(&topics).unwrap().remove(0);
            // Large enough to need admission before it is whole.
            client.producer().await.store(&topic, 0, &[vec![b'v'; 200_000]]).await;
        }
        for client in &silent {
            assert_eq!(client.closed_with().await, Code::FrameMalformed);
        }
        rig.node.assert_serves().await;
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
                let answer = stream.produce(to(topic.id, 0, Ack::Durable), bad.into()).await;
                assert_eq!(answer.unwrap_err().code(), Code::BatchChecksum, "{compression:?} {at}");
            }
            stream.produce(to(topic.id, 0, Ack::Durable), good).await.unwrap();
        }
        let end = client.lookup(topic.id, 0, At::Latest).await.unwrap();
        assert_eq!(end.high_watermark, Offset(6), "nothing but the good ones is stored");
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
        let _: Stored = stream.produce(to(topic.id, 0, Ack::Durable), good).await.unwrap();
        rig.node.assert_serves().await;
    });
}

#[test]
fn an_unknown_topic_is_refused_with_the_line_that_makes_it() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let refused = client.describe("orders").await.unwrap_err();
        assert_eq!(refused.code(), Code::UnknownTopic);
        assert!(refused.message.contains("waterwheel topic create orders"), "{}", refused.message);
        let question = Metadata { topics: vec!["orders".to_owned()] };
        let (ok, body) = client
            .control
            .ask_with_body::<_, MetadataOk>(&question)
            .await
            .unwrap();
        assert_eq!((ok.topics, body.as_ref()), (0, &[0x90][..]), "of named topics those that exist");
        let unknown = TopicId(999);
        let refused = client.lookup(unknown, 0, At::Latest).await.unwrap_err();
        assert_eq!(refused.code(), Code::UnknownTopic);
        let refused = client.ask::<_, TopicOk>(&pull(unknown, 0, At::Latest)).await.unwrap_err();
        assert_eq!(refused.code(), Code::UnknownTopic);
        let good = batch(BatchStamp::default(), &["a"]);
        let answer = client.control.produce(to(unknown, 0, Ack::Durable), good).await;
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
        let odd = ["", ".", "..", "a/b", "a b", "ü", "a\0", "a\n", "'; drop", &long, &longer];
        for name in odd {
            let refused = client.create_with(name, TopicConfig::new(1)).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidName, "{name:?}");
            let question = DescribeTopic { name: name.to_owned() };
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
            let by_reader = client.ask::<_, TopicOk>(&pull(topic.id, 0, at)).await.unwrap_err();
            for refused in [by_lookup, by_reader] {
                assert_eq!(refused.code(), Code::OffsetOutOfRange);
                assert_eq!(refused.detail["start_offset"], "0");
                assert_eq!(refused.detail["high_watermark"], "2");
            }
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
        let _: waterwheel::wire::reader::ReaderOk =
            deaf.ask(&push(topic.id, 0, At::Earliest, credit)).await.unwrap();
        let mut client = rig.client().await;
        let mut producer = client.producer().await;
        let value = [vec![b'v'; 200_000]];
        for _ in 0..30 {
            producer.store(&topic, 0, &value).await;
        }
        assert_eq!(client.read_from(topic.id, 0, At::Earliest).await.unwrap().len(), 30);
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
            client.create(&format!("{number}{}", "x".repeat(190)), 1).await;
        }
        let questions = 3000;
        let mut deaf = rig.client().await;
        let mut asked = Vec::new();
        for _ in 0..questions {
            asked.push(deaf.control.request(&Metadata::default(), Bytes::new()).await);
        }
        // The directory was asked as often as answers could leave, and then no more.
        let mut seen = handled(&mut client).await;
        loop {
            rig.node.assert_serves().await;
            let now = handled(&mut client).await;
            // Three requests of the witness, and what they take of the log.
            if now - seen < 20 {
                break;
            }
            seen = now;
        }
        assert!(seen < questions / 2, "{seen} of {questions} answered to a client that reads none");
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
            sent.push(stream.request(&to(topic.id, 0, Ack::Durable), one.clone()).await);
        }
        rig.node.assert_serves().await;
        for correlation in sent {
            stream.stored(correlation).await.unwrap();
        }
        let end = deaf.lookup(topic.id, 0, At::Latest).await.unwrap();
        assert_eq!(end.high_watermark, Offset(2000), "nothing was lost by waiting");
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
        let (_, reader) = client.open_reader(&push(topic.id, 0, At::Latest, max - 10)).await.unwrap();
        let other = push(topic.id, 0, At::Latest, 11);
        let refused = client.ask::<_, TopicOk>(&other).await.unwrap_err();
        assert_eq!(refused.code(), Code::CreditExceeded, "the sum counts");
        client.control.event(&Credit { reader: reader.id, bytes: 10 }).await;
        pings(&mut client.control).await;
        client.control.event(&Credit { reader: reader.id, bytes: u64::MAX }).await;
        assert_eq!(client.closed_with().await, Code::CreditExceeded);
        rig.node.assert_serves().await;
    });
}

#[test]
fn credit_that_is_overdrawn_again_and_again_is_not_counted_twice() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let mut producer = client.producer().await;
        let value = [vec![b'v'; 200_000]];
        let rounds = client.hello.limits.credit_bytes_max / 200_000 + 2;
        for _ in 0..rounds {
            producer.store(&topic, 0, &value).await;
        }
        // Every batch is more than is left, and what came is given back: never more than 1000 are open.
        let open = push(topic.id, 0, At::Earliest, 1000);
        let (_, mut reader) = client.open_reader(&open).await.unwrap();
        for _ in 0..rounds {
            let (_, batch) = reader.batch().await;
            let credit = Credit { reader: reader.id, bytes: batch.len() as u64 };
            client.control.event(&credit).await;
        }
        pings(&mut client.control).await;
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
        assert_eq!(last.to_end().await.1.reason, EndReason::Closed);
        let twin = OpenReader { reader: readers[0].id, ..more.clone() };
        let refused = client.ask::<_, TopicOk>(&twin).await.unwrap_err();
        assert_eq!(refused.code(), Code::ReaderExists);
        // The place and the credit of the one that was closed are free again.
        client.open_reader(&more).await.unwrap();
        // Credit for one that is gone is void.
        client.control.event(&Credit { reader: last.id, bytes: u64::MAX }).await;
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
            let (_, mut reader) = client.open_reader(&pull(topic.id, 0, At::Latest)).await.unwrap();
            assert_eq!(reader.to_end().await.1.reason, EndReason::Waited);
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
        clients.pop().unwrap().connection.close(0_u32.into(), b"");
        let mut first = clients.pop().unwrap();
        while first.status().await.0.connections > 2 {
            tokio::task::yield_now().await;
        }
        rig.client().await;
    });
}

#[test]
fn another_protocol_or_none_is_refused_in_the_handshake() {
    run(async {
        let rig = Rig::start().await;
        for protocols in [vec![b"waterwheel/2".to_vec()], vec![b"h3".to_vec()], Vec::new()] {
            let mut tls = rig.node.tls(ALPN);
            tls.alpn_protocols = protocols;
            let endpoint = Node::endpoint(tls);
            let connecting = endpoint.connect(rig.node.addr, "localhost").unwrap();
            let error = connecting.await.expect_err("no protocol in common");
            // TLS alert 120, no_application_protocol, as QUIC carries it.
            assert!(error.to_string().contains("120"), "{error}");
        }
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for seed in 0..200 {
            let size = if seed % 2 == 0 { 1200 } else { 40 };
            socket.send_to(&noise(seed, size), rig.node.addr).unwrap();
        }
        rig.node.assert_serves().await;
    });
}

#[test]
fn nothing_is_taken_before_the_handshake_is_done() {
    run(async {
        let rig = Rig::start().await;
        let mut tls = rig.node.tls(ALPN);
        tls.enable_early_data = true;
        let endpoint = Node::endpoint(tls);
        for _ in 0..3 {
            let connecting = endpoint.connect(rig.node.addr, "localhost").unwrap();
            let connecting = connecting.into_0rtt().err().expect("no ticket, no early data");
            let connection = connecting.await.unwrap();
            let mut client = Client::greet(endpoint.clone(), connection).await.unwrap();
            // A round trip after the handshake: a ticket would have come by now.
            pings(&mut client.control).await;
        }
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
        assert!(silent.iter().all(|(_, connection)| connection.close_reason().is_none()));
    });
}

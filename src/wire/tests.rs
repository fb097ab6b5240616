#![expect(
    clippy::cast_possible_truncation,
    reason = "the numbers of these tests are small"
)]

mod groups;

use std::fmt::Debug;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use proptest::prelude::*;

use super::code::{Code, Refused};
use super::frame::*;
use super::hello::*;
use super::produce::*;
use super::reader::*;
use super::status::*;
use super::timer::*;
use super::topic::*;
use super::transaction::{
    Attach, AttachUpTo, CheckBack, CheckedBack, EndTransaction, ListTransactions, OpenSession,
    SessionOk, TransactionEnded, TransactionsOk,
};
use crate::domain::batch::{BatchView, Compression, facts};
use crate::domain::id::{
    ClusterId, Lane, MessageId, Offset, PartitionIndex, ProducerEpoch, ProducerId, RecordNumber,
    TopicId,
};
use crate::domain::record::{Record, RecordBody};
use crate::domain::time::WallMs;

mod letters;
mod transaction;

fn frame_of<H: Header>(header: &H, correlation: u64, body: &'static [u8]) -> Bytes {
    let mut out = BytesMut::new();
    encode(header, correlation, body.len(), &mut out).unwrap();
    out.extend_from_slice(body);
    out.freeze()
}

fn decode_all(bytes: &Bytes) -> Vec<Frame> {
    let mut decoder = FrameDecoder::new(FrameLimits::default());
    let mut bytes = bytes.clone();
    let mut frames = Vec::new();
    while let Some(frame) = decoder.feed(&mut bytes).unwrap() {
        frames.push(frame);
    }
    assert!(decoder.is_between_frames());
    frames
}

/// Whatever is encoded decodes to the same, and has exactly these header bytes.
fn golden<H: Header + PartialEq + Debug>(header: H, expected: &str) -> Bytes {
    let bytes = frame_of(&header, 7, b"body");
    let frames = decode_all(&bytes);
    assert_eq!(frames.len(), 1);
    let frame = &frames[0];
    assert_eq!(frame.decode::<H>().unwrap(), header);
    assert_eq!(frame.kind(), Some(H::KIND));
    assert_eq!(
        (frame.correlation(), frame.body.as_ref()),
        (7, &b"body"[..])
    );
    let shown: String = frame
        .header
        .iter()
        .flat_map(|byte| std::ascii::escape_default(*byte))
        .map(char::from)
        .collect();
    assert_eq!(shown, expected, "{:?}", H::KIND);
    bytes
}

fn config() -> TopicConfig {
    TopicConfig {
        retention_ms: Some(60_000),
        ..TopicConfig::new(8)
    }
}

fn info() -> TopicInfo {
    TopicInfo {
        name: "t".into(),
        id: TopicId(5),
        config: config(),
        lanes: 1,
        leaders: vec![Leader { node: 1, epoch: 0 }],
    }
}

/// The header of every kind of frame; what the table holds is checked against `FrameKind::ALL`.
fn golden_frames() -> Vec<Bytes> {
    let mut frames = golden_requests();
    frames.extend(groups::golden_requests());
    frames.extend(letters::requests());
    frames.extend(transaction::requests());
    frames.extend(golden_answers());
    frames.extend(groups::golden_answers());
    frames.extend(letters::answers());
    frames.extend(transaction::answers());
    frames.extend(golden_events());
    frames.extend(groups::golden_events());
    frames.extend(transaction::events());
    frames
}

fn golden_requests() -> Vec<Bytes> {
    let topic = TopicId(5);
    let partition = PartitionIndex(3);
    let lane = Lane(0);
    vec![
        golden(
            Hello {
                client: "c".into(),
                version: "1".into(),
                features: vec![],
                batch_versions: vec![1],
            },
            r"\x84\xa6client\xa1c\xa7version\xa11\xa8features\x90\xaebatch_versions\x91\x01",
        ),
        golden(Ping {}, r"\x80"),
        golden(
            Metadata {
                topics: vec!["t".into()],
            },
            r"\x81\xa6topics\x91\xa1t",
        ),
        golden(
            CreateTopic {
                name: "t".into(),
                config: config(),
            },
            r"\x82\xa4name\xa1t\xa6config\x85\xaapartitions\x08\xa5keyed\xc3\xa5flush\xa4sync\xacretention_ms\xcd\xea`\xafretention_bytes\xc0",
        ),
        golden(DescribeTopic { name: "t".into() }, r"\x81\xa4name\xa1t"),
        golden(
            AlterTopic {
                name: "t".into(),
                partitions: Some(9),
                flush: Some(FlushMode::Async),
                retention_ms: Some(None),
                retention_bytes: None,
                ..AlterTopic::default()
            },
            r"\x85\xa4name\xa1t\xaapartitions\t\xa5flush\xa5async\xacretention_ms\x00\xafretention_bytes\xc0",
        ),
        golden(
            AlterTopic {
                name: "t".into(),
                timers_max: Some(Some(9)),
                delay_ms_max: Some(None),
                ..AlterTopic::default()
            },
            r"\x87\xa4name\xa1t\xaapartitions\xc0\xa5flush\xc0\xacretention_ms\xc0\xafretention_bytes\xc0\xaatimers_max\t\xacdelay_ms_max\x00",
        ),
        golden(DeleteTopic { name: "t".into() }, r"\x81\xa4name\xa1t"),
        golden(
            LookupOffset {
                topic,
                partition,
                lane,
                at: At::Time(WallMs(9)),
            },
            r"\x84\xa5topic\x05\xa9partition\x03\xa4lane\x00\xa2at\x81\xa4time\t",
        ),
        golden(OpenProducer { name: None }, r"\x81\xa4name\xc0"),
        golden(
            AskTimer {
                topic,
                partition,
                lane,
                leader_epoch: 0,
                first: RecordNumber(1),
                number: RecordNumber(2),
                key: TimerKey(3, 4),
                action: TimerAction::After(50),
            },
            r"\x88\xa5topic\x05\xa9partition\x03\xa4lane\x00\xacleader_epoch\x00\xa5first\x01\xa6number\x02\xa3key\x92\x03\x04\xa6action\x81\xa5after2",
        ),
        golden(
            ListTimers {
                topic,
                partition,
                lane,
                leader_epoch: 0,
                from: RecordNumber(0),
                due_from: WallMs(1),
                due_before: WallMs(2),
                max: 10,
            },
            r"\x88\xa5topic\x05\xa9partition\x03\xa4lane\x00\xacleader_epoch\x00\xa4from\x00\xa8due_from\x01\xaadue_before\x02\xa3max\n",
        ),
        golden(
            Status {
                actors: true,
                ..Status::default()
            },
            r"\x81\xa6actors\xc3",
        ),
        golden(
            Status {
                actors: true,
                from_kind: "wheel".to_owned(),
                from_id: 7,
            },
            r"\x83\xa6actors\xc3\xa9from_kind\xa5wheel\xa7from_id\x07",
        ),
        golden(
            Produce {
                topic,
                partition,
                lane,
                leader_epoch: 0,
                ack: Ack::Durable,
                immunity_ms: None,
            },
            r"\x95\x05\x03\x00\x00\x02",
        ),
        golden(
            OpenReader {
                reader: 2,
                topic,
                partition,
                lane,
                leader_epoch: 0,
                from: At::Earliest,
                mode: ReaderMode::Pull,
                credit_bytes: 100,
                records_max: 10,
                wait_ms: 50,
            },
            r"\x8a\xa6reader\x02\xa5topic\x05\xa9partition\x03\xa4lane\x00\xacleader_epoch\x00\xa4from\xa8earliest\xa4mode\xa4pull\xaccredit_bytesd\xabrecords_max\n\xa7wait_ms2",
        ),
    ]
}

fn golden_answers() -> Vec<Bytes> {
    vec![
        golden(
            HelloOk {
                features: vec!["f".into()],
                batch_versions: vec![1],
                limits: Limits {
                    batch_bytes_max: 1,
                    frame_bytes_max: 2,
                    in_flight_batches_max: 64,
                    credit_bytes_max: 3,
                    readers_max: 4,
                },
                cluster: ClusterId([1; 16]),
                node: 1,
                version: "0".into(),
            },
            r"\x86\xa8features\x91\xa1f\xaebatch_versions\x91\x01\xa6limits\x85\xafbatch_bytes_max\x01\xafframe_bytes_max\x02\xb5in_flight_batches_max@\xb0credit_bytes_max\x03\xabreaders_max\x04\xa7cluster\xdc\x00\x10\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\xa4node\x01\xa7version\xa10",
        ),
        golden(Pong {}, r"\x80"),
        golden(MetadataOk { topics: 1 }, r"\x81\xa6topics\x01"),
        golden(
            TopicOk {
                topic: info(),
                timers: 0,
            },
            r"\x81\xa5topic\x85\xa4name\xa1t\xa2id\x05\xa6config\x85\xaapartitions\x08\xa5keyed\xc3\xa5flush\xa4sync\xacretention_ms\xcd\xea`\xafretention_bytes\xc0\xa5lanes\x01\xa7leaders\x91\x82\xa4node\x01\xa5epoch\x00",
        ),
        golden(
            OffsetOk {
                offset: Offset(1),
                start_offset: Offset(0),
                high_watermark: Offset(9),
                log_end_offset: Offset(10),
            },
            r"\x84\xa6offset\x01\xacstart_offset\x00\xaehigh_watermark\t\xaelog_end_offset\n",
        ),
        golden(
            ProducerOk {
                producer: ProducerId(4),
                epoch: ProducerEpoch(1),
            },
            r"\x82\xa8producer\x04\xa5epoch\x01",
        ),
        golden(
            StatusOk {
                sealed: Some("s".into()),
                ready: true,
                ..StatusOk::default()
            },
            r"\x8c\xa9uptime_ms\x00\xabconnections\x00\xa9log_bytes\x00\xa8segments\x00\xafbytes_in_flight\x00\xa6sealed\xa1s\xa7version\xa0\xa5ready\xc3\xa5reads\x00\xb0read_ahead_bytes\x00\xafread_ahead_hits\x00\xb1read_ahead_misses\x00",
        ),
        golden(
            Stored {
                first_offset: Some(Offset(300)),
                first_number: RecordNumber(301),
                appended: WallMs(1_700_000_000_000),
                status: SendStatus::FlushDiskTimeout,
                duplicate: true,
                timers: None,
            },
            r"\x95\xcd\x01,\xcd\x01-\xcf\x00\x00\x01\x8b\xcf\xe5h\x00\xb2FLUSH_DISK_TIMEOUT\xc3",
        ),
        golden(
            Stored {
                timers: Some(StoredTimers {
                    wall: WallMs(5),
                    key: TimerKey(1, 2),
                }),
                ..Stored::default()
            },
            r"\x96\xc0\x00\x00\xa7SEND_OK\xc2\x92\x05\x92\x01\x02",
        ),
        golden(
            TimerOk {
                state: TimerState::AlreadyFired { offset: Offset(3) },
            },
            r"\x81\xa5state\x81\xadalready_fired\x81\xa6offset\x03",
        ),
        golden(
            TimersOk {
                next: Some(RecordNumber(9)),
                pending: 4,
            },
            r"\x82\xa4next\t\xa7pending\x04",
        ),
        golden(Accepted {}, r"\x80"),
        golden(
            ReaderOk {
                first_offset: Offset(1),
                start_offset: Offset(0),
                high_watermark: Offset(9),
            },
            r"\x83\xacfirst_offset\x01\xacstart_offset\x00\xaehigh_watermark\t",
        ),
        golden(
            Refused::new(Code::NotLeader, "m")
                .after_ms(5)
                .detail("node", 2),
            r"\x84\xa4code\x1a\xa7message\xa1m\xa8after_ms\x05\xa6detail\x81\xa4node\xa12",
        ),
    ]
}

fn golden_events() -> Vec<Bytes> {
    vec![
        golden(
            Credit {
                reader: 2,
                bytes: 1_000,
            },
            r"\x92\x02\xcd\x03\xe8",
        ),
        golden(CloseReader { reader: 2 }, r"\x81\xa6reader\x02"),
        golden(StreamOpen { reader: 2 }, r"\x81\xa6reader\x02"),
        golden(
            Deliver {
                reader: 2,
                first_offset: Offset(1),
                first_number: RecordNumber(1),
                count: 3,
                skip: 1,
                appended: WallMs(8),
                high_watermark: Offset(4),
            },
            r"\x97\x02\x01\x01\x03\x01\x08\x04",
        ),
        golden(
            DeliverPublished {
                reader: 2,
                first_offset: Offset(1),
                count: 3,
                skip: 1,
                high_watermark: Offset(4),
            },
            r"\x95\x02\x01\x03\x01\x04",
        ),
        golden(
            ReaderEnd {
                reader: 2,
                reason: EndReason::Waited,
                next_offset: Offset(4),
            },
            r"\x83\xa6reader\x02\xa6reason\xa6waited\xabnext_offset\x04",
        ),
        golden(Goodbye { reason: "r".into() }, r"\x81\xa6reason\xa1r"),
    ]
}

#[test]
fn every_kind_has_its_golden_header() {
    let kinds: Vec<FrameKind> = golden_frames()
        .iter()
        .map(|bytes| decode_all(bytes)[0].kind().unwrap())
        .collect();
    let mut sorted = kinds.clone();
    sorted.sort_unstable();
    sorted.dedup();
    let mut all = FrameKind::ALL.to_vec();
    all.sort_unstable();
    assert_eq!(sorted, all);
}

#[test]
fn a_frame_has_its_golden_bytes() {
    let bytes = frame_of(
        &Credit {
            reader: 2,
            bytes: 3,
        },
        0x0102_0304,
        b"ab",
    );
    let golden = [
        17, 0, 0, 0, 0x01, 0x80, 3, 0, 4, 3, 2, 1, 0, 0, 0, 0, 0x92, 2, 3, b'a', b'b',
    ];
    assert_eq!(bytes.as_ref(), golden);
}

#[test]
fn a_reader_that_cannot_go_on_says_why() {
    let end = ReaderEnd {
        reader: 1,
        reason: EndReason::Refused(Refused::new(Code::Damaged, "d")),
        next_offset: Offset(2),
    };
    let frame = &decode_all(&frame_of(&end, 0, b""))[0];
    assert_eq!(frame.decode::<ReaderEnd>().unwrap(), end);
}

#[test]
fn lists_travel_in_bodies() {
    let topics = vec![info(), info()];
    assert_eq!(decode_list::<TopicInfo>(&encode_list(&topics)), Ok(topics));
    assert_eq!(decode_list::<ActorInfo>(b""), Ok(vec![]));
    assert!(decode_list::<ActorInfo>(b"\xdd\xff\xff\xff\xff").is_err());
}

#[test]
fn unknown_fields_are_ignored_and_absent_ones_have_defaults() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Later {
        reader: u64,
        reason: String,
        topics: Vec<String>,
        novelty: Vec<(u8, String)>,
    }
    header!(Later, Metadata);
    let later = Later {
        reader: 1,
        reason: "r".into(),
        topics: vec!["t".into()],
        novelty: vec![(1, "n".into())],
    };
    let frame = &decode_all(&frame_of(&later, 1, b""))[0];
    assert_eq!(frame.decode::<Metadata>().unwrap().topics, ["t"]);
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Empty {}
    header!(Empty, Metadata);
    let frame = &decode_all(&frame_of(&Empty {}, 1, b""))[0];
    assert_eq!(frame.decode::<Metadata>().unwrap(), Metadata::default());
    assert!(matches!(
        frame.decode::<Ping>(),
        Err(FrameError::Unexpected { .. })
    ));
}

#[test]
fn w2_four_gibibytes_are_refused_before_anything_is_allocated() {
    let mut prefix = [0xff; PREFIX_BYTES];
    let limits = FrameLimits::default();
    assert_eq!(
        FramePrefix::parse(&prefix, limits),
        Err(FrameError::TooLarge {
            length: (1 << 32) + 3,
            limit: FRAME_BYTES_MAX_DEFAULT
        })
    );
    let mut decoder = FrameDecoder::new(limits);
    assert!(decoder.feed(&mut &prefix[..]).is_err());
    // A header longer than the frame.
    prefix[..4].copy_from_slice(&20u32.to_le_bytes());
    assert_eq!(
        FramePrefix::parse(&prefix, limits),
        Err(FrameError::Malformed { length: 20 })
    );
    // One byte over the limit is refused, the limit itself is not.
    for (over, refused) in [(0, false), (1, true)] {
        let length = u32::try_from(FRAME_BYTES_MAX_DEFAULT - 4 + over).unwrap();
        prefix[..4].copy_from_slice(&length.to_le_bytes());
        prefix[6..8].fill(0);
        assert_eq!(FramePrefix::parse(&prefix, limits).is_err(), refused);
    }
}

#[test]
fn a_header_beyond_its_length_field_is_refused_and_leaves_nothing() {
    let mut out = BytesMut::from(&b"before"[..]);
    let long = Goodbye {
        reason: "x".repeat(70_000),
    };
    assert!(encode(&long, 0, 0, &mut out).is_err());
    assert_eq!(out.as_ref(), b"before");
}

#[test]
fn kinds_have_classes() {
    for kind in FrameKind::ALL {
        assert_eq!(FrameKind::from_u16(*kind as u16), Some(*kind));
    }
    assert_eq!(FrameKind::from_u16(0), None);
    assert_eq!(FrameClass::of(0x3fff), FrameClass::Request);
    assert_eq!(
        FrameClass::of(FrameKind::Refused as u16),
        FrameClass::Answer
    );
    assert_eq!(FrameClass::of(0xffff), FrameClass::Event);
}

#[test]
fn status_words_are_the_sources() {
    for status in [
        SendStatus::SendOk,
        SendStatus::FlushDiskTimeout,
        SendStatus::FlushSlaveTimeout,
        SendStatus::SlaveNotAvailable,
    ] {
        let encoded = rmp_serde::to_vec(&status).unwrap();
        assert_eq!(&encoded[1..], status.name().as_bytes());
    }
    for byte in 0..=255u8 {
        assert_eq!(Ack::try_from(byte).is_ok(), byte < 3);
    }
}

proptest! {
    /// The naive model: the concatenation, cut anywhere, gives the same frames.
    #[test]
    fn frames_come_out_however_the_stream_is_cut(
        order in proptest::collection::vec(any::<prop::sample::Index>(), 1..8),
        cuts in proptest::collection::vec(1usize..60, 1..60),
    ) {
        let all = golden_frames();
        let chosen: Vec<&Bytes> = order.iter().map(|index| index.get(&all)).collect();
        let stream: Vec<u8> = chosen.iter().flat_map(|bytes| bytes.to_vec()).collect();
        let mut rest = stream.as_slice();
        let mut decoder = FrameDecoder::new(FrameLimits::default());
        let mut frames = Vec::new();
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let (mut piece, after) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            rest = after;
            while let Some(frame) = decoder.feed(&mut piece).unwrap() {
                frames.push(frame);
            }
            prop_assert!(!piece.has_remaining());
        }
        prop_assert!(decoder.is_between_frames());
        let expected: Vec<Frame> = chosen.iter().flat_map(|bytes| decode_all(bytes)).collect();
        prop_assert_eq!(frames, expected);
    }
}

/// xorshift64*: the fuzz must not depend on a generator that changes between versions.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Decodes a frame as what it says it is, and its body as everything a body can be.
fn decode_as_told(frame: &Frame) {
    match frame.kind() {
        Some(FrameKind::Hello) => drop(frame.decode::<Hello>()),
        Some(FrameKind::Ping) => drop(frame.decode::<Ping>()),
        Some(FrameKind::Metadata) => drop(frame.decode::<Metadata>()),
        Some(FrameKind::CreateTopic) => drop(frame.decode::<CreateTopic>()),
        Some(FrameKind::DescribeTopic) => drop(frame.decode::<DescribeTopic>()),
        Some(FrameKind::AlterTopic) => drop(frame.decode::<AlterTopic>()),
        Some(FrameKind::DeleteTopic) => drop(frame.decode::<DeleteTopic>()),
        Some(FrameKind::LookupOffset) => drop(frame.decode::<LookupOffset>()),
        Some(FrameKind::OpenProducer) => drop(frame.decode::<OpenProducer>()),
        Some(FrameKind::Status) => drop(frame.decode::<Status>()),
        Some(FrameKind::Produce) => drop(frame.decode::<Produce>()),
        Some(FrameKind::OpenReader) => drop(frame.decode::<OpenReader>()),
        Some(FrameKind::HelloOk) => drop(frame.decode::<HelloOk>()),
        Some(FrameKind::Pong) => drop(frame.decode::<Pong>()),
        Some(FrameKind::MetadataOk) => drop(frame.decode::<MetadataOk>()),
        Some(FrameKind::TopicOk) => drop(frame.decode::<TopicOk>()),
        Some(FrameKind::OffsetOk) => drop(frame.decode::<OffsetOk>()),
        Some(FrameKind::ProducerOk) => drop(frame.decode::<ProducerOk>()),
        Some(FrameKind::StatusOk) => drop(frame.decode::<StatusOk>()),
        Some(FrameKind::Stored) => drop(frame.decode::<Stored>()),
        Some(FrameKind::Accepted) => drop(frame.decode::<Accepted>()),
        Some(FrameKind::ReaderOk) => drop(frame.decode::<ReaderOk>()),
        Some(FrameKind::Refused) => drop(frame.decode::<Refused>()),
        Some(FrameKind::Credit) => drop(frame.decode::<Credit>()),
        Some(FrameKind::CloseReader) => drop(frame.decode::<CloseReader>()),
        Some(FrameKind::StreamOpen) => drop(frame.decode::<StreamOpen>()),
        Some(FrameKind::Deliver) => drop(frame.decode::<Deliver>()),
        Some(FrameKind::DeliverPublished) => {
            drop(frame.decode::<DeliverPublished>());
            drop(RecordDetail::parse_all(&frame.body));
        }
        Some(FrameKind::AskTimer) => drop(frame.decode::<AskTimer>()),
        Some(FrameKind::ListTimers) => drop(frame.decode::<ListTimers>()),
        Some(FrameKind::TimerOk) => drop(frame.decode::<TimerOk>()),
        Some(FrameKind::TimersOk) => drop(frame.decode::<TimersOk>()),
        Some(FrameKind::ReaderEnd) => drop(frame.decode::<ReaderEnd>()),
        Some(FrameKind::Goodbye) => drop(frame.decode::<Goodbye>()),
        Some(FrameKind::OpenSession) => drop(frame.decode::<OpenSession>()),
        Some(FrameKind::EndTransaction) => drop(frame.decode::<EndTransaction>()),
        Some(FrameKind::ListTransactions) => drop(frame.decode::<ListTransactions>()),
        Some(FrameKind::Attach) => drop(frame.decode::<Attach>()),
        Some(FrameKind::AttachUpTo) => drop(frame.decode::<AttachUpTo>()),
        Some(FrameKind::SessionOk) => drop(frame.decode::<SessionOk>()),
        Some(FrameKind::TransactionEnded) => drop(frame.decode::<TransactionEnded>()),
        Some(FrameKind::TransactionsOk) => drop(frame.decode::<TransactionsOk>()),
        Some(FrameKind::CheckBack) => drop(frame.decode::<CheckBack>()),
        Some(FrameKind::CheckedBack) => drop(frame.decode::<CheckedBack>()),
        Some(kind) => groups::decode_as_told(kind, frame),
        None => {}
    }
    let _ = decode_list::<TopicInfo>(&frame.body);
    let _ = decode_list::<PartitionInfo>(&frame.body);
    let _ = decode_list::<ActorInfo>(&frame.body);
    let _ = facts(&frame.body);
    let Ok(view) = BatchView::parse_structure(&frame.body) else {
        return;
    };
    if let Ok(bodies) = view.bodies() {
        for (_, body) in bodies.flatten() {
            let _ = RecordBody::decode(&body);
        }
    }
}

fn produce_frame(compression: Compression) -> Vec<u8> {
    use crate::domain::batch::{BatchBuilder, BatchStamp};
    let mut builder = BatchBuilder::new(10_000, compression);
    for n in 0..5 {
        let record = Record::new(vec![n; 50]).key("k").tag("t").header("h", "v");
        builder
            .push(&record, MessageId([n; 16]), WallMs(0))
            .unwrap();
    }
    let batch = builder.finish(BatchStamp::default()).unwrap();
    let mut out = BytesMut::new();
    encode(&Produce::default(), 1, batch.len(), &mut out).unwrap();
    out.extend_from_slice(&batch);
    out.to_vec()
}

/// W1 by force: mutations of valid frames and plain noise. A quarter of a second by default;
/// `WATERWHEEL_FUZZ_SECONDS` for longer, `WATERWHEEL_FUZZ_SEED` for another start.
#[test]
fn w1_no_bytes_make_a_decoder_panic() {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seed = number("WATERWHEEL_FUZZ_SEED").unwrap_or(0x5eed);
    let time =
        number("WATERWHEEL_FUZZ_SECONDS").map_or(Duration::from_millis(250), Duration::from_secs);
    println!("seed {seed}");
    let mut random = Seeded(seed.max(1));
    let mut valid: Vec<Vec<u8>> = golden_frames().iter().map(|bytes| bytes.to_vec()).collect();
    valid.extend([Compression::None, Compression::Lz4, Compression::Zstd].map(produce_frame));
    let started = Instant::now();
    let mut decoded = 0u64;
    while started.elapsed() < time {
        let mut bytes = valid[random.below(valid.len())].clone();
        for _ in 0..=random.below(4) {
            mutate(&mut bytes, &mut random);
        }
        let mut decoder = FrameDecoder::new(FrameLimits::for_batches(20_000));
        let mut piece = bytes.as_slice();
        while let Ok(Some(frame)) = decoder.feed(&mut piece) {
            decode_as_told(&frame);
            decoded += 1;
        }
        // The same bytes as a body, where no prefix protects the decoder behind it.
        let body = Bytes::from(bytes);
        let _ = RecordBody::decode(&body);
        let _ = BatchView::parse(&body);
    }
    assert!(
        decoded > 100,
        "the fuzz must get past the prefix: {decoded}"
    );
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Seeded) {
    if bytes.is_empty() {
        bytes.push(random.next() as u8);
    }
    let at = random.below(bytes.len());
    match random.below(7) {
        0 => bytes[at] = random.next() as u8,
        1 => bytes[at] ^= 1 << random.below(8),
        2 => bytes.truncate(at),
        3 => bytes.insert(at, random.next() as u8),
        4 => bytes[at] = [0, 0xff, 0x7f, 0x80, 0xc0, 0xdd, 0xdf][random.below(7)],
        5 => bytes[at..]
            .iter_mut()
            .for_each(|b| *b = random.next() as u8),
        _ => {
            let again = bytes[at..].to_vec();
            bytes.extend(again);
        }
    }
    // Mostly keep the frame's own length true, so that what lies behind it is reached.
    if bytes.len() >= PREFIX_BYTES && random.below(4) != 0 {
        let length = u32::try_from(bytes.len() - 4).unwrap();
        bytes[..4].copy_from_slice(&length.to_le_bytes());
    }
}

//! Every code a broker can refuse with, provoked over QUIC.
//!
//! A code without a way to provoke it fails the test: either it is sent, or it is not in the enum.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use waterwheel::actors::directory::FailOwner;
use waterwheel::config::Config;
use waterwheel::domain::batch::{BatchBuilder, BatchStamp, Compression, Delivery};
use waterwheel::domain::id::{
    MessageId, Offset, ProducerEpoch, ProducerId, ProducerSequence, TransactionNumber,
};
use waterwheel::domain::record::Record;
use waterwheel::domain::time::WallMs;
use waterwheel::wire::code::{Code, Refused};
use waterwheel::wire::frame::FrameKind;
use waterwheel::wire::hello::Hello;
use waterwheel::wire::produce::{Ack, Produce};
use waterwheel::wire::reader::{Credit, OpenReader};
use waterwheel::wire::transaction::{
    EndTransaction, OpenSession, Outcome, SessionOk, TransactionEnded,
};
use waterwheel::wire::topic::{AlterTopic, At, TopicConfig, TopicInfo, TopicOk};

use crate::client::{Client, Producer, Stream, batch, close_code, owner_of, pull, push, to};
use crate::disk::{Faults, FaultyDisk};
use crate::group_codes::*;
use crate::failure::{fail_and_wait, spoil};
use crate::hostile::{frame, whole};
use crate::rig::{Node, Rig, config, run};

/// What no broker of today can be brought to send.
const RESERVED: &[(Code, &str)] = &[
    (
        Code::NotLeader,
        "there is one node, and it leads every partition",
    ),
    (
        Code::ListFull,
        "it takes thousands of gaps; the tests of the group's machine provoke it",
    ),
];

type Provoked = Pin<Box<dyn Future<Output = Code>>>;
type Provoke = fn() -> Provoked;

macro_rules! provocations {
    ($($code:ident => $function:ident,)*) => {
        const PROVOCATIONS: &[(Code, Provoke)] =
            &[$((Code::$code, || Box::pin($function())),)*];
    };
}

provocations! {
    UnknownTopic => unknown_topic,
    TopicExists => topic_exists,
    InvalidName => invalid_name,
    InvalidConfig => invalid_config,
    PartitionOutOfRange => partition_out_of_range,
    KeyedTopic => keyed_topic,
    OffsetOutOfRange => offset_out_of_range,
    BatchMalformed => batch_malformed,
    BatchChecksum => batch_checksum,
    BatchTooLarge => batch_too_large,
    UnsupportedBatchVersion => unsupported_batch_version,
    FrameMalformed => frame_malformed,
    FrameTooLarge => frame_too_large,
    Unsupported => unsupported,
    HelloRequired => hello_required,
    SequenceGap => sequence_gap,
    ProducerStateLost => producer_state_lost,
    ProducerFenced => producer_fenced,
    TooManyProducers => too_many_producers,
    TooManyReaders => too_many_readers,
    TooManyConnections => too_many_connections,
    ReaderExists => reader_exists,
    CreditExceeded => credit_exceeded,
    Throttled => throttled,
    Retry => retry,
    StaleEpoch => stale_epoch,
    LogSealed => log_sealed,
    DiskFull => disk_full,
    OwnerStopped => owner_stopped,
    Damaged => damaged,
    ShuttingDown => shutting_down,
    Internal => internal,
    TooManyTimers => too_many_timers,
    DelayTooLong => delay_too_long,
    MixedDelivery => mixed_delivery,
    TransactionUnknown => transaction_unknown,
    TransactionDecided => transaction_decided,
    TransactionLimit => transaction_limit,
    UnknownGroup => unknown_group,
    UnknownSubscription => unknown_subscription,
    SubscriptionMismatch => subscription_mismatch,
    SubscriptionExists => subscription_exists,
    UnknownMember => unknown_member,
    MemberFenced => member_fenced,
    TooManyMembers => too_many_members,
    UnknownLease => unknown_lease,
    StaleGeneration => stale_generation,
    InvalidFilter => invalid_filter,
    InvalidSubscription => invalid_subscription,
    GroupInUse => group_in_use,
    TooManySubscriptions => too_many_subscriptions,
}

#[test]
fn every_code_is_provoked_or_reserved_with_a_reason() {
    for code in Code::ALL {
        let ways = PROVOCATIONS
            .iter()
            .filter(|(provoked, _)| provoked == code)
            .count();
        let reserved = RESERVED
            .iter()
            .filter(|(reserved, _)| reserved == code)
            .count();
        assert_eq!(
            ways + reserved,
            1,
            "{code} must be provoked, or not be there"
        );
    }
    run(async {
        let mut answers = stream::iter(PROVOCATIONS)
            .map(|(code, provoke)| async move { (code, provoke().await) })
            .buffer_unordered(8);
        while let Some((code, answer)) = answers.next().await {
            assert_eq!(answer, *code);
        }
    });
}

/// A broker with a topic of one partition, a client, and a producer.
struct Stage {
    rig: Rig,
    client: Client,
    topic: TopicInfo,
    producer: Producer,
}

impl Stage {
    async fn set() -> Self {
        Self::set_with(|_| {}).await
    }

    async fn set_with(change: impl FnOnce(&mut Config)) -> Self {
        let rig = Rig::start_with(change).await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let producer = client.producer().await;
        Self {
            rig,
            client,
            topic,
            producer,
        }
    }

    fn to(&self) -> Produce {
        to(self.topic.id, 0, Ack::Durable)
    }

    async fn produce(&mut self, batch: Bytes) -> Code {
        let header = self.to();
        code(self.producer.stream.produce(header, batch).await)
    }

    async fn open(&mut self, open: OpenReader) -> Code {
        code(self.client.ask::<_, TopicOk>(&open).await)
    }
}

fn code<T: std::fmt::Debug>(answer: Result<T, Refused>) -> Code {
    answer.expect_err("refused").code()
}

fn plain(value: &str) -> Bytes {
    batch(BatchStamp::default(), &[value])
}

/// A session of a transactional id, by hand, with one batch of its first transaction stored.
async fn session(stage: &mut Stage) -> (SessionOk, Produce) {
    let open = OpenSession {
        name: "till".to_owned(),
        ..OpenSession::default()
    };
    let session: SessionOk = stage.client.ask(&open).await.unwrap();
    let header = stage.to();
    let half = half(session, 1, 0);
    stage.producer.stream.produce(header, half).await.unwrap();
    (session, header)
}

fn half(session: SessionOk, number: u64, first: u64) -> Bytes {
    let stamp = BatchStamp {
        producer: session.producer,
        epoch: session.epoch,
        first_sequence: ProducerSequence(first),
        transaction: TransactionNumber(number),
    };
    batch(stamp, &["half"])
}

fn end(session: SessionOk, number: u64, outcome: Outcome) -> EndTransaction {
    EndTransaction {
        producer: session.producer,
        epoch: session.epoch,
        number: TransactionNumber(number),
        outcome,
        operator: false,
    }
}

async fn transaction_unknown() -> Code {
    let mut stage = Stage::set().await;
    let (session, _) = session(&mut stage).await;
    let end = end(session, 7, Outcome::Commit);
    code(stage.client.ask::<_, TransactionEnded>(&end).await)
}

async fn transaction_decided() -> Code {
    let mut stage = Stage::set().await;
    let (session, header) = session(&mut stage).await;
    let commit = end(session, 1, Outcome::Commit);
    stage.client.ask::<_, TransactionEnded>(&commit).await.unwrap();
    let opposite = end(session, 1, Outcome::Rollback);
    let refused = code(stage.client.ask::<_, TransactionEnded>(&opposite).await);
    assert_eq!(refused, Code::TransactionDecided);
    let late = half(session, 1, 1);
    code(stage.producer.stream.produce(header, late).await)
}

async fn transaction_limit() -> Code {
    let mut stage = Stage::set_with(|config| config.transactions_per_session_max = 1).await;
    let (session, header) = session(&mut stage).await;
    let second = half(session, 2, 1);
    code(stage.producer.stream.produce(header, second).await)
}

/// A batch whose records are delivered so.
fn deliveries(of: &[Delivery]) -> Bytes {
    stamped_deliveries(BatchStamp::default(), of)
}

fn stamped_deliveries(stamp: BatchStamp, of: &[Delivery]) -> Bytes {
    let mut builder = BatchBuilder::new(usize::MAX, Compression::None);
    for delivery in of {
        let record = Record::new("later");
        builder
            .push_with(&record, MessageId::default(), WallMs(1), 0, *delivery)
            .unwrap();
    }
    builder.finish(stamp).unwrap()
}

const HOUR: Delivery = Delivery::After(3_600_000);

async fn too_many_timers() -> Code {
    let mut stage = Stage::set_with(|config| config.timers_max = 1).await;
    let (header, last) = (stage.to(), stamped_deliveries(stage.producer.stamp(0), &[HOUR]));
    for _ in 0..2 {
        // Sent again it is stored already, and not one too many.
        let stored = stage.producer.stream.produce(header, last.clone()).await;
        stored.expect("there is room for one");
    }
    stage.produce(deliveries(&[HOUR, HOUR])).await
}

async fn delay_too_long() -> Code {
    let mut stage = Stage::set_with(|config| config.delay_ms_max = 1_000).await;
    stage.produce(deliveries(&[HOUR])).await
}

async fn mixed_delivery() -> Code {
    let mut stage = Stage::set().await;
    stage.produce(deliveries(&[HOUR, Delivery::Now])).await
}

async fn unknown_topic() -> Code {
    code(Rig::start().await.client().await.describe("none").await)
}

async fn topic_exists() -> Code {
    let mut stage = Stage::set().await;
    code(
        stage
            .client
            .create_with("orders", TopicConfig::new(1))
            .await,
    )
}

async fn invalid_name() -> Code {
    let mut stage = Stage::set().await;
    code(
        stage
            .client
            .create_with("two words", TopicConfig::new(1))
            .await,
    )
}

async fn invalid_config() -> Code {
    let mut stage = Stage::set().await;
    code(stage.client.create_with("empty", TopicConfig::new(0)).await)
}

async fn partition_out_of_range() -> Code {
    let mut stage = Stage::set().await;
    let topic = stage.topic.id;
    code(stage.client.lookup(topic, 1, At::Latest).await)
}

async fn keyed_topic() -> Code {
    let mut stage = Stage::set().await;
    let alter = AlterTopic {
        name: "orders".to_owned(),
        partitions: Some(2),
        ..AlterTopic::default()
    };
    code(stage.client.ask::<_, TopicOk>(&alter).await)
}

async fn offset_out_of_range() -> Code {
    let mut stage = Stage::set().await;
    let topic = stage.topic.id;
    stage.open(pull(topic, 0, At::Offset(Offset(1)))).await
}

async fn batch_malformed() -> Code {
    Stage::set().await.produce(plain("x").slice(..10)).await
}

async fn batch_checksum() -> Code {
    let mut bad = plain("value").to_vec();
    *bad.last_mut().unwrap() ^= 1;
    Stage::set().await.produce(bad.into()).await
}

async fn batch_too_large() -> Code {
    // Longer than a batch may be, shorter than a frame.
    let mut stage = Stage::set().await;
    let most = stage.client.hello.limits.batch_bytes_max as usize;
    stage
        .produce(batch(BatchStamp::default(), &[vec![0; most]]))
        .await
}

async fn unsupported_batch_version() -> Code {
    let mut later = plain("x").to_vec();
    later[0] = 99;
    let refused = Stage::set().await.produce(later.into()).await;
    // And a client that reads nothing this broker writes is told at once.
    let rig = Rig::start().await;
    let (_endpoint, connection) = rig.node.dial().await;
    let (send, recv) = connection.open_bi().await.unwrap();
    let hello = Hello {
        batch_versions: vec![99],
        ..Hello::default()
    };
    Stream::new(send, recv).request(&hello, Bytes::new()).await;
    assert_eq!(close_code(&connection.closed().await), refused);
    refused
}

async fn frame_malformed() -> Code {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    client
        .control
        .raw(&frame(0, FrameKind::Ping as u16, &[], 1))
        .await;
    client.closed_with().await
}

async fn frame_too_large() -> Code {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    client
        .control
        .raw(&frame(u32::MAX, FrameKind::Produce as u16, &[], 1))
        .await;
    client.closed_with().await
}

async fn unsupported() -> Code {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    client.control.raw(&whole(0x0fff, &[], 1)).await;
    client
        .control
        .answer(1)
        .await
        .decode::<Refused>()
        .unwrap()
        .code()
}

async fn hello_required() -> Code {
    let rig = Rig::start().await;
    let (_endpoint, connection) = rig.node.dial().await;
    let (send, recv) = connection.open_bi().await.unwrap();
    Stream::new(send, recv)
        .raw(&whole(FrameKind::Ping as u16, &[0x80], 1))
        .await;
    close_code(&connection.closed().await)
}

async fn sequence_gap() -> Code {
    let mut stage = Stage::set().await;
    stage.producer.store(&stage.topic, 0, &["first"]).await;
    let gap = batch(stage.producer.stamp(2), &["third"]);
    stage.produce(gap).await
}

async fn producer_state_lost() -> Code {
    let mut stage = Stage::set().await;
    let unknown = batch(stage.producer.stamp(7), &["late"]);
    stage.produce(unknown).await
}

async fn producer_fenced() -> Code {
    let mut stage = Stage::set().await;
    let later = BatchStamp {
        epoch: ProducerEpoch(1),
        ..stage.producer.stamp(0)
    };
    let header = stage.to();
    stage
        .producer
        .stream
        .produce(header, batch(later, &["later"]))
        .await
        .unwrap();
    let earlier = batch(stage.producer.stamp(0), &["earlier"]);
    stage.produce(earlier).await
}

async fn too_many_producers() -> Code {
    let mut stage = Stage::set_with(|config| config.producers_per_partition_max = 2).await;
    let header = stage.to();
    for producer in [100, 101] {
        let stamp = BatchStamp {
            producer: ProducerId(producer),
            ..BatchStamp::default()
        };
        stage
            .producer
            .stream
            .produce(header, batch(stamp, &["x"]))
            .await
            .unwrap();
    }
    let third = BatchStamp {
        producer: ProducerId(102),
        ..BatchStamp::default()
    };
    stage.produce(batch(third, &["x"])).await
}

async fn too_many_readers() -> Code {
    let mut stage = Stage::set_with(|config| config.readers_per_connection_max = 1).await;
    let topic = stage.topic.id;
    stage
        .client
        .open_reader(&push(topic, 0, At::Latest, 1))
        .await
        .unwrap();
    stage.open(push(topic, 0, At::Latest, 1)).await
}

async fn too_many_connections() -> Code {
    let stage = Stage::set_with(|config| config.connections_max = 1).await;
    close_code(&stage.rig.node.try_client().await.err().unwrap())
}

async fn reader_exists() -> Code {
    let mut stage = Stage::set().await;
    let open = push(stage.topic.id, 0, At::Latest, 1);
    stage.client.open_reader(&open).await.unwrap();
    stage.open(open).await
}

async fn credit_exceeded() -> Code {
    let mut stage = Stage::set().await;
    let topic = stage.topic.id;
    let (_, reader) = stage
        .client
        .open_reader(&push(topic, 0, At::Latest, 1))
        .await
        .unwrap();
    stage
        .client
        .control
        .event(&Credit {
            reader: reader.id,
            bytes: u64::MAX,
        })
        .await;
    stage.client.closed_with().await
}

async fn stale_epoch() -> Code {
    let mut stage = Stage::set().await;
    let open = OpenReader {
        leader_epoch: 1,
        ..pull(stage.topic.id, 0, At::Latest)
    };
    let by_reader = stage.open(open).await;
    let header = Produce {
        leader_epoch: 1,
        ..stage.to()
    };
    let by_producer = code(stage.producer.stream.produce(header, plain("x")).await);
    assert_eq!(by_reader, by_producer);
    by_producer
}

/// A broker on a disk with faults, a topic, and a producer that has stored one batch.
struct Trial {
    dir: tempfile::TempDir,
    node: Node,
    faults: Arc<Faults>,
    client: Client,
    topic: TopicInfo,
    producer: Producer,
}

impl Trial {
    async fn begin(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let (disk, faults) = FaultyDisk::of(dir.path());
        let node = Node::try_start(config, Some(disk)).await.unwrap();
        let mut client = node.client().await;
        let topic = client.create("orders", 1).await;
        let mut producer = client.producer().await;
        producer.store(&topic, 0, &["first"]).await;
        Self {
            dir,
            node,
            faults,
            client,
            topic,
            producer,
        }
    }

    /// Sends a batch that stands still on its way to the disk, and returns its correlation id.
    async fn stand_still(&mut self) -> u64 {
        self.faults.hold();
        let held = self
            .producer
            .offer(&self.topic, 0, &["held"], Ack::Durable)
            .await;
        self.faults.is_holding().await;
        held
    }
}

async fn throttled() -> Code {
    let mut trial = Trial::begin(|_| {}).await;
    let mut sent = vec![trial.stand_still().await];
    let window = trial.client.hello.limits.in_flight_batches_max;
    for _ in 0..window {
        sent.push(
            trial
                .producer
                .offer(&trial.topic, 0, &["more"], Ack::Durable)
                .await,
        );
    }
    let refused = trial
        .producer
        .stream
        .stored(sent.pop().unwrap())
        .await
        .unwrap_err();
    assert!(refused.after_ms.is_some());
    trial.faults.release();
    for correlation in sent {
        trial.producer.stream.stored(correlation).await.unwrap();
    }
    refused.code()
}

async fn retry() -> Code {
    let mut trial = Trial::begin(|_| {}).await;
    let owner = owner_of(&mut trial.client, "orders", 0).await;
    let held = trial.stand_still().await;
    // Queued behind what stands still, then its actor fails: what is on the disk stands, the rest of
    // that life does not.
    let queued = trial
        .producer
        .offer(&trial.topic, 0, &["queued"], Ack::Memory)
        .await;
    trial.producer.stream.accepted(queued).await;
    let waiting = depth(&mut trial.client).await;
    trial.node.shared.directory.tell(FailOwner { owner });
    while depth(&mut trial.client).await <= waiting {
        tokio::task::yield_now().await;
    }
    trial.faults.release();
    trial.producer.stream.stored(held).await.unwrap();
    let refused = trial.producer.stream.stored(queued).await.unwrap_err();
    let again = batch(trial.producer.stamp(2), &["queued"]);
    let header = to(trial.topic.id, 0, Ack::Durable);
    trial.producer.stream.produce(header, again).await.unwrap();
    assert_eq!(
        trial.client.read_all(trial.topic.id, 0).await,
        ["first", "held", "queued"]
    );
    refused.code()
}

/// What waits in the commit actor's mailbox.
async fn depth(client: &mut Client) -> u64 {
    client.actors("commit").await[0].mailbox_depth
}

async fn log_sealed() -> Code {
    let mut trial = Trial::begin(|_| {}).await;
    trial.faults.writes_fail.store(true, Ordering::SeqCst);
    let lost = trial
        .producer
        .offer(&trial.topic, 0, &["lost"], Ack::Durable)
        .await;
    let first = trial.producer.stream.stored(lost).await.unwrap_err().code();
    trial.faults.writes_fail.store(false, Ordering::SeqCst);
    let header = to(trial.topic.id, 0, Ack::Durable);
    let later = trial
        .producer
        .stream
        .produce(header, plain("later"))
        .await
        .unwrap_err()
        .code();
    assert_eq!(first, later, "a failed write is never tried again");
    // Reads go on, and status says what has happened.
    assert_eq!(trial.client.read_all(trial.topic.id, 0).await, ["first"]);
    assert!(trial.client.status().await.0.sealed.is_some());
    // A restart re-reads the disk and goes on.
    trial.node.kill().await;
    let node = Node::try_start(config(trial.dir.path()), None)
        .await
        .unwrap();
    let mut client = node.client().await;
    client
        .control
        .produce(header, plain("later"))
        .await
        .unwrap();
    let values = client.read_all(trial.topic.id, 0).await;
    assert_eq!(values.first().map(String::as_str), Some("first"));
    assert_eq!(values.last().map(String::as_str), Some("later"));
    first
}

async fn disk_full() -> Code {
    let mut trial = Trial::begin(|_| {}).await;
    trial.faults.is_full.store(true, Ordering::SeqCst);
    let header = to(trial.topic.id, 0, Ack::Durable);
    let large = batch(BatchStamp::default(), &[vec![b'x'; 200_000]]);
    let refused = loop {
        if let Err(refused) = trial.producer.stream.produce(header, large.clone()).await {
            break refused;
        }
    };
    assert!(refused.after_ms.is_some());
    // Administration has its reserve; room again is found without a restart.
    trial.client.create("still", 1).await;
    trial.faults.is_full.store(false, Ordering::SeqCst);
    while trial
        .producer
        .stream
        .produce(header, large.clone())
        .await
        .is_err()
    {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    refused.code()
}

async fn owner_stopped() -> Code {
    let mut stage = Stage::set().await;
    stage.producer.store(&stage.topic, 0, &["x"]).await;
    let owner = owner_of(&mut stage.client, "orders", 0).await;
    for _ in 0..3 {
        fail_and_wait(&stage.rig.node, &mut stage.client, owner).await;
    }
    stage.produce(plain("x")).await
}

async fn damaged() -> Code {
    let mut stage = Stage::set_with(|config| config.tail_cache_bytes = 1).await;
    stage.producer.store(&stage.topic, 0, &["precious"]).await;
    stage.producer.store(&stage.topic, 0, &["another"]).await;
    spoil(stage.rig.dir.path(), b"precious");
    let refused = stage
        .client
        .read_from(stage.topic.id, 0, At::Earliest)
        .await
        .unwrap_err();
    assert_eq!(refused.detail["first_offset"], "0");
    assert_eq!(refused.detail["end_offset"], "1");
    let rest = stage
        .client
        .read_from(stage.topic.id, 0, At::Offset(Offset(1)))
        .await
        .unwrap();
    assert_eq!(rest.len(), 1, "the rest is served");
    refused.code()
}

async fn shutting_down() -> Code {
    let mut trial = Trial::begin(|_| {}).await;
    let held = trial.stand_still().await;
    trial.node.begin_stop();
    while !*trial.node.shared.stopping.borrow() {
        tokio::task::yield_now().await;
    }
    let late = trial
        .producer
        .offer(&trial.topic, 0, &["late"], Ack::Durable)
        .await;
    let refused = trial.producer.stream.stored(late).await.unwrap_err();
    trial.faults.release();
    trial
        .producer
        .stream
        .stored(held)
        .await
        .expect("what was in flight is answered");
    assert_eq!(
        trial.client.closed_with().await,
        refused.code(),
        "and then the connection closes"
    );
    trial.node.ended().await;
    refused.code()
}

async fn internal() -> Code {
    // The device does not answer: nothing is known to be lost, and nobody but the broker can mend it.
    let mut trial = Trial::begin(|config| config.tail_cache_bytes = 1).await;
    trial.faults.reads_fail.store(true, Ordering::SeqCst);
    let read = trial
        .client
        .read_from(trial.topic.id, 0, At::Earliest)
        .await;
    trial.faults.reads_fail.store(false, Ordering::SeqCst);
    assert_eq!(trial.client.read_all(trial.topic.id, 0).await, ["first"]);
    code(read)
}

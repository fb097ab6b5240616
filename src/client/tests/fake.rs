//! A broker in memory that speaks the wire and does what a test tells it to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use quinn::crypto::rustls::QuicServerConfig;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};

use crate::client::link::lock;
use crate::domain::batch::BatchView;
use crate::domain::id::{ClusterId, Offset, ProducerEpoch, ProducerId, RecordNumber, TopicId};
use crate::domain::time::WallMs;
use crate::wire::ALPN;
use crate::wire::code::{Code, Refused};
use crate::wire::frame::{Frame, FrameDecoder, FrameKind, FrameLimits, Header, encode};
use crate::wire::hello::{HelloOk, Limits, Pong};
use crate::wire::produce::{Accepted, Ack, Produce, ProducerOk, Stored};
use crate::wire::reader::*;
use crate::wire::status::{ActorInfo, Status, StatusOk};
use crate::wire::topic::*;

/// What becomes of a batch.
pub(super) enum Verdict {
    Store,
    /// Stored, but the connection ends before the answer.
    StoreAndHangUp,
    HangUp,
    Refuse(Refused),
    /// Neither stored nor answered.
    Ignore,
    /// Accepted at level memory, and nothing more.
    AcceptOnly,
}

type Script = Box<dyn FnMut(u64) -> Verdict + Send>;

#[derive(Clone)]
pub(super) struct StoredBatch {
    pub(super) first_offset: u64,
    pub(super) count: u32,
    pub(super) bytes: Bytes,
}

#[derive(Default)]
struct Partition {
    batches: Vec<StoredBatch>,
    end: u64,
    /// Next sequence, and what was answered, per producer.
    producers: HashMap<u64, (u64, HashMap<u64, u64>)>,
}

struct State {
    topics: Vec<TopicInfo>,
    partitions: HashMap<(u64, u32), Partition>,
    next_producer: u64,
    produced: u64,
    script: Script,
    connections: Vec<quinn::Connection>,
    connected: u64,
    /// Bytes sent to readers and the credit they were given.
    pub(super) delivered: u64,
    credit: u64,
    /// Most bytes sent beyond credit.
    overdrawn: u64,
}

#[derive(Clone)]
pub(super) struct FakeBroker {
    endpoint: quinn::Endpoint,
    config: quinn::ServerConfig,
    state: Arc<Mutex<State>>,
    appended: watch::Sender<u64>,
    pub(super) ca_pem: String,
}

fn limits() -> Limits {
    Limits {
        batch_bytes_max: 1_000_000,
        frame_bytes_max: 1_100_000,
        in_flight_batches_max: 64,
        credit_bytes_max: 64 * 1024 * 1024,
        readers_max: 100,
    }
}

impl FakeBroker {
    pub(super) fn start(topics: &[(&str, u32)]) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut crypto = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        crypto.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = QuicServerConfig::try_from(crypto).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let endpoint = quinn::Endpoint::server(config.clone(), any_port()).unwrap();
        let topics = topics
            .iter()
            .zip(1..)
            .map(|((name, partitions), id)| TopicInfo {
                name: (*name).to_owned(),
                id: TopicId(id),
                config: TopicConfig::new(*partitions),
                lanes: 1,
                leaders: Vec::new(),
            });
        let broker = Self {
            endpoint,
            config,
            state: Arc::new(Mutex::new(State {
                topics: topics.collect(),
                partitions: HashMap::new(),
                next_producer: 100,
                produced: 0,
                script: Box::new(|_| Verdict::Store),
                connections: Vec::new(),
                connected: 0,
                delivered: 0,
                credit: 0,
                overdrawn: 0,
            })),
            appended: watch::Sender::new(0),
            ca_pem: made.cert.pem(),
        };
        tokio::spawn(broker.clone().accept());
        broker
    }

    /// The same broker, on another socket and without its connections.
    pub(super) fn restarted(&self) -> Self {
        let endpoint = quinn::Endpoint::server(self.config.clone(), any_port()).unwrap();
        let broker = Self {
            endpoint,
            ..self.clone()
        };
        tokio::spawn(broker.clone().accept());
        broker
    }

    pub(super) fn address(&self) -> String {
        format!("localhost:{}", self.endpoint.local_addr().unwrap().port())
    }

    /// Decides the fate of each batch by how many came before it.
    pub(super) fn script(&self, script: impl FnMut(u64) -> Verdict + Send + 'static) {
        lock(&self.state).script = Box::new(script);
    }

    pub(super) fn hang_up(&self) {
        for connection in lock(&self.state).connections.drain(..) {
            connection.close(quinn::VarInt::from_u32(1), b"hung up");
        }
    }

    pub(super) fn connected(&self) -> u64 {
        lock(&self.state).connected
    }

    pub(super) fn delivered(&self) -> (u64, u64) {
        let state = lock(&self.state);
        (state.delivered, state.overdrawn)
    }

    pub(super) fn stored(&self, topic: u64, partition: u32) -> Vec<StoredBatch> {
        let state = lock(&self.state);
        let partition = state.partitions.get(&(topic, partition));
        partition.map_or_else(Vec::new, |partition| partition.batches.clone())
    }

    /// Puts a batch into a partition as it is, sound or not.
    pub(super) fn plant(&self, topic: u64, partition: u32, bytes: Bytes, count: u32) {
        lock(&self.state)
            .partitions
            .entry((topic, partition))
            .or_default()
            .append(bytes, count);
        self.appended.send_modify(|n| *n += 1);
    }

    async fn accept(self) {
        while let Some(incoming) = self.endpoint.accept().await {
            let broker = self.clone();
            tokio::spawn(async move {
                let Ok(connection) = incoming.await else {
                    return;
                };
                {
                    let mut state = lock(&broker.state);
                    state.connections.push(connection.clone());
                    state.connected += 1;
                }
                while let Ok((send, receive)) = connection.accept_bi().await {
                    tokio::spawn(broker.clone().serve(connection.clone(), send, receive));
                }
            });
        }
    }

    async fn serve(
        self,
        connection: quinn::Connection,
        mut send: quinn::SendStream,
        mut receive: quinn::RecvStream,
    ) -> Option<()> {
        let mut decoder = FrameDecoder::new(FrameLimits::default());
        let mut readers = HashMap::new();
        let mut out = BytesMut::new();
        while let Ok(Some(chunk)) = receive.read_chunk(usize::MAX, true).await {
            let mut piece = chunk.bytes;
            while let Some(frame) = decoder.feed(&mut piece).unwrap() {
                match frame.kind() {
                    Some(FrameKind::Produce) => self.produce(&connection, &frame, &mut out),
                    Some(FrameKind::OpenReader) => {
                        self.open_reader(&connection, &frame, &mut readers, &mut out);
                    }
                    Some(FrameKind::Credit) => {
                        let credit: Credit = frame.decode().unwrap();
                        lock(&self.state).credit += credit.bytes;
                        if let Some(reader) = readers.get(&credit.reader) {
                            let reader: &mpsc::UnboundedSender<u64> = reader;
                            let _ = reader.send(credit.bytes);
                        }
                    }
                    Some(FrameKind::CloseReader) => {
                        readers.remove(&frame.decode::<CloseReader>().unwrap().reader);
                    }
                    _ => self.answer(&frame, &mut out),
                }
                send.write_all(&out).await.ok()?;
                out.clear();
            }
        }
        None
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "what no test asks is unsupported"
    )]
    fn answer(&self, frame: &Frame, out: &mut BytesMut) {
        let id = frame.correlation();
        let mut state = lock(&self.state);
        match frame.kind().unwrap() {
            FrameKind::Hello => put(
                out,
                id,
                &HelloOk {
                    features: Vec::new(),
                    batch_versions: vec![1],
                    limits: limits(),
                    cluster: ClusterId([1; 16]),
                    node: 1,
                    version: "fake".to_owned(),
                },
                b"",
            ),
            FrameKind::Ping => put(out, id, &Pong {}, b""),
            FrameKind::Metadata => {
                let wanted = frame.decode::<Metadata>().unwrap().topics;
                let topics: Vec<&TopicInfo> = state
                    .topics
                    .iter()
                    .filter(|topic| wanted.is_empty() || wanted.contains(&topic.name))
                    .collect();
                put(out, id, &MetadataOk::default(), &encode_list(&topics));
            }
            FrameKind::CreateTopic => {
                let CreateTopic { name, config } = frame.decode().unwrap();
                if state.topics.iter().any(|topic| topic.name == name) {
                    return put(out, id, &Refused::new(Code::TopicExists, "there"), b"");
                }
                let topic = TopicInfo {
                    name,
                    id: TopicId(state.topics.len() as u64 + 1),
                    config,
                    lanes: 1,
                    leaders: Vec::new(),
                };
                state.topics.push(topic.clone());
                put(out, id, &TopicOk { topic, timers: 0 }, b"");
            }
            FrameKind::OpenProducer => {
                state.next_producer += 1;
                let answer = ProducerOk {
                    producer: ProducerId(state.next_producer),
                    epoch: ProducerEpoch(0),
                };
                put(out, id, &answer, b"");
            }
            FrameKind::Status => {
                let actors = if frame.decode::<Status>().unwrap().actors {
                    vec![ActorInfo::default()]
                } else {
                    vec![]
                };
                put(out, id, &StatusOk::default(), &encode_list(&actors));
            }
            _ => put(out, id, &Refused::new(Code::Unsupported, "no"), b""),
        }
    }

    fn produce(&self, connection: &quinn::Connection, frame: &Frame, out: &mut BytesMut) {
        let produce: Produce = frame.decode().unwrap();
        let id = frame.correlation();
        let view = BatchView::parse(&frame.body).unwrap();
        let mut state = lock(&self.state);
        let nth = state.produced;
        state.produced += 1;
        let verdict = (state.script)(nth);
        match verdict {
            Verdict::HangUp => return connection.close(quinn::VarInt::from_u32(1), b"hung up"),
            Verdict::Refuse(refused) => return put(out, id, &refused, b""),
            Verdict::Ignore => return,
            Verdict::AcceptOnly => return put(out, id, &Accepted {}, b""),
            Verdict::Store | Verdict::StoreAndHangUp => {}
        }
        let key = (produce.topic.0, produce.partition.0);
        let partition = state.partitions.entry(key).or_default();
        let taken = partition.take(&view);
        drop(state);
        if matches!(verdict, Verdict::StoreAndHangUp) {
            return connection.close(quinn::VarInt::from_u32(1), b"hung up");
        }
        match taken {
            Ok((offset, duplicate)) => {
                self.appended.send_modify(|n| *n += 1);
                if produce.ack == Ack::Memory {
                    put(out, id, &Accepted {}, b"");
                }
                if produce.ack != Ack::None {
                    let stored = Stored {
                        first_offset: Some(Offset(offset)),
                        first_number: RecordNumber(offset),
                        appended: WallMs(77),
                        duplicate,
                        ..Stored::default()
                    };
                    put(out, id, &stored, b"");
                }
            }
            Err(code) => put(out, id, &Refused::new(code, "scripted"), b""),
        }
    }

    fn open_reader(
        &self,
        connection: &quinn::Connection,
        frame: &Frame,
        readers: &mut HashMap<u64, mpsc::UnboundedSender<u64>>,
        out: &mut BytesMut,
    ) {
        let open: OpenReader = frame.decode().unwrap();
        let mut state = lock(&self.state);
        let end = state
            .partitions
            .get(&(open.topic.0, open.partition.0))
            .map_or(0, |partition| partition.end);
        let first = match open.from {
            At::Earliest | At::Time(_) => 0,
            At::Latest => end,
            At::Offset(Offset(offset)) if offset > end => {
                let refused = Refused::new(Code::OffsetOutOfRange, "beyond");
                return put(out, frame.correlation(), &refused, b"");
            }
            At::Offset(Offset(offset)) => offset,
        };
        state.credit += open.credit_bytes;
        drop(state);
        let answer = ReaderOk {
            first_offset: Offset(first),
            start_offset: Offset(0),
            high_watermark: Offset(end),
        };
        put(out, frame.correlation(), &answer, b"");
        let (sender, credits) = mpsc::unbounded_channel();
        readers.insert(open.reader, sender);
        tokio::spawn(
            self.clone()
                .deliver(connection.clone(), open, first, credits),
        );
    }

    async fn deliver(
        self,
        connection: quinn::Connection,
        open: OpenReader,
        mut next: u64,
        mut credits: mpsc::UnboundedReceiver<u64>,
    ) -> Option<()> {
        let reader = open.reader;
        let mut stream = connection.open_uni().await.ok()?;
        let mut out = BytesMut::new();
        put(&mut out, 0, &StreamOpen { reader }, b"");
        stream.write_all(&out).await.ok()?;
        let mut credit = i64::try_from(open.credit_bytes).unwrap();
        let mut appended = self.appended.subscribe();
        let mut records = 0;
        let pull = open.mode == ReaderMode::Pull;
        loop {
            let batch = self.batch_at((open.topic.0, open.partition.0), next);
            let filled = credit <= 0 || (open.records_max != 0 && records >= open.records_max);
            match batch {
                Some((batch, end)) if !(credit <= 0 || (pull && filled)) => {
                    credit -= i64::try_from(batch.bytes.len()).unwrap();
                    records += batch.count;
                    let deliver = Deliver {
                        reader,
                        first_offset: Offset(batch.first_offset),
                        first_number: RecordNumber(batch.first_offset),
                        count: batch.count,
                        skip: u32::try_from(next - batch.first_offset).unwrap(),
                        appended: WallMs(77),
                        high_watermark: Offset(end),
                    };
                    next = batch.first_offset + u64::from(batch.count);
                    out.clear();
                    put(&mut out, 0, &deliver, &batch.bytes);
                    self.count(batch.bytes.len() as u64);
                    stream.write_all(&out).await.ok()?;
                }
                _ if pull => {
                    let end = ReaderEnd {
                        reader,
                        reason: if filled {
                            EndReason::Filled
                        } else {
                            EndReason::Waited
                        },
                        next_offset: Offset(next),
                    };
                    out.clear();
                    put(&mut out, 0, &end, b"");
                    stream.write_all(&out).await.ok()?;
                    stream.finish().ok()?;
                    return Some(());
                }
                _ => tokio::select! {
                    changed = appended.changed() => changed.ok()?,
                    more = credits.recv() => credit += i64::try_from(more?).unwrap(),
                },
            }
        }
    }

    fn batch_at(&self, key: (u64, u32), offset: u64) -> Option<(StoredBatch, u64)> {
        let state = lock(&self.state);
        let partition = state.partitions.get(&key)?;
        let batch = partition
            .batches
            .iter()
            .find(|batch| batch.first_offset + u64::from(batch.count) > offset)?;
        Some((batch.clone(), partition.end))
    }

    fn count(&self, bytes: u64) {
        let mut state = lock(&self.state);
        state.delivered += bytes;
        let over = state.delivered.saturating_sub(state.credit);
        state.overdrawn = state.overdrawn.max(over);
    }
}

impl Partition {
    fn append(&mut self, bytes: Bytes, count: u32) -> u64 {
        let first_offset = self.end;
        self.end += u64::from(count);
        self.batches.push(StoredBatch {
            first_offset,
            count,
            bytes,
        });
        first_offset
    }

    fn take(&mut self, view: &BatchView) -> Result<(u64, bool), Code> {
        let header = view.header();
        let (producer, sequence) = (header.producer.0, header.first_sequence.0);
        if producer != 0 {
            let (next, answers) = self.producers.entry(producer).or_default();
            if let Some(offset) = answers.get(&sequence) {
                return Ok((*offset, true));
            }
            if sequence != *next {
                return Err(Code::SequenceGap);
            }
            *next += u64::from(header.count);
            answers.insert(sequence, self.end);
        }
        Ok((self.append(view.bytes().clone(), header.count), false))
    }
}

fn put<H: Header>(out: &mut BytesMut, correlation: u64, header: &H, body: &[u8]) {
    encode(header, correlation, body.len(), out).unwrap();
    out.extend_from_slice(body);
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Passes datagrams on between one client and one broker, which can be exchanged under the connection.
pub(super) struct Relay {
    front: SocketAddr,
    upstream: Arc<Mutex<SocketAddr>>,
}

impl Relay {
    pub(super) async fn start(broker: &FakeBroker) -> Self {
        let front = UdpSocket::bind(any_port()).await.unwrap();
        let back = UdpSocket::bind(any_port()).await.unwrap();
        let relay = Self {
            front: front.local_addr().unwrap(),
            upstream: Arc::new(Mutex::new(broker.endpoint.local_addr().unwrap())),
        };
        let upstream = Arc::clone(&relay.upstream);
        tokio::spawn(async move {
            let mut client = None;
            let (mut there, mut here) = (vec![0; 70_000], vec![0; 70_000]);
            loop {
                tokio::select! {
                    Ok((length, from)) = front.recv_from(&mut there) => {
                        client = Some(from);
                        let to = *lock(&upstream);
                        let _ = back.send_to(&there[..length], to).await;
                    }
                    Ok((length, from)) = back.recv_from(&mut here) => {
                        // What the old one still says is not heard any more.
                        if let Some(client) = client && from == *lock(&upstream) {
                            let _ = front.send_to(&here[..length], client).await;
                        }
                    }
                }
            }
        });
        relay
    }

    pub(super) fn address(&self) -> String {
        format!("localhost:{}", self.front.port())
    }

    pub(super) fn lead_to(&self, broker: &FakeBroker) {
        *lock(&self.upstream) = broker.endpoint.local_addr().unwrap();
    }
}

//! A client that says exactly what a test wants it to say.
//!
//! It is not the product's: it speaks `waterwheel::wire` over quinn and hides nothing.

use std::collections::{HashMap, VecDeque};

use bytes::{Bytes, BytesMut};
use waterwheel::domain::batch::{BatchBuilder, BatchStamp, BatchView, Compression};
use waterwheel::domain::id::{
    Lane, MessageId, Offset, OwnerId, PartitionIndex, ProducerEpoch, ProducerId, ProducerSequence,
    TopicId,
};
use waterwheel::domain::record::{Record, RecordBody};
use waterwheel::domain::time::WallMs;
use waterwheel::transport::{Connection, Ended, ReceiveStream, SendStream};
use waterwheel::wire::code::{Code, Refused};
use waterwheel::wire::frame::{Frame, FrameDecoder, FrameKind, FrameLimits, Header, encode};
use waterwheel::wire::hello::{Hello, HelloOk};
use waterwheel::wire::produce::{Accepted, Ack, OpenProducer, Produce, ProducerOk, Stored};
use waterwheel::wire::reader::{
    At, Deliver, EndReason, OpenReader, ReaderEnd, ReaderMode, ReaderOk, StreamOpen,
};
use waterwheel::wire::status::{ActorInfo, Status, StatusOk};
use waterwheel::wire::topic::{
    CreateTopic, DescribeTopic, LookupOffset, OffsetOk, PartitionInfo, TopicConfig, TopicInfo,
    TopicOk, decode_list,
};

/// Frames a client takes: descriptions of large topics are long.
const CLIENT_FRAME_BYTES_MAX: usize = 16 << 20;

/// A bidirectional stream, frame by frame.
pub(crate) struct Stream {
    pub(crate) send: SendStream,
    recv: FrameReader,
    next_correlation: u64,
    stash: VecDeque<Frame>,
}

impl Stream {
    pub(crate) fn new(send: SendStream, recv: ReceiveStream) -> Self {
        let recv = FrameReader::new(recv);
        Self {
            send,
            recv,
            next_correlation: 0,
            stash: VecDeque::new(),
        }
    }

    /// Sends bytes as they are; whether they arrive is the test's question.
    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        let _ = self.send.write(&mut [Bytes::copy_from_slice(bytes)]).await;
    }

    /// Sends a frame and returns its correlation id.
    pub(crate) async fn request<H: Header>(&mut self, header: &H, body: Bytes) -> u64 {
        self.next_correlation += 1;
        let mut out = BytesMut::new();
        encode(header, self.next_correlation, body.len(), &mut out).unwrap();
        out.extend_from_slice(&body);
        self.raw(&out).await;
        self.next_correlation
    }

    /// Sends an event.
    pub(crate) async fn event<H: Header>(&mut self, header: &H) {
        let mut out = BytesMut::new();
        encode(header, 0, 0, &mut out).unwrap();
        self.raw(&out).await;
    }

    /// The next frame, whatever it is; none once the stream or the connection has ended.
    pub(crate) async fn try_next(&mut self) -> Option<Frame> {
        match self.stash.pop_front() {
            Some(frame) => Some(frame),
            None => self.recv.next().await,
        }
    }

    /// The next frame under this correlation id.
    pub(crate) async fn answer(&mut self, correlation: u64) -> Frame {
        if let Some(at) = self
            .stash
            .iter()
            .position(|frame| frame.correlation() == correlation)
        {
            return self.stash.remove(at).unwrap();
        }
        loop {
            let frame = self
                .recv
                .next()
                .await
                .expect("the broker answers before the stream ends");
            if frame.correlation() == correlation {
                return frame;
            }
            self.stash.push_back(frame);
        }
    }

    /// Asks and waits for the answer, with its body.
    pub(crate) async fn ask_with_body<Q: Header, A: Header>(
        &mut self,
        question: &Q,
    ) -> Result<(A, Bytes), Refused> {
        let correlation = self.request(question, Bytes::new()).await;
        let frame = self.answer(correlation).await;
        answer_of(&frame).map(|answer| (answer, frame.body))
    }

    /// Sends a batch and waits for its final answer.
    pub(crate) async fn produce(
        &mut self,
        header: Produce,
        batch: Bytes,
    ) -> Result<Stored, Refused> {
        let correlation = self.request(&header, batch).await;
        self.stored(correlation).await
    }

    /// The final answer to a batch.
    pub(crate) async fn stored(&mut self, correlation: u64) -> Result<Stored, Refused> {
        loop {
            let frame = self.answer(correlation).await;
            if frame.kind() != Some(FrameKind::Accepted) {
                return answer_of(&frame);
            }
        }
    }

    /// The broker says that it has the batch.
    pub(crate) async fn accepted(&mut self, correlation: u64) {
        self.answer(correlation)
            .await
            .decode::<Accepted>()
            .expect("accepted");
    }
}

/// An answer of the kind hoped for, or the refusal.
pub(crate) fn answer_of<A: Header>(frame: &Frame) -> Result<A, Refused> {
    match frame.kind() {
        Some(FrameKind::Refused) => Err(frame.decode().unwrap()),
        _ => Ok(frame
            .decode()
            .expect("an answer of the kind that belongs to the question")),
    }
}

/// Puts frames together.
pub(crate) struct FrameReader {
    recv: ReceiveStream,
    decoder: FrameDecoder,
    piece: Bytes,
}

impl FrameReader {
    pub(crate) fn new(recv: ReceiveStream) -> Self {
        let limits = FrameLimits {
            frame_bytes_max: CLIENT_FRAME_BYTES_MAX,
        };
        Self {
            recv,
            decoder: FrameDecoder::new(limits),
            piece: Bytes::new(),
        }
    }

    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self
                .decoder
                .feed(&mut self.piece)
                .expect("the broker sends frames")
            {
                return Some(frame);
            }
            match self.recv.read(std::slice::from_mut(&mut self.piece)).await {
                Ok(Some(_)) => {}
                Ok(None) => {
                    assert!(
                        self.decoder.is_between_frames(),
                        "a stream ends between frames"
                    );
                    return None;
                }
                Err(_) => return None,
            }
        }
    }
}

/// A connection with its control stream.
pub(crate) struct Client {
    pub(crate) connection: Connection,
    pub(crate) control: Stream,
    pub(crate) hello: HelloOk,
    unclaimed: HashMap<u64, FrameReader>,
    _endpoint: Option<quinn::Endpoint>,
}

impl Client {
    /// Says hello on a connection.
    pub(crate) async fn greet(
        endpoint: Option<quinn::Endpoint>,
        connection: Connection,
    ) -> Result<Self, Ended> {
        let (send, recv) = connection.open_bi().await?;
        let mut control = Stream::new(send, recv);
        let correlation = control.request(&Hello::default(), Bytes::new()).await;
        let Some(frame) = control.try_next().await else {
            return Err(connection.closed().await);
        };
        assert_eq!(frame.correlation(), correlation);
        let hello = frame.decode().unwrap();
        Ok(Self {
            connection,
            control,
            hello,
            unclaimed: HashMap::new(),
            _endpoint: endpoint,
        })
    }

    pub(crate) async fn stream(&self) -> Stream {
        let (send, recv) = self.connection.open_bi().await.unwrap();
        Stream::new(send, recv)
    }

    pub(crate) async fn ask<Q: Header, A: Header>(&mut self, question: &Q) -> Result<A, Refused> {
        self.control
            .ask_with_body(question)
            .await
            .map(|(answer, _)| answer)
    }

    /// The code the broker closes the connection with.
    pub(crate) async fn closed_with(&self) -> Code {
        close_code(&self.connection.closed().await)
    }

    pub(crate) async fn create(&mut self, name: &str, partitions: u32) -> TopicInfo {
        self.create_with(name, TopicConfig::new(partitions))
            .await
            .unwrap()
    }

    pub(crate) async fn create_with(
        &mut self,
        name: &str,
        config: TopicConfig,
    ) -> Result<TopicInfo, Refused> {
        let question = CreateTopic {
            name: name.to_owned(),
            config,
        };
        self.ask::<_, TopicOk>(&question).await.map(|ok| ok.topic)
    }

    pub(crate) async fn describe(
        &mut self,
        name: &str,
    ) -> Result<(TopicInfo, Vec<PartitionInfo>), Refused> {
        let question = DescribeTopic {
            name: name.to_owned(),
        };
        let (ok, body) = self.control.ask_with_body::<_, TopicOk>(&question).await?;
        Ok((ok.topic, decode_list(&body).unwrap()))
    }

    pub(crate) async fn status(&mut self) -> (StatusOk, Vec<ActorInfo>) {
        let question = Status {
            actors: true,
            ..Status::default()
        };
        let (ok, body) = self.control.ask_with_body(&question).await.unwrap();
        (ok, decode_list(&body).unwrap())
    }

    /// What status says of the actors of one kind.
    pub(crate) async fn actors(&mut self, kind: &str) -> Vec<ActorInfo> {
        let (_, actors) = self.status().await;
        actors
            .into_iter()
            .filter(|actor| actor.kind == kind)
            .collect()
    }

    pub(crate) async fn lookup(
        &mut self,
        topic: TopicId,
        partition: u32,
        at: At,
    ) -> Result<OffsetOk, Refused> {
        self.ask(&lookup(topic, partition, at)).await
    }

    /// A fresh producer on a stream of its own.
    pub(crate) async fn producer(&mut self) -> Producer {
        let opened: ProducerOk = self.ask(&OpenProducer::default()).await.unwrap();
        let stream = self.stream().await;
        Producer {
            stream,
            id: opened.producer,
            epoch: opened.epoch,
            next: HashMap::new(),
        }
    }

    pub(crate) async fn open_reader(
        &mut self,
        open: &OpenReader,
    ) -> Result<(ReaderOk, Reader), Refused> {
        let ok = self.ask(open).await?;
        Ok((ok, self.claim(open.reader).await))
    }

    /// The stream of a reader that was opened.
    pub(crate) async fn claim(&mut self, reader: u64) -> Reader {
        loop {
            if let Some(frames) = self.unclaimed.remove(&reader) {
                return Reader { id: reader, frames };
            }
            let mut frames = FrameReader::new(self.connection.accept_uni().await.unwrap());
            let open: StreamOpen = frames.next().await.unwrap().decode().unwrap();
            self.unclaimed.insert(open.reader, frames);
        }
    }

    /// Everything there is in a partition from a place on: deliveries as they came.
    pub(crate) async fn read_from(
        &mut self,
        topic: TopicId,
        partition: u32,
        from: At,
    ) -> Result<Vec<(Deliver, Bytes)>, Refused> {
        let mut at = from;
        let mut all = Vec::new();
        loop {
            let open = pull(topic, partition, at);
            let (ok, mut reader) = self.open_reader(&open).await?;
            let (batches, end) = reader.read_to_end().await;
            all.extend(batches);
            if let EndReason::Refused(refused) = end.reason {
                return Err(refused);
            }
            if end.next_offset >= ok.high_watermark {
                return Ok(all);
            }
            at = At::Offset(end.next_offset);
        }
    }

    /// The values of a partition's records, all that are kept, in order.
    pub(crate) async fn read_all(&mut self, topic: TopicId, partition: u32) -> Vec<String> {
        let batches = self
            .read_from(topic, partition, At::Earliest)
            .await
            .unwrap();
        batches
            .iter()
            .flat_map(|(deliver, batch)| values(deliver, batch))
            .collect()
    }
}

/// The code of a connection closed by the broker.
pub(crate) fn close_code(ended: &Ended) -> Code {
    let Ended::ByPeer { code, .. } = ended else {
        panic!("not closed with a code: {ended}");
    };
    Code::from_u16(u16::try_from(*code).unwrap()).expect("a code of ours")
}

/// A reader that ends when what is there has been read.
pub(crate) fn pull(topic: TopicId, partition: u32, from: At) -> OpenReader {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1 << 32);
    OpenReader {
        reader: NEXT.fetch_add(1, Ordering::Relaxed),
        topic,
        partition: PartitionIndex(partition),
        lane: Lane::ZERO,
        leader_epoch: 0,
        from,
        mode: ReaderMode::Pull,
        credit_bytes: 4 << 20,
        records_max: 0,
        wait_ms: 0,
    }
}

/// A reader that goes on until it is closed.
pub(crate) fn push(topic: TopicId, partition: u32, from: At, credit_bytes: u64) -> OpenReader {
    OpenReader {
        mode: ReaderMode::Push,
        credit_bytes,
        ..pull(topic, partition, from)
    }
}

/// What a reader's stream brings.
#[derive(Debug)]
pub(crate) enum Event {
    Batch(Deliver, Bytes),
    End(ReaderEnd),
}

/// A reader's stream.
pub(crate) struct Reader {
    pub(crate) id: u64,
    frames: FrameReader,
}

impl Reader {
    pub(crate) async fn next(&mut self) -> Event {
        let frame = self
            .frames
            .next()
            .await
            .expect("a reader's stream ends with an end");
        match frame.kind() {
            Some(FrameKind::Deliver) => {
                let deliver: Deliver = frame.decode().unwrap();
                assert_eq!(deliver.reader, self.id);
                Event::Batch(deliver, frame.body)
            }
            _ => Event::End(frame.decode().unwrap()),
        }
    }

    pub(crate) async fn batch(&mut self) -> (Deliver, Bytes) {
        match self.next().await {
            Event::Batch(deliver, batch) => (deliver, batch),
            Event::End(end) => panic!("ended: {end:?}"),
        }
    }

    /// Tells the broker to stop sending on this stream.
    pub(crate) fn refuse(&mut self) {
        self.frames.recv.stop();
    }

    pub(crate) async fn read_to_end(&mut self) -> (Vec<(Deliver, Bytes)>, ReaderEnd) {
        let mut batches = Vec::new();
        loop {
            match self.next().await {
                Event::Batch(deliver, batch) => batches.push((deliver, batch)),
                Event::End(end) => return (batches, end),
            }
        }
    }
}

/// The values of the records of a delivery that are wanted.
pub(crate) fn values(deliver: &Deliver, batch: &Bytes) -> Vec<String> {
    let bodies = BatchView::parse(batch)
        .expect("a batch")
        .bodies()
        .expect("its bodies");
    bodies
        .skip(deliver.skip as usize)
        .map(|body| {
            let (_, body) = body.expect("its checksum holds");
            String::from_utf8(RecordBody::decode(&body).unwrap().value.to_vec()).unwrap()
        })
        .collect()
}

/// A batch of these values.
pub(crate) fn batch<V: AsRef<[u8]>>(stamp: BatchStamp, values: &[V]) -> Bytes {
    batch_with(stamp, Compression::None, values)
}

pub(crate) fn batch_with<V: AsRef<[u8]>>(
    stamp: BatchStamp,
    compression: Compression,
    values: &[V],
) -> Bytes {
    let mut builder = BatchBuilder::new(usize::MAX, compression);
    for value in values {
        let record = Record::new(value.as_ref().to_vec());
        builder
            .push(&record, MessageId::default(), WallMs(1))
            .unwrap();
    }
    builder.finish(stamp).unwrap()
}

/// A question for a place in a partition.
pub(crate) fn lookup(topic: TopicId, partition: u32, at: At) -> LookupOffset {
    LookupOffset {
        topic,
        partition: PartitionIndex(partition),
        lane: Lane::ZERO,
        at,
    }
}

/// Where to send a batch, and what to wait for.
pub(crate) fn to(topic: TopicId, partition: u32, ack: Ack) -> Produce {
    Produce {
        topic,
        partition: PartitionIndex(partition),
        lane: Lane::ZERO,
        leader_epoch: 0,
        ack,
        immunity_ms: None,
    }
}

/// A producer that numbers its records.
pub(crate) struct Producer {
    pub(crate) stream: Stream,
    pub(crate) id: ProducerId,
    pub(crate) epoch: ProducerEpoch,
    next: HashMap<(TopicId, u32), u64>,
}

impl Producer {
    /// The stamp of a batch that starts at this sequence.
    pub(crate) fn stamp(&self, first_sequence: u64) -> BatchStamp {
        BatchStamp {
            producer: self.id,
            epoch: self.epoch,
            first_sequence: ProducerSequence(first_sequence),
            ..BatchStamp::default()
        }
    }

    /// Stores one batch, durably, and returns its first offset.
    pub(crate) async fn store<V: AsRef<[u8]>>(
        &mut self,
        topic: &TopicInfo,
        partition: u32,
        values: &[V],
    ) -> Offset {
        let stored = self.offer(topic, partition, values, Ack::Durable).await;
        self.stream
            .stored(stored)
            .await
            .unwrap()
            .first_offset
            .unwrap()
    }

    /// Sends one batch without waiting for an answer.
    pub(crate) async fn offer<V: AsRef<[u8]>>(
        &mut self,
        topic: &TopicInfo,
        partition: u32,
        values: &[V],
        ack: Ack,
    ) -> u64 {
        let first = self.next.get(&(topic.id, partition)).copied().unwrap_or(0);
        self.next
            .insert((topic.id, partition), first + values.len() as u64);
        let batch = batch(self.stamp(first), values);
        self.stream
            .request(&to(topic.id, partition, ack), batch)
            .await
    }
}

/// The owner of a partition, as status names it.
pub(crate) async fn owner_of(client: &mut Client, topic: &str, partition: u32) -> OwnerId {
    let name = format!("{topic}/{partition}");
    let actors = client.actors("partition").await;
    let actor = actors
        .iter()
        .find(|actor| actor.name == name)
        .expect("its actor runs");
    OwnerId(actor.id)
}

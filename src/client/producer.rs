//! Sending records.
//!
//! In: records, from any task. Out: a [`Receipt`] each. Records gather per partition in batches, which
//! one task per producer sends; the caller's only wait is for room in the producer's memory.
//!
//! A record's partition is fixed when it is enqueued, and per partition the order of enqueuing is the
//! order of storing, through lost connections and restarts of the broker: at the levels `memory` and
//! `durable` what was not acknowledged is sent again in order under its old sequence numbers, which
//! the broker takes at most once.
//!
//! Nothing survives the end of the process: what was not acknowledged is then unknown.

use std::iter::Peekable;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::Sink;

use super::Client;
use super::error::{AdminError, SendError};
use super::link::lock;
use super::outbox::{Outbox, OutboxConfig, Pushed};
use super::pending::{Pending, PendingRun, Receipt};
use super::sender::{Shared, run};
use crate::domain::batch::Compression;
use crate::domain::id::MessageId;
use crate::domain::key::{key_hash, partition_of};
use crate::domain::record::{Record, message_id};
use crate::domain::time::WallMs;
use crate::wire::IN_FLIGHT_BATCHES_MAX;
use crate::wire::produce::{Ack, OpenProducer, ProducerOk};
use crate::wire::topic::FlushMode;

/// A batch is sent when it has so many bytes, unless configured otherwise.
const BATCH_BYTES_DEFAULT: usize = 256 * 1024;

/// What a producer may have under way, unless configured otherwise.
const BUFFER_BYTES_DEFAULT: usize = 64 * 1024 * 1024;

/// Message ids a run of records takes from its producer at a time.
const IDS_AT_ONCE: u64 = 32;

/// How long a producer goes on without any acknowledgement, unless configured otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(120);

/// Configures a producer; made by [`Client::producer`].
#[derive(Debug, Clone)]
#[must_use = "nothing happens before `open`"]
pub struct ProducerBuilder {
    client: Client,
    topic: String,
    ack: Option<Ack>,
    linger: Option<Duration>,
    batch_bytes: usize,
    in_flight: usize,
    buffer_bytes: usize,
    compression: Compression,
    timeout: Duration,
    flush_timeout: Option<Duration>,
}

impl ProducerBuilder {
    pub(super) fn new(client: Client, topic: &str) -> Self {
        Self {
            client,
            topic: topic.to_owned(),
            ack: None,
            linger: None,
            batch_bytes: BATCH_BYTES_DEFAULT,
            in_flight: usize::MAX,
            buffer_bytes: BUFFER_BYTES_DEFAULT,
            compression: Compression::None,
            timeout: TIMEOUT_DEFAULT,
            flush_timeout: None,
        }
    }

    /// What a receipt waits for; by default what the topic's `flush` says (`sync`: durable).
    pub fn ack(mut self, ack: Ack) -> Self {
        self.ack = Some(ack);
        self
    }

    /// How long records gather before a batch that is not full is sent. By default a lone record goes
    /// at once and others gather while it is under way, at most 5 ms.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = Some(linger);
        self
    }

    /// A batch is sent when it has so many bytes. Default 256 KiB; at most what the broker takes.
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.batch_bytes = bytes;
        self
    }

    /// How many batches of a partition may be under way. Default and maximum: what the broker allows
    /// (64).
    pub fn in_flight(mut self, batches: usize) -> Self {
        self.in_flight = batches.max(1);
        self
    }

    /// How many bytes of records may be under way before `enqueue` waits. Default 64 MiB. One record
    /// more than that may be.
    pub fn buffer_bytes(mut self, bytes: usize) -> Self {
        self.buffer_bytes = bytes.max(1);
        self
    }

    /// How batches are compressed. Default not at all.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// How long to go on (resending, reconnecting) without any acknowledgement. Default 120 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// After so long without a durable acknowledgement a record's receipt says `FLUSH_DISK_TIMEOUT`:
    /// the outcome is open, and the producer goes on sending it. By default a receipt just waits.
    pub fn flush_timeout(mut self, timeout: Duration) -> Self {
        self.flush_timeout = Some(timeout);
        self
    }

    /// Looks the topic up, gets a producer id and starts the producer's task.
    ///
    /// # Errors
    /// [`AdminError`]: most likely there is no such topic, or no broker.
    pub async fn open(self) -> Result<Producer, AdminError> {
        let topic = self.client.topic(&self.topic).await?;
        let ack = self.ack.unwrap_or(match topic.config.flush {
            FlushMode::Sync => Ack::Durable,
            FlushMode::Async => Ack::Memory,
        });
        let identity = match ack {
            Ack::None => ProducerOk::default(),
            Ack::Memory | Ack::Durable => {
                self.client
                    .ask::<_, ProducerOk>(&OpenProducer::default())
                    .await?
                    .0
            }
        };
        let limits = self.client.limits();
        let batch_bytes_max = usize::try_from(limits.batch_bytes_max).unwrap_or(usize::MAX);
        let in_flight_max = limits.in_flight_batches_max.clamp(1, IN_FLIGHT_BATCHES_MAX);
        let name: Arc<str> = Arc::from(topic.name.as_str());
        let partitions = topic.config.partitions;
        // One after the other by level: a slot is its level's first one and the partition.
        let slots = (0..topic.lanes.max(1))
            .flat_map(|level| (0..partitions).map(move |partition| (level, partition)));
        let outboxes = slots.map(|(level, partition)| {
            let config = OutboxConfig {
                topic: Arc::clone(&name),
                partition,
                level,
                slot: u32::from(level) * partitions + partition,
                ack,
                batch_bytes: self.batch_bytes.min(batch_bytes_max),
                batch_bytes_max,
                compression: self.compression,
                linger: self.linger,
                in_flight_max: self
                    .in_flight
                    .min(usize::try_from(in_flight_max).unwrap_or(1)),
                flush_timeout: self.flush_timeout,
                cluster: self.client.broker().cluster,
                topic_id: topic.id,
            };
            Outbox::new(config, identity)
        });
        let shared = Arc::new(Shared::new(topic.id, ack, self.timeout, outboxes.collect()));
        tokio::spawn(run(Arc::clone(&shared), self.client.board()));
        Ok(Producer {
            inner: Arc::new(Inner {
                shared,
                topic: name,
                partitions: topic.config.partitions,
                levels: topic.lanes.max(1),
                buffer_bytes: self.buffer_bytes,
                // The first keyless record moves it on, to partition 0.
                turn: AtomicU32::new(topic.config.partitions.saturating_sub(1)),
                ids: IdGenerator::new(),
                _client: self.client,
            }),
            waiting: None,
        })
    }
}

/// Sends records to one topic. Cheap to clone; clones share everything.
///
/// Dropping the last clone does not block and does not lose what was enqueued as long as the runtime
/// goes on: the producer's task sends it. [`Producer::close`] waits for that.
///
/// ```
/// # actix_rt::System::new().block_on(async {
/// # let broker = waterwheel::Broker::start(waterwheel::Config::temporary()).await?;
/// # let client = broker.client().await?;
/// # client.create_topic("orders", waterwheel::client::TopicConfig::new(8)).await?;
/// use waterwheel::client::{Ack, Compression, Record};
/// let producer = client.producer("orders").ack(Ack::Durable).compression(Compression::Lz4);
/// let producer = producer.open().await?;
/// // One, waited for.
/// let receipt = producer.send(Record::new("42 roses").key("anna")).await?;
/// assert_eq!(receipt.offset, Some(0));
/// // Many, waited for afterwards: they travel together.
/// let mut pending = Vec::new();
/// for count in 0..100 {
///     pending.push(producer.enqueue(Record::new(format!("{count} roses"))).await?);
/// }
/// for receipt in pending {
///     receipt.await?;
/// }
/// producer.close().await?;
/// # broker.stop().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[must_use = "a producer that is dropped at once sends nothing"]
pub struct Producer {
    inner: Arc<Inner>,
    /// What a `Sink` waits for: room, or a flush.
    waiting: Option<Waiting>,
}

// Sync too: `enqueue` borrows the producer, and its future is to be `Send`.
type Waiting = Pin<Box<dyn Future<Output = Result<(), SendError>> + Send + Sync>>;

struct Inner {
    shared: Arc<Shared>,
    topic: Arc<str>,
    partitions: u32,
    levels: u8,
    buffer_bytes: usize,
    /// The partition that keyless records go to while its batch gathers.
    turn: AtomicU32,
    ids: IdGenerator,
    /// Keeps the connection.
    _client: Client,
}

impl Clone for Producer {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            waiting: None,
        }
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer")
            .field("topic", &self.inner.topic)
            .field("partitions", &self.inner.partitions)
            .finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Producer {
    /// The topic's name.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.inner.topic
    }

    /// What an acknowledgement of this producer's records means.
    #[must_use]
    pub fn ack(&self) -> Ack {
        self.inner.shared.ack
    }

    /// How many partitions the topic had when the producer was opened.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        self.inner.partitions
    }

    /// Sends a record and waits for its receipt. Cancelling does not unsend it.
    ///
    /// # Errors
    /// [`SendError`], which says whether the record may be stored all the same.
    pub async fn send(&self, record: Record) -> Result<Receipt, SendError> {
        self.enqueue(record).await?.await
    }

    /// The same, to a partition of the caller's choice.
    ///
    /// # Errors
    /// As [`Producer::send`]; [`SendError::Partition`] where there is no such partition.
    pub async fn send_to(&self, partition: u32, record: Record) -> Result<Receipt, SendError> {
        self.enqueue_to(partition, record).await?.await
    }

    /// Puts a record on its way: waits only for room. The partition is that of the key; keyless records
    /// take turns by batch. Cancelled before it ends, nothing was sent.
    ///
    /// # Errors
    /// [`SendError::TooLarge`], [`SendError::Closed`].
    pub async fn enqueue(&self, record: Record) -> Result<Pending, SendError> {
        self.inner.wait_for_room().await?;
        self.inner.put(None, &record)
    }

    /// The same, to a partition of the caller's choice.
    ///
    /// # Errors
    /// As [`Producer::enqueue`]; [`SendError::Partition`] where there is no such partition.
    pub async fn enqueue_to(&self, partition: u32, record: Record) -> Result<Pending, SendError> {
        self.inner.wait_for_room().await?;
        self.inner.put(Some(partition), &record)
    }

    /// Puts a run of records of one partition on their way, at less cost than one by one: they share
    /// their receipts by batch. Waits for room as it goes; cancelled before it ends, some were sent.
    ///
    /// # Errors
    /// As [`Producer::enqueue_to`]; the records before the one that failed are on their way.
    pub async fn enqueue_run(
        &self,
        partition: u32,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<PendingRun, SendError> {
        let mut parts: Vec<(Pending, u32)> = Vec::new();
        let mut records = records.into_iter().peekable();
        while records.peek().is_some() {
            self.inner.wait_for_room().await?;
            self.inner.put_run(partition, &mut records, &mut parts)?;
        }
        Ok(PendingRun { parts })
    }

    /// Puts a record on its way and forgets about it. It is sent as reliably as the producer's level
    /// says; only nobody is told.
    ///
    /// # Errors
    /// As [`Producer::enqueue`].
    pub async fn send_one_way(&self, record: Record) -> Result<(), SendError> {
        self.enqueue(record).await.map(drop)
    }

    /// Sends what has gathered and waits until everything enqueued so far is acknowledged as the level
    /// asks.
    ///
    /// # Errors
    /// The first failure of any record since the last flush.
    pub async fn flush(&self) -> Result<(), SendError> {
        flush(Arc::clone(&self.inner)).await
    }

    /// Flushes, and waits until the broker has made everything durable, at level `memory` too. No clone
    /// can send afterwards.
    ///
    /// # Errors
    /// The first failure of any record since the last flush.
    pub async fn close(self) -> Result<(), SendError> {
        self.inner.shared.close();
        self.inner.shared.until_idle().await;
        self.inner.shared.take_failure().map_or(Ok(()), Err)
    }
}

async fn flush(inner: Arc<Inner>) -> Result<(), SendError> {
    let shared = &inner.shared;
    shared.hurry();
    let mut failure = None;
    for outbox in &shared.outboxes {
        let completions: Vec<_> = lock(outbox).completions().collect();
        for completion in completions {
            if let Err(error) = Pending::new(completion, 0).await {
                failure = failure.or(Some(error));
            }
        }
    }
    // What was remembered is the same failure, or an earlier one.
    shared.take_failure().or(failure).map_or(Ok(()), Err)
}

impl Inner {
    fn has_room(&self) -> Result<bool, SendError> {
        if self.shared.is_closed() {
            return Err(SendError::Closed);
        }
        Ok(self.shared.used() < self.buffer_bytes)
    }

    async fn wait_for_room(&self) -> Result<(), SendError> {
        while !self.has_room()? {
            let room = self.shared.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.has_room()? {
                break;
            }
            // What gathers takes room: it must not wait for more to gather.
            self.shared.hurry();
            room.await;
        }
        Ok(())
    }

    fn put(&self, partition: Option<u32>, record: &Record) -> Result<Pending, SendError> {
        let partition = match (partition, &record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_of(key_hash(key), self.partitions).0,
            (None, None) => self.whose_turn(record.priority)?,
        };
        let (slot, outbox) = self.outbox(partition, record.priority)?;
        let at = now_ms();
        let id = record.id.unwrap_or_else(|| self.ids.next(at));
        let mut outbox = lock(outbox);
        let charge = record.body_bytes_max();
        self.shared.charge(charge);
        let pushed = self.push(&mut outbox, record, id, at, charge);
        let pending = pushed.map(|pushed| (outbox.pending(&pushed), pushed.wake));
        drop(outbox);
        match pending {
            Ok((pending, wake)) => {
                if wake {
                    self.shared.wake(slot);
                }
                // A record that was pushed is in a batch.
                pending.ok_or(SendError::Closed)
            }
            Err(error) => {
                self.shared.discharge(charge);
                Err(error)
            }
        }
    }

    /// The partition of the next keyless record: the one whose batch still gathers, or the next.
    fn whose_turn(&self, level: u8) -> Result<u32, SendError> {
        let turn = self.turn.load(Ordering::Relaxed) % self.partitions.max(1);
        let (_, outbox) = self.outbox(turn, level)?;
        if lock(outbox).is_gathering() {
            return Ok(turn);
        }
        let next = (turn + 1) % self.partitions.max(1);
        self.turn.store(next, Ordering::Relaxed);
        Ok(next)
    }

    fn put_run(
        &self,
        partition: u32,
        records: &mut Peekable<impl Iterator<Item = Record>>,
        parts: &mut Vec<(Pending, u32)>,
    ) -> Result<(), SendError> {
        let Some(level) = records.peek().map(|record| record.priority) else {
            return Ok(());
        };
        let (slot, outbox) = self.outbox(partition, level)?;
        let at = now_ms();
        let mut ids = self.ids.run(at);
        let mut wake = false;
        let mut result = Ok(());
        let mut outbox = lock(outbox);
        // Charged at the end, but before anybody can take a batch: the lock is held until then.
        let (used, mut charged, mut follows) = (self.shared.used(), 0, false);
        while let Some(record) = records.next_if(|record| record.priority == level) {
            let charge = record.body_bytes_max();
            let id = record.id.unwrap_or_else(|| ids.next());
            let pushed = match self.push(&mut outbox, &record, id, at, charge) {
                Ok(pushed) => pushed,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            charged += charge;
            wake |= pushed.wake;
            match parts.last_mut() {
                // Nobody else pushes meanwhile: it is in the batch of the one before, right behind it.
                Some((_, count)) if follows && !pushed.began => *count += 1,
                _ => parts.extend(outbox.pending(&pushed).map(|pending| (pending, 1))),
            }
            follows = true;
            if used + charged >= self.buffer_bytes {
                break;
            }
        }
        self.shared.charge(charged);
        drop(outbox);
        if wake {
            self.shared.wake(slot);
        }
        result
    }

    fn push(
        &self,
        outbox: &mut Outbox,
        record: &Record,
        id: MessageId,
        at: WallMs,
        charge: usize,
    ) -> Result<Pushed, SendError> {
        // Looked at under the outbox's lock: whoever fails the rest has to take it after closing.
        if self.shared.is_closed() {
            return Err(SendError::Closed);
        }
        let pushed = outbox.push(record, id, at, charge, Instant::now)?;
        if pushed.began {
            self.shared.began();
        }
        Ok(pushed)
    }

    fn outbox(&self, partition: u32, level: u8) -> Result<(usize, &Mutex<Outbox>), SendError> {
        if level >= self.levels {
            return Err(SendError::Priority {
                priority: level,
                last: self.levels.saturating_sub(1),
            });
        }
        let first = u32::from(level) * self.partitions;
        let slot = match partition < self.partitions {
            true => usize::try_from(first + partition).unwrap_or(usize::MAX),
            false => usize::MAX,
        };
        let outbox = self.shared.outboxes.get(slot);
        let outbox = outbox.ok_or_else(|| SendError::Partition {
            partition,
            last: self.partitions.saturating_sub(1),
        })?;
        Ok((slot, outbox))
    }
}

pub(super) fn now_ms() -> WallMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let ms = since.map_or(0, |since| since.as_millis());
    WallMs(i64::try_from(ms).unwrap_or(i64::MAX))
}

/// Message ids that no other generator makes: time, a counter, and 62 bits that differ per generator.
#[derive(Debug)]
pub(super) struct IdGenerator {
    seed: u64,
    count: AtomicU64,
}

impl IdGenerator {
    pub(super) fn new() -> Self {
        // Without the system's randomness, the clock and an address still tell generators apart.
        let seed = getrandom::u64().unwrap_or_else(|_| {
            let here = std::ptr::from_ref(&BATCH_BYTES_DEFAULT) as u64;
            let ms = u64::try_from(now_ms().0).unwrap_or(0);
            ms.rotate_left(32) ^ here ^ u64::from(std::process::id())
        });
        Self {
            seed,
            count: AtomicU64::new(0),
        }
    }

    pub(super) fn next(&self, at: WallMs) -> MessageId {
        self.id(at, self.count.fetch_add(1, Ordering::Relaxed))
    }

    /// Ids for a run of records: counts are taken [`IDS_AT_ONCE`] at a time, and what is left is skipped.
    fn run(&self, at: WallMs) -> IdRun<'_> {
        IdRun {
            generator: self,
            at,
            counts: 0..0,
        }
    }

    fn id(&self, at: WallMs, count: u64) -> MessageId {
        // SplitMix64: a bijection of the count, so that no two are equal.
        let mut random = self
            .seed
            .wrapping_add(count.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        random = (random ^ (random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        random = (random ^ (random >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let [low, high, ..] = (count & 0x0fff).to_le_bytes();
        message_id(at, u16::from_le_bytes([low, high]), random ^ (random >> 31))
    }
}

/// Ids of one generator, taken from it a few at a time.
struct IdRun<'a> {
    generator: &'a IdGenerator,
    at: WallMs,
    counts: std::ops::Range<u64>,
}

impl IdRun<'_> {
    fn next(&mut self) -> MessageId {
        let count = self.counts.next().unwrap_or_else(|| {
            let first = self
                .generator
                .count
                .fetch_add(IDS_AT_ONCE, Ordering::Relaxed);
            self.counts = first + 1..first + IDS_AT_ONCE;
            first
        });
        self.generator.id(self.at, count)
    }
}

impl Producer {
    fn poll_waiting(
        &mut self,
        context: &mut Context<'_>,
        wait: impl FnOnce(Arc<Inner>) -> Waiting,
    ) -> Poll<Result<(), SendError>> {
        let inner = &self.inner;
        let waiting = self.waiting.get_or_insert_with(|| wait(Arc::clone(inner)));
        let ended = waiting.as_mut().poll(context);
        if ended.is_ready() {
            self.waiting = None;
        }
        ended
    }
}

/// Records go in as with [`Producer::send_one_way`]; flushing reports the first failure.
impl Sink<Record> for Producer {
    type Error = SendError;

    fn poll_ready(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), SendError>> {
        if self.waiting.is_none() && self.inner.has_room()? {
            return Poll::Ready(Ok(()));
        }
        self.poll_waiting(context, |inner| {
            Box::pin(async move { inner.wait_for_room().await })
        })
    }

    fn start_send(self: Pin<&mut Self>, record: Record) -> Result<(), SendError> {
        self.inner.put(None, &record).map(drop)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), SendError>> {
        self.poll_waiting(context, |inner| Box::pin(flush(inner)))
    }

    fn poll_close(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), SendError>> {
        self.poll_waiting(context, |inner| {
            Box::pin(async move {
                inner.shared.close();
                inner.shared.until_idle().await;
                inner.shared.take_failure().map_or(Ok(()), Err)
            })
        })
    }
}

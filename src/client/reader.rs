//! Reading a topic: one partition, or all of them, each in order.
//!
//! In: where to start. Out: a [`Stream`] of [`Delivery`]s (push: the broker sends ahead within the
//! reader's credit), batches on demand (pull), or one [`fetch`](ReaderBuilder::fetch). Nothing is
//! acknowledged: a reader's place is its own, and lost with it. Consumer groups are another matter.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::stream::{self, BoxStream, SelectAll};
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use tokio::time::{Instant, timeout_at};

use super::Client;
use super::admin::Start;
use super::delivery::{Delivery, DeliveryBatch};
use super::error::{AdminError, ConsumeError};
use super::link::lock;
use super::partition_reader::{PartitionReader, ReaderPlan};
use crate::domain::id::Lane;
use crate::wire::reader::ReaderMode;

/// What may be under way to one partition's reader, unless configured otherwise.
const CREDIT_BYTES_DEFAULT: u64 = 8 * 1024 * 1024;

/// How long a reader looks for a broker, unless configured otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(120);

/// Partitions opened at the same time.
const OPENING_MAX: usize = 64;

/// Configures a reader; made by [`Client::reader`].
#[derive(Debug, Clone)]
#[must_use = "nothing happens before `open` or `fetch`"]
pub struct ReaderBuilder {
    client: Client,
    topic: String,
    partition: Option<u32>,
    from: Start,
    credit_bytes: u64,
    until_end: bool,
    timeout: Duration,
}

impl ReaderBuilder {
    pub(super) fn new(client: Client, topic: &str) -> Self {
        Self {
            client,
            topic: topic.to_owned(),
            partition: None,
            from: Start::Earliest,
            credit_bytes: CREDIT_BYTES_DEFAULT,
            until_end: false,
            timeout: TIMEOUT_DEFAULT,
        }
    }

    /// One partition only. By default all of them, each in order.
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Where to start. Default: the first record that is still there.
    pub fn from(mut self, start: Start) -> Self {
        self.from = start;
        self
    }

    /// How many bytes of a partition may be under way: what the broker sends ahead. Default 8 MiB, less
    /// where all partitions together would exceed what the broker allows a connection.
    pub fn credit_bytes(mut self, bytes: u64) -> Self {
        self.credit_bytes = bytes.max(1);
        self
    }

    /// End where each partition ended when the reader was opened, rather than wait for more.
    pub fn until_end(mut self) -> Self {
        self.until_end = true;
        self
    }

    /// How long to look for a broker when the connection is lost. Default 120 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn plans(&self) -> Result<(Vec<ReaderPlan>, CreditShare), ConsumeError> {
        let topic = self
            .client
            .topic(&self.topic)
            .await
            .map_err(|error| match error {
                AdminError::Refused(refusal) => ConsumeError::Refused(refusal),
                AdminError::Protocol(reason) => ConsumeError::Protocol(reason),
                AdminError::Unreachable(_) => ConsumeError::Unreachable(self.timeout.as_millis()),
                AdminError::TimedOut(ms) => ConsumeError::Unreachable(ms),
                AdminError::Disconnected => ConsumeError::Disconnected,
            })?;
        let partitions = match self.partition {
            Some(partition) if partition >= topic.config.partitions => {
                return Err(ConsumeError::Partition {
                    partition,
                    last: topic.config.partitions.saturating_sub(1),
                });
            }
            Some(partition) => partition..partition + 1,
            None => 0..topic.config.partitions,
        };
        let levels = topic.lanes.max(1);
        let readers = u64::from(partitions.end - partitions.start) * u64::from(levels);
        let readers = readers.max(1);
        let share = CreditShare::take(&self.client, self.credit_bytes.saturating_mul(readers));
        let credit_bytes = (share.bytes / readers).max(1);
        let name: Arc<str> = Arc::from(topic.name.as_str());
        let lanes =
            partitions.flat_map(|partition| (0..levels).map(move |level| (partition, Lane(level))));
        let plans = lanes
            .map(|(partition, lane)| ReaderPlan {
                topic: topic.id,
                name: Arc::clone(&name),
                partition,
                lane,
                from: self.from.into(),
                mode: ReaderMode::Push,
                credit_bytes,
                records_max: 0,
                wait: Duration::ZERO,
                until_end: self.until_end,
                timeout: self.timeout,
            })
            .collect();
        Ok((plans, share))
    }

    /// Opens the reader: the broker starts sending.
    ///
    /// # Errors
    /// [`ConsumeError`]: no such topic, partition or offset, or no broker.
    pub async fn open(self) -> Result<Reader, ConsumeError> {
        let board = self.client.board();
        let (plans, share) = self.plans().await?;
        let readers: Vec<PartitionReader> = stream::iter(plans)
            .map(|plan| PartitionReader::open(plan, board.clone()))
            .buffer_unordered(OPENING_MAX)
            .try_collect()
            .await?;
        let partitions: SelectAll<_> = readers.into_iter().map(batches).collect();
        Ok(Reader {
            partitions,
            current: None,
            held: None,
            _share: share,
            _client: self.client,
        })
    }

    /// Pulls once from one partition (0 unless told): up to `records_max` records or the reader's
    /// credit of bytes, whichever is less, waiting for the first up to `wait`.
    ///
    /// # Errors
    /// [`ConsumeError`]: no such topic, partition or offset, no broker, or damage.
    pub async fn fetch(
        mut self,
        records_max: u32,
        wait: Duration,
    ) -> Result<Fetched, ConsumeError> {
        self.partition = Some(self.partition.unwrap_or(0));
        self.until_end = false;
        // The ordinary priority's is the first.
        let (plans, _share) = self.plans().await?;
        let plan = plans.into_iter().next();
        let Some(mut plan) = plan else {
            return Err(ConsumeError::Partition {
                partition: 0,
                last: 0,
            });
        };
        plan.mode = ReaderMode::Pull;
        plan.records_max = records_max;
        plan.wait = wait;
        let wanted = match records_max {
            0 => usize::MAX,
            records => usize::try_from(records).unwrap_or(usize::MAX),
        };
        let mut reader = PartitionReader::open(plan, self.client.board()).await?;
        let mut deliveries = Vec::new();
        while deliveries.len() < wanted
            && let Some(batch) = reader.next().await?
        {
            // A batch comes whole: what is too much of it is left for the next fetch.
            for delivery in batch.take(wanted - deliveries.len()) {
                deliveries.push(delivery?);
            }
        }
        let next_offset = deliveries
            .last()
            .map_or(reader.next_offset(), |last: &Delivery| last.offset + 1);
        Ok(Fetched {
            next_offset,
            high_watermark: reader.high_watermark(),
            deliveries,
        })
    }
}

/// A reader's part of what the readers of a client may be sent together; given back when it is dropped.
struct CreditShare {
    used: Arc<Mutex<u64>>,
    bytes: u64,
}

impl CreditShare {
    /// What is asked for, but never more than three quarters of what is left: there is some for the next.
    fn take(client: &Client, wanted: u64) -> Self {
        let used = Arc::clone(&client.credit);
        let bytes = {
            let mut used = lock(&used);
            let free = client.limits().credit_bytes_max.saturating_sub(*used);
            let bytes = wanted.min(free / 4 * 3);
            *used = used.saturating_add(bytes);
            bytes
        };
        Self { used, bytes }
    }
}

impl Drop for CreditShare {
    fn drop(&mut self) {
        let mut used = lock(&self.used);
        *used = used.saturating_sub(self.bytes);
    }
}

/// What one fetch brought.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fetched {
    /// The records, in order.
    pub deliveries: Vec<Delivery>,
    /// Where the next fetch goes on.
    pub next_offset: u64,
    /// One past the last durable offset, as of now.
    pub high_watermark: u64,
}

/// The batches of a partition as a stream that owns its reader: dropping a wait loses nothing.
fn batches(reader: PartitionReader) -> BoxStream<'static, Result<DeliveryBatch, ConsumeError>> {
    stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(batch)) => Some((Ok(batch), Some(reader))),
            Ok(None) => None,
            Err(error) => {
                // Behind a rotten batch it goes on; elsewhere there is nothing to go on with.
                let goes_on = matches!(error, ConsumeError::Damaged { .. });
                Some((Err(error), goes_on.then_some(reader)))
            }
        }
    })
    .boxed()
}

/// Reads a topic: a stream of deliveries, each partition's in order.
///
/// Taking deliveries is what renews the broker's credit: a reader that is not polled holds at most its
/// credit in memory. A wait that is cancelled loses nothing, so [`next`](Self::next) may stand in a
/// `select!`. Dropping a reader does not block; the broker hears of it.
///
/// ```
/// # actix_rt::System::new().block_on(async {
/// # let broker = waterwheel::Broker::start(waterwheel::Config::temporary()).await?;
/// # let client = broker.client().await?;
/// # client.create_topic("orders", waterwheel::client::TopicConfig::new(1)).await?;
/// # let producer = client.producer("orders").open().await?;
/// # for n in 0..10 { producer.send(waterwheel::Record::new(n.to_string())).await?; }
/// use std::time::Duration;
/// use waterwheel::client::Start;
/// // Push: the broker sends ahead, within the reader's credit.
/// let mut reader = client.reader("orders").from(Start::Offset(4)).open().await?;
/// if let Some(delivery) = reader.next().await {
///     assert_eq!(delivery?.offset, 4);
/// }
/// // What is there, at most 100, waiting up to a second for the first.
/// let batch = reader.next_batch(100, Duration::from_secs(1)).await?;
/// assert!(!batch.is_empty());
/// # broker.stop().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[must_use = "a reader does nothing unless it is polled"]
pub struct Reader {
    partitions: SelectAll<BoxStream<'static, Result<DeliveryBatch, ConsumeError>>>,
    /// The batch that is being taken.
    current: Option<DeliveryBatch>,
    /// An error that came behind records that were returned first.
    held: Option<ConsumeError>,
    /// Given back when the reader is dropped.
    _share: CreditShare,
    /// Keeps the connection.
    _client: Client,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("partitions", &self.partitions.len())
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// The next record; none when all partitions have ended, which only happens to a reader
    /// [`until_end`](ReaderBuilder::until_end).
    ///
    /// A record that cannot be read, or a damaged batch, is an error behind which the reader goes on.
    pub async fn next(&mut self) -> Option<Result<Delivery, ConsumeError>> {
        StreamExt::next(self).await
    }

    /// Pulls: waits up to `wait` for a record, then takes what is there, up to `max`. Empty where
    /// nothing came in time, or at the end.
    ///
    /// # Errors
    /// [`ConsumeError`], where it is the first thing that comes; what came before an error is returned
    /// first.
    pub async fn next_batch(
        &mut self,
        max: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, ConsumeError> {
        let mut taken = Vec::new();
        if max == 0 {
            return Ok(taken);
        }
        match timeout_at(Instant::now() + wait, self.next()).await {
            Ok(Some(first)) => taken.push(first?),
            Ok(None) | Err(_) => return Ok(taken),
        }
        while taken.len() < max {
            // What is not there by now is left for the next call; so is an error.
            match StreamExt::next(self).now_or_never() {
                Some(Some(Ok(delivery))) => taken.push(delivery),
                Some(Some(Err(error))) => {
                    self.held = Some(error);
                    break;
                }
                Some(None) | None => break,
            }
        }
        Ok(taken)
    }

    /// The records of the next batch as stored, all at once: the cheapest way to take them.
    ///
    /// # Errors
    /// [`ConsumeError`] where one of them cannot be read, or the batch is damaged.
    pub async fn next_deliveries(&mut self) -> Result<Option<Vec<Delivery>>, ConsumeError> {
        match self.next_stored().await {
            Some(batch) => {
                let batch = batch?;
                let mut deliveries = Vec::with_capacity(batch.size_hint().1.unwrap_or(0));
                for delivery in batch {
                    deliveries.push(delivery?);
                }
                Ok(Some(deliveries))
            }
            None => Ok(None),
        }
    }

    /// The next batch as stored, checked but not decoded.
    ///
    /// # Errors
    /// [`ConsumeError`] where it is damaged.
    pub async fn next_stored(&mut self) -> Option<Result<DeliveryBatch, ConsumeError>> {
        if let Some(error) = self.held.take() {
            return Some(Err(error));
        }
        match self.current.take() {
            Some(batch) => Some(Ok(batch)),
            None => self.partitions.next().await,
        }
    }
}

impl Stream for Reader {
    type Item = Result<Delivery, ConsumeError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(error) = self.held.take() {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            if let Some(batch) = &mut self.current {
                match batch.next() {
                    Some(delivery) => return Poll::Ready(Some(delivery)),
                    None => self.current = None,
                }
            }
            match ready!(self.partitions.poll_next_unpin(context)) {
                Some(Ok(batch)) => self.current = Some(batch),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

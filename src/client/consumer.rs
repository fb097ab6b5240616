//! Consuming as a member of a group.
//!
//! In: which group, which topics, how. Out: a [`Stream`] of [`Delivery`]s (push: the broker sends ahead within
//! the prefetch), or batches on demand (pull). Each is settled by what the consumer says of it; what it does not
//! settle in time comes again, here or to another member.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::Client;
use super::admin::Start;
use super::delivery::Delivery;
use super::error::ConsumeError;
use super::leased::{Bad, Hand, LeaseTag, LeasedBatch, Standing};
use super::membership::{self, Plan, Say, Told, Verdict, Wires};
use super::settle::{Settlement, Settler};
use crate::wire::consume::RetryAfter;
use crate::wire::group::{Mode, RetryPolicy, Subscription};

/// What a consumer may hold unsettled of a topic, unless configured otherwise.
const PREFETCH_BYTES_DEFAULT: u64 = 8 * 1024 * 1024;
/// The same in records.
const PREFETCH_RECORDS_DEFAULT: u32 = 10_000;
/// How long a consumer looks for a broker, unless configured otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(120);
/// Given back together where nothing is said of records.
const TAKEN_MAX: usize = 256;

/// When a record counts as consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AckMode {
    /// When the consumer says so: [`Consumer::ack`] and its like. At least once.
    #[default]
    Manual,
    /// When the next one (or the next batch) is asked for, and when the consumer is closed. At least once.
    Auto,
    /// Durably before it is sent: at most once. What a consumer is sent and does not work on is lost.
    None,
}

/// Configures a consumer; made by [`Client::consumer`].
///
/// ```no_run
/// # async fn example(client: waterwheel::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use waterwheel::client::{Backoff, Mode, RetryPolicy, Start};
///
/// let consumer = client
///     .consumer("billing")
///     .topic("orders")
///     .mode(Mode::KeyOrdered)
///     .filter("tag = 'paid' AND amount >= 100")
///     .from(Start::Latest)
///     .lease(Duration::from_secs(60))
///     .retry(RetryPolicy {
///         backoff: Backoff::Linear { step_ms: 1_000, max_ms: 60_000 },
///         attempts_max: 5,
///         ..RetryPolicy::default()
///     })
///     .open()
///     .await?;
/// # consumer.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing happens before `open`"]
pub struct ConsumerBuilder {
    client: Client,
    group: String,
    topics: Vec<String>,
    template: Subscription,
    name: String,
    grace: Duration,
    ack: AckMode,
    pull: bool,
    prefetch_bytes: u64,
    prefetch_records: u32,
    timeout: Duration,
}

impl ConsumerBuilder {
    pub(super) fn new(client: Client, group: &str) -> Self {
        Self {
            client,
            group: group.to_owned(),
            topics: Vec::new(),
            template: Subscription::new(""),
            name: String::new(),
            grace: Duration::ZERO,
            ack: AckMode::default(),
            pull: false,
            prefetch_bytes: PREFETCH_BYTES_DEFAULT,
            prefetch_records: PREFETCH_RECORDS_DEFAULT,
            timeout: TIMEOUT_DEFAULT,
        }
    }

    /// A topic to consume; several by several calls. At least one is needed.
    pub fn topic(mut self, topic: &str) -> Self {
        self.topics.push(topic.to_owned());
        self
    }

    /// Who gets which records. Must be what the group's subscription has, if it has one. Default shared.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.template.mode = mode;
        self
    }

    /// Which records are wanted: `paid || shipped`, or a condition, e.g. `priority >= 3 AND region = 'EU'`.
    /// Must be what the group's subscription has, if it has one. Default all.
    pub fn filter(mut self, filter: &str) -> Self {
        filter.clone_into(&mut self.template.filter);
        self
    }

    /// Where the subscription begins if it is made by this. Default: the first record there is.
    pub fn from(mut self, start: Start) -> Self {
        self.template.start = start.into();
        self
    }

    /// What happens to records that are not consumed at once, if the subscription is made by this.
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.template.retry = Some(retry);
        self
    }

    /// How long a record is this member's before it comes to another, if the subscription is made by this:
    /// 100 ms to 30 days. Default 30 s.
    ///
    /// While a record waits in the consumer's queue, its lease is renewed, as long as the consumer goes on
    /// taking records; one that has taken none for this long is not waited for. From when it is given out, at
    /// least two thirds of the time are the application's: [`Consumer::extend`] gives more.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.template.lease_ms = ms(lease);
        self
    }

    /// When a record counts as consumed. Default [`AckMode::Manual`].
    pub fn ack(mut self, ack: AckMode) -> Self {
        self.ack = ack;
        self
    }

    /// A name of the member's own. A later consumer of the same name takes over from an earlier one; in
    /// broadcast mode it goes on where that was. Default: the broker makes one.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// How long partitions are kept for the member when its connection is lost. Needs a name. Default not
    /// at all.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Nothing is sent ahead: only [`Consumer::next_batch`] brings records, as many as it asks for.
    pub fn pull(mut self) -> Self {
        self.pull = true;
        self
    }

    /// What the member may hold unsettled of a topic. Default 8 MiB and 10 000 records; settling is what
    /// lets more come.
    pub fn prefetch(mut self, bytes: u64, records: u32) -> Self {
        self.prefetch_bytes = bytes.max(1);
        self.prefetch_records = records.max(1);
        self
    }

    /// How long to look for a broker when the connection is lost. Default 120 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Joins the group, making it and its subscriptions where there are none.
    ///
    /// # Errors
    /// [`ConsumeError`]: no such topic, a filter that does not parse, a subscription with another mode or
    /// filter, or no broker.
    pub async fn open(self) -> Result<Consumer, ConsumeError> {
        let topics = u64::try_from(self.topics.len()).unwrap_or(u64::MAX).max(1);
        let share = self.client.limits().credit_bytes_max / topics;
        let plan = Plan {
            group: self.group,
            subscriptions: self
                .topics
                .iter()
                .map(|topic| Subscription {
                    topic: topic.clone(),
                    ..self.template.clone()
                })
                .collect(),
            name: self.name,
            grace_ms: ms(self.grace),
            at_most_once: self.ack == AckMode::None,
            pull: self.pull,
            prefetch_bytes: self.prefetch_bytes.min(share).max(1),
            prefetch_records: u64::from(self.prefetch_records),
            timeout: self.timeout,
        };
        let Wires {
            say,
            told,
            hand,
            name,
            subscriptions,
        } = membership::start(plan, self.client.board()).await?;
        Ok(Consumer {
            settler: Settler::new(say.clone(), Arc::clone(&hand)),
            say,
            told,
            hand,
            name,
            subscriptions,
            ack: self.ack,
            pull: self.pull,
            current: None,
            ready: VecDeque::new(),
            given: Vec::new(),
            taken: Vec::new(),
            held: None,
            next_token: 0,
            withdrawing: None,
            over: false,
            _client: self.client,
        })
    }
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A member of a consumer group: a stream of the records it is given.
///
/// Dropping it leaves the group; what it has not settled comes to others at once. [`Consumer::close`] waits
/// for what was said first. A wait that is cancelled loses nothing.
///
/// ```
/// # actix_rt::System::new().block_on(async {
/// # let broker = waterwheel::Broker::start(waterwheel::Config::temporary()).await?;
/// # let client = broker.client().await?;
/// use std::time::Duration;
/// use waterwheel::client::{Record, TopicConfig};
///
/// client.create_topic("orders", TopicConfig::new(1)).await?;
/// client.producer("orders").open().await?.send(Record::new("42 roses")).await?;
///
/// let mut consumer = client.consumer("billing").topic("orders").open().await?;
/// for delivery in consumer.next_batch(100, Duration::from_secs(10)).await? {
///     assert_eq!(delivery.value, "42 roses");
///     consumer.ack(&delivery).await?; // durable once this returns
/// }
/// consumer.close().await;
/// # broker.stop().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[must_use = "a consumer does nothing unless it is polled"]
pub struct Consumer {
    say: mpsc::UnboundedSender<Say>,
    told: mpsc::UnboundedReceiver<Told>,
    hand: Arc<Hand>,
    settler: Settler,
    name: String,
    subscriptions: Vec<Subscription>,
    ack: AckMode,
    pull: bool,
    /// The batch that is being taken.
    current: Option<Box<LeasedBatch>>,
    /// Taken for a batch that was not given out: a cancelled wait left them here.
    ready: VecDeque<Delivery>,
    /// Given out and to be acknowledged when the next is asked for.
    given: Vec<(LeaseTag, u64)>,
    /// Settled before they came: what gives their credit back.
    taken: Vec<LeaseTag>,
    /// An error that came behind records that were returned first.
    held: Option<ConsumeError>,
    next_token: u64,
    /// A withdrawal that was asked for and not answered.
    withdrawing: Option<u64>,
    over: bool,
    /// Keeps the connection.
    _client: Client,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Consumer {
    /// The member's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The group's subscriptions this consumer takes part in, as they are.
    #[must_use]
    pub fn subscriptions(&self) -> &[Subscription] {
        &self.subscriptions
    }

    /// The next record; none when the membership is over.
    ///
    /// A record that cannot be read is an error behind which the consumer goes on: it is refused by itself and
    /// ends among the dead letters.
    pub async fn next(&mut self) -> Option<Result<Delivery, ConsumeError>> {
        StreamExt::next(self).await
    }

    /// Takes up to `max` records. A consumer that is sent records ahead waits up to `wait` for the first and
    /// takes what is there by then; one that [pulls](ConsumerBuilder::pull) waits until there are `max` or
    /// `wait` is over. Empty where nothing came in time, or at the end.
    ///
    /// # Errors
    /// [`ConsumeError`], where it is the first thing that comes; what came before an error is returned
    /// first.
    pub async fn next_batch(
        &mut self,
        max: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, ConsumeError> {
        self.acknowledge_given();
        if max == 0 {
            return Ok(Vec::new());
        }
        let deadline = Instant::now() + wait;
        let found = if self.pull {
            self.fill_by_pull(max, deadline).await
        } else {
            self.fill(max, deadline).await
        };
        if let Err(error) = found {
            if self.ready.is_empty() {
                return Err(error);
            }
            self.held = Some(error);
        }
        let count = self.ready.len().min(max);
        let batch: Vec<Delivery> = self.ready.drain(..count).collect();
        for delivery in &batch {
            self.give(delivery);
        }
        Ok(batch)
    }

    /// Waits for a first record, then takes what is there.
    async fn fill(&mut self, max: usize, deadline: Instant) -> Result<(), ConsumeError> {
        if self.ready.is_empty() {
            match timeout_at(deadline, self.next_taken()).await {
                Ok(Some(first)) => self.ready.push_back(first?),
                Ok(None) | Err(_) => return Ok(()),
            }
        }
        while self.ready.len() < max {
            match self.next_taken().now_or_never() {
                Some(Some(next)) => self.ready.push_back(next?),
                Some(None) | None => break,
            }
        }
        Ok(())
    }

    /// Has as many sent as are missing, and nothing more once they are there or the time is over.
    async fn fill_by_pull(&mut self, max: usize, deadline: Instant) -> Result<(), ConsumeError> {
        // A wait that was cancelled may have left a withdrawal under way: what is granted behind it stays.
        let missing = max.saturating_sub(self.ready.len());
        if missing > 0 {
            let _ = self.say.send(Say::Want(missing as u64));
        }
        while self.ready.len() < max {
            match timeout_at(deadline, self.next_taken()).await {
                Ok(Some(next)) => self.ready.push_back(next?),
                Ok(None) => return Ok(()),
                Err(_) => return self.withdraw().await,
            }
        }
        Ok(())
    }

    /// Says that nothing more is wanted, and takes what was on its way.
    async fn withdraw(&mut self) -> Result<(), ConsumeError> {
        self.next_token += 1;
        let token = self.next_token;
        self.withdrawing = Some(token);
        if self.say.send(Say::Enough(token)).is_err() {
            return Ok(());
        }
        while self.withdrawing.is_some() {
            match self.next_taken().await {
                Some(next) => self.ready.push_back(next?),
                None => break,
            }
        }
        Ok(())
    }

    /// The record is consumed. Said at once; await the settlement to hear that it is durable.
    pub fn ack(&self, delivery: &Delivery) -> Settlement {
        self.settler.ack(delivery)
    }

    /// These records are consumed.
    pub fn ack_batch<'a>(&self, deliveries: impl IntoIterator<Item = &'a Delivery>) -> Settlement {
        self.settler.ack_batch(deliveries)
    }

    /// The record is consumed, and every one before it in its partition that this consumer has.
    pub fn ack_cumulative(&self, delivery: &Delivery) -> Settlement {
        self.settler.ack_cumulative(delivery)
    }

    /// The record could not be consumed: it comes again as the subscription's backoff says.
    pub fn nack(&self, delivery: &Delivery, reason: &str) -> Settlement {
        self.settler.nack(delivery, reason)
    }

    /// The same, but it comes again after `after`.
    pub fn nack_after(&self, delivery: &Delivery, reason: &str, after: Duration) -> Settlement {
        self.settler.nack_after(delivery, reason, after)
    }

    /// The record will never be consumed: it goes to the dead letters at once.
    pub fn reject(&self, delivery: &Delivery, reason: &str) -> Settlement {
        self.settler.reject(delivery, reason)
    }

    /// The record takes longer: it is this consumer's for `lease` from now on.
    pub fn extend(&self, delivery: &Delivery, lease: Duration) -> Settlement {
        self.settler.extend(delivery, lease)
    }

    /// Settles records from elsewhere, while the consumer is polled here. Cheap to clone.
    #[must_use]
    pub fn settler(&self) -> Settler {
        self.settler.clone()
    }

    /// Whether a record is still this consumer's: its lease is not known to have expired or to have been lost.
    #[must_use]
    pub fn holds(&self, delivery: &Delivery) -> bool {
        delivery
            .lease
            .is_some_and(|tag| self.hand.holds(tag, delivery.offset))
    }

    pub(super) fn hand(&self) -> Arc<Hand> {
        Arc::clone(&self.hand)
    }

    /// The shortest lease of its subscriptions.
    pub(super) fn lease(&self) -> Duration {
        let shortest = self.subscriptions.iter().map(|s| s.lease_ms).min();
        Duration::from_millis(shortest.unwrap_or(30_000).max(100))
    }

    /// Leaves in good order: waits until what was said of records is durable, then leaves the group. What
    /// was not settled comes to others at once. With [`AckMode::Auto`] what was given out counts as consumed.
    pub async fn close(mut self) {
        self.acknowledge_given();
        let (done, left) = oneshot::channel();
        if self.say.send(Say::Leave(done)).is_ok() {
            let _ = left.await;
        }
    }

    /// Notes that a record is in the caller's hands.
    fn give(&mut self, delivery: &Delivery) {
        let Some(tag) = delivery.lease else { return };
        if tag.is_settled {
            self.taken.push(tag);
            if self.taken.len() >= TAKEN_MAX || self.ready.is_empty() {
                let _ = self.say.send(Say::Taken(std::mem::take(&mut self.taken)));
            }
        } else if self.ack == AckMode::Auto {
            self.given.push((tag, delivery.offset));
        }
    }

    fn acknowledge_given(&mut self) {
        for (tag, offset) in self.given.drain(..) {
            self.settler.say_of(tag, offset, Verdict::Consumed);
        }
    }

    async fn next_taken(&mut self) -> Option<Result<Delivery, ConsumeError>> {
        std::future::poll_fn(|context| self.poll_taken(context)).await
    }

    /// The next record as it comes; pending withdrawals are noted on the way, and end the wait of who waits
    /// for them by way of `withdrawing`.
    fn poll_taken(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Delivery, ConsumeError>>> {
        if let Some(error) = self.held.take() {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            if let Some(batch) = &mut self.current {
                if batch.session() != self.hand.session() {
                    self.current = None;
                    continue;
                }
                let next = batch.next();
                let (is_first, is_last) = (batch.is_lease_begun(), batch.is_lease_over());
                let record = next.as_ref().and_then(|next| match next {
                    Ok(delivery) => delivery.lease.map(|tag| (tag, delivery.offset)),
                    Err(bad) => Some((bad.tag, bad.offset)),
                });
                if let Some((tag, offset)) = record {
                    self.hand.took(tag.lease, is_last);
                    match self.hand.standing(tag, offset, is_first) {
                        Standing::Held => {}
                        // What was lost meanwhile is another's by now.
                        Standing::Lost => {
                            self.settler.pass_over(tag);
                            continue;
                        }
                        Standing::Leaving => {
                            let unseen = Verdict::Not(RetryAfter::Unseen, String::new());
                            self.settler.say_of(tag, offset, unseen);
                            continue;
                        }
                    }
                }
                match next {
                    Some(Ok(delivery)) => return Poll::Ready(Some(Ok(delivery))),
                    Some(Err(bad)) => {
                        let Bad { tag, offset, error } = *bad;
                        let verdict = Verdict::Not(RetryAfter::Policy, error.to_string());
                        if tag.is_settled {
                            self.taken.push(tag);
                        } else {
                            self.settler.say_of(tag, offset, verdict);
                        }
                        return Poll::Ready(Some(Err(error)));
                    }
                    None => self.current = None,
                }
            }
            if self.over {
                return Poll::Ready(None);
            }
            match ready!(self.told.poll_recv(context)) {
                Some(Told::Batch(batch)) => self.current = Some(batch),
                Some(Told::Withdrawn(token)) => {
                    if self.withdrawing == Some(token) {
                        self.withdrawing = None;
                        return Poll::Ready(None);
                    }
                }
                Some(Told::Failed(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    self.over = true;
                    self.withdrawing = None;
                }
            }
        }
    }
}

impl Stream for Consumer {
    type Item = Result<Delivery, ConsumeError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.acknowledge_given();
        let next = match self.ready.pop_front() {
            Some(delivery) => Some(Ok(delivery)),
            None => ready!(self.poll_taken(context)),
        };
        if let Some(Ok(delivery)) = &next {
            self.give(delivery);
        }
        Poll::Ready(next)
    }
}

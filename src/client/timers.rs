//! Delayed records that wait for their time: cancelling, rescheduling, looking, listing.
//!
//! Every answer is exact and the same to whoever asks, at any distance from the due time and across
//! restarts of the broker: what the log took first has happened. Asking twice, as after a lost
//! connection, is therefore harmless: a cancelled record stays cancelled.

use std::time::Duration;

use super::Client;
use super::error::AdminError;
use crate::domain::id::{Lane, PartitionIndex, RecordNumber, TopicId};
use crate::domain::time::WallMs;
use crate::wire::timer::{
    AskTimer, ListTimers, ListedTimer, TimerAction, TimerHandle, TimerOk, TimerState, TimersOk,
};
use crate::wire::topic::decode_list;

/// Timers of one page unless asked otherwise.
const PAGE_DEFAULT: u32 = 100;

/// What can be done about delayed records; made by [`Client::timers`].
///
/// ```
/// # actix_rt::System::new().block_on(async {
/// # let broker = waterwheel::Broker::start(waterwheel::Config::temporary()).await?;
/// # let client = broker.client().await?;
/// use std::time::Duration;
/// use waterwheel::client::{Record, TimerState, TopicConfig};
///
/// client.create_topic("reminders", TopicConfig::new(1)).await?;
/// let producer = client.producer("reminders").open().await?;
/// let tea = Record::new("tea").deliver_after(Duration::from_secs(3600));
/// let receipt = producer.send(tea).await?;
/// let timer = receipt.timer.ok_or("it is not delayed")?;
///
/// let timers = client.timers();
/// assert!(matches!(timers.get(&timer).await?, TimerState::Pending { .. }));
/// assert_eq!(timers.cancel(&timer).await?, TimerState::Cancelled);
/// # broker.stop().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct Timers {
    client: Client,
}

/// A delayed record that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PendingTimer {
    /// The partition.
    pub partition: u32,
    /// When it is due, in Unix milliseconds.
    pub due_ms: i64,
    /// By this it can be cancelled and rescheduled.
    pub handle: TimerHandle,
}

/// Some of a topic's delayed records.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimerPage {
    /// By partition, and there in the order they were stored. May be empty though there are more.
    pub timers: Vec<PendingTimer>,
    /// How many wait in the partition the page ends in, whatever their time.
    pub pending: u64,
}

impl Timers {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Cancels a delayed record: unless it was published before, it never is.
    ///
    /// # Errors
    /// As for all requests: [`AdminError::Unreachable`], [`AdminError::TimedOut`]. That there is no such
    /// record is an answer, [`TimerState::NotFound`].
    pub async fn cancel(&self, timer: &TimerHandle) -> Result<TimerState, AdminError> {
        self.ask(timer, TimerAction::Cancel).await
    }

    /// Moves a delayed record to another time, earlier or later; one that has passed publishes it at
    /// once.
    ///
    /// # Errors
    /// Refused with `delay-too-long`; otherwise as for all requests.
    pub async fn reschedule_at(
        &self,
        timer: &TimerHandle,
        at: impl Into<WallMs>,
    ) -> Result<TimerState, AdminError> {
        self.ask(timer, TimerAction::At(at.into())).await
    }

    /// The same, by a span from now on.
    ///
    /// # Errors
    /// As [`Timers::reschedule_at`].
    pub async fn reschedule_after(
        &self,
        timer: &TimerHandle,
        span: Duration,
    ) -> Result<TimerState, AdminError> {
        let ms = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        self.ask(timer, TimerAction::After(ms)).await
    }

    /// How a delayed record stands.
    ///
    /// # Errors
    /// As for all requests.
    pub async fn get(&self, timer: &TimerHandle) -> Result<TimerState, AdminError> {
        self.ask(timer, TimerAction::Look).await
    }

    async fn ask(
        &self,
        timer: &TimerHandle,
        action: TimerAction,
    ) -> Result<TimerState, AdminError> {
        if timer.cluster != self.client.broker().cluster {
            return Ok(TimerState::NotFound);
        }
        let request = AskTimer {
            topic: timer.topic,
            partition: timer.partition,
            lane: timer.lane,
            leader_epoch: 0,
            first: timer.first,
            number: timer.number,
            key: timer.key,
            action,
        };
        Ok(self.client.ask::<_, TimerOk>(&request).await?.0.state)
    }

    /// Lists a topic's delayed records that wait, a page at a time.
    #[must_use]
    pub fn list(&self, topic: &str) -> ListTimersBuilder {
        ListTimersBuilder {
            client: self.client.clone(),
            topic: topic.to_owned(),
            found: None,
            due_from: WallMs(i64::MIN),
            due_before: WallMs(i64::MAX),
            max: PAGE_DEFAULT,
            partition: 0,
            from: RecordNumber(0),
        }
    }
}

/// Lists delayed records; made by [`Timers::list`]. Each [`ListTimersBuilder::page`] goes on where the
/// one before ended.
#[derive(Debug, Clone)]
pub struct ListTimersBuilder {
    client: Client,
    topic: String,
    found: Option<(TopicId, u32)>,
    due_from: WallMs,
    due_before: WallMs,
    max: u32,
    partition: u32,
    from: RecordNumber,
}

impl ListTimersBuilder {
    /// Only those due at this time or later.
    #[must_use]
    pub fn due_from(mut self, at: impl Into<WallMs>) -> Self {
        self.due_from = at.into();
        self
    }

    /// Only those due before this time.
    #[must_use]
    pub fn due_before(mut self, at: impl Into<WallMs>) -> Self {
        self.due_before = at.into();
        self
    }

    /// So many a page at most. Default 100; the broker gives up to 1 000.
    #[must_use]
    pub fn page_size(mut self, max: u32) -> Self {
        self.max = max;
        self
    }

    /// The next page; none after the last.
    ///
    /// # Errors
    /// Refused with `unknown-topic`; otherwise as for all requests.
    pub async fn page(&mut self) -> Result<Option<TimerPage>, AdminError> {
        let (topic, partitions) = match self.found {
            Some(found) => found,
            None => {
                let topic = self.client.topic(&self.topic).await?;
                *self.found.insert((topic.id, topic.config.partitions))
            }
        };
        if self.partition >= partitions {
            return Ok(None);
        }
        let partition = PartitionIndex(self.partition);
        let request = ListTimers {
            topic,
            partition,
            lane: Lane::ZERO,
            leader_epoch: 0,
            from: self.from,
            due_from: self.due_from,
            due_before: self.due_before,
            max: self.max.max(1),
        };
        let (answer, body) = self.client.ask::<_, TimersOk>(&request).await?;
        let listed: Vec<ListedTimer> = decode_list(&body).map_err(AdminError::Protocol)?;
        let cluster = self.client.broker().cluster;
        let timers = listed
            .into_iter()
            .map(|timer| PendingTimer {
                partition: partition.0,
                due_ms: timer.due.0,
                handle: TimerHandle {
                    cluster,
                    topic,
                    partition,
                    lane: Lane::ZERO,
                    first: timer.number,
                    number: timer.number,
                    key: timer.key,
                },
            })
            .collect();
        match answer.next {
            Some(next) => self.from = next,
            None => {
                self.partition += 1;
                self.from = RecordNumber(0);
            }
        }
        Ok(Some(TimerPage {
            timers,
            pending: answer.pending,
        }))
    }
}

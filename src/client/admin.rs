//! Topics, offsets and the broker's state: one request, one answer.
//!
//! A request outlives a lost connection: it is asked again on the next one until the client's timeout
//! is over. What is asked twice is harmless but for creating and deleting: where the first answer was
//! lost, the second may say that the topic exists already, or not any more.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout_at};

use super::Client;
use super::error::{AdminError, Refusal};
use super::link::{Link, RequestError};
use super::switchboard::next_link;
use crate::domain::id::{Lane, PartitionIndex};
use crate::domain::time::WallMs;
use crate::wire::code::Code;
use crate::wire::frame::Header;
use crate::wire::status::{ACTORS_MAX, ActorInfo, Status, StatusOk};
use crate::wire::topic::{
    AlterTopic, At, CreateTopic, DeleteTopic, DescribeTopic, LookupOffset, Metadata, MetadataOk,
    OffsetOk, PartitionInfo, TopicConfig, TopicInfo, TopicOk, decode_list,
};

/// A place in a partition to start reading from, or to look up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// The first record that is still there.
    #[default]
    Earliest,
    /// Whatever comes from now on.
    Latest,
    /// An offset.
    Offset(u64),
    /// The first record appended at that time (Unix milliseconds) or later.
    Time(i64),
}

impl From<Start> for At {
    fn from(start: Start) -> Self {
        match start {
            Start::Earliest => Self::Earliest,
            Start::Latest => Self::Latest,
            Start::Offset(offset) => Self::Offset(crate::domain::id::Offset(offset)),
            Start::Time(ms) => Self::Time(WallMs(ms)),
        }
    }
}

/// A topic with its partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicDescription {
    /// The topic.
    pub topic: TopicInfo,
    /// Its partitions, by index.
    pub partitions: Vec<PartitionInfo>,
}

/// A topic that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeletedTopic {
    /// The topic as it was.
    pub topic: TopicInfo,
    /// How many delayed records waited in it, counted right before: they are gone with it.
    pub timers: u64,
}

/// How the broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerStatus {
    /// The figures.
    pub broker: StatusOk,
    /// Its actors, if they were asked for.
    pub actors: Vec<ActorInfo>,
}

/// Between two tries of a request that was put off.
const PAUSE: Duration = Duration::from_millis(50);

impl Client {
    /// Makes a topic.
    ///
    /// # Errors
    /// Refused with `topic-exists`, `invalid-name`, `invalid-config`; otherwise as for all requests.
    pub async fn create_topic(
        &self,
        name: &str,
        config: TopicConfig,
    ) -> Result<TopicInfo, AdminError> {
        let request = CreateTopic {
            name: name.to_owned(),
            config,
        };
        Ok(self.ask::<_, TopicOk>(&request).await?.0.topic)
    }

    /// A topic of that name: the one that is there, as it is, or a new one. Whether it is as asked for, its
    /// [`config`](TopicInfo::config) says.
    ///
    /// # Errors
    /// Refused with `invalid-name`, `invalid-config`; otherwise as for all requests.
    pub async fn create_topic_if_absent(
        &self,
        name: &str,
        config: TopicConfig,
    ) -> Result<TopicInfo, AdminError> {
        loop {
            match self.create_topic(name, config.clone()).await {
                Err(AdminError::Refused(refusal)) if refusal.code == Code::TopicExists => {}
                made => return made,
            }
            match self.topic(name).await {
                // Deleted in between.
                Err(AdminError::Refused(refusal)) if refusal.code == Code::UnknownTopic => {}
                found => return found,
            }
        }
    }

    /// All topics.
    ///
    /// # Errors
    /// As for all requests: [`AdminError::Unreachable`], [`AdminError::TimedOut`].
    pub async fn topics(&self) -> Result<Vec<TopicInfo>, AdminError> {
        let (_, body) = self.ask::<_, MetadataOk>(&Metadata::default()).await?;
        decode_list(&body).map_err(AdminError::Protocol)
    }

    /// One topic, without asking its partitions.
    ///
    /// # Errors
    /// Refused with `unknown-topic`; otherwise as for all requests.
    pub async fn topic(&self, name: &str) -> Result<TopicInfo, AdminError> {
        let request = Metadata {
            topics: vec![name.to_owned()],
        };
        let (_, body) = self.ask::<_, MetadataOk>(&request).await?;
        let topics: Vec<TopicInfo> = decode_list(&body).map_err(AdminError::Protocol)?;
        let found = topics.into_iter().find(|topic| topic.name == name);
        found.ok_or_else(|| {
            AdminError::Refused(Refusal {
                code: Code::UnknownTopic,
                message: format!("there is no topic '{name}'"),
                after_ms: None,
            })
        })
    }

    /// A topic and the state of its partitions.
    ///
    /// # Errors
    /// Refused with `unknown-topic`; otherwise as for all requests.
    pub async fn describe_topic(&self, name: &str) -> Result<TopicDescription, AdminError> {
        let request = DescribeTopic {
            name: name.to_owned(),
        };
        let (TopicOk { topic, .. }, body) = self.ask(&request).await?;
        Ok(TopicDescription {
            topic,
            partitions: decode_list(&body).map_err(AdminError::Protocol)?,
        })
    }

    /// Changes a topic: what the request leaves out stays as it is.
    ///
    /// # Errors
    /// Refused with `unknown-topic`, `keyed-topic`, `invalid-config`; otherwise as for all requests.
    pub async fn alter_topic(&self, change: &AlterTopic) -> Result<TopicInfo, AdminError> {
        Ok(self.ask::<_, TopicOk>(change).await?.0.topic)
    }

    /// Deletes a topic and what is in it, the delayed records that wait there too: the answer says how many
    /// those were.
    ///
    /// # Errors
    /// Refused with `unknown-topic`; otherwise as for all requests.
    pub async fn delete_topic(&self, name: &str) -> Result<DeletedTopic, AdminError> {
        let request = DeleteTopic {
            name: name.to_owned(),
        };
        let (TopicOk { topic, timers }, _) = self.ask(&request).await?;
        Ok(DeletedTopic { topic, timers })
    }

    /// Where a partition begins and ends, and the offset of a place in it.
    ///
    /// # Errors
    /// Refused with `unknown-topic`, `partition-out-of-range`; otherwise as for all requests.
    pub async fn lookup_offset(
        &self,
        topic: &TopicInfo,
        partition: u32,
        at: Start,
    ) -> Result<OffsetOk, AdminError> {
        let request = LookupOffset {
            topic: topic.id,
            partition: PartitionIndex(partition),
            lane: Lane::ZERO,
            at: at.into(),
        };
        Ok(self.ask(&request).await?.0)
    }

    /// How the broker is, with its actors if `actors`.
    ///
    /// # Errors
    /// As for all requests: [`AdminError::Unreachable`], [`AdminError::TimedOut`].
    pub async fn status(&self, actors: bool) -> Result<BrokerStatus, AdminError> {
        let mut request = Status {
            actors,
            ..Status::default()
        };
        let mut all: Vec<ActorInfo> = Vec::new();
        loop {
            let (broker, body) = self.ask(&request).await?;
            let page: Vec<ActorInfo> = decode_list(&body).map_err(AdminError::Protocol)?;
            let is_last = page.len() < ACTORS_MAX;
            all.extend(page);
            match all.last() {
                Some(last) if !is_last => {
                    request.from_kind.clone_from(&last.kind);
                    request.from_id = last.id.saturating_add(1);
                }
                Some(_) | None => {
                    return Ok(BrokerStatus {
                        broker,
                        actors: all,
                    });
                }
            }
        }
    }

    /// Asks until there is an answer, over as many connections as it takes, within the client's timeout.
    pub(super) async fn ask<H: Header, A: Header>(
        &self,
        request: &H,
    ) -> Result<(A, Bytes), AdminError> {
        let timeout = self.request_timeout();
        let deadline = Instant::now() + timeout;
        let mut board = self.board();
        let mut stale: Option<Arc<Link>> = None;
        let mut lost = None;
        loop {
            let link = match timeout_at(deadline, next_link(&mut board, stale.as_ref())).await {
                Ok(Some(link)) => link,
                Ok(None) => return Err(AdminError::Disconnected),
                Err(_) => return Err(too_late(lost, timeout)),
            };
            let refusal = match timeout_at(deadline, link.ask(request)).await {
                Err(_) => return Err(too_late(lost, timeout)),
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(RequestError::Protocol(reason))) => {
                    return Err(AdminError::Protocol(reason));
                }
                Ok(Err(RequestError::Lost(reason))) => {
                    lost = Some(reason);
                    stale = Some(link);
                    continue;
                }
                Ok(Err(RequestError::Refused(refusal))) => refusal,
            };
            let pause = refusal.after_ms.map_or(PAUSE, Duration::from_millis);
            if !refusal.code.is_retriable() || Instant::now() + pause >= deadline {
                return Err(AdminError::Refused(refusal));
            }
            sleep(pause).await;
        }
    }
}

fn too_late(lost: Option<String>, timeout: Duration) -> AdminError {
    match lost {
        Some(reason) => AdminError::Unreachable(reason),
        None => AdminError::TimedOut(timeout.as_millis()),
    }
}

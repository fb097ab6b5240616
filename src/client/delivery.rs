//! What comes out of reading: batches, and the records in them.

use std::sync::Arc;

use bytes::Bytes;

use super::error::ConsumeError;
use super::leased::LeaseTag;
use crate::domain::batch::{BatchView, Bodies};
use crate::domain::id::{Lane, MessageId};
use crate::domain::record::{RecordBody, Text};
use crate::wire::reader::RecordDetail;

/// A record as it was stored. Its parts are slices of the batch it came in: a small one that is kept
/// keeps the whole batch in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivery {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// The offset in the partition.
    pub offset: u64,
    /// When the broker appended it, in Unix milliseconds: of a delayed record when it was stored, long
    /// before it could be read.
    pub time_ms: i64,
    /// When it was due, in Unix milliseconds, if it was delayed.
    pub due_ms: Option<i64>,
    /// When it fired, in Unix milliseconds, if it was delayed: at `due_ms` or after, never before.
    pub fired_ms: Option<i64>,
    /// When its sender says it happened, in Unix milliseconds.
    pub timestamp_ms: i64,
    /// The message's identity: the same however often it is delivered.
    pub id: MessageId,
    /// The key, if it has one.
    pub key: Option<Bytes>,
    /// The payload.
    pub value: Bytes,
    /// The tag, if it has one.
    pub tag: Option<Text>,
    /// The headers in the sender's order.
    pub headers: Vec<(Text, Bytes)>,
    /// How often it has been delivered to the consumer group, this time counted: from 1. 0 for a reader,
    /// which belongs to no group.
    pub attempt: u16,
    /// The priority level it was sent at.
    pub priority: u8,
    /// The lease it is under, if it was delivered to a member of a group.
    pub(crate) lease: Option<LeaseTag>,
}

/// A batch of records as it was stored, checked: an iterator of its records.
///
/// Decoding happens on the way; who only counts or copies batches uses [`DeliveryBatch::view`].
#[derive(Debug)]
pub struct DeliveryBatch {
    topic: Arc<str>,
    partition: u32,
    lane: Lane,
    facts: BatchFacts,
    view: BatchView,
    bodies: Bodies,
    /// Records at the front that are not wanted.
    skip: usize,
}

/// What a batch's frame says of it.
#[derive(Debug)]
pub(super) struct BatchFacts {
    pub(super) first_offset: u64,
    pub(super) appended_ms: i64,
    /// Of each record, where they were published after they were stored.
    pub(super) details: Vec<RecordDetail>,
}

impl DeliveryBatch {
    pub(super) fn new(
        topic: Arc<str>,
        (partition, lane): (u32, Lane),
        facts: BatchFacts,
        view: BatchView,
        bodies: Bodies,
        skip: usize,
    ) -> Self {
        Self {
            topic,
            partition,
            lane,
            facts,
            view,
            bodies,
            skip,
        }
    }

    /// The partition.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// The offset of the first record that is wanted.
    #[must_use]
    pub fn first_offset(&self) -> u64 {
        self.facts.first_offset + self.skip as u64
    }

    /// How many records of the batch are wanted.
    #[must_use]
    pub fn count(&self) -> usize {
        self.view.header().len() - self.skip
    }

    /// The batch as its producer sent it, with the records at its front that are not wanted.
    #[must_use]
    pub fn view(&self) -> &BatchView {
        &self.view
    }

    fn decode(&self, index: usize, body: Bytes) -> Result<Delivery, ConsumeError> {
        let offset = self.facts.first_offset + index as u64;
        let body = RecordBody::decode_taken(body).map_err(|reason| ConsumeError::Unreadable {
            partition: self.partition,
            offset,
            reason,
        })?;
        let detail = self.facts.details.get(index);
        let due = detail.and_then(|detail| detail.due);
        let published = detail.map(|detail| detail.published.0);
        Ok(Delivery {
            topic: Arc::clone(&self.topic),
            partition: self.partition,
            offset,
            time_ms: detail.map_or(self.facts.appended_ms, |detail| detail.stored.0),
            due_ms: due.map(|due| due.0),
            fired_ms: due.and(published),
            timestamp_ms: self.view.timestamp(index).0,
            id: body.id,
            key: body.key,
            value: body.value,
            tag: body.tag,
            headers: body.headers,
            attempt: 0,
            priority: self.lane.0,
            lease: None,
        })
    }
}

impl Iterator for DeliveryBatch {
    type Item = Result<Delivery, ConsumeError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (index, body) = match self.bodies.next()? {
                Ok(found) => found,
                Err(reason) => {
                    return Some(Err(ConsumeError::Damaged {
                        partition: self.partition,
                        offset: self.facts.first_offset,
                        reason,
                    }));
                }
            };
            if index >= self.skip {
                return Some(self.decode(index, body));
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, self.bodies.size_hint().1)
    }
}

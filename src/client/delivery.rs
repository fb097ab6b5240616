//! What comes out of reading: batches, and the records in them.

use std::sync::Arc;

use bytes::Bytes;

use super::error::ConsumeError;
use crate::domain::batch::{BatchView, Bodies};
use crate::domain::id::MessageId;
use crate::domain::record::{RecordBody, Text};
use crate::wire::reader::Deliver;

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
    /// When the broker appended it, in Unix milliseconds.
    pub time_ms: i64,
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
}

/// A batch of records as it was stored, checked: an iterator of its records.
///
/// Decoding happens on the way; who only counts or copies batches uses [`DeliveryBatch::view`].
#[derive(Debug)]
pub struct DeliveryBatch {
    topic: Arc<str>,
    partition: u32,
    first_offset: u64,
    appended_ms: i64,
    view: BatchView,
    bodies: Bodies,
    /// Records at the front that are not wanted.
    skip: usize,
}

impl DeliveryBatch {
    pub(super) fn new(
        topic: Arc<str>,
        partition: u32,
        deliver: &Deliver,
        view: BatchView,
        bodies: Bodies,
        skip: usize,
    ) -> Self {
        Self {
            topic,
            partition,
            first_offset: deliver.first_offset.0,
            appended_ms: deliver.appended.0,
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
        self.first_offset + self.skip as u64
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
        let offset = self.first_offset + index as u64;
        let body = RecordBody::decode_taken(body).map_err(|reason| ConsumeError::Unreadable {
            partition: self.partition,
            offset,
            reason,
        })?;
        Ok(Delivery {
            topic: Arc::clone(&self.topic),
            partition: self.partition,
            offset,
            time_ms: self.appended_ms,
            timestamp_ms: self.view.timestamp(index).0,
            id: body.id,
            key: body.key,
            value: body.value,
            tag: body.tag,
            headers: body.headers,
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
                        offset: self.first_offset,
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

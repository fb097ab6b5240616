//! What is sent in a transaction: gathered by partition and priority level, sent as batches of one level each,
//! which is what the broker stores.

use std::sync::Arc;

use futures::future::join_all;

use super::session::HalfBatch;
use super::{Transaction, TransactionError};
use crate::client::Record;
use crate::client::producer::now_ms;
use crate::domain::batch::{BatchBuilder, Compression};
use crate::domain::id::{Lane, TopicId};
use crate::domain::key::{key_hash, partition_of};

/// A batch of a transaction is sent when it has so many bytes.
const BATCH_BYTES: usize = 256 * 1024;

/// One partition of a topic, and a level of it.
pub(super) type Target = (TopicId, u32, u8);

impl Transaction {
    /// Puts a record into the transaction. The partition is that of the key; keyless records take turns
    /// by transaction. It keeps its priority; what it says of its delivery counts from the commit. Records
    /// gather; what fills a batch is sent, the rest with the commit. Cancelled, a full batch may be lost: the
    /// transaction can then only be rolled back.
    ///
    /// # Errors
    /// [`TransactionError`]; the transaction can then only be rolled back.
    pub async fn send(&mut self, topic: &str, record: Record) -> Result<(), TransactionError> {
        self.put(topic, None, record).await
    }

    /// The same, to a partition of the caller's choice.
    ///
    /// # Errors
    /// As [`Transaction::send`].
    pub async fn send_to(
        &mut self,
        topic: &str,
        partition: u32,
        record: Record,
    ) -> Result<(), TransactionError> {
        self.put(topic, Some(partition), record).await
    }

    async fn put(
        &mut self,
        topic: &str,
        partition: Option<u32>,
        record: Record,
    ) -> Result<(), TransactionError> {
        self.check()?;
        let session = Arc::clone(&self.producer.session);
        let topic = session.topic(topic).await?;
        let partitions = topic.config.partitions.max(1);
        let partition = match (partition, &record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_of(key_hash(key), partitions).0,
            (None, None) => {
                let turn = self.id.number.0 % u64::from(partitions);
                u32::try_from(turn).unwrap_or(0)
            }
        };
        let level = record.priority;
        if level >= topic.lanes.max(1) {
            let last = topic.lanes.saturating_sub(1);
            return self.fail(TransactionError::Priority {
                priority: level,
                last,
            });
        }
        let target = (topic.id, partition, level);
        let limit = usize::try_from(session.client.limits().batch_bytes_max).unwrap_or(usize::MAX);
        let bytes = BATCH_BYTES.min(limit);
        let at = now_ms();
        let id = record.id.unwrap_or_else(|| self.producer.ids.next(at));
        let put = |batch: &mut BatchBuilder| {
            let put = batch.push_with(&record, id, at, level, record.delivery);
            put.is_ok()
        };
        let fresh = || BatchBuilder::new(bytes, Compression::None);
        if put(self.batches.entry(target).or_insert_with(fresh)) {
            return Ok(());
        }
        if let Some(full) = self.batches.remove(&target).filter(|full| !full.is_empty()) {
            self.send_batches(vec![(target, full)]).await?;
        }
        let mut next = fresh();
        if !put(&mut next) {
            next = BatchBuilder::new(limit, Compression::None);
            if !put(&mut next) {
                return self.fail(TransactionError::TooLarge { limit });
            }
        }
        self.batches.insert(target, next);
        Ok(())
    }

    /// Sends what has gathered and waits until all of it is durable, though invisible.
    ///
    /// # Errors
    /// [`TransactionError`]; the transaction can then only be rolled back.
    pub async fn flush(&mut self) -> Result<(), TransactionError> {
        self.check()?;
        let batches = std::mem::take(&mut self.batches).into_iter().collect();
        self.send_batches(batches).await?;
        self.attached().await
    }

    async fn send_batches(
        &mut self,
        batches: Vec<(Target, BatchBuilder)>,
    ) -> Result<(), TransactionError> {
        if batches.is_empty() {
            return Ok(());
        }
        self.sent = true;
        // Cancelled from here on, something may or may not be stored.
        let before = self.failed.replace(Arc::new(TransactionError::TimedOut));
        let sending = batches.into_iter().map(|(target, builder)| {
            let (topic, partition, level) = target;
            let half = HalfBatch {
                topic,
                partition,
                lane: Lane(level),
                builder,
                immunity_ms: self.immunity_ms,
            };
            let (session, id) = (Arc::clone(&self.producer.session), self.id);
            // In a task of its own: dropped half way, the session would lose count.
            tokio::spawn(async move { session.send(id, half).await })
        });
        let sent = join_all(sending).await;
        self.failed = before;
        for outcome in sent {
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return self.fail(error),
                Err(_) => return self.fail(TransactionError::Closed),
            }
        }
        Ok(())
    }
}

//! Leased records on their way to the application: batches of them, and the lease each one is under.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::delivery::Delivery;
use super::error::ConsumeError;
use super::link::lock;
use crate::domain::batch::{BatchView, Bodies};
use crate::domain::id::{LeaseId, TopicId};
use crate::domain::record::RecordBody;
use crate::wire::consume::{LeaseHead, Leased};

/// The lease a record is under, and in which session of its consumer: what acknowledging needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LeaseTag {
    pub(crate) session: u64,
    pub(crate) lease: LeaseId,
    pub(crate) topic: TopicId,
    pub(crate) lane: u8,
    /// Settled before it was delivered.
    pub(crate) is_settled: bool,
}

/// What a consumer and its task know together of the leases that are in hand.
#[derive(Debug, Default)]
pub(crate) struct Hand {
    /// Counts the times the consumer joined; leases of earlier ones are void.
    session: AtomicU64,
    lost: Mutex<HashSet<LeaseId>>,
}

impl Hand {
    /// Whether a record is still the consumer's.
    pub(crate) fn holds(&self, session: u64, lease: LeaseId) -> bool {
        session == self.session() && !lock(&self.lost).contains(&lease)
    }

    pub(crate) fn session(&self) -> u64 {
        self.session.load(Ordering::Acquire)
    }

    /// All that is in hand is void.
    pub(crate) fn begin(&self) -> u64 {
        lock(&self.lost).clear();
        self.session.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// These leases are lost. Remembered until they would be settled or the session ends.
    pub(crate) fn lose(&self, leases: &[LeaseId]) {
        lock(&self.lost).extend(leases);
    }
}

/// Leased records of one place: an iterator of deliveries.
#[derive(Debug)]
pub(crate) struct LeasedBatch {
    topic_name: Arc<str>,
    session: u64,
    head: Leased,
    view: BatchView,
    bodies: Bodies,
    /// The lease that is being taken, and how many of its records have been.
    at: (usize, u32),
}

/// What became of one record of a batch.
pub(crate) enum Taken {
    Record(Box<Delivery>),
    /// It cannot be read.
    Bad(LeaseTag, u64, ConsumeError),
}

impl LeasedBatch {
    /// Checks a batch that was delivered.
    ///
    /// # Errors
    /// [`ConsumeError`] where it is damaged, or not what was announced.
    pub(crate) fn new(
        topics: &HashMap<TopicId, Arc<str>>,
        session: u64,
        head: Leased,
        body: &Bytes,
    ) -> Result<Self, ConsumeError> {
        let offset = head.leases.first().map_or(0, |lease| lease.first.0);
        let damaged = |reason| ConsumeError::Damaged {
            partition: head.partition.0,
            offset,
            reason,
        };
        let view = BatchView::parse(body).map_err(damaged)?;
        let bodies = view.bodies().map_err(damaged)?;
        let topic_name = topics
            .get(&head.topic)
            .cloned()
            .ok_or_else(|| ConsumeError::Protocol("records of a topic not asked for".into()))?;
        Ok(Self {
            topic_name,
            session,
            head,
            view,
            bodies,
            at: (0, 0),
        })
    }

    pub(crate) fn session(&self) -> u64 {
        self.session
    }

    /// The record that is next: its lease and offset.
    fn wanted(&mut self) -> Option<(LeaseHead, u64)> {
        loop {
            let (index, taken) = self.at;
            let lease = *self.head.leases.get(index)?;
            if taken < lease.count {
                self.at.1 += 1;
                return Some((lease, lease.first.0 + u64::from(taken)));
            }
            self.at = (index + 1, 0);
        }
    }

    fn tag(&self, lease: &LeaseHead) -> LeaseTag {
        LeaseTag {
            session: self.session,
            lease: lease.lease,
            topic: self.head.topic,
            lane: self.head.lane.0,
            is_settled: lease.lease_ms == 0,
        }
    }

    /// The next record.
    pub(crate) fn next(&mut self) -> Option<Taken> {
        let (lease, offset) = self.wanted()?;
        let tag = self.tag(&lease);
        let partition = self.head.partition.0;
        let found = loop {
            match self.bodies.next() {
                Some(Ok((index, body))) => {
                    let at = self.head.base.map(|base| base.0 + index as u64);
                    if at.is_none_or(|at| at == offset) {
                        break Ok((index, body));
                    }
                    if at.is_some_and(|at| at > offset) {
                        break Err(announced());
                    }
                }
                Some(Err(reason)) => {
                    break Err(ConsumeError::Damaged {
                        partition,
                        offset,
                        reason,
                    });
                }
                None => break Err(announced()),
            }
        };
        let decoded = found.and_then(|(index, body)| {
            let body = RecordBody::decode(&body).map_err(|reason| ConsumeError::Unreadable {
                partition,
                offset,
                reason,
            })?;
            Ok((index, body))
        });
        Some(match decoded {
            Err(error) => Taken::Bad(tag, offset, error),
            Ok((index, body)) => Taken::Record(Box::new(Delivery {
                topic: Arc::clone(&self.topic_name),
                partition,
                offset,
                time_ms: self.head.appended.0,
                timestamp_ms: self.view.timestamp(index).0,
                id: body.id,
                key: body.key,
                value: body.value,
                tag: body.tag,
                headers: body.headers,
                due_ms: None,
                fired_ms: None,
                attempt: lease.attempt,
                priority: self.head.lane.0,
                lease: Some(tag),
            })),
        })
    }
}

fn announced() -> ConsumeError {
    ConsumeError::Protocol("a batch holds other records than were announced".into())
}

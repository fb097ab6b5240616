//! Leased records on their way to the application: batches of them, and the lease each one is under.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::delivery::Delivery;
use super::error::ConsumeError;
use super::link::lock;
use crate::domain::batch::{BatchView, Bodies};
use crate::domain::id::{LeaseId, TopicId};
use crate::domain::record::RecordBody;
use crate::domain::time::WallMs;
use crate::wire::consume::{LeaseHead, Leased};

/// The lease a record is under, and in which session of its consumer: what acknowledging needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LeaseTag {
    pub(crate) session: u64,
    pub(crate) lease: LeaseId,
    pub(crate) topic: TopicId,
    pub(crate) partition: u32,
    pub(crate) lane: u8,
    /// Records come in order: what is behind one that is refused is not the consumer's any more.
    pub(crate) is_ordered: bool,
    /// Settled before it was delivered.
    pub(crate) is_settled: bool,
}

impl LeaseTag {
    fn place(&self) -> Place {
        (self.topic, self.partition, self.lane)
    }
}

/// What a consumer has to know of a topic it consumes.
#[derive(Debug, Clone)]
pub(crate) struct Consumed {
    pub(crate) name: Arc<str>,
    /// Whether its records come in order, each partition to one member.
    pub(crate) is_ordered: bool,
}

/// Topic, partition and lane.
type Place = (TopicId, u32, u8);

/// Refusals of one place that are remembered: of earlier ones nothing is left to be taken.
const REFUSALS_MAX: usize = 64;

/// Lost leases that are remembered: more than most consumers ever have in hand, and about a megabyte.
const LOST_MAX: usize = 65_536;

/// What is known of a place whose records come in order.
#[derive(Debug, Default)]
struct Line {
    /// The last lease that came.
    newest: LeaseId,
    /// Records that were refused, each with the last lease that had come by then: what these leases have
    /// behind it was taken back, and comes again behind it.
    refused: Vec<(u64, LeaseId)>,
}

/// Leases with records the application was not given yet.
#[derive(Debug, Default)]
struct Queue {
    waiting: BTreeSet<LeaseId>,
    /// When the application last took a record, or could first have.
    taken: Option<Instant>,
}

/// What a consumer and its task know together of the leases that are in hand.
#[derive(Debug, Default)]
pub(crate) struct Hand {
    /// Counts the times the consumer joined; leases of earlier ones are void.
    session: AtomicU64,
    /// Leases were lost, or records refused, in this session: until then, which is nearly always, none of what
    /// follows has to be looked at for each record.
    has_gaps: AtomicBool,
    /// The application took records since it was looked last.
    takes: AtomicBool,
    /// At most [`LOST_MAX`].
    lost: Mutex<BTreeSet<LeaseId>>,
    lines: Mutex<HashMap<Place, Line>>,
    queue: Mutex<Queue>,
}

impl Hand {
    /// Whether a record is still the consumer's.
    pub(crate) fn holds(&self, tag: LeaseTag, offset: u64) -> bool {
        if tag.session != self.session() {
            return false;
        }
        if !self.has_gaps.load(Ordering::Acquire) {
            return true;
        }
        if lock(&self.lost).contains(&tag.lease) {
            return false;
        }
        if !tag.is_ordered {
            return true;
        }
        let lines = lock(&self.lines);
        let line = lines.get(&tag.place());
        line.is_none_or(|line| {
            let mut refused = line.refused.iter();
            refused.all(|(at, newest)| offset <= *at || tag.lease > *newest)
        })
    }

    /// A lease came.
    pub(crate) fn came(&self, tag: LeaseTag) {
        if !tag.is_settled {
            lock(&self.queue).waiting.insert(tag.lease);
        }
        if tag.is_ordered {
            let mut lines = lock(&self.lines);
            let line = lines.entry(tag.place()).or_default();
            line.newest = line.newest.max(tag.lease);
        }
    }

    /// The application was given a record of a lease, or it was passed over; `last` where no other of it waits.
    pub(crate) fn took(&self, lease: LeaseId, last: bool) {
        self.takes.store(true, Ordering::Relaxed);
        if last {
            lock(&self.queue).waiting.remove(&lease);
        }
    }

    /// Leases to be renewed: those with records that wait here for an application that goes on taking them. One
    /// that has taken none for `lease` has stopped; what it was sent comes to others.
    pub(crate) fn to_renew(&self, lease: Duration) -> Vec<LeaseId> {
        let mut queue = lock(&self.queue);
        if self.takes.swap(false, Ordering::Relaxed) {
            queue.taken = Some(Instant::now());
        }
        let goes_on = queue.taken.is_some_and(|taken| taken.elapsed() <= lease);
        if goes_on {
            queue.waiting.iter().copied().collect()
        } else {
            Vec::new()
        }
    }

    /// A record is refused: where they come in order, the consumer has nothing behind it any more.
    pub(crate) fn refuse(&self, tag: LeaseTag, offset: u64) {
        if !tag.is_ordered || !self.holds(tag, offset) {
            return;
        }
        self.has_gaps.store(true, Ordering::Release);
        let mut lines = lock(&self.lines);
        let line = lines.entry(tag.place()).or_default();
        line.refused.retain(|(at, _)| *at < offset);
        if line.refused.len() >= REFUSALS_MAX {
            line.refused.remove(0);
        }
        line.refused.push((offset, line.newest));
    }

    pub(crate) fn session(&self) -> u64 {
        self.session.load(Ordering::Acquire)
    }

    /// All that is in hand is void.
    pub(crate) fn begin(&self) -> u64 {
        self.has_gaps.store(false, Ordering::Release);
        self.takes.store(false, Ordering::Relaxed);
        lock(&self.lost).clear();
        lock(&self.lines).clear();
        *lock(&self.queue) = Queue {
            waiting: BTreeSet::new(),
            taken: Some(Instant::now()),
        };
        self.session.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// These leases are lost. Remembered until the session ends, or until there are too many: then the
    /// oldest are forgotten, which cost a question to the broker if anybody still settles them, no more.
    pub(crate) fn lose(&self, leases: &[LeaseId]) {
        self.has_gaps.store(true, Ordering::Release);
        let mut queue = lock(&self.queue);
        for lease in leases {
            queue.waiting.remove(lease);
        }
        drop(queue);
        let mut lost = lock(&self.lost);
        lost.extend(leases);
        while lost.len() > LOST_MAX {
            lost.pop_first();
        }
    }
}

/// Leased records of one place: an iterator of deliveries.
#[derive(Debug)]
pub(crate) struct LeasedBatch {
    topic: Consumed,
    session: u64,
    head: Leased,
    view: BatchView,
    bodies: Bodies,
    /// The lease that is being taken, and how many of its records have been.
    at: (usize, u32),
}

/// A record that cannot be read.
pub(crate) struct Bad {
    pub(crate) tag: LeaseTag,
    pub(crate) offset: u64,
    pub(crate) error: ConsumeError,
}

impl LeasedBatch {
    /// Checks a batch that was delivered.
    ///
    /// # Errors
    /// [`ConsumeError`] where it is damaged, or not what was announced.
    pub(crate) fn new(
        topics: &HashMap<TopicId, Consumed>,
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
        let view = BatchView::parse_served(body).map_err(damaged)?;
        let bodies = view.bodies().map_err(damaged)?;
        let topic = topics
            .get(&head.topic)
            .cloned()
            .ok_or_else(|| ConsumeError::Protocol("records of a topic not asked for".into()))?;
        Ok(Self {
            topic,
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

    /// Its leases.
    pub(crate) fn tags(&self) -> impl Iterator<Item = LeaseTag> {
        self.head.leases.iter().map(|lease| self.tag(lease))
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
            partition: self.head.partition.0,
            lane: self.head.lane.0,
            is_ordered: self.topic.is_ordered,
            is_settled: lease.lease_ms == 0,
        }
    }

    /// Whether the record that was taken last is the last of its lease.
    pub(crate) fn is_lease_over(&self) -> bool {
        let (index, taken) = self.at;
        let lease = self.head.leases.get(index);
        lease.is_none_or(|lease| taken >= lease.count)
    }

    /// The next record.
    pub(crate) fn next(&mut self) -> Option<Result<Delivery, Box<Bad>>> {
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
        let published = self.head.published;
        let due = published.and_then(|published| published.due);
        let later_ms = self.head.later_ms.get(self.at.0).copied().unwrap_or(0);
        let appended = WallMs(self.head.appended.0.saturating_add(later_ms));
        let stored = published.map_or(appended, |published| published.stored);
        Some(match decoded {
            Err(error) => Err(Box::new(Bad { tag, offset, error })),
            Ok((index, body)) => Ok(Delivery {
                topic: Arc::clone(&self.topic.name),
                partition,
                offset,
                time_ms: stored.0,
                timestamp_ms: self.view.timestamp(index).0,
                id: body.id,
                key: body.key,
                value: body.value,
                tag: body.tag,
                headers: body.headers,
                due_ms: due.map(|due| due.0),
                fired_ms: due.map(|_| appended.0),
                attempt: lease.attempt,
                priority: self.head.lane.0,
                lease: Some(tag),
            }),
        })
    }
}

fn announced() -> ConsumeError {
    ConsumeError::Protocol("a batch holds other records than were announced".into())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::client) fn tag(session: u64, lease: u64) -> LeaseTag {
        LeaseTag {
            session,
            lease: LeaseId(lease),
            topic: TopicId(1),
            partition: 0,
            lane: 0,
            is_ordered: false,
            is_settled: false,
        }
    }

    #[test]
    fn a_consumer_that_loses_leases_for_ever_remembers_the_latest_of_them() {
        let hand = Hand::default();
        let session = hand.begin();
        let many = LOST_MAX as u64 * 3;
        for lease in 0..many {
            hand.lose(&[LeaseId(lease)]);
        }
        assert_eq!(lock(&hand.lost).len(), LOST_MAX);
        assert!(!hand.holds(tag(session, many - 1), 0));
        assert!(!hand.holds(tag(session, many - LOST_MAX as u64), 0));
        assert!(hand.holds(tag(session, many), 0));
        // A new session knows of none.
        let session = hand.begin();
        assert!(lock(&hand.lost).is_empty());
        assert!(hand.holds(tag(session, many - 1), 0));
    }
}

//! Leased records on their way to the application: batches of them, and the lease each one is under.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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
    /// Leases of which the application was given nothing yet, each with its first record.
    untouched: BTreeMap<LeaseId, u64>,
    /// The last lease that had come when the place was to become another's.
    leaving: Option<LeaseId>,
}

impl Line {
    /// Whether a record was taken back with one before it that was refused.
    fn is_behind_refused(&self, lease: LeaseId, offset: u64) -> bool {
        let mut refused = self.refused.iter();
        refused.any(|(at, newest)| offset > *at && lease <= *newest)
    }
}

/// Whether the application is to be given a record that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is.
    Held,
    /// It is not the consumer's any more.
    Lost,
    /// Its place becomes another's as soon as this consumer has nothing of it: it goes back unseen.
    Leaving,
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
    /// One past the last lease that had come when leases were lost, records refused or places given up in this
    /// session: of later ones, which are nearly all, none of what follows has to be looked at for each record.
    gaps_end: AtomicU64,
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
        if tag.lease.0 >= self.gaps_end.load(Ordering::Acquire) {
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
        line.is_none_or(|line| !line.is_behind_refused(tag.lease, offset))
    }

    /// Whether the application is to be given a record; `first` where it is the first of its lease.
    pub(crate) fn standing(&self, tag: LeaseTag, offset: u64, first: bool) -> Standing {
        if tag.is_settled {
            return Standing::Held;
        }
        if tag.session != self.session() {
            return Standing::Lost;
        }
        if tag.is_ordered && first {
            let mut lines = lock(&self.lines);
            let line = lines.get_mut(&tag.place());
            if line.is_none_or(|line| line.untouched.remove(&tag.lease).is_none()) {
                return Standing::Lost;
            }
        }
        if !self.holds(tag, offset) {
            return Standing::Lost;
        }
        if tag.is_ordered && tag.lease.0 < self.gaps_end.load(Ordering::Acquire) {
            let lines = lock(&self.lines);
            let leaving = lines.get(&tag.place()).and_then(|line| line.leaving);
            if leaving.is_some_and(|newest| tag.lease <= newest) {
                return Standing::Leaving;
            }
        }
        Standing::Held
    }

    /// A lease came, which begins at `first`.
    pub(crate) fn came(&self, tag: LeaseTag, first: u64) {
        if tag.is_settled {
            return;
        }
        lock(&self.queue).waiting.insert(tag.lease);
        if tag.is_ordered {
            let mut lines = lock(&self.lines);
            let line = lines.entry(tag.place()).or_default();
            line.newest = line.newest.max(tag.lease);
            line.untouched.insert(tag.lease, first);
        }
    }

    /// A place is to become another's. What the application has of it may still be settled; the rest goes back:
    /// leases it was given nothing of at once, which these are, in order; of others what it was not given once
    /// it comes for it.
    pub(crate) fn give_up(&self, topic: TopicId, partition: u32, lane: u8) -> Vec<LeaseId> {
        let mut lines = lock(&self.lines);
        let Some(line) = lines.get_mut(&(topic, partition, lane)) else {
            return Vec::new();
        };
        line.leaving = Some(line.newest);
        self.gap_up_to(line.newest);
        let untouched = std::mem::take(&mut line.untouched);
        let mut held: Vec<(u64, LeaseId)> = {
            let lost = lock(&self.lost);
            let held = untouched.into_iter().filter(|(lease, first)| {
                !lost.contains(lease) && !line.is_behind_refused(*lease, *first)
            });
            held.map(|(lease, first)| (first, lease)).collect()
        };
        held.sort_unstable();
        drop(lines);
        let mut queue = lock(&self.queue);
        for (_, lease) in &held {
            queue.waiting.remove(lease);
        }
        held.into_iter().map(|(_, lease)| lease).collect()
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
        let mut lines = lock(&self.lines);
        let line = lines.entry(tag.place()).or_default();
        self.gap_up_to(line.newest);
        line.refused.retain(|(at, _)| *at < offset);
        if line.refused.len() >= REFUSALS_MAX {
            line.refused.remove(0);
        }
        line.refused.push((offset, line.newest));
    }

    fn gap_up_to(&self, lease: LeaseId) {
        let end = lease.0.saturating_add(1);
        self.gaps_end.fetch_max(end, Ordering::AcqRel);
    }

    pub(crate) fn session(&self) -> u64 {
        self.session.load(Ordering::Acquire)
    }

    /// All that is in hand is void.
    pub(crate) fn begin(&self) -> u64 {
        self.gaps_end.store(0, Ordering::Release);
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
        if let Some(last) = leases.iter().max() {
            self.gap_up_to(*last);
        }
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

    /// Its leases, each with its first record.
    pub(crate) fn tags(&self) -> impl Iterator<Item = (LeaseTag, u64)> {
        let leases = self.head.leases.iter();
        leases.map(|lease| (self.tag(lease), lease.first.0))
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

    /// Whether the record that was taken last is the first of its lease.
    pub(crate) fn is_lease_begun(&self) -> bool {
        self.at.1 == 1
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

    #[test]
    fn of_a_place_that_moves_only_what_was_given_out_stays() {
        let hand = Hand::default();
        let session = hand.begin();
        let ordered = |lease| LeaseTag {
            is_ordered: true,
            ..tag(session, lease)
        };
        let give_up = || hand.give_up(TopicId(1), 0, 0);
        for (lease, first) in [(1, 10), (2, 20), (3, 30)] {
            hand.came(ordered(lease), first);
        }
        assert_eq!(hand.standing(ordered(1), 10, true), Standing::Held);
        assert_eq!(give_up(), [LeaseId(2), LeaseId(3)]);
        assert!(hand.holds(ordered(1), 10));
        assert_eq!(hand.standing(ordered(1), 11, false), Standing::Leaving);
        assert_eq!(hand.standing(ordered(2), 20, true), Standing::Lost);
        assert_eq!(hand.standing(ordered(3), 30, true), Standing::Lost);
        assert_eq!(give_up(), []);
        // It becomes this consumer's again, and is taken away again when one of its leases is lost already.
        for (lease, first) in [(4, 11), (5, 20), (6, 30)] {
            hand.came(ordered(lease), first);
        }
        assert_eq!(hand.standing(ordered(4), 11, true), Standing::Held);
        hand.lose(&[LeaseId(5)]);
        assert_eq!(give_up(), [LeaseId(6)]);
        // Only what waits for the application and is its own is renewed.
        assert_eq!(hand.to_renew(Duration::MAX), [LeaseId(1), LeaseId(4)]);
    }
}

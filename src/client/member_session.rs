//! One membership on one connection: takes what comes, says what is said, keeps the credit.
//!
//! In: frames of the member's stream, and what the consumer says of its records. Out: leased batches and
//! answers. One frame takes all that one wake-up found.
//!
//! G2: every settling is answered, at the latest when the session ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::FrameReceiver;
use super::credit::{Credit, Held};
use super::error::ConsumeError;
use super::leased::{LeaseTag, LeasedBatch};
use super::link::{Link, RequestError};
use super::membership::{End, Guard, Keeper, LEAVE, Outcome, SAID_MAX, Say, Told, Verdict};
use super::settle::SettleError;
use crate::domain::id::{Lane, LeaseId, Offset, PartitionIndex, TopicId};
use crate::wire::code::Code;
use crate::wire::consume::{
    Acknowledge, AcknowledgeUpTo, ExtendLeases, GrantCredit, LeaseRange, Leased, LeasesLost,
    LeaveGroup, MemberEnd, Nack, RANGES_MAX, RetryAfter, Revoked, Settled, Unsubscribed, Withdraw,
    Withdrawn,
};
use crate::wire::frame::{Frame, FrameKind};
use crate::wire::group::GroupDone;

/// Who waits for the answer to which lease.
pub(super) type Waiters = Vec<(LeaseId, Outcome)>;
/// What was attached, by lease and count: not the member's any more once that has worked.
pub(super) type Parted = Vec<(LeaseId, u32)>;
pub(super) type Answered = (Result<Settled, RequestError>, Waiters, Parted);

/// So often within a lease it is renewed while its records wait.
const RENEWALS: u32 = 3;

/// One membership on one connection.
pub(super) struct Session {
    pub(super) guard: Guard,
    pub(super) link: Arc<Link>,
    pub(super) number: u64,
    pub(super) stream: FrameReceiver,
    pub(super) credit: Credit,
    pub(super) leases: HashMap<LeaseId, Held>,
    pub(super) answers: FuturesUnordered<BoxFuture<'static, Answered>>,
    /// Withdrawals that are not answered: topics left and the token to tell.
    pub(super) waiting: Vec<(u64, usize)>,
    /// The shortest lease of its subscriptions.
    pub(super) lease: Duration,
    /// When leases of records that wait are renewed next.
    pub(super) renew_at: Instant,
}

impl Session {
    pub(super) async fn run(&mut self, keeper: &mut Keeper) -> End {
        let mut said = Vec::new();
        loop {
            tokio::select! {
                frame = self.stream.next() => match frame {
                    Ok(Some(frame)) => {
                        if let Some(end) = self.hear(keeper, &frame) {
                            return end;
                        }
                    }
                    Ok(None) => return End::Lost,
                    Err(error) => {
                        tracing::debug!(%error, "a member's stream ended");
                        return End::Lost;
                    }
                },
                count = keeper.said.recv_many(&mut said, SAID_MAX) => {
                    if count == 0 {
                        // The consumer was dropped: the guard leaves.
                        return End::Over;
                    }
                    if let Some(done) = self.take(keeper, &mut said) {
                        self.finish(done).await;
                        return End::Over;
                    }
                }
                Some((settled, waiters, parted)) = self.answers.next(), if !self.answers.is_empty() => {
                    if settled.is_ok() {
                        for (lease, records) in parted {
                            self.give_back(lease, records);
                        }
                    }
                    settle_waiters(&settled, waiters);
                }
                () = sleep_until(self.renew_at), if !self.leases.is_empty() => {
                    self.renew_at = Instant::now() + self.lease / RENEWALS;
                    let mut leases = keeper.hand.to_renew(self.lease);
                    leases.retain(|lease| self.leases.contains_key(lease));
                    self.extend_leases(&leases, 0, None);
                }
            }
            if !self.credit.pull {
                self.grant_owed();
            }
        }
    }

    /// Takes a frame of the member's stream.
    fn hear(&mut self, keeper: &Keeper, frame: &Frame) -> Option<End> {
        match frame.kind() {
            Some(FrameKind::Leased) => match frame.decode::<Leased>() {
                Ok(head) => self.leased(keeper, head, frame),
                Err(error) => return Some(protocol(keeper, &error)),
            },
            Some(FrameKind::LeasesLost) => match frame.decode::<LeasesLost>() {
                Ok(lost) => self.lost(keeper, &lost.leases),
                Err(error) => return Some(protocol(keeper, &error)),
            },
            Some(FrameKind::Withdrawn) => {
                if let Ok(Withdrawn { token }) = frame.decode() {
                    self.withdrawn(keeper, token);
                }
            }
            Some(FrameKind::Unsubscribed) => {
                if let Ok(Unsubscribed { refused, .. }) = frame.decode() {
                    let error = ConsumeError::Refused(refused.into());
                    let _ = keeper.tell.send(Told::Failed(error));
                }
            }
            Some(FrameKind::MemberEnd) => {
                self.guard.joined = false;
                let refused = frame.decode().ok().and_then(|end: MemberEnd| end.refused);
                // Told to go for a reason that passes, or for none: join again.
                return Some(match refused {
                    Some(refused) if !refused.code().is_retriable() => {
                        let error = ConsumeError::Refused(refused.into());
                        let _ = keeper.tell.send(Told::Failed(error));
                        End::Over
                    }
                    Some(_) | None => End::Lost,
                });
            }
            Some(FrameKind::Revoked) => match frame.decode::<Revoked>() {
                Ok(revoked) => self.revoked(keeper, &revoked),
                Err(error) => return Some(protocol(keeper, &error)),
            },
            // An assignment says nothing a consumer has to act on; others are of a later version.
            Some(_) | None => {}
        }
        None
    }

    fn leased(&mut self, keeper: &Keeper, head: Leased, frame: &Frame) {
        if self.leases.is_empty() {
            self.renew_at = Instant::now() + self.lease / RENEWALS;
        }
        for lease in &head.leases {
            self.credit
                .leased(head.topic, u64::from(lease.count), lease.bytes);
            let held = Held {
                topic: head.topic,
                partition: head.partition,
                lane: head.lane,
                first: lease.first.0,
                count: lease.count,
                records_left: lease.count,
                bytes_left: lease.bytes,
            };
            self.leases.insert(lease.lease, held);
        }
        let leases: Vec<(LeaseId, Offset, u32)> = head
            .leases
            .iter()
            .map(|lease| (lease.lease, lease.first, lease.count))
            .collect();
        match LeasedBatch::new(&keeper.topics, self.number, head, &frame.body) {
            Ok(batch) => {
                let hand = &keeper.hand;
                batch.tags().for_each(|(tag, first)| hand.came(tag, first));
                let _ = keeper.tell.send(Told::Batch(Box::new(batch)));
            }
            Err(error) => {
                // It is not what its producer sent: it comes again, and in the end is put aside.
                let ranges = leases
                    .into_iter()
                    .map(|(lease, first, count)| LeaseRange {
                        lease,
                        first,
                        count,
                    })
                    .collect();
                let verdict = Verdict::Not(RetryAfter::Policy, error.to_string());
                self.say(&verdict, ranges, Vec::new());
                let _ = keeper.tell.send(Told::Failed(error));
            }
        }
    }

    fn lost(&mut self, keeper: &Keeper, leases: &[LeaseId]) {
        keeper.hand.lose(leases);
        for lease in leases {
            self.give_back(*lease, u32::MAX);
        }
    }

    /// A place is to become another's: leases the application was given nothing of go back at once, the first
    /// with all that is behind it.
    fn revoked(&mut self, keeper: &Keeper, revoked: &Revoked) {
        let (partition, lane) = (revoked.partition.0, revoked.lane.0);
        let mut untouched = keeper
            .hand
            .give_up(revoked.topic, partition, lane)
            .into_iter();
        // Some may be settled already, by way of a later one.
        if let Some(lease) = untouched.find(|lease| self.leases.contains_key(lease))
            && let Some(held) = self.leases.get(&lease)
        {
            let range = LeaseRange {
                lease,
                first: Offset(held.first),
                count: held.count,
            };
            self.give_back(lease, u32::MAX);
            let unseen = Verdict::Not(RetryAfter::Unseen, String::new());
            self.say(&unseen, vec![range], Waiters::new());
        }
    }

    /// Gives back the credit of so many records of a lease.
    pub(super) fn give_back(&mut self, lease: LeaseId, records: u32) {
        if let Some(held) = self.leases.get_mut(&lease) {
            let topic = held.topic;
            let (records, bytes) = held.take(records);
            if held.records_left == 0 {
                self.leases.remove(&lease);
            }
            self.credit.returned(topic, records, bytes);
        }
    }

    fn withdrawn(&mut self, keeper: &Keeper, token: u64) {
        if let Some(at) = self.waiting.iter().position(|(other, _)| *other == token)
            && let Some((_, left)) = self.waiting.get_mut(at)
        {
            *left -= 1;
            if *left == 0 {
                self.waiting.remove(at);
                let _ = keeper.tell.send(Told::Withdrawn(token));
            }
        }
    }

    pub(super) fn grant_all(&mut self) {
        let owed = self.credit.owed(true);
        self.grant(owed);
    }

    fn grant_owed(&mut self) {
        let owed = self.credit.owed(false);
        self.grant(owed);
    }

    pub(super) fn grant(&self, owed: Vec<(TopicId, u64, u64)>) {
        for (topic, bytes, records) in owed {
            if bytes > 0 || records > 0 {
                let grant = GrantCredit {
                    consumer: self.guard.consumer,
                    topic,
                    bytes,
                    records,
                };
                // Where the connection has ended, the stream says so next.
                let _ = self.link.send(&grant, 0);
            }
        }
    }

    /// Takes all that was said; where it is to leave, who waits for that.
    fn take(&mut self, keeper: &mut Keeper, said: &mut Vec<Say>) -> Option<oneshot::Sender<()>> {
        let mut settling = Settling::default();
        let mut leave = None;
        for say in said.drain(..) {
            match say {
                Say::Settle {
                    tag,
                    offset,
                    verdict,
                    outcome,
                } => {
                    if tag.session != self.number || !self.leases.contains_key(&tag.lease) {
                        refuse(outcome, SettleError::Lost);
                        continue;
                    }
                    self.give_back(tag.lease, 1);
                    settling.add(self, verdict, tag.lease, offset, outcome);
                }
                Say::UpTo {
                    tag,
                    partition,
                    end,
                    outcome,
                } => {
                    settling.send(self);
                    self.up_to(tag, PartitionIndex(partition), end, outcome);
                }
                Say::Attach {
                    transaction,
                    records,
                    outcome,
                } => {
                    settling.send(self);
                    self.attach(transaction, &records, outcome);
                }
                Say::AttachUpTo {
                    transaction,
                    tag,
                    end,
                    outcome,
                } => {
                    settling.send(self);
                    self.attach_up_to(transaction, tag, end, outcome);
                }
                Say::Extend {
                    tags,
                    lease_ms,
                    outcome,
                } => self.extend(&tags, lease_ms, outcome),
                Say::Taken(tags) => {
                    let number = self.number;
                    for tag in tags.iter().filter(|tag| tag.session == number) {
                        self.give_back(tag.lease, 1);
                    }
                }
                Say::Want(records) => {
                    keeper.wanted = records;
                    let owed = self.credit.wanted(records);
                    self.grant(owed);
                }
                Say::Enough(token) => {
                    keeper.wanted = 0;
                    self.withdraw(token);
                }
                Say::Leave(done) => leave = Some(done),
            }
        }
        settling.send(self);
        leave
    }

    fn withdraw(&mut self, token: u64) {
        self.credit.withdrawn();
        let topics: Vec<TopicId> = self.credit.by_topic.keys().copied().collect();
        self.waiting.push((token, topics.len()));
        for topic in topics {
            let withdraw = Withdraw {
                consumer: self.guard.consumer,
                topic,
                token,
            };
            let _ = self.link.send(&withdraw, 0);
        }
    }

    /// What the leases of a place have below an offset, by count.
    pub(super) fn covered(&self, tag: LeaseTag, end: u64) -> Vec<(LeaseId, u32)> {
        let (partition, lane) = (PartitionIndex(tag.partition), Lane(tag.lane));
        self.leases
            .iter()
            .filter(|(_, held)| {
                held.topic == tag.topic && held.partition == partition && held.lane == lane
            })
            .filter_map(|(lease, held)| {
                let below = end.saturating_sub(held.first).min(u64::from(held.count));
                let settled = u64::from(held.count - held.records_left);
                let records = u32::try_from(below.saturating_sub(settled)).ok()?;
                (records > 0).then_some((*lease, records))
            })
            .collect()
    }

    fn up_to(
        &mut self,
        tag: LeaseTag,
        partition: PartitionIndex,
        end: u64,
        outcome: Option<Outcome>,
    ) {
        if tag.session != self.number {
            return refuse(outcome, SettleError::Lost);
        }
        let lane = Lane(tag.lane);
        for (lease, records) in self.covered(tag, end) {
            self.give_back(lease, records);
        }
        let header = AcknowledgeUpTo {
            consumer: self.guard.consumer,
            topic: tag.topic,
            partition,
            lane,
            end: Offset(end),
        };
        let waiters = outcome.map(|outcome| (tag.lease, outcome));
        let link = Arc::clone(&self.link);
        self.answers.push(Box::pin(async move {
            let answer = link.ask::<_, Settled>(&header).await;
            (
                answer.map(|(settled, _)| settled),
                waiters.into_iter().collect(),
                Parted::new(),
            )
        }));
    }

    fn extend(&mut self, tags: &[LeaseTag], lease_ms: u64, outcome: Option<Outcome>) {
        let held: Vec<LeaseId> = tags
            .iter()
            .filter(|tag| tag.session == self.number && self.leases.contains_key(&tag.lease))
            .map(|tag| tag.lease)
            .collect();
        self.extend_leases(&held, lease_ms, outcome);
    }

    fn extend_leases(&mut self, held: &[LeaseId], lease_ms: u64, outcome: Option<Outcome>) {
        let Some(last) = held.last().copied() else {
            return refuse(outcome, SettleError::Lost);
        };
        let mut waiters = outcome.map(|outcome| (last, outcome));
        for leases in held.chunks(RANGES_MAX) {
            let header = ExtendLeases {
                consumer: self.guard.consumer,
                leases: leases.to_vec(),
                lease_ms,
            };
            let link = Arc::clone(&self.link);
            let waiters = if leases.last() == Some(&last) {
                waiters.take()
            } else {
                None
            };
            self.answers.push(Box::pin(async move {
                let answer = link.ask::<_, Settled>(&header).await;
                (
                    answer.map(|(settled, _)| settled),
                    waiters.into_iter().collect(),
                    Parted::new(),
                )
            }));
        }
    }

    /// Sends ranges of one verdict.
    fn say(&mut self, verdict: &Verdict, ranges: Vec<LeaseRange>, waiters: Waiters) {
        let consumer = self.guard.consumer;
        let link = Arc::clone(&self.link);
        let answer: BoxFuture<'static, Answered> = match verdict {
            Verdict::Consumed => {
                let header = Acknowledge { consumer, ranges };
                Box::pin(async move {
                    let answer = link.ask::<_, Settled>(&header).await;
                    (answer.map(|(settled, _)| settled), waiters, Parted::new())
                })
            }
            Verdict::Not(after, reason) => {
                let header = Nack {
                    consumer,
                    ranges,
                    after: *after,
                    reason: reason.clone(),
                };
                Box::pin(async move {
                    let answer = link.ask::<_, Settled>(&header).await;
                    (answer.map(|(settled, _)| settled), waiters, Parted::new())
                })
            }
        };
        self.answers.push(answer);
    }

    /// Leaves once everything said has been answered.
    async fn finish(&mut self, done: oneshot::Sender<()>) {
        let answered = async {
            while let Some((settled, waiters, _)) = self.answers.next().await {
                settle_waiters(&settled, waiters);
            }
        };
        let _ = timeout(LEAVE, answered).await;
        let leave = LeaveGroup {
            consumer: self.guard.consumer,
        };
        self.guard.joined = false;
        let _ = timeout(LEAVE, self.link.ask::<_, GroupDone>(&leave)).await;
        let _ = done.send(());
    }

    /// The session has ended: nobody hears of what was said any more (G2).
    pub(super) fn fail_all(&mut self, tell: &mpsc::UnboundedSender<Told>) {
        for (token, _) in self.waiting.drain(..) {
            let _ = tell.send(Told::Withdrawn(token));
        }
        // Dropping the waiters answers them.
        self.answers.clear();
        self.leases.clear();
    }
}

/// Ranges that are put together before they are sent.
#[derive(Default)]
struct Settling {
    verdict: Option<Verdict>,
    ranges: Vec<LeaseRange>,
    waiters: Waiters,
}

impl Settling {
    fn add(
        &mut self,
        session: &mut Session,
        verdict: Verdict,
        lease: LeaseId,
        offset: u64,
        outcome: Option<Outcome>,
    ) {
        if self.verdict.as_ref() != Some(&verdict) || self.ranges.len() >= RANGES_MAX {
            self.send(session);
            self.verdict = Some(verdict);
        }
        match self.ranges.last_mut() {
            Some(last)
                if last.lease == lease
                    && last.first.0.saturating_add(u64::from(last.count)) == offset =>
            {
                last.count += 1;
            }
            Some(_) | None => self.ranges.push(LeaseRange {
                lease,
                first: Offset(offset),
                count: 1,
            }),
        }
        self.waiters.extend(outcome.map(|outcome| (lease, outcome)));
    }

    fn send(&mut self, session: &mut Session) {
        if let Some(verdict) = self.verdict.take() {
            let (ranges, waiters) = (
                std::mem::take(&mut self.ranges),
                std::mem::take(&mut self.waiters),
            );
            session.say(&verdict, ranges, waiters);
        }
    }
}

pub(super) fn refuse(outcome: Option<Outcome>, error: SettleError) {
    if let Some(outcome) = outcome {
        let _ = outcome.send(Err(error));
    }
}

fn settle_waiters(settled: &Result<Settled, RequestError>, waiters: Waiters) {
    for (lease, outcome) in waiters {
        let result = match settled {
            Ok(settled) => {
                let refused = settled.refused.iter().find(|(other, _)| *other == lease);
                match refused {
                    None => Ok(()),
                    Some((_, code)) => Err(SettleError::of(Code::from_u16(*code))),
                }
            }
            Err(RequestError::Refused(refusal)) => Err(SettleError::refused(refusal)),
            Err(RequestError::Lost(_)) => Err(SettleError::Lost),
            Err(RequestError::Protocol(reason)) => Err(SettleError::Protocol(reason.clone())),
        };
        let _ = outcome.send(result);
    }
}

fn protocol(keeper: &Keeper, error: &impl std::fmt::Display) -> End {
    let error = ConsumeError::Protocol(error.to_string());
    let _ = keeper.tell.send(Told::Failed(error));
    End::Over
}

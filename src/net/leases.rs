//! What a member hears, on its way out: leased records are read, cut where the lease is not of the whole
//! batch, and written in the order of what happened.
//!
//! One half takes events and fetches bodies, the other writes; one group of [`GROUP_BYTES`] is fetched while
//! the one before is on its way. So a member that does not read holds two groups and the connection's send
//! window, whatever it was leased: leases that wait here are places, not bodies.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::gathered::{Gathered, head, indexes, skipped};
use super::member::Local;
use super::pieces::{Pieces, Wanted, are_few, is_read_alone, pieces};
use super::reader::{self, Stop};
use super::refusal::refused;
use super::session::Session;
use crate::actors::Link;
use crate::actors::group::{Do, GroupActor};
use crate::actors::opened::NotOpened;
use crate::actors::reply::ReplyTo;
use crate::domain::batch::{BatchError, Opened, Taken};
use crate::domain::body::Body;
use crate::domain::entry::EntryPlace;
use crate::domain::group::command::{Command, Lease, LeasedRange, MemberEvent, RetryAfter};
use crate::domain::id::{LogPosition, MemberId};
use crate::domain::partition::index::BatchPlace;
use crate::domain::rejection::Rejection;
use crate::log::Share;
use crate::transport::SendStream;
use crate::wire::code::{Code, Refused};
use crate::wire::consume::{
    Assigned, Leased, LeasesLost, RANGES_MAX, Revoked, Unsubscribed, Withdrawn,
};
use crate::wire::frame::{Header, encode};
use crate::wire::reader::EndReason;

/// Bytes fetched together.
const GROUP_BYTES: usize = 1024 * 1024;
/// Events taken together.
const EVENTS_MAX: usize = 256;
/// Leases of one frame: more would not fit its header.
pub(super) const LEASES_MAX: usize = 1000;

/// Frames on their way to the writing half.
#[derive(Default)]
struct Group {
    pieces: Vec<Bytes>,
    bytes: usize,
}

impl Group {
    fn frame<H: Header>(&mut self, header: &H, body: &Body) {
        let mut head = BytesMut::with_capacity(96);
        let encoded = encode(header, 0, body.len(), &mut head);
        debug_assert!(encoded.is_ok(), "lists are bounded");
        self.bytes += head.len() + body.len();
        self.pieces.push(head.freeze());
        self.pieces.extend_from_slice(body.pieces());
    }

    fn event<H: Header>(&mut self, header: &H) {
        self.frame(header, &Body::default());
    }
}

/// Delivers what a member hears until it ends; says why, unless the member left.
pub(super) async fn deliver(
    session: &Rc<Session>,
    group: &Link<GroupActor>,
    member: MemberId,
    mut heard: UnboundedReceiver<MemberEvent>,
    mut locals: UnboundedReceiver<Local>,
    stream: &mut SendStream,
) -> Option<Refused> {
    let _attendance = session.shared.house.cache.attend();
    let (groups, mut fetched) = mpsc::channel::<Group>(1);
    let fetch = async {
        let mut delivery = Delivery {
            session,
            actor: group,
            member,
            groups,
            group: Group::default(),
            gathered: Gathered::default(),
        };
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            let local = tokio::select! {
                biased;
                count = heard.recv_many(&mut events, EVENTS_MAX) => {
                    if count == 0 {
                        // The group's actor is gone with all its members; a new one knows none.
                        return Some(refused(&crate::domain::rejection::Rejection::Group(
                            crate::domain::group::rejection::GroupRejection::UnknownMember,
                        )));
                    }
                    None
                }
                local = locals.recv() => {
                    // What was told before comes first.
                    while let Ok(event) = heard.try_recv() {
                        events.push(event);
                    }
                    Some(local)
                }
            };
            for event in events.drain(..) {
                match delivery.take(event).await {
                    Ok(()) => {}
                    Err(over) => return over.0,
                }
            }
            match local {
                None => {}
                Some(Some(Local::Withdrawn(token))) => delivery.group.event(&Withdrawn { token }),
                Some(Some(Local::End(why))) => {
                    let _ = delivery.flush().await;
                    return why;
                }
                Some(None) => return None,
            }
            if delivery.flush().await.is_err() {
                return None;
            }
        }
    };
    let write = async {
        while let Some(mut group) = fetched.recv().await {
            if stream.write(&mut group.pieces).await.is_err() {
                return;
            }
        }
    };
    tokio::pin!(fetch, write);
    tokio::select! {
        end = &mut fetch => {
            write.await;
            end
        }
        () = &mut write => None,
    }
}

/// It is over, and why.
struct Over(Option<Refused>);

struct Delivery<'a> {
    session: &'a Rc<Session>,
    actor: &'a Link<GroupActor>,
    member: MemberId,
    groups: mpsc::Sender<Group>,
    group: Group,
    /// Behind what is in the group.
    gathered: Gathered,
}

/// How the records of a run of leases get into a frame.
enum Way {
    /// One by one, as they are here.
    Alone(Vec<Taken>),
    /// In their batch, untouched.
    Whole,
    /// Cut out of their batch.
    Cut,
}

/// Batches by where they lie; those that cannot be had are not among them.
type Had<T> = HashMap<LogPosition, T>;

impl Delivery<'_> {
    /// Hands over what has been put together.
    async fn flush(&mut self) -> Result<(), Over> {
        if self.group.pieces.is_empty() {
            return Ok(());
        }
        let group = std::mem::take(&mut self.group);
        self.groups.send(group).await.map_err(|_| Over(None))
    }

    async fn take(&mut self, event: MemberEvent) -> Result<(), Over> {
        match event {
            MemberEvent::Assigned { place, generation } => self.group.event(&Assigned {
                topic: place.topic,
                partition: place.partition,
                lane: place.lane,
                generation,
            }),
            MemberEvent::Revoked {
                place,
                generation,
                drain_ms,
            } => self.group.event(&Revoked {
                topic: place.topic,
                partition: place.partition,
                lane: place.lane,
                generation,
                drain_ms,
            }),
            MemberEvent::Lost(leases) => {
                for leases in leases.chunks(RANGES_MAX) {
                    self.group.event(&LeasesLost {
                        leases: leases.to_vec(),
                    });
                }
            }
            MemberEvent::Leased(leases) => self.leased(leases).await?,
            MemberEvent::Unsubscribed { topic, why } => self.group.event(&Unsubscribed {
                topic,
                refused: refused(&why),
            }),
            MemberEvent::Ended(rejection) => {
                let _ = self.flush().await;
                return Err(Over(Some(refused(&rejection))));
            }
        }
        Ok(())
    }

    /// Reads what is leased, as many batches at a time as make a group.
    async fn leased(&mut self, leases: Vec<Lease>) -> Result<(), Over> {
        let mut rest = leases.as_slice();
        while !rest.is_empty() {
            let taken = next_leases(rest);
            let (now, after) = rest.split_at_checked(taken).unwrap_or((rest, &[]));
            rest = after;
            let runs: Vec<&[Lease]> = now.chunk_by(is_together).collect();
            let alone = self.alone(&runs).await;
            let mut ways = Vec::with_capacity(runs.len());
            let (mut whole, mut cut) = (Vec::new(), Vec::new());
            for (run, alone) in runs.iter().zip(alone) {
                ways.push(match alone {
                    Some(taken) => Way::Alone(taken),
                    None if goes_whole(run) => {
                        whole.push(*run);
                        Way::Whole
                    }
                    None => {
                        cut.push(*run);
                        Way::Cut
                    }
                });
            }
            let bodies = self.bodies(&whole).await;
            let (mut opened, mut cut) = (HashMap::new(), cut.as_slice());
            let mut ahead = 0;
            for (run, way) in runs.into_iter().zip(ways) {
                let Some(first) = run.first() else { continue };
                let at = first.batch.position;
                // What cannot be read was refused already.
                match way {
                    Way::Alone(taken) => self.deliver_alone(run, taken),
                    Way::Whole => bodies
                        .get(&at)
                        .into_iter()
                        .for_each(|body| self.deliver_whole(run, body)),
                    Way::Cut => {
                        if ahead == 0 {
                            ahead = runs_of_group(cut);
                            let (now, after) = cut.split_at_checked(ahead).unwrap_or((cut, &[]));
                            opened = self.opened(now).await;
                            cut = after;
                        }
                        ahead = ahead.saturating_sub(1);
                        opened
                            .get(&at)
                            .into_iter()
                            .for_each(|opened| self.deliver_cut(run, opened));
                    }
                }
                if self.group.bytes >= GROUP_BYTES {
                    self.flush().await?;
                }
            }
        }
        self.close_gathered();
        Ok(())
    }

    /// Records that are to be had one by one, by runs of leases; none where their payload is needed.
    async fn alone(&self, runs: &[&[Lease]]) -> Vec<Option<Vec<Taken>>> {
        let house = &self.session.shared.house;
        let is_few = |run: &[Lease]| {
            let count = run.iter().map(|lease| u64::from(lease.count)).sum();
            run.first().is_some_and(|first| {
                are_few(count, &first.batch) && !house.opened.has(first.batch.position)
            })
        };
        let rests: Vec<Option<Vec<Taken>>> = runs.iter().map(|run| self.rest(run)).collect();
        let mut wanted: Vec<Wanted> = Vec::new();
        for (run, _) in runs.iter().zip(&rests).filter(|(_, rest)| rest.is_none()) {
            let is_few = is_few(run);
            wanted.extend(run.iter().map(|lease| Wanted {
                place: lease.batch,
                skip: skipped(lease),
                count: lease.count,
                alone: is_few || is_read_alone(&lease.batch),
            }));
        }
        if !wanted
            .iter()
            .any(|want| want.alone || want.place.reference.is_some())
        {
            return rests;
        }
        let bytes_max = 4 * GROUP_BYTES as u64;
        let mut found = pieces(self.session, &wanted, bytes_max).await.into_iter();
        runs.iter()
            .zip(rests)
            .map(|(run, rest)| {
                if rest.is_some() {
                    return rest;
                }
                // All of a run's, even where one of them is not to be had: the next run's follow.
                let of_run: Vec<Pieces> = found.by_ref().take(run.len()).collect();
                let mut all = Vec::new();
                for pieces in of_run {
                    match pieces {
                        Pieces::Taken(taken) => all.extend(taken),
                        Pieces::Whole | Pieces::Beyond => return None,
                    }
                }
                Some(all)
            })
            .collect()
    }

    /// The records of a run of leases, where all of them are among what is left of their batch.
    fn rest(&self, run: &[Lease]) -> Option<Vec<Taken>> {
        let position = run.first()?.batch.position;
        let house = &self.session.shared.house;
        house.opened.take_rest(position, indexes(run))
    }

    /// Leases of one batch, whose records are here one by one.
    fn deliver_alone(&mut self, run: &[Lease], taken: Vec<Taken>) {
        let mut taken = taken.into_iter();
        for lease in run {
            let count = usize::try_from(lease.count).unwrap_or(usize::MAX);
            let records: Vec<Taken> = taken.by_ref().take(count).collect();
            let all = match records.len() == count {
                true => Ok(records),
                false => Err(BatchError::Directory),
            };
            self.gather(lease, all);
        }
    }

    /// Puts a lease into a frame with those before it, or into the next.
    fn gather(&mut self, lease: &Lease, records: Result<Vec<Taken>, BatchError>) {
        let pushed = records.and_then(|records| {
            let bytes = records.iter().map(Taken::bytes).sum();
            if !self.gathered.may_join(lease, bytes) {
                self.close_gathered();
            }
            self.gathered.push(lease, records)
        });
        if let Err(error) = pushed {
            self.unreadable(std::iter::once(lease), &error.to_string());
        }
    }

    /// What was gathered is a frame: something else comes behind it.
    fn close_gathered(&mut self) {
        if let Some((head, batch)) = self.gathered.finish() {
            self.group.frame(&head, &batch);
            delivered(&head);
        }
    }

    /// The batches' bytes. What cannot be read is not among them, and its leases are given back.
    async fn bodies(&self, runs: &[&[Lease]]) -> Had<Body> {
        let batches = batches(runs);
        let mut bodies = HashMap::with_capacity(batches.len());
        let mut left = batches.as_slice();
        while let Some((batch, after)) = left.split_first() {
            match reader::bodies(self.session, left, Share::Kept).await {
                Ok(read) => {
                    let many = read.len().max(1);
                    let at = left.iter().map(|batch| batch.position);
                    bodies.extend(at.zip(read));
                    left = left.get(many..).unwrap_or_default();
                }
                Err(stop) => {
                    self.stopped(runs, batch, stop);
                    left = after;
                }
            }
        }
        bodies
    }

    /// The batches, opened: what others opened is used. What cannot be had is not among them, and its
    /// leases are given back.
    async fn opened(&self, runs: &[&[Lease]]) -> Had<Arc<Opened>> {
        let batches = batches(runs);
        let places: Vec<EntryPlace> = batches.iter().map(BatchPlace::place).collect();
        let answers = self.session.shared.house.opened.open(&places).await;
        let mut opened = HashMap::with_capacity(batches.len());
        for (batch, answer) in batches.iter().zip(answers) {
            match answer {
                Ok(batch_opened) => {
                    opened.insert(batch.position, batch_opened);
                }
                Err(NotOpened::Unread(error)) => {
                    self.stopped(runs, batch, Stop::unreadable(batch, &error));
                }
                Err(NotOpened::Unsound(error)) => {
                    self.unreadable(of_batch(runs, batch), &error.to_string());
                }
                Err(NotOpened::Stopping) => {
                    let stop = Stop::Passing(refused(&Rejection::Retry));
                    self.stopped(runs, batch, stop);
                }
            }
        }
        opened
    }

    /// A batch could not be read.
    fn stopped(&self, runs: &[&[Lease]], batch: &BatchPlace, stop: Stop) {
        match stop {
            Stop::Passing(refused) => self.give_back(of_batch(runs, batch), refused.message),
            // Only what is not what was written is given up: a device that fails may answer the next time.
            Stop::End(EndReason::Refused(refused)) if refused.code() == Code::Damaged => {
                self.unreadable(of_batch(runs, batch), &refused.message);
            }
            Stop::End(reason) => self.give_back(of_batch(runs, batch), format!("{reason:?}")),
        }
    }

    /// These could not be delivered this time: they come again, to whoever is next.
    fn give_back<'a>(&self, leases: impl Iterator<Item = &'a Lease>, reason: String) {
        let ranges: Vec<LeasedRange> = leases.map(range).collect();
        tracing::warn!(target: "waterwheel::member", leases = ranges.len(), reason, "given back");
        self.tell(Command::Refuse {
            member: self.member,
            ranges,
            after: RetryAfter::Undelivered,
            reason,
        });
    }

    /// These cannot be delivered ever.
    fn unreadable<'a>(&self, leases: impl Iterator<Item = &'a Lease>, why: &str) {
        for lease in leases {
            tracing::warn!(
                target: "waterwheel::member",
                topic = lease.place.topic.0, partition = lease.place.partition.0,
                offset = lease.first.0, count = lease.count, why, "cannot be read"
            );
            self.tell(Command::Unreadable {
                member: self.member,
                lease: lease.id,
            });
        }
    }

    fn tell(&self, command: Command) {
        self.actor.tell(Do {
            command,
            events: None,
            reply: ReplyTo::nobody(),
        });
    }

    /// Puts leases of one batch into frames, the batch untouched.
    fn deliver_whole(&mut self, run: &[Lease], body: &Body) {
        self.close_gathered();
        for leases in run.chunks(LEASES_MAX) {
            let Some(first) = leases.first() else {
                continue;
            };
            let mut head = head(first, leases);
            head.base = Some(first.batch.first_offset);
            self.group.frame(&head, body);
            delivered(&head);
        }
    }

    /// Leases of one batch, whose records are taken out of it.
    fn deliver_cut(&mut self, run: &[Lease], opened: &Opened) {
        for lease in run {
            let records = indexes(std::slice::from_ref(lease)).map(|index| opened.take(index));
            self.gather(lease, records.collect());
        }
        if let Some(first) = run.first() {
            let house = &self.session.shared.house;
            house.opened.given(first.batch.position, indexes(run));
        }
    }
}

fn delivered(head: &Leased) {
    tracing::trace!(
        target: "waterwheel::trace",
        offset = head.leases.first().map(|lease| lease.first.0), leases = head.leases.len(),
        attempt = head.leases.first().map(|lease| lease.attempt), "leased"
    );
}

/// The distinct batches of runs of leases.
fn batches(runs: &[&[Lease]]) -> Vec<BatchPlace> {
    let mut positions = HashSet::with_capacity(runs.len());
    let first = runs.iter().filter_map(|run| run.first());
    first
        .map(|lease| lease.batch)
        .filter(|batch| positions.insert(batch.position))
        .collect()
}

fn of_batch<'a>(runs: &'a [&'a [Lease]], batch: &'a BatchPlace) -> impl Iterator<Item = &'a Lease> {
    let leases = runs.iter().copied().flatten();
    leases.filter(|lease| lease.batch.position == batch.position)
}

fn range(lease: &Lease) -> LeasedRange {
    LeasedRange {
        lease: lease.id,
        first: lease.first,
        count: lease.count,
    }
}

/// Leases that go into one frame.
fn is_together(a: &Lease, b: &Lease) -> bool {
    a.batch.position == b.batch.position
        && a.batch.first_offset == b.batch.first_offset
        && a.place == b.place
        && a.generation == b.generation
        && a.first < b.first
}

/// Most of the batch is leased: cutting would cost more than the rest weighs. Of a payload that is only
/// referred to, the rest is not the group's to see.
fn is_nearly_whole(leases: &[Lease], batch: &BatchPlace) -> bool {
    let leased: u64 = leases.iter().map(|lease| u64::from(lease.count)).sum();
    batch.is_whole() && leased * 4 >= u64::from(batch.count) * 3
}

/// Whether the batch goes out untouched with each frame of these leases.
fn goes_whole(run: &[Lease]) -> bool {
    run.chunks(LEASES_MAX).all(|leases| {
        leases
            .first()
            .is_some_and(|first| is_nearly_whole(leases, &first.batch))
    })
}

/// How many of the first runs are of batches that together are a group's bytes.
fn runs_of_group(runs: &[&[Lease]]) -> usize {
    let mut positions = HashSet::new();
    let mut bytes = 0;
    let firsts = runs.iter().map(|run| run.first());
    let fitting = firsts.take_while(|first| {
        let Some(batch) = first.map(|lease| lease.batch) else {
            return true;
        };
        if positions.insert(batch.position) {
            bytes += u64::from(batch.length);
        }
        positions.len() == 1 || bytes <= GROUP_BYTES as u64
    });
    fitting.count().max(1)
}

/// How many of the first leases make a group: by the bytes of their batches, or of themselves where little
/// of a batch is meant.
fn next_leases(leases: &[Lease]) -> usize {
    let mut positions = HashSet::new();
    let mut bytes = 0;
    for (index, lease) in leases.iter().enumerate() {
        let is_new = positions.insert(lease.batch.position);
        let length = if is_read_alone(&lease.batch) {
            lease.batch.bytes() * u64::from(is_new)
        } else if are_few(u64::from(lease.count), &lease.batch) {
            lease.bytes
        } else {
            u64::from(lease.batch.length) * u64::from(is_new)
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if index > 0 && length > 0 && bytes + length > GROUP_BYTES {
            return index;
        }
        bytes += length;
    }
    leases.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::{
        Generation, Lane, LeaseId, Offset, PartitionId, PartitionIndex, TopicId,
    };

    fn lease(id: u64, batch: u64, first: u64, count: u32, length: u32) -> Lease {
        Lease {
            id: LeaseId(id),
            place: PartitionId {
                topic: TopicId(1),
                partition: PartitionIndex(0),
                lane: Lane::ZERO,
            },
            batch: BatchPlace {
                first_offset: Offset(batch * 10),
                count: 10,
                first_number: Default::default(),
                position: LogPosition(batch * 1000),
                length,
                appended: Default::default(),
                tags: 0,
                reference: None,
            },
            first: Offset(first),
            count,
            attempt: 1,
            generation: Generation(1),
            lease_ms: 1000,
            bytes: 1,
        }
    }

    #[test]
    fn batches_are_read_once_for_all_their_leases_and_a_group_at_a_time() {
        let length = 600 * 1024;
        let leases = [
            lease(1, 0, 0, 2, length),
            lease(2, 0, 5, 1, length),
            lease(3, 1, 10, 10, length),
            lease(4, 2, 20, 1, length),
        ];
        assert_eq!(next_leases(&leases), 2);
        assert_eq!(next_leases(&leases[2..]), 1);
        let runs: Vec<&[Lease]> = leases.chunk_by(is_together).collect();
        let lengths: Vec<usize> = runs.iter().copied().map(<[_]>::len).collect();
        assert_eq!(lengths, [2, 1, 1]);
        assert_eq!(batches(&runs).len(), 3);
    }

    #[test]
    fn a_batch_that_is_mostly_leased_goes_out_untouched() {
        let place = lease(1, 0, 0, 10, 1).batch;
        assert!(is_nearly_whole(&[lease(1, 0, 0, 10, 1)], &place));
        assert!(is_nearly_whole(
            &[lease(1, 0, 0, 4, 1), lease(2, 0, 5, 4, 1)],
            &place
        ));
        assert!(!is_nearly_whole(&[lease(1, 0, 0, 7, 1)], &place));
    }
}

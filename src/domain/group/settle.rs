//! What becomes of leased records: consumed, refused, attached, expired; gathered, and written once per
//! flush.
//!
//! At most one write of progress is on its way: what comes meanwhile gathers and goes with the next, so
//! that a busy group writes one entry per flush, whatever the number of acknowledgements in it.

use std::collections::BTreeMap;

use super::command::{
    Answer, CursorNumber, Effect, Lease, LeasedRange, MemberEvent, REASON_BYTES_MAX, RetryAfter,
};
use super::cursor::{Cursor, ranges_of};
use super::deliver::is_ordered;
use super::delta::{Delta, Listed, Progress, Why};
use super::ranges::RangeSet;
use super::rejection::GroupRejection;
use super::subscription::{Mode, SPAN_MS_MAX};
use super::{Decided, Group, Timer};
use crate::domain::entry::Draft;
use crate::domain::id::{LeaseId, MemberId, Offset, OwnerId, PartitionId, Token};
use crate::domain::rejection::Rejection;
use crate::domain::time::MonotonicMs;

/// Ranges and listed records one entry carries at most.
const ITEMS_PER_ENTRY: usize = 8192;
/// Records that merely did not pass the filter are written once there are so many ranges of them, if
/// nothing else is written before.
const FILTERED_RANGES: usize = 512;
/// The same once there are so many records of them: what a restart would look through again.
const FILTERED_RECORDS: u64 = 65_536;
/// What could not be delivered comes again after so long.
const UNDELIVERED_MS: u64 = 1000;

/// What gathered for one cursor.
#[derive(Debug, Clone, Default)]
struct PendingCursor {
    settled: RangeSet,
    listed: BTreeMap<u64, Listed>,
    expired: u64,
    dead_lettered: u64,
}

/// What gathered since the last write.
#[derive(Debug, Clone, Default)]
pub(super) struct Pending {
    cursors: BTreeMap<CursorNumber, PendingCursor>,
    tokens: Vec<(Token, Answer)>,
    deliveries: Vec<(MemberId, Lease)>,
    listed: u64,
    /// Somebody waits for it.
    urgent: bool,
}

impl Pending {
    pub(super) fn settle(&mut self, cursor: CursorNumber, from: u64, to: u64) {
        self.cursors
            .entry(cursor)
            .or_default()
            .settled
            .insert(from, to);
    }

    pub(super) fn list(&mut self, cursor: CursorNumber, offset: u64, listed: Listed) {
        let pending = self.cursors.entry(cursor).or_default();
        self.listed += u64::from(pending.listed.insert(offset, listed).is_none());
        self.urgent = true;
    }

    pub(super) fn expire(&mut self, cursor: CursorNumber, count: u64) {
        self.cursors.entry(cursor).or_default().expired += count;
        self.urgent = true;
    }

    pub(super) fn deliver(&mut self, member: MemberId, lease: Lease) {
        self.deliveries.push((member, lease));
        self.urgent = true;
    }

    pub(super) fn answer(&mut self, token: Token, answer: Answer) {
        self.tokens.push((token, answer));
        self.urgent = true;
    }

    /// Records on their way into the list.
    pub(super) fn listed(&self) -> u64 {
        self.listed
    }

    pub(super) fn take_tokens(&mut self) -> Vec<Token> {
        self.tokens.drain(..).map(|(token, _)| token).collect()
    }

    /// Forgets what gathered for a cursor that is reset or gone.
    pub(super) fn drop_cursor(&mut self, cursor: CursorNumber) {
        if let Some(dropped) = self.cursors.remove(&cursor) {
            self.listed = self.listed.saturating_sub(dropped.listed.len() as u64);
        }
    }

    /// Whether so much was passed over that it is worth an entry of its own.
    fn is_much(&self) -> bool {
        let settled = || self.cursors.values().map(|pending| &pending.settled);
        settled().map(RangeSet::ranges).sum::<usize>() > FILTERED_RANGES
            || settled().map(RangeSet::len).sum::<u64>() > FILTERED_RECORDS
    }

    /// What merely did not pass the filter of a cursor and is not written yet.
    pub(super) fn filtered(&self, cursor: CursorNumber) -> Option<&RangeSet> {
        let pending = self.cursors.get(&cursor).filter(|_| !self.urgent);
        pending.map(|pending| &pending.settled)
    }
}

/// What was open of a range: its cursor, its attempt, its parts.
type Taken = (CursorNumber, u16, Vec<(u64, u64)>);

/// A write on its way: who hears of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    pub(super) answers: Vec<(Token, Answer)>,
    pub(super) deliveries: Vec<(MemberId, Lease)>,
    /// It carries progress: the next waits for it.
    pub(super) is_progress: bool,
}

impl Asked {
    pub(super) fn answering(token: Option<Token>, answer: Answer) -> Self {
        Self {
            answers: token.map(|token| (token, answer)).into_iter().collect(),
            ..Self::default()
        }
    }

    pub(super) fn tokens(self) -> impl Iterator<Item = Token> {
        self.answers.into_iter().map(|(token, _)| token)
    }
}

impl Group {
    /// Asks for entries of this group, and with the first perhaps some of others, tied.
    pub(super) fn persist(
        &mut self,
        before: Vec<(OwnerId, Draft)>,
        delta: &Delta,
        asked: Asked,
        effects: &mut Vec<Effect>,
    ) {
        let mut drafts = before;
        drafts.push((self.owner, delta.draft()));
        if self.restating {
            return self.held.push((drafts, asked));
        }
        self.asked.push_back(asked);
        effects.push(Effect::Persist(drafts));
    }

    /// Writes what has gathered, unless a write of progress is on its way.
    pub(super) fn flush(&mut self, effects: &mut Vec<Effect>) {
        let due = self.pending.urgent || self.pending.is_much();
        let waits = self.asked.iter().any(|asked| asked.is_progress)
            || self.held.iter().any(|(_, asked)| asked.is_progress);
        if !due || waits {
            return;
        }
        self.flush_now(effects);
    }

    pub(super) fn flush_now(&mut self, effects: &mut Vec<Effect>) {
        let pending = std::mem::take(&mut self.pending);
        let mut entries: Vec<Vec<Progress>> = Vec::new();
        for (cursor, gathered) in pending.cursors {
            for progress in pieces(cursor, gathered) {
                let size = |entry: &Vec<Progress>| {
                    entry
                        .iter()
                        .map(|p| p.settled.len() + p.listed.len())
                        .sum::<usize>()
                };
                match entries.last_mut() {
                    Some(last) if size(last) < ITEMS_PER_ENTRY => last.push(progress),
                    Some(_) | None => entries.push(vec![progress]),
                }
            }
        }
        if entries.is_empty() {
            // Nothing new: whoever asked repeats what is on its way, or on the disk already.
            match self.asked.back_mut() {
                Some(last) => last.answers.extend(pending.tokens),
                None => effects.extend(
                    pending
                        .tokens
                        .into_iter()
                        .map(|(token, answer)| Effect::Reply(token, Ok(answer))),
                ),
            }
            return;
        }
        let last = entries.len() - 1;
        let (mut answers, mut deliveries) = (pending.tokens, pending.deliveries);
        for (at, entry) in entries.into_iter().enumerate() {
            let asked = Asked {
                answers: if at == last {
                    std::mem::take(&mut answers)
                } else {
                    Vec::new()
                },
                deliveries: if at == last {
                    std::mem::take(&mut deliveries)
                } else {
                    Vec::new()
                },
                is_progress: true,
            };
            self.persist(Vec::new(), &Delta::Progress(entry), asked, effects);
        }
    }

    /// Notes a range as consumed, from here on out of everybody's reach.
    pub(super) fn settle_range(&mut self, number: CursorNumber, from: u64, to: u64) {
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return;
        };
        cursor.deciding.insert(from, to);
        self.pending.settle(number, from, to);
    }

    // ---- commands -------------------------------------------------------------------------------

    /// Takes a range out of a lease: the parts of it that are open. An error where the member has no
    /// such lease, or nothing of it is.
    pub(super) fn take_open(
        &mut self,
        member: MemberId,
        range: LeasedRange,
    ) -> Result<Taken, GroupRejection> {
        let held = self
            .leases
            .get_mut(&range.lease)
            .filter(|held| held.member == member)
            .ok_or(GroupRejection::UnknownLease)?;
        let (from, to) = range.bounds();
        let open = held.open.within(from, to);
        let (number, attempt) = (held.cursor, held.attempt);
        let mut taken = 0;
        for (a, b) in &open {
            taken += held.open.remove(*a, *b);
        }
        let is_over = held.open.is_empty();
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return Err(GroupRejection::UnknownLease);
        };
        for (a, b) in &open {
            cursor.leased.remove(*a, *b);
        }
        if open.is_empty() {
            // A repeat of what is on its way or done is as good as the first.
            let known = (from..to.min(from.saturating_add(65_536)))
                .all(|at| cursor.deciding.contains(at) || cursor.is_settled(at));
            return if known && from < to {
                Ok((number, attempt, open))
            } else {
                Err(GroupRejection::UnknownLease)
            };
        }
        let ordered = self
            .subscriptions
            .get(&cursor.place.topic)
            .is_some_and(|subscription| is_ordered(subscription.spec.mode));
        if !ordered {
            self.leased_singly = self.leased_singly.saturating_sub(taken);
        }
        if is_over {
            self.end_lease(range.lease);
        }
        Ok((number, attempt, open))
    }

    pub(super) fn acknowledge(
        &mut self,
        token: Token,
        member: MemberId,
        ranges: &[LeasedRange],
        effects: &mut Vec<Effect>,
    ) -> Decided {
        self.member(member)?;
        let mut refused = Vec::new();
        for range in ranges {
            match self.take_open(member, *range) {
                Ok((number, _, open)) => {
                    for (from, to) in open {
                        self.consume(number, from, to, effects);
                    }
                }
                Err(why) => refused.push((range.lease, why)),
            }
        }
        self.pending.answer(token, Answer::Settled(refused));
        Ok(None)
    }

    /// A range is consumed; of a cursor that is not in the log at once.
    pub(super) fn consume(
        &mut self,
        number: CursorNumber,
        from: u64,
        to: u64,
        effects: &mut Vec<Effect>,
    ) {
        let durable = self
            .cursors
            .get(&number)
            .is_some_and(|cursor| cursor.durable);
        if durable {
            return self.settle_range(number, from, to);
        }
        let progress = Progress {
            cursor: number,
            settled: vec![(Offset(from), to - from)],
            ..Progress::default()
        };
        self.apply_progress(&progress, effects);
    }

    /// The cursor a member consumes a place by; in order, it must be assigned to it.
    pub(super) fn cursor_for(
        &self,
        member: MemberId,
        place: PartitionId,
    ) -> Result<CursorNumber, Rejection> {
        let name = self.member(member)?.name.clone();
        let number = self
            .by_place
            .get(&(place, String::new()))
            .or_else(|| self.by_place.get(&(place, name)))
            .copied()
            .or_else(|| self.nameless_cursor(place, member))
            .ok_or(Rejection::Group(GroupRejection::UnknownSubscription))?;
        let Some(cursor) = self.cursors.get(&number) else {
            return Err(GroupRejection::UnknownSubscription.into());
        };
        let mode = self.subscription(place.topic)?.spec.mode;
        if is_ordered(mode) && cursor.assigned != Some(member) {
            return Err(GroupRejection::StaleGeneration.into());
        }
        Ok(number)
    }

    pub(super) fn acknowledge_up_to(
        &mut self,
        token: Token,
        member: MemberId,
        place: PartitionId,
        end: u64,
        effects: &mut Vec<Effect>,
    ) -> Decided {
        let number = self.cursor_for(member, place)?;
        let ranges = self.leased_below(member, place, end)?;
        // The last of them was the member's, or is settled: what was taken back before this was said comes
        // again, and whoever is told that it will not must not be.
        let last = end.checked_sub(1).ok_or(GroupRejection::UnknownLease)?;
        let is_its = ranges.iter().any(|range| {
            let (from, to) = range.bounds();
            (from..to).contains(&last)
        });
        let is_known = |cursor: &Cursor| {
            let is_settling = cursor.deciding.contains(last) && !cursor.listing.contains(&last);
            is_settling || cursor.is_settled(last)
        };
        if !is_its && !self.cursors.get(&number).is_some_and(is_known) {
            return Err(GroupRejection::UnknownLease.into());
        }
        for range in ranges {
            if let Ok((number, _, open)) = self.take_open(member, range) {
                for (from, to) in open {
                    self.consume(number, from, to, effects);
                }
            }
        }
        self.pending.answer(token, Answer::Settled(Vec::new()));
        Ok(None)
    }

    pub(super) fn refuse(
        &mut self,
        token: Token,
        member: MemberId,
        ranges: &[LeasedRange],
        after: RetryAfter,
        reason: &str,
        effects: &mut Vec<Effect>,
    ) -> Decided {
        self.member(member)?;
        if let RetryAfter::Ms(ms) = after
            && ms > SPAN_MS_MAX
        {
            let why = "a record comes again within 30 days at the latest".to_owned();
            return Err(GroupRejection::InvalidSubscription(why).into());
        }
        let reason = cut(reason);
        let mut refused = Vec::new();
        for range in ranges {
            match self.take_open(member, *range) {
                Ok((number, attempt, open)) => {
                    self.come_again(number, attempt, &open, after, reason, effects);
                }
                Err(why) => refused.push((range.lease, why)),
            }
        }
        self.pending.answer(token, Answer::Settled(refused));
        Ok(None)
    }

    /// Records are not consumed: they are listed, durably, with their attempts and reason, unless nobody saw
    /// them. In order, only the first is, and everything behind it is taken back (G3).
    fn come_again(
        &mut self,
        number: CursorNumber,
        attempt: u16,
        open: &[(u64, u64)],
        after: RetryAfter,
        reason: &str,
        effects: &mut Vec<Effect>,
    ) {
        let Some((mode, retry)) = self
            .spec_of(number)
            .map(|spec| (spec.mode, spec.retry.clone()))
        else {
            return;
        };
        let ordered = is_ordered(mode);
        let since = self.now.wall;
        let mut offsets = open.iter().flat_map(|(from, to)| *from..*to);
        let Some(first) = offsets.next() else { return };
        let is_seen = after != RetryAfter::Unseen;
        let listed: Vec<u64> = if !is_seen {
            Vec::new()
        } else if ordered {
            vec![first]
        } else {
            std::iter::once(first).chain(offsets).collect()
        };
        // What nobody saw was not tried.
        let attempt = attempt.saturating_sub(u16::from(after == RetryAfter::Undelivered));
        for offset in listed {
            let span_ms = match after {
                RetryAfter::Policy => {
                    let wait = retry.backoff.after(attempt);
                    jittered(
                        wait,
                        retry.jitter_percent,
                        number.0 ^ offset ^ u64::from(attempt) << 48,
                    )
                }
                RetryAfter::Now | RetryAfter::DeadLetter | RetryAfter::Unseen => 0,
                RetryAfter::Ms(ms) => ms,
                RetryAfter::Undelivered => UNDELIVERED_MS,
            };
            let reason = reason.to_owned();
            let why = if after == RetryAfter::DeadLetter {
                Why::Dead { reason }
            } else {
                Why::Retry {
                    since,
                    span_ms,
                    reason,
                }
            };
            self.list_record(number, offset, attempt, why, effects);
        }
        if (ordered || !is_seen)
            && let Some(cursor) = self.cursors.get_mut(&number)
        {
            let unlisted = first + u64::from(is_seen);
            for (from, to) in open {
                cursor.ready.insert((*from).max(unlisted), *to);
            }
            self.touched.insert(number);
        }
        if ordered {
            self.give_back_from(number, first + 1, false, effects);
            self.give_back_rest(number, first);
        }
    }

    /// In order, what is left behind an offset of the lease it is in is taken back too: that the member
    /// knows by itself.
    fn give_back_rest(&mut self, number: CursorNumber, offset: u64) {
        let Some(cursor) = self.cursors.get(&number) else {
            return;
        };
        let upto = (offset, LeaseId(u64::MAX));
        let Some(id) = cursor.leases.range(..=upto).next_back().map(|(_, id)| *id) else {
            return;
        };
        let Some(held) = self.leases.get_mut(&id) else {
            return;
        };
        // Only what is behind: what is before may still be settled.
        let behind: Vec<(u64, u64)> = held.open.within(offset + 1, u64::MAX);
        for (from, to) in &behind {
            held.open.remove(*from, *to);
        }
        let is_over = held.open.is_empty();
        if let Some(cursor) = self.cursors.get_mut(&number) {
            for (from, to) in behind {
                cursor.leased.remove(from, to);
                cursor.ready.insert(from, to);
            }
        }
        if is_over {
            self.end_lease(id);
        }
        self.touched.insert(number);
    }

    pub(super) fn list_record(
        &mut self,
        number: CursorNumber,
        offset: u64,
        attempts: u16,
        why: Why,
        effects: &mut Vec<Effect>,
    ) {
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return;
        };
        let listed = Listed {
            key_hash: cursor.key_of(offset),
            attempts,
            why,
        };
        self.touched.insert(number);
        if cursor.durable {
            cursor.deciding.insert(offset, offset + 1);
            cursor.listing.insert(offset);
            self.pending.list(number, offset, listed);
            return;
        }
        let progress = Progress {
            cursor: number,
            listed: vec![(Offset(offset), listed)],
            ..Progress::default()
        };
        self.apply_progress(&progress, effects);
    }

    /// A lease has expired: as if its member had refused it.
    pub(super) fn expire(&mut self, id: LeaseId, effects: &mut Vec<Effect>) {
        let Some(held) = self.end_lease(id) else {
            return;
        };
        effects.push(Effect::Tell(held.member, MemberEvent::Lost(vec![id])));
        let open: Vec<(u64, u64)> = held.open.iter().collect();
        let reason = "its lease expired";
        self.come_again(
            held.cursor,
            held.attempt,
            &open,
            RetryAfter::Now,
            reason,
            effects,
        );
    }

    pub(super) fn extend(
        &mut self,
        member: MemberId,
        leases: &[LeaseId],
        lease_ms: u64,
    ) -> Decided {
        self.member(member)?;
        let mut refused = Vec::new();
        for id in leases {
            let cursor = self
                .leases
                .get(id)
                .filter(|held| held.member == member)
                .map(|held| held.cursor);
            let usual = cursor
                .and_then(|cursor| self.spec_of(cursor))
                .map(|spec| spec.lease_ms);
            let Some((usual, held)) = usual.zip(self.leases.get_mut(id)) else {
                refused.push((*id, GroupRejection::UnknownLease));
                continue;
            };
            let span = if lease_ms == 0 {
                usual
            } else {
                lease_ms.min(SPAN_MS_MAX)
            };
            self.timers.remove(&(held.deadline, Timer::Lease(*id)));
            held.deadline = MonotonicMs(self.now.monotonic.0.saturating_add(span));
            self.timers.insert((held.deadline, Timer::Lease(*id)));
        }
        Ok(Some(Answer::Settled(refused)))
    }

    pub(super) fn unreadable(
        &mut self,
        token: Token,
        member: MemberId,
        lease: LeaseId,
        effects: &mut Vec<Effect>,
    ) -> Decided {
        self.member(member)?;
        let held = self.leases.get(&lease).filter(|held| held.member == member);
        if held.is_none() {
            return Err(GroupRejection::UnknownLease.into());
        }
        if let Some(held) = self.end_lease(lease) {
            self.pending.expire(held.cursor, held.open.len());
            for (from, to) in held.open.iter() {
                self.consume(held.cursor, from, to, effects);
            }
        }
        self.pending.answer(token, Answer::Settled(Vec::new()));
        Ok(None)
    }

    pub(super) fn spec_of(&self, number: CursorNumber) -> Option<&super::SubscriptionSpec> {
        let topic = self.cursors.get(&number)?.place.topic;
        Some(&self.subscriptions.get(&topic)?.spec)
    }

    pub(super) fn mode_of(&self, number: CursorNumber) -> Option<Mode> {
        self.spec_of(number).map(|spec| spec.mode)
    }
}

/// What gathered for a cursor, in parts that fit an entry.
fn pieces(cursor: CursorNumber, gathered: PendingCursor) -> Vec<Progress> {
    let settled = ranges_of(&gathered.settled);
    let listed: Vec<(Offset, Listed)> = gathered
        .listed
        .into_iter()
        .map(|(offset, listed)| (Offset(offset), listed))
        .collect();
    let mut parts = Vec::new();
    for part in settled.chunks(ITEMS_PER_ENTRY) {
        parts.push(Progress {
            cursor,
            settled: part.to_vec(),
            ..Progress::default()
        });
    }
    // Reasons are long: fewer of these.
    for part in listed.chunks(ITEMS_PER_ENTRY / 4) {
        parts.push(Progress {
            cursor,
            listed: part.to_vec(),
            ..Progress::default()
        });
    }
    if let Some(first) = parts.first_mut() {
        first.expired = gathered.expired;
        first.dead_lettered = gathered.dead_lettered;
    }
    parts
}

/// A reason, cut to its bound at a character.
fn cut(reason: &str) -> &str {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.get(..end).unwrap_or_default()
}

/// `wait` with up to `percent` of it added or taken off, by a hash of `seed`: a machine has no chance.
fn jittered(wait: u64, percent: u8, seed: u64) -> u64 {
    let wait = wait.min(SPAN_MS_MAX);
    let bound = wait * u64::from(percent.min(100)) / 100;
    if bound == 0 {
        return wait;
    }
    let hash = crate::domain::key::key_hash(&seed.to_le_bytes());
    let shift = hash % (2 * bound + 1);
    (wait - bound).saturating_add(shift)
}

#[cfg(test)]
mod tests;

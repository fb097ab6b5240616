//! Who is a member: joining, leaving, being lost, and who has which partitions.

use std::collections::{BTreeMap, BTreeSet};

use super::assign::assign;
use super::command::{Answer, CursorNumber, Effect, Join, MemberEvent, Settle};
use super::cursor::Drain;
use super::pool::Pool;
use super::rejection::GroupRejection;
use super::subscribe::Parked;
use super::subscription::{Mode, SPAN_MS_MAX};
use super::{COMMON, Decided, Group, Timer};
use crate::domain::id::{Generation, LeaseId, MemberId, PartitionIndex, Token, TopicId};
use crate::domain::rejection::Rejection;
use crate::domain::time::MonotonicMs;

/// Topics one member consumes at most.
const TOPICS_PER_MEMBER_MAX: usize = 256;
/// The longest name of a member in bytes.
const MEMBER_NAME_BYTES_MAX: usize = 200;

/// What a member may be sent of a topic.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Grant {
    pub(super) bytes: i64,
    pub(super) records: u64,
    /// The most bytes there have been.
    pub(super) most_bytes: i64,
    /// It stands in its pool's line.
    pub(super) in_turn: bool,
}

impl Grant {
    pub(super) fn is_open(self) -> bool {
        self.bytes > 0 && self.records > 0
    }

    /// Whether the member has worked off half of what it takes in advance.
    fn is_half_free(self) -> bool {
        self.bytes > self.most_bytes / 2
    }
}

/// With more members than this nobody is asked how much each has in hand.
const ASKED_MAX: usize = 64;

/// A member.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) grace_ms: u64,
    pub(super) settle: Settle,
    pub(super) topics: BTreeMap<TopicId, Grant>,
    pub(super) leases: BTreeSet<LeaseId>,
    pub(super) away: bool,
}

fn check_join(join: &Join) -> Result<(), Rejection> {
    let no = |why: &str| Err(GroupRejection::InvalidSubscription(why.to_owned()).into());
    if join.name.len() > MEMBER_NAME_BYTES_MAX {
        return no("a member's name has at most 200 bytes");
    }
    if join.grace_ms > 0 && join.name.is_empty() {
        return no("only a member with a name of its own can be waited for");
    }
    if join.grace_ms > SPAN_MS_MAX {
        return no("a grace time is at most 30 days");
    }
    let topics: BTreeSet<TopicId> = join.subscriptions.iter().map(|spec| spec.topic).collect();
    if topics.is_empty() || topics.len() > TOPICS_PER_MEMBER_MAX {
        return no("a member consumes 1 to 256 topics");
    }
    if topics.len() != join.subscriptions.len() {
        return no("a topic is named twice");
    }
    for spec in &join.subscriptions {
        spec.check()?;
    }
    Ok(())
}

impl Group {
    pub(super) fn join(&mut self, token: Token, join: Join, effects: &mut Vec<Effect>) {
        if let Err(rejection) = check_join(&join) {
            return effects.push(Effect::Reply(token, Err(rejection)));
        }
        self.admit(Parked { token, join }, effects);
    }

    /// Lets a member in once everything it needs is there; until then it waits.
    pub(super) fn admit(&mut self, parked: Parked, effects: &mut Vec<Effect>) {
        match self.prepare(&parked.join, effects) {
            Ok(true) => self.enter(parked, effects),
            Ok(false) => self.parked.push(parked),
            Err(rejection) => effects.push(Effect::Reply(parked.token, Err(rejection))),
        }
    }

    fn enter(&mut self, parked: Parked, effects: &mut Vec<Effect>) {
        let Parked { token, join } = parked;
        let earlier = self.names.get(&join.name).copied();
        let max = self.limits.members_max;
        if earlier.is_none() && self.members.len() >= usize::try_from(max).unwrap_or(usize::MAX) {
            let full = GroupRejection::TooManyMembers { max };
            return effects.push(Effect::Reply(token, Err(full.into())));
        }
        let id = MemberId(self.next_member);
        self.next_member += 1;
        let name = if join.name.is_empty() {
            format!("member-{id}")
        } else {
            join.name.clone()
        };
        effects.push(Effect::Welcome(token, id));
        let topics = join.subscriptions.iter().map(|spec| spec.topic);
        let member = Member {
            name: name.clone(),
            grace_ms: join.grace_ms,
            settle: join.settle,
            topics: topics
                .clone()
                .map(|topic| (topic, Grant::default()))
                .collect(),
            leases: BTreeSet::new(),
            away: false,
        };
        self.members.insert(id, member);
        let subscriptions = topics
            .clone()
            .filter_map(|topic| Some(self.subscriptions.get(&topic)?.spec.clone()))
            .collect();
        let joined = Answer::Joined {
            member: id,
            name: name.clone(),
            subscriptions,
        };
        effects.push(Effect::Reply(token, Ok(joined)));
        if let Some(earlier) = earlier {
            self.succeed(earlier, id, effects);
        }
        self.names.insert(name, id);
        for topic in topics.collect::<Vec<_>>() {
            self.take_part(topic, id, &join.name, effects);
        }
    }

    fn take_part(&mut self, topic: TopicId, id: MemberId, name: &str, effects: &mut Vec<Effect>) {
        let Some(subscription) = self.subscriptions.get_mut(&topic) else {
            return;
        };
        subscription.members.insert(id);
        match subscription.spec.mode {
            Mode::Shared | Mode::KeyOrdered => {
                subscription.pools.entry(COMMON).or_default();
            }
            Mode::Exclusive => self.rebalance(topic, effects),
            Mode::Broadcast => {
                let mine: Vec<CursorNumber> = if name.is_empty() {
                    self.nameless_cursors(topic, id)
                } else {
                    let of_mine = |number: &&CursorNumber| {
                        self.cursors
                            .get(number)
                            .is_some_and(|cursor| cursor.member == name)
                    };
                    subscription
                        .cursors
                        .iter()
                        .filter(of_mine)
                        .copied()
                        .collect()
                };
                for number in mine {
                    self.give(number, id, effects);
                }
            }
        }
    }

    /// A later session takes over an earlier one's partitions. What that held comes again, to it.
    fn succeed(&mut self, earlier: MemberId, id: MemberId, effects: &mut Vec<Effect>) {
        self.give_back_of(earlier, true, effects);
        let Some(old) = self.members.get(&earlier) else {
            return;
        };
        if !old.away {
            let fenced = MemberEvent::Ended(GroupRejection::MemberFenced.into());
            effects.push(Effect::Tell(earlier, fenced));
        }
        let stays: Vec<TopicId> = self
            .members
            .get(&id)
            .map(|member| member.topics.keys().copied().collect())
            .unwrap_or_default();
        let assigned: Vec<CursorNumber> = self
            .cursors
            .values()
            .filter(|cursor| {
                cursor.assigned == Some(earlier) && stays.contains(&cursor.place.topic)
            })
            .map(|cursor| cursor.number)
            .collect();
        for topic in &stays {
            if let Some(subscription) = self.subscriptions.get_mut(topic) {
                subscription.members.insert(id);
            }
        }
        for number in assigned {
            self.give(number, id, effects);
        }
        self.remove_member(earlier, effects);
    }

    /// A member is gone for good.
    pub(super) fn end_member(&mut self, id: MemberId, lost: bool, effects: &mut Vec<Effect>) {
        if !self.members.contains_key(&id) {
            return;
        }
        self.give_back_of(id, lost, effects);
        self.remove_member(id, effects);
    }

    fn remove_member(&mut self, id: MemberId, effects: &mut Vec<Effect>) {
        let Some(member) = self.members.remove(&id) else {
            return;
        };
        if self.names.get(&member.name) == Some(&id) {
            self.names.remove(&member.name);
        }
        effects.push(Effect::Dismiss(id));
        for topic in member.topics.into_keys() {
            let Some(subscription) = self.subscriptions.get_mut(&topic) else {
                continue;
            };
            subscription.members.remove(&id);
            if let Some(pool) = subscription.pools.get_mut(&COMMON) {
                pool.turn.retain(|member| *member != id);
            }
            let mode = subscription.spec.mode;
            let is_last = subscription.members.is_empty();
            let theirs: Vec<CursorNumber> = subscription
                .cursors
                .iter()
                .filter(|number| {
                    let cursor = self.cursors.get(number);
                    cursor.is_some_and(|cursor| is_last || cursor.assigned == Some(id))
                })
                .copied()
                .collect();
            for number in theirs {
                self.take_away(number, is_last, effects);
            }
            if mode == Mode::Exclusive {
                self.rebalance(topic, effects);
            }
        }
    }

    /// Nobody has the cursor any more. Where `stop`, nothing is looked for either.
    fn take_away(&mut self, number: CursorNumber, stop: bool, effects: &mut Vec<Effect>) {
        self.leave_pool(number);
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return;
        };
        let had = cursor.assigned.take();
        cursor.drain = None;
        if (stop || had.is_some()) && cursor.feeding {
            cursor.feeding = false;
            cursor.round += 1;
            effects.push(Effect::StopFeed(number));
        }
        if !cursor.durable {
            return self.remove_cursor(number);
        }
        self.touched.insert(number);
    }

    /// A member's session ended without a word.
    pub(super) fn lose_member(&mut self, id: MemberId, effects: &mut Vec<Effect>) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if member.grace_ms == 0 {
            return self.end_member(id, true, effects);
        }
        member.away = true;
        let due = MonotonicMs(self.now.monotonic.0.saturating_add(member.grace_ms));
        for grant in member.topics.values_mut() {
            *grant = Grant {
                in_turn: grant.in_turn,
                ..Grant::default()
            };
        }
        self.timers.insert((due, Timer::Grace(id)));
        self.give_back_of(id, true, effects);
        effects.push(Effect::Dismiss(id));
    }

    pub(super) fn grace_over(&mut self, id: MemberId, effects: &mut Vec<Effect>) {
        if self.members.get(&id).is_some_and(|member| member.away) {
            self.end_member(id, true, effects);
        }
    }

    pub(super) fn member(&self, id: MemberId) -> Result<&Member, Rejection> {
        self.members
            .get(&id)
            .filter(|member| !member.away)
            .ok_or(Rejection::Group(GroupRejection::UnknownMember))
    }

    /// Whether whoever is served from a cursor might soon have nothing to do if it is not looked for more.
    #[must_use]
    pub fn is_short(&self, number: CursorNumber) -> bool {
        let Some(cursor) = self.cursors.get(&number) else {
            return true;
        };
        let topic = cursor.place.topic;
        let is_half_free = |member: &MemberId| {
            let member = self.members.get(member);
            let grant = member.and_then(|member| member.topics.get(&topic));
            grant.is_none_or(|grant| grant.is_half_free())
        };
        match (cursor.assigned, self.subscriptions.get(&topic)) {
            (Some(member), _) => is_half_free(&member),
            (None, Some(subscription)) if subscription.members.len() <= ASKED_MAX => {
                subscription.members.iter().any(is_half_free)
            }
            (None, _) => true,
        }
    }

    pub(super) fn credit(
        &mut self,
        id: MemberId,
        topic: TopicId,
        bytes: u64,
        records: u64,
    ) -> Decided {
        self.member(id)?;
        let mode = self.subscription(topic)?.spec.mode;
        let pool_of = if matches!(mode, Mode::Shared | Mode::KeyOrdered) {
            COMMON
        } else {
            id
        };
        let Some(grant) = self
            .members
            .get_mut(&id)
            .and_then(|member| member.topics.get_mut(&topic))
        else {
            return Err(GroupRejection::UnknownSubscription.into());
        };
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        grant.bytes = grant.bytes.saturating_add(bytes);
        grant.most_bytes = grant.most_bytes.max(grant.bytes);
        grant.records = grant.records.saturating_add(records);
        if grant.is_open()
            && let Some(subscription) = self.subscriptions.get_mut(&topic)
        {
            let pool = subscription.pools.entry(pool_of).or_default();
            if !std::mem::replace(&mut grant.in_turn, true) {
                pool.turn.push_back(id);
            }
            self.stirred.insert((topic, pool_of));
        }
        Ok(Some(Answer::Done))
    }

    pub(super) fn withdraw(&mut self, id: MemberId, topic: TopicId) -> Decided {
        self.member(id)?;
        if let Some(grant) = self
            .members
            .get_mut(&id)
            .and_then(|member| member.topics.get_mut(&topic))
        {
            *grant = Grant {
                in_turn: grant.in_turn,
                ..Grant::default()
            };
        }
        Ok(Some(Answer::Done))
    }

    // ---- partitions -----------------------------------------------------------------------------

    /// Spreads an exclusive subscription's partitions over its members (G8).
    pub(super) fn rebalance(&mut self, topic: TopicId, effects: &mut Vec<Effect>) {
        let Some(subscription) = self.subscriptions.get(&topic) else {
            return;
        };
        let members: Vec<MemberId> = subscription.members.iter().copied().collect();
        let mut partitions = BTreeSet::new();
        let mut current: BTreeMap<PartitionIndex, MemberId> = BTreeMap::new();
        let cursors: Vec<CursorNumber> = subscription.cursors.iter().copied().collect();
        for number in &cursors {
            let Some(cursor) = self.cursors.get(number) else {
                continue;
            };
            partitions.insert(cursor.place.partition);
            if let Some(member) = cursor.assigned.filter(|_| cursor.drain.is_none()) {
                current.insert(cursor.place.partition, member);
            }
        }
        let target = assign(partitions, &members, &current);
        for number in cursors {
            let Some(cursor) = self
                .cursors
                .get(&number)
                .filter(|cursor| cursor.drain.is_none())
            else {
                continue;
            };
            let Some(member) = target.get(&cursor.place.partition).copied() else {
                continue;
            };
            match cursor.assigned {
                Some(assigned) if assigned == member => {}
                Some(assigned) if !cursor.leases.is_empty() => {
                    self.begin_drain(number, assigned, effects);
                }
                Some(assigned) => {
                    self.revoked(number, assigned, 0, effects);
                    self.take_away(number, false, effects);
                    self.give(number, member, effects);
                }
                None => self.give(number, member, effects),
            }
        }
    }

    fn revoked(
        &self,
        number: CursorNumber,
        member: MemberId,
        drain_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(cursor) = self.cursors.get(&number) {
            let event = MemberEvent::Revoked {
                place: cursor.place,
                generation: cursor.generation,
                drain_ms,
            };
            effects.push(Effect::Tell(member, event));
        }
    }

    fn begin_drain(&mut self, number: CursorNumber, member: MemberId, effects: &mut Vec<Effect>) {
        let drain_ms = self.limits.drain_ms;
        // What it was not told of yet it need not give back; and nothing of the place comes to it behind this.
        let place = self.cursors.get(&number).map(|cursor| cursor.place);
        let waiting = self.outbox.get_mut(&member);
        let untold: Vec<LeaseId> = waiting.map_or_else(Vec::new, |waiting| {
            let untold = waiting.extract_if(.., |lease| Some(lease.place) == place);
            untold.map(|lease| lease.id).collect()
        });
        for lease in untold {
            self.give_back(lease, false);
        }
        self.revoked(number, member, drain_ms, effects);
        let until = MonotonicMs(self.now.monotonic.0.saturating_add(drain_ms));
        if let Some(cursor) = self.cursors.get_mut(&number) {
            cursor.drain = Some(Drain { until });
        }
        self.timers.insert((until, Timer::Drain(number)));
        self.touched.insert(number);
    }

    pub(super) fn end_drain_if_empty(&mut self, number: CursorNumber, effects: &mut Vec<Effect>) {
        let is_empty = |cursor: &super::Cursor| cursor.drain.is_some() && cursor.leases.is_empty();
        if self.cursors.get(&number).is_some_and(is_empty) {
            self.drained(number, effects);
        }
    }

    /// A partition that was to move does: what its member still holds comes to the next.
    pub(super) fn drained(&mut self, number: CursorNumber, effects: &mut Vec<Effect>) {
        let Some(cursor) = self.cursors.get(&number) else {
            return;
        };
        let Some(drain) = cursor.drain else { return };
        self.timers.remove(&(drain.until, Timer::Drain(number)));
        let topic = cursor.place.topic;
        self.give_back_all(number, true, effects);
        self.take_away(number, false, effects);
        self.rebalance(topic, effects);
    }

    /// The cursor is this member's from now on.
    pub(super) fn give(
        &mut self,
        number: CursorNumber,
        member: MemberId,
        effects: &mut Vec<Effect>,
    ) {
        self.leave_pool(number);
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return;
        };
        cursor.assigned = Some(member);
        cursor.inherit();
        cursor.drain = None;
        cursor.generation = Generation(cursor.generation.0 + 1);
        let event = MemberEvent::Assigned {
            place: cursor.place,
            generation: cursor.generation,
        };
        effects.push(Effect::Tell(member, event));
        let topic = cursor.place.topic;
        if let Some(subscription) = self.subscriptions.get_mut(&topic) {
            let pool: &mut Pool = subscription.pools.entry(member).or_default();
            pool.hungry.insert(number);
        }
        self.touched.insert(number);
    }

    /// The pool a cursor is served from, if it is from any.
    pub(super) fn pool_of(&self, number: CursorNumber) -> Option<(TopicId, MemberId)> {
        let cursor = self.cursors.get(&number)?;
        let subscription = self.subscriptions.get(&cursor.place.topic)?;
        let pool = match subscription.spec.mode {
            Mode::Shared | Mode::KeyOrdered => COMMON,
            Mode::Exclusive | Mode::Broadcast => cursor.assigned?,
        };
        Some((cursor.place.topic, pool))
    }

    pub(super) fn leave_pool(&mut self, number: CursorNumber) {
        if let Some((topic, pool)) = self.pool_of(number)
            && let Some(lane) = self.cursors.get(&number).map(|cursor| cursor.place.lane)
            && let Some(pool) = self
                .subscriptions
                .get_mut(&topic)
                .and_then(|subscription| subscription.pools.get_mut(&pool))
        {
            pool.forget(number, lane);
        }
    }
}

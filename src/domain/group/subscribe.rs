//! Subscriptions: made, changed, ended; and what a topic's shape has to do with them.

use std::collections::{BTreeMap, BTreeSet};

use super::command::{Answer, CursorNumber, Effect, Join, MemberEvent, TopicShape};
use super::cursor::Cursor;
use super::delta::{Delta, NewCursor};
use super::rejection::GroupRejection;
use super::reset::Then;
use super::settle::Asked;
use super::subscription::{Mode, Start, SubscriptionChange, SubscriptionSpec};
use super::{Altering, Decided, Group, Subscription};
use crate::domain::id::{MemberId, PartitionId, Token, TopicId};
use crate::domain::partition::Bounds;
use crate::domain::rejection::Rejection;

/// Cursors a group has at most: their numbers are part of row ids.
const CURSORS_MAX: u64 = 1 << 24;

/// A join that waits for what it needs.
#[derive(Debug, Clone)]
pub(super) struct Parked {
    pub(super) token: Token,
    pub(super) join: Join,
}

/// A subscription on its way.
#[derive(Debug, Clone)]
pub(super) struct Making {
    pub(super) spec: SubscriptionSpec,
    pub(super) tokens: Vec<Token>,
    /// Its places are being looked up, or it is on its way to the log.
    pub(super) is_under_way: bool,
}

impl Group {
    pub(super) fn watch(&mut self, topic: TopicId, effects: &mut Vec<Effect>) {
        if self.watched.insert(topic) {
            effects.push(Effect::Watch(topic));
        }
    }

    /// Whether all a join needs is there; what is not is begun.
    pub(super) fn prepare(
        &mut self,
        join: &Join,
        effects: &mut Vec<Effect>,
    ) -> Result<bool, Rejection> {
        let mut is_ready = true;
        for spec in &join.subscriptions {
            if let Some(subscription) = self.subscriptions.get(&spec.topic) {
                if let Some(what) = subscription.spec.differs(spec) {
                    return Err(GroupRejection::SubscriptionMismatch(what).into());
                }
                is_ready &= self.has_cursors_for(spec.topic, &join.name);
                continue;
            }
            is_ready = false;
            if !self.making.contains_key(&spec.topic) {
                self.make(spec.clone(), None)?;
            }
        }
        if !is_ready {
            self.go_on_making(effects);
            for spec in &join.subscriptions {
                if self.subscriptions.contains_key(&spec.topic) {
                    self.make_cursors_for(spec.topic, &join.name, effects);
                }
            }
        }
        // A making may have found its topic gone.
        Ok(is_ready)
    }

    fn make(&mut self, spec: SubscriptionSpec, token: Option<Token>) -> Result<(), Rejection> {
        self.check(&spec)?;
        let max = self.limits.subscriptions_max;
        if self.subscriptions.len() + self.making.len()
            >= usize::try_from(max).unwrap_or(usize::MAX)
        {
            return Err(GroupRejection::TooManySubscriptions { max }.into());
        }
        let making = Making {
            tokens: token.into_iter().collect(),
            is_under_way: false,
            spec,
        };
        self.making.insert(making.spec.topic, making);
        Ok(())
    }

    /// Whether a subscription may be, under the limits of this broker.
    fn check(&self, spec: &SubscriptionSpec) -> Result<(), GroupRejection> {
        let max = usize::try_from(self.limits.filter_bytes_max).unwrap_or(usize::MAX);
        if spec.filter.len() > max {
            return Err(GroupRejection::InvalidFilter {
                position: u32::try_from(max + 1).unwrap_or(u32::MAX),
                why: format!(
                    "the filter has {} bytes; at most {max} are allowed",
                    spec.filter.len()
                ),
            });
        }
        spec.check()
    }

    pub(super) fn subscribe(
        &mut self,
        token: Token,
        spec: SubscriptionSpec,
        effects: &mut Vec<Effect>,
    ) -> Decided {
        if self.subscriptions.contains_key(&spec.topic) || self.making.contains_key(&spec.topic) {
            return Err(GroupRejection::SubscriptionExists.into());
        }
        self.make(spec, Some(token))?;
        self.go_on_making(effects);
        Ok(None)
    }

    /// Brings every subscription that is being made a step further.
    fn go_on_making(&mut self, effects: &mut Vec<Effect>) {
        let waiting: Vec<SubscriptionSpec> = self
            .making
            .values()
            .filter(|making| !making.is_under_way)
            .map(|making| making.spec.clone())
            .collect();
        for spec in waiting {
            let Some(shape) = self.shapes.get(&spec.topic).copied() else {
                self.watch(spec.topic, effects);
                continue;
            };
            if let Some(making) = self.making.get_mut(&spec.topic) {
                making.is_under_way = true;
            }
            let places: Vec<PartitionId> = shape.places().collect();
            if spec.start == Start::Earliest || spec.mode == Mode::Broadcast {
                // Broadcast cursors belong to members: they begin with them.
                self.made(&spec, &places, &BTreeMap::new(), effects);
            } else {
                let then = Then::Make(spec.clone());
                self.look_up(places, spec.start, then, effects);
            }
        }
    }

    /// The places of a new subscription are known: it goes to the log.
    pub(super) fn made(
        &mut self,
        spec: &SubscriptionSpec,
        places: &[PartitionId],
        found: &BTreeMap<PartitionId, Bounds>,
        effects: &mut Vec<Effect>,
    ) {
        let places = if spec.mode == Mode::Broadcast {
            &[]
        } else {
            places
        };
        let cursors = match self.number(places, "", found) {
            Ok(cursors) => cursors,
            Err(rejection) => return self.not_made(spec.topic, &rejection, effects),
        };
        let tokens = self
            .making
            .get_mut(&spec.topic)
            .map(|making| std::mem::take(&mut making.tokens))
            .unwrap_or_default();
        let asked = Asked {
            answers: tokens
                .into_iter()
                .map(|token| (token, Answer::Subscription(spec.clone())))
                .collect(),
            ..Asked::default()
        };
        let delta = Delta::Subscribed(spec.clone(), cursors);
        self.persist(Vec::new(), &delta, asked, effects);
    }

    /// Gives numbers to new cursors.
    fn number(
        &mut self,
        places: &[PartitionId],
        member: &str,
        found: &BTreeMap<PartitionId, Bounds>,
    ) -> Result<Vec<NewCursor>, Rejection> {
        let first = self.next_cursor.max(self.head.next_cursor);
        if first + places.len() as u64 > CURSORS_MAX {
            let why =
                format!("a group takes at most {CURSORS_MAX} cursors in its life; make a new one");
            return Err(GroupRejection::InvalidSubscription(why).into());
        }
        self.next_cursor = first + places.len() as u64;
        let new = |(number, place): (u64, &PartitionId)| NewCursor {
            number: CursorNumber(number),
            place: *place,
            member: member.to_owned(),
            floor: found.get(place).map(|bounds| bounds.offset),
        };
        Ok((first..).zip(places).map(new).collect())
    }

    pub(super) fn not_made(
        &mut self,
        topic: TopicId,
        rejection: &Rejection,
        effects: &mut Vec<Effect>,
    ) {
        let making = self.making.remove(&topic);
        let tokens = making.into_iter().flat_map(|making| making.tokens);
        let (gone, kept): (Vec<Parked>, Vec<Parked>) = std::mem::take(&mut self.parked)
            .into_iter()
            .partition(|parked| {
                parked
                    .join
                    .subscriptions
                    .iter()
                    .any(|spec| spec.topic == topic)
            });
        self.parked = kept;
        let joins = gone.into_iter().map(|parked| parked.token);
        effects.extend(
            tokens
                .chain(joins)
                .map(|token| Effect::Reply(token, Err(rejection.clone()))),
        );
    }

    /// Joins that waited look again.
    pub(super) fn retry_parked(&mut self, effects: &mut Vec<Effect>) {
        for parked in std::mem::take(&mut self.parked) {
            self.admit(parked, effects);
        }
    }

    // ---- broadcast ------------------------------------------------------------------------------

    fn has_cursors_for(&self, topic: TopicId, name: &str) -> bool {
        let Some(subscription) = self.subscriptions.get(&topic) else {
            return false;
        };
        if subscription.spec.mode != Mode::Broadcast || name.is_empty() {
            return subscription.spec.mode != Mode::Broadcast
                || self.shapes.contains_key(&topic) && self.found_for_nameless(topic).is_some();
        }
        let Some(shape) = self.shapes.get(&topic) else {
            return false;
        };
        shape
            .places()
            .all(|place| self.by_place.contains_key(&(place, name.to_owned())))
    }

    /// Where a member without a name begins: found at its join, used once.
    fn found_for_nameless(&self, topic: TopicId) -> Option<&BTreeMap<PartitionId, Bounds>> {
        let start = self.subscriptions.get(&topic)?.spec.start;
        if start == Start::Earliest {
            return Some(&EMPTY);
        }
        self.nameless_starts.get(&topic)
    }

    /// Begins to make the cursors a broadcast member needs.
    fn make_cursors_for(&mut self, topic: TopicId, name: &str, effects: &mut Vec<Effect>) {
        let Some(spec) = self.subscriptions.get(&topic).map(|s| s.spec.clone()) else {
            return;
        };
        if spec.mode != Mode::Broadcast || self.has_cursors_for(topic, name) {
            return;
        }
        let Some(shape) = self.shapes.get(&topic).copied() else {
            return self.watch(topic, effects);
        };
        if !self.cursors_under_way.insert((topic, name.to_owned())) {
            return;
        }
        let missing: Vec<PartitionId> = shape
            .places()
            .filter(|place| !self.by_place.contains_key(&(*place, name.to_owned())))
            .collect();
        let then = Then::Cursors(topic, name.to_owned());
        if spec.start == Start::Earliest {
            self.cursors_found(topic, name, &missing, &BTreeMap::new(), effects);
        } else {
            self.look_up(missing, spec.start, then, effects);
        }
    }

    /// Where a broadcast member's cursors begin is known.
    pub(super) fn cursors_found(
        &mut self,
        topic: TopicId,
        name: &str,
        places: &[PartitionId],
        found: &BTreeMap<PartitionId, Bounds>,
        effects: &mut Vec<Effect>,
    ) {
        if name.is_empty() {
            self.cursors_under_way.remove(&(topic, String::new()));
            self.nameless_starts.insert(topic, found.clone());
            return self.retry_parked(effects);
        }
        match self.number(places, name, found) {
            Ok(cursors) => {
                self.persist(
                    Vec::new(),
                    &Delta::Cursors(cursors),
                    Asked::default(),
                    effects,
                );
            }
            Err(rejection) => self.not_made(topic, &rejection, effects),
        }
    }

    /// Cursors of a member without a name: memory only.
    pub(super) fn nameless_cursors(&mut self, topic: TopicId, id: MemberId) -> Vec<CursorNumber> {
        let Some(shape) = self.shapes.get(&topic).copied() else {
            return Vec::new();
        };
        let starts = self.nameless_starts.remove(&topic).unwrap_or_default();
        let mut numbers = Vec::new();
        for place in shape.places() {
            let number = CursorNumber(self.next_nameless);
            self.next_nameless += 1;
            let new = NewCursor {
                number,
                place,
                member: format!("member-{id}"),
                floor: starts.get(&place).map(|bounds| bounds.offset),
            };
            let mut cursor = Cursor::new(&new, false, false);
            self.by_place.insert((place, new.member), number);
            if let Some(subscription) = self.subscriptions.get_mut(&topic) {
                cursor.resetting = subscription.altering == Some(Altering::Hand);
                subscription.cursors.insert(number);
            }
            self.cursors.insert(number, cursor);
            numbers.push(number);
        }
        numbers
    }

    pub(super) fn nameless_cursor(&self, place: PartitionId, id: MemberId) -> Option<CursorNumber> {
        self.by_place.get(&(place, format!("member-{id}"))).copied()
    }

    // ---- change and end -------------------------------------------------------------------------

    pub(super) fn alter(
        &mut self,
        token: Token,
        topic: TopicId,
        change: SubscriptionChange,
        effects: &mut Vec<Effect>,
    ) -> Decided {
        let old = &self.subscription(topic)?.spec;
        let spec = change.apply(old);
        self.check(&spec)?;
        if (old.mode == Mode::Broadcast) != (spec.mode == Mode::Broadcast) {
            let why = "a broadcast subscription keeps one place for each member, the others one for all: remove it and make another";
            return Err(GroupRejection::InvalidSubscription(why.into()).into());
        }
        let again = looks_again(old, &spec);
        let is_reset = |number: &CursorNumber| {
            let cursor = self.cursors.get(number);
            cursor.is_some_and(|cursor| cursor.resetting)
        };
        if again && self.subscription(topic)?.cursors.iter().any(is_reset) {
            // Once it is reset it begins to look by the rules there are then, which must be the new ones.
            return Err(Rejection::Throttled { after_ms: 5 });
        }
        let altering = if again {
            Altering::Hand
        } else {
            Altering::Rules
        };
        let cursors: Vec<CursorNumber> = match self.subscriptions.get_mut(&topic) {
            // One after the other: the second would be made of the rules before the first.
            Some(subscription) if subscription.altering.is_some() => {
                return Err(Rejection::Throttled { after_ms: 5 });
            }
            Some(subscription) => {
                subscription.altering = Some(altering);
                subscription.cursors.iter().copied().collect()
            }
            None => Vec::new(),
        };
        if again {
            // What was settled and listed by the old rules stays before the new ones: behind them it would
            // be of records that are in hand again.
            self.flush_now(effects);
            for number in cursors {
                self.close(number, effects);
            }
        }
        let answer = Answer::Subscription(spec.clone());
        let asked = Asked::answering(Some(token), answer);
        self.persist(Vec::new(), &Delta::Altered(spec), asked, effects);
        Ok(None)
    }

    pub(super) fn unsubscribe(
        &mut self,
        token: Option<Token>,
        topic: TopicId,
        effects: &mut Vec<Effect>,
    ) -> Decided {
        self.subscription(topic)?;
        let asked = Asked::answering(token, Answer::Done);
        self.persist(Vec::new(), &Delta::Unsubscribed(topic), asked, effects);
        Ok(None)
    }

    /// The shape of a topic, or its new shape: partitions are only ever added.
    pub fn shape(
        &mut self,
        now: crate::domain::time::Now,
        shape: TopicShape,
        effects: &mut Vec<Effect>,
    ) {
        self.now = now;
        self.shapes.insert(shape.topic, shape);
        self.add_places(shape, effects);
        self.go_on_making(effects);
        self.retry_parked(effects);
        self.finish(effects);
    }

    /// Partitions that were added since the subscription was made begin at their first record.
    fn add_places(&mut self, shape: TopicShape, effects: &mut Vec<Effect>) {
        let Some(subscription) = self.subscriptions.get(&shape.topic) else {
            return;
        };
        let names: BTreeSet<String> = subscription
            .cursors
            .iter()
            .filter_map(|number| self.cursors.get(number))
            .filter(|cursor| cursor.durable)
            .map(|cursor| cursor.member.clone())
            .collect();
        for name in names {
            let missing: Vec<PartitionId> = shape
                .places()
                .filter(|place| !self.by_place.contains_key(&(*place, name.clone())))
                .collect();
            if missing.is_empty() {
                continue;
            }
            if let Ok(cursors) = self.number(&missing, &name, &BTreeMap::new()) {
                self.persist(
                    Vec::new(),
                    &Delta::Cursors(cursors),
                    Asked::default(),
                    effects,
                );
            }
        }
    }

    /// A topic is gone: so is the subscription to it.
    pub fn topic_gone(
        &mut self,
        now: crate::domain::time::Now,
        topic: TopicId,
        effects: &mut Vec<Effect>,
    ) {
        self.now = now;
        self.watched.remove(&topic);
        self.shapes.remove(&topic);
        self.not_made(topic, &Rejection::UnknownTopic, effects);
        if self.subscriptions.contains_key(&topic) {
            let _ = self.unsubscribe(None, topic, effects);
        }
        self.finish(effects);
    }

    // ---- applied --------------------------------------------------------------------------------

    pub(super) fn apply_subscribed(
        &mut self,
        spec: SubscriptionSpec,
        cursors: Vec<NewCursor>,
        effects: &mut Vec<Effect>,
    ) {
        let topic = spec.topic;
        self.rows.subscription(topic);
        self.subscriptions
            .entry(topic)
            .or_insert_with(|| Subscription {
                spec,
                cursors: BTreeSet::new(),
                members: BTreeSet::new(),
                pools: BTreeMap::new(),
                altering: None,
            });
        self.making.remove(&topic);
        self.apply_cursors(cursors, effects);
    }

    pub(super) fn apply_cursors(&mut self, cursors: Vec<NewCursor>, effects: &mut Vec<Effect>) {
        let mut topics = BTreeSet::new();
        for new in cursors {
            self.head.next_cursor = self.head.next_cursor.max(new.number.0 + 1);
            let topic = new.place.topic;
            let Some(subscription) = self.subscriptions.get_mut(&topic) else {
                continue;
            };
            // Asked for twice, the first stands.
            if self.by_place.contains_key(&(new.place, new.member.clone())) {
                continue;
            }
            let keyed = subscription.spec.mode == Mode::KeyOrdered;
            subscription.cursors.insert(new.number);
            self.by_place
                .insert((new.place, new.member.clone()), new.number);
            self.cursors_under_way.remove(&(topic, new.member.clone()));
            self.rows.cursor(new.number);
            let member = self.names.get(&new.member).copied();
            let mut cursor = Cursor::new(&new, true, keyed);
            cursor.resetting = subscription.altering == Some(Altering::Hand);
            self.cursors.insert(new.number, cursor);
            self.touched.insert(new.number);
            topics.insert((topic, subscription.spec.mode));
            if let Some(member) = member.filter(|_| subscription.spec.mode == Mode::Broadcast) {
                self.give(new.number, member, effects);
            }
        }
        for (topic, mode) in topics {
            if mode == Mode::Exclusive {
                self.rebalance(topic, effects);
            }
        }
    }

    pub(super) fn apply_altered(&mut self, spec: SubscriptionSpec, effects: &mut Vec<Effect>) {
        let topic = spec.topic;
        let Some(subscription) = self.subscriptions.get_mut(&topic) else {
            return;
        };
        self.rows.subscription(topic);
        let old = std::mem::replace(&mut subscription.spec, spec.clone());
        let cursors: Vec<CursorNumber> = subscription.cursors.iter().copied().collect();
        subscription.altering = None;
        if !looks_again(&old, &spec) {
            for number in cursors {
                self.touched.insert(number);
            }
            return;
        }
        // What is in hand was found and given out by the old rules.
        subscription.spec.mode = old.mode;
        for number in &cursors {
            self.give_back_all(*number, false, effects);
            self.leave_pool(*number);
            if let Some(cursor) = self.cursors.get_mut(number) {
                cursor.resetting = false;
                cursor.assigned = cursor.assigned.filter(|_| spec.mode == Mode::Broadcast);
                cursor.drain = None;
            }
        }
        if let Some(subscription) = self.subscriptions.get_mut(&topic) {
            subscription.spec.mode = spec.mode;
            subscription.pools.clear();
            for member in &subscription.members {
                if let Some(grant) = self
                    .members
                    .get_mut(member)
                    .and_then(|member| member.topics.get_mut(&topic))
                {
                    grant.in_turn = false;
                }
            }
        }
        for number in cursors {
            self.restart_cursor(number);
        }
        self.requeue_members(topic);
        if spec.mode == Mode::Exclusive {
            self.rebalance(topic, effects);
        }
    }

    /// Members with credit stand in line again.
    fn requeue_members(&mut self, topic: TopicId) {
        let members: Vec<MemberId> = self
            .subscriptions
            .get(&topic)
            .map(|subscription| subscription.members.iter().copied().collect())
            .unwrap_or_default();
        for member in members {
            let _ = self.credit(member, topic, 0, 0);
        }
    }

    pub(super) fn apply_unsubscribed(&mut self, topic: TopicId, effects: &mut Vec<Effect>) {
        let Some(subscription) = self.subscriptions.get(&topic) else {
            return;
        };
        let members: Vec<MemberId> = subscription.members.iter().copied().collect();
        let why = if self.shapes.contains_key(&topic) {
            Rejection::Group(GroupRejection::UnknownSubscription)
        } else {
            Rejection::UnknownTopic
        };
        let cursors: Vec<CursorNumber> = subscription.cursors.iter().copied().collect();
        for number in cursors {
            self.give_back_all(number, false, effects);
            if self
                .cursors
                .get(&number)
                .is_some_and(|cursor| cursor.feeding)
            {
                effects.push(Effect::StopFeed(number));
            }
            self.remove_cursor(number);
        }
        self.subscriptions.remove(&topic);
        self.rows.subscription_gone(topic);
        for id in members {
            let why = why.clone();
            effects.push(Effect::Tell(id, MemberEvent::Unsubscribed { topic, why }));
            if let Some(member) = self.members.get_mut(&id) {
                member.topics.remove(&topic);
            }
        }
    }

    /// A cursor is gone, with everything known of it.
    pub(super) fn remove_cursor(&mut self, number: CursorNumber) {
        self.leave_pool(number);
        self.pending.drop_cursor(number);
        // What is written of it lands nowhere.
        self.dying.retain(|(cursor, _)| *cursor != number);
        self.burying.retain(|(cursor, _), _| *cursor != number);
        let Some(cursor) = self.cursors.remove(&number) else {
            return;
        };
        self.forget_listed(&cursor.listed);
        self.rows.cursor_gone(&cursor);
        self.by_place.remove(&(cursor.place, cursor.member));
        if let Some(subscription) = self.subscriptions.get_mut(&cursor.place.topic) {
            subscription.cursors.remove(&number);
        }
    }
}

/// Whether what is in hand was found and given out by other rules.
fn looks_again(old: &SubscriptionSpec, new: &SubscriptionSpec) -> bool {
    old.mode != new.mode || old.filter != new.filter
}

static EMPTY: BTreeMap<PartitionId, Bounds> = BTreeMap::new();

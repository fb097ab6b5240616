//! Leasing: who gets what is ready.

use super::command::{CursorNumber, Effect, Feed, Lease, MemberEvent, Settle};
use super::cursor::Cursor;
use super::delta::Why;
use super::ranges::RangeSet;
use super::subscription::{Mode, Poison};
use super::{Group, Held, Timer};
use crate::domain::id::{LeaseId, MemberId, Offset, TopicId};
use crate::domain::time::MonotonicMs;

/// Records one member is leased at a time while others wait beside it.
const TURN_RECORDS: u64 = 64;
/// With fewer ready than this, more are looked for.
const READY_LOW: u64 = 1024;
/// Bytes one search brings, about.
const FEED_BYTES: u64 = 1 << 20;
/// Settled ranges all cursors may have together.
const SETTLED_RANGES_MAX: u64 = 100_000;
/// Bytes of a snapshot for each of them: half of it is for what waits, and there is the rest.
const SNAPSHOT_BYTES_PER_RANGE: u64 = 64;

/// What came of an attempt to lease.
enum Leased {
    /// So many records of the batch that begins here were leased.
    Of(Offset, u64),
    /// Something was put aside: try again.
    Aside,
    /// This cursor has nothing for now.
    Nothing,
}

impl Group {
    /// Puts a cursor where it belongs in its pool, after anything about it changed.
    pub(super) fn sort_into_pool(&mut self, number: CursorNumber) {
        let Some((topic, key)) = self.pool_of(number) else {
            return;
        };
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return;
        };
        let Some(subscription) = self.subscriptions.get_mut(&topic) else {
            return;
        };
        let open = !cursor.resetting && cursor.drain.is_none();
        let is_exclusive = is_ordered(subscription.spec.mode);
        let can = open && !cursor.ready.is_empty() && !(is_exclusive && is_blocked(cursor));
        let lane = cursor.place.lane;
        let pool = subscription.pools.entry(key).or_default();
        if can {
            let since = *cursor.ready_since.get_or_insert(self.now.monotonic);
            pool.put(number, lane, since);
        } else {
            cursor.ready_since = None;
            pool.take(number);
        }
        pool.coming(number, lane, open && cursor.is_coming());
        if open && !cursor.feeding {
            pool.hungry.insert(number);
        } else {
            pool.hungry.remove(&number);
        }
        if !pool.turn.is_empty() {
            self.stirred.insert((topic, key));
        }
    }

    /// Leases what is ready to whoever has credit, and looks for more.
    pub(super) fn deliver(&mut self, topic: TopicId, key: MemberId, effects: &mut Vec<Effect>) {
        let Some(mode) = self.subscriptions.get(&topic).map(|s| s.spec.mode) else {
            return;
        };
        if self.has_lanes(topic) {
            // Before anything is leased: a higher lane nothing is looked for in would never be served by
            // members whose credit is used up each time by what lies ready below.
            self.look_for_more(topic, key, effects);
        }
        while let Some((member, is_alone)) = self.whose_turn(topic, key) {
            let full = self.is_full(mode);
            self.full |= full;
            let (now, ageing_ms) = (self.now.monotonic, self.limits.ageing_ms);
            let Some(pool) = self
                .subscriptions
                .get_mut(&topic)
                .and_then(|subscription| subscription.pools.get_mut(&key))
            else {
                break;
            };
            let next = if full {
                // What needs no room makes some once it is consumed.
                pool.highest_first().find_map(|number| {
                    let cursor = self.cursors.get(&number)?;
                    Some((number, Some(cursor.first_needing_no_room(mode)?)))
                })
            } else {
                pool.next(now, ageing_ms).map(|number| (number, None))
            };
            let Some((number, listed)) = next else {
                if let Some((due, number)) = pool.oldest(ageing_ms).filter(|_| !full) {
                    // What comes above may take its time: nobody waits for it for ever.
                    self.timers.insert((due, Timer::Stuck(number)));
                }
                break;
            };
            let records_max = if is_alone { u64::MAX } else { TURN_RECORDS };
            let leased = self.lease_turn(number, member, mode, records_max, listed, effects);
            if let Some(pool) = self
                .subscriptions
                .get_mut(&topic)
                .and_then(|subscription| subscription.pools.get_mut(&key))
            {
                match leased {
                    Leased::Of(..) => {
                        pool.served(number, now);
                        pool.turn.rotate_left(1);
                    }
                    // Nobody was given anything by that: neither had its turn.
                    Leased::Aside => {}
                    Leased::Nothing => pool.take(number),
                }
            }
            if !matches!(leased, Leased::Aside)
                && let Some(cursor) = self.cursors.get_mut(&number)
            {
                cursor.ready_since = Some(now);
            }
            if !matches!(leased, Leased::Nothing) {
                self.sort_into_pool(number);
            }
        }
        self.stirred.remove(&(topic, key));
        self.look_for_more(topic, key, effects);
    }

    /// Whose turn it is, and whether nobody waits beside it. Who has no credit leaves the line.
    fn whose_turn(&mut self, topic: TopicId, key: MemberId) -> Option<(MemberId, bool)> {
        let pool = self.subscriptions.get_mut(&topic)?.pools.get_mut(&key)?;
        while let Some(id) = pool.turn.front().copied() {
            let grant = self
                .members
                .get_mut(&id)
                .and_then(|member| member.topics.get_mut(&topic));
            match grant {
                Some(grant) if grant.is_open() => return Some((id, pool.turn.len() == 1)),
                Some(grant) => grant.in_turn = false,
                None => {}
            }
            pool.turn.pop_front();
        }
        None
    }

    /// Whether leasing one more record by itself might need more room in the list than there is.
    pub(super) fn is_full(&self, mode: Mode) -> bool {
        let singly = if is_ordered(mode) {
            0
        } else {
            self.leased_singly
        };
        self.listed + singly + self.pending.listed() >= u64::from(self.limits.listed_max)
            || self.listed_bytes >= self.limits.snapshot_bytes_max / 2
    }

    /// Leases what is ready of one batch, up to `records_max`. What came back to one by one is leased one by
    /// one; were another cursor served after each, every record would be read and sent by itself.
    fn lease_turn(
        &mut self,
        number: CursorNumber,
        member: MemberId,
        mode: Mode,
        records_max: u64,
        listed: Option<u64>,
        effects: &mut Vec<Effect>,
    ) -> Leased {
        let first = self.lease(number, member, mode, records_max, listed, effects);
        let Leased::Of(batch, count) = first else {
            return first;
        };
        let mut left = records_max.saturating_sub(count);
        while left > 0 && listed.is_none() && !is_ordered(mode) && !self.is_full(mode) {
            let topic = self.cursors.get(&number).and_then(|cursor| {
                let (next, _) = cursor.ready.first()?;
                let is_same = cursor.batch_of(next)?.place.first_offset == batch;
                is_same.then_some(cursor.place.topic)
            });
            let grant = topic.and_then(|topic| self.members.get(&member)?.topics.get(&topic));
            if !grant.is_some_and(|grant| grant.is_open()) {
                break;
            }
            match self.lease(number, member, mode, left, None, effects) {
                Leased::Of(_, count) => left = left.saturating_sub(count),
                Leased::Aside => {}
                Leased::Nothing => break,
            }
        }
        first
    }

    fn lease(
        &mut self,
        number: CursorNumber,
        member: MemberId,
        mode: Mode,
        records_max: u64,
        listed: Option<u64>,
        effects: &mut Vec<Effect>,
    ) -> Leased {
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return Leased::Nothing;
        };
        let first = listed.map(|at| (at, at + 1));
        let Some((from, to)) = first.or_else(|| cursor.ready.first()) else {
            return Leased::Nothing;
        };
        let topic = cursor.place.topic;
        let Some(batch) = cursor.batch_of(from).map(|batch| batch.place) else {
            let known = cursor.batches.range(from..to).next();
            let to = known.map_or(to, |(first, _)| *first);
            cursor.ready.remove(from, to);
            cursor.fetching.insert(from, to);
            self.fetch(number, effects);
            return Leased::Aside;
        };
        let attempts = cursor.attempts(from);
        let Some(spec) = self.subscriptions.get(&topic).map(|s| &s.spec) else {
            return Leased::Nothing;
        };
        let blocks = mode == Mode::Exclusive && spec.retry.poison == Poison::Block;
        if attempts >= spec.retry.attempts_max && !blocks {
            self.condemn(number, from);
            return Leased::Aside;
        }
        let lease_ms = spec.lease_ms;
        let end = run_end(cursor, from, to.min(batch.end().0), is_ordered(mode));
        let per_record = batch.bytes().div_ceil(u64::from(batch.count.max(1))).max(1);
        let Some(holder) = self.members.get_mut(&member) else {
            return Leased::Nothing;
        };
        let settle = holder.settle;
        let Some(grant) = holder.topics.get_mut(&topic) else {
            return Leased::Nothing;
        };
        let by_bytes = if is_ordered(mode) {
            u64::MAX
        } else {
            u64::try_from(grant.bytes).unwrap_or(0).div_ceil(per_record)
        };
        let count = (end - from)
            .min(records_max)
            .min(grant.records)
            .min(by_bytes)
            .max(1);
        let cost = count.saturating_mul(per_record);
        grant.records -= count.min(grant.records);
        grant.bytes = grant
            .bytes
            .saturating_sub(i64::try_from(cost).unwrap_or(i64::MAX));
        let id = LeaseId(self.next_lease);
        self.next_lease += 1;
        cursor.ready.remove(from, from + count);
        let lease = Lease {
            id,
            place: cursor.place,
            batch,
            first: Offset(from),
            count: u32::try_from(count).unwrap_or(u32::MAX),
            bytes: cost,
            attempt: attempts.saturating_add(1),
            generation: cursor.generation,
            lease_ms: if settle == Settle::OnDelivery {
                0
            } else {
                lease_ms
            },
        };
        if settle == Settle::OnDelivery {
            self.settle_range(number, from, from + count);
            self.pending.deliver(member, lease);
            return Leased::Of(batch.first_offset, count);
        }
        self.hold(number, member, &lease, lease_ms);
        if !is_ordered(mode) {
            self.leased_singly += count;
        }
        self.outbox.entry(member).or_default().push(lease);
        Leased::Of(batch.first_offset, count)
    }

    fn hold(&mut self, number: CursorNumber, member: MemberId, lease: &Lease, lease_ms: u64) {
        let deadline = MonotonicMs(self.now.monotonic.0.saturating_add(lease_ms));
        let (from, to) = (lease.first.0, lease.first.0 + u64::from(lease.count));
        self.timers.insert((deadline, Timer::Lease(lease.id)));
        let held = Held {
            cursor: number,
            member,
            first: from,
            open: RangeSet::from_iter([(from, to)]),
            attempt: lease.attempt,
            deadline,
        };
        self.leases.insert(lease.id, held);
        if let Some(cursor) = self.cursors.get_mut(&number) {
            cursor.leases.insert((from, lease.id));
            cursor.leased.insert(from, to);
        }
        if let Some(holder) = self.members.get_mut(&member) {
            holder.leases.insert(lease.id);
        }
    }

    /// Asks where records lie that came back long after they were found: for a stretch of them at a time, as
    /// many that were refused together come back together.
    pub(super) fn fetch(&mut self, number: CursorNumber, effects: &mut Vec<Effect>) {
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return;
        };
        let Some((from, _)) = cursor.fetching.first() else {
            return;
        };
        if cursor.fetch_asked.is_some() {
            return;
        }
        cursor.fetch_asked = Some(from);
        effects.push(Effect::Fetch(Feed {
            cursor: number,
            round: cursor.round,
            place: cursor.place,
            from: Offset(from),
            bytes_max: FEED_BYTES,
            filter: "".into(),
            keys: false,
            wait: false,
        }));
    }

    /// Looks for more where somebody could take it and little is ready.
    fn look_for_more(&mut self, topic: TopicId, key: MemberId, effects: &mut Vec<Effect>) {
        if self.whose_turn(topic, key).is_none() {
            return;
        }
        let Some(subscription) = self.subscriptions.get(&topic) else {
            return;
        };
        let mode = subscription.spec.mode;
        // Without room nothing new is looked for, but what the room is taken by is.
        let no_room = self.is_full(mode) || self.has_many_ranges();
        let Some(pool) = subscription.pools.get(&key) else {
            return;
        };
        let hungry: Vec<CursorNumber> = pool.hungry.iter().copied().collect();
        let filter: std::sync::Arc<str> = subscription.spec.filter.as_str().into();
        let window_max = self.limits.window_max;
        let has_lanes = self.has_lanes(topic);
        for number in hungry {
            let Some(cursor) = self.cursors.get_mut(&number) else {
                continue;
            };
            if cursor.ready.len() >= READY_LOW || (no_room && !cursor.is_behind()) {
                continue;
            }
            if !is_ordered(mode) && cursor.window.len() >= window_max {
                if cursor.ready.is_empty() {
                    self.list_stuck(number);
                }
                continue;
            }
            if mode == Mode::KeyOrdered && self.waits_for_keys(number) {
                continue;
            }
            let Some(cursor) = self.cursors.get_mut(&number) else {
                continue;
            };
            cursor.feeding = true;
            cursor.round += 1;
            effects.push(Effect::Feed(Feed {
                cursor: number,
                round: cursor.round,
                place: cursor.place,
                from: Offset(cursor.next),
                bytes_max: FEED_BYTES,
                filter: std::sync::Arc::clone(&filter),
                keys: mode == Mode::KeyOrdered,
                wait: cursor.surveyed || !has_lanes,
            }));
            let (lane, coming) = (cursor.place.lane, cursor.is_coming());
            if let Some(pool) = self
                .subscriptions
                .get_mut(&topic)
                .and_then(|subscription| subscription.pools.get_mut(&key))
            {
                pool.hungry.remove(&number);
                pool.coming(number, lane, coming);
            }
        }
    }

    /// Whether there are as many settled ranges as may be: they must fit a snapshot.
    pub(super) fn has_many_ranges(&self) -> bool {
        self.rows.settled_ranges as u64 > self.settled_ranges_max()
    }

    pub(super) fn settled_ranges_max(&self) -> u64 {
        SETTLED_RANGES_MAX.min(self.limits.snapshot_bytes_max / SNAPSHOT_BYTES_PER_RANGE)
    }

    fn has_lanes(&self, topic: TopicId) -> bool {
        self.shapes.get(&topic).is_some_and(|shape| shape.lanes > 1)
    }

    // ---- giving back ----------------------------------------------------------------------------

    /// Everything a member holds is ready again. Where `counted`, it has been delivered once more.
    pub(super) fn give_back_of(&mut self, id: MemberId, counted: bool, effects: &mut Vec<Effect>) {
        self.outbox.remove(&id);
        let leases: Vec<LeaseId> = self
            .members
            .get(&id)
            .map(|member| member.leases.iter().copied().collect())
            .unwrap_or_default();
        for lease in leases {
            self.give_back(lease, counted);
        }
        let _ = effects;
    }

    /// Everything leased of a cursor is ready again, and its members are told.
    pub(super) fn give_back_all(
        &mut self,
        number: CursorNumber,
        counted: bool,
        effects: &mut Vec<Effect>,
    ) {
        self.give_back_from(number, 0, counted, effects);
    }

    /// The same for leases that begin at or behind an offset.
    pub(super) fn give_back_from(
        &mut self,
        number: CursorNumber,
        from: u64,
        counted: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(cursor) = self.cursors.get(&number) else {
            return;
        };
        let mut lost: std::collections::BTreeMap<MemberId, Vec<LeaseId>> =
            std::collections::BTreeMap::new();
        for (_, id) in cursor.leases.range((from, LeaseId(0))..) {
            if let Some(held) = self.leases.get(id) {
                lost.entry(held.member).or_default().push(*id);
            }
        }
        for (member, leases) in lost {
            for lease in &leases {
                self.give_back(*lease, counted);
            }
            self.tell_lost(member, leases, effects);
        }
    }

    /// Where the lease begins that has records open on both sides of an offset, or behind it.
    pub(super) fn lease_over(&self, number: CursorNumber, offset: u64) -> Option<u64> {
        let cursor = self.cursors.get(&number)?;
        let upto = (offset, LeaseId(u64::MAX));
        let (first, id) = cursor.leases.range(..=upto).next_back()?;
        let held = self.leases.get(id)?;
        held.open.meets(offset + 1, u64::MAX).then_some(*first)
    }

    /// A lease that was not told yet is taken back without a word.
    pub(super) fn tell_lost(
        &mut self,
        member: MemberId,
        mut leases: Vec<LeaseId>,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(waiting) = self.outbox.get_mut(&member) {
            waiting.retain(|lease| {
                let is_lost = leases.contains(&lease.id);
                leases.retain(|id| *id != lease.id);
                !is_lost
            });
        }
        if !leases.is_empty() {
            effects.push(Effect::Tell(member, MemberEvent::Lost(leases)));
        }
    }

    /// What is open of a lease is ready again.
    pub(super) fn give_back(&mut self, id: LeaseId, counted: bool) {
        let Some(held) = self.end_lease(id) else {
            return;
        };
        let Some(cursor) = self.cursors.get_mut(&held.cursor) else {
            return;
        };
        for (from, to) in held.open.iter() {
            if counted {
                for offset in from..to {
                    cursor.returned.insert(offset, held.attempt);
                }
            }
            cursor.ready.insert(from, to);
            // A listed one is not in the window, where its batch would be kept.
        }
        self.touched.insert(held.cursor);
    }

    /// A lease is over; what is open of it is the caller's business.
    pub(super) fn end_lease(&mut self, id: LeaseId) -> Option<Held> {
        let held = self.leases.remove(&id)?;
        self.timers.remove(&(held.deadline, Timer::Lease(id)));
        let mut ordered = false;
        if let Some(cursor) = self.cursors.get_mut(&held.cursor) {
            cursor.leases.remove(&(held.first, id));
            for (from, to) in held.open.iter() {
                cursor.leased.remove(from, to);
            }
            ordered = self
                .subscriptions
                .get(&cursor.place.topic)
                .is_some_and(|subscription| is_ordered(subscription.spec.mode));
            self.touched.insert(held.cursor);
        }
        if !ordered {
            self.leased_singly = self.leased_singly.saturating_sub(held.open.len());
        }
        if let Some(member) = self.members.get_mut(&held.member) {
            member.leases.remove(&id);
        }
        Some(held)
    }

    /// Anybody waiting in a pool may be served now: the list has room again.
    pub(super) fn stir_all(&mut self) {
        for (topic, subscription) in &self.subscriptions {
            for key in subscription.pools.keys() {
                self.stirred.insert((*topic, *key));
            }
        }
    }
}

/// Modes in which a cursor is one member's, in order.
pub(super) fn is_ordered(mode: Mode) -> bool {
    matches!(mode, Mode::Exclusive | Mode::Broadcast)
}

/// In order: nothing is leased past a record that waits for its next attempt (G3).
fn is_blocked(cursor: &Cursor) -> bool {
    let Some((first, _)) = cursor.ready.first() else {
        return false;
    };
    let waits = cursor.listed.range(..first).any(|(offset, listed)| {
        !matches!(listed.why, Why::Attached(_)) && !cursor.leased.contains(*offset)
    });
    // What is about to be listed, or fetched, waits as well; and what an earlier assignment left undecided.
    waits
        || cursor.inherits_below(first)
        || cursor
            .fetching
            .first()
            .is_some_and(|(offset, _)| offset < first)
        || cursor.deciding_listed_below(first)
}

/// How far a run of records at the same attempt goes. In order, one that came back is leased by itself.
fn run_end(cursor: &Cursor, from: u64, end: u64, ordered: bool) -> u64 {
    let attempts = cursor.attempts(from);
    let came_back = attempts > 0 || cursor.listed.contains_key(&from);
    if came_back && ordered {
        return from + 1;
    }
    if came_back {
        let mut others = (from + 1)..end;
        return others
            .find(|at| cursor.attempts(*at) != attempts)
            .unwrap_or(end);
    }
    let listed = cursor.listed.range(from..end).next().map(|(at, _)| *at);
    let returned = cursor.returned.range(from..end).next().map(|(at, _)| *at);
    [listed, returned].into_iter().flatten().fold(end, u64::min)
}

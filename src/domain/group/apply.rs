//! Applying: the only way a group makes progress, live and in recovery alike.

use std::collections::BTreeMap;

use super::command::{CursorNumber, Effect, MemberEvent};
use super::deliver::is_ordered;
use super::delta::{Delta, Listed, Progress};
use super::settle::Asked;
use super::{Group, rows};
use crate::domain::entry::{AppliedEntry, EntryKind};
use crate::domain::time::Now;

impl Group {
    /// Takes in a durable entry of the group (G7). An entry at or below what is folded is skipped.
    pub fn apply(&mut self, now: Now, entry: &AppliedEntry, effects: &mut Vec<Effect>) {
        if entry.header.sequence <= self.head.sequence {
            return;
        }
        self.now = now;
        let follows = self.head.sequence.0 + 1 == entry.header.sequence.0;
        self.head.is_whole &= follows;
        self.head.sequence = entry.header.sequence;
        self.rows.is_dirty = true;
        match entry.header.kind {
            EntryKind::State => {
                if let Some(delta) = Delta::decode(&entry.body) {
                    self.apply_delta(entry, delta, effects);
                }
            }
            EntryKind::Snapshot => {
                if let Some(snapshot) = rows::Snapshot::decode(&entry.body) {
                    self.apply_snapshot(snapshot);
                }
                // The last of a snapshot's entries is not tied to another.
                if !entry.header.tied_to_next {
                    self.landed();
                }
            }
            EntryKind::Payload | EntryKind::Publish | EntryKind::Delete | EntryKind::Mark => {}
        }
    }

    /// Everything of a flush is applied: what waited for it goes on.
    pub fn applied_all(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.now = now;
        self.retry_parked(effects);
        self.finish(effects);
        self.restate_if_quiet(effects);
    }

    /// An entry of our own asking came back.
    fn landed(&mut self) -> Asked {
        self.asked.pop_front().unwrap_or_default()
    }

    fn apply_delta(&mut self, entry: &AppliedEntry, delta: Delta, effects: &mut Vec<Effect>) {
        if let Delta::Decided {
            transaction,
            committed,
        } = delta
        {
            // Its coordinator composed it: nobody here waits for it.
            if !self.head.is_whole {
                self.rows
                    .decisions
                    .push((entry.header.sequence, transaction, committed));
            }
            return self.apply_decided(transaction, committed, effects);
        }
        let asked = self.landed();
        match delta {
            Delta::Subscribed(spec, cursors) => self.apply_subscribed(spec, cursors, effects),
            Delta::Altered(spec) => self.apply_altered(spec, effects),
            Delta::Unsubscribed(topic) => self.apply_unsubscribed(topic, effects),
            Delta::Cursors(cursors) => self.apply_cursors(cursors, effects),
            Delta::Progress(progress) => {
                for progress in &progress {
                    self.apply_progress(progress, effects);
                }
            }
            Delta::Reset(floors) => self.apply_reset(&floors, effects),
            Delta::Decided { .. } => {}
        }
        for (member, lease) in asked.deliveries {
            if self.members.contains_key(&member) {
                let leased = MemberEvent::Leased(vec![lease]);
                effects.push(Effect::Tell(member, leased));
            }
        }
        effects.extend(
            asked
                .answers
                .into_iter()
                .map(|(token, answer)| Effect::Reply(token, Ok(answer))),
        );
    }

    /// Progress of one cursor: records settled and listed, keys handed on.
    pub(super) fn apply_progress(&mut self, progress: &Progress, _: &mut Vec<Effect>) {
        let number = progress.cursor;
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return;
        };
        let mut freed: Vec<(u64, u64)> = Vec::new();
        let mut unlisted = BTreeMap::new();
        for (first, count) in &progress.settled {
            let (from, to) = (first.0, first.0.saturating_add(*count));
            for (offset, listed) in cursor.listed.range(from..to) {
                unlisted.insert(*offset, listed.clone());
                freed.push((*offset, listed.key_hash));
            }
            for (a, b) in cursor.window.within(from, to) {
                if self
                    .subscriptions
                    .get(&cursor.place.topic)
                    .is_some_and(is_keyed)
                {
                    freed.extend((a..b).map(|offset| (offset, cursor.key_of(offset))));
                }
            }
            cursor.moved += cursor.window.remove(from, to);
            cursor.ready.remove(from, to);
            cursor.deciding.remove(from, to);
            let upto = (number, from)..(number, to);
            let buried: Vec<_> = self.burying.range(upto).map(|(at, _)| *at).collect();
            for at in buried {
                self.burying.remove(&at);
            }
            let returned: Vec<u64> = cursor.returned.range(from..to).map(|(at, _)| *at).collect();
            for at in returned {
                cursor.returned.remove(&at);
            }
        }
        for (offset, _) in &progress.listed {
            if let Some(listed) = cursor.listed.get(&offset.0) {
                unlisted.insert(offset.0, listed.clone());
            }
        }
        let ranges_before = cursor.settled.ranges();
        let listed = cursor.apply(progress);
        let ranges_after = cursor.settled.ranges();
        for offset in &listed {
            cursor.window.remove(*offset, offset + 1);
            cursor.deciding.remove(*offset, offset + 1);
            cursor.attaching.remove(*offset, offset + 1);
            cursor.listing.remove(offset);
            cursor.returned.remove(offset);
        }
        cursor.forget_batches();
        let now_listed: BTreeMap<u64, Listed> = progress
            .listed
            .iter()
            .map(|(offset, l)| (offset.0, l.clone()))
            .collect();
        self.rows.settled_ranges =
            (self.rows.settled_ranges + ranges_after).saturating_sub(ranges_before);
        self.rows
            .progress(number, unlisted.keys().chain(now_listed.keys()).copied());
        self.forget_listed(&unlisted);
        self.note_listed(&now_listed);
        for (offset, key) in freed {
            self.dying.remove(&(number, offset));
            self.hand_on(number, offset, key);
        }
        for offset in listed {
            self.activate(number, offset);
        }
        self.touched.insert(number);
    }

    /// A record is settled: the next of its key may be leased.
    fn hand_on(&mut self, number: CursorNumber, offset: u64, key: u64) {
        let now = self.now.monotonic;
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return;
        };
        let Some(next) = cursor.unqueue(offset, key, now) else {
            return;
        };
        if cursor.listed.contains_key(&next) {
            self.activate(number, next);
        } else if !cursor.deciding.contains(next) {
            cursor.ready.insert(next, next + 1);
        }
    }

    pub(super) fn apply_decided(
        &mut self,
        transaction: crate::domain::transaction::TransactionId,
        committed: bool,
        effects: &mut Vec<Effect>,
    ) {
        let numbers: Vec<CursorNumber> = self
            .cursors
            .values()
            .filter(|cursor| !cursor.listed.is_empty())
            .map(|cursor| cursor.number)
            .collect();
        for number in numbers {
            let Some(cursor) = self.cursors.get_mut(&number) else {
                continue;
            };
            let before = cursor.listed.clone();
            let (settled, again) = cursor.apply_decision(transaction, committed);
            if settled.is_empty() && again.is_empty() {
                continue;
            }
            let after = cursor.listed.clone();
            self.forget_listed(&before);
            self.note_listed(&after);
            self.rows
                .progress(number, settled.iter().chain(&again).copied());
            for offset in settled {
                let key = before.get(&offset).map_or(0, |listed| listed.key_hash);
                self.hand_on(number, offset, key);
            }
            let first = again.first().copied();
            for offset in again {
                self.activate(number, offset);
            }
            if let Some(first) = first
                && self.mode_of(number).is_some_and(is_ordered)
            {
                // What is behind it was leased while it was attached (G10): with the lease it was in, too.
                let from = self.lease_over(number, first).unwrap_or(first + 1);
                self.give_back_from(number, from, false, effects);
            }
            self.touched.insert(number);
        }
    }

    /// Counts records that leave the list.
    pub(super) fn forget_listed(&mut self, listed: &BTreeMap<u64, Listed>) {
        self.listed = self.listed.saturating_sub(listed.len() as u64);
        let bytes: u64 = listed.values().map(Listed::bytes).sum();
        self.listed_bytes = self.listed_bytes.saturating_sub(bytes);
    }

    /// Counts records that enter it.
    pub(super) fn note_listed(&mut self, listed: &BTreeMap<u64, Listed>) {
        self.listed += listed.len() as u64;
        self.listed_bytes += listed.values().map(Listed::bytes).sum::<u64>();
    }
}

fn is_keyed(subscription: &super::Subscription) -> bool {
    subscription.spec.mode == super::subscription::Mode::KeyOrdered
}

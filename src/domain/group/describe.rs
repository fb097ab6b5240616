//! The group as it stands, for people.

use super::Group;
use super::command::{Description, MemberStatus, PlaceStatus};
use super::cursor::Cursor;
use super::delta::{Listed, Why};
use crate::domain::id::Offset;

impl Group {
    pub(super) fn describe(&self) -> Description {
        let members = self.members.iter().map(|(id, member)| MemberStatus {
            id: *id,
            name: member.name.clone(),
            topics: member.topics.keys().copied().collect(),
            leased: member
                .leases
                .iter()
                .filter_map(|lease| self.leases.get(lease))
                .map(|held| held.open.len())
                .sum(),
            away: member.away,
        });
        Description {
            subscriptions: self
                .subscriptions
                .values()
                .map(|s| s.spec.clone())
                .collect(),
            members: members.collect(),
            places: self
                .cursors
                .values()
                .map(|cursor| self.status(cursor))
                .collect(),
        }
    }

    fn status(&self, cursor: &Cursor) -> PlaceStatus {
        let count = |kind: fn(&Why) -> bool| {
            let of_kind = |listed: &&Listed| kind(&listed.why);
            cursor.listed.values().filter(of_kind).count() as u64
        };
        PlaceStatus {
            place: cursor.place,
            member: cursor.member.clone(),
            assigned: cursor.assigned,
            floor: Offset(self.consumed_below(cursor)),
            settled_above: self.settled_above(cursor),
            retrying: count(|why| matches!(why, Why::Retry { .. } | Why::Dead { .. })),
            attached: count(|why| matches!(why, Why::Attached(_))),
            held: count(|why| matches!(why, Why::Held)),
            listed_below: cursor.listed.range(..self.consumed_below(cursor)).count() as u64,
            leased: cursor.leased.len(),
            expired: cursor.expired,
            dead_lettered: cursor.dead_lettered,
            high_watermark: Offset(known_end(cursor)),
        }
    }
}

impl Group {
    /// The floor as it will be once what did not pass the filter is written, which waits for something else
    /// to write: nobody is behind by what he does not want.
    fn consumed_below(&self, cursor: &Cursor) -> u64 {
        let floor = cursor.floor_or_zero();
        let Some(filtered) = self.pending.filtered(cursor.number) else {
            return floor;
        };
        let mut passed = cursor.settled.clone();
        for (from, to) in filtered.iter() {
            passed.insert(from, to);
        }
        for offset in cursor.listed.range(floor..).map(|(offset, _)| *offset) {
            passed.insert(offset, offset + 1);
        }
        let end = passed.last().map_or(floor, |(_, to)| to).max(floor);
        passed
            .gaps(floor, end)
            .first()
            .map_or(end, |(from, _)| *from)
    }

    /// Consumed records above it.
    fn settled_above(&self, cursor: &Cursor) -> u64 {
        let below = self.consumed_below(cursor);
        let settled = cursor.settled.within(below, u64::MAX).into_iter();
        let filtered = self.pending.filtered(cursor.number);
        let filtered = filtered.map_or_else(Vec::new, |some| some.within(below, u64::MAX));
        settled.chain(filtered).map(|(from, to)| to - from).sum()
    }
}

/// How far the partition goes for all the group knows: right after a start it has not looked yet.
fn known_end(cursor: &Cursor) -> u64 {
    let listed = cursor.listed.last_key_value().map_or(0, |(at, _)| at + 1);
    let settled = cursor.settled.last().map_or(0, |(_, to)| to);
    let known = cursor.floor_or_zero().max(listed).max(settled);
    cursor.high_watermark.max(known)
}

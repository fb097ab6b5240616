//! The group as it stands, for people.

use super::Group;
use super::command::{Description, MemberStatus, PlaceStatus};
use super::cursor::Cursor;
use super::delta::{Listed, Why};
use super::ranges::RangeSet;
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
        let standing = Standing::of(cursor, self.pending.filtered(cursor.number));
        PlaceStatus {
            place: cursor.place,
            member: cursor.member.clone(),
            assigned: cursor.assigned,
            floor: Offset(standing.floor),
            settled_above: standing.settled_above,
            retrying: count(|why| matches!(why, Why::Retry { .. } | Why::Dead { .. })),
            attached: count(|why| matches!(why, Why::Attached(_))),
            held: count(|why| matches!(why, Why::Held)),
            listed_below: cursor.listed.range(..standing.floor).count() as u64,
            leased: cursor.leased.len(),
            expired: cursor.expired,
            dead_lettered: cursor.dead_lettered,
            high_watermark: Offset(known_end(cursor)),
        }
    }
}

/// Where a cursor stands once what did not pass the filter is written.
struct Standing {
    floor: u64,
    /// Consumed records above it.
    settled_above: u64,
}

impl Standing {
    /// Of what is written, and of what was passed over since, which waits for something else to write: nobody
    /// is behind by what he does not want.
    fn of(cursor: &Cursor, filtered: Option<&RangeSet>) -> Self {
        let floor = cursor.floor_or_zero();
        let Some(filtered) = filtered else {
            return Self {
                floor,
                settled_above: cursor.settled.len(),
            };
        };
        let mut settled = cursor.settled.clone();
        for (from, to) in filtered.iter() {
            settled.insert(from, to);
        }
        let mut passed = settled.clone();
        for offset in cursor.listed.range(floor..).map(|(offset, _)| *offset) {
            passed.insert(offset, offset + 1);
        }
        let end = passed.last().map_or(floor, |(_, to)| to).max(floor);
        let gaps = passed.gaps(floor, end);
        let floor = gaps.first().map_or(end, |(from, _)| *from);
        settled.remove(0, floor);
        Self {
            floor,
            settled_above: settled.len(),
        }
    }
}

/// How far the partition goes for all the group knows: right after a start it has not looked yet.
fn known_end(cursor: &Cursor) -> u64 {
    let listed = cursor.listed.last_key_value().map_or(0, |(at, _)| at + 1);
    let settled = cursor.settled.last().map_or(0, |(_, to)| to);
    let known = cursor.floor_or_zero().max(listed).max(settled);
    cursor.high_watermark.max(known)
}

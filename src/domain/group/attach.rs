//! Records whose consumption stands or falls with a transaction.
//!
//! An attachment is one tied run: the transaction's registration with its coordinator, and here a listing of
//! every record as attached. From then on the records are held, whatever becomes of lease, member and
//! broker, until the coordinator's decision settles them or has them come again.
//!
//! - G9 A record is attached to one transaction at most: only what is leased and open can be, and attaching
//!   takes it out of its lease.
//! - G10 What is rolled back in a place that is consumed in order comes before what is behind it: leases
//!   behind are taken back, and whoever the place is assigned to next is given nothing behind what an
//!   earlier assignment left attached, until that is decided.

use std::collections::BTreeMap;

use super::command::{Answer, Attached, CursorNumber, Effect, LeasedRange};
use super::cursor::Cursor;
use super::delta::{Delta, Listed, Progress, Why};
use super::rejection::GroupRejection;
use super::settle::Asked;
use super::{Decided, Group};
use crate::domain::entry::Draft;
use crate::domain::id::{LeaseId, MemberId, Offset, OwnerId, PartitionId, Token};
use crate::domain::rejection::Rejection;
use crate::domain::transaction::TransactionId;

/// Records one attachment may hold: they are listed one by one, in one entry.
pub(super) const ATTACHED_MAX: u32 = 16_384;

impl Group {
    /// All of it is attached, in one tied run with what the transaction's coordinator gave, or nothing is.
    pub(super) fn attach(
        &mut self,
        token: Token,
        member: MemberId,
        what: &Attached,
        (transaction, tied): (TransactionId, Vec<(OwnerId, Draft)>),
        effects: &mut Vec<Effect>,
    ) -> Decided {
        self.member(member)?;
        let ranges = match what {
            Attached::Ranges(ranges) => ranges.clone(),
            Attached::UpTo { place, end } => self.leased_below(member, *place, end.0)?,
        };
        self.may_attach(member, &ranges)?;
        let mut attached: BTreeMap<CursorNumber, Vec<(Offset, Listed)>> = BTreeMap::new();
        for range in ranges {
            // A range named twice is attached once.
            let Ok((number, attempts, open)) = self.take_open(member, range) else {
                continue;
            };
            let Some(cursor) = self.cursors.get_mut(&number) else {
                continue;
            };
            for offset in open.iter().flat_map(|(from, to)| *from..*to) {
                cursor.deciding.insert(offset, offset + 1);
                cursor.attaching.insert(offset, offset + 1);
                let listed = Listed {
                    key_hash: cursor.key_of(offset),
                    attempts,
                    why: Why::Attached(transaction),
                };
                attached
                    .entry(number)
                    .or_default()
                    .push((Offset(offset), listed));
            }
            self.touched.insert(number);
        }
        let progress = attached
            .into_iter()
            .map(|(cursor, listed)| Progress {
                cursor,
                listed,
                ..Progress::default()
            })
            .collect();
        let asked = Asked::answering(Some(token), Answer::Settled(Vec::new()));
        self.persist(tied, &Delta::Progress(progress), asked, effects);
        Ok(None)
    }

    /// Whether all of every range is the member's to attach, and there is room for it.
    fn may_attach(&self, member: MemberId, ranges: &[LeasedRange]) -> Result<(), Rejection> {
        let mut records = 0_u64;
        for range in ranges {
            let (from, to) = range.bounds();
            let held = self.leases.get(&range.lease).filter(|held| {
                let cursor = self.cursors.get(&held.cursor);
                held.member == member && cursor.is_some_and(|cursor| cursor.durable)
            });
            let is_whole = held.is_some_and(|held| held.open.within(from, to) == [(from, to)]);
            if !is_whole {
                return Err(GroupRejection::UnknownLease.into());
            }
            records = records.saturating_add(to - from);
        }
        if records == 0 {
            return Err(GroupRejection::UnknownLease.into());
        }
        if records > u64::from(ATTACHED_MAX) {
            return Err(Rejection::TransactionLimit {
                what: "records in one attachment",
                max: ATTACHED_MAX,
            });
        }
        let max = self.limits.listed_max;
        if self.listed.saturating_add(records) > u64::from(max) {
            return Err(GroupRejection::ListFull { max }.into());
        }
        Ok(())
    }

    /// Everything leased to the member in a place below an offset.
    pub(super) fn leased_below(
        &self,
        member: MemberId,
        place: PartitionId,
        end: u64,
    ) -> Result<Vec<LeasedRange>, Rejection> {
        let number = self.cursor_for(member, place)?;
        let Some(cursor) = self.cursors.get(&number) else {
            return Err(GroupRejection::UnknownSubscription.into());
        };
        let mut ranges = Vec::new();
        for (_, id) in cursor.leases.range(..(end, LeaseId(0))) {
            let Some(held) = self.leases.get(id).filter(|held| held.member == member) else {
                continue;
            };
            for (from, to) in held.open.within(0, end) {
                ranges.push(LeasedRange {
                    lease: *id,
                    first: Offset(from),
                    count: u32::try_from(to - from).unwrap_or(u32::MAX),
                });
            }
        }
        Ok(ranges)
    }
}

impl Cursor {
    /// The place is assigned anew: what is undecided now is not its next member's.
    pub(super) fn inherit(&mut self) {
        self.inherited = self.attaching.clone();
        for (offset, listed) in &self.listed {
            if matches!(listed.why, Why::Attached(_)) {
                self.inherited.insert(*offset, offset + 1);
            }
        }
    }

    /// Whether something an earlier assignment left is undecided below an offset.
    pub(super) fn inherits_below(&self, end: u64) -> bool {
        self.inherited.within(0, end).iter().any(|(from, to)| {
            let mut listed = self.listed.range(*from..*to);
            listed.any(|(_, listed)| matches!(listed.why, Why::Attached(_)))
                || self.attaching.meets(*from, *to)
        })
    }
}

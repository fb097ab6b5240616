//! The rows of a group: what its view and its snapshots hold.
//!
//! | row | id | holds |
//! |---|---|---|
//! | head | 0 | the applied counters |
//! | subscription | topic id | the subscription as it was asked for |
//! | cursor | cursor number | place, member, floor, settled ranges, counts |
//! | list | cursor number << 40, or'ed with offset >> 11 | the listed records of 2048 offsets |
//!
//! All are positional MessagePack. A snapshot is one entry per row and, last, the head, which names the
//! subscriptions and cursors there are. A fold that has every entry before a snapshot needs none: it leaves
//! it alone. One that does not takes it as it stands, and does again what transactions decided between
//! what the snapshot was made from and where it lies in the log: only they write to a group unasked.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::command::{CursorNumber, Effect};
use super::cursor::{Cursor, Row};
use super::delta::Listed;
use super::settle::Asked;
use super::subscription::SubscriptionSpec;
use super::{Group, Limits, Subscription};
use crate::domain::entry::{Draft, EntryKind, PayloadFacts};
use crate::domain::id::{Offset, OwnerId, OwnerSequence, TopicId};
use crate::domain::partition::rows::encode;
use crate::domain::transaction::TransactionId;

/// Offsets whose listed records share a row, as a power of two.
const LIST_ROW_BITS: u32 = 11;

/// The applied counters: the head row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The last entry folded.
    pub sequence: OwnerSequence,
    /// The next cursor's number.
    pub next_cursor: u64,
    /// Every entry up to there was folded, or a snapshot stood for what was not.
    pub is_whole: bool,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            sequence: OwnerSequence(0),
            next_cursor: 0,
            is_whole: true,
        }
    }
}

/// Which row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowId {
    /// The counters.
    Head,
    /// A subscription.
    Subscription(TopicId),
    /// A cursor.
    Cursor(CursorNumber),
    /// Listed records.
    List(u64),
}

/// A row to write, or to remove where there is no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowChange {
    /// Which.
    pub id: RowId,
    /// Its new value.
    pub value: Option<Bytes>,
}

/// The body of a group's snapshot entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Snapshot {
    /// A subscription's row.
    Subscription(SubscriptionSpec),
    /// A cursor's row; what was listed of it is void, and follows.
    Cursor(CursorNumber, Row),
    /// Listed records of a cursor.
    List(CursorNumber, Vec<(Offset, Listed)>),
    /// The counters, and what there is, in order: what is not named is gone.
    Head {
        /// The counters as of what the snapshot was made from.
        head: Head,
        /// The subscriptions.
        subscriptions: Vec<TopicId>,
        /// The cursors.
        cursors: Vec<CursorNumber>,
    },
}

impl Snapshot {
    /// Reads the body of a snapshot entry.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        rmp_serde::from_slice(body).ok()
    }
}

/// What changed since rows were last written, and what is counted over all of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Dirty {
    pub(super) is_dirty: bool,
    subscriptions: BTreeSet<TopicId>,
    cursors: BTreeSet<CursorNumber>,
    lists: BTreeSet<u64>,
    gone: BTreeSet<RowId>,
    pub(super) settled_ranges: usize,
    /// Decisions folded since the last gap, for a snapshot to come.
    pub(super) decisions: Vec<(OwnerSequence, TransactionId, bool)>,
}

fn list_row(cursor: CursorNumber, offset: u64) -> u64 {
    cursor.0 << 40 | (offset >> LIST_ROW_BITS & ((1 << 40) - 1))
}

impl Dirty {
    pub(super) fn subscription(&mut self, topic: TopicId) {
        self.gone.remove(&RowId::Subscription(topic));
        self.subscriptions.insert(topic);
    }

    pub(super) fn subscription_gone(&mut self, topic: TopicId) {
        self.subscriptions.remove(&topic);
        self.gone.insert(RowId::Subscription(topic));
    }

    pub(super) fn cursor(&mut self, cursor: CursorNumber) {
        self.cursors.insert(cursor);
    }

    pub(super) fn progress(&mut self, cursor: CursorNumber, listed: impl Iterator<Item = u64>) {
        self.cursors.insert(cursor);
        self.lists
            .extend(listed.map(|offset| list_row(cursor, offset)));
    }

    pub(super) fn reset(&mut self, cursor: CursorNumber, listed: impl Iterator<Item = u64>) {
        self.progress(cursor, listed);
    }

    pub(super) fn cursor_gone(&mut self, cursor: &Cursor) {
        if !cursor.durable {
            return;
        }
        self.cursors.remove(&cursor.number);
        self.settled_ranges = self.settled_ranges.saturating_sub(cursor.settled.ranges());
        self.gone.insert(RowId::Cursor(cursor.number));
        for offset in cursor.listed.keys() {
            let row = list_row(cursor.number, *offset);
            self.lists.remove(&row);
            self.gone.insert(RowId::List(row));
        }
    }
}

impl Group {
    /// The rows changed since the last call, as of the applied state; empty if none is.
    pub fn take_rows(&mut self) -> (OwnerSequence, Vec<RowChange>) {
        let mut changes = Vec::new();
        if !std::mem::take(&mut self.rows.is_dirty) {
            return (self.head.sequence, changes);
        }
        for id in std::mem::take(&mut self.rows.gone) {
            changes.push(RowChange { id, value: None });
        }
        for topic in std::mem::take(&mut self.rows.subscriptions) {
            if let Some(subscription) = self.subscriptions.get(&topic) {
                let value = Some(encode(&subscription.spec));
                changes.push(RowChange {
                    id: RowId::Subscription(topic),
                    value,
                });
            }
        }
        for number in std::mem::take(&mut self.rows.cursors) {
            if let Some(cursor) = self.cursors.get(&number).filter(|cursor| cursor.durable) {
                let value = Some(encode(&cursor.row()));
                changes.push(RowChange {
                    id: RowId::Cursor(number),
                    value,
                });
            }
        }
        for row in std::mem::take(&mut self.rows.lists) {
            changes.push(RowChange {
                id: RowId::List(row),
                value: self.list_value(row),
            });
        }
        changes.push(RowChange {
            id: RowId::Head,
            value: Some(encode(&self.head)),
        });
        (self.head.sequence, changes)
    }

    fn list_value(&self, row: u64) -> Option<Bytes> {
        let cursor = self.cursors.get(&CursorNumber(row >> 40))?;
        if !cursor.durable {
            return None;
        }
        let first = (row & ((1 << 40) - 1)) << LIST_ROW_BITS;
        let listed: Vec<(Offset, &Listed)> = cursor
            .listed
            .range(first..first + (1 << LIST_ROW_BITS))
            .map(|(offset, listed)| (Offset(*offset), listed))
            .collect();
        (!listed.is_empty()).then(|| encode(&listed))
    }

    /// How many rows it has, about.
    #[must_use]
    pub fn row_count(&self) -> u64 {
        (1 + self.subscriptions.len() + self.cursors.len()) as u64
    }

    /// Builds the machine from its rows; `None` if one does not read. [`Group::started`] sets it going.
    #[must_use]
    pub fn from_rows<'a>(
        owner: OwnerId,
        limits: Limits,
        lives: u64,
        rows: impl IntoIterator<Item = (RowId, &'a [u8])>,
    ) -> Option<Self> {
        let mut group = Self::new(owner, limits, lives);
        let mut lists = Vec::new();
        for (id, value) in rows {
            match id {
                RowId::Head => group.head = rmp_serde::from_slice(value).ok()?,
                RowId::Subscription(_) => {
                    group.put_subscription(rmp_serde::from_slice(value).ok()?)
                }
                RowId::Cursor(number) => {
                    group.put_cursor(number, rmp_serde::from_slice(value).ok()?);
                }
                RowId::List(row) => {
                    let listed: Vec<(Offset, Listed)> = rmp_serde::from_slice(value).ok()?;
                    lists.push((CursorNumber(row >> 40), listed));
                }
            }
        }
        for (number, listed) in lists {
            group.put_listed(number, listed);
        }
        group.rows = Dirty {
            settled_ranges: group.rows.settled_ranges,
            ..Dirty::default()
        };
        Some(group)
    }

    fn put_subscription(&mut self, spec: SubscriptionSpec) {
        let topic = spec.topic;
        self.rows.subscription(topic);
        let kept = self.subscriptions.remove(&topic);
        let cursors = kept.map(|kept| kept.cursors).unwrap_or_default();
        let subscription = Subscription {
            spec,
            cursors,
            members: BTreeSet::new(),
            pools: BTreeMap::new(),
            altering: None,
        };
        self.subscriptions.insert(topic, subscription);
    }

    fn put_cursor(&mut self, number: CursorNumber, row: Row) {
        let cursor = Cursor::from_row(number, row);
        if let Some(subscription) = self.subscriptions.get_mut(&cursor.place.topic) {
            subscription.cursors.insert(number);
        }
        let place = (cursor.place, cursor.member.clone());
        self.by_place.insert(place, number);
        self.rows.settled_ranges += cursor.settled.ranges();
        self.rows.cursor(number);
        if let Some(old) = self.cursors.insert(number, cursor) {
            self.rows.settled_ranges = self
                .rows
                .settled_ranges
                .saturating_sub(old.settled.ranges());
            self.rows.progress(number, old.listed.keys().copied());
            self.forget_listed(&old.listed);
        }
    }

    fn put_listed(&mut self, number: CursorNumber, listed: Vec<(Offset, Listed)>) {
        let listed: BTreeMap<u64, Listed> = listed
            .into_iter()
            .map(|(offset, listed)| (offset.0, listed))
            .collect();
        self.note_listed(&listed);
        self.rows.progress(number, listed.keys().copied());
        if let Some(cursor) = self.cursors.get_mut(&number) {
            cursor.listed.extend(listed);
        }
    }

    /// Restates every row, so that older entries of the group may leave the log. What is on its way would
    /// be stamped before the snapshot without being in it, so the snapshot waits for it, and what comes
    /// meanwhile waits for the snapshot.
    pub fn restate(&mut self, effects: &mut Vec<Effect>) {
        self.restating = true;
        self.restate_if_quiet(effects);
    }

    pub(super) fn restate_if_quiet(&mut self, effects: &mut Vec<Effect>) {
        if !self.restating || !self.asked.is_empty() {
            return;
        }
        self.restating = false;
        let drafts = self.snapshot_drafts();
        self.asked.push_back(Asked::default());
        let owner = self.owner;
        effects.push(Effect::Persist(
            drafts.into_iter().map(|draft| (owner, draft)).collect(),
        ));
        for (drafts, asked) in std::mem::take(&mut self.held) {
            self.asked.push_back(asked);
            effects.push(Effect::Persist(drafts));
        }
    }

    /// The snapshot as drafts, the head last.
    fn snapshot_drafts(&self) -> Vec<Draft> {
        let subscriptions = self
            .subscriptions
            .values()
            .map(|subscription| Snapshot::Subscription(subscription.spec.clone()));
        let durable = || self.cursors.values().filter(|cursor| cursor.durable);
        let cursors = durable().map(|cursor| Snapshot::Cursor(cursor.number, cursor.row()));
        let lists = durable().flat_map(|cursor| {
            let listed: Vec<(Offset, Listed)> = cursor
                .listed
                .iter()
                .map(|(offset, listed)| (Offset(*offset), listed.clone()))
                .collect();
            listed
                .chunks(2048)
                .map(|part| Snapshot::List(cursor.number, part.to_vec()))
                .collect::<Vec<_>>()
        });
        let head = Snapshot::Head {
            head: self.head,
            subscriptions: self.subscriptions.keys().copied().collect(),
            cursors: durable().map(|cursor| cursor.number).collect(),
        };
        subscriptions
            .chain(cursors)
            .chain(lists)
            .chain([head])
            .map(|snapshot| Draft {
                kind: EntryKind::Snapshot,
                numbers: 0,
                offsets: 0,
                body: encode(&snapshot).into(),
                facts: PayloadFacts::default(),
            })
            .collect()
    }

    /// A row as a snapshot restates it. A whole fold has it already.
    pub(super) fn apply_snapshot(&mut self, snapshot: Snapshot) {
        if self.head.is_whole {
            if let Snapshot::Head { .. } = snapshot {
                self.rows.decisions.clear();
            }
            return;
        }
        match snapshot {
            Snapshot::Subscription(spec) => self.put_subscription(spec),
            Snapshot::Cursor(number, row) => self.put_cursor(number, row),
            Snapshot::List(number, listed) => self.put_listed(number, listed),
            Snapshot::Head {
                head,
                subscriptions,
                cursors,
            } => {
                let gone: Vec<CursorNumber> = self
                    .cursors
                    .keys()
                    .filter(|number| cursors.binary_search(number).is_err())
                    .copied()
                    .collect();
                for number in gone {
                    self.remove_cursor(number);
                }
                let gone: Vec<TopicId> = self
                    .subscriptions
                    .keys()
                    .filter(|topic| subscriptions.binary_search(topic).is_err())
                    .copied()
                    .collect();
                for topic in gone {
                    self.subscriptions.remove(&topic);
                    self.rows.subscription_gone(topic);
                }
                self.head.next_cursor = self.head.next_cursor.max(head.next_cursor);
                for (sequence, transaction, committed) in std::mem::take(&mut self.rows.decisions) {
                    if sequence > head.sequence {
                        self.apply_decided(transaction, committed, &mut Vec::new());
                    }
                }
                self.head.is_whole = true;
            }
        }
    }

    /// The applied state, for comparison (G7): subscriptions, cursors, listed records.
    #[must_use]
    pub fn applied_state(&self) -> AppliedState {
        let subscriptions = self
            .subscriptions
            .values()
            .map(|s| s.spec.clone())
            .collect();
        let cursors = self
            .cursors
            .values()
            .filter(|cursor| cursor.durable)
            .map(|cursor| (cursor.number, cursor.row(), cursor.listed.clone()))
            .collect();
        (self.head.next_cursor, subscriptions, cursors)
    }
}

/// See [`Group::applied_state`].
pub type AppliedState = (
    u64,
    Vec<SubscriptionSpec>,
    Vec<(CursorNumber, Row, BTreeMap<u64, Listed>)>,
);

//! Views that lose whatever was written to them since the last mark, from some write on.

use std::collections::BTreeMap;

use bytes::Bytes;
use waterwheel::domain::id::{LogPosition, OwnerId, TopicId};
use waterwheel::domain::partition::rows::RowId;
use waterwheel::domain::wheel::chunk::RowId as Home;

use crate::disk::Rng;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    DirectoryHead,
    Topic(TopicId),
    Partition(OwnerId, RowId),
    Home(u8, Home),
}

pub(crate) type Change = (Key, Option<Bytes>);

#[derive(Default, Clone)]
pub(crate) struct Views {
    rows: BTreeMap<Key, Bytes>,
    durable: BTreeMap<Key, Bytes>,
    unsynced: Vec<Change>,
    mark: LogPosition,
}

fn change(rows: &mut BTreeMap<Key, Bytes>, (key, value): Change) {
    match value {
        Some(value) => rows.insert(key, value),
        None => rows.remove(&key),
    };
}

impl Views {
    pub(crate) fn write(&mut self, changes: Vec<Change>) {
        for (key, value) in changes {
            self.unsynced.push((key, value.clone()));
            change(&mut self.rows, (key, value));
        }
    }

    pub(crate) fn mark(&mut self, position: LogPosition) {
        self.durable = self.rows.clone();
        self.unsynced.clear();
        self.mark = position;
    }

    pub(crate) fn marked(&self) -> LogPosition {
        self.mark
    }

    /// The power is cut: of what was written since the mark only a first part is there.
    pub(crate) fn power_cut(&mut self, rng: &mut Rng) {
        let kept = rng.below(self.unsynced.len() as u64 + 1) as usize;
        for (key, value) in self.unsynced.drain(..).take(kept) {
            change(&mut self.durable, (key, value));
        }
        self.rows = self.durable.clone();
    }

    pub(crate) fn partition(&self, owner: OwnerId) -> BTreeMap<RowId, Bytes> {
        let of_owner = |(key, value): (&Key, &Bytes)| match key {
            Key::Partition(id, row) if *id == owner => Some((*row, value.clone())),
            _ => None,
        };
        self.rows.iter().filter_map(of_owner).collect()
    }

    pub(crate) fn row(&self, owner: OwnerId, row: RowId) -> Option<&Bytes> {
        self.rows.get(&Key::Partition(owner, row))
    }

    /// The homes of a level of the wheel.
    pub(crate) fn homes(&self, level: u8) -> Vec<Home> {
        let home = |key: &Key| match key {
            Key::Home(of, home) if *of == level => Some(*home),
            _ => None,
        };
        self.rows.keys().filter_map(home).collect()
    }

    pub(crate) fn home(&self, level: u8, home: Home) -> Option<Bytes> {
        self.rows.get(&Key::Home(level, home)).cloned()
    }

    /// The owners that have a head row.
    pub(crate) fn owners(&self) -> Vec<OwnerId> {
        let head = |key: &Key| match key {
            Key::Partition(owner, RowId::Head) => Some(*owner),
            _ => None,
        };
        self.rows.keys().filter_map(head).collect()
    }

    pub(crate) fn directory(&self) -> (Option<&Bytes>, Vec<&Bytes>) {
        let topics = self
            .rows
            .iter()
            .filter(|(key, _)| matches!(key, Key::Topic(_)));
        (
            self.rows.get(&Key::DirectoryHead),
            topics.map(|(_, value)| value).collect(),
        )
    }
}

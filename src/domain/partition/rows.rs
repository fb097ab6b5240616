//! The rows of a partition: what its view and its snapshots hold, and how they are encoded.
//!
//! | row | id | holds |
//! |---|---|---|
//! | head | 0 | the applied counters |
//! | run | first offset | up to 512 index entries |
//! | producer | producer id | epoch, next sequence, the last 64 batches |
//!
//! All are positional MessagePack. A snapshot of the partition is one entry per producer and, last,
//! one for the head, which also names the producers there are: whoever is not named is gone. Index runs
//! need none: payload entries carry what they hold.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::index::BatchPlace;
use super::producers::{ProducerRow, ProducerTable};
use super::{Head, Limits, Partition};
use crate::domain::entry::{Draft, EntryKind, PayloadFacts};
use crate::domain::id::{Offset, OwnerSequence, ProducerId};

/// Bytes a producer adds to a snapshot at most, its entry's header and its name in the head included. A
/// snapshot is one tied run, so a partition's producers, each with this, must fit one flush of the log:
/// otherwise it could never restate itself, and its segments never leave.
pub const PRODUCER_SNAPSHOT_BYTES_MAX: u64 = 2_900;

/// Which row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowId {
    /// The counters.
    Head,
    /// The index run that starts at this offset.
    Run(Offset),
    /// A producer.
    Producer(ProducerId),
}

/// A row to write, or to remove where there is no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowChange {
    /// Which.
    pub id: RowId,
    /// Its new value.
    pub value: Option<Bytes>,
}

/// The body of a partition's snapshot entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Snapshot {
    /// A producer's row.
    Producer(ProducerId, ProducerRow),
    /// The counters, and the producers there are, in order.
    Head {
        /// The counters.
        head: Head,
        /// The producers.
        producers: Vec<ProducerId>,
    },
}

impl Snapshot {
    /// Reads the body of a snapshot entry.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        rmp_serde::from_slice(body).ok()
    }
}

/// Encodes a row or a delta. Positional MessagePack of a bounded value cannot fail.
#[must_use]
#[expect(
    clippy::expect_used,
    reason = "writing a bounded value of known shape to memory"
)]
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    Bytes::from(rmp_serde::to_vec(value).expect("R1: every row and delta has a MessagePack form"))
}

/// The snapshot of a partition as drafts, the head last.
#[must_use]
pub fn snapshot_drafts(head: &Head, producers: &ProducerTable) -> Vec<Draft> {
    let names = producers.rows().map(|(id, _)| id).collect();
    producers
        .rows()
        .map(|(id, row)| Snapshot::Producer(id, row.clone()))
        .chain([Snapshot::Head {
            head: *head,
            producers: names,
        }])
        .map(|snapshot| Draft {
            kind: EntryKind::Snapshot,
            numbers: 0,
            offsets: 0,
            body: encode(&snapshot).into(),
            facts: PayloadFacts::default(),
        })
        .collect()
}

/// A partition's head, its producers, and the bounds of its index runs.
pub type AppliedState = (Head, Vec<(ProducerId, ProducerRow)>, Vec<(Offset, Offset)>);

impl Partition {
    /// The rows changed since the last call, as of the applied state; empty if none is.
    pub fn take_rows(&mut self) -> (OwnerSequence, Vec<RowChange>) {
        let mut changes = Vec::new();
        if !self.dirty {
            return (self.head.sequence, changes);
        }
        self.dirty = false;
        for id in std::mem::take(&mut self.gone_rows) {
            changes.push(RowChange { id, value: None });
        }
        for (first, run) in self.index.take_dirty() {
            changes.push(RowChange {
                id: RowId::Run(first),
                value: Some(encode(&*run)),
            });
        }
        for id in std::mem::take(&mut self.dirty_producers) {
            if let Some(row) = self.producers.row(id) {
                changes.push(RowChange {
                    id: RowId::Producer(id),
                    value: Some(encode(row)),
                });
            }
        }
        changes.push(RowChange {
            id: RowId::Head,
            value: Some(encode(&self.head)),
        });
        (self.head.sequence, changes)
    }

    /// How many rows it has.
    #[must_use]
    pub fn row_count(&self) -> u64 {
        (1 + self.index.runs() + self.producers.rows().count()) as u64
    }

    /// Builds the machine from its rows; `None` if one does not read.
    #[must_use]
    pub fn from_rows<'a>(
        limits: Limits,
        rows: impl IntoIterator<Item = (RowId, &'a [u8])>,
    ) -> Option<Self> {
        let mut partition = Self::new(limits);
        for (id, value) in rows {
            match id {
                RowId::Head => partition.head = rmp_serde::from_slice(value).ok()?,
                RowId::Run(_) => partition.index.restore(decode_run(value)?),
                RowId::Producer(id) => {
                    partition
                        .producers
                        .restore(id, rmp_serde::from_slice(value).ok()?);
                }
            }
        }
        Some(partition)
    }

    /// The rows of the applied state as a fresh fold would write them: for comparison (P7).
    /// Runs that are not in memory are missing.
    #[must_use]
    pub fn applied_state(&self) -> AppliedState {
        let producers = self
            .producers
            .rows()
            .map(|(id, row)| (id, row.clone()))
            .collect();
        (self.head, producers, self.index.bounds())
    }
}

/// Reads an index run.
#[must_use]
pub fn decode_run(value: &[u8]) -> Option<Vec<BatchPlace>> {
    rmp_serde::from_slice(value).ok()
}

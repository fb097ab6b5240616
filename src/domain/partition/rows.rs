//! The rows of a partition: what its view and its snapshots hold, and how they are encoded.
//!
//! | row | id | holds |
//! |---|---|---|
//! | head | 0 | the applied counters |
//! | run | first offset | up to 512 index entries |
//! | producer | producer id | epoch, next sequence, the last 64 batches |
//! | chunk | first number / 4096 | what became of 4096 stored records, see [`stored`](super::stored) |
//! | bodies | first number | where up to 512 batches lie that were stored before they are published |
//! | open | first number | a batch of a transaction that is not decided |
//!
//! The first three are positional MessagePack. A snapshot of the partition is one entry per producer,
//! one per chunk, one that names the chunks and open batches there are, and, last, one for the head,
//! which also names the producers there are: whoever is not named is gone. Index runs and bodies need
//! none: payload and publish entries carry what they hold, and leave the log with it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::index;
use super::producers::{ProducerRow, ProducerTable};
use super::stored::{Gone, Table};
use super::{Head, Limits, Partition};

pub use super::index::decode_run;

use crate::domain::entry::{Draft, EntryKind, PayloadFacts};
use crate::domain::id::{Offset, OwnerSequence, ProducerId, RecordNumber};

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
    /// What became of the stored records of this chunk.
    Chunk(u64),
    /// Where stored batches lie, from this number on.
    Bodies(RecordNumber),
    /// An undecided batch that starts with this number.
    Open(RecordNumber),
}

impl From<Gone> for RowId {
    fn from(row: Gone) -> Self {
        match row {
            Gone::Chunk(id) => Self::Chunk(id),
            Gone::Bodies(first) => Self::Bodies(first),
            Gone::Open(first) => Self::Open(first),
        }
    }
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
    /// A chunk's row: what became of stored records.
    Chunk(u64, #[serde(with = "serde_bytes")] Vec<u8>),
    /// The chunks and the undecided batches there are, in order.
    Stored(Vec<u64>, Vec<RecordNumber>),
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
    drafts(head, producers, &Table::default())
}

pub(super) fn drafts(head: &Head, producers: &ProducerTable, stored: &Table) -> Vec<Draft> {
    let names = producers.rows().map(|(id, _)| id).collect();
    let chunks: Vec<(u64, Bytes)> = stored.chunk_rows().collect();
    let ids: Vec<u64> = chunks.iter().map(|(id, _)| *id).collect();
    let open = stored.open_firsts();
    producers
        .rows()
        .map(|(id, row)| Snapshot::Producer(id, row.clone()))
        .chain(
            chunks
                .into_iter()
                .map(|(id, row)| Snapshot::Chunk(id, row.to_vec())),
        )
        .chain([Snapshot::Stored(ids, open)])
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
                value: Some(index::encode_run(&run)),
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
        let (gone, rows) = self.stored.take_dirty();
        changes.extend(gone.into_iter().map(|row| RowChange {
            id: row.into(),
            value: None,
        }));
        changes.extend(rows.into_iter().map(|(row, value)| RowChange {
            id: row.into(),
            value: Some(value),
        }));
        changes.push(RowChange {
            id: RowId::Head,
            value: Some(encode(&self.head)),
        });
        (self.head.sequence, changes)
    }

    /// How many rows it has.
    #[must_use]
    pub fn row_count(&self) -> u64 {
        (1 + self.index.runs() + self.producers.rows().count() + self.stored.rows()) as u64
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
                RowId::Run(_) => partition.index.restore(index::decode_run(value)?),
                RowId::Producer(id) => {
                    partition
                        .producers
                        .restore(id, rmp_serde::from_slice(value).ok()?);
                }
                RowId::Chunk(id) if partition.stored.restore_chunk(id, value) => {}
                RowId::Bodies(_) if partition.stored.restore_bodies(value) => {}
                RowId::Open(_) if partition.stored.restore_open(value) => {}
                RowId::Chunk(_) | RowId::Bodies(_) | RowId::Open(_) => return None,
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

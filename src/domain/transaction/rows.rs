//! The rows of a coordinator: what its view and its snapshots hold, and how they are encoded.
//!
//! | row | id | holds |
//! |---|---|---|
//! | head | - | the applied counters |
//! | session | producer id | names, epoch, the last decisions |
//! | open | sequence of its first registration | which, when it began, whom it touches |
//! | finished | sequence of the decision | who decided what |
//!
//! All are positional MessagePack. A snapshot is chunks of rows, each with the range of ids it speaks for:
//! what lies in that range and is not in the chunk is gone. So a coordinator with a hundred thousand open
//! transactions restates itself in entries that stay below a snapshot's megabyte.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Coordinator, Delta, Finished, Head, OpenRow, Session, Transaction, TransactionId};
use crate::domain::entry::{Draft, EntryKind, PayloadFacts};
use crate::domain::id::{OwnerSequence, ProducerId};
use crate::domain::partition::rows::encode;

/// Bytes of rows a chunk of a snapshot holds, but for its last row.
const CHUNK_BYTES: usize = 256 * 1024;

/// Which row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowId {
    /// The counters.
    Head,
    /// A session.
    Session(ProducerId),
    /// An open transaction, by the sequence of its first registration.
    Open(OwnerSequence),
    /// A finished one.
    Finished(OwnerSequence),
}

/// A row to write, or to remove where there is no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowChange {
    /// Which.
    pub id: RowId,
    /// Its new value.
    pub value: Option<Bytes>,
}

/// Rows changed since they were last taken.
#[derive(Debug, Clone, Default)]
pub struct Dirty {
    pub(super) head: bool,
    pub(super) sessions: BTreeSet<ProducerId>,
    pub(super) open: BTreeMap<OwnerSequence, TransactionId>,
    pub(super) finished: BTreeSet<OwnerSequence>,
}

/// The body of a coordinator's snapshot entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Snapshot {
    /// The counters.
    Head(Head),
    /// The sessions from the first id to the last, both included.
    Sessions {
        /// The first id spoken for.
        from: ProducerId,
        /// The last.
        to: ProducerId,
        /// Those there are.
        rows: Vec<(ProducerId, Session)>,
    },
    /// The open transactions of a range.
    Open {
        /// The first id spoken for.
        from: TransactionId,
        /// The last.
        to: TransactionId,
        /// Those there are.
        rows: Vec<(TransactionId, OpenRow)>,
    },
    /// The finished ones of a range.
    Finished {
        /// The first decision spoken for.
        from: OwnerSequence,
        /// The last.
        to: OwnerSequence,
        /// Those there are.
        rows: Vec<(OwnerSequence, Finished)>,
    },
}

/// The draft of a delta.
#[must_use]
pub fn state(delta: &Delta) -> Draft {
    draft(EntryKind::State, delta)
}

fn draft<T: Serialize>(kind: EntryKind, body: &T) -> Draft {
    Draft {
        kind,
        numbers: 0,
        offsets: 0,
        body: encode(body).into(),
        facts: PayloadFacts::default(),
    }
}

impl From<&Transaction> for OpenRow {
    fn from(one: &Transaction) -> Self {
        Self {
            born: one.born,
            begun: one.begun,
            immunity_ms: one.immunity_ms,
            batches: one.batches,
            participants: one.participants.as_slice().to_vec(),
        }
    }
}

impl From<OpenRow> for Transaction {
    fn from(row: OpenRow) -> Self {
        let mut one = Self::new(row.begun, row.immunity_ms);
        one.born = row.born;
        one.batches = row.batches;
        one.participants = row.participants.into();
        one
    }
}
/// Rows, and the ids they speak for: the first and the last.
type Chunk<K, R> = (K, K, Vec<(K, R)>);

/// Cuts rows into chunks of bounded size: each with the ids it speaks for, without a gap from `first` to
/// `last`.
fn chunks<K: Copy, R: Serialize>(
    rows: Vec<(K, R)>,
    (first, last): (K, K),
    before: impl Fn(K) -> K,
) -> Vec<Chunk<K, R>> {
    let mut out: Vec<Chunk<K, R>> = Vec::new();
    let (mut from, mut bytes, mut chunk) = (first, 0usize, Vec::new());
    for (key, row) in rows {
        if bytes >= CHUNK_BYTES {
            out.push((from, before(key), std::mem::take(&mut chunk)));
            (from, bytes) = (key, 0);
        }
        bytes += encode(&row).len();
        chunk.push((key, row));
    }
    out.push((from, last, chunk));
    out
}

impl Coordinator {
    /// The rows changed since the last call, as of the applied state; empty if none is.
    pub fn take_rows(&mut self) -> (OwnerSequence, Vec<RowChange>) {
        let dirty = std::mem::take(&mut self.dirty);
        let mut changes = Vec::new();
        if !dirty.head {
            return (self.head.sequence, changes);
        }
        changes.extend(dirty.sessions.into_iter().map(|id| RowChange {
            id: RowId::Session(id),
            value: self.sessions.get(&id).map(encode),
        }));
        changes.extend(dirty.open.into_iter().map(|(born, id)| {
            RowChange {
                id: RowId::Open(born),
                value: self
                    .open
                    .get(&id)
                    .filter(|one| one.born == born && one.batches > 0)
                    .map(|one| encode(&(id, OpenRow::from(one)))),
            }
        }));
        changes.extend(dirty.finished.into_iter().map(|at| RowChange {
            id: RowId::Finished(at),
            value: self.finished.get(&at).map(encode),
        }));
        changes.push(RowChange {
            id: RowId::Head,
            value: Some(encode(&self.head)),
        });
        (self.head.sequence, changes)
    }

    /// Puts a row back; false if it cannot be read.
    pub fn restore(&mut self, id: RowId, value: &[u8]) -> bool {
        match id {
            RowId::Head => rmp_serde::from_slice(value).map(|head| self.head = head),
            RowId::Session(id) => {
                rmp_serde::from_slice(value).map(|session| self.put_session(id, session))
            }
            RowId::Open(_) => {
                rmp_serde::from_slice::<(TransactionId, OpenRow)>(value).map(|(id, row)| {
                    self.open.put(id, row.into());
                })
            }
            RowId::Finished(at) => rmp_serde::from_slice(value).map(|one| {
                self.finished.insert(at, one);
            }),
        }
        .is_ok()
    }

    fn put_session(&mut self, id: ProducerId, session: Session) {
        self.names.insert(session.name.clone(), id);
        self.sessions.insert(id, session);
    }

    /// Restates every row, so that older entries may leave the log: as soon as nothing of its own is on its
    /// way, for that would be stamped before the snapshot without being in it.
    pub fn restate(&mut self, effects: &mut Vec<super::Effect>) {
        self.restating = true;
        self.restate_if_quiet(effects);
    }

    /// Everything of a flush is applied.
    pub fn applied_all(&mut self, effects: &mut Vec<super::Effect>) {
        self.restate_if_quiet(effects);
    }

    fn restate_if_quiet(&mut self, effects: &mut Vec<super::Effect>) {
        // Looked through only while a snapshot is wanted: a hundred thousand may be open.
        let is_quiet = || self.open.iter().all(|(_, one)| one.in_flight == 0);
        if self.restating && self.asked == 0 && is_quiet() {
            self.restating = false;
            let drafts = self.snapshot_drafts();
            self.asked += drafts.len() as u64;
            effects.extend(drafts.into_iter().map(super::Effect::Persist));
            let held = std::mem::take(&mut self.held);
            self.asked += held.deltas.len() as u64;
            effects.extend(held.deltas.into_iter().map(super::Effect::Persist));
            for id in held.decisions {
                self.decide_if_quiet(id, effects);
            }
            for (token, registration, now) in held.halves {
                self.half(token, registration, now, effects);
            }
        }
    }

    fn snapshot_drafts(&self) -> Vec<Draft> {
        let sessions = self.sessions.iter().map(|(id, one)| (*id, one.clone()));
        let every_session = (ProducerId(0), ProducerId(u64::MAX));
        let open = self.open.iter().map(|(id, one)| (id, one.into()));
        let every_id = (
            super::ids_of(ProducerId(0)),
            super::ids_of(ProducerId(u64::MAX)),
        );
        let finished = self.finished.iter().map(|(at, one)| (*at, *one));
        let every_sequence = (OwnerSequence(0), OwnerSequence(u64::MAX));
        let sessions = chunks(sessions.collect(), every_session, |id| ProducerId(id.0 - 1));
        let open = chunks::<TransactionId, OpenRow>(
            open.collect(),
            (*every_id.0.start(), *every_id.1.end()),
            id_before,
        );
        let finished = chunks(finished.collect(), every_sequence, |at| {
            OwnerSequence(at.0 - 1)
        });
        sessions
            .into_iter()
            .map(|(from, to, rows)| Snapshot::Sessions { from, to, rows })
            .chain(
                open.into_iter()
                    .map(|(from, to, rows)| Snapshot::Open { from, to, rows }),
            )
            .chain(
                finished
                    .into_iter()
                    .map(|(from, to, rows)| Snapshot::Finished { from, to, rows }),
            )
            .chain([Snapshot::Head(self.head)])
            .map(|snapshot| draft(EntryKind::Snapshot, &snapshot))
            .collect()
    }

    pub(super) fn apply_snapshot(&mut self, body: &[u8]) {
        match rmp_serde::from_slice(body) {
            Ok(Snapshot::Head(head)) => {
                self.head.sessions = self.head.sessions.max(head.sessions);
            }
            Ok(Snapshot::Sessions { from, to, rows }) => {
                let old: Vec<_> = self.sessions.range(from..=to).map(|(id, _)| *id).collect();
                for id in old {
                    if let Some(gone) = self.sessions.remove(&id) {
                        self.names.remove(&gone.name);
                    }
                    self.dirty.sessions.insert(id);
                }
                for (id, session) in rows {
                    self.put_session(id, session);
                    self.dirty.sessions.insert(id);
                }
            }
            Ok(Snapshot::Open { from, to, rows }) => self.apply_open_chunk(from, to, rows),
            Ok(Snapshot::Finished { from, to, rows }) => {
                let old: Vec<_> = self.finished.range(from..=to).map(|(at, _)| *at).collect();
                for at in old {
                    self.finished.remove(&at);
                    self.dirty.finished.insert(at);
                }
                for (at, one) in rows {
                    self.finished.insert(at, one);
                    self.dirty.finished.insert(at);
                }
            }
            Err(_) => {}
        }
    }

    /// Live, the chunk says what is known already, and what only memory knows (deadline, questions heard)
    /// stays; in recovery it replaces what older entries said.
    fn apply_open_chunk(
        &mut self,
        from: TransactionId,
        to: TransactionId,
        rows: Vec<(TransactionId, OpenRow)>,
    ) {
        let named: BTreeSet<TransactionId> = rows.iter().map(|(id, _)| *id).collect();
        let old: Vec<_> = self
            .open
            .within(from, to)
            .filter(|(id, one)| !named.contains(id) && one.batches > 0)
            .map(|(id, one)| (id, one.born))
            .collect();
        for (id, born) in old {
            self.open.remove(&id);
            self.dirty.open.insert(born, id);
        }
        for (id, row) in rows {
            let known = self.open.get_or_make(id, || row.clone().into());
            self.dirty.open.insert(known.born, id);
            known.born = row.born;
            known.begun = row.begun;
            known.batches = row.batches;
            known.participants = row.participants.into();
            self.dirty.open.insert(known.born, id);
        }
    }
}

fn id_before(id: TransactionId) -> TransactionId {
    use crate::domain::id::{ProducerEpoch, TransactionNumber};
    let (producer, epoch, number) = (id.producer.0, id.epoch.0, id.number.0);
    let last = (u32::MAX, u64::MAX);
    let (producer, (epoch, number)) = match (epoch, number) {
        (_, number) if number > 0 => (producer, (epoch, number - 1)),
        (epoch, _) if epoch > 0 => (producer, (epoch - 1, u64::MAX)),
        _ => (producer.saturating_sub(1), last),
    };
    TransactionId {
        producer: ProducerId(producer),
        epoch: ProducerEpoch(epoch),
        number: TransactionNumber(number),
    }
}

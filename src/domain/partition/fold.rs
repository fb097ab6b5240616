//! What applied entries do to a partition: the only way anything becomes visible (P4, P5, P7).

use super::index::BatchPlace;
use super::stored::Override;
use super::{Delta, Effect, Partition, rows};
use crate::domain::entry::{AppliedEntry, EntryKind};
use crate::domain::id::{Offset, RecordNumber};

impl Partition {
    /// Takes in a durable entry: the only way anything becomes visible (P4, P5, P7). An entry at or
    /// below what is folded is skipped, except that a moved one replaces the position of its batch.
    pub fn apply(&mut self, entry: &AppliedEntry, effects: &mut Vec<Effect>) {
        let header = &entry.header;
        if header.moved && header.kind == EntryKind::Payload {
            // A run that is not in memory has its positions replaced when the log is folded again.
            let _ = self.index.moved(header.first_offset, entry.place);
        }
        if header.sequence <= self.head.sequence {
            return;
        }
        let before = self.head.sequence;
        self.head.sequence = header.sequence;
        self.dirty = true;
        let mut own = true;
        match header.kind {
            EntryKind::Payload => {
                // A dead letter: a group composed it and tied it to its settlement. What comes from a
                // session without a number is tied to nothing, for transactions are numbered.
                own = !(header.tied_to_next && entry.facts.producer.0 == 0);
                self.apply_payload(entry, own, effects);
            }
            EntryKind::State => match rmp_serde::from_slice(&entry.body) {
                Ok(delta) => own = self.apply_delta(delta, effects),
                Err(_) => own = false,
            },
            EntryKind::Snapshot => {
                // A decision of a transaction may have come between: then what was restated lacks it.
                if self.snapshot_of.take().is_some_and(|made| made < before) {
                    self.restating = true;
                }
                self.apply_snapshot(&entry.body);
            }
            EntryKind::Publish => own = self.apply_publication(entry, effects),
            EntryKind::Delete | EntryKind::Mark => own = false,
        }
        if own {
            self.asked = self.asked.saturating_sub(1);
        }
        self.next_from(entry);
    }

    /// Says whether this partition asked for it, and not the coordinator of a transaction.
    fn apply_delta(&mut self, delta: Delta, effects: &mut Vec<Effect>) -> bool {
        match delta {
            Delta::StartOffset(start) => self.apply_start(start),
            Delta::ForgetProducers(ids) => {
                self.producers.forget(&ids);
                self.gone_rows
                    .extend(ids.into_iter().map(rows::RowId::Producer));
            }
            Delta::Dropped(runs) => self.apply_dropped(&runs, effects),
            Delta::Rescheduled {
                number,
                version,
                due,
            } => self.apply_rescheduled(number, Override { version, due }, effects),
            Delta::TransactionDropped(key) => {
                for open in self.stored.close(key) {
                    for number in open.place.first_number.0..open.place.end().0 {
                        self.stored
                            .dropped(RecordNumber(number), self.head.next_offset);
                    }
                }
                return false;
            }
        }
        true
    }

    fn next_from(&mut self, entry: &AppliedEntry) {
        let header = &entry.header;
        let number = header
            .first_number
            .0
            .saturating_add(u64::from(header.numbers));
        let offset = header
            .first_offset
            .0
            .saturating_add(u64::from(header.offsets));
        self.head.next_number = self.head.next_number.max(RecordNumber(number));
        self.head.next_offset = self.head.next_offset.max(Offset(offset));
    }

    fn apply_payload(&mut self, entry: &AppliedEntry, own: bool, effects: &mut Vec<Effect>) {
        let header = &entry.header;
        assert!(
            header.offsets == 0 || header.first_offset >= self.head.next_offset,
            "P4: offset {} stamped after {}",
            header.first_offset,
            self.head.next_offset
        );
        self.next_from(entry);
        if own {
            self.accepted = self.accepted.saturating_sub(u64::from(header.offsets));
        }
        if entry.facts.producer.0 != 0 {
            let (stored, repeats) = self.producers.apply(header, &entry.facts);
            self.dirty_producers.insert(entry.facts.producer);
            effects.extend(
                repeats
                    .into_iter()
                    .map(|token| Effect::Stored(token, stored)),
            );
        }
        if header.offsets == 0 {
            return self.apply_stored(entry, effects);
        }
        let batch = BatchPlace {
            first_offset: header.first_offset,
            count: header.offsets,
            first_number: header.first_number,
            position: entry.place.position,
            length: entry.place.length,
            appended: header.appended,
            tags: entry.facts.tags,
            reference: None,
        };
        if batch.end() > self.head.start_offset {
            self.index.push(batch);
        }
    }

    /// Everything of a flush is applied: answers the reads that waited at the end, once per flush and
    /// not per batch, and makes the snapshot that waited for it.
    pub fn applied_all(&mut self, effects: &mut Vec<Effect>) {
        self.restate_if_quiet(effects);
        let end = self.head.next_offset;
        if self.waiting.iter().any(|read| read.from < end) {
            for read in std::mem::take(&mut self.waiting) {
                self.read(read, effects);
            }
        }
    }

    fn apply_start(&mut self, start: Offset) {
        self.trimming = false;
        self.head.start_offset = self.head.start_offset.max(start);
        let gone = self.index.trim(self.head.start_offset);
        self.gone_rows
            .extend(gone.into_iter().map(rows::RowId::Run));
        self.stored.trim(self.head.start_offset);
    }

    fn apply_snapshot(&mut self, body: &[u8]) {
        match rows::Snapshot::decode(body) {
            Some(rows::Snapshot::Producer(id, row)) => {
                self.producers.restore(id, row);
                self.dirty_producers.insert(id);
            }
            Some(rows::Snapshot::Head { head, producers }) => {
                self.head.next_number = self.head.next_number.max(head.next_number);
                self.head.next_offset = self.head.next_offset.max(head.next_offset);
                let gone = self.producers.keep_only(&producers);
                self.gone_rows
                    .extend(gone.into_iter().map(rows::RowId::Producer));
                if head.start_offset > self.head.start_offset {
                    self.apply_start(head.start_offset);
                }
            }
            Some(rows::Snapshot::Chunk(id, row)) => self.stored.merge_chunk(id, &row),
            Some(rows::Snapshot::Stored(chunks, open)) => self.stored.keep_only(&chunks, &open),
            None => {}
        }
    }
}

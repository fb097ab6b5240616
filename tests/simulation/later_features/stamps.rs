//! The run of entries each command is made of, stamped and tied.

use std::collections::BTreeMap;

use bytes::Bytes;
use waterwheel::domain::entry::{EntryHeader, EntryKind, NewEntry};
use waterwheel::domain::id::{LogIndex, Offset, OwnerId, OwnerSequence, RecordNumber, Term};
use waterwheel::domain::time::WallMs;
use waterwheel::log::Log;

use super::{
    COORDINATOR, Command, DEAD_LETTERS, GROUP, PARTITIONS, Record, View, bytes, facts_of, payload,
};

/// Stamps as the commit machine will, from what the fold knows.
struct Stamps<'a> {
    view: &'a View,
    sequences: BTreeMap<u64, u64>,
    offsets: BTreeMap<u64, u64>,
    run: Vec<NewEntry>,
}

impl Stamps<'_> {
    fn next_number(&self, owner: u64) -> u64 {
        let in_run = self
            .run
            .iter()
            .filter(|entry| entry.header.owner.0 == owner);
        let stored: u32 = in_run.map(|entry| entry.header.numbers).sum();
        self.view.world.stored(owner) + u64::from(stored)
    }

    fn push(&mut self, owner: u64, kind: EntryKind, numbers: u32, offsets: u32, body: Bytes) {
        let folded = self.view.folded.get(&owner).copied().unwrap_or(0);
        let sequence = self.sequences.entry(owner).or_insert(folded);
        *sequence += 1;
        let sequence = *sequence;
        let published = self.view.world.published.get(&owner).copied();
        let offset = self.offsets.entry(owner).or_insert(published.unwrap_or(0));
        let first_offset = *offset;
        *offset += u64::from(offsets);
        let is_payload = kind == EntryKind::Payload;
        let facts = is_payload.then(|| facts_of(&body)).flatten();
        let header = EntryHeader {
            kind,
            tied_to_next: false,
            moved: false,
            index: LogIndex(self.view.next_index + self.run.len() as u64),
            term: Term(1),
            owner: OwnerId(owner),
            sequence: OwnerSequence(sequence),
            first_number: RecordNumber(self.next_number(owner)),
            first_offset: Offset(first_offset),
            numbers,
            offsets,
            appended: WallMs(1),
            wall: WallMs(1),
        };
        self.run.push(NewEntry {
            header,
            body: body.into(),
            facts: facts.unwrap_or_default(),
        });
    }

    fn send(&mut self, owner: u64, transaction: u64, delayed: bool) -> Record {
        let record = (owner, self.next_number(owner));
        let offsets = u32::from(transaction == 0 && !delayed);
        let body = payload(transaction, delayed, record);
        self.push(owner, EntryKind::Payload, 1, offsets, body);
        record
    }

    fn state(&mut self, owner: u64, words: &[u64]) {
        self.push(owner, EntryKind::State, 0, 0, bytes(words));
    }
}

/// The run a command is made of, tied where it says so.
pub(super) fn encode(view: &View, log: &Log, command: &Command) -> Vec<NewEntry> {
    let mut stamps = Stamps {
        view,
        sequences: BTreeMap::new(),
        offsets: BTreeMap::new(),
        run: Vec::new(),
    };
    match *command {
        Command::Send { owner, delayed } => {
            stamps.send(owner, 0, delayed);
        }
        Command::Fire((owner, number)) => {
            stamps.push(owner, EntryKind::Publish, 0, 1, bytes(&[number]));
        }
        Command::Cancel((owner, number)) => stamps.state(owner, &[1, number]),
        Command::Modify((owner, number), version) => stamps.state(owner, &[2, number, version]),
        Command::Half { owner, transaction } => {
            let record = stamps.send(owner, transaction, false);
            stamps.state(COORDINATOR, &[3, transaction, record.0, record.1]);
        }
        Command::Attach {
            record,
            transaction,
        } => {
            stamps.state(GROUP, &[6, transaction, record.0, record.1]);
            stamps.state(COORDINATOR, &[7, transaction]);
        }
        Command::Decide {
            transaction,
            commit,
        } => {
            if view.world.attached.values().any(|of| *of == transaction) {
                stamps.state(GROUP, &[8, transaction, u64::from(commit)]);
            }
            stamps.state(COORDINATOR, &[4, transaction, u64::from(commit)]);
            for owner in PARTITIONS {
                let halves = view.world.halves(transaction);
                let numbers: Vec<u64> = halves
                    .iter()
                    .filter(|record| record.0 == owner)
                    .map(|record| record.1)
                    .collect();
                if commit && !numbers.is_empty() {
                    let offsets = numbers.len() as u32;
                    stamps.push(owner, EntryKind::Publish, 0, offsets, bytes(&numbers));
                } else {
                    for number in numbers {
                        stamps.state(owner, &[1, number]);
                    }
                }
            }
        }
        Command::DeadLetter(record) => {
            stamps.send(DEAD_LETTERS, 0, false);
            stamps.state(GROUP, &[5, record.0, record.1]);
        }
        Command::Move(record) => {
            let (place, _) = view.places[&record];
            let read = log.reader().read(&[place]).pop().unwrap().unwrap();
            let mut header = read.header;
            (header.moved, header.tied_to_next) = (true, false);
            let facts = facts_of(&read.body).unwrap();
            return vec![NewEntry {
                header,
                body: read.body.into(),
                facts,
            }];
        }
        Command::Delete { owner, other } => {
            let directory = OwnerId::DIRECTORY.0;
            stamps.push(directory, EntryKind::Delete, 0, 0, bytes(&[owner]));
            stamps.send(owner, 0, false);
            stamps.send(other, 0, false);
        }
    }
    let mut run = stamps.run;
    if let Some((_, tied)) = run.split_last_mut() {
        for entry in tied {
            entry.header.tied_to_next = true;
        }
    }
    run
}

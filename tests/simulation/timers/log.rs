//! What is asked of the log, and how it answers: what a client sends, what becomes durable, what is refused.

use super::*;

impl World {
    pub(super) fn send(&mut self, deliveries: &[Delivery]) {
        let (token, now) = (self.token(), WallMs(self.now));
        let append = Append {
            token,
            batch: Bytes::from(vec![0; 64]).into(),
            count: deliveries.len() as u32,
            facts: PayloadFacts {
                deliveries: column(deliveries),
                ..PayloadFacts::default()
            },
            tell_accepted: false,
            now,
            timers: TimerLimits::default(),
            tied: Vec::new(),
        };
        self.act(|partition, wants| partition.append(append, wants));
    }

    pub(super) fn ask(&mut self, number: u64, command: TimerCommand) {
        let (token, now) = (self.token(), WallMs(self.now));
        self.asked.insert(token, RecordNumber(number));
        self.act(|partition, wants| {
            partition.timer(
                token,
                RecordNumber(number),
                command,
                now,
                TimerLimits::default(),
                wants,
            );
        });
    }

    /// Makes durable what was asked for, and has it told to the partition.
    pub(super) fn flush(&mut self, runs: usize) {
        for _ in 0..runs {
            let Some(drafts) = self.queue.pop_front() else {
                return;
            };
            for draft in drafts {
                let entry = self.stamp(draft);
                self.audit(&entry);
                self.log.push(entry.clone());
                self.told.push_back(Told::Applied(entry));
            }
        }
    }

    pub(super) fn stamp(&mut self, draft: Draft) -> AppliedEntry {
        let (place, now) = (self.log.len() as u64, WallMs(self.now));
        let appended = self
            .log
            .last()
            .map_or(now, |last| last.header.appended.max(now));
        let header = EntryHeader {
            kind: draft.kind,
            tied_to_next: false,
            moved: false,
            index: LogIndex(place + 1),
            term: Term(1),
            owner: OWNER,
            sequence: OwnerSequence(self.next.0),
            first_number: RecordNumber(self.next.1),
            first_offset: Offset(self.next.2),
            numbers: draft.numbers,
            offsets: draft.offsets,
            appended,
            wall: now,
        };
        self.next.0 += 1;
        self.next.1 += u64::from(draft.numbers);
        self.next.2 += u64::from(draft.offsets);
        let payload = draft.kind == EntryKind::Payload;
        let body = if payload {
            Bytes::new()
        } else {
            draft.body.to_bytes()
        };
        AppliedEntry {
            header,
            place: EntryPlace {
                position: LogPosition(place * 4096),
                length: 200,
            },
            body,
            facts: draft.facts,
        }
    }

    /// The log refuses what it has not written.
    pub(super) fn refuse(&mut self) {
        while !self.told.is_empty() {
            self.tell();
        }
        self.queue.clear();
        self.act(Partition::reset);
    }
}

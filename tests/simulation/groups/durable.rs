//! The log under the groups: flushes that a cut may tear, and what comes back after one.

use super::*;

impl World {
    /// The log writes some of what is queued; the power may go meanwhile.
    pub(super) fn flush(&mut self, cuts: bool) -> bool {
        let Some(run) = self.queue.pop_front() else {
            return false;
        };
        let entries = self.stamp(run);
        if cuts && self.rng.chance(15) {
            self.disk.cut_power_in(1 + self.rng.below(3));
        }
        let appended = self.log.append(&entries, Room::Normal);
        if !self.disk.is_off() {
            self.disk.keep_power();
        }
        let Ok(places) = appended else {
            assert!(self.disk.is_off(), "{appended:?}");
            self.counts.torn += 1;
            self.crash(true);
            return true;
        };
        let applied: Vec<AppliedEntry> = entries
            .into_iter()
            .zip(places)
            .map(|(entry, place)| AppliedEntry {
                header: entry.header,
                place,
                body: entry.body.to_bytes(),
                facts: entry.facts,
            })
            .collect();
        for entry in &applied {
            self.count(&entry.header);
            if entry.header.owner == LETTERS {
                self.letter(&entry.facts);
            }
        }
        self.call(|group, now, effects| {
            for entry in applied.iter().filter(|entry| entry.header.owner == OWNER) {
                group.apply(now, entry, effects);
            }
            group.applied_all(now, effects);
        });
        if self.disk.is_off() {
            self.crash(true);
        }
        true
    }

    pub(super) fn stamp(&self, run: Vec<(OwnerId, Draft)>) -> Vec<NewEntry> {
        let (first, last) = (self.log.next_index(), run.len() - 1);
        let mut next = self.next.clone();
        let stamp = |(at, (owner, draft)): (usize, (OwnerId, Draft))| {
            let (sequence, number) = next.entry(owner).or_insert((1, 0));
            let header = EntryHeader {
                kind: draft.kind,
                tied_to_next: at < last,
                moved: false,
                index: LogIndex(first + at as u64),
                term: Term(1),
                owner,
                sequence: OwnerSequence(*sequence),
                first_number: RecordNumber(*number),
                first_offset: Offset(*number),
                numbers: draft.numbers,
                offsets: draft.offsets,
                appended: self.now.wall,
                wall: self.now.wall,
            };
            *sequence += 1;
            *number += u64::from(draft.numbers);
            NewEntry {
                header,
                facts: draft.facts,
                body: draft.body,
            }
        };
        run.into_iter().enumerate().map(stamp).collect()
    }

    /// An entry is in the log.
    pub(super) fn count(&mut self, header: &EntryHeader) {
        let next = self.next.entry(header.owner).or_insert((1, 0));
        assert_eq!(next.0, header.sequence.0, "of {:?}", header.owner);
        *next = (
            header.sequence.0 + 1,
            header.first_number.0 + u64::from(header.numbers),
        );
    }

    pub(super) fn letter(&mut self, facts: &PayloadFacts) {
        let record = record_of(facts);
        assert!(self.letters.insert(record), "{record:?} is a letter twice");
        assert!(self.refused.contains(&record), "{record:?} was not refused");
        assert!(!self.settled.contains(&record), "{record:?} was settled");
        self.counts.letters += 1;
    }

    /// The broker dies, perhaps with the power, and is made again of what the log has.
    pub(super) fn crash(&mut self, power: bool) {
        self.counts.crashes += 1;
        self.lives += 1;
        if power || self.disk.is_off() {
            self.disk.power_cut();
        } else {
            self.disk.kill();
        }
        self.log = open(&self.disk);
        self.queue.clear();
        self.feeds.clear();
        self.fetches.clear();
        self.dying.clear();
        self.saying.clear();
        self.members.clear();
        self.next.clear();
        self.wake = None;
        self.now.monotonic = MonotonicMs(0);
        self.group = Group::new(OWNER, limits(), self.lives);
        let before = std::mem::take(&mut self.letters);
        let scanned: Vec<Scanned> = self.log.reader().scan(LogPosition(0), None).collect();
        for scanned in scanned {
            let Scanned::Entry {
                header,
                place,
                facts,
                body,
            } = scanned
            else {
                panic!("{scanned:?}");
            };
            self.count(&header);
            if header.owner == LETTERS {
                self.letter(&facts);
                continue;
            }
            let now = Now {
                wall: header.wall,
                monotonic: MonotonicMs(0),
            };
            let entry = AppliedEntry {
                header,
                place,
                body: body.unwrap_or_default(),
                facts,
            };
            self.group.apply(now, &entry, &mut Vec::new());
        }
        assert!(self.letters.is_superset(&before), "a letter is lost");
        self.call(|group, now, effects| group.started(now, effects));
    }
}

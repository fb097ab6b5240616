//! The end of a run: faults end, everything gets through, everything that waits comes, what is dead leaves
//! the disk.

use std::collections::BTreeSet;

use waterwheel::domain::entry::EntryKind;
use waterwheel::domain::id::{LogPosition, Offset};
use waterwheel::log::Scanned;

use super::message::{Message, To};
use super::wheel::LEVELS;
use super::{Asked, HOUR_MS, SEGMENTS_BESIDE, World};

impl World {
    /// Faults end: everything outstanding gets through, and what is dead leaves the disk.
    pub(super) fn finish(&mut self) {
        self.faults = false;
        self.disk.set_capacity(u64::MAX);
        self.crash();
        for _ in 0..4_000 {
            self.step();
        }
        for _ in 0..40 {
            for message in [
                (To::Cleaner, Message::Tick),
                (To::Checkpoint, Message::Round),
            ] {
                self.house().tell(message.0, message.1);
            }
            for _ in 0..20 {
                self.produce();
            }
            while !self.house().ready().is_empty() {
                self.deliver();
                self.drain();
            }
        }
        for producer in &mut self.producers {
            assert!(
                producer.outstanding.iter().all(|(_, sent)| !sent),
                "a batch is stuck"
            );
        }
        let unanswered: Vec<_> = self
            .asked
            .values()
            .filter(|asked| !matches!(asked, Asked::Read { .. }))
            .collect();
        assert!(unanswered.is_empty(), "unanswered: {unanswered:?}");
        let (files, live) = (self.disk.file_names().len(), self.live_segments());
        assert!(
            files <= live + SEGMENTS_BESIDE,
            "{files} segments on the disk, {live} of them live"
        );
        self.crash();
        self.fire_all();
        self.crash();
        (self.counts.fired, self.counts.cancelled) = (self.truth.fired, self.truth.cancelled);
    }

    /// Lets the clock run until everything that waits has come.
    pub(super) fn fire_all(&mut self) {
        let end = self.now.0 + 800 * 24 * HOUR_MS;
        loop {
            for level in (0..LEVELS).rev() {
                self.house_now().look(level);
            }
            while !self.house().ready().is_empty() {
                self.deliver();
                self.drain();
            }
            let (now, monotonic) = (self.now.0, self.monotonic);
            let next = self.house().wheel.next_wake(now, monotonic);
            let Some(next) = next.filter(|next| *next < end) else {
                break;
            };
            self.pass((next - now).max(0));
            if self.rng.chance(10) {
                self.house().tell(To::Checkpoint, Message::Round);
            }
        }
        assert_eq!(self.truth.waiting(), [], "lost");
    }

    /// Segments with a record that some partition still has.
    pub(super) fn live_segments(&mut self) -> usize {
        let house = self.house.as_ref().expect("it is up");
        let mut live = BTreeSet::new();
        for scanned in house.reader.scan(LogPosition(0), None) {
            let Scanned::Entry { header, place, .. } = scanned else {
                panic!("{scanned:?}")
            };
            let end = Offset(header.first_offset.0 + u64::from(header.offsets));
            let start = house.starts.get(&header.owner).copied().unwrap_or_default();
            let is_there = house
                .directory
                .iter()
                .any(|t| t.partition_of(header.owner).is_some());
            let is_live = match header.kind {
                EntryKind::Payload if header.offsets == 0 => {
                    self.truth
                        .needs(header.owner, header.first_number, header.numbers)
                }
                EntryKind::Payload | EntryKind::Publish => end > start,
                _ => false,
            };
            if is_live && is_there {
                live.insert(house.reader.identity().segment_of(place.position));
            }
        }
        live.len()
    }
}

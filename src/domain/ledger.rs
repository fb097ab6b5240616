//! The ledger of segments: which of them holds nothing that is still needed.
//!
//! In: what is appended where, what dies, what is restated, how far the views are. Out: which owners to
//! ask for a restatement, which segments may be recycled.
//!
//! - L1 A segment is recycled only if no payload in it is live, the mark is past it, and every owner
//!   with any entry in it has restated all its rows after its last entry there.
//!   A payload that was stored before it is published is live until its owner says, asked about that
//!   segment, that nothing in it is needed; a publication is live as long as what it published.
//! - L2 Segments are recycled in any order: one idle topic holds its own segments, no others.
//!
//! What survives a crash: nothing of its own; it is folded again from the summaries of the segments.

use std::collections::{BTreeMap, HashMap};

use super::commit::OwnerRange;
use super::entry::{EntryHeader, EntryKind};
use super::id::{LogPosition, Offset, OwnerId, OwnerSequence};

/// A segment's number within its log.
pub type SegmentNumber = u64;

/// What is left to do for a segment that holds no live payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// This owner must restate its rows first.
    Restate(OwnerId),
    /// This owner must be asked whether it needs what it stored there unpublished.
    Inspect(SegmentNumber, OwnerId),
    /// Nothing in it is needed.
    Recycle(SegmentNumber),
}

#[derive(Debug, Clone, Copy, Default)]
struct Share {
    last_sequence: OwnerSequence,
    /// One past the last offset of its payloads here; 0 if there is none.
    payload_end: Offset,
    /// Some of them were stored without an offset, and the owner has not let go of them.
    held: bool,
}

#[derive(Debug, Clone, Default)]
struct Segment {
    /// Set once nothing more is appended to it.
    end: Option<LogPosition>,
    owners: HashMap<OwnerId, Share>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Owner {
    start: Offset,
    restated: OwnerSequence,
    snapshot_from: Option<OwnerSequence>,
}

/// The ledger of one log.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    segments: BTreeMap<SegmentNumber, Segment>,
    owners: HashMap<OwnerId, Owner>,
    deleted: Vec<OwnerRange>,
    mark: LogPosition,
}

impl Ledger {
    /// An entry lies in this segment. Entries of an owner come in order; told twice is told once.
    pub fn appended(&mut self, segment: SegmentNumber, header: &EntryHeader) {
        let share = self
            .segments
            .entry(segment)
            .or_default()
            .owners
            .entry(header.owner)
            .or_default();
        share.last_sequence = share.last_sequence.max(header.sequence);
        if header.kind == EntryKind::Payload && header.offsets == 0 {
            share.held = true;
        }
        if matches!(header.kind, EntryKind::Payload | EntryKind::Publish) {
            let end = Offset(header.first_offset.0 + u64::from(header.offsets));
            share.payload_end = share.payload_end.max(end);
        }
        let owner = self.owners.entry(header.owner).or_default();
        if header.kind != EntryKind::Snapshot {
            owner.snapshot_from = None;
            return;
        }
        let from = *owner.snapshot_from.get_or_insert(header.sequence);
        if !header.tied_to_next {
            owner.restated = owner.restated.max(from);
            owner.snapshot_from = None;
        }
    }

    /// Nothing more is appended to this segment.
    pub fn closed(&mut self, segment: SegmentNumber, end: LogPosition) {
        self.segments.entry(segment).or_default().end = Some(end);
    }

    /// Records of this owner below `start` are gone, durably.
    pub fn trimmed(&mut self, owner: OwnerId, start: Offset) {
        let owner = self.owners.entry(owner).or_default();
        owner.start = owner.start.max(start);
    }

    /// These owners are gone, durably.
    pub fn deleted(&mut self, range: OwnerRange) {
        self.owners.retain(|owner, _| !range.contains(*owner));
        self.deleted.push(range);
    }

    /// At the start, once the log is folded: of the owners below `next`, only those in `ranges` (in any
    /// order, apart) exist. The entry that deleted the others may have left the log before theirs have.
    pub fn existing(&mut self, mut ranges: Vec<OwnerRange>, next: OwnerId) {
        ranges.sort_unstable_by_key(|range| range.first);
        ranges.push(OwnerRange {
            first: next,
            count: 0,
        });
        let mut from = OwnerId::FIRST_FREE;
        for range in ranges {
            if let Some(count) = range.first.0.checked_sub(from.0).filter(|count| *count > 0) {
                self.deleted(OwnerRange { first: from, count });
            }
            from = OwnerId(range.first.0.saturating_add(range.count));
        }
    }

    /// The views hold everything before this position.
    pub fn marked(&mut self, position: LogPosition) {
        self.mark = self.mark.max(position);
    }

    /// How many segments it knows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// Whether it knows none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// What can be done now, for every segment whose payloads are all dead (L1, L2).
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (number, segment) in &self.segments {
            let Some(end) = segment.end else { continue };
            if end > self.mark
                || segment
                    .owners
                    .iter()
                    .any(|(id, share)| self.is_live(*id, share))
            {
                continue;
            }
            let before = steps.len();
            steps.extend(
                segment
                    .owners
                    .iter()
                    .filter(|(id, share)| share.held && !self.is_void(**id))
                    .map(|(id, _)| Step::Inspect(*number, *id)),
            );
            if steps.len() > before {
                continue;
            }
            steps.extend(
                segment
                    .owners
                    .iter()
                    .filter(|(id, share)| self.is_behind(**id, share))
                    .map(|(id, _)| Step::Restate(*id)),
            );
            if steps.len() == before {
                steps.push(Step::Recycle(*number));
            }
        }
        steps.sort_by_key(|step| match step {
            Step::Recycle(number) => (0, *number, 0),
            Step::Restate(owner) => (1, owner.0, 0),
            Step::Inspect(number, owner) => (2, *number, owner.0),
        });
        steps.dedup();
        steps
    }

    /// An owner needs nothing any more of what it stored unpublished in a segment.
    pub fn released(&mut self, segment: SegmentNumber, owner: OwnerId) {
        if let Some(segment) = self.segments.get_mut(&segment)
            && segment.end.is_some()
            && let Some(share) = segment.owners.get_mut(&owner)
        {
            share.held = false;
        }
    }

    /// A segment was recycled.
    pub fn recycled(&mut self, segment: SegmentNumber) {
        self.segments.remove(&segment);
    }

    fn is_void(&self, owner: OwnerId) -> bool {
        owner == OwnerId::LOG || self.deleted.iter().any(|range| range.contains(owner))
    }

    fn is_live(&self, id: OwnerId, share: &Share) -> bool {
        let start = self.owners.get(&id).map_or(Offset(0), |owner| owner.start);
        share.payload_end > start && !self.is_void(id)
    }

    fn is_behind(&self, id: OwnerId, share: &Share) -> bool {
        let restated = self
            .owners
            .get(&id)
            .map_or(OwnerSequence(0), |owner| owner.restated);
        restated <= share.last_sequence && !self.is_void(id)
    }
}

#[cfg(test)]
mod tests;

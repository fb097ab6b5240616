//! The commit machine: the only sequencer. It stamps what owners ask for, decides what goes into the
//! next flush, and says who hears of it afterwards.
//!
//! In: runs of drafts with a ticket (whoever waits, and the memory held for it), the outcome of a flush,
//! fences. Out: a plan for one flush; what each owner applies; which tickets are answered how.
//!
//! - C1 Numbers and offsets are dense per owner, in log order; a refused entry takes none.
//! - C2 Once something of an incarnation is refused, everything later from it is, until the owner comes
//!   back with the next one: refusals are ordered.
//! - C3 A run is in one flush or in none.
//! - C4 No ticket is dropped unanswered.
//! - C5 The append time never falls within a log, whatever the wall clock does.
//! - C6 After a delete entry everything for its owners is void.
//! - C7 Runs of one author are written in the order they came; between authors each has its turn by
//!   bytes, so that a lone run is in the very next flush, whatever the others have queued.
//! - C8 Flushes are short while lone runs come beside a queue: each waits for the flush under way and for
//!   its own. Where nobody would gain by it they are as long as they may be, which costs the least.
//!
//! What survives a crash: nothing of its own; recovery refills the counters from rows and log.

mod deleted;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use self::deleted::Deleted;
use super::entry::{AppliedEntry, Author, Draft, EntryHeader, EntryKind, EntryPlace, NewEntry};
use super::id::{Incarnation, LogIndex, Offset, OwnerId, OwnerSequence, RecordNumber, Term};
use super::rejection::Rejection;
use super::time::WallMs;
use super::turns::{Share, Turn, Turns};

/// The most a short flush takes in bytes, but for a single larger run (C8): the disk is at its best from
/// 1 MB on.
const SHORT_FLUSH_BYTES: u32 = 2 << 20;
/// A run of up to this many bytes is a lone one, if its author has had no more than its part.
const LONE_BYTES: u64 = 16 * 1024;
/// Flushes that are short behind a lone run.
const SHORT_FLUSHES: u32 = 64;

/// What the sequencer knows of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// The owner's last entry.
    pub sequence: OwnerSequence,
    /// Its next record number.
    pub next_number: RecordNumber,
    /// Its next offset.
    pub next_offset: Offset,
}

/// The owners a `Delete` entry voids: the body of the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerRange {
    /// The first.
    pub first: OwnerId,
    /// How many.
    pub count: u64,
}

impl OwnerRange {
    /// Whether the owner is one of them.
    #[must_use]
    pub fn contains(&self, owner: OwnerId) -> bool {
        owner
            .0
            .checked_sub(self.first.0)
            .is_some_and(|distance| distance < self.count)
    }
}

/// How much of the disk an entry may use when it runs short: see the log's reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Deletes, retention, snapshots, marks, the cleaner: these give room back.
    Housekeeping,
    /// Acknowledgements and decisions.
    Decision,
    /// Payloads.
    Payload,
}

/// Drafts that stand or fall together.
#[derive(Debug)]
pub struct Run<T> {
    /// Who asks.
    pub author: Author,
    /// The entries, each for its owner.
    pub drafts: Vec<(OwnerId, Draft)>,
    /// What may be used for it.
    pub need: Need,
    /// Whoever waits.
    pub ticket: T,
}

/// The receipt of a run: what its first entry was stamped with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The offset of its first record.
    pub first_offset: Offset,
    /// The number of its first record.
    pub first_number: RecordNumber,
    /// When it was appended.
    pub appended: WallMs,
    /// The wall clock as read then: what spans of delayed records count from.
    pub wall: WallMs,
    /// Whose it is.
    pub owner: OwnerId,
    /// Whether its records have offsets: delayed ones have none yet.
    pub published: bool,
}

/// One flush, planned.
#[derive(Debug)]
pub struct Plan<T> {
    /// The stamped entries, tied where they belong together.
    pub entries: Vec<NewEntry>,
    /// Who waits for it.
    pub tickets: Vec<(T, Receipt)>,
    /// What the entries may use of the disk.
    pub need: Need,
    authors: BTreeSet<OwnerId>,
    counters: HashMap<OwnerId, Counters>,
    next_index: LogIndex,
    appended: WallMs,
}

/// What a refusal leaves to do.
#[derive(Debug)]
pub struct Refused<T> {
    /// Who asked.
    pub author: Author,
    /// Whoever waits.
    pub ticket: T,
    /// What to say.
    pub rejection: Rejection,
}

#[derive(Debug, Clone, Copy, Default)]
struct Owner {
    incarnation: Incarnation,
    counters: Counters,
    /// C7: what it has had of the flushes.
    share: Share,
    /// C2: this incarnation has been refused something.
    fenced: bool,
}

/// The sequencer of one log.
#[derive(Debug)]
pub struct Commit<T> {
    owners: HashMap<OwnerId, Owner>,
    deleted: Deleted,
    queue: BTreeMap<Turn, Run<T>>,
    turns: Turns,
    /// Flushes that are to be short (C8).
    short: u32,
    queued_bytes: u64,
    next_index: LogIndex,
    term: Term,
    appended: WallMs,
    touched: BTreeSet<OwnerId>,
    sealed: bool,
}

/// What each owner applies, in log order, and who is answered with what.
pub type Flushed<T> = (BTreeMap<OwnerId, Vec<AppliedEntry>>, Vec<(T, Receipt)>);

impl<T> Commit<T> {
    /// A sequencer that goes on where the log ends.
    #[must_use]
    pub fn new(
        next_index: LogIndex,
        appended: WallMs,
        owners: impl IntoIterator<Item = (OwnerId, Counters)>,
    ) -> Self {
        let owners = owners
            .into_iter()
            .map(|(id, counters)| {
                (
                    id,
                    Owner {
                        counters,
                        ..Owner::default()
                    },
                )
            })
            .collect();
        Self {
            owners,
            deleted: Deleted::default(),
            queue: BTreeMap::new(),
            turns: Turns::default(),
            short: 0,
            queued_bytes: 0,
            next_index,
            term: Term(1),
            appended,
            touched: BTreeSet::new(),
            sealed: false,
        }
    }

    /// Bytes of bodies that wait for a flush.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    /// Whether anything waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// The counters of an owner; zeros for one never seen.
    #[must_use]
    pub fn counters(&self, owner: OwnerId) -> Counters {
        self.owners
            .get(&owner)
            .map_or_else(Counters::default, |owner| owner.counters)
    }

    /// An owner begins a life: what is queued from earlier ones is refused (C2), and the incarnation
    /// it may write under is returned, with the counters up to which it has to fold.
    pub fn begin(
        &mut self,
        owner: OwnerId,
        refused: &mut Vec<Refused<T>>,
    ) -> (Incarnation, Counters) {
        let state = self.owners.entry(owner).or_default();
        state.incarnation = Incarnation(state.incarnation.0.saturating_add(1));
        state.fenced = false;
        let (incarnation, counters) = (state.incarnation, state.counters);
        self.drop_queued(|run| run.author.owner == owner, &Rejection::Retry, refused);
        (incarnation, counters)
    }

    /// Takes a run into the queue.
    ///
    /// # Errors
    /// The refusal, where it is certain already: sealed, a fenced or past incarnation, a deleted owner,
    /// or a run larger than `run_bytes_max`. The last fences the incarnation too.
    pub fn enqueue(&mut self, run: Run<T>, run_bytes_max: u32) -> Result<(), Refused<T>> {
        let owner = self.owners.entry(run.author.owner).or_default();
        let refuse = |run: Run<T>, rejection| {
            Err(Refused {
                author: run.author,
                ticket: run.ticket,
                rejection,
            })
        };
        if self.sealed {
            return refuse(run, Rejection::LogSealed);
        }
        if self.deleted.contains(run.author.owner) {
            return refuse(run, Rejection::UnknownTopic);
        }
        if owner.fenced || run.author.incarnation != owner.incarnation {
            return refuse(run, Rejection::Retry);
        }
        let bytes: u64 = run.drafts.iter().map(|(_, draft)| draft_bytes(draft)).sum();
        if bytes > u64::from(run_bytes_max) {
            owner.fenced = true;
            return refuse(
                run,
                Rejection::TooLarge {
                    bytes_max: run_bytes_max,
                },
            );
        }
        self.queued_bytes = self.queued_bytes.saturating_add(bytes);
        let turn = self.turns.take(&mut owner.share, bytes);
        if bytes <= LONE_BYTES && self.turns.begins_now(turn) && !self.queue.is_empty() {
            self.short = SHORT_FLUSHES;
        }
        self.queue.insert(turn, run);
        Ok(())
    }

    /// Plans the next flush: as many whole runs (C3) as fit into `bytes_max`, none that needs more of
    /// the disk than `room` allows: such a run is refused, and its incarnation with it (C2).
    pub fn plan(
        &mut self,
        wall: WallMs,
        bytes_max: u32,
        room: Need,
        refused: &mut Vec<Refused<T>>,
    ) -> Option<Plan<T>> {
        let mut plan = Plan {
            entries: Vec::new(),
            tickets: Vec::new(),
            need: Need::Housekeeping,
            authors: BTreeSet::new(),
            counters: HashMap::new(),
            next_index: self.next_index,
            appended: self.appended.max(wall),
        };
        let bytes_max = match self.short {
            0 => bytes_max,
            _ => bytes_max.min(SHORT_FLUSH_BYTES),
        };
        self.short = self.short.saturating_sub(1);
        let mut bytes = 0u64;
        while let Some(next) = self.queue.first_entry() {
            let drafts = &next.get().drafts;
            let size: u64 = drafts.iter().map(|(_, draft)| draft_bytes(draft)).sum();
            if !plan.entries.is_empty() && bytes + size > u64::from(bytes_max) {
                break;
            }
            let (turn, mut run) = next.remove_entry();
            self.turns.serve(turn);
            self.queued_bytes = self.queued_bytes.saturating_sub(size);
            let fenced = self
                .owners
                .get(&run.author.owner)
                .is_none_or(|owner| owner.fenced);
            if fenced || self.deleted.contains(run.author.owner) {
                refused.push(run.refused(Rejection::Retry));
                continue;
            }
            if run.need > room {
                self.fence(run.author.owner);
                refused.push(run.refused(Rejection::DiskFull));
                continue;
            }
            // C6: what is for a deleted owner is void; the rest of its run stands without it.
            run.drafts
                .retain(|(owner, _)| !self.deleted.contains(*owner));
            if run.drafts.is_empty() {
                self.fence(run.author.owner);
                refused.push(run.refused(Rejection::UnknownTopic));
                continue;
            }
            bytes += size;
            plan.need = plan.need.max(run.need);
            plan.authors.insert(run.author.owner);
            let deletes = self.stamp(&mut plan, run, wall);
            if deletes {
                break;
            }
        }
        (!plan.entries.is_empty()).then_some(plan)
    }

    /// Stamps a run into the plan (C1, C5). Says whether it deletes owners: then it is the plan's last,
    /// so that C6 holds for everything behind it.
    fn stamp(&self, plan: &mut Plan<T>, run: Run<T>, wall: WallMs) -> bool {
        let mut receipt = None;
        let mut deletes = false;
        let last = run.drafts.len().saturating_sub(1);
        for (at, (owner, draft)) in run.drafts.into_iter().enumerate() {
            let counters = plan
                .counters
                .entry(owner)
                .or_insert_with(|| self.counters(owner));
            counters.sequence = OwnerSequence(counters.sequence.0 + 1);
            let header = EntryHeader {
                kind: draft.kind,
                tied_to_next: at < last,
                moved: false,
                index: plan.next_index,
                term: self.term,
                owner,
                sequence: counters.sequence,
                first_number: counters.next_number,
                first_offset: counters.next_offset,
                numbers: draft.numbers,
                offsets: draft.offsets,
                appended: plan.appended,
                wall,
            };
            counters.next_number = RecordNumber(counters.next_number.0 + u64::from(draft.numbers));
            counters.next_offset = Offset(counters.next_offset.0 + u64::from(draft.offsets));
            plan.next_index = LogIndex(plan.next_index.0 + 1);
            deletes |= draft.kind == EntryKind::Delete;
            receipt.get_or_insert(Receipt {
                first_offset: header.first_offset,
                first_number: header.first_number,
                appended: header.appended,
                wall: header.wall,
                owner: header.owner,
                published: header.offsets > 0,
            });
            plan.entries.push(NewEntry {
                header,
                body: draft.body,
                facts: draft.facts,
            });
        }
        if let Some(receipt) = receipt {
            plan.tickets.push((run.ticket, receipt));
        }
        deletes
    }

    /// The plan is durable: what each owner applies, in log order, and who is answered.
    pub fn flushed(&mut self, plan: Plan<T>, places: &[EntryPlace]) -> Flushed<T> {
        assert_eq!(
            places.len(),
            plan.entries.len(),
            "C4: the log places every entry of a flush"
        );
        self.next_index = plan.next_index;
        self.appended = plan.appended;
        for (id, counters) in plan.counters {
            self.owners.entry(id).or_default().counters = counters;
            self.touched.insert(id);
        }
        let mut applied: BTreeMap<OwnerId, Vec<AppliedEntry>> = BTreeMap::new();
        for (entry, place) in plan.entries.into_iter().zip(places) {
            if entry.header.kind == EntryKind::Delete
                && let Ok(range) = rmp_serde::from_slice::<OwnerRange>(&entry.body.to_bytes())
            {
                self.deleted.insert(range);
                self.owners.retain(|owner, _| !range.contains(*owner));
                self.touched.retain(|owner| !range.contains(*owner));
            }
            let body = match entry.header.kind {
                // A payload's bytes are on the disk and in the tail cache, not in every fold.
                EntryKind::Payload => bytes::Bytes::new(),
                EntryKind::Publish
                | EntryKind::State
                | EntryKind::Snapshot
                | EntryKind::Delete
                | EntryKind::Mark => entry.body.to_bytes(),
            };
            applied
                .entry(entry.header.owner)
                .or_default()
                .push(AppliedEntry {
                    header: entry.header,
                    place: *place,
                    body,
                    facts: entry.facts,
                });
        }
        (applied, plan.tickets)
    }

    /// The log had no room for the plan after all and wrote nothing: its runs are refused, and their
    /// authors' incarnations with them (C2). Returns who is to be answered, and the authors.
    pub fn not_written(
        &mut self,
        plan: Plan<T>,
        rejection: &Rejection,
    ) -> (Vec<T>, BTreeSet<OwnerId>, Rejection) {
        for author in &plan.authors {
            self.fence(*author);
        }
        let tickets = plan.tickets.into_iter().map(|(ticket, _)| ticket).collect();
        (tickets, plan.authors, rejection.clone())
    }

    /// The log is sealed: everything that waits is refused, and all that comes.
    pub fn seal(&mut self, refused: &mut Vec<Refused<T>>) {
        self.sealed = true;
        self.drop_queued(|_| true, &Rejection::LogSealed, refused);
    }

    /// The owners that got entries since the last call: those whose views are behind.
    pub fn take_touched(&mut self) -> BTreeSet<OwnerId> {
        std::mem::take(&mut self.touched)
    }

    fn fence(&mut self, owner: OwnerId) {
        // The log's own marks rest on nothing before them, and nobody begins another life for them.
        if owner == OwnerId::LOG {
            return;
        }
        self.owners.entry(owner).or_default().fenced = true;
    }

    fn drop_queued(
        &mut self,
        matches: impl Fn(&Run<T>) -> bool,
        rejection: &Rejection,
        refused: &mut Vec<Refused<T>>,
    ) {
        let (dropped, kept): (BTreeMap<_, _>, _) = std::mem::take(&mut self.queue)
            .into_iter()
            .partition(|(_, run)| matches(run));
        self.queue = kept;
        self.queued_bytes = self
            .queue
            .values()
            .flat_map(|run| &run.drafts)
            .map(|(_, draft)| draft_bytes(draft))
            .sum();
        refused.extend(
            dropped
                .into_values()
                .map(|run| run.refused(rejection.clone())),
        );
    }
}

impl<T> Run<T> {
    fn refused(self, rejection: Rejection) -> Refused<T> {
        Refused {
            author: self.author,
            ticket: self.ticket,
            rejection,
        }
    }
}

/// Bytes an entry takes beyond its body, rounded up: header and padding.
pub const ENTRY_OVERHEAD_BYTES: u64 = 128;

fn draft_bytes(draft: &Draft) -> u64 {
    draft.body.len() as u64 + ENTRY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests;

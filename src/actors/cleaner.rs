//! The cleaner actor: which segments are recycled, and when retention is looked at.
//!
//! It keeps the ledger, folded at start from the summaries of the segments, on a thread beside the
//! arbiters, while the broker serves already. Live payloads are not moved: until they are, a segment
//! leaves as a whole.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, ContextFutureSpawner, Handler, WrapFuture,
};

use super::commit::{CommitActor, Recycle};
use super::directory::retention::RetainAll;
use super::directory::{DirectoryActor, InspectOwner, RestateOwner};
use super::partition::Inspect;
use super::stats::ActorStats;
use super::vigil::Watched;
use super::{Clock, Link};
use crate::domain::commit::OwnerRange;
use crate::domain::entry::{EntryHeader, EntryKind, EntryPlace};
use crate::domain::id::{LogPosition, Offset, OwnerId};
use crate::domain::ledger::{Ledger, SegmentNumber, Step};
use crate::log::{LogReader, Scanned};

tells!(Introduce, Flushed, Trimmed, Inspected, MarkMoved, Recycled);

/// Owners asked to restate at a time: their snapshots are written beside live traffic.
const RESTATE_AT_ONCE: usize = 64;

/// What is recycled.
pub struct CleanerActor {
    ledger: Ledger,
    reader: LogReader,
    commit: Link<CommitActor>,
    directory: Option<Link<DirectoryActor>>,
    stats: Arc<ActorStats>,
    clock: Clock,
    every: Duration,
    /// Owners asked that have not restated yet; all may be asked again when retention is looked at.
    asked: HashSet<OwnerId>,
    /// Owners asked about a segment, likewise.
    inspecting: HashSet<(SegmentNumber, OwnerId)>,
    recycling: HashSet<SegmentNumber>,
    found: Found,
    _watched: Option<Watched>,
}

/// What recovery found, and the log alone may not tell any more.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The owners' start offsets, where above 0.
    pub starts: Vec<(OwnerId, Offset)>,
    /// The owners there are.
    pub owners: Vec<OwnerRange>,
    /// The first owner there never was.
    pub next_owner: OwnerId,
    /// The views' position.
    pub mark: LogPosition,
}

impl std::fmt::Debug for CleanerActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CleanerActor")
            .field("segments", &self.ledger.len())
            .finish_non_exhaustive()
    }
}

impl CleanerActor {
    /// A cleaner that looks at retention `every` so often.
    #[must_use]
    pub fn new(
        reader: LogReader,
        commit: Link<CommitActor>,
        stats: Arc<ActorStats>,
        clock: Clock,
        every: Duration,
        found: Found,
    ) -> Self {
        let mut ledger = Ledger::default();
        ledger.marked(found.mark);
        Self {
            ledger,
            reader,
            commit,
            directory: None,
            stats,
            clock,
            every,
            asked: HashSet::new(),
            inspecting: HashSet::new(),
            recycling: HashSet::new(),
            found,
            _watched: None,
        }
    }

    /// Says when it is gone.
    #[must_use]
    pub fn watched(mut self, watched: Watched) -> Self {
        self._watched = Some(watched);
        self
    }

    fn step(&mut self) {
        for segment in self
            .reader
            .segments()
            .iter()
            .filter(|segment| segment.closed)
        {
            self.ledger.closed(segment.number.0, segment.end);
        }
        let Some(directory) = &self.directory else {
            return;
        };
        for step in self.ledger.steps() {
            match step {
                Step::Recycle(segment) => {
                    if self.recycling.insert(segment) {
                        self.commit.tell(Recycle(segment));
                    }
                }
                Step::Restate(owner) => {
                    if self.asked.len() < RESTATE_AT_ONCE && self.asked.insert(owner) {
                        directory.tell(RestateOwner { owner });
                    }
                }
                Step::Inspect(segment, owner) => {
                    if self.inspecting.len() < RESTATE_AT_ONCE
                        && self.inspecting.insert((segment, owner))
                    {
                        let (from, end) = self.reader.identity().bounds(segment);
                        directory.tell(InspectOwner {
                            owner,
                            inspect: Inspect { segment, from, end },
                        });
                    }
                }
            }
        }
    }
}

impl Actor for CleanerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.stats.capacity);
        let reader = self.reader.clone();
        let mut ledger = std::mem::take(&mut self.ledger);
        let found = std::mem::take(&mut self.found);
        for (owner, start) in found.starts {
            ledger.trimmed(owner, start);
        }
        ledger.existing(found.owners, found.next_owner);
        // Flushes wait in the mailbox meanwhile: they are few, one per write to the disk.
        tokio::task::spawn_blocking(move || {
            for scanned in reader.scan(LogPosition(0), None) {
                if let Scanned::Entry {
                    header,
                    place,
                    body,
                    ..
                } = scanned
                {
                    note(&mut ledger, &reader, place, &header);
                    if header.kind == EntryKind::Delete
                        && let Some(Ok(range)) = body.map(|body| rmp_serde::from_slice(&body))
                    {
                        ledger.deleted(range);
                    }
                }
            }
            ledger
        })
        .into_actor(self)
        .map(|ledger, actor, _| {
            if let Ok(ledger) = ledger {
                actor.ledger = ledger;
            }
        })
        .wait(ctx);
        ctx.run_interval(self.every, |actor, _| {
            if let Some(directory) = &actor.directory {
                directory.tell(RetainAll {
                    now: actor.clock.now().wall,
                });
            }
            actor.asked.clear();
            actor.inspecting.clear();
            actor.recycling.clear();
            actor.step();
        });
    }
}

fn note(ledger: &mut Ledger, reader: &LogReader, place: EntryPlace, header: &EntryHeader) {
    ledger.appended(reader.identity().segment_of(place.position).0, header);
}

/// Who is told about retention and restating.
#[derive(Debug)]
pub struct Introduce(pub Link<DirectoryActor>);

impl Handler<Introduce> for CleanerActor {
    type Result = ();

    fn handle(&mut self, message: Introduce, _: &mut Self::Context) {
        self.stats.handled();
        self.directory = Some(message.0);
    }
}

/// Entries became durable.
#[derive(Debug)]
pub struct Flushed {
    /// Where, and what.
    pub headers: Vec<(EntryPlace, EntryHeader)>,
    /// Owners deleted by them.
    pub deleted: Vec<OwnerRange>,
}

impl Handler<Flushed> for CleanerActor {
    type Result = ();

    fn handle(&mut self, message: Flushed, _: &mut Self::Context) {
        self.stats.handled();
        for (place, header) in &message.headers {
            note(&mut self.ledger, &self.reader, *place, header);
            if header.kind == EntryKind::Snapshot && !header.tied_to_next {
                self.asked.remove(&header.owner);
            }
        }
        for range in &message.deleted {
            self.ledger.deleted(*range);
        }
    }
}

/// Records of an owner below an offset are gone, durably.
#[derive(Debug, Clone, Copy)]
pub struct Trimmed {
    /// The owner.
    pub owner: OwnerId,
    /// Its start offset.
    pub start: Offset,
}

impl Handler<Trimmed> for CleanerActor {
    type Result = ();

    fn handle(&mut self, message: Trimmed, _: &mut Self::Context) {
        self.stats.handled();
        // Looked at with the next mark or tick: a thousand partitions may be trimmed at once.
        self.ledger.trimmed(message.owner, message.start);
    }
}

/// An owner was asked about a segment.
#[derive(Debug, Clone, Copy)]
pub struct Inspected {
    /// The owner.
    pub owner: OwnerId,
    /// The segment.
    pub segment: SegmentNumber,
    /// Whether it needs something it stored there unpublished.
    pub needed: bool,
}

impl Handler<Inspected> for CleanerActor {
    type Result = ();

    fn handle(&mut self, message: Inspected, _: &mut Self::Context) {
        self.stats.handled();
        // Asked again when retention is looked at, where it still needs something.
        if !message.needed {
            self.ledger.released(message.segment, message.owner);
            self.step();
        }
    }
}

/// The views hold everything before this position.
#[derive(Debug, Clone, Copy)]
pub struct MarkMoved(pub LogPosition);

impl Handler<MarkMoved> for CleanerActor {
    type Result = ();

    fn handle(&mut self, message: MarkMoved, _: &mut Self::Context) {
        self.stats.handled();
        self.ledger.marked(message.0);
        self.step();
    }
}

/// A segment was recycled.
#[derive(Debug, Clone, Copy)]
pub struct Recycled(pub SegmentNumber);

impl Handler<Recycled> for CleanerActor {
    type Result = ();

    fn handle(&mut self, message: Recycled, _: &mut Self::Context) {
        self.stats.handled();
        self.ledger.recycled(message.0);
    }
}

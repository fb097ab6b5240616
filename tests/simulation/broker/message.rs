//! Who there is, and what they tell each other: the actors' messages, as data.

use std::collections::BTreeSet;

use bytes::Bytes;
use waterwheel::domain::commit::{Counters, Need, OwnerRange};
use waterwheel::domain::entry::{AppliedEntry, Author, Draft, EntryHeader, PayloadFacts};
use waterwheel::domain::id::{Incarnation, LogPosition, Offset, OwnerId, ProducerId};
use waterwheel::domain::ledger::SegmentNumber;
use waterwheel::domain::partition::{ReadAnswer, index::BatchPlace, rows::RowId};
use waterwheel::domain::rejection::Rejection;
use waterwheel::domain::time::WallMs;
use waterwheel::domain::topics::{Command, Topic};

use super::views::Change;

/// A mailbox. An owner's has the number of its actor: what is told to an earlier one is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum To {
    Commit,
    Store,
    Checkpoint,
    Cleaner,
    Directory,
    Owner(OwnerId, u64),
    /// What an owner that takes nothing else is waiting for.
    Awaiting(OwnerId, u64),
}

/// Who asked, and what it calls its question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Reply {
    pub(crate) client: usize,
    pub(crate) question: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Stored { offset: Offset },
    Batches(ReadAnswer),
    Topic(Topic),
    Producer(ProducerId),
    Refused(Rejection),
}

#[derive(Debug, Clone)]
pub(crate) enum Message {
    // To the commit actor.
    Persist { author: Author, drafts: Vec<(OwnerId, Draft)>, need: Need, ticket: Option<Reply> },
    FlushNow,
    CloseTail,
    Begin { owner: OwnerId, address: u64 },
    BeginCheckpoint { round: u64, again: BTreeSet<OwnerId> },
    Recycle(SegmentNumber),
    NoteMark(LogPosition),
    // To owners.
    Life { author: Author, counters: Counters, end: LogPosition },
    Rows { rows: Vec<(RowId, Bytes)>, mark: LogPosition },
    Applied(Vec<AppliedEntry>),
    Fenced { incarnation: Incarnation, rejection: Rejection },
    WriteRows { round: u64 },
    Restate,
    Retain { now: WallMs, retention_bytes: Option<u64> },
    Append { facts: PayloadFacts, count: u32, batch: Bytes, reply: Reply },
    Read { from: Offset, reply: Reply },
    RunLoaded { first: Offset, run: Vec<BatchPlace> },
    // To the store.
    Write(Vec<Change>),
    WriteMark { position: LogPosition },
    LoadOwner { owner: OwnerId, address: u64 },
    LoadRun { owner: OwnerId, address: u64, first: Offset },
    // To the checkpoint actor.
    Round,
    Began { position: LogPosition, owners: BTreeSet<OwnerId> },
    RowsWritten { round: u64, owner: OwnerId },
    Gone { owner: OwnerId },
    Marked { position: LogPosition },
    // To the cleaner.
    Flushed { headers: Vec<(LogPosition, EntryHeader)>, deleted: Vec<OwnerRange> },
    Trimmed { owner: OwnerId, start: Offset },
    MarkMoved(LogPosition),
    Recycled(SegmentNumber),
    Tick,
    // To the directory.
    Do { command: Command, reply: Reply },
    StartOwner { owner: OwnerId },
    RestateOwner { owner: OwnerId },
    RetainAll { now: WallMs },
}

//! Who there is, and what they tell each other: the actors' messages, as data.

use std::collections::BTreeSet;

use bytes::Bytes;
use waterwheel::domain::commit::{Counters, Need, OwnerRange};
use waterwheel::domain::entry::{AppliedEntry, Author, Draft, EntryHeader, PayloadFacts};
use waterwheel::domain::id::{Incarnation, LogPosition, Offset, OwnerId, ProducerId, RecordNumber};
use waterwheel::domain::ledger::SegmentNumber;
use waterwheel::domain::partition::delayed::{TimerAnswer, TimerCommand};
use waterwheel::domain::partition::{ReadAnswer, index::BatchPlace, rows::RowId};
use waterwheel::domain::rejection::Rejection;
use waterwheel::domain::time::WallMs;
use waterwheel::domain::topics::{Command, Topic};
use waterwheel::domain::wheel::chunk::RowId as Home;

use super::views::Change;
use super::wheel::{Said, Step};

/// A mailbox. An owner's has the number of its actor: what is told to an earlier one is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum To {
    Commit,
    Store,
    Checkpoint,
    Cleaner,
    Directory,
    /// A level of the timing wheel.
    Level(usize),
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
    Stored {
        offset: Offset,
        number: RecordNumber,
    },
    Timer(TimerAnswer),
    Batches(ReadAnswer),
    Topic(Topic),
    Producer(ProducerId),
    Refused(Rejection),
}

#[derive(Debug, Clone)]
pub(crate) enum Message {
    // To the commit actor.
    Persist {
        author: Author,
        drafts: Vec<(OwnerId, Draft)>,
        need: Need,
        ticket: Option<Reply>,
    },
    FlushNow,
    CloseTail,
    Begin {
        owner: OwnerId,
        address: u64,
    },
    BeginCheckpoint {
        round: u64,
        again: BTreeSet<OwnerId>,
        marked: u64,
    },
    Recycle(SegmentNumber),
    NoteMark(LogPosition),
    // To owners.
    Life {
        author: Author,
        counters: Counters,
        end: LogPosition,
    },
    Rows {
        rows: Vec<(RowId, Bytes)>,
        mark: LogPosition,
    },
    Applied(Vec<AppliedEntry>),
    Fenced {
        incarnation: Incarnation,
        rejection: Rejection,
    },
    WriteRows {
        round: u64,
        marked: u64,
    },
    Alarm(Said),
    AskTimer {
        number: RecordNumber,
        command: TimerCommand,
        reply: Reply,
    },
    BodiesLoaded {
        first: RecordNumber,
        row: Bytes,
    },
    Inspect {
        segment: SegmentNumber,
        from: LogPosition,
        end: LogPosition,
    },
    Restate,
    Retain {
        now: WallMs,
        retention_bytes: Option<u64>,
    },
    Append {
        facts: PayloadFacts,
        count: u32,
        batch: Bytes,
        reply: Reply,
    },
    Read {
        from: Offset,
        reply: Reply,
    },
    RunLoaded {
        first: Offset,
        run: Vec<BatchPlace>,
    },
    // To the store.
    Write(Vec<Change>),
    WriteMark {
        round: u64,
        position: LogPosition,
    },
    WriteHomes {
        level: usize,
        changes: Vec<Change>,
    },
    LoadHomes {
        level: usize,
        ids: Vec<Home>,
    },
    LoadBodies {
        owner: OwnerId,
        address: u64,
        first: RecordNumber,
    },
    LoadOwner {
        owner: OwnerId,
        address: u64,
    },
    LoadRun {
        owner: OwnerId,
        address: u64,
        first: Offset,
    },
    // To the checkpoint actor.
    Round,
    Began {
        position: LogPosition,
        owners: BTreeSet<OwnerId>,
    },
    RowsWritten {
        round: u64,
        owner: OwnerId,
    },
    Gone {
        owner: OwnerId,
    },
    LapDone {
        round: u64,
    },
    Marked {
        round: u64,
        position: LogPosition,
    },
    // To a level of the wheel.
    Level(Step),
    // To the cleaner.
    Flushed {
        headers: Vec<(LogPosition, EntryHeader)>,
        deleted: Vec<OwnerRange>,
    },
    Trimmed {
        owner: OwnerId,
        start: Offset,
    },
    Inspected {
        owner: OwnerId,
        segment: SegmentNumber,
        needed: bool,
    },
    MarkMoved(LogPosition),
    Recycled(SegmentNumber),
    Tick,
    // To the directory.
    Do {
        command: Command,
        reply: Reply,
    },
    StartOwner {
        owner: OwnerId,
    },
    RestateOwner {
        owner: OwnerId,
    },
    InspectOwner {
        owner: OwnerId,
        segment: SegmentNumber,
        from: LogPosition,
        end: LogPosition,
    },
    RetainAll {
        now: WallMs,
    },
}

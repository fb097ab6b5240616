//! Entries of the commit log as every room sees them: kinds, the logical header, what is asked for
//! (a draft) and what was made durable (an applied entry).
//!
//! The physical frame around them is the log room's business. The logical header never changes, not
//! even when the cleaner appends a live payload again at another position.

use bytes::Bytes;

use super::body::Body;
use super::id::{
    Incarnation, LogIndex, LogPosition, Offset, OwnerId, OwnerSequence, ProducerEpoch, ProducerId,
    ProducerSequence, RecordNumber, Term, TransactionNumber,
};
use super::time::WallMs;

/// What an entry is. The byte is on disk: never renumber.
///
/// `Payload` entries live until their partition says dead. Everything else is state: a delta, dead
/// once every row it touched has been restated by a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum EntryKind {
    /// A record batch, owned by its target partition from its first byte, visible or not yet.
    Payload = 1,
    /// References: stored records of this partition become visible (a timer fired, a transaction
    /// committed). The body lists record numbers.
    Publish = 2,
    /// A delta of the owner's own state; the body is the owner's business.
    State = 3,
    /// One row of the owner's state, restated as of this entry's sequence. At most 1 MB.
    Snapshot = 4,
    /// From here on everything for the owners named in the body is void.
    Delete = 5,
    /// The checkpoint mark: views hold everything before the position in the body.
    Mark = 6,
}

impl EntryKind {
    /// The kind a byte on disk stands for, if any.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Payload,
            2 => Self::Publish,
            3 => Self::State,
            4 => Self::Snapshot,
            5 => Self::Delete,
            6 => Self::Mark,
            _ => return None,
        })
    }
}

/// The logical header of an entry: stamped once by the commit machine, unchanged for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryHeader {
    /// What it is.
    pub kind: EntryKind,
    /// Stands or falls with the entry that follows it, within one flush.
    pub tied_to_next: bool,
    /// Appended again by the cleaner: its position replaces the earlier one.
    pub moved: bool,
    /// Its place in the log's sequence of entries.
    pub index: LogIndex,
    /// The Raft term later.
    pub term: Term,
    /// Whom it belongs to.
    pub owner: OwnerId,
    /// Its place among its owner's entries.
    pub sequence: OwnerSequence,
    /// The number of its first record; the owner's next number if it stores none.
    pub first_number: RecordNumber,
    /// The offset of the first record it publishes; the owner's next offset if it publishes none.
    pub first_offset: Offset,
    /// How many records it stores.
    pub numbers: u32,
    /// How many records it publishes.
    pub offsets: u32,
    /// When it was appended, clamped to be monotone within the log: order, retention, lookup by time.
    pub appended: WallMs,
    /// The wall clock as read at that moment: what spans of delayed records count from.
    pub wall: WallMs,
}

/// What a fold must know of a payload without reading it; kept in a sealed segment's summary.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PayloadFacts {
    /// Who sent it; 0 where the sender is not idempotent.
    pub producer: ProducerId,
    /// The sender's epoch.
    pub epoch: ProducerEpoch,
    /// The sender's number of the batch's first record.
    pub first_sequence: ProducerSequence,
    /// The transaction it belongs to; 0 for none.
    pub transaction: TransactionNumber,
    /// The batch header's flags.
    pub flags: u16,
    /// A 64-bit Bloom summary of the tags in it; 0 when none has a tag.
    pub tags: u64,
    /// The batch's delivery column as it stands in its directory (9 bytes a record: kind, value);
    /// empty when every record is immediate.
    pub deliveries: Bytes,
}

/// What an owner asks the commit machine to make durable: everything but the stamps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// What it is.
    pub kind: EntryKind,
    /// How many records it stores.
    pub numbers: u32,
    /// How many records it publishes.
    pub offsets: u32,
    /// Its body, at most `flush_bytes_max` less headers.
    pub body: Body,
    /// What a fold must know of a payload; default elsewhere.
    pub facts: PayloadFacts,
}

/// A stamped entry on its way to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEntry {
    /// The stamps.
    pub header: EntryHeader,
    /// The body.
    pub body: Body,
    /// Kept in the segment's summary.
    pub facts: PayloadFacts,
}

/// Where an entry's frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryPlace {
    /// Where its frame starts.
    pub position: LogPosition,
    /// The frame's length in bytes: header and body without the padding behind it.
    pub length: u32,
}

/// A durable entry as its owner applies it, live and in recovery alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedEntry {
    /// The stamps.
    pub header: EntryHeader,
    /// Where it lies.
    pub place: EntryPlace,
    /// The body of every entry but a payload: of payloads a fold needs only the facts.
    pub body: Bytes,
    /// The facts of a payload.
    pub facts: PayloadFacts,
}

/// Who is speaking: an owner in one of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Author {
    /// The owner.
    pub owner: OwnerId,
    /// Its life.
    pub incarnation: Incarnation,
}

//! The coordinator machine: what becomes of the transactions of its sessions.
//!
//! In: sessions opened, halves and attachments on their way, ends, answers of check-backs, the clock, and
//! applied entries. Out: [`Effect`]s. A transaction begins with its first half and needs no entry of its
//! own for that; every half and attachment carries its registration here in the same tied run, so none is
//! forgotten; a decision waits until everything that was let through is stored or refused, so none lands
//! behind it.
//!
//! - X1 A transaction has at most one durable decision; the same again is a no-op, the opposite is refused
//!   with the one that stands.
//! - X2 An end names one transaction (id, epoch, number) and touches no other.
//! - X3 A decision names every participant registered before it, and none registers behind it. The shell's
//!   part: a coordinator begins only when nothing its predecessor let through is on its way any more.
//! - X4 A new session of a transactional id bumps the epoch and rolls back what its predecessor left open;
//!   but what can be checked back is left to check-back, since its local outcome is unknown.
//! - X5 Nobody is asked for an outcome after a durable decision.
//! - X6 Folding the log, or rows and the log behind them, gives the same applied state.
//!
//! What survives a crash: rows (head, sessions, open transactions, the finished ones worth asking for), and
//! the log behind them. Deadlines are armed anew with what is left of their span.

mod clock;
mod commands;
mod fold;
mod open;
mod query;
pub mod rows;
pub mod state;

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use self::open::{OpenOnes, Transaction};
pub use self::state::{By, Decision, NotATransaction, State, TransactionId};
use super::entry::{AppliedEntry, Draft, EntryKind};
use super::id::{
    OwnerId, OwnerSequence, PartitionId, ProducerEpoch, ProducerId, Token, TransactionNumber,
};
use super::rejection::Rejection;
use super::time::{MonotonicMs, Now, WallMs};

/// Coordinators of a broker. Fixed: a transactional id belongs to the shard its hash names.
pub const SHARDS: u8 = 4;

/// Decisions a session remembers one by one, so that an end that is repeated gets the right answer.
pub const RECENT: usize = 64;

/// Finished transactions kept for questions: those an operator or time decided.
pub const FINISHED_MAX: usize = 10_000;

/// Bytes of a transactional id or of a producer group's name at most.
pub const NAME_BYTES_MAX: usize = 200;

/// The bit that tells a transactional session's producer id from those the directory gives out.
const SESSION_BIT: u64 = 1 << 63;
const SHARD_SHIFT: u32 = 55;

/// The owner of a shard.
#[must_use]
pub fn shard_owner(shard: u8) -> OwnerId {
    OwnerId(16 + u64::from(shard % SHARDS))
}

/// The shard an owner is, if it is one.
#[must_use]
pub fn shard_of_owner(owner: OwnerId) -> Option<u8> {
    let shard = u8::try_from(owner.0.checked_sub(16)?).ok()?;
    (shard < SHARDS).then_some(shard)
}

/// The shard of a transactional id, by the hash that also places keys.
#[must_use]
pub fn shard_of_name(name: &str) -> u8 {
    let shard = super::key::key_hash(name.as_bytes()) % u64::from(SHARDS);
    u8::try_from(shard).unwrap_or(0)
}

/// The shard that gave out a session's producer id; none where it is no transactional session's.
#[must_use]
pub fn shard_of(producer: ProducerId) -> Option<u8> {
    if producer.0 & SESSION_BIT == 0 {
        return None;
    }
    let shard = u8::try_from((producer.0 ^ SESSION_BIT) >> SHARD_SHIFT).ok()?;
    (shard < SHARDS).then_some(shard)
}

/// Limits of a coordinator, from configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Transactions one session may have open.
    pub open_per_session_max: u32,
    /// Transactions the coordinator may have open.
    pub open_max: u32,
    /// Partitions and groups one transaction may touch: its decision is one tied run of one flush.
    pub participants_max: u32,
    /// Batches and attachments one transaction may hold.
    pub batches_max: u32,
    /// Sessions it keeps.
    pub sessions_max: u32,
    /// How long a transaction without check-back may stay open.
    pub duration_ms: u32,
    /// Time between two questions for an outcome.
    pub check_interval_ms: u32,
    /// Questions that were heard before a transaction expires.
    pub checks_max: u16,
    /// How long a transaction that nobody could be asked about is kept.
    pub unheard_ms: u64,
    /// How long a finished transaction can be asked for.
    pub finished_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            open_per_session_max: 100_000,
            open_max: 1_000_000,
            participants_max: 1_000,
            batches_max: 100_000,
            sessions_max: 100_000,
            duration_ms: 60_000,
            check_interval_ms: 30_000,
            checks_max: 15,
            unheard_ms: 3 * 24 * 3_600_000,
            finished_ms: 7 * 24 * 3_600_000,
        }
    }
}

/// What a transaction touches, once each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Participant {
    /// The partition lane or group.
    pub owner: OwnerId,
    /// What it is to the transaction.
    pub part: Part,
}

/// What a participant is to a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// A partition holds records of it.
    Records {
        /// Which partition it is.
        partition: PartitionId,
        /// All of them.
        records: u32,
        /// Those that are published at the commit; the others are delayed.
        immediate: u32,
    },
    /// A group holds offsets or leases for it.
    Attached,
}

/// What is registered: the body of a `Registered` delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The transaction.
    pub id: TransactionId,
    /// Whom it touches, and with what.
    pub participant: Participant,
    /// How long after its first half its session's group is asked, in milliseconds; none: it ends by
    /// timeout.
    pub immunity_ms: Option<u32>,
}

/// The coordinator's deltas: the body of its `State` entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delta {
    /// A session was opened, or opened anew.
    Opened {
        /// Its transactional id.
        name: String,
        /// Its producer group: who may be asked for outcomes.
        group: String,
        /// Its producer id.
        producer: ProducerId,
        /// Its epoch.
        epoch: ProducerEpoch,
    },
    /// A half or an attachment was stored; tied to it.
    Registered(Registration),
    /// The decision; tied to what it publishes, discards, settles or releases.
    Decided {
        /// Which.
        id: TransactionId,
        /// How.
        decision: Decision,
        /// By whom.
        by: By,
    },
    /// Sessions unused for too long.
    Forgotten(Vec<ProducerId>),
}

/// The applied counters: the head row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Head {
    /// The last entry folded.
    pub sequence: OwnerSequence,
    /// Sessions given an id so far.
    pub sessions: u64,
}

/// A session: its row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its transactional id.
    pub name: String,
    /// Its producer group.
    pub group: String,
    /// Its epoch; earlier ones are fenced.
    pub epoch: ProducerEpoch,
    /// When it was last opened or last decided something.
    pub used: WallMs,
    /// The last decisions, oldest first.
    pub recent: VecDeque<(ProducerEpoch, TransactionNumber, Decision)>,
    /// What is at or below and not open has been decided, though it is forgotten how.
    pub low: (ProducerEpoch, TransactionNumber),
}

/// An open transaction: its row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRow {
    /// The coordinator's sequence of its first registration: the id of its row.
    pub born: OwnerSequence,
    /// When its first registration was appended.
    pub begun: WallMs,
    /// See [`Registration`].
    pub immunity_ms: Option<u32>,
    /// Halves and attachments.
    pub batches: u32,
    /// Whom it touches.
    pub participants: Vec<Participant>,
}

/// A finished transaction somebody may ask for: its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Which.
    pub id: TransactionId,
    /// What became of it.
    pub decision: Decision,
    /// Who decided.
    pub by: By,
    /// When.
    pub at: WallMs,
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make the coordinator's own delta durable.
    Persist(Draft),
    /// Send the token's half or attachment on to its owner, with this registration tied to it. Every one
    /// let through is reported by [`Coordinator::settled`] once it is stored or refused.
    LetThrough(Token, TransactionId, Draft),
    /// Make a decision durable: the coordinator's delta and what it means to every participant, tied.
    Decide {
        /// Which.
        id: TransactionId,
        /// How.
        decision: Decision,
        /// The coordinator's delta.
        delta: Draft,
        /// Whom it concerns.
        participants: Vec<Participant>,
    },
    /// Answer: the session is open.
    Opened(Token, ProducerId, ProducerEpoch),
    /// Answer: decided and durable.
    Ended(Token, Decision, By),
    /// Answer a refusal.
    Refuse(Token, Rejection),
    /// Ask a live producer of the group for the outcome; report who heard with [`Coordinator::heard`].
    CheckBack {
        /// The producer group.
        group: String,
        /// The transaction.
        id: TransactionId,
        /// Where its first half lies.
        partition: Option<PartitionId>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Open,
    /// Waits for the last of what was let through, or, once asked, for the disk.
    Deciding {
        decision: Decision,
        by: By,
        asked: bool,
    },
}

/// What is told of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Which.
    pub id: TransactionId,
    /// Its session's transactional id; empty where the session is forgotten.
    pub name: String,
    /// Its session's producer group.
    pub group: String,
    /// Where it stands.
    pub state: State,
    /// When it began, or was decided if it is finished.
    pub at: WallMs,
    /// Whether its group is asked for its outcome.
    pub checked_back: bool,
    /// Questions that were heard.
    pub checks: u16,
    /// Halves and attachments.
    pub batches: u32,
    /// Whom it touches.
    pub participants: Vec<Participant>,
}

/// One shard of the coordinators.
#[derive(Debug, Clone)]
pub struct Coordinator {
    shard: u8,
    limits: Limits,
    head: Head,
    sessions: BTreeMap<ProducerId, Session>,
    names: HashMap<String, ProducerId>,
    open: OpenOnes,
    /// Who waits for decisions.
    waiting: BTreeMap<TransactionId, Vec<Token>>,
    finished: BTreeMap<OwnerSequence, Finished>,
    /// Sessions on their way to the disk, oldest first.
    opening: VecDeque<Opening>,
    /// Sessions given an id, applied or on their way.
    accepted_sessions: u64,
    dirty: rows::Dirty,
    /// A snapshot is wanted as soon as nothing is on its way; what is asked for meanwhile is held.
    restating: bool,
    held: Held,
    /// Own entries asked for and not yet applied.
    asked: u64,
}

/// A session on its way to the disk.
#[derive(Debug, Clone)]
struct Opening {
    token: Token,
    name: String,
    producer: ProducerId,
    epoch: ProducerEpoch,
}

/// What waits for a snapshot.
#[derive(Debug, Clone, Default)]
struct Held {
    deltas: Vec<Draft>,
    halves: Vec<(Token, Registration, Now)>,
    decisions: Vec<TransactionId>,
}

impl Coordinator {
    /// A shard nobody ever used.
    #[must_use]
    pub fn new(shard: u8, limits: Limits) -> Self {
        Self {
            shard,
            limits,
            head: Head::default(),
            sessions: BTreeMap::new(),
            names: HashMap::new(),
            open: OpenOnes::default(),
            waiting: BTreeMap::new(),
            finished: BTreeMap::new(),
            opening: VecDeque::new(),
            accepted_sessions: 0,
            dirty: rows::Dirty::default(),
            restating: false,
            held: Held::default(),
            asked: 0,
        }
    }

    /// The applied counters.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// Rows it has.
    #[must_use]
    pub fn row_count(&self) -> u64 {
        (1 + self.sessions.len() + self.open.len() + self.finished.len()) as u64
    }

    /// When [`Coordinator::tick`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonotonicMs> {
        self.open.next_deadline()
    }
}

impl Session {
    /// The decision about one of its last transactions.
    #[must_use]
    pub fn decision(&self, id: TransactionId) -> Option<Decision> {
        self.recent
            .iter()
            .rev()
            .find(|(epoch, number, _)| (*epoch, *number) == (id.epoch, id.number))
            .map(|(_, _, decision)| *decision)
    }

    /// Whether one that is not open has been decided, as far as is remembered.
    fn is_past(&self, id: TransactionId) -> bool {
        (id.epoch, id.number) <= self.low || self.decision(id).is_some()
    }

    fn remember(&mut self, id: TransactionId, decision: Decision) {
        if self.recent.len() >= RECENT
            && let Some((epoch, number, _)) = self.recent.pop_front()
        {
            self.low = self.low.max((epoch, number));
        }
        self.recent.push_back((id.epoch, id.number, decision));
    }
}

fn ids_of(producer: ProducerId) -> std::ops::RangeInclusive<TransactionId> {
    let id = |epoch, number| TransactionId {
        producer,
        epoch: ProducerEpoch(epoch),
        number: TransactionNumber(number),
    };
    id(0, 0)..=id(u32::MAX, u64::MAX)
}

fn check_name(name: &str) -> Result<(), Rejection> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(Rejection::InvalidName(
            "a transactional id has 1 to 200 bytes",
        ));
    }
    Ok(())
}

fn check_group(group: &str) -> Result<(), Rejection> {
    if group.len() > NAME_BYTES_MAX {
        return Err(Rejection::InvalidName(
            "a producer group's name has at most 200 bytes",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

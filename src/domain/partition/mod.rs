//! The machine of one partition lane: acceptance, duplicates, what is visible, who waits for more.
//!
//! In: [`Append`], [`Read`], lookups, retention and restating requests, and applied entries.
//! Out: [`Effect`]s. `handle`-like methods decide and ask for entries; [`Partition::apply`] alone
//! changes what others see.
//!
//! - P1-P3 Producers: see [`producers`].
//! - P4 Offsets and numbers are dense, unique, never reused, in log order (they are stamped by the
//!   commit machine; `apply` checks that they continue).
//! - P5 Only applied records are visible, and a waiting read is answered as soon as there is one.
//! - P6 The start offset never falls.
//! - P7 Folding the log, or rows and the log behind them, gives the same applied state.
//! - P8 A snapshot holds the state as of its own place in the log: nothing of this partition lies between
//!   what it was made from and where it is stamped.
//!
//! What survives a crash: rows (head, index runs, producers) up to their folded sequence, and the log.

pub mod delayed;
mod fold;
pub mod index;
mod packed;
pub mod producers;
pub mod publication;
pub mod rows;
pub mod stored;

pub use self::delayed::{alarms_of, discard_transaction_draft, publish_transaction_draft};

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use self::delayed::{TimerAnswer, Timers};
use self::index::{BatchPlace, Found, Index};
use self::producers::{ProducerTable, StoredBatch, Verdict};
use self::publication::{Publication, PublishPlace};
use self::stored::{StoredPlace, Table};
use super::alarm::{self, Alarm};
use super::body::Body;
use super::entry::{AppliedEntry, Draft, EntryKind, PayloadFacts};
use super::id::{LogPosition, Offset, OwnerId, OwnerSequence, ProducerId, RecordNumber, Token};
use super::rejection::Rejection;
use super::time::WallMs;
use super::transaction::TransactionId;

/// Index entries one answer to a read carries at most.
pub const READ_BATCHES_MAX: usize = 256;

/// Limits of a partition, from configuration and topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Producers it keeps state for.
    pub producers_max: u32,
    /// A snapshot larger than this is not made: it would not fit a flush, and fence the partition.
    pub snapshot_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            producers_max: 1000,
            snapshot_bytes_max: 7 << 20,
        }
    }
}

/// Bounds of delayed records, of the topic and the broker together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimerLimits {
    /// Records of the partition that may wait for their time; none: as many as come.
    pub pending_max: Option<u64>,
    /// How far ahead, in milliseconds; none: as far as it goes.
    pub delay_max_ms: Option<u64>,
}

/// A producer's batch to store.
#[derive(Debug, Clone)]
pub struct Append {
    /// Answers go here.
    pub token: Token,
    /// The batch as it came.
    pub batch: Body,
    /// How many records it has; never 0.
    pub count: u32,
    /// What its header says.
    pub facts: PayloadFacts,
    /// The sender wants to hear that it was accepted, before it is durable.
    pub tell_accepted: bool,
    /// The wall clock: what is due already is published with the batch.
    pub now: WallMs,
    /// Bounds of delayed records.
    pub timers: TimerLimits,
    /// Entries of other owners that stand or fall with the batch: a transaction's registration.
    pub tied: Vec<(OwnerId, Draft)>,
}

/// Where to start reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// At this offset.
    Offset(Offset),
    /// At the first offset there is.
    Earliest,
    /// At the end.
    Latest,
    /// At the first record appended at or after this time.
    Time(WallMs),
}

/// A question for batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// Answers go here.
    pub token: Token,
    /// The first offset wanted.
    pub from: Offset,
    /// Stop once the batches sum up to this many bytes; at least one is given.
    pub bytes_max: u64,
    /// If there is nothing yet, answer when there is.
    pub wait: bool,
}

/// Batches found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadAnswer {
    /// Consecutive batches; the first holds the offset asked for. Empty only if nothing was there.
    pub batches: Vec<BatchPlace>,
    /// The first offset there is.
    pub start: Offset,
    /// One past the last visible offset.
    pub high_watermark: Offset,
}

/// Where a partition begins and ends, and what was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    /// The offset that was looked for.
    pub offset: Offset,
    /// The first offset there is.
    pub start: Offset,
    /// One past the last visible offset.
    pub high_watermark: Offset,
    /// One past the last offset that is on its way: the LogEndOffset.
    pub log_end: Offset,
    /// The next record number.
    pub next_number: RecordNumber,
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make these durable as one tied run; the token's owner hears of it from the log.
    Persist {
        /// Whom the receipt is for; none for the partition's own entries.
        token: Option<Token>,
        /// The partition's own entries.
        drafts: Vec<Draft>,
        /// Entries of other owners, behind them in the same run.
        tied: Vec<(OwnerId, Draft)>,
    },
    /// Tell the token's owner that its batch was accepted; it stays open for the receipt.
    Accepted(Token),
    /// Answer: stored before, or a repeat whose first has landed.
    Stored(Token, StoredBatch),
    /// Answer a read.
    Batches(Token, ReadAnswer),
    /// Answer a lookup.
    Found(Token, Bounds),
    /// Answer a refusal.
    Refuse(Token, Rejection),
    /// Fetch this run's row and bring it back with [`Partition::run_loaded`].
    LoadRun(Offset),
    /// Answer a question about delayed records.
    Timer(Token, TimerAnswer),
    /// Arm these alarms on the wall clock. The owner is for the shell to fill in.
    Arm {
        /// The alarms.
        alarms: Vec<Alarm>,
        /// Where the entry lies that armed them.
        position: LogPosition,
    },
    /// Give a batch of what was said due back to the wheel.
    Returned {
        /// Which.
        batch: u64,
        /// None: all of it is settled; otherwise say it again after so many milliseconds.
        again_ms: Option<u64>,
    },
    /// Fetch this row of bodies and bring it back with [`Partition::bodies_loaded`].
    LoadBodies(RecordNumber),
    /// These will be published soon, each at its time: their payloads may be read ahead.
    Ahead(Vec<(PublishPlace, WallMs)>),
}

/// The partition's own deltas: the body of its `State` entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delta {
    /// Records below are gone.
    StartOffset(Offset),
    /// Producers unused for too long are forgotten.
    ForgetProducers(Vec<ProducerId>),
    /// Stored records, by runs of numbers, are not wanted any more: cancelled.
    Dropped(Vec<(RecordNumber, u32)>),
    /// A delayed record is due at another time.
    Rescheduled {
        /// Which.
        number: RecordNumber,
        /// Which modification this is.
        version: u32,
        /// When it is due now.
        due: WallMs,
    },
    /// A transaction was rolled back: what it stored here is dropped.
    TransactionDropped(TransactionId),
}

/// The applied counters: the head row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Head {
    /// The last entry folded.
    pub sequence: OwnerSequence,
    /// The next record number.
    pub next_number: RecordNumber,
    /// One past the last visible offset: the high watermark.
    pub next_offset: Offset,
    /// The first offset that is kept.
    pub start_offset: Offset,
}

#[derive(Debug, Clone, Copy)]
enum Waiting {
    Read(Read),
    Lookup(Token, WallMs),
    /// Who asks for the offset of a record that was published: behind this offset it is looked for; whether
    /// that is all there is.
    Seek(Token, RecordNumber, Offset, bool),
    /// The same from a time on.
    SeekTime(Token, RecordNumber, WallMs),
}

/// One partition lane.
#[derive(Debug, Clone)]
pub struct Partition {
    head: Head,
    limits: Limits,
    index: Index,
    producers: ProducerTable,
    /// Reads at the end, answered by the next apply.
    waiting: Vec<Read>,
    /// Questions that wait for a run.
    loading: BTreeMap<Offset, Vec<Waiting>>,
    dirty_producers: BTreeSet<ProducerId>,
    gone_rows: Vec<rows::RowId>,
    dirty: bool,
    /// A start offset asked for and not yet applied.
    trimming: bool,
    /// Records accepted and not yet applied.
    accepted: u64,
    /// Own entries asked for and not yet applied.
    asked: u64,
    /// Records stored before they are published.
    stored: Table,
    /// What is under way about delayed ones.
    timers: Timers,
    /// A snapshot is wanted as soon as nothing is on its way; what is asked for meanwhile is held (P8).
    restating: bool,
    held: Vec<Held>,
    /// The sequence a snapshot on its way was made at.
    snapshot_of: Option<OwnerSequence>,
}

/// What waits for a snapshot.
#[derive(Debug, Clone)]
struct Held {
    token: Option<Token>,
    drafts: Vec<Draft>,
    tied: Vec<(OwnerId, Draft)>,
}

impl Partition {
    /// A partition nothing was ever written to.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            head: Head::default(),
            limits,
            index: Index::default(),
            producers: ProducerTable::default(),
            waiting: Vec::new(),
            loading: BTreeMap::new(),
            dirty_producers: BTreeSet::new(),
            gone_rows: Vec::new(),
            dirty: false,
            trimming: false,
            accepted: 0,
            asked: 0,
            stored: Table::default(),
            timers: Timers::default(),
            restating: false,
            held: Vec::new(),
            snapshot_of: None,
        }
    }

    /// The applied counters.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// Bytes in the log that its visible records take.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.index.bytes()
    }

    /// Decides about a batch.
    pub fn append(&mut self, append: Append, effects: &mut Vec<Effect>) {
        let Append {
            token,
            batch,
            count,
            facts,
            tell_accepted,
            now,
            timers,
            tied,
        } = append;
        let published = match self.published_at_once(&facts, count, now, timers) {
            Ok(published) => published,
            // It was taken when there was room; what is offered again is answered, whatever bounds say now.
            Err(_) if self.producers.has_passed(&facts) => false,
            Err(rejection) => return effects.push(Effect::Refuse(token, rejection)),
        };
        if facts.producer.0 != 0 {
            match self
                .producers
                .offer(&facts, count, token, self.limits.producers_max)
            {
                Ok(Verdict::Store) => {}
                Ok(Verdict::Waits) => return,
                Ok(Verdict::Repeat(stored)) => return effects.push(Effect::Stored(token, stored)),
                Err(rejection) => return effects.push(Effect::Refuse(token, rejection)),
            }
        }
        if tell_accepted {
            effects.push(Effect::Accepted(token));
        }
        // Undecided and delayed records are stored without an offset; others are published with it.
        let offsets = if published { count } else { 0 };
        self.accepted = self.accepted.saturating_add(u64::from(offsets));
        let draft = Draft {
            kind: EntryKind::Payload,
            numbers: count,
            offsets,
            body: batch,
            facts,
        };
        self.ask_tied(Some(token), vec![draft], tied, effects);
    }

    /// Asks for own entries, behind the snapshot if one is waiting for what is on its way (P8).
    fn ask(&mut self, token: Option<Token>, drafts: Vec<Draft>, effects: &mut Vec<Effect>) {
        self.ask_tied(token, drafts, Vec::new(), effects);
    }

    fn ask_tied(
        &mut self,
        token: Option<Token>,
        drafts: Vec<Draft>,
        tied: Vec<(OwnerId, Draft)>,
        effects: &mut Vec<Effect>,
    ) {
        if self.restating {
            return self.held.push(Held {
                token,
                drafts,
                tied,
            });
        }
        self.asked = self.asked.saturating_add(drafts.len() as u64);
        effects.push(Effect::Persist {
            token,
            drafts,
            tied,
        });
    }

    /// Answers with batches, now or when there are some (P5).
    pub fn read(&mut self, read: Read, effects: &mut Vec<Effect>) {
        let (start, end) = (self.head.start_offset, self.head.next_offset);
        if read.from < start || read.from > end {
            let rejection = Rejection::OffsetOutOfRange { start, end };
            return effects.push(Effect::Refuse(read.token, rejection));
        }
        if read.from == end && read.wait {
            return self.waiting.push(read);
        }
        match self.index.find(read.from) {
            Found::Batches(run, at) => {
                let batches = select(run.get(at..).unwrap_or_default(), read.bytes_max);
                effects.push(Effect::Batches(read.token, self.answer(batches)));
            }
            Found::Load(run) => self.wait_for_run(run, Waiting::Read(read), effects),
            // Damage took what is left: whatever comes next is the next there is.
            Found::Nothing if read.wait => self.waiting.push(read),
            Found::Nothing => effects.push(Effect::Batches(read.token, self.answer(Vec::new()))),
        }
    }

    /// Where a reader that starts here begins.
    pub fn lookup(&mut self, token: Token, from: ReadFrom, effects: &mut Vec<Effect>) {
        let (start, end) = (self.head.start_offset, self.head.next_offset);
        let found = match from {
            ReadFrom::Earliest => start,
            ReadFrom::Latest => end,
            ReadFrom::Offset(offset) if offset < start || offset > end => {
                let rejection = Rejection::OffsetOutOfRange { start, end };
                return effects.push(Effect::Refuse(token, rejection));
            }
            ReadFrom::Offset(offset) => offset,
            ReadFrom::Time(time) => match self.index.find_time(time) {
                Found::Batches(run, at) => run
                    .get(at)
                    .map_or(end, |batch| batch.first_offset)
                    .max(start),
                Found::Load(run) => {
                    return self.wait_for_run(run, Waiting::Lookup(token, time), effects);
                }
                Found::Nothing => end,
            },
        };
        effects.push(Effect::Found(
            token,
            Bounds {
                offset: found,
                start,
                high_watermark: end,
                log_end: Offset(end.0.saturating_add(self.accepted)),
                next_number: self.head.next_number,
            },
        ));
    }

    fn wait_for_run(&mut self, run: Offset, waiting: Waiting, effects: &mut Vec<Effect>) {
        let queue = self.loading.entry(run).or_default();
        if queue.is_empty() {
            effects.push(Effect::LoadRun(run));
        }
        queue.push(waiting);
    }

    /// Brings a run back, or the reason why it cannot be.
    pub fn run_loaded(
        &mut self,
        first: Offset,
        run: Result<Vec<BatchPlace>, Rejection>,
        effects: &mut Vec<Effect>,
    ) {
        let waiting = self.loading.remove(&first).unwrap_or_default();
        let belongs =
            |run: &[BatchPlace]| run.first().is_some_and(|batch| batch.first_offset == first);
        let failed = match run {
            Ok(batches) if belongs(&batches) && self.index.load(&batches) => None,
            Ok(_) => Some(Rejection::Damaged(format!(
                "the index run at offset {first} is missing from the views; restart the broker to rebuild it"
            ))),
            Err(rejection) => Some(rejection),
        };
        for waiting in waiting {
            match (&failed, waiting) {
                (
                    Some(why),
                    Waiting::Read(Read { token, .. })
                    | Waiting::Lookup(token, _)
                    | Waiting::Seek(token, ..)
                    | Waiting::SeekTime(token, _, _),
                ) => effects.push(Effect::Refuse(token, why.clone())),
                (None, Waiting::Read(read)) => self.read(read, effects),
                (None, Waiting::Lookup(token, time)) => {
                    self.lookup(token, ReadFrom::Time(time), effects);
                }
                (None, Waiting::Seek(token, number, from, whole)) => {
                    self.seek(token, number, from, whole, effects);
                }
                (None, Waiting::SeekTime(token, number, time)) => {
                    self.seek_time(token, number, time, effects);
                }
            }
        }
    }

    /// Forgets the waiting reads whose asker went away.
    pub fn forget_waiting(&mut self, is_gone: impl Fn(Token) -> bool) {
        self.waiting.retain(|read| !is_gone(read.token));
    }

    /// Asks for what retention takes (P6); nothing while an earlier request is on its way.
    pub fn retain(
        &mut self,
        now: WallMs,
        retention_ms: Option<u64>,
        retention_bytes: Option<u64>,
        effects: &mut Vec<Effect>,
    ) {
        if self.trimming {
            return;
        }
        let age = |ms: u64| WallMs(now.0.saturating_sub(i64::try_from(ms).unwrap_or(i64::MAX)));
        if let Some(start) = self.index.expired(retention_ms.map(age), retention_bytes)
            && start > self.head.start_offset
        {
            self.trimming = true;
            self.ask(None, vec![state(&Delta::StartOffset(start))], effects);
        }
    }

    /// Asks for producers unused since `before` to be forgotten.
    pub fn forget_producers(&mut self, before: WallMs, effects: &mut Vec<Effect>) {
        let unused = self.producers.unused_since(before);
        if !unused.is_empty() {
            self.ask(None, vec![state(&Delta::ForgetProducers(unused))], effects);
        }
    }

    /// Restates every row, so that older entries of this owner may leave the log. What is on its way
    /// would be stamped before the snapshot without being in it, so the snapshot waits for it to be
    /// applied, and what comes meanwhile waits for the snapshot: about one flush (P8).
    pub fn restate(&mut self, effects: &mut Vec<Effect>) {
        self.restating = true;
        self.restate_if_quiet(effects);
    }

    fn restate_if_quiet(&mut self, effects: &mut Vec<Effect>) {
        if !self.restating || self.asked > 0 {
            return;
        }
        self.restating = false;
        let drafts = rows::drafts(&self.head, &self.producers, &self.stored);
        let bytes: u64 = drafts
            .iter()
            .map(|draft| draft.body.len() as u64 + super::commit::ENTRY_OVERHEAD_BYTES)
            .sum();
        if bytes <= self.limits.snapshot_bytes_max {
            self.snapshot_of = Some(self.head.sequence);
            self.ask(None, drafts, effects);
        }
        for held in std::mem::take(&mut self.held) {
            self.ask_tied(held.token, held.drafts, held.tied, effects);
        }
    }

    /// The commit machine refused something of this incarnation: go back to the applied state.
    /// Tokens of what was on its way have been answered; those of repeats and of what was held here are
    /// answered here.
    pub fn reset(&mut self, effects: &mut Vec<Effect>) {
        self.trimming = false;
        self.accepted = 0;
        self.asked = 0;
        self.restating = false;
        self.snapshot_of = None;
        self.timers.reset(effects);
        let held = std::mem::take(&mut self.held)
            .into_iter()
            .filter_map(|held| held.token);
        let waiting = held.chain(self.producers.reset());
        effects.extend(waiting.map(|token| Effect::Refuse(token, Rejection::Retry)));
    }

    fn answer(&self, batches: Vec<BatchPlace>) -> ReadAnswer {
        ReadAnswer {
            batches,
            start: self.head.start_offset,
            high_watermark: self.head.next_offset,
        }
    }
}

fn select(batches: &[BatchPlace], bytes_max: u64) -> Vec<BatchPlace> {
    let mut bytes = 0u64;
    batches
        .iter()
        .take(READ_BATCHES_MAX)
        .take_while(|batch| {
            let room = bytes == 0 || bytes < bytes_max;
            bytes = bytes.saturating_add(batch.bytes());
            room
        })
        .copied()
        .collect()
}

fn state(delta: &Delta) -> Draft {
    Draft {
        kind: EntryKind::State,
        numbers: 0,
        offsets: 0,
        body: rows::encode(delta).into(),
        facts: PayloadFacts::default(),
    }
}

#[cfg(test)]
mod tests;

//! What a group is asked and tells: commands of sessions, what members hear, answers, effects.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::rejection::GroupRejection;
use super::subscription::{Start, SubscriptionChange, SubscriptionSpec};
use crate::domain::entry::Draft;
use crate::domain::id::{
    Generation, Lane, LeaseId, MemberId, Offset, OwnerId, PartitionId, PartitionIndex, Token,
    TopicId,
};
use crate::domain::partition::index::BatchPlace;
use crate::domain::rejection::Rejection;
use crate::domain::time::MonotonicMs;
use crate::domain::transaction::TransactionId;

/// The longest reason a nack may give, in bytes; longer ones are cut.
pub const REASON_BYTES_MAX: usize = 200;

/// When a record counts as consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Settle {
    /// When the member says so: at least once.
    #[default]
    OnAcknowledge,
    /// Durably before it is handed over: at most once.
    OnDelivery,
}

/// A member that wants records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// The subscriptions it consumes; one that is not there is made as it is written here.
    pub subscriptions: Vec<SubscriptionSpec>,
    /// Its own name; made by the broker where it is empty. A later session with the same name takes over
    /// from an earlier one, and in broadcast mode goes on where that was.
    pub name: String,
    /// How long its partitions are kept for it when its session ends, in milliseconds; 0 gives them
    /// away at once. Needs a name.
    pub grace_ms: u64,
    /// When what it gets counts as consumed.
    pub settle: Settle,
}

/// Records a lease covers, within one lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeasedRange {
    /// The lease.
    pub lease: LeaseId,
    /// The first record.
    pub first: Offset,
    /// How many.
    pub count: u32,
}

impl LeasedRange {
    /// The offsets, the end excluded.
    #[must_use]
    pub fn bounds(&self) -> (u64, u64) {
        let to = self.first.0.saturating_add(u64::from(self.count));
        (self.first.0, to)
    }
}

/// Which records are attached to a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attached {
    /// These; all of each must be leased to the member.
    Ranges(Vec<LeasedRange>),
    /// Everything leased to the member in this place below an offset; at least one record must be.
    UpTo {
        /// Where.
        place: PartitionId,
        /// One past the last.
        end: Offset,
    },
}

/// When a nacked record comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RetryAfter {
    /// As the subscription's backoff says.
    #[default]
    Policy,
    /// At once.
    Now,
    /// After so many milliseconds.
    Ms(u64),
    /// Never: to the dead letters at once.
    DeadLetter,
    /// It did not reach its member, through no fault of either: shortly, and not counted as an attempt.
    Undelivered,
    /// Nobody has looked at it: at once, to whoever is next, and not counted as an attempt. It is not listed,
    /// so nothing of this is durable. In order, all that the member has behind it goes with it.
    Unseen,
}

/// What is asked of a group. Every command is answered exactly once, under its token; what rests on the
/// disk is answered when it is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Become a member. Answered with [`Answer::Joined`]; [`MemberEvent`]s follow.
    Join(Join),
    /// Stop being one. What it holds comes to others at once.
    Leave {
        /// Who.
        member: MemberId,
    },
    /// The member's session ended without a word. Answered with nothing but [`Answer::Done`].
    Lost {
        /// Who.
        member: MemberId,
    },
    /// Records the member may be sent, beside those it was granted before. One lease may overdraw.
    Credit {
        /// Who.
        member: MemberId,
        /// Of which topic.
        topic: TopicId,
        /// Bytes of records as stored.
        bytes: u64,
        /// Records.
        records: u64,
    },
    /// Nothing more is to be sent, until credit is granted again: a pull's time is over. What was leased
    /// before the answer was sent before it. Answered with [`Answer::Done`].
    Withdraw {
        /// Who.
        member: MemberId,
        /// Of which topic.
        topic: TopicId,
    },
    /// These are consumed. Answered with [`Answer::Settled`] once durable.
    Acknowledge {
        /// Who.
        member: MemberId,
        /// Which.
        ranges: Vec<LeasedRange>,
    },
    /// Everything leased to the member in this place below `end` is consumed.
    AcknowledgeUpTo {
        /// Who.
        member: MemberId,
        /// Where.
        place: PartitionId,
        /// One past the last.
        end: Offset,
    },
    /// These are not consumed. Answered with [`Answer::Settled`] once durable. In exclusive and broadcast
    /// mode only the first of a range counts as refused, and what is behind it in its lease is given back
    /// with it: it comes again, in order. Other leases behind it are lost, and told so.
    Refuse {
        /// Who.
        member: MemberId,
        /// Which.
        ranges: Vec<LeasedRange>,
        /// When they come again.
        after: RetryAfter,
        /// Why, for people; at most [`REASON_BYTES_MAX`] bytes are kept.
        reason: String,
    },
    /// More time is needed. Answered with [`Answer::Settled`] at once; a lease is memory.
    Extend {
        /// Who.
        member: MemberId,
        /// Which.
        leases: Vec<LeaseId>,
        /// From now on, in milliseconds; the subscription's lease where it is 0.
        lease_ms: u64,
    },
    /// The bytes of this lease cannot be read: retention took them, or the disk is damaged. They are
    /// counted as expired and never come again. Answered with [`Answer::Settled`].
    Unreadable {
        /// Who.
        member: MemberId,
        /// Which.
        lease: LeaseId,
    },
    /// These are consumed if and when the transaction commits: all of them, or the command is refused.
    /// Answered with [`Answer::Settled`] once the attachment is durable; then they are held until the
    /// decision, whatever becomes of the lease and of the member.
    Attach {
        /// Who.
        member: MemberId,
        /// Which.
        what: Attached,
        /// To what.
        transaction: TransactionId,
        /// Entries of others that stand or fall with the attachment: the coordinator's registration.
        tied: Vec<(OwnerId, Draft)>,
    },
    /// Make a subscription.
    Subscribe(SubscriptionSpec),
    /// Change one.
    Alter {
        /// Which.
        topic: TopicId,
        /// How.
        change: SubscriptionChange,
    },
    /// Remove one with its progress; its members hear [`MemberEvent::Unsubscribed`].
    Unsubscribe {
        /// Which.
        topic: TopicId,
    },
    /// Set where a live subscription goes on. Answered with [`Answer::Reset`].
    Reset {
        /// Which.
        topic: TopicId,
        /// Only this partition; all of the topic's where none is named.
        partition: Option<PartitionIndex>,
        /// Where to.
        to: ResetTo,
        /// Only say what would happen.
        dry_run: bool,
    },
    /// Which dead letters of this place are open, between two offsets. Answered with
    /// [`Answer::OpenLetters`].
    OpenLetters {
        /// Where.
        place: PartitionId,
        /// From here.
        from: Offset,
        /// Up to here.
        to: Offset,
    },
    /// Done with dead letters: those of them that are open, all in one tied run. Answered with
    /// [`Answer::LettersSettled`] once durable.
    SettleLetters {
        /// Where.
        place: PartitionId,
        /// The first record the place still has.
        start: Offset,
        /// Cleared: first offset and count.
        cleared: Vec<(Offset, u64)>,
        /// Brought back, each with the entries that do.
        returned: Vec<super::letters::Returned>,
    },
    /// What there is. Answered with [`Answer::Described`].
    Describe,
}

/// Where a reset goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetTo {
    /// To one of these.
    Start(Start),
    /// So many records forward, or back where it is negative.
    Shift(i64),
}

/// Records given to a member for a time: consecutive, of one batch, at the same attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its id, never given twice.
    pub id: LeaseId,
    /// Where the records are.
    pub place: PartitionId,
    /// The batch they are in, and where that lies in the log: who delivers reads it there.
    pub batch: BatchPlace,
    /// The first record.
    pub first: Offset,
    /// How many.
    pub count: u32,
    /// What they cost of the member's credit, in bytes.
    pub bytes: u64,
    /// How often they have been delivered, this time counted: from 1.
    pub attempt: u16,
    /// Under which assignment of the place.
    pub generation: Generation,
    /// For how long, from now; 0 where they are consumed already.
    pub lease_ms: u64,
}

/// What a member hears of its group, in the order it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberEvent {
    /// This place is the member's from now on: in exclusive and broadcast mode. In the others every
    /// member is sent records of every place, and hears nothing of this.
    Assigned {
        /// Which.
        place: PartitionId,
        /// Counts the assignments of this place.
        generation: Generation,
    },
    /// The place will be another's: nothing more of it is leased to the member. What it holds may still
    /// be settled for `drain_ms`, then it is the other's.
    Revoked {
        /// Which.
        place: PartitionId,
        /// The assignment that ends.
        generation: Generation,
        /// How long what is held may still be settled.
        drain_ms: u64,
    },
    /// Deliver these.
    Leased(Vec<Lease>),
    /// These are the member's no more: expired, reset, or behind a record that comes again. What has not
    /// been worked on need not be.
    Lost(Vec<LeaseId>),
    /// The subscription is gone, or its topic is: nothing more of it comes.
    Unsubscribed {
        /// Of which topic.
        topic: TopicId,
        /// Why.
        why: Rejection,
    },
    /// Not a member any more.
    Ended(Rejection),
}

/// One place of a subscription: see [`Answer::Described`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceStatus {
    /// Which.
    pub place: PartitionId,
    /// Whose, in broadcast mode; empty elsewhere.
    pub member: String,
    /// Who has it, in exclusive mode.
    pub assigned: Option<MemberId>,
    /// Everything below is consumed or listed.
    pub floor: Offset,
    /// Consumed records above the floor.
    pub settled_above: u64,
    /// Records that wait for their next attempt.
    pub retrying: u64,
    /// Records that wait for a transaction.
    pub attached: u64,
    /// Records that wait behind one of their key.
    pub held: u64,
    /// Of those that wait, the ones below the floor.
    pub listed_below: u64,
    /// Records members have.
    pub leased: u64,
    /// Records retention took before they were consumed, since the subscription was made.
    pub expired: u64,
    /// Records dead-lettered since the subscription was made.
    pub dead_lettered: u64,
    /// The end of the partition as the group last saw it.
    pub high_watermark: Offset,
}

impl PlaceStatus {
    /// Records not consumed yet, if the partition ends at `high_watermark`.
    #[must_use]
    pub fn lag(&self, high_watermark: Offset) -> u64 {
        (high_watermark.0.saturating_sub(self.floor.0))
            .saturating_sub(self.settled_above)
            .saturating_add(self.listed_below)
    }
}

/// A member: see [`Answer::Described`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its id.
    pub id: MemberId,
    /// Its name.
    pub name: String,
    /// The topics it consumes.
    pub topics: Vec<TopicId>,
    /// Records it has.
    pub leased: u64,
    /// It is away and may return.
    pub away: bool,
}

/// A group as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Description {
    /// Its subscriptions.
    pub subscriptions: Vec<SubscriptionSpec>,
    /// Its members.
    pub members: Vec<MemberStatus>,
    /// Its progress.
    pub places: Vec<PlaceStatus>,
}

/// What a reset does to one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaceReset {
    /// Which.
    pub place: PartitionId,
    /// Where it was.
    pub from: Offset,
    /// Where it is.
    pub to: Offset,
    /// The end of the partition.
    pub high_watermark: Offset,
    /// Records that come, up to the end of the partition as it was: those at or behind `to`.
    pub comes: u64,
    /// Records not consumed that do not come any more.
    pub skipped: u64,
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It joined.
    Joined {
        /// Its id, for as long as it is a member.
        member: MemberId,
        /// Its name.
        name: String,
        /// Its subscriptions as they are.
        subscriptions: Vec<SubscriptionSpec>,
    },
    /// Done.
    Done,
    /// Settled, durably, but for these.
    Settled(Vec<(LeaseId, GroupRejection)>),
    /// The subscription as it is.
    Subscription(SubscriptionSpec),
    /// What a reset did, or would do.
    Reset(Vec<PlaceReset>),
    /// Open dead letters: first offset and count.
    OpenLetters(Vec<(Offset, u64)>),
    /// So many dead letters were open and are settled, durably.
    LettersSettled(u64),
    /// The group.
    Described(Box<Description>),
}

/// Names a cursor of a group: one place of a subscription, and in broadcast mode one member's.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct CursorNumber(pub u64);

/// Records found for a cursor: of one batch, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    /// The batch.
    pub batch: BatchPlace,
    /// The first offset looked at; the batch's first unless the feed begins within it.
    pub from: Offset,
    /// The records of the batch from there on that pass the filter, if not all do, or if keys matter.
    pub records: Option<Vec<OfferedRecord>>,
}

/// One record the group may lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfferedRecord {
    /// Which.
    pub offset: Offset,
    /// The hash of its key; 0 for none.
    pub key_hash: u64,
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make these durable as one tied run; what is the group's own comes back through `apply`.
    Persist(Vec<(OwnerId, Draft)>),
    /// Answer a command.
    Reply(Token, Result<Answer, Rejection>),
    /// Tell a member.
    Tell(MemberId, MemberEvent),
    /// The token of a join is this member: what it is told goes where the join said.
    Welcome(Token, MemberId),
    /// Nobody listens to this member any more: drop its link.
    Dismiss(MemberId),
    /// Find records for the cursor and offer them, once.
    Feed(Feed),
    /// What was asked for the cursor is not wanted any more.
    StopFeed(CursorNumber),
    /// Find the batch of this one record and offer it: a listed one whose time has come.
    Fetch(Feed),
    /// Find where this place stands and say so with `looked_up`.
    Lookup {
        /// Answered under this.
        job: u64,
        /// Where.
        place: PartitionId,
        /// What to look for.
        start: Start,
    },
    /// Say the shape of this topic, now and whenever it changes, with `shape` or `topic_gone`.
    Watch(TopicId),
    /// Copy this record to the dead letters: find it, and call `dead_letter`.
    DeadLetter(DeadLetter),
    /// Say `wake` at this time of the monotonic clock, and at no earlier one asked for before; never, where
    /// there is none.
    WakeAt(Option<MonotonicMs>),
}

/// A search for records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feed {
    /// For which cursor.
    pub cursor: CursorNumber,
    /// Which search of this cursor: said again with what is found.
    pub round: u64,
    /// Where.
    pub place: PartitionId,
    /// From which offset.
    pub from: Offset,
    /// About so many bytes.
    pub bytes_max: u64,
    /// Which records are wanted, in the filter language; all where it is empty.
    pub filter: Arc<str>,
    /// Whether records are wanted one by one, with their keys.
    pub keys: bool,
    /// Whether it waits where there are none yet; otherwise it tells the end of the partition.
    pub wait: bool,
}

/// A record that has been tried for the last time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// For which cursor.
    pub cursor: CursorNumber,
    /// Where it is.
    pub place: PartitionId,
    /// Which.
    pub offset: Offset,
    /// The topic it goes to, by name; the group's own where there is none.
    pub to: Option<String>,
    /// How often it was delivered.
    pub attempts: u16,
    /// Why it was not consumed, the last time.
    pub reason: String,
}

/// A lane of a topic: which places a subscription has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicShape {
    /// The topic.
    pub topic: TopicId,
    /// How many partitions.
    pub partitions: u32,
    /// How many lanes each has, from 1.
    pub lanes: u8,
}

impl TopicShape {
    /// Its places, by partition and lane.
    pub fn places(&self) -> impl Iterator<Item = PartitionId> + use<> {
        let Self {
            topic,
            partitions,
            lanes,
        } = *self;
        (0..partitions).flat_map(move |partition| {
            (0..lanes).map(move |lane| PartitionId {
                topic,
                partition: PartitionIndex(partition),
                lane: Lane(lane),
            })
        })
    }
}

//! Membership in a consumer group: joining, what a member is sent, what it says of it.
//!
//! A member has one unidirectional stream from the broker, which carries everything it hears in the order
//! it happened: it begins with [`StreamOpen`](super::reader::StreamOpen) and ends with [`MemberEnd`].
//! What a member says goes over the control stream.
//!
//! Credit is counted in bytes and records per topic of the member, of what is leased: push is credit that
//! settling renews, pull is credit granted once and taken back with [`Withdraw`]. One lease may overdraw.

use serde::{Deserialize, Serialize};

use super::code::Refused;
use super::frame::header;
use super::group::Subscription;
use crate::domain::id::{Generation, Lane, LeaseId, Offset, PartitionIndex, TopicId};
use crate::domain::time::WallMs;

/// The most leases one acknowledgement, refusal or extension names: a header has at most 65 535 bytes.
pub const RANGES_MAX: usize = 2000;

/// Become a member of a group. Answered by [`Joined`]; the broker opens the member's stream before.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct JoinGroup {
    /// The member's number on this connection, the client's choice, from the same numbers as readers'.
    pub consumer: u64,
    /// The group; made if there is none.
    pub group: String,
    /// What it consumes; a subscription that is not there is made as written here.
    pub subscriptions: Vec<Subscription>,
    /// Its own name; made by the broker where it is empty.
    #[serde(default)]
    pub name: String,
    /// How long its partitions are kept for it when its session is lost, in milliseconds.
    #[serde(default)]
    pub grace_ms: u64,
    /// What is sent counts as consumed, durably, before it is sent.
    #[serde(default)]
    pub at_most_once: bool,
}
header!(JoinGroup, JoinGroup);

/// The answer to [`JoinGroup`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Joined {
    /// Its name.
    pub name: String,
    /// Its subscriptions as they are.
    pub subscriptions: Vec<Subscription>,
}
header!(Joined, Joined);

/// The member may be sent so much more of a topic. Unanswered. Positional.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GrantCredit {
    /// Which member.
    pub consumer: u64,
    /// Of which topic.
    pub topic: TopicId,
    /// Bytes.
    pub bytes: u64,
    /// Records.
    pub records: u64,
}
header!(GrantCredit, GrantCredit, positional);

/// Nothing more of a topic is wanted until credit is granted again. Answered on the member's stream by
/// [`Withdrawn`], behind everything that was leased before. Positional.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Withdraw {
    /// Which member.
    pub consumer: u64,
    /// Of which topic.
    pub topic: TopicId,
    /// Comes back in the answer.
    pub token: u64,
}
header!(Withdraw, Withdraw, positional);

/// Records of one lease. Positional.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LeaseRange {
    /// The lease.
    pub lease: LeaseId,
    /// The first record.
    pub first: Offset,
    /// How many.
    pub count: u32,
}

/// These are consumed. Answered by [`Settled`] once durable. Positional.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Acknowledge {
    /// Which member.
    pub consumer: u64,
    /// At most [`RANGES_MAX`].
    pub ranges: Vec<LeaseRange>,
}
header!(Acknowledge, Acknowledge, positional);

/// Everything leased to the member in this place below `end` is consumed. Answered by [`Settled`] once
/// durable. Positional.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AcknowledgeUpTo {
    /// Which member.
    pub consumer: u64,
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionIndex,
    /// The lane.
    pub lane: Lane,
    /// One past the last.
    pub end: Offset,
}
header!(AcknowledgeUpTo, AcknowledgeUpTo, positional);

/// When a refused record comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RetryAfter {
    /// As the subscription's backoff says.
    #[default]
    Policy,
    /// At once.
    Now,
    /// After so many milliseconds.
    Ms(u64),
    /// Never: to the dead letters at once.
    Dead,
    /// At once, to whoever is next, and not counted as an attempt: nobody has looked at them. Where they come
    /// in order, all that the member has behind them goes with them. Nothing of this is durable.
    Unseen,
}

/// These are not consumed. Answered by [`Settled`] once durable. Positional.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Nack {
    /// Which member.
    pub consumer: u64,
    /// At most [`RANGES_MAX`].
    pub ranges: Vec<LeaseRange>,
    /// When they come again.
    pub after: RetryAfter,
    /// Why, for people; at most 200 bytes are kept.
    pub reason: String,
}
header!(Nack, Nack, positional);

/// More time is needed. Answered by [`Settled`]. Positional.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExtendLeases {
    /// Which member.
    pub consumer: u64,
    /// At most [`RANGES_MAX`].
    pub leases: Vec<LeaseId>,
    /// From now on, in milliseconds; the subscription's lease where it is 0.
    pub lease_ms: u64,
}
header!(ExtendLeases, ExtendLeases, positional);

/// Answers what a member says of its leases: done, but for these. Positional.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Settled {
    /// Leases to which it was not done, each with the number of the code that says why.
    pub refused: Vec<(LeaseId, u16)>,
}
header!(Settled, Settled, positional);

/// Stop being a member: what it has comes to others at once. Answered by
/// [`GroupDone`](super::group::GroupDone); the stream ends with [`MemberEnd`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LeaveGroup {
    /// Which member.
    pub consumer: u64,
}
header!(LeaveGroup, LeaveGroup);

/// A place is the member's from now on: in exclusive and broadcast mode. In the others every member is
/// sent records of every place, and hears nothing of this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Assigned {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionIndex,
    /// The lane.
    #[serde(default)]
    pub lane: Lane,
    /// Counts the assignments of this place.
    pub generation: Generation,
}
header!(Assigned, Assigned);

/// The place will be another's. What the member holds of it may still be settled for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Revoked {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionIndex,
    /// The lane.
    #[serde(default)]
    pub lane: Lane,
    /// The assignment that ends.
    pub generation: Generation,
    /// How long what is held may still be settled, in milliseconds.
    pub drain_ms: u64,
}
header!(Revoked, Revoked);

/// One lease of a delivery. Positional.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LeaseHead {
    /// Its id.
    pub lease: LeaseId,
    /// The first record.
    pub first: Offset,
    /// How many.
    pub count: u32,
    /// How often they have been delivered, this time counted: from 1.
    pub attempt: u16,
    /// For how long, in milliseconds from now; 0 where they are consumed already.
    pub lease_ms: u64,
    /// What it costs of the member's credit in bytes, beside its records.
    pub bytes: u64,
}

/// Of records that were published after they were stored. Positional.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PublishedLater {
    /// When they were stored.
    pub stored: WallMs,
    /// When they were due, if they were delayed.
    pub due: Option<WallMs>,
}

/// Leased records of one place, in the body as a batch. Positional.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Leased {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionIndex,
    /// The lane.
    pub lane: Lane,
    /// Under which assignment of the place.
    pub generation: Generation,
    /// When they were appended.
    pub appended: WallMs,
    /// The offset of the body's first record, where the body is a batch as it is stored and may hold more
    /// than is leased. Where there is none it holds the leased records only, in the order of the leases.
    pub base: Option<Offset>,
    /// What is leased, ascending.
    pub leases: Vec<LeaseHead>,
    /// Where they were published after they were stored, as delayed records are when they fire: `appended`
    /// is when that was.
    #[serde(default)]
    pub published: Option<PublishedLater>,
    /// How much later than `appended` the records of each lease were appended, in milliseconds; may be
    /// negative. Left out where all were at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub later_ms: Vec<i64>,
}
header!(Leased, Leased, positional);

/// These leases are the member's no more; what of them has not been worked on need not be. Positional.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LeasesLost {
    /// Which.
    pub leases: Vec<LeaseId>,
}
header!(LeasesLost, LeasesLost, positional);

/// Answers [`Withdraw`]. Positional.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Withdrawn {
    /// As it was given.
    pub token: u64,
}
header!(Withdrawn, Withdrawn, positional);

/// The subscription is gone, or its topic is: nothing more of it comes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Unsubscribed {
    /// The topic.
    pub topic: TopicId,
    /// Why.
    pub refused: Refused,
}
header!(Unsubscribed, Unsubscribed);

/// The last frame of a member's stream.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemberEnd {
    /// Why, unless it left.
    #[serde(default)]
    pub refused: Option<Refused>,
}
header!(MemberEnd, MemberEnd);

/// Says on the control stream of a connection with a member that the broker is there: the transport's own
/// acknowledgement of it is what shows that the client is. Every 2 s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Heartbeat {}
header!(Heartbeat, Heartbeat);

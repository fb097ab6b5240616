//! Consumer groups as they are administered: subscriptions, progress, resets, dead letters.
//!
//! Topics are named by name: a group outlives nothing of a topic that was deleted and made again. Lists
//! travel as frame bodies, MessagePack arrays of maps.

use serde::{Deserialize, Serialize};

use super::frame::header;
pub use super::topic::At;
pub use crate::domain::group::subscription::{Backoff, Mode, Poison, RetryPolicy};
use crate::domain::id::{GroupId, Lane, Offset, PartitionIndex, TopicId};

/// How a group consumes a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// The topic, by name.
    pub topic: String,
    /// Its id; 0 in requests.
    #[serde(default)]
    pub topic_id: TopicId,
    /// Who gets which records.
    #[serde(default)]
    pub mode: Mode,
    /// Which records are wanted, in the filter language; all where it is empty.
    #[serde(default)]
    pub filter: String,
    /// Where it begins when it is made.
    #[serde(default = "earliest")]
    pub start: At,
    /// What happens to records that are not consumed at once; the default policy where it is absent.
    #[serde(default)]
    pub retry: Option<RetryPolicy>,
    /// How long a member has a record before it is given to another, in milliseconds; 0 is the default,
    /// 30 s.
    #[serde(default)]
    pub lease_ms: u64,
}

fn earliest() -> At {
    At::Earliest
}

impl Subscription {
    /// A shared subscription of all of a topic's records from the first on.
    #[must_use]
    pub fn new(topic: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            topic_id: TopicId(0),
            mode: Mode::default(),
            filter: String::new(),
            start: At::Earliest,
            retry: None,
            lease_ms: 0,
        }
    }
}

/// Make a subscription, and the group if there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSubscription {
    /// The group.
    pub group: String,
    /// The subscription.
    pub subscription: Subscription,
}
header!(CreateSubscription, CreateSubscription);

/// Change a subscription: what is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AlterSubscription {
    /// The group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// Another mode: leases are given back, progress stays.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// Another filter, for what has not been looked at yet.
    #[serde(default)]
    pub filter: Option<String>,
    /// Another policy.
    #[serde(default)]
    pub retry: Option<RetryPolicy>,
    /// Another lease, in milliseconds.
    #[serde(default)]
    pub lease_ms: Option<u64>,
}
header!(AlterSubscription, AlterSubscription);

/// Remove a subscription with its progress.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RemoveSubscription {
    /// The group.
    pub group: String,
    /// The topic.
    pub topic: String,
}
header!(RemoveSubscription, RemoveSubscription);

/// Answers the requests about one subscription: as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriptionOk {
    /// The subscription.
    pub subscription: Subscription,
}
header!(SubscriptionOk, SubscriptionOk);

/// Which groups there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ListGroups {}
header!(ListGroups, ListGroups);

/// The answer to [`ListGroups`]; body: a list of [`GroupInfo`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GroupsOk {
    /// How many the body lists.
    pub groups: u32,
}
header!(GroupsOk, GroupsOk);

/// A group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GroupInfo {
    /// Its name.
    pub name: String,
    /// Its id, never reused.
    pub id: GroupId,
}

/// A group with its subscriptions, members and progress.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DescribeGroup {
    /// The group.
    pub group: String,
}
header!(DescribeGroup, DescribeGroup);

/// The answer to [`DescribeGroup`]; body: a list of one [`GroupState`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GroupOk {
    /// The group.
    pub group: GroupInfo,
}
header!(GroupOk, GroupOk);

/// How a group stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GroupState {
    /// Its subscriptions.
    pub subscriptions: Vec<Subscription>,
    /// Its members.
    pub members: Vec<MemberInfo>,
    /// Its progress, by place.
    pub places: Vec<PlaceInfo>,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Its name.
    pub name: String,
    /// The topics it consumes.
    pub topics: Vec<String>,
    /// Records it has and has not settled.
    pub leased: u64,
    /// It is away and may return.
    #[serde(default)]
    pub away: bool,
}

/// Progress in one place: a partition, one of its lanes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlaceInfo {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: PartitionIndex,
    /// The lane.
    #[serde(default)]
    pub lane: Lane,
    /// Whose, in broadcast mode; who has it, in exclusive mode; else empty.
    #[serde(default)]
    pub member: String,
    /// Everything below is consumed or listed.
    pub floor: Offset,
    /// Consumed records above the floor.
    #[serde(default)]
    pub settled_above: u64,
    /// Records that wait for their next attempt.
    #[serde(default)]
    pub retrying: u64,
    /// Records that wait for a transaction.
    #[serde(default)]
    pub attached: u64,
    /// Records that wait behind one of their key.
    #[serde(default)]
    pub held: u64,
    /// Records members have.
    #[serde(default)]
    pub leased: u64,
    /// Records retention took before they were consumed.
    #[serde(default)]
    pub expired: u64,
    /// Records dead-lettered.
    #[serde(default)]
    pub dead_lettered: u64,
    /// The end of the partition as the group last saw it.
    pub high_watermark: Offset,
    /// Records not consumed yet.
    pub lag: u64,
}

/// Where a reset goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResetTo {
    /// To a place.
    At(At),
    /// So many records forward, or back where it is negative.
    Shift(i64),
}

/// Set where a live subscription goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetGroup {
    /// The group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// Only this partition; all where it is absent.
    #[serde(default)]
    pub partition: Option<PartitionIndex>,
    /// Where to.
    pub to: ResetTo,
    /// Only say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}
header!(ResetGroup, ResetGroup);

/// The answer to [`ResetGroup`]; body: a list of [`PlaceReset`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResetOk {
    /// How many places the body lists.
    pub places: u32,
}
header!(ResetOk, ResetOk);

/// What a reset does to one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlaceReset {
    /// The partition.
    pub partition: PartitionIndex,
    /// The lane.
    #[serde(default)]
    pub lane: Lane,
    /// Where it was.
    pub from: Offset,
    /// Where it is.
    pub to: Offset,
    /// The end of the partition.
    pub high_watermark: Offset,
    /// Records that come, up to the end of the partition as it was.
    pub comes: u64,
    /// Records not consumed that do not come any more.
    pub skipped: u64,
}

/// Remove a group with all its subscriptions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeleteGroup {
    /// The group.
    pub group: String,
}
header!(DeleteGroup, DeleteGroup);

/// Answers requests that leave nothing to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GroupDone {}
header!(GroupDone, GroupDone);

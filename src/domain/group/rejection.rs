//! Why a group says no.

use std::fmt;

/// A refusal of a consumer group. Nothing of what was refused happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupRejection {
    /// No group of that name or id.
    UnknownGroup,
    /// The group has no subscription to that topic.
    UnknownSubscription,
    /// The subscription is another one than what was asked for: which part differs, and how.
    SubscriptionMismatch(String),
    /// The subscription exists already.
    SubscriptionExists,
    /// Not a member (any more): it never joined, left, was silent too long, or the group's actor was
    /// made anew. Join again.
    UnknownMember,
    /// A later session joined under the same name.
    MemberFenced,
    /// The group has as many members as it may.
    TooManyMembers {
        /// The bound.
        max: u32,
    },
    /// The group has as many subscriptions as it may.
    TooManySubscriptions {
        /// The bound.
        max: u32,
    },
    /// The lease is unknown, has expired, was given back, or is another member's.
    UnknownLease,
    /// The place has moved since: what was asked for rests on an old assignment.
    StaleGeneration,
    /// The filter does not parse, or is too large.
    InvalidFilter {
        /// The character at which it goes wrong, from 1.
        position: u32,
        /// What is wrong with it.
        why: String,
    },
    /// A setting of the subscription is out of its bounds.
    InvalidSubscription(String),
    /// So much of the group is scattered that no more may be: records that wait for a retry, a transaction
    /// or their key, or gaps between settled ones.
    ListFull {
        /// The bound, in records or ranges.
        max: u32,
    },
    /// The group is still in use: members are joined.
    GroupInUse {
        /// How many.
        members: u32,
    },
}

impl fmt::Display for GroupRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownGroup => f.write_str(
                "there is no such group: its first member or subscription makes it; see which there are with: waterwheel group list",
            ),
            Self::UnknownSubscription => f.write_str(
                "the group has no subscription to that topic; join it or make one with: waterwheel subscription create GROUP TOPIC",
            ),
            Self::SubscriptionMismatch(what) => write!(
                f,
                "the group's subscription is another one: {what}; join it as it is, or change it with: waterwheel subscription alter GROUP TOPIC --mode MODE --filter FILTER"
            ),
            Self::SubscriptionExists => f.write_str(
                "the group has a subscription to that topic; change it with: waterwheel subscription alter GROUP TOPIC",
            ),
            Self::UnknownMember => f.write_str("not a member of the group (any more); join again"),
            Self::MemberFenced => f.write_str("a later session joined under this member's name"),
            Self::TooManyMembers { max } => write!(f, "the group has {max} members, as many as it may: close some, or raise group_members_max"),
            Self::TooManySubscriptions { max } => write!(
                f,
                "the group has {max} subscriptions, as many as it may: remove one, or raise group_subscriptions_max"
            ),
            Self::UnknownLease => f.write_str(
                "the lease is unknown, has expired, was given back, or is another member's: what was not settled before comes again",
            ),
            Self::StaleGeneration => f.write_str("the partition has moved to another member since"),
            Self::InvalidFilter { position, why } => {
                write!(f, "the filter cannot be used: {why}, at character {position}")
            }
            Self::InvalidSubscription(why) => f.write_str(why),
            Self::ListFull { max } => write!(
                f,
                "as much of the group is scattered as may be ({max}): records that wait for a retry, a transaction or their key, or gaps between settled ones; settle some first"
            ),
            Self::GroupInUse { members } => {
                let s = if *members == 1 { "" } else { "s" };
                write!(f, "the group has {members} member{s}; close them first")
            }
        }
    }
}

//! Stable codes: why a request was refused.
//!
//! Number and name of a code never change; a number that is not known here is kept as it came
//! ([`Refused::code`] is then `Internal`, the number stays in [`Refused::number`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::frame::header;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal, $retriable:literal;)*) => {
        /// Why a request was refused, with a number and a name that never change.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$doc])* $name = $number,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The code a number stands for, if it is known.
            #[must_use]
            pub fn from_u16(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Its name, as printed and logged.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// Whether the same request may be accepted later, unchanged.
            #[must_use]
            pub fn is_retriable(self) -> bool {
                match self {
                    $(Self::$name => $retriable,)*
                }
            }
        }
    };
}

codes! {
    /// No topic of that name or id.
    UnknownTopic = 1, "unknown-topic", false;
    /// A topic of that name is there already.
    TopicExists = 2, "topic-exists", false;
    /// Not a name a topic may have.
    InvalidName = 3, "invalid-name", false;
    /// A configuration that is out of bounds or contradicts itself.
    InvalidConfig = 4, "invalid-config", false;
    /// The topic has no such partition or lane.
    PartitionOutOfRange = 5, "partition-out-of-range", false;
    /// The number of partitions of a keyed topic cannot change: keys would move.
    KeyedTopic = 6, "keyed-topic", false;
    /// The partition does not have that offset (any more, or yet).
    OffsetOutOfRange = 7, "offset-out-of-range", false;
    /// The body is not a batch.
    BatchMalformed = 8, "batch-malformed", false;
    /// A checksum of the batch does not hold.
    BatchChecksum = 9, "batch-checksum", false;
    /// The batch is larger than the broker takes.
    BatchTooLarge = 10, "batch-too-large", false;
    /// A batch version or compression the broker does not read.
    UnsupportedBatchVersion = 11, "unsupported-batch-version", false;
    /// The bytes are no frame, or the header is not its kind's.
    FrameMalformed = 12, "frame-malformed", false;
    /// The frame is larger than the broker takes.
    FrameTooLarge = 13, "frame-too-large", false;
    /// A request the broker does not know.
    Unsupported = 14, "unsupported", false;
    /// The first request must be `Hello`.
    HelloRequired = 15, "hello-required", false;
    /// The batch does not follow the producer's last one.
    SequenceGap = 16, "sequence-gap", false;
    /// The broker does not know the producer any more, so it cannot tell a repeat from a new batch.
    ProducerStateLost = 17, "producer-state-lost", false;
    /// A later session of the same producer has taken over.
    ProducerFenced = 18, "producer-fenced", false;
    /// The partition remembers as many producers as it may.
    TooManyProducers = 19, "too-many-producers", true;
    /// The connection has as many readers as it may.
    TooManyReaders = 20, "too-many-readers", false;
    /// The broker has as many connections as it may.
    TooManyConnections = 21, "too-many-connections", true;
    /// The connection has a reader of that id already.
    ReaderExists = 22, "reader-exists", false;
    /// More credit than a connection may have outstanding.
    CreditExceeded = 23, "credit-exceeded", false;
    /// Too much at once: again after the time given.
    Throttled = 24, "throttled", true;
    /// Not accepted this time, for a reason that passes; send it again.
    Retry = 25, "retry", true;
    /// Another node leads the partition.
    NotLeader = 26, "not-leader", true;
    /// The leader epoch of the request is not the partition's.
    StaleEpoch = 27, "stale-epoch", true;
    /// A write to the log failed: nothing is accepted until the broker is restarted.
    LogSealed = 28, "log-sealed", false;
    /// There is no room for new records on the disk.
    DiskFull = 29, "disk-full", true;
    /// The partition's actor failed too often and was stopped.
    OwnerStopped = 30, "owner-stopped", true;
    /// The records asked for are damaged on the disk.
    Damaged = 31, "damaged", false;
    /// The broker is shutting down.
    ShuttingDown = 32, "shutting-down", true;
    /// A fault in the broker; its log says more.
    Internal = 33, "internal", false;
    /// As many delayed records wait in the partition as the topic or the broker allows.
    TooManyTimers = 40, "too-many-timers", true;
    /// Due farther ahead than the topic or the broker allows.
    DelayTooLong = 41, "delay-too-long", false;
    /// A batch with both delayed and immediate records.
    MixedDelivery = 42, "mixed-delivery", false;
    /// No consumer group of that name or id.
    UnknownGroup = 50, "unknown-group", false;
    /// The group has no subscription to that topic.
    UnknownSubscription = 51, "unknown-subscription", false;
    /// The group's subscription has another mode or filter than was asked for.
    SubscriptionMismatch = 52, "subscription-mismatch", false;
    /// The group has a subscription to that topic already.
    SubscriptionExists = 53, "subscription-exists", false;
    /// Not a member of the group (any more): join again.
    UnknownMember = 54, "unknown-member", true;
    /// A later session joined under the same member name.
    MemberFenced = 55, "member-fenced", false;
    /// The group has as many members as it may.
    TooManyMembers = 56, "too-many-members", true;
    /// The lease is unknown, has expired, was given back, or is another member's.
    UnknownLease = 57, "unknown-lease", false;
    /// The partition has moved to another member since.
    StaleGeneration = 58, "stale-generation", false;
    /// The filter does not parse, or is too large.
    InvalidFilter = 59, "invalid-filter", false;
    /// A setting of the subscription is out of its bounds.
    InvalidSubscription = 60, "invalid-subscription", false;
    /// As many records of the subscription wait as may: some must be settled first.
    ListFull = 61, "list-full", true;
    /// The group cannot be removed while members are joined.
    GroupInUse = 62, "group-in-use", true;
    /// The group has as many subscriptions as it may.
    TooManySubscriptions = 63, "too-many-subscriptions", true;
    /// No such transaction, or not any more.
    TransactionUnknown = 70, "transaction-unknown", false;
    /// The transaction was decided otherwise, or before this came.
    TransactionDecided = 71, "transaction-decided", false;
    /// A bound on transactions is reached.
    TransactionLimit = 72, "transaction-limit", true;
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The answer to any request: no, and why.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Refused {
    /// The code's number.
    #[serde(rename = "code")]
    pub number: u16,
    /// What happened and what to do, for people.
    #[serde(default)]
    pub message: String,
    /// When to try again, in milliseconds from now.
    #[serde(default)]
    pub after_ms: Option<u64>,
    /// What a program may want to know beside the code, e.g. `node` with `not-leader`.
    #[serde(default)]
    pub detail: BTreeMap<String, String>,
}

header!(Refused, Refused);

impl Refused {
    /// A refusal with a code and a message.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            number: code as u16,
            message: message.into(),
            ..Self::default()
        }
    }

    /// Says when to try again.
    #[must_use]
    pub fn after_ms(mut self, after_ms: u64) -> Self {
        self.after_ms = Some(after_ms);
        self
    }

    /// Adds a detail.
    #[must_use]
    pub fn detail(mut self, name: &str, value: impl ToString) -> Self {
        self.detail.insert(name.to_owned(), value.to_string());
        self
    }

    /// The code; `Internal` where the number is a later version's.
    #[must_use]
    pub fn code(&self) -> Code {
        Code::from_u16(self.number).unwrap_or(Code::Internal)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_stable() {
        let numbers: BTreeSet<u16> = Code::ALL.iter().map(|code| *code as u16).collect();
        let names: BTreeSet<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(numbers.len(), Code::ALL.len());
        assert_eq!(names.len(), Code::ALL.len());
        let blocks = (1..=33).chain(40..=42).chain(50..=63).chain(70..=72);
        assert_eq!(
            numbers,
            blocks.collect(),
            "a new code takes the next number of its block"
        );
        for code in Code::ALL {
            assert_eq!(Code::from_u16(*code as u16), Some(*code));
            assert!(
                code.name()
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c == '-')
            );
        }
        assert_eq!(Code::from_u16(0), None);
        // A few anchors: whoever renumbers the table breaks these.
        assert_eq!(Code::UnknownTopic as u16, 1);
        assert_eq!(Code::SequenceGap as u16, 16);
        assert_eq!(Code::Retry as u16, 25);
        assert_eq!(Code::Internal.name(), "internal");
    }

    #[test]
    fn a_later_versions_number_is_kept() {
        let refused = Refused {
            number: 900,
            ..Refused::default()
        };
        assert_eq!(refused.code(), Code::Internal);
        assert!(!refused.code().is_retriable());
    }
}

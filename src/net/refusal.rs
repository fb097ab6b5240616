//! What a machine's refusal is called on the wire.

use crate::domain::batch::BatchError;
use crate::domain::group::rejection::GroupRejection;
use crate::domain::rejection::Rejection;
use crate::domain::topics::check_name;
use crate::wire::code::{Code, Refused};

/// The refusal as a frame says it.
#[must_use]
pub(super) fn refused(rejection: &Rejection) -> Refused {
    let refused = Refused::new(code(rejection), rejection.to_string());
    match rejection {
        Rejection::SequenceGap { expected } => refused.detail("expected", expected),
        Rejection::ProducerFenced { current } => refused.detail("epoch", current),
        Rejection::Throttled { after_ms } => refused.after_ms(u64::from(*after_ms)),
        Rejection::DiskFull => refused.after_ms(1000),
        Rejection::OffsetOutOfRange { start, end } => refused
            .detail("start_offset", start)
            .detail("high_watermark", end),
        Rejection::PartitionOutOfRange { partitions } => refused.detail("partitions", partitions),
        Rejection::TooLarge { bytes_max } => refused.detail("bytes_max", bytes_max),
        Rejection::TooManyProducers { max } => refused.after_ms(1000).detail("max", max),
        Rejection::TooManyTimers { max } => refused.after_ms(1000).detail("max", max),
        Rejection::DelayTooLong { max_ms } => refused.detail("max_ms", max_ms),
        Rejection::Group(rejection) => group_detail(refused, rejection),
        Rejection::TransactionDecided { stands } => refused.detail("stands", stands),
        Rejection::TransactionLimit { max, .. } => refused.after_ms(1000).detail("max", max),
        Rejection::ProducerStateLost
        | Rejection::TransactionUnknown
        | Rejection::Retry
        | Rejection::UnknownTopic
        | Rejection::TopicExists
        | Rejection::InvalidName(_)
        | Rejection::InvalidConfig(_)
        | Rejection::KeyedTopic
        | Rejection::LogSealed
        | Rejection::OwnerStopped(_)
        | Rejection::Damaged(_)
        | Rejection::MixedDelivery
        | Rejection::ShuttingDown => refused,
    }
}

fn code(rejection: &Rejection) -> Code {
    match rejection {
        Rejection::SequenceGap { .. } => Code::SequenceGap,
        Rejection::ProducerStateLost => Code::ProducerStateLost,
        Rejection::ProducerFenced { .. } => Code::ProducerFenced,
        Rejection::TooManyProducers { .. } => Code::TooManyProducers,
        Rejection::Throttled { .. } => Code::Throttled,
        Rejection::Retry => Code::Retry,
        Rejection::OffsetOutOfRange { .. } => Code::OffsetOutOfRange,
        Rejection::UnknownTopic => Code::UnknownTopic,
        Rejection::PartitionOutOfRange { .. } => Code::PartitionOutOfRange,
        Rejection::TopicExists => Code::TopicExists,
        Rejection::InvalidName(_) => Code::InvalidName,
        Rejection::InvalidConfig(_) => Code::InvalidConfig,
        Rejection::KeyedTopic => Code::KeyedTopic,
        Rejection::LogSealed => Code::LogSealed,
        Rejection::DiskFull => Code::DiskFull,
        Rejection::OwnerStopped(_) => Code::OwnerStopped,
        Rejection::Damaged(_) => Code::Damaged,
        Rejection::TooLarge { .. } => Code::BatchTooLarge,
        Rejection::TransactionUnknown => Code::TransactionUnknown,
        Rejection::TransactionDecided { .. } => Code::TransactionDecided,
        Rejection::TransactionLimit { .. } => Code::TransactionLimit,
        Rejection::ShuttingDown => Code::ShuttingDown,
        Rejection::TooManyTimers { .. } => Code::TooManyTimers,
        Rejection::DelayTooLong { .. } => Code::DelayTooLong,
        Rejection::MixedDelivery => Code::MixedDelivery,
        Rejection::Group(rejection) => group_code(rejection),
    }
}

fn group_detail(refused: Refused, rejection: &GroupRejection) -> Refused {
    match rejection {
        GroupRejection::InvalidFilter { position, .. } => refused.detail("position", position),
        GroupRejection::TooManyMembers { max }
        | GroupRejection::TooManySubscriptions { max }
        | GroupRejection::ListFull { max } => refused.after_ms(1000).detail("max", max),
        GroupRejection::GroupInUse { members } => refused.detail("members", members),
        GroupRejection::UnknownGroup
        | GroupRejection::UnknownSubscription
        | GroupRejection::SubscriptionMismatch(_)
        | GroupRejection::SubscriptionExists
        | GroupRejection::UnknownMember
        | GroupRejection::MemberFenced
        | GroupRejection::UnknownLease
        | GroupRejection::StaleGeneration
        | GroupRejection::InvalidSubscription(_) => refused,
    }
}

fn group_code(rejection: &GroupRejection) -> Code {
    match rejection {
        GroupRejection::UnknownGroup => Code::UnknownGroup,
        GroupRejection::UnknownSubscription => Code::UnknownSubscription,
        GroupRejection::SubscriptionMismatch(_) => Code::SubscriptionMismatch,
        GroupRejection::SubscriptionExists => Code::SubscriptionExists,
        GroupRejection::UnknownMember => Code::UnknownMember,
        GroupRejection::MemberFenced => Code::MemberFenced,
        GroupRejection::TooManyMembers { .. } => Code::TooManyMembers,
        GroupRejection::TooManySubscriptions { .. } => Code::TooManySubscriptions,
        GroupRejection::UnknownLease => Code::UnknownLease,
        GroupRejection::StaleGeneration => Code::StaleGeneration,
        GroupRejection::InvalidFilter { .. } => Code::InvalidFilter,
        GroupRejection::InvalidSubscription(_) => Code::InvalidSubscription,
        GroupRejection::ListFull { .. } => Code::ListFull,
        GroupRejection::GroupInUse { .. } => Code::GroupInUse,
    }
}

/// A topic that is not there: whether it should be made, or is another's name misspelt, whoever asks knows. A
/// name that no topic can have is not
/// repeated: it may be of any length and hold anything.
#[must_use]
pub(super) fn unknown_topic(name: &str) -> Refused {
    if check_name(name).is_err() {
        return Refused::new(
            Code::UnknownTopic,
            "there is no topic of that name, nor can there be",
        );
    }
    Refused::new(Code::UnknownTopic, format!("there is no topic '{name}'")).detail("topic", name)
}

/// A batch that is none.
#[must_use]
pub(super) fn bad_batch(error: &BatchError) -> Refused {
    let code = if error.is_checksum() {
        Code::BatchChecksum
    } else if error.is_unsupported() {
        Code::UnsupportedBatchVersion
    } else {
        Code::BatchMalformed
    };
    Refused::new(code, error.to_string())
}

//! Acknowledging: what a consumer says of its records, and how that went.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::delivery::Delivery;
use super::error::Refusal;
use super::leased::{Hand, LeaseTag};
use super::membership::{Outcome, Say, Verdict};
use crate::domain::transaction::TransactionId;
use crate::wire::code::Code;
use crate::wire::consume::RetryAfter;

/// Why settling a record did not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettleError {
    /// The record is not the consumer's any more: its lease expired, its partition moved to another member, or
    /// the connection was lost. It comes again, here or elsewhere; if it was settled before or just then, it
    /// does not. The consumer goes on. Code `unknown-lease`.
    #[error(
        "the lease is over: the record was settled already, or the lease expired or was lost with the partition or the connection, and then the record comes again"
    )]
    Lost,
    /// The record was not delivered by this consumer group. Code `not-leased`.
    #[error("the record was not delivered by a consumer group: there is nothing to settle")]
    NotLeased,
    /// The broker said no. Its code.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The answer makes no sense. Code `protocol`.
    #[error("the broker's answer cannot be read: {0}")]
    Protocol(String),
}

impl SettleError {
    pub(super) fn of(code: Option<Code>) -> Self {
        match code {
            // A partition that has moved on takes its leases with it.
            Some(Code::UnknownLease | Code::StaleGeneration) | None => Self::Lost,
            Some(code) => Self::Refused(Refusal {
                code,
                message: "the record could not be settled".to_owned(),
                after_ms: None,
            }),
        }
    }

    pub(super) fn refused(refusal: &Refusal) -> Self {
        match Self::of(Some(refusal.code)) {
            Self::Refused(_) => Self::Refused(refusal.clone()),
            other @ (Self::Lost | Self::NotLeased | Self::Protocol(_)) => other,
        }
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Lost => Code::UnknownLease.name(),
            Self::NotLeased => "not-leased",
            Self::Refused(refusal) => refusal.code.name(),
            Self::Protocol(_) => "protocol",
        }
    }

    /// Whether saying the same again may count: never: it counted already, or the record comes again instead.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        false
    }
}

/// What was said of records, on its way: await it to hear that it is durable.
///
/// It was said when this was made; dropping it changes nothing but that nobody hears how it went.
#[derive(Debug)]
pub struct Settlement(Waiting);

#[derive(Debug)]
enum Waiting {
    Answer(oneshot::Receiver<Result<(), SettleError>>),
    Known(Option<Result<(), SettleError>>),
}

impl Future for Settlement {
    type Output = Result<(), SettleError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            // Whoever would answer is gone with the session.
            Waiting::Answer(answer) => Pin::new(answer)
                .poll(context)
                .map(|answer| answer.unwrap_or(Err(SettleError::Lost))),
            Waiting::Known(known) => Poll::Ready(known.take().unwrap_or(Err(SettleError::Lost))),
        }
    }
}

impl Settlement {
    fn known(result: Result<(), SettleError>) -> Self {
        Self(Waiting::Known(Some(result)))
    }

    /// The answer, where nothing had to be said to get it.
    pub(super) fn answered(&mut self) -> Option<Result<(), SettleError>> {
        match &mut self.0 {
            Waiting::Answer(_) => None,
            Waiting::Known(known) => known.take(),
        }
    }
}

/// Settles the records of one consumer, from wherever they are worked on. Cheap to clone.
///
/// Everything here is said at once, without waiting; awaiting the [`Settlement`] says when it is durable.
/// Records of one poll are put together into one frame.
#[derive(Debug, Clone)]
pub struct Settler {
    say: mpsc::UnboundedSender<Say>,
    hand: Arc<Hand>,
}

impl Settler {
    pub(super) fn new(say: mpsc::UnboundedSender<Say>, hand: Arc<Hand>) -> Self {
        Self { say, hand }
    }

    /// The record is consumed.
    pub fn ack(&self, delivery: &Delivery) -> Settlement {
        self.settle(delivery, Verdict::Consumed)
    }

    /// These records are consumed. The settlement is that of the last; an earlier one that does not count
    /// comes again.
    pub fn ack_batch<'a>(&self, deliveries: impl IntoIterator<Item = &'a Delivery>) -> Settlement {
        let mut deliveries = deliveries.into_iter().peekable();
        while let Some(delivery) = deliveries.next() {
            if deliveries.peek().is_none() {
                return self.ack(delivery);
            }
            self.say_quietly(delivery, Verdict::Consumed);
        }
        Settlement::known(Ok(()))
    }

    /// The record is consumed, and every one before it in its partition (and priority level) that this
    /// consumer has.
    pub fn ack_cumulative(&self, delivery: &Delivery) -> Settlement {
        let (partition, end) = (delivery.partition, delivery.offset + 1);
        self.with_lease(delivery, |tag, outcome| Say::UpTo {
            tag,
            partition,
            end,
            outcome: Some(outcome),
        })
    }

    /// The record could not be consumed: it comes again as the subscription's backoff says.
    pub fn nack(&self, delivery: &Delivery, reason: &str) -> Settlement {
        self.settle(
            delivery,
            Verdict::Not(RetryAfter::Policy, reason.to_owned()),
        )
    }

    /// The same, but it comes again after `after`, at once where that is zero.
    pub fn nack_after(&self, delivery: &Delivery, reason: &str, after: Duration) -> Settlement {
        let after = match u64::try_from(after.as_millis()).unwrap_or(u64::MAX) {
            0 => RetryAfter::Now,
            ms => RetryAfter::Ms(ms),
        };
        self.settle(delivery, Verdict::Not(after, reason.to_owned()))
    }

    /// The record will never be consumed: it goes to the dead letters at once.
    pub fn reject(&self, delivery: &Delivery, reason: &str) -> Settlement {
        self.settle(delivery, Verdict::Not(RetryAfter::Dead, reason.to_owned()))
    }

    /// The record takes longer: it is the consumer's for `lease` from now on; for as long as the
    /// subscription gives by default where that is zero. Records of one lease are extended together.
    pub fn extend(&self, delivery: &Delivery, lease: Duration) -> Settlement {
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        self.with_lease(delivery, |tag, outcome| Say::Extend {
            tags: vec![tag],
            lease_ms,
            outcome: Some(outcome),
        })
    }

    /// The records are consumed if and when the transaction commits.
    pub(super) fn attach<'a>(
        &self,
        transaction: TransactionId,
        deliveries: impl IntoIterator<Item = &'a Delivery>,
    ) -> Settlement {
        let mut records = Vec::new();
        for delivery in deliveries {
            match delivery.lease {
                Some(tag) if !tag.is_settled => records.push((tag, delivery.offset)),
                Some(_) | None => return Settlement::known(Err(SettleError::NotLeased)),
            }
        }
        if records.is_empty() {
            return Settlement::known(Ok(()));
        }
        let (outcome, answer) = oneshot::channel();
        let _ = self.say.send(Say::Attach {
            transaction,
            records,
            outcome,
        });
        Settlement(Waiting::Answer(answer))
    }

    /// The record, and every one before it in its partition and level that the consumer has.
    pub(super) fn attach_up_to(
        &self,
        transaction: TransactionId,
        delivery: &Delivery,
    ) -> Settlement {
        let end = delivery.offset + 1;
        if delivery.lease.is_some_and(|tag| tag.is_settled) {
            return Settlement::known(Err(SettleError::NotLeased));
        }
        self.with_lease(delivery, |tag, outcome| Say::AttachUpTo {
            transaction,
            tag,
            end,
            outcome,
        })
    }

    pub(super) fn extend_all(&self, tags: Vec<LeaseTag>) {
        let _ = self.say.send(Say::Extend {
            tags,
            lease_ms: 0,
            outcome: None,
        });
    }

    pub(super) fn settle(&self, delivery: &Delivery, verdict: Verdict) -> Settlement {
        let offset = delivery.offset;
        self.with_lease(delivery, |tag, outcome| {
            self.note(tag, offset, &verdict);
            Say::Settle {
                tag,
                offset,
                verdict,
                outcome: Some(outcome),
            }
        })
    }

    /// The same without anybody who hears how it went.
    pub(super) fn say_quietly(&self, delivery: &Delivery, verdict: Verdict) {
        if let Some(tag) = delivery.lease.filter(|tag| !tag.is_settled) {
            self.say_of(tag, delivery.offset, verdict);
        }
    }

    fn note(&self, tag: LeaseTag, offset: u64, verdict: &Verdict) {
        match verdict {
            Verdict::Consumed => {}
            Verdict::Not(..) => self.hand.refuse(tag, offset),
        }
    }

    /// A record that was taken back is not worked on: its credit is free again.
    pub(super) fn pass_over(&self, tag: LeaseTag) {
        let _ = self.say.send(Say::Taken(vec![tag]));
    }

    pub(super) fn say_of(&self, tag: LeaseTag, offset: u64, verdict: Verdict) {
        self.note(tag, offset, &verdict);
        let _ = self.say.send(Say::Settle {
            tag,
            offset,
            verdict,
            outcome: None,
        });
    }

    fn with_lease(
        &self,
        delivery: &Delivery,
        say: impl FnOnce(LeaseTag, Outcome) -> Say,
    ) -> Settlement {
        let Some(tag) = delivery.lease else {
            return Settlement::known(Err(SettleError::NotLeased));
        };
        if tag.is_settled {
            return Settlement::known(Ok(()));
        }
        let (outcome, answer) = oneshot::channel();
        // A task that is gone drops the sender, which answers.
        let _ = self.say.send(say(tag, outcome));
        Settlement(Waiting::Answer(answer))
    }
}

//! The states of a transaction and which may follow which.
//!
//! ```text
//!            half, attach            end, timeout, fencing, check-back
//!  (none) ──────────────> Open ──────────────────────────────────────> Deciding
//!                          ^                                             │   │
//!                          └──────────── the log refused it ─────────────┘   │ durable
//!                                                                            v
//!                                                              Decided (for ever)
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::domain::id::{ProducerEpoch, ProducerId, TransactionNumber};

/// Names one transaction for ever: the session that began it and the session's own count. Its text form
/// is the three numbers with dots between.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct TransactionId {
    /// The session's producer id.
    pub producer: ProducerId,
    /// The session's epoch.
    pub epoch: ProducerEpoch,
    /// The session's count, from 1.
    pub number: TransactionNumber,
}

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.producer, self.epoch, self.number)
    }
}

/// The text is not three numbers with dots between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a transaction's name: it is three numbers with dots between, as `transaction list` prints them"
)]
pub struct NotATransaction;

impl FromStr for TransactionId {
    type Err = NotATransaction;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('.');
        let mut next = || parts.next().ok_or(NotATransaction);
        let (producer, epoch, number) = (next()?, next()?, next()?);
        if parts.next().is_some() {
            return Err(NotATransaction);
        }
        Ok(Self {
            producer: ProducerId(producer.parse().map_err(|_| NotATransaction)?),
            epoch: ProducerEpoch(epoch.parse().map_err(|_| NotATransaction)?),
            number: TransactionNumber(number.parse().map_err(|_| NotATransaction)?),
        })
    }
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Decision {
    /// All of it is published.
    Commit,
    /// None of it ever was.
    Rollback,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Commit => "committed",
            Self::Rollback => "rolled back",
        })
    }
}

/// Who decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum By {
    /// The session that began it.
    Producer,
    /// A producer of its group, asked for the outcome.
    CheckBack,
    /// A person.
    Operator,
    /// A later session of the same transactional id.
    Fencing,
    /// Nobody ended it within its duration.
    Timeout,
    /// Nobody knew the outcome, however often asked: it is `Expired`.
    Expiry,
}

/// Where a transaction stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Takes halves and attachments.
    Open,
    /// A decision is wanted: nothing more is let in; it waits for what was let through before, then for
    /// the disk.
    Deciding(Decision, By),
    /// Durable, for ever.
    Decided(Decision, By),
}

impl State {
    /// Whether `next` may follow. From deciding back to open only because the log refused the decision.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        match (self, next) {
            (Self::Open, Self::Deciding(..)) | (Self::Deciding(..), Self::Open) => true,
            (Self::Deciding(decision, _), Self::Decided(decided, _)) => decision == decided,
            (Self::Open, Self::Open | Self::Decided(..))
            | (Self::Deciding(..), Self::Deciding(..))
            | (Self::Decided(..), _) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_final_and_follows_only_its_own_kind() {
        let (commit, rollback) = (Decision::Commit, Decision::Rollback);
        let deciding = |decision| State::Deciding(decision, By::Producer);
        let decided = |decision| State::Decided(decision, By::Producer);
        assert!(State::Open.may_become(deciding(commit)));
        assert!(deciding(commit).may_become(decided(commit)));
        assert!(deciding(commit).may_become(State::Open));
        assert!(!deciding(commit).may_become(decided(rollback)));
        assert!(!deciding(commit).may_become(deciding(rollback)));
        assert!(!State::Open.may_become(decided(commit)));
        for next in [
            State::Open,
            deciding(commit),
            decided(commit),
            decided(rollback),
        ] {
            assert!(!decided(commit).may_become(next));
        }
    }

    #[test]
    fn names_are_read_back_and_anything_else_is_refused() {
        let id = TransactionId {
            producer: ProducerId(u64::MAX),
            epoch: ProducerEpoch(3),
            number: TransactionNumber(41),
        };
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "a.1.2",
            "1..2",
            "-1.2.3",
            "1.4294967296.1",
        ] {
            assert_eq!(
                text.parse::<TransactionId>(),
                Err(NotATransaction),
                "{text}"
            );
        }
    }
}

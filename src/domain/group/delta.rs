//! What a group writes to the log: its deltas, and the values they and its rows are made of.
//!
//! All positional MessagePack. Offsets of a cursor are those of its partition lane.

use serde::{Deserialize, Serialize};

use super::command::CursorNumber;
use super::subscription::SubscriptionSpec;
use crate::domain::entry::{Draft, EntryKind, PayloadFacts};
use crate::domain::id::{Offset, PartitionId, TopicId};
use crate::domain::partition::rows::encode;
use crate::domain::time::WallMs;
use crate::domain::transaction::{Decision, TransactionId};

/// Why a record that is not consumed is passed by the floor all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// It waits for its next attempt: `span_ms` from the wall time `since`.
    Retry {
        /// When it was refused.
        since: WallMs,
        /// How long it waits.
        span_ms: u64,
        /// What its member said.
        reason: String,
    },
    /// It is on its way to the dead letters.
    Dead {
        /// What its member said.
        reason: String,
    },
    /// A transaction decides.
    Attached(TransactionId),
    /// It waits behind another of its key, or for anybody to take it.
    Held,
}

/// A listed record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The hash of its key; 0 for none.
    pub key_hash: u64,
    /// How often it has been delivered.
    pub attempts: u16,
    /// Why it waits.
    pub why: Why,
}

impl Listed {
    /// Bytes it takes in a snapshot, roughly, rounded up.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        40 + match &self.why {
            Why::Retry { reason, .. } | Why::Dead { reason } => reason.len() as u64,
            Why::Attached(_) => 20,
            Why::Held => 0,
        }
    }
}

/// A cursor that begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewCursor {
    /// Its number.
    pub number: CursorNumber,
    /// Its place.
    pub place: PartitionId,
    /// Whose, in broadcast mode; empty elsewhere.
    pub member: String,
    /// Where it begins; none begins at the first record there is when it is first looked.
    pub floor: Option<Offset>,
}

/// What became of some records of one cursor.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Which.
    pub cursor: CursorNumber,
    /// Consumed: first offset and count.
    pub settled: Vec<(Offset, u64)>,
    /// Listed, or listed otherwise than before.
    pub listed: Vec<(Offset, Listed)>,
    /// So many of the settled were taken by retention, or could not be read.
    pub expired: u64,
    /// So many of the settled were dead-lettered.
    pub dead_lettered: u64,
}

/// The body of a group's `State` entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delta {
    /// A subscription begins, with its cursors.
    Subscribed(SubscriptionSpec, Vec<NewCursor>),
    /// It is another now.
    Altered(SubscriptionSpec),
    /// It ends, with its cursors.
    Unsubscribed(TopicId),
    /// More cursors of a subscription: partitions were added, or a broadcast member joined.
    Cursors(Vec<NewCursor>),
    /// What became of records.
    Progress(Vec<Progress>),
    /// Cursors go on elsewhere: everything they knew but attachments is void.
    Reset(Vec<(CursorNumber, Offset)>),
    /// A transaction was decided: what was attached to it is consumed, or comes again. The only delta
    /// somebody else composes: the coordinator, tied to its decision.
    Decided {
        /// Which.
        transaction: TransactionId,
        /// How.
        committed: bool,
    },
}

impl Delta {
    /// The entry that carries it.
    #[must_use]
    pub fn draft(&self) -> Draft {
        Draft {
            kind: EntryKind::State,
            numbers: 0,
            offsets: 0,
            body: encode(self).into(),
            facts: PayloadFacts::default(),
        }
    }

    /// Reads the body of an entry.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        rmp_serde::from_slice(body).ok()
    }
}

/// What a transaction's coordinator ties to its decision, for every group records were attached in.
#[must_use]
pub fn decision_draft(transaction: TransactionId, decision: Decision) -> Draft {
    Delta::Decided {
        transaction,
        committed: decision == Decision::Commit,
    }
    .draft()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::group::subscription::{Mode, SubscriptionSpec};
    use crate::domain::id::{
        Lane, PartitionIndex, ProducerEpoch, ProducerId, TopicId, TransactionNumber,
    };

    fn hex(delta: &Delta) -> String {
        let body = delta.draft().body.to_bytes();
        assert_eq!(Delta::decode(&body).as_ref(), Some(delta));
        body.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn deltas_are_these_bytes() {
        let place = PartitionId {
            topic: TopicId(3),
            partition: PartitionIndex(1),
            lane: Lane(0),
        };
        let cursor = NewCursor {
            number: CursorNumber(7),
            place,
            member: String::new(),
            floor: Some(Offset(9)),
        };
        let spec = SubscriptionSpec::new(TopicId(3), Mode::KeyOrdered);
        assert_eq!(
            hex(&Delta::Subscribed(spec, vec![cursor])),
            "81aa53756273637269626564929703aa4b65794f726465726564a0a84561726c696573749581ab4578706f6e656e7469616c92cd03e8ce000493e00a10a5426c6f636bc0cd7530c2919407930301 00a009"
                .replace(' ', "")
        );
        let transaction = TransactionId {
            producer: ProducerId(5),
            epoch: ProducerEpoch(1),
            number: TransactionNumber(2),
        };
        let retry = Listed {
            key_hash: 1,
            attempts: 2,
            why: Why::Retry {
                since: WallMs(1000),
                span_ms: 50,
                reason: "no".into(),
            },
        };
        let attached = Listed {
            key_hash: 0,
            attempts: 1,
            why: Why::Attached(transaction),
        };
        let progress = Progress {
            cursor: CursorNumber(7),
            settled: vec![(Offset(9), 3)],
            listed: vec![(Offset(12), retry), (Offset(13), attached)],
            expired: 0,
            dead_lettered: 1,
        };
        assert_eq!(
            hex(&Delta::Progress(vec![progress])),
            "81a850726f67726573739195079192090392920c93010281a5526574727993cd03e832a26e6f920d93000181a8417474616368656493050102 0001"
                .replace(' ', "")
        );
        assert_eq!(
            hex(&Delta::Reset(vec![(CursorNumber(7), Offset(1))])),
            "81a55265736574919207 01".replace(' ', "")
        );
        let decided = Delta::Decided {
            transaction,
            committed: true,
        };
        assert_eq!(
            hex(&decided),
            "81a74465636964656492 93050102c3".replace(' ', "")
        );
        assert_eq!(
            hex(&Delta::Unsubscribed(TopicId(3))),
            "81ac556e7375627363726962656403"
        );
    }
}

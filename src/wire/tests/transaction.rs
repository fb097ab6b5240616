//! The frames of transactions.

use bytes::Bytes;

use super::golden;
use crate::domain::id::{
    Lane, LeaseId, Offset, PartitionIndex, ProducerEpoch, ProducerId, TopicId, TransactionNumber,
};
use crate::domain::time::WallMs;
use crate::domain::transaction::TransactionId;
use crate::wire::consume::LeaseRange;
use crate::wire::transaction::*;

const ID: TransactionId = TransactionId {
    producer: ProducerId(4),
    epoch: ProducerEpoch(1),
    number: TransactionNumber(9),
};

pub(super) fn requests() -> Vec<Bytes> {
    vec![
        golden(
            OpenSession {
                name: "till".into(),
                group: "g".into(),
                resume: Some((ID.producer, ID.epoch)),
                checks: true,
            },
            r"\x84\xa4name\xa4till\xa5group\xa1g\xa6resume\x92\x04\x01\xa6checks\xc3",
        ),
        golden(
            EndTransaction {
                producer: ID.producer,
                epoch: ID.epoch,
                number: ID.number,
                outcome: Outcome::Commit,
                operator: false,
            },
            r"\x85\xa8producer\x04\xa5epoch\x01\xa6number\t\xa7outcome\xa6commit\xa8operator\xc2",
        ),
        golden(
            ListTransactions {
                only: Some(ID),
                after: None,
                max: 5,
            },
            r"\x83\xa4only\x83\xa8producer\x04\xa5epoch\x01\xa6number\t\xa5after\xc0\xa3max\x05",
        ),
        golden(
            Attach {
                consumer: 9,
                transaction: ID,
                ranges: vec![LeaseRange {
                    lease: LeaseId(4),
                    first: Offset(300),
                    count: 2,
                }],
            },
            r"\x93\t\x93\x04\x01\t\x91\x93\x04\xcd\x01,\x02",
        ),
        golden(
            AttachUpTo {
                consumer: 9,
                transaction: ID,
                topic: TopicId(5),
                partition: PartitionIndex(3),
                lane: Lane(1),
                end: Offset(300),
            },
            r"\x96\t\x93\x04\x01\t\x05\x03\x01\xcd\x01,",
        ),
    ]
}

pub(super) fn answers() -> Vec<Bytes> {
    vec![
        golden(
            SessionOk {
                producer: ID.producer,
                epoch: ID.epoch,
            },
            r"\x82\xa8producer\x04\xa5epoch\x01",
        ),
        golden(
            TransactionEnded {
                outcome: Outcome::Rollback,
                by: "expiry".into(),
            },
            r"\x82\xa7outcome\xa8rollback\xa2by\xa6expiry",
        ),
        golden(TransactionsOk {}, r"\x80"),
    ]
}

pub(super) fn events() -> Vec<Bytes> {
    vec![
        golden(
            CheckBack {
                producer: ID.producer,
                epoch: ID.epoch,
                number: ID.number,
                group: "g".into(),
                topic: "t".into(),
            },
            r"\x85\xa8producer\x04\xa5epoch\x01\xa6number\t\xa5group\xa1g\xa5topic\xa1t",
        ),
        golden(
            CheckedBack {
                producer: ID.producer,
                epoch: ID.epoch,
                number: ID.number,
                outcome: Outcome::Unknown,
                nobody_of: None,
            },
            r"\x84\xa8producer\x04\xa5epoch\x01\xa6number\t\xa7outcome\xa7unknown",
        ),
        golden(
            CheckedBack {
                producer: ID.producer,
                epoch: ID.epoch,
                number: ID.number,
                outcome: Outcome::Unknown,
                nobody_of: Some("g".into()),
            },
            r"\x85\xa8producer\x04\xa5epoch\x01\xa6number\t\xa7outcome\xa7unknown\xa9nobody_of\xa1g",
        ),
    ]
}

#[test]
fn a_listed_transaction_survives_the_wire() {
    let info = TransactionInfo {
        id: ID,
        name: "till".into(),
        group: "g".into(),
        state: "open".into(),
        by: None,
        at: WallMs(7),
        checked_back: true,
        checks: 2,
        batches: 3,
        participants: vec![ParticipantInfo {
            topic: Some(TopicId(5)),
            topic_name: Some("t".into()),
            partition: PartitionIndex(3),
            lane: Lane(0),
            records: 8,
            consumer_group: None,
        }],
    };
    let body = crate::wire::topic::encode_list(std::slice::from_ref(&info));
    let read: Vec<TransactionInfo> = crate::wire::topic::decode_list(&body).unwrap();
    assert_eq!(read, vec![info]);
}

//! The frames of groups and of their members.

use super::golden;
use crate::domain::id::{Generation, GroupId, Lane, LeaseId, Offset, PartitionIndex, TopicId};
use crate::domain::time::WallMs;
use crate::wire::code::{Code, Refused};
use crate::wire::consume::*;
use crate::wire::frame::{Frame, FrameKind};
use crate::wire::group::*;
use crate::wire::letters::*;
use crate::wire::topic::decode_list;
use bytes::Bytes;

fn subscription() -> Subscription {
    Subscription {
        mode: Mode::KeyOrdered,
        filter: "a".into(),
        retry: Some(RetryPolicy {
            backoff: Backoff::Listed(vec![1, 300]),
            ..RetryPolicy::default()
        }),
        ..Subscription::new("t")
    }
}

pub(super) fn golden_requests() -> Vec<Bytes> {
    let (group, topic) = (String::from("g"), String::from("t"));
    let range = LeaseRange {
        lease: LeaseId(4),
        first: Offset(300),
        count: 2,
    };
    vec![
        golden(
            JoinGroup {
                consumer: 9,
                group: group.clone(),
                subscriptions: vec![subscription()],
                name: "m".into(),
                grace_ms: 5,
                at_most_once: true,
            },
            r"\x86\xa8consumer\t\xa5group\xa1g\xadsubscriptions\x91\x87\xa5topic\xa1t\xa8topic_id\x00\xa4mode\xaaKeyOrdered\xa6filter\xa1a\xa5start\xa8earliest\xa5retry\x85\xa7backoff\x81\xa6Listed\x92\x01\xcd\x01,\xaejitter_percent\n\xacattempts_max\x10\xa6poison\xa5Block\xb1dead_letter_topic\xc0\xa8lease_ms\x00\xa4name\xa1m\xa8grace_ms\x05\xacat_most_once\xc3",
        ),
        golden(LeaveGroup { consumer: 9 }, r"\x81\xa8consumer\t"),
        golden(
            Acknowledge {
                consumer: 9,
                ranges: vec![range, range],
            },
            r"\x92\t\x92\x93\x04\xcd\x01,\x02\x93\x04\xcd\x01,\x02",
        ),
        golden(
            AcknowledgeUpTo {
                consumer: 9,
                topic: TopicId(5),
                partition: PartitionIndex(3),
                lane: Lane(1),
                end: Offset(300),
            },
            r"\x95\t\x05\x03\x01\xcd\x01,",
        ),
        golden(
            Nack {
                consumer: 9,
                ranges: vec![range],
                after: RetryAfter::Ms(7),
                reason: "r".into(),
            },
            r"\x94\t\x91\x93\x04\xcd\x01,\x02\x81\xa2ms\x07\xa1r",
        ),
        golden(
            Nack {
                consumer: 9,
                ranges: vec![range],
                after: RetryAfter::Unseen,
                reason: String::new(),
            },
            r"\x94\t\x91\x93\x04\xcd\x01,\x02\xa6unseen\xa0",
        ),
        golden(
            ExtendLeases {
                consumer: 9,
                leases: vec![LeaseId(4)],
                lease_ms: 300,
            },
            r"\x93\t\x91\x04\xcd\x01,",
        ),
        golden(
            CreateSubscription {
                group: group.clone(),
                subscription: Subscription::new("t"),
            },
            r"\x82\xa5group\xa1g\xacsubscription\x87\xa5topic\xa1t\xa8topic_id\x00\xa4mode\xa6Shared\xa6filter\xa0\xa5start\xa8earliest\xa5retry\xc0\xa8lease_ms\x00",
        ),
        golden(
            AlterSubscription {
                group: group.clone(),
                topic: topic.clone(),
                mode: Some(Mode::Exclusive),
                lease_ms: Some(9),
                ..AlterSubscription::default()
            },
            r"\x86\xa5group\xa1g\xa5topic\xa1t\xa4mode\xa9Exclusive\xa6filter\xc0\xa5retry\xc0\xa8lease_ms\t",
        ),
        golden(
            RemoveSubscription {
                group: group.clone(),
                topic: topic.clone(),
            },
            r"\x82\xa5group\xa1g\xa5topic\xa1t",
        ),
        golden(ListGroups {}, r"\x80"),
        golden(
            DescribeGroup {
                group: group.clone(),
            },
            r"\x81\xa5group\xa1g",
        ),
        golden(
            ResetGroup {
                group: group.clone(),
                topic: topic.clone(),
                partition: Some(PartitionIndex(3)),
                to: ResetTo::At(At::Time(WallMs(9))),
                dry_run: true,
            },
            r"\x85\xa5group\xa1g\xa5topic\xa1t\xa9partition\x03\xa2to\x81\xa2at\x81\xa4time\t\xa7dry_run\xc3",
        ),
        golden(
            DeleteGroup {
                group: group.clone(),
            },
            r"\x81\xa5group\xa1g",
        ),
    ]
}

pub(super) fn golden_answers() -> Vec<Bytes> {
    vec![
        golden(
            Joined {
                name: "m".into(),
                subscriptions: vec![],
            },
            r"\x82\xa4name\xa1m\xadsubscriptions\x90",
        ),
        golden(
            Settled {
                refused: vec![(LeaseId(4), Code::UnknownLease as u16)],
            },
            r"\x91\x91\x92\x049",
        ),
        golden(
            SubscriptionOk {
                subscription: Subscription::new("t"),
            },
            r"\x81\xacsubscription\x87\xa5topic\xa1t\xa8topic_id\x00\xa4mode\xa6Shared\xa6filter\xa0\xa5start\xa8earliest\xa5retry\xc0\xa8lease_ms\x00",
        ),
        golden(GroupsOk { groups: 2 }, r"\x81\xa6groups\x02"),
        golden(
            GroupOk {
                group: GroupInfo {
                    name: "g".into(),
                    id: GroupId(1),
                },
            },
            r"\x81\xa5group\x82\xa4name\xa1g\xa2id\x01",
        ),
        golden(ResetOk { places: 2 }, r"\x81\xa6places\x02"),
        golden(GroupDone {}, r"\x80"),
    ]
}

pub(super) fn golden_events() -> Vec<Bytes> {
    let (topic, partition, lane) = (TopicId(5), PartitionIndex(3), Lane(1));
    let generation = Generation(2);
    vec![
        golden(
            GrantCredit {
                consumer: 9,
                topic,
                bytes: 70_000,
                records: 100,
            },
            r"\x94\t\x05\xce\x00\x01\x11pd",
        ),
        golden(
            Withdraw {
                consumer: 9,
                topic,
                token: 1,
            },
            r"\x93\t\x05\x01",
        ),
        golden(
            Assigned {
                topic,
                partition,
                lane,
                generation,
            },
            r"\x84\xa5topic\x05\xa9partition\x03\xa4lane\x01\xaageneration\x02",
        ),
        golden(
            Revoked {
                topic,
                partition,
                lane,
                generation,
                drain_ms: 7,
            },
            r"\x85\xa5topic\x05\xa9partition\x03\xa4lane\x01\xaageneration\x02\xa8drain_ms\x07",
        ),
        golden(
            Leased {
                topic,
                partition,
                lane,
                generation,
                appended: WallMs(9),
                base: Some(Offset(290)),
                leases: vec![LeaseHead {
                    lease: LeaseId(4),
                    first: Offset(300),
                    count: 2,
                    attempt: 1,
                    lease_ms: 30_000,
                    bytes: 800,
                }],
                published: None,
                later_ms: Vec::new(),
            },
            r#"\x98\x05\x03\x01\x02\t\xcd\x01\"\x91\x96\x04\xcd\x01,\x02\x01\xcdu0\xcd\x03 \xc0"#,
        ),
        golden(
            Leased {
                topic,
                published: Some(PublishedLater {
                    stored: WallMs(7),
                    due: Some(WallMs(8)),
                }),
                appended: WallMs(9),
                ..Leased::default()
            },
            r"\x98\x05\x00\x00\x00\t\xc0\x90\x92\x07\x08",
        ),
        golden(
            Leased {
                topic,
                appended: WallMs(9),
                later_ms: vec![0, 300, -1],
                ..Leased::default()
            },
            r"\x99\x05\x00\x00\x00\t\xc0\x90\xc0\x93\x00\xcd\x01,\xff",
        ),
        golden(
            LeasesLost {
                leases: vec![LeaseId(4)],
            },
            r"\x91\x91\x04",
        ),
        golden(Withdrawn { token: 1 }, r"\x91\x01"),
        golden(
            MemberEnd {
                refused: Some(Refused::new(Code::MemberFenced, "x")),
            },
            r"\x81\xa7refused\x84\xa4code7\xa7message\xa1x\xa8after_ms\xc0\xa6detail\x80",
        ),
        golden(Heartbeat {}, r"\x80"),
        golden(
            Unsubscribed {
                topic,
                refused: Refused::new(Code::UnknownTopic, "x"),
            },
            r"\x82\xa5topic\x05\xa7refused\x84\xa4code\x01\xa7message\xa1x\xa8after_ms\xc0\xa6detail\x80",
        ),
    ]
}

#[test]
fn what_a_frame_leaves_out_has_its_default() {
    #[derive(serde::Serialize)]
    struct Bare {
        topic: &'static str,
        later: u8,
    }
    let bare = rmp_serde::to_vec_named(&Bare {
        topic: "t",
        later: 1,
    })
    .unwrap();
    let read: Subscription = rmp_serde::from_slice(&bare).unwrap();
    assert_eq!(read, Subscription::new("t"));
}

#[test]
fn as_many_leases_as_may_be_fit_an_acknowledgement() {
    let range = LeaseRange {
        lease: LeaseId(u64::MAX),
        first: Offset(u64::MAX),
        count: u32::MAX,
    };
    let full = Acknowledge {
        consumer: u64::MAX,
        ranges: vec![range; RANGES_MAX],
    };
    assert!(crate::wire::frame::encode_bare(&full, 1).is_ok());
    let lease = LeaseHead {
        lease: LeaseId(u64::MAX),
        first: Offset(u64::MAX),
        count: u32::MAX,
        attempt: u16::MAX,
        lease_ms: u64::MAX,
        bytes: u64::MAX,
    };
    let leased = Leased {
        leases: vec![lease; 1000],
        later_ms: vec![i64::MIN; 1000],
        ..Leased::default()
    };
    assert!(crate::wire::frame::encode_bare(&leased, 1).is_ok());
}

/// Decodes a frame of these kinds as what it says it is, and its body as what it can be.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the others are decoded by who calls this"
)]
pub(super) fn decode_as_told(kind: FrameKind, frame: &Frame) {
    match kind {
        FrameKind::JoinGroup => drop(frame.decode::<JoinGroup>()),
        FrameKind::LeaveGroup => drop(frame.decode::<LeaveGroup>()),
        FrameKind::Acknowledge => drop(frame.decode::<Acknowledge>()),
        FrameKind::AcknowledgeUpTo => drop(frame.decode::<AcknowledgeUpTo>()),
        FrameKind::Nack => drop(frame.decode::<Nack>()),
        FrameKind::ExtendLeases => drop(frame.decode::<ExtendLeases>()),
        FrameKind::CreateSubscription => drop(frame.decode::<CreateSubscription>()),
        FrameKind::AlterSubscription => drop(frame.decode::<AlterSubscription>()),
        FrameKind::RemoveSubscription => drop(frame.decode::<RemoveSubscription>()),
        FrameKind::ListGroups => drop(frame.decode::<ListGroups>()),
        FrameKind::DescribeGroup => drop(frame.decode::<DescribeGroup>()),
        FrameKind::ResetGroup => drop(frame.decode::<ResetGroup>()),
        FrameKind::DeleteGroup => drop(frame.decode::<DeleteGroup>()),
        FrameKind::Joined => drop(frame.decode::<Joined>()),
        FrameKind::Settled => drop(frame.decode::<Settled>()),
        FrameKind::SubscriptionOk => drop(frame.decode::<SubscriptionOk>()),
        FrameKind::GroupsOk => drop(frame.decode::<GroupsOk>()),
        FrameKind::GroupOk => drop(frame.decode::<GroupOk>()),
        FrameKind::ResetOk => drop(frame.decode::<ResetOk>()),
        FrameKind::GroupDone => drop(frame.decode::<GroupDone>()),
        FrameKind::ListDeadLetters => drop(frame.decode::<ListDeadLetters>()),
        FrameKind::SettleDeadLetters => drop(frame.decode::<SettleDeadLetters>()),
        FrameKind::DeadLettersOk => drop(frame.decode::<DeadLettersOk>()),
        FrameKind::DeadLettersSettled => drop(frame.decode::<DeadLettersSettled>()),
        FrameKind::GrantCredit => drop(frame.decode::<GrantCredit>()),
        FrameKind::Withdraw => drop(frame.decode::<Withdraw>()),
        FrameKind::Assigned => drop(frame.decode::<Assigned>()),
        FrameKind::Revoked => drop(frame.decode::<Revoked>()),
        FrameKind::Leased => drop(frame.decode::<Leased>()),
        FrameKind::LeasesLost => drop(frame.decode::<LeasesLost>()),
        FrameKind::Withdrawn => drop(frame.decode::<Withdrawn>()),
        FrameKind::MemberEnd => drop(frame.decode::<MemberEnd>()),
        FrameKind::Heartbeat => drop(frame.decode::<Heartbeat>()),
        FrameKind::Unsubscribed => drop(frame.decode::<Unsubscribed>()),
        _ => {}
    }
    let _ = decode_list::<DeadLetterInfo>(&frame.body);
    let _ = decode_list::<LetterFault>(&frame.body);
    let _ = decode_list::<GroupState>(&frame.body);
    let _ = decode_list::<PlaceReset>(&frame.body);
    let _ = decode_list::<GroupInfo>(&frame.body);
}

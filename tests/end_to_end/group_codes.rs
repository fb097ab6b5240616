//! How each code of consumer groups is provoked: see [`crate::codes`].

use std::fmt::Debug;

use waterwheel::client::{self, AdminError, Mode, Subscription, TopicConfig};
use waterwheel::config::Config;
use waterwheel::domain::id::{Lane, LeaseId, Offset, PartitionIndex};
use waterwheel::wire::code::{Code, Refused};
use waterwheel::wire::consume::{
    Acknowledge, AcknowledgeUpTo, JoinGroup, Joined, LeaseRange, MemberEnd, Settled,
};
use waterwheel::wire::frame::FrameKind;
use waterwheel::wire::reader::StreamOpen;

use crate::client::FrameReader;
use crate::rig::Rig;

const TOPIC: &str = "orders";

async fn set(change: impl FnOnce(&mut Config)) -> (Rig, client::Client) {
    let rig = Rig::start_with(change).await;
    let client = rig.node.connect().await.unwrap();
    for topic in [TOPIC, "payments"] {
        client.create_topic(topic, TopicConfig::new(1)).await.unwrap();
    }
    let subscription = Subscription::new(TOPIC);
    client.create_subscription("g", subscription).await.unwrap();
    (rig, client)
}

fn code<T: Debug>(answer: Result<T, AdminError>) -> Code {
    match answer {
        Err(AdminError::Refused(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    }
}

fn raw<T: Debug>(answer: Result<T, Refused>) -> Code {
    answer.expect_err("refused").code()
}

fn join(consumer: u64, name: &str, mode: Mode) -> JoinGroup {
    JoinGroup {
        consumer,
        group: "g".into(),
        subscriptions: vec![Subscription {
            mode,
            ..Subscription::new(TOPIC)
        }],
        name: name.into(),
        grace_ms: 0,
        at_most_once: false,
    }
}

pub(crate) async fn unknown_group() -> Code {
    let (_rig, client) = set(|_| {}).await;
    code(client.describe_group("nobody").await)
}

pub(crate) async fn unknown_subscription() -> Code {
    let (_rig, client) = set(|_| {}).await;
    code(client.remove_subscription("g", "payments").await)
}

pub(crate) async fn subscription_mismatch() -> Code {
    let (rig, _client) = set(|_| {}).await;
    let mut raw_client = rig.client().await;
    let other = join(1, "m", Mode::Exclusive);
    raw(raw_client.ask::<_, Joined>(&other).await)
}

pub(crate) async fn subscription_exists() -> Code {
    let (_rig, client) = set(|_| {}).await;
    code(client.create_subscription("g", Subscription::new(TOPIC)).await)
}

pub(crate) async fn unknown_member() -> Code {
    let (rig, _client) = set(|_| {}).await;
    let mut raw_client = rig.client().await;
    let nobodys = Acknowledge {
        consumer: 9,
        ranges: Vec::new(),
    };
    raw(raw_client.ask::<_, Settled>(&nobodys).await)
}

pub(crate) async fn member_fenced() -> Code {
    let (rig, _client) = set(|_| {}).await;
    let mut first = rig.client().await;
    first
        .ask::<_, Joined>(&join(1, "m", Mode::Shared))
        .await
        .unwrap();
    let mut second = rig.client().await;
    second
        .ask::<_, Joined>(&join(1, "m", Mode::Shared))
        .await
        .unwrap();
    let mut stream = FrameReader::new(first.connection.accept_uni().await.unwrap());
    loop {
        let frame = stream.next().await.expect("the stream says why it ends");
        match frame.kind() {
            Some(FrameKind::StreamOpen) => drop(frame.decode::<StreamOpen>().unwrap()),
            Some(FrameKind::MemberEnd) => {
                let end: MemberEnd = frame.decode().unwrap();
                return end.refused.unwrap().code();
            }
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) async fn too_many_members() -> Code {
    let (rig, _client) = set(|config| config.group_members_max = 2).await;
    let mut raw_client = rig.client().await;
    for consumer in 1..3 {
        let member = join(consumer, "", Mode::Shared);
        raw_client.ask::<_, Joined>(&member).await.unwrap();
    }
    let refused = raw_client
        .ask::<_, Joined>(&join(3, "", Mode::Shared))
        .await;
    assert_eq!(refused.as_ref().unwrap_err().detail["max"], "2");
    raw(refused)
}

pub(crate) async fn unknown_lease() -> Code {
    let (rig, _client) = set(|_| {}).await;
    let mut raw_client = rig.client().await;
    let member = join(1, "m", Mode::Shared);
    raw_client.ask::<_, Joined>(&member).await.unwrap();
    let invented = LeaseRange {
        lease: LeaseId(77),
        first: Offset(0),
        count: 1,
    };
    let acknowledge = Acknowledge {
        consumer: 1,
        ranges: vec![invented],
    };
    let Settled { refused } = raw_client.ask(&acknowledge).await.unwrap();
    assert_eq!(refused[0].0, LeaseId(77));
    Code::from_u16(refused[0].1).unwrap()
}

pub(crate) async fn stale_generation() -> Code {
    let (rig, client) = set(|_| {}).await;
    let subscription = Subscription {
        mode: Mode::Exclusive,
        ..Subscription::new(TOPIC)
    };
    client.remove_subscription("g", TOPIC).await.unwrap();
    let made = client.create_subscription("g", subscription).await.unwrap();
    let mut raw_client = rig.client().await;
    for (consumer, name) in [(1, "a"), (2, "b")] {
        let member = join(consumer, name, Mode::Exclusive);
        raw_client.ask::<_, Joined>(&member).await.unwrap();
    }
    // There is one partition: one of the two has it.
    let mut answers = Vec::new();
    for consumer in [1, 2] {
        let all = AcknowledgeUpTo {
            consumer,
            topic: made.topic_id,
            partition: PartitionIndex(0),
            lane: Lane(0),
            end: Offset(1),
        };
        answers.push(raw_client.ask::<_, Settled>(&all).await);
    }
    // Neither has a record of it, and one does not even have the partition.
    let refused = answers.into_iter().filter_map(Result::err);
    let mut codes: Vec<Code> = refused.map(|refused| refused.code()).collect();
    codes.retain(|code| *code != Code::UnknownLease);
    assert_eq!(codes.len(), 1, "the other has it");
    codes[0]
}

pub(crate) async fn invalid_filter() -> Code {
    let (_rig, client) = set(|config| config.group_filter_bytes_max = 20).await;
    let with = |filter: &str| Subscription {
        filter: filter.into(),
        ..Subscription::new("payments")
    };
    let unfinished = client.create_subscription("g", with("amount > ")).await;
    assert_eq!(code(unfinished), Code::InvalidFilter);
    let long = "a || b || c || d || e || f";
    code(client.create_subscription("g", with(long)).await)
}

pub(crate) async fn invalid_subscription() -> Code {
    let (_rig, client) = set(|_| {}).await;
    let hasty = Subscription {
        lease_ms: 1,
        ..Subscription::new("payments")
    };
    code(client.create_subscription("g", hasty).await)
}

pub(crate) async fn group_in_use() -> Code {
    let (rig, client) = set(|_| {}).await;
    let mut raw_client = rig.client().await;
    let member = join(1, "m", Mode::Shared);
    raw_client.ask::<_, Joined>(&member).await.unwrap();
    code(client.delete_group("g").await)
}

pub(crate) async fn too_many_subscriptions() -> Code {
    let (_rig, client) = set(|config| config.group_subscriptions_max = 1).await;
    let second = Subscription::new("payments");
    code(client.create_subscription("g", second).await)
}

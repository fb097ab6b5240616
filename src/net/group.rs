//! Groups as they are administered: each request asks the directory or the group's actor, and is answered
//! with a frame.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of many answers one or two are hoped for; kinds that are no request are skipped"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use futures::stream::StreamExt;
use futures::{future, stream};

use super::member::{
    check_not_ours, find_group, open_group, spec, start, subscription, topic_name, topics,
};
use super::out::Out;
use super::refusal::{refused, unknown_topic};
use super::requests::{bounds, unexpected};
use super::session::{Session, bad_frame, first, question};
use crate::actors::Link;
use crate::actors::directory::groups::{DeleteGroup, ListGroups};
use crate::actors::group::{Do, GroupActor};
use crate::actors::reply::Answer;
use crate::domain::group::command::{self, Command, Description, PlaceStatus};
use crate::domain::group::rejection::GroupRejection;
use crate::domain::group::subscription::SubscriptionChange;
use crate::domain::id::{MemberId, Offset, PartitionId, TopicId};
use crate::domain::partition::ReadFrom;
use crate::domain::rejection::Rejection;
use crate::domain::topics::Topic;
use crate::wire::code::{Code, Refused};
use crate::wire::frame::{Frame, FrameKind};
use crate::wire::group::{
    self, AlterSubscription, CreateSubscription, DescribeGroup, GroupDone, GroupInfo, GroupOk,
    GroupState, GroupsOk, MemberInfo, PlaceInfo, PlaceReset, RemoveSubscription, ResetGroup,
    ResetOk, ResetTo, SubscriptionOk,
};
use crate::wire::topic::encode_list;

/// Partitions asked together for how far they go.
const ASKED_AT_ONCE: usize = 64;

/// Whether a request is one of these.
pub(super) fn is_one(kind: FrameKind) -> bool {
    matches!(
        kind,
        FrameKind::CreateSubscription
            | FrameKind::AlterSubscription
            | FrameKind::RemoveSubscription
            | FrameKind::ListGroups
            | FrameKind::DescribeGroup
            | FrameKind::ResetGroup
            | FrameKind::DeleteGroup
    )
}

/// Answers one of these requests.
///
/// # Errors
/// Why not.
pub(super) async fn answer(
    session: &Session,
    kind: FrameKind,
    frame: &Frame,
    out: &Out,
) -> Result<(), Refused> {
    let correlation = frame.correlation();
    if *session.shared.stopping.borrow() {
        return Err(refused(&Rejection::ShuttingDown));
    }
    match kind {
        FrameKind::ListGroups => list(session, correlation, out).await,
        FrameKind::DescribeGroup => {
            let DescribeGroup { group } = frame.decode().map_err(bad_frame)?;
            describe(session, &group, correlation, out).await
        }
        FrameKind::DeleteGroup => {
            let group::DeleteGroup { group } = frame.decode().map_err(bad_frame)?;
            check_not_ours(&group)?;
            check_unused(session, &group).await?;
            let answer = session
                .shared
                .ask_directory(|reply| DeleteGroup { name: group, reply })
                .await;
            match answer {
                Answer::Group(_) => {
                    out.send(&GroupDone {}, correlation, Bytes::new());
                    Ok(())
                }
                other => Err(unexpected(other, "")),
            }
        }
        FrameKind::ResetGroup => {
            let reset: ResetGroup = frame.decode().map_err(bad_frame)?;
            set_place(session, reset, correlation, out).await
        }
        _ => subscriptions(session, kind, frame, out).await,
    }
}

/// The requests about one subscription.
async fn subscriptions(
    session: &Session,
    kind: FrameKind,
    frame: &Frame,
    out: &Out,
) -> Result<(), Refused> {
    let (group, topics, command) = match kind {
        FrameKind::CreateSubscription => {
            let request: CreateSubscription = frame.decode().map_err(bad_frame)?;
            let topics = topics(session, vec![request.subscription.topic.clone()]).await?;
            let spec = spec(&request.subscription, &topics)?;
            let group = open_group(session, &request.group, true).await?;
            (group, topics, Command::Subscribe(spec))
        }
        FrameKind::AlterSubscription => {
            let request: AlterSubscription = frame.decode().map_err(bad_frame)?;
            let (topic, topics) = topic(session, &request.topic).await?;
            let group = open_group(session, &request.group, false).await?;
            let change = SubscriptionChange {
                mode: request.mode,
                filter: request.filter,
                retry: request.retry,
                lease_ms: request.lease_ms,
            };
            (group, topics, Command::Alter { topic, change })
        }
        FrameKind::RemoveSubscription => {
            let request: RemoveSubscription = frame.decode().map_err(bad_frame)?;
            let (topic, topics) = topic(session, &request.topic).await?;
            let group = open_group(session, &request.group, false).await?;
            (group, topics, Command::Unsubscribe { topic })
        }
        _ => return Ok(()),
    };
    match ask(&group, command).await {
        Answer::Group(command::Answer::Subscription(spec)) => {
            let ok = SubscriptionOk {
                subscription: subscription(&spec, &topics),
            };
            out.send(&ok, frame.correlation(), Bytes::new());
            Ok(())
        }
        Answer::Group(command::Answer::Done) => {
            out.send(&GroupDone {}, frame.correlation(), Bytes::new());
            Ok(())
        }
        other => Err(unexpected(other, "")),
    }
}

/// A group with members is not deleted. One whose actor was stopped for failing has none, and may be. A
/// member that joins between this and the deletion finds its group gone and joins a new one.
async fn check_unused(session: &Session, name: &str) -> Result<(), Refused> {
    let group = match find_group(session, name, false).await {
        Ok(group) => group,
        Err(refused) if refused.code() == Code::OwnerStopped => return Ok(()),
        Err(refused) => return Err(refused),
    };
    let description = match ask(&group, Command::Describe).await {
        Answer::Group(command::Answer::Described(description)) => description,
        other => return Err(unexpected(other, "")),
    };
    match u32::try_from(description.members.len()).unwrap_or(u32::MAX) {
        0 => Ok(()),
        members => Err(refused(&GroupRejection::GroupInUse { members }.into())),
    }
}

/// Asks a group.
pub(super) async fn ask(group: &Link<GroupActor>, command: Command) -> Answer {
    let (reply, mut answer) = question();
    group.tell(Do {
        command,
        events: None,
        reply,
    });
    first(&mut answer).await
}

/// One topic by name.
pub(super) async fn topic(session: &Session, name: &str) -> Result<(TopicId, Vec<Topic>), Refused> {
    let topics = topics(session, vec![name.to_owned()]).await?;
    let id = topics.first().map(|topic| topic.id);
    id.map(|id| (id, topics)).ok_or_else(|| unknown_topic(name))
}

async fn list(session: &Session, correlation: u64, out: &Out) -> Result<(), Refused> {
    let answer = session
        .shared
        .ask_directory(|reply| ListGroups { reply })
        .await;
    let Answer::Groups(groups) = answer else {
        return Err(unexpected(answer, ""));
    };
    let list: Vec<GroupInfo> = groups
        .into_iter()
        .map(|known| GroupInfo {
            name: known.name,
            id: known.id,
        })
        .collect();
    let groups = u32::try_from(list.len()).unwrap_or(u32::MAX);
    out.send(&GroupsOk { groups }, correlation, encode_list(&list));
    Ok(())
}

async fn describe(
    session: &Session,
    name: &str,
    correlation: u64,
    out: &Out,
) -> Result<(), Refused> {
    let group = find_group(session, name, false).await?;
    let mut description = match ask(&group, Command::Describe).await {
        Answer::Group(command::Answer::Described(description)) => *description,
        other => return Err(unexpected(other, "")),
    };
    look_for_ends(session, &mut description).await;
    let topics = topics(session, Vec::new()).await?;
    let state = state(description, &topics);
    let group = GroupInfo {
        name: name.to_owned(),
        ..GroupInfo::default()
    };
    out.send(&GroupOk { group }, correlation, encode_list(&[state]));
    Ok(())
}

/// How far its partitions go, a group knows from its searches: none has been made since a restart, or while
/// it has no members. So they are asked; of one that does not answer it stays at what the group knows.
async fn look_for_ends(session: &Session, description: &mut Description) {
    let places: BTreeSet<PartitionId> = description.places.iter().map(|one| one.place).collect();
    let ends: BTreeMap<PartitionId, Offset> = stream::iter(places)
        .map(|place| async move {
            let at = (place.topic, place.partition, place.lane);
            let found = bounds(session, at, ReadFrom::Latest).await;
            found.ok().map(|bounds| (place, bounds.high_watermark))
        })
        .buffer_unordered(ASKED_AT_ONCE)
        .filter_map(future::ready)
        .collect()
        .await;
    for status in &mut description.places {
        if let Some(end) = ends.get(&status.place) {
            status.high_watermark = status.high_watermark.max(*end);
        }
    }
}

fn state(description: Description, topics: &[Topic]) -> GroupState {
    let names: HashMap<MemberId, &str> = description
        .members
        .iter()
        .map(|member| (member.id, member.name.as_str()))
        .collect();
    let place = |place: &PlaceStatus| {
        let assigned = place.assigned.and_then(|id| names.get(&id).copied());
        let member = match place.member.as_str() {
            "" => assigned.unwrap_or_default(),
            name => name,
        };
        PlaceInfo {
            topic: topic_name(place.place.topic, topics),
            partition: place.place.partition,
            lane: place.place.lane,
            member: member.to_owned(),
            floor: place.floor,
            settled_above: place.settled_above,
            retrying: place.retrying,
            attached: place.attached,
            held: place.held,
            leased: place.leased,
            expired: place.expired,
            dead_lettered: place.dead_lettered,
            high_watermark: place.high_watermark,
            lag: place.lag(place.high_watermark),
        }
    };
    GroupState {
        subscriptions: description
            .subscriptions
            .iter()
            .map(|spec| subscription(spec, topics))
            .collect(),
        places: description.places.iter().map(place).collect(),
        members: description
            .members
            .iter()
            .map(|member| MemberInfo {
                name: member.name.clone(),
                topics: member
                    .topics
                    .iter()
                    .map(|id| topic_name(*id, topics))
                    .collect(),
                leased: member.leased,
                away: member.away,
            })
            .collect(),
    }
}

async fn set_place(
    session: &Session,
    reset: ResetGroup,
    correlation: u64,
    out: &Out,
) -> Result<(), Refused> {
    let (topic, _) = topic(session, &reset.topic).await?;
    let group = open_group(session, &reset.group, false).await?;
    let command = Command::Reset {
        topic,
        partition: reset.partition,
        to: match reset.to {
            ResetTo::At(at) => command::ResetTo::Start(start(at)),
            ResetTo::Shift(records) => command::ResetTo::Shift(records),
        },
        dry_run: reset.dry_run,
    };
    let places = match ask(&group, command).await {
        Answer::Group(command::Answer::Reset(places)) => places,
        other => return Err(unexpected(other, &reset.topic)),
    };
    let list: Vec<PlaceReset> = places
        .iter()
        .map(|reset| PlaceReset {
            partition: reset.place.partition,
            lane: reset.place.lane,
            from: reset.from,
            to: reset.to,
            high_watermark: reset.high_watermark,
            comes: reset.comes,
            skipped: reset.skipped,
        })
        .collect();
    let places = u32::try_from(list.len()).unwrap_or(u32::MAX);
    out.send(&ResetOk { places }, correlation, encode_list(&list));
    Ok(())
}

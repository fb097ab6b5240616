//! Membership in consumer groups: one stream per member carries all it hears, in order.
//!
//! A member joins on the control stream; from then on its group's actor tells the session what to deliver
//! ([`super::leases`] reads and cuts it) and takes what the member says of it. How the session ends says
//! how the membership does: an orderly close is a leave, anything else a loss.
//!
//! - N7 What a member hears leaves in the order it happened; a withdrawal is answered behind what was leased
//!   before it.
//! - N8 A member whose client is gone or silent is told to its group: at once where the connection was
//!   closed, after [`SILENCE`] where it only fell silent.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of many answers one or two are hoped for"
)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::time::{Instant, sleep_until};
use tracing::Instrument;

use super::leases;
use super::out::Out;
use super::refusal::{refused, unknown_topic};
use super::requests::unexpected;
use super::session::{Session, close, first, question};
use crate::actors::Link;
use crate::actors::directory::List;
use crate::actors::directory::groups::OpenGroup;
use crate::actors::group::{Do, GroupActor};
use crate::actors::reply::{Answer, ReplyTo};
use crate::domain::group::command::{self, Command, Join, LeasedRange, RetryAfter, Settle};
use crate::domain::group::letters::GROUP;
use crate::domain::group::rejection::GroupRejection;
use crate::domain::group::subscription::{Start, SubscriptionSpec};
use crate::domain::id::{MemberId, OwnerId, PartitionId, TopicId};
use crate::domain::rejection::Rejection;
use crate::domain::topics::Topic;
use crate::wire::code::{Code, Refused};
use crate::wire::consume;
use crate::wire::consume::{
    Acknowledge, AcknowledgeUpTo, ExtendLeases, GrantCredit, Heartbeat, JoinGroup, Joined,
    LeaseRange, LeaveGroup, MemberEnd, Nack, Withdraw,
};
use crate::wire::frame::encode;
use crate::wire::group::{GroupDone, Subscription};
use crate::wire::reader::StreamOpen;
use crate::wire::topic::At;

/// How often the client of a member is asked for a sign of life.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(500);
/// After so long without one it is given up.
const SILENCE: Duration = Duration::from_secs(5);
/// The most records one grant of credit is taken for.
const CREDIT_RECORDS_MAX: u64 = 1_000_000;
/// Times opening a group is tried again, and between two of them.
const TRIES: u32 = 200;
const AGAIN: Duration = Duration::from_millis(10);

/// What the session knows of one of its members.
pub(super) struct Member {
    pub(super) group: Link<GroupActor>,
    pub(super) owner: OwnerId,
    pub(super) id: MemberId,
    /// To the half that writes what it hears.
    local: UnboundedSender<Local>,
    /// It has left or was told lost: nobody needs to be told again.
    gone: Cell<bool>,
}

/// What a session has its member's stream told, beside what the group tells.
pub(super) enum Local {
    /// A withdrawal was answered.
    Withdrawn(u64),
    /// It is over; why, unless the member left.
    End(Option<Refused>),
}

/// The members of a session. A place that is reserved has none yet.
#[derive(Default)]
pub(super) struct Members {
    by_consumer: RefCell<HashMap<u64, Option<Rc<Member>>>>,
    is_watched: Cell<bool>,
}

impl Members {
    pub(super) fn len(&self) -> usize {
        self.by_consumer.borrow().len()
    }

    pub(super) fn find(&self, consumer: u64) -> Result<Rc<Member>, Refused> {
        let found = self.by_consumer.borrow().get(&consumer).cloned().flatten();
        found.ok_or_else(|| refused(&Rejection::Group(GroupRejection::UnknownMember)))
    }

    /// The session ends: in good order or not.
    pub(super) fn end(&self, orderly: bool, why: Option<&Refused>) {
        let members: Vec<_> = self.by_consumer.borrow_mut().drain().collect();
        for member in members.into_iter().filter_map(|(_, member)| member) {
            member.tell_gone(orderly);
            let _ = member.local.send(Local::End(why.cloned()));
        }
    }
}

impl Member {
    fn ask(&self, command: Command, reply: ReplyTo) {
        self.group.tell(Do {
            command,
            events: None,
            reply,
        });
    }

    /// Tells the group, once, that it is no member any more.
    fn tell_gone(&self, orderly: bool) {
        if self.gone.replace(true) {
            return;
        }
        let member = self.id;
        let command = if orderly {
            Command::Leave { member }
        } else {
            Command::Lost { member }
        };
        self.ask(command, ReplyTo::nobody());
    }
}

/// Joins a group.
pub(super) fn join(session: &Rc<Session>, join: JoinGroup, correlation: u64, out: Out) {
    let consumer = join.consumer;
    let refusal = check(session, &join).err();
    if let Some(refused) = refusal {
        return out.refuse(&refused, correlation);
    }
    let members = &session.members;
    members.by_consumer.borrow_mut().insert(consumer, None);
    watch(session);
    let session = Rc::clone(session);
    let span = tracing::debug_span!(
        target: "waterwheel::member", "member", group = join.group, name = join.name
    );
    actix_rt::spawn(
        async move {
            if let Err(refused) = run(&session, join, correlation, &out).await {
                out.refuse(&refused, correlation);
            }
            session.members.by_consumer.borrow_mut().remove(&consumer);
        }
        .instrument(span),
    );
}

fn check(session: &Session, join: &JoinGroup) -> Result<(), Refused> {
    let limit = session.shared.limits.readers_max as usize;
    let taken = session.readers.borrow().len() + session.members.len();
    if taken >= limit {
        return Err(Refused::new(
            Code::TooManyReaders,
            format!("a connection may have {limit} readers and members"),
        ));
    }
    let exists = session.readers.borrow().contains_key(&join.consumer)
        || session
            .members
            .by_consumer
            .borrow()
            .contains_key(&join.consumer);
    if exists {
        return Err(Refused::new(
            Code::ReaderExists,
            "a reader or member of that number is open on this connection",
        ));
    }
    if join.subscriptions.is_empty() {
        return Err(Refused::new(
            Code::InvalidSubscription,
            "a member consumes at least one topic",
        ));
    }
    if *session.shared.stopping.borrow() {
        return Err(refused(&Rejection::ShuttingDown));
    }
    Ok(())
}

async fn run(
    session: &Rc<Session>,
    request: JoinGroup,
    correlation: u64,
    out: &Out,
) -> Result<(), Refused> {
    let names = request.subscriptions.iter().map(|s| s.topic.clone());
    let topics = topics(session, names.collect()).await?;
    let specs = request
        .subscriptions
        .iter()
        .map(|subscription| spec(subscription, &topics))
        .collect::<Result<Vec<_>, _>>()?;
    check_not_ours(&request.group)?;
    let (owner, group) = find_owner(session, &request.group, true).await?;
    let mut stream = session
        .connection
        .open_uni()
        .await
        .map_err(|error| Refused::new(Code::TooManyReaders, error.to_string()))?;
    let (events, heard) = mpsc::unbounded_channel();
    let (reply, mut answer) = question();
    group.tell(Do {
        command: Command::Join(Join {
            subscriptions: specs,
            name: request.name,
            grace_ms: request.grace_ms,
            settle: if request.at_most_once {
                Settle::OnDelivery
            } else {
                Settle::OnAcknowledge
            },
        }),
        events: Some(events),
        reply,
    });
    let (id, name, specs) = match first(&mut answer).await {
        Answer::Group(command::Answer::Joined {
            member,
            name,
            subscriptions,
        }) => (member, name, subscriptions),
        other => return Err(unexpected(other, "")),
    };
    let (local, locals) = mpsc::unbounded_channel();
    let member = Rc::new(Member {
        group: group.clone(),
        owner,
        id,
        local,
        gone: Cell::new(false),
    });
    // A session that ended meanwhile took the reserved place away.
    match session
        .members
        .by_consumer
        .borrow_mut()
        .get_mut(&request.consumer)
    {
        Some(place) => *place = Some(Rc::clone(&member)),
        None => {
            member.tell_gone(false);
            return Ok(());
        }
    }
    let mut head = BytesMut::new();
    let opened = encode(
        &StreamOpen {
            reader: request.consumer,
        },
        0,
        0,
        &mut head,
    );
    debug_assert!(opened.is_ok());
    let joined = Joined {
        name,
        subscriptions: specs
            .iter()
            .map(|spec| subscription(spec, &topics))
            .collect(),
    };
    out.send(&joined, correlation, Bytes::new());
    if stream.write(&mut [head.freeze()]).await.is_ok() {
        let end = leases::deliver(session, &member.group, id, heard, locals, &mut stream).await;
        let mut last = BytesMut::new();
        if encode(&MemberEnd { refused: end }, 0, 0, &mut last).is_ok() {
            let _ = stream.write(&mut [last.freeze()]).await;
        }
        stream.finish();
    }
    // A client that stopped the stream is as good as gone; one that left has been told already.
    member.tell_gone(false);
    Ok(())
}

/// The actor of a group that is to be joined or changed.
///
/// # Errors
/// There is none of that name, and none is to be made; it is the broker's own; or the directory refuses.
pub(super) async fn open_group(
    session: &Session,
    name: &str,
    create: bool,
) -> Result<Link<GroupActor>, Refused> {
    check_not_ours(name)?;
    find_group(session, name, create).await
}

/// The group that keeps account of dead letters is nobody else's.
///
/// # Errors
/// It is that one.
pub(super) fn check_not_ours(name: &str) -> Result<(), Refused> {
    if name != GROUP {
        return Ok(());
    }
    Err(Refused::new(
        Code::InvalidName,
        format!("the broker keeps account of dead letters in the group {GROUP}; take another name"),
    ))
}

/// The actor of any group, the broker's own too.
///
/// # Errors
/// There is none of that name, and none is to be made; or the directory refuses.
pub(super) async fn find_group(
    session: &Session,
    name: &str,
    create: bool,
) -> Result<Link<GroupActor>, Refused> {
    Ok(find_owner(session, name, create).await?.1)
}

/// The same with its owner.
async fn find_owner(
    session: &Session,
    name: &str,
    create: bool,
) -> Result<(OwnerId, Link<GroupActor>), Refused> {
    let open = async || {
        let name = name.to_owned();
        session
            .shared
            .ask_directory(|reply| OpenGroup {
                name,
                create,
                reply,
            })
            .await
    };
    match persist(open).await {
        Answer::GroupActor(known, link) => Ok((known.owner, link)),
        other => Err(unexpected(other, "")),
    }
}

/// Asks again as long as the answer is to do so, for about two seconds: a group is being made, or made again.
pub(super) async fn persist(ask: impl AsyncFn() -> Answer) -> Answer {
    for _ in 0..TRIES {
        match ask().await {
            Answer::Refused(Rejection::Retry) => tokio::time::sleep(AGAIN).await,
            answer => return answer,
        }
    }
    ask().await
}

/// The topics of these names.
///
/// # Errors
/// One of them is unknown, or the directory does not answer.
pub(super) async fn topics(session: &Session, names: Vec<String>) -> Result<Vec<Topic>, Refused> {
    let answer = session
        .shared
        .ask_directory(|reply| List { names, reply })
        .await;
    match answer {
        Answer::Topics(topics, unknown) => match unknown.first() {
            Some(name) => Err(unknown_topic(name)),
            None => Ok(topics),
        },
        other => Err(unexpected(other, "")),
    }
}

/// A subscription as its machine knows it.
pub(super) fn spec(
    subscription: &Subscription,
    topics: &[Topic],
) -> Result<SubscriptionSpec, Refused> {
    let topic = topics
        .iter()
        .find(|topic| topic.name == subscription.topic)
        .ok_or_else(|| unknown_topic(&subscription.topic))?;
    let mut spec = SubscriptionSpec::new(topic.id, subscription.mode);
    spec.filter = subscription.filter.clone();
    spec.start = start(subscription.start);
    spec.retry = subscription.retry.clone().unwrap_or_default();
    if subscription.lease_ms != 0 {
        spec.lease_ms = subscription.lease_ms;
    }
    Ok(spec)
}

/// A subscription as the wire says it.
pub(super) fn subscription(spec: &SubscriptionSpec, topics: &[Topic]) -> Subscription {
    Subscription {
        topic: topic_name(spec.topic, topics),
        topic_id: spec.topic,
        mode: spec.mode,
        filter: spec.filter.clone(),
        start: match spec.start {
            Start::Earliest => At::Earliest,
            Start::Latest => At::Latest,
            Start::Time(time) => At::Time(time),
            Start::Offset(offset) => At::Offset(offset),
        },
        retry: Some(spec.retry.clone()),
        lease_ms: spec.lease_ms,
    }
}

/// A topic's name; its number where it was deleted.
pub(super) fn topic_name(id: TopicId, topics: &[Topic]) -> String {
    topics
        .iter()
        .find(|topic| topic.id == id)
        .map_or_else(|| format!("deleted topic {id}"), |topic| topic.name.clone())
}

/// A place as the machine knows it.
pub(super) fn start(at: At) -> Start {
    match at {
        At::Earliest => Start::Earliest,
        At::Latest => Start::Latest,
        At::Offset(offset) => Start::Offset(offset),
        At::Time(time) => Start::Time(time),
    }
}

/// Adds to a member's credit; void for one that is gone.
pub(super) fn credit(session: &Session, credit: GrantCredit) {
    if let Ok(member) = session.members.find(credit.consumer) {
        let command = Command::Credit {
            member: member.id,
            topic: credit.topic,
            bytes: credit.bytes.min(session.shared.limits.credit_bytes_max),
            records: credit.records.min(CREDIT_RECORDS_MAX),
        };
        member.ask(command, ReplyTo::nobody());
    }
}

/// Takes a member's credit back; answered on its stream, behind what was leased before.
pub(super) fn withdraw(session: &Session, withdraw: Withdraw) {
    let Ok(member) = session.members.find(withdraw.consumer) else {
        return;
    };
    let (reply, mut answer) = question();
    let command = Command::Withdraw {
        member: member.id,
        topic: withdraw.topic,
    };
    member.ask(command, reply);
    actix_rt::spawn(async move {
        let _ = first(&mut answer).await;
        let _ = member.local.send(Local::Withdrawn(withdraw.token));
    });
}

pub(super) fn ranges(ranges: Vec<LeaseRange>) -> Vec<LeasedRange> {
    let range = |range: LeaseRange| LeasedRange {
        lease: range.lease,
        first: range.first,
        count: range.count,
    };
    ranges.into_iter().map(range).collect()
}

/// What a member says of its leases.
pub(super) enum Said {
    /// These are consumed.
    Acknowledge(Acknowledge),
    /// All up to a place are.
    UpTo(AcknowledgeUpTo),
    /// These are not.
    Nack(Nack),
    /// These need more time.
    Extend(ExtendLeases),
}

/// Takes what a member says of its leases to its group, which answers when it is durable.
pub(super) fn say(session: &Session, said: Said, correlation: u64, out: &Out) {
    let consumer = match &said {
        Said::Acknowledge(said) => said.consumer,
        Said::UpTo(said) => said.consumer,
        Said::Nack(said) => said.consumer,
        Said::Extend(said) => said.consumer,
    };
    let found = match session.members.find(consumer) {
        Ok(found) => found,
        Err(refused) => return out.refuse(&refused, correlation),
    };
    let member = found.id;
    let command = match said {
        Said::Acknowledge(said) => Command::Acknowledge {
            member,
            ranges: ranges(said.ranges),
        },
        Said::UpTo(said) => Command::AcknowledgeUpTo {
            member,
            place: PartitionId {
                topic: said.topic,
                partition: said.partition,
                lane: said.lane,
            },
            end: said.end,
        },
        Said::Nack(said) => Command::Refuse {
            member,
            ranges: ranges(said.ranges),
            after: match said.after {
                consume::RetryAfter::Policy => RetryAfter::Policy,
                consume::RetryAfter::Now => RetryAfter::Now,
                consume::RetryAfter::Ms(ms) => RetryAfter::Ms(ms),
                consume::RetryAfter::Dead => RetryAfter::DeadLetter,
                consume::RetryAfter::Unseen => RetryAfter::Unseen,
            },
            reason: said.reason,
        },
        Said::Extend(said) => Command::Extend {
            member,
            leases: said.leases,
            lease_ms: said.lease_ms,
        },
    };
    found.ask(command, out.reply(correlation));
}

/// Leaves in good order.
pub(super) fn leave(session: &Session, leave: LeaveGroup, correlation: u64, out: Out) {
    let found = match session.members.find(leave.consumer) {
        Ok(found) => found,
        Err(refused) => return out.refuse(&refused, correlation),
    };
    let command = Command::Leave { member: found.id };
    let (reply, mut answer) = question();
    if found.gone.replace(true) {
        return out.send(&GroupDone {}, correlation, Bytes::new());
    }
    found.ask(command, reply);
    actix_rt::spawn(async move {
        match first(&mut answer).await {
            // Whatever became of it, it is no member any more.
            Answer::Refused(rejection) if rejection != Rejection::Retry => {
                out.refuse(&refused(&rejection), correlation);
            }
            _ => out.send(&GroupDone {}, correlation, Bytes::new()),
        }
        let _ = found.local.send(Local::End(None));
    });
}

/// Looks for signs of life as long as the connection has a member (N8).
fn watch(session: &Rc<Session>) {
    if session.members.is_watched.replace(true) {
        return;
    }
    let session = Rc::clone(session);
    actix_rt::spawn(
        async move {
            let silent = until_silent(&session).await;
            session.members.is_watched.set(false);
            if silent {
                let why = "the client has been silent for 5 s while it was a member of a group";
                tracing::info!(target: "waterwheel::session", "{why}");
                session.members.end(false, None);
                close(&session.connection, Code::UnknownMember, why);
            }
        }
        .in_current_span(),
    );
}

/// Ends when there is no member any more, or when the client has been silent for too long.
async fn until_silent(session: &Session) -> bool {
    let heard = || session.connection.heard();
    let mut last = heard();
    if last.is_none() {
        // Its end is always told: silence means nothing.
        return false;
    }
    let (mut heard_by, mut looked) = (Instant::now(), Instant::now());
    let mut beat = looked;
    loop {
        if session.members.len() == 0 {
            return false;
        }
        let now = Instant::now();
        if now >= beat {
            beat = now + HEARTBEAT;
            if let Some(control) = &*session.control.borrow() {
                control.send(&Heartbeat {}, 0, Bytes::new());
            }
        }
        let next = (now + LOOK).min(heard_by + SILENCE).max(now + LOOK / 10);
        sleep_until(next).await;
        let now = Instant::now();
        // A process that was held up itself has heard nobody.
        if now > next + LOOK || heard() != last {
            last = heard();
            // It came after the last look: counted from there, the client is not given a moment too long.
            heard_by = if now > next + LOOK { now } else { looked };
        } else if now >= heard_by + SILENCE {
            return true;
        }
        looked = now;
    }
}

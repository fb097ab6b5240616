//! Transactions in a session: opening, halves on their way, ends, questions for outcomes.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of many answers one is hoped for; kinds that are no request are skipped"
)]

use std::rc::Rc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

use super::out::Out;
use super::refusal::refused;
use super::requests::unexpected;
use super::session::{Session, bad_frame, first, question};
use crate::actors::Link;
use crate::actors::directory::groups::ListGroups;
use crate::actors::directory::{List, LocateCoordinator};
use crate::actors::group::Known;
use crate::actors::partition::{Append, PartitionActor};
use crate::actors::reply::Answer;
use crate::actors::transaction::{
    Ask, Checked, CoordinatorActor, End, Half, Heard, Listen, OpenSession as Open, Question, Tell,
};
use crate::domain::alarm::dues_of;
use crate::domain::id::{OwnerId, PartitionId, TopicId};
use crate::domain::rejection::Rejection;
use crate::domain::transaction::{
    By, Decision, Description, Part, Participant, Registration, SHARDS, State, TransactionId,
    shard_of, shard_of_name,
};
use crate::wire::code::{Code, Refused};
use crate::wire::frame::{Frame, FrameKind};
use crate::wire::topic::encode_page;
use crate::wire::transaction::{
    CheckBack, CheckedBack, EndTransaction, ListTransactions, OpenSession, Outcome,
    ParticipantInfo, SessionOk, TransactionEnded, TransactionInfo, TransactionsOk,
};

/// Transactions one answer lists at most.
const LIST_MAX: usize = 1_000;
/// Bytes of an answer at most, unless one transaction alone takes more.
const LIST_BYTES_MAX: usize = 256 * 1024;

/// Answers a request about transactions.
///
/// # Errors
/// The refusal.
pub(super) async fn answer(
    session: &Rc<Session>,
    kind: FrameKind,
    frame: &Frame,
    out: &Out,
) -> Result<(), Refused> {
    let correlation = frame.correlation();
    match kind {
        FrameKind::OpenSession => {
            let request: OpenSession = frame.decode().map_err(bad_frame)?;
            open(session, request, correlation, out).await
        }
        FrameKind::EndTransaction => {
            let request: EndTransaction = frame.decode().map_err(bad_frame)?;
            end(session, request, correlation, out).await
        }
        FrameKind::ListTransactions => {
            let request: ListTransactions = frame.decode().map_err(bad_frame)?;
            list(session, request, correlation, out).await
        }
        _ => Ok(()),
    }
}

async fn open(
    session: &Rc<Session>,
    request: OpenSession,
    correlation: u64,
    out: &Out,
) -> Result<(), Refused> {
    if *session.shared.stopping.borrow() {
        return Err(refused(&Rejection::ShuttingDown));
    }
    let coordinator = coordinator(session, shard_of_name(&request.name)).await?;
    let (reply, mut answer) = question();
    coordinator.tell(Open {
        name: request.name,
        group: request.group.clone(),
        resume: request.resume,
        reply,
    });
    match first(&mut answer).await {
        Answer::Session(producer, epoch) => {
            if request.checks {
                listen(session, request.group).await?;
            }
            out.send(&SessionOk { producer, epoch }, correlation, Bytes::new());
            Ok(())
        }
        other => Err(unexpected(other, "")),
    }
}

/// This connection's client can be asked for outcomes of the group, whichever shard asks.
async fn listen(session: &Rc<Session>, group: String) -> Result<(), Refused> {
    if session.checks.borrow().contains_key(&group) {
        return Ok(());
    }
    // Bounded by the open transactions of the group: each is asked about once in an interval.
    let (questions, mut asked) = mpsc::unbounded_channel();
    for shard in 0..SHARDS {
        let listen = Listen {
            group: group.clone(),
            questions: questions.clone(),
        };
        coordinator(session, shard).await?.tell(listen);
    }
    let (listening, mut nobody_left) = oneshot::channel();
    session.checks.borrow_mut().insert(group.clone(), listening);
    let weak = Rc::downgrade(session);
    actix_rt::spawn(
        async move {
            let mut open = true;
            loop {
                let question = tokio::select! {
                    _ = &mut nobody_left, if open => {
                        (open, _) = (false, asked.close());
                        continue;
                    }
                    question = asked.recv() => question,
                };
                let (Some(question), Some(session)) = (question, weak.upgrade()) else {
                    return;
                };
                if open {
                    ask_client(&session, &group, question).await;
                } else {
                    pass_back(&session, question.id, Heard::ByNobody).await;
                }
            }
        }
        .in_current_span(),
    );
    Ok(())
}

async fn pass_back(session: &Rc<Session>, id: TransactionId, answer: Heard) {
    if let Ok(coordinator) = of_transaction(session, id).await {
        coordinator.tell(Checked { id, answer });
    }
}

async fn ask_client(session: &Session, group: &str, question: Question) {
    let (topic, body) = match question.partition {
        Some(partition) => first_half(session, question.id, partition).await,
        None => (String::new(), Bytes::new()),
    };
    let check = CheckBack {
        producer: question.id.producer,
        epoch: question.id.epoch,
        number: question.id.number,
        group: group.to_owned(),
        topic,
    };
    if let Some(control) = session.control.borrow().as_ref() {
        control.send(&check, 0, body);
    }
}

/// The topic's name and the first batch of a transaction, as far as they can be had: whoever is asked
/// may know the outcome by the transaction's name alone.
async fn first_half(
    session: &Session,
    id: TransactionId,
    partition: PartitionId,
) -> (String, Bytes) {
    let name = topic_names(session, &[partition.topic]).await.pop();
    let place = (partition.topic, partition.partition, partition.lane);
    let body = super::reader::half_batch(session, place, id).await;
    (
        name.map(|(_, name)| name).unwrap_or_default(),
        body.unwrap_or_default(),
    )
}

/// Names of topics that still exist.
async fn topic_names(session: &Session, ids: &[TopicId]) -> Vec<(TopicId, String)> {
    let names = Vec::new();
    match session
        .shared
        .ask_directory(|reply| List { names, reply })
        .await
    {
        Answer::Topics(topics, _) => topics
            .into_iter()
            .filter(|topic| ids.contains(&topic.id))
            .map(|topic| (topic.id, topic.name))
            .collect(),
        _ => Vec::new(),
    }
}

/// The consumer groups there are.
async fn groups(session: &Session) -> Vec<Known> {
    match session
        .shared
        .ask_directory(|reply| ListGroups { reply })
        .await
    {
        Answer::Groups(groups) => groups,
        _ => Vec::new(),
    }
}

async fn end(
    session: &Session,
    request: EndTransaction,
    correlation: u64,
    out: &Out,
) -> Result<(), Refused> {
    let id = TransactionId {
        producer: request.producer,
        epoch: request.epoch,
        number: request.number,
    };
    let decision = decision(request.outcome).ok_or_else(|| {
        Refused::new(
            Code::FrameMalformed,
            "a transaction is ended by commit or rollback",
        )
    })?;
    let by = if request.operator {
        By::Operator
    } else {
        By::Producer
    };
    let coordinator = of_transaction(session, id).await?;
    let (reply, mut answer) = question();
    coordinator.tell(End {
        id,
        decision,
        by,
        reply,
    });
    match first(&mut answer).await {
        Answer::Ended(decision, by) => {
            let ended = TransactionEnded {
                outcome: outcome(decision),
                by: by_name(by).to_owned(),
            };
            out.send(&ended, correlation, Bytes::new());
            Ok(())
        }
        other => Err(unexpected(other, "")),
    }
}

async fn list(
    session: &Session,
    request: ListTransactions,
    correlation: u64,
    out: &Out,
) -> Result<(), Refused> {
    let max = match usize::try_from(request.max) {
        Ok(max @ 1..) => max.min(LIST_MAX),
        _ => LIST_MAX,
    };
    let mut found = Vec::new();
    if let Some(id) = request.only {
        found = told(of_transaction(session, id).await?, Ask::Describe(id)).await?;
    } else {
        for shard in 0..SHARDS {
            let coordinator = coordinator(session, shard).await?;
            found.extend(told(coordinator, Ask::List(request.after, max)).await?);
        }
        found.sort_by_key(|one| one.id);
        found.truncate(max);
    }
    let topics: Vec<TopicId> = found
        .iter()
        .flat_map(|one| &one.participants)
        .filter_map(|one| match one.part {
            Part::Records { partition, .. } => Some(partition.topic),
            Part::Attached => None,
        })
        .collect();
    let names = topic_names(session, &topics).await;
    let attached = found
        .iter()
        .flat_map(|one| &one.participants)
        .any(|one| one.part == Part::Attached);
    let groups = match attached {
        true => groups(session).await,
        false => Vec::new(),
    };
    let list: Vec<TransactionInfo> = found.iter().map(|one| info(one, &names, &groups)).collect();
    let page = encode_page(&list, LIST_BYTES_MAX);
    out.send(&TransactionsOk {}, correlation, page);
    Ok(())
}

async fn told(coordinator: Link<CoordinatorActor>, ask: Ask) -> Result<Vec<Description>, Refused> {
    let (reply, mut answer) = question();
    coordinator.tell(Tell { ask, reply });
    match first(&mut answer).await {
        Answer::Transactions(list) => Ok(list),
        other => Err(unexpected(other, "")),
    }
}

/// Takes the answer to a question for an outcome; one that is too late, or about nothing, is ignored.
///
/// # Errors
/// What the connection ends for: a header that is none.
pub(super) fn checked_back(session: &Rc<Session>, frame: &Frame) -> Result<(), Refused> {
    let checked: CheckedBack = frame.decode().map_err(bad_frame)?;
    let id = TransactionId {
        producer: checked.producer,
        epoch: checked.epoch,
        number: checked.number,
    };
    let answer = match checked.nobody_of {
        // A later session of the group makes itself known again.
        Some(group) => {
            session.checks.borrow_mut().remove(&group);
            Heard::ByNobody
        }
        None => Heard::Answered(decision(checked.outcome)),
    };
    let session = Rc::clone(session);
    actix_rt::spawn(async move { pass_back(&session, id, answer).await });
    Ok(())
}

/// Sends a transaction's batch through its coordinator to its partition.
///
/// # Errors
/// The producer id is no session's, or its coordinator cannot be had.
pub(super) async fn half(
    session: &Session,
    append: Append,
    (owner, partition, to): (OwnerId, PartitionId, Link<PartitionActor>),
    immunity_ms: Option<u32>,
) -> Result<(), (Refused, Append)> {
    let id = TransactionId {
        producer: append.facts.producer,
        epoch: append.facts.epoch,
        number: append.facts.transaction,
    };
    let coordinator = match of_transaction(session, id).await {
        Ok(coordinator) => coordinator,
        Err(refused) => return Err((refused, append)),
    };
    let records = append.count;
    let delayed = dues_of(&append.facts.deliveries, 0).count();
    let immediate = records.saturating_sub(u32::try_from(delayed).unwrap_or(records));
    let participant = Participant {
        owner,
        part: Part::Records {
            partition,
            records,
            immediate,
        },
    };
    coordinator.tell(Half {
        registration: Registration {
            id,
            participant,
            immunity_ms,
        },
        append,
        to,
    });
    Ok(())
}

pub(super) async fn of_transaction(
    session: &Session,
    id: TransactionId,
) -> Result<Link<CoordinatorActor>, Refused> {
    let shard = shard_of(id.producer).ok_or_else(|| refused(&Rejection::TransactionUnknown))?;
    coordinator(session, shard).await
}

async fn coordinator(session: &Session, shard: u8) -> Result<Link<CoordinatorActor>, Refused> {
    if let Some(link) = session.coordinators.borrow().get(&shard)
        && link.is_alive()
    {
        return Ok(link.clone());
    }
    let answer = session
        .shared
        .ask_directory(|reply| LocateCoordinator { shard, reply })
        .await;
    match answer {
        Answer::Coordinator(link) => {
            session
                .coordinators
                .borrow_mut()
                .insert(shard, link.clone());
            Ok(link)
        }
        other => Err(unexpected(other, "")),
    }
}

fn decision(outcome: Outcome) -> Option<Decision> {
    match outcome {
        Outcome::Commit => Some(Decision::Commit),
        Outcome::Rollback => Some(Decision::Rollback),
        Outcome::Unknown => None,
    }
}

fn outcome(decision: Decision) -> Outcome {
    match decision {
        Decision::Commit => Outcome::Commit,
        Decision::Rollback => Outcome::Rollback,
    }
}

fn by_name(by: By) -> &'static str {
    match by {
        By::Producer => "producer",
        By::CheckBack => "check-back",
        By::Operator => "operator",
        By::Fencing => "fencing",
        By::Timeout => "timeout",
        By::Expiry => "expiry",
    }
}

fn info(one: &Description, names: &[(TopicId, String)], groups: &[Known]) -> TransactionInfo {
    let (state, by) = match one.state {
        State::Open => ("open", None),
        State::Deciding(_, by) => ("deciding", Some(by)),
        State::Decided(Decision::Commit, by) => ("committed", Some(by)),
        State::Decided(Decision::Rollback, by) => ("rolled-back", Some(by)),
    };
    TransactionInfo {
        id: one.id,
        name: one.name.clone(),
        group: one.group.clone(),
        state: state.to_owned(),
        by: by.map(|by| by_name(by).to_owned()),
        at: one.at,
        checked_back: one.checked_back,
        checks: u32::from(one.checks),
        batches: one.batches,
        participants: one
            .participants
            .iter()
            .map(|one| participant(one, names, groups))
            .collect(),
    }
}

fn participant(
    one: &Participant,
    names: &[(TopicId, String)],
    groups: &[Known],
) -> ParticipantInfo {
    match one.part {
        Part::Records {
            partition, records, ..
        } => ParticipantInfo {
            topic: Some(partition.topic),
            topic_name: names
                .iter()
                .find(|(id, _)| *id == partition.topic)
                .map(|(_, name)| name.clone()),
            partition: partition.partition,
            lane: partition.lane,
            records,
            consumer_group: None,
        },
        Part::Attached => ParticipantInfo {
            consumer_group: groups
                .iter()
                .find(|group| group.owner == one.owner)
                .map(|group| group.name.clone()),
            ..ParticipantInfo::default()
        },
    }
}

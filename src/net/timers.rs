//! Requests about delayed records, and the secret their handles are keyed with.
//!
//! - N8 A handle is good for the one record it was made for: one that was made up, changed, or made by
//!   another cluster is answered as one nobody knows of.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of many answers one or two are hoped for"
)]

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use ring::hmac;

use super::member::topics;
use super::out::Out;
use super::refusal::refused;
use super::requests::unexpected;
use super::session::{Place, Session, first, question};
use super::tls::write_whole;
use crate::actors::Link;
use crate::actors::directory::Locate;
use crate::actors::partition::{self, PartitionActor};
use crate::actors::reply::Answer;
use crate::domain::batch::Delivery;
use crate::domain::id::{OwnerId, RecordNumber};
use crate::domain::partition::delayed::{self, TimerAnswer, TimerCommand};
use crate::domain::rejection::Rejection;
use crate::domain::time::WallMs;
use crate::wire::code::{Code, Refused};
use crate::wire::timer::{
    AskTimer, ListTimers, ListedTimer, TimerAction, TimerKey, TimerOk, TimerState, TimersOk,
};
use crate::wire::topic::encode_list;

const SECRET_BYTES: usize = 32;
/// Partitions asked at a time.
const ASKED_TOGETHER: usize = 64;

/// The secret of a data directory, made where there is none: losing the file makes every handle given out
/// before one that nobody knows of.
///
/// # Errors
/// The file cannot be read or made, or is not 32 bytes long.
pub fn secret(path: &Path) -> io::Result<Arc<hmac::Key>> {
    let bytes = match fs::read(path) {
        Ok(bytes) if bytes.len() == SECRET_BYTES => bytes,
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is not 32 bytes long; put it back, or remove it and give up the timer handles given out",
            ));
        }
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => {
            let mut bytes = vec![0; SECRET_BYTES];
            getrandom::fill(&mut bytes).map_err(io::Error::other)?;
            write_whole(path, &bytes, 0o600)?;
            bytes
        }
        Err(fault) => return Err(fault),
    };
    Ok(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
}

/// Does what is asked about one delayed record.
pub(super) async fn ask(
    session: &Session,
    ask: &AskTimer,
    correlation: u64,
    out: &Out,
) -> Result<(), Refused> {
    let not_found = || {
        let state = TimerState::NotFound;
        out.send(&TimerOk { state }, correlation, Bytes::new());
        Ok(())
    };
    let place = (ask.topic, ask.partition, ask.lane);
    let (owner, partition) = match located(session, place).await {
        Ok(found) => found,
        // The topic was deleted, or never was: so were its timers.
        Err(Rejection::UnknownTopic | Rejection::PartitionOutOfRange { .. }) => {
            return not_found();
        }
        Err(rejection) => return Err(refused(&rejection)),
    };
    let secret = &session.shared.timer_secret;
    let key = TimerKey::of_batch(secret, owner, ask.first).of_record(ask.number);
    if !key.is(ask.key) {
        return not_found();
    }
    let command = match ask.action {
        TimerAction::Cancel => TimerCommand::Cancel,
        TimerAction::At(due) => TimerCommand::Reschedule(Delivery::At(due)),
        TimerAction::After(span) => TimerCommand::Reschedule(Delivery::After(span.max(0))),
        TimerAction::Look => TimerCommand::Look,
    };
    let (reply, mut answer) = question();
    let number = ask.number;
    partition.tell(partition::AskTimer {
        number,
        command,
        reply,
    });
    let state = match first(&mut answer).await {
        Answer::Timer(TimerAnswer::Cancelled) => TimerState::Cancelled,
        Answer::Timer(TimerAnswer::NotFound) => TimerState::NotFound,
        Answer::Timer(TimerAnswer::AlreadyFired(offset)) => TimerState::AlreadyFired { offset },
        Answer::Timer(TimerAnswer::Rescheduled(pending)) => {
            TimerState::Rescheduled { due: pending.due }
        }
        Answer::Timer(TimerAnswer::Pending(pending)) => TimerState::Pending { due: pending.due },
        other => return Err(unexpected(other, "")),
    };
    out.send(&TimerOk { state }, correlation, Bytes::new());
    Ok(())
}

async fn located(
    session: &Session,
    place: Place,
) -> Result<(OwnerId, Link<PartitionActor>), Rejection> {
    let (topic, partition, lane) = place;
    let answer = session
        .shared
        .ask_directory(|reply| Locate {
            topic,
            partition,
            lane,
            reply,
        })
        .await;
    match answer {
        Answer::Partition(owner, link) => Ok((owner, link)),
        Answer::Refused(rejection) => Err(rejection),
        _ => Err(Rejection::Retry),
    }
}

/// How many delayed records wait in a topic, as far as its partitions can be asked: each is, as to
/// describe it, so many at a time.
pub(super) async fn pending(session: &Session, name: &str) -> u64 {
    let topics = topics(session, vec![name.to_owned()]).await;
    let Some(topic) = topics.as_ref().ok().and_then(|topics| topics.first()) else {
        return 0;
    };
    let places = topic
        .lanes()
        .map(|(partition, lane)| (topic.id, partition, lane));
    stream::iter(places)
        .map(|place| pending_in(session, place))
        .buffer_unordered(ASKED_TOGETHER)
        .fold(0, async |sum: u64, pending| sum.saturating_add(pending))
        .await
}

async fn pending_in(session: &Session, place: Place) -> u64 {
    let Ok((_, partition)) = located(session, place).await else {
        return 0;
    };
    let (reply, mut answer) = question();
    partition.tell(partition::AskTimers {
        list: delayed::ListTimers {
            from: RecordNumber(u64::MAX),
            due_from: WallMs(i64::MAX),
            due_before: WallMs(i64::MIN),
            max: 1,
        },
        reply,
    });
    match first(&mut answer).await {
        Answer::Timer(TimerAnswer::Listed { pending, .. }) => pending,
        _ => 0,
    }
}

/// Lists what waits in a partition.
pub(super) async fn list(
    session: &Session,
    list: &ListTimers,
    correlation: u64,
    out: &Out,
) -> Result<(), Refused> {
    let place = (list.topic, list.partition, list.lane);
    let (owner, partition) = located(session, place)
        .await
        .map_err(|rejection| refused(&rejection))?;
    let (reply, mut answer) = question();
    partition.tell(partition::AskTimers {
        list: delayed::ListTimers {
            from: list.from,
            due_from: list.due_from,
            due_before: list.due_before,
            max: usize::try_from(list.max).unwrap_or(usize::MAX),
        },
        reply,
    });
    let (found, next, pending) = match first(&mut answer).await {
        Answer::Timer(TimerAnswer::Listed {
            found,
            next,
            pending,
        }) => (found, next, pending),
        other => return Err(unexpected(other, "")),
    };
    let secret = &session.shared.timer_secret;
    let timers: Vec<ListedTimer> = found
        .into_iter()
        .map(|pending| ListedTimer {
            number: pending.number,
            due: pending.due,
            key: TimerKey::of_batch(secret, owner, pending.number).of_record(pending.number),
        })
        .collect();
    let body = if timers.is_empty() {
        Bytes::new()
    } else {
        encode_list(&timers)
    };
    if list.leader_epoch != 0 {
        return Err(Refused::new(
            Code::StaleEpoch,
            "the leader epoch is 0; ask for the metadata",
        ));
    }
    out.send(&TimersOk { next, pending }, correlation, body);
    Ok(())
}

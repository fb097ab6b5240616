//! Readers: one partition delivered on one unidirectional stream, by credit.
//!
//! Push is standing credit the client renews, pull is credit granted once with a deadline: the same
//! loop. One half finds and fetches batches as far as credit goes, the other writes them; a group of
//! [`GROUP_BYTES`] is fetched while the one before it is on its way. A reader at the end of its
//! partition waits there without a timer.
//!
//! - N4 Never more than the granted credit is sent, overdrawn at most once by one batch.
//! - N5 What a reader that does not read holds is bounded: two groups, and the connection's send window.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of many answers one or two are hoped for"
)]

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

use super::credit::{Control, give_back, give_up, take_credit};
use super::gather::{Outgoing, Payload, gather};
use super::out::Out;
use super::pieces::{self, Pieces, is_read_alone};
use super::refusal::refused;
use super::requests::{bounds, read_from, unexpected};
use super::session::{Place, Session, first, question};
use crate::actors::Link;
use crate::actors::partition::{FindHalf, PartitionActor, Read};
use crate::actors::reply::{Answer, ReplyTo};
use crate::domain::body::Body;
use crate::domain::entry::EntryPlace;
use crate::domain::id::{LogPosition, Offset};
use crate::domain::partition::ReadAnswer;
use crate::domain::partition::index::BatchPlace;
use crate::domain::rejection::Rejection;
use crate::domain::transaction::TransactionId;
use crate::log::{ReadError, Share};
use crate::transport::{SendStream, StreamEnded};
use crate::wire::code::{Code, Refused};
use crate::wire::frame::encode;
use crate::wire::reader::{
    Deliver, DeliverPublished, EndReason, OpenReader, ReaderEnd, ReaderMode, ReaderOk, StreamOpen,
};

/// Bytes fetched together.
const GROUP_BYTES: u64 = 1024 * 1024;
/// Payloads read for the references of one group, in bytes, beyond its first.
const PAYLOAD_BYTES: u64 = 4 * 1024 * 1024;
/// Times a refusal that passes is asked again before the reader ends with it.
const TRIES: u32 = 200;
/// Between two of them.
const AGAIN: Duration = Duration::from_millis(10);
/// The longest a pull may wait: longer is taken as this.
const WAIT_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// Opens a reader.
pub(super) fn open(session: &Rc<Session>, open: OpenReader, correlation: u64, out: Out) {
    let limit = session.shared.limits.readers_max as usize;
    let refusal = if session.readers.borrow().len() >= limit {
        Some(Refused::new(
            Code::TooManyReaders,
            format!("a connection may have {limit} readers"),
        ))
    } else if session.readers.borrow().contains_key(&open.reader) {
        Some(Refused::new(
            Code::ReaderExists,
            "a reader of that id is open on this connection",
        ))
    } else if open.leader_epoch != 0 {
        Some(Refused::new(
            Code::StaleEpoch,
            "the leader epoch is 0; ask for the metadata",
        ))
    } else {
        take_credit(session, open.credit_bytes).err()
    };
    if let Some(refused) = refusal {
        return out.refuse(&refused, correlation);
    }
    let control = Rc::new(Control::default());
    control.grant(open.credit_bytes);
    session
        .readers
        .borrow_mut()
        .insert(open.reader, Rc::clone(&control));
    let session = Rc::clone(session);
    let span = tracing::debug_span!(
        target: "waterwheel::reader", "reader", topic = open.topic.0, partition = open.partition.0
    );
    actix_rt::spawn(
        async move {
            if let Err(refused) = run(&session, &control, &open, correlation, &out).await {
                out.refuse(&refused, correlation);
            }
            session.readers.borrow_mut().remove(&open.reader);
            give_up(&session, &control);
        }
        .instrument(span),
    );
}

/// Batches on their way from the fetching to the writing half.
struct Group {
    high_watermark: Offset,
    frames: Vec<Outgoing>,
    /// One past the last offset in it.
    end: Offset,
    bytes: u64,
}

async fn run(
    session: &Rc<Session>,
    control: &Control,
    open: &OpenReader,
    correlation: u64,
    out: &Out,
) -> Result<(), Refused> {
    let place = (open.topic, open.partition, open.lane);
    let found = bounds(session, place, read_from(open.from)).await?;
    let ok = ReaderOk {
        first_offset: found.offset,
        start_offset: found.start,
        high_watermark: found.high_watermark,
    };
    let mut stream = session
        .connection
        .open_uni()
        .await
        .map_err(|error| Refused::new(Code::TooManyReaders, error.to_string()))?;
    out.send(&ok, correlation, Bytes::new());
    let mut head = BytesMut::new();
    let opened = encode(
        &StreamOpen {
            reader: open.reader,
        },
        0,
        0,
        &mut head,
    );
    debug_assert!(opened.is_ok());
    // A stream the client refuses ends the reader as if it had closed it.
    if stream.write(&mut [head.freeze()]).await.is_err() {
        return Ok(());
    }
    let _attendance = session.shared.house.cache.attend();
    let (groups, mut fetched) = mpsc::channel(1);
    let fetch = fetch(session, control, open, found.offset, groups);
    let write = async {
        let mut next = found.offset;
        while let Some(group) = fetched.recv().await {
            match write_group(&mut stream, open.reader, next, group).await {
                Ok(end) => next = end,
                Err(_) => {
                    control.close();
                    break;
                }
            }
        }
        next
    };
    let (reason, next_offset) = futures::join!(fetch, write);
    let end = ReaderEnd {
        reader: open.reader,
        reason,
        next_offset,
    };
    let mut last = BytesMut::new();
    if encode(&end, 0, 0, &mut last).is_ok() {
        let _ = stream.write(&mut [last.freeze()]).await;
    }
    stream.finish();
    Ok(())
}

async fn write_group(
    stream: &mut SendStream,
    reader: u64,
    mut next: Offset,
    group: Group,
) -> Result<Offset, StreamEnded> {
    let mut pieces = Vec::with_capacity(group.frames.len() * 2);
    let mut heads = BytesMut::with_capacity(group.frames.len() * 64);
    let high_watermark = group.high_watermark;
    for frame in &group.frames {
        let skip =
            |first: Offset| u32::try_from(next.0.saturating_sub(first.0)).unwrap_or(u32::MAX);
        match frame {
            Outgoing::Whole(batch, body) => {
                let deliver = Deliver {
                    reader,
                    first_offset: batch.first_offset,
                    first_number: batch.first_number,
                    count: batch.count,
                    skip: skip(batch.first_offset),
                    appended: batch.appended,
                    high_watermark,
                };
                let encoded = encode(&deliver, 0, body.len(), &mut heads);
                debug_assert!(encoded.is_ok());
                pieces.push(heads.split().freeze());
                pieces.extend_from_slice(body.pieces());
                next = batch.end();
            }
            Outgoing::Gathered {
                first_offset,
                count,
                details,
                batch,
            } => {
                let deliver = DeliverPublished {
                    reader,
                    first_offset: *first_offset,
                    count: *count,
                    skip: skip(*first_offset),
                    high_watermark,
                };
                let encoded = encode(&deliver, 0, details.len() + batch.len(), &mut heads);
                debug_assert!(encoded.is_ok());
                pieces.push(heads.split().freeze());
                pieces.push(details.clone());
                pieces.extend_from_slice(batch.pieces());
                next = Offset(first_offset.0.saturating_add(u64::from(*count)));
            }
            Outgoing::Unreadable(..) => {}
        }
    }
    stream.write(&mut pieces).await?;
    for frame in &group.frames {
        let (first, count) = match frame {
            Outgoing::Whole(batch, _) => (batch.first_offset, batch.count),
            Outgoing::Gathered {
                first_offset,
                count,
                ..
            } => (*first_offset, *count),
            Outgoing::Unreadable(..) => continue,
        };
        tracing::trace!(
            target: "waterwheel::trace",
            reader, offset = first.0, count, "delivered"
        );
    }
    Ok(next)
}

/// Finds and fetches from `next` on until credit, records, time or the client end it.
async fn fetch(
    session: &Session,
    control: &Control,
    open: &OpenReader,
    mut next: Offset,
    groups: mpsc::Sender<Group>,
) -> EndReason {
    let pull = open.mode == ReaderMode::Pull;
    let wait = Duration::from_millis(open.wait_ms.min(WAIT_MS_MAX));
    let deadline = pull.then(|| tokio::time::Instant::now() + wait);
    let mut records_left = if pull && open.records_max > 0 {
        u64::from(open.records_max)
    } else {
        u64::MAX
    };
    let mut tries = 0;
    loop {
        while control.balance() == 0 && !control.is_closed() {
            if pull {
                return EndReason::Filled;
            }
            control.changed().await;
        }
        let bytes_max = control.balance().min(GROUP_BYTES);
        let wanted = Wanted {
            from: next,
            bytes_max,
            records_left,
            deadline,
        };
        let group = match group(session, control, open, wanted).await {
            Ok(group) => group,
            Err(Stop::End(reason)) => return reason,
            Err(Stop::Passing(refused)) => {
                tries += 1;
                if tries > TRIES || control.is_closed() {
                    return EndReason::Refused(refused);
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        tries = 0;
        give_back(session, control.spend(group.bytes));
        records_left = records_left.saturating_sub(group.end.0.saturating_sub(next.0));
        next = next.max(group.end);
        if groups.send(group).await.is_err() {
            return EndReason::Closed;
        }
        if records_left == 0 {
            return EndReason::Filled;
        }
    }
}

/// Leaves out what lies wholly beyond the records asked for.
fn limit_records(batches: &mut Vec<BatchPlace>, next: Offset, records_left: u64) {
    let end = Offset(next.0.saturating_add(records_left));
    batches.retain(|batch| batch.first_offset < end);
}

pub(super) enum Stop {
    End(EndReason),
    Passing(Refused),
}

impl Stop {
    /// What the log could not give of a batch: the reader ends before it, and is told how far it
    /// reaches, so that it can go on behind it.
    pub(super) fn unreadable(batch: &BatchPlace, error: &ReadError) -> Self {
        let lost = |code| {
            Refused::new(code, error.to_string())
                .detail("first_offset", batch.first_offset)
                .detail("end_offset", batch.end())
        };
        match error {
            // Retention took it meanwhile: asked again, the partition says so.
            ReadError::Gone { .. } => Self::Passing(lost(Code::Damaged)),
            ReadError::Damaged(_) => Self::End(EndReason::Refused(lost(Code::Damaged))),
            ReadError::Io { .. } => Self::End(EndReason::Refused(lost(Code::Internal))),
        }
    }
}

/// What the next group may be.
struct Wanted {
    from: Offset,
    bytes_max: u64,
    records_left: u64,
    deadline: Option<tokio::time::Instant>,
}

async fn group(
    session: &Session,
    control: &Control,
    open: &OpenReader,
    wanted: Wanted,
) -> Result<Group, Stop> {
    let Wanted {
        from,
        bytes_max,
        records_left,
        deadline,
    } = wanted;
    let mut answer = ask(session, control, open, from, bytes_max, deadline).await?;
    limit_records(&mut answer.batches, from, records_left);
    limit_payloads(&mut answer.batches);
    let payloads = payloads(session, &answer.batches).await?;
    answer.batches.truncate(payloads.len());
    let end = answer.batches.last().map_or(from, BatchPlace::end);
    let frames = gather(&answer.batches, payloads, from);
    let unreadable = frames
        .iter()
        .position(|frame| matches!(frame, Outgoing::Unreadable(..)));
    let Some(at) = unreadable else {
        let bytes = frames.iter().map(Outgoing::bytes).sum();
        let high_watermark = answer.high_watermark;
        return Ok(Group {
            high_watermark,
            frames,
            end,
            bytes,
        });
    };
    // Up to there it goes out; the next group begins with what cannot be read, and ends the reader.
    let mut frames = frames;
    let rest = frames.split_off(at);
    let Some(Outgoing::Unreadable(place, error)) = rest.into_iter().next() else {
        return Err(Stop::Passing(refused(&Rejection::Retry)));
    };
    if frames.is_empty() {
        let lost = Refused::new(Code::Damaged, error.to_string())
            .detail("first_offset", place.first_offset)
            .detail("end_offset", place.end());
        return Err(Stop::End(EndReason::Refused(lost)));
    }
    Ok(Group {
        high_watermark: answer.high_watermark,
        bytes: frames.iter().map(Outgoing::bytes).sum(),
        frames,
        end: place.first_offset,
    })
}

/// Leaves out what would have more payloads read for references than a group may hold (N5).
fn limit_payloads(places: &mut Vec<BatchPlace>) {
    let mut positions = HashSet::new();
    let mut bytes = 0u64;
    let mut kept = 0;
    for place in places.iter() {
        if is_read_alone(place) {
            bytes = bytes.saturating_add(place.bytes());
            if bytes > PAYLOAD_BYTES && kept > 0 {
                break;
            }
        } else if place.reference.is_some() && positions.insert(place.position) {
            bytes = bytes.saturating_add(u64::from(place.length));
            if bytes > PAYLOAD_BYTES && kept > 0 {
                break;
            }
        }
        kept += 1;
    }
    places.truncate(kept);
}

async fn ask(
    session: &Session,
    control: &Control,
    open: &OpenReader,
    from: Offset,
    bytes_max: u64,
    deadline: Option<tokio::time::Instant>,
) -> Result<ReadAnswer, Stop> {
    let place = (open.topic, open.partition, open.lane);
    let partition = match session.locate(place).await {
        Ok(partition) => partition,
        Err(rejection @ Rejection::Retry) => return Err(Stop::Passing(refused(&rejection))),
        Err(rejection) => return Err(Stop::End(EndReason::Refused(refused(&rejection)))),
    };
    let Some(deadline) = deadline else {
        return answer_to(
            control,
            &partition,
            |reply| Read {
                from,
                bytes_max,
                wait: true,
                reply,
            },
            None,
        )
        .await;
    };
    // What is there is given, however long it takes to find: only waiting for more has an end.
    let found = answer_to(
        control,
        &partition,
        |reply| Read {
            from,
            bytes_max,
            wait: false,
            reply,
        },
        None,
    )
    .await?;
    if !found.batches.is_empty() {
        return Ok(found);
    }
    answer_to(
        control,
        &partition,
        |reply| Read {
            from,
            bytes_max,
            wait: true,
            reply,
        },
        Some(deadline),
    )
    .await
}

async fn answer_to(
    control: &Control,
    partition: &Link<PartitionActor>,
    read: impl FnOnce(ReplyTo) -> Read,
    deadline: Option<tokio::time::Instant>,
) -> Result<ReadAnswer, Stop> {
    let (reply, mut answer) = question();
    partition.tell(read(reply));
    loop {
        if control.is_closed() {
            return Err(Stop::End(EndReason::Closed));
        }
        let over = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            answer = first(&mut answer) => return match answer {
                Answer::Batches(batches) => Ok(batches),
                Answer::Refused(rejection @ Rejection::Retry) => {
                    Err(Stop::Passing(refused(&rejection)))
                }
                other => Err(Stop::End(EndReason::Refused(unexpected(other, "")))),
            },
            () = control.changed() => {}
            () = over => return Err(Stop::End(EndReason::Waited)),
        }
    }
}

/// The first batch of an undecided transaction, if it can be had.
pub(super) async fn half_batch(
    session: &Session,
    place: Place,
    id: TransactionId,
) -> Option<Bytes> {
    let partition = session.locate(place).await.ok()?;
    let (reply, mut answer) = question();
    partition.tell(FindHalf { id, reply });
    match first(&mut answer).await {
        Answer::Batches(found) => {
            let read = bodies(session, &found.batches, Share::Alone).await.ok()?;
            read.first().map(Body::to_bytes)
        }
        _ => None,
    }
}

/// What is to be delivered of these places: single records where that is less, else their payloads. As many
/// as can be had, one at least.
async fn payloads(session: &Session, batches: &[BatchPlace]) -> Result<Vec<Payload>, Stop> {
    if batches.iter().all(|batch| batch.reference.is_none()) {
        let bodies = bodies(session, batches, Share::Alone).await?;
        return Ok(bodies.into_iter().map(Payload::Whole).collect());
    }
    let wanted: Vec<pieces::Wanted> = batches
        .iter()
        .map(|place| pieces::Wanted {
            place: *place,
            skip: 0,
            count: place.count,
            alone: is_read_alone(place),
        })
        .collect();
    let mut found = pieces::pieces(session, &wanted, PAYLOAD_BYTES).await;
    let beyond = found
        .iter()
        .position(|found| matches!(found, Pieces::Beyond));
    found.truncate(beyond.unwrap_or(batches.len()));
    let whole: Vec<BatchPlace> = batches
        .iter()
        .zip(&found)
        .filter(|(_, found)| matches!(found, Pieces::Whole))
        .map(|(place, _)| *place)
        .collect();
    let read = match whole.is_empty() {
        true => Ok(Vec::new()),
        false => bodies(session, &whole, Share::Alone).await,
    };
    let (read, stop) = match read {
        Ok(read) => (read, None),
        Err(stop) => (Vec::new(), Some(stop)),
    };
    let mut read = read.into_iter();
    let mut payloads = Vec::with_capacity(found.len());
    for found in found {
        let payload = match found {
            Pieces::Taken(taken) => Some(Payload::Pieces(taken)),
            Pieces::Whole => read.next().map(Payload::Whole),
            Pieces::Beyond => None,
        };
        let Some(payload) = payload else { break };
        payloads.push(payload);
    }
    match stop {
        Some(stop) if payloads.is_empty() => Err(stop),
        Some(_) | None => Ok(payloads),
    }
}

/// The batches' bytes, from the cache of the log's tail or read: up to the first that cannot be read,
/// which is an error once it is the first of all.
pub(super) async fn bodies(
    session: &Session,
    batches: &[BatchPlace],
    share: Share,
) -> Result<Vec<Body>, Stop> {
    let cache = &session.shared.house.cache;
    let cached: Vec<Option<Body>> = batches
        .iter()
        .map(|batch| cache.lookup(batch.position))
        .collect();
    // Of records published by reference many may lie in one payload: it is read once.
    let mut missing: Vec<EntryPlace> = batches
        .iter()
        .zip(&cached)
        .filter(|(_, body)| body.is_none())
        .map(|(batch, _)| batch.place())
        .collect();
    missing.sort_unstable();
    missing.dedup();
    let mut read = HashMap::new();
    if !missing.is_empty() {
        let positions: Vec<LogPosition> = missing.iter().map(|place| place.position).collect();
        let (done, answer) = oneshot::channel();
        session.shared.pool.submit(
            missing,
            share,
            Box::new(move |entries| {
                let _ = done.send(entries);
            }),
        );
        // The pool answers unless it is going away with the broker.
        let entries = answer
            .await
            .map_err(|_| Stop::Passing(refused(&Rejection::Retry)))?;
        let entries = entries
            .into_iter()
            .map(|entry| entry.map(|entry| Body::from(entry.body)));
        read = positions.into_iter().zip(entries).collect();
    }
    let mut bodies = Vec::with_capacity(batches.len());
    for (batch, body) in batches.iter().zip(cached) {
        match (body, read.get(&batch.position)) {
            (Some(body), _) => bodies.push(body),
            (None, Some(Ok(body))) => bodies.push(body.clone()),
            (None, Some(Err(error))) if bodies.is_empty() => {
                return Err(Stop::unreadable(batch, error));
            }
            (None, Some(Err(_)) | None) => break,
        }
    }
    Ok(bodies)
}

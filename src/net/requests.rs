//! The requests that are not batches: each asks an actor and answers with a frame.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of many answers one or two are hoped for; kinds that are no request are skipped"
)]

use std::rc::Rc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tracing::Instrument;

use super::attach::{self, AttachSaid};
use super::credit;
use super::group;
use super::letters;
use super::member::{self, Said};
use super::out::Out;
use super::reader;
use super::refusal::{refused, unknown_topic};
use super::session::{Session, bad_frame, first, question};
use super::timers;
use super::transactions;
use crate::actors::directory::{Do, List};
use crate::actors::partition::Lookup;
use crate::actors::reply::Answer;
use crate::domain::batch::BATCH_VERSION;
use crate::domain::id::ProducerEpoch;
use crate::domain::partition::{Bounds, ReadFrom};
use crate::domain::rejection::Rejection;
use crate::domain::topics::{Command, Flush, Topic, TopicChange, TopicConfig};
use crate::wire::code::{Code, Refused};
use crate::wire::frame::{Frame, FrameKind};
use crate::wire::hello::{Hello, HelloOk, Pong};
use crate::wire::produce::{OpenProducer, ProducerOk};
use crate::wire::reader::{CloseReader, Credit, OpenReader};
use crate::wire::status::{ACTORS_MAX, ActorInfo, Status, StatusOk};
use crate::wire::timer::{AskTimer, ListTimers};
use crate::wire::topic;
use crate::wire::topic::{
    AlterTopic, At, CreateTopic, DeleteTopic, DescribeTopic, FlushMode, LookupOffset, Metadata,
    MetadataOk, OffsetOk, PartitionInfo, TopicInfo, TopicOk, encode_list,
};

/// Takes a request or event; answers come on `out`, in any order.
///
/// # Errors
/// What the connection ends for: a header that is not its kind's.
pub(super) fn handle(
    session: &Rc<Session>,
    kind: FrameKind,
    frame: Frame,
    out: &Out,
) -> Result<(), Refused> {
    let correlation = frame.correlation();
    match kind {
        FrameKind::Hello => {
            let hello: Hello = frame.decode().map_err(bad_frame)?;
            return greet(session, &hello, correlation, out);
        }
        FrameKind::Ping => out.send(&Pong {}, correlation, Bytes::new()),
        FrameKind::Credit => {
            let more: Credit = frame.decode().map_err(bad_frame)?;
            return credit::add(session, more);
        }
        FrameKind::CloseReader => {
            let close: CloseReader = frame.decode().map_err(bad_frame)?;
            credit::close(session, close.reader);
        }
        FrameKind::OpenReader => {
            let open: OpenReader = frame.decode().map_err(bad_frame)?;
            reader::open(session, open, correlation, out.clone());
        }
        FrameKind::JoinGroup => {
            let join = frame.decode().map_err(bad_frame)?;
            member::join(session, join, correlation, out.clone());
        }
        FrameKind::LeaveGroup => {
            let leave = frame.decode().map_err(bad_frame)?;
            member::leave(session, leave, correlation, out.clone());
        }
        FrameKind::GrantCredit => {
            member::credit(session, frame.decode().map_err(bad_frame)?);
        }
        FrameKind::Withdraw => {
            member::withdraw(session, frame.decode().map_err(bad_frame)?);
        }
        FrameKind::Acknowledge => {
            let said = Said::Acknowledge(frame.decode().map_err(bad_frame)?);
            member::say(session, said, correlation, out);
        }
        FrameKind::AcknowledgeUpTo => {
            let said = Said::UpTo(frame.decode().map_err(bad_frame)?);
            member::say(session, said, correlation, out);
        }
        FrameKind::Nack => {
            let said = Said::Nack(frame.decode().map_err(bad_frame)?);
            member::say(session, said, correlation, out);
        }
        FrameKind::ExtendLeases => {
            let said = Said::Extend(frame.decode().map_err(bad_frame)?);
            member::say(session, said, correlation, out);
        }
        FrameKind::Attach => {
            let said = AttachSaid::These(frame.decode().map_err(bad_frame)?);
            attach::attach(session, said, correlation, out);
        }
        FrameKind::AttachUpTo => {
            let said = AttachSaid::UpTo(frame.decode().map_err(bad_frame)?);
            attach::attach(session, said, correlation, out);
        }
        FrameKind::CreateSubscription
        | FrameKind::AlterSubscription
        | FrameKind::RemoveSubscription
        | FrameKind::ListGroups
        | FrameKind::DescribeGroup
        | FrameKind::ResetGroup
        | FrameKind::DeleteGroup
        | FrameKind::ListDeadLetters
        | FrameKind::SettleDeadLetters
        | FrameKind::Metadata
        | FrameKind::CreateTopic
        | FrameKind::DescribeTopic
        | FrameKind::AlterTopic
        | FrameKind::DeleteTopic
        | FrameKind::LookupOffset
        | FrameKind::OpenProducer
        | FrameKind::OpenSession
        | FrameKind::EndTransaction
        | FrameKind::ListTransactions
        | FrameKind::AskTimer
        | FrameKind::ListTimers
        | FrameKind::Status => {
            let (session, out) = (Rc::clone(session), out.clone());
            let request = tracing::debug_span!(target: "waterwheel::request", "request", ?kind);
            actix_rt::spawn(
                async move {
                    let out = out.for_long(&session.long_answers).await;
                    if let Err(refused) = answer(&session, kind, &frame, &out).await {
                        tracing::debug!(
                            target: "waterwheel::request",
                            code = refused.code().name(), why = refused.message, "refused"
                        );
                        out.refuse(&refused, correlation);
                    }
                }
                .instrument(request),
            );
        }
        FrameKind::CheckedBack => transactions::checked_back(session, &frame)?,
        // Answers and the broker's own events have no business here; skipped like unknown events.
        _ => {}
    }
    Ok(())
}

fn greet(session: &Session, hello: &Hello, correlation: u64, out: &Out) -> Result<(), Refused> {
    if !hello.batch_versions.is_empty() && !hello.batch_versions.contains(&BATCH_VERSION) {
        return Err(Refused::new(
            Code::UnsupportedBatchVersion,
            format!("this broker writes batches of version {BATCH_VERSION}; update the client"),
        ));
    }
    session.greeted.set(true);
    *session.control.borrow_mut() = Some(out.clone());
    tracing::debug!(
        target: "waterwheel::session", client = hello.client, version = hello.version, "hello"
    );
    let ok = HelloOk {
        features: Vec::new(),
        batch_versions: vec![BATCH_VERSION],
        limits: session.shared.limits,
        cluster: session.shared.cluster,
        node: 0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    out.send(&ok, correlation, Bytes::new());
    Ok(())
}

async fn answer(
    session: &Rc<Session>,
    kind: FrameKind,
    frame: &Frame,
    out: &Out,
) -> Result<(), Refused> {
    let correlation = frame.correlation();
    if group::is_one(kind) {
        return group::answer(session, kind, frame, out).await;
    }
    match kind {
        FrameKind::Metadata => {
            let request: Metadata = frame.decode().map_err(bad_frame)?;
            let names = request.topics;
            let answer = session
                .shared
                .ask_directory(|reply| List { names, reply })
                .await;
            let Answer::Topics(topics, _) = answer else {
                return Err(unexpected(answer, ""));
            };
            let list: Vec<TopicInfo> = topics.iter().map(info).collect();
            let count = u32::try_from(list.len()).unwrap_or(u32::MAX);
            out.send(
                &MetadataOk { topics: count },
                correlation,
                encode_list(&list),
            );
        }
        FrameKind::CreateTopic => {
            let CreateTopic { name, config } = frame.decode().map_err(bad_frame)?;
            let partitions = config.partitions;
            let config = TopicConfig {
                keyed: config.keyed,
                flush: flush(config.flush),
                retention_ms: config.retention_ms,
                retention_bytes: config.retention_bytes,
                levels: config.levels,
                timers_max: config.timers_max,
                delay_ms_max: config.delay_ms_max,
            };
            let command = Command::Create {
                name: name.clone(),
                partitions,
                config,
            };
            command_topic(session, command, &name, correlation, out).await?;
        }
        FrameKind::AlterTopic => {
            let alter: AlterTopic = frame.decode().map_err(bad_frame)?;
            let change = TopicChange {
                flush: alter.flush.map(flush),
                retention_ms: alter.retention_ms,
                retention_bytes: alter.retention_bytes,
                timers_max: alter.timers_max,
                delay_ms_max: alter.delay_ms_max,
            };
            let name = alter.name.clone();
            let command = Command::Alter {
                name: alter.name,
                partitions: alter.partitions,
                change,
            };
            command_topic(session, command, &name, correlation, out).await?;
        }
        FrameKind::DeleteTopic => {
            let DeleteTopic { name } = frame.decode().map_err(bad_frame)?;
            let timers = timers::pending(session, &name).await;
            let command = Command::Delete { name: name.clone() };
            let topic = changed(session, command, &name).await?;
            out.send(&TopicOk { topic, timers }, correlation, Bytes::new());
        }
        FrameKind::DescribeTopic => {
            let DescribeTopic { name } = frame.decode().map_err(bad_frame)?;
            describe(session, &name, correlation, out).await?;
        }
        FrameKind::LookupOffset => {
            let lookup: LookupOffset = frame.decode().map_err(bad_frame)?;
            let place = (lookup.topic, lookup.partition, lookup.lane);
            let bounds = bounds(session, place, read_from(lookup.at)).await?;
            let ok = OffsetOk {
                offset: bounds.offset,
                start_offset: bounds.start,
                high_watermark: bounds.high_watermark,
                log_end_offset: bounds.log_end,
            };
            out.send(&ok, correlation, Bytes::new());
        }
        FrameKind::OpenProducer => {
            let _: OpenProducer = frame.decode().map_err(bad_frame)?;
            let command = Command::OpenProducer;
            let answer = session
                .shared
                .ask_directory(|reply| Do { command, reply })
                .await;
            let Answer::Producer(producer) = answer else {
                return Err(unexpected(answer, ""));
            };
            let ok = ProducerOk {
                producer,
                epoch: ProducerEpoch(0),
            };
            out.send(&ok, correlation, Bytes::new());
        }
        FrameKind::ListDeadLetters => {
            let request = frame.decode().map_err(bad_frame)?;
            letters::list(session, request, correlation, out).await?;
        }
        FrameKind::SettleDeadLetters => {
            let request = frame.decode().map_err(bad_frame)?;
            letters::settle(session, request, correlation, out).await?;
        }
        FrameKind::AskTimer => {
            let ask: AskTimer = frame.decode().map_err(bad_frame)?;
            timers::ask(session, &ask, correlation, out).await?;
        }
        FrameKind::ListTimers => {
            let list: ListTimers = frame.decode().map_err(bad_frame)?;
            timers::list(session, &list, correlation, out).await?;
        }
        FrameKind::Status => {
            let request: Status = frame.decode().map_err(bad_frame)?;
            status(session, &request, correlation, out);
        }
        _ => transactions::answer(session, kind, frame, out).await?,
    }
    Ok(())
}

async fn command_topic(
    session: &Session,
    command: Command,
    name: &str,
    correlation: u64,
    out: &Out,
) -> Result<(), Refused> {
    let topic = changed(session, command, name).await?;
    out.send(&TopicOk { topic, timers: 0 }, correlation, Bytes::new());
    Ok(())
}

async fn changed(session: &Session, command: Command, name: &str) -> Result<TopicInfo, Refused> {
    if *session.shared.stopping.borrow() {
        return Err(refused(&Rejection::ShuttingDown));
    }
    let answer = session
        .shared
        .ask_directory(|reply| Do { command, reply })
        .await;
    let Answer::Topic(topic) = answer else {
        return Err(unexpected(answer, name));
    };
    Ok(info(&topic))
}

async fn describe(
    session: &Session,
    name: &str,
    correlation: u64,
    out: &Out,
) -> Result<(), Refused> {
    let names = vec![name.to_owned()];
    let answer = session
        .shared
        .ask_directory(|reply| List { names, reply })
        .await;
    let Answer::Topics(topics, _) = answer else {
        return Err(unexpected(answer, name));
    };
    let Some(topic) = topics.first() else {
        return Err(unknown_topic(name));
    };
    let mut partitions = Vec::new();
    for (partition, lane) in topic.lanes() {
        let place = (topic.id, partition, lane);
        let bounds = bounds(session, place, ReadFrom::Latest).await?;
        partitions.push(PartitionInfo {
            partition,
            lane,
            start_offset: bounds.start,
            high_watermark: bounds.high_watermark,
            log_end_offset: bounds.log_end,
            next_number: bounds.next_number,
        });
    }
    out.send(
        &TopicOk {
            topic: info(topic),
            timers: 0,
        },
        correlation,
        encode_list(&partitions),
    );
    Ok(())
}

/// Where a partition begins and ends, and where a reader that starts at `from` would.
pub(super) async fn bounds(
    session: &Session,
    place: super::session::Place,
    from: ReadFrom,
) -> Result<Bounds, Refused> {
    let partition = session
        .locate(place)
        .await
        .map_err(|rejection| refused(&rejection))?;
    let (reply, mut answer) = question();
    partition.tell(Lookup { from, reply });
    match first(&mut answer).await {
        Answer::Bounds(bounds) => Ok(bounds),
        other => Err(unexpected(other, "")),
    }
}

fn status(session: &Session, asked: &Status, correlation: u64, out: &Out) {
    let shared = &session.shared;
    let sealed = shared
        .gauge
        .sealed
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .clone();
    let failed = shared.house.vigil.failed().map(str::to_owned);
    let ahead = shared.house.ahead.counts();
    let ok = StatusOk {
        uptime_ms: u64::try_from(shared.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        connections: shared.connections.load(Ordering::Relaxed),
        log_bytes: shared.gauge.log_bytes.load(Ordering::Relaxed),
        segments: shared.gauge.segments.load(Ordering::Relaxed),
        bytes_in_flight: shared.admission.out_bytes() + shared.arriving.out_bytes(),
        ready: sealed.is_none() && failed.is_none() && !*shared.stopping.borrow(),
        sealed,
        failed,
        reads: shared.house.ahead.reads_issued(),
        read_ahead_bytes: ahead.bytes,
        read_ahead_hits: ahead.hits,
        read_ahead_misses: ahead.misses,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let list: Vec<ActorInfo> = if asked.actors {
        let from = (asked.from_kind.as_str(), asked.from_id);
        let all = shared.house.registry.snapshot().into_iter();
        all.filter(|actor| (actor.kind, actor.id.0) >= from)
            .take(ACTORS_MAX)
            .map(actor_info)
            .collect()
    } else {
        Vec::new()
    };
    let body = if list.is_empty() {
        Bytes::new()
    } else {
        encode_list(&list)
    };
    out.send(&ok, correlation, body);
}

fn actor_info(actor: crate::actors::stats::ActorStatus) -> ActorInfo {
    ActorInfo {
        kind: actor.kind.to_owned(),
        id: actor.id.0,
        name: actor.name,
        mailbox_capacity: actor.mailbox_capacity,
        mailbox_depth: actor.mailbox_depth,
        handled: actor.handled,
        restarts: actor.restarts,
        rows: actor.rows,
        wake_ups: actor.wake_ups,
        overflow_up: actor.overflow_up,
        cascade_down: actor.cascade_down,
        batches_read: actor.batches_read,
        batches_skipped: actor.batches_skipped,
    }
}

/// The refusal in an answer that is not the one hoped for.
pub(super) fn unexpected(answer: Answer, topic: &str) -> Refused {
    match answer {
        Answer::Refused(Rejection::UnknownTopic) if !topic.is_empty() => unknown_topic(topic),
        Answer::Refused(rejection) => refused(&rejection),
        _ => Refused::new(
            Code::Internal,
            "an actor gave an answer to another question",
        ),
    }
}

fn info(topic: &Topic) -> TopicInfo {
    TopicInfo {
        name: topic.name.clone(),
        id: topic.id,
        config: topic::TopicConfig {
            partitions: topic.partitions,
            keyed: topic.config.keyed,
            flush: match topic.config.flush {
                Flush::Sync => FlushMode::Sync,
                Flush::Async => FlushMode::Async,
            },
            retention_ms: topic.config.retention_ms,
            retention_bytes: topic.config.retention_bytes,
            levels: topic.config.levels,
            timers_max: topic.config.timers_max,
            delay_ms_max: topic.config.delay_ms_max,
        },
        lanes: topic.config.levels,
        leaders: Vec::new(),
    }
}

fn flush(mode: FlushMode) -> Flush {
    match mode {
        FlushMode::Sync => Flush::Sync,
        FlushMode::Async => Flush::Async,
    }
}

/// A place on the wire as the machine knows it.
pub(super) fn read_from(at: At) -> ReadFrom {
    match at {
        At::Earliest => ReadFrom::Earliest,
        At::Latest => ReadFrom::Latest,
        At::Offset(offset) => ReadFrom::Offset(offset),
        At::Time(time) => ReadFrom::Time(time),
    }
}

//! Where records are and what they are, for tasks that may wait: partitions are asked, bodies read.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of many answers and refusals a few are told apart"
)]

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::directory::{DirectoryActor, Locate};
use super::opened::NotOpened;
use super::partition::{Lookup, PartitionActor, Read};
use super::reply::{Answer, Mail, ReplyTo};
use super::{House, Link};
use crate::domain::batch::{BatchView, Opened, Slot};
use crate::domain::body::Body;
use crate::domain::id::{Offset, PartitionId};
use crate::domain::partition::index::BatchPlace;
use crate::domain::partition::{Bounds, ReadAnswer, ReadFrom};
use crate::domain::record::RecordBody;
use crate::domain::rejection::Rejection;
use crate::log::{ReadError, Share};

/// Between two attempts at something that passes.
const AGAIN: Duration = Duration::from_millis(20);
/// Attempts before a question is given up.
const TRIES: u32 = 100;

/// Finds batches, and reads them.
#[derive(Debug, Clone)]
pub struct Finder {
    /// The standing actors.
    pub house: House,
    /// Finds partitions.
    pub directory: Link<DirectoryActor>,
}

/// Why records could not be had.
pub(super) enum Missed {
    /// They are gone: the partition begins here.
    Trimmed(Offset),
    /// They cannot be had now: the partition is stopped or being made again, the device fails. Whoever
    /// cannot do without them asks again.
    Unreadable,
    /// They are not what was written.
    Damaged,
    /// The topic is gone, or the broker is.
    Gone,
}

impl Finder {
    pub(super) async fn bounds(
        &self,
        place: PartitionId,
        from: ReadFrom,
    ) -> Result<Bounds, Rejection> {
        for _ in 0..TRIES {
            let partition = self.partition(place).await?;
            let (reply, mut answer) = question();
            partition.tell(Lookup { from, reply });
            match first(&mut answer).await {
                Answer::Bounds(bounds) => return Ok(bounds),
                Answer::Refused(Rejection::Retry) => tokio::time::sleep(AGAIN).await,
                Answer::Refused(rejection) => return Err(rejection),
                _ => return Err(Rejection::Retry),
            }
        }
        Err(Rejection::Retry)
    }

    pub(super) async fn partition(
        &self,
        place: PartitionId,
    ) -> Result<Link<PartitionActor>, Rejection> {
        let PartitionId {
            topic,
            partition,
            lane,
        } = place;
        let (reply, mut answer) = question();
        self.directory.tell(Locate {
            topic,
            partition,
            lane,
            reply,
        });
        match first(&mut answer).await {
            Answer::Partition(_, link) => Ok(link),
            Answer::Refused(rejection) => Err(rejection),
            _ => Err(Rejection::Retry),
        }
    }

    /// Batches from an offset on; where there are none, when there are.
    pub(super) async fn batches(
        &self,
        place: PartitionId,
        from: Offset,
        bytes_max: u64,
        wait: bool,
    ) -> Result<ReadAnswer, Missed> {
        let mut tries = 0;
        loop {
            let refused = match self.partition(place).await {
                Ok(partition) => {
                    let (reply, mut answer) = question();
                    partition.tell(Read {
                        from,
                        bytes_max,
                        wait,
                        reply,
                    });
                    match first(&mut answer).await {
                        Answer::Batches(answer) => return Ok(answer),
                        Answer::Refused(rejection) => rejection,
                        _ => Rejection::Retry,
                    }
                }
                Err(rejection) => rejection,
            };
            match refused {
                Rejection::OffsetOutOfRange { start, .. } if from < start => {
                    return Err(Missed::Trimmed(start));
                }
                Rejection::UnknownTopic
                | Rejection::PartitionOutOfRange { .. }
                | Rejection::ShuttingDown => return Err(Missed::Gone),
                // A partition that is being made again, stopped, or damaged in its views.
                _ => {
                    tries += 1;
                    if tries > TRIES && !wait {
                        return Err(Missed::Unreadable);
                    }
                    let pause = AGAIN * tries.min(50);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// A batch's bytes, from the cache of the log's tail or read.
    pub(super) async fn body(&self, batch: &BatchPlace) -> Result<Body, Missed> {
        if let Some(body) = self.house.cache.lookup(batch.position) {
            return Ok(body);
        }
        let (done, answer) = oneshot::channel();
        self.house.pool.submit(
            vec![batch.place()],
            Share::Kept,
            Box::new(move |entries| {
                let _ = done.send(entries);
            }),
        );
        let read = answer.await.map_err(|_| Missed::Gone)?;
        match read.into_iter().next() {
            Some(Ok(entry)) => Ok(entry.body.into()),
            Some(Err(ReadError::Gone { .. })) => Err(Missed::Trimmed(batch.end())),
            Some(Err(ReadError::Damaged(_))) => Err(Missed::Damaged),
            Some(Err(ReadError::Io { .. })) | None => Err(Missed::Unreadable),
        }
    }

    /// A batch that is looked into record by record: whoever delivers some of it finds it opened.
    pub(super) async fn opened(&self, batch: &BatchPlace) -> Result<Arc<Opened>, Missed> {
        let answer = self.house.opened.open(&[batch.place()]).await.pop();
        match answer.unwrap_or(Err(NotOpened::Stopping)) {
            Ok(opened) => Ok(opened),
            Err(NotOpened::Unread(ReadError::Gone { .. })) => Err(Missed::Trimmed(batch.end())),
            Err(NotOpened::Unread(ReadError::Damaged(_)) | NotOpened::Unsound(_)) => {
                Err(Missed::Damaged)
            }
            Err(NotOpened::Unread(ReadError::Io { .. })) => Err(Missed::Unreadable),
            Err(NotOpened::Stopping) => Err(Missed::Gone),
        }
    }
}

/// One record of a batch that is opened.
pub(super) fn record_of(
    batch: &BatchPlace,
    offset: Offset,
    opened: &Opened,
) -> Option<(Slot, RecordBody)> {
    let skip = u32::try_from(offset.0.checked_sub(batch.first_offset.0)?).ok()?;
    let at = batch.record(skip);
    let body = RecordBody::decode(&opened.body(at).ok()?).ok()?;
    Some((opened.slot(at)?, body))
}

/// Several records of a batch, in the order asked for; none for one that does not read.
pub(super) fn records_at(
    batch: &BatchPlace,
    offsets: &[u64],
    body: &Body,
) -> Vec<Option<(Slot, RecordBody)>> {
    let place = |offset: &u64| {
        let skip = u32::try_from(offset.checked_sub(batch.first_offset.0)?).ok()?;
        Some(batch.record(skip))
    };
    let places: Vec<Option<usize>> = offsets.iter().map(place).collect();
    let wanted = places.iter().flatten().max().map_or(0, |last| last + 1);
    let bytes = body.to_bytes();
    let opened = BatchView::parse_structure(&bytes).ok().and_then(|view| {
        let bodies: Vec<_> = view.bodies().ok()?.take(wanted).collect();
        Some((view, bodies))
    });
    let record = |at: Option<usize>| {
        let (view, bodies) = opened.as_ref()?;
        let (_, body) = bodies.get(at?)?.as_ref().ok()?;
        Some((view.slot(at?)?, RecordBody::decode(body).ok()?))
    };
    places.into_iter().map(record).collect()
}

pub(super) fn question() -> (ReplyTo, mpsc::UnboundedReceiver<Mail>) {
    let (tx, rx) = mpsc::unbounded_channel();
    (ReplyTo::new(tx, 0), rx)
}

pub(super) async fn first(answer: &mut mpsc::UnboundedReceiver<Mail>) -> Answer {
    answer
        .recv()
        .await
        .map_or(Answer::Refused(Rejection::Retry), |mail| mail.answer)
}

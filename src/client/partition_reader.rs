//! Reads one partition, over as many connections as it takes.
//!
//! In: where to start, and the frames of the reader's stream. Out: checked batches, in order. It gives
//! credit back as batches are taken from it, and after a lost connection goes on at the next offset.
//!
//! Invariants: C1, every record from the start on comes once and in order, as long as the broker has
//! it; C2, not more than the credit (and one batch) is under way; C3, no batch is given out whose
//! checksums do not hold.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout_at};

use super::connection::{FrameReceiver, StreamError};
use super::delivery::{BatchFacts, DeliveryBatch};
use super::error::ConsumeError;
use super::link::{Link, RequestError};
use super::switchboard::{Switchboard, next_link};
use crate::domain::batch::BatchView;
use crate::domain::id::{Lane, Offset, PartitionIndex, TopicId};
use crate::wire::frame::{Frame, FrameError, FrameKind};
use crate::wire::reader::{
    CloseReader, Credit, DETAIL_BYTES, Deliver, DeliverPublished, EndReason, OpenReader, ReaderEnd,
    ReaderMode, ReaderOk, RecordDetail,
};
use crate::wire::topic::At;

/// Between two tries to open a reader.
const PAUSE: Duration = Duration::from_millis(50);

/// What a partition's reader is to do.
#[derive(Debug, Clone)]
pub(crate) struct ReaderPlan {
    pub(crate) topic: TopicId,
    pub(crate) name: Arc<str>,
    pub(crate) partition: u32,
    pub(crate) lane: Lane,
    pub(crate) from: At,
    pub(crate) mode: ReaderMode,
    pub(crate) credit_bytes: u64,
    pub(crate) records_max: u32,
    pub(crate) wait: Duration,
    /// End at the high watermark found at the start.
    pub(crate) until_end: bool,
    /// How long to look for a broker.
    pub(crate) timeout: Duration,
}

/// Reads one partition.
#[derive(Debug)]
pub(crate) struct PartitionReader {
    plan: ReaderPlan,
    board: Switchboard,
    /// Where to go on: moves with what is taken.
    from: At,
    live: Option<Live>,
    stale: Option<Arc<Link>>,
    next_offset: u64,
    high_watermark: u64,
    end: Option<u64>,
    /// Bytes taken and not yet given back as credit.
    owed: u64,
}

/// A reader on a connection; closes itself when dropped.
#[derive(Debug)]
struct Live {
    link: Arc<Link>,
    reader: u64,
    stream: FrameReceiver,
    ended: bool,
}

impl Drop for Live {
    fn drop(&mut self) {
        if !self.ended {
            let reader = self.reader;
            let _ = self.link.send(&CloseReader { reader }, 0);
        }
    }
}

/// What a frame of the stream came to.
enum Step {
    Batch(Box<DeliveryBatch>),
    /// Nothing to give out.
    Nothing,
    /// To be opened again, after a pause.
    Again(Duration),
    /// A pull is over.
    Over,
}

impl PartitionReader {
    /// Opens the reader on the present connection, or the next.
    pub(crate) async fn open(plan: ReaderPlan, board: Switchboard) -> Result<Self, ConsumeError> {
        let mut reader = Self {
            from: plan.from,
            plan,
            board,
            live: None,
            stale: None,
            next_offset: 0,
            high_watermark: 0,
            end: None,
            owed: 0,
        };
        reader.connect().await?;
        if reader.plan.until_end {
            reader.end = Some(reader.high_watermark);
        }
        Ok(reader)
    }

    pub(crate) fn next_offset(&self) -> u64 {
        self.next_offset
    }

    pub(crate) fn high_watermark(&self) -> u64 {
        self.high_watermark
    }

    /// The next batch; none when the end is reached. After an error about one batch it goes on behind it.
    pub(crate) async fn next(&mut self) -> Result<Option<DeliveryBatch>, ConsumeError> {
        loop {
            if self.end.is_some_and(|end| self.next_offset >= end) {
                return Ok(None);
            }
            if self.live.is_none() {
                self.connect().await?;
            }
            self.give_credit();
            let Some(live) = &mut self.live else {
                continue;
            };
            let frame = match live.stream.next().await {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    self.drop_live();
                    sleep(PAUSE).await;
                    continue;
                }
                // Asked again, the same would come.
                Err(StreamError::Frame(error)) => return Err(protocol(error)),
                Err(StreamError::Lost(reason)) => {
                    tracing::debug!(reason, "a reader's stream ended");
                    self.drop_live();
                    continue;
                }
            };
            match self.take(&frame)? {
                Step::Batch(batch) => return Ok(Some(*batch)),
                Step::Nothing => {}
                Step::Over => return Ok(None),
                Step::Again(pause) => {
                    self.drop_live();
                    sleep(pause).await;
                }
            }
        }
    }

    fn take(&mut self, frame: &Frame) -> Result<Step, ConsumeError> {
        match frame.kind() {
            Some(FrameKind::Deliver) => {
                let deliver: Deliver = frame.decode().map_err(protocol)?;
                self.deliver(&deliver, frame)
            }
            Some(FrameKind::DeliverPublished) => {
                let deliver: DeliverPublished = frame.decode().map_err(protocol)?;
                self.deliver_published(&deliver, frame)
            }
            Some(FrameKind::ReaderEnd) => {
                let end: ReaderEnd = frame.decode().map_err(protocol)?;
                if let Some(live) = &mut self.live {
                    live.ended = true;
                }
                match end.reason {
                    EndReason::Filled | EndReason::Waited => {
                        self.next_offset = self.next_offset.max(end.next_offset.0);
                        self.live = None;
                        Ok(Step::Over)
                    }
                    EndReason::Closed => Ok(Step::Again(PAUSE)),
                    EndReason::Refused(refused) if refused.code().is_retriable() => Ok(
                        Step::Again(refused.after_ms.map_or(PAUSE, Duration::from_millis)),
                    ),
                    EndReason::Refused(refused) => {
                        self.live = None;
                        Err(ConsumeError::Refused(refused.into()))
                    }
                }
            }
            // An event of a later version.
            _ => Ok(Step::Nothing),
        }
    }

    fn deliver(&mut self, deliver: &Deliver, frame: &Frame) -> Result<Step, ConsumeError> {
        self.owed += frame.body.len() as u64;
        self.high_watermark = self.high_watermark.max(deliver.high_watermark.0);
        let facts = BatchFacts {
            first_offset: deliver.first_offset.0,
            appended_ms: deliver.appended.0,
            details: Vec::new(),
        };
        self.batch(facts, deliver.count, deliver.skip, &frame.body)
    }

    fn deliver_published(
        &mut self,
        deliver: &DeliverPublished,
        frame: &Frame,
    ) -> Result<Step, ConsumeError> {
        self.owed += frame.body.len() as u64;
        self.high_watermark = self.high_watermark.max(deliver.high_watermark.0);
        let bytes = usize::try_from(deliver.count)
            .ok()
            .and_then(|count| count.checked_mul(DETAIL_BYTES))
            .filter(|bytes| *bytes <= frame.body.len());
        let Some(bytes) = bytes else {
            return Err(ConsumeError::Protocol(format!(
                "{} records were announced with {} bytes",
                deliver.count,
                frame.body.len()
            )));
        };
        let mut batch = frame.body.clone();
        let details = RecordDetail::parse_all(&batch.split_to(bytes));
        let facts = BatchFacts {
            first_offset: deliver.first_offset.0,
            appended_ms: 0,
            details,
        };
        self.batch(facts, deliver.count, deliver.skip, &batch)
    }

    fn batch(
        &mut self,
        facts: BatchFacts,
        count: u32,
        skip: u32,
        batch: &Bytes,
    ) -> Result<Step, ConsumeError> {
        let first = facts.first_offset;
        let after = first.saturating_add(u64::from(count));
        let wanted = self.next_offset.max(first.saturating_add(u64::from(skip)));
        if after <= wanted {
            return Ok(Step::Nothing);
        }
        self.next_offset = after;
        self.from = At::Offset(Offset(after));
        let damaged = |reason| ConsumeError::Damaged {
            partition: self.plan.partition,
            offset: first,
            reason,
        };
        let view = BatchView::parse_served(batch).map_err(damaged)?;
        if view.header().count != count {
            return Err(ConsumeError::Protocol(format!(
                "a batch of {} records was announced as one of {count}",
                view.header().count,
            )));
        }
        let bodies = view.bodies().map_err(damaged)?;
        let skip = usize::try_from(wanted - first).unwrap_or(usize::MAX);
        Ok(Step::Batch(Box::new(DeliveryBatch::new(
            Arc::clone(&self.plan.name),
            (self.plan.partition, self.plan.lane),
            facts,
            view,
            bodies,
            skip,
        ))))
    }

    /// What was taken is given back once it is worth a frame.
    fn give_credit(&mut self) {
        if self.plan.mode == ReaderMode::Pull || self.owed < self.plan.credit_bytes / 4 {
            return;
        }
        if let Some(live) = &self.live {
            let credit = Credit {
                reader: live.reader,
                bytes: self.owed,
            };
            // Where the connection has ended, the stream says so next.
            let _ = live.link.send(&credit, 0);
        }
        self.owed = 0;
    }

    fn drop_live(&mut self) {
        if let Some(live) = self.live.take()
            && live.link.transport().is_closed()
        {
            self.stale = Some(Arc::clone(&live.link));
        }
    }

    /// Opens a reader at the place where this one goes on.
    async fn connect(&mut self) -> Result<(), ConsumeError> {
        let deadline = Instant::now() + self.plan.timeout;
        let unreachable = ConsumeError::Unreachable(self.plan.timeout.as_millis());
        loop {
            let link = next_link(&mut self.board, self.stale.as_ref());
            let link = match timeout_at(deadline, link).await {
                Ok(Some(link)) => link,
                Ok(None) => return Err(ConsumeError::Disconnected),
                Err(_) => return Err(unreachable),
            };
            let pause = match timeout_at(deadline, self.open_on(&link)).await {
                Err(_) => return Err(unreachable),
                Ok(Ok(())) => return Ok(()),
                Ok(Err(RequestError::Protocol(reason))) => {
                    return Err(ConsumeError::Protocol(reason));
                }
                Ok(Err(RequestError::Refused(refusal))) => {
                    if !refusal.code.is_retriable() || Instant::now() >= deadline {
                        return Err(ConsumeError::Refused(refusal));
                    }
                    refusal.after_ms.map_or(PAUSE, Duration::from_millis)
                }
                Ok(Err(RequestError::Lost(reason))) => {
                    tracing::debug!(reason, "cannot open a reader");
                    if link.transport().is_closed() {
                        self.stale = Some(link);
                        continue;
                    }
                    PAUSE
                }
            };
            sleep(pause).await;
        }
    }

    async fn open_on(&mut self, link: &Arc<Link>) -> Result<(), RequestError> {
        let (reader, stream) = link.expect_stream();
        let mut opening = Opening {
            link,
            reader,
            is_over: false,
        };
        let request = OpenReader {
            reader,
            topic: self.plan.topic,
            partition: PartitionIndex(self.plan.partition),
            lane: self.plan.lane,
            leader_epoch: 0,
            from: self.from,
            mode: self.plan.mode,
            credit_bytes: self.plan.credit_bytes,
            records_max: self.plan.records_max,
            wait_ms: u64::try_from(self.plan.wait.as_millis()).unwrap_or(u64::MAX),
        };
        let (answer, _) = match link.ask::<_, ReaderOk>(&request).await {
            Ok(answer) => answer,
            Err(error) => {
                opening.is_over = true;
                return Err(error);
            }
        };
        let ended = || RequestError::Lost("the reader's stream did not come".to_owned());
        let stream = stream.await.map_err(|_| ended())?;
        opening.is_over = true;
        self.live = Some(Live {
            link: Arc::clone(link),
            reader,
            stream,
            ended: false,
        });
        self.next_offset = answer.first_offset.0;
        self.from = At::Offset(answer.first_offset);
        self.high_watermark = self.high_watermark.max(answer.high_watermark.0);
        self.owed = 0;
        Ok(())
    }
}

fn protocol(error: FrameError) -> ConsumeError {
    ConsumeError::Protocol(error.to_string())
}

/// However opening ends, nobody waits for the stream afterwards; where it was given up, the broker is told.
struct Opening<'a> {
    link: &'a Link,
    reader: u64,
    is_over: bool,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.link.forget_stream(self.reader);
        if !self.is_over {
            let reader = self.reader;
            let _ = self.link.send(&CloseReader { reader }, 0);
        }
    }
}

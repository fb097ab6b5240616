//! The task behind a producer: finishes batches, writes them, reads the answers.
//!
//! It performs what the [outboxes](super::outbox) decide. One stream per connection; on a new
//! connection, a new stream on which everything unsettled is sent again in order. It ends when the
//! producer is closed and everything is settled, and then, or when its runtime drops it, fails what is
//! left.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::connection::{FrameReceiver, FrameSender, StreamError};
use super::error::{Refusal, SendError};
use super::link::{Link, RequestError, lock};
use super::outbox::{Outbox, Refusing, Settled, partition_of_correlation};
use super::switchboard::{Switchboard, next_link};
use crate::domain::id::TopicId;
use crate::wire::code::{Code, Refused};
use crate::wire::frame::{FrameKind, encode};
use crate::wire::produce::{Ack, OpenProducer, Produce, ProducerOk, Stored};

/// So many bytes are written at once, unless a batch is larger.
const WRITE_BYTES: usize = 1024 * 1024;

/// Between a stream that failed and the next on the same connection; between two tries for an id.
const PAUSE: Duration = Duration::from_millis(50);

/// What a producer and its task share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) topic: TopicId,
    pub(crate) ack: Ack,
    pub(crate) timeout: Duration,
    pub(crate) outboxes: Vec<Mutex<Outbox>>,
    /// Partitions where something is to be done.
    active: Mutex<Vec<usize>>,
    work: Notify,
    /// What is under way, in bytes, and the bell for those who wait for room.
    used: AtomicUsize,
    pub(crate) room: Notify,
    /// Batches under way, and the bell for those who wait for none.
    unsettled: AtomicUsize,
    idle: Notify,
    closed: AtomicBool,
    started: Instant,
    progress_ms: AtomicU64,
    link: Mutex<Option<Arc<Link>>>,
    failure: Mutex<Option<SendError>>,
    /// What the broker said when it put a batch off, unless something was acknowledged or the connection ended
    /// since.
    put_off: Mutex<Option<Refusal>>,
}

impl Shared {
    pub(crate) fn new(topic: TopicId, ack: Ack, timeout: Duration, outboxes: Vec<Outbox>) -> Self {
        Self {
            topic,
            ack,
            timeout,
            outboxes: outboxes.into_iter().map(Mutex::new).collect(),
            active: Mutex::new(Vec::new()),
            work: Notify::new(),
            used: AtomicUsize::new(0),
            room: Notify::new(),
            unsettled: AtomicUsize::new(0),
            idle: Notify::new(),
            closed: AtomicBool::new(false),
            started: Instant::now(),
            progress_ms: AtomicU64::new(0),
            link: Mutex::new(None),
            failure: Mutex::new(None),
            put_off: Mutex::new(None),
        }
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    pub(crate) fn charge(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::AcqRel);
    }

    pub(crate) fn discharge(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
        self.room.notify_waiters();
    }

    /// A batch was begun.
    pub(crate) fn began(&self) {
        self.unsettled.fetch_add(1, Ordering::AcqRel);
    }

    /// There is something to do for a partition.
    pub(crate) fn wake(&self, partition: usize) {
        lock(&self.active).push(partition);
        self.work.notify_one();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Nothing more will come; what is there is still sent.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.hurry();
        self.room.notify_waiters();
        self.work.notify_one();
    }

    /// Sends what has gathered without waiting for more.
    pub(crate) fn hurry(&self) {
        for (partition, outbox) in self.outboxes.iter().enumerate() {
            let mut outbox = lock(outbox);
            if !outbox.is_idle() {
                outbox.hurry();
                drop(outbox);
                self.wake(partition);
            }
        }
    }

    /// The first failure since this was last asked.
    pub(crate) fn take_failure(&self) -> Option<SendError> {
        lock(&self.failure).take()
    }

    /// Waits until nothing is under way.
    pub(crate) async fn until_idle(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.unsettled.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }

    fn release(&self, settled: &Settled) {
        if settled.heard != 0
            && let Some(link) = lock(&self.link).as_ref()
        {
            link.heard(settled.heard);
        }
        if settled.batches == 0 {
            return;
        }
        self.discharge(settled.charge);
        self.progressed();
        *lock(&self.put_off) = None;
        if self.unsettled.fetch_sub(settled.batches, Ordering::AcqRel) == settled.batches {
            self.idle.notify_waiters();
            self.work.notify_one();
        }
    }

    fn progressed(&self) {
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.progress_ms.store(ms, Ordering::Relaxed);
    }

    fn fail_all(&self, error: &SendError) {
        for outbox in &self.outboxes {
            let settled = lock(outbox).fail_all(error.clone());
            self.note(&settled, error);
        }
    }

    /// Gives back what failed, and remembers why.
    fn note(&self, settled: &Settled, error: &SendError) {
        if settled.batches != 0 {
            lock(&self.failure).get_or_insert_with(|| error.clone());
        }
        self.release(settled);
    }

    /// Fails everything once nothing was acknowledged for too long. Never ends.
    async fn watch_for_timeout(&self) {
        let tick = (self.timeout / 8).clamp(Duration::from_millis(5), Duration::from_secs(1));
        loop {
            sleep(tick).await;
            if self.unsettled.load(Ordering::Acquire) == 0 {
                continue;
            }
            let progress =
                self.started + Duration::from_millis(self.progress_ms.load(Ordering::Relaxed));
            let oldest = self.outboxes.iter().filter_map(|o| lock(o).oldest()).min();
            let waits = oldest.map(|oldest| oldest.max(progress).elapsed());
            if waits.is_some_and(|waits| waits > self.timeout) {
                let ms = self.timeout.as_millis();
                let refusal = lock(&self.put_off).take();
                self.fail_all(&match refusal {
                    Some(refusal) => SendError::PutOff { refusal, ms },
                    None => SendError::TimedOut(ms),
                });
            }
        }
    }
}

/// Whoever waits must be told, however the task ends.
struct FailTheRest(Arc<Shared>);

impl Drop for FailTheRest {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.fail_all(&SendError::Closed);
        self.0.room.notify_waiters();
    }
}

/// Runs until the producer is closed and everything settled, or the client is gone.
pub(crate) async fn run(shared: Arc<Shared>, mut board: Switchboard) {
    let guard = FailTheRest(shared);
    let shared = &guard.0;
    tokio::select! {
        () = serve_links(shared, &mut board) => {}
        () = shared.watch_for_timeout() => {}
    }
}

async fn serve_links(shared: &Shared, board: &mut Switchboard) {
    let mut stale: Option<Arc<Link>> = None;
    loop {
        let link = tokio::select! {
            link = next_link(board, stale.as_ref()) => match link {
                Some(link) => link,
                None => return shared.fail_all(&SendError::Disconnected),
            },
            () = until_done(shared) => return,
        };
        *lock(&shared.link) = Some(Arc::clone(&link));
        let ended = serve_link(shared, &link).await;
        for outbox in &shared.outboxes {
            let settled = lock(outbox).disconnected();
            shared.release(&settled);
        }
        *lock(&shared.link) = None;
        *lock(&shared.put_off) = None;
        match ended {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, "the producer's stream ended"),
        }
        if link.transport().is_closed() {
            stale = Some(link);
        } else {
            sleep(PAUSE).await;
        }
    }
}

/// Waits until the producer is closed and everything is settled.
async fn until_done(shared: &Shared) {
    loop {
        shared.until_idle().await;
        if shared.is_closed() {
            return;
        }
        // Rung when the producer is closed, and whenever there is work; then there is something to wait for.
        shared.work.notified().await;
    }
}

/// Ends well when there is nothing left to do for a closed producer.
async fn serve_link(shared: &Shared, link: &Link) -> Result<(), StreamError> {
    let (mut sender, receiver) = link.open_stream().await?;
    let written = tokio::select! {
        written = write(shared, link, &mut sender) => written,
        read = read(shared, receiver) => read,
    };
    if written.is_ok() {
        sender.finish().await;
    }
    written
}

/// What one look at the active partitions found.
#[derive(Default)]
struct Look {
    chunks: Vec<Bytes>,
    /// Correlation ids of what is in the chunks.
    sent: Vec<u64>,
    bytes: usize,
    next_due: Option<Instant>,
    unidentified: Vec<usize>,
}

async fn write(shared: &Shared, link: &Link, sender: &mut FrameSender) -> Result<(), StreamError> {
    let mut active: Vec<usize> = (0..shared.outboxes.len())
        .filter(|partition| {
            shared
                .outboxes
                .get(*partition)
                .is_some_and(|outbox| lock(outbox).has_unsent())
        })
        .collect();
    loop {
        active.append(&mut lock(&shared.active));
        active.sort_unstable();
        active.dedup();
        let mut look = Look::default();
        let mut error = None;
        active.retain(|partition| {
            let keep = look_at(shared, *partition, &mut look);
            keep.unwrap_or_else(|failed| {
                error = Some(failed);
                false
            })
        });
        if let Some(error) = error {
            return Err(error);
        }
        if !look.chunks.is_empty() {
            if shared.ack != Ack::None {
                link.expect(look.sent.len());
            }
            sender.write(&mut look.chunks).await?;
            if shared.ack == Ack::None {
                settle_written(shared, &look.sent);
            }
            continue;
        }
        if !look.unidentified.is_empty() {
            identify(shared, link, &look.unidentified).await?;
            continue;
        }
        if shared.is_closed() && shared.unsettled.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        match look.next_due {
            Some(due) => {
                tokio::select! {
                    () = shared.work.notified() => {}
                    () = tokio::time::sleep_until(due.into()) => {}
                }
            }
            None => shared.work.notified().await,
        }
    }
}

/// Finishes what is due in a partition and collects what may be sent. Whether to look at it again
/// though nothing happens.
fn look_at(shared: &Shared, partition: usize, look: &mut Look) -> Result<bool, StreamError> {
    let Some(slot) = shared.outboxes.get(partition) else {
        return Ok(false);
    };
    let now = Instant::now();
    let mut outbox = lock(slot);
    outbox.tell_late(now);
    loop {
        while let Some(batch) = outbox.next_to_send(now) {
            let header = Produce {
                topic: shared.topic,
                partition: outbox.partition(),
                lane: outbox.lane(),
                leader_epoch: 0,
                ack: shared.ack,
                immunity_ms: None,
            };
            let mut head = BytesMut::with_capacity(64);
            encode(&header, batch.correlation, batch.bytes.len(), &mut head)?;
            look.bytes += batch.bytes.len();
            look.sent.push(batch.correlation);
            look.chunks.push(head.freeze());
            look.chunks.extend_from_slice(batch.bytes.pieces());
            if look.bytes >= WRITE_BYTES {
                return Ok(true);
            }
        }
        let Some(mut closing) = outbox.close_due(now) else {
            break;
        };
        // Packing takes long enough to be kept out of the way of those who push.
        drop(outbox);
        let bytes = closing.gathered.builder.finish_in_pieces(closing.stamp);
        outbox = lock(slot);
        outbox.closed(closing.gathered, bytes.unwrap_or_default());
    }
    if outbox.wants_identity() {
        look.unidentified.push(partition);
    }
    let due = outbox.next_due();
    look.next_due = [look.next_due, due].into_iter().flatten().min();
    Ok(due.is_some())
}

/// At level none there is no answer to wait for.
fn settle_written(shared: &Shared, sent: &[u64]) {
    for correlation in sent {
        if let Some(outbox) = shared.outboxes.get(partition_of_correlation(*correlation)) {
            let settled = lock(outbox).written(*correlation);
            shared.release(&settled);
        }
    }
}

/// Gets another producer id for partitions whose last one ended with a failure.
async fn identify(shared: &Shared, link: &Link, partitions: &[usize]) -> Result<(), StreamError> {
    let answer = link.ask::<_, ProducerOk>(&OpenProducer::default()).await;
    let refusal = match answer {
        Ok((identity, _)) => {
            for partition in partitions {
                if let Some(outbox) = shared.outboxes.get(*partition) {
                    lock(outbox).identify(identity);
                    shared.wake(*partition);
                }
            }
            return Ok(());
        }
        Err(RequestError::Refused(refusal)) => refusal,
        Err(RequestError::Lost(reason) | RequestError::Protocol(reason)) => {
            return Err(StreamError::Lost(reason));
        }
    };
    if refusal.code.is_retriable() {
        sleep(PAUSE).await;
        partitions.iter().for_each(|p| shared.wake(*p));
        return Ok(());
    }
    let error = SendError::Refused(refusal);
    for partition in partitions {
        if let Some(outbox) = shared.outboxes.get(*partition) {
            let settled = lock(outbox).fail_all(error.clone());
            shared.note(&settled, &error);
        }
    }
    Ok(())
}

async fn read(shared: &Shared, mut receiver: FrameReceiver) -> Result<(), StreamError> {
    while let Some(frame) = receiver.next().await? {
        let correlation = frame.correlation();
        let partition = partition_of_correlation(correlation);
        let Some(slot) = shared.outboxes.get(partition) else {
            continue;
        };
        let mut outbox = lock(slot);
        match frame.kind() {
            Some(FrameKind::Stored) => {
                let settled = outbox.stored(correlation, &frame.decode::<Stored>()?);
                let more = outbox.has_unsent();
                drop(outbox);
                shared.release(&settled);
                if more {
                    shared.wake(partition);
                }
            }
            Some(FrameKind::Accepted) => {
                outbox.accepted(correlation);
                drop(outbox);
                shared.progressed();
            }
            Some(FrameKind::Refused) => {
                let refused: Refused = frame.decode()?;
                drop(outbox);
                refuse(shared, partition, correlation, refused);
            }
            // Nothing else answers what is asked here.
            _ => {}
        }
    }
    Err(StreamError::Lost("the broker ended the stream".to_owned()))
}

fn refuse(shared: &Shared, partition: usize, correlation: u64, refused: Refused) {
    let Some(slot) = shared.outboxes.get(partition) else {
        return;
    };
    let mut outbox = lock(slot);
    let about = outbox.refusal_of(correlation);
    let refusal = Refusal::from(refused);
    let code = refusal.code;
    // A gap before a batch that is not the first: what comes before it is on its way again, or will be. That too
    // much waits for its time may last for hours, and would hold back what does not wait.
    let passes = (code.is_retriable() && code != Code::TooManyTimers)
        || (matches!(code, Code::SequenceGap | Code::ProducerStateLost)
            && about == Refusing::Later);
    match about {
        Refusing::Past => {}
        Refusing::First | Refusing::Later if passes => {
            tracing::debug!(%code, "the broker put a batch off");
            let after = refusal.after_ms.map(Duration::from_millis);
            let settled = outbox.put_off(correlation, after, Instant::now());
            drop(outbox);
            shared.release(&settled);
            *lock(&shared.put_off) = Some(refusal);
            shared.wake(partition);
        }
        Refusing::First | Refusing::Later => {
            let error = SendError::Refused(refusal);
            let settled = outbox.fail_from(correlation, error.clone());
            drop(outbox);
            shared.note(&settled, &error);
            shared.wake(partition);
        }
    }
}

//! One client's connection: admission, decoding, routing. The only place that asks actors.
//!
//! Over QUIC or within the process, a connection has bidirectional streams with requests and answers, and one unidirectional stream per
//! reader with deliveries. Each bidirectional stream is read by one task and written by another, so
//! that answers leave as they come and requests never wait for them.
//!
//! - N1 Nothing is allocated for a frame before its length was checked and its bytes admitted.
//! - N2 An admitted frame that does not arrive within `FRAME_TIMEOUT` costs its sender the
//!   connection, so that nobody holds what others wait for.
//!   A connection may hold only a share (`ARRIVING_SHARE`) of all in frames that are still arriving: one
//!   that begins many large frames waits for itself.
//! - N3 Batches of one stream reach their partitions in the order they came in.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of many answers one or two are hoped for"
)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tracing::Instrument;

use super::door::Door;
use super::endpoint::Listening;
use super::out::{self, LONG_ANSWERS_MAX, Out};
use super::refusal;
use super::requests;
use super::transactions;
pub use super::window::Pouring;
use super::window::Window;
use crate::actors::admission::{Admission, Guest, Permit};
use crate::actors::commit::LogGauge;
use crate::actors::directory::{DirectoryActor, Locate};
use crate::actors::partition::{Append, PartitionActor};
use crate::actors::reply::{Answer, Mail, ReplyTo};
use crate::actors::transaction::CoordinatorActor;
use crate::actors::{House, Link};
use crate::domain::batch;
use crate::domain::body::Body;
use crate::domain::id::{ClusterId, Lane, OwnerId, PartitionId, PartitionIndex, TopicId};
use crate::domain::rejection::Rejection;
use crate::log::ReadPool;
use crate::transport::{Connection, Ended, ReceiveStream, SendStream};
use crate::wire::code::{Code, Refused};
use crate::wire::frame::{Frame, FrameClass, FrameError, FrameKind, FrameLimits};
use crate::wire::hello::{Goodbye, Limits};
use crate::wire::pieces::{FrameInPieces, PieceDecoder};
use crate::wire::produce::{Ack, Produce};

/// Time an admitted frame has to arrive whole.
const FRAME_TIMEOUT: Duration = Duration::from_secs(10);
/// Time a new connection has for its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Chunks taken from a stream at a time.
const CHUNKS: usize = 32;
/// Bytes at which a frame is counted at least: what its way through the mailboxes costs.
const FRAME_COST_BYTES: usize = 4096;
/// Frames with bodies up to this many bytes are read before they are admitted.
const SMALL_BYTES: usize = 32 * 1024;
/// The part of all that may be admitted which one connection may hold in frames that are still arriving.
const ARRIVING_SHARE: u64 = 16;
/// What is remembered of clients that misbehaved.
#[derive(Debug, Default)]
pub struct Manners(Mutex<Door>);

impl Manners {
    pub(super) fn door(&self) -> MutexGuard<'_, Door> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What every session shares.
pub struct Shared {
    /// The actors.
    pub house: House,
    /// Names and addresses.
    pub directory: Link<DirectoryActor>,
    /// Bytes that may be on their way to the disk: few enough that nobody waits long behind them.
    pub admission: Admission,
    /// Bytes of frames that may be arriving, or whole and waiting for their turn.
    pub arriving: Admission,
    /// Reads what is not in the cache.
    pub pool: Arc<ReadPool>,
    /// Told in the handshake.
    pub limits: Limits,
    /// Told in the handshake.
    pub cluster: ClusterId,
    /// What handles of delayed records are keyed with.
    pub timer_secret: Arc<ring::hmac::Key>,
    /// What the log looks like.
    pub gauge: Arc<LogGauge>,
    /// Open connections.
    pub connections: AtomicU64,
    /// Frames served so far: moves while clients are being served.
    pub frames: AtomicU64,
    /// Who is let in when.
    pub manners: Manners,
    /// Who fills the socket.
    pub pouring: Pouring,
    /// How many there may be.
    pub connections_max: u64,
    /// Turns true when the broker stops.
    pub stopping: watch::Receiver<bool>,
    /// When it started.
    pub started: Instant,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    /// Asks the directory.
    pub(super) async fn ask_directory<M>(&self, make: impl FnOnce(ReplyTo) -> M) -> Answer
    where
        M: actix::Message<Result = ()> + Send + 'static,
        DirectoryActor: actix::Handler<M>,
    {
        let (reply, mut answer) = question();
        self.directory.tell(make(reply));
        first(&mut answer).await
    }
}

/// A channel for one answer.
pub(super) fn question() -> (ReplyTo, UnboundedReceiver<Mail>) {
    let (tx, rx) = mpsc::unbounded_channel();
    (ReplyTo::new(tx, 0), rx)
}

/// Its answer; a broker that is going away answers `Retry`.
pub(super) async fn first(answer: &mut UnboundedReceiver<Mail>) -> Answer {
    answer
        .recv()
        .await
        .map_or(Answer::Refused(Rejection::Retry), |mail| mail.answer)
}

/// A partition lane as requests name it.
pub(super) type Place = (TopicId, PartitionIndex, Lane);

/// One connection.
pub struct Session {
    /// What all share.
    pub(super) shared: Arc<Shared>,
    /// The connection.
    pub(super) connection: Connection,
    pub(super) greeted: Cell<bool>,
    /// The stream `Hello` came on: the broker's own words go there.
    pub(super) control: RefCell<Option<Out>>,
    partitions: RefCell<HashMap<Place, (OwnerId, Link<PartitionActor>)>>,
    pub(super) coordinators: RefCell<HashMap<u8, Link<CoordinatorActor>>>,
    /// Producer groups this connection's client answers for. Dropped, nothing more is asked of it for the group.
    pub(super) checks: RefCell<HashMap<String, oneshot::Sender<()>>>,
    pub(super) readers: RefCell<HashMap<u64, Rc<super::credit::Control>>>,
    pub(super) members: super::member::Members,
    pub(super) credit: Cell<u64>,
    /// Bytes of frames that may be arriving at a time: this connection's own bound...
    arriving_share: Arc<Semaphore>,
    /// ...its turns in what all may have arriving...
    arriving: Guest,
    /// ...and in what all may have on its way to the disk.
    admission: Guest,
    /// What it may have under way.
    window: Rc<Window>,
    /// Requests with long answers that may be under way at a time.
    pub(super) long_answers: Arc<Semaphore>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// Serves one connection over QUIC to its end, on the arbiter it is called on: the driver is put there
/// too.
pub async fn serve(shared: Arc<Shared>, listening: Listening, incoming: quinn::Incoming) {
    let remote = incoming.remote_address();
    let span = tracing::info_span!(target: "waterwheel::session", "connection", %remote);
    let host = Arc::clone(&shared);
    let accepted = async move {
        let connecting = listening
            .admit(incoming)
            .map_err(|error| error.to_string())?;
        tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting)
            .await
            .map_err(|_| "the handshake took too long".to_owned())?
            .map(Connection::from)
            .map_err(|error| {
                if is_offence(&error) {
                    host.manners.door().offended(remote, Instant::now());
                }
                listening.explain(&error)
            })
    };
    attend(shared, accepted).instrument(span).await;
}

/// Serves one connection within the process to its end, on the arbiter it is called on.
pub(super) async fn serve_local(shared: Arc<Shared>, connection: Connection) {
    let span =
        tracing::info_span!(target: "waterwheel::session", "connection", remote = "in process");
    attend(shared, std::future::ready(Ok(connection)))
        .instrument(span)
        .await;
}

/// Counts a connection from its first packet to its end.
async fn attend(shared: Arc<Shared>, accepted: impl Future<Output = Result<Connection, String>>) {
    let open = shared.connections.fetch_add(1, Ordering::Relaxed);
    let counted = Counted(Arc::clone(&shared));
    let refuse = open >= shared.connections_max;
    let outcome = match accepted.await {
        Ok(connection) => converse(shared, connection, refuse).await,
        Err(reason) => Err(reason),
    };
    drop(counted);
    match outcome {
        Ok(reason) => tracing::debug!(target: "waterwheel::session", %reason, "closed"),
        Err(reason) => tracing::info!(target: "waterwheel::session", %reason, "refused"),
    }
}

/// A connection in the count.
struct Counted(Arc<Shared>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn converse(
    shared: Arc<Shared>,
    connection: Connection,
    refuse: bool,
) -> Result<Ended, String> {
    if refuse {
        close(
            &connection,
            Code::TooManyConnections,
            "the broker has as many connections as it takes",
        );
        return Err("too many connections".to_owned());
    }
    tracing::debug!(target: "waterwheel::session", "open");
    let arriving_share = arriving_bytes(&shared);
    let session = Rc::new(Session {
        arriving_share: Arc::new(Semaphore::new(arriving_share)),
        arriving: shared.arriving.guest(),
        admission: shared.admission.guest(),
        window: Window::new(connection.clone(), shared.pouring.clone()),
        shared,
        long_answers: Arc::new(Semaphore::new(LONG_ANSWERS_MAX)),
        connection: connection.clone(),
        greeted: Cell::new(false),
        control: RefCell::new(None),
        partitions: RefCell::new(HashMap::new()),
        coordinators: RefCell::new(HashMap::new()),
        checks: RefCell::new(HashMap::new()),
        readers: RefCell::new(HashMap::new()),
        members: super::member::Members::default(),
        credit: Cell::new(0),
    });
    let mut stopping = session.shared.stopping.clone();
    loop {
        tokio::select! {
            stream = connection.accept_bi() => match stream {
                Ok((send, recv)) => session.open_stream(send, recv),
                Err(reason) => {
                    session.close_readers();
                    let orderly = matches!(reason, Ended::ByPeer { .. });
                    session.members.end(orderly, None);
                    session.control.borrow_mut().take();
                    return Ok(reason);
                }
            },
            _ = stopping.wait_for(|stopping| *stopping) => {
                session.close_readers();
                let stopping = refusal::refused(&Rejection::ShuttingDown);
                session.members.end(false, Some(&stopping));
                if let Some(control) = session.control.borrow_mut().take() {
                    let reason = "the broker is stopping".to_owned();
                    control.send(&Goodbye { reason }, 0, Bytes::new());
                }
                return Ok(connection.closed().await);
            }
        }
    }
}

/// Whether a handshake failed for what the client is, not for having gone: it will fail again.
fn is_offence(error: &quinn::ConnectionError) -> bool {
    match error {
        quinn::ConnectionError::TransportError(_) => true,
        // 0x100 to 0x1ff are alerts of TLS: it does not want this broker.
        quinn::ConnectionError::ConnectionClosed(close) => {
            (0x100..0x200).contains(&u64::from(close.error_code))
        }
        _ => false,
    }
}

/// Its share, but never less than the largest frame.
fn arriving_bytes(shared: &Shared) -> usize {
    let share = shared.arriving.total_bytes() / ARRIVING_SHARE;
    usize::try_from(share.max(u64::from(shared.limits.frame_bytes_max))).unwrap_or(usize::MAX >> 4)
}

/// Closes a connection with a code of ours.
pub(super) fn close(connection: &Connection, code: Code, why: &str) {
    connection.close(u32::from(code as u16), why);
}

impl Session {
    fn close_readers(&self) {
        for reader in self.readers.borrow().values() {
            reader.close();
        }
        self.checks.borrow_mut().clear();
    }

    fn open_stream(self: &Rc<Self>, send: SendStream, recv: ReceiveStream) {
        let (out, leaving) = out::out();
        let secret = Arc::clone(&self.shared.timer_secret);
        actix_rt::spawn(out::write(send, leaving, secret).in_current_span());
        let session = Rc::clone(self);
        actix_rt::spawn(
            async move {
                if let Err(refused) = session.read_stream(recv, &out).await {
                    tracing::info!(
                        target: "waterwheel::session",
                        code = refused.code().name(), why = refused.message, "the connection is closed for what it sent"
                    );
                    if let Some(remote) = session.connection.remote() {
                        let mut door = session.shared.manners.door();
                        door.offended(remote, Instant::now());
                    }
                    close(&session.connection, refused.code(), &refused.message);
                }
            }
            .in_current_span(),
        );
    }

    /// Reads frames to the stream's end. An error is one the connection ends for.
    async fn read_stream(
        self: &Rc<Self>,
        mut recv: ReceiveStream,
        out: &Out,
    ) -> Result<(), Refused> {
        let limit = usize::try_from(self.shared.limits.batch_bytes_max).unwrap_or(usize::MAX);
        let mut decoder = PieceDecoder::new(FrameLimits::for_batches(limit));
        let mut arriving = None;
        let mut deadline = None;
        let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
        loop {
            let read = recv.read(&mut chunks);
            let read = match deadline {
                None => read.await,
                Some(deadline) => tokio::time::timeout_at(deadline, read).await.map_err(|_| {
                    Refused::new(
                        Code::FrameMalformed,
                        "a frame was begun and not finished in time",
                    )
                })?,
            };
            // A reset stream or a lost connection ends it quietly.
            let Ok(Some(count)) = read else { return Ok(()) };
            let came = chunks.iter().take(count).map(Bytes::len).sum();
            self.window.brought(came);
            for chunk in chunks.iter_mut().take(count) {
                let mut piece = std::mem::take(chunk);
                while let Some(frame) = decoder.feed(&mut piece).map_err(bad_frame)? {
                    deadline = None;
                    let whole = arriving.take().map(|(permit, _)| permit);
                    self.dispatch(frame, whole, out).await?;
                }
            }
            // N1: a large frame is admitted once its length is known; until then what came of it is at
            // most what one read brought.
            if deadline.is_none()
                && let Some(pending) = decoder.pending()
            {
                if arriving.is_none() && pending.body_bytes > SMALL_BYTES {
                    out.room().await;
                    let share = acquire(&self.arriving_share, pending.body_bytes).await;
                    arriving = Some((self.arriving.admit(cost(pending.body_bytes)).await, share));
                }
                deadline = Some(tokio::time::Instant::now() + FRAME_TIMEOUT);
            }
        }
    }

    async fn dispatch(
        self: &Rc<Self>,
        frame: FrameInPieces,
        arrived: Option<Permit>,
        out: &Out,
    ) -> Result<(), Refused> {
        let body = match frame.prefix.known() {
            // Stays in pieces on its way to the log.
            Some(FrameKind::Produce) => Some(frame.body.clone()),
            _ => None,
        };
        let frame = if body.is_some() {
            frame.head()
        } else {
            frame.into_frame()
        };
        let Some(kind) = frame.kind() else {
            if frame.prefix.class() == FrameClass::Request && out.begin().await {
                let refused = Refused::new(
                    Code::Unsupported,
                    format!(
                        "this broker knows no request of kind {:#06x}",
                        frame.prefix.kind
                    ),
                );
                out.refuse(&refused, frame.correlation());
            }
            return Ok(());
        };
        if !self.greeted.get() && kind != FrameKind::Hello {
            return Err(Refused::new(
                Code::HelloRequired,
                "the first request must be Hello",
            ));
        }
        if kind != FrameKind::Hello {
            self.shared.frames.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(body) = body {
            let span = tracing::trace_span!(
                target: "waterwheel::request", "produce", correlation = frame.correlation()
            );
            return self
                .produce(&frame, body, arrived, out)
                .instrument(span)
                .await;
        }
        drop(arrived);
        if frame.prefix.class() == FrameClass::Request && !out.begin().await {
            return Ok(());
        }
        requests::handle(self, kind, frame, out)
    }

    async fn produce(
        &self,
        frame: &Frame,
        body: Body,
        arrived: Option<Permit>,
        out: &Out,
    ) -> Result<(), Refused> {
        let header: Produce = frame.decode().map_err(bad_frame)?;
        let correlation = frame.correlation();
        if header.ack != Ack::None && !out.begin().await {
            return Ok(());
        }
        let refuse = |refused: Refused| {
            if header.ack == Ack::None {
                tracing::debug!(target: "waterwheel::session", why = refused.message, "one-way batch refused");
            } else {
                out.refuse(&refused, correlation);
            }
            Ok(())
        };
        if *self.shared.stopping.borrow() {
            return refuse(refusal::refused(&Rejection::ShuttingDown));
        }
        if header.leader_epoch != 0 {
            return refuse(Refused::new(
                Code::StaleEpoch,
                "the leader epoch is 0; ask for the metadata",
            ));
        }
        let batch = match batch::check(&body) {
            Ok(batch) => batch,
            Err(error) => return refuse(refusal::bad_batch(&error)),
        };
        if batch.header.limit_bytes() > self.shared.limits.batch_bytes_max as usize {
            return refuse(Refused::new(
                Code::BatchTooLarge,
                "the batch is larger than the broker takes",
            ));
        }
        if batch.level != Some(header.lane.0) {
            return refuse(Refused::new(
                Code::BatchMalformed,
                "the records of a batch have the priority of the lane they are sent to",
            ));
        }
        // From here on it counts against what may be on its way to the disk, not against what arrives.
        let permit = self.admission.admit(cost(body.len())).await;
        drop(arrived);
        let place = (header.topic, header.partition, header.lane);
        let (owner, partition) = match self.locate_owner(place).await {
            Ok(found) => found,
            Err(rejection) => return refuse(refusal::refused(&rejection)),
        };
        let reply = if header.ack == Ack::None {
            ReplyTo::nobody()
        } else {
            out.reply(correlation)
        };
        let append = Append {
            batch: body.with_crc(batch.crc),
            count: batch.header.count,
            facts: batch.facts,
            tell_accepted: header.ack == Ack::Memory,
            tied: Vec::new(),
            reply,
            permit: Some(permit),
        };
        if batch.header.transaction.0 == 0 {
            partition.tell(append);
            return Ok(());
        }
        let id = PartitionId {
            topic: header.topic,
            partition: header.partition,
            lane: header.lane,
        };
        let to = (owner, id, partition);
        let sent = transactions::half(self, append, to, header.immunity_ms).await;
        sent.or_else(|(refused, append)| {
            append.reply.forget();
            refuse(refused)
        })
    }

    /// The partition's actor, from this session's memory if it lives.
    pub(super) async fn locate(&self, place: Place) -> Result<Link<PartitionActor>, Rejection> {
        self.locate_owner(place).await.map(|(_, link)| link)
    }

    /// The same, and who it is.
    async fn locate_owner(
        &self,
        place: Place,
    ) -> Result<(OwnerId, Link<PartitionActor>), Rejection> {
        if let Some((owner, link)) = self.partitions.borrow().get(&place)
            && link.is_alive()
        {
            return Ok((*owner, link.clone()));
        }
        let (topic, partition, lane) = place;
        let answer = self
            .shared
            .ask_directory(|reply| Locate {
                topic,
                partition,
                lane,
                reply,
            })
            .await;
        match answer {
            Answer::Partition(owner, link) => {
                let found = (owner, link);
                self.partitions.borrow_mut().insert(place, found.clone());
                Ok(found)
            }
            Answer::Refused(rejection) => {
                self.partitions.borrow_mut().remove(&place);
                Err(rejection)
            }
            _ => Err(Rejection::Retry),
        }
    }
}

/// What a frame of so many bytes is counted at.
fn cost(bytes: usize) -> u64 {
    bytes.max(FRAME_COST_BYTES) as u64
}

async fn acquire(semaphore: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    Arc::clone(semaphore).acquire_many_owned(bytes).await.ok()
}

/// A frame error ends the connection: the stream is beyond use, and its sender is not one of ours.
pub(super) fn bad_frame(error: FrameError) -> Refused {
    let code = match error {
        FrameError::TooLarge { .. } => Code::FrameTooLarge,
        _ => Code::FrameMalformed,
    };
    Refused::new(code, error.to_string())
}

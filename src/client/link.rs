//! A connection that has said hello: its control stream, and whose the broker's streams are.
//!
//! In: requests and events from producers, readers and admin. Out: answers, and the streams of readers.
//! Two tasks per link live as long as its connection: one writes and reads the control stream, one
//! hands incoming streams to their readers. When the connection ends, every waiting request fails.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, mpsc, oneshot};

use super::connection::{FrameReceiver, FrameSender, StreamError, Transport};
use super::error::Refusal;
use crate::domain::batch::BATCH_VERSION;
use crate::wire::code::Refused;
use crate::wire::frame::{
    Frame, FrameClass, FrameKind, FrameLimits, Header, SERVED_BYTES_MAX, encode, encode_bare,
};
use crate::wire::hello::{Hello, HelloOk};
use crate::wire::reader::StreamOpen;
use crate::wire::transaction::{CheckBack, CheckedBack, Outcome};

/// Why a request has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum RequestError {
    #[error(transparent)]
    Refused(Refusal),
    /// The connection ended first.
    #[error("{0}")]
    Lost(String),
    #[error("{0}")]
    Protocol(String),
}

/// A poisoned lock here guards nothing that a panic could have left half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection that has said hello.
#[derive(Debug)]
pub(crate) struct Link {
    transport: Transport,
    hello: HelloOk,
    limits: FrameLimits,
    outgoing: mpsc::UnboundedSender<Bytes>,
    desk: Arc<Desk>,
}

/// What the tasks of a link share with it.
#[derive(Debug, Default)]
struct Desk {
    next_correlation: AtomicU64,
    next_reader: AtomicU64,
    /// `None` once the connection has ended.
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Frame>>>>,
    readers: Mutex<HashMap<u64, oneshot::Sender<FrameReceiver>>>,
    /// Who answers questions for outcomes of transactions, by producer group.
    checkers: Mutex<HashMap<String, Vec<mpsc::UnboundedSender<Frame>>>>,
    /// How many answers somebody waits for, and the bell for the first one.
    expected: AtomicUsize,
    expecting: Notify,
}

impl Desk {
    /// Passes a question for an outcome on to one who answers for its group. Where nobody does any more, the
    /// answer says so, and the broker asks elsewhere.
    fn pass_on(&self, mut question: Frame) -> Option<CheckedBack> {
        let asked: CheckBack = question.decode().ok()?;
        let mut checkers = lock(&self.checkers);
        let of_group = checkers.entry(asked.group.clone()).or_default();
        loop {
            of_group.retain(|checker| !checker.is_closed());
            let turn = usize::from(of_group.len() > 1);
            of_group.rotate_left(turn);
            let Some(checker) = of_group.first() else {
                break;
            };
            match checker.send(question) {
                Ok(()) => return None,
                Err(mpsc::error::SendError(back)) => question = back,
            }
        }
        checkers.remove(&asked.group);
        Some(CheckedBack {
            producer: asked.producer,
            epoch: asked.epoch,
            number: asked.number,
            outcome: Outcome::Unknown,
            nobody_of: Some(asked.group),
        })
    }
}

impl Link {
    /// Says hello on a new control stream and starts the link's tasks.
    pub(crate) async fn open(transport: Transport) -> Result<Self, RequestError> {
        let lost = |error: StreamError| RequestError::Lost(error.to_string());
        let limits = FrameLimits::default();
        let (mut sender, mut receiver) = transport.open(limits).await.map_err(lost)?;
        let hello = Hello {
            client: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features: Vec::new(),
            batch_versions: vec![BATCH_VERSION],
        };
        let hello = encode_bare(&hello, 0).map_err(protocol)?;
        sender.write(&mut [hello]).await.map_err(lost)?;
        let answer = receiver.next().await.map_err(lost)?;
        let answer = answer.ok_or_else(|| RequestError::Lost("no answer to hello".to_owned()))?;
        let hello: HelloOk = answered(&answer)?;
        if !hello.batch_versions.contains(&BATCH_VERSION) {
            return Err(RequestError::Protocol(format!(
                "the broker reads batch versions {:?}, this client writes {BATCH_VERSION}",
                hello.batch_versions
            )));
        }
        let limits = FrameLimits {
            frame_bytes_max: SERVED_BYTES_MAX,
        };
        receiver.set_limits(limits);

        let desk = Arc::new(Desk::default());
        *lock(&desk.waiting) = Some(HashMap::new());
        let (outgoing, queue) = mpsc::unbounded_channel();
        let queue = (outgoing.downgrade(), queue);
        tokio::spawn(run_control(sender, receiver, queue, Arc::clone(&desk)));
        tokio::spawn(run_streams(transport.clone(), limits, Arc::clone(&desk)));
        Ok(Self {
            transport,
            hello,
            limits,
            outgoing,
            desk,
        })
    }

    pub(crate) fn hello(&self) -> &HelloOk {
        &self.hello
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// A stream for producing.
    pub(crate) async fn open_stream(&self) -> Result<(FrameSender, FrameReceiver), StreamError> {
        self.transport.open(self.limits).await
    }

    /// Asks on the control stream and waits for the answer; no time limit of its own.
    pub(crate) async fn ask<H: Header, A: Header>(
        &self,
        header: &H,
    ) -> Result<(A, Bytes), RequestError> {
        self.ask_with(header, &Bytes::new()).await
    }

    /// The same, with a body.
    pub(crate) async fn ask_with<H: Header, A: Header>(
        &self,
        header: &H,
        body: &Bytes,
    ) -> Result<(A, Bytes), RequestError> {
        let correlation = self.desk.next_correlation.fetch_add(1, Ordering::Relaxed) + 1;
        let (answer, waiting) = oneshot::channel();
        match lock(&self.desk.waiting).as_mut() {
            Some(table) => drop(table.insert(correlation, answer)),
            None => return Err(RequestError::Lost("the connection has ended".to_owned())),
        }
        self.expect(1);
        let _withdraw = Withdraw {
            link: self,
            correlation,
        };
        self.send_with(header, correlation, body)?;
        let frame = waiting
            .await
            .map_err(|_| RequestError::Lost("the connection ended before the answer".to_owned()))?;
        Ok((answered(&frame)?, frame.body))
    }

    /// Sends on the control stream without waiting for anything.
    pub(crate) fn send<H: Header>(&self, header: &H, correlation: u64) -> Result<(), RequestError> {
        self.send_with(header, correlation, &Bytes::new())
    }

    fn send_with<H: Header>(
        &self,
        header: &H,
        correlation: u64,
        body: &Bytes,
    ) -> Result<(), RequestError> {
        let mut frame = BytesMut::with_capacity(64 + body.len());
        encode(header, correlation, body.len(), &mut frame).map_err(protocol)?;
        frame.extend_from_slice(body);
        self.outgoing
            .send(frame.freeze())
            .map_err(|_| RequestError::Lost("the connection has ended".to_owned()))
    }

    /// Questions for outcomes of a producer group's transactions go to `questions` from now on, in turn with
    /// others of this client.
    pub(crate) fn on_check_back(&self, group: &str, questions: mpsc::UnboundedSender<Frame>) {
        lock(&self.desk.checkers)
            .entry(group.to_owned())
            .or_default()
            .push(questions);
    }

    /// A reader's id, and the stream the broker will open for it once it is asked for.
    pub(crate) fn expect_stream(&self) -> (u64, oneshot::Receiver<FrameReceiver>) {
        let reader = self.desk.next_reader.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, receiver) = oneshot::channel();
        // On a connection that has ended there is nobody to hand it over: the receiver is told at once.
        if !self.transport.is_closed() {
            lock(&self.desk.readers).insert(reader, sender);
        }
        (reader, receiver)
    }

    /// A reader whose stream will not come.
    pub(crate) fn forget_stream(&self, reader: u64) {
        lock(&self.desk.readers).remove(&reader);
    }

    /// So many answers more are waited for: silence is suspicious from now on.
    pub(crate) fn expect(&self, answers: usize) {
        if self.desk.expected.fetch_add(answers, Ordering::Relaxed) == 0 {
            self.desk.expecting.notify_one();
        }
    }

    /// So many of them have come, or are not waited for any more.
    pub(crate) fn heard(&self, answers: usize) {
        let _ = self
            .desk
            .expected
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |expected| {
                Some(expected.saturating_sub(answers))
            });
    }

    pub(crate) fn is_expecting(&self) -> bool {
        self.desk.expected.load(Ordering::Relaxed) != 0
    }

    /// Waits until an answer is waited for.
    pub(crate) async fn until_expecting(&self) {
        while !self.is_expecting() {
            self.desk.expecting.notified().await;
        }
    }
}

/// Takes a request off the desk when its asker has the answer or has gone.
struct Withdraw<'a> {
    link: &'a Link,
    correlation: u64,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.link.heard(1);
        if let Some(table) = lock(&self.link.desk.waiting).as_mut() {
            table.remove(&self.correlation);
        }
    }
}

fn protocol(error: impl std::fmt::Display) -> RequestError {
    RequestError::Protocol(error.to_string())
}

/// The answer a frame holds, or the refusal.
pub(crate) fn answered<A: Header>(frame: &Frame) -> Result<A, RequestError> {
    if frame.kind() == Some(FrameKind::Refused) {
        let refused: Refused = frame.decode().map_err(protocol)?;
        return Err(RequestError::Refused(refused.into()));
    }
    frame.decode().map_err(protocol)
}

/// Writes what is queued and hands answers to who waits for them, until either fails.
async fn run_control(
    mut sender: FrameSender,
    mut receiver: FrameReceiver,
    (outgoing, mut queue): (
        mpsc::WeakUnboundedSender<Bytes>,
        mpsc::UnboundedReceiver<Bytes>,
    ),
    desk: Arc<Desk>,
) {
    let write = async {
        let mut chunks = Vec::new();
        while queue.recv_many(&mut chunks, 64).await != 0 {
            sender.write(&mut chunks).await?;
            chunks.clear();
        }
        Ok::<(), StreamError>(())
    };
    let read = async {
        while let Some(frame) = receiver.next().await? {
            if frame.prefix.class() == FrameClass::Answer {
                let asker = lock(&desk.waiting)
                    .as_mut()
                    .and_then(|table| table.remove(&frame.correlation()));
                if let Some(asker) = asker {
                    let _ = asker.send(frame);
                }
            } else if frame.kind() == Some(FrameKind::CheckBack) {
                if let Some(nobody) = desk.pass_on(frame)
                    && let Some(outgoing) = outgoing.upgrade()
                    && let Ok(frame) = encode_bare(&nobody, 0)
                {
                    let _ = outgoing.send(frame);
                }
            } else if frame.kind() == Some(FrameKind::Goodbye) {
                tracing::debug!("the broker says goodbye");
            }
        }
        Ok::<(), StreamError>(())
    };
    let ended = tokio::select! {
        ended = write => ended,
        ended = read => ended,
    };
    tracing::debug!(reason = ?ended.err(), "control stream ended");
    // Dropping the senders is the answer of everybody who waits.
    *lock(&desk.waiting) = None;
}

/// Hands the broker's streams to the readers they are for.
async fn run_streams(transport: Transport, limits: FrameLimits, desk: Arc<Desk>) {
    while let Ok(mut stream) = transport.accept(limits).await {
        let desk = Arc::clone(&desk);
        tokio::spawn(async move {
            let Ok(Some(frame)) = stream.next().await else {
                return;
            };
            let Ok(StreamOpen { reader }) = frame.decode() else {
                return;
            };
            if let Some(waiting) = lock(&desk.readers).remove(&reader) {
                let _ = waiting.send(stream);
            }
        });
    }
    lock(&desk.readers).clear();
}

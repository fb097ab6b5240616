//! What leaves a stream: the answers of actors and the frames of requests, in the order they are ready.
//!
//! - N6 Answers that a client does not read are bounded: a stream is read no further while
//!   [`OPEN_ANSWERS_MAX`] of its requests have no answer on its way, and a connection has at most
//!   [`LONG_ANSWERS_MAX`] of the requests whose answers can be long.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::refusal;
use crate::actors::reply::{Answer, Mail, ReplyTo};
use crate::transport::SendStream;
use crate::wire::code::{Code, Refused};
use crate::wire::frame::{FrameClass, Header, encode};
use crate::wire::produce::{Accepted, SendStatus, Stored};

/// Requests of one stream whose answers have not been handed to the transport.
pub(super) const OPEN_ANSWERS_MAX: usize = 512;
/// The same of one connection, for requests that are answered with lists.
pub(super) const LONG_ANSWERS_MAX: usize = 16;
/// Answers written with one call.
const ANSWERS_AT_ONCE: usize = 256;

/// A frame on its way out.
#[derive(Debug)]
struct OutFrame {
    head: Bytes,
    body: Bytes,
    is_answer: bool,
    /// Given back when the frame has left.
    _room: Option<Rc<OwnedSemaphorePermit>>,
}

/// How far the answers of a stream are behind its requests.
#[derive(Debug, Default)]
struct Pace {
    open: Cell<usize>,
    is_gone: Cell<bool>,
    changed: Notify,
}

/// Where a stream's answers go.
#[derive(Debug, Clone)]
pub(super) struct Out {
    mails: UnboundedSender<Mail>,
    frames: UnboundedSender<OutFrame>,
    pace: Rc<Pace>,
    room: Option<Rc<OwnedSemaphorePermit>>,
}

/// Its other end.
pub(super) struct Leaving {
    mails: UnboundedReceiver<Mail>,
    frames: UnboundedReceiver<OutFrame>,
    pace: Rc<Pace>,
}

/// Both ends of a new stream.
pub(super) fn out() -> (Out, Leaving) {
    let (mails, mails_rx) = mpsc::unbounded_channel();
    let (frames, frames_rx) = mpsc::unbounded_channel();
    let pace = Rc::new(Pace::default());
    let leaving = Leaving {
        mails: mails_rx,
        frames: frames_rx,
        pace: Rc::clone(&pace),
    };
    (
        Out {
            mails,
            frames,
            pace,
            room: None,
        },
        leaving,
    )
}

impl Out {
    /// Waits until there is room for one more answer (N6): before anything others wait for is taken.
    pub(super) async fn room(&self) {
        while self.pace.open.get() >= OPEN_ANSWERS_MAX && !self.pace.is_gone.get() {
            self.pace.changed.notified().await;
        }
    }

    /// Waits for room for one more answer and takes it. None is sent any more once it answers false: the
    /// client does not want any.
    pub(super) async fn begin(&self) -> bool {
        self.room().await;
        self.pace.open.set(self.pace.open.get() + 1);
        !self.pace.is_gone.get()
    }

    /// The same stream for an answer that can be long, once the connection has room for one (N6).
    pub(super) async fn for_long(mut self, room: &Arc<Semaphore>) -> Self {
        self.room = Arc::clone(room).acquire_owned().await.ok().map(Rc::new);
        self
    }

    /// Sends a frame.
    pub(super) fn send<H: Header>(&self, header: &H, correlation: u64, body: Bytes) {
        let mut head = BytesMut::with_capacity(128);
        let fits = encode(header, correlation, body.len(), &mut head).is_ok();
        let body = if fits {
            body
        } else {
            head.clear();
            let refused = Refused::new(Code::Internal, "the answer is too large for a frame");
            let _ = encode(&refused, correlation, 0, &mut head);
            Bytes::new()
        };
        let is_answer = FrameClass::of(H::KIND as u16) == FrameClass::Answer;
        let frame = OutFrame {
            head: head.freeze(),
            body,
            is_answer,
            _room: self.room.clone(),
        };
        // A stream whose writer is gone has nobody to tell.
        let _ = self.frames.send(frame);
    }

    /// Sends a refusal.
    pub(super) fn refuse(&self, refused: &Refused, correlation: u64) {
        self.send(refused, correlation, Bytes::new());
    }

    /// For an actor.
    pub(super) fn reply(&self, correlation: u64) -> ReplyTo {
        ReplyTo::new(self.mails.clone(), correlation)
    }
}

/// Writes what leaves, until nothing more can or the client wants none.
pub(super) async fn write(mut send: SendStream, mut leaving: Leaving) {
    let mut batch = Vec::with_capacity(ANSWERS_AT_ONCE);
    let (mut mails_open, mut frames_open) = (true, true);
    while mails_open || frames_open {
        let mut out = BytesMut::new();
        let mut last = None;
        let mut answers = 0;
        tokio::select! {
            count = leaving.mails.recv_many(&mut batch, ANSWERS_AT_ONCE), if mails_open => {
                mails_open = count > 0;
                for mail in batch.drain(..) {
                    answers += usize::from(!matches!(mail.answer, Answer::Accepted));
                    encode_mail(mail, &mut out);
                }
            }
            frame = leaving.frames.recv(), if frames_open => match frame {
                Some(frame) => {
                    out.extend_from_slice(&frame.head);
                    answers = usize::from(frame.is_answer);
                    last = Some(frame);
                }
                None => frames_open = false,
            }
        }
        let body = last
            .as_ref()
            .map(|frame| frame.body.clone())
            .unwrap_or_default();
        let mut pieces = [out.freeze(), body];
        if send.write(&mut pieces).await.is_err() {
            leaving.pace.is_gone.set(true);
            return leaving.pace.changed.notify_one();
        }
        drop(last);
        leaving
            .pace
            .open
            .set(leaving.pace.open.get().saturating_sub(answers));
        leaving.pace.changed.notify_one();
    }
    send.finish();
}

fn encode_mail(mail: Mail, out: &mut BytesMut) {
    let Mail {
        correlation,
        answer,
    } = mail;
    let encoded = match answer {
        Answer::Stored { receipt, repeat } => {
            let stored = Stored {
                first_offset: Some(receipt.first_offset),
                first_number: receipt.first_number,
                appended: receipt.appended,
                status: SendStatus::SendOk,
                duplicate: repeat,
            };
            encode(&stored, correlation, 0, out)
        }
        Answer::Accepted => encode(&Accepted {}, correlation, 0, out),
        Answer::Refused(rejection) => encode(&refusal::refused(&rejection), correlation, 0, out),
        Answer::Batches(_)
        | Answer::Bounds(_)
        | Answer::Topic(_)
        | Answer::Topics(..)
        | Answer::Producer(_)
        | Answer::GroupActor(..)
        | Answer::Groups(_)
        | Answer::Group(_)
        | Answer::Partition(..) => Ok(()),
    };
    debug_assert!(encoded.is_ok(), "N3: answers to batches are small");
}

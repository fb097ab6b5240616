//! Frames: a fixed prefix, a MessagePack header, a raw body.
//!
//! In: the bytes of a stream, in whatever pieces they come. Out: [`Frame`]s, or bytes to send.
//!
//! # Layout (little-endian)
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 4 | length of all that follows this field |
//! | 4 | 2 | kind |
//! | 6 | 2 | length of the header |
//! | 8 | 8 | correlation id; 0 for events |
//! | 16 | | header, then body |
//!
//! Kinds below 0x4000 are requests, below 0x8000 answers, the others events.
//!
//! Invariants: W1 and W2 of the [room](super): a length beyond the limit is refused when the prefix is
//! complete, and memory grows with what arrived, not with what was promised.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::domain::batch::BATCH_BYTES_MAX_DEFAULT;

/// The length of the fixed prefix in bytes.
pub const PREFIX_BYTES: usize = 16;

/// What a frame may be longer than the batch in it.
pub const FRAME_OVERHEAD_BYTES_MAX: usize = 64 * 1024;

/// The most bytes of a frame unless configured otherwise.
pub const FRAME_BYTES_MAX_DEFAULT: usize = BATCH_BYTES_MAX_DEFAULT + FRAME_OVERHEAD_BYTES_MAX;

/// The longest frame a client takes. A broker's lists are longer than any batch where it has thousands of
/// topics or groups, and a delivery says something of each record beside the batch, which may be from the
/// days of a larger `batch_bytes_max`; and it is the client's own broker, whose certificate it has checked.
/// What is delivered, credit bounds.
pub const SERVED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How deep MessagePack may nest in a header.
const NESTING_MAX: usize = 16;

/// What is reserved for a frame at once before its bytes have come.
const RESERVE_BYTES_MAX: usize = 128 * 1024;

/// What a decoder believes at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// The most bytes of a frame, prefix included.
    pub frame_bytes_max: usize,
}

impl Default for FrameLimits {
    fn default() -> Self {
        Self {
            frame_bytes_max: FRAME_BYTES_MAX_DEFAULT,
        }
    }
}

impl FrameLimits {
    /// The limits of a peer whose batches have at most `batch_bytes_max` bytes.
    #[must_use]
    pub fn for_batches(batch_bytes_max: usize) -> Self {
        Self {
            frame_bytes_max: batch_bytes_max.saturating_add(FRAME_OVERHEAD_BYTES_MAX),
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// What a frame is. The numbers are the wire's: never renumber.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum FrameKind {
            $($(#[$doc])* $name = $code,)*
        }

        impl FrameKind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The kind a number on the wire stands for, if any.
            #[must_use]
            pub fn from_u16(code: u16) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// The first request: what the client is and reads.
    Hello = 0x0001,
    /// Is anybody there?
    Ping = 0x0002,
    /// Topics, their partitions and who leads them.
    Metadata = 0x0003,
    /// Make a topic.
    CreateTopic = 0x0004,
    /// A topic's configuration and partitions.
    DescribeTopic = 0x0005,
    /// Change a topic's configuration.
    AlterTopic = 0x0006,
    /// Delete a topic and what is in it.
    DeleteTopic = 0x0007,
    /// Where a partition begins, ends, or was at a time.
    LookupOffset = 0x0008,
    /// A producer id for duplicate detection.
    OpenProducer = 0x0009,
    /// How the broker is.
    Status = 0x000a,
    /// Store a batch.
    Produce = 0x000b,
    /// Deliver a partition's records.
    OpenReader = 0x000c,
    /// Become a member of a group.
    JoinGroup = 0x0070,
    /// Stop being one.
    LeaveGroup = 0x0071,
    /// Records are consumed.
    Acknowledge = 0x0072,
    /// All up to a place are.
    AcknowledgeUpTo = 0x0073,
    /// Records are not consumed.
    Nack = 0x0074,
    /// More time for leases.
    ExtendLeases = 0x0075,
    /// Make a subscription.
    CreateSubscription = 0x0076,
    /// Change one.
    AlterSubscription = 0x0077,
    /// Remove one.
    RemoveSubscription = 0x0078,
    /// Which groups there are.
    ListGroups = 0x0079,
    /// A group with its members and progress.
    DescribeGroup = 0x007a,
    /// Set where a subscription goes on.
    ResetGroup = 0x007b,
    /// Remove a group.
    DeleteGroup = 0x007c,
    /// Which dead letters there are.
    ListDeadLetters = 0x007d,
    /// Bring dead letters back, or clear them.
    SettleDeadLetters = 0x007e,

    /// Cancel, reschedule or look at a delayed record.
    AskTimer = 0x0060,
    /// Which delayed records wait.
    ListTimers = 0x0061,
    /// A session of a transactional id.
    OpenSession = 0x0090,
    /// Decide a transaction.
    EndTransaction = 0x0091,
    /// Which transactions there are.
    ListTransactions = 0x0092,
    /// Records are consumed if a transaction commits.
    Attach = 0x0093,
    /// All up to a place are.
    AttachUpTo = 0x0094,

    /// Answers `Hello`.
    HelloOk = 0x4001,
    /// Answers `Ping`.
    Pong = 0x4002,
    /// Answers `Metadata`.
    MetadataOk = 0x4003,
    /// Answers the requests about one topic.
    TopicOk = 0x4004,
    /// Answers `LookupOffset`.
    OffsetOk = 0x4005,
    /// Answers `OpenProducer`.
    ProducerOk = 0x4006,
    /// Answers `Status`.
    StatusOk = 0x4007,
    /// Answers `Produce`: the batch is stored.
    Stored = 0x4008,
    /// Answers `Produce` at level memory, before `Stored`: the batch is accepted.
    Accepted = 0x4009,
    /// Answers `OpenReader`.
    ReaderOk = 0x400a,
    /// Answers `AskTimer`.
    TimerOk = 0x4060,
    /// Answers `ListTimers`.
    TimersOk = 0x4061,
    /// Answers `OpenSession`.
    SessionOk = 0x4090,
    /// Answers `EndTransaction`.
    TransactionEnded = 0x4091,
    /// Answers `ListTransactions`.
    TransactionsOk = 0x4092,
    /// Answers `JoinGroup`.
    Joined = 0x4070,
    /// Answers `Acknowledge`, `AcknowledgeUpTo`, `Nack` and `ExtendLeases`.
    Settled = 0x4071,
    /// Answers the requests about one subscription.
    SubscriptionOk = 0x4072,
    /// Answers `ListGroups`.
    GroupsOk = 0x4073,
    /// Answers `DescribeGroup`.
    GroupOk = 0x4074,
    /// Answers `ResetGroup`.
    ResetOk = 0x4075,
    /// Answers `LeaveGroup` and `DeleteGroup`.
    GroupDone = 0x4076,
    /// Answers `ListDeadLetters`.
    DeadLettersOk = 0x4077,
    /// Answers `SettleDeadLetters`.
    DeadLettersSettled = 0x4078,
    /// Answers any request: no, and why.
    Refused = 0x4fff,

    /// To the broker: a reader may be sent so many bytes more.
    Credit = 0x8001,
    /// To the broker: a reader is not wanted any more.
    CloseReader = 0x8002,
    /// To the client: whose stream this is.
    StreamOpen = 0x8003,
    /// To the client: a batch of a reader's partition.
    Deliver = 0x8004,
    /// To the client: records of a reader's partition that were published after they were stored.
    DeliverPublished = 0x8060,
    /// To the client: a reader has ended, and where.
    ReaderEnd = 0x8005,
    /// To the client: the broker is about to close the connection.
    Goodbye = 0x8006,
    /// To the broker: a member may be sent so much more.
    GrantCredit = 0x8070,
    /// To the broker: a member wants no more for now.
    Withdraw = 0x8071,
    /// To the client: a place is a member's.
    Assigned = 0x8072,
    /// To the client: a place will be another's.
    Revoked = 0x8073,
    /// To the client: leased records.
    Leased = 0x8074,
    /// To the client: leases that are a member's no more.
    LeasesLost = 0x8075,
    /// To the client: nothing more comes, as was asked.
    Withdrawn = 0x8076,
    /// To the client: not a member any more.
    MemberEnd = 0x8077,
    /// To the client: the broker is there.
    Heartbeat = 0x8078,
    /// To the client: a subscription of a member is gone.
    Unsubscribed = 0x8079,
    /// To the client: what became of a transaction of your producer group?
    CheckBack = 0x8090,
    /// To the broker: the answer to `CheckBack`.
    CheckedBack = 0x8091,
}

/// What is to be done with a frame, known or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameClass {
    /// To be answered; `Unsupported` where it is unknown.
    Request,
    /// Answers a request.
    Answer,
    /// Skipped where it is unknown.
    Event,
}

impl FrameClass {
    /// The class of a kind, known or not.
    #[must_use]
    pub fn of(kind: u16) -> Self {
        match kind {
            0..0x4000 => Self::Request,
            0x4000..0x8000 => Self::Answer,
            0x8000.. => Self::Event,
        }
    }
}

/// Why bytes are no frame, or a value none to send. The stream they came on is beyond use, except for
/// [`FrameError::Header`], after which it goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Longer than allowed.
    #[error("the frame has {length} bytes; at most {limit} are allowed")]
    TooLarge {
        /// Its length with its prefix.
        length: u64,
        /// What is allowed.
        limit: usize,
    },
    /// Its lengths contradict each other.
    #[error("the frame's header does not fit into its length of {length} bytes")]
    Malformed {
        /// What the length field says.
        length: u32,
    },
    /// The header is not the one its kind has.
    #[error("the header of frame kind {kind:#06x} cannot be read: {reason}")]
    Header {
        /// The frame's kind.
        kind: u16,
        /// What is wrong with it.
        reason: String,
    },
    /// The kind of header that was asked for is not the one there is.
    #[error("a frame of kind {found:#06x} came where {wanted:?} belongs")]
    Unexpected {
        /// The frame's kind.
        found: u16,
        /// What was asked for.
        wanted: FrameKind,
    },
}

/// The fixed part of a frame whose lengths were checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramePrefix {
    /// The kind, known or not.
    pub kind: u16,
    /// The length of the header in bytes.
    pub header_bytes: usize,
    /// The length of the body in bytes.
    pub body_bytes: usize,
    /// Ties an answer to its request.
    pub correlation: u64,
}

impl FramePrefix {
    /// Parses a prefix and checks its lengths.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] and [`FrameError::Malformed`].
    pub fn parse(bytes: &[u8; PREFIX_BYTES], limits: FrameLimits) -> Result<Self, FrameError> {
        let mut bytes = bytes.as_slice();
        let length = bytes.get_u32_le();
        let kind = bytes.get_u16_le();
        let header_bytes = usize::from(bytes.get_u16_le());
        let correlation = bytes.get_u64_le();
        let whole = u64::from(length) + 4;
        let whole_bytes = usize::try_from(whole).unwrap_or(usize::MAX);
        if whole_bytes > limits.frame_bytes_max {
            return Err(FrameError::TooLarge {
                length: whole,
                limit: limits.frame_bytes_max,
            });
        }
        let body_bytes = whole_bytes
            .checked_sub(PREFIX_BYTES + header_bytes)
            .ok_or(FrameError::Malformed { length })?;
        Ok(Self {
            kind,
            header_bytes,
            body_bytes,
            correlation,
        })
    }

    /// The kind, if it is known.
    #[must_use]
    pub fn known(&self) -> Option<FrameKind> {
        FrameKind::from_u16(self.kind)
    }

    /// What is to be done with it.
    #[must_use]
    pub fn class(&self) -> FrameClass {
        FrameClass::of(self.kind)
    }
}

/// The header of one kind of frame.
pub trait Header: Serialize + DeserializeOwned {
    /// Whose header it is.
    const KIND: FrameKind;
    /// Whether it is an array; a map with named fields otherwise.
    const POSITIONAL: bool = false;
}

/// Names the frame kind a header type belongs to.
macro_rules! header {
    ($name:ty, $kind:ident) => {
        impl $crate::wire::frame::Header for $name {
            const KIND: $crate::wire::frame::FrameKind = $crate::wire::frame::FrameKind::$kind;
        }
    };
    ($name:ty, $kind:ident, positional) => {
        impl $crate::wire::frame::Header for $name {
            const KIND: $crate::wire::frame::FrameKind = $crate::wire::frame::FrameKind::$kind;
            const POSITIONAL: bool = true;
        }
    };
}
pub(crate) use header;

/// A frame that came whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its prefix.
    pub prefix: FramePrefix,
    /// Its header, undecoded.
    pub header: Bytes,
    /// Its body, which no codec looks into.
    pub body: Bytes,
}

impl Frame {
    /// The kind, if it is known.
    #[must_use]
    pub fn kind(&self) -> Option<FrameKind> {
        self.prefix.known()
    }

    /// Ties an answer to its request.
    #[must_use]
    pub fn correlation(&self) -> u64 {
        self.prefix.correlation
    }

    /// Decodes the header.
    ///
    /// # Errors
    /// [`FrameError::Unexpected`] where the frame is of another kind, [`FrameError::Header`] where the
    /// bytes are not its header.
    pub fn decode<H: Header>(&self) -> Result<H, FrameError> {
        if self.prefix.kind != H::KIND as u16 {
            return Err(FrameError::Unexpected {
                found: self.prefix.kind,
                wanted: H::KIND,
            });
        }
        let mut decoder = rmp_serde::Deserializer::from_read_ref(self.header.as_ref());
        decoder.set_max_depth(NESTING_MAX);
        H::deserialize(&mut decoder).map_err(|error| FrameError::Header {
            kind: self.prefix.kind,
            reason: error.to_string(),
        })
    }
}

/// Appends the prefix and header of a frame whose body of `body_bytes` the caller sends after it,
/// uncopied.
///
/// # Errors
/// [`FrameError::TooLarge`] where the header or the frame is longer than their lengths can say.
pub fn encode<H: Header>(
    header: &H,
    correlation: u64,
    body_bytes: usize,
    out: &mut BytesMut,
) -> Result<(), FrameError> {
    let start = out.len();
    out.put_bytes(0, PREFIX_BYTES);
    let mut writer = out.writer();
    let written = if H::POSITIONAL {
        rmp_serde::encode::write(&mut writer, header)
    } else {
        rmp_serde::encode::write_named(&mut writer, header)
    };
    assert!(written.is_ok(), "every header has a MessagePack form");
    let header_bytes = out.len() - start - PREFIX_BYTES;
    let length = PREFIX_BYTES - 4 + header_bytes + body_bytes;
    let (Ok(header_length), Ok(length)) = (u16::try_from(header_bytes), u32::try_from(length))
    else {
        out.truncate(start);
        return Err(FrameError::TooLarge {
            length: length as u64 + 4,
            limit: FRAME_OVERHEAD_BYTES_MAX,
        });
    };
    let mut prefix = out.get_mut(start..).unwrap_or_default();
    prefix.put_u32_le(length);
    prefix.put_u16_le(H::KIND as u16);
    prefix.put_u16_le(header_length);
    prefix.put_u64_le(correlation);
    Ok(())
}

/// A frame without a body, ready to send.
///
/// # Errors
/// [`FrameError::TooLarge`] where the header is longer than 65 535 bytes.
pub fn encode_bare<H: Header>(header: &H, correlation: u64) -> Result<Bytes, FrameError> {
    let mut out = BytesMut::with_capacity(128);
    encode(header, correlation, 0, &mut out)?;
    Ok(out.freeze())
}

/// Puts frames together from the pieces a stream comes in. After an error the stream is beyond use.
#[derive(Debug)]
pub struct FrameDecoder {
    limits: FrameLimits,
    prefix_bytes: [u8; PREFIX_BYTES],
    prefix_filled: usize,
    prefix: Option<FramePrefix>,
    rest: BytesMut,
}

impl FrameDecoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new(limits: FrameLimits) -> Self {
        Self {
            limits,
            prefix_bytes: [0; PREFIX_BYTES],
            prefix_filled: 0,
            prefix: None,
            rest: BytesMut::new(),
        }
    }

    /// Other limits from the next frame on.
    pub fn set_limits(&mut self, limits: FrameLimits) {
        self.limits = limits;
    }

    /// Whether the stream may end here: no frame has begun.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.prefix_filled == 0
    }

    /// The prefix of the frame that has begun, once it is complete: what is coming.
    #[must_use]
    pub fn pending(&self) -> Option<&FramePrefix> {
        self.prefix.as_ref()
    }

    /// Takes bytes from `piece` until a frame is whole or `piece` is empty. To be called again with
    /// what is left until it answers `None`.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] and [`FrameError::Malformed`].
    pub fn feed(&mut self, piece: &mut impl Buf) -> Result<Option<Frame>, FrameError> {
        let prefix = match self.prefix {
            Some(prefix) => prefix,
            None => match self.feed_prefix(piece)? {
                Some(prefix) => prefix,
                None => return Ok(None),
            },
        };
        let whole = prefix.header_bytes + prefix.body_bytes;
        while self.rest.len() < whole && piece.has_remaining() {
            let chunk = piece.chunk();
            let wanted = whole - self.rest.len();
            let taken = chunk.get(..wanted).unwrap_or(chunk);
            if self.rest.capacity() - self.rest.len() < taken.len() {
                // Grow with what came, never beyond the frame.
                let ahead = self.rest.len().max(RESERVE_BYTES_MAX).min(wanted);
                self.rest.reserve(ahead.max(taken.len()));
            }
            self.rest.extend_from_slice(taken);
            let taken = taken.len();
            piece.advance(taken);
        }
        if self.rest.len() < whole {
            return Ok(None);
        }
        self.prefix = None;
        self.prefix_filled = 0;
        let mut body = std::mem::take(&mut self.rest).freeze();
        let header = body.split_to(prefix.header_bytes);
        Ok(Some(Frame {
            prefix,
            header,
            body,
        }))
    }

    fn feed_prefix(&mut self, piece: &mut impl Buf) -> Result<Option<FramePrefix>, FrameError> {
        while piece.has_remaining() {
            let Some(free) = self.prefix_bytes.get_mut(self.prefix_filled..) else {
                break;
            };
            if free.is_empty() {
                break;
            }
            let taken = free.len().min(piece.remaining());
            if let Some(free) = free.get_mut(..taken) {
                piece.copy_to_slice(free);
            }
            self.prefix_filled += taken;
        }
        if self.prefix_filled < PREFIX_BYTES {
            return Ok(None);
        }
        let prefix = FramePrefix::parse(&self.prefix_bytes, self.limits)?;
        self.prefix = Some(prefix);
        Ok(Some(prefix))
    }
}

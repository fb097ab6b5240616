//! What can go wrong for a client: one error per operation, each with a stable code.
//!
//! A code is the name of the broker's refusal ([`Code::name`]) or one of the client's own, listed with
//! each error. A retriable error may go away by itself; the client has then already tried for as long
//! as it was told to.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::domain::batch::BatchError;
use crate::wire::code::{Code, Refused};

/// What is said where there will be no connection any more.
const DISCONNECTED: &str = "there is no connection any more: the client was closed, or the broker in this process has stopped";

/// The broker said no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} [{code}]")]
#[non_exhaustive]
pub struct Refusal {
    /// Why.
    pub code: Code,
    /// What happened and what to do, in the broker's words.
    pub message: String,
    /// When it may be worth trying again, in milliseconds.
    pub after_ms: Option<u64>,
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self {
            code: refused.code(),
            message: if refused.message.is_empty() {
                "the broker refused the request".to_owned()
            } else {
                refused.message
            },
            after_ms: refused.after_ms,
        }
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A certificate or key file cannot be used. Code `certificate-file`.
    #[error("cannot use {}: {reason}", shown(.path))]
    CertificateFile {
        /// The file; empty where bytes were given.
        path: PathBuf,
        /// What is wrong, and what mends it.
        reason: String,
    },
    /// The address or server name makes no sense, or does not resolve. Code `address`.
    #[error("cannot connect to {address}: {reason}; write HOST:PORT, e.g. 127.0.0.1:7411")]
    Address {
        /// As given.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// The two ends do not trust each other. Code `tls`.
    #[error("the TLS handshake with {address} failed: {reason}")]
    Tls {
        /// Whom.
        address: String,
        /// What is wrong, with which file, and what mends it.
        reason: String,
    },
    /// Nobody answers. Code `unreachable`.
    #[error(
        "no broker answers at {address}: {reason}; is `waterwheel serve` running, and is UDP let through?"
    )]
    Unreachable {
        /// Whom.
        address: String,
        /// What the transport says.
        reason: String,
    },
    /// The broker does not want this connection. Its code.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The other end does not speak this protocol. Code `protocol`.
    #[error("{address} does not speak waterwheel/1: {reason}")]
    Protocol {
        /// Whom.
        address: String,
        /// What it did instead.
        reason: String,
    },
    /// The broker in this process has stopped. Code `stopped`.
    #[error("the broker in this process has stopped; start another and take its client")]
    Stopped,
    /// There is no tokio runtime here, or it cannot open a socket. Code `local`.
    #[error("cannot open a UDP socket: {0}")]
    Local(String),
}

fn shown(path: &Path) -> std::borrow::Cow<'_, str> {
    match path.as_os_str().is_empty() {
        true => "what was given for TLS".into(),
        false => path.to_string_lossy(),
    }
}

impl ConnectError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::CertificateFile { .. } => "certificate-file",
            Self::Address { .. } => "address",
            Self::Tls { .. } => "tls",
            Self::Unreachable { .. } => "unreachable",
            Self::Refused(refusal) => refusal.code.name(),
            Self::Protocol { .. } => "protocol",
            Self::Stopped => "stopped",
            Self::Local(_) => "local",
        }
    }

    /// Whether the same attempt may succeed later.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused(refusal) => refusal.code.is_retriable(),
            Self::CertificateFile { .. }
            | Self::Address { .. }
            | Self::Tls { .. }
            | Self::Protocol { .. }
            | Self::Stopped
            | Self::Local(_) => false,
        }
    }
}

/// Why a request about topics, offsets or the broker was not answered.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The broker said no. Its code.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The connection was lost, and no other came in time. Code `unreachable`.
    #[error("the connection to the broker was lost before it answered: {0}")]
    Unreachable(String),
    /// The broker did not answer in time. Code `timed-out`.
    #[error("the broker did not answer within {0} ms")]
    TimedOut(u128),
    /// The client was closed, or the broker in this process has stopped. Code `disconnected`.
    #[error("{DISCONNECTED}")]
    Disconnected,
    /// The answer makes no sense. Code `protocol`.
    #[error("the broker's answer cannot be read: {0}")]
    Protocol(String),
}

impl AdminError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code.name(),
            Self::Unreachable(_) => "unreachable",
            Self::TimedOut(_) => "timed-out",
            Self::Disconnected => "disconnected",
            Self::Protocol(_) => "protocol",
        }
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.code.is_retriable(),
            Self::Unreachable(_) | Self::TimedOut(_) => true,
            Self::Disconnected | Self::Protocol(_) => false,
        }
    }
}

/// Why a record was not, or not certainly, sent.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The broker said no; the record is not stored. Its code.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The record is larger than a batch may be. Code `record-too-large`.
    #[error(
        "the record does not fit into a batch of {limit} bytes; send a smaller one, or raise the broker's batch_bytes_max"
    )]
    TooLarge {
        /// The most bytes of a batch.
        limit: usize,
    },
    /// The topic has no such partition. Code `partition-out-of-range`.
    #[error("the topic has partitions 0 to {last}; there is no partition {partition}")]
    Partition {
        /// The one asked for.
        partition: u32,
        /// The last there is.
        last: u32,
    },
    /// The topic has no such priority level. Code `priority-out-of-range`.
    #[error("the topic has priorities 0 to {last}; there is no priority {priority}")]
    Priority {
        /// The one asked for.
        priority: u8,
        /// The last there is.
        last: u8,
    },
    /// No acknowledgement came for as long as the producer waits; whether the record is stored is open.
    /// Code `timed-out`.
    #[error("the broker acknowledged nothing for {0} ms; whether the record is stored is open")]
    TimedOut(u128),
    /// The broker put the record off for as long as the producer waits; whether an earlier try was stored is
    /// open. The refusal's code.
    #[error("the broker put the record off for {ms} ms; whether it is stored is open: {refusal}")]
    PutOff {
        /// What it said last.
        refusal: Refusal,
        /// For how long, in milliseconds.
        ms: u128,
    },
    /// An earlier batch of the partition failed, and this one after it; whether the record is stored is
    /// open. Code `aborted`.
    #[error(
        "an earlier record of the partition was not stored ({0}); whether this one is stored is open"
    )]
    Aborted(Arc<SendError>),
    /// The client was closed, or the broker in this process has stopped; whether the record is stored is
    /// open. Code `disconnected`.
    #[error("{DISCONNECTED}; whether the record is stored is open")]
    Disconnected,
    /// The producer is closed. Code `closed`.
    #[error("the producer is closed")]
    Closed,
    /// What became of the record was asked for, and its producer sends at level `none`: nobody is ever
    /// told. Code `unacknowledged`.
    #[error(
        "at level `none` the broker does not say what becomes of a record; produce it at `memory` or `durable`"
    )]
    Unacknowledged,
}

impl SendError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) | Self::PutOff { refusal, .. } => refusal.code.name(),
            Self::TooLarge { .. } => "record-too-large",
            Self::Partition { .. } => Code::PartitionOutOfRange.name(),
            Self::Priority { .. } => "priority-out-of-range",
            Self::TimedOut(_) => "timed-out",
            Self::Aborted(_) => "aborted",
            Self::Disconnected => "disconnected",
            Self::Closed => "closed",
            Self::Unacknowledged => "unacknowledged",
        }
    }

    /// Whether sending the record again may succeed. Where the outcome is open it may then be stored
    /// twice.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.code.is_retriable(),
            Self::TimedOut(_) | Self::PutOff { .. } | Self::Aborted(_) => true,
            Self::TooLarge { .. }
            | Self::Partition { .. }
            | Self::Priority { .. }
            | Self::Disconnected
            | Self::Closed
            | Self::Unacknowledged => false,
        }
    }
}

/// Why reading stopped.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumeError {
    /// The broker said no. Its code.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The topic has no such partition. Code `partition-out-of-range`.
    #[error("the topic has partitions 0 to {last}; there is no partition {partition}")]
    Partition {
        /// The one asked for.
        partition: u32,
        /// The last there is.
        last: u32,
    },
    /// A batch came that is not what its producer sent. Code `damaged-batch`.
    #[error("the batch at offset {offset} of partition {partition} is damaged: {reason}")]
    Damaged {
        /// The partition.
        partition: u32,
        /// The offset of the batch's first record.
        offset: u64,
        /// What does not hold.
        reason: BatchError,
    },
    /// A record's body cannot be read. Code `unreadable-record`.
    #[error("the record at offset {offset} of partition {partition} cannot be read: {reason}")]
    Unreadable {
        /// The partition.
        partition: u32,
        /// The record.
        offset: u64,
        /// What is wrong with it.
        reason: crate::domain::record::BodyError,
    },
    /// No connection for as long as the consumer waits. Code `unreachable`.
    #[error("no broker could be reached for {0} ms")]
    Unreachable(u128),
    /// The client was closed, or the broker in this process has stopped. Code `disconnected`.
    #[error("{DISCONNECTED}")]
    Disconnected,
    /// The answer makes no sense. Code `protocol`.
    #[error("the broker's answer cannot be read: {0}")]
    Protocol(String),
}

impl ConsumeError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code.name(),
            Self::Partition { .. } => Code::PartitionOutOfRange.name(),
            Self::Damaged { .. } => "damaged-batch",
            Self::Unreadable { .. } => "unreadable-record",
            Self::Unreachable(_) => "unreachable",
            Self::Disconnected => "disconnected",
            Self::Protocol(_) => "protocol",
        }
    }

    /// Whether reading on from the same place may succeed later.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.code.is_retriable(),
            Self::Unreachable(_) => true,
            Self::Partition { .. }
            | Self::Damaged { .. }
            | Self::Unreadable { .. }
            | Self::Disconnected
            | Self::Protocol(_) => false,
        }
    }
}

/// Why a value could not become a record's. Code `encode`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the value cannot be encoded: {reason}")]
#[non_exhaustive]
pub struct EncodeError {
    /// What its type said.
    pub reason: String,
}

impl EncodeError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        "encode"
    }

    /// Never: the same value fails again.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        false
    }
}

/// Why a record's value is not of the type asked for. Code `decode`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the value at offset {offset} of partition {partition} cannot be decoded: {reason}")]
#[non_exhaustive]
pub struct DecodeError {
    /// The partition.
    pub partition: u32,
    /// The record.
    pub offset: u64,
    /// What does not fit.
    pub reason: String,
}

impl DecodeError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        "decode"
    }

    /// Never: the same value fails again.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        false
    }
}

//! Raw quinn between two processes: what the transport alone can do on this machine.
//!
//! The same two ends with the product's transport and TLS settings and with quinn's defaults. The
//! server's directory holds the certificate a client trusts.
//!
//! **A bidirectional stream** begins with its task (17 bytes): kind `e` (echo) or `p` (pump), then two
//! u64 little-endian: for an echo the bytes of a request and of its answer, for a pump the bytes to send
//! and 0. A unidirectional stream is read to its end and thrown away.

pub(crate) mod server;
pub(crate) mod settings;
pub(crate) mod source;

use std::net::SocketAddr;
use std::path::PathBuf;

pub(crate) use settings::Settings;

/// A raw server somewhere.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// What both ends use.
    pub(crate) settings: Settings,
    /// Where the certificate is.
    pub(crate) dir: PathBuf,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

/// The bytes a bidirectional stream begins with.
const TASK_BYTES: usize = 17;

/// What a bidirectional stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    /// Answers each `request` bytes with `answer` bytes.
    Echo { request: u64, answer: u64 },
    /// Sends so many bytes.
    Pump { bytes: u64 },
}

impl Task {
    fn encode(self) -> [u8; TASK_BYTES] {
        let (kind, first, second) = match self {
            Self::Echo { request, answer } => (b'e', request, answer),
            Self::Pump { bytes } => (b'p', bytes, 0),
        };
        let mut out = [kind; TASK_BYTES];
        for (place, byte) in out
            .iter_mut()
            .skip(1)
            .zip(first.to_le_bytes().into_iter().chain(second.to_le_bytes()))
        {
            *place = byte;
        }
        out
    }

    fn decode(bytes: &[u8; TASK_BYTES]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let (first, rest) = rest.split_first_chunk::<8>()?;
        let second = u64::from_le_bytes(*rest.first_chunk()?);
        let first = u64::from_le_bytes(*first);
        match kind {
            b'e' => Some(Self::Echo {
                request: first,
                answer: second,
            }),
            b'p' => Some(Self::Pump { bytes: first }),
            _ => None,
        }
    }
}

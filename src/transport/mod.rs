//! What a conversation travels on: a connection and its streams of bytes, over QUIC or within the
//! process.
//!
//! Broker and client speak the same frames over either, so whatever can be said over QUIC can be said in
//! process. A connection within the process is made by [`pair`]: its streams are bounded pipes of pieces
//! that nobody copies, without encryption and without a task of their own.
//!
//! In both:
//! - T1 A stream keeps the order of its bytes and bounds what waits unread; its writer waits.
//! - T2 Dropping a sending half finishes its stream, dropping a receiving half stops its sender.
//! - T3 When a connection is closed, or the last handle of a side is dropped, every wait on it ends.
//!
//! Nothing survives the end of a connection. Making QUIC connections is the business of
//! `client/connection.rs` and `net/endpoint.rs`.

mod memory;
mod pipe;
pub mod socket;

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;

use self::memory::{Held, Side, sides};

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Ended {
    /// The other side closed it.
    #[error("closed by the other side: {reason} (code {code})")]
    ByPeer {
        /// With this code.
        code: u64,
        /// And these words.
        reason: String,
    },
    /// This side closed it.
    #[error("closed here")]
    Here,
    /// The other side does not know it any more: it was started anew.
    #[error("the other side does not know the connection any more")]
    Forgotten,
    /// The two sides do not trust each other.
    #[error("{}", .0.reason)]
    Untrusted(Distrust),
    /// It failed on its way.
    #[error("{0}")]
    Lost(String),
}

/// A TLS alert that ended a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distrust {
    /// Which (RFC 8446, 6).
    pub alert: u8,
    /// Whether the other side raised it.
    pub by_peer: bool,
    /// In words.
    pub reason: String,
}

impl Distrust {
    /// The alert in an error of QUIC, where it carries one: transport errors 0x100 to 0x1ff (RFC 9001,
    /// 4.8).
    #[must_use]
    pub fn of(error: &quinn::ConnectionError) -> Option<Self> {
        let (code, by_peer) = match error {
            quinn::ConnectionError::TransportError(error) => (error.code, false),
            quinn::ConnectionError::ConnectionClosed(close) => (close.error_code, true),
            quinn::ConnectionError::VersionMismatch
            | quinn::ConnectionError::ApplicationClosed(_)
            | quinn::ConnectionError::Reset
            | quinn::ConnectionError::TimedOut
            | quinn::ConnectionError::LocallyClosed
            | quinn::ConnectionError::CidsExhausted => return None,
        };
        let alert = u64::from(code).checked_sub(0x100)?;
        Some(Self {
            alert: u8::try_from(alert).ok()?,
            by_peer,
            reason: error.to_string(),
        })
    }
}

impl From<quinn::ConnectionError> for Ended {
    fn from(error: quinn::ConnectionError) -> Self {
        if let Some(distrust) = Distrust::of(&error) {
            return Self::Untrusted(distrust);
        }
        match error {
            quinn::ConnectionError::ApplicationClosed(close) => Self::ByPeer {
                code: close.error_code.into_inner(),
                reason: String::from_utf8_lossy(&close.reason).into_owned(),
            },
            quinn::ConnectionError::LocallyClosed => Self::Here,
            quinn::ConnectionError::Reset => Self::Forgotten,
            quinn::ConnectionError::VersionMismatch
            | quinn::ConnectionError::TransportError(_)
            | quinn::ConnectionError::ConnectionClosed(_)
            | quinn::ConnectionError::TimedOut
            | quinn::ConnectionError::CidsExhausted => Self::Lost(error.to_string()),
        }
    }
}

/// Why nothing can be written any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamEnded {
    /// The reader wants nothing more of this stream.
    #[error("the other side stopped the stream")]
    Stopped,
    /// With its connection.
    #[error(transparent)]
    Connection(#[from] Ended),
}

impl From<quinn::WriteError> for StreamEnded {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::ConnectionLost(error) => Self::Connection(error.into()),
            quinn::WriteError::Stopped(_)
            | quinn::WriteError::ClosedStream
            | quinn::WriteError::ZeroRttRejected => Self::Stopped,
        }
    }
}

/// One side of a connection. Cheap to clone; the last clone closes it.
#[derive(Debug, Clone)]
pub struct Connection(Carrier);

#[derive(Debug, Clone)]
enum Carrier {
    Quic(quinn::Connection),
    Memory(Arc<Side>),
}

impl From<quinn::Connection> for Connection {
    fn from(connection: quinn::Connection) -> Self {
        Self(Carrier::Quic(connection))
    }
}

/// Closes a connection within the process without keeping it.
#[derive(Debug, Clone)]
pub struct Closer(Weak<Side>);

impl Closer {
    /// Closes it as [`Connection::close`] does; void once it has ended.
    pub fn close(&self, code: u32, reason: &str) {
        if let Some(side) = self.0.upgrade() {
            side.close(code, reason);
        }
    }

    /// Whether there is nothing to close any more.
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// Both sides of a new connection within the process.
#[must_use]
pub fn pair() -> [Connection; 2] {
    sides().map(|side| Connection(Carrier::Memory(Arc::new(side))))
}

impl Connection {
    /// A new stream in both directions; waits while as many are open as there may be.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn open_bi(&self) -> Result<(SendStream, ReceiveStream), Ended> {
        match &self.0 {
            Carrier::Quic(connection) => Ok(quic_pair(connection.open_bi().await?)),
            Carrier::Memory(side) => side.open_bi().await.map(memory_pair),
        }
    }

    /// The next stream in both directions that the other side opened. Cancelling loses nothing.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn accept_bi(&self) -> Result<(SendStream, ReceiveStream), Ended> {
        match &self.0 {
            Carrier::Quic(connection) => Ok(quic_pair(connection.accept_bi().await?)),
            Carrier::Memory(side) => side.accept_bi().await.map(memory_pair),
        }
    }

    /// A new stream towards the other side; waits while as many are open as there may be.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn open_uni(&self) -> Result<SendStream, Ended> {
        Ok(SendStream(match &self.0 {
            Carrier::Quic(connection) => Sending::Quic(connection.open_uni().await?),
            Carrier::Memory(side) => Sending::Memory(side.open_uni().await?),
        }))
    }

    /// The next stream towards this side. Cancelling loses nothing.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn accept_uni(&self) -> Result<ReceiveStream, Ended> {
        Ok(ReceiveStream(match &self.0 {
            Carrier::Quic(connection) => Receiving::Quic(connection.accept_uni().await?),
            Carrier::Memory(side) => Receiving::Memory(side.accept_uni().await?),
        }))
    }

    /// Closes it at once, unless it has ended; what is on its way may be lost.
    pub fn close(&self, code: u32, reason: &str) {
        match &self.0 {
            Carrier::Quic(connection) => {
                connection.close(quinn::VarInt::from_u32(code), reason.as_bytes());
            }
            Carrier::Memory(side) => side.close(code, reason),
        }
    }

    /// What closes this side from elsewhere; none over QUIC, where the endpoint does.
    #[must_use]
    pub fn closer(&self) -> Option<Closer> {
        match &self.0 {
            Carrier::Quic(_) => None,
            Carrier::Memory(side) => Some(Closer(Arc::downgrade(side))),
        }
    }

    /// Waits for its end.
    pub async fn closed(&self) -> Ended {
        match &self.0 {
            Carrier::Quic(connection) => connection.closed().await.into(),
            Carrier::Memory(side) => side.closed().await,
        }
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        match &self.0 {
            Carrier::Quic(connection) => connection.close_reason().map(Into::into),
            Carrier::Memory(side) => side.ended(),
        }
    }

    /// The address of the other side; none within the process.
    #[must_use]
    pub fn remote(&self) -> Option<SocketAddr> {
        match &self.0 {
            Carrier::Quic(connection) => Some(connection.remote_address()),
            Carrier::Memory(_) => None,
        }
    }

    /// Changes what it may have under way towards this side, in bytes; within the process nothing is.
    pub fn set_receive_window(&self, bytes: u32) {
        match &self.0 {
            Carrier::Quic(connection) => {
                connection.set_receive_window(quinn::VarInt::from_u32(bytes));
            }
            Carrier::Memory(_) => {}
        }
    }

    /// How long there and back takes, as far as is known.
    #[must_use]
    pub fn round_trip(&self) -> Duration {
        match &self.0 {
            Carrier::Quic(connection) => connection.rtt(),
            Carrier::Memory(_) => Duration::ZERO,
        }
    }

    /// A number that changes while the other side is there; none where its end is always told, so that
    /// silence means nothing.
    #[must_use]
    pub fn heard(&self) -> Option<u64> {
        match &self.0 {
            Carrier::Quic(connection) => Some(connection.stats().udp_rx.datagrams),
            Carrier::Memory(_) => None,
        }
    }
}

fn quic_pair(pair: (quinn::SendStream, quinn::RecvStream)) -> (SendStream, ReceiveStream) {
    let (send, receive) = pair;
    (
        SendStream(Sending::Quic(send)),
        ReceiveStream(Receiving::Quic(receive)),
    )
}

fn memory_pair(pair: (Held<pipe::Writer>, Held<pipe::Reader>)) -> (SendStream, ReceiveStream) {
    let (send, receive) = pair;
    (
        SendStream(Sending::Memory(send)),
        ReceiveStream(Receiving::Memory(receive)),
    )
}

/// The sending half of a stream; dropped, it finishes.
#[derive(Debug)]
pub struct SendStream(Sending);

#[derive(Debug)]
enum Sending {
    Quic(quinn::SendStream),
    Memory(Held<pipe::Writer>),
}

impl SendStream {
    /// Writes pieces without copying them, each as soon as there is room. Cancelled, it has written
    /// some: the stream is then beyond use.
    ///
    /// # Errors
    /// The other side wants no more, or is gone.
    pub async fn write(&mut self, pieces: &mut [Bytes]) -> Result<(), StreamEnded> {
        match &mut self.0 {
            Sending::Quic(stream) => Ok(stream.write_all_chunks(pieces).await?),
            Sending::Memory(stream) => stream.end.write(pieces).await,
        }
    }

    /// Says that nothing follows.
    pub fn finish(&mut self) {
        match &mut self.0 {
            // One that was stopped has nothing to finish.
            Sending::Quic(stream) => drop(stream.finish()),
            Sending::Memory(stream) => stream.end.finish(),
        }
    }

    /// Waits until the other side has all of a finished stream, wants no more of it, or is gone.
    pub async fn stopped(&mut self) {
        match &mut self.0 {
            Sending::Quic(stream) => drop(stream.stopped().await),
            Sending::Memory(stream) => stream.end.stopped().await,
        }
    }
}

/// The receiving half of a stream; dropped, it stops its sender.
#[derive(Debug)]
pub struct ReceiveStream(Receiving);

#[derive(Debug)]
enum Receiving {
    Quic(quinn::RecvStream),
    Memory(Held<pipe::Reader>),
}

impl ReceiveStream {
    /// Fills `pieces` from the front with what has come, at least one, and says how many; none where the
    /// stream was finished. Cancelling loses nothing.
    ///
    /// # Errors
    /// The connection has ended, or the sender gave the stream up.
    pub async fn read(&mut self, pieces: &mut [Bytes]) -> Result<Option<usize>, Ended> {
        match &mut self.0 {
            Receiving::Quic(stream) => match stream.read_chunks(pieces).await {
                Ok(read) => Ok(read),
                Err(quinn::ReadError::ConnectionLost(error)) => Err(error.into()),
                Err(error) => Err(Ended::Lost(error.to_string())),
            },
            Receiving::Memory(stream) => stream.end.read(pieces).await,
        }
    }

    /// Wants nothing more.
    pub fn stop(&mut self) {
        match &mut self.0 {
            // One that has ended needs no stopping.
            Receiving::Quic(stream) => drop(stream.stop(quinn::VarInt::from_u32(0))),
            Receiving::Memory(stream) => stream.end.stop(),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::task::unconstrained;

    use super::*;

    async fn read_all(mut stream: ReceiveStream) -> Result<Vec<u8>, Ended> {
        let mut all = Vec::new();
        let mut pieces = [const { Bytes::new() }; 4];
        while let Some(count) = stream.read(&mut pieces).await? {
            for piece in pieces.iter().take(count) {
                all.extend_from_slice(piece);
            }
        }
        Ok(all)
    }

    #[tokio::test]
    async fn both_sides_open_and_accept_streams() {
        let [here, there] = pair();
        let (mut send, receive) = here.open_bi().await.unwrap();
        send.write(&mut [Bytes::from("ask")]).await.unwrap();
        send.finish();
        let (mut answer, asked) = there.accept_bi().await.unwrap();
        assert_eq!(read_all(asked).await.unwrap(), b"ask");
        answer.write(&mut [Bytes::from("answer")]).await.unwrap();
        drop(answer);
        assert_eq!(read_all(receive).await.unwrap(), b"answer", "T2");
        let mut told = there.open_uni().await.unwrap();
        told.write(&mut [Bytes::from("news")]).await.unwrap();
        drop(told);
        let news = here.accept_uni().await.unwrap();
        assert_eq!(read_all(news).await.unwrap(), b"news");
    }

    #[tokio::test]
    async fn every_wait_ends_with_the_connection_and_each_side_hears_who_ended_it() {
        let [here, there] = pair();
        let (_send, receive) = here.open_bi().await.unwrap();
        let (accepting, reading, ending) = (here.clone(), receive, here.clone());
        let accepting = tokio::spawn(async move { accepting.accept_uni().await.map(drop) });
        let reading = tokio::spawn(read_all(reading));
        let ending = tokio::spawn(async move { ending.closed().await });
        tokio::task::yield_now().await;
        let _open = there.accept_bi().await.unwrap();
        there.close(7, "enough");
        let ended = Ended::ByPeer {
            code: 7,
            reason: "enough".to_owned(),
        };
        assert_eq!(accepting.await.unwrap(), Err(ended.clone()), "T3");
        assert_eq!(reading.await.unwrap(), Err(ended.clone()));
        assert_eq!(ending.await.unwrap(), ended);
        assert_eq!(there.ended(), Some(Ended::Here));
        assert_eq!(here.open_uni().await.map(drop), Err(ended));
    }

    #[tokio::test]
    async fn the_last_handle_closes() {
        let [here, there] = pair();
        let other = there.clone();
        drop(there);
        assert!(here.ended().is_none());
        drop(other);
        assert!(matches!(here.closed().await, Ended::ByPeer { code: 0, .. }));
    }

    #[tokio::test]
    async fn streams_are_counted_and_a_place_that_is_left_is_free() {
        let [here, there] = pair();
        let mut open = Vec::new();
        // A task that does a thousand things without waiting would be made to yield.
        while let Some(opened) = unconstrained(here.open_bi()).now_or_never() {
            open.push((opened.unwrap(), there.accept_bi().await.unwrap()));
        }
        assert_eq!(open.len(), 1024, "M4");
        let waiting = tokio::spawn({
            let here = here.clone();
            async move { here.open_bi().await.map(drop) }
        });
        tokio::task::yield_now().await;
        open.pop();
        waiting.await.unwrap().unwrap();
    }
}

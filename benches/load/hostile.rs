//! Clients no broker wants: they speak as much of the protocol as their mischief needs.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::try_join_all;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use waterwheel::domain::id::{Lane, PartitionIndex, TopicId};
use waterwheel::wire::frame::{FrameDecoder, FrameLimits, Header, encode_bare};
use waterwheel::wire::hello::{Hello, HelloOk};
use waterwheel::wire::reader::{OpenReader, ReaderMode};
use waterwheel::wire::topic::At;

use super::Outcome;
use super::broker::Home;
use super::clients::PATIENCE;
use super::crew::bounded;
use super::payload::Noise;
use super::quic::Settings;

/// What a frame of 4 GiB begins with: the length that follows, a produce's kind, a plausible header.
const GIANT_PREFIX: [u8; 16] = [0xff, 0xff, 0xff, 0xff, 11, 0, 16, 0, 1, 0, 0, 0, 0, 0, 0, 0];
/// What is poured behind it.
const GIANT_BYTES: usize = 1 << 20;

/// Until one that was refused tries again.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);

/// A kind of mischief.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mischief {
    /// So many readers, a connection each, that ask for all there is and never read it.
    StalledReaders {
        count: usize,
        topic: TopicId,
        partitions: u32,
    },
    /// So many connections that never say a word.
    Silence { count: usize },
    /// Frames that declare 4 GiB, again and again.
    Giants,
}

/// Makes it for `span`.
pub(crate) fn make(home: &Home, mischief: Mischief, span: Duration) -> Outcome<()> {
    bounded(span + PATIENCE, async {
        let endpoint = Settings::Product.dial(&home.data)?;
        let until = Instant::now() + span;
        match mischief {
            Mischief::StalledReaders {
                count,
                topic,
                partitions,
            } => {
                let stalled = (0..count).map(|at| stall(&endpoint, home, topic, at, partitions));
                let held = try_join_all(stalled).await?;
                tokio::time::sleep_until(until.into()).await;
                drop(held);
            }
            Mischief::Silence { count } => {
                let held = try_join_all((0..count).map(|_| dial(&endpoint, home))).await?;
                tokio::time::sleep_until(until.into()).await;
                drop(held);
            }
            Mischief::Giants => {
                while Instant::now() < until {
                    // It is let in seldom, and refused where it is too early.
                    let Ok(connection) = dial(&endpoint, home).await else {
                        tokio::time::sleep(REFUSED_PAUSE).await;
                        continue;
                    };
                    // Ends as soon as the broker has seen enough.
                    let _ =
                        tokio::time::timeout_at(until.into(), declare_giants(&connection)).await;
                }
            }
        }
        endpoint.close(0u32.into(), b"");
        Ok(())
    })
}

async fn dial(endpoint: &Endpoint, home: &Home) -> Outcome<Connection> {
    Ok(endpoint.connect(home.address, "localhost")?.await?)
}

/// Says hello, asks for everything of a partition, and reads no more.
async fn stall(
    endpoint: &Endpoint,
    home: &Home,
    topic: TopicId,
    at: usize,
    partitions: u32,
) -> Outcome<(Connection, SendStream, RecvStream)> {
    let connection = dial(endpoint, home).await?;
    let (mut send, mut receive) = connection.open_bi().await?;
    let hello = Hello {
        client: "load".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: Vec::new(),
        batch_versions: vec![1],
    };
    send.write_chunk(encode_bare(&hello, 1)?).await?;
    let told: HelloOk = answer(&mut receive).await?;
    let open = OpenReader {
        reader: 1,
        topic,
        partition: PartitionIndex(u32::try_from(at)? % partitions.max(1)),
        lane: Lane::ZERO,
        leader_epoch: 0,
        from: At::Earliest,
        mode: ReaderMode::Push,
        credit_bytes: told.limits.credit_bytes_max,
        records_max: 0,
        wait_ms: 0,
    };
    send.write_chunk(encode_bare(&open, 2)?).await?;
    Ok((connection, send, receive))
}

async fn answer<H: Header>(receive: &mut RecvStream) -> Outcome<H> {
    let mut decoder = FrameDecoder::new(FrameLimits::for_batches(1 << 20));
    loop {
        let chunk = receive
            .read_chunk(64 << 10, true)
            .await?
            .ok_or("the broker hung up")?;
        let mut bytes = chunk.bytes;
        if let Some(frame) = decoder.feed(&mut bytes)? {
            return Ok(frame.decode()?);
        }
    }
}

async fn declare_giants(connection: &Connection) -> Outcome<()> {
    let noise = Noise::new(8).bytes(GIANT_BYTES);
    loop {
        let (mut send, _receive) = connection.open_bi().await?;
        if send
            .write_chunk(Bytes::from_static(&GIANT_PREFIX))
            .await
            .is_err()
        {
            continue;
        }
        while send.write_chunk(noise.clone()).await.is_ok() {}
    }
}

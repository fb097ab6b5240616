//! The raw client: pours, draws, asks.

use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, Endpoint};

use super::server::discard;
use super::{Target, Task};
use crate::load::Outcome;
use crate::load::crew::{bounded, muster};
use crate::load::latency::Latencies;
use crate::load::payload::Noise;
use crate::load::process::{Process, READY_WITHIN, Usage};
use crate::load::role;

/// What a source hands over at a time: a batch's size.
const POUR_BYTES: usize = 100_000;
/// A flood lasts until its process is ended, or this long.
const FOR_EVER: Duration = Duration::from_secs(3600);
/// A measurement that takes this much longer than asked for is given up (H5).
const OVERTIME: Duration = Duration::from_secs(60);

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From this process to the server.
    Pour,
    /// From the server to this process.
    Draw,
}

/// What a transfer came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transfer {
    /// Bytes moved.
    pub(crate) bytes: u64,
    /// From the first byte to the last confirmation.
    pub(crate) took: Duration,
    /// CPU seconds of the server process.
    pub(crate) server_cpu_s: f64,
    /// CPU seconds of this process.
    pub(crate) own_cpu_s: f64,
}

impl Transfer {
    /// Bytes per nanosecond.
    pub(crate) fn gb_per_s(&self) -> f64 {
        self.bytes as f64 / 1e9 / self.took.as_secs_f64().max(1e-9)
    }

    /// CPU seconds per GB of the server process.
    pub(crate) fn server_cpu_s_per_gb(&self) -> f64 {
        self.server_cpu_s * 1e9 / (self.bytes as f64).max(1.0)
    }

    /// CPU seconds per GB of this process.
    pub(crate) fn own_cpu_s_per_gb(&self) -> f64 {
        self.own_cpu_s * 1e9 / (self.bytes as f64).max(1.0)
    }
}

/// A raw server in a process of its own, with the way to it.
#[derive(Debug)]
pub(crate) struct RawServer {
    process: Process,
    /// How to reach it.
    pub(crate) target: Target,
}

impl RawServer {
    /// Starts one with these settings; its certificate goes below `dir`.
    pub(crate) fn start(settings: super::Settings, dir: &std::path::Path) -> Outcome<Self> {
        let dir = dir.join(format!("raw-{}", settings.name()));
        std::fs::create_dir_all(&dir)?;
        let mut command = role::command(role::QUIC_SERVER)?;
        command.arg(settings.name()).arg(&dir);
        let process = Process::start(command, READY_WITHIN)?;
        let address = process.address;
        Ok(Self {
            process,
            target: Target {
                settings,
                dir,
                address,
            },
        })
    }

    /// Moves bytes for about `span` over so many connections.
    pub(crate) fn transfer(
        &self,
        way: Way,
        connections: usize,
        span: Duration,
    ) -> Outcome<Transfer> {
        let (server, own) = (self.process.usage()?, Usage::own()?);
        let begun = Instant::now();
        let moved = muster(connections, span + OVERTIME, |_| {
            carry(&self.target, way, span)
        })?;
        let took = begun.elapsed();
        Ok(Transfer {
            bytes: moved.into_iter().sum(),
            took,
            server_cpu_s: self.process.usage()?.since(server).cpu_s,
            own_cpu_s: Usage::own()?.since(own).cpu_s,
        })
    }

    /// A process that pours over so many connections until its handle goes.
    pub(crate) fn flood(&self, connections: usize) -> Outcome<Process> {
        let mut command = role::command(role::QUIC_FLOOD)?;
        command
            .arg(self.target.settings.name())
            .arg(&self.target.dir);
        command
            .arg(self.target.address.to_string())
            .arg(connections.to_string());
        Process::start(command, READY_WITHIN)
    }

    /// Round trips one after the other for `span`.
    pub(crate) fn round_trips(
        &self,
        request: usize,
        answer: usize,
        span: Duration,
    ) -> Outcome<Latencies> {
        let target = self.target.clone();
        bounded(span + OVERTIME, async move {
            let (_endpoint, connection) = connect(&target).await?;
            ask(&connection, request, answer, span).await
        })
    }
}

/// A connection; its endpoint has to live as long.
pub(crate) async fn connect(target: &Target) -> Outcome<(Endpoint, Connection)> {
    let endpoint = target.settings.dial(&target.dir)?;
    let connection = endpoint.connect(target.address, "localhost")?.await?;
    Ok((endpoint, connection))
}

async fn carry(target: &Target, way: Way, span: Duration) -> Outcome<u64> {
    let noise = Noise::new(3).bytes(POUR_BYTES);
    let deadline = Instant::now() + span;
    let (_endpoint, connection) = connect(target).await?;
    match way {
        Way::Pour => pour(&connection, &noise, deadline).await,
        Way::Draw => draw(&connection, deadline).await,
    }
}

/// Sends on one stream until the deadline, and waits until all of it is acknowledged.
async fn pour(connection: &Connection, noise: &Bytes, deadline: Instant) -> Outcome<u64> {
    let mut stream = connection.open_uni().await?;
    let mut sent = 0;
    while Instant::now() < deadline {
        stream.write_chunk(noise.clone()).await?;
        sent += noise.len() as u64;
    }
    stream.finish()?;
    stream.stopped().await?;
    Ok(sent)
}

/// Receives pieces of 64 MB until the deadline.
async fn draw(connection: &Connection, deadline: Instant) -> Outcome<u64> {
    const PIECE_BYTES: u64 = 64_000_000;
    let mut received = 0;
    while Instant::now() < deadline {
        let (mut send, stream) = connection.open_bi().await?;
        send.write_all(&Task::Pump { bytes: PIECE_BYTES }.encode())
            .await?;
        let piece = discard(stream).await;
        if piece != PIECE_BYTES {
            return Err(format!("a pump of {PIECE_BYTES} bytes gave {piece}").into());
        }
        received += piece;
    }
    Ok(received)
}

/// Asks and waits for the answer, again and again.
pub(crate) async fn ask(
    connection: &Connection,
    request: usize,
    answer: usize,
    span: Duration,
) -> Outcome<Latencies> {
    let mut latencies = Latencies::new()?;
    let (mut send, mut receive) = connection.open_bi().await?;
    let task = Task::Echo {
        request: request as u64,
        answer: answer as u64,
    };
    send.write_all(&task.encode()).await?;
    let question = Noise::new(4).bytes(request);
    let mut heard = vec![0; answer];
    let deadline = Instant::now() + span;
    // What is measured is the path once it is warm.
    let warm = Instant::now() + span / 10;
    while Instant::now() < deadline {
        let asked = Instant::now();
        send.write_chunk(question.clone()).await?;
        receive.read_exact(&mut heard).await?;
        if asked >= warm {
            latencies.record(asked.elapsed());
        }
    }
    Ok(latencies)
}

/// Pours over so many connections until the process is ended.
pub(crate) fn flood(target: &Target, connections: usize) -> Outcome<()> {
    role::announce(target.address)?;
    muster(connections, FOR_EVER, |_| {
        carry(target, Way::Pour, FOR_EVER)
    })?;
    Ok(())
}

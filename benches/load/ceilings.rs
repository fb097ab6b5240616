//! What the machine can do without a broker: the measures beside which the broker's are put.

use super::Bench;
use super::Outcome;
use super::disk::Disk;
use super::quic::Settings;
use super::quic::source::{RawServer, Transfer, Way};
use super::report::Samples;

/// What a ceiling below the broker's own figure says (H3).
pub(crate) const SLOWER: &str = "the raw transport was slower than the broker over it";
/// How many connections a raw transfer is tried with.
const CONNECTIONS: [usize; 3] = [1, 4, 8];
/// A produce of one 1 kB record, and what answers it.
pub(crate) const REQUEST_BYTES: usize = 1_100;
/// The bytes of a receipt.
pub(crate) const ANSWER_BYTES: usize = 64;
/// Block sizes of the raw disk.
const BLOCKS: [(&str, usize); 3] = [("4 kB", 4_096), ("64 kB", 65_536), ("1 MB", 1 << 20)];

/// The best raw transfer of all settings and numbers of connections.
#[derive(Debug)]
pub(crate) struct Transport {
    servers: Vec<RawServer>,
}

impl Transport {
    /// Starts the raw servers, one per settings.
    pub(crate) fn start(bench: &Bench) -> Outcome<Self> {
        let servers = Settings::ALL
            .into_iter()
            .map(|settings| RawServer::start(settings, &bench.dir));
        Ok(Self {
            servers: servers.collect::<Outcome<_>>()?,
        })
    }

    /// Measures every way of transferring, notes each, and gives the fastest.
    pub(crate) fn best(&self, bench: &Bench, way: Way, samples: &mut Samples) -> Outcome<Transfer> {
        let mut best: Option<Transfer> = None;
        for server in &self.servers {
            for connections in CONNECTIONS {
                let transfer = server.transfer(way, connections, bench.span())?;
                let name = server.target.settings.name();
                samples.add(
                    format!("raw quinn {name}, {connections} connections"),
                    transfer.gb_per_s(),
                    "GB/s",
                );
                if best.is_none_or(|best| transfer.gb_per_s() > best.gb_per_s()) {
                    best = Some(transfer);
                }
            }
        }
        let best = best.ok_or("no raw transfer was measured")?;
        let (server, own) = match way {
            Way::Pour => ("sink", "source"),
            Way::Draw => ("source", "sink"),
        };
        samples.add("raw quinn, best", best.gb_per_s(), "GB/s");
        samples.add(
            format!("raw quinn, best: {server}"),
            best.server_cpu_s_per_gb(),
            "CPU-s/GB",
        );
        samples.add(
            format!("raw quinn, best: {own}"),
            best.own_cpu_s_per_gb(),
            "CPU-s/GB",
        );
        Ok(best)
    }

    /// The better median of the settings' round trips, in microseconds.
    pub(crate) fn round_trip_us(&self, bench: &Bench, samples: &mut Samples) -> Outcome<f64> {
        let mut best = f64::INFINITY;
        for server in &self.servers {
            let trips = server.round_trips(REQUEST_BYTES, ANSWER_BYTES, bench.span())?;
            let name = server.target.settings.name();
            samples.add(format!("raw round trip {name}, p50"), trips.p50_us(), "us");
            samples.add(format!("raw round trip {name}, p99"), trips.p99_us(), "us");
            best = best.min(trips.p50_us());
        }
        Ok(best)
    }
}

/// The scenario that measures nothing but ceilings.
pub(crate) fn measure(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let transport = Transport::start(bench)?;
    let disk = Disk::prepare(&bench.dir, bench.quick)?;
    for _ in 0..bench.runs {
        transport.best(bench, Way::Pour, samples)?;
        transport.round_trip_us(bench, samples)?;
        blocks(bench, &disk, samples)?;
    }
    Ok(())
}

fn blocks(bench: &Bench, disk: &Disk, samples: &mut Samples) -> Outcome<()> {
    if !disk.direct {
        samples.note("direct I/O is refused here: buffered writes and fdatasync, cached reads");
    }
    let span = bench.span() / 4;
    for (name, block) in BLOCKS {
        let written = disk.write(block, span)?;
        samples.add(
            format!("synced write {name}, p50"),
            written.latencies.p50_us(),
            "us",
        );
        samples.add(
            format!("synced write {name}, p99"),
            written.latencies.p99_us(),
            "us",
        );
        samples.add(format!("synced write {name}"), written.gb_per_s, "GB/s");
        samples.add(
            format!("synced write {name}: CPU"),
            written.cpu_s_per_gb,
            "CPU-s/GB",
        );
        let read = disk.read(block, span)?;
        samples.add(format!("read {name}, p50"), read.latencies.p50_us(), "us");
        samples.add(format!("read {name}"), read.gb_per_s, "GB/s");
        samples.add(format!("read {name}: CPU"), read.cpu_s_per_gb, "CPU-s/GB");
    }
    Ok(())
}

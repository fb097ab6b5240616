//! Far timers: 10 million written in no order, due one after the other once the broker was restarted.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::scope;
use std::time::Duration;

use waterwheel::client::StatusOk;

use super::{BLOCK_BYTES, MEGABYTE, SECOND_MS, Spread, arm, fresh, lateness, now_ms, take};
use crate::load::broker::Home;
use crate::load::clients::{self, PATIENCE};
use crate::load::crew::muster;
use crate::load::disk::random_reads;
use crate::load::report::Samples;
use crate::load::{Bench, Outcome};

/// How many blocks are asked for at a time where the disk is measured: as many as the broker reads at a time
/// of what is not due soon, and of what is.
const READS_AT_A_TIME: [usize; 2] = [4, 32];
/// How often the broker is asked how it is while timers fire.
const STATUS_EVERY: Duration = Duration::from_millis(250);

/// 10 million written in no order, due over the ten minutes after a restart.
pub(crate) fn far(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let each = bench.size(2_500_000 / bench.part, 2_000);
    samples.note("far: 1 kB values, due uniformly over 10 minutes after a restart; reads issued: of the log, as the broker counts them");
    let part = i64::try_from(bench.part)?;
    for run in 0..bench.runs {
        let broker = fresh(bench, &format!("far-{run}"))?;
        let from_ms = now_ms() + bench.size(lead_ms(bench), 4 * SECOND_MS);
        let window_ms = bench.size(600 * SECOND_MS / part, 2 * SECOND_MS);
        arm(
            broker.home(),
            each,
            1_000,
            Spread::at_random(from_ms, window_ms),
        )?;
        let broker = broker.stop()?.start()?;
        let before = status(broker.home())?;
        let done = AtomicBool::new(false);
        let (fired, held) = scope(|scope| {
            let held = scope.spawn(|| most_held(broker.home(), &done));
            let fired = take(broker.home(), each, PATIENCE * 16);
            done.store(true, Ordering::Relaxed);
            let held = held
                .join()
                .map_err(|_| "whoever asked for the status panicked")?;
            Outcome::Ok((fired?, held?))
        })?;
        let after = status(broker.home())?;
        lateness(samples, "far", &fired);
        let fires = fired.lateness.len() as f64;
        samples.add(
            "far: reads issued per fire",
            after.reads.saturating_sub(before.reads) as f64 / fires,
            "",
        );
        samples.add(
            "far: read ahead in time",
            after.read_ahead_hits as f64 / fires * 100.0,
            "%",
        );
        samples.add(
            "far: read-ahead held, most seen",
            held as f64 / MEGABYTE,
            "MB",
        );
        samples.add("far: RSS", broker.resident_bytes()? as f64 / MEGABYTE, "MB");
        let wanted = fires / window_ms as f64 * SECOND_MS as f64;
        samples.add("far: fires wanted a second", wanted, "/s");
        read_ceiling(bench, broker.stop()?, wanted, samples)?;
    }
    Ok(())
}

/// How long arming and a restart may take, before the first one is due.
fn lead_ms(bench: &Bench) -> i64 {
    let part = i64::try_from(bench.part).unwrap_or(1);
    (120 * SECOND_MS / part).max(30 * SECOND_MS)
}

/// What the disk gives of the same files, a block at a time from anywhere: what reads of single records can
/// come to.
fn read_ceiling(bench: &Bench, home: Home, wanted: f64, samples: &mut Samples) -> Outcome<()> {
    let files = large_files(&home.data.join("log"))?;
    let mut best: f64 = 0.0;
    for at_a_time in READS_AT_A_TIME {
        let (rate, latencies) = random_reads(&files, BLOCK_BYTES, at_a_time, bench.span())?;
        let name = format!("random direct reads of 4 kB, {at_a_time} at a time");
        samples.add(name.as_str(), rate, "/s");
        samples.add(format!("{name}: p99"), latencies.p99_us() / 1e3, "ms");
        best = best.max(rate);
    }
    samples.add(
        "far: fires wanted over random direct reads, best",
        wanted / best.max(1e-9),
        "",
    );
    Ok(())
}

/// The files below a directory that hold more than a few blocks: segments.
fn large_files(dir: &Path) -> Outcome<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let facts = path.metadata()?;
        if facts.is_dir() {
            found.extend(large_files(&path)?);
        } else if facts.len() >= 1 << 20 {
            found.push(path);
        }
    }
    Ok(found)
}

/// The most bytes of read-ahead that the broker says it holds, until `done`.
fn most_held(home: &Home, done: &AtomicBool) -> Outcome<u64> {
    let members = muster(1, PATIENCE * 20, |_| async {
        let client = clients::connect(home).await?;
        let mut most = 0;
        while !done.load(Ordering::Relaxed) {
            most = most.max(client.status(false).await?.broker.read_ahead_bytes);
            tokio::time::sleep(STATUS_EVERY).await;
        }
        Ok(most)
    })?;
    Ok(members.into_iter().max().unwrap_or_default())
}

/// How the broker is, as it says itself.
fn status(home: &Home) -> Outcome<StatusOk> {
    let members = muster(1, PATIENCE, |_| async {
        let client = clients::connect(home).await?;
        Ok(client.status(false).await?.broker)
    })?;
    let status = members.into_iter().next();
    status.ok_or_else(|| "nobody asked".into())
}

//! Raw synced writes and reads: what the disk under the data directory can do.
//!
//! One writer, one file, blocks in order, each durable before the next: direct and `O_DSYNC` into a
//! file that has really been written before, as a log segment is. Where direct I/O is refused (tmpfs),
//! buffered writes with `O_DSYNC`, and the report says so.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::Outcome;
use super::latency::Latencies;
use super::payload::Noise;
use super::process::Usage;

/// What direct I/O asks of addresses, lengths and positions.
const ALIGNMENT_BYTES: usize = 4096;
/// The really written file that is written over and read.
const FILE_BYTES: u64 = 512 << 20;
/// Who reads beside synced writes: as many as the broker reads with at a time.
const READ_HANDS: u64 = 32;
/// So long it has to be quiet before a latency is measured on it, and for so long that is waited for.
const QUIET_FOR: Duration = Duration::from_secs(10);
const QUIET_WITHIN: Duration = Duration::from_secs(120);
/// What of a small synced write under way one in a hundred may find on a quiet one, in microseconds.
const QUIET_US: f64 = 2_000.0;
/// The unit of making it.
const MAKE_BYTES: usize = 1 << 20;

/// What blocks of one size came to.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// Each block's time.
    pub(crate) latencies: Latencies,
    /// GB/s.
    pub(crate) gb_per_s: f64,
    /// CPU seconds per GB of this process.
    pub(crate) cpu_s_per_gb: f64,
}

/// A really written file.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
    file_bytes: u64,
    /// Whether the file system lets its cache be passed by.
    pub(crate) direct: bool,
}

impl Disk {
    /// Makes the file in `dir`.
    pub(crate) fn prepare(dir: &Path, quick: bool) -> Outcome<Self> {
        let path = dir.join("raw-blocks");
        let file_bytes = if quick { FILE_BYTES / 32 } else { FILE_BYTES };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)?;
        let mut noise = vec![0; MAKE_BYTES];
        Noise::new(5).fill(&mut noise);
        for at in (0..file_bytes).step_by(MAKE_BYTES) {
            file.write_all_at(&noise, at)?;
        }
        file.sync_all()?;
        let direct = open(&path, OFlags::DIRECT).is_ok();
        Ok(Self {
            path,
            file_bytes,
            direct,
        })
    }

    /// Writes blocks of one size for `span`, each durable before the next.
    pub(crate) fn write(&self, block: usize, span: Duration) -> Outcome<Blocks> {
        let file = open(&self.path, self.past_the_cache() | OFlags::DSYNC)?;
        let buffer = Aligned::noise(block);
        self.blocks(block, span, |at| Ok(file.write_all_at(buffer.bytes(), at)?))
    }

    /// Waits until the disk is quiet: the tens of GB that another scenario deleted keep it busy for a minute, in
    /// which synced writes stall for up to a second. Whether it is.
    pub(crate) fn settle(&self) -> Outcome<bool> {
        let begun = Instant::now();
        while begun.elapsed() < QUIET_WITHIN {
            let small = self.write(ALIGNMENT_BYTES, QUIET_FOR)?.latencies;
            if small.under_way_us(0.99) < QUIET_US {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads blocks of one size for `span`.
    pub(crate) fn read(&self, block: usize, span: Duration) -> Outcome<Blocks> {
        let file = open(&self.path, self.past_the_cache())?;
        let mut buffer = Aligned::noise(block);
        self.blocks(block, span, |at| {
            Ok(file.read_exact_at(buffer.bytes_mut(), at)?)
        })
    }

    /// What fires every millisecond and is durable with the next synced write of a block, beside so many
    /// reads of a block a second from anywhere: how late each is, and how many were read a second. Nobody can
    /// be earlier who reads what fires and says durably that it did.
    pub(crate) fn lateness(
        &self,
        block: usize,
        reads_a_second: u64,
        span: Duration,
    ) -> Outcome<(Latencies, f64)> {
        let direct = self.past_the_cache();
        let file = open(&self.path, direct | OFlags::DSYNC)?;
        let buffer = Aligned::noise(block);
        let begun = Instant::now();
        let every = Duration::from_secs(READ_HANDS) / u32::try_from(reads_a_second.max(1))?;
        let hand = |hand: u64| -> Outcome<u64> {
            let file = open(&self.path, direct)?;
            let (mut noise, mut buffer) = (Noise::new(70 + hand), Aligned::noise(block));
            let mut planned = every * u32::try_from(hand)? / u32::try_from(READ_HANDS)?;
            let mut reads = 0;
            while begun.elapsed() < span {
                std::thread::sleep(planned.saturating_sub(begun.elapsed()));
                let at = (noise.word() >> 8) % (self.file_bytes / block as u64) * block as u64;
                file.read_exact_at(buffer.bytes_mut(), at)?;
                planned += every;
                reads += 1;
            }
            Ok(reads)
        };
        std::thread::scope(|scope| {
            let hands: Vec<_> = (0..READ_HANDS)
                .map(|number| scope.spawn(move || hand(number)))
                .collect();
            let (mut lateness, mut tick) = (Latencies::new()?, Duration::ZERO);
            while tick < span {
                std::thread::sleep(tick.saturating_sub(begun.elapsed()));
                let started = begun.elapsed();
                let at = u64::try_from(tick.as_millis())? * block as u64 % self.file_bytes;
                file.write_all_at(buffer.bytes(), at)?;
                let done = begun.elapsed();
                while tick <= started {
                    lateness.record(done.saturating_sub(tick));
                    tick += Duration::from_millis(1);
                }
            }
            let mut reads = 0;
            for hand in hands {
                reads += hand.join().map_err(|_| "a reader panicked")??;
            }
            Ok((lateness, reads as f64 / begun.elapsed().as_secs_f64()))
        })
    }

    fn past_the_cache(&self) -> OFlags {
        match self.direct {
            true => OFlags::DIRECT,
            false => OFlags::empty(),
        }
    }

    fn blocks(
        &self,
        block: usize,
        span: Duration,
        mut each: impl FnMut(u64) -> Outcome<()>,
    ) -> Outcome<Blocks> {
        let mut latencies = Latencies::new()?;
        let usage = Usage::own()?;
        let begun = Instant::now();
        let mut at = 0;
        while begun.elapsed() < span {
            if at + block as u64 > self.file_bytes {
                at = 0;
            }
            let start = Instant::now();
            each(at)?;
            latencies.record(start.elapsed());
            at += block as u64;
        }
        let took = begun.elapsed().as_secs_f64();
        let gigabytes = latencies.len() as f64 * block as f64 / 1e9;
        Ok(Blocks {
            gb_per_s: gigabytes / took.max(1e-9),
            cpu_s_per_gb: Usage::own()?.since(usage).cpu_s / gigabytes.max(1e-9),
            latencies,
        })
    }
}

/// Reads single blocks at random places of files that others have written, so many at a time: how many a
/// second, and how long each takes.
pub(crate) fn random_reads(
    files: &[PathBuf],
    block: usize,
    at_a_time: usize,
    span: Duration,
) -> Outcome<(f64, Latencies)> {
    let opened = |path: &PathBuf| {
        let flags = [OFlags::DIRECT, OFlags::empty()];
        let file = flags.into_iter().find_map(|flags| open(path, flags).ok());
        let file = file.ok_or_else(|| format!("{} cannot be read", path.display()))?;
        let blocks = file.metadata()?.len() / block as u64;
        Ok((file, blocks))
    };
    let files: Vec<(File, u64)> = files.iter().map(opened).collect::<Outcome<_>>()?;
    let files: &[_] = &files
        .into_iter()
        .filter(|file| file.1 > 0)
        .collect::<Vec<_>>();
    let begun = Instant::now();
    let hands: Vec<Outcome<Latencies>> = std::thread::scope(|scope| {
        let read = |hand: u64| {
            let (mut noise, mut buffer) = (Noise::new(90 + hand), Aligned::noise(block));
            let mut latencies = Latencies::new()?;
            while begun.elapsed() < span {
                let place = usize::try_from(noise.word() >> 8)? % files.len().max(1);
                let (file, blocks) = files.get(place).ok_or("there is no file to read")?;
                let at = (noise.word() >> 8) % blocks * block as u64;
                let start = Instant::now();
                file.read_exact_at(buffer.bytes_mut(), at)?;
                latencies.record(start.elapsed());
            }
            Ok(latencies)
        };
        let hands: Vec<_> = (0..at_a_time as u64)
            .map(|hand| scope.spawn(move || read(hand)))
            .collect();
        let hands = hands.into_iter();
        let done = hands.map(|hand| hand.join().map_err(|_| "a reader panicked")?);
        done.collect()
    });
    let mut all = Latencies::new()?;
    for latencies in hands {
        all.merge(&latencies?)?;
    }
    Ok((all.len() as f64 / begun.elapsed().as_secs_f64(), all))
}

fn open(path: &Path, flags: OFlags) -> Outcome<File> {
    let flags = i32::try_from(flags.bits())?;
    Ok(OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)?)
}

/// A buffer whose bytes begin where direct I/O wants them.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn noise(length: usize) -> Self {
        let mut memory = vec![0; length + ALIGNMENT_BYTES];
        Noise::new(6).fill(&mut memory);
        let start = memory.as_ptr().align_offset(ALIGNMENT_BYTES);
        Self {
            memory,
            start,
            length,
        }
    }

    fn bytes(&self) -> &[u8] {
        self.memory
            .get(self.start..self.start + self.length)
            .unwrap_or_default()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory
            .get_mut(self.start..self.start + self.length)
            .unwrap_or_default()
    }
}

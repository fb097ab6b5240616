//! A real disk that can be made to stand still, fill up, fail to write and fail to read.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use waterwheel::log::{Disk, DiskFile, RealDisk};

/// How long a thread stands still at most, so that a failed test ends.
const HELD_AT_MOST: Duration = Duration::from_secs(20);

/// What is wrong with the disk.
#[derive(Default)]
pub(crate) struct Faults {
    held: Mutex<bool>,
    changed: Condvar,
    waiting: AtomicU64,
    pub(crate) writes_fail: AtomicBool,
    pub(crate) reads_fail: AtomicBool,
    pub(crate) is_full: AtomicBool,
}

impl Faults {
    /// Durable writes wait from now on.
    pub(crate) fn hold(&self) {
        *self.held.lock().unwrap() = true;
    }

    /// They go on.
    pub(crate) fn release(&self) {
        *self.held.lock().unwrap() = false;
        self.changed.notify_all();
    }

    /// Waits until a write stands still.
    pub(crate) async fn is_holding(&self) {
        while self.waiting.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn pass(&self) {
        let held = self.held.lock().unwrap();
        if *held {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let waited = self
                .changed
                .wait_timeout_while(held, HELD_AT_MOST, |held| *held);
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            drop(waited);
        }
    }

    fn check(&self, fault: &AtomicBool) -> io::Result<()> {
        match fault.load(Ordering::SeqCst) {
            true => Err(io::Error::other("the device does not answer")),
            false => Ok(()),
        }
    }
}

/// A directory whose faults are under control.
pub(crate) struct FaultyDisk {
    real: RealDisk,
    faults: Arc<Faults>,
}

impl FaultyDisk {
    /// The segments of the broker whose data directory this is.
    pub(crate) fn of(data: &Path) -> (Arc<dyn Disk>, Arc<Faults>) {
        let faults = Arc::new(Faults::default());
        let real = RealDisk::open(data.join("log")).unwrap();
        (
            Arc::new(Self {
                real,
                faults: Arc::clone(&faults),
            }),
            faults,
        )
    }

    fn file(&self, real: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FaultyFile {
            real,
            faults: Arc::clone(&self.faults),
        })
    }
}

impl Disk for FaultyDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.real.list()
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.real.create(name, bytes).map(|file| self.file(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.real.open(name).map(|file| self.file(file))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.real.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.real.sync_dir()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        match self.faults.is_full.load(Ordering::SeqCst) {
            true => Ok(0),
            false => self.real.free_bytes(),
        }
    }

    fn write_unit(&self) -> u32 {
        self.real.write_unit()
    }

    fn fallback(&self) -> Option<String> {
        self.real.fallback()
    }
}

struct FaultyFile {
    real: Arc<dyn DiskFile>,
    faults: Arc<Faults>,
}

impl DiskFile for FaultyFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.faults.check(&self.faults.reads_fail)?;
        self.real.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.real.write_at(offset, bytes)
    }

    fn write_at_synced(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.faults.pass();
        self.faults.check(&self.faults.writes_fail)?;
        self.real.write_at_synced(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.real.sync()
    }
}

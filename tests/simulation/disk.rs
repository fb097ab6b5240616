//! A disk that keeps exactly what its contract promises, and nothing more than chance beyond that.
//!
//! Data is durable by sector: a sector written and not synced survives a power cut or not, each on its
//! own; a synced write the power cut falls into leaves any subset of its sectors. Names created and
//! removed are durable after `sync_dir`; before, each on its own. With a cache (`through_cache`) a failed
//! sync forgets what was dirty, as Linux does: it reads back, counts as clean, and is not on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use waterwheel::log::{Disk, DiskFile};

pub(crate) const SECTOR: usize = 512;
pub(crate) const UNIT: u32 = 4096;

/// SplitMix64: small, good enough, and the same everywhere.
#[derive(Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

struct State {
    rng: Rng,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    files: BTreeMap<u64, Content>,
    next_file: u64,
    capacity: u64,
    /// Handles of an earlier life do nothing.
    life: u64,
    /// The power goes at this many operations from now.
    power_left: Option<u64>,
    is_off: bool,
    through_cache: bool,
    fail_synced_writes: u32,
    fail_syncs: u32,
    fail_reads: u32,
    operations: u64,
    /// Everything that was done, in one number.
    trace: u64,
}

#[derive(Clone, Default)]
struct Content {
    seen: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

impl Content {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.seen.len() < end {
            self.seen.resize(end, 0);
        }
        self.seen[offset..end].copy_from_slice(bytes);
        self.dirty.extend(offset / SECTOR..end.div_ceil(SECTOR));
    }

    fn settle(&mut self, sector: usize) {
        let from = sector * SECTOR;
        let to = (from + SECTOR).min(self.seen.len());
        if self.durable.len() < to {
            self.durable.resize(to, 0);
        }
        self.durable[from..to].copy_from_slice(&self.seen[from..to]);
        self.dirty.remove(&sector);
    }
}

struct SimFile {
    disk: SimDisk,
    id: u64,
    life: u64,
}

fn broken(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}

impl State {
    /// Counts an operation; an error once the power is off. `true` when it goes in this very one.
    fn step(&mut self, what: u64) -> io::Result<bool> {
        if self.is_off {
            return Err(broken("the power is off"));
        }
        self.operations += 1;
        self.trace = Rng(self.trace ^ what).next();
        let Some(left) = &mut self.power_left else {
            return Ok(false);
        };
        *left = left.saturating_sub(1);
        self.is_off = *left == 0;
        Ok(self.is_off)
    }

    fn used(&self) -> u64 {
        let lengths = self.names.values().map(|id| self.files[id].seen.len());
        lengths.sum::<usize>() as u64
    }
}

impl SimDisk {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: Rng(seed),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            files: BTreeMap::new(),
            next_file: 0,
            capacity: u64::MAX,
            life: 0,
            power_left: None,
            is_off: false,
            through_cache: false,
            fail_synced_writes: 0,
            fail_syncs: 0,
            fail_reads: 0,
            operations: 0,
            trace: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The power goes in the `operations`-th operation from now, which is left half done.
    pub(crate) fn cut_power_in(&self, operations: u64) {
        self.state().power_left = Some(operations.max(1));
    }

    /// No power cut after all.
    pub(crate) fn keep_power(&self) {
        self.state().power_left = None;
    }

    pub(crate) fn is_off(&self) -> bool {
        self.state().is_off
    }

    pub(crate) fn operations(&self) -> u64 {
        self.state().operations
    }

    pub(crate) fn trace(&self) -> u64 {
        self.state().trace
    }

    pub(crate) fn set_capacity(&self, bytes: u64) {
        self.state().capacity = bytes;
    }

    /// Writes go through a page cache from now on.
    pub(crate) fn through_cache(self) -> Self {
        self.state().through_cache = true;
        self
    }

    pub(crate) fn fail_synced_writes(&self, count: u32) {
        self.state().fail_synced_writes = count;
    }

    pub(crate) fn fail_syncs(&self, count: u32) {
        self.state().fail_syncs = count;
    }

    pub(crate) fn fail_reads(&self, count: u32) {
        self.state().fail_reads = count;
    }

    /// What was not synced survives or not, and the machine comes up again.
    pub(crate) fn power_cut(&self) {
        let mut state = self.state();
        let State {
            rng,
            names,
            durable_names,
            files,
            ..
        } = &mut *state;
        for content in files.values_mut() {
            for sector in std::mem::take(&mut content.dirty) {
                if rng.chance(50) {
                    content.settle(sector);
                }
            }
            content.seen = content.durable.clone();
        }
        let all: BTreeSet<String> = names.keys().chain(durable_names.keys()).cloned().collect();
        for name in all {
            if names.get(&name) != durable_names.get(&name) && rng.chance(50) {
                match names.get(&name) {
                    Some(id) => durable_names.insert(name, *id),
                    None => durable_names.remove(&name),
                };
            }
        }
        *names = durable_names.clone();
        state.come_up();
    }

    /// The process is killed: nothing is lost, and nothing is synced.
    pub(crate) fn kill(&self) {
        self.state().come_up();
    }

    pub(crate) fn file_names(&self) -> Vec<String> {
        self.state().names.keys().cloned().collect()
    }

    pub(crate) fn peek(&self, name: &str) -> Vec<u8> {
        let state = self.state();
        state.files[&state.names[name]].seen.clone()
    }

    /// Bits rot.
    pub(crate) fn flip(&self, name: &str, offset: usize, mask: u8) {
        let mut state = self.state();
        let id = state.names[name];
        let content = state.files.get_mut(&id).unwrap();
        content.seen[offset] ^= mask;
        content.durable[offset] ^= mask;
    }
}

impl State {
    fn come_up(&mut self) {
        self.life += 1;
        self.power_left = None;
        self.is_off = false;
        self.fail_synced_writes = 0;
        self.fail_syncs = 0;
        self.fail_reads = 0;
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut state = self.state();
        state.step(1)?;
        // In an order nobody may rely on.
        let mut names: Vec<String> = state.names.keys().cloned().collect();
        for at in (1..names.len()).rev() {
            let other = state.rng.below(at as u64 + 1) as usize;
            names.swap(at, other);
        }
        Ok(names)
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        let cut = state.step(2)?;
        if state.used() + bytes > state.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        assert!(!state.names.contains_key(name), "{name} is new");
        state.next_file += 1;
        let id = state.next_file;
        let content = Content {
            seen: vec![0; bytes as usize],
            ..Content::default()
        };
        state.files.insert(id, content);
        state.names.insert(name.to_owned(), id);
        let life = state.life;
        drop(state);
        if cut {
            return Err(broken("the power went"));
        }
        Ok(Arc::new(SimFile {
            disk: self.clone(),
            id,
            life,
        }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        state.step(3)?;
        let id = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile {
            disk: self.clone(),
            id,
            life: state.life,
        }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        let cut = state.step(4)?;
        state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        if cut {
            return Err(broken("the power went"));
        }
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.step(5)? {
            return Err(broken("the power went"));
        }
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.state();
        // What others take is found out by `create`, as on a real disk.
        Ok(state.capacity.max(1 << 40))
    }

    fn write_unit(&self) -> u32 {
        UNIT
    }

    fn fallback(&self) -> Option<String> {
        let through_cache = self.state().through_cache;
        through_cache.then(|| "simulated".to_owned())
    }
}

impl SimFile {
    fn with<T>(
        &self,
        what: u64,
        act: impl FnOnce(&mut State, bool) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.disk.state();
        if state.life != self.life {
            return Err(broken("a handle of an earlier life"));
        }
        let cut = state.step(what ^ (self.id << 8))?;
        act(&mut state, cut)
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        assert_eq!(offset % u64::from(UNIT), 0);
        assert_eq!(into.len() % UNIT as usize, 0);
        assert_eq!(into.as_ptr() as usize % UNIT as usize, 0);
        self.with(6, |state, _| {
            if state.fail_reads > 0 {
                state.fail_reads -= 1;
                return Err(broken("the device does not read"));
            }
            let seen = &state.files[&self.id].seen;
            let from = seen.get(offset as usize..).unwrap_or_default();
            let length = from.len().min(into.len());
            into[..length].copy_from_slice(&from[..length]);
            into[length..].fill(0);
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(7 ^ (offset << 20), |state, cut| {
            let content = state.files.get_mut(&self.id).unwrap();
            content.write(offset as usize, bytes);
            if cut {
                return Err(broken("the power went"));
            }
            Ok(())
        })
    }

    fn write_at_synced(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert_eq!(offset % u64::from(UNIT), 0);
        assert_eq!(bytes.len() % UNIT as usize, 0);
        assert_eq!(bytes.as_ptr() as usize % UNIT as usize, 0);
        let sum = u64::from(waterwheel::domain::checksum::crc32c(bytes));
        self.with(8 ^ (offset << 20) ^ (sum << 8), |state, cut| {
            let fails = state.fail_synced_writes > 0;
            let through_cache = state.through_cache;
            state.fail_synced_writes -= u32::from(fails);
            let State { rng, files, .. } = state;
            let content = files.get_mut(&self.id).unwrap();
            content.write(offset as usize, bytes);
            let first = offset as usize / SECTOR;
            // Some runs of tearing keep most of a write, some next to nothing.
            let keep = [5, 50, 95][rng.below(3) as usize];
            for sector in first..first + bytes.len() / SECTOR {
                if !(cut || fails) || rng.chance(keep) {
                    content.settle(sector);
                } else if fails && through_cache {
                    // Reads back from the cache, is not on disk, and no later sync will put it there.
                    content.dirty.remove(&sector);
                }
            }
            if cut || fails {
                return Err(broken("the write failed"));
            }
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(9, |state, cut| {
            let fails = state.fail_syncs > 0;
            let through_cache = state.through_cache;
            state.fail_syncs -= u32::from(fails);
            let State { rng, files, .. } = state;
            let content = files.get_mut(&self.id).unwrap();
            let dirty = content.dirty.clone();
            for sector in dirty {
                if !(cut || fails) || rng.chance(50) {
                    content.settle(sector);
                }
            }
            if fails && through_cache {
                content.dirty.clear();
            }
            if cut || fails {
                return Err(broken("the sync failed"));
            }
            // The length is durable too.
            let length = content.seen.len();
            content.durable.resize(length, 0);
            Ok(())
        })
    }
}

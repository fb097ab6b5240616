//! The views themselves: opening, writing rows, reading them, making them durable.
//!
//! In: rows of owners, as the checkpoint actor collects them. Out: the same rows at the next start, or a
//! reason not to believe them. Everything here blocks; one store thread is the only caller, so that
//! sled's process-wide locks are never waited for. Only plain insert, remove, get and range are used:
//! sled's batches and transactions wait behind a flush in flight and can hang across trees.
//!
//! - V1: a row that is read is one that was written under this tree and key ([`super::layout`]).
//! - V2: a whole set of rows is believed only if it adds up to its heads, and the heads to the mark.
//! - V3: a mark is written only after every row it counts is durable. sled's own flush does not sync
//!   its file on Linux, so [`Views::sync`] does, through a descriptor of its own.
//! - V4: nothing on disk makes this room panic. sled 0.34 does panic on some damage; every call into it
//!   is fenced, and comes back as [`ViewsError::Panicked`].
//!
//! After a crash of the broker the rows are at least as new as the last mark and are used; after a crash
//! of the machine they are distrusted and rebuilt.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::error::{Distrust, ViewsError};
use super::layout::{HEAD, RowKey, Tree, Value, decode_value};
use super::mark::{BootId, Mark, parent, sync_directory};
use super::verify::{Verified, verify};
use crate::domain::id::{ClusterId, LogPosition, OwnerId, OwnerSequence};

/// How long opening waits for sled's lock.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// One row to write or remove.
#[derive(Debug, Clone)]
pub struct RowChange {
    /// In which tree.
    pub tree: Tree,
    /// Which row.
    pub key: RowKey,
    /// The owner sequence it folds up to and its payload; `None` removes it. Removing a head removes
    /// every row of its owner.
    pub value: Option<(OwnerSequence, Bytes)>,
}

/// A row as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What it is: a row kind of [`super::layout`].
    pub kind: u8,
    /// Which of that kind.
    pub id: u64,
    /// The owner sequence it folds up to. Rows of one owner may differ in it: an entry at or below a
    /// row's sequence is in it.
    pub folded: OwnerSequence,
    /// The owner's payload.
    pub payload: Bytes,
}

/// An owner's head row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerHead {
    /// Whose.
    pub owner: OwnerId,
    /// The owner sequence it folds up to.
    pub folded: OwnerSequence,
    /// The owner's payload.
    pub payload: Bytes,
}

/// What was found at opening.
#[derive(Debug)]
pub struct OpenedViews {
    /// The views. Those that are distrusted are only good for looking at.
    pub views: Views,
    /// Whether they are believed.
    pub standing: Standing,
}

/// Whether the views are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Nothing was there: fold the log from its start.
    Fresh,
    /// They add up: fold the log from the mark's position.
    Trusted {
        /// How far they hold the log.
        mark: Mark,
        /// What was counted.
        verified: Verified,
    },
    /// They do not: drop them, [`Views::destroy`] the directory, open again, and fold the whole log.
    Distrusted(Distrust),
}

/// The views of one log.
#[derive(Debug)]
pub struct Views {
    dir: PathBuf,
    pub(super) trees: Trees,
    db: sled::Db,
    /// sled's file through a descriptor of our own: the only way to sync it.
    database: File,
    cluster: ClusterId,
    boot: BootId,
    /// The last mark's.
    generation: u64,
    pub(super) marked_stamp: u64,
    pub(super) stamp: u64,
    pub(super) heads: u64,
    /// Removed rows that go for good once a mark has passed them; an owner's head last.
    pub(super) tombstones: Vec<(Tree, RowKey)>,
    synced_blobs: HashSet<OsString>,
    pub(super) dirty: bool,
    pub(super) closed: bool,
}

#[derive(Debug)]
pub(super) struct Trees {
    meta: sled::Tree,
    partition: sled::Tree,
    group: sled::Tree,
    transaction: sled::Tree,
    wheel: sled::Tree,
    trace: sled::Tree,
}

impl Trees {
    fn open(db: &sled::Db) -> Result<Self, ViewsError> {
        let open = |tree: Tree| db.open_tree(tree.name());
        Ok(Self {
            meta: open(Tree::Meta)?,
            partition: open(Tree::Partition)?,
            group: open(Tree::Group)?,
            transaction: open(Tree::Transaction)?,
            wheel: open(Tree::Wheel)?,
            trace: open(Tree::Trace)?,
        })
    }

    pub(super) fn of(&self, tree: Tree) -> &sled::Tree {
        match tree {
            Tree::Meta => &self.meta,
            Tree::Partition => &self.partition,
            Tree::Group => &self.group,
            Tree::Transaction => &self.transaction,
            Tree::Wheel => &self.wheel,
            Tree::Trace => &self.trace,
        }
    }
}

impl Views {
    /// Opens or creates the views in `dir` and reads every row of them.
    ///
    /// `cache_bytes` bounds sled's page cache. `cluster` is the log's; views of another are distrusted.
    ///
    /// # Errors
    /// What cannot be opened at all, damage inside sled included: destroy and open again.
    pub fn open(
        dir: &Path,
        cache_bytes: u64,
        cluster: ClusterId,
    ) -> Result<OpenedViews, ViewsError> {
        let mut opened = Self::inspect(dir, cache_bytes, cluster)?;
        let views = &mut opened.views;
        views.closed = false;
        match &mut opened.standing {
            Standing::Fresh => {}
            Standing::Trusted { mark, verified } => {
                views.heal(verified)?;
                if mark.clean {
                    // What follows is not counted by the clean mark: without this, a power cut after
                    // the next write would leave half of it believed.
                    *mark = views.mark(mark.position, false)?;
                }
            }
            Standing::Distrusted(_) => views.closed = true,
        }
        Ok(opened)
    }

    /// Opens the views only to look at them: nothing is mended, and writes are refused. sled itself
    /// does write at opening, so an offline check works on a copy.
    ///
    /// # Errors
    /// As [`Views::open`].
    pub fn inspect(
        dir: &Path,
        cache_bytes: u64,
        cluster: ClusterId,
    ) -> Result<OpenedViews, ViewsError> {
        let io = |what| move |fault| ViewsError::io(what, dir, fault);
        fs::create_dir_all(dir).map_err(io("creating the directory"))?;
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(cache_bytes)
            .flush_every_ms(None);
        let (db, trees) = fenced(|| {
            let db = open_unlocked(&config)?;
            let trees = Trees::open(&db)?;
            Ok((db, trees))
        })?;
        let database = File::open(dir.join("db")).map_err(io("opening the database file"))?;
        sync_directory(parent(dir)).map_err(io("syncing the directory above"))?;
        let mut views = Self {
            dir: dir.to_path_buf(),
            trees,
            db,
            database,
            cluster,
            boot: BootId::current(),
            generation: 0,
            marked_stamp: 0,
            stamp: 0,
            heads: 0,
            tombstones: Vec::new(),
            synced_blobs: HashSet::new(),
            dirty: true,
            closed: true,
        };
        let mark = Mark::read(dir)?;
        let standing = match views.judge(mark)? {
            Err(why) => Standing::Distrusted(why),
            Ok((None, _)) => Standing::Fresh,
            Ok((Some(mark), verified)) => {
                views.take_up(&mark, &verified);
                Standing::Trusted { mark, verified }
            }
        };
        Ok(OpenedViews { views, standing })
    }

    /// Removes the views and their marks, the marks first: a crash in between leaves views that are not
    /// believed.
    ///
    /// # Errors
    /// What the system said.
    pub fn destroy(dir: &Path) -> Result<(), ViewsError> {
        Mark::remove(dir)?;
        match fs::remove_dir_all(dir) {
            Err(fault) if fault.kind() != io::ErrorKind::NotFound => {
                Err(ViewsError::io("removing", dir, fault))
            }
            _ => sync_directory(parent(dir))
                .map_err(|fault| ViewsError::io("syncing the directory above", dir, fault)),
        }
    }

    fn judge(
        &self,
        mark: Option<Mark>,
    ) -> Result<Result<(Option<Mark>, Verified), Distrust>, ViewsError> {
        if let Some(mark) = mark {
            if mark.cluster != self.cluster {
                return Ok(Err(Distrust::OtherCluster));
            }
            if !mark.clean && !mark.boot.is_same(self.boot) {
                return Ok(Err(Distrust::Unclean));
            }
        }
        Ok(self
            .verify_all(mark.as_ref())?
            .map(|verified| (mark, verified)))
    }

    /// Reads every row: each one's own checksum, every owner's sum, and the sum of the heads against
    /// the mark's. Without a mark there must be no row.
    ///
    /// # Errors
    /// Outside, that sled failed; inside, why the rows are not to be believed.
    pub fn verify_all(
        &self,
        mark: Option<&Mark>,
    ) -> Result<Result<Verified, Distrust>, ViewsError> {
        fenced(|| {
            let trees = Tree::ALL.map(|tree| (tree, self.trees.of(tree)));
            verify(&trees, mark)
        })
    }

    fn take_up(&mut self, mark: &Mark, verified: &Verified) {
        self.generation = mark.generation;
        self.marked_stamp = mark.stamp;
        self.stamp = verified.stamp.max(mark.stamp);
        self.heads = verified.heads_now;
        self.tombstones.clone_from(&verified.tombstones);
        self.dirty = true;
    }

    pub(super) fn insert(&self, tree: Tree, key: RowKey, value: Vec<u8>) -> Result<(), ViewsError> {
        fenced(|| {
            self.trees.of(tree).insert(key.encode(), value)?;
            Ok(())
        })
    }

    pub(super) fn value(&self, tree: Tree, key: RowKey) -> Result<Option<Value>, ViewsError> {
        let bytes = fenced(|| Ok(self.trees.of(tree).get(key.encode())?))?;
        bytes
            .map(|bytes| decode_value(tree, key, &bytes))
            .transpose()
            .map_err(|fault| ViewsError::Row { tree, key, fault })
    }

    /// One row, if it is there.
    ///
    /// # Errors
    /// Damage, or that sled failed.
    pub fn row(&self, tree: Tree, key: RowKey) -> Result<Option<Row>, ViewsError> {
        Ok(self
            .value(tree, key)?
            .filter(|value| value.live)
            .map(|value| row(key, value)))
    }

    /// Every row of an owner, the head first, by kind and id.
    ///
    /// # Errors
    /// Damage, or that sled failed.
    pub fn rows(&self, tree: Tree, owner: OwnerId) -> Result<Vec<Row>, ViewsError> {
        self.scan(tree, &owner.0.to_be_bytes(), |key, value| {
            value.live.then(|| row(key, value))
        })
    }

    /// The ids of an owner's rows of one kind, in their order. Their payloads are not kept.
    ///
    /// # Errors
    /// Damage, or that sled failed.
    pub fn row_ids(&self, tree: Tree, owner: OwnerId, kind: u8) -> Result<Vec<u64>, ViewsError> {
        let mut prefix = owner.0.to_be_bytes().to_vec();
        prefix.push(kind);
        self.scan(tree, &prefix, |key, value| value.live.then_some(key.id))
    }

    /// What `pick` makes of every value below a prefix, removed ones too, in the order of their keys.
    pub(super) fn scan<T>(
        &self,
        tree: Tree,
        prefix: &[u8],
        mut pick: impl FnMut(RowKey, Value) -> Option<T>,
    ) -> Result<Vec<T>, ViewsError> {
        fenced(|| {
            let mut picked = Vec::new();
            for pair in self.trees.of(tree).scan_prefix(prefix) {
                let (key, value) = pair?;
                let (key, value) = decode(tree, &key, &value)?;
                picked.extend(pick(key, value));
            }
            Ok(picked)
        })
    }

    /// How many rows an owner has.
    ///
    /// # Errors
    /// Damage, or that sled failed.
    pub fn row_count(&self, tree: Tree, owner: OwnerId) -> Result<u64, ViewsError> {
        Ok(self.rows(tree, owner)?.len() as u64)
    }

    /// The heads of a tree's owners, by owner. Costs a seek per owner, not a look at its rows.
    pub fn owners(&self, tree: Tree) -> impl Iterator<Item = Result<OwnerHead, ViewsError>> {
        let mut next = Some(OwnerId(0));
        std::iter::from_fn(move || {
            loop {
                let from = RowKey::head(next?).encode();
                let found = fenced(|| Ok(self.trees.of(tree).range(from..).next().transpose()?));
                let (key, value) = match found {
                    Ok(Some((key, value))) => match decode(tree, &key, &value) {
                        Ok(pair) => pair,
                        Err(fault) => {
                            next = None;
                            return Some(Err(fault));
                        }
                    },
                    Ok(None) => return None,
                    Err(fault) => {
                        next = None;
                        return Some(Err(fault));
                    }
                };
                next = key.owner.0.checked_add(1).map(OwnerId);
                if key.kind == HEAD && value.live {
                    return Some(Ok(OwnerHead {
                        owner: key.owner,
                        folded: value.folded,
                        payload: value.payload,
                    }));
                }
            }
        })
    }

    /// Makes everything written durable.
    ///
    /// # Errors
    /// The views are useless: drop and destroy them.
    pub fn sync(&mut self) -> Result<(), ViewsError> {
        let closed = std::mem::replace(&mut self.closed, true);
        fenced(|| Ok(self.db.flush()?))?;
        self.sync_files()
            .map_err(|fault| ViewsError::io("syncing", &self.dir, fault))?;
        self.dirty = false;
        self.closed = closed;
        Ok(())
    }

    fn sync_files(&mut self) -> io::Result<()> {
        self.database.sync_data()?;
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file() && entry.file_name() != "db" {
                // A snapshot of sled's may be replaced while we look.
                sync_if_there(&entry.path())?;
            }
        }
        let blobs = self.dir.join("blobs");
        if blobs.is_dir() {
            for entry in fs::read_dir(&blobs)? {
                let entry = entry?;
                if self.synced_blobs.insert(entry.file_name()) {
                    sync_if_there(&entry.path())?;
                }
            }
            sync_directory(&blobs)?;
        }
        sync_directory(&self.dir)
    }

    /// Says that the views hold every entry before `position`, durably, after syncing what is not yet.
    /// `clean` is for an orderly stop with nothing to follow.
    ///
    /// # Errors
    /// The last mark stands.
    pub fn mark(&mut self, position: LogPosition, clean: bool) -> Result<Mark, ViewsError> {
        self.check_open()?;
        if self.dirty {
            self.sync()?;
        }
        let mark = Mark {
            cluster: self.cluster,
            position,
            generation: self.generation + 1,
            stamp: self.stamp,
            heads: self.heads,
            boot: self.boot,
            clean,
        };
        mark.write(&self.dir)?;
        self.generation = mark.generation;
        self.marked_stamp = mark.stamp;
        if !clean {
            self.bury()?;
        }
        Ok(mark)
    }

    /// Bytes on disk.
    ///
    /// # Errors
    /// That sled failed.
    pub fn disk_bytes(&self) -> Result<u64, ViewsError> {
        fenced(|| Ok(self.db.size_on_disk()?))
    }

    pub(super) fn check_open(&self) -> Result<(), ViewsError> {
        if self.closed {
            return Err(ViewsError::Closed);
        }
        Ok(())
    }
}

#[cfg(test)]
impl Views {
    pub(super) fn rot(&self, tree: Tree, key: RowKey) {
        let mut bytes = self
            .trees
            .of(tree)
            .get(key.encode())
            .unwrap()
            .unwrap()
            .to_vec();
        bytes[28] ^= 1;
        self.insert(tree, key, bytes).unwrap();
    }

    pub(super) fn lose(&self, tree: Tree, key: RowKey) {
        self.trees.of(tree).remove(key.encode()).unwrap().unwrap();
    }
}

fn row(key: RowKey, value: Value) -> Row {
    Row {
        kind: key.kind,
        id: key.id,
        folded: value.folded,
        payload: value.payload,
    }
}

fn decode(tree: Tree, key: &[u8], value: &[u8]) -> Result<(RowKey, Value), ViewsError> {
    let key = RowKey::decode(key).ok_or(ViewsError::Key(tree))?;
    match decode_value(tree, key, value) {
        Ok(value) => Ok((key, value)),
        Err(fault) => Err(ViewsError::Row { tree, key, fault }),
    }
}

fn sync_if_there(path: &Path) -> io::Result<()> {
    match File::open(path) {
        Ok(file) => file.sync_all(),
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(fault) => Err(fault),
    }
}

/// Opens sled, waiting for its lock: the threads of a database that was closed a moment ago in this
/// process may hold it a little longer. That no other broker has it is the data directory's lock.
fn open_unlocked(config: &sled::Config) -> Result<sled::Db, ViewsError> {
    let patience = Instant::now() + LOCK_WAIT;
    loop {
        match config.open() {
            Err(sled::Error::Io(fault))
                if fault.to_string().contains("could not acquire lock")
                    && Instant::now() < patience =>
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            other => return Ok(other?),
        }
    }
}

/// Every call into sled: what it panics about is damage on the disk, and no reason to stop the broker.
pub(super) fn fenced<T>(call: impl FnOnce() -> Result<T, ViewsError>) -> Result<T, ViewsError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_else(|| "it gave up without saying why".to_owned());
        Err(ViewsError::Panicked(message))
    })
}

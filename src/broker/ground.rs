//! What a broker stands on: a directory of its own, the log in it, and the views folded up to its end.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::StartError;
use crate::actors::CrashPoints;
use crate::config::Config;
use crate::domain::batch;
use crate::domain::partition::Limits;
use crate::log::{Disk, Log, LogOptions, Opened, RealDisk};
use crate::recovery::{Recovered, recover};
use crate::store::Ballast;

/// Room kept beside the views, given up when the disk is full so that they can be rebuilt.
const VIEWS_BALLAST_BYTES: u64 = 16 << 20;

/// A directory that is this broker's, its log, and what was found there.
pub(super) struct Ground {
    pub(super) opened: Opened,
    pub(super) recovered: Recovered,
    pub(super) lock: File,
}

/// Locks, opens, recovers: everything that blocks.
pub(super) fn lay_ground(
    config: &Config,
    crash: &CrashPoints,
    disk: Option<Arc<dyn Disk>>,
) -> Result<Ground, StartError> {
    let at = |path: &Path| {
        let path = path.to_path_buf();
        move |source| StartError::Io { path, source }
    };
    let data = &config.data;
    std::fs::create_dir_all(data).map_err(at(data))?;
    let lock_path = data.join("lock");
    let lock = File::create(&lock_path).map_err(at(&lock_path))?;
    lock.try_lock().map_err(|error| match error {
        std::fs::TryLockError::WouldBlock => StartError::Locked(data.clone()),
        std::fs::TryLockError::Error(source) => StartError::Io {
            path: lock_path.clone(),
            source,
        },
    })?;
    let log_dir = data.join("log");
    let disk = match disk {
        Some(disk) => disk,
        None => Arc::new(RealDisk::open(&log_dir).map_err(at(&log_dir))?),
    };
    if let Some(why) = disk.fallback() {
        tracing::warn!(
            target: "waterwheel::log",
            "{why}: the promises are the same, each write costs more; ext4 and xfs on a disk take direct \
             writes: --data DIR there"
        );
    }
    let options = LogOptions {
        segment_bytes: config.segment_bytes,
        flush_bytes_max: config.flush_bytes_max,
        cluster: config.cluster,
        facts_of: batch::facts,
        ..LogOptions::default()
    };
    let opened = Log::open(disk, options)?;
    for damage in &opened.damage {
        tracing::error!(
            target: "waterwheel::recovery",
            %damage,
            "the log is damaged: what is whole is served; stop the broker and run `waterwheel check {}` for \
             a list, and look at the disk",
            data.display()
        );
    }
    let limits = Limits {
        producers_max: config.producers_per_partition_effective(),
        snapshot_bytes_max: config.snapshot_bytes_max(),
    };
    let views = data.join("views");
    let ballast = Ballast::new(&views, VIEWS_BALLAST_BYTES);
    let fold = || {
        let reader = opened.log.reader();
        recover(
            &reader,
            opened.end,
            &views,
            config.views_cache_bytes,
            limits,
            crash,
        )
    };
    let recovered = match fold() {
        Err(error) if error.is_disk_full() && ballast.drop_it()? => {
            tracing::warn!(
                target: "waterwheel::recovery",
                %error, "no room for the views: their ballast is given up for them; free disk space"
            );
            fold()?
        }
        recovered => recovered?,
    };
    if let Err(error) = ballast.load() {
        tracing::warn!(target: "waterwheel::recovery", %error, "no room for the views' ballast");
    }
    Ok(Ground {
        opened,
        recovered,
        lock,
    })
}

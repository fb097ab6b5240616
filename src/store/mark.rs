//! The checkpoint mark: how far the views hold the log.
//!
//! Two files beside the views, `views.mark.0` and `views.mark.1`, written in turn and synced, so that a
//! torn write leaves the one before. The newer generation that checks out is the mark.
//!
//! ```text
//!  0  magic       8 bytes  "wwmark\r\n"
//!  8  version     u8       1
//!  9  clean       u8       1 after an orderly stop
//! 10  cluster     16 bytes whose log the views hold
//! 26  position    u64 LE   the views hold every entry before it
//! 34  generation  u64 LE   +1 per mark; its lowest bit names the file
//! 42  stamp       u64 LE   the last write of the views the mark counts
//! 50  heads       u64 LE   what the owners' heads count
//! 58  boot        16 bytes the kernel's boot id; zeros where there is none
//! 74  CRC-32C     u32 LE   over everything before
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::error::ViewsError;
use crate::domain::id::{ClusterId, LogPosition};

const MAGIC: [u8; 8] = *b"wwmark\r\n";
const VERSION: u8 = 1;
const BYTES: usize = 78;
/// Read instead of trusting a length: a mark never has more.
const READ_BYTES_MAX: u64 = 4096;

/// Names one running of the kernel; all zeros where it cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BootId(pub [u8; 16]);

impl BootId {
    /// This boot's, from the kernel.
    #[must_use]
    pub fn current() -> Self {
        fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .ok()
            .and_then(|text| uuid::Uuid::try_parse(text.trim()).ok())
            .map(|id| Self(id.into_bytes()))
            .unwrap_or_default()
    }

    /// Whether both are known and the same.
    #[must_use]
    pub fn is_same(self, other: Self) -> bool {
        self == other && self != Self::default()
    }
}

/// How far the views hold the log, and what they must add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Whose log.
    pub cluster: ClusterId,
    /// The views hold every entry before this position.
    pub position: LogPosition,
    /// Counts the marks.
    pub generation: u64,
    /// The last write of the views that it counts.
    pub stamp: u64,
    /// What the owners' heads count.
    pub heads: u64,
    /// In which boot it was written.
    pub boot: BootId,
    /// Written by an orderly stop, with nothing after it.
    pub clean: bool,
}

impl Mark {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.push(VERSION);
        bytes.push(u8::from(self.clean));
        bytes.extend_from_slice(&self.cluster.0);
        for word in [self.position.0, self.generation, self.stamp, self.heads] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.boot.0);
        let crc = crate::domain::checksum::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; BYTES] = bytes.as_array()?;
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crate::domain::checksum::crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let (magic, rest) = body.split_first_chunk::<8>()?;
        let ([version, clean], rest) = rest.split_first_chunk::<2>()?;
        if *magic != MAGIC || *version != VERSION {
            return None;
        }
        let (cluster, rest) = rest.split_first_chunk::<16>()?;
        let (position, rest) = rest.split_first_chunk::<8>()?;
        let (generation, rest) = rest.split_first_chunk::<8>()?;
        let (stamp, rest) = rest.split_first_chunk::<8>()?;
        let (heads, rest) = rest.split_first_chunk::<8>()?;
        Some(Self {
            cluster: ClusterId(*cluster),
            position: LogPosition(u64::from_le_bytes(*position)),
            generation: u64::from_le_bytes(*generation),
            stamp: u64::from_le_bytes(*stamp),
            heads: u64::from_le_bytes(*heads),
            boot: BootId(*rest.as_array()?),
            clean: *clean == 1,
        })
    }

    /// The newest mark beside `views` that checks out.
    ///
    /// # Errors
    /// Only where a mark is there and cannot be read; a missing or damaged one is none.
    pub fn read(views: &Path) -> Result<Option<Self>, ViewsError> {
        let mut newest: Option<Self> = None;
        for slot in [0, 1] {
            let path = path(views, slot);
            let bytes = match read_bounded(&path) {
                Ok(bytes) => bytes,
                Err(fault) if fault.kind() == io::ErrorKind::NotFound => continue,
                Err(fault) => return Err(ViewsError::io("reading the mark", &path, fault)),
            };
            if let Some(mark) = Self::decode(&bytes)
                && newest.is_none_or(|newest| newest.generation < mark.generation)
            {
                newest = Some(mark);
            }
        }
        Ok(newest)
    }

    /// Writes this mark over the one before the last, durably.
    ///
    /// # Errors
    /// What the system said; the last mark stands.
    pub fn write(&self, views: &Path) -> Result<(), ViewsError> {
        let path = path(views, self.generation & 1);
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)?;
            file.write_all(&self.encode())?;
            file.set_len(BYTES as u64)?;
            file.sync_all()?;
            sync_directory(parent(views))
        };
        write().map_err(|fault| ViewsError::io("writing the mark", &path, fault))
    }

    /// Removes both marks: whatever lies in the views is no longer believed.
    ///
    /// # Errors
    /// What the system said.
    pub fn remove(views: &Path) -> Result<(), ViewsError> {
        for slot in [0, 1] {
            let path = path(views, slot);
            match fs::remove_file(&path) {
                Err(fault) if fault.kind() != io::ErrorKind::NotFound => {
                    return Err(ViewsError::io("removing the mark", &path, fault));
                }
                _ => {}
            }
        }
        sync_directory(parent(views))
            .map_err(|fault| ViewsError::io("syncing the directory", parent(views), fault))
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    File::open(path)?
        .take(READ_BYTES_MAX)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn path(views: &Path, slot: u64) -> PathBuf {
    let mut name = views.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".mark.{slot}"));
    views.with_file_name(name)
}

/// The directory that holds the views.
pub(super) fn parent(views: &Path) -> &Path {
    match views.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Makes a directory's entries durable.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(generation: u64) -> Mark {
        Mark {
            cluster: ClusterId([0xC1; 16]),
            position: LogPosition(0x0102_0304),
            generation,
            stamp: 5,
            heads: 6,
            boot: BootId([0xB0; 16]),
            clean: true,
        }
    }

    #[test]
    fn a_mark_is_these_bytes() {
        let hex: String = mark(3)
            .encode()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(
            hex,
            "77776d61726b0d0a0101c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c10403020100000000030000000000000005000000000000000600000000000000b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b02148e6d1"
        );
        assert_eq!(Mark::decode(&mark(3).encode()), Some(mark(3)));
    }

    #[test]
    fn the_newest_readable_mark_counts_and_a_torn_one_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let views = dir.path().join("views");
        assert_eq!(Mark::read(&views).unwrap(), None);
        for generation in 1..=4 {
            mark(generation).write(&views).unwrap();
            assert_eq!(Mark::read(&views).unwrap(), Some(mark(generation)));
        }
        let newest = path(&views, 0);
        let mut bytes = fs::read(&newest).unwrap();
        bytes[30] ^= 1;
        fs::write(&newest, bytes).unwrap();
        assert_eq!(Mark::read(&views).unwrap(), Some(mark(3)));
        fs::write(path(&views, 1), b"short").unwrap();
        assert_eq!(Mark::read(&views).unwrap(), None);
        Mark::remove(&views).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_unknown_boot_is_never_the_same() {
        assert!(!BootId::default().is_same(BootId::default()));
        let boot = BootId([1; 16]);
        assert!(boot.is_same(boot));
    }
}

//! Everything the log does to a disk, so that tests can lose, tear and reorder what was not synced.
//!
//! One directory. [`RealDisk`] writes directly (`O_DIRECT`, each write durable by `RWF_DSYNC`), which
//! was measured at a tenth of the CPU of buffered writes; where the file system does not know direct I/O
//! it writes through the cache and calls `fdatasync`, with the same promises, and says so once.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One directory of segment files.
pub trait Disk: Send + Sync + 'static {
    /// The names of all files in it.
    ///
    /// # Errors
    /// What the system reports.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Creates a file of `bytes` bytes whose room is taken at once where the system can do that. Neither
    /// its content nor its name is durable before it is written and synced.
    ///
    /// # Errors
    /// What the system reports; no room is met here or while the file is filled.
    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// What the system reports.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Removes a name; durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// What the system reports.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes names created and removed so far durable.
    ///
    /// # Errors
    /// What the system reports.
    fn sync_dir(&self) -> io::Result<()>;
    /// How much room the file system has left.
    ///
    /// # Errors
    /// What the system reports.
    fn free_bytes(&self) -> io::Result<u64>;
    /// What offsets and lengths of reads and writes must be multiples of; a power of two, at least 4096.
    fn write_unit(&self) -> u32;
    /// Why writes do not go directly to the device, if they do not.
    fn fallback(&self) -> Option<String>;
}

/// An open file of a [`Disk`]. Offsets and lengths are multiples of the write unit, memory is aligned.
pub trait DiskFile: Send + Sync {
    /// Fills `into`; what lies behind the end of the file reads as zeros.
    ///
    /// # Errors
    /// What the system reports.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
    /// Writes all bytes; durable only after [`DiskFile::sync`].
    ///
    /// # Errors
    /// What the system reports; then nothing is known about the range.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Writes all bytes; they are durable when it returns.
    ///
    /// # Errors
    /// What the system reports; then nothing is known about the range. Never to be tried again.
    fn write_at_synced(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything written so far durable, length included.
    ///
    /// # Errors
    /// What the system reports. Never to be tried again.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of the file system.
#[derive(Debug)]
pub struct RealDisk {
    directory: PathBuf,
    fallback: Option<String>,
    is_writable: bool,
}

/// Units smaller than a page gain nothing, and every device met so far takes a page.
const WRITE_UNIT: u32 = 4096;
const PROBE: &str = "direct-io.probe";

impl RealDisk {
    /// Opens a directory, creating it if need be, and finds out whether it takes direct I/O.
    ///
    /// # Errors
    /// When the directory cannot be created or written.
    pub fn open(directory: impl Into<PathBuf>) -> io::Result<Self> {
        let directory = directory.into();
        std::fs::create_dir_all(&directory)?;
        let fallback = direct::probe(&directory)?;
        Ok(Self {
            directory,
            fallback,
            is_writable: true,
        })
    }

    /// A directory that is only looked at: nothing is created in it, files are opened for reading, and
    /// reads go through the cache. For [`super::Log::inspect`].
    #[must_use]
    pub fn read_only(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            fallback: Some("opened for reading only".to_owned()),
            is_writable: false,
        }
    }

    fn open_file(&self, name: &str, create: bool) -> io::Result<RealFile> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(self.is_writable)
            .create_new(create);
        let direct = self.fallback.is_none();
        if direct {
            direct::ask(&mut options);
        }
        let file = options.open(self.directory.join(name))?;
        Ok(RealFile { file, direct })
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.open_file(name, true)?;
        if let Err(error) = direct::allocate(&file.file, bytes) {
            // Not left behind half made; the first error is the one to report.
            let _ = self.remove(name);
            return Err(error);
        }
        Ok(Arc::new(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(self.open_file(name, false)?))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.directory.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.directory)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn write_unit(&self) -> u32 {
        WRITE_UNIT
    }

    fn fallback(&self) -> Option<String> {
        self.fallback.clone()
    }
}

struct RealFile {
    file: File,
    direct: bool,
}

impl DiskFile for RealFile {
    fn read_at(&self, mut offset: u64, mut into: &mut [u8]) -> io::Result<()> {
        while !into.is_empty() {
            match self.file.read_at(into, offset) {
                Ok(0) => {
                    into.fill(0);
                    return Ok(());
                }
                Ok(read) => {
                    offset += read as u64;
                    into = into.get_mut(read..).unwrap_or_default();
                    // A direct read that ends off a unit ended with the file.
                    if self.direct && read % WRITE_UNIT as usize != 0 {
                        into.fill(0);
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn write_at_synced(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.direct {
            direct::write_synced(&self.file, offset, bytes)
        } else {
            self.file.write_all_at(bytes, offset)?;
            self.file.sync_data()
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

#[cfg(target_os = "linux")]
mod direct {
    use std::io::IoSlice;
    use std::os::unix::fs::OpenOptionsExt;

    use rustix::fs::{FallocateFlags, OFlags, fallocate};
    use rustix::io::{Errno, ReadWriteFlags, pwritev2};

    use super::super::buffer::AlignedBuffer;
    use super::*;

    pub(super) fn ask(options: &mut OpenOptions) {
        options.custom_flags(OFlags::DIRECT.bits().cast_signed());
    }

    /// Writes one unit directly and durably; `Some(why)` when the file system does not take that.
    pub(super) fn probe(directory: &Path) -> io::Result<Option<String>> {
        let path = directory.join(PROBE);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        // What a plain file cannot do either is an error, not a reason for the other way of writing.
        drop(options.open(&path)?);
        ask(&mut options);
        let unit = AlignedBuffer::new(WRITE_UNIT as usize);
        let outcome = options
            .open(&path)
            .and_then(|file| write_synced(&file, 0, unit.bytes()));
        std::fs::remove_file(&path)?;
        match outcome {
            Ok(()) => Ok(None),
            Err(error) if error.raw_os_error() == Some(Errno::NOSPC.raw_os_error()) => Ok(None),
            Err(error) => Ok(Some(format!(
                "{} does not take direct synced writes ({error}); writing through the cache with fdatasync",
                directory.display()
            ))),
        }
    }

    pub(super) fn allocate(file: &File, bytes: u64) -> io::Result<()> {
        match fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(bytes),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(super) fn write_synced(file: &File, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match pwritev2(file, &[IoSlice::new(bytes)], offset, ReadWriteFlags::DSYNC) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    bytes = bytes.get(written..).unwrap_or_default();
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
mod direct {
    use super::*;

    pub(super) fn ask(_options: &mut OpenOptions) {}

    pub(super) fn probe(_directory: &Path) -> io::Result<Option<String>> {
        Ok(Some("this system has no direct I/O".to_owned()))
    }

    pub(super) fn allocate(file: &File, bytes: u64) -> io::Result<()> {
        file.set_len(bytes)
    }

    pub(super) fn write_synced(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        file.write_all_at(bytes, offset)?;
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer::AlignedBuffer;
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_rest_reads_as_zeros() {
        let directory = tempfile::tempdir().unwrap();
        for fallback in [None, Some("asked for".to_owned())] {
            let mut disk = RealDisk::open(directory.path().join("log")).unwrap();
            disk.fallback = disk.fallback.or(fallback);
            let file = disk.create("a", 16384).unwrap();
            let mut unit = AlignedBuffer::new(4096);
            unit.bytes_mut().fill(7);
            file.write_at_synced(4096, unit.bytes()).unwrap();
            file.sync().unwrap();
            let mut read = AlignedBuffer::new(32768);
            read.bytes_mut().fill(9);
            disk.open("a")
                .unwrap()
                .read_at(0, read.bytes_mut())
                .unwrap();
            assert!(read.bytes()[..4096].iter().all(|b| *b == 0));
            assert!(read.bytes()[4096..8192].iter().all(|b| *b == 7));
            assert!(read.bytes()[8192..].iter().all(|b| *b == 0));
            assert_eq!(disk.list().unwrap(), ["a"]);
            disk.remove("a").unwrap();
            disk.sync_dir().unwrap();
            assert!(disk.list().unwrap().is_empty());
            assert!(disk.free_bytes().unwrap() > 0);
        }
    }
}

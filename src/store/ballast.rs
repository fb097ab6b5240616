//! Room kept for the views, given back when the disk is full so that a checkpoint can still be written
//! and segments be freed by it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use super::error::ViewsError;

/// A file that only takes up room.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
    bytes: u64,
}

impl Ballast {
    /// The ballast of `bytes` beside the views; on disk only after [`Ballast::load`].
    #[must_use]
    pub fn new(views: &Path, bytes: u64) -> Self {
        let mut name = views.file_name().unwrap_or_default().to_os_string();
        name.push(".ballast");
        Self {
            path: views.with_file_name(name),
            bytes,
        }
    }

    /// Takes the room, if it is not taken yet.
    ///
    /// # Errors
    /// [`ViewsError::is_disk_full`] where there is none: try again later, nothing is lost.
    pub fn load(&self) -> Result<(), ViewsError> {
        let load = || {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&self.path)?;
            if file.metadata()?.len() >= self.bytes {
                return Ok(());
            }
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, self.bytes) {
                Ok(()) => Ok(()),
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                    fill(&file, self.bytes)
                }
                Err(fault) => Err(io::Error::from(fault)),
            }
        };
        load().map_err(|fault| {
            let _ = fs::remove_file(&self.path);
            ViewsError::io("taking the ballast", &self.path, fault)
        })
    }

    /// Gives the room back. Answers whether there was any.
    ///
    /// # Errors
    /// What the system said.
    pub fn drop_it(&self) -> Result<bool, ViewsError> {
        match fs::remove_file(&self.path) {
            Ok(()) => Ok(true),
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(fault) => Err(ViewsError::io("dropping the ballast", &self.path, fault)),
        }
    }
}

fn fill(mut file: &File, bytes: u64) -> io::Result<()> {
    io::copy(&mut io::Read::take(io::repeat(0), bytes), &mut file)?;
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn ballast_takes_real_room_once_and_gives_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = Ballast::new(&dir.path().join("views"), 1 << 20);
        ballast.load().unwrap();
        ballast.load().unwrap();
        let file = fs::metadata(dir.path().join("views.ballast")).unwrap();
        assert_eq!(file.len(), 1 << 20);
        assert!(file.blocks() * 512 >= 1 << 20);
        assert!(ballast.drop_it().unwrap());
        assert!(!ballast.drop_it().unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

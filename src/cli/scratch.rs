//! A directory of one command's own, gone with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::exit::CliError;

/// A temporary directory; removed when dropped.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Makes it where the system keeps temporary files.
    pub(super) fn new(purpose: &str) -> Result<Self, CliError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|fault| CliError::Failed(format!("no randomness: {fault}")))?;
        let name = format!("waterwheel-{purpose}-{:016x}", u64::from_le_bytes(random));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).map_err(|fault| failed(&path, &fault))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Copies files and directories into it.
    pub(super) fn copy(&self, from: &Path, name: &str) -> Result<(), CliError> {
        copy(from, &self.0.join(name)).map_err(|fault| failed(from, &fault))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is left to whoever tidies temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn failed(path: &Path, fault: &io::Error) -> CliError {
    CliError::Failed(format!("{}: {fault}", path.display()))
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return fs::copy(from, to).map(drop);
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_copied_is_there_until_it_is_dropped() {
        let from = tempfile::tempdir().unwrap();
        fs::create_dir(from.path().join("deep")).unwrap();
        fs::write(from.path().join("deep/file"), b"x").unwrap();
        let scratch = Scratch::new("test").unwrap();
        scratch.copy(from.path(), "copy").unwrap();
        let path = scratch.path().to_owned();
        assert_eq!(fs::read(path.join("copy/deep/file")).unwrap(), b"x");
        drop(scratch);
        assert!(!path.exists());
    }
}

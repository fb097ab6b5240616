//! A data directory that nobody needs afterwards: for the tests of whoever embeds a broker.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Config;

/// A directory that is removed when the last who holds it lets go: the configuration, its clones, and the
/// brokers started from them.
#[derive(Debug, Clone)]
pub struct Temporary(Arc<Directory>);

#[derive(Debug)]
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed is left to whoever tidies temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The same directory, not one like it.
impl PartialEq for Temporary {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Temporary {}

impl Temporary {
    /// A path nobody has, where the system keeps temporary files. The broker makes the directory.
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Without randomness, process and count still tell those of this system's life apart.
        let random = getrandom::u64().unwrap_or(0);
        let name = format!("waterwheel-{}-{count}-{random:016x}", std::process::id());
        Self(Arc::new(Directory(std::env::temp_dir().join(name))))
    }

    fn path(&self) -> &Path {
        &self.0.0
    }
}

impl Config {
    /// A small broker for a test: a directory of its own that is gone with it, no listener (its clients
    /// are in the same process), little memory and small segments. Change what the test is about:
    ///
    /// ```
    /// # actix_rt::System::new().block_on(async {
    /// use waterwheel::{Broker, Config};
    /// let config = Config {
    ///     retention_check_ms: 100,
    ///     ..Config::temporary()
    /// };
    /// // A clone keeps the directory, so that the broker can be started again on what it left.
    /// let broker = Broker::start(config.clone()).await?;
    /// broker.stop().await;
    /// let broker = Broker::start(config).await?;
    /// # broker.stop().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn temporary() -> Self {
        let temporary = Temporary::new();
        Self {
            data: temporary.path().to_owned(),
            temporary: Some(temporary),
            listen: None,
            arbiters: 1,
            memory_bytes: 64 << 20,
            views_cache_bytes: 4 << 20,
            segment_bytes: 8 << 20,
            flush_bytes_max: 2 << 20,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_another_one_and_all_are_valid() {
        let (one, other) = (Config::temporary(), Config::temporary());
        one.check().unwrap();
        assert_ne!(one.data, other.data);
    }

    #[test]
    fn the_directory_goes_with_its_last_holder() {
        let config = Config::temporary();
        std::fs::create_dir(&config.data).unwrap();
        std::fs::write(config.data.join("file"), b"x").unwrap();
        let (clone, path) = (config.clone(), config.data.clone());
        drop(config);
        assert!(path.exists());
        drop(clone);
        assert!(!path.exists());
    }
}

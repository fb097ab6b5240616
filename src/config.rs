//! Every knob.
use std::net::SocketAddr;
use std::path::PathBuf;
/// Settings.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Config {
    pub data: PathBuf, pub listen: Option<SocketAddr>, pub cert: Option<PathBuf>, pub key: Option<PathBuf>,
    pub crash_at: Option<String>, pub connections_max: u32, pub batch_bytes_max: u32, pub readers_per_connection_max: u32,
    pub segment_bytes: u64, pub flush_bytes_max: u32, pub producers_per_partition_max: u32, pub views_cache_bytes: u64,
    pub checkpoint_bytes: u64, pub checkpoint_ms: u64, pub retention_check_ms: u64, pub producer_state_ms: u64,
    pub standing_mailbox: usize, pub partition_mailbox: usize,
}
/// Error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);
#[allow(missing_docs, clippy::missing_errors_doc)]
impl Config {
    pub fn check(&self) -> Result<(), ConfigError> { Ok(()) }
    pub fn arbiters_effective(&self) -> usize { 1 }
    pub fn tail_cache_bytes_effective(&self) -> usize { 64<<20 }
    pub fn admission_bytes_effective(&self) -> u64 { 64<<20 }
    pub fn credit_bytes_max(&self) -> u64 { 8<<20 }
}

//! Every knob of the broker: its unit in its name, its default, its bounds, and the relations between
//! them, checked once before anything is opened.
//!
//! A [`Config`] is a value: nothing is read from the surroundings unless asked to. `waterwheel serve`
//! asks in this order, the later winning: defaults, a file of `name = value` lines (`#` begins a
//! comment), the environment (`WATERWHEEL_` and the name in capitals), flags.
//!
//! - K1: a value outside its bounds, or one that contradicts another, is refused with a sentence that
//!   says what to write instead.
//! - K2: what the broker may hold in memory at a time (batches let in and not yet durable, recent
//!   batches, cached views) fits the budget, with a quarter of it left for connections and the rest.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::domain::batch::BATCH_BYTES_CEILING;
use crate::wire::frame::FRAME_OVERHEAD_BYTES_MAX;

/// What a client's window for deliveries on one connection may be, in bytes: what QUIC lets through
/// unread, so that credit decides and not flow control.
const CREDIT_BYTES_MAX: u64 = 8 << 20;
/// The unit segments are made of, in bytes.
const SEGMENT_UNIT_BYTES: u64 = 4096;
/// What one producer takes of a partition's snapshot at most, in bytes: its row with a full window, the
/// entry's header, and its name in the head.
const PRODUCER_SNAPSHOT_BYTES_MAX: u32 = 3072;
/// What the rest of a partition's snapshot takes at most.
const SNAPSHOT_REST_BYTES_MAX: u32 = 4096;
/// Flushes' worth of bytes that may wait for the disk.
const FLUSHES_QUEUED: u64 = 3;
/// More arbiters than this only get in each other's way.
const ARBITERS_AUTO_MAX: usize = 16;

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Nothing is called that.
    #[error("there is no setting {0}; `waterwheel serve --help` lists them")]
    Unknown(String),
    /// Not a number.
    #[error("{name} must be a whole number, not {value:?}")]
    Number {
        /// The setting.
        name: &'static str,
        /// What was written.
        value: String,
    },
    /// Outside its bounds.
    #[error("{name} must be between {min} and {max}, not {value}")]
    Bounds {
        /// The setting.
        name: &'static str,
        /// What was written.
        value: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// It contradicts another.
    #[error("{0}")]
    Relation(String),
    /// A line of a file is no setting.
    #[error("{}:{line}: expected `name = value`", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A file cannot be read.
    #[error("{}: {why}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
}

macro_rules! knobs {
    ($($(#[doc = $doc:literal])+ $name:ident: $kind:ty = $default:expr, $min:expr, $max:expr;)+) => {
        /// Every setting of a broker.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Config {
            /// The data directory. Default `waterwheel-data`.
            pub data: PathBuf,
            /// Where to listen for QUIC; port 0 takes a free one, `None` serves in process only.
            /// Default `127.0.0.1:7411`.
            pub listen: Option<SocketAddr>,
            /// The server's certificate and its intermediates, a PEM file. Default: a development
            /// certificate made in the data directory.
            pub cert: Option<PathBuf>,
            /// The certificate's private key, a PEM file; given together with `cert`.
            pub key: Option<PathBuf>,
            /// For the crash test only: the named point, `NAME` or `NAME:N`, at whose Nth passing the
            /// process ends at once. From `WATERWHEEL_CRASH_AT`. Default none.
            pub crash_at: Option<String>,
            $(
                $(#[doc = $doc])+
                #[doc = ""]
                #[doc = concat!("Default `", stringify!($default), "`, from `", stringify!($min), "` to `", stringify!($max), "`.")]
                pub $name: $kind,
            )+
        }

        impl Default for Config {
            fn default() -> Self {
                Self {
                    data: PathBuf::from("waterwheel-data"),
                    listen: Some(SocketAddr::from(([127, 0, 0, 1], 7411))),
                    cert: None,
                    key: None,
                    crash_at: None,
                    $($name: $default,)+
                }
            }
        }

        impl Config {
            /// The numbers among the settings, by name.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),+];

            /// Sets a number by its name, underscores allowed in the value.
            ///
            /// # Errors
            /// An unknown name, or a value that is no number or out of its bounds.
            pub fn set(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
                $(if name == stringify!($name) {
                    let number: u64 = value.trim().replace('_', "").parse().map_err(|_| {
                        ConfigError::Number { name: stringify!($name), value: value.to_owned() }
                    })?;
                    bound(stringify!($name), number, $min, $max)?;
                    self.$name = <$kind>::try_from(number).unwrap_or(<$kind>::MAX);
                    return Ok(());
                })+
                Err(ConfigError::Unknown(name.to_owned()))
            }

            fn check_bounds(&self) -> Result<(), ConfigError> {
                $(bound(stringify!($name), u64::try_from(self.$name).unwrap_or(u64::MAX), $min, $max)?;)+
                Ok(())
            }
        }
    };
}

knobs! {
    /// Threads that serve sessions and partitions; 0 takes one for every two cores.
    arbiters: u32 = 0, 0, 64;
    /// Bytes the broker may hold for its clients at a time: the budget the next few are cut from.
    memory_bytes: u64 = 512 << 20, 64 << 20, 1 << 40;
    /// Bytes of batches let in and not yet durable, over all connections; 0 takes a quarter of the
    /// budget. A sender waits when they are used up. No more than three flushes' worth of them is past
    /// its turn and queued for the disk, so that what is written next is chosen late.
    admission_bytes: u64 = 0, 0, 1 << 40;
    /// Bytes of recent batches kept for readers that are near the end; 0 takes an eighth of the budget.
    tail_cache_bytes: u64 = 0, 0, 1 << 40;
    /// Bytes of sled's page cache.
    views_cache_bytes: u64 = 16 << 20, 1 << 20, 1 << 36;
    /// Size of a segment file in bytes, a multiple of 4096. An existing log keeps its own.
    segment_bytes: u64 = 64 << 20, 1 << 20, 1 << 40;
    /// The most one flush of the log writes, in bytes.
    flush_bytes_max: u32 = 8 << 20, 64 << 10, 1 << 30;
    /// The largest batch taken from a producer, in bytes.
    batch_bytes_max: u32 = 1 << 20, 4096, BATCH_BYTES_CEILING as u64;
    /// Connections served at a time; more are refused with a code.
    connections_max: u32 = 10_000, 1, 1_000_000;
    /// Readers open on one connection at a time.
    readers_per_connection_max: u32 = 10_000, 1, 100_000;
    /// Producers remembered per partition for telling repeats; new ones are refused beyond it. Never
    /// more than one per 3072 bytes of `flush_bytes_max`: they are restated together.
    producers_per_partition_max: u32 = 2500, 1, 1_000_000;
    /// How long an idle producer is remembered, in milliseconds.
    producer_state_ms: u64 = 7 * 24 * 3_600_000, 1000, 366 * 24 * 3_600_000;
    /// A checkpoint is taken after this many bytes of log...
    checkpoint_bytes: u64 = 256 << 20, 1 << 20, 1 << 40;
    /// ...or after this many milliseconds, whichever comes first.
    checkpoint_ms: u64 = 5000, 10, 3_600_000;
    /// How often retention is looked at, in milliseconds.
    retention_check_ms: u64 = 5000, 10, 3_600_000;
    /// Messages the mailbox of a partition takes from those that ask.
    partition_mailbox: usize = 256, 1, 1 << 20;
    /// Messages the mailbox of a standing actor (commit, directory, checkpoint...) takes from those
    /// that ask.
    standing_mailbox: usize = 1024, 16, 1 << 20;
}

fn bound(name: &'static str, value: u64, min: u64, max: u64) -> Result<(), ConfigError> {
    match (min..=max).contains(&value) {
        true => Ok(()),
        false => Err(ConfigError::Bounds {
            name,
            value,
            min,
            max,
        }),
    }
}

impl Config {
    /// Reads `name = value` lines.
    ///
    /// # Errors
    /// A file that cannot be read, a line that is no setting, or what [`Config::set`] refuses.
    pub fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|why| ConfigError::File {
            path: path.to_path_buf(),
            why: why.to_string(),
        })?;
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let (name, value) = line.split_once('=').ok_or_else(|| ConfigError::Line {
                path: path.to_path_buf(),
                line: number + 1,
            })?;
            self.set(name.trim(), value.trim())?;
        }
        Ok(())
    }

    /// Takes `WATERWHEEL_<NAME>` for every number, and `WATERWHEEL_CRASH_AT`, from `variable`, which
    /// is [`std::env::var`] but in tests.
    ///
    /// # Errors
    /// What [`Config::set`] refuses.
    pub fn read_environment(
        &mut self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<(), ConfigError> {
        for name in Self::NAMES {
            if let Some(value) = variable(&format!("WATERWHEEL_{}", name.to_uppercase())) {
                self.set(name, &value)?;
            }
        }
        if let Some(point) = variable("WATERWHEEL_CRASH_AT") {
            self.crash_at = Some(point);
        }
        Ok(())
    }

    /// Checks every bound and every relation.
    ///
    /// # Errors
    /// The first that does not hold, with what to write instead.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_bounds()?;
        let refuse = |why: String| Err(ConfigError::Relation(why));
        if self.cert.is_some() != self.key.is_some() {
            return refuse("--cert and --key go together: give both or neither".to_owned());
        }
        let frame = u64::from(self.batch_bytes_max) + FRAME_OVERHEAD_BYTES_MAX as u64;
        if u64::from(self.flush_bytes_max) < frame {
            return refuse(format!(
                "flush_bytes_max must hold the largest batch: write at least {frame}, or a smaller \
                 batch_bytes_max"
            ));
        }
        let least = 3 * u64::from(self.flush_bytes_max) + 24 * SEGMENT_UNIT_BYTES;
        if self.segment_bytes < least || !self.segment_bytes.is_multiple_of(SEGMENT_UNIT_BYTES) {
            let least = least.next_multiple_of(SEGMENT_UNIT_BYTES);
            return refuse(format!(
                "segment_bytes must be a multiple of {SEGMENT_UNIT_BYTES} and hold three flushes: \
                 write at least {least}, or a smaller flush_bytes_max"
            ));
        }
        // One on its way to the disk, one arriving.
        if self.admission_bytes_effective() < 2 * frame {
            return refuse(format!(
                "admission_bytes must let the largest batch in, twice: write at least {}",
                2 * frame
            ));
        }
        let held = self
            .admission_bytes_effective()
            .saturating_add(self.tail_cache_bytes_effective() as u64)
            .saturating_add(self.views_cache_bytes);
        let room = self.memory_bytes / 4 * 3;
        if held > room {
            return refuse(format!(
                "admission_bytes, tail_cache_bytes and views_cache_bytes together take {held} of the \
                 {room} that memory_bytes leaves them: write a memory_bytes of at least {}",
                held.div_ceil(3).saturating_mul(4)
            ));
        }
        Ok(())
    }

    /// How many arbiters there are.
    #[must_use]
    pub fn arbiters_effective(&self) -> usize {
        match usize::try_from(self.arbiters) {
            Ok(given) if given > 0 => given,
            // The other half is for the commit actor, the store and whoever else lives here.
            _ => std::thread::available_parallelism()
                .map_or(1, |cores| (cores.get() / 2).clamp(1, ARBITERS_AUTO_MAX)),
        }
    }

    /// Bytes of batches let in and not yet durable.
    #[must_use]
    pub fn admission_bytes_effective(&self) -> u64 {
        match self.admission_bytes {
            0 => self.memory_bytes / 4,
            given => given,
        }
    }

    /// The part of them that may be queued for the disk: one flush on its way, one behind it and one
    /// being gathered. More would only make everybody wait longer.
    #[must_use]
    pub fn queued_bytes_max(&self) -> u64 {
        let flushes = FLUSHES_QUEUED * u64::from(self.flush_bytes_max);
        flushes.min(self.admission_bytes_effective() / 2)
    }

    /// The part of them that may be arriving, or whole and waiting for its turn.
    #[must_use]
    pub fn arriving_bytes_max(&self) -> u64 {
        self.admission_bytes_effective() - self.queued_bytes_max()
    }

    /// Bytes of recent batches kept.
    #[must_use]
    pub fn tail_cache_bytes_effective(&self) -> usize {
        let bytes = match self.tail_cache_bytes {
            0 => self.memory_bytes / 8,
            given => given,
        };
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Producers remembered per partition: what was asked for, but no more than a partition's snapshot,
    /// which is one flush, has room for.
    #[must_use]
    pub fn producers_per_partition_effective(&self) -> u32 {
        let room = self.flush_bytes_max.saturating_sub(SNAPSHOT_REST_BYTES_MAX);
        self.producers_per_partition_max
            .min((room / PRODUCER_SNAPSHOT_BYTES_MAX).max(1))
    }

    /// The most credit all readers of one connection may hold, in bytes.
    #[must_use]
    pub fn credit_bytes_max(&self) -> u64 {
        CREDIT_BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_agree_with_each_other() {
        Config::default().check().unwrap();
        let batch_bytes_max = Config::default().batch_bytes_max as usize;
        assert_eq!(
            batch_bytes_max,
            crate::domain::batch::BATCH_BYTES_MAX_DEFAULT
        );
        assert!(Config::default().arbiters_effective() >= 1);
    }

    /// A run that is too large is refused, and a partition that cannot restate holds its segments.
    #[test]
    fn a_partitions_snapshot_fits_one_flush_whatever_is_configured() {
        use crate::domain::commit::ENTRY_OVERHEAD_BYTES;
        use crate::domain::id::{
            Offset, ProducerEpoch, ProducerId, ProducerSequence, RecordNumber,
        };
        use crate::domain::partition::Head;
        use crate::domain::partition::producers::{
            ProducerRow, ProducerTable, StoredBatch, WINDOW_BATCHES,
        };
        use crate::domain::partition::rows::snapshot_drafts;
        use crate::domain::time::WallMs;

        let config = Config {
            flush_bytes_max: 512 << 10,
            producers_per_partition_max: 1_000_000,
            ..Config::default()
        };
        let batch = StoredBatch {
            first_sequence: ProducerSequence(u64::MAX),
            count: u32::MAX,
            first_offset: Offset(u64::MAX),
            first_number: RecordNumber(u64::MAX),
            appended: WallMs(i64::MIN),
        };
        let row = ProducerRow {
            epoch: ProducerEpoch(u32::MAX),
            next_sequence: ProducerSequence(u64::MAX),
            last_used: WallMs(i64::MIN),
            window: std::iter::repeat_n(batch, WINDOW_BATCHES).collect(),
        };
        let mut table = ProducerTable::default();
        for id in 0..u64::from(config.producers_per_partition_effective()) {
            table.restore(ProducerId(u64::MAX - id), row.clone());
        }
        let bytes: u64 = snapshot_drafts(&Head::default(), &table)
            .iter()
            .map(|draft| draft.body.len() as u64 + ENTRY_OVERHEAD_BYTES)
            .sum();
        assert!(bytes < u64::from(config.flush_bytes_max) - 1024, "{bytes}");
        let asked = Config::default().producers_per_partition_max;
        assert_eq!(Config::default().producers_per_partition_effective(), asked);
    }

    #[test]
    fn every_name_can_be_set_and_is_bounded() {
        for name in Config::NAMES {
            let mut config = Config::default();
            let refused = config.set(name, "18446744073709551615").unwrap_err();
            assert!(matches!(refused, ConfigError::Bounds { .. }), "{refused}");
            assert!(refused.to_string().contains(name));
            let refused = config.set(name, "much").unwrap_err();
            assert!(refused.to_string().contains("whole number"), "{refused}");
            assert_eq!(config, Config::default());
        }
        let refused = Config::default().set("segment_size", "1").unwrap_err();
        assert_eq!(refused, ConfigError::Unknown("segment_size".to_owned()));
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("waterwheel.conf");
        std::fs::write(
            &path,
            "# small\ncheckpoint_ms = 2_000 # often\n\narbiters=3\n",
        )
        .unwrap();
        let mut config = Config::default();
        config.read_file(&path).unwrap();
        assert_eq!(
            (config.checkpoint_ms, config.arbiters_effective()),
            (2000, 3)
        );
        let environment = |name: &str| match name {
            "WATERWHEEL_CHECKPOINT_MS" => Some("100".to_owned()),
            "WATERWHEEL_CRASH_AT" => Some("mid-flush:3".to_owned()),
            _ => None,
        };
        config.read_environment(environment).unwrap();
        assert_eq!((config.checkpoint_ms, config.arbiters), (100, 3));
        assert_eq!(config.crash_at.as_deref(), Some("mid-flush:3"));
        std::fs::write(&path, "arbiters=3\nnonsense\n").unwrap();
        let refused = config.read_file(&path).unwrap_err().to_string();
        assert!(
            refused.ends_with(":2: expected `name = value`"),
            "{refused}"
        );
    }

    /// One contradiction at a time, each answered with the number that would do.
    #[test]
    fn contradictions_say_what_to_write_instead() {
        type Bend = fn(&mut Config);
        let cases: [(Bend, &str); 6] = [
            (|config| config.cert = Some("server.pem".into()), "--key"),
            (
                |config| config.flush_bytes_max = 1 << 20,
                "at least 1114112",
            ),
            (
                |config| config.segment_bytes = 16 << 20,
                "at least 25264128",
            ),
            (|config| config.segment_bytes += 1, "a multiple of 4096"),
            (
                |config| config.admission_bytes = 4096,
                "admission_bytes must let",
            ),
            (
                |config| config.admission_bytes = 1 << 30,
                "memory_bytes of at least 1543503872",
            ),
        ];
        for (bend, expected) in cases {
            let mut config = Config::default();
            bend(&mut config);
            let refused = config.check().unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
        }
        let bent = Config {
            connections_max: 0,
            ..Config::default()
        };
        assert!(matches!(bent.check(), Err(ConfigError::Bounds { .. })));
    }
}

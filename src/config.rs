//! Every knob of the broker: its unit in its name, its default, its bounds, and the relations between
//! them, checked once before anything is opened.
//!
//! A [`Config`] is a value: nothing is read from the surroundings unless asked to. [`Settings`] asks, as
//! `waterwheel serve` does: defaults, a TOML file, the environment, flags, the later stronger.
//!
//! - K1: a value outside its bounds, or one that contradicts another, is refused with a sentence that
//!   says what to write instead.
//! - K2: what the broker may hold in memory at a time (batches let in and not yet durable, recent
//!   batches, cached views) fits the budget, with a quarter of it left for connections and the rest.

mod error;
pub mod human;
mod knob;
mod settings;
mod temporary;

use std::net::SocketAddr;
use std::path::PathBuf;

#[doc(hidden)]
pub use temporary::Temporary;

use crate::domain::batch::BATCH_BYTES_CEILING;
use crate::domain::id::ClusterId;
use crate::wire::frame::FRAME_OVERHEAD_BYTES_MAX;

pub use error::ConfigError;
pub use knob::{Knob, KnobKind, Unit};
pub use settings::{InForce, LogFormat, Origin, Settings};

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
            /// The cluster the data directory must belong to, and the one a new directory is given: a
            /// wrong volume is refused. Default none: whichever it belongs to.
            pub cluster: Option<ClusterId>,
            /// The server's certificate and its intermediates, a PEM file. Default: a development
            /// certificate made in the data directory.
            pub cert: Option<PathBuf>,
            /// The certificate's private key, a PEM file; given together with `cert`.
            pub key: Option<PathBuf>,
            /// The authority that vouches for clients, a PEM file: whoever shows no certificate of its is
            /// refused. Default none: nobody is asked for one.
            pub client_ca: Option<PathBuf>,
            /// Whether an address that is not loopback may be listened on without `client_ca`: whoever
            /// reaches it may then read and write everything. Default false.
            pub insecure_open: bool,
            /// For the crash test only: the named point, `NAME` or `NAME:N`, at whose Nth passing the
            /// process ends at once. From `WATERWHEEL_CRASH_AT`. Default none.
            #[doc(hidden)]
            pub crash_at: Option<String>,
            /// Removes the data directory afterwards: see [`Config::temporary`]. Default none.
            #[doc(hidden)]
            pub temporary: Option<Temporary>,
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
                    cluster: None,
                    cert: None,
                    key: None,
                    client_ca: None,
                    insecure_open: false,
                    crash_at: None,
                    temporary: None,
                    $($name: $default,)+
                }
            }
        }

        impl Config {
            /// The numbers among the settings: unit (in the name), default and bounds.
            const NUMBERS: &'static [Knob] = &[$(Knob {
                name: stringify!($name),
                doc: &[$($doc),+],
                kind: KnobKind::Number { default: $default, min: $min, max: $max },
            }),+];

            /// Sets a number by its name; whether there is one of that name.
            fn set_number(&mut self, name: &str, value: &str) -> Result<bool, ConfigError> {
                $(if name == stringify!($name) {
                    let number = knob::parse_number(stringify!($name), value)?;
                    bound(stringify!($name), number, $min, $max)?;
                    self.$name = <$kind>::try_from(number).unwrap_or(<$kind>::MAX);
                    return Ok(true);
                })+
                Ok(false)
            }

            fn number(&self, name: &str) -> Option<u64> {
                $(if name == stringify!($name) {
                    return Some(u64::try_from(self.$name).unwrap_or(u64::MAX));
                })+
                None
            }

            fn check_bounds(&self) -> Result<(), ConfigError> {
                $(bound(stringify!($name), u64::try_from(self.$name).unwrap_or(u64::MAX), $min, $max)?;)+
                Ok(())
            }
        }
    };
}

/// What a partition or group adds to the write that decides a transaction, at most.
const TRANSACTION_PARTICIPANT_BYTES_MAX: u32 = 256;

knobs! {
    /// Threads that serve sessions and partitions; 0 takes one for every two cores.
    arbiters: u32 = 0, 0, 64;
    /// Bytes the broker may hold for its clients at a time: the budget the next few are cut from.
    memory_bytes: u64 = 512 << 20, 64 << 20, 1 << 40;
    /// Bytes of batches let in and not yet durable, over all connections; 0 takes a quarter of the
    /// budget. A sender waits when they are used up. No more than three flushes' worth of them is past
    /// its turn and queued for the disk, so that what is written next is chosen late.
    admission_bytes: u64 = 0, 0, 1 << 40;
    /// Bytes of recent batches kept: half for readers near the end, a quarter of what was read last for
    /// groups that go through a backlog together, a quarter of batches whose records are delivered one by
    /// one; 0 takes an eighth of the budget.
    tail_cache_bytes: u64 = 0, 0, 1 << 40;
    /// Bytes of delayed records (and of what tells where they lie) read ahead of their time, so that
    /// timers that fire in another order than they were written in are not late; 0 takes an eighth of
    /// the budget, at most 64 MiB.
    read_ahead_bytes: u64 = 0, 0, 1 << 36;
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
    /// How long a transaction without check-back may stay open, in milliseconds; then it is rolled back.
    transaction_duration_ms: u32 = 60_000, 100, 24 * 3_600_000;
    /// Transactions one session may have open at a time.
    transactions_per_session_max: u32 = 100_000, 1, 1_000_000;
    /// Partitions and groups one transaction may touch. Never more than one per 256 bytes of
    /// `flush_bytes_max`: its decision is one write.
    transaction_participants_max: u32 = 1000, 1, 100_000;
    /// Time between two questions for a half message's outcome, in milliseconds.
    transaction_check_ms: u32 = 30_000, 10, 24 * 3_600_000;
    /// Questions for its outcome that were heard before a half message is rolled back as expired.
    transaction_checks_max: u16 = 15, 1, 1000;
    /// Members one consumer group may have.
    group_members_max: u32 = 10_000, 1, 1_000_000;
    /// Subscriptions one consumer group may have.
    group_subscriptions_max: u32 = 1000, 1, 100_000;
    /// Records of one group that may wait for a retry, a transaction or their key, and be leased one by
    /// one in the modes without an order: at the bound nothing more is leased until some are settled.
    /// Never more than fit half of `flush_bytes_max` with their reasons.
    group_waiting_max: u32 = 150_000, 1, 10_000_000;
    /// Records of one partition that a group may have found or leased and not settled.
    group_window_max: u32 = 16_384, 64, 1_000_000;
    /// The largest filter a subscription may have, in bytes.
    group_filter_bytes_max: u32 = 4096, 1, 4096;
    /// How long a member may settle what it has of a partition that moves to another, in milliseconds.
    group_drain_ms: u32 = 1000, 0, 600_000;
    /// How long a level of priority waits, at most, while higher ones are served, in milliseconds.
    group_ageing_ms: u32 = 1000, 1, 3_600_000;
    /// Delayed records that may wait in one partition of any topic; 0 sets no bound.
    timers_max: u64 = 0, 0, 1 << 40;
    /// How far ahead a record may be delayed in any topic, in milliseconds; 0 sets no bound.
    delay_ms_max: u64 = 0, 0, 36_600 * 86_400_000;
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
    /// Every setting that files, the environment and flags may give the broker, as it is documented.
    pub fn knobs() -> impl Iterator<Item = &'static Knob> {
        knob::TEXTS.iter().chain(Self::NUMBERS)
    }

    /// Sets any setting by its name. Sizes and spans may be written with a unit (`64MiB`, `5s`) or as
    /// numbers of the unit in the name, with underscores.
    ///
    /// # Errors
    /// An unknown name, or a value that makes no sense there or is out of its bounds.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        match self.set_number(name, value)? || self.set_text(name, value)? {
            true => Ok(()),
            false => Err(ConfigError::unknown(name, Self::knobs())),
        }
    }

    /// Checks every bound and every relation.
    ///
    /// # Errors
    /// The first that does not hold, with what to write instead.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_bounds()?;
        let refuse = |why: String| Err(ConfigError::Relation(why));
        self.check_trust()?;
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
            .saturating_add(self.read_ahead_bytes_effective())
            .saturating_add(self.views_cache_bytes);
        let room = self.memory_bytes / 4 * 3;
        if held > room {
            return refuse(format!(
                "admission_bytes, tail_cache_bytes, read_ahead_bytes and views_cache_bytes together \
                 take {held} of the {room} that memory_bytes leaves them: write a memory_bytes of at \
                 least {}",
                held.div_ceil(3).saturating_mul(4)
            ));
        }
        Ok(())
    }

    /// Who may come in.
    fn check_trust(&self) -> Result<(), ConfigError> {
        let refuse = |why: String| Err(ConfigError::Relation(why));
        if self.cert.is_some() != self.key.is_some() {
            return refuse(
                "cert and key go together: give both (--cert, --key) or neither".to_owned(),
            );
        }
        match self.listen {
            Some(listen)
                if !listen.ip().to_canonical().is_loopback()
                    && self.client_ca.is_none()
                    && !self.insecure_open =>
            {
                refuse(format!(
                    "other machines can reach {listen}, and nobody would be asked who he is: give \
                     client_ca (--client-ca certs/ca.pem; `waterwheel certs --host NAME` makes it), or let \
                     everybody in by insecure_open (--insecure-open), or listen on 127.0.0.1"
                ))
            }
            _ => Ok(()),
        }
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

    /// Bytes of delayed records read ahead of their time.
    #[must_use]
    pub fn read_ahead_bytes_effective(&self) -> u64 {
        match self.read_ahead_bytes {
            0 => (self.memory_bytes / 8).min(64 << 20),
            given => given,
        }
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

    /// Of these, bytes of batches as they were written.
    #[must_use]
    pub fn tail_bytes(&self) -> usize {
        self.tail_cache_bytes_effective() - self.read_cache_bytes() - self.opened_cache_bytes()
    }

    /// Of these, bytes of what was read last for consumers that go through a backlog together.
    #[must_use]
    pub fn read_cache_bytes(&self) -> usize {
        self.tail_cache_bytes_effective() / 4
    }

    /// Of these, bytes of batches that records are taken out of one by one.
    #[must_use]
    pub fn opened_cache_bytes(&self) -> usize {
        self.tail_cache_bytes_effective() / 4
    }

    /// Producers remembered per partition: what was asked for, but no more than a partition's snapshot,
    /// which is one flush, has room for.
    #[must_use]
    pub fn producers_per_partition_effective(&self) -> u32 {
        let room = self.flush_bytes_max.saturating_sub(SNAPSHOT_REST_BYTES_MAX);
        self.producers_per_partition_max
            .min((room / PRODUCER_SNAPSHOT_BYTES_MAX).max(1))
    }

    /// What fits a flush of the log beside its headers.
    #[must_use]
    pub fn snapshot_bytes_max(&self) -> u64 {
        u64::from(self.flush_bytes_max).saturating_sub(u64::from(self.flush_bytes_max / 16))
    }

    /// Limits of consumer groups, as their actors take them.
    #[must_use]
    pub fn group_limits(&self) -> crate::domain::group::Limits {
        crate::domain::group::Limits {
            members_max: self.group_members_max,
            subscriptions_max: self.group_subscriptions_max,
            listed_max: self.group_waiting_max,
            snapshot_bytes_max: self.snapshot_bytes_max(),
            window_max: u64::from(self.group_window_max),
            filter_bytes_max: self.group_filter_bytes_max,
            drain_ms: u64::from(self.group_drain_ms),
            ageing_ms: u64::from(self.group_ageing_ms),
        }
    }

    /// Limits of transactions, as the coordinators take them.
    #[must_use]
    pub fn transaction_limits(&self) -> crate::domain::transaction::Limits {
        let room = (self.flush_bytes_max / TRANSACTION_PARTICIPANT_BYTES_MAX).max(1);
        crate::domain::transaction::Limits {
            open_per_session_max: self.transactions_per_session_max,
            participants_max: self.transaction_participants_max.min(room),
            duration_ms: self.transaction_duration_ms,
            check_interval_ms: self.transaction_check_ms,
            checks_max: self.transaction_checks_max,
            ..crate::domain::transaction::Limits::default()
        }
    }

    /// The most credit all readers of one connection may hold, in bytes.
    #[must_use]
    pub fn credit_bytes_max(&self) -> u64 {
        CREDIT_BYTES_MAX
    }
}

#[cfg(test)]
mod tests;

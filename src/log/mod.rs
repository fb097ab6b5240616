//! The commit log: one sequence of entries in segment files, durable before anybody sees it.
//!
//! In come stamped entries ([`crate::domain::entry::NewEntry`]), a run at a time; out come their places
//! once they are on disk, reads of places, and scans of everything in log order. It is synchronous,
//! blocking code: one writer thread calls [`Log`], any thread reads through [`LogReader`].
//!
//! The layouts are written in the heads of `header` (segment), `flush`, `frame` (entry) and `summary`
//! (the end of a closed segment). A position is segment number x segment bytes + offset; segment numbers
//! are never reused.
//!
//! Invariants
//! - **L1** [`Log::append`] returns `Ok` only when every byte of the run is durable, in one flush.
//! - **L2** Durable bytes never change in place. A failed write or sync is not retried: the log seals,
//!   appends are refused, reads go on, the next opening recovers. (Only through a cache, where a sync
//!   after a failed one proves nothing, does an opening write the last flush again, byte for byte.)
//! - **L3** A flush counts only if its number follows its predecessor's. Bytes that do not count and have
//!   none behind them are a torn tail and are cut; with a later flush behind them they are damage, which
//!   is reported by exact range and stepped over.
//! - **L4** Tied entries lie in one flush; a torn tail takes all or none of them.
//! - **L5** What an earlier life of a recycled file left never counts: flushes, entries and footers name
//!   their position or segment, and no number is used twice.
//! - **L6** A full disk is met when a segment is made ready, never by a write of the log.
//! - **L7** Nothing on disk can make this room panic, or allocate more than a segment holds.
//!
//! After a crash there remains everything that was acknowledged, and perhaps the one run that was being
//! written, whole.

mod active;
mod ahead;
mod buffer;
mod codec;
mod disk;
mod error;
mod extents;
mod flush;
mod frame;
mod header;
mod options;
mod read_pool;
mod reader;
mod recovery;
mod scan;
mod segments;
mod spares;
mod summary;
mod tail_cache;
mod verify;
mod walk;
mod writer;

pub use ahead::{AheadCounts, FetchDone, Fetched, Piece, ReadAhead, Wish};
pub use disk::{Disk, DiskFile, RealDisk};
pub use error::{Damage, DamageReason, LogError, ReadError};
pub use header::{LogIdentity, SegmentNumber};
pub use options::{FactsOf, LogOptions};
pub use read_pool::{ReadDone, ReadPool, Share};
pub use reader::{EntryRead, LogReader};
pub use recovery::{Inspected, Opened};
pub use scan::{Scan, Scanned};
pub use segments::SegmentInfo;
pub use tail_cache::{Attendance, TailCache};
pub use verify::{SegmentReport, Verified, Verify};
pub use writer::{Log, Recycled, Room, RoomLeft, encoded_length};

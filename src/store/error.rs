//! What can go wrong with views, and why they are not to be believed.

use std::io;
use std::path::{Path, PathBuf};

use super::layout::{RowKey, Tree, ValueFault};
use crate::domain::id::OwnerId;

/// The views failed. They are disposable: the caller drops them, destroys the directory and rebuilds
/// from the log, or, where the disk is full, goes on without them until there is room.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ViewsError {
    /// sled refused or found damage.
    #[error("the views' database failed: {0}")]
    Sled(#[from] sled::Error),
    /// sled gave up with a panic, as it does on some damage.
    #[error("the views' database is damaged: {0}")]
    Panicked(String),
    /// A file beside the database failed.
    #[error("{} failed for {}: {source}", .what, .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A row is not what was written.
    #[error("row {}/{}/{}/{} of the views is damaged: {fault}", .tree.name(), .key.owner, .key.kind, .key.id)]
    Row {
        /// In which tree.
        tree: Tree,
        /// Which row.
        key: RowKey,
        /// What is wrong with it.
        fault: ValueFault,
    },
    /// A key is not 17 bytes long.
    #[error("tree {} of the views holds a key that is none", .0.name())]
    Key(Tree),
    /// A write would leave rows without a head.
    #[error("owner {owner} has no head in tree {}: write its head together with its first row", .tree.name())]
    NoHead {
        /// In which tree.
        tree: Tree,
        /// Whose.
        owner: OwnerId,
    },
    /// An earlier failure, distrust, or opening them to look only forbids writing.
    #[error("the views are closed for writing: destroy and rebuild them")]
    Closed,
    /// A row is longer than [`super::layout::ROW_BYTES_MAX`].
    #[error("a row of {0} bytes is longer than the views take; cut it into several")]
    RowTooLong(usize),
}

impl ViewsError {
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            what,
            path: path.to_path_buf(),
            source,
        }
    }

    /// Whether the disk had no room: the views can wait for it, nothing is damaged.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        let (Self::Sled(sled::Error::Io(source)) | Self::Io { source, .. }) = self else {
            return false;
        };
        matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

/// Why views that could be opened are not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Distrust {
    /// There are rows and no readable mark.
    #[error("they have no readable mark")]
    NoMark,
    /// The mark names another cluster.
    #[error("their mark belongs to another cluster")]
    OtherCluster,
    /// The broker was not stopped cleanly and the machine has been started again since, so that what
    /// the kernel held of them may be lost.
    #[error("the broker was not stopped cleanly and the machine has been restarted since")]
    Unclean,
    /// A row is not what was written.
    #[error("row {}/{}/{}/{} is damaged: {fault}", .tree.name(), .key.owner, .key.kind, .key.id)]
    Row {
        /// In which tree.
        tree: Tree,
        /// Which row.
        key: RowKey,
        /// What is wrong with it.
        fault: ValueFault,
    },
    /// A key is not 17 bytes long.
    #[error("tree {} holds a key that is none", .0.name())]
    Key(Tree),
    /// An owner's rows are not the ones its head counts.
    #[error("the rows of owner {owner} in tree {} do not add up to its head", .tree.name())]
    Owner {
        /// In which tree.
        tree: Tree,
        /// Whose.
        owner: OwnerId,
    },
    /// The heads are not the ones the mark counts: a whole owner is missing, or views and mark are not
    /// of one time.
    #[error("the owners do not add up to the mark")]
    Heads,
}

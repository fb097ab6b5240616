//! Golden bytes: rows, deltas and snapshots are on disk, their bytes never change.

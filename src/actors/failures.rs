//! How often an owner's actor may fail before it stays down: three times within a minute.

use crate::domain::time::MonotonicMs;

/// Failures within [`FAILURES_WITHIN_MS`] that stop an owner.
pub(in crate::actors) const FAILURES_MAX: usize = 3;
/// See [`FAILURES_MAX`].
pub(in crate::actors) const FAILURES_WITHIN_MS: u64 = 60_000;

/// The failures of one owner that still count.
#[derive(Debug, Default)]
pub(super) struct Failures(Vec<MonotonicMs>);

impl Failures {
    /// Counts one; whether they are too many now.
    pub(super) fn count(&mut self, now: MonotonicMs) -> bool {
        self.0.push(now);
        self.0
            .retain(|at| now.0.saturating_sub(at.0) < FAILURES_WITHIN_MS);
        self.0.len() >= FAILURES_MAX
    }
}

//! Whether the actors that nobody re-creates still live.
//!
//! Directory, commit, store, checkpoint and cleaner own the ground the re-creation of others stands on;
//! when one of them fails, a restart recovers. In: a [`Watched`] that each holds, and that is dropped with
//! it. Out: what failed, for `status` and readiness, and a line in the log the moment it happens. Whoever
//! asks such an actor something is answered `Retry` at once, because the question's reply is dropped.
//!
//! What survives a crash: nothing; every start watches anew.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Watches over the standing actors. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Vigil(Arc<State>);

#[derive(Debug, Default)]
struct State {
    failed: Mutex<Option<&'static str>>,
    over: AtomicBool,
}

/// Held by an actor for as long as it lives.
#[derive(Debug)]
pub struct Watched {
    kind: &'static str,
    vigil: Vigil,
}

impl Vigil {
    /// Watches an actor of this kind.
    #[must_use]
    pub fn watch(&self, kind: &'static str) -> Watched {
        Watched {
            kind,
            vigil: self.clone(),
        }
    }

    /// The broker ends: from now on its actors may.
    pub fn end(&self) {
        self.0.over.store(true, Ordering::Release);
    }

    /// The kind of the first actor that failed.
    #[must_use]
    pub fn failed(&self) -> Option<&'static str> {
        *self.0.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.vigil.0.over.load(Ordering::Acquire) {
            return;
        }
        tracing::error!(
            target: "waterwheel::broker",
            actor = self.kind,
            "a standing actor failed and is not re-created: nothing acknowledged is lost; restart the broker"
        );
        let failed = &self.vigil.0.failed;
        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get_or_insert(self.kind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_fails_is_named_and_an_orderly_end_is_no_failure() {
        let vigil = Vigil::default();
        let (commit, store, cleaner) = (
            vigil.watch("commit"),
            vigil.watch("store"),
            vigil.watch("cleaner"),
        );
        assert_eq!(vigil.failed(), None);
        drop(store);
        drop(commit);
        assert_eq!(vigil.failed(), Some("store"));
        let other = Vigil::default();
        let watched = other.watch("commit");
        other.end();
        drop((watched, cleaner));
        assert_eq!(other.failed(), None);
    }
}

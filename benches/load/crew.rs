//! Many clients at a time: each a future of its own, spread over as many threads as there are cores,
//! each thread with a runtime of its own.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures::future::try_join_all;
use tokio::sync::Barrier;

use super::Outcome;
use super::environment::cores;
use super::quic::server::runtime;

/// Runs `work` once per member, at the same time, and gathers what each comes to, in order of the
/// members. Given up after `within` (H5); the first failure is everybody's.
pub(crate) fn muster<T, W, F>(members: usize, within: Duration, work: W) -> Outcome<Vec<T>>
where
    T: Send,
    W: Fn(usize) -> F + Sync,
    F: Future<Output = Outcome<T>>,
{
    let threads = members.min(cores()).max(1);
    let work = &work;
    let gathered: Outcome<Vec<Vec<(usize, T)>>> = thread::scope(|scope| {
        let hands: Vec<_> = (0..threads)
            .map(|first| {
                scope.spawn(move || {
                    let mine = (first..members).step_by(threads);
                    let mine = mine.map(|member| async move { Ok((member, work(member).await?)) });
                    bounded(within, try_join_all(mine))
                })
            })
            .collect();
        hands
            .into_iter()
            .map(|hand| hand.join().map_err(|_| "a member of the crew panicked")?)
            .collect()
    });
    let mut all: Vec<(usize, T)> = gathered?.into_iter().flatten().collect();
    all.sort_by_key(|(member, _)| *member);
    Ok(all.into_iter().map(|(_, result)| result).collect())
}

/// Runs one future on a runtime of this thread, given up after `within` (H5).
pub(crate) fn bounded<T>(within: Duration, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    runtime()?.block_on(async {
        tokio::time::timeout(within, work)
            .await
            .map_err(|_| format!("it did not end within {within:?}"))?
    })
}

/// Where a crew waits until all of it is ready, whatever thread a member is on.
#[derive(Debug, Clone)]
pub(crate) struct Line(Arc<Barrier>);

impl Line {
    /// For so many.
    pub(crate) fn of(members: usize) -> Self {
        Self(Arc::new(Barrier::new(members)))
    }

    /// Returns when everybody is here.
    pub(crate) async fn wait(&self) {
        self.0.wait().await;
    }
}

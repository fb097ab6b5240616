//! Many clients at a time: each a future of its own, spread over as many threads as there are cores,
//! each thread with a runtime of its own.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures::future::try_join_all;
use tokio::sync::{Barrier, watch};

use super::Outcome;
use super::environment::cores;
use super::quic::server::runtime;

/// A member gave up because another one had failed.
#[derive(Debug, thiserror::Error)]
#[error("another member of the crew failed")]
struct Deserted;

/// Runs `work` once per member, at the same time, and gathers what each comes to, in order of the
/// members. Given up after `within` (H5); the first failure ends everybody's work and is what is told.
pub(crate) fn muster<T, W, F>(members: usize, within: Duration, work: W) -> Outcome<Vec<T>>
where
    T: Send,
    W: Fn(usize) -> F + Sync,
    F: Future<Output = Outcome<T>>,
{
    let threads = members.min(cores()).max(1);
    let work = &work;
    let (alarm, calm) = watch::channel(false);
    let alarm = &alarm;
    let hands: Vec<Outcome<Vec<(usize, T)>>> = thread::scope(|scope| {
        let hands: Vec<_> = (0..threads)
            .map(|first| {
                let mut calm = calm.clone();
                scope.spawn(move || {
                    let mine = (first..members).step_by(threads);
                    let mine = mine.map(|member| async move { Ok((member, work(member).await?)) });
                    let done = bounded(within, async move {
                        tokio::select! {
                            biased;
                            done = try_join_all(mine) => done,
                            // The sender outlives the threads: this ends by an alarm alone.
                            _ = calm.wait_for(|alarmed| *alarmed) => Err(Deserted.into()),
                        }
                    });
                    if done.is_err() {
                        alarm.send_replace(true);
                    }
                    done
                })
            })
            .collect();
        let joined = hands.into_iter().map(|hand| hand.join());
        joined
            .map(|done| done.unwrap_or_else(|_| Err("a member of the crew panicked".into())))
            .collect()
    });
    gather(hands)
}

/// Everything in order, or the failure that was not another's echo.
fn gather<T>(hands: Vec<Outcome<Vec<(usize, T)>>>) -> Outcome<Vec<T>> {
    let (mut all, mut failure) = (Vec::new(), None);
    for hand in hands {
        match hand {
            Ok(done) => all.extend(done),
            Err(echo) if echo.is::<Deserted>() => failure = failure.or(Some(echo)),
            Err(cause) => return Err(cause),
        }
    }
    if let Some(echo) = failure {
        return Err(echo);
    }
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

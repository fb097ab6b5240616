//! Keeps one live connection to the broker, for everybody who uses the client.
//!
//! In: how to dial. Out: the current [`Link`], or that there is none just now. One task per client: it
//! dials again when a connection ends, and dials a second one beside a connection that somebody waits
//! on and that has been silent too long; whichever is heard first stays. The task ends when nobody
//! looks at the switchboard any more.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::connection::Dialer;
use super::error::ConnectError;
use super::link::{Link, RequestError};
use crate::wire::hello::Ping;

/// So long may a connection be silent while an answer is waited for, and so long may an attempt to
/// connect, before another one is made beside it.
const PATIENCE: Duration = Duration::from_millis(250);

/// How often a connection that somebody waits on is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// The longest pause between attempts that fail at once.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// Attempts under way at the same time.
const ATTEMPTS_MAX: usize = 4;

/// Where the current link is found.
pub(crate) type Switchboard = watch::Receiver<Option<Arc<Link>>>;

/// Dials once (within `timeout`), then keeps the connection.
pub(crate) async fn start(
    dialer: Arc<Dialer>,
    timeout: Duration,
) -> Result<Switchboard, ConnectError> {
    let first = tokio::time::timeout(timeout, dial_patiently(&dialer, Persistence::UntilCertain));
    let link = match first.await {
        Ok(link) => Arc::new(link?),
        Err(_) => {
            return Err(ConnectError::Unreachable {
                address: dialer.address().to_owned(),
                reason: format!("no answer within {} ms", timeout.as_millis()),
            });
        }
    };
    let (sender, receiver) = watch::channel(Some(Arc::clone(&link)));
    tokio::spawn(keep(dialer, sender, link));
    Ok(receiver)
}

/// Waits for a link other than `stale`.
pub(crate) async fn next_link(
    board: &mut Switchboard,
    stale: Option<&Arc<Link>>,
) -> Option<Arc<Link>> {
    loop {
        let current = board.borrow_and_update().clone();
        if let Some(link) = current
            && stale.is_none_or(|stale| !Arc::ptr_eq(stale, &link))
        {
            return Some(link);
        }
        // The task that keeps the connection has ended: there will be no other.
        board.changed().await.ok()?;
    }
}

/// What to do about errors that repeating is not likely to mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Persistence {
    /// Report them.
    UntilCertain,
    /// Go on: the broker was there once.
    ForEver,
}

/// Attempts, one more whenever the last has had its time, until one succeeds.
async fn dial_patiently(dialer: &Dialer, persistence: Persistence) -> Result<Link, ConnectError> {
    let mut attempts = FuturesUnordered::new();
    let mut pause = Duration::from_millis(10);
    loop {
        if attempts.len() < ATTEMPTS_MAX {
            attempts.push(attempt(dialer));
        }
        tokio::select! {
            Some(ended) = attempts.next() => match ended {
                Ok(link) => return Ok(link),
                Err(error) => {
                    if persistence == Persistence::UntilCertain && !error.is_retriable() {
                        return Err(error);
                    }
                    tracing::debug!(%error, "cannot connect");
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            },
            () = sleep(PATIENCE) => {}
        }
    }
}

async fn attempt(dialer: &Dialer) -> Result<Link, ConnectError> {
    let transport = dialer.dial().await?;
    let address = dialer.address().to_owned();
    Link::open(transport).await.map_err(|error| match error {
        RequestError::Refused(refusal) => ConnectError::Refused(refusal),
        RequestError::Lost(reason) => ConnectError::Unreachable { address, reason },
        RequestError::Protocol(reason) => ConnectError::Protocol { address, reason },
    })
}

async fn keep(dialer: Arc<Dialer>, board: watch::Sender<Option<Arc<Link>>>, first: Arc<Link>) {
    let mut link = first;
    loop {
        let replacement = tokio::select! {
            () = board.closed() => break,
            reason = link.transport().closed() => {
                tracing::debug!(reason, "the connection ended");
                None
            }
            replacement = overtake(&dialer, &link) => Some(replacement),
        };
        let next = match replacement {
            Some(next) => next,
            None => {
                board.send_replace(None);
                tokio::select! {
                    () = board.closed() => return,
                    next = dial_patiently(&dialer, Persistence::ForEver) => match next {
                        Ok(next) => next,
                        Err(error) => {
                            tracing::error!(%error, "gave up connecting");
                            return;
                        }
                    },
                }
            }
        };
        link.transport().close("replaced");
        link = Arc::new(next);
        board.send_replace(Some(Arc::clone(&link)));
    }
    link.transport().close("done");
    dialer.wait_idle().await;
}

/// Watches a link that somebody waits on; where it stays silent, a second one is dialled, which is the
/// answer if it gets through first.
async fn overtake(dialer: &Dialer, link: &Link) -> Link {
    loop {
        link.until_expecting().await;
        if let Some(other) = while_expecting(dialer, link).await {
            return other;
        }
    }
}

async fn while_expecting(dialer: &Dialer, link: &Link) -> Option<Link> {
    let mut heard = link.transport().heard();
    let mut last = Instant::now();
    while link.is_expecting() {
        sleep(LOOK).await;
        let now_heard = link.transport().heard();
        if now_heard != heard {
            (heard, last) = (now_heard, Instant::now());
            continue;
        }
        // Whoever is there acknowledges a ping at once, however long the answer itself takes.
        let _ = link.send(&Ping {}, 0);
        if last.elapsed() < PATIENCE {
            continue;
        }
        tracing::debug!("the connection is silent: dialling a second one");
        let until_heard = async {
            while link.transport().heard() == heard {
                sleep(LOOK).await;
            }
        };
        tokio::select! {
            other = dial_patiently(dialer, Persistence::ForEver) => return other.ok(),
            () = until_heard => last = Instant::now(),
        }
        heard = link.transport().heard();
    }
    None
}

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

/// So long may a connection be silent on which nobody waits: longer than between two keep-alives.
const SILENCE: Duration = Duration::from_secs(7);

/// The longest pause between attempts that fail at once.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// How long an attempt lives at least, where another follows it: what it repeats it repeats ever more
/// slowly, and would find a broker that comes back late.
const ATTEMPT_LIFE: Duration = Duration::from_secs(1);

/// Where the current link is found.
pub(crate) type Switchboard = watch::Receiver<Option<Arc<Link>>>;

/// Ends the task that keeps a connection.
#[derive(Debug)]
pub(crate) struct Hold {
    close: watch::Sender<bool>,
    /// Closed when the task has ended.
    ended: watch::Receiver<()>,
}

impl Hold {
    /// Closes the connection for everybody, and waits until the broker was told.
    pub(crate) async fn close(&self) {
        self.close.send_replace(true);
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }
}

/// Dials once (within `timeout`), then keeps the connection.
pub(crate) async fn start(
    dialer: Arc<Dialer>,
    timeout: Duration,
) -> Result<(Switchboard, Hold), ConnectError> {
    let started = Instant::now();
    let mut last = None;
    let dialling = dial_until_certain(&dialer, timeout, &mut last);
    let link = match tokio::time::timeout(timeout, dialling).await {
        Ok(link) => Arc::new(link?),
        Err(_) => {
            return Err(last.unwrap_or_else(|| ConnectError::Unreachable {
                address: dialer.address().to_owned(),
                reason: format!("no answer within {} ms", timeout.as_millis()),
            }));
        }
    };
    let life = ATTEMPT_LIFE.max(4 * started.elapsed());
    let (sender, receiver) = watch::channel(Some(Arc::clone(&link)));
    let (close, mut closing) = watch::channel(false);
    let (end, ended) = watch::channel(());
    tokio::spawn(async move {
        let _end = end;
        let redialer = Redialer { dialer, life };
        // Whoever drops every clone ends it by the switchboard, which nobody looks at then.
        let close = async {
            if closing.wait_for(|close| *close).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        keep(&redialer, sender, link, close).await;
        redialer.dialer.wait_idle().await;
    });
    Ok((receiver, Hold { close, ended }))
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

/// Attempts, one more whenever the last has had its time, until one succeeds or fails for a reason that
/// repeating is not likely to mend. What else went wrong is left in `last`.
async fn dial_until_certain(
    dialer: &Dialer,
    life: Duration,
    last: &mut Option<ConnectError>,
) -> Result<Link, ConnectError> {
    let mut attempts = FuturesUnordered::new();
    let mut pause = Duration::from_millis(10);
    attempts.push(attempt(dialer, life));
    loop {
        tokio::select! {
            Some(ended) = attempts.next() => match ended {
                Ok(link) => return Ok(link),
                Err(error) if error.is_retriable() => {
                    tracing::debug!(%error, "cannot connect");
                    *last = Some(error);
                    if attempts.is_empty() {
                        sleep(pause).await;
                        pause = (pause * 2).min(PAUSE_MAX);
                        attempts.push(attempt(dialer, life));
                    }
                }
                Err(error) => return Err(error),
            },
            () = sleep(PATIENCE) => attempts.push(attempt(dialer, life)),
        }
    }
}

/// Dials a broker that was there once.
#[derive(Debug)]
struct Redialer {
    dialer: Arc<Dialer>,
    life: Duration,
}

impl Redialer {
    /// Goes on until it succeeds, whatever happens; none where there will never be a broker again.
    async fn dial(&self) -> Option<Link> {
        loop {
            match dial_until_certain(&self.dialer, self.life, &mut None).await {
                Ok(link) => return Some(link),
                Err(ConnectError::Stopped) => return None,
                Err(error) => {
                    tracing::warn!(%error, "cannot connect again, trying on");
                    sleep(ATTEMPT_LIFE).await;
                }
            }
        }
    }
}

/// One attempt: handshake and hello, within `life`.
async fn attempt(dialer: &Dialer, life: Duration) -> Result<Link, ConnectError> {
    let address = dialer.address().to_owned();
    let open = async {
        let transport = dialer.dial().await?;
        Link::open(transport).await.map_err(|error| match error {
            RequestError::Refused(refusal) => ConnectError::Refused(refusal),
            RequestError::Lost(reason) => ConnectError::Unreachable { address, reason },
            RequestError::Protocol(reason) => ConnectError::Protocol { address, reason },
        })
    };
    match tokio::time::timeout(life, open).await {
        Ok(opened) => opened,
        Err(_) => Err(ConnectError::Unreachable {
            address: dialer.address().to_owned(),
            reason: "no answer".to_owned(),
        }),
    }
}

async fn keep(
    redialer: &Redialer,
    board: watch::Sender<Option<Arc<Link>>>,
    first: Arc<Link>,
    close: impl Future<Output = ()>,
) {
    let mut link = first;
    tokio::pin!(close);
    loop {
        let replacement = tokio::select! {
            () = board.closed() => break,
            () = &mut close => break,
            reason = link.transport().closed() => {
                tracing::debug!(reason, "the connection ended");
                None
            }
            replacement = overtake(redialer, &link) => Some(replacement),
        };
        let next = match replacement {
            Some(next) => next,
            None => {
                board.send_replace(None);
                tokio::select! {
                    () = board.closed() => return,
                    () = &mut close => return,
                    next = redialer.dial() => match next {
                        Some(next) => next,
                        None => return,
                    },
                }
            }
        };
        link.transport().close("replaced");
        link = Arc::new(next);
        board.send_replace(Some(Arc::clone(&link)));
    }
    link.transport().close("done");
}

/// Watches a link: where it stays silent though somebody waits, or though keep-alives should be
/// answered, a second one is dialled, which is the answer if it gets through first.
async fn overtake(redialer: &Redialer, link: &Link) -> Link {
    loop {
        let heard = link.transport().heard();
        if heard.is_none() {
            return std::future::pending().await;
        }
        let silent = tokio::select! {
            () = link.until_expecting() => false,
            () = sleep(SILENCE) => link.transport().heard() == heard,
        };
        if let Some(other) = while_suspicious(redialer, link, silent).await {
            return other;
        }
    }
}

async fn while_suspicious(redialer: &Redialer, link: &Link, mut silent: bool) -> Option<Link> {
    let mut heard = link.transport().heard();
    let mut last = Instant::now();
    while silent || link.is_expecting() {
        sleep(LOOK).await;
        let now_heard = link.transport().heard();
        if now_heard != heard {
            (heard, last, silent) = (now_heard, Instant::now(), false);
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
            other = redialer.dial() => return other,
            () = until_heard => (last, silent) = (Instant::now(), false),
        }
        heard = link.transport().heard();
    }
    None
}

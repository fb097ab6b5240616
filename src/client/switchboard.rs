//! Keeps one live connection to the broker, for everybody who uses the client.
//!
//! In: how to dial. Out: the current [`Link`], or that there is none just now. One task per client: it
//! dials again when a connection ends, and dials a second one beside a connection that somebody waits
//! on and that has been silent too long; whichever is heard first stays. The task ends when nobody
//! looks at the switchboard any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::connection::Dialer;
use super::error::ConnectError;
use super::link::Link;
use super::race::{Patience, Race};
use crate::wire::hello::Ping;

/// So long may a connection be silent while an answer is waited for, and so long may an attempt to
/// connect, before another one is made beside it.
const PATIENCE: Duration = Duration::from_millis(250);

/// How often a connection that somebody waits on is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// So long may a connection be silent on which nobody waits: longer than between two keep-alives.
const SILENCE: Duration = Duration::from_secs(7);

/// The longest wait between attempts where nothing is known of the way to the broker.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Attempts at a first connection under way at a time: of a broker far away the first may be the one.
const FIRST_AT_ONCE: usize = 8;

/// Attempts under way at a time where the way is known.
const AGAIN_AT_ONCE: usize = 2;

/// How long an attempt lives at least, where another follows it.
const ATTEMPT_LIFE: Duration = Duration::from_secs(1);

/// Round trips an attempt is given: two for the handshake, one for hello, and as many to be late.
const ROUND_TRIPS: u32 = 6;

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
    let patience = Patience {
        wait: PATIENCE,
        wait_max: WAIT_MAX,
        life: timeout,
        at_once: FIRST_AT_ONCE,
    };
    let mut race = Race::new(Arc::clone(&dialer), patience);
    let link = match tokio::time::timeout(timeout, race.won()).await {
        Ok(link) => Arc::new(link?),
        Err(_) => {
            return Err(race.last.unwrap_or_else(|| ConnectError::Unreachable {
                address: dialer.address().to_owned(),
                reason: format!("no answer within {} ms", timeout.as_millis()),
            }));
        }
    };
    // The others are given up.
    drop(race);
    let (sender, receiver) = watch::channel(Some(Arc::clone(&link)));
    let (close, mut closing) = watch::channel(false);
    let (end, ended) = watch::channel(());
    tokio::spawn(async move {
        let _end = end;
        // Whoever drops every clone ends it by the switchboard, which nobody looks at then.
        let close = async {
            if closing.wait_for(|close| *close).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        keep(&dialer, sender, link, close).await;
        dialer.wait_idle().await;
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

/// Attempts to reach a broker again that was reached over `link`.
fn again(dialer: &Arc<Dialer>, link: &Link) -> Race {
    let far = link.transport().round_trip() * ROUND_TRIPS;
    let wait = PATIENCE.max(far);
    let patience = Patience {
        wait,
        wait_max: wait,
        life: ATTEMPT_LIFE.max(far * 2),
        at_once: AGAIN_AT_ONCE,
    };
    Race::new(Arc::clone(dialer), patience)
}

/// Goes on until one gets through, whatever happens; none where there will never be a broker again.
async fn insist(race: &mut Race) -> Option<Link> {
    loop {
        match race.won().await {
            Ok(link) => return Some(link),
            Err(ConnectError::Stopped) => return None,
            Err(error) => {
                tracing::warn!(%error, "cannot connect again, trying on");
                sleep(ATTEMPT_LIFE).await;
            }
        }
    }
}

async fn keep(
    dialer: &Arc<Dialer>,
    board: watch::Sender<Option<Arc<Link>>>,
    first: Arc<Link>,
    close: impl Future<Output = ()>,
) {
    let mut link = first;
    tokio::pin!(close);
    loop {
        let mut race = again(dialer, &link);
        let replacement = tokio::select! {
            () = board.closed() => break,
            () = &mut close => break,
            reason = link.transport().closed() => {
                tracing::debug!(reason, "the connection ended");
                None
            }
            replacement = overtake(&mut race, dialer, &link) => Some(replacement),
        };
        let next = match replacement {
            Some(next) => next,
            None => {
                board.send_replace(None);
                // What has been begun beside it goes on, but whoever ended it has just been heard.
                race.begin();
                tokio::select! {
                    () = board.closed() => return,
                    () = &mut close => return,
                    next = insist(&mut race) => match next {
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
async fn overtake(race: &mut Race, dialer: &Arc<Dialer>, link: &Link) -> Link {
    loop {
        let heard = link.transport().heard();
        if heard.is_none() {
            return std::future::pending().await;
        }
        let silent = tokio::select! {
            () = link.until_expecting() => false,
            () = sleep(SILENCE) => link.transport().heard() == heard,
        };
        if let Some(other) = while_suspicious(race, link, silent).await {
            return other;
        }
        *race = again(dialer, link);
    }
}

async fn while_suspicious(race: &mut Race, link: &Link, silent: bool) -> Option<Link> {
    let (heard, since) = (link.transport().heard(), Instant::now());
    while silent || link.is_expecting() {
        sleep(LOOK).await;
        if link.transport().heard() != heard {
            return None;
        }
        // Whoever is there acknowledges a ping at once, however long the answer itself takes.
        let _ = link.send(&Ping {}, 0);
        if since.elapsed() < PATIENCE {
            continue;
        }
        tracing::debug!("the connection is silent: dialling a second one");
        let until_heard = async {
            while link.transport().heard() == heard {
                sleep(LOOK).await;
            }
        };
        tokio::select! {
            other = insist(race) => return other,
            () = until_heard => return None,
        }
    }
    None
}

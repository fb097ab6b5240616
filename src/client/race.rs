//! Attempts to connect, side by side: the first that gets through wins, the others are given up.
//!
//! In: how to dial, and how patient to be. Out: a link.
//!
//! - R1 Another attempt is begun when the last has had its time, because what an attempt repeats it
//!   repeats ever more slowly, and would find a broker that comes back late.
//! - R2 None is begun while one has been answered a moment ago: that broker is there and busy, and every
//!   further attempt would make it busier.
//! - R3 No more than [`Patience::at_once`] are under way; a new one takes the place of the oldest.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::future::{AbortHandle, Abortable, BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use super::connection::Dialer;
use super::error::ConnectError;
use super::link::{Link, RequestError};

/// The first pause after attempts that fail at once, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// How long an answer to an attempt holds up others, in waits (R2).
const ANSWERED_WAITS: u32 = 4;

/// How patient to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// What an attempt is given before another is begun.
    pub(crate) wait: Duration,
    /// The wait doubles up to this.
    pub(crate) wait_max: Duration,
    /// How long an attempt goes on at most.
    pub(crate) life: Duration,
    /// How many may be under way.
    pub(crate) at_once: usize,
}

/// Attempts under way.
pub(crate) struct Race {
    dialer: Arc<Dialer>,
    patience: Patience,
    wait: Duration,
    pause: Duration,
    next: Instant,
    begun: u64,
    running: FuturesUnordered<BoxFuture<'static, Ended>>,
    attempts: VecDeque<Attempt>,
    /// What went wrong last.
    pub(crate) last: Option<ConnectError>,
}

/// Which attempt ended how; none where it was given up.
type Ended = (u64, Option<Result<Link, ConnectError>>);

struct Attempt {
    number: u64,
    begun: Instant,
    answered: Arc<AtomicBool>,
    give_up: AbortHandle,
}

impl std::fmt::Debug for Race {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Race")
            .field("attempts", &self.attempts.len())
            .finish_non_exhaustive()
    }
}

impl Race {
    /// Ready to begin.
    pub(crate) fn new(dialer: Arc<Dialer>, patience: Patience) -> Self {
        Self {
            dialer,
            patience,
            wait: patience.wait,
            pause: PAUSE_MIN,
            next: Instant::now(),
            begun: 0,
            running: FuturesUnordered::new(),
            attempts: VecDeque::new(),
            last: None,
        }
    }

    /// The link that got through; an error where repeating is not likely to mend it. Cancelling loses
    /// nothing: the next call goes on.
    pub(crate) async fn won(&mut self) -> Result<Link, ConnectError> {
        loop {
            let (number, ended) = tokio::select! {
                Some(ended) = self.running.next() => ended,
                () = sleep_until(self.next) => {
                    self.go_on();
                    continue;
                }
            };
            self.attempts.retain(|attempt| attempt.number != number);
            match ended {
                Some(Ok(link)) => return Ok(link),
                Some(Err(error)) if error.is_retriable() => {
                    tracing::debug!(%error, "cannot connect");
                    self.last = Some(error);
                }
                Some(Err(error)) => return Err(error),
                None => {}
            }
            if self.attempts.is_empty() {
                self.next = Instant::now() + self.pause;
                self.pause = (self.pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// Begins another attempt at once: there is a broker that has not heard of the others.
    pub(crate) fn begin(&mut self) {
        while self.attempts.len() >= self.patience.at_once.max(1) {
            if let Some(oldest) = self.attempts.pop_front() {
                oldest.give_up.abort();
            }
        }
        self.begun += 1;
        let (number, answered) = (self.begun, Arc::new(AtomicBool::new(false)));
        let (give_up, given_up) = AbortHandle::new_pair();
        let (dialer, life) = (Arc::clone(&self.dialer), self.patience.life);
        let open = open(dialer, life, Arc::clone(&answered));
        let open = Abortable::new(open, given_up).map(move |ended| (number, ended.ok()));
        self.running.push(open.boxed());
        self.attempts.push_back(Attempt {
            number,
            begun: Instant::now(),
            answered,
            give_up,
        });
        self.next = Instant::now() + self.wait;
        self.wait = (self.wait * 2).min(self.patience.wait_max);
    }

    /// The last attempt has had its time.
    fn go_on(&mut self) {
        let patience = self.wait * ANSWERED_WAITS;
        let answered = self.attempts.iter().any(|attempt| {
            attempt.answered.load(Ordering::Relaxed) && attempt.begun.elapsed() < patience
        });
        if answered {
            self.next = Instant::now() + self.wait;
        } else {
            self.begin();
        }
    }
}

/// One attempt: handshake and hello, within `life`.
async fn open(
    dialer: Arc<Dialer>,
    life: Duration,
    answered: Arc<AtomicBool>,
) -> Result<Link, ConnectError> {
    let address = dialer.address().to_owned();
    let open = async {
        let transport = dialer.dial(&answered).await?;
        let opened = Link::open(transport.clone()).await;
        opened.map_err(|error| match error {
            RequestError::Refused(refusal) => ConnectError::Refused(refusal),
            RequestError::Lost(reason) => dialer
                .untrusted(&transport)
                .unwrap_or(ConnectError::Unreachable { address, reason }),
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

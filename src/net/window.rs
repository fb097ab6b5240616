//! What a connection may have under way towards the broker: a share of the socket all of them fill.
//!
//! What clients of the broker's own machine send lies in one socket's memory until it is read. The window that
//! lets one of them go flat out overflows it when eight do, and what is dropped then is anybody's: a lone record
//! among them comes again after a timeout, and all behind it on its stream waits (`benches/README.md`).
//!
//! - F1 A connection pours once it has brought [`POURS_BYTES`] within a [`TICK`], until it has brought less
//!   than [`CALM_BYTES`] in each of [`CALM_TICKS`]: a disk that stalls does not make a flood look like none.
//! - F2 Several that pour share what the socket holds, each at least [`WINDOW_BYTES_MIN`]. Who does not, or
//!   is alone with it, may have all of [`CONNECTION_RECEIVE_WINDOW_BYTES`] under way.
//! - F3 Over a network what is under way lies on the path, not here: those connections keep their window.
//! - F4 A window takes nothing back: after it became smaller, what the peer was allowed before is owed until as
//!   much has been read. Window and debt together are never more than the largest window.
//! - F5 One stream that is not read must not stand before the others for long: where a tick brought nothing,
//!   there is room for a whole stream's window and as much as others need ([`BLOCKED_BYTES`]).
//!
//! Nothing runs for connections that do not pour.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::endpoint::{CONNECTION_RECEIVE_WINDOW_BYTES, LOOPBACK_STREAM_WINDOW_BYTES, Path};
use crate::transport::Connection;
use crate::transport::socket::SOCKET_BUFFER_BYTES;

/// How often a connection that pours is looked at.
const TICK: Duration = Duration::from_millis(100);
/// What makes one: 10 MB a second.
const POURS_BYTES: usize = 1 << 20;
/// A tick with less is a calm one: what the smallest window brings at a round trip of a tick.
const CALM_BYTES: usize = WINDOW_BYTES_MIN as usize;
/// So many of them end it.
const CALM_TICKS: u32 = 10;
/// Two of the largest datagrams: with less, a connection waits for its window after each.
const WINDOW_BYTES_MIN: u32 = 128 << 10;
/// The window where a tick brought nothing.
const BLOCKED_BYTES: u32 = LOOPBACK_STREAM_WINDOW_BYTES + (256 << 10);
/// By how much a window grows at least, as debt is paid.
const STEP_BYTES: u32 = 1 << 20;

/// How many connections pour, and what they share.
#[derive(Debug, Clone)]
pub struct Pouring(Arc<Pour>);

#[derive(Debug)]
struct Pour {
    count: AtomicUsize,
    shared_bytes: AtomicUsize,
}

impl Default for Pouring {
    fn default() -> Self {
        Self(Arc::new(Pour {
            count: AtomicUsize::new(0),
            shared_bytes: AtomicUsize::new(SOCKET_BUFFER_BYTES),
        }))
    }
}

impl Pouring {
    /// What the system granted the socket, in bytes.
    pub(super) fn share_out(&self, bytes: usize) {
        self.0.shared_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The window of each (F2).
    fn share(&self) -> u32 {
        let count = self.0.count.load(Ordering::Relaxed);
        if count <= 1 {
            return CONNECTION_RECEIVE_WINDOW_BYTES;
        }
        let share = self.0.shared_bytes.load(Ordering::Relaxed) / count;
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        share.clamp(WINDOW_BYTES_MIN, CONNECTION_RECEIVE_WINDOW_BYTES)
    }
}

/// A connection in the count of those that pour.
#[derive(Debug)]
struct Poured(Pouring);

impl Poured {
    fn begin(pouring: &Pouring) -> Self {
        pouring.0.count.fetch_add(1, Ordering::Relaxed);
        Self(pouring.clone())
    }
}

impl Drop for Poured {
    fn drop(&mut self) {
        self.0.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a connection brings, whether it pours (F1), and its window (F4).
#[derive(Debug, Clone, Copy)]
struct Flow {
    since: Instant,
    brought: usize,
    pours: bool,
    calm: u32,
    window: u32,
    owed: u32,
}

impl Flow {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            brought: 0,
            pours: false,
            calm: 0,
            window: CONNECTION_RECEIVE_WINDOW_BYTES,
            owed: 0,
        }
    }

    /// It has brought so many bytes: whether it begins to pour.
    fn brought(&mut self, bytes: usize, now: Instant) -> bool {
        let paid = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.owed = self.owed.saturating_sub(paid);
        if !self.pours && now.duration_since(self.since) >= TICK {
            (self.since, self.brought) = (now, 0);
        }
        self.brought = self.brought.saturating_add(bytes);
        let begins = !self.pours && self.brought >= POURS_BYTES;
        if begins {
            (self.brought, self.pours, self.calm) = (0, true, 0);
        }
        begins
    }

    /// A tick of one that pours has passed: whether it goes on, and what window it should have.
    fn tick(&mut self, share: u32, now: Instant) -> (bool, u32) {
        self.calm = match self.brought < CALM_BYTES {
            true => self.calm + 1,
            false => 0,
        };
        self.pours = self.calm < CALM_TICKS;
        let wanted = match (self.pours, self.brought) {
            (false, _) => CONNECTION_RECEIVE_WINDOW_BYTES,
            (true, 0) => share.max(BLOCKED_BYTES),
            (true, _) => share,
        };
        (self.since, self.brought) = (now, 0);
        (self.pours, wanted)
    }

    /// The new window on the way to the one that is wanted, if it is another.
    fn set(&mut self, wanted: u32) -> Option<u32> {
        let before = self.window;
        if wanted < before {
            self.owed += before - wanted;
            self.window = wanted;
        } else {
            let room = CONNECTION_RECEIVE_WINDOW_BYTES.saturating_sub(self.owed);
            self.window = wanted.min(room).max(before);
        }
        (self.window != before).then_some(self.window)
    }

    /// The window of one that does not pour grows back as its debt is paid.
    fn recover(&mut self) -> Option<u32> {
        let room = CONNECTION_RECEIVE_WINDOW_BYTES.saturating_sub(self.owed);
        let is_worth_it = self.owed == 0 || room.saturating_sub(self.window) >= STEP_BYTES;
        match !self.pours && is_worth_it {
            true => self.set(CONNECTION_RECEIVE_WINDOW_BYTES),
            false => None,
        }
    }
}

/// One connection's window.
#[derive(Debug)]
pub(super) struct Window {
    connection: Connection,
    pouring: Pouring,
    /// Whether it takes part (F3).
    is_local: bool,
    flow: Cell<Flow>,
}

impl Window {
    pub(super) fn new(connection: Connection, pouring: Pouring) -> Rc<Self> {
        let remote = connection.remote();
        Rc::new(Self {
            is_local: remote.is_some_and(|remote| Path::to(remote.ip()) == Path::Loopback),
            connection,
            pouring,
            flow: Cell::new(Flow::new(Instant::now())),
        })
    }

    /// The connection has brought so many bytes.
    pub(super) fn brought(self: &Rc<Self>, bytes: usize) {
        if !self.is_local {
            return;
        }
        let now = Instant::now();
        if self.change(|flow| flow.brought(bytes, now)) {
            let poured = Poured::begin(&self.pouring);
            actix_rt::spawn(Rc::clone(self).keep_share(poured));
        } else if let Some(window) = self.change(Flow::recover) {
            self.connection.set_receive_window(window);
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Flow) -> T) -> T {
        let mut flow = self.flow.get();
        let outcome = change(&mut flow);
        self.flow.set(flow);
        outcome
    }

    /// Keeps the window at its share while the connection pours.
    async fn keep_share(self: Rc<Self>, _poured: Poured) {
        let (mut goes_on, mut wanted) = (true, self.pouring.share());
        loop {
            if let Some(window) = self.change(|flow| flow.set(wanted)) {
                self.connection.set_receive_window(window);
            }
            if !goes_on || self.connection.ended().is_some() {
                return;
            }
            tokio::time::sleep(TICK).await;
            let share = self.pouring.share();
            (goes_on, wanted) = self.change(|flow| flow.tick(share, Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// F2.
    #[test]
    fn those_that_pour_share_what_the_socket_holds() {
        let pouring = Pouring::default();
        let mut all = Vec::new();
        for count in 1..=1000_usize {
            all.push(Poured::begin(&pouring));
            let share = pouring.share() as usize;
            assert!(share >= WINDOW_BYTES_MIN as usize);
            let fits = count > 1 && count * WINDOW_BYTES_MIN as usize <= SOCKET_BUFFER_BYTES;
            assert!(!fits || count * share <= SOCKET_BUFFER_BYTES, "{count}");
        }
        assert_eq!(pouring.share(), WINDOW_BYTES_MIN);
        drop(all);
        assert_eq!(pouring.share(), CONNECTION_RECEIVE_WINDOW_BYTES);
        pouring.share_out(212_992);
        let two = [Poured::begin(&pouring), Poured::begin(&pouring)];
        assert_eq!(pouring.share(), WINDOW_BYTES_MIN, "{two:?}");
    }

    /// quinn's rules of a connection's window, and a peer that sends whatever it may.
    struct Peer {
        window: u64,
        debt: u64,
        allowed: u64,
        read: u64,
    }

    impl Peer {
        fn set(&mut self, window: u64) {
            if window > self.window {
                self.allowed += window - self.window;
            } else {
                self.debt += self.window - window;
            }
            self.window = window;
        }

        fn read(&mut self, bytes: u64) {
            self.read += bytes;
            self.allowed += bytes.saturating_sub(self.debt);
            self.debt = self.debt.saturating_sub(bytes);
        }
    }

    proptest! {
        /// F1, F4, F5 beside a list of all that came since the last tick and quinn's own books.
        #[test]
        fn who_pours_is_told_by_ticks_and_never_has_more_than_the_largest_window_under_way(
            steps in proptest::collection::vec((0..40u64, 0..500_000u64, 0..3u32), 1..400)
        ) {
            let start = Instant::now();
            let (mut flow, mut now, mut pours, mut ticked) = (Flow::new(start), start, false, start);
            let max = u64::from(CONNECTION_RECEIVE_WINDOW_BYTES);
            let mut peer = Peer { window: max, debt: 0, allowed: max, read: 0 };
            let mut came: Vec<(Instant, u64)> = Vec::new();
            let mut calm = 0;
            let within = |came: &[(Instant, u64)], from: Instant| -> u64 {
                came.iter().filter(|(at, _)| *at >= from).map(|(_, bytes)| bytes).sum()
            };
            for (pause, bytes, pourers) in steps {
                now += Duration::from_millis(pause);
                let share = [CONNECTION_RECEIVE_WINDOW_BYTES, 1 << 20, WINDOW_BYTES_MIN][pourers as usize];
                if pours && now - ticked >= TICK {
                    let brought = within(&came, ticked);
                    let (goes_on, wanted) = flow.tick(share, now);
                    calm = if brought < CALM_BYTES as u64 { calm + 1 } else { 0 };
                    pours = calm < CALM_TICKS;
                    prop_assert_eq!(goes_on, pours);
                    prop_assert!(wanted >= share || !pours);
                    prop_assert!(brought > 0 || wanted >= BLOCKED_BYTES);
                    flow.set(wanted).inspect(|window| peer.set(u64::from(*window)));
                    (ticked, came) = (now, Vec::new());
                }
                // In three of four steps as much as it may, in the others nothing.
                let bytes = if pause % 4 == 0 { 0 } else { bytes.min(peer.allowed - peer.read) };
                peer.read(bytes);
                came.push((now, bytes));
                if flow.brought(usize::try_from(bytes).unwrap(), now) {
                    prop_assert!(!pours);
                    prop_assert!(within(&came, now - TICK) >= POURS_BYTES as u64);
                    (pours, calm, ticked, came) = (true, 0, now, Vec::new());
                    flow.set(share).inspect(|window| peer.set(u64::from(*window)));
                } else {
                    flow.recover().inspect(|window| peer.set(u64::from(*window)));
                }
                prop_assert!(pours || within(&came, now - TICK / 2) < 2 * POURS_BYTES as u64);
                prop_assert_eq!(u64::from(flow.window), peer.window);
                prop_assert!(u64::from(flow.owed) >= peer.debt);
                prop_assert!(peer.allowed - peer.read <= max);
                prop_assert!(peer.allowed > peer.read, "it may always send something");
            }
        }
    }
}

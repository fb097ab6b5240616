//! Accepting: every connection goes to an arbiter before its handshake is driven there, at a pace those
//! who are being served do not notice (`Door`).

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix_rt::ArbiterHandle;
use futures::FutureExt;

use super::door::{Entry, Ticket};
use super::endpoint::Listening;
use super::session::{self, Shared};

/// D1: the pause between handshakes while somebody is being served: what a timer resolves.
const PACE: Duration = Duration::from_millis(1);
/// Connections that wait to be let in; of more, the one that has waited longest is refused.
const LOBBY_MAX: usize = 1024;
/// What the endpoint holds at most: the lobby, those outside, and what has just come.
pub const HANDSHAKES_MAX: usize = 2 * LOBBY_MAX;
/// A connection that has waited for so long is asked whether it is still there: clients that hear nothing
/// try again and give the older attempt up, and a handshake is too dear to be made with nobody.
const STALE: Duration = Duration::from_millis(250);

/// Accepts until the endpoint closes, spreading connections over the arbiters in turn.
///
/// The newest comes in first: under a rush of clients that try again, the newest attempt of each is the
/// one that is still wanted, and the rush ends all the sooner.
pub async fn accept(listening: Listening, shared: Arc<Shared>, arbiters: Vec<ArbiterHandle>) {
    let hall = Rc::new(Hall {
        listening,
        shared,
        arbiters,
        outside: RefCell::default(),
        next_arbiter: std::cell::Cell::new(0),
    });
    hall.shared.pouring.share_out(hall.listening.receive_bytes);
    let mut lobby: VecDeque<(Instant, quinn::Incoming)> = VecDeque::new();
    let mut pace = Pace::default();
    loop {
        let next = hall.listening.endpoint.accept();
        let come = match lobby.is_empty() {
            true => match next.await {
                Some(incoming) => Some(incoming),
                None => return,
            },
            false => next.now_or_never().flatten(),
        };
        if let Some(incoming) = come {
            hall.receive(incoming, &mut lobby);
            continue;
        }
        let Some((since, incoming)) = lobby.pop_back() else {
            continue;
        };
        if since.elapsed() >= STALE && incoming.may_retry() {
            // It comes again if it is still there, and is the newest then.
            let _ = incoming.retry();
            tokio::task::yield_now().await;
            continue;
        }
        hall.enter(incoming);
        pace.keep(&hall).await;
    }
}

/// Keeps handshakes apart (D1).
#[derive(Default)]
struct Pace {
    served: u64,
    entered: usize,
}

impl Pace {
    /// Waits until the next may come in.
    async fn keep(&mut self, hall: &Hall) {
        self.entered += 1;
        let served = hall.shared.frames.load(Ordering::Relaxed);
        if served == self.served {
            tokio::task::yield_now().await;
        } else if self.entered >= hall.arbiters.len() {
            tokio::time::sleep(PACE).await;
            (self.entered, self.served) = (0, served);
        }
    }
}

/// Where connections wait to be shown to their arbiter.
struct Hall {
    listening: Listening,
    shared: Arc<Shared>,
    arbiters: Vec<ArbiterHandle>,
    /// Who waits for a turn of its address (D2). Tickets are the door's, which all endpoints would share: with a
    /// second one, each needs a door of its own.
    outside: RefCell<HashMap<Ticket, quinn::Incoming>>,
    next_arbiter: std::cell::Cell<usize>,
}

impl Hall {
    /// Shows a connection to the lobby, or lets it wait outside (D2).
    fn receive(
        self: &Rc<Self>,
        incoming: quinn::Incoming,
        lobby: &mut VecDeque<(Instant, quinn::Incoming)>,
    ) {
        if *self.shared.stopping.borrow() {
            return incoming.refuse();
        }
        let (remote, now) = (incoming.remote_address(), Instant::now());
        let entry = self.shared.manners.door().knock(remote, now);
        match entry {
            Entry::Now => {
                lobby.push_back((now, incoming));
                if lobby.len() > LOBBY_MAX
                    && let Some((_, oldest)) = lobby.pop_front()
                {
                    oldest.refuse();
                }
            }
            Entry::Refused => incoming.refuse(),
            Entry::Waits {
                ticket,
                begins,
                refused,
            } => {
                self.outside.borrow_mut().insert(ticket, incoming);
                self.refuse(refused);
                if let Some(pause) = begins {
                    actix_rt::spawn(Rc::clone(self).take_turns(remote.ip(), pause));
                }
            }
        }
    }

    /// Lets those of an address in that wait outside, one per turn, until nobody does.
    async fn take_turns(self: Rc<Self>, address: IpAddr, pause: Duration) {
        let mut next = Some(pause);
        while let Some(pause) = next {
            tokio::time::sleep(pause).await;
            let turn = self.shared.manners.door().turn(address, Instant::now());
            self.refuse(turn.refused);
            let entering = turn
                .enter
                .and_then(|ticket| self.outside.borrow_mut().remove(&ticket));
            match entering {
                Some(incoming) if *self.shared.stopping.borrow() => incoming.refuse(),
                Some(incoming) => self.enter(incoming),
                None => {}
            }
            next = turn.next;
        }
    }

    fn refuse(&self, tickets: impl IntoIterator<Item = Ticket>) {
        let mut outside = self.outside.borrow_mut();
        for ticket in tickets {
            if let Some(incoming) = outside.remove(&ticket) {
                incoming.refuse();
            }
        }
    }

    fn enter(&self, incoming: quinn::Incoming) {
        let at = self.next_arbiter.get();
        self.next_arbiter.set(at.wrapping_add(1));
        let at = at.checked_rem(self.arbiters.len()).unwrap_or(0);
        let (shared, listening) = (Arc::clone(&self.shared), self.listening.clone());
        // `accept` puts the connection's driver on the runtime that calls it: so the arbiter calls it.
        let serve = move || {
            actix_rt::spawn(session::serve(shared, listening, incoming));
        };
        match self.arbiters.get(at) {
            Some(arbiter) => {
                arbiter.spawn_fn(serve);
            }
            None => serve(),
        }
    }
}

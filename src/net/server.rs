//! Accepting: every connection goes to an arbiter before its handshake is driven there, at a pace those
//! who are being served do not notice ([`Door`]).

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix_rt::ArbiterHandle;

use super::door::Entry;
use super::endpoint::Listening;
use super::session::{self, Shared};

/// D1: the pause between handshakes while somebody is being served: what a timer resolves.
const PACE: Duration = Duration::from_millis(1);

/// Accepts until the endpoint closes, spreading connections over the arbiters in turn.
pub async fn accept(listening: Listening, shared: Arc<Shared>, arbiters: Vec<ArbiterHandle>) {
    let hall = Rc::new(Hall {
        listening,
        shared,
        arbiters,
        turn: std::cell::Cell::new(0),
    });
    let (mut served, mut since_pause) = (0, 0);
    while let Some(incoming) = hall.listening.endpoint.accept().await {
        if *hall.shared.stopping.borrow() {
            incoming.refuse();
            continue;
        }
        match hall.knock(&incoming) {
            Entry::Now => hall.enter(incoming),
            Entry::Refused => {
                incoming.refuse();
                continue;
            }
            Entry::After(pause) => {
                let hall = Rc::clone(&hall);
                actix_rt::spawn(async move {
                    tokio::time::sleep(pause).await;
                    hall.shared.manners.door().released();
                    hall.enter(incoming);
                });
                continue;
            }
        }
        since_pause += 1;
        let now_served = hall.shared.frames.load(Ordering::Relaxed);
        if now_served == served {
            tokio::task::yield_now().await;
        } else if since_pause >= hall.arbiters.len() {
            tokio::time::sleep(PACE).await;
            since_pause = 0;
            served = now_served;
        }
    }
}

/// Where connections wait to be shown to their arbiter.
struct Hall {
    listening: Listening,
    shared: Arc<Shared>,
    arbiters: Vec<ArbiterHandle>,
    turn: std::cell::Cell<usize>,
}

impl Hall {
    fn knock(&self, incoming: &quinn::Incoming) -> Entry {
        let address = incoming.remote_address().ip();
        self.shared.manners.door().knock(address, Instant::now())
    }

    fn enter(&self, incoming: quinn::Incoming) {
        let at = self.turn.get();
        self.turn.set(at.wrapping_add(1));
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

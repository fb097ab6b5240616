//! Connections within the process: what the endpoint is for QUIC.
//!
//! In: a wish to connect, from any thread. Out: the client's side of a connection whose other side is a
//! session like any other, on one of the broker's arbiters. It keeps nothing of the broker alive: once the
//! broker stops or was dropped, it connects no more.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use actix_rt::ArbiterHandle;

use super::session::{self, Shared};
use crate::transport::{Closer, Connection, pair};
use crate::wire::code::Code;

/// Entries of the list of connections before those that have ended are looked for.
const OPEN_MIN: usize = 64;

/// Connects to the broker in this process.
#[derive(Debug)]
pub struct Connector {
    shared: Weak<Shared>,
    arbiters: Vec<ArbiterHandle>,
    turn: AtomicUsize,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    sides: Vec<Closer>,
    prune_at: usize,
    is_closed: bool,
}

impl Connector {
    pub(crate) fn new(shared: &Arc<Shared>, arbiters: Vec<ArbiterHandle>) -> Self {
        Self {
            shared: Arc::downgrade(shared),
            arbiters,
            turn: AtomicUsize::new(0),
            open: Mutex::new(Open {
                sides: Vec::new(),
                prune_at: OPEN_MIN,
                is_closed: false,
            }),
        }
    }

    /// A new connection, taken by the arbiters in turn; none once the broker stops.
    #[must_use]
    pub fn connect(&self) -> Option<Connection> {
        let shared = self.shared.upgrade()?;
        if *shared.stopping.borrow() {
            return None;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let at = turn.checked_rem(self.arbiters.len()).unwrap_or(0);
        let arbiter = self.arbiters.get(at)?;
        let [here, there] = pair();
        if !self.enter(there.closer()) {
            return None;
        }
        let serve = move || {
            actix_rt::spawn(session::serve_local(shared, there));
        };
        arbiter.spawn_fn(serve).then_some(here)
    }

    /// Ends every connection, and makes no more.
    pub(crate) fn close(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.is_closed = true;
        for side in open.sides.drain(..) {
            let code = u32::from(Code::ShuttingDown as u16);
            side.close(code, "the broker is stopping");
        }
    }

    fn enter(&self, side: Option<Closer>) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.sides.len() >= open.prune_at {
            open.sides.retain(|side| !side.is_void());
            open.prune_at = OPEN_MIN.max(open.sides.len() * 2);
        }
        open.sides.extend(side);
        !open.is_closed
    }
}

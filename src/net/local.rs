//! Connections within the process: what the endpoint is for QUIC.
//!
//! In: a wish to connect, from any thread. Out: the client's side of a connection whose other side is a
//! session like any other, on one of the broker's arbiters. It keeps nothing of the broker alive: once the
//! broker stops or was dropped, it connects no more.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use actix_rt::ArbiterHandle;
use tokio::sync::watch;

use super::session::{self, Shared};
use crate::transport::{Connection, pair};
use crate::wire::code::Code;

/// Connects to the broker in this process.
#[derive(Debug)]
pub struct Connector {
    shared: Weak<Shared>,
    arbiters: Vec<ArbiterHandle>,
    turn: AtomicUsize,
    /// Turns true when every connection is to end.
    closed: watch::Sender<bool>,
}

impl Connector {
    pub(crate) fn new(shared: &Arc<Shared>, arbiters: Vec<ArbiterHandle>) -> Self {
        Self {
            shared: Arc::downgrade(shared),
            arbiters,
            turn: AtomicUsize::new(0),
            closed: watch::Sender::new(false),
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
        let mut closed = self.closed.subscribe();
        let serve = move || {
            let closing = there.clone();
            let close = async move {
                // Whether it is said or the broker was dropped: this is the end.
                let _ = closed.wait_for(|closed| *closed).await;
                let code = u32::from(Code::ShuttingDown as u16);
                closing.close(code, "the broker is stopping");
                std::future::pending::<()>().await;
            };
            actix_rt::spawn(async move {
                tokio::select! {
                    () = session::serve_local(shared, there) => {}
                    () = close => {}
                }
            });
        };
        arbiter.spawn_fn(serve).then_some(here)
    }

    /// Ends every connection.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }
}

//! Accepting: every connection goes to an arbiter before its handshake is driven there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use actix_rt::ArbiterHandle;

use super::endpoint::Listening;
use super::session::{self, Shared};

/// Accepts until the endpoint closes, spreading connections over the arbiters in turn.
pub async fn accept(listening: Listening, shared: Arc<Shared>, arbiters: Vec<ArbiterHandle>) {
    let turn = AtomicUsize::new(0);
    while let Some(incoming) = listening.endpoint.accept().await {
        if *shared.stopping.borrow() {
            incoming.refuse();
            continue;
        }
        let at = turn
            .fetch_add(1, Ordering::Relaxed)
            .checked_rem(arbiters.len())
            .unwrap_or(0);
        let (shared, listening) = (Arc::clone(&shared), listening.clone());
        // `accept` puts the connection's driver on the runtime that calls it: so the arbiter calls it.
        let serve = move || {
            actix_rt::spawn(session::serve(shared, listening, incoming));
        };
        match arbiters.get(at) {
            Some(arbiter) => {
                arbiter.spawn_fn(serve);
            }
            None => serve(),
        }
    }
}

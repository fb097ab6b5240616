//! Bytes that may be held at a time, given out to those who wait in turn.
//!
//! In: what a guest wants to bring. Out: a [`Permit`] for it, once there is room. Every guest (a
//! connection) is its own queue and takes its turn ([`Turns`]): one that brings a record now and then
//! does not wait behind the megabytes of those that bring all they can.
//!
//! - A1 Permits out never exceed the total, but for a single one larger than all of it, and for a part
//!   (`SMALL_SHARE`) that small requests may take beyond it.
//! - A2 A guest's requests are admitted in the order they were made.
//! - A3 Nobody is overtaken for being large: while the next in turn does not fit, nothing is given out.
//!   A small request of a guest that has had no more than its part does not wait at all: while others
//!   bring all they can, the total is always used up.
//! - A4 Whoever gives up waiting holds up nobody.
//!
//! What survives a crash: nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::domain::turns::{Share, Turn, Turns};

/// A request of up to this many bytes is small.
const SMALL_BYTES: u64 = 16 * 1024;
/// The part of the total that small requests may take beyond it.
const SMALL_SHARE: u64 = 8;

/// Room for so many bytes.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    total: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    out: u64,
    turns: Turns,
    waiting: BTreeMap<Turn, Waiter>,
}

#[derive(Debug)]
struct Waiter {
    bytes: u64,
    admitted: oneshot::Sender<Permit>,
}

/// Admitted bytes; dropping it gives them back.
#[derive(Debug)]
pub struct Permit {
    room: Admission,
    bytes: u64,
}

/// One of those who take turns.
#[derive(Debug)]
pub struct Guest {
    room: Admission,
    share: Mutex<Share>,
}

impl Admission {
    /// Room for `total` bytes.
    #[must_use]
    pub fn new(total: u64) -> Self {
        Self(Arc::new(Shared {
            total,
            state: Mutex::default(),
        }))
    }

    /// All there may be.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.0.total
    }

    /// What is given out now.
    #[must_use]
    pub fn out_bytes(&self) -> u64 {
        self.state().out
    }

    /// Waits until nothing is given out, and lets nothing more in before.
    pub async fn drained(&self) {
        self.guest().admit(self.0.total).await;
    }

    /// Somebody new, with a turn of his own.
    #[must_use]
    pub fn guest(&self) -> Guest {
        Guest {
            room: self.clone(),
            share: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives out what there is room for. A permit whose waiter is gone comes back by itself, and with it
    /// another call.
    fn give(&self) {
        loop {
            let mut state = self.state();
            let room = self.0.total.saturating_sub(state.out);
            let is_empty = state.out == 0;
            let Some(next) = state.waiting.first_entry() else {
                return;
            };
            // A1: what is larger than all there is goes alone.
            if next.get().bytes > room && !is_empty {
                return;
            }
            let (turn, waiter) = next.remove_entry();
            // A4
            if waiter.admitted.is_closed() {
                continue;
            }
            state.turns.serve(turn);
            state.out = state.out.saturating_add(waiter.bytes);
            drop(state);
            let permit = self.permit(waiter.bytes);
            let _ = waiter.admitted.send(permit);
        }
    }

    fn permit(&self, bytes: u64) -> Permit {
        Permit {
            room: self.clone(),
            bytes,
        }
    }
}

impl Guest {
    /// Waits until so many bytes may be held. Cancelling gives the turn up.
    pub async fn admit(&self, bytes: u64) -> Permit {
        let (admitted, waiting) = oneshot::channel();
        {
            let mut state = self.room.state();
            let mut share = self.share.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = state.turns.take(&mut share, bytes);
            let out = state.out.saturating_add(bytes);
            let total = self.room.0.total;
            let fits = out <= total && state.waiting.is_empty();
            let is_small = bytes <= SMALL_BYTES && state.turns.begins_now(turn);
            if fits || is_small && out <= total + total / SMALL_SHARE {
                state.turns.serve(turn);
                state.out += bytes;
                return self.room.permit(bytes);
            }
            state.waiting.insert(turn, Waiter { bytes, admitted });
        }
        self.room.give();
        match waiting.await {
            Ok(permit) => permit,
            // The room, which outlives its guests, drops no waiter unanswered.
            Err(_) => self.room.permit(0),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        {
            let mut state = self.room.state();
            state.out = state.out.saturating_sub(self.bytes);
        }
        self.room.give();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn now<F: Future>(future: F) -> F::Output {
        match poll(pin!(future)) {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("it waits"),
        }
    }

    #[test]
    fn a_small_request_of_who_asks_seldom_does_not_wait_at_all() {
        let total = 16 * SMALL_BYTES;
        let room = Admission::new(total);
        let (greedy, calm) = (room.guest(), room.guest());
        let held = now(greedy.admit(total));
        let mut next = pin!(greedy.admit(SMALL_BYTES));
        assert!(poll(next.as_mut()).is_pending());
        let lone = now(calm.admit(SMALL_BYTES));
        assert_eq!(room.out_bytes(), total + SMALL_BYTES);
        // What goes on asking waits like everybody else, and so does what would be too much in all.
        let mut second = pin!(calm.admit(SMALL_BYTES));
        assert!(poll(second.as_mut()).is_pending());
        let other = now(room.guest().admit(SMALL_BYTES));
        let late = room.guest();
        let mut late = pin!(late.admit(SMALL_BYTES));
        assert!(poll(late.as_mut()).is_pending());
        drop((held, lone, other));
        assert!(poll(late.as_mut()).is_ready());
        assert!(poll(second.as_mut()).is_ready());
    }

    #[test]
    fn a_lone_record_is_admitted_next_however_much_others_wait() {
        let room = Admission::new(1000);
        let (greedy, calm) = (room.guest(), room.guest());
        let held = now(greedy.admit(1000));
        let mut queue: Vec<_> = (0..5).map(|_| Box::pin(greedy.admit(1000))).collect();
        assert!(
            queue
                .iter_mut()
                .all(|next| poll(next.as_mut()).is_pending())
        );
        let mut lone = pin!(calm.admit(200));
        assert!(poll(lone.as_mut()).is_pending());
        drop(held);
        // A3: it is the lone one's turn, and the next does not fit beside it.
        let Poll::Ready(lone) = poll(lone.as_mut()) else {
            panic!("it waits behind others");
        };
        assert!(
            queue
                .iter_mut()
                .all(|next| poll(next.as_mut()).is_pending())
        );
        assert_eq!(room.out_bytes(), 200);
        drop(lone);
        for next in &mut queue {
            // A2, one by one.
            assert_eq!(room.out_bytes(), 1000);
            assert!(poll(next.as_mut()).is_ready());
        }
        assert_eq!(room.out_bytes(), 0);
    }

    #[test]
    fn who_gives_up_holds_up_nobody() {
        let room = Admission::new(10);
        let (first, second) = (room.guest(), room.guest());
        let held = now(first.admit(10));
        {
            let mut impatient = pin!(first.admit(10));
            assert!(poll(impatient.as_mut()).is_pending());
        }
        let mut other = pin!(second.admit(10));
        assert!(poll(other.as_mut()).is_pending());
        drop(held);
        assert!(poll(other.as_mut()).is_ready());
        assert_eq!(room.out_bytes(), 0);
    }

    #[test]
    fn what_is_larger_than_all_there_is_goes_alone() {
        let room = Admission::new(10);
        let guest = room.guest();
        let small = now(guest.admit(1));
        let mut large = pin!(guest.admit(100));
        assert!(poll(large.as_mut()).is_pending());
        drop(small);
        let Poll::Ready(large) = poll(large.as_mut()) else {
            panic!("it never goes");
        };
        let mut next = pin!(guest.admit(1));
        assert!(poll(next.as_mut()).is_pending());
        drop(large);
        assert!(poll(next.as_mut()).is_ready());
    }
}

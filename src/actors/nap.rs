//! One timer of an actor: set anew it replaces the one before.
//!
//! A future that an actor cancels may run all the same: actix looks at what is cancelled only after it has
//! polled what is due. An actor that then sets its timer again has two, each of which sets another when it
//! fires, and they are never fewer: some hundred of them wake it hundreds of thousands of times a second.
//! So a timer knows its number, and does nothing where it is not the last that was set.

use std::time::Duration;

use actix::{Actor, AsyncContext, Context, SpawnHandle};

/// An actor's timer.
#[derive(Debug, Default)]
pub(super) struct Nap {
    /// Of the one that was set last.
    number: u64,
    handle: Option<SpawnHandle>,
}

impl Nap {
    /// Whether it runs.
    pub(super) fn is_set(&self) -> bool {
        self.handle.is_some()
    }

    /// Stops it.
    pub(super) fn clear<A: Actor<Context = Context<A>>>(&mut self, ctx: &mut Context<A>) {
        if let Some(handle) = self.handle.take() {
            ctx.cancel_future(handle);
        }
    }

    /// Sets it: after so long the actor does what `wake` says, unless it was set again or cleared. `of` says
    /// where the actor has it.
    pub(super) fn set<A: Actor<Context = Context<A>>>(
        &mut self,
        ctx: &mut Context<A>,
        wait: Duration,
        of: fn(&mut A) -> &mut Self,
        wake: impl FnOnce(&mut A, &mut Context<A>) + 'static,
    ) {
        self.clear(ctx);
        self.number = self.number.wrapping_add(1);
        let number = self.number;
        self.handle = Some(ctx.run_later(wait, move |actor, ctx| {
            let nap = of(actor);
            if nap.number == number && nap.handle.take().is_some() {
                wake(actor, ctx);
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use actix::Handler;

    use super::*;

    struct Sleeper {
        nap: Nap,
        due: Instant,
        too_soon: u32,
    }

    impl Actor for Sleeper {
        type Context = Context<Self>;
    }

    struct Set(Duration);

    impl actix::Message for Set {
        type Result = ();
    }

    impl Handler<Set> for Sleeper {
        type Result = ();

        fn handle(&mut self, set: Set, ctx: &mut Self::Context) {
            self.due = Instant::now() + set.0;
            self.nap.set(
                ctx,
                set.0,
                |actor| &mut actor.nap,
                |actor, _| {
                    actor.too_soon += u32::from(Instant::now() < actor.due);
                },
            );
        }
    }

    struct Woke;

    impl actix::Message for Woke {
        type Result = (u32, bool);
    }

    impl Handler<Woke> for Sleeper {
        type Result = actix::MessageResult<Woke>;

        fn handle(&mut self, _: Woke, _: &mut Self::Context) -> Self::Result {
            actix::MessageResult((self.too_soon, self.nap.is_set()))
        }
    }

    /// Waits until it has been woken and waits for nothing more; how often it was before its time.
    async fn rest(sleeper: &actix::Addr<Sleeper>) -> u32 {
        loop {
            let (too_soon, is_set) = sleeper.send(Woke).await.unwrap();
            if !is_set {
                return too_soon;
            }
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn what_is_set_anew_in_the_moment_it_was_due_waits_for_its_new_time() {
        actix_rt::System::new().block_on(async {
            let sleeper = Sleeper {
                nap: Nap::default(),
                due: Instant::now(),
                too_soon: 0,
            }
            .start();
            // Due a little before the sleeper's: whoever waits for it is woken first.
            let (ready, begun) = tokio::sync::oneshot::channel();
            let before = actix_rt::spawn({
                let sleeper = sleeper.clone();
                async move {
                    let mut due = Box::pin(tokio::time::sleep(Duration::from_millis(2)));
                    assert!(futures::poll!(&mut due).is_pending());
                    ready.send(()).unwrap();
                    due.await;
                    sleeper.do_send(Set(Duration::from_millis(1)));
                }
            });
            begun.await.unwrap();
            sleeper.send(Set(Duration::from_millis(2))).await.unwrap();
            // Both come due while nobody looks.
            std::thread::sleep(Duration::from_millis(20));
            before.await.unwrap();
            assert_eq!(rest(&sleeper).await, 0);
            sleeper.send(Set(Duration::from_millis(5))).await.unwrap();
            assert_eq!(rest(&sleeper).await, 0, "nothing was left to wake it");
        });
    }
}

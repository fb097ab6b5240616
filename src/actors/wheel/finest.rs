//! The shell of a finest level.

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, ContextFutureSpawner, Handler, WrapFuture,
};

use super::level::{Place, Sleep, Sleeps, Wake};
use super::{
    AlarmEvent, Arm, Down, Fail, Fall, Landed, LevelLink, Loaded, Look, Over, Returned, Up, Written,
};
use crate::actors::Link;
use crate::actors::checkpoint::Homed;
use crate::domain::alarm::Alarm;
use crate::domain::id::OwnerId;
use crate::domain::wheel::Effect;
use crate::domain::wheel::finest::Finest;

tells!(Entered, Left, Turn);

/// The finest level of one clock's wheel.
#[derive(Debug)]
pub struct FinestActor {
    place: Place,
    machine: Finest,
    sleep: Sleep,
    /// Another turn is in the mailbox.
    turning: bool,
}

impl FinestActor {
    pub(super) fn new(place: Place) -> Self {
        Self {
            machine: Finest::new(place.levels(), []),
            place,
            sleep: Sleep::default(),
            turning: false,
        }
    }

    fn link(&self, ctx: &Context<Self>) -> LevelLink {
        LevelLink::Finest(Link::new(ctx.address(), self.place.stats.clone()))
    }

    fn is_full(&self) -> bool {
        self.place.has_homes() && self.place.wheel().is_full()
    }

    fn perform(&mut self, effects: Vec<Effect>, ctx: &mut Context<Self>) {
        for effect in effects {
            match effect {
                Effect::Over(alarms) => self.over(alarms),
                Effect::Landed(slot) => {
                    if let Some(above) = self.place.wheel().coarse(self.place.clock, 1) {
                        above.tell(Landed(slot));
                    }
                }
                Effect::Load(ids) => self.place.load(&ids, self.link(ctx)),
                Effect::Unreadable(id) => self.place.unreadable(id),
                Effect::Due {
                    owner,
                    batch,
                    alarms,
                } => self.place.tell_owner(
                    owner,
                    AlarmEvent::Due {
                        clock: self.place.clock,
                        batch,
                        alarms,
                    },
                ),
                Effect::Start(owner) => self.place.start_owner(owner),
                Effect::Armed { owner, count } => {
                    let clock = self.place.clock;
                    self.place
                        .tell_owner(owner, AlarmEvent::Armed { clock, count });
                }
                // Nothing is finer.
                Effect::Fall { .. } => {}
            }
        }
        self.place.count_unhomed(self.machine.unhomed());
        self.turn(ctx);
    }

    fn over(&self, alarms: Vec<Alarm>) {
        self.place.stats.overflowed_up(alarms.len());
        if let Some(above) = self.place.wheel().coarse(self.place.clock, 1) {
            above.tell(Over(alarms));
        }
    }

    /// What is due already is said in another turn, behind what is in the mailbox by now.
    fn turn(&mut self, ctx: &mut Context<Self>) {
        let due = self.machine.next_wake().0;
        if due.is_some_and(|due| due <= self.place.now().clock_ms) {
            if !std::mem::replace(&mut self.turning, true) {
                ctx.notify(Turn);
            }
        } else {
            self.sleep_on(ctx);
        }
    }
}

impl Actor for FinestActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.place.stats.capacity);
        // Nothing is taken from the mailbox until this is done.
        self.place
            .begin()
            .into_actor(self)
            .map(|beginning, actor, ctx| {
                let (now, mut out) = (actor.place.now(), Vec::new());
                actor.machine = Finest::new(actor.place.levels(), beginning.homes);
                // What is armed again here nobody waits to hear about.
                for alarms in beginning.alarms.chunk_by(|a, b| a.owner == b.owner) {
                    if let Some(first) = alarms.first() {
                        let owner = first.owner;
                        actor
                            .machine
                            .arm(now, owner, alarms.to_vec(), true, &mut out);
                    }
                }
                for (owner, _) in actor.place.wheel().owners() {
                    actor.machine.entered(now, owner, &mut out);
                }
                actor.machine.advance(now, &mut out);
                actor.perform(out, ctx);
            })
            .wait(ctx);
    }
}

impl Sleeps for FinestActor {
    fn place(&self) -> &Place {
        &self.place
    }

    fn sleep(&mut self) -> &mut Sleep {
        &mut self.sleep
    }

    fn next_wake(&self) -> Wake {
        self.machine.next_wake()
    }

    fn wake(&mut self, ctx: &mut Context<Self>) {
        let mut out = Vec::new();
        self.machine.advance(self.place.now(), &mut out);
        self.perform(out, ctx);
    }
}

/// An owner begins a life.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entered(pub(super) OwnerId);

/// An owner's actor is gone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left {
    pub(super) owner: OwnerId,
    pub(super) for_good: bool,
}

/// Say more that is due.
#[derive(Debug)]
struct Turn;

/// Handlers that ask the machine and perform what it wants.
macro_rules! handle {
    ($($message:ty => |$actor:ident, $given:ident, $now:ident, $out:ident| $call:expr;)*) => {
        $(
            impl Handler<$message> for FinestActor {
                type Result = ();

                fn handle(&mut self, $given: $message, ctx: &mut Self::Context) {
                    self.place.stats.handled();
                    let ($actor, mut effects) = (&mut *self, Vec::new());
                    let ($now, $out) = ($actor.place.now(), &mut effects);
                    $call;
                    self.perform(effects, ctx);
                }
            }
        )*
    };
}

handle! {
    Arm => |actor, arm, now, out| {
        let full = actor.is_full();
        actor.machine.arm(now, arm.owner, arm.alarms, full, out)
    };
    Returned => |actor, back, now, out| {
        actor.machine.returned(now, back.owner, back.batch, back.again_ms, out)
    };
    Entered => |actor, entered, now, out| actor.machine.entered(now, entered.0, out);
    Left => |actor, left, now, out| {
        if left.for_good {
            actor.machine.left(now, left.owner, out)
        } else {
            actor.machine.stopped(now, left.owner, out)
        }
    };
    Fall => |actor, fall, now, out| actor.machine.fell(now, fall.alarms, fall.last, out);
    Loaded => |actor, loaded, now, out| actor.machine.loaded(now, loaded.0, out);
}

/// The clock was set, or there is room again.
impl Handler<Look> for FinestActor {
    type Result = ();

    fn handle(&mut self, _: Look, ctx: &mut Self::Context) {
        self.place.stats.handled();
        let (now, full, mut out) = (self.place.now(), self.is_full(), Vec::new());
        self.machine.room(full, &mut out);
        self.machine.advance(now, &mut out);
        self.rouse(ctx);
        self.perform(out, ctx);
    }
}

impl Handler<Turn> for FinestActor {
    type Result = ();

    fn handle(&mut self, _: Turn, ctx: &mut Self::Context) {
        self.turning = false;
        self.wake(ctx);
    }
}

impl Handler<Written> for FinestActor {
    type Result = ();

    fn handle(&mut self, written: Written, ctx: &mut Self::Context) {
        self.place.stats.handled();
        self.machine.homed(written.0);
        ctx.notify(Look);
        self.place.stats.told();
    }
}

impl Handler<Up> for FinestActor {
    type Result = ();

    fn handle(&mut self, up: Up, _: &mut Self::Context) {
        self.place.stats.handled();
        let now = self.place.now().clock_ms;
        let settled_ms = self.machine.settled(up.lap.round, now);
        if let Some(above) = self.place.wheel().coarse(self.place.clock, 1) {
            above.tell(Up {
                lap: up.lap,
                settled_ms,
            });
        }
    }
}

impl Handler<Down> for FinestActor {
    type Result = ();

    fn handle(&mut self, down: Down, ctx: &mut Self::Context) {
        self.place.stats.handled();
        let lap = down.lap;
        let changes = self.machine.lap(lap.round, lap.marked, down.settled_ms);
        self.place.stats.rows(self.machine.rows() as u64);
        self.place.write(lap.round, changes, self.link(ctx));
        self.place.count_unhomed(self.machine.unhomed());
        self.place.wheel().eased();
        lap.reply.tell(Homed { round: lap.round });
    }
}

impl Handler<Fail> for FinestActor {
    type Result = ();

    #[expect(clippy::panic, reason = "this is what it is for")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("asked to fail");
    }
}

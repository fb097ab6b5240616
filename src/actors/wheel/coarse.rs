//! The shell of a level above the finest.

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, ContextFutureSpawner, Handler, WrapFuture,
};

use super::level::{Place, Sleep, Sleeps, Wake};
use super::{
    Again, AlarmEvent, DUE_BATCH_MAX, Down, Fail, Fall, Landed, LevelLink, Loaded, Look, Over, Up,
    Written,
};
use crate::actors::Link;
use crate::domain::alarm::{Alarm, AlarmClock};
use crate::domain::wheel::coarse::Coarse;
use crate::domain::wheel::{Effect, Held};

/// A level above the finest of one clock's wheel.
#[derive(Debug)]
pub struct CoarseActor {
    place: Place,
    machine: Coarse,
    sleep: Sleep,
}

impl CoarseActor {
    pub(super) fn new(place: Place) -> Self {
        Self {
            machine: Coarse::new(place.level, place.levels(), []),
            place,
            sleep: Sleep::default(),
        }
    }

    fn link(&self, ctx: &Context<Self>) -> LevelLink {
        LevelLink::Coarse(Link::new(ctx.address(), self.place.stats.clone()))
    }

    fn above(&self) -> Option<Link<Self>> {
        let place = &self.place;
        place.wheel().coarse(place.clock, place.level + 1)
    }

    fn below(&self) -> Option<LevelLink> {
        let place = &self.place;
        place.wheel().level(place.clock, place.level - 1)
    }

    fn perform(&mut self, effects: Vec<Effect>, ctx: &mut Context<Self>) {
        for effect in effects {
            match effect {
                Effect::Over(alarms) => {
                    self.place.stats.overflowed_up(alarms.len());
                    if let Some(above) = self.above() {
                        above.tell(Over(alarms));
                    }
                }
                Effect::Fall { alarms, last } => self.fall(alarms, last),
                Effect::Landed(slot) => {
                    if let Some(above) = self.above() {
                        above.tell(Landed(slot));
                    }
                }
                Effect::Load(ids) => self.place.load(&ids, self.link(ctx)),
                Effect::Unreadable(id) => self.place.unreadable(id),
                // Only the finest says these.
                Effect::Due { .. } | Effect::Start(_) | Effect::Armed { .. } => {}
            }
        }
        self.place.count_unhomed(self.machine.unhomed());
        self.sleep_on(ctx);
    }

    fn fall(&self, alarms: Vec<Held>, last: Option<i64>) {
        self.place.stats.cascaded_down(alarms.len());
        if self.place.level == 1 && self.place.clock == AlarmClock::Wall {
            self.tell_near(&alarms);
        }
        if let Some(below) = self.below() {
            below.tell(Fall { alarms, last });
        }
    }

    /// Owners that run may read ahead what comes near, in the order it lies in the log.
    fn tell_near(&self, alarms: &[Held]) {
        let mut near: Vec<Alarm> = alarms.iter().map(|held| held.alarm).collect();
        near.sort_unstable_by_key(|alarm| (alarm.owner, alarm.token));
        for of_owner in near.chunk_by(|a, b| a.owner == b.owner) {
            let owner = of_owner
                .first()
                .and_then(|alarm| self.place.wheel().owner(alarm.owner));
            if let Some(link) = owner {
                for alarms in of_owner.chunks(DUE_BATCH_MAX) {
                    link.alarm(AlarmEvent::Near {
                        alarms: alarms.to_vec(),
                    });
                }
            }
        }
    }
}

impl Actor for CoarseActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.place.stats.capacity);
        // Nothing is taken from the mailbox until this is done.
        self.place
            .begin()
            .into_actor(self)
            .map(|beginning, actor, ctx| {
                let place = &actor.place;
                let (now, mut out) = (place.now().clock_ms, Vec::new());
                actor.machine = Coarse::new(place.level, place.levels(), beginning.homes);
                actor.machine.overflowed(now, beginning.alarms, &mut out);
                actor.perform(out, ctx);
            })
            .wait(ctx);
    }
}

impl Sleeps for CoarseActor {
    fn place(&self) -> &Place {
        &self.place
    }

    fn sleep(&mut self) -> &mut Sleep {
        &mut self.sleep
    }

    fn next_wake(&self) -> Wake {
        (self.machine.next_wake(), None)
    }

    fn wake(&mut self, ctx: &mut Context<Self>) {
        let mut out = Vec::new();
        self.machine.advance(self.place.now().clock_ms, &mut out);
        self.perform(out, ctx);
    }
}

/// Handlers that ask the machine and perform what it wants.
macro_rules! handle {
    ($($message:ty => |$machine:ident, $given:ident, $now:ident, $out:ident| $call:expr;)*) => {
        $(
            impl Handler<$message> for CoarseActor {
                type Result = ();

                fn handle(&mut self, $given: $message, ctx: &mut Self::Context) {
                    self.place.stats.handled();
                    let ($now, mut effects) = (self.place.now().clock_ms, Vec::new());
                    let ($machine, $out) = (&mut self.machine, &mut effects);
                    $call;
                    self.perform(effects, ctx);
                }
            }
        )*
    };
}

handle! {
    Over => |machine, over, now, out| machine.overflowed(now, over.0, out);
    Fall => |machine, fall, now, out| machine.fell(now, fall.alarms, fall.last, out);
    Landed => |machine, landed, now, out| machine.landed(now, landed.0, out);
    Loaded => |machine, loaded, now, out| machine.loaded(now, loaded.0, out);
    Again => |machine, _again, now, out| machine.again(now, out);
}

/// The clock was set. The level below is told only now: what falls from here is in its mailbox before.
impl Handler<Look> for CoarseActor {
    type Result = ();

    fn handle(&mut self, _: Look, ctx: &mut Self::Context) {
        self.place.stats.handled();
        self.rouse(ctx);
        self.wake(ctx);
        match self.below() {
            Some(LevelLink::Finest(below)) => below.tell(Look),
            Some(LevelLink::Coarse(below)) => below.tell(Look),
            None => {}
        }
    }
}

impl Handler<Written> for CoarseActor {
    type Result = ();

    fn handle(&mut self, written: Written, _: &mut Self::Context) {
        self.place.stats.handled();
        self.machine.homed(written.0);
        // There may be room again.
        if let Some(finest) = self.place.wheel().finest(self.place.clock) {
            finest.tell(Look);
        }
    }
}

impl Handler<Up> for CoarseActor {
    type Result = ();

    fn handle(&mut self, up: Up, ctx: &mut Self::Context) {
        self.place.stats.handled();
        let settled_ms = self.machine.settled(up.lap.round, up.settled_ms);
        let lap = up.lap;
        match self.above() {
            Some(above) => above.tell(Up { lap, settled_ms }),
            // The coarsest: down again.
            None => self.handle(Down { lap, settled_ms }, ctx),
        }
    }
}

impl Handler<Down> for CoarseActor {
    type Result = ();

    fn handle(&mut self, down: Down, ctx: &mut Self::Context) {
        self.place.stats.handled();
        let Down { lap, settled_ms } = down;
        let mut out = Vec::new();
        let changes = self
            .machine
            .lap(lap.round, lap.marked, settled_ms, &mut out);
        self.perform(out, ctx);
        self.place.stats.rows(self.machine.rows() as u64);
        self.place.write(lap.round, changes, self.link(ctx));
        self.place.count_unhomed(self.machine.unhomed());
        if let Some(below) = self.below() {
            below.tell(Down { lap, settled_ms });
        }
    }
}

impl Handler<Fail> for CoarseActor {
    type Result = ();

    #[expect(clippy::panic, reason = "this is what it is for")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("asked to fail");
    }
}

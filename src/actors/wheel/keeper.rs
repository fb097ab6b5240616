//! The keeper: starts the levels, makes one anew that failed, tells them that the wall clock was set.

use actix::{Actor, Context, Handler};
use actix_rt::ArbiterHandle;

use super::coarse::CoarseActor;
use super::finest::FinestActor;
use super::level::{Life, Place};
use super::{Again, AlarmEvent, Look, levels, lock};
use crate::actors::directory::DirectoryActor;
use crate::actors::failures::{FAILURES_MAX, FAILURES_WITHIN_MS};
use crate::actors::stats::ActorStats;
use crate::actors::{House, Link};
use crate::domain::alarm::AlarmClock;
use crate::domain::id::OwnerId;
use crate::domain::time::MonotonicMs;
use crate::domain::wheel::{span_ms, tick_shift};

tells!(LevelDied, ClockSet);

/// The keeper of all levels.
#[derive(Debug)]
pub struct KeeperActor {
    house: House,
    directory: Link<DirectoryActor>,
    arbiter: ArbiterHandle,
    failures: Vec<(AlarmClock, u8, MonotonicMs)>,
    stats: std::sync::Arc<ActorStats>,
}

/// Starts the levels of both clocks on an arbiter, and their keeper. From then on `house.wheel` reaches
/// them.
pub fn start(house: &House, directory: &Link<DirectoryActor>, arbiter: &ArbiterHandle) {
    let capacity = house.settings.standing_mailbox;
    let stats = house
        .registry
        .enter("keeper", OwnerId(0), "keeper of the wheel".into(), capacity);
    let keeper = KeeperActor {
        house: house.clone(),
        directory: directory.clone(),
        arbiter: arbiter.clone(),
        failures: Vec::new(),
        stats: stats.clone(),
    };
    for clock in AlarmClock::ALL {
        for level in 0..levels(clock) {
            keeper.raise(clock, level, false);
        }
    }
    let addr = KeeperActor::start_in_arbiter(arbiter, move |_| keeper);
    *lock(&house.wheel.shared.keeper) = Some(Link::new(addr, stats));
}

impl KeeperActor {
    fn raise(&self, clock: AlarmClock, level: u8, again: bool) {
        let stats = self.stats_of(clock, level);
        if again {
            stats.restarted();
        }
        let wheel = &self.house.wheel;
        let place = Place {
            clock,
            level,
            house: self.house.clone(),
            directory: self.directory.clone(),
            stats: stats.clone(),
            again,
            _life: Life {
                wheel: wheel.clone(),
                clock,
                level,
            },
        };
        if level == 0 {
            let addr =
                FinestActor::start_in_arbiter(&self.arbiter, move |_| FinestActor::new(place));
            wheel.ladder(clock, |ladder| ladder.finest = Some(Link::new(addr, stats)));
            return;
        }
        let addr = CoarseActor::start_in_arbiter(&self.arbiter, move |_| CoarseActor::new(place));
        let link = Link::new(addr, stats);
        wheel.ladder(clock, |ladder| {
            match ladder.coarse.get_mut(usize::from(level) - 1) {
                Some(old) => *old = link,
                None => ladder.coarse.push(link),
            }
        });
    }

    fn stats_of(&self, clock: AlarmClock, level: u8) -> std::sync::Arc<ActorStats> {
        let (name, first) = match clock {
            AlarmClock::Wall => ("wall", OwnerId::wheel_level(0).0),
            AlarmClock::Monotonic => ("monotonic", OwnerId::wheel_level(8).0),
        };
        let span = span_ms(level, levels(clock));
        let span = if span == i64::MAX {
            "all that is further".to_owned()
        } else {
            format!("{span} ms")
        };
        let tick = 1_i64 << tick_shift(level);
        let name = format!("{name} clock, level {level}: slots of {tick} ms, {span}");
        let id = OwnerId(first + u64::from(level));
        let capacity = self.house.settings.standing_mailbox;
        self.house.registry.enter("wheel", id, name, capacity)
    }
}

impl Actor for KeeperActor {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        actix_rt::spawn(super::watch::watch(
            self.house.wheel.clone(),
            self.house.clock,
        ));
    }
}

/// A level's actor was dropped: it failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct LevelDied {
    pub(super) clock: AlarmClock,
    pub(super) level: u8,
}

impl Handler<LevelDied> for KeeperActor {
    type Result = ();

    fn handle(&mut self, died: LevelDied, _: &mut Self::Context) {
        self.stats.handled();
        let LevelDied { clock, level } = died;
        let now = self.house.clock.now().monotonic;
        self.failures.push((clock, level, now));
        self.failures
            .retain(|(_, _, at)| now.0.saturating_sub(at.0) < FAILURES_WITHIN_MS);
        let of_this =
            |failure: &&(AlarmClock, u8, MonotonicMs)| (failure.0, failure.1) == (clock, level);
        if self.failures.iter().filter(of_this).count() >= FAILURES_MAX {
            tracing::error!(
                target: "waterwheel::wheel",
                ?clock, level, "failed {FAILURES_MAX} times within a minute: it stays down until a restart, and timers wait"
            );
            return;
        }
        tracing::warn!(
            target: "waterwheel::wheel",
            ?clock, level, "failed: it begins again from its homes and the log"
        );
        self.raise(clock, level, true);
        for above in level + 1..levels(clock) {
            if let Some(link) = self.house.wheel.coarse(clock, above) {
                link.tell(Again);
            }
        }
        for (_, link) in self.house.wheel.owners() {
            link.alarm(AlarmEvent::Began { clock });
        }
    }
}

/// The wall clock was set.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClockSet;

impl Handler<ClockSet> for KeeperActor {
    type Result = ();

    fn handle(&mut self, _: ClockSet, _: &mut Self::Context) {
        self.stats.handled();
        let clock = AlarmClock::Wall;
        // From the coarsest down, so that what is due falls in its order.
        if let Some(coarsest) = self.house.wheel.coarse(clock, levels(clock) - 1) {
            coarsest.tell(Look);
        }
    }
}

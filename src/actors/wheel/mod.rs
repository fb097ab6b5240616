//! The timing wheel: one actor per level and clock, an alarm clock for owners.
//!
//! An owner arms alarms ([`Wheel::arm`]) and hears of them ([`AlarmEvent`]) in its mailbox. It alone
//! decides what an alarm means when it comes: a cancellation is not told to the wheel, a stale version or
//! a settled token that comes due is ignored and the batch returned. So arming twice is harmless, and what
//! is cancelled costs the wheel a home on the disk until its moment, but memory only while it is near.
//!
//! **In**: [`Arm`], [`Returned`], [`Wheel::enter`] (an owner begins a life), [`Wheel::leave`] (it is gone
//! for good). **Out**: [`AlarmEvent`].
//!
//! # How an owner uses it
//! 1. At the start of each life, after its rows and the log are folded, it calls [`Wheel::enter`]. The
//!    wheel's windows for it are then empty, and every `Due` it had not returned is said again. On the
//!    monotonic clock it arms whatever it still waits for; on the wall clock nothing: what was armed in
//!    an earlier life, or before a restart of the broker, still is.
//! 2. When an entry that arms something is applied, it arms, with the entry's position. It counts what
//!    it has armed and not yet heard [`AlarmEvent::Armed`] about; beyond [`ARM_WINDOW`] it does not arm,
//!    but marks the run of numbers as unarmed **in its rows**, and hands it over later, when the window
//!    has room again.
//! 3. [`AlarmEvent::Due`]: it decides, persists, and when the outcome is applied (at once, if nothing of
//!    it stands) returns the batch. If the log refused it, it returns it to be repeated.
//! 4. [`AlarmEvent::Near`]: a hint that payloads may be read ahead. Nothing is returned.
//! 5. [`AlarmEvent::Began`]: a level began again. What was armed and not confirmed is not waited for
//!    (the arming window is empty). On the monotonic clock everything that still stands is armed again.
//!
//! 6. [`AlarmEvent::Lost`]: homes on the disk do not read. Everything that still stands is armed again.
//!
//! # Inside
//! [`finest::FinestActor`] and [`coarse::CoarseActor`] are the shells of the machines in
//! [`crate::domain::wheel`], on a thread of their own; [`keeper::KeeperActor`] starts them, makes one anew
//! that failed, and tells them of steps of the clock, which [`watch`] notices. In a round of the
//! checkpoint a lap goes up from the finest level to the coarsest, asking what is settled, and down
//! again: whatever overflowed or fell before is in the mailbox of the level that hands over its home.
//!
//! A level that failed begins with its homes waiting to be read, and with the alarms that entries behind
//! the last mark arm; levels above it read once more what had fallen from them and has no home below.
//! On the monotonic clock owners arm again.
//!
//! - W1 Never early: an alarm is said due only when its clock reads its moment or later.
//! - W2 Never lost: what was armed is said due, again and again, until its batch is returned as settled.
//! - W3 At most [`DUE_WINDOW`] alarms per owner and clock are said due and not returned.
//! - W4 The checkpoint's mark passes an entry only when the alarms it armed have a home on the disk or
//!   are settled.

pub mod coarse;
pub mod finest;
pub mod homes;
pub mod keeper;
mod level;
#[cfg(test)]
mod tests;
pub mod watch;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix::Message;
use bytes::Bytes;

use self::coarse::CoarseActor;
use self::finest::{Entered, FinestActor, Left};
use self::keeper::KeeperActor;
use super::checkpoint::{Homed, Lap};
use super::{Link, OwnerLink};
use crate::domain::alarm::{Alarm, AlarmClock};
use crate::domain::id::{LogPosition, OwnerId};
use crate::domain::wheel::chunk::RowId;
use crate::domain::wheel::{Held, MONOTONIC_LEVELS, Read, WALL_LEVELS};

pub use crate::domain::wheel::finest::{DUE_BATCH_MAX, DUE_WINDOW};

tells!(Arm, Returned, AlarmEvent);

/// Alarms an owner may have armed, per clock, without having heard that they were taken.
pub const ARM_WINDOW: usize = 65_536;
/// With so many alarms in memory that have no home on the disk, a checkpoint is due.
const UNHOMED_DUE: usize = 500_000;
/// With so many, owners are not told any more that what they armed is taken.
const UNHOMED_MAX: usize = 2_000_000;

/// Arm alarms of one owner.
#[derive(Debug, Clone)]
pub struct Arm {
    /// Whose: every alarm names the same.
    pub owner: OwnerId,
    /// The alarms, in any order.
    pub alarms: Vec<Alarm>,
    /// Where the entry that armed them lies; the least one where several did. Position 0 on the
    /// monotonic clock.
    pub position: LogPosition,
}

/// An owner is done with what was said due.
#[derive(Debug, Clone, Copy)]
pub struct Returned {
    /// Who.
    pub owner: OwnerId,
    /// Which batch.
    pub batch: u64,
    /// None: every alarm in it is settled, its outcome applied or nothing left to do. Otherwise say the
    /// whole batch due again after so many milliseconds: the log refused it.
    pub again_ms: Option<u64>,
}

/// What the wheel says to an owner.
#[derive(Debug, Clone)]
pub enum AlarmEvent {
    /// The moment of these has come. To be [`Returned`].
    Due {
        /// By which clock.
        clock: AlarmClock,
        /// Names this batch when it is returned.
        batch: u64,
        /// At most [`DUE_BATCH_MAX`], in due order.
        alarms: Vec<Alarm>,
    },
    /// These come due within a few seconds (wall clock only): payloads may be read ahead.
    Near {
        /// At most [`DUE_BATCH_MAX`], in the order of their tokens.
        alarms: Vec<Alarm>,
    },
    /// So many of those that were armed are taken: the arming window has that much room again.
    Armed {
        /// By which clock.
        clock: AlarmClock,
        /// How many.
        count: usize,
    },
    /// A level of this clock begins again: see the head of this module.
    Began {
        /// Which clock.
        clock: AlarmClock,
    },
    /// Homes of alarms on the disk do not read: whatever still stands on the wall clock is armed again.
    Lost,
}

/// The way to the wheel; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Wheel {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Owners that are alive and use alarms.
    owners: Mutex<HashMap<OwnerId, Ear>>,
    ladders: Mutex<Ladders>,
    keeper: Mutex<Option<Link<KeeperActor>>>,
    /// Alarms in the memory of each level of the wall clock that have no home.
    unhomed: [AtomicUsize; WALL_LEVELS as usize],
    pressed: AtomicBool,
    /// Some home did not read.
    lost: AtomicBool,
}

/// Who is told of an owner's alarms.
#[derive(Debug, Clone)]
enum Ear {
    Owner(OwnerLink),
    #[cfg(test)]
    Test(tokio::sync::mpsc::UnboundedSender<AlarmEvent>),
}

impl Ear {
    fn alarm(&self, event: AlarmEvent) {
        match self {
            Self::Owner(link) => link.alarm(event),
            #[cfg(test)]
            Self::Test(channel) => {
                let _ = channel.send(event);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Ladders {
    wall: Ladder,
    monotonic: Ladder,
}

/// The levels of one clock.
#[derive(Debug, Default)]
struct Ladder {
    finest: Option<Link<FinestActor>>,
    coarse: Vec<Link<CoarseActor>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many levels a clock's wheel has.
#[must_use]
pub fn levels(clock: AlarmClock) -> u8 {
    match clock {
        AlarmClock::Wall => WALL_LEVELS,
        AlarmClock::Monotonic => MONOTONIC_LEVELS,
    }
}

impl Wheel {
    /// An owner begins a life: from now on it is told over `link`. Whatever was said to an earlier life
    /// and not returned is said again.
    pub fn enter(&self, owner: OwnerId, link: OwnerLink) {
        self.listen(owner, Ear::Owner(link));
    }

    fn listen(&self, owner: OwnerId, ear: Ear) {
        if self.shared.lost.load(Ordering::Relaxed) {
            ear.alarm(AlarmEvent::Lost);
        }
        lock(&self.shared.owners).insert(owner, ear);
        for clock in AlarmClock::ALL {
            if let Some(finest) = self.finest(clock) {
                finest.tell(Entered(owner));
            }
        }
    }

    /// An owner is gone for good (its topic was deleted): its alarms are dropped as they come.
    pub fn leave(&self, owner: OwnerId) {
        self.end(owner, true);
    }

    /// An owner's actor failed too often and stays down until a restart: its alarms are kept, and hold
    /// nobody else up.
    pub fn stopped(&self, owner: OwnerId) {
        self.end(owner, false);
    }

    fn end(&self, owner: OwnerId, for_good: bool) {
        lock(&self.shared.owners).remove(&owner);
        for clock in AlarmClock::ALL {
            if let Some(finest) = self.finest(clock) {
                finest.tell(Left { owner, for_good });
            }
        }
    }

    /// Arms alarms of one owner.
    pub fn arm(&self, clock: AlarmClock, arm: Arm) {
        if let Some(finest) = self.finest(clock) {
            finest.tell(arm);
        }
    }

    /// Gives back what was said due.
    pub fn returned(&self, clock: AlarmClock, returned: Returned) {
        if let Some(finest) = self.finest(clock) {
            finest.tell(returned);
        }
    }

    /// The clock watcher, or a test that moved a clock: the wall clock has been set.
    pub fn clock_set(&self) {
        if let Some(keeper) = &*lock(&self.shared.keeper) {
            keeper.tell(keeper::ClockSet);
        }
    }

    /// Makes a level fail, as a bug would: only for tests of re-creation.
    pub fn fail(&self, clock: AlarmClock, level: u8) {
        if let Some(link) = self.level(clock, level) {
            link.fail();
        }
    }

    /// A round of the checkpoint has everybody's rows: homes for what has none.
    pub(super) fn lap(&self, lap: Lap) {
        match self.finest(AlarmClock::Wall) {
            Some(finest) => finest.tell(Up {
                lap,
                settled_ms: i64::MAX,
            }),
            None => lap.reply.tell(Homed { round: lap.round }),
        }
    }

    fn finest(&self, clock: AlarmClock) -> Option<Link<FinestActor>> {
        self.ladder(clock, |ladder| ladder.finest.clone())
    }

    fn coarse(&self, clock: AlarmClock, level: u8) -> Option<Link<CoarseActor>> {
        let at = usize::from(level).checked_sub(1)?;
        self.ladder(clock, |ladder| ladder.coarse.get(at).cloned())
    }

    fn level(&self, clock: AlarmClock, level: u8) -> Option<LevelLink> {
        match level {
            0 => self.finest(clock).map(LevelLink::Finest),
            _ => self.coarse(clock, level).map(LevelLink::Coarse),
        }
    }

    fn ladder<T>(&self, clock: AlarmClock, look: impl FnOnce(&mut Ladder) -> T) -> T {
        let mut ladders = lock(&self.shared.ladders);
        match clock {
            AlarmClock::Wall => look(&mut ladders.wall),
            AlarmClock::Monotonic => look(&mut ladders.monotonic),
        }
    }

    fn owner(&self, owner: OwnerId) -> Option<Ear> {
        lock(&self.shared.owners).get(&owner).cloned()
    }

    fn owners(&self) -> Vec<(OwnerId, Ear)> {
        let owners = lock(&self.shared.owners);
        let mut all: Vec<_> = owners
            .iter()
            .map(|(id, link)| (*id, link.clone()))
            .collect();
        all.sort_unstable_by_key(|(id, _)| *id);
        all
    }

    fn is_full(&self) -> bool {
        self.unhomed() > UNHOMED_MAX
    }

    fn unhomed(&self) -> usize {
        let levels = self.shared.unhomed.iter();
        levels.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// A level has so many alarms without a home; whether that is a reason for a checkpoint.
    fn count_unhomed(&self, level: u8, count: usize) -> bool {
        if let Some(of) = self.shared.unhomed.get(usize::from(level)) {
            of.store(count, Ordering::Relaxed);
        }
        self.unhomed() > UNHOMED_DUE && !self.shared.pressed.swap(true, Ordering::Relaxed)
    }

    /// A lap has been here: another checkpoint may be asked for.
    fn eased(&self) {
        self.shared.pressed.store(false, Ordering::Relaxed);
    }

    /// Alarms on the disk do not read: owners arm again what stands, those that do not run yet once
    /// they do.
    fn lost(&self) {
        self.shared.lost.store(true, Ordering::Relaxed);
        for (_, link) in self.owners() {
            link.alarm(AlarmEvent::Lost);
        }
    }
}

/// A level's mailbox.
#[derive(Debug, Clone)]
pub enum LevelLink {
    /// The finest.
    Finest(Link<FinestActor>),
    /// A coarser one.
    Coarse(Link<CoarseActor>),
}

impl LevelLink {
    fn tell<M>(&self, message: M)
    where
        M: Message<Result = ()> + Send + 'static,
        FinestActor: actix::Handler<M>,
        CoarseActor: actix::Handler<M>,
    {
        match self {
            Self::Finest(link) => link.tell(message),
            Self::Coarse(link) => link.tell(message),
        }
    }

    /// Homes were read.
    pub(super) fn loaded(&self, read: Vec<(u64, Option<Bytes>)>) {
        let read = read
            .into_iter()
            .map(|(id, bytes)| (RowId::unpack(id), bytes));
        self.tell(Loaded(read.collect()));
    }

    /// Homes were written, or could not be.
    pub(super) fn homed(&self, ok: bool) {
        self.tell(Written(ok));
    }

    fn fail(&self) {
        self.tell(Fail);
    }
}

/// Too far ahead for the level below.
#[derive(Debug)]
struct Over(Vec<Alarm>);

/// A slot of the level above, or a part of it.
#[derive(Debug)]
struct Fall {
    alarms: Vec<Held>,
    last: Option<i64>,
}

/// A slot has landed on the level below.
#[derive(Debug)]
struct Landed(i64);

/// Homes were read.
#[derive(Debug)]
struct Loaded(Vec<Read>);

/// Homes were written, or could not be.
#[derive(Debug)]
struct Written(bool);

/// A lap on its way up.
#[derive(Debug)]
struct Up {
    lap: Lap,
    settled_ms: i64,
}

/// A lap on its way down.
#[derive(Debug)]
struct Down {
    lap: Lap,
    settled_ms: i64,
}

/// The clock was set, or there is room again: look what is to be done.
#[derive(Debug)]
struct Look;

/// A level below has lost its memory.
#[derive(Debug)]
struct Again;

/// Fail, as a bug would.
#[derive(Debug)]
struct Fail;

tells!(
    Over, Fall, Landed, Loaded, Written, Up, Down, Look, Again, Fail
);

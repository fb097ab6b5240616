//! The machines of the timing wheel: a finest level that says what is due, and coarser ones above it.
//!
//! A level is a ring of slots, each as wide as the level's tick. What a level cannot hold overflows to the
//! next coarser one; a slot of a coarse level that comes near falls into the next finer one, all of it before
//! the next, a full one part by part; the finest, whose tick is a millisecond, says its alarms due. A level
//! does nothing until its next non-empty slot wants something, however far ahead that is.
//!
//! ```text
//! level  tick                slots       span            a slot falls (before it begins)
//!   0    1 ms                4 096       4.096 s         said due, never early
//!   1    1.024 s (2^10 ms)      80       81.92 s         3.1 s   into level 0
//!   2    65.5 s  (2^16 ms)      72       78.6 min        16.4 s  into level 1
//!   3    69.9 min (2^22 ms)     72       3.5 days        8.7 min into level 2
//!   4    3.1 days (2^28 ms)     as many as are needed    9.3 h   into level 3
//! ```
//!
//! *Example.* At 12:00:00 a timer for 12:10:00 is armed. Level 0 sees 600 s where it spans 4, and passes it
//! on; so does level 1; level 2 keeps it in the slot of 65.5 s that holds 12:10:00. Nothing happens until
//! that whole slot lies within the 81.92 s of level 1: then level 2 wakes, and the timer falls into the
//! slot of 1.024 s that holds it. When that slot lies within 4.096 s, level 1 wakes, and the timer falls
//! into its millisecond. Level 0 wakes at 12:10:00.000. Three wake-ups in ten minutes.
//!
//! # Homes
//! On the wall clock an alarm that is neither settled nor in somebody's hands has a home on the disk: a
//! chunk of packed alarms ([`chunk`]) under `(level, slot, chunk number)`, written at a checkpoint by the
//! level that holds the alarm then. From level 2 up a level forgets an alarm once its home is written, so
//! that memory holds what is near and what is new, not what is pending. A slot that falls is read back;
//! its alarms get new homes where they are at the next checkpoint, and the old ones are removed once
//! that checkpoint is marked. Levels 0 and 1 keep in memory what they have, and their homes, by 65.5 s,
//! go when everything due before their end is settled. So a cancelled timer, which nobody tells the wheel
//! about, costs a few bytes of disk until its moment comes near.
//!
//! - W1 Never early: nothing is said due before its clock reads its moment.
//! - W2 Never lost: an alarm is in the memory of a level, on its way to one, or in a home that some level
//!   still means to read; it leaves only when its owner returned it as settled, or is gone for good.
//! - W4 When a lap of all levels is done, whatever was armed before it began has a home or is settled.
//! - W5 Alarms that become due at once, by a step of the clock or after a stop, are said due in the order of
//!   their moments, slot by slot, as fast as their owners return them; what is not near stays on the
//!   disk meanwhile.
//! - W6 A step of the clock backwards holds everything: what has fallen stays where it is.
//!
//! What survives a crash: the homes. What was armed and had none is armed again from the log behind the
//! checkpoint's mark; arming twice is harmless.

pub mod chunk;
pub mod coarse;
pub mod finest;
pub mod homes;
mod slots;
#[cfg(test)]
mod tests;

pub use homes::{Changes, Read};
pub use slots::Held;

use self::chunk::RowId;
use super::alarm::Alarm;
use super::id::OwnerId;

/// The clocks as a level reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    /// The wheel's clock, in milliseconds.
    pub clock_ms: i64,
    /// The monotonic clock.
    pub monotonic_ms: u64,
}

/// What a level wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Pass these on to the next coarser level: they are too far ahead.
    Over(Vec<Alarm>),
    /// Let these fall into the next finer level.
    Fall {
        /// In due order as far as they come from one slot's memory.
        alarms: Vec<Held>,
        /// The slot, with its last alarms: the finer level says when it has landed.
        last: Option<i64>,
    },
    /// Tell the next coarser level that its slot has landed: it may send the next.
    Landed(i64),
    /// Read these homes.
    Load(Vec<RowId>),
    /// A home does not read: its alarms must be armed again by their owners.
    Unreadable(RowId),
    /// Say these due.
    Due {
        /// To whom.
        owner: OwnerId,
        /// The batch's name.
        batch: u64,
        /// In due order.
        alarms: Vec<Alarm>,
    },
    /// The owner does not run: have it started.
    Start(OwnerId),
    /// So many of what this owner armed are taken.
    Armed {
        /// Who.
        owner: OwnerId,
        /// How many.
        count: usize,
    },
}

/// Levels of the wall clock's wheel.
pub const WALL_LEVELS: u8 = 5;
/// Levels of the monotonic clock's wheel: nobody waits for days on it.
pub const MONOTONIC_LEVELS: u8 = 3;

/// Ticks as powers of two in milliseconds, and slots, by level.
const RINGS: [(u32, i64); WALL_LEVELS as usize] =
    [(0, 4096), (10, 80), (16, 72), (22, 72), (28, 72)];

/// Homes of the two finest levels are kept by slots of this width (65.5 s), so that they are few rows.
const NEAR_HOME_SHIFT: u32 = 16;

/// A level's tick as a power of two in milliseconds.
#[must_use]
pub fn tick_shift(level: u8) -> u32 {
    RINGS.get(usize::from(level)).map_or(28, |ring| ring.0)
}

/// How far ahead a level holds alarms, in milliseconds. The coarsest of a wheel holds all there are.
#[must_use]
pub fn span_ms(level: u8, levels: u8) -> i64 {
    if level.saturating_add(1) >= levels {
        return i64::MAX;
    }
    RINGS
        .get(usize::from(level))
        .map_or(i64::MAX, |(shift, slots)| slots << shift)
}

/// The width of a level's homes as a power of two in milliseconds.
#[must_use]
pub fn home_shift(level: u8) -> u32 {
    tick_shift(level).max(NEAR_HOME_SHIFT)
}

/// The level that keeps an alarm for `due_ms` at `now_ms`.
#[must_use]
pub fn level_for(due_ms: i64, now_ms: i64, levels: u8) -> u8 {
    (0..levels)
        .find(|level| due_ms < now_ms.saturating_add(span_ms(*level, levels)))
        .unwrap_or(levels.saturating_sub(1))
}

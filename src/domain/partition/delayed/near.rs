//! What comes near: where it lies is looked up ahead, so that it can be read before it is due.
//!
//! All of this is a hint. What is cancelled or moved afterwards was read for nothing; what is left out is
//! read when it fired.

use super::Waits;
use crate::domain::alarm::Alarm;
use crate::domain::id::RecordNumber;
use crate::domain::partition::stored::Lookup;
use crate::domain::partition::{Effect, Partition};
use crate::domain::time::WallMs;

/// Rows of bodies that are loaded at a time; what else comes near meanwhile is left out.
const LOADING_MAX: usize = 64;

impl Partition {
    /// These come near: says where those that still stand lie.
    pub fn near(&mut self, alarms: &[Alarm], effects: &mut Vec<Effect>) {
        let mut ahead = Vec::with_capacity(alarms.len());
        for alarm in alarms {
            if !self.stands(alarm) {
                continue;
            }
            let number = RecordNumber(alarm.token);
            match self.stored.place(number) {
                Lookup::Known(place) => {
                    if let Some(place) = place.record(number) {
                        ahead.push((place, WallMs(alarm.due_ms)));
                    }
                }
                Lookup::Load(run) => {
                    let queue = &self.timers.loading;
                    if queue.len() < LOADING_MAX || queue.contains_key(&run) {
                        self.wait_for_bodies(run, Waits::Near(*alarm), effects);
                    }
                }
                Lookup::Nothing => {}
            }
        }
        if !ahead.is_empty() {
            effects.push(Effect::Ahead(ahead));
        }
    }
}

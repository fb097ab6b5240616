//! Handing alarms to the wheel, as far as its window has room (D5).

use super::{ARM_WINDOW, Waits, alarm_of};
use crate::domain::alarm::Alarm;
use crate::domain::id::{LogPosition, RecordNumber};
use crate::domain::partition::stored::Lookup;
use crate::domain::partition::{Effect, Partition};
use crate::domain::time::WallMs;

impl Partition {
    /// Arms, or marks for later where the window is full (D5). A fold without a wheel does neither: the
    /// wheel arms again by itself what lies behind the mark.
    pub(super) fn arm(
        &mut self,
        alarms: Vec<Alarm>,
        numbers: (RecordNumber, RecordNumber),
        position: LogPosition,
        effects: &mut Vec<Effect>,
    ) {
        if !self.timers.live || alarms.is_empty() {
            return;
        }
        if self.timers.armed + alarms.len() > ARM_WINDOW || self.stored.first_unarmed().is_some() {
            return self.stored.unarmed(numbers.0, numbers.1);
        }
        self.timers.armed += alarms.len();
        effects.push(Effect::Arm { alarms, position });
    }

    /// A life begins: there is a wheel now, nothing is on its way to it or from it.
    pub fn begun(&mut self, effects: &mut Vec<Effect>) {
        self.timers.live = true;
        self.timers.outstanding.clear();
        self.timers.armed = 0;
        self.hand_over(effects);
    }

    /// The wheel has taken so many alarms.
    pub fn armed(&mut self, count: usize, effects: &mut Vec<Effect>) {
        self.timers.armed = self.timers.armed.saturating_sub(count);
        self.hand_over(effects);
    }

    /// The wheel's level begins again: what was armed and not confirmed is not waited for.
    pub fn wheel_began(&mut self, effects: &mut Vec<Effect>) {
        self.timers.armed = 0;
        self.stored.hand_over_again();
        self.hand_over(effects);
    }

    /// Homes of the wheel do not read: everything that waits is handed over once more.
    pub fn lost(&mut self, effects: &mut Vec<Effect>) {
        self.stored.all_unarmed();
        self.dirty = true;
        self.hand_over(effects);
    }

    /// A round of the checkpoint takes this partition's rows; `marked` is the last one that was marked.
    pub fn rows_due(&mut self, round: u64, marked: u64) {
        self.timers.round = round;
        self.dirty |= self.stored.marked(marked);
    }

    /// Hands chunks over whose alarms are not armed, as long as there is room (D5).
    pub(super) fn hand_over(&mut self, effects: &mut Vec<Effect>) {
        if !self.timers.live || self.timers.handing_over {
            return;
        }
        while self.timers.armed < ARM_WINDOW / 2
            && let Some((first, end)) = self.stored.first_unarmed()
        {
            // A batch belongs to the chunk it begins in, and may reach into the next.
            let mut from = self.stored.batch_start(first);
            let mut alarms = Vec::new();
            loop {
                match self.stored.pending_from(from, WallMs(i64::MIN)) {
                    Lookup::Load(run) => {
                        self.timers.handing_over = true;
                        return self.wait_for_bodies(run, Waits::HandOver, effects);
                    }
                    Lookup::Nothing => break,
                    Lookup::Known((found, next)) => {
                        alarms.extend(
                            found
                                .into_iter()
                                .filter(|pending| pending.number >= first && pending.number < end)
                                .map(alarm_of),
                        );
                        match next.filter(|next| *next < end) {
                            Some(next) => from = next,
                            None => break,
                        }
                    }
                }
            }
            self.stored.armed(first, self.timers.round);
            let position = match self.stored.place(first) {
                Lookup::Known(place) => place.position,
                Lookup::Load(_) | Lookup::Nothing => LogPosition(0),
            };
            if !alarms.is_empty() {
                self.timers.armed += alarms.len();
                effects.push(Effect::Arm { alarms, position });
            }
        }
    }

    pub(super) fn wait_for_bodies(
        &mut self,
        run: RecordNumber,
        waits: Waits,
        effects: &mut Vec<Effect>,
    ) {
        let queue = self.timers.loading.entry(run).or_default();
        if queue.is_empty() {
            effects.push(Effect::LoadBodies(run));
        }
        queue.push(waits);
    }
}

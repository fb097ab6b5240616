//! Clocks that run, jump and are set, and what is asked about delayed records meanwhile.

use waterwheel::domain::batch::Delivery;
use waterwheel::domain::id::RecordNumber;
use waterwheel::domain::partition::delayed::TimerCommand;

use super::message::Message;
use super::{Asked, HOUR_MS, RUN_MS_MAX, World};

impl World {
    pub(super) fn pass(&mut self, ms: i64) {
        self.now.0 += ms;
        self.monotonic += ms.unsigned_abs();
    }

    /// The wall clock is set.
    pub(super) fn set_clock(&mut self) {
        let step = match self.rng.below(4) {
            0 => HOUR_MS,
            1 => -HOUR_MS,
            _ => -(self.rng.below(200) as i64),
        };
        self.now.0 += step;
        self.house_now().clock_set();
    }

    /// Nothing happens for a while but that the clock runs.
    pub(super) fn let_run(&mut self) {
        let most = [50, 4_000, 90_000, HOUR_MS / 3][self.rng.below(4) as usize];
        let span = 1 + self.rng.below(most.unsigned_abs()) as i64;
        if self.passed_ms < RUN_MS_MAX {
            self.passed_ms += span;
            self.pass(span);
        }
    }

    /// Somebody looks at a delayed record, cancels it or moves it.
    pub(super) fn ask_timer(&mut self) {
        let at = self.rng.below(self.producers.len() as u64) as usize;
        let (topic, partition) = (self.producers[at].topic, self.producers[at].partition);
        let Some((to, owner)) = self.locate(topic, partition) else {
            return;
        };
        let waiting = self.truth.waiting_of(owner);
        let last = self.truth.last_of(owner);
        // Mostly one that waits, or one that may not be there yet.
        let number = match waiting.len() {
            1.. if self.rng.chance(70) => waiting[self.rng.below(waiting.len() as u64) as usize],
            _ => self.rng.below(last + 3),
        };
        let number = RecordNumber(number);
        let command = match self.rng.below(5) {
            0 | 1 => TimerCommand::Cancel,
            2 => TimerCommand::Reschedule(Delivery::After(1 + self.rng.below(5_000) as i64)),
            3 => TimerCommand::Reschedule(Delivery::After(1 + self.rng.below(9_000_000) as i64)),
            _ => TimerCommand::Look,
        };
        let was = self.truth.timer(owner, number);
        let asked = Asked::Timer { owner, number, was };
        self.ask(to, asked, |reply| Message::AskTimer {
            number,
            command,
            reply,
        });
    }
}

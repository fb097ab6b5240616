//! What a coordinator does because time passes, or because it begins again.

use super::*;

impl Coordinator {
    /// Does what is due: timeouts, check-backs, expiry. At most `budget` of them, so that a hundred
    /// thousand due at once hold nobody up; [`Coordinator::next_deadline`] says whether more are.
    pub fn tick(&mut self, now: Now, budget: usize, effects: &mut Vec<Effect>) {
        for _ in 0..budget {
            match self.open.due(now.monotonic) {
                Some(id) => self.due(id, now, effects),
                None => return,
            }
        }
    }

    fn due(&mut self, id: TransactionId, now: Now, effects: &mut Vec<Effect>) {
        let limits = self.limits;
        let Some(transaction) = self.open.get_mut(&id) else {
            return;
        };
        if transaction.phase != Phase::Open {
            return;
        }
        let age = u64::try_from(now.wall.0.saturating_sub(transaction.begun.0)).unwrap_or(0);
        if transaction.immunity_ms.is_none() {
            return self.begin_deciding(id, Decision::Rollback, By::Timeout, effects);
        }
        let unheard = transaction.checks == 0 && age >= limits.unheard_ms;
        if transaction.checks >= limits.checks_max || unheard {
            return self.begin_deciding(id, Decision::Rollback, By::Expiry, effects);
        }
        let next = u64::from(limits.check_interval_ms);
        let next = MonotonicMs(now.monotonic.0.saturating_add(next));
        self.open.arm(id, next);
        self.ask_back(id, effects);
    }

    /// A check-back reached nobody of the group after all: it was not heard, and another producer is asked at
    /// once, if there is one.
    pub fn unheard(&mut self, id: TransactionId, effects: &mut Vec<Effect>) {
        let Some(transaction) = self.open.get_mut(&id) else {
            return;
        };
        // None is on its way to be answered.
        let Some(checks) = transaction.checks.checked_sub(1) else {
            return;
        };
        transaction.checks = checks;
        if transaction.phase == Phase::Open {
            self.ask_back(id, effects);
        }
    }

    fn ask_back(&self, id: TransactionId, effects: &mut Vec<Effect>) {
        let Some(transaction) = self.open.get(&id) else {
            return;
        };
        let partition = transaction
            .participants
            .as_slice()
            .iter()
            .find_map(|one| match one.part {
                Part::Records { partition, .. } => Some(partition),
                Part::Attached => None,
            });
        let group = self
            .sessions
            .get(&id.producer)
            .map(|session| session.group.clone())
            .unwrap_or_default();
        effects.push(Effect::CheckBack {
            group,
            id,
            partition,
        });
    }

    pub(super) fn deadline_of(
        &self,
        immunity_ms: Option<u32>,
        begun: WallMs,
        now: Now,
    ) -> MonotonicMs {
        let span = i64::from(immunity_ms.unwrap_or(self.limits.duration_ms));
        let passed = now.wall.0.saturating_sub(begun.0);
        let left = span.saturating_sub(passed).clamp(0, span);
        MonotonicMs(
            now.monotonic
                .0
                .saturating_add(u64::try_from(left).unwrap_or(0)),
        )
    }

    /// What a coordinator does once it is loaded, or has gone back to its applied state: deadlines are
    /// armed with what is left of their spans, and what a fenced session left open is rolled back (X4).
    pub fn resume(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.open.disarm_all();
        // Folding an entry may ask for a decision that the log behind it holds, or that went with whoever
        // asked: what is still open is decided from here on.
        self.asked = 0;
        for transaction in self.open.values_mut() {
            transaction.phase = Phase::Open;
        }
        let armed: Vec<(TransactionId, MonotonicMs)> = self
            .open
            .iter()
            .map(|(id, one)| (id, self.deadline_of(one.immunity_ms, one.begun, now)))
            .collect();
        for (id, deadline) in armed {
            self.open.arm(id, deadline);
        }
        let fenced: Vec<ProducerId> = self.sessions.keys().copied().collect();
        for producer in fenced {
            self.roll_back_fenced(producer, effects);
        }
    }

    pub(super) fn roll_back_fenced(&mut self, producer: ProducerId, effects: &mut Vec<Effect>) {
        let Some(epoch) = self.sessions.get(&producer).map(|session| session.epoch) else {
            return;
        };
        let left: Vec<TransactionId> = self
            .open
            .iter_of(producer)
            .filter(|(id, one)| {
                id.epoch < epoch && one.immunity_ms.is_none() && one.phase == Phase::Open
            })
            .map(|(id, _)| id)
            .collect();
        for id in left {
            self.begin_deciding(id, Decision::Rollback, By::Fencing, effects);
        }
    }

    /// Asks for sessions unused since `before` with nothing open to be forgotten.
    pub fn forget_sessions(&mut self, before: WallMs, effects: &mut Vec<Effect>) {
        let busy = |id: ProducerId| {
            self.open.of(id) > 0 || self.opening.iter().any(|one| one.producer == id)
        };
        let unused: Vec<ProducerId> = self
            .sessions
            .iter()
            .filter(|(id, session)| session.used < before && !busy(**id))
            .map(|(id, _)| *id)
            .take(1_000)
            .collect();
        if !unused.is_empty() {
            self.persist(&Delta::Forgotten(unused), effects);
        }
    }
}

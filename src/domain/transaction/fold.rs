//! Taking in durable entries: the only way anything is decided (X6).

use super::*;

impl Coordinator {
    /// Takes in a durable entry (X6): the only way anything is decided.
    pub fn apply(&mut self, entry: &AppliedEntry, effects: &mut Vec<Effect>) {
        let header = &entry.header;
        if header.sequence <= self.head.sequence {
            return;
        }
        self.head.sequence = header.sequence;
        self.dirty.head = true;
        match header.kind {
            EntryKind::State => match rmp_serde::from_slice(&entry.body) {
                Ok(Delta::Registered(registration)) => {
                    self.apply_registered(registration, header.wall);
                }
                Ok(delta) => {
                    self.asked = self.asked.saturating_sub(1);
                    self.apply_own(delta, header.wall, effects);
                }
                Err(_) => {}
            },
            EntryKind::Snapshot => {
                self.asked = self.asked.saturating_sub(1);
                self.apply_snapshot(&entry.body);
            }
            EntryKind::Payload | EntryKind::Publish | EntryKind::Delete | EntryKind::Mark => {}
        }
    }

    fn apply_own(&mut self, delta: Delta, wall: WallMs, effects: &mut Vec<Effect>) {
        match delta {
            Delta::Opened {
                name,
                group,
                producer,
                epoch,
            } => self.apply_opened(name, group, (producer, epoch), wall, effects),
            Delta::Decided { id, decision, by } => {
                self.apply_decided(id, decision, by, wall, effects);
            }
            Delta::Forgotten(ids) => {
                for id in ids {
                    if let Some(session) = self.sessions.remove(&id) {
                        self.names.remove(&session.name);
                        self.dirty.sessions.insert(id);
                    }
                }
            }
            Delta::Registered(_) => {}
        }
    }

    fn apply_opened(
        &mut self,
        name: String,
        group: String,
        (producer, epoch): (ProducerId, ProducerEpoch),
        wall: WallMs,
        effects: &mut Vec<Effect>,
    ) {
        let count = producer.0 & ((1 << SHARD_SHIFT) - 1);
        self.head.sessions = self.head.sessions.max(count);
        self.names.insert(name.clone(), producer);
        let (recent, low) = self
            .sessions
            .remove(&producer)
            .map(|before| (before.recent, before.low))
            .unwrap_or_default();
        let session = Session {
            name,
            group,
            epoch,
            used: wall,
            recent,
            low,
        };
        self.sessions.insert(producer, session);
        self.dirty.sessions.insert(producer);
        self.roll_back_fenced(producer, effects);
        let first = self.opening.front();
        if first.is_some_and(|one| (one.producer, one.epoch) == (producer, epoch))
            && let Some(Opening { token, .. }) = self.opening.pop_front()
        {
            effects.push(Effect::Opened(token, producer, epoch));
        }
    }

    fn apply_registered(&mut self, registration: Registration, wall: WallMs) {
        let Registration {
            id,
            participant,
            immunity_ms,
        } = registration;
        let transaction = self
            .open
            .get_or_make(id, || Transaction::new(wall, immunity_ms));
        if transaction.batches == 0 {
            transaction.begun = wall;
            transaction.born = self.head.sequence;
        }
        transaction.batches = transaction.batches.saturating_add(1);
        transaction.participants.take_in(participant);
        self.dirty.open.insert(transaction.born, id);
    }

    fn apply_decided(
        &mut self,
        id: TransactionId,
        decision: Decision,
        by: By,
        wall: WallMs,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(transaction) = self.open.remove(&id) {
            self.dirty.open.insert(transaction.born, id);
        }
        for token in self.waiting.remove(&id).into_iter().flatten() {
            effects.push(Effect::Ended(token, decision, by));
        }
        if let Some(session) = self.sessions.get_mut(&id.producer) {
            session.used = wall;
            session.remember(id, decision);
            self.dirty.sessions.insert(id.producer);
        }
        if by != By::Producer {
            let finished = Finished {
                id,
                decision,
                by,
                at: wall,
            };
            self.finished.insert(self.head.sequence, finished);
            self.dirty.finished.insert(self.head.sequence);
            self.drop_old_finished(wall);
        }
    }

    fn drop_old_finished(&mut self, wall: WallMs) {
        let span = i64::try_from(self.limits.finished_ms).unwrap_or(i64::MAX);
        let before = wall.0.saturating_sub(span);
        while let Some((sequence, first)) = self.finished.first_key_value() {
            if self.finished.len() <= FINISHED_MAX && first.at.0 >= before {
                return;
            }
            let sequence = *sequence;
            self.finished.remove(&sequence);
            self.dirty.finished.insert(sequence);
        }
    }
}

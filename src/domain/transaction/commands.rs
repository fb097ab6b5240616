//! What sessions, people and check-backs ask of a coordinator.

use super::*;

impl Coordinator {
    /// Opens a session of a transactional id. With the epoch of a session that is still in force it goes on
    /// where it was, after a lost connection; otherwise its predecessor is fenced and what it left open is
    /// rolled back (X4).
    pub fn open(
        &mut self,
        token: Token,
        name: &str,
        group: &str,
        resume: Option<(ProducerId, ProducerEpoch)>,
        effects: &mut Vec<Effect>,
    ) {
        if let Err(rejection) = check_name(name).and_then(|()| check_group(group)) {
            return effects.push(Effect::Refuse(token, rejection));
        }
        let known = self.names.get(name).copied();
        if let Some((producer, epoch)) = resume {
            let verdict = match known.and_then(|id| Some((id, self.sessions.get(&id)?))) {
                Some((id, session)) if id == producer && session.epoch == epoch => {
                    Effect::Opened(token, producer, epoch)
                }
                Some((_, session)) => Effect::Refuse(
                    token,
                    Rejection::ProducerFenced {
                        current: session.epoch,
                    },
                ),
                None => Effect::Refuse(token, Rejection::ProducerStateLost),
            };
            return effects.push(verdict);
        }
        if self.opening.iter().any(|one| one.name == name) {
            return effects.push(Effect::Refuse(token, Rejection::Throttled { after_ms: 5 }));
        }
        let sessions = self.sessions.len() + self.opening.len();
        if known.is_none() && sessions >= self.limits.sessions_max as usize {
            let max = self.limits.sessions_max;
            return effects.push(Effect::Refuse(token, Rejection::TooManyProducers { max }));
        }
        let (producer, epoch) = match known.and_then(|id| Some((id, self.sessions.get(&id)?))) {
            Some((id, session)) => (id, ProducerEpoch(session.epoch.0.saturating_add(1))),
            None => (self.fresh_producer(), ProducerEpoch(0)),
        };
        self.opening.push_back(Opening {
            token,
            name: name.to_owned(),
            producer,
            epoch,
        });
        let delta = Delta::Opened {
            name: name.to_owned(),
            group: group.to_owned(),
            producer,
            epoch,
        };
        self.persist(&delta, effects);
    }

    pub(super) fn fresh_producer(&mut self) -> ProducerId {
        self.accepted_sessions = self.accepted_sessions.max(self.head.sessions) + 1;
        ProducerId(SESSION_BIT | u64::from(self.shard) << SHARD_SHIFT | self.accepted_sessions)
    }

    pub(super) fn persist(&mut self, delta: &Delta, effects: &mut Vec<Effect>) {
        let draft = rows::state(delta);
        if self.restating {
            return self.held.deltas.push(draft);
        }
        self.asked += 1;
        effects.push(Effect::Persist(draft));
    }

    /// Lets a half or an attachment through to its owner, or refuses it. `registration` says what will be
    /// registered if it is stored.
    pub fn half(
        &mut self,
        token: Token,
        registration: Registration,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let id = registration.id;
        if self.restating {
            return self.held.halves.push((token, registration, now));
        }
        if let Err(rejection) = self.may_take(&registration) {
            return effects.push(Effect::Refuse(token, rejection));
        }
        let deadline = self.deadline_of(registration.immunity_ms, now.wall, now);
        let is_new = self.open.get(&id).is_none();
        let transaction = self
            .open
            .get_or_make(id, || Transaction::new(now.wall, registration.immunity_ms));
        transaction.in_flight += 1;
        let registration = Registration {
            immunity_ms: transaction.immunity_ms,
            ..registration
        };
        if is_new {
            self.open.arm(id, deadline);
        }
        let draft = rows::state(&Delta::Registered(registration));
        effects.push(Effect::LetThrough(token, id, draft));
    }

    fn may_take(&self, registration: &Registration) -> Result<(), Rejection> {
        let id = registration.id;
        let session = self
            .sessions
            .get(&id.producer)
            .ok_or(Rejection::TransactionUnknown)?;
        if session.epoch != id.epoch {
            let current = session.epoch;
            return Err(Rejection::ProducerFenced { current });
        }
        if let Some(transaction) = self.open.get(&id) {
            return match transaction.phase {
                Phase::Deciding { decision, .. } => {
                    Err(Rejection::TransactionDecided { stands: decision })
                }
                Phase::Open => self.has_room(transaction, registration.participant.owner),
            };
        }
        if let Some(stands) = session.decision(id) {
            return Err(Rejection::TransactionDecided { stands });
        }
        if id.number.0 == 0 || session.is_past(id) {
            return Err(Rejection::TransactionUnknown);
        }
        let limit = if self.open.len() >= self.limits.open_max as usize {
            Some(("open in a coordinator", self.limits.open_max))
        } else if self.open.of(id.producer) >= self.limits.open_per_session_max as usize {
            Some(("open in a session", self.limits.open_per_session_max))
        } else {
            None
        };
        limit.map_or(Ok(()), |(what, max)| {
            Err(Rejection::TransactionLimit { what, max })
        })
    }

    fn has_room(&self, transaction: &Transaction, owner: OwnerId) -> Result<(), Rejection> {
        let waiting = transaction.in_flight;
        if transaction.batches.saturating_add(waiting) >= self.limits.batches_max {
            return Err(Rejection::TransactionLimit {
                what: "batches in a transaction",
                max: self.limits.batches_max,
            });
        }
        let participants = transaction.participants.as_slice();
        let known = participants.iter().any(|one| one.owner == owner);
        let touched = participants.len() + waiting as usize;
        if !known && touched >= self.limits.participants_max as usize {
            return Err(Rejection::TransactionLimit {
                what: "partitions and groups in a transaction",
                max: self.limits.participants_max,
            });
        }
        Ok(())
    }

    /// Something let through is stored or refused, or lost with whoever held it.
    pub fn settled(&mut self, id: TransactionId, effects: &mut Vec<Effect>) {
        let Some(transaction) = self.open.get_mut(&id) else {
            return;
        };
        transaction.in_flight = transaction.in_flight.saturating_sub(1);
        let nothing = transaction.in_flight == 0 && transaction.batches == 0;
        if nothing && transaction.phase == Phase::Open {
            // Its only half was refused: there is nothing to decide.
            self.open.remove(&id);
            return;
        }
        self.decide_if_quiet(id, effects);
    }

    /// Ends a transaction; answered when the decision is durable (X1, X2).
    pub fn end(
        &mut self,
        token: Token,
        id: TransactionId,
        decision: Decision,
        by: By,
        effects: &mut Vec<Effect>,
    ) {
        match self.open.get_mut(&id) {
            Some(transaction) => match transaction.phase {
                Phase::Deciding {
                    decision: stands, ..
                } if stands != decision => {
                    effects.push(Effect::Refuse(
                        token,
                        Rejection::TransactionDecided { stands },
                    ));
                }
                Phase::Deciding { .. } => self.wait(id, token),
                Phase::Open => {
                    self.wait(id, token);
                    self.begin_deciding(id, decision, by, effects);
                }
            },
            None => effects.push(self.answer_finished(token, id, decision)),
        }
    }

    fn wait(&mut self, id: TransactionId, token: Token) {
        self.waiting.entry(id).or_default().push(token);
    }

    fn answer_finished(&self, token: Token, id: TransactionId, wanted: Decision) -> Effect {
        let finished = self.finished.values().rev().find(|one| one.id == id);
        let known = finished.map(|one| (one.decision, one.by));
        let session = self.sessions.get(&id.producer);
        let remembered = || Some((session?.decision(id)?, By::Producer));
        match known.or_else(remembered) {
            Some((stands, by)) if stands == wanted => Effect::Ended(token, stands, by),
            Some((stands, _)) => Effect::Refuse(token, Rejection::TransactionDecided { stands }),
            None => match session {
                Some(session) if session.epoch > id.epoch => {
                    let current = session.epoch;
                    Effect::Refuse(token, Rejection::ProducerFenced { current })
                }
                _ => Effect::Refuse(token, Rejection::TransactionUnknown),
            },
        }
    }

    pub(super) fn begin_deciding(
        &mut self,
        id: TransactionId,
        decision: Decision,
        by: By,
        effects: &mut Vec<Effect>,
    ) {
        let Some(transaction) = self.open.get_mut(&id) else {
            return;
        };
        transaction.phase = Phase::Deciding {
            decision,
            by,
            asked: false,
        };
        self.open.disarm(id);
        self.decide_if_quiet(id, effects);
    }

    pub(super) fn decide_if_quiet(&mut self, id: TransactionId, effects: &mut Vec<Effect>) {
        let Some(transaction) = self.open.get_mut(&id) else {
            return;
        };
        let Phase::Deciding {
            decision,
            by,
            ref mut asked,
        } = transaction.phase
        else {
            return;
        };
        if *asked || transaction.in_flight > 0 {
            return;
        }
        if self.restating {
            return self.held.decisions.push(id);
        }
        *asked = true;
        self.asked += 1;
        let delta = rows::state(&Delta::Decided { id, decision, by });
        effects.push(Effect::Decide {
            id,
            decision,
            delta,
            participants: transaction.participants.as_slice().to_vec(),
        });
    }

    /// The answer to a check-back: an outcome, or that it is not known. Not answered: what is decided is
    /// decided (X5).
    pub fn checked(
        &mut self,
        id: TransactionId,
        outcome: Option<Decision>,
        effects: &mut Vec<Effect>,
    ) {
        let open = self
            .open
            .get(&id)
            .is_some_and(|transaction| transaction.phase == Phase::Open);
        if let Some(decision) = outcome.filter(|_| open) {
            self.begin_deciding(id, decision, By::CheckBack, effects);
        }
    }

    /// A check-back reached a producer of the group.
    pub fn heard(&mut self, id: TransactionId) {
        if let Some(transaction) = self.open.get_mut(&id) {
            transaction.checks = transaction.checks.saturating_add(1);
        }
    }

    /// The log refused something of this incarnation: back to the applied state. Whoever waits hears why
    /// and asks again; [`Coordinator::resume`] follows.
    pub fn reset(&mut self, why: &Rejection, effects: &mut Vec<Effect>) {
        self.asked = 0;
        self.restating = false;
        let held = std::mem::take(&mut self.held);
        let halves = held.halves.into_iter().map(|(token, ..)| token);
        effects.extend(halves.map(|token| Effect::Refuse(token, why.clone())));
        self.accepted_sessions = self.head.sessions;
        for Opening { token, .. } in self.opening.drain(..) {
            effects.push(Effect::Refuse(token, why.clone()));
        }
        for transaction in self.open.values_mut() {
            transaction.phase = Phase::Open;
        }
        let waiting = std::mem::take(&mut self.waiting);
        for token in waiting.into_values().flatten() {
            effects.push(Effect::Refuse(token, why.clone()));
        }
    }
}

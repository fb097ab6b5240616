//! What is told of transactions.

use super::*;

impl Coordinator {
    /// Open transactions and the finished ones that are kept, from `after` on, at most `max`.
    #[must_use]
    pub fn list(&self, after: Option<TransactionId>, max: usize) -> Vec<Description> {
        let later = |id: TransactionId| after.is_none_or(|after| id > after);
        let mut finished: Vec<Finished> = self
            .finished
            .values()
            .filter(|one| later(one.id))
            .copied()
            .collect();
        finished.sort_by_key(|one| one.id);
        let mut list: Vec<Description> = self
            .open
            .within(
                after.unwrap_or_default(),
                *ids_of(ProducerId(u64::MAX)).end(),
            )
            .filter(|(id, _)| later(*id))
            .take(max)
            .map(|(id, transaction)| self.describe_open(id, transaction))
            .chain(
                finished
                    .iter()
                    .take(max)
                    .map(|one| self.describe_finished(one)),
            )
            .collect();
        list.sort_by_key(|one| one.id);
        list.truncate(max);
        list
    }

    /// What is known of one transaction.
    ///
    /// # Errors
    /// `TransactionUnknown` where it never was, or is forgotten.
    pub fn describe(&self, id: TransactionId) -> Result<Description, Rejection> {
        if let Some(transaction) = self.open.get(&id) {
            return Ok(self.describe_open(id, transaction));
        }
        if let Some(finished) = self.finished.values().rev().find(|one| one.id == id) {
            return Ok(self.describe_finished(finished));
        }
        let session = self.sessions.get(&id.producer);
        let decided = session.and_then(|session| Some((session, session.decision(id)?)));
        let (session, decision) = decided.ok_or(Rejection::TransactionUnknown)?;
        Ok(self.describe_finished(&Finished {
            id,
            decision,
            by: By::Producer,
            at: session.used,
        }))
    }

    fn describe_open(&self, id: TransactionId, one: &Transaction) -> Description {
        let (name, group) = self.names_of(id);
        Description {
            id,
            name,
            group,
            state: match one.phase {
                Phase::Open => State::Open,
                Phase::Deciding { decision, by, .. } => State::Deciding(decision, by),
            },
            at: one.begun,
            checked_back: one.immunity_ms.is_some(),
            checks: one.checks,
            batches: one.batches,
            participants: one.participants.as_slice().to_vec(),
        }
    }

    fn describe_finished(&self, one: &Finished) -> Description {
        let (name, group) = self.names_of(one.id);
        Description {
            id: one.id,
            name,
            group,
            state: State::Decided(one.decision, one.by),
            at: one.at,
            checked_back: false,
            checks: 0,
            batches: 0,
            participants: Vec::new(),
        }
    }

    fn names_of(&self, id: TransactionId) -> (String, String) {
        self.sessions
            .get(&id.producer)
            .map(|session| (session.name.clone(), session.group.clone()))
            .unwrap_or_default()
    }
}

//! What is open at a coordinator: by session and name, and when each falls due.
//!
//! A hundred thousand half messages may wait here, so each takes one small allocation (its first participant lies
//! in it) and a place among the deadlines. What is disarmed stays among those until it comes first, or until
//! there are more of that kind than of the others.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::{Part, Participant, Phase, TransactionId, ids_of};
use crate::domain::id::{OwnerSequence, ProducerEpoch, ProducerId, TransactionNumber};
use crate::domain::time::{MonotonicMs, WallMs};

/// The deadline of what has none.
const NEVER: MonotonicMs = MonotonicMs(u64::MAX);
/// Disarmed deadlines that are kept in any case.
const STALE_MIN: usize = 64;

/// An open transaction.
#[derive(Debug, Clone)]
pub(super) struct Transaction {
    pub(super) phase: Phase,
    pub(super) born: OwnerSequence,
    pub(super) begun: WallMs,
    pub(super) immunity_ms: Option<u32>,
    pub(super) batches: u32,
    pub(super) participants: Participants,
    /// Let through, neither stored nor refused.
    pub(super) in_flight: u32,
    /// Questions that were heard.
    pub(super) checks: u16,
    deadline: MonotonicMs,
}

impl Transaction {
    pub(super) fn new(begun: WallMs, immunity_ms: Option<u32>) -> Self {
        Self {
            phase: Phase::Open,
            born: OwnerSequence(0),
            begun,
            immunity_ms,
            batches: 0,
            participants: Participants::None,
            in_flight: 0,
            checks: 0,
            deadline: NEVER,
        }
    }
}

/// Whom a transaction touches. Of a half message it is one.
#[derive(Debug, Clone)]
pub(super) enum Participants {
    /// Nobody yet.
    None,
    /// One.
    One(Participant),
    /// Several.
    Many(Vec<Participant>),
}

impl From<Vec<Participant>> for Participants {
    fn from(all: Vec<Participant>) -> Self {
        match all.as_slice() {
            [] => Self::None,
            [one] => Self::One(*one),
            _ => Self::Many(all),
        }
    }
}

impl Participants {
    pub(super) fn as_slice(&self) -> &[Participant] {
        match self {
            Self::None => &[],
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(all) => all,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [Participant] {
        match self {
            Self::None => &mut [],
            Self::One(one) => std::slice::from_mut(one),
            Self::Many(all) => all,
        }
    }

    /// Adds what one more half or attachment says of a participant.
    pub(super) fn take_in(&mut self, new: Participant) {
        let mut all = self.as_mut_slice().iter_mut();
        let Some(known) = all.find(|one| one.owner == new.owner) else {
            return self.push(new);
        };
        if let Part::Records {
            records, immediate, ..
        } = &mut known.part
            && let Part::Records {
                records: more,
                immediate: now,
                ..
            } = new.part
        {
            *records = records.saturating_add(more);
            *immediate = immediate.saturating_add(now);
        }
    }

    fn push(&mut self, new: Participant) {
        match self {
            Self::None => *self = Self::One(new),
            Self::One(first) => *self = Self::Many(vec![*first, new]),
            Self::Many(all) => all.push(new),
        }
    }
}

type InSession = (ProducerEpoch, TransactionNumber);

/// Everything open.
#[derive(Debug, Clone, Default)]
pub(super) struct OpenOnes {
    sessions: BTreeMap<ProducerId, BTreeMap<InSession, Box<Transaction>>>,
    count: usize,
    /// Stale where the transaction's own deadline is another. The first never is.
    deadlines: BinaryHeap<Reverse<(MonotonicMs, TransactionId)>>,
}

impl OpenOnes {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// How many a session has open.
    pub(super) fn of(&self, producer: ProducerId) -> usize {
        self.sessions.get(&producer).map_or(0, BTreeMap::len)
    }

    pub(super) fn get(&self, id: &TransactionId) -> Option<&Transaction> {
        let session = self.sessions.get(&id.producer)?;
        session.get(&(id.epoch, id.number)).map(AsRef::as_ref)
    }

    pub(super) fn get_mut(&mut self, id: &TransactionId) -> Option<&mut Transaction> {
        let session = self.sessions.get_mut(&id.producer)?;
        session.get_mut(&(id.epoch, id.number)).map(AsMut::as_mut)
    }

    /// The one of this name, made where there is none.
    pub(super) fn get_or_make(
        &mut self,
        id: TransactionId,
        make: impl FnOnce() -> Transaction,
    ) -> &mut Transaction {
        let session = self.sessions.entry(id.producer).or_default();
        session.entry((id.epoch, id.number)).or_insert_with(|| {
            self.count += 1;
            Box::new(make())
        })
    }

    /// Puts one in the place of whatever has its name.
    pub(super) fn put(&mut self, id: TransactionId, one: Transaction) {
        self.remove(&id);
        self.get_or_make(id, || one);
    }

    pub(super) fn remove(&mut self, id: &TransactionId) -> Option<Transaction> {
        let session = self.sessions.get_mut(&id.producer)?;
        let gone = session.remove(&(id.epoch, id.number))?;
        if session.is_empty() {
            self.sessions.remove(&id.producer);
        }
        self.count -= 1;
        self.clear_stale();
        Some(*gone)
    }

    /// By name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (TransactionId, &Transaction)> {
        self.sessions.iter().flat_map(|(producer, session)| {
            session
                .iter()
                .map(|(name, one)| (id_of(*producer, *name), one.as_ref()))
        })
    }

    /// Those of a session.
    pub(super) fn iter_of(
        &self,
        producer: ProducerId,
    ) -> impl Iterator<Item = (TransactionId, &Transaction)> {
        let session = self.sessions.get(&producer).into_iter().flatten();
        session.map(move |(name, one)| (id_of(producer, *name), one.as_ref()))
    }

    /// Those of a range of names, both ends included.
    pub(super) fn within(
        &self,
        from: TransactionId,
        to: TransactionId,
    ) -> impl Iterator<Item = (TransactionId, &Transaction)> {
        // A range that ends before it begins would panic; nobody writes one.
        let to = to.max(from);
        self.sessions
            .range(from.producer..=to.producer)
            .flat_map(move |(producer, session)| {
                let is_first = *producer == from.producer;
                let is_last = *producer == to.producer;
                let (first, last) = (ids_of(*producer), ids_of(*producer));
                let first = if is_first { from } else { *first.start() };
                let last = if is_last { to } else { *last.end() };
                let names = (first.epoch, first.number)..=(last.epoch, last.number);
                let session = session.range(names);
                session.map(|(name, one)| (id_of(*producer, *name), one.as_ref()))
            })
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Transaction> {
        let sessions = self.sessions.values_mut();
        sessions.flat_map(|session| session.values_mut().map(AsMut::as_mut))
    }

    /// It falls due then, and not when it was to before.
    pub(super) fn arm(&mut self, id: TransactionId, at: MonotonicMs) {
        let Some(one) = self.get_mut(&id) else {
            return;
        };
        if std::mem::replace(&mut one.deadline, at) != at && at != NEVER {
            if self.deadlines.len() == self.deadlines.capacity() {
                // Not doubled: most of the memory would stand empty.
                let more = self.deadlines.len() / 8 + STALE_MIN;
                self.deadlines.reserve_exact(more);
            }
            self.deadlines.push(Reverse((at, id)));
        }
        self.clear_stale();
    }

    /// It does not fall due any more.
    pub(super) fn disarm(&mut self, id: TransactionId) {
        self.arm(id, NEVER);
    }

    /// Nothing falls due any more.
    pub(super) fn disarm_all(&mut self) {
        self.deadlines.clear();
        for one in self.values_mut() {
            one.deadline = NEVER;
        }
    }

    /// When the next one falls due.
    pub(super) fn next_deadline(&self) -> Option<MonotonicMs> {
        self.deadlines.peek().map(|Reverse((at, _))| *at)
    }

    /// One that has fallen due, if there is one; disarmed.
    pub(super) fn due(&mut self, now: MonotonicMs) -> Option<TransactionId> {
        let Reverse((at, id)) = *self.deadlines.peek()?;
        if at > now {
            return None;
        }
        self.disarm(id);
        Some(id)
    }

    fn is_live(&self, (at, id): (MonotonicMs, TransactionId)) -> bool {
        self.get(&id).is_some_and(|one| one.deadline == at)
    }

    fn clear_stale(&mut self) {
        if self.deadlines.len() > 2 * self.count + STALE_MIN {
            let mut deadlines = std::mem::take(&mut self.deadlines);
            deadlines.retain(|Reverse(one)| self.is_live(*one));
            deadlines.shrink_to(2 * self.count + STALE_MIN);
            self.deadlines = deadlines;
        }
        while let Some(Reverse(first)) = self.deadlines.peek()
            && !self.is_live(*first)
        {
            self.deadlines.pop();
        }
    }
}

fn id_of(producer: ProducerId, (epoch, number): InSession) -> TransactionId {
    TransactionId {
        producer,
        epoch,
        number,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What is open, and its deadline.
    #[derive(Default)]
    struct Model(BTreeMap<TransactionId, MonotonicMs>);

    impl Model {
        fn deadlines(&self) -> BTreeSet<(MonotonicMs, TransactionId)> {
            let armed = self.0.iter().filter(|(_, at)| **at != NEVER);
            armed.map(|(id, at)| (*at, *id)).collect()
        }
    }

    #[derive(Debug, Clone)]
    enum Op {
        Make(u64, u64),
        Remove(u64, u64),
        Arm(u64, u64, u64),
        Disarm(u64, u64),
        Due(u64),
        DisarmAll,
        Churn(u64, u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let (session, number, at) = (0..3_u64, 0..6_u64, 0..20_u64);
        let name = (session, number);
        prop_oneof![
            4 => name.clone().prop_map(|(of, number)| Op::Make(of, number)),
            2 => name.clone().prop_map(|(of, number)| Op::Remove(of, number)),
            6 => (name.clone(), at.clone()).prop_map(|((of, number), at)| Op::Arm(of, number, at)),
            1 => name.clone().prop_map(|(of, number)| Op::Disarm(of, number)),
            2 => at.prop_map(Op::Due),
            1 => Just(Op::DisarmAll),
            1 => name.prop_map(|(of, number)| Op::Churn(of, number)),
        ]
    }

    fn id(of: u64, number: u64) -> TransactionId {
        let epoch = u32::try_from(number % 2).unwrap();
        id_of(
            ProducerId(of),
            (ProducerEpoch(epoch), TransactionNumber(number)),
        )
    }

    fn arm(open: &mut OpenOnes, model: &mut Model, id: TransactionId, at: MonotonicMs) {
        open.arm(id, at);
        if let Some(deadline) = model.0.get_mut(&id) {
            *deadline = at;
        }
    }

    fn run(op: Op, open: &mut OpenOnes, model: &mut Model) {
        match op {
            Op::Make(of, number) => {
                let id = id(of, number);
                open.get_or_make(id, || Transaction::new(WallMs(0), None));
                model.0.entry(id).or_insert(NEVER);
            }
            Op::Remove(of, number) => {
                let gone = open.remove(&id(of, number)).is_some();
                assert_eq!(gone, model.0.remove(&id(of, number)).is_some());
            }
            Op::Arm(of, number, at) => arm(open, model, id(of, number), MonotonicMs(at)),
            Op::Disarm(of, number) => {
                open.disarm(id(of, number));
                if let Some(deadline) = model.0.get_mut(&id(of, number)) {
                    *deadline = NEVER;
                }
            }
            Op::Due(now) => {
                let now = MonotonicMs(now);
                let first = model.deadlines().first().copied();
                let first = first.filter(|(at, _)| *at <= now).map(|(_, id)| id);
                assert_eq!(open.due(now), first);
                first.and_then(|id| model.0.insert(id, NEVER));
            }
            Op::DisarmAll => {
                open.disarm_all();
                model.0.values_mut().for_each(|at| *at = NEVER);
            }
            // More that is stale than is kept.
            Op::Churn(of, number) => {
                for at in 0..200 {
                    arm(open, model, id(of, number), MonotonicMs(1_000 - at % 7));
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_open_and_due_is_that_of_a_plain_map(ops in prop::collection::vec(op(), 1..80)) {
            let (mut open, mut model) = (OpenOnes::default(), Model::default());
            for op in ops {
                run(op, &mut open, &mut model);
                let names: Vec<_> = model.0.keys().copied().collect();
                prop_assert_eq!(open.iter().map(|(id, _)| id).collect::<Vec<_>>(), names.clone());
                prop_assert_eq!(open.len(), names.len());
                for of in 0..3 {
                    let of = ProducerId(of);
                    let mine = names.iter().filter(|id| id.producer == of).count();
                    prop_assert_eq!((open.of(of), open.iter_of(of).count()), (mine, mine));
                }
                let (from, to) = (id(0, 3), id(2, 2));
                let within: Vec<_> = open.within(from, to).map(|(id, _)| id).collect();
                let wanted: Vec<_> = model.0.range(from..=to).map(|(id, _)| *id).collect();
                prop_assert_eq!(within, wanted);
                let next = model.deadlines().first().map(|(at, _)| *at);
                prop_assert_eq!(open.next_deadline(), next);
                prop_assert!(open.deadlines.len() <= 2 * open.len() + STALE_MIN + 1, "bounded");
            }
        }
    }
}

//! Attachments against the naive model: whatever members, time and crashes do, what is attached is held
//! until the decision, then it is consumed, or comes again.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::modes::{Step, pick, pick_lease, room, run, spec, step, tight};
use super::rig::*;
use crate::domain::group::command::*;
use crate::domain::group::decision_draft;
use crate::domain::group::delta::Why;
use crate::domain::group::subscription::Mode;
use crate::domain::id::*;
use crate::domain::rejection::Rejection;
use crate::domain::transaction::{Decision, TransactionId};

type Records = BTreeSet<(PartitionId, u64)>;

#[derive(Debug, Clone)]
enum Move {
    World(Step),
    /// Of which transaction, by whom, of which lease, from where, how many.
    Attach(usize, usize, usize, u64, u32),
    /// Everything of a place up to the lease's first record.
    AttachUpTo(usize, usize, usize),
    Decide(usize, bool),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let index = any::<usize>;
    let one = prop_oneof![
        8 => step().prop_map(Move::World),
        3 => (0usize..3, index(), index(), 0u64..4, 1u32..6)
            .prop_map(|(t, m, l, s, c)| Move::Attach(t, m, l, s, c)),
        1 => (0usize..3, index(), index()).prop_map(|(t, m, l)| Move::AttachUpTo(t, m, l)),
        2 => (0usize..3, any::<bool>()).prop_map(|(t, commit)| Move::Decide(t, commit)),
    ];
    proptest::collection::vec(one, 0..150)
}

/// What a coordinator and a producer would know.
struct Model {
    rig: Rig,
    /// The transaction each slot has open now.
    open: [u64; 3],
    next: u64,
    /// Asked for and not answered.
    asked: BTreeMap<Token, (u64, Records)>,
    /// Confirmed and not decided.
    held: BTreeMap<u64, Records>,
    /// Decided, on its way to the log.
    deciding: BTreeMap<u64, (bool, Records)>,
}

fn id(number: u64) -> TransactionId {
    TransactionId {
        producer: ProducerId(1 << 63),
        epoch: ProducerEpoch(1),
        number: TransactionNumber(number),
    }
}

/// Under it, an order that is broken by the model's own doing counts as kept.
const WORD: u64 = 1 << 40;

impl Model {
    fn step(&mut self, next: Move) {
        match next {
            Move::World(Step::Crash(from_rows)) => {
                self.rig.crash(from_rows);
                self.lose_what_was_asked();
            }
            Move::World(Step::Fence) => {
                self.rig.queue.clear();
                self.rig.acking.retain(|token, _| token.0 >= WORD);
                self.rig
                    .call(|group, now, effects| group.fenced(now, &Rejection::Retry, effects));
                self.lose_what_was_asked();
            }
            Move::World(step) => run(&mut self.rig, step),
            Move::Attach(slot, which, lease, skip, count) => {
                if let Some(member) = pick(&self.rig, which)
                    && let Some((lease, first)) = pick_lease(&self.rig, member, lease)
                {
                    self.attach(slot, member, lease, first + skip, count);
                }
            }
            Move::AttachUpTo(slot, which, lease) => {
                if let Some(member) = pick(&self.rig, which)
                    && let Some((lease, first)) = pick_lease(&self.rig, member, lease)
                {
                    self.attach_up_to(slot, member, lease, first + 1);
                }
            }
            Move::Decide(slot, commit) => self.decide(slot, commit),
        }
        self.take_answers();
        self.check();
    }

    fn attach(&mut self, slot: usize, member: MemberId, lease: LeaseId, first: u64, count: u32) {
        let (at, open, _) = &self.rig.clients[&member].leases[&lease];
        let wanted: Records = (first..first + u64::from(count))
            .map(|o| (*at, o))
            .collect();
        let whole = wanted.iter().all(|(_, offset)| open.contains(offset));
        let range = LeasedRange {
            lease,
            first: Offset(first),
            count,
        };
        let what = Attached::Ranges(vec![range]);
        self.ask(
            slot,
            member,
            what,
            if whole { wanted } else { Records::new() },
        );
    }

    fn attach_up_to(&mut self, slot: usize, member: MemberId, lease: LeaseId, end: u64) {
        let leases = &self.rig.clients[&member].leases;
        let place = leases[&lease].0;
        let wanted: Records = leases
            .values()
            .filter(|(at, ..)| *at == place)
            .flat_map(|(_, open, _)| open.range(..end).map(|offset| (place, *offset)))
            .collect();
        let end = Offset(end);
        self.ask(slot, member, Attached::UpTo { place, end }, wanted);
    }

    /// `wanted` is what must be attached; nothing where the command must be refused.
    fn ask(&mut self, slot: usize, member: MemberId, what: Attached, wanted: Records) {
        let number = self.open[slot];
        // As they are the transaction's now, who has them says they are done with.
        let word = Token(WORD + self.rig.next_token + 1);
        self.rig
            .acking
            .insert(word, wanted.iter().copied().collect());
        let before = self.rig.clients[&member].leases.clone();
        let client = self.rig.clients.get_mut(&member).unwrap();
        for (at, open, _) in client.leases.values_mut() {
            open.retain(|offset| !wanted.contains(&(*at, *offset)));
        }
        client.leases.retain(|_, (_, open, _)| !open.is_empty());
        let token = self.rig.command(Command::Attach {
            member,
            what,
            transaction: id(number),
            tied: Vec::new(),
        });
        match self.rig.answers.get(&token) {
            Some(Err(_)) => {
                // Nothing of it happened: the leases are as they were, beside what was leased meanwhile.
                self.rig.acking.remove(&word);
                let client = self.rig.clients.get_mut(&member).unwrap();
                client.leases.extend(before);
            }
            _ => {
                assert!(!wanted.is_empty(), "attached what was not wholly leased");
                self.asked.insert(token, (number, wanted));
            }
        }
    }

    /// A coordinator decides when nothing is on its way any more, and a transaction once.
    fn decide(&mut self, slot: usize, commit: bool) {
        let number = self.open[slot];
        if self.asked.values().any(|(of, _)| *of == number) {
            return;
        }
        let records = self.held.remove(&number).unwrap_or_default();
        let decision = if commit {
            Decision::Commit
        } else {
            Decision::Rollback
        };
        self.rig
            .queue
            .push_back(vec![(OWNER, decision_draft(id(number), decision))]);
        self.deciding.insert(number, (commit, records));
        self.next += 1;
        self.open[slot] = self.next;
    }

    /// What the group had asked for is gone; decisions are their coordinator's, and still come.
    fn lose_what_was_asked(&mut self) {
        for token in std::mem::take(&mut self.asked).into_keys() {
            self.rig.acking.remove(&Token(WORD + token.0));
        }
        for (number, (commit, _)) in &self.deciding {
            let decision = if *commit {
                Decision::Commit
            } else {
                Decision::Rollback
            };
            self.rig
                .queue
                .push_back(vec![(OWNER, decision_draft(id(*number), decision))]);
        }
        self.keep_word();
    }

    fn keep_word(&mut self) {
        self.rig.acking.retain(|token, _| token.0 < WORD);
        let deciding = self
            .deciding
            .iter()
            .map(|(number, (_, records))| (number, records));
        let asked = self
            .asked
            .values()
            .map(|(number, records)| (number, records));
        for (at, (_, records)) in self.held.iter().chain(deciding).chain(asked).enumerate() {
            self.rig
                .acking
                .insert(Token(WORD + at as u64), records.iter().copied().collect());
        }
    }

    fn take_answers(&mut self) {
        let answered: Vec<Token> = self
            .asked
            .keys()
            .filter(|token| self.rig.answers.contains_key(*token))
            .copied()
            .collect();
        for token in answered {
            let (number, records) = self.asked.remove(&token).unwrap();
            if self.rig.answers[&token].is_ok() {
                self.held.entry(number).or_default().extend(records);
            }
        }
        let listed = self.listed();
        let decided: Vec<u64> = self
            .deciding
            .keys()
            .filter(|number| !self.is_queued(**number))
            .copied()
            .collect();
        for number in decided {
            let (commit, records) = self.deciding.remove(&number).unwrap();
            assert!(!listed.contains_key(&number), "decided, and still attached");
            if commit {
                let group = &self.rig.group;
                for (at, offset) in &records {
                    let mut of_place = group.cursors.values().filter(|one| one.place == *at);
                    let settled = of_place.any(|cursor| cursor.is_settled(*offset));
                    assert!(settled, "committed, not consumed");
                }
                self.rig.settled.extend(records);
            }
        }
        self.keep_word();
    }

    fn is_queued(&self, number: u64) -> bool {
        let drafts = [Decision::Commit, Decision::Rollback]
            .map(|decision| decision_draft(id(number), decision).body.to_bytes());
        let mut queued = self.rig.queue.iter().flatten();
        queued.any(|(_, draft)| drafts.contains(&draft.body.to_bytes()))
    }

    /// What the group's applied state has attached, by transaction.
    fn listed(&self) -> BTreeMap<u64, Records> {
        let mut found: BTreeMap<u64, Records> = BTreeMap::new();
        for cursor in self.rig.group.cursors.values() {
            for (offset, listed) in &cursor.listed {
                if let Why::Attached(id) = &listed.why {
                    let records = found.entry(id.number.0).or_default();
                    assert!(records.insert((cursor.place, *offset)));
                }
            }
        }
        found
    }

    /// What was confirmed is held, and by nobody else; nothing else is.
    fn check(&self) {
        let listed = self.listed();
        let mut all = Records::new();
        for (number, records) in &listed {
            let known = self
                .held
                .get(number)
                .or_else(|| self.deciding.get(number).map(|(_, r)| r));
            assert_eq!(Some(records), known, "held for {number}");
            for record in records {
                assert!(all.insert(*record), "G9: {record:?} is attached twice");
            }
        }
        for (number, records) in &self.held {
            assert!(
                records.is_empty() || listed.contains_key(number),
                "{number} lost what it held"
            );
        }
        for client in self.rig.clients.values() {
            for (at, open, _) in client.leases.values() {
                let leased = |offset: &u64| all.contains(&(*at, *offset));
                assert!(!open.iter().any(leased), "G9: attached and leased");
            }
        }
    }

    fn finish(mut self) {
        while !self.asked.is_empty() || !self.deciding.is_empty() || !self.rig.queue.is_empty() {
            self.step(Move::World(Step::Commit(1)));
            self.step(Move::World(Step::Feed(0)));
        }
        for slot in 0..3 {
            self.decide(slot, slot == 1);
        }
        while !self.deciding.is_empty() {
            self.step(Move::World(Step::Commit(1)));
        }
        assert!(self.listed().is_empty());
        self.rig.consume_all();
        self.rig.crash(true);
        self.rig.consume_all();
    }
}

fn hold(mode: Mode, room: u32, moves: Vec<Move>) {
    let mut model = Model {
        rig: Rig::new(spec(mode), 3, tight(room)),
        open: [1, 2, 3],
        next: 3,
        asked: BTreeMap::new(),
        held: BTreeMap::new(),
        deciding: BTreeMap::new(),
    };
    for one in moves {
        model.step(one);
    }
    model.finish();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, max_shrink_iters: 1500, ..ProptestConfig::default() })]

    #[test]
    fn g9_what_is_attached_is_held_in_shared_mode(room in room(), moves in moves()) {
        hold(Mode::Shared, room, moves);
    }

    #[test]
    fn g9_what_is_attached_is_held_in_key_ordered_mode(room in room(), moves in moves()) {
        hold(Mode::KeyOrdered, room, moves);
    }

    #[test]
    fn g10_what_is_rolled_back_comes_in_order_in_exclusive_mode(room in room(), moves in moves()) {
        hold(Mode::Exclusive, room, moves);
    }
}

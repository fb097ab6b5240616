use std::collections::HashMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::rows::{RowId, Snapshot};
use super::*;
use crate::domain::entry::{EntryHeader, EntryPlace, PayloadFacts};
use crate::domain::id::{LogIndex, LogPosition, Offset, RecordNumber, Term};

const OWNER: OwnerId = OwnerId(16);

/// Lanes of one partition: participants of their own.
fn lane(lane: u8) -> PartitionId {
    PartitionId {
        topic: crate::domain::id::TopicId(4),
        partition: crate::domain::id::PartitionIndex(1),
        lane: crate::domain::id::Lane(lane),
    }
}

fn limits() -> Limits {
    Limits {
        open_per_session_max: 4,
        open_max: 8,
        participants_max: 3,
        batches_max: 5,
        sessions_max: 3,
        duration_ms: 1_000,
        check_interval_ms: 300,
        checks_max: 2,
        unheard_ms: 5_000,
        finished_ms: 20_000,
    }
}

/// What waits for the disk.
#[derive(Debug, Clone)]
struct Run {
    draft: Draft,
    /// A half of this transaction: reported when stored or refused.
    half: Option<TransactionId>,
}

/// A coordinator over a log of its own entries, and what everybody was told.
struct Rig {
    machine: Coordinator,
    log: Vec<AppliedEntry>,
    queue: Vec<Run>,
    rows: BTreeMap<RowId, Bytes>,
    rows_to: usize,
    now: Now,
    next_token: u64,
    /// Ends asked for: what and for which.
    ends: HashMap<Token, (TransactionId, Decision)>,
    told: Vec<(TransactionId, Decision)>,
    opened: Vec<(ProducerId, ProducerEpoch)>,
    refused: HashMap<Token, Rejection>,
    check_backs: Vec<TransactionId>,
    /// Registrations of each transaction as the log has them.
    registered: HashMap<TransactionId, Vec<Registration>>,
    decided: HashMap<TransactionId, Decision>,
}

impl Rig {
    fn new() -> Self {
        Self {
            machine: Coordinator::new(0, limits()),
            log: Vec::new(),
            queue: Vec::new(),
            rows: BTreeMap::new(),
            rows_to: 0,
            now: Now {
                wall: WallMs(1_000_000),
                monotonic: MonotonicMs(0),
            },
            next_token: 0,
            ends: HashMap::new(),
            told: Vec::new(),
            opened: Vec::new(),
            refused: HashMap::new(),
            check_backs: Vec::new(),
            registered: HashMap::new(),
            decided: HashMap::new(),
        }
    }

    fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Persist(draft) => self.queue.push(Run { draft, half: None }),
                Effect::LetThrough(_, id, draft) => self.queue.push(Run {
                    draft,
                    half: Some(id),
                }),
                Effect::Decide {
                    id,
                    delta,
                    participants,
                    ..
                } => {
                    self.check_participants(id, &participants);
                    self.queue.push(Run {
                        draft: delta,
                        half: None,
                    });
                }
                Effect::Opened(_, producer, epoch) => self.opened.push((producer, epoch)),
                Effect::Ended(token, decision, _) => {
                    let (id, wanted) = self.ends.remove(&token).expect("an end was asked for");
                    assert_eq!(decision, wanted, "X1: answered with what was wanted");
                    self.told.push((id, decision));
                }
                Effect::Refuse(token, rejection) => {
                    self.ends.remove(&token);
                    self.refused.insert(token, rejection);
                }
                Effect::CheckBack { id, .. } => {
                    assert!(!self.decided.contains_key(&id), "X5: {id} is decided");
                    self.check_backs.push(id);
                    self.machine.heard(id);
                }
            }
        }
    }

    /// X3: a decision names exactly whom the log has registered.
    fn check_participants(&self, id: TransactionId, participants: &[Participant]) {
        let records = |one: &Participant| match one.part {
            Part::Records {
                partition,
                records,
                immediate,
            } => Some((one.owner, (partition.lane, records, immediate))),
            Part::Attached => None,
        };
        let mut sums = BTreeMap::new();
        for registration in self.registered.get(&id).into_iter().flatten() {
            if let Some((owner, (lane, all, immediate))) = records(&registration.participant) {
                let sum = sums.entry(owner).or_insert((lane, 0, 0));
                *sum = (lane, sum.1 + all, sum.2 + immediate);
            }
        }
        let named: BTreeMap<_, _> = participants.iter().filter_map(records).collect();
        assert_eq!(named, sums, "X3: the participants of {id}");
    }

    fn open(&mut self, name: &str) {
        let token = self.token();
        let mut effects = Vec::new();
        self.machine.open(token, name, "pay", None, &mut effects);
        self.perform(effects);
    }

    fn half(&mut self, id: TransactionId, owner: u64, immunity_ms: Option<u32>) -> Token {
        let token = self.token();
        let registration = Registration {
            id,
            participant: Participant {
                owner: OwnerId(2_000 + owner),
                part: Part::Records {
                    partition: lane(u8::try_from(owner).unwrap()),
                    records: 3,
                    immediate: 2,
                },
            },
            immunity_ms,
        };
        let mut effects = Vec::new();
        self.machine
            .half(token, registration, self.now, &mut effects);
        self.perform(effects);
        token
    }

    fn end(&mut self, id: TransactionId, decision: Decision) -> Token {
        let token = self.token();
        self.ends.insert(token, (id, decision));
        let mut effects = Vec::new();
        self.machine
            .end(token, id, decision, By::Producer, &mut effects);
        self.perform(effects);
        token
    }

    fn wait(&mut self, ms: u32) {
        self.now.wall.0 += i64::from(ms);
        self.now.monotonic.0 += u64::from(ms);
        let mut effects = Vec::new();
        self.machine.tick(self.now, 3, &mut effects);
        self.perform(effects);
    }

    /// One flush: everything that waits becomes durable, in order.
    fn flush(&mut self) {
        let runs = std::mem::take(&mut self.queue);
        let mut effects = Vec::new();
        let mut halves = Vec::new();
        for run in runs {
            let sequence = self.log.len() as u64 + 1;
            let body = run.draft.body.to_bytes();
            let entry = entry(run.draft.kind, sequence, self.now.wall, body);
            self.note(&entry);
            self.machine.apply(&entry, &mut effects);
            self.log.push(entry);
            halves.extend(run.half);
        }
        self.machine.applied_all(&mut effects);
        for id in halves {
            self.machine.settled(id, &mut effects);
        }
        self.machine.applied_all(&mut effects);
        self.perform(effects);
    }

    fn note(&mut self, entry: &AppliedEntry) {
        if entry.header.kind != EntryKind::State {
            return;
        }
        match rmp_serde::from_slice(&entry.body).unwrap() {
            Delta::Registered(one) => {
                assert!(
                    !self.decided.contains_key(&one.id),
                    "X3: {} is decided",
                    one.id
                );
                self.registered.entry(one.id).or_default().push(one);
            }
            Delta::Decided { id, decision, .. } => {
                let before = self.decided.insert(id, decision);
                assert_eq!(before, None, "X1: {id} is decided twice");
            }
            Delta::Opened { .. } | Delta::Forgotten(_) => {}
        }
    }

    /// A half that its partition refuses.
    fn refuse_half(&mut self, which: usize) {
        let halves: Vec<usize> = (0..self.queue.len())
            .filter(|at| self.queue[*at].half.is_some())
            .collect();
        if let Some(at) = halves.get(which % halves.len().max(1)) {
            let run = self.queue.remove(*at);
            let mut effects = Vec::new();
            self.machine.settled(run.half.unwrap(), &mut effects);
            self.perform(effects);
        }
    }

    /// The log refuses the coordinator's incarnation; halves are their partitions' runs and stand.
    fn fence(&mut self) {
        self.queue.retain(|run| run.half.is_some());
        let mut effects = Vec::new();
        self.machine.reset(&Rejection::DiskFull, &mut effects);
        self.machine.resume(self.now, &mut effects);
        self.perform(effects);
    }

    fn write_rows(&mut self) {
        let (to, changes) = self.machine.take_rows();
        self.rows_to = usize::try_from(to.0).unwrap();
        for change in changes {
            match change.value {
                Some(value) => self.rows.insert(change.id, value),
                None => self.rows.remove(&change.id),
            };
        }
    }

    fn loaded(&self, from_rows: bool) -> Coordinator {
        let mut machine = Coordinator::new(0, limits());
        let mut from = 0;
        if from_rows {
            for (id, value) in &self.rows {
                assert!(machine.restore(*id, value));
            }
            from = self.rows_to;
        }
        for entry in self.log.iter().skip(from) {
            machine.apply(entry, &mut Vec::new());
        }
        machine
    }

    /// Everything in memory is gone. If the process lives on, halves on their way are stored first.
    fn crash(&mut self, from_rows: bool, process: bool) {
        self.queue.retain(|run| run.half.is_some() && !process);
        self.flush();
        self.queue.clear();
        self.ends.clear();
        self.machine = self.loaded(from_rows);
        let mut effects = Vec::new();
        self.machine.resume(self.now, &mut effects);
        self.perform(effects);
    }
}

type Applied = (
    Head,
    BTreeMap<ProducerId, Session>,
    BTreeMap<TransactionId, OpenRow>,
    BTreeMap<OwnerSequence, Finished>,
);

fn applied(machine: &Coordinator) -> Applied {
    let open = machine
        .open
        .iter()
        .filter(|(_, one)| one.batches > 0)
        .map(|(id, one)| (id, OpenRow::from(one)))
        .collect();
    (
        machine.head,
        machine.sessions.clone(),
        open,
        machine.finished.clone(),
    )
}

fn entry(kind: EntryKind, sequence: u64, wall: WallMs, body: Bytes) -> AppliedEntry {
    AppliedEntry {
        header: EntryHeader {
            kind,
            tied_to_next: false,
            moved: false,
            index: LogIndex(sequence),
            term: Term(1),
            owner: OWNER,
            sequence: OwnerSequence(sequence),
            first_number: RecordNumber(0),
            first_offset: Offset(0),
            numbers: 0,
            offsets: 0,
            appended: wall,
            wall,
        },
        place: EntryPlace {
            position: LogPosition(sequence * 100),
            length: 100,
        },
        body,
        facts: PayloadFacts::default(),
    }
}

#[derive(Debug, Clone)]
enum Op {
    Open(u8),
    Half {
        session: usize,
        number: u64,
        owner: u64,
        checked: bool,
    },
    End {
        session: usize,
        number: u64,
        commit: bool,
    },
    Checked {
        which: usize,
        outcome: Option<bool>,
    },
    Wait(u32),
    Flush,
    RefuseHalf(usize),
    Fence,
    WriteRows,
    Restate,
    Crash(bool, bool),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let session = 0..4usize;
    let number = 1..6u64;
    let op = prop_oneof![
        2 => (0..4u8).prop_map(Op::Open),
        8 => (session.clone(), number.clone(), 0..4u64, any::<bool>()).prop_map(
            |(session, number, owner, checked)| Op::Half { session, number, owner, checked }
        ),
        6 => (session, number, any::<bool>())
            .prop_map(|(session, number, commit)| Op::End { session, number, commit }),
        2 => (any::<usize>(), any::<Option<bool>>())
            .prop_map(|(which, outcome)| Op::Checked { which, outcome }),
        3 => (0..700u32).prop_map(Op::Wait),
        8 => Just(Op::Flush),
        2 => any::<usize>().prop_map(Op::RefuseHalf),
        1 => Just(Op::Fence),
        2 => Just(Op::WriteRows),
        1 => Just(Op::Restate),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(rows, process)| Op::Crash(rows, process)),
    ];
    prop::collection::vec(op, 1..120)
}

fn id_of(rig: &Rig, session: usize, number: u64) -> Option<TransactionId> {
    let (producer, epoch) = rig.opened.get(session % rig.opened.len().max(1))?;
    Some(TransactionId {
        producer: *producer,
        epoch: *epoch,
        number: TransactionNumber(number),
    })
}

fn run(rig: &mut Rig, op: Op) {
    match op {
        Op::Open(name) => rig.open(&format!("till-{name}")),
        Op::Half {
            session,
            number,
            owner,
            checked,
        } => {
            if let Some(id) = id_of(rig, session, number) {
                rig.half(id, owner, checked.then_some(500));
            }
        }
        Op::End {
            session,
            number,
            commit,
        } => {
            if let Some(id) = id_of(rig, session, number) {
                let decision = if commit {
                    Decision::Commit
                } else {
                    Decision::Rollback
                };
                rig.end(id, decision);
            }
        }
        Op::Checked { which, outcome } => {
            let asked = rig
                .check_backs
                .get(which % rig.check_backs.len().max(1))
                .copied();
            if let Some(id) = asked {
                let outcome = outcome.map(|commit| {
                    if commit {
                        Decision::Commit
                    } else {
                        Decision::Rollback
                    }
                });
                let mut effects = Vec::new();
                rig.machine.checked(id, outcome, &mut effects);
                rig.perform(effects);
            }
        }
        Op::Wait(ms) => rig.wait(ms),
        Op::Flush => rig.flush(),
        Op::RefuseHalf(which) => rig.refuse_half(which),
        Op::Fence => rig.fence(),
        Op::WriteRows => rig.write_rows(),
        Op::Restate => {
            let mut effects = Vec::new();
            rig.machine.restate(&mut effects);
            rig.perform(effects);
        }
        Op::Crash(from_rows, process) => rig.crash(from_rows, process),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_transaction_is_decided_once_and_as_everybody_was_told(ops in ops()) {
        let mut rig = Rig::new();
        for op in ops {
            run(&mut rig, op);
        }
        for _ in 0..4 {
            rig.flush();
        }
        prop_assert!(rig.ends.is_empty(), "every end was answered");
        for (id, decision) in &rig.told {
            prop_assert_eq!(rig.decided.get(id), Some(decision), "X1: what was told of {} is durable", id);
        }
        let live = applied(&rig.machine);
        prop_assert_eq!(&applied(&rig.loaded(false)), &live, "X6: folding the log");
        prop_assert_eq!(&applied(&rig.loaded(true)), &live, "X6: rows and the log behind them");
        // In the end time alone decides whatever nobody ended.
        for _ in 0..60 {
            rig.wait(400);
            rig.flush();
        }
        for id in rig.registered.keys() {
            prop_assert!(rig.decided.contains_key(id), "{} was left undecided", id);
        }
    }

    #[test]
    fn a_snapshot_replaces_the_log_before_it(ops in ops()) {
        let mut rig = Rig::new();
        for op in ops {
            run(&mut rig, op);
        }
        rig.flush();
        let mut effects = Vec::new();
        rig.machine.restate(&mut effects);
        rig.perform(effects);
        let before = rig.log.len();
        rig.flush();
        rig.flush();
        let mut machine = Coordinator::new(0, limits());
        for entry in rig.log.iter().skip(before) {
            machine.apply(entry, &mut Vec::new());
        }
        prop_assert_eq!(applied(&machine), applied(&rig.machine));
    }
}

fn opened(rig: &mut Rig, name: &str) -> (ProducerId, ProducerEpoch) {
    rig.open(name);
    rig.flush();
    *rig.opened.last().unwrap()
}

fn first_of((producer, epoch): (ProducerId, ProducerEpoch)) -> TransactionId {
    TransactionId {
        producer,
        epoch,
        number: TransactionNumber(1),
    }
}

#[test]
fn the_same_decision_again_is_a_no_op_and_the_opposite_is_refused_with_what_stands() {
    let mut rig = Rig::new();
    let id = first_of(opened(&mut rig, "till"));
    rig.half(id, 0, None);
    rig.flush();
    rig.end(id, Decision::Commit);
    let opposite = rig.end(id, Decision::Rollback);
    let stands = Decision::Commit;
    assert_eq!(
        rig.refused[&opposite],
        Rejection::TransactionDecided { stands }
    );
    rig.flush();
    assert_eq!(rig.told, vec![(id, Decision::Commit)]);
    rig.end(id, Decision::Commit);
    assert_eq!(rig.told.len(), 2, "answered at once, without the log");
    assert!(rig.queue.is_empty());
    let late = rig.end(id, Decision::Rollback);
    assert_eq!(rig.refused[&late], Rejection::TransactionDecided { stands });
    let half = rig.half(id, 1, None);
    assert_eq!(rig.refused[&half], Rejection::TransactionDecided { stands });
}

#[test]
fn a_decision_waits_for_what_was_let_through_before_it() {
    let mut rig = Rig::new();
    let id = first_of(opened(&mut rig, "till"));
    rig.half(id, 0, None);
    rig.flush();
    rig.half(id, 1, None);
    rig.end(id, Decision::Commit);
    assert_eq!(rig.queue.len(), 1, "only the half is on its way");
    rig.flush();
    assert_eq!(rig.queue.len(), 1, "now the decision, over both partitions");
    rig.flush();
    assert_eq!(rig.told, vec![(id, Decision::Commit)]);
    assert_eq!(rig.registered[&id].len(), 2);
}

#[test]
fn a_new_session_fences_its_predecessor_but_leaves_half_messages_to_check_back() {
    let mut rig = Rig::new();
    let old = opened(&mut rig, "till");
    let plain = first_of(old);
    let half = TransactionId {
        number: TransactionNumber(2),
        ..plain
    };
    rig.half(plain, 0, None);
    rig.half(half, 0, Some(500));
    rig.flush();
    let new = opened(&mut rig, "till");
    assert_eq!((new.0, new.1), (old.0, ProducerEpoch(1)));
    rig.flush();
    assert_eq!(rig.decided.get(&plain), Some(&Decision::Rollback));
    assert_eq!(rig.decided.get(&half), None);
    let late = rig.end(plain, Decision::Rollback);
    assert!(
        !rig.refused.contains_key(&late),
        "its decision is known and the same"
    );
    let zombie = rig.half(
        TransactionId {
            number: TransactionNumber(3),
            ..plain
        },
        0,
        None,
    );
    assert_eq!(
        rig.refused[&zombie],
        Rejection::ProducerFenced {
            current: ProducerEpoch(1)
        }
    );
    rig.wait(600);
    assert_eq!(rig.check_backs, vec![half]);
}

#[test]
fn an_outcome_nobody_knows_expires_and_stays_to_be_asked_for() {
    let mut rig = Rig::new();
    let id = first_of(opened(&mut rig, "till"));
    rig.half(id, 0, Some(500));
    rig.flush();
    for _ in 0..4 {
        rig.wait(600);
    }
    rig.flush();
    assert_eq!(rig.check_backs.len(), 2, "as often as the limit says");
    let description = rig.machine.describe(id).unwrap();
    assert_eq!(
        description.state,
        State::Decided(Decision::Rollback, By::Expiry)
    );
    let late = rig.end(id, Decision::Commit);
    let stands = Decision::Rollback;
    assert_eq!(rig.refused[&late], Rejection::TransactionDecided { stands });
    rig.crash(true, true);
    assert_eq!(rig.machine.list(None, 10).len(), 1);
}

#[test]
fn a_question_nobody_was_there_for_is_asked_elsewhere_and_does_not_count() {
    let mut rig = Rig::new();
    let id = first_of(opened(&mut rig, "till"));
    rig.half(id, 0, Some(500));
    rig.flush();
    rig.wait(600);
    for asked in 2..20 {
        let mut effects = Vec::new();
        rig.machine.unheard(id, &mut effects);
        rig.perform(effects);
        assert_eq!(rig.check_backs.len(), asked, "at once");
    }
    assert_eq!(rig.machine.describe(id).unwrap().checks, 1);
    assert_eq!(rig.machine.describe(id).unwrap().state, State::Open);
    rig.end(id, Decision::Commit);
    let mut effects = Vec::new();
    rig.machine.unheard(id, &mut effects);
    assert!(effects.is_empty(), "what is decided is asked about no more");
}

#[test]
fn limits_refuse_what_is_beyond_them_and_touch_nothing_else() {
    let mut rig = Rig::new();
    let id = first_of(opened(&mut rig, "till"));
    for owner in 0..3 {
        rig.half(id, owner, None);
    }
    let fourth = rig.half(id, 3, None);
    assert!(matches!(
        rig.refused[&fourth],
        Rejection::TransactionLimit { max: 3, .. }
    ));
    for number in 2..5 {
        rig.half(
            TransactionId {
                number: TransactionNumber(number),
                ..id
            },
            0,
            None,
        );
    }
    let fifth = rig.half(
        TransactionId {
            number: TransactionNumber(5),
            ..id
        },
        0,
        None,
    );
    assert!(matches!(
        rig.refused[&fifth],
        Rejection::TransactionLimit { max: 4, .. }
    ));
    let unknown = rig.end(
        TransactionId {
            number: TransactionNumber(77),
            ..id
        },
        Decision::Commit,
    );
    assert_eq!(rig.refused[&unknown], Rejection::TransactionUnknown);
}

#[test]
fn a_waiting_half_message_takes_little_memory() {
    // An allocation of its own, a place in its session's map (six of eleven in a leaf, when names go up), one
    // among the deadlines (which grow by an eighth).
    let own = (size_of::<Transaction>() + 8).next_multiple_of(16);
    let name = size_of::<(ProducerEpoch, TransactionNumber, Box<Transaction>)>();
    let place = name * 11 / 6 + name / 2;
    let deadline = size_of::<(MonotonicMs, TransactionId)>() * 9 / 8;
    let all = own + place + deadline;
    assert!(all <= 200, "{own} + {place} + {deadline}");
}

#[test]
fn deltas_and_snapshots_have_the_bytes_they_always_had() {
    let id = TransactionId {
        producer: ProducerId(7),
        epoch: ProducerEpoch(2),
        number: TransactionNumber(9),
    };
    let registration = Registration {
        id,
        participant: Participant {
            owner: OwnerId(1_024),
            part: Part::Records {
                partition: lane(0),
                records: 3,
                immediate: 2,
            },
        },
        immunity_ms: Some(6_000),
    };
    let hex = |bytes: Vec<u8>| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let golden = [
        (
            rmp_serde::to_vec(&Delta::Registered(registration)).unwrap(),
            "81aa52656769737465726564939307020992cd040081a75265636f72647393930401000302cd1770",
        ),
        (
            rmp_serde::to_vec(&Delta::Decided {
                id,
                decision: Decision::Commit,
                by: By::CheckBack,
            })
            .unwrap(),
            "81a7446563696465649393070209a6436f6d6d6974a9436865636b4261636b",
        ),
        (
            rmp_serde::to_vec(&Snapshot::Head(Head {
                sequence: OwnerSequence(5),
                sessions: 1,
            }))
            .unwrap(),
            "81a448656164920501",
        ),
    ];
    for (bytes, expected) in golden {
        assert_eq!(hex(bytes), expected);
    }
}

#[test]
fn sessions_carry_their_shard_and_no_producer_of_the_directory_does() {
    let mut machine = Coordinator::new(3, limits());
    assert_eq!(shard_of(machine.fresh_producer()), Some(3));
    assert_eq!(shard_of(ProducerId(1_000_000)), None);
    assert_eq!(shard_of_owner(shard_owner(2)), Some(2));
    assert_eq!(shard_of_owner(OwnerId(15)), None);
    assert_eq!(shard_of_owner(OwnerId(20)), None);
    assert!((0..1_000).all(|n| shard_of_name(&format!("till-{n}")) < SHARDS));
}

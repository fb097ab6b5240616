//! The sequencer against a list of runs and outcomes, whatever its owners, the disk and the clock do.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::domain::entry::PayloadFacts;
use crate::domain::id::LogPosition;

const RUN_BYTES_MAX: u32 = 1_000;

#[derive(Debug, Clone)]
enum Step {
    Enqueue {
        author: u64,
        stale: bool,
        need: Need,
        drafts: Vec<(u64, EntryKind, u32, usize)>,
    },
    Begin {
        owner: u64,
    },
    Delete {
        first: u64,
        count: u64,
    },
    Flush {
        bytes_max: u32,
        room: Need,
        written: bool,
    },
    Wall {
        by: i64,
    },
    Seal,
}

fn need() -> impl Strategy<Value = Need> {
    prop_oneof![
        4 => Just(Need::Payload),
        1 => Just(Need::Decision),
        1 => Just(Need::Housekeeping),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![3 => Just(EntryKind::Payload), 2 => Just(EntryKind::State)];
    let size = prop_oneof![20 => 0usize..200, 1 => 1_000usize..1_200];
    let owner = || prop_oneof![1 => Just(OwnerId::DIRECTORY.0), 6 => 1024u64..1030];
    let drafts = vec((owner(), kind, 1u32..4, size), 1..4);
    let enqueue = (owner(), prop::bool::weighted(0.05), need(), drafts).prop_map(
        |(author, stale, need, drafts)| Step::Enqueue {
            author,
            stale,
            need,
            drafts,
        },
    );
    let flush = (200u32..1_200, need(), prop::bool::weighted(0.9)).prop_map(
        |(bytes_max, room, written)| Step::Flush {
            bytes_max,
            room,
            written,
        },
    );
    prop_oneof![
        30 => enqueue,
        4 => owner().prop_map(|owner| Step::Begin { owner }),
        1 => (1024u64..1030, 1u64..3).prop_map(|(first, count)| Step::Delete { first, count }),
        15 => flush,
        5 => (-50i64..100).prop_map(|by| Step::Wall { by }),
    ]
}

/// What became of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Stored,
    Refused,
}

#[derive(Debug, Clone)]
struct Asked {
    author: Author,
    drafts: Vec<(OwnerId, EntryKind)>,
    outcome: Option<Outcome>,
}

struct World {
    machine: Commit<usize>,
    wall: WallMs,
    lives: BTreeMap<OwnerId, Incarnation>,
    /// Every run ever handed over; its ticket is its place here.
    asked: Vec<Asked>,
    log: Vec<AppliedEntry>,
    counters: BTreeMap<OwnerId, Counters>,
    deleted: Vec<OwnerRange>,
    touched: BTreeSet<OwnerId>,
}

impl World {
    fn new() -> Self {
        Self {
            machine: Commit::new(LogIndex(1), WallMs(0), []),
            wall: WallMs(1_000),
            lives: BTreeMap::new(),
            asked: Vec::new(),
            log: Vec::new(),
            counters: BTreeMap::new(),
            deleted: Vec::new(),
            touched: BTreeSet::new(),
        }
    }

    fn is_deleted(&self, owner: OwnerId) -> bool {
        self.deleted.iter().any(|range| range.contains(owner))
    }

    fn answer(&mut self, ticket: usize, outcome: Outcome) {
        let before = self.asked[ticket].outcome.replace(outcome);
        assert_eq!(before, None, "C4: {ticket} is answered twice");
    }

    fn enqueue(&mut self, author: Author, need: Need, drafts: Vec<(OwnerId, Draft)>) {
        let ticket = self.asked.len();
        let kinds = drafts
            .iter()
            .map(|(owner, draft)| (*owner, draft.kind))
            .collect();
        self.asked.push(Asked {
            author,
            drafts: kinds,
            outcome: None,
        });
        let bytes: u64 = drafts.iter().map(|(_, draft)| draft_bytes(draft)).sum();
        let before = self.machine.queued_bytes();
        match self.machine.enqueue(
            Run {
                author,
                drafts,
                need,
                ticket,
            },
            RUN_BYTES_MAX,
        ) {
            Ok(()) => {
                assert!(bytes <= u64::from(RUN_BYTES_MAX));
                assert_eq!(self.machine.queued_bytes(), before + bytes);
            }
            Err(refused) => {
                assert_eq!((refused.ticket, refused.author), (ticket, author));
                self.answer(ticket, Outcome::Refused);
            }
        }
    }

    fn refused(&mut self, refused: Vec<Refused<usize>>) {
        for refused in refused {
            assert_eq!(refused.author, self.asked[refused.ticket].author);
            self.answer(refused.ticket, Outcome::Refused);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Enqueue {
                author,
                stale,
                need,
                drafts,
            } => {
                let owner = OwnerId(author);
                let life = self.lives.get(&owner).copied().unwrap_or_default();
                let incarnation = Incarnation(if stale {
                    life.0.saturating_sub(1)
                } else {
                    life.0
                });
                let drafts = drafts.into_iter().map(draft).collect();
                self.enqueue(Author { owner, incarnation }, need, drafts);
            }
            Step::Begin { owner } => self.begin(OwnerId(owner)),
            Step::Delete { first, count } => {
                let owner = OwnerId::DIRECTORY;
                let incarnation = self.lives.get(&owner).copied().unwrap_or_default();
                let range = OwnerRange {
                    first: OwnerId(first),
                    count,
                };
                let body = rmp_serde::to_vec(&range).unwrap().into();
                let delete = Draft {
                    body,
                    ..draft((1, EntryKind::Delete, 0, 0)).1
                };
                let state = draft((1, EntryKind::State, 0, 10));
                let drafts = vec![state, (owner, delete)];
                self.enqueue(Author { owner, incarnation }, Need::Housekeeping, drafts);
            }
            Step::Flush {
                bytes_max,
                room,
                written,
            } => self.flush(bytes_max, room, written),
            Step::Wall { by } => self.wall.0 += by,
            Step::Seal => {
                let mut refused = Vec::new();
                self.machine.seal(&mut refused);
                self.refused(refused);
            }
        }
    }

    fn begin(&mut self, owner: OwnerId) {
        let mut refused = Vec::new();
        let (incarnation, counters) = self.machine.begin(owner, &mut refused);
        self.refused(refused);
        assert!(
            self.is_deleted(owner) || self.lives.get(&owner) < Some(&incarnation),
            "C2"
        );
        assert_eq!(
            counters,
            self.counters.get(&owner).copied().unwrap_or_default(),
            "C1"
        );
        self.lives.insert(owner, incarnation);
        let queued = |asked: &Asked| asked.author.owner == owner && asked.outcome.is_none();
        assert!(
            !self.asked.iter().any(queued),
            "C2: an earlier life still has something queued"
        );
    }

    fn flush(&mut self, bytes_max: u32, room: Need, written: bool) {
        let mut refused = Vec::new();
        let plan = self.machine.plan(self.wall, bytes_max, room, &mut refused);
        self.refused(refused);
        let Some(plan) = plan else { return };
        assert!(plan.need <= room);
        let bytes: u64 = plan
            .entries
            .iter()
            .map(|entry| entry.body.len() as u64 + 128)
            .sum();
        assert!(plan.tickets.len() == 1 || bytes <= u64::from(bytes_max));
        if !written {
            let authors: BTreeSet<OwnerId> = plan
                .tickets
                .iter()
                .map(|(ticket, _)| self.asked[*ticket].author.owner)
                .collect();
            let (tickets, fenced, _) = self.machine.not_written(plan, &Rejection::DiskFull);
            assert_eq!(fenced, authors, "C2: whoever asked, and nobody else");
            return tickets
                .into_iter()
                .for_each(|ticket| self.answer(ticket, Outcome::Refused));
        }
        self.check_runs(&plan);
        let places: Vec<_> = (0..plan.entries.len() as u64)
            .map(|at| EntryPlace {
                position: LogPosition(at),
                length: 1,
            })
            .collect();
        let entries = plan.entries.clone();
        let (applied, tickets) = self.machine.flushed(plan, &places);
        for (ticket, _) in tickets {
            self.answer(ticket, Outcome::Stored);
        }
        let mut each: BTreeMap<OwnerId, Vec<LogIndex>> = BTreeMap::new();
        for entry in entries {
            self.check_entry(&entry);
            each.entry(entry.header.owner)
                .or_default()
                .push(entry.header.index);
        }
        let told: BTreeMap<OwnerId, Vec<LogIndex>> = applied
            .iter()
            .map(|(owner, entries)| (*owner, entries.iter().map(|e| e.header.index).collect()))
            .collect();
        assert_eq!(told, each, "every owner gets its own entries, in log order");
        let is_lean = |e: &AppliedEntry| e.header.kind != EntryKind::Payload || e.body.is_empty();
        assert!(applied.values().flatten().all(is_lean));
        self.log.extend(applied.into_values().flatten());
        self.touched
            .retain(|owner| !self.deleted.iter().any(|range| range.contains(*owner)));
        assert_eq!(
            self.machine.take_touched(),
            std::mem::take(&mut self.touched)
        );
    }

    /// C3: whole runs one behind the other, tied within and not across, each with its receipt.
    fn check_runs(&self, plan: &Plan<usize>) {
        let mut entries = plan.entries.iter();
        for (ticket, receipt) in &plan.tickets {
            let asked = &self.asked[*ticket];
            let stands: Vec<_> = asked
                .drafts
                .iter()
                .filter(|(owner, _)| !self.is_deleted(*owner))
                .collect();
            for (at, (owner, kind)) in stands.iter().enumerate() {
                let header = entries.next().expect("C3: the whole run").header;
                assert_eq!((header.owner, header.kind), (*owner, *kind), "C3");
                assert_eq!(header.tied_to_next, at + 1 < stands.len(), "C3");
                if at == 0 {
                    assert_eq!(receipt.first_offset, header.first_offset);
                    assert_eq!(receipt.first_number, header.first_number);
                    assert_eq!(receipt.appended, header.appended);
                }
            }
        }
        assert!(
            entries.next().is_none(),
            "C3: nothing that nobody asked for"
        );
    }

    fn check_entry(&mut self, entry: &NewEntry) {
        let header = &entry.header;
        assert!(
            !self.is_deleted(header.owner),
            "C6: an entry of a deleted owner"
        );
        let counters = self.counters.entry(header.owner).or_default();
        assert_eq!(header.sequence.0, counters.sequence.0 + 1, "C1");
        assert_eq!(header.first_number, counters.next_number, "C1");
        assert_eq!(header.first_offset, counters.next_offset, "C1");
        counters.sequence = header.sequence;
        counters.next_number.0 += u64::from(header.numbers);
        counters.next_offset.0 += u64::from(header.offsets);
        assert_eq!(header.wall, self.wall);
        if let Some(last) = self.log.iter().map(|entry| entry.header.appended).max() {
            assert!(header.appended >= last, "C5");
        }
        self.touched.insert(header.owner);
        if header.kind == EntryKind::Delete {
            let range: OwnerRange = rmp_serde::from_slice(&entry.body.to_bytes()).unwrap();
            self.counters.retain(|owner, _| !range.contains(*owner));
            self.deleted.push(range);
        }
    }

    /// C2, over everything: of each life a first part is stored and all the rest refused.
    fn check_order(&self) {
        let mut refused = BTreeSet::new();
        for asked in &self.asked {
            let life = (asked.author.owner, asked.author.incarnation);
            match asked.outcome {
                Some(Outcome::Refused) => {
                    refused.insert(life);
                }
                Some(Outcome::Stored) => {
                    let is_void = self.is_deleted(asked.author.owner);
                    assert!(
                        is_void || !refused.contains(&life),
                        "C2: stored after a refusal"
                    );
                }
                None => panic!("C4: a ticket without an answer"),
            }
        }
    }
}

fn draft((owner, kind, count, bytes): (u64, EntryKind, u32, usize)) -> (OwnerId, Draft) {
    let count = if kind == EntryKind::Payload { count } else { 0 };
    let (body, facts) = (Bytes::from(vec![7; bytes]), PayloadFacts::default());
    (
        OwnerId(owner),
        Draft {
            kind,
            numbers: count,
            offsets: count,
            body: body.into(),
            facts,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// C1 to C6.
    #[test]
    fn every_run_is_stored_whole_and_in_order_or_refused_and_answered_once(
        steps in vec(step(), 1..120),
        sealed: bool,
    ) {
        let mut world = World::new();
        for owner in [1, 1024, 1025, 1026, 1027, 1028, 1029] {
            world.begin(OwnerId(owner));
        }
        for step in steps {
            world.step(step);
        }
        if sealed {
            world.step(Step::Seal);
            let author = Author { owner: OwnerId::DIRECTORY, incarnation: Incarnation(1) };
            world.enqueue(author, Need::Housekeeping, vec![draft((1, EntryKind::State, 0, 1))]);
        }
        while !world.machine.is_idle() {
            world.flush(RUN_BYTES_MAX, Need::Payload, true);
        }
        prop_assert_eq!(world.machine.queued_bytes(), 0);
        world.check_order();
    }
}

#[test]
fn the_log_itself_is_never_fenced() {
    let mut world = World::new();
    let author = Author {
        owner: OwnerId::LOG,
        incarnation: Incarnation(0),
    };
    let mark = || vec![draft((OwnerId::LOG.0, EntryKind::Mark, 0, 8))];
    world.enqueue(author, Need::Housekeeping, mark());
    world.flush(RUN_BYTES_MAX, Need::Payload, false);
    world.enqueue(author, Need::Housekeeping, mark());
    world.flush(RUN_BYTES_MAX, Need::Payload, true);
    assert_eq!(world.asked[1].outcome, Some(Outcome::Stored));
}

/// C7: megabytes of others are in front of it, and it is in the next flush all the same.
#[test]
fn a_lone_run_is_in_the_very_next_flush() {
    let mut world = World::new();
    let author = |owner, incarnation| Author {
        owner: OwnerId(owner),
        incarnation,
    };
    let lives: Vec<_> = (1024..1029)
        .map(|owner| {
            world.begin(OwnerId(owner));
            author(owner, world.lives[&OwnerId(owner)])
        })
        .collect();
    let (lone, greedy) = lives.split_last().unwrap();
    for _ in 0..50 {
        for author in greedy {
            let run = vec![draft((author.owner.0, EntryKind::Payload, 1, 300))];
            world.enqueue(*author, Need::Payload, run);
        }
    }
    let run = vec![draft((lone.owner.0, EntryKind::Payload, 1, 10))];
    world.flush(RUN_BYTES_MAX, Need::Payload, true);
    world.enqueue(*lone, Need::Payload, run);
    world.flush(RUN_BYTES_MAX, Need::Payload, true);
    let stored = |asked: &&Asked| asked.outcome == Some(Outcome::Stored);
    let last = world.asked.iter().rfind(stored).unwrap();
    assert_eq!(last.author, *lone);
    // The others go on sharing alike.
    for _ in 0..20 {
        world.flush(RUN_BYTES_MAX, Need::Payload, true);
    }
    let of = |author: &Author| {
        let asked = world.asked.iter().filter(stored);
        asked.filter(|asked| asked.author == *author).count()
    };
    let counts: Vec<_> = greedy.iter().map(of).collect();
    assert!(
        counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1,
        "{counts:?}"
    );
}

/// C8, and that the others get their long flushes back.
#[test]
fn flushes_are_short_while_lone_runs_come_beside_a_queue() {
    const FLUSH: u32 = 8 << 20;
    let mut machine: Commit<()> = Commit::new(LogIndex(1), WallMs(0), []);
    let mut refused = Vec::new();
    let [greedy, lone] = [OwnerId(1024), OwnerId(1025)].map(|owner| Author {
        owner,
        incarnation: machine.begin(owner, &mut refused).0,
    });
    let run = |author: Author, bytes| Run {
        author,
        drafts: vec![draft((author.owner.0, EntryKind::Payload, 1, bytes))],
        need: Need::Payload,
        ticket: (),
    };
    let flush = |machine: &mut Commit<()>| {
        while machine.queued_bytes() < u64::from(FLUSH) {
            machine.enqueue(run(greedy, 100_000), FLUSH).unwrap();
        }
        let plan = machine.plan(WallMs(0), FLUSH, Need::Payload, &mut Vec::new());
        let plan = plan.unwrap();
        let places: Vec<_> = (0..plan.entries.len())
            .map(|_| EntryPlace {
                position: LogPosition(0),
                length: 1,
            })
            .collect();
        let bytes: usize = plan.entries.iter().map(|entry| entry.body.len()).sum();
        machine.flushed(plan, &places);
        bytes
    };
    assert!(flush(&mut machine) > 7 << 20);
    machine.enqueue(run(greedy, 100_000), FLUSH).unwrap();
    machine.enqueue(run(lone, 1_000), FLUSH).unwrap();
    for _ in 0..SHORT_FLUSHES {
        let bytes = flush(&mut machine);
        assert!(bytes <= 2 << 20 && bytes > 1 << 20, "{bytes}");
    }
    assert!(flush(&mut machine) > 7 << 20);
}

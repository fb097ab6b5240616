//! What one decision of each machine costs, and the pure work around it: `cargo bench --bench machines`.
//!
//! A broker that stores 400 000 records a second in batches of a hundred has 250 us per batch and core
//! for everything; what is measured here must be small change beside that. Nothing here touches a disk,
//! a socket or an actor: `--bench load` does.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use waterwheel::domain::batch::{self, BatchBuilder, BatchStamp, BatchView, Compression};
use waterwheel::domain::commit::{Commit, Need, Run};
use waterwheel::domain::entry::{
    AppliedEntry, Author, Draft, EntryHeader, EntryKind, EntryPlace, PayloadFacts,
};
use waterwheel::domain::id::{
    Incarnation, LogIndex, LogPosition, MessageId, Offset, OwnerId, OwnerSequence, ProducerId,
    ProducerSequence, RecordNumber, Term, Token,
};
use waterwheel::domain::key::{key_hash, partition_of};
use waterwheel::domain::ledger::Ledger;
use waterwheel::domain::partition::{Append, Limits, Partition, Read, TimerLimits};
use waterwheel::domain::record::{Record, RecordBody};
use waterwheel::domain::time::WallMs;

const RECORD_BYTES: usize = 1000;
const RECORDS: u32 = 100;
const BATCH_BYTES_MAX: usize = 1 << 20;
const FLUSH_BYTES_MAX: u32 = 8 << 20;
const FLUSH_RUNS: u32 = 64;
const NOW: WallMs = WallMs(1_800_000_000_000);

/// Bytes that do not compress: xorshift64.
fn noise(length: usize) -> Bytes {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let bytes = (0..length).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    });
    bytes.collect()
}

fn record() -> Record {
    Record::new(noise(RECORD_BYTES)).key(noise(16))
}

fn fill(builder: &mut BatchBuilder, record: &Record, count: u32, first: u64) -> Bytes {
    for _ in 0..count {
        let pushed = builder.push(record, MessageId([7; 16]), NOW);
        assert!(pushed.is_ok(), "the batch was made too small");
    }
    let stamp = BatchStamp {
        producer: ProducerId(1),
        first_sequence: ProducerSequence(first),
        ..BatchStamp::default()
    };
    builder.finish(stamp).unwrap_or_default()
}

fn records(c: &mut Criterion) {
    let record = record();
    let mut builder = BatchBuilder::new(BATCH_BYTES_MAX, Compression::None);
    let mut group = c.benchmark_group("record");
    group.throughput(Throughput::Elements(1));
    group.bench_function("key hash and partition", |b| {
        let key = noise(16);
        b.iter(|| partition_of(key_hash(black_box(&key)), 8));
    });
    group.bench_function("encode a batch of one, 1 kB", |b| {
        b.iter(|| fill(&mut builder, black_box(&record), 1, 0));
    });
    let one = fill(&mut builder, &record, 1, 0);
    let bodies = BatchView::parse(&one).and_then(|view| view.bodies());
    let body = bodies.ok().and_then(|mut bodies| bodies.next()?.ok());
    let (_, body) = body.unwrap_or_default();
    group.bench_function("decode a body, 1 kB", |b| {
        b.iter(|| RecordBody::decode(black_box(&body)));
    });
    group.finish();

    let mut group = c.benchmark_group("batch of 100 x 1 kB");
    let whole = fill(&mut builder, &record, RECORDS, 0);
    group.throughput(Throughput::Bytes(whole.len() as u64));
    group.bench_function("encode", |b| {
        b.iter(|| fill(&mut builder, black_box(&record), RECORDS, 0));
    });
    group.bench_function("parse, every checksum", |b| {
        b.iter(|| BatchView::parse(black_box(&whole)));
    });
    group.bench_function("parse, structure only", |b| {
        b.iter(|| BatchView::parse_structure(black_box(&whole)));
    });
    group.bench_function("facts", |b| b.iter(|| batch::facts(black_box(&whole))));
    group.bench_function("every body, decoded", |b| {
        b.iter(|| {
            let bodies =
                BatchView::parse_structure(black_box(&whole)).and_then(|view| view.bodies());
            let decoded = bodies.into_iter().flatten().flatten();
            decoded
                .filter(|(_, body)| RecordBody::decode(body).is_ok())
                .count()
        });
    });
    group.finish();
}

fn checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("CRC-32C");
    for length in [1_000, 100_000, 1_000_000] {
        let bytes = noise(length);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("{length} B"), |b| {
            b.iter(|| waterwheel::domain::checksum::crc32c(black_box(&bytes)));
        });
    }
    group.finish();
}

fn facts(first: u64) -> PayloadFacts {
    PayloadFacts {
        producer: ProducerId(1),
        first_sequence: ProducerSequence(first),
        ..PayloadFacts::default()
    }
}

/// The entry that the log makes of a partition's batch number `at`.
fn applied(at: u64) -> AppliedEntry {
    let first = at * u64::from(RECORDS);
    AppliedEntry {
        header: EntryHeader {
            kind: EntryKind::Payload,
            tied_to_next: false,
            moved: false,
            index: LogIndex(at + 1),
            term: Term(1),
            owner: OwnerId::FIRST_FREE,
            sequence: OwnerSequence(at + 1),
            first_number: RecordNumber(first),
            first_offset: Offset(first),
            numbers: RECORDS,
            offsets: RECORDS,
            appended: NOW,
            wall: NOW,
        },
        place: EntryPlace {
            position: LogPosition(at * 100_352),
            length: 100_200,
        },
        body: Bytes::new(),
        facts: facts(first),
    }
}

fn partition(c: &mut Criterion) {
    let mut group = c.benchmark_group("partition");
    group.throughput(Throughput::Elements(1));
    let batch = noise(100_000);
    group.bench_function("append and apply a batch", |b| {
        let mut machine = Partition::new(Limits {
            producers_max: 1_000,
            ..Limits::default()
        });
        let (mut effects, mut at) = (Vec::new(), 0);
        b.iter(|| {
            let append = Append {
                token: Token(at),
                batch: batch.clone().into(),
                count: RECORDS,
                facts: facts(at * u64::from(RECORDS)),
                tell_accepted: false,
                now: WallMs(0),
                timers: TimerLimits::default(),
                tied: Vec::new(),
            };
            machine.append(append, &mut effects);
            machine.apply(&applied(at), &mut effects);
            at += 1;
            black_box(&mut effects).clear();
        });
    });
    group.bench_function("read at the end of a thousand batches", |b| {
        let mut machine = Partition::new(Limits {
            producers_max: 1_000,
            ..Limits::default()
        });
        let mut effects = Vec::new();
        (0..1_000).for_each(|at| machine.apply(&applied(at), &mut effects));
        let from = Offset(999 * u64::from(RECORDS));
        b.iter(|| {
            effects.clear();
            machine.read(
                Read {
                    token: Token(1),
                    from,
                    bytes_max: 1 << 20,
                    wait: false,
                },
                &mut effects,
            );
            black_box(effects.len())
        });
    });
    group.finish();
}

fn commit(c: &mut Criterion) {
    let mut group = c.benchmark_group("commit");
    group.throughput(Throughput::Elements(u64::from(FLUSH_RUNS)));
    let owners: Vec<OwnerId> = (0..8)
        .map(|at| OwnerId(OwnerId::FIRST_FREE.0 + at))
        .collect();
    let body = noise(1_100);
    group.bench_function("enqueue, plan and flush 64 runs of 8 owners", |b| {
        let mut machine: Commit<u32> = Commit::new(LogIndex(1), NOW, []);
        let mut refused = Vec::new();
        for owner in &owners {
            machine.begin(*owner, &mut refused);
        }
        b.iter(|| {
            for (ticket, owner) in (0..FLUSH_RUNS).zip(owners.iter().cycle()) {
                let run = Run {
                    author: Author {
                        owner: *owner,
                        incarnation: Incarnation(1),
                    },
                    drafts: vec![(*owner, draft(&body))],
                    need: Need::Payload,
                    ticket,
                };
                assert!(
                    machine.enqueue(run, FLUSH_BYTES_MAX).is_ok(),
                    "C1: nothing here is refused"
                );
            }
            let plan = machine.plan(NOW, FLUSH_BYTES_MAX, Need::Payload, &mut refused);
            let Some(plan) = plan else { return 0 };
            let place = EntryPlace {
                position: LogPosition(0),
                length: 1_200,
            };
            let places = vec![place; plan.entries.len()];
            machine.flushed(plan, &places).1.len()
        });
    });
    group.finish();
}

fn draft(body: &Bytes) -> Draft {
    Draft {
        kind: EntryKind::Payload,
        numbers: 1,
        offsets: 1,
        body: body.clone().into(),
        facts: PayloadFacts::default(),
    }
}

fn ledger(c: &mut Criterion) {
    let mut group = c.benchmark_group("ledger");
    group.throughput(Throughput::Elements(1));
    let header = applied(1).header;
    group.bench_function("account for an entry", |b| {
        let mut machine = Ledger::default();
        b.iter(|| machine.appended(1, black_box(&header)));
    });
    group.bench_function("what a hundred segments still need", |b| {
        let full = || {
            let mut machine = Ledger::default();
            for segment in 0..100 {
                for at in 0..8 {
                    let owner = OwnerId(OwnerId::FIRST_FREE.0 + at);
                    machine.appended(segment, &EntryHeader { owner, ..header });
                }
                machine.closed(segment, LogPosition((segment + 1) << 26));
            }
            machine
        };
        b.iter_batched_ref(full, |machine| machine.steps().len(), BatchSize::SmallInput);
    });
    group.finish();
}

criterion_group!(benches, records, checksums, partition, commit, ledger);
criterion_main!(benches);

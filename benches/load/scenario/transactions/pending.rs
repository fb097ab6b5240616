//! Half messages that wait for check-back: the memory of the broker and of the coordinator alone, CPU meanwhile, and
//! an answer that is given.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use waterwheel::client::{HalfMessage, LocalOutcome, LocalTransaction, Record, TransactionId};
use waterwheel::domain::entry::{AppliedEntry, Draft, EntryHeader, EntryPlace, PayloadFacts};
use waterwheel::domain::id::{
    Lane, LogIndex, LogPosition, Offset, OwnerId, OwnerSequence, PartitionId, PartitionIndex,
    ProducerEpoch, ProducerId, RecordNumber, Term, Token, TopicId, TransactionNumber,
};
use waterwheel::domain::time::{MonotonicMs, Now, WallMs};
use waterwheel::domain::transaction::{
    Coordinator, Effect, Limits, Part, Participant, Registration, shard_owner,
};

use super::{TOPIC, fresh};
use crate::load::clients::{self, PATIENCE};
use crate::load::crew::muster;
use crate::load::process::own_anonymous_bytes;
use crate::load::report::Samples;
use crate::load::{Bench, Outcome, print, role};

/// Sessions the half messages are of.
const STREAMS: usize = 32;
/// The wait before memory is read: the pages of what was freed are given back.
const SETTLE: Duration = Duration::from_secs(5);

/// Knows nothing until it is told to, then that everything was committed.
#[derive(Clone)]
struct Ledger {
    checks: Arc<AtomicU64>,
}

impl LocalTransaction for Ledger {
    fn execute<'a>(&'a self, _: TransactionId, _: &'a Record) -> BoxFuture<'a, LocalOutcome> {
        async { LocalOutcome::Unknown }.boxed()
    }

    fn check<'a>(&'a self, _: &'a HalfMessage) -> BoxFuture<'a, LocalOutcome> {
        self.checks.fetch_add(1, Ordering::Relaxed);
        async { LocalOutcome::Commit }.boxed()
    }
}

/// 100 000 half messages that wait for check-back: memory, idle CPU, and an answer that is given.
pub(crate) fn pending(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let each = bench.size(3_125_u64, 10);
    // Not asked while it is measured; then a person's answer is timed.
    let immunity = Duration::from_secs(3_600);
    samples.note("half messages of 100 B from 32 sessions, first asked for after an hour");
    for run in 0..bench.runs {
        samples.add(
            "coordinator's memory per half message",
            coordinator_alone(bench.size(1_000_000, 100_000))?,
            "B",
        );
        let broker = fresh(bench, &format!("pending-{run}"))?;
        sleep(bench.size(SETTLE, Duration::from_millis(50)));
        let idle = broker.resident_bytes()? as f64;
        muster(STREAMS, PATIENCE * 5, |member| {
            let home = broker.home();
            async move {
                let client = clients::connect(home).await?;
                let ledger = Ledger {
                    checks: Arc::new(AtomicU64::new(0)),
                };
                let id = format!("pending-{member}");
                let producer = client
                    .transactional_producer(&id)
                    .group("bench")
                    .local(ledger)
                    .open()
                    .await?;
                for n in 0..each {
                    let record = Record::new(vec![0x5a; 100]).key(n.to_string());
                    producer.send_half_within(TOPIC, record, immunity).await?;
                }
                Ok(())
            }
        })?;
        let waiting = each as f64 * STREAMS as f64;
        sleep(bench.size(SETTLE, Duration::from_millis(50)));
        let grown = (broker.resident_bytes()? as f64 - idle).max(0.0);
        samples.add(
            "whole broker's memory per half message",
            grown / waiting,
            "B",
        );
        let before = broker.usage()?;
        let begun = Instant::now();
        sleep(bench.size(Duration::from_secs(20), Duration::from_millis(200)));
        let busy = broker.usage()?.since(before).cpu_s / begun.elapsed().as_secs_f64();
        samples.add("CPU between check-backs", busy * 100.0, "% of a core");
        let answered = muster(1, PATIENCE, |_| {
            let home = broker.home();
            async move {
                let client = clients::connect(home).await?;
                let first = client.transactions(None).await?;
                let id = first.first().ok_or("nothing waits")?.id;
                let asked = Instant::now();
                client.decide_transaction(id, true).await?;
                Ok(asked.elapsed())
            }
        })?;
        for took in answered {
            samples.add("an answer applied", took.as_secs_f64(), "s");
        }
    }
    Ok(())
}

/// What a coordinator's machine takes for each of so many half messages, in a process that holds nothing else.
fn coordinator_alone(count: u64) -> Outcome<f64> {
    let mut command = role::command(role::HALVES)?;
    command.arg(count.to_string());
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    // Closed, it would end the process.
    let held = child.stdin.take();
    let output = child.wait_with_output()?;
    drop(held);
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// The other end of [`coordinator_alone`]: the growth of this process, by the kernel's account.
pub(crate) fn hold_halves(count: u64) -> Outcome<()> {
    let mut shard = Shard {
        machine: Coordinator::new(0, Limits::default()),
        sequence: 0,
    };
    let mut sessions = Vec::new();
    for number in 0..STREAMS as u64 {
        let mut effects = Vec::new();
        let name = format!("pending-{number}");
        shard
            .machine
            .open(Token(number), &name, "bench", None, &mut effects);
        for effect in effects {
            if let Effect::Persist(draft) = effect
                && let Some(Effect::Opened(_, producer, epoch)) = shard.apply(draft).pop()
            {
                sessions.push((producer, epoch));
            }
        }
    }
    let before = own_anonymous_bytes()?;
    for number in 0..count {
        let session = sessions.get(usize::try_from(number)? % STREAMS);
        let session = *session.ok_or("a session was not opened")?;
        shard.half(session, 1 + number / STREAMS as u64)?;
        // As the checkpoint does: rows that changed are not kept beside the state.
        if number.is_multiple_of(1_000) {
            drop(shard.machine.take_rows());
        }
    }
    drop(shard.machine.take_rows());
    let grown = own_anonymous_bytes()?.saturating_sub(before);
    let waiting = shard.machine.row_count() - 1 - STREAMS as u64;
    if waiting != count {
        return Err(format!("{waiting} half messages wait, of {count}").into());
    }
    print(&format!("{}", grown as f64 / count as f64))
}

/// A coordinator's machine over a log that is durable at once.
struct Shard {
    machine: Coordinator,
    sequence: u64,
}

impl Shard {
    fn half(&mut self, session: (ProducerId, ProducerEpoch), number: u64) -> Outcome<()> {
        let (producer, epoch) = session;
        let lane = PartitionId {
            topic: TopicId(1),
            partition: PartitionIndex(u32::try_from(number % 8)?),
            lane: Lane::ZERO,
        };
        let registration = Registration {
            id: TransactionId {
                producer,
                epoch,
                number: TransactionNumber(number),
            },
            participant: Participant {
                owner: OwnerId(1_024 + number % 8),
                part: Part::Records {
                    partition: lane,
                    records: 1,
                    immediate: 1,
                },
            },
            immunity_ms: Some(3_600_000),
        };
        // As if they came one each millisecond.
        let now = Now {
            wall: WallMs(1_790_000_000_000 + i64::try_from(self.sequence)?),
            monotonic: MonotonicMs(self.sequence),
        };
        let mut effects = Vec::new();
        self.machine
            .half(Token(number), registration, now, &mut effects);
        let Some(Effect::LetThrough(_, id, draft)) = effects.pop() else {
            return Err(format!("a half message was refused: {effects:?}").into());
        };
        self.apply(draft);
        self.machine.settled(id, &mut Vec::new());
        Ok(())
    }

    fn apply(&mut self, draft: Draft) -> Vec<Effect> {
        self.sequence += 1;
        let body: Bytes = draft.body.to_bytes();
        let wall = WallMs(1_790_000_000_000);
        let entry = AppliedEntry {
            header: EntryHeader {
                kind: draft.kind,
                tied_to_next: false,
                moved: false,
                index: LogIndex(self.sequence),
                term: Term(1),
                owner: shard_owner(0),
                sequence: OwnerSequence(self.sequence),
                first_number: RecordNumber(0),
                first_offset: Offset(0),
                numbers: 0,
                offsets: 0,
                appended: wall,
                wall,
            },
            place: EntryPlace {
                position: LogPosition(self.sequence * 100),
                length: 100,
            },
            body,
            facts: PayloadFacts::default(),
        };
        let mut effects = Vec::new();
        self.machine.apply(&entry, &mut effects);
        self.machine.applied_all(&mut effects);
        effects
    }
}

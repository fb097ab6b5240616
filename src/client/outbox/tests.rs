use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

use futures::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::client::error::Refusal;
use crate::client::pending::Receipt;
use crate::domain::batch::BatchView;
use crate::domain::id::{ClusterId, Offset, ProducerEpoch, ProducerId, RecordNumber, TopicId};
use crate::domain::record::RecordBody;
use crate::wire::code::{Code, Refused};
use crate::wire::timer::{StoredTimers, TimerKey};

const IDENTITY: ProducerOk = ProducerOk {
    producer: ProducerId(7),
    epoch: ProducerEpoch(1),
};

fn config(ack: Ack) -> OutboxConfig {
    OutboxConfig {
        cluster: ClusterId([0; 16]),
        topic_id: TopicId(1),
        topic: Arc::from("t"),
        partition: 3,
        level: 0,
        slot: 3,
        ack,
        batch_bytes: 1_000,
        batch_bytes_max: 2_000,
        compression: Compression::None,
        linger: Some(Duration::from_millis(5)),
        in_flight_max: 4,
        flush_timeout: None,
    }
}

/// How often somebody was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Bench {
    outbox: Outbox,
    now: Instant,
}

impl Bench {
    fn new(config: OutboxConfig) -> Self {
        Self {
            outbox: Outbox::new(config, IDENTITY),
            now: Instant::now(),
        }
    }

    fn push(&mut self, value: &str) -> Pending {
        let now = self.now;
        let record = Record::new(value.to_owned());
        let pushed = self
            .outbox
            .push(&record, MessageId([0; 16]), WallMs(0), 10, || now)
            .unwrap();
        self.outbox.pending(&pushed).unwrap()
    }

    fn push_delayed(&mut self, value: &str, at: i64) -> Pending {
        let record = Record::new(value.to_owned()).deliver_at(WallMs(at));
        let now = self.now;
        let pushed = self
            .outbox
            .push(&record, MessageId([0; 16]), WallMs(0), 10, || now)
            .unwrap();
        self.outbox.pending(&pushed).unwrap()
    }

    fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    /// Everything that may be sent now, as (correlation, first sequence, values).
    fn send(&mut self) -> Vec<Sent> {
        let mut sent = Vec::new();
        loop {
            while let Some(batch) = self.outbox.next_to_send(self.now) {
                sent.push(Sent::new(&batch));
            }
            let Some(mut closing) = self.outbox.close_due(self.now) else {
                return sent;
            };
            let bytes = closing.gathered.builder.finish(closing.stamp).unwrap();
            self.outbox.closed(closing.gathered, bytes.into());
        }
    }
}

#[derive(Debug, Clone)]
struct Sent {
    correlation: u64,
    producer: u64,
    sequence: u64,
    values: Vec<String>,
}

impl Sent {
    fn new(batch: &ToSend) -> Self {
        let view = BatchView::parse(&batch.bytes.to_bytes()).unwrap();
        let values = view.bodies().unwrap().map(|body| {
            let body = RecordBody::decode(&body.unwrap().1).unwrap();
            String::from_utf8(body.value.to_vec()).unwrap()
        });
        Self {
            correlation: batch.correlation,
            producer: view.header().producer.0,
            sequence: view.header().first_sequence.0,
            values: values.collect(),
        }
    }
}

fn stored(offset: u64) -> Stored {
    Stored {
        first_offset: Some(Offset(offset)),
        first_number: RecordNumber(offset),
        appended: WallMs(9),
        ..Stored::default()
    }
}

fn receipt(pending: &Pending) -> Option<Result<Receipt, SendError>> {
    pending.now()
}

fn offset(pending: &Pending) -> Option<u64> {
    receipt(pending)?.unwrap().offset
}

fn long(n: usize) -> String {
    format!("{n:0>800}")
}

#[test]
fn records_gather_until_they_lingered_or_the_batch_is_full() {
    let mut bench = Bench::new(config(Ack::Durable));
    let first = bench.push("a");
    let second = bench.push("b");
    assert!(bench.send().is_empty());
    assert_eq!(
        bench.outbox.next_due(),
        Some(bench.now + Duration::from_millis(5))
    );
    bench.pass(5);
    let sent = bench.send();
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].sequence, sent[0].producer), (0, 7));
    assert_eq!(sent[0].values, ["a", "b"]);
    let settled = bench.outbox.stored(sent[0].correlation, &stored(40));
    assert_eq!(
        settled,
        Settled {
            batches: 1,
            charge: 20,
            heard: 1
        }
    );
    assert_eq!((offset(&first), offset(&second)), (Some(40), Some(41)));
    assert!(bench.outbox.is_idle());

    drop(bench.push(&long(1)));
    drop(bench.push(&long(2)));
    let sent = bench.send();
    assert_eq!(sent.len(), 1, "the second did not fit, so the first goes");
    assert_eq!((sent[0].sequence, sent[0].values.len()), (2, 1));
}

#[test]
fn a_lone_record_goes_at_once_and_others_gather_behind_it() {
    let mut bench = Bench::new(OutboxConfig {
        linger: None,
        ..config(Ack::Durable)
    });
    drop(bench.push("a"));
    let sent = bench.send();
    assert_eq!(sent.len(), 1);
    drop(bench.push("b"));
    drop(bench.push("c"));
    assert!(bench.send().is_empty());
    bench.outbox.stored(sent[0].correlation, &stored(0));
    assert_eq!(bench.send()[0].values, ["b", "c"]);
    drop(bench.push("d"));
    bench.pass(5);
    assert_eq!(bench.send()[0].values, ["d"], "but not for ever");
}

#[test]
fn a_record_larger_than_a_batch_gets_its_own_up_to_the_limit() {
    let mut bench = Bench::new(config(Ack::Durable));
    drop(bench.push("a"));
    drop(bench.push(&"x".repeat(1_500)));
    let sent = bench.send();
    assert_eq!(sent.len(), 2);
    let record = Record::new("x".repeat(2_000));
    let refused = bench
        .outbox
        .push(&record, MessageId([0; 16]), WallMs(0), 10, Instant::now);
    assert!(matches!(refused, Err(SendError::TooLarge { limit: 2_000 })));
    assert!(bench.outbox.close_due(bench.now).is_none());
}

#[test]
fn o1_no_more_batches_are_under_way_than_the_window_holds() {
    let mut bench = Bench::new(config(Ack::Durable));
    let pending: Vec<Pending> = (0..10).map(|n| bench.push(&long(n))).collect();
    let sent = bench.send();
    assert_eq!(sent.len(), 4);
    assert!(bench.send().is_empty());
    bench.outbox.stored(sent[0].correlation, &stored(0));
    let more = bench.send();
    assert_eq!(more.len(), 1);
    assert_eq!(more[0].sequence, 4);
    assert_eq!(offset(&pending[0]), Some(0));
    assert_eq!(offset(&pending[1]), None);
}

#[test]
fn o2_after_a_disconnection_everything_unsettled_is_sent_again_in_order() {
    let mut bench = Bench::new(config(Ack::Durable));
    let pending: Vec<Pending> = (0..3).map(|n| bench.push(&long(n))).collect();
    bench.outbox.hurry();
    let sent = bench.send();
    assert_eq!(sent.len(), 3);
    bench.outbox.stored(sent[0].correlation, &stored(0));
    bench.outbox.disconnected();
    let again = bench.send();
    let sequences: Vec<u64> = again.iter().map(|batch| batch.sequence).collect();
    assert_eq!(sequences, [1, 2]);
    bench.outbox.stored(again[0].correlation, &stored(1));
    assert_eq!(offset(&pending[1]), Some(1));
}

#[test]
fn o2_a_refusal_that_passes_sends_again_from_the_first_after_a_pause() {
    let mut bench = Bench::new(config(Ack::Durable));
    for n in 0..3 {
        drop(bench.push(&long(n)));
    }
    bench.outbox.hurry();
    let sent = bench.send();
    let pause = Some(Duration::from_millis(20));
    assert_eq!(
        bench.outbox.refusal_of(sent[0].correlation),
        Refusing::First
    );
    bench.outbox.put_off(sent[0].correlation, pause, bench.now);
    // What follows in the old round is the echo of the same refusal.
    assert_eq!(bench.outbox.refusal_of(sent[1].correlation), Refusing::Past);
    assert!(bench.send().is_empty());
    assert_eq!(
        bench.outbox.next_due(),
        Some(bench.now + Duration::from_millis(20))
    );
    bench.pass(20);
    let again = bench.send();
    assert_eq!(again.len(), 3);
    assert_eq!(again[0].values, sent[0].values);
    assert_ne!(again[0].correlation, sent[0].correlation);
}

#[test]
fn o3_an_accepted_batch_is_told_and_kept_until_it_is_stored() {
    let mut bench = Bench::new(config(Ack::Memory));
    let pending = bench.push("a");
    bench.pass(5);
    let sent = bench.send();
    bench.outbox.accepted(sent[0].correlation);
    let told = receipt(&pending).unwrap().unwrap();
    assert_eq!((told.offset, told.status), (None, SendStatus::SendOk));
    assert!(!bench.outbox.is_idle());
    bench.outbox.disconnected();
    let again = bench.send();
    assert_eq!(again[0].values, ["a"]);
    let settled = bench.outbox.stored(again[0].correlation, &stored(5));
    assert_eq!(settled.batches, 1);
    assert_eq!(receipt(&pending).unwrap().unwrap().offset, None);
}

#[test]
fn at_level_memory_handles_and_offsets_come_when_the_batch_is_stored() {
    let mut bench = Bench::new(config(Ack::Memory));
    let (early, late) = (bench.push_delayed("a", 50), bench.push_delayed("b", 70));
    bench.pass(5);
    let sent = bench.send();
    let handle = |pending: &Pending| receipt(pending).unwrap().unwrap().timer;
    bench.outbox.accepted(sent[0].correlation);
    assert_eq!((handle(&early), handle(&late)), (None, None));
    let (mut first, mut second) = (early.durable(), late.durable());
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    assert!(first.poll_unpin(&mut context).is_pending());
    assert!(second.poll_unpin(&mut context).is_pending());
    let timers = StoredTimers {
        wall: WallMs(60),
        key: TimerKey(5, 6),
    };
    let stored = Stored {
        first_offset: None,
        first_number: RecordNumber(30),
        timers: Some(timers),
        ..stored(0)
    };
    bench.outbox.stored(sent[0].correlation, &stored);
    assert_eq!(woken.0.load(Ordering::Relaxed), 2);
    let (first, second) = (first.now().unwrap(), second.now().unwrap());
    let (first, second) = (first.unwrap(), second.unwrap());
    assert!(first.is_published_at_once(), "its time had passed");
    let handle = second.timer.unwrap();
    assert_eq!(
        (handle.first, handle.number),
        (RecordNumber(30), RecordNumber(31))
    );
    assert_eq!(handle.key, timers.key.of_record(RecordNumber(31)));
    assert_eq!(second.due_ms, Some(70));
}

#[test]
fn what_was_acknowledged_in_memory_and_then_refused_is_told_to_whoever_waits_on() {
    let mut bench = Bench::new(config(Ack::Memory));
    let mut pending = bench.push("a");
    bench.pass(5);
    let sent = bench.send();
    bench.outbox.accepted(sent[0].correlation);
    assert!((&mut pending).now_or_never().unwrap().is_ok());
    bench.outbox.fail_all(SendError::TimedOut(9));
    assert!(receipt(&pending).unwrap().is_ok(), "what was told stays");
    let failed = pending.durable().now().unwrap().unwrap_err();
    assert_eq!(failed.code(), "timed-out");
}

#[test]
fn o4_a_failure_takes_what_is_behind_it_and_ends_the_identity() {
    let mut bench = Bench::new(config(Ack::Durable));
    let pending: Vec<Pending> = (0..6).map(|n| bench.push(&long(n))).collect();
    let sent = bench.send();
    bench.outbox.stored(sent[0].correlation, &stored(0));
    let refusal = Refusal::from(Refused::new(Code::BatchChecksum, "m"));
    let settled = bench
        .outbox
        .fail_from(sent[1].correlation, SendError::Refused(refusal));
    assert_eq!(settled.batches, 5);
    assert_eq!(settled.charge, 50);
    assert_eq!(offset(&pending[0]), Some(0));
    let code = |n: usize| receipt(&pending[n]).unwrap().unwrap_err().code();
    assert_eq!(
        (code(1), code(2), code(5)),
        ("batch-checksum", "aborted", "aborted")
    );
    assert!(bench.outbox.is_idle());
    assert!(!bench.outbox.wants_identity());

    drop(bench.push("later"));
    bench.pass(5);
    assert!(bench.send().is_empty());
    assert!(bench.outbox.wants_identity());
    bench.outbox.identify(ProducerOk {
        producer: ProducerId(8),
        epoch: ProducerEpoch(1),
    });
    let sent = bench.send();
    assert_eq!((sent[0].producer, sent[0].sequence), (8, 0));
}

#[test]
fn without_acknowledgement_nothing_is_numbered_or_sent_again() {
    let mut bench = Bench::new(config(Ack::None));
    bench.outbox.identify(ProducerOk::default());
    let first = bench.push(&long(0));
    let second = bench.push("b");
    let third = bench.push(&long(2));
    let sent = bench.send();
    assert_eq!((sent[0].producer, sent[0].sequence), (0, 0));
    bench.outbox.written(sent[0].correlation);
    assert_eq!(offset(&first), None);
    assert!(receipt(&first).unwrap().is_ok());
    // Written or not when the connection ended: it is not sent twice.
    let settled = bench.outbox.disconnected();
    assert_eq!(settled.batches, sent.len() - 1);
    assert!(receipt(&second).unwrap().is_ok());
    bench.outbox.hurry();
    let rest = bench.send();
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].sequence, 0);
    bench.outbox.written(rest[0].correlation);
    assert!(receipt(&third).unwrap().is_ok());
    for pending in [first, second, third] {
        let untold = pending.durable().now().unwrap().unwrap_err();
        assert_eq!(untold.code(), "unacknowledged");
    }
    assert!(bench.outbox.is_idle());
}

#[test]
fn a_late_acknowledgement_leaves_the_outcome_open_but_the_batch_in_place() {
    let mut bench = Bench::new(OutboxConfig {
        flush_timeout: Some(Duration::from_millis(100)),
        ..config(Ack::Durable)
    });
    let pending = bench.push("a");
    bench.pass(5);
    let sent = bench.send();
    assert_eq!(
        bench.outbox.next_due(),
        Some(bench.now + Duration::from_millis(100))
    );
    bench.pass(100);
    bench.outbox.tell_late(bench.now);
    let told = receipt(&pending).unwrap().unwrap();
    assert_eq!(told.status, SendStatus::FlushDiskTimeout);
    let durable = pending.durable();
    assert!(durable.now().is_none(), "the outcome is open");
    assert_eq!(bench.outbox.next_due(), None);
    assert_eq!(
        bench.outbox.stored(sent[0].correlation, &stored(0)).batches,
        1
    );
    let told = durable.now().unwrap().unwrap();
    assert_eq!((told.status, told.offset), (SendStatus::SendOk, Some(0)));
}

#[test]
fn a_pending_wakes_whoever_waits_for_it() {
    let mut bench = Bench::new(config(Ack::Durable));
    let (mut one, mut two) = (bench.push("a"), bench.push("b"));
    assert!((&mut one).now_or_never().is_none());
    assert!((&mut two).now_or_never().is_none());
    bench.pass(5);
    let sent = bench.send();
    bench.outbox.stored(sent[0].correlation, &stored(0));
    assert_eq!(one.now_or_never().unwrap().unwrap().offset, Some(0));
    assert_eq!(two.now_or_never().unwrap().unwrap().offset, Some(1));
}

/// The naive broker: takes a batch where it belongs, answers repeats, refuses gaps, and has moods.
#[derive(Default)]
struct Broker {
    log: Vec<String>,
    /// First sequence and offset of what was stored.
    taken: Vec<(u64, u64)>,
    next_sequence: u64,
}

enum Answer {
    Stored(u64, Stored),
    Accepted(u64),
    Refused(u64, Code),
}

impl Broker {
    fn take(&mut self, batch: &Sent, willing: bool) -> Answer {
        let repeat = self
            .taken
            .iter()
            .find(|(sequence, _)| *sequence == batch.sequence);
        if let Some((_, offset)) = repeat {
            return Answer::Stored(batch.correlation, stored(*offset));
        }
        if !willing {
            return Answer::Refused(batch.correlation, Code::Retry);
        }
        if batch.sequence != self.next_sequence {
            return Answer::Refused(batch.correlation, Code::SequenceGap);
        }
        let offset = self.log.len() as u64;
        self.taken.push((batch.sequence, offset));
        self.next_sequence += batch.values.len() as u64;
        self.log.extend(batch.values.iter().cloned());
        Answer::Stored(batch.correlation, stored(offset))
    }
}

#[derive(Debug, Clone)]
enum Op {
    Push(usize),
    Send,
    Take { willing: bool },
    Answer,
    Pass(u64),
    Disconnect,
    Accept,
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0usize..700).prop_map(Op::Push),
        4 => Just(Op::Send),
        5 => prop_oneof![4 => Just(true), 1 => Just(false)].prop_map(|willing| Op::Take { willing }),
        5 => Just(Op::Answer),
        2 => (0u64..10).prop_map(Op::Pass),
        1 => Just(Op::Disconnect),
        1 => Just(Op::Accept),
    ]
}

/// The outbox, a stream to the naive broker, and one back.
struct World {
    bench: Bench,
    broker: Broker,
    there: VecDeque<Sent>,
    back: VecDeque<Answer>,
    pending: Vec<Pending>,
    memory: bool,
}

impl World {
    fn step(&mut self, op: &Op) {
        match op {
            Op::Push(length) => {
                let value = format!("{:0>width$}", self.pending.len(), width = length + 8);
                let pending = self.bench.push(&value);
                self.pending.push(pending);
            }
            Op::Send => self.there.extend(self.bench.send()),
            Op::Take { willing } => {
                if let Some(batch) = self.there.pop_front() {
                    self.back.push_back(self.broker.take(&batch, *willing));
                }
            }
            Op::Accept => {
                if let Some(batch) = self.there.front().filter(|_| self.memory) {
                    self.back.push_back(Answer::Accepted(batch.correlation));
                }
            }
            Op::Answer => {
                let answer = self.back.pop_front();
                self.answer(answer);
            }
            Op::Pass(ms) => self.bench.pass(*ms),
            Op::Disconnect => {
                self.there.clear();
                self.back.clear();
                self.bench.outbox.disconnected();
            }
        }
    }

    fn answer(&mut self, answer: Option<Answer>) {
        let outbox = &mut self.bench.outbox;
        match answer {
            Some(Answer::Stored(correlation, stored)) => drop(outbox.stored(correlation, &stored)),
            Some(Answer::Accepted(correlation)) => outbox.accepted(correlation),
            Some(Answer::Refused(correlation, code)) => {
                let about = outbox.refusal_of(correlation);
                assert!(
                    code == Code::Retry || about != Refusing::First,
                    "the first unsettled batch never leaves a gap"
                );
                if about != Refusing::Past {
                    outbox.put_off(correlation, None, self.bench.now);
                }
            }
            None => {}
        }
        assert!(outbox.queue.len() <= 4, "O1");
    }
}

proptest! {
    /// O1 to O3 against the naive broker: whatever is lost, refused or repeated, every record is stored
    /// once, in order, and its receipt names its place.
    #[test]
    fn o2_every_record_is_stored_once_and_in_order(
        ops in proptest::collection::vec(any_op(), 0..200),
        memory in any::<bool>(),
    ) {
        let ack = if memory { Ack::Memory } else { Ack::Durable };
        let mut world = World {
            bench: Bench::new(config(ack)),
            broker: Broker::default(),
            there: VecDeque::new(),
            back: VecDeque::new(),
            pending: Vec::new(),
            memory,
        };
        for op in &ops {
            world.step(op);
        }
        // From here on everybody is willing.
        for _ in 0..2_000 {
            if world.bench.outbox.is_idle() {
                break;
            }
            for op in [Op::Pass(100), Op::Send, Op::Take { willing: true }, Op::Answer] {
                world.step(&op);
            }
        }
        prop_assert!(world.bench.outbox.is_idle());
        prop_assert_eq!(world.broker.log.len(), world.pending.len());
        for (n, (value, pending)) in world.broker.log.iter().zip(world.pending).enumerate() {
            prop_assert_eq!(value.parse::<usize>().unwrap(), n);
            let expected = (!memory).then_some(n as u64);
            prop_assert_eq!(offset(&pending), expected);
            let durable = pending.durable().now().unwrap().unwrap();
            prop_assert_eq!(durable.offset, Some(n as u64));
        }
    }
}

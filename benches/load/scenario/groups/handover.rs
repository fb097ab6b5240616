//! A member goes, in good order or by SIGKILL: when its successor has the next record, and what everybody
//! else notices.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use waterwheel::client::{Ack, AckMode, Mode, Record, TopicConfig};

use super::{LOOK, await_consumed, make, member_process};
use crate::load::broker::{Broker, Home};
use crate::load::clients::{self, PATIENCE};
use crate::load::crew::bounded;
use crate::load::report::Samples;
use crate::load::scenario::timers::value;
use crate::load::{Bench, Outcome};

const TOPIC: &str = "handover";
/// Partitions: every member has some before and after.
const PARTITIONS: u32 = 6;
/// Between two records of one partition.
const BEAT: Duration = Duration::from_millis(5);
/// What is looked at before somebody goes.
const BEFORE: Duration = Duration::from_millis(300);

/// How the member goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Going {
    /// It stays: the run the others' gaps are compared with.
    Stays,
    Closes,
    IsKilled,
}

/// When which member was given something of which partition.
type Arrivals = Arc<Mutex<Vec<(usize, u32, Instant)>>>;

/// The control run, the close and the kill, each on a broker of its own.
pub(crate) fn handover(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    samples.note("exclusive, 3 members, 6 partitions with a record every 5 ms each, single durable acknowledgements");
    for run in 0..bench.runs {
        let control = once(bench, run, Going::Stays)?.1;
        samples.add("control: longest gap", control, "ms");
        for (going, name) in [
            (Going::Closes, "orderly close"),
            (Going::IsKilled, "SIGKILL"),
        ] {
            let (successor, gap) = once(bench, run, going)?;
            samples.add(
                format!("{name}: first delivery to the successor"),
                successor,
                "ms",
            );
            samples.add(
                format!("{name}: gap of the others beyond control"),
                (gap - control).max(0.0),
                "ms",
            );
        }
    }
    Ok(())
}

/// From the going to the last successor's first record, and the longest gap of the others, in ms.
fn once(bench: &Bench, run: usize, going: Going) -> Outcome<(f64, f64)> {
    let broker = Broker::fresh(bench, &format!("handover-{going:?}-{run}"))?;
    let home = broker.home();
    make(home, TOPIC, TopicConfig::new(PARTITIONS))?;
    let (over, leave) = (AtomicBool::new(false), AtomicBool::new(false));
    let sent = AtomicU64::new(0);
    let arrivals = Arrivals::default();
    let (cut, end) = scope(|scope| {
        let producing = scope.spawn(|| beat(home, &over, &sent));
        // The one that goes, and two that stay.
        let mut leaver = None;
        let mut killed = None;
        if going == Going::IsKilled {
            let file = bench.dir.join(format!("killed-{run}"));
            let member = member_process(home, TOPIC, "g", Mode::Exclusive, AckMode::Manual, &file);
            killed = Some(member?);
        } else {
            leaver = Some(scope.spawn(|| member(home, 0, &arrivals, &leave)));
        }
        let staying: Vec<_> = (1..3)
            .map(|number| {
                let (arrivals, over) = (&arrivals, &over);
                scope.spawn(move || member(home, number, arrivals, over))
            })
            .collect();
        sleep(bench.size(Duration::from_secs(3), Duration::from_millis(1_500)));
        let cut = Instant::now();
        match going {
            Going::Stays => {}
            Going::Closes => leave.store(true, Ordering::Relaxed),
            Going::IsKilled => killed.map_or(Ok(()), |process| process.kill())?,
        }
        sleep(Duration::from_millis(match going {
            Going::Closes => 2_000,
            Going::Stays | Going::IsKilled => 6_500,
        }));
        let end = Instant::now();
        over.store(true, Ordering::Relaxed);
        leave.store(true, Ordering::Relaxed);
        producing.join().map_err(|_| "the producer panicked")??;
        for member in staying.into_iter().chain(leaver) {
            member.join().map_err(|_| "a member panicked")??;
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((cut, end))
    })?;
    finish(home)?;
    let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
    // Those that stayed leave one after the other, and the last may still be given what the first had.
    arrivals.retain(|arrival| arrival.2 <= end);
    judge(&arrivals, cut, going)
}

/// What the members that ended left is consumed, so nothing was lost on the way.
fn finish(home: &Home) -> Outcome<()> {
    let done = AtomicBool::new(false);
    let nobody = Arrivals::default();
    scope(|scope| {
        let last = scope.spawn(|| member(home, 9, &nobody, &done));
        let consumed = await_consumed(home, "g");
        done.store(true, Ordering::Relaxed);
        last.join().map_err(|_| "a member panicked")??;
        consumed
    })
}

/// Sends a record to every partition at every beat.
fn beat(home: &Home, over: &AtomicBool, sent: &AtomicU64) -> Outcome<()> {
    bounded(PATIENCE, async {
        let client = clients::connect(home).await?;
        let producer = client
            .producer(TOPIC)
            .ack(Ack::Durable)
            .linger(Duration::ZERO)
            .open()
            .await?;
        let mut beats = tokio::time::interval(BEAT);
        while !over.load(Ordering::Relaxed) {
            beats.tick().await;
            for partition in 0..PARTITIONS {
                let number = sent.fetch_add(1, Ordering::Relaxed);
                drop(
                    producer
                        .enqueue_to(partition, Record::new(value(number, 100)))
                        .await?,
                );
            }
        }
        producer.flush().await?;
        Ok(())
    })
}

fn member(home: &Home, member: usize, arrivals: &Arrivals, over: &AtomicBool) -> Outcome<()> {
    bounded(PATIENCE, async {
        let client = clients::connect(home).await?;
        let consumer = client.consumer("g").topic(TOPIC).mode(Mode::Exclusive);
        let mut consumer = consumer.open().await?;
        while !over.load(Ordering::Relaxed) {
            let batch = consumer.next_batch(64, LOOK / 10).await?;
            let now = Instant::now();
            for delivery in &batch {
                let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
                arrivals.push((member, delivery.partition, now));
                drop(consumer.ack(delivery));
            }
        }
        consumer.close().await;
        Ok(())
    })
}

fn judge(arrivals: &[(usize, u32, Instant)], cut: Instant, going: Going) -> Outcome<(f64, f64)> {
    let (mut successor, mut gap) = (0.0_f64, 0.0_f64);
    let mut moved = 0;
    for partition in 0..PARTITIONS {
        let of = || arrivals.iter().filter(|arrival| arrival.1 == partition);
        let before =
            of().rfind(|arrival| arrival.0 != 0 && arrival.2 < cut && arrival.2 + BEFORE > cut);
        let after = of().filter(|arrival| arrival.0 != 0 && arrival.2 >= cut);
        match before {
            Some((member, _, at)) => {
                let mut last = *at;
                for (by, _, at) in after {
                    if by != member {
                        return Err(format!(
                            "partition {partition} moved from a member that stayed"
                        )
                        .into());
                    }
                    gap = gap.max((*at - last).as_secs_f64() * 1e3);
                    last = *at;
                }
            }
            None if going != Going::Stays => {
                let mut after = after;
                let first = after.next().ok_or("a partition nobody took over")?;
                successor = successor.max((first.2 - cut).as_secs_f64() * 1e3);
                moved += 1;
            }
            None => {}
        }
    }
    if going != Going::Stays && moved == 0 {
        return Err("the member that went had no partition".into());
    }
    Ok((successor, gap))
}

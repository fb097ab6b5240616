//! Open loop: records sent when they are due, whatever became of the earlier ones.
//!
//! A thread sleeps until a record is due and hands it over; the client works on a thread of its own, as
//! it does beside an application. Timers of a runtime are no finer than a millisecond; a sleeping thread
//! is some 60 us late, and that lateness counts, because latency is counted from the planned instant.

use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use waterwheel::client::{Ack, Pending, Producer, Record};

use super::Outcome;
use super::broker::Home;
use super::clients::{self, PATIENCE};
use super::crew::bounded;
use super::latency::Latencies;
use super::records::Pool;

/// From the moment everybody is ready to the first record.
const PAUSE: Duration = Duration::from_millis(100);

/// When each record of an open loop is due.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    start: Arc<OnceLock<Instant>>,
    interval: Duration,
    /// How many records there are.
    pub(crate) count: u64,
}

impl Plan {
    /// So many records a second for `span`.
    pub(crate) fn new(rate: u32, span: Duration) -> Self {
        let interval = Duration::from_secs(1) / rate.max(1);
        let count = span.as_nanos() / interval.as_nanos().max(1);
        Self {
            start: Arc::default(),
            interval,
            count: u64::try_from(count).unwrap_or(u64::MAX),
        }
    }

    /// When a record is due; nothing before the loop has begun.
    pub(crate) fn due(&self, number: u64) -> Option<Instant> {
        Some(*self.start.get()? + self.interval.mul_f64(number as f64))
    }

    /// How long all of it takes.
    pub(crate) fn span(&self) -> Duration {
        self.interval.mul_f64(self.count as f64)
    }
}

/// A record that is timed: when it was due, and what tells of its receipt.
pub(crate) type Timed = (Instant, Pending);

/// Sends stream 0 of the pool to partition 0 by the plan, durably, without linger: the latencies from
/// planned to acknowledged.
pub(crate) fn send(home: &Home, topic: &str, pool: &Pool, plan: &Plan) -> Outcome<Latencies> {
    let within = plan.span() + PATIENCE;
    thread::scope(|scope| {
        let (ready, waiting) = channel::<(Producer, Handle)>();
        let (timed, receipts) = mpsc::unbounded_channel();
        let hand = scope.spawn(move || {
            bounded(within, async move {
                let client = clients::connect(home).await?;
                let producer = client
                    .producer(topic)
                    .ack(Ack::Durable)
                    .linger(Duration::ZERO)
                    .open()
                    .await?;
                ready.send((producer, Handle::current()))?;
                drop(ready);
                time_receipts(receipts).await
            })
        });
        // Where nobody gets ready, joining tells why.
        if let Ok((producer, handle)) = waiting.recv_timeout(PATIENCE) {
            hand_over(&producer, &handle, pool, plan, &timed)?;
        }
        drop(timed);
        hand.join().map_err(|_| "the open loop's client panicked")?
    })
}

fn hand_over(
    producer: &Producer,
    handle: &Handle,
    pool: &Pool,
    plan: &Plan,
    timed: &mpsc::UnboundedSender<Timed>,
) -> Outcome<()> {
    plan.start
        .set(Instant::now() + PAUSE)
        .map_err(|_| "a plan is good for one loop")?;
    for number in 0..plan.count {
        let due = plan.due(number).ok_or("the loop has not begun")?;
        if let Some(early) = due.checked_duration_since(Instant::now()) {
            thread::sleep(early);
        }
        let record = Record::new(pool.value(0, number));
        let pending = handle.block_on(producer.enqueue_to(0, record))?;
        timed.send((due, pending))?;
    }
    Ok(())
}

/// Waits for receipts in the order of their records.
pub(crate) async fn time_receipts(
    mut receipts: mpsc::UnboundedReceiver<Timed>,
) -> Outcome<Latencies> {
    let mut latencies = Latencies::new()?;
    while let Some((due, pending)) = receipts.recv().await {
        pending.await?;
        latencies.record(due.elapsed());
    }
    Ok(latencies)
}

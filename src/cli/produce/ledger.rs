//! What is known of the records sent: counts, latencies, receipts in the input's order.
//!
//! A pure fold: in, what was sent and what became of it; out, receipt lines and the summary.
//!
//! A receipt is one line, `{"line","topic","partition","offset","time_ms","status"}`: `line` is the
//! record's number in the input; `offset` is null below `durable`, `time_ms` where it is not known.
//! L1: receipts come in the input's order, each once, none for what was not acknowledged.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::queues::Settled;
use crate::cli::json::write_json;
use crate::cli::output::counted;
use crate::client::{Receipt, SendError, SendStatus, TimerHandle};

/// Receipts that may wait for an earlier one: while so many do, nothing more is sent.
const WAITING_MAX: usize = 1 << 20;

/// The longest latency that is told apart, in microseconds: an hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// What is known of the records sent.
#[derive(Debug)]
pub(super) struct Ledger {
    latencies_us: Histogram<u64>,
    sent: u64,
    acknowledged: u64,
    acknowledged_bytes: u64,
    last_acknowledged: Option<Instant>,
    first_failed: Option<u64>,
    failure: Option<SendError>,
    receipts: Option<Receipts>,
}

#[derive(Debug)]
struct Receipts {
    /// The topic's name as JSON.
    topic: Vec<u8>,
    /// The index of the first that waits.
    first_index: u64,
    waiting: VecDeque<Slot>,
}

/// A record's place in the order of receipts.
#[derive(Debug, Clone, Copy)]
enum Slot {
    Open,
    /// Settled, and without a receipt.
    Void,
    Receipt {
        number: u64,
        partition: u32,
        offset: Option<u64>,
        time_ms: i64,
        status: SendStatus,
        due_ms: Option<i64>,
        timer: Option<TimerHandle>,
    },
}

impl Ledger {
    /// `receipts`: the topic's name, where receipts are wanted.
    pub(super) fn new(receipts: Option<&str>) -> Result<Self, hdrhistogram::CreationError> {
        Ok(Self {
            latencies_us: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?,
            sent: 0,
            acknowledged: 0,
            acknowledged_bytes: 0,
            last_acknowledged: None,
            first_failed: None,
            failure: None,
            receipts: receipts.map(|topic| {
                let mut json = Vec::new();
                write_json(&topic, &mut json);
                Receipts {
                    topic: json,
                    first_index: 0,
                    waiting: VecDeque::new(),
                }
            }),
        })
    }

    /// The next record was put on its way.
    pub(super) fn sent(&mut self) {
        self.sent += 1;
        if let Some(receipts) = &mut self.receipts {
            receipts.waiting.push_back(Slot::Open);
        }
    }

    /// Whether so many receipts wait for an earlier one that nothing more should be sent.
    pub(super) fn is_full(&self) -> bool {
        let receipts = self.receipts.as_ref();
        receipts.is_some_and(|receipts| receipts.waiting.len() >= WAITING_MAX)
    }

    /// A record's outcome is known.
    pub(super) fn settle(&mut self, settled: Settled, now: Instant) {
        let slot = match settled.outcome {
            Ok(receipt) => {
                self.acknowledged += 1;
                self.acknowledged_bytes += settled.bytes;
                self.last_acknowledged = Some(now);
                let latency = now.saturating_duration_since(settled.at).as_micros();
                let latency = u64::try_from(latency).unwrap_or(LATENCY_US_MAX);
                self.latencies_us.saturating_record(latency.max(1));
                slot_of(settled.number, &receipt)
            }
            Err(error) => {
                if self.first_failed.is_none_or(|first| settled.number < first) {
                    self.first_failed = Some(settled.number);
                    // What fails behind another says so; the reason is with the first.
                    self.failure = Some(error);
                }
                Slot::Void
            }
        };
        if let Some(receipts) = &mut self.receipts {
            let place = settled.index.checked_sub(receipts.first_index);
            let place = place.and_then(|place| usize::try_from(place).ok());
            if let Some(open) = place.and_then(|place| receipts.waiting.get_mut(place)) {
                *open = slot;
            }
        }
    }

    /// The receipts that are due by now.
    pub(super) fn take_receipts(&mut self) -> Vec<u8> {
        let mut lines = Vec::new();
        let Some(receipts) = &mut self.receipts else {
            return lines;
        };
        while let Some(slot) = receipts.waiting.front() {
            match *slot {
                Slot::Open => break,
                Slot::Void => {}
                Slot::Receipt {
                    number,
                    partition,
                    offset,
                    time_ms,
                    status,
                    due_ms,
                    timer,
                } => {
                    let _ = write!(lines, "{{\"line\":{number},\"topic\":");
                    lines.extend_from_slice(&receipts.topic);
                    let _ = write!(lines, ",\"partition\":{partition},\"offset\":");
                    let _ = match offset {
                        Some(offset) => write!(lines, "{offset}"),
                        None => write!(lines, "null"),
                    };
                    let _ = match time_ms {
                        0 => write!(lines, ",\"time_ms\":null"),
                        _ => write!(lines, ",\"time_ms\":{time_ms}"),
                    };
                    let _ = write!(lines, ",\"status\":\"{}\"", status.name());
                    if let Some(due_ms) = due_ms {
                        let _ = write!(lines, ",\"due_ms\":{due_ms}");
                    }
                    if let Some(timer) = timer {
                        let _ = write!(lines, ",\"timer\":\"{timer}\"");
                    }
                    let _ = writeln!(lines, "}}");
                }
            }
            receipts.waiting.pop_front();
            receipts.first_index += 1;
        }
        lines
    }

    /// How many records are acknowledged.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// How many records were sent and not acknowledged.
    pub(super) fn unacknowledged(&self) -> u64 {
        self.sent - self.acknowledged
    }

    /// Why the first record in the input that failed did, with its number.
    pub(super) fn failure(&self) -> Option<(u64, &SendError)> {
        self.first_failed.zip(self.failure.as_ref())
    }

    /// What came of it all.
    pub(super) fn summary(&self, began: Instant) -> Summary {
        let ended = self.last_acknowledged.unwrap_or(began);
        let took = ended.saturating_duration_since(began);
        let seconds = took.max(Duration::from_micros(1)).as_secs_f64();
        let quantile_ms = |quantile| self.latencies_us.value_at_quantile(quantile) as f64 / 1000.0;
        Summary {
            acknowledged: self.acknowledged,
            bytes: self.acknowledged_bytes,
            seconds: took.as_secs_f64(),
            records_per_second: self.acknowledged as f64 / seconds,
            megabytes_per_second: self.acknowledged_bytes as f64 / seconds / 1e6,
            p50_ms: quantile_ms(0.5),
            p99_ms: quantile_ms(0.99),
        }
    }
}

/// What came of a run: `--json` prints these fields.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Summary {
    acknowledged: u64,
    bytes: u64,
    seconds: f64,
    records_per_second: f64,
    megabytes_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

impl Summary {
    /// Whether nothing at all was acknowledged.
    pub(super) fn is_nothing(&self) -> bool {
        self.acknowledged == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} acknowledged in {:.2} s: {:.0} records/s, {:.2} MB/s; acknowledgement p50 {:.2} ms, p99 {:.2} ms",
            counted(self.acknowledged, "record"),
            self.seconds,
            self.records_per_second,
            self.megabytes_per_second,
            self.p50_ms,
            self.p99_ms,
        )
    }
}

fn slot_of(number: u64, receipt: &Receipt) -> Slot {
    Slot::Receipt {
        number,
        partition: receipt.partition,
        offset: receipt.offset,
        time_ms: receipt.time_ms,
        status: receipt.status,
        due_ms: receipt.due_ms,
        timer: receipt.timer,
    }
}

#[cfg(test)]
mod tests {
    use super::super::queues::tests::receipt;
    use super::*;

    fn settled(index: u64, outcome: Result<Receipt, SendError>, at: Instant) -> Settled {
        Settled {
            index,
            number: index + 1,
            bytes: 10,
            at,
            outcome,
        }
    }

    fn lines(ledger: &mut Ledger) -> String {
        String::from_utf8(ledger.take_receipts()).unwrap()
    }

    #[test]
    fn l1_receipts_come_in_the_order_of_the_input() {
        let at = Instant::now();
        let mut ledger = Ledger::new(Some("a\"b")).unwrap();
        (0..4).for_each(|_| ledger.sent());
        ledger.settle(settled(1, Ok(receipt(5, 9)), at), at);
        assert_eq!(lines(&mut ledger), "");
        ledger.settle(settled(0, Ok(receipt(0, 3)), at), at);
        assert_eq!(
            lines(&mut ledger),
            concat!(
                r#"{"line":1,"topic":"a\"b","partition":0,"offset":3,"time_ms":7,"status":"SEND_OK"}"#,
                "\n",
                r#"{"line":2,"topic":"a\"b","partition":5,"offset":9,"time_ms":7,"status":"SEND_OK"}"#,
                "\n"
            )
        );
        ledger.settle(settled(2, Err(SendError::Closed), at), at);
        let mut below_durable = receipt(1, 0);
        below_durable.offset = None;
        below_durable.time_ms = 0;
        ledger.settle(settled(3, Ok(below_durable), at), at);
        assert_eq!(
            lines(&mut ledger),
            "{\"line\":4,\"topic\":\"a\\\"b\",\"partition\":1,\"offset\":null,\"time_ms\":null,\"status\":\"SEND_OK\"}\n"
        );
        assert_eq!(lines(&mut ledger), "");
    }

    #[test]
    fn the_failure_told_is_that_of_the_first_record_in_the_input() {
        let at = Instant::now();
        let mut ledger = Ledger::new(None).unwrap();
        (0..3).for_each(|_| ledger.sent());
        ledger.settle(settled(2, Err(SendError::Closed), at), at);
        ledger.settle(settled(1, Err(SendError::TimedOut(5)), at), at);
        let (number, error) = ledger.failure().unwrap();
        assert_eq!((number, error.code()), (2, "timed-out"));
        assert_eq!(ledger.unacknowledged(), 3);
        ledger.settle(settled(0, Ok(receipt(0, 0)), at), at);
        assert_eq!((ledger.acknowledged(), ledger.unacknowledged()), (1, 2));
        assert_eq!(lines(&mut ledger), "");
    }

    #[test]
    fn the_summary_has_count_rate_and_latencies() {
        let at = Instant::now();
        let mut ledger = Ledger::new(None).unwrap();
        for index in 0..100 {
            ledger.sent();
            let latency = Duration::from_millis(if index < 90 { 10 } else { 100 });
            ledger.settle(settled(index, Ok(receipt(0, index)), at), at + latency);
        }
        assert_eq!(
            ledger.summary(at).to_string(),
            "100 records acknowledged in 0.10 s: 1000 records/s, 0.01 MB/s; acknowledgement p50 10.01 ms, p99 100.03 ms"
        );
        let nothing = Ledger::new(None).unwrap().summary(at).to_string();
        assert!(
            nothing.starts_with("0 records acknowledged in 0.00 s: 0 records/s"),
            "{nothing}"
        );
    }

    #[test]
    fn receipts_that_wait_are_bounded() {
        let at = Instant::now();
        let mut ledger = Ledger::new(Some("t")).unwrap();
        while !ledger.is_full() {
            ledger.sent();
        }
        assert_eq!(ledger.unacknowledged(), WAITING_MAX as u64);
        ledger.settle(settled(0, Ok(receipt(0, 0)), at), at);
        ledger.take_receipts();
        assert!(!ledger.is_full());
    }
}

//! Producers that never stop, and what they were told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use waterwheel::client::{Ack, Client, Record};

/// Records under way per producer.
const WINDOW: usize = 256;

/// What producers were told: by producer, the place of each of its records, by number.
pub(crate) type Acked = BTreeMap<u32, BTreeMap<u64, (u32, Option<u64>)>>;

/// Shared by producers and the one who kills.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    acked: AtomicU64,
    unacked: AtomicU64,
    bell: Notify,
    stop: AtomicBool,
    places: Mutex<Acked>,
}

impl Progress {
    /// Acknowledgements so far.
    pub(crate) fn acked(&self) -> u64 {
        self.acked.load(Ordering::SeqCst)
    }

    /// Records sent and not acknowledged.
    pub(crate) fn unacked(&self) -> u64 {
        self.unacked.load(Ordering::SeqCst)
    }

    /// Waits for an acknowledgement, or a little while: a broker may also end by itself.
    pub(crate) async fn changed(&self) {
        let _ = tokio::time::timeout(Duration::from_millis(20), self.bell.notified()).await;
    }

    /// Producers send nothing more and wait for what is under way.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// What was told.
    pub(crate) fn places(&self) -> Acked {
        self.places.lock().expect("no producer panicked").clone()
    }

    fn note(&self, producer: u32, number: u64, place: (u32, Option<u64>)) {
        let mut places = self.places.lock().expect("no producer panicked");
        let before = places.entry(producer).or_default().insert(number, place);
        assert_eq!(before, None, "a record is acknowledged once");
        drop(places);
        self.unacked.fetch_sub(1, Ordering::SeqCst);
        self.acked.fetch_add(1, Ordering::SeqCst);
        self.bell.notify_waiters();
    }
}

/// A client of the broker.
pub(crate) async fn connect(address: SocketAddr, data: &Path) -> Client {
    Client::connect(&address.to_string())
        .ca(data.join("tls/ca.pem"))
        .timeout(Duration::from_secs(60))
        .await
        .expect("the broker can be reached")
}

/// The value of a record: whose it is, its number, and filler so that segments fill.
pub(crate) fn value(producer: u32, number: u64) -> Vec<u8> {
    let mut value = format!("{producer}:{number}:").into_bytes();
    let filler = (number % 7) as usize * 150;
    value.extend(std::iter::repeat_n(b'x', filler));
    value
}

/// Reads whose a value is.
pub(crate) fn parse(value: &[u8]) -> (u32, u64) {
    let text = std::str::from_utf8(value).expect("values are text");
    let mut parts = text.split(':');
    let mut number = || {
        parts
            .next()
            .expect("a number")
            .parse::<u64>()
            .expect("a number")
    };
    (number() as u32, number())
}

/// Sends numbered records until told to stop, resending through every kill, and notes each receipt.
pub(crate) async fn produce(
    client: Client,
    topic: &'static str,
    id: u32,
    ack: Ack,
    progress: Arc<Progress>,
) {
    let producer = client
        .producer(topic)
        .ack(ack)
        .batch_bytes(8 * 1024)
        .timeout(Duration::from_secs(120))
        .open()
        .await
        .expect("the topic is there");
    let mut pending = std::collections::VecDeque::new();
    let mut number = 0;
    loop {
        let stopping = progress.stop.load(Ordering::SeqCst);
        if stopping && pending.is_empty() {
            break;
        }
        if !stopping && pending.len() < WINDOW {
            let record = Record::new(value(id, number)).key(format!("{id}-{}", number % 5));
            progress.unacked.fetch_add(1, Ordering::SeqCst);
            let sent = producer
                .enqueue(record)
                .await
                .expect("there is room in time");
            pending.push_back((number, sent));
            number += 1;
            if !number.is_multiple_of(16) {
                continue;
            }
            tokio::task::yield_now().await;
        }
        while pending
            .front()
            .is_some_and(|(_, sent)| sent.now().is_some())
            || (pending.len() >= WINDOW || stopping) && !pending.is_empty()
        {
            let Some((number, sent)) = pending.pop_front() else {
                break;
            };
            let receipt = sent
                .await
                .expect("a record is stored in the end, whatever is killed");
            progress.note(id, number, (receipt.partition, receipt.offset));
        }
    }
    producer.close().await.expect("everything is acknowledged");
}

//! The thread that reads the input and puts its records on their way.
//!
//! In: a reader. Out: the records as they were put on their way, in the input's order, and how it
//! ended. It waits where the producer has no room: memory stays bounded whatever the input's size. It
//! is left behind where it waits for input when the command ends.

use std::io::{self, Read};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use futures::future::Either;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::queues::Sent;
use crate::cli::framing::{FramingError, Input, Splitter};
use crate::client::{Ack, Pending, PendingDurable, Producer, Record, SendError};
use crate::domain::batch::Delivery;
use crate::domain::record::Text;

/// So much is read at once.
const READ_BYTES: usize = 256 * 1024;

/// So many records are handed on at once, where the input has them.
const RUN_RECORDS: usize = 512;

/// Runs that may wait to be taken.
const RUNS_MAX: usize = 64;

/// Why the input was not read to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum FeedError {
    /// It is not what it is said to be.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// It cannot be read.
    #[error("the input cannot be read: {0}")]
    Read(#[from] io::Error),
    /// The producer does not take a record.
    #[error("{unit} {number}: {error}")]
    Send {
        unit: &'static str,
        number: u64,
        error: SendError,
    },
    /// It was told to stop.
    #[error("stopped")]
    Stopped,
}

/// What every record gets.
#[derive(Debug, Clone, Default)]
pub(super) struct Dress {
    /// A tag, unless it has one.
    pub(super) tag: Option<Text>,
    /// A priority, unless it has one above the lowest.
    pub(super) priority: u8,
    /// Headers, behind its own.
    pub(super) headers: Vec<(Text, Bytes)>,
    /// When it is delivered, unless it says so itself.
    pub(super) delivery: Delivery,
}

impl Dress {
    fn put_on(&self, record: &mut Record) {
        if record.tag.is_none() {
            record.tag.clone_from(&self.tag);
        }
        if record.priority == 0 {
            record.priority = self.priority;
        }
        record.headers.extend_from_slice(&self.headers);
        if record.delivery == Delivery::Now {
            record.delivery = self.delivery;
        }
    }
}

/// What is waited for: the acknowledgement, or what is known once a record is on the disk.
pub(super) type Awaited = Either<Pending, PendingDurable>;

/// A run of records on their way.
pub(super) type Run = Vec<Sent<Awaited>>;

/// The thread's other end.
#[derive(Debug)]
pub(super) struct Feed {
    /// Records as they are put on their way.
    pub(super) runs: mpsc::Receiver<Run>,
    /// How it ended.
    pub(super) ended: oneshot::Receiver<Result<(), FeedError>>,
    /// Bytes read so far.
    pub(super) read_bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Feed {
    /// Starts reading. `producer` has to be driven by the runtime this is called in. Where handles are
    /// wanted, delayed records are waited for until they have one.
    pub(super) fn start(
        reader: impl Read + Send + 'static,
        splitter: Splitter,
        dress: Dress,
        producer: Producer,
        are_handles_wanted: bool,
    ) -> Self {
        let (hand_on, runs) = mpsc::channel(RUNS_MAX);
        let (end, ended) = oneshot::channel();
        let read_bytes = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let runtime = Handle::current();
        let mut feeder = Feeder {
            splitter,
            dress,
            // Of what is acknowledged before it is on the disk there is no handle yet.
            waits_for_handles: are_handles_wanted && producer.ack() == Ack::Memory,
            producer,
            hand_on,
            run: Vec::new(),
            read_bytes: Arc::clone(&read_bytes),
            stop: Arc::clone(&stop),
        };
        thread::spawn(move || {
            let result = feeder.read_all(reader, &runtime);
            // The last run is handed on before the end is told.
            drop(feeder);
            let _ = end.send(result);
        });
        Self {
            runs,
            ended,
            read_bytes,
            stop,
        }
    }

    /// Has it put no more records on their way.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }
}

struct Feeder {
    splitter: Splitter,
    dress: Dress,
    waits_for_handles: bool,
    producer: Producer,
    hand_on: mpsc::Sender<Run>,
    run: Run,
    read_bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Feeder {
    fn read_all(&mut self, mut reader: impl Read, runtime: &Handle) -> Result<(), FeedError> {
        let mut buffer = vec![0; READ_BYTES];
        let mut records = Vec::new();
        loop {
            let length = match reader.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let read = buffer.get(..length).unwrap_or_default();
            self.read_bytes.fetch_add(length as u64, Ordering::Relaxed);
            let split = if read.is_empty() {
                self.splitter.finish(&mut records)
            } else {
                self.splitter.feed(read, &mut records)
            };
            runtime.block_on(self.send_all(&mut records))?;
            split?;
            if length == 0 {
                return Ok(());
            }
        }
    }

    async fn send_all(&mut self, records: &mut Vec<Input>) -> Result<(), FeedError> {
        for Input { number, mut record } in records.drain(..) {
            if self.stop.load(Ordering::Acquire) {
                return Err(FeedError::Stopped);
            }
            self.dress.put_on(&mut record);
            let bytes = record.value.len() + record.key.as_ref().map_or(0, Bytes::len);
            let at = Instant::now();
            let waits_for_handle = self.waits_for_handles && record.delivery != Delivery::Now;
            let mut enqueue = pin!(self.producer.enqueue(record));
            let pending = match futures::poll!(enqueue.as_mut()) {
                Poll::Ready(pending) => pending,
                Poll::Pending => {
                    // Whoever waits for what is on its way must know of it meanwhile.
                    hand_on(&self.hand_on, &mut self.run).await?;
                    enqueue.await
                }
            };
            let sent = pending.map(|pending| Sent {
                number,
                bytes: bytes as u64,
                at,
                pending: match waits_for_handle {
                    true => Either::Right(pending.durable()),
                    false => Either::Left(pending),
                },
            });
            match sent {
                Ok(sent) => self.run.push(sent),
                Err(error) => {
                    hand_on(&self.hand_on, &mut self.run).await?;
                    let unit = self.splitter.unit();
                    return Err(FeedError::Send {
                        unit,
                        number,
                        error,
                    });
                }
            }
            if self.run.len() >= RUN_RECORDS {
                hand_on(&self.hand_on, &mut self.run).await?;
            }
        }
        hand_on(&self.hand_on, &mut self.run).await
    }
}

async fn hand_on(to: &mpsc::Sender<Run>, run: &mut Run) -> Result<(), FeedError> {
    if run.is_empty() {
        return Ok(());
    }
    let next = Vec::with_capacity(RUN_RECORDS);
    let run = std::mem::replace(run, next);
    to.send(run).await.map_err(|_| FeedError::Stopped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_gets_the_tag_it_lacks_and_the_headers_behind_its_own() {
        let dress = Dress {
            tag: Some("given".into()),
            headers: vec![("b".into(), "2".into())],
            ..Dress::default()
        };
        let mut bare = Record::new("v");
        dress.put_on(&mut bare);
        assert_eq!(bare, Record::new("v").tag("given").header("b", "2"));
        let mut dressed = Record::new("v").tag("own").header("a", "1");
        dress.put_on(&mut dressed);
        let wanted = Record::new("v")
            .tag("own")
            .header("a", "1")
            .header("b", "2");
        assert_eq!(dressed, wanted);
    }
}

//! Records under way, per partition in order: who hears of their acknowledgements as they come.
//!
//! In: records with what resolves to their receipts. Out: the same records with the receipts, as soon
//! as they are known, in order per partition. Only the first of each partition is waited for: a
//! partition's acknowledgements come in order, and a batch's all at once.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};

use crate::client::{Receipt, SendError};

/// What resolves to a record's receipt.
pub(super) trait Acknowledgement:
    Future<Output = Result<Receipt, SendError>> + Unpin
{
}

impl<F: Future<Output = Result<Receipt, SendError>> + Unpin> Acknowledgement for F {}

/// A record on its way.
#[derive(Debug)]
pub(super) struct Sent<F> {
    /// Its number in the input.
    pub(super) number: u64,
    /// Its bytes of key and value.
    pub(super) bytes: u64,
    /// When it was put on its way.
    pub(super) at: Instant,
    /// What becomes of it.
    pub(super) pending: F,
}

/// A record whose outcome is known.
#[derive(Debug)]
pub(super) struct Settled {
    /// Its place among all records, from 0.
    pub(super) index: u64,
    pub(super) number: u64,
    pub(super) bytes: u64,
    pub(super) at: Instant,
    pub(super) outcome: Result<Receipt, SendError>,
}

/// The records under way.
#[derive(Debug)]
pub(super) struct Queues<F> {
    partitions: Vec<Partition<F>>,
    heads: FuturesUnordered<Head<F>>,
    next_index: u64,
    waiting: usize,
}

#[derive(Debug)]
struct Partition<F> {
    behind_head: VecDeque<(u64, Sent<F>)>,
    has_head: bool,
}

/// The first record of a partition.
#[derive(Debug)]
struct Head<F> {
    partition: usize,
    record: Option<(u64, Sent<F>)>,
}

impl<F: Acknowledgement> Future for Head<F> {
    type Output = (usize, Option<Settled>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let partition = self.partition;
        let Some((_, sent)) = &mut self.record else {
            return Poll::Ready((partition, None));
        };
        sent.pending.poll_unpin(context).map(|outcome| {
            let settled = self.record.take().map(|record| settled(record, outcome));
            (partition, settled)
        })
    }
}

fn settled<F>((index, sent): (u64, Sent<F>), outcome: Result<Receipt, SendError>) -> Settled {
    Settled {
        index,
        number: sent.number,
        bytes: sent.bytes,
        at: sent.at,
        outcome,
    }
}

impl<F: Acknowledgement> Queues<F> {
    pub(super) fn new() -> Self {
        Self {
            partitions: Vec::new(),
            heads: FuturesUnordered::new(),
            next_index: 0,
            waiting: 0,
        }
    }

    /// A record was put on its way to a partition.
    pub(super) fn push(&mut self, partition: u32, sent: Sent<F>) {
        let place = usize::try_from(partition).unwrap_or(usize::MAX);
        if place >= self.partitions.len() {
            self.partitions.resize_with(place + 1, || Partition {
                behind_head: VecDeque::new(),
                has_head: false,
            });
        }
        let record = (self.next_index, sent);
        self.next_index += 1;
        self.waiting += 1;
        let Some(queue) = self.partitions.get_mut(place) else {
            return;
        };
        if queue.has_head {
            queue.behind_head.push_back(record);
        } else {
            queue.has_head = true;
            self.heads.push(Head {
                partition: place,
                record: Some(record),
            });
        }
    }

    /// Whether nothing is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Waits until something is settled, and appends it with whatever settled with it. Cancelling
    /// loses nothing. Never ends while nothing is under way.
    pub(super) async fn next(&mut self, out: &mut Vec<Settled>) {
        let Some((partition, first)) = self.heads.next().await else {
            return std::future::pending().await;
        };
        let before = out.len();
        out.extend(first);
        if let Some(queue) = self.partitions.get_mut(partition) {
            while let Some((_, sent)) = queue.behind_head.front_mut() {
                let Some(outcome) = (&mut sent.pending).now_or_never() else {
                    break;
                };
                let record = queue.behind_head.pop_front();
                out.extend(record.map(|record| settled(record, outcome)));
            }
            let record = queue.behind_head.pop_front();
            queue.has_head = record.is_some();
            if record.is_some() {
                self.heads.push(Head { partition, record });
            }
        }
        self.waiting -= out.len() - before;
    }

    /// The numbers of what is still under way.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        let heads = self.heads.iter().filter_map(|head| head.record.as_ref());
        let behind = self.partitions.iter().flat_map(|queue| &queue.behind_head);
        heads.chain(behind).map(|(_, sent)| sent.number)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use futures::channel::oneshot::{Receiver, Sender, channel};

    pub(crate) struct Told(Receiver<Result<Receipt, SendError>>);

    impl Future for Told {
        type Output = Result<Receipt, SendError>;
        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
            self.0.poll_unpin(context).map(Result::unwrap)
        }
    }

    pub(crate) fn receipt(partition: u32, offset: u64) -> Receipt {
        Receipt {
            topic: "t".into(),
            partition,
            offset: Some(offset),
            time_ms: 7,
            status: crate::client::SendStatus::SendOk,
            duplicate: false,
            due_ms: None,
            timer: None,
        }
    }

    fn sent(number: u64) -> (Sender<Result<Receipt, SendError>>, Sent<Told>) {
        let (tell, told) = channel();
        let at = Instant::now();
        (
            tell,
            Sent {
                number,
                bytes: 1,
                at,
                pending: Told(told),
            },
        )
    }

    fn numbers(settled: &[Settled]) -> Vec<u64> {
        settled.iter().map(|settled| settled.number).collect()
    }

    #[tokio::test]
    async fn a_partition_that_is_answered_does_not_wait_for_another() {
        let mut queues = Queues::new();
        let (slow, first) = sent(1);
        let (fast, second) = sent(2);
        queues.push(0, first);
        queues.push(5, second);
        fast.send(Ok(receipt(5, 0))).unwrap();
        let mut out = Vec::new();
        queues.next(&mut out).await;
        assert_eq!(numbers(&out), [2]);
        assert_eq!(out[0].index, 1);
        assert_eq!(queues.numbers().collect::<Vec<_>>(), [1]);
        slow.send(Err(SendError::Closed)).unwrap();
        queues.next(&mut out).await;
        assert!(queues.is_empty());
        assert!(matches!(out[1].outcome, Err(SendError::Closed)));
    }

    #[tokio::test]
    async fn what_settled_together_comes_together_and_in_order() {
        let mut queues = Queues::new();
        let mut tellers = Vec::new();
        for number in 1..=5 {
            let (teller, record) = sent(number);
            queues.push(0, record);
            tellers.push(teller);
        }
        for (offset, teller) in tellers.drain(..3).enumerate() {
            teller.send(Ok(receipt(0, offset as u64))).unwrap();
        }
        let mut out = Vec::new();
        queues.next(&mut out).await;
        assert_eq!(numbers(&out), [1, 2, 3]);
        // A later one cannot overtake the head.
        tellers.pop().unwrap().send(Ok(receipt(0, 4))).unwrap();
        assert!(queues.next(&mut out).now_or_never().is_none());
        tellers.pop().unwrap().send(Ok(receipt(0, 3))).unwrap();
        queues.next(&mut out).await;
        assert_eq!(numbers(&out), [1, 2, 3, 4, 5]);
        assert!(queues.is_empty());
        // Empty again, it takes more.
        let (teller, record) = sent(6);
        queues.push(0, record);
        teller.send(Ok(receipt(0, 5))).unwrap();
        queues.next(&mut out).await;
        assert_eq!(numbers(&out).last(), Some(&6));
    }
}

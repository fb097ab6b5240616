//! What is opened is opened once, and held within the bound.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;

use super::*;
use crate::domain::batch::{BatchBuilder, BatchStamp, Compression};
use crate::domain::body::Body;
use crate::domain::id::MessageId;
use crate::domain::record::{Record, RecordBody};
use crate::domain::time::WallMs;
use crate::log::{Log, LogOptions, RealDisk};

/// A batch of ten records, each so long and of this byte.
fn batch(byte: u8, bytes: usize, compression: Compression) -> Body {
    let mut builder = BatchBuilder::new(1 << 20, compression);
    for _ in 0..10 {
        let record = Record::new(vec![byte; bytes]);
        builder
            .push(&record, MessageId::default(), WallMs(1))
            .unwrap();
    }
    builder.finish(BatchStamp::default()).unwrap().into()
}

fn place(position: u64) -> EntryPlace {
    EntryPlace {
        position: LogPosition(position),
        length: 1,
    }
}

struct Rig {
    batches: OpenedBatches,
    tail: Arc<TailCache>,
    _directory: tempfile::TempDir,
    _log: Log,
}

/// What is opened comes from the tail, where tests put it; the log is empty.
fn rig(bytes_max: usize) -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::open(directory.path()).unwrap());
    let options = LogOptions {
        segment_bytes: 1 << 20,
        flush_bytes_max: 64 << 10,
        disk_free_bytes_min: 0,
        ..LogOptions::default()
    };
    let log = Log::open(disk, options).unwrap().log;
    let pool = Arc::new(ReadPool::start(log.reader(), 1, 0).unwrap());
    let tail = Arc::new(TailCache::new(1 << 20));
    Rig {
        batches: OpenedBatches::new(bytes_max, Arc::clone(&tail), pool),
        tail,
        _directory: directory,
        _log: log,
    }
}

#[tokio::test]
async fn what_several_ask_for_is_one_and_outlives_the_tail() {
    let rig = rig(1 << 20);
    for n in 0..4 {
        rig.tail.insert(
            place(n * 1000),
            batch(u8::try_from(n).unwrap(), 100, Compression::None),
        );
    }
    let places: Vec<EntryPlace> = (0..4).map(|n| place(n * 1000)).collect();
    let first = rig.batches.open(&places).await;
    // A tail without the batches: only what is kept can answer.
    let pool = Arc::clone(&rig.batches.pool);
    let batches = OpenedBatches {
        tail: Arc::new(TailCache::new(1 << 20)),
        pool,
        bytes_max: 1 << 20,
        state: rig.batches.state,
    };
    let again = batches.open(&places).await;
    for (n, (a, b)) in (0u8..).zip(first.iter().zip(&again)) {
        let (a, b) = (a.as_ref().unwrap(), b.as_ref().unwrap());
        assert!(Arc::ptr_eq(a, b));
        let record = RecordBody::decode(&a.body(3).unwrap()).unwrap();
        assert_eq!(record.value, vec![n; 100]);
    }
}

#[tokio::test]
async fn o2_o3_who_comes_meanwhile_waits_and_takes_over_from_who_is_dropped() {
    let rig = rig(1 << 20);
    let asked = [place(0)];
    let mut none = [None];
    let (first, _) = rig.batches.claim(&asked, &mut none);
    assert_eq!(first.places, asked);
    let mut second = Box::pin(rig.batches.open(&asked));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(
        second.as_mut().poll(&mut cx).is_pending(),
        "it is being opened"
    );
    // Something else is nobody's business.
    rig.tail
        .insert(place(5000), batch(5, 10, Compression::None));
    let other = pin!(rig.batches.open(&[place(5000)]))
        .as_mut()
        .poll(&mut cx);
    assert!(matches!(other, Poll::Ready(answers) if answers[0].is_ok()));
    rig.tail.insert(place(0), batch(1, 10, Compression::None));
    drop(first);
    let answers = second.await;
    assert!(answers[0].is_ok());
    assert!(rig.batches.state().opening.is_empty());
}

#[tokio::test]
async fn what_cannot_be_had_is_said_each_time_and_harms_nothing_beside_it() {
    let rig = rig(1 << 20);
    rig.tail.insert(place(0), batch(1, 10, Compression::None));
    rig.tail.insert(place(1000), Body::from(vec![7u8; 400]));
    for _ in 0..2 {
        let asked = [place(2000), place(0), place(1000), place(0)];
        let answers = rig.batches.open(&asked).await;
        assert!(matches!(
            answers[0],
            Err(NotOpened::Unread(ReadError::Gone { .. }))
        ));
        assert!(answers[1].is_ok() && answers[3].is_ok());
        assert!(matches!(answers[2], Err(NotOpened::Unsound(_))));
    }
}

#[tokio::test]
async fn a_batch_beyond_the_bound_is_given_and_not_kept() {
    let rig = rig(1000);
    rig.tail.insert(place(0), batch(1, 200, Compression::None));
    assert!(rig.batches.open(&[place(0)]).await[0].is_ok());
    assert_eq!(rig.batches.bytes(), 0);
    assert!(!rig.batches.has(LogPosition(0)));
}

#[test]
fn what_is_detached_is_the_same_batch() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        for bytes in [3, 5000] {
            let body = batch(9, bytes, compression);
            let opened = Opened::open(&body).unwrap();
            let own = opened.clone().detached();
            for index in 0..11 {
                assert_eq!(opened.slot(index), own.slot(index));
                assert_eq!(opened.take(index).ok(), own.take(index).ok());
            }
        }
    }
}

proptest! {
    /// Against a list that is looked through from end to end, the one asked for last at its end.
    #[test]
    fn o1_it_holds_what_was_asked_for_last_within_its_bound(
        asked in prop::collection::vec((0u64..12, 1usize..60, any::<bool>()), 1..120),
    ) {
        const MAX: usize = 4_000;
        let mut state = State::default();
        let mut naive: Vec<(u64, usize)> = Vec::new();
        for (position, bytes, only_asks) in asked {
            let found = state.find(LogPosition(position)).is_some();
            let held = naive.iter().position(|(at, _)| *at == position);
            prop_assert_eq!(found, held.is_some());
            if let Some(held) = held {
                let held = naive.remove(held);
                naive.push(held);
            } else if !only_asks {
                let opened = Opened::open(&batch(1, bytes, Compression::None)).unwrap();
                let cost = opened.bytes() + OVERHEAD_BYTES;
                state.keep(LogPosition(position), Arc::new(opened), MAX);
                if cost <= MAX {
                    while naive.iter().map(|(_, cost)| cost).sum::<usize>() + cost > MAX {
                        naive.remove(0);
                    }
                    naive.push((position, cost));
                }
            }
            prop_assert_eq!(state.bytes, naive.iter().map(|(_, cost)| cost).sum::<usize>());
            prop_assert!(state.bytes <= MAX, "O1");
            prop_assert_eq!(state.by_age.len(), state.batches.len());
        }
    }

    /// Against the batches as they were, and a list of what was given out of each since it came.
    #[test]
    fn o1_o4_the_rest_of_a_batch_is_what_was_not_given_each_once(
        steps in prop::collection::vec(
            (0u64..6, 1usize..120, prop::collection::vec(0usize..10, 0..8), 0u8..4),
            1..150,
        ),
    ) {
        const MAX: usize = 6_000;
        let mut state = State::default();
        let mut given: HashMap<u64, (Arc<Opened>, std::collections::BTreeSet<usize>)> = HashMap::new();
        for (position, bytes, mut indexes, what) in steps {
            indexes.sort_unstable();
            indexes.dedup();
            let at = LogPosition(position);
            let whole = state.batches.get(&at).and_then(|kept| kept.opened().cloned());
            match what {
                0 | 1 => {
                    let byte = u8::try_from(position).unwrap();
                    let opened = Arc::new(Opened::open(&batch(byte, bytes, Compression::None)).unwrap());
                    state.keep(at, Arc::clone(&opened), MAX);
                    given.insert(position, (opened, std::collections::BTreeSet::new()));
                }
                2 => {
                    if let Some(kept) = state.batches.get_mut(&at) {
                        indexes.iter().for_each(|index| kept.give(*index));
                        given.get_mut(&position).unwrap().1.extend(&indexes);
                    }
                }
                _ => {
                    let Some(kept) = state.batches.get_mut(&at) else { continue };
                    let Some(taken) = kept.take_rest(indexes.iter().copied()) else { continue };
                    prop_assert!(whole.is_none());
                    let (opened, before) = given.get_mut(&position).unwrap();
                    for (index, record) in indexes.iter().zip(taken) {
                        prop_assert!(before.insert(*index), "O4");
                        prop_assert_eq!(Ok(record), opened.take(*index));
                    }
                }
            }
            // Whatever is a rest has all that was not given.
            for (position, kept) in &state.batches {
                if let (Some(rest), Some((_, given))) = (kept.rest(), given.get(&position.0)) {
                    let expected: Vec<usize> = (0..10).filter(|index| !given.contains(index)).collect();
                    prop_assert_eq!(rest, expected);
                }
            }
            let sum: usize = state.batches.values().map(|kept| kept.bytes).sum();
            prop_assert_eq!(state.bytes, sum);
            prop_assert!(state.bytes <= MAX, "O1");
            prop_assert_eq!(state.by_age.len(), state.batches.len());
        }
    }
}

#[tokio::test]
async fn what_was_not_given_of_a_batch_stays_when_room_is_needed() {
    let own = Opened::open(&batch(0, 1000, Compression::None)).unwrap();
    let rig = rig(2 * own.detached().bytes() + 5000);
    let places: Vec<EntryPlace> = (0..3).map(|n| place(n * 1000)).collect();
    for (n, place) in (0u8..).zip(&places) {
        rig.tail.insert(*place, batch(n, 1000, Compression::None));
    }
    assert!(rig.batches.open(&places[..2]).await[0].is_ok());
    let first = places[0].position;
    rig.batches.given(first, 0..8);
    assert!(rig.batches.open(&places[2..]).await[0].is_ok());
    assert!(!rig.batches.has(first), "it is a rest");
    assert!(rig.batches.has(places[1].position));
    assert!(
        rig.batches.take_rest(first, 7..9).is_none(),
        "one was given"
    );
    let taken = rig.batches.take_rest(first, 8..9).unwrap();
    let whole = Opened::open(&batch(0, 1000, Compression::None)).unwrap();
    assert_eq!(taken[0], whole.take(8).unwrap());
    assert!(rig.batches.take_rest(first, 8..9).is_none(), "O4");
    assert!(rig.batches.take_rest(first, 9..10).is_some());
    assert!(rig.batches.bytes() <= rig.batches.bytes_max, "O1");
    // Whoever needs all of it opens it anew.
    assert!(rig.batches.open(&places[..1]).await[0].is_ok());
    assert!(rig.batches.has(first));
}

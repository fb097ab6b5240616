//! Reading ahead against real segments.

use std::sync::atomic::AtomicI64;
use std::sync::mpsc;
use std::time::Instant;

use super::super::disk::RealDisk;
use super::super::frame::tests::frame;
use super::super::options::LogOptions;
use super::super::writer::{Log, Room};
use super::*;
use crate::domain::batch::{BatchBuilder, BatchStamp, Compression, Opened};
use crate::domain::entry::{NewEntry, PayloadFacts};
use crate::domain::id::MessageId;
use crate::domain::record::Record;
use crate::domain::time::WallMs;

/// A log of payloads, and what was put into each.
struct Rig {
    directory: tempfile::TempDir,
    log: Log,
    cache: Arc<TailCache>,
    now: Arc<AtomicI64>,
    payloads: Vec<(EntryPlace, bytes::Bytes)>,
}

const RECORDS: u32 = 100;

impl Rig {
    fn new(payloads: u8, value_bytes: usize, compression: Compression) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let disk = Arc::new(RealDisk::open(directory.path()).unwrap());
        let options = LogOptions {
            segment_bytes: 4 << 20,
            flush_bytes_max: 1 << 20,
            disk_free_bytes_min: 0,
            ..LogOptions::default()
        };
        let mut log = Log::open(disk, options).unwrap().log;
        let mut header = frame().header;
        header.tied_to_next = false;
        let payloads = (0..payloads)
            .map(|payload| {
                let mut builder = BatchBuilder::new(1 << 20, compression);
                for record in 0..RECORDS {
                    let mut value = vec![payload; value_bytes];
                    value[0] = u8::try_from(record).unwrap();
                    let due = crate::domain::batch::Delivery::At(WallMs(9_000));
                    builder
                        .push_with(&Record::new(value), MessageId::default(), WallMs(1), 0, due)
                        .unwrap();
                }
                let batch = builder.finish(BatchStamp::default()).unwrap();
                let entry = NewEntry {
                    header,
                    body: batch.clone().into(),
                    facts: PayloadFacts::default(),
                };
                (log.append(&[entry], Room::Normal).unwrap()[0], batch)
            })
            .collect();
        Self {
            directory,
            log,
            cache: Arc::new(TailCache::new(1 << 20)),
            now: Arc::default(),
            payloads,
        }
    }

    fn ahead(&self, bytes_max: u64) -> ReadAhead {
        let now = Arc::clone(&self.now);
        let cache = Arc::clone(&self.cache);
        let now_ms = move || now.load(Ordering::SeqCst);
        ReadAhead::start(self.log.reader(), cache, bytes_max, 2, now_ms).unwrap()
    }

    fn piece(&self, payload: usize, index: u32) -> Piece {
        Piece {
            place: self.payloads[payload].0,
            index,
            of: RECORDS,
        }
    }

    /// Whether it is the very record, whatever its delivery says.
    fn assert_is(&self, taken: Taken, payload: usize, index: u32) {
        let mut cut = crate::domain::batch::Cut::new(1 << 20);
        assert!(cut.push_taken(taken));
        let batch = cut.finish().unwrap();
        let body = Opened::open(&batch).unwrap().body(0).unwrap();
        let whole = Opened::open(&self.payloads[payload].1.clone().into()).unwrap();
        assert_eq!(body, whole.body(usize::try_from(index).unwrap()).unwrap());
    }
}

fn until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < end, "it never came");
        std::thread::yield_now();
    }
}

fn fetch(ahead: &ReadAhead, pieces: Vec<Piece>, bytes_max: u64) -> Vec<Fetched> {
    let (sender, fetched) = mpsc::channel();
    ahead.fetch(
        pieces,
        bytes_max,
        Box::new(move |fetched| sender.send(fetched).unwrap()),
    );
    fetched.recv().unwrap()
}

#[test]
fn what_is_wished_for_is_here_when_it_is_due_and_costs_about_a_read_each() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let rig = Rig::new(20, 2_000, compression);
        let _reader = rig.cache.attend();
        let ahead = rig.ahead(64 << 20);
        let before = ahead.reads_issued();
        // Each payload's records are far from each other, in place and in time.
        let wishes: Vec<Wish> = (0..5 * 20u32)
            .map(|at| Wish {
                piece: rig.piece(usize::try_from(at % 20).unwrap(), at / 20 * 19 + 3),
                due_ms: 1_000 + i64::from(at / 20) * 700,
            })
            .collect();
        ahead.wish(&wishes);
        for wish in &wishes {
            let (at, index) = (wish.piece.place.position, wish.piece.index);
            let mut found = None;
            until(|| {
                found = ahead.lookup(at, index, 1);
                found.is_some()
            });
            let payload = rig
                .payloads
                .iter()
                .position(|(place, _)| place.position == at);
            rig.assert_is(found.unwrap().remove(0), payload.unwrap(), index);
        }
        let reads = ahead.reads_issued() - before;
        assert!(reads <= 130, "{reads} reads for 100 records");
        assert_eq!(ahead.counts().hits, 100);
        assert_eq!(ahead.counts().misses, 0);
    }
}

#[test]
fn nothing_is_read_ahead_while_nobody_reads_and_nothing_that_is_long_past() {
    let rig = Rig::new(2, 2_000, Compression::None);
    let ahead = rig.ahead(64 << 20);
    let wish = |index, due_ms| Wish {
        piece: rig.piece(0, index),
        due_ms,
    };
    ahead.wish(&[wish(1, 1_000)]);
    let _reader = rig.cache.attend();
    rig.now.store(60_000, Ordering::SeqCst);
    // The first came while nobody read, the second is stale; the third is read.
    ahead.wish(&[wish(2, 1_000), wish(3, 60_100)]);
    let position = rig.payloads[0].0.position;
    until(|| ahead.lookup(position, 3, 1).is_some());
    assert!(ahead.lookup(position, 1, 1).is_none());
    assert!(ahead.lookup(position, 2, 1).is_none());
    assert!(
        ahead.lookup(position, 3, 2).is_none(),
        "all of them, or none"
    );
}

#[test]
fn a1_the_bound_holds_and_what_is_due_first_is_read_first() {
    let rig = Rig::new(10, 4_000, Compression::None);
    let _reader = rig.cache.attend();
    let bytes_max = 1 << 20;
    let ahead = rig.ahead(bytes_max);
    let mut wishes = Vec::new();
    for payload in 0..10 {
        for index in 0..RECORDS {
            wishes.push(Wish {
                piece: rig.piece(payload, index),
                // The last of the log first.
                due_ms: 1_000 + i64::from(RECORDS - index) * 300,
            });
        }
    }
    ahead.wish(&wishes);
    let first = rig.payloads[3].0.position;
    until(|| ahead.lookup(first, RECORDS - 1, 1).is_some());
    // 4 MB were wished for; a quarter of the bound is for records.
    for _ in 0..1_000 {
        assert!(ahead.counts().bytes <= bytes_max);
    }
    assert!(
        ahead.lookup(first, 0, 1).is_none(),
        "there was no room for it"
    );
    // As time passes the rest comes.
    for index in (0..RECORDS).rev() {
        let due_ms = 1_000 + i64::from(RECORDS - index) * 300;
        rig.now.store(due_ms - 100, Ordering::SeqCst);
        for (place, _) in &rig.payloads {
            until(|| ahead.lookup(place.position, index, 1).is_some());
        }
        assert!(ahead.counts().bytes <= bytes_max);
    }
}

#[test]
fn what_is_fetched_comes_at_once_within_its_bound_and_damage_is_told() {
    let rig = Rig::new(3, 2_000, Compression::None);
    let ahead = rig.ahead(64 << 20);
    let pieces = vec![rig.piece(2, 99), rig.piece(0, 50), rig.piece(0, 0)];
    let fetched = fetch(&ahead, pieces.clone(), 1 << 20);
    for (piece, fetched) in pieces.iter().zip(fetched) {
        let Fetched::Taken(taken) = fetched else {
            panic!("{fetched:?}")
        };
        let payload = usize::from(piece.place == rig.payloads[2].0) * 2;
        rig.assert_is(taken, payload, piece.index);
    }
    let some = fetch(&ahead, pieces, 5_000);
    assert!(matches!(
        some.as_slice(),
        [Fetched::Taken(_), Fetched::Taken(_), Fetched::Beyond]
    ));
    let one = fetch(&ahead, vec![rig.piece(1, 7), rig.piece(1, 8)], 0);
    assert!(matches!(
        one.as_slice(),
        [Fetched::Taken(_), Fetched::Beyond]
    ));
    // No such record; no such payload.
    let mut elsewhere = rig.piece(1, 7);
    elsewhere.place.position.0 += 64;
    let none = fetch(&ahead, vec![rig.piece(0, RECORDS), elsewhere], 1 << 20);
    assert_eq!(none, [Fetched::Unreadable, Fetched::Unreadable]);
}

#[test]
fn rotten_bytes_are_never_given_out() {
    let rig = Rig::new(1, 2_000, Compression::None);
    let (place, _) = rig.payloads[0];
    let segment = rig.log.reader().segments().remove(0);
    let path = rig.directory.path().join(&segment.file);
    let mut bytes = std::fs::read(&path).unwrap();
    // The middle of the payload: record 50 or so.
    let at = usize::try_from(place.position.0 - segment.base.0).unwrap() + 100_000;
    bytes[at] ^= 0x40;
    std::fs::write(&path, bytes).unwrap();
    let ahead = rig.ahead(64 << 20);
    let wrong = (0..RECORDS)
        .filter(|index| fetch(&ahead, vec![rig.piece(0, *index)], 1 << 20) == [Fetched::Unreadable])
        .count();
    assert_eq!(wrong, 1, "the one that is rotten, and no other");
}

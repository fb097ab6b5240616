use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::*;
use crate::domain::entry::{EntryHeader, EntryKind, PayloadFacts};
use crate::domain::id::{LogIndex, Offset, OwnerId, OwnerSequence, RecordNumber, Term};
use crate::domain::time::WallMs;
use crate::log::disk::{Disk, DiskFile, RealDisk};
use crate::log::options::LogOptions;
use crate::log::scan::Scanned;

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 256 << 10,
        flush_bytes_max: 32 << 10,
        disk_free_bytes_min: 0,
        facts_of: |body| {
            Some(PayloadFacts {
                tags: body.len() as u64,
                ..PayloadFacts::default()
            })
        },
        ..LogOptions::default()
    }
}

fn entry(index: u64, kind: EntryKind, bytes: u64) -> NewEntry {
    let body: Vec<u8> = (0..bytes).map(|n| (n + index).to_le_bytes()[0]).collect();
    NewEntry {
        header: EntryHeader {
            kind,
            tied_to_next: false,
            moved: false,
            index: LogIndex(index),
            term: Term(1),
            owner: OwnerId(7),
            sequence: OwnerSequence(index),
            first_number: RecordNumber(index),
            first_offset: Offset(index),
            numbers: 1,
            offsets: 1,
            appended: WallMs(1000 + index as i64),
            wall: WallMs(1000),
        },
        facts: if kind == EntryKind::Payload {
            PayloadFacts {
                tags: body.len() as u64,
                ..PayloadFacts::default()
            }
        } else {
            PayloadFacts::default()
        },
        // Every other one comes with its checksum known.
        body: {
            let crc = index
                .is_multiple_of(2)
                .then(|| crate::domain::checksum::crc32c(&body));
            crate::domain::body::Body::from(body).with_crc(crc)
        },
    }
}

fn check_scan(reader: &LogReader, written: &[(NewEntry, EntryPlace)]) {
    let found: Vec<Scanned> = reader.scan(LogPosition(0), None).collect();
    assert_eq!(found.len(), written.len());
    for (found, (entry, at)) in found.into_iter().zip(written) {
        let is_payload = entry.header.kind == EntryKind::Payload;
        let expected = Scanned::Entry {
            header: entry.header,
            place: *at,
            facts: entry.facts.clone(),
            body: (!is_payload).then(|| entry.body.to_bytes()),
        };
        assert_eq!(found, expected);
    }
}

#[test]
fn what_is_appended_is_read_and_scanned_again_over_segments_and_openings() {
    let directory = tempfile::tempdir().unwrap();
    let disk = || Arc::new(RealDisk::open(directory.path()).unwrap());
    let mut written: Vec<(NewEntry, EntryPlace)> = Vec::new();
    for opening in 1..=4 {
        let opened = Log::open(disk(), options()).unwrap();
        assert_eq!(opened.incarnation, opening);
        assert_eq!(opened.fresh, opening == 1);
        assert_eq!(opened.unclean, opening == 4);
        assert_eq!(opened.next_index, written.len() as u64 + 1);
        assert!(opened.damage.is_empty());
        let mut log = opened.log;
        check_scan(&log.reader(), &written);
        for _ in 0..60 {
            let index = log.next_index();
            let run = [
                entry(index, EntryKind::Payload, 5000 + index),
                entry(index + 1, EntryKind::State, index),
            ];
            let places = log.append(&run, Room::Normal).unwrap();
            written.extend(run.into_iter().zip(places));
        }
        check_scan(&log.reader(), &written);
        let places: Vec<EntryPlace> = written.iter().rev().map(|(_, at)| *at).collect();
        let read = log.reader().read(&places);
        for (read, (entry, _)) in read.into_iter().zip(written.iter().rev()) {
            let read = read.unwrap();
            assert_eq!(
                (read.header, read.body),
                (entry.header, entry.body.to_bytes())
            );
        }
        assert!(log.segments().len() > opening as usize);
        if opening < 3 {
            log.stop().unwrap();
        }
    }
    let looked_at = Arc::new(RealDisk::read_only(directory.path()));
    let inspected = Log::inspect(looked_at, options()).unwrap();
    assert!(inspected.unclean && inspected.damage.is_empty());
    let findings: Vec<_> = inspected.reader.verify().collect();
    let entries: u64 = findings
        .iter()
        .map(|finding| match finding {
            crate::log::Verified::Segment(report) => report.entries,
            crate::log::Verified::Damaged(damage) => panic!("{damage}"),
        })
        .sum();
    assert_eq!(entries, written.len() as u64);
}

#[test]
fn a_fresh_log_takes_one_segment_and_its_reserve() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::open(directory.path()).unwrap());
    let options = LogOptions {
        prepare_inline: true,
        ..options()
    };
    drop(Log::open(disk, options).unwrap());
    let files = std::fs::read_dir(directory.path()).unwrap();
    let sizes: Vec<u64> = files
        .map(|f| f.unwrap().metadata().unwrap().len())
        .collect();
    assert_eq!(sizes, [256 << 10; 3]);
}

#[test]
fn a_segment_is_busy_while_a_scan_holds_it_and_gone_for_reads_afterwards() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::open(directory.path()).unwrap());
    let mut log = Log::open(disk, options()).unwrap().log;
    let first = log.append(&[entry(1, EntryKind::State, 10)], Room::Normal);
    let first = first.unwrap();
    while log.segments().len() < 2 {
        let next = entry(log.next_index(), EntryKind::Payload, 20_000);
        log.append(&[next], Room::Normal).unwrap();
    }
    let number = log.segments()[0].number;
    let mut scan = log.reader().scan(LogPosition(0), None);
    assert_eq!(log.recycle(number).unwrap(), Recycled::Busy);
    assert!(scan.next().is_some());
    assert_eq!(log.recycle(number).unwrap(), Recycled::Busy);
    drop(scan);
    assert_eq!(log.recycle(number).unwrap(), Recycled::Kept);
    let position = first[0].position;
    let read = log.reader().read(&first);
    assert_eq!(read, [Err(crate::log::ReadError::Gone { position })]);
    let active = log.segments()[0].number;
    for refused in [number, active] {
        let refused = log.recycle(refused);
        assert!(matches!(refused, Err(LogError::NotRecyclable { .. })));
    }
}

/// A directory that may refuse to let files go, or be made something else of.
struct Clinging(RealDisk, AtomicBool);

impl Clinging {
    fn refuse(&self) -> io::Result<()> {
        match self.1.load(Ordering::Relaxed) {
            true => Err(io::Error::other("not now")),
            false => Ok(()),
        }
    }
}

impl Disk for Clinging {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.0.create(name, bytes)
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.refuse().and_then(|()| self.0.open(name))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.refuse().and_then(|()| self.0.remove(name))
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.0.sync_dir()
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.0.free_bytes()
    }
    fn write_unit(&self) -> u32 {
        self.0.write_unit()
    }
    fn fallback(&self) -> Option<String> {
        self.0.fallback()
    }
}

/// Forty segments pass through a log of four: what leaves is what the next ones are made of.
#[test]
fn segments_that_leave_are_used_again_and_go_once_they_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let names = || -> std::collections::BTreeSet<_> {
        let files = std::fs::read_dir(directory.path()).unwrap();
        files.map(|file| file.unwrap().file_name()).collect()
    };
    let disk = || Arc::new(RealDisk::open(directory.path()).unwrap());
    let mut log = Log::open(disk(), options()).unwrap().log;
    let (tell, heard) = std::sync::mpsc::channel();
    let mut seen = names();
    let mut leaving = 0;
    let mut number = SegmentNumber(0);
    while number.0 < 40 {
        let next = entry(log.next_index(), EntryKind::Payload, 20_000);
        log.append(&[next], Room::Normal).unwrap();
        let segments = log.segments();
        number = segments.last().unwrap().number;
        if segments.len() > 4 {
            let tell = tell.clone();
            let retired = move || tell.send(()).unwrap();
            assert!(log.retire(segments[0].number, retired).unwrap());
            heard.recv_timeout(Duration::from_secs(20)).unwrap();
            leaving += 1;
        }
        seen.extend(names());
    }
    assert_eq!(leaving, 36);
    // Four, the one that is written to, the reserve, and what was made while the first were on their way.
    assert!(seen.len() <= 12, "{seen:?}");
    let kept = log.segments().len();
    while log.segments().len() > 1 {
        let oldest = log.segments()[0].number;
        let tell = tell.clone();
        log.retire(oldest, move || tell.send(()).unwrap()).unwrap();
        heard.recv_timeout(Duration::from_secs(20)).unwrap();
    }
    assert!(names().len() >= kept, "they were in use a moment ago");
    drop(log);
    let log = Log::open(disk(), options()).unwrap().log;
    let began = std::time::Instant::now();
    let reserve = options().spare_segments as usize + 1;
    while names().len() > log.segments().len() + reserve {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", names());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_leaves_the_log_is_put_away_in_turn_and_seals_it_where_that_fails() {
    let directory = tempfile::tempdir().unwrap();
    let real = RealDisk::open(directory.path()).unwrap();
    let disk = Arc::new(Clinging(real, AtomicBool::new(false)));
    let mut log = Log::open(Arc::clone(&disk) as _, options()).unwrap().log;
    let (tell, heard) = std::sync::mpsc::channel();
    let retire = |log: &mut Log, number| {
        let tell = tell.clone();
        log.retire(number, move || tell.send(number).unwrap())
    };
    let oldest = |log: &mut Log| -> Vec<SegmentNumber> {
        while log.segments().len() < 8 {
            let next = entry(log.next_index(), EntryKind::Payload, 20_000);
            log.append(&[next], Room::Normal).unwrap();
        }
        log.segments().iter().take(6).map(|s| s.number).collect()
    };
    let leaving = oldest(&mut log);
    for number in leaving.iter().copied() {
        assert!(retire(&mut log, number).unwrap());
        assert!(log.segments().iter().all(|there| there.number != number));
        let again = log.retire(number, || panic!("it is out already"));
        assert!(matches!(again, Err(LogError::NotRecyclable { .. })));
    }
    for number in leaving {
        let put_away = heard.recv_timeout(Duration::from_secs(20));
        assert_eq!(put_away, Ok(number));
    }
    disk.1.store(true, Ordering::Relaxed);
    let mut more = oldest(&mut log).into_iter();
    let mut leaving = 0;
    // Used on, it seals as soon as the thread has met the refusal.
    let sealed = loop {
        let used = match more.next() {
            Some(number) => retire(&mut log, number).map(|out| leaving += usize::from(out)),
            None => {
                let next = entry(log.next_index(), EntryKind::Payload, 100);
                log.append(&[next], Room::Normal).map(drop)
            }
        };
        if let Err(error) = used {
            break error;
        }
    };
    assert!(matches!(sealed, LogError::Io { .. }), "{sealed}");
    assert!(log.sealed().is_some_and(|why| why.contains("recycling")));
    let there = log.segments().len();
    drop(log);
    // What was not put away is part of the log again, and the rest is there.
    let put_away = heard.try_iter().count();
    assert!(put_away < leaving, "it refused nothing");
    let disk = Arc::new(RealDisk::open(directory.path()).unwrap());
    let again = Log::open(disk, options()).unwrap();
    assert_eq!(again.damage, []);
    assert_eq!(again.log.segments().len(), there + leaving - put_away);
}

#[test]
fn places_that_lie_or_never_were_are_answered_and_read_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::open(directory.path()).unwrap());
    let mut log = Log::open(disk, options()).unwrap().log;
    let whole = entry(1, EntryKind::Payload, 3000);
    let place = log
        .append(std::slice::from_ref(&whole), Room::Normal)
        .unwrap()[0];
    let mut places = vec![place];
    for (position, length) in [(0, 96), (u64::MAX, u32::MAX), (place.position.0 + 8, 100)] {
        places.push(EntryPlace {
            position: LogPosition(position),
            length,
        });
    }
    for length in [0, 1, 95, 96, place.length - 1, place.length + 1, u32::MAX] {
        places.push(EntryPlace { length, ..place });
    }
    places.push(place);
    let read = log.reader().read(&places);
    let (last, lies) = read.split_last().unwrap();
    assert_eq!(last.as_ref().unwrap().body, whole.body.to_bytes());
    assert_eq!(lies[0].as_ref().unwrap().body, whole.body.to_bytes());
    assert!(lies[1..].iter().all(Result::is_err));
}

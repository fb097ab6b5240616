//! The real log over the simulated disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use waterwheel::domain::entry::{EntryHeader, EntryKind, EntryPlace, NewEntry, PayloadFacts};
use waterwheel::domain::id::{
    ClusterId, LogIndex, LogPosition, Offset, OwnerId, OwnerSequence, ProducerId, RecordNumber,
    Term,
};
use waterwheel::domain::time::WallMs;
use waterwheel::log::{
    Damage, Log, LogError, LogOptions, Opened, Recycled, Room, Scanned, SegmentNumber,
};

use super::disk::{Rng, SimDisk};

pub(crate) fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 128 << 10,
        flush_bytes_max: 8 << 10,
        disk_free_bytes_min: 0,
        cluster: Some(ClusterId(*b"simulated log 01")),
        seed: Some(0x5EED),
        prepare_inline: true,
        facts_of: |body| Some(facts_of(body)),
        ..LogOptions::default()
    }
}

/// Facts that depend on the body, so that the two ways to them (given, derived) must agree.
fn facts_of(body: &[u8]) -> PayloadFacts {
    PayloadFacts {
        producer: ProducerId(body.len() as u64),
        tags: body.first().copied().unwrap_or(0).into(),
        deliveries: Bytes::copy_from_slice(&body[..body.len().min(27)]),
        ..PayloadFacts::default()
    }
}

pub(crate) fn open(disk: &SimDisk) -> Result<Opened, LogError> {
    Log::open(Arc::new(disk.clone()), options())
}

pub(crate) fn entry(index: u64, kind: EntryKind, tied: bool, body: Vec<u8>) -> NewEntry {
    NewEntry {
        header: EntryHeader {
            kind,
            tied_to_next: tied,
            moved: false,
            index: LogIndex(index),
            term: Term(1),
            owner: OwnerId(1024 + index % 3),
            sequence: OwnerSequence(index),
            first_number: RecordNumber(index * 10),
            first_offset: Offset(index * 10),
            numbers: 10,
            offsets: 10,
            appended: WallMs(index as i64),
            wall: WallMs(index as i64),
        },
        facts: if kind == EntryKind::Payload {
            facts_of(&body)
        } else {
            PayloadFacts::default()
        },
        body: body.into(),
    }
}

/// A random run that fits a flush, tied at random.
fn random_run(rng: &mut Rng, next_index: u64) -> Vec<NewEntry> {
    let count = 1 + rng.below(4);
    let is_tied = rng.chance(50);
    let last = count - 1;
    (0..count)
        .map(|n| {
            let bytes_max = if rng.chance(30) { 1900 } else { 90 };
            let bytes = rng.below(bytes_max);
            let fill = rng.next() as u8;
            let kind = if rng.chance(50) {
                EntryKind::Payload
            } else {
                EntryKind::State
            };
            let body = (0..bytes).map(|at| fill.wrapping_add(at as u8)).collect();
            entry(next_index + n, kind, is_tied && n < last, body)
        })
        .collect()
}

pub(crate) type Entries = Vec<(EntryPlace, NewEntry)>;

/// Everything a scan finds, payload bodies read by place as well.
pub(crate) fn contents(log: &Log) -> (Entries, Vec<Damage>) {
    let reader = log.reader();
    let (mut entries, mut damages) = (Vec::new(), Vec::new());
    for scanned in reader.scan(LogPosition(0), None) {
        match scanned {
            Scanned::Damaged(damage) => damages.push(damage),
            Scanned::Entry {
                header,
                place,
                facts,
                body,
            } => {
                let read = reader.read(&[place]).pop().unwrap();
                match read {
                    Ok(read) => {
                        assert_eq!(read.header, header);
                        assert_eq!(body.as_ref().unwrap_or(&read.body), &read.body);
                        let body = read.body;
                        entries.push((
                            place,
                            NewEntry {
                                header,
                                body: body.into(),
                                facts,
                            },
                        ));
                    }
                    Err(error) => panic!("scanned but not readable: {error}"),
                }
            }
        }
    }
    (entries, damages)
}

/// A log under random work, with what must be in it.
struct Run {
    rng: Rng,
    disk: SimDisk,
    opened: Option<Log>,
    /// Acknowledged, by segment: what a recycled one held is gone with it.
    acked: BTreeMap<u64, Entries>,
    /// The run whose outcome is not known.
    in_flight: Vec<NewEntry>,
    /// The segment whose recycling has an outcome that is not known.
    recycling: Option<SegmentNumber>,
    incarnation: u32,
    crashes: u32,
    crash_in_opening_percent: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        Self {
            rng: Rng(seed),
            disk: SimDisk::new(seed ^ 0xD15C),
            opened: None,
            acked: BTreeMap::new(),
            in_flight: Vec::new(),
            recycling: None,
            incarnation: 0,
            crashes: 0,
            crash_in_opening_percent: 30,
        }
    }

    fn note(&mut self, log: &Log, places: Vec<EntryPlace>, run: Vec<NewEntry>) {
        for (place, entry) in places.into_iter().zip(run) {
            let segment = log.identity().segment_of(place.position).0;
            self.acked.entry(segment).or_default().push((place, entry));
        }
    }

    /// Opens, however often the power goes meanwhile, and compares.
    fn recover(&mut self) {
        let opened = loop {
            if self.rng.chance(self.crash_in_opening_percent) {
                self.disk.cut_power_in(1 + self.rng.below(60));
            }
            match open(&self.disk) {
                Ok(opened) => break opened,
                Err(error) => assert!(self.disk.is_off(), "{error}"),
            }
            self.crash();
        };
        assert_eq!(opened.damage, []);
        assert!(opened.incarnation > self.incarnation);
        self.incarnation = opened.incarnation;
        let log = opened.log;
        // The power may have gone while a spare was made, which fails no opening.
        if self.disk.is_off() {
            self.crash();
            return self.recover();
        }
        self.disk.keep_power();
        self.compare(&log);
        self.opened = Some(log);
    }

    fn compare(&mut self, log: &Log) {
        let (found, damages) = contents(log);
        assert_eq!(damages, []);
        let mut by_segment: BTreeMap<u64, Entries> = BTreeMap::new();
        for (place, entry) in found {
            let segment = log.identity().segment_of(place.position).0;
            by_segment.entry(segment).or_default().push((place, entry));
        }
        if let Some(number) = self.recycling.take()
            && !by_segment.contains_key(&number.0)
        {
            self.acked.remove(&number.0);
        }
        // What was in flight is there as a whole, behind everything else, or not at all.
        let in_flight = std::mem::take(&mut self.in_flight);
        let last = by_segment.iter().next_back().map(|(number, _)| *number);
        if let (Some(last), false) = (last, in_flight.is_empty()) {
            let acked = self.acked.get(&last).map_or(0, Vec::len);
            let extra = by_segment[&last].get(acked..).unwrap_or_default().to_vec();
            if !extra.is_empty() {
                let extra_entries: Vec<&NewEntry> = extra.iter().map(|(_, entry)| entry).collect();
                assert_eq!(extra_entries, in_flight.iter().collect::<Vec<_>>());
                self.acked.entry(last).or_default().extend(extra);
            }
        }
        assert!(by_segment == self.acked, "recovered is not what was acked");
        let newest = self.acked.values().flatten().map(|(_, e)| e.header.index.0);
        assert!(log.next_index() > newest.max().unwrap_or(0));
    }

    fn crash(&mut self) {
        self.crashes += 1;
        self.opened = None;
        if self.disk.is_off() || self.rng.chance(50) {
            self.disk.power_cut();
        } else {
            self.disk.kill();
        }
    }

    /// One random thing; a crash of it leaves `opened` empty.
    fn step(&mut self) {
        if self.opened.is_none() {
            return self.recover();
        }
        if self.rng.chance(8) {
            self.disk.cut_power_in(1 + self.rng.below(12));
        }
        let act = match self.rng.below(100) {
            0..80 => Act::Append,
            80..90 => Act::CloseTail,
            90..97 => Act::Recycle,
            _ => Act::Stop,
        };
        self.act(act);
    }

    fn act(&mut self, act: Act) {
        let Some(mut log) = self.opened.take() else {
            return self.recover();
        };
        let outcome = match act {
            Act::Append => {
                let run = random_run(&mut self.rng, log.next_index());
                match log.append(&run, Room::Normal) {
                    Ok(places) => {
                        self.note(&log, places, run);
                        Ok(())
                    }
                    Err(error) => {
                        self.in_flight = run;
                        Err(error)
                    }
                }
            }
            Act::CloseTail => log.close_tail(),
            Act::Recycle => self.recycle_oldest(&mut log),
            Act::Stop => log.stop(),
        };
        if let Err(error) = outcome {
            assert!(self.disk.is_off(), "{error}");
        }
        if self.disk.is_off() || act == Act::Stop {
            drop(log);
            self.crash();
        } else {
            self.opened = Some(log);
        }
    }

    fn recycle_oldest(&mut self, log: &mut Log) -> Result<(), LogError> {
        let segments = log.segments();
        // Any closed one, not only the oldest: live data may lie before dead.
        let closed: Vec<_> = segments.iter().filter(|segment| segment.closed).collect();
        if closed.len() < 3 {
            return Ok(());
        }
        let number = closed[self.rng.below(2) as usize].number;
        self.recycling = Some(number);
        let recycled = log.recycle(number)?;
        assert_ne!(recycled, Recycled::Busy);
        self.recycling = None;
        self.acked.remove(&number.0);
        Ok(())
    }

    fn go(seed: u64, steps: u32) -> Self {
        let mut run = Self::new(seed);
        for _ in 0..steps {
            run.step();
        }
        run.recover_at_last();
        run
    }

    fn recover_at_last(&mut self) {
        self.crash();
        self.recover();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Append,
    CloseTail,
    Recycle,
    Stop,
}

/// Whether the tests run at full size.
pub(crate) fn is_full() -> bool {
    std::env::var("WATERWHEEL_TEST").is_ok_and(|tier| tier == "full")
}

/// Runs a closure and names the seed if it fails.
pub(crate) fn seeded<T>(seed: u64, run: impl FnOnce(u64) -> T + std::panic::UnwindSafe) -> T {
    match std::panic::catch_unwind(|| run(seed)) {
        Ok(outcome) => outcome,
        Err(panic) => {
            eprintln!("failed with seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn what_was_acked_is_recovered_and_nothing_half_through_kills_and_power_cuts() {
    let (mut crashes, mut rolled) = (0, 0);
    for seed in 0..if is_full() { 2000 } else { 100 } {
        let run = seeded(seed, |seed| Run::go(seed, 300));
        crashes += run.crashes;
        rolled += run.acked.keys().max().copied().unwrap_or(0);
    }
    assert!(crashes > 2000, "{crashes} crashes");
    assert!(rolled > 500, "{rolled} segments");
}

#[test]
fn one_seed_twice_is_one_run() {
    for seed in [3, 14] {
        let (one, two) = (Run::go(seed, 200), Run::go(seed, 200));
        assert_eq!(one.disk.trace(), two.disk.trace());
        assert_eq!(one.disk.operations(), two.disk.operations());
        assert!(one.acked == two.acked);
    }
    assert_ne!(Run::go(3, 200).disk.trace(), Run::go(4, 200).disk.trace());
}

/// Fills segments, recycles, stops, opens again: everything that has several writes in it.
fn script(run: &mut Run) {
    run.act(Act::Stop);
    for round in 0..3 {
        for n in 0..70 {
            run.act(Act::Append);
            if n % 10 == 9 {
                run.act(Act::CloseTail);
            }
        }
        if round > 0 {
            run.act(Act::Recycle);
        }
        run.act(Act::Stop);
    }
}

#[test]
fn the_power_may_go_in_any_operation_of_opening_rolling_and_recycling() {
    let mut whole = Run::new(7);
    whole.crash_in_opening_percent = 0;
    script(&mut whole);
    whole.recover();
    let operations = whole.disk.operations();
    assert!(whole.acked.len() > 3, "{} segments", whole.acked.len());
    for cut in (1..operations).step_by(if is_full() { 1 } else { 6 }) {
        let outcome = std::panic::catch_unwind(|| {
            let mut run = Run::new(7);
            run.crash_in_opening_percent = 0;
            run.disk.cut_power_in(cut);
            script(&mut run);
            run.crash_in_opening_percent = 60;
            run.crash();
            run.recover();
        });
        assert!(
            outcome.is_ok(),
            "fails when the power goes in operation {cut}"
        );
    }
}

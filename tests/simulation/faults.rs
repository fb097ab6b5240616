//! Failed writes and syncs, full disks, rotten bits: each as promised.

use std::sync::Arc;

use waterwheel::domain::entry::{EntryKind, EntryPlace, NewEntry};
use waterwheel::domain::id::ClusterId;
use waterwheel::log::{
    Damage, DamageReason, Log, LogError, ReadError, Recycled, Room, Verified, encoded_length,
};

use super::disk::{Rng, SimDisk, UNIT};
use super::log::{Entries, contents, entry, open, options};

const HEADER: u64 = 96;
const FLUSH_HEADER: u64 = 64;

fn run(log: &Log, sizes: &[usize]) -> Vec<NewEntry> {
    let kinds = [EntryKind::Payload, EntryKind::State, EntryKind::Snapshot];
    let first = log.next_index();
    let each = sizes.iter().zip(kinds.iter().cycle()).zip(first..);
    each.map(|((bytes, kind), index)| entry(index, *kind, false, vec![index as u8; *bytes]))
        .collect()
}

fn append(log: &mut Log, sizes: &[usize]) -> Entries {
    let run = run(log, sizes);
    let places = log.append(&run, Room::Normal).unwrap();
    places.into_iter().zip(run).collect()
}

#[test]
fn a_failed_write_seals_reads_go_on_and_a_restart_recovers() {
    for through_cache in [false, true] {
        for seed in 0..40 {
            let disk = SimDisk::new(seed);
            let disk = if through_cache {
                disk.through_cache()
            } else {
                disk
            };
            let mut log = open(&disk).unwrap().log;
            let acked = append(&mut log, &[100, 3000]);
            disk.fail_synced_writes(1);
            let lost = run(&log, &[2000, 300, 10]);
            let failed = log.append(&lost, Room::Normal).unwrap_err();
            assert!(matches!(failed, LogError::Io { .. }), "{failed}");
            assert!(log.sealed().is_some());
            for refused in [
                log.append(&lost, Room::Housekeeping).map(drop),
                log.close_tail(),
                log.stop(),
            ] {
                assert!(matches!(refused, Err(LogError::Sealed { .. })));
            }
            assert_eq!(contents(&log), (acked.clone(), vec![]));
            drop(log);
            // Killed, not cut: what the cache shows must be on disk once it was served.
            disk.kill();
            let served = contents(&open(&disk).unwrap().log);
            disk.power_cut();
            let after = contents(&open(&disk).unwrap().log);
            assert_eq!(served, after, "seed {seed}");
            assert!(served.0.len() == 2 || served.0.len() == 5, "seed {seed}");
            assert_eq!(served.0[..2], acked[..]);
            assert_eq!(served.1, []);
        }
    }
}

#[test]
fn a_failed_write_while_rolling_or_recycling_seals_too() {
    for failing in 1..=3 {
        let disk = SimDisk::new(failing);
        let mut log = open(&disk).unwrap().log;
        let mut acked = Vec::new();
        while log.segments().len() < 3 {
            acked.extend(append(&mut log, &[4000]));
        }
        if failing == 1 {
            disk.fail_synced_writes(1);
            let number = log.segments()[0].number;
            assert!(matches!(log.recycle(number), Err(LogError::Io { .. })));
        } else {
            while log.segments().len() == 3 {
                disk.fail_synced_writes(0);
                let left = log.segments()[2].bytes - (log.end().0 - log.segments()[2].base.0);
                if left < 5 * u64::from(UNIT) {
                    // The summary, the next header or the flush itself.
                    disk.fail_synced_writes(1);
                }
                let next = run(&log, &[4000]);
                match log.append(&next, Room::Normal) {
                    Ok(places) => acked.extend(places.into_iter().zip(next)),
                    Err(error) => {
                        assert!(matches!(error, LogError::Io { .. }), "{error}");
                        break;
                    }
                }
            }
        }
        assert!(log.sealed().is_some());
        drop(log);
        disk.power_cut();
        let log = open(&disk).unwrap().log;
        let (found, damages) = contents(&log);
        assert_eq!(damages, []);
        // A recycling that failed may have happened; everything else is there.
        let kept = found.len().min(acked.len());
        assert!(acked.ends_with(&found[..kept]) || found.starts_with(&acked));
    }
}

#[test]
fn a_failed_sync_or_read_fails_the_opening_and_cuts_nothing() {
    let disk = SimDisk::new(1);
    let mut log = open(&disk).unwrap().log;
    let acked = append(&mut log, &[10, 20, 30]);
    drop(log);
    disk.kill();
    for reads in 1..8 {
        disk.fail_reads(reads);
        assert!(matches!(open(&disk), Err(LogError::Io { .. })));
        disk.fail_reads(0);
        disk.fail_syncs(1);
        assert!(matches!(open(&disk), Err(LogError::Io { .. })));
        disk.kill();
    }
    assert_eq!(contents(&open(&disk).unwrap().log), (acked, vec![]));
}

/// Appends until the log says it is full; how many entries that took.
fn fill(log: &mut Log, room: Room, acked: &mut Entries) -> usize {
    let before = acked.len();
    loop {
        let next = run(log, &[3500]);
        match log.append(&next, room) {
            Ok(places) => acked.extend(places.into_iter().zip(next)),
            Err(LogError::Full { .. }) => return acked.len() - before,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_full_disk_refuses_payloads_first_and_is_not_a_failed_write() {
    let disk = SimDisk::new(5);
    let mut acked = Vec::new();
    let mut log = open(&disk).unwrap().log;
    disk.set_capacity(6 * options().segment_bytes);
    assert!(fill(&mut log, Room::Normal, &mut acked) > 60);
    assert_eq!(log.free_room().normal_bytes, 0);
    assert!(log.free_room().decisions_bytes > 0 && log.free_room().full.is_some());
    assert!(fill(&mut log, Room::Decisions, &mut acked) > 20);
    assert_eq!(fill(&mut log, Room::Normal, &mut acked), 0);
    assert_eq!(log.free_room().decisions_bytes, 0);
    // Half a segment of these small ones is kept for openings.
    assert!(fill(&mut log, Room::Housekeeping, &mut acked) > 5);
    assert_eq!(fill(&mut log, Room::Decisions, &mut acked), 0);
    assert_eq!(log.sealed(), None);
    // However full it is, it opens, again and again, and nothing is lost.
    for _ in 0..10 {
        disk.power_cut();
        log = open(&disk).unwrap().log;
        assert_eq!(contents(&log), (acked.clone(), vec![]));
    }
    // Room comes back segment by segment, to the most urgent first.
    assert_eq!(fill_one(&mut log, Room::Decisions), 0);
    recycle_oldest(&mut log);
    assert_eq!(fill_one(&mut log, Room::Decisions), 1);
    assert_eq!(fill_one(&mut log, Room::Normal), 0);
    recycle_oldest(&mut log);
    assert_eq!(fill_one(&mut log, Room::Normal), 1);
    disk.set_capacity(u64::MAX);
    let mut more = Vec::new();
    while more.len() < 200 {
        more.extend(append(&mut log, &[3500]));
    }
    assert_eq!(log.free_room().full, None);
}

fn recycle_oldest(log: &mut Log) {
    let oldest = log.segments()[0].number;
    assert_eq!(log.recycle(oldest).unwrap(), Recycled::Kept);
}

fn fill_one(log: &mut Log, room: Room) -> usize {
    let next = run(log, &[10]);
    usize::from(log.append(&next, room).is_ok())
}

#[test]
fn what_is_too_large_is_refused_and_the_log_goes_on() {
    let disk = SimDisk::new(1);
    let mut log = open(&disk).unwrap().log;
    let capacity = log.append_capacity() as usize;
    let too_large = run(&log, &[capacity - HEADER as usize + 1]);
    let refused = log.append(&too_large, Room::Normal);
    assert!(matches!(refused, Err(LogError::TooLarge { .. })));
    let largest = run(&log, &[capacity / 8 * 8 - HEADER as usize]);
    assert!(encoded_length(&largest[0]) <= log.append_capacity());
    let places = log.append(&largest, Room::Normal).unwrap();
    let acked: Entries = places.into_iter().zip(largest).collect();
    assert_eq!(contents(&log), (acked, vec![]));
}

/// A log of three-entry flushes with its places, stopped cleanly, and where each flush starts.
fn written(disk: &SimDisk, flushes: usize) -> (Entries, Vec<u64>) {
    let mut log = open(disk).unwrap().log;
    let mut acked = Vec::new();
    let mut starts = Vec::new();
    for n in 0..flushes {
        starts.push(log.end().0);
        acked.extend(append(&mut log, &[200 + n, 31, 4000]));
    }
    log.stop().unwrap();
    drop(log);
    disk.kill();
    (acked, starts)
}

fn end_of(place: EntryPlace) -> u64 {
    place.position.0 + u64::from(place.length)
}

fn verify(log: &Log) -> Vec<Damage> {
    let verified = log.reader().verify();
    verified
        .filter_map(|finding| match finding {
            Verified::Damaged(damage) => Some(damage),
            Verified::Segment(_) => None,
        })
        .collect()
}

/// Where a file's segment starts in the log.
fn file_of(log: &Log, position: u64) -> (String, u64) {
    let segments = log.segments();
    let found = segments
        .into_iter()
        .find(|segment| (segment.base.0..segment.base.0 + segment.bytes).contains(&position));
    found.map(|segment| (segment.file, segment.base.0)).unwrap()
}

#[test]
fn a_flipped_bit_in_the_middle_is_reported_by_exact_range_and_the_rest_is_served() {
    let pristine = SimDisk::new(2);
    let (acked, starts) = written(&pristine, 9);
    let start = starts[4];
    let end = starts[5];
    let entries: Vec<EntryPlace> = acked[12..15].iter().map(|(place, _)| *place).collect();
    let mut seen = std::collections::BTreeSet::new();
    for position in (start..end).step_by(37).chain(start..start + 70) {
        let disk = SimDisk::new(2);
        assert_eq!(written(&disk, 9), (acked.clone(), starts.clone()));
        let log = Log::inspect(Arc::new(disk.clone()), options()).unwrap();
        let segment = log.reader.segments()[0].clone();
        disk.flip(&segment.file, (position - segment.base.0) as usize, 0x20);
        let opened = open(&disk).unwrap();
        let (found, damages) = contents(&opened.log);
        assert_eq!(opened.damage, damages, "found when opened and when scanned");

        let hit = entries
            .iter()
            .position(|place| (place.position.0..end_of(*place)).contains(&position));
        let (range, reason, lost) = if position < start + FLUSH_HEADER {
            let range = (start, start + FLUSH_HEADER);
            (Some(range), DamageReason::FlushHeader, None)
        } else if let Some(hit) = hit {
            let place = entries[hit];
            let is_header = position < place.position.0 + HEADER;
            let stop = end_of(place);
            let stop = if is_header {
                stop.next_multiple_of(8)
            } else {
                stop
            };
            let reason = if is_header {
                DamageReason::EntryHeader
            } else {
                DamageReason::Body
            };
            (Some((place.position.0, stop)), reason, Some(12 + hit))
        } else {
            (None, DamageReason::Padding, None)
        };
        seen.insert(format!("{reason:?}"));
        let mut expected = acked.clone();
        if let Some(lost) = lost {
            expected.remove(lost);
        }
        assert!(
            found == expected,
            "a flip at {position} costs {reason:?} only"
        );
        let ranges: Vec<_> = damages.iter().map(|d| (d.from.0, d.to.0)).collect();
        assert_eq!(ranges, Vec::from_iter(range), "flip at {position}");
        if let Some(damage) = damages.first() {
            assert_eq!((damage.reason, &damage.file), (reason, &segment.file));
            let named = (reason == DamageReason::Body).then(|| acked[lost.unwrap()].1.header);
            assert_eq!(damage.entry, named);
        }
        let findings = verify(&opened.log);
        assert!(
            findings.len() == damages.len()
                || findings.iter().all(|damage| damage.reason.is_harmless())
        );
        if range.is_none() && position >= end_of(entries[2]).next_multiple_of(8) {
            assert_eq!(findings.len(), 1, "padding at {position} is checked");
        }
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn damage_in_a_closed_segment_is_named_and_summaries_are_dispensable() {
    let disk = SimDisk::new(3);
    let (acked, _) = written(&disk, 60);
    let log = open(&disk).unwrap().log;
    let segments = log.segments();
    assert!(segments.len() > 2 && segments[0].closed);
    assert_eq!(verify(&log), []);
    let rotten_at = |index: usize| acked[index].0.position.0;
    // A payload's body, and a state entry's header.
    let (file, base) = file_of(&log, rotten_at(6));
    assert_eq!(base, segments[0].base.0);
    disk.flip(&file, (rotten_at(6) + HEADER + 5 - base) as usize, 1);
    disk.flip(&file, (rotten_at(10) + 3 - base) as usize, 1);
    let read = log.reader().read(&[acked[6].0, acked[7].0]);
    assert!(
        matches!(&read[0], Err(ReadError::Damaged(damage)) if damage.entry == Some(acked[6].1.header))
    );
    assert_eq!(read[1].as_ref().unwrap().header, acked[7].1.header);
    let damages = verify(&log);
    let named: Vec<_> = damages.iter().map(|damage| damage.entry).collect();
    assert_eq!(named, [Some(acked[6].1.header), Some(acked[10].1.header)]);
    let damages: Vec<Damage> = log
        .reader()
        .scan(segments[0].base, Some(segments[0].end))
        .filter_map(|scanned| match scanned {
            waterwheel::log::Scanned::Damaged(damage) => Some(damage),
            waterwheel::log::Scanned::Entry { .. } => None,
        })
        .collect();
    assert_eq!(damages.len(), 1, "a scan by summary touches no payload");
    assert_eq!(damages[0].entry, Some(acked[10].1.header));
    // Without its summary the segment is read in full.
    let second = &segments[1];
    let footer = second.bytes as usize - UNIT as usize;
    disk.flip(&second.file, footer + 20, 1);
    drop(log);
    disk.kill();
    let log = open(&disk).unwrap().log;
    let scanned = log.reader().scan(second.base, Some(second.end));
    let expected = acked
        .iter()
        .filter(|(place, _)| (second.base..second.end).contains(&place.position));
    assert_eq!(scanned.count(), expected.count());
    let reasons: Vec<_> = verify(&log)
        .into_iter()
        .map(|damage| damage.reason)
        .collect();
    assert!(reasons.contains(&DamageReason::Summary), "{reasons:?}");
}

#[test]
fn damage_in_the_tail_stays_reported_after_the_segment_is_closed() {
    let disk = SimDisk::new(4);
    let (acked, _) = written(&disk, 5);
    let log = open(&disk).unwrap().log;
    let place = acked[7].0;
    let (file, base) = file_of(&log, place.position.0);
    drop(log);
    disk.kill();
    disk.flip(&file, (place.position.0 + HEADER - base) as usize, 4);
    let mut log = open(&disk).unwrap().log;
    while log.segments().len() < 2 {
        append(&mut log, &[4000]);
    }
    assert!(log.segments()[0].closed);
    drop(log);
    disk.kill();
    let (_, damages) = contents(&open(&disk).unwrap().log);
    assert_eq!(damages.len(), 1);
    assert_eq!(damages[0].entry, Some(acked[7].1.header));
}

#[test]
fn a_torn_tail_takes_a_tied_run_as_a_whole_and_is_never_seen_again() {
    for seed in 0..300 {
        let disk = SimDisk::new(seed);
        let mut log = open(&disk).unwrap().log;
        let acked = append(&mut log, &[50]);
        let first = log.next_index();
        let tied: Vec<NewEntry> = (0..4)
            .map(|n| entry(first + n, EntryKind::State, n < 3, vec![n as u8; 1700]))
            .collect();
        disk.cut_power_in(1);
        log.append(&tied, Room::Normal).unwrap_err();
        drop(log);
        disk.power_cut();
        let mut log = open(&disk).unwrap().log;
        let (mut found, damages) = contents(&log);
        assert_eq!(damages, []);
        assert!([1, 5].contains(&found.len()), "seed {seed}");
        assert_eq!(found[0], acked[0]);
        found.extend(append(&mut log, &[60]));
        drop(log);
        disk.kill();
        assert_eq!(
            contents(&open(&disk).unwrap().log),
            (found, vec![]),
            "seed {seed}"
        );
    }
}

#[test]
fn what_an_earlier_life_of_a_file_left_never_comes_back() {
    for seed in 0..30 {
        let disk = SimDisk::new(seed);
        let mut log = open(&disk).unwrap().log;
        while log.segments().len() < 4 {
            append(&mut log, &[700, 700]);
        }
        let old: Vec<_> = log.segments().into_iter().take(3).collect();
        for segment in &old {
            log.recycle(segment.number).unwrap();
        }
        // On into a file that was used before, but not over all that lies in it.
        let mut acked = contents(&log).0;
        while !old
            .iter()
            .any(|o| log.segments().last().unwrap().file == o.file)
        {
            acked.extend(append(&mut log, &[4000]));
        }
        acked.extend(append(&mut log, &[700, 700]));
        let last = log.segments().pop().unwrap();
        let behind = (log.end().0 - last.base.0) as usize;
        assert!(
            disk.peek(&last.file)[behind..]
                .iter()
                .any(|byte| *byte != 0)
        );
        // Ends on every kind of boundary: torn in the middle, and cut behind the last flush.
        if seed % 2 == 0 {
            disk.cut_power_in(1);
            let next = run(&log, &[3000, 3000]);
            log.append(&next, Room::Normal).unwrap_err();
        }
        drop(log);
        disk.power_cut();
        for _ in 0..2 {
            let (mut found, damages) = contents(&open(&disk).unwrap().log);
            assert_eq!(damages, []);
            if found.len() == acked.len() + 2 {
                found.truncate(acked.len());
            }
            assert!(found == acked, "seed {seed}");
            disk.kill();
        }
    }
}

#[test]
fn rotten_segment_headers_cost_nothing_but_a_report_where_a_flush_tells_the_number() {
    let disk = SimDisk::new(6);
    let (acked, _) = written(&disk, 60);
    let log = open(&disk).unwrap().log;
    let segments = log.segments();
    drop(log);
    disk.kill();
    // One copy of one header, both of another.
    disk.flip(&segments[0].file, 40, 2);
    disk.flip(&segments[1].file, 40, 2);
    disk.flip(&segments[1].file, 2048 + 40, 2);
    let opened = open(&disk).unwrap();
    assert_eq!(opened.damage.len(), 1);
    assert_eq!(opened.damage[0].reason, DamageReason::SegmentHeader);
    assert_eq!(opened.damage[0].from, segments[1].base);
    assert_eq!(contents(&opened.log), (acked, vec![]));
}

#[test]
fn a_foreign_or_newer_segment_is_refused_by_name() {
    let disk = SimDisk::new(8);
    written(&disk, 2);
    let mut foreign = options();
    foreign.cluster = Some(ClusterId([9; 16]));
    let error = Log::open(Arc::new(disk.clone()), foreign)
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, LogError::Foreign { .. }), "{error}");
    let file = disk.file_names().remove(0);
    let mut header = disk.peek(&file)[..124].to_vec();
    header[8] = 2;
    let crc = waterwheel::domain::checksum::crc32c(&header).to_le_bytes();
    disk.flip(&file, 8, 1 ^ 2);
    for (at, byte) in crc.iter().enumerate() {
        let now = disk.peek(&file)[124 + at];
        disk.flip(&file, 124 + at, now ^ byte);
    }
    let error = open(&disk).map(drop).unwrap_err().to_string();
    assert!(
        error.contains(&file) && error.contains("format 2"),
        "{error}"
    );
}

#[test]
fn random_bytes_in_place_of_a_log_never_panic_it() {
    for seed in 0..60 {
        let disk = SimDisk::new(seed);
        written(&disk, 40);
        let mut rng = Rng(seed);
        for name in disk.file_names() {
            let length = disk.peek(&name).len() as u64;
            for _ in 0..rng.below(400) {
                let is_early = rng.chance(30);
                let at = rng.below(if is_early { 9000.min(length) } else { length });
                disk.flip(&name, at as usize, rng.next() as u8);
            }
        }
        if let Ok(opened) = open(&disk) {
            opened.log.reader().scan(Default::default(), None).count();
            opened.log.reader().verify().count();
        }
    }
}

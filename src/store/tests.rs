//! The views against a naive model, through restarts, crashes in the middle of a write, and damage.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;

use super::layout::PARTITION_INDEX_RUN;
use super::mark::BootId;
use super::*;
use crate::domain::id::{ClusterId, LogPosition, OwnerId, OwnerSequence};

const CLUSTER: ClusterId = ClusterId([7; 16]);
const CACHE_BYTES: u64 = 4 << 20;

fn open(dir: &Path) -> OpenedViews {
    Views::open(dir, CACHE_BYTES, CLUSTER).unwrap()
}

fn run(owner: u64, id: u64) -> RowKey {
    RowKey {
        owner: OwnerId(owner),
        kind: PARTITION_INDEX_RUN,
        id,
    }
}

fn put(key: RowKey, folded: u64, payload: &[u8]) -> RowChange {
    RowChange {
        tree: Tree::Partition,
        key,
        value: Some((OwnerSequence(folded), Bytes::copy_from_slice(payload))),
    }
}

fn remove(key: RowKey) -> RowChange {
    RowChange {
        tree: Tree::Partition,
        key,
        value: None,
    }
}

fn head(owner: u64) -> RowKey {
    RowKey::head(OwnerId(owner))
}

fn trusted(opened: &OpenedViews) -> (Mark, Verified) {
    let Standing::Trusted { mark, verified } = &opened.standing else {
        panic!("{:?}", opened.standing);
    };
    (*mark, verified.clone())
}

/// Three owners of four rows each, marked at position 100.
fn filled(dir: &Path) {
    let mut opened = open(dir);
    assert_eq!(opened.standing, Standing::Fresh);
    for owner in 1..=3 {
        let mut changes = vec![put(head(owner), 4, b"head")];
        changes
            .extend((0_u8..3).map(|id| put(run(owner, id.into()), u64::from(id) + 1, &[id; 300])));
        opened.views.write(&changes).unwrap();
    }
    opened.views.mark(LogPosition(100), false).unwrap();
}

#[test]
fn rows_are_read_back_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let views = dir.path().join("views");
    filled(&views);
    let opened = open(&views);
    let (mark, verified) = trusted(&opened);
    assert_eq!(mark.position, LogPosition(100));
    assert_eq!((verified.owners, verified.rows), (3, 12));
    let rows = opened.views.rows(Tree::Partition, OwnerId(2)).unwrap();
    assert_eq!(rows.len(), 4);
    assert_eq!((rows[0].kind, &rows[0].payload[..]), (0, &b"head"[..]));
    assert_eq!((rows[3].id, rows[3].folded), (2, OwnerSequence(3)));
    let owners: Vec<_> = opened
        .views
        .owners(Tree::Partition)
        .map(|head| head.unwrap().owner.0)
        .collect();
    assert_eq!(owners, [1, 2, 3]);
    assert_eq!(opened.views.owners(Tree::Meta).count(), 0);
}

#[test]
fn rows_written_after_the_mark_do_not_cost_the_views() {
    let dir = tempfile::tempdir().unwrap();
    let views = dir.path().join("views");
    filled(&views);
    let mut opened = open(&views);
    let late = [
        put(run(1, 0), 9, b"new"),
        remove(run(1, 1)),
        put(head(4), 1, b""),
        remove(head(3)),
    ];
    opened.views.write(&late).unwrap();
    opened.views.write(&[put(run(1, 0), 10, b"newer")]).unwrap();
    opened.views.sync().unwrap();
    drop(opened);
    let opened = open(&views);
    assert_eq!(trusted(&opened).0.position, LogPosition(100));
    assert_eq!(
        opened
            .views
            .row(Tree::Partition, run(1, 0))
            .unwrap()
            .unwrap()
            .payload,
        "newer"
    );
    assert_eq!(opened.views.row(Tree::Partition, run(1, 1)).unwrap(), None);
    assert_eq!(
        opened.views.row_count(Tree::Partition, OwnerId(3)).unwrap(),
        0
    );
}

#[test]
fn a_crash_between_rows_and_head_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let views = dir.path().join("views");
    filled(&views);
    let mut opened = open(&views);
    opened.views.write_without_heads(&[
        put(run(1, 0), 9, b"new"),
        remove(run(2, 1)),
        put(run(9, 0), 1, b"an owner not seen before"),
    ]);
    drop(opened);
    for _ in 0..2 {
        let mut opened = open(&views);
        trusted(&opened);
        // The head was written before it was removed: what is folded from there on may need it.
        let runs = opened.views.rows(Tree::Partition, OwnerId(2)).unwrap();
        assert!(
            runs.iter()
                .any(|row| row.id == 1 && !row.payload.is_empty())
        );
        assert_eq!(
            opened.views.row_count(Tree::Partition, OwnerId(9)).unwrap(),
            0
        );
        opened.views.write(&[put(run(1, 5), 11, b"later")]).unwrap();
        opened.views.write(&[put(head(9), 1, b"head")]).unwrap();
        opened.views.write(&[remove(head(9))]).unwrap();
    }
    open(&views).views.mark(LogPosition(200), true).unwrap();
    assert_eq!(trusted(&open(&views)).1.owners, 3);
}

#[test]
fn one_rotten_row_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let views = dir.path().join("views");
    filled(&views);
    open(&views).views.rot(Tree::Partition, run(2, 1));
    let Standing::Distrusted(Distrust::Row { key, .. }) = open(&views).standing else {
        panic!("the rot went unnoticed");
    };
    assert_eq!(key, run(2, 1));
}

#[test]
fn a_lost_row_and_a_lost_owner_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let views = dir.path().join("views");
    filled(&views);
    open(&views).views.lose(Tree::Partition, run(2, 1));
    let (tree, owner) = (Tree::Partition, OwnerId(2));
    assert_eq!(
        open(&views).standing,
        Standing::Distrusted(Distrust::Owner { tree, owner })
    );
    let opened = open(&views);
    for id in [0, 2] {
        opened.views.lose(Tree::Partition, run(2, id));
    }
    opened.views.lose(Tree::Partition, head(2));
    drop(opened);
    assert_eq!(open(&views).standing, Standing::Distrusted(Distrust::Heads));
}

#[test]
fn missing_older_and_foreign_views_are_distrusted_and_can_be_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    let views = dir.path().join("views");
    filled(&views);
    let older = dir.path().join("older");
    copy(&views, &older);
    let mut opened = open(&views);
    opened.views.write(&[put(run(1, 0), 9, b"new")]).unwrap();
    opened.views.mark(LogPosition(200), false).unwrap();
    drop(opened);
    let other = ClusterId([8; 16]);
    let foreign = Views::open(&views, CACHE_BYTES, other).unwrap();
    assert_eq!(
        foreign.standing,
        Standing::Distrusted(Distrust::OtherCluster)
    );
    drop(foreign);

    fs::remove_dir_all(&views).unwrap();
    copy(&older, &views);
    assert_eq!(open(&views).standing, Standing::Distrusted(Distrust::Heads));
    fs::remove_dir_all(&views).unwrap();
    let mut missing = open(&views);
    assert_eq!(missing.standing, Standing::Distrusted(Distrust::Heads));
    let refused = missing.views.write(&[put(head(1), 1, b"")]);
    assert!(matches!(refused, Err(ViewsError::Closed)));
    drop(missing);
    Views::destroy(&views).unwrap();
    filled(&views);
    Mark::remove(&views).unwrap();
    assert_eq!(
        open(&views).standing,
        Standing::Distrusted(Distrust::NoMark)
    );
}

#[test]
fn after_another_boot_only_a_clean_stop_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let views = dir.path().join("views");
    filled(&views);
    let (mark, _) = trusted(&open(&views));
    for (clean, believed) in [(true, true), (false, false)] {
        let other = Mark {
            generation: mark.generation + 10,
            boot: BootId([9; 16]),
            clean,
            ..mark
        };
        Mark::remove(&views).unwrap();
        other.write(&views).unwrap();
        let standing = open(&views).standing;
        assert_eq!(matches!(standing, Standing::Trusted { .. }), believed);
    }
}

#[test]
fn a_clean_mark_is_taken_back_at_opening() {
    let dir = tempfile::tempdir().unwrap();
    let views = dir.path().join("views");
    filled(&views);
    open(&views).views.mark(LogPosition(100), true).unwrap();
    assert!(Mark::read(&views).unwrap().unwrap().clean);
    drop(open(&views));
    assert!(!Mark::read(&views).unwrap().unwrap().clean);
}

#[test]
fn a_row_without_a_head_and_a_row_too_long_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let views = dir.path().join("views");
    let mut opened = open(&views);
    let refused = opened
        .views
        .write(&[put(head(1), 1, b""), put(run(2, 0), 1, b"")]);
    assert!(matches!(refused, Err(ViewsError::NoHead { .. })));
    let long = vec![0; layout::ROW_BYTES_MAX + 1];
    let refused = opened
        .views
        .write(&[put(head(1), 1, b""), put(run(1, 0), 1, &long)]);
    assert!(matches!(refused, Err(ViewsError::RowTooLong(_))));
    assert_eq!(opened.views.owners(Tree::Partition).count(), 0);
}

/// Whatever is cut off or flipped in sled's own files: an error or distrust, or exactly what was there.
#[test]
fn damage_inside_the_database_never_passes_for_rows() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good");
    filled(&good);
    let expected = everything(&open(&good).views);
    let database = fs::read(good.join("db")).unwrap();
    let used = database.iter().rposition(|byte| *byte != 0).unwrap();
    let mut noticed = 0;
    for step in 0..40_usize {
        let views = dir.path().join(format!("views{step}"));
        copy(&good, &views);
        for slot in [0, 1] {
            let _ = fs::copy(
                dir.path().join(format!("good.mark.{slot}")),
                dir.path().join(format!("views{step}.mark.{slot}")),
            );
        }
        let at = used * (step / 2) / 20;
        let mut damaged = database.clone();
        if step % 2 == 0 {
            damaged.truncate(at);
        } else {
            damaged[at] ^= 0x10;
        }
        fs::write(views.join("db"), damaged).unwrap();
        match Views::open(&views, CACHE_BYTES, CLUSTER) {
            Ok(opened) if matches!(opened.standing, Standing::Trusted { .. }) => {
                assert_eq!(everything(&opened.views), expected, "step {step}");
            }
            _ => noticed += 1,
        }
    }
    assert!(noticed > 10, "{noticed} noticed");
}

fn everything(views: &Views) -> Vec<Row> {
    (1..=3)
        .flat_map(|owner| views.rows(Tree::Partition, OwnerId(owner)).unwrap())
        .collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(Vec<(u64, u64, Option<u8>)>),
    RemoveOwner(u64),
    Mark,
    Torn(Vec<(u64, u64, u8)>),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let change = (1_u64..4, 0_u64..4, proptest::option::of(any::<u8>()));
    prop_oneof![
        4 => proptest::collection::vec(change, 1..5).prop_map(Step::Write),
        1 => (1_u64..4).prop_map(Step::RemoveOwner),
        2 => Just(Step::Mark),
        1 => proptest::collection::vec((1_u64..4, 0_u64..4, any::<u8>()), 1..3).prop_map(Step::Torn),
        2 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]
    /// Writes, removals, marks, writes torn between rows and head, restarts: always believed, and every
    /// row is the last one written (a torn write of an owner without a head is as if it had not been).
    #[test]
    fn the_views_are_a_map(steps in proptest::collection::vec(step(), 1..30)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("views");
        let mut views = open(&path).views;
        views.mark(LogPosition(0), false).unwrap();
        let mut model: BTreeMap<u64, BTreeMap<u64, u8>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Write(changes) => {
                    let mut rows = Vec::new();
                    for (owner, id, byte) in changes {
                        rows.push(put(head(owner), 1, b"h"));
                        let runs = model.entry(owner).or_default();
                        match byte {
                            Some(byte) => { runs.insert(id, byte); rows.push(put(run(owner, id), 1, &[byte])); }
                            None => { runs.remove(&id); rows.push(remove(run(owner, id))); }
                        }
                    }
                    views.write(&rows).unwrap();
                }
                Step::RemoveOwner(owner) => {
                    model.remove(&owner);
                    views.write(&[remove(head(owner))]).unwrap();
                }
                Step::Mark => { views.mark(LogPosition(1), false).unwrap(); }
                Step::Torn(changes) => {
                    // A write names a row once.
                    let rows: BTreeMap<_, _> = changes
                        .iter()
                        .filter(|(owner, ..)| model.contains_key(owner))
                        .map(|(owner, id, byte)| ((*owner, *id), put(run(*owner, *id), 1, &[*byte])))
                        .collect();
                    for (owner, id, byte) in changes {
                        if let Some(runs) = model.get_mut(&owner) { runs.insert(id, byte); }
                    }
                    views.write_without_heads(&rows.into_values().collect::<Vec<_>>());
                    drop(views);
                    let opened = open(&path);
                    trusted(&opened);
                    views = opened.views;
                }
                Step::Restart => {
                    drop(views);
                    let opened = open(&path);
                    trusted(&opened);
                    views = opened.views;
                }
            }
            let mut seen: BTreeMap<u64, BTreeMap<u64, u8>> = BTreeMap::new();
            for head in views.owners(Tree::Partition) {
                let owner = head.unwrap().owner;
                let runs = views.rows(Tree::Partition, owner).unwrap();
                seen.insert(owner.0, runs.iter().skip(1).map(|row| (row.id, row.payload[0])).collect());
            }
            prop_assert_eq!(&seen, &model);
        }
        drop(views);
        trusted(&open(&path));
    }
}

#[test]
fn a_rotten_head_of_a_level_takes_its_homes_along_and_nothing_else_is_disbelieved() {
    use super::layout::WHEEL_HOME;
    let level = |level| OwnerId::wheel_level(level);
    let wheel = |owner, id: Option<u64>| RowChange {
        tree: Tree::Wheel,
        ..put(
            match id {
                None => RowKey::head(owner),
                Some(id) => RowKey {
                    owner,
                    kind: WHEEL_HOME,
                    id,
                },
            },
            9,
            b"alarms",
        )
    };
    // A bit anywhere in a head: in what is fixed, what it holds, its sum, its checksum.
    let length = {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path());
        let mut opened = open(dir.path());
        opened.views.write(&[wheel(level(1), None)]).unwrap();
        let trees = &opened.views.trees;
        let head = trees.of(Tree::Wheel).iter().next().unwrap().unwrap();
        head.1.len()
    };
    for (at, second_too) in (0..length).step_by(3).map(|at| (at, at % 2 == 0)) {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path());
        let mut opened = open(dir.path());
        for round in 0..2 {
            let changes: Vec<RowChange> = (1..4)
                .flat_map(|of| [None, Some(round), Some(7)].map(|id| wheel(level(of), id)))
                .collect();
            opened.views.write(&changes).unwrap();
            opened.views.mark(LogPosition(200 + round), false).unwrap();
        }
        let rot = |owner| {
            let key = RowKey::head(owner);
            let tree = opened.views.trees.of(Tree::Wheel);
            let mut value = tree.get(key.encode()).unwrap().unwrap().to_vec();
            value[at] ^= 0x10;
            opened.views.insert(Tree::Wheel, key, value).unwrap();
        };
        rot(level(2));
        if second_too {
            rot(level(3));
        }
        drop(opened);
        let mut opened = open(dir.path());
        let (mark, verified) = trusted(&opened);
        assert_eq!(mark.position, LogPosition(201), "byte {at}");
        assert_eq!(verified.rotten.len(), 1 + usize::from(second_too));
        let left = |views: &Views, of| {
            let homes = views.row_ids(Tree::Wheel, level(of), WHEEL_HOME);
            homes.unwrap()
        };
        assert_eq!(left(&opened.views, 1), [0, 1, 7]);
        assert!(left(&opened.views, 2).is_empty());
        assert_eq!(left(&opened.views, 3).is_empty(), second_too);
        assert_eq!(
            opened
                .views
                .rows(Tree::Partition, OwnerId(1))
                .unwrap()
                .len(),
            4
        );
        // What is written from now on adds up again.
        let again = [wheel(level(2), None), wheel(level(2), Some(4))];
        opened.views.write(&again).unwrap();
        opened.views.mark(LogPosition(300), false).unwrap();
        drop(opened);
        let opened = open(dir.path());
        let (mark, verified) = trusted(&opened);
        let seen = (mark.position, verified.rotten.len());
        assert_eq!(seen, (LogPosition(300), 0));
        assert_eq!(left(&opened.views, 2), [4]);
    }
}

#[test]
fn beside_a_rotten_head_of_a_level_a_lost_owner_is_still_missed() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let mut opened = open(dir.path());
    let key = RowKey::head(OwnerId::wheel_level(2));
    let head_of_level = RowChange {
        tree: Tree::Wheel,
        ..put(key, 9, b"head")
    };
    opened.views.write(&[head_of_level]).unwrap();
    opened.views.mark(LogPosition(200), false).unwrap();
    let rotten = b"\x01rotten".to_vec();
    opened.views.insert(Tree::Wheel, key, rotten).unwrap();
    let trees = &opened.views.trees;
    for row in trees.of(Tree::Partition).scan_prefix(1_u64.to_be_bytes()) {
        let key = row.unwrap().0;
        trees.of(Tree::Partition).remove(key).unwrap();
    }
    drop(opened);
    let opened = open(dir.path());
    assert_eq!(opened.standing, Standing::Distrusted(Distrust::Heads));
}

#[test]
fn a_rotten_home_of_timers_is_told_and_removed_and_nothing_else_is_disbelieved() {
    use super::layout::WHEEL_HOME;
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let home = |id| RowKey {
        owner: OwnerId::wheel_level(2),
        kind: WHEEL_HOME,
        id,
    };
    let wheel = |key, payload: &'static [u8]| RowChange {
        tree: Tree::Wheel,
        ..put(key, 9, payload)
    };
    let mut opened = open(dir.path());
    let changes = [
        wheel(RowKey::head(OwnerId::wheel_level(2)), b"head"),
        wheel(home(1), b"one"),
        wheel(home(2), b"two"),
        wheel(home(3), b"three"),
    ];
    opened.views.write(&changes).unwrap();
    opened.views.mark(LogPosition(200), false).unwrap();
    opened
        .views
        .insert(Tree::Wheel, home(2), b"rotten".to_vec())
        .unwrap();
    drop(opened);
    let mut opened = open(dir.path());
    let (mark, verified) = trusted(&opened);
    assert_eq!(mark.position, LogPosition(200));
    let rotten: Vec<RowKey> = verified.rotten.iter().map(|(key, _)| *key).collect();
    assert_eq!(rotten, [home(2)]);
    let left = |views: &Views| {
        views
            .row_ids(Tree::Wheel, OwnerId::wheel_level(2), WHEEL_HOME)
            .unwrap()
    };
    assert_eq!(left(&opened.views), [1, 3]);
    // What is written from now on adds up again.
    opened.views.write(&[wheel(home(4), b"four")]).unwrap();
    opened.views.mark(LogPosition(300), false).unwrap();
    drop(opened);
    let opened = open(dir.path());
    let (mark, verified) = trusted(&opened);
    assert_eq!(
        (mark.position, verified.rotten.len()),
        (LogPosition(300), 0)
    );
    assert_eq!(left(&opened.views), [1, 3, 4]);
}

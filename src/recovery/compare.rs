//! Whether two sets of views say the same: those that were kept, and those the whole log folds to.
//!
//! Rows are compared by what they say, not by how far they were folded when they were written: a row that
//! an entry did not change keeps the sequence of an earlier one. Homes of the wheel are not compared row by
//! row, since where an alarm waits depends on when it was put there: every record that waits must have a home,
//! and homes of what has fired or was cancelled since are harmless. Nor are runs of stored bodies, since a
//! restart begins a new one: every record that waits must lie where the log has it, with the same due time.

use std::collections::BTreeMap;
use std::fmt;

use super::rearm;
use crate::actors::load;
use crate::domain::id::{OwnerId, RecordNumber};
use crate::domain::partition::Limits;
use crate::domain::partition::stored::{StoredPlace, decode_bodies};
use crate::domain::wheel::chunk::{self, RowId};
use crate::domain::wheel::{WALL_LEVELS, home_shift};
use crate::store::{Row, Tree, Views, ViewsError, layout};

/// What was compared, and what differs.
#[derive(Debug, Default)]
pub struct Compared {
    /// Owners with a head row.
    pub owners: u64,
    /// Rows the log folds to.
    pub rows: u64,
    /// In no particular order of importance.
    pub differences: Vec<Difference>,
}

/// Something the views say otherwise than the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// A row: missing, one too many, or with other content.
    Row {
        /// Its tree.
        tree: Tree,
        /// Whose.
        owner: OwnerId,
        /// Of which kind.
        kind: u8,
        /// Which.
        id: u64,
    },
    /// A record that waits for its time is not said to lie where it lies, or to be due when it is.
    Body {
        /// Its partition lane.
        owner: OwnerId,
        /// Its number.
        number: RecordNumber,
    },
    /// A record waits for its time, and nothing would wake it.
    Homeless {
        /// Its partition lane.
        owner: OwnerId,
        /// Its number.
        number: RecordNumber,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row {
                tree,
                owner,
                kind,
                id,
            } => write!(
                f,
                "row {}/{}/{kind}/{id} is not what the log folds to",
                tree.name(),
                owner.0
            ),
            Self::Body { owner, number } => write!(
                f,
                "record {} of owner {} waits elsewhere, or for another time",
                number.0, owner.0
            ),
            Self::Homeless { owner, number } => write!(
                f,
                "record {} of owner {} waits for its time and has no home in the wheel",
                number.0, owner.0
            ),
        }
    }
}

type Contents = BTreeMap<(Tree, u64, u8, u64), bytes::Bytes>;

/// Compares `kept` with `folded`, both brought up to the end of the log.
///
/// # Errors
/// One of them does not read.
pub fn compare(kept: &Views, folded: &Views, limits: Limits) -> Result<Compared, ViewsError> {
    let (ours, theirs) = (contents(kept)?, contents(folded)?);
    let missing = theirs.keys().filter(|key| !ours.contains_key(*key));
    let differing = ours
        .keys()
        .chain(missing)
        .filter(|key| ours.get(key) != theirs.get(key));
    let mut differences: Vec<Difference> = differing
        .map(|&(tree, owner, kind, id)| Difference::Row {
            tree,
            owner: OwnerId(owner),
            kind,
            id,
        })
        .collect();
    waiting(kept, folded, limits, &mut differences)?;
    Ok(Compared {
        owners: theirs
            .keys()
            .filter(|(.., kind, _)| *kind == layout::HEAD)
            .count() as u64,
        rows: theirs.len() as u64,
        differences,
    })
}

fn contents(views: &Views) -> Result<Contents, ViewsError> {
    let mut all = Contents::new();
    for tree in Tree::ALL.into_iter().filter(|tree| *tree != Tree::Wheel) {
        for head in views.owners(tree) {
            let owner = head?.owner;
            let rows = views.rows(tree, owner)?;
            for row in rows.into_iter().filter(|row| !is_run(tree, row)) {
                all.insert((tree, owner.0, row.kind, row.id), row.payload);
            }
        }
    }
    Ok(all)
}

fn is_run(tree: Tree, row: &Row) -> bool {
    tree == Tree::Partition && row.kind == layout::PARTITION_BODIES
}

/// Looks after every record that waits by the fold: whether what was kept has it, and a home for it.
fn waiting(
    kept: &Views,
    folded: &Views,
    limits: Limits,
    differences: &mut Vec<Difference>,
) -> Result<(), ViewsError> {
    let homes = homes(kept)?;
    for head in folded.owners(Tree::Partition) {
        let owner = head?.owner;
        let rows = folded.rows(Tree::Partition, owner)?;
        let Some(machine) = load::partition_from_rows(limits, &rows) else {
            continue;
        };
        let theirs = Bodies::of(&rows);
        let ours = Bodies::of(&kept.rows(Tree::Partition, owner)?);
        rearm::alarms(owner, machine, &rearm::bodies(&rows), |alarm| {
            let number = RecordNumber(alarm.token);
            if ours.find(number) != theirs.find(number) {
                differences.push(Difference::Body { owner, number });
            }
            let home = (alarm.owner, alarm.token, alarm.version);
            if homes.binary_search(&home).is_err() {
                differences.push(Difference::Homeless { owner, number });
            }
        });
    }
    Ok(())
}

/// Every alarm that has a home, in order.
fn homes(views: &Views) -> Result<Vec<(OwnerId, u64, u32)>, ViewsError> {
    let mut homes = Vec::new();
    for level in 0..WALL_LEVELS {
        for row in views.rows(Tree::Wheel, OwnerId::wheel_level(level))? {
            if row.kind == layout::WHEEL_HOME {
                let start = RowId::unpack(row.id).slot << home_shift(level);
                let alarms = chunk::decode(start, &row.payload).unwrap_or_default();
                homes.extend(alarms.iter().map(|one| (one.owner, one.token, one.version)));
            }
        }
    }
    homes.sort_unstable();
    Ok(homes)
}

/// The stored batches of a partition by first number, however they are cut into runs.
struct Bodies(BTreeMap<RecordNumber, (StoredPlace, Vec<i64>)>);

impl Bodies {
    fn of(rows: &[Row]) -> Self {
        let mut batches = BTreeMap::new();
        let runs = rows.iter().filter(|row| is_run(Tree::Partition, row));
        for (places, dues) in runs.filter_map(|row| decode_bodies(&row.payload)) {
            let mut dues = dues.into_iter();
            for place in places {
                let dues = dues.by_ref().take(place.count as usize).collect();
                batches.insert(place.first_number, (place, dues));
            }
        }
        Self(batches)
    }

    /// The batch a record is in, and when the record is due.
    fn find(&self, number: RecordNumber) -> Option<(StoredPlace, i64)> {
        let (first, (place, dues)) = self.0.range(..=number).next_back()?;
        let index = usize::try_from(number.0 - first.0).ok()?;
        Some((*place, *dues.get(index)?))
    }
}

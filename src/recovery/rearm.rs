//! New homes for everything that waits: where homes of the wheel do not read, partitions say what was in
//! them.
//!
//! Each partition's own machine hands over what it has pending, as it does to a wheel that lost its
//! alarms, and is then forgotten: the fold goes on with the machine it had. An alarm that has a home still
//! gets a second one, which is harmless.

use std::collections::{HashMap, VecDeque};

use super::Fold;
use crate::actors::load;
use crate::actors::partition;
use crate::domain::alarm::Alarm;
use crate::domain::id::OwnerId;
use crate::domain::partition::{Effect, Partition};
use crate::store::{Row, Tree, ViewsError, layout};

/// Gathers the alarms of everything that waits, for the fold to find homes for.
pub(super) fn all(fold: &mut Fold) -> Result<(), ViewsError> {
    // Rows as they are now, of those too that were folded.
    for (owner, machine) in &mut fold.partitions {
        let changes = partition::row_changes(*owner, machine);
        if !changes.is_empty() {
            fold.views.write(&changes)?;
        }
    }
    let heads: Result<Vec<OwnerId>, ViewsError> = fold
        .views
        .owners(Tree::Partition)
        .map(|head| head.map(|head| head.owner))
        .collect();
    for owner in heads? {
        if !fold
            .topics
            .iter()
            .any(|topic| topic.partition_of(owner).is_some())
        {
            continue;
        }
        let rows = fold.views.rows(Tree::Partition, owner)?;
        let Some(machine) = load::partition_from_rows(fold.limits, &rows) else {
            continue;
        };
        let found = &mut fold.timers;
        alarms(owner, machine, &bodies(&rows), |alarm| {
            found.extend([alarm])
        });
        if fold.timers.is_large() {
            fold.timers.write(&mut fold.views)?;
        }
    }
    Ok(())
}

/// The rows of what was composed and waits, by record number.
pub(super) fn bodies(rows: &[Row]) -> HashMap<u64, &[u8]> {
    rows.iter()
        .filter(|row| row.kind == layout::PARTITION_BODIES)
        .map(|row| (row.id, &*row.payload))
        .collect()
}

/// Calls `found` with the alarm of every record of a partition that waits for its time.
pub(super) fn alarms(
    owner: OwnerId,
    mut machine: Partition,
    bodies: &HashMap<u64, &[u8]>,
    mut found: impl FnMut(Alarm),
) {
    if machine.pending() == 0 {
        return;
    }
    let mut effects = Vec::new();
    machine.lost(&mut effects);
    machine.begun(&mut effects);
    let mut effects = VecDeque::from(effects);
    while let Some(effect) = effects.pop_front() {
        let mut more = Vec::new();
        match effect {
            Effect::Arm { alarms, .. } => {
                let count = alarms.len();
                for alarm in alarms {
                    found(Alarm { owner, ..alarm });
                }
                machine.armed(count, &mut more);
            }
            Effect::LoadBodies(first) => {
                let row = bodies.get(&first.0).copied().unwrap_or_default();
                machine.bodies_loaded(first, Ok(row), &mut more);
            }
            Effect::Persist { .. }
            | Effect::Accepted(_)
            | Effect::Stored(..)
            | Effect::Batches(..)
            | Effect::Found(..)
            | Effect::Refuse(..)
            | Effect::LoadRun(_)
            | Effect::Timer(..)
            | Effect::Returned { .. }
            | Effect::Ahead(_) => {}
        }
        effects.extend(more);
    }
}

//! Homes for what recovery finds armed behind the mark, so that every level begins from its homes alone.

use std::collections::BTreeMap;

use super::level::row_changes;
use crate::actors::Clock;
use crate::domain::alarm::Alarm;
use crate::domain::id::OwnerId;
use crate::domain::wheel::chunk::{self, RowId};
use crate::domain::wheel::{Changes, WALL_LEVELS, home_shift, level_for};
use crate::store::{Tree, Views, ViewsError, layout};

/// Alarms gathered before they are written: bounds the memory of a rebuild.
const GATHERED_MAX: usize = 1_000_000;

/// Alarms on their way to a home.
#[derive(Debug)]
pub struct Unhomed {
    now_ms: i64,
    alarms: Vec<Alarm>,
    /// The next free chunk number by level and slot.
    free: BTreeMap<(u8, i64), u32>,
}

impl Unhomed {
    /// Looks which homes there are.
    ///
    /// # Errors
    /// The views do not read.
    pub fn begin(views: &Views) -> Result<Self, ViewsError> {
        let mut free = BTreeMap::new();
        for level in 0..WALL_LEVELS {
            let owner = OwnerId::wheel_level(level);
            for id in views.row_ids(Tree::Wheel, owner, layout::WHEEL_HOME)? {
                let id = RowId::unpack(id);
                free.insert((level, id.slot), id.chunk + 1);
            }
        }
        Ok(Self {
            now_ms: Clock::start().now().wall.0,
            alarms: Vec::new(),
            free,
        })
    }

    /// Gathers alarms.
    pub fn extend(&mut self, alarms: impl IntoIterator<Item = Alarm>) {
        self.alarms.extend(alarms);
    }

    /// Whether it is time to write.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.alarms.len() >= GATHERED_MAX
    }

    /// Keeps only alarms that still stand.
    pub fn retain(&mut self, stands: impl FnMut(&Alarm) -> bool) {
        self.alarms.retain(stands);
    }

    /// Writes homes for what has been gathered, each on the level that would keep it now.
    ///
    /// # Errors
    /// The views cannot be written.
    pub fn write(&mut self, views: &mut Views) -> Result<(), ViewsError> {
        let mut slots: BTreeMap<(u8, i64), Vec<Alarm>> = BTreeMap::new();
        for alarm in self.alarms.drain(..) {
            let level = level_for(alarm.due_ms, self.now_ms, WALL_LEVELS);
            let slot = alarm.due_ms.max(0) >> home_shift(level);
            slots.entry((level, slot)).or_default().push(alarm);
        }
        let mut changes: BTreeMap<u8, Changes> = BTreeMap::new();
        for ((level, slot), mut alarms) in slots {
            let free = self.free.entry((level, slot)).or_default();
            let changes = changes.entry(level).or_default();
            for bytes in chunk::encode(slot << home_shift(level), &mut alarms) {
                let id = RowId { slot, chunk: *free };
                *free += 1;
                changes.writes.push((id, bytes));
            }
        }
        for (level, changes) in changes {
            views.write(&row_changes(OwnerId::wheel_level(level), 0, changes))?;
        }
        Ok(())
    }
}

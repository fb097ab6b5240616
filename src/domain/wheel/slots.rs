//! The slots of one level: packed alarms by the slot their moment lies in.
//!
//! Slots are kept by their number since the clock's zero, and only those that hold something: the next
//! one is found at once, and a step of the clock moves nothing. An alarm takes 20 bytes.

use std::collections::{BTreeMap, HashMap};

use crate::domain::alarm::{Alarm, DUE_MS_MAX};
use crate::domain::id::OwnerId;

const HOMED: u32 = 1 << 31;

/// An alarm within its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packed {
    /// Milliseconds after the beginning of its slot.
    due: u32,
    token: [u32; 2],
    version: u32,
    /// Its owner's number in [`Names`]; the highest bit says that it has a home on the disk.
    owner: u32,
}

/// Numbers for owners, so that an alarm need not carry the whole id.
#[derive(Debug, Default)]
struct Names {
    numbers: HashMap<OwnerId, u32>,
    owners: Vec<OwnerId>,
}

impl Names {
    fn number(&mut self, owner: OwnerId) -> u32 {
        *self.numbers.entry(owner).or_insert_with(|| {
            self.owners.push(owner);
            // 2^31 owners do not fit into memory.
            u32::try_from(self.owners.len() - 1).unwrap_or(HOMED - 1)
        })
    }

    fn owner(&self, number: u32) -> OwnerId {
        self.owners
            .get((number & !HOMED) as usize)
            .copied()
            .unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct Slot {
    alarms: Vec<Packed>,
    unhomed: usize,
}

/// An alarm and whether it has a home on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    /// The alarm.
    pub alarm: Alarm,
    /// Whether a home for it has been handed to the store.
    pub homed: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Slots {
    shift: u32,
    slots: BTreeMap<i64, Slot>,
    names: Names,
    len: usize,
    unhomed: usize,
}

impl Slots {
    pub(super) fn new(shift: u32) -> Self {
        Self {
            shift,
            ..Self::default()
        }
    }

    /// Alarms held.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Alarms held that have no home.
    pub(super) fn unhomed(&self) -> usize {
        self.unhomed
    }

    /// Keeps alarms; a run of them that share a slot costs one look.
    pub(super) fn insert(&mut self, alarms: impl IntoIterator<Item = Held>) {
        let shift = self.shift;
        let mut alarms = alarms.into_iter().peekable();
        let mut name = (OwnerId(u64::MAX), 0);
        while let Some(first) = alarms.peek() {
            let number = first.alarm.due_ms.clamp(0, DUE_MS_MAX) >> shift;
            let slot = self.slots.entry(number).or_default();
            while let Some(held) =
                alarms.next_if(|held| held.alarm.due_ms.clamp(0, DUE_MS_MAX) >> shift == number)
            {
                let Held { alarm, homed } = held;
                if name.0 != alarm.owner {
                    name = (alarm.owner, self.names.number(alarm.owner));
                }
                let within = alarm.due_ms.clamp(0, DUE_MS_MAX) - (number << shift);
                slot.alarms.push(Packed {
                    due: u32::try_from(within).unwrap_or(u32::MAX),
                    token: halves(alarm.token),
                    version: alarm.version,
                    owner: if homed { name.1 | HOMED } else { name.1 },
                });
                self.len += 1;
                if !homed {
                    slot.unhomed += 1;
                    self.unhomed += 1;
                }
            }
        }
    }

    /// The first slot that holds something.
    pub(super) fn first(&self) -> Option<i64> {
        self.slots.keys().next().copied()
    }

    /// Alarms in slots before `slot`.
    pub(super) fn before(&self, slot: i64) -> usize {
        self.slots
            .range(..slot)
            .map(|(_, slot)| slot.alarms.len())
            .sum()
    }

    /// Takes a slot out, in due order, without doubles.
    pub(super) fn take(&mut self, number: i64) -> Vec<Held> {
        let mut held = self.take_parts(number, 1).pop().unwrap_or_default();
        in_due_order(&mut held);
        held
    }

    /// Alarms of one slot.
    pub(super) fn held(&self, number: i64) -> usize {
        self.slots.get(&number).map_or(0, |slot| slot.alarms.len())
    }

    /// Takes a slot out in so many parts of the same time, a power of two, and of those what is not empty, one
    /// at least; every part is due before the next, in no order in itself.
    pub(super) fn take_parts(&mut self, number: i64, parts: usize) -> Vec<Vec<Held>> {
        let Some(slot) = self.slots.remove(&number) else {
            return vec![Vec::new()];
        };
        self.len -= slot.alarms.len();
        self.unhomed -= slot.unhomed;
        let start = number << self.shift;
        let shift = self.shift.saturating_sub(parts.trailing_zeros());
        let each = slot.alarms.len() / parts.max(1);
        let mut taken: Vec<Vec<Held>> = (0..parts.max(1))
            .map(|_| Vec::with_capacity(each))
            .collect();
        for packed in slot.alarms {
            let part = usize::try_from(packed.due >> shift).unwrap_or(usize::MAX);
            if let Some(part) = taken.get_mut(part.min(parts.saturating_sub(1))) {
                part.push(unpack(&self.names, start, packed));
            }
        }
        taken.retain(|part| !part.is_empty());
        if taken.is_empty() {
            taken.push(Vec::new());
        }
        taken
    }

    /// The alarms of every slot in which one has no home, slot by slot; they count as having one from now
    /// on. Of the slot's alarms that have one already, `whole` gives those too.
    pub(super) fn home(&mut self, whole: bool) -> Vec<(i64, Vec<Alarm>)> {
        let (names, shift) = (&self.names, self.shift);
        let mut homes = Vec::new();
        for (number, slot) in &mut self.slots {
            if slot.unhomed == 0 {
                continue;
            }
            let start = number << shift;
            let mut alarms = Vec::with_capacity(slot.unhomed);
            for packed in &mut slot.alarms {
                if whole || packed.owner & HOMED == 0 {
                    alarms.push(unpack(names, start, *packed).alarm);
                    packed.owner |= HOMED;
                }
            }
            slot.unhomed = 0;
            homes.push((*number, alarms));
        }
        self.unhomed = 0;
        homes
    }

    /// Forgets what has a home in a slot; gives how many.
    pub(super) fn forget_homed(&mut self, number: i64) -> usize {
        let Some(slot) = self.slots.get_mut(&number) else {
            return 0;
        };
        let before = slot.alarms.len();
        slot.alarms.retain(|packed| packed.owner & HOMED == 0);
        let forgotten = before - slot.alarms.len();
        self.len -= forgotten;
        if slot.alarms.is_empty() {
            self.slots.remove(&number);
        } else if slot.alarms.capacity() > 2 * slot.alarms.len() {
            slot.alarms.shrink_to_fit();
        }
        forgotten
    }
}

/// Puts alarms in due order, without doubles: of those the one with a home stays.
pub(super) fn in_due_order(alarms: &mut Vec<Held>) {
    let key = |held: &Held| (held.alarm, !held.homed);
    if !alarms.is_sorted_by_key(key) {
        alarms.sort_unstable_by_key(key);
    }
    alarms.dedup_by_key(|held| held.alarm);
}

fn halves(token: u64) -> [u32; 2] {
    let bytes = token.to_le_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}

fn unpack(names: &Names, start: i64, packed: Packed) -> Held {
    let [low, high] = packed.token;
    Held {
        alarm: Alarm {
            due_ms: start + i64::from(packed.due),
            owner: names.owner(packed.owner),
            token: u64::from(high) << 32 | u64::from(low),
            version: packed.version,
        },
        homed: packed.owner & HOMED != 0,
    }
}

//! The levels of the timing wheel: mailboxes like everybody's, homes in the views, a lap in every round.

use std::collections::BTreeMap;

use bytes::Bytes;
use waterwheel::domain::alarm::Alarm;
use waterwheel::domain::id::{LogPosition, OwnerId};
use waterwheel::domain::partition::alarms_of;
use waterwheel::domain::wheel::chunk::{self, RowId as Home};
use waterwheel::domain::wheel::coarse::Coarse;
use waterwheel::domain::wheel::finest::Finest;
use waterwheel::domain::wheel::{
    Changes, Effect, Held, Moment, Read, WALL_LEVELS, home_shift, level_for,
};
use waterwheel::log::{LogReader, Scanned};

use super::house::House;
use super::message::{Message, To};
use super::views::{Change, Key, Views};

pub(crate) const LEVELS: usize = WALL_LEVELS as usize;

/// What a level is told.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Arm(OwnerId, Vec<Alarm>),
    Returned(OwnerId, u64, Option<u64>),
    Entered(OwnerId),
    Left(OwnerId),
    Over(Vec<Alarm>),
    Fall(Vec<Held>, Option<i64>),
    Landed(i64),
    Loaded(Vec<Read>),
    Homed,
    Up(Lap, i64),
    Down(Lap, i64),
    Look,
}

/// A round of the checkpoint on its way through the levels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lap {
    pub(crate) round: u64,
    pub(crate) marked: u64,
}

/// What an owner is told.
#[derive(Debug, Clone)]
pub(crate) enum Said {
    Due(u64, Vec<Alarm>),
    Near(Vec<Alarm>),
    Armed(usize),
    Began,
}

pub(crate) struct Wheel {
    finest: Finest,
    coarse: Vec<Coarse>,
    /// Owners that are told, and the number of their actor.
    ears: BTreeMap<OwnerId, u64>,
    /// How many batches were said due.
    pub(crate) said_due: u64,
}

impl Wheel {
    /// Every level begins from its homes.
    pub(crate) fn begin(views: &Views) -> Self {
        let coarse = (1..WALL_LEVELS).map(|level| {
            let homes = views.homes(level);
            Coarse::new(level, WALL_LEVELS, homes).in_parts_of(2)
        });
        Self {
            finest: Finest::new(WALL_LEVELS, views.homes(0)),
            coarse: coarse.collect(),
            ears: BTreeMap::new(),
            said_due: 0,
        }
    }

    /// When some level wakes next, by the clock and from now on.
    pub(crate) fn next_wake(&self, now: i64, monotonic: u64) -> Option<i64> {
        let (due, later) = self.finest.next_wake();
        let later = later.map(|at| now + at.saturating_sub(monotonic).cast_signed());
        let coarse = self.coarse.iter().map(Coarse::next_wake);
        coarse.chain([due, later]).flatten().min()
    }
}

/// Homes for what the log behind the mark armed, as recovery finds them.
pub(crate) fn find_homes(views: &mut Views, alarms: Vec<Alarm>, now: i64) {
    let mut slots: BTreeMap<(u8, i64), Vec<Alarm>> = BTreeMap::new();
    for alarm in alarms {
        let level = level_for(alarm.due_ms, now, WALL_LEVELS);
        let slot = alarm.due_ms.max(0) >> home_shift(level);
        slots.entry((level, slot)).or_default().push(alarm);
    }
    for ((level, slot), mut alarms) in slots {
        let homes = views.homes(level).into_iter();
        let free = homes
            .filter(|home| home.slot == slot)
            .map(|home| home.chunk + 1);
        let free = free.max().unwrap_or_default();
        let chunks = chunk::encode(slot << home_shift(level), &mut alarms);
        let changes = (free..).zip(chunks).map(|(chunk, bytes)| {
            let home = Home { slot, chunk };
            (Key::Home(level, home), Some(Bytes::from(bytes)))
        });
        views.write(changes.collect());
    }
}

fn row_changes(level: usize, changes: Changes) -> Vec<Change> {
    let key = |home| Key::Home(level as u8, home);
    let removes = changes.removes.into_iter().map(|home| (key(home), None));
    let writes = changes.writes.into_iter();
    removes
        .chain(writes.map(|(home, bytes)| (key(home), Some(bytes.into()))))
        .collect()
}

/// What entries from a position on arm; none where the log does not read.
fn alarms_behind(reader: &LogReader, mark: LogPosition) -> Option<Vec<Alarm>> {
    let mut alarms = Vec::new();
    for scanned in reader.scan(mark, None) {
        let Scanned::Entry {
            header,
            place,
            facts,
            body,
        } = scanned
        else {
            return None;
        };
        let body = body.unwrap_or_default();
        alarms.extend(alarms_of(&waterwheel::domain::entry::AppliedEntry {
            header,
            place,
            body,
            facts,
        }));
    }
    Some(alarms)
}

impl House {
    fn moment(&self) -> Moment {
        Moment {
            clock_ms: self.now.0,
            monotonic_ms: self.monotonic,
        }
    }

    fn tell_level(&mut self, level: usize, step: Step) {
        self.tell(To::Level(level), Message::Level(step));
    }

    /// An owner begins a life.
    pub(crate) fn enter_wheel(&mut self, owner: OwnerId, address: u64) {
        self.wheel.ears.insert(owner, address);
        self.tell_level(0, Step::Entered(owner));
    }

    /// It is gone for good.
    pub(crate) fn leave_wheel(&mut self, owner: OwnerId) {
        self.wheel.ears.remove(&owner);
        self.tell_level(0, Step::Left(owner));
    }

    fn tell_ear(&mut self, owner: OwnerId, said: Said) {
        if let Some(address) = self.wheel.ears.get(&owner).copied() {
            self.tell(To::Owner(owner, address), Message::Alarm(said));
        }
    }

    /// A level looks at the clock.
    pub(crate) fn look(&mut self, level: usize) {
        let (now, moment, mut out) = (self.now.0, self.moment(), Vec::new());
        match level.checked_sub(1) {
            None => drop(self.wheel.finest.advance(moment, &mut out)),
            Some(at) => self.wheel.coarse[at].advance(now, &mut out),
        }
        self.perform_level(level, out);
    }

    /// The clock was set: the coarsest hears of it first.
    pub(crate) fn clock_set(&mut self) {
        self.tell_level(LEVELS - 1, Step::Look);
    }

    pub(crate) fn level(&mut self, level: usize, message: Message) {
        let Message::Level(step) = message else {
            panic!("not for a level: {message:?}");
        };
        match step {
            Step::Look => {
                self.look(level);
                if let Some(below) = level.checked_sub(1) {
                    self.tell_level(below, Step::Look);
                }
            }
            Step::Up(lap, below) => self.lap_up(level, lap, below),
            Step::Down(lap, settled) => self.lap_down(level, lap, settled),
            step => match level.checked_sub(1) {
                None => self.finest(step),
                Some(at) => self.coarse(at, step),
            },
        }
    }

    fn finest(&mut self, step: Step) {
        let (now, mut out) = (self.moment(), Vec::new());
        let finest = &mut self.wheel.finest;
        match step {
            Step::Arm(owner, alarms) => finest.arm(now, owner, alarms, false, &mut out),
            Step::Returned(owner, batch, again) => {
                finest.returned(now, owner, batch, again, &mut out);
            }
            Step::Entered(owner) => finest.entered(now, owner, &mut out),
            Step::Left(owner) => finest.left(now, owner, &mut out),
            Step::Fall(alarms, last) => finest.fell(now, alarms, last, &mut out),
            Step::Loaded(read) => finest.loaded(now, read, &mut out),
            Step::Homed => finest.homed(true),
            other => panic!("not for the finest level: {other:?}"),
        }
        self.perform_level(0, out);
    }

    fn coarse(&mut self, at: usize, step: Step) {
        let (now, mut out) = (self.now.0, Vec::new());
        let coarse = &mut self.wheel.coarse[at];
        match step {
            Step::Over(alarms) => coarse.overflowed(now, alarms, &mut out),
            Step::Fall(alarms, last) => coarse.fell(now, alarms, last, &mut out),
            Step::Landed(slot) => coarse.landed(now, slot, &mut out),
            Step::Loaded(read) => coarse.loaded(now, read, &mut out),
            Step::Homed => coarse.homed(true),
            other => panic!("not for a coarse level: {other:?}"),
        }
        self.perform_level(at + 1, out);
    }

    fn lap_up(&mut self, level: usize, lap: Lap, below: i64) {
        let settled = match level.checked_sub(1) {
            None => self.wheel.finest.settled(lap.round, self.now.0),
            Some(at) => self.wheel.coarse[at].settled(lap.round, below),
        };
        if level + 1 < LEVELS {
            self.tell_level(level + 1, Step::Up(lap, settled));
        } else {
            self.lap_down(level, lap, settled);
        }
    }

    fn lap_down(&mut self, level: usize, lap: Lap, settled: i64) {
        let Lap { round, marked } = lap;
        let mut out = Vec::new();
        let changes = match level.checked_sub(1) {
            None => self.wheel.finest.lap(round, marked, settled),
            Some(at) => self.wheel.coarse[at].lap(round, marked, settled, &mut out),
        };
        self.perform_level(level, out);
        let changes = row_changes(level, changes);
        self.tell(To::Store, Message::WriteHomes { level, changes });
        match level.checked_sub(1) {
            None => self.tell(To::Checkpoint, Message::LapDone { round }),
            Some(below) => self.tell_level(below, Step::Down(lap, settled)),
        }
    }

    fn perform_level(&mut self, level: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Over(alarms) => self.tell_level(level + 1, Step::Over(alarms)),
                Effect::Fall { alarms, last } => {
                    if level == 1 {
                        self.tell_near(&alarms);
                    }
                    self.tell_level(level - 1, Step::Fall(alarms, last));
                }
                Effect::Landed(slot) => self.tell_level(level + 1, Step::Landed(slot)),
                Effect::Load(ids) => self.tell(To::Store, Message::LoadHomes { level, ids }),
                Effect::Unreadable(id) => panic!("{id:?} of level {level} does not read"),
                Effect::Due {
                    owner,
                    batch,
                    alarms,
                } => {
                    let is_early = |alarm: &Alarm| alarm.due_ms > self.now.0;
                    assert!(!alarms.iter().any(is_early), "early: {alarms:?}");
                    self.wheel.said_due += 1;
                    self.tell_ear(owner, Said::Due(batch, alarms));
                }
                Effect::Armed { owner, count } => self.tell_ear(owner, Said::Armed(count)),
                Effect::Start(owner) => self.tell(To::Directory, Message::StartOwner { owner }),
            }
        }
    }

    fn tell_near(&mut self, held: &[Held]) {
        let mut near: BTreeMap<OwnerId, Vec<Alarm>> = BTreeMap::new();
        for held in held {
            near.entry(held.alarm.owner).or_default().push(held.alarm);
        }
        for (owner, alarms) in near {
            self.tell_ear(owner, Said::Near(alarms));
        }
    }

    /// A level fails: another begins with its homes and what the log behind the mark arms.
    pub(crate) fn fail_level(&mut self, level: usize) {
        // It asks the store, which has written by then what it was told before.
        while self
            .boxes
            .get(&To::Store)
            .is_some_and(|mail| !mail.is_empty())
        {
            self.deliver(To::Store);
        }
        let Some(alarms) = alarms_behind(&self.reader, self.views.marked()) else {
            self.unreadable = true;
            return;
        };
        self.boxes.remove(&To::Level(level));
        let (now, moment, mut out) = (self.now.0, self.moment(), Vec::new());
        let homes = self.views.homes(level as u8);
        match level.checked_sub(1) {
            None => {
                let mut finest = Finest::new(WALL_LEVELS, homes);
                for alarms in alarms.chunk_by(|a, b| a.owner == b.owner) {
                    let owner = alarms[0].owner;
                    finest.arm(moment, owner, alarms.to_vec(), true, &mut out);
                }
                for owner in self.wheel.ears.keys() {
                    finest.entered(moment, *owner, &mut out);
                }
                finest.advance(moment, &mut out);
                self.wheel.finest = finest;
            }
            Some(at) => {
                let mut coarse = Coarse::new(level as u8, WALL_LEVELS, homes).in_parts_of(2);
                coarse.overflowed(now, alarms, &mut out);
                self.wheel.coarse[at] = coarse;
            }
        }
        self.perform_level(level, out);
        for above in level + 1..LEVELS {
            let mut out = Vec::new();
            self.wheel.coarse[above - 1].again(now, &mut out);
            self.perform_level(above, out);
        }
        for owner in self.wheel.ears.keys().copied().collect::<Vec<_>>() {
            self.tell_ear(owner, Said::Began);
        }
    }
}

//! The levels and what goes between them.

use super::*;

impl World {
    pub(super) fn perform(&mut self, level: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Over(alarms) => self.mail[level + 1].push_back(Message::Over(alarms)),
                Effect::Fall { alarms, last } => {
                    if level == 1 {
                        let near = alarms.iter().map(|held| held.alarm).collect();
                        self.told.push_back(Told::Near(near));
                    }
                    self.mail[level - 1].push_back(Message::Fall(alarms, last))
                }
                Effect::Landed(slot) => self.mail[level + 1].push_back(Message::Landed(slot)),
                Effect::Load(ids) => {
                    let homes = &self.views.homes[level];
                    let read = ids.iter().map(|id| (*id, homes.get(id).cloned())).collect();
                    self.mail[level].push_back(Message::Loaded(read));
                }
                Effect::Unreadable(id) => panic!("{id:?} of level {level} does not read"),
                Effect::Due { batch, alarms, .. } => {
                    assert!(alarms.iter().all(|alarm| alarm.due_ms <= self.now), "early");
                    self.told.push_back(Told::Due(batch, alarms));
                }
                Effect::Armed { count, .. } => self.told.push_back(Told::Armed(count)),
                Effect::Start(_) => {}
            }
        }
    }

    /// A level takes its next message.
    pub(super) fn handle(&mut self, level: usize) {
        let Some(message) = self.mail[level].pop_front() else {
            return;
        };
        let (now, moment, mut out) = (self.now, self.moment(), Vec::new());
        if level == 0 {
            let finest = &mut self.finest;
            match message {
                Message::Arm(alarms) => finest.arm(moment, OWNER, alarms, false, &mut out),
                Message::Returned(batch, again) => {
                    finest.returned(moment, OWNER, batch, again, &mut out)
                }
                Message::Fall(alarms, last) => finest.fell(moment, alarms, last, &mut out),
                Message::Loaded(read) => finest.loaded(moment, read, &mut out),
                Message::Homed => finest.homed(true),
                Message::Up(round, _) => {
                    let settled = finest.settled(round, now);
                    self.mail[1].push_back(Message::Up(round, settled));
                }
                Message::Down(round, settled) => self.home(0, round, settled),
                Message::Over(_) | Message::Landed(_) => unreachable!(),
            }
        } else {
            let coarse = &mut self.coarse[level - 1];
            match message {
                Message::Over(alarms) => coarse.overflowed(now, alarms, &mut out),
                Message::Fall(alarms, last) => coarse.fell(now, alarms, last, &mut out),
                Message::Landed(slot) => coarse.landed(now, slot, &mut out),
                Message::Loaded(read) => coarse.loaded(now, read, &mut out),
                Message::Homed => coarse.homed(true),
                Message::Up(round, below) => {
                    let settled = coarse.settled(round, below);
                    if level + 1 < LEVELS {
                        self.mail[level + 1].push_back(Message::Up(round, settled));
                    } else {
                        self.mail[level].push_back(Message::Down(round, settled));
                    }
                }
                Message::Down(round, settled) => self.home(level, round, settled),
                Message::Arm(_) | Message::Returned(..) => unreachable!(),
            }
        }
        self.perform(level, out);
    }

    pub(super) fn home(&mut self, level: usize, round: u64, settled: i64) {
        let mut out = Vec::new();
        let changes = match level {
            0 => self.finest.lap(round, self.marked, settled),
            _ => self.coarse[level - 1].lap(round, self.marked, settled, &mut out),
        };
        self.perform(level, out);
        let homes = &mut self.views.homes[level];
        for id in changes.removes {
            homes.remove(&id);
        }
        homes.extend(
            changes
                .writes
                .into_iter()
                .map(|(id, bytes)| (id, bytes.into())),
        );
        self.mail[level].push_back(Message::Homed);
        if level > 0 {
            self.mail[level - 1].push_back(Message::Down(round, settled));
        } else if round == self.round {
            self.views.mark = self.covering;
            self.marked = round;
            self.synced = self.views.clone();
        }
    }

    /// Every level looks at the clock, the coarsest first.
    pub(super) fn look(&mut self) {
        for level in (0..LEVELS).rev() {
            let mut out = Vec::new();
            match level {
                0 => drop(self.finest.advance(self.moment(), &mut out)),
                _ => self.coarse[level - 1].advance(self.now, &mut out),
            }
            self.perform(level, out);
        }
    }

    pub(super) fn level_fails(&mut self, level: usize) {
        let found: Vec<Home> = self.views.homes[level].keys().copied().collect();
        self.mail[level].clear();
        let alarms: Vec<Alarm> = self.log[self.views.mark..]
            .iter()
            .flat_map(alarms_of)
            .collect();
        let mut out = Vec::new();
        if level == 0 {
            self.finest = Finest::new(WALL_LEVELS, found);
            self.finest
                .arm(self.moment(), OWNER, alarms, true, &mut out);
            self.finest.entered(self.moment(), OWNER, &mut out);
            self.finest.advance(self.moment(), &mut out);
        } else {
            let mut coarse = Coarse::new(level as u8, WALL_LEVELS, found).in_parts_of(2);
            coarse.overflowed(self.now, alarms, &mut out);
            self.coarse[level - 1] = coarse;
        }
        self.perform(level, out);
        for above in level + 1..LEVELS {
            let mut out = Vec::new();
            self.coarse[above - 1].again(self.now, &mut out);
            self.perform(above, out);
        }
        self.act(Partition::wheel_began);
    }
}

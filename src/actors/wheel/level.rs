//! What the shells of all levels share: where they are, when they sleep, how they begin.

use std::sync::Arc;

use actix::{Actor, Context};
use tokio::sync::oneshot;

use super::keeper::LevelDied;
use super::{AlarmEvent, LevelLink, Wheel, levels, lock};
use crate::actors::checkpoint::Pressure;
use crate::actors::directory::{DirectoryActor, StartOwner};
use crate::actors::nap::Nap;
use crate::actors::stats::ActorStats;
use crate::actors::store::{FindHomes, LoadHomes, WriteHomes};
use crate::actors::{House, Link};
use crate::domain::alarm::{Alarm, AlarmClock};
use crate::domain::entry::AppliedEntry;
use crate::domain::id::{LogPosition, OwnerId, OwnerSequence};
use crate::domain::partition::alarms_of;
use crate::domain::wheel::chunk::RowId;
use crate::domain::wheel::{Changes, Moment};
use crate::log::{LogReader, Scanned};
use crate::store::{RowChange, RowKey, Tree, layout};

/// Where a level is, and whom it talks to.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) clock: AlarmClock,
    pub(super) level: u8,
    pub(super) house: House,
    pub(super) directory: Link<DirectoryActor>,
    pub(super) stats: Arc<ActorStats>,
    /// It had an earlier life, whose memory is lost.
    pub(super) again: bool,
    /// Tells the keeper when it is dropped, which is all it does.
    pub(super) _life: Life,
}

/// Tells the keeper when its level failed: a panic drops the actor, and nothing else happens.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) wheel: Wheel,
    pub(super) clock: AlarmClock,
    pub(super) level: u8,
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Some(keeper) = &*lock(&self.wheel.shared.keeper) {
            keeper.tell(LevelDied {
                clock: self.clock,
                level: self.level,
            });
        }
    }
}

impl Place {
    pub(super) fn wheel(&self) -> &Wheel {
        &self.house.wheel
    }

    pub(super) fn levels(&self) -> u8 {
        levels(self.clock)
    }

    /// Only what follows the wall clock has homes.
    pub(super) fn has_homes(&self) -> bool {
        self.clock == AlarmClock::Wall
    }

    pub(super) fn owner(&self) -> OwnerId {
        OwnerId::wheel_level(self.level)
    }

    pub(super) fn now(&self) -> Moment {
        let now = self.house.clock.now();
        let clock_ms = match self.clock {
            AlarmClock::Wall => now.wall.0,
            AlarmClock::Monotonic => i64::try_from(now.monotonic.0).unwrap_or(i64::MAX),
        };
        Moment {
            clock_ms,
            monotonic_ms: now.monotonic.0,
        }
    }

    pub(super) fn load(&self, ids: &[RowId], reply: LevelLink) {
        self.house.store.tell(LoadHomes {
            owner: self.owner(),
            ids: ids.iter().map(|id| id.pack()).collect(),
            reply,
        });
    }

    /// Hands over homes, the head with them: it is there so that the views can count the rows.
    pub(super) fn write(&self, round: u64, changes: Changes, reply: LevelLink) {
        let changes = row_changes(self.owner(), round, changes);
        self.house.store.tell(WriteHomes { changes, reply });
    }

    pub(super) fn unreadable(&self, id: RowId) {
        tracing::error!(
            target: "waterwheel::wheel",
            level = self.level, slot = id.slot, chunk = id.chunk,
            "a home of timers does not read: it is skipped, and partitions arm what is pending again; \
             a restart of the broker rebuilds the views"
        );
        self.wheel().lost();
    }

    pub(super) fn start_owner(&self, owner: OwnerId) {
        self.directory.tell(StartOwner { owner });
    }

    pub(super) fn tell_owner(&self, owner: OwnerId, event: AlarmEvent) {
        if let Some(link) = self.wheel().owner(owner) {
            link.alarm(event);
        }
    }

    pub(super) fn count_unhomed(&self, count: usize) {
        if self.has_homes() && self.wheel().count_unhomed(self.level, count) {
            self.house.checkpoint.tell(Pressure { due: true });
        }
    }

    /// What the level begins with.
    pub(super) fn begin(&self) -> impl Future<Output = Beginning> + use<> {
        let (house, owner, again) = (self.house.clone(), self.owner(), self.again);
        let has_homes = self.has_homes();
        async move {
            if !has_homes {
                return Beginning::default();
            }
            let (reply, found) = oneshot::channel();
            house.store.tell(FindHomes { owner, reply });
            let Ok(found) = found.await else {
                return Beginning::default();
            };
            let (ids, mark) = match found {
                Ok(found) => found,
                Err(error) => {
                    tracing::error!(target: "waterwheel::wheel", error, "the homes of timers do not read");
                    house.wheel.lost();
                    return Beginning::default();
                }
            };
            let reader = house.reader.clone();
            let alarms = if again {
                // Reading the log blocks: not on an arbiter.
                tokio::task::spawn_blocking(move || alarms_behind(&reader, mark))
                    .await
                    .unwrap_or_default()
            } else {
                Vec::new()
            };
            Beginning {
                homes: ids.into_iter().map(RowId::unpack).collect(),
                alarms,
            }
        }
    }
}

/// The rows of a level's changes.
pub(crate) fn row_changes(owner: OwnerId, round: u64, changes: Changes) -> Vec<RowChange> {
    if changes.writes.is_empty() && changes.removes.is_empty() {
        return Vec::new();
    }
    let sequence = OwnerSequence(0);
    let row = |id: RowId, value: Option<Vec<u8>>| RowChange {
        tree: Tree::Wheel,
        key: RowKey {
            owner,
            kind: layout::WHEEL_HOME,
            id: id.pack(),
        },
        value: value.map(|bytes| (sequence, bytes.into())),
    };
    let head = RowChange {
        tree: Tree::Wheel,
        key: RowKey::head(owner),
        value: Some((sequence, round.to_le_bytes().to_vec().into())),
    };
    // A number may be taken again by the very lap that frees it: removed first.
    let removes = changes.removes.into_iter().map(|id| row(id, None));
    let writes = changes
        .writes
        .into_iter()
        .map(|(id, bytes)| row(id, Some(bytes)));
    removes.chain(writes).chain([head]).collect()
}

/// What a level begins with.
#[derive(Debug, Default)]
pub(super) struct Beginning {
    pub(super) homes: Vec<RowId>,
    /// Of a level that failed: whatever may have been in its memory without a home.
    pub(super) alarms: Vec<Alarm>,
}

fn alarms_behind(reader: &LogReader, mark: LogPosition) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    for scanned in reader.scan(mark, None) {
        if let Scanned::Entry {
            header,
            place,
            facts,
            body,
        } = scanned
            // Below are the directory, the log, and what has no partition's entries.
            && header.owner >= OwnerId::FIRST_FREE
        {
            let body = body.unwrap_or_default();
            alarms.extend(alarms_of(&AppliedEntry {
                header,
                place,
                body,
                facts,
            }));
        }
    }
    alarms
}

/// When a level wakes, and by what it told: the clock it follows, and the monotonic one.
pub(super) type Wake = (Option<i64>, Option<u64>);

/// A level's alarm clock of its own.
#[derive(Debug, Default)]
pub(super) struct Sleep {
    until: Wake,
    nap: Nap,
}

/// A shell that sleeps until its next non-empty slot.
pub(super) trait Sleeps: Actor<Context = Context<Self>> {
    fn place(&self) -> &Place;
    fn sleep(&mut self) -> &mut Sleep;
    fn next_wake(&self) -> Wake;
    fn wake(&mut self, ctx: &mut Context<Self>);

    /// Sleeps until the next wake-up it knows of.
    fn sleep_on(&mut self, ctx: &mut Context<Self>) {
        let wake = self.next_wake();
        if self.sleep().nap.is_set() {
            if self.sleep().until == wake {
                return;
            }
            self.rouse(ctx);
        }
        let place = self.place();
        let clock = &place.house.clock;
        let by_clock = wake.0.map(|at| clock.until(place.clock, at));
        let by_monotonic = wake.1.map(|at| {
            let at = i64::try_from(at).unwrap_or(i64::MAX);
            clock.until(AlarmClock::Monotonic, at)
        });
        let Some(wait) = by_clock.into_iter().chain(by_monotonic).min() else {
            return;
        };
        let sleep = self.sleep();
        sleep.until = wake;
        sleep.nap.set(
            ctx,
            wait,
            |actor| &mut actor.sleep().nap,
            |actor, ctx| {
                actor.place().stats.woke();
                actor.wake(ctx);
            },
        );
    }

    /// Forgets how long it meant to sleep.
    fn rouse(&mut self, ctx: &mut Context<Self>) {
        self.sleep().nap.clear(ctx);
    }
}

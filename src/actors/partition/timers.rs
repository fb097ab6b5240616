//! What reaches a partition about delayed records: from the wheel, from sessions, from the cleaner.

use actix::{Context, Handler};

use super::PartitionActor;
use crate::actors::cleaner::Inspected;
use crate::actors::reply::ReplyTo;
use crate::actors::wheel::{AlarmEvent, Returned};
use crate::domain::alarm::AlarmClock;
use crate::domain::entry::EntryPlace;
use crate::domain::id::{LogPosition, RecordNumber};
use crate::domain::ledger::SegmentNumber;
use crate::domain::partition::TimerLimits;
use crate::domain::partition::delayed::{ListTimers, TimerCommand};
use crate::domain::partition::publication::PublishPlace;
use crate::domain::rejection::Rejection;
use crate::domain::time::WallMs;
use crate::log::{Piece, Wish};

tells!(BodiesLoaded, AskTimer, AskTimers, Inspect);

impl Handler<AlarmEvent> for PartitionActor {
    type Result = ();

    fn handle(&mut self, message: AlarmEvent, ctx: &mut Self::Context) {
        self.stats.handled();
        let mut effects = Vec::new();
        match message {
            AlarmEvent::Due {
                clock: AlarmClock::Wall,
                batch,
                alarms,
            } => self.machine.due(batch, &alarms, &mut effects),
            AlarmEvent::Armed {
                clock: AlarmClock::Wall,
                count,
            } => self.machine.armed(count, &mut effects),
            AlarmEvent::Began {
                clock: AlarmClock::Wall,
            } => self.machine.wheel_began(&mut effects),
            AlarmEvent::Lost => self.machine.lost(&mut effects),
            // A partition arms nothing on the other clock: whatever comes from there is settled.
            AlarmEvent::Due { clock, batch, .. } => {
                let returned = Returned {
                    owner: self.owner,
                    batch,
                    again_ms: None,
                };
                self.house.wheel.returned(clock, returned);
            }
            AlarmEvent::Near { alarms } => self.machine.near(&alarms, &mut effects),
            AlarmEvent::Armed { .. } | AlarmEvent::Began { .. } => {}
        }
        self.perform(effects, ctx);
    }
}

/// A row of stored bodies was read.
#[derive(Debug)]
pub struct BodiesLoaded {
    /// Which.
    pub first: RecordNumber,
    /// The row; empty where there is none.
    pub row: Result<Vec<u8>, Rejection>,
}

impl Handler<BodiesLoaded> for PartitionActor {
    type Result = ();

    fn handle(&mut self, message: BodiesLoaded, ctx: &mut Self::Context) {
        self.stats.handled();
        let mut effects = Vec::new();
        let row = message.row.as_deref().map_err(Clone::clone);
        self.machine.bodies_loaded(message.first, row, &mut effects);
        self.perform(effects, ctx);
    }
}

/// Ask about one delayed record.
#[derive(Debug)]
pub struct AskTimer {
    /// Which.
    pub number: RecordNumber,
    /// What.
    pub command: TimerCommand,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

impl Handler<AskTimer> for PartitionActor {
    type Result = ();

    fn handle(&mut self, message: AskTimer, ctx: &mut Self::Context) {
        self.stats.handled();
        let AskTimer {
            number,
            command,
            reply,
        } = message;
        let token = self.token(reply, None);
        let (now, limits) = (self.house.clock.now().wall, self.timer_limits());
        let mut effects = Vec::new();
        self.machine
            .timer(token, number, command, now, limits, &mut effects);
        self.perform(effects, ctx);
    }
}

/// Ask which delayed records wait.
#[derive(Debug)]
pub struct AskTimers {
    /// Which are wanted.
    pub list: ListTimers,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

impl Handler<AskTimers> for PartitionActor {
    type Result = ();

    fn handle(&mut self, message: AskTimers, ctx: &mut Self::Context) {
        self.stats.handled();
        let token = self.token(message.reply, None);
        let mut effects = Vec::new();
        self.machine.list_timers(token, message.list, &mut effects);
        self.perform(effects, ctx);
    }
}

/// Say whether a segment holds something that is stored and needed, though no offset shows it.
#[derive(Debug, Clone, Copy)]
pub struct Inspect {
    /// The segment.
    pub segment: SegmentNumber,
    /// Where it begins.
    pub from: LogPosition,
    /// Where it ends.
    pub end: LogPosition,
}

impl Handler<Inspect> for PartitionActor {
    type Result = ();

    fn handle(&mut self, message: Inspect, _: &mut Context<Self>) {
        self.stats.handled();
        self.house.cleaner.tell(Inspected {
            owner: self.owner,
            segment: message.segment,
            needed: self.machine.needs(message.from, message.end),
        });
    }
}

impl PartitionActor {
    pub(super) fn read_ahead(&self, near: &[(PublishPlace, WallMs)]) {
        let wishes: Vec<Wish> = near
            .iter()
            .map(|(place, due)| Wish {
                piece: Piece {
                    place: EntryPlace {
                        position: place.position,
                        length: place.length,
                    },
                    index: place.index,
                    of: place.of,
                },
                due_ms: due.0,
            })
            .collect();
        self.house.ahead.wish(&wishes);
    }

    pub(super) fn timer_limits(&self) -> TimerLimits {
        self.house.timer_limits.of(self.id.topic)
    }
}

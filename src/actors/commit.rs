//! The commit actor: owns the log, on a thread of its own.
//!
//! Group commit is its mailbox: a notice to itself queues behind whatever has arrived, so one write
//! takes everything that came while the previous one was on its way to the disk. There is no timer to
//! tune. After a flush every touched owner gets its `Applied` first, and only then the receipts go to
//! the sessions: whoever was acknowledged reads his own write.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, AsyncContext, Context, Handler};
use tokio::sync::oneshot;

use super::admission::Permit;
use super::checkpoint::{Began, CheckpointActor, Pressure};
use super::cleaner::{CleanerActor, Flushed};
use super::directory::{DirectoryActor, StartOwner};
use super::reply::{Answer, ReplyTo};
use super::stats::ActorStats;
use super::vigil::Watched;
use super::{Applied, Clock, CrashPoints, Fenced, Link, OwnerLink, WriteRows};
use crate::domain::commit::{Commit, Counters, Need, Plan, Refused, Run};
use crate::domain::entry::{AppliedEntry, Author, Draft, EntryKind, PayloadFacts};
use crate::domain::id::{Incarnation, LogPosition, OwnerId};
use crate::domain::ledger::SegmentNumber;
use crate::domain::rejection::Rejection;
use crate::log::{Log, LogError, Room, SegmentNumber as Segment, TailCache};

tells!(
    Introduce,
    Begin,
    Forget,
    Persist,
    FlushNow,
    BeginCheckpoint,
    NoteMark,
    Recycle,
    Close
);

/// With nothing to write for this long, an empty flush closes the tail: what was acknowledged last can
/// then be told from a torn write.
const IDLE_CLOSE: Duration = Duration::from_millis(50);

/// Whoever waits for a run, and the memory admitted for it, which is given back when the bytes have left
/// the queue.
#[derive(Debug)]
pub struct Ticket {
    /// Where the receipt goes.
    pub reply: ReplyTo,
    /// The admitted bytes.
    pub permit: Option<Permit>,
}

/// What is shared with status and admission.
#[derive(Debug, Default)]
pub struct LogGauge {
    /// Bytes appended by this process, as framed and padded.
    pub written_bytes: std::sync::atomic::AtomicU64,
    /// Segments in the directory.
    pub segments: std::sync::atomic::AtomicU64,
    /// Bytes between the first and the last position kept.
    pub log_bytes: std::sync::atomic::AtomicU64,
    /// Why the log is sealed, if it is.
    pub sealed: std::sync::Mutex<Option<String>>,
}

/// The sequencer.
pub struct CommitActor {
    machine: Commit<Ticket>,
    log: Log,
    cache: Arc<TailCache>,
    clock: Clock,
    gauge: Arc<LogGauge>,
    stats: Arc<ActorStats>,
    crash: CrashPoints,
    owners: HashMap<OwnerId, OwnerLink>,
    others: Option<Introduce>,
    flush_noticed: bool,
    last_flush: Instant,
    tail_open: bool,
    closing_armed: bool,
    since_mark: u64,
    checkpoint_bytes: u64,
    pressed: bool,
    /// Where the first segment kept begins.
    first: LogPosition,
    _watched: Watched,
}

impl std::fmt::Debug for CommitActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommitActor").finish_non_exhaustive()
    }
}

/// What the commit actor is made of.
pub struct CommitParts {
    /// The sequencer, refilled.
    pub machine: Commit<Ticket>,
    /// The log, recovered.
    pub log: Log,
    /// The cache of its tail.
    pub cache: Arc<TailCache>,
    /// The clocks.
    pub clock: Clock,
    /// What status shows.
    pub gauge: Arc<LogGauge>,
    /// Counters.
    pub stats: Arc<ActorStats>,
    /// Crash points.
    pub crash: CrashPoints,
    /// Log bytes after which views are written.
    pub checkpoint_bytes: u64,
    /// Says when it is gone.
    pub watched: Watched,
}

impl CommitActor {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: CommitParts) -> Self {
        let mut actor = Self {
            machine: parts.machine,
            log: parts.log,
            cache: parts.cache,
            clock: parts.clock,
            gauge: parts.gauge,
            stats: parts.stats,
            crash: parts.crash,
            owners: HashMap::new(),
            others: None,
            flush_noticed: false,
            last_flush: Instant::now(),
            tail_open: true,
            closing_armed: false,
            since_mark: 0,
            checkpoint_bytes: parts.checkpoint_bytes,
            pressed: false,
            first: LogPosition(0),
            _watched: parts.watched,
        };
        actor.show();
        actor
    }

    fn show(&mut self) {
        use std::sync::atomic::Ordering::Relaxed;
        let segments = self.log.segments();
        self.first = segments
            .first()
            .map_or(LogPosition(0), |segment| segment.base);
        self.gauge.segments.store(segments.len() as u64, Relaxed);
        self.gauge
            .log_bytes
            .store(self.log.end().0.saturating_sub(self.first.0), Relaxed);
    }

    fn notice(&mut self, ctx: &mut Context<Self>) {
        if !self.flush_noticed && !self.machine.is_idle() {
            self.flush_noticed = true;
            ctx.notify(FlushNow);
        }
    }

    fn room(&self) -> Need {
        let room = self.log.free_room();
        if room.normal_bytes > 0 {
            Need::Payload
        } else if room.decisions_bytes > 0 {
            Need::Decision
        } else {
            Need::Housekeeping
        }
    }

    fn flush(&mut self) {
        let mut refused = Vec::new();
        let wall = self.clock.now().wall;
        let (capacity, room) = (self.log.append_capacity(), self.room());
        if let Some(plan) = self.machine.plan(wall, capacity, room, &mut refused) {
            self.write(plan);
        }
        // Behind what was applied: who is refused goes back to a state that is up to date.
        self.refuse(refused);
    }

    fn write(&mut self, plan: Plan<Ticket>) {
        let room = match plan.need {
            Need::Payload => Room::Normal,
            Need::Decision => Room::Decisions,
            Need::Housekeeping => Room::Housekeeping,
        };
        self.crash.pass("mid-flush");
        match self.log.append(&plan.entries, room) {
            Ok(places) => self.landed(plan, &places),
            Err(LogError::Full { .. }) => {
                let (tickets, owners, why) = self.machine.not_written(plan, &Rejection::DiskFull);
                for ticket in tickets {
                    ticket.reply.refuse(why.clone());
                }
                self.tell_fenced(owners, &why);
            }
            Err(error) => self.seal(&error, plan),
        }
    }

    fn landed(&mut self, plan: Plan<Ticket>, places: &[crate::domain::entry::EntryPlace]) {
        self.crash.pass("after-flush");
        self.last_flush = Instant::now();
        self.tail_open = true;
        for (entry, place) in plan.entries.iter().zip(places) {
            let framed = u64::from(place.length);
            self.since_mark += framed;
            self.gauge
                .written_bytes
                .fetch_add(framed, std::sync::atomic::Ordering::Relaxed);
            if entry.header.kind == EntryKind::Payload {
                self.cache.insert(*place, entry.body.clone());
            }
        }
        let held = self.log.end().0.saturating_sub(self.first.0);
        self.gauge
            .log_bytes
            .store(held, std::sync::atomic::Ordering::Relaxed);
        // A mark alone is nothing the views have to catch up with.
        let press = plan
            .entries
            .iter()
            .any(|entry| entry.header.owner != OwnerId::LOG);
        let (applied, tickets) = self.machine.flushed(plan, places);
        let flushed = flushed(&applied);
        // A coordinator answers whoever decided, who may look for it at once: it is told last.
        let decides = |owner: &OwnerId| {
            let link = self.owners.get(owner);
            matches!(link, Some(OwnerLink::Coordinator(_)))
        };
        let (last, first): (Vec<_>, Vec<_>) =
            applied.into_iter().partition(|(owner, _)| decides(owner));
        for (owner, entries) in first.into_iter().chain(last) {
            if owner == OwnerId::LOG {
                continue;
            }
            match (self.owners.get(&owner), &self.others) {
                (Some(link), _) => link.tell(Applied(entries)),
                // It folds these from the log when it starts.
                (None, Some(others)) => others.directory.tell(StartOwner { owner }),
                (None, None) => {}
            }
        }
        for (ticket, receipt) in tickets {
            drop(ticket.permit);
            ticket.reply.answer(Answer::Stored {
                receipt,
                repeat: false,
            });
        }
        // Nobody waits for this: waking another thread comes last.
        if let Some(others) = &self.others {
            others.cleaner.tell(flushed);
        }
        if press {
            self.press();
        }
    }

    /// Lets the checkpoint actor know that there is something to write, once per round.
    fn press(&mut self) {
        let due = self.since_mark >= self.checkpoint_bytes;
        if let Some(others) = &self.others
            && (due || !self.pressed)
        {
            self.pressed = true;
            others.checkpoint.tell(Pressure { due });
            if due {
                self.since_mark = 0;
            }
        }
    }

    fn seal(&mut self, error: &LogError, plan: Plan<Ticket>) {
        tracing::error!(
            target: "waterwheel::log",
            %error,
            "a write to the log failed: it is sealed, nothing is accepted any more, reading goes on; \
             mend the disk and restart the broker"
        );
        *self
            .gauge
            .sealed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error.to_string());
        let mut refused = Vec::new();
        self.machine.seal(&mut refused);
        let (tickets, _, _) = self.machine.not_written(plan, &Rejection::LogSealed);
        for ticket in tickets {
            ticket.reply.refuse(Rejection::LogSealed);
        }
        self.refuse(refused);
        for link in self.owners.values() {
            link.tell(Fenced {
                incarnation: Incarnation(u32::MAX),
                rejection: Rejection::LogSealed,
            });
        }
    }

    fn refuse(&mut self, refused: Vec<Refused<Ticket>>) {
        let mut owners = BTreeSet::new();
        for Refused {
            author,
            ticket,
            rejection,
        } in refused
        {
            ticket.reply.refuse(rejection.clone());
            if owners.insert(author.owner)
                && let Some(link) = self.owners.get(&author.owner)
            {
                link.tell(Fenced {
                    incarnation: author.incarnation,
                    rejection,
                });
            }
        }
    }

    fn tell_fenced(&self, owners: BTreeSet<OwnerId>, rejection: &Rejection) {
        for owner in owners {
            if let Some(link) = self.owners.get(&owner) {
                link.tell(Fenced {
                    incarnation: Incarnation(u32::MAX),
                    rejection: rejection.clone(),
                });
            }
        }
    }

    fn arm_closing(&mut self, ctx: &mut Context<Self>) {
        if self.closing_armed || !self.tail_open || self.log.sealed().is_some() {
            return;
        }
        self.closing_armed = true;
        let wait = IDLE_CLOSE.saturating_sub(self.last_flush.elapsed());
        ctx.run_later(wait.max(Duration::from_millis(1)), |actor, ctx| {
            actor.closing_armed = false;
            if actor.last_flush.elapsed() >= IDLE_CLOSE && actor.machine.is_idle() {
                actor.close_tail();
            } else {
                actor.arm_closing(ctx);
            }
        });
    }

    fn close_tail(&mut self) {
        self.tail_open = false;
        if let Err(error) = self.log.close_tail() {
            let mut refused = Vec::new();
            tracing::error!(target: "waterwheel::log", %error, "closing the tail failed: the log is sealed");
            *self
                .gauge
                .sealed
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error.to_string());
            self.machine.seal(&mut refused);
            self.refuse(refused);
        }
        self.show();
    }
}

/// What the cleaner keeps of a flush.
fn flushed(applied: &BTreeMap<OwnerId, Vec<AppliedEntry>>) -> Flushed {
    let entries = || applied.values().flatten();
    Flushed {
        headers: entries().map(|entry| (entry.place, entry.header)).collect(),
        deleted: entries()
            .filter(|entry| entry.header.kind == EntryKind::Delete)
            .filter_map(|entry| rmp_serde::from_slice(&entry.body).ok())
            .collect(),
    }
}

impl Actor for CommitActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.stats.capacity);
        self.arm_closing(ctx);
    }
}

/// The actors that hear of flushes.
#[derive(Debug, Clone)]
pub struct Introduce {
    /// Starts owners.
    pub directory: Link<DirectoryActor>,
    /// Writes views.
    pub checkpoint: Link<CheckpointActor>,
    /// Recycles.
    pub cleaner: Link<CleanerActor>,
}

impl Handler<Introduce> for CommitActor {
    type Result = ();

    fn handle(&mut self, message: Introduce, _: &mut Self::Context) {
        self.stats.handled();
        self.others = Some(message);
    }
}

/// An owner begins a life.
#[derive(Debug)]
pub struct Begin {
    /// The owner.
    pub owner: OwnerId,
    /// Its mailbox.
    pub link: OwnerLink,
    /// What it may write under, and up to where it has to fold. What it gets as `Applied` afterwards
    /// follows that without a gap.
    pub reply: oneshot::Sender<Life>,
}

/// An owner's life as the sequencer sees it.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    /// Who it may speak as.
    pub author: Author,
    /// Fold up to here.
    pub counters: Counters,
    /// Everything of it lies before this position.
    pub end: LogPosition,
}

impl Handler<Begin> for CommitActor {
    type Result = ();

    fn handle(&mut self, message: Begin, _: &mut Self::Context) {
        self.stats.handled();
        let mut refused = Vec::new();
        let (incarnation, counters) = self.machine.begin(message.owner, &mut refused);
        for Refused {
            ticket, rejection, ..
        } in refused
        {
            ticket.reply.refuse(rejection);
        }
        self.owners.insert(message.owner, message.link);
        let author = Author {
            owner: message.owner,
            incarnation,
        };
        let _ = message.reply.send(Life {
            author,
            counters,
            end: self.log.end(),
        });
    }
}

/// An owner is gone.
#[derive(Debug)]
pub struct Forget {
    /// The owner.
    pub owner: OwnerId,
}

impl Handler<Forget> for CommitActor {
    type Result = ();

    fn handle(&mut self, message: Forget, _: &mut Self::Context) {
        self.stats.handled();
        self.owners.remove(&message.owner);
    }
}

/// Make these durable as one tied run.
#[derive(Debug)]
pub struct Persist {
    /// Who asks.
    pub author: Author,
    /// The entries.
    pub drafts: Vec<(OwnerId, Draft)>,
    /// What of the disk may be used.
    pub need: Need,
    /// Whoever waits.
    pub ticket: Ticket,
}

impl Handler<Persist> for CommitActor {
    type Result = ();

    fn handle(&mut self, message: Persist, ctx: &mut Self::Context) {
        self.stats.handled();
        let Persist {
            author,
            drafts,
            need,
            ticket,
        } = message;
        let bytes_max = self.log.append_capacity();
        if let Err(refused) = self.machine.enqueue(
            Run {
                author,
                drafts,
                need,
                ticket,
            },
            bytes_max,
        ) {
            self.refuse(vec![refused]);
        }
        self.notice(ctx);
    }
}

/// Write what has arrived.
#[derive(Debug)]
struct FlushNow;

impl Handler<FlushNow> for CommitActor {
    type Result = ();

    fn handle(&mut self, _: FlushNow, ctx: &mut Self::Context) {
        self.flush_noticed = false;
        self.flush();
        self.notice(ctx);
        self.arm_closing(ctx);
    }
}

/// Begin a round of the checkpoint: every owner touched since the last is told to write its rows.
#[derive(Debug)]
pub struct BeginCheckpoint {
    /// The round.
    pub round: u64,
    /// Owners that did not answer in the last round.
    pub again: BTreeSet<OwnerId>,
    /// The last round that was marked.
    pub marked: u64,
}

impl Handler<BeginCheckpoint> for CommitActor {
    type Result = ();

    fn handle(&mut self, message: BeginCheckpoint, _: &mut Self::Context) {
        self.stats.handled();
        let Some(others) = &self.others else { return };
        let mut owners = self.machine.take_touched();
        owners.extend(message.again);
        owners.remove(&OwnerId::LOG);
        self.since_mark = 0;
        self.pressed = false;
        let others = others.clone();
        for owner in &owners {
            // A link may have come in after its owner was deleted: then nobody is behind it.
            match self.owners.get(owner).filter(|link| link.is_alive()) {
                Some(link) => link.tell(WriteRows {
                    round: message.round,
                    marked: message.marked,
                }),
                // It does not answer this round, so the mark stays; the next finds it running.
                None => others.directory.tell(StartOwner { owner: *owner }),
            }
        }
        let position = self.log.end();
        others.checkpoint.tell(Began { position, owners });
        self.show();
    }
}

/// The views hold everything before this position: say so in the log too.
#[derive(Debug)]
pub struct NoteMark(pub LogPosition);

impl Handler<NoteMark> for CommitActor {
    type Result = ();

    fn handle(&mut self, message: NoteMark, ctx: &mut Self::Context) {
        self.stats.handled();
        let author = Author {
            owner: OwnerId::LOG,
            incarnation: Incarnation(0),
        };
        let draft = Draft {
            kind: EntryKind::Mark,
            numbers: 0,
            offsets: 0,
            body: bytes::Bytes::copy_from_slice(&message.0.0.to_le_bytes()).into(),
            facts: PayloadFacts::default(),
        };
        let ticket = Ticket {
            reply: ReplyTo::nobody(),
            permit: None,
        };
        let drafts = vec![(OwnerId::LOG, draft)];
        let run = Run {
            author,
            drafts,
            need: Need::Housekeeping,
            ticket,
        };
        // Only a hint: a sealed log goes without.
        let _ = self.machine.enqueue(run, self.log.append_capacity());
        self.notice(ctx);
    }
}

/// Recycle a segment in which nothing is needed.
#[derive(Debug)]
pub struct Recycle(pub SegmentNumber);

impl Handler<Recycle> for CommitActor {
    type Result = ();

    fn handle(&mut self, message: Recycle, _: &mut Self::Context) {
        self.stats.handled();
        self.crash.pass("mid-recycle");
        let Some(others) = &self.others else { return };
        let (cleaner, segment) = (others.cleaner.clone(), message.0);
        let retired = move || {
            tracing::debug!(target: "waterwheel::log", segment, "recycled");
            cleaner.tell(super::cleaner::Recycled(segment));
        };
        // Where a reader holds it, the cleaner asks again. So it does where it has left and is not put away
        // yet.
        if let Err(error) = self.log.retire(Segment(segment), retired) {
            tracing::info!(target: "waterwheel::log", segment, %error, "not recycled");
        }
        self.show();
    }
}

/// Stop: write what is queued, close the tail.
#[derive(Debug)]
pub struct Close {
    /// Told when it is done.
    pub reply: oneshot::Sender<()>,
}

impl Handler<Close> for CommitActor {
    type Result = ();

    fn handle(&mut self, message: Close, _: &mut Self::Context) {
        self.stats.handled();
        while !self.machine.is_idle() && self.log.sealed().is_none() {
            self.flush();
        }
        if self.log.sealed().is_none()
            && let Err(error) = self.log.stop()
        {
            tracing::error!(target: "waterwheel::log", %error, "stopping the log failed");
        }
        let _ = message.reply.send(());
    }
}

//! The only room that knows actix: shells without decisions.
//!
//! A shell receives, calls its machine, performs the effects. Between actors there are only tells, over
//! a [`Link`] that counts them; sessions and the console ask, with a [`reply::ReplyTo`]. Owners
//! (partitions, the directory) are the ones whose entries the log keeps: the commit actor puts what
//! became durable into their mailboxes before anybody is acknowledged.

/// Messages are told, never asked: who wants an answer says where it goes (`reply::ReplyTo`).
macro_rules! tells {
    ($($name:ty),+ $(,)?) => {
        $(impl ::actix::Message for $name {
            type Result = ();
        })+
    };
}

pub mod admission;
pub mod checkpoint;
pub mod cleaner;
pub mod commit;
pub mod convoy;
mod coordinators;
pub mod directory;
mod failures;
pub mod feed;
pub mod find;
pub mod group;
pub mod letters;
pub mod load;
mod nap;
pub mod opened;
pub mod partition;
pub mod reply;
pub mod stats;
pub mod store;
pub mod transaction;
pub mod vigil;
pub mod wheel;

use std::sync::Arc;

use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler, Message};

use self::checkpoint::CheckpointActor;
use self::cleaner::CleanerActor;
use self::commit::CommitActor;
use self::convoy::Convoys;
use self::directory::DirectoryActor;
use self::group::GroupActor;
use self::opened::OpenedBatches;
use self::partition::PartitionActor;
use self::stats::{ActorStats, Registry};
use self::store::StoreActor;
use self::transaction::CoordinatorActor;
use self::vigil::Vigil;
use self::wheel::{AlarmEvent, Wheel};
use crate::domain::alarm::AlarmClock;
use crate::domain::entry::{AppliedEntry, Author};
use crate::domain::id::{Incarnation, OwnerId, TopicId};
use crate::domain::partition::TimerLimits;
use crate::domain::rejection::Rejection;
use crate::domain::time::{MonotonicMs, Now, WallMs};
use crate::log::{LogReader, ReadAhead, ReadPool, TailCache};
use crate::store::RowChange;

tells!(Applied, Fenced, WriteRows, Restate);

/// An actor's address together with its counters.
#[derive(Debug)]
pub struct Link<A: Actor> {
    addr: Addr<A>,
    stats: Arc<ActorStats>,
}

impl<A: Actor> Clone for Link<A> {
    fn clone(&self) -> Self {
        Self {
            addr: self.addr.clone(),
            stats: Arc::clone(&self.stats),
        }
    }
}

impl<A: Actor> Link<A> {
    /// Ties an address to the counters its actor shares.
    #[must_use]
    pub fn new(addr: Addr<A>, stats: Arc<ActorStats>) -> Self {
        Self { addr, stats }
    }

    /// Puts a message into the mailbox, whatever its capacity: the one place that does. Every path it
    /// is used on is windowed elsewhere: by the bytes a session may have admitted, by one flush in
    /// flight, by one round of a checkpoint. To an actor that is gone it drops the message, and with it
    /// answers `Retry` to whoever waits.
    pub fn tell<M>(&self, message: M)
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        self.stats.told();
        self.addr.do_send(message);
    }

    /// Its counters.
    #[must_use]
    pub fn stats(&self) -> &ActorStats {
        &self.stats
    }

    /// Whether its actor lives.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.addr.connected()
    }

    /// The address.
    #[must_use]
    pub fn addr(&self) -> &Addr<A> {
        &self.addr
    }
}

/// What became durable, for its owner, in log order.
#[derive(Debug)]
pub struct Applied(pub Vec<AppliedEntry>);

/// The log refused something of this incarnation: all that is later from it is refused too. Go back to
/// the applied state and begin another.
#[derive(Debug)]
pub struct Fenced {
    /// Which life.
    pub incarnation: Incarnation,
    /// Why.
    pub rejection: Rejection,
}

impl Fenced {
    /// Whether it is the owner's present life, which `author` writes as, that has come to its end. There is
    /// none between two lives, and what an earlier one asked for is over already.
    #[must_use]
    pub fn ends(&self, author: Option<Author>) -> bool {
        author.is_some_and(|author| author.incarnation <= self.incarnation)
    }
}

/// Write what changed to the views, for this round of the checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct WriteRows {
    /// The round.
    pub round: u64,
    /// The last round that was marked: what was handed over up to and in it is durable.
    pub marked: u64,
}

/// Restate all rows in the log.
#[derive(Debug, Clone, Copy)]
pub struct Restate;

/// An owner's mailbox, whichever kind of actor it is. Groups and coordinators join here.
#[derive(Debug, Clone)]
pub enum OwnerLink {
    /// The directory.
    Directory(Link<DirectoryActor>),
    /// A partition lane.
    Partition(Link<PartitionActor>),
    /// A transaction coordinator.
    Coordinator(Link<CoordinatorActor>),
    /// A consumer group.
    Group(Link<GroupActor>),
}

impl OwnerLink {
    /// Whether its actor lives.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        match self {
            Self::Directory(link) => link.is_alive(),
            Self::Partition(link) => link.is_alive(),
            Self::Coordinator(link) => link.is_alive(),
            Self::Group(link) => link.is_alive(),
        }
    }

    /// Says something of its alarms to the owner; kinds of owners without alarms are not told.
    pub fn alarm(&self, event: AlarmEvent) {
        match self {
            Self::Directory(_) | Self::Coordinator(_) => {}
            Self::Partition(link) => link.tell(event),
            Self::Group(link) => link.tell(event),
        }
    }

    /// Tells the owner.
    pub fn tell<M>(&self, message: M)
    where
        M: Message<Result = ()> + Send + 'static,
        DirectoryActor: Handler<M>,
        PartitionActor: Handler<M>,
        CoordinatorActor: Handler<M>,
        GroupActor: Handler<M>,
    {
        match self {
            Self::Directory(link) => link.tell(message),
            Self::Partition(link) => link.tell(message),
            Self::Coordinator(link) => link.tell(message),
            Self::Group(link) => link.tell(message),
        }
    }
}

/// The standing actors and what is shared beside them.
#[derive(Clone)]
pub struct House {
    /// The sequencer.
    pub commit: Link<CommitActor>,
    /// The views.
    pub store: Link<StoreActor>,
    /// When views are written.
    pub checkpoint: Link<CheckpointActor>,
    /// What is recycled.
    pub cleaner: Link<CleanerActor>,
    /// The alarm clock.
    pub wheel: Wheel,
    /// Reads the log.
    pub reader: LogReader,
    /// Threads that read it for whoever must not wait.
    pub pool: Arc<ReadPool>,
    /// The log's most recent payloads.
    pub cache: Arc<TailCache>,
    /// Records that are about to be published, read before they are asked for.
    pub ahead: Arc<ReadAhead>,
    /// Batches that records are taken out of one by one.
    pub opened: Arc<OpenedBatches>,
    /// Groups that read the same, kept together.
    pub convoys: Arc<Convoys>,
    /// Counters of every actor.
    pub registry: Registry,
    /// The clocks.
    pub clock: Clock,
    /// Bounds of delayed records, by topic.
    pub timer_limits: TopicTimers,
    /// Settings the actors need.
    pub settings: Settings,
    /// Whether those that are not re-created live.
    pub vigil: Vigil,
}

impl House {
    /// Hands an owner's changed rows over for a round of the checkpoint.
    pub fn hand_over(&self, round: u64, owner: OwnerId, changes: Vec<RowChange>) {
        self.store.tell(store::Write(changes));
        self.checkpoint
            .tell(checkpoint::RowsWritten { round, owner });
    }
}

impl std::fmt::Debug for House {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("House").finish_non_exhaustive()
    }
}

/// Bounds of delayed records by topic, for whoever stores some: the directory keeps them up to date.
#[derive(Debug, Clone, Default)]
pub struct TopicTimers {
    broker: TimerLimits,
    topics: Arc<std::sync::RwLock<std::collections::HashMap<TopicId, TimerLimits>>>,
}

impl TopicTimers {
    /// The broker's own bounds, which hold for every topic.
    #[must_use]
    pub fn new(broker: TimerLimits) -> Self {
        Self {
            broker,
            ..Self::default()
        }
    }

    /// A topic's bounds; those of the broker hold beside them.
    pub fn set(&self, topic: TopicId, limits: TimerLimits) {
        let mut topics = self
            .topics
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if limits == TimerLimits::default() {
            topics.remove(&topic);
        } else {
            topics.insert(topic, limits);
        }
    }

    /// What holds in a topic.
    #[must_use]
    pub fn of(&self, topic: TopicId) -> TimerLimits {
        let topics = self
            .topics
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let own = topics.get(&topic).copied().unwrap_or_default();
        let least = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        TimerLimits {
            pending_max: least(own.pending_max, self.broker.pending_max),
            delay_max_ms: least(own.delay_max_ms, self.broker.delay_max_ms),
        }
    }
}

/// Settings the actors need; see the configuration for meaning and bounds.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Producers a partition keeps state for.
    pub producers_per_partition_max: u32,
    /// A snapshot larger than this does not fit a flush of the log.
    pub snapshot_bytes_max: u64,
    /// How long an unused producer's state is kept.
    pub producer_state_ms: u64,
    /// Messages a partition's mailbox takes from those that ask.
    pub partition_mailbox: usize,
    /// Limits of consumer groups.
    pub groups: crate::domain::group::Limits,
    /// Limits of transactions.
    pub transactions: crate::domain::transaction::Limits,
    /// Messages a standing actor's mailbox takes from those that ask.
    pub standing_mailbox: usize,
}

/// Ends the process at a named point: only for the crash test.
#[derive(Debug, Clone, Default)]
pub struct CrashPoints {
    point: Option<Arc<CrashPoint>>,
}

#[derive(Debug)]
struct CrashPoint {
    name: String,
    passes: std::sync::atomic::AtomicI64,
}

impl CrashPoints {
    /// Reads `NAME` or `NAME:N`: end at the Nth passing of the point, the first by default.
    #[must_use]
    pub fn parse(text: Option<&str>) -> Self {
        let point = text.map(|text| {
            let (name, passes) = text.split_once(':').unwrap_or((text, "1"));
            Arc::new(CrashPoint {
                name: name.to_owned(),
                passes: std::sync::atomic::AtomicI64::new(passes.parse().unwrap_or(1)),
            })
        });
        Self { point }
    }

    /// The process passes a point. If it is the one, it ends as by SIGKILL: nothing is flushed.
    pub fn pass(&self, name: &str) {
        if let Some(point) = &self.point
            && point.name == name
            && point
                .passes
                .fetch_sub(1, std::sync::atomic::Ordering::SeqCst)
                == 1
        {
            std::process::abort();
        }
    }
}

/// Both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: std::time::Instant,
    /// Milliseconds by which a test has moved the wall clock.
    moved_ms: Option<&'static std::sync::atomic::AtomicI64>,
}

impl Clock {
    /// Starts the monotonic clock.
    #[must_use]
    pub fn start() -> Self {
        Self {
            started: std::time::Instant::now(),
            moved_ms: None,
        }
    }

    /// A clock whose wall time is the system's moved by so many milliseconds, at any moment: for tests of
    /// what steps of the clock do.
    #[must_use]
    pub fn moved_by(moved_ms: &'static std::sync::atomic::AtomicI64) -> Self {
        Self {
            moved_ms: Some(moved_ms),
            ..Self::start()
        }
    }

    /// Reads both.
    #[must_use]
    pub fn now(&self) -> Now {
        let monotonic = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now {
            wall: WallMs(i64::try_from(self.wall().as_millis()).unwrap_or(i64::MAX)),
            monotonic: MonotonicMs(monotonic),
        }
    }

    /// Whether a test moves it.
    #[must_use]
    pub fn is_moved(&self) -> bool {
        self.moved_ms.is_some()
    }

    /// Since the Unix epoch; zero before it.
    fn wall(&self) -> std::time::Duration {
        let wall = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let Some(moved) = self.moved_ms else {
            return wall;
        };
        let moved = moved.load(std::sync::atomic::Ordering::SeqCst);
        let by = std::time::Duration::from_millis(moved.unsigned_abs());
        if moved < 0 {
            wall.saturating_sub(by)
        } else {
            wall.saturating_add(by)
        }
    }

    /// How long it is until a clock reads `ms`, to the microsecond; nothing if it does already.
    #[must_use]
    pub fn until(&self, clock: AlarmClock, ms: i64) -> std::time::Duration {
        let now = match clock {
            AlarmClock::Wall => self.wall(),
            AlarmClock::Monotonic => self.started.elapsed(),
        };
        std::time::Duration::from_millis(u64::try_from(ms).unwrap_or(0)).saturating_sub(now)
    }
}

/// Tells the directory when the actor that holds it is dropped without having been dismissed: it
/// failed, for a panic in a handler drops the actor and closes its address, and nothing else happens.
#[derive(Debug)]
pub struct Life {
    owner: OwnerId,
    directory: Link<DirectoryActor>,
    dismissed: bool,
}

impl Life {
    /// The life of an owner's actor.
    #[must_use]
    pub fn new(owner: OwnerId, directory: Link<DirectoryActor>) -> Self {
        Self {
            owner,
            directory,
            dismissed: false,
        }
    }

    /// The actor ends in good order.
    pub fn dismiss(&mut self) {
        self.dismissed = true;
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if !self.dismissed {
            self.directory.tell(directory::Died { owner: self.owner });
        }
    }
}

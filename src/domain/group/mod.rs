//! The machine of one consumer group: who is a member, who has which records, what is consumed.
//!
//! In: commands of sessions ([`Group::handle`]), records found ([`Group::offered`]), time
//! ([`Group::wake`]), the shape of topics, applied entries. Out: [`Effect`]s. Commands decide and ask for
//! entries; [`Group::apply`] alone makes progress.
//!
//! - G1 Nothing is lost: a record below a floor is settled or listed, and a listed one comes again, goes
//!   to the dead letters, or waits for its transaction.
//! - G2 No record is in two live leases.
//! - G3 In exclusive mode a partition's records are leased in order, through retries and from one member
//!   to the next; in key-ordered mode a key's are, one at a time.
//! - G4 What is answered as settled is durable, and is never leased again, but by a reset.
//! - G5 Whoever is no member (any more) settles nothing: leases and generations are never given twice.
//! - G6 Memory is bounded: by the window of each cursor, the list of each group, the credit of members.
//! - G7 Folding the log, or rows and the log behind them, gives the same applied state.
//! - G8 A partition that stays with its member does not pause while others move.
//!
//! What survives a crash: subscriptions, cursors with their floor, settled ranges and listed records.
//! Members and leases are memory: they end with the actor, and what was leased comes again.

pub mod assign;
pub mod command;
pub mod delta;
pub mod ranges;
pub mod rejection;
pub mod rows;
pub mod subscription;

mod apply;
mod attach;
mod cursor;
pub mod dead;
mod deliver;
mod describe;
mod find;
pub mod letters;
mod members;
mod pool;
mod reset;
mod settle;
mod stuck;
mod subscribe;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use self::command::{Answer, Command, CursorNumber, Effect, Lease, MemberEvent, TopicShape};
use self::cursor::Cursor;
use self::dead::Burial;
use self::members::Member;
use self::pool::Pool;
use self::ranges::RangeSet;
use self::rejection::GroupRejection;
use self::reset::Job;
use self::settle::{Asked, Pending};
use self::subscribe::{Making, Parked};
use self::subscription::SubscriptionSpec;
use super::entry::Draft;
use super::id::{LeaseId, MemberId, OwnerId, PartitionId, Token, TopicId};
use super::partition::Bounds;
use super::rejection::Rejection;
use super::time::{MonotonicMs, Now};

pub use self::delta::decision_draft;
pub use self::rows::Head;

/// Bounds of a group, from the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Members at most.
    pub members_max: u32,
    /// Subscriptions at most.
    pub subscriptions_max: u32,
    /// Bytes of a filter at most.
    pub filter_bytes_max: u32,
    /// Records listed at most, and leased one by one.
    pub listed_max: u32,
    /// Bytes a snapshot of the group may take: less than one flush.
    pub snapshot_bytes_max: u64,
    /// Records of one cursor found and not settled, at most.
    pub window_max: u64,
    /// How long a member may settle what it holds of a partition that moves on, in milliseconds.
    pub drain_ms: u64,
    /// How long a lane waits, at most, while higher ones are served, in milliseconds.
    pub ageing_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            members_max: 10_000,
            subscriptions_max: 1000,
            filter_bytes_max: 4096,
            listed_max: 150_000,
            snapshot_bytes_max: 7 << 20,
            window_max: 16_384,
            drain_ms: 1000,
            ageing_ms: 1000,
        }
    }
}

/// A subscription as the machine keeps it.
#[derive(Debug, Clone)]
struct Subscription {
    spec: SubscriptionSpec,
    cursors: BTreeSet<CursorNumber>,
    members: BTreeSet<MemberId>,
    /// Who serves whom: one pool for everybody in shared modes, one for each member in the others.
    pools: BTreeMap<MemberId, Pool>,
    /// New rules for it are on their way to the log.
    altering: Option<Altering>,
}

/// What waits for new rules of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Altering {
    /// Nothing does: they are of what comes next.
    Rules,
    /// Its cursors: they are looked through again by other rules, and stand still until these are there.
    Hand,
}

/// The pool everybody takes from.
const COMMON: MemberId = MemberId(0);

/// A lease as the machine keeps it.
#[derive(Debug, Clone)]
struct Held {
    cursor: CursorNumber,
    member: MemberId,
    first: u64,
    /// What of it is not settled.
    open: RangeSet,
    attempt: u16,
    deadline: MonotonicMs,
}

/// What is due at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A lease expires.
    Lease(LeaseId),
    /// A listed record comes again.
    Retry(CursorNumber, u64),
    /// A partition moves on.
    Drain(CursorNumber),
    /// A member has been away for too long.
    Grace(MemberId),
    /// It is looked again whether keys are stuck.
    Stuck(CursorNumber),
}

/// A consumer group.
#[derive(Debug, Clone)]
pub struct Group {
    // Applied.
    head: Head,
    subscriptions: BTreeMap<TopicId, Subscription>,
    cursors: BTreeMap<CursorNumber, Cursor>,
    by_place: BTreeMap<(PartitionId, String), CursorNumber>,
    rows: rows::Dirty,
    // In hand.
    limits: Limits,
    owner: OwnerId,
    now: Now,
    shapes: BTreeMap<TopicId, TopicShape>,
    watched: BTreeSet<TopicId>,
    members: BTreeMap<MemberId, Member>,
    names: BTreeMap<String, MemberId>,
    leases: HashMap<LeaseId, Held>,
    /// Records leased one by one: what may have to be listed.
    leased_singly: u64,
    listed: u64,
    listed_bytes: u64,
    timers: BTreeSet<(MonotonicMs, Timer)>,
    armed: Option<MonotonicMs>,
    pending: Pending,
    asked: VecDeque<Asked>,
    making: BTreeMap<TopicId, Making>,
    parked: Vec<Parked>,
    jobs: BTreeMap<u64, Job>,
    /// Broadcast members whose cursors are on their way.
    cursors_under_way: BTreeSet<(TopicId, String)>,
    /// Where the next broadcast member without a name begins.
    nameless_starts: BTreeMap<TopicId, BTreeMap<PartitionId, Bounds>>,
    dying: BTreeSet<(CursorNumber, u64)>,
    burying: BTreeMap<(CursorNumber, u64), Burial>,
    next_member: u64,
    next_lease: u64,
    next_job: u64,
    next_cursor: u64,
    next_nameless: u64,
    /// Cursors whose readiness may have changed.
    touched: BTreeSet<CursorNumber>,
    /// Somebody was not served for want of room in the list.
    full: bool,
    /// Pools with something to deliver, perhaps.
    stirred: BTreeSet<(TopicId, MemberId)>,
    outbox: BTreeMap<MemberId, Vec<Lease>>,
    restating: bool,
    held: Vec<(Vec<(OwnerId, Draft)>, Asked)>,
}

impl Group {
    /// A group nothing is known of. `lives` must be higher whenever the same group is made again: ids of
    /// members and leases grow from it. The wall clock in milliseconds is.
    #[must_use]
    pub fn new(owner: OwnerId, limits: Limits, lives: u64) -> Self {
        Self {
            head: Head::default(),
            subscriptions: BTreeMap::new(),
            cursors: BTreeMap::new(),
            by_place: BTreeMap::new(),
            rows: rows::Dirty::default(),
            limits,
            owner,
            now: Now::default(),
            shapes: BTreeMap::new(),
            watched: BTreeSet::new(),
            members: BTreeMap::new(),
            names: BTreeMap::new(),
            leases: HashMap::new(),
            leased_singly: 0,
            listed: 0,
            listed_bytes: 0,
            timers: BTreeSet::new(),
            armed: None,
            pending: Pending::default(),
            asked: VecDeque::new(),
            making: BTreeMap::new(),
            parked: Vec::new(),
            jobs: BTreeMap::new(),
            cursors_under_way: BTreeSet::new(),
            nameless_starts: BTreeMap::new(),
            dying: BTreeSet::new(),
            burying: BTreeMap::new(),
            next_member: lives << 20 | 1,
            next_lease: lives << 22 | 1,
            next_job: 0,
            next_cursor: 0,
            next_nameless: 1 << 63,
            touched: BTreeSet::new(),
            full: false,
            stirred: BTreeSet::new(),
            outbox: BTreeMap::new(),
            restating: false,
            held: Vec::new(),
        }
    }

    /// The applied counters.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// Members joined, those away counted.
    #[must_use]
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// Begins to serve from what was loaded: watches the topics, arms what waits.
    pub fn started(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.now = now;
        self.timers.clear();
        self.dying.clear();
        self.touched.clear();
        self.asked.clear();
        self.next_cursor = self.next_cursor.max(self.head.next_cursor);
        let topics: Vec<TopicId> = self.subscriptions.keys().copied().collect();
        for topic in topics {
            self.watch(topic, effects);
        }
        let cursors: Vec<CursorNumber> = self.cursors.keys().copied().collect();
        for number in cursors {
            self.restart_cursor(number);
        }
        self.finish(effects);
    }

    /// Decides about a command; whatever needs the log is answered by [`Group::apply`].
    pub fn handle(&mut self, now: Now, token: Token, command: Command, effects: &mut Vec<Effect>) {
        self.now = now;
        let decided = match command {
            Command::Join(join) => {
                self.join(token, join, effects);
                return self.finish(effects);
            }
            Command::Leave { member } => {
                self.end_member(member, false, effects);
                Ok(Some(Answer::Done))
            }
            Command::Lost { member } => {
                self.lose_member(member, effects);
                Ok(Some(Answer::Done))
            }
            Command::Credit {
                member,
                topic,
                bytes,
                records,
            } => self.credit(member, topic, bytes, records),
            Command::Withdraw { member, topic } => self.withdraw(member, topic),
            Command::Acknowledge { member, ranges } => {
                self.acknowledge(token, member, &ranges, effects)
            }
            Command::AcknowledgeUpTo { member, place, end } => {
                self.acknowledge_up_to(token, member, place, end.0, effects)
            }
            Command::Refuse {
                member,
                ranges,
                after,
                reason,
            } => self.refuse(token, member, &ranges, after, &reason, effects),
            Command::Extend {
                member,
                leases,
                lease_ms,
            } => self.extend(member, &leases, lease_ms),
            Command::Unreadable { member, lease } => self.unreadable(token, member, lease, effects),
            Command::Attach {
                member,
                what,
                transaction,
                tied,
            } => self.attach(token, member, &what, (transaction, tied), effects),
            Command::Subscribe(spec) => self.subscribe(token, spec, effects),
            Command::Alter { topic, change } => self.alter(token, topic, change, effects),
            Command::Unsubscribe { topic } => self.unsubscribe(Some(token), topic, effects),
            Command::Reset {
                topic,
                partition,
                to,
                dry_run,
            } => self.reset(token, topic, partition, to, dry_run, effects),
            Command::OpenLetters { place, from, to } => self.open_letters(place, from, to),
            Command::SettleLetters {
                place,
                start,
                cleared,
                returned,
            } => self.settle_letters(token, (place, start), &cleared, returned, effects),
            Command::Describe => Ok(Some(Answer::Described(Box::new(self.describe())))),
        };
        match decided {
            Ok(Some(answer)) => effects.push(Effect::Reply(token, Ok(answer))),
            Ok(None) => {}
            Err(rejection) => effects.push(Effect::Reply(token, Err(rejection))),
        }
        self.finish(effects);
    }

    /// The time asked for with [`Effect::WakeAt`] has come.
    pub fn wake(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.now = now;
        self.armed = None;
        while let Some((due, timer)) = self.timers.first().copied() {
            if due > now.monotonic {
                break;
            }
            self.timers.pop_first();
            match timer {
                Timer::Lease(lease) => self.expire(lease, effects),
                Timer::Retry(cursor, offset) => self.retry_due(cursor, offset),
                Timer::Drain(cursor) => self.drained(cursor, effects),
                Timer::Grace(member) => self.grace_over(member, effects),
                Timer::Stuck(cursor) => self.look_for_stuck(cursor),
            }
        }
        self.finish(effects);
    }

    /// What every input ends with: deliver what can be, look for more, write what has gathered, and say
    /// when to wake.
    fn finish(&mut self, effects: &mut Vec<Effect>) {
        if self.full && !self.is_full(subscription::Mode::Shared) {
            self.full = false;
            self.stir_all();
        }
        while !self.touched.is_empty() || !self.stirred.is_empty() {
            for number in std::mem::take(&mut self.touched) {
                self.end_drain_if_empty(number, effects);
                self.sort_into_pool(number);
            }
            for (topic, pool) in std::mem::take(&mut self.stirred) {
                self.deliver(topic, pool, effects);
            }
        }
        for (member, mut leases) in std::mem::take(&mut self.outbox) {
            // Lanes as they were served; within them place by place, each in its order: what lies together
            // is read and sent together.
            for lane in leases.chunk_by_mut(|a, b| a.place.lane == b.place.lane) {
                lane.sort_by_key(|lease| lease.place);
            }
            effects.push(Effect::Tell(member, MemberEvent::Leased(leases)));
        }
        self.bury(effects);
        self.flush(effects);
        let due = self.timers.first().map(|(due, _)| *due);
        let sooner = match (due, self.armed) {
            (Some(due), Some(armed)) => due < armed,
            (Some(_), None) | (None, Some(_)) => true,
            (None, None) => false,
        };
        if sooner {
            self.armed = due;
            effects.push(Effect::WakeAt(due));
        }
    }

    /// The log refused something: everything that was on its way did not happen. Back to the applied
    /// state: what was leased comes again.
    pub fn fenced(&mut self, now: Now, rejection: &Rejection, effects: &mut Vec<Effect>) {
        self.now = now;
        let mut tokens: Vec<Token> = self.pending.take_tokens();
        for asked in std::mem::take(&mut self.asked) {
            tokens.extend(asked.tokens());
        }
        for (_, asked) in std::mem::take(&mut self.held) {
            tokens.extend(asked.tokens());
        }
        self.pending = Pending::default();
        self.restating = false;
        self.burying.clear();
        let making = std::mem::take(&mut self.making);
        tokens.extend(making.into_values().flat_map(|making| making.tokens));
        tokens.extend(
            std::mem::take(&mut self.parked)
                .into_iter()
                .map(|parked| parked.token),
        );
        effects.extend(
            tokens
                .into_iter()
                .map(|token| Effect::Reply(token, Err(rejection.clone()))),
        );
        for subscription in self.subscriptions.values_mut() {
            subscription.altering = None;
        }
        let cursors: Vec<CursorNumber> = self.cursors.keys().copied().collect();
        for number in cursors {
            if let Some(cursor) = self.cursors.get_mut(&number) {
                cursor.resetting = false;
            }
            self.give_back_all(number, false, effects);
            self.restart_cursor(number);
        }
        self.finish(effects);
    }

    fn subscription(&self, topic: TopicId) -> Result<&Subscription, Rejection> {
        self.subscriptions
            .get(&topic)
            .ok_or(Rejection::Group(GroupRejection::UnknownSubscription))
    }
}

type Decided = Result<Option<Answer>, Rejection>;

#[cfg(test)]
mod tests;

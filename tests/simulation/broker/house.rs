//! One life of the process: the real machines and the real log between mailboxes that are emptied in an
//! order of the scheduler's choosing, first come first served within each. It does what the actors do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use waterwheel::domain::commit::{Commit, Counters, Need, Plan, Refused, Run};
use waterwheel::domain::entry::{AppliedEntry, Author, Draft, EntryKind, EntryPlace, PayloadFacts};
use waterwheel::domain::id::{Incarnation, LogIndex, LogPosition, Offset, OwnerId, Token};
use waterwheel::domain::ledger::{Ledger, Step};
use waterwheel::domain::partition::rows::RowId;
use waterwheel::domain::partition::{Limits, Partition};
use waterwheel::domain::rejection::Rejection;
use waterwheel::domain::time::WallMs;
use waterwheel::domain::topics::Topics;
use waterwheel::log::{Log, LogError, LogReader, Room, SegmentNumber};

use super::message::{Answer, Message, Reply, To};
use super::recovery::Recovered;
use super::shell::Shell;
use super::views::Views;
use super::wheel::{Lap, Step as Wake, Wheel};

pub(crate) const LIMITS: Limits = Limits {
    producers_max: 10,
    snapshot_bytes_max: 1 << 20,
};

#[derive(Default)]
struct Checkpoint {
    round: u64,
    /// The commit actor has not named the round's owners yet (K1).
    asking: bool,
    position: Option<LogPosition>,
    waiting: BTreeSet<OwnerId>,
    early: BTreeSet<OwnerId>,
    /// The levels of the wheel are finding homes for what lies before this position.
    homing: Option<LogPosition>,
    marked: u64,
}

pub(crate) struct House {
    pub(crate) log: Log,
    pub(crate) reader: LogReader,
    pub(crate) views: Views,
    pub(crate) directory: Topics,
    pub(crate) now: WallMs,
    pub(crate) monotonic: u64,
    pub(crate) wheel: Wheel,
    /// What has become durable, in the order of the log.
    pub(crate) landed: Vec<AppliedEntry>,
    /// Answers that have left.
    pub(crate) released: Vec<(Reply, Answer)>,
    /// Start offsets as the cleaner heard of them: durable.
    pub(crate) starts: BTreeMap<OwnerId, Offset>,
    pub(crate) shells: BTreeMap<OwnerId, Shell>,
    pub(crate) sealed: bool,
    /// The log could not be read: only while the power is off.
    pub(crate) unreadable: bool,
    commit: Commit<Option<Reply>>,
    pub(crate) links: BTreeMap<OwnerId, u64>,
    flush_noticed: bool,
    pub(crate) author: Option<Author>,
    pub(crate) asks: BTreeMap<Token, Reply>,
    ledger: Ledger,
    asked: BTreeSet<OwnerId>,
    recycling: BTreeSet<u64>,
    inspecting: BTreeSet<(u64, OwnerId)>,
    checkpoint: Checkpoint,
    pub(crate) boxes: BTreeMap<To, VecDeque<Message>>,
    tokens: u64,
    pub(crate) addresses: u64,
}

impl House {
    pub(crate) fn raise(log: Log, next_index: u64, recovered: Recovered, now: WallMs) -> Self {
        let reader = log.reader();
        let newest = recovered.newest.unwrap_or_default();
        let wheel = Wheel::begin(&recovered.views);
        let counters: Vec<(OwnerId, Counters)> = recovered.counters.into_iter().collect();
        let mut house = Self {
            commit: Commit::new(LogIndex(next_index), newest, counters),
            log,
            reader,
            views: recovered.views,
            directory: recovered.topics,
            now,
            monotonic: 0,
            wheel,
            landed: Vec::new(),
            released: Vec::new(),
            starts: recovered.starts,
            shells: BTreeMap::new(),
            sealed: false,
            unreadable: false,
            links: BTreeMap::new(),
            flush_noticed: false,
            author: None,
            asks: BTreeMap::new(),
            ledger: recovered.ledger,
            asked: BTreeSet::new(),
            recycling: BTreeSet::new(),
            inspecting: BTreeSet::new(),
            checkpoint: Checkpoint::default(),
            boxes: BTreeMap::new(),
            tokens: 0,
            addresses: 0,
        };
        house.tell(
            To::Commit,
            Message::Begin {
                owner: OwnerId::DIRECTORY,
                address: 0,
            },
        );
        house
    }

    pub(crate) fn tell(&mut self, to: To, message: Message) {
        if let To::Owner(owner, address) | To::Awaiting(owner, address) = to
            && owner != OwnerId::DIRECTORY
            && self
                .shells
                .get(&owner)
                .is_none_or(|shell| shell.address != address)
        {
            return self.lost(message);
        }
        self.boxes.entry(to).or_default().push_back(message);
    }

    /// Told to an actor that is gone: whoever waits hears that he may try again.
    pub(crate) fn lost(&mut self, message: Message) {
        if let Message::Append { reply, .. }
        | Message::Read { reply, .. }
        | Message::AskTimer { reply, .. } = message
        {
            self.answer(reply, Answer::Refused(Rejection::Retry));
        }
    }

    pub(crate) fn answer(&mut self, reply: Reply, answer: Answer) {
        self.released.push((reply, answer));
    }

    pub(crate) fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    /// Mailboxes something can be taken from now.
    pub(crate) fn ready(&self) -> Vec<To> {
        let takes = |to: &To| match to {
            To::Directory => self.author.is_some(),
            To::Owner(owner, _) => self
                .shells
                .get(owner)
                .is_some_and(|shell| shell.author.is_some()),
            To::Commit
            | To::Store
            | To::Checkpoint
            | To::Cleaner
            | To::Level(_)
            | To::Awaiting(..) => true,
        };
        let full = self
            .boxes
            .iter()
            .filter(|(_, messages)| !messages.is_empty());
        full.map(|(to, _)| *to).filter(takes).collect()
    }

    /// Takes one message out of a mailbox and does what its actor does.
    pub(crate) fn deliver(&mut self, to: To) {
        let Some(message) = self.boxes.get_mut(&to).and_then(VecDeque::pop_front) else {
            return;
        };
        match to {
            To::Commit => self.commit(message),
            To::Store => self.store(message),
            To::Checkpoint => self.checkpoint(message),
            To::Cleaner => self.cleaner(message),
            To::Directory => self.directory(message),
            To::Level(level) => self.level(level, message),
            To::Awaiting(OwnerId::DIRECTORY, _) => {
                if let Message::Life { author, .. } = message {
                    self.author = Some(author);
                }
            }
            To::Owner(owner, _) | To::Awaiting(owner, _) => self.owner(owner, message),
        }
    }

    fn commit(&mut self, message: Message) {
        match message {
            Message::Persist {
                author,
                drafts,
                need,
                ticket,
            } => {
                self.enqueue(Run {
                    author,
                    drafts,
                    need,
                    ticket,
                });
            }
            Message::FlushNow => {
                self.flush_noticed = false;
                self.flush();
                self.notice();
            }
            Message::CloseTail => {
                if self.commit.is_idle() && !self.sealed && self.log.close_tail().is_err() {
                    self.seal(None);
                }
            }
            Message::Begin { owner, address } => {
                let mut refused = Vec::new();
                let (incarnation, counters) = self.commit.begin(owner, &mut refused);
                for Refused {
                    ticket, rejection, ..
                } in refused
                {
                    self.ticket(ticket, Answer::Refused(rejection));
                }
                self.links.insert(owner, address);
                let (author, end) = (Author { owner, incarnation }, self.log.end());
                self.tell(
                    To::Awaiting(owner, address),
                    Message::Life {
                        author,
                        counters,
                        end,
                    },
                );
            }
            Message::BeginCheckpoint {
                round,
                again,
                marked,
            } => self.begin_checkpoint(round, again, marked),
            Message::Recycle(segment) => {
                if self.log.recycle(SegmentNumber(segment)).is_ok() {
                    self.tell(To::Cleaner, Message::Recycled(segment));
                }
            }
            Message::NoteMark(position) => {
                let author = Author {
                    owner: OwnerId::LOG,
                    incarnation: Incarnation(0),
                };
                let body = bytes::Bytes::copy_from_slice(&position.0.to_le_bytes());
                let facts = PayloadFacts::default();
                let draft = Draft {
                    kind: EntryKind::Mark,
                    numbers: 0,
                    offsets: 0,
                    body: body.into(),
                    facts,
                };
                let drafts = vec![(OwnerId::LOG, draft)];
                self.enqueue(Run {
                    author,
                    drafts,
                    need: Need::Housekeeping,
                    ticket: None,
                });
            }
            other => panic!("not for the commit actor: {other:?}"),
        }
    }

    fn enqueue(&mut self, run: Run<Option<Reply>>) {
        if let Err(refused) = self.commit.enqueue(run, self.log.append_capacity()) {
            self.refuse(vec![refused]);
        }
        self.notice();
    }

    fn notice(&mut self) {
        if !self.flush_noticed && !self.commit.is_idle() {
            self.flush_noticed = true;
            self.tell(To::Commit, Message::FlushNow);
        }
    }

    fn ticket(&mut self, ticket: Option<Reply>, answer: Answer) {
        if let Some(reply) = ticket {
            self.answer(reply, answer);
        }
    }

    fn flush(&mut self) {
        let mut refused = Vec::new();
        let left = self.log.free_room();
        let room = match (left.normal_bytes, left.decisions_bytes) {
            (1.., _) => Need::Payload,
            (0, 1..) => Need::Decision,
            (0, 0) => Need::Housekeeping,
        };
        let plan = self
            .commit
            .plan(self.now, self.log.append_capacity(), room, &mut refused);
        if let Some(plan) = plan {
            let room = match plan.need {
                Need::Payload => Room::Normal,
                Need::Decision => Room::Decisions,
                Need::Housekeeping => Room::Housekeeping,
            };
            match self.log.append(&plan.entries, room) {
                Ok(places) => self.landed(plan, &places),
                Err(LogError::Full { .. }) => {
                    let (tickets, authors, why) =
                        self.commit.not_written(plan, &Rejection::DiskFull);
                    for ticket in tickets {
                        self.ticket(ticket, Answer::Refused(why.clone()));
                    }
                    for owner in authors {
                        self.fenced(owner, Incarnation(u32::MAX), why.clone());
                    }
                }
                Err(_) => self.seal(Some(plan)),
            }
        }
        // Behind what landed, so that an owner goes back to a state that has it.
        self.refuse(refused);
    }

    fn landed(&mut self, plan: Plan<Option<Reply>>, places: &[EntryPlace]) {
        let (applied, tickets) = self.commit.flushed(plan, places);
        let entries = || applied.values().flatten();
        let headers = entries()
            .map(|entry| (entry.place.position, entry.header))
            .collect();
        let deleted = entries()
            .filter(|entry| entry.header.kind == EntryKind::Delete)
            .filter_map(|entry| rmp_serde::from_slice(&entry.body).ok())
            .collect();
        self.tell(To::Cleaner, Message::Flushed { headers, deleted });
        let mut landed: Vec<AppliedEntry> = applied.values().flatten().cloned().collect();
        landed.sort_by_key(|entry| entry.place.position);
        self.landed.extend(landed);
        for (owner, entries) in applied {
            if owner != OwnerId::LOG {
                self.applied(owner, entries);
            }
        }
        for (ticket, receipt) in tickets {
            self.ticket(
                ticket,
                Answer::Stored {
                    offset: receipt.first_offset,
                    number: receipt.first_number,
                },
            );
        }
    }

    fn applied(&mut self, owner: OwnerId, entries: Vec<AppliedEntry>) {
        match self.links.get(&owner) {
            Some(_) if owner == OwnerId::DIRECTORY => {
                self.tell(To::Directory, Message::Applied(entries));
            }
            Some(address) => self.tell(To::Owner(owner, *address), Message::Applied(entries)),
            None => self.tell(To::Directory, Message::StartOwner { owner }),
        }
    }

    fn refuse(&mut self, refused: Vec<Refused<Option<Reply>>>) {
        let mut owners = BTreeSet::new();
        for Refused {
            author,
            ticket,
            rejection,
        } in refused
        {
            self.ticket(ticket, Answer::Refused(rejection.clone()));
            if owners.insert(author.owner) {
                self.fenced(author.owner, author.incarnation, rejection);
            }
        }
    }

    fn fenced(&mut self, owner: OwnerId, incarnation: Incarnation, rejection: Rejection) {
        let message = Message::Fenced {
            incarnation,
            rejection,
        };
        match self.links.get(&owner) {
            Some(_) if owner == OwnerId::DIRECTORY => self.tell(To::Directory, message),
            Some(address) => self.tell(To::Owner(owner, *address), message),
            None => {}
        }
    }

    fn seal(&mut self, plan: Option<Plan<Option<Reply>>>) {
        self.sealed = true;
        let mut refused = Vec::new();
        self.commit.seal(&mut refused);
        let tickets = plan.map(|plan| self.commit.not_written(plan, &Rejection::LogSealed).0);
        for ticket in tickets.unwrap_or_default() {
            self.ticket(ticket, Answer::Refused(Rejection::LogSealed));
        }
        self.refuse(refused);
        for owner in self.links.keys().copied().collect::<Vec<_>>() {
            self.fenced(owner, Incarnation(u32::MAX), Rejection::LogSealed);
        }
    }

    fn begin_checkpoint(&mut self, round: u64, again: BTreeSet<OwnerId>, marked: u64) {
        let mut owners = self.commit.take_touched();
        owners.extend(again);
        owners.remove(&OwnerId::LOG);
        for owner in &owners {
            match self.links.get(owner).copied() {
                Some(_) if *owner == OwnerId::DIRECTORY => {
                    self.tell(To::Directory, Message::WriteRows { round, marked });
                }
                // One that died while its topic was deleted would be waited for in every round.
                Some(address) if self.shells.get(owner).is_some_and(|s| s.address == address) => {
                    self.tell(
                        To::Owner(*owner, address),
                        Message::WriteRows { round, marked },
                    );
                }
                Some(_) | None => self.tell(To::Directory, Message::StartOwner { owner: *owner }),
            }
        }
        let position = self.log.end();
        self.tell(To::Checkpoint, Message::Began { position, owners });
    }

    fn store(&mut self, message: Message) {
        match message {
            Message::Write(changes) => self.views.write(changes),
            Message::WriteMark { round, position } => {
                self.views.mark(position);
                self.tell(To::Checkpoint, Message::Marked { round, position });
            }
            Message::WriteHomes { level, changes } => {
                self.views.write(changes);
                self.tell(To::Level(level), Message::Level(Wake::Homed));
            }
            Message::LoadHomes { level, ids } => {
                let views = &self.views;
                let read = ids.into_iter().map(|id| (id, views.home(level as u8, id)));
                let read = Wake::Loaded(read.collect());
                self.tell(To::Level(level), Message::Level(read));
            }
            Message::LoadBodies {
                owner,
                address,
                first,
            } => {
                let row = self.views.row(owner, RowId::Bodies(first));
                let row = row.cloned().unwrap_or_default();
                self.tell(
                    To::Owner(owner, address),
                    Message::BodiesLoaded { first, row },
                );
            }
            Message::LoadOwner { owner, address } => {
                let rows = self.views.partition(owner).into_iter().collect();
                let mark = self.views.marked();
                self.tell(To::Awaiting(owner, address), Message::Rows { rows, mark });
            }
            Message::LoadRun {
                owner,
                address,
                first,
            } => {
                let run = super::recovery::run(&self.views, owner, first);
                self.tell(To::Owner(owner, address), Message::RunLoaded { first, run });
            }
            other => panic!("not for the store: {other:?}"),
        }
    }

    fn checkpoint(&mut self, message: Message) {
        match message {
            Message::Round if self.checkpoint.asking => {}
            Message::Round => {
                self.checkpoint.round += 1;
                self.checkpoint.asking = true;
                self.checkpoint.position = None;
                self.checkpoint.homing = None;
                self.checkpoint.early.clear();
                let marked = self.checkpoint.marked;
                let again = std::mem::take(&mut self.checkpoint.waiting);
                let round = self.checkpoint.round;
                self.tell(
                    To::Commit,
                    Message::BeginCheckpoint {
                        round,
                        again,
                        marked,
                    },
                );
            }
            Message::Began { position, owners } => {
                let early = std::mem::take(&mut self.checkpoint.early);
                self.checkpoint.asking = false;
                self.checkpoint.position = Some(position);
                self.checkpoint.waiting = &owners - &early;
            }
            Message::RowsWritten { round, .. } if round != self.checkpoint.round => {}
            Message::RowsWritten { owner, .. } | Message::Gone { owner } => {
                if self.checkpoint.asking {
                    self.checkpoint.early.insert(owner);
                } else {
                    self.checkpoint.waiting.remove(&owner);
                }
            }
            Message::LapDone { round } => {
                if round == self.checkpoint.round
                    && let Some(position) = self.checkpoint.homing.take()
                {
                    self.tell(To::Store, Message::WriteMark { round, position });
                }
            }
            Message::Marked { round, position } => {
                self.checkpoint.marked = round;
                self.tell(To::Cleaner, Message::MarkMoved(position));
                self.tell(To::Commit, Message::NoteMark(position));
            }
            other => panic!("not for the checkpoint actor: {other:?}"),
        }
        if self.checkpoint.waiting.is_empty()
            && let Some(position) = self.checkpoint.position.take()
        {
            self.checkpoint.homing = Some(position);
            let (round, marked) = (self.checkpoint.round, self.checkpoint.marked);
            let up = Wake::Up(Lap { round, marked }, i64::MAX);
            self.tell(To::Level(0), Message::Level(up));
        }
    }

    fn cleaner(&mut self, message: Message) {
        match message {
            Message::Flushed { headers, deleted } => {
                for (position, header) in &headers {
                    let segment = self.reader.identity().segment_of(*position).0;
                    self.ledger.appended(segment, header);
                }
                deleted
                    .into_iter()
                    .for_each(|range| self.ledger.deleted(range));
                return;
            }
            Message::Trimmed { owner, start } => {
                self.ledger.trimmed(owner, start);
                self.starts.insert(owner, start);
            }
            Message::Inspected {
                owner,
                segment,
                needed,
            } => {
                if needed {
                    return;
                }
                self.ledger.released(segment, owner);
            }
            Message::MarkMoved(position) => self.ledger.marked(position),
            Message::Recycled(segment) => return self.ledger.recycled(segment),
            Message::Tick => {
                self.tell(To::Directory, Message::RetainAll { now: self.now });
                self.asked.clear();
                self.recycling.clear();
                self.inspecting.clear();
            }
            other => panic!("not for the cleaner: {other:?}"),
        }
        for segment in self
            .reader
            .segments()
            .iter()
            .filter(|segment| segment.closed)
        {
            self.ledger.closed(segment.number.0, segment.end);
        }
        for step in self.ledger.steps() {
            match step {
                Step::Recycle(segment) if self.recycling.insert(segment) => {
                    self.tell(To::Commit, Message::Recycle(segment));
                }
                Step::Restate(owner) if self.asked.insert(owner) => {
                    self.tell(To::Directory, Message::RestateOwner { owner });
                }
                Step::Inspect(segment, owner) if self.inspecting.insert((segment, owner)) => {
                    let (from, end) = self.reader.identity().bounds(segment);
                    self.tell(
                        To::Directory,
                        Message::InspectOwner {
                            owner,
                            segment,
                            from,
                            end,
                        },
                    );
                }
                Step::Recycle(_) | Step::Restate(_) | Step::Inspect(..) => {}
            }
        }
    }

    /// What the machines of the partitions hold.
    pub(crate) fn machines(&self) -> impl Iterator<Item = (OwnerId, &Partition)> {
        let is_loaded = |(owner, shell): (&OwnerId, &'_ Shell)| shell.loaded.then_some(*owner);
        self.shells
            .iter()
            .filter_map(move |entry| is_loaded((entry.0, entry.1)).map(|id| (id, &entry.1.machine)))
    }
}

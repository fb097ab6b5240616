//! The directory machine: names to topics, and the ids everything else is known by.
//!
//! In: commands of administrators and sessions. Out: entries to persist, answers.
//!
//! - D1 Topic ids, owner ids and producer ids are never given twice, whatever crashes.
//! - D2 A name stands for at most one topic; a topic re-created under an old name is another topic.
//! - D3 Who was answered that a topic exists finds it after a crash.
//!
//! What survives a crash: a head row, a row per topic, and the log behind them.

mod config;
pub mod groups;

pub use self::config::{
    Flush, NAME_BYTES_MAX, TOPIC_LANES_MAX, TopicChange, TopicConfig, check_name,
};

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use self::config::{check_config, check_lanes, check_partitions};
use self::groups::Group;
use super::commit::OwnerRange;
use super::entry::{AppliedEntry, Draft, EntryKind, PayloadFacts};
use super::id::{
    GroupId, LANES_MAX, Lane, OwnerId, OwnerSequence, PartitionId, PartitionIndex, ProducerId,
    Token, TopicId,
};
use super::partition::rows::encode;
use super::rejection::Rejection;

/// Producer ids are reserved in blocks, so that handing one out needs no flush of its own.
const PRODUCER_BLOCK: u64 = 1000;

/// Topics a broker takes at most: the directory's snapshot, about 400 bytes for each, is one flush of the
/// default size.
pub const TOPICS_MAX: usize = 20_000;

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topic {
    /// Its id, for ever.
    pub id: TopicId,
    /// Its name, an alias.
    pub name: String,
    /// How many partitions it has.
    pub partitions: u32,
    /// Owner ids of its partitions by range of indexes, in the order they were added: a range starts at
    /// partition `.0` and owner `.1`, [`LANES_MAX`] owners a partition.
    pub owners: Vec<(u32, OwnerId)>,
    /// What can be changed.
    pub config: TopicConfig,
}

impl Topic {
    /// Its lanes, partition by partition, the lowest level first.
    pub fn lanes(&self) -> impl Iterator<Item = (PartitionIndex, Lane)> + use<> {
        let levels = self.config.levels;
        (0..self.partitions).flat_map(move |index| {
            (0..levels).map(move |level| (PartitionIndex(index), Lane(level)))
        })
    }

    /// The owner of a partition lane.
    #[must_use]
    pub fn owner(&self, partition: PartitionIndex, lane: Lane) -> Option<OwnerId> {
        if partition.0 >= self.partitions || lane.0 >= self.config.levels.min(LANES_MAX) {
            return None;
        }
        let (first, owner) = self
            .owners
            .iter()
            .rev()
            .find(|(first, _)| *first <= partition.0)?;
        let within = u64::from(partition.0 - first) * u64::from(LANES_MAX) + u64::from(lane.0);
        Some(OwnerId(owner.0 + within))
    }

    /// Which partition lane an owner is, if it is one of this topic.
    #[must_use]
    pub fn partition_of(&self, owner: OwnerId) -> Option<PartitionId> {
        let (first, base) = self.owners.iter().rev().find(|(_, base)| *base <= owner)?;
        let within = owner.0 - base.0;
        let partition = u32::try_from(within / u64::from(LANES_MAX))
            .ok()?
            .checked_add(*first)?;
        let lane = u8::try_from(within % u64::from(LANES_MAX)).ok()?;
        (partition < self.partitions).then_some(PartitionId {
            topic: self.id,
            partition: PartitionIndex(partition),
            lane: Lane(lane),
        })
    }

    /// The owners of its partitions.
    #[must_use]
    pub fn ranges(&self) -> Vec<OwnerRange> {
        let ends = self
            .owners
            .iter()
            .skip(1)
            .map(|(first, _)| *first)
            .chain([self.partitions]);
        self.owners
            .iter()
            .zip(ends)
            .map(|((first, owner), end)| OwnerRange {
                first: *owner,
                count: u64::from(end - first) * u64::from(LANES_MAX),
            })
            .collect()
    }
}

/// What is asked of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Make a topic.
    Create {
        /// Its name.
        name: String,
        /// How many partitions.
        partitions: u32,
        /// The rest.
        config: TopicConfig,
    },
    /// Change a topic; with a partition count, raise it.
    Alter {
        /// Which.
        name: String,
        /// The new count, if it changes.
        partitions: Option<u32>,
        /// What else changes.
        change: TopicChange,
    },
    /// Remove a topic and all its records.
    Delete {
        /// Which.
        name: String,
    },
    /// A fresh producer id.
    OpenProducer,
    /// A consumer group by name.
    OpenGroup {
        /// Which.
        name: String,
        /// Make it if it is not there.
        create: bool,
    },
    /// Remove a consumer group and all its progress.
    DeleteGroup {
        /// Which.
        name: String,
    },
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make these durable as one tied run.
    Persist(Vec<Draft>),
    /// Answer with the topic as it is now (or was, when deleted).
    Topic(Token, Topic),
    /// Answer with a producer id.
    Producer(Token, ProducerId),
    /// Answer with a group.
    Group(Token, Group),
    /// Answer that a group is gone.
    GroupDeleted(Token),
    /// A topic is another than it was, or gone.
    Changed(TopicId),
    /// Answer a refusal.
    Refuse(Token, Rejection),
    /// The actors of these owners have nothing left to do.
    Dropped(Vec<OwnerRange>),
}

/// The directory's deltas: the body of its `State` entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delta {
    /// A topic was made or changed; its row as it is now.
    Topic(Topic),
    /// A topic is gone.
    Deleted(TopicId),
    /// Producer ids below are given out or will not be.
    ProducersBelow(ProducerId),
    /// A consumer group was made.
    Group(Group),
    /// A consumer group is gone.
    GroupDeleted(GroupId),
}

/// The counters: the head row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The last entry folded.
    pub sequence: OwnerSequence,
    /// The next topic id.
    pub next_topic: TopicId,
    /// The next owner id.
    pub next_owner: OwnerId,
    /// Producer ids below are used up.
    pub producers_below: ProducerId,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            sequence: OwnerSequence(0),
            next_topic: TopicId(1),
            next_owner: OwnerId::FIRST_FREE,
            producers_below: ProducerId(1),
        }
    }
}

/// The body of the directory's snapshot entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Snapshot {
    /// A topic's row.
    Topic(Topic),
    /// The counters, and the topics there are, in order: whoever is not named is gone.
    Head {
        /// The counters.
        head: Head,
        /// The topics.
        topics: Vec<TopicId>,
        /// The consumer groups.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        groups: Vec<GroupId>,
    },
    /// A consumer group's row.
    Group(Group),
}

/// The directory.
#[derive(Debug, Clone, Default)]
pub struct Topics {
    head: Head,
    topics: BTreeMap<TopicId, Topic>,
    names: BTreeMap<String, TopicId>,
    /// Commands on their way to the disk, oldest first, with what they claim.
    in_flight: Vec<(Token, String)>,
    /// Deltas on their way to the disk, oldest first.
    asked: VecDeque<Delta>,
    accepted_topic: u64,
    accepted_owner: u64,
    next_producer: u64,
    waiting_producers: Vec<Token>,
    dirty: BTreeSet<TopicId>,
    gone: Vec<TopicId>,
    head_dirty: bool,
    groups: BTreeMap<GroupId, Group>,
    group_names: BTreeMap<String, GroupId>,
    dirty_groups: BTreeSet<GroupId>,
}

impl Topics {
    /// The applied counters.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// All topics, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Topic> {
        self.topics.values()
    }

    /// A topic by name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Topic> {
        self.topics.get(self.names.get(name)?)
    }

    /// A topic by id.
    #[must_use]
    pub fn topic(&self, id: TopicId) -> Option<&Topic> {
        self.topics.get(&id)
    }

    /// Decides about a command; whatever needs the log is answered by [`Topics::apply`].
    pub fn handle(&mut self, token: Token, command: Command, effects: &mut Vec<Effect>) {
        let decided = match command {
            Command::Create {
                name,
                partitions,
                config,
            } => self.create(token, &name, partitions, config),
            Command::Alter {
                name,
                partitions,
                change,
            } => self.alter(token, &name, partitions, change),
            Command::Delete { name } => self.delete(token, &name),
            Command::OpenProducer => Ok(self.open_producer(token)),
            Command::OpenGroup { name, create } => self.open_group(token, &name, create),
            Command::DeleteGroup { name } => self.delete_group(token, &name),
        };
        match decided {
            Ok(effect) => effects.extend(effect),
            Err(rejection) => effects.push(Effect::Refuse(token, rejection)),
        }
    }

    fn claim(&mut self, token: Token, name: &str) -> Result<(), Rejection> {
        if self.in_flight.iter().any(|(_, claimed)| claimed == name) {
            return Err(Rejection::Throttled { after_ms: 5 });
        }
        self.in_flight.push((token, name.to_owned()));
        Ok(())
    }

    fn create(
        &mut self,
        token: Token,
        name: &str,
        partitions: u32,
        config: TopicConfig,
    ) -> Result<Option<Effect>, Rejection> {
        check_name(name)?;
        check_partitions(partitions)?;
        check_config(&config)?;
        check_lanes(partitions, config.levels)?;
        if self.names.contains_key(name) {
            return Err(Rejection::TopicExists);
        }
        if self.topics.len() >= TOPICS_MAX {
            return Err(Rejection::InvalidConfig(format!(
                "there are {TOPICS_MAX} topics already"
            )));
        }
        self.claim(token, name)?;
        let id = TopicId(self.accepted_topic.max(self.head.next_topic.0));
        self.accepted_topic = id.0 + 1;
        let owner = self.claim_owners(partitions);
        let owners = vec![(0, owner)];
        let topic = Topic {
            id,
            name: name.to_owned(),
            partitions,
            owners,
            config,
        };
        Ok(Some(Effect::Persist(vec![self.ask(Delta::Topic(topic))])))
    }

    fn claim_owners(&mut self, partitions: u32) -> OwnerId {
        self.claim_owner_ids(u64::from(partitions) * u64::from(LANES_MAX))
    }

    fn claim_owner_ids(&mut self, count: u64) -> OwnerId {
        let owner = OwnerId(self.accepted_owner.max(self.head.next_owner.0));
        self.accepted_owner = owner.0 + count;
        owner
    }

    fn alter(
        &mut self,
        token: Token,
        name: &str,
        partitions: Option<u32>,
        change: TopicChange,
    ) -> Result<Option<Effect>, Rejection> {
        let mut topic = self.named(name).ok_or(Rejection::UnknownTopic)?.clone();
        let config = change.apply(&topic.config);
        check_config(&config)?;
        let more = partitions.filter(|count| *count != topic.partitions);
        if let Some(count) = more {
            check_partitions(count)?;
            check_lanes(count, config.levels)?;
            if topic.config.keyed {
                return Err(Rejection::KeyedTopic);
            }
            if count < topic.partitions {
                return Err(Rejection::InvalidConfig(format!(
                    "the partition count can only rise; it is {}",
                    topic.partitions
                )));
            }
        }
        self.claim(token, name)?;
        if let Some(count) = more {
            let owner = self.claim_owners(count - topic.partitions);
            topic.owners.push((topic.partitions, owner));
            topic.partitions = count;
        }
        topic.config = config;
        Ok(Some(Effect::Persist(vec![self.ask(Delta::Topic(topic))])))
    }

    fn delete(&mut self, token: Token, name: &str) -> Result<Option<Effect>, Rejection> {
        let topic = self.named(name).ok_or(Rejection::UnknownTopic)?.clone();
        self.claim(token, name)?;
        let mut drafts = vec![self.ask(Delta::Deleted(topic.id))];
        drafts.extend(
            topic
                .ranges()
                .iter()
                .map(|range| draft(EntryKind::Delete, encode(range))),
        );
        Ok(Some(Effect::Persist(drafts)))
    }

    fn open_producer(&mut self, token: Token) -> Option<Effect> {
        if self.next_producer != 0 && self.next_producer < self.head.producers_below.0 {
            let id = ProducerId(self.next_producer);
            self.next_producer += 1;
            return Some(Effect::Producer(token, id));
        }
        self.waiting_producers.push(token);
        let below = ProducerId(self.head.producers_below.0 + PRODUCER_BLOCK);
        (self.waiting_producers.len() == 1)
            .then(|| Effect::Persist(vec![self.ask(Delta::ProducersBelow(below))]))
    }

    fn ask(&mut self, delta: Delta) -> Draft {
        let draft = draft(EntryKind::State, encode(&delta));
        self.asked.push_back(delta);
        draft
    }

    /// Takes in a durable entry of the directory.
    pub fn apply(&mut self, entry: &AppliedEntry, effects: &mut Vec<Effect>) {
        if entry.header.sequence <= self.head.sequence {
            return;
        }
        self.head.sequence = entry.header.sequence;
        self.head_dirty = true;
        match entry.header.kind {
            EntryKind::State => {
                if let Ok(delta) = rmp_serde::from_slice(&entry.body) {
                    self.apply_delta(delta, effects);
                }
            }
            EntryKind::Snapshot => {
                if let Ok(snapshot) = rmp_serde::from_slice(&entry.body) {
                    self.apply_snapshot(snapshot);
                }
            }
            EntryKind::Payload | EntryKind::Publish | EntryKind::Delete | EntryKind::Mark => {}
        }
    }

    fn apply_delta(&mut self, delta: Delta, effects: &mut Vec<Effect>) {
        if self.asked.front() == Some(&delta) {
            self.asked.pop_front();
        }
        match delta {
            Delta::Group(group) => self.apply_group(group, effects),
            Delta::GroupDeleted(id) => self.apply_group_deleted(id, effects),
            Delta::Topic(topic) => {
                self.put(topic.clone());
                effects.push(Effect::Changed(topic.id));
                if let Some(token) = self.landed(&topic.name) {
                    effects.push(Effect::Topic(token, topic));
                }
            }
            Delta::Deleted(id) => {
                if let Some(topic) = self.remove(id) {
                    effects.push(Effect::Dropped(topic.ranges()));
                    effects.push(Effect::Changed(id));
                    if let Some(token) = self.landed(&topic.name) {
                        effects.push(Effect::Topic(token, topic));
                    }
                }
            }
            Delta::ProducersBelow(below) => {
                let first = self.head.producers_below;
                self.head.producers_below = self.head.producers_below.max(below);
                let waiting = std::mem::take(&mut self.waiting_producers);
                // D1: only whoever asked for a block gives ids out of it. In a fold nobody waits, and
                // an earlier life may have used the block up.
                if !waiting.is_empty() {
                    self.next_producer = first.0;
                }
                for token in waiting {
                    effects.extend(self.open_producer(token));
                }
            }
        }
    }

    fn apply_snapshot(&mut self, snapshot: Snapshot) {
        match snapshot {
            Snapshot::Topic(topic) => self.put(topic),
            Snapshot::Group(group) => self.put_group(group),
            Snapshot::Head {
                head,
                topics,
                groups,
            } => {
                let lost: Vec<_> = self
                    .groups
                    .keys()
                    .filter(|id| groups.binary_search(id).is_err())
                    .copied()
                    .collect();
                for id in lost {
                    self.remove_group(id);
                }
                let gone: Vec<_> = self
                    .topics
                    .keys()
                    .filter(|id| topics.binary_search(id).is_err())
                    .copied()
                    .collect();
                for id in gone {
                    self.remove(id);
                }
                self.head.next_topic = self.head.next_topic.max(head.next_topic);
                self.head.next_owner = self.head.next_owner.max(head.next_owner);
                self.head.producers_below = self.head.producers_below.max(head.producers_below);
            }
        }
    }

    fn put(&mut self, topic: Topic) {
        self.head.next_topic = self.head.next_topic.max(TopicId(topic.id.0 + 1));
        for range in topic.ranges() {
            let end = OwnerId(range.first.0 + range.count);
            self.head.next_owner = self.head.next_owner.max(end);
        }
        self.names.insert(topic.name.clone(), topic.id);
        self.dirty.insert(topic.id);
        self.topics.insert(topic.id, topic);
    }

    fn remove(&mut self, id: TopicId) -> Option<Topic> {
        let topic = self.topics.remove(&id)?;
        if self.names.get(&topic.name) == Some(&id) {
            self.names.remove(&topic.name);
        }
        self.dirty.remove(&id);
        self.gone.push(id);
        Some(topic)
    }

    fn landed(&mut self, name: &str) -> Option<Token> {
        let at = self
            .in_flight
            .iter()
            .position(|(_, claimed)| claimed == name)?;
        Some(self.in_flight.remove(at).0)
    }

    /// The commit machine refused something: whatever was on its way is answered and forgotten.
    pub fn reset(&mut self, rejection: &Rejection, effects: &mut Vec<Effect>) {
        let waiting = std::mem::take(&mut self.in_flight)
            .into_iter()
            .map(|(token, _)| token);
        let producers = std::mem::take(&mut self.waiting_producers);
        self.asked.clear();
        // What was claimed stays claimed: an id that is never used costs nothing (D1).
        effects.extend(
            waiting
                .chain(producers)
                .map(|token| Effect::Refuse(token, rejection.clone())),
        );
    }

    /// Restates every row, so that older entries of the directory may leave the log.
    ///
    /// The rows are as of the snapshot's own place in the log: what is on its way lies before it there
    /// and is in them, for if any of it is refused, so is the snapshot behind it.
    #[must_use]
    pub fn restate(&self) -> Effect {
        let mut stamped = self.clone();
        for delta in &self.asked {
            stamped.apply_delta(delta.clone(), &mut Vec::new());
        }
        let topics = stamped.topics.keys().copied().collect();
        let rows = stamped
            .topics
            .values()
            .map(|topic| encode(&Snapshot::Topic(topic.clone())));
        let groups = stamped
            .groups
            .values()
            .map(|group| encode(&Snapshot::Group(group.clone())));
        let head = encode(&Snapshot::Head {
            head: stamped.head,
            topics,
            groups: stamped.groups.keys().copied().collect(),
        });
        Effect::Persist(
            rows.chain(groups)
                .chain([head])
                .map(|body| draft(EntryKind::Snapshot, body))
                .collect(),
        )
    }

    /// The rows changed since the last call: topic rows by id, `None` where one is gone, and the head.
    #[expect(clippy::type_complexity, reason = "two kinds of row, spelled out once")]
    pub fn take_rows(&mut self) -> Option<(Head, Vec<(TopicId, Option<Bytes>)>)> {
        if !std::mem::take(&mut self.head_dirty) {
            return None;
        }
        let gone = std::mem::take(&mut self.gone)
            .into_iter()
            .map(|id| (id, None));
        let dirty = std::mem::take(&mut self.dirty);
        let rows = dirty
            .iter()
            .filter_map(|id| Some((*id, Some(encode(self.topics.get(id)?)))));
        let rows = gone.chain(rows).collect();
        Some((self.head, rows))
    }

    /// Builds the directory from its rows; `None` if one does not read.
    #[must_use]
    pub fn from_rows<'a>(
        head: Option<&'a [u8]>,
        topics: impl IntoIterator<Item = &'a [u8]>,
    ) -> Option<Self> {
        let mut directory = Self::default();
        for row in topics {
            directory.put(rmp_serde::from_slice(row).ok()?);
        }
        if let Some(head) = head {
            directory.head = rmp_serde::from_slice(head).ok()?;
        }
        directory.dirty.clear();
        Some(directory)
    }
}

fn draft(kind: EntryKind, body: Bytes) -> Draft {
    Draft {
        kind,
        numbers: 0,
        offsets: 0,
        body: body.into(),
        facts: PayloadFacts::default(),
    }
}

#[cfg(test)]
mod tests;

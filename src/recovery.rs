//! From a data directory to a state: views that are believed, and the log behind them.
//!
//! Views are a fold of the log. If they add up, the log is folded from their mark on; if they do not,
//! are missing, or hold more than the log has, they are thrown away and the whole log is folded, from
//! the summaries of its closed segments, so that payloads are not read. Either way the result is written
//! and marked before anything starts, and every actor then begins from rows alone.

pub mod compare;
mod rearm;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::actors::cleaner::Found;
use crate::actors::wheel::homes::Unhomed;
use crate::actors::{self, directory, group as group_actor, load, partition};
use crate::domain::commit::{Counters, OwnerRange};
use crate::domain::entry::{AppliedEntry, EntryKind};
use crate::domain::group::{self, Group};
use crate::domain::id::{LogPosition, Offset, OwnerId, OwnerSequence};
use crate::domain::partition::{Head, Limits, Partition, alarms_of};
use crate::domain::topics::{Topic, Topics};
use crate::domain::transaction::{self, Coordinator, shard_of_owner};
use crate::log::{Damage, LogReader, Scanned};
use crate::store::{RowChange, RowKey, Standing, Tree, Views, ViewsError, layout};

/// Entries folded between two writes of rows: bounds the memory of a rebuild.
const ENTRIES_PER_WRITE: usize = 100_000;
/// Between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// The state a broker starts from.
#[derive(Debug)]
pub struct Recovered {
    /// The views, written and marked.
    pub views: Views,
    /// How far they hold the log.
    pub mark: LogPosition,
    /// The directory.
    pub topics: Topics,
    /// Where every owner goes on.
    pub counters: Vec<(OwnerId, Counters)>,
    /// What the cleaner has to know.
    pub found: Found,
    /// Whether the views were thrown away, and why.
    pub rebuilt: Option<String>,
    /// What of the log could not be read.
    pub damage: Vec<Damage>,
}

/// Recovers the views in `dir` from the log.
///
/// # Errors
/// The views can be neither believed nor rebuilt: no room, no permission.
pub fn recover(
    reader: &LogReader,
    end: LogPosition,
    dir: &Path,
    cache_bytes: u64,
    limits: Limits,
    crash: &crate::actors::CrashPoints,
) -> Result<Recovered, ViewsError> {
    let OpenedViews {
        views,
        from,
        rebuilt,
        rotten_homes,
    } = open_views(reader, end, dir, cache_bytes)?;
    let mut fold = Fold::begin(views, limits)?;
    fold.log(reader, from, end, crash)?;
    if rotten_homes {
        rearm::all(&mut fold)?;
    }
    let (counters, starts) = fold.finish(end)?;
    let found = Found {
        starts,
        owners: fold
            .topics
            .iter()
            .flat_map(Topic::ranges)
            .chain(fold.topics.groups().map(|group| group.range()))
            .collect(),
        next_owner: fold.topics.head().next_owner,
        mark: end,
    };
    Ok(Recovered {
        views: fold.views,
        mark: end,
        topics: fold.topics,
        counters,
        found,
        rebuilt,
        damage: fold.damage,
    })
}

/// The views a fold begins with.
struct OpenedViews {
    views: Views,
    /// From where on the log is folded.
    from: LogPosition,
    rebuilt: Option<String>,
    /// Homes of timers do not read: what waits gets new ones.
    rotten_homes: bool,
}

impl OpenedViews {
    fn empty(views: Views, rebuilt: Option<String>) -> Self {
        Self {
            views,
            from: LogPosition(0),
            rebuilt,
            rotten_homes: false,
        }
    }
}

fn open_views(
    reader: &LogReader,
    end: LogPosition,
    dir: &Path,
    cache_bytes: u64,
) -> Result<OpenedViews, ViewsError> {
    let cluster = reader.identity().cluster;
    let distrust = match Views::open(dir, cache_bytes, cluster) {
        Ok(opened) => match opened.standing {
            Standing::Fresh => return Ok(OpenedViews::empty(opened.views, None)),
            Standing::Trusted { mark, verified } if mark.position <= end => {
                for (home, why) in &verified.rotten {
                    tracing::error!(
                        target: "waterwheel::recovery",
                        level_owner = home.owner.0, home = home.id, why,
                        "a row of the timing wheel does not read: it is left out, and what waits gets new homes"
                    );
                }
                return Ok(OpenedViews {
                    from: mark.position,
                    rotten_homes: !verified.rotten.is_empty(),
                    ..OpenedViews::empty(opened.views, None)
                });
            }
            Standing::Trusted { .. } => "they hold more than the log".to_owned(),
            Standing::Distrusted(why) => why.to_string(),
        },
        Err(error) => error.to_string(),
    };
    tracing::warn!(
        target: "waterwheel::recovery",
        why = distrust, "the views are not believed: they are rebuilt from the log"
    );
    Views::destroy(dir)?;
    let opened = Views::open(dir, cache_bytes, cluster)?;
    Ok(OpenedViews::empty(opened.views, Some(distrust)))
}

/// A fold of the log in progress.
pub(crate) struct Fold {
    pub(crate) views: Views,
    pub(crate) topics: Topics,
    pub(crate) partitions: HashMap<OwnerId, Partition>,
    coordinators: HashMap<OwnerId, Coordinator>,
    pub(crate) groups: HashMap<OwnerId, Group>,
    pub(crate) damage: Vec<Damage>,
    limits: Limits,
    deleted: Vec<OwnerRange>,
    log_sequence: OwnerSequence,
    folded: usize,
    /// Timers that entries behind the mark armed, on their way to a home.
    timers: Unhomed,
}

impl Fold {
    fn begin(views: Views, limits: Limits) -> Result<Self, ViewsError> {
        let rows = views.rows(Tree::Meta, OwnerId::DIRECTORY)?;
        let head = rows
            .iter()
            .find(|row| row.kind == layout::HEAD)
            .map(|row| &*row.payload);
        let topics = rows
            .iter()
            .filter(|row| row.kind == layout::DIRECTORY_TOPIC)
            .map(|row| &*row.payload);
        let mut topics = Topics::from_rows(head, topics).unwrap_or_default();
        for row in rows
            .iter()
            .filter(|row| row.kind == layout::DIRECTORY_GROUP)
        {
            if !topics.restore_group(&row.payload) {
                tracing::error!(target: "waterwheel::recovery", group = row.id, "the row of a group does not read");
            }
        }
        let timers = Unhomed::begin(&views)?;
        Ok(Self {
            views,
            topics,
            partitions: HashMap::new(),
            coordinators: HashMap::new(),
            groups: HashMap::new(),
            damage: Vec::new(),
            limits,
            deleted: Vec::new(),
            log_sequence: OwnerSequence(0),
            folded: 0,
            timers,
        })
    }

    fn log(
        &mut self,
        reader: &LogReader,
        from: LogPosition,
        end: LogPosition,
        crash: &crate::actors::CrashPoints,
    ) -> Result<(), ViewsError> {
        let started = Instant::now();
        let mut told = started;
        for scanned in reader.scan(from, Some(end)) {
            match scanned {
                Scanned::Entry {
                    header,
                    place,
                    facts,
                    body,
                } => {
                    let body = body.unwrap_or_default();
                    let position = place.position;
                    self.entry(&AppliedEntry {
                        header,
                        place,
                        body,
                        facts,
                    })?;
                    if told.elapsed() > PROGRESS_EVERY {
                        told = Instant::now();
                        let percent = progress(from, position, end);
                        tracing::info!(
                            target: "waterwheel::recovery",
                            percent, entries = self.folded, "folding the log"
                        );
                    }
                }
                Scanned::Damaged(damage) => {
                    tracing::error!(target: "waterwheel::recovery", %damage, "the log is damaged");
                    self.damage.push(damage);
                }
            }
            crash.pass("during-recovery");
        }
        tracing::info!(
            target: "waterwheel::recovery",
            entries = self.folded, ms = started.elapsed().as_millis(), "the log is folded"
        );
        Ok(())
    }

    fn entry(&mut self, entry: &AppliedEntry) -> Result<(), ViewsError> {
        let owner = entry.header.owner;
        self.folded += 1;
        if owner == OwnerId::LOG {
            self.log_sequence = self.log_sequence.max(entry.header.sequence);
            return Ok(());
        }
        if owner == OwnerId::DIRECTORY {
            if entry.header.kind == EntryKind::Delete
                && let Ok(range) = rmp_serde::from_slice::<OwnerRange>(&entry.body)
            {
                self.partitions.retain(|owner, _| !range.contains(*owner));
                self.groups.retain(|owner, _| !range.contains(*owner));
                self.deleted.push(range);
            }
            self.topics.apply(entry, &mut Vec::new());
            return Ok(());
        }
        if let Some(shard) = shard_of_owner(owner) {
            let coordinator = self.coordinator(owner, shard)?;
            coordinator.apply(entry, &mut Vec::new());
            return Ok(());
        }
        if self.deleted.iter().any(|range| range.contains(owner)) {
            return Ok(());
        }
        if self.topics.group_of(owner).is_some() {
            return self.group_entry(owner, entry);
        }
        // Also of an entry that the partition's rows hold already: a home may have been missed by the
        // crash between the two.
        self.timers.extend(alarms_of(entry));
        if self.timers.is_large() {
            self.timers.write(&mut self.views)?;
        }
        if !self.partitions.contains_key(&owner) {
            let rows = self.views.rows(Tree::Partition, owner)?;
            let machine = load::partition_from_rows(self.limits, &rows)
                .unwrap_or_else(|| Partition::new(self.limits));
            self.partitions.insert(owner, machine);
        }
        if let Some(partition) = self.partitions.get_mut(&owner) {
            partition.apply(entry, &mut Vec::new());
        }
        if self.folded.is_multiple_of(ENTRIES_PER_WRITE) {
            self.write_partitions()?;
        }
        Ok(())
    }

    fn coordinator(&mut self, owner: OwnerId, shard: u8) -> Result<&mut Coordinator, ViewsError> {
        match self.coordinators.entry(owner) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(vacant) => {
                let rows = self.views.rows(Tree::Transaction, owner)?;
                // Limits are for what is new; a fold takes what was accepted.
                let limits = transaction::Limits::default();
                let machine = load::coordinator_from_rows(shard, limits, &rows)
                    .unwrap_or_else(|| Coordinator::new(shard, limits));
                Ok(vacant.insert(machine))
            }
        }
    }

    fn write_coordinators(&mut self) -> Result<(), ViewsError> {
        for (owner, machine) in &mut self.coordinators {
            let changes = actors::transaction::row_changes(*owner, machine);
            if !changes.is_empty() {
                self.views.write(&changes)?;
            }
        }
        Ok(())
    }

    fn group_entry(&mut self, owner: OwnerId, entry: &AppliedEntry) -> Result<(), ViewsError> {
        if !self.groups.contains_key(&owner) {
            let rows = self.views.rows(Tree::Group, owner)?;
            let limits = group::Limits::default();
            let machine = load::group_from_rows(owner, limits, 0, &rows)
                .unwrap_or_else(|| Group::new(owner, limits, 0));
            self.groups.insert(owner, machine);
        }
        if let Some(group) = self.groups.get_mut(&owner) {
            load::fold_group(group, entry);
        }
        if self.folded.is_multiple_of(ENTRIES_PER_WRITE) {
            self.write_partitions()?;
        }
        Ok(())
    }

    /// Where every group goes on; the views of those that are gone are dropped.
    fn finish_groups(&mut self, counters: &mut Vec<(OwnerId, Counters)>) -> Result<(), ViewsError> {
        let mut gone = Vec::new();
        for head in self.views.owners(Tree::Group) {
            let head = head?;
            if self.topics.group_of(head.owner).is_none() {
                gone.push(head.owner);
            } else if let Ok(values) = rmp_serde::from_slice::<group::Head>(&head.payload) {
                let sequence = values.sequence;
                counters.push((
                    head.owner,
                    Counters {
                        sequence,
                        ..Counters::default()
                    },
                ));
            }
        }
        for owner in gone {
            self.views.write(&[RowChange {
                tree: Tree::Group,
                key: RowKey::head(owner),
                value: None,
            }])?;
        }
        Ok(())
    }

    fn write_partitions(&mut self) -> Result<(), ViewsError> {
        for (owner, machine) in &mut self.groups {
            let changes = group_actor::row_changes(*owner, machine);
            if !changes.is_empty() {
                self.views.write(&changes)?;
            }
        }
        for (owner, machine) in &mut self.partitions {
            let changes = partition::row_changes(*owner, machine);
            if !changes.is_empty() {
                self.views.write(&changes)?;
            }
        }
        Ok(())
    }

    /// Writes what is left, drops what belongs to no topic, marks.
    fn finish(&mut self, end: LogPosition) -> Result<FoldedCounters, ViewsError> {
        self.write_partitions()?;
        self.write_coordinators()?;
        // What fired or was cancelled behind the mark need not be said due to be ignored.
        let partitions = &self.partitions;
        self.timers.retain(|alarm| {
            let owner = partitions.get(&alarm.owner);
            owner.is_none_or(|partition| partition.stands(alarm))
        });
        self.timers.write(&mut self.views)?;
        let changes = directory::row_changes(&mut self.topics);
        if !changes.is_empty() {
            self.views.write(&changes)?;
        }
        let owned = Owned::of(&self.topics);
        let (mut counters, mut starts, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for head in self.views.owners(Tree::Partition) {
            let head = head?;
            if !owned.contains(head.owner) {
                gone.push(head.owner);
                continue;
            }
            let Ok(values) = rmp_serde::from_slice::<Head>(&head.payload) else {
                continue;
            };
            counters.push((
                head.owner,
                Counters {
                    sequence: values.sequence,
                    next_number: values.next_number,
                    next_offset: values.next_offset,
                },
            ));
            if values.start_offset.0 > 0 {
                starts.push((head.owner, values.start_offset));
            }
        }
        for owner in gone {
            let key = RowKey {
                owner,
                kind: layout::HEAD,
                id: 0,
            };
            self.views.write(&[RowChange {
                tree: Tree::Partition,
                key,
                value: None,
            }])?;
        }
        for head in self.views.owners(Tree::Transaction) {
            let head = head?;
            let values = rmp_serde::from_slice::<transaction::Head>(&head.payload);
            let sequence = values.map(|values| values.sequence).unwrap_or_default();
            counters.push((
                head.owner,
                Counters {
                    sequence,
                    ..Counters::default()
                },
            ));
        }
        self.finish_groups(&mut counters)?;
        let sequence = self.topics.head().sequence;
        counters.push((
            OwnerId::DIRECTORY,
            Counters {
                sequence,
                ..Counters::default()
            },
        ));
        let sequence = self.log_sequence;
        counters.push((
            OwnerId::LOG,
            Counters {
                sequence,
                ..Counters::default()
            },
        ));
        self.views.mark(end, false)?;
        Ok((counters, starts))
    }
}

type FoldedCounters = (Vec<(OwnerId, Counters)>, Vec<(OwnerId, Offset)>);

fn progress(from: LogPosition, at: LogPosition, end: LogPosition) -> u64 {
    let whole = end.0.saturating_sub(from.0).max(1);
    at.0.saturating_sub(from.0).saturating_mul(100) / whole
}

/// Which owners the topics have, by range.
struct Owned(BTreeMap<OwnerId, u64>);

impl Owned {
    fn of(topics: &Topics) -> Self {
        Self(
            topics
                .iter()
                .flat_map(Topic::ranges)
                .map(|r| (r.first, r.count))
                .collect(),
        )
    }

    fn contains(&self, owner: OwnerId) -> bool {
        self.0
            .range(..=owner)
            .next_back()
            .is_some_and(|(first, count)| owner.0 - first.0 < *count)
    }
}

//! From a data directory to a state: views that are believed, and the log behind them.
//!
//! Views are a fold of the log. If they add up, the log is folded from their mark on; if they do not,
//! are missing, or hold more than the log has, they are thrown away and the whole log is folded, from
//! the summaries of its closed segments, so that payloads are not read. Either way the result is written
//! and marked before anything starts, and every actor then begins from rows alone.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::actors::cleaner::Found;
use crate::actors::wheel::homes::Unhomed;
use crate::actors::{directory, load, partition};
use crate::domain::alarm::alarms_of_payload;
use crate::domain::commit::{Counters, OwnerRange};
use crate::domain::entry::{AppliedEntry, EntryKind};
use crate::domain::id::{LogPosition, Offset, OwnerId, OwnerSequence};
use crate::domain::partition::{Head, Limits, Partition};
use crate::domain::topics::{Topic, Topics};
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
    let (views, from, rebuilt) = open_views(reader, end, dir, cache_bytes)?;
    let mut fold = Fold::begin(views, limits)?;
    fold.log(reader, from, end, crash)?;
    let (counters, starts) = fold.finish(end)?;
    let found = Found {
        starts,
        owners: fold.topics.iter().flat_map(Topic::ranges).collect(),
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

type OpenedViews = (Views, LogPosition, Option<String>);

fn open_views(
    reader: &LogReader,
    end: LogPosition,
    dir: &Path,
    cache_bytes: u64,
) -> Result<OpenedViews, ViewsError> {
    let cluster = reader.identity().cluster;
    let distrust = match Views::open(dir, cache_bytes, cluster) {
        Ok(opened) => match opened.standing {
            Standing::Fresh => return Ok((opened.views, LogPosition(0), None)),
            Standing::Trusted { mark, .. } if mark.position <= end => {
                return Ok((opened.views, mark.position, None));
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
    Ok((opened.views, LogPosition(0), Some(distrust)))
}

/// A fold of the log in progress.
pub(crate) struct Fold {
    pub(crate) views: Views,
    pub(crate) topics: Topics,
    pub(crate) partitions: HashMap<OwnerId, Partition>,
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
        let topics = Topics::from_rows(head, topics).unwrap_or_default();
        let timers = Unhomed::begin(&views)?;
        Ok(Self {
            views,
            topics,
            partitions: HashMap::new(),
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
                self.deleted.push(range);
            }
            self.topics.apply(entry, &mut Vec::new());
            return Ok(());
        }
        if self.deleted.iter().any(|range| range.contains(owner)) {
            return Ok(());
        }
        // Also of an entry that the partition's rows hold already: a home may have been missed by the
        // crash between the two.
        self.timers
            .extend(alarms_of_payload(&entry.header, &entry.facts));
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

    fn write_partitions(&mut self) -> Result<(), ViewsError> {
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

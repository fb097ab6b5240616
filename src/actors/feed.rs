//! Feeds: tasks beside a group's actor that find records for it.
//!
//! One search of one cursor is one task: it asks the partition for batches, waiting there without a timer
//! where there are none, looks at their record directories (and where a filter needs it at their bodies),
//! and tells the group what it found. It ends with that; the group asks again as its members' credit
//! goes. Whole batches that nobody wants one by one are not even read. A search the group has no use for
//! any more is dropped; the partition then forgets whoever waited.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

use super::Link;
use super::convoy::Traveller;
use super::directory::{Do as DirectoryDo, List};
use super::find::{Finder, Missed, first, question, record_of};
use super::group::GroupActor;
use super::reply::Answer;
use crate::domain::batch::{BatchBuilder, BatchStamp, Compression, Opened, Slot};
use crate::domain::entry::{Draft, EntryKind};
use crate::domain::filter::{Filter, Subject, Verdict};
use crate::domain::group::command::{CursorNumber, DeadLetter, Feed, Offered, OfferedRecord};
use crate::domain::group::dead::{Copied, topic_of};
use crate::domain::group::subscription::Start;
use crate::domain::id::{Lane, Offset, OwnerId, PartitionId, PartitionIndex};
use crate::domain::key::partition_of;
use crate::domain::partition::index::BatchPlace;
use crate::domain::partition::{Bounds, ReadFrom};
use crate::domain::record::{Record, RecordBody};
use crate::domain::rejection::Rejection;
use crate::domain::topics::{Command, TopicConfig};

/// What could not be read is looked for again after so long.
const UNREADABLE_PAUSE: Duration = Duration::from_millis(100);
/// How long it is waited for how far a place goes: lower lanes wait for it too.
const SURVEY: Duration = Duration::from_secs(1);

/// What a task found.
#[derive(Debug)]
pub enum Found {
    /// Records.
    Offered {
        /// For which cursor.
        cursor: CursorNumber,
        /// Which search.
        round: u64,
        /// Consecutive batches.
        batches: Vec<Offered>,
        /// The end of the partition.
        high_watermark: Offset,
    },
    /// What was looked for is gone: the partition begins here.
    Trimmed {
        /// For which cursor.
        cursor: CursorNumber,
        /// The first offset there is.
        start: Offset,
    },
    /// Nothing this time.
    Nothing {
        /// For which cursor.
        cursor: CursorNumber,
        /// Which search.
        round: u64,
    },
    /// Where records lie that are wanted again.
    Fetched {
        /// For which cursor.
        cursor: CursorNumber,
        /// From which record on it was looked.
        from: Offset,
        /// And up to where.
        end: Offset,
        /// The batches there are: what is in none of them is gone.
        batches: Vec<BatchPlace>,
    },
    /// A place.
    Looked {
        /// For what.
        job: u64,
        /// Which.
        place: PartitionId,
        /// Where it stands.
        found: Result<Bounds, Rejection>,
    },
    /// A dead letter was made, or not.
    Copied {
        /// Of which cursor.
        cursor: CursorNumber,
        /// Of which record.
        offset: Offset,
        /// What came of it.
        copied: Copied,
    },
}

/// What a task needs.
#[derive(Debug, Clone)]
pub struct Feeder {
    /// Finds batches and reads them.
    pub finder: Finder,
    /// Whom it tells.
    pub group: Link<GroupActor>,
    /// Whose task it is.
    pub owner: OwnerId,
    /// Searches that wait for other groups.
    pub waiting: Waiting,
}

/// Searches of a group that wait for other groups to come near, and how each is told to wait no longer.
#[derive(Debug, Clone, Default)]
pub struct Waiting(Rc<RefCell<BTreeMap<CursorNumber, Rc<Notify>>>>);

/// A search waits, until this is dropped.
struct Waits<'a> {
    waiting: &'a Waiting,
    cursor: CursorNumber,
    enough: Rc<Notify>,
}

impl Waiting {
    /// Searches that are needed now go on.
    pub fn release(&self, is_short: impl Fn(CursorNumber) -> bool) {
        for (cursor, enough) in self.0.borrow().iter() {
            if is_short(*cursor) {
                enough.notify_one();
            }
        }
    }

    fn enter(&self, cursor: CursorNumber) -> Waits<'_> {
        let enough = Rc::new(Notify::new());
        self.0.borrow_mut().insert(cursor, Rc::clone(&enough));
        Waits {
            waiting: self,
            cursor,
            enough,
        }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiting.0.borrow_mut();
        // The next search of the same cursor may have come before this one was dropped.
        if waiting
            .get(&self.cursor)
            .is_some_and(|enough| Rc::ptr_eq(enough, &self.enough))
        {
            waiting.remove(&self.cursor);
        }
    }
}

impl Feeder {
    /// Finds records from an offset on; where they are needed now, without waiting for other groups.
    pub async fn feed(self, feed: Feed, is_short: bool) {
        let (cursor, round) = (feed.cursor, feed.round);
        let found = if feed.wait {
            self.find(&feed, is_short).await
        } else {
            let in_time = tokio::time::timeout(SURVEY, self.find(&feed, true)).await;
            in_time.unwrap_or(Err(Missed::Unreadable))
        };
        let found = match found {
            Ok((batches, high_watermark)) => Found::Offered {
                cursor,
                round,
                batches,
                high_watermark,
            },
            Err(Missed::Trimmed(start)) => Found::Trimmed { cursor, start },
            Err(Missed::Unreadable | Missed::Damaged) => Found::Nothing { cursor, round },
            // The directory says so too, and the group asks no more.
            Err(Missed::Gone) => return,
        };
        self.group.tell(found);
    }

    /// Finds the batches of records that come again. What is not told as found is given up for good, so only
    /// what is gone is: where the partition cannot say now, it is asked again.
    pub async fn fetch(self, feed: Feed) {
        let (cursor, from) = (feed.cursor, feed.from);
        let (batches, end) = loop {
            let found = self.finder.batches(feed.place, from, feed.bytes_max, false);
            match found.await {
                Ok(answer) => {
                    let end = answer.batches.last().map_or(from, BatchPlace::end);
                    break (answer.batches, end);
                }
                Err(Missed::Gone) => return,
                Err(Missed::Trimmed(start)) => break (Vec::new(), start),
                Err(Missed::Damaged) => break (Vec::new(), from),
                Err(Missed::Unreadable) => tracing::warn!(
                    target: "waterwheel::group",
                    topic = feed.place.topic.0, partition = feed.place.partition.0, offset = from.0,
                    "cannot be found now"
                ),
            }
        };
        self.group.tell(Found::Fetched {
            cursor,
            from,
            end,
            batches,
        });
    }

    /// Finds where a place stands.
    pub async fn look_up(self, job: u64, place: PartitionId, start: Start) {
        let from = match start {
            Start::Earliest => ReadFrom::Earliest,
            Start::Latest => ReadFrom::Latest,
            Start::Time(time) => ReadFrom::Time(time),
            Start::Offset(offset) => ReadFrom::Offset(offset),
        };
        let mut found = self.finder.bounds(place, from).await;
        if let (Err(Rejection::OffsetOutOfRange { start, end }), Start::Offset(offset)) =
            (&found, start_of(&start))
        {
            let offset = offset.clamp(*start, *end);
            found = self
                .finder
                .bounds(place, ReadFrom::Earliest)
                .await
                .map(|bounds| Bounds { offset, ..bounds });
        }
        self.group.tell(Found::Looked { job, place, found });
    }

    async fn find(&self, feed: &Feed, is_short: bool) -> Result<(Vec<Offered>, Offset), Missed> {
        // Entered before anything is waited for: a member that runs short meanwhile is not missed.
        let waits = self.waiting.enter(feed.cursor);
        let answer = self
            .finder
            .batches(feed.place, feed.from, feed.bytes_max, feed.wait)
            .await?;
        self.keep_together(feed, &answer.batches, is_short, &waits)
            .await;
        drop(waits);
        let high_watermark = answer.high_watermark;
        let filter = if feed.filter.is_empty() {
            None
        } else {
            // It was checked when the subscription was made.
            Filter::parse(&feed.filter)
                .ok()
                .filter(|filter| !filter.is_everything())
        };
        let mut offered = Vec::with_capacity(answer.batches.len());
        for batch in answer.batches {
            let from = feed.from.max(batch.first_offset);
            let skips = filter
                .as_ref()
                .is_some_and(|filter| !filter.may_match(batch.tags));
            let records = if skips {
                self.group.stats().skipped_batch();
                Some(Vec::new())
            } else if feed.keys || filter.is_some() {
                self.group.stats().read_batch();
                match self.finder.opened(&batch).await {
                    Ok(opened) => Some(choose(&batch, from, &opened, filter.as_ref())),
                    Err(Missed::Trimmed(start)) if offered.is_empty() => {
                        return Err(Missed::Trimmed(start));
                    }
                    // Whoever delivers it says so.
                    Err(Missed::Damaged) => None,
                    // What follows is looked for again. Without its keys and tags nothing of it may be given.
                    Err(_) if !offered.is_empty() => break,
                    Err(missed) => {
                        tokio::time::sleep(UNREADABLE_PAUSE).await;
                        return Err(missed);
                    }
                }
            } else {
                None
            };
            offered.push(Offered {
                batch,
                from,
                records,
            });
        }
        Ok((offered, high_watermark))
    }

    /// Where records must be read from the disk, says where the group is, and waits while it is too far ahead
    /// of others for them to be served from what it reads. It does not wait while its members might run
    /// short: nobody is slowed down by who is slower.
    async fn keep_together(
        &self,
        feed: &Feed,
        batches: &[BatchPlace],
        is_short: bool,
        waits: &Waits<'_>,
    ) {
        let house = &self.finder.house;
        let Some(first) = batches.first() else {
            return;
        };
        if house.cache.has(first.position) {
            return;
        }
        let traveller = Traveller {
            group: self.owner,
            cursor: feed.cursor,
        };
        house.convoys.at(feed.place, traveller, feed.from);
        let bytes: u64 = batches.iter().map(BatchPlace::bytes).sum();
        let records: u64 = batches.iter().map(|batch| u64::from(batch.count)).sum();
        let record_bytes = bytes / records.max(1);
        if is_short || !house.convoys.is_ahead(feed.place, feed.from, record_bytes) {
            return;
        }
        tokio::select! {
            () = house.convoys.wait(feed.place, feed.from, record_bytes) => {}
            () = waits.enough.notified() => {}
        }
    }

    // ---- dead letters ---------------------------------------------------------------------------

    /// Copies a record into the dead-letter topic: as entries, for the group to tie to its settlement.
    pub async fn bury(self, letter: DeadLetter, group: String) {
        let (cursor, offset) = (letter.cursor, letter.offset);
        let copied = self.copy(&letter, &group).await;
        self.group.tell(Found::Copied {
            cursor,
            offset,
            copied,
        });
    }

    async fn copy(&self, letter: &DeadLetter, group: &str) -> Copied {
        let batch = match self
            .finder
            .batches(letter.place, letter.offset, 1, false)
            .await
        {
            Ok(answer) => answer
                .batches
                .first()
                .copied()
                .filter(|batch| (batch.first_offset..batch.end()).contains(&letter.offset)),
            Err(Missed::Gone | Missed::Unreadable) => return Copied::Later,
            Err(Missed::Trimmed(_) | Missed::Damaged) => None,
        };
        let Some(batch) = batch else {
            return Copied::Lost;
        };
        // Many of a batch die together: it is opened once for all of them.
        let opened = match self.finder.opened(&batch).await {
            Ok(opened) => opened,
            Err(Missed::Gone | Missed::Unreadable) => return Copied::Later,
            Err(Missed::Trimmed(_) | Missed::Damaged) => return Copied::Lost,
        };
        let Some((slot, record)) = record_of(&batch, letter.offset, &opened) else {
            return Copied::Lost;
        };
        let name = letter.to.clone().unwrap_or_else(|| topic_of(group));
        let Some((owner, source)) = self.dead_letter_owner(&name, letter, slot.key_hash).await
        else {
            return Copied::Later;
        };
        let copy = dead_record(letter, group, &source, &slot, record);
        let mut builder = BatchBuilder::new(usize::MAX, Compression::None);
        let pushed = builder.push(&copy, copy.id.unwrap_or_default(), slot.timestamp);
        let batch = builder.finish(BatchStamp::default());
        let Some(batch) = batch.filter(|_| pushed.is_ok()) else {
            return Copied::Lost;
        };
        let Some(facts) = crate::domain::batch::facts(&batch) else {
            return Copied::Lost;
        };
        let draft = Draft {
            kind: EntryKind::Payload,
            numbers: 1,
            offsets: 1,
            body: batch.into(),
            facts,
        };
        tracing::info!(
            target: "waterwheel::group",
            group, topic = source, partition = letter.place.partition.0, offset = letter.offset.0,
            attempts = letter.attempts, reason = letter.reason, to = name, "dead-lettered"
        );
        Copied::To(vec![(owner, draft)])
    }

    /// The owner a dead letter goes to, and the name of the topic it comes from. The topic is made if it
    /// is not there.
    async fn dead_letter_owner(
        &self,
        name: &str,
        letter: &DeadLetter,
        key_hash: u64,
    ) -> Option<(OwnerId, String)> {
        let found = self.owner_of_letter(name, letter, key_hash).await;
        let Err(NoOwner::NotThere) = found else {
            return found.ok();
        };
        let (reply, mut answer) = question();
        self.finder.directory.tell(DirectoryDo {
            command: Command::Create {
                name: name.to_owned(),
                partitions: 1,
                config: TopicConfig::default(),
            },
            reply,
        });
        // Whether it was made now, or by another letter in the same moment.
        let _ = first(&mut answer).await;
        self.owner_of_letter(name, letter, key_hash).await.ok()
    }

    async fn owner_of_letter(
        &self,
        name: &str,
        letter: &DeadLetter,
        key_hash: u64,
    ) -> Result<(OwnerId, String), NoOwner> {
        let (reply, mut answer) = question();
        self.finder.directory.tell(List {
            names: Vec::new(),
            reply,
        });
        let Answer::Topics(topics, _) = first(&mut answer).await else {
            return Err(NoOwner::Otherwise);
        };
        let source = topics
            .iter()
            .find(|topic| topic.id == letter.place.topic)
            .map(|topic| topic.name.clone())
            .ok_or(NoOwner::Otherwise)?;
        let topic = topics.iter().find(|topic| topic.name == name);
        let topic = topic.ok_or(NoOwner::NotThere)?;
        if topic.id == letter.place.topic {
            tracing::error!(target: "waterwheel::group", topic = name, "a dead letter of the dead-letter topic itself stays where it is");
            return Err(NoOwner::Otherwise);
        }
        let partition = if key_hash == 0 {
            PartitionIndex(0)
        } else {
            partition_of(key_hash, topic.partitions)
        };
        let owner = topic.owner(partition, Lane::ZERO);
        Ok((owner.ok_or(NoOwner::Otherwise)?, source))
    }
}

/// Why a dead letter has nowhere to go now.
enum NoOwner {
    /// There is no such topic yet.
    NotThere,
    /// It cannot be told, or may not be.
    Otherwise,
}

fn start_of(start: &Start) -> Start {
    *start
}

/// The records of a batch from an offset on that pass the filter, with their keys.
fn choose(
    batch: &BatchPlace,
    from: Offset,
    opened: &Opened,
    filter: Option<&Filter>,
) -> Vec<OfferedRecord> {
    let skipped = from.0.saturating_sub(batch.first_offset.0);
    let skipped = u32::try_from(skipped).unwrap_or(u32::MAX);
    (skipped..batch.count)
        .filter_map(|skip| {
            let at = batch.record(skip);
            let slot = opened.slot(at)?;
            let matches = || {
                let body = RecordBody::decode(&opened.body(at).ok()?).ok()?;
                Some(filter?.matches(&Subject::new(&slot, &body)))
            };
            let is_chosen = match filter.map(|filter| filter.decide(&slot)) {
                None | Some(Verdict::Yes) => true,
                Some(Verdict::No) => false,
                Some(Verdict::Open) => matches().unwrap_or(false),
            };
            let offset = Offset(batch.first_offset.0.saturating_add(u64::from(skip)));
            is_chosen.then_some(OfferedRecord {
                offset,
                key_hash: slot.key_hash,
            })
        })
        .collect()
}

/// The copy: as it was, with where it came from and why it is here.
fn dead_record(
    letter: &DeadLetter,
    group: &str,
    source: &str,
    slot: &Slot,
    body: RecordBody,
) -> Record {
    let mut record = Record::new(body.value)
        .id(body.id)
        .timestamp(slot.timestamp);
    if let Some(key) = body.key {
        record = record.key(key);
    }
    if let Some(tag) = body.tag {
        record = record.tag(tag);
    }
    for (name, value) in body.headers {
        if !name.as_str().starts_with(DEAD_HEADER) {
            record = record.header(name, value);
        }
    }
    let facts = [
        ("group", group.to_owned()),
        ("reason", letter.reason.clone()),
        ("attempts", letter.attempts.to_string()),
        ("topic", source.to_owned()),
        ("partition", letter.place.partition.to_string()),
        ("lane", letter.place.lane.to_string()),
        ("offset", letter.offset.to_string()),
    ];
    for (name, value) in facts {
        record = record.header(format!("{DEAD_HEADER}{name}"), value.into_bytes());
    }
    record
}

/// How the headers of a dead letter begin that say where it came from and why.
pub const DEAD_HEADER: &str = "waterwheel-dead-";

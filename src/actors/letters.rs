//! Dead letters as they lie in their topic: found, read, and made into what they were.
//!
//! In: a place, which of its offsets are open, and what is wanted. Out: letters with where they come from,
//! or the entries that bring one back, for the group of letters to tie to its settlement
//! ([`crate::domain::group::letters`]). A letter is a copy of a record with `waterwheel-dead-*` headers; what
//! goes back is the record without them, under its message id.

use super::feed::DEAD_HEADER;
use super::find::{Finder, Missed, records_at};
use crate::domain::batch::{
    BATCH_BYTES_CEILING, BatchBuilder, BatchStamp, Compression, Delivery, Slot,
};
use crate::domain::entry::{Draft, EntryKind};
use crate::domain::id::{Lane, Offset, OwnerId, PartitionId, PartitionIndex};
use crate::domain::key::partition_of;
use crate::domain::partition::{Bounds, ReadFrom};
use crate::domain::record::{Record, RecordBody};
use crate::domain::rejection::Rejection;
use crate::domain::time::WallMs;
use crate::domain::topics::Topic;

/// Offsets looked through for one page at most.
pub const SCANNED_MAX: u64 = 10_000;
/// Bytes of the letters of one page: what is brought back of them is one write of the log.
const PAGE_BYTES: usize = 256 * 1024;
/// What a letter takes beside its parts, as an entry and a batch of its own, rounded up.
const FRAME_BYTES: usize = 512;
/// Bytes of batches asked for at once.
const READ_BYTES: u64 = 256 * 1024;

/// Where a letter comes from, and why it is one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    /// The consumer group that could not consume it.
    pub group: String,
    /// Why, the last time.
    pub reason: String,
    /// How often it was delivered.
    pub attempts: u32,
    /// The topic it was in, by name.
    pub topic: String,
    /// The partition.
    pub partition: PartitionIndex,
    /// The lane: its priority.
    pub lane: Lane,
    /// The offset.
    pub offset: Offset,
}

impl Origin {
    /// What the headers of a record say; none where it is no dead letter.
    #[must_use]
    pub fn of(body: &RecordBody) -> Option<Self> {
        let mut origin = Self::default();
        for (name, value) in &body.headers {
            let Some(name) = name.as_str().strip_prefix(DEAD_HEADER) else {
                continue;
            };
            let text = String::from_utf8_lossy(value).into_owned();
            let number = || text.parse::<u64>().unwrap_or(0);
            let small = || u32::try_from(number()).unwrap_or(0);
            match name {
                "group" => origin.group = text,
                "reason" => origin.reason = text,
                "attempts" => origin.attempts = small(),
                "topic" => origin.topic = text,
                "partition" => origin.partition = PartitionIndex(small()),
                "lane" => origin.lane = Lane(u8::try_from(number()).unwrap_or(0)),
                "offset" => origin.offset = Offset(number()),
                _ => {}
            }
        }
        (!origin.topic.is_empty()).then_some(origin)
    }
}

/// A dead letter.
#[derive(Debug)]
pub struct Letter {
    /// Where it is, in the dead-letter topic.
    pub offset: Offset,
    /// When it became one.
    pub appended: WallMs,
    /// What the directory says of it.
    pub slot: Slot,
    /// The record.
    pub body: RecordBody,
    /// Where it comes from; none where somebody else put the record there.
    pub origin: Option<Origin>,
}

/// Part of a place.
#[derive(Debug, Default)]
pub struct Page {
    /// What was found, in order.
    pub letters: Vec<Letter>,
    /// Records that cannot be read.
    pub unreadable: Vec<Offset>,
    /// Where to go on; none at the end of the place.
    pub next: Option<Offset>,
}

impl Finder {
    /// Where a place begins and ends.
    ///
    /// # Errors
    /// The topic is gone, or the partition is stopped.
    pub async fn extent(&self, place: PartitionId) -> Result<Bounds, Rejection> {
        self.bounds(place, ReadFrom::Earliest).await
    }

    /// Reads the letters between two offsets that are open and wanted, up to `max` of them.
    ///
    /// # Errors
    /// The topic is gone, or its batches cannot be found.
    pub async fn letters(
        &self,
        place: PartitionId,
        (from, to): (Offset, Offset),
        open: &[(Offset, u64)],
        max: usize,
        wanted: impl Fn(&Letter) -> bool,
    ) -> Result<Page, Rejection> {
        let mut page = Page::default();
        let (mut at, mut bytes) = (from, 0);
        let flush = usize::try_from(self.house.settings.snapshot_bytes_max).unwrap_or(usize::MAX);
        let budget = PAGE_BYTES.min(flush / 2);
        while at < to {
            let found = match self.batches(place, at, READ_BYTES, false).await {
                Ok(found) => found.batches,
                Err(Missed::Trimmed(start)) => {
                    at = start.max(Offset(at.0 + 1));
                    continue;
                }
                Err(Missed::Gone) => return Err(Rejection::UnknownTopic),
                Err(Missed::Unreadable | Missed::Damaged) => {
                    let what = format!("offset {at} of the dead-letter topic");
                    return Err(Rejection::Damaged(what));
                }
            };
            if found.is_empty() {
                break;
            }
            for batch in found {
                let offsets = at.max(batch.first_offset).0..batch.end().min(to).0;
                let offsets: Vec<u64> = offsets.filter(|at| is_in(open, *at)).collect();
                if offsets.is_empty() {
                    at = batch.end();
                    continue;
                }
                let records = match self.body(&batch).await {
                    Ok(body) => records_at(&batch, &offsets, &body),
                    Err(_) => offsets.iter().map(|_| None).collect(),
                };
                for (offset, record) in offsets.into_iter().map(Offset).zip(records) {
                    if page.letters.len() >= max {
                        page.next = Some(offset);
                        return Ok(page);
                    }
                    let Some((slot, body)) = record else {
                        page.unreadable.push(offset);
                        continue;
                    };
                    let letter = Letter {
                        offset,
                        appended: batch.appended,
                        origin: Origin::of(&body),
                        slot,
                        body,
                    };
                    if !wanted(&letter) {
                        continue;
                    }
                    bytes += size(&letter.body);
                    if bytes > budget && !page.letters.is_empty() {
                        page.next = Some(offset);
                        return Ok(page);
                    }
                    page.letters.push(letter);
                }
                at = batch.end();
            }
        }
        Ok(page)
    }
}

fn is_in(ranges: &[(Offset, u64)], offset: u64) -> bool {
    let after = ranges.partition_point(|(first, _)| first.0 <= offset);
    let before = after.checked_sub(1).and_then(|at| ranges.get(at));
    before.is_some_and(|(first, count)| offset - first.0 < *count)
}

fn size(body: &RecordBody) -> usize {
    let headers: usize = body
        .headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    body.value.len() + body.key.as_ref().map_or(0, |key| key.len()) + headers + FRAME_BYTES
}

impl Letter {
    /// The record as it was, as an entry of the partition it goes back to: the one it came from, where that
    /// is a partition of the topic, at its priority.
    ///
    /// # Errors
    /// It is larger than any batch may be.
    pub fn back_to(&self, topic: &Topic, is_origin: bool) -> Result<(OwnerId, Draft), Rejection> {
        let origin = self.origin.as_ref();
        let came_from = origin.filter(|_| is_origin).map(|origin| origin.partition);
        let partition = came_from
            .filter(|partition| partition.0 < topic.partitions)
            .unwrap_or_else(|| spread(&self.slot, self.offset, topic.partitions));
        let lane = origin.map_or(0, |origin| origin.lane.0);
        let lane = Lane(lane.min(topic.config.levels.saturating_sub(1)));
        let owner = topic
            .owner(partition, lane)
            .ok_or(Rejection::UnknownTopic)?;
        Ok((owner, self.draft(lane)?))
    }

    fn draft(&self, lane: Lane) -> Result<Draft, Rejection> {
        let too_large = || Rejection::TooLarge {
            bytes_max: u32::try_from(BATCH_BYTES_CEILING).unwrap_or(u32::MAX),
        };
        let record = record(&self.body);
        let mut builder = BatchBuilder::new(usize::MAX, Compression::None);
        builder
            .push_with(
                &record,
                self.body.id,
                self.slot.timestamp,
                lane.0,
                Delivery::Now,
            )
            .map_err(|_| too_large())?;
        let batch = builder
            .finish(BatchStamp::default())
            .ok_or_else(too_large)?;
        let facts = crate::domain::batch::facts(&batch).ok_or_else(too_large)?;
        Ok(Draft {
            kind: EntryKind::Payload,
            numbers: 1,
            offsets: 1,
            body: batch.into(),
            facts,
        })
    }
}

/// Where a record goes that has no partition of its own: its key decides, or its place in the line.
fn spread(slot: &Slot, offset: Offset, partitions: u32) -> PartitionIndex {
    if slot.key_hash != 0 {
        return partition_of(slot.key_hash, partitions);
    }
    let index = offset.0 % u64::from(partitions.max(1));
    PartitionIndex(u32::try_from(index).unwrap_or(0))
}

/// The record as it was before it became a letter.
fn record(body: &RecordBody) -> Record {
    let mut record = Record::new(body.value.clone()).id(body.id);
    if let Some(key) = &body.key {
        record = record.key(key.clone());
    }
    if let Some(tag) = &body.tag {
        record = record.tag(tag.clone());
    }
    for (name, value) in &body.headers {
        if !name.as_str().starts_with(DEAD_HEADER) {
            record = record.header(name.clone(), value.clone());
        }
    }
    record
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::domain::id::MessageId;

    fn body(headers: &[(&str, &str)]) -> RecordBody {
        let mut record = Record::new("value").key("key").tag("tag");
        for (name, value) in headers {
            record = record.header((*name).to_owned(), value.as_bytes().to_vec());
        }
        let mut out = Vec::new();
        crate::domain::record::encode_body(&record, MessageId([7; 16]), &mut out);
        RecordBody::decode(&Bytes::from(out)).unwrap()
    }

    #[test]
    fn the_headers_of_a_letter_say_where_it_comes_from_and_go_when_it_does() {
        let letter = body(&[
            ("own", "1"),
            ("waterwheel-dead-group", "billing"),
            ("waterwheel-dead-reason", "no such account"),
            ("waterwheel-dead-attempts", "16"),
            ("waterwheel-dead-topic", "orders"),
            ("waterwheel-dead-partition", "3"),
            ("waterwheel-dead-lane", "2"),
            ("waterwheel-dead-offset", "77"),
            ("waterwheel-dead-of-a-later-version", "?"),
        ]);
        let origin = Origin {
            group: "billing".into(),
            reason: "no such account".into(),
            attempts: 16,
            topic: "orders".into(),
            partition: PartitionIndex(3),
            lane: Lane(2),
            offset: Offset(77),
        };
        assert_eq!(Origin::of(&letter), Some(origin));
        let back = record(&letter);
        assert_eq!(back.headers.len(), 1);
        assert_eq!(back.headers[0].0.as_str(), "own");
        assert_eq!(back.id, Some(MessageId([7; 16])));
        assert_eq!(Origin::of(&body(&[("own", "1")])), None);
    }

    #[test]
    fn offsets_are_looked_up_in_ranges() {
        let ranges = [(Offset(2), 3), (Offset(9), 1)];
        let inside: Vec<u64> = (0..12).filter(|at| is_in(&ranges, *at)).collect();
        assert_eq!(inside, [2, 3, 4, 9]);
        assert!(!is_in(&[], 0));
    }
}

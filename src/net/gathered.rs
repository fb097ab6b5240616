//! Leased records of one place put together in one frame, from however many batches they are: where keys
//! come free one by one, a frame for each would cost more than its record.

use super::leases::LEASES_MAX;
use crate::domain::batch::{BATCH_BYTES_CEILING, BATCH_RECORDS_MAX, BatchError, Cut, Taken};
use crate::domain::body::Body;
use crate::domain::group::command::Lease;
use crate::wire::consume::{LeaseHead, Leased, PublishedLater};

/// Bytes of records beyond which no other lease joins.
const GATHERED_BYTES: usize = 256 * 1024;

/// See the module.
pub(super) struct Gathered {
    leases: Vec<Lease>,
    cut: Cut,
    bytes: usize,
}

impl Default for Gathered {
    fn default() -> Self {
        Self {
            leases: Vec::new(),
            cut: Cut::new(BATCH_BYTES_CEILING),
            bytes: 0,
        }
    }
}

impl Gathered {
    /// Whether a lease of so many bytes goes into the same frame as those before it.
    pub(super) fn may_join(&self, lease: &Lease, bytes: usize) -> bool {
        let count = usize::try_from(lease.count).unwrap_or(usize::MAX);
        self.leases.last().is_none_or(|last| {
            last.place == lease.place
                && last.generation == lease.generation
                && last.first < lease.first
                && goes_with(last, lease)
                && self.leases.len() < LEASES_MAX
                && self.cut.len().saturating_add(count) <= BATCH_RECORDS_MAX
                && self.bytes.saturating_add(bytes) <= GATHERED_BYTES
        })
    }

    /// Adds a lease with its records.
    ///
    /// # Errors
    /// Where they make no batch; what was gathered before is as it was.
    pub(super) fn push(&mut self, lease: &Lease, records: Vec<Taken>) -> Result<(), BatchError> {
        let bytes: usize = records.iter().map(Taken::bytes).sum();
        let is_first = self.leases.is_empty();
        for record in records {
            if !self.cut.push_taken(record) {
                debug_assert!(is_first, "what joins has room");
                *self = Self::default();
                return Err(BatchError::TooLarge(bytes as u64));
            }
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.leases.push(lease.clone());
        Ok(())
    }

    /// The frame; none where nothing was gathered. Empty afterwards.
    pub(super) fn finish(&mut self) -> Option<(Leased, Body)> {
        let gathered = std::mem::take(self);
        let Self {
            leases, mut cut, ..
        } = gathered;
        let head = head(leases.first()?, &leases);
        Some((head, cut.finish()?))
    }
}

/// What a frame says of its records beside their leases can be said of both: when each was appended can.
fn goes_with(a: &Lease, b: &Lease) -> bool {
    let is_same = a.batch.position == b.batch.position && a.batch.reference == b.batch.reference;
    is_same || (a.batch.reference.is_none() && b.batch.reference.is_none())
}

/// How many records of its batch lie before a lease.
pub(super) fn skipped(lease: &Lease) -> u32 {
    let skipped = lease.first.0.saturating_sub(lease.batch.first_offset.0);
    u32::try_from(skipped).unwrap_or(u32::MAX)
}

/// Where the leased records are in their batch.
pub(super) fn indexes(leases: &[Lease]) -> impl Iterator<Item = usize> + Clone {
    leases.iter().flat_map(|lease| {
        let from = skipped(lease);
        (from..from.saturating_add(lease.count)).map(|skip| lease.batch.record(skip))
    })
}

/// What a frame says of leases.
pub(super) fn head(first: &Lease, leases: &[Lease]) -> Leased {
    let appended = first.batch.appended;
    let is_at_once = leases.iter().all(|lease| lease.batch.appended == appended);
    let later = |lease: &Lease| lease.batch.appended.0.saturating_sub(appended.0);
    Leased {
        topic: first.place.topic,
        partition: first.place.partition,
        lane: first.place.lane,
        generation: first.generation,
        appended,
        base: None,
        leases: leases
            .iter()
            .map(|lease| LeaseHead {
                lease: lease.id,
                first: lease.first,
                count: lease.count,
                attempt: lease.attempt,
                lease_ms: lease.lease_ms,
                bytes: lease.bytes,
            })
            .collect(),
        published: first.batch.reference.map(|reference| PublishedLater {
            stored: reference.stored,
            due: reference.due,
        }),
        later_ms: match is_at_once {
            true => Vec::new(),
            false => leases.iter().map(later).collect(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::batch::{BatchBuilder, BatchStamp, Compression, Opened};
    use crate::domain::id::{
        Generation, Lane, LeaseId, LogPosition, MessageId, Offset, PartitionId, PartitionIndex,
        TopicId,
    };
    use crate::domain::partition::index::BatchPlace;
    use crate::domain::record::Record;
    use crate::domain::time::WallMs;

    fn lease(first: u64, count: u32, appended: i64) -> Lease {
        Lease {
            id: LeaseId(first),
            place: PartitionId {
                topic: TopicId(1),
                partition: PartitionIndex(0),
                lane: Lane::ZERO,
            },
            batch: BatchPlace {
                first_offset: Offset(first / 10 * 10),
                count: 10,
                first_number: Default::default(),
                position: LogPosition(first / 10 * 1000),
                length: 1000,
                appended: WallMs(appended),
                tags: 0,
                reference: None,
            },
            first: Offset(first),
            count,
            attempt: 1,
            generation: Generation(1),
            lease_ms: 1000,
            bytes: 1,
        }
    }

    fn records(lease: &Lease, bytes: usize) -> Vec<Taken> {
        let mut builder = BatchBuilder::new(64 << 20, Compression::None);
        for index in 0..10 {
            let record = Record::new(vec![index; bytes]);
            builder
                .push(&record, MessageId::default(), WallMs(1))
                .unwrap();
        }
        let batch = builder.finish(BatchStamp::default()).unwrap();
        let opened = Opened::open(&batch.into()).unwrap();
        let taken = indexes(std::slice::from_ref(lease)).map(|index| opened.take(index).unwrap());
        taken.collect()
    }

    #[test]
    fn leases_of_several_batches_are_one_frame_that_says_when_each_was_appended() {
        let mut gathered = Gathered::default();
        assert!(gathered.finish().is_none());
        let leases = [lease(3, 2, 100), lease(17, 1, 90), lease(25, 3, 700)];
        for lease in &leases {
            assert!(gathered.may_join(lease, 10));
            gathered.push(lease, records(lease, 20)).unwrap();
        }
        let (head, body) = gathered.finish().unwrap();
        assert_eq!(head.appended, WallMs(100));
        assert_eq!(head.later_ms, [0, -10, 600]);
        let firsts: Vec<u64> = head.leases.iter().map(|lease| lease.first.0).collect();
        assert_eq!(firsts, [3, 17, 25]);
        let opened = Opened::open(&body).unwrap();
        assert_eq!(opened.len(), 6);
        let expected = leases.iter().flat_map(|lease| records(lease, 20));
        for (index, taken) in expected.enumerate() {
            assert_eq!(opened.body(index).unwrap(), taken_body(&taken));
        }
        assert!(gathered.finish().is_none(), "empty afterwards");
    }

    fn taken_body(taken: &Taken) -> bytes::Bytes {
        let mut cut = Cut::new(1 << 20);
        assert!(cut.push_taken(taken.clone()));
        Opened::open(&cut.finish().unwrap())
            .unwrap()
            .body(0)
            .unwrap()
    }

    #[test]
    fn what_is_said_of_a_whole_frame_must_be_so_of_every_lease_in_it() {
        let first = lease(3, 2, 100);
        let mut gathered = Gathered::default();
        gathered.push(&first, records(&first, 20)).unwrap();
        let mut other = lease(17, 1, 100);
        assert!(gathered.may_join(&other, 10));
        assert!(!gathered.may_join(&other, GATHERED_BYTES), "too much");
        other.generation = Generation(2);
        assert!(!gathered.may_join(&other, 10));
        other = lease(17, 1, 100);
        other.place.lane = Lane(1);
        assert!(!gathered.may_join(&other, 10));
        assert!(!gathered.may_join(&lease(1, 1, 100), 10), "ascending");
    }

    #[test]
    fn a_lease_beyond_what_a_batch_may_be_harms_none_after_it() {
        let huge = lease(0, 10, 100);
        let mut gathered = Gathered::default();
        assert!(gathered.may_join(&huge, usize::MAX));
        let twice = [records(&huge, 1 << 20), records(&huge, 1 << 20)].concat();
        assert!(gathered.push(&huge, twice).is_err());
        assert!(gathered.finish().is_none());
        let small = lease(11, 1, 100);
        assert!(gathered.may_join(&small, 10));
        gathered.push(&small, records(&small, 20)).unwrap();
        assert_eq!(gathered.finish().unwrap().0.leases.len(), 1);
    }
}

//! Alarms: what the timing wheel knows of a timer, and all it knows.
//!
//! An owner (a partition, a group, a coordinator) arms a token of its own for a moment of one of two
//! clocks; the wheel says when the moment has come. What the token means, whether it still stands, and
//! what happens then is the owner's business alone: a version that is stale or a token that is settled
//! is ignored by the owner, so the wheel need not be told of a cancellation, and arming twice is harmless.
//!
//! - A1 An alarm is never due before its moment; one armed for the past is due at once.
//! - A2 The alarms of a payload follow from its header and its delivery column alone, so that recovery
//!   finds them in a segment's summary without reading the payload.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::entry::{EntryHeader, EntryKind, PayloadFacts};
use super::id::OwnerId;

/// Which clock an alarm follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AlarmClock {
    /// The wall clock: due times of messages. Its alarms survive a restart.
    Wall,
    /// The monotonic clock: backoffs, leases, timeouts. Its alarms are memory: whoever begins a life arms
    /// again what it still waits for.
    Monotonic,
}

impl AlarmClock {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Wall, Self::Monotonic];
}

/// The latest moment an alarm can be armed for, in milliseconds of its clock: about 4 460 years. A later
/// one is taken as this.
pub const DUE_MS_MAX: i64 = 1 << 47;

/// Something to be reminded of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Alarm {
    /// When, in milliseconds of its clock: since the Unix epoch, or since the broker started. What lies
    /// before now is due at once.
    pub due_ms: i64,
    /// Who is told.
    pub owner: OwnerId,
    /// What it is to the owner: a record number for a partition, anything for others.
    pub token: u64,
    /// Tells a moved alarm from its earlier self: 0 at first, +1 per modification.
    pub version: u32,
}

/// Bytes of one record in a delivery column: its kind, and its value.
const DELIVERY_BYTES: usize = 9;
/// The kind of a record delivered after a span.
const AFTER: u8 = 1;
/// The kind of a record delivered at a time.
const AT: u8 = 2;

/// The moments of a batch's delayed records by its delivery column (all kinds, then all values), each with
/// its record's place within the batch; immediate records are left out.
///
/// `wall_ms` is the wall clock as read when the batch was appended: spans count from it.
pub fn dues_of(deliveries: &Bytes, wall_ms: i64) -> impl Iterator<Item = (u32, i64)> + use<> {
    let column = deliveries.clone();
    let rows = column.len() / DELIVERY_BYTES;
    (0..rows).filter_map(move |index| {
        let at = rows + index * 8;
        let value = i64::from_le_bytes(*column.get(at..)?.first_chunk()?);
        let due_ms = match *column.get(index)? {
            AFTER => wall_ms.saturating_add(value),
            AT => value,
            _ => return None,
        };
        Some((u32::try_from(index).ok()?, due_ms.min(DUE_MS_MAX)))
    })
}

/// The alarms a payload arms when it is applied: one per delayed record, its token the record's number.
/// A half batch arms none: its records wait for their transaction first.
pub fn alarms_of_payload(
    header: &EntryHeader,
    facts: &PayloadFacts,
) -> impl Iterator<Item = Alarm> + use<> {
    let arms = header.kind == EntryKind::Payload && facts.transaction.0 == 0;
    let column = if arms {
        facts.deliveries.clone()
    } else {
        Bytes::new()
    };
    let (owner, first) = (header.owner, header.first_number.0);
    dues_of(&column, header.wall.0).map(move |(index, due_ms)| Alarm {
        due_ms,
        owner,
        token: first.saturating_add(u64::from(index)),
        version: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::batch::{self, BatchBuilder, BatchStamp, Compression, Delivery};
    use crate::domain::id::{MessageId, TransactionNumber};
    use crate::domain::record::Record;
    use crate::domain::time::WallMs;

    fn deliveries(of: &[Delivery]) -> Bytes {
        let mut builder = BatchBuilder::new(1 << 20, Compression::None);
        for delivery in of {
            let record = Record::new("x");
            builder
                .push_with(&record, MessageId([1; 16]), WallMs(5), 0, *delivery)
                .unwrap();
        }
        let batch = builder.finish(BatchStamp::default()).unwrap();
        batch::facts(&batch).unwrap().deliveries
    }

    #[test]
    fn a2_moments_follow_from_the_column_a_batch_was_built_with() {
        let column = deliveries(&[
            Delivery::Now,
            Delivery::After(5_000),
            Delivery::At(WallMs(99)),
            Delivery::At(WallMs(i64::MAX)),
            Delivery::After(i64::MAX),
        ]);
        let dues: Vec<_> = dues_of(&column, 1_000).collect();
        assert_eq!(
            dues,
            [(1, 6_000), (2, 99), (3, DUE_MS_MAX), (4, DUE_MS_MAX)]
        );
        assert_eq!(dues_of(&deliveries(&[Delivery::Now]), 7).count(), 0);
        assert_eq!(dues_of(&Bytes::from_static(&[1, 2, 3]), 7).count(), 0);
    }

    #[test]
    fn a_payload_arms_its_record_numbers_and_a_half_batch_none() {
        let header = EntryHeader {
            kind: EntryKind::Payload,
            tied_to_next: false,
            moved: false,
            index: crate::domain::id::LogIndex(1),
            term: crate::domain::id::Term(1),
            owner: OwnerId(1024),
            sequence: crate::domain::id::OwnerSequence(1),
            first_number: crate::domain::id::RecordNumber(70),
            first_offset: crate::domain::id::Offset(0),
            numbers: 2,
            offsets: 0,
            appended: WallMs(2_000),
            wall: WallMs(1_000),
        };
        let mut facts = PayloadFacts {
            deliveries: deliveries(&[Delivery::After(1), Delivery::After(2)]),
            ..PayloadFacts::default()
        };
        let tokens: Vec<_> = alarms_of_payload(&header, &facts)
            .map(|alarm| (alarm.token, alarm.due_ms, alarm.version, alarm.owner.0))
            .collect();
        assert_eq!(tokens, [(70, 1_001, 0, 1024), (71, 1_002, 0, 1024)]);
        facts.transaction = TransactionNumber(1);
        assert_eq!(alarms_of_payload(&header, &facts).count(), 0);
        facts.transaction = TransactionNumber(0);
        let state = EntryHeader {
            kind: EntryKind::State,
            ..header
        };
        assert_eq!(alarms_of_payload(&state, &facts).count(), 0);
    }
}

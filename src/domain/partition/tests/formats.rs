//! Golden bytes: rows, deltas and snapshots are on disk, so their bytes never change.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::index::BatchPlace;
use super::super::producers::{ProducerRow, StoredBatch, WINDOW_BATCHES};
use super::super::rows::{PRODUCER_SNAPSHOT_BYTES_MAX, Snapshot, encode};
use super::super::{Delta, Head};
use crate::domain::commit::ENTRY_OVERHEAD_BYTES;
use crate::domain::id::{
    LogPosition, Offset, OwnerSequence, ProducerEpoch, ProducerId, ProducerSequence, RecordNumber,
};
use crate::domain::time::WallMs;

fn is_written_as<T>(value: &T, golden: &str)
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let bytes = encode(value);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, golden, "{value:?}");
    assert_eq!(
        rmp_serde::from_slice::<T>(&bytes).ok().as_ref(),
        Some(value)
    );
}

fn head() -> Head {
    Head {
        sequence: OwnerSequence(7),
        next_number: RecordNumber(300),
        next_offset: Offset(70_000),
        start_offset: Offset(5),
    }
}

fn producer() -> ProducerRow {
    ProducerRow {
        epoch: ProducerEpoch(2),
        next_sequence: ProducerSequence(9),
        last_used: WallMs(1_700_000_000_000),
        window: [StoredBatch {
            first_sequence: ProducerSequence(6),
            count: 3,
            first_offset: Offset(69_997),
            first_number: RecordNumber(297),
            appended: WallMs(1_700_000_000_000),
        }]
        .into(),
    }
}

#[test]
fn rows_are_written_as_ever() {
    is_written_as(&head(), "9407cd012cce0001117005");
    let batch = BatchPlace {
        first_offset: Offset(69_997),
        count: 3,
        first_number: RecordNumber(297),
        position: LogPosition(1 << 33),
        length: 4_242,
        appended: WallMs(-1),
        tags: 0x8000_0000_0000_0001,
        reference: None,
    };
    is_written_as(
        &vec![batch],
        "9197ce0001116d03cd0129cf0000000200000000cd1092ffcf8000000000000001",
    );
    is_written_as(
        &producer(),
        "940209cf0000018bcfe5680091950603ce0001116dcd0129cf0000018bcfe56800",
    );
}

#[test]
fn deltas_are_written_as_ever() {
    is_written_as(
        &Delta::StartOffset(Offset(512)),
        "81ab53746172744f6666736574cd0200",
    );
    let ids = vec![ProducerId(1), ProducerId(1_000)];
    is_written_as(
        &Delta::ForgetProducers(ids),
        "81af466f7267657450726f6475636572739201cd03e8",
    );
}

#[test]
fn snapshots_are_written_as_ever() {
    is_written_as(
        &Snapshot::Producer(ProducerId(77), producer()),
        "81a850726f6475636572924d940209cf0000018bcfe5680091950603ce0001116dcd0129cf0000018bcfe56800",
    );
    let producers = vec![ProducerId(77)];
    is_written_as(
        &Snapshot::Head {
            head: head(),
            producers,
        },
        "81a448656164929407cd012cce0001117005914d",
    );
}

#[test]
fn a_producer_takes_no_more_of_a_snapshot_than_its_bound() {
    let stored = StoredBatch {
        first_sequence: ProducerSequence(u64::MAX),
        count: u32::MAX,
        first_offset: Offset(u64::MAX),
        first_number: RecordNumber(u64::MAX),
        appended: WallMs(i64::MIN),
    };
    let row = ProducerRow {
        epoch: ProducerEpoch(u32::MAX),
        next_sequence: ProducerSequence(u64::MAX),
        last_used: WallMs(i64::MIN),
        window: [stored; WINDOW_BATCHES].into(),
    };
    let name = encode(&ProducerId(u64::MAX)).len() as u64;
    let row = encode(&Snapshot::Producer(ProducerId(u64::MAX), row)).len() as u64;
    assert!(row + name + ENTRY_OVERHEAD_BYTES <= PRODUCER_SNAPSHOT_BYTES_MAX);
}

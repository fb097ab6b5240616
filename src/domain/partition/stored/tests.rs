//! The rows of stored records: as they were ever written, and read whatever the disk returns.

use proptest::prelude::*;

use super::bodies::{Open, decode_bodies, encode_bodies};
use super::*;
use crate::domain::id::{ProducerEpoch, ProducerId, TransactionNumber};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn place(first: u64, count: u32, position: u64, length: u32, at: i64, tags: u64) -> StoredPlace {
    StoredPlace {
        first_number: RecordNumber(first),
        count,
        position: LogPosition(position),
        length,
        appended: WallMs(at),
        tags,
    }
}

#[test]
fn rows_are_written_as_ever() {
    let mut chunk = Chunk::default();
    (chunk.published_end, chunk.answer_end) = (Offset(300), Offset(301));
    chunk.unarmed = true;
    for (at, state) in [
        (1, State::Waiting),
        (2, State::Published),
        (3, State::Dropped),
        (5, State::Waiting),
    ] {
        chunk.set(at, state);
    }
    for (at, version, due) in [(5, 1, 1_000), (300, 2, -3)] {
        let due = WallMs(due);
        chunk.overrides.insert(at, Override { version, due });
    }
    let row = chunk.encode();
    assert_eq!(hex(&row), "01ac02ad0201020501d00fa7020205040506070405e87f");
    chunk.dirty = false;
    assert_eq!(Chunk::decode(&row), Some(chunk));

    let places = vec![
        place(7, 2, 4_096, 300, 1_000, 0),
        place(9, 1, 8_192, 400, 999, 5),
    ];
    let dues = vec![5_000, 4_000, i64::MIN];
    let row = encode_bodies(&places, &dues);
    assert_eq!(
        hex(&row),
        "01020e028040ac02d00f0000018040900301040500000000000000904ecf0fc0c1ffffffffffffff01"
    );
    assert_eq!(decode_bodies(&row), Some((places, dues)));

    let open = Open {
        key: TransactionId {
            producer: ProducerId(5),
            epoch: ProducerEpoch(2),
            number: TransactionNumber(77),
        },
        place: place(9, 3, 1 << 33, 4_242, -1, 9),
        deliveries: Bytes::from_static(&[1, 2, 3]),
    };
    assert_eq!(hex(&open.encode()), "0105024d0903808080802092210109010203");
    assert_eq!(Open::decode(&open.encode()), Some(open));
}

proptest! {
    #[test]
    fn a_row_that_rotted_is_no_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..80), known in any::<bool>()) {
        if known && !bytes.is_empty() {
            bytes[0] = 1;
        }
        let _ = Chunk::decode(&bytes);
        let _ = decode_bodies(&bytes);
        let _ = Open::decode(&bytes);
    }

    #[test]
    fn a_chunk_is_read_as_it_was_written(
        sets in prop::collection::vec((0u16..4096, 0usize..3), 0..60),
        overrides in prop::collection::btree_map(0u16..4096, (any::<u32>(), any::<i64>()), 0..20),
        ends in (any::<u64>(), any::<u64>(), any::<bool>()),
    ) {
        let mut chunk = Chunk::default();
        (chunk.published_end, chunk.answer_end) = (Offset(ends.0), Offset(ends.1));
        chunk.unarmed = ends.2;
        for (at, state) in sets {
            chunk.set(at, [State::Waiting, State::Published, State::Dropped][state]);
        }
        for (at, (version, due)) in overrides {
            chunk.overrides.insert(at, Override { version, due: WallMs(due) });
        }
        chunk.dirty = false;
        prop_assert_eq!(Chunk::decode(&chunk.encode()), Some(chunk));
    }

    #[test]
    fn bodies_are_read_as_they_were_written(
        batches in prop::collection::vec((0u64..50, 1u32..5, any::<u64>(), any::<u32>(), any::<i64>(), any::<u64>()), 0..20),
        due in any::<i64>(),
    ) {
        let (mut next, mut places, mut dues) = (0, Vec::new(), Vec::new());
        for (gap, count, position, length, at, tags) in batches {
            next += gap;
            places.push(place(next, count, position, length, at, tags));
            next += u64::from(count);
            dues.extend((0..count).map(|n| due.wrapping_mul(i64::from(n))));
        }
        prop_assert_eq!(decode_bodies(&encode_bodies(&places, &dues)), Some((places, dues)));
    }
}

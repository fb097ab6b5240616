#![expect(
    clippy::cast_possible_truncation,
    reason = "the numbers of these tests are small"
)]

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::domain::id::{
    MessageId, ProducerEpoch, ProducerId, ProducerSequence, TransactionNumber,
};
use crate::domain::record::{Record, RecordBody, encode_body};
use crate::domain::time::WallMs;

fn stamp() -> BatchStamp {
    BatchStamp {
        producer: ProducerId(0x0102_0304_0506_0708),
        epoch: ProducerEpoch(9),
        first_sequence: ProducerSequence(10),
        transaction: TransactionNumber(0),
    }
}

fn body_of(record: &Record, id: MessageId) -> Bytes {
    let mut out = Vec::new();
    encode_body(record, id, &mut out);
    out.into()
}

/// Two records, plain: what version 1 looks like for ever.
#[test]
fn plain_batch_has_its_golden_bytes() {
    let mut builder = BatchBuilder::new(BATCH_BYTES_MAX_DEFAULT, Compression::None);
    let first = Record::new("v").key("a").tag("a");
    let second = Record::new("w").timestamp(WallMs(1_007));
    builder
        .push(&first, MessageId([1; 16]), WallMs(1_000))
        .unwrap();
    builder
        .push(&second, MessageId([2; 16]), WallMs(1_000))
        .unwrap();
    let promised = builder.bytes();
    let batch = builder.finish(stamp()).unwrap();
    assert_eq!(batch.len(), promised);
    assert!(builder.is_empty());

    let bodies = [
        body_of(&first, MessageId([1; 16])),
        body_of(&second, MessageId([2; 16])),
    ];
    let mut golden = vec![1, 0];
    golden.extend([0b0000_1011, 0]); // keys, tags, timestamps
    golden.extend([2, 0, 0, 0]);
    golden.extend([8, 7, 6, 5, 4, 3, 2, 1]);
    golden.extend([9, 0, 0, 0]);
    golden.extend([10, 0, 0, 0, 0, 0, 0, 0]);
    golden.extend([0; 8]);
    golden.extend([0xe8, 3, 0, 0, 0, 0, 0, 0]);
    golden.extend([48, 0, 0, 0]); // 2 x (4 + 4 + 8 + 4 + 4)
    golden.extend([55, 0, 0, 0]);
    golden.extend([55, 0, 0, 0]);
    golden.extend([0; 4]);
    assert_eq!(golden.len(), 60);
    let mut directory = vec![29, 0, 0, 0, 26, 0, 0, 0];
    directory.extend(crate::domain::checksum::crc32c(&bodies[0]).to_le_bytes());
    directory.extend(crate::domain::checksum::crc32c(&bodies[1]).to_le_bytes());
    directory.extend([0x5b, 0x6e, 0x8c, 0xa9, 0xf1, 0xc4, 0x4e, 0xd2]); // XXH64("a")
    directory.extend([0; 8]);
    directory.extend([0x5b, 0x6e, 0x8c, 0xa9]);
    directory.extend([0; 4]);
    directory.extend([0, 0, 0, 0, 7, 0, 0, 0]);
    let crc = crate::domain::checksum::crc32c(&[golden.as_slice(), &directory].concat());
    golden.extend(crc.to_le_bytes());
    golden.extend(directory);
    golden.extend_from_slice(&bodies[0]);
    golden.extend_from_slice(&bodies[1]);
    assert_eq!(batch.as_ref(), golden);
    // The checksum itself, so that its polynomial cannot change unnoticed.
    assert_eq!(crate::domain::checksum::crc32c(b"123456789"), 0xe306_9283);
}

/// Every column and compression record by record.
#[test]
fn mixed_batch_keeps_every_column() {
    let text = "so much depends upon a red wheel barrow ".repeat(20);
    let mut builder = BatchBuilder::new(BATCH_BYTES_MAX_DEFAULT, Compression::Zstd);
    let deliveries = [
        Delivery::Now,
        Delivery::After(5_000),
        Delivery::At(WallMs(99)),
    ];
    for (index, delivery) in deliveries.into_iter().enumerate() {
        let record = Record::new(if index == 0 {
            String::new()
        } else {
            text.clone()
        })
        .tag("t");
        builder
            .push_with(
                &record,
                MessageId([3; 16]),
                WallMs(5),
                index as u8,
                delivery,
            )
            .unwrap();
    }
    let batch = builder.finish(stamp()).unwrap();
    let view = BatchView::parse(&batch).unwrap();
    assert_eq!(view.header().compression, Compression::Zstd);
    assert!(view.header().is_per_record());
    for (index, delivery) in deliveries.into_iter().enumerate() {
        let slot = view.slot(index).unwrap();
        assert_eq!(slot.delivery, delivery);
        assert_eq!(usize::from(slot.priority), index);
        assert_eq!(slot.timestamp, WallMs(5));
        assert_eq!(slot.key_hash, 0);
        assert_ne!(slot.tag_hash, 0);
    }
    assert_eq!(view.slot(3), None);
    let values: Vec<Bytes> = view
        .bodies()
        .unwrap()
        .map(|body| RecordBody::decode(&body.unwrap().1).unwrap().value)
        .collect();
    assert_eq!(values, [Bytes::new(), text.clone().into(), text.into()]);

    let facts = facts(&batch).unwrap();
    assert_eq!(facts, view.facts());
    assert_eq!(facts.producer, stamp().producer);
    assert_eq!(facts.tags.count_ones(), 1);
    let mut column = vec![0, 1, 2];
    for value in [0i64, 5_000, 99] {
        column.extend(value.to_le_bytes());
    }
    assert_eq!(facts.deliveries.as_ref(), column);
}

/// Facts come from the directory alone: rotten or missing bodies do not matter.
#[test]
fn facts_need_no_bodies() {
    let batch = simple_batch(Compression::None, 3);
    let header = BatchHeader::parse(&batch).unwrap();
    let front = &batch[..BATCH_HEADER_BYTES + header.directory_bytes];
    assert_eq!(facts(front), facts(&batch));
    assert_eq!(facts(front).unwrap().deliveries, Bytes::new());
    assert_eq!(facts(&front[..front.len() - 1]), None);
}

fn simple_batch(compression: Compression, count: usize) -> Bytes {
    let mut builder = BatchBuilder::new(BATCH_BYTES_MAX_DEFAULT, compression);
    for index in 0..count {
        let record = Record::new(format!("value {index} {}", "x".repeat(100))).key("k");
        builder
            .push(&record, MessageId([4; 16]), WallMs(0))
            .unwrap();
    }
    builder.finish(stamp()).unwrap()
}

#[test]
fn a_full_builder_refuses_and_stays_as_it_was() {
    let mut builder = BatchBuilder::new(400, Compression::None);
    let record = Record::new(vec![0u8; 100]);
    builder
        .push(&record, MessageId([0; 16]), WallMs(0))
        .unwrap();
    builder
        .push(&record, MessageId([0; 16]), WallMs(0))
        .unwrap();
    let before = builder.bytes();
    assert_eq!(
        builder.push(&record, MessageId([0; 16]), WallMs(0)),
        Err(BatchFull)
    );
    assert_eq!((builder.bytes(), builder.len()), (before, 2));
    let batch = builder.finish(stamp()).unwrap();
    assert!(batch.len() <= 400);
    assert_eq!(BatchView::parse(&batch).unwrap().header().count, 2);
    assert_eq!(builder.finish(stamp()), None);
    assert_eq!(
        builder.push(&Record::new(vec![0u8; 400]), MessageId([0; 16]), WallMs(0)),
        Err(BatchFull)
    );
}

#[test]
fn a_batch_takes_65_536_records_and_no_more() {
    let mut builder = BatchBuilder::new(BATCH_BYTES_CEILING, Compression::None);
    let record = Record::new("");
    for _ in 0..BATCH_RECORDS_MAX {
        builder
            .push(&record, MessageId([0; 16]), WallMs(0))
            .unwrap();
    }
    assert_eq!(
        builder.push(&record, MessageId([0; 16]), WallMs(0)),
        Err(BatchFull)
    );
    let batch = builder.finish(stamp()).unwrap();
    assert_eq!(BatchView::parse(&batch).unwrap().header().count, 65_536);
}

/// The header's checksum, made right again after a change: what a hostile peer can do.
fn resealed(batch: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let header = BatchHeader::parse(batch).unwrap();
    let end = BATCH_HEADER_BYTES + header.directory_bytes;
    let mut bytes = batch.to_vec();
    change(&mut bytes);
    let end = end.min(bytes.len());
    let crc = crate::domain::checksum::crc32c_append(
        crate::domain::checksum::crc32c(&bytes[..60]),
        &bytes[64..end],
    );
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    bytes.into()
}

#[test]
fn each_lie_is_told_apart() {
    let batch = simple_batch(Compression::None, 2);
    let parse = |bytes: Bytes| BatchView::parse(&bytes).unwrap_err();
    let lie = |change: fn(&mut Vec<u8>)| parse(resealed(&batch, change));

    assert_eq!(lie(|b| b[0] = 2), BatchError::Version(2));
    assert!(lie(|b| b[0] = 2).is_unsupported());
    assert_eq!(lie(|b| b[1] = 3), BatchError::Compression(3));
    assert_eq!(lie(|b| b[3] = 0x80), BatchError::Flags(0x8001));
    assert_eq!(lie(|b| b[2] |= 32), BatchError::Flags(33));
    assert_eq!(lie(|b| b[4] = 0), BatchError::Count(0));
    assert_eq!(lie(|b| b[7] = 1), BatchError::Count(0x0100_0002));
    assert_eq!(lie(|b| b[4] = 3), BatchError::Directory);
    assert_eq!(
        lie(|b| b[48..52].fill(0xff)),
        BatchError::TooLarge(u64::from(u32::MAX))
    );
    assert_eq!(lie(|b| b[52] ^= 1), BatchError::Directory);
    assert_eq!(lie(|b| b[64] ^= 1), BatchError::Directory);
    assert!(matches!(lie(|b| b.push(0)), BatchError::Length { .. }));
    assert!(matches!(
        parse(batch.slice(..batch.len() - 1)),
        BatchError::Length { .. }
    ));
    assert!(matches!(
        parse(batch.slice(..10)),
        BatchError::Length { .. }
    ));
    let error = lie(|b| *b.last_mut().unwrap() ^= 1);
    assert_eq!(error, BatchError::RecordChecksum(1));
    assert!(error.is_checksum());
    let mut rotten = batch.to_vec();
    rotten[30] ^= 1;
    assert_eq!(parse(rotten.into()), BatchError::HeaderChecksum);
}

#[test]
fn b4_a_compressed_batch_opens_to_the_directorys_lengths_or_not_at_all() {
    for compression in [Compression::Lz4, Compression::Zstd] {
        let batch = simple_batch(compression, 20);
        let view = BatchView::parse(&batch).unwrap();
        assert_eq!(view.header().compression, compression);
        assert!(batch.len() < view.header().plain_bytes);
        assert_eq!(view.bodies().unwrap().filter(Result::is_ok).count(), 20);

        // One byte less promised than is there: a bomb in small.
        let lie = resealed(&batch, |b| {
            b[52..56].copy_from_slice(&(view.header().plain_bytes as u32 - 1).to_le_bytes());
            b[64] -= 1;
        });
        let view = BatchView::parse(&lie).unwrap();
        assert_eq!(view.bodies().unwrap_err(), BatchError::Decompression);

        // What is stored was damaged.
        let mut rotten = batch.to_vec();
        *rotten.last_mut().unwrap() ^= 1;
        assert_eq!(
            BatchView::parse(&rotten.into()).unwrap_err(),
            BatchError::BodyChecksum
        );

        // A record's checksum that lies shows when the batch is opened.
        let lie = resealed(&batch, |b| b[64 + 20 * 4] ^= 1);
        let view = BatchView::parse(&lie).unwrap();
        let first = view.bodies().unwrap().next().unwrap();
        assert_eq!(first.unwrap_err(), BatchError::RecordChecksum(0));
    }
}

#[test]
fn what_does_not_shrink_is_stored_plain() {
    let mut builder = BatchBuilder::new(BATCH_BYTES_MAX_DEFAULT, Compression::Lz4);
    builder
        .push(
            &Record::new("v"),
            MessageId(*b"0123456789abcdef"),
            WallMs(0),
        )
        .unwrap();
    let batch = builder.finish(stamp()).unwrap();
    let view = BatchView::parse(&batch).unwrap();
    assert_eq!(view.header().compression, Compression::None);
}

#[test]
fn a_batch_served_is_checked_as_a_whole_or_record_by_record_to_the_same_end() {
    for lengths in [
        &[100, 100, 100, 100, 90][..],
        &[1, 2, 3, 4, 5, 6, 7, 8],
        &[7],
    ] {
        let mut builder = BatchBuilder::new(1 << 20, Compression::None);
        for length in lengths.iter().cycle().take(64) {
            let record = Record::new(vec![3; *length]);
            builder
                .push(&record, MessageId([9; 16]), WallMs(0))
                .unwrap();
        }
        let sound = builder.finish(stamp()).unwrap();
        assert!(BatchView::parse_served(&sound).is_ok());
        for bit in [0, 3, 7] {
            let mut rotten = sound.to_vec();
            let at = rotten.len() - 200;
            rotten[at] ^= 1 << bit;
            let rotten = Bytes::from(rotten);
            let told = BatchView::parse(&rotten).unwrap_err();
            assert!(matches!(told, BatchError::RecordChecksum(_)));
            assert_eq!(BatchView::parse_served(&rotten).unwrap_err(), told);
        }
    }
}

#[test]
fn plain_bodies_are_slices_of_the_batch() {
    let batch = simple_batch(Compression::None, 3);
    let range = batch.as_ptr_range();
    for body in BatchView::parse(&batch).unwrap().bodies().unwrap() {
        assert!(range.contains(&body.unwrap().1.as_ptr()));
    }
}

fn any_compression() -> impl Strategy<Value = Compression> {
    prop_oneof![
        Just(Compression::None),
        Just(Compression::Lz4),
        Just(Compression::Zstd)
    ]
}

fn any_delivery() -> impl Strategy<Value = Delivery> {
    prop_oneof![
        4 => Just(Delivery::Now),
        1 => (0i64..1_000_000).prop_map(Delivery::After),
        1 => any::<i64>().prop_map(|at| Delivery::At(WallMs(at))),
    ]
}

type Pushed = (Vec<u8>, Option<Vec<u8>>, Option<String>, i64, u8, Delivery);

fn any_pushed() -> impl Strategy<Value = Pushed> {
    (
        proptest::collection::vec(0u8..4, 0..200),
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..10)),
        proptest::option::of("[a-z]{1,5}"),
        0i64..100_000,
        prop_oneof![4 => Just(0u8), 1 => any::<u8>()],
        any_delivery(),
    )
}

proptest! {
    /// The naive model: the list of what was pushed.
    #[test]
    fn b2_what_was_pushed_comes_out(
        pushed in proptest::collection::vec(any_pushed(), 1..40),
        compression in any_compression(),
        transaction in 0u64..2,
    ) {
        let mut builder = BatchBuilder::new(BATCH_BYTES_MAX_DEFAULT, compression);
        for (value, key, tag, at, priority, delivery) in &pushed {
            let mut record = Record::new(value.clone());
            record.key = key.clone().map(Bytes::from);
            record.tag = tag.clone().map(Into::into);
            builder.push_with(&record, MessageId([6; 16]), WallMs(*at), *priority, *delivery).unwrap();
        }
        let stamp = BatchStamp { transaction: TransactionNumber(transaction), ..stamp() };
        let batch = builder.finish(stamp).unwrap();
        let view = BatchView::parse(&batch).unwrap();
        prop_assert_eq!(view.header().transaction, stamp.transaction);
        prop_assert_eq!(view.header().len(), pushed.len());
        prop_assert_eq!(view.header().total_bytes(), batch.len());
        prop_assert_eq!(view.bodies().unwrap().count(), pushed.len());
        for (body, (value, key, tag, at, priority, delivery)) in view.bodies().unwrap().zip(&pushed) {
            let (index, body) = body.unwrap();
            let decoded = RecordBody::decode(&body).unwrap();
            prop_assert_eq!(decoded.value.as_ref(), value.as_slice());
            prop_assert_eq!(decoded.key.as_deref(), key.as_deref());
            prop_assert_eq!(decoded.tag.as_deref(), tag.as_deref());
            let slot = view.slot(index).unwrap();
            prop_assert_eq!(slot.timestamp, WallMs(*at));
            prop_assert_eq!(slot.priority, *priority);
            prop_assert_eq!(slot.delivery, *delivery);
            prop_assert_eq!(slot.key_hash == 0, key.is_none());
            prop_assert_eq!(slot.tag_hash == 0, tag.is_none());
            prop_assert_eq!(slot.body_crc, crate::domain::checksum::crc32c(&body));
        }
    }

    /// B1: any change of any byte, resealed or not, is an error or a batch, never a panic.
    #[test]
    fn b1_parsing_a_damaged_batch_is_total(
        compression in any_compression(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        seal in any::<bool>(),
    ) {
        let batch = simple_batch(compression, 5);
        let damage = |bytes: &mut Vec<u8>| {
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            if let Some(cut) = &cut {
                bytes.truncate(64 + cut.index(bytes.len() - 64));
            }
        };
        let bytes = if seal {
            resealed(&batch, damage)
        } else {
            let mut bytes = batch.to_vec();
            damage(&mut bytes);
            bytes.into()
        };
        let _ = facts(&bytes);
        if let Ok(view) = BatchView::parse_structure(&bytes) {
            let answer = |view: Result<BatchView, _>| view.map(|view| view.facts());
            let each = answer(BatchView::parse(&bytes));
            prop_assert_eq!(answer(BatchView::parse_served(&bytes)), each);
            let opened = view.bodies().map(|bodies| bodies.filter_map(Result::ok).count());
            prop_assert!(opened.unwrap_or(0) <= view.header().len());
            for index in 0..=view.header().len() {
                prop_assert_eq!(view.slot(index).is_some(), index < view.header().len());
            }
        }
    }

    #[test]
    fn b1_parsing_any_bytes_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let bytes = Bytes::from(bytes);
        prop_assert!(BatchView::parse(&bytes).is_err());
        prop_assert!(facts(&bytes).is_none());
    }
}

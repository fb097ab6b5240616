//! Reads everything back and compares it with what producers were told.

use std::collections::{BTreeMap, HashMap};

use waterwheel::client::{Ack, Client, Start};

use crate::load::{Acked, parse};

/// Fails unless everything acknowledged is there once, at its place, in order per key.
pub(crate) async fn audit(client: &Client, topic: &str, acked: &Acked, ack: Ack) {
    let mut reader = client
        .reader(topic)
        .from(Start::Earliest)
        .until_end()
        .open()
        .await
        .expect("the topic can be read");
    let mut found: BTreeMap<(u32, u64), (u32, u64)> = BTreeMap::new();
    let mut last_of_key: HashMap<Vec<u8>, u64> = HashMap::new();
    let mut next_offset: HashMap<u32, u64> = HashMap::new();
    while let Some(delivery) = reader.next().await {
        let delivery = delivery.expect("every record can be read");
        let (producer, number) = parse(&delivery.value);
        let place = (delivery.partition, delivery.offset);
        if let Some(before) = found.insert((producer, number), place) {
            panic!("record {producer}:{number} is there twice: at {before:?} and at {place:?}");
        }
        let expected = next_offset.entry(delivery.partition).or_default();
        assert_eq!(
            delivery.offset, *expected,
            "offsets of partition {} are dense",
            delivery.partition
        );
        *expected += 1;
        let key = delivery.key.expect("every record has a key").to_vec();
        if let Some(before) = last_of_key.insert(key, number) {
            assert!(
                before < number,
                "key of {producer}: {number} came after {before}"
            );
        }
    }
    let mut count = 0;
    for (producer, places) in acked {
        for (number, (partition, offset)) in places {
            let place = found.get(&(*producer, *number));
            let Some((found_partition, found_offset)) = place else {
                panic!("record {producer}:{number} was acknowledged and is lost");
            };
            assert_eq!(found_partition, partition, "record {producer}:{number}");
            if ack == Ack::Durable {
                assert_eq!(Some(*found_offset), *offset, "record {producer}:{number}");
            }
            count += 1;
        }
    }
    assert_eq!(
        count,
        found.len(),
        "producers waited for everything they sent"
    );
}

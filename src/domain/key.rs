//! Key and tag hashes, and the partition a key belongs to.
//!
//! The hash is **XXH64 with seed 0**, written out here: it is published with test vectors, exists in
//! every language a client may be written in, takes eight bytes at a step where FNV-1a takes one, and
//! spreads short keys over its *high* bits, which the partition choice uses.
//!
//! - key hash: `XXH64(key)`, where 0 (which means "no key") is replaced by 1;
//! - partition: `(hash * partitions) >> 64`, the multiply-shift of the hash;
//! - tag hash: the low 32 bits of `XXH64(tag)`, where 0 (which means "no tag") is replaced by 1.
//!
//! Invariants: K1, these three never change, for a key's order rests on them; K2, a hash of something
//! is never 0.

use super::id::PartitionIndex;

const PRIME_1: u64 = 0x9E37_79B1_85EB_CA87;
const PRIME_2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const PRIME_3: u64 = 0x1656_67B1_9E37_79F9;
const PRIME_4: u64 = 0x85EB_CA77_C2B2_AE63;
const PRIME_5: u64 = 0x27D4_EB2F_1656_67C5;

/// The 64-bit hash of a key; 0 in a batch's directory means "no key" and is never returned.
#[must_use]
pub fn key_hash(key: &[u8]) -> u64 {
    match xxh64(key) {
        0 => 1,
        hash => hash,
    }
}

/// The 32-bit hash of a tag; 0 in a batch's directory means "no tag" and is never returned.
#[must_use]
pub fn tag_hash(tag: &str) -> u32 {
    let [a, b, c, d, ..] = xxh64(tag.as_bytes()).to_le_bytes();
    match u32::from_le_bytes([a, b, c, d]) {
        0 => 1,
        hash => hash,
    }
}

/// The partition of a key hash among `partitions`: the multiply-shift of the hash. 0 where there is
/// no partition at all.
#[must_use]
pub fn partition_of(hash: u64, partitions: u32) -> PartitionIndex {
    let product = u128::from(hash) * u128::from(partitions);
    // The high half of the product is below `partitions`, so it fits.
    PartitionIndex(u32::try_from(product >> 64).unwrap_or(0))
}

/// XXH64 with seed 0.
fn xxh64(input: &[u8]) -> u64 {
    let mut blocks = input.chunks_exact(32);
    let mut hash = if input.len() >= 32 {
        let mut lanes = [
            PRIME_1.wrapping_add(PRIME_2),
            PRIME_2,
            0,
            0u64.wrapping_sub(PRIME_1),
        ];
        for block in blocks.by_ref() {
            for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(8)) {
                *lane = round(*lane, word64(word));
            }
        }
        let [a, b, c, d] = lanes;
        let joined = a
            .rotate_left(1)
            .wrapping_add(b.rotate_left(7))
            .wrapping_add(c.rotate_left(12))
            .wrapping_add(d.rotate_left(18));
        lanes.into_iter().fold(joined, |hash, lane| {
            (hash ^ round(0, lane))
                .wrapping_mul(PRIME_1)
                .wrapping_add(PRIME_4)
        })
    } else {
        PRIME_5
    };
    hash = hash.wrapping_add(input.len() as u64);

    let mut words = blocks.remainder().chunks_exact(8);
    for word in words.by_ref() {
        hash = (hash ^ round(0, word64(word)))
            .rotate_left(27)
            .wrapping_mul(PRIME_1)
            .wrapping_add(PRIME_4);
    }
    let mut rest = words.remainder();
    if let Some((half, after)) = rest.split_first_chunk::<4>() {
        hash = (hash ^ u64::from(u32::from_le_bytes(*half)).wrapping_mul(PRIME_1))
            .rotate_left(23)
            .wrapping_mul(PRIME_2)
            .wrapping_add(PRIME_3);
        rest = after;
    }
    for byte in rest {
        hash = (hash ^ u64::from(*byte).wrapping_mul(PRIME_5))
            .rotate_left(11)
            .wrapping_mul(PRIME_1);
    }
    avalanche(hash)
}

fn round(accumulator: u64, word: u64) -> u64 {
    accumulator
        .wrapping_add(word.wrapping_mul(PRIME_2))
        .rotate_left(31)
        .wrapping_mul(PRIME_1)
}

fn avalanche(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(PRIME_2);
    hash ^= hash >> 29;
    hash = hash.wrapping_mul(PRIME_3);
    hash ^ (hash >> 32)
}

fn word64(word: &[u8]) -> u64 {
    word.first_chunk::<8>()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors published with XXH64 implementations.
    #[test]
    fn k1_hash_agrees_with_the_published_vectors() {
        let vectors: [(&[u8], u64); 7] = [
            (b"", 0xef46_db37_51d8_e999),
            (b"a", 0xd24e_c4f1_a98c_6e5b),
            (b"as", 0x1c33_0fb2_d66b_e179),
            (b"asd", 0x631c_37ce_72a9_7393),
            (b"asdf", 0x4158_72f5_99ce_a71e),
            (b"abc", 0x44bc_2cf5_ad77_0999),
            (
                b"Call me Ishmael. Some years ago--never mind how long precisely-",
                0x02a2_e854_70d6_fd96,
            ),
        ];
        for (input, expected) in vectors {
            assert_eq!(key_hash(input), expected, "{input:?}");
        }
        assert_eq!(tag_hash("a"), 0xa98c_6e5b);
    }

    #[test]
    fn k1_partition_choice_never_changes() {
        let chosen: Vec<u32> = ["", "a", "as", "asd", "asdf"]
            .iter()
            .map(|key| partition_of(key_hash(key.as_bytes()), 8).0)
            .collect();
        assert_eq!(chosen, [7, 6, 0, 3, 2]);
        assert_eq!(partition_of(u64::MAX, 10_000).0, 9_999);
        assert_eq!(partition_of(0, 10_000).0, 0);
        assert_eq!(partition_of(u64::MAX, 0).0, 0);
    }

    #[test]
    fn short_keys_spread_evenly() {
        let mut counts = [0u32; 8];
        for n in 0..8_000 {
            counts[partition_of(key_hash(n.to_string().as_bytes()), 8).0 as usize] += 1;
        }
        assert!(
            counts.iter().all(|count| (850..1_150).contains(count)),
            "{counts:?}"
        );
    }
}

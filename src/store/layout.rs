//! Every key and value layout of the views, in one table.
//!
//! **Trees**, one per kind of owner (10 000 trees of ten rows cost 1 GB, the same rows in one tree
//! 27 MB, so an owner is a key prefix and not a tree):
//!
//! | tree | owners | rows (kind: what, row id) |
//! |---|---|---|
//! | `meta` | the directory | 0: head, 0; 1: one topic, topic id; 2: one consumer group, group id |
//! | `partition` | partition lanes | 0: head, 0; 1: index run, its first offset; 2: one producer, producer id; 3: a chunk of stored records' states, first number / 4096; 4: a run of stored bodies, first number; 5: one undecided batch, first number |
//! | `group` | consumer groups | 0: head, 0; 1: one subscription, topic id; 2: one cursor, its number; 3: listed records, cursor number << 40, or'ed with offset >> 11 |
//! | `transaction` | transaction coordinators | 0: head, 0; 1: session, producer id; 2: open transaction, sequence of its first registration; 3: finished one, sequence of its decision |
//! | `wheel` | timing wheel levels of the wall clock | 0: head, 0; 1: home chunk, slot << 24 + chunk |
//! | `trace` | the trace | 0: head, 0 |
//!
//! **Key**, 17 bytes, so that an owner's rows lie together, its head first, and sort by row id:
//!
//! ```text
//!  0  owner    u64 big-endian
//!  8  row kind u8
//!  9  row id   u64 big-endian
//! ```
//!
//! **Value**, 30 bytes around the payload:
//!
//! ```text
//!  0      version   u8      1
//!  1      state     u8      0 live, 1 removed
//!  2      folded    u64 LE  the owner sequence the row folds up to
//! 10      stamp     u64 LE  which write of the views wrote it (+1 per write)
//! 18      previous  u64 LE  what the row counted before, see below
//! 26      payload           the owner's business; a head's ends with `rows` u64 LE
//! 26 + n  CRC-32C   u32 LE  over tree byte, key and everything before
//! ```
//!
//! **Sums.** A live row counts `2^32 + its CRC`, a removed one 0. A head's `rows` is the wrapping sum of
//! what its owner's other rows count; the mark holds the wrapping sum of what the heads count. So one
//! missing, doubled, stale or foreign row is noticed.
//!
//! sled makes single inserts atomic, not a write of several, and a broker can be killed between two
//! checkpoints. So that neither costs a rebuild, a row remembers what it counted `previous`ly: an
//! ordinary row before the write that stamped it, a head as of the last mark. A row newer than its head
//! counts as before in the head's sum; a head newer than the mark counts as before in the mark's.
//! A removed row stays as a tombstone until a mark has passed it, for the same reason, and keeps its payload:
//! where its head was not written behind it, it is live again.

use bytes::Bytes;

use crate::domain::id::{OwnerId, OwnerSequence};

/// The version byte of every value written by this build.
pub const ROW_VERSION: u8 = 1;
/// The longest payload of a row. Rows around 64 kB are what sled is good at.
pub const ROW_BYTES_MAX: usize = 1 << 20;
/// The row kind of an owner's head.
pub const HEAD: u8 = 0;
/// The row kind of one topic in the directory's rows; the row id is the topic id.
pub const DIRECTORY_TOPIC: u8 = 1;
/// The row kind of one consumer group in the directory's rows; the row id is the group id.
pub const DIRECTORY_GROUP: u8 = 2;
/// The row kind of one subscription of a group; the row id is the topic id.
pub const GROUP_SUBSCRIPTION: u8 = 1;
/// The row kind of one cursor of a group; the row id is its number.
pub const GROUP_CURSOR: u8 = 2;
/// The row kind of a run of listed records of a group; the row id names cursor and offsets.
pub const GROUP_LIST: u8 = 3;
/// The row kind of a run of a partition's index; the row id is the run's first offset.
pub const PARTITION_INDEX_RUN: u8 = 1;
/// The row kind of one producer of a partition; the row id is the producer id.
pub const PARTITION_PRODUCER: u8 = 2;
/// The row kind of the states of 4096 stored records; the row id is their first number by 4096.
pub const PARTITION_CHUNK: u8 = 3;
/// The row kind of a run of bodies stored before they are published; the row id is its first number.
pub const PARTITION_BODIES: u8 = 4;
/// The row kind of one batch of an undecided transaction; the row id is its first number.
pub const PARTITION_OPEN: u8 = 5;
/// The row kind of a home chunk of the timing wheel; the row id is slot and chunk, see
/// [`crate::domain::wheel::chunk`].
pub const WHEEL_HOME: u8 = 1;

/// The row kind of a session of a coordinator; the row id is the producer id.
pub const TRANSACTION_SESSION: u8 = 1;
/// The row kind of an open transaction; the row id is the coordinator's sequence of its first
/// registration.
pub const TRANSACTION_OPEN: u8 = 2;
/// The row kind of a finished transaction; the row id is the sequence of its decision.
pub const TRANSACTION_FINISHED: u8 = 3;

const KEY_BYTES: usize = 17;
const FIXED_BYTES: usize = 26;
const CRC_BYTES: usize = 4;
const LIVE: u8 = 0;
const REMOVED: u8 = 1;

/// A kind of owner; its rows share a tree. The byte is part of every row's checksum: never renumber.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Tree {
    /// The directory.
    Meta = 1,
    /// Partition lanes.
    Partition = 2,
    /// Consumer groups.
    Group = 3,
    /// Transaction coordinators.
    Transaction = 4,
    /// Timing wheel levels.
    Wheel = 5,
    /// The trace.
    Trace = 6,
}

impl Tree {
    /// Every tree, in the order of their bytes.
    pub const ALL: [Self; 6] = [
        Self::Meta,
        Self::Partition,
        Self::Group,
        Self::Transaction,
        Self::Wheel,
        Self::Trace,
    ];

    /// The name sled knows it by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Partition => "partition",
            Self::Group => "group",
            Self::Transaction => "transaction",
            Self::Wheel => "wheel",
            Self::Trace => "trace",
        }
    }
}

/// Where a row lies within its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowKey {
    /// Whose row it is.
    pub owner: OwnerId,
    /// What it is: [`HEAD`] or another kind of the table above.
    pub kind: u8,
    /// Which of that kind.
    pub id: u64,
}

impl RowKey {
    /// The key of an owner's head.
    #[must_use]
    pub fn head(owner: OwnerId) -> Self {
        Self {
            owner,
            kind: HEAD,
            id: 0,
        }
    }

    /// Whether this is an owner's head.
    #[must_use]
    pub fn is_head(self) -> bool {
        self.kind == HEAD
    }

    pub(super) fn encode(self) -> [u8; KEY_BYTES] {
        let mut key = [0; KEY_BYTES];
        let (owner, rest) = key.split_at_mut(8);
        owner.copy_from_slice(&self.owner.0.to_be_bytes());
        if let Some((kind, id)) = rest.split_first_mut() {
            *kind = self.kind;
            id.copy_from_slice(&self.id.to_be_bytes());
        }
        key
    }

    pub(super) fn decode(key: &[u8]) -> Option<Self> {
        let (owner, rest) = key.split_first_chunk::<8>()?;
        let (&kind, id) = rest.split_first()?;
        Some(Self {
            owner: OwnerId(u64::from_be_bytes(*owner)),
            kind,
            id: u64::from_be_bytes(*id.as_array()?),
        })
    }
}

/// A decoded value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) live: bool,
    pub(super) folded: OwnerSequence,
    pub(super) stamp: u64,
    pub(super) previous: u64,
    /// Of a head without its sum.
    pub(super) payload: Bytes,
    /// What the owner's other rows count; 0 where the row is no head.
    pub(super) rows: u64,
    /// What this row counts.
    pub(super) count: u64,
}

/// Why a value cannot be what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueFault {
    /// It is too short to be a row.
    #[error("it is cut short")]
    Short,
    /// A newer build wrote it.
    #[error("its version is {0}, this build knows {ROW_VERSION}")]
    Version(u8),
    /// It is not what was written under this key.
    #[error("its checksum does not match")]
    Checksum,
}

/// What goes into a value; the checksum and the sums are added here.
pub(super) struct Draft<'a> {
    pub(super) live: bool,
    pub(super) folded: OwnerSequence,
    pub(super) stamp: u64,
    pub(super) previous: u64,
    pub(super) payload: &'a [u8],
    /// Ignored where the row is no head.
    pub(super) rows: u64,
}

/// The value and what it counts.
pub(super) fn encode_value(tree: Tree, key: RowKey, draft: &Draft<'_>) -> (Vec<u8>, u64) {
    let mut value = Vec::with_capacity(FIXED_BYTES + draft.payload.len() + 8 + CRC_BYTES);
    value.push(ROW_VERSION);
    value.push(if draft.live { LIVE } else { REMOVED });
    value.extend_from_slice(&draft.folded.0.to_le_bytes());
    value.extend_from_slice(&draft.stamp.to_le_bytes());
    value.extend_from_slice(&draft.previous.to_le_bytes());
    value.extend_from_slice(draft.payload);
    if key.is_head() {
        value.extend_from_slice(&draft.rows.to_le_bytes());
    }
    let crc = checksum(tree, key, &value);
    value.extend_from_slice(&crc.to_le_bytes());
    (value, count(draft.live, crc))
}

pub(super) fn decode_value(tree: Tree, key: RowKey, value: &[u8]) -> Result<Value, ValueFault> {
    let &version = value.first().ok_or(ValueFault::Short)?;
    if version != ROW_VERSION {
        return Err(ValueFault::Version(version));
    }
    let (body, crc) = value
        .split_last_chunk::<CRC_BYTES>()
        .ok_or(ValueFault::Short)?;
    let crc = u32::from_le_bytes(*crc);
    if crc != checksum(tree, key, body) {
        return Err(ValueFault::Checksum);
    }
    let (fixed, mut payload) = body
        .split_first_chunk::<FIXED_BYTES>()
        .ok_or(ValueFault::Short)?;
    let live = fixed.get(1) == Some(&LIVE);
    let mut rows = 0;
    if key.is_head() {
        let (rest, sum) = payload.split_last_chunk::<8>().ok_or(ValueFault::Short)?;
        rows = u64::from_le_bytes(*sum);
        payload = rest;
    }
    Ok(Value {
        live,
        folded: OwnerSequence(word(fixed, 2)),
        stamp: word(fixed, 10),
        previous: word(fixed, 18),
        payload: Bytes::copy_from_slice(payload),
        rows,
        count: count(live, crc),
    })
}

/// What a head that does not read may have counted as of a mark: by the checksum it has, by the one its
/// bytes should have, by what it says it counted before. Where the damage is in one of the three, another
/// is true; which one, the sum of all heads tells.
pub(super) fn head_counts(tree: Tree, key: RowKey, value: &[u8]) -> Vec<u64> {
    let Some((body, crc)) = value.split_last_chunk::<CRC_BYTES>() else {
        return Vec::new();
    };
    let mut counts = vec![0];
    for crc in [u32::from_le_bytes(*crc), checksum(tree, key, body)] {
        counts.push(count(true, crc));
    }
    if let Some(fixed) = body.first_chunk::<FIXED_BYTES>() {
        counts.push(word(fixed, 18));
    }
    counts
}

fn word(fixed: &[u8; FIXED_BYTES], at: usize) -> u64 {
    fixed
        .get(at..)
        .and_then(|rest| rest.first_chunk::<8>())
        .map_or(0, |word| u64::from_le_bytes(*word))
}

fn checksum(tree: Tree, key: RowKey, body: &[u8]) -> u32 {
    let crc = crate::domain::checksum::crc32c(&[tree as u8]);
    let crc = crate::domain::checksum::crc32c_append(crc, &key.encode());
    crate::domain::checksum::crc32c_append(crc, body)
}

fn count(live: bool, crc: u32) -> u64 {
    if live { (1 << 32) + u64::from(crc) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    const KEY: RowKey = RowKey {
        owner: OwnerId(1024),
        kind: PARTITION_INDEX_RUN,
        id: 7,
    };

    #[test]
    fn keys_are_these_bytes() {
        assert_eq!(hex(&KEY.encode()), "0000000000000400010000000000000007");
        assert_eq!(RowKey::decode(&KEY.encode()), Some(KEY));
        assert_eq!(RowKey::decode(&KEY.encode()[..16]), None);
    }

    #[test]
    fn values_are_these_bytes() {
        let draft = Draft {
            live: true,
            folded: OwnerSequence(3),
            stamp: 5,
            previous: 9,
            payload: b"run",
            rows: 77,
        };
        let (row, _) = encode_value(Tree::Partition, KEY, &draft);
        assert_eq!(
            hex(&row),
            "010003000000000000000500000000000000090000000000000072756e81461bca"
        );
        let (head, _) = encode_value(Tree::Partition, RowKey::head(OwnerId(1024)), &draft);
        assert_eq!(
            hex(&head),
            "010003000000000000000500000000000000090000000000000072756e4d000000000000006f0d0c39"
        );
    }

    #[test]
    fn a_value_is_good_only_under_its_own_tree_and_key() {
        let draft = Draft {
            live: true,
            folded: OwnerSequence(3),
            stamp: 5,
            previous: 0,
            payload: b"run",
            rows: 0,
        };
        let (row, _) = encode_value(Tree::Partition, KEY, &draft);
        assert!(decode_value(Tree::Partition, KEY, &row).is_ok());
        assert_eq!(
            decode_value(Tree::Group, KEY, &row),
            Err(ValueFault::Checksum)
        );
        let other = RowKey { id: 8, ..KEY };
        assert_eq!(
            decode_value(Tree::Partition, other, &row),
            Err(ValueFault::Checksum)
        );
    }

    #[test]
    fn a_newer_version_is_named() {
        assert_eq!(
            decode_value(Tree::Meta, KEY, &[2; 40]),
            Err(ValueFault::Version(2))
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn what_was_written_is_read_and_any_flip_is_noticed(
            live: bool, folded: u64, stamp: u64, previous: u64, rows: u64, head: bool,
            payload in proptest::collection::vec(any::<u8>(), 0..64),
            flip in any::<prop::sample::Index>(), bit in 0_u8..8,
        ) {
            let key = if head { RowKey::head(OwnerId(9)) } else { KEY };
            let draft = Draft { live, folded: OwnerSequence(folded), stamp, previous, payload: &payload, rows };
            let (mut value, counted) = encode_value(Tree::Meta, key, &draft);
            let read = decode_value(Tree::Meta, key, &value).unwrap();
            prop_assert_eq!(read, Value {
                live, folded: OwnerSequence(folded), stamp, previous,
                payload: Bytes::from(payload), rows: if head { rows } else { 0 }, count: counted,
            });
            let at = flip.index(value.len());
            value[at] ^= 1 << bit;
            prop_assert!(decode_value(Tree::Meta, key, &value).is_err());
        }

        #[test]
        fn decoding_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode_value(Tree::Meta, KEY, &bytes);
            let _ = RowKey::decode(&bytes);
        }
    }
}

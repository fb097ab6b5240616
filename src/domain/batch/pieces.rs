//! Checking a batch that is still in the pieces it came in, without putting it together.

use bytes::Bytes;

use super::header::{BatchHeader, integers};
use super::view::BatchView;
use super::{BATCH_HEADER_BYTES, BatchError};
use crate::domain::batch::Compression;
use crate::domain::body::Body;
use crate::domain::checksum::{Shift, crc32c, crc32c_append, crc32c_combine};
use crate::domain::entry::PayloadFacts;

/// So often may the length of records change before it is cheaper to sum everything once more.
const LENGTHS_MAX: usize = 4;

/// What whoever passes a batch on has to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedBatch {
    /// Its header.
    pub header: BatchHeader,
    /// What a fold must know of it.
    pub facts: PayloadFacts,
    /// The priority all its records have; none where they differ.
    pub level: Option<u8>,
    /// The CRC-32C of all its bytes, where it came out on the way.
    pub crc: Option<u32>,
}

/// Checks a whole batch as [`BatchView::parse`] does.
///
/// # Errors
/// [`BatchError`] where the bytes are not exactly one batch whose checksums hold.
pub fn check(body: &Body) -> Result<CheckedBatch, BatchError> {
    let first = body.pieces().first().cloned().unwrap_or_default();
    let whole = body.pieces().len() == 1;
    let header = if whole {
        None
    } else {
        BatchHeader::parse(&first).ok()
    };
    let Some(header) = header else {
        // In one piece, or its directory is cut: then it is put together.
        let view = BatchView::parse(&body.to_bytes())?;
        return Ok(CheckedBatch {
            header: view.header().clone(),
            facts: view.facts(),
            level: view.header().level(view.directory()),
            crc: None,
        });
    };
    if body.len() != header.total_bytes() {
        return Err(BatchError::Length {
            expected: header.total_bytes(),
            actual: body.len(),
        });
    }
    let bodies_at = BATCH_HEADER_BYTES + header.directory_bytes;
    let before = first.get(..bodies_at).unwrap_or_default();
    let directory = before.get(BATCH_HEADER_BYTES..).unwrap_or_default();
    let facts = header.facts(directory);
    let level = header.level(directory);
    let mut rest = Rest {
        pieces: body.pieces(),
        at: bodies_at,
    };
    if header.compression != Compression::None {
        let stored = body.len() - bodies_at;
        if rest.crc(stored) != Some(header.body_crc) {
            return Err(BatchError::BodyChecksum);
        }
        let crc = crc32c_combine(crc32c(before), header.body_crc, stored);
        return Ok(CheckedBatch {
            header,
            facts,
            level,
            crc: Some(crc),
        });
    }
    let (lengths, crcs) = directory
        .split_at_checked(4 * header.len())
        .unwrap_or_default();
    let mut whole = Whole::begin(crc32c(before));
    for (index, (length, crc)) in (0..).zip(integers(lengths).zip(integers(crcs))) {
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        match rest.crc(bytes) {
            Some(found) if found == crc => whole.add(crc, bytes),
            Some(_) => return Err(BatchError::RecordChecksum(index)),
            None => return Err(BatchError::Directory),
        }
    }
    Ok(CheckedBatch {
        header,
        facts,
        level,
        crc: whole.crc,
    })
}

/// The checksum of everything, put together from those of the parts as long as that is cheap: while
/// they are of one length.
struct Whole {
    crc: Option<u32>,
    bytes: usize,
    shift: Shift,
    changes: usize,
}

impl Whole {
    fn begin(crc: u32) -> Self {
        Self {
            crc: Some(crc),
            bytes: 0,
            shift: Shift::by(0),
            changes: 0,
        }
    }

    fn add(&mut self, crc: u32, bytes: usize) {
        if bytes != self.bytes {
            self.changes += 1;
            if self.changes > LENGTHS_MAX {
                self.crc = None;
                return;
            }
            self.bytes = bytes;
            self.shift = Shift::by(bytes);
        }
        self.crc = self.crc.map(|whole| self.shift.combine(whole, crc));
    }
}

/// What of the pieces has not been looked at.
struct Rest<'a> {
    pieces: &'a [Bytes],
    /// Where in the first of them.
    at: usize,
}

impl Rest<'_> {
    /// The checksum of the next `bytes`, across pieces; none where there are not so many.
    fn crc(&mut self, mut bytes: usize) -> Option<u32> {
        let mut crc = 0;
        while bytes > 0 {
            let (first, others) = self.pieces.split_first()?;
            let here = first.get(self.at..)?;
            let taken = here.get(..bytes).unwrap_or(here);
            crc = crc32c_append(crc, taken);
            bytes -= taken.len();
            self.at += taken.len();
            if self.at == first.len() {
                (self.pieces, self.at) = (others, 0);
            }
        }
        Some(crc)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BatchBuilder, BatchStamp};
    use super::*;
    use crate::domain::id::MessageId;
    use crate::domain::record::Record;
    use crate::domain::time::WallMs;
    use proptest::prelude::*;

    fn batch(compression: Compression, records: usize) -> Vec<u8> {
        let mut builder = BatchBuilder::new(1 << 20, compression);
        for number in 0..records {
            // Of many lengths, or of few.
            let length = if records.is_multiple_of(2) {
                40 + number % 90
            } else {
                40 + number / 30
            };
            let value = vec![u8::try_from(number % 251).unwrap(); length];
            builder
                .push(&Record::new(value), MessageId::default(), WallMs(7))
                .unwrap();
        }
        builder.finish(BatchStamp::default()).unwrap().to_vec()
    }

    fn cut(bytes: &[u8], at: &[usize]) -> Body {
        let mut rest = Bytes::copy_from_slice(bytes);
        let mut pieces: Vec<_> = at
            .iter()
            .map(|at| rest.split_to((*at).min(rest.len())))
            .collect();
        pieces.push(rest);
        Body::from_pieces(pieces)
    }

    proptest! {
        /// Whatever is cut, and whatever byte is changed: the same answer as for the batch in one piece.
        #[test]
        fn a_batch_in_pieces_is_judged_as_one_in_one_piece(
            cuts in prop::collection::vec(0usize..3000, 0..6),
            records in 1usize..60,
            compression in prop_oneof![
                Just(Compression::None), Just(Compression::Lz4), Just(Compression::Zstd)
            ],
            flip in prop::option::of((any::<prop::sample::Index>(), 1u8..=255)),
            short in prop::bool::weighted(0.1),
        ) {
            let mut bytes = batch(compression, records);
            if let Some((at, bits)) = flip {
                let at = at.index(bytes.len());
                bytes[at] ^= bits;
            }
            if short {
                bytes.pop();
            }
            let expected = BatchView::parse(&Bytes::from(bytes.clone()))
                .map(|view| (view.header().clone(), view.facts(), Some(0)));
            let checked = check(&cut(&bytes, &cuts));
            if let Ok(CheckedBatch { crc: Some(crc), .. }) = &checked {
                prop_assert_eq!(*crc, crc32c(&bytes));
            }
            let checked = checked.map(|checked| (checked.header, checked.facts, checked.level));
            prop_assert_eq!(checked, expected);
        }
    }
}

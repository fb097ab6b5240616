//! From places of a partition's index and the payloads they name to frames for a reader.
//!
//! A batch that was published where it was stored is served untouched. Records that were published by
//! reference are gathered: those that follow each other, from however many payloads, go out as one
//! batch, each under its producer's own checksum, with what became of it beside it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use bytes::{Bytes, BytesMut};

use crate::domain::batch::{BATCH_RECORDS_MAX, BatchError, Cut, Opened, Taken};
use crate::domain::body::Body;
use crate::domain::id::{LogPosition, Offset};
use crate::domain::partition::index::BatchPlace;
use crate::wire::reader::{DETAIL_BYTES, RecordDetail};

/// Bytes gathered into one frame: a batch, and what is said of its records.
const GATHERED_BYTES: usize = 1024 * 1024;

/// What goes out as one frame.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// A batch as it was stored.
    Whole(BatchPlace, Body),
    /// Records published by reference.
    Gathered {
        /// The offset of the first.
        first_offset: Offset,
        /// How many.
        count: u32,
        /// Of each, what [`RecordDetail`] says.
        details: Bytes,
        /// A batch of them.
        batch: Body,
    },
    /// Records that cannot be read: their payload is no batch.
    Unreadable(BatchPlace, BatchError),
}

impl Outgoing {
    /// The bytes of its body: what credit counts.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Whole(_, body) => body.len() as u64,
            Self::Gathered { details, batch, .. } => (details.len() + batch.len()) as u64,
            Self::Unreadable(..) => 0,
        }
    }
}

/// What there is of the records of a place.
#[derive(Debug)]
pub(super) enum Payload {
    /// The payload they lie in.
    Whole(Body),
    /// All of them, from the first on, each by itself.
    Pieces(Vec<Taken>),
}

/// Puts frames together from consecutive places and the payloads they name, from the offset `from` on.
pub(super) fn gather(places: &[BatchPlace], payloads: Vec<Payload>, from: Offset) -> Vec<Outgoing> {
    let mut gathering = Gathering::new(from);
    for (place, payload) in places.iter().zip(payloads) {
        match payload {
            Payload::Pieces(taken) => gathering.taken(place, &taken),
            Payload::Whole(body) if place.reference.is_none() => {
                gathering.close();
                gathering.out.push(Outgoing::Whole(*place, body));
            }
            Payload::Whole(body)
                if place.is_whole() && place.count > 1 && place.first_offset >= from =>
            {
                gathering.whole(place, body);
            }
            Payload::Whole(body) => gathering.cut(place, &body),
        }
    }
    gathering.close();
    gathering.out
}

struct Gathering {
    from: Offset,
    out: Vec<Outgoing>,
    cut: Cut,
    details: BytesMut,
    first: Offset,
    /// Timers that fire together are often neighbours of one payload: it is opened once.
    opened: HashMap<LogPosition, Opened>,
}

impl Gathering {
    fn new(from: Offset) -> Self {
        Self {
            from,
            out: Vec::new(),
            cut: Cut::new(GATHERED_BYTES),
            details: BytesMut::new(),
            first: Offset(0),
            opened: HashMap::new(),
        }
    }

    fn close(&mut self) {
        let count = u32::try_from(self.cut.len()).unwrap_or(u32::MAX);
        if let Some(batch) = self.cut.finish() {
            self.out.push(Outgoing::Gathered {
                first_offset: self.first,
                count,
                details: self.details.split().freeze(),
                batch,
            });
        }
    }

    fn whole(&mut self, place: &BatchPlace, body: Body) {
        self.close();
        for at in 0..place.count {
            self.detail(place, at);
        }
        self.out.push(Outgoing::Gathered {
            first_offset: place.first_offset,
            count: place.count,
            details: self.details.split().freeze(),
            batch: body,
        });
    }

    fn detail(&mut self, place: &BatchPlace, at: u32) {
        let stored = place.reference.map_or(place.appended, |r| r.stored);
        RecordDetail {
            number: crate::domain::id::RecordNumber(
                place.first_number.0.saturating_add(u64::from(at)),
            ),
            stored,
            published: place.appended,
            due: place.reference.and_then(|reference| reference.due),
        }
        .put(&mut self.details);
    }

    fn cut(&mut self, place: &BatchPlace, body: &Body) {
        if let Entry::Vacant(vacant) = self.opened.entry(place.position) {
            match Opened::open(body) {
                Ok(opened) => {
                    vacant.insert(opened);
                }
                Err(error) => {
                    self.close();
                    return self.out.push(Outgoing::Unreadable(*place, error));
                }
            }
        }
        for at in self.skip(place)..place.count {
            let Some(opened) = self.opened.get(&place.position) else {
                return;
            };
            match opened.take(place.record(at)) {
                Ok(taken) => {
                    if !self.push(place, at, &taken) {
                        return;
                    }
                }
                Err(error) => {
                    self.close();
                    return self.out.push(Outgoing::Unreadable(*place, error));
                }
            }
        }
    }

    fn taken(&mut self, place: &BatchPlace, all: &[Taken]) {
        for (at, taken) in (0..place.count)
            .zip(all)
            .skip(usize::try_from(self.skip(place)).unwrap_or(usize::MAX))
        {
            if !self.push(place, at, taken) {
                return;
            }
        }
    }

    /// How many records of a place lie before what is wanted.
    fn skip(&self, place: &BatchPlace) -> u32 {
        let skip = self.from.0.saturating_sub(place.first_offset.0);
        u32::try_from(skip).unwrap_or(u32::MAX)
    }

    /// Adds a record to the batch that is being put together, or to the next; says whether it could.
    fn push(&mut self, place: &BatchPlace, at: u32, taken: &Taken) -> bool {
        let offset = Offset(place.first_offset.0.saturating_add(u64::from(at)));
        let follows = self.first.0.checked_add(self.cut.len() as u64) == Some(offset.0);
        let bytes = self.cut.bytes() + self.details.len() + DETAIL_BYTES;
        let is_full = self.cut.len() >= BATCH_RECORDS_MAX || bytes > GATHERED_BYTES;
        if !self.cut.is_empty() && (!follows || is_full) {
            self.close();
        }
        if !self.cut.is_empty() && !self.cut.push_taken(taken.clone()) {
            self.close();
        } else if !self.cut.is_empty() {
            self.detail(place, at);
            return true;
        }
        if self.cut.push_taken(taken.clone()) {
            self.first = offset;
            self.detail(place, at);
            return true;
        }
        self.out
            .push(Outgoing::Unreadable(*place, BatchError::Directory));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::batch::{BatchBuilder, BatchStamp, BatchView, Compression};
    use crate::domain::id::{MessageId, RecordNumber};
    use crate::domain::partition::index::Reference;
    use crate::domain::record::Record;
    use crate::domain::time::WallMs;

    fn payload(values: &[&'static str]) -> Body {
        let mut builder = BatchBuilder::new(1 << 20, Compression::None);
        for value in values {
            builder
                .push(&Record::new(*value), MessageId::default(), WallMs(1))
                .unwrap();
        }
        builder.finish(BatchStamp::default()).unwrap().into()
    }

    fn place(offset: u64, count: u32, position: u64, index: u32, of: u32) -> BatchPlace {
        BatchPlace {
            first_offset: Offset(offset),
            count,
            first_number: RecordNumber(100 + u64::from(index)),
            position: LogPosition(position),
            length: 500,
            appended: WallMs(9),
            tags: 0,
            reference: Some(Reference {
                index,
                of,
                stored: WallMs(3),
                due: Some(WallMs(8)),
            }),
        }
    }

    fn values(batch: &Body) -> Vec<String> {
        let view = BatchView::parse(&batch.to_bytes()).unwrap();
        view.bodies()
            .unwrap()
            .map(|body| {
                let body = crate::domain::record::RecordBody::decode(&body.unwrap().1).unwrap();
                String::from_utf8(body.value.to_vec()).unwrap()
            })
            .collect()
    }

    #[test]
    fn what_fired_together_goes_out_as_one_batch_and_whole_batches_stay_whole() {
        let (a, b) = (payload(&["a0", "a1", "a2"]), payload(&["b0", "b1"]));
        let whole = BatchPlace {
            reference: None,
            ..place(14, 2, 20, 0, 2)
        };
        let places = [
            place(10, 2, 10, 1, 3),
            place(12, 1, 20, 1, 2),
            place(13, 1, 10, 0, 3),
            whole,
            place(16, 1, 20, 0, 2),
        ];
        let bodies = [a.clone(), b.clone(), a, b.clone(), b.clone()];
        let bodies = bodies.map(Payload::Whole).into();
        let out = gather(&places, bodies, Offset(11));
        let [
            Outgoing::Gathered {
                first_offset: Offset(11),
                count: 3,
                details,
                batch,
            },
            Outgoing::Whole(_, untouched),
            Outgoing::Gathered {
                first_offset: Offset(16),
                count: 1,
                ..
            },
        ] = out.as_slice()
        else {
            panic!("{out:?}")
        };
        assert_eq!(values(batch), ["a2", "b1", "a0"]);
        assert_eq!(*untouched, b);
        let details = RecordDetail::parse_all(&details.slice(..3 * DETAIL_BYTES));
        let numbers: Vec<u64> = details.iter().map(|detail| detail.number.0).collect();
        assert_eq!(numbers, [102, 101, 100]);
        assert_eq!(details[0].due, Some(WallMs(8)));
        assert_eq!(
            (details[0].stored, details[0].published),
            (WallMs(3), WallMs(9))
        );
    }

    #[test]
    fn a_payload_that_is_no_batch_spoils_nothing_beside_it() {
        let places = [place(10, 1, 10, 0, 1), place(11, 1, 20, 0, 1)];
        let bodies = [Body::from(&b"rotten"[..]), payload(&["b"])];
        let bodies = bodies.map(Payload::Whole).into();
        let out = gather(&places, bodies, Offset(10));
        assert!(matches!(
            out.as_slice(),
            [
                Outgoing::Unreadable(..),
                Outgoing::Gathered { count: 1, .. }
            ]
        ));
    }
}

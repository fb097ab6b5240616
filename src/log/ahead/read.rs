//! Reading single records out of payloads, with as few and as short reads as their layout allows.
//!
//! A small payload is read whole, together with its neighbours. Of a large one the directory is needed
//! first; it is kept, as far as there is room, because the payload's other records come another time. A
//! record near the front is read together with the directory, in one go.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::Piece;
use crate::domain::batch::{BatchError, BatchHead, Opened, Taken, head_bytes_max};
use crate::domain::body::Body;
use crate::domain::entry::EntryPlace;
use crate::domain::id::LogPosition;
use crate::log::reader::LogReader;
use crate::log::tail_cache::TailCache;

/// A payload up to this long is read whole.
pub(in crate::log) const WHOLE_BYTES: u32 = 32 << 10;
/// The directory and a record are read in one go up to this long.
const TOGETHER_BYTES: u64 = 64 << 10;
/// Records of one payload are read in one go across a gap of this much.
const GAP_BYTES: u64 = 16 << 10;
/// What a directory costs beside itself: its places in map and queue.
const OVERHEAD_BYTES: usize = 96;

/// Reads records.
pub(super) struct PieceReader {
    reader: LogReader,
    cache: Arc<TailCache>,
    heads: Mutex<Heads>,
}

impl PieceReader {
    pub(super) fn new(reader: LogReader, cache: Arc<TailCache>, heads_bytes_max: usize) -> Self {
        Self {
            reader,
            cache,
            heads: Mutex::new(Heads::new(heads_bytes_max)),
        }
    }

    pub(super) fn heads_bytes(&self) -> usize {
        self.heads().bytes
    }

    /// Told how much of the room for directories others use, says how much of it they may (see [`Heads`]).
    pub(super) fn lend(&self, lent: usize) -> usize {
        let mut heads = self.heads();
        heads.lent = lent;
        if lent == 0 {
            // Nothing keeps them from what they want.
            heads.wanted = 0;
        }
        heads.lendable()
    }

    pub(super) fn reads_issued(&self) -> u64 {
        self.reader.reads_issued()
    }

    fn heads(&self) -> MutexGuard<'_, Heads> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads pieces; answers in the order asked.
    pub(super) fn read(&self, pieces: &[Piece]) -> Vec<Option<Taken>> {
        let mut order: Vec<(usize, Piece)> = pieces.iter().copied().enumerate().collect();
        order.sort_unstable_by_key(|(_, piece)| *piece);
        let mut answers = vec![None; pieces.len()];
        let payloads: Vec<&[(usize, Piece)]> =
            order.chunk_by(|a, b| a.1.place == b.1.place).collect();
        let mut whole = Vec::new();
        for payload in payloads {
            let Some((_, first)) = payload.first() else {
                continue;
            };
            if let Some(body) = self.cache.lookup(first.place.position) {
                take_from(&body, payload, &mut answers);
            } else if first.place.length <= WHOLE_BYTES || nearly_all(payload, first) {
                whole.push((first.place, payload));
            } else {
                self.read_payload(first.place, first.of, payload, &mut answers);
            }
        }
        let places: Vec<EntryPlace> = whole.iter().map(|(place, _)| *place).collect();
        for ((_, payload), entry) in whole.iter().zip(self.reader.read(&places)) {
            if let Ok(entry) = entry {
                take_from(&Body::from(entry.body), payload, &mut answers);
            }
        }
        answers
    }

    fn read_payload(
        &self,
        place: EntryPlace,
        of: u32,
        payload: &[(usize, Piece)],
        answers: &mut [Option<Taken>],
    ) {
        let known = self.heads().get(place.position);
        let (head, front) = match known {
            Some(Some(head)) => (head, Bytes::new()),
            Some(None) => return,
            None => match self.read_head(place, of, payload) {
                Some(read) => read,
                None => return,
            },
        };
        let ranges = payload.iter().filter_map(|(at, piece)| {
            let index = usize::try_from(piece.index).unwrap_or(usize::MAX);
            Some((*at, index, head.range(index)?))
        });
        let mut far = Vec::new();
        for (at, index, range) in ranges {
            match slice(&front, 0, &range) {
                Some(stored) => put(answers, at, head.take(index, stored).ok()),
                None => far.push((at, index, range)),
            }
        }
        // They are sorted by index, and so by where they lie.
        for near in far.chunk_by(|a, b| b.2.start <= a.2.end.saturating_add(GAP_BYTES)) {
            let (Some(first), Some(last)) = (near.first(), near.last()) else {
                continue;
            };
            let start = first.2.start;
            let Ok(read) = self.reader.read_body_part(place, start..last.2.end) else {
                continue;
            };
            for (at, index, range) in near {
                let stored = slice(&read, start, range);
                put(
                    answers,
                    *at,
                    stored.and_then(|stored| head.take(*index, stored).ok()),
                );
            }
        }
    }

    /// Reads a payload's directory, and what is wanted of its front with it.
    fn read_head(
        &self,
        place: EntryPlace,
        of: u32,
        payload: &[(usize, Piece)],
    ) -> Option<(Arc<BatchHead>, Bytes)> {
        let least = head_bytes_max(of) as u64;
        // Where the records' ends are if all are of one length, and a little more.
        let each = u64::from(place.length).saturating_sub(least / 2) / u64::from(of.max(1));
        let front = payload
            .iter()
            .map(|(_, piece)| {
                let records = u64::from(piece.index).saturating_add(1);
                least.saturating_add(each.saturating_mul(records)) + each / 4 + 256
            })
            .take_while(|end| *end <= TOGETHER_BYTES)
            .last()
            .unwrap_or(least);
        let read = self.reader.read_head(place, front.max(least)).ok()?;
        let head = match BatchHead::parse(&read) {
            Ok(head) => Some(Arc::new(head)),
            Err(BatchError::Compression(_)) => None,
            Err(_) => return None,
        };
        self.heads().put(place.position, head.as_ref());
        Some((head?, read))
    }
}

/// Most of a payload is wanted: one read of all of it.
fn nearly_all(payload: &[(usize, Piece)], first: &Piece) -> bool {
    let wanted: HashSet<u32> = payload.iter().map(|(_, piece)| piece.index).collect();
    wanted.len() as u64 * 2 > u64::from(first.of)
}

fn put(answers: &mut [Option<Taken>], at: usize, taken: Option<Taken>) {
    if let Some(place) = answers.get_mut(at) {
        *place = taken;
    }
}

fn slice<'a>(bytes: &'a Bytes, from: u64, range: &std::ops::Range<u64>) -> Option<&'a [u8]> {
    let start = usize::try_from(range.start.checked_sub(from)?).ok()?;
    let end = usize::try_from(range.end.checked_sub(from)?).ok()?;
    bytes.get(start..end)
}

fn take_from(body: &Body, payload: &[(usize, Piece)], answers: &mut [Option<Taken>]) {
    let Ok(opened) = Opened::open(body) else {
        return;
    };
    for (at, piece) in payload {
        let index = usize::try_from(piece.index).unwrap_or(usize::MAX);
        put(answers, *at, opened.take(index).ok().map(Taken::detached));
    }
}

/// Directories, within a bound. Who was asked for since it was last looked at stays another round. What they
/// do not fill is lent, most of it at the most; where they have to go for that, less is lent from then on.
struct Heads {
    bytes_max: usize,
    bytes: usize,
    /// Of the bound, what others use.
    lent: usize,
    /// What had no room because of that.
    wanted: usize,
    /// None: no record of it can be read alone.
    by_position: HashMap<LogPosition, (Option<Arc<BatchHead>>, bool)>,
    queue: VecDeque<LogPosition>,
}

impl Heads {
    fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            lent: 0,
            wanted: 0,
            by_position: HashMap::new(),
            queue: VecDeque::new(),
        }
    }

    fn lendable(&self) -> usize {
        let free = self
            .bytes_max
            .saturating_sub(self.bytes.saturating_add(self.wanted));
        free.min(self.bytes_max / 5 * 4)
    }

    fn get(&mut self, position: LogPosition) -> Option<Option<Arc<BatchHead>>> {
        let (head, used) = self.by_position.get_mut(&position)?;
        *used = true;
        Some(head.clone())
    }

    fn put(&mut self, position: LogPosition, head: Option<&Arc<BatchHead>>) {
        let cost = cost(head);
        if self.by_position.contains_key(&position) || cost > self.bytes_max {
            return;
        }
        let limit = self.bytes_max.saturating_sub(self.lent);
        if cost > limit {
            return;
        }
        let fits = self.bytes + cost <= limit;
        self.wanted = match fits {
            true => self.wanted.saturating_sub(cost),
            false if self.lent > 0 => (self.wanted + cost).min(self.bytes_max),
            false => 0,
        };
        while self.bytes + cost > limit
            && let Some(oldest) = self.queue.pop_front()
        {
            match self.by_position.get_mut(&oldest) {
                Some((_, used)) if *used => {
                    *used = false;
                    self.queue.push_back(oldest);
                }
                Some((gone, _)) => {
                    self.bytes = self.bytes.saturating_sub(self::cost(gone.as_ref()));
                    self.by_position.remove(&oldest);
                }
                None => {}
            }
        }
        self.bytes += cost;
        self.queue.push_back(position);
        self.by_position.insert(position, (head.cloned(), false));
    }
}

fn cost(head: Option<&Arc<BatchHead>>) -> usize {
    head.map_or(0, |head| head.bytes()) + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::batch::{BatchBuilder, BatchStamp, Compression};
    use crate::domain::id::MessageId;
    use crate::domain::record::Record;
    use crate::domain::time::WallMs;

    #[test]
    fn directories_stay_within_their_bound_and_the_used_ones_stay() {
        let mut builder = BatchBuilder::new(1 << 20, Compression::None);
        for _ in 0..100 {
            builder
                .push(&Record::new("x"), MessageId::default(), WallMs(1))
                .unwrap();
        }
        let batch = builder.finish(BatchStamp::default()).unwrap();
        let head = Arc::new(BatchHead::parse(&batch).unwrap());
        let each = head.bytes() + OVERHEAD_BYTES;
        let mut heads = Heads::new(10 * each);
        for position in 0..10 {
            heads.put(LogPosition(position), Some(&head));
        }
        assert!(heads.get(LogPosition(0)).is_some());
        for position in 10..15 {
            heads.put(LogPosition(position), Some(&head));
            heads.put(LogPosition(position), Some(&head));
            assert!(heads.bytes <= 10 * each);
        }
        assert!(heads.get(LogPosition(0)).is_some(), "it was used");
        assert!(heads.get(LogPosition(1)).is_none());
        assert_eq!(heads.by_position.len(), heads.queue.len());
    }

    #[test]
    fn what_directories_do_not_fill_is_lent_and_comes_back_when_they_want_it() {
        let each = OVERHEAD_BYTES;
        let mut heads = Heads::new(100 * each);
        assert_eq!(heads.lendable(), 80 * each, "some stays theirs");
        heads.lent = heads.lendable();
        for position in 0..1_000 {
            heads.put(LogPosition(position), None);
            assert!(heads.bytes + heads.lent <= 100 * each);
            // Whoever uses it gives back what it may not have.
            heads.lent = heads.lent.min(heads.lendable());
        }
        assert_eq!((heads.bytes, heads.lent), (100 * each, 0));
        assert_eq!(heads.lendable(), 0);
    }
}

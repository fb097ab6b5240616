//! Records that wait as rows: what changed, what is let go of, what is loaded again, and what a snapshot says.

use bytes::Bytes;

use super::bodies::{Open, StoredPlace, decode_bodies, encode_bodies};
use super::chunk::{Chunk, State};
use super::{Bodies, CHUNK_NUMBERS, DUES_KEPT, Gone, PLACES_KEPT, Table};
use crate::domain::id::{LogPosition, RecordNumber};
use crate::domain::time::WallMs;

impl Table {
    /// Brings a run of bodies back; says whether it is the run.
    pub(in crate::domain::partition) fn load(&mut self, first: RecordNumber, row: &[u8]) -> bool {
        let Some((places, dues)) = decode_bodies(row) else {
            return false;
        };
        self.clock += 1;
        let clock = self.clock;
        let Some(run) = self.runs.get_mut(&first) else {
            return false;
        };
        if places.last().map(StoredPlace::end) != Some(run.end) {
            return false;
        }
        run.touched = clock;
        if run.places.is_none() {
            run.places = Some(places);
        }
        run.dues = Some(dues);
        self.shed();
        true
    }

    /// Takes in a run of bodies at the start of an incarnation.
    pub(in crate::domain::partition) fn restore_bodies(&mut self, row: &[u8]) -> bool {
        let Some((places, dues)) = decode_bodies(row) else {
            return false;
        };
        let (Some(first), Some(last)) = (places.first().copied(), places.last().copied()) else {
            return false;
        };
        self.clock += 1;
        let bodies = Bodies {
            end: last.end(),
            position: first.position,
            positions_end: LogPosition(last.position.0.saturating_add(1)),
            latest_due: WallMs(dues.iter().copied().max().unwrap_or(i64::MIN)),
            batches: places.len(),
            records: dues.len(),
            places: Some(places),
            // A run that is not full is begun anew: nothing is added to one whose due times are not here.
            dues: None,
            dirty: false,
            touched: self.clock,
        };
        self.runs.insert(first.first_number, bodies);
        if self.clock.is_multiple_of(64) {
            self.shed();
        }
        true
    }

    pub(in crate::domain::partition) fn restore_chunk(&mut self, id: u64, row: &[u8]) -> bool {
        let Some(chunk) = Chunk::decode(row) else {
            return false;
        };
        self.waiting += u64::from(chunk.waiting);
        self.chunks.insert(id, chunk);
        true
    }

    pub(in crate::domain::partition) fn restore_open(&mut self, row: &[u8]) -> bool {
        let Some(open) = Open::decode(row) else {
            return false;
        };
        self.undecided += u64::from(open.place.count);
        self.by_transaction
            .insert((open.key, open.place.first_number));
        self.open.insert(open.place.first_number, open);
        true
    }

    /// Lets go of written bodies beyond what is kept, those used longest ago first.
    pub(super) fn shed(&mut self) {
        let clean = |run: &&mut Bodies| !run.dirty;
        let (mut places, mut dues) = (0usize, 0usize);
        for run in self.runs.values_mut().filter(clean) {
            places += run.places.as_ref().map_or(0, Vec::len);
            dues += run.dues.as_ref().map_or(0, Vec::len);
        }
        if places <= PLACES_KEPT && dues <= DUES_KEPT {
            return;
        }
        let mut by_use: Vec<(u64, RecordNumber)> = self
            .runs
            .iter()
            .filter(|(_, run)| !run.dirty && (run.places.is_some() || run.dues.is_some()))
            .map(|(first, run)| (run.touched, *first))
            .collect();
        by_use.sort_unstable();
        // The one used last stays, or its asker would have it loaded again, for ever.
        by_use.pop();
        for (_, first) in by_use {
            let Some(run) = self.runs.get_mut(&first) else {
                continue;
            };
            // Half of what is kept goes at once, so that this is not done for every run loaded.
            if dues > DUES_KEPT / 2 {
                dues -= run.dues.take().map_or(0, |dues| dues.len());
            }
            if places > PLACES_KEPT {
                places -= run.places.take().map_or(0, |places| places.len());
            }
        }
    }

    /// Rows that changed since the last call, as (what, value).
    pub(in crate::domain::partition) fn take_dirty(&mut self) -> (Vec<Gone>, Vec<(Gone, Bytes)>) {
        let mut rows = Vec::new();
        for (id, chunk) in &mut self.chunks {
            if std::mem::take(&mut chunk.dirty) {
                rows.push((Gone::Chunk(*id), chunk.encode()));
            }
        }
        for (first, run) in &mut self.runs {
            if run.dirty
                && let (Some(places), Some(dues)) = (&run.places, &run.dues)
            {
                rows.push((Gone::Bodies(*first), encode_bodies(places, dues)));
                run.dirty = false;
            }
        }
        for first in std::mem::take(&mut self.dirty_open) {
            if let Some(open) = self.open.get(&first) {
                rows.push((Gone::Open(first), open.encode()));
            }
        }
        self.shed();
        (std::mem::take(&mut self.gone), rows)
    }

    /// How many rows there are.
    pub(in crate::domain::partition) fn rows(&self) -> usize {
        self.chunks.len() + self.runs.len() + self.open.len()
    }

    // Restating.

    /// The chunks there are, with their rows.
    pub(in crate::domain::partition) fn chunk_rows(&self) -> impl Iterator<Item = (u64, Bytes)> {
        self.chunks.iter().map(|(id, chunk)| (*id, chunk.encode()))
    }

    /// The first numbers of the batches that are open.
    pub(in crate::domain::partition) fn open_firsts(&self) -> Vec<RecordNumber> {
        self.open.keys().copied().collect()
    }

    /// A chunk as a snapshot has it: whatever it says is settled is, whichever is later (S1).
    pub(in crate::domain::partition) fn merge_chunk(&mut self, id: u64, row: &[u8]) {
        let Some(restated) = Chunk::decode(row) else {
            return;
        };
        let chunk = self.chunks.entry(id).or_default();
        let before = chunk.waiting;
        for at in 0..u16::try_from(CHUNK_NUMBERS).unwrap_or(u16::MAX) {
            if let Some(state) = restated.state(at)
                && matches!(chunk.state(at), None | Some(State::Waiting))
                && chunk.state(at) != Some(state)
            {
                chunk.set(at, state);
            }
        }
        for (at, change) in restated.overrides {
            if chunk
                .overrides
                .get(&at)
                .is_none_or(|known| known.version <= change.version)
            {
                chunk.overrides.insert(at, change);
            }
        }
        chunk.published_end = chunk.published_end.max(restated.published_end);
        chunk.answer_end = chunk.answer_end.max(restated.answer_end);
        chunk.unarmed |= restated.unarmed;
        chunk.dirty = true;
        self.waiting = self.waiting.saturating_sub(u64::from(before)) + u64::from(chunk.waiting);
    }

    /// Only these chunks and open batches exist: payloads of others were folded although everything
    /// about them was settled and forgotten.
    pub(in crate::domain::partition) fn keep_only(
        &mut self,
        chunks: &[u64],
        open: &[RecordNumber],
    ) {
        let closed: Vec<RecordNumber> = self
            .open
            .keys()
            .filter(|first| open.binary_search(first).is_err())
            .copied()
            .collect();
        for first in closed {
            self.close_batch(first);
        }
        let over: Vec<u64> = self
            .chunks
            .keys()
            .filter(|id| chunks.binary_search(id).is_err())
            .copied()
            .collect();
        for id in &over {
            self.forget_chunk(*id);
        }
        if !over.is_empty() {
            self.forget_bodies();
        }
    }

    /// Everything that can be seen from outside, for comparison: states, overrides, what is open.
    pub(in crate::domain::partition) fn seen(&self) -> Vec<(u64, Bytes)> {
        self.chunk_rows()
            .chain(
                self.open
                    .iter()
                    .map(|(first, open)| (first.0, open.encode())),
            )
            .collect()
    }
}

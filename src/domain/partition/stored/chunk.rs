//! The states of a chunk of record numbers, two bits each, and its row.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::CHUNK_NUMBERS;
use crate::domain::id::Offset;
use crate::domain::partition::packed::{Reader, Writer};
use crate::domain::time::WallMs;

/// Words of 32 states each.
const WORDS: usize = 128;
const VERSION: u8 = 1;
const UNARMED: u64 = 1;

/// What became of a stored record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It waits for its time or its transaction.
    Waiting,
    /// It fired, or its transaction was committed.
    Published,
    /// It was cancelled, or its transaction was rolled back.
    Dropped,
}

impl State {
    fn bits(self) -> u64 {
        match self {
            Self::Waiting => 1,
            Self::Published => 2,
            Self::Dropped => 3,
        }
    }

    fn of(bits: u64) -> Option<Self> {
        match bits & 3 {
            1 => Some(Self::Waiting),
            2 => Some(Self::Published),
            3 => Some(Self::Dropped),
            _ => None,
        }
    }
}

/// A modified record's new time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Override {
    /// 0 for the first time of a delayed record whose transaction was committed; +1 per modification.
    pub version: u32,
    /// When it is due.
    pub due: WallMs,
}

/// The states of [`CHUNK_NUMBERS`] consecutive numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::domain::partition) struct Chunk {
    words: Box<[u64; WORDS]>,
    pub(super) overrides: BTreeMap<u16, Override>,
    pub(super) waiting: u32,
    /// One past the greatest offset given to one of them.
    pub(super) published_end: Offset,
    /// Once the start offset is here, nobody is told about them any more.
    pub(super) answer_end: Offset,
    /// Alarms of some that wait must still be handed over.
    pub(super) unarmed: bool,
    /// They have been, in this round of the checkpoint or the one after it: the row says so only once that
    /// is marked, for until then the wheel may have no home for them.
    pub(super) handed: Option<u64>,
    pub(super) dirty: bool,
}

impl Default for Chunk {
    fn default() -> Self {
        Self {
            words: Box::new([0; WORDS]),
            overrides: BTreeMap::new(),
            waiting: 0,
            published_end: Offset(0),
            answer_end: Offset(0),
            unarmed: false,
            handed: None,
            dirty: false,
        }
    }
}

impl Chunk {
    pub(super) fn state(&self, at: u16) -> Option<State> {
        let word = self.words.get(usize::from(at / 32))?;
        State::of(word >> (2 * (at % 32)))
    }

    pub(super) fn set(&mut self, at: u16, state: State) {
        let before = self.state(at);
        let Some(word) = self.words.get_mut(usize::from(at / 32)) else {
            return;
        };
        let shift = 2 * (at % 32);
        *word = (*word & !(3 << shift)) | state.bits() << shift;
        if before == Some(State::Waiting) {
            self.waiting = self.waiting.saturating_sub(1);
        }
        if state == State::Waiting {
            self.waiting += 1;
        }
        self.dirty = true;
    }

    /// The row.
    pub(super) fn encode(&self) -> Bytes {
        let mut writer = Writer::default();
        writer.byte(VERSION);
        writer.number(self.published_end.0);
        writer.number(self.answer_end.0);
        writer.number(if self.unarmed { UNARMED } else { 0 });
        writer.number(self.overrides.len() as u64);
        let mut last = 0u64;
        for (at, change) in &self.overrides {
            let at = u64::from(*at);
            writer.number(at - last);
            last = at;
            writer.number(u64::from(change.version));
            writer.signed(change.due.0);
        }
        let mut run = (0u64, 0u64);
        for word in self.words.iter() {
            for shift in (0..64).step_by(2) {
                let bits = (word >> shift) & 3;
                if bits == run.0 {
                    run.1 += 1;
                } else {
                    if run.1 > 0 {
                        writer.number(run.1 << 2 | run.0);
                    }
                    run = (bits, 1);
                }
            }
        }
        writer.number(run.1 << 2 | run.0);
        Bytes::from(writer.0)
    }

    /// Reads a row.
    pub(super) fn decode(row: &[u8]) -> Option<Self> {
        let mut reader = Reader(row);
        if reader.byte()? != VERSION {
            return None;
        }
        let mut chunk = Self {
            published_end: Offset(reader.number()?),
            answer_end: Offset(reader.number()?),
            unarmed: reader.number()? & UNARMED != 0,
            ..Self::default()
        };
        let count = reader.number()?;
        let mut last = 0u64;
        for _ in 0..count {
            last = last.checked_add(reader.number()?)?;
            let at = u16::try_from(last)
                .ok()
                .filter(|at| u64::from(*at) < CHUNK_NUMBERS)?;
            let version = reader.short()?;
            let due = WallMs(reader.signed()?);
            chunk.overrides.insert(at, Override { version, due });
        }
        let mut at = 0u64;
        while at < CHUNK_NUMBERS {
            let run = reader.number()?;
            let end = at
                .checked_add(run >> 2)
                .filter(|end| *end <= CHUNK_NUMBERS)?;
            if end == at {
                return None;
            }
            if let Some(state) = State::of(run) {
                for place in at..end {
                    chunk.set(u16::try_from(place).ok()?, state);
                }
            }
            at = end;
        }
        chunk.dirty = false;
        reader.is_at_end().then_some(chunk)
    }
}

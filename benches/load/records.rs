//! Records that can be told from each other without being numbered, and the check that they came back.
//!
//! A pool of incompressible values is made once. The record number `n` of stream `s` carries the value
//! `(n + s * STRIDE) mod POOL`: whoever reads stream `s` knows which bytes each record must have. A lost,
//! repeated or swapped record shows as wrong bytes at once, a lost tail as a wrong count. Nothing has to
//! be computed while the clock runs but a comparison.

use bytes::Bytes;

use super::Outcome;
use super::payload::Noise;

/// How many values there are: a prime, so that no batch size divides it.
const POOL: u64 = 4_093;
/// How far apart the streams are.
const STRIDE: u64 = 509;

/// The size of a record's value unless a scenario says otherwise: 1 kB.
pub(crate) const VALUE_BYTES: usize = 1_000;

/// The values.
#[derive(Debug, Clone)]
pub(crate) struct Pool(Vec<Bytes>);

impl Pool {
    /// Makes them.
    pub(crate) fn new(value_bytes: usize) -> Self {
        let mut noise = Noise::new(0x7411);
        Self((0..POOL).map(|_| noise.bytes(value_bytes)).collect())
    }

    /// The value of one record of a stream.
    pub(crate) fn value(&self, stream: u64, number: u64) -> Bytes {
        self.bytes(stream, number).cloned().unwrap_or_default()
    }

    fn bytes(&self, stream: u64, number: u64) -> Option<&Bytes> {
        let index = usize::try_from((number + stream * STRIDE) % POOL).unwrap_or(0);
        self.0.get(index)
    }
}

/// Reads one stream and compares.
#[derive(Debug, Clone)]
pub(crate) struct Check {
    pool: Pool,
    stream: u64,
    next: u64,
}

impl Check {
    /// A reader of this stream, from its first record.
    pub(crate) fn new(pool: &Pool, stream: u64) -> Self {
        Self {
            pool: pool.clone(),
            stream,
            next: 0,
        }
    }

    /// Takes the next record.
    pub(crate) fn take(&mut self, offset: u64, value: &[u8]) -> Outcome<()> {
        let (stream, next) = (self.stream, self.next);
        if offset != next {
            return Err(
                format!("stream {stream}: offset {offset} came where {next} was due").into(),
            );
        }
        // By reference: what checking costs is not the client's.
        if self.pool.bytes(stream, next).map(Bytes::as_ref) != Some(value) {
            return Err(format!(
                "stream {stream}: the record at offset {offset} is not the one sent"
            )
            .into());
        }
        self.next += 1;
        Ok(())
    }

    /// How many were taken.
    pub(crate) fn taken(&self) -> u64 {
        self.next
    }

    /// Fails unless this many came.
    pub(crate) fn finish(&self, sent: u64) -> Outcome<()> {
        if self.next == sent {
            return Ok(());
        }
        Err(format!(
            "stream {}: {} records came back of {sent} acknowledged",
            self.stream, self.next
        )
        .into())
    }
}

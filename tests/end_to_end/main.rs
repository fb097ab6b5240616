//! End to end: a broker as it is embedded, clients as they come over QUIC, real certificates, real files.
//!
//! Nothing is mocked but, where a test says so, the disk under the log. No test sleeps to let something
//! happen: it waits for the answer, the delivery or the state that shows it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that meets what it did not expect fails there"
)]

mod quic;

include!("suite.rs");

/// What carries the frames.
pub(crate) const CARRIER: rig::Carrier = rig::Carrier::Quic;

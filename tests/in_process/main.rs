//! The end-to-end suite once more, with clients in the broker's process: the same tests, the same frames,
//! over memory instead of QUIC.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that meets what it did not expect fails there"
)]

include!("../end_to_end/suite.rs");

/// What carries the frames.
pub(crate) const CARRIER: rig::Carrier = rig::Carrier::Memory;

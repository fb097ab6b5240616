//! Simulations: the real code on one thread, one seed, and a disk that loses, tears and reorders what
//! was not synced. Every failure names its seed; one seed twice is one run.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    reason = "a test says what broke by panicking, and prints its seed"
)]

mod broker;
mod disk;
mod faults;
mod groups;
mod later_features;
mod log;
mod timers;

//! Simulations: the real code on one thread, one seed, and a disk that loses, tears and reorders what
//! was not synced. Every failure names its seed; one seed twice is one run.

mod disk;
mod faults;
mod later_features;
mod log;

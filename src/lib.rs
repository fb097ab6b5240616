//! Waterwheel: a message broker built of actors.

pub mod client;
pub mod domain;
pub mod log;
pub mod store;
pub mod wire;

//! Waterwheel: a message broker built of actors.

pub mod domain;
pub mod log;
pub mod net;
pub mod store;
pub mod wire;

//! Waterwheel: a message broker built of actors.

pub mod actors;
pub mod broker;
pub mod cli;
pub mod client;
pub mod config;
pub mod domain;
pub mod log;
pub mod net;
pub mod recovery;
pub mod store;
pub mod transport;
pub mod wire;

//! Clients over QUIC: with `client/connection.rs` the only place that knows quinn and rustls.

mod door;
pub mod endpoint;
mod out;
mod reader;
mod refusal;
mod requests;
pub mod server;
pub mod session;
pub mod tls;

//! Clients over QUIC or in process: with `client/connection.rs` and `transport/` the only places that
//! know quinn and rustls.

pub mod endpoint;
pub mod local;
mod out;
mod reader;
mod refusal;
mod requests;
pub mod server;
pub mod session;
pub mod tls;

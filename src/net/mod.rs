//! Clients over QUIC: with `client/connection.rs` the only place that knows quinn and rustls.

pub mod authority;
pub mod certificate;
pub mod endpoint;
mod live;
mod out;
mod reader;
mod refusal;
mod requests;
pub mod server;
pub mod session;
pub mod tls;

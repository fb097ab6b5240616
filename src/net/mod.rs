//! Clients over QUIC: with `client/connection.rs` the only place that knows quinn and rustls.

pub mod endpoint;
pub mod tls;

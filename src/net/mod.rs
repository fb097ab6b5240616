//! Clients over QUIC or in process: with `client/connection.rs` and `transport/` the only places that
//! know quinn and rustls.

mod attach;
pub mod authority;
pub mod certificate;
mod credit;
mod door;
pub mod endpoint;
mod gather;
mod gathered;
mod group;
mod leases;
mod letters;
mod live;
pub mod local;
mod member;
mod out;
mod pieces;
mod reader;
mod refusal;
mod requests;
pub mod server;
pub mod session;
pub mod timers;
pub mod tls;
mod transactions;
mod window;

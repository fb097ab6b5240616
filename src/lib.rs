//! Waterwheel: a durable message broker built of actors, and its client.
//!
//! Whatever is sent is written once, to one sequential commit log, and is on the disk before it is
//! acknowledged as durable or anybody can see it.
//!
//! - [`client`]: sending, reading, consuming in groups, transactions, delayed records and administering,
//!   over QUIC or in the broker's own process, from any tokio runtime. Begin with [`Client::connect`].
//! - [`broker`]: the broker as a value, inside any actix `System`. Begin with
//!   [`Broker::start`](broker::Broker::start); its [`client`](broker::Broker::client) needs no network.
//! - [`config`]: every setting of a broker.
//!
//! ```text
//!  client ──frames──> session ──Append──> partition ──Persist──> commit ──one synced write──> log
//!    ^    (QUIC or     │  ^                  ^                    │ │
//!    │     memory)     │  │                  └──────Applied───────┘ │
//!    └─────Stored──────┴──┴───────────────────receipt───────────────┘
//!
//!  session ──Half──> coordinator ──tied to its registration──> partition
//!                         └──the decision, one tied run──> commit ──Applied──> all it touches
//!  session ──Do────> group ──Feed──> partition         group ──leases──> session
//!  partition, group ──Arm──> wheel, level by level ──Due──> partition, group
//! ```
//!
//! | actor | how many | alone decides |
//! |---|---|---|
//! | directory | 1 | names to ids and addresses; starts partitions, groups and coordinators, and makes them anew |
//! | partition | 1 per topic partition and priority level | what it takes, what is visible, what is delayed |
//! | group | 1 per consumer group | members, leases, retries, what is consumed |
//! | coordinator | 4, by transactional id | what becomes of transactions |
//! | wheel level | 5 on the wall clock, 3 on the monotonic one | when something is due |
//! | commit | 1 | numbers and writes: the log's order |
//! | store, checkpoint, cleaner | 1 each | when views are written, what is recycled |
//!
//! Order per key follows from ownership, all or nothing from one write; what was applied is what is seen.
//! The source's `actors.md` is the whole map.
//!
//! # Features
//!
//! | feature | builds | without |
//! |---|---|---|
//! | `client` | [`client`] | sled, actix, clap |
//! | `broker` | and [`broker`], [`config`] | clap |
//! | `cli` (default) | and the `waterwheel` binary | |
//!
//! A program that needs no broker of its own: `waterwheel = { version = "0.1", default-features = false,
//! features = ["client"] }`.
//!
//! The other modules are the rooms of the house, public for its tests and tools; their shapes change
//! without notice.

#![cfg_attr(not(feature = "broker"), allow(rustdoc::broken_intra_doc_links))]

#[cfg(feature = "broker")]
#[doc(hidden)]
pub mod actors;
#[cfg(feature = "broker")]
pub mod broker;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "broker")]
pub mod config;
#[doc(hidden)]
pub mod domain;
#[cfg(feature = "broker")]
#[doc(hidden)]
pub mod log;
#[cfg(feature = "broker")]
#[doc(hidden)]
pub mod net;
#[cfg(feature = "broker")]
#[doc(hidden)]
pub mod recovery;
#[cfg(feature = "broker")]
#[doc(hidden)]
pub mod store;
#[cfg(feature = "client")]
#[doc(hidden)]
pub mod transport;
#[doc(hidden)]
pub mod wire;

#[cfg(feature = "broker")]
pub use broker::Broker;
#[cfg(feature = "client")]
pub use client::{Client, Record};
#[cfg(feature = "broker")]
pub use config::Config;

/// What the README shows compiles and runs.
#[cfg(all(doctest, feature = "broker"))]
#[doc = include_str!("../README.md")]
pub struct Readme;

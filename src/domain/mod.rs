//! Pure machines and the values they share.
//!
//! Nothing in this room has a clock, I/O, async, randomness or an iteration order that could show.
//! A machine takes `(now, command)` and answers with effects, which are data; an actor performs them.
//! Accepting and applying are two steps: `handle` decides whether a command is acceptable and asks for
//! it to be persisted, `apply` is the only thing that changes what others can see, live and in recovery.

pub mod alarm;
pub mod batch;
pub mod body;
pub mod checksum;
pub mod commit;
pub mod entry;
pub mod filter;
pub mod group;
pub mod id;
pub mod key;
pub mod ledger;
pub mod partition;
pub mod payload;
pub mod record;
pub mod rejection;
pub mod time;
pub mod topics;
pub mod transaction;
pub mod turns;
pub mod wheel;

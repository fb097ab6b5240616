//! End to end: a broker as it is embedded, clients as they come over QUIC, real certificates, real files.
//!
//! Nothing is mocked but, where a test says so, the disk under the log. No test sleeps to let something
//! happen: it waits for the answer, the delivery or the state that shows it.

mod client;
mod codes;
mod disk;
mod failure;
mod hostile;
mod produce;
mod read;
mod retention;
mod rig;
mod topics;

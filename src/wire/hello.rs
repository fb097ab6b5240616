//! The handshake, the ping and the goodbye.

use serde::{Deserialize, Serialize};

use super::frame::header;
use crate::domain::id::ClusterId;

/// The first request of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Hello {
    /// What the client calls itself, for logs and status.
    #[serde(default)]
    pub client: String,
    /// The client's version.
    #[serde(default)]
    pub version: String,
    /// Protocol features the client would use; unknown ones are ignored.
    #[serde(default)]
    pub features: Vec<String>,
    /// The batch versions the client reads.
    #[serde(default)]
    pub batch_versions: Vec<u8>,
}
header!(Hello, Hello);

/// The answer to `Hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HelloOk {
    /// Protocol features the broker has.
    #[serde(default)]
    pub features: Vec<String>,
    /// The batch versions the broker reads.
    pub batch_versions: Vec<u8>,
    /// What the broker takes at most.
    pub limits: Limits,
    /// The cluster.
    pub cluster: ClusterId,
    /// The node within it.
    pub node: u32,
    /// The broker's version.
    #[serde(default)]
    pub version: String,
}
header!(HelloOk, HelloOk);

/// What a broker takes at most from one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of a batch, as stored or opened.
    pub batch_bytes_max: u32,
    /// Bytes of a frame it is sent; its own may be longer.
    pub frame_bytes_max: u32,
    /// Unsettled batches of one producer in one partition.
    pub in_flight_batches_max: u32,
    /// Sum of the credit of all readers, in bytes.
    pub credit_bytes_max: u64,
    /// Readers.
    pub readers_max: u32,
}

/// Is anybody there? Keeps a connection alive and measures it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ping {}
header!(Ping, Ping);

/// The answer to [`Ping`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pong {}
header!(Pong, Pong);

/// The broker is about to close the connection; what is in flight is still answered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Goodbye {
    /// Why, for people.
    #[serde(default)]
    pub reason: String,
}
header!(Goodbye, Goodbye);

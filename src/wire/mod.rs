//! The codec shared by broker and client: frames, handshake, requests, answers, events, stable codes.
//!
//! Pure: bytes in, values out, and back. It knows no connection, no stream and no time.
//!
//! # The conversation
//!
//! ALPN [`ALPN`], TLS 1.3, no 0-RTT. A client opens one bidirectional stream for control and says
//! [`Hello`](hello::Hello) on it before anything else; then as many bidirectional streams for producing
//! as it likes. A stream carries [frames](frame). Every request but a one-way [`Produce`](produce::Produce)
//! is answered on its own stream under its correlation id, by the answer its header names or by
//! [`Refused`](code::Refused). Answers may overtake each other across streams, never within a producer
//! and partition. For each reader the broker opens one unidirectional stream that begins with
//! [`StreamOpen`](reader::StreamOpen), goes on with [`Deliver`](reader::Deliver) and ends with
//! [`ReaderEnd`](reader::ReaderEnd). A member of a consumer group has one such stream too: it carries
//! what the member hears, from [`Assigned`](consume::Assigned) and [`Leased`](consume::Leased) to
//! [`MemberEnd`](consume::MemberEnd).
//!
//! An unknown request is answered `Unsupported`; an unknown event is skipped by its length. In a named
//! header unknown fields are ignored and absent optional ones have their default.
//!
//! | kind | class | header | on |
//! |---|---|---|---|
//! | `Hello` 1 | request | named | control, first |
//! | `Ping` 2 | request | named | any |
//! | `Metadata` 3, `CreateTopic` 4, `DescribeTopic` 5, `AlterTopic` 6, `DeleteTopic` 7 | request | named | control |
//! | `LookupOffset` 8, `OpenProducer` 9, `Status` 10, `OpenReader` 12 | request | named | control |
//! | `AskTimer` 0x60, `ListTimers` 0x61 | request | named | control |
//! | `Produce` 11 | request | positional, body: a batch | a producer stream |
//! | `HelloOk` 0x4001 .. `Refused` 0x4fff | answer | named, `Stored` positional | where the request was |
//! | `Credit` 0x8001 | event to the broker | positional | control |
//! | `CloseReader` 0x8002 | event to the broker | named | control |
//! | `StreamOpen` 0x8003, `ReaderEnd` 0x8005 | event to the client | named | the reader's stream |
//! | `Deliver` 0x8004 | event to the client | positional, body: a batch | the reader's stream |
//! | `DeliverPublished` 0x8060 | event to the client | positional, body: details, a batch | the reader's stream |
//! | `Goodbye` 0x8006 | event to the client | named | control |
//! | `JoinGroup` 0x70, `LeaveGroup` 0x71, subscriptions and groups 0x76 .. 0x7c | request | named | control |
//! | `Acknowledge` 0x72, `AcknowledgeUpTo` 0x73, `Nack` 0x74, `ExtendLeases` 0x75 | request | positional | control |
//! | `Attach` 0x93, `AttachUpTo` 0x94 | request, answered by `Settled` | positional | control |
//! | `Joined` 0x4070 .. `GroupDone` 0x4076 | answer | named, `Settled` positional | control |
//! | `GrantCredit` 0x8070, `Withdraw` 0x8071 | event to the broker | positional | control |
//! | `Assigned` 0x8072, `Revoked` 0x8073, `MemberEnd` 0x8077, `Unsubscribed` 0x8079 | event to the client | named | the member's stream |
//! | `Leased` 0x8074 (body: a batch), `LeasesLost` 0x8075, `Withdrawn` 0x8076 | event to the client | positional | the member's stream |
//! | `Heartbeat` 0x8078 | event to the client | named | control |
//!
//! Invariants: W1, every decoder is total: whatever a peer sent is a value or an error; W2, no length is
//! believed before it was checked against a limit; W3, a frame's body is never looked into here.

pub mod code;
pub mod consume;
pub mod frame;
pub mod group;
pub mod hello;
pub mod letters;
pub mod pieces;
pub mod produce;
pub mod reader;
pub mod status;
pub mod timer;
pub mod topic;
pub mod transaction;

/// The protocol's name in the TLS handshake.
pub const ALPN: &[u8] = b"waterwheel/1";

/// Batches of one producer that may be unsettled in one partition: the broker's window for duplicates.
pub const IN_FLIGHT_BATCHES_MAX: u32 = 64;

/// After so long without a packet both ends take a connection for dead, in milliseconds.
pub const IDLE_TIMEOUT_MS: u32 = 30_000;

/// What one stream may have under way unread, in bytes: more than the largest batch, so that flow
/// control never decides where credit does.
pub const STREAM_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// The largest UDP payload either end takes, in bytes.
pub const DATAGRAM_BYTES_MAX: u16 = 65_527;

/// The largest UDP payload on loopback, in bytes: an interface of 64 KiB carries it over IPv4 and IPv6,
/// which saves most of the packets.
pub const LOOPBACK_BYTES_MAX: u16 = 65_463;

/// The UDP payload a connection over loopback begins with, in bytes. Linux has interfaces of 64 KiB, and
/// looking for that by MTU discovery costs several times the handshake: the receiver of a probe reads its
/// padding byte by byte. Where it is less after all, the transport notices the loss and falls back.
pub const LOOPBACK_BYTES_FIRST: u16 = if cfg!(target_os = "linux") {
    LOOPBACK_BYTES_MAX
} else {
    1_200
};

/// What may be under way on a new connection over loopback, in bytes: sixteen of its datagrams. There is
/// no path that could be crowded.
pub const LOOPBACK_WINDOW_BYTES: u64 = 16 * LOOPBACK_BYTES_MAX as u64;

/// The largest UDP payload looked for on paths other than loopback, in bytes: there datagrams go to the
/// kernel ten at a time, and all ten together must fit into what UDP carries. On loopback they go one by
/// one, as large as they come, which costs less than half.
pub const SEGMENT_BYTES_MAX: u16 = 6_550;

#[cfg(test)]
mod tests;

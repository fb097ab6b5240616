//! What both ends of a QUIC connection have in common: their UDP sockets, and how a machine talks to
//! itself.

use std::net::UdpSocket;
use std::time::Duration;

use quinn::{AckFrequencyConfig, VarInt};
use rustix::net::sockopt;

/// What a socket's buffers are asked to hold, in bytes. The usual 200 kB overflow after three datagrams
/// of loopback, and every lost datagram is sent again.
pub const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Packets of one machine's own that are acknowledged together.
const LOOPBACK_PACKETS_PER_ACKNOWLEDGEMENT: u32 = 8;
/// The longest that fewer of them wait for their acknowledgement: a window that is still small must not
/// wait for company.
const LOOPBACK_ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(2);

/// How often an end on the same machine is asked to acknowledge. Every second packet, as on other paths,
/// is a system call at both ends for 128 kB, where little is ever lost.
#[must_use]
pub fn loopback_acknowledgements() -> AckFrequencyConfig {
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements
        .ack_eliciting_threshold(VarInt::from_u32(LOOPBACK_PACKETS_PER_ACKNOWLEDGEMENT))
        .max_ack_delay(Some(LOOPBACK_ACKNOWLEDGED_WITHIN));
    acknowledgements
}

/// What the system granted of the buffers asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// For what comes in, in bytes.
    pub receive_bytes: usize,
    /// For what goes out, in bytes.
    pub send_bytes: usize,
}

/// Asks for buffers of [`SOCKET_BUFFER_BYTES`], beyond the system's limit where the process may.
pub fn enlarge_buffers(socket: &UdpSocket) -> Granted {
    let wanted = SOCKET_BUFFER_BYTES;
    let _ = sockopt::set_socket_recv_buffer_size_force(socket, wanted)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, wanted));
    let _ = sockopt::set_socket_send_buffer_size_force(socket, wanted)
        .or_else(|_| sockopt::set_socket_send_buffer_size(socket, wanted));
    // The kernel answers with twice what it granted, the other half being its own bookkeeping.
    Granted {
        receive_bytes: sockopt::socket_recv_buffer_size(socket).unwrap_or(0) / 2,
        send_bytes: sockopt::socket_send_buffer_size(socket).unwrap_or(0) / 2,
    }
}

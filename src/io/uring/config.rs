//! What an operator or a test may choose about the ring.

use std::time::Duration;

use crate::base::limits;

/// When a large send leaves without being copied into the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ZeroCopy {
    /// Always copy.
    Never,
    /// Sends of at least [`ZERO_COPY_BYTES_MIN`] to peers on other machines; a connection falls back to copying
    /// for good when the kernel reports that it copied anyway.
    Remote,
    /// As `Remote`, but also over loopback, which always copies: only good for testing the mechanism.
    Everywhere,
}

/// Below this, handling the buffer's second completion costs more than the copy.
pub const ZERO_COPY_BYTES_MIN: usize = 64 << 10;

/// The choices, each with a default that suits a server with the usual memory limits.
#[derive(Clone, Debug)]
pub struct UringConfig {
    /// Submission slots; completions get eight times as many. A burst beyond it costs one more system call.
    pub entries: u32,
    /// Receive buffers shared by all connections: a power of two up to 32768. Ordinary memory, touched on use.
    pub buffers: u16,
    /// Bytes of one receive buffer.
    pub buffer_bytes: u32,
    /// Carry out flushes with fdatasync on a helper thread instead of through the ring (calibration chooses).
    pub flush_thread: bool,
    /// Use accept and receive operations that yield many completions. Off only to test the path of old kernels.
    pub multishot: bool,
    /// Use the shared receive buffers. Off only to test the path of old kernels.
    pub shared_buffers: bool,
    pub zero_copy: ZeroCopy,
    /// How long a dial may take.
    pub connect_timeout: Duration,
    /// Unacknowledged bytes of this age end a connection (TCP_USER_TIMEOUT), and so does a silent dead peer.
    pub peer_timeout: Duration,
    /// How long the loop may look for completions without sleeping, when its waits are that short. Zero: never.
    pub busy_poll: Duration,
    /// Connections that the kernel completes ahead of accept.
    pub backlog: i32,
    /// Threads that receive and send for the connections of spread listeners, at most [`super::NETWORK_LOOPS_MAX`].
    /// Zero: this loop does it.
    pub network_loops: u16,
    /// Receive buffers of each network loop, of `buffer_bytes` each.
    pub network_buffers: u16,
    /// Slots of each queue between this loop and a network loop.
    pub network_queue: usize,
}

impl Default for UringConfig {
    fn default() -> UringConfig {
        UringConfig {
            entries: 1024,
            buffers: 512,
            buffer_bytes: 16 << 10,
            flush_thread: false,
            multishot: true,
            shared_buffers: true,
            zero_copy: ZeroCopy::Remote,
            connect_timeout: limits::HANDSHAKE_MAX,
            peer_timeout: PEER_TIMEOUT,
            busy_poll: Duration::ZERO,
            backlog: 4096,
            network_loops: 0,
            network_buffers: 256,
            network_queue: 1024,
        }
    }
}

const PEER_TIMEOUT: Duration = Duration::from_secs(10);

// When our kernel gives up on a peer it may reset the connection while this process lives on, and the peer takes a
// reset as proof that the process let go (`protocol` 2.10). That is harmless only long after every lease has run out.
const _: () = assert!(PEER_TIMEOUT.as_millis() > 2 * limits::LEASE.as_millis());

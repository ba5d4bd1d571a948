//! Every maximum of the system. Queues and buffers take their bound from here or from the configuration,
//! and nothing is ever allocated from a size that a peer declared.

use std::time::Duration;

/// The unit of O_DIRECT and of log frames.
pub const BLOCK_BYTES: usize = 4096;
/// A log segment file. Tests and simulations may choose smaller ones at `init`.
pub const SEGMENT_BYTES: u64 = 64 << 20;
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// The largest log frame, header and padding included; so also the largest transaction.
pub const FRAME_BYTES_MAX: usize = 16 << 20;
/// A group of commands is sealed at the latest when it has grown to this size.
pub const GROUP_BYTES_SOFT: usize = 1 << 20;
/// An open group of this size does not wait for the writes before it to complete.
pub const GROUP_BYTES_EAGER: usize = BLOCK_BYTES / 2;
/// Frames on their way to the disk at the same time (calibration chooses within it).
pub const FRAMES_IN_FLIGHT_MAX: usize = 16;
/// Sealed frames kept in memory for senders; older ones are read from the segments.
pub const RECENT_LOG_BYTES: usize = 16 << 20;

/// A page of the store.
pub const PAGE_BYTES: usize = 16 << 10;
/// Pages of the page file: 16 TiB. A bitmap of the file is allocated from the length that a superblock declares.
pub const PAGE_FILE_PAGES_MAX: u64 = 1 << 30;
/// Virtual shards of a cluster.
pub const SHARDS_DEFAULT: u16 = 64;
pub const SHARDS_MAX: u16 = 256;

/// Threads that apply the log, at most, and when the configuration leaves it to the machine.
pub const REDO_WORKERS_MAX: usize = 16;
pub const REDO_WORKERS_DEFAULT_MAX: usize = 4;

/// Longest user key.
pub const KEY_BYTES_MAX: usize = 4096;
/// Longest value of one string.
pub const VALUE_BYTES_MAX: usize = 8 << 20;

/// Nodes of a cluster, cascades included.
pub const NODES_MAX: usize = 32;
/// Standbys that stream directly from a primary.
pub const DIRECT_STANDBYS_MAX: usize = 8;
/// Voters of a policy generation, leader included.
pub const VOTERS_MAX: usize = 9;
/// Entries of the term history kept in the control file.
pub const HISTORY_MAX: usize = 256;

/// Policy generations in a log that are not known to be committed. A correct leader leaves one, and one more for each
/// forced takeover behind it.
pub const PENDING_MAX: usize = 6;
/// How far behind the target of a switchover may be when it is asked for.
pub const SWITCHOVER_LAG_BYTES_MAX: u64 = 32 << 20;

/// Threads that carry a node's network: its own loop and network loops.
pub const CORES_MAX: u16 = 64;
/// The most of them when the configuration says nothing: one loop that executes keeps no more of them busy.
pub const CORES_DEFAULT_MAX: u16 = 8;
/// The memory budget that each of them needs: its receive buffers may take a sixteenth of it.
pub const CORE_MEMORY_BYTES_MIN: u64 = 16 << 20;
/// Clients served at once when the configuration says nothing.
pub const CLIENTS_DEFAULT: usize = 10_000;
/// A request before authentication: arguments and bytes (the Valkey rule).
pub const UNAUTHENTICATED_ARGS_MAX: usize = 10;
pub const UNAUTHENTICATED_BYTES_MAX: usize = 16 << 10;
/// Arguments of one request, and the longest inline request.
pub const REQUEST_ARGS_MAX: usize = 1 << 16;
pub const INLINE_BYTES_MAX: usize = 64 << 10;
/// One argument of a request.
pub const ARGUMENT_BYTES_MAX: usize = VALUE_BYTES_MAX;
/// One whole request.
pub const REQUEST_BYTES_MAX: usize = 12 << 20;
/// Commands queued between MULTI and EXEC, and their bytes.
pub const QUEUED_COMMANDS_MAX: usize = 1 << 16;
pub const QUEUED_BYTES_MAX: usize = FRAME_BYTES_MAX;
/// Keys that one connection may watch.
pub const WATCHED_KEYS_MAX: usize = 1 << 12;
/// The reply to one command; a command that would pass it is undone and refused.
pub const REPLY_BYTES_MAX: usize = 64 << 20;
/// Entries that one call of SCAN, or one slice of KEYS, looks at.
pub const SCAN_ENTRIES_MAX: usize = 4096;
/// Positions of SCAN kept by a node, and the bytes of their keys.
pub const SCAN_POSITIONS_MAX: usize = 4096;
pub const SCAN_POSITION_BYTES_MAX: usize = 4 << 20;
/// Keys remembered for prompt expiry, and the bytes of their keys.
pub const DUE_KEYS_MAX: usize = 1 << 17;
pub const DUE_KEY_BYTES_MAX: usize = 16 << 20;
/// A client's unsent replies; past it the client is read no further.
pub const CLIENT_OUTPUT_BYTES_SOFT: usize = 256 << 10;
/// Empty buffers that are kept for the next use, of all clients together.
pub const CLIENT_BUFFERS_KEPT_BYTES: usize = 16 << 20;
/// One of them.
pub const CLIENT_BUFFER_KEPT_MAX: usize = 64 << 10;
/// Unread bytes of a client whose earlier requests are not done, above which no more are received from it.
pub const CLIENT_INPUT_BYTES_SOFT: usize = 1 << 20;
/// The same when all clients together have used up a quarter of what may be unread.
pub const CLIENT_INPUT_BYTES_CROWDED: usize = 16 << 10;

/// A message between peers, the log frames it carries included.
pub const PEER_MESSAGE_BYTES_MAX: usize = FRAME_BYTES_MAX + (64 << 10);
/// Log bytes sent to one standby and not yet acknowledged as written.
pub const SEND_WINDOW_BYTES: u64 = 32 << 20;
/// An admin request or reply line.
pub const ADMIN_LINE_BYTES_MAX: usize = 1 << 20;
/// The id that makes an admin request idempotent.
pub const OP_ID_BYTES_MAX: usize = 64;
/// Changes whose answers are remembered, so that asking again does nothing twice.
pub const OPS_REMEMBERED_MAX: usize = 256;
/// Changes of leader and of the policy whose op ids every node keeps in its control file.
pub const OPS_KEPT: usize = 16;
/// Callers that may wait for the answer of one and the same change.
pub const OP_WAITERS_MAX: usize = 16;
/// Requests passed on to another node and not answered yet.
pub const PASSED_ON_MAX: usize = 16;
/// Connections that wait for an LSN at once.
pub const LSN_WAITERS_MAX: usize = 4096;
/// Connections to the admin socket, and to the HTTP port, at once.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;
/// Requests on their way from the control thread to the node's loop.
pub const ADMIN_MAILBOX_MAX: usize = 64;
/// Questions to the control store that wait for its thread.
pub const STORE_QUEUE_MAX: usize = 16;
/// The head of an HTTP request.
pub const HTTP_HEAD_BYTES_MAX: usize = 8 << 10;
/// The node's own log file: its size before it moves aside, the older ones kept, the lines waiting to be written.
pub const LOG_FILE_BYTES_MAX: u64 = 16 << 20;
pub const LOG_FILES_KEPT: usize = 5;
pub const LOG_QUEUE_MAX: usize = 4096;
/// Rows of role and policy changes in memory, and the size of their file before it moves aside.
pub const HISTORY_ROWS_MAX: usize = 512;
pub const HISTORY_FILE_BYTES_MAX: u64 = 256 << 10;
/// Connections of one load run, and the error words it tells apart.
pub const LOAD_CLIENTS_MAX: usize = 20_000;
pub const LOAD_ERROR_WORDS_MAX: usize = 32;
/// A silent admin or HTTP connection is closed after this time.
pub const ADMIN_SILENCE_MAX: Duration = Duration::from_secs(60);

/// How often a leader proves that it is alive.
pub const HEARTBEAT_EVERY: Duration = Duration::from_millis(200);
/// How long one grant of the read lease lasts (`protocol` 2.10).
pub const LEASE: Duration = Duration::from_millis(1000);
/// A peer that says nothing for this long is taken as unreachable.
pub const PEER_SILENCE_MAX: Duration = Duration::from_millis(3000);
/// First wait before dialling a peer again, doubled up to the maximum.
pub const REDIAL_MIN: Duration = Duration::from_millis(50);
pub const REDIAL_MAX: Duration = Duration::from_millis(1000);
/// A peer that does not finish its handshake in time is dropped.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(3);
/// A dial without any answer is given up after this and begun anew, whatever becomes of the first one.
pub const CONNECT_MAX: Duration = Duration::from_secs(10);

const _: () = assert!(FRAME_BYTES_MAX as u64 <= SEGMENT_BYTES);
const _: () = assert!(VALUE_BYTES_MAX + KEY_BYTES_MAX * 2 + BLOCK_BYTES * 2 <= FRAME_BYTES_MAX);
const _: () = assert!(GROUP_BYTES_SOFT <= FRAME_BYTES_MAX);
const _: () = assert!(REQUEST_BYTES_MAX > ARGUMENT_BYTES_MAX && REQUEST_BYTES_MAX < FRAME_BYTES_MAX);
const _: () = assert!(PEER_MESSAGE_BYTES_MAX > FRAME_BYTES_MAX);
const _: () = assert!(HEARTBEAT_EVERY.as_millis() * 4 <= LEASE.as_millis());
const _: () = assert!(LEASE.as_millis() < PEER_SILENCE_MAX.as_millis());
const _: () = assert!(DIRECT_STANDBYS_MAX < VOTERS_MAX + 1 && VOTERS_MAX <= NODES_MAX);
const _: () = assert!(SHARDS_DEFAULT <= SHARDS_MAX);

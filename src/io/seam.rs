//! The completion interface and its vocabulary.

use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::uring::LentBuffer;
use crate::base::{AlignedBuf, Mono, SharedSlice, WallMs};

/// Chosen by the submitter, handed back in the event.
pub type Token = u64;

/// An open file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FileId(pub u32);

/// A listening socket.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ListenerId(pub u32);

/// A connected socket. Never reused within a process, so a late event cannot reach a later connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ConnId(pub u64);

/// How to open a file. All data files are opened for O_DIRECT reads and writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Open {
    /// Must exist; read and write.
    Existing,
    /// Must exist; read only.
    ReadOnly,
    /// Must not exist yet.
    Create,
}

/// Bytes on their way out of a connection; handed back by [`Event::Sent`] for reuse.
#[derive(Debug)]
pub enum Outgoing {
    /// One owned buffer.
    Owned(Vec<u8>),
    /// A small owned head followed by shared slices (log frames), sent as one gathered write without copying.
    Shared { head: Vec<u8>, slices: Vec<SharedSlice> },
}

impl Outgoing {
    pub fn len(&self) -> usize {
        match self {
            Outgoing::Owned(bytes) => bytes.len(),
            Outgoing::Shared { head, slices } => head.len() + slices.iter().map(|s| s.len()).sum::<usize>(),
        }
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An operation. Offsets and lengths of file operations are multiples of 4 KiB.
#[derive(Debug)]
pub enum Op {
    Read {
        token: Token,
        file: FileId,
        offset: u64,
        len: usize,
    },
    /// Writes `data` at `offset`. With `durable` the event means that the bytes are on stable storage (RWF_DSYNC).
    Write {
        token: Token,
        file: FileId,
        offset: u64,
        data: SharedSlice,
        durable: bool,
    },
    /// Makes every write of `file` that completed before this submission durable (fdatasync).
    Flush {
        token: Token,
        file: FileId,
    },
    /// [`Seam::sync_folder`] without waiting: a disk that hangs must not hold up the loop. Yields [`Event::Flushed`].
    SyncFolder {
        token: Token,
        path: PathBuf,
    },
    /// Starts accepting; yields [`Event::Accepted`] until the listener is closed.
    Accept {
        listener: ListenerId,
    },
    /// Connects; yields [`Event::Connected`].
    Connect {
        token: Token,
        addr: SocketAddr,
    },
    /// Starts (or resumes) receiving; yields [`Event::Received`] until paused or closed.
    Receive {
        conn: ConnId,
    },
    /// Stops receiving: at most a few more [`Event::Received`] may still arrive.
    PauseReceive {
        conn: ConnId,
    },
    /// Sends all bytes. At most one send may be under way on a connection. On a connection that has already ended
    /// it fails, with [`Event::Sent`] and nothing else, if need be after [`Event::Closed`] was reaped.
    Send {
        token: Token,
        conn: ConnId,
        data: Outgoing,
    },
    /// Closes a connection. Its pending operations end, then one [`Event::Closed`] arrives (also when the other
    /// side closed first: exactly one [`Event::Closed`] per connection, and nothing after it).
    Close {
        conn: ConnId,
    },
}

/// Why a connection ended. A finished or reset connection proves that the other *process* let go of it;
/// a local decision or a time-out proves nothing (`protocol` 2.10).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// The other side closed in order.
    Finished,
    /// The other side's kernel reset the connection.
    Reset,
    /// This side closed it.
    Local,
    /// Time-out, unreachable network, or any other error.
    Failed,
}

/// Received bytes; goes back to its pool when dropped.
pub enum ReceivedBytes {
    Owned(Vec<u8>),
    /// A buffer lent by the backend, which has few of them: parse or copy it in this turn.
    Lent(LentBuffer),
}

impl Deref for ReceivedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            ReceivedBytes::Owned(bytes) => bytes,
            ReceivedBytes::Lent(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for ReceivedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReceivedBytes({})", self.len())
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// `result` is the bytes read; shorter than asked only at the end of the file.
    Read {
        token: Token,
        result: io::Result<AlignedBuf>,
    },
    Written {
        token: Token,
        result: io::Result<()>,
    },
    Flushed {
        token: Token,
        result: io::Result<()>,
    },
    Accepted {
        listener: ListenerId,
        conn: ConnId,
        peer: SocketAddr,
    },
    /// Accepting is not possible right now (out of descriptors); the node submits [`Op::Accept`] again later.
    AcceptFailed {
        listener: ListenerId,
        error: io::Error,
    },
    Connected {
        token: Token,
        result: io::Result<ConnId>,
    },
    Received {
        conn: ConnId,
        bytes: ReceivedBytes,
    },
    /// The send ended; the buffers come back. A failed send is followed by [`Event::Closed`].
    Sent {
        token: Token,
        conn: ConnId,
        data: Outgoing,
        result: io::Result<()>,
    },
    Closed {
        conn: ConnId,
        reason: CloseReason,
    },
    /// Somebody called [`Waker::wake`].
    Woken,
}

/// Wakes a node's loop from another thread.
pub trait Waker: Send + Sync {
    fn wake(&self);
}

/// One node's world. Not shared between threads: one seam per event loop.
///
/// Folder operations (`open` .. `list`) are immediate: they belong to start-up and to rare moments off the hot path.
pub trait Seam {
    // Clock and chance.
    fn now(&self) -> Mono;
    fn wall(&self) -> WallMs;
    /// Unpredictable in production, seeded in simulation.
    fn random(&mut self) -> u64;
    fn random_u128(&mut self) -> u128 {
        (u128::from(self.random()) << 64) | u128::from(self.random())
    }

    // Folder operations.
    fn open(&mut self, path: &Path, how: Open) -> io::Result<FileId>;
    fn close_file(&mut self, file: FileId);
    fn file_len(&mut self, file: FileId) -> io::Result<u64>;
    /// Renames within one folder. Durable only after [`Seam::sync_folder`].
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&mut self, path: &Path) -> io::Result<()>;
    /// Its parent must exist; it must not.
    fn create_folder(&mut self, path: &Path) -> io::Result<()>;
    /// File names (not folders) in `path`, sorted.
    fn list(&mut self, path: &Path) -> io::Result<Vec<String>>;
    /// Makes creations, renames and removals in `path` durable.
    fn sync_folder(&mut self, path: &Path) -> io::Result<()>;
    /// Bytes that may still be written to the file system of `path` before it is full.
    fn free_bytes(&mut self, path: &Path) -> io::Result<u64>;
    /// Takes the exclusive lock of a data folder, registered so that it outlives the process until its last write
    /// has landed (`protocol` 5.5). `WouldBlock` when another process (or a dying one) holds it.
    fn lock_folder(&mut self, path: &Path) -> io::Result<()>;

    // Network.
    fn listen(&mut self, addr: SocketAddr) -> io::Result<(ListenerId, SocketAddr)>;
    /// Says that connections accepted here are many and alike (clients), so that the backend may carry their bytes on
    /// threads of its own. Operations and events stay the same.
    fn spread(&mut self, _listener: ListenerId) {}

    // Operations.
    fn submit(&mut self, op: Op);
    /// Starts what was submitted, waits until at least one event is there or `deadline` has passed, and appends
    /// the events to `out`. With a deadline in the past it does not wait.
    fn reap(&mut self, deadline: Option<Mono>, out: &mut Vec<Event>);
    /// Read, write or flush, carried out before this returns: for start-up and rare moments, never on the hot path.
    /// Other events stay queued for the next [`Seam::reap`].
    fn read_now(&mut self, file: FileId, offset: u64, len: usize) -> io::Result<AlignedBuf>;
    fn write_now(&mut self, file: FileId, offset: u64, data: &SharedSlice) -> io::Result<()>;
    fn flush_now(&mut self, file: FileId) -> io::Result<()>;

    /// Gives the buffer of a long read back for the next one. Forgetting to costs time and nothing else.
    fn recycle(&mut self, _buf: AlignedBuf) {}

    /// A handle that other threads use to produce [`Event::Woken`].
    fn waker(&self) -> Arc<dyn Waker>;

    /// In simulation: whether a rare branch should be taken here. Always false in production.
    fn buggify(&mut self, _point: &'static str) -> bool {
        false
    }
}

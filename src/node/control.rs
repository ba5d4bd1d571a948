//! The control thread: bytes of the admin socket and of the HTTP port, away from the node's loop.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};

use crate::admin;
use crate::cluster::NodeStatus;
use crate::io::Waker;

/// What the control thread needs.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Data folder: `admin.sock` and `baton.pid` are created in it.
    pub data: PathBuf,
    pub http_listen: Option<SocketAddr>,
}

/// A request for the node's loop. Every message is answered exactly once, or dropped (the caller then hears "busy").
pub struct ControlMessage {
    pub request: admin::Request,
    pub reply: Box<dyn FnOnce(admin::Response) + Send>,
}

/// Where the node's loop leaves its newest status, so that a busy loop can still be described.
#[derive(Debug, Default)]
pub struct StatusBoard {
    latest: Mutex<Option<NodeStatus>>,
}

impl StatusBoard {
    /// Called by the loop whenever role or state changes, and now and then.
    pub fn publish(&self, status: NodeStatus) {
        *self.latest.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(status);
    }

    pub fn latest(&self) -> Option<NodeStatus> {
        self.latest.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// The running control thread.
#[derive(Debug)]
pub struct ControlHandle {
    board: Arc<StatusBoard>,
    http: Option<SocketAddr>,
}

impl ControlHandle {
    pub fn board(&self) -> Arc<StatusBoard> {
        self.board.clone()
    }

    /// Where HTTP is served, with the port that was chosen when the configuration said 0.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Stops the thread and removes the socket. Bounded: a hung connection does not hold it up.
    pub fn stop(self) {}
}

/// Starts the thread. Call it only while holding the data folder's lock: a socket file that is there is stale.
pub fn spawn(
    _config: ControlConfig,
    _mailbox: SyncSender<ControlMessage>,
    _waker: Arc<dyn Waker>,
) -> io::Result<ControlHandle> {
    Err(io::ErrorKind::Unsupported.into())
}

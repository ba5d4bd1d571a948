//! The control file: everything a node must never forget, in two copies written one after the other.

use super::history::History;
use super::policy::{Generation, PendingGeneration};
use crate::base::{ClusterId, CommittedLsn, Incarnation, NodeId, Term};

/// Bytes of one encoded control image, a whole number of blocks.
pub const CONTROL_BYTES: usize = 16 << 10;
/// Longest cluster name.
pub const CLUSTER_NAME_MAX: usize = 64;

/// What the data folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataStatus {
    /// A whole log and store: its promise counts.
    Whole,
    /// Joining: it may stream, it never counts.
    Learner,
    /// A build is under way (or was interrupted).
    Building,
    /// Below a known-durable mark something is missing: repair from a peer.
    Damaged,
}

/// The durable state of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlState {
    /// Number of this image: rises with every change.
    pub generation: u64,
    pub cluster: ClusterId,
    pub cluster_name: String,
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub shards: u16,
    pub segment_bytes: u64,
    pub status: DataStatus,
    /// Sessions of lower terms are refused.
    pub promised: Term,
    pub history: History,
    /// The newest generation known to be committed (the seed before there is one).
    pub policy: Generation,
    pub pending: Option<PendingGeneration>,
    /// A lower bound of what is committed.
    pub known_committed: CommittedLsn,
    /// The newest term that this node itself started.
    pub last_led: Term,
    /// How often a process started on this folder.
    pub starts: u64,
}

/// One of the two copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ControlCopy {
    A,
    B,
}

/// Why no control state can be used. Every text says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlError {
    /// Both copies are unreadable.
    BothBad { a: &'static str, b: &'static str },
    /// The folder belongs to another cluster.
    ForeignCluster { found: ClusterId },
    /// The folder belongs to another node.
    ForeignNode { found: NodeId },
    /// Written by a newer build.
    NewerFormat { version: u16 },
}

/// The usable state and which copy must be rewritten from it before anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub state: ControlState,
    pub heal: Option<ControlCopy>,
}

impl ControlState {
    /// A fresh folder, as `baton init` makes it.
    #[allow(clippy::too_many_arguments)]
    pub fn fresh(
        _cluster: ClusterId,
        _cluster_name: &str,
        _node: NodeId,
        _incarnation: Incarnation,
        _shards: u16,
        _segment_bytes: u64,
        _policy: Generation,
        _status: DataStatus,
    ) -> ControlState {
        todo!()
    }
    /// The image, [`CONTROL_BYTES`] long.
    pub fn encode(&self) -> Vec<u8> {
        todo!()
    }
    pub fn decode(_bytes: &[u8]) -> Result<ControlState, &'static str> {
        todo!()
    }
}

/// Chooses the newest valid copy. `None` for a copy that could not be read. `expected`: from the configuration, when
/// it names cluster or node.
pub fn choose(
    _a: Option<&[u8]>,
    _b: Option<&[u8]>,
    _cluster: Option<ClusterId>,
    _node: Option<NodeId>,
) -> Result<Chosen, ControlError> {
    todo!()
}

/// The copies that a new image goes to, in this order, each flushed before the next and all before anything depends
/// on it.
pub fn copies_to_write(_generation: u64) -> &'static [ControlCopy] {
    todo!()
}

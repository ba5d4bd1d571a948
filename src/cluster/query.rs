//! One node in the layout of `gs_ctl query`: its state, its senders, its receiver.

use serde::{Deserialize, Serialize};

use super::status::{NodeState, NodeStatus, Role, SyncState};

/// The block "HA state".
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct HaState {
    pub local_role: Role,
    /// Peers that the configuration names.
    pub static_connections: usize,
    pub db_state: NodeState,
    pub detail_information: String,
}

/// Both ends of a stream.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Channel {
    pub local: String,
    pub remote: String,
}

/// One standby that streams from this node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SenderInfo {
    pub node: u16,
    pub peer_role: Role,
    pub peer_state: NodeState,
    /// `Catchup`, `Streaming`, ...
    pub state: String,
    pub sent_lsn: u64,
    pub written_lsn: u64,
    pub flushed_lsn: u64,
    pub applied_lsn: u64,
    pub lag_bytes: u64,
    pub lag_ms: Option<u64>,
    pub sync_state: SyncState,
    pub sync_priority: u32,
    pub channel: Channel,
}

/// The stream that this node receives.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ReceiverInfo {
    pub node: u16,
    pub peer_role: Role,
    pub peer_state: NodeState,
    pub state: String,
    pub received_lsn: u64,
    pub written_lsn: u64,
    pub flushed_lsn: u64,
    pub applied_lsn: u64,
    pub channel: Channel,
}

/// Damaged pages and the scrubber.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct PagesStatus {
    /// Damaged and not repaired yet, and those of them for which no connected node has a good copy.
    pub damaged: usize,
    pub unrepairable: usize,
    /// Since the process started.
    pub found_bad: u64,
    pub repaired: u64,
    pub scrubbed: u64,
    pub scrub_passes: u64,
    pub last_pass_age_s: Option<u64>,
    pub last_pass_pages: Option<u64>,
}

/// The answer to `baton query`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct QueryStatus {
    pub ha: HaState,
    pub me: NodeStatus,
    pub term: u64,
    pub senders: Vec<SenderInfo>,
    pub receiver: Option<ReceiverInfo>,
    /// Voters that may still be lost before a failover cannot find its quorum; absent when nobody knows.
    pub failures_survived: Option<usize>,
    #[serde(default)]
    pub pages: PagesStatus,
}

//! One node in the layout of `gs_ctl query`: its state, its senders, its receiver.

use serde::{Deserialize, Serialize};

use super::status::{NodeState, NodeStatus, Role, StoreStatus, SyncState};

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
    /// The process that sends: one loop serves all standbys.
    pub pid: u32,
    pub node: u16,
    pub local_role: Role,
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
    /// How much of the log is flushed there, in whole percent.
    pub sync_percent: u8,
    /// When it will have caught up at its present speed; absent while the lag does not shrink.
    pub catchup_eta_ms: Option<u64>,
    pub sync_state: SyncState,
    /// Place in the order of `FIRST`; 1 under `ANY`; 0 when its acknowledgements do not count.
    pub sync_priority: u32,
    /// It applies that much later on purpose.
    pub apply_delay_ms: Option<u64>,
    pub channel: Channel,
}

/// The stream that this node receives.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ReceiverInfo {
    pub pid: u32,
    pub node: u16,
    pub local_role: Role,
    pub peer_role: Role,
    pub peer_state: NodeState,
    pub state: String,
    /// End of the leader's log as last told, and its own word about the rest when it was heard lately.
    pub sender_sent_lsn: u64,
    pub sender_flushed_lsn: Option<u64>,
    pub sender_applied_lsn: Option<u64>,
    pub received_lsn: u64,
    pub written_lsn: u64,
    pub flushed_lsn: u64,
    pub applied_lsn: u64,
    pub sync_percent: u8,
    pub catchup_eta_ms: Option<u64>,
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
    /// Pages read since the start to find the free ones, and shards that are still to be looked through.
    #[serde(default)]
    pub walked: u64,
    #[serde(default)]
    pub walk_shards_left: u16,
}

/// Format versions of this node.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct FormatStatus {
    /// The log is written in this one.
    pub written: u16,
    /// What the build speaks; above `written` when an upgrade waits for `baton cluster finalize-upgrade`.
    pub speaks_oldest: u16,
    pub speaks_newest: u16,
}

impl FormatStatus {
    pub fn in_words(&self) -> String {
        match self.speaks_newest > self.written {
            true => format!(
                "{} (this build also speaks {}: `baton cluster finalize-upgrade` when all members do)",
                self.written, self.speaks_newest
            ),
            false => self.written.to_string(),
        }
    }
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
    /// Voters that may still be lost while writes go on; absent likewise.
    pub writes_survive: Option<usize>,
    /// Too few voters answer for a commit.
    #[serde(default)]
    pub writes_wait: bool,
    /// Written to the own log, flushed or not.
    pub written_lsn: u64,
    /// This standby applies that much later on purpose.
    pub apply_delay_ms: Option<u64>,
    #[serde(default)]
    pub pages: PagesStatus,
    /// Copies besides the leader's that are meant to be, where fewer are asked for at present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded_from: Option<usize>,
    /// The control store; absent where the configuration names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreStatus>,
    #[serde(default)]
    pub format: FormatStatus,
}

/// Whole percent of a log that are there; 100 only when all is.
pub fn sync_percent(reached: u64, end: u64) -> u8 {
    if end == 0 || reached >= end {
        return 100;
    }
    u8::try_from(u128::from(reached) * 100 / u128::from(end)).map_or(99, |percent| percent.min(99))
}

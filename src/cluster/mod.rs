//! What the nodes of a cluster say about themselves, put together for people and for programs.
//!
//! This room holds the status vocabulary: [`NodeStatus`] (one node), [`ClusterStatus`] (all), [`QueryStatus`] (one
//! node in the layout of `gs_ctl query`). It decides nothing and talks to nobody: a status is a value that the node
//! fills in and the command line prints.
//!
//! Invariants:
//! - `cluster_state` is computed from the rows alone, by one rule, wherever it is shown;
//! - a number that is not known is absent (`null`), never zero;
//! - field names and words are stable: `docs/json.md` is their contract.

pub mod control_store;
pub mod history;
pub mod query;
pub mod status;

mod text;

pub use history::{History, HistoryRow};
pub use query::{Channel, HaState, QueryStatus, ReceiverInfo, SenderInfo, sync_percent};
pub use status::{
    ClusterState, ClusterStatus, NO_QUORUM, NodeState, NodeStatus, PolicyRule, PolicyStatus, Role,
    StaticRole, StoreStatus, SyncState, cluster_state, merge, spare_in_words,
};

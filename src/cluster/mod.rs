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
pub mod query;
pub mod status;

mod text;

pub use query::{Channel, HaState, QueryStatus, ReceiverInfo, SenderInfo};
pub use status::{
    ClusterState, ClusterStatus, NodeState, NodeStatus, PolicyStatus, Role, StaticRole, SyncState,
    cluster_state, merge,
};

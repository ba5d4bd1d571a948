//! The read lease (`protocol` 2.10), both sides.

use crate::base::{Incarnation, Mono, NodeId, Term};

/// The leader's side: which voter granted until when, by the time its heartbeat was *sent*.
#[derive(Clone, Debug, Default)]
pub struct LeaderLease {
    _until: Vec<(NodeId, Incarnation, Mono)>,
}

/// The grantor's side: until when promises must wait.
#[derive(Clone, Debug, Default)]
pub struct Grants {
    _holder: Option<(NodeId, Term)>,
    _until: Mono,
}

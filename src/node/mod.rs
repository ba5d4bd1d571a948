//! The node: rooms, drivers and seam put together.

pub mod control;

use std::path::Path;

use crate::base::{ClusterId, Incarnation};
use crate::config::Config;

/// What `baton init` needs.
#[derive(Clone, Debug)]
pub struct InitOptions {
    pub config: Config,
    /// The id that the first node of the cluster printed; `None` makes a new cluster.
    pub cluster_id: Option<ClusterId>,
}

/// What `baton init` made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InitDone {
    pub cluster_id: ClusterId,
    pub incarnation: Incarnation,
}

/// The role asked for with `-M`: a request, never an order, once a cluster exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartRole {
    Primary,
    Standby,
    CascadeStandby,
    Pending,
}

/// What `baton run` needs.
#[derive(Clone, Debug)]
pub struct RunOptions {
    pub config: Config,
    pub role: Option<StartRole>,
    /// `-M primary --alone`: lower k to 0 by a forced, recorded generation.
    pub alone: bool,
}

/// Why the node could not do it, and what to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeError {
    pub message: String,
    pub hint: String,
}

/// What `baton inspect` shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inspect {
    Wal,
    Control,
    Superblock,
}

/// Creates a data folder.
pub fn init(_options: InitOptions) -> Result<InitDone, NodeError> {
    Err(unfinished())
}

/// Runs the node until it is stopped; the value is the process's exit code.
pub fn run(_options: RunOptions) -> u8 {
    1
}

/// Reads a stopped node's files and describes them, without changing anything.
pub fn inspect(_data: &Path, _what: Inspect) -> Result<serde_json::Value, NodeError> {
    Err(unfinished())
}

fn unfinished() -> NodeError {
    NodeError { message: "the node is not part of this build".into(), hint: String::new() }
}

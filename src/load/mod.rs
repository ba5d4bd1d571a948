//! Load and proof from the outside: what `baton bench` and the demo send, and how they judge what comes back.
//!
//! [`engine`] drives many connections from one loop over a [`crate::io::Seam`] and measures; it is not to be the
//! bottleneck. [`checker`] is the judge: every write is acknowledged, refused or in doubt, and the data read back must
//! fit. [`prober`] is its dull, blocking hand on real sockets. Nothing here knows the node's insides: all of it works
//! against any server that speaks RESP.
//!
//! Invariants:
//! - latency is measured from the moment a command is handed to the kernel to the moment its reply is read;
//! - an operation counts as a success only with a reply that is not an error;
//! - the checker never blames a server for a write whose outcome the server left open, and never forgives one that it
//!   acknowledged.
//!
//! Price: the load is closed-loop (each connection waits for its batch), so a stalled server is asked less. The longest
//! gap without a success is therefore reported beside the percentiles.

pub mod checker;
pub mod client;
pub mod engine;
pub mod plot;
pub mod prober;
pub mod report;
pub mod roles;
pub mod workload;

#[cfg(test)]
mod fake;

pub use checker::{KeyModel, Outcome, Verdict, Violation};
pub use client::{Answer, Client};
pub use engine::{LoadError, LoadOptions, Progress, run};
pub use prober::{History, ProbeOptions, Prober};
pub use report::{LagSummary, LatencySummary, Report, Slice};
pub use workload::Workload;

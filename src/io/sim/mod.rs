//! The simulated world: a seeded disk, network and clock for a whole cluster in one thread.
//!
//! A [`World`] holds hosts. [`World::seam`] starts a process on a host and hands out its [`SimSeam`], which implements
//! [`crate::io::Seam`]; the node on top runs unchanged. [`World::next`] is the whole scheduler: it advances virtual time
//! to the next thing that happens and says which host takes a turn. The harness calls that node's turn, then gives the
//! deadline the turn returned to [`World::wake_at`]:
//!
//! ```text
//! while let Some(due) = world.next_before(end) {
//!     match due {
//!         Due::Turn(host) => { let deadline = nodes[host].turn(); world.wake_at(host, deadline) }
//!         Due::Crashed(host) => drop the node; start it again whenever the plan says so
//!     }
//! }
//! ```
//!
//! It is *not* a model of the node, it checks no history, and it knows nothing of logs, roles or clients. It is not a
//! model of packets either: a connection is TCP as a program sees it, so loss, duplication and reordering of packets
//! appear as delay, and a long loss as a failed connection.
//!
//! Invariants:
//! - the same seed, configuration and calls give the same events and the same [`World::trace_hash`];
//! - what a durable write or a flush reported as done survives every power cut; everything else may survive or not,
//!   sector by sector;
//! - a write of a killed process may land after its successor started, but never after that folder's lock was released;
//! - the bytes of one connection arrive once and in order, or the connection ends;
//! - a call through the seam of a dead process has no effect.
//!
//! Price: the disk is more hostile than any real one (every legal state after a crash, not the likely ones), and time
//! passes only between turns, so nothing here measures how fast the node is.

mod clock;
mod config;
mod core;
mod disk;
mod image;
mod names;
mod net;
mod seam;
mod stream;
mod swarm;
mod trace;
mod world;

#[cfg(test)]
mod tests;

pub use config::{ClockConfig, DiskConfig, LinkFault, NetConfig, SimConfig, Span};
pub use disk::DiskImage;
pub use seam::SimSeam;
pub use swarm::{Fault, FaultPlan, Step, SwarmConfig};
pub use world::{Crash, DiskOp, Due, HostId, Stall, Stats, World};

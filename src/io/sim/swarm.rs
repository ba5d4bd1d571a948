//! Fault plans: which faults strike when, chosen from a seed, all over before the calm phase.

use std::time::Duration;

use super::config::{LinkFault, Span};
use super::world::{DiskOp, HostId, Stall};

/// One thing that goes wrong, or right again.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    Kill(HostId),
    PowerCut(HostId),
    /// The harness starts a process on the host, unless one runs.
    Start(HostId),
    Pause(HostId),
    Resume(HostId),
    Cut {
        from: HostId,
        to: HostId,
    },
    Mend {
        from: HostId,
        to: HostId,
    },
    Link {
        from: HostId,
        to: HostId,
        fault: LinkFault,
    },
    Reset {
        a: HostId,
        b: HostId,
    },
    SlowDisk {
        host: HostId,
        factor: f64,
    },
    StallDisk {
        host: HostId,
        stall: Stall,
    },
    ReleaseDisk(HostId),
    Fail {
        host: HostId,
        op: DiskOp,
        nth: u64,
    },
    Drift {
        host: HostId,
        ppm: i32,
    },
    JumpWall {
        host: HostId,
        by_ms: i64,
    },
}

/// A fault and when it strikes, counted from the start of the plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub at: Duration,
    pub fault: Fault,
}

/// What may go wrong, and how badly.
#[derive(Clone, Debug)]
pub struct SwarmConfig {
    /// Machines that crash, pause, and have disks.
    pub nodes: Vec<HostId>,
    /// Machines that only share the network.
    pub clients: Vec<HostId>,
    /// Faults strike and end within this time.
    pub length: Duration,
    /// Mean time between two faults of one kind, for the kinds that the seed switches on.
    pub mean_gap: Span,
    /// How long one fault lasts.
    pub lasting: Span,
    /// At most this many nodes are dead, paused or failing at the same time.
    pub down_at_once: usize,
    /// Whether disks may fail an operation with EIO (the node must stop and be started again).
    pub disk_errors: bool,
}

/// The steps of a fault phase in order of time, followed by calm.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultPlan {
    pub steps: Vec<Step>,
    /// From here on nothing is wrong any more and every node was started.
    pub calm_from: Duration,
}

impl FaultPlan {
    /// A plan for this seed. Each seed switches some kinds of fault off altogether, so that the others get room.
    pub fn swarm(_seed: u64, _config: &SwarmConfig) -> FaultPlan {
        unimplemented!()
    }
}

//! Fault plans: which faults strike when, chosen from a seed, all over before the calm phase.
//!
//! Swarm testing (Groce et al. 2012): each seed switches some kinds of fault off altogether and draws how often the
//! others strike, because a run in which everything goes wrong all the time never gets far enough to fail.

use std::time::Duration;

use super::config::{LinkFault, Span, nanos};
use super::world::{Crash, DiskOp, HostId, Stall};
use crate::base::Prng;

/// One thing that goes wrong, or right again.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    Kill(HostId),
    PowerCut(HostId),
    /// The process crashes in the middle of a turn, after this many more effective operations.
    CrashAfter {
        host: HostId,
        ops: u64,
        crash: Crash,
    },
    /// The harness starts a process on the host, unless one runs. [`super::World::apply`] only disarms a
    /// [`Fault::CrashAfter`] that has not struck.
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
    CorruptSegment {
        from: HostId,
        to: HostId,
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
    /// At most this many nodes are dead, paused or without a working disk at the same time.
    pub down_at_once: usize,
    /// Whether all nodes may lose power together, which `down_at_once` does not limit.
    pub blackouts: bool,
    /// Whether disks may fail an operation with EIO (the node must stop and be started again).
    pub disk_errors: bool,
    /// Whether bits may flip on the wire between nodes.
    pub wire_errors: bool,
    /// Whether a middlebox may reset connections of living processes, which is a forged proof of death.
    pub forged_resets: bool,
    /// A clock's rate stays within this of true time.
    pub drift_ppm: u32,
}

impl SwarmConfig {
    /// Everything that a minority of nodes must survive, for this long.
    pub fn new(nodes: Vec<HostId>, clients: Vec<HostId>, length: Duration) -> SwarmConfig {
        SwarmConfig {
            down_at_once: nodes.len().saturating_sub(1) / 2,
            nodes,
            clients,
            length,
            mean_gap: Span::millis(1_000, 15_000),
            lasting: Span::millis(50, 15_000),
            blackouts: true,
            disk_errors: true,
            wire_errors: false,
            forged_resets: false,
            drift_ppm: 500,
        }
    }
}

/// The steps of a fault phase in order of time, followed by calm.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultPlan {
    pub steps: Vec<Step>,
    /// From here on nothing is wrong any more and every node was started.
    pub calm_from: Duration,
}

/// A kind of fault that a seed switches on or off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Kill,
    PowerCut,
    Blackout,
    Pause,
    Isolate,
    CutPair,
    CutOneWay,
    Halves,
    SlowLink,
    LossyLink,
    Reset,
    CorruptSegment,
    SlowDisk,
    StallDisk,
    DiskError,
    Drift,
    JumpWall,
}

const KINDS: [Kind; 17] = [
    Kind::Kill,
    Kind::PowerCut,
    Kind::Blackout,
    Kind::Pause,
    Kind::Isolate,
    Kind::CutPair,
    Kind::CutOneWay,
    Kind::Halves,
    Kind::SlowLink,
    Kind::LossyLink,
    Kind::Reset,
    Kind::CorruptSegment,
    Kind::SlowDisk,
    Kind::StallDisk,
    Kind::DiskError,
    Kind::Drift,
    Kind::JumpWall,
];

/// Chance that a seed switches a kind on.
const SWITCHED_ON: f64 = 0.5;

impl FaultPlan {
    /// A plan for this seed.
    pub fn swarm(seed: u64, config: &SwarmConfig) -> FaultPlan {
        assert!(!config.nodes.is_empty(), "a plan needs nodes");
        let mut planner = Planner { rng: Prng::new(seed), config, steps: Vec::new(), down: Vec::new() };
        for kind in KINDS {
            let wanted = match kind {
                Kind::Blackout => config.blackouts,
                Kind::DiskError => config.disk_errors,
                Kind::CorruptSegment => config.wire_errors,
                Kind::Reset => config.forged_resets,
                _ => true,
            };
            if wanted && planner.rng.chance(SWITCHED_ON) {
                planner.plan(kind);
            }
        }
        let calm_from = config.length;
        let mut steps = planner.steps;
        steps.extend(config.nodes.iter().map(|host| Step { at: calm_from, fault: Fault::Start(*host) }));
        steps.sort_by_key(|step| step.at);
        FaultPlan { steps, calm_from }
    }
}

struct Planner<'a> {
    rng: Prng,
    config: &'a SwarmConfig,
    steps: Vec<Step>,
    /// Nodes that are out of service, and from when to when.
    down: Vec<(HostId, Duration, Duration)>,
}

impl Planner<'_> {
    fn add(&mut self, at: Duration, fault: Fault) {
        self.steps.push(Step { at, fault });
    }

    fn plan(&mut self, kind: Kind) {
        // While everything is dark nothing can go wrong; so a blackout is rare.
        let rarity = if kind == Kind::Blackout { 10 } else { 1 };
        let mean = self.config.mean_gap.draw(&mut self.rng).max(1) * rarity;
        let mut at = 0u64;
        loop {
            at = at.saturating_add(self.rng.below(mean * 2) + 1);
            let until = at.saturating_add(self.config.lasting.draw(&mut self.rng));
            if until >= nanos(self.config.length) {
                return;
            }
            self.strike(kind, Duration::from_nanos(at), Duration::from_nanos(until));
        }
    }

    fn node(&mut self) -> HostId {
        self.config.nodes[self.rng.below(self.config.nodes.len() as u64) as usize]
    }

    fn any_host(&mut self) -> HostId {
        let (nodes, clients) = (&self.config.nodes, &self.config.clients);
        let i = self.rng.below((nodes.len() + clients.len()) as u64) as usize;
        *nodes.get(i).unwrap_or_else(|| &clients[i - nodes.len()])
    }

    /// A node that may go down for that time.
    fn victim(&mut self, at: Duration, until: Duration) -> Option<HostId> {
        let host = self.node();
        let mut overlapping = self.down.iter().filter(|(_, from, to)| *from <= until && at <= *to);
        if overlapping.clone().count() >= self.config.down_at_once || overlapping.any(|(h, ..)| *h == host) {
            return None;
        }
        self.down.push((host, at, until));
        Some(host)
    }

    fn strike(&mut self, kind: Kind, at: Duration, until: Duration) {
        match kind {
            Kind::Kill => self.crash(Crash::Kill, at, until),
            Kind::PowerCut => self.crash(Crash::PowerCut, at, until),
            Kind::Blackout => self.blackout(at, until),
            Kind::Pause => self.between(at, until, Fault::Pause, Fault::Resume),
            Kind::Isolate => {
                let alone = vec![self.node()];
                self.divide(&alone, at, until);
            }
            Kind::Halves => {
                let some = self
                    .config
                    .nodes
                    .clone()
                    .into_iter()
                    .filter(|_| self.rng.chance(0.5))
                    .collect::<Vec<_>>();
                self.divide(&some, at, until);
            }
            Kind::CutPair => {
                let (a, b) = (self.node(), self.any_host());
                self.cut(a, b, at, until);
                self.cut(b, a, at, until);
            }
            Kind::CutOneWay => {
                let (a, b) = (self.any_host(), self.node());
                self.cut(a, b, at, until);
            }
            Kind::SlowLink => {
                let high = self.rng.between(1, 500);
                self.link(LinkFault::slow(Span::millis(high / 4, high)), at, until);
            }
            Kind::LossyLink => {
                let loss = self.rng.between(1, 30) as f64 / 100.0;
                self.link(LinkFault::lossy(loss), at, until);
            }
            Kind::Reset => {
                let (a, b) = (self.any_host(), self.node());
                self.add(at, Fault::Reset { a, b });
            }
            Kind::CorruptSegment => {
                let (from, to) = (self.node(), self.node());
                self.add(at, Fault::CorruptSegment { from, to });
            }
            Kind::SlowDisk => {
                let (host, factor) = (self.node(), self.rng.between(2, 200) as f64);
                self.add(at, Fault::SlowDisk { host, factor });
                self.add(until, Fault::SlowDisk { host, factor: 1.0 });
            }
            Kind::StallDisk => {
                let stall = if self.rng.chance(0.5) { Stall::Flushes } else { Stall::Everything };
                self.between(at, until, |host| Fault::StallDisk { host, stall }, Fault::ReleaseDisk);
            }
            Kind::DiskError => {
                let op = [DiskOp::Read, DiskOp::Write, DiskOp::Flush][self.rng.below(3) as usize];
                let nth = self.rng.below(20);
                self.between(at, until, |host| Fault::Fail { host, op, nth }, Fault::Start);
            }
            Kind::Drift => {
                let most = i64::from(self.config.drift_ppm);
                let ppm = (self.rng.below(2 * most as u64 + 1) as i64 - most) as i32;
                let host = self.node();
                self.add(at, Fault::Drift { host, ppm });
            }
            Kind::JumpWall => {
                let hour = 3_600_000;
                let by_ms = self.rng.below(2 * hour) as i64 - hour as i64;
                let host = self.node();
                self.add(at, Fault::JumpWall { host, by_ms });
            }
        }
    }

    fn between(
        &mut self,
        at: Duration,
        until: Duration,
        begin: impl Fn(HostId) -> Fault,
        end: impl Fn(HostId) -> Fault,
    ) {
        if let Some(host) = self.victim(at, until) {
            self.add(at, begin(host));
            self.add(until, end(host));
        }
    }

    /// A crash at a moment, or in the middle of a turn.
    fn crash(&mut self, crash: Crash, at: Duration, until: Duration) {
        let ops = self.rng.below(60);
        let by_ops = self.rng.chance(0.5);
        let begin = |host| match (by_ops, crash) {
            (true, _) => Fault::CrashAfter { host, ops, crash },
            (false, Crash::Kill) => Fault::Kill(host),
            (false, Crash::PowerCut) => Fault::PowerCut(host),
        };
        self.between(at, until, begin, Fault::Start);
    }

    /// All nodes lose power within a few milliseconds and come back one after the other.
    fn blackout(&mut self, at: Duration, until: Duration) {
        for host in self.config.nodes.clone() {
            let off = at + Duration::from_micros(self.rng.below(5_000));
            let back = off.max(until) + Duration::from_micros(self.rng.below(5_000));
            self.down.push((host, at, back));
            self.add(off, Fault::PowerCut(host));
            if back < self.config.length {
                self.add(back, Fault::Start(host));
            }
        }
    }

    /// Cuts `side` off from all other nodes, and perhaps from the clients too.
    fn divide(&mut self, side: &[HostId], at: Duration, until: Duration) {
        let with_clients = self.rng.chance(0.5);
        let mut others: Vec<HostId> = self.config.nodes.clone();
        if with_clients {
            others.extend(&self.config.clients);
        }
        others.retain(|host| !side.contains(host));
        for (a, b) in side.iter().flat_map(|a| others.iter().map(move |b| (*a, *b))) {
            self.cut(a, b, at, until);
            self.cut(b, a, at, until);
        }
    }

    fn cut(&mut self, from: HostId, to: HostId, at: Duration, until: Duration) {
        if from != to {
            self.add(at, Fault::Cut { from, to });
            self.add(until, Fault::Mend { from, to });
        }
    }

    fn link(&mut self, fault: LinkFault, at: Duration, until: Duration) {
        let (from, to) = (self.node(), self.any_host());
        self.add(at, Fault::Link { from, to, fault });
        self.add(until, Fault::Link { from, to, fault: LinkFault::NONE });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn config() -> SwarmConfig {
        let nodes = (0..5).map(HostId).collect();
        let mut config = SwarmConfig::new(nodes, vec![HostId(5), HostId(6)], Duration::from_secs(120));
        config.blackouts = false;
        config.wire_errors = true;
        config.forged_resets = true;
        config
    }

    #[test]
    fn a_seed_names_one_plan_and_seeds_differ() {
        let config = config();
        assert_eq!(FaultPlan::swarm(7, &config), FaultPlan::swarm(7, &config));
        assert_ne!(FaultPlan::swarm(7, &config), FaultPlan::swarm(8, &config));
    }

    /// Replays each plan on paper: whatever begins also ends, and no more nodes are down than allowed.
    #[test]
    fn every_fault_ends_before_the_calm_and_within_the_budget() {
        let config = config();
        let mut kinds = BTreeSet::new();
        for seed in 0..300 {
            let plan = FaultPlan::swarm(seed, &config);
            let mut down: BTreeSet<HostId> = BTreeSet::new();
            let mut lasting: BTreeMap<String, i32> = BTreeMap::new();
            let mut last = Duration::ZERO;
            for step in &plan.steps {
                assert!(last <= step.at && step.at <= plan.calm_from, "in order and in time");
                last = step.at;
                let name = format!("{:?}", step.fault);
                kinds.insert(name.split(['(', ' ']).next().unwrap().to_string());
                match step.fault {
                    Fault::Kill(h)
                    | Fault::PowerCut(h)
                    | Fault::CrashAfter { host: h, .. }
                    | Fault::Pause(h)
                    | Fault::StallDisk { host: h, .. }
                    | Fault::Fail { host: h, .. } => {
                        assert!(down.insert(h), "seed {seed}: {h:?} was down already")
                    }
                    Fault::Start(h) | Fault::Resume(h) | Fault::ReleaseDisk(h) => {
                        down.remove(&h);
                    }
                    Fault::Cut { from, to } => {
                        *lasting.entry(format!("cut {from:?} {to:?}")).or_default() += 1
                    }
                    Fault::Mend { from, to } => {
                        *lasting.entry(format!("cut {from:?} {to:?}")).or_default() -= 1
                    }
                    _ => {}
                }
                assert!(down.len() <= config.down_at_once, "seed {seed}: {down:?} at {:?}", step.at);
            }
            assert!(down.is_empty(), "seed {seed}: {down:?} never came back");
            assert!(lasting.values().all(|n| *n == 0), "seed {seed}: {lasting:?}");
        }
        assert!(kinds.len() == 17, "the seeds reach all kinds: {kinds:?}");
    }
}

//! The operator: restarts what is dead and asks a standby to take over when nobody serves.

use std::time::Duration;

use baton::admin::{Failover, Verb};
use baton::base::{Mono, NodeId, Prng};
use baton::node::StartRole;
use baton::role::Command;

use super::cluster::Cluster;

/// Looks at the cluster this often.
pub const EVERY: Duration = Duration::from_millis(40);

pub struct Operator {
    rng: Prng,
    pub look_at: Mono,
    /// When each dead node is started again.
    start: Vec<Option<Mono>>,
    /// Nobody serves since then, and how long the operator lets it be.
    gone_since: Option<Mono>,
    patience: Duration,
    /// The world is calm: be quick.
    pub calm: bool,
    /// A script plays the operator for now.
    pub aside: bool,
    pub failovers: u64,
    pub switchovers: u64,
    pub restarts: u64,
}

impl Operator {
    pub fn new(rng: Prng, nodes: u16) -> Operator {
        Operator {
            rng,
            look_at: Mono(0),
            start: vec![None; usize::from(nodes)],
            gone_since: None,
            patience: Duration::from_millis(800),
            calm: false,
            aside: false,
            failovers: 0,
            switchovers: 0,
            restarts: 0,
        }
    }

    pub fn look(&mut self, cluster: &mut Cluster) {
        let now = cluster.world.now();
        self.look_at = now + EVERY;
        if self.aside {
            return;
        }
        self.restart(cluster, now);
        let serving = self.serving(cluster);
        if serving.is_some() {
            self.gone_since = None;
            if !self.calm && self.rng.chance(0.004) {
                self.meddle(cluster);
            }
            return;
        }
        let since = *self.gone_since.get_or_insert(now);
        if now.since(since) < self.patience {
            return;
        }
        self.gone_since = Some(now);
        self.patience = Duration::from_millis(if self.calm { 300 } else { self.rng.between(200, 2_500) });
        let up = up(cluster);
        if up.is_empty() {
            return;
        }
        let node = up[self.rng.below(up.len() as u64) as usize];
        let force = self.rng.chance(0.2);
        let wish = Failover { force, timeout_ms: self.rng.between(1_000, 4_000), ..Failover::default() };
        drop(cluster.order(node, Verb::Failover(wish)));
        self.failovers += 1;
    }

    /// A failover that nobody needs: it must be refused, or be harmless.
    fn meddle(&mut self, cluster: &mut Cluster) {
        let up = up(cluster);
        let node = up[self.rng.below(up.len() as u64) as usize];
        if self.rng.chance(0.6) {
            // What comes of it is judged by what the clients saw.
            let to = self.rng.chance(0.5).then(|| NodeId(up[self.rng.below(up.len() as u64) as usize]));
            let timeout = Duration::from_millis(self.rng.between(100, 3_000));
            let command = Command::Switchover { to, dry_run: self.rng.chance(0.1), timeout };
            cluster.with_node(node, |running| running.ask_role(command, Box::new(|_| {})));
            self.switchovers += 1;
            return;
        }
        let wish = Failover {
            force: self.rng.chance(0.6),
            dry_run: self.rng.chance(0.1),
            timeout_ms: self.rng.between(500, 3_000),
            ..Failover::default()
        };
        drop(cluster.order(node, Verb::Failover(wish)));
        self.failovers += 1;
    }

    fn restart(&mut self, cluster: &mut Cluster, now: Mono) {
        for node in 1..=cluster.machines.len() as u16 {
            let i = usize::from(node) - 1;
            if cluster.machines[i].node.is_some() || cluster.machines[i].start_at.is_some() {
                self.start[i] = None;
                continue;
            }
            // The last writes of a process that ended may still land for a while.
            let failed = if cluster.machines[i].exit.is_some_and(|code| code != 0) { 150 } else { 0 };
            let wait = failed + if self.calm { 50 } else { self.rng.between(30, 3_000) };
            let wait = Duration::from_millis(wait);
            let at = *self.start[i].get_or_insert(now + wait);
            if at <= now || (self.calm && at > now + wait) {
                self.start[i] = None;
                self.restarts += 1;
                cluster.start(node, self.rng.chance(0.1).then_some(StartRole::Primary));
            }
        }
    }

    /// The node that serves, as it says itself.
    pub fn serving(&self, cluster: &Cluster) -> Option<u16> {
        (1..=cluster.machines.len() as u16).find(|node| cluster.serves(*node))
    }
}

fn up(cluster: &Cluster) -> Vec<u16> {
    (1u16..).zip(&cluster.machines).filter(|(_, m)| m.node.is_some()).map(|(node, _)| node).collect()
}

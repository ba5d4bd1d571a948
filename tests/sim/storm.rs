//! Directed weather: fault schedules that aim at one kind of weakness, with random moments.

use std::time::Duration;

use baton::admin::{Failover, Verb};
use baton::base::{ClusterId, Mono, Prng};
use baton::io::sim::DiskImage;
use baton::node::{InitOptions, init_on};

use super::clients::Shared;
use super::cluster::Cluster;
use super::logs::Logs;
use super::run::Weather;

mod plots;
use plots::Scene;

pub struct Storm {
    weather: Weather,
    rng: Prng,
    pub at: Mono,
    /// The node whose disk was replaced by an empty one.
    pub wiped: Option<u16>,
    /// Now is the moment to look at every log.
    pub look: bool,
    /// Strikes follow a script for now.
    plot: bool,
    scene: Scene,
    /// How often a script came to what it is for.
    pub climaxes: u32,
}

impl Storm {
    pub fn new(weather: Weather, mut rng: Prng) -> Storm {
        let at = if weather == Weather::Swarm { Mono(u64::MAX) } else { Mono(300_000_000) };
        let plot = weather == Weather::Wipes && rng.chance(0.8);
        Storm { weather, rng, at, wiped: None, look: false, plot, scene: Scene::default(), climaxes: 0 }
    }

    fn node(&mut self, cluster: &Cluster) -> u16 {
        self.rng.between(1, cluster.machines.len() as u64) as u16
    }

    pub fn strike(&mut self, cluster: &mut Cluster, shared: &mut Shared, logs: &mut Logs) {
        let pause = match self.weather {
            Weather::Swarm => return,
            Weather::Wipes if self.plot => self.wiped_voter(cluster, logs),
            Weather::Wipes => self.wipe(cluster, logs),
            Weather::PowerCuts => self.power_cut(cluster),
            Weather::TornTails => self.tear_tail(cluster),
            Weather::CutPrimary => self.cut_primary(cluster),
            _ => self.play(cluster, shared, logs),
        };
        self.at = cluster.world.now() + Duration::from_millis(pause);
    }

    /// Whoever believes to lead.
    fn primary(&self, cluster: &mut Cluster) -> Option<u16> {
        (1..=cluster.machines.len() as u16)
            .find(|n| cluster.status(*n).is_some_and(|row| row["role"] == "Primary"))
    }

    fn ask(&mut self, cluster: &mut Cluster, node: u16) {
        let wish = Failover { force: true, timeout_ms: self.rng.between(500, 3_000), ..Failover::default() };
        drop(cluster.order(node, Verb::Failover(wish)));
    }

    /// One node loses its disk and comes back under its old number; the others lose their primary.
    fn wipe(&mut self, cluster: &mut Cluster, logs: &mut Logs) -> u64 {
        match self.wiped {
            None => {
                let primary = self.primary(cluster);
                let node = self.node(cluster);
                if primary.is_none() || primary == Some(node) {
                    return 100;
                }
                self.replace_disk(cluster, logs, node);
                self.rng.between(0, 60)
            }
            Some(wiped) => {
                cluster.world.heal_all();
                if self.rng.chance(0.4) {
                    return self.rng.between(100, 800);
                }
                // The wiped node and one other are left alone with each other.
                let other = self.node(cluster);
                if other == wiped {
                    return 20;
                }
                cluster.world.isolate(cluster.machines[usize::from(other) - 1].host);
                let rest = (1..=cluster.machines.len() as u16).find(|n| *n != other && *n != wiped);
                for node in [Some(wiped), rest].into_iter().flatten() {
                    self.ask(cluster, node);
                }
                self.rng.between(500, 2_500)
            }
        }
    }

    /// A node's disk is empty from one moment to the next, and made anew under the same number.
    fn replace_disk(&mut self, cluster: &mut Cluster, logs: &mut Logs, node: u16) {
        cluster.kill(node);
        let machine = &mut cluster.machines[usize::from(node) - 1];
        cluster.world.restore_disk(machine.host, &DiskImage::default());
        logs.forget(node);
        let mut seam = cluster.world.seam(machine.host);
        let options = InitOptions { config: machine.config.clone(), cluster_id: Some(ClusterId(0xC1)) };
        if init_on(&mut seam, options).is_ok() {
            self.wiped = Some(node);
        }
        drop(seam);
        cluster.world.kill(cluster.machines[usize::from(node) - 1].host);
        cluster.start(node, None);
    }

    fn power_cut(&mut self, cluster: &mut Cluster) -> u64 {
        let all = self.rng.chance(0.3);
        let node = match self.rng.chance(0.4) {
            true => self.primary(cluster).unwrap_or(1),
            false => self.node(cluster),
        };
        for n in 1..=cluster.machines.len() as u16 {
            if all || n == node {
                cluster.power_cut(n);
                let wait = Duration::from_millis(self.rng.between(1, 300));
                cluster.machines[usize::from(n) - 1].start_at = Some(cluster.world.now() + wait);
            }
        }
        if !all && self.rng.chance(0.5) {
            let other = self.node(cluster);
            self.ask(cluster, other);
        }
        self.rng.between(100, 900)
    }

    /// A node with many writes in flight loses power and is back at once. Mostly a standby: the writes go on. Now and
    /// then all of them.
    fn tear_tail(&mut self, cluster: &mut Cluster) -> u64 {
        if self.rng.chance(0.1) {
            for node in 1..=3 {
                cluster.power_cut(node);
                cluster.machines[usize::from(node) - 1].start_at = Some(cluster.world.now());
            }
            return self.rng.between(500, 1_500);
        }
        let primary = self.primary(cluster).unwrap_or(0);
        let mut node = self.node(cluster);
        if node == primary && self.rng.chance(0.8) {
            node = 1 + node % 3;
        }
        cluster.power_cut(node);
        let wait = Duration::from_millis(self.rng.between(1, 20));
        cluster.machines[usize::from(node) - 1].start_at = Some(cluster.world.now() + wait);
        self.rng.between(100, 350)
    }

    fn cut_primary(&mut self, cluster: &mut Cluster) -> u64 {
        cluster.world.heal_all();
        let Some(primary) = self.primary(cluster) else { return 100 };
        let nodes = cluster.machines.len() as u16;
        let (one_way, only) = (self.rng.chance(0.3), self.rng.chance(0.3).then(|| self.node(cluster)));
        let mine = cluster.machines[usize::from(primary) - 1].host;
        for other in (1..=nodes).filter(|n| *n != primary && only.is_none_or(|o| o == *n)) {
            let host = cluster.machines[usize::from(other) - 1].host;
            match one_way {
                true if self.rng.chance(0.5) => cluster.world.cut(mine, host),
                true => cluster.world.cut(host, mine),
                false => cluster.world.partition(mine, host),
            }
        }
        if self.rng.chance(0.2) {
            cluster.world.pause(mine);
            // It wakes up when the next strike calms the links.
            let wait = self.rng.between(200, 1_800);
            let next = 1 + primary % nodes;
            self.ask(cluster, next);
            self.resume_later(cluster);
            return wait;
        }
        let next = 1 + primary % nodes;
        self.ask(cluster, next);
        self.rng.between(300, 3_500)
    }

    /// A paused process goes on at the next strike; until then its machine is only slow to answer.
    fn resume_later(&mut self, cluster: &Cluster) {
        for machine in &cluster.machines {
            if self.rng.chance(0.5) {
                cluster.world.resume(machine.host);
            }
        }
    }
}

//! Scripts for a cluster that decides through a control store: who may lead, and with how many copies, is what stands
//! in the store, and the script comes between a decision and the knowledge of it.

use std::time::Duration;

use baton::admin::{PolicySet, Verb};

use super::super::super::cluster::Cluster;
use super::super::Storm;
use super::Next::{self, Again, Go, Stay};
use super::{PATIENCE_MS, host, serves};

impl Storm {
    // ---- Stage hands.

    /// A healthy cluster whose three voters keep `k` copies besides the leader's, as the store knows.
    fn decided_cast(&mut self, cluster: &mut Cluster, k: u8) -> Next {
        let Some(stands) = cluster.store.policy() else { return Stay };
        if stands.policy.voters.len() != 3 || !stands.pending.is_empty() || self.cast(cluster).is_none() {
            return Stay;
        }
        if stands.policy.k != k {
            let a = self.scene.a;
            self.copies(cluster, a, k);
            return Again(200);
        }
        Go(self.millis(20, 200))
    }

    fn copies(&mut self, cluster: &mut Cluster, node: u16, k: u8) {
        let rule = format!("ANY {k} (1, 2, 3)");
        drop(cluster.order(node, Verb::PolicySet(PolicySet { rule, ..PolicySet::default() })));
    }

    fn isolate(&self, cluster: &Cluster, node: u16) {
        for other in (1..=3).filter(|other| *other != node) {
            cluster.world.partition(host(cluster, node), host(cluster, other));
        }
    }

    /// Somebody who did not lead at the beginning does.
    fn succeeded(&self, cluster: &mut Cluster) -> bool {
        serves(cluster, self.scene.b) || serves(cluster, self.scene.c)
    }

    fn climax(&mut self) {
        self.climaxes += 1;
    }

    // ---- Scripts.

    /// All three shall keep every write. The third one has said that it is there and is cut off before it could hold
    /// the change; the other two go on acknowledging among themselves until the change is in the log. A store that
    /// says too early that three are asked makes the third one believe that nothing was committed without it.
    pub(super) fn raised_copies(&mut self, cluster: &mut Cluster) -> Next {
        let (a, c) = (self.scene.a, self.scene.c);
        match self.scene.step {
            0 => self.decided_cast(cluster, 1),
            1 => {
                cluster.store.slow_ms = self.millis(80, 180);
                self.copies(cluster, a, 2);
                Go(self.millis(3, 40))
            }
            2 => {
                self.isolate(cluster, c);
                Go(self.millis(430, 650))
            }
            3 => {
                self.look = true;
                cluster.store.slow_ms = 0;
                self.take_over(cluster, c, false);
                Go(2)
            }
            4 if serves(cluster, c) || self.waited(cluster, 2_500) => {
                self.climax();
                Go(self.millis(20, 300))
            }
            5 => self.curtain(cluster),
            _ if self.waited(cluster, PATIENCE_MS) => self.curtain(cluster),
            _ => Stay,
        }
    }

    /// The leader dies, one or two ask to succeed it, and the store is slow, out, or does things without a word.
    pub(super) fn store_trouble(&mut self, cluster: &mut Cluster) -> Next {
        let (a, b, c) = (self.scene.a, self.scene.b, self.scene.c);
        match self.scene.step {
            0 => self.decided_cast(cluster, 1),
            1 => {
                let until = cluster.world.now() + Duration::from_millis(self.millis(300, 3_000));
                match self.rng.below(4) {
                    0 => {}
                    1 => cluster.store.slow_ms = self.millis(100, 1_400),
                    2 => cluster.store.out_until = until,
                    _ => cluster.store.mute_until = until,
                }
                Go(self.millis(0, 300))
            }
            2 => {
                self.down(cluster, a);
                Go(self.millis(0, 400))
            }
            3 => {
                self.take_over(cluster, b, false);
                if self.rng.chance(0.5) {
                    self.take_over(cluster, c, false);
                }
                Go(0)
            }
            4 if self.succeeded(cluster) => {
                self.climax();
                Go(self.millis(50, 400))
            }
            5 => self.curtain(cluster),
            _ if self.waited(cluster, PATIENCE_MS) => self.curtain(cluster),
            _ => Stay,
        }
    }

    /// The leader is cut off; it, or the others, or nobody reaches the store. The leader wants to go on alone after a
    /// while, the others want to succeed it.
    pub(super) fn store_cut(&mut self, cluster: &mut Cluster) -> Next {
        let (a, b, c) = (self.scene.a, self.scene.b, self.scene.c);
        match self.scene.step {
            0 => self.decided_cast(cluster, 1),
            1 => {
                match self.rng.below(6) {
                    0 | 1 => cluster.store.beyond.extend([a]),
                    2 => cluster.store.beyond.extend([b, c]),
                    3 => cluster.store.beyond.extend([a, b, c]),
                    _ => {}
                }
                self.isolate(cluster, a);
                Go(self.millis(0, 2_200))
            }
            2 => {
                self.take_over(cluster, b, false);
                Go(self.millis(0, 1_500))
            }
            // Who reached the store and who did not changes sides.
            3 if self.rng.chance(0.5) => {
                cluster.store.mend();
                cluster.store.beyond.extend(self.rng.chance(0.5).then_some(a));
                Go(self.millis(0, 500))
            }
            3 => Go(0),
            4 if self.succeeded(cluster) || self.alone(cluster, a) => {
                self.climax();
                Go(self.millis(50, 600))
            }
            5 => self.curtain(cluster),
            _ if self.waited(cluster, 3_500) => self.curtain(cluster),
            _ => Stay,
        }
    }

    /// True when the store has granted this node a policy that needs nobody else.
    fn alone(&self, cluster: &Cluster, node: u16) -> bool {
        let granted = cluster.store.policy().filter(|stands| stands.leader.0 == node);
        granted
            .is_some_and(|stands| stands.pending.iter().chain([&stands.policy]).any(|policy| policy.k == 0))
    }

    /// With every write on all three, each one alone lacks nothing, and each is alone now. Two are told to lead at
    /// about the time when the leader asks by itself.
    pub(super) fn store_duel(&mut self, cluster: &mut Cluster) -> Next {
        let (a, b, c) = (self.scene.a, self.scene.b, self.scene.c);
        match self.scene.step {
            0 => self.decided_cast(cluster, 2),
            1 => {
                (1..=3).for_each(|node| self.isolate(cluster, node));
                if self.rng.chance(0.3) {
                    cluster.store.slow_ms = self.millis(50, 500);
                }
                Go(self.millis(0, 1_500))
            }
            2 => {
                self.take_over(cluster, b, false);
                Go(self.millis(0, 300))
            }
            3 => {
                self.take_over(cluster, c, false);
                Go(0)
            }
            4 if [a, b, c].iter().any(|node| self.alone(cluster, *node)) => {
                self.climax();
                Go(self.millis(200, 1_500))
            }
            5 => self.curtain(cluster),
            _ if self.waited(cluster, PATIENCE_MS) => self.curtain(cluster),
            _ => Stay,
        }
    }

    /// A leader without its voters goes on alone. It dies with what only it holds, before, while or after they are
    /// back, and one of them is told to lead.
    pub(super) fn degraded(&mut self, cluster: &mut Cluster) -> Next {
        let (a, b, c) = (self.scene.a, self.scene.b, self.scene.c);
        match self.scene.step {
            0 => self.decided_cast(cluster, 1),
            1 => {
                if self.rng.chance(0.5) {
                    self.down(cluster, b);
                    self.down(cluster, c);
                } else {
                    self.isolate(cluster, a);
                }
                Go(self.millis(1_500, 2_000))
            }
            2 if self.alone(cluster, a) => {
                self.climax();
                Go(self.millis(0, 800))
            }
            3 => {
                self.look = true;
                cluster.world.heal_all();
                self.up(cluster, b);
                self.up(cluster, c);
                let often = self.rng.chance(0.7);
                Go(self.millis(0, if often { 400 } else { 1_500 }))
            }
            4 => {
                self.down(cluster, a);
                self.take_over(cluster, b, false);
                Go(0)
            }
            5 if self.succeeded(cluster) || self.waited(cluster, 2_500) => Go(self.millis(50, 400)),
            6 => self.curtain(cluster),
            _ if self.waited(cluster, PATIENCE_MS) => self.curtain(cluster),
            _ => Stay,
        }
    }

    /// The first candidate freezes between the grant and its first frame; another one leads meanwhile. Now and then it
    /// is the leader that freezes first, trusting its lease. Both wake up behind their time.
    pub(super) fn frozen_grant(&mut self, cluster: &mut Cluster) -> Next {
        let (a, b, c) = (self.scene.a, self.scene.b, self.scene.c);
        let frozen = |cluster: &Cluster, node: u16| cluster.world.pause(host(cluster, node));
        match self.scene.step {
            0 => self.decided_cast(cluster, 1),
            1 => {
                match self.rng.below(3) {
                    0 => frozen(cluster, a),
                    1 => self.down(cluster, a),
                    _ => self.isolate(cluster, a),
                }
                cluster.store.slow_ms = self.millis(20, 120);
                self.take_over(cluster, b, false);
                Go(0)
            }
            2 if cluster.store.policy().is_some_and(|stands| stands.leader.0 == b) => {
                self.climax();
                frozen(cluster, b);
                cluster.store.mend();
                // With the old leader there is a quorum again.
                cluster.world.resume(host(cluster, a));
                cluster.world.heal_all();
                self.up(cluster, a);
                Go(self.millis(50, 1_200))
            }
            3 => {
                let node = if self.rng.chance(0.7) { c } else { a };
                self.take_over(cluster, node, false);
                Go(0)
            }
            4 if serves(cluster, c) || serves(cluster, a) || self.waited(cluster, 3_000) => {
                Go(self.millis(0, 500))
            }
            5 => {
                cluster.world.resume(host(cluster, b));
                Go(self.millis(100, 1_000))
            }
            6 => self.curtain(cluster),
            _ if self.waited(cluster, PATIENCE_MS) => {
                (1..=3).for_each(|node| cluster.world.resume(host(cluster, node)));
                self.curtain(cluster)
            }
            _ => Stay,
        }
    }
}

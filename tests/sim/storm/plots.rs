//! Scripted weather: the classic schedule of a broken rule, step by step, with random moments and random victims. The
//! nodes do what they do; the script only cuts and delays links, kills, damages disks, and gives orders at the moment
//! that matters.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use baton::admin::{Failover, Verb};
use baton::base::{Lsn, Mono};
use baton::io::sim::{HostId, LinkFault, Span};
use baton::role::ControlState;
use baton::wal::LogFile;

use super::super::clients::Shared;
use super::super::cluster::Cluster;
use super::super::logs::Logs;
use super::super::run::{SEGMENT_BYTES, Weather};
use super::Storm;

mod decided;

const CONTROL: [&str; 2] = ["/data/control.a", "/data/control.b"];
/// Scripts look at the cluster this often.
const LOOK_MS: u64 = 2;
/// What a script waits for and does not get within this time is given up.
const PATIENCE_MS: u64 = 5_000;
/// What a node has flushed is covered by its own mark this long afterwards (protocol 5.1: a quarter of a second).
const MARKED_MS: u64 = 300;

/// Where a script stands.
#[derive(Default)]
pub(super) struct Scene {
    step: u32,
    since: Mono,
    /// The primary when the script began, and the two others.
    a: u16,
    b: u16,
    c: u16,
    /// The highest term number that anybody had promised then.
    promised: u64,
    /// Where the log of `c` ended when it was cut off, and how far `b` had flushed a while before it died.
    missing: (Lsn, Lsn),
}

/// What comes after one look at a script.
enum Next {
    Stay,
    /// The next step, after so many milliseconds.
    Go(u64),
    /// From the beginning, after so many milliseconds.
    Again(u64),
}

use Next::{Again, Go, Stay};

impl Storm {
    /// Plays the script on; says in how many milliseconds it wants to look again.
    pub(super) fn play(&mut self, cluster: &mut Cluster, shared: &mut Shared, logs: &mut Logs) -> u64 {
        let next = match self.weather {
            Weather::Duels => self.duel(cluster),
            Weather::LatePromise => self.late_promise(cluster, false),
            Weather::DamagedControl => self.late_promise(cluster, true),
            Weather::LongTail => self.long_tail(cluster, shared),
            Weather::Laggard => self.laggard(cluster),
            Weather::SlowNews => self.slow_news(cluster),
            Weather::ForcedAlone => self.forced_alone(cluster),
            Weather::DamagedLog => self.damaged_log(cluster, logs),
            Weather::Expiry => self.expiry(cluster),
            Weather::RaisedCopies => self.raised_copies(cluster),
            Weather::StoreTrouble => self.store_trouble(cluster),
            Weather::StoreCut => self.store_cut(cluster),
            Weather::StoreDuel => self.store_duel(cluster),
            Weather::Degraded => self.degraded(cluster),
            Weather::FrozenGrant => self.frozen_grant(cluster),
            _ => unreachable!("this weather has no script"),
        };
        self.turn_page(cluster, next)
    }

    /// Says in how many milliseconds the script is looked at again.
    fn turn_page(&mut self, cluster: &Cluster, next: Next) -> u64 {
        let (step, wait) = match next {
            Stay => return LOOK_MS,
            Go(wait) => (self.scene.step + 1, wait),
            Again(wait) => (0, wait),
        };
        self.scene.step = step;
        self.scene.since = cluster.world.now() + Duration::from_millis(wait);
        wait.max(LOOK_MS)
    }

    /// Faults are over: whoever lies down gets up.
    pub fn end(&mut self, cluster: &mut Cluster) {
        cluster.store.mend();
        for node in 1..=cluster.machines.len() as u16 {
            self.up(cluster, node);
        }
    }

    // ---- Stage hands.

    /// A healthy cluster, and who plays whom; `None` while it is not healthy.
    fn cast(&mut self, cluster: &mut Cluster) -> Option<()> {
        let rows: Vec<_> = (1..=3).map(|node| cluster.status(node)).collect::<Option<_>>()?;
        if rows.iter().any(|row| row["state"] != "Normal") {
            return None;
        }
        let a = (1..=3).find(|node| rows[usize::from(*node) - 1]["role"] == "Primary")?;
        let (mut b, mut c) = (1 + a % 3, 1 + (a + 1) % 3);
        if self.rng.chance(0.5) {
            (b, c) = (c, b);
        }
        let promised = (1..=3).map(|node| promised(cluster, node)).max().unwrap_or(0);
        self.scene = Scene { a, b, c, promised, ..Scene::default() };
        Some(())
    }

    fn waited(&self, cluster: &Cluster, millis: u64) -> bool {
        cluster.world.now().since(self.scene.since) >= Duration::from_millis(millis)
    }

    fn millis(&mut self, low: u64, high: u64) -> u64 {
        self.rng.between(low, high)
    }

    fn take_over(&mut self, cluster: &mut Cluster, node: u16, alone: bool) {
        let wish =
            Failover { force: true, alone, accept_loss: alone, timeout_ms: 4_000, ..Failover::default() };
        drop(cluster.order(node, Verb::Failover(wish)));
    }

    /// Kills a process and keeps it down.
    fn down(&mut self, cluster: &mut Cluster, node: u16) {
        if cluster.machines[usize::from(node) - 1].node.is_some() {
            cluster.kill(node);
        }
        cluster.machines[usize::from(node) - 1].start_at = Some(Mono(u64::MAX));
    }

    fn up(&mut self, cluster: &mut Cluster, node: u16) {
        let machine = &mut cluster.machines[usize::from(node) - 1];
        if machine.node.is_none() {
            machine.start_at = Some(cluster.world.now());
        }
    }

    /// `c` hears and says nothing from now on.
    fn cut_off(&mut self, cluster: &mut Cluster, c: u16) {
        for other in (1..=3).filter(|node| *node != c) {
            cluster.world.partition(host(cluster, other), host(cluster, c));
        }
        self.scene.missing.0 = place(cluster, c, "appended_lsn");
    }

    /// Flips a bit in one of the last frames of `b`, which is down: one that `c` lacks and that a mark of `b` covers.
    fn ruin_frame(&mut self, cluster: &Cluster, logs: &mut Logs) -> bool {
        let ((from, to), node) = (self.scene.missing, self.scene.b);
        let host = host(cluster, node);
        let Ok(order) = logs.look(&cluster.world, host, node, SEGMENT_BYTES, &BTreeSet::new()) else {
            return false;
        };
        if from >= to {
            return false;
        }
        let known: Vec<Lsn> = order.frames.range(from..to).map(|(at, _)| *at).collect();
        let back = self.rng.below(24) as usize;
        let Some(at) = known.iter().rev().nth(back.min(known.len().saturating_sub(1))).copied() else {
            return false;
        };
        let path = PathBuf::from(format!("/data/wal/{}", LogFile::Segment(at.segment(SEGMENT_BYTES))));
        cluster.world.flip_bit(host, &path, at.offset(SEGMENT_BYTES) + 90, 2)
    }

    /// Everything is mended and everybody is up; the script begins again when the cluster is healthy.
    fn curtain(&mut self, cluster: &mut Cluster) -> Next {
        cluster.world.heal_all();
        cluster.store.mend();
        for from in 1..=3 {
            for to in 1..=3 {
                slow(cluster, from, to, None);
            }
            self.up(cluster, from);
        }
        self.look = true;
        Again(self.rng.between(20, 300))
    }

    // ---- Scripts.

    /// Two candidates draw one number. The second one's request reaches the voter when that follows the first already.
    fn duel(&mut self, cluster: &mut Cluster) -> Next {
        let (a, b, c) = (self.scene.a, self.scene.b, self.scene.c);
        match self.scene.step {
            0 => match self.cast(cluster) {
                Some(()) => Go(self.millis(50, 300)),
                None => Stay,
            },
            1 => {
                self.take_over(cluster, b, false);
                self.take_over(cluster, c, false);
                Go(0)
            }
            2 if state(cluster, c) == "Wait promoting" => {
                let delay = self.millis(300, 700);
                slow(cluster, c, a, Some(delay));
                slow(cluster, c, b, Some(delay));
                Go(0)
            }
            3 if state(cluster, c) == "Promoting" || self.waited(cluster, 2_500) => {
                slow(cluster, c, a, None);
                slow(cluster, c, b, None);
                Go(self.millis(300, 900))
            }
            4 => self.curtain(cluster),
            _ if self.waited(cluster, PATIENCE_MS) => self.curtain(cluster),
            _ => Stay,
        }
    }

    /// A voter's promise is long on its way; meanwhile the old leader still reaches the voter. With `damage` the voter
    /// dies after it answered, and the control copy that it wrote last is ruined before it comes back.
    fn late_promise(&mut self, cluster: &mut Cluster, damage: bool) -> Next {
        let (a, b, c) = (self.scene.a, self.scene.b, self.scene.c);
        match self.scene.step {
            0 => match self.cast(cluster) {
                Some(()) => Go(self.millis(50, 300)),
                None => Stay,
            },
            1 => {
                cluster.world.partition(host(cluster, a), host(cluster, c));
                self.take_over(cluster, c, false);
                Go(0)
            }
            2 if state(cluster, c) == "Wait promoting" => {
                let delay = self.millis(600, 1_300);
                slow(cluster, b, c, Some(delay));
                Go(0)
            }
            3 if !damage => Go(0),
            3 if promised(cluster, b) > self.scene.promised => Go(self.millis(20, 40)),
            4 if !damage => Go(0),
            4 => {
                self.down(cluster, b);
                // What was in flight lands meanwhile.
                Go(80)
            }
            5 if damage => {
                ruin_newest_control(cluster, b, self.rng.between(80, 180));
                self.up(cluster, b);
                Go(0)
            }
            5 => Go(0),
            6 if state(cluster, c) == "Promoting" || self.waited(cluster, 2_000) => {
                slow(cluster, b, c, None);
                Go(self.millis(300, 1_200))
            }
            7 => self.curtain(cluster),
            _ if self.waited(cluster, PATIENCE_MS) => self.curtain(cluster),
            _ => Stay,
        }
    }

    /// A primary that is cut off piles up a long tail that nobody commits; its successor commits a little and dies.
    fn long_tail(&mut self, cluster: &mut Cluster, shared: &mut Shared) -> Next {
        let (a, b, c) = (self.scene.a, self.scene.b, self.scene.c);
        match self.scene.step {
            0 => match self.cast(cluster) {
                Some(()) => Go(self.millis(50, 200)),
                None => Stay,
            },
            1 => {
                cluster.world.partition(host(cluster, a), host(cluster, b));
                cluster.world.partition(host(cluster, a), host(cluster, c));
                shared.ballast = Some(a);
                self.take_over(cluster, b, false);
                Go(0)
            }
            2 if serves(cluster, b) => Go(self.millis(50, 250)),
            3 => {
                shared.ballast = None;
                self.down(cluster, b);
                cluster.world.heal_all();
                Go(self.millis(300, 700))
            }
            4 => {
                let node = if self.rng.chance(0.7) { a } else { c };
                self.take_over(cluster, node, false);
                Go(0)
            }
            5 if serves(cluster, a) || serves(cluster, c) => Go(self.millis(100, 400)),
            6 => self.curtain(cluster),
            _ if self.waited(cluster, PATIENCE_MS) => {
                shared.ballast = None;
                self.curtain(cluster)
            }
            _ => Stay,
        }
    }

    /// A standby misses a while of writes; then the primary dies, and the laggard or the other one is asked to lead.
    fn laggard(&mut self, cluster: &mut Cluster) -> Next {
        let (a, b, c) = (self.scene.a, self.scene.b, self.scene.c);
        match self.scene.step {
            0 => match self.cast(cluster) {
                Some(()) => Go(self.millis(20, 200)),
                None => Stay,
            },
            1 => {
                cluster.world.partition(host(cluster, a), host(cluster, c));
                cluster.world.partition(host(cluster, b), host(cluster, c));
                Go(self.millis(200, 800))
            }
            2 => {
                self.down(cluster, a);
                cluster.world.heal_all();
                Go(self.millis(50, 400))
            }
            3 => {
                let node = if self.rng.chance(0.6) { c } else { b };
                self.take_over(cluster, node, false);
                Go(0)
            }
            4 if serves(cluster, b) || serves(cluster, c) => Go(self.millis(50, 400)),
            5 => self.curtain(cluster),
            _ if self.waited(cluster, PATIENCE_MS) => self.curtain(cluster),
            _ => Stay,
        }
    }

    /// Standbys hear of commits late: the successor of a dead primary holds writes of which it does not know that they
    /// were acknowledged.
    fn slow_news(&mut self, cluster: &mut Cluster) -> Next {
        let (a, b, c) = (self.scene.a, self.scene.b, self.scene.c);
        match self.scene.step {
            0 => match self.cast(cluster) {
                Some(()) => Go(0),
                None => Stay,
            },
            1 => {
                let delay = self.millis(15, 60);
                slow(cluster, a, b, Some(delay));
                slow(cluster, a, c, Some(delay));
                Go(self.millis(150, 500))
            }
            2 => {
                self.down(cluster, a);
                Go(self.millis(60, 200))
            }
            3 => {
                self.take_over(cluster, b, false);
                Go(0)
            }
            4 if serves(cluster, b) || serves(cluster, c) => Go(self.millis(100, 500)),
            5 => self.curtain(cluster),
            _ if self.waited(cluster, PATIENCE_MS) => self.curtain(cluster),
            _ => Stay,
        }
    }

    /// An operator makes a laggard lead alone, with the loss stated and accepted. What the others know as committed
    /// must stay on their disks all the same.
    fn forced_alone(&mut self, cluster: &mut Cluster) -> Next {
        let (a, b, c) = (self.scene.a, self.scene.b, self.scene.c);
        match self.scene.step {
            0 => match self.cast(cluster) {
                Some(()) => Go(self.millis(50, 300)),
                None => Stay,
            },
            1 => {
                cluster.world.partition(host(cluster, a), host(cluster, c));
                cluster.world.partition(host(cluster, b), host(cluster, c));
                Go(self.millis(200, 600))
            }
            2 => {
                self.take_over(cluster, c, true);
                Go(0)
            }
            3 if serves(cluster, c) => Go(self.millis(50, 400)),
            4 => {
                self.look = true;
                Go(LOOK_MS)
            }
            5 => {
                cluster.world.heal_all();
                Go(self.millis(800, 1_500))
            }
            6 => {
                self.look = true;
                Go(0)
            }
            7 => Stay,
            _ if self.waited(cluster, PATIENCE_MS) => self.curtain(cluster),
            _ => Stay,
        }
    }

    /// A voter's disk loses a frame that it acknowledged, with good frames behind it; then only that voter and a
    /// laggard are left.
    fn damaged_log(&mut self, cluster: &mut Cluster, logs: &mut Logs) -> Next {
        let (a, b, c) = (self.scene.a, self.scene.b, self.scene.c);
        match self.scene.step {
            0 => match self.cast(cluster) {
                Some(()) => Go(self.millis(20, 200)),
                None => Stay,
            },
            1 => {
                self.cut_off(cluster, c);
                Go(self.millis(200, 500))
            }
            2 => {
                // What is flushed now has a mark above it when the node dies.
                self.scene.missing.1 = place(cluster, b, "flushed_lsn");
                Go(MARKED_MS)
            }
            3 => {
                self.look = true;
                Go(LOOK_MS)
            }
            4 => {
                self.down(cluster, a);
                self.down(cluster, b);
                cluster.world.heal_all();
                Go(80)
            }
            5 => {
                if self.ruin_frame(cluster, logs) {
                    logs.forget(b);
                }
                self.up(cluster, b);
                Go(self.millis(100, 300))
            }
            6 => {
                let node = if self.rng.chance(0.5) { b } else { c };
                self.take_over(cluster, node, false);
                Go(0)
            }
            7 if serves(cluster, b) || serves(cluster, c) || self.waited(cluster, 3_500) => {
                Go(self.millis(50, 200))
            }
            8 => {
                self.curtain(cluster);
                Go(self.millis(1_000, 1_500))
            }
            9 => {
                if !(1..=3).any(|node| serves(cluster, node)) {
                    self.take_over(cluster, a, false);
                }
                Again(500)
            }
            _ => Stay,
        }
    }

    /// A standby misses writes that the primary and the other standby acknowledge; that one loses its disk and comes
    /// back under its old number, and only those two are left.
    pub(super) fn wiped_voter(&mut self, cluster: &mut Cluster, logs: &mut Logs) -> u64 {
        let (a, b, c) = (self.scene.a, self.scene.b, self.scene.c);
        let next = match self.scene.step {
            0 => match self.cast(cluster) {
                Some(()) => Go(self.millis(20, 200)),
                None => Stay,
            },
            1 => {
                self.cut_off(cluster, c);
                Go(self.millis(100, 400))
            }
            2 => {
                self.look = true;
                Go(LOOK_MS)
            }
            3 => {
                self.down(cluster, a);
                self.replace_disk(cluster, logs, b);
                cluster.world.heal_all();
                Go(self.millis(50, 300))
            }
            4 => {
                let node = if self.rng.chance(0.8) { c } else { b };
                self.take_over(cluster, node, false);
                Go(0)
            }
            5 if serves(cluster, b) || serves(cluster, c) || self.waited(cluster, 2_500) => {
                Go(self.millis(50, 200))
            }
            6 => {
                self.curtain(cluster);
                self.plot = false;
                Go(self.millis(300, 1_000))
            }
            _ => Stay,
        };
        self.turn_page(cluster, next)
    }

    /// Wall clocks jump while keys expire and primaries change.
    fn expiry(&mut self, cluster: &mut Cluster) -> Next {
        let node = self.rng.between(1, 3) as u16;
        let by = self.rng.between(0, 4_000) as i64 - 2_000;
        cluster.world.jump_wall(host(cluster, node), by);
        if self.rng.chance(0.3) {
            let next = self.rng.between(1, 3) as u16;
            self.take_over(cluster, next, false);
        }
        Again(self.millis(150, 600))
    }
}

fn host(cluster: &Cluster, node: u16) -> HostId {
    cluster.machines[usize::from(node) - 1].host
}

fn state(cluster: &mut Cluster, node: u16) -> String {
    cluster.status(node).and_then(|row| Some(row["state"].as_str()?.to_string())).unwrap_or_default()
}

fn serves(cluster: &mut Cluster, node: u16) -> bool {
    cluster.status(node).is_some_and(|row| row["role"] == "Primary" && row["state"] == "Normal")
}

/// Delays everything from one node to another by so many milliseconds, or no longer.
fn slow(cluster: &Cluster, from: u16, to: u16, millis: Option<u64>) {
    if from != to {
        let fault = millis.map_or(LinkFault::NONE, |ms| LinkFault::slow(Span::millis(ms, ms + ms / 8)));
        cluster.world.set_link(host(cluster, from), host(cluster, to), fault);
    }
}

fn control(cluster: &Cluster, node: u16, copy: usize) -> Option<ControlState> {
    ControlState::decode(&cluster.world.file(host(cluster, node), Path::new(CONTROL[copy]))?).ok()
}

/// The highest term number that a node's disk says it promised.
fn promised(cluster: &Cluster, node: u16) -> u64 {
    let number = |copy| control(cluster, node, copy).map_or(0, |state| state.promised.number);
    number(0).max(number(1))
}

/// Ruins the control copy that was written last, as long as the other one can be read: one copy may always decay.
fn ruin_newest_control(cluster: &Cluster, node: u16, byte: u64) {
    if let (Some(first), Some(second)) = (control(cluster, node, 0), control(cluster, node, 1)) {
        let newest = usize::from(second.generation > first.generation);
        cluster.world.flip_bit(host(cluster, node), Path::new(CONTROL[newest]), byte, 3);
    }
}

fn place(cluster: &mut Cluster, node: u16, name: &str) -> Lsn {
    Lsn(cluster.status(node).and_then(|row| row[name].as_u64()).unwrap_or(0))
}

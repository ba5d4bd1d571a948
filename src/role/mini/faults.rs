//! Crashes, wiped disks, partitions, operators, and the calm after them.

use std::time::Duration;

use super::{Event, MS, World, fresh};
use crate::base::{Incarnation, Lsn, NodeId};
use crate::role::done::OpMark;
use crate::role::input::{Command, Input, PolicyChange};
use crate::role::machine::RoleMachine;
use crate::role::policy::{Generation, SyncPolicy};
use crate::role::state::State;

impl World {
    pub(super) fn crash(&mut self, node: usize) {
        if self.nodes[node].machine.take().is_none() {
            return;
        }
        let keep = {
            let n = &self.nodes[node];
            self.rng.between(n.flushed as u64, n.log.len() as u64) as usize
        };
        let tear = self.rng.chance(0.5);
        let decay = self.rng.chance(0.3).then(|| self.rng.below(2) as usize);
        let n = &mut self.nodes[node];
        n.log.truncate(keep);
        n.flushed = keep;
        match n.writing.front().map(|(_, copies)| copies[0]) {
            Some(copy) if tear => n.copies[copy as usize].truncate(4096),
            Some(_) => {}
            // At rest either copy may decay, as long as the other one is there.
            None => {
                if let Some(copy) = decay {
                    n.copies[copy][100] ^= 1;
                }
            }
        }
        n.writing.clear();
        n.acks.clear();
        n.waiting.clear();
        (n.pulling, n.serving, n.held, n.led, n.session) = (None, false, false, None, None);
        n.stalled = false;
        for peer in (0..self.nodes.len()).filter(|peer| *peer != node) {
            if !self.cut[node][peer] {
                self.soon(Event::PeerDown { node: peer, peer: node, process_gone: true });
            }
        }
    }

    /// The disk hangs, and the node notices; or it answers again.
    pub(super) fn stall(&mut self, node: usize, stalled: bool) {
        self.nodes[node].stalled = stalled;
        self.input(node, Input::DiskStalled { stalled });
    }

    /// The disk is lost and the folder made again under the same id.
    pub(super) fn wipe(&mut self, node: usize) {
        self.crash(node);
        let members: Vec<NodeId> = (1..=self.plan.nodes).map(NodeId).collect();
        let policy = Generation::seed(&members, &SyncPolicy::Auto).expect("a small cluster has defaults");
        let life = Incarnation(self.rng.next_u128());
        let n = &mut self.nodes[node];
        n.life = life;
        let control = fresh(n.id, life, &policy);
        n.copies = [control.encode(), control.encode()];
        n.log.clear();
        (n.flushed, n.committed) = (0, Lsn::ZERO);
    }

    pub(super) fn begin_faults(&mut self) {
        self.calm = false;
        self.at(50, Event::Fault);
    }

    pub(super) fn fault(&mut self) {
        let node = self.rng.below(self.nodes.len() as u64) as usize;
        if self.plan.retries && self.rng.chance(0.4) {
            self.ask_again();
        }
        match self.rng.below(100) {
            0..24 => {
                self.crash(node);
                let pause = self.rng.between(10, 2500);
                self.at(pause, Event::Restart { node });
            }
            24..40 => {
                let isolate = self.rng.chance(0.5);
                for a in 0..self.nodes.len() {
                    for b in 0..self.nodes.len() {
                        let cut = if isolate { (a == node) != (b == node) } else { self.rng.chance(0.3) };
                        self.cut[a][b] = a != b && cut;
                    }
                }
            }
            40..53 => {
                self.slow = None;
                self.heal();
            }
            53..56 if self.nodes[node].machine.is_some() && !self.nodes[node].stalled => {
                self.stall(node, true);
                let (run, pause) = (self.nodes[node].run, self.rng.between(20, 4000));
                self.at(pause, Event::Stall { node, run, stalled: false });
            }
            53..56 => {}
            56..60 => self.loss = [0.0, 0.02, 0.2][self.rng.below(3) as usize],
            60..64 if self.plan.wipes && !self.wiped && self.nodes.len() > 2 && self.acked > 0 => {
                self.wiped = true;
                self.wipe(node);
                let pause = self.rng.between(10, 500);
                self.at(pause, Event::Restart { node });
            }
            64..72 => self.take_over(),
            _ => {
                let force = self.rng.chance(0.3);
                let alone = self.plan.lossy && self.rng.chance(0.3);
                if self.plan.changes && self.rng.chance(0.5) {
                    return self.change_policy();
                }
                let command = if !self.plan.duels && self.rng.chance(0.4) {
                    let to = self.rng.chance(0.5).then(|| self.nodes[node].id);
                    let timeout = Duration::from_millis(self.rng.between(50, 3000));
                    Command::Switchover { to, dry_run: self.rng.chance(0.1), timeout }
                } else if self.rng.chance(0.3) {
                    Command::RequestPrimary { alone, force }
                } else {
                    Command::Failover { dry_run: self.rng.chance(0.1), alone, force }
                };
                let node = self.rng.below(self.nodes.len() as u64) as usize;
                if self.nodes[node].machine.is_some() {
                    self.ask(node, command.clone());
                }
                let rival = (node + 1) % self.nodes.len();
                if self.plan.duels && self.nodes[rival].machine.is_some() {
                    self.command(rival, command);
                    if self.plan.late {
                        self.slow = self.rng.chance(0.5).then_some(rival);
                    }
                }
            }
        }
    }

    /// Some voters, some copies; most often what a running cluster would be asked for.
    fn change_policy(&mut self) {
        let leader = self.nodes.iter().position(|n| n.machine.as_ref().is_some_and(RoleMachine::serving));
        let Some(node) = leader else { return };
        let mut voters = vec![self.nodes[node].id];
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            if self.rng.chance(0.6) {
                voters.push(self.nodes[other].id);
            }
        }
        // With one copy only, a dead disk loses what was acknowledged: that is asked for when losses are looked for.
        let most = voters.len() as u64 - 1;
        let k = self.rng.between(most.min(1), most.min(2)) as u8;
        let wanted = PolicyChange {
            expected_generation: 0,
            voters,
            k,
            first: self.rng.chance(0.2),
            force: self.rng.chance(0.1),
            dry_run: self.rng.chance(0.05),
        };
        self.ask(node, Command::ChangePolicy(wanted));
        if self.rng.chance(0.4) {
            self.crash(node);
            let pause = self.rng.between(500, 3000);
            self.at(pause, Event::Restart { node });
        }
    }

    /// The leader is cut off from everybody, and an operator forces its replacement at once.
    fn take_over(&mut self) {
        let leader = self.nodes.iter().position(|n| n.machine.as_ref().is_some_and(RoleMachine::serving));
        let Some(leader) = leader.filter(|_| self.nodes.len() > 2) else { return };
        for peer in (0..self.nodes.len()).filter(|peer| *peer != leader) {
            (self.cut[leader][peer], self.cut[peer][leader]) = (true, true);
        }
        let node = (leader + 1 + self.rng.below(self.nodes.len() as u64 - 1) as usize) % self.nodes.len();
        if self.nodes[node].machine.is_some() {
            self.ask(node, Command::Failover { dry_run: false, alone: false, force: true });
        }
    }

    /// Asks, under an op id of its own where retries are allowed.
    fn ask(&mut self, node: usize, command: Command) {
        let dry = match &command {
            Command::Failover { dry_run, .. } | Command::Switchover { dry_run, .. } => *dry_run,
            Command::ChangePolicy(wanted) => wanted.dry_run,
            _ => false,
        };
        if !self.plan.retries || dry {
            self.command(node, command);
            return;
        }
        let mark = OpMark { id: self.rng.next_u128(), request: 0 };
        self.asked_for.push_back((mark, command.clone()));
        if self.asked_for.len() > 4 {
            self.asked_for.pop_front();
        }
        self.marked(node, Some(mark), command);
        if self.rng.chance(0.3) {
            self.ask_again();
        }
    }

    /// Somebody lost an answer, or the patience.
    fn ask_again(&mut self) {
        let (node, which) = (self.rng.below(self.nodes.len() as u64) as usize, self.rng.below(4) as usize);
        if let Some((mark, command)) = self.asked_for.get(which).cloned()
            && self.nodes[node].machine.is_some()
        {
            self.marked(node, Some(mark), command);
        }
    }

    pub(super) fn heal(&mut self) {
        for a in 0..self.nodes.len() {
            for b in 0..self.nodes.len() {
                if std::mem::take(&mut self.cut[a][b]) {
                    self.soon(Event::PeerUp { node: a, peer: b });
                }
            }
        }
    }

    /// Faults stop: everybody is up and reachable, and an operator asks until somebody leads. True when a leader serves,
    /// commits a new write and every node has it.
    pub(super) fn settles(&mut self, within_ms: u64) -> bool {
        self.calm = true;
        (self.loss, self.slow) = (0.0, None);
        self.heal();
        (0..self.nodes.len()).for_each(|node| self.event(Event::Restart { node }));
        for node in 0..self.nodes.len() {
            if self.nodes[node].stalled {
                self.stall(node, false);
            }
        }
        let (begin, mut acked) = (self.now.0 / MS, usize::MAX);
        for round in 0..within_ms / 1000 {
            let leader = self.nodes.iter().position(|n| n.machine.as_ref().is_some_and(RoleMachine::serving));
            if leader.is_none() && round % 3 == 2 {
                let node = self.rng.below(self.nodes.len() as u64) as usize;
                self.command(node, Command::Failover { dry_run: false, alone: false, force: false });
            }
            self.run_until(begin + (round + 1) * 1000);
            self.check_answers();
            if leader.is_some() && self.acked > acked && self.converged(acked) {
                return true;
            }
            acked = acked.min(self.acked);
        }
        false
    }

    pub(super) fn converged(&self, end: usize) -> bool {
        let first = &self.nodes[0].log;
        self.nodes.iter().all(|n| {
            let shown = n.machine.as_ref().is_some_and(|machine| machine.state() == State::Normal);
            shown && n.committed.0 as usize >= end && n.log.len() >= end && n.log[..end] == first[..end]
        })
    }
}

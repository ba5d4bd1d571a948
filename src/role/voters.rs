//! What a primary does about its voters by itself: takes one out that was silent for too long, gives it its vote back,
//! and, with a control store, asks for fewer copies while too few voters live (`protocol` 4.3, 4.4).

use std::time::Duration;

use super::control::DataStatus;
use super::input::{Effect, Evidence, PolicyChange};
use super::machine::{Phase, RoleMachine};
use super::policy::Generation;
use crate::base::limits::VOTERS_MAX;
use crate::base::{Mono, NodeId};

/// How often a leader looks for voters that are silent, and for absent ones that are back.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A change that is due.
struct Due {
    voters: Vec<NodeId>,
    absent: Vec<NodeId>,
    k: u8,
    full_k: u8,
    why: Evidence,
}

impl RoleMachine {
    /// One change at a time.
    pub(super) fn look_at_voters(&mut self, now: Mono, out: &mut Vec<Effect>) {
        if now < self.voters_at || (self.config.voter_timeout.is_none() && !self.config.store) {
            return;
        }
        let leads = matches!(&self.phase, Phase::Leading(l) if l.served && !l.held && !l.suspended);
        if !leads || self.control.status != DataStatus::Whole || self.control.policy.is_seed() {
            return;
        }
        self.voters_at = now + LOOK_EVERY;
        // While a generation waits for its commit, nothing but one that needs no such commit can help.
        let policy = self.newest().clone();
        let waits = !self.control.pending.is_empty();
        // Silence counts from when this leader first looked.
        for member in policy.voters.iter().filter(|member| member.node != self.control.node) {
            self.voter_heard.entry(member.node).or_insert(now);
        }
        let due = self.too_few(now, &policy).or_else(|| {
            let other = || self.silent_voter(now, &policy).or_else(|| self.returned(now, &policy));
            if waits { None } else { other().or_else(|| self.unmarked(&policy)) }
        });
        let Some(due) = due else { return };
        let wanted = PolicyChange {
            expected_generation: policy.number,
            voters: due.voters,
            k: due.k,
            first: policy.first,
            force: false,
            dry_run: false,
        };
        // Busy or not possible now: looked at again soon.
        if self.begin_change(now, None, wanted, (due.absent, due.full_k)).is_ok() {
            out.push(Effect::Evidence(due.why));
        }
    }

    fn silence(&self, now: Mono, node: NodeId) -> Duration {
        self.voter_heard.get(&node).map_or(Duration::ZERO, |at| now.since(*at))
    }

    fn others(&self, policy: &Generation) -> Vec<NodeId> {
        policy.voters.iter().map(|voter| voter.node).filter(|node| *node != self.control.node).collect()
    }

    fn lives_now(&self, now: Mono, node: NodeId) -> bool {
        self.voter_heard.contains_key(&node)
            && self.silence(now, node) < self.config.lease * 2
            && !self.gone.contains(&node)
    }

    /// No commit was possible for as long as the configuration waits for one: those that live go on by themselves.
    fn too_few(&self, now: Mono, policy: &Generation) -> Option<Due> {
        let patience = self.config.degrade.filter(|_| self.store_decides())?;
        let others = self.others(policy);
        let (live, dead): (Vec<NodeId>, Vec<NodeId>) =
            others.iter().copied().partition(|node| self.lives_now(now, *node));
        let k = usize::from(policy.k);
        if live.len() >= k {
            return None;
        }
        let mut silence: Vec<Duration> = others.iter().map(|node| self.silence(now, *node)).collect();
        silence.sort_unstable();
        // The voter whose return would make commits possible again.
        let missing = silence[k - 1];
        if missing < patience {
            return None;
        }
        let lowered = live.len() as u8;
        let why = Evidence::new("too few voters: asking for fewer copies")
            .with("copies besides the own", format!("{k} -> {lowered}"))
            .with("silent", dead.iter().map(NodeId::to_string).collect::<Vec<_>>().join(","))
            .with("for ms", missing.as_millis());
        let me = self.control.node;
        let stays = |node: &NodeId| *node == me || live.contains(node);
        let voters = policy.voters.iter().map(|voter| voter.node).filter(stays).collect();
        let absent = policy.absent.iter().copied().chain(dead).collect();
        Some(Due { voters, absent, k: lowered, full_k: policy.full_k.max(policy.k), why })
    }

    /// Out with the one that is silent longest, as long as the rest can commit without it.
    fn silent_voter(&self, now: Mono, policy: &Generation) -> Option<Due> {
        let timeout = self.config.voter_timeout?;
        let others = self.others(policy);
        let live = 1 + others.iter().filter(|n| self.silence(now, **n) < self.config.lease * 2).count();
        let silent = |node: &NodeId| self.silence(now, *node);
        let dead = others.iter().copied().filter(|node| silent(node) >= timeout).max_by_key(silent)?;
        let needed = usize::from(policy.k) + 1;
        // Every change needs a commit of the old voters too.
        if live < needed || policy.voters.len() <= needed {
            return None;
        }
        let voters = policy.voters.iter().map(|voter| voter.node).filter(|node| *node != dead).collect();
        let absent = policy.absent.iter().copied().chain([dead]).collect();
        let why = Evidence::new("a silent voter loses its vote").with("node", dead);
        Some(Due { voters, absent, k: policy.k, full_k: policy.full_k, why })
    }

    /// In with one that is back; with it, the copies that were lowered for its sake.
    fn returned(&self, now: Mono, policy: &Generation) -> Option<Due> {
        let room = policy.voters.len() < VOTERS_MAX;
        let back = policy.absent.iter().copied().find(|node| room && self.lives_now(now, *node));
        let mut voters: Vec<NodeId> = policy.voters.iter().map(|voter| voter.node).collect();
        voters.extend(back);
        let absent: Vec<NodeId> = policy.absent.iter().copied().filter(|node| Some(*node) != back).collect();
        let full = policy.full_k.max(policy.k);
        let most = if absent.is_empty() { full } else { full.min(voters.len() as u8 / 2) };
        let k = most.min(voters.len() as u8 - 1).max(policy.k);
        if back.is_none() && (policy.full_k == 0 || k == policy.k) {
            return None;
        }
        let why = Evidence::new("a voter is back")
            .with("node", back.map_or(String::new(), |node| node.to_string()))
            .with("copies besides the own", format!("{} -> {k}", policy.k));
        Some(Due { voters, absent, k, full_k: full, why })
    }

    /// The policy does not say yet that the store decides, although it does.
    fn unmarked(&self, policy: &Generation) -> Option<Due> {
        if !self.config.store || policy.store || !self.store_agrees() {
            return None;
        }
        let voters = policy.voters.iter().map(|voter| voter.node).collect();
        let why = Evidence::new("the control store decides from now on");
        Some(Due { voters, absent: policy.absent.clone(), k: policy.k, full_k: policy.full_k, why })
    }
}

//! What must hold at every step.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::world::{Entry, World};
use crate::base::Term;
use crate::role::policy::Generation;

/// What was seen so far.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    pub committed: Vec<(Term, u64)>,
    /// The term in which each of these was committed, at the latest.
    committed_in: Vec<Term>,
    pub acked: usize,
    /// The newest term in which something was committed.
    newest: Term,
    leaders: BTreeMap<Term, (usize, u64)>,
    contents: BTreeMap<(Term, usize), u64>,
    /// Committed generations by their numbers.
    policies: BTreeMap<u64, Generation>,
}

impl Hash for Truth {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.committed, &self.committed_in, self.acked, self.newest, &self.leaders).hash(state);
        self.contents.hash(state);
        (self.policies.len(), self.policies.keys().next_back()).hash(state);
    }
}

impl World {
    fn remember(&mut self) -> &mut Truth {
        Arc::make_mut(&mut self.truth)
    }

    /// An entry enters a log: (term, LSN) names one content for ever.
    pub(super) fn take(&mut self, node: usize, entry: Entry) {
        let at = self.nodes[node].log.len();
        let first = match self.truth.contents.get(&(entry.term, at)) {
            Some(first) => *first,
            None => *self.remember().contents.entry((entry.term, at)).or_insert(entry.payload),
        };
        if first != entry.payload {
            self.fail(format!("node {} holds a second content of {:?} at {at}", node + 1, entry.term));
        }
        self.node(node).log.push(entry);
    }

    /// Replies leave.
    pub(super) fn release(&mut self, node: usize) {
        let n = &self.nodes[node];
        if !n.serving || n.stopped || n.waiting.is_empty() {
            return;
        }
        let committed = n.committed.0 as usize;
        let acked = n.waiting.iter().copied().filter(|end| *end <= committed).max();
        self.node(node).waiting.retain(|end| *end > committed);
        if let Some(acked) = acked.filter(|acked| *acked > self.truth.acked) {
            self.remember().acked = acked;
        }
    }

    /// What one node knows to be committed must be what every node ever knew.
    pub(super) fn note_commit(&mut self, node: usize) {
        if self.story.lossy {
            return;
        }
        let n = &self.nodes[node];
        let machine = n.machine.as_ref().expect("it is up");
        let followed = machine.following().map(|(_, term)| term);
        let within = machine.leading().or(followed).unwrap_or(machine.control().promised);
        let end = (n.committed.0 as usize).min(n.log.len());
        let own: Vec<_> = n.log[..end].iter().map(|entry| (entry.term, entry.payload)).collect();
        let common = own.iter().zip(&self.truth.committed).take_while(|(a, b)| a == b).count();
        if common < own.len().min(self.truth.committed.len()) {
            let (first, second) = (self.truth.committed[common], own[common]);
            self.fail(format!(
                "node {} commits {second:?} at {common}, where {first:?} was committed",
                node + 1
            ));
        } else if own.len() > common || within > self.truth.newest {
            let leads = machine.leading().is_some();
            let truth = self.remember();
            for own in &own[common..] {
                truth.committed.push(*own);
                truth.committed_in.push(within.max(own.0));
            }
            if leads {
                truth.newest = truth.newest.max(within);
            }
        }
    }

    pub(super) fn note_leader(&mut self, node: usize, term: Term) {
        let run = self.nodes[node].run;
        let first = *self.remember().leaders.entry(term).or_insert((node, run));
        if first != (node, run) {
            self.fail(format!("term {term:?} is led by node {} twice or by two nodes", node + 1));
        }
        self.check_started(node, term);
    }

    /// One number, one committed generation.
    pub(super) fn note_policy(&mut self, node: usize) {
        let Some(machine) = &self.nodes[node].machine else { return };
        let policy = &machine.control().policy;
        let known = self.truth.policies.get(&policy.number);
        if known == Some(policy) || policy.is_seed() || self.story.lossy {
            return;
        }
        let (policy, first) = (policy.clone(), known.is_none());
        if !first {
            self.fail(format!("node {} knows a second committed generation {}", node + 1, policy.number));
        }
        self.remember().policies.insert(policy.number, policy);
    }

    /// A promise leaves: never one below an earlier one of the same folder.
    pub(super) fn note_promise(&mut self, node: usize, term: Term) {
        let told = self.nodes[node].told;
        if term < told {
            self.fail(format!("node {} promises {term:?} after it promised {told:?}", node + 1));
        }
        self.node(node).told = told.max(term);
    }

    /// No ack of an older session leaves behind a promise.
    pub(super) fn check_ack(&mut self, node: usize, term: Term) {
        let told = self.nodes[node].told;
        if term < told {
            self.fail(format!("node {} acknowledges in {term:?} after it promised {told:?}", node + 1));
        }
    }

    pub(super) fn check_complete(&mut self, node: usize) {
        let log = &self.nodes[node].log;
        let lost = self.truth.committed.iter().enumerate().find(|(at, committed)| {
            log.get(*at).map(|entry| (entry.term, entry.payload)) != Some(**committed)
        });
        if let Some((at, _)) = lost {
            self.fail(format!("node {} serves without the committed entry at {at}", node + 1));
        }
    }

    /// Whoever starts a term holds everything that was committed in earlier ones, whether it ever serves or not.
    fn check_started(&mut self, node: usize, term: Term) {
        let log = &self.nodes[node].log;
        let truth = &self.truth;
        let earlier =
            truth.committed.iter().zip(&truth.committed_in).enumerate().filter(|(_, c)| *c.1 < term);
        let lost = earlier.into_iter().find(|(at, (committed, _))| {
            log.get(*at).map(|entry| (entry.term, entry.payload)) != Some(**committed)
        });
        if let Some((at, _)) = lost.filter(|_| !self.story.lossy) {
            self.fail(format!("node {} starts {term:?} without the committed entry at {at}", node + 1));
        }
    }

    /// Whoever may answer a read answers with everything that was acknowledged, and nobody has committed anything in a
    /// later term.
    pub(super) fn look(&mut self) {
        if self.story.lossy {
            return;
        }
        for node in 0..self.nodes.len() {
            let n = &self.nodes[node];
            let Some(machine) = n.machine.as_ref().filter(|_| n.serving && !n.stopped) else { continue };
            if !machine.may_read(self.now) {
                continue;
            }
            let (acked, newest) = (self.truth.acked, self.truth.newest);
            let term = machine.leading().unwrap_or(Term::NONE);
            if (n.committed.0 as usize) < acked {
                let committed = n.committed;
                self.fail(format!("node {} reads at {committed} after {acked} was acknowledged", node + 1));
            } else if term < newest {
                let text = format!("node {} reads in {term:?} after {newest:?} has committed", node + 1);
                self.fail(text);
            }
        }
    }
}

//! What must hold at every moment, and what must hold again once the faults stop.

use super::World;
use crate::base::Term;
use crate::role::done::OpRecord;

impl World {
    /// Replies leave.
    pub(super) fn release(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        if !n.serving || n.stopped {
            return;
        }
        let committed = n.committed.0 as usize;
        n.waiting.retain(|end| {
            if *end <= committed {
                self.acked = self.acked.max(*end);
            }
            *end > committed
        });
    }

    /// What one node knows to be committed must be what every node ever knew.
    pub(super) fn note_commit(&mut self, node: usize) {
        if self.plan.lossy {
            return;
        }
        let end = (self.nodes[node].committed.0 as usize).min(self.nodes[node].log.len());
        let within = self.nodes[node].machine.as_ref().map(|machine| {
            let followed = machine.following().map(|(_, term)| term);
            machine.leading().or(followed).unwrap_or(machine.control().promised)
        });
        for at in 0..end {
            let own = (self.nodes[node].log[at].term, self.nodes[node].log[at].payload);
            match self.committed.get(at).copied() {
                Some(first) if first != own => {
                    self.fail(format!(
                        "node {} commits {own:?} at {at}, where {first:?} was committed",
                        node + 1
                    ));
                    return;
                }
                Some(_) => {}
                None => {
                    self.committed.push(own);
                    self.committed_in.push(within.unwrap_or(own.0).max(own.0));
                    let op = self.nodes[node].log[at].op.as_deref().and_then(OpRecord::decode);
                    if let Some(op) = op.filter(|op| !self.deeds.insert(op.mark.id)) {
                        self.fail(format!("an op is carried out twice: {op:?}"));
                        return;
                    }
                }
            }
        }
    }

    pub(super) fn check_complete(&mut self, node: usize) {
        let log = &self.nodes[node].log;
        let lost = self.committed.iter().enumerate().find(|(at, committed)| {
            log.get(*at).map(|entry| (entry.term, entry.payload)) != Some(**committed)
        });
        if let Some((at, _)) = lost {
            self.fail(format!("node {} serves without the committed entry at {at}", node + 1));
        }
    }

    /// Whoever starts a term holds everything that was committed in earlier ones, whether it ever serves or not.
    pub(super) fn check_started(&mut self, node: usize, term: Term) {
        let log = &self.nodes[node].log;
        let earlier = self.committed.iter().zip(&self.committed_in).enumerate().filter(|(_, c)| *c.1 < term);
        let lost = earlier.into_iter().find(|(at, (committed, _))| {
            log.get(*at).map(|entry| (entry.term, entry.payload)) != Some(**committed)
        });
        if let Some((at, _)) = lost.filter(|_| !self.plan.lossy) {
            self.fail(format!("node {} starts {term:?} without the committed entry at {at}", node + 1));
        }
    }

    pub(super) fn check_read(&mut self, node: usize) {
        let n = &self.nodes[node];
        let may = n.machine.as_ref().is_some_and(|machine| machine.may_read(self.now));
        if may && n.serving && !n.stopped && !self.plan.lossy && (n.committed.0 as usize) < self.acked {
            let text =
                format!("node {} reads at {} after {} was acknowledged", node + 1, n.committed, self.acked);
            self.fail(text);
        }
    }

    /// A command is answered once, within its time, unless the process died.
    pub(super) fn check_answers(&mut self) {
        let World { asked, nodes, now, .. } = self;
        asked.retain(|_, (node, run, _)| nodes[*node].run == *run && nodes[*node].machine.is_some());
        let forgotten = asked.iter().find(|(_, (_, _, since))| now.since(*since).as_secs() > 35);
        if let Some(text) = forgotten.map(|(op, asked)| format!("command {op} is forgotten: {asked:?}")) {
            self.fail(text);
        }
    }
}

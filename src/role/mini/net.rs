//! What the nodes of the mini cluster do with sessions, frames, acks and pulls.

use super::{Entry, Event, Message, World};
use crate::base::{FlushedLsn, Incarnation, Lsn, Mono, Term};
use crate::role::input::Input;
use crate::role::machine::{RoleMachine, Verdict};
use crate::role::message::RoleMessage;

impl World {
    pub(super) fn send(&mut self, from: usize, to: usize, message: Message) {
        let life = self.nodes[from].life;
        if self.cut[from][to] || self.rng.chance(self.loss) {
            return;
        }
        if self.rng.chance(self.loss / 2.0) {
            self.soon(Event::Deliver { to, from, life, message: message.clone() });
        }
        let event = Event::Deliver { to, from, life, message };
        if self.slow == Some(from) {
            let ms = self.rng.between(300, 700);
            return self.at(ms, event);
        }
        self.soon(event);
    }

    /// A leader offers its session and everything the peer has not acknowledged.
    pub(super) fn stream(&mut self, node: usize, peer: usize) {
        let (n, p) = (&self.nodes[node], &self.nodes[peer]);
        let Some(term) = n.machine.as_ref().and_then(RoleMachine::leading) else { return };
        if n.led != Some(term) {
            return;
        }
        let start = n.acks.get(&p.id).map_or(n.log.len(), |(_, at)| at.0 as usize).min(n.log.len());
        let stop = n.log.len().min(start + 64);
        let entries = n.log[start..stop].to_vec();
        let (commit, end, sent) = (n.committed, Lsn(n.log.len() as u64), self.now);
        self.send(node, peer, Message::Data { term, start, entries, commit, end, sent });
    }

    pub(super) fn deliver(&mut self, to: usize, from: usize, life: Incarnation, message: Message) {
        let peer = self.nodes[from].id;
        match message {
            Message::Role(bytes) => {
                let message = RoleMessage::decode(&bytes).expect("the machine encodes messages");
                self.input(to, Input::Peer { from: peer, incarnation: life, message });
            }
            Message::Data { term, start, entries, commit, end, sent } => {
                self.receive(to, from, term, (start, entries, commit, end, sent));
            }
            Message::Ack { term, flushed, sent, granted } => {
                let n = &mut self.nodes[to];
                let machine = n.machine.as_ref().expect("it is up");
                if n.stopped || !machine.accepts_ack(term) {
                    return;
                }
                let entry = n.acks.entry(peer).or_insert((life, flushed));
                *entry = (life, if entry.0 == life { entry.1.max(flushed) } else { flushed });
                if granted {
                    self.input(to, Input::Granted { from: peer, incarnation: life, term, sent });
                }
                self.after_flush(to);
            }
            Message::Refused { promised } => self.input(to, Input::SessionRefused { by: peer, promised }),
            Message::Pull { term, from: at, to: end } => {
                let n = &self.nodes[to];
                let machine = n.machine.as_ref().expect("it is up");
                if machine.accepts_pull(term) == Verdict::Accept && at <= n.log.len() {
                    let entries = n.log[at..end.min(n.log.len())].to_vec();
                    self.send(to, from, Message::Pulled { term, start: at, entries });
                }
            }
            Message::Pulled { term, start, entries } => {
                let wanted =
                    self.nodes[to].pulling.as_ref().is_some_and(|p| p.term == term && p.from == peer);
                if wanted && start == self.nodes[to].log.len() {
                    self.append_received(to, entries);
                    let (run, upto) = (self.nodes[to].run, self.nodes[to].log.len());
                    self.soon(Event::Flush { node: to, run, upto });
                }
            }
        }
    }

    /// Frames that arrived at the end of this log, as far as the history allows them.
    pub(super) fn append_received(&mut self, node: usize, entries: Vec<Entry>) {
        for entry in entries {
            let at = Lsn(self.nodes[node].log.len() as u64);
            let machine = self.nodes[node].machine.as_ref().expect("it is up");
            if !machine.accepts_frame(entry.term, at) {
                return;
            }
            let (policy, op) = (entry.policy.clone(), entry.op.clone());
            self.take(node, entry);
            let end = Lsn(self.nodes[node].log.len() as u64);
            self.noted(node, (at, end), policy, op);
        }
    }

    pub(super) fn receive(
        &mut self,
        node: usize,
        from: usize,
        term: Term,
        (start, entries, commit, end, sent): (usize, Vec<Entry>, Lsn, Lsn, Mono),
    ) {
        let leader = self.nodes[from].id;
        let n = &mut self.nodes[node];
        let machine = n.machine.as_mut().expect("it is up");
        match machine.accepts_session(leader, term) {
            Verdict::Accept if !n.stopped => {}
            Verdict::Refuse(promised) => {
                self.send(node, from, Message::Refused { promised });
                return;
            }
            _ => return,
        }
        n.session = Some((leader, term));
        let granted = machine.grant(self.now, leader, term, sent);
        let have = n.log.len();
        if start <= have {
            for (i, entry) in entries.iter().enumerate().take(have - start) {
                if self.nodes[node].log[start + i] != *entry {
                    self.fail(format!("node {} differs from its leader at {}", node + 1, start + i));
                    return;
                }
            }
            self.append_received(node, entries.into_iter().skip(have - start).collect());
            let n = &mut self.nodes[node];
            n.committed = n.committed.max(commit.min(Lsn(n.log.len() as u64)));
            self.note_commit(node);
        }
        self.input(node, Input::Heartbeat { leader, term, end });
        self.input(node, Input::CommitMoved);
        let (run, upto) = (self.nodes[node].run, self.nodes[node].log.len());
        if upto > self.nodes[node].flushed {
            self.soon(Event::Flush { node, run, upto });
        }
        self.acknowledge(node, sent, granted);
    }

    pub(super) fn acknowledge(&mut self, node: usize, sent: Mono, granted: bool) {
        let n = &self.nodes[node];
        let (Some((leader, term)), Some(machine)) = (n.session, n.machine.as_ref()) else { return };
        if n.stopped || !machine.may_ack(leader, term) {
            return;
        }
        let flushed = Lsn(n.flushed as u64).min(machine.ack_limit());
        self.send(node, usize::from(leader.0) - 1, Message::Ack { term, flushed, sent, granted });
    }

    pub(super) fn pull(&mut self, node: usize) {
        let n = &self.nodes[node];
        let Some(pulling) = &n.pulling else { return };
        let (term, from, to) = (pulling.term, n.log.len(), pulling.to.0 as usize);
        let source = usize::from(pulling.from.0) - 1;
        if from < to {
            self.send(node, source, Message::Pull { term, from, to });
        }
    }

    pub(super) fn after_flush(&mut self, node: usize) {
        let n = &self.nodes[node];
        if let Some(pulling) = &n.pulling
            && n.flushed == n.log.len()
            && n.log.len() as u64 == pulling.to.0
        {
            let ticket = pulling.ticket;
            self.nodes[node].pulling = None;
            self.input(node, Input::FastForwarded { ticket, result: Ok(()) });
            return;
        }
        self.acknowledge(node, Mono(0), false);
        self.commit(node);
    }

    pub(super) fn commit(&mut self, node: usize) {
        let n = &self.nodes[node];
        let Some(machine) = &n.machine else { return };
        let Some(rule) = machine.commit_rule().filter(|_| !n.stopped && n.led == machine.leading()) else {
            return;
        };
        let acks: Vec<_> = n.acks.iter().map(|(id, (life, at))| (*id, *life, FlushedLsn(*at))).collect();
        let Some(commit) = rule.commit(FlushedLsn(Lsn(n.flushed as u64)), &acks) else { return };
        if commit > n.committed {
            self.nodes[node].committed = commit;
            self.note_commit(node);
            self.input(node, Input::CommitMoved);
        }
        self.release(node);
    }
}

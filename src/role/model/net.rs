//! What the nodes do with sessions, frames, acks and pulls.

use std::sync::Arc;

use super::world::{Channel, Entry, Event, World};
use crate::base::{FlushedLsn, Incarnation, Lsn, Mono, Term};
use crate::role::input::Input;
use crate::role::machine::{RoleMachine, Verdict};
use crate::role::message::RoleMessage;

#[derive(Clone, Debug)]
pub enum Message {
    Role(Box<RoleMessage>),
    Data { term: Term, start: usize, entries: Arc<Vec<Entry>>, commit: Lsn, end: Lsn, sent: Mono },
    Ack { term: Term, flushed: Lsn, sent: Mono, granted: bool },
    Refused { promised: Term },
    Pull { term: Term, from: usize, to: usize },
    Pulled { term: Term, start: usize, entries: Arc<Vec<Entry>> },
}

impl World {
    pub(super) fn send(&mut self, from: usize, to: usize, message: Message) {
        let life = self.nodes[from].life;
        if self.alive(to) {
            self.push(Channel::Link { from, to }, Event::Deliver { life, message });
        }
    }

    /// A leader offers its session and everything the peer has not acknowledged.
    pub(super) fn stream(&mut self, node: usize, peer: usize) {
        let (n, p) = (&self.nodes[node], &self.nodes[peer]);
        let Some(term) = n.machine.as_ref().and_then(RoleMachine::leading) else { return };
        if n.led != Some(term) {
            return;
        }
        let start = n.acks.get(&p.id).map_or(n.log.len(), |(_, at)| at.0 as usize).min(n.log.len());
        let entries = Arc::new(n.log[start..].to_vec());
        let (commit, end, sent) = (n.committed, Lsn(n.log.len() as u64), self.now);
        self.send(node, peer, Message::Data { term, start, entries, commit, end, sent });
    }

    pub(super) fn deliver(&mut self, to: usize, from: usize, life: Incarnation, message: &Message) {
        let peer = self.nodes[from].id;
        match message {
            Message::Role(message) => {
                let message = (**message).clone();
                self.input(to, Input::Peer { from: peer, incarnation: life, message });
            }
            Message::Data { term, start, entries, commit, end, sent } => {
                self.receive(to, from, *term, (*start, entries, *commit, *end, *sent));
            }
            Message::Ack { term, flushed, sent, granted } => {
                let n = self.node(to);
                let machine = n.machine.as_ref().expect("it is up");
                if n.stopped || !machine.accepts_ack(*term) {
                    return;
                }
                let first = !n.acks.contains_key(&peer);
                let entry = n.acks.entry(peer).or_insert((life, *flushed));
                *entry = (life, if entry.0 == life { entry.1.max(*flushed) } else { *flushed });
                if *granted {
                    let (term, sent) = (*term, *sent);
                    self.input(to, Input::Granted { from: peer, incarnation: life, term, sent });
                }
                self.after_flush(to);
                if first {
                    self.stream(to, from);
                }
            }
            Message::Refused { promised } => {
                self.input(to, Input::SessionRefused { by: peer, promised: *promised });
            }
            Message::Pull { term, from: at, to: end } => {
                let n = &self.nodes[to];
                let machine = n.machine.as_ref().expect("it is up");
                if machine.accepts_pull(*term) == Verdict::Accept && *at <= n.log.len() {
                    let entries = Arc::new(n.log[*at..(*end).min(n.log.len())].to_vec());
                    self.send(to, from, Message::Pulled { term: *term, start: *at, entries });
                }
            }
            Message::Pulled { term, start, entries } => {
                let pulling = self.nodes[to].pulling.as_ref();
                let wanted = pulling.is_some_and(|p| p.term == *term && p.from == peer);
                if wanted && *start == self.nodes[to].log.len() {
                    self.append_received(to, entries);
                    let upto = self.nodes[to].log.len();
                    self.push(Channel::Log(to), Event::Flush { upto });
                }
            }
        }
    }

    /// Frames that arrived at the end of this log, as far as the history allows them.
    fn append_received(&mut self, node: usize, entries: &[Entry]) {
        for entry in entries {
            let at = Lsn(self.nodes[node].log.len() as u64);
            let machine = self.nodes[node].machine.as_ref().expect("it is up");
            if !machine.accepts_frame(entry.term, at) {
                return;
            }
            self.take(node, entry.clone());
            if let Some(policy) = &entry.policy {
                let (generation, start) = (policy.0.clone(), policy.1);
                self.input(node, Input::PolicyAppended { generation, start, end: Lsn(at.0 + 1) });
            }
        }
    }

    fn receive(
        &mut self,
        node: usize,
        from: usize,
        term: Term,
        (start, entries, commit, end, sent): (usize, &[Entry], Lsn, Lsn, Mono),
    ) {
        let leader = self.nodes[from].id;
        let now = self.now;
        let n = self.node(node);
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
        let granted = machine.grant(now, leader, term, sent);
        let have = n.log.len();
        if start <= have {
            let known = entries.iter().take(have - start).enumerate();
            let differs = known.into_iter().find(|(i, entry)| n.log[start + i] != **entry);
            if let Some((i, _)) = differs {
                self.fail(format!("node {} differs from its leader at {}", node + 1, start + i));
                return;
            }
            self.append_received(node, entries.get(have - start..).unwrap_or(&[]));
            let n = self.node(node);
            n.committed = n.committed.max(commit.min(Lsn(n.log.len() as u64)));
            self.note_commit(node);
        }
        self.input(node, Input::Heartbeat { leader, term, end });
        self.input(node, Input::CommitMoved);
        let upto = self.nodes[node].log.len();
        if upto > self.nodes[node].flushed {
            self.push(Channel::Log(node), Event::Flush { upto });
        }
        self.acknowledge(node, sent, granted);
    }

    fn acknowledge(&mut self, node: usize, sent: Mono, granted: bool) {
        let n = &self.nodes[node];
        let (Some((leader, term)), Some(machine)) = (n.session, n.machine.as_ref()) else { return };
        if n.stopped || !machine.may_ack(leader, term) {
            return;
        }
        let flushed = Lsn(n.flushed as u64).min(machine.ack_limit());
        self.check_ack(node, term);
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
            self.node(node).pulling = None;
            self.input(node, Input::FastForwarded { ticket, result: Ok(()) });
            return;
        }
        self.acknowledge(node, Mono(0), false);
        self.commit(node);
    }

    fn commit(&mut self, node: usize) {
        let n = &self.nodes[node];
        let Some(machine) = &n.machine else { return };
        let Some(rule) = machine.commit_rule().filter(|_| !n.stopped && n.led == machine.leading()) else {
            return;
        };
        let acks: Vec<_> = n.acks.iter().map(|(id, (life, at))| (*id, *life, FlushedLsn(*at))).collect();
        let Some(commit) = rule.commit(FlushedLsn(Lsn(n.flushed as u64)), &acks) else { return };
        if commit > n.committed {
            self.node(node).committed = commit;
            self.note_commit(node);
            self.input(node, Input::CommitMoved);
        }
        self.release(node);
    }
}

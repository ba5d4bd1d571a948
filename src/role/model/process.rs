//! Processes: what a node does with inputs and effects, how it dies and what it finds when it starts again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::net::Message;
use super::world::{Ask, Back, Broken, Channel, Crash, Entry, Event, Image, MS, Node, Pulling, World};
use crate::base::{ClusterId, CommittedLsn, FlushedLsn, Lsn, Mono, NodeId, Term};
use crate::role::control;
use crate::role::input::{Command, CommandResult, Effect, Input, LogView, PolicyChange, TermStart};
use crate::role::machine::{RoleConfig, RoleMachine};
use crate::role::message::{PromiseAnswer, RoleMessage};
use crate::role::policy::{Generation, SyncPolicy};

/// A node that comes back later does so after this.
const AWAY: u64 = 1500 * MS;

impl World {
    pub(super) fn view(&self, node: usize) -> LogView {
        let n = &self.nodes[node];
        LogView {
            end: Lsn(n.log.len() as u64),
            last_term: n.log.last().map_or(Term::NONE, |entry| entry.term),
            flushed: FlushedLsn(Lsn(n.flushed as u64)),
            committed: CommittedLsn(n.committed),
            whole: true,
        }
    }

    pub(super) fn input(&mut self, node: usize, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let (view, now) = (self.view(node), self.now);
            let mut out = Vec::new();
            let told = self.talks.then(|| format!("{input:?}"));
            let n = self.node(node);
            let Some(machine) = n.machine.as_mut() else { return };
            machine.handle(now, &view, input, &mut out);
            self.note_policy(node);
            if let Some(told) = told.filter(|told| !out.is_empty() || told.starts_with("Command")) {
                println!("{} ms   n{}: {told:.200}", self.since(), node + 1);
                out.iter().for_each(|effect| println!("        {:.200}", format!("{effect:?}")));
            }
            for effect in out {
                inputs.extend(self.effect(node, effect));
            }
        }
    }

    pub(super) fn effect(&mut self, node: usize, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Send { to, message } => {
                if let RoleMessage::PromiseReply { term, answer: PromiseAnswer::Promised(_) } = &message {
                    self.note_promise(node, *term);
                }
                self.send(node, usize::from(to.0) - 1, Message::Role(Box::new(message)));
            }
            Effect::Persist { state } => {
                let copies = control::copies_to_write(state.generation).to_vec();
                let early = self.story.broken == Broken::SpeaksBeforeItIsDurable;
                let generation = state.generation;
                let image = Image::new(*state);
                let n = self.node(node);
                n.writing.truncate(1);
                n.writing.push_back((image, copies));
                if n.writing.len() == 1 {
                    self.push(Channel::Control(node), Event::Control);
                }
                return early.then_some(Input::Persisted { generation });
            }
            Effect::StopAcks => self.node(node).stopped = true,
            Effect::Drain { ticket } => self.push(Channel::Log(node), Event::Drain { ticket }),
            Effect::FastForward { ticket, from, term, to } => {
                self.node(node).pulling = Some(Pulling { ticket, from, term, to });
                self.pull(node);
            }
            Effect::AppendTermStart(start) => return Some(self.append_term_start(node, start)),
            Effect::Lead { term } => {
                let n = self.node(node);
                (n.stopped, n.led) = (false, Some(term));
                n.acks.clear();
                self.note_leader(node, term);
                self.after_flush(node);
            }
            Effect::Serve { .. } => {
                self.node(node).serving = true;
                self.check_complete(node);
            }
            Effect::HoldClients { .. } => {
                // What is committed is answered first.
                self.release(node);
                self.node(node).serving = false;
            }
            Effect::Demote { .. } => {
                let n = self.node(node);
                (n.serving, n.held, n.led) = (false, false, None);
                n.waiting.clear();
            }
            Effect::Follow { .. } => {
                let n = self.node(node);
                (n.stopped, n.session) = (false, None);
            }
            Effect::Unfollow => {
                let n = self.node(node);
                (n.session, n.pulling) = (None, None);
            }
            Effect::Truncate { ticket, to } => {
                let committed = self.nodes[node].committed;
                if to < committed {
                    self.fail(format!("node {} cuts to {to} below its known commit {committed}", node + 1));
                }
                self.push(Channel::Log(node), Event::Cut { ticket, to });
            }
            Effect::Reply { op, result } => self.answered(op, &result),
            Effect::Changed { .. } | Effect::Evidence(_) | Effect::Latch { .. } => {}
            Effect::HoldWrites { ticket, .. } => {
                self.node(node).held = true;
                return Some(Input::WritesHeld { ticket });
            }
            Effect::ResumeWrites => self.node(node).held = false,
            Effect::AppendPolicy { ticket, generation, op } => {
                assert_eq!(op, None, "nobody here asks under an op id");
                return Some(self.append_policy(node, ticket, &generation));
            }
            Effect::Store { ticket, request } => {
                let run = self.nodes[node].run;
                self.push(Channel::Store(node), Event::Store { run, ticket, request });
            }
        }
        None
    }

    pub(super) fn answered(&mut self, op: u64, result: &CommandResult) {
        if !self.open.remove(&op) {
            self.fail(format!("command {op} is answered twice: {result:?}"));
        }
    }

    pub(super) fn append_term_start(&mut self, node: usize, start: TermStart) -> Input {
        let at = Lsn(self.nodes[node].log.len() as u64);
        assert_eq!(start.previous_end, at);
        let policy = start.policy.map(|bytes| {
            let generation = Generation::decode(&bytes).expect("the machine encodes sound generations");
            Arc::new((generation, at))
        });
        self.append(node, start.term, policy);
        Input::TermAppended { start: at, end: Lsn(at.0 + 1) }
    }

    pub(super) fn append_policy(&mut self, node: usize, ticket: u64, bytes: &[u8]) -> Input {
        let machine = self.nodes[node].machine.as_ref().expect("it is up");
        let term = machine.leading().expect("only a leader appends a policy");
        let generation = Generation::decode(bytes).expect("the machine encodes sound generations");
        let start = Lsn(self.nodes[node].log.len() as u64);
        self.append(node, term, Some(Arc::new((generation, start))));
        Input::PolicyRecorded { ticket, start, end: Lsn(start.0 + 1) }
    }

    pub(super) fn append(&mut self, node: usize, term: Term, policy: Option<Arc<(Generation, Lsn)>>) {
        let n = self.node(node);
        n.sealed += 1;
        let (payload, commit) = (u64::from(n.id.0) * 1000 + n.sealed, n.committed);
        self.take(node, Entry { term, payload, commit, policy });
        let upto = self.nodes[node].log.len();
        self.push(Channel::Log(node), Event::Flush { upto });
    }

    /// May a client write here?
    pub(super) fn writable(&self, node: usize) -> Option<Term> {
        let n = &self.nodes[node];
        let leading = n.machine.as_ref().filter(|m| m.serving()).and_then(RoleMachine::leading);
        leading.filter(|_| n.serving && !n.stopped && !n.held && n.waiting.len() < 2)
    }

    pub(super) fn write(&mut self, node: usize) {
        let Some(term) = self.writable(node) else { return };
        self.append(node, term, None);
        let n = self.node(node);
        n.writes += 1;
        n.waiting.push(n.log.len());
        (0..self.nodes.len()).filter(|peer| *peer != node).for_each(|peer| self.stream(node, peer));
    }

    pub(super) fn control_written(&mut self, node: usize) {
        let n = self.node(node);
        let Some((image, copies)) = n.writing.front_mut() else { return };
        let copy = copies.remove(0);
        n.copies[copy as usize] = Some(image.clone());
        let generation = image.state.generation;
        let done = copies.is_empty();
        if done {
            n.writing.pop_front();
        }
        if !n.writing.is_empty() {
            self.push(Channel::Control(node), Event::Control);
        }
        if done {
            self.input(node, Input::Persisted { generation });
            self.after_flush(node);
        }
    }

    pub(super) fn ask(&mut self, node: usize, ask: Ask) {
        if !self.alive(node) {
            return;
        }
        let failover = |alone, force| Command::Failover { dry_run: false, alone, force };
        let command = match ask {
            Ask::Failover => failover(false, false),
            Ask::Forced => failover(false, true),
            Ask::Alone => failover(true, true),
            Ask::Request => Command::RequestPrimary { alone: false, force: false },
            Ask::SwitchTo(to) => Command::Switchover {
                to: Some(NodeId(to)),
                dry_run: false,
                timeout: Duration::from_millis(2000),
            },
            Ask::Policy(voters, k) => Command::ChangePolicy(PolicyChange {
                expected_generation: 0,
                voters: voters.iter().copied().map(NodeId).collect(),
                k,
                first: false,
                force: self.story.lossy,
                dry_run: false,
            }),
        };
        self.ops += 1;
        let op = self.ops;
        self.open.insert(op);
        self.input(node, Input::Command { op, mark: None, command });
    }

    pub(super) fn crash(&mut self, node: usize, crash: Crash, back: Back) {
        if !self.alive(node) {
            return;
        }
        let now = self.now;
        let n = self.node(node);
        n.machine = None;
        if crash != Crash::Keeps {
            n.log.truncate(n.flushed);
            match n.writing.front().map(|(_, copies)| copies[0]) {
                Some(copy) => n.copies[copy as usize] = None,
                // At rest either copy may decay, as long as the other one is there.
                None if crash == Crash::Decays => {
                    let number = |copy: &Option<Arc<Image>>| copy.as_ref().map_or(0, |i| i.state.generation);
                    let newest = usize::from(number(&n.copies[1]) > number(&n.copies[0]));
                    if n.copies[1 - newest].is_some() {
                        n.copies[newest] = None;
                    }
                }
                None => {}
            }
        }
        n.flushed = n.log.len();
        n.writing.clear();
        n.acks.clear();
        n.waiting.clear();
        (n.pulling, n.serving, n.held, n.led, n.session) = (None, false, false, None, None);
        n.back = match back {
            Back::Soon => Some(now),
            Back::Late => Some(Mono(now.0 + AWAY)),
        };
        // A question to the store may arrive after its process is gone.
        self.pending
            .retain(|pending| pending.channel.at() != node || matches!(*pending.event, Event::Store { .. }));
        for peer in (0..self.nodes.len()).filter(|peer| *peer != node) {
            self.push(Channel::Link { from: node, to: peer }, Event::PeerDown);
        }
    }

    /// The disk is lost and the folder made again under the same id.
    pub(super) fn wipe(&mut self, node: usize) {
        self.crash(node, Crash::Loses, Back::Soon);
        let members: Vec<NodeId> = (1..=self.story.nodes).map(NodeId).collect();
        let policy = Generation::seed(&members, &SyncPolicy::Auto).expect("a small cluster has defaults");
        let n = self.node(node);
        *n =
            Node { sealed: n.sealed, run: n.run, back: n.back, ..Node::fresh(n.id, n.life.0 + 100, &policy) };
    }

    pub(super) fn start(&mut self, node: usize) {
        let story = self.story;
        let now = self.now;
        let n = self.node(node);
        let bytes = |copy: &Option<Arc<Image>>| copy.as_ref().map(|image| image.state.encode());
        let (a, b) = (bytes(&n.copies[0]), bytes(&n.copies[1]));
        let chosen = control::choose(a.as_deref(), b.as_deref(), Some(ClusterId(1)), Some(n.id))
            .expect("one copy always survives");
        let state = chosen.state;
        // Recovery: what the history does not assign to its place is no frame.
        let valid = n.log.iter().enumerate();
        let valid = valid.take_while(|(i, e)| state.history.term_at(Lsn(*i as u64)) == Some(e.term)).count();
        n.log.truncate(valid);
        n.flushed = valid;
        let told = n.log.iter().map(|entry| entry.commit).max().unwrap_or(Lsn::ZERO);
        n.committed = told.max(state.known_committed.lsn());
        let image = Image::new(state.clone());
        n.copies = [Some(image.clone()), Some(image)];
        n.run += 1;
        n.back = None;
        let config = RoleConfig {
            peers: (1..=story.nodes).map(NodeId).filter(|id| *id != n.id).collect(),
            cascade: false,
            lease: Duration::from_millis(story.lease),
            traits: BTreeMap::new(),
            voter_timeout: None,
            store: story.store,
            degrade: None,
            seed: story.seed + u64::from(n.id.0) * 16 + n.run,
        };
        let mut machine = RoleMachine::new(config, state, now);
        match story.broken {
            Broken::ForgetsItsGrants => machine.grants.outlived(),
            Broken::OutlivesAnyTerm => machine.known_at_start = Term::NONE,
            Broken::Nothing | Broken::SpeaksBeforeItIsDurable => {}
        }
        n.machine = Some(machine);
        (n.stopped, n.serving, n.held, n.led, n.session) = (false, false, false, None, None);
        let records: Vec<_> = (n.log.iter().enumerate())
            .filter_map(|(i, e)| e.policy.clone().map(|policy| (policy, Lsn(i as u64 + 1))))
            .collect();
        for (policy, end) in records {
            let (generation, start) = (policy.0.clone(), policy.1);
            self.input(node, Input::PolicyAppended { generation, start, end });
        }
        self.input(node, Input::Tick);
        for peer in 0..self.nodes.len() {
            if peer != node && self.alive(peer) {
                self.push(Channel::Link { from: peer, to: node }, Event::PeerUp);
                self.push(Channel::Link { from: node, to: peer }, Event::PeerUp);
            }
        }
    }
}

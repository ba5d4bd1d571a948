//! A small seeded cluster of role machines over fake logs, for the tests of this room: one entry is one byte of LSN,
//! the network delays, loses and doubles, processes crash with half-written control files, and oracles watch.

mod faults;
mod net;
mod ops;
mod oracle;
mod policies;
mod store_stories;
mod stories;
mod switchovers;
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::base::{ClusterId, CommittedLsn, FlushedLsn, Incarnation, Lsn, Mono, NodeId, Prng, Term};
use crate::role::control::{self, ControlCopy, ControlState, DataStatus};
use crate::role::done::{OpMark, OpRecord};
use crate::role::input::{Command, CommandResult, Done, Effect, Input, LogView, StoreAnswer, StoreRequest};
use crate::role::machine::{RoleConfig, RoleMachine, Traits};
use crate::role::policy::{Generation, SyncPolicy};
use crate::role::state::{Role, State};
use crate::role::stored::StoredPolicy;

/// What a node shows.
type Shown = (Role, State);

const MS: u64 = 1_000_000;
const LEASE: Duration = Duration::from_millis(1000);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    pub term: Term,
    pub payload: u64,
    /// The sealer's commit index.
    commit: Lsn,
    /// The generation recorded here, and where its frame starts.
    policy: Option<(Generation, Lsn)>,
    /// The op recorded here.
    op: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
enum Message {
    Role(Vec<u8>),
    Data { term: Term, start: usize, entries: Vec<Entry>, commit: Lsn, end: Lsn, sent: Mono },
    Ack { term: Term, flushed: Lsn, sent: Mono, granted: bool },
    Refused { promised: Term },
    Pull { term: Term, from: usize, to: usize },
    Pulled { term: Term, start: usize, entries: Vec<Entry> },
}

#[derive(Clone, Debug)]
enum Event {
    Deliver {
        to: usize,
        from: usize,
        life: Incarnation,
        message: Message,
    },
    Tick {
        node: usize,
        run: u64,
    },
    Heartbeat {
        node: usize,
        run: u64,
    },
    Flush {
        node: usize,
        run: u64,
        upto: usize,
    },
    Drain {
        node: usize,
        run: u64,
        ticket: u64,
    },
    Cut {
        node: usize,
        run: u64,
        ticket: u64,
        to: Lsn,
    },
    Control {
        node: usize,
        run: u64,
    },
    PeerUp {
        node: usize,
        peer: usize,
    },
    PeerDown {
        node: usize,
        peer: usize,
        process_gone: bool,
    },
    Client,
    Fault,
    Restart {
        node: usize,
    },
    /// The disk of a node stops answering, or answers again.
    Stall {
        node: usize,
        run: u64,
        stalled: bool,
    },
    /// A question reaches the store.
    Store {
        node: usize,
        run: u64,
        ticket: u64,
        request: StoreRequest,
    },
    StoreSays {
        node: usize,
        run: u64,
        ticket: u64,
        answer: StoreAnswer,
    },
}

struct Pulling {
    ticket: u64,
    from: NodeId,
    term: Term,
    to: Lsn,
}

struct Node {
    id: NodeId,
    life: Incarnation,
    run: u64,
    machine: Option<RoleMachine>,
    log: Vec<Entry>,
    flushed: usize,
    committed: Lsn,
    copies: [Vec<u8>; 2],
    /// Images on their way to disk; of the first one, the copies still to be written.
    writing: VecDeque<(ControlState, Vec<ControlCopy>)>,
    stopped: bool,
    serving: bool,
    /// No client write begins.
    held: bool,
    /// Nothing written to its disk ends.
    stalled: bool,
    shown: Shown,
    acks: BTreeMap<NodeId, (Incarnation, Lsn)>,
    led: Option<Term>,
    /// The session in which data was last accepted, and the newest heartbeat in it.
    session: Option<(NodeId, Term)>,
    pulling: Option<Pulling>,
    waiting: Vec<usize>,
}

/// What a run is allowed to do to the cluster.
#[derive(Clone, Copy, Debug)]
struct Plan {
    pub nodes: u16,
    pub wipes: bool,
    /// Forced, lossy commands: only the oracles that hold even then are watched.
    pub lossy: bool,
    /// Operators ask two nodes at once.
    pub duels: bool,
    /// Now and then one of the two is slow: what it asks arrives when the other one has won.
    pub late: bool,
    /// Operators change the policy, and silent voters lose their vote for a while.
    pub changes: bool,
    /// A control store grants promotions and changes of the policy; primaries degrade through it.
    pub store: bool,
    /// Whoever asks for something may ask again, under the same op id and wherever it likes.
    pub retries: bool,
    pub fault_ms: u64,
}

impl Plan {
    /// Nothing happens but what a story does.
    fn still(nodes: u16) -> Plan {
        Plan {
            nodes,
            wipes: false,
            lossy: false,
            duels: false,
            late: false,
            changes: false,
            store: false,
            retries: false,
            fault_ms: 1000,
        }
    }
}

/// A while passes, and no oracle complains.
fn pass(world: &mut World, ms: u64) {
    let until = world.now.0 / MS + ms;
    world.run_until(until);
    assert_eq!(world.violation, None, "{}", world.describe());
}

struct World {
    now: Mono,
    rng: Prng,
    plan: Plan,
    events: BTreeMap<(Mono, u64), Event>,
    sequence: u64,
    nodes: Vec<Node>,
    cut: Vec<Vec<bool>>,
    loss: f64,
    /// What this node says is long on its way.
    slow: Option<usize>,
    calm: bool,
    next_payload: u64,
    next_op: u64,
    /// What was asked for under an op id lately.
    asked_for: VecDeque<(OpMark, Command)>,
    /// The op ids of commands, by their numbers.
    marks: BTreeMap<u64, OpMark>,
    /// Ops that were committed.
    deeds: BTreeSet<u128>,
    wiped: bool,
    pub traits: BTreeMap<NodeId, Traits>,
    /// Writes whose clients were told that the outcome is unknown.
    pub in_doubt: usize,
    /// Shown moves that were made.
    pub moves: BTreeSet<(Shown, Shown)>,
    /// What the control store holds, and at which revision.
    pub store: (u64, Option<Vec<u8>>),
    /// The store answers nobody.
    pub store_down: bool,
    /// Commands not answered yet: where, in which run, since when.
    asked: BTreeMap<u64, (usize, u64, Mono)>,
    committed: Vec<(Term, u64)>,
    /// The term in which each of these was committed, at the latest.
    committed_in: Vec<Term>,
    acked: usize,
    contents: BTreeMap<(Term, usize), u64>,
    leaders: BTreeMap<Term, (usize, u64)>,
    pub replies: Vec<(u64, CommandResult)>,
    pub violation: Option<String>,
    pub served: usize,
    trace: bool,
}

impl World {
    fn new(seed: u64, plan: Plan) -> World {
        let mut rng = Prng::new(seed);
        let members: Vec<NodeId> = (1..=plan.nodes).map(NodeId).collect();
        let policy = Generation::seed(&members, &SyncPolicy::Auto).expect("a small cluster has defaults");
        let nodes = members
            .iter()
            .map(|id| {
                let life = Incarnation(rng.next_u128());
                let control = fresh(*id, life, &policy);
                Node {
                    id: *id,
                    life,
                    run: 0,
                    machine: None,
                    log: Vec::new(),
                    flushed: 0,
                    committed: Lsn::ZERO,
                    copies: [control.encode(), control.encode()],
                    writing: VecDeque::new(),
                    stopped: false,
                    serving: false,
                    held: false,
                    stalled: false,
                    shown: (Role::Pending, State::Starting),
                    acks: BTreeMap::new(),
                    led: None,
                    session: None,
                    pulling: None,
                    waiting: Vec::new(),
                }
            })
            .collect();
        let count = usize::from(plan.nodes);
        let mut world = World {
            now: Mono(1),
            rng,
            plan,
            events: BTreeMap::new(),
            sequence: 0,
            nodes,
            cut: vec![vec![false; count]; count],
            loss: 0.0,
            slow: None,
            calm: true,
            next_payload: 0,
            next_op: 0,
            asked_for: VecDeque::new(),
            marks: BTreeMap::new(),
            deeds: BTreeSet::new(),
            wiped: false,
            traits: BTreeMap::new(),
            in_doubt: 0,
            moves: BTreeSet::new(),
            store: (0, None),
            store_down: false,
            asked: BTreeMap::new(),
            committed: Vec::new(),
            committed_in: Vec::new(),
            acked: 0,
            contents: BTreeMap::new(),
            leaders: BTreeMap::new(),
            replies: Vec::new(),
            violation: None,
            served: 0,
            trace: std::env::var_os("ROLE_TRACE").is_some(),
        };
        (0..count).for_each(|node| world.start(node));
        world.at(5, Event::Client);
        world
    }

    fn at(&mut self, ms: u64, event: Event) {
        self.sequence += 1;
        let jitter = self.rng.below(MS);
        self.events.insert((Mono(self.now.0 + ms * MS + jitter), self.sequence), event);
    }

    fn soon(&mut self, event: Event) {
        let ms = if self.rng.chance(0.05) { self.rng.between(20, 200) } else { self.rng.below(4) };
        self.at(ms, event);
    }

    fn fail(&mut self, text: String) {
        if self.violation.is_none() {
            self.violation = Some(format!("{text} (at {} ms)", self.now.0 / MS));
        }
    }

    /// Runs until `ms`, or until an oracle speaks.
    fn run_until(&mut self, ms: u64) {
        while self.violation.is_none() {
            let Some(next) = self.events.first_entry().filter(|e| e.key().0.0 <= ms * MS) else { break };
            let ((now, _), event) = next.remove_entry();
            self.now = now;
            self.event(event);
        }
        self.now = self.now.max(Mono(ms * MS));
    }

    fn event(&mut self, event: Event) {
        let alive = |world: &World, node: usize, run: u64| {
            world.nodes[node].run == run && world.nodes[node].machine.is_some()
        };
        let disk = match &event {
            Event::Flush { node, run, .. }
            | Event::Drain { node, run, .. }
            | Event::Cut { node, run, .. }
            | Event::Control { node, run } => Some((*node, *run)),
            _ => None,
        };
        if disk.is_some_and(|(node, run)| alive(self, node, run) && self.nodes[node].stalled) {
            return self.at(20, event);
        }
        match event {
            Event::Stall { node, run, stalled } if alive(self, node, run) => self.stall(node, stalled),
            Event::Deliver { to, from, life, message }
                if self.nodes[to].machine.is_some() && !self.cut[from][to] =>
            {
                self.deliver(to, from, life, message);
            }
            Event::Tick { node, run } if alive(self, node, run) => {
                self.input(node, Input::Tick);
                self.pull(node);
                self.at(50, Event::Tick { node, run });
            }
            Event::Heartbeat { node, run } if alive(self, node, run) => {
                (0..self.nodes.len()).filter(|peer| *peer != node).for_each(|peer| self.stream(node, peer));
                self.check_read(node);
                self.at(200, Event::Heartbeat { node, run });
            }
            Event::Flush { node, run, upto } if alive(self, node, run) => {
                let n = &mut self.nodes[node];
                n.flushed = n.flushed.max(upto.min(n.log.len()));
                let awaited = n.machine.as_ref().and_then(RoleMachine::flush_awaited);
                if awaited.is_some_and(|end| end.0 as usize <= n.flushed) {
                    self.input(node, Input::CommitMoved);
                }
                self.after_flush(node);
            }
            Event::Drain { node, run, ticket } if alive(self, node, run) => {
                let n = &mut self.nodes[node];
                n.flushed = n.log.len();
                self.input(node, Input::Drained { ticket });
            }
            Event::Cut { node, run, ticket, to } if alive(self, node, run) => {
                let n = &mut self.nodes[node];
                n.log.truncate(to.0 as usize);
                n.flushed = n.log.len();
                self.input(node, Input::Truncated { ticket });
            }
            Event::Control { node, run } if alive(self, node, run) => self.control_written(node),
            Event::PeerUp { node, peer }
                if self.nodes[node].machine.is_some() && self.nodes[peer].machine.is_some() =>
            {
                let incarnation = self.nodes[peer].life;
                self.input(node, Input::PeerUp { node: self.nodes[peer].id, incarnation });
            }
            Event::PeerDown { node, peer, process_gone } => {
                let gone = self.nodes[peer].machine.is_none();
                if self.nodes[node].machine.is_some() && (gone || !process_gone) {
                    self.input(node, Input::PeerDown { node: self.nodes[peer].id, process_gone });
                }
            }
            Event::Client => {
                (0..self.nodes.len()).for_each(|node| self.client(node));
                let pause = self.rng.between(5, 60);
                self.at(pause, Event::Client);
            }
            Event::Fault if !self.calm => {
                self.fault();
                let pause = self.rng.between(50, self.plan.fault_ms);
                self.at(pause, Event::Fault);
            }
            // The question may arrive after its process is gone.
            Event::Store { node, run, ticket, request } => self.store_asked(node, run, ticket, request),
            Event::StoreSays { node, run, ticket, answer } if alive(self, node, run) => {
                self.input(node, Input::StoreAnswered { ticket, answer });
            }
            Event::Restart { node } if self.nodes[node].machine.is_none() => self.start(node),
            _ => {}
        }
    }

    fn view(&self, node: usize) -> LogView {
        let n = &self.nodes[node];
        LogView {
            end: Lsn(n.log.len() as u64),
            last_term: n.log.last().map_or(Term::NONE, |entry| entry.term),
            flushed: FlushedLsn(Lsn(n.flushed as u64)),
            committed: CommittedLsn(n.committed),
            whole: true,
        }
    }

    fn input(&mut self, node: usize, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let view = self.view(node);
            let mut out = Vec::new();
            let Some(machine) = self.nodes[node].machine.as_mut() else { return };
            let told = self.trace.then(|| format!("{input:?}"));
            machine.handle(self.now, &view, input, &mut out);
            if let Some(told) = told.filter(|told| !out.is_empty() || told.starts_with("Command")) {
                eprintln!("{} ms n{}: {told:.200}", self.now.0 / MS, node + 1);
                out.iter().for_each(|effect| eprintln!("    {:.200}", format!("{effect:?}")));
            }
            for effect in out {
                inputs.extend(self.effect(node, effect));
            }
        }
    }

    fn effect(&mut self, node: usize, effect: Effect) -> Option<Input> {
        let run = self.nodes[node].run;
        match effect {
            Effect::Send { to, message } => {
                let mut bytes = Vec::new();
                message.encode(&mut bytes);
                self.send(node, usize::from(to.0) - 1, Message::Role(bytes));
            }
            Effect::Persist { state } => {
                let copies = control::copies_to_write(state.generation).to_vec();
                let n = &mut self.nodes[node];
                n.writing.truncate(1);
                n.writing.push_back((*state, copies));
                if n.writing.len() == 1 {
                    self.soon(Event::Control { node, run });
                }
            }
            Effect::StopAcks => self.nodes[node].stopped = true,
            Effect::Drain { ticket } => self.soon(Event::Drain { node, run, ticket }),
            Effect::FastForward { ticket, from, term, to } => {
                self.nodes[node].pulling = Some(Pulling { ticket, from, term, to });
                self.pull(node);
            }
            Effect::AppendTermStart(start) => return Some(self.append_term_start(node, start)),
            Effect::Lead { term } => {
                let n = &mut self.nodes[node];
                (n.stopped, n.led) = (false, Some(term));
                n.acks.clear();
                let first = *self.leaders.entry(term).or_insert((node, run));
                if first != (node, run) {
                    self.fail(format!("term {term:?} is led by node {} twice or by two nodes", node + 1));
                }
                self.check_started(node, term);
                self.after_flush(node);
            }
            Effect::Serve { .. } => {
                self.nodes[node].serving = true;
                self.served += 1;
                self.check_complete(node);
            }
            Effect::HoldClients { .. } => {
                // What is committed is answered first.
                self.release(node);
                self.nodes[node].serving = false;
            }
            Effect::Demote { .. } => {
                let n = &mut self.nodes[node];
                (n.serving, n.held, n.led) = (false, false, None);
                self.in_doubt += n.waiting.len();
                n.waiting.clear();
            }
            Effect::Follow { .. } => {
                let n = &mut self.nodes[node];
                (n.stopped, n.session) = (false, None);
            }
            Effect::Unfollow => {
                let n = &mut self.nodes[node];
                (n.session, n.pulling) = (None, None);
            }
            Effect::Truncate { ticket, to } => {
                if to < self.nodes[node].committed {
                    let committed = self.nodes[node].committed;
                    self.fail(format!(
                        "node {} truncates to {to} below its known commit {committed}",
                        node + 1
                    ));
                }
                self.soon(Event::Cut { node, run, ticket, to });
            }
            Effect::Reply { op, result } => {
                if self.asked.remove(&op).is_none() {
                    self.fail(format!("command {op} is answered twice: {result:?}"));
                }
                let before = matches!(&result, Ok(Done::Before { .. }));
                if before && !self.marks.get(&op).is_some_and(|mark| self.deeds.contains(&mark.id)) {
                    self.fail(format!("command {op} is told done and is not committed: {result:?}"));
                }
                self.replies.push((op, result));
            }
            Effect::Changed { role, state } => {
                let from = std::mem::replace(&mut self.nodes[node].shown, (role, state));
                self.moves.insert((from, (role, state)));
            }
            Effect::Evidence(_) | Effect::Latch { .. } => {}
            Effect::HoldWrites { ticket, .. } => {
                self.nodes[node].held = true;
                return Some(Input::WritesHeld { ticket });
            }
            Effect::ResumeWrites => self.nodes[node].held = false,
            Effect::AppendPolicy { ticket, generation, op } => {
                return Some(self.append_policy(node, ticket, &generation, op));
            }
            Effect::Store { ticket, request } => self.soon(Event::Store { node, run, ticket, request }),
        }
        None
    }

    fn append_term_start(&mut self, node: usize, start: crate::role::input::TermStart) -> Input {
        let first = self.nodes[node].log.len();
        // A segment border in the way: a filler frame of the new term comes first.
        if self.rng.chance(0.3) {
            self.append(node, start.term, (None, None));
        }
        let frame = self.nodes[node].log.len();
        let policy = start.policy.map(|bytes| {
            let generation = Generation::decode(&bytes).expect("the machine encodes sound generations");
            (generation, Lsn(frame as u64))
        });
        self.append(node, start.term, (policy, start.op));
        let end = Lsn(self.nodes[node].log.len() as u64);
        assert_eq!(start.previous_end, Lsn(first as u64));
        Input::TermAppended { start: Lsn(first as u64), end }
    }

    fn append_policy(&mut self, node: usize, ticket: u64, bytes: &[u8], op: Option<Vec<u8>>) -> Input {
        let machine = self.nodes[node].machine.as_ref().expect("it is up");
        let term = machine.leading().expect("only a leader appends a policy");
        let generation = Generation::decode(bytes).expect("the machine encodes sound generations");
        let start = Lsn(self.nodes[node].log.len() as u64);
        self.append(node, term, (Some((generation, start)), op));
        Input::PolicyRecorded { ticket, start, end: Lsn(start.0 + 1) }
    }

    /// The control store: one key, in one order for everybody. It is out now and then, answers get lost, and of some
    /// swaps nobody learns what came of them.
    fn store_asked(&mut self, node: usize, run: u64, ticket: u64, request: StoreRequest) {
        let flaky = !self.calm;
        let swap = matches!(request, StoreRequest::Swap { .. });
        let unknown = swap && flaky && self.rng.chance(0.1);
        let answer = if self.store_down || (flaky && self.rng.chance(0.1)) {
            StoreAnswer::Silent
        } else if unknown && self.rng.chance(0.5) {
            StoreAnswer::Unknown
        } else {
            match request {
                StoreRequest::Swap { expect, value } if expect == self.store.0 => {
                    self.store = (expect + 1, Some(value));
                    StoreAnswer::Done { revision: expect + 1 }
                }
                _ => StoreAnswer::Stands { revision: self.store.0, value: self.store.1.clone() },
            }
        };
        let answer = if unknown { StoreAnswer::Unknown } else { answer };
        if !(flaky && self.rng.chance(0.03)) {
            self.soon(Event::StoreSays { node, run, ticket, answer });
        }
    }

    pub fn stored(&self) -> Option<StoredPolicy> {
        self.store.1.as_deref().map(|bytes| StoredPolicy::decode(bytes).expect("only machines write there"))
    }

    fn append(
        &mut self,
        node: usize,
        term: Term,
        (policy, op): (Option<(Generation, Lsn)>, Option<Vec<u8>>),
    ) {
        self.next_payload += 1;
        let commit = self.nodes[node].committed;
        self.take(node, Entry { term, payload: self.next_payload, commit, policy, op });
        let (run, upto) = (self.nodes[node].run, self.nodes[node].log.len());
        self.soon(Event::Flush { node, run, upto });
    }

    /// An entry enters a log: (term, LSN) names one content for ever.
    fn take(&mut self, node: usize, entry: Entry) {
        let at = self.nodes[node].log.len();
        let first = *self.contents.entry((entry.term, at)).or_insert(entry.payload);
        if first != entry.payload {
            self.fail(format!("node {} holds a second content of {:?} at {at}", node + 1, entry.term));
        }
        self.nodes[node].log.push(entry);
    }

    fn control_written(&mut self, node: usize) {
        let run = self.nodes[node].run;
        let n = &mut self.nodes[node];
        let Some((state, copies)) = n.writing.front_mut() else { return };
        let copy = copies.remove(0);
        n.copies[copy as usize] = state.encode();
        let generation = state.generation;
        let done = copies.is_empty();
        if done {
            n.writing.pop_front();
        }
        if !n.writing.is_empty() {
            self.soon(Event::Control { node, run });
        }
        if done {
            self.input(node, Input::Persisted { generation });
            self.after_flush(node);
        }
    }

    fn client(&mut self, node: usize) {
        let n = &self.nodes[node];
        let leading = n.machine.as_ref().filter(|machine| machine.serving()).and_then(RoleMachine::leading);
        self.check_read(node);
        let n = &self.nodes[node];
        let Some(term) = leading.filter(|_| n.serving && !n.stopped && !n.held) else { return };
        if self.nodes[node].waiting.len() < 8 {
            self.append(node, term, (None, None));
            let end = self.nodes[node].log.len();
            self.nodes[node].waiting.push(end);
            (0..self.nodes.len()).filter(|peer| *peer != node).for_each(|peer| self.stream(node, peer));
        }
    }

    fn command(&mut self, node: usize, command: Command) -> u64 {
        self.marked(node, None, command)
    }

    /// A command under an op id.
    fn marked(&mut self, node: usize, mark: Option<OpMark>, command: Command) -> u64 {
        self.next_op += 1;
        let op = self.next_op;
        self.asked.insert(op, (node, self.nodes[node].run, self.now));
        self.marks.extend(mark.map(|mark| (op, mark)));
        self.input(node, Input::Command { op, mark, command });
        op
    }

    fn start(&mut self, node: usize) {
        let expected = (Some(ClusterId(1)), Some(self.nodes[node].id));
        let [a, b] = &self.nodes[node].copies;
        let chosen =
            control::choose(Some(a), Some(b), expected.0, expected.1).expect("one copy always survives");
        let seed = self.rng.next_u64();
        let n = &mut self.nodes[node];
        // Recovery: what the history does not assign to its place is no frame.
        let history = &chosen.state.history;
        let valid =
            n.log.iter().enumerate().take_while(|(i, e)| history.term_at(Lsn(*i as u64)) == Some(e.term));
        let valid = valid.count();
        n.log.truncate(valid);
        n.flushed = valid;
        let told = n.log.iter().map(|entry| entry.commit).max().unwrap_or(Lsn::ZERO);
        n.committed = told.max(chosen.state.known_committed.lsn());
        n.copies = [chosen.state.encode(), chosen.state.encode()];
        n.run += 1;
        let peers = (1..=self.plan.nodes).map(NodeId).filter(|id| *id != n.id).collect();
        let config = RoleConfig {
            peers,
            cascade: false,
            lease: LEASE,
            traits: self.traits.clone(),
            voter_timeout: self.plan.changes.then_some(Duration::from_millis(1800)),
            store: self.plan.store,
            degrade: self.plan.store.then_some(Duration::from_millis(2500)),
            seed,
        };
        let machine = RoleMachine::new(config, chosen.state, self.now);
        n.shown = (machine.role(), machine.state());
        n.machine = Some(machine);
        (n.stopped, n.serving, n.held, n.led, n.session) = (false, false, false, None, None);
        let run = n.run;
        let at = |i: usize| (Lsn(i as u64), Lsn(i as u64 + 1));
        let records: Vec<_> =
            n.log.iter().enumerate().map(|(i, e)| (at(i), e.policy.clone(), e.op.clone())).collect();
        for (place, policy, op) in records {
            self.noted(node, place, policy, op);
        }
        self.at(0, Event::Tick { node, run });
        self.at(0, Event::Heartbeat { node, run });
        for peer in (0..self.nodes.len()).filter(|peer| *peer != node) {
            self.soon(Event::PeerUp { node, peer });
            self.soon(Event::PeerUp { node: peer, peer: node });
        }
    }

    /// A record of this log that its machine hears of at once.
    fn noted(
        &mut self,
        node: usize,
        (start, end): (Lsn, Lsn),
        policy: Option<(Generation, Lsn)>,
        op: Option<Vec<u8>>,
    ) {
        if let Some((generation, start)) = policy {
            self.input(node, Input::PolicyAppended { generation, start, end });
        }
        if let Some(op) = op {
            let op = OpRecord::decode(&op).expect("the machine encodes ops");
            self.input(node, Input::OpAppended { op, start, end });
        }
    }

    fn describe(&self) -> String {
        let of = |n: &Node| match &n.machine {
            None => format!("n{}: down", n.id),
            Some(machine) => format!(
                "n{}: {} {} promised {:?} end {} flushed {} committed {} following {:?}",
                n.id,
                machine.role(),
                machine.state(),
                machine.control().promised,
                n.log.len(),
                n.flushed,
                n.committed,
                machine.following()
            ),
        };
        self.nodes.iter().map(of).collect::<Vec<_>>().join("\n")
    }
}

fn fresh(id: NodeId, life: Incarnation, policy: &Generation) -> ControlState {
    ControlState::fresh((ClusterId(1), "mini"), (id, life), 64, 64 << 20, policy.clone(), DataStatus::Whole)
}

/// One whole run: bootstrap, faults, calm. `Err` names what an oracle saw.
fn run(seed: u64, plan: Plan) -> Result<World, String> {
    let mut world = World::new(seed, plan);
    world.command(0, Command::RequestPrimary { alone: false, force: false });
    world.run_until(1500);
    world.begin_faults();
    world.run_until(1500 + 12_000);
    let verdict = |world: &World| world.violation.clone().map_or(Ok(()), Err);
    verdict(&world)?;
    if plan.lossy {
        return Ok(world);
    }
    let settled = world.settles(60_000);
    verdict(&world)?;
    if settled {
        Ok(world)
    } else {
        Err(format!("no progress after the faults stopped\n{}", world.describe()))
    }
}

//! The world: nodes, what is under way between and inside them, and the steps that it can make.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use super::fingerprint::print;
use super::net::Message;
use super::oracle::Truth;
use crate::base::{ClusterId, Incarnation, Lsn, Mono, NodeId, Term};
use crate::role::control::{ControlCopy, ControlState, DataStatus};
use crate::role::input::{Input, StoreAnswer, StoreRequest};
use crate::role::machine::RoleMachine;
use crate::role::policy::{Generation, SyncPolicy};
use crate::role::state::State;

pub const MS: u64 = 1_000_000;
/// How much time passes when nothing else is to be done.
pub const PAUSE: u64 = 250 * MS;
/// How long a cluster may take to serve again when nothing is done to it any more.
const RECOVERY: u64 = 40_000 * MS;

/// One record of a log; it takes one byte of LSN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub term: Term,
    pub payload: u64,
    /// The sealer's commit index.
    pub commit: Lsn,
    /// The generation recorded here, and where its frame starts.
    pub policy: Option<Arc<(Generation, Lsn)>>,
}

/// What is done one after the other, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Channel {
    Link { from: usize, to: usize },
    Log(usize),
    Control(usize),
    Store(usize),
}

impl Channel {
    /// The node at which its events happen.
    pub fn at(self) -> usize {
        match self {
            Channel::Link { to: node, .. }
            | Channel::Log(node)
            | Channel::Control(node)
            | Channel::Store(node) => node,
        }
    }
}

#[derive(Clone, Debug)]
pub enum Event {
    Deliver { life: Incarnation, message: Message },
    PeerUp,
    PeerDown,
    Flush { upto: usize },
    Drain { ticket: u64 },
    Cut { ticket: u64, to: Lsn },
    Control,
    Store { run: u64, ticket: u64, request: StoreRequest },
    StoreSays { ticket: u64, answer: StoreAnswer },
}

#[derive(Clone)]
pub struct Pending {
    pub channel: Channel,
    pub event: Arc<Event>,
    print: u64,
}

/// A control image, with what it prints: images are compared often and hold no times.
pub struct Image {
    pub state: ControlState,
    print: u64,
}

#[derive(Clone, Debug)]
pub struct Pulling {
    pub ticket: u64,
    pub from: NodeId,
    pub term: Term,
    pub to: Lsn,
}

#[derive(Clone)]
pub struct Node {
    pub id: NodeId,
    pub life: Incarnation,
    pub run: u64,
    pub machine: Option<RoleMachine>,
    pub log: Vec<Entry>,
    pub flushed: usize,
    pub committed: Lsn,
    pub copies: [Option<Arc<Image>>; 2],
    pub writing: VecDeque<(Arc<Image>, Vec<ControlCopy>)>,
    pub stopped: bool,
    pub serving: bool,
    pub held: bool,
    pub acks: BTreeMap<NodeId, (Incarnation, Lsn)>,
    pub led: Option<Term>,
    pub session: Option<(NodeId, Term)>,
    pub pulling: Option<Pulling>,
    pub waiting: Vec<usize>,
    /// Frames that this node sealed, and client writes among them.
    pub sealed: u64,
    pub writes: u8,
    /// The highest term whose promise left this folder.
    pub told: Term,
    /// When it starts again.
    pub back: Option<Mono>,
}

/// What a dying process leaves on its disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// Only what was flushed; a control copy that was being written is torn.
    Loses,
    /// Everything that was written.
    Keeps,
    /// As `Loses`, and the control copy written last decays while it is down.
    Decays,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Back {
    Soon,
    Late,
}

/// What operators ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    Failover,
    Forced,
    /// Alone and forced: it may lose what was acknowledged.
    Alone,
    Request,
    SwitchTo(u16),
    Policy(&'static [u16], u8),
}

/// Something that is done to the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    Crash(usize, Crash, Back),
    /// It dies and comes back, and no other node is told.
    Unplug(usize),
    Wipe(usize),
    Ask(usize, Ask),
    /// Nothing reaches this node or leaves it, for more than a lease.
    Isolate(usize),
    /// What the first one says to the second one is late.
    Slow(usize, usize),
    Write(usize),
}

/// One step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// The usual next thing.
    Next,
    /// The channel of the next event is behind everything else that waits.
    Behind,
    /// The channel of the next event is late.
    Late,
    /// The next event is a message, and gets lost.
    Lost,
    /// Everything is late.
    Frozen,
    Do(Act),
}

/// A process that is broken by what the harness does to it, beyond the planted bugs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    Nothing,
    /// A restarted process promises at once, whatever it granted before.
    ForgetsItsGrants,
    /// The hold after a restart ends as soon as any leader is followed, also of a term followed before.
    OutlivesAnyTerm,
    /// A promise is reported before it is on disk.
    SpeaksBeforeItIsDurable,
}

/// A story: what happens to the cluster when nothing deviates.
#[derive(Clone, Copy, Debug)]
pub struct Story {
    pub nodes: u16,
    pub store: bool,
    /// Commands that may lose writes are part of it: only the oracles that hold even then speak.
    pub lossy: bool,
    /// Client writes for each node.
    pub writes: u8,
    /// What happens when, in milliseconds after the cluster has begun to serve.
    pub script: &'static [(u64, Act)],
    /// Until when runs are followed.
    pub until: u64,
    /// Every run must end in a cluster that serves again.
    pub recovers: bool,
    pub broken: Broken,
    /// In milliseconds.
    pub lease: u64,
    pub seed: u64,
}

#[derive(Clone)]
pub struct World {
    pub story: Story,
    pub now: Mono,
    began: Mono,
    scripted: usize,
    pub nodes: Vec<Arc<Node>>,
    pub pending: Vec<Pending>,
    /// Channels that wait, until then, or until nothing else is to be done.
    held: Vec<(Channel, Option<Mono>)>,
    frozen: Mono,
    isolated: Vec<(usize, Mono)>,
    pub ops: u64,
    pub open: BTreeSet<u64>,
    store: (u64, Option<Vec<u8>>),
    pub truth: Arc<Truth>,
    pub violation: Option<String>,
    pub talks: bool,
    prints: Vec<u64>,
    stale: Vec<bool>,
}

impl World {
    /// A cluster of fresh folders that was just started, and whose node 1 is asked to lead.
    pub fn new(story: Story) -> World {
        let members: Vec<NodeId> = (1..=story.nodes).map(NodeId).collect();
        let policy = Generation::seed(&members, &SyncPolicy::Auto).expect("a small cluster has defaults");
        let nodes: Vec<Arc<Node>> =
            members.iter().map(|id| Arc::new(Node::fresh(*id, u128::from(id.0), &policy))).collect();
        let count = nodes.len();
        let mut world = World {
            story: Story { script: &[], writes: 0, ..story },
            now: Mono(10_000 * MS),
            began: Mono(10_000 * MS),
            scripted: 0,
            nodes,
            pending: Vec::new(),
            held: Vec::new(),
            frozen: Mono(0),
            isolated: Vec::new(),
            ops: 0,
            open: BTreeSet::new(),
            store: (0, None),
            truth: Arc::default(),
            violation: None,
            talks: false,
            prints: vec![0; count],
            stale: vec![true; count],
        };
        (0..count).for_each(|node| world.start(node));
        world.act(Act::Ask(0, Ask::Request));
        world.story.until = 3000;
        while !world.over() && !world.nodes[0].serving {
            world.step(Choice::Next);
        }
        assert!(world.nodes[0].serving, "the cluster serves before anything is done to it");
        // Everybody hears that the first generation is committed.
        for _ in 0..2 {
            world.step(Choice::Next);
            while world.next().is_some() {
                world.step(Choice::Next);
            }
        }
        world.story = story;
        (world.began, world.scripted) = (world.now, 0);
        world
    }

    pub fn fail(&mut self, text: String) {
        if self.violation.is_none() {
            self.violation = Some(text);
        }
    }

    /// Nothing more is looked at.
    pub fn over(&self) -> bool {
        self.violation.is_some() || self.now.0 >= self.began.0 + self.story.until * MS
    }

    pub fn node(&mut self, node: usize) -> &mut Node {
        self.stale[node] = true;
        Arc::make_mut(&mut self.nodes[node])
    }

    pub fn alive(&self, node: usize) -> bool {
        self.nodes[node].machine.is_some()
    }

    // ---- steps ----

    /// The event that happens next, if one can happen now.
    pub fn next(&self) -> Option<usize> {
        if self.now < self.frozen {
            return None;
        }
        let free = |pending: &Pending| !self.held.iter().any(|(channel, _)| *channel == pending.channel);
        self.pending.iter().position(free)
    }

    pub fn step(&mut self, choice: Choice) {
        let next = self.next();
        match (choice, next) {
            (Choice::Next, Some(at)) => self.happen(at),
            (Choice::Next, None) if self.held.iter().any(|(_, until)| until.is_none()) => {
                self.held.retain(|(_, until)| until.is_some());
            }
            (Choice::Next, None) => self.pass(),
            (Choice::Behind, Some(at)) => self.held.push((self.pending[at].channel, None)),
            (Choice::Late, Some(at)) => {
                self.held.push((self.pending[at].channel, Some(self.late())));
            }
            (Choice::Lost, Some(at)) => {
                self.pending.remove(at);
            }
            (Choice::Frozen, _) => self.frozen = self.late(),
            (Choice::Do(act), _) => self.act(act),
            (Choice::Behind | Choice::Late | Choice::Lost, None) => unreachable!("nothing is next"),
        }
        self.look();
    }

    fn act(&mut self, act: Act) {
        if self.talks {
            println!("{} ms ==== {act:?}", self.since());
        }
        match act {
            Act::Crash(node, crash, back) => self.crash(node, crash, back),
            Act::Unplug(node) => {
                self.crash(node, Crash::Keeps, Back::Soon);
                self.pending.retain(|pending| !matches!((pending.channel, &*pending.event), (Channel::Link { from, .. }, Event::PeerDown) if from == node));
            }
            Act::Wipe(node) => self.wipe(node),
            Act::Ask(node, ask) => self.ask(node, ask),
            Act::Isolate(node) => {
                self.isolated.push((node, self.late()));
                self.pending.retain(|pending| match pending.channel {
                    Channel::Link { from, to } => from != node && to != node,
                    _ => true,
                });
            }
            Act::Slow(from, to) => {
                self.held.push((Channel::Link { from, to }, Some(self.late())));
            }
            Act::Write(node) => self.write(node),
        }
    }

    /// When comes what is late: after more than a lease.
    fn late(&self) -> Mono {
        Mono(self.now.0 + self.story.lease * MS + PAUSE)
    }

    pub fn since(&self) -> u64 {
        (self.now.0 - self.began.0) / MS
    }

    /// Time passes.
    fn pass(&mut self) {
        self.now = Mono(self.now.0 + PAUSE);
        let now = self.now;
        self.stale.fill(true);
        self.held.retain(|(_, until)| until.is_none_or(|until| until > now));
        let healed: Vec<usize> =
            self.isolated.iter().filter(|(_, until)| *until <= now).map(|(node, _)| *node).collect();
        self.isolated.retain(|(_, until)| *until > now);
        for node in healed {
            for peer in (0..self.nodes.len()).filter(|peer| *peer != node) {
                self.push(Channel::Link { from: node, to: peer }, Event::PeerUp);
                self.push(Channel::Link { from: peer, to: node }, Event::PeerUp);
            }
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].back.is_some_and(|back| back <= now) {
                self.start(node);
            }
        }
        while let Some((at, act)) = self.story.script.get(self.scripted).copied()
            && at * MS <= now.0 - self.began.0
        {
            self.scripted += 1;
            self.act(act);
        }
        for node in 0..self.nodes.len() {
            self.input(node, Input::Tick);
            self.pull(node);
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].writes < self.story.writes {
                self.write(node);
            }
            (0..self.nodes.len()).filter(|peer| *peer != node).for_each(|peer| self.stream(node, peer));
        }
        for pending in &mut self.pending {
            pending.print = print(now, &pending.event);
        }
    }

    pub fn push(&mut self, channel: Channel, event: Event) {
        if let Channel::Link { from, to } = channel
            && self.isolated.iter().any(|(node, _)| *node == from || *node == to)
        {
            return;
        }
        let print = print(self.now, &event);
        self.pending.push(Pending { channel, event: Arc::new(event), print });
    }

    fn happen(&mut self, at: usize) {
        let Pending { channel, event, .. } = self.pending.remove(at);
        let node = channel.at();
        if self.talks {
            println!("{} ms {channel:?}: {:.300}", self.since(), format!("{event:?}"));
        }
        if let Event::Store { run, ticket, request } = &*event {
            return self.store_asked(node, *run, *ticket, request);
        }
        if !self.alive(node) {
            return;
        }
        match (&*event, channel) {
            (Event::Deliver { life, message }, Channel::Link { from, to }) => {
                self.deliver(to, from, *life, message);
            }
            (Event::PeerUp, Channel::Link { from, to }) if self.alive(from) => {
                let incarnation = self.nodes[from].life;
                self.input(to, Input::PeerUp { node: self.nodes[from].id, incarnation });
            }
            (Event::PeerDown, Channel::Link { from, to }) => {
                self.input(to, Input::PeerDown { node: self.nodes[from].id, process_gone: true });
            }
            (Event::Flush { upto }, _) => {
                let n = self.node(node);
                n.flushed = n.flushed.max((*upto).min(n.log.len()));
                let awaited = n.machine.as_ref().and_then(RoleMachine::flush_awaited);
                if awaited.is_some_and(|end| end.0 as usize <= n.flushed) {
                    self.input(node, Input::CommitMoved);
                }
                self.after_flush(node);
            }
            (Event::Drain { ticket }, _) => {
                let n = self.node(node);
                n.flushed = n.log.len();
                self.input(node, Input::Drained { ticket: *ticket });
            }
            (Event::Cut { ticket, to }, _) => {
                let n = self.node(node);
                n.log.truncate(to.0 as usize);
                n.flushed = n.log.len();
                self.input(node, Input::Truncated { ticket: *ticket });
            }
            (Event::Control, _) => self.control_written(node),
            (Event::StoreSays { ticket, answer }, _) => {
                self.input(node, Input::StoreAnswered { ticket: *ticket, answer: answer.clone() });
            }
            _ => {}
        }
    }

    /// The control store: one key, in one order for everybody.
    fn store_asked(&mut self, node: usize, run: u64, ticket: u64, request: &StoreRequest) {
        let answer = match request {
            StoreRequest::Swap { expect, value } if *expect == self.store.0 => {
                self.store = (expect + 1, Some(value.clone()));
                StoreAnswer::Done { revision: expect + 1 }
            }
            _ => StoreAnswer::Stands { revision: self.store.0, value: self.store.1.clone() },
        };
        if self.alive(node) && self.nodes[node].run == run {
            self.push(Channel::Store(node), Event::StoreSays { ticket, answer });
        }
    }

    // ---- the end of a run ----

    /// Nothing deviates any more, clients go on writing, and an operator asks one node after the other until one leads.
    /// True when that ends in a cluster that serves, with every node in it. `known`: worlds from which it did.
    pub fn recovers<S: BuildHasher>(&mut self, known: &mut HashSet<u64, S>) -> bool {
        self.story = Story { script: &[], writes: u8::MAX, until: u64::MAX / MS / 2, ..self.story };
        self.scripted = 0;
        let (end, mut asked) = (Mono(self.now.0 + RECOVERY), self.now);
        let all = self.nodes.iter().map(|n| n.log.len()).max().unwrap_or(0) + 2;
        let mut way = Vec::new();
        while self.now < end && self.violation.is_none() {
            let quiet = self.next().is_none();
            if quiet {
                let print = self.fingerprint();
                if self.healthy(all) || known.contains(&print) {
                    known.extend(way);
                    return true;
                }
                way.push(print);
            }
            let leads = |n: &Arc<Node>| n.machine.as_ref().is_some_and(|machine| machine.leading().is_some());
            if self.nodes.iter().any(leads) {
                asked = self.now;
            } else if quiet && self.now.since(asked) > Duration::from_millis(self.story.lease * 3) {
                asked = self.now;
                self.act(Act::Ask((self.ops % self.nodes.len() as u64) as usize, Ask::Failover));
            }
            self.step(Choice::Next);
        }
        false
    }

    /// Everybody shows that all is well, and knows that much of the log to be committed.
    fn healthy(&self, end: usize) -> bool {
        self.nodes.iter().all(|n| {
            let shown = n.machine.as_ref().is_some_and(|machine| machine.state() == State::Normal);
            shown && n.committed.0 as usize >= end
        })
    }

    // ---- sameness ----

    /// The same for two worlds that are the same.
    pub fn fingerprint(&mut self) -> u64 {
        use std::hash::{Hash, Hasher};
        for node in 0..self.nodes.len() {
            if std::mem::take(&mut self.stale[node]) {
                self.prints[node] = self.nodes[node].print(self.now);
            }
        }
        let mut hasher = std::hash::DefaultHasher::new();
        self.prints.hash(&mut hasher);
        for pending in &self.pending {
            (pending.print, pending.channel.at()).hash(&mut hasher);
            if let Channel::Link { from, .. } = pending.channel {
                from.hash(&mut hasher);
            }
        }
        let times = (&self.held, self.frozen.max(self.now), &self.isolated);
        print(self.now, &times).hash(&mut hasher);
        let left = self.began.0 + self.story.script.get(self.scripted).map_or(0, |(at, _)| at * MS);
        (self.scripted, left.wrapping_sub(self.now.0) * u64::from(self.scripted < self.story.script.len()))
            .hash(&mut hasher);
        (self.ops, &self.open, &self.store).hash(&mut hasher);
        self.truth.hash(&mut hasher);
        hasher.finish()
    }
}

impl Image {
    pub fn new(state: ControlState) -> Arc<Image> {
        let print = print(Mono(0), &state);
        Arc::new(Image { state, print })
    }
}

impl Node {
    pub fn fresh(id: NodeId, life: u128, policy: &Generation) -> Node {
        // The first letters of an incarnation are what is printed of it.
        let life = Incarnation(life << 96 | life);
        let seed = policy.clone();
        let control =
            ControlState::fresh((ClusterId(1), "model"), (id, life), 64, 64 << 20, seed, DataStatus::Whole);
        let image = Image::new(control);
        Node {
            id,
            life,
            run: 0,
            machine: None,
            log: Vec::new(),
            flushed: 0,
            committed: Lsn::ZERO,
            copies: [Some(image.clone()), Some(image)],
            writing: VecDeque::new(),
            stopped: false,
            serving: false,
            held: false,
            acks: BTreeMap::new(),
            led: None,
            session: None,
            pulling: None,
            waiting: Vec::new(),
            sealed: 0,
            writes: 0,
            told: Term::NONE,
            back: None,
        }
    }

    fn print(&self, now: Mono) -> u64 {
        let copies = self.copies.each_ref().map(|copy| copy.as_ref().map(|image| image.print));
        let writing: Vec<_> = self.writing.iter().map(|(image, copies)| (image.print, copies)).collect();
        let disk = (self.life, self.run, &self.log, self.flushed, self.committed, copies, writing);
        let flags = (self.stopped, self.serving, self.held, self.sealed, self.writes, self.told);
        let ways = (&self.acks, self.led, self.session, &self.pulling, &self.waiting, self.back);
        print(now, &(&self.machine, disk, flags, ways))
    }
}

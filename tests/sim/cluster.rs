//! A cluster of real nodes in a simulated world, driven turn by turn.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use baton::admin::{Request, Response, Verb};
use baton::base::{ClusterId, Mono};
use baton::config::{Config, Degrade, StoreChoice, parse};
use baton::io::sim::{Due, HostId, SimConfig, SimSeam, World};
use baton::io::{ConnId, Event, Op, Outgoing, Seam};
use baton::node::{BootError, BootOptions, InitOptions, Node, StartRole, Turn, init_on};
use baton::resp::{ReplyLimits, ReplyParser};
use serde_json::Value;

use super::store::SimStore;
use super::watch;

pub const CLIENT_PORT: u16 = 7379;
pub const PEER_PORT: u16 = 8379;

/// One simulated machine with its node, if that runs.
pub struct Machine {
    pub host: HostId,
    pub config: Config,
    pub node: Option<Node<SimSeam>>,
    /// Plays a build with this newest format.
    pub format: Option<u16>,
    /// Starts again at this moment.
    pub start_at: Option<Mono>,
    /// How the last process ended by itself.
    pub exit: Option<u8>,
}

/// The build that a machine runs, while something of it runs.
struct Build;

impl Build {
    fn played(newest: Option<u16>) -> Build {
        baton::base::format::play_on_this_thread(newest);
        Build
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        baton::base::format::play_on_this_thread(None);
    }
}

/// The cluster and one host for clients.
pub struct Cluster {
    pub world: World,
    pub machines: Vec<Machine>,
    pub client_host: HostId,
    pub client: SimSeam,
    pub client_events: Vec<Event>,
    /// What no node may do: refuse to start on its own data, for example.
    pub problems: Vec<String>,
    /// Nodes whose process ended, by itself or by force, since somebody looked.
    pub ended: Vec<u16>,
    next_op: u64,
    pub store: SimStore,
    checkpoint_bytes: u64,
}

pub fn ip(node: u16) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, node as u8))
}

pub fn client_addr(node: u16) -> SocketAddr {
    SocketAddr::new(ip(node), CLIENT_PORT)
}

/// In front of further settings: with a control store, and degrading through it.
pub const STORED: &str = "#stored\n";

/// Among further settings: no shard is checkpointed for the length of its log, so that every start reads all of it.
pub const NO_CHECKPOINTS: &str = "#no checkpoints\n";

/// The configuration of one of `nodes` nodes. Small segments, so that runs cross many of them.
///
/// `tree` names the upstreams of cascaded standbys: (node, upstream).
pub fn config_of(node: u16, nodes: u16, extra: &str, tree: &[(u16, u16)]) -> Config {
    // A store folder would not reach from one simulated machine to the next: the harness plays the store.
    let (stored, extra) = match extra.strip_prefix(STORED) {
        Some(rest) => (true, rest),
        None => (false, extra),
    };
    let mut text = format!(
        "cluster = \"sim\"\nnode = {node}\ndata = \"/data\"\nclient_listen = \"{}:{CLIENT_PORT}\"\n\
         peer_listen = \"{}:{PEER_PORT}\"\npeer_secret = \"simulated cluster secret\"\nclient_password = \"sim\"\nmemory = \"64MiB\"\n\
         segment_bytes = \"256KiB\"\nshards = 4\n{extra}\n",
        ip(node),
        ip(node)
    );

    for member in 1..=nodes {
        text.push_str(&format!(
            "[[member]]\nnode = {member}\npeer = \"{}:{PEER_PORT}\"\nclient = \"{}:{CLIENT_PORT}\"\n",
            ip(member),
            ip(member)
        ));
        if let Some((_, upstream)) = tree.iter().find(|(below, _)| *below == member) {
            text.push_str(&format!("upstream = {upstream}\n"));
        }
    }
    let mut config =
        parse(&text, Path::new("/data")).unwrap_or_else(|mistakes| panic!("{mistakes:?}\n{text}"));
    if stored {
        config.store = StoreChoice::Dir("/store".into());
        config.degrade = Degrade::After(Duration::from_secs(2));
    }
    config
}

impl Cluster {
    /// Initialises `nodes` machines and starts them, the first with `-M primary`.
    pub fn new(seed: u64, nodes: u16, sim: SimConfig, extra: &str) -> Cluster {
        Cluster::with_tree(seed, nodes, sim, extra, &[])
    }

    /// The same with cascaded standbys: (node, upstream).
    pub fn with_tree(seed: u64, nodes: u16, sim: SimConfig, extra: &str, tree: &[(u16, u16)]) -> Cluster {
        let world = World::new(seed, sim);
        let mut machines = Vec::new();
        let cluster_id = Some(ClusterId(0xC1));
        for node in 1..=nodes {
            let host = world.add_host(ip(node));
            let config = config_of(node, nodes, extra, tree);
            let mut seam = world.seam(host);
            init_on(&mut seam, InitOptions { config: config.clone(), cluster_id })
                .unwrap_or_else(|e| panic!("init of node {node}: {e:?}"));
            drop(seam);
            machines.push(Machine { host, config, node: None, format: None, start_at: None, exit: None });
        }
        let client_host = world.add_host(ip(100));
        let client = world.seam(client_host);
        let mut cluster = Cluster {
            world,
            machines,
            client_host,
            client,
            client_events: Vec::new(),
            problems: Vec::new(),
            ended: Vec::new(),
            next_op: 0,
            store: SimStore::new(seed),
            checkpoint_bytes: if extra.contains(NO_CHECKPOINTS) { 1 << 40 } else { 512 << 10 },
        };
        for node in 1..=nodes {
            let role = (node == 1).then_some(StartRole::Primary);
            cluster.start(node, role);
        }
        cluster
    }

    pub fn start(&mut self, node: u16, role: Option<StartRole>) {
        let machine = &mut self.machines[usize::from(node) - 1];
        self.store.forget(node);
        machine.node = None;
        machine.start_at = None;
        machine.exit = None;
        let seam = self.world.seam(machine.host);
        let _told = watch::node(node, self.world.now());
        let _build = Build::played(machine.format);
        // Nodes that divide redo differently must come to the same shards.
        let options = BootOptions {
            role,
            checkpoint_bytes: self.checkpoint_bytes,
            redo_workers: 1 + usize::from(node % 3),
            ..BootOptions::new(machine.config.clone())
        };
        match Node::boot(seam, options) {
            Ok(mut up) => match up.listen() {
                Ok(_) => machine.node = Some(up),
                Err(_) => self.later(node, 100),
            },
            Err((BootError::Locked, _)) => self.later(node, 20),
            // A disk that fails or hangs while the node starts: it starts again later.
            Err((BootError::Io { .. } | BootError::Log(_), _)) => self.later(node, 200),
            Err((error, _)) => {
                self.problems.push(format!("node {node} does not start: {error}"));
                self.later(node, 1000);
            }
        }
    }

    fn later(&mut self, node: u16, millis: u64) {
        let machine = &mut self.machines[usize::from(node) - 1];
        self.world.kill(machine.host);
        machine.start_at = Some(self.world.now() + Duration::from_millis(millis));
    }

    pub fn kill(&mut self, node: u16) {
        let machine = &mut self.machines[usize::from(node) - 1];
        self.world.kill(machine.host);
        machine.node = None;
        self.ended.push(node);
    }

    pub fn power_cut(&mut self, node: u16) {
        let machine = &mut self.machines[usize::from(node) - 1];
        self.world.power_cut(machine.host);
        machine.node = None;
        self.ended.push(node);
    }

    pub fn node_of(&self, host: HostId) -> Option<u16> {
        (1u16..).zip(&self.machines).find(|(_, m)| m.host == host).map(|(node, _)| node)
    }

    /// Runs the nodes until it is the turn of a host that is no node, which is returned, or until `until`.
    pub fn advance(&mut self, until: Mono) -> Option<HostId> {
        loop {
            self.restart_due();
            let next_start = self.machines.iter().filter_map(|m| m.start_at).min();
            let limit = next_start.map_or(until, |at| at.min(until));
            match self.world.next_before(limit) {
                Some(Due::Turn(host)) => match self.node_of(host) {
                    Some(node) => self.turn(node),
                    None => return Some(host),
                },
                Some(Due::Crashed(host)) => {
                    if let Some(node) = self.node_of(host) {
                        self.machines[usize::from(node) - 1].node = None;
                        self.ended.push(node);
                    }
                }
                None if limit < until => {}
                None => return None,
            }
        }
    }

    /// Runs the world. Events of the client host are left in `client_events`; returns early when there are some.
    pub fn run(&mut self, until: Mono) -> bool {
        while let Some(host) = self.advance(until) {
            assert_eq!(host, self.client_host, "other hosts are driven by their own harness");
            self.client.reap(Some(until), &mut self.client_events);
            if !self.client_events.is_empty() {
                return true;
            }
        }
        false
    }

    fn restart_due(&mut self) {
        let now = self.world.now();
        let due: Vec<u16> = (1u16..)
            .zip(&self.machines)
            .filter(|(_, m)| m.start_at.is_some_and(|at| at <= now))
            .map(|(node, _)| node)
            .collect();
        for node in due {
            self.start(node, None);
        }
    }

    fn turn(&mut self, number: u16) {
        let machine = &mut self.machines[usize::from(number) - 1];
        let host = machine.host;
        let Some(node) = &mut machine.node else { return };
        let _told = watch::node(number, self.world.now());
        let _build = Build::played(machine.format);
        self.store.serve(self.world.now(), number, node);
        match node.turn() {
            Turn::Until(deadline) => {
                let soon =
                    self.store.due(number).map(|at| self.world.local_now(host) + at.since(self.world.now()));
                self.world.wake_at(host, Some(soon.map_or(deadline, |at| at.min(deadline))));
            }
            Turn::Exit(code) => {
                machine.exit = Some(code);
                machine.node = None;
                self.world.kill(host);
                self.ended.push(number);
            }
        }
    }

    /// What a running node says about itself.
    pub fn status(&mut self, node: u16) -> Option<Value> {
        let (sender, receiver) = mpsc::channel();
        let reply = Box::new(move |response: Response| drop(sender.send(response)));
        let machine = &mut self.machines[usize::from(node) - 1];
        let _build = Build::played(machine.format);
        machine.node.as_mut()?.admin_request(Request::new("status", Verb::Status), reply);
        receiver.try_recv().ok().map(|response| response.result)
    }

    /// Starts a request whose answer nobody in the run waits for.
    pub fn order(&mut self, node: u16, verb: Verb) -> Option<mpsc::Receiver<Response>> {
        self.next_op += 1;
        self.order_as(node, &format!("op-{}", self.next_op), verb)
    }

    /// The same under an op id of the caller's.
    pub fn order_as(&mut self, node: u16, op: &str, verb: Verb) -> Option<mpsc::Receiver<Response>> {
        let request = Request::new(op, verb);
        let (sender, receiver) = mpsc::channel();
        let reply = Box::new(move |response| drop(sender.send(response)));
        let machine = &mut self.machines[usize::from(node) - 1];
        let host = machine.host;
        let _told = watch::node(node, self.world.now());
        let _build = Build::played(machine.format);
        machine.node.as_mut()?.admin_request(request, reply);
        let now = self.world.local_now(host);
        self.world.wake_at(host, Some(now));
        Some(receiver)
    }

    /// Does something with a running node; its loop takes a turn afterwards.
    pub fn with_node(&mut self, node: u16, act: impl FnOnce(&mut Node<SimSeam>)) {
        let machine = &mut self.machines[usize::from(node) - 1];
        let host = machine.host;
        let _told = watch::node(node, self.world.now());
        let _build = Build::played(machine.format);
        if let Some(running) = &mut machine.node {
            act(running);
            let now = self.world.local_now(host);
            self.world.wake_at(host, Some(now));
        }
    }

    /// Asks a node and runs the world until it answers; `None` when it does not within `patience`.
    pub fn admin(&mut self, node: u16, verb: Verb, patience: Duration) -> Option<Response> {
        let receiver = self.order(node, verb)?;
        self.await_answer(&receiver, patience)
    }

    /// Runs the world until an order is answered.
    pub fn await_answer(
        &mut self,
        receiver: &mpsc::Receiver<Response>,
        patience: Duration,
    ) -> Option<Response> {
        let until = self.world.now() + patience;
        while self.world.now() < until {
            if let Ok(response) = receiver.try_recv() {
                return Some(response);
            }
            let step = self.world.now() + Duration::from_millis(5);
            self.run(step.min(until));
        }
        receiver.try_recv().ok()
    }

    /// Connects the client host to a node.
    pub fn connect(&mut self, node: u16) -> Option<ConnId> {
        self.client.submit(Op::Connect { token: 1, addr: client_addr(node) });
        let until = self.world.now() + Duration::from_secs(5);
        while self.world.now() < until {
            self.run(until);
            for event in std::mem::take(&mut self.client_events) {
                if let Event::Connected { result, .. } = event {
                    let conn = result.ok()?;
                    self.client.submit(Op::Receive { conn });
                    let reply = self.call(conn, b"AUTH sim\r\n", Duration::from_secs(3))?;
                    assert_eq!(reply, b"+OK\r\n", "{}", String::from_utf8_lossy(&reply));
                    return Some(conn);
                }
            }
        }
        None
    }

    /// Sends one request and waits for its whole reply.
    pub fn call(&mut self, conn: ConnId, request: &[u8], patience: Duration) -> Option<Vec<u8>> {
        self.client.submit(Op::Send { token: 2, conn, data: Outgoing::Owned(request.to_vec()) });
        let mut reply = Vec::new();
        let until = self.world.now() + patience;
        while self.world.now() < until {
            self.run(until);
            for event in std::mem::take(&mut self.client_events) {
                match event {
                    Event::Received { conn: c, bytes } if c == conn => {
                        reply.extend_from_slice(&bytes);
                        let whole =
                            ReplyParser::new().parse(&reply, &ReplyLimits::default()).expect("a reply");
                        if whole == Some(reply.len()) {
                            return Some(reply);
                        }
                    }
                    Event::Closed { conn: c, .. } if c == conn => return None,
                    _ => {}
                }
            }
        }
        None
    }

    /// Status rows by node, as each running node sees itself.
    pub fn rows(&mut self) -> BTreeMap<u16, Value> {
        let mut rows = BTreeMap::new();
        for node in 1..=self.machines.len() as u16 {
            if let Some(response) = self.admin(node, Verb::Status, Duration::from_secs(1)) {
                rows.insert(node, response.result);
            }
        }
        rows
    }
}

//! A whole data folder that somebody has been at: control copies, superblock, pages, log and mark, damaged where the script
//! wants it, each sum right again if it likes. The real node starts on it in the simulator, twice.
//!
//! It says why it does not start, or it starts; whatever is under its hands, it never panics. When it serves, it shows what
//! was acknowledged. Only a log that was changed may have lost something, because the end of a log that does not check is
//! what a crash leaves too.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use baton::base::limits::PAGE_BYTES;
use baton::base::{ClusterId, Digest, Mono, SharedSlice};
use baton::config::{Config, parse};
use baton::io::sim::{DiskImage, Due, HostId, SimConfig, SimSeam, World};
use baton::io::{ConnId, Event, Op, Open, Outgoing, Seam};
use baton::node::{BootOptions, InitOptions, Node, StartRole, Turn, init_on};
use baton::resp::{ReplyLimits, ReplyParser};

use super::files::seal_mark;
use super::script::Script;
use super::targets::{seal_control, seal_frames, way, word};

const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 7379);
const KEYS: u64 = 24;
const BLOCK: usize = 4096;
/// Turns of the world in one start: far more than a start takes.
const TURNS_MAX: usize = 20_000;

fn config() -> Config {
    let text = "cluster = \"sim\"\nnode = 1\ndata = \"/data\"\nclient_listen = \"10.0.0.1:7379\"\npeer_listen = \"10.0.0.1:8379\"\n\
                peer_secret = \"simulated cluster secret\"\nmemory = \"64MiB\"\nsegment_bytes = \"64KiB\"\nshards = 2\n\
                [[member]]\nnode = 1\npeer = \"10.0.0.1:8379\"\nclient = \"10.0.0.1:7379\"\n";
    let config = parse(text, Path::new("/data")).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    // Less than a configuration may give: pages leave the cache.
    Config { memory: 16 << 20, ..config }
}

fn calm() -> SimConfig {
    SimConfig { buggify_alive: 0.0, split_reap: 0.0, ..SimConfig::default() }
}

/// One machine with its node, and a client.
struct Machine {
    world: World,
    host: HostId,
    node: Option<Node<SimSeam>>,
    client: SimSeam,
    events: Vec<Event>,
    turns: usize,
}

impl Machine {
    fn new(disk: Option<&DiskImage>) -> Machine {
        let world = World::new(1, calm());
        let host = world.add_host(ADDRESS.ip());
        match disk {
            Some(disk) => world.restore_disk(host, disk),
            None => {
                let options = InitOptions { config: config(), cluster_id: Some(ClusterId(0xC1)) };
                init_on(&mut world.seam(host), options).unwrap_or_else(|error| panic!("{error:?}"));
            }
        }
        let client = world.seam(world.add_host(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 100))));
        Machine { world, host, node: None, client, events: Vec::new(), turns: 0 }
    }

    /// Starts the node; says why it does not start.
    fn start(&mut self) -> Result<(), String> {
        let options = BootOptions {
            role: Some(StartRole::Primary),
            checkpoint_bytes: 48 << 10,
            ..BootOptions::new(config())
        };
        let mut node = Node::boot(self.world.seam(self.host), options).map_err(|(error, _)| {
            assert!(!error.to_string().is_empty());
            word(&error)
        })?;
        node.listen().expect("the port is free");
        self.node = Some(node);
        Ok(())
    }

    /// Runs the world until the client has heard something, or until then. Says `false` when the time is up.
    fn run(&mut self, until: Mono) -> bool {
        loop {
            self.turns += 1;
            assert!(self.turns < TURNS_MAX, "the node never rests");
            match self.world.next_before(until) {
                None => return false,
                Some(Due::Crashed(_)) => self.node = None,
                Some(Due::Turn(host)) if host == self.host => {
                    let Some(node) = &mut self.node else { continue };
                    match node.turn() {
                        Turn::Until(deadline) => self.world.wake_at(host, Some(deadline)),
                        Turn::Exit(_) => {
                            self.node = None;
                            self.world.kill(host);
                        }
                    }
                }
                Some(Due::Turn(_)) => {
                    self.client.reap(Some(until), &mut self.events);
                    if !self.events.is_empty() {
                        return true;
                    }
                }
            }
        }
    }

    fn serves(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.glance().serves())
    }

    /// Lets the node live for a while, or until it serves.
    fn settle(&mut self) {
        for _ in 0..20 {
            if self.serves() || self.node.is_none() {
                return;
            }
            let until = self.world.now() + Duration::from_millis(100);
            self.run(until);
        }
    }

    fn connect(&mut self) -> Option<ConnId> {
        self.client.submit(Op::Connect { token: 1, addr: ADDRESS });
        let until = self.world.now() + Duration::from_secs(1);
        while self.run(until) {
            for event in std::mem::take(&mut self.events) {
                if let Event::Connected { result, .. } = event {
                    let conn = result.ok()?;
                    self.client.submit(Op::Receive { conn });
                    return Some(conn);
                }
            }
        }
        None
    }

    fn call(&mut self, conn: ConnId, request: String) -> Option<Vec<u8>> {
        self.client.submit(Op::Send { token: 2, conn, data: Outgoing::Owned(request.into_bytes()) });
        let mut reply = Vec::new();
        let until = self.world.now() + Duration::from_secs(2);
        while self.run(until) {
            for event in std::mem::take(&mut self.events) {
                match event {
                    Event::Received { bytes, .. } => {
                        reply.extend_from_slice(&bytes);
                        let whole = ReplyParser::new().parse(&reply, &ReplyLimits::default());
                        if whole.expect("a reply") == Some(reply.len()) {
                            return Some(reply);
                        }
                    }
                    Event::Closed { .. } => return None,
                    _ => {}
                }
            }
        }
        None
    }

    fn kill(&mut self) {
        self.node = None;
        self.world.kill(self.host);
        let until = self.world.now() + Duration::from_millis(500);
        while self.run(until) {
            self.events.clear();
        }
    }
}

fn value(key: u64, round: u64) -> String {
    format!("{key}-{round}-").repeat(if key == 3 { 1500 } else { 40 })
}

const ROUNDS: u64 = 3;

/// The disk of a node that has served, made a few checkpoints, and was killed.
fn image() -> DiskImage {
    let mut machine = Machine::new(None);
    machine.start().unwrap_or_else(|why| panic!("{why}"));
    machine.settle();
    assert!(machine.serves(), "a new node serves");
    let conn = machine.connect().expect("it listens");
    for round in 0..ROUNDS {
        for key in 0..KEYS {
            let reply = machine.call(conn, format!("SET {key} {}\r\n", value(key, round)));
            assert_eq!(reply.as_deref(), Some(&b"+OK\r\n"[..]), "a write in good times");
        }
        machine.turns = 0;
    }
    let until = machine.world.now() + Duration::from_millis(600);
    while machine.run(until) {}
    machine.kill();
    machine.world.disk_image(machine.host)
}

thread_local! {
    static IMAGE: DiskImage = image();
}

fn seal_page(page: &mut [u8], number: u64) {
    let sum = Digest::seeded(&page[..PAGE_BYTES - 16], number);
    page[PAGE_BYTES - 16..].copy_from_slice(&sum.0.to_le_bytes());
}

fn seal_slot(slot: &mut [u8]) {
    let used = u32::from_le_bytes(slot[12..16].try_into().expect("four bytes")) as usize;
    if (80..=slot.len()).contains(&used) {
        let digest = Digest::of(&slot[..used - 16]);
        slot[used - 16..used].copy_from_slice(&digest.0.to_le_bytes());
    }
}

/// Changes one file; says whether it was part of the log.
fn damage(script: &mut Script<'_>, machine: &mut Machine, paths: &[PathBuf]) -> bool {
    let path = &paths[script.below(paths.len())];
    let name = path.file_name().expect("a file").to_string_lossy().into_owned();
    let mut bytes = machine.world.file(machine.host, path).expect("it is there");
    if bytes.is_empty() {
        return false;
    }
    // Not all parts of a file are alike: whole pages, slots and blocks, one of them.
    let part = if name == "pages" { PAGE_BYTES } else { BLOCK };
    let number = script.below(bytes.len().div_ceil(part));
    let (low, high) = (number * part, bytes.len().min((number + 1) * part));
    let how = script.byte();
    match how % 8 {
        0 => bytes[low..high].fill(0),
        1 => {
            // A write that went to another place.
            let from = script.below(bytes.len().div_ceil(part)) * part;
            let copy = bytes[from..bytes.len().min(from + high - low)].to_vec();
            bytes[low..low + copy.len()].copy_from_slice(&copy);
        }
        _ => script.edit(&mut bytes[low..high]),
    }
    if how & 8 != 0 {
        match name.as_str() {
            "control.a" | "control.b" => seal_control(&mut bytes),
            "flushed" => seal_mark(&mut bytes),
            "superblock" => seal_slot(&mut bytes[low..]),
            "pages" if high - low == PAGE_BYTES => seal_page(&mut bytes[low..high], number as u64),
            "pages" => {}
            _ => seal_frames(&mut bytes[low..]),
        }
    }
    let mut seam = machine.world.seam(machine.host);
    let file = seam.open(path, Open::Existing).expect("it is there");
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    seam.write_now(file, 0, &SharedSlice::copy_of(&bytes)).expect("the disk is well");
    seam.flush_now(file).expect("the disk is well");
    drop(seam);
    machine.world.kill(machine.host);
    name.ends_with(".wal") || how & 8 != 0
}

/// Input: the damage, (file, part, how, edit) again and again.
pub fn folder(data: &[u8]) -> u64 {
    let mut script = Script::new(data);
    let mut machine = Machine::new(Some(&IMAGE.with(DiskImage::clone)));
    let paths = machine.world.files(machine.host);
    let paths: Vec<PathBuf> = paths.into_iter().filter(|path| !path.ends_with("LOCK")).collect();
    let mut lost = false;
    for _ in 0..6 {
        if script.is_over() {
            break;
        }
        lost |= damage(&mut script, &mut machine, &paths);
    }
    let mut ways = Vec::new();
    for life in 0..2 {
        machine.turns = 0;
        if let Err(why) = machine.start() {
            ways.push(why);
            break;
        }
        machine.settle();
        let Some(node) = &machine.node else {
            ways.push("ended".into());
            machine.kill();
            continue;
        };
        let glance = node.glance();
        assert!(glance.applied <= glance.committed && glance.committed <= glance.appended);
        ways.push(format!("{:?} {:?}", glance.role, glance.state));
        let conn = machine.connect();
        for key in (0..KEYS).step_by(3) {
            let Some(reply) = conn.and_then(|conn| machine.call(conn, format!("GET {key}\r\n"))) else {
                break;
            };
            let reply = String::from_utf8_lossy(&reply).into_owned();
            if !lost && !reply.starts_with('-') {
                let good = reply.contains(&value(key, ROUNDS - 1)) || (life == 1 && reply.contains("again"));
                assert!(good, "an acknowledged value is gone: {}", &reply[..reply.len().min(60)]);
            }
        }
        if let Some(conn) = conn {
            let _ = machine.call(conn, "SET 0 again\r\n".into());
        }
        machine.kill();
    }
    way(ways)
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut all = vec![Vec::new()];
    for file in 0..10u8 {
        for how in [0, 1, 2, 10, 11, 4] {
            all.push(vec![file, file % 3, how, 9, 0, file % 6, 3, 40]);
            all.push(vec![file, 0, how, 40, 0, 2, 1, 1, 3, 1, how, 60, 0, 3, 9]);
        }
    }
    all
}

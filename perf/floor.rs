//! The physical floor: client -> primary -> standby with the same sends, writes and flushes as a synchronous pair, and
//! nothing else. No parsing, no store, no checksums, no terms: what baton costs above this is baton's own.
//!
//! `floor standby --listen ADDR --file FILE`, then `floor primary --listen ADDR --peer ADDR --file FILE`. The primary
//! answers `+OK` for every [`REQUEST_BYTES`] bytes that it receives (a SET with a 16-byte key and 100 bytes of value, as
//! `baton bench` sends them), once they are on stable storage on both sides.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;

use baton::base::AlignedBuf;
use baton::io::uring::{UringConfig, UringSeam};
use baton::io::{ConnId, Event, FileId, Op, Open, Outgoing, Seam};

const REQUEST_BYTES: usize = 144;
const BLOCK: usize = 4096;
/// Written before it is used, like a log segment; used round and round.
const FILE_BYTES: u64 = 64 << 20;
/// The same rule as the log's: one group at a time, unless the next one is worth a write of its own.
const EAGER_BYTES: usize = 2 << 10;
const GROUPS_MAX: usize = 4;
const GROUP_BYTES_MAX: usize = 1 << 20;
/// In front of a group on the wire: its length, and room for a header like a frame's.
const HEAD_BYTES: usize = 128;
const ACK_BYTES: usize = 64;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + 1).cloned()
    };
    let usage = "floor primary|standby --listen ADDR --file FILE [--peer ADDR]";
    let listen: SocketAddr = option("--listen").expect(usage).parse().expect("an address");
    let file = PathBuf::from(option("--file").expect(usage));
    let mut seam = UringSeam::new(UringConfig::default()).expect("a ring");
    let file = prepare(&mut seam, &file);
    let (listener, _) = seam.listen(listen).expect("a free port");
    seam.submit(Op::Accept { listener });
    match args.get(1).map(String::as_str) {
        Some("primary") => {
            let peer: SocketAddr = option("--peer").expect(usage).parse().expect("an address");
            seam.submit(Op::Connect { token: 0, addr: peer });
            Primary::new(seam, file).run()
        }
        Some("standby") => Standby {
            seam,
            file,
            at: 0,
            input: Vec::new(),
            conn: None,
            ended: VecDeque::new(),
            acked: 0,
            sending: false,
            token: 0,
        }
        .run(),
        _ => panic!("{usage}"),
    }
}

fn prepare(seam: &mut UringSeam, path: &std::path::Path) -> FileId {
    let _ = seam.remove(path);
    let file = seam.open(path, Open::Create).expect("a new file");
    let zeroes = AlignedBuf::zeroed(1 << 20).share();
    for offset in (0..FILE_BYTES).step_by(1 << 20) {
        seam.write_now(file, offset, &zeroes).expect("room on the disk");
    }
    seam.flush_now(file).expect("a working disk");
    file
}

/// Writes `bytes`, padded to whole blocks, at the place that `at` names, durably.
fn write(seam: &mut UringSeam, file: FileId, at: &mut u64, token: u64, bytes: &[u8]) {
    let len = bytes.len().next_multiple_of(BLOCK);
    if *at + len as u64 > FILE_BYTES {
        *at = 0;
    }
    let mut buf = AlignedBuf::zeroed(len);
    buf[..bytes.len()].copy_from_slice(bytes);
    seam.submit(Op::Write { token, file, offset: *at, data: buf.share(), durable: true });
    *at += len as u64;
}

/// A group on its way: how many requests of whom, and who has it on stable storage.
struct Group {
    requests: Vec<(ConnId, usize)>,
    token: u64,
    here: bool,
}

#[derive(Default)]
struct Client {
    /// Bytes behind the last whole request.
    rest: usize,
    output: Vec<u8>,
    sending: bool,
}

struct Primary {
    seam: UringSeam,
    file: FileId,
    at: u64,
    token: u64,
    peer: Option<ConnId>,
    peer_sending: bool,
    peer_queue: Vec<u8>,
    peer_input: usize,
    /// Groups that the standby has.
    peer_has: u64,
    clients: BTreeMap<ConnId, Client>,
    open: Vec<u8>,
    requests: Vec<(ConnId, usize)>,
    groups: VecDeque<Group>,
}

impl Primary {
    fn new(seam: UringSeam, file: FileId) -> Primary {
        Primary {
            seam,
            file,
            at: 0,
            token: 0,
            peer: None,
            peer_sending: false,
            peer_queue: Vec::new(),
            peer_input: 0,
            peer_has: 0,
            clients: BTreeMap::new(),
            open: vec![0; HEAD_BYTES],
            requests: Vec::new(),
            groups: VecDeque::new(),
        }
    }

    fn run(mut self) -> ! {
        let mut events = Vec::new();
        loop {
            self.seam.reap(None, &mut events);
            for event in events.drain(..) {
                self.handle(event);
            }
            self.commit();
            self.seal();
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Connected { result, .. } => {
                let conn = result.expect("the standby listens");
                self.peer = Some(conn);
                self.seam.submit(Op::Receive { conn });
            }
            Event::Accepted { conn, .. } => {
                self.clients.insert(conn, Client::default());
                self.seam.submit(Op::Receive { conn });
            }
            Event::Received { conn, bytes } if Some(conn) == self.peer => {
                self.peer_input += bytes.len();
                self.peer_has += (self.peer_input / ACK_BYTES) as u64;
                self.peer_input %= ACK_BYTES;
            }
            Event::Received { conn, bytes } => {
                let client = self.clients.get_mut(&conn).expect("an accepted one");
                client.rest += bytes.len();
                let whole = client.rest / REQUEST_BYTES;
                client.rest %= REQUEST_BYTES;
                self.open.extend_from_slice(&bytes);
                self.requests.push((conn, whole));
            }
            Event::Sent { conn, .. } if Some(conn) == self.peer => {
                self.peer_sending = false;
                self.send_peer();
            }
            Event::Sent { conn, data, .. } => {
                if let Some(client) = self.clients.get_mut(&conn) {
                    client.sending = false;
                    if let (true, Outgoing::Owned(mut bytes)) = (client.output.is_empty(), data) {
                        bytes.clear();
                        client.output = bytes;
                    }
                    self.send(conn);
                }
            }
            Event::Written { token, result } => {
                result.expect("a working disk");
                let group = self.groups.iter_mut().find(|group| group.token == token);
                group.expect("it is under way").here = true;
            }
            Event::Closed { conn, .. } => {
                assert!(Some(conn) != self.peer, "the standby went away");
                self.clients.remove(&conn);
            }
            _ => {}
        }
    }

    /// Answers the groups that are on stable storage on both sides.
    fn commit(&mut self) {
        while self.groups.front().is_some_and(|group| group.here && group.token <= self.peer_has) {
            let group = self.groups.pop_front().expect("just seen");
            for (conn, count) in group.requests {
                if let Some(client) = self.clients.get_mut(&conn) {
                    (0..count).for_each(|_| client.output.extend_from_slice(b"+OK\r\n"));
                    self.send(conn);
                }
            }
        }
    }

    fn seal(&mut self) {
        let busy = self.groups.iter().filter(|group| !group.here).count();
        let worth = self.open.len() >= EAGER_BYTES && busy < GROUPS_MAX;
        if self.peer.is_none() || self.requests.is_empty() || (busy > 0 && !worth) {
            return;
        }
        assert!(
            self.open.len() <= GROUP_BYTES_MAX + HEAD_BYTES,
            "fewer bytes are under way than one group takes"
        );
        self.token += 1;
        let len = self.open.len() as u32;
        self.open[..4].copy_from_slice(&len.to_le_bytes());
        write(&mut self.seam, self.file, &mut self.at, self.token, &self.open);
        self.peer_queue.extend_from_slice(&self.open);
        self.open.truncate(HEAD_BYTES);
        let requests = std::mem::take(&mut self.requests);
        self.groups.push_back(Group { requests, token: self.token, here: false });
        self.send_peer();
    }

    fn send_peer(&mut self) {
        if let (Some(conn), false, false) = (self.peer, self.peer_sending, self.peer_queue.is_empty()) {
            self.peer_sending = true;
            let data = Outgoing::Owned(std::mem::take(&mut self.peer_queue));
            self.seam.submit(Op::Send { token: 0, conn, data });
        }
    }

    fn send(&mut self, conn: ConnId) {
        let client = self.clients.get_mut(&conn).expect("the caller has seen it");
        if !client.sending && !client.output.is_empty() {
            client.sending = true;
            let data = Outgoing::Owned(std::mem::take(&mut client.output));
            self.seam.submit(Op::Send { token: 0, conn, data });
        }
    }
}

struct Standby {
    seam: UringSeam,
    file: FileId,
    at: u64,
    token: u64,
    input: Vec<u8>,
    conn: Option<ConnId>,
    /// For each write under way, whether it has ended.
    ended: VecDeque<bool>,
    /// Groups written durably, without a hole, and not yet told.
    acked: usize,
    sending: bool,
}

impl Standby {
    fn run(mut self) -> ! {
        let mut events = Vec::new();
        let mut first = 1;
        loop {
            self.seam.reap(None, &mut events);
            for event in events.drain(..) {
                match event {
                    Event::Accepted { conn, .. } => {
                        self.conn = Some(conn);
                        self.seam.submit(Op::Receive { conn });
                    }
                    Event::Received { bytes, .. } => self.input.extend_from_slice(&bytes),
                    Event::Sent { .. } => self.sending = false,
                    Event::Written { token, result } => {
                        result.expect("a working disk");
                        self.ended[(token - first) as usize] = true;
                    }
                    Event::Closed { .. } => std::process::exit(0),
                    _ => {}
                }
            }
            while self.ended.front() == Some(&true) {
                self.ended.pop_front();
                (first, self.acked) = (first + 1, self.acked + 1);
            }
            self.take_groups();
            if let (Some(conn), false, 1..) = (self.conn, self.sending, self.acked) {
                let data = Outgoing::Owned(vec![0; ACK_BYTES * std::mem::take(&mut self.acked)]);
                self.sending = true;
                self.seam.submit(Op::Send { token: 0, conn, data });
            }
        }
    }

    fn take_groups(&mut self) {
        let mut used = 0;
        while let Some(head) = self.input[used..].first_chunk::<4>() {
            let len = u32::from_le_bytes(*head) as usize;
            let Some(group) = self.input[used..].get(..len) else { break };
            self.token += 1;
            write(&mut self.seam, self.file, &mut self.at, self.token, group);
            self.ended.push_back(false);
            used += len;
        }
        self.input.drain(..used);
    }
}

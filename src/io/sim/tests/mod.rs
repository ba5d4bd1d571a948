//! The world's promises, tested from outside through the seam.

mod clocks;
mod disks;
mod streams;
mod worlds;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::base::{Mono, SharedSlice};
use crate::io::{ConnId, Event, FileId, Op, Outgoing, Seam, Token};

pub(super) fn ip(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, n))
}

pub(super) fn addr(host: HostId, port: u16) -> SocketAddr {
    SocketAddr::new(ip(host.0 as u8 + 1), port)
}

pub(super) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(super) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(super) fn blocks(byte: u8, n: usize) -> SharedSlice {
    SharedSlice::copy_of(&vec![byte; n * 4096])
}

/// Hosts whose processes do nothing by themselves: each turn only collects its events.
pub(super) struct Rig {
    pub(super) world: World,
    pub(super) seams: BTreeMap<HostId, SimSeam>,
    pub(super) events: BTreeMap<HostId, Vec<Event>>,
    pub(super) crashed: Vec<HostId>,
}

impl Rig {
    pub(super) fn new(seed: u64, hosts: u8) -> Rig {
        Rig::with(seed, hosts, SimConfig::default())
    }

    pub(super) fn with(seed: u64, hosts: u8, config: SimConfig) -> Rig {
        let world = World::new(seed, config);
        let hosts: Vec<HostId> = (0..hosts).map(|n| world.add_host(ip(n + 1))).collect();
        let mut rig = Rig { world, seams: BTreeMap::new(), events: BTreeMap::new(), crashed: vec![] };
        for host in hosts {
            rig.start(host);
        }
        rig
    }

    pub(super) fn start(&mut self, host: HostId) {
        let seam = self.world.seam(host);
        self.seams.insert(host, seam);
        self.events.insert(host, Vec::new());
    }

    pub(super) fn seam(&mut self, host: HostId) -> &mut SimSeam {
        self.seams.get_mut(&host).expect("started")
    }

    pub(super) fn step(&mut self, limit: Mono) -> bool {
        match self.world.next_before(limit) {
            Some(Due::Turn(host)) => {
                let seam = self.seams.get_mut(&host).expect("started");
                seam.reap(None, self.events.get_mut(&host).expect("started"));
                self.world.wake_at(host, None);
                true
            }
            Some(Due::Crashed(host)) => {
                self.seams.remove(&host);
                self.crashed.push(host);
                true
            }
            None => false,
        }
    }

    pub(super) fn run(&mut self, time: Duration) {
        let limit = self.world.now() + time;
        while self.step(limit) {}
    }

    /// Runs until an event satisfies `wanted`, and takes it.
    pub(super) fn wait<T>(&mut self, host: HostId, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
        let limit = self.world.now() + secs(60);
        loop {
            let events = self.events.get_mut(&host).expect("started");
            let found = events.iter().enumerate().find_map(|(i, e)| wanted(e).map(|t| (i, t)));
            if let Some((i, found)) = found {
                events.remove(i);
                return found;
            }
            assert!(self.step(limit), "it never happened; host {host:?} got {:?}", self.events[&host]);
        }
    }

    pub(super) fn take(&mut self, host: HostId) -> Vec<Event> {
        std::mem::take(self.events.get_mut(&host).expect("started"))
    }

    // ---- Files.

    pub(super) fn create(&mut self, host: HostId, path: &str) -> FileId {
        let parent = Path::new(path).parent().expect("not the root").to_path_buf();
        let seam = self.seam(host);
        let file = seam.open(Path::new(path), crate::io::Open::Create).expect("created");
        seam.sync_folder(&parent).expect("synced");
        file
    }

    pub(super) fn open(&mut self, host: HostId, path: &str) -> FileId {
        self.seam(host).open(Path::new(path), crate::io::Open::Existing).expect("opened")
    }

    pub(super) fn submit_write(
        &mut self,
        host: HostId,
        token: Token,
        file: FileId,
        block: u64,
        byte: u8,
        durable: bool,
    ) {
        let op = Op::Write { token, file, offset: block * 4096, data: blocks(byte, 1), durable };
        self.seam(host).submit(op);
    }

    pub(super) fn written(&mut self, host: HostId, token: Token) -> std::io::Result<()> {
        self.wait(host, |e| match e {
            Event::Written { token: t, result } if *t == token => Some(copy(result)),
            _ => None,
        })
    }

    pub(super) fn flushed(&mut self, host: HostId, token: Token) -> std::io::Result<()> {
        self.wait(host, |e| match e {
            Event::Flushed { token: t, result } if *t == token => Some(copy(result)),
            _ => None,
        })
    }

    pub(super) fn write(&mut self, host: HostId, file: FileId, block: u64, byte: u8, durable: bool) {
        self.submit_write(host, 1 << 60, file, block, byte, durable);
        self.written(host, 1 << 60).expect("written");
    }

    pub(super) fn flush(&mut self, host: HostId, file: FileId) {
        self.seam(host).submit(Op::Flush { token: 1 << 61, file });
        self.flushed(host, 1 << 61).expect("flushed");
    }

    /// First byte of each block of a file, as it stands now.
    pub(super) fn content(&self, host: HostId, path: &str) -> Option<Vec<u8>> {
        let bytes = self.world.file(host, Path::new(path))?;
        Some(bytes.chunks(4096).map(|b| b[0]).collect())
    }

    // ---- Connections.

    /// A connection from `a` to `b`, both ends receiving.
    pub(super) fn connect(&mut self, a: HostId, b: HostId, port: u16) -> (ConnId, ConnId) {
        let (here, there) = self.connect_quietly(a, b, port);
        self.seam(a).submit(Op::Receive { conn: here });
        self.seam(b).submit(Op::Receive { conn: there });
        (here, there)
    }

    /// A connection whose ends do not receive yet.
    pub(super) fn connect_quietly(&mut self, a: HostId, b: HostId, port: u16) -> (ConnId, ConnId) {
        let (listener, at) = self.seam(b).listen(addr(b, port)).expect("listening");
        self.seam(b).submit(Op::Accept { listener });
        self.seam(a).submit(Op::Connect { token: 77, addr: at });
        let here = self.connected(a, 77).expect("connected");
        let there = self.wait(b, |e| match e {
            Event::Accepted { conn, .. } => Some(*conn),
            _ => None,
        });
        (here, there)
    }

    pub(super) fn connected(&mut self, host: HostId, token: Token) -> std::io::Result<ConnId> {
        self.wait(host, |e| match e {
            Event::Connected { token: t, result } if *t == token => Some(copy(result)),
            _ => None,
        })
    }

    pub(super) fn send(&mut self, host: HostId, conn: ConnId, bytes: Vec<u8>) {
        self.seam(host).submit(Op::Send { token: 5, conn, data: Outgoing::Owned(bytes) });
    }

    pub(super) fn sent(&mut self, host: HostId, conn: ConnId) -> std::io::Result<()> {
        self.wait(host, |e| match e {
            Event::Sent { conn: c, result, .. } if *c == conn => Some(copy(result)),
            _ => None,
        })
    }

    pub(super) fn closed(&mut self, host: HostId, conn: ConnId) -> crate::io::CloseReason {
        self.wait(host, |e| match e {
            Event::Closed { conn: c, reason } if *c == conn => Some(*reason),
            _ => None,
        })
    }

    /// All bytes received so far on a connection, in order; they stay in the log.
    pub(super) fn received(&self, host: HostId, conn: ConnId) -> Vec<u8> {
        let parts = self.events[&host].iter().filter_map(|e| match e {
            Event::Received { conn: c, bytes } if *c == conn => Some(&**bytes),
            _ => None,
        });
        parts.flatten().copied().collect()
    }
}

fn copy<T: Copy>(result: &std::io::Result<T>) -> std::io::Result<T> {
    match result {
        Ok(value) => Ok(*value),
        Err(e) => Err(e.kind().into()),
    }
}

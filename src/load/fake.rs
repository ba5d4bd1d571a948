//! A seam for tests: a toy RESP server behind virtual time. Every request is answered after a fixed delay; at given
//! moments the server drops its connections or turns read-only.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::base::{AlignedBuf, Mono, SharedSlice, WallMs};
use crate::io::{
    CloseReason, ConnId, Event, FileId, ListenerId, Op, Open, Outgoing, ReceivedBytes, Seam, Waker,
};
use crate::resp::{Parse, RequestLimits, RequestParser};

/// What the toy servers do and when.
#[derive(Clone, Debug, Default)]
pub struct Script {
    pub delay: Duration,
    /// Between these moments nobody can connect, and at the first one all connections end.
    pub down: Option<(Duration, Duration)>,
    /// This server answers every write with READONLY.
    pub readonly: Option<SocketAddr>,
    pub password: Option<String>,
    /// The answer to WAIT.
    pub replicas: u32,
    /// Replies arrive in pieces of this many bytes.
    pub piece_bytes: usize,
}

struct Conn {
    server: SocketAddr,
    input: Vec<u8>,
    parser: RequestParser,
    closing: bool,
}

pub struct FakeSeam {
    script: Script,
    now: Mono,
    sequence: u64,
    due: BTreeMap<(Mono, u64), Event>,
    conns: BTreeMap<ConnId, Conn>,
    next_conn: u64,
    dropped: bool,
    pub commands: u64,
    pub keys: BTreeMap<Vec<u8>, u64>,
    /// GETs of each server.
    pub reads: BTreeMap<SocketAddr, u64>,
}

impl FakeSeam {
    pub fn new(script: Script) -> FakeSeam {
        FakeSeam {
            script,
            now: Mono(1_000_000_000),
            sequence: 0,
            due: BTreeMap::new(),
            conns: BTreeMap::new(),
            next_conn: 1,
            dropped: false,
            commands: 0,
            keys: BTreeMap::new(),
            reads: BTreeMap::new(),
        }
    }

    fn at(&mut self, when: Mono, event: Event) {
        self.sequence += 1;
        self.due.insert((when, self.sequence), event);
    }

    fn since_start(&self) -> Duration {
        self.now.since(Mono(1_000_000_000))
    }

    fn is_down(&self) -> bool {
        self.script.down.is_some_and(|(from, to)| (from..to).contains(&self.since_start()))
    }

    fn serve(&mut self, conn: ConnId, bytes: &[u8]) {
        let Some(mut state) = self.conns.remove(&conn) else { return };
        state.input.extend_from_slice(bytes);
        let mut reply = Vec::new();
        while let Ok(Parse::Request { consumed }) =
            state.parser.parse(&state.input, &RequestLimits::AUTHENTICATED)
        {
            let args = state.parser.args(&state.input);
            self.commands += 1;
            let readonly = self.script.readonly == Some(state.server);
            match args.at(0) {
                b"AUTH" if self.script.password.as_deref().map(str::as_bytes) == args.get(1) => {
                    reply.extend_from_slice(b"+OK\r\n");
                }
                b"WAIT" => reply.extend_from_slice(format!(":{}\r\n", self.script.replicas).as_bytes()),
                b"AUTH" => reply.extend_from_slice(b"-WRONGPASS no\r\n"),
                b"GET" => {
                    *self.reads.entry(state.server).or_default() += 1;
                    reply.extend_from_slice(b"$3\r\nabc\r\n");
                }
                _ if readonly => {
                    reply.extend_from_slice(b"-READONLY You can't write against a read only replica.\r\n")
                }
                b"SET" | b"INCR" => {
                    *self.keys.entry(args.at(1).to_vec()).or_default() += 1;
                    reply.extend_from_slice(if args.at(0) == b"SET" { b"+OK\r\n" } else { b":1\r\n" });
                }
                _ => reply.extend_from_slice(b"$3\r\nabc\r\n"),
            }
            state.input.drain(..consumed);
        }
        self.conns.insert(conn, state);
        let when = self.now + self.script.delay;
        let piece = if self.script.piece_bytes == 0 { reply.len().max(1) } else { self.script.piece_bytes };
        for chunk in reply.chunks(piece) {
            self.at(when, Event::Received { conn, bytes: ReceivedBytes::Owned(chunk.to_vec()) });
        }
    }

    fn drop_all(&mut self) {
        let conns: VecDeque<ConnId> = self.conns.keys().copied().collect();
        for conn in conns {
            self.conns.remove(&conn);
            self.due.retain(|_, event| !matches!(event, Event::Received { conn: c, .. } if *c == conn));
            self.at(self.now, Event::Closed { conn, reason: CloseReason::Reset });
        }
    }
}

impl Seam for FakeSeam {
    fn now(&self) -> Mono {
        self.now
    }
    fn wall(&self) -> WallMs {
        WallMs(0)
    }
    fn random(&mut self) -> u64 {
        4
    }

    fn submit(&mut self, op: Op) {
        match op {
            Op::Connect { token, addr } => {
                let result = if self.is_down() {
                    Err(io::ErrorKind::ConnectionRefused.into())
                } else {
                    let conn = ConnId(self.next_conn);
                    self.next_conn += 1;
                    let state = Conn {
                        server: addr,
                        input: Vec::new(),
                        parser: RequestParser::new(),
                        closing: false,
                    };
                    self.conns.insert(conn, state);
                    Ok(conn)
                };
                self.at(self.now, Event::Connected { token, result });
            }
            Op::Send { token, conn, data } => {
                if let Outgoing::Owned(bytes) = &data {
                    self.serve(conn, bytes);
                }
                self.at(self.now, Event::Sent { token, conn, data, result: Ok(()) });
            }
            Op::Close { conn } => {
                if let Some(state) = self.conns.remove(&conn) {
                    assert!(!state.closing);
                    self.at(self.now, Event::Closed { conn, reason: CloseReason::Local });
                }
            }
            _ => {}
        }
    }

    fn reap(&mut self, deadline: Option<Mono>, out: &mut Vec<Event>) {
        let deadline = deadline.expect("the load always has a deadline");
        let next = self.due.keys().next().map_or(deadline, |(when, _)| *when);
        let mut until = next.min(deadline).max(self.now);
        if let Some((from, _)) = self.script.down
            && !self.dropped
        {
            let fall = Mono(1_000_000_000) + from;
            if until >= fall {
                self.dropped = true;
                until = fall.max(self.now);
                self.now = until;
                self.drop_all();
            }
        }
        self.now = until;
        while let Some(entry) = self.due.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            out.push(entry.remove());
        }
    }

    fn open(&mut self, _: &Path, _: Open) -> io::Result<FileId> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn close_file(&mut self, _: FileId) {}
    fn file_len(&mut self, _: FileId) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn rename(&mut self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn remove(&mut self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn create_folder(&mut self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn list(&mut self, _: &Path) -> io::Result<Vec<String>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn sync_folder(&mut self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn free_bytes(&mut self, _: &Path) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn lock_folder(&mut self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn listen(&mut self, _: SocketAddr) -> io::Result<(ListenerId, SocketAddr)> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn read_now(&mut self, _: FileId, _: u64, _: usize) -> io::Result<AlignedBuf> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn write_now(&mut self, _: FileId, _: u64, _: &SharedSlice) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn flush_now(&mut self, _: FileId) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn waker(&self) -> Arc<dyn Waker> {
        struct Nobody;
        impl Waker for Nobody {
            fn wake(&self) {}
        }
        Arc::new(Nobody)
    }
}

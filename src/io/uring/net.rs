//! Sockets: listeners, dials and connections.
//!
//! A connection's descriptor is closed, and its [`Event::Closed`] reported, only when the kernel has given back its
//! receive and its send, so that no completion can follow.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use io_uring::cqueue;

use super::flight::{Flight, Gather, Sending};
use super::ring::Completion;
use super::sys::{self, Name};
use super::{UringSeam, ZERO_COPY_BYTES_MIN, ZeroCopy};
use crate::io::{CloseReason, ConnId, Event, ListenerId, Outgoing, ReceivedBytes, Token};

/// Gather lists kept for reuse.
const GATHERS_KEPT: usize = 64;
/// The mark in a zero-copy notification which says that the kernel copied.
const ZERO_COPY_COPIED: u32 = 1 << 31;
/// An id names a place, the loop that has it (0: the node's own), and in the rest the number of its use.
const CONN_INDEX_BITS: u32 = 24;
const CONN_LOOP_BITS: u32 = 6;
const CONN_SERIAL_BITS: u32 = u64::BITS - CONN_INDEX_BITS - CONN_LOOP_BITS;
/// Network loops beside the node's own.
pub const NETWORK_LOOPS_MAX: u16 = (1 << CONN_LOOP_BITS) - 1;

pub(super) fn conn_id(serial: u64, on_loop: usize, index: usize) -> ConnId {
    assert!(index < 1 << CONN_INDEX_BITS && on_loop < 1 << CONN_LOOP_BITS, "descriptors are fewer");
    assert!(serial < 1 << CONN_SERIAL_BITS, "a process sees fewer connections");
    ConnId(
        (serial << (CONN_INDEX_BITS + CONN_LOOP_BITS)) | ((on_loop as u64) << CONN_INDEX_BITS) | index as u64,
    )
}

pub(super) fn index_of(id: ConnId) -> usize {
    (id.0 & ((1 << CONN_INDEX_BITS) - 1)) as usize
}

pub(super) fn loop_of(id: ConnId) -> usize {
    ((id.0 >> CONN_INDEX_BITS) & ((1 << CONN_LOOP_BITS) - 1)) as usize
}

struct Listener {
    fd: OwnedFd,
    accepting: bool,
    /// Its connections go to the network loops.
    spread: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Receiving {
    No,
    /// Under way, with this key.
    Yes(u64),
    /// Being cancelled.
    Stopping,
    /// Wanted, but no receive buffer is free, or receiving is held.
    Starved,
}

struct Conn {
    id: ConnId,
    /// Gone early only in the end of a connection whose last send is stuck (see `finish`).
    fd: Option<OwnedFd>,
    /// What the node asked for; `receiving` follows as the kernel allows.
    wanted: bool,
    receiving: Receiving,
    send: Option<u64>,
    zero_copy: bool,
    ending: Option<CloseReason>,
}

impl Conn {
    fn new(id: ConnId, fd: OwnedFd, zero_copy: bool) -> Conn {
        Conn {
            id,
            fd: Some(fd),
            wanted: false,
            receiving: Receiving::No,
            send: None,
            zero_copy,
            ending: None,
        }
    }

    fn raw_fd(&self) -> RawFd {
        self.fd.as_ref().expect("only an ending connection is without its descriptor").as_raw_fd()
    }
}

pub(super) struct Net {
    listeners: Vec<Listener>,
    conns: Vec<Option<Conn>>,
    free: Vec<u32>,
    serial: u64,
    starved: VecDeque<ConnId>,
    /// No receive starts: what was received before has not been taken yet.
    held: bool,
    gathers: Vec<Gather>,
    /// Cleared when the kernel turns out to be too old.
    multishot_accept: bool,
    pub(super) multishot_receive: bool,
}

impl Net {
    pub(super) fn new(multishot: bool) -> Net {
        Net {
            listeners: Vec::new(),
            conns: Vec::new(),
            free: Vec::new(),
            serial: 0,
            starved: VecDeque::new(),
            held: false,
            gathers: Vec::new(),
            multishot_accept: multishot,
            multishot_receive: multishot,
        }
    }

    /// The connection, unless it has ended.
    fn get(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(index_of(id))?.as_mut().filter(|conn| conn.id == id)
    }

    fn insert(&mut self, fd: OwnedFd, zero_copy: bool) -> ConnId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.conns.push(None);
            u32::try_from(self.conns.len() - 1).expect("descriptors are fewer")
        });
        self.serial += 1;
        let id = conn_id(self.serial, 0, index as usize);
        self.conns[index as usize] = Some(Conn::new(id, fd, zero_copy));
        id
    }

    /// Takes over a connection to which another loop has given its id.
    pub(super) fn adopt(&mut self, id: ConnId, fd: OwnedFd, zero_copy: bool) {
        let index = index_of(id);
        if index >= self.conns.len() {
            self.conns.resize_with(index + 1, || None);
        }
        assert!(self.conns[index].is_none() && loop_of(id) > 0, "a place holds one connection");
        self.conns[index] = Some(Conn::new(id, fd, zero_copy));
    }

    fn remove(&mut self, id: ConnId) {
        let conn = self.conns[index_of(id)].take();
        assert!(conn.is_some_and(|conn| conn.id == id), "a connection is removed once");
        // The places of adopted connections are given out elsewhere.
        if loop_of(id) == 0 {
            self.free.push(index_of(id) as u32);
        }
    }

    /// Holds back receives that have yet to start, or lets them go on.
    pub(super) fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// Connections wait for receive buffers.
    pub(super) fn is_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    fn keep_gather(&mut self, gather: Option<Gather>) {
        if let Some(gather) = gather
            && self.gathers.len() < GATHERS_KEPT
        {
            self.gathers.push(gather);
        }
    }
}

fn reason_of(code: i32) -> CloseReason {
    match code {
        libc::ECONNRESET | libc::EPIPE => CloseReason::Reset,
        _ => CloseReason::Failed,
    }
}

impl UringSeam {
    pub(super) fn start_listening(&mut self, addr: SocketAddr) -> io::Result<(ListenerId, SocketAddr)> {
        let (fd, bound) = sys::listener(&addr, self.config.backlog, self.config.peer_timeout)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {addr}: {error}")))?;
        self.net.listeners.push(Listener { fd, accepting: false, spread: false });
        Ok((ListenerId(self.net.listeners.len() as u32 - 1), bound))
    }

    pub(super) fn spread_listener(&mut self, id: ListenerId) {
        self.net.listeners[id.0 as usize].spread = true;
    }

    // ---- accepting and dialling ----

    pub(super) fn start_accept(&mut self, id: ListenerId) {
        let multishot = self.net.multishot_accept;
        let listener = &mut self.net.listeners[id.0 as usize];
        if !std::mem::replace(&mut listener.accepting, true) {
            let fd = listener.fd.as_raw_fd();
            self.launch(Flight::Accept { listener: id.0, fd, multishot });
        }
    }

    pub(super) fn accept_completed(&mut self, listener: u32, done: Completion, out: &mut Vec<Event>) {
        let id = ListenerId(listener);
        let goes_on = cqueue::more(done.flags);
        if !goes_on {
            self.net.listeners[listener as usize].accepting = false;
        }
        let mut again = true;
        if done.result >= 0 {
            let fd = sys::own(done.result);
            // A peer that has already gone leaves nothing to report.
            if let Ok(peer) = sys::peer_of(&fd) {
                let zero_copy = self.may_zero_copy(&peer);
                let spread = self.spread.as_mut().filter(|_| self.net.listeners[listener as usize].spread);
                let conn = match spread {
                    Some(spread) => spread.adopt(fd, zero_copy),
                    None => self.net.insert(fd, zero_copy),
                };
                out.push(Event::Accepted { listener: id, conn, peer });
            }
        } else {
            match -done.result {
                libc::EINVAL if self.net.multishot_accept => self.net.multishot_accept = false,
                code if passes_by_itself(code) => {}
                code => {
                    again = false;
                    let error = io::Error::from_raw_os_error(code);
                    out.push(Event::AcceptFailed { listener: id, error });
                }
            }
        }
        if again && !goes_on {
            self.start_accept(id);
        }
    }

    pub(super) fn start_connect(&mut self, token: Token, addr: SocketAddr, out: &mut Vec<Event>) {
        match sys::dialler(&addr, self.config.connect_timeout, self.config.peer_timeout) {
            Ok(fd) => {
                self.launch(Flight::Connect { token, fd, addr, name: Box::new(Name::from(addr)) });
            }
            Err(error) => out.push(Event::Connected { token, result: Err(error) }),
        }
    }

    pub(super) fn connect_completed(
        &mut self,
        token: Token,
        fd: OwnedFd,
        addr: &SocketAddr,
        result: i32,
        out: &mut Vec<Event>,
    ) {
        let outcome = if result < 0 {
            Err(io::Error::from_raw_os_error(-result))
        } else {
            sys::set_user_timeout(&fd, self.config.peer_timeout)
        };
        let result = outcome.map(|()| {
            let zero_copy = self.may_zero_copy(addr);
            self.net.insert(fd, zero_copy)
        });
        out.push(Event::Connected { token, result });
    }

    fn may_zero_copy(&self, peer: &SocketAddr) -> bool {
        match self.config.zero_copy {
            ZeroCopy::Never => false,
            ZeroCopy::Remote => !peer.ip().to_canonical().is_loopback(),
            ZeroCopy::Everywhere => true,
        }
    }

    // ---- receiving ----

    pub(super) fn start_receive(&mut self, id: ConnId) {
        if let Some(conn) = self.net.get(id)
            && conn.ending.is_none()
        {
            conn.wanted = true;
            if conn.receiving == Receiving::No {
                self.arm_receive(id);
            }
        }
    }

    pub(super) fn pause_receive(&mut self, id: ConnId) {
        if let Some(conn) = self.net.get(id) {
            conn.wanted = false;
            self.stop_receive(id);
        }
    }

    fn arm_receive(&mut self, id: ConnId) {
        let many = self.net.multishot_receive && self.pool.is_some();
        let room = self.config.buffer_bytes as usize;
        if self.net.held {
            return self.starve(id);
        }
        let Some(conn) = self.net.get(id) else { return };
        let fd = conn.raw_fd();
        let flight = if many {
            Flight::ReceiveMany { conn: id, fd }
        } else {
            Flight::ReceiveOnce { conn: id, fd, into: vec![0; room] }
        };
        let key = self.launch(flight);
        self.net.get(id).expect("it was there").receiving = Receiving::Yes(key);
    }

    fn starve(&mut self, id: ConnId) {
        if let Some(conn) = self.net.get(id) {
            conn.receiving = Receiving::Starved;
            self.net.starved.push_back(id);
        }
    }

    fn stop_receive(&mut self, id: ConnId) {
        let Some(conn) = self.net.get(id) else { return };
        match conn.receiving {
            Receiving::Yes(key) => {
                conn.receiving = Receiving::Stopping;
                self.cancel(key);
            }
            Receiving::Starved => conn.receiving = Receiving::No,
            Receiving::No | Receiving::Stopping => {}
        }
    }

    /// `bytes` is what arrived, if anything did.
    pub(super) fn receive_completed(
        &mut self,
        id: ConnId,
        done: Completion,
        bytes: Option<ReceivedBytes>,
        out: &mut Vec<Event>,
    ) {
        let goes_on = cqueue::more(done.flags);
        let conn = self.net.get(id).expect("a connection stays until its receive has ended");
        if !goes_on {
            conn.receiving = Receiving::No;
        }
        let running = conn.ending.is_none();
        match done.result {
            1.. => {
                if let Some(bytes) = bytes
                    && running
                {
                    out.push(Event::Received { conn: id, bytes });
                }
            }
            0 => self.end(id, CloseReason::Finished, out),
            code => self.receive_failed(id, -code, out),
        }
        if goes_on {
            return;
        }
        let Some(conn) = self.net.get(id) else { return };
        if conn.ending.is_some() {
            self.finish(id, out);
        } else if conn.wanted && conn.receiving == Receiving::No {
            self.arm_receive(id);
        }
    }

    fn receive_failed(&mut self, id: ConnId, code: i32, out: &mut Vec<Event>) {
        match code {
            libc::ECANCELED | libc::EINTR | libc::EAGAIN => {}
            libc::ENOBUFS if self.pool.is_some() => {
                let conn = self.net.get(id).expect("the caller has found it");
                if conn.wanted && conn.ending.is_none() && conn.receiving == Receiving::No {
                    self.starve(id);
                }
            }
            libc::EINVAL if self.net.multishot_receive => self.net.multishot_receive = false,
            code => self.end(id, reason_of(code), out),
        }
    }

    /// Lets connections go on that ran out of receive buffers, first come first served, as far as buffers are back.
    pub(super) fn feed_starved(&mut self) {
        if self.net.starved.is_empty() || self.net.held {
            return;
        }
        let mut free = self.pool.as_ref().map_or(u16::MAX, |pool| pool.free());
        while free > 0
            && let Some(id) = self.net.starved.pop_front()
        {
            if let Some(conn) = self.net.get(id)
                && conn.receiving == Receiving::Starved
            {
                free -= 1;
                self.arm_receive(id);
            }
        }
    }

    // ---- sending ----

    pub(super) fn start_send(&mut self, token: Token, id: ConnId, data: Outgoing, out: &mut Vec<Event>) {
        let total = data.len();
        let Some(conn) = self.net.get(id).filter(|conn| conn.ending.is_none()) else {
            let result = Err(io::ErrorKind::NotConnected.into());
            // Before the end of the connection, if the node has yet to see it.
            let closed = |event: &Event| matches!(event, Event::Closed { conn, .. } if *conn == id);
            let at = out.iter().position(closed).unwrap_or(out.len());
            out.insert(at, Event::Sent { token, conn: id, data, result });
            return;
        };
        assert!(conn.send.is_none(), "one send at a time on a connection");
        if total == 0 {
            out.push(Event::Sent { token, conn: id, data, result: Ok(()) });
            return;
        }
        let fd = conn.raw_fd();
        let zero_copy = conn.zero_copy && total >= ZERO_COPY_BYTES_MIN;
        let gather = match &data {
            Outgoing::Owned(_) => None,
            Outgoing::Shared { .. } => Some(self.net.gathers.pop().unwrap_or_else(Gather::new)),
        };
        let sending = Sending { conn: id, fd, token, data, sent: 0, total, gather, zero_copy, round: None };
        let key = self.launch(Flight::Send(sending));
        self.fresh_sends += 1;
        self.net.get(id).expect("it was there").send = Some(key);
    }

    pub(super) fn send_completed(&mut self, key: u64, done: Completion, out: &mut Vec<Event>) {
        let Some(Flight::Send(sending)) = self.flights.get(key) else { return };
        let id = sending.conn;
        let conn = self.net.get(id).expect("a connection stays until its send has ended");
        let result = if cqueue::notif(done.flags) {
            if done.result as u32 & ZERO_COPY_COPIED != 0 {
                conn.zero_copy = false;
                sending.zero_copy = false;
            }
            sending.round.take().expect("a notification follows its result")
        } else if cqueue::more(done.flags) {
            sending.round = Some(done.result);
            return self.finish(id, out);
        } else {
            done.result
        };
        let outcome = match result {
            1.. => {
                sending.sent += result as usize;
                if sending.sent >= sending.total {
                    Ok(())
                } else if conn.ending.is_some() {
                    Err(libc::ECANCELED)
                } else {
                    return self.relaunch(key);
                }
            }
            0 => Err(libc::EPIPE),
            code => {
                let passing = [libc::EINTR, libc::EAGAIN].contains(&-code);
                let refused = sending.zero_copy && ZERO_COPY_REFUSALS.contains(&-code);
                if refused {
                    conn.zero_copy = false;
                    sending.zero_copy = false;
                }
                if (passing || refused) && conn.ending.is_none() {
                    return self.relaunch(key);
                }
                Err(-code)
            }
        };
        self.send_ended(key, outcome, out);
    }

    fn send_ended(&mut self, key: u64, outcome: Result<(), i32>, out: &mut Vec<Event>) {
        let Some(Flight::Send(sending)) = self.flights.remove(key) else { return };
        let Sending { conn: id, token, data, gather, .. } = sending;
        self.net.keep_gather(gather);
        self.net.get(id).expect("a connection stays until its send has ended").send = None;
        let result = outcome.map_err(io::Error::from_raw_os_error);
        out.push(Event::Sent { token, conn: id, data, result });
        if let Err(code) = outcome {
            self.end(id, reason_of(code), out);
        } else {
            self.finish(id, out);
        }
    }

    // ---- ending ----

    /// Begins the end of a connection; the first reason stands. Unknown and ended connections are ignored: the node
    /// may close one whose end is already on its way.
    pub(super) fn end(&mut self, id: ConnId, reason: CloseReason, out: &mut Vec<Event>) {
        let Some(conn) = self.net.get(id) else { return };
        if conn.ending.is_none() {
            conn.ending = Some(reason);
            conn.wanted = false;
            let send = conn.send;
            self.stop_receive(id);
            if let Some(key) = send {
                self.cancel(key);
            }
        }
        self.finish(id, out);
    }

    /// The loop ends: sends without copy give up what their peers have not taken, so that nobody waits for those.
    pub(super) fn abandon_sends(&mut self) {
        for conn in self.net.conns.iter_mut().flatten() {
            if let Some(key) = conn.send
                && let Some(Flight::Send(sending)) = self.flights.get(key)
                && sending.zero_copy
                && let Some(fd) = conn.fd.take()
            {
                sys::discard_on_close(&fd);
            }
        }
    }

    /// Closes an ending connection once the kernel holds nothing of it.
    fn finish(&mut self, id: ConnId, out: &mut Vec<Event>) {
        let Some(conn) = self.net.get(id) else { return };
        let Some(reason) = conn.ending else { return };
        if !matches!(conn.receiving, Receiving::No | Receiving::Starved) {
            return;
        }
        let Some(key) = conn.send else {
            self.net.remove(id);
            out.push(Event::Closed { conn: id, reason });
            return;
        };
        // A send without copy keeps its bytes in the socket's queue until the peer has them, which may be never.
        // Only the end of the socket gives them back.
        if let Some(Flight::Send(sending)) = self.flights.get(key)
            && sending.round.is_some()
            && let Some(fd) = conn.fd.take()
        {
            sys::discard_on_close(&fd);
        }
    }
}

/// Why the kernel may refuse to send without copying, although it would send.
const ZERO_COPY_REFUSALS: [i32; 4] = [libc::EOPNOTSUPP, libc::EINVAL, libc::ENOMEM, libc::ENOBUFS];

/// Errors of accept that concern one incoming connection, or nobody.
fn passes_by_itself(code: i32) -> bool {
    matches!(
        code,
        libc::ECONNABORTED
            | libc::EINTR
            | libc::EAGAIN
            | libc::EPERM
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENONET
    )
}

//! The network: links between hosts, dials, and connections as a program sees TCP.
//!
//! Each connection has two ends; each end owns what it sent and the other has not yet got (`flight`) and what arrived
//! and its process has not yet taken (`unread`). An end whose process let go of it is `gone`; bytes that reach a gone
//! end are answered with a reset, as a kernel does.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::config::{LinkFault, nanos};
use super::core::{Core, What};
use crate::base::Prng;
use crate::io::{CloseReason, ConnId, Event, ListenerId, Outgoing, Token};

pub(super) const HOSTS_MAX: usize = 64;
/// The number of the process behind an end that belongs to nobody ([`super::World::inject`]).
pub(super) const NOBODY: u64 = 0;

pub(super) const MS: u64 = 1_000_000;

/// One direction between two hosts.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) cut: bool,
    pub(super) latency: u64,
    pub(super) fault: LinkFault,
    /// Segments to come of which a bit is flipped.
    pub(super) flips: u32,
}

#[derive(Debug)]
pub(super) enum Body {
    Bytes(Vec<u8>),
    Finish,
    Reset,
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) at: u64,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) struct Sending {
    pub(super) token: Token,
    pub(super) data: Outgoing,
    pub(super) sent: usize,
    /// All of it is in the flight; the event is on its way.
    pub(super) done: bool,
}

impl Sending {
    pub(super) fn new(token: Token, data: Outgoing) -> Sending {
        Sending { token, data, sent: 0, done: false }
    }
}

#[derive(Debug)]
pub(super) struct End {
    pub(super) host: usize,
    pub(super) process: u64,
    pub(super) peer: u64,
    pub(super) peer_host: usize,
    pub(super) peer_addr: SocketAddr,
    /// Its process (or its kernel) let go of it.
    pub(super) gone: bool,
    /// Its process knows of it: a close will be reported.
    pub(super) announced: bool,

    // Outgoing.
    pub(super) sending: Option<Sending>,
    pub(super) flight: VecDeque<Segment>,
    pub(super) last_at: u64,
    pub(super) arrive_queued: bool,
    pub(super) room_queued: bool,
    /// Bytes between this sender and the receiver's turn.
    pub(super) used: usize,
    /// The head of the flight waits for a link or a machine to come back.
    pub(super) stuck: bool,
    /// Since when no acknowledgement gets through.
    pub(super) silent_since: Option<u64>,
    pub(super) capture: Option<usize>,

    // Incoming.
    pub(super) receiving: bool,
    pub(super) unread: VecDeque<Vec<u8>>,
    pub(super) ended: Option<CloseReason>,
}

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) host: usize,
    pub(super) process: u64,
    pub(super) addr: SocketAddr,
    pub(super) accepting: bool,
    pub(super) backlog: VecDeque<u64>,
}

#[derive(Debug)]
pub(super) struct Dial {
    pub(super) host: usize,
    pub(super) process: u64,
    pub(super) token: Token,
    pub(super) to: SocketAddr,
    pub(super) tries: u32,
    /// The end at the dialling side, once the listener answered.
    pub(super) end: Option<u64>,
    /// What a dial of nobody sends.
    pub(super) inject: Vec<u8>,
}

pub(super) struct Capture {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) bytes: Vec<u8>,
}

pub(super) struct Net {
    pub(super) rng: Prng,
    pub(super) links: Vec<Option<Link>>,
    pub(super) ends: BTreeMap<u64, End>,
    pub(super) listeners: BTreeMap<ListenerId, Listener>,
    pub(super) dials: BTreeMap<u64, Dial>,
    pub(super) captures: Vec<Capture>,
    pub(super) next_id: u64,
}

impl Net {
    pub(super) fn new(rng: Prng) -> Net {
        Net {
            rng,
            links: vec![None; HOSTS_MAX * HOSTS_MAX],
            ends: BTreeMap::new(),
            listeners: BTreeMap::new(),
            dials: BTreeMap::new(),
            captures: Vec::new(),
            next_id: 1,
        }
    }

    pub(super) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// Forgets an end that nothing can reach any more.
    pub(super) fn tidy(&mut self, id: u64) {
        let Some(end) = self.ends.get(&id) else { return };
        if !end.gone {
            return;
        }
        let peer = end.peer;
        let peer_gone = self.ends.get(&peer).is_none_or(|p| p.gone);
        let empty = end.flight.is_empty();
        if peer_gone {
            self.ends.remove(&peer);
        }
        if peer_gone || empty {
            self.ends.remove(&id);
        }
    }
}

fn refused() -> io::Error {
    io::ErrorKind::ConnectionRefused.into()
}

// ---- Links.
impl Core {
    pub(super) fn link(&mut self, from: usize, to: usize) -> &mut Link {
        let latency = self.config.net.latency;
        let rng = &mut self.net.rng;
        self.net.links[from * HOSTS_MAX + to].get_or_insert_with(|| Link {
            cut: false,
            latency: latency.draw(rng),
            fault: LinkFault::NONE,
            flips: 0,
        })
    }

    /// Whether something sent from one host now reaches the other's kernel.
    pub(super) fn reaches(&mut self, from: usize, to: usize) -> bool {
        self.hosts[to].powered && (from == to || !self.link(from, to).cut)
    }

    pub(super) fn delay(&mut self, from: usize, to: usize) -> u64 {
        if from == to {
            return self.config.net.local.draw(&mut self.net.rng);
        }
        let link = self.link(from, to).clone();
        let rng = &mut self.net.rng;
        let mut delay = link.latency + self.config.net.jitter.draw(rng) + link.fault.delay.draw(rng);
        let mut resend = nanos(self.config.net.resend);
        while link.fault.loss > 0.0 && rng.chance(link.fault.loss) && delay < 60_000 * MS {
            delay += resend;
            resend *= 2;
        }
        delay
    }

    pub(super) fn cut(&mut self, from: usize, to: usize) {
        if from != to {
            self.link(from, to).cut = true;
            self.trace.note(self.now, from, "cut", to as u64, 0);
        }
    }

    pub(super) fn mend(&mut self, from: usize, to: usize) {
        if from != to && self.link(from, to).cut {
            self.link(from, to).cut = false;
            self.trace.note(self.now, from, "mend", to as u64, 0);
            self.kick_between(from, to);
        }
    }

    pub(super) fn set_link(&mut self, from: usize, to: usize, fault: LinkFault) {
        if from != to {
            self.link(from, to).fault = fault;
        }
    }

    /// A link or a machine came back: what waited is sent again, sooner or later.
    pub(super) fn kick_between(&mut self, a: usize, b: usize) {
        let waiting = |end: &End| (end.host, end.peer_host) == (a, b) || (end.host, end.peer_host) == (b, a);
        let ids: Vec<u64> = self.net.ends.iter().filter(|(_, e)| waiting(e)).map(|(id, _)| *id).collect();
        for id in ids {
            self.kick(id);
        }
    }

    fn kick(&mut self, id: u64) {
        let Some(end) = self.net.ends.get(&id) else { return };
        let (from, to) = (end.host, end.peer_host);
        let there = self.reaches(from, to);
        let back = self.reaches(to, from);
        let delay = self.delay(from, to);
        let end = self.net.ends.get_mut(&id).expect("just seen");
        if there && end.stuck {
            // The sender's back-off has grown with the silence.
            let silence = end.silent_since.map_or(0, |since| self.now - since);
            let at = self.now + delay + self.net.rng.below(silence.min(2_000 * MS) + 1);
            end.stuck = false;
            for segment in &mut end.flight {
                segment.at = segment.at.max(at);
            }
            end.last_at = end.last_at.max(at);
            self.queue_arrival(id);
        }
        if there && back {
            self.net.ends.get_mut(&id).expect("just seen").silent_since = None;
        }
    }
}

// ---- Listening and dialling.
impl Core {
    pub(super) fn listen(&mut self, host: usize, addr: SocketAddr) -> io::Result<(ListenerId, SocketAddr)> {
        let h = &mut self.hosts[host];
        if !(addr.ip().is_unspecified() || addr.ip().is_loopback() || addr.ip() == h.ip) {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let process = h.process.as_ref().expect("checked to be alive").id;
        let mut bound = addr;
        if bound.port() == 0 {
            bound.set_port(h.fresh_port());
        }
        let clash = |l: &Listener| {
            let same_ip =
                l.addr.ip() == bound.ip() || l.addr.ip().is_unspecified() || bound.ip().is_unspecified();
            l.host == host && l.addr.port() == bound.port() && same_ip
        };
        if self.net.listeners.values().any(clash) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let id = ListenerId(self.net.id() as u32);
        let backlog = VecDeque::new();
        self.net.listeners.insert(id, Listener { host, process, addr: bound, accepting: false, backlog });
        Ok((id, bound))
    }

    pub(super) fn accept(&mut self, host: usize, id: ListenerId) {
        let listener = self.net.listeners.get_mut(&id).filter(|l| l.host == host);
        let listener = listener.expect("accepting on an own listener");
        listener.accepting = true;
        self.offer(id);
    }

    /// Hands waiting connections to a listener that accepts.
    fn offer(&mut self, id: ListenerId) {
        while let Some(listener) = self.net.listeners.get_mut(&id) {
            if !listener.accepting || listener.backlog.is_empty() {
                return;
            }
            let host = listener.host;
            if self.hosts[host].fail_accepts > 0 {
                self.hosts[host].fail_accepts -= 1;
                listener.accepting = false;
                let error = io::Error::from_raw_os_error(24);
                self.give(host, Event::AcceptFailed { listener: id, error });
                return;
            }
            let conn = listener.backlog.pop_front().expect("checked");
            let Some(end) = self.net.ends.get_mut(&conn).filter(|e| !e.gone) else { continue };
            end.announced = true;
            let peer = end.peer_addr;
            self.give(host, Event::Accepted { listener: id, conn: ConnId(conn), peer });
        }
    }

    pub(super) fn dial(&mut self, host: usize, token: Token, to: SocketAddr) {
        let process = self.hosts[host].process.as_ref().expect("checked to be alive").id;
        self.begin_dial(host, process, token, to, Vec::new());
    }

    pub(super) fn inject(&mut self, host: usize, to: SocketAddr, bytes: Vec<u8>) {
        self.begin_dial(host, NOBODY, 0, to, bytes);
    }

    fn begin_dial(&mut self, host: usize, process: u64, token: Token, to: SocketAddr, inject: Vec<u8>) {
        let id = self.net.id();
        self.net.dials.insert(id, Dial { host, process, token, to, tries: 0, end: None, inject });
        let start = self.host_now(host);
        let delay = match self.host_of(host, to.ip()) {
            Some(dest) => self.delay(host, dest),
            None => 0,
        };
        self.queue.push(start + delay, What::Dial { dial: id });
        let limit = self.config.net.connect_timeout.draw(&mut self.net.rng);
        self.queue.push(start + limit, What::DialTimeout { dial: id });
    }

    fn host_of(&self, from: usize, ip: IpAddr) -> Option<usize> {
        if ip.is_loopback() {
            return Some(from);
        }
        self.hosts.iter().position(|h| h.ip == ip)
    }

    pub(super) fn dial_arrives(&mut self, id: u64) {
        let Some(dial) = self.net.dials.get_mut(&id) else { return };
        let (host, to) = (dial.host, dial.to);
        dial.tries += 1;
        let again = nanos(self.config.net.resend) << dial.tries.min(6);
        // An address that no machine has: nobody ever answers.
        let Some(dest) = self.host_of(host, to.ip()) else { return };
        if !self.reaches(host, dest) || !self.reaches(dest, host) {
            self.queue.push(self.now + again, What::Dial { dial: id });
            return;
        }
        let back = self.delay(dest, host);
        let listener = self.net.listeners.iter().find(|(_, l)| {
            let ip = l.addr.ip();
            l.host == dest && l.addr.port() == to.port() && (ip.is_unspecified() || ip == to.ip())
        });
        let Some((listener, full)) =
            listener.map(|(id, l)| (*id, l.backlog.len() >= self.config.net.backlog))
        else {
            self.queue.push(self.now + back, What::DialRefused { dial: id });
            return;
        };
        if full {
            self.queue.push(self.now + again, What::Dial { dial: id });
            return;
        }
        let (here, there) = self.connect_ends(id, listener);
        let dial = self.net.dials.get_mut(&id).expect("just seen");
        dial.end = Some(here);
        self.trace.note(self.now, dest, "dialled", there, here);
        self.queue.push(self.now + back, What::Dialled { dial: id });
        self.net.listeners.get_mut(&listener).expect("just seen").backlog.push_back(there);
        self.offer(listener);
    }

    /// Makes both ends of a connection: the dialler's and the listener's.
    fn connect_ends(&mut self, dial: u64, listener: ListenerId) -> (u64, u64) {
        let (here, there) = (self.net.id(), self.net.id());
        let dial = &self.net.dials[&dial];
        let listener = &self.net.listeners[&listener];
        let port = self.hosts[dial.host].fresh_port();
        let ip = if dial.to.ip().is_loopback() {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            self.hosts[dial.host].ip
        };
        let make = |host, process, peer, peer_host, peer_addr| End {
            host,
            process,
            peer,
            peer_host,
            peer_addr,
            gone: false,
            announced: false,
            sending: None,
            flight: VecDeque::new(),
            last_at: 0,
            arrive_queued: false,
            room_queued: false,
            used: 0,
            stuck: false,
            silent_since: None,
            capture: None,
            receiving: false,
            unread: VecDeque::new(),
            ended: None,
        };
        let mut a = make(dial.host, dial.process, there, listener.host, dial.to);
        let mut b = make(listener.host, listener.process, here, dial.host, SocketAddr::new(ip, port));
        if self.config.net.capture {
            for end in [&mut a, &mut b] {
                end.capture = Some(self.net.captures.len());
                self.net.captures.push(Capture { from: end.host, to: end.peer_host, bytes: Vec::new() });
            }
        }
        self.net.ends.insert(here, a);
        self.net.ends.insert(there, b);
        (here, there)
    }

    pub(super) fn dialled(&mut self, id: u64) {
        let Some(dial) = self.net.dials.remove(&id) else { return };
        let conn = dial.end.expect("an answered dial has its end");
        let end = self.net.ends.get_mut(&conn).expect("a dial keeps its end");
        end.announced = true;
        if dial.process != NOBODY {
            self.give(dial.host, Event::Connected { token: dial.token, result: Ok(ConnId(conn)) });
            return;
        }
        end.receiving = true;
        end.sending = Some(Sending::new(0, Outgoing::Owned(dial.inject)));
        self.pump(conn);
        self.feed(conn);
    }

    pub(super) fn dial_refused(&mut self, id: u64) {
        self.fail_dial(id, refused());
    }

    pub(super) fn dial_timeout(&mut self, id: u64) {
        self.fail_dial(id, io::ErrorKind::TimedOut.into());
    }

    fn fail_dial(&mut self, id: u64, error: io::Error) {
        let Some(dial) = self.net.dials.remove(&id) else { return };
        if let Some(end) = dial.end {
            self.let_go(end, Body::Reset, 0);
        }
        if dial.process != NOBODY {
            self.give(dial.host, Event::Connected { token: dial.token, result: Err(error) });
        }
    }
}

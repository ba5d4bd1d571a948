//! The node's side of its network loops: which connection is where, what each loop has yet to be told, what it answers.
//!
//! A connection is handed over when it is accepted, to the loop with the fewest, and stays there. What the node asks for
//! gathers in the connection's [`Far`] and leaves once in each turn. There is at most one of each kind to be said (hand
//! over, one send, receive or not, close), so what waits for room in the queue to a loop is bounded by its connections,
//! and a close never waits for memory.
//!
//! The order that [`crate::io::Op`] promises is kept here: a close that overtakes a send holds back the end of the
//! connection until the send's own end is known.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::mail::{Door, Inlet, Order, Outlet, Report, lane};
use super::net::{conn_id, index_of, loop_of};
use super::network::{Ends, Signs, Started, work};
use super::pool::FarPool;
use super::wake::Bell;
use super::{NETWORK_LOOPS_MAX, UringConfig};
use crate::io::{CloseReason, ConnId, Event, Op, Outgoing, ReceivedBytes, Token};

/// The most orders that one connection has at a time.
const ORDERS_OF_ONE: usize = 4;
/// Submission slots of a network loop: its memory counts as locked on some kernels, and one user's limit is often 8 MiB.
const ENTRIES: u32 = 256;

/// All network loops of a node.
pub(super) struct Spread {
    links: Vec<Link>,
    /// Where the loops wake the node.
    door: Arc<Door>,
    /// The loop that is looked at first for the next connection.
    turn: usize,
}

/// One network loop.
struct Link {
    /// From one; zero is the node's own loop.
    number: usize,
    orders: Outlet<Order>,
    reports: Inlet<Report>,
    door: Arc<Door>,
    pool: Option<Rc<FarPool>>,
    signs: Arc<Signs>,
    thread: Option<JoinHandle<()>>,
    places: Vec<Place>,
    free: Vec<u32>,
    conns: usize,
    serial: u64,
    /// Places whose connections have something to say to the loop.
    dirty: VecDeque<u32>,
}

#[derive(Default)]
struct Place {
    far: Option<Far>,
    /// It stands in `dirty`.
    listed: bool,
}

/// A connection that a network loop has, or will have.
struct Far {
    id: ConnId,
    /// Not handed over yet.
    fd: Option<OwnedFd>,
    zero_copy: bool,
    /// Whether the node wants to receive, and what the loop was told.
    wanted: bool,
    told: bool,
    send: Sending,
    close: Closing,
    /// The loop has ended it before it saw a send that is on its way.
    ended: Option<CloseReason>,
}

enum Sending {
    No,
    /// Not handed over yet.
    Waits(Token, Outgoing),
    /// The loop has it, or will find it in its queue.
    Given,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    Asked,
    Told,
}

impl Spread {
    /// Starts the loops, all or none.
    pub(super) fn start(
        config: &UringConfig,
        bell: Arc<Bell>,
        warnings: &mut Vec<String>,
    ) -> io::Result<Spread> {
        assert!(config.network_loops <= NETWORK_LOOPS_MAX);
        let mut spread = Spread { links: Vec::new(), door: Arc::new(Door::new(bell)), turn: 0 };
        for number in 1..=usize::from(config.network_loops) {
            let (link, told) = Link::start(number, config, spread.door.clone())?;
            spread.links.push(link);
            warnings.extend(told.into_iter().filter(|_| number == 1));
        }
        Ok(spread)
    }

    pub(super) fn loops(&self) -> usize {
        self.links.len()
    }

    /// Takes over an accepted connection for the loop with the fewest; among equals they take turns.
    pub(super) fn adopt(&mut self, fd: OwnedFd, zero_copy: bool) -> ConnId {
        let count = self.links.len();
        let chosen = (0..count)
            .map(|step| (self.turn + step) % count)
            .min_by_key(|&at| self.links[at].conns)
            .expect("there is a loop");
        self.turn = (chosen + 1) % count;
        self.links[chosen].adopt(fd, zero_copy)
    }

    /// Carries out an operation on a connection of a network loop; gives back any other.
    pub(super) fn submit(&mut self, op: Op, out: &mut Vec<Event>) -> Option<Op> {
        let conn = match &op {
            Op::Receive { conn } | Op::PauseReceive { conn } | Op::Send { conn, .. } | Op::Close { conn } => {
                *conn
            }
            _ => return Some(op),
        };
        let Some(number) = loop_of(conn).checked_sub(1) else { return Some(op) };
        self.links[number].submit(conn, op, out);
        None
    }

    /// Tells the loops what has gathered, as far as there is room, and wakes those that sleep.
    pub(super) fn tell(&mut self) {
        for link in &mut self.links {
            link.tell();
        }
    }

    /// Takes what the loops report. Each turn takes what is there now, so a busy loop cannot hold the node.
    pub(super) fn collect(&mut self, out: &mut Vec<Event>) {
        for link in &mut self.links {
            link.collect(out);
        }
    }

    /// No loop has said anything, and nothing waits here that could be said: the node may sleep. It must be unparked
    /// after that, whatever the answer.
    pub(super) fn park(&self) -> bool {
        for link in &self.links {
            if !link.dirty.is_empty() {
                link.orders.await_room();
            }
        }
        self.door.park();
        let idle = |link: &Link| {
            let stuck = link.dirty.is_empty() || !link.orders.has_room(ORDERS_OF_ONE);
            stuck && link.reports.is_empty() && !link.reports.is_abandoned()
        };
        self.links.iter().all(idle)
    }

    pub(super) fn unpark(&self) {
        self.door.unpark();
    }
}

impl Drop for Spread {
    /// Ends the loops, which ends their connections, and waits for the threads.
    fn drop(&mut self) {
        for link in &self.links {
            link.signs.stop.store(true, Ordering::Release);
            link.door.ring();
        }
        for link in &mut self.links {
            let ended = link.thread.take().map(JoinHandle::join);
            debug_assert!(
                std::thread::panicking() || matches!(ended, Some(Ok(()))),
                "a network loop panicked"
            );
        }
    }
}

impl Link {
    fn start(number: usize, config: &UringConfig, node: Arc<Door>) -> io::Result<(Link, Vec<String>)> {
        let (orders, orders_in) = lane(config.network_queue.max(ORDERS_OF_ONE));
        let (reports_out, reports) = lane(config.network_queue.max(1));
        let (back, returned) = rtrb::RingBuffer::new(usize::from(config.network_buffers));
        let signs = Arc::new(Signs::default());
        let ends = Ends { orders: orders_in, reports: reports_out, returned, signs: signs.clone(), node };
        let theirs = UringConfig {
            entries: config.entries.min(ENTRIES),
            buffers: config.network_buffers,
            flush_thread: false,
            network_loops: 0,
            busy_poll: Duration::ZERO,
            ..config.clone()
        };
        let (started, answer) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("net-{number}"))
            .spawn(move || work(theirs, ends, &started))?;
        let answer = answer.recv().unwrap_or_else(|_| Err(io::Error::other("its thread has ended")));
        let Started { door, slab, warnings } = answer.map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("network loop {number} (a smaller `cores` needs fewer): {error}"),
            )
        })?;
        let link = Link {
            number,
            orders,
            reports,
            door,
            pool: slab.map(|slab| Rc::new(FarPool::new(slab, back))),
            signs,
            thread: Some(thread),
            places: Vec::new(),
            free: Vec::new(),
            conns: 0,
            serial: 0,
            dirty: VecDeque::new(),
        };
        Ok((link, warnings))
    }

    fn far(&mut self, id: ConnId) -> Option<&mut Far> {
        self.places.get_mut(index_of(id))?.far.as_mut().filter(|far| far.id == id)
    }

    fn adopt(&mut self, fd: OwnedFd, zero_copy: bool) -> ConnId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            u32::try_from(self.places.len() - 1).expect("descriptors are fewer")
        });
        self.serial += 1;
        self.conns += 1;
        let id = conn_id(self.serial, self.number, index as usize);
        self.places[index as usize].far = Some(Far {
            id,
            fd: Some(fd),
            zero_copy,
            wanted: false,
            told: false,
            send: Sending::No,
            close: Closing::No,
            ended: None,
        });
        self.list(id);
        id
    }

    fn remove(&mut self, id: ConnId) {
        let far = self.places[index_of(id)].far.take();
        assert!(far.is_some_and(|far| far.id == id), "a connection is removed once");
        self.free.push(index_of(id) as u32);
        self.conns -= 1;
    }

    /// Puts the connection among those that have something to say.
    fn list(&mut self, id: ConnId) {
        let place = &mut self.places[index_of(id)];
        if !std::mem::replace(&mut place.listed, true) {
            self.dirty.push_back(index_of(id) as u32);
        }
    }

    fn submit(&mut self, id: ConnId, op: Op, out: &mut Vec<Event>) {
        let Some(far) = self.far(id) else {
            // It has ended; only a send is answered.
            if let Op::Send { token, data, .. } = op {
                out.push(refused(id, token, data));
            }
            return;
        };
        match op {
            Op::Receive { .. } => far.wanted = true,
            Op::PauseReceive { .. } => far.wanted = false,
            Op::Close { .. } if far.close == Closing::No => far.close = Closing::Asked,
            Op::Send { token, data, .. } => {
                assert!(matches!(far.send, Sending::No), "one send at a time on a connection");
                if far.close != Closing::No {
                    return out.push(refused(id, token, data));
                }
                if data.is_empty() {
                    return out.push(Event::Sent { token, conn: id, data, result: Ok(()) });
                }
                far.send = Sending::Waits(token, data);
            }
            _ => return,
        }
        self.list(id);
    }

    fn tell(&mut self) {
        let mut told = false;
        while !self.dirty.is_empty() && self.orders.has_room(ORDERS_OF_ONE) {
            let index = self.dirty.pop_front().expect("just seen");
            told |= self.tell_one(index as usize);
        }
        let returned = self.pool.as_ref().is_some_and(|pool| pool.take_moved());
        if told || (returned && self.is_hungry()) {
            self.door.knock();
        }
    }

    /// The fence stands between the buffers' way back and the look at the loop's word.
    fn is_hungry(&self) -> bool {
        std::sync::atomic::fence(Ordering::SeqCst);
        self.signs.hungry.load(Ordering::Relaxed)
    }

    fn tell_one(&mut self, index: usize) -> bool {
        let place = &mut self.places[index];
        place.listed = false;
        let Some(far) = &mut place.far else { return false };
        let conn = far.id;
        let mut orders = [const { None }; ORDERS_OF_ONE];
        orders[0] = far.fd.take().map(|fd| Order::Adopt { conn, fd, zero_copy: far.zero_copy });
        if matches!(far.send, Sending::Waits(..))
            && let Sending::Waits(token, data) = std::mem::replace(&mut far.send, Sending::Given)
        {
            orders[1] = Some(Order::Send { conn, token, data });
        }
        if far.wanted != far.told {
            far.told = far.wanted;
            orders[2] = Some(if far.wanted { Order::Receive { conn } } else { Order::Pause { conn } });
        }
        if far.close == Closing::Asked {
            far.close = Closing::Told;
            orders[3] = Some(Order::Close { conn });
        }
        let mut told = false;
        for order in orders.into_iter().flatten() {
            assert!(self.orders.push(order).is_ok(), "there was room for all that one connection has");
            told = true;
        }
        told
    }

    fn collect(&mut self, out: &mut Vec<Event>) {
        let count = self.reports.len();
        for _ in 0..count {
            let report = self.reports.pop().expect("they were counted");
            self.take_report(report, out);
        }
        if count > 0 && self.reports.made_room() {
            self.door.knock();
        }
        assert!(
            count > 0 || !self.reports.is_abandoned(),
            "network loop {} has ended by itself",
            self.number
        );
    }

    fn take_report(&mut self, report: Report, out: &mut Vec<Event>) {
        match report {
            Report::Lent { conn, index, len } => {
                let pool = self.pool.as_ref().expect("only a loop with a pool lends");
                let bytes = ReceivedBytes::Lent(pool.lend(index, len));
                self.received(conn, bytes, out);
            }
            Report::Owned { conn, bytes } => self.received(conn, ReceivedBytes::Owned(bytes), out),
            Report::Sent { conn, token, data, result } => {
                let far = self.far(conn).expect("a connection stays until its send has ended");
                far.send = Sending::No;
                let ended = far.ended;
                out.push(Event::Sent { token, conn, data, result });
                if let Some(reason) = ended {
                    self.closed(conn, reason, out);
                }
            }
            Report::Closed { conn, reason } => {
                let far = self.far(conn).expect("a connection ends once");
                match std::mem::replace(&mut far.send, Sending::No) {
                    Sending::No => {}
                    Sending::Waits(token, data) => out.push(refused(conn, token, data)),
                    Sending::Given => {
                        far.send = Sending::Given;
                        far.ended = Some(reason);
                        return;
                    }
                }
                self.closed(conn, reason, out);
            }
        }
    }

    /// What comes after the node has asked for the end is of no interest any more.
    fn received(&mut self, conn: ConnId, bytes: ReceivedBytes, out: &mut Vec<Event>) {
        if self.far(conn).is_some_and(|far| far.close == Closing::No) {
            out.push(Event::Received { conn, bytes });
        }
    }

    fn closed(&mut self, conn: ConnId, reason: CloseReason, out: &mut Vec<Event>) {
        self.remove(conn);
        out.push(Event::Closed { conn, reason });
    }
}

/// The answer to a send on a connection that has ended or is ending.
fn refused(conn: ConnId, token: Token, data: Outgoing) -> Event {
    Event::Sent { token, conn, data, result: Err(io::ErrorKind::NotConnected.into()) }
}

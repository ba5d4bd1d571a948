//! A network loop: a thread with a ring of its own that receives and sends for client connections, and nothing else.
//!
//! It knows no command and no log. It carries out the orders of the node's loop and reports what came of them; it opens
//! no file, so the lock of the data folder needs no share in its ring.
//!
//! Everything it has to say is bounded without a limit of its own: received bytes by the buffers of its pool, which come
//! back when the node has read them, and the ends of sends and of connections by the connections. So a report never waits
//! for memory, and none is dropped: what finds no room in the queue waits here in order, and as long as it does, no
//! further receive starts.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use rtrb::Consumer;

use super::mail::{Door, Inlet, Order, Outlet, Report};
use super::pool::Slab;
use super::ring::Wait;
use super::{UringConfig, UringSeam};
use crate::io::{CloseReason, Event, ReceivedBytes};

/// What the node's loop learns of a network loop that has started.
pub(super) struct Started {
    pub door: Arc<Door>,
    /// `None` where the kernel takes no shared receive buffers.
    pub slab: Option<Arc<Slab>>,
    pub warnings: Vec<String>,
}

/// The loop's ends of all queues, made before its thread.
pub(super) struct Ends {
    pub orders: Inlet<Order>,
    pub reports: Outlet<Report>,
    pub returned: Consumer<u16>,
    pub signs: Arc<Signs>,
    pub node: Arc<Door>,
}

/// Words between the two threads that need no queue.
#[derive(Default)]
pub(super) struct Signs {
    /// The loop shall end.
    pub stop: AtomicBool,
    /// The loop sleeps without receive buffers: knock when some go back.
    pub hungry: AtomicBool,
}

/// Rings at the node's door when the thread ends, in order or not, so that the end of a loop is never slept through.
struct LastRing(Arc<Door>);

impl Drop for LastRing {
    fn drop(&mut self) {
        self.0.ring();
    }
}

/// The thread of a network loop.
pub(super) fn work(config: UringConfig, ends: Ends, started: &SyncSender<io::Result<Started>>) {
    let seam = match UringSeam::new(config) {
        Ok(seam) => seam,
        Err(error) => return drop(started.send(Err(error))),
    };
    let door = Arc::new(Door::new(seam.bell.clone()));
    let slab = seam.pool.as_ref().map(|pool| pool.slab());
    let warnings = seam.warnings.clone();
    if started.send(Ok(Started { door: door.clone(), slab, warnings })).is_ok() {
        let _last = LastRing(ends.node.clone());
        NetworkLoop { seam, door, ends, events: Vec::new(), overflow: VecDeque::new() }.run();
    }
}

struct NetworkLoop {
    seam: UringSeam,
    door: Arc<Door>,
    ends: Ends,
    events: Vec<Event>,
    /// Reports that found no room, the oldest first.
    overflow: VecDeque<Report>,
}

impl NetworkLoop {
    fn run(mut self) {
        while !self.ends.signs.stop.load(Ordering::Acquire) {
            self.take_buffers();
            self.take_orders();
            self.report();
            let wait = if self.may_sleep() { Wait::Forever } else { Wait::No };
            self.seam.turn(wait, &mut self.events);
            self.door.unpark();
            self.report();
        }
        self.seam.abandon_sends();
    }

    fn take_buffers(&mut self) {
        while let Ok(index) = self.ends.returned.pop() {
            let pool = self.seam.pool.as_ref().expect("only buffers of a pool come back");
            pool.give_back(index);
        }
    }

    fn take_orders(&mut self) {
        let count = self.ends.orders.len();
        for _ in 0..count {
            let order = self.ends.orders.pop().expect("they were counted");
            self.carry_out(order);
        }
        if count > 0 && self.ends.orders.made_room() {
            self.ends.node.knock();
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Adopt { conn, fd, zero_copy } => self.seam.net.adopt(conn, fd, zero_copy),
            Order::Receive { conn } => self.seam.start_receive(conn),
            Order::Pause { conn } => self.seam.pause_receive(conn),
            Order::Send { conn, token, data } => self.seam.start_send(token, conn, data, &mut self.events),
            Order::Close { conn } => self.seam.end(conn, CloseReason::Local, &mut self.events),
        }
    }

    /// Passes on what has happened, in order.
    fn report(&mut self) {
        let mut told = false;
        while let Some(report) = self.overflow.pop_front() {
            if let Err(report) = self.ends.reports.push(report) {
                self.overflow.push_front(report);
                break;
            }
            told = true;
        }
        for event in self.events.drain(..) {
            let Some(report) = report_of(event) else { continue };
            let refused = match self.overflow.is_empty() {
                true => self.ends.reports.push(report).err(),
                false => Some(report),
            };
            told |= refused.is_none();
            self.overflow.extend(refused);
        }
        if told {
            self.ends.node.knock();
        }
        self.seam.net.hold(!self.overflow.is_empty());
    }

    /// Nothing is left to do before the kernel or the node's loop says something. The door stays open for knocks then.
    fn may_sleep(&self) -> bool {
        let Ends { orders, reports, returned, signs, .. } = &self.ends;
        let (hungry, stuck) = (self.seam.net.is_starved(), !self.overflow.is_empty());
        signs.hungry.store(hungry, Ordering::Relaxed);
        if stuck {
            reports.await_room();
        }
        self.door.park();
        let work = !orders.is_empty() || (hungry && !returned.is_empty()) || (stuck && reports.has_room(1));
        if work {
            self.door.unpark();
        }
        !work
    }
}

fn report_of(event: Event) -> Option<Report> {
    match event {
        Event::Received { conn, bytes: ReceivedBytes::Lent(buffer) } => {
            let (index, len) = buffer.detach();
            Some(Report::Lent { conn, index, len })
        }
        Event::Received { conn, bytes: ReceivedBytes::Owned(bytes) } => Some(Report::Owned { conn, bytes }),
        Event::Sent { token, conn, data, result } => Some(Report::Sent { conn, token, data, result }),
        Event::Closed { conn, reason } => Some(Report::Closed { conn, reason }),
        Event::Woken => None,
        other => unreachable!("a network loop has connections only: {other:?}"),
    }
}

//! The memory of what clients are told, as far as they have not taken it yet.
//!
//! A client that asks and does not read keeps its replies here, and ten thousand of them could keep gigabytes. All
//! replies together have a share of the memory budget. When it is full, whole requests wait before they are executed
//! (nothing is lost, and nothing is refused); clients that have taken nothing for [`TAKES_NOTHING`] meanwhile are
//! disconnected, as Redis does with its `client-output-buffer-limit`.
//!
//! Buffers that are empty are kept for the next use only as far as all clients together stay within a bound.

use std::collections::VecDeque;
use std::time::Duration;

use super::Node;
use super::clients::{Client, Clients, Waiting};
use crate::base::limits::{CLIENT_BUFFER_KEPT_MAX, CLIENT_BUFFERS_KEPT_BYTES};
use crate::io::{ConnId, Op, Seam};

/// Longest a client may take nothing while others wait for the room that its replies take.
const TAKES_NOTHING: Duration = Duration::from_secs(3);
/// Clients that go on at once when there is room again.
const GO_ON_TOGETHER: usize = 64;

/// What all replies together take, and who waits for that to become less.
#[derive(Debug)]
pub(super) struct Crowd {
    total: usize,
    budget: usize,
    waiting: VecDeque<ConnId>,
}

impl Crowd {
    pub(super) fn new(budget: usize) -> Crowd {
        Crowd { total: 0, budget, waiting: VecDeque::new() }
    }

    /// A client's replies took `before` and take `now`.
    pub(super) fn count(&mut self, before: usize, now: usize) {
        self.total = self.total - before + now;
    }

    /// Whether nobody may add to it; `more` is what the asking client has added since it was counted.
    fn full(&self, more: usize) -> bool {
        self.total + more > self.budget
    }

    /// Those that go on now.
    fn go_on(&mut self) -> Vec<ConnId> {
        let count = if self.full(0) { 0 } else { self.waiting.len().min(GO_ON_TOGETHER) };
        self.waiting.drain(..count).collect()
    }
}

impl Clients {
    /// Bytes that an empty buffer of one client may keep.
    pub(super) fn buffer_kept(&self) -> usize {
        (CLIENT_BUFFERS_KEPT_BYTES / self.len().max(1)).min(CLIENT_BUFFER_KEPT_MAX)
    }
}

impl<S: Seam> Node<S> {
    /// Whether the client's next command has to wait for others to take their replies; it is run again when they have.
    pub(super) fn waits_for_room(&mut self, client: &mut Client) -> bool {
        if !self.clients.crowd.full(client.output_bytes().saturating_sub(client.counted)) {
            return false;
        }
        client.waiting = Waiting::Turn;
        self.clients.crowd.waiting.push_back(client.conn);
        true
    }

    /// Somebody took replies, or went.
    pub(super) fn room_made(&mut self) {
        let ready = self.clients.crowd.go_on();
        self.clients.again.extend(ready);
    }

    /// Disconnects those who take nothing while others wait, who took something longest ago first.
    pub(super) fn close_who_take_nothing(&mut self) {
        self.room_made();
        if self.clients.crowd.waiting.is_empty() || !self.clients.crowd.full(0) {
            return;
        }
        let now = self.now;
        let clients = self.clients.map.values().flatten();
        let mut idle: Vec<_> = clients
            .filter(|client| client.takes_nothing_since().is_some_and(|at| now.since(at) >= TAKES_NOTHING))
            .map(|client| (client.takes_nothing_since(), client.conn, client.output_bytes()))
            .collect();
        idle.sort_unstable();
        let mut excess = self.clients.crowd.total - self.clients.crowd.budget;
        let mut closed = 0;
        for (_, conn, bytes) in idle {
            let Some(mut client) = self.clients.take(conn) else { continue };
            client.closing = true;
            self.clients.put(client);
            self.seam.submit(Op::Close { conn });
            closed += 1;
            excess = excess.saturating_sub(bytes);
            if excess == 0 {
                break;
            }
        }
        if closed > 0 {
            tracing::warn!(
                closed,
                "clients that take no replies were disconnected: others wait for the memory"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_goes_on_before_there_is_room() {
        let mut crowd = Crowd::new(100);
        crowd.count(0, 90);
        assert!(!crowd.full(10) && crowd.full(11));
        crowd.count(90, 150);
        crowd.waiting.extend((0..100).map(ConnId));
        assert!(crowd.full(0) && crowd.go_on().is_empty());
        crowd.count(150, 20);
        assert_eq!(crowd.go_on().len(), GO_ON_TOGETHER);
        assert_eq!(crowd.go_on().len(), 100 - GO_ON_TOGETHER);
        assert!(crowd.go_on().is_empty());
    }
}

//! Held replies: a reply leaves only when what it observed is permanent enough for its connection.
//!
//! Replies of one client leave in order. Each reply carries a gate; the first closed gate holds everything behind it.
//! Pure: no socket, no clock of its own.

use std::collections::VecDeque;

use crate::base::{Mono, Stamp};

/// How far a connection's own writes must have travelled before their reply leaves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    Off,
    Local,
    RemoteWrite,
    On,
    RemoteApply,
}

/// What is known to hold right now, in stamps of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Flushed on this node.
    pub local: Stamp,
    /// Written by enough standbys and by this node.
    pub remote_write: Stamp,
    /// Committed under the policy.
    pub committed: Stamp,
    /// Committed, and applied by enough standbys.
    pub remote_apply: Stamp,
    /// The read lease holds (or is not needed).
    pub lease: bool,
}

impl Watermarks {
    /// Nothing holds: a node that is not a serving primary.
    pub const NONE: Watermarks = Watermarks {
        local: Stamp::COMMITTED,
        remote_write: Stamp::COMMITTED,
        committed: Stamp::COMMITTED,
        remote_apply: Stamp::COMMITTED,
        lease: false,
    };

    /// Everything up to `stamp` has happened long ago.
    pub fn at(stamp: Stamp) -> Watermarks {
        Watermarks { local: stamp, remote_write: stamp, committed: stamp, remote_apply: stamp, lease: false }
    }
}

/// What one reply waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Highest stamp of anything the reply shows: must be committed, whatever the level (protocol 2.4, 2.5).
    pub observed: Stamp,
    /// Stamp of the connection's own write, zero when it wrote nothing.
    pub wrote: Stamp,
    pub level: Level,
    /// The reply speaks for the primary: without a quorum's acknowledgement it needs the read lease (protocol 2.10).
    pub lease: bool,
}

impl Need {
    /// Waits for nothing: replies about the connection itself.
    pub const NOTHING: Need =
        Need { observed: Stamp::COMMITTED, wrote: Stamp::COMMITTED, level: Level::On, lease: false };

    pub fn met(&self, marks: &Watermarks) -> bool {
        if self.observed > marks.committed {
            return false;
        }
        if self.wrote != Stamp::COMMITTED {
            let reached = match self.level {
                Level::Off => Stamp(u64::MAX),
                Level::Local => marks.local,
                Level::RemoteWrite => marks.remote_write,
                Level::On => marks.committed,
                Level::RemoteApply => marks.remote_apply,
            };
            if self.wrote > reached {
                return false;
            }
            // A quorum that acknowledged this write proves leadership by itself.
            if self.level >= Level::RemoteWrite {
                return true;
            }
        }
        !self.lease || marks.lease
    }
}

#[derive(Debug)]
struct Gate {
    /// Position behind the reply, counted from the client's first reply byte.
    end: u64,
    need: Need,
    since: Mono,
    /// Replies behind this gate; more than one only when they wait for nothing.
    replies: usize,
}

/// The unsent replies of one client.
#[derive(Debug, Default)]
pub struct Replies {
    bytes: Vec<u8>,
    /// Position of `bytes[0]`.
    base: u64,
    gates: VecDeque<Gate>,
}

impl Replies {
    /// The buffer that a command appends its reply to; [`Replies::close_gate`] must follow.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Puts a gate behind everything appended since the last gate.
    pub fn close_gate(&mut self, need: Need, now: Mono) {
        let end = self.base + self.bytes.len() as u64;
        match self.gates.back_mut() {
            // Runs of replies that wait for nothing need one gate only.
            Some(last) if last.need == need && need == Need::NOTHING => {
                last.end = end;
                last.replies += 1;
            }
            _ => self.gates.push_back(Gate { end, need, since: now, replies: 1 }),
        }
    }

    /// Takes the bytes whose gates are open.
    pub fn release(&mut self, marks: &Watermarks, out: &mut Vec<u8>) {
        let mut end = self.base;
        while let Some(gate) = self.gates.front() {
            if !gate.need.met(marks) {
                break;
            }
            end = gate.end;
            self.gates.pop_front();
        }
        let count = (end - self.base) as usize;
        if count == 0 {
            return;
        }
        if count == self.bytes.len() && out.is_empty() {
            std::mem::swap(out, &mut self.bytes);
        } else {
            out.extend_from_slice(&self.bytes[..count]);
            self.bytes.drain(..count);
        }
        self.base = end;
    }

    /// The first closed gate.
    pub fn waiting_for(&self) -> Option<&Need> {
        self.gates.front().map(|g| &g.need)
    }

    /// Since when the first reply waits.
    pub fn waiting_since(&self) -> Option<Mono> {
        self.gates.front().map(|g| g.since)
    }

    /// Replaces every held reply that waits for something: `text(need)` gives its error line. Replies that wait for
    /// nothing keep their place and their words. All gates open.
    pub fn replace_held(&mut self, mut text: impl FnMut(&Need) -> String) {
        let mut replaced = Vec::new();
        let mut start = self.base;
        for gate in &self.gates {
            if gate.need == Need::NOTHING {
                let (from, to) = ((start - self.base) as usize, (gate.end - self.base) as usize);
                replaced.extend_from_slice(&self.bytes[from..to]);
            } else if gate.end > start {
                assert_eq!(gate.replies, 1, "replies that wait have a gate each");
                replaced.extend_from_slice(text(&gate.need).as_bytes());
                replaced.extend_from_slice(b"\r\n");
            }
            start = gate.end;
        }
        let now = self.gates.front().map_or(Mono(0), |g| g.since);
        self.gates.clear();
        self.bytes = replaced;
        if !self.bytes.is_empty() {
            self.close_gate(Need::NOTHING, now);
        }
    }

    /// Held bytes and what their gates take, which is more when replies are short.
    pub fn memory(&self) -> usize {
        self.bytes.len() + self.gates.len() * size_of::<Gate>()
    }

    /// Empty buffers of more than this are given back.
    pub fn shrink(&mut self, kept: usize) {
        if self.bytes.is_empty() && self.bytes.capacity() > kept {
            self.bytes = Vec::new();
        }
        if self.gates.is_empty() && self.gates.capacity() * size_of::<Gate>() > kept {
            self.gates = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(committed: u64) -> Watermarks {
        Watermarks {
            local: Stamp(committed + 1),
            remote_write: Stamp(committed),
            committed: Stamp(committed),
            remote_apply: Stamp(committed.saturating_sub(1)),
            lease: true,
        }
    }

    fn need(observed: u64, wrote: u64, level: Level) -> Need {
        Need { observed: Stamp(observed), wrote: Stamp(wrote), level, lease: true }
    }

    #[test]
    fn replies_leave_in_order_and_only_when_committed() {
        let mut replies = Replies::default();
        let mut out = Vec::new();
        replies.buffer().extend_from_slice(b"one");
        replies.close_gate(need(5, 5, Level::On), Mono(1));
        replies.buffer().extend_from_slice(b"two");
        replies.close_gate(Need::NOTHING, Mono(2));
        replies.release(&marks(4), &mut out);
        assert!(out.is_empty(), "the second reply may not overtake the first");
        replies.release(&marks(5), &mut out);
        assert_eq!(out, b"onetwo");
        assert!(replies.memory() == 0 && replies.waiting_for().is_none());
    }

    #[test]
    fn a_level_moves_only_the_own_write() {
        let m = marks(4);
        assert!(need(0, 5, Level::Off).met(&m) && need(0, 5, Level::Local).met(&m));
        assert!(!need(0, 5, Level::On).met(&m) && !need(0, 4, Level::RemoteApply).met(&m));
        assert!(!need(5, 5, Level::Off).met(&m), "what others wrote must be committed before it is shown");
    }

    #[test]
    fn reads_need_the_lease_and_acknowledged_writes_do_not() {
        let m = Watermarks { lease: false, ..marks(4) };
        assert!(!need(0, 0, Level::On).met(&m));
        assert!(need(4, 4, Level::On).met(&m));
        assert!(!need(0, 4, Level::Local).met(&m));
    }

    #[test]
    fn held_replies_become_one_error_each() {
        let mut replies = Replies::default();
        for stamp in [7, 8] {
            replies.buffer().extend_from_slice(b"+OK\r\n");
            replies.close_gate(need(stamp, stamp, Level::On), Mono(1));
        }
        replies.replace_held(|n| format!("-UNKNOWN {}", n.wrote.0));
        let mut out = Vec::new();
        replies.release(&Watermarks::NONE, &mut out);
        assert_eq!(out, b"-UNKNOWN 7\r\n-UNKNOWN 8\r\n");
    }

    #[test]
    fn a_pipeline_keeps_one_reply_per_command_when_it_is_given_up() {
        let mut replies = Replies::default();
        replies.buffer().extend_from_slice(b"+OK\r\n");
        replies.close_gate(need(7, 7, Level::On), Mono(1));
        for _ in 0..2 {
            replies.buffer().extend_from_slice(b"+PONG\r\n");
            replies.close_gate(Need::NOTHING, Mono(1));
        }
        replies.replace_held(|_| "-UNKNOWN".to_string());
        let mut out = Vec::new();
        replies.release(&Watermarks::NONE, &mut out);
        assert_eq!(out, b"-UNKNOWN\r\n+PONG\r\n+PONG\r\n");
    }
}

//! The leader's table of who holds what; from it the commit index, the watermarks of the reply levels, and the lag.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::handshake::Peer;
use super::wire::Ack;
use crate::base::{AppliedLsn, CommittedLsn, FlushedLsn, Incarnation, Lsn, Mono, NodeId, Term};

/// One policy generation as the commit rule needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VoterSet<'a> {
    /// The leader included.
    pub voters: &'a [(NodeId, Incarnation)],
    /// Voters besides the leader that must hold what is committed.
    pub k: usize,
}

/// What one directly connected standby has acknowledged in this term.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerProgress {
    pub written: Lsn,
    pub flushed: FlushedLsn,
    pub applied: AppliedLsn,
    pub last_heard: Mono,
    /// Applies later on purpose: never counts for remote_apply.
    pub delayed: bool,
    pub connected: bool,
}

/// How far each reply level reaches. Only `on` is the commit index; the others move replies, never visibility.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Watermarks {
    pub local: FlushedLsn,
    pub remote_write: Lsn,
    pub on: CommittedLsn,
    pub remote_apply: AppliedLsn,
}

/// The leader's table. One per term: a new term starts with an empty one.
#[derive(Debug)]
pub struct Progress {
    own: (NodeId, Incarnation),
    term: Term,
    term_start_end: Lsn,
    peers: BTreeMap<(NodeId, Incarnation), PeerProgress>,
    committed: CommittedLsn,
}

impl Progress {
    /// `term_start_end` is the end of this term's first frame: nothing commits before it (`protocol` 3.5).
    pub fn new(own: (NodeId, Incarnation), term: Term, term_start_end: Lsn) -> Progress {
        Progress { own, term, term_start_end, peers: BTreeMap::new(), committed: CommittedLsn::ZERO }
    }

    /// A stream of this term started: what the peer held before no longer counts until it says so again.
    pub fn stream_started(&mut self, _peer: &Peer, _delayed: bool, _now: Mono) {
        unreachable!("the body follows")
    }

    /// The link ended. What it flushed stays flushed and goes on counting.
    pub fn disconnected(&mut self, _peer: &Peer) {
        unreachable!("the body follows")
    }

    /// `session` is the term in the ack's envelope. Says whether the ack counted.
    pub fn on_ack(&mut self, _peer: &Peer, _session: Term, _ack: &Ack, _now: Mono) -> bool {
        unreachable!("the body follows")
    }

    /// Any other sign of life.
    pub fn heard(&mut self, _peer: &Peer, _now: Mono) {}

    /// The commit index that the active generations allow now; `None` while it does not cover the term's first frame.
    /// Never moves back.
    pub fn commit_index(
        &mut self,
        _own_flushed: FlushedLsn,
        _active: &[VoterSet<'_>],
    ) -> Option<CommittedLsn> {
        unreachable!("the body follows")
    }

    pub fn watermarks(&self, _own_flushed: FlushedLsn, _active: &[VoterSet<'_>]) -> Watermarks {
        unreachable!("the body follows")
    }

    /// Standbys that acknowledged `lsn` in this term: written (WAIT), flushed (WAITAOF), applied.
    pub fn count_written(&self, lsn: Lsn) -> usize {
        self.peers.values().filter(|p| p.written >= lsn).count()
    }
    pub fn count_flushed(&self, lsn: Lsn) -> usize {
        self.peers.values().filter(|p| p.flushed.lsn() >= lsn).count()
    }
    pub fn count_applied(&self, lsn: Lsn) -> usize {
        self.peers.values().filter(|p| p.applied.lsn() >= lsn).count()
    }

    pub fn get(&self, node: NodeId, incarnation: Incarnation) -> Option<&PeerProgress> {
        self.peers.get(&(node, incarnation))
    }
    pub fn peers(&self) -> impl Iterator<Item = (NodeId, Incarnation, &PeerProgress)> {
        self.peers.iter().map(|((node, incarnation), progress)| (*node, *incarnation, progress))
    }
    pub fn term(&self) -> Term {
        self.term
    }
    pub fn own(&self) -> (NodeId, Incarnation) {
        self.own
    }
    pub fn term_start_end(&self) -> Lsn {
        self.term_start_end
    }
    pub fn committed(&self) -> CommittedLsn {
        self.committed
    }
}

/// When the log reached which position: turns a lag in bytes into a lag in time. Bounded; old samples thin out.
#[derive(Debug, Default)]
pub struct LagClock {
    samples: VecDeque<(Lsn, Mono)>,
}

impl LagClock {
    pub fn new() -> LagClock {
        LagClock::default()
    }

    /// The log (or the commit index) reached `end`.
    pub fn note(&mut self, _end: Lsn, _now: Mono) {
        unreachable!("the body follows")
    }

    /// Age of the oldest sample that `reached` does not cover; zero when it covers all.
    pub fn age(&self, _reached: Lsn, _now: Mono) -> Duration {
        let _ = &self.samples;
        unreachable!("the body follows")
    }
}

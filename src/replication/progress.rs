//! The leader's table of who holds what; from it the commit index, the watermarks of the reply levels, and the lag.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::handshake::Peer;
use super::wire::Ack;
use crate::base::planted::{Bug, planted};
use crate::base::{AppliedLsn, CommittedLsn, FlushedLsn, Incarnation, Lsn, Mono, NodeId, Term};
use crate::role::CommitRule;
use crate::role::history::same;

/// How a standby streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StreamKind {
    /// Applies later on purpose: never counts for remote_apply.
    pub delayed: bool,
    /// Asked as a cascaded standby: never counts for anything.
    pub cascade: bool,
}

/// What one directly connected standby has acknowledged in this term.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerProgress {
    pub written: Lsn,
    pub flushed: FlushedLsn,
    pub applied: AppliedLsn,
    pub last_heard: Mono,
    pub kind: StreamKind,
    pub connected: bool,
}

/// How far each reply level reaches. Only `on` is the commit index; the others move replies, never visibility.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Watermarks {
    pub local: FlushedLsn,
    /// Flushed here, and written on as many voters as the policy asks for.
    pub remote_write: Lsn,
    pub on: CommittedLsn,
    /// Committed, and applied on as many voters as the policy asks for.
    pub remote_apply: AppliedLsn,
}

/// The leader's table. One per term: a new term starts with an empty one, so nothing said in an old one counts.
#[derive(Debug)]
pub struct Progress {
    term: Term,
    peers: BTreeMap<(NodeId, Incarnation), PeerProgress>,
    committed: CommittedLsn,
}

impl Progress {
    pub fn new(term: Term) -> Progress {
        Progress { term, peers: BTreeMap::new(), committed: CommittedLsn::ZERO }
    }

    /// A stream of this term started: what the peer held before counts again only when it says so again.
    pub fn stream_started(&mut self, peer: &Peer, kind: StreamKind, now: Mono) {
        let fresh = PeerProgress {
            written: Lsn::ZERO,
            flushed: FlushedLsn::ZERO,
            applied: AppliedLsn::ZERO,
            last_heard: now,
            kind,
            connected: true,
        };
        self.peers.insert((peer.node, peer.incarnation), fresh);
    }

    /// The link ended: what it said counts for the commit index no more until its next stream of this term.
    pub fn disconnected(&mut self, peer: &Peer) {
        if let Some(progress) = self.peers.get_mut(&(peer.node, peer.incarnation)) {
            progress.connected = false;
        }
    }

    /// The node left the membership.
    pub fn forget(&mut self, node: NodeId) {
        self.peers.retain(|(other, _), _| *other != node);
    }

    /// `peer` is the link's authenticated identity, `session` the term in the ack's envelope. Says whether the ack
    /// was taken: only in this very term, only on a link whose stream was started in it.
    pub fn on_ack(&mut self, peer: &Peer, session: Term, ack: &Ack, now: Mono) -> bool {
        if !same(session, self.term) && !planted(Bug::IgnoreSessionTerm) {
            return false;
        }
        let Some(progress) = self.peers.get_mut(&(peer.node, peer.incarnation)) else {
            return false;
        };
        if !progress.connected {
            return false;
        }
        progress.last_heard = now;
        progress.written = progress.written.max(ack.written).max(ack.flushed.lsn());
        progress.flushed.advance(ack.flushed.lsn());
        progress.applied.advance(ack.applied.lsn());
        true
    }

    /// Any other sign of life.
    pub fn heard(&mut self, peer: &Peer, now: Mono) {
        if let Some(progress) = self.peers.get_mut(&(peer.node, peer.incarnation)) {
            progress.last_heard = now;
        }
    }

    /// The commit index that the rule allows now; `None` while it does not cover the term's first frame.
    /// Never moves back.
    pub fn commit_index(&mut self, own_flushed: FlushedLsn, rule: &CommitRule) -> Option<CommittedLsn> {
        let reached = if planted(Bug::AckBeforeQuorum) {
            Some(own_flushed.lsn())
        } else {
            self.reached(own_flushed.lsn(), rule, &|progress| progress.flushed.lsn())
        };
        self.committed.advance(reached.unwrap_or(Lsn::ZERO));
        (self.committed.lsn() > Lsn::ZERO).then_some(self.committed)
    }

    /// Call after [`Progress::commit_index`].
    pub fn watermarks(&self, own_flushed: FlushedLsn, rule: &CommitRule) -> Watermarks {
        let committed = self.committed.lsn();
        let written = self.reached(own_flushed.lsn(), rule, &|progress| progress.written);
        let applied = self.reached(committed, rule, &|progress| match progress.kind.delayed {
            true => Lsn::ZERO,
            false => progress.applied.lsn(),
        });
        Watermarks {
            local: own_flushed,
            remote_write: written.unwrap_or(Lsn::ZERO).max(committed),
            on: self.committed,
            remote_apply: AppliedLsn(applied.unwrap_or(Lsn::ZERO)),
        }
    }

    /// Standbys that acknowledged `lsn` in this term: written (WAIT), flushed (WAITAOF), applied.
    pub fn count_written(&self, lsn: Lsn) -> usize {
        self.count(|progress| progress.written >= lsn)
    }
    pub fn count_flushed(&self, lsn: Lsn) -> usize {
        self.count(|progress| progress.flushed.lsn() >= lsn)
    }
    pub fn count_applied(&self, lsn: Lsn) -> usize {
        self.count(|progress| progress.applied.lsn() >= lsn)
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
    pub fn committed(&self) -> CommittedLsn {
        self.committed
    }

    fn count(&self, holds: impl Fn(&PeerProgress) -> bool) -> usize {
        self.peers.values().filter(|progress| !progress.kind.cascade && holds(progress)).count()
    }

    /// The role room's rule over what the connected standbys hold in some sense.
    fn reached(&self, own: Lsn, rule: &CommitRule, held: &dyn Fn(&PeerProgress) -> Lsn) -> Option<Lsn> {
        let counting = self.peers.iter().filter(|(_, progress)| progress.connected && !progress.kind.cascade);
        let followers: Vec<(NodeId, Incarnation, FlushedLsn)> = counting
            .map(|((node, incarnation), progress)| {
                (*node, believed(rule, *node, *incarnation), FlushedLsn(held(progress)))
            })
            .collect();
        rule.commit(FlushedLsn(own), &followers)
    }
}

/// The incarnation that the handshake proved; a planted bug takes the node's word for being the listed one.
fn believed(rule: &CommitRule, node: NodeId, incarnation: Incarnation) -> Incarnation {
    if !planted(Bug::CountWipedOrBuildingNode) {
        return incarnation;
    }
    // The newest generation knows it: the seed names no incarnation, and takes any.
    let voters = rule.generations.iter().rev().flat_map(|generation| &generation.voters);
    voters.filter(|voter| voter.node == node).map(|voter| voter.incarnation).next().unwrap_or(incarnation)
}

/// When the log reached which position: turns a lag in bytes into a lag in time. Bounded: when it is full, older
/// samples are joined, so that a lag of hours is known coarsely and a lag of milliseconds exactly.
#[derive(Debug, Default)]
pub struct LagClock {
    samples: VecDeque<(Lsn, Mono)>,
}

/// Samples of a [`LagClock`].
const LAG_SAMPLES_MAX: usize = 1024;

impl LagClock {
    pub fn new() -> LagClock {
        LagClock::default()
    }

    /// The log (or the commit index) reached `end`. Positions that do not move are ignored.
    pub fn note(&mut self, end: Lsn, now: Mono) {
        if self.samples.back().is_some_and(|(last, _)| end <= *last) {
            return;
        }
        if self.samples.len() == LAG_SAMPLES_MAX {
            self.thin();
        }
        self.samples.push_back((end, now));
    }

    /// Joins neighbours in the older half: the later position with the earlier time, so that no lag is understated.
    fn thin(&mut self) {
        let newer = self.samples.split_off(LAG_SAMPLES_MAX / 2);
        let older: Vec<(Lsn, Mono)> = self.samples.drain(..).collect();
        self.samples.extend(older.chunks(2).map(|pair| (pair[pair.len() - 1].0, pair[0].1)));
        self.samples.extend(newer);
    }

    /// Forgets what every reader has passed.
    pub fn forget_below(&mut self, reached: Lsn) {
        let passed = self.samples.partition_point(|(end, _)| *end <= reached);
        self.samples.drain(..passed);
    }

    /// Age of the oldest sample that `reached` does not cover; zero when it covers all.
    pub fn age(&self, reached: Lsn, now: Mono) -> Duration {
        let first = self.samples.partition_point(|(end, _)| *end <= reached);
        self.samples.get(first).map_or(Duration::ZERO, |(_, at)| now.since(*at))
    }
}

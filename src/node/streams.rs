//! State of log streams: to standbys below, from the leader above, and the one range that a candidate fetches.

use std::collections::BTreeMap;

use crate::base::{Lsn, Mono, NodeId, Term};
use crate::io::ConnId;
use crate::replication::wire::Path;
use crate::replication::{FetchServer, Fetcher, LagClock, Parent, Progress, Receiver, Sender};

/// A standby below this node.
pub struct SenderSlot {
    pub sender: Sender,
    /// Tells this stream from an earlier one on the same link.
    pub serial: u64,
    /// It asked as a cascaded standby.
    pub cascade: bool,
    /// A log read for it is under way.
    pub loading: bool,
    /// Newest heartbeat that it answered.
    pub heard: Mono,
    /// How far it has flushed, and since when it has come no further although it was sent more.
    pub flushed: (Lsn, Mono),
}

/// A peer that fetches a range.
pub struct ServerSlot {
    pub server: FetchServer,
    pub loading: bool,
}

/// The stream from above.
pub struct ReceiverSlot {
    pub conn: ConnId,
    pub leader: NodeId,
    /// Who sends: the leader itself, or a standby on the way.
    pub upstream: NodeId,
    pub receiver: Receiver,
    /// Where the upstream's log ended when the stream started.
    pub begun_at: Lsn,
}

/// A range on its way to this candidate.
pub struct FetchSlot {
    pub ticket: u64,
    pub from: NodeId,
    pub term: Term,
    pub to: Lsn,
    pub conn: Option<ConnId>,
    pub fetcher: Option<Fetcher>,
    pub deadline: Mono,
}

/// All of them.
pub struct Streams {
    pub senders: BTreeMap<ConnId, SenderSlot>,
    pub servers: BTreeMap<ConnId, ServerSlot>,
    pub receiver: Option<ReceiverSlot>,
    /// Whom to follow.
    pub leader: Option<(NodeId, Term)>,
    /// From whom to stream.
    pub parent: Parent,
    /// From the leader down to the node that streams to this one, and the end of that node's log.
    pub path: Path,
    pub upstream_tip: Lsn,
    /// Number of the leader's newest heartbeat in this term.
    pub beat_seen: u64,
    /// Numbers the streams to nodes below.
    pub serial: u64,
    /// A request is out to this node on this link since then.
    pub requested: Option<(NodeId, ConnId, Mono)>,
    /// The newest request said that this node is a cascaded standby.
    pub asked_as_cascade: bool,
    /// No request before this moment: the last one was refused.
    pub request_after: Mono,
    /// Why the last request was refused.
    pub refused: Option<String>,
    pub fetch: Option<FetchSlot>,
    pub progress: Option<Progress>,
    pub beat: u64,
    pub beat_at: Mono,
    /// The followed leader's end of log, and when it was heard.
    pub leader_end: Lsn,
    pub leader_heard: Mono,
    /// When the followed leader's log reached which end.
    pub leader_lag: LagClock,
    /// When the commit index reached which position.
    pub commit_lag: LagClock,
}

impl Streams {
    pub fn new(seed: u64) -> Streams {
        Streams {
            senders: BTreeMap::new(),
            servers: BTreeMap::new(),
            receiver: None,
            leader: None,
            parent: Parent::new(seed),
            path: Path::default(),
            upstream_tip: Lsn::ZERO,
            beat_seen: 0,
            serial: 0,
            requested: None,
            asked_as_cascade: false,
            request_after: Mono(0),
            refused: None,
            fetch: None,
            progress: None,
            beat: 0,
            beat_at: Mono(0),
            leader_end: Lsn::ZERO,
            leader_heard: Mono(0),
            leader_lag: LagClock::new(),
            commit_lag: LagClock::new(),
        }
    }

    /// A new term of our own: nothing that was acknowledged before counts.
    pub fn lead(&mut self, term: Term, now: Mono) {
        self.unfollow();
        self.senders.clear();
        self.progress = Some(Progress::new(term));
        self.beat_at = now;
    }

    pub fn stop_leading(&mut self) {
        self.progress = None;
        for slot in self.senders.values_mut() {
            slot.sender.stop();
        }
        self.senders.clear();
    }

    pub fn follow(&mut self, leader: NodeId, term: Term) {
        self.unfollow();
        self.senders.clear();
        self.leader = Some((leader, term));
        self.request_after = Mono(0);
        self.parent.begin_anew();
        self.beat_seen = 0;
        self.leader_lag = LagClock::new();
    }

    pub fn unfollow(&mut self) {
        self.leader = None;
        self.receiver = None;
        self.requested = None;
        self.refused = None;
        self.fetch = None;
    }

    /// The lowest position that somebody connected may still ask for.
    pub fn keeps(&self) -> Option<Lsn> {
        self.senders.values().map(|s| s.sender.keeps()).min()
    }

    /// A link ended.
    pub fn link_down(&mut self, conn: ConnId) {
        self.servers.remove(&conn);
        if self.receiver.as_ref().is_some_and(|r| r.conn == conn) {
            self.receiver = None;
        }
        if self.requested.is_some_and(|(_, c, _)| c == conn) {
            self.requested = None;
        }
    }
}

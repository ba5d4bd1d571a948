//! Cascaded standbys: which upstream this node streams from, and what it passes on to the nodes below it.
//!
//! The leader that a node *follows* is the role machine's business and comes from the leader itself; the *upstream* is
//! only where the frames come from. A node serves its log while its own stream runs, in the term that it follows, and
//! ends the streams below the moment that it promises another one.

use crate::base::{Lsn, NodeId, Term};
use crate::io::{ConnId, Seam};
use crate::replication::parent::{Candidate, Signs};
use crate::replication::wire::{Heartbeat, Path, Refusal, RefuseReason, StreamRequest};
use crate::replication::{Message, Session};
use crate::role::DataStatus;

use super::Node;

fn refuse(reason: RefuseReason, text: &str) -> Refusal {
    Refusal { reason, text: text.to_string() }
}

impl<S: Seam> Node<S> {
    /// The configured upstream, if this node may stream from anybody but the leader: voters may not, because only
    /// directly connected ones count (protocol 2.3), nor may a damaged log, which is whole again when it holds all that
    /// the *leader* held.
    pub(super) fn configured_upstream(&self) -> Option<NodeId> {
        let control = self.role.control();
        let votes = control.policy.voters.iter().any(|voter| voter.node == self.me())
            || control.pending.iter().any(|p| p.generation.voters.iter().any(|v| v.node == self.me()));
        if votes || control.status == DataStatus::Damaged {
            return None;
        }
        self.config.me().upstream
    }

    fn candidates(&self) -> Vec<Candidate> {
        let linked = |node| self.links.dialed_to(node).is_some();
        let members = self.config.peers();
        members
            .map(|m| Candidate { node: m.node, linked: linked(m.node), direct: m.upstream.is_none() })
            .collect()
    }

    /// Whom to ask for the stream now.
    pub(super) fn choose_upstream(&mut self, leader: NodeId) -> Option<NodeId> {
        self.streams.parent.lost(self.now);
        let (configured, members) = (self.configured_upstream(), self.candidates());
        self.streams.parent.choose(self.now, leader, configured, &members)
    }

    /// Leaves an upstream through which too little of the leader comes, or for the configured one.
    pub(super) fn mind_upstream(&mut self) {
        let Some((leader, _)) = self.streams.leader else { return };
        let Some(slot) = &self.streams.receiver else { return };
        let behind =
            self.streams.leader_lag.age(self.streams.upstream_tip.max(slot.receiver.matched()), self.now);
        let signs = Signs { heard: self.streams.leader_heard, behind };
        let (configured, members) = (self.configured_upstream(), self.candidates());
        if self.streams.asked_as_cascade != configured.is_some() {
            // Acknowledgements of a stream that was asked for as a cascaded standby never count, and a voter's must.
            self.streams.parent.begin_anew();
            return self.leave_upstream("this node has become a voter, or is none any more");
        }
        if let Some(why) = self.streams.parent.leave(self.now, leader, configured, &members, &signs) {
            self.leave_upstream(&format!("{why:?}"));
        }
    }

    /// Ends the stream from above and tells the upstream, which lets go of the log that it kept.
    pub(super) fn leave_upstream(&mut self, why: &str) {
        let Some(slot) = self.streams.receiver.take() else { return };
        tracing::info!(upstream = %slot.upstream, why, "leaving the upstream");
        let session = slot.receiver.session();
        let refusal = refuse(RefuseReason::Left, "this standby streams from another node now");
        self.links.send_in(&mut self.seam, slot.conn, self.now, session, &Message::StreamRefuse(refusal));
        self.streams.request_after = self.now;
    }

    /// A standby below says that it has left.
    pub(super) fn standby_left(&mut self, conn: ConnId) {
        if let Some(standby) = self.end_sender(conn) {
            tracing::info!(%standby, "a standby streams from elsewhere now");
        }
    }

    /// The way from the leader to this node; `None` while nothing of the leader arrives here.
    pub(super) fn own_path(&self) -> Option<Path> {
        match self.role.leading() {
            Some(_) => Some(Path::of(self.me())),
            None => self.streams.receiver.as_ref().and_then(|_| self.streams.path.then(self.me())),
        }
    }

    /// May this node stream to the asker? Only the leader streams to anybody but cascaded standbys.
    pub(super) fn judge_stream(
        &mut self,
        session: &Session,
        term: Term,
        request: &StreamRequest,
    ) -> Result<(), Refusal> {
        let asker = session.peer.node;
        let leader = self.role.leading().map(|_| self.me()).or_else(|| self.role.following().map(|(n, _)| n));
        let elsewhere = |text: &str| Err(refuse(RefuseReason::NotUpstream { leader }, text));
        if self.role.leading().is_none() && !request.cascade {
            return elsewhere("this node does not lead");
        }
        let Some(own) = self.sending_term() else { return elsewhere("this node follows nobody") };
        if own != term {
            return Err(refuse(RefuseReason::OtherTerm { term: own }, "another term is followed here"));
        }
        let format = self.role.control().format;
        if format > session.version {
            let text =
                format!("the log here has format {format}, which the asker does not speak: upgrade it");
            return elsewhere(&text);
        }
        let Some(path) = self.own_path() else { return elsewhere("this node has no stream itself") };
        if path.contains(asker) {
            return Err(refuse(RefuseReason::Loop, "this node streams from the asker"));
        }
        if self.role.leading().is_none() {
            if self.acks_stopped || self.drain.is_some() || self.log.tail.is_some() {
                return elsewhere("this node is about to follow another term");
            }
            if !self.log.whole || self.role.control().status == DataStatus::Sick {
                return Err(refuse(RefuseReason::Unhealthy, "the log here is not whole, or in dispute"));
            }
        }
        let mine = |node: NodeId| node == asker;
        let others = self.streams.senders.values().filter(|slot| !mine(slot.sender.peer().node)).count();
        if others >= crate::base::limits::DIRECT_STANDBYS_MAX {
            // A cascaded standby that found a place at the leader gives it up for one that has no other.
            let guest = self.streams.senders.iter().find(|(_, slot)| slot.cascade).map(|(conn, _)| *conn);
            match guest.filter(|_| !request.cascade) {
                Some(conn) => self.end_stream_below(conn, RefuseReason::TooMany),
                None => {
                    let text = "as many standbys as are served are connected";
                    return Err(refuse(RefuseReason::TooMany, text));
                }
            }
        }
        Ok(())
    }

    fn end_stream_below(&mut self, conn: ConnId, reason: RefuseReason) {
        self.standby_left(conn);
        let refusal = refuse(reason, "the stream ends here: ask again, or elsewhere");
        self.links.send(&mut self.seam, conn, self.now, &Message::StreamRefuse(refusal));
    }

    /// This node has promised another term: no stream of the old one goes on below it.
    pub(super) fn end_streams_below(&mut self) {
        if self.streams.progress.is_some() {
            return;
        }
        let conns: Vec<ConnId> = self.streams.senders.keys().copied().collect();
        for conn in conns {
            self.end_stream_below(conn, RefuseReason::NotUpstream { leader: None });
        }
    }

    /// A heartbeat of the leader arrived on the running stream. False when the stream turned out to be a loop.
    pub(super) fn heartbeat_from_above(&mut self, upstream: NodeId, term: Term, beat: &Heartbeat) -> bool {
        if beat.path == Path::default() {
            // A sign of life of the link, no word of the leader.
            return true;
        }
        if beat.path.contains(self.me()) {
            self.streams.parent.looped(self.now, upstream);
            self.leave_upstream("its stream comes from this node");
            return false;
        }
        self.streams.path = beat.path;
        self.streams.upstream_tip = beat.tip;
        let Some((leader, _)) = self.streams.leader else { return true };
        // What went round, or came late from an earlier upstream, is no sign of life.
        if beat.seq > self.streams.beat_seen {
            self.streams.beat_seen = beat.seq;
            self.data.leader_clock(beat.clock);
            self.leader_heard(leader, term, beat.end);
            self.relay(beat);
        }
        true
    }

    /// The leader's heartbeat for the nodes below, at once.
    fn relay(&mut self, beat: &Heartbeat) {
        let Some(path) = self.own_path() else { return };
        let tip: Lsn = self.log.wal.end().end;
        let passed = Heartbeat { commit: self.committed, wants_grant: false, tip, path, ..*beat };
        let conns: Vec<ConnId> = self.streams.senders.keys().copied().collect();
        for conn in conns {
            self.links.send(&mut self.seam, conn, self.now, &Message::Heartbeat(passed));
        }
    }
}

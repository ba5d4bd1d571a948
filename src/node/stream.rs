//! What is said between nodes, and what becomes of it: streams, acknowledgements, heartbeats, fetched ranges.

use std::time::Duration;

use crate::base::limits::HEARTBEAT_EVERY;
use crate::base::{CommittedLsn, Lsn, NodeId, Term};
use crate::io::{ConnId, Seam};
use crate::record::{FrameHeader, HEADER_BYTES};
use crate::replication::chain::{Chain, ReceivedFrame};
use crate::replication::receiver::Position;
use crate::replication::wire::{
    Ack, Envelope, FramesHead, Heartbeat, HeartbeatAck, Path, Refusal, RefuseReason, StreamRequest,
    StreamStart,
};
use crate::replication::{
    FetchServer, Fetched, Fetcher, LogSource, LogView, Message, Outbound, Pulled, Receiver, Sender, Session,
    Step, StreamKind,
};
use crate::role::{DataStatus, FastForwardFailure, Input, RoleMessage, Verdict};
use crate::wal::Wal;

use super::Node;
use super::links::LinkEvent;
use super::streams::{FetchSlot, ReceiverSlot, SenderSlot, ServerSlot};

/// A refused or unanswered stream request is repeated after this.
const REQUEST_AGAIN: Duration = Duration::from_millis(300);
/// A fast-forward that brings nothing for this long has failed.
const FETCH_SILENCE: Duration = Duration::from_millis(3000);
/// The commit index travels with the next frame, and by itself when none leaves within this.
const ANNOUNCE_AFTER: Duration = Duration::from_millis(1);
/// Bytes that may wait on a link before a sender is asked for more.
const LINK_BACKLOG: usize = 4 << 20;

/// The log as senders see it.
struct Source<'a>(&'a Wal);

impl LogSource for Source<'_> {
    fn frames_from(&self, at: Lsn, max_bytes: usize) -> Pulled {
        self.0.read_from(at, max_bytes).into()
    }
}

/// Why an upstream does not stream, as an operator reads it in the state's detail.
fn refused_in_words(reason: &RefuseReason) -> &'static str {
    match reason {
        RefuseReason::NotUpstream { .. } => "Connecting",
        RefuseReason::Diverged { .. } => "WAL diverged",
        RefuseReason::WalRemoved { .. } => "WAL segment removed",
        RefuseReason::ChainMismatch { .. } => "WAL damaged",
        RefuseReason::OtherTerm { .. } => "Connecting (another term leads)",
        RefuseReason::TooMany => "Connecting (no free place)",
        RefuseReason::Loop => "Connecting (the upstream streams from here)",
        _ => "Connecting (the upstream refuses)",
    }
}

/// Who takes the next step on a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reader {
    /// With the number of its stream.
    Sender(ConnId, u64),
    Server(ConnId),
    Redo,
    /// The cut of a dropped tail.
    Cut,
    /// A disputed checkpoint is made again.
    Settle,
}

impl<S: Seam> Node<S> {
    pub(super) fn link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up { session } => {
                tracing::info!(peer = %session.peer.node, dialed = session.dialed, "peer link stands");
                self.tell_role(Input::PeerUp {
                    node: session.peer.node,
                    incarnation: session.peer.incarnation,
                });
                self.request_stream();
            }
            LinkEvent::Down { conn, session, process_gone } => self.link_down(conn, &session, process_gone),
            LinkEvent::Message { conn, session, envelope } => self.peer_message(conn, &session, envelope),
        }
    }

    /// Nothing is streamed on this link any more. Says to whom it was.
    pub(super) fn end_sender(&mut self, conn: ConnId) -> Option<NodeId> {
        let peer = self.streams.senders.remove(&conn)?.sender.peer();
        if let Some(progress) = &mut self.streams.progress {
            progress.disconnected(&peer);
        }
        Some(peer.node)
    }

    fn link_down(&mut self, conn: ConnId, session: &Session, process_gone: bool) {
        let node = session.peer.node;
        tracing::info!(peer = %node, process_gone, "peer link ended");
        self.end_sender(conn);
        self.streams.link_down(conn);
        if self.streams.fetch.as_ref().is_some_and(|f| f.conn == Some(conn)) {
            self.fetch_failed(FastForwardFailure::Unreachable);
        }
        // A process that dies lets go of all its links. As long as one stands, the end of another is a decision that a
        // living process took, and proves nothing (protocol 2.10).
        // A leader counts no grant of a peer that lost any link to it: that peer may judge differently.
        let last = self.links.any_to(node).is_none();
        if last {
            self.admin.peers.forget(node);
        }
        let process_gone = process_gone && last;
        self.tell_role(Input::PeerDown { node, process_gone });
    }

    fn peer_message(&mut self, conn: ConnId, session: &Session, envelope: Envelope) {
        let term = envelope.stamped.session;
        let from = session.peer.node;
        match envelope.message {
            Message::Role(bytes) => match RoleMessage::decode(&bytes) {
                Some(message) => {
                    self.tell_role(Input::Peer { from, incarnation: session.peer.incarnation, message });
                }
                None => self.break_link(conn, "role message cannot be read"),
            },
            Message::StreamRequest(request) => self.on_stream_request(conn, session, term, &request),
            Message::StreamStart(start) => self.on_stream_start(conn, from, term, &start),
            Message::StreamRefuse(refusal) => self.on_stream_refuse(conn, term, &refusal),
            Message::Frames { head, bytes } => self.on_frames(conn, term, &head, bytes),
            Message::Ack(ack) => self.on_ack(conn, session, term, &ack),
            Message::Commit(commit) => self.on_commit(conn, term, commit),
            Message::Heartbeat(beat) => self.on_heartbeat(conn, from, term, &beat),
            Message::HeartbeatAck(ack) => self.on_heartbeat_ack(conn, session, term, &ack),
            Message::LogFetch { from, to } => self.on_fetch_request(conn, term, from, to),
            Message::FetchedFrames { head, bytes } => self.on_fetched(conn, &head, bytes),
            Message::FetchDone { .. } => self.on_fetch_done(conn),
            Message::FetchRefuse(refusal) => self.on_fetch_refused(conn, &refusal),
            Message::StatusRequest(asked) if asked.is_empty() => self.answer_status(conn),
            Message::StatusRequest(asked) => self.asked_by_peer(conn, from, &asked),
            Message::StatusReply(json) => self.status_arrived(from, &json),
            Message::CheckpointRoots(roots) => self.roots_arrived(from, &roots),
            Message::RootVerdict(verdict) => self.verdict_arrived(from, &verdict),
            Message::PageFetch(fetch) => self.on_page_fetch(conn, fetch),
            Message::PageReply(reply) => self.on_page_reply(from, reply),
            Message::LeaseRelease | Message::Build(_) => {}
            Message::Hello(_)
            | Message::Challenge(_)
            | Message::Proof(_)
            | Message::Welcome(_)
            | Message::Goodbye { .. } => self.break_link(conn, "message out of place"),
        }
    }

    fn break_link(&mut self, conn: ConnId, text: &str) {
        tracing::warn!(text, "closing a peer link");
        let reason = crate::replication::wire::GoodbyeReason::Protocol;
        if let Some(session) = self.links.goodbye(&mut self.seam, conn, self.now, reason, text) {
            self.link_down(conn, &session, false);
        }
    }

    /// The term in which this node sends its log, if it may.
    pub(super) fn sending_term(&self) -> Option<Term> {
        self.role.leading().or_else(|| self.role.following().map(|(_, term)| term))
    }

    // ---- upstream side ----

    fn on_stream_request(&mut self, conn: ConnId, session: &Session, term: Term, request: &StreamRequest) {
        let made = match self.judge_stream(session, term, request) {
            Err(refusal) => Err(refusal),
            Ok(()) => self.with_view(conn, |view, _| Sender::new(session.peer, request, view)),
        };
        match made {
            Ok(sender) => {
                let peer = sender.peer();
                // A newer link of the same standby replaces an older one.
                let old: Vec<ConnId> = self
                    .streams
                    .senders
                    .iter()
                    .filter(|(_, s)| s.sender.peer().node == peer.node)
                    .map(|(c, _)| *c)
                    .collect();
                for conn in old {
                    self.streams.senders.remove(&conn);
                }
                tracing::info!(standby = %peer.node, from = %request.tip.end, "standby asks for the stream");
                let delayed = self.config.apply_delay(peer.node);
                if let Some(progress) = &mut self.streams.progress {
                    progress.stream_started(
                        &peer,
                        StreamKind { delayed: delayed.is_some(), cascade: request.cascade },
                        self.now,
                    );
                }
                let flushed = (Lsn::ZERO, self.now);
                self.streams.serial += 1;
                let (serial, cascade) = (self.streams.serial, request.cascade);
                let slot = SenderSlot { sender, serial, cascade, loading: false, heard: self.now, flushed };
                self.streams.senders.insert(conn, slot);
                self.feed(conn);
            }
            Err(refusal) => {
                tracing::info!(standby = %session.peer.node, reason = ?refusal.reason, "stream refused");
                self.links.send(&mut self.seam, conn, self.now, &Message::StreamRefuse(refusal));
            }
        }
    }

    /// Calls `f` with this node's log as a sender on `conn` sees it.
    fn with_view<T>(&self, conn: ConnId, f: impl FnOnce(&LogView<'_>, &dyn LogSource) -> T) -> T {
        let version = self.links.session(conn).map_or(1, |s| s.version);
        let view = LogView {
            cluster: self.identity_full().cluster,
            version,
            session: self.sending_term().unwrap_or(Term::NONE),
            history: &self.role.control().history,
            tip: self.log_tip(),
            oldest: self.log.oldest(),
            commit: self.committed,
            path: self.own_path().unwrap_or_else(|| Path::of(self.me())),
            eager_acks: self.eager_acks(),
        };
        f(&view, &Source(&self.log.wal))
    }

    /// Somebody waits for more than flushes on standbys.
    fn eager_acks(&self) -> bool {
        self.clients.waits_for_more() || self.clients.apply_awaited > self.marks.remote_apply
    }

    /// Lets every sender and server send what there is.
    pub(super) fn feed_all(&mut self) {
        let announce = self.announce_at.is_some_and(|at| at <= self.now);
        if announce {
            self.announce_at = None;
        }
        let end = self.log.wal.end().end;
        let all_sent = self.streams.senders.values().all(|slot| slot.sender.sent() >= end);
        if all_sent && !announce && self.streams.servers.is_empty() {
            return;
        }
        let conns: Vec<ConnId> =
            self.streams.senders.keys().chain(self.streams.servers.keys()).copied().collect();
        for conn in conns {
            match announce {
                true => self.feed(conn),
                false => self.feed_frames(conn),
            }
        }
    }

    /// Like [`Node::feed`], unless there is nothing to tell but the commit index.
    pub(super) fn feed_frames(&mut self, conn: ConnId) {
        let end = self.log.wal.end().end;
        if self.streams.senders.get(&conn).is_none_or(|slot| slot.sender.sent() < end) {
            self.feed(conn);
        }
    }

    pub(super) fn feed(&mut self, conn: ConnId) {
        while self.links.unsent(conn) < LINK_BACKLOG {
            let Some((step, reader)) = self.next_step(conn) else { return };
            if !self.take_step(conn, reader, step) {
                return;
            }
        }
    }

    fn next_step(&mut self, conn: ConnId) -> Option<(Step, Reader)> {
        // The senders step aside while one of them looks at the rest of this node.
        let mut senders = std::mem::take(&mut self.streams.senders);
        let sending = senders.get_mut(&conn).map(|slot| {
            let next =
                |slot: &mut SenderSlot| self.with_view(conn, |view, source| slot.sender.next(view, source));
            let step = if slot.loading { None } else { Some(next(slot)) };
            step.map(|step| (step, Reader::Sender(conn, slot.serial)))
        });
        self.streams.senders = senders;
        if let Some(step) = sending {
            return step;
        }
        let mut slot = self.streams.servers.remove(&conn)?;
        let step = if slot.loading {
            None
        } else {
            Some(self.with_view(conn, |view, source| slot.server.next(view, source)))
        };
        if !slot.server.is_over() {
            self.streams.servers.insert(conn, slot);
        }
        step.map(|s| (s, Reader::Server(conn)))
    }

    /// Says whether more may follow at once.
    fn take_step(&mut self, conn: ConnId, reader: Reader, step: Step) -> bool {
        match step {
            Step::Idle => false,
            Step::Send(Outbound { head, slices }) => {
                self.links.send_frames(&mut self.seam, conn, self.now, head, slices);
                true
            }
            Step::Load { from, bytes } => {
                match reader {
                    Reader::Sender(conn, _) => {
                        self.streams.senders.get_mut(&conn).expect("it asked").loading = true;
                    }
                    Reader::Server(conn) => {
                        self.streams.servers.get_mut(&conn).expect("it asked").loading = true;
                    }
                    Reader::Redo | Reader::Cut | Reader::Settle => {}
                }
                self.read_log(reader, from, bytes);
                false
            }
            Step::Refuse(refusal) => {
                tracing::warn!(reason = ?refusal.reason, text = refusal.text, "stream refused");
                // The other one of the two may be what the peer asked for meanwhile.
                let message = match reader {
                    Reader::Server(_) => {
                        self.streams.servers.remove(&conn);
                        Message::FetchRefuse(refusal)
                    }
                    _ => {
                        self.end_sender(conn);
                        Message::StreamRefuse(refusal)
                    }
                };
                self.links.send(&mut self.seam, conn, self.now, &message);
                false
            }
        }
    }

    /// Frames read from the segments for a sender or server.
    pub(super) fn log_loaded(
        &mut self,
        conn: ConnId,
        reader: Reader,
        frames: Result<Vec<crate::wal::Frame>, Refusal>,
    ) {
        let step = match reader {
            Reader::Sender(_, serial) => {
                // What an ended stream asked for is nothing to the one that took its place.
                if self.streams.senders.get(&conn).is_none_or(|slot| slot.serial != serial) {
                    return;
                }
                let Some(mut slot) = self.streams.senders.remove(&conn) else { return };
                slot.loading = false;
                let step = self.with_view(conn, |view, _| slot.sender.loaded(view, frames));
                self.streams.senders.insert(conn, slot);
                step
            }
            Reader::Server(_) => {
                let Some(mut slot) = self.streams.servers.remove(&conn) else { return };
                slot.loading = false;
                let step = self.with_view(conn, |view, _| slot.server.loaded(view, frames));
                if !slot.server.is_over() {
                    self.streams.servers.insert(conn, slot);
                }
                step
            }
            Reader::Redo | Reader::Cut | Reader::Settle => return,
        };
        if self.take_step(conn, reader, step) {
            self.feed(conn);
        }
    }

    fn on_ack(&mut self, conn: ConnId, session: &Session, term: Term, ack: &Ack) {
        let Some(slot) = self.streams.senders.get_mut(&conn) else { return };
        if let Err(error) = slot.sender.on_ack(ack) {
            return self.break_link(conn, &format!("acknowledgement makes no sense: {error:?}"));
        }
        if self.acks_stopped || !self.role.accepts_ack(term) {
            return;
        }
        if let Some(progress) = &mut self.streams.progress {
            progress.on_ack(&session.peer, term, ack, self.now);
            self.acks_moved = true;
        }
    }

    /// Recomputes the commit index from what is flushed here and acknowledged there.
    pub(super) fn advance_commit(&mut self) {
        self.acks_moved = false;
        if self.acks_stopped {
            return;
        }
        let Some(rule) = self.role.commit_rule() else { return };
        let flushed = self.log.wal.flushed();
        let Some(progress) = &mut self.streams.progress else { return };
        let commit = progress.commit_index(flushed, &rule);
        let marks = progress.watermarks(flushed, &rule);
        self.marks.local = self.groups.at(flushed.lsn());
        self.marks.remote_write = self.groups.at(marks.remote_write);
        self.marks.remote_apply = self.groups.at(marks.remote_apply.lsn());
        self.gates_moved = true;
        if let Some(commit) = commit
            && commit.lsn() > self.committed.lsn()
        {
            self.set_committed(commit.lsn());
            self.announce_commit();
        }
        self.marks.committed = self.groups.at(self.committed.lsn());
    }

    /// The watermark moved: standbys hear of it with the next frame, or soon without one.
    fn announce_commit(&mut self) {
        let at = if self.eager_acks() { self.now } else { self.now + ANNOUNCE_AFTER };
        self.announce_at = Some(self.announce_at.map_or(at, |before| before.min(at)));
    }

    /// Heartbeats to every standby below.
    pub(super) fn beat(&mut self) {
        if self.streams.progress.is_none() || self.now < self.streams.beat_at {
            return;
        }
        self.streams.beat_at = self.now + HEARTBEAT_EVERY;
        self.streams.beat += 1;
        let beat = Heartbeat {
            seq: self.streams.beat,
            sent: self.now,
            commit: self.committed,
            end: self.log.wal.end().end,
            clock: self.clock(),
            wants_grant: !self.acks_stopped,
            tip: self.log.wal.end().end,
            path: Path::of(self.me()),
        };
        let conns: Vec<ConnId> = self.streams.senders.keys().copied().collect();
        for conn in conns {
            self.links.send(&mut self.seam, conn, self.now, &Message::Heartbeat(beat));
        }
    }

    fn on_heartbeat_ack(&mut self, conn: ConnId, session: &Session, term: Term, ack: &HeartbeatAck) {
        let Some(slot) = self.streams.senders.get_mut(&conn) else { return };
        slot.heard = self.now;
        if let Some(progress) = &mut self.streams.progress {
            progress.heard(&session.peer, self.now);
        }
        if ack.granted {
            self.tell_role(Input::Granted {
                from: session.peer.node,
                incarnation: session.peer.incarnation,
                term,
                sent: ack.sent,
            });
            self.gates_moved = true;
        }
    }

    fn on_fetch_request(&mut self, conn: ConnId, term: Term, from: Lsn, to: Lsn) {
        if let Verdict::Refuse(promised) = self.role.accepts_pull(term) {
            let refusal = Refusal {
                reason: RefuseReason::OtherTerm { term: promised },
                text: format!("term {promised} was promised here"),
            };
            return self.links.send(&mut self.seam, conn, self.now, &Message::FetchRefuse(refusal));
        }
        // A candidate that fast-forwards has left its stream, though it may have asked for one just before.
        self.end_sender(conn);
        self.streams.servers.insert(conn, ServerSlot { server: FetchServer::new(from, to), loading: false });
        self.feed(conn);
    }

    // ---- standby side ----

    /// Asks for the stream, if that is due: the leader that is followed, or an upstream on the way.
    pub(super) fn request_stream(&mut self) {
        let Some((leader, term)) = self.streams.leader else { return };
        if self.streams.receiver.is_some() || self.acks_stopped || self.log.tail.is_some() || self.pending {
            return;
        }
        if self.now < self.streams.request_after {
            return;
        }
        if let Some((asked, _, since)) = self.streams.requested {
            if self.now.since(since) < FETCH_SILENCE {
                return;
            }
            self.streams.parent.refused(self.now, asked);
        }
        let Some(upstream) = self.choose_upstream(leader) else { return };
        let Some(conn) = self.links.dialed_to(upstream) else { return };
        let cascade = self.configured_upstream().is_some();
        self.streams.asked_as_cascade = cascade;
        let request = self.position().request(cascade);
        self.streams.requested = Some((upstream, conn, self.now));
        self.links.send_in(&mut self.seam, conn, self.now, term, &Message::StreamRequest(request));
    }

    fn position(&self) -> Position {
        Position {
            tip: self.log_tip(),
            flushed: self.log.wal.flushed(),
            applied: self.data.applied,
            committed: self.committed,
            history: self.role.control().history.clone(),
        }
    }

    fn on_stream_start(&mut self, conn: ConnId, from: NodeId, term: Term, start: &StreamStart) {
        let asked = self.streams.requested.map(|(_, c, _)| c) == Some(conn);
        let Some((leader, _)) = self.streams.leader.filter(|(_, followed)| asked && *followed == term) else {
            return;
        };
        self.streams.requested = None;
        if self.role.accepts_session(leader, term) != Verdict::Accept {
            return;
        }
        if start.path.contains(self.me()) {
            return self.streams.parent.looped(self.now, from);
        }
        let promised = self.role.control().promised;
        let cluster = self.identity_full().cluster;
        match Receiver::start(cluster, term, promised, &self.position(), start) {
            Ok(receiver) => {
                tracing::info!(upstream = %from, %leader, %term, from = %start.from, "stream started");
                let configured = self.configured_upstream();
                self.streams.parent.started(self.now, from, configured);
                (self.streams.path, self.streams.upstream_tip) = (start.path, start.end);
                self.streams.refused = None;
                self.streams.receiver =
                    Some(ReceiverSlot { conn, leader, upstream: from, receiver, begun_at: start.end });
                self.stream_heard(term, start.end);
                self.standby_progress();
                self.tell_roots();
            }
            Err(error) => self.break_link(conn, &error.to_string()),
        }
    }

    fn on_stream_refuse(&mut self, conn: ConnId, term: Term, refusal: &Refusal) {
        if refusal.reason == RefuseReason::Left {
            return self.standby_left(conn);
        }
        if let Some((asked, ..)) = self.streams.requested.take_if(|(_, c, _)| *c == conn) {
            self.streams.parent.refused(self.now, asked);
        }
        if self.streams.receiver.as_ref().is_some_and(|r| r.conn == conn) {
            self.streams.receiver = None;
        }
        tracing::warn!(reason = ?refusal.reason, text = refusal.text, %term, "the upstream refuses the stream");
        self.streams.refused = Some(refused_in_words(&refusal.reason).to_string());
        self.streams.request_after = self.now + REQUEST_AGAIN;
        if let RefuseReason::OtherTerm { term: promised } = refusal.reason
            && let Some((by, _)) = self.streams.leader
        {
            self.tell_role(Input::SessionRefused { by, promised });
        }
    }

    fn on_frames(&mut self, conn: ConnId, term: Term, head: &FramesHead, bytes: bytes::Bytes) {
        if self.drain.is_some() || self.log.tail.is_some() {
            return;
        }
        let Some(slot) = self.streams.receiver.as_mut().filter(|r| r.conn == conn) else { return };
        match slot.receiver.on_frames(term, head, bytes) {
            Ok(frames) => {
                self.write_received(&frames);
                self.stream_heard(term, head.end);
            }
            Err(error) => {
                self.streams.receiver = None;
                self.streams.refused = Some(error.to_string());
                self.streams.request_after = self.now + REQUEST_AGAIN;
                self.break_link(conn, &error.to_string());
            }
        }
    }

    fn write_received(&mut self, frames: &[ReceivedFrame]) {
        for frame in frames {
            if let Err(error) = self.log.wal.receive(&frame.header, &frame.used) {
                tracing::error!(%error, at = %frame.header.first, "received frame does not fit the log");
                self.streams.receiver = None;
                return;
            }
            self.format_received(frame.header.version);
            self.note_records(&frame.header, &frame.used[HEADER_BYTES..]);
        }
    }

    /// Policy and op records matter as soon as they are in the log, long before they are applied.
    fn note_records(&mut self, header: &FrameHeader, payload: &[u8]) {
        // They come rarely and travel with few records; a cheap look decides.
        if header.records > super::POLICY_FRAME_RECORDS_MAX {
            return;
        }
        for (record, _) in crate::record::RecordReader::new(payload).flatten() {
            self.record_seen(&record, header.first, header.end());
        }
    }

    fn on_commit(&mut self, conn: ConnId, term: Term, commit: CommittedLsn) {
        let Some(slot) = self.streams.receiver.as_mut().filter(|r| r.conn == conn) else { return };
        if let Err(error) = slot.receiver.on_commit(term, commit) {
            tracing::warn!(%error, "commit watermark refused");
        }
    }

    fn on_heartbeat(&mut self, conn: ConnId, from: NodeId, term: Term, beat: &Heartbeat) {
        let streaming =
            self.streams.receiver.as_ref().is_some_and(|r| r.conn == conn && r.receiver.session() == term);
        let mut granted = false;
        if streaming {
            if let Some(slot) = &mut self.streams.receiver
                && let Err(error) = slot.receiver.on_heartbeat(term, beat.commit)
            {
                tracing::warn!(%error, "heartbeat refused");
            }
            if !self.heartbeat_from_above(from, term, beat) {
                return;
            }
            // Only the leader itself asks for a grant, and only on its own stream is it given one.
            granted =
                beat.wants_grant && !self.acks_stopped && self.role.grant(self.now, from, term, beat.sent);
        }
        let answer = HeartbeatAck { seq: beat.seq, sent: beat.sent, granted };
        let session = if streaming { term } else { self.sending_term().unwrap_or(Term::NONE) };
        self.links.send_in(&mut self.seam, conn, self.now, session, &Message::HeartbeatAck(answer));
    }

    /// The upstream has sent something of the log. Of the leader it tells only when the leader is the upstream.
    fn stream_heard(&mut self, term: Term, end: Lsn) {
        let Some(slot) = &self.streams.receiver else { return };
        match slot.upstream == slot.leader {
            true => self.leader_heard(slot.leader, term, end),
            false => self.streams.leader_end = self.streams.leader_end.max(end),
        }
    }

    pub(super) fn leader_heard(&mut self, leader: NodeId, term: Term, end: Lsn) {
        self.streams.leader_end = end;
        self.streams.leader_lag.note(end, self.now);
        self.streams.leader_heard = self.now;
        self.tell_role(Input::Heartbeat { leader, term, end });
    }

    /// Moves the standby's watermarks and sends the acknowledgement that is due.
    pub(super) fn standby_progress(&mut self) {
        let written = self.log.wal.written();
        let flushed = self.log.wal.flushed();
        let limit = self.role.ack_limit();
        let Some(slot) = &mut self.streams.receiver else { return };
        slot.receiver.hold_acks_above(limit);
        slot.receiver.written(written);
        slot.receiver.flushed(flushed);
        slot.receiver.applied(self.data.applied);
        let (conn, leader, session) = (slot.conn, slot.leader, slot.receiver.session());
        let awaited = self.role.flush_awaited().is_some_and(|end| flushed.lsn() >= end);
        let slot = self.streams.receiver.as_mut().expect("seen above");
        let commit = slot.receiver.redo_limit().lsn();
        let repaired = commit >= slot.begun_at && flushed.lsn() >= slot.begun_at;
        let allowed = !self.acks_stopped && self.role.may_ack(leader, session);
        let ack = if allowed { slot.receiver.take_ack() } else { None };
        if let Some(ack) = ack {
            self.links.send_in(&mut self.seam, conn, self.now, session, &Message::Ack(ack));
        }
        if commit > self.committed.lsn() && !self.streams.senders.is_empty() {
            self.announce_commit();
        }
        self.set_committed(commit);
        if awaited {
            self.tell_role(Input::CommitMoved);
        }
        if repaired {
            self.check_repaired();
        }
    }

    /// A damaged log is whole again once everything that the leader held when the stream started is committed and
    /// flushed here: nothing that this node ever acknowledged can be missing then.
    fn check_repaired(&mut self) {
        let damaged = self.role.control().status == DataStatus::Damaged;
        if !damaged || self.log.wal.damaged().is_some() || std::mem::replace(&mut self.repair_told, true) {
            return;
        }
        tracing::info!(end = %self.log.wal.end().end, "the log is whole again, repaired by the stream");
        self.log.whole = true;
        let (status, incarnation) = (DataStatus::Whole, self.identity.incarnation);
        self.tell_role(Input::DataChanged { status, incarnation, history: None, policy: None });
    }

    // ---- fast-forward ----

    pub(super) fn start_fetch(&mut self, ticket: u64, from: NodeId, term: Term, to: Lsn) {
        self.streams.receiver = None;
        let deadline = self.now + FETCH_SILENCE;
        self.streams.fetch = Some(FetchSlot { ticket, from, term, to, conn: None, fetcher: None, deadline });
        self.drive_fetch();
    }

    /// Sends the fetch request once the link to the source stands; gives up when it is silent.
    pub(super) fn drive_fetch(&mut self) {
        let Some(slot) = &self.streams.fetch else { return };
        if self.now > slot.deadline {
            return self.fetch_failed(FastForwardFailure::Unreachable);
        }
        if slot.fetcher.is_some() {
            return;
        }
        let Some(conn) = self.links.dialed_to(slot.from) else { return };
        let history = self.role.control().history.clone();
        let chain = Chain::new(self.identity_full().cluster, history, self.log_tip());
        let mut fetcher = Fetcher::new(chain, slot.to);
        let (request, term) = (fetcher.request(), slot.term);
        let slot = self.streams.fetch.as_mut().expect("seen above");
        slot.conn = Some(conn);
        slot.fetcher = Some(fetcher);
        self.links.send_in(&mut self.seam, conn, self.now, term, &request);
        self.check_fetch();
    }

    fn on_fetched(&mut self, conn: ConnId, head: &FramesHead, bytes: bytes::Bytes) {
        let Some(slot) = self.streams.fetch.as_mut().filter(|f| f.conn == Some(conn)) else { return };
        let Some(fetcher) = &mut slot.fetcher else { return };
        slot.deadline = self.now + FETCH_SILENCE;
        match fetcher.on_frames(head, bytes) {
            Ok(frames) => {
                self.write_received(&frames);
                self.check_fetch();
            }
            Err(error) => {
                tracing::warn!(%error, "fetched frames refused");
                self.fetch_failed(FastForwardFailure::Unreachable);
            }
        }
    }

    /// A range is complete: ask for the next one, or wait for the last flush.
    fn on_fetch_done(&mut self, conn: ConnId) {
        let Some(slot) = self.streams.fetch.as_mut().filter(|f| f.conn == Some(conn)) else { return };
        let Some(fetcher) = &mut slot.fetcher else { return };
        match fetcher.on_done() {
            Fetched::Done => self.check_fetch(),
            Fetched::More => {
                let (request, term) = (fetcher.request(), slot.term);
                self.links.send_in(&mut self.seam, conn, self.now, term, &request);
            }
            Fetched::Short => self.fetch_failed(FastForwardFailure::Unreachable),
        }
    }

    /// A fast-forward is over when its range is flushed here.
    pub(super) fn check_fetch(&mut self) {
        let Some(slot) = &self.streams.fetch else { return };
        if self.log.wal.flushed().lsn() >= slot.to {
            let ticket = slot.ticket;
            self.streams.fetch = None;
            self.tell_role(Input::FastForwarded { ticket, result: Ok(()) });
        }
    }

    fn on_fetch_refused(&mut self, conn: ConnId, refusal: &Refusal) {
        if self.streams.fetch.as_ref().is_some_and(|f| f.conn == Some(conn)) {
            let failure = match refusal.reason {
                RefuseReason::WalRemoved { .. } => FastForwardFailure::NotRetained,
                _ => FastForwardFailure::Unreachable,
            };
            tracing::warn!(text = refusal.text, "fetch refused");
            self.fetch_failed(failure);
        }
    }

    /// Age of the last word from the followed leader.
    pub(super) fn leader_silence(&self) -> Option<Duration> {
        self.streams.leader?;
        Some(self.now.since(self.streams.leader_heard))
    }
}

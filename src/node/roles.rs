//! Carries out what the role machine orders, one effect after the other, and tells it what became of them.

use crate::base::planted::{Bug, planted};
use crate::base::{Lsn, NodeId, Stamp, Term};
use crate::io::Seam;
use crate::record::Record;
use crate::replication::Message;
use crate::replication::wire::LogTip;
use crate::role::{
    Command, CommandResult, Effect, FastForwardFailure, Generation, Input, LogView, OpMark, OpRecord,
    RoleMessage, TermStart,
};

use super::Node;
use super::gates::Watermarks;

impl<S: Seam> Node<S> {
    /// The log as the role machine wants to see it.
    pub(super) fn log_view(&self) -> LogView {
        let end = self.log.wal.end();
        LogView {
            end: end.end,
            last_term: end.last_term,
            flushed: self.log.wal.flushed(),
            committed: self.committed,
            whole: self.log.whole,
        }
    }

    /// Where the own log ends, as replication names it.
    pub(super) fn log_tip(&self) -> LogTip {
        let end = self.log.wal.end();
        LogTip { end: end.end, term: end.last_term, digest: end.last_digest }
    }

    /// Queues an input for the role machine; [`Node::pump_role`] hands it over.
    pub(super) fn tell_role(&mut self, input: Input) {
        self.role_inputs.push_back(input);
    }

    /// Hands queued inputs to the role machine until nothing is left to do.
    pub(super) fn pump_role(&mut self) {
        while let Some(input) = self.role_inputs.pop_front() {
            let view = self.log_view();
            let mut effects = std::mem::take(&mut self.role_effects);
            self.role.handle(self.now, &view, input, &mut effects);
            for effect in effects.drain(..) {
                self.carry_out(effect);
            }
            self.role_effects = effects;
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send { to, message } => self.send_role(to, &message),
            Effect::Persist { state } => self.control.persist(&mut self.seam, state),
            Effect::StopAcks => self.stop_acks(),
            Effect::Drain { ticket } => {
                self.drain = Some(ticket);
                self.check_drained();
            }
            Effect::FastForward { ticket, from, term, to } => self.start_fetch(ticket, from, term, to),
            Effect::AppendTermStart(start) => self.append_term_start(&start),
            Effect::Lead { term } => self.lead(term),
            Effect::Serve { term } => {
                tracing::info!(%term, "term start is committed: serving once the log is applied");
                self.serve_after = Some(self.committed.lsn());
            }
            Effect::HoldClients { reason } => {
                tracing::info!(reason, "clients are held");
                self.seal_executed();
                // What is committed already is answered: nothing about it is in doubt.
                self.open_gates(false);
                self.serving = false;
            }
            Effect::Demote { reason, successor } => self.demote(&reason, successor),
            Effect::HoldWrites { ticket, reason } => self.hold_writes(ticket, reason),
            Effect::ResumeWrites => self.resume_writes(),
            Effect::AppendPolicy { ticket, generation, op } => {
                self.append_policy(ticket, &generation, op.as_deref());
            }
            Effect::Store { ticket, request } => self.ask_store(ticket, request),
            Effect::Follow { leader, term } => self.follow(leader, term),
            Effect::Unfollow => self.unfollow(),
            Effect::Truncate { ticket, to } => self.truncate_log(ticket, to),
            Effect::Reply { op, result } => match self.role_waiters.remove(&op) {
                Some(waiter) => waiter(result),
                None => self.answer_command(op, result),
            },
            Effect::Changed { role, state } => {
                tracing::info!(%role, %state, "role changed");
                self.note_role(role);
                self.metrics_role_changed();
            }
            Effect::Evidence(evidence) => {
                tracing::info!(%evidence, "role evidence");
                self.note_evidence(&evidence);
            }
            Effect::Latch { reason } => {
                tracing::error!(reason, "the log failed: this node stops");
                self.fail(reason);
            }
        }
    }

    fn send_role(&mut self, to: NodeId, message: &RoleMessage) {
        let Some(conn) = self.links.any_to(to) else { return };
        let mut bytes = Vec::with_capacity(128);
        message.encode(&mut bytes);
        self.links.send(&mut self.seam, conn, self.now, &Message::Role(bytes));
    }

    /// From here on no ack, no grant and no reply leaves (protocol 3.2).
    fn stop_acks(&mut self) {
        self.acks_stopped = true;
        if let Some(slot) = &mut self.streams.receiver {
            slot.receiver.stop_acks();
        }
        self.end_streams_below();
    }

    /// Reports the drain as done once every write in flight is flushed.
    pub(super) fn check_drained(&mut self) {
        if self.drain.is_some() && self.log.wal.idle() && self.log.tail.is_none() {
            let ticket = self.drain.take().expect("checked");
            self.tell_role(Input::Drained { ticket });
        }
    }

    /// Seals the first frame of a term: the term-start record, and the policy record if there is one.
    fn append_term_start(&mut self, start: &TermStart) {
        assert_eq!(self.log.wal.end().end, start.previous_end, "a term starts at the end of the log");
        self.log.wal.write_format(self.role.control().format);
        // A leader that recruits again holds replies that its next commit lets go: all that they speak of stands in the
        // log. What anybody else executed and never sealed belongs to no term.
        let placed = !self.executed || self.log.wal.writer().is_empty() || self.exit.is_some();
        assert!(placed, "what a leader executed has its place in the log before the next term");
        self.discard_open_group();
        let writer = self.log.wal.writer();
        writer.push(Record::TermStart {
            term: start.term,
            leader: start.leader,
            incarnation: start.incarnation,
            previous_term: start.previous_term,
            previous_end: start.previous_end,
        });
        if let Some(generation) = &start.policy {
            writer.push(Record::Policy { generation });
        }
        if let Some(op) = &start.op {
            writer.push(Record::Op { op });
        }
        writer.end_transaction();
        let end = self.seal_group(start.term);
        self.term_start_end = end;
        self.tell_role(Input::TermAppended { start: start.previous_end, end });
    }

    fn lead(&mut self, term: Term) {
        tracing::info!(%term, end = %self.log.wal.end().end, "leading: waiting for the term-start frame to commit");
        self.acks_stopped = false;
        // A leader that recruits again above a promise still holds replies of its own uncommitted groups: their stamps
        // stay what they are, and leave only when the new term's first frame commits them.
        if !self.executed {
            self.forget_groups();
        }
        self.links.set_session(term);
        self.streams.lead(term, self.now);
        // The term-start frame may be flushed already, and nobody else may have to acknowledge it.
        self.log_moved = true;
    }

    /// No further write begins; what was accepted is sealed at once, so that the log's end stands still.
    fn hold_writes(&mut self, ticket: u64, reason: &str) {
        tracing::info!(reason, "writes are held");
        self.writes_held = true;
        self.seal_accepted();
        tracing::info!(end = %self.log.wal.end().end, committed = %self.committed, "the log stands still");
        self.tell_role(Input::WritesHeld { ticket });
    }

    fn resume_writes(&mut self) {
        tracing::info!("writes go on");
        // What was found out for a switchover that was given up is no reason of what comes next.
        self.chronicle.evidence.clear();
        self.writes_held = false;
        self.run_held_clients();
    }

    /// Seals the open group whatever is in flight.
    fn seal_accepted(&mut self) {
        if let Some(term) = self.role.leading()
            && !self.log.wal.writer().is_empty()
        {
            self.seal_group(term);
        }
    }

    /// Clients are held, perhaps for good: what was executed for them goes into the log while its term still stands.
    /// The role machine drains the log before it reports or starts anything.
    fn seal_executed(&mut self) {
        if self.executed && !self.log.wal.writer().is_empty() && self.log.wal.failed().is_none() {
            let term = self.log.wal.end().last_term;
            self.seal_group(term);
        }
    }

    /// A policy record in a frame of its own, behind everything accepted so far.
    fn append_policy(&mut self, ticket: u64, generation: &[u8], op: Option<&[u8]>) {
        let Some(term) = self.role.leading() else { return };
        self.seal_accepted();
        let start = self.log.wal.end().end;
        let writer = self.log.wal.writer();
        writer.push(Record::Policy { generation });
        op.into_iter().for_each(|op| writer.push(Record::Op { op }));
        writer.end_transaction();
        let end = self.seal_group(term);
        tracing::info!(%start, %end, "policy generation appended");
        self.tell_role(Input::PolicyRecorded { ticket, start, end });
    }

    /// Leadership is over: clients learn what is unknown, uncommitted changes are taken back.
    fn demote(&mut self, reason: &str, successor: Option<NodeId>) {
        tracing::warn!(reason, committed = %self.committed, "demoted: closing clients, rolling back what is not committed");
        let was_serving = self.serving || self.executed;
        self.serving = false;
        self.serve_after = None;
        self.redirect_held_clients(successor);
        self.writes_held = false;
        self.close_clients_unknown();
        self.discard_open_group();
        if was_serving {
            let mut stamp = self.groups.at(self.committed.lsn());
            if planted(Bug::SpeculativeValueSurvivesDemotion) {
                stamp = Stamp(self.log.wal.open_stamp().0 - 1);
            }
            self.data.store.rollback_above(stamp);
            self.data.store.commit_through(stamp);
            self.data.applied.advance(self.committed.lsn());
            self.executed = false;
        }
        self.forget_groups();
        self.forget_roots_above(self.committed.lsn());
        self.streams.stop_leading();
    }

    /// What survives of earlier groups is committed: every stamp below the next one counts as such from here on.
    fn forget_groups(&mut self) {
        let next = self.log.wal.open_stamp();
        self.groups.clear(Stamp(next.0 - 1), self.committed.lsn());
        self.marks = Watermarks::at(Stamp(next.0 - 1));
    }

    fn follow(&mut self, leader: NodeId, term: Term) {
        tracing::info!(%leader, %term, "following");
        self.note_follow(leader, term);
        self.acks_stopped = false;
        self.links.set_session(term);
        self.streams.follow(leader, term);
        self.request_stream();
    }

    fn unfollow(&mut self) {
        self.streams.unfollow();
    }

    /// A record that matters as soon as it is in the log, whatever comes of it.
    pub(super) fn record_seen(&mut self, record: &Record<'_>, start: Lsn, end: Lsn) {
        match *record {
            Record::Policy { generation } => self.policy_seen(generation, start, end),
            Record::Op { op } => match OpRecord::decode(op) {
                Some(op) => self.tell_role(Input::OpAppended { op, start, end }),
                None => tracing::error!(%start, "op record cannot be read"),
            },
            _ => {}
        }
    }

    /// A policy record passed through this log as a standby, or was met by recovery.
    fn policy_seen(&mut self, encoded: &[u8], start: Lsn, end: Lsn) {
        match Generation::decode(encoded) {
            Some(generation) => self.tell_role(Input::PolicyAppended { generation, start, end }),
            None => tracing::error!(%start, "policy record cannot be read"),
        }
    }

    /// Moves the commit index and everything that hangs on it.
    pub(super) fn set_committed(&mut self, committed: Lsn) {
        if !self.committed.advance(committed) {
            return;
        }
        self.log.wal.note_committed(self.committed);
        if self.executed {
            let stamp = self.groups.at(committed);
            self.data.store.commit_through(stamp);
            self.data.applied.advance(committed);
        }
        self.streams.commit_lag.note(committed, self.now);
        self.tell_role(Input::CommitMoved);
        self.gates_moved = true;
    }

    pub(super) fn fetch_failed(&mut self, failure: FastForwardFailure) {
        if let Some(slot) = self.streams.fetch.take() {
            tracing::warn!(from = %slot.from, ?failure, "fast-forward failed");
            self.tell_role(Input::FastForwarded { ticket: slot.ticket, result: Err(failure) });
        }
    }

    /// Starts serving once everything committed so far is applied.
    pub(super) fn check_serve(&mut self) {
        let Some(after) = self.serve_after else { return };
        if self.data.applied.lsn() < after || !self.role.serving() {
            return;
        }
        self.serve_after = None;
        self.serving = true;
        self.executed = true;
        // The new leader's expiry clock never runs behind what its predecessor wrote (protocol 2.7).
        self.clock_floor = self.clock_floor.max(self.data.clock);
        tracing::info!(applied = %self.data.applied, "serving clients");
        self.note_serving();
        self.serving_changed();
    }

    /// Asks the role machine; the answer comes to `waiter`, from within a later turn.
    pub fn ask_role(&mut self, command: Command, waiter: Box<dyn FnOnce(CommandResult) + Send>) {
        self.role_asked += 1;
        // Far above the numbers that admin requests get.
        let op = (1 << 48) + self.role_asked;
        self.role_waiters.insert(op, waiter);
        self.command(op, None, command);
    }

    pub(super) fn command(&mut self, op: u64, mark: Option<OpMark>, command: Command) {
        self.tell_role(Input::Command { op, mark, command });
        self.pump_role();
    }
}

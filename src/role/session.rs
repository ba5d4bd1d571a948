//! The questions that the data path asks the role machine: about sessions, acks, frames, leases and commits.

use super::history;
use super::machine::{Phase, RoleMachine, Verdict, Work};
use super::policy::CommitRule;
use crate::base::planted::{Bug, planted};
use crate::base::{Incarnation, Lsn, Mono, NodeId, Term};

impl RoleMachine {
    /// Standby side: a leader offers a stream in a session of `term`.
    pub fn accepts_session(&self, leader: NodeId, term: Term) -> Verdict {
        let ghost = planted(Bug::AckAfterPromise) && self.last_followed == Some((leader, term));
        if planted(Bug::IgnoreSessionTerm) || ghost {
            return Verdict::Accept;
        }
        if matches!(self.phase, Phase::Failed) || !history::at_least(term, self.control.promised) {
            return Verdict::Refuse(self.control.promised);
        }
        match self.following() {
            Some((node, followed)) if node == leader && history::same(followed, term) => Verdict::Accept,
            _ => Verdict::AdoptFirst,
        }
    }

    /// Source side: a candidate of `term`, or a standby following `term`, wants to read this log.
    pub fn accepts_pull(&self, term: Term) -> Verdict {
        if !history::at_least(term, self.control.promised) || matches!(self.phase, Phase::Failed) {
            return Verdict::Refuse(self.control.promised);
        }
        let promising = matches!(self.work, Work::Promise(_));
        if history::same(term, self.control.promised) && !promising {
            Verdict::Accept
        } else {
            Verdict::AdoptFirst
        }
    }

    /// Leader side: does an ack of a session of `term` count?
    pub fn accepts_ack(&self, term: Term) -> bool {
        match self.leading() {
            Some(own) => history::same(own, term) || planted(Bug::IgnoreSessionTerm),
            None => false,
        }
    }

    /// Standby side: may an ack of a session of `term` leave now?
    pub fn may_ack(&self, leader: NodeId, term: Term) -> bool {
        self.accepts_session(leader, term) == Verdict::Accept
    }

    /// Standby side: acks above this position must wait (a policy record is not durable in the control file yet).
    pub fn ack_limit(&self) -> Lsn {
        let unwritten = if self.durable < self.pending_image { self.pending_from } else { Lsn::MAX };
        self.refused_from.map_or(unwritten, |from| from.min(unwritten))
    }

    /// Receiver side: does the history assign `frame_term` to `at`?
    pub fn accepts_frame(&self, frame_term: Term, at: Lsn) -> bool {
        if planted(Bug::JudgeFramesByPromisedTerm) {
            return frame_term == self.control.promised;
        }
        self.control.history.term_at(at) == Some(frame_term)
    }

    /// Standby side: answers a heartbeat of `leader` in a session of `term`: true when the answer grants the lease
    /// from now on for the lease time.
    ///
    /// `sent`: when the leader sent that heartbeat, by its own clock.
    pub fn grant(&mut self, now: Mono, leader: NodeId, term: Term, sent: Mono) -> bool {
        let followed = self.following() == Some((leader, term));
        followed
            && self.control.status.votes()
            && self.grants.grant(now, (leader, term), sent, self.config.lease)
    }

    /// Leader side: may reads and early replies be answered now?
    pub fn may_read(&self, now: Mono) -> bool {
        if planted(Bug::ReadWithoutLease) {
            return self.serving();
        }
        self.serving() && self.lease_until().is_some_and(|until| until > now)
    }

    /// Leader side: when the read lease ends; `None` when it has none.
    pub fn lease_until(&self) -> Option<Mono> {
        self.leading()?;
        self.lease.until(self.in_force(), self.control.node, self.control.incarnation)
    }

    /// Leader side: the rule by which the commit index moves; `None` when this node may commit nothing.
    pub fn commit_rule(&self) -> Option<CommitRule> {
        let Phase::Leading(leading) = &self.phase else { return None };
        if leading.suspended || self.durable < self.pending_image {
            return None;
        }
        Some(CommitRule {
            leader: self.control.node,
            incarnation: self.control.incarnation,
            generations: self.in_force().cloned().collect(),
            floor: leading.end,
        })
    }

    /// The bound incarnation of a member, for the authentication of peers; `None` when not bound yet.
    pub fn bound_incarnation(&self, node: NodeId) -> Option<Incarnation> {
        self.in_force()
            .rev()
            .flat_map(|generation| generation.members())
            .find(|member| member.node == node && member.incarnation != Incarnation(0))
            .map(|member| member.incarnation)
    }
}

//! Promising another node's candidate (`protocol` 3.2 to 3.4): acks stop, the promise becomes durable, the log drains,
//! and only then is the end of the log reported.

use super::history;
use super::input::{Effect, Evidence, LogView, Refusal};
use super::machine::{Fence, Phase, RoleMachine, Work, ms_up};
use super::message::{PromiseAnswer, RoleMessage};
use crate::base::planted::{Bug, planted};
use crate::base::{Mono, NodeId, Term};

/// A promise on its way.
#[derive(Clone, Debug)]
pub(super) struct PromiseWork {
    term: Term,
    candidate: NodeId,
    pub(super) fence: Fence,
}

impl RoleMachine {
    pub(super) fn promise_asked(
        &mut self,
        now: Mono,
        log: &LogView,
        from: NodeId,
        term: Term,
        force: bool,
        out: &mut Vec<Effect>,
    ) {
        self.highest = self.highest.max(term.number);
        let promised = self.control.promised;
        if history::same(term, promised) {
            self.repeat_promise(log, from, term, out);
            return;
        }
        let answer = |answer| Effect::Send { to: from, message: RoleMessage::PromiseReply { term, answer } };
        if !history::at_least(term, promised) {
            out.push(answer(PromiseAnswer::Refused { promised, leading: false }));
            return;
        }
        // A leader that is sure of its voters is alive; it does not help to unseat itself unless told.
        let sure = self.serving() && self.lease_until().is_some_and(|until| until > now);
        if sure && !force {
            out.push(answer(PromiseAnswer::Refused { promised, leading: true }));
            return;
        }
        let wait = self.grants.remaining(now);
        if !wait.is_zero() {
            if force {
                self.grants.close(now + self.config.lease * 2);
            }
            out.push(answer(PromiseAnswer::Wait { ms: ms_up(wait) }));
            return;
        }
        self.abandon_work(now, Refusal::Superseded { term }, out);
        self.suspend_leading("another node asks to lead", out);
        let fence = self.fence(term, out);
        self.work = Work::Promise(PromiseWork { term, candidate: from, fence });
    }

    /// The candidate asks again: the same promise is reported again, as long as nothing has come of it yet.
    fn repeat_promise(&mut self, log: &LogView, from: NodeId, term: Term, out: &mut Vec<Effect>) {
        let started = self.leading() == Some(term) || self.following().is_some_and(|(_, t)| t == term);
        let under_way = matches!(self.work, Work::Promise(_) | Work::Adopt(_));
        let durable = self.durable >= self.control.generation;
        let at_rest = durable && self.cutting.is_none() && log.flushed.lsn() == log.end;
        if !started && !under_way && at_rest {
            let answer = PromiseAnswer::Promised(Box::new(self.report(log)));
            out.push(Effect::Send { to: from, message: RoleMessage::PromiseReply { term, answer } });
        }
    }

    pub(super) fn advance_promise(&mut self, now: Mono, log: &LogView, out: &mut Vec<Effect>) -> bool {
        let Work::Promise(work) = &self.work else { return false };
        if !self.fenced(&work.fence, log) {
            return false;
        }
        let (term, candidate) = (work.term, work.candidate);
        self.work = Work::None;
        let answer = PromiseAnswer::Promised(Box::new(self.report(log)));
        out.push(Effect::Send { to: candidate, message: RoleMessage::PromiseReply { term, answer } });
        out.push(Effect::Evidence(
            Evidence::new("promised").with("term", term).with("candidate", candidate).with("end", log.end),
        ));
        match &mut self.phase {
            Phase::Following(following) => {
                let leader = following.leader;
                if leader != candidate {
                    // The old leader learns at once that this voter is lost to its term.
                    out.push(Effect::Send { to: leader, message: RoleMessage::Fenced { promised: term } });
                }
                if !planted(Bug::AckAfterPromise) {
                    out.push(Effect::Unfollow);
                }
                self.phase = Phase::Alone { since: now };
            }
            Phase::Leading(_) => self.plan_retry(now, 2),
            Phase::Alone { .. } | Phase::Failed => {}
        }
        true
    }
}

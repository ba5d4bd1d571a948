//! Following a started term: fence older sessions, adopt the leader's history, cut the own tail at the fork, stream.

use super::control::DataStatus;
use super::history::{self, History};
use super::input::{Done, Effect, Evidence, LogView, Refusal};
use super::machine::{Fence, Following, Phase, RoleMachine, Work};
use super::message::RoleMessage;
use super::state::{Repair, Role, State};
use crate::base::planted::{Bug, planted};
use crate::base::{Lsn, Mono, NodeId, Term};

/// On the way to following a leader.
#[derive(Clone, Debug)]
pub(super) struct Adopt {
    leader: NodeId,
    term: Term,
    history: History,
    end: Lsn,
    step: Step,
}

#[derive(Clone, Debug)]
enum Step {
    Fence(Fence),
    /// The new history is on its way to disk; the log agrees with it up to `fork`.
    Rewrite {
        image: u64,
        fork: Lsn,
    },
    Cut {
        ticket: u64,
        fork: Lsn,
        done: bool,
    },
}

impl Adopt {
    pub(super) fn fence_mut(&mut self) -> Option<&mut Fence> {
        match &mut self.step {
            Step::Fence(fence) => Some(fence),
            _ => None,
        }
    }

    pub(super) fn truncated(&mut self, answered: u64) {
        if let Step::Cut { ticket, done, .. } = &mut self.step
            && *ticket == answered
        {
            *done = true;
        }
    }
}

impl RoleMachine {
    /// A leader says that it has started `term`.
    pub(super) fn announced(
        &mut self,
        now: Mono,
        from: NodeId,
        (term, history, end): (Term, History, Lsn),
        out: &mut Vec<Effect>,
    ) {
        if history.last().is_none_or(|(last, _)| last != term) {
            return;
        }
        self.highest = self.highest.max(term.number);
        if !history::at_least(term, self.control.promised) && !planted(Bug::IgnoreSessionTerm) {
            let promised = self.control.promised;
            out.push(Effect::Send { to: from, message: RoleMessage::Fenced { promised } });
            return;
        }
        let leads_it = matches!(&self.phase, Phase::Leading(leading) if history::same(leading.term, term));
        let follows_it = self.following().is_some_and(|(_, followed)| history::same(followed, term));
        let adopts_it = matches!(&self.work, Work::Adopt(adopt) if history::same(adopt.term, term));
        let cannot = self.blocked == Some(term) || self.control.status == DataStatus::Building;
        if leads_it || follows_it || adopts_it || cannot {
            return;
        }
        self.abandon_work(now, Refusal::Superseded { term }, out);
        let fence = self.fence(term, out);
        self.step_down(now, "another node started a higher term", Some(from), out);
        if matches!(self.phase, Phase::Following(_)) {
            out.push(Effect::Unfollow);
        }
        self.phase = Phase::Alone { since: now };
        self.work =
            Work::Adopt(Box::new(Adopt { leader: from, term, history, end, step: Step::Fence(fence) }));
    }

    pub(super) fn advance_adopt(&mut self, now: Mono, log: &LogView, out: &mut Vec<Effect>) -> bool {
        let Work::Adopt(mut adopt) = std::mem::replace(&mut self.work, Work::None) else { return false };
        match &adopt.step {
            Step::Fence(fence) if self.fenced(fence, log) => {
                match self.fork_with(log, &adopt.history, Lsn::MAX) {
                    Ok(fork) => {
                        let image = self.rewrite_history(adopt.history.clone(), fork, out);
                        adopt.step = Step::Rewrite { image, fork };
                    }
                    Err(refusal) => {
                        self.block(adopt.term, &refusal, out);
                        return true;
                    }
                }
            }
            Step::Rewrite { image, fork } if self.durable >= *image => {
                let fork = *fork;
                self.rewritten();
                if fork == log.end {
                    self.follow(now, log, *adopt, out);
                    return true;
                }
                let ticket = self.truncate(fork, out);
                adopt.step = Step::Cut { ticket, fork, done: false };
            }
            Step::Cut { fork, done: true, .. } => {
                assert_eq!(log.end, *fork, "the tail above the fork is gone");
                self.follow(now, log, *adopt, out);
                return true;
            }
            _ => {
                self.work = Work::Adopt(adopt);
                return false;
            }
        }
        self.work = Work::Adopt(adopt);
        true
    }

    /// Up to where the own log agrees with another one; an error when it cannot be made to agree.
    pub(super) fn fork_with(&self, log: &LogView, other: &History, other_end: Lsn) -> Result<Lsn, Refusal> {
        let committed = log.committed.lsn().max(self.control.known_committed.lsn());
        let fork = self.control.history.fork(log.end, other, other_end);
        let Some(fork) = fork else {
            return Err(Refusal::NeedRepair { fork: Lsn::ZERO, committed });
        };
        if fork < log.end && fork < committed && !planted(Bug::TruncateBelowKnownCommit) {
            return Err(Refusal::NeedRepair { fork, committed });
        }
        Ok(fork)
    }

    /// This log cannot be cut to where the leader's begins: it stays out until it is built.
    pub(super) fn block(&mut self, term: Term, why: &Refusal, out: &mut Vec<Effect>) {
        self.blocked = Some(term);
        out.push(Effect::Evidence(Evidence::new("cannot follow").with("term", term).with("reason", why)));
        self.show(self.waiting_role(), State::NeedRepair(Repair::Wal), out);
    }

    fn follow(&mut self, now: Mono, log: &LogView, adopt: Adopt, out: &mut Vec<Effect>) {
        let Adopt { leader, term, end, .. } = adopt;
        self.phase = Phase::Following(Following { leader, term, heard: Some(now), since: now, end });
        self.last_followed = Some((leader, term));
        self.blocked = None;
        self.grants.open();
        if !history::at_least(self.known_at_start, term) {
            self.grants.outlived();
        }
        out.push(Effect::Follow { leader, term });
        self.show(self.waiting_role(), State::Catchup, out);
        self.show_caught_up(log, out);
        self.followed_after_switch(leader, term, out);
        if let Some(op) = self.wish.take().and_then(|wish| wish.op) {
            out.push(Effect::Reply { op, result: Ok(Done::Following { leader, term }) });
        }
    }

    pub(super) fn heard(
        &mut self,
        now: Mono,
        log: &LogView,
        leader: NodeId,
        term: Term,
        end: Lsn,
        out: &mut Vec<Effect>,
    ) {
        if self.following() != Some((leader, term)) {
            return;
        }
        if let Phase::Following(following) = &mut self.phase {
            following.heard = Some(now);
            following.since = now;
            following.end = end;
            if self.state == State::NeedRepair(Repair::Disconnected) {
                self.show(self.role, State::Catchup, out);
            }
            self.show_caught_up(log, out);
        }
    }

    fn show_caught_up(&mut self, log: &LogView, out: &mut Vec<Effect>) {
        if let Phase::Following(following) = &self.phase
            && self.state == State::Catchup
            && log.end >= following.end
        {
            self.show(self.role, State::Normal, out);
        }
    }

    /// Orders `history` to disk, with which the own log agrees up to `fork`; it becomes the own one with
    /// [`RoleMachine::rewritten`].
    pub(super) fn rewrite_history(&mut self, history: History, fork: Lsn, out: &mut Vec<Effect>) -> u64 {
        self.rewriting = Some((history, fork));
        self.persist(out)
    }

    /// The new history is durable, and the log is about to match it.
    pub(super) fn rewritten(&mut self) {
        let (history, fork) = self.rewriting.take().expect("a history was being rewritten");
        self.control.history = history;
        self.cut_pending(fork);
        self.cut_ops(fork);
    }

    /// Orders the log cut at `to`; the history that says so is durable.
    pub(super) fn truncate(&mut self, to: Lsn, out: &mut Vec<Effect>) -> u64 {
        assert!(self.cutting.is_none(), "one cut at a time: every procedure is fenced first");
        let ticket = self.ticket();
        self.cutting = Some(ticket);
        out.push(Effect::Truncate { ticket, to });
        ticket
    }

    pub(super) fn truncated(&mut self, log: &LogView, ticket: u64, out: &mut Vec<Effect>) {
        self.cutting.take_if(|cutting| *cutting == ticket);
        if self.cut_pending(log.end) | self.cut_ops(log.end) {
            self.persist(out);
        }
        match &mut self.work {
            Work::Adopt(adopt) => adopt.truncated(ticket),
            Work::Recruit(recruit) => recruit.truncated(ticket),
            Work::Promise(_) | Work::None => {}
        }
    }

    /// What this node is shown as when it does not lead.
    pub(super) fn waiting_role(&self) -> Role {
        if self.config.cascade { Role::CascadeStandby } else { Role::Standby }
    }
}

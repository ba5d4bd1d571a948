//! Leading: serving once the term-start frame commits, holding on against mere promises, stepping down before a
//! started term.

use std::time::Duration;

use super::control::{DataStatus, Operation, Part};
use super::input::{Done, Effect, Evidence, LogView, Refusal};
use super::machine::{Phase, RoleMachine, Wish, Work};
use super::message::{Release, RoleMessage};
use super::state::{Role, State};
use crate::base::planted::{Bug, planted};
use crate::base::{Lsn, Mono, NodeId, Term};

/// How long a leader that yielded waits for its successor before it serves again.
const YIELD_MAX: Duration = Duration::from_secs(5);

/// A term that this process started.
#[derive(Clone, Debug)]
pub(super) struct Leading {
    pub term: Term,
    pub start: Lsn,
    /// End of the term-start frame.
    pub end: Lsn,
    /// The term-start frame has committed.
    pub served: bool,
    /// Clients are held.
    pub held: bool,
    /// This node promised a higher term itself: nothing of its own term counts any more.
    pub suspended: bool,
    /// When to recruit above a higher promise.
    pub retry_at: Option<Mono>,
    pub yielded_until: Option<Mono>,
    /// The command that waits for `Serve`, and until when.
    pub op: Option<(u64, Mono)>,
    pub evidence: Evidence,
}

impl RoleMachine {
    pub(super) fn new_term(&mut self) -> Term {
        Term { number: self.highest.saturating_add(1), id: self.rng.next_u128() }
    }

    /// After a blackout somebody has to ask first, and only one: the node that led the newest term. It asks for a new
    /// one (`protocol` 3.1). A standby whose primary is merely dead never asks by itself. In the middle of a switchover
    /// the next primary asks first, and the old one when that has had its time.
    pub(super) fn wish_again(&mut self, now: Mono, log: &LogView) {
        let led = self.control.last_led;
        let newest = self.control.history.last().map_or(Term::NONE, |(last, _)| last);
        let (own, leases) = match self.control.operation {
            Some(Operation { part: Part::TakingOver, term, .. }) => (term, 0),
            Some(Operation { part: Part::HandingOver, .. }) => (newest, 3),
            None if !led.is_none() && newest == led => (led, 0),
            None => return,
        };
        if self.control.status == DataStatus::Whole && log.whole {
            self.wish_own(now, own, leases);
        }
    }

    /// This node will ask to lead by itself, as long as nobody knows of a term above `own`.
    pub(super) fn wish_own(&mut self, now: Mono, own: Term, leases: u32) {
        let jitter = self.config.lease.mul_f64(self.rng.below(1000) as f64 / 4000.0);
        let next = now + self.config.lease * leases + jitter;
        self.wish = Some(Wish {
            op: None,
            own: Some(own),
            mark: None,
            give_up: now,
            next,
            alone: false,
            force: false,
        });
    }

    /// Serves once the term-start frame is committed (`protocol` 3.5).
    pub(super) fn try_serve(&mut self, log: &LogView, out: &mut Vec<Effect>) {
        let early = planted(Bug::ServeBeforeTermStartCommits);
        let Phase::Leading(leading) = &mut self.phase else { return };
        if leading.served
            || leading.held
            || leading.suspended
            || (log.committed.lsn() < leading.end && !early)
        {
            return;
        }
        leading.served = true;
        let term = leading.term;
        out.push(Effect::Serve { term });
        self.resume_writes(out);
        self.led_again(term, out);
        let Phase::Leading(leading) = &mut self.phase else { return };
        if let Some((op, _)) = leading.op.take() {
            let done = Done::Primary { term, start: leading.start, evidence: leading.evidence.clone() };
            out.push(Effect::Reply { op, result: Ok(done) });
        }
        self.show(Role::Primary, State::Normal, out);
    }

    pub(super) fn lead_tick(&mut self, now: Mono, out: &mut Vec<Effect>) {
        let Phase::Leading(leading) = &mut self.phase else { return };
        if let Some((op, until)) = leading.op
            && now >= until
        {
            leading.op = None;
            let stage =
                "enough voters to commit the term-start frame; the term goes on and may still succeed";
            out.push(Effect::Reply { op, result: Err(Refusal::Timeout { stage }) });
        }
        // Nobody took over: with its voters behind it again, it goes on.
        let over = leading.yielded_until.is_some_and(|until| now >= until) && !leading.suspended;
        let sure = over && self.lease_until().is_some_and(|until| until > now);
        if let Phase::Leading(leading) = &mut self.phase
            && sure
        {
            leading.yielded_until = None;
            leading.held = false;
            if leading.served {
                out.push(Effect::Serve { term: leading.term });
                self.resume_writes(out);
                self.show(Role::Primary, State::Normal, out);
            }
        }
    }

    /// Somebody promised a term above this leader's. If it was started, its leader will say so; if not, this leader
    /// recruits above it (`protocol` 3.6), after a while in which the candidate may still start.
    pub(super) fn met_promise(&mut self, now: Mono, promised: Term, out: &mut Vec<Effect>) {
        self.highest = self.highest.max(promised.number);
        let Phase::Leading(leading) = &self.phase else { return };
        if promised > leading.term && leading.retry_at.is_none() && matches!(self.work, Work::None) {
            self.plan_retry(now, 1);
            self.to_all(RoleMessage::StatusProbe, out);
        }
    }

    /// Somebody holds frames of `term`, or follows its leader: that term was started. A leader below it steps down, even
    /// when the new leader is gone again; who leads next is not for it to decide.
    pub(super) fn met_started(&mut self, now: Mono, term: Term, out: &mut Vec<Effect>) {
        self.highest = self.highest.max(term.number);
        if !matches!(&self.phase, Phase::Leading(leading) if term > leading.term && term > self.control.promised)
        {
            return;
        }
        out.push(Effect::StopAcks);
        self.step_down(now, "a higher term was started elsewhere", None, out);
        self.abandon_work(now, Refusal::Superseded { term }, out);
        self.show_lonely(out);
    }

    /// A recruit of this leader's own, some time from now.
    pub(super) fn plan_retry(&mut self, now: Mono, leases: u32) {
        let spread = self.config.lease.mul_f64(self.rng.below(1000) as f64 / 1000.0);
        let lease = self.config.lease;
        if let Phase::Leading(leading) = &mut self.phase {
            leading.retry_at = Some(now + lease * leases + spread);
        }
    }

    /// This node promised something above its own term: no reply leaves, no ack counts, clients wait.
    pub(super) fn suspend_leading(&mut self, reason: &'static str, out: &mut Vec<Effect>) {
        let Phase::Leading(leading) = &mut self.phase else { return };
        leading.suspended = true;
        if !leading.held {
            leading.held = true;
            out.push(Effect::HoldClients { reason });
        }
        self.show(Role::Primary, State::WaitPromoting, out);
    }

    /// Stops being a primary: clients are closed and what is above commit is rolled back.
    /// `successor`: who leads now, when that is known.
    pub(super) fn step_down(
        &mut self,
        now: Mono,
        reason: &'static str,
        successor: Option<NodeId>,
        out: &mut Vec<Effect>,
    ) {
        let Phase::Leading(leading) = &mut self.phase else { return };
        let (term, op) = (leading.term, leading.op.take());
        out.push(Effect::Demote { reason: format!("{reason}; term {term} ends here"), successor });
        self.writes_held = false;
        self.switch_lost(out);
        let stage = "this node leads no more; the generation may still be committed";
        self.drop_change(Refusal::OutcomeUnknown { stage }, out);
        if let Some((op, _)) = op {
            let result = Err(Refusal::Superseded { term: self.control.promised });
            out.push(Effect::Reply { op, result });
        }
        self.phase = Phase::Alone { since: now };
        self.lease = Default::default();
        self.show(self.waiting_role(), State::Demoting, out);
    }

    /// An operator's candidate asks this leader to step aside: the lease goes back, clients wait.
    pub(super) fn yield_asked(&mut self, now: Mono, from: NodeId, attempt: u64, out: &mut Vec<Effect>) {
        if let Phase::Leading(leading) = &mut self.phase {
            leading.yielded_until = Some(now + YIELD_MAX);
            if !leading.held {
                leading.held = true;
                out.push(Effect::HoldClients { reason: "yielding to a failover" });
            }
            let release = self.release_lease(now);
            self.to_all(RoleMessage::LeaseRelease(release), out);
            if matches!(self.state, State::Normal | State::Promoting) {
                self.show(Role::Primary, State::WaitPromoting, out);
            }
        }
        out.push(Effect::Send { to: from, message: RoleMessage::YieldReply { attempt, granted: true } });
    }

    /// Drops this leader's lease. Only then may the grantors hear of it.
    pub(super) fn release_lease(&mut self, now: Mono) -> Release {
        self.lease.release(now);
        Release { leader: self.control.node, term: self.leading().unwrap_or(Term::NONE), upto: now }
    }

    /// What a leader tells everybody who asks.
    pub(super) fn announcement(&self, end: Lsn) -> Option<RoleMessage> {
        let term = self.leading()?;
        let history = self.control.history.clone();
        assert_eq!(history.last().map(|(last, _)| last), Some(term), "a leader's history ends with its term");
        Some(RoleMessage::Announce { term, history, end, committed: self.control.known_committed })
    }

    /// The planted bug: a former primary takes up its old term where its log ends.
    pub(super) fn resume_own_term(&mut self, log: &LogView, out: &mut Vec<Effect>) {
        let term = self.control.last_led;
        let Some((last, start)) = self.control.history.last() else { return };
        if term.is_none() || last != term || self.control.promised != term || log.last_term != term {
            return;
        }
        let evidence = Evidence::new("resumed");
        self.phase = Phase::Leading(Leading {
            term,
            start,
            end: start,
            served: true,
            held: false,
            suspended: false,
            retry_at: None,
            yielded_until: None,
            op: None,
            evidence,
        });
        (self.role, self.state) = (Role::Primary, State::Normal);
        out.extend([Effect::Lead { term }, Effect::Serve { term }]);
    }
}

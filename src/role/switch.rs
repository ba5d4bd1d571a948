//! Switchover (`protocol` 6): the primary holds its writes, drains, gives its lease back and hands over; the target
//! recruits a term of its own and leads.
//!
//! Until the hand-over nothing has changed but that writes wait: any failure resumes them in the same term. With the
//! hand-over the lease is gone and voters may promise. From there the target wins, or says that it does not, or the old
//! primary goes on: in its own term while no voter has left it, above the promises otherwise. A process that dies in
//! between finds its part in the control file ([`Operation`]).
//!
//! No step waits for a tick: each follows from a message, a flush or a durable image. Ticks only repeat what may have
//! been lost and enforce the deadline.

use std::collections::BTreeMap;
use std::time::Duration;

use super::control::{DataStatus, Operation, Part};
use super::done::{Deed, OpMark};
use super::input::{CommandResult, Done, Effect, Evidence, LogView, Refusal, Unfit};
use super::machine::{Phase, RoleMachine, Work};
use super::message::{LeaderSeen, Outcome, Release, Report, RoleMessage};
use super::recruit::{self, no_quorum};
use super::state::{Role, State};
use crate::base::limits::SWITCHOVER_LAG_BYTES_MAX;
use crate::base::{Lsn, Mono, NodeId, Term};

/// How long answers to the first question are waited for.
const ASK_MAX: Duration = Duration::from_millis(600);
/// What may have been lost is said again after this.
const AGAIN: Duration = Duration::from_millis(100);
/// How long after its deadline a handed-over switchover is still watched for its outcome.
const OUTCOME_GRACE: Duration = Duration::from_secs(3);
/// Bounds of what an operator may ask for.
const TIMEOUT_MIN: Duration = Duration::from_millis(50);
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Who wants to know what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    Here { op: u64 },
    There { node: NodeId, ask: u64 },
}

/// A switchover away from this node.
#[derive(Clone, Debug)]
pub(super) struct Switch {
    asker: Asker,
    pub(super) mark: Option<OpMark>,
    dry_run: bool,
    /// As asked for, then as chosen.
    to: Option<NodeId>,
    deadline: Mono,
    attempt: u64,
    reports: BTreeMap<NodeId, (Report, Option<LeaderSeen>)>,
    /// Why the target did not take over, as it said.
    failure: Option<String>,
    evidence: Evidence,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Who could take over? Nothing is held yet.
    Ask { until: Mono, again: Mono },
    /// Writes are coming to rest; the operation record is on its way to disk as `image`.
    Hold { ticket: u64, image: u64 },
    /// The log ends at `end`: the target flushes it, and it commits.
    Drain { end: Lsn, image: u64, again: Mono, prepared: bool },
    /// The lease is given back; the target recruits.
    Handed { end: Lsn, release: Release, again: Mono },
    /// The target leads `term`; its first frame must commit yet.
    Followed { term: Term },
}

/// A switchover that was asked for here and is the primary's to carry out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Away {
    op: u64,
    pub(super) mark: Option<OpMark>,
    ask: u64,
    leader: NodeId,
    term: Term,
    to: NodeId,
    dry_run: bool,
    timeout: Duration,
    until: Mono,
    again: Mono,
}

/// The primary waits to hear that this log is flushed to its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prepare {
    from: NodeId,
    attempt: u64,
    term: Term,
    end: Lsn,
    told: bool,
}

/// A switchover under way, for those who look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwitchView {
    /// Who is to take over; `None` while that is being chosen.
    pub to: Option<NodeId>,
    /// `asking`, `holding`, `draining`, `handed over`, `following` on the primary; `asking the primary` elsewhere.
    pub stage: &'static str,
}

impl RoleMachine {
    /// The switchover that this node is asked for or takes part in as the old primary.
    pub fn switching(&self) -> Option<SwitchView> {
        let away = self.away.map(|away| SwitchView { to: Some(away.to), stage: "asking the primary" });
        let own = self.switch.as_ref().map(|switch| SwitchView {
            to: switch.to,
            stage: match switch.stage {
                Stage::Ask { .. } => "asking",
                Stage::Hold { .. } => "holding",
                Stage::Drain { .. } => "draining",
                Stage::Handed { .. } => "handed over",
                Stage::Followed { .. } => "following",
            },
        });
        own.or(away)
    }

    /// Standby side: the position whose flush the primary waits to hear of. Hand in [`super::Input::CommitMoved`] as
    /// soon as it is flushed.
    pub fn flush_awaited(&self) -> Option<Lsn> {
        self.prepare.filter(|prepare| !prepare.told).map(|prepare| prepare.end)
    }

    // ---- the question ----

    pub(super) fn switchover(
        &mut self,
        now: Mono,
        (op, mark): (u64, Option<OpMark>),
        to: Option<NodeId>,
        dry_run: bool,
        timeout: Duration,
        out: &mut Vec<Effect>,
    ) {
        let timeout = timeout.clamp(TIMEOUT_MIN, TIMEOUT_MAX);
        if matches!(self.phase, Phase::Leading(_)) {
            return self.begin_switch(now, (Asker::Here { op }, mark), to, dry_run, timeout, out);
        }
        let refusal = match self.following() {
            _ if self.away.is_some() => Refusal::Busy,
            None => Refusal::NotPrimary { leader: None },
            Some((leader, term)) => {
                let to = to.unwrap_or(self.control.node);
                let ask = self.rng.next_u64();
                let (until, again) = (now + timeout + OUTCOME_GRACE, now + AGAIN);
                self.away = Some(Away { op, mark, ask, leader, term, to, dry_run, timeout, until, again });
                self.ask_primary(out);
                return;
            }
        };
        out.push(Effect::Reply { op, result: Err(refusal) });
    }

    fn ask_primary(&self, out: &mut Vec<Effect>) {
        let Some(Away { mark, ask, leader, term, to, dry_run, timeout, .. }) = self.away else { return };
        let timeout_ms = timeout.as_millis() as u64;
        let message = RoleMessage::SwitchoverAsk { ask, term, to, dry_run, timeout_ms, mark };
        out.push(Effect::Send { to: leader, message });
    }

    pub(super) fn switchover_asked(
        &mut self,
        now: Mono,
        log: &LogView,
        (node, ask, mark): (NodeId, u64, Option<OpMark>),
        term: Term,
        (to, dry_run, timeout): (NodeId, bool, Duration),
        out: &mut Vec<Effect>,
    ) {
        if let Some((_, outcome)) = self.told.as_ref().filter(|(told, _)| *told == (node, ask)) {
            let message = RoleMessage::SwitchoverAnswer { ask, outcome: outcome.clone() };
            out.push(Effect::Send { to: node, message });
            return;
        }
        let asker = Asker::There { node, ask };
        // An old question of an earlier term, or the present one said again.
        if self.leading() != Some(term) || self.switch.as_ref().is_some_and(|s| s.asker == asker) {
            return;
        }
        if let Some(result) = self.asked_before(log, mark) {
            return self.tell_asker(asker, result, out);
        }
        let timeout = timeout.clamp(TIMEOUT_MIN, TIMEOUT_MAX);
        self.begin_switch(now, (asker, mark), Some(to), dry_run, timeout, out);
    }

    pub(super) fn switchover_answered(
        &mut self,
        from: NodeId,
        ask: u64,
        outcome: Outcome,
        out: &mut Vec<Effect>,
    ) {
        let Some(Away { op, .. }) = self.away.take_if(|away| away.ask == ask && away.leader == from) else {
            return;
        };
        let result = match outcome {
            Outcome::Done { leader, term } => {
                let evidence = Evidence::new("switched over").with("told by", from);
                Ok(Done::SwitchedOver { leader, term, evidence })
            }
            Outcome::Would { text } => {
                Ok(Done::Would { evidence: Evidence::new("the primary says").with("evidence", text) })
            }
            Outcome::Refused { kind, text } => Err(Refusal::ByPrimary { node: from, kind, text }),
        };
        out.push(Effect::Reply { op, result });
    }

    /// The question that was passed on: repeated, and answered by what is seen when the primary cannot any more.
    fn advance_away(&mut self, now: Mono, log: &LogView, out: &mut Vec<Effect>) {
        let Some(away) = self.away else { return };
        let led = match (&self.phase, self.following()) {
            (Phase::Leading(leading), _) if leading.served => Some((self.control.node, leading.term)),
            (_, Some((leader, term))) if self.term_committed(log, term) => Some((leader, term)),
            _ => None,
        };
        let result = match led.filter(|(leader, term)| *leader == away.to && *term > away.term) {
            Some((leader, term)) => {
                let evidence = Evidence::new("switched over").with("seen by", self.control.node);
                Ok(Done::SwitchedOver { leader, term, evidence })
            }
            None if now >= away.until => Err(Refusal::PrimarySilent { node: away.leader }),
            None => {
                if now >= away.again {
                    self.away = Some(Away { again: now + AGAIN * 3, ..away });
                    self.ask_primary(out);
                }
                return;
            }
        };
        self.away = None;
        out.push(Effect::Reply { op: away.op, result });
    }

    // ---- the old primary ----

    fn begin_switch(
        &mut self,
        now: Mono,
        (asker, mark): (Asker, Option<OpMark>),
        to: Option<NodeId>,
        dry_run: bool,
        timeout: Duration,
        out: &mut Vec<Effect>,
    ) {
        let attempt = self.rng.next_u64();
        let switch = Box::new(Switch {
            asker,
            mark,
            dry_run,
            to,
            deadline: now + timeout,
            attempt,
            reports: BTreeMap::new(),
            failure: None,
            evidence: Evidence::default(),
            stage: Stage::Ask { until: now + ASK_MAX.min(timeout), again: now },
        });
        let ready = matches!(&self.phase, Phase::Leading(l) if l.served && !l.held && !l.suspended);
        let silent = self.store_view().is_some_and(|store| !store.reachable);
        let refusal = if silent {
            let stage = "the next primary could not be granted its term; writes go on here";
            Some(Refusal::StoreSilent { stage })
        } else if self.switch.is_some() || self.change.is_some() || !ready || !matches!(self.work, Work::None)
        {
            Some(Refusal::Busy)
        } else if let Some(pending) = self.control.pending.last() {
            Some(Refusal::ChangePending { generation: pending.generation.number })
        } else {
            to.and_then(|node| self.unfit(node).map(|reason| Refusal::TargetUnfit { node, reason }))
        };
        match refusal {
            Some(refusal) => self.close_switch(switch, Err(refusal), out),
            None => self.switch = Some(switch),
        }
    }

    /// What is known of a target without asking it.
    fn unfit(&self, node: NodeId) -> Option<Unfit> {
        let traits = self.config.traits.get(&node).copied().unwrap_or_default();
        match () {
            () if node == self.control.node => Some(Unfit::Primary),
            () if !self.everybody().contains(&node) => Some(Unfit::Unknown),
            () if traits.nofailover => Some(Unfit::NoFailover),
            () if traits.delayed => Some(Unfit::Delayed),
            () if traits.cascade => Some(Unfit::Cascade),
            () if self.gone.contains(&node) => Some(Unfit::Silent),
            () => None,
        }
    }

    /// The same, with what it answered.
    fn unfit_by_report(&self, log: &LogView, switch: &Switch, node: NodeId) -> Option<Unfit> {
        if let Some(unfit) = self.unfit(node) {
            return Some(unfit);
        }
        let Some((report, leader)) = switch.reports.get(&node) else { return Some(Unfit::Silent) };
        let follows = leader.is_some_and(|l| l.node == self.control.node && Some(l.term) == self.leading());
        let behind = log.end.0.saturating_sub(report.end.0);
        if !report.whole {
            Some(Unfit::NotWhole)
        } else if !follows {
            Some(Unfit::NotFollowing)
        } else if behind > SWITCHOVER_LAG_BYTES_MAX {
            Some(Unfit::Lags { bytes: behind })
        } else {
            None
        }
    }

    pub(super) fn switch_reported(
        &mut self,
        from: NodeId,
        attempt: u64,
        leader: Option<LeaderSeen>,
        report: &Report,
    ) {
        if let Some(switch) = &mut self.switch
            && switch.attempt == attempt
            && matches!(switch.stage, Stage::Ask { .. })
        {
            switch.reports.insert(from, (report.clone(), leader));
        }
    }

    /// True when something moved.
    pub(super) fn advance_switch(&mut self, now: Mono, log: &LogView, out: &mut Vec<Effect>) -> bool {
        self.answer_prepare(log, out);
        self.advance_away(now, log, out);
        let Some(mut switch) = self.switch.take() else { return false };
        match self.switch_step(now, log, &mut switch, out) {
            Step::Stay => {
                self.switch = Some(switch);
                false
            }
            Step::Moved => {
                self.switch = Some(switch);
                true
            }
            Step::Over(result) => {
                self.close_switch(switch, result, out);
                true
            }
        }
    }

    fn switch_step(&mut self, now: Mono, log: &LogView, s: &mut Switch, out: &mut Vec<Effect>) -> Step {
        let free = matches!(&self.phase, Phase::Leading(l) if !l.held && !l.suspended);
        match s.stage {
            Stage::Ask { .. } | Stage::Hold { .. } | Stage::Drain { .. } if !free => {
                // Somebody else is taking over; writes go on when this node serves again.
                self.forget_operation(out);
                Step::Over(Err(Refusal::Superseded { term: self.control.promised }))
            }
            Stage::Ask { until, again } => self.switch_ask(now, log, s, (until, again), out),
            Stage::Hold { .. } | Stage::Drain { .. } if now >= s.deadline => {
                self.abort_switch("it was not ready to be handed over in time".into(), true, out)
            }
            Stage::Hold { .. } | Stage::Drain { .. } if s.to.is_some_and(|to| self.gone.contains(&to)) => {
                self.abort_switch("the next primary went away".into(), false, out)
            }
            Stage::Hold { .. } => Step::Stay,
            Stage::Drain { end, image, again, prepared } => {
                if log.end != end {
                    return self.abort_switch("the log went on although writes were held".into(), false, out);
                }
                if prepared && log.committed.lsn() >= end && self.durable >= image {
                    return self.hand_over(now, s, end, out);
                }
                if !prepared && now >= again {
                    let term = self.leading().expect("it leads");
                    let message = RoleMessage::Prepare { attempt: s.attempt, term, end };
                    out.push(Effect::Send { to: s.to.expect("chosen"), message });
                    s.stage = Stage::Drain { end, image, again: now + AGAIN, prepared };
                }
                Step::Stay
            }
            Stage::Handed { end, release, again } => self.switch_handed(now, s, (end, release, again), out),
            Stage::Followed { term } => {
                if self.term_committed(log, term) {
                    let evidence = s.evidence.clone().with("new term", term);
                    return Step::Over(Ok(Done::SwitchedOver {
                        leader: s.to.expect("chosen"),
                        term,
                        evidence,
                    }));
                }
                if now >= s.deadline + OUTCOME_GRACE {
                    // The new primary is gone before anything of its term was committed: the old one may come back,
                    // by a recruit like any other.
                    self.wish_own(now, term, 0);
                    let stage = "the first commit of the new primary";
                    return Step::Over(Err(Refusal::OutcomeUnknown { stage }));
                }
                Step::Stay
            }
        }
    }

    fn switch_ask(
        &mut self,
        now: Mono,
        log: &LogView,
        s: &mut Switch,
        (until, again): (Mono, Mono),
        out: &mut Vec<Effect>,
    ) -> Step {
        let missing: Vec<NodeId> = self
            .everybody()
            .into_iter()
            .filter(|node| !s.reports.contains_key(node) && !self.gone.contains(node))
            .collect();
        let mut verdict = self.judge_switch(log, s);
        // One named target that answered, and a quorum, are enough. Who only looks is told of everybody.
        let sure = s.to.is_some() && verdict.is_ok() && !s.dry_run;
        if !missing.is_empty() && now < until && !sure {
            if now >= again {
                let message = RoleMessage::Dry { attempt: s.attempt };
                out.extend(missing.into_iter().map(|to| Effect::Send { to, message: message.clone() }));
                s.stage = Stage::Ask { until, again: now + AGAIN };
            }
            return Step::Stay;
        }
        if let Ok((_, evidence)) = &mut verdict
            && s.dry_run
        {
            return Step::Over(Ok(Done::Would { evidence: std::mem::take(evidence) }));
        }
        let (to, evidence) = match verdict {
            Ok(verdict) => verdict,
            Err(refusal) => return Step::Over(Err(refusal)),
        };
        out.push(Effect::Evidence(evidence.clone()));
        let term = self.leading().expect("it leads");
        self.control.operation = Some(Operation { part: Part::HandingOver, peer: to, term });
        let (image, ticket) = (self.persist(out), self.ticket());
        out.push(Effect::HoldWrites { ticket, reason: "switchover" });
        self.writes_held = true;
        (s.to, s.evidence) = (Some(to), evidence);
        s.stage = Stage::Hold { ticket, image };
        Step::Moved
    }

    /// Who takes over, and why that will work.
    fn judge_switch(&self, log: &LogView, s: &Switch) -> Result<(NodeId, Evidence), Refusal> {
        let candidates = s.to.map_or_else(|| self.everybody(), |to| vec![to]);
        let judged: Vec<_> =
            candidates.into_iter().map(|node| (node, self.unfit_by_report(log, s, node))).collect();
        let rank = |node: &NodeId| {
            let priority = self.config.traits.get(node).copied().unwrap_or_default().priority;
            (priority, s.reports[node].0.end, std::cmp::Reverse(*node))
        };
        let best = judged.iter().filter(|(_, unfit)| unfit.is_none()).map(|(node, _)| *node).max_by_key(rank);
        let Some(to) = best else {
            let unfit: Vec<_> = judged.into_iter().filter_map(|(n, unfit)| Some((n, unfit?))).collect();
            return Err(match (s.to, unfit.first()) {
                (Some(node), Some((_, reason))) => Refusal::TargetUnfit { node, reason: *reason },
                _ => Refusal::NoTarget { unfit },
            });
        };
        let mut reports: BTreeMap<NodeId, Report> =
            s.reports.iter().map(|(node, (report, _))| (*node, report.clone())).collect();
        reports.insert(self.control.node, self.report(log));
        let told = reports.values().map(|report| (&report.policy, &report.pending[..]));
        let tallies: Vec<_> = recruit::binding(told).iter().map(|g| recruit::tally(g, &reports)).collect();
        if let Some(short) = tallies.iter().find(|tally| !tally.enough()) {
            return Err(no_quorum(short));
        }
        let votes = tallies.iter().map(|tally| tally.have).min().unwrap_or(0);
        let behind = log.end.0.saturating_sub(s.reports[&to].0.end.0);
        let evidence = Evidence::new("switchover")
            .with("to", to)
            .with("from term", self.leading().unwrap_or(Term::NONE))
            .with("bytes behind", behind)
            .with("voters that answer", votes);
        Ok((to, evidence))
    }

    /// The node says that its writes have come to rest.
    pub(super) fn writes_stand_still(&mut self, log: &LogView, answered: u64, _out: &mut Vec<Effect>) {
        if let Some(switch) = &mut self.switch
            && let Stage::Hold { ticket, image } = switch.stage
            && ticket == answered
        {
            switch.stage = Stage::Drain { end: log.end, image, again: Mono(0), prepared: false };
        }
    }

    pub(super) fn prepared(&mut self, from: NodeId, attempt: u64) {
        if let Some(switch) = &mut self.switch
            && (switch.to, switch.attempt) == (Some(from), attempt)
            && let Stage::Drain { prepared, .. } = &mut switch.stage
        {
            *prepared = true;
        }
    }

    /// Everything is committed and flushed on both sides: from here the target decides.
    fn hand_over(&mut self, now: Mono, s: &mut Switch, end: Lsn, out: &mut Vec<Effect>) -> Step {
        let Phase::Leading(leading) = &mut self.phase else { unreachable!("a leader hands over") };
        leading.held = true;
        leading.yielded_until = Some(s.deadline);
        out.push(Effect::HoldClients { reason: "handing over" });
        let release = self.release_lease(now);
        self.to_all(RoleMessage::LeaseRelease(release), out);
        let to = s.to.expect("chosen");
        let message = RoleMessage::Handover { attempt: s.attempt, end, release, mark: s.mark };
        out.push(Effect::Send { to, message });
        self.show(Role::Primary, State::WaitPromoting, out);
        s.stage = Stage::Handed { end, release, again: now + AGAIN };
        Step::Moved
    }

    fn switch_handed(
        &mut self,
        now: Mono,
        s: &mut Switch,
        (end, release, again): (Lsn, Release, Mono),
        out: &mut Vec<Effect>,
    ) -> Step {
        let to = s.to.expect("chosen");
        if let Phase::Leading(leading) = &mut self.phase {
            let term = leading.term;
            let failed = s.failure.is_some() || self.gone.contains(&to);
            if leading.held && !leading.suspended && failed {
                // The target never asked this voter: the term goes on as if nothing had been.
                leading.held = false;
                leading.yielded_until = None;
                out.push(Effect::Serve { term });
                self.resume_writes(out);
                self.show(Role::Primary, State::Normal, out);
            } else if leading.suspended && failed && s.failure.take().is_some() {
                leading.retry_at = Some(now);
            }
            if matches!(&self.phase, Phase::Leading(leading) if !leading.held) {
                let reason = s.failure.take().unwrap_or_else(|| "the next primary did not take over".into());
                self.forget_operation(out);
                return Step::Over(Err(Refusal::Aborted { reason, term, late: now >= s.deadline }));
            }
            if now >= again && now < s.deadline {
                let message = RoleMessage::Handover { attempt: s.attempt, end, release, mark: s.mark };
                out.push(Effect::Send { to, message });
                s.stage = Stage::Handed { end, release, again: now + AGAIN };
            }
        }
        if now >= s.deadline + OUTCOME_GRACE {
            return Step::Over(Err(Refusal::OutcomeUnknown { stage: "the term of the next primary" }));
        }
        Step::Stay
    }

    pub(super) fn handover_failed(
        &mut self,
        now: Mono,
        from: NodeId,
        attempt: u64,
        text: String,
        out: &mut Vec<Effect>,
    ) {
        let Some(switch) = &mut self.switch else { return };
        if (switch.to, switch.attempt) == (Some(from), attempt)
            && matches!(switch.stage, Stage::Handed { .. })
        {
            out.push(Effect::Evidence(
                Evidence::new("not taken over").with("by", from).with("reason", &text),
            ));
            switch.failure = Some(text);
            if let Phase::Leading(leading) = &mut self.phase
                && leading.suspended
            {
                leading.retry_at = Some(now);
            }
        }
    }

    /// An operator or a client has thought better of it.
    pub(super) fn abort_asked(&mut self, op: u64, out: &mut Vec<Effect>) {
        let handed = |s: &Switch| matches!(s.stage, Stage::Handed { .. } | Stage::Followed { .. });
        let result = match self.switch.as_deref().map(|s| (handed(s), s.to)) {
            None => Err(Refusal::NoSwitchover),
            Some((true, to)) => Err(Refusal::HandedOver { to: to.expect("chosen") }),
            Some((false, _)) => {
                let switch = self.switch.take().expect("just seen");
                if let Step::Over(result) = self.abort_switch("somebody asked for that".into(), false, out) {
                    self.close_switch(switch, result, out);
                }
                Ok(Done::SwitchoverAborted { term: self.leading().unwrap_or(self.control.promised) })
            }
        };
        out.push(Effect::Reply { op, result });
    }

    /// Resumes writes in the same term.
    fn abort_switch(&mut self, reason: String, late: bool, out: &mut Vec<Effect>) -> Step {
        let term = self.leading().unwrap_or(self.control.promised);
        self.resume_writes(out);
        self.forget_operation(out);
        Step::Over(Err(Refusal::Aborted { reason, term, late }))
    }

    pub(super) fn resume_writes(&mut self, out: &mut Vec<Effect>) {
        if std::mem::take(&mut self.writes_held) {
            out.push(Effect::ResumeWrites);
        }
    }

    fn forget_operation(&mut self, out: &mut Vec<Effect>) {
        if self.control.operation.take().is_some() {
            self.persist(out);
        }
    }

    /// This node serves `term`, one of its own: a switchover that was handed over has come to nothing.
    pub(super) fn led_again(&mut self, term: Term, out: &mut Vec<Effect>) {
        let handed = |s: &mut Box<Switch>| matches!(s.stage, Stage::Handed { .. } | Stage::Followed { .. });
        if let Some(mut switch) = self.switch.take_if(handed) {
            let reason = switch.failure.take().unwrap_or_else(|| "the next primary did not take over".into());
            self.close_switch(switch, Err(Refusal::Aborted { reason, term, late: false }), out);
        }
    }

    /// This leader steps down. Unless that is what was wanted, the switchover is over.
    pub(super) fn switch_lost(&mut self, out: &mut Vec<Effect>) {
        if let Some(switch) = self.switch.take_if(|s| !matches!(s.stage, Stage::Handed { .. })) {
            self.forget_operation(out);
            self.close_switch(switch, Err(Refusal::Superseded { term: self.control.promised }), out);
        }
    }

    /// The log failed: nobody waits any longer.
    pub(super) fn drop_switch(&mut self, out: &mut Vec<Effect>) {
        if let Some(switch) = self.switch.take() {
            self.close_switch(switch, Err(Refusal::LogFailed), out);
        }
        if let Some(away) = self.away.take() {
            out.push(Effect::Reply { op: away.op, result: Err(Refusal::LogFailed) });
        }
    }

    /// This node follows a started term: a switchover that it took part in has found its end.
    pub(super) fn followed_after_switch(&mut self, leader: NodeId, term: Term, out: &mut Vec<Effect>) {
        self.prepare = None;
        // The record of handing over to this leader stays until its term has committed something.
        if self.control.operation.is_some_and(|o| o.term < term && o.peer != leader) {
            self.forget_operation(out);
        }
        let Some(mut switch) = self.switch.take() else { return };
        if switch.to == Some(leader) {
            switch.stage = Stage::Followed { term };
            self.switch = Some(switch);
        } else {
            self.close_switch(switch, Err(Refusal::Superseded { term }), out);
        }
    }

    /// A switchover has found its end when a later term has committed something.
    pub(super) fn settle_operation(&mut self, log: &LogView, out: &mut Vec<Effect>) {
        let Some(operation) = self.control.operation else { return };
        let later = self.control.history.last().filter(|(term, _)| *term > operation.term);
        if later.is_some_and(|(_, start)| log.committed.lsn() > start) {
            self.forget_operation(out);
            self.wish.take_if(|wish| wish.own.is_some());
        }
    }

    /// The term-start frame of `term` is known to be committed here.
    fn term_committed(&self, log: &LogView, term: Term) -> bool {
        self.control.history.start_of(term).is_some_and(|start| log.committed.lsn() > start)
    }

    fn close_switch(&mut self, switch: Box<Switch>, result: CommandResult, out: &mut Vec<Effect>) {
        self.tell_asker(switch.asker, result, out);
    }

    fn tell_asker(&mut self, asker: Asker, result: CommandResult, out: &mut Vec<Effect>) {
        match asker {
            Asker::Here { op } => out.push(Effect::Reply { op, result }),
            Asker::There { node, ask } => {
                let outcome = match result {
                    Ok(
                        Done::SwitchedOver { leader, term, .. }
                        | Done::Before { deed: Deed::Led { leader, term }, .. },
                    ) => Outcome::Done { leader, term },
                    Ok(Done::Would { evidence }) => Outcome::Would { text: evidence.to_string() },
                    Ok(other) => Outcome::Would { text: format!("{other:?}") },
                    Err(refusal) => Outcome::Refused { kind: refusal.kind(), text: refusal.to_string() },
                };
                self.told = Some(((node, ask), outcome.clone()));
                let message = RoleMessage::SwitchoverAnswer { ask, outcome };
                out.push(Effect::Send { to: node, message });
            }
        }
    }

    // ---- the target ----

    pub(super) fn prepare_asked(&mut self, from: NodeId, attempt: u64, term: Term, end: Lsn) {
        if self.following() == Some((from, term)) {
            self.prepare = Some(Prepare { from, attempt, term, end, told: false });
        }
    }

    /// Tells the primary once everything that it has is flushed here.
    fn answer_prepare(&mut self, log: &LogView, out: &mut Vec<Effect>) {
        let Some(prepare) = self.prepare.filter(|prepare| !prepare.told) else { return };
        if self.following() != Some((prepare.from, prepare.term)) {
            self.prepare = None;
        } else if log.flushed.lsn() >= prepare.end {
            self.prepare = Some(Prepare { told: true, ..prepare });
            let message = RoleMessage::Prepared { attempt: prepare.attempt };
            out.push(Effect::Send { to: prepare.from, message });
        }
    }

    /// The primary hands over: this node recruits a term of its own, at once and without asking whether it should.
    #[allow(clippy::too_many_arguments, reason = "the parts of one message")]
    pub(super) fn handed_over(
        &mut self,
        now: Mono,
        log: &LogView,
        from: NodeId,
        (attempt, mark): (u64, Option<OpMark>),
        end: Lsn,
        release: Release,
        out: &mut Vec<Effect>,
    ) {
        if self.handover == Some((from, attempt)) {
            return;
        }
        self.handover = Some((from, attempt));
        self.prepare = None;
        let me = self.config.traits.get(&self.control.node).copied().unwrap_or_default();
        let at_end = log.end == end && log.flushed.lsn() == end;
        let reason = if release.leader != from || self.following() != Some((from, release.term)) {
            Some("it does not follow this primary any more")
        } else if self.control.promised != release.term {
            Some("it has promised a higher term")
        } else if !at_end {
            Some("its log does not end where the primary's does")
        } else if me.nofailover
            || me.delayed
            || self.stalled
            || self.kept_out
            || self.control.status != DataStatus::Whole
            || !log.whole
        {
            Some("it may not lead")
        } else if !matches!(self.work, Work::None) {
            Some("it is busy")
        } else {
            None
        };
        if let Some(reason) = reason {
            let message = RoleMessage::HandoverFailed { attempt, text: reason.into() };
            out.push(Effect::Send { to: from, message });
            return;
        }
        self.grants.release(from, release.term, release.upto);
        let operation = Operation { part: Part::TakingOver, peer: from, term: release.term };
        self.control.operation = Some(operation);
        self.begin_takeover(now, log, (from, attempt, mark), release, out);
    }
}

/// What a step came to.
enum Step {
    Stay,
    Moved,
    Over(CommandResult),
}

//! Being a candidate (`protocol` 3.5): dry round, own fence, promises, fast-forward, term-start frame.

use std::collections::BTreeMap;
use std::time::Duration;

use super::change::Stored;
use super::control::DataStatus;
use super::done::OpMark;
use super::input::{Command, CommandResult, Done, Effect, Evidence, FastForwardFailure, LogView, Refusal};
use super::machine::{COMMAND_MAX, Fence, Phase, RoleMachine, Wish, Work};
use super::message::{LeaderSeen, PromiseAnswer, Release, Report, RoleMessage};
use super::policy::{Generation, PendingGeneration};
use super::recruit::{self, Tally, evidence_of, judge_alone, newest_term, no_quorum};
use super::state::{Role, State};
use crate::base::planted::{Bug, planted};
use crate::base::{Incarnation, Lsn, Mono, NodeId, Term};

const DRY_MAX: Duration = Duration::from_millis(600);
const RESEND_EVERY: Duration = Duration::from_millis(150);
const YIELD_WAIT_MAX: Duration = Duration::from_millis(1000);
const GATHER_MAX: Duration = Duration::from_secs(5);
const FORWARD_MAX: Duration = Duration::from_secs(600);

/// One attempt to lead.
#[derive(Clone, Debug)]
pub(super) struct Recruit {
    pub(super) op: Option<u64>,
    /// On behalf of a standing request.
    pub(super) wish: bool,
    /// That request is this node's own: see [`Wish::own`].
    pub(super) own: Option<Term>,
    pub(super) mark: Option<OpMark>,
    /// A leader that recruits above a mere promise: its clients wait.
    keep: bool,
    /// Such a leader had to roll back in front of a better log; it goes on as a standby that recruits.
    rolled_back: bool,
    dry_run: bool,
    pub(super) alone: bool,
    pub(super) force: bool,
    yielded: bool,
    /// The old primary hands over: who, and its word for it.
    handover: Option<(NodeId, u64)>,
    released: Option<Release>,
    began: Mono,
    pub(super) deadline: Mono,
    attempt: u64,
    pub(super) term: Term,
    /// Answers of the dry round.
    pub(super) reports: BTreeMap<NodeId, Report>,
    leaders: BTreeMap<NodeId, LeaderSeen>,
    pub(super) promises: BTreeMap<NodeId, Report>,
    /// What the control store said last.
    pub(super) stored: Option<Stored>,
    /// The question to the control store under way.
    pub(super) talk: Option<u64>,
    /// The store has answered this attempt.
    pub(super) store_read: bool,
    /// Nothing can be lost, but too few would be left to commit: with the store's word those that are left go on by
    /// themselves (`protocol` 4.3).
    pub(super) shrink: bool,
    pub(super) stage: Stage,
}

#[derive(Clone, Debug)]
pub(super) enum Stage {
    Dry {
        until: Mono,
        resend: Mono,
    },
    Yield {
        until: Mono,
    },
    /// The own lease grant to the old leader must run out first.
    Lease,
    Fence(Fence),
    Gather {
        until: Mono,
        resend: Mono,
    },
    /// A better log's history is on its way to disk.
    Rewrite {
        image: u64,
        fork: Lsn,
        source: Source,
    },
    Cut {
        ticket: u64,
        done: bool,
        source: Source,
    },
    Forward {
        ticket: u64,
        until: Mono,
        source: Source,
        result: Option<Result<(), FastForwardFailure>>,
    },
    /// The control store is asked for the term, with the log as it will be led.
    Claim {
        talk: u64,
    },
    /// The history with the new term is on its way to disk.
    Start {
        image: u64,
    },
    Append,
    Backoff {
        until: Mono,
    },
}

/// The best log found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    node: NodeId,
    last_term: Term,
    end: Lsn,
}

/// What a step of an attempt came to.
pub(super) enum Step {
    Stay,
    Moved,
    /// The attempt is over, or owned by `RoleMachine::work` again.
    Over,
}

impl Recruit {
    /// True while an operator's command may take the place of this attempt: it is the node's own, and binds nobody yet.
    pub(super) fn gives_way(&self) -> bool {
        self.own.is_some() && !self.bound()
    }

    /// True once this candidate has promised itself: it follows nobody any more.
    pub(super) fn bound(&self) -> bool {
        !matches!(self.stage, Stage::Dry { .. } | Stage::Yield { .. } | Stage::Lease | Stage::Backoff { .. })
    }

    pub(super) fn truncated(&mut self, answered: u64) {
        if let Stage::Cut { ticket, done, .. } = &mut self.stage
            && *ticket == answered
        {
            *done = true;
        }
    }

    /// Everything told in both rounds; a promise is newer than a dry answer.
    pub(super) fn told(&self) -> impl Iterator<Item = (&Generation, &[PendingGeneration])> {
        self.reports
            .values()
            .chain(self.promises.values())
            .map(|report| (&report.policy, &report.pending[..]))
            .chain(self.stored.iter().map(|stored| (&stored.policy, &stored.pending[..])))
    }

    pub(super) fn tallies(&self, reports: &BTreeMap<NodeId, Report>) -> Vec<Tally> {
        recruit::binding(self.told()).iter().map(|generation| recruit::tally(generation, reports)).collect()
    }
}

impl RoleMachine {
    pub(super) fn begin_failover(
        &mut self,
        now: Mono,
        log: &LogView,
        (op, mark): (u64, Option<OpMark>),
        command: Command,
        out: &mut Vec<Effect>,
    ) {
        let Command::Failover { dry_run, alone, force } = command else {
            unreachable!("requests are kept as wishes");
        };
        let mut recruit = self.new_recruit(now);
        (recruit.op, recruit.mark) = (Some(op), mark);
        (recruit.dry_run, recruit.alone, recruit.force) = (dry_run, alone, force);
        self.work = Work::Recruit(Box::new(recruit));
        while self.advance_recruit(now, log, out) {}
    }

    /// Starts the recruit that a leader or a standing request has due.
    pub(super) fn start_due_recruit(&mut self, now: Mono) -> bool {
        let retry = match &mut self.phase {
            Phase::Leading(leading) => leading.retry_at.take_if(|at| *at <= now).is_some(),
            _ => false,
        };
        let due = self.wish.as_ref().filter(|wish| wish.next <= now);
        let wish = due.map(|wish| (wish.alone, wish.force, wish.own, wish.mark));
        if !retry && wish.is_none() {
            return false;
        }
        let mut recruit = self.new_recruit(now);
        recruit.keep = retry;
        if let Some((alone, force, own, mark)) = wish.filter(|_| !retry) {
            (recruit.wish, recruit.own, recruit.alone, recruit.force) = (true, own, alone, force);
            recruit.mark = mark;
        }
        self.work = Work::Recruit(Box::new(recruit));
        true
    }

    fn new_recruit(&mut self, now: Mono) -> Recruit {
        Recruit {
            op: None,
            wish: false,
            own: None,
            mark: None,
            keep: false,
            rolled_back: false,
            dry_run: false,
            alone: false,
            force: false,
            yielded: false,
            handover: None,
            released: None,
            began: now,
            deadline: now + COMMAND_MAX,
            attempt: self.ticket(),
            term: Term::NONE,
            reports: BTreeMap::new(),
            leaders: BTreeMap::new(),
            promises: BTreeMap::new(),
            stored: self.store.value.as_ref().map(Stored::new),
            talk: None,
            store_read: false,
            shrink: false,
            stage: Stage::Dry { until: now + DRY_MAX, resend: now },
        }
    }

    /// The old primary has asked everybody, holds its writes and has given its lease back: no dry round is needed.
    pub(super) fn begin_takeover(
        &mut self,
        now: Mono,
        log: &LogView,
        (from, attempt, mark): (NodeId, u64, Option<OpMark>),
        release: Release,
        out: &mut Vec<Effect>,
    ) {
        let mut recruit = self.new_recruit(now);
        (recruit.handover, recruit.released) = (Some((from, attempt)), Some(release));
        recruit.mark = mark;
        recruit.reports.insert(self.control.node, self.report(log));
        recruit.term = self.new_term();
        recruit.stage = Stage::Lease;
        self.grants.close(now + self.config.lease * 2);
        if let Err(refusal) = self.promotable(log, &recruit) {
            self.give_up(now, &mut recruit, refusal, Duration::ZERO, out);
            return;
        }
        self.work = Work::Recruit(Box::new(recruit));
    }

    pub(super) fn advance_recruit(&mut self, now: Mono, log: &LogView, out: &mut Vec<Effect>) -> bool {
        let Work::Recruit(mut recruit) = std::mem::replace(&mut self.work, Work::None) else { return false };
        let step = self.step(now, log, &mut recruit, out);
        if !matches!(step, Step::Over) {
            self.work = Work::Recruit(recruit);
        }
        !matches!(step, Step::Stay)
    }

    fn step(&mut self, now: Mono, log: &LogView, r: &mut Recruit, out: &mut Vec<Effect>) -> Step {
        match &mut r.stage {
            Stage::Dry { until, resend } => {
                let (until, resend) = (*until, *resend);
                self.read_store(now, r, out);
                let silent = |node: &NodeId| !r.reports.contains_key(node) && !self.gone.contains(node);
                let missing: Vec<NodeId> = self.everybody().into_iter().filter(silent).collect();
                let read = r.store_read || !self.config.store;
                if (missing.is_empty() && read) || now >= until {
                    return self.judge(now, log, r, out);
                }
                if now < resend {
                    return Step::Stay;
                }
                r.stage = Stage::Dry { until, resend: now + RESEND_EVERY };
                let message = RoleMessage::Dry { attempt: r.attempt };
                out.extend(missing.into_iter().map(|to| Effect::Send { to, message: message.clone() }));
                Step::Stay
            }
            Stage::Yield { until } if now >= *until => {
                r.yielded = true;
                self.judge(now, log, r, out)
            }
            Stage::Lease if self.grants.remaining(now).is_zero() => self.bind(now, r, out),
            Stage::Fence(fence) if self.fenced(fence, log) => {
                r.promises.insert(self.control.node, self.report(log));
                let resend = if r.handover.is_some() { now + RESEND_EVERY } else { now };
                let max = if r.alone || r.shrink { self.config.lease + YIELD_WAIT_MAX } else { GATHER_MAX };
                r.stage = Stage::Gather { until: now + max, resend };
                Step::Moved
            }
            Stage::Gather { until, resend } => {
                let (late, ask) = (now >= *until, now >= *resend);
                if ask {
                    *resend = now + RESEND_EVERY;
                }
                self.gather(now, log, r, (late, ask), out)
            }
            Stage::Rewrite { image, fork, source } if self.durable >= *image => {
                let (fork, source) = (*fork, *source);
                self.rewritten();
                if fork == log.end {
                    return self.forward(now, log, r, source, out);
                }
                let ticket = self.truncate(fork, out);
                r.stage = Stage::Cut { ticket, done: false, source };
                Step::Stay
            }
            Stage::Cut { done: true, source, .. } => {
                let source = *source;
                self.forward(now, log, r, source, out)
            }
            Stage::Forward { result: Some(Ok(())), source, .. } => {
                let arrived = log.last_term == source.last_term || planted(Bug::ReportPromisedTerm);
                assert!(log.end == source.end && arrived, "forwarded to the end of the best log");
                assert_eq!(log.flushed.lsn(), log.end, "what was fast-forwarded is flushed");
                self.claim(now, log, r, out)
            }
            Stage::Claim { talk } => {
                let talk = *talk;
                self.claiming(now, log, r, talk, out)
            }
            Stage::Forward { result: Some(Err(FastForwardFailure::NotRetained)), .. } => {
                let reason =
                    "the best log no longer reaches back to the end of this one: build this node first";
                self.fail(now, r, Refusal::NotPromotable { reason }, false, out)
            }
            Stage::Forward { result, until, .. } if result.is_some() || now >= *until => {
                out.push(Effect::Unfollow);
                self.fail(now, r, Refusal::Timeout { stage: "the log of the best voter" }, true, out)
            }
            Stage::Start { image } if self.durable >= *image => self.append(log, r, out),
            Stage::Backoff { until } if now >= *until => {
                r.attempt = self.ticket();
                r.reports.clear();
                r.leaders.clear();
                r.promises.clear();
                (r.talk, r.store_read, r.shrink) = (None, false, false);
                r.stage = Stage::Dry { until: now + DRY_MAX, resend: now };
                Step::Moved
            }
            _ => Step::Stay,
        }
    }

    pub(super) fn dry_reply(
        &mut self,
        now: Mono,
        from: NodeId,
        attempt: u64,
        leader: Option<LeaderSeen>,
        report: Report,
        out: &mut Vec<Effect>,
    ) {
        self.highest = self.highest.max(report.history.last().map_or(0, |(term, _)| term.number));
        self.met_started(now, report.last_term.max(leader.map_or(Term::NONE, |seen| seen.term)), out);
        if let Work::Recruit(recruit) = &mut self.work
            && recruit.attempt == attempt
            && matches!(recruit.stage, Stage::Dry { .. })
        {
            recruit.reports.insert(from, report);
            recruit.leaders.extend(leader.map(|seen| (from, seen)));
        }
    }

    pub(super) fn yield_answered(&mut self, attempt: u64) {
        if let Work::Recruit(recruit) = &mut self.work
            && recruit.attempt == attempt
            && let Stage::Yield { until } = &mut recruit.stage
        {
            *until = Mono(0);
        }
    }

    /// The dry round is over: would a recruit work, and may it be tried?
    fn judge(&mut self, now: Mono, log: &LogView, r: &mut Recruit, out: &mut Vec<Effect>) -> Step {
        r.reports.insert(self.control.node, self.report(log));
        if let Some(own) = r.own
            && let Some(later) = r.reports.values().map(newest_term).max().filter(|term| *term > own)
        {
            // Another node led after this one: it is that node's turn, or an operator's.
            self.wish = None;
            self.control.operation = None;
            self.persist(out);
            return self.fail(now, r, Refusal::Superseded { term: later }, false, out);
        }
        let alive = self.living_leader(now, r);
        if let Some((proof, seen)) = alive
            && !r.force
        {
            // Hearsay may be older than the leader's death: it is asked again for a while.
            let again = !proof && now.since(r.began) < self.config.lease * 2;
            let refusal = Refusal::PrimaryAlive { node: seen.node, term: seen.term };
            out.push(Effect::Send { to: seen.node, message: RoleMessage::StatusProbe });
            return self.fail(now, r, refusal, again, out);
        }
        if let Err(refusal) = self.promotable(log, r) {
            return self.fail(now, r, refusal, false, out);
        }
        if self.asks_store(r) && !r.store_read {
            let stage = "nobody is disturbed before it says what it holds";
            return self.fail(now, r, Refusal::StoreSilent { stage }, true, out);
        }
        let tallies = r.tallies(&r.reports);
        r.shrink = self.may_shrink(r, &tallies);
        if r.alone && !r.shrink {
            if let Err(refusal) = judge_alone(r.force, &r.reports, log, &tallies) {
                return self.fail(now, r, refusal, false, out);
            }
        } else if let Some(short) = tallies.iter().find(|tally| !tally.enough() && !r.shrink) {
            return self.fail(now, r, no_quorum(short), false, out);
        }
        if let Some((source, history)) = self.better_log(&r.reports)
            && let Err(refusal) = self.fork_with(log, &history, source.end)
        {
            return self.fail(now, r, refusal, false, out);
        }
        let mut evidence = evidence_of("dry round", log, &r.reports, &tallies);
        if r.shrink {
            evidence = evidence.with("control store", "asked for a generation of those that answer");
        }
        if r.dry_run {
            return self.close(r, Ok(Done::Would { evidence }), out);
        }
        // A living leader is disturbed only when everything else is known to work.
        if let Some((_, seen)) = alive.filter(|_| !r.yielded) {
            out.push(Effect::Send { to: seen.node, message: RoleMessage::Yield { attempt: r.attempt } });
            r.stage = Stage::Yield { until: now + YIELD_WAIT_MAX };
            return Step::Stay;
        }
        out.push(Effect::Evidence(evidence));
        r.term = self.new_term();
        // The grant to the old leader runs out; none is added meanwhile.
        self.grants.close(now + self.config.lease * 2);
        r.stage = Stage::Lease;
        Step::Moved
    }

    /// A leader other than this node that was heard within one lease, and whether that is its own word. A leader that
    /// recruits above a promise has stepped down already if it met a started term, so it asks nobody.
    fn living_leader(&self, now: Mono, r: &Recruit) -> Option<(bool, LeaderSeen)> {
        if r.keep {
            return None;
        }
        let me = self.control.node;
        let others = r.leaders.iter().filter(|(_, seen)| seen.node != me);
        let own = match &self.phase {
            Phase::Following(f) => f.heard.map(|heard| {
                let heard_ms = now.since(heard).as_millis() as u64;
                LeaderSeen { node: f.leader, term: f.term, heard_ms }
            }),
            _ => None,
        };
        let lease_ms = self.config.lease.as_millis() as u64;
        let told =
            others.map(|(from, seen)| (*from == seen.node, *seen)).chain(own.map(|seen| (false, seen)));
        told.filter(|(_, seen)| seen.heard_ms < lease_ms).max_by_key(|(proof, _)| *proof)
    }

    /// May this node lead at all?
    pub(super) fn promotable(&self, log: &LogView, r: &Recruit) -> Result<(), Refusal> {
        let refuse = |reason| Err(Refusal::NotPromotable { reason });
        if (self.control.status != DataStatus::Whole || !log.whole) && !planted(Bug::CountWipedOrBuildingNode)
        {
            return refuse("its data is not whole (joining, building, damaged or sick): build it first");
        }
        let (node, life) = (self.control.node, self.control.incarnation);
        let binding = recruit::binding(r.told());
        let excused = self.config.store || (r.alone && r.force);
        if !excused && binding.iter().any(|generation| generation.store) {
            return refuse(
                "this cluster decides through a control store and the configuration of this node names none: set \
                 `store` as on the other nodes",
            );
        }
        if binding.iter().any(|generation| generation.lists(node, life)) {
            return Ok(());
        }
        if log.end == Lsn::ZERO || binding.iter().any(|g| g.voters.iter().any(|voter| voter.node == node)) {
            return refuse("this data folder is not the one the cluster knows: build it first");
        }
        Ok(())
    }

    /// The point of no way back to the old leader's session: this candidate promises its own term.
    fn bind(&mut self, now: Mono, r: &mut Recruit, out: &mut Vec<Effect>) -> Step {
        self.suspend_leading("recruiting above a higher promise", out);
        let fence = self.fence(r.term, out);
        if matches!(self.phase, Phase::Following(_)) {
            out.push(Effect::Unfollow);
            self.phase = Phase::Alone { since: now };
        }
        if !matches!(self.phase, Phase::Leading(_)) && self.state != State::Promoting {
            self.show(self.role, State::WaitPromoting, out);
        }
        if r.handover.is_some() {
            // A promise made to a candidate that dies before its own is durable binds nobody to anything. So the
            // others promise while this node's promise goes to disk.
            self.ask_promises(r, out);
        }
        r.stage = Stage::Fence(fence);
        Step::Moved
    }

    /// Voters of every binding generation that have not promised yet.
    fn unpromised(&self, r: &Recruit) -> Vec<NodeId> {
        let mut voters: Vec<NodeId> = recruit::binding(r.told())
            .iter()
            .flat_map(|generation| generation.voters.iter().map(|voter| voter.node).collect::<Vec<_>>())
            .filter(|node| !r.promises.contains_key(node))
            .collect();
        voters.sort_unstable();
        voters.dedup();
        voters
    }

    fn ask_promises(&self, r: &Recruit, out: &mut Vec<Effect>) {
        let message = RoleMessage::Promise { term: r.term, force: r.force, released: r.released };
        let others = self.unpromised(r).into_iter().filter(|node| *node != self.control.node);
        out.extend(others.map(|to| Effect::Send { to, message: message.clone() }));
    }

    fn gather(
        &mut self,
        now: Mono,
        log: &LogView,
        r: &mut Recruit,
        (late, ask): (bool, bool),
        out: &mut Vec<Effect>,
    ) -> Step {
        let voters = self.unpromised(r);
        let tallies = r.tallies(&r.promises);
        let answering = voters.iter().any(|node| r.reports.contains_key(node));
        let asked_all = late || !answering;
        if (tallies.iter().all(Tally::enough) && !r.alone)
            || (r.alone && !r.shrink && asked_all)
            || (r.shrink && asked_all && tallies.iter().all(Tally::lossless))
        {
            r.shrink &= !tallies.iter().all(Tally::enough);
            return self.choose(now, log, r, &tallies, out);
        }
        if late {
            let short = tallies.iter().find(|tally| !tally.enough()).map(no_quorum);
            let refusal = short.unwrap_or(Refusal::Timeout { stage: "promises of the voters" });
            return self.fail(now, r, refusal, true, out);
        }
        if ask {
            self.ask_promises(r, out);
        }
        Step::Stay
    }

    pub(super) fn promise_answered(
        &mut self,
        now: Mono,
        (from, life): (NodeId, Incarnation),
        term: Term,
        answer: PromiseAnswer,
        out: &mut Vec<Effect>,
    ) {
        let refused = match &answer {
            PromiseAnswer::Refused { promised, leading } => Some((*promised, *leading)),
            _ => None,
        };
        if let Some((promised, _)) = refused {
            self.highest = self.highest.max(promised.number);
        }
        let Work::Recruit(recruit) = &mut self.work else { return };
        if recruit.term != term || !matches!(recruit.stage, Stage::Fence(_) | Stage::Gather { .. }) {
            return;
        }
        if let PromiseAnswer::Promised(report) = answer {
            if report.incarnation == life {
                recruit.promises.insert(from, *report);
            }
            return;
        }
        // A wait is asked again by the next round of requests.
        let Some((promised, leading)) = refused else { return };
        let refusal = if leading {
            Refusal::PrimaryAlive { node: from, term: promised }
        } else {
            Refusal::Superseded { term: promised }
        };
        let Work::Recruit(mut recruit) = std::mem::replace(&mut self.work, Work::None) else { return };
        if !matches!(self.fail(now, &mut recruit, refusal, !leading, out), Step::Over) {
            self.work = Work::Recruit(recruit);
        }
    }

    /// Enough promises: lead with the own log, or fetch the better one first.
    fn choose(
        &mut self,
        now: Mono,
        log: &LogView,
        r: &mut Recruit,
        tallies: &[Tally],
        out: &mut Vec<Effect>,
    ) -> Step {
        out.push(Effect::Evidence(evidence_of("recruited", log, &r.promises, tallies).with("term", r.term)));
        self.show(self.role, State::Promoting, out);
        let better = self.better_log(&r.promises).filter(|_| !planted(Bug::PromoteTheLaggard));
        let Some((source, history)) = better else { return self.claim(now, log, r, out) };
        let fork = match self.fork_with(log, &history, source.end) {
            Ok(fork) => fork,
            Err(refusal) => return self.fail(now, r, refusal, false, out),
        };
        // What was executed ahead of commit is rolled back: from here on this log is filled as a standby's.
        r.rolled_back |= matches!(self.phase, Phase::Leading(_));
        self.step_down(now, "a voter's log is ahead of its own", None, out);
        self.show(self.role, State::Promoting, out);
        let image = self.rewrite_history(history, fork, out);
        r.stage = Stage::Rewrite { image, fork, source };
        Step::Moved
    }

    /// The log that outranks this node's own, with its history cut to its end.
    fn better_log(&self, reports: &BTreeMap<NodeId, Report>) -> Option<(Source, super::history::History)> {
        let node = recruit::best(reports, self.control.node).filter(|node| *node != self.control.node)?;
        let report = &reports[&node];
        let mut history = report.history.clone();
        history.truncate_to(report.end);
        Some((Source { node, last_term: report.last_term, end: report.end }, history))
    }

    fn forward(
        &mut self,
        now: Mono,
        log: &LogView,
        r: &mut Recruit,
        source: Source,
        out: &mut Vec<Effect>,
    ) -> Step {
        if log.end == source.end {
            return self.claim(now, log, r, out);
        }
        let ticket = self.ticket();
        out.push(Effect::FastForward { ticket, from: source.node, term: r.term, to: source.end });
        r.stage = Stage::Forward { ticket, until: now + FORWARD_MAX, source, result: None };
        Step::Stay
    }

    pub(super) fn fast_forwarded(&mut self, answered: u64, outcome: Result<(), FastForwardFailure>) {
        if let Work::Recruit(recruit) = &mut self.work
            && let Stage::Forward { ticket, result, .. } = &mut recruit.stage
            && *ticket == answered
        {
            *result = Some(outcome);
        }
    }

    /// The term gets its place in the history before its first frame exists.
    pub(super) fn start(&mut self, log: &LogView, r: &mut Recruit, out: &mut Vec<Effect>) -> Step {
        self.control.history.append(r.term, log.end);
        self.control.last_led = r.term;
        self.control.operation = None;
        let image = self.persist(out);
        r.stage = Stage::Start { image };
        Step::Moved
    }

    /// An attempt did not work. `retry`: the same attempt may work a little later.
    pub(super) fn fail(
        &mut self,
        now: Mono,
        r: &mut Recruit,
        why: Refusal,
        retry: bool,
        out: &mut Vec<Effect>,
    ) -> Step {
        // What others say of the leader changes within moments of its death; everything else needs more time.
        let hearsay = matches!(why, Refusal::PrimaryAlive { .. });
        let pause = if hearsay { self.rng.between(20, 60) } else { self.rng.between(200, 800) };
        let pause = Duration::from_millis(pause);
        if r.op.is_some() && retry && now < r.deadline {
            out.push(Effect::Evidence(Evidence::new("recruit tried again").with("reason", &why)));
            r.stage = Stage::Backoff { until: now + pause };
            return Step::Moved;
        }
        self.give_up(now, r, why, pause, out);
        Step::Over
    }

    fn close(&mut self, r: &mut Recruit, result: CommandResult, out: &mut Vec<Effect>) -> Step {
        out.extend(r.op.take().map(|op| Effect::Reply { op, result }));
        Step::Over
    }

    pub(super) fn abandon_recruit(&mut self, now: Mono, mut r: Recruit, why: Refusal, out: &mut Vec<Effect>) {
        if matches!(r.stage, Stage::Forward { .. }) {
            out.push(Effect::Unfollow);
        }
        let pause = self.config.lease * 2;
        self.give_up(now, &mut r, why, pause, out);
    }

    /// Ends an attempt: a leader and a standing request try again later, an operator gets the reason.
    fn give_up(&mut self, now: Mono, r: &mut Recruit, why: Refusal, pause: Duration, out: &mut Vec<Effect>) {
        out.push(Effect::Evidence(Evidence::new("recruit given up").with("reason", &why)));
        self.grants.open();
        if let Some((to, attempt)) = r.handover.take() {
            let message = RoleMessage::HandoverFailed { attempt, text: why.to_string() };
            out.push(Effect::Send { to, message });
            self.control.operation = None;
            self.persist(out);
        }
        if matches!(self.phase, Phase::Leading(_)) {
            self.plan_retry(now, 1);
            if self.state == State::Promoting && self.leading().is_none() {
                self.show(Role::Primary, State::WaitPromoting, out);
            }
        } else if r.rolled_back {
            // It was a primary and had to roll back: it still means to lead until another one does.
            let wish = Wish {
                op: None,
                own: None,
                mark: r.mark,
                give_up: now,
                next: now + pause,
                alone: false,
                force: false,
            };
            self.wish.get_or_insert(wish);
        }
        if matches!(self.state, State::WaitPromoting | State::Promoting) && self.role != Role::Primary {
            self.show_lonely(out);
        }
        if r.wish
            && let Some(mut wish) = self.wish.take()
        {
            // A request waits for voters, not for a change of facts. Nor does it ask a living leader to yield for ever.
            let waits = matches!(
                why,
                Refusal::NoQuorum { .. } | Refusal::Superseded { .. } | Refusal::Timeout { .. }
            );
            // Who asks by itself goes on asking until it follows a leader.
            let waits = waits || (wish.own.is_some() && matches!(why, Refusal::PrimaryAlive { .. }));
            wish.next = now + pause;
            wish.force &= now < wish.give_up;
            let told = wish.op.take_if(|_| !waits || now >= wish.give_up);
            out.extend(told.map(|op| Effect::Reply { op, result: Err(why.clone()) }));
            self.wish = Some(wish).filter(|_| waits);
        }
        self.close(r, Err(why), out);
    }
}

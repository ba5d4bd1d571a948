//! The role machine: its state, the dispatch of inputs, and the questions that other rooms ask.
//!
//! At most one procedure ([`Work`]) runs at a time, on top of what the node is ([`Phase`]). Every procedure begins with
//! a fence: acks stopped, promise durable, log drained. A stronger input (a higher term) replaces the procedure; late
//! answers to the old one carry its tickets and are ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::candidate::{Recruit, Stage};
use super::change::Change;
use super::control::{ControlState, DataStatus};
use super::done::{KnownOp, OpMark};
use super::follow::Adopt;
use super::history::History;
use super::input::{Command, Done, Effect, Evidence, Input, LogView, Refusal};
use super::lead::Leading;
use super::lease::{Grants, LeaderLease};
use super::message::{LeaderSeen, Outcome, Release, Report, RoleMessage};
use super::policy::{Generation, PendingGeneration};
use super::promise::PromiseWork;
use super::stall::STALLED;
use super::state::{Repair, Role, State, allowed};
use super::stored::StoreSeen;
use super::switch::{Away, Prepare, Switch};
use crate::base::limits::PEER_SILENCE_MAX;
use crate::base::planted::{Bug, planted};
use crate::base::{Incarnation, Lsn, Mono, NodeId, Prng, Term};

/// How often [`Input::Tick`] is wanted at least.
pub const TICK: Duration = Duration::from_millis(50);
/// How often a node without a leader asks who leads.
const PROBE_EVERY: Duration = Duration::from_millis(300);
/// How long a command may wait for its outcome.
pub(super) const COMMAND_MAX: Duration = Duration::from_secs(15);

/// What the machine must know besides its durable state.
#[derive(Clone, Debug)]
pub struct RoleConfig {
    /// Every other member of the cluster that can be spoken to.
    pub peers: Vec<NodeId>,
    /// Shown as cascade standby when not leading.
    pub cascade: bool,
    pub lease: Duration,
    /// What the configuration says of members, this node included. Members without an entry have the defaults.
    pub traits: BTreeMap<NodeId, Traits>,
    /// A voter silent for this long is taken out of the policy while enough others live, and returned when it is back
    /// and caught up. `None`: never.
    pub voter_timeout: Option<Duration>,
    /// A control store is attached: [`Effect::Store`] is ordered and answered, and every promotion asks it.
    pub store: bool,
    /// A primary that has had too few voters for this long asks for fewer copies, through the store. `None`: never.
    pub degrade: Option<Duration>,
    /// Seed of term ids and back-off. From the operating system in production: two nodes must never share one.
    pub seed: u64,
}

/// What the configuration says of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// Higher is preferred as the next primary.
    pub priority: u32,
    /// Never the target of a switchover or of an automatic failover.
    pub nofailover: bool,
    /// Kept behind on purpose.
    pub delayed: bool,
    /// Streams from another standby.
    pub cascade: bool,
}

impl Default for Traits {
    fn default() -> Traits {
        Traits { priority: 100, nofailover: false, delayed: false, cascade: false }
    }
}

/// May a session with this term go on?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    /// The term is not followed yet: keep the session waiting (or drop it) until `Effect::Follow` names its term.
    AdoptFirst,
    /// Answer with this promised term and close.
    Refuse(Term),
}

/// What this node is to the cluster.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// No leader known.
    Alone {
        since: Mono,
    },
    Following(Following),
    Leading(Leading),
    /// The log failed.
    Failed,
}

/// The leader this node streams from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Following {
    pub leader: NodeId,
    pub term: Term,
    /// When it was last heard; `None` once its process is known to be gone.
    pub heard: Option<Mono>,
    /// Start of the present silence, for the shown state.
    pub since: Mono,
    /// Its end of log as last told.
    pub end: Lsn,
}

/// The procedure under way.
#[derive(Clone, Debug)]
pub(super) enum Work {
    None,
    /// Promising another node's candidate.
    Promise(PromiseWork),
    /// Following a started term.
    Adopt(Box<Adopt>),
    /// Being a candidate.
    Recruit(Box<Recruit>),
}

/// Acks stopped, promise on its way to disk, log draining.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fence {
    pub image: u64,
    pub ticket: u64,
    pub drained: bool,
}

/// A standing request to become primary.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub op: Option<u64>,
    /// Nobody asked: this node led this term last (or was being handed the work of it), and its process started anew.
    /// It asks as long as nobody knows of a later term.
    pub own: Option<Term>,
    pub mark: Option<OpMark>,
    /// When `op` is answered at the latest.
    pub give_up: Mono,
    pub next: Mono,
    pub alone: bool,
    pub force: bool,
}

/// A command that waits.
#[derive(Clone, Debug)]
pub(super) struct Queued {
    pub op: u64,
    pub mark: Option<OpMark>,
    pub command: Command,
    pub until: Mono,
}

/// One node's role. See the room's description.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct RoleMachine {
    pub(super) config: RoleConfig,
    pub(super) control: ControlState,
    pub(super) rng: Prng,
    /// The newest control image known to be durable.
    pub(super) durable: u64,
    /// The control file does not hold the newest op of the log yet.
    pub(super) ops_unsaved: bool,
    /// The image that first held all pending generations.
    pub(super) pending_image: u64,
    /// Where the first pending generation starts that may not be durable in the control file yet.
    pub(super) pending_from: Lsn,
    /// Where a generation starts that was one too many to keep: nothing from there on is acknowledged.
    pub(super) refused_from: Option<Lsn>,
    pub(super) tickets: u64,
    pub(super) role: Role,
    pub(super) state: State,
    pub(super) phase: Phase,
    pub(super) work: Work,
    pub(super) wish: Option<Wish>,
    /// A switchover away from this primary.
    pub(super) switch: Option<Box<Switch>>,
    /// A switchover that this node was asked for and passed on.
    pub(super) away: Option<Away>,
    /// What the primary, about to hand over, wants to hear of.
    pub(super) prepare: Option<Prepare>,
    /// A change of policy under way.
    pub(super) change: Option<Box<Change>>,
    /// A policy record that was ordered and not yet reported.
    pub(super) recording: Option<(u64, Generation, Option<OpMark>)>,
    pub(super) store: StoreSeen,
    /// When this leader last heard from each voter.
    pub(super) voter_heard: BTreeMap<NodeId, Mono>,
    /// When the voters are looked at again.
    pub(super) voters_at: Mono,
    /// The last hand-over that reached this node.
    pub(super) handover: Option<(NodeId, u64)>,
    /// The last switchover question of another node, and its answer, should it ask again.
    pub(super) told: Option<((NodeId, u64), Outcome)>,
    /// `HoldWrites` was given and nothing has ended it yet.
    pub(super) writes_held: bool,
    /// One command that waits for a promise or a change of leader to end.
    pub(super) queued: Option<Queued>,
    pub(super) grants: Grants,
    pub(super) lease: LeaderLease,
    pub(super) lives: BTreeMap<NodeId, Incarnation>,
    /// Peers whose process is known to have let go and that have not come back: nobody waits for their answer.
    pub(super) gone: BTreeSet<NodeId>,
    /// Highest term number met anywhere: a new term goes above it.
    pub(super) highest: u64,
    /// A term-start frame that was ordered and not yet reported, with the generation and the op that it carries.
    pub(super) appending: Option<(Term, Option<Generation>, Option<OpMark>)>,
    /// The history that is on its way to disk, before the log is cut or continued to match it. Until then
    /// `control.history` goes on describing the log as it is.
    pub(super) rewriting: Option<(History, Lsn)>,
    /// A truncation that was ordered and not yet reported. No fence is complete before it is.
    pub(super) cutting: Option<u64>,
    /// The started term that this log cannot follow.
    pub(super) blocked: Option<Term>,
    pub(super) last_followed: Option<(NodeId, Term)>,
    pub(super) next_probe: Mono,
    /// The disk does not answer.
    pub(super) stalled: bool,
    /// `-M pending`: it streams from nobody until it is told its role, so it takes over from nobody.
    pub(super) kept_out: bool,
    /// It led when that began, or was about to ask by itself.
    pub(super) asks_when_back: bool,
    /// The newest term that an earlier process of this folder can have followed.
    pub(super) known_at_start: Term,
    booted: bool,
}

impl RoleMachine {
    /// `control` as chosen from both copies; the first handled input counts its start and persists it. `now` is the
    /// start of the process.
    pub fn new(config: RoleConfig, control: ControlState, now: Mono) -> RoleMachine {
        let written = !control.history.is_empty();
        let role = match (written, config.cascade) {
            (false, _) => Role::Pending,
            (true, false) => Role::Standby,
            (true, true) => Role::CascadeStandby,
        };
        let state = match control.status {
            DataStatus::Building => State::Building,
            DataStatus::Damaged => State::NeedRepair(Repair::Wal),
            DataStatus::Whole | DataStatus::Learner | DataStatus::Sick => State::Starting,
        };
        RoleMachine {
            rng: Prng::new(config.seed),
            durable: control.generation,
            ops_unsaved: false,
            pending_image: 0,
            pending_from: Lsn::MAX,
            refused_from: None,
            tickets: 0,
            role,
            state,
            phase: Phase::Alone { since: now },
            work: Work::None,
            wish: None,
            switch: None,
            away: None,
            prepare: None,
            handover: None,
            change: None,
            recording: None,
            store: StoreSeen::default(),
            voter_heard: BTreeMap::new(),
            voters_at: now,
            told: None,
            writes_held: false,
            queued: None,
            grants: Grants::new(now, config.lease, written),
            lease: LeaderLease::default(),
            lives: BTreeMap::new(),
            gone: BTreeSet::new(),
            highest: control.promised.number,
            appending: None,
            rewriting: None,
            cutting: None,
            blocked: None,
            last_followed: None,
            next_probe: now,
            stalled: false,
            kept_out: false,
            asks_when_back: false,
            known_at_start: control.history.last().map_or(Term::NONE, |(term, _)| term),
            booted: false,
            config,
            control,
        }
    }

    /// Takes one input and appends what must be done, in order.
    pub fn handle(&mut self, now: Mono, log: &LogView, input: Input, out: &mut Vec<Effect>) {
        assert!(log.flushed.lsn() <= log.end, "no more can be flushed than was written");
        if !self.booted {
            self.boot(now, log, out);
        }
        if matches!(self.phase, Phase::Failed) {
            if let Input::Command { op, .. } = input {
                out.push(Effect::Reply { op, result: Err(Refusal::LogFailed) });
            }
            return;
        }
        self.control.known_committed.advance(log.committed.lsn());
        self.settle_policy(log, out);
        self.dispatch(now, log, input, out);
        self.settle_policy(log, out);
        self.settle_operation(log, out);
        self.settle_ops(log, out);
        while self.advance(now, log, out) {}
    }

    fn boot(&mut self, now: Mono, log: &LogView, out: &mut Vec<Effect>) {
        self.booted = true;
        self.control.starts += 1;
        // The record of a generation that never reached this log is no generation.
        self.control.pending.retain(|pending| pending.end <= log.end);
        self.cut_ops(log.end);
        self.persist(out);
        self.wish_again(now, log);
        if planted(Bug::ResumeOwnTermAfterRestart) {
            self.resume_own_term(log, out);
        }
    }

    fn dispatch(&mut self, now: Mono, log: &LogView, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Tick => self.tick(now, out),
            Input::Command { op, mark, command } => self.command(now, log, (op, mark), command, out),
            Input::Peer { from, incarnation, message } => {
                self.lives.insert(from, incarnation);
                self.message(now, log, from, incarnation, message, out);
            }
            Input::PeerUp { node, incarnation } => {
                self.lives.insert(node, incarnation);
                self.gone.remove(&node);
                let message = self.announcement(log.end).unwrap_or(RoleMessage::StatusProbe);
                out.push(Effect::Send { to: node, message });
            }
            Input::PeerDown { node, process_gone } => {
                self.lease.forget(node, now);
                if process_gone {
                    self.gone.insert(node);
                    self.grants.process_gone(node);
                    if let Phase::Following(following) = &mut self.phase
                        && following.leader == node
                    {
                        following.heard = None;
                    }
                }
            }
            Input::Persisted { generation } => {
                assert!(generation <= self.control.generation, "only what was ordered can be durable");
                self.durable = self.durable.max(generation);
            }
            Input::Drained { ticket } => self.drained(ticket),
            Input::Truncated { ticket } => self.truncated(log, ticket, out),
            Input::FastForwarded { ticket, result } => self.fast_forwarded(ticket, result),
            Input::TermAppended { start, end } => self.term_appended(start, end, out),
            Input::CommitMoved => {}
            Input::PolicyAppended { generation, start, end } => {
                self.policy_appended(PendingGeneration { generation, start, end }, out);
            }
            Input::OpAppended { op, start, end } => self.op_appended(KnownOp { op, start, end }),
            Input::Heartbeat { leader, term, end } => self.heard(now, log, leader, term, end, out),
            Input::Granted { from, incarnation, term, sent } => {
                if self.leading() == Some(term) {
                    self.lease.granted(from, incarnation, sent, self.config.lease);
                    self.voter_heard.insert(from, now);
                }
            }
            Input::SessionRefused { promised, .. } => self.met_promise(now, promised, out),
            Input::DataChanged { status, incarnation, history, policy } => {
                self.data_changed(now, status, incarnation, out);
                if let Some(history) = history {
                    self.control.history = history;
                }
                if let Some(policy) = policy {
                    self.control.policy = policy;
                    self.control.pending.clear();
                    self.control.ops.clear();
                    self.refused_from = None;
                }
                self.persist(out);
            }
            Input::FormatWanted { version } => {
                if version > self.control.format {
                    self.control.format = version;
                    self.persist(out);
                }
            }
            Input::LogFailed => self.fail_log(out),
            Input::DiskStalled { stalled } => self.disk_stalled(now, log, stalled, out),
            Input::TraitsChanged { traits } => self.config.traits = traits,
            Input::WritesHeld { ticket } => self.writes_stand_still(log, ticket, out),
            Input::PolicyRecorded { ticket, start, end } => self.policy_recorded(ticket, start, end, out),
            Input::StoreAnswered { ticket, answer } => self.store_answered(ticket, answer),
        }
    }

    fn message(
        &mut self,
        now: Mono,
        log: &LogView,
        from: NodeId,
        incarnation: Incarnation,
        message: RoleMessage,
        out: &mut Vec<Effect>,
    ) {
        match message {
            // Nothing can be promised now: not to answer is the truth, and quicker for whoever counts votes.
            RoleMessage::Dry { .. } | RoleMessage::Promise { .. } if self.stalled => {}
            RoleMessage::Dry { attempt } => {
                let message = RoleMessage::DryReply {
                    attempt,
                    promised: self.control.promised,
                    leader: self.leader_seen(now).filter(|seen| !self.kept_out || seen.node != from),
                    lease_ms: ms_up(self.grants.remaining(now)),
                    report: Box::new(self.report(log)),
                };
                out.push(Effect::Send { to: from, message });
            }
            RoleMessage::DryReply { attempt, promised, leader, report, .. } => {
                self.highest = self.highest.max(promised.number);
                if report.incarnation == incarnation {
                    self.switch_reported(from, attempt, leader, &report);
                    self.change_reported(from, attempt, leader, &report);
                    self.dry_reply(now, from, attempt, leader, *report, out);
                }
            }
            RoleMessage::Promise { term, force, released } => {
                if let Some(Release { leader, term, upto }) = released {
                    self.grants.release(leader, term, upto);
                }
                self.promise_asked(now, log, from, term, force, out);
            }
            RoleMessage::PromiseReply { term, answer } => {
                self.promise_answered(now, (from, incarnation), term, answer, out);
            }
            RoleMessage::Announce { term, history, end, .. } => {
                self.announced(now, from, (term, history, end), out);
            }
            RoleMessage::StatusProbe => {
                let message = self.announcement(log.end).unwrap_or_else(|| RoleMessage::Status {
                    promised: self.control.promised,
                    leader: self.leader_seen(now),
                    role: self.role,
                    state: self.state,
                    end: log.end,
                    committed: log.committed,
                });
                out.push(Effect::Send { to: from, message });
            }
            RoleMessage::Status { promised, leader, role, .. } => {
                self.leader_let_go(from, role, leader);
                self.met_started(now, leader.map_or(Term::NONE, |seen| seen.term), out);
                self.met_promise(now, promised, out);
                self.hear_of_leader(leader, out);
            }
            RoleMessage::Yield { attempt } => self.yield_asked(now, from, attempt, out),
            RoleMessage::YieldReply { attempt, .. } => self.yield_answered(attempt),
            RoleMessage::LeaseRelease(Release { leader, term, upto }) => {
                self.grants.release(leader, term, upto);
            }
            RoleMessage::SwitchoverAsk { ask, term, to, dry_run, timeout_ms, mark } => {
                let timeout = Duration::from_millis(timeout_ms);
                self.switchover_asked(now, log, (from, ask, mark), term, (to, dry_run, timeout), out);
            }
            RoleMessage::SwitchoverAnswer { ask, outcome } => {
                self.switchover_answered(from, ask, outcome, out);
            }
            RoleMessage::Prepare { attempt, term, end } => self.prepare_asked(from, attempt, term, end),
            RoleMessage::Prepared { attempt } => self.prepared(from, attempt),
            RoleMessage::Handover { attempt, end, release, mark } => {
                self.handed_over(now, log, from, (attempt, mark), end, release, out);
            }
            RoleMessage::HandoverFailed { attempt, text } => {
                self.handover_failed(now, from, attempt, text, out);
            }
            RoleMessage::Fenced { promised } => self.met_promise(now, promised, out),
        }
    }

    fn command(
        &mut self,
        now: Mono,
        log: &LogView,
        (op, mark): (u64, Option<OpMark>),
        command: Command,
        out: &mut Vec<Effect>,
    ) {
        if let Some(result) = self.asked_before(log, mark) {
            out.push(Effect::Reply { op, result });
            return;
        }
        if command == Command::RequestStandby {
            let given_up = self.wish.take().and_then(|wish| wish.op);
            let ends = given_up.map(|op| (op, Err(Refusal::Superseded { term: self.control.promised })));
            let result = match self.leading() {
                Some(term) => Err(Refusal::PrimaryAlive { node: self.control.node, term }),
                None => Ok(Done::Standby),
            };
            out.extend(
                ends.into_iter().chain([(op, result)]).map(|(op, result)| Effect::Reply { op, result }),
            );
            return;
        }
        if let Command::Switchover { to, dry_run, timeout } = command {
            return self.switchover(now, (op, mark), to, dry_run, timeout, out);
        }
        if let Command::ChangePolicy(wanted) = command {
            return self.change_policy(now, (op, mark), wanted, out);
        }
        if command == Command::AbortSwitchover {
            return self.abort_asked(op, out);
        }
        if self.stalled {
            out.push(Effect::Reply { op, result: Err(STALLED) });
            return;
        }
        let recruiting = matches!(&self.work, Work::Recruit(recruit) if !recruit.gives_way());
        let wished = self.wish.as_ref().is_some_and(|wish| wish.op.is_some());
        let busy =
            recruiting || self.queued.is_some() || wished || self.switch.is_some() || self.change.is_some();
        if let Phase::Leading(leading) = &self.phase
            && leading.served
        {
            let evidence = Evidence::new("already primary").with("term", leading.term);
            let done = Done::Primary { term: leading.term, start: leading.start, evidence };
            out.push(Effect::Reply { op, result: Ok(done) });
        } else if busy || matches!(self.phase, Phase::Leading(_)) {
            out.push(Effect::Reply { op, result: Err(Refusal::Busy) });
        } else if let Command::RequestPrimary { alone, force } = command {
            let (give_up, next) = (now + COMMAND_MAX, now);
            self.wish = Some(Wish { op: Some(op), own: None, mark, give_up, next, alone, force });
        } else if matches!(&self.work, Work::None)
            || matches!(&self.work, Work::Recruit(recruit) if recruit.gives_way())
        {
            self.work = Work::None;
            self.grants.open();
            self.begin_failover(now, log, (op, mark), command, out);
        } else {
            self.queued = Some(Queued { op, mark, command, until: now + COMMAND_MAX });
        }
    }

    /// Runs whatever time or a finished step allows. True when something moved, so that the caller asks again.
    fn advance(&mut self, now: Mono, log: &LogView, out: &mut Vec<Effect>) -> bool {
        self.try_serve(log, out);
        if self.advance_switch(now, log, out) || self.advance_change(now, log, out) {
            return true;
        }
        self.tend_store(now, out);
        match &self.work {
            Work::Promise(_) => self.advance_promise(now, log, out),
            Work::Adopt(_) => self.advance_adopt(now, log, out),
            Work::Recruit(_) => self.advance_recruit(now, log, out),
            Work::None => {
                if self.stalled {
                    return false;
                }
                if let Some(Queued { op, mark, command, until }) = self.queued.take() {
                    if now < until {
                        self.command(now, log, (op, mark), command, out);
                    } else {
                        let stage = "an earlier change of leader to end";
                        out.push(Effect::Reply { op, result: Err(Refusal::Timeout { stage }) });
                    }
                    return true;
                }
                self.start_due_recruit(now)
            }
        }
    }

    fn tick(&mut self, now: Mono, out: &mut Vec<Effect>) {
        self.lead_tick(now, out);
        self.look_at_voters(now, out);
        let silent = match &self.phase {
            Phase::Alone { since } => Some(*since),
            Phase::Following(following) => {
                let last = following.heard.unwrap_or(following.since);
                (now.since(last) > self.config.lease).then_some(last)
            }
            Phase::Leading(leading) => (leading.suspended || !self.may_read(now)).then_some(now),
            Phase::Failed => None,
        };
        let Some(since) = silent else { return };
        if now >= self.next_probe {
            self.next_probe = now + PROBE_EVERY;
            self.to_all(RoleMessage::StatusProbe, out);
        }
        let idle = matches!(self.work, Work::None) && !matches!(self.phase, Phase::Leading(_));
        if idle && now.since(since) > PEER_SILENCE_MAX {
            self.show_lonely(out);
        }
    }

    /// A waiting node without a leader.
    pub(super) fn show_lonely(&mut self, out: &mut Vec<Effect>) {
        match (self.role, self.state) {
            (_, State::Building | State::NeedRepair(_)) => {}
            (Role::Pending, _) => self.show(Role::Pending, State::Normal, out),
            (role, _) => self.show(role, State::NeedRepair(Repair::Disconnected), out),
        }
    }

    /// The one door for shown roles and states.
    pub(super) fn show(&mut self, role: Role, state: State, out: &mut Vec<Effect>) {
        let (from, to) = ((self.role, self.state), (role, state));
        assert!(allowed(from, to), "a forbidden move from {from:?} to {to:?}");
        if from != to {
            (self.role, self.state) = to;
            out.push(Effect::Changed { role, state });
        }
    }

    /// Orders the control state to disk under a new image number.
    pub(super) fn persist(&mut self, out: &mut Vec<Effect>) -> u64 {
        self.control.generation += 1;
        self.ops_unsaved = false;
        let mut state = Box::new(self.control.clone());
        if let Some((history, fork)) = &self.rewriting {
            state.history = history.clone();
            // What the new history cuts off takes its pending generations with it, in the same image: after a crash
            // nothing else may stand at their place and be taken for them.
            state.pending.retain(|pending| pending.end <= *fork);
            state.ops.retain(|known| known.end <= *fork);
        }
        out.push(Effect::Persist { state });
        self.control.generation
    }

    pub(super) fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// Begins the fence for `term` (`protocol` 3.2): acks stopped first, promise persisted, log drained.
    pub(super) fn fence(&mut self, term: Term, out: &mut Vec<Effect>) -> Fence {
        if !planted(Bug::AckAfterPromise) {
            out.push(Effect::StopAcks);
        }
        self.highest = self.highest.max(term.number);
        let image = if term > self.control.promised {
            self.control.promised = term;
            self.persist(out)
        } else {
            self.control.generation
        };
        let ticket = self.ticket();
        out.push(Effect::Drain { ticket });
        Fence { image, ticket, drained: false }
    }

    /// True when the promise is durable and the log at rest.
    pub(super) fn fenced(&self, fence: &Fence, log: &LogView) -> bool {
        let done = fence.drained && self.durable >= fence.image && self.cutting.is_none();
        let at_rest = log.flushed.lsn() == log.end || planted(Bug::AckAfterPromise);
        assert!(!done || at_rest, "a drained log is flushed to its end");
        done
    }

    fn drained(&mut self, ticket: u64) {
        let fence = match &mut self.work {
            Work::Promise(work) => Some(&mut work.fence),
            Work::Adopt(adopt) => adopt.fence_mut(),
            Work::Recruit(recruit) => match &mut recruit.stage {
                Stage::Fence(fence) => Some(fence),
                _ => None,
            },
            Work::None => None,
        };
        if let Some(fence) = fence.filter(|fence| fence.ticket == ticket) {
            fence.drained = true;
        }
    }

    /// What this node says of itself in a dry answer or a promise.
    pub(super) fn report(&self, log: &LogView) -> Report {
        let last_term = if planted(Bug::ReportPromisedTerm) { self.control.promised } else { log.last_term };
        Report {
            incarnation: self.control.incarnation,
            last_term,
            end: log.end,
            committed: log.committed,
            whole: self.control.status.votes() && log.whole,
            history: self.control.history.clone(),
            policy: self.control.policy.clone(),
            pending: self.control.pending.clone(),
        }
    }

    /// Ends whatever runs, because something stronger came.
    pub(super) fn abandon_work(&mut self, now: Mono, why: Refusal, out: &mut Vec<Effect>) {
        let work = std::mem::replace(&mut self.work, Work::None);
        if self.rewriting.take().is_some() {
            // The log was not touched yet: its own history goes back to disk.
            self.persist(out);
        }
        if let Work::Recruit(recruit) = work {
            self.abandon_recruit(now, *recruit, why, out);
        }
    }

    pub(super) fn to_all(&self, message: RoleMessage, out: &mut Vec<Effect>) {
        out.extend(self.everybody().into_iter().map(|to| Effect::Send { to, message: message.clone() }));
    }

    /// Every other node that is known: configured, or a member of a generation.
    pub(super) fn everybody(&self) -> Vec<NodeId> {
        let mut all = self.config.peers.clone();
        all.extend(self.in_force().flat_map(Generation::members).map(|member| member.node));
        all.sort_unstable();
        all.dedup();
        all.retain(|node| *node != self.control.node);
        all
    }

    /// The leader as this node sees it.
    fn leader_seen(&self, now: Mono) -> Option<LeaderSeen> {
        match &self.phase {
            Phase::Following(following) => Some(LeaderSeen {
                node: following.leader,
                term: following.term,
                heard_ms: following.heard.map_or(u64::MAX, |heard| now.since(heard).as_millis() as u64),
            }),
            Phase::Leading(leading) if self.may_read(now) => {
                Some(LeaderSeen { node: self.control.node, term: leading.term, heard_ms: 0 })
            }
            _ => None,
        }
    }

    /// Somebody names a leader that this node does not follow: ask that one.
    fn hear_of_leader(&self, leader: Option<LeaderSeen>, out: &mut Vec<Effect>) {
        let Some(seen) = leader.filter(|seen| seen.node != self.control.node) else { return };
        let followed = self.following().is_some_and(|(_, term)| term == seen.term);
        if seen.term >= self.control.promised && !followed {
            out.push(Effect::Send { to: seen.node, message: RoleMessage::StatusProbe });
        }
    }

    /// The control state as last changed, perhaps not durable yet.
    pub fn control(&self) -> &ControlState {
        &self.control
    }
    pub fn role(&self) -> Role {
        self.role
    }
    pub fn state(&self) -> State {
        self.state
    }

    /// The term this node leads, from its term-start frame on (served or not). `None` while it is fenced itself.
    pub fn leading(&self) -> Option<Term> {
        match &self.phase {
            Phase::Leading(leading) if !leading.suspended => Some(leading.term),
            _ => None,
        }
    }

    /// True from `Effect::Serve` until clients are held or demoted.
    pub fn serving(&self) -> bool {
        matches!(&self.phase, Phase::Leading(leading) if leading.served && !leading.held)
    }

    /// The leader this node streams from.
    pub fn following(&self) -> Option<(NodeId, Term)> {
        match (&self.phase, &self.work) {
            (Phase::Following(following), Work::None) => Some((following.leader, following.term)),
            (Phase::Following(following), Work::Recruit(recruit)) if !recruit.bound() => {
                Some((following.leader, following.term))
            }
            _ => None,
        }
    }
}

/// Whole milliseconds, rounded up: a wait is never told shorter than it is.
pub(super) fn ms_up(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

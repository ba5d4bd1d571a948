//! Changes of the policy at run time (`protocol` 4): a generation is a log record, and from its append to its commit
//! the one before it must be satisfied as well.
//!
//! One change at a time, ordered by an operator or by the voter time-out. With a control store, the store is told of a
//! change that makes commits easier before the record exists, and of the outcome after the commit (`protocol` 4.2): a
//! recruit that believes the store never asks for less than the log may need.

use std::collections::BTreeMap;
use std::time::Duration;

use super::done::{Deed, KnownOp, OpMark, OpRecord};
use super::input::{CommandResult, Done, Effect, Evidence, LogView, PolicyChange, Refusal};
use super::machine::{COMMAND_MAX, Phase, RoleMachine, Work};
use super::message::{LeaderSeen, Report, RoleMessage};
use super::policy::{Generation, PendingGeneration, Voter};
use super::stored::{StoredPolicy, Talked};
use crate::base::limits::{PENDING_MAX, SWITCHOVER_LAG_BYTES_MAX, VOTERS_MAX};
use crate::base::planted::{Bug, planted};
use crate::base::{Lsn, Mono, NodeId};

const ASK_MAX: Duration = Duration::from_millis(600);
const AGAIN: Duration = Duration::from_millis(150);
/// How long a change may take that nobody waits for.
const OWN_MAX: Duration = Duration::from_secs(5);

/// What the control store holds, in the shape in which voters report the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub policy: Generation,
    pub pending: Vec<PendingGeneration>,
}

impl Stored {
    pub fn new(value: &StoredPolicy) -> Stored {
        let at = |generation| PendingGeneration { generation, start: Lsn::ZERO, end: Lsn(1) };
        Stored { policy: value.policy.clone(), pending: value.pending.iter().cloned().map(at).collect() }
    }
}

/// A change of policy under way on its primary.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// `None`: the voter time-out asks.
    op: Option<u64>,
    pub(super) mark: Option<OpMark>,
    wanted: PolicyChange,
    /// Voters that lose their vote only until they are back.
    absent: Vec<NodeId>,
    /// The copies that are meant to be, when this change asks for fewer; see [`Generation::full_k`].
    full_k: u8,
    deadline: Mono,
    attempt: u64,
    reports: BTreeMap<NodeId, (Report, Option<LeaderSeen>)>,
    /// The generation that is wanted, once it is known to be possible.
    next: Option<Generation>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Ask { until: Mono, again: Mono },
    StoreBefore { talk: u64 },
    Append { ticket: u64 },
    Commit,
    StoreAfter { talk: u64 },
}

enum Step {
    Stay,
    Moved,
    Over(CommandResult),
}

impl RoleMachine {
    /// The generations that bind this node's own commits and lease.
    pub(super) fn in_force(&self) -> impl DoubleEndedIterator<Item = &Generation> {
        let pending = &self.control.pending;
        // A forced generation stands for everything before it: that is what was forced.
        let forced = pending.iter().rposition(|pending| pending.generation.forced);
        let policy = forced.is_none().then_some(&self.control.policy);
        let rest = pending[forced.unwrap_or(0)..].iter().map(|pending| &pending.generation);
        policy.into_iter().chain(rest)
    }

    /// The newest generation in this log, committed or not.
    pub(super) fn newest(&self) -> &Generation {
        self.control.pending.last().map_or(&self.control.policy, |pending| &pending.generation)
    }

    /// A log that ends at `end` holds no records above it. True when that changed something.
    pub(super) fn cut_pending(&mut self, end: Lsn) -> bool {
        let before = self.control.pending.len();
        self.control.pending.retain(|pending| pending.end <= end);
        self.refused_from.take_if(|from| *from >= end);
        self.control.pending.len() != before
    }

    /// One more generation that must be satisfied until its record is known to be committed.
    pub(super) fn add_pending(&mut self, pending: PendingGeneration, out: &mut Vec<Effect>) {
        // (term, LSN) names one record: whatever was thought to stand here or above was cut off.
        self.cut_pending(pending.start);
        if self.control.pending.len() == PENDING_MAX {
            self.refused_from = Some(self.refused_from.map_or(pending.start, |from| from.min(pending.start)));
            out.push(Effect::Evidence(
                Evidence::new("too many policy generations wait: nothing is acknowledged from there on")
                    .with("generation", pending.generation.number)
                    .with("start", pending.start),
            ));
            return;
        }
        if self.durable >= self.pending_image {
            self.pending_from = pending.start;
        }
        self.control.pending.push(pending);
        self.pending_image = self.persist(out);
    }

    pub(super) fn policy_appended(&mut self, pending: PendingGeneration, out: &mut Vec<Effect>) {
        if pending.generation.number > self.control.policy.number && !self.control.pending.contains(&pending)
        {
            self.add_pending(pending, out);
        }
    }

    /// A pending generation whose record is committed is in force, and those before it are over.
    pub(super) fn settle_policy(&mut self, log: &LogView, out: &mut Vec<Effect>) {
        let settled = self.control.pending.iter().take_while(|p| p.end <= log.committed.lsn()).count();
        let Some(pending) = self.control.pending.drain(..settled).next_back() else { return };
        let evidence = Evidence::new("policy generation in force")
            .with("generation", pending.generation.number)
            .with("voters", pending.generation.voters.len())
            .with("copies", pending.generation.k);
        self.control.policy = pending.generation;
        self.persist(out);
        out.push(Effect::Evidence(evidence));
    }

    /// The number of the policy generation that is being put into force by a command or by the voter time-out.
    pub fn changing_policy(&self) -> Option<u64> {
        let change = self.change.as_ref()?;
        Some(change.next.as_ref().map_or(self.newest().number + 1, |next| next.number))
    }

    pub(super) fn change_policy(
        &mut self,
        now: Mono,
        (op, mark): (u64, Option<OpMark>),
        wanted: PolicyChange,
        out: &mut Vec<Effect>,
    ) {
        match self.begin_change(now, Some(op), wanted, (Vec::new(), 0)) {
            Ok(()) => self.change.iter_mut().for_each(|change| change.mark = mark),
            Err(refusal) => out.push(Effect::Reply { op, result: Err(refusal) }),
        }
    }

    pub(super) fn begin_change(
        &mut self,
        now: Mono,
        op: Option<u64>,
        wanted: PolicyChange,
        (absent, full_k): (Vec<NodeId>, u8),
    ) -> Result<(), Refusal> {
        let Phase::Leading(leading) = &self.phase else {
            return Err(Refusal::NotPrimary { leader: self.following().map(|(leader, _)| leader) });
        };
        let ready = leading.served && !leading.held && !leading.suspended && matches!(self.work, Work::None);
        if !ready || self.change.is_some() || self.switch.is_some() {
            return Err(Refusal::Busy);
        }
        // A generation that stands alone does not wait for one that cannot be committed any more.
        if let Some(pending) = self.control.pending.last().filter(|_| full_k == 0) {
            return Err(Refusal::ChangePending { generation: pending.generation.number });
        }
        let found = self.newest().number;
        if wanted.expected_generation != 0 && wanted.expected_generation != found {
            return Err(Refusal::StaleGeneration { expected: wanted.expected_generation, found });
        }
        self.check_shape(&wanted)?;
        let attempt = self.rng.next_u64();
        self.change = Some(Box::new(Change {
            op,
            mark: None,
            wanted,
            absent,
            full_k,
            deadline: now + if op.is_some() { COMMAND_MAX } else { OWN_MAX },
            attempt,
            reports: BTreeMap::new(),
            next: None,
            stage: Stage::Ask { until: now + ASK_MAX, again: now },
        }));
        Ok(())
    }

    /// What can be said of a change without asking anybody.
    fn check_shape(&self, wanted: &PolicyChange) -> Result<(), Refusal> {
        let bad = |reason| Err(Refusal::BadPolicy { reason });
        let policy = &self.control.policy;
        let mut voters = wanted.voters.clone();
        voters.sort_unstable();
        voters.dedup();
        if voters.len() != wanted.voters.len() || !(1..=VOTERS_MAX).contains(&voters.len()) {
            return bad("it needs one to nine different voters");
        }
        if usize::from(wanted.k) >= voters.len() {
            return bad(
                "it must ask for fewer copies besides the leader's than it has other voters, or as many",
            );
        }
        if policy.is_seed() {
            return bad("the first generation is not committed yet: wait for it");
        }
        if voters.iter().any(|node| !policy.members().any(|member| member.node == *node)) {
            return bad("it names a node that is no member: add it to the cluster first");
        }
        if !voters.contains(&self.control.node) {
            return bad("the primary is no voter in it: switch over to one of its voters first");
        }
        if wanted.k < policy.k && !self.store_decides() && !wanted.force {
            return bad(
                "it asks for fewer copies, so that a failover without this node may lose what is acknowledged from \
                 now on: without a control store that needs force",
            );
        }
        Ok(())
    }

    pub(super) fn change_reported(
        &mut self,
        from: NodeId,
        attempt: u64,
        leader: Option<LeaderSeen>,
        report: &Report,
    ) {
        if let Some(change) = &mut self.change
            && change.attempt == attempt
        {
            change.reports.insert(from, (report.clone(), leader));
        }
    }

    pub(super) fn advance_change(&mut self, now: Mono, log: &LogView, out: &mut Vec<Effect>) -> bool {
        let Some(mut change) = self.change.take() else { return false };
        let step = self.change_step(now, log, &mut change, out);
        let moved = !matches!(step, Step::Stay);
        match step {
            Step::Stay | Step::Moved => self.change = Some(change),
            Step::Over(result) => {
                if let Ok(Done::PolicyChanged { evidence, .. }) = &result {
                    out.push(Effect::Evidence(evidence.clone()));
                }
                out.extend(change.op.map(|op| Effect::Reply { op, result }));
            }
        }
        moved
    }

    fn change_step(&mut self, now: Mono, log: &LogView, c: &mut Change, out: &mut Vec<Effect>) -> Step {
        let leads = matches!(&self.phase, Phase::Leading(l) if !l.suspended);
        match c.stage {
            Stage::Ask { .. } | Stage::StoreBefore { .. } if !leads => {
                Step::Over(Err(Refusal::Superseded { term: self.control.promised }))
            }
            Stage::Ask { until, again } => self.change_ask(now, log, c, (until, again), out),
            Stage::StoreBefore { talk } if now < c.deadline => {
                let next = c.next.clone().expect("it was judged");
                let old = self.control.policy.clone();
                let waiting = self.control.pending.iter().map(|pending| pending.generation.clone());
                let (policy, pending) = match planted(Bug::PublishPolicyInWrongOrder) {
                    true => (next, vec![]),
                    false => (old, waiting.chain([next]).collect()),
                };
                match self.publish(now, talk, (&policy, &pending), out) {
                    Talked::Wait => Step::Stay,
                    Talked::Done => self.change_append(c, out),
                    Talked::Refused(refusal) => Step::Over(Err(refusal)),
                }
            }
            Stage::Commit if c.next.as_ref().is_some_and(|next| self.control.policy == *next) => {
                if !self.config.store || planted(Bug::PublishPolicyInWrongOrder) {
                    return self.changed(c);
                }
                c.stage = Stage::StoreAfter { talk: self.store_talk() };
                Step::Moved
            }
            Stage::StoreAfter { talk } if now < c.deadline => {
                let policy = self.control.policy.clone();
                match self.publish(now, talk, (&policy, &[]), out) {
                    Talked::Wait => Step::Stay,
                    // It is in force. A store that could not be told now is told by this leader's next look.
                    Talked::Done | Talked::Refused(_) => self.changed(c),
                }
            }
            _ if now >= c.deadline => Step::Over(Err(match c.stage {
                Stage::Ask { .. } => Refusal::Timeout { stage: "the voters' answers; nothing was changed" },
                Stage::StoreBefore { .. } => {
                    Refusal::Timeout { stage: "the control store; nothing was changed in the log" }
                }
                Stage::Append { .. } | Stage::Commit => Refusal::OutcomeUnknown {
                    stage: "the commit of the generation; it is in the log and may still be committed",
                },
                Stage::StoreAfter { .. } => {
                    Refusal::Timeout { stage: "the control store; the generation is in force" }
                }
            })),
            _ => Step::Stay,
        }
    }

    /// One step towards a store that holds this.
    fn publish(
        &mut self,
        now: Mono,
        talk: u64,
        word: (&Generation, &[Generation]),
        out: &mut Vec<Effect>,
    ) -> Talked {
        let mut decide =
            |machine: &RoleMachine, stands: Option<&StoredPolicy>| machine.leaders_word(now, stands, word);
        self.store_step(now, talk, &mut decide, out)
    }

    fn changed(&self, c: &Change) -> Step {
        let next = c.next.as_ref().expect("it is in force");
        let evidence = Evidence::new("policy changed")
            .with("generation", next.number)
            .with("voters", next.voters.len())
            .with("copies besides the leader's", next.k);
        Step::Over(Ok(Done::PolicyChanged { generation: next.number, evidence }))
    }

    fn change_ask(
        &mut self,
        now: Mono,
        log: &LogView,
        c: &mut Change,
        (until, again): (Mono, Mono),
        out: &mut Vec<Effect>,
    ) -> Step {
        let silent = |node: &NodeId| !c.reports.contains_key(node) && !self.gone.contains(node);
        let missing: Vec<NodeId> =
            c.wanted.voters.iter().copied().filter(|n| *n != self.control.node && silent(n)).collect();
        if !missing.is_empty() && now < until {
            if now >= again {
                let message = RoleMessage::Dry { attempt: c.attempt };
                out.extend(missing.into_iter().map(|to| Effect::Send { to, message: message.clone() }));
                c.stage = Stage::Ask { until, again: now + AGAIN };
            }
            return Step::Stay;
        }
        let next = match self.judge_change(now, log, c) {
            Ok(next) => next,
            Err(refusal) => return Step::Over(Err(refusal)),
        };
        if c.wanted.dry_run {
            let evidence = Evidence::new("policy change")
                .with("generation", next.number)
                .with("voters", next.voters.len())
                .with("answering", c.reports.len() + 1)
                .with("copies besides the leader's", next.k);
            return Step::Over(Ok(Done::Would { evidence }));
        }
        let old = &self.control.policy;
        let joins = next.voters.iter().any(|voter| !old.voters.contains(voter));
        let easier = joins || next.k < old.k;
        c.next = Some(next.clone());
        let wrong = planted(Bug::PublishPolicyInWrongOrder);
        if !self.config.store || (!easier && !wrong) {
            return self.change_append(c, out);
        }
        c.stage = Stage::StoreBefore { talk: self.store_talk() };
        Step::Moved
    }

    /// The generation that was asked for, or why it cannot be.
    fn judge_change(&self, now: Mono, log: &LogView, c: &Change) -> Result<Generation, Refusal> {
        let bad = |reason| Err(Refusal::BadPolicy { reason });
        let old = self.newest();
        let me = Voter { node: self.control.node, incarnation: self.control.incarnation };
        let mut voters = Vec::new();
        let mut live = 0;
        for node in &c.wanted.voters {
            let listed = old.voters.iter().find(|voter| voter.node == *node).copied();
            let told = c.reports.get(node);
            let follows = |leader: &Option<LeaderSeen>| leader.is_some_and(|seen| seen.node == me.node);
            let fit = told.filter(|(report, leader)| {
                let behind = log.end.0.saturating_sub(report.end.0);
                report.whole && follows(leader) && behind <= SWITCHOVER_LAG_BYTES_MAX
            });
            let voter = match (listed, fit) {
                _ if *node == me.node => me,
                (Some(listed), Some((report, _))) if listed.incarnation == report.incarnation => listed,
                // A voter that is merely silent, or whose disk was lost, keeps its old place: its vote does not count.
                (Some(listed), None) => {
                    voters.push(listed);
                    continue;
                }
                (_, Some((report, _))) => Voter { node: *node, incarnation: report.incarnation },
                (None, None) => {
                    return bad(
                        "a new voter does not answer, is not whole, or is too far behind: learners never vote",
                    );
                }
            };
            voters.push(voter);
            live += 1;
        }
        let k = c.wanted.k;
        if live < usize::from(k) + 1 {
            return bad("fewer of these voters answer than a commit would need: writes would stop at once");
        }
        let recent = self.config.lease * 2;
        let alive = |node: NodeId| {
            // Nobody was heard of yet in the first moments of a term: its start was committed by enough of them.
            let heard = self.voter_heard.get(&node).map(|at| now.since(*at) < recent);
            node == me.node || heard.unwrap_or(!self.gone.contains(&node))
        };
        let old_live = old.voters.iter().filter(|voter| alive(voter.node)).count();
        let enough = old_live > usize::from(old.k);
        // The store keeps everybody else from being promoted past a generation that stands alone.
        let forced_down = k < old.k && (c.wanted.force || self.store_decides());
        if !enough && !forced_down {
            return bad(
                "too few voters of the present generation live to commit the change: bring them back",
            );
        }
        let standby = |member: &&Voter| !voters.iter().any(|voter| voter.node == member.node);
        let standbys: Vec<Voter> = old.members().filter(standby).copied().collect();
        let absent = c.absent.iter().copied().filter(|n| standbys.iter().any(|s| s.node == *n)).collect();
        let number = old.number + 1;
        // A forced generation stands alone when the one before it cannot be satisfied any more.
        let forced = !enough || !self.control.pending.is_empty();
        let full_k = if c.full_k > k { c.full_k } else { 0 };
        let store = self.config.store && (old.store || self.store_agrees());
        let first = c.wanted.first;
        let next = Generation { number, voters, k, first, forced, standbys, absent, store, full_k };
        if next.voters == old.voters
            && (next.k, next.first, next.store, next.full_k) == (old.k, old.first, old.store, old.full_k)
            && next.absent == old.absent
        {
            return bad("it is what is in force already");
        }
        assert!(next.is_sound(), "a checked change of members makes a sound generation");
        Ok(next)
    }

    fn change_append(&mut self, c: &mut Change, out: &mut Vec<Effect>) -> Step {
        let next = c.next.clone().expect("it was judged");
        let mut generation = Vec::new();
        next.encode(&mut generation);
        let ticket = self.ticket();
        let op = RoleMachine::op_bytes(c.mark, Deed::Policy { generation: next.number });
        self.recording = Some((ticket, next, c.mark));
        out.push(Effect::AppendPolicy { ticket, generation, op });
        c.stage = Stage::Append { ticket };
        Step::Moved
    }

    /// The record is in this log, whatever has become of the change meanwhile.
    pub(super) fn policy_recorded(&mut self, answered: u64, start: Lsn, end: Lsn, out: &mut Vec<Effect>) {
        let Some((_, generation, mark)) = self.recording.take_if(|(ticket, ..)| *ticket == answered) else {
            return;
        };
        if let Some(mark) = mark {
            let op = OpRecord { mark, deed: Deed::Policy { generation: generation.number } };
            self.op_appended(KnownOp { op, start, end });
        }
        self.add_pending(PendingGeneration { generation, start, end }, out);
        if let Some(change) = &mut self.change
            && matches!(change.stage, Stage::Append { ticket } if ticket == answered)
        {
            change.stage = Stage::Commit;
        }
    }

    /// True when every recruit has to ask the store: it is in the policy that all recruits learn of.
    pub(super) fn store_decides(&self) -> bool {
        self.config.store && self.control.policy.store
    }

    pub(super) fn drop_change(&mut self, why: Refusal, out: &mut Vec<Effect>) {
        self.voter_heard.clear();
        if let Some(op) = self.change.take().and_then(|change| change.op) {
            out.push(Effect::Reply { op, result: Err(why) });
        }
    }
}

//! Admin requests: which are answered at once, which wait for the role machine, and how the node stops.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::admin::{ErrorCode, Keeper, Request, Response, StopMode, Verb, WalKeepers, WantedRole};
use crate::base::limits::HISTORY_ROWS_MAX;
use crate::base::{Lsn, Mono, NodeId};
use crate::cluster::History;
use crate::config::SyncKind;
use crate::io::{ConnId, Seam};
use crate::role::{
    Command, CommandResult, Deed, Done, Evidence, OpMark, PolicyChange, Refusal, RefusalKind, Unfit,
};

use super::Node;
use super::control::ControlMessage;
use super::forward::PassedOn;
use super::rates::Rate;
use super::run::role_fits;
use super::status::PeerRows;
use super::streams::SenderSlot;

/// The op of `-M primary`, asked for by nobody who waits.
pub const START_OP: u64 = 0;
/// How long a cluster question waits for the rows of other nodes.
const ROWS_PATIENCE: Duration = Duration::from_millis(600);

/// Where an answer will stand that is sent in a later turn.
pub type Slot = Arc<Mutex<Option<Response>>>;
pub type Answer = Box<dyn FnOnce(Response) + Send>;

/// Requests under way.
#[derive(Default)]
pub struct Admin {
    /// Commands of the role machine, by their op number.
    commands: BTreeMap<u64, Pending>,
    pub next_op: u64,
    questions: Vec<(Request, Answer, Mono)>,
    pub peers: PeerRows,
    pub rates: BTreeMap<NodeId, Rate>,
    /// Requests that another node carries out, by the number under which it was asked.
    pub passed_on: BTreeMap<u64, PassedOn>,
    /// Requests of peers that are carried out here, and where their answers will stand.
    pub for_peers: Vec<(ConnId, u64, Slot)>,
    /// What the failover under way could lose.
    stake: Option<serde_json::Value>,
}

struct Pending {
    asker: Asker,
    until: Mono,
}

/// Who waits for the role machine's answer.
pub enum Asker {
    Admin {
        request: Request,
        reply: Answer,
    },
    /// A client that sent a role command.
    Client {
        conn: ConnId,
    },
    /// The answer goes to the log alone.
    Nobody {
        what: &'static str,
    },
}

/// An ordered stop under way.
pub struct Stopping {
    since: Mono,
    /// Who ordered it: answered when it is done, with what the standbys hold.
    waiting: Vec<(Request, Answer)>,
}

impl<S: Seam> Node<S> {
    /// Takes what other threads have left.
    pub(super) fn take_mail(&mut self) {
        loop {
            let message = match &self.mailbox {
                Some(mailbox) => mailbox.try_recv(),
                None => return,
            };
            let Ok(ControlMessage { request, reply }) = message else { return };
            self.admin_request(request, reply);
        }
    }

    /// Carries a request out, or starts to.
    pub fn admin_request(&mut self, request: Request, reply: Answer) {
        if let Some(answer) = self.answered_before(&request) {
            return reply(answer);
        }
        match &request.verb {
            Verb::Ping => reply(Response::done(&request, serde_json::json!({ "pid": std::process::id() }))),
            Verb::Status => reply(Response::done_with(&request, &self.own_status())),
            Verb::Query | Verb::PolicyShow
                if self.role.leading().is_some() || self.admin.peers.heard(self.now) =>
            {
                reply(self.answer_question(&request));
            }
            // What only the primary knows is asked of it.
            Verb::Query | Verb::PolicyShow | Verb::ClusterStatus { .. } => {
                self.ask_peers();
                self.admin.questions.push((request, reply, self.now + ROWS_PATIENCE));
                self.answer_cluster_questions();
            }
            Verb::WalKeepers => reply(Response::done_with(&request, &self.keepers())),
            Verb::ConfigShow => reply(Response::done(&request, self.config.show())),
            Verb::Metrics => {
                let text = self.metrics_text();
                reply(Response::done(&request, serde_json::json!({ "text": text })));
            }
            Verb::Stop { mode: StopMode::Fast } => {
                self.stop_fast();
                self.stopping.as_mut().expect("just ordered").waiting.push((request, reply));
            }
            Verb::Stop { mode: StopMode::Immediate } => {
                reply(Response::done(&request, serde_json::json!({ "stopping": true })));
                self.exit = Some(0);
            }
            Verb::Failover(_) => self.failover(request, reply),
            Verb::Switchover(_) => self.switchover(request, reply),
            Verb::PolicySet(_) => self.policy_set(request, reply),
            Verb::FinalizeUpgrade => self.finalize_upgrade(request, reply),
            Verb::Role { role, alone } => {
                let (role, alone) = (*role, *alone);
                self.role_wanted(request, reply, role, alone);
            }
            Verb::History { limit } => {
                let limit = if *limit == 0 { HISTORY_ROWS_MAX } else { *limit };
                let rows = self.chronicle.newest(limit);
                reply(Response::done_with(&request, &History { rows }));
            }
            Verb::Reload { .. } => reply(self.reload(&request)),
        }
    }

    /// The answer to a change that this log says was made, by whatever node. Before anything else is looked at: what the
    /// change was judged by then is not so any more.
    fn answered_before(&self, request: &Request) -> Option<Response> {
        match self.role.op_known(&self.log_view(), mark_of(request)?)? {
            Ok(done) => Some(Response::done(request, done_json(&done))),
            Err(refusal @ Refusal::OpReused) => Some(refusal_response(request, &refusal)),
            // Whoever leads may know more.
            Err(_) => None,
        }
    }

    /// Notes who asks, for the history of what follows.
    pub(super) fn asked(&mut self, what: &str, op: &str) {
        self.chronicle.asked = format!("{what} (op {op})");
    }

    /// Refuses a change that was decided on an older view of the cluster.
    fn stale(&self, request: &Request, expected: Option<u64>) -> Option<Response> {
        let term = self.role.control().history.last().map_or(0, |(term, _)| term.number);
        let expected = expected.filter(|expected| *expected != term)?;
        let text = format!("the newest term here is {term}, not {expected}: somebody was faster");
        Some(Response::failed(&request.op, ErrorCode::Refused, text, "look at `baton query` first"))
    }

    fn switchover(&mut self, request: Request, reply: Answer) {
        let Verb::Switchover(wanted) = &request.verb else { unreachable!("the caller matched it") };
        if let Some(refusal) = self.stale(&request, wanted.expect_term) {
            return reply(refusal);
        }
        let timeout = wanted.timeout();
        let to = wanted.to.map(NodeId);
        if let Some(target) = to
            && self.config.member(target).is_none()
        {
            return reply(refusal_response(
                &request,
                &Refusal::TargetUnfit { node: target, reason: Unfit::Unknown },
            ));
        }
        if let Some((leader, _)) = self.role.following()
            && self.role.leading().is_none()
            && self.links.any_to(leader).is_none()
        {
            let text = format!("the primary, node {leader}, cannot be reached from here");
            let hint = "nothing was changed; is it dead? then `baton failover` on a standby";
            return reply(Response::failed(&request.op, ErrorCode::WrongRole, text, hint));
        }
        if self.pending && to.is_none_or(|to| to == self.me()) {
            let refusal = Refusal::TargetUnfit { node: self.me(), reason: Unfit::NotFollowing };
            return reply(refusal_response(&request, &refusal));
        }
        if !wanted.dry_run {
            self.asked("switchover", &request.op);
        }
        let command = Command::Switchover { to, dry_run: wanted.dry_run, timeout };
        let until = self.now + request.verb.patience();
        self.order(Asker::Admin { request, reply }, until, command);
    }

    fn policy_set(&mut self, request: Request, reply: Answer) {
        let Verb::PolicySet(wanted) = &request.verb else { unreachable!("the caller matched it") };
        if self.role.leading().is_none() {
            return self.pass_on(request, reply);
        }
        let members: Vec<NodeId> =
            self.config.members.iter().filter(|m| m.upstream.is_none()).map(|m| m.node).collect();
        let rule = match crate::config::sync::parse(&wanted.rule, &members) {
            Ok(rule) => rule,
            Err((what, hint)) => return reply(Response::failed(&request.op, ErrorCode::Refused, what, hint)),
        };
        let change = PolicyChange {
            expected_generation: wanted.expect_generation,
            voters: rule.voters,
            k: u8::try_from(rule.k).expect("a rule has few voters"),
            first: rule.kind == SyncKind::First,
            force: wanted.force,
            dry_run: wanted.dry_run,
        };
        let until = self.now + wanted.timeout();
        if !wanted.dry_run {
            self.asked("policy set", &request.op);
        }
        self.order(Asker::Admin { request, reply }, until, Command::ChangePolicy(change));
    }

    /// `-M ROLE` for a node that runs.
    fn role_wanted(&mut self, request: Request, reply: Answer, role: WantedRole, alone: bool) {
        if let Err(text) = role_fits(&self.config, role) {
            let hint = "correct `upstream` in the configuration, or ask for the other role";
            return reply(Response::failed(&request.op, ErrorCode::Refused, text, hint));
        }
        let until = self.now + request.verb.patience();
        self.asked("start -M", &request.op);
        match role {
            WantedRole::Primary => {
                if let Some(text) = self.copied_folder() {
                    return reply(copied(&request, text));
                }
                self.stay_aside(false);
                let command = Command::RequestPrimary { alone, force: false };
                self.order(Asker::Admin { request, reply }, until, command);
            }
            WantedRole::Standby | WantedRole::CascadeStandby => {
                self.stay_aside(false);
                self.order(Asker::Admin { request, reply }, until, Command::RequestStandby);
            }
            WantedRole::Pending => {
                if let Some(term) = self.role.leading() {
                    let refusal = Refusal::PrimaryAlive { node: self.me(), term };
                    return reply(refusal_response(&request, &refusal));
                }
                self.stay_aside(true);
                self.streams.receiver = None;
                self.streams.requested = None;
                self.publish_status();
                reply(Response::done(&request, serde_json::json!({ "role": "Pending" })));
            }
        }
    }

    /// `-M pending`, or its end.
    pub(super) fn stay_aside(&mut self, aside: bool) {
        self.pending = aside;
        self.role.keep_out(aside);
    }

    /// Hands a command to the role machine and remembers who waits for its answer.
    pub(super) fn order(&mut self, asker: Asker, until: Mono, command: Command) {
        self.admin.next_op += 1;
        let op = self.admin.next_op;
        let mark = match &asker {
            Asker::Admin { request, .. } => mark_of(request),
            Asker::Client { .. } | Asker::Nobody { .. } => None,
        };
        self.admin.commands.insert(op, Pending { asker, until });
        self.command(op, mark, command);
    }

    fn failover(&mut self, request: Request, reply: Answer) {
        let Verb::Failover(wanted) = &request.verb else { unreachable!("the caller matched it") };
        if let Some(refusal) = self.stale(&request, wanted.expect_term) {
            return reply(refusal);
        }
        if self.config.me().nofailover && !wanted.force && self.role.leading().is_none() {
            let text = format!("node {} is configured never to take over (nofailover)", self.me());
            let hint = "promote another node, or insist with --force";
            return reply(Response::failed(&request.op, ErrorCode::Refused, text, hint));
        }
        if let Some(text) = self.copied_folder() {
            return reply(copied(&request, text));
        }
        let leads = self.role.leading().is_some();
        let stake = self.at_stake();
        let command = Command::Failover {
            dry_run: wanted.dry_run,
            alone: wanted.alone,
            // Confirming a loss says nothing about a primary that may be alive.
            force: wanted.force || (wanted.alone && wanted.accept_loss),
        };
        let until = self.now + wanted.timeout();
        if !wanted.dry_run {
            self.stay_aside(false);
            if !leads {
                self.asked(if wanted.force { "failover --force" } else { "failover" }, &request.op);
            }
            if (wanted.force || wanted.alone) && !leads {
                self.note("asked", "", "a forced failover", None, stake_in_words(&stake));
            }
        }
        self.admin.stake = (!leads).then_some(stake);
        self.order(Asker::Admin { request, reply }, until, command);
    }

    /// What a failover to this node could lose, as far as it can know: everything behind its own end that the old
    /// primary may have acknowledged alone. Its end is what it last told; what it wrote since then nobody can see here.
    fn at_stake(&self) -> serde_json::Value {
        let from = self.log.wal.end().end;
        let told = self.streams.leader_end.max(from);
        let heard = self.streams.leader_heard;
        let silent = (heard.0 > 0).then(|| self.now.since(heard).as_millis() as u64);
        serde_json::json!({
            "from_lsn": from.0, "to_lsn_last_told": told.0, "bytes_known": told.since(from),
            "unheard_ms": silent, "uncommitted_kept_bytes": from.since(self.committed.lsn()),
        })
    }

    /// The role machine's answer to a command.
    pub(super) fn answer_command(&mut self, op: u64, result: CommandResult) {
        if op == START_OP {
            match &result {
                Ok(done) => tracing::info!(%done, "start request carried out"),
                Err(refusal) => tracing::warn!(%refusal, "start request refused"),
            }
            return;
        }
        let Some(Pending { asker, .. }) = self.admin.commands.remove(&op) else { return };
        if result.is_err() && !matches!(&asker, Asker::Admin { .. }) {
            self.chronicle.asked.clear();
        }
        match asker {
            Asker::Admin { request, reply } => {
                let stake = match &request.verb {
                    Verb::Failover(_) => self.admin.stake.take(),
                    _ => None,
                };
                let mut response = match &result {
                    Ok(done) => Response::done(&request, done_json(done)),
                    Err(refusal) => refusal_response(&request, refusal),
                };
                if let (Some(stake), Some(fields)) = (stake, response.result.as_object_mut()) {
                    fields.insert("at_stake".into(), stake);
                }
                if let (Verb::Role { .. }, Some(fields)) = (&request.verb, response.result.as_object_mut())
                    && fields.contains_key("role")
                {
                    fields.insert("role".into(), self.shown_role().word().into());
                }
                if let (Verb::Failover(wanted), Err(refusal)) = (&request.verb, &result)
                    && (wanted.force || wanted.alone)
                    && !wanted.dry_run
                {
                    self.note("asked", "", "a forced failover: not done", None, refusal.to_string());
                }
                if let (Verb::Failover(wanted), Some(fields)) =
                    (&request.verb, response.result.as_object_mut())
                    && wanted.dry_run
                {
                    fields.insert("dry_run".into(), true.into());
                }
                // The change of a policy has its row; a change of role may have its own yet.
                let over = result.is_err() || matches!(request.verb, Verb::PolicySet(_));
                reply(response);
                if over {
                    self.chronicle.asked.clear();
                }
            }
            Asker::Client { conn } => {
                let answer = result.map(|_| ()).map_err(|refusal| refusal.to_string());
                self.clients.told.push((conn, answer));
                self.gates_moved = true;
            }
            Asker::Nobody { what } => match result {
                Ok(done) => tracing::info!(?done, what, "carried out"),
                Err(refusal) => tracing::warn!(%refusal, what, "refused"),
            },
        }
    }

    pub(super) fn admin_timers(&mut self) {
        let late: Vec<u64> =
            self.admin.commands.iter().filter(|(_, p)| self.now > p.until).map(|(op, _)| *op).collect();
        for op in late {
            let text = "not finished in time; a term that was started goes on and may still succeed";
            match self.admin.commands.remove(&op).expect("just seen").asker {
                Asker::Admin { request, reply } => {
                    reply(Response::failed(
                        &request.op,
                        ErrorCode::UnknownOutcome,
                        text,
                        "look at `baton query`",
                    ));
                }
                Asker::Client { conn } => self.clients.told.push((conn, Err(text.to_string()))),
                Asker::Nobody { what } => tracing::warn!(what, text),
            }
        }
        self.answer_cluster_questions();
        self.passed_on_timers();
    }

    /// Answers cluster questions whose rows are in, or that have waited long enough.
    pub(super) fn answer_cluster_questions(&mut self) {
        if self.admin.questions.is_empty() {
            return;
        }
        let complete = self.admin.peers.all_in();
        let (ready, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.admin.questions)
            .into_iter()
            .partition(|(_, _, until)| complete || self.now >= *until);
        self.admin.questions = waiting;
        if ready.is_empty() {
            return;
        }
        for (request, reply, _) in ready {
            reply(self.answer_question(&request));
        }
    }

    fn answer_question(&self, request: &Request) -> Response {
        match request.verb {
            Verb::Query => Response::done_with(request, &self.query_status()),
            Verb::PolicyShow => Response::done_with(request, &self.policy_known()),
            _ => Response::done_with(request, &self.cluster_status()),
        }
    }

    fn keepers(&self) -> WalKeepers {
        let end = self.log.wal.end().end;
        let mut keepers = Vec::new();
        let mut keep = |reason: String, from: Lsn| {
            keepers.push(Keeper { reason, from_lsn: from.0, bytes: end.since(from) });
        };
        keep("redo (oldest checkpoint)".into(), self.data.store.redo_from());
        keep("commit".into(), self.committed.lsn());
        for slot in self.streams.senders.values() {
            keep(format!("standby {}", slot.sender.peer().node), slot.sender.keeps());
        }
        WalKeepers {
            first_lsn: self.log.oldest().0,
            end_lsn: end.0,
            kept_bytes: self.log.keeper.segment_bytes(),
            budget_bytes: self.log.retention.budget,
            keepers,
        }
    }

    fn metrics_text(&mut self) -> String {
        let memory = self.data_memory;
        let gauge = &mut self.metrics.gauge;
        gauge.clients_connected = self.clients.len() as u64;
        gauge.replies_waiting = self.clients.gated() as u64;
        gauge.peers_connected = self.links.sessions().count() as u64;
        gauge.appended_lsn = self.log.wal.end().end.0;
        gauge.flushed_lsn = self.log.wal.flushed().lsn().0;
        gauge.committed_lsn = self.committed.lsn().0;
        gauge.applied_lsn = self.data.applied.lsn().0;
        gauge.term = self.role.control().history.last().map_or(0, |(term, _)| term.number);
        gauge.is_primary = u64::from(self.role.leading().is_some());
        gauge.delta_bytes = (memory.delta_bytes + memory.frozen_bytes) as u64;
        gauge.cache_bytes = memory.cache_bytes as u64;
        gauge.pages_damaged_now = self.data.store.damaged_pages().count() as u64;
        gauge.root_disputes = self.roots.disputes.len() as u64;
        gauge.wal_kept_bytes = self.log.keeper.segment_bytes();
        self.metrics.snapshot().prometheus()
    }

    // ---- stopping ----

    /// Ends in order: clients are closed with the truth about their writes, what was accepted is flushed.
    pub fn stop_fast(&mut self) {
        if self.stopping.is_none() {
            tracing::info!("stopping: no new clients, finishing what was accepted");
            self.stopping = Some(Stopping { since: self.now, waiting: Vec::new() });
        }
    }

    /// Exits when nothing is under way any more, or after a bounded wait.
    pub(super) fn continue_stop(&mut self) {
        const DRAIN: Duration = Duration::from_secs(3);
        const FAREWELL: Duration = Duration::from_millis(200);
        let Some(Stopping { since, .. }) = self.stopping else { return };
        let waited = self.now.since(since);
        let settled = self.log.wal.idle() && self.log.wal.writer().is_empty() && self.clients.gated() == 0;
        // The last of the log reaches every standby that listens, so that any of them can go on from there.
        let end = self.log.wal.end().end;
        let holds = |slot: &SenderSlot| slot.sender.acked().is_some_and(|acked| acked.flushed.lsn() >= end);
        let shipped = self.role.leading().is_none() || self.streams.senders.values().all(holds);
        if !(settled && shipped) && waited < DRAIN {
            self.gates_moved = true;
            return;
        }
        if !self.clients.map.is_empty() && waited < DRAIN + FAREWELL {
            self.close_clients_unknown();
            return;
        }
        tracing::info!(%end, committed = %self.committed, "stopped");
        self.note("stop", "", "in order", None, String::new());
        let standbys: Vec<_> = self
            .streams
            .senders
            .values()
            .map(|slot| {
                let flushed = slot.sender.acked().map_or(0, |acked| acked.flushed.lsn().0);
                let node = slot.sender.peer().node.0;
                serde_json::json!({ "node": node, "flushed_lsn": flushed, "holds": holds(slot) })
            })
            .collect();
        let result = serde_json::json!({ "stopping": true, "final_lsn": end.0, "standbys": standbys });
        let waiting = self.stopping.as_mut().map(|stopping| std::mem::take(&mut stopping.waiting));
        for (request, reply) in waiting.into_iter().flatten() {
            reply(Response::done(&request, result.clone()));
        }
        self.exit = Some(0);
    }
}

fn stake_in_words(stake: &serde_json::Value) -> String {
    format!(
        "at stake: lsn {} to {} as last told ({} bytes), and what the old primary wrote in the {} ms since",
        stake["from_lsn"], stake["to_lsn_last_told"], stake["bytes_known"], stake["unheard_ms"]
    )
}

/// What a copied folder is told that shall lead.
fn copied(request: &Request, text: String) -> Response {
    let hint = "nothing was changed; stop one of the two: no two processes may be the same node";
    Response::failed(&request.op, ErrorCode::Refused, text, hint)
}

/// What the cluster remembers a request by, if it does.
fn mark_of(request: &Request) -> Option<OpMark> {
    let line = serde_json::to_vec(&request.verb).ok().filter(|_| request.verb.is_kept_by_all())?;
    Some(OpMark::new(&request.op, &line))
}

fn evidence_json(evidence: &Evidence) -> serde_json::Value {
    let mut map = serde_json::Map::new();
    map.insert("what".into(), evidence.what.into());
    for (name, value) in &evidence.fields {
        map.insert((*name).into(), value.clone().into());
    }
    map.into()
}

fn done_json(done: &Done) -> serde_json::Value {
    match done {
        Done::Primary { term, start, evidence } => serde_json::json!({
            "role": "Primary", "term": term.number, "term_id": format!("{:032x}", term.id),
            "start_lsn": start.0, "evidence": evidence_json(evidence),
        }),
        Done::Would { evidence } => {
            serde_json::json!({ "dry_run": true, "evidence": evidence_json(evidence) })
        }
        Done::Following { leader, term } => {
            serde_json::json!({ "role": "Standby", "leader": leader.0, "term": term.number })
        }
        Done::Standby => serde_json::json!({ "role": "Standby" }),
        Done::SwitchedOver { leader, term, evidence } => serde_json::json!({
            "leader": leader.0, "term": term.number, "term_id": format!("{:032x}", term.id),
            "evidence": evidence_json(evidence),
        }),
        Done::SwitchoverAborted { term } => serde_json::json!({ "aborted": true, "term": term.number }),
        Done::PolicyChanged { generation, evidence } => {
            serde_json::json!({ "generation": generation, "evidence": evidence_json(evidence) })
        }
        Done::Before { deed: Deed::Led { leader, term }, start } => serde_json::json!({
            "before": true, "leader": leader.0, "term": term.number, "term_id": format!("{:032x}", term.id),
            "start_lsn": start.0,
        }),
        Done::Before { deed: Deed::Policy { generation }, .. } => {
            serde_json::json!({ "before": true, "generation": generation })
        }
    }
}

fn refusal_response(request: &Request, refusal: &Refusal) -> Response {
    let (code, hint) = match (refusal, refusal.kind()) {
        (Refusal::LogFailed, _) => (ErrorCode::Failed, "restart or replace this node"),
        (Refusal::NotPrimary { .. }, _) => (ErrorCode::WrongRole, "ask the primary; nothing was changed"),
        (_, RefusalKind::NoQuorum) => (ErrorCode::NoQuorum, "start more voters and ask again"),
        (_, RefusalKind::Late) => (ErrorCode::Timeout, "look at `baton query`, then ask again"),
        (_, RefusalKind::Unknown) => (ErrorCode::UnknownOutcome, "look at `baton cluster status`"),
        (_, RefusalKind::Refused) => (ErrorCode::Refused, "nothing was changed"),
        (_, RefusalKind::OpReused) => (ErrorCode::OpReused, "choose a new op id"),
    };
    Response::failed(&request.op, code, refusal.to_string(), hint)
}

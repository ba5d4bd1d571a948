//! Admin requests: which are answered at once, which wait for the role machine, and how the node stops.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::admin::{ErrorCode, Keeper, Request, Response, StopMode, Verb, WalKeepers};
use crate::base::{Lsn, Mono};
use crate::io::Seam;
use crate::role::{Command, CommandResult, Done, Evidence, Refusal};

use super::Node;
use super::control::ControlMessage;
use super::status::PeerRows;

/// The op of `-M primary`, asked for by nobody who waits.
pub const START_OP: u64 = 0;
/// How long a cluster question waits for the rows of other nodes.
const ROWS_PATIENCE: Duration = Duration::from_millis(600);

type Answer = Box<dyn FnOnce(Response) + Send>;

/// Requests under way.
#[derive(Default)]
pub struct Admin {
    /// Commands of the role machine, by their op number.
    commands: BTreeMap<u64, Pending>,
    next_op: u64,
    questions: Vec<(Request, Answer, Mono)>,
    pub peers: PeerRows,
}

struct Pending {
    request: Request,
    reply: Answer,
    until: Mono,
}

/// An ordered stop under way.
#[derive(Debug)]
pub struct Stopping {
    since: Mono,
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
        match &request.verb {
            Verb::Ping => reply(Response::done(&request, serde_json::json!({ "pid": std::process::id() }))),
            Verb::Status => reply(Response::done_with(&request, &self.own_status())),
            Verb::Query => reply(Response::done_with(&request, &self.query_status())),
            Verb::PolicyShow => reply(Response::done_with(&request, &self.policy_status())),
            Verb::ClusterStatus { .. } => {
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
            Verb::Stop { mode } => {
                let mode = *mode;
                reply(Response::done(&request, serde_json::json!({ "stopping": true })));
                match mode {
                    StopMode::Fast => self.stop_fast(),
                    StopMode::Immediate => self.exit = Some(0),
                }
            }
            Verb::Failover(_) => self.failover(request, reply),
        }
    }

    fn failover(&mut self, request: Request, reply: Answer) {
        let Verb::Failover(wanted) = &request.verb else { unreachable!("the caller matched it") };
        let term = self.role.control().history.last().map_or(0, |(term, _)| term.number);
        if let Some(expected) = wanted.expect_term
            && expected != term
        {
            let text = format!("the newest term here is {term}, not {expected}: somebody was faster");
            let response =
                Response::failed(&request.op, ErrorCode::Refused, text, "look at `baton query` first");
            return reply(response);
        }
        let command = Command::Failover {
            dry_run: wanted.dry_run,
            alone: wanted.alone,
            // Confirming a loss says nothing about a primary that may be alive.
            force: wanted.force || (wanted.alone && wanted.accept_loss),
        };
        self.admin.next_op += 1;
        let op = self.admin.next_op;
        let until = self.now + wanted.timeout();
        self.admin.commands.insert(op, Pending { request, reply, until });
        self.command(op, command);
    }

    /// The role machine's answer to a command.
    pub(super) fn answer_command(&mut self, op: u64, result: CommandResult) {
        if op == START_OP {
            match &result {
                Ok(done) => tracing::info!(?done, "start request carried out"),
                Err(refusal) => tracing::warn!(%refusal, "start request refused"),
            }
            return;
        }
        let Some(Pending { request, reply, .. }) = self.admin.commands.remove(&op) else { return };
        reply(match result {
            Ok(done) => Response::done(&request, done_json(&done)),
            Err(refusal) => refusal_response(&request, &refusal),
        });
    }

    pub(super) fn admin_timers(&mut self) {
        let late: Vec<u64> =
            self.admin.commands.iter().filter(|(_, p)| self.now > p.until).map(|(op, _)| *op).collect();
        for op in late {
            let Pending { request, reply, .. } = self.admin.commands.remove(&op).expect("just seen");
            let text = "not finished in time; a term that was started goes on and may still succeed";
            reply(Response::failed(&request.op, ErrorCode::UnknownOutcome, text, "look at `baton query`"));
        }
        self.answer_cluster_questions();
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
        let status = self.cluster_status();
        for (request, reply, _) in ready {
            reply(Response::done_with(&request, &status));
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
            budget_bytes: self.config.log_retention.unwrap_or(super::log::RETENTION_DEFAULT),
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
            self.stopping = Some(Stopping { since: self.now });
        }
    }

    /// Exits when nothing is under way any more, or after a bounded wait.
    pub(super) fn continue_stop(&mut self) {
        const DRAIN: Duration = Duration::from_secs(3);
        const FAREWELL: Duration = Duration::from_millis(200);
        let Some(Stopping { since }) = self.stopping else { return };
        let waited = self.now.since(since);
        let settled = self.log.wal.idle() && self.log.wal.writer().is_empty() && self.clients.gated() == 0;
        if !settled && waited < DRAIN {
            self.gates_moved = true;
            return;
        }
        if !self.clients.map.is_empty() && waited < DRAIN + FAREWELL {
            self.close_clients_unknown();
            return;
        }
        tracing::info!(end = %self.log.wal.end().end, committed = %self.committed, "stopped");
        self.exit = Some(0);
    }
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
    }
}

fn refusal_response(request: &Request, refusal: &Refusal) -> Response {
    let (code, hint) = match refusal {
        Refusal::NoQuorum { .. } => (ErrorCode::NoQuorum, "start more voters and ask again"),
        Refusal::Timeout { .. } => (ErrorCode::Timeout, "look at `baton query`, then ask again"),
        Refusal::LogFailed => (ErrorCode::Failed, "restart or replace this node"),
        _ => (ErrorCode::Refused, "nothing was changed"),
    };
    Response::failed(&request.op, code, refusal.to_string(), hint)
}

//! Replies that wait for something other than a gate: standbys that have a write (WAIT), a position that is applied here
//! (BATON.WAITLSN), the role machine's answer (REPLICAOF NO ONE, FAILOVER).

use std::time::Duration;

use crate::base::limits::LSN_WAITERS_MAX;
use crate::base::{Lsn, Mono, Stamp};
use crate::exec::{LsnRequest, RoleRequest, WaitRequest};
use crate::io::{ConnId, Seam};
use crate::resp::Reply;
use crate::role::Command;

use super::Node;
use super::admin::Asker;
use super::clients::{Client, Waiting};
use super::gates::Need;

/// How long a role command of a client is waited for.
const ROLE_PATIENCE: Duration = Duration::from_secs(30);
/// FAILOVER without TIMEOUT: how long writes may be held.
const FAILOVER_TIMEOUT: Duration = Duration::from_secs(5);

impl<S: Seam> Node<S> {
    pub(super) fn wait_replicas(&mut self, client: &mut Client, request: WaitRequest) {
        let until = (request.timeout_ms > 0).then(|| self.now + Duration::from_millis(request.timeout_ms));
        client.waiting = Waiting::Replicas { request, until };
        self.clients.replicas_waiting.push(client.conn);
    }

    /// BATON.LSN and BATON.WAITLSN: answered at once when it is known, else in the turn when it is.
    pub(super) fn wait_lsn(&mut self, client: &mut Client, request: LsnRequest) {
        if self.clients.lsn_waiting.len() >= LSN_WAITERS_MAX {
            let text = "BUSY as many connections as may wait for an LSN do so already";
            return self.answer_client(client, |reply| reply.error(text));
        }
        let timeout = match request {
            LsnRequest::Applied { timeout_ms, .. } if timeout_ms > 0 => {
                Some(Duration::from_millis(timeout_ms))
            }
            _ => None,
        };
        client.waiting = Waiting::Lsn { request, until: timeout.map(|timeout| self.now + timeout) };
        self.clients.lsn_waiting.push(client.conn);
        self.gates_moved = true;
    }

    pub(super) fn wait_role(&mut self, client: &mut Client, request: RoleRequest) {
        client.waiting = Waiting::Role;
        self.clients.role_requests.push((client.conn, request));
        self.gates_moved = true;
    }

    /// Answers the command that waited, unless its client wants no reply.
    pub(super) fn answer_client(&mut self, client: &mut Client, write: impl FnOnce(&mut Reply<'_>)) {
        let proto = client.session.proto;
        client.waiting = Waiting::Nothing;
        if !client.session.take_mute() {
            write(&mut Reply::new(client.replies.buffer(), proto));
            client.replies.close_gate(Need::NOTHING, self.now);
        }
    }

    /// Whoever waits for what has come about, or has waited long enough.
    pub(super) fn answer_waits(&mut self) {
        self.answer_replica_waits();
        self.answer_lsn_waits();
        for (conn, request) in std::mem::take(&mut self.clients.role_requests) {
            self.role_request(conn, request);
        }
        for (conn, answer) in std::mem::take(&mut self.clients.told) {
            self.tell_client(conn, answer);
        }
    }

    fn tell_client(&mut self, conn: ConnId, answer: Result<(), String>) {
        let Some(mut client) = self.clients.take(conn) else { return };
        if matches!(client.waiting, Waiting::Role) {
            self.answer_client(&mut client, |reply| match answer {
                Ok(()) => reply.ok(),
                Err(text) => reply.error(&format!("ERR {text}")),
            });
            self.run_client(&mut client);
        }
        self.settle_client(client);
    }

    fn answer_replica_waits(&mut self) {
        for conn in std::mem::take(&mut self.clients.replicas_waiting) {
            let Some(mut client) = self.clients.take(conn) else { continue };
            let Waiting::Replicas { request, until } = &client.waiting else {
                self.clients.put(client);
                continue;
            };
            let (request, until) = (*request, *until);
            let (local, replicas) = self.acknowledged(&request);
            let met = replicas >= request.replicas && (local || request.local != Some(true));
            if !met && until.is_none_or(|until| self.now < until) {
                self.clients.replicas_waiting.push(conn);
                self.clients.put(client);
                continue;
            }
            self.answer_client(&mut client, |reply| request.reply(local, replicas, reply));
            self.run_client(&mut client);
            self.settle_client(client);
        }
    }

    fn answer_lsn_waits(&mut self) {
        for conn in std::mem::take(&mut self.clients.lsn_waiting) {
            let Some(mut client) = self.clients.take(conn) else { continue };
            let Waiting::Lsn { request, until } = client.waiting else {
                self.clients.put(client);
                continue;
            };
            let late = until.is_some_and(|until| self.now >= until);
            let Some(answer) = self.lsn_answer(&request, late) else {
                self.clients.lsn_waiting.push(conn);
                self.clients.put(client);
                continue;
            };
            self.answer_client(&mut client, |reply| match answer {
                LsnAnswer::At(lsn) => reply.integer(lsn.0 as i64),
                LsnAnswer::Reached => reply.ok(),
                LsnAnswer::Late(text) => reply.error(&text),
            });
            self.run_client(&mut client);
            self.settle_client(client);
        }
    }

    fn lsn_answer(&self, request: &LsnRequest, late: bool) -> Option<LsnAnswer> {
        match *request {
            LsnRequest::Own { stamp: Stamp::COMMITTED } => Some(LsnAnswer::At(Lsn::ZERO)),
            // A write whose group is still open has no place yet.
            LsnRequest::Own { stamp } if stamp > self.groups.at(self.log.wal.end().end) => None,
            // A group that was forgotten is committed.
            LsnRequest::Own { stamp } => {
                Some(LsnAnswer::At(self.groups.end_of(stamp).unwrap_or(self.committed.lsn())))
            }
            LsnRequest::Applied { lsn, .. } => {
                let applied = self.data.applied.lsn();
                let readable = self.serving || self.role.leading().is_none();
                if applied >= lsn && readable {
                    return Some(LsnAnswer::Reached);
                }
                late.then(|| {
                    LsnAnswer::Late(format!(
                        "TIMEOUT lsn {} is not applied here yet, only {}",
                        lsn.0, applied.0
                    ))
                })
            }
        }
    }

    fn acknowledged(&self, request: &WaitRequest) -> (bool, u32) {
        if request.stamp > self.groups.at(self.log.wal.end().end) {
            return (false, 0);
        }
        // A group that was forgotten is committed; nobody is counted for less than the commit index then.
        let end = self.groups.end_of(request.stamp).unwrap_or(self.committed.lsn());
        let local = self.log.wal.flushed().lsn() >= end;
        let count = match (&self.streams.progress, request.local) {
            (None, _) => 0,
            (Some(progress), None) => progress.count_written(end),
            (Some(progress), Some(_)) => progress.count_flushed(end),
        };
        (local, count as u32)
    }

    /// Carries a client's role command out, or says why not, in the words of Redis where it has some.
    fn role_request(&mut self, conn: ConnId, request: RoleRequest) {
        let result = match request {
            _ if !self.config.client_listen.ip().is_loopback() && self.config.client_password.is_none() => {
                Err("role commands need client_password on a port that others can reach".to_string())
            }
            RoleRequest::Promote => {
                let me = self.config.me();
                if self.role.leading().is_none() && me.nofailover {
                    Err(format!("node {} is configured never to take over (nofailover)", me.node))
                } else if let Some(text) = self.copied_folder() {
                    Err(text)
                } else {
                    self.chronicle.asked = "a client (REPLICAOF NO ONE)".into();
                    self.stay_aside(false);
                    let command = Command::Failover { dry_run: false, alone: false, force: false };
                    return self.order(Asker::Client { conn }, self.now + ROLE_PATIENCE, command);
                }
            }
            RoleRequest::Failover { to, timeout_ms } => self.client_failover(to, timeout_ms),
            RoleRequest::Abort if self.role.switching().is_none() => Err("No failover in progress.".into()),
            RoleRequest::Abort => {
                let until = self.now + ROLE_PATIENCE;
                return self.order(Asker::Client { conn }, until, Command::AbortSwitchover);
            }
        };
        self.clients.told.push((conn, result));
    }

    /// FAILOVER of Redis is answered when it has begun; INFO shows how it goes on.
    fn client_failover(&mut self, to: Option<(String, u16)>, timeout_ms: u64) -> Result<(), String> {
        if self.role.leading().is_none() {
            return Err("FAILOVER is not valid when server is a replica.".into());
        }
        if self.role.switching().is_some() {
            return Err("FAILOVER already in progress.".into());
        }
        if self.streams.senders.is_empty() {
            return Err("FAILOVER requires connected replicas.".into());
        }
        let target = match to {
            None => None,
            Some((host, port)) => {
                let named = |member: &&crate::config::Member| {
                    member.client.is_some_and(|client| {
                        client.port() == port && (client.ip().to_string() == host || member.host == host)
                    })
                };
                let member = self.config.peers().find(named);
                let node = member.ok_or("FAILOVER target HOST and PORT is not a replica.")?.node;
                if !self.streams.senders.values().any(|slot| slot.sender.peer().node == node) {
                    return Err("FAILOVER target replica is not online.".into());
                }
                Some(node)
            }
        };
        let timeout = if timeout_ms == 0 { FAILOVER_TIMEOUT } else { Duration::from_millis(timeout_ms) };
        self.chronicle.asked = "a client (FAILOVER)".into();
        let command = Command::Switchover { to: target, dry_run: false, timeout };
        let until: Mono = self.now + timeout + ROLE_PATIENCE;
        self.order(Asker::Nobody { what: "FAILOVER" }, until, command);
        Ok(())
    }
}

enum LsnAnswer {
    At(Lsn),
    Reached,
    Late(String),
}

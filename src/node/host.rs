//! The node as client commands see it: INFO, ROLE, CLIENT LIST, CONFIG.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;

use crate::base::{AppliedLsn, ClusterId, CommittedLsn, Digest, FlushedLsn, Lsn, Mono, Stamp, Term, WallMs};
use crate::config::Config;
use crate::exec::{ClientFacts, Host, ReplicaRole, ReplicaState, Role, Session};
use crate::io::ConnId;
use crate::metrics::Metrics;
use crate::replication::Identity;
use crate::resp::{Args, Reply};
use crate::role::RoleMachine;
use crate::store::StoreMemory;

use super::clients::Client;
use super::groups::Groups;
use super::streams::Streams;

/// Borrowed for one command.
pub struct HostView<'a> {
    pub clients: &'a mut BTreeMap<ConnId, Option<Box<Client>>>,
    pub by_session: &'a BTreeMap<u64, ConnId>,
    pub kill: &'a mut Vec<u64>,
    /// The client whose command runs: session, address, opened, active.
    pub current: (u64, SocketAddr, Mono, Mono),
    pub config: &'a Config,
    pub metrics: &'a mut Metrics,
    pub role: &'a RoleMachine,
    pub streams: &'a Streams,
    pub groups: &'a Groups,
    pub identity: &'a Identity,
    pub now: Mono,
    pub started: Mono,
    pub wall: WallMs,
    pub end: Lsn,
    pub flushed: FlushedLsn,
    pub committed: CommittedLsn,
    pub applied: AppliedLsn,
    pub memory: StoreMemory,
    pub serving: bool,
}

impl HostView<'_> {
    fn address_of(&self, node: crate::base::NodeId) -> (String, u16) {
        match self.config.member(node) {
            Some(member) => match member.client {
                Some(addr) => (addr.ip().to_string(), addr.port()),
                None => (member.host.clone(), 0),
            },
            None => (String::new(), 0),
        }
    }

    fn replication(&self, out: &mut Vec<u8>) -> std::io::Result<()> {
        if self.role.leading().is_some() {
            write!(out, "role:master\r\nconnected_slaves:{}\r\n", self.streams.senders.len())?;
            for (i, slot) in self.streams.senders.values().enumerate() {
                let node = slot.sender.peer().node;
                let (host, port) = self.address_of(node);
                let acked = slot.sender.acked().copied().unwrap_or_default();
                let lag = self.now.since(slot.heard).as_secs();
                write!(
                    out,
                    "slave{i}:ip={host},port={port},state=online,offset={},lag={lag}\r\n",
                    acked.flushed.lsn().0
                )?;
            }
        } else {
            let leader = self.streams.leader.map(|(node, _)| node);
            let (host, port) = leader.map(|n| self.address_of(n)).unwrap_or_default();
            let up = self.streams.receiver.is_some();
            let heard = if up { self.now.since(self.streams.leader_heard).as_secs() as i64 } else { -1 };
            write!(
                out,
                "role:slave\r\nmaster_host:{host}\r\nmaster_port:{port}\r\nmaster_link_status:{}\r\n\
                 master_last_io_seconds_ago:{heard}\r\nmaster_sync_in_progress:0\r\nslave_read_repl_offset:{}\r\n\
                 slave_repl_offset:{}\r\nslave_priority:{}\r\nslave_read_only:1\r\nreplica_announced:1\r\n\
                 connected_slaves:{}\r\n",
                if up { "up" } else { "down" },
                self.end.0,
                self.applied.lsn().0,
                self.config.me().priority,
                self.streams.senders.len(),
            )?;
        }
        // One id for each term of the cluster, the same on every node that follows it; the one before it is valid up to
        // where the term starts, as after a failover of Redis.
        let terms = self.role.control().history.entries();
        let id = |at: usize| replication_id(self.identity.cluster, terms[at].0);
        let (replid, replid2, second) = match terms.len() {
            0 => (format!("{:040}", 0), format!("{:040}", 0), -1),
            1 => (id(0), format!("{:040}", 0), -1),
            count => (id(count - 1), id(count - 2), terms[count - 1].1.0 as i64),
        };
        let failover = match self.role.switching() {
            None => "no-failover",
            Some(view) if view.stage == "draining" => "waiting-for-sync",
            Some(_) => "failover-in-progress",
        };
        write!(
            out,
            "master_failover_state:{failover}\r\nmaster_replid:{replid}\r\nmaster_replid2:{replid2}\r\n\
             master_repl_offset:{}\r\nsecond_repl_offset:{second}\r\nrepl_backlog_active:1\r\nrepl_backlog_size:0\r\n\
             repl_backlog_first_byte_offset:0\r\nrepl_backlog_histlen:0\r\n",
            self.end.0
        )
    }

    fn section(&self, section: &str, out: &mut Vec<u8>) -> std::io::Result<()> {
        match section {
            "server" => write!(
                out,
                "redis_version:{}\r\nredis_mode:standalone\r\nbaton_version:{}\r\nos:Linux\r\narch_bits:64\r\n\
                 process_id:{}\r\nrun_id:{:040x}\r\ntcp_port:{}\r\nserver_time_usec:{}\r\nuptime_in_seconds:{}\r\n\
                 uptime_in_days:{}\r\n",
                crate::exec::REDIS_VERSION,
                env!("CARGO_PKG_VERSION"),
                std::process::id(),
                self.identity.run,
                self.config.client_listen.port(),
                self.wall.0 * 1000,
                self.now.since(self.started).as_secs(),
                self.now.since(self.started).as_secs() / 86_400,
            ),
            "clients" => write!(
                out,
                "connected_clients:{}\r\nmaxclients:{}\r\nblocked_clients:0\r\n",
                self.clients.len(),
                self.config.max_clients
            ),
            "memory" => {
                let m = &self.memory;
                let used = m.delta_bytes + m.frozen_bytes + m.cache_bytes + m.undo_bytes;
                write!(
                    out,
                    "used_memory:{used}\r\nmaxmemory:{}\r\nmaxmemory_policy:noeviction\r\nbaton_delta_bytes:{}\r\n\
                     baton_frozen_bytes:{}\r\nbaton_cache_bytes:{}\r\n",
                    self.config.memory, m.delta_bytes, m.frozen_bytes, m.cache_bytes
                )
            }
            "persistence" => write!(
                out,
                "loading:0\r\naof_enabled:1\r\naof_last_write_status:ok\r\nrdb_bgsave_in_progress:0\r\n\
                 rdb_last_bgsave_status:ok\r\naof_rewrite_in_progress:0\r\n"
            ),
            "stats" => {
                let c = &self.metrics.count;
                write!(
                    out,
                    "total_connections_received:{}\r\ntotal_net_input_bytes:{}\r\ntotal_net_output_bytes:{}\r\n\
                     rejected_connections:{}\r\n",
                    c.connections_accepted, c.client_bytes_in, c.client_bytes_out, c.connections_refused
                )
            }
            "replication" => self.replication(out),
            "baton" => write!(
                out,
                "node:{}\r\ncluster:{}\r\ncluster_id:{}\r\nnode_role:{}\r\nnode_state:{}\r\nterm:{}\r\nserving:{}\r\n\
                 appended_lsn:{}\r\nflushed_lsn:{}\r\ncommitted_lsn:{}\r\napplied_lsn:{}\r\ncommit:{}\r\n",
                self.config.node,
                self.config.cluster,
                self.identity.cluster,
                self.role.role(),
                self.role.state(),
                self.role.control().history.last().map_or(0, |(term, _)| term.number),
                u8::from(self.serving),
                self.end.0,
                self.flushed.lsn().0,
                self.committed.lsn().0,
                self.applied.lsn().0,
                self.config.commit.name(),
            ),
            _ => Ok(()),
        }
    }
}

impl Host for HostView<'_> {
    fn info(&self, section: &str, out: &mut Vec<u8>) {
        self.section(section, out).expect("a vector takes every write");
    }

    fn role(&self) -> Role {
        if self.role.leading().is_some() {
            let replicas = self.streams.senders.values().map(|slot| {
                let (host, port) = self.address_of(slot.sender.peer().node);
                ReplicaRole { host, port, offset: slot.sender.acked().map_or(0, |a| a.flushed.lsn().0) }
            });
            return Role::Master { offset: self.end.0, replicas: replicas.collect() };
        }
        let leader = self.streams.leader.map(|(node, _)| node);
        let (host, port) = leader.map(|n| self.address_of(n)).unwrap_or_default();
        let state = match (&self.streams.receiver, leader) {
            (Some(_), _) if self.applied.lsn() < self.committed.lsn() => ReplicaState::Sync,
            (Some(_), _) => ReplicaState::Connected,
            (None, Some(_)) => ReplicaState::Connecting,
            (None, None) => ReplicaState::Connect,
        };
        Role::Replica { host, port, state, offset: self.applied.lsn().0 as i64 }
    }

    fn time_us(&self) -> u64 {
        self.wall.0 * 1000
    }

    fn visit_clients(&self, visit: &mut dyn FnMut(&Session, &ClientFacts)) {
        for conn in self.by_session.values() {
            if let Some(Some(client)) = self.clients.get(conn) {
                let facts = self.facts_of(client.peer, client.opened, client.active, *conn, client);
                visit(&client.session, &facts);
            }
        }
    }

    fn facts(&self, session: u64) -> ClientFacts {
        let (current, peer, opened, active) = self.current;
        if session != current {
            return ClientFacts::default();
        }
        ClientFacts {
            addr: peer.to_string(),
            laddr: self.config.client_listen.to_string(),
            fd: self.by_session.get(&session).map_or(-1, |c| c.0 as i64),
            age_s: self.now.since(opened).as_secs(),
            idle_s: self.now.since(active).as_secs(),
            input_bytes: 0,
            output_bytes: 0,
        }
    }

    fn close_client(&mut self, session: u64) {
        self.kill.push(session);
    }

    fn password_required(&self) -> bool {
        self.config.client_password.is_some()
    }

    fn password_ok(&self, user: &[u8], password: &[u8]) -> bool {
        let Some(secret) = &self.config.client_password else { return user == b"default" };
        let want = secret.reveal().as_bytes();
        // Every byte is looked at whatever the first difference is.
        let mut wrong = u8::from(user != b"default") | u8::from(want.len() != password.len());
        for (i, byte) in password.iter().enumerate() {
            wrong |= byte ^ want.get(i % want.len().max(1)).copied().unwrap_or(0);
        }
        wrong == 0
    }

    fn visit_config(&self, visit: &mut dyn FnMut(&str, &str)) {
        visit("maxclients", &self.config.max_clients.to_string());
        visit("port", &self.config.client_listen.port().to_string());
        visit("bind", &self.config.client_listen.ip().to_string());
        visit("maxmemory", &self.config.memory.to_string());
        visit("dir", &self.config.data.display().to_string());
        visit("commit", self.config.commit.name());
        visit("commit_timeout", &format!("{}ms", self.config.commit_timeout.as_millis()));
        visit(
            "reads",
            match self.config.reads {
                crate::config::Reads::Linearizable => "linearizable",
                crate::config::Reads::Local => "local",
            },
        );
    }

    fn config_set(&mut self, _name: &str, _value: &str) -> Result<(), String> {
        Err("can't set immutable config: parameters are changed in baton.toml".into())
    }

    fn reset_stats(&mut self) {
        self.metrics.count = Default::default();
    }

    fn replicas_acked(&self, stamp: Stamp) -> u32 {
        let Some(progress) = &self.streams.progress else { return 0 };
        match self.groups.end_of(stamp) {
            Some(end) => progress.count_flushed(end) as u32,
            None => 0,
        }
    }

    fn extension(&mut self, _session: &mut Session, _args: Args<'_>, _reply: &mut Reply<'_>) -> bool {
        false
    }
}

/// The 40 hex digits by which Redis names one history of writes.
fn replication_id(cluster: ClusterId, term: Term) -> String {
    let mixed = Digest::of(format!("{cluster}/{}/{:032x}", term.number, term.id).as_bytes());
    format!("{:08x}{mixed}", term.number as u32)
}

/// A host for work that no client asked for.
pub struct NoHost;

impl Host for NoHost {
    fn info(&self, _section: &str, _out: &mut Vec<u8>) {}
    fn role(&self) -> Role {
        Role::Master { offset: 0, replicas: Vec::new() }
    }
    fn time_us(&self) -> u64 {
        0
    }
    fn visit_clients(&self, _visit: &mut dyn FnMut(&Session, &ClientFacts)) {}
    fn facts(&self, _session: u64) -> ClientFacts {
        ClientFacts::default()
    }
    fn close_client(&mut self, _session: u64) {}
    fn password_required(&self) -> bool {
        true
    }
    fn password_ok(&self, _user: &[u8], _password: &[u8]) -> bool {
        false
    }
    fn visit_config(&self, _visit: &mut dyn FnMut(&str, &str)) {}
    fn config_set(&mut self, name: &str, _value: &str) -> Result<(), String> {
        Err(format!("{name} cannot be set here"))
    }
    fn reset_stats(&mut self) {}
    fn replicas_acked(&self, _stamp: Stamp) -> u32 {
        0
    }
    fn extension(&mut self, _session: &mut Session, _args: Args<'_>, _reply: &mut Reply<'_>) -> bool {
        false
    }
}

impl HostView<'_> {
    fn facts_of(
        &self,
        peer: SocketAddr,
        opened: Mono,
        active: Mono,
        conn: ConnId,
        client: &Client,
    ) -> ClientFacts {
        ClientFacts {
            addr: peer.to_string(),
            laddr: self.config.client_listen.to_string(),
            fd: conn.0 as i64,
            age_s: self.now.since(opened).as_secs(),
            idle_s: self.now.since(active).as_secs(),
            input_bytes: client.input_bytes(),
            output_bytes: client.output_bytes(),
        }
    }
}

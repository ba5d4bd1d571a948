//! What the node says about itself: rows of `baton status`, `query`, `cluster status`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::base::{Mono, NodeId};
use crate::cluster::query::{Channel, HaState, QueryStatus, ReceiverInfo, SenderInfo};
use crate::cluster::{
    ClusterStatus, NodeState, NodeStatus, PolicyStatus, Role as ShownRole, StaticRole, SyncState,
};
use crate::io::{ConnId, Seam};
use crate::replication::{Message, SenderState};
use crate::role::state::Repair;
use crate::role::{DataStatus, Role, State};

use super::Node;

/// A row that a peer sent is believed for this long.
const FRESH: Duration = Duration::from_millis(2500);
/// How often peers are asked for their rows while somebody wants them.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Rows of other nodes, as they said themselves.
#[derive(Debug, Default)]
pub struct PeerRows {
    rows: BTreeMap<NodeId, (NodeStatus, Mono)>,
    asked_at: Option<Mono>,
    waiting: usize,
}

impl PeerRows {
    pub fn all_in(&self) -> bool {
        self.waiting == 0
    }
}

impl<S: Seam> Node<S> {
    fn static_role(&self, node: NodeId) -> StaticRole {
        let member = self.config.member(node);
        if member.is_some_and(|m| m.upstream.is_some()) {
            return StaticRole::CascadeStandby;
        }
        // The membership has no permanent primary; gs_om shows the one that leads.
        match self.leader() {
            Some(leader) if leader == node => StaticRole::Primary,
            _ => StaticRole::Standby,
        }
    }

    fn leader(&self) -> Option<NodeId> {
        match self.role.leading() {
            Some(_) => Some(self.me()),
            None => self.role.following().map(|(node, _)| node),
        }
    }

    fn shown_state(&self) -> (NodeState, String) {
        if self.exit.is_some() {
            return (NodeState::NeedRepair, "IO".into());
        }
        if let Some(what) = self.data_trouble() {
            return (NodeState::NeedRepair, what);
        }
        match self.role.state() {
            State::Starting => (NodeState::Starting, String::new()),
            State::Normal if self.role.role() == Role::Primary && !self.serving => {
                (NodeState::Promoting, "applying the log".into())
            }
            State::Normal if self.role.role() == Role::Standby && self.streams.receiver.is_none() => {
                let why = self.streams.refused.clone().unwrap_or_else(|| "Connecting".into());
                (NodeState::NeedRepair, why)
            }
            State::Normal if self.disk_full() => (NodeState::Normal, "disk full: writes are refused".into()),
            State::Normal => (NodeState::Normal, self.roots.dispute_in_words()),
            State::Catchup => match (&self.streams.receiver, &self.streams.refused) {
                (None, Some(why)) if why.starts_with("WAL") => (NodeState::NeedRepair, why.clone()),
                _ => (NodeState::Catchup, String::new()),
            },
            State::NeedRepair(Repair::Wal) => (NodeState::NeedRepair, "WAL".into()),
            State::NeedRepair(Repair::Disconnected) => (NodeState::NeedRepair, "Disconnected".into()),
            State::NeedRepair(Repair::Io) => (NodeState::NeedRepair, "IO".into()),
            State::WaitPromoting => (NodeState::WaitPromoting, String::new()),
            State::Promoting => (NodeState::Promoting, String::new()),
            State::Demoting => (NodeState::Demoting, String::new()),
            State::Building => (NodeState::Building, String::new()),
        }
    }

    /// What is wrong with the data itself, as far as it needs somebody's attention.
    fn data_trouble(&self) -> Option<String> {
        if self.role.control().status == DataStatus::Sick {
            return Some(self.roots.sick_in_words());
        }
        match self.repairs.failed() {
            0 => None,
            1 => Some("page: 1 is damaged, and no connected node has a good copy".into()),
            n => Some(format!("page: {n} are damaged, and no connected node has good copies")),
        }
    }

    fn shown_role(&self) -> ShownRole {
        match self.role.role() {
            Role::Pending => ShownRole::Pending,
            Role::Primary => ShownRole::Primary,
            Role::Standby => ShownRole::Standby,
            Role::CascadeStandby => ShownRole::CascadeStandby,
        }
    }

    /// This node's own row.
    pub(super) fn own_status(&self) -> NodeStatus {
        let me = self.config.me();
        let (state, detail) = self.shown_state();
        let leading = self.role.leading().is_some();
        let end = self.log.wal.end().end;
        let lag_bytes = match (leading, &self.streams.receiver) {
            (true, _) => Some(0),
            (false, Some(_)) => Some(self.streams.leader_end.since(self.log.wal.flushed().lsn())),
            (false, None) => None,
        };
        let known = leading || self.streams.receiver.is_some();
        NodeStatus {
            node: self.me().0,
            instance: self.me().instance(),
            host: me.host.clone(),
            data: self.config.data.display().to_string(),
            static_role: self.static_role(self.me()),
            role: self.shown_role(),
            state,
            detail,
            client: Some(self.config.client_listen.to_string()),
            peer: self.config.peer_listen.to_string(),
            upstream: if leading { None } else { self.streams.upstream.map(|(node, _)| node.0) },
            sync_state: None,
            appended_lsn: Some(end.0),
            flushed_lsn: Some(self.log.wal.flushed().lsn().0),
            committed_lsn: Some(self.committed.lsn().0),
            applied_lsn: Some(self.data.applied.lsn().0),
            lag_bytes,
            lag_ms: known.then(|| self.apply_age().as_millis() as u64),
        }
    }

    /// Age of the oldest commit that is not applied here.
    pub(super) fn apply_age(&self) -> Duration {
        self.streams.commit_lag.age(self.data.applied.lsn(), self.now)
    }

    fn sync_state(&self, node: NodeId) -> Option<SyncState> {
        if self.role.leading().is_none() || node == self.me() {
            return None;
        }
        let connected = self.streams.senders.values().any(|s| s.sender.peer().node == node);
        let policy = &self.role.control().policy;
        let listed = policy.voters.iter().any(|v| v.node == node);
        match (connected, listed, policy.first) {
            (false, _, _) => None,
            (true, false, _) => Some(SyncState::Async),
            (true, true, false) => Some(SyncState::Quorum),
            (true, true, true) => {
                let others = policy.voters.iter().filter(|v| v.node != self.me());
                let rank = others.take_while(|v| v.node != node).count();
                Some(if rank < usize::from(policy.k) { SyncState::Sync } else { SyncState::Potential })
            }
        }
    }

    /// The cluster as this node knows it: every row from its own node, or from the links when it is silent.
    pub(super) fn cluster_status(&self) -> ClusterStatus {
        let mut nodes = Vec::new();
        for member in &self.config.members {
            let mut row = if member.node == self.me() {
                self.own_status()
            } else {
                match self.admin.peers.rows.get(&member.node) {
                    Some((row, at)) if self.now.since(*at) < FRESH => row.clone(),
                    _ => {
                        let role = match self.links.any_to(member.node) {
                            Some(_) => ShownRole::Unknown,
                            None => ShownRole::Down,
                        };
                        let peer = member.peer.to_string();
                        let mut row = NodeStatus::silent(
                            member.node,
                            &member.host,
                            &peer,
                            self.static_role(member.node),
                            role,
                        );
                        row.client = member.client.map(|c| c.to_string());
                        row.detail = self.links.last_error(member.node).unwrap_or_default().to_string();
                        row
                    }
                }
            };
            row.sync_state = self.sync_state(member.node);
            nodes.push(row);
        }
        let control = self.role.control();
        let term = control.history.last().map_or(0, |(term, _)| term.number);
        ClusterStatus::new(control.cluster, term, Some(self.policy_status()), nodes)
    }

    pub(super) fn policy_status(&self) -> PolicyStatus {
        let control = self.role.control();
        let policy = &control.policy;
        let voters: Vec<u16> = policy.voters.iter().map(|v| v.node.0).collect();
        let listed: Vec<String> = voters.iter().map(u16::to_string).collect();
        let kind = if policy.first { "FIRST" } else { "ANY" };
        PolicyStatus {
            generation: policy.number,
            rule: format!("{kind} {} ({})", policy.k, listed.join(", ")),
            voters,
            k: usize::from(policy.k),
            failures_survived: policy.failures_survived(self.live_voters()),
        }
    }

    pub(super) fn query_status(&self) -> QueryStatus {
        let me = self.own_status();
        let senders = self
            .streams
            .senders
            .values()
            .map(|slot| {
                let peer = slot.sender.peer().node;
                let acked = slot.sender.acked().copied().unwrap_or_default();
                let remote = self.config.member(peer).map_or(String::new(), |m| m.peer.to_string());
                SenderInfo {
                    node: peer.0,
                    peer_role: ShownRole::Standby,
                    peer_state: NodeState::Normal,
                    state: match slot.sender.state() {
                        SenderState::Matching => "Matching",
                        SenderState::Catchup => "Catchup",
                        SenderState::Streaming => "Streaming",
                        SenderState::Stopped => "Stopped",
                    }
                    .to_string(),
                    sent_lsn: slot.sender.sent().0,
                    written_lsn: acked.written.0,
                    flushed_lsn: acked.flushed.lsn().0,
                    applied_lsn: acked.applied.lsn().0,
                    lag_bytes: self.log.wal.end().end.since(acked.flushed.lsn()),
                    lag_ms: Some(
                        self.streams.commit_lag.age(acked.applied.lsn(), self.now).as_millis() as u64
                    ),
                    sync_state: self.sync_state(peer).unwrap_or(SyncState::Async),
                    sync_priority: u32::from(
                        self.role.control().policy.voters.iter().any(|v| v.node == peer),
                    ),
                    channel: Channel { local: self.config.peer_listen.to_string(), remote },
                }
            })
            .collect();
        let receiver = self.streams.receiver.as_ref().map(|slot| {
            let remote = self.config.member(slot.leader).map_or(String::new(), |m| m.peer.to_string());
            ReceiverInfo {
                node: slot.leader.0,
                peer_role: ShownRole::Primary,
                peer_state: NodeState::Normal,
                state: "Streaming".to_string(),
                received_lsn: self.log.wal.end().end.0,
                written_lsn: self.log.wal.written().0,
                flushed_lsn: self.log.wal.flushed().lsn().0,
                applied_lsn: self.data.applied.lsn().0,
                channel: Channel { local: self.config.peer_listen.to_string(), remote },
            }
        });
        let failures_survived =
            self.role.leading().map(|_| self.role.control().policy.failures_survived(self.live_voters()));
        QueryStatus {
            ha: HaState {
                local_role: me.role,
                static_connections: self.config.members.len() - 1,
                db_state: me.state,
                detail_information: me.detail.clone(),
            },
            term: self.role.control().history.last().map_or(0, |(term, _)| term.number),
            me,
            senders,
            receiver,
            failures_survived,
            pages: self.pages_status(),
        }
    }

    /// Voters that this leader streams to, itself included.
    pub(super) fn live_voters(&self) -> usize {
        let policy = &self.role.control().policy;
        let live = |node: NodeId| {
            node == self.me() || self.streams.senders.values().any(|s| s.sender.peer().node == node)
        };
        policy.voters.iter().filter(|v| live(v.node)).count()
    }

    /// Notes since when the connected voters are too few for a commit.
    pub(super) fn watch_voters(&mut self) {
        let needed = usize::from(self.role.control().policy.k) + 1;
        let enough = self.role.leading().is_none() || self.live_voters() >= needed;
        self.voters_missing_since = match (enough, self.voters_missing_since) {
            (true, _) => None,
            (false, None) => Some(self.now),
            (false, since) => since,
        };
    }

    /// Asks every linked peer for its row.
    pub(super) fn ask_peers(&mut self) {
        if self.admin.peers.asked_at.is_some_and(|at| self.now.since(at) < ASK_EVERY)
            && self.admin.peers.waiting == 0
        {
            return;
        }
        self.admin.peers.asked_at = Some(self.now);
        self.admin.peers.waiting = 0;
        let nodes: Vec<NodeId> = self.config.peers().map(|m| m.node).collect();
        for node in nodes {
            if let Some(conn) = self.links.any_to(node) {
                self.admin.peers.waiting += 1;
                self.links.send(&mut self.seam, conn, self.now, &Message::StatusRequest(Vec::new()));
            }
        }
    }

    pub(super) fn answer_status(&mut self, conn: ConnId) {
        let json = serde_json::to_vec(&self.own_status()).unwrap_or_default();
        self.links.send(&mut self.seam, conn, self.now, &Message::StatusReply(json));
    }

    pub(super) fn status_arrived(&mut self, from: NodeId, json: &[u8]) {
        match serde_json::from_slice::<NodeStatus>(json) {
            // A node speaks for itself only.
            Ok(row) if row.node == from.0 => {
                self.admin.peers.rows.insert(from, (row, self.now));
            }
            Ok(_) | Err(_) => tracing::warn!(%from, "a peer's status cannot be read"),
        }
        self.admin.peers.waiting = self.admin.peers.waiting.saturating_sub(1);
        self.answer_cluster_questions();
    }

    /// Leaves the newest row where the control thread finds it.
    pub(super) fn publish_status(&mut self) {
        self.watch_voters();
        if let Some(board) = &self.board {
            board.publish(self.own_status());
        }
    }
}

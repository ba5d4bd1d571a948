//! What the node says about itself: rows of `baton status`, `query`, `cluster status`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::limits::LEASE;
use crate::base::{Lsn, Mono, NodeId};
use crate::cluster::query::{Channel, HaState, QueryStatus, ReceiverInfo, SenderInfo};
use crate::cluster::{
    ClusterStatus, NO_QUORUM, NodeState, NodeStatus, PolicyRule, PolicyStatus, Role as ShownRole, StaticRole,
    SyncState, sync_percent,
};
use crate::io::{ConnId, Seam};
use crate::replication::{Message, SenderState};
use crate::role::state::Repair;
use crate::role::{DataStatus, Generation, Role, State};

use super::Node;
use super::links::Absence;
use super::streams::{ReceiverSlot, SenderSlot};

/// A row that a peer sent is believed for this long.
const FRESH: Duration = Duration::from_millis(2500);
/// Answers that are on their way are shared with whoever asks next, for this long; then peers are asked anew.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// What a node tells a peer of itself. Only a primary knows the rest.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Said {
    #[serde(flatten)]
    row: NodeStatus,
    #[serde(default)]
    policy: Option<PolicyStatus>,
    #[serde(default)]
    sync_states: Vec<(u16, SyncState)>,
}

/// Rows of other nodes, as they said themselves.
#[derive(Debug, Default)]
pub struct PeerRows {
    rows: BTreeMap<NodeId, (Said, Mono)>,
    asked_at: Option<Mono>,
    waiting: usize,
}

impl PeerRows {
    pub fn all_in(&self) -> bool {
        self.waiting == 0
    }

    /// The last link to it ended: what it said of itself is no news any more.
    pub fn forget(&mut self, node: NodeId) {
        self.rows.remove(&node);
    }

    fn fresh(&self, node: NodeId, now: Mono) -> Option<&Said> {
        self.rows.get(&node).filter(|(_, at)| now.since(*at) < FRESH).map(|(said, _)| said)
    }

    /// Whoever leads was heard lately.
    pub fn heard(&self, now: Mono) -> bool {
        self.primary(now).is_some()
    }

    /// The newest word of whoever leads.
    fn primary(&self, now: Mono) -> Option<&Said> {
        let mut fresh = self.rows.values().filter(|(_, at)| now.since(*at) < FRESH).map(|(said, _)| said);
        fresh.rfind(|said| said.row.role == ShownRole::Primary && said.policy.is_some())
    }
}

fn rule_in_words(generation: &Generation) -> PolicyRule {
    let kind = if generation.first { "FIRST" } else { "ANY" };
    let voters: Vec<String> = generation.voters.iter().map(|v| v.node.to_string()).collect();
    PolicyRule {
        generation: generation.number,
        rule: format!("{kind} {} ({})", generation.k, voters.join(", ")),
    }
}

/// [`NodeStatus`] without its words: what an observer in the same process looks at again and again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Glance {
    pub role: ShownRole,
    pub state: NodeState,
    pub appended: Lsn,
    pub flushed: Lsn,
    pub committed: Lsn,
    pub applied: Lsn,
}

impl Glance {
    pub fn leads(&self) -> bool {
        self.role == ShownRole::Primary
    }

    pub fn serves(&self) -> bool {
        self.leads() && self.state == NodeState::Normal
    }
}

impl<S: Seam> Node<S> {
    /// Where this node stands, as its status row says it.
    pub fn glance(&self) -> Glance {
        Glance {
            role: self.shown_role(),
            state: self.shown_state().0,
            appended: self.log.wal.end().end,
            flushed: self.log.wal.flushed().lsn(),
            committed: self.committed.lsn(),
            applied: self.data.applied.lsn(),
        }
    }

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
        if self.pending {
            return (NodeState::Normal, "pending: it waits to be told its role".into());
        }
        if self.disk.stalled {
            return (NodeState::NeedRepair, "IO stalled".into());
        }
        if let Some(what) = self.data_trouble() {
            return (NodeState::NeedRepair, what);
        }
        match self.role.state() {
            State::Starting => (NodeState::Starting, String::new()),
            State::Normal if self.role.role() == Role::Primary && !self.serving => {
                (NodeState::Promoting, "applying the log".into())
            }
            State::Normal
                if matches!(self.role.role(), Role::Standby | Role::CascadeStandby)
                    && self.streams.receiver.is_none() =>
            {
                let why = self.streams.refused.clone().unwrap_or_else(|| "Connecting".into());
                (NodeState::NeedRepair, why)
            }
            State::Normal if self.disk_full() && self.role.leading().is_none() => {
                (NodeState::Normal, "disk full: no room for more log".into())
            }
            State::Normal if self.disk_full() => (NodeState::Normal, "disk full: writes are refused".into()),
            State::Normal if self.writes_wait() => (NodeState::Normal, NO_QUORUM.into()),
            State::Normal => (NodeState::Normal, self.roots.dispute_in_words()),
            State::Catchup => match (&self.streams.receiver, &self.streams.refused) {
                (None, Some(why)) if why.starts_with("WAL") => (NodeState::NeedRepair, why.clone()),
                _ => (NodeState::Catchup, String::new()),
            },
            State::NeedRepair(Repair::Wal) => (NodeState::NeedRepair, "WAL".into()),
            State::NeedRepair(Repair::Disconnected) => match self.links.says_copy() {
                Some(_) => (NodeState::NeedRepair, "Copied folder".into()),
                None => (NodeState::NeedRepair, "Disconnected".into()),
            },
            State::NeedRepair(Repair::Io) => (NodeState::NeedRepair, "IO".into()),
            State::WaitPromoting => (NodeState::WaitPromoting, String::new()),
            State::Promoting => (NodeState::Promoting, String::new()),
            State::Demoting => (NodeState::Demoting, String::new()),
            State::Building => (NodeState::Building, String::new()),
        }
    }

    /// Another process is this node: the sentence for whoever wants this one to lead.
    pub(super) fn copied_folder(&self) -> Option<String> {
        let me = self.me();
        self.links.says_copy().map(|peer| {
            format!("this data folder is a copy: node {peer} is linked to another process that is node {me}")
        })
    }

    /// This primary cannot commit: fewer voters answer than a commit needs, and its lease has run out meanwhile.
    fn writes_wait(&self) -> bool {
        self.role.leading().is_some()
            && self.voters_missing_since.is_some_and(|since| self.now.since(since) >= LEASE)
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

    pub(super) fn shown_role(&self) -> ShownRole {
        if self.pending {
            return ShownRole::Pending;
        }
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
        let glance = self.glance();
        let (state, detail) = self.shown_state();
        let leading = self.role.leading().is_some();
        let lag_bytes = match (leading, &self.streams.receiver) {
            (true, _) => Some(0),
            (false, Some(_)) => Some(self.streams.leader_end.since(glance.flushed)),
            (false, None) => None,
        };
        let known = leading || self.streams.receiver.is_some();
        NodeStatus {
            node: self.me().0,
            instance: self.me().instance(),
            host: me.host.clone(),
            data: self.config.data.display().to_string(),
            static_role: self.static_role(self.me()),
            role: glance.role,
            state,
            detail,
            client: Some(self.config.client_listen.to_string()),
            peer: self.config.peer_listen.to_string(),
            upstream: self.streams.receiver.as_ref().filter(|_| !leading).map(|slot| slot.upstream.0),
            sync_state: None,
            appended_lsn: Some(glance.appended.0),
            flushed_lsn: Some(glance.flushed.0),
            committed_lsn: Some(glance.committed.0),
            applied_lsn: Some(glance.applied.0),
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
        let primary = match self.role.leading() {
            Some(_) => None,
            None => self.admin.peers.primary(self.now),
        };
        for member in &self.config.members {
            let mut row = if member.node == self.me() {
                self.own_status()
            } else {
                match self.admin.peers.fresh(member.node, self.now) {
                    Some(said) => said.row.clone(),
                    None => {
                        let role = match self.links.any_to(member.node) {
                            None if self.links.absence(member.node) == Absence::Gone => ShownRole::Down,
                            _ => ShownRole::Unknown,
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
                        row.detail = self.silence_in_words(member.node);
                        row
                    }
                }
            };
            row.sync_state = match &primary {
                Some(said) => said.sync_states.iter().find(|(id, _)| *id == row.node).map(|(_, sync)| *sync),
                None => self.sync_state(member.node),
            };
            // A standby whose disk hangs knows of no newer commit and thinks that it lacks nothing.
            let slot = self.streams.senders.values().find(|slot| slot.sender.peer().node == member.node);
            if let Some(acked) = slot.and_then(|slot| slot.sender.acked()) {
                // Whichever of the two is the newer word.
                let applied = acked.applied.lsn().max(Lsn(row.applied_lsn.unwrap_or(0)));
                let age = self.streams.commit_lag.age(applied, self.now).as_millis() as u64;
                row.lag_ms = row.lag_ms.map(|said| said.max(age));
            }
            // Below a standby nothing counts towards commit, and the primary does not know who is there.
            let below = row.upstream.is_some() && row.role == ShownRole::CascadeStandby;
            let streams = below && row.lag_bytes.is_some();
            row.sync_state = row.sync_state.or(streams.then_some(SyncState::Async));
            nodes.push(row);
        }
        let control = self.role.control();
        let term = control.history.last().map_or(0, |(term, _)| term.number);
        ClusterStatus::new(control.cluster, term, Some(self.policy_known()), nodes)
    }

    /// The policy in force: the primary's own word, or this node's without what only the primary knows.
    pub(super) fn policy_known(&self) -> PolicyStatus {
        match self.role.leading() {
            Some(_) => self.policy_status(),
            None => {
                let said = self.admin.peers.primary(self.now).and_then(|said| said.policy.clone());
                said.unwrap_or_else(|| self.policy_status())
            }
        }
    }

    pub(super) fn policy_status(&self) -> PolicyStatus {
        let control = self.role.control();
        let policy = &control.policy;
        let live = self.role.leading().map(|_| self.live_voters());
        PolicyStatus {
            generation: policy.number,
            rule: rule_in_words(policy).rule,
            voters: policy.voters.iter().map(|v| v.node.0).collect(),
            k: usize::from(policy.k),
            failures_survived: live.map(|live| policy.failures_survived(live)),
            writes_survive: live.map(|live| policy.failures_until_writes_stop(live)),
            writes_wait: self.writes_wait(),
            pending: control.pending.iter().map(|pending| rule_in_words(&pending.generation)).collect(),
            degraded_from: policy.is_degraded().then_some(usize::from(policy.full_k)),
            store: self.store_status(),
        }
    }

    /// What there is to say of a node that does not speak for itself.
    fn silence_in_words(&self, node: NodeId) -> String {
        let slot = self.streams.senders.values().find(|slot| slot.sender.peer().node == node);
        match (self.links.last_error(node), slot) {
            (Some(error), _) => error.to_string(),
            (None, Some(slot)) => {
                format!("it is connected and has said nothing for {} s", self.now.since(slot.heard).as_secs())
            }
            (None, None) => String::new(),
        }
    }

    fn said(&self) -> Said {
        let leading = self.role.leading().is_some();
        let members = self.config.members.iter().map(|member| member.node);
        Said {
            row: self.own_status(),
            policy: leading.then(|| self.policy_status()),
            sync_states: members.filter_map(|node| Some((node.0, self.sync_state(node)?))).collect(),
        }
    }

    fn sync_priority(&self, node: NodeId) -> u32 {
        let policy = &self.role.control().policy;
        let others = || policy.voters.iter().filter(|voter| voter.node != self.me());
        match others().position(|voter| voter.node == node) {
            Some(place) if policy.first => place as u32 + 1,
            Some(_) => 1,
            None => 0,
        }
    }

    fn sender_info(&self, slot: &SenderSlot, local_role: ShownRole) -> SenderInfo {
        let peer = slot.sender.peer().node;
        let acked = slot.sender.acked().copied().unwrap_or_default();
        let remote = self.config.member(peer).map_or(String::new(), |m| m.peer.to_string());
        let (state, behind) = match slot.sender.state() {
            _ if self.stuck(slot) => ("Stalled", true),
            SenderState::Matching => ("Matching", true),
            SenderState::Catchup => ("Catchup", true),
            SenderState::Streaming => ("Streaming", false),
            SenderState::Stopped => ("Stopped", false),
        };
        let said = self.admin.peers.fresh(peer, self.now).map(|said| (said.row.role, said.row.state));
        let guess = if behind { NodeState::Catchup } else { NodeState::Normal };
        let role = if slot.cascade { ShownRole::CascadeStandby } else { ShownRole::Standby };
        let (peer_role, peer_state) = said.unwrap_or((role, guess));
        let end = self.log.wal.end().end;
        let lag_bytes = end.since(acked.flushed.lsn());
        let eta = self.admin.rates.get(&peer).and_then(|rate| rate.eta(lag_bytes));
        SenderInfo {
            pid: std::process::id(),
            node: peer.0,
            local_role,
            peer_role,
            peer_state,
            state: state.to_string(),
            sent_lsn: slot.sender.sent().0,
            written_lsn: acked.written.0,
            flushed_lsn: acked.flushed.lsn().0,
            applied_lsn: acked.applied.lsn().0,
            lag_bytes,
            lag_ms: Some(self.streams.commit_lag.age(acked.applied.lsn(), self.now).as_millis() as u64),
            sync_percent: sync_percent(acked.flushed.lsn().0, end.0),
            catchup_eta_ms: eta.map(|eta| eta.as_millis() as u64),
            sync_state: self.sync_state(peer).unwrap_or(SyncState::Async),
            sync_priority: self.sync_priority(peer),
            apply_delay_ms: self.config.apply_delay(peer).map(|delay| delay.as_millis() as u64),
            channel: Channel { local: self.config.peer_listen.to_string(), remote },
        }
    }

    fn receiver_info(&self, slot: &ReceiverSlot, local_role: ShownRole) -> ReceiverInfo {
        let upstream = self.config.member(slot.upstream);
        let remote = upstream.map_or(String::new(), |m| m.peer.to_string());
        let (end, flushed) = (self.streams.leader_end, self.log.wal.flushed().lsn());
        let said = self.admin.peers.fresh(slot.upstream, self.now);
        let guess = match upstream.is_some_and(|m| m.upstream.is_some()) {
            _ if slot.upstream == slot.leader => ShownRole::Primary,
            true => ShownRole::CascadeStandby,
            false => ShownRole::Standby,
        };
        let eta = self.admin.rates.get(&self.me()).and_then(|rate| rate.eta(end.since(flushed)));
        let behind = self.role.state() == State::Catchup;
        ReceiverInfo {
            pid: std::process::id(),
            node: slot.upstream.0,
            local_role,
            peer_role: said.map_or(guess, |said| said.row.role),
            peer_state: said.map_or(NodeState::Normal, |said| said.row.state),
            state: if behind { "Catchup" } else { "Streaming" }.to_string(),
            sender_sent_lsn: end.0,
            sender_flushed_lsn: said.and_then(|said| said.row.flushed_lsn),
            sender_applied_lsn: said.and_then(|said| said.row.applied_lsn),
            received_lsn: self.log.wal.end().end.0,
            written_lsn: self.log.wal.written().0,
            flushed_lsn: flushed.0,
            applied_lsn: self.data.applied.lsn().0,
            sync_percent: sync_percent(flushed.0, end.0),
            catchup_eta_ms: eta.map(|eta| eta.as_millis() as u64),
            channel: Channel { local: self.config.peer_listen.to_string(), remote },
        }
    }

    pub(super) fn query_status(&self) -> QueryStatus {
        let me = self.own_status();
        let policy = self.policy_known();
        QueryStatus {
            ha: HaState {
                local_role: me.role,
                static_connections: self.config.members.len() - 1,
                db_state: me.state,
                detail_information: me.detail.clone(),
            },
            term: self.role.control().history.last().map_or(0, |(term, _)| term.number),
            senders: self.streams.senders.values().map(|slot| self.sender_info(slot, me.role)).collect(),
            receiver: self.streams.receiver.as_ref().map(|slot| self.receiver_info(slot, me.role)),
            failures_survived: policy.failures_survived,
            writes_survive: policy.writes_survive,
            writes_wait: policy.writes_wait,
            degraded_from: policy.degraded_from,
            store: self.store_status(),
            written_lsn: self.log.wal.written().0,
            apply_delay_ms: self.config.apply_delay(self.me()).map(|delay| delay.as_millis() as u64),
            me,
            pages: self.pages_status(),
            format: self.format_status(),
        }
    }

    /// Looks at the speed of everybody that is behind.
    pub(super) fn watch_rates(&mut self) {
        let end = self.log.wal.end().end;
        for slot in self.streams.senders.values() {
            let flushed = slot.sender.acked().map_or(Lsn::ZERO, |acked| acked.flushed.lsn());
            self.admin.rates.entry(slot.sender.peer().node).or_default().look(self.now, flushed, end);
        }
        if self.streams.receiver.is_some() {
            let (me, flushed) = (self.me(), self.log.wal.flushed().lsn());
            self.admin.rates.entry(me).or_default().look(self.now, flushed, self.streams.leader_end);
        }
    }

    /// Voters that this leader streams to and that acknowledge what they get, itself included.
    pub(super) fn live_voters(&self) -> usize {
        let policy = &self.role.control().policy;
        let live = |node: NodeId| {
            let acknowledges = |s: &SenderSlot| s.sender.peer().node == node && !self.stuck(s);
            node == self.me() || self.streams.senders.values().any(acknowledges)
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
            && self.admin.peers.waiting > 0
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
        let json = serde_json::to_vec(&self.said()).unwrap_or_default();
        self.links.send(&mut self.seam, conn, self.now, &Message::StatusReply(json));
    }

    pub(super) fn status_arrived(&mut self, from: NodeId, json: &[u8]) {
        if self.answered_by_peer(from, json) {
            return;
        }
        match serde_json::from_slice::<Said>(json) {
            // A node speaks for itself only.
            Ok(said) if said.row.node == from.0 => {
                self.admin.peers.rows.insert(from, (said, self.now));
            }
            Ok(_) | Err(_) => tracing::warn!(%from, "a peer's status cannot be read"),
        }
        self.admin.peers.waiting = self.admin.peers.waiting.saturating_sub(1);
        self.answer_cluster_questions();
    }

    /// Leaves the newest row where the control thread finds it.
    pub(super) fn publish_status(&mut self) {
        self.watch_voters();
        self.watch_rates();
        if let Some(board) = &self.board {
            board.publish(self.own_status());
        }
    }
}

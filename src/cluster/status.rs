//! The rows and the verdict of `baton cluster status`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::{ClusterId, Lsn, NodeId};

/// A closed list of words with their spelling in JSON and on the terminal.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant),+];
            pub fn word(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }
    };
}

words!(
    /// The verdict over a whole cluster, by the rule of `gs_om -t status`.
    ClusterState {
        Normal = "Normal",
        /// Serving, but something needs attention.
        Degraded = "Degraded",
        /// Not exactly one primary, or the primary is not Normal.
        Unavailable = "Unavailable",
    }
);

words!(
    /// What a node is right now.
    Role {
        Pending = "Pending",
        Primary = "Primary",
        Standby = "Standby",
        CascadeStandby = "Cascade Standby",
        /// The process does not run.
        Down = "Down",
        /// It does not answer.
        Unknown = "Unknown",
    }
);

words!(
    /// What the membership says the node was set up as: the letter of `gs_om`.
    StaticRole {
        Primary = "P",
        Standby = "S",
        CascadeStandby = "C",
    }
);

words!(
    /// The state words that openGauss users know.
    NodeState {
        Normal = "Normal",
        NeedRepair = "Need repair",
        Starting = "Starting",
        WaitPromoting = "Wait promoting",
        Promoting = "Promoting",
        Demoting = "Demoting",
        Building = "Building",
        Catchup = "Catchup",
        ManuallyStopped = "Manually stopped",
        Unknown = "Unknown",
    }
);

words!(
    /// How the commit rule sees a node.
    SyncState {
        /// Its acknowledgements do not count.
        Async = "Async",
        /// `FIRST k`: waited for now.
        Sync = "Sync",
        /// `ANY k`: counts towards the quorum.
        Quorum = "Quorum",
        /// `FIRST k`: next in line.
        Potential = "Potential",
    }
);

/// What a primary in state Normal says of itself when it cannot commit.
pub const NO_QUORUM: &str = "no quorum: too few voters answer, writes wait and reads are refused";

/// One node, as it sees itself or as its peers last saw it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    pub node: u16,
    /// openGauss numbers instances from 6001.
    pub instance: u32,
    pub host: String,
    /// Data folder.
    pub data: String,
    pub static_role: StaticRole,
    pub role: Role,
    pub state: NodeState,
    /// Why, when `state` is not Normal: `WAL`, `Connecting`, `Disconnected`... Empty when there is nothing to say.
    pub detail: String,
    /// `address:port` for clients; absent when none is configured.
    pub client: Option<String>,
    /// `address:port` for peers.
    pub peer: String,
    /// The node it streams from.
    pub upstream: Option<u16>,
    /// Absent for the primary itself and for nodes that do not stream.
    pub sync_state: Option<SyncState>,
    pub appended_lsn: Option<u64>,
    pub flushed_lsn: Option<u64>,
    pub committed_lsn: Option<u64>,
    pub applied_lsn: Option<u64>,
    /// Log bytes between the primary's end and what is flushed here.
    pub lag_bytes: Option<u64>,
    /// Age of the oldest committed write that is not applied here.
    pub lag_ms: Option<u64>,
}

impl NodeStatus {
    /// A row for a node that says nothing: everything unknown.
    pub fn silent(node: NodeId, host: &str, peer: &str, static_role: StaticRole, role: Role) -> NodeStatus {
        NodeStatus {
            node: node.0,
            instance: node.instance(),
            host: host.to_string(),
            data: String::new(),
            static_role,
            role,
            state: match role {
                Role::Down => NodeState::ManuallyStopped,
                _ => NodeState::Unknown,
            },
            detail: String::new(),
            client: None,
            peer: peer.to_string(),
            upstream: None,
            sync_state: None,
            appended_lsn: None,
            flushed_lsn: None,
            committed_lsn: None,
            applied_lsn: None,
            lag_bytes: None,
            lag_ms: None,
        }
    }

    /// `Normal`, or `Need repair(WAL)`: state and reason as `gs_om` prints them.
    pub fn state_text(&self) -> String {
        if self.shows_detail() { format!("{}({})", self.state, self.detail) } else { self.state.to_string() }
    }

    /// Whether the text of the state says the detail already.
    pub fn shows_detail(&self) -> bool {
        self.state == NodeState::NeedRepair && !self.detail.is_empty()
    }

    /// In order, and nothing to say about it: a full disk leaves the state Normal, and is told in `detail`.
    fn is_well(&self) -> bool {
        self.state == NodeState::Normal
            && self.detail.is_empty()
            && !matches!(self.role, Role::Down | Role::Unknown | Role::Pending)
    }
}

/// The policy generation in force.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PolicyStatus {
    pub generation: u64,
    /// `ANY 1 (1, 2, 3)`.
    pub rule: String,
    pub voters: Vec<u16>,
    /// Voters besides the leader that must hold a write.
    pub k: usize,
    /// Voters that may still be lost before a failover cannot find its quorum. Only the primary knows who is there:
    /// absent when it was not heard.
    pub failures_survived: Option<usize>,
    /// Voters that may still be lost while writes go on; absent likewise.
    #[serde(default)]
    pub writes_survive: Option<usize>,
    /// Too few voters answer for a commit: writes wait, and reads are refused.
    #[serde(default)]
    pub writes_wait: bool,
    /// Generations that are in the log and not committed yet: each of them must be satisfied as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<PolicyRule>,
    /// Copies besides the leader's that are meant to be, where fewer are asked for at present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded_from: Option<usize>,
    /// The control store as the answering node sees it; absent where the configuration names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreStatus>,
}

/// A policy generation in short.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyRule {
    pub generation: u64,
    /// `ANY 1 (1, 2, 3)`.
    pub rule: String,
}

impl PolicyStatus {
    /// What the next failures would mean.
    pub fn spare_in_words(&self) -> String {
        spare_in_words(self.failures_survived, self.writes_survive, self.writes_wait)
    }
}

/// The control store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreStatus {
    /// `dir:/run/baton-store`.
    pub place: String,
    /// It answered the newest question.
    pub reachable: bool,
    /// Changes of the policy key so far.
    pub revision: u64,
    /// The term that it granted last, and to which node; absent while it is empty or was not read.
    pub term: Option<u64>,
    pub leader: Option<u16>,
    /// The policy generation that it holds as committed.
    pub generation: Option<u64>,
    /// Generations that may be in a log above that one.
    pub pending: Vec<u64>,
    /// Why what it holds cannot be used.
    pub trouble: Option<String>,
}

impl StoreStatus {
    pub fn in_words(&self) -> String {
        let answers = if self.reachable { "answers" } else { "does not answer" };
        let holds = match (self.term, self.leader, self.generation) {
            (Some(term), Some(leader), Some(generation)) => {
                let pending: Vec<String> = self.pending.iter().map(u64::to_string).collect();
                let pending = match pending.is_empty() {
                    true => String::new(),
                    false => format!(", pending {}", pending.join(" ")),
                };
                format!("term {term} of node {leader}, generation {generation}{pending}")
            }
            _ => "nothing known".into(),
        };
        let trouble = self.trouble.as_ref().map_or(String::new(), |trouble| format!(": {trouble}"));
        format!("{} {answers}, revision {}: {holds}{trouble}", self.place, self.revision)
    }
}

/// What the next failures would mean, in one sentence.
pub fn spare_in_words(failover: Option<usize>, writes: Option<usize>, writes_wait: bool) -> String {
    let voters =
        |count: usize| if count == 1 { "1 more voter".into() } else { format!("{count} more voters") };
    match (failover, writes) {
        (None, _) => "unknown: the primary was not heard".into(),
        (Some(0), _) if writes_wait => {
            "none: too few voters answer for a commit, writes wait for one more".into()
        }
        (Some(0), _) => "none: with one more voter lost a failover finds no quorum".into(),
        (Some(spare), Some(writes)) if writes < spare => {
            let when = if writes == 0 { "with the first".into() } else { format!("after {writes}") };
            format!(
                "{} may be lost without losing a write, but writes stop {when} until `baton failover --alone`",
                voters(spare)
            )
        }
        (Some(spare), _) => format!("{} may be lost, no write is lost and writes go on", voters(spare)),
    }
}

/// The whole cluster: the JSON of `baton cluster status --json` and of `baton sandbox status --json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ClusterStatus {
    pub cluster_state: ClusterState,
    /// 32 hex digits.
    pub cluster_id: String,
    /// Number of the newest started term that is known.
    pub term: u64,
    pub policy: Option<PolicyStatus>,
    /// Ascending by node.
    pub nodes: Vec<NodeStatus>,
}

/// The rule of `gs_om`: Unavailable when the number of primaries is not exactly one or the primary is not Normal;
/// Degraded when any node is not well; Normal otherwise. A primary that cannot commit serves nobody: Unavailable too.
pub fn cluster_state(nodes: &[NodeStatus], policy: Option<&PolicyStatus>) -> ClusterState {
    if policy.is_some_and(|policy| policy.writes_wait) {
        return ClusterState::Unavailable;
    }
    let mut primaries = nodes.iter().filter(|node| node.role == Role::Primary);
    match (primaries.next(), primaries.next()) {
        (Some(primary), None) if primary.state == NodeState::Normal => {
            if nodes.iter().all(NodeStatus::is_well) { ClusterState::Normal } else { ClusterState::Degraded }
        }
        _ => ClusterState::Unavailable,
    }
}

impl ClusterStatus {
    /// Puts the rows in order and computes the verdict.
    pub fn new(
        cluster: ClusterId,
        term: u64,
        policy: Option<PolicyStatus>,
        mut nodes: Vec<NodeStatus>,
    ) -> Self {
        nodes.sort_by_key(|node| node.node);
        ClusterStatus {
            cluster_state: cluster_state(&nodes, policy.as_ref()),
            cluster_id: cluster.to_string(),
            term,
            policy,
            nodes,
        }
    }

    pub fn primary(&self) -> Option<&NodeStatus> {
        self.nodes.iter().find(|node| node.role == Role::Primary)
    }
}

/// One node's answer, or none, as the sandbox collects them: the node asked, and the cluster as that node sees it.
#[derive(Clone, Debug)]
pub struct View {
    pub node: u16,
    pub host: String,
    pub data: String,
    pub client: String,
    pub peer: String,
    pub static_role: StaticRole,
    pub answer: Option<ClusterStatus>,
}

/// Merges what every node says of itself: a node's own row wins over what others think of it, a node that does not
/// answer is Down, the term is the highest of any view, and the policy is the primary's own word when there is one.
///
/// Lag of a standby is measured against the primary's own end of log, because a standby cannot know it alone.
pub fn merge(views: &[View]) -> ClusterStatus {
    let newest = views.iter().filter_map(|view| view.answer.as_ref()).max_by_key(|status| status.term);
    let mut nodes: Vec<NodeStatus> = views.iter().map(|view| own_row(view, newest)).collect();
    nodes.sort_by_key(|node| node.node);
    let seen_by_primary = views.iter().find_map(|view| {
        let status = view.answer.as_ref()?;
        let me = status.nodes.iter().find(|row| row.node == view.node)?;
        (me.role == Role::Primary && newest.is_some_and(|newest| newest.term == status.term))
            .then_some(status)
    });
    if let Some(primary) = seen_by_primary {
        complete_from_primary(&mut nodes, primary);
    }
    let policy = seen_by_primary.or(newest).and_then(|status| status.policy.clone());
    ClusterStatus {
        cluster_state: cluster_state(&nodes, policy.as_ref()),
        cluster_id: newest.map_or_else(String::new, |status| status.cluster_id.clone()),
        term: newest.map_or(0, |status| status.term),
        policy,
        nodes,
    }
}

/// What a node says of itself; of a silent one, what its configuration says and who it was to the others.
fn own_row(view: &View, newest: Option<&ClusterStatus>) -> NodeStatus {
    let own = view.answer.as_ref().and_then(|status| status.nodes.iter().find(|row| row.node == view.node));
    own.cloned().unwrap_or_else(|| {
        let role = if view.answer.is_some() { Role::Unknown } else { Role::Down };
        let mut row = NodeStatus::silent(NodeId(view.node), &view.host, &view.peer, view.static_role, role);
        row.data = view.data.clone();
        row.client = Some(view.client.clone());
        if let Some(known) = newest.and_then(|status| status.nodes.iter().find(|row| row.node == view.node)) {
            row.static_role = known.static_role;
        }
        row
    })
}

/// Only the primary knows who counts towards commit and where the log ends.
fn complete_from_primary(nodes: &mut [NodeStatus], primary: &ClusterStatus) {
    let end = primary.primary().and_then(|row| row.appended_lsn);
    for row in nodes {
        let seen = primary.nodes.iter().find(|seen| seen.node == row.node);
        row.sync_state = row.sync_state.or(seen.and_then(|seen| seen.sync_state));
        row.lag_ms = row.lag_ms.map(|said| said.max(seen.and_then(|seen| seen.lag_ms).unwrap_or(0)));
        if row.role != Role::Primary
            && row.lag_bytes.is_none()
            && let (Some(end), Some(flushed)) = (end, row.flushed_lsn)
        {
            row.lag_bytes = Some(Lsn(end).since(Lsn(flushed)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(node: u16, role: Role, state: NodeState) -> NodeStatus {
        let mut row = NodeStatus::silent(NodeId(node), "h", "127.0.0.1:1", StaticRole::Standby, role);
        row.state = state;
        row
    }

    fn verdict(rows: &[(Role, NodeState)]) -> ClusterState {
        let rows: Vec<_> =
            rows.iter().zip(1..).map(|((role, state), node)| row(node, *role, *state)).collect();
        cluster_state(&rows, None)
    }

    #[test]
    fn the_verdict_is_the_rule_of_gs_om() {
        use NodeState::{Catchup, NeedRepair, Normal, Promoting};
        use Role::{CascadeStandby, Down, Pending, Primary, Standby};
        assert_eq!(verdict(&[(Primary, Normal)]), ClusterState::Normal);
        assert_eq!(verdict(&[(Primary, Normal), (Standby, Normal)]), ClusterState::Normal);
        assert_eq!(verdict(&[(Primary, Normal), (CascadeStandby, Normal)]), ClusterState::Normal);
        assert_eq!(verdict(&[(Primary, Normal), (Standby, NeedRepair)]), ClusterState::Degraded);
        assert_eq!(verdict(&[(Primary, Normal), (Standby, Catchup)]), ClusterState::Degraded);
        assert_eq!(verdict(&[(Primary, Normal), (Down, NodeState::ManuallyStopped)]), ClusterState::Degraded);
        assert_eq!(verdict(&[(Primary, Normal), (Pending, Normal)]), ClusterState::Degraded);
        assert_eq!(verdict(&[(Primary, Promoting), (Standby, Normal)]), ClusterState::Unavailable);
        assert_eq!(verdict(&[(Primary, Normal), (Primary, Normal)]), ClusterState::Unavailable);
        assert_eq!(verdict(&[(Standby, Normal)]), ClusterState::Unavailable);
        assert_eq!(verdict(&[]), ClusterState::Unavailable);

        let mut full = row(1, Primary, Normal);
        full.detail = "disk full: writes are refused".into();
        assert_eq!(cluster_state(&[full, row(2, Standby, Normal)], None), ClusterState::Degraded);
        let mut policy = PolicyStatus {
            generation: 1,
            rule: "ANY 1 (1, 2)".into(),
            voters: vec![1, 2],
            k: 1,
            failures_survived: Some(0),
            writes_survive: Some(0),
            writes_wait: false,
            pending: vec![],
            degraded_from: None,
            store: None,
        };
        let rows = [row(1, Primary, Normal), row(2, Down, NodeState::ManuallyStopped)];
        assert_eq!(cluster_state(&rows, Some(&policy)), ClusterState::Degraded, "it may commit still");
        policy.writes_wait = true;
        assert_eq!(cluster_state(&rows, Some(&policy)), ClusterState::Unavailable);
        assert!(policy.spare_in_words().contains("writes wait"));
    }

    fn view(node: u16, answer: Option<ClusterStatus>) -> View {
        let name = node.to_string();
        View {
            node,
            host: name.clone(),
            data: name.clone(),
            client: name.clone(),
            peer: name,
            static_role: StaticRole::Standby,
            answer,
        }
    }

    #[test]
    fn merging_believes_each_node_about_itself_and_the_newest_term_about_the_rest() {
        let mut old = row(1, Role::Primary, NodeState::Normal);
        old.appended_lsn = Some(500);
        let stale =
            ClusterStatus::new(ClusterId(7), 4, None, vec![old, row(2, Role::Standby, NodeState::Normal)]);
        let mut leader = row(2, Role::Primary, NodeState::Normal);
        leader.appended_lsn = Some(900);
        let mut follower_seen = row(3, Role::Standby, NodeState::Catchup);
        follower_seen.sync_state = Some(SyncState::Quorum);
        let fresh = ClusterStatus::new(ClusterId(7), 5, None, vec![leader, follower_seen]);
        let mut follower = row(3, Role::Standby, NodeState::Normal);
        follower.flushed_lsn = Some(850);
        let own = ClusterStatus::new(ClusterId(7), 5, None, vec![follower]);

        let two = merge(&[view(1, Some(stale)), view(2, Some(fresh.clone())), view(3, Some(own.clone()))]);
        assert_eq!(two.cluster_state, ClusterState::Unavailable, "two nodes call themselves primary");

        let merged = merge(&[view(3, Some(own)), view(1, None), view(2, Some(fresh))]);
        assert_eq!(merged.cluster_state, ClusterState::Degraded);
        assert_eq!(merged.term, 5);
        assert_eq!(merged.nodes.iter().map(|row| row.node).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(merged.nodes[0].role, Role::Down);
        assert_eq!(merged.nodes[2].state, NodeState::Normal, "its own word wins");
        assert_eq!(merged.nodes[2].sync_state, Some(SyncState::Quorum), "the primary knows who counts");
        assert_eq!(merged.nodes[2].lag_bytes, Some(50));
        assert_eq!(merged.nodes[2].lag_ms, None);
    }

    #[test]
    fn the_json_fields_are_exactly_the_contract() {
        let status = ClusterStatus::new(
            ClusterId(1),
            1,
            None,
            vec![row(1, Role::CascadeStandby, NodeState::NeedRepair)],
        );
        let json = serde_json::to_value(&status).unwrap();
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let mut top = keys(&json);
        top.sort();
        assert_eq!(top, ["cluster_id", "cluster_state", "nodes", "policy", "term"]);
        let mut fields = keys(&json["nodes"][0]);
        fields.sort();
        let mut wanted = [
            "node",
            "instance",
            "host",
            "data",
            "static_role",
            "role",
            "state",
            "detail",
            "client",
            "peer",
            "upstream",
            "sync_state",
            "appended_lsn",
            "flushed_lsn",
            "committed_lsn",
            "applied_lsn",
            "lag_bytes",
            "lag_ms",
        ];
        wanted.sort_unstable();
        assert_eq!(fields, wanted);
        assert_eq!(json["nodes"][0]["role"], "Cascade Standby");
        assert_eq!(json["nodes"][0]["instance"], 6001);
        assert!(json["nodes"][0]["lag_ms"].is_null());
        let back: ClusterStatus = serde_json::from_value(json).unwrap();
        assert_eq!(back, status);
    }
}

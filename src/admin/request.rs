//! The requests.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a node stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    /// Disconnects clients, seals and flushes what was accepted, then exits.
    #[default]
    Fast,
    /// Exits at once; the next start recovers as after a crash.
    Immediate,
}

/// Makes the asked node the primary, after a recruit of the voters (`protocol` 3.5).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Failover {
    /// Only say what would happen.
    pub dry_run: bool,
    /// Lower k to 0 by a forced, recorded generation (`protocol` 4.3): the node serves alone.
    pub alone: bool,
    /// Go on although the old primary seems alive.
    pub force: bool,
    /// Do it only if the newest known term has this number.
    pub expect_term: Option<u64>,
    /// Confirms that the stated loss is taken.
    pub accept_loss: bool,
    /// How long to try, 0 for the default.
    pub timeout_ms: u64,
}

/// A role that is asked for with `-M`: a request, never an order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WantedRole {
    Primary,
    Standby,
    CascadeStandby,
    /// Streams from nobody until it is told its role.
    Pending,
}

/// Hands the primary's work to another node without losing anything (`protocol` 6). Any node may be asked.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Switchover {
    /// Who shall lead; without it a standby means itself, and a primary chooses.
    pub to: Option<u16>,
    pub dry_run: bool,
    /// Do it only if the newest known term has this number.
    pub expect_term: Option<u64>,
    /// Writes are held at most that long, 0 for the default; then it is undone.
    pub timeout_ms: u64,
}

/// Puts another policy generation into force. The primary is asked; a standby passes it on.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySet {
    /// `ANY k (1, 2, 3)` or `FIRST k (...)`.
    pub rule: String,
    /// Do it only if this generation is in force; 0 for whatever it is.
    pub expect_generation: u64,
    /// Accept fewer copies although no control store decides it.
    pub force: bool,
    pub dry_run: bool,
    pub timeout_ms: u64,
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Verb {
    /// Is anybody there? Answers pid and version, from the control thread alone.
    Ping,
    /// This node's own row ([`crate::cluster::NodeStatus`]).
    Status,
    /// The layout of `gs_ctl query` ([`crate::cluster::QueryStatus`]).
    Query,
    /// The cluster as this node knows it ([`crate::cluster::ClusterStatus`]).
    ClusterStatus {
        #[serde(default)]
        detail: bool,
    },
    Failover(Failover),
    Switchover(Switchover),
    PolicySet(PolicySet),
    /// Write the newest format that every member speaks, for good.
    FinalizeUpgrade,
    /// A role for a node that runs.
    Role {
        role: WantedRole,
        #[serde(default)]
        alone: bool,
    },
    /// Role and policy changes that this node wrote down ([`crate::cluster::History`]).
    History {
        #[serde(default)]
        limit: usize,
    },
    /// A configuration file's text: what can be changed while the node runs is changed.
    Reload {
        text: String,
        /// Where the file lies, for relative paths.
        folder: String,
    },
    Stop {
        #[serde(default)]
        mode: StopMode,
    },
    /// Who holds log ([`super::WalKeepers`]).
    WalKeepers,
    /// The configuration in force, secrets left out.
    ConfigShow,
    /// Prometheus text under `text`.
    Metrics,
    /// The policy generation in force ([`crate::cluster::PolicyStatus`]).
    PolicyShow,
}

const QUICK: Duration = Duration::from_millis(900);
const FAILOVER_DEFAULT: Duration = Duration::from_secs(30);
/// An ordered stop is answered before it is carried out.
const STOP: Duration = Duration::from_secs(5);
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

const SWITCHOVER_DEFAULT: Duration = Duration::from_secs(5);
const SWITCHOVER_TAIL: Duration = Duration::from_secs(16);
const POLICY_DEFAULT: Duration = Duration::from_secs(15);
const ROLE: Duration = Duration::from_secs(16);

fn limited(ms: u64, default: Duration) -> Duration {
    match ms {
        0 => default,
        ms => Duration::from_millis(ms).min(TIMEOUT_MAX),
    }
}

impl Switchover {
    /// How long writes may be held.
    pub fn timeout(&self) -> Duration {
        limited(self.timeout_ms, SWITCHOVER_DEFAULT)
    }
}

impl PolicySet {
    pub fn timeout(&self) -> Duration {
        limited(self.timeout_ms, POLICY_DEFAULT)
    }
}

impl Failover {
    /// How long the node tries.
    pub fn timeout(&self) -> Duration {
        limited(self.timeout_ms, FAILOVER_DEFAULT)
    }
}

impl Verb {
    /// The word on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Verb::Ping => "ping",
            Verb::Status => "status",
            Verb::Query => "query",
            Verb::ClusterStatus { .. } => "cluster_status",
            Verb::Failover(_) => "failover",
            Verb::Switchover(_) => "switchover",
            Verb::PolicySet(_) => "policy_set",
            Verb::FinalizeUpgrade => "finalize_upgrade",
            Verb::Role { .. } => "role",
            Verb::History { .. } => "history",
            Verb::Reload { .. } => "reload",
            Verb::Stop { .. } => "stop",
            Verb::WalKeepers => "wal_keepers",
            Verb::ConfigShow => "config_show",
            Verb::Metrics => "metrics",
            Verb::PolicyShow => "policy_show",
        }
    }

    pub(super) fn has_no_fields(&self) -> bool {
        match self {
            Verb::Ping | Verb::Status | Verb::Query | Verb::FinalizeUpgrade => true,
            Verb::WalKeepers | Verb::ConfigShow | Verb::Metrics | Verb::PolicyShow => true,
            Verb::ClusterStatus { .. } | Verb::Role { .. } | Verb::History { .. } => false,
            Verb::Reload { .. } | Verb::Stop { .. } => false,
            Verb::Failover(_) | Verb::Switchover(_) | Verb::PolicySet(_) => false,
        }
    }

    /// Whether it changes something, so that it must not be carried out twice under one op id.
    pub fn changes(&self) -> bool {
        match self {
            Verb::Failover(failover) => !failover.dry_run,
            Verb::Switchover(switchover) => !switchover.dry_run,
            Verb::PolicySet(policy) => !policy.dry_run,
            Verb::FinalizeUpgrade | Verb::Role { .. } | Verb::Reload { .. } | Verb::Stop { .. } => true,
            _ => false,
        }
    }

    /// Whether it changes the leader or the policy, so that its op id goes into the log and every node can answer when it
    /// is asked again.
    pub fn is_kept_by_all(&self) -> bool {
        match self {
            Verb::Failover(_) | Verb::Switchover(_) | Verb::PolicySet(_) => self.changes(),
            Verb::Role { role, .. } => *role == WantedRole::Primary,
            _ => false,
        }
    }

    /// How long the control thread waits for the node's loop before it answers by itself.
    pub fn patience(&self) -> Duration {
        match self {
            Verb::Failover(failover) => failover.timeout() + Duration::from_secs(1),
            // Behind the point of no return the end is awaited beyond the time for which writes are held.
            Verb::Switchover(switchover) => switchover.timeout() + SWITCHOVER_TAIL,
            Verb::PolicySet(policy) => policy.timeout() + Duration::from_secs(1),
            Verb::FinalizeUpgrade | Verb::Role { .. } => ROLE,
            Verb::Stop { mode: StopMode::Fast } => STOP,
            _ => QUICK,
        }
    }
}

/// A request with its envelope.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Request {
    /// Version of the sender.
    pub v: u16,
    /// Chosen by the sender; asking again with the same id never does a thing twice.
    pub op: String,
    #[serde(flatten)]
    pub verb: Verb,
}

impl Request {
    pub fn new(op: impl Into<String>, verb: Verb) -> Request {
        Request { v: super::VERSION, op: op.into(), verb }
    }
}

//! What the operator meant: typed values with units. Made by [`super::check`] only, so a value that exists is checked.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::sync::SyncRule;
use super::units::{show_duration, show_size};
use crate::base::NodeId;
use crate::base::limits::{CORE_MEMORY_BYTES_MIN, CORES_DEFAULT_MAX};

/// When a reply may be sent (openGauss and PostgreSQL names).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum CommitLevel {
    /// At once; what a crash of the primary loses may already have been answered.
    Off,
    /// Durable on the primary.
    Local,
    /// Durable on the primary and written by the standbys of the policy.
    RemoteWrite,
    /// Durable on the primary and on the standbys of the policy. The default.
    On,
    /// And applied there, so that a read on those standbys sees it.
    RemoteApply,
}

impl CommitLevel {
    pub fn name(self) -> &'static str {
        match self {
            CommitLevel::Off => "off",
            CommitLevel::Local => "local",
            CommitLevel::RemoteWrite => "remote_write",
            CommitLevel::On => "on",
            CommitLevel::RemoteApply => "remote_apply",
        }
    }

    /// `remote_receive` is accepted as `remote_write`: with O_DIRECT there is no stage between the two.
    pub fn from_name(name: &str) -> Option<CommitLevel> {
        Some(match name {
            "off" => CommitLevel::Off,
            "local" => CommitLevel::Local,
            "remote_write" | "remote_receive" => CommitLevel::RemoteWrite,
            "on" => CommitLevel::On,
            "remote_apply" => CommitLevel::RemoteApply,
            _ => return None,
        })
    }
}

/// What a read on the primary promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reads {
    /// Needs the read lease: no read ever misses a write that was acknowledged before it began.
    Linearizable,
    /// No lease: a primary that was replaced without knowing it may answer from the past for a moment.
    Local,
}

/// The control store that grants promotions and changes of the policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreChoice {
    None,
    /// A folder that all nodes of the cluster share, on one machine.
    Dir(PathBuf),
}

impl fmt::Display for StoreChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreChoice::None => f.write_str("none"),
            StoreChoice::Dir(folder) => write!(f, "dir:{}", folder.display()),
        }
    }
}

/// What happens when fewer voters are left than commit needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Degrade {
    /// Writes wait, up to `commit_timeout`.
    Never,
    /// After this time the control store may lower k.
    After(Duration),
}

impl Reads {
    pub fn name(self) -> &'static str {
        match self {
            Reads::Linearizable => "linearizable",
            Reads::Local => "local",
        }
    }
}

impl fmt::Display for Degrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Degrade::Never => f.write_str("never"),
            Degrade::After(time) => write!(f, "after {}", show_duration(*time)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalSync {
    /// Calibrated at start, and said in the log.
    Auto,
    Dsync,
    Fdatasync,
}

impl WalSync {
    pub fn name(self) -> &'static str {
        match self {
            WalSync::Auto => "auto",
            WalSync::Dsync => "dsync",
            WalSync::Fdatasync => "fdatasync",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    Human,
    Json,
}

impl LogFormat {
    pub fn name(self) -> &'static str {
        match self {
            LogFormat::Human => "human",
            LogFormat::Json => "json",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// A password or key that never shows itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The secret itself: for the authentication code only.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A node of the cluster as the configuration seeds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    pub node: NodeId,
    pub host: String,
    pub client: Option<SocketAddr>,
    pub peer: SocketAddr,
    pub priority: u32,
    pub nofailover: bool,
    /// Makes it a cascaded standby below that member.
    pub upstream: Option<NodeId>,
    /// As a standby it applies each commit that much later.
    pub apply_delay: Option<Duration>,
}

/// A checked configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    pub cluster: String,
    pub node: NodeId,
    pub data: PathBuf,
    pub client_listen: SocketAddr,
    pub peer_listen: SocketAddr,
    pub http_listen: Option<SocketAddr>,
    /// `None`: by the machine, see [`Config::cores_on`].
    pub cores: Option<u16>,
    /// `None`: by the machine.
    pub redo_workers: Option<usize>,
    pub memory: u64,
    /// Seeds policy generation 1.
    pub sync: SyncRule,
    pub degrade: Degrade,
    pub store: StoreChoice,
    pub commit: CommitLevel,
    pub commit_timeout: Duration,
    pub reads: Reads,
    pub client_password: Option<Secret>,
    pub peer_secret: Option<Secret>,
    pub max_clients: usize,
    /// `None`: 16 GiB, or a tenth of the disk where that is more.
    pub log_retention: Option<u64>,
    pub shards: u16,
    pub segment_bytes: u64,
    pub staleness_bound: Option<Duration>,
    /// Bytes per second that the scrubber reads; 0 = off.
    pub scrub_rate: u64,
    /// Its pause between two passes.
    pub scrub_every: Duration,
    /// A voter silent for this long loses its vote until it is back.
    pub voter_timeout: Option<Duration>,
    /// A disk that does not answer for this long makes a primary step down.
    pub stall_timeout: Duration,
    /// How long the loop may look for completions without sleeping. Zero: never.
    pub busy_poll: Duration,
    pub wal_sync: WalSync,
    /// `None`: calibrated.
    pub frames_in_flight: Option<usize>,
    /// A file whose appearance promotes this node; it is removed then.
    pub promote_trigger_file: Option<PathBuf>,
    pub log_level: LogLevel,
    pub log_format: LogFormat,
    /// Ascending by node id; this node is one of them.
    pub members: Vec<Member>,
}

impl Config {
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.iter().find(|member| member.node == node)
    }

    /// This node's own entry.
    pub fn me(&self) -> &Member {
        self.member(self.node).expect("a checked configuration lists its own node")
    }

    /// Every other member, in ascending order.
    pub fn peers(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.node != self.node)
    }

    /// By how much a member applies later than it could, as a standby.
    pub fn apply_delay(&self, node: NodeId) -> Option<Duration> {
        self.member(node).and_then(|member| member.apply_delay)
    }

    /// How many cores this node uses on a machine with so many processors, and why.
    ///
    /// Members whose peer addresses are equal, or both loopback, run on one machine and leave each other room.
    pub fn cores_on(&self, processors: usize) -> (u16, String) {
        if let Some(cores) = self.cores {
            return (cores, "as configured".to_string());
        }
        let own = self.me().peer.ip();
        let here = |ip: IpAddr| ip == own || (ip.is_loopback() && own.is_loopback());
        if self.peers().any(|member| here(member.peer.ip())) {
            return (1, "other members run on this machine".to_string());
        }
        let by_memory = self.memory / CORE_MEMORY_BYTES_MIN;
        let cores = (processors as u64).min(by_memory).clamp(1, u64::from(CORES_DEFAULT_MAX));
        let why = format!("alone on this machine, which offers {processors} processors");
        (cores as u16, why)
    }

    pub fn is_voter(&self, node: NodeId) -> bool {
        self.sync.voters.contains(&node)
    }

    /// The description as JSON, for the admin socket.
    pub fn show(&self) -> serde_json::Value {
        let pairs = self
            .describe()
            .into_iter()
            .map(|(key, value)| (key.to_string(), serde_json::Value::String(value)));
        serde_json::Value::Object(pairs.collect())
    }

    /// Every key with the value in force, as it would be written; secrets only say that they are set.
    pub fn describe(&self) -> Vec<(&'static str, String)> {
        let secret = |secret: &Option<Secret>| if secret.is_some() { "set" } else { "none" }.to_string();
        let time = |time: Option<Duration>| time.map_or_else(|| "none".into(), show_duration);
        vec![
            ("cluster", self.cluster.clone()),
            ("node", self.node.to_string()),
            ("data", self.data.display().to_string()),
            ("client_listen", self.client_listen.to_string()),
            ("peer_listen", self.peer_listen.to_string()),
            ("http_listen", self.http_listen.map_or_else(|| "none".into(), |address| address.to_string())),
            ("cores", self.cores.map_or_else(|| "by the machine".into(), |cores| cores.to_string())),
            ("redo_workers", self.redo_workers.map_or_else(|| "by the machine".into(), |n| n.to_string())),
            ("memory", show_size(self.memory)),
            ("sync", self.sync.to_string()),
            ("degrade", self.degrade.to_string()),
            ("commit", self.commit.name().into()),
            ("commit_timeout", show_duration(self.commit_timeout)),
            ("reads", self.reads.name().into()),
            ("client_password", secret(&self.client_password)),
            ("peer_secret", secret(&self.peer_secret)),
            ("max_clients", self.max_clients.to_string()),
            ("log_retention", self.log_retention.map_or_else(|| "max(16GiB, 10% of disk)".into(), show_size)),
            ("shards", self.shards.to_string()),
            ("segment_bytes", show_size(self.segment_bytes)),
            ("staleness_bound", time(self.staleness_bound)),
            ("scrub_rate", show_size(self.scrub_rate)),
            ("scrub_every", show_duration(self.scrub_every)),
            ("voter_timeout", time(self.voter_timeout)),
            ("stall_timeout", show_duration(self.stall_timeout)),
            ("busy_poll", show_duration(self.busy_poll)),
            ("wal_sync", self.wal_sync.name().into()),
            (
                "frames_in_flight",
                self.frames_in_flight.map_or_else(|| "calibrated".into(), |n| n.to_string()),
            ),
            ("store", self.store.to_string()),
            (
                "promote_trigger_file",
                self.promote_trigger_file
                    .as_ref()
                    .map_or_else(|| "none".into(), |path| path.display().to_string()),
            ),
            ("log_level", self.log_level.name().into()),
            ("log_format", self.log_format.name().into()),
            (
                "member",
                self.members.iter().map(|m| format!("{}@{}", m.node, m.peer)).collect::<Vec<_>>().join(", "),
            ),
        ]
    }
}

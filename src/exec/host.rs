//! What commands need of the node around them.

use super::session::Session;
use crate::base::Stamp;
use crate::resp::{Args, Reply};

/// The node, as commands see it. Calls are synchronous and cheap; nothing here touches keys.
pub trait Host {
    /// Appends `name:value\r\n` lines of one INFO section: `server`, `clients`, `memory`, `persistence`, `stats`,
    /// `replication`, `cpu` or `baton`. This room adds its own lines to `stats`, and the sections `commandstats`,
    /// `errorstats`, `modules`, `cluster` and `keyspace`.
    fn info(&self, section: &str, out: &mut Vec<u8>);
    /// For ROLE and HELLO.
    fn role(&self) -> Role;
    /// Microseconds since the Unix epoch.
    fn time_us(&self) -> u64;

    /// Every connected client, in order of its id, but for the one whose command is being executed.
    fn visit_clients(&self, visit: &mut dyn FnMut(&Session, &ClientFacts));
    /// The connection of the client whose command is being executed.
    fn facts(&self, session: u64) -> ClientFacts;
    /// Closes another client's connection.
    fn close_client(&mut self, session: u64);

    /// Whether clients must authenticate.
    fn password_required(&self) -> bool;
    /// Compares in constant time. `user` is `default` when the client gave none.
    fn password_ok(&self, user: &[u8], password: &[u8]) -> bool;

    /// Every parameter that CONFIG GET shows, with its value. This room adds those that only libraries ask for.
    fn visit_config(&self, visit: &mut dyn FnMut(&str, &str));
    /// Changes a parameter, or says why not (without a code word).
    fn config_set(&mut self, name: &str, value: &str) -> Result<(), String>;
    /// CONFIG RESETSTAT, behind the counters of this room.
    fn reset_stats(&mut self);

    /// How many standbys have made everything up to `stamp` durable: the answer to WAIT where it cannot wait.
    fn replicas_acked(&self, stamp: Stamp) -> u32;

    /// Commands named `BATON.*` that this room does not know. Writes one reply and says so, or returns false: unknown.
    fn extension(&mut self, session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> bool;
}

/// The answer to ROLE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    Master { offset: u64, replicas: Vec<ReplicaRole> },
    Replica { host: String, port: u16, state: ReplicaState, offset: i64 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRole {
    pub host: String,
    pub port: u16,
    pub offset: u64,
}

/// A standby's link, in the words of Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaState {
    Connect,
    Connecting,
    Sync,
    Connected,
}

impl ReplicaState {
    pub fn name(self) -> &'static str {
        match self {
            ReplicaState::Connect => "connect",
            ReplicaState::Connecting => "connecting",
            ReplicaState::Sync => "sync",
            ReplicaState::Connected => "connected",
        }
    }
}

/// What the node knows about a client's connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFacts {
    /// `address:port` of the peer and of our own end.
    pub addr: String,
    pub laddr: String,
    pub fd: i64,
    pub age_s: u64,
    pub idle_s: u64,
    /// Bytes of the input buffer in use, and of replies waiting.
    pub input_bytes: usize,
    pub output_bytes: usize,
}

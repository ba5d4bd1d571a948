//! What role machines say to each other, and the bytes of it. Bounded, and no bytes panic.

use super::history::History;
use super::policy::{Generation, PendingGeneration};
use super::state::{Role, State};
use crate::base::{CommittedLsn, Incarnation, Lsn, NodeId, Term};

/// Longest encoded message.
pub const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// What a node says of its log and of what it knows; the body of a promise and of a dry answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub incarnation: Incarnation,
    /// Term of the last frame in the log, never the promised term.
    pub last_term: Term,
    pub end: Lsn,
    pub committed: CommittedLsn,
    /// Log whole, not a learner, not building, not damaged.
    pub whole: bool,
    pub history: History,
    pub policy: Generation,
    pub pending: Option<PendingGeneration>,
}

/// A leader as somebody sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderSeen {
    pub node: NodeId,
    pub term: Term,
    /// Milliseconds since it was last heard; 0 when the speaker is the leader.
    pub heard_ms: u64,
}

/// The answer to a promise request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromiseAnswer {
    /// Durable, drained, flushed.
    Promised(Report),
    /// A read lease that this node granted still runs: ask again then.
    Wait { ms: u64 },
    /// This node promised a higher term, or leads and is alive (`leading`).
    Refused { promised: Term, leading: bool },
}

/// A message between role machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoleMessage {
    /// Would a recruit work? Binds nobody.
    Dry {
        attempt: u64,
    },
    DryReply {
        attempt: u64,
        promised: Term,
        leader: Option<LeaderSeen>,
        lease_ms: u64,
        report: Report,
    },
    /// Promise `term`. `force`: stop granting leases at once so that the wait ends.
    Promise {
        term: Term,
        force: bool,
    },
    PromiseReply {
        term: Term,
        answer: PromiseAnswer,
    },
    /// A leader that has started `term` (its term-start frame is in its log) says so.
    Announce {
        term: Term,
        history: History,
        end: Lsn,
        committed: CommittedLsn,
    },
    /// Who leads?
    StatusProbe,
    Status {
        promised: Term,
        leader: Option<LeaderSeen>,
        role: Role,
        state: State,
        end: Lsn,
        committed: CommittedLsn,
    },
    /// Step aside for an operator's failover.
    Yield {
        attempt: u64,
    },
    YieldReply {
        attempt: u64,
        granted: bool,
    },
    /// The leader of `term` gives its read lease back: promises need not wait for it.
    LeaseRelease {
        term: Term,
    },
    /// This node promised `promised`, so sessions of lower terms are over.
    Fenced {
        promised: Term,
    },
}

impl RoleMessage {
    pub fn encode(&self, _out: &mut Vec<u8>) {
        todo!()
    }
    /// Decodes exactly `bytes`; `None` when they are no message.
    pub fn decode(_bytes: &[u8]) -> Option<RoleMessage> {
        todo!()
    }
}

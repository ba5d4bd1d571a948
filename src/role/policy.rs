//! Policy generations: who votes, how many copies make a commit, and what a recruit must therefore gather.
//!
//! Committed = flushed on the leader and on `k` other voters; recruit quorum = `|V| - k`. A leader that is not itself a
//! voter needs `k + 1` of them, because only voters meet a recruit quorum. The same count holds for the read lease.

use std::fmt;

use crate::base::limits::{NODES_MAX, VOTERS_MAX};
use crate::base::{FlushedLsn, Incarnation, Lsn, NodeId};

/// A member, bound to the data folder it had when the generation was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Voter {
    pub node: NodeId,
    /// `Incarnation(0)` in the seed generation: not bound yet.
    pub incarnation: Incarnation,
}

/// One policy generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// 0 is the seed from the configuration; the first leader of a cluster writes generation 1.
    pub number: u64,
    /// Leader included. In the order of `FIRST k (...)` when `first` is set.
    pub voters: Vec<Voter>,
    /// Copies besides the leader's.
    pub k: u8,
    /// `FIRST`: wait for the first `k` connected voters in order. Chooses whom to wait for, never shrinks the voters.
    pub first: bool,
    /// Installed by force: it replaces its predecessor without the predecessor's agreement.
    pub forced: bool,
    /// Members that stream but never vote.
    pub standbys: Vec<Voter>,
}

/// A generation whose record is in the log but not known to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingGeneration {
    pub generation: Generation,
    /// First byte of the frame that holds the record.
    pub start: Lsn,
    /// End of that frame: committed to here, the generation is in force alone.
    pub end: Lsn,
}

/// The commit rule in force, for the replication room: all of `generations` must agree, and nothing commits before the
/// term-start frame does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitRule {
    pub leader: NodeId,
    pub incarnation: Incarnation,
    pub generations: Vec<Generation>,
    /// End of the term-start frame. A lower commit candidate is no commit.
    pub floor: Lsn,
}

/// `sync = "ANY k (1,2,3)" | "FIRST k (...)" | "auto"` as typed and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    Auto,
    Any { k: u8, voters: Vec<NodeId> },
    First { k: u8, voters: Vec<NodeId> },
}

/// What is wrong with a `sync` setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncError(pub &'static str);

impl Generation {
    /// The seed generation of a cluster of `members`, by the defaults of `protocol` section 1 or by `sync`.
    pub fn seed(_members: &[NodeId], _sync: &SyncPolicy) -> Result<Generation, SyncError> {
        todo!()
    }
    /// True when this is the unbound seed.
    pub fn is_seed(&self) -> bool {
        self.number == 0
    }
    /// Counting voters that a recruit needs.
    pub fn recruit_quorum(&self) -> usize {
        todo!()
    }
    /// Other voters whose flush a commit (or whose grant a lease) needs, for a leader that is or is not a voter.
    pub fn others_needed(&self, _leader: NodeId, _incarnation: Incarnation) -> usize {
        todo!()
    }
    /// True when this very incarnation of the node votes.
    pub fn lists(&self, _node: NodeId, _incarnation: Incarnation) -> bool {
        todo!()
    }
    /// How many voters may still die before a failover is impossible, with `alive` voters now.
    pub fn failures_survived(&self, _alive: usize) -> usize {
        todo!()
    }
    pub fn encode(&self, _out: &mut Vec<u8>) {
        todo!()
    }
    /// Decodes exactly `bytes`; `None` when they are no generation.
    pub fn decode(_bytes: &[u8]) -> Option<Generation> {
        todo!()
    }
}

impl CommitRule {
    /// The commit index that these flush positions allow; `None` when nothing new is committed yet.
    /// `followers`: voters connected in the current session only.
    pub fn commit(&self, _own: FlushedLsn, _followers: &[(NodeId, Incarnation, FlushedLsn)]) -> Option<Lsn> {
        todo!()
    }
}

impl SyncPolicy {
    pub fn parse(_text: &str) -> Result<SyncPolicy, SyncError> {
        todo!()
    }
}

impl fmt::Display for SyncError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}
impl std::error::Error for SyncError {}

const _: () = assert!(VOTERS_MAX <= NODES_MAX);

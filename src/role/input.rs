//! What goes into the role machine and what comes out of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::control::{ControlState, DataStatus};
use super::done::{Deed, OpMark, OpRecord};
use super::history::History;
use super::machine::Traits;
use super::message::RoleMessage;
use super::policy::Generation;
use super::state::{Role, State};
use crate::base::{CommittedLsn, FlushedLsn, Incarnation, Lsn, Mono, NodeId, Term};

/// The log of this node as it stands when an input is handled. The machine keeps no copy of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogView {
    /// End of the last frame in the log, flushed or not.
    pub end: Lsn,
    /// Term of the last frame in the log; [`Term::NONE`] for an empty log. Never the promised term.
    pub last_term: Term,
    pub flushed: FlushedLsn,
    /// What this node *knows* to be committed.
    pub committed: CommittedLsn,
    /// False when recovery found damage below a known-durable mark (`protocol` 5.1).
    pub whole: bool,
}

/// One event. Tickets tie an answer to the effect that asked for it; a late answer to an abandoned step is ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The log is written in this format from now on, or a frame of it came in: the control file names it, for good.
    FormatWanted { version: u16 },
    /// Call at least every [`super::machine::TICK`].
    Tick,
    /// An operator, an agent or the start mode asks. Answered by exactly one [`Effect::Reply`] with the same `op`. A
    /// change with a `mark` that was made before under that mark, here or elsewhere, is answered and not made again.
    Command { op: u64, mark: Option<OpMark>, command: Command },
    /// A message of an authenticated peer of this cluster.
    Peer { from: NodeId, incarnation: Incarnation, message: RoleMessage },
    /// A connection to a peer finished its handshake.
    PeerUp { node: NodeId, incarnation: Incarnation },
    /// The last connection to a peer ended. `process_gone`: by the peer's own FIN or RST, never by a local timeout.
    /// When this node itself closes the connection, hand this in *before* the socket closes: the peer may take the FIN
    /// for this process's death, and a leader must not count on that peer's lease grant any more.
    PeerDown { node: NodeId, process_gone: bool },
    /// Both control copies hold this image generation (or a newer one), flushed.
    Persisted { generation: u64 },
    /// Answer to [`Effect::Drain`]: no ack of an older session will leave any more, every log write and truncation
    /// that was in flight is done and flushed, so `log.flushed == log.end`.
    Drained { ticket: u64 },
    /// Answer to [`Effect::Truncate`]: the tail is zeroed and flushed.
    Truncated { ticket: u64 },
    /// Answer to [`Effect::FastForward`]. On success everything up to the asked LSN is flushed here.
    FastForwarded { ticket: u64, result: Result<(), FastForwardFailure> },
    /// Answer to [`Effect::AppendTermStart`]: the frame (and a filler in front of it, if one was needed) is sealed.
    /// `start` is the first byte of the new term, `end` the end of the frame with the term-start record.
    TermAppended { start: Lsn, end: Lsn },
    /// `log.committed` moved.
    CommitMoved,
    /// A frame with a policy record was appended to this log as a standby, or met during recovery. Until the machine
    /// has it durable, [`super::RoleMachine::ack_limit`] holds acks below `end`.
    PolicyAppended { generation: Generation, start: Lsn, end: Lsn },
    /// A frame of this log carries an op: as [`Input::PolicyAppended`], but no ack waits for it.
    OpAppended { op: OpRecord, start: Lsn, end: Lsn },
    /// The leader of the followed session was heard (heartbeat or frame). `end` is its end of log as last told.
    /// Also report it, at most every few ms, while the stream is busy.
    Heartbeat { leader: NodeId, term: Term, end: Lsn },
    /// A voter answered the heartbeat that this leader sent at `sent`, in a session of `term`, with a lease grant.
    Granted { from: NodeId, incarnation: Incarnation, term: Term, sent: Mono },
    /// A peer refused a session of this node because it promised `promised`.
    SessionRefused { by: NodeId, promised: Term },
    /// A build began or ended, recovery found damage, or a repair made the data whole again. `incarnation` changes
    /// when a full build gave the folder a new life; such a build also brings its source's history (up to the end of
    /// the built log) and committed policy. A build touches log or store only after `Building` is durable. The promise stays: it belongs to the node, not to the data.
    DataChanged {
        status: DataStatus,
        incarnation: Incarnation,
        history: Option<History>,
        policy: Option<Generation>,
    },
    /// A log write or flush failed: the machine latches and asks for nothing more.
    LogFailed,
    /// A write or flush that commits wait for is under way for too long, or (`false`) none is any more.
    DiskStalled { stalled: bool },
    /// The configuration says something else of the members.
    TraitsChanged { traits: BTreeMap<NodeId, Traits> },
    /// Answer to [`Effect::HoldWrites`]: no command runs that could write, nothing waits unsealed, and nothing but
    /// the machine itself appends any more. From here on `log.end` stands still until writes are resumed.
    WritesHeld { ticket: u64 },
    /// Answer to [`Effect::AppendPolicy`]: the frame with the record is sealed. Handed in before the commit index is
    /// looked at again.
    PolicyRecorded { ticket: u64, start: Lsn, end: Lsn },
    /// Answer to [`Effect::Store`].
    StoreAnswered { ticket: u64, answer: StoreAnswer },
}

/// A question to the control store about the cluster's policy key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreRequest {
    Read,
    /// Put `value` there if the key is still at revision `expect`; 0 for a key that was never written.
    Swap {
        expect: u64,
        value: Vec<u8>,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreAnswer {
    /// This is what stands there: the answer to a read, or to a swap that lost.
    Stands { revision: u64, value: Option<Vec<u8>> },
    /// The swap is done.
    Done { revision: u64 },
    /// The store was not reached: nothing was done.
    Silent,
    /// The swap may or may not have been done.
    Unknown,
}

/// Why a fast-forward did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastForwardFailure {
    /// The source went away, refused the session or timed out.
    Unreachable,
    /// The source no longer keeps the log from this node's end: a build is needed first.
    NotRetained,
}

/// What the first frame of a term must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TermStart {
    pub term: Term,
    pub leader: NodeId,
    pub incarnation: Incarnation,
    pub previous_term: Term,
    /// The new term starts exactly here: the end of the log when this effect is given.
    pub previous_end: Lsn,
    /// Encoded [`Generation`] for a policy record behind the term-start record, in the same frame.
    pub policy: Option<Vec<u8>>,
    /// Encoded [`OpRecord`] for an op record behind those, in the same frame.
    pub op: Option<Vec<u8>>,
}

/// An order to the node. Orders of one call are carried out one after the other, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Best effort: may be lost, late or doubled.
    Send { to: NodeId, message: RoleMessage },
    /// Write and flush both control copies, one after the other (`control::copies_to_write`), then
    /// [`Input::Persisted`]. A newer image may replace one that still waits to be written.
    Persist { state: Box<ControlState> },
    /// From this moment: send no ack and no lease grant of any session, count no ack, release no reply. Lasts until
    /// [`Effect::Follow`] or [`Effect::Lead`].
    StopAcks,
    /// Let log writes in flight finish and flush; start no new ones; then [`Input::Drained`].
    Drain { ticket: u64 },
    /// Pull the log `from` this node's end up to `to` in a session of `term`, flush it, then [`Input::FastForwarded`].
    /// The history that covers those frames is durable already.
    FastForward { ticket: u64, from: NodeId, term: Term, to: Lsn },
    /// Seal the first frame of a term, then [`Input::TermAppended`].
    AppendTermStart(TermStart),
    /// Lead: sessions of `term` may be opened to standbys and their acks counted; client work stays held.
    Lead { term: Term },
    /// The term-start frame is committed: answer clients.
    Serve { term: Term },
    /// Take no client command and release no reply for now; nothing is rolled back. Ended by `Serve` or `Demote`.
    HoldClients { reason: &'static str },
    /// Close clients (UNKNOWN for writes in doubt), roll back everything above commit, stop leading. `successor`: who
    /// leads now, when that is known: clients whose commands are held and never ran are told to go there.
    Demote { reason: String, successor: Option<NodeId> },
    /// Let no further write begin and seal what was accepted, then [`Input::WritesHeld`]. Reads go on, replies
    /// leave as their gates open. Held commands wait unexecuted. Ended by `ResumeWrites`, or by `Demote`.
    HoldWrites { ticket: u64, reason: &'static str },
    /// Run the held commands and take new ones.
    ResumeWrites,
    /// Seal a frame with this policy record, and an op record ([`OpRecord`]) if there is one, after everything accepted
    /// so far, then [`Input::PolicyRecorded`] before the commit index moves again.
    AppendPolicy { ticket: u64, generation: Vec<u8>, op: Option<Vec<u8>> },
    /// Ask the control store, then [`Input::StoreAnswered`], or nothing when no answer comes. One process's questions
    /// are carried out in order. Ordered only when [`super::RoleConfig::store`] is set.
    Store { ticket: u64, request: StoreRequest },
    /// Stream from `leader` in sessions of `term`; acks and grants are allowed again.
    Follow { leader: NodeId, term: Term },
    /// Stop receiving from anybody, a fast-forward included.
    Unfollow,
    /// Keep the tail above `to` as a tail file, zero it, flush, then [`Input::Truncated`]. The history is durable.
    Truncate { ticket: u64, to: Lsn },
    /// The answer to a command.
    Reply { op: u64, result: CommandResult },
    /// Shown state changed.
    Changed { role: Role, state: State },
    /// Facts for the log: why the machine did what it did.
    Evidence(Evidence),
    /// The log failed: exit non-zero when clients are closed.
    Latch { reason: &'static str },
}

/// What may be asked of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Make this node the primary although the old one is gone. `dry_run`: only say whether it would work.
    /// `alone`: install a one-voter generation. `force`: ask a living primary to yield; with `alone` also accept that
    /// acknowledged writes may be lost.
    Failover { dry_run: bool, alone: bool, force: bool },
    /// `start -M primary`: a request, never an order. Tried again until this node leads or finds a leader.
    RequestPrimary { alone: bool, force: bool },
    /// `start -M standby`: withdraws an earlier request.
    RequestStandby,
    /// Hand the primary's work to another node without losing anything. Asked on any node: a standby passes it to the
    /// primary that it follows. `to`: the next primary; without it a standby means itself, and a primary chooses by
    /// priority and then by the end of the log. `dry_run`: only say whether it would work. Not handed over within
    /// `timeout`: aborted, and the old primary goes on.
    Switchover { to: Option<NodeId>, dry_run: bool, timeout: Duration },
    /// Give up the switchover under way, while that is still this primary's to decide.
    AbortSwitchover,
    /// Put another policy generation into force. Asked on the primary.
    ChangePolicy(PolicyChange),
}

/// A new policy generation, as an operator asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyChange {
    /// Refused unless this is the newest generation that the primary knows; 0 for "whatever it is".
    pub expected_generation: u64,
    /// Leader included; in the order of `FIRST k (...)` when `first` is set. Members left out become standbys.
    pub voters: Vec<NodeId>,
    /// Copies besides the leader's.
    pub k: u8,
    pub first: bool,
    /// Accept that fewer copies are asked for although no control store says so (`protocol` 4.3). Recorded.
    pub force: bool,
    /// Only say whether it would be done.
    pub dry_run: bool,
}

pub type CommandResult = Result<Done, Refusal>;

/// A command that did what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// This node serves as primary in this term.
    Primary { term: Term, start: Lsn, evidence: Evidence },
    /// A dry run: it would work.
    Would { evidence: Evidence },
    /// Another node leads and this one follows it.
    Following { leader: NodeId, term: Term },
    /// This node stays a standby.
    Standby,
    /// The switchover is done: `leader` leads `term`, and its first frame is committed.
    SwitchedOver { leader: NodeId, term: Term, evidence: Evidence },
    /// No switchover runs any more, and this primary goes on in `term`.
    SwitchoverAborted { term: Term },
    /// The policy generation is committed and in force alone.
    PolicyChanged { generation: u64, evidence: Evidence },
    /// It was done before, under the same op id, perhaps by another node. `start`: where it stands in the log.
    Before { deed: Deed, start: Lsn },
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Done::Primary { term, start, .. } => write!(f, "primary in term {term} from {start}"),
            Done::Would { .. } => f.write_str("it would work"),
            Done::Following { leader, term } => write!(f, "follows node {leader} in term {term}"),
            Done::Standby => f.write_str("stays a standby"),
            Done::SwitchedOver { leader, term, .. } => write!(f, "node {leader} leads term {term}"),
            Done::SwitchoverAborted { term } => write!(f, "no switchover runs, term {term} goes on"),
            Done::PolicyChanged { generation, .. } => {
                write!(f, "policy generation {generation} is in force")
            }
            Done::Before { start, .. } => write!(f, "was done before, at {start}"),
        }
    }
}

/// Why a command was not done. Every variant says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A primary is alive: use switchover, or `--force` to make it yield.
    PrimaryAlive { node: NodeId, term: Term },
    /// Too few counting voters answer: bring up voters of that generation, or `--alone` on the last server.
    NoQuorum { generation: u64, have: usize, need: usize, missing: Vec<NodeId> },
    /// `--alone` is not needed: enough voters answer. Run it without.
    AloneNotNeeded { have: usize },
    /// `--alone` could lose acknowledged writes: repeat with `--accept-loss` to accept that.
    LossPossible { evidence: Evidence },
    /// This node's log is not whole, it is building, or it is not a member: build first.
    NotPromotable { reason: &'static str },
    /// This log forks below what it knows to be committed: build this node first.
    NeedRepair { fork: Lsn, committed: Lsn },
    /// Another command is being worked on.
    Busy,
    /// A higher term came in between: look at who leads now.
    Superseded { term: Term },
    /// Not reached in time. `stage` says what was missing; a started term goes on and may still succeed.
    Timeout { stage: &'static str },
    /// The log of this node failed: restart or replace it.
    LogFailed,
    /// Only a primary does this: ask `leader`, when one is known.
    NotPrimary { leader: Option<NodeId> },
    /// The switchover's target cannot take over, for this one reason. Nothing was changed.
    TargetUnfit { node: NodeId, reason: Unfit },
    /// No standby can take over; the reason for each.
    NoTarget { unfit: Vec<(NodeId, Unfit)> },
    /// The switchover was given up and the old primary goes on, in `term` (the same one as before unless voters had
    /// promised a higher one already). `late`: because its time was over.
    Aborted { reason: String, term: Term, late: bool },
    /// There is no switchover to abort.
    NoSwitchover,
    /// The switchover is handed over: only the next primary decides now.
    HandedOver { to: NodeId },
    /// The primary refused; its own words, and how its refusal counts.
    ByPrimary { node: NodeId, kind: RefusalKind, text: String },
    /// The primary was asked and says nothing: nobody knows here whether it does what it was asked for.
    PrimarySilent { node: NodeId },
    /// The change was handed over and its end was not seen: look at `query`.
    OutcomeUnknown { stage: &'static str },
    /// Somebody changed the policy in between: look at it again.
    StaleGeneration { expected: u64, found: u64 },
    /// A change of policy is under way: wait until that generation is committed.
    ChangePending { generation: u64 },
    /// This generation is impossible, or unsafe. The reason says what to do.
    BadPolicy { reason: &'static str },
    /// The control store does not answer, and nothing of this kind is decided without it.
    StoreSilent { stage: &'static str },
    /// What the control store holds cannot be used.
    StoreUnusable { reason: &'static str },
    /// The op id names another request already: choose a new one.
    OpReused,
}

/// What a refusal means for whoever asked: the same word and exit code wherever the question was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// A rule forbids it now; nothing was changed.
    Refused,
    /// Too few voters agree or answer.
    NoQuorum,
    /// It was not done in time, and is not under way any more.
    Late,
    /// It may still happen.
    Unknown,
    /// The op id was used for another request.
    OpReused,
}

impl RefusalKind {
    pub const ALL: [RefusalKind; 5] = [
        RefusalKind::Refused,
        RefusalKind::NoQuorum,
        RefusalKind::Late,
        RefusalKind::Unknown,
        RefusalKind::OpReused,
    ];
}

impl Refusal {
    pub fn kind(&self) -> RefusalKind {
        match self {
            Refusal::NoQuorum { .. } => RefusalKind::NoQuorum,
            Refusal::Timeout { .. } | Refusal::Aborted { late: true, .. } => RefusalKind::Late,
            Refusal::OutcomeUnknown { .. } | Refusal::PrimarySilent { .. } => RefusalKind::Unknown,
            Refusal::OpReused => RefusalKind::OpReused,
            Refusal::ByPrimary { kind, .. } => *kind,
            _ => RefusalKind::Refused,
        }
    }
}

/// Why a node cannot take over in a switchover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// No member of the cluster.
    Unknown,
    /// It is the primary already.
    Primary,
    /// It does not answer.
    Silent,
    /// Its data is not whole: joining, building or damaged.
    NotWhole,
    /// It does not follow this primary.
    NotFollowing,
    /// Its log ends this many bytes behind; more than a switchover waits for.
    Lags { bytes: u64 },
    /// It is kept behind on purpose.
    Delayed,
    /// The configuration says that it must never take over.
    NoFailover,
    /// It streams from another standby.
    Cascade,
}

/// Named facts behind a decision, in the order in which they were found.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Evidence {
    pub what: &'static str,
    pub fields: Vec<(&'static str, String)>,
}

impl Evidence {
    pub fn new(what: &'static str) -> Evidence {
        Evidence { what, fields: Vec::new() }
    }

    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Evidence {
        self.fields.push((name, value.to_string()));
        self
    }
}

impl std::fmt::Display for Evidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.what)?;
        for (name, value) in &self.fields {
            write!(f, " {name}={value}")?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::PrimaryAlive { node, term } => write!(
                f,
                "node {node} is alive as primary of term {term}: use switchover, or --force to make it yield"
            ),
            Refusal::NoQuorum { generation, have, need, missing } => {
                write!(
                    f,
                    "policy generation {generation} needs {need} counting voters and {have} answer (missing:"
                )?;
                missing.iter().try_for_each(|node| write!(f, " {node}"))?;
                f.write_str("): start more voters, or use --alone if this is the last server")
            }
            Refusal::AloneNotNeeded { have } => {
                write!(f, "{have} voters answer, which is enough: run it without --alone")
            }
            Refusal::LossPossible { evidence } => {
                write!(f, "acknowledged writes could be lost ({evidence}): --accept-loss accepts that")
            }
            Refusal::NotPromotable { reason } => write!(f, "this node cannot be promoted: {reason}"),
            Refusal::NeedRepair { fork, committed } => write!(
                f,
                "this log forks at {fork}, below its known commit {committed}: build this node first"
            ),
            Refusal::Busy => f.write_str("another command is being worked on: wait for it"),
            Refusal::Superseded { term } => {
                write!(f, "superseded by term {term}: look at `query` for who leads now")
            }
            Refusal::Timeout { stage } => write!(f, "not reached in time: {stage}"),
            Refusal::LogFailed => f.write_str("the log of this node failed: restart or replace it"),
            Refusal::NotPrimary { leader: Some(leader) } => {
                write!(f, "this node is not the primary: ask node {leader}")
            }
            Refusal::NotPrimary { leader: None } => {
                f.write_str("this node is not the primary and knows none: look at `query`")
            }
            Refusal::TargetUnfit { node, reason } => write!(f, "node {node} cannot take over: {reason}"),
            Refusal::NoTarget { unfit } => {
                f.write_str("no standby can take over:")?;
                unfit.iter().try_for_each(|(node, reason)| write!(f, " node {node}: {reason};"))
            }
            Refusal::Aborted { reason, term, .. } => {
                write!(f, "aborted: {reason}; the old primary goes on in term {term}")
            }
            Refusal::NoSwitchover => f.write_str("no switchover is under way here"),
            Refusal::HandedOver { to } => {
                write!(f, "the work is handed over already: node {to} decides, look at `query`")
            }
            Refusal::ByPrimary { node, kind: RefusalKind::Refused | RefusalKind::NoQuorum, text } => {
                write!(f, "node {node} refused: {text}")
            }
            Refusal::ByPrimary { node, text, .. } => write!(f, "node {node} says: {text}"),
            Refusal::PrimarySilent { node } => {
                write!(f, "node {node}, the primary, was asked and does not answer: it may still happen")
            }
            Refusal::OutcomeUnknown { stage } => {
                write!(f, "handed over, and the end was not seen ({stage}): look at `query` for who leads")
            }
            Refusal::StaleGeneration { expected, found } => {
                write!(f, "the policy generation is {found}, not {expected}: look at it again")
            }
            Refusal::ChangePending { generation } => {
                write!(f, "policy generation {generation} is not committed yet: wait for it")
            }
            Refusal::BadPolicy { reason } => write!(f, "this policy cannot be: {reason}"),
            Refusal::StoreSilent { stage } => {
                write!(f, "the control store does not answer ({stage}): nothing is decided without it")
            }
            Refusal::StoreUnusable { reason } => {
                write!(f, "the control store cannot be used: {reason}; look at its folder")
            }
            Refusal::OpReused => f.write_str("this op id was used for another request: choose a new one"),
        }
    }
}

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unfit::Unknown => f.write_str("it is no member of this cluster"),
            Unfit::Primary => f.write_str("it is the primary already"),
            Unfit::Silent => f.write_str("it does not answer"),
            Unfit::NotWhole => f.write_str("its data is not whole: build it first"),
            Unfit::NotFollowing => f.write_str("it does not follow this primary yet"),
            Unfit::Lags { bytes } => write!(f, "its log ends {bytes} bytes behind: let it catch up first"),
            Unfit::Delayed => f.write_str("it is kept behind on purpose"),
            Unfit::NoFailover => f.write_str("it is configured never to take over (nofailover)"),
            Unfit::Cascade => f.write_str("it streams from another standby"),
        }
    }
}

impl std::error::Error for Refusal {}

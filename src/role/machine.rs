//! The role machine.

use std::time::Duration;

use super::control::ControlState;
use super::input::{Effect, Input, LogView};
use super::policy::CommitRule;
use super::state::{Role, State};
use crate::base::{Incarnation, Lsn, Mono, NodeId, Term};

/// How often [`Input::Tick`] is wanted at least.
pub const TICK: Duration = Duration::from_millis(50);

/// What the machine must know besides its durable state.
#[derive(Clone, Debug)]
pub struct RoleConfig {
    /// Every other member of the cluster that can be spoken to.
    pub peers: Vec<NodeId>,
    /// Shown as cascade standby when not leading.
    pub cascade: bool,
    pub lease: Duration,
    /// Seed of term ids and back-off. From the operating system in production.
    pub seed: u64,
}

/// May a session with this term go on?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    /// The term is not followed yet: keep the session waiting (or drop it) until `Effect::Follow` names its term.
    AdoptFirst,
    /// Answer with this promised term and close.
    Refuse(Term),
}

/// One node's role. See the room's description.
pub struct RoleMachine {
    control: ControlState,
}

impl RoleMachine {
    /// `control` as chosen from both copies, with `starts` not yet counted up: the machine's first handled input
    /// persists that. `now` is the start of the process.
    pub fn new(_config: RoleConfig, _control: ControlState, _now: Mono) -> RoleMachine {
        todo!()
    }

    pub fn handle(&mut self, _now: Mono, _log: &LogView, _input: Input, _out: &mut Vec<Effect>) {
        todo!()
    }

    /// The control state as last changed, perhaps not durable yet.
    pub fn control(&self) -> &ControlState {
        &self.control
    }
    pub fn role(&self) -> Role {
        todo!()
    }
    pub fn state(&self) -> State {
        todo!()
    }
    /// The term this node leads, from its term-start frame on (served or not).
    pub fn leading(&self) -> Option<Term> {
        todo!()
    }
    /// True from `Effect::Serve` until clients are held or demoted.
    pub fn serving(&self) -> bool {
        todo!()
    }
    /// The leader this node streams from.
    pub fn following(&self) -> Option<(NodeId, Term)> {
        todo!()
    }

    /// Standby side: a leader offers a stream in a session of `term`.
    pub fn accepts_session(&self, _leader: NodeId, _term: Term) -> Verdict {
        todo!()
    }
    /// Source side: a candidate of `term`, or a standby following `term`, wants to read this log.
    pub fn accepts_pull(&self, _term: Term) -> Verdict {
        todo!()
    }
    /// Leader side: does an ack of a session of `term` count?
    pub fn accepts_ack(&self, _term: Term) -> bool {
        todo!()
    }
    /// Standby side: may an ack of a session of `term` leave now?
    pub fn may_ack(&self, _term: Term) -> bool {
        todo!()
    }
    /// Standby side: acks above this position must wait (a policy record is not durable in the control file yet).
    pub fn ack_limit(&self) -> Lsn {
        todo!()
    }
    /// Receiver side: does the history assign `frame_term` to `at`?
    pub fn accepts_frame(&self, _frame_term: Term, _at: Lsn) -> bool {
        todo!()
    }
    /// Standby side: answers a heartbeat of `leader` in a session of `term`: true when the answer grants the lease
    /// from now on for the lease time.
    pub fn grant(&mut self, _now: Mono, _leader: NodeId, _term: Term) -> bool {
        todo!()
    }
    /// Leader side: may reads and early replies be answered now?
    pub fn may_read(&self, _now: Mono) -> bool {
        todo!()
    }
    /// Leader side: when the read lease ends; `None` when it has none.
    pub fn lease_until(&self) -> Option<Mono> {
        todo!()
    }
    /// Leader side: the rule by which the commit index moves; `None` when this node may commit nothing.
    pub fn commit_rule(&self) -> Option<CommitRule> {
        todo!()
    }
    /// The bound incarnation of a member, for the authentication of peers; `None` when not bound yet.
    pub fn bound_incarnation(&self, _node: NodeId) -> Option<Incarnation> {
        todo!()
    }
}

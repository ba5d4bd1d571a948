//! The role room: who may lead, who must obey, and what has to be durable before either speaks.
//!
//! It holds the consensus core of baton as pure, synchronous, deterministic state machines: terms and promises,
//! the term history, policy generations and their quorums, the read lease, recruit and failover, following and rejoin.
//! [`RoleMachine`] takes an [`Input`] with `now` and a [`LogView`], and answers with [`Effect`]s in the order in which
//! they must be carried out. It touches no clock, disk, socket or thread.
//!
//! It is deliberately *not* the data path: frames, acks and heartbeats belong to the replication room. That room asks
//! here whether a session, a frame or an ack is acceptable ([`RoleMachine::accepts_session`] and its siblings) and by
//! which rule the commit index moves ([`CommitRule`]). It is also not an elector: nothing leads unless an operator, an
//! agent or `-M primary` asks with a [`Command`].
//!
//! Invariants:
//! - a promise is on disk in both control copies, and every older log write is flushed, before it is reported
//!   (`protocol` 3.2); after it no ack of an older session leaves this node;
//! - a term that this process did not start in this run is never continued (`protocol` 3.1);
//! - a promise reports the term of the last *frame*, never the promised term (`protocol` 3.3);
//! - the history that names a term is durable before the first frame of that term is written here;
//! - nothing is served before the term-start frame commits (`protocol` 3.5);
//! - nothing below the known commit is ever truncated (`protocol` 5.2);
//! - terms compare as pairs, always through [`history::at_least`] and [`history::same`].
//!
//! The price: a change of leader costs two control writes on the winner and one on each voter before the first frame,
//! and a voter that granted a read lease makes a candidate wait until the grant ends.

mod candidate;
mod change;
mod claim;
mod codec;
pub mod control;
mod data;
mod done;
mod follow;
pub mod history;
pub mod input;
mod lead;
pub mod lease;
pub mod machine;
pub mod message;
pub mod policy;
mod promise;
pub mod recruit;
mod session;
mod stall;
pub mod state;
mod stored;
mod switch;
mod voters;

pub use control::{ControlCopy, ControlError, ControlState, DataStatus};
pub use done::{Deed, KnownOp, OpMark, OpRecord};
pub use history::History;
pub use input::{
    Command, CommandResult, Done, Effect, Evidence, FastForwardFailure, Input, LogView, PolicyChange,
    Refusal, RefusalKind, StoreAnswer, StoreRequest, TermStart, Unfit,
};
pub use lease::{Grants, LeaderLease};
pub use machine::{RoleConfig, RoleMachine, Traits, Verdict};
pub use message::{LeaderSeen, PromiseAnswer, Report, RoleMessage};
pub use policy::{CommitRule, Generation, PendingGeneration, SyncPolicy, Voter};
pub use state::{Repair, Role, State};
pub use stored::{StoreView, StoredPolicy};
pub use switch::SwitchView;

#[cfg(test)]
mod machine_tests;
#[cfg(test)]
mod mini;
#[cfg(test)]
mod model;

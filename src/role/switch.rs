//! Switchover: the primary's side of handing over, and the target's side of taking over (`protocol` 6).

use super::machine::RoleMachine;
use crate::base::NodeId;

/// A switchover under way, for those who look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwitchView {
    /// Who is to take over; `None` while that is being chosen.
    pub to: Option<NodeId>,
    /// `asking`, `draining`, `handed over`, `following` on the primary; `asking the primary` elsewhere.
    pub stage: &'static str,
}

impl RoleMachine {
    /// The switchover that this node is asked for or takes part in as the old primary.
    pub fn switching(&self) -> Option<SwitchView> {
        None
    }

    /// The number of the policy generation that is being put into force by a command or by the voter time-out.
    pub fn changing_policy(&self) -> Option<u64> {
        None
    }
}

//! A disk that does not answer. Nothing failed yet, so nothing latches: a leader gives its term up and says so, nobody
//! hears a promise or a vote from here, and when the disk answers again the node goes on by itself.

use super::input::{Effect, Evidence, LogView, Refusal};
use super::machine::{Phase, RoleMachine, Work};
use super::message::{LeaderSeen, RoleMessage};
use super::state::Role;
use crate::base::{Mono, NodeId};

/// Why a stalled node cannot be asked to lead.
pub(super) const STALLED: Refusal = Refusal::NotPromotable {
    reason: "its disk does not answer: wait until it does, or promote another node",
};

impl RoleMachine {
    /// True while the disk does not answer.
    pub fn stalled(&self) -> bool {
        self.stalled
    }

    /// This node was told to stay aside, or to come back. It says to the leader that it does not follow it, and to everybody
    /// else that the leader is alive.
    pub fn keep_out(&mut self, out: bool) {
        self.kept_out = out;
    }

    pub(super) fn disk_stalled(&mut self, now: Mono, log: &LogView, stalled: bool, out: &mut Vec<Effect>) {
        if self.stalled == stalled {
            return;
        }
        self.stalled = stalled;
        if !stalled {
            out.push(Effect::Evidence(Evidence::new("disk answers again").with("end", log.end)));
            // Unless somebody else leads by now, it asks for a new term, as after a restart (`protocol` 3.1).
            if std::mem::take(&mut self.asks_when_back) {
                self.wish_again(now, log);
            }
            return;
        }
        out.push(Effect::Evidence(
            Evidence::new("disk stalled").with("end", log.end).with("flushed", log.flushed.lsn()),
        ));
        if let Some(wish) = self.wish.take() {
            // Nobody asked for its own wish, so nobody would ask again.
            self.asks_when_back |= wish.own.is_some();
            out.extend(wish.op.map(|op| Effect::Reply { op, result: Err(STALLED) }));
        }
        let leads = matches!(self.phase, Phase::Leading(_));
        if leads {
            self.asks_when_back = true;
            out.push(Effect::StopAcks);
            // The grantors need not wait for the lease to run out.
            let release = self.release_lease(now);
            self.to_all(RoleMessage::LeaseRelease(release), out);
            self.step_down(now, "the disk of this node does not answer", None, out);
        }
        if leads || matches!(self.work, Work::Recruit(_)) {
            self.abandon_work(now, STALLED, out);
        }
        // What the attempt asked for in its own name waits for the disk too.
        self.wish.take_if(|wish| wish.op.is_none());
        if leads {
            self.show_lonely(out);
            let message = RoleMessage::Status {
                promised: self.control.promised,
                leader: None,
                role: self.role,
                state: self.state,
                end: log.end,
                committed: log.committed,
            };
            self.to_all(message, out);
        }
    }

    /// The followed leader says itself that it leads no more: no operator has to wait until it is silent for long enough.
    /// A late word of an older time does no harm: the next heartbeat says otherwise, and grants are not touched.
    pub(super) fn leader_let_go(&mut self, from: NodeId, role: Role, leader: Option<LeaderSeen>) {
        if let Phase::Following(following) = &mut self.phase
            && following.leader == from
            && role != Role::Primary
            && leader.is_none()
        {
            following.heard = None;
        }
    }
}

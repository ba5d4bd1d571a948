//! What the state of this node's data and disk means for its role.

use super::control::DataStatus;
use super::input::{Effect, Refusal};
use super::machine::{Phase, RoleMachine, Work};
use super::state::{Repair, State};
use crate::base::{Incarnation, Mono};

impl RoleMachine {
    pub(super) fn data_changed(
        &mut self,
        now: Mono,
        status: DataStatus,
        incarnation: Incarnation,
        out: &mut Vec<Effect>,
    ) {
        self.control.status = status;
        self.control.incarnation = incarnation;
        self.blocked = None;
        self.next_probe = now;
        match status {
            DataStatus::Whole | DataStatus::Learner => {
                if matches!(self.state, State::Building | State::NeedRepair(_)) {
                    self.show(self.role, State::Starting, out);
                }
            }
            DataStatus::Sick => {
                // Its log is sound: as a standby it goes on receiving and acknowledging.
                let reason = "a shard is not what its own log makes of it";
                if matches!(self.phase, Phase::Leading(_)) {
                    out.push(Effect::StopAcks);
                    self.step_down(now, reason, None, out);
                    self.abandon_work(now, Refusal::NotPromotable { reason }, out);
                    self.show_lonely(out);
                } else if matches!(self.work, Work::Recruit(_)) {
                    self.abandon_work(now, Refusal::NotPromotable { reason }, out);
                }
            }
            DataStatus::Building | DataStatus::Damaged => {
                self.step_down(now, "its data is not whole", None, out);
                let state = match status {
                    DataStatus::Building => State::Building,
                    _ => State::NeedRepair(Repair::Wal),
                };
                self.abandon_work(now, Refusal::NotPromotable { reason: "its data is not whole" }, out);
                out.extend([Effect::StopAcks, Effect::Unfollow]);
                self.phase = Phase::Alone { since: now };
                self.show(self.role, state, out);
            }
        }
    }

    pub(super) fn fail_log(&mut self, out: &mut Vec<Effect>) {
        out.push(Effect::StopAcks);
        self.step_down(Mono(0), "its log failed", None, out);
        self.abandon_work(Mono(0), Refusal::LogFailed, out);
        self.drop_switch(out);
        self.drop_change(Refusal::LogFailed, out);
        let wish = self.wish.take().and_then(|wish| wish.op);
        let queued = self.queued.take().map(|queued| queued.op);
        for op in wish.into_iter().chain(queued) {
            out.push(Effect::Reply { op, result: Err(Refusal::LogFailed) });
        }
        self.phase = Phase::Failed;
        self.show(self.role, State::NeedRepair(Repair::Io), out);
        out.push(Effect::Latch { reason: "a log write or flush failed" });
    }
}

//! Disks that do not answer: the own one, and that of a standby, as far as its acknowledgements show it.

use crate::base::Lsn;
use crate::io::Seam;
use crate::role::Input;

use super::Node;
use super::streams::SenderSlot;

/// How the own disk fares.
#[derive(Debug, Default)]
pub struct DiskHealth {
    /// Looks in a row that found something under way for too long. One alone proves nothing: this process may have slept,
    /// and what has ended meanwhile is reaped only now.
    late: u32,
    pub stalled: bool,
}

impl<S: Seam> Node<S> {
    /// Looks how long the oldest write or flush has been under way, and who acknowledges no more.
    pub(super) fn watch_disks(&mut self) {
        let patience = self.config.stall_timeout;
        let oldest = self.seam.oldest().map(|since| self.now.since(since));
        self.disk.late = if oldest.is_some_and(|age| age > patience) { self.disk.late + 1 } else { 0 };
        let stalled = self.disk.late > 1;
        if stalled != self.disk.stalled {
            self.disk.stalled = stalled;
            match oldest.filter(|_| stalled) {
                Some(age) => tracing::error!(
                    waited_ms = age.as_millis() as u64,
                    "the disk does not answer: nothing is acknowledged or led from here until it does"
                ),
                None => tracing::info!("the disk answers again"),
            }
            let words = if stalled { "the disk does not answer" } else { "the disk answers" };
            self.note("disk", "", words, None, String::new());
            self.tell_role(Input::DiskStalled { stalled });
            self.pump_role();
        }
        for slot in self.streams.senders.values_mut() {
            let flushed = slot.sender.acked().map(|acked| acked.flushed.lsn());
            let idle = flushed.is_none_or(|flushed| flushed >= slot.sender.sent());
            if idle || flushed != Some(slot.flushed.0) {
                slot.flushed = (flushed.unwrap_or(Lsn::ZERO), self.now);
            }
        }
    }

    /// A standby that has log to flush and has acknowledged no flush for longer than a disk may take.
    pub(super) fn stuck(&self, slot: &SenderSlot) -> bool {
        self.now.since(slot.flushed.1) > self.config.stall_timeout
    }
}

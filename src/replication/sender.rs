//! The upstream side of one standby's stream: decides where it starts, what goes next, and when to wait.
//!
//! A sender holds positions, never frames: a slow standby costs a window of bytes on its socket and nothing else.

use super::handshake::Peer;
use super::wire::{Ack, LogTip, Refusal, StreamRequest};
use crate::base::limits::{GROUP_BYTES_SOFT, SEND_WINDOW_BYTES};
use crate::base::{ClusterId, CommittedLsn, Lsn, SharedSlice, Term};

/// Bytes ready for one gathered send.
#[derive(Debug, Default)]
pub struct Outbound {
    pub head: Vec<u8>,
    pub slices: Vec<SharedSlice>,
}

/// What the upstream knows about its own log right now.
#[derive(Clone, Copy, Debug)]
pub struct LogView<'a> {
    pub cluster: ClusterId,
    /// Negotiated version of the link.
    pub version: u16,
    /// The term of this upstream's session: the leader's own term, or the term that a cascading standby follows.
    pub session: Term,
    pub history: &'a [(Term, Lsn)],
    /// End of the log as sealed in memory (a leader) or as received (a cascading standby).
    pub tip: LogTip,
    /// Below this the segments are gone.
    pub oldest: Lsn,
    pub commit: CommittedLsn,
}

/// What a log has at a position.
#[derive(Debug)]
pub enum Pulled {
    /// Whole consecutive frames, one per slice, the first at the asked position. Padding is left out when sending.
    Memory(Vec<SharedSlice>),
    /// Older than what is kept in memory: read it from the segments, then call [`Sender::loaded`].
    OnDisk,
    /// The segments are gone; the log begins at `oldest`.
    Removed { oldest: Lsn },
    /// The position is the end of the log.
    End,
}

/// The log as a sender sees it; the node implements it over its `wal`.
pub trait LogSource {
    /// Frames from `at` (a frame border), at most `max_bytes` of them but at least one.
    fn frames_from(&self, at: Lsn, max_bytes: usize) -> Pulled;
}

/// What the driver should do for this standby now. Call [`Sender::next`] again when the send is done.
#[derive(Debug)]
pub enum Step {
    /// Nothing to send, or the window is full.
    Idle,
    Send(Outbound),
    /// Read about `bytes` of log from `from` on and hand the frames to [`Sender::loaded`].
    Load {
        from: Lsn,
        bytes: usize,
    },
    /// Send this refusal; the sender is over.
    Refuse(Refusal),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SenderState {
    /// The standby's place is by history a prefix; its last digest is not compared yet.
    Matching,
    /// Behind: old frames go out.
    Catchup,
    /// Everything that exists was sent.
    Streaming,
    /// Refused or stopped.
    Stopped,
}

/// Breaks of the protocol by the standby; the link is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SenderError {
    /// It acknowledged what was never sent.
    AckBeyondSent { acked: Lsn, sent: Lsn },
    /// applied > committed seen, flushed > written, or the like.
    AckOutOfOrder,
}

/// One standby's stream.
#[derive(Debug)]
pub struct Sender {
    peer: Peer,
    tip: LogTip,
    state: SenderState,
    sent: Lsn,
    acked: Ack,
    commit_sent: CommittedLsn,
    loading: bool,
    window_bytes: u64,
    message_bytes: usize,
}

impl Sender {
    /// Judges the request by history. The digest is compared when the first frames (or the end) are at hand.
    pub fn new(_peer: Peer, _request: &StreamRequest, _view: &LogView<'_>) -> Result<Sender, Refusal> {
        let _ = (SEND_WINDOW_BYTES, GROUP_BYTES_SOFT);
        unreachable!("the body follows")
    }

    /// What to send next; call it when the link is free to send, and whenever log, commit or window moved.
    pub fn next(&mut self, _view: &LogView<'_>, _source: &dyn LogSource) -> Step {
        unreachable!("the body follows")
    }

    /// The frames asked for with [`Step::Load`]; `Err` when the segments could not be read or verified.
    pub fn loaded(&mut self, _view: &LogView<'_>, _frames: Result<Vec<SharedSlice>, Refusal>) -> Step {
        unreachable!("the body follows")
    }

    /// An acknowledgement of this link. Whether it *counts* is decided by [`super::Progress`].
    pub fn on_ack(&mut self, _ack: &Ack) -> Result<(), SenderError> {
        unreachable!("the body follows")
    }

    /// Ends the stream (demotion, promise to a newer term, membership change). Nothing is sent any more.
    pub fn stop(&mut self) {
        self.state = SenderState::Stopped;
    }

    pub fn peer(&self) -> Peer {
        self.peer
    }
    pub fn state(&self) -> SenderState {
        self.state
    }
    /// End of what was sent.
    pub fn sent(&self) -> Lsn {
        self.sent
    }
    pub fn acked(&self) -> &Ack {
        &self.acked
    }
    /// The lowest position that this standby may still ask for: the log above it is kept.
    pub fn keeps(&self) -> Lsn {
        self.acked.flushed.lsn()
    }
}

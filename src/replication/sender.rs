//! The upstream side of one standby's stream: decides where it starts, what goes next, and when to wait.
//!
//! A sender holds positions, never frames: a slow standby costs a window of bytes on its socket and nothing else.

use std::fmt;

use super::handshake::Peer;
use super::wire::{
    Ack, FramesHead, Kind, LogTip, Message, Path, Refusal, RefuseReason, Stamped, StreamRequest, StreamStart,
    encode, encode_frames_head,
};
use crate::base::limits::{FRAME_BYTES_MAX, GROUP_BYTES_SOFT, PEER_MESSAGE_BYTES_MAX, SEND_WINDOW_BYTES};
use crate::base::{ClusterId, CommittedLsn, Lsn, SharedSlice, Term};
use crate::record::{FrameHeader, padded};
use crate::role::History;
pub use crate::wal::Frame;
use crate::wal::ReadLog;

/// Frames go out in messages of about this size, so that heartbeats and answers find their turn.
pub const MESSAGE_BYTES_SOFT: usize = GROUP_BYTES_SOFT;

const _: () = assert!(MESSAGE_BYTES_SOFT <= FRAME_BYTES_MAX && FRAME_BYTES_MAX < PEER_MESSAGE_BYTES_MAX);
const _: () = assert!(SEND_WINDOW_BYTES >= 2 * FRAME_BYTES_MAX as u64);

/// Bytes ready for one gathered send.
#[derive(Debug, Default)]
pub struct Outbound {
    pub head: Vec<u8>,
    pub slices: Vec<SharedSlice>,
}

impl Outbound {
    /// A message without raw frames.
    pub fn message(stamped: &Stamped, message: &Message) -> Outbound {
        let mut head = Vec::new();
        encode(stamped, message, &mut head);
        Outbound { head, slices: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.head.len() + self.slices.iter().map(|slice| slice.len()).sum::<usize>()
    }

    pub fn is_empty(&self) -> bool {
        self.head.is_empty() && self.slices.is_empty()
    }

    /// All bytes in one piece, for tests and for small messages.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = self.head.clone();
        self.slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
        bytes
    }
}

/// What the upstream knows about its own log right now.
#[derive(Clone, Copy, Debug)]
pub struct LogView<'a> {
    pub cluster: ClusterId,
    /// Negotiated version of the link.
    pub version: u16,
    /// The term of this upstream's session: the leader's own term, or the term that a cascading standby follows.
    pub session: Term,
    pub history: &'a History,
    /// End of the log as sealed in memory (a leader) or as received (a cascading standby).
    pub tip: LogTip,
    /// Below this the segments are gone.
    pub oldest: Lsn,
    pub commit: CommittedLsn,
    /// From the leader down to this upstream.
    pub path: Path,
    /// Somebody waits for more than flushes: standbys acknowledge every move at once.
    pub eager_acks: bool,
}

impl LogView<'_> {
    /// The envelope of this upstream's messages.
    pub fn stamped(&self) -> Stamped {
        Stamped { cluster: self.cluster, session: self.session, version: self.version }
    }
}

/// What a log has at a position.
#[derive(Debug)]
pub enum Pulled {
    /// Whole consecutive frames, the first at the asked position.
    Memory(Vec<Frame>),
    /// Older than what is kept in memory: read it from the segments, then call [`Sender::loaded`].
    OnDisk,
    /// The segments are gone; the log begins at `oldest`.
    Removed { oldest: Lsn },
    /// Nothing to read there yet: the end of the log, or of its readable part.
    End,
    /// No frame begins there: the asker made the position up, or its log is damaged.
    NoBorder,
}

impl From<ReadLog> for Pulled {
    fn from(read: ReadLog) -> Pulled {
        match read {
            ReadLog::Frames(frames) => Pulled::Memory(frames),
            ReadLog::OnDisk { .. } => Pulled::OnDisk,
            ReadLog::End => Pulled::End,
            ReadLog::Gone { first } => Pulled::Removed { oldest: first },
            ReadLog::NoBorder => Pulled::NoBorder,
        }
    }
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
    /// Read about `bytes` of log from `from` on, verify it, and hand the frames to [`Sender::loaded`].
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
    /// Applied or flushed more than was written, or less than it said before.
    AckOutOfOrder,
}

impl fmt::Display for SenderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SenderError::AckBeyondSent { acked, sent } => {
                write!(f, "the standby acknowledged {acked}, only {sent} was sent")
            }
            SenderError::AckOutOfOrder => write!(f, "the standby's acknowledgement contradicts itself"),
        }
    }
}

impl std::error::Error for SenderError {}

/// One standby's stream in one session term.
#[derive(Debug)]
pub struct Sender {
    peer: Peer,
    session: Term,
    /// The standby's log when it asked.
    asked: LogTip,
    state: SenderState,
    sent: Lsn,
    acked: Option<Ack>,
    /// What the standby can fall back to while it has acknowledged nothing.
    keeps: Lsn,
    commit_sent: CommittedLsn,
    loading: bool,
    window_bytes: u64,
}

impl Sender {
    /// Judges the request by history. The digest is compared when the first frames (or the end) are at hand.
    pub fn new(peer: Peer, request: &StreamRequest, view: &LogView<'_>) -> Result<Sender, Refusal> {
        judge(request, view)?;
        Ok(Sender {
            peer,
            session: view.session,
            asked: request.tip,
            state: SenderState::Matching,
            sent: request.tip.end,
            acked: None,
            keeps: request.committed.lsn().min(request.tip.end),
            commit_sent: CommittedLsn::ZERO,
            loading: false,
            window_bytes: SEND_WINDOW_BYTES,
        })
    }

    /// A smaller window, for tests and throttled standbys. One frame always passes.
    pub fn with_window(mut self, bytes: u64) -> Sender {
        self.window_bytes = bytes;
        self
    }

    /// What to send next; call it when the link is free to send, and whenever log, commit or window moved.
    pub fn next(&mut self, view: &LogView<'_>, source: &dyn LogSource) -> Step {
        if self.state == SenderState::Stopped {
            return Step::Idle;
        }
        if view.session != self.session {
            return self.refuse(term_over(view.session));
        }
        let room = self.window_bytes.saturating_sub(self.in_flight());
        if self.loading || room == 0 {
            return self.commit_only(view);
        }
        let max_bytes = (MESSAGE_BYTES_SOFT as u64).min(room) as usize;
        match source.frames_from(self.sent, max_bytes) {
            Pulled::Memory(frames) => self.frames(view, frames, max_bytes),
            Pulled::OnDisk => {
                self.loading = true;
                if self.state == SenderState::Streaming {
                    self.state = SenderState::Catchup;
                }
                Step::Load { from: self.sent, bytes: max_bytes }
            }
            Pulled::Removed { oldest } => self.refuse(wal_removed(self.sent, oldest)),
            Pulled::End => self.at_end(view),
            Pulled::NoBorder => self.refuse(chain_mismatch(self.sent)),
        }
    }

    /// The frames asked for with [`Step::Load`]; `Err` when the segments could not be read or verified.
    pub fn loaded(&mut self, view: &LogView<'_>, frames: Result<Vec<Frame>, Refusal>) -> Step {
        if self.state == SenderState::Stopped {
            return Step::Idle;
        }
        assert!(self.loading, "frames are loaded only when asked for");
        self.loading = false;
        if view.session != self.session {
            return self.refuse(term_over(view.session));
        }
        match frames {
            Ok(frames) => self.frames(view, frames, MESSAGE_BYTES_SOFT),
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// An acknowledgement of this link. Whether it *counts* is decided by [`super::Progress`].
    pub fn on_ack(&mut self, ack: &Ack) -> Result<(), SenderError> {
        let sent = if self.state == SenderState::Matching { Lsn::ZERO } else { self.sent };
        if ack.matched > sent {
            return Err(SenderError::AckBeyondSent { acked: ack.matched, sent });
        }
        let ordered = ack.flushed.lsn() <= ack.written
            && ack.applied.lsn() <= ack.written
            && ack.written <= ack.matched
            && self.acked.is_none_or(|before| {
                before.written <= ack.written
                    && before.flushed <= ack.flushed
                    && before.applied <= ack.applied
                    && before.matched <= ack.matched
            });
        if !ordered {
            return Err(SenderError::AckOutOfOrder);
        }
        self.acked = Some(*ack);
        Ok(())
    }

    /// Ends the stream (demotion, promise to a newer term, membership change). Nothing is sent any more.
    pub fn stop(&mut self) {
        self.state = SenderState::Stopped;
        self.loading = false;
    }

    pub fn peer(&self) -> Peer {
        self.peer
    }
    pub fn session(&self) -> Term {
        self.session
    }
    pub fn state(&self) -> SenderState {
        self.state
    }
    /// End of what was sent.
    pub fn sent(&self) -> Lsn {
        self.sent
    }
    /// The newest acknowledgement of this stream.
    pub fn acked(&self) -> Option<&Ack> {
        self.acked.as_ref()
    }
    /// The lowest position that this standby may still ask for: the log above it is kept.
    pub fn keeps(&self) -> Lsn {
        self.acked.map_or(self.keeps, |ack| ack.flushed.lsn())
    }
    /// Bytes of log that the standby has not flushed.
    pub fn lag_bytes(&self, end: Lsn) -> u64 {
        end.since(self.keeps())
    }

    fn in_flight(&self) -> u64 {
        let written = self.acked.map_or(self.asked.end, |ack| ack.written.max(self.asked.end));
        self.sent.since(written)
    }

    fn refuse(&mut self, refusal: Refusal) -> Step {
        self.stop();
        Step::Refuse(refusal)
    }

    fn at_end(&mut self, view: &LogView<'_>) -> Step {
        if self.sent < view.tip.end {
            // Sealed or received, but not readable yet: its turn comes.
            return self.commit_only(view);
        }
        if self.state != SenderState::Matching {
            self.state = SenderState::Streaming;
            return self.commit_only(view);
        }
        if let Err(refusal) = compare(&self.asked, view.tip.digest) {
            return self.refuse(refusal);
        }
        let mut out = Outbound::default();
        self.start(view, &mut out);
        self.state = SenderState::Streaming;
        Step::Send(out)
    }

    fn frames(&mut self, view: &LogView<'_>, frames: Vec<Frame>, max_bytes: usize) -> Step {
        let mut out = Outbound::default();
        let Some(first) = begins_at(&frames, self.sent) else {
            return self.refuse(chain_mismatch(self.sent));
        };
        if self.state == SenderState::Matching {
            if let Err(refusal) = compare(&self.asked, first.previous) {
                return self.refuse(refusal);
            }
            self.start(view, &mut out);
        }
        self.sent = gather(view, Kind::Frames, self.sent, frames, max_bytes, &mut out);
        self.commit_sent = view.commit;
        self.state = if self.sent >= view.tip.end { SenderState::Streaming } else { SenderState::Catchup };
        Step::Send(out)
    }

    /// The message in front of the first frame.
    fn start(&mut self, view: &LogView<'_>, out: &mut Outbound) {
        let start = StreamStart {
            from: self.sent,
            commit: view.commit,
            end: view.tip.end,
            path: view.path,
            history: view.history.clone(),
        };
        encode(&view.stamped(), &Message::StreamStart(start), &mut out.head);
        self.commit_sent = view.commit;
    }

    /// The watermark alone, when it moved and no frame can carry it.
    fn commit_only(&mut self, view: &LogView<'_>) -> Step {
        if self.state == SenderState::Matching || !self.commit_sent.advance(view.commit.lsn()) {
            return Step::Idle;
        }
        Step::Send(Outbound::message(&view.stamped(), &Message::Commit(view.commit)))
    }
}

/// By history alone: may this standby's log be a prefix of ours, and do we still have what follows?
fn judge(request: &StreamRequest, view: &LogView<'_>) -> Result<(), Refusal> {
    let tip = &request.tip;
    let last = tip.end.0.checked_sub(1).map(Lsn);
    let claimed = last.and_then(|at| request.history.term_at(at)).unwrap_or(Term::NONE);
    if claimed != tip.term {
        return Err(chain_mismatch(tip.end));
    }
    // Our history reaches as far as it is known, which on a cascading standby is further than its log.
    let Some(fork) = view.history.fork(Lsn::MAX, &request.history, tip.end) else {
        return Err(wal_removed(tip.end, view.oldest));
    };
    if fork < view.oldest {
        return Err(wal_removed(fork, view.oldest));
    }
    if fork < tip.end {
        let text = format!("the standby's log differs behind {fork}: its tail must be dropped");
        return Err(Refusal { reason: RefuseReason::Diverged { fork }, text });
    }
    if tip.end > view.tip.end {
        let text = format!("this upstream ends at {}, the standby at {}", view.tip.end, tip.end);
        return Err(Refusal { reason: RefuseReason::Behind { end: view.tip.end }, text });
    }
    Ok(())
}

/// The last frame of the standby against the digest that our log has there.
fn compare(asked: &LogTip, ours: crate::base::Digest) -> Result<(), Refusal> {
    if asked.digest == ours { Ok(()) } else { Err(chain_mismatch(asked.end)) }
}

pub(super) fn chain_mismatch(at: Lsn) -> Refusal {
    let text = format!("the log differs at {at} although its term is the same: one side is damaged");
    Refusal { reason: RefuseReason::ChainMismatch { at }, text }
}

/// The first frame, if there is one and it begins at `at`. The position came from a peer: nothing is taken for granted.
pub(super) fn begins_at(frames: &[Frame], at: Lsn) -> Option<&FrameHeader> {
    frames.first().map(|(header, _)| header).filter(|header| header.first == at)
}

pub(super) fn wal_removed(asked: Lsn, oldest: Lsn) -> Refusal {
    let text = format!("log from {asked} is gone, the oldest kept is {oldest}: build the standby");
    Refusal { reason: RefuseReason::WalRemoved { oldest }, text }
}

fn term_over(term: Term) -> Refusal {
    Refusal { reason: RefuseReason::OtherTerm { term }, text: format!("the session's term is over: {term}") }
}

/// Puts as many frames as fit behind one head and says where they end. `max_bytes` counts what the standby has to
/// write, padding included (of a filler only its header); one frame always fits.
pub(super) fn gather(
    view: &LogView<'_>,
    kind: Kind,
    from: Lsn,
    frames: Vec<Frame>,
    max_bytes: usize,
    out: &mut Outbound,
) -> Lsn {
    let (mut end, mut bytes, mut log_bytes, mut count) = (from, 0, 0, 0);
    for (header, slice) in frames {
        assert!(header.first == end && slice.len() >= header.used(), "the log hands out consecutive frames");
        log_bytes += padded(header.payload_len as usize);
        if count > 0 && log_bytes > max_bytes.min(FRAME_BYTES_MAX) {
            break;
        }
        bytes += header.used();
        count += 1;
        end = header.end();
        out.slices.push(slice.slice(0..header.used()));
    }
    assert!(count > 0, "a log that has frames gives at least one");
    let head = FramesHead { first: from, end, commit: view.commit, count, eager_acks: view.eager_acks };
    encode_frames_head(&view.stamped(), kind, &head, bytes, &mut out.head);
    end
}

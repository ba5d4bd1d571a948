//! The standby side of one stream session: judges frames, decides acknowledgements, caps the commit watermark.

use std::fmt;

use bytes::Bytes;

use super::chain::{Chain, ChainError, ReceivedFrame};
use super::wire::{Ack, FramesHead, LogTip, StreamRequest, StreamStart};
use crate::base::planted::{Bug, planted};
use crate::base::{AppliedLsn, ClusterId, CommittedLsn, FlushedLsn, Lsn, Term};
use crate::role::History;
use crate::role::history::{at_least, same};

/// Where this standby's own log stands when it asks for a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Position {
    pub tip: LogTip,
    pub flushed: FlushedLsn,
    pub applied: AppliedLsn,
    pub committed: CommittedLsn,
    pub history: History,
}

impl Position {
    pub fn request(&self, cascade: bool) -> StreamRequest {
        StreamRequest { tip: self.tip, committed: self.committed, cascade, history: self.history.clone() }
    }
}

/// Why a stream ends on the standby's side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReceiverError {
    /// The message belongs to another session term than the one that was accepted.
    OtherSession {
        got: Term,
        want: Term,
    },
    /// The session is below what this node promised. Tell the upstream: `StreamRefuse(OtherTerm { promised })`.
    Promised {
        got: Term,
        promised: Term,
    },
    /// A newer term was promised while the session ran.
    Stopped,
    /// The stream starts elsewhere than this log ends.
    WrongStart {
        end: Lsn,
        got: Lsn,
    },
    /// The upstream's history does not lead to this log's last frame, or goes beyond the session's term.
    WrongHistory {
        at: Lsn,
    },
    Chain(ChainError),
}

impl fmt::Display for ReceiverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReceiverError::OtherSession { got, want } => {
                write!(f, "message of term {got}, session is {want}")
            }
            ReceiverError::Promised { got, promised } => {
                write!(f, "stream of term {got}, but term {promised} was promised")
            }
            ReceiverError::Stopped => write!(f, "a newer term was promised: this session is over"),
            ReceiverError::WrongStart { end, got } => write!(f, "stream starts at {got}, log ends at {end}"),
            ReceiverError::WrongHistory { at } => {
                write!(f, "the upstream's history does not fit this log, which ends at {at}")
            }
            ReceiverError::Chain(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ReceiverError {}

/// One stream session of a standby.
#[derive(Debug)]
pub struct Receiver {
    session: Term,
    chain: Chain,
    written: Lsn,
    flushed: FlushedLsn,
    applied: AppliedLsn,
    leader_commit: CommittedLsn,
    /// No acknowledgement of anything above this leaves yet.
    ack_limit: Lsn,
    eager: bool,
    due: bool,
    stopped: bool,
    last_ack: Option<Ack>,
}

impl Receiver {
    /// Accepts a stream start. `session` is the term in its envelope, `promised` the highest term that this node
    /// promised (the session must not be below it). `own` is the log as it stands *now*.
    pub fn start(
        cluster: ClusterId,
        session: Term,
        promised: Term,
        own: &Position,
        start: &StreamStart,
    ) -> Result<Receiver, ReceiverError> {
        if !at_least(session, promised) && !planted(Bug::IgnoreSessionTerm) {
            return Err(ReceiverError::Promised { got: session, promised });
        }
        let end = own.tip.end;
        if start.from != end {
            return Err(ReceiverError::WrongStart { end, got: start.from });
        }
        // The upstream has compared the histories; so does the side that would have to live with a mistake.
        let assigned = end.0.checked_sub(1).map_or(Some(Term::NONE), |at| start.history.term_at(Lsn(at)));
        let agreed = own.history.fork(end, &start.history, Lsn::MAX);
        let newest = start.history.last().map_or(Term::NONE, |(term, _)| term);
        if assigned != Some(own.tip.term) || agreed != Some(end) || newest > session {
            return Err(ReceiverError::WrongHistory { at: end });
        }
        Ok(Receiver {
            session,
            chain: Chain::new(cluster, start.history.clone(), own.tip),
            written: own.flushed.lsn(),
            flushed: own.flushed,
            applied: own.applied,
            leader_commit: start.commit,
            ack_limit: Lsn::MAX,
            eager: false,
            due: true,
            stopped: false,
            last_ack: None,
        })
    }

    /// Judges frames; what comes back is to be written in this order at each frame's own offset.
    pub fn on_frames(
        &mut self,
        session: Term,
        head: &FramesHead,
        bytes: Bytes,
    ) -> Result<Vec<ReceivedFrame>, ReceiverError> {
        self.check_session(session)?;
        let before = self.chain.tip();
        let frames = self.chain.accept(head, bytes).map_err(ReceiverError::Chain)?;
        if planted(Bug::JudgeFramesByPromisedTerm)
            && let Some(frame) = frames.iter().find(|frame| !at_least(frame.header.term, self.session))
        {
            self.chain.rewind(before);
            return Err(ReceiverError::Promised { got: frame.header.term, promised: self.session });
        }
        self.leader_commit.advance(head.commit.lsn());
        self.eager = head.eager_acks;
        Ok(frames)
    }

    /// A commit watermark that came by itself.
    pub fn on_commit(&mut self, session: Term, commit: CommittedLsn) -> Result<(), ReceiverError> {
        self.check_session(session)?;
        self.leader_commit.advance(commit.lsn());
        Ok(())
    }

    /// A heartbeat of this session: carries the watermark, and makes the next [`Receiver::take_ack`] answer.
    pub fn on_heartbeat(&mut self, session: Term, commit: CommittedLsn) -> Result<(), ReceiverError> {
        self.on_commit(session, commit)?;
        self.due = true;
        Ok(())
    }

    /// The log was written (not necessarily flushed) up to here.
    pub fn written(&mut self, to: Lsn) {
        assert!(to <= self.matched(), "written {to} beyond what was received");
        self.written = self.written.max(to);
    }

    /// The log is durable up to here, without a hole.
    pub fn flushed(&mut self, to: FlushedLsn) {
        self.written(to.lsn());
        self.flushed.advance(to.lsn());
    }

    /// The shards show everything up to here.
    pub fn applied(&mut self, to: AppliedLsn) {
        self.applied.advance(to.lsn());
    }

    /// Holds acknowledgements below `limit` (a policy record there is not durable in the control file yet);
    /// [`Lsn::MAX`] holds nothing.
    pub fn hold_acks_above(&mut self, limit: Lsn) {
        self.ack_limit = limit;
    }

    /// The acknowledgement to send now. One is due when the flushed position moved, after a heartbeat, and when the
    /// upstream asked for eager ones, on every move. Call it once per turn of the loop.
    pub fn take_ack(&mut self) -> Option<Ack> {
        if self.stopped && !planted(Bug::AckAfterPromise) {
            return None;
        }
        let ack = self.current_ack();
        let due = match self.last_ack {
            None => true,
            Some(last) => self.due || ack.flushed > last.flushed || (self.eager && ack != last),
        };
        if !due {
            return None;
        }
        self.due = false;
        self.last_ack = Some(ack);
        Some(ack)
    }

    fn current_ack(&self) -> Ack {
        let (mut written, mut flushed) = (self.written, self.flushed.lsn());
        if planted(Bug::AckBeforeFlush) {
            (written, flushed) = (self.matched(), self.matched());
        }
        // A limit that moves down (never, from a correct role machine) must not take an acknowledgement back.
        let floor = self.last_ack.map_or(Lsn::ZERO, |last| last.written);
        let limit = self.ack_limit.max(floor);
        let written = written.min(limit);
        Ack {
            written,
            flushed: FlushedLsn(flushed.min(limit)),
            applied: AppliedLsn(self.applied.lsn().min(written)),
            matched: self.matched(),
            committed: self.commit(),
        }
    }

    /// A newer term was promised: nothing of this session is accepted or acknowledged any more (`protocol` 3.2).
    pub fn stop_acks(&mut self) {
        self.stopped = true;
    }

    /// The commit watermark that this standby may believe: capped at what it matched in this session.
    pub fn commit(&self) -> CommittedLsn {
        CommittedLsn(self.leader_commit.lsn().min(self.matched()))
    }

    /// How far redo may go, and what may be remembered as known committed: committed, and durable here too.
    pub fn redo_limit(&self) -> CommittedLsn {
        CommittedLsn(self.commit().lsn().min(self.flushed.lsn()))
    }

    /// The uncapped watermark, for display and for the lag.
    pub fn leader_commit(&self) -> CommittedLsn {
        self.leader_commit
    }

    /// End of the part that is known to be the upstream's: where the stream began, plus all received since.
    pub fn matched(&self) -> Lsn {
        self.chain.tip().end
    }

    pub fn session(&self) -> Term {
        self.session
    }
    pub fn tip(&self) -> LogTip {
        self.chain.tip()
    }
    /// History of the upstream for this session.
    pub fn history(&self) -> &History {
        self.chain.history()
    }

    fn check_session(&self, got: Term) -> Result<(), ReceiverError> {
        let lax = planted(Bug::IgnoreSessionTerm) || planted(Bug::JudgeFramesByPromisedTerm);
        if !same(got, self.session) && !lax {
            return Err(ReceiverError::OtherSession { got, want: self.session });
        }
        if self.stopped && !planted(Bug::AckAfterPromise) {
            return Err(ReceiverError::Stopped);
        }
        Ok(())
    }
}

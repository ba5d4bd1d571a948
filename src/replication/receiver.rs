//! The standby side of one stream session: judges frames, decides acknowledgements, caps the commit watermark.

use std::fmt;

use bytes::Bytes;

use super::chain::{Chain, ChainError, ReceivedFrame};
use super::wire::{Ack, FramesHead, HistoryEntries, LogTip, StreamRequest, StreamStart};
use crate::base::{AppliedLsn, ClusterId, CommittedLsn, FlushedLsn, Lsn, Term};

/// Where this standby's own log stands when it asks for a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Position {
    pub tip: LogTip,
    pub flushed: FlushedLsn,
    pub applied: AppliedLsn,
    pub committed: CommittedLsn,
    pub history: HistoryEntries,
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
    /// A session below what this node promised.
    Promised {
        got: Term,
        promised: Term,
    },
    /// The stream starts elsewhere than asked.
    WrongStart {
        asked: Lsn,
        got: Lsn,
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
            ReceiverError::WrongStart { asked, got } => {
                write!(f, "stream starts at {got}, asked for {asked}")
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
    matched: Lsn,
    written: Lsn,
    flushed: FlushedLsn,
    applied: AppliedLsn,
    leader_commit: CommittedLsn,
    stopped: bool,
    last_ack: Option<Ack>,
}

impl Receiver {
    /// Accepts a stream start. `session` is the term in its envelope, `promised` the highest term that this node
    /// promised (the session must not be below it).
    pub fn start(
        _cluster: ClusterId,
        _session: Term,
        _promised: Term,
        _own: &Position,
        _start: &StreamStart,
    ) -> Result<Receiver, ReceiverError> {
        unreachable!("the body follows")
    }

    /// Judges frames; what comes back is to be written in this order at each frame's own offset.
    pub fn on_frames(
        &mut self,
        _session: Term,
        _head: &FramesHead,
        _bytes: Bytes,
    ) -> Result<Vec<ReceivedFrame>, ReceiverError> {
        unreachable!("the body follows")
    }

    /// A commit watermark by [`super::Message::Commit`] or in a heartbeat.
    pub fn on_commit(&mut self, _session: Term, _commit: CommittedLsn) -> Result<(), ReceiverError> {
        unreachable!("the body follows")
    }

    /// The log was written (not flushed) up to here.
    pub fn written(&mut self, _to: Lsn) {}
    /// The log is durable up to here, without a hole.
    pub fn flushed(&mut self, _to: FlushedLsn) {}
    /// The shards show everything up to here.
    pub fn applied(&mut self, _to: AppliedLsn) {}

    /// The acknowledgement to send now, if something moved since the last one.
    pub fn take_ack(&mut self) -> Option<Ack> {
        unreachable!("the body follows")
    }

    /// A newer term was promised: no acknowledgement of this session leaves any more (`protocol` 3.2).
    pub fn stop_acks(&mut self) {
        self.stopped = true;
    }

    /// The commit watermark that this standby may believe: capped at what it matched in this session.
    pub fn commit(&self) -> CommittedLsn {
        CommittedLsn(self.leader_commit.lsn().min(self.matched))
    }
    /// How far redo may go: committed, and durable here too.
    pub fn redo_limit(&self) -> CommittedLsn {
        CommittedLsn(self.commit().lsn().min(self.flushed.lsn()))
    }
    pub fn session(&self) -> Term {
        self.session
    }
    pub fn tip(&self) -> LogTip {
        self.chain.tip()
    }
    /// History of the upstream for this session.
    pub fn history(&self) -> &[(Term, Lsn)] {
        self.chain.history()
    }
}

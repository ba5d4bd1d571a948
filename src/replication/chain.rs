//! The checks that every received frame passes before it may be written.

use std::fmt;

use bytes::Bytes;

use super::wire::{FramesHead, LogTip};
use crate::base::{ClusterId, Lsn, Term};
use crate::record::{Corrupt, FrameHeader};
use crate::role::History;

/// A frame that may be written at `header.first`: verified, in its place, in the right term.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReceivedFrame {
    pub header: FrameHeader,
    /// Header and payload as they arrived; the padding up to `header.length` is zeroes.
    pub used: Bytes,
}

/// Why received frames are not written. None of them is the receiver's own log; the stream starts again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChainError {
    Corrupt(Corrupt),
    /// A whole frame of a format that this build does not speak.
    Newer {
        at: Lsn,
        version: u16,
    },
    OtherCluster(ClusterId),
    /// The frame does not begin where the log ends.
    Gap {
        want: Lsn,
        got: Lsn,
    },
    /// The frame does not continue the chain of digests: another truth, or damage on one side.
    BrokenChain {
        at: Lsn,
    },
    /// History gives this place to another term.
    WrongTerm {
        at: Lsn,
        frame: Term,
        history: Option<Term>,
    },
    /// The head in front of the frames tells another story than the frames.
    Head(&'static str),
}

impl fmt::Display for ChainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChainError::Corrupt(what) => write!(f, "corrupt frame: {what}"),
            ChainError::Newer { at, version } => {
                write!(f, "the log at {at} is written by a newer baton (format {version})")
            }
            ChainError::OtherCluster(cluster) => write!(f, "frame of cluster {cluster}"),
            ChainError::Gap { want, got } => write!(f, "frame at {got}, log ends at {want}"),
            ChainError::BrokenChain { at } => write!(f, "frame at {at} does not continue this log"),
            ChainError::WrongTerm { at, frame, history: Some(term) } => {
                write!(f, "frame at {at} is of term {frame}, history says {term}")
            }
            ChainError::WrongTerm { at, frame, history: None } => {
                write!(f, "frame at {at} is of term {frame}, history does not reach there")
            }
            ChainError::Head(what) => write!(f, "frames and their head disagree: {what}"),
        }
    }
}

impl std::error::Error for ChainError {}

/// A log's growing end, and the rules for what may come next.
#[derive(Clone, Debug)]
pub struct Chain {
    cluster: ClusterId,
    history: History,
    tip: LogTip,
}

impl Chain {
    pub fn new(cluster: ClusterId, history: History, tip: LogTip) -> Chain {
        Chain { cluster, history, tip }
    }

    pub fn tip(&self) -> LogTip {
        self.tip
    }

    pub fn history(&self) -> &History {
        &self.history
    }

    /// Back to an earlier tip of the same chain.
    pub(super) fn rewind(&mut self, tip: LogTip) {
        assert!(tip.end <= self.tip.end);
        self.tip = tip;
    }

    /// Cuts `bytes` into frames and checks each. All or nothing: on an error the chain stays where it was.
    pub fn accept(&mut self, head: &FramesHead, bytes: Bytes) -> Result<Vec<ReceivedFrame>, ChainError> {
        let (mut rest, mut tip, mut frames) = (bytes, self.tip, Vec::new());
        if head.first != tip.end {
            return Err(ChainError::Gap { want: tip.end, got: head.first });
        }
        while !rest.is_empty() {
            let frame = self.next(&tip, &mut rest)?;
            tip = LogTip { end: frame.header.end(), term: frame.header.term, digest: frame.header.digest };
            frames.push(frame);
        }
        if frames.len() != head.count as usize {
            return Err(ChainError::Head("count"));
        }
        if tip.end != head.end {
            return Err(ChainError::Head("end"));
        }
        self.tip = tip;
        Ok(frames)
    }

    fn next(&self, tip: &LogTip, rest: &mut Bytes) -> Result<ReceivedFrame, ChainError> {
        if let Some(newer) = FrameHeader::newer(rest)
            && newer.verify(rest).is_ok()
        {
            return Err(ChainError::Newer { at: newer.first, version: newer.version });
        }
        let header = FrameHeader::decode(rest).map_err(ChainError::Corrupt)?;
        header.verify(rest).map_err(ChainError::Corrupt)?;
        if header.cluster != self.cluster {
            return Err(ChainError::OtherCluster(header.cluster));
        }
        if header.first != tip.end {
            return Err(ChainError::Gap { want: tip.end, got: header.first });
        }
        if header.previous != tip.digest {
            return Err(ChainError::BrokenChain { at: header.first });
        }
        let history = self.history.term_at(header.first);
        if history != Some(header.term) {
            return Err(ChainError::WrongTerm { at: header.first, frame: header.term, history });
        }
        Ok(ReceivedFrame { header, used: rest.split_to(header.used()) })
    }
}

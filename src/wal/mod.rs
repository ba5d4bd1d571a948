//! The write-ahead log: group commit, frames, segments, recovery, truncation. State machines only: effects go out as
//! values, completions come in, and the node carries them out on its I/O seam.
//!
//! - [`Wal`] is the log of a running node: the leader seals its open group into frames, a standby receives frames
//!   verbatim; both end in the same writes at the same offsets.
//! - [`SegmentKeeper`] makes, hands out and recycles segment files.
//! - [`recover`] reads the log of a stopped node and says where it ends and whether it is whole.
//! - [`FrameScan`] reads frames in order; [`inspect_segment`] describes a segment for a human.
//!
//! This room is *not* the judge of terms, quorums or commit: it is told the term to write, the term that history assigns
//! to a position and how far the commit index came. It knows no shard, no socket and no file handle.
//!
//! Invariants:
//! - a frame is never rewritten with other bytes, never crosses a segment, and starts where the one before it ended;
//! - `flushed` is the end of the longest prefix without a hole that is durable here, and nothing after a failed write
//!   or flush ever moves it again;
//! - no frame is written to a segment before its file is in place, flushed, and its name durable;
//! - unflushed writes lie in two neighbouring segments at most, and what a restart has only read counts for nothing
//!   until it was written again and flushed ([`settle`]);
//! - new frames reach the disk only after every older byte beyond them was zeroed and flushed;
//! - nothing below the known commit is ever truncated.
//!
//! The price: every frame is padded to 4 KiB, so a lone small commit writes a whole block; a segment ends with a filler
//! when the next frame does not fit; and a restart reads the log from the oldest position needed to its end.

mod check;
mod error;
mod files;
mod group;
mod inspect;
mod keeper;
mod log;
mod pipeline;
mod pool;
mod recent;
mod recover;
mod scan;
mod staging;
mod tail;
#[cfg(test)]
mod tests;

pub use check::Geometry;
pub use error::{RecoverError, ScanError, TruncateError, WalError, WalFailure, WalIoError};
pub use files::LogFile;
pub use inspect::{Region, Row, inspect_segment};
pub use keeper::{KeeperConfig, KeeperEffect, SegmentKeeper};
pub use log::{SealMarks, Sealed, Wal, WalConfig};
pub use pipeline::WalEffect;
pub use recent::ReadLog;
pub use recover::{LogRewriter, RecoverParams, Recovered, Verdict, recover, recover_watched, settle};
pub use scan::{DiskFrames, FrameScan, LogReader, ScannedFrame};
pub use tail::{TailFrames, append_tail, tail_file_name};

use crate::base::{Digest, Lsn, SharedSlice, Term};
use crate::record::FrameHeader;

/// A frame in memory: its header and its used bytes (header and payload, no padding).
pub type Frame = (FrameHeader, SharedSlice);

/// Where a log ends, and what the next frame must follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogEnd {
    pub end: Lsn,
    /// Term of the last frame, [`Term::NONE`] in an empty log.
    pub last_term: Term,
    /// Digest of the last frame: the next one carries it as `previous`.
    pub last_digest: Digest,
}

impl LogEnd {
    /// The end of a log that never held a frame.
    pub const GENESIS: LogEnd = LogEnd { end: Lsn::ZERO, last_term: Term::NONE, last_digest: Digest::ZERO };

    /// Whether `last_term` and `last_digest` are known: not so when a damaged log lost its first readable frame.
    pub fn chain_known(&self) -> bool {
        self.end == Lsn::ZERO || !self.last_term.is_none()
    }

    /// The end behind `header`.
    pub fn after(header: &FrameHeader) -> LogEnd {
        LogEnd { end: header.end(), last_term: header.term, last_digest: header.digest }
    }
}

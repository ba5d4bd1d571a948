//! What can go wrong, one small enum per boundary.

use std::fmt;
use std::io;

use crate::base::{CommittedLsn, Lsn};
use crate::record::Corrupt;

/// An append that was refused; nothing changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalError {
    /// A write or flush failed earlier: the node must step down and exit.
    Failed(WalFailure),
    /// The log has a hole that must be repaired from a peer first; a damaged log never takes new groups.
    Damaged { at: Lsn, mark: Lsn },
    /// One transaction is larger than a frame may be.
    TooLarge { bytes: usize, max: usize },
    /// A received frame starts behind the end of this log: ask the peer to send from `end`.
    Gap { end: Lsn, first: Lsn },
    /// A received frame starts before the end of this log.
    Overlap { end: Lsn, first: Lsn },
    /// A received frame names another predecessor: the logs have diverged before `at`.
    Diverged { at: Lsn },
    /// A received frame is of an older term than the log's last frame.
    TermWentBack { at: Lsn },
    /// A received frame is not what it says.
    Corrupt(Corrupt),
    /// Too many received bytes wait for the disk: stop reading from the peer.
    Backlog { bytes: u64 },
}

/// The first failed operation; the log never leaves this state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalFailure {
    pub what: &'static str,
    pub error: WalIoError,
}

/// A failed disk operation, as the operator should read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalIoError(pub String);

impl From<io::Error> for WalIoError {
    fn from(error: io::Error) -> Self {
        WalIoError(error.to_string())
    }
}

/// A truncation that was refused; nothing changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TruncateError {
    /// A write or flush failed earlier.
    Failed(WalFailure),
    /// Committed log would be lost: this node stops with Need repair(WAL).
    BelowCommitted { to: Lsn, committed: CommittedLsn },
    /// The log ends before `to`, or holds another frame there than the caller believes.
    NotABorder { to: Lsn },
    /// The log ends at `to` already, because of damage there: repair it, do not wipe the evidence.
    Damaged { at: Lsn, mark: Lsn },
}

/// Reading the log back did not work.
#[derive(Debug)]
pub enum ScanError {
    /// The disk refused to give the bytes: neither a torn tail nor an end of log.
    Io { at: Lsn, error: io::Error },
    /// The bytes at `at` are not the frame that belongs there.
    Bad { at: Lsn, why: Corrupt },
    /// At `at` stands a whole frame of a newer format: neither a torn tail nor damage.
    Newer { at: Lsn, version: u16 },
}

/// The log cannot be recovered now.
#[derive(Debug)]
pub enum RecoverError {
    /// The folder could not be listed.
    List(io::Error),
    /// The disk refused to give bytes of the log. This says nothing about where the log ends.
    Read { at: Lsn, error: io::Error },
    /// The log was written by a newer baton: nothing of it may be judged, cut or written here.
    Newer { at: Lsn, version: u16 },
    /// The disk did not take again what it had given: nothing that was read may be counted on.
    Settle { at: Lsn, error: io::Error },
}

impl fmt::Display for WalIoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for WalFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: {}", self.what, self.error)
    }
}

impl fmt::Display for WalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalError::Failed(failure) => write!(f, "the log is stopped: {failure}"),
            WalError::Damaged { at, mark } => {
                write!(
                    f,
                    "the log is damaged at {at} (durable to {mark} before): repair it from a peer first"
                )
            }
            WalError::TooLarge { bytes, max } => {
                write!(f, "a transaction of {bytes} bytes does not fit a log frame of {max} bytes")
            }
            WalError::Gap { end, first } => {
                write!(f, "frame at {first} leaves a gap behind the log end {end}")
            }
            WalError::Overlap { end, first } => write!(f, "frame at {first} lies before the log end {end}"),
            WalError::Diverged { at } => write!(f, "the logs have diverged before {at}"),
            WalError::TermWentBack { at } => write!(f, "frame at {at} is of an older term than the log"),
            WalError::Corrupt(why) => write!(f, "bad frame: {why}"),
            WalError::Backlog { bytes } => write!(f, "{bytes} received bytes wait for the disk already"),
        }
    }
}

impl fmt::Display for TruncateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TruncateError::Failed(failure) => write!(f, "the log is stopped: {failure}"),
            TruncateError::BelowCommitted { to, committed } => {
                write!(f, "truncating to {to} would lose log known to be committed up to {committed}")
            }
            TruncateError::NotABorder { to } => write!(f, "{to} is not a frame border of this log"),
            TruncateError::Damaged { at, mark } => {
                write!(f, "the log is damaged from {at} to {mark}: repair it from a peer")
            }
        }
    }
}

/// What an operator does about it stands in the sentence.
fn newer(f: &mut fmt::Formatter<'_>, at: Lsn, version: u16) -> fmt::Result {
    let newest = crate::base::format::newest();
    write!(
        f,
        "the log at {at} was written by a newer baton (format {version}, this build reads up to {newest}): start the \
         newer build"
    )
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScanError::Io { at, error } => write!(f, "cannot read the log at {at}: {error}"),
            ScanError::Bad { at, why } => write!(f, "bad frame at {at}: {why}"),
            ScanError::Newer { at, version } => newer(f, *at, *version),
        }
    }
}

impl fmt::Display for RecoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoverError::List(error) => write!(f, "cannot list the log folder: {error}"),
            RecoverError::Read { at, error } => write!(f, "cannot read the log at {at}: {error}"),
            RecoverError::Newer { at, version } => newer(f, *at, *version),
            RecoverError::Settle { at, error } => {
                write!(f, "the end of the log cannot be written again at {at}: {error}")
            }
        }
    }
}

impl std::error::Error for WalError {}
impl std::error::Error for TruncateError {}
impl std::error::Error for ScanError {}
impl std::error::Error for RecoverError {}

//! Words that every room shares: positions, terms, identities, digests, time, buffers, limits.
//!
//! This room is *not* a utility drawer: a type lives here only when at least two rooms must agree on it.
//!
//! Invariants:
//! - a log position is never a bare number, and the four watermarks (appended, flushed, committed, applied)
//!   never mix without an explicit conversion (`protocol` section 1);
//! - terms compare as a pair (number, random id), never by number alone;
//! - every maximum of the system stands in [`limits`], related by const asserts.

pub mod buffer;
pub mod digest;
pub mod format;
pub mod identity;
pub mod limits;
pub mod lsn;
pub mod planted;
pub mod prng;
pub mod queue;
pub mod time;

pub use buffer::{AlignedBuf, SharedSlice};
pub use digest::Digest;
pub use identity::{ClusterId, Incarnation, NodeId, ShardId, Term};
pub use lsn::{AppendedLsn, AppliedLsn, CommittedLsn, FlushedLsn, Lsn, Stamp};
pub use prng::Prng;
pub use time::{Mono, WallMs};

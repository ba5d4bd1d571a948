//! The vocabulary of the log: the frame header, the records inside a frame, their codec and version.
//!
//! A frame is what is checksummed, written, shipped and committed as one; it holds the records of one or more whole
//! transactions. Records are logical effects on virtual shards, never commands and never page images.
//! This room knows bytes only: no file, no socket, no shard state.
//!
//! Invariants:
//! - a decoded value owns nothing larger than the bytes it was decoded from;
//! - bytes from disk or network never panic: every reader returns [`Corrupt`];
//! - the layouts here are drawn byte by byte in `docs/format.md`; changing one means a new
//!   [`crate::base::format::FORMAT_VERSION`]; what stays for ever is named at [`FrameHeader::newer`].

pub mod frame;
pub mod key;
pub mod records;

pub use frame::{FrameHeader, FrameKind, HEADER_BYTES, padded};
pub use records::{Record, RecordReader, RecordWriter};

/// Version of the checkpoint merge: equal inputs give equal tree shapes only within one merge version.
pub const MERGE_VERSION: u16 = 1;

/// Bytes that are not what they should be. The text says which field and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corrupt(pub &'static str);

impl std::fmt::Display for Corrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}
impl std::error::Error for Corrupt {}

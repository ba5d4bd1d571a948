//! Tail files: log that was dropped without having been committed, kept readable for the operator.
//!
//! A tail file is the dropped frames themselves, each in whole blocks, in log order. A filler keeps its first block only.

use super::Geometry;
use super::check::written_end;
use crate::base::limits::BLOCK_BYTES;
use crate::base::{Lsn, Term};
use crate::record::{Corrupt, FrameHeader};

/// The name of the tail file of a log cut at `from`, whose dropped frames end in `term`.
pub fn tail_file_name(from: Lsn, term: Term) -> String {
    format!("tail-{:016x}-{}-{:032x}", from.0, term.number, term.id)
}

/// Appends a dropped frame to the bytes of a tail file.
pub fn append_tail(header: &FrameHeader, used: &[u8], out: &mut Vec<u8>) {
    let at = out.len();
    out.extend_from_slice(&used[..header.used()]);
    out.resize(at + (written_end(header) - header.first) as usize, 0);
    assert!(out.len().is_multiple_of(BLOCK_BYTES));
}

/// Walks the frames of a tail file, verifying each. Ends after the first error.
#[derive(Debug)]
pub struct TailFrames<'a> {
    geometry: Geometry,
    rest: &'a [u8],
}

impl<'a> TailFrames<'a> {
    pub fn new(geometry: Geometry, bytes: &'a [u8]) -> Self {
        TailFrames { geometry, rest: bytes }
    }

    fn step(&mut self) -> Result<(FrameHeader, &'a [u8]), Corrupt> {
        let first = FrameHeader::decode(self.rest)?.first;
        let header = self.geometry.frame(first, self.rest)?;
        let used = &self.rest[..header.used()];
        let blocks = (written_end(&header) - header.first) as usize;
        self.rest = self.rest.get(blocks..).unwrap_or(&[]);
        Ok((header, used))
    }
}

impl<'a> Iterator for TailFrames<'a> {
    /// The header and the used bytes of a frame.
    type Item = Result<(FrameHeader, &'a [u8]), Corrupt>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let item = self.step();
        if item.is_err() {
            self.rest = &[];
        }
        Some(item)
    }
}

//! Received frames that wait for a disk write to come free: neighbours leave as one write.

use super::Frame;
use super::check::written_end;
use super::pipeline::Unit;
use super::pool::BufferPool;
use crate::base::Lsn;
use crate::record::{FrameHeader, FrameKind};

/// Staged bytes leave at the latest when they have grown to this size.
const STAGED_BYTES_SOFT: usize = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Staging {
    bytes: Vec<u8>,
    frames: Vec<(FrameHeader, usize)>,
}

impl Staging {
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Where the staged frames begin.
    pub fn first(&self) -> Option<Lsn> {
        self.frames.first().map(|(header, _)| header.first)
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether `next` cannot join what is staged: another segment, or enough bytes already.
    pub fn must_leave_before(&self, next: &FrameHeader) -> bool {
        let Some((first, _)) = self.frames.first() else { return false };
        first.segment != next.segment || self.bytes.len() >= STAGED_BYTES_SOFT
    }

    /// Adds a frame that directly follows the staged ones, padding included.
    pub fn push(&mut self, header: &FrameHeader, used: &[u8]) {
        assert!(self.frames.last().is_none_or(|(before, _)| before.end() == header.first));
        let at = self.bytes.len();
        self.frames.push((*header, at));
        self.bytes.extend_from_slice(used);
        self.bytes.resize(at + (written_end(header) - header.first) as usize, 0);
    }

    /// Freezes what is staged into one write and its frames.
    pub fn freeze(&mut self, pool: &mut BufferPool) -> Option<(Unit, Vec<Frame>)> {
        let first = self.frames.first()?.0.first;
        let last = self.frames.last()?.0;
        let mut buf = pool.take(self.bytes.len());
        buf.copy_from_slice(&self.bytes);
        let data = buf.share();
        let frames =
            self.frames.drain(..).map(|(h, at)| (h, data.slice(at..at + h.used()))).collect::<Vec<Frame>>();
        self.bytes.clear();
        assert!(last.kind == FrameKind::Filler || last.end() - first == data.len() as u64);
        Some((Unit::queued(first, last.end(), data), frames))
    }
}

//! The newest frames, kept in memory for senders and redo.

use std::cmp::Ordering;
use std::collections::VecDeque;

use super::pool::BufferPool;
use super::{Frame, LogEnd};
use crate::base::{Lsn, SharedSlice};
use crate::record::FrameHeader;

/// What a reader at some position gets.
#[derive(Debug)]
pub enum ReadLog {
    /// Whole frames from memory, in order; never empty.
    Frames(Vec<Frame>),
    /// The frames lie on disk: read `len` bytes there and hand them to [`super::Wal::parse_disk`].
    OnDisk { segment: u64, offset: u64, len: usize },
    /// Nothing to read beyond this position yet; received frames show up once their write is queued.
    End,
    /// The log keeps nothing before `first`: this reader needs a build.
    Gone { first: Lsn },
    /// No frame starts here, or the log ends before.
    NoBorder,
}

#[derive(Debug)]
pub(super) struct Recent {
    frames: VecDeque<Frame>,
    bytes: usize,
    bytes_max: usize,
}

impl Recent {
    pub fn new(bytes_max: usize) -> Self {
        Recent { frames: VecDeque::new(), bytes: 0, bytes_max }
    }

    pub fn push(&mut self, header: FrameHeader, used: SharedSlice) {
        assert!(self.frames.back().is_none_or(|(before, _)| before.end() == header.first));
        self.bytes += cost(&used);
        self.frames.push_back((header, used));
    }

    /// Where the frames in memory begin, when there are any.
    pub fn first(&self) -> Option<Lsn> {
        self.frames.front().map(|(header, _)| header.first)
    }

    /// Lets the oldest frames go while there are too many bytes. Only what is durable can be read from disk instead.
    pub fn retire(&mut self, flushed: Lsn, pool: &mut BufferPool) {
        while self.bytes > self.bytes_max {
            match self.frames.front() {
                Some((header, _)) if header.end() <= flushed => {}
                _ => return,
            }
            if let Some((_, used)) = self.frames.pop_front() {
                self.bytes -= cost(&used);
                pool.give(used);
            }
        }
    }

    /// Frames from `from` on, at least one and then as many as fit `bytes_max`.
    pub fn read(&self, from: Lsn, bytes_max: usize) -> Option<Vec<Frame>> {
        // Who keeps up asks for the last frame, whose place needs no search.
        let start = match self.frames.back() {
            Some((last, _)) if last.first == from => self.frames.len() - 1,
            _ => self.frames.binary_search_by_key(&from, |(header, _)| header.first).ok()?,
        };
        let mut out = Vec::new();
        let mut bytes = 0;
        for (header, used) in self.frames.range(start..) {
            if !out.is_empty() && bytes + used.len() > bytes_max {
                break;
            }
            bytes += used.len();
            out.push((*header, used.clone()));
        }
        Some(out)
    }

    /// Whether a frame in memory ends like `end`, or the first one follows it; `None` when it lies before them.
    pub fn holds(&self, end: &LogEnd) -> Option<bool> {
        let (front, _) = self.frames.front()?;
        match end.end.cmp(&front.first) {
            Ordering::Less => None,
            Ordering::Equal => Some(front.previous == end.last_digest),
            Ordering::Greater => {
                let at = self.frames.binary_search_by_key(&end.end, |(header, _)| header.end());
                Some(at.is_ok_and(|at| LogEnd::after(&self.frames[at].0) == *end))
            }
        }
    }

    pub fn truncate(&mut self, to: Lsn) {
        while let Some((_, used)) = self.frames.back().filter(|(header, _)| header.first >= to) {
            self.bytes -= cost(used);
            self.frames.pop_back();
        }
    }
}

/// A frame costs its whole blocks.
fn cost(used: &SharedSlice) -> usize {
    used.len().next_multiple_of(crate::base::limits::BLOCK_BYTES)
}

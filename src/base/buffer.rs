//! Memory that O_DIRECT accepts, in safe code: a vector one block too long, used from its first aligned byte.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use super::limits::BLOCK_BYTES;

/// A byte buffer whose first byte is 4 KiB aligned and whose capacity is a whole number of blocks.
pub struct AlignedBuf {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` zero bytes; the space behind them up to the next block border is zero too and belongs to the buffer.
    pub fn zeroed(len: usize) -> AlignedBuf {
        let capacity = len.next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES);
        let bytes = vec![0u8; capacity + BLOCK_BYTES];
        let start = bytes.as_ptr().align_offset(BLOCK_BYTES);
        assert!(start < BLOCK_BYTES, "a vector is at most one block away from alignment");
        AlignedBuf { bytes, start, len }
    }

    /// Usable bytes, a whole number of blocks.
    pub fn capacity(&self) -> usize {
        self.bytes.len() - BLOCK_BYTES
    }

    /// Changes the visible length within the capacity. The bytes uncovered are whatever stands there.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity());
        self.len = len;
    }

    /// Freezes the buffer into a shared, immutable slice over all of it.
    pub fn share(self) -> SharedSlice {
        let end = self.len;
        SharedSlice { buf: Arc::new(self), start: 0, end }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

/// A counted, immutable view of an [`AlignedBuf`]: one copy of a log frame feeds checksum, disk and every socket.
#[derive(Clone)]
pub struct SharedSlice {
    buf: Arc<AlignedBuf>,
    start: usize,
    end: usize,
}

impl SharedSlice {
    /// A narrower view; `range` is relative to this view.
    pub fn slice(&self, range: Range<usize>) -> SharedSlice {
        assert!(range.start <= range.end && self.start + range.end <= self.end);
        SharedSlice { buf: self.buf.clone(), start: self.start + range.start, end: self.start + range.end }
    }

    /// The buffer back, for reuse, when this was its last view.
    pub fn reclaim(self) -> Option<AlignedBuf> {
        Arc::try_unwrap(self.buf).ok()
    }

    /// Copies `bytes` into a fresh aligned buffer.
    pub fn copy_of(bytes: &[u8]) -> SharedSlice {
        let mut buf = AlignedBuf::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        buf.share()
    }
}

impl Deref for SharedSlice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }
}

impl fmt::Debug for SharedSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedSlice({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_come_back() {
        for len in [0usize, 1, 4096, 4097, 1 << 20] {
            let mut buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.as_ptr().align_offset(BLOCK_BYTES), 0);
            assert_eq!(buf.len(), len);
            buf.fill(7);
            let shared = buf.share();
            let part = shared.slice(0..len / 2);
            assert!(shared.reclaim().is_none(), "a view is still out");
            assert!(part.reclaim().is_some());
        }
    }
}

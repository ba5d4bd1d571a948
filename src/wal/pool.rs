//! Aligned buffers that come back.

use crate::base::limits::BLOCK_BYTES;
use crate::base::{AlignedBuf, SharedSlice};

/// Free buffers by size class (powers of two), bounded in bytes.
#[derive(Debug)]
pub(super) struct BufferPool {
    classes: Vec<Vec<AlignedBuf>>,
    bytes: usize,
    bytes_max: usize,
}

fn class_of(len: usize) -> usize {
    len.next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES).next_power_of_two()
}

impl BufferPool {
    pub fn new(bytes_max: usize) -> Self {
        BufferPool { classes: Vec::new(), bytes: 0, bytes_max }
    }

    /// A buffer of `len` visible bytes. Their content is whatever stood there.
    pub fn take(&mut self, len: usize) -> AlignedBuf {
        let class = class_of(len);
        let free = self.classes.get_mut(class.trailing_zeros() as usize).and_then(Vec::pop);
        let mut buf = match free {
            Some(buf) => {
                self.bytes -= buf.capacity();
                buf
            }
            None => AlignedBuf::zeroed(class),
        };
        buf.set_len(len);
        buf
    }

    /// Takes a slice's buffer back when nobody else holds it and there is room for it.
    pub fn give(&mut self, slice: SharedSlice) {
        let Some(buf) = slice.reclaim() else { return };
        let capacity = buf.capacity();
        if !capacity.is_power_of_two() || self.bytes + capacity > self.bytes_max {
            return;
        }
        let class = capacity.trailing_zeros() as usize;
        if self.classes.len() <= class {
            self.classes.resize_with(class + 1, Vec::new);
        }
        self.classes[class].push(buf);
        self.bytes += capacity;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_last_view_is_gone() {
        let mut pool = BufferPool::new(1 << 20);
        let slice = pool.take(5000).share();
        let address = slice.as_ptr();
        let view = slice.slice(0..10);
        pool.give(slice);
        assert_ne!(pool.take(8192).as_ptr(), address, "a view was still out");
        pool.give(view);
        assert_eq!(pool.take(8192).as_ptr(), address);
    }

    #[test]
    fn the_pool_never_holds_more_than_its_bound() {
        let mut pool = BufferPool::new(64 << 10);
        for _ in 0..100 {
            let slice = AlignedBuf::zeroed(8192).share();
            pool.give(slice);
        }
        assert!(pool.bytes <= 64 << 10);
    }
}

//! Receive buffers that the kernel picks from by itself (a provided buffer ring).
//!
//! The buffers lie in ordinary heap memory, which does not count as locked. Between "given back" and "lent" a
//! buffer belongs to the kernel; between "lent" and the drop of its [`LentBuffer`] it belongs to the reader.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use crate::base::AlignedBuf;

/// The memory shared with the kernel. Lives as long as the ring and as long as any lent buffer.
pub(super) struct BufferPool {
    /// Owns the bytes of all buffers; only reached through `bytes`.
    _memory: AlignedBuf,
    bytes: *mut u8,
    /// Owns the ring of entries; only reached through `entries`.
    _ring: AlignedBuf,
    entries: *mut BufRingEntry,
    count: u16,
    buffer_bytes: u32,
    tail: Cell<u16>,
    lent: Cell<u16>,
}

impl BufferPool {
    /// `count` buffers, a power of two up to 32768, all of them offered to the kernel.
    pub(super) fn new(count: u16, buffer_bytes: u32) -> BufferPool {
        assert!(count.is_power_of_two() && count <= 1 << 15, "the kernel takes powers of two up to 32768");
        assert!(buffer_bytes > 0);
        let mut memory = AlignedBuf::zeroed(usize::from(count) * buffer_bytes as usize);
        let mut ring = AlignedBuf::zeroed(usize::from(count) * size_of::<BufRingEntry>());
        let bytes = memory.as_mut_ptr();
        let entries = ring.as_mut_ptr().cast::<BufRingEntry>();
        let pool = BufferPool {
            _memory: memory,
            bytes,
            _ring: ring,
            entries,
            count,
            buffer_bytes,
            tail: Cell::new(0),
            lent: Cell::new(0),
        };
        for index in 0..count {
            pool.offer(index);
        }
        pool.publish();
        pool
    }

    pub(super) fn ring_address(&self) -> u64 {
        self.entries as u64
    }

    pub(super) fn count(&self) -> u16 {
        self.count
    }

    pub(super) fn buffer_bytes(&self) -> u32 {
        self.buffer_bytes
    }

    /// Buffers that the kernel may pick from.
    pub(super) fn free(&self) -> u16 {
        self.count - self.lent.get()
    }

    /// Takes over buffer `index`, into which the kernel has put `len` bytes.
    pub(super) fn lend(self: &Rc<Self>, index: u16, len: u32) -> LentBuffer {
        assert!(index < self.count && len <= self.buffer_bytes, "the kernel named a buffer that is not ours");
        assert!(self.lent.get() < self.count, "more buffers lent than exist");
        self.lent.set(self.lent.get() + 1);
        LentBuffer { pool: self.clone(), index, len }
    }

    fn offer(&self, index: u16) {
        let slot = usize::from(self.tail.get() & (self.count - 1));
        // SAFETY: `slot` is below `count`, the entries live in `_ring`, and the kernel reads an entry only after
        // the tail was published past it; no reference to an entry outlives this block.
        let entry = unsafe { &mut *self.entries.add(slot) };
        entry.set_addr(self.bytes.wrapping_add(usize::from(index) * self.buffer_bytes as usize) as u64);
        entry.set_len(self.buffer_bytes);
        entry.set_bid(index);
        self.tail.set(self.tail.get().wrapping_add(1));
    }

    fn publish(&self) {
        // SAFETY: `entries` is the aligned start of the ring, whose first entry holds the tail; the kernel only
        // reads it, so an atomic store through a shared view is the agreed hand-over.
        let tail = unsafe { &*BufRingEntry::tail(self.entries).cast::<AtomicU16>() };
        tail.store(self.tail.get(), Ordering::Release);
    }

    fn give_back(&self, index: u16) {
        self.offer(index);
        self.publish();
        self.lent.set(self.lent.get() - 1);
    }
}

/// Received bytes in a buffer of the ring; dropping it hands the buffer back to the kernel.
pub struct LentBuffer {
    pool: Rc<BufferPool>,
    index: u16,
    len: u32,
}

impl Deref for LentBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let start = usize::from(self.index) * self.pool.buffer_bytes as usize;
        // SAFETY: `lend` checked index and length against the memory that the pool keeps alive; the kernel does
        // not write to a buffer that is lent.
        unsafe { std::slice::from_raw_parts(self.pool.bytes.add(start), self.len as usize) }
    }
}

impl Drop for LentBuffer {
    fn drop(&mut self) {
        self.pool.give_back(self.index);
    }
}

impl fmt::Debug for LentBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LentBuffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lent_buffer_comes_back_when_dropped_even_after_the_pool_handle_is_gone() {
        let pool = Rc::new(BufferPool::new(4, 4096));
        assert_eq!(pool.free(), 4);
        let first = pool.lend(0, 10);
        let second = pool.lend(3, 4096);
        assert_eq!((pool.free(), first.len(), second.len()), (2, 10, 4096));
        drop(first);
        assert_eq!(pool.free(), 3);
        drop(pool);
        assert!(second.iter().all(|&byte| byte == 0));
    }

    #[test]
    #[should_panic(expected = "not ours")]
    fn a_buffer_outside_the_pool_is_refused() {
        Rc::new(BufferPool::new(4, 4096)).lend(4, 1);
    }
}

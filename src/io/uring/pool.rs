//! Receive buffers that the kernel picks from by itself (a provided buffer ring).
//!
//! The buffers lie in ordinary heap memory, which does not count as locked. Between "given back" and "lent" a
//! buffer belongs to the kernel; between "lent" and the drop of its [`LentBuffer`] it belongs to the reader. A buffer
//! of a network loop is read on the node's own loop: there [`FarPool`] lends it, and sends its number back.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use rtrb::Producer;

use crate::base::AlignedBuf;

/// The bytes of all buffers of a pool. Lives as long as the pool and as long as any lent buffer.
pub(super) struct Slab {
    /// Owns the bytes; only reached through `bytes`.
    _memory: AlignedBuf,
    bytes: *mut u8,
    count: u16,
    buffer_bytes: u32,
}

// SAFETY: the pointer leads into memory that the slab owns and that does not move. Each buffer in it has one holder at
// a time, the kernel or one `LentBuffer`, and it passes between threads through queues that order their memory.
unsafe impl Send for Slab {}
// SAFETY: as above; a shared slab gives out addresses only.
unsafe impl Sync for Slab {}

impl Slab {
    fn address(&self, index: u16) -> *mut u8 {
        self.bytes.wrapping_add(usize::from(index) * self.buffer_bytes as usize)
    }

    fn check(&self, index: u16, len: u32) {
        assert!(index < self.count && len <= self.buffer_bytes, "the kernel named a buffer that is not ours");
    }
}

/// The memory shared with the kernel.
pub(super) struct BufferPool {
    slab: Arc<Slab>,
    /// Owns the ring of entries; only reached through `entries`.
    _ring: AlignedBuf,
    entries: *mut BufRingEntry,
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
            slab: Arc::new(Slab { _memory: memory, bytes, count, buffer_bytes }),
            _ring: ring,
            entries,
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
        self.slab.count
    }

    pub(super) fn buffer_bytes(&self) -> u32 {
        self.slab.buffer_bytes
    }

    /// For a reader on another thread.
    pub(super) fn slab(&self) -> Arc<Slab> {
        self.slab.clone()
    }

    /// Buffers that the kernel may pick from.
    pub(super) fn free(&self) -> u16 {
        self.slab.count - self.lent.get()
    }

    /// Takes over buffer `index`, into which the kernel has put `len` bytes.
    pub(super) fn lend(self: &Rc<Self>, index: u16, len: u32) -> LentBuffer {
        self.slab.check(index, len);
        assert!(self.lent.get() < self.slab.count, "more buffers lent than exist");
        self.lent.set(self.lent.get() + 1);
        LentBuffer { lender: Lender::Here(self.clone()), index, len }
    }

    fn offer(&self, index: u16) {
        let slot = usize::from(self.tail.get() & (self.slab.count - 1));
        // SAFETY: `slot` is below `count`, the entries live in `_ring`, and the kernel reads an entry only after
        // the tail was published past it; no reference to an entry outlives this block.
        let entry = unsafe { &mut *self.entries.add(slot) };
        entry.set_addr(self.slab.address(index) as u64);
        entry.set_len(self.slab.buffer_bytes);
        entry.set_bid(index);
        self.tail.set(self.tail.get().wrapping_add(1));
    }

    fn publish(&self) {
        // SAFETY: `entries` is the aligned start of the ring, whose first entry holds the tail; the kernel only
        // reads it, so an atomic store through a shared view is the agreed hand-over.
        let tail = unsafe { &*BufRingEntry::tail(self.entries).cast::<AtomicU16>() };
        tail.store(self.tail.get(), Ordering::Release);
    }

    pub(super) fn give_back(&self, index: u16) {
        self.offer(index);
        self.publish();
        self.lent.set(self.lent.get() - 1);
    }
}

/// The buffers of a network loop, as the node's own loop sees them.
pub(super) struct FarPool {
    slab: Arc<Slab>,
    /// Numbers of buffers on their way back. It has room for all of them.
    back: RefCell<Producer<u16>>,
    /// Some went back since the owner was told last.
    moved: Cell<bool>,
}

impl FarPool {
    pub(super) fn new(slab: Arc<Slab>, back: Producer<u16>) -> FarPool {
        assert!(
            back.buffer().capacity() >= usize::from(slab.count),
            "every buffer finds room on its way back"
        );
        FarPool { slab, back: RefCell::new(back), moved: Cell::new(false) }
    }

    /// Takes over a buffer that [`LentBuffer::detach`] let go.
    pub(super) fn lend(self: &Rc<Self>, index: u16, len: u32) -> LentBuffer {
        self.slab.check(index, len);
        LentBuffer { lender: Lender::Far(self.clone()), index, len }
    }

    /// Whether buffers went back since this was asked last.
    pub(super) fn take_moved(&self) -> bool {
        self.moved.take()
    }
}

enum Lender {
    Here(Rc<BufferPool>),
    Far(Rc<FarPool>),
    /// The buffer went on to another holder.
    Nobody,
}

/// Received bytes in a buffer of the ring; dropping it hands the buffer back to the kernel.
pub struct LentBuffer {
    lender: Lender,
    index: u16,
    len: u32,
}

impl LentBuffer {
    /// Number and length of the buffer, which stays lent until [`BufferPool::give_back`].
    pub(super) fn detach(mut self) -> (u16, u32) {
        self.lender = Lender::Nobody;
        (self.index, self.len)
    }
}

impl Deref for LentBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let slab = match &self.lender {
            Lender::Here(pool) => &pool.slab,
            Lender::Far(pool) => &pool.slab,
            Lender::Nobody => return &[],
        };
        // SAFETY: `lend` checked index and length against the memory that the slab keeps alive; the kernel does
        // not write to a buffer that is lent.
        unsafe { std::slice::from_raw_parts(slab.address(self.index), self.len as usize) }
    }
}

impl Drop for LentBuffer {
    fn drop(&mut self) {
        match &self.lender {
            Lender::Here(pool) => pool.give_back(self.index),
            Lender::Far(pool) => {
                let kept = pool.back.borrow_mut().push(self.index);
                assert!(kept.is_ok(), "a buffer came back twice");
                pool.moved.set(true);
            }
            Lender::Nobody => {}
        }
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
    fn a_buffer_that_is_read_elsewhere_comes_back_through_the_queue() {
        let pool = Rc::new(BufferPool::new(4, 4096));
        let (back, mut returned) = rtrb::RingBuffer::new(4);
        let far = Rc::new(FarPool::new(pool.slab(), back));
        let (index, len) = pool.lend(2, 100).detach();
        assert_eq!((pool.free(), far.take_moved()), (3, false), "it stays lent");
        let there = far.lend(index, len);
        drop(far.clone());
        assert_eq!(there.len(), 100);
        drop(there);
        assert!(far.take_moved() && !far.take_moved());
        pool.give_back(returned.pop().unwrap());
        assert_eq!((pool.free(), returned.pop().is_err()), (4, true));
    }

    #[test]
    #[should_panic(expected = "not ours")]
    fn a_buffer_outside_the_pool_is_refused() {
        Rc::new(BufferPool::new(4, 4096)).lend(4, 1);
    }
}

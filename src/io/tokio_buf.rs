//! Log frames as tokio-uring wants its buffers: for the comparison of runtimes in `benches/wal_runtime`, nothing else.
#![allow(unsafe_code, reason = "tokio-uring asks for a promise about the buffer's address")]

use tokio_uring::buf::IoBuf;

use crate::base::SharedSlice;

/// A shared slice that a tokio-uring write may own.
#[derive(Debug)]
pub struct TokioSlice(pub SharedSlice);

// SAFETY: the bytes lie in a counted allocation that does not move and that nobody changes while a slice of it lives.
unsafe impl IoBuf for TokioSlice {
    fn stable_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.0.len()
    }
    fn bytes_total(&self) -> usize {
        self.0.len()
    }
}

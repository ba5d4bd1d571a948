//! The I/O seam: the one door through which a node touches disk, network, clock and chance.
//!
//! [`Seam`] is a narrow completion interface. The node submits operations, reaps events, and never blocks elsewhere.
//! Two backends implement it: [`uring`] (the kernel's ring) and [`sim`] (a seeded disk, network and clock).
//! The node and its drivers run unchanged on both.
//!
//! This room is the only one with `unsafe` code and system calls. It knows nothing of logs, roles or clients.
//!
//! Invariants:
//! - an operation owns its buffers until its event is reaped; nothing borrows across the seam;
//! - every submitted operation yields exactly one event (accept and receive: a stream of events that ends with one);
//! - a write is reported only when all its bytes were written; short writes are finished inside the backend;
//! - a failed write or flush is reported once and never retried here.

pub mod seam;
pub mod sim;
#[cfg(feature = "runtime-bench")]
pub mod tokio_buf;
pub mod uring;

pub use seam::{
    CloseReason, ConnId, Event, FileId, ListenerId, Op, Open, Outgoing, ReceivedBytes, Seam, Token, Waker,
};

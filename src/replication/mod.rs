//! Replication: how log frames travel from an upstream node to its standbys, and how their answers become a commit index.
//!
//! Pure state machines: bytes and messages in, messages and decisions out. Sockets, timers, redial and the files of
//! the log belong to the drivers; terms, votes, the read lease and what must be durable belong to `role`; writing and
//! flushing belong to `wal`.
//!
//! - [`wire`]: the envelope of every message between peers, its byte layout, and an incremental decoder;
//! - [`handshake`]: both sides prove the shared secret; afterwards a link has one authenticated identity;
//! - [`chain`]: the checks that every received frame passes before it may be written;
//! - [`sender`]: one per standby, on the upstream side;
//! - [`receiver`]: the standby side of one stream session;
//! - [`parent`]: whom a cascaded standby streams from;
//! - [`fetch`]: a bounded range of the log, for fast-forward and repair;
//! - [`progress`]: who holds what, the commit index, and the lag.
//!
//! Invariants:
//! - identity is (node, incarnation) as authenticated by the handshake, never what a later message says;
//! - the *session term* in the envelope fences; the *frame term* is judged by history alone (`protocol` section 1);
//! - a frame is written by a standby only where its own end is, only when it continues its own chain, and only when
//!   history gives the frame's term to its place;
//! - an acknowledgement counts only in the term whose session carried it, and only from a listed voter;
//! - a standby never believes a commit watermark above what it matched in this session (`protocol` 2.3);
//! - a slow or silent peer costs no memory: senders hold positions, not frames.
//!
//! The price: frames cross the link as they stand on disk, header and all, so a small group costs 144 bytes of header
//! and a checksum of its own; a link that loses one message is closed and starts again from a position.

pub mod chain;
pub mod fetch;
pub mod handshake;
pub mod parent;
pub mod progress;
pub mod receiver;
pub mod sender;
pub mod wire;

pub use chain::{Chain, ChainError, ReceivedFrame};
pub use fetch::{FetchServer, Fetched, Fetcher};
pub use handshake::{
    Acceptor, Admission, Dialer, HandshakeError, Identity, Peer, Roster, Secret, Session, Turn,
};
pub use parent::Parent;
pub use progress::{LagClock, PeerProgress, Progress, StreamKind, Watermarks};
pub use receiver::{Position, Receiver, ReceiverError};
pub use sender::{Frame, LogSource, LogView, Outbound, Pulled, Sender, SenderError, SenderState, Step};
pub use wire::{Decoder, Envelope, LogTip, Message, Stamped, WireError};

#[cfg(test)]
mod tests;

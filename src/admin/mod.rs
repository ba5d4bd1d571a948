//! What an operator asks of a running node, and what it answers: the words, their codec, their exit codes.
//!
//! A request is one JSON object on one line, tagged by `verb`, with an `op` id; the answer is one line too. The room
//! is pure: it neither opens the socket (the control thread of the node does) nor carries a request out (the node's
//! loop does).
//!
//! Invariants:
//! - a line longer than `ADMIN_LINE_BYTES_MAX`, or one that is not a request, gets an error answer, never a panic;
//! - the same `op` with the same request gets the same answer while the process lives, and is carried out once;
//! - exit codes and error codes are stable: `docs/admin.md` is their contract.

pub mod ops;
pub mod request;
pub mod response;
pub mod wire;

pub use ops::{Admitted, OpTable};
pub use request::{Failover, PolicySet, Request, StopMode, Switchover, Verb, WantedRole};
pub use response::{AdminError, ErrorCode, Exit, Keeper, Response, WalKeepers};
pub use wire::{LineSplitter, decode_request, decode_response, encode_request, encode_response};

/// Version of requests and answers. A node answers every request of its own version or lower.
pub const VERSION: u16 = 1;

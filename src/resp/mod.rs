//! The Redis serialization protocol, RESP2 and RESP3: bytes to requests and replies to bytes for the server, and the
//! mirror image for clients of our own (the benchmark, the demo's checker).
//!
//! This room is *not* a command table: it does not know what a request means. It owns no socket and no buffer; callers
//! keep the bytes and the parsers remember how far they have looked.
//!
//! Invariants:
//! - splitting the same bytes into other chunks never changes a result ([`RequestParser`], [`ReplyParser`]);
//! - over repeated partial calls every byte is looked at a bounded number of times, large arguments not at all;
//! - memory is never reserved from a size that the peer declared, and nesting is bounded;
//! - any bytes give a request, a wait for more, or an error; never a panic.
//!
//! The price: a request must stand whole in the caller's buffer before it is handed on, so the buffer of one client may
//! grow to the request limit, and a request written as an inline line is unquoted into a buffer of its own.

mod inline;
mod number;
mod reply;
mod request;
mod value;

pub use number::{format_double, format_i64, parse_i64};
pub use reply::{Proto, Reply};
pub use request::{Args, OwnedArgs, Parse, RequestLimits, RequestParser};
pub use value::{ReplyLimits, ReplyParser, Value, decode, write_request};

/// The peer broke the protocol. The text is what Redis would answer behind `-ERR `; the connection closes after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtocolError(pub std::borrow::Cow<'static, str>);

impl ProtocolError {
    const fn of(text: &'static str) -> ProtocolError {
        ProtocolError(std::borrow::Cow::Borrowed(text))
    }
}

impl std::fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for ProtocolError {}

//! A bounded range of the log on request: for the fast-forward of a winner, and to repair a damaged range.
//!
//! Reading a log is harmless in any term, so the server asks for no session; the fetcher judges every frame by the
//! history that it was given and by its own chain.

use bytes::Bytes;

use super::chain::{Chain, ChainError, ReceivedFrame};
use super::sender::{LogSource, LogView, Step};
use super::wire::{FramesHead, Message, Refusal};
use crate::base::{Lsn, SharedSlice};

/// Serves one range.
#[derive(Debug)]
pub struct Server {
    at: Lsn,
    to: Lsn,
    loading: bool,
    over: bool,
}

impl Server {
    /// Frames from `from` on; the last one sent is the first that reaches or passes `to`, or the end of the log.
    pub fn new(from: Lsn, to: Lsn) -> Server {
        Server { at: from, to, loading: false, over: false }
    }

    /// What to send next; call it when the link is free to send.
    pub fn next(&mut self, _view: &LogView<'_>, _source: &dyn LogSource) -> Step {
        let _ = (self.at, self.to, self.loading, self.over);
        unreachable!("the body follows")
    }

    pub fn loaded(&mut self, _view: &LogView<'_>, _frames: Result<Vec<SharedSlice>, Refusal>) -> Step {
        unreachable!("the body follows")
    }

    pub fn is_over(&self) -> bool {
        self.over
    }
}

/// Fetches one range.
#[derive(Debug)]
pub struct Fetcher {
    chain: Chain,
    to: Lsn,
}

impl Fetcher {
    /// `chain` starts at the own tip and carries the source's history.
    pub fn new(chain: Chain, to: Lsn) -> Fetcher {
        Fetcher { chain, to }
    }

    pub fn request(&self) -> Message {
        Message::LogFetch { from: self.chain.tip().end, to: self.to }
    }

    pub fn on_frames(&mut self, head: &FramesHead, bytes: Bytes) -> Result<Vec<ReceivedFrame>, ChainError> {
        self.chain.accept(head, bytes)
    }

    /// Everything up to the wanted end arrived.
    pub fn is_done(&self) -> bool {
        self.chain.tip().end >= self.to
    }

    pub fn chain(&self) -> &Chain {
        &self.chain
    }
}

//! A bounded range of the log on request: for the fast-forward of a winner, and to repair a damaged range.
//!
//! The server asks for no stream: whether a reader of that term is welcome is the role room's verdict. The fetcher
//! judges every frame by the history that it was given and by its own chain, and asks for one range after the other,
//! so that what waits to be written stays bounded.

use bytes::Bytes;

use super::chain::{Chain, ChainError, ReceivedFrame};
use super::sender::{
    Frame, LogSource, LogView, MESSAGE_BYTES_SOFT, Outbound, Pulled, Step, begins_at, chain_mismatch, gather,
    wal_removed,
};
use super::wire::{FramesHead, Kind, Message, Refusal};
use crate::base::Lsn;
use crate::base::limits::FRAME_BYTES_MAX;

/// Log asked for at once.
pub const RANGE_BYTES: u64 = FRAME_BYTES_MAX as u64;

/// Serves one range.
#[derive(Debug)]
pub struct FetchServer {
    at: Lsn,
    to: Lsn,
    loading: bool,
    over: bool,
}

impl FetchServer {
    /// Frames from `from` on; the last one sent is the first that reaches or passes `to`, or the end of the log.
    pub fn new(from: Lsn, to: Lsn) -> FetchServer {
        FetchServer { at: from, to, loading: false, over: false }
    }

    /// What to send next; call it when the link is free to send. A [`Step::Refuse`] goes out as `FetchRefuse`.
    pub fn next(&mut self, view: &LogView<'_>, source: &dyn LogSource) -> Step {
        if self.over || self.loading {
            return Step::Idle;
        }
        if self.at >= self.to {
            return self.done(view);
        }
        let max_bytes = (MESSAGE_BYTES_SOFT as u64).min(self.to.since(self.at)) as usize;
        match source.frames_from(self.at, max_bytes) {
            Pulled::Memory(frames) => self.frames(view, frames, max_bytes),
            Pulled::OnDisk => {
                self.loading = true;
                Step::Load { from: self.at, bytes: max_bytes }
            }
            Pulled::Removed { oldest } => self.refuse(wal_removed(self.at, oldest)),
            Pulled::End if self.at < view.tip.end => Step::Idle,
            Pulled::End => self.done(view),
            Pulled::NoBorder => self.refuse(chain_mismatch(self.at)),
        }
    }

    pub fn loaded(&mut self, view: &LogView<'_>, frames: Result<Vec<Frame>, Refusal>) -> Step {
        if self.over {
            return Step::Idle;
        }
        assert!(self.loading, "frames are loaded only when asked for");
        self.loading = false;
        match frames {
            Ok(frames) => self.frames(view, frames, MESSAGE_BYTES_SOFT),
            Err(refusal) => self.refuse(refusal),
        }
    }

    pub fn is_over(&self) -> bool {
        self.over
    }

    fn frames(&mut self, view: &LogView<'_>, frames: Vec<Frame>, max_bytes: usize) -> Step {
        if begins_at(&frames, self.at).is_none() {
            return self.refuse(chain_mismatch(self.at));
        }
        let mut out = Outbound::default();
        self.at = gather(view, Kind::FetchedFrames, self.at, frames, max_bytes, &mut out);
        Step::Send(out)
    }

    fn done(&mut self, view: &LogView<'_>) -> Step {
        self.over = true;
        Step::Send(Outbound::message(&view.stamped(), &Message::FetchDone { end: self.at }))
    }

    fn refuse(&mut self, refusal: Refusal) -> Step {
        self.over = true;
        Step::Refuse(refusal)
    }
}

/// Where a fetch stands after the source said that a range is complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fetched {
    /// Everything up to the wanted end arrived.
    Done,
    /// Send [`Fetcher::request`] again as soon as the received frames are written.
    More,
    /// The source's log ends before the wanted end.
    Short,
}

/// Fetches the log from a chain's tip up to a wanted end.
#[derive(Debug)]
pub struct Fetcher {
    chain: Chain,
    to: Lsn,
    asked: Lsn,
}

impl Fetcher {
    /// `chain` starts at the own tip and carries the source's history.
    pub fn new(chain: Chain, to: Lsn) -> Fetcher {
        let asked = chain.tip().end;
        Fetcher { chain, to, asked }
    }

    /// Asks for the next range.
    pub fn request(&mut self) -> Message {
        let from = self.chain.tip().end;
        self.asked = Lsn(from.0.saturating_add(RANGE_BYTES)).min(self.to);
        Message::LogFetch { from, to: self.asked }
    }

    pub fn on_frames(&mut self, head: &FramesHead, bytes: Bytes) -> Result<Vec<ReceivedFrame>, ChainError> {
        if self.chain.tip().end >= self.asked {
            return Err(ChainError::Head("frames that nobody asked for"));
        }
        self.chain.accept(head, bytes)
    }

    /// The source says that the range is complete; `end` is its word, the chain knows better.
    pub fn on_done(&self) -> Fetched {
        let end = self.chain.tip().end;
        match () {
            () if end >= self.to => Fetched::Done,
            () if end >= self.asked => Fetched::More,
            () => Fetched::Short,
        }
    }

    pub fn chain(&self) -> &Chain {
        &self.chain
    }
}

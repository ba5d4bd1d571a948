//! Tests of the room. This file holds the log that they stream; the stories stand beside it.

mod fetching;
mod handshakes;
mod lossy;
mod progressing;
mod streaming;
mod walled;
mod wires;

use super::sender::{Frame, LogSource, LogView, Pulled};
use super::wire::{LogTip, Path};
use crate::base::{
    ClusterId, CommittedLsn, Digest, FlushedLsn, Incarnation, Lsn, NodeId, SharedSlice, Term, WallMs,
};
use crate::record::{FrameHeader, FrameKind, HEADER_BYTES, padded};
use crate::role::History;

use super::handshake::Peer;

pub const CLUSTER: ClusterId = ClusterId(0xC1);

pub fn term(number: u64) -> Term {
    Term { number, id: u128::from(number) * 1000 }
}

pub fn peer(node: u16) -> Peer {
    Peer { node: NodeId(node), incarnation: Incarnation(u128::from(node)), run: u128::from(node) }
}

/// A whole log in memory. Frames below `memory_from` count as being on disk only, those below `oldest` as gone.
#[derive(Clone, Debug)]
pub struct TestLog {
    pub frames: Vec<Frame>,
    pub history: History,
    pub commit: CommittedLsn,
    pub memory_from: Lsn,
    pub oldest: Lsn,
}

impl TestLog {
    pub fn new() -> TestLog {
        TestLog {
            frames: Vec::new(),
            history: History::new(),
            commit: CommittedLsn::ZERO,
            memory_from: Lsn::ZERO,
            oldest: Lsn::ZERO,
        }
    }

    pub fn tip(&self) -> LogTip {
        self.frames.last().map_or(LogTip::default(), |(header, _)| LogTip {
            end: header.end(),
            term: header.term,
            digest: header.digest,
        })
    }

    /// Begins a term at the end of the log, with its first frame.
    pub fn begin(&mut self, term: Term) {
        self.history.append(term, self.tip().end);
        self.append(b"term start");
    }

    pub fn append(&mut self, payload: &[u8]) {
        self.push(FrameKind::Data, padded(payload.len()), payload);
    }

    pub fn fill(&mut self, length: usize) {
        self.push(FrameKind::Filler, length, &[]);
    }

    fn push(&mut self, kind: FrameKind, length: usize, payload: &[u8]) {
        let tip = self.tip();
        let mut bytes = vec![0u8; HEADER_BYTES + payload.len()];
        bytes[HEADER_BYTES..].copy_from_slice(payload);
        let mut header = FrameHeader {
            version: crate::base::format::FORMAT_VERSION,
            kind,
            cluster: CLUSTER,
            term: self.history.last().expect("a term began").0,
            segment: 0,
            first: tip.end,
            length: length as u32,
            payload_len: payload.len() as u32,
            records: 0,
            transactions: 0,
            previous: tip.digest,
            durable: FlushedLsn::ZERO,
            commit: CommittedLsn::ZERO,
            clock: WallMs(1),
            digest: Digest::ZERO,
        };
        header.seal(&mut bytes);
        self.frames.push((header, SharedSlice::copy_of(&bytes)));
    }

    /// Drops what begins at `end` or behind it.
    pub fn truncate(&mut self, end: Lsn) {
        self.frames.retain(|(header, _)| header.first < end);
        assert_eq!(self.tip().end, end, "truncation at a frame border");
        self.history.truncate_to(end);
    }

    pub fn view(&self, session: Term) -> LogView<'_> {
        LogView {
            cluster: CLUSTER,
            version: 1,
            session,
            history: &self.history,
            tip: self.tip(),
            oldest: self.oldest,
            commit: self.commit,
            path: Path::of(NodeId(1)),
            eager_acks: false,
        }
    }

    /// Frames from `at` on, wherever they are.
    pub fn read(&self, at: Lsn, max_bytes: usize) -> Vec<Frame> {
        let (mut bytes, mut out) = (0, Vec::new());
        for frame in self.frames.iter().filter(|(header, _)| header.first >= at) {
            bytes += frame.0.used();
            if !out.is_empty() && bytes > max_bytes {
                break;
            }
            out.push(frame.clone());
        }
        assert!(out.first().is_none_or(|(header, _)| header.first == at), "asked at a frame border");
        out
    }

    /// The log as the disk would show it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (header, slice) in &self.frames {
            bytes.extend_from_slice(slice);
            bytes.resize(header.end().0 as usize, 0);
        }
        bytes
    }
}

impl LogSource for TestLog {
    fn frames_from(&self, at: Lsn, max_bytes: usize) -> Pulled {
        match () {
            () if at >= self.tip().end => Pulled::End,
            () if at < self.oldest => Pulled::Removed { oldest: self.oldest },
            () if at < self.memory_from => Pulled::OnDisk,
            () => Pulled::Memory(self.read(at, max_bytes)),
        }
    }
}

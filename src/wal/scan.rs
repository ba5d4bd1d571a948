//! Reading frames back from segment files, in order, each verified.

use std::io;

use super::{Frame, Geometry, LogEnd, ScanError};
use crate::base::limits::{BLOCK_BYTES, SEGMENT_BYTES};
use crate::base::{AlignedBuf, Lsn, SharedSlice, Term};
use crate::record::{Corrupt, FrameHeader, RecordReader};

/// One read of a scan: large, because a scan is bound by the disk's bandwidth.
pub(super) const SCAN_BYTES: usize = 2 << 20;

const _: () = assert!((SCAN_BYTES as u64) < SEGMENT_BYTES && SCAN_BYTES.is_multiple_of(BLOCK_BYTES));

/// Segment files as a scan sees them. The node implements it on its seam; nothing is written through it.
pub trait LogReader {
    /// Numbers of the segments present, ascending.
    fn segments(&mut self) -> io::Result<Vec<u64>>;
    /// Bytes of a segment; fewer than `len` only at the end of the file, `None` when the segment is not there.
    fn read(&mut self, segment: u64, offset: u64, len: usize) -> io::Result<Option<AlignedBuf>>;
    /// A buffer that [`LogReader::read`] gave, no longer needed: the next read may use it.
    fn recycle(&mut self, _buf: AlignedBuf) {}
}

/// Frames parsed from bytes that a sender or redo read from disk.
#[derive(Debug)]
pub struct DiskFrames {
    pub frames: Vec<Frame>,
    /// Where the next read starts.
    pub next: Lsn,
    /// Set when the first frame did not fit: read this many bytes from the same position.
    pub need: Option<usize>,
}

/// What stands at one position.
pub(super) enum Found {
    Frame(FrameHeader, SharedSlice),
    /// A header that belongs here, but the frame is torn.
    Torn(FrameHeader, Corrupt),
    Nothing(Corrupt),
}

/// A window over the log: serves small reads from one large one.
pub(super) struct Window<'a> {
    reader: &'a mut dyn LogReader,
    geometry: Geometry,
    chunk: Option<(Lsn, SharedSlice)>,
}

impl<'a> Window<'a> {
    pub fn new(reader: &'a mut dyn LogReader, geometry: Geometry) -> Self {
        Window { reader, geometry, chunk: None }
    }

    /// Bytes from `at` on, at least `len` of them unless the segment ends or the file is shorter.
    fn bytes(&mut self, at: Lsn, len: usize) -> Result<SharedSlice, ScanError> {
        if let Some((start, chunk)) = &self.chunk
            && at >= *start
            && at.0 - start.0 + len as u64 <= chunk.len() as u64
        {
            let from = (at.0 - start.0) as usize;
            return Ok(chunk.slice(from..chunk.len()));
        }
        let (segment, offset) =
            (at.segment(self.geometry.segment_bytes), at.offset(self.geometry.segment_bytes));
        let wanted = len.max(SCAN_BYTES).next_multiple_of(BLOCK_BYTES) as u64;
        let wanted = wanted.min(self.geometry.segment_bytes - offset) as usize;
        if let Some(buf) = self.chunk.take().and_then(|(_, chunk)| chunk.reclaim()) {
            self.reader.recycle(buf);
        }
        let read = self.reader.read(segment, offset, wanted).map_err(|error| ScanError::Io { at, error })?;
        let chunk = read.unwrap_or_else(|| {
            let mut nothing = AlignedBuf::zeroed(0);
            nothing.set_len(0);
            nothing
        });
        let chunk = chunk.share();
        self.chunk = Some((at, chunk.clone()));
        Ok(chunk)
    }

    /// What stands at `at`, judged without chain and history.
    pub fn frame_at(&mut self, at: Lsn) -> Result<Found, ScanError> {
        let bytes = self.bytes(at, BLOCK_BYTES)?;
        if let Some(header) = self.geometry.newer(at, &bytes) {
            let whole =
                if bytes.len() < header.used() { self.bytes(at, header.used())? } else { bytes.clone() };
            if header.verify(&whole).is_ok() {
                return Err(ScanError::Newer { at, version: header.version });
            }
        }
        let header = match self.geometry.header(at, &bytes) {
            Ok(header) => header,
            Err(why) => return Ok(Found::Nothing(why)),
        };
        let bytes = if bytes.len() < header.used() { self.bytes(at, header.used())? } else { bytes };
        Ok(match header.verify(&bytes) {
            Ok(()) => Found::Frame(header, bytes.slice(0..header.used())),
            Err(why) => Found::Torn(header, why),
        })
    }

    /// The raw block at `at`, shorter or empty where the file ends.
    pub fn block_at(&mut self, at: Lsn) -> Result<SharedSlice, ScanError> {
        let bytes = self.bytes(at, BLOCK_BYTES)?;
        Ok(bytes.slice(0..bytes.len().min(BLOCK_BYTES)))
    }
}

/// A verified frame.
#[derive(Debug)]
pub struct ScannedFrame {
    pub header: FrameHeader,
    used: SharedSlice,
}

impl ScannedFrame {
    pub fn payload(&self) -> &[u8] {
        &self.used[crate::record::HEADER_BYTES..]
    }
    pub fn records(&self) -> RecordReader<'_> {
        RecordReader::new(self.payload())
    }
    /// Header and payload.
    pub fn used(&self) -> &SharedSlice {
        &self.used
    }
}

/// Which term history assigns to a position.
pub(super) type TermAt<'a> = &'a dyn Fn(Lsn) -> Option<Term>;

/// Walks frames from one border to another, checking place, digest, chain and, when given, history.
/// Ends after `to` or after the first error.
pub struct FrameScan<'a> {
    pub(super) window: Window<'a>,
    term_at: Option<TermAt<'a>>,
    /// Behind the last good frame.
    end: LogEnd,
    chain_known: bool,
    to: Lsn,
    ended: bool,
}

impl<'a> FrameScan<'a> {
    /// Frames of `from..to`; `from` is a frame border. With `before` the first frame must follow it.
    pub fn new(
        reader: &'a mut dyn LogReader,
        geometry: Geometry,
        from: Lsn,
        to: Lsn,
        before: Option<LogEnd>,
    ) -> FrameScan<'a> {
        Self::over(Window::new(reader, geometry), from, to, before)
    }

    pub(super) fn over(window: Window<'a>, from: Lsn, to: Lsn, before: Option<LogEnd>) -> FrameScan<'a> {
        let before = if from == Lsn::ZERO { Some(LogEnd::GENESIS) } else { before };
        assert!(before.is_none_or(|before| before.end == from));
        let unknown = LogEnd { end: from, ..LogEnd::GENESIS };
        FrameScan {
            window,
            term_at: None,
            end: before.unwrap_or(unknown),
            chain_known: before.is_some(),
            to,
            ended: false,
        }
    }

    /// Lets only frames pass whose term is the one that history assigns to their position.
    pub fn judged_by(mut self, term_at: &'a dyn Fn(Lsn) -> Option<Term>) -> Self {
        self.term_at = Some(term_at);
        self
    }

    /// The end behind the last good frame.
    pub fn end(&self) -> LogEnd {
        self.end
    }

    pub(super) fn chain_known(&self) -> bool {
        self.chain_known
    }

    fn step(&mut self) -> Result<ScannedFrame, ScanError> {
        let at = self.end.end;
        let bad = |why| ScanError::Bad { at, why };
        let (header, used) = match self.window.frame_at(at)? {
            Found::Frame(header, used) => (header, used),
            Found::Torn(_, why) | Found::Nothing(why) => return Err(bad(why)),
        };
        if self.chain_known && header.previous != self.end.last_digest {
            return Err(bad(Corrupt("frame does not follow the one before it")));
        }
        if header.term < self.end.last_term {
            return Err(bad(Corrupt("frame of an older term than the one before it")));
        }
        if self.term_at.is_some_and(|term_at| term_at(at) != Some(header.term)) {
            return Err(bad(Corrupt("history assigns another term to this position")));
        }
        self.end = LogEnd::after(&header);
        self.chain_known = true;
        Ok(ScannedFrame { header, used })
    }
}

impl Iterator for FrameScan<'_> {
    type Item = Result<ScannedFrame, ScanError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended || self.end.end >= self.to {
            return None;
        }
        let item = self.step();
        self.ended = item.is_err();
        Some(item)
    }
}

//! What a frame must satisfy at its place, whoever brings it: disk, peer or tail file.

use super::{DiskFrames, Frame, ScanError};
use crate::base::limits::{BLOCK_BYTES, FRAME_BYTES_MAX, SEGMENT_BYTES_MIN};
use crate::base::{ClusterId, Lsn, SharedSlice};
use crate::record::{Corrupt, FrameHeader, FrameKind, HEADER_BYTES};

/// The fixed shape of one cluster's log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    pub cluster: ClusterId,
    pub segment_bytes: u64,
}

impl Geometry {
    pub fn new(cluster: ClusterId, segment_bytes: u64) -> Geometry {
        assert!(segment_bytes >= SEGMENT_BYTES_MIN && segment_bytes.is_multiple_of(BLOCK_BYTES as u64));
        assert!(u32::try_from(segment_bytes).is_ok(), "a filler's length field must hold a whole segment");
        Geometry { cluster, segment_bytes }
    }

    /// The largest payload of one frame, which is also the largest transaction.
    pub fn payload_max(&self) -> usize {
        let frame = FRAME_BYTES_MAX.min(usize::try_from(self.segment_bytes).unwrap_or(usize::MAX));
        frame - HEADER_BYTES
    }

    /// Decodes the header at the start of `bytes` and checks that it belongs to position `at` of this log.
    pub fn header(&self, at: Lsn, bytes: &[u8]) -> Result<FrameHeader, Corrupt> {
        let header = FrameHeader::decode(bytes)?;
        self.check(at, &header)?;
        Ok(header)
    }

    /// The header of a newer format at position `at` of this log, not verified yet.
    pub fn newer(&self, at: Lsn, bytes: &[u8]) -> Option<FrameHeader> {
        let header = FrameHeader::newer(bytes)?;
        let here = header.cluster == self.cluster
            && header.first == at
            && header.segment == at.segment(self.segment_bytes);
        here.then_some(header)
    }

    /// Everything about a decoded header that needs neither payload, chain nor history.
    pub fn check(&self, at: Lsn, header: &FrameHeader) -> Result<(), Corrupt> {
        if header.cluster != self.cluster {
            return Err(Corrupt("frame of another cluster"));
        }
        if header.first != at {
            return Err(Corrupt("frame of another position"));
        }
        if header.segment != at.segment(self.segment_bytes) {
            return Err(Corrupt("frame of another segment"));
        }
        let end = at.offset(self.segment_bytes) + u64::from(header.length);
        if end > self.segment_bytes {
            return Err(Corrupt("frame crosses the end of its segment"));
        }
        if header.kind == FrameKind::Filler && end != self.segment_bytes {
            return Err(Corrupt("filler does not reach the end of its segment"));
        }
        if header.durable.lsn() > at || header.commit.lsn() > at {
            return Err(Corrupt("frame carries a mark beyond its own position"));
        }
        Ok(())
    }

    /// The whole frame at the start of `bytes`: header, place and digest.
    pub fn frame(&self, at: Lsn, bytes: &[u8]) -> Result<FrameHeader, Corrupt> {
        let header = self.header(at, bytes)?;
        header.verify(bytes)?;
        Ok(header)
    }

    /// Turns bytes read from a segment at position `at` into frames, verifying each and the chain between them.
    ///
    /// A frame that is cut off by the end of `bytes` is left out; when not even one is whole, `need` says how many bytes
    /// the next read must bring. The memory of the frames is `bytes` itself.
    pub fn parse(&self, at: Lsn, bytes: &SharedSlice) -> Result<DiskFrames, ScanError> {
        let mut frames: Vec<Frame> = Vec::new();
        let mut from = 0usize;
        let mut next = at;
        let mut need = None;
        while bytes.len() - from >= BLOCK_BYTES {
            let rest = &bytes[from..];
            if let Some(newer) = self.newer(next, rest)
                && newer.verify(rest).is_ok()
            {
                return Err(ScanError::Newer { at: next, version: newer.version });
            }
            let header = self.header(next, rest).map_err(|why| ScanError::Bad { at: next, why })?;
            if rest.len() < header.used() {
                need = Some(header.used().next_multiple_of(BLOCK_BYTES));
                break;
            }
            header.verify(rest).map_err(|why| ScanError::Bad { at: next, why })?;
            if frames.last().is_some_and(|(before, _)| before.digest != header.previous) {
                return Err(ScanError::Bad {
                    at: next,
                    why: Corrupt("frame does not follow the one before it"),
                });
            }
            frames.push((header, bytes.slice(from..from + header.used())));
            next = header.end();
            from = match usize::try_from(header.length) {
                Ok(length) if from + length <= bytes.len() => from + length,
                _ => break,
            };
        }
        if frames.is_empty() && need.is_none() {
            need = Some(BLOCK_BYTES);
        }
        Ok(DiskFrames { need: need.filter(|_| frames.is_empty()), frames, next })
    }
}

/// End of the bytes that writing this frame puts on the disk: of a filler, only its first block.
pub(super) fn written_end(header: &FrameHeader) -> Lsn {
    match header.kind {
        FrameKind::Data => header.end(),
        FrameKind::Filler => header.first + BLOCK_BYTES as u64,
    }
}

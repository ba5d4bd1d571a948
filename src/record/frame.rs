//! The frame header: 144 bytes, little-endian, at a 4 KiB border, never rewritten.

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Corrupt;
use crate::base::format;
use crate::base::limits::{BLOCK_BYTES, FRAME_BYTES_MAX};
use crate::base::{ClusterId, CommittedLsn, Digest, FlushedLsn, Lsn, Term, WallMs};

pub const HEADER_BYTES: usize = 144;
const MAGIC: u32 = u32::from_le_bytes(*b"BTNF");

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: U32,
    version: U16,
    kind: u8,
    flags: u8,
    cluster: U128,
    term_number: U64,
    term_id: U128,
    segment: U64,
    first_lsn: U64,
    length: U32,
    payload_len: U32,
    records: U32,
    transactions: U32,
    previous: U128,
    durable_lsn: U64,
    commit_lsn: U64,
    clock_ms: U64,
    reserved: U64,
    digest: U128,
}

const _: () = assert!(size_of::<Raw>() == HEADER_BYTES);

impl Raw {
    fn header(&self, kind: FrameKind) -> FrameHeader {
        FrameHeader {
            version: self.version.get(),
            kind,
            cluster: ClusterId(self.cluster.get()),
            term: Term { number: self.term_number.get(), id: self.term_id.get() },
            segment: self.segment.get(),
            first: Lsn(self.first_lsn.get()),
            length: self.length.get(),
            payload_len: self.payload_len.get(),
            records: self.records.get(),
            transactions: self.transactions.get(),
            previous: Digest(self.previous.get()),
            durable: FlushedLsn(Lsn(self.durable_lsn.get())),
            commit: CommittedLsn(Lsn(self.commit_lsn.get())),
            clock: WallMs(self.clock_ms.get()),
            digest: Digest(self.digest.get()),
        }
    }
}

/// The digest covers everything in front of it, and the payload.
const DIGEST_AT: usize = HEADER_BYTES - 16;

/// What a frame is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameKind {
    /// Carries records.
    Data,
    /// Fills a segment to its end, because a frame never crosses a segment border. Carries nothing.
    Filler,
}

/// A frame header in memory. `digest` is filled by [`FrameHeader::seal`] and checked by [`FrameHeader::verify`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Format of the frame and its records.
    pub version: u16,
    pub kind: FrameKind,
    pub cluster: ClusterId,
    /// The term that wrote the frame. Never changes; old-term frames are legal during catch-up.
    pub term: Term,
    /// Sequence number of the segment the frame lies in: recycled segments never let old bytes pass.
    pub segment: u64,
    pub first: Lsn,
    /// Header, payload and padding: the next frame starts at `first + length`.
    pub length: u32,
    pub payload_len: u32,
    pub records: u32,
    pub transactions: u32,
    /// Digest of the frame before this one: the chain.
    pub previous: Digest,
    /// The sealer's own durable end of log at sealing time (`protocol` 5.3).
    pub durable: FlushedLsn,
    /// The sealer's commit index at sealing time.
    pub commit: CommittedLsn,
    /// The leader's clock; standbys expire keys by it.
    pub clock: WallMs,
    pub digest: Digest,
}

/// Header + payload, rounded up to whole blocks.
pub fn padded(payload_len: usize) -> usize {
    (HEADER_BYTES + payload_len).next_multiple_of(BLOCK_BYTES)
}

impl FrameHeader {
    /// End of the frame: first position behind its padding.
    pub fn end(&self) -> Lsn {
        self.first + u64::from(self.length)
    }

    fn raw(&self) -> Raw {
        Raw {
            magic: U32::new(MAGIC),
            version: U16::new(self.version),
            kind: match self.kind {
                FrameKind::Data => 0,
                FrameKind::Filler => 1,
            },
            flags: 0,
            cluster: U128::new(self.cluster.0),
            term_number: U64::new(self.term.number),
            term_id: U128::new(self.term.id),
            segment: U64::new(self.segment),
            first_lsn: U64::new(self.first.0),
            length: U32::new(self.length),
            payload_len: U32::new(self.payload_len),
            records: U32::new(self.records),
            transactions: U32::new(self.transactions),
            previous: U128::new(self.previous.0),
            durable_lsn: U64::new(self.durable.lsn().0),
            commit_lsn: U64::new(self.commit.lsn().0),
            clock_ms: U64::new(self.clock.0),
            reserved: U64::ZERO,
            digest: U128::new(self.digest.0),
        }
    }

    /// Writes the header into the first bytes of `frame`, whose payload already stands behind it, and computes the digest.
    pub fn seal(&mut self, frame: &mut [u8]) {
        let used = HEADER_BYTES + self.payload_len as usize;
        assert!((self.length as usize).is_multiple_of(BLOCK_BYTES) && used <= self.length as usize);
        self.digest = Digest::ZERO;
        frame[..HEADER_BYTES].copy_from_slice(self.raw().as_bytes());
        self.digest = digest_of(&frame[..used]);
        frame[DIGEST_AT..HEADER_BYTES].copy_from_slice(&self.digest.0.to_le_bytes());
    }

    /// Decodes the header at the start of `bytes` and checks everything that needs no payload.
    pub fn decode(bytes: &[u8]) -> Result<FrameHeader, Corrupt> {
        let (raw, _) = Raw::read_from_prefix(bytes).map_err(|_| Corrupt("frame header is cut off"))?;
        if raw.magic.get() != MAGIC {
            return Err(Corrupt("no frame magic"));
        }
        if !format::speaks(raw.version.get()) {
            return Err(Corrupt("frame of another format version"));
        }
        let kind = match raw.kind {
            0 => FrameKind::Data,
            1 => FrameKind::Filler,
            _ => return Err(Corrupt("unknown frame kind")),
        };
        let header = raw.header(kind);
        header.fits()?;
        Ok(header)
    }

    /// A sealed frame of a newer format than this build speaks, judged by what no version may change: magic, version,
    /// cluster, segment, first LSN, length, payload length and digest keep their places and meanings, and the digest
    /// covers what it covers here. So a frame of a newer baton is told from a torn one, which no digest holds together.
    ///
    /// `None` for anything else. The header still has to be verified, with [`FrameHeader::used`] bytes.
    pub fn newer(bytes: &[u8]) -> Option<FrameHeader> {
        let (raw, _) = Raw::read_from_prefix(bytes).ok()?;
        let header = raw.header(FrameKind::Data);
        let newer = raw.magic.get() == MAGIC && raw.version.get() > format::newest();
        let whole = header.used() <= header.length as usize && header.used() <= FRAME_BYTES_MAX;
        (newer && whole).then_some(header)
    }

    /// What is checked of a header by itself.
    fn fits(&self) -> Result<(), Corrupt> {
        let (header, kind) = (self, self.kind);
        let length = header.length as usize;
        if length == 0
            || !length.is_multiple_of(BLOCK_BYTES)
            || !header.first.0.is_multiple_of(BLOCK_BYTES as u64)
        {
            return Err(Corrupt("frame is not block aligned"));
        }
        let payload = header.payload_len as usize;
        match kind {
            FrameKind::Data if length > FRAME_BYTES_MAX => Err(Corrupt("frame longer than the maximum")),
            FrameKind::Data if length != padded(payload) => Err(Corrupt("frame length and payload disagree")),
            FrameKind::Filler if payload != 0 => Err(Corrupt("filler frame with a payload")),
            _ if header.first.0.checked_add(u64::from(header.length)).is_none() => {
                Err(Corrupt("frame end overflows"))
            }
            _ => Ok(()),
        }
    }

    /// Bytes that the digest covers: header and payload, no padding. A sender may leave the padding out.
    pub fn used(&self) -> usize {
        HEADER_BYTES + self.payload_len as usize
    }

    /// Checks the digest over header and payload. `frame` starts with the header.
    pub fn verify(&self, frame: &[u8]) -> Result<(), Corrupt> {
        if frame.len() < self.used() {
            return Err(Corrupt("frame is cut off"));
        }
        if digest_of(&frame[..self.used()]) != self.digest {
            return Err(Corrupt("frame digest does not match"));
        }
        Ok(())
    }
}

/// Digest of a used frame, its digest field taken as absent.
fn digest_of(used: &[u8]) -> Digest {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.update(&used[..DIGEST_AT]);
    hasher.update(&used[HEADER_BYTES..]);
    Digest(hasher.digest128())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(payload: &[u8]) -> (FrameHeader, Vec<u8>) {
        let length = padded(payload.len());
        let mut frame = vec![0u8; length];
        frame[HEADER_BYTES..HEADER_BYTES + payload.len()].copy_from_slice(payload);
        let mut header = FrameHeader {
            version: format::FORMAT_VERSION,
            kind: FrameKind::Data,
            cluster: ClusterId(7),
            term: Term { number: 3, id: 9 },
            segment: 0,
            first: Lsn(8192),
            length: length as u32,
            payload_len: payload.len() as u32,
            records: 1,
            transactions: 1,
            previous: Digest(5),
            durable: FlushedLsn(Lsn(4096)),
            commit: CommittedLsn(Lsn(4096)),
            clock: WallMs(1),
            digest: Digest::ZERO,
        };
        header.seal(&mut frame);
        (header, frame)
    }

    #[test]
    fn a_header_survives_its_bytes() {
        let (header, frame) = sample(b"hello");
        let read = FrameHeader::decode(&frame).unwrap();
        assert_eq!(read, header);
        read.verify(&frame).unwrap();
        read.verify(&frame[..header.used()]).unwrap();
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let (header, frame) = sample(b"payload of some length");
        for bit in 0..header.used() * 8 {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let found = match FrameHeader::decode(&bad) {
                Err(_) => true,
                Ok(read) => read.verify(&bad).is_err(),
            };
            assert!(found, "flip of bit {bit} passed");
        }
    }

    #[test]
    fn a_frame_of_a_newer_format_is_told_from_a_torn_one() {
        let (mut header, mut frame) = sample(b"of the future");
        assert_eq!(FrameHeader::newer(&frame), None, "this build's own");
        header.version = format::newest() + 1;
        header.seal(&mut frame);
        assert_eq!(FrameHeader::decode(&frame), Err(Corrupt("frame of another format version")));
        let newer = FrameHeader::newer(&frame).unwrap();
        assert_eq!((newer.version, newer.first), (format::newest() + 1, header.first));
        newer.verify(&frame).unwrap();
        // The same header without its payload is a torn frame, whatever version it names.
        frame[HEADER_BYTES] ^= 1;
        assert!(FrameHeader::newer(&frame).unwrap().verify(&frame).is_err());
    }

    #[test]
    fn cut_off_bytes_are_an_error() {
        let (header, frame) = sample(b"abc");
        for len in 0..header.used() {
            let ok = FrameHeader::decode(&frame[..len]).is_ok_and(|h| h.verify(&frame[..len]).is_ok());
            assert!(!ok);
        }
    }
}

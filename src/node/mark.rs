//! The mark: how far this node's own log was durable a moment ago.
//!
//! It answers one question after a restart: is a hole in the log *damage*, the loss of something that this node had
//! vouched for, or only a *torn* tail that it never acknowledged (protocol 5.1)? The durable ends in frame headers cannot
//! answer it on a standby, because they tell of the leader's disk. And what the mark covers need not be written again at
//! start.
//!
//! A mark is true for ever as soon as the flush below it was: it is written behind the flushes, at leisure, and no
//! acknowledgement waits for it. So it trails by at most [`MARK_EVERY`] and a tick. Two slots are written in turn; a torn
//! one loses nothing but freshness.

use crate::base::limits::BLOCK_BYTES;
use crate::base::{Digest, Incarnation, Lsn, Mono, SharedSlice, Term};
use crate::io::{FileId, Op, Open, Seam};
use crate::role::history::History;

use super::files::{Folder, create_zeroed};
use super::{Node, token};

use std::io;
use std::time::Duration;

/// While the log grows, the mark follows it this often.
const MARK_EVERY: Duration = Duration::from_millis(200);
const MAGIC: &[u8; 8] = b"BATONMRK";
const VERSION: u16 = 1;
const SLOTS: u64 = 2;
const DIGEST_AT: usize = 80;

/// Everything below `end` was durable in the folder of `incarnation`, and the last byte of it was written by `term`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Rises with every mark written.
    pub number: u64,
    pub incarnation: Incarnation,
    pub end: Lsn,
    pub term: Term,
}

impl Mark {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.incarnation.0.to_le_bytes());
        out.extend_from_slice(&self.end.0.to_le_bytes());
        out.extend_from_slice(&self.term.number.to_le_bytes());
        out.extend_from_slice(&self.term.id.to_le_bytes());
        out.resize(DIGEST_AT, 0);
        let digest = Digest::of(&out);
        out.extend_from_slice(&digest.0.to_le_bytes());
        out.resize(BLOCK_BYTES, 0);
        out
    }

    /// The mark in one slot; `None` for any other bytes, and for the mark of another folder.
    pub fn decode(bytes: &[u8], incarnation: Incarnation) -> Option<Mark> {
        let image = bytes.get(..DIGEST_AT)?;
        let digest = u128::from_le_bytes(bytes.get(DIGEST_AT..DIGEST_AT + 16)?.try_into().ok()?);
        let u64_at = |at: usize| Some(u64::from_le_bytes(image.get(at..at + 8)?.try_into().ok()?));
        let u128_at = |at: usize| Some(u128::from_le_bytes(image.get(at..at + 16)?.try_into().ok()?));
        let known = image.starts_with(MAGIC) && image[8..10] == VERSION.to_le_bytes();
        if !known || Digest::of(image).0 != digest {
            return None;
        }
        let mark = Mark {
            number: u64_at(16)?,
            incarnation: Incarnation(u128_at(24)?),
            end: Lsn(u64_at(40)?),
            term: Term { number: u64_at(48)?, id: u128_at(56)? },
        };
        (mark.incarnation == incarnation && mark.end.0.is_multiple_of(BLOCK_BYTES as u64)).then_some(mark)
    }

    /// How much of what was durable belongs to the log of `history`. A log that was cut, or is about to be, holds no more
    /// than that; a term that history does not know any more proves nothing.
    pub fn vouched(&self, history: &History) -> Lsn {
        let entries = history.entries();
        let Some(i) = entries.iter().position(|(term, start)| *term == self.term && *start < self.end) else {
            return Lsn::ZERO;
        };
        entries.get(i + 1).map_or(self.end, |(_, next)| self.end.min(*next))
    }
}

/// Reads the newer valid mark, if there is one, and opens the file, which an older folder does not have.
pub fn open<S: Seam>(
    seam: &mut S,
    folder: &Folder,
    incarnation: Incarnation,
) -> io::Result<(MarkFile, Option<Mark>)> {
    let path = folder.mark();
    let file = match seam.open(&path, Open::Existing) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            create_zeroed(seam, &path, SLOTS * BLOCK_BYTES as u64)?;
            seam.open(&path, Open::Existing)?
        }
        other => other?,
    };
    let mut newest: Option<Mark> = None;
    for slot in 0..SLOTS {
        let bytes = seam.read_now(file, slot * BLOCK_BYTES as u64, BLOCK_BYTES)?;
        let mark = Mark::decode(&bytes, incarnation);
        newest = mark.into_iter().chain(newest).max_by_key(|mark| mark.number);
    }
    let number = newest.map_or(0, |mark| mark.number);
    Ok((MarkFile { file, number, written: Lsn::ZERO, under_way: None, next_at: Mono(0) }, newest))
}

/// The writer.
#[derive(Debug)]
pub struct MarkFile {
    file: FileId,
    number: u64,
    /// What the newest mark of this process says.
    written: Lsn,
    under_way: Option<Lsn>,
    next_at: Mono,
}

impl<S: Seam> Node<S> {
    /// Writes a new mark when the durable log has moved.
    pub(super) fn drive_mark(&mut self) {
        let flushed = self.log.wal.flushed().lsn();
        let due = self.mark.under_way.is_none() && self.now >= self.mark.next_at;
        if !due || flushed == self.mark.written || flushed == Lsn::ZERO || self.log.cutting() {
            return;
        }
        // While history is ahead of a log that has yet to be cut, it does not say who wrote what stands there.
        let history = &self.role.control().history;
        let end = self.log.wal.end();
        let agreed = history.term_at(Lsn(end.end.0 - 1)) == Some(end.last_term);
        let Some(term) = history.term_at(Lsn(flushed.0 - 1)).filter(|_| agreed) else { return };
        self.mark.number += 1;
        self.mark.under_way = Some(flushed);
        self.mark.next_at = self.now + MARK_EVERY;
        let mark =
            Mark { number: self.mark.number, incarnation: self.identity.incarnation, end: flushed, term };
        self.seam.submit(Op::Write {
            token: token::mark(),
            file: self.mark.file,
            offset: mark.number % SLOTS * BLOCK_BYTES as u64,
            data: SharedSlice::copy_of(&mark.encode()),
            durable: true,
        });
    }

    pub(super) fn mark_written(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.mark.written = self.mark.under_way.take().unwrap_or(self.mark.written),
            Err(error) => {
                tracing::error!(%error, "the mark of the durable log cannot be written");
                self.fail("the mark of the durable log cannot be written");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        let term = Term { number: 3, id: 33 };
        Mark { number: 7, incarnation: Incarnation(5), end: Lsn(10 << 12), term }
    }

    #[test]
    fn a_mark_survives_its_bytes_and_nothing_else_passes() {
        let bytes = mark().encode();
        assert_eq!(bytes.len(), BLOCK_BYTES);
        assert_eq!(Mark::decode(&bytes, Incarnation(5)), Some(mark()));
        assert_eq!(Mark::decode(&bytes, Incarnation(6)), None, "the mark of another folder");
        assert_eq!(Mark::decode(&bytes[..90], Incarnation(5)), None);
        for bit in 0..(DIGEST_AT + 16) * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Mark::decode(&bad, Incarnation(5)), None, "flip of bit {bit} passed");
        }
    }

    #[test]
    fn a_mark_holds_as_far_as_history_holds_its_term() {
        let term = |number: u64| Term { number, id: u128::from(number) * 11 };
        let at = |block: u64| Lsn(block << 12);
        let vouched = |entries: &[(Term, Lsn)]| {
            mark().vouched(&History::from_entries(entries.to_vec()).expect("a history"))
        };
        assert_eq!(vouched(&[(term(1), at(0)), (term(3), at(4))]), at(10));
        assert_eq!(vouched(&[(term(3), at(4)), (term(4), at(12))]), at(10));
        assert_eq!(vouched(&[(term(3), at(4)), (term(5), at(6))]), at(6), "cut at block 6");
        assert_eq!(
            vouched(&[(term(1), at(0)), (term(5), at(9))]),
            Lsn::ZERO,
            "where they forked is forgotten"
        );
        assert_eq!(vouched(&[]), Lsn::ZERO);
    }
}

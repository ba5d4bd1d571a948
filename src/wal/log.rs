//! The log of a running node.

use super::check::{Geometry, written_end};
use super::group::{Part, Stamps, cut};
use super::pipeline::{Pipeline, Unit, WalEffect};
use super::pool::BufferPool;
use super::recent::{ReadLog, Recent};
use super::staging::Staging;
use super::{DiskFrames, LogEnd, Recovered, ScanError, TruncateError, WalError, WalFailure, WalIoError};
use crate::base::limits::{BLOCK_BYTES, FRAME_BYTES_MAX, FRAMES_IN_FLIGHT_MAX, SEND_WINDOW_BYTES};
use crate::base::planted::{Bug, planted};
use crate::base::{
    AppendedLsn, ClusterId, CommittedLsn, Digest, FlushedLsn, Lsn, SharedSlice, Stamp, Term, WallMs,
};
use crate::record::{Corrupt, FrameHeader, FrameKind, HEADER_BYTES, RecordWriter, padded};

/// Received bytes that may wait for the disk: a peer's whole window, and one frame that it may send past it.
const BACKLOG_BYTES_MAX: u64 = SEND_WINDOW_BYTES + 2 * FRAME_BYTES_MAX as u64;

/// How a log is kept. `segment_bytes` is fixed for the life of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalConfig {
    pub cluster: ClusterId,
    pub segment_bytes: u64,
    /// Writes not yet durable at which the open group goes on collecting (D).
    pub frames_in_flight: usize,
    /// An open group of this size is sealed although earlier frames are on their way to the disk.
    pub eager_bytes: usize,
    /// Each write is durable by itself (RWF_DSYNC); otherwise writes are followed by a flush that covers several.
    pub durable_writes: bool,
    /// Frames kept in memory for senders and redo.
    pub recent_bytes: usize,
}

/// What the leader writes into the header of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealMarks {
    pub term: Term,
    pub commit: CommittedLsn,
    pub clock: WallMs,
}

/// A sealed group. Its frames are read with [`Wal::read_from`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sealed {
    pub stamp: Stamp,
    /// Where the log ended before: a filler may stand between here and the group's first frame.
    pub first: Lsn,
    /// The group is committed when the commit index reaches this.
    pub end: Lsn,
}

/// The log: see the room's page for its rules.
#[derive(Debug)]
pub struct Wal {
    geometry: Geometry,
    config: WalConfig,
    first: Lsn,
    end: LogEnd,
    known_committed: CommittedLsn,
    writer: RecordWriter,
    stamps: Stamps,
    staging: Staging,
    recent: Recent,
    pipeline: Pipeline,
    pool: BufferPool,
    /// Format of the frames that are sealed here.
    version: u16,
}

impl Wal {
    /// Goes on behind what [`super::recover`] found and [`super::settle`] made durable. A torn tail is zeroed before
    /// anything is written. The log folder must have been synced since its segments were listed: a rename of the last
    /// process may not be durable yet.
    pub fn resume(config: WalConfig, recovered: &Recovered) -> Wal {
        assert!(recovered.unsettled.is_empty(), "what was only read counts as flushed from here on");
        assert!((1..=FRAMES_IN_FLIGHT_MAX).contains(&config.frames_in_flight));
        let geometry = Geometry::new(config.cluster, config.segment_bytes);
        assert!(recovered.end.end.0.is_multiple_of(BLOCK_BYTES as u64));
        let pipeline = Pipeline::resume(
            config.segment_bytes,
            config.durable_writes,
            recovered.end.end,
            &recovered.verdict,
            &recovered.segments,
        );
        Wal {
            geometry,
            config,
            first: recovered.first,
            end: recovered.end,
            known_committed: recovered.known_committed,
            writer: RecordWriter::new(),
            stamps: Stamps::new(),
            staging: Staging::default(),
            recent: Recent::new(config.recent_bytes),
            pipeline,
            pool: BufferPool::new(config.recent_bytes / 4),
            version: crate::base::format::oldest(),
        }
    }

    /// Frames are sealed in this format from now on.
    pub fn write_format(&mut self, version: u16) {
        assert!(crate::base::format::speaks(version), "only what this build speaks");
        self.version = version;
    }

    // ---- the leader's side

    /// The open group.
    pub fn writer(&mut self) -> &mut RecordWriter {
        &mut self.writer
    }

    /// Stamp of the open group. Starts at 1.
    pub fn open_stamp(&self) -> Stamp {
        self.stamps.open()
    }

    /// The largest transaction that a frame can carry.
    pub fn transaction_bytes_max(&self) -> usize {
        self.geometry.payload_max()
    }

    /// Whether to seal now: something to seal, and either nothing on its way to the disk, or a group that is worth a
    /// write of its own and fewer than D writes under way. The group commit clocks itself by this: no timer. Small
    /// groups side by side would only cost each node more work per command.
    pub fn wants_seal(&self) -> bool {
        let room = match self.pipeline.in_flight() {
            0 => true,
            some => some < self.config.frames_in_flight && self.writer.len() >= self.config.eager_bytes,
        };
        room && !self.writer.is_empty() && self.staging.is_empty() && self.pipeline.failed().is_none()
    }

    /// Seals the open group, whose last transaction must be ended. It becomes one frame; only a group that grew beyond
    /// the largest frame becomes several, cut between transactions. A refused group stays open.
    pub fn seal(&mut self, marks: SealMarks) -> Result<Sealed, WalError> {
        self.check_failed()?;
        if let Some((at, mark)) = self.pipeline.damaged() {
            return Err(WalError::Damaged { at, mark });
        }
        assert!(!self.writer.is_empty(), "an empty group is never sealed");
        assert!(self.end.chain_known() && marks.term >= self.end.last_term && !marks.term.is_none());
        assert!(marks.commit.lsn() <= self.end.end, "commit never runs ahead of the log");
        let _whole = self.writer.mark();
        let parts = cut(&self.writer, self.geometry.payload_max())?;
        self.freeze();
        self.note_committed(marks.commit);
        let first = self.end.end;
        let writer = std::mem::take(&mut self.writer);
        for part in &parts {
            self.fill_segment(padded(part.end - part.start), marks);
            self.append(FrameKind::Data, part, &writer.bytes()[part.start..part.end], marks);
        }
        self.writer = writer;
        self.writer.clear();
        let stamp = self.stamps.seal(self.end.end);
        Ok(Sealed { stamp, first, end: self.end.end })
    }

    /// Ends the segment with a filler when a frame of `length` bytes does not fit its rest.
    fn fill_segment(&mut self, length: usize, marks: SealMarks) {
        let rest = self.config.segment_bytes - self.end.end.offset(self.config.segment_bytes);
        if length as u64 > rest {
            let nothing = Part { start: 0, end: 0, records: 0, transactions: 0 };
            self.append(FrameKind::Filler, &nothing, &[], marks);
        }
    }

    fn append(&mut self, kind: FrameKind, part: &Part, payload: &[u8], marks: SealMarks) {
        let at = self.end.end;
        let rest = self.config.segment_bytes - at.offset(self.config.segment_bytes);
        let length = match kind {
            FrameKind::Data => padded(payload.len()) as u64,
            FrameKind::Filler => rest,
        };
        assert!(length <= rest);
        let mut header = FrameHeader {
            version: self.version,
            kind,
            cluster: self.config.cluster,
            term: marks.term,
            segment: at.segment(self.config.segment_bytes),
            first: at,
            length: u32::try_from(length).expect("a segment's length fits the field"),
            payload_len: u32::try_from(payload.len()).expect("a frame's payload fits the field"),
            records: part.records,
            transactions: part.transactions,
            previous: self.end.last_digest,
            durable: self.pipeline.flushed(),
            commit: marks.commit,
            clock: marks.clock,
            digest: Digest::ZERO,
        };
        let written = (written_end(&header) - at) as usize;
        let mut buf = self.pool.take(written);
        buf[HEADER_BYTES..header.used()].copy_from_slice(payload);
        buf[header.used()..].fill(0);
        header.seal(&mut buf);
        let data = buf.share();
        self.recent.push(header, data.slice(0..header.used()));
        self.pipeline.push(Unit::queued(at, header.end(), data));
        self.end = LogEnd::after(&header);
    }

    // ---- the standby's side

    /// Appends a received frame verbatim. `used` is its header and payload; padding may follow or be missing.
    pub fn receive(&mut self, header: &FrameHeader, used: &[u8]) -> Result<(), WalError> {
        self.check_failed()?;
        let end = self.end.end;
        if header.first > end {
            return Err(WalError::Gap { end, first: header.first });
        }
        if header.first < end {
            return Err(WalError::Overlap { end, first: header.first });
        }
        let read = self.geometry.frame(end, used).map_err(WalError::Corrupt)?;
        if read != *header {
            return Err(WalError::Corrupt(Corrupt("header and bytes of a frame disagree")));
        }
        if self.end.chain_known() && header.previous != self.end.last_digest {
            return Err(WalError::Diverged { at: end });
        }
        if header.term < self.end.last_term || header.term.is_none() {
            return Err(WalError::TermWentBack { at: end });
        }
        let bytes = self.backlog_bytes();
        if bytes >= BACKLOG_BYTES_MAX {
            return Err(WalError::Backlog { bytes });
        }
        if self.staging.must_leave_before(header) {
            self.freeze();
        }
        self.staging.push(header, &used[..header.used()]);
        self.end = LogEnd::after(header);
        self.note_committed(header.commit);
        Ok(())
    }

    /// Bytes received or sealed that the disk has not been given yet.
    pub fn backlog_bytes(&self) -> u64 {
        self.pipeline.queued_bytes() + self.staging.len() as u64
    }

    /// Turns staged frames into one queued write and makes them readable.
    fn freeze(&mut self) {
        if let Some((unit, frames)) = self.staging.freeze(&mut self.pool) {
            self.pipeline.push(unit);
            frames.into_iter().for_each(|(header, used)| self.recent.push(header, used));
        }
    }

    // ---- effects out, completions in

    /// The next thing to do; call until `None` after every change.
    pub fn next_effect(&mut self) -> Option<WalEffect> {
        if self.pipeline.in_flight() < self.config.frames_in_flight {
            self.freeze();
        }
        self.pipeline.next_effect(self.end.end)
    }

    /// Answers an effect. The first error stops the log for ever.
    pub fn completed(&mut self, id: u64, result: Result<(), WalIoError>) {
        self.pipeline.completed(id, result);
        self.recent.retire(self.pipeline.flushed().lsn(), &mut self.pool);
    }

    /// The segment's file is in place, flushed, and its name durable.
    pub fn segment_ready(&mut self, segment: u64) {
        self.pipeline.segment_ready(segment);
    }

    // ---- watermarks

    pub fn end(&self) -> LogEnd {
        self.end
    }

    /// The oldest position that can still be read.
    pub fn first(&self) -> Lsn {
        self.first
    }

    pub fn appended(&self) -> AppendedLsn {
        AppendedLsn(self.end.end)
    }

    /// End of the contiguous prefix whose writes have completed: what a standby may call written.
    pub fn written(&self) -> Lsn {
        self.pipeline.written()
    }

    /// End of the contiguous prefix that is durable here.
    pub fn flushed(&self) -> FlushedLsn {
        if planted(Bug::AckBeforeFlush) {
            return FlushedLsn(self.end.end);
        }
        self.pipeline.flushed()
    }

    /// The highest commit index that this log was told of, by frames, marks or the node.
    pub fn known_committed(&self) -> CommittedLsn {
        self.known_committed
    }

    /// The node learned a commit index. What lies beyond the log's end is not known here yet and is cut off.
    pub fn note_committed(&mut self, commit: CommittedLsn) {
        self.known_committed.advance(commit.lsn().min(self.end.end));
    }

    /// Writes not yet durable.
    pub fn in_flight(&self) -> usize {
        self.pipeline.in_flight() + usize::from(!self.staging.is_empty())
    }

    /// Nothing on its way to the disk. The open group does not count.
    pub fn idle(&self) -> bool {
        self.pipeline.idle() && self.staging.is_empty()
    }

    /// The first failure. Once set, nothing becomes flushed any more.
    pub fn failed(&self) -> Option<&WalFailure> {
        self.pipeline.failed()
    }

    /// Where the log is damaged and up to where it was durable before. Gone once a peer's frames have repaired it.
    pub fn damaged(&self) -> Option<(Lsn, Lsn)> {
        self.pipeline.damaged()
    }

    /// The greatest stamp whose group ends at or before `lsn`. Calls must not go back.
    pub fn stamp_at(&mut self, lsn: Lsn) -> Stamp {
        self.stamps.at(lsn)
    }

    /// Where a sealed group ends; `None` for the open group and for what [`Wal::stamp_at`] has passed.
    pub fn stamp_end(&self, stamp: Stamp) -> Option<Lsn> {
        self.stamps.end_of(stamp)
    }

    // ---- readers

    /// Frames from `from` on, a frame border: at least one, then as many as fit `bytes_max`.
    pub fn read_from(&self, from: Lsn, bytes_max: usize) -> ReadLog {
        if from < self.first {
            return ReadLog::Gone { first: self.first };
        }
        if from == self.end.end {
            return ReadLog::End;
        }
        // Everything that is not in memory was written long ago; what is staged waits for its turn.
        let readable = self.staging.first().unwrap_or(self.end.end);
        let in_memory = self.recent.first().unwrap_or(readable);
        if from >= in_memory {
            return match self.recent.read(from, bytes_max) {
                Some(frames) => ReadLog::Frames(frames),
                None if from >= readable && from < self.end.end => ReadLog::End,
                None => ReadLog::NoBorder,
            };
        }
        let offset = from.offset(self.config.segment_bytes);
        let rest = (self.config.segment_bytes - offset).min(in_memory - from);
        let wanted = bytes_max.clamp(BLOCK_BYTES, FRAME_BYTES_MAX).next_multiple_of(BLOCK_BYTES) as u64;
        let len = usize::try_from(rest.min(wanted)).expect("bounded by the largest frame");
        ReadLog::OnDisk { segment: from.segment(self.config.segment_bytes), offset, len }
    }

    /// Whether this log holds a frame that ends like `end`, as far as memory can tell. `None`: read the frame that
    /// starts at `end.end` and compare its `previous` with `end.last_digest`.
    pub fn holds(&self, end: &LogEnd) -> Option<bool> {
        if end.end >= self.end.end {
            return Some(*end == self.end);
        }
        if end.end == Lsn::ZERO {
            return Some(*end == LogEnd::GENESIS);
        }
        self.recent.holds(end)
    }

    /// Turns bytes read from a segment at position `at` into frames, verifying each.
    pub fn parse_disk(&self, at: Lsn, bytes: &SharedSlice) -> Result<DiskFrames, ScanError> {
        self.geometry.parse(at, bytes)
    }

    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The keeper recycled every segment below `first`.
    pub fn forget_before(&mut self, first: Lsn) {
        if first > self.first {
            self.first = first;
            self.pipeline.forget_segments_before(first.segment(self.config.segment_bytes));
        }
    }

    // ---- demotion and rejoin

    /// Makes every received frame readable, so that [`Wal::read_from`] reaches the end: call it before writing the tail
    /// to its file.
    pub fn expose_staged(&mut self) {
        self.freeze();
    }

    /// Drops the open group. Its stamp is never used again.
    pub fn abandon_open_group(&mut self) {
        self.writer = RecordWriter::new();
        self.stamps.truncate(self.end.end);
    }

    /// Cuts the log at `end`, a frame border with the term and digest of the last frame kept. The open group goes too.
    /// The history must be durable already. Everything beyond is zeroed and flushed before any later write; the log
    /// accepts frames meanwhile.
    pub fn truncate(&mut self, end: LogEnd) -> Result<(), TruncateError> {
        let to = end.end;
        if let Some(failure) = self.pipeline.failed() {
            return Err(TruncateError::Failed(failure.clone()));
        }
        if to < self.known_committed.lsn() && !planted(Bug::TruncateBelowKnownCommit) {
            return Err(TruncateError::BelowCommitted { to, committed: self.known_committed });
        }
        if let Some((at, mark)) = self.pipeline.damaged().filter(|_| to == self.end.end) {
            return Err(TruncateError::Damaged { at, mark });
        }
        self.freeze();
        if to < self.first || self.holds(&end) == Some(false) {
            return Err(TruncateError::NotABorder { to });
        }
        self.recent.truncate(to);
        self.pipeline.truncate(to);
        self.writer = RecordWriter::new();
        self.stamps.truncate(to);
        self.end = end;
        Ok(())
    }

    fn check_failed(&self) -> Result<(), WalError> {
        match self.pipeline.failed() {
            Some(failure) => Err(WalError::Failed(failure.clone())),
            None => Ok(()),
        }
    }
}

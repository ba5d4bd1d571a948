//! From sealed bytes to durable bytes: which write may start, which flush covers what, and how far the log is durable.
//!
//! Writes and flushes are never linked: a flush is asked for only after the writes it must cover have completed. At most
//! one flush is under way; the next starts when it ends and a further write has completed. A *job* (zeroing after
//! a torn tail, a truncation or a repair) holds every other write back until it is through.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Verdict, WalFailure, WalIoError};
use crate::base::limits::FRAMES_IN_FLIGHT_MAX;
use crate::base::planted::{Bug, planted};
use crate::base::{AlignedBuf, FlushedLsn, Lsn, SharedSlice};

/// One piece of a zeroing job: large enough for the disk's speed, small enough not to disturb others for long.
const ZERO_BYTES: u64 = 1 << 20;

/// What the log asks the node to do. Every `id` is answered once by [`super::Wal::completed`].
#[derive(Debug)]
pub enum WalEffect {
    /// Write `data` at `offset` of a segment; with `durable` completion means that it is on stable storage.
    Write { id: u64, segment: u64, offset: u64, data: SharedSlice, durable: bool },
    /// Make every write of the segment that has completed durable.
    Flush { id: u64, segment: u64 },
    /// Have the keeper put this segment in place, then call [`super::Wal::segment_ready`]. Asked once, ahead of need.
    EnsureSegment { segment: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Queued,
    Writing(u64),
    Written,
    /// Covered by the flush under way.
    Flushing,
    Durable,
}

/// One disk write: one sealed frame, or several received neighbours.
#[derive(Debug)]
pub(super) struct Unit {
    first: Lsn,
    end: Lsn,
    data: Option<SharedSlice>,
    state: State,
}

impl Unit {
    /// `end` lies behind `data` when the last frame is a filler.
    pub fn queued(first: Lsn, end: Lsn, data: SharedSlice) -> Unit {
        assert!(end > first && data.len() as u64 <= end - first);
        Unit { first, end, data: Some(data), state: State::Queued }
    }
}

/// Zeroing that must end before new bytes go to the disk.
#[derive(Debug)]
struct Job {
    zero: Lsn,
    zero_to: Lsn,
    flush: BTreeSet<u64>,
    /// The log is durable to here when the job ends.
    flushed: Lsn,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum UnderWay {
    Write,
    Flush(u64),
    Job,
}

/// Damage that a peer's frames are repairing.
#[derive(Clone, Copy, Debug)]
struct Damage {
    at: Lsn,
    mark: Lsn,
}

#[derive(Debug)]
pub(super) struct Pipeline {
    segment_bytes: u64,
    durable_writes: bool,
    units: VecDeque<Unit>,
    queued_bytes: u64,
    under_way: BTreeMap<u64, UnderWay>,
    next_id: u64,
    ready: BTreeSet<u64>,
    asked: BTreeSet<u64>,
    /// End of the last unit handed to the disk.
    issued: Lsn,
    /// Nothing of this log was ever written beyond this.
    dirty: Lsn,
    flushed: Lsn,
    job: Option<Job>,
    damage: Option<Damage>,
    failed: Option<WalFailure>,
    zeros: Option<SharedSlice>,
}

impl Pipeline {
    /// A pipeline behind a recovered and settled log that ends at `end`.
    pub fn resume(
        segment_bytes: u64,
        durable_writes: bool,
        end: Lsn,
        verdict: &Verdict,
        segments: &[u64],
    ) -> Self {
        let (zero, dirty, damage) = match *verdict {
            Verdict::Clean => (end, end, None),
            Verdict::Torn { zero_from, zero_to } => (zero_from, zero_to, None),
            Verdict::Damaged { at, mark, stale_to } => (end, stale_to.max(at), Some(Damage { at, mark })),
        };
        let ready: BTreeSet<u64> = segments.iter().copied().collect();
        let zero_to = if damage.is_some() { zero } else { dirty };
        let mut pipeline = Pipeline {
            segment_bytes,
            durable_writes,
            units: VecDeque::new(),
            queued_bytes: 0,
            under_way: BTreeMap::new(),
            next_id: 1,
            ready,
            asked: BTreeSet::new(),
            issued: end,
            dirty,
            flushed: end,
            job: Some(Job { zero, zero_to, flush: BTreeSet::new(), flushed: end }),
            damage,
            failed: None,
            zeros: None,
        };
        pipeline.settle();
        pipeline
    }

    pub fn failed(&self) -> Option<&WalFailure> {
        self.failed.as_ref()
    }
    pub fn damaged(&self) -> Option<(Lsn, Lsn)> {
        self.damage.map(|damage| (damage.at, damage.mark))
    }
    pub fn flushed(&self) -> FlushedLsn {
        FlushedLsn(self.flushed)
    }
    /// Writes sealed or received and not yet durable.
    pub fn in_flight(&self) -> usize {
        self.units.len()
    }
    pub fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }
    pub fn idle(&self) -> bool {
        self.units.is_empty() && self.under_way.is_empty() && self.job.is_none()
    }

    /// End of the contiguous prefix whose writes have completed, durable or not.
    pub fn written(&self) -> Lsn {
        let done = |unit: &&Unit| !matches!(unit.state, State::Queued | State::Writing(_));
        self.units.iter().take_while(done).last().map_or(self.flushed, |unit| unit.end)
    }

    pub fn push(&mut self, unit: Unit) {
        assert!(self.units.back().is_none_or(|before| before.end == unit.first));
        assert_eq!(unit.first.segment(self.segment_bytes), (unit.end.0 - 1) / self.segment_bytes);
        self.queued_bytes += unit.end - unit.first;
        self.units.push_back(unit);
    }

    pub fn segment_ready(&mut self, segment: u64) {
        self.ready.insert(segment);
        self.asked.remove(&segment);
    }

    /// Segments below `segment` are gone.
    pub fn forget_segments_before(&mut self, segment: u64) {
        self.ready = self.ready.split_off(&segment);
    }

    /// The next thing to do, for a log that ends at `end`; `None` until a completion or a new unit arrives.
    pub fn next_effect(&mut self, end: Lsn) -> Option<WalEffect> {
        if self.failed.is_some() {
            return None;
        }
        if let Some(segment) = self.segment_to_ask(end) {
            self.asked.insert(segment);
            return Some(WalEffect::EnsureSegment { segment });
        }
        if self.job.is_some() {
            return self.job_effect();
        }
        self.flush_effect().or_else(|| self.write_effect())
    }

    /// The segment of the log's end and one ahead are kept ready, so that no commit waits for a new file.
    fn segment_to_ask(&self, end: Lsn) -> Option<u64> {
        let last = end.segment(self.segment_bytes) + 1;
        let first = self.units.front().map_or(last - 1, |unit| unit.first.segment(self.segment_bytes));
        (first..=last).find(|segment| !self.ready.contains(segment) && !self.asked.contains(segment))
    }

    fn start(&mut self, what: UnderWay) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.under_way.insert(id, what);
        id
    }

    fn job_effect(&mut self) -> Option<WalEffect> {
        if !self.under_way.is_empty() {
            return None;
        }
        let job = self.job.as_mut()?;
        while job.zero < job.zero_to {
            let (segment, offset) =
                (job.zero.segment(self.segment_bytes), job.zero.offset(self.segment_bytes));
            let len = ZERO_BYTES.min(job.zero_to - job.zero).min(self.segment_bytes - offset);
            job.zero = job.zero + len;
            if !self.ready.contains(&segment) {
                continue;
            }
            job.flush.insert(segment);
            let zeros = self.zeros.get_or_insert_with(|| AlignedBuf::zeroed(ZERO_BYTES as usize).share());
            let data = zeros.slice(0..len as usize);
            let id = self.start(UnderWay::Job);
            return Some(WalEffect::Write { id, segment, offset, data, durable: false });
        }
        let segment = job.flush.pop_first().expect("a job that has nothing left to do was settled");
        let id = self.start(UnderWay::Job);
        Some(WalEffect::Flush { id, segment })
    }

    /// Starts a flush when the front of the log waits for one: any other could not move the watermark.
    fn flush_effect(&mut self) -> Option<WalEffect> {
        let front = self.units.front()?;
        let under_way = self.under_way.values().any(|what| matches!(what, UnderWay::Flush(_)));
        if front.state != State::Written || under_way {
            return None;
        }
        let segment = front.first.segment(self.segment_bytes);
        let bytes = self.segment_bytes;
        for unit in self.units.iter_mut().take_while(|unit| unit.first.segment(bytes) == segment) {
            if unit.state == State::Written {
                unit.state = State::Flushing;
            }
        }
        let id = self.start(UnderWay::Flush(segment));
        Some(WalEffect::Flush { id, segment })
    }

    fn write_effect(&mut self) -> Option<WalEffect> {
        let writing = self.under_way.values().filter(|what| **what == UnderWay::Write).count();
        if writing >= FRAMES_IN_FLIGHT_MAX {
            return None;
        }
        let oldest = self.units.front()?.first.segment(self.segment_bytes);
        let at = self.units.iter().position(|unit| unit.state == State::Queued)?;
        let (first, end) = (self.units[at].first, self.units[at].end);
        let segment = first.segment(self.segment_bytes);
        // Unflushed bytes stay within two neighbouring segments: a restart settles just those.
        if !self.ready.contains(&segment) || segment > oldest + 1 {
            return None;
        }
        let id = self.start(UnderWay::Write);
        let unit = &mut self.units[at];
        unit.state = State::Writing(id);
        let data = unit.data.take().expect("a queued unit holds its bytes");
        self.queued_bytes -= end - first;
        self.issued = end;
        self.dirty = self.dirty.max(end);
        let offset = first.offset(self.segment_bytes);
        Some(WalEffect::Write { id, segment, offset, data, durable: self.durable_writes })
    }

    pub fn completed(&mut self, id: u64, result: Result<(), WalIoError>) {
        let what = self.under_way.remove(&id).expect("a completion names an operation under way");
        if self.failed.is_some() {
            return;
        }
        if let Err(error) = result {
            let what = match what {
                UnderWay::Write => "log write",
                UnderWay::Flush(_) => "log flush",
                UnderWay::Job => "log zeroing",
            };
            self.failed = Some(WalFailure { what, error });
            return;
        }
        match what {
            UnderWay::Write => {
                let done = if self.durable_writes { State::Durable } else { State::Written };
                // A truncated unit is not there any more; its bytes are zeroed by the job that waits for it.
                if let Some(unit) = self.units.iter_mut().find(|unit| unit.state == State::Writing(id)) {
                    unit.state = done;
                }
            }
            UnderWay::Flush(segment) => {
                for unit in self.units.iter_mut().filter(|unit| unit.state == State::Flushing) {
                    assert_eq!(unit.first.segment(self.segment_bytes), segment);
                    unit.state = State::Durable;
                }
            }
            UnderWay::Job => {}
        }
        self.advance();
        self.settle();
    }

    /// Moves the watermark over the durable front; a repaired log then clears what is stale beyond its end.
    fn advance(&mut self) {
        while let Some(unit) = self.units.front().filter(|unit| unit.state == State::Durable) {
            assert!(unit.end > self.flushed);
            self.flushed = unit.end;
            self.units.pop_front();
        }
        let repaired = self.damage.is_some_and(|damage| self.flushed >= damage.mark);
        if repaired && self.job.is_none() {
            self.damage = None;
            let (zero, zero_to) = (self.issued, self.dirty);
            self.job = Some(Job { zero, zero_to, flush: BTreeSet::new(), flushed: self.flushed });
        }
    }

    /// Ends a job that has nothing left to do.
    fn settle(&mut self) {
        let Some(job) = &mut self.job else { return };
        if planted(Bug::AppendOverStaleFrames) {
            job.zero = job.zero.max(job.zero_to);
        }
        if job.zero >= job.zero_to && job.flush.is_empty() && self.under_way.is_empty() {
            self.flushed = self.flushed.max(job.flushed);
            self.job = None;
            if self.damage.is_none() {
                self.dirty = self.issued;
            }
        }
    }

    /// Cuts the log at `to`: nothing beyond survives in memory, and everything beyond on disk will be zeroed before any
    /// later write.
    pub fn truncate(&mut self, to: Lsn) {
        while let Some(unit) = self.units.back().filter(|unit| unit.first >= to) {
            if unit.state == State::Queued {
                self.queued_bytes -= unit.end - unit.first;
            }
            self.units.pop_back();
        }
        if let Some(unit) = self.units.back_mut().filter(|unit| unit.end > to) {
            if unit.state == State::Queued {
                self.queued_bytes -= unit.end - to;
                unit.data = unit.data.take().map(|data| data.slice(0..(to - unit.first) as usize));
            }
            unit.end = to;
        }
        self.flushed = self.flushed.min(to);
        self.issued = self.issued.min(to);
        self.damage = None;
        let mut job = Job { zero: to, zero_to: self.dirty, flush: BTreeSet::new(), flushed: self.flushed };
        if let Some(before) = self.job.take() {
            if before.zero < before.zero_to {
                job.zero = to.min(before.zero);
            }
            job.flush = before.flush;
            job.flushed = before.flushed.min(to);
        }
        self.job = Some(job);
        self.settle();
    }
}

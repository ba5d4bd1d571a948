//! Redo on the loop: committed frames, from memory or read ahead from the disk, a slice of them in each turn.

use std::collections::VecDeque;
use std::time::Duration;

use crate::base::limits::RECENT_LOG_BYTES;
use crate::base::planted::{Bug, planted};
use crate::base::{Lsn, ShardId, WallMs};
use crate::io::Seam;
use crate::record::{HEADER_BYTES, Record};
use crate::redo::{FrameCursor, Progress, Redo, RedoError, Stop};
use crate::wal::{Frame, ReadLog};

use super::Node;
use super::crew::Crew;
use super::stream::Reader;

/// Log bytes applied in one turn, so that acknowledgements never wait long behind redo.
const SLICE_BYTES: usize = 1 << 20;
/// The same while the node answers no reads yet, and so one read of the log.
const CATCH_UP_BYTES: usize = 4 << 20;
/// The same when it also streams: a commit may wait for its acknowledgement, one turn for each step.
const STREAMING_BYTES: usize = 512 << 10;
/// Log bytes read before they are needed: the disk works while the records before them are applied.
const AHEAD_BYTES: usize = 2 * CATCH_UP_BYTES;
/// How often a delayed standby looks whether the next frame is old enough, at least.
const DELAY_LOOK: Duration = Duration::from_millis(1000);

const _: () = assert!(CATCH_UP_BYTES <= RECENT_LOG_BYTES);

/// Redo and what it has read ahead.
pub struct Replay {
    redo: Redo,
    crew: Crew,
    /// Position in the next frame to be applied.
    cursor: FrameCursor,
    /// Committed frames read from the disk, which follow what is applied.
    ahead: VecDeque<Frame>,
    ahead_bytes: usize,
    reading: bool,
}

impl Replay {
    pub fn new(redo: Redo, crew: Crew) -> Replay {
        Replay {
            redo,
            crew,
            cursor: FrameCursor::default(),
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            reading: false,
        }
    }

    /// About `bytes` of what was read ahead.
    fn take_ahead(&mut self, bytes: usize) -> Vec<Frame> {
        let (mut taken, mut sum) = (Vec::new(), 0);
        while sum < bytes
            && let Some((header, used)) = self.ahead.pop_front()
        {
            sum += used.len();
            self.ahead_bytes -= used.len();
            taken.push((header, used));
        }
        taken
    }
}

impl<S: Seam> Node<S> {
    /// Gives redo threads of its own, one for each lane but the loop's.
    pub fn employ(&mut self) -> std::io::Result<()> {
        self.data.redo.crew.employ()
    }

    /// Applies committed frames, a slice of them. Says whether more is ready to be applied.
    pub(super) fn apply_some(&mut self) -> bool {
        if self.executed {
            return false;
        }
        let limit = self.apply_limit();
        let applied = self.data.applied.lsn();
        if applied >= limit {
            return false;
        }
        if self.delay().is_none() {
            self.data.delayed_until = None;
        }
        if self.data.delayed_until.is_some_and(|until| self.now < until) {
            return false;
        }
        let alone = self.streams.receiver.is_none();
        let slice = match applied < self.readable_from {
            true if alone || self.data.redo.crew.lanes(CATCH_UP_BYTES) > 1 => CATCH_UP_BYTES,
            true => STREAMING_BYTES,
            false => SLICE_BYTES,
        };
        let frames = match self.data.redo.ahead.front() {
            Some((header, _)) if header.first == applied => self.data.redo.take_ahead(slice),
            // What was read ahead belongs to a log that was cut since: it is read again.
            Some(_) => {
                self.forget_ahead();
                return true;
            }
            None if self.data.redo.reading => return false,
            None => match self.log.wal.read_from(applied, slice) {
                ReadLog::Frames(frames) => frames,
                ReadLog::OnDisk { .. } => Vec::new(),
                ReadLog::End => return false,
                ReadLog::Gone { .. } | ReadLog::NoBorder => {
                    tracing::error!(%applied, oldest = %self.log.oldest(), "redo finds no log at its place");
                    self.fail("the log that redo needs is gone");
                    return false;
                }
            },
        };
        // The next read starts with this turn's end and goes on while the frames after it are applied.
        self.read_ahead(frames.last().map_or(applied, |(header, _)| header.end()), limit);
        !frames.is_empty() && self.apply_frames(frames, limit)
    }

    /// Nothing above the commit index is applied, and nothing that is not flushed here (protocol 2.1).
    fn apply_limit(&self) -> Lsn {
        let flushed = self.log.wal.flushed().lsn();
        if planted(Bug::ApplyPastCommit) { flushed } else { self.committed.lsn().min(flushed) }
    }

    /// By how much this node applies later than it could: not when it leads, or is about to.
    fn delay(&self) -> Option<Duration> {
        self.config.apply_delay(self.me()).filter(|_| self.role.leading().is_none())
    }

    /// A delayed standby applies what is old enough by the leader's clock, as frames and heartbeats carry it.
    fn too_young(&mut self, written: WallMs) -> bool {
        let Some(delay) = self.delay() else { return false };
        let due = written.0.saturating_add(delay.as_millis() as u64);
        if due <= self.data.clock.0 {
            self.data.delayed_until = None;
            return false;
        }
        // The carried clock stands still without a leader, so the wait is looked at in between.
        let wait = Duration::from_millis(due - self.data.clock.0).min(DELAY_LOOK);
        self.data.delayed_until = Some(self.now + wait);
        true
    }

    /// Reads log from the disk behind what was read so far (`next` when nothing waits), if redo will need it.
    fn read_ahead(&mut self, next: Lsn, limit: Lsn) {
        let redo = &mut self.data.redo;
        if redo.reading || redo.ahead_bytes >= AHEAD_BYTES {
            return;
        }
        let from = redo.ahead.back().map_or(next, |(header, _)| header.end());
        if from < limit
            && let ReadLog::OnDisk { len, .. } = self.log.wal.read_from(from, CATCH_UP_BYTES)
        {
            redo.reading = true;
            self.read_log(Reader::Redo, from, len);
        }
    }

    /// Log read from disk for redo.
    pub(super) fn redo_loaded(&mut self, frames: std::io::Result<Vec<Frame>>) {
        self.data.redo.reading = false;
        match frames {
            Ok(frames) => {
                let limit = self.apply_limit();
                let redo = &mut self.data.redo;
                let next = redo.ahead.back().map_or(self.data.applied.lsn(), |(header, _)| header.end());
                // What is committed is never cut off again, so it may wait here.
                for (header, used) in frames.into_iter().filter(|(h, _)| h.first >= next && h.end() <= limit)
                {
                    redo.ahead_bytes += used.len();
                    redo.ahead.push_back((header, used));
                }
            }
            Err(error) => {
                tracing::error!(%error, "the log cannot be read for redo");
                self.fail("the log cannot be read");
            }
        }
    }

    fn forget_ahead(&mut self) {
        self.data.redo.ahead.clear();
        self.data.redo.ahead_bytes = 0;
    }

    /// Applies the frames that lie below `limit`. Says whether more is ready to be applied.
    fn apply_frames(&mut self, mut frames: Vec<Frame>, limit: Lsn) -> bool {
        let committed = frames.partition_point(|(header, _)| header.end() <= limit);
        let reached = committed < frames.len();
        frames.truncate(committed);
        let old = frames.iter().position(|(header, _)| self.too_young(header.clock)).unwrap_or(frames.len());
        let waits_for_age = old < frames.len();
        self.wait_with(frames.split_off(old));
        let bytes: usize = frames.iter().map(|(_, used)| used.len()).sum();
        let lanes = self.data.redo.crew.lanes(bytes);
        let mut done = 0;
        while done < frames.len() {
            let result = match lanes {
                1 => self.apply_in_place(&frames[done..]),
                _ => self.apply_in_lanes(&frames[done..], lanes),
            };
            match result {
                Ok((count, stalled)) => {
                    for (header, _) in &frames[done..done + count] {
                        self.data.applied.advance(header.end());
                        self.data.clock = self.data.clock.max(header.clock);
                    }
                    done += count;
                    self.data.more_merges = true;
                    if let Some(shard) = stalled {
                        tracing::debug!(%shard, "redo waits for a checkpoint to finish");
                        self.wait_with(frames.split_off(done));
                        return false;
                    }
                }
                Err(error) => {
                    let at = frames[done].0.first;
                    tracing::error!(?error, %at, "redo stops");
                    self.fail("redo cannot apply the log");
                    return false;
                }
            }
        }
        // The last frame of a read gives its buffer back for the next one.
        for buf in frames.into_iter().filter_map(|(_, used)| used.reclaim()) {
            self.seam.recycle(buf);
        }
        let waits = self.data.redo.ahead.is_empty() && self.data.redo.reading;
        !reached && !waits && !waits_for_age && self.data.applied.lsn() < limit
    }

    /// Frames that were not applied are the next again.
    fn wait_with(&mut self, frames: Vec<Frame>) {
        let redo = &mut self.data.redo;
        for frame in frames.into_iter().rev() {
            redo.ahead_bytes += frame.1.len();
            redo.ahead.push_front(frame);
        }
    }

    /// Applies frames record by record; says how many, and which shard stalls the next.
    fn apply_in_place(&mut self, frames: &[Frame]) -> Result<(usize, Option<ShardId>), RedoError> {
        let data = &mut self.data;
        for (count, (header, used)) in frames.iter().enumerate() {
            let (payload, cursor) = (&used[HEADER_BYTES..], &mut data.redo.cursor);
            let redo = &data.redo.redo;
            match redo.apply_frame(&mut data.store, header.first, payload, cursor, &mut control)? {
                Progress::Done => data.redo.cursor = FrameCursor::default(),
                Progress::Stalled(shard) => return Ok((count, Some(shard))),
            }
        }
        Ok((frames.len(), None))
    }

    /// Applies one batch of frames, its lanes side by side; says how many, and which shard stalls the next.
    fn apply_in_lanes(
        &mut self,
        frames: &[Frame],
        lanes: usize,
    ) -> Result<(usize, Option<ShardId>), RedoError> {
        let data = &mut self.data;
        let (redo, cursor) = (&data.redo.redo, data.redo.cursor);
        let mut batch = redo.split(&mut data.store, frames, cursor, lanes, &mut control)?;
        data.redo.crew.run(&mut batch.jobs);
        redo.join(&mut data.store, &mut batch)?;
        data.redo.cursor = batch.cursor;
        let stalled = match batch.stop {
            Stop::Stalled(shard) => Some(shard),
            Stop::End | Stop::Checkpoint { .. } => None,
        };
        Ok((batch.frames, stalled))
    }
}

/// Records of the whole node were obeyed when they arrived; applying them says so and no more.
fn control(record: Record<'_>) {
    if let Record::TermStart { term, leader, .. } = record {
        tracing::debug!(%term, %leader, "term start applied");
    }
}

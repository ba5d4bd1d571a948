//! The segment keeper: makes spare files ahead of need, puts them in place as segments, recycles old segments.
//!
//! One operation at a time, so that zero-writing a spare never stands in the way of commits for longer than one piece.
//! A new spare is zero-written once, because a commit into written blocks forces no file-system metadata; a recycled
//! segment is not zeroed again, because every frame header names its segment and old frames never pass.
//!
//! Creation order: create, zero-write, flush, rename, sync the folder, and only then is the segment ready.

use std::collections::{BTreeMap, BTreeSet};

use super::{LogFile, WalFailure, WalIoError};
use crate::base::limits::BLOCK_BYTES;
use crate::base::{AlignedBuf, Lsn, SharedSlice};

/// One piece of zero-writing.
const PIECE_BYTES: u64 = 1 << 20;

/// How segments are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeeperConfig {
    pub segment_bytes: u64,
    /// Spare files to keep ready.
    pub spare_segments: usize,
    /// Log kept on disk below what is required, as far as it fits into this many bytes in all.
    pub retention_bytes: u64,
}

/// What the keeper asks the node to do in the log folder. Each `id` is answered by [`SegmentKeeper::completed`].
#[derive(Debug)]
pub enum KeeperEffect {
    /// Create the file, which is not there yet.
    Create {
        id: u64,
        file: LogFile,
    },
    Write {
        id: u64,
        file: LogFile,
        offset: u64,
        data: SharedSlice,
    },
    Flush {
        id: u64,
        file: LogFile,
    },
    Rename {
        id: u64,
        from: LogFile,
        to: LogFile,
    },
    SyncFolder {
        id: u64,
    },
    Remove {
        id: u64,
        file: LogFile,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Spare {
    /// Left by an earlier process at full size: may hold unflushed bytes.
    Unflushed,
    /// Being made; the next piece is written at this offset. `None` before the file was created.
    Making(Option<u64>),
    Ready,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Create(u32),
    Piece(u32, u64),
    Flush(u32),
    Place(u32, u64),
    Sync,
    Recycle(u64, u32),
    RemoveSegment(u64),
    RemoveSpare(u32),
}

/// See the module page. The node feeds it wishes and completions and takes effects and ready segments out.
#[derive(Debug)]
pub struct SegmentKeeper {
    config: KeeperConfig,
    segments: BTreeSet<u64>,
    spares: BTreeMap<u32, Spare>,
    wanted: BTreeSet<u64>,
    /// In place, but the folder is not synced since.
    placed: Vec<u64>,
    ready: Vec<u64>,
    unsynced: bool,
    required: Lsn,
    rejected: Vec<u32>,
    under_way: Option<(u64, Step)>,
    next_id: u64,
    failed: Option<WalFailure>,
    zeros: Option<SharedSlice>,
}

impl SegmentKeeper {
    /// Starts from the files found in the log folder and their sizes. Spares that were not finished are made anew.
    pub fn new(config: KeeperConfig, files: &[(LogFile, u64)]) -> SegmentKeeper {
        assert!(config.segment_bytes.is_multiple_of(BLOCK_BYTES as u64) && config.segment_bytes > 0);
        let mut keeper = SegmentKeeper {
            config,
            segments: BTreeSet::new(),
            spares: BTreeMap::new(),
            wanted: BTreeSet::new(),
            placed: Vec::new(),
            ready: Vec::new(),
            // The last process may have renamed without syncing.
            unsynced: true,
            required: Lsn::ZERO,
            rejected: Vec::new(),
            under_way: None,
            next_id: 1,
            failed: None,
            zeros: None,
        };
        for (file, len) in files {
            match *file {
                LogFile::Segment(number) => {
                    keeper.segments.insert(number);
                }
                LogFile::Spare(number) if *len == config.segment_bytes => {
                    keeper.spares.insert(number, Spare::Unflushed);
                }
                LogFile::Spare(number) => keeper.rejected.push(number),
            }
        }
        keeper
    }

    /// The log wants this segment in place. Reported by [`SegmentKeeper::next_ready`].
    pub fn ensure(&mut self, segment: u64) {
        if !self.segments.contains(&segment) {
            self.wanted.insert(segment);
        } else if !self.unsynced {
            self.ready.push(segment);
        } else if !self.placed.contains(&segment) {
            self.placed.push(segment);
        }
    }

    /// Nothing at or above `required` may go: the oldest position that redo or a promised standby still needs.
    pub fn retain_from(&mut self, required: Lsn) {
        self.required = self.required.max(required);
    }

    /// Changes the budget, for example when the disk runs full.
    pub fn set_retention(&mut self, bytes: u64) {
        self.config.retention_bytes = bytes;
    }

    /// Bytes of all segments in place.
    pub fn segment_bytes(&self) -> u64 {
        self.segments.len() as u64 * self.config.segment_bytes
    }

    /// Start of the oldest segment in place: hand it to [`super::Wal::forget_before`] after recycling.
    pub fn first(&self) -> Option<Lsn> {
        self.segments.first().map(|segment| Lsn(segment * self.config.segment_bytes))
    }

    /// Spare files ready to become segments.
    pub fn spares_ready(&self) -> usize {
        self.spares.values().filter(|spare| **spare == Spare::Ready).count()
    }

    /// A segment that is in place, flushed, and whose name is durable.
    pub fn next_ready(&mut self) -> Option<u64> {
        if self.ready.is_empty() { None } else { Some(self.ready.remove(0)) }
    }

    /// The first failure: the keeper stops for ever, and the node steps down.
    pub fn failed(&self) -> Option<&WalFailure> {
        self.failed.as_ref()
    }

    /// The next operation; `None` while one is under way or nothing is to do.
    pub fn next_effect(&mut self) -> Option<KeeperEffect> {
        if self.under_way.is_some() || self.failed.is_some() {
            return None;
        }
        let step = self.next_step()?;
        let id = self.next_id;
        self.next_id += 1;
        self.under_way = Some((id, step));
        Some(match step {
            Step::Create(spare) => {
                self.spares.insert(spare, Spare::Making(None));
                KeeperEffect::Create { id, file: LogFile::Spare(spare) }
            }
            Step::Piece(spare, offset) => {
                let largest = PIECE_BYTES.min(self.config.segment_bytes);
                let len = largest.min(self.config.segment_bytes - offset);
                let zeros = self.zeros.get_or_insert_with(|| AlignedBuf::zeroed(largest as usize).share());
                let data = zeros.slice(0..len as usize);
                KeeperEffect::Write { id, file: LogFile::Spare(spare), offset, data }
            }
            Step::Flush(spare) => KeeperEffect::Flush { id, file: LogFile::Spare(spare) },
            Step::Place(spare, segment) => {
                KeeperEffect::Rename { id, from: LogFile::Spare(spare), to: LogFile::Segment(segment) }
            }
            Step::Sync => KeeperEffect::SyncFolder { id },
            Step::Recycle(segment, spare) => {
                // Gone for readers from this moment on.
                self.segments.remove(&segment);
                KeeperEffect::Rename { id, from: LogFile::Segment(segment), to: LogFile::Spare(spare) }
            }
            Step::RemoveSegment(segment) => {
                self.segments.remove(&segment);
                KeeperEffect::Remove { id, file: LogFile::Segment(segment) }
            }
            Step::RemoveSpare(spare) => KeeperEffect::Remove { id, file: LogFile::Spare(spare) },
        })
    }

    fn next_step(&self) -> Option<Step> {
        let ready = self.spares.iter().find(|(_, state)| **state == Spare::Ready);
        if let (Some(segment), Some((spare, _))) = (self.wanted.first(), ready) {
            return Some(Step::Place(*spare, *segment));
        }
        if self.unsynced {
            return Some(Step::Sync);
        }
        if let Some(spare) = self.rejected.last() {
            return Some(Step::RemoveSpare(*spare));
        }
        if let Some(step) = self.recycle_step() {
            return Some(step);
        }
        self.make_step()
    }

    /// Lets the oldest segment go when it is not required and the budget is spent.
    fn recycle_step(&self) -> Option<Step> {
        let oldest = *self.segments.first()?;
        let end = (oldest + 1).checked_mul(self.config.segment_bytes)?;
        // The segment that ends just there holds the last frame before it: the chain that the next frame must follow.
        if end >= self.required.0 || self.segment_bytes() <= self.config.retention_bytes {
            return None;
        }
        if self.spares.len() < self.config.spare_segments + self.wanted.len() {
            return Some(Step::Recycle(oldest, self.free_number()));
        }
        Some(Step::RemoveSegment(oldest))
    }

    fn make_step(&self) -> Option<Step> {
        for (spare, state) in &self.spares {
            match *state {
                Spare::Unflushed => return Some(Step::Flush(*spare)),
                Spare::Making(None) => return Some(Step::Create(*spare)),
                Spare::Making(Some(offset)) if offset < self.config.segment_bytes => {
                    return Some(Step::Piece(*spare, offset));
                }
                Spare::Making(Some(_)) => return Some(Step::Flush(*spare)),
                Spare::Ready => {}
            }
        }
        let short = self.spares.len() < self.config.spare_segments + self.wanted.len();
        short.then(|| Step::Create(self.free_number()))
    }

    fn free_number(&self) -> u32 {
        (0..)
            .find(|number| !self.spares.contains_key(number) && !self.rejected.contains(number))
            .expect("few spares")
    }

    /// Answers an effect; immediate operations are answered at once. The first error stops the keeper.
    pub fn completed(&mut self, id: u64, result: Result<(), WalIoError>) {
        let (expected, step) = self.under_way.take().expect("a completion names the operation under way");
        assert_eq!(id, expected);
        if let Err(error) = result {
            self.failed.get_or_insert(WalFailure { what: "keeping log segments", error });
            return;
        }
        match step {
            Step::Create(spare) => {
                self.spares.insert(spare, Spare::Making(Some(0)));
            }
            Step::Piece(spare, offset) => {
                let next = (offset + PIECE_BYTES).min(self.config.segment_bytes);
                self.spares.insert(spare, Spare::Making(Some(next)));
            }
            Step::Flush(spare) => {
                self.spares.insert(spare, Spare::Ready);
            }
            Step::Place(spare, segment) => {
                self.spares.remove(&spare);
                self.wanted.remove(&segment);
                self.segments.insert(segment);
                self.placed.push(segment);
                self.unsynced = true;
            }
            Step::Sync => {
                self.unsynced = false;
                self.ready.append(&mut self.placed);
            }
            Step::Recycle(_, spare) => {
                self.spares.insert(spare, Spare::Ready);
            }
            Step::RemoveSegment(_) => {}
            Step::RemoveSpare(spare) => self.rejected.retain(|rejected| *rejected != spare),
        }
    }
}

//! The room as a whole, on a simulated disk.

mod crash;
mod damage;
mod disk;
mod keeper;
mod leader;
mod readers;
mod standby;
mod truncate;

use std::collections::BTreeMap;

use super::*;
use crate::base::limits::BLOCK_BYTES;
use crate::base::{ClusterId, CommittedLsn, Lsn, Prng, ShardId, Stamp, Term, WallMs};
use crate::record::{FrameHeader, Record};
use disk::{Disk, DiskOp};

pub(super) const CLUSTER: ClusterId = ClusterId(0xC0FFEE);
pub(super) const SEGMENT: u64 = 64 << 10;

pub(super) fn config(frames_in_flight: usize, durable_writes: bool) -> WalConfig {
    WalConfig {
        cluster: CLUSTER,
        segment_bytes: SEGMENT,
        frames_in_flight,
        eager_bytes: 100,
        durable_writes,
        recent_bytes: 96 << 10,
    }
}

pub(super) fn term(number: u64) -> Term {
    Term { number, id: u128::from(number) << 96 }
}

/// Term history as the role room keeps it.
#[derive(Clone, Default)]
pub(super) struct History(Vec<(Term, Lsn)>);

impl History {
    pub fn of(term: Term) -> History {
        History(vec![(term, Lsn::ZERO)])
    }
    /// A new term starts at `from`; what history said about later positions is void.
    pub fn start(&mut self, term: Term, from: Lsn) {
        self.0.retain(|(_, start)| *start < from);
        self.0.push((term, from));
    }
    pub fn last(&self) -> Option<Term> {
        self.0.last().map(|(term, _)| *term)
    }
    pub fn term_at(&self, at: Lsn) -> Option<Term> {
        self.0.iter().rev().find(|(_, start)| *start <= at).map(|(term, _)| *term)
    }
}

/// A frame as some node once sealed it.
pub(super) type Sealed = (FrameHeader, Vec<u8>);

/// One node's log with its disk, and the operations under way between them.
pub(super) struct Rig {
    pub wal: Wal,
    pub disk: Disk,
    under_way: BTreeMap<u64, DiskOp>,
    wanted: Vec<u64>,
}

impl Rig {
    pub fn new(config: WalConfig) -> Rig {
        Rig::resume(config, &Recovered::empty(LogEnd::GENESIS), Disk::new(SEGMENT))
    }

    /// Settles and goes on.
    pub fn resume(config: WalConfig, recovered: &Recovered, mut disk: Disk) -> Rig {
        let mut recovered = recovered.clone();
        settle(&mut disk, SEGMENT, &mut recovered).unwrap();
        Rig { wal: Wal::resume(config, &recovered), disk, under_way: BTreeMap::new(), wanted: Vec::new() }
    }

    /// Starts everything that the log asks for.
    pub fn pump(&mut self) {
        while let Some(effect) = self.wal.next_effect() {
            match effect {
                WalEffect::Write { id, segment, offset, data, durable } => {
                    let op = self.disk.write(segment, offset, &data, durable);
                    self.under_way.insert(id, op);
                }
                WalEffect::Flush { id, segment } => {
                    let op = self.disk.flush(segment);
                    self.under_way.insert(id, op);
                }
                WalEffect::EnsureSegment { segment } => self.wanted.push(segment),
            }
        }
    }

    /// Ends one operation, chosen by chance. Says whether there was one.
    pub fn complete_one(&mut self, rng: &mut Prng) -> bool {
        let choices = self.under_way.len() + self.wanted.len();
        if choices == 0 {
            return false;
        }
        let choice = rng.below(choices as u64) as usize;
        if choice < self.under_way.len() {
            let id = *self.under_way.keys().nth(choice).unwrap();
            self.complete(id);
        } else {
            let segment = self.wanted.remove(choice - self.under_way.len());
            self.disk.create(segment);
            self.wal.segment_ready(segment);
        }
        true
    }

    pub fn complete(&mut self, id: u64) {
        let op = self.under_way.remove(&id).expect("under way");
        self.disk.complete(op);
        self.wal.completed(id, Ok(()));
    }

    pub fn under_way(&self) -> Vec<u64> {
        self.under_way.keys().copied().collect()
    }

    /// Runs until nothing is under way.
    pub fn drain(&mut self) {
        let mut rng = Prng::new(1);
        loop {
            self.pump();
            if !self.complete_one(&mut rng) {
                break;
            }
        }
        assert!(self.wal.idle());
    }

    /// Seals one group of transactions with these value sizes.
    pub fn seal(&mut self, sizes: &[usize], term: Term) -> Result<super::Sealed, WalError> {
        sizes.iter().for_each(|size| push(&mut self.wal, *size));
        let commit = CommittedLsn(self.wal.flushed().lsn());
        self.wal.seal(SealMarks { term, commit, clock: WallMs(77) })
    }

    /// All frames of `from..end`, from memory or disk.
    pub fn frames(&mut self, from: Lsn) -> Vec<Sealed> {
        self.wal.expose_staged();
        let mut out: Vec<Sealed> = Vec::new();
        let mut at = from;
        let mut bytes_max = 8 << 10;
        loop {
            let frames = match self.wal.read_from(at, bytes_max) {
                ReadLog::End => return out,
                ReadLog::Frames(frames) => frames,
                ReadLog::OnDisk { segment, offset, len } => {
                    let bytes = self.disk.read(segment, offset, len).unwrap().unwrap().share();
                    let parsed = self.wal.parse_disk(at, &bytes).unwrap();
                    bytes_max = parsed.need.unwrap_or(8 << 10);
                    parsed.frames
                }
                other => panic!("{other:?} at {at}"),
            };
            for (header, used) in frames {
                assert_eq!(header.first, at);
                at = header.end();
                out.push((header, used.to_vec()));
            }
        }
    }

    pub fn recover(&mut self, history: &History, known_commit: Lsn) -> Recovered {
        recover_disk(&mut self.disk, history, known_commit)
    }
}

/// Recovers a log whose newest term this node led.
pub(super) fn recover_disk(disk: &mut Disk, history: &History, known_commit: Lsn) -> Recovered {
    try_recover(disk, history, known_commit).unwrap()
}

pub(super) fn try_recover(
    disk: &mut Disk,
    history: &History,
    known_commit: Lsn,
) -> Result<Recovered, RecoverError> {
    let term_at = |at| history.term_at(at);
    recover(
        disk,
        &RecoverParams {
            cluster: CLUSTER,
            segment_bytes: SEGMENT,
            from: Lsn::ZERO,
            before: None,
            term_at: &term_at,
            known_commit,
            own_mark: Lsn::ZERO,
            own_term: history.last(),
            repair_mark: Lsn::ZERO,
        },
    )
}

/// Pushes one transaction whose record takes exactly `size` payload bytes (at least 13).
pub(super) fn push(wal: &mut Wal, size: usize) {
    let stamp = wal.open_stamp().0.to_le_bytes();
    let value: Vec<u8> = stamp.iter().copied().cycle().take(size.max(13) - 13).collect();
    wal.writer().push(Record::Put { shard: ShardId(1), key: b"k", value: &value, created: true });
    wal.writer().end_transaction();
}

/// Payload bytes that fill `blocks` blocks to the last byte.
pub(super) fn payload_of(blocks: usize) -> usize {
    blocks * BLOCK_BYTES - crate::record::HEADER_BYTES
}

/// Whether a frame that would pass as this log's own stands anywhere at or beyond `end`.
pub(super) fn stale_beyond(disk: &mut Disk, end: Lsn) -> Option<Lsn> {
    let geometry = Geometry::new(CLUSTER, SEGMENT);
    for segment in disk.segments().unwrap() {
        let bytes = disk.read(segment, 0, SEGMENT as usize).unwrap().unwrap();
        for offset in (0..SEGMENT).step_by(BLOCK_BYTES) {
            let at = Lsn(segment * SEGMENT + offset);
            if at >= end && geometry.header(at, &bytes[offset as usize..]).is_ok() {
                return Some(at);
            }
        }
    }
    None
}

pub(super) fn all_frames(disk: &mut Disk, to: Lsn) -> Vec<Sealed> {
    FrameScan::new(disk, Geometry::new(CLUSTER, SEGMENT), Lsn::ZERO, to, None)
        .map(|frame| frame.map(|frame| (frame.header, frame.used().to_vec())))
        .collect::<Result<Vec<_>, _>>()
        .unwrap()
}

pub(super) const NO_STAMP: Stamp = Stamp::COMMITTED;

//! Redo: applies the records of committed frames to the store.

use crate::base::{Lsn, ShardId, Stamp};
use crate::record::{Corrupt, Record};
use crate::store::Store;

/// What became of one record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Applied<'a> {
    /// The store has it.
    Changed,
    /// The shard's checkpoint already holds it.
    Skipped,
    /// The caller freezes the shard here, before the next record of that shard.
    Checkpoint { shard: ShardId, merge_version: u16 },
    /// A record of the whole node (term start, policy): the caller's business.
    Control(Record<'a>),
}

/// Why redo stops. The node leaves service: its log or its program does not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RedoError {
    Corrupt(&'static str),
    UnknownMergeVersion { shard: ShardId, version: u16 },
    UnknownShard(ShardId),
}

/// How far a frame has been applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    Done,
    /// A checkpoint record of a shard whose previous checkpoint is not durable yet. Nothing after it was applied; call
    /// again with the same cursor once [`Store::merging`] says no.
    Stalled(ShardId),
}

/// Position of redo inside one frame's payload. Starts at the default.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FrameCursor(usize);

/// Knows what each shard's checkpoint already holds.
pub struct Redo {}

#[allow(unused_variables)]
impl Redo {
    /// Redo on top of the store's current checkpoints.
    pub fn new(store: &Store) -> Redo {
        unimplemented!()
    }

    /// Applies one record that starts at `at` (see [`record_lsn`]).
    pub fn apply_record<'a>(
        &self,
        store: &mut Store,
        record: Record<'a>,
        at: Lsn,
        stamp: Stamp,
    ) -> Result<Applied<'a>, RedoError> {
        unimplemented!()
    }

    /// Applies the payload of the frame that starts at `first`, freezing shards at their checkpoint records, and
    /// hands term starts and policies to `control`.
    pub fn apply_frame(
        &self,
        store: &mut Store,
        first: Lsn,
        payload: &[u8],
        cursor: &mut FrameCursor,
        stamp: Stamp,
        control: &mut dyn FnMut(Record<'_>),
    ) -> Result<Progress, RedoError> {
        unimplemented!()
    }
}

/// Log position of the record that stands `offset` bytes into the payload of the frame at `first`.
pub fn record_lsn(first: Lsn, offset: usize) -> Lsn {
    first + (crate::record::HEADER_BYTES + offset) as u64
}

impl From<Corrupt> for RedoError {
    fn from(corrupt: Corrupt) -> RedoError {
        RedoError::Corrupt(corrupt.0)
    }
}

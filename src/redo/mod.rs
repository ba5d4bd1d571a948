//! Redo: applies the records of committed frames to the store.
//!
//! The same code runs on a standby behind the commit watermark and at restart over the log's tail. It knows records and
//! shards, not frames on disk: the caller hands it whole, verified, committed payloads in log order (protocol 2.1).
//!
//! Small amounts are applied in place, record by record ([`Redo::apply_frame`]). Large ones are divided by shard
//! ([`Redo::split`]): each lane gets the tops of its shards and the places of their records, and the lanes run side by
//! side. This room starts no thread: a [`Job`] is a value, whoever has the threads runs it and brings it back.
//!
//! Invariants:
//! - a record that its shard's checkpoint already holds changes nothing; every other record is applied exactly once;
//! - every checkpoint record is executed at its place, none skipped or joined: a shard whose previous checkpoint is not
//!   durable yet stalls redo, and nothing behind that record is applied meanwhile (protocol 7.1);
//! - records of one shard are applied in log order, and nobody looks at the store between the split of a batch and its
//!   end: readers see whole frames, whatever the number of lanes, and the result does not depend on it;
//! - records come from disk or network: what they cannot mean is an error, never a panic.
//!
//! The price: a batch ends in front of each checkpoint record, and a stalled shard stalls all of them. Letting the
//! others run ahead would show readers of a standby one half of a transaction.

mod lanes;

use crate::base::{Lsn, ShardId, Stamp};
use crate::record::key::{TAG_META, split};
use crate::record::{Corrupt, HEADER_BYTES, MERGE_VERSION, Record, RecordReader};
use crate::store::{STORE_KEY_BYTES_MAX, STORE_VALUE_BYTES_MAX, Store, Top};

pub use lanes::{Batch, Job, Stop};

/// What became of one record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Applied<'a> {
    /// The store has it.
    Changed,
    /// The shard's checkpoint already holds it.
    Skipped,
    /// The caller freezes the shard here, before the next record of that shard.
    Checkpoint { shard: ShardId, at: Lsn },
    /// A record of the whole node (term start, policy): the caller's business.
    Control(Record<'a>),
}

/// Why redo stops. The node leaves service: its log or its program does not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RedoError {
    /// A committed record says what no baton writes: rebuild this node from a peer.
    Corrupt(&'static str),
    /// The log was written by a later version: upgrade this node.
    UnknownMergeVersion { shard: ShardId, version: u16 },
    /// The cluster has fewer shards: wrong log.
    UnknownShard(ShardId),
}

impl std::fmt::Display for RedoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RedoError::Corrupt(what) => write!(f, "corrupt record: {what}; rebuild this node from a peer"),
            RedoError::UnknownMergeVersion { shard, version } => {
                write!(f, "checkpoint of shard {shard} wants merge version {version}; upgrade this node")
            }
            RedoError::UnknownShard(shard) => {
                write!(f, "record of shard {shard}, which this cluster has not")
            }
        }
    }
}
impl std::error::Error for RedoError {}

impl From<Corrupt> for RedoError {
    fn from(corrupt: Corrupt) -> RedoError {
        RedoError::Corrupt(corrupt.0)
    }
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

/// Log position of the record that stands `offset` bytes into the payload of the frame at `first`.
pub fn record_lsn(first: Lsn, offset: usize) -> Lsn {
    first + (HEADER_BYTES + offset) as u64
}

/// Knows up to where each shard's checkpoint already holds the log.
#[derive(Clone, Debug)]
pub struct Redo {
    held: Vec<Lsn>,
}

impl Redo {
    /// Redo on top of the store's current durable checkpoints.
    pub fn new(store: &Store) -> Redo {
        Redo { held: (0..store.shards()).map(|shard| store.checkpoint_lsn(ShardId(shard))).collect() }
    }

    /// What is to be done with a record that starts at `at`.
    fn judge<'a>(&self, record: Record<'a>, at: Lsn) -> Result<Judged<'a>, RedoError> {
        let Some(shard) = record.shard() else { return Ok(Judged::Control(record)) };
        let held = *self.held.get(shard.index()).ok_or(RedoError::UnknownShard(shard))?;
        if at <= held {
            return Ok(Judged::Skip);
        }
        match record {
            // The record lies behind the position that it names: a shard that has this checkpoint skips it by that.
            Record::Checkpoint { at, .. } if at <= held => Ok(Judged::Skip),
            Record::Checkpoint { merge_version, at: place, .. } => {
                if place > at {
                    return Err(RedoError::Corrupt("a checkpoint record names a later position"));
                }
                if merge_version != MERGE_VERSION {
                    return Err(RedoError::UnknownMergeVersion { shard, version: merge_version });
                }
                Ok(Judged::Checkpoint { shard, at: place })
            }
            _ => Ok(Judged::Change(shard)),
        }
    }

    /// Applies one record that starts at `at` (see [`record_lsn`]).
    pub fn apply_record<'a>(
        &self,
        store: &mut Store,
        record: Record<'a>,
        at: Lsn,
    ) -> Result<Applied<'a>, RedoError> {
        Ok(match self.judge(record, at)? {
            Judged::Skip => Applied::Skipped,
            Judged::Control(record) => Applied::Control(record),
            Judged::Checkpoint { shard, at } => Applied::Checkpoint { shard, at },
            Judged::Change(shard) => {
                store.redo(shard, |top| change(top, &record))?;
                Applied::Changed
            }
        })
    }

    /// Applies the payload of the frame that starts at `first`, freezing shards at their checkpoint records, and hands term
    /// starts and policies to `control`.
    pub fn apply_frame(
        &self,
        store: &mut Store,
        first: Lsn,
        payload: &[u8],
        cursor: &mut FrameCursor,
        control: &mut dyn FnMut(Record<'_>),
    ) -> Result<Progress, RedoError> {
        let mut reader = RecordReader::new(&payload[cursor.0..]);
        loop {
            let offset = payload.len() - reader.remaining();
            cursor.0 = offset;
            let Some(next) = reader.next() else { return Ok(Progress::Done) };
            let (record, _) = next?;
            let at = record_lsn(first, offset);
            match self.apply_record(store, record, at)? {
                Applied::Changed | Applied::Skipped => {}
                Applied::Control(record) => control(record),
                Applied::Checkpoint { shard, .. } if store.merging(shard) => {
                    return Ok(Progress::Stalled(shard));
                }
                Applied::Checkpoint { shard, at } => store.freeze(shard, at, Stamp::COMMITTED),
            }
        }
    }
}

enum Judged<'a> {
    Skip,
    Change(ShardId),
    Checkpoint { shard: ShardId, at: Lsn },
    Control(Record<'a>),
}

/// Carries out a change on the top of its shard.
fn change(top: &mut Top, record: &Record<'_>) -> Result<(), RedoError> {
    match *record {
        Record::Put { key, value, created, .. } => {
            check_lengths(key, value)?;
            top.put(key, value, created);
        }
        Record::Delete { key, .. } => {
            check_lengths(key, &[])?;
            let counted = split(key)?.1 == TAG_META;
            if counted && top.count() == 0 {
                return Err(RedoError::Corrupt("a key is deleted that cannot exist"));
            }
            top.delete(key, counted);
        }
        Record::DeleteRange { start, end, .. } => {
            check_lengths(start, end)?;
            check_lengths(end, &[])?;
            check_range(start, end)?;
            top.delete_range(start, end);
        }
        Record::ClearShard { .. } => top.clear(),
        Record::Checkpoint { .. } | Record::TermStart { .. } | Record::Policy { .. } | Record::Op { .. } => {
            unreachable!("judged to be no change")
        }
    }
    Ok(())
}

fn check_lengths(key: &[u8], value: &[u8]) -> Result<(), RedoError> {
    if key.len() > STORE_KEY_BYTES_MAX {
        return Err(RedoError::Corrupt("a key longer than the maximum"));
    }
    if value.len() > STORE_VALUE_BYTES_MAX {
        return Err(RedoError::Corrupt("a value longer than the maximum"));
    }
    Ok(())
}

/// A range stays among the elements of one user key: a meta entry inside it would make the key count wrong.
fn check_range(start: &[u8], end: &[u8]) -> Result<(), RedoError> {
    let (user, tag) = split(start)?;
    let (user_end, tag_end) = split(end)?;
    if start >= end {
        return Err(RedoError::Corrupt("a range that ends before it starts"));
    }
    if tag == TAG_META || tag_end == TAG_META || user != user_end {
        return Err(RedoError::Corrupt("a range delete over more than the elements of one key"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

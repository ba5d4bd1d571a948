//! Changes and their undo.
//!
//! Undo is one log for all shards, strictly last in, first out: a rolled back command, a demotion and a dropped
//! checkpoint are the same walk backwards, so whatever it reaches is exactly as it was.

use std::collections::VecDeque;

use super::delta::{Delta, Replaced, Slot};
use super::key::Key;
use super::{STORE_KEY_BYTES_MAX, STORE_VALUE_BYTES_MAX, Store, UndoMark};
use crate::base::{ShardId, Stamp};

/// One change that can be taken back.
#[derive(Debug)]
struct Undo {
    shard: ShardId,
    stamp: Stamp,
    /// The shard's last stamp and key count before it.
    last: Stamp,
    keys: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Slot(Key, Option<Slot>),
    Range(Box<Replaced>),
    Clear(Box<Delta>),
    Freeze,
}

impl Undo {
    fn bytes(&self) -> usize {
        let slot = |s: &Slot| s.value.as_ref().map_or(0, |v| v.len());
        size_of::<Undo>()
            + match &self.what {
                What::Slot(key, old) => key.heap_bytes() + old.as_ref().map_or(0, slot),
                What::Range(range) => range.entries.iter().map(|(k, s)| 64 + k.heap_bytes() + slot(s)).sum(),
                What::Clear(delta) => delta.bytes(),
                What::Freeze => 0,
            }
    }
}

/// Everything above commit, oldest first.
#[derive(Debug, Default)]
pub(super) struct UndoLog {
    entries: VecDeque<Undo>,
    /// Entries forgotten so far: marks count from the beginning of time.
    forgotten: u64,
    bytes: usize,
    pub committed: Stamp,
}

impl UndoLog {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn mark(&self) -> u64 {
        self.forgotten + self.entries.len() as u64
    }

    fn push(&mut self, undo: Undo) {
        assert!(self.entries.back().is_none_or(|last| last.stamp <= undo.stamp), "stamps never go back");
        assert!(undo.stamp > self.committed, "a change is made before it is committed");
        self.bytes += undo.bytes();
        self.entries.push_back(undo);
    }

    fn pop(&mut self) -> Option<Undo> {
        let undo = self.entries.pop_back()?;
        self.bytes -= undo.bytes();
        Some(undo)
    }

    fn last_stamp(&self) -> Option<Stamp> {
        self.entries.back().map(|undo| undo.stamp)
    }
}

impl Store {
    /// Blind put. `created` adds one to the key count (meta keys only).
    pub fn put(&mut self, shard: ShardId, key: &[u8], value: &[u8], created: bool, stamp: Stamp) {
        assert!(key.len() <= STORE_KEY_BYTES_MAX && value.len() <= STORE_VALUE_BYTES_MAX);
        self.set(shard, key, Some(value), stamp, i64::from(created));
    }

    /// Blind delete. `counted` takes one from the key count (meta keys only).
    pub fn delete(&mut self, shard: ShardId, key: &[u8], counted: bool, stamp: Stamp) {
        assert!(key.len() <= STORE_KEY_BYTES_MAX);
        self.set(shard, key, None, stamp, -i64::from(counted));
    }

    fn set(&mut self, shard: ShardId, key: &[u8], value: Option<&[u8]>, stamp: Stamp, keys: i64) {
        let keep = self.keeps(stamp);
        let state = &mut self.shards[shard.index()];
        let before = state.active.bytes();
        let old = state.active.set(key, value, stamp, keep);
        self.active_bytes = self.active_bytes - before + state.active.bytes();
        if let Some((key, slot)) = old {
            let what = What::Slot(key, slot);
            self.undo.push(Undo { shard, stamp, last: state.last, keys: state.keys, what });
        }
        state.last = stamp.max(state.last);
        state.keys = state.keys.checked_add_signed(keys).expect("a counted key is deleted once");
    }

    /// Deletes every key in `start..end`, blindly. The range holds no meta key: the key count stays.
    pub fn delete_range(&mut self, shard: ShardId, start: &[u8], end: &[u8], stamp: Stamp) {
        assert!(start.len() <= STORE_KEY_BYTES_MAX && end.len() <= STORE_KEY_BYTES_MAX);
        if start >= end {
            return;
        }
        let keep = self.keeps(stamp);
        let state = &mut self.shards[shard.index()];
        let before = state.active.bytes();
        let old = state.active.delete_range(start, end, stamp);
        self.active_bytes = self.active_bytes - before + state.active.bytes();
        if keep {
            let what = What::Range(Box::new(old));
            self.undo.push(Undo { shard, stamp, last: state.last, keys: state.keys, what });
        }
        state.last = stamp.max(state.last);
    }

    /// Deletes every key of the shard.
    pub fn clear_shard(&mut self, shard: ShardId, stamp: Stamp) {
        let keep = self.keeps(stamp);
        let state = &mut self.shards[shard.index()];
        let old = state.active.clear(stamp);
        self.active_bytes = self.active_bytes - old.bytes() + state.active.bytes();
        if keep {
            let what = What::Clear(Box::new(old));
            self.undo.push(Undo { shard, stamp, last: state.last, keys: state.keys, what });
        }
        state.last = stamp.max(state.last);
        state.keys = 0;
    }

    /// Remembers a freeze in the order of changes.
    pub(super) fn undo_freeze(&mut self, shard: ShardId, stamp: Stamp) {
        if self.keeps(stamp) {
            let state = &self.shards[shard.index()];
            self.undo.push(Undo { shard, stamp, last: state.last, keys: state.keys, what: What::Freeze });
        }
    }

    /// Whether a change needs undo. Committed changes (redo) never mix with changes that may still be taken back.
    fn keeps(&self, stamp: Stamp) -> bool {
        let keep = stamp != Stamp::COMMITTED;
        assert!(keep || self.undo.entries.is_empty(), "redo runs after the uncommitted tail is gone");
        keep
    }

    /// A place to return to: the start of a command.
    pub fn mark(&self) -> UndoMark {
        UndoMark(self.undo.mark())
    }

    /// Takes back every change since `mark`: an unfinished command that hit a miss.
    pub fn undo_to(&mut self, mark: UndoMark) {
        assert!(mark.0 >= self.undo.forgotten, "a command is not committed while it runs");
        while self.undo.mark() > mark.0 {
            self.undo_one();
        }
    }

    /// Forgets the previous versions of what is committed.
    pub fn commit_through(&mut self, stamp: Stamp) {
        while self.undo.entries.front().is_some_and(|undo| undo.stamp <= stamp) {
            let undo = self.undo.entries.pop_front().expect("just seen");
            self.undo.bytes -= undo.bytes();
            self.undo.forgotten += 1;
            if let What::Clear(delta) = undo.what {
                self.rubbish.push(delta.map);
            }
        }
        self.undo.committed = self.undo.committed.max(stamp);
    }

    /// Demotion: takes back every change above `stamp`, checkpoints included.
    pub fn rollback_above(&mut self, stamp: Stamp) {
        assert!(stamp >= self.undo.committed, "what is committed stays");
        while self.undo.last_stamp().is_some_and(|last| last > stamp) {
            self.undo_one();
        }
    }

    fn undo_one(&mut self) {
        let undo = self.undo.pop().expect("there is something to undo");
        if let What::Freeze = undo.what {
            self.thaw(undo.shard);
        }
        let state = &mut self.shards[undo.shard.index()];
        let before = state.active.bytes();
        match undo.what {
            What::Slot(key, slot) => state.active.restore(key, slot),
            What::Range(range) => state.active.restore_range(*range),
            What::Clear(delta) => state.active = *delta,
            What::Freeze => {}
        }
        self.active_bytes = self.active_bytes - before + state.active.bytes();
        state.last = undo.last;
        state.keys = undo.keys;
    }
}

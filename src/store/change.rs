//! Changes and their undo.
//!
//! Undo is one log for all shards, strictly last in, first out: a rolled back command, a demotion and a dropped
//! checkpoint are the same walk backwards, so whatever it reaches is exactly as it was.
//!
//! Redo needs no undo: its changes are committed. They touch the [`Top`] of a shard and nothing else, so tops can be
//! taken out of the store, changed side by side by threads of their own, and put back.

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

/// What lies on top of a shard's frozen delta and tree. Redo changes nothing else of a shard.
#[derive(Default, Debug)]
pub struct Top {
    pub(super) active: Delta,
    /// Live user keys, uncommitted changes included.
    pub(super) keys: u64,
    pub(super) last: Stamp,
}

// Tops travel to the threads of parallel redo and back.
const fn assert_send<T: Send>() {}
const _: () = assert_send::<Top>();

impl Top {
    /// Committed put, blind. `created` adds one to the key count (meta keys only).
    pub fn put(&mut self, key: &[u8], value: &[u8], created: bool) {
        self.set(key, Some(value), Stamp::COMMITTED, i64::from(created), false);
    }

    /// Committed delete, blind. `counted` takes one from the key count (meta keys only).
    pub fn delete(&mut self, key: &[u8], counted: bool) {
        self.set(key, None, Stamp::COMMITTED, -i64::from(counted), false);
    }

    /// Committed delete of every key in `start..end`, which holds no meta key.
    pub fn delete_range(&mut self, start: &[u8], end: &[u8]) {
        self.remove_range(start, end, Stamp::COMMITTED);
    }

    /// Committed delete of every key.
    pub fn clear(&mut self) {
        self.remove_all(Stamp::COMMITTED);
    }

    /// Live user keys.
    pub fn count(&self) -> u64 {
        self.keys
    }

    fn set(
        &mut self,
        key: &[u8],
        value: Option<&[u8]>,
        stamp: Stamp,
        keys: i64,
        keep: bool,
    ) -> Option<(Key, Option<Slot>)> {
        assert!(key.len() <= STORE_KEY_BYTES_MAX && value.is_none_or(|v| v.len() <= STORE_VALUE_BYTES_MAX));
        self.last = stamp.max(self.last);
        self.keys = self.keys.checked_add_signed(keys).expect("a counted key is deleted once");
        self.active.set(key, value, stamp, keep)
    }

    fn remove_range(&mut self, start: &[u8], end: &[u8], stamp: Stamp) -> Replaced {
        assert!(start.len() <= STORE_KEY_BYTES_MAX && end.len() <= STORE_KEY_BYTES_MAX);
        self.last = stamp.max(self.last);
        self.active.delete_range(start, end, stamp)
    }

    fn remove_all(&mut self, stamp: Stamp) -> Delta {
        self.last = stamp.max(self.last);
        self.keys = 0;
        self.active.clear(stamp)
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
        self.set(shard, key, Some(value), stamp, i64::from(created));
    }

    /// Blind delete. `counted` takes one from the key count (meta keys only).
    pub fn delete(&mut self, shard: ShardId, key: &[u8], counted: bool, stamp: Stamp) {
        self.set(shard, key, None, stamp, -i64::from(counted));
    }

    fn set(&mut self, shard: ShardId, key: &[u8], value: Option<&[u8]>, stamp: Stamp, keys: i64) {
        let keep = self.keeps(stamp);
        let (last, count) = self.before(shard);
        if let Some((key, slot)) = self.change(shard, |top| top.set(key, value, stamp, keys, keep)) {
            self.undo.push(Undo { shard, stamp, last, keys: count, what: What::Slot(key, slot) });
        }
    }

    /// Deletes every key in `start..end`, blindly. The range holds no meta key: the key count stays.
    pub fn delete_range(&mut self, shard: ShardId, start: &[u8], end: &[u8], stamp: Stamp) {
        if start >= end {
            return;
        }
        let keep = self.keeps(stamp);
        let (last, count) = self.before(shard);
        let old = self.change(shard, |top| top.remove_range(start, end, stamp));
        if keep {
            self.undo.push(Undo { shard, stamp, last, keys: count, what: What::Range(Box::new(old)) });
        }
    }

    /// Deletes every key of the shard.
    pub fn clear_shard(&mut self, shard: ShardId, stamp: Stamp) {
        let keep = self.keeps(stamp);
        let (last, count) = self.before(shard);
        let old = self.change(shard, |top| top.remove_all(stamp));
        if keep {
            self.undo.push(Undo { shard, stamp, last, keys: count, what: What::Clear(Box::new(old)) });
        }
    }

    fn before(&self, shard: ShardId) -> (Stamp, u64) {
        let top = &self.shards[shard.index()].top;
        (top.last, top.keys)
    }

    /// Changes a top and keeps the count of bytes right.
    fn change<R>(&mut self, shard: ShardId, change: impl FnOnce(&mut Top) -> R) -> R {
        let top = &mut self.shards[shard.index()].top;
        let before = top.active.bytes();
        let result = change(top);
        self.active_bytes = self.active_bytes - before + top.active.bytes();
        result
    }

    /// Lets redo change a shard's top in place.
    pub fn redo<R>(&mut self, shard: ShardId, change: impl FnOnce(&mut Top) -> R) -> R {
        self.keeps(Stamp::COMMITTED);
        self.change(shard, change)
    }

    /// Takes a shard's top out for redo elsewhere. Until [`Store::put_top`] the shard must not be looked at or changed.
    pub fn take_top(&mut self, shard: ShardId) -> Top {
        self.keeps(Stamp::COMMITTED);
        let top = std::mem::take(&mut self.shards[shard.index()].top);
        self.active_bytes -= top.active.bytes();
        self.tops_out += 1;
        top
    }

    /// Puts a top back that [`Store::take_top`] took.
    pub fn put_top(&mut self, shard: ShardId, top: Top) {
        let place = &mut self.shards[shard.index()].top;
        assert!(place.active.is_empty() && self.tops_out > 0, "a top comes back to its own shard");
        self.active_bytes += top.active.bytes();
        self.tops_out -= 1;
        *place = top;
    }

    /// Remembers a freeze in the order of changes.
    pub(super) fn undo_freeze(&mut self, shard: ShardId, stamp: Stamp) {
        if self.keeps(stamp) {
            let (last, keys) = self.before(shard);
            self.undo.push(Undo { shard, stamp, last, keys, what: What::Freeze });
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
        self.change(undo.shard, |top| {
            match undo.what {
                What::Slot(key, slot) => top.active.restore(key, slot),
                What::Range(range) => top.active.restore_range(*range),
                What::Clear(delta) => top.active = *delta,
                What::Freeze => {}
            }
            top.last = undo.last;
            top.keys = undo.keys;
        });
    }
}

//! What commands need of the store, and nothing more. Tests put a model with rigged misses behind it.

use std::ops::Bound;

use crate::base::{ShardId, Stamp};
use crate::store::{Miss, Seen, Store, UndoMark};

/// The ordered entries of all shards. The meaning of each call is that of the [`Store`] method of the same name.
pub trait Shards {
    fn get(&mut self, shard: ShardId, key: &[u8]) -> Result<Seen<'_>, Miss>;
    fn head(&mut self, shard: ShardId, key: &[u8]) -> Result<Seen<'_>, Miss>;
    fn put(&mut self, shard: ShardId, key: &[u8], value: &[u8], created: bool, stamp: Stamp);
    fn delete(&mut self, shard: ShardId, key: &[u8], counted: bool, stamp: Stamp);
    fn clear_shard(&mut self, shard: ShardId, stamp: Stamp);
    fn count(&self, shard: ShardId) -> (u64, Stamp);
    fn last_stamp(&self, shard: ShardId) -> Stamp;
    fn scan_heads(
        &mut self,
        shard: ShardId,
        from: Bound<&[u8]>,
        limit: usize,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<Option<Vec<u8>>, Miss>;
    fn mark(&self) -> UndoMark;
    fn undo_to(&mut self, mark: UndoMark);
}

impl Shards for Store {
    fn get(&mut self, shard: ShardId, key: &[u8]) -> Result<Seen<'_>, Miss> {
        Store::get(self, shard, key)
    }
    fn head(&mut self, shard: ShardId, key: &[u8]) -> Result<Seen<'_>, Miss> {
        Store::head(self, shard, key)
    }
    fn put(&mut self, shard: ShardId, key: &[u8], value: &[u8], created: bool, stamp: Stamp) {
        Store::put(self, shard, key, value, created, stamp);
    }
    fn delete(&mut self, shard: ShardId, key: &[u8], counted: bool, stamp: Stamp) {
        Store::delete(self, shard, key, counted, stamp);
    }
    fn clear_shard(&mut self, shard: ShardId, stamp: Stamp) {
        Store::clear_shard(self, shard, stamp);
    }
    fn count(&self, shard: ShardId) -> (u64, Stamp) {
        Store::count(self, shard)
    }
    fn last_stamp(&self, shard: ShardId) -> Stamp {
        Store::last_stamp(self, shard)
    }
    fn scan_heads(
        &mut self,
        shard: ShardId,
        from: Bound<&[u8]>,
        limit: usize,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<Option<Vec<u8>>, Miss> {
        Store::scan_heads(self, shard, from, limit, visit)
    }
    fn mark(&self) -> UndoMark {
        Store::mark(self)
    }
    fn undo_to(&mut self, mark: UndoMark) {
        Store::undo_to(self, mark);
    }
}

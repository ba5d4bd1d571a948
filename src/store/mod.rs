//! The store: V virtual shards over one file of copy-on-write pages.
//!
//! A shard is an ordered in-memory delta over an optional frozen delta (the one being merged) over an immutable
//! B+tree of 16 KiB pages.

use std::ops::Bound;

use crate::base::{ClusterId, Digest, Lsn, ShardId, SharedSlice, Stamp};

/// What a store is built with.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    pub cluster: ClusterId,
    /// Virtual shards, fixed for the life of a cluster.
    pub shards: u16,
    /// Budget of the page cache in bytes. Held pages may exceed it.
    pub cache_bytes: usize,
    /// Past this many bytes in deltas, [`Store::delta_full`] says so.
    pub delta_bytes: usize,
}

/// A page of the file `pages`: byte offset = number * 16 KiB. Local to a node. Zero names no page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct PageNo(pub u64);

/// A look-up needs a page that is not in memory. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Miss {
    pub shard: ShardId,
    pub page: PageNo,
}

/// What a look-up saw. Absent keys carry the stamp of the delete that a reader could have observed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen<'a> {
    pub value: Option<&'a [u8]>,
    pub stamp: Stamp,
}

/// A place in the order of changes to return to with [`Store::undo_to`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct UndoMark(pub u64);

/// A page whose bytes are not what its parent says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageDamage {
    pub shard: ShardId,
    pub page: PageNo,
    pub what: &'static str,
}

/// One slice of checkpoint work.
#[derive(Debug)]
pub enum MergeStep {
    /// Read these pages and hand them over with [`Store::page_read`].
    NeedPages(Vec<PageNo>),
    /// Write each slice at its first page (slices are whole pages) and report it with [`Store::page_written`].
    Write(Vec<(PageNo, SharedSlice)>),
    /// Zero-write the file up to `to_pages` pages and report it with [`Store::pages_grown`].
    Grow { to_pages: u64 },
    /// The new tree of `shard` is complete in memory and on its way to the disk.
    Merged { shard: ShardId, at: Lsn, digest: Digest },
    /// The budget of this slice is used up; call again.
    Working,
    /// Pages asked for earlier have not arrived yet.
    Waiting,
    /// No shard is frozen.
    Idle,
}

/// One slice of the walk at start.
#[derive(Debug)]
pub enum WalkStep {
    NeedPages(Vec<PageNo>),
    Waiting,
    Working,
    Done,
}

/// Names one flush of the file `pages`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FlushToken(pub u64);

/// Bytes for one superblock slot.
#[derive(Clone, Debug)]
pub struct SuperblockImage {
    /// Offset in the file `superblock`.
    pub slot_offset: u64,
    pub data: SharedSlice,
    /// The checkpoints that become current when the image is durable.
    pub covers: Vec<(ShardId, Lsn, Digest)>,
}

/// Why a store does not open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreError {
    /// Neither superblock slot is whole: rebuild the node from a peer.
    BothSlotsBad,
    /// The superblock belongs to another cluster: wrong data folder.
    OtherCluster(ClusterId),
    /// The number of shards is fixed at `init`.
    OtherShardCount(u16),
    /// Written by a later version.
    UnknownVersion(u16),
}

/// Where the memory is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StoreMemory {
    pub delta_bytes: usize,
    pub frozen_bytes: usize,
    pub cache_bytes: usize,
    pub undo_bytes: usize,
}

/// The shards of one node.
pub struct Store {}

#[allow(unused_variables)]
impl Store {
    /// A fresh, empty store. Write [`Store::initial_superblocks`] before anything else.
    pub fn create(config: StoreConfig) -> Store {
        unimplemented!()
    }
    /// The two slots of an empty store.
    pub fn initial_superblocks(&self) -> [SuperblockImage; 2] {
        unimplemented!()
    }
    /// Opens from the two slots of the file `superblock` (see [`SLOT_BYTES`]). The newest whole slot wins.
    /// Drive [`Store::walk_step`] to `Done` before merges can run.
    pub fn open(
        config: StoreConfig,
        slot_a: Option<&[u8]>,
        slot_b: Option<&[u8]>,
    ) -> Result<Store, StoreError> {
        unimplemented!()
    }

    /// Looks a key up. A value longer than a page is assembled first, page by page.
    pub fn get(&mut self, shard: ShardId, key: &[u8]) -> Result<Seen<'_>, Miss> {
        unimplemented!()
    }
    /// Like [`Store::get`], but the value may be cut after its first [`HEAD_BYTES`] bytes: enough for type and expiry.
    pub fn head(&mut self, shard: ShardId, key: &[u8]) -> Result<Seen<'_>, Miss> {
        unimplemented!()
    }
    /// Blind put. `created` adds one to the key count (meta keys only).
    pub fn put(&mut self, shard: ShardId, key: &[u8], value: &[u8], created: bool, stamp: Stamp) {
        unimplemented!()
    }
    /// Blind delete. `counted` takes one from the key count (meta keys only).
    pub fn delete(&mut self, shard: ShardId, key: &[u8], counted: bool, stamp: Stamp) {
        unimplemented!()
    }
    /// Deletes every key in `start..end`, blindly. The range holds no meta key.
    pub fn delete_range(&mut self, shard: ShardId, start: &[u8], end: &[u8], stamp: Stamp) {
        unimplemented!()
    }
    pub fn clear_shard(&mut self, shard: ShardId, stamp: Stamp) {
        unimplemented!()
    }
    /// Live user keys, exact, and the stamp a reader of the count must wait for.
    pub fn count(&self, shard: ShardId) -> (u64, Stamp) {
        unimplemented!()
    }
    /// The stamp of the shard's last change.
    pub fn last_stamp(&self, shard: ShardId) -> Stamp {
        unimplemented!()
    }
    /// Visits at most `limit` live entries in key order; returns where to go on (`Included`), `None` at the end.
    /// After a miss what was visited counts for nothing: the whole call is made again.
    pub fn scan(
        &mut self,
        shard: ShardId,
        from: Bound<&[u8]>,
        limit: usize,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<Option<Vec<u8>>, Miss> {
        unimplemented!()
    }
    /// Like [`Store::scan`], with values that may be cut after [`HEAD_BYTES`].
    pub fn scan_heads(
        &mut self,
        shard: ShardId,
        from: Bound<&[u8]>,
        limit: usize,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<Option<Vec<u8>>, Miss> {
        unimplemented!()
    }

    pub fn mark(&self) -> UndoMark {
        unimplemented!()
    }
    /// Takes back every change since `mark`.
    pub fn undo_to(&mut self, mark: UndoMark) {
        unimplemented!()
    }
    /// Forgets the previous versions of what is committed.
    pub fn commit_through(&mut self, stamp: Stamp) {
        unimplemented!()
    }
    /// Demotion: takes back every change above `stamp`, checkpoints included.
    pub fn rollback_above(&mut self, stamp: Stamp) {
        unimplemented!()
    }

    /// Hands over the bytes of a page that a miss, a merge or the walk asked for.
    pub fn page_read(&mut self, page: PageNo, bytes: &[u8]) -> Result<(), PageDamage> {
        unimplemented!()
    }
    /// Every page that the missed look-up is known to need, the missed one first: read them together.
    pub fn wanted(&self, miss: Miss) -> Vec<PageNo> {
        unimplemented!()
    }
    /// Keeps a page in memory until [`Store::release`], counted. The node holds what a parked command has missed, so
    /// that its next run gets further however small the cache is.
    pub fn hold(&mut self, page: PageNo) {
        unimplemented!()
    }
    pub fn release(&mut self, page: PageNo) {
        unimplemented!()
    }

    /// Whether the shard has a checkpoint under way that is not durable yet: no other may start.
    pub fn merging(&self, shard: ShardId) -> bool {
        unimplemented!()
    }
    /// Freezes the shard. `at` is the log position of the first byte of the checkpoint record; no change of this
    /// shard may stand between that record and this call.
    pub fn freeze(&mut self, shard: ShardId, at: Lsn, stamp: Stamp) {
        unimplemented!()
    }
    /// One slice of the oldest unfinished merge: about `budget_pages` pages read or made.
    pub fn merge_step(&mut self, budget_pages: usize) -> MergeStep {
        unimplemented!()
    }
    /// The write that starts at `first` (one slice of [`MergeStep::Write`]) has completed.
    pub fn page_written(&mut self, first: PageNo) {
        unimplemented!()
    }
    /// A flush of `pages` would make progress now: submit it, then report it with [`Store::pages_flushed`].
    pub fn wants_flush(&mut self) -> Option<FlushToken> {
        unimplemented!()
    }
    pub fn pages_flushed(&mut self, token: FlushToken) {
        unimplemented!()
    }
    /// How many pages the file should have soon, when that is more than it has.
    pub fn grow_wanted(&self) -> Option<u64> {
        unimplemented!()
    }
    /// The file now has this many zero-written pages.
    pub fn pages_grown(&mut self, pages: u64) {
        unimplemented!()
    }
    /// The next superblock, when at least one flushed checkpoint lies within the committed log.
    pub fn superblock(&mut self, committed: Lsn) -> Option<SuperblockImage> {
        unimplemented!()
    }
    /// The last image is on stable storage: its roots become current.
    pub fn superblock_durable(&mut self) {
        unimplemented!()
    }

    /// One slice of the walk over the retained roots that finds the free pages.
    pub fn walk_step(&mut self) -> WalkStep {
        unimplemented!()
    }

    /// Position of the shard's current durable checkpoint.
    pub fn checkpoint_lsn(&self, shard: ShardId) -> Lsn {
        unimplemented!()
    }
    /// The log is needed from here on, also if only the older superblock slot survives.
    pub fn redo_from(&self) -> Lsn {
        unimplemented!()
    }
    /// Position and digest of the shard's current durable root, comparable between nodes.
    pub fn root(&self, shard: ShardId) -> (Lsn, Digest) {
        unimplemented!()
    }
    /// The retained roots, newest first.
    pub fn roots(&self, shard: ShardId) -> Vec<(Lsn, Digest)> {
        unimplemented!()
    }
    pub fn memory(&self) -> StoreMemory {
        unimplemented!()
    }
    /// Delta memory is used up: take no more writes until a checkpoint is durable.
    pub fn delta_full(&self) -> bool {
        unimplemented!()
    }
    /// Bytes in the shard's active delta.
    pub fn delta_bytes(&self, shard: ShardId) -> usize {
        unimplemented!()
    }
}

/// Bytes reserved for one superblock slot; slot B starts here.
pub const SLOT_BYTES: u64 = 40 << 10;
/// How much of any value is known without reading its overflow pages.
pub const HEAD_BYTES: usize = 16;

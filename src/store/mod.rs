//! The store: V virtual shards over one file of copy-on-write pages. Sans-IO: the node reads and writes the pages.
//!
//! A shard is an ordered in-memory **delta** (changes since its last checkpoint) over an optional **frozen delta**
//! (the one being merged) over an immutable **B+tree** of 16 KiB pages. Look-ups go down through the three; a look-up
//! that needs a page which is not in memory returns [`Miss`] and has changed nothing. Pages are written only by
//! checkpoints, so the log alone makes a commit durable and no page is ever torn or rewritten in place.
//!
//! This room is *not* a database: it knows no commands, types, expiry, transactions or log. It does not decide when to
//! checkpoint, when something is committed, or whom to ask for a good copy of a damaged page.
//!
//! Invariants:
//! - a change above commit keeps its previous version until commit passes it; undo is strictly last in, first out,
//!   checkpoints included, so a demotion finds every delta as it was (protocol 2.6);
//! - a page is reachable from a durable superblock only if its checkpoint is committed, and it was written and flushed
//!   before the superblock was (protocol 7.1);
//! - no page reachable from a root that either superblock slot retains is ever reused; a page with a read or a
//!   write under way is not reused before that has come back; after a start, a page is free only when that is known;
//! - tree shape and root digest depend on log content alone: not on page numbers, caches, slices or cores;
//! - bytes from the disk are judged by the digest in their parent before anything looks at them.
//!
//! The price: delta memory between checkpoints (bounded by back-pressure, [`Store::delta_full`]), every touched leaf
//! rewritten once per checkpoint, four bytes of table per page of the file, and a walk over the inner pages (and the
//! leaves that name long values) after each start, because the free list is not stored. Nothing waits for that walk; until
//! it is over, the file may grow although it has free pages.

mod cache;
mod change;
mod checkpoint;
mod delta;
mod key;
mod look;
mod merge;
mod page;
mod pages;
mod recompute;
mod repair;
mod scrub;
mod space;
mod superblock;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::{BTreeMap, VecDeque};

pub use self::change::Top;
use self::change::UndoLog;
use self::checkpoint::{Active, Frozen, Pending};
use self::key::Key;
use self::pages::Pages;
pub use self::recompute::RecomputeStep;
pub use self::repair::{ChildSearch, Found, PageAsk, Rebuilt, Wanted};
pub use self::scrub::Scrubbed;
use self::superblock::{Root, Slot};
use self::walk::Walk;
use crate::base::limits::{KEY_BYTES_MAX, SHARDS_MAX, VALUE_BYTES_MAX};
use crate::base::{ClusterId, Digest, Lsn, ShardId, SharedSlice, Stamp};

/// Bytes reserved for one superblock slot; slot B starts here.
pub const SLOT_BYTES: u64 = 40 << 10;
/// How much of any value is known without reading its overflow pages.
pub const HEAD_BYTES: usize = 16;
/// Longest store key: an escaped user key, its end mark, tag and a short element.
pub const STORE_KEY_BYTES_MAX: usize = 2 * KEY_BYTES_MAX + 64;
/// Longest store value: a string and its head.
pub const STORE_VALUE_BYTES_MAX: usize = VALUE_BYTES_MAX + 64;

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

/// One slice of the walk that finds the free pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WalkStep {
    /// Read these pages and hand each to [`Store::walk_read`].
    Read(Vec<PageNo>),
    /// Reads are under way, or damaged pages are to be repaired first, or superblocks to be written that no longer name
    /// what was given up.
    Waiting,
    /// The budget of this slice is used up; call again.
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

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StoreError::BothSlotsBad => {
                f.write_str("both superblock slots are damaged: rebuild this node from a peer")
            }
            StoreError::OtherCluster(found) => {
                write!(f, "the superblock belongs to cluster {found}: wrong data folder")
            }
            StoreError::OtherShardCount(found) => {
                write!(f, "the store has {found} shards: the number is fixed at init")
            }
            StoreError::UnknownVersion(version) => {
                write!(f, "superblock of format version {version}: start a newer build of baton")
            }
        }
    }
}
impl std::error::Error for StoreError {}

/// Where the memory is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StoreMemory {
    pub delta_bytes: usize,
    pub frozen_bytes: usize,
    pub cache_bytes: usize,
    pub undo_bytes: usize,
}

/// One shard.
#[derive(Debug)]
struct Shard {
    top: Top,
    frozen: Option<Frozen>,
    /// Retained roots, newest first: the current one, and whatever a superblock slot or a pin still names.
    roots: Vec<Root>,
    /// Position of a checkpoint -> the pages that its tree no longer contains. Free once no older root is retained.
    garbage: VecDeque<(Lsn, Vec<PageNo>)>,
}

/// The shards of one node.
#[derive(Debug)]
pub struct Store {
    config: StoreConfig,
    shards: Vec<Shard>,
    undo: UndoLog,
    /// Tops that redo has taken out.
    tops_out: usize,
    pages: Pages,
    /// Bytes in all active and all frozen deltas.
    active_bytes: usize,
    frozen_bytes: usize,
    /// Shards with a checkpoint that is not durable yet.
    frozen_shards: usize,
    /// Frozen shards whose merge has not started, in order.
    queue: VecDeque<ShardId>,
    merge: Option<Active>,
    /// Entries of deltas that nobody needs any more, given back to the allocator slice by slice.
    rubbish: Vec<BTreeMap<Key, delta::Slot>>,
    merges_started: u64,
    flushes_started: u64,
    /// What the two slots on the disk say; `None` for one that is not whole.
    slots: [Option<Slot>; 2],
    pending: Option<Pending>,
    /// Roots kept for a reader of whole trees, with their number of pins.
    pins: BTreeMap<(ShardId, Lsn), u32>,
    walk: Option<Walk>,
    scrub: scrub::Scrub,
    recompute: Option<recompute::Recompute>,
}

impl Store {
    /// A fresh, empty store. Write [`Store::initial_superblocks`] before anything else.
    pub fn create(config: StoreConfig) -> Store {
        let roots = vec![vec![Root::EMPTY]; usize::from(config.shards)];
        let slot = |sequence| Slot { sequence, file_pages: 1, roots: roots.clone() };
        let slots = [Some(slot(0)), Some(slot(1))];
        Store::from_slots(config, slots)
    }

    /// The two slots of an empty store.
    pub fn initial_superblocks(&self) -> [SuperblockImage; 2] {
        [0, 1].map(|i: usize| {
            let slot = self.slots[i].as_ref().expect("a fresh store has both slots");
            assert!(slot.sequence == i as u64, "only a fresh store has initial superblocks");
            SuperblockImage {
                slot_offset: slot.offset(),
                data: slot.encode(self.config.cluster),
                covers: Vec::new(),
            }
        })
    }

    /// Opens from the two slots of the file `superblock` (each up to [`SLOT_BYTES`] long). The newest whole slot wins.
    /// Tell the length of the file `pages` with [`Store::pages_grown`]. Then the store is ready; drive
    /// [`Store::walk_step`] to `Done` meanwhile.
    pub fn open(
        config: StoreConfig,
        slot_a: Option<&[u8]>,
        slot_b: Option<&[u8]>,
    ) -> Result<Store, StoreError> {
        let decode = |i: u64, bytes: Option<&[u8]>| match bytes {
            None => Ok(None),
            Some(bytes) => {
                let slot = Slot::decode(bytes, config.cluster, config.shards)?;
                // A slot in the other's place is a misdirected write.
                Ok(slot.filter(|slot| slot.sequence % 2 == i))
            }
        };
        let slots = [decode(0, slot_a)?, decode(1, slot_b)?];
        if slots.iter().all(Option::is_none) {
            return Err(StoreError::BothSlotsBad);
        }
        let mut store = Store::from_slots(config, slots);
        let roots = store.shards.iter().map(|state| state.roots.clone());
        store.walk = Some(Walk::new(store.pages.space.taken_end(), roots));
        Ok(store)
    }

    fn from_slots(config: StoreConfig, slots: [Option<Slot>; 2]) -> Store {
        assert!((1..=SHARDS_MAX).contains(&config.shards), "the shard count was checked at init");
        let frontier = slots.iter().flatten().map(|s| s.file_pages).max().expect("a whole slot");
        let mut newest_first: Vec<&Slot> = slots.iter().flatten().collect();
        newest_first.sort_by_key(|slot| std::cmp::Reverse(slot.sequence));
        let shards = (0..usize::from(config.shards)).map(|i| {
            let mut roots: Vec<Root> = Vec::new();
            for root in newest_first.iter().flat_map(|slot| &slot.roots[i]) {
                if roots.iter().all(|kept| kept.at != root.at) {
                    roots.push(*root);
                }
            }
            Shard {
                top: Top { keys: roots[0].keys, ..Top::default() },
                frozen: None,
                roots,
                garbage: VecDeque::new(),
            }
        });
        Store {
            shards: shards.collect(),
            undo: UndoLog::default(),
            tops_out: 0,
            // How long the file is, the file says: a superblock is not believed in what becomes memory.
            pages: Pages::new(config.cache_bytes, frontier),
            active_bytes: 0,
            frozen_bytes: 0,
            frozen_shards: 0,
            queue: VecDeque::new(),
            merge: None,
            rubbish: Vec::new(),
            merges_started: 0,
            flushes_started: 0,
            slots,
            pending: None,
            pins: BTreeMap::new(),
            walk: None,
            scrub: scrub::Scrub::default(),
            recompute: None,
            config,
        }
    }

    /// Hands over the bytes of a page that a miss or a merge asked for. After damage the page is asked for
    /// again by whoever needs it: bring good bytes from a peer.
    ///
    /// The node reads a page at most once at a time: whoever asks for a page that is being read already, joins. Every
    /// page that was asked for is read sooner or later, also when its asker is gone: until then it is not reused.
    pub fn page_read(&mut self, page: PageNo, bytes: &[u8]) -> Result<(), PageDamage> {
        self.pages.page_read(page, bytes)
    }

    /// Every page that the missed look-up is known to need, the missed one first: read them together.
    pub fn wanted(&mut self, miss: Miss) -> Vec<PageNo> {
        self.pages.wanted(miss)
    }

    /// Keeps a page in memory until [`Store::release`], counted. The node holds what a parked command has missed, so
    /// that its next run gets further however small the cache is.
    pub fn hold(&mut self, page: PageNo) {
        self.pages.cache.hold(page);
    }

    pub fn release(&mut self, page: PageNo) {
        self.pages.cache.release(page);
    }

    /// Live user keys, exact, and the stamp a reader of the count must wait for.
    pub fn count(&self, shard: ShardId) -> (u64, Stamp) {
        let top = &self.shards[shard.index()].top;
        (top.keys, top.last)
    }

    /// The stamp of the shard's last change.
    pub fn last_stamp(&self, shard: ShardId) -> Stamp {
        self.shards[shard.index()].top.last
    }

    pub fn shards(&self) -> u16 {
        self.config.shards
    }

    pub fn memory(&self) -> StoreMemory {
        StoreMemory {
            delta_bytes: self.active_bytes,
            frozen_bytes: self.frozen_bytes,
            cache_bytes: self.pages.cache.bytes(),
            undo_bytes: self.undo.bytes(),
        }
    }

    /// Delta memory is used up: take no more writes until a checkpoint is durable.
    pub fn delta_full(&self) -> bool {
        self.active_bytes + self.frozen_bytes >= self.config.delta_bytes
    }

    /// Bytes in the shard's active delta.
    pub fn delta_bytes(&self, shard: ShardId) -> usize {
        self.shards[shard.index()].top.active.bytes()
    }
}

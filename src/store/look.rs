//! Look-ups and scans: active delta over frozen delta over tree.

use std::ops::Bound::{self, Excluded, Included, Unbounded};

use super::cache::{Cache, FrameIndex, Meaning};
use super::delta::Slot;
use super::key::Key;
use super::page::{self, Big, ValueAt};
use super::pages::Pages;
use super::superblock::Root;
use super::{Miss, Seen, Shard, Store};
use crate::base::{ShardId, Stamp};

/// Dead entries that one scan call may pass for each live one it may visit: a call stays short whatever was deleted.
const DEAD_PER_LIVE: usize = 16;

impl Shard {
    /// What the deltas say about a key; `None` leaves it to the tree.
    fn look(&self, key: &[u8]) -> Option<Seen<'_>> {
        self.top.active.look(key).or_else(|| self.frozen.as_ref().and_then(|frozen| frozen.delta.look(key)))
    }
}

/// What the tree holds under a key.
enum InTree {
    Absent,
    Inline(FrameIndex, usize),
    Long(FrameIndex, usize, Big),
}

impl Store {
    /// Looks a key up. A value longer than a page is assembled first, page by page.
    pub fn get(&mut self, shard: ShardId, key: &[u8]) -> Result<Seen<'_>, Miss> {
        let state = &self.shards[shard.index()];
        if let Some(seen) = state.look(key) {
            return Ok(seen);
        }
        let value = match tree_look(&mut self.pages, shard, &state.roots[0], key)? {
            InTree::Absent => None,
            InTree::Inline(leaf, i) => match self.pages.value_at(leaf, i) {
                ValueAt::Inline(bytes) => Some(bytes),
                ValueAt::Big(_) => unreachable!("just judged"),
            },
            InTree::Long(_, _, big) => {
                let frame = self.pages.big(shard, &big, key)?;
                Some(self.pages.cache.bytes_of(frame))
            }
        };
        Ok(Seen { value, stamp: Stamp::COMMITTED })
    }

    /// Like [`Store::get`], but the value may be cut after its first [`super::HEAD_BYTES`] bytes: enough for existence,
    /// type and expiry.
    pub fn head(&mut self, shard: ShardId, key: &[u8]) -> Result<Seen<'_>, Miss> {
        let state = &self.shards[shard.index()];
        if let Some(seen) = state.look(key) {
            return Ok(seen);
        }
        let value = match tree_look(&mut self.pages, shard, &state.roots[0], key)? {
            InTree::Absent => None,
            InTree::Inline(leaf, i) => match self.pages.value_at(leaf, i) {
                ValueAt::Inline(bytes) => Some(bytes),
                ValueAt::Big(_) => unreachable!("just judged"),
            },
            InTree::Long(leaf, i, _) => Some(page::leaf_big_head(self.pages.cache.bytes_of(leaf), i)),
        };
        Ok(Seen { value, stamp: Stamp::COMMITTED })
    }

    /// Visits at most `limit` live entries in key order; returns where to go on (`Included`), `None` at the end.
    /// After a miss what was visited counts for nothing: the whole call is made again. A call may end early, with a
    /// place to go on, when it meets many deleted entries.
    pub fn scan(
        &mut self,
        shard: ShardId,
        from: Bound<&[u8]>,
        limit: usize,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<Option<Vec<u8>>, Miss> {
        self.scan_with(shard, from, limit, true, visit)
    }

    /// Like [`Store::scan`], with values that may be cut after [`super::HEAD_BYTES`].
    pub fn scan_heads(
        &mut self,
        shard: ShardId,
        from: Bound<&[u8]>,
        limit: usize,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<Option<Vec<u8>>, Miss> {
        self.scan_with(shard, from, limit, false, visit)
    }

    fn scan_with(
        &mut self,
        shard: ShardId,
        from: Bound<&[u8]>,
        limit: usize,
        whole: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<Option<Vec<u8>>, Miss> {
        let mut low = match from {
            Unbounded => Vec::new(),
            Included(key) => key.to_vec(),
            // The next key in byte order.
            Excluded(key) => [key, &[0]].concat(),
        };
        let mut left = Left { live: limit, all: limit.saturating_mul(DEAD_PER_LIVE).saturating_add(1024) };
        loop {
            let state = &self.shards[shard.index()];
            let hidden =
                state.top.active.cleared() || state.frozen.as_ref().is_some_and(|f| f.delta.cleared());
            let leaf = if hidden { None } else { self.pages.leaf_and_end(shard, &state.roots[0], &low)? };
            let (leaf, end) = leaf.map_or((None, None), |(leaf, end)| (Some(leaf), end));
            let cache = &self.pages.cache;
            let stretch =
                Stretch { state, cache, leaf: leaf.map(|l| cache.bytes_of(l)), low: &low, end: &end };
            match stretch.visit(&mut left, whole, visit) {
                Stopped::AtEnd => {}
                Stopped::Before(key) => return Ok(Some(key)),
                Stopped::ForBig(big, key) => {
                    // The value is not in memory, so this is a miss.
                    self.pages.big(shard, &big, &key)?;
                    unreachable!("a value that was not found in the cache misses");
                }
            }
            match end {
                Some(end) => low = end.to_vec(),
                None => return Ok(None),
            }
        }
    }
}

fn tree_look(pages: &mut Pages, shard: ShardId, root: &Root, key: &[u8]) -> Result<InTree, Miss> {
    let Some(leaf) = pages.leaf(shard, root, key)? else { return Ok(InTree::Absent) };
    let (i, found) = page::leaf_search(pages.cache.bytes_of(leaf), key);
    if !found {
        return Ok(InTree::Absent);
    }
    Ok(match pages.value_at(leaf, i) {
        ValueAt::Inline(_) => InTree::Inline(leaf, i),
        ValueAt::Big(big) => InTree::Long(leaf, i, big),
    })
}

/// How much a scan call may still do.
struct Left {
    live: usize,
    all: usize,
}

enum Stopped {
    AtEnd,
    Before(Vec<u8>),
    ForBig(Big, Vec<u8>),
}

/// The part of a scan that one leaf covers: three sorted sequences, merged.
struct Stretch<'a> {
    state: &'a Shard,
    cache: &'a Cache,
    leaf: Option<&'a [u8]>,
    low: &'a [u8],
    end: &'a Option<Key>,
}

impl Stretch<'_> {
    fn visit(&self, left: &mut Left, whole: bool, visit: &mut dyn FnMut(&[u8], &[u8])) -> Stopped {
        let range = (Included(self.low), self.end.as_deref().map_or(Unbounded, Excluded));
        let frozen = self.state.frozen.as_ref().map(|frozen| &frozen.delta);
        let mut upper = self.state.top.active.map.range::<[u8], _>(range).peekable();
        let mut middle =
            frozen.map(|delta| delta.map.range::<[u8], _>(range)).into_iter().flatten().peekable();
        let mut lower = self.leaf.map_or(0, |leaf| page::leaf_search(leaf, self.low).0);
        loop {
            let in_leaf = self.leaf.filter(|leaf| lower < page::count(leaf));
            let leaf_key = in_leaf.map(|leaf| page::leaf_key(leaf, lower));
            let heads = [upper.peek().map(|(k, _)| &***k), middle.peek().map(|(k, _)| &***k), leaf_key];
            let Some(key) = heads.into_iter().flatten().min() else { return Stopped::AtEnd };
            if left.live == 0 || left.all == 0 {
                return Stopped::Before(key.to_vec());
            }
            left.all -= 1;
            let [in_upper, in_middle, in_lower] = heads.map(|head| head == Some(key));
            let live = |slot: &Slot, visit: &mut dyn FnMut(&[u8], &[u8]), left: &mut Left| {
                if let Some(value) = &slot.value {
                    visit(key, value);
                    left.live -= 1;
                }
            };
            if in_upper {
                let (_, slot) = upper.peek().expect("it has the key");
                live(slot, visit, left);
            } else if self.state.top.active.hides(key).is_some() {
                // Deleted in the active delta.
            } else if in_middle {
                let (_, slot) = middle.peek().expect("it has the key");
                live(slot, visit, left);
            } else if frozen.is_none_or(|delta| delta.hides(key).is_none()) {
                let leaf = in_leaf.expect("the key stands in the leaf");
                match page::leaf_value(leaf, lower) {
                    ValueAt::Inline(value) => visit(key, value),
                    ValueAt::Big(_) if !whole => visit(key, page::leaf_big_head(leaf, lower)),
                    ValueAt::Big(big) => match self.cache.peek(big.page, Meaning::value(big.digest)) {
                        Some(value) => visit(key, value),
                        None => return Stopped::ForBig(big, key.to_vec()),
                    },
                }
                left.live -= 1;
            }
            upper.next_if(|_| in_upper);
            middle.next_if(|_| in_middle);
            lower += usize::from(in_lower);
        }
    }
}

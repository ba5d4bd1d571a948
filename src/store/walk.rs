//! The walk: finds the pages that were free when the store was opened, because the free list is not stored. It goes on
//! beside everything else, in slices.
//!
//! No superblock names a page at or behind the **frontier**, so from there on pages are taken and freed as ever. Before
//! the frontier nothing is taken until it is known to be free. The walk visits every page that a root names which was
//! retained at the start, shard by shard, newest roots first. Inner pages are read, always from the disk; leaves only
//! where their parent says that they name long values. A page first met below an older root is garbage as of the
//! checkpoint that follows that root. What no root names is free: it is swept up at the end.
//!
//! The roots it goes by are those of the start, whatever checkpoints come meanwhile. Their trees stay as they are on the
//! disk: a page that a checkpoint drops before the walk has met it is **withheld**, and free when its shard is done. A
//! page that was met is never read again, so it is freed like any other. A damaged page waits for its repair, and its
//! shard with it; the other shards go on. A root that is given up keeps its pages until no superblock names it, so that
//! whatever a root on the disk names was never overwritten.

use std::collections::{BTreeMap, BTreeSet};

use super::key::Key;
use super::merge::bigs_of;
use super::page;
use super::pages::{Want, judge};
use super::superblock::Root;
use super::{PageDamage, PageNo, Store, WalkStep};
use crate::base::ShardId;

/// Words of the bitmap swept in one slice.
const SWEEP_WORDS: usize = 128;

/// The walk under way.
#[derive(Debug)]
pub(super) struct Walk {
    /// The first page that no superblock can name.
    frontier: u64,
    /// Pages of the file at the start that lie before the frontier.
    known: u64,
    /// One bit for each of them: whether it is accounted for. A superblock is not believed in what
    /// becomes memory.
    seen: Vec<u64>,
    /// The same for pages that a file cut short has lost.
    seen_lost: BTreeSet<PageNo>,
    trees: Vec<Tree>,
    reading: BTreeMap<PageNo, Reading>,
    /// The next word to sweep, once all trees are done.
    swept: usize,
}

#[derive(Debug)]
struct Reading {
    item: Item,
    /// The page was repaired meanwhile: what comes may be from before.
    again: bool,
}

/// The trees of one shard.
#[derive(Debug)]
struct Tree {
    /// Newest first, as they were at the start.
    roots: Vec<Root>,
    /// Which root is being visited; `None` before the first.
    pass: Option<usize>,
    stack: Vec<Item>,
    reading: usize,
    /// Pages that failed their check, to be read again when they are repaired.
    damaged: Vec<Item>,
    /// For each pass after the first: the pages first met in it.
    older: Vec<Vec<PageNo>>,
    /// The first pass in which a page was left unvisited: what is met later may stand in that tree too.
    given_up: Option<usize>,
    /// Dropped by a checkpoint since the start, and not met yet.
    withheld: Vec<PageNo>,
    done: bool,
}

#[derive(Debug, Clone)]
struct Item {
    shard: ShardId,
    page: PageNo,
    want: Want,
    /// The fence of a tree page, the key of a long value.
    key: Key,
}

impl Walk {
    pub fn new(frontier: u64, roots: impl Iterator<Item = Vec<Root>>) -> Walk {
        let tree = |roots| Tree {
            roots,
            pass: None,
            stack: Vec::new(),
            reading: 0,
            damaged: Vec::new(),
            older: Vec::new(),
            given_up: None,
            withheld: Vec::new(),
            done: false,
        };
        Walk {
            frontier,
            known: 0,
            seen: Vec::new(),
            seen_lost: BTreeSet::new(),
            trees: roots.map(tree).collect(),
            reading: BTreeMap::new(),
            swept: 0,
        }
    }

    /// The file had this many pages at the start.
    pub fn measured(&mut self, pages: u64) {
        if self.known == 0 {
            self.known = pages.min(self.frontier).max(1);
            self.seen = vec![0; self.known.div_ceil(64) as usize];
            // Page 0 is nobody's.
            self.seen.iter_mut().take(1).for_each(|word| *word |= 1);
        }
    }

    fn seen(&self, page: PageNo) -> bool {
        match self.seen.get((page.0 / 64) as usize) {
            Some(word) => word & (1 << (page.0 % 64)) != 0,
            None => self.seen_lost.contains(&page),
        }
    }

    /// A page number behind the frontier marks nothing: no tree of the start has one.
    fn mark(&mut self, shard: ShardId, page: PageNo) {
        if page.0 >= self.frontier || self.seen(page) {
            return;
        }
        match self.seen.get_mut((page.0 / 64) as usize) {
            Some(word) => *word |= 1 << (page.0 % 64),
            None => _ = self.seen_lost.insert(page),
        }
        let tree = &mut self.trees[shard.index()];
        if let Some(pass) = tree.pass.filter(|pass| *pass > 0) {
            tree.older[tree.given_up.unwrap_or(pass) - 1].push(page);
        }
    }

    /// Notes what stands in the tree, to be read, or met already when there is nothing below it to find.
    fn meet(&mut self, shard: ShardId, page: PageNo, want: Option<Want>, key: Key) {
        if self.seen(page) {
            return;
        }
        match want {
            None => self.mark(shard, page),
            Some(want) => self.trees[shard.index()].stack.push(Item { shard, page, want, key }),
        }
    }

    /// A checkpoint has dropped this page, and no retained root needs it. Says whether the walk still does.
    pub fn withhold(&mut self, shard: ShardId, page: PageNo) -> bool {
        if page.0 >= self.frontier || self.seen(page) {
            return false;
        }
        let tree = &mut self.trees[shard.index()];
        assert!(!tree.done, "whatever was dropped from a tree of the start was met in it");
        tree.withheld.push(page);
        true
    }

    /// Whether `child` may be the one that `parent` named when the store was opened, or has been given since. A page that
    /// is not accounted for may be free, and hold what it held in an earlier life; below a page that the walk has yet to
    /// visit that does no harm, because whatever stands there then is visited.
    pub fn may_be_child(&self, parent: PageNo, child: PageNo) -> bool {
        let to_come = parent.0 < self.frontier && !self.seen(parent);
        child.0 >= self.frontier || self.seen(child) || to_come
    }

    /// Whether `newest` is the root that the shard had at the start.
    pub fn starts_from(&self, shard: ShardId, newest: &Root) -> bool {
        self.trees[shard.index()].roots[0].at == newest.at
    }

    /// A repair has written the page in its place.
    pub fn repaired(&mut self, page: PageNo) {
        if let Some(reading) = self.reading.get_mut(&page) {
            reading.again = true;
        }
    }

    /// Lists what is below a page whose bytes are what its parent says.
    fn visit(&mut self, item: &Item, bytes: &[u8]) {
        let shard = item.shard;
        self.mark(shard, item.page);
        match item.want {
            Want::Node { level: 0, .. } => {
                for (key, big) in bigs_of(bytes) {
                    let whole = page::pages_of_big(big.len as usize) == 1;
                    self.meet(shard, big.page, (!whole).then_some(Want::BigHead(big)), key);
                }
            }
            Want::Node { level, .. } => {
                for (i, child) in (0..page::count(bytes)).map(|i| page::child(bytes, i)).enumerate() {
                    let fence = if i == 0 { item.key.clone() } else { child.fence };
                    self.meet(shard, child.page, want_node(level - 1, child.digest, child.overflow), fence);
                }
            }
            Want::BigHead(_) => page::big_rest(bytes).for_each(|(page, _)| self.mark(shard, page)),
            Want::BigRest { .. } => {}
        }
    }

    /// Starts on the next older root of the shard; `false` when there is none.
    fn next_pass(&mut self, shard: ShardId) -> bool {
        let tree = &mut self.trees[shard.index()];
        let pass = tree.pass.map_or(0, |pass| pass + 1);
        let Some(root) = tree.roots.get(pass).copied() else { return false };
        tree.pass = Some(pass);
        if pass > 0 {
            tree.older.push(Vec::new());
        }
        if !root.is_empty() {
            self.meet(shard, root.page, want_node(root.level, root.digest, root.overflow), Key::EMPTY);
        }
        true
    }
}

/// What must be read to go on below a tree page.
fn want_node(level: u8, digest: crate::base::Digest, overflow: bool) -> Option<Want> {
    (level > 0 || overflow).then_some(Want::Node { level, digest })
}

impl Store {
    /// Whether it is not known yet which pages were free at the start.
    pub fn walking(&self) -> bool {
        self.walk.is_some()
    }

    /// Whether the walk is waiting for nothing but the repair of damaged pages, or the next superblocks.
    pub fn walk_waits(&self) -> bool {
        self.walk.as_ref().is_some_and(|walk| {
            let waits = |tree: &Tree| tree.done || (tree.stack.is_empty() && !tree.damaged.is_empty());
            walk.reading.is_empty() && walk.swept == 0 && walk.trees.iter().all(waits)
        })
    }

    /// Whether a superblock, or one on its way, still names a root that was given up.
    fn names_given_up(&self) -> bool {
        let gone = |(state, roots): (&super::Shard, &Vec<Root>)| {
            let kept = |root: &Root| state.roots.iter().any(|kept| kept.at == root.at);
            roots.iter().any(|root| root.at < state.roots[0].at && !kept(root))
        };
        let slots = self.slots.iter().flatten().chain(self.pending.as_ref().map(|pending| &pending.slot));
        slots.into_iter().any(|slot| self.shards.iter().zip(&slot.roots).any(gone))
    }

    /// Whether the file has grown by a quarter since the start: the walk should be done soon.
    pub fn walk_pressed(&self) -> bool {
        let taken = self.pages.space.taken_end();
        self.walk
            .as_ref()
            .is_some_and(|walk| taken > walk.frontier + walk.frontier / 4 + super::space::GROW_MAX)
    }

    /// Shards whose pages are not all known yet; the last one counts until the free pages are.
    pub fn walk_shards_left(&self) -> u16 {
        let left = |walk: &Walk| walk.trees.iter().filter(|tree| !tree.done).count().max(1) as u16;
        self.walk.as_ref().map_or(0, left)
    }

    /// One slice of the walk: names at most `max` pages to read.
    pub fn walk_step(&mut self, max: usize) -> WalkStep {
        let mut pages = Vec::new();
        for shard in (0..self.config.shards).map(ShardId) {
            if pages.len() < max {
                self.walk_tree(shard, max, &mut pages);
            }
        }
        let Some(walk) = &self.walk else { return WalkStep::Done };
        if !pages.is_empty() {
            return WalkStep::Read(pages);
        }
        if walk.trees.iter().any(|tree| !tree.done) || (walk.swept == 0 && self.names_given_up()) {
            return WalkStep::Waiting;
        }
        match self.sweep() {
            true => WalkStep::Working,
            false => {
                self.walk = None;
                WalkStep::Done
            }
        }
    }

    /// Moves one shard on: names pages to read, and ends its passes.
    fn walk_tree(&mut self, shard: ShardId, max: usize, pages: &mut Vec<PageNo>) {
        loop {
            let Some(walk) = self.walk.as_mut().filter(|walk| !walk.trees[shard.index()].done) else {
                return;
            };
            while pages.len() < max
                && let Some(item) = walk.trees[shard.index()].stack.pop()
            {
                let page = item.page;
                if walk.seen(page) {
                    continue;
                }
                if walk.reading.contains_key(&page) {
                    // Only where two links that cannot both be right name one page. One after the other.
                    walk.trees[shard.index()].stack.push(item);
                    return;
                }
                walk.trees[shard.index()].reading += 1;
                walk.reading.insert(page, Reading { item, again: false });
                pages.push(page);
            }
            let tree = &walk.trees[shard.index()];
            if !tree.stack.is_empty() || tree.reading > 0 {
                return;
            }
            if !tree.damaged.is_empty() {
                if !self.look_at_damaged(shard) {
                    return;
                }
            } else if !walk.next_pass(shard) {
                return self.end_tree(shard);
            }
        }
    }

    /// Damaged pages that were repaired are read again, and those of a tree that nobody needs are given up. Says whether
    /// there were any.
    fn look_at_damaged(&mut self, shard: ShardId) -> bool {
        let give_up = self.walk_may_give_up(shard);
        let Some(walk) = &mut self.walk else { return false };
        let damaged = std::mem::take(&mut walk.trees[shard.index()].damaged);
        let count = damaged.len();
        for item in damaged {
            let Some(walk) = &mut self.walk else { return false };
            if give_up {
                self.give_up(&item);
            } else if self.pages.damaged.contains_key(&item.page) {
                walk.trees[shard.index()].damaged.push(item);
            } else {
                walk.trees[shard.index()].stack.push(item);
            }
        }
        self.walk.as_ref().is_some_and(|walk| walk.trees[shard.index()].damaged.len() < count)
    }

    /// Whether the tree that is being visited may be left with a damaged part: it is kept as evidence alone, because no
    /// superblock falls back to it, and nobody reads it. The newest is never given up: later trees share its pages.
    fn walk_may_give_up(&self, shard: ShardId) -> bool {
        let Some(tree) = self.walk.as_ref().map(|walk| &walk.trees[shard.index()]) else { return false };
        let Some(pass) = tree.pass.filter(|pass| *pass > 0) else { return false };
        let at = tree.roots[pass].at;
        let pinned = self.pins.range((shard, crate::base::Lsn::ZERO)..=(shard, at)).next().is_some();
        let mut current = self.slots.iter().flatten().map(|slot| slot.roots[shard.index()][0].at);
        !pinned && current.all(|current| at < current)
    }

    /// Judges one page that [`Store::walk_step`] asked for; no bytes at all for a page that could not be read.
    pub fn walk_read(&mut self, page: PageNo, bytes: &[u8]) -> Result<(), PageDamage> {
        let Some(walk) = &mut self.walk else { return Ok(()) };
        let Some(Reading { item, again }) = walk.reading.remove(&page) else { return Ok(()) };
        let shard = item.shard;
        walk.trees[shard.index()].reading -= 1;
        if again {
            walk.trees[shard.index()].stack.push(item);
            return Ok(());
        }
        match judge(page, bytes, shard, &item.want) {
            // Its repair may be about to give it other links.
            Ok(()) if self.pages.damaged.contains_key(&page) => {
                walk.trees[shard.index()].damaged.push(item);
                Ok(())
            }
            Ok(()) => {
                walk.visit(&item, bytes);
                Ok(())
            }
            Err(what) => {
                if self.walk_may_give_up(shard) {
                    self.give_up(&item);
                } else if let Some(walk) = &mut self.walk {
                    self.pages.note_damage(shard, page, item.want, item.key.clone());
                    walk.trees[shard.index()].damaged.push(item);
                }
                Err(PageDamage { shard, page, what })
            }
        }
    }

    /// Leaves a damaged page unvisited. Nobody goes down this tree again, and no later superblock names it: then what is
    /// below that page may be free.
    fn give_up(&mut self, item: &Item) {
        let Some(walk) = &mut self.walk else { return };
        walk.mark(item.shard, item.page);
        let tree = &mut walk.trees[item.shard.index()];
        let pass = tree.pass.expect("it is being visited");
        tree.given_up.get_or_insert(pass);
        let at = tree.roots[pass].at;
        self.shards[item.shard.index()].roots.retain(|root| root.at > at);
    }

    /// All that the shard's roots named at the start was met.
    fn end_tree(&mut self, shard: ShardId) {
        let Some(walk) = &mut self.walk else { return };
        let tree = &mut walk.trees[shard.index()];
        tree.done = true;
        let state = &mut self.shards[shard.index()];
        // Before whatever checkpoints since the start have dropped, the oldest in front.
        for (root, pages) in tree.roots.iter().zip(std::mem::take(&mut tree.older)) {
            state.garbage.push_front((root.at, pages));
        }
        let withheld = std::mem::take(&mut tree.withheld);
        assert!(withheld.iter().all(|page| walk.seen(*page)), "what was dropped stood in a tree");
        withheld.into_iter().for_each(|page| self.pages.free(page));
        self.collect_garbage(shard);
    }

    /// Frees some of the pages that no tree named. Says whether there may be more.
    fn sweep(&mut self) -> bool {
        let Some(walk) = &mut self.walk else { return false };
        let words = walk.seen.iter_mut().enumerate().skip(walk.swept).take(SWEEP_WORDS);
        for (i, word) in words {
            let mut unseen = !std::mem::replace(word, u64::MAX);
            while unseen != 0 {
                let page = i as u64 * 64 + u64::from(unseen.trailing_zeros());
                unseen &= unseen - 1;
                if page < walk.known {
                    self.pages.free(PageNo(page));
                }
            }
        }
        walk.swept += SWEEP_WORDS;
        walk.swept < walk.seen.len()
    }
}

//! The walk at start: finds the free pages, because the free list is not stored.
//!
//! It visits every page that a retained root names, newest roots first. Inner pages are read; leaves only where
//! their parent says that they name long values. A page first met below an older root is garbage as of the checkpoint
//! that follows that root.

use super::key::Key;
use super::merge::bigs_of;
use super::page::{self, Big};
use super::pages::Want;
use super::{PageNo, Store, WalkStep};
use crate::base::{Digest, ShardId};

/// Pages asked for together, and visited in one slice.
const TOGETHER: usize = 64;

/// The walk under way.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// Length of the file, as the node has seen it.
    pub file_pages: u64,
    /// Which roots are being visited: 0 = the newest of each shard.
    pass: usize,
    started: bool,
    stack: Vec<Item>,
    /// One bit per page.
    seen: Vec<u64>,
    /// Pages first met in the present pass, by shard.
    met: Vec<Vec<PageNo>>,
    /// For each pass after the first, `met` at its end.
    older: Vec<Vec<Vec<PageNo>>>,
    /// Roots that no superblock falls back to, and that have a damaged page: they are given up rather than waited for.
    given_up: Vec<(ShardId, usize)>,
}

/// From this age on a root is kept as evidence only: a superblock falls back to the one before the newest at most.
const EVIDENCE: usize = 2;

#[derive(Debug, Clone)]
enum Item {
    Node { shard: ShardId, page: PageNo, level: u8, digest: Digest, overflow: bool, fence: Key },
    Big { shard: ShardId, big: Big, key: Key },
}

impl Item {
    fn shard(&self) -> ShardId {
        match self {
            Item::Node { shard, .. } | Item::Big { shard, .. } => *shard,
        }
    }

    fn key(&self) -> &Key {
        match self {
            Item::Node { fence, .. } => fence,
            Item::Big { key, .. } => key,
        }
    }

    fn page(&self) -> PageNo {
        match self {
            Item::Node { page, .. } => *page,
            Item::Big { big, .. } => big.page,
        }
    }

    /// What must be read to go on below it.
    fn want(&self) -> Option<Want> {
        match self {
            Item::Node { level: 0, overflow: false, .. } => None,
            Item::Node { level, digest, .. } => Some(Want::Node { level: *level, digest: *digest }),
            Item::Big { big, .. } if page::pages_of_big(big.len as usize) == 1 => None,
            Item::Big { big, .. } => Some(Want::BigHead(*big)),
        }
    }
}

impl Walk {
    fn seen(&self, page: PageNo) -> bool {
        self.seen.get((page.0 / 64) as usize).is_some_and(|word| word & (1 << (page.0 % 64)) != 0)
    }

    /// A page number beyond the file marks nothing: it can never be handed out either.
    fn mark(&mut self, shard: ShardId, page: PageNo) {
        if let Some(word) = self.seen.get_mut((page.0 / 64) as usize) {
            *word |= 1 << (page.0 % 64);
            self.met[shard.index()].push(page);
        }
    }
}

impl Store {
    /// Whether the walk at start is not done yet.
    pub fn walking(&self) -> bool {
        self.walk.is_some()
    }

    /// One slice of the walk over the retained roots that finds the free pages.
    pub fn walk_step(&mut self) -> WalkStep {
        let Some(mut walk) = self.walk.take() else { return WalkStep::Done };
        if walk.seen.is_empty() {
            self.pages.space.measured(walk.file_pages);
            walk.seen = vec![0; self.pages.space.file_pages().div_ceil(64) as usize];
        }
        for _ in 0..TOGETHER {
            let Some(item) = walk.stack.pop() else {
                if self.next_pass(&mut walk) {
                    continue;
                }
                self.end_walk(walk);
                return WalkStep::Done;
            };
            if walk.seen(item.page()) {
                continue;
            }
            if !self.visit(&mut walk, &item) {
                walk.stack.push(item);
                for later in walk.stack.iter().rev().take(TOGETHER).filter(|i| !walk.seen(i.page())) {
                    if let Some(want) = later.want() {
                        self.pages.foresee(later.shard(), later.page(), want, later.key(), false);
                    }
                }
                self.walk = Some(walk);
                return match self.pages.take_asks() {
                    asks if asks.is_empty() => WalkStep::Waiting,
                    asks => WalkStep::NeedPages(asks),
                };
            }
        }
        self.walk = Some(walk);
        WalkStep::Working
    }

    /// Marks one page and lists what is below it. Says `false` when its bytes are not here yet.
    fn visit(&mut self, walk: &mut Walk, item: &Item) -> bool {
        let shard = item.shard();
        let bytes = match item.want() {
            None => None,
            Some(_) if walk.pass >= EVIDENCE && self.pages.damaged.contains_key(&item.page()) => {
                self.pages.damaged.remove(&item.page());
                walk.given_up.push((shard, walk.pass));
                None
            }
            Some(want) => match self.pages.fetch(shard, item.page(), want, item.key(), false) {
                None => return false,
                some => some,
            },
        };
        walk.mark(shard, item.page());
        match (item, bytes) {
            (_, None) => {}
            (Item::Node { level: 0, .. }, Some(bytes)) => {
                walk.stack.extend(bigs_of(&bytes).map(|(key, big)| Item::Big { shard, big, key }));
            }
            (Item::Node { level, fence, .. }, Some(bytes)) => {
                for (i, child) in (0..page::count(&bytes)).map(|i| page::child(&bytes, i)).enumerate() {
                    let (digest, overflow) = (child.digest, child.overflow);
                    let fence = if i == 0 { fence.clone() } else { child.fence };
                    walk.stack.push(Item::Node {
                        shard,
                        page: child.page,
                        level: level - 1,
                        digest,
                        overflow,
                        fence,
                    });
                }
            }
            (Item::Big { .. }, Some(bytes)) => {
                page::big_rest(&bytes).for_each(|(page, _)| walk.mark(shard, page));
            }
        }
        true
    }

    /// Starts on the next older root of each shard; `false` when there is none.
    fn next_pass(&self, walk: &mut Walk) -> bool {
        let met = std::mem::replace(&mut walk.met, vec![Vec::new(); self.shards.len()]);
        if walk.started {
            if walk.pass > 0 {
                walk.older.push(met);
            }
            walk.pass += 1;
        }
        walk.started = true;
        let mut any = false;
        for (i, state) in self.shards.iter().enumerate() {
            let Some(root) = state.roots.get(walk.pass) else { continue };
            any = true;
            if !root.is_empty() {
                walk.stack.push(Item::Node {
                    shard: ShardId(i as u16),
                    page: root.page,
                    level: root.level,
                    digest: root.digest,
                    overflow: root.overflow,
                    fence: Key::EMPTY,
                });
            }
        }
        any
    }

    fn end_walk(&mut self, mut walk: Walk) {
        for (i, state) in self.shards.iter_mut().enumerate() {
            for age in (1..state.roots.len()).rev() {
                let pages = std::mem::take(&mut walk.older[age - 1][i]);
                state.garbage.push_back((state.roots[age - 1].at, pages));
            }
        }
        for (shard, age) in walk.given_up.drain(..) {
            // Pages below the damaged one may be free: nobody goes down this tree again.
            self.shards[shard.index()].roots.truncate(age);
        }
        let known = self.pages.space.file_pages();
        (1..known)
            .map(PageNo)
            .filter(|page| !walk.seen(*page))
            .for_each(|page| self.pages.space.set_free(page));
        self.pages.forget_worker();
        (0..self.config.shards).for_each(|shard| self.collect_garbage(ShardId(shard)));
    }
}

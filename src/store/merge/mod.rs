//! The merge: a pure function (old tree, frozen delta) -> new tree, carried out in slices.
//!
//! It walks the old tree depth first. A subtree that no change touches is passed on by reference, unread. A touched
//! leaf is merged with its part of the delta and packed into new leaves; a touched inner page gets the list of its
//! new children and is packed likewise. On the way to the parent, underfull new pages join a neighbour. At the top
//! the list grows new levels until one page is left, and single-child roots vanish.
//!
//! Every decision looks at keys, sizes and order alone, so all nodes get equal shapes and digests; page numbers, cache
//! state and slice sizes never enter. Memory is bounded by one list of children per level plus two pages of entries.

mod leaf;
mod pack;

use std::collections::{BTreeMap, VecDeque};

use self::leaf::{LeafStep, LeafWork};
use self::pack::{Body, Node};
use super::PageNo;
use super::cache::Meaning;
use super::delta::Delta;
use super::key::Key;
use super::page::{self, Big, Child};
use super::pages::{Pages, Want};
use super::superblock::Root;
use crate::base::{Lsn, ShardId};

/// Children asked for ahead of need.
const FORESEEN: usize = 16;

/// Why a slice cannot go on. Nothing was lost; the same step is taken again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// A page was asked for.
    Page,
    /// The file has no free page.
    Space,
}

/// What a merge works with.
pub(super) struct Env<'a> {
    pub pages: &'a mut Pages,
    pub delta: &'a Delta,
    pub shard: ShardId,
    pub at: Lsn,
    pub output: &'a mut Output,
    /// Work done in this slice: about eight per page.
    pub work: usize,
    /// Only the digest is wanted: nothing is written, and of the old tree only the disk is believed.
    pub dry: bool,
}

/// Page numbers of a dry merge: no file has them.
const DRY_PAGES: u64 = 1 << 48;

/// Pages made so far.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// Not yet handed to the node.
    pub fresh: Vec<(PageNo, Vec<u8>)>,
    /// All of this merge.
    pub made: Vec<PageNo>,
    dry_pages: u64,
}

impl Env<'_> {
    fn take(&mut self) -> Result<PageNo, Stop> {
        if self.dry {
            self.output.dry_pages += 1;
            return Ok(PageNo(DRY_PAGES + self.output.dry_pages));
        }
        let page = self.pages.space.take().ok_or(Stop::Space)?;
        self.output.made.push(page);
        Ok(page)
    }

    /// Hands a made page over; tree pages are kept in the cache, where their readers will look for them.
    fn emit(&mut self, number: PageNo, bytes: Vec<u8>, tree: Option<Meaning>) {
        self.work += 8;
        if self.dry {
            return;
        }
        if let Some(meaning) = tree {
            self.pages.cache.insert(number, meaning, &bytes, page::level(&bytes) > 0);
        }
        self.output.fresh.push((number, bytes));
    }

    fn node(&mut self, child: &Child, level: u8) -> Result<Vec<u8>, Stop> {
        self.work += 8;
        let want = Want::Node { level, digest: child.digest };
        self.pages.fetch(self.shard, child.page, want, &child.fence, self.dry).ok_or(Stop::Page)
    }

    fn foresee(&mut self, child: &Child, level: u8) {
        let want = Want::Node { level, digest: child.digest };
        self.pages.foresee(self.shard, child.page, want, &child.fence, self.dry);
    }
}

/// Collects the nodes of one level in key order.
#[derive(Debug)]
struct Sink {
    level: u8,
    incoming: VecDeque<Node>,
    /// The last node, which the next one may join.
    pending: Option<Node>,
    done: Vec<Child>,
}

impl Sink {
    fn new(level: u8) -> Sink {
        Sink { level, incoming: VecDeque::new(), pending: None, done: Vec::new() }
    }
}

/// An inner page of the old tree on the way down.
#[derive(Debug)]
struct InnerWork {
    own: Child,
    high: Option<Key>,
    children: Vec<Child>,
    next: usize,
    /// Collects the new children.
    sink: Sink,
}

/// Old pages that the new tree no longer names, to be listed so that they can be freed.
#[derive(Debug)]
enum Dropped {
    Subtree { level: u8, child: Child },
    Big(Key, Big),
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Enter,
    Descend,
    Drop,
    Finished,
}

/// One merge under way.
#[derive(Debug)]
pub(super) struct Job {
    phase: Phase,
    old: Root,
    stack: Vec<InnerWork>,
    leaf: Option<LeafWork>,
    top: Sink,
    to_drop: Vec<Dropped>,
    /// Pages of the old tree that the new one does not contain.
    pub dropped: Vec<PageNo>,
    /// New inner pages with a single child: the root may collapse through them.
    single: BTreeMap<PageNo, Child>,
    new_root: Option<(Child, u8)>,
}

impl Job {
    pub fn new(old: Root) -> Job {
        Job {
            phase: Phase::Enter,
            old,
            stack: Vec::new(),
            leaf: None,
            top: Sink::new(old.level),
            to_drop: Vec::new(),
            dropped: Vec::new(),
            single: BTreeMap::new(),
            new_root: None,
        }
    }

    /// The new tree's root, its position and key count filled in by the caller.
    pub fn root(&self, at: Lsn, keys: u64) -> Root {
        assert_eq!(self.phase, Phase::Finished);
        match &self.new_root {
            None => Root { at, keys, ..Root::EMPTY },
            Some((child, level)) => Root {
                page: child.page,
                digest: child.digest,
                at,
                keys,
                level: *level,
                overflow: child.overflow,
            },
        }
    }

    /// One step, about one page of work. Says whether the merge is finished.
    pub fn step(&mut self, env: &mut Env<'_>) -> Result<bool, Stop> {
        match self.phase {
            Phase::Enter => self.enter(env)?,
            Phase::Descend => {
                if self.pump(env)? {
                    return Ok(false);
                }
                if self.leaf.is_some() {
                    self.leaf_step(env)?;
                } else if let Some(work) = self.stack.last() {
                    if work.next < work.children.len() {
                        self.next_child(env)?
                    } else {
                        self.close_inner(env)?
                    }
                } else {
                    self.close_top(env)?;
                }
            }
            Phase::Drop => self.drop_step(env)?,
            Phase::Finished => return Ok(true),
        }
        Ok(self.phase == Phase::Finished)
    }

    fn sink(&mut self) -> &mut Sink {
        match self.stack.last_mut() {
            Some(work) => &mut work.sink,
            None => &mut self.top,
        }
    }

    fn enter(&mut self, env: &mut Env<'_>) -> Result<(), Stop> {
        let own = Child {
            fence: Key::EMPTY,
            page: self.old.page,
            digest: self.old.digest,
            birth: Lsn::ZERO,
            entries: 0,
            size: 0,
            // Unknown but for one thing: a root with a single child would have collapsed.
            count: 0,
            overflow: self.old.overflow,
        };
        let level = self.old.level;
        if !env.delta.touches(&[], None) {
            self.new_root = (!self.old.is_empty()).then_some((own, level));
            self.phase = Phase::Finished;
            return Ok(());
        }
        if self.old.is_empty() || env.delta.cleared() {
            if !self.old.is_empty() {
                self.to_drop.push(Dropped::Subtree { level, child: own });
            }
            self.top = Sink::new(0);
            self.leaf = Some(LeafWork::new(None, Key::EMPTY, None));
        } else {
            self.descend(env, own, level, None)?;
        }
        self.phase = Phase::Descend;
        Ok(())
    }

    /// Starts on a touched old page.
    fn descend(&mut self, env: &mut Env<'_>, own: Child, level: u8, high: Option<Key>) -> Result<(), Stop> {
        let bytes = env.node(&own, level)?;
        if level == 0 {
            let fence = own.fence.clone();
            self.leaf = Some(LeafWork::new(Some((own, bytes)), fence, high));
            return Ok(());
        }
        let children = children_of(&bytes, &own.fence);
        self.stack.push(InnerWork { own, high, children, next: 0, sink: Sink::new(level - 1) });
        Ok(())
    }

    fn next_child(&mut self, env: &mut Env<'_>) -> Result<(), Stop> {
        let work = self.stack.last_mut().expect("an inner page is open");
        let level = work.sink.level;
        let child = work.children[work.next].clone();
        let high = work.range_end(work.next);
        let (low, end) = (&child.fence[..], high.as_deref());
        if !env.delta.touches(low, end) {
            work.next += 1;
            work.sink.incoming.push_back(Node::Old(child));
        } else if env.delta.covers(low, end) && !env.delta.has_entries(low, end) {
            work.next += 1;
            self.to_drop.push(Dropped::Subtree { level, child });
        } else {
            let next = work.next;
            let found = self.descend(env, child, level, high);
            if found.is_err() {
                self.foresee(env, next + 1, level);
            } else {
                let depth = if level == 0 { self.stack.len() - 1 } else { self.stack.len() - 2 };
                self.stack[depth].next += 1;
            }
            return found;
        }
        Ok(())
    }

    /// Asks for the next touched children together with the one that is missing.
    fn foresee(&self, env: &mut Env<'_>, from: usize, level: u8) {
        let work = self.stack.last().expect("an inner page is open");
        let (mut i, mut asked) = (from, 0);
        // Only a stretch of the page is looked at, so that a slice stays a slice.
        while i < work.children.len() && i < from + 4 * FORESEEN && asked < FORESEEN {
            let child = &work.children[i];
            let end = work.range_end(i);
            if env.delta.has_entries(&child.fence, end.as_deref()) {
                env.foresee(child, level);
                asked += 1;
            }
            i += 1;
        }
    }

    fn leaf_step(&mut self, env: &mut Env<'_>) -> Result<(), Stop> {
        let work = self.leaf.as_mut().expect("a leaf is open");
        match work.step(env)? {
            LeafStep::Working => {}
            LeafStep::Made(node) => self.sink().incoming.push_back(node),
            LeafStep::Done { changed } => {
                let work = self.leaf.take().expect("a leaf is open");
                self.to_drop.extend(work.dropped.into_iter().map(|(key, big)| Dropped::Big(key, big)));
                match work.old {
                    Some((own, _)) if !changed => self.sink().incoming.push_back(Node::Old(own)),
                    Some((own, _)) => self.dropped.push(own.page),
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// Moves one incoming node of the open level on. Says whether there was one.
    fn pump(&mut self, env: &mut Env<'_>) -> Result<bool, Stop> {
        let sink = self.sink();
        let level = sink.level;
        let Some(right) = sink.incoming.front() else { return Ok(false) };
        match &sink.pending {
            None => sink.pending = sink.incoming.pop_front(),
            Some(left) if pack::joins(left, right, level) => {
                // At most one of the two is an old page: read it before anything is changed.
                let old = [left, right].into_iter().find_map(|n| match n {
                    Node::Old(child) => Some(child.clone()),
                    Node::New { .. } => None,
                });
                let old_body = match &old {
                    Some(child) => Some(body_of(&env.node(child, level)?, &child.fence)),
                    None => None,
                };
                let sink = self.sink();
                let left = sink.pending.take().expect("just seen");
                let right = sink.incoming.pop_front().expect("just seen");
                sink.pending = Some(joined(left, right, old_body));
                self.dropped.extend(old.map(|child| child.page));
            }
            Some(_) => {
                self.settle_pending(env)?;
                let sink = self.sink();
                sink.pending = sink.incoming.pop_front();
            }
        }
        Ok(true)
    }

    /// Makes the pending node's page and lists it among the finished children.
    fn settle_pending(&mut self, env: &mut Env<'_>) -> Result<(), Stop> {
        let sink = self.sink();
        let level = sink.level;
        let made = match &sink.pending {
            None => return Ok(()),
            Some(Node::Old(_)) => None,
            Some(Node::New { fence, body, cost }) => Some(make(env, level, fence, body, *cost)?),
        };
        let child = match (sink.pending.take().expect("just seen"), made) {
            (Node::New { body: Body::Inner(children), .. }, Some(child)) if children.len() == 1 => {
                let only = children.into_iter().next().expect("one child");
                sink.done.push(child.clone());
                self.single.insert(child.page, only);
                return Ok(());
            }
            (Node::Old(child), _) | (Node::New { .. }, Some(child)) => child,
            (Node::New { .. }, None) => unreachable!("a new node was made"),
        };
        sink.done.push(child);
        Ok(())
    }

    fn close_inner(&mut self, env: &mut Env<'_>) -> Result<(), Stop> {
        self.settle_pending(env)?;
        let work = self.stack.pop().expect("an inner page is open");
        let mut children = work.sink.done;
        let same = children.len() == work.children.len()
            && children.iter().zip(&work.children).all(|(new, old)| new.page == old.page);
        if same {
            self.sink().incoming.push_back(Node::Old(work.own));
            return Ok(());
        }
        self.dropped.push(work.own.page);
        if let Some(first) = children.first_mut() {
            // The page's own fence bounds its first child from below, whoever was first before.
            first.fence = work.own.fence;
        }
        self.sink().incoming.extend(pack::pack_inner(children));
        Ok(())
    }

    /// The list at the top becomes one page, or grows another level.
    fn close_top(&mut self, env: &mut Env<'_>) -> Result<(), Stop> {
        let level = self.top.level;
        if self.top.done.is_empty()
            && let Some(Node::New { body: Body::Inner(children), .. }) = &self.top.pending
            && let [only] = &children[..]
        {
            let only = only.clone();
            self.top = Sink::new(level - 1);
            self.top.pending = Some(Node::Old(only));
            return Ok(());
        }
        self.settle_pending(env)?;
        match self.top.done.len() {
            0 => self.phase = Phase::Drop,
            1 => return self.collapse(env),
            _ => {
                let mut children = std::mem::take(&mut self.top.done);
                children[0].fence = Key::EMPTY;
                self.top = Sink::new(level + 1);
                self.top.incoming.extend(pack::pack_inner(children));
            }
        }
        Ok(())
    }

    /// A root with a single child gives way to it.
    fn collapse(&mut self, env: &mut Env<'_>) -> Result<(), Stop> {
        let (root, level) = (self.top.done[0].clone(), self.top.level);
        if level == 0 || root.count != 1 {
            self.new_root = Some((root, level));
            self.phase = Phase::Drop;
            return Ok(());
        }
        let only = match self.single.get(&root.page) {
            Some(only) => only.clone(),
            None => page::child(&env.node(&root, level)?, 0),
        };
        self.dropped.push(root.page);
        self.top = Sink::new(level - 1);
        self.top.done.push(only);
        Ok(())
    }

    /// Lists the pages of one dropped page's subtree or long value.
    fn drop_step(&mut self, env: &mut Env<'_>) -> Result<(), Stop> {
        let found = match self.to_drop.last().filter(|_| !env.dry) {
            None => {
                self.phase = Phase::Finished;
                return Ok(());
            }
            Some(Dropped::Subtree { level: 0, child }) if !child.overflow => (child.page, Vec::new()),
            Some(Dropped::Subtree { level: 0, child }) => {
                let bytes = env.node(child, 0);
                let bytes = bytes.inspect_err(|_| self.foresee_drops(env))?;
                (child.page, bigs_of(&bytes).map(|(key, big)| Dropped::Big(key, big)).collect())
            }
            Some(Dropped::Subtree { level, child }) => {
                let bytes = env.node(child, *level);
                let bytes = bytes.inspect_err(|_| self.foresee_drops(env))?;
                let below = children_of(&bytes, &child.fence);
                let below = below.into_iter().map(|child| Dropped::Subtree { level: level - 1, child });
                (child.page, below.collect())
            }
            Some(Dropped::Big(_, big)) if page::pages_of_big(big.len as usize) == 1 => (big.page, Vec::new()),
            Some(Dropped::Big(key, big)) => {
                let head = env.pages.fetch(env.shard, big.page, Want::BigHead(*big), key, false);
                let head = head.ok_or(Stop::Page).inspect_err(|_| self.foresee_drops(env))?;
                self.dropped.extend(page::big_rest(&head).map(|(page, _)| page));
                (big.page, Vec::new())
            }
        };
        self.to_drop.pop();
        self.dropped.push(found.0);
        self.to_drop.extend(found.1);
        Ok(())
    }

    fn foresee_drops(&self, env: &mut Env<'_>) {
        for dropped in self.to_drop.iter().rev().skip(1).take(FORESEEN) {
            match dropped {
                Dropped::Subtree { level, child } if *level > 0 || child.overflow => {
                    env.foresee(child, *level);
                }
                Dropped::Big(key, big) if page::pages_of_big(big.len as usize) > 1 => {
                    env.pages.foresee(env.shard, big.page, Want::BigHead(*big), key, false);
                }
                _ => {}
            }
        }
    }
}

impl InnerWork {
    fn range_end(&self, i: usize) -> Option<Key> {
        self.children.get(i + 1).map_or_else(|| self.high.clone(), |next| Some(next.fence.clone()))
    }
}

fn joined(left: Node, right: Node, mut old_body: Option<Body>) -> Node {
    let mut parts = |node: Node| match node {
        Node::New { fence, body, .. } => (fence, body),
        Node::Old(child) => (child.fence, old_body.take().expect("the old page was read")),
    };
    let (left_fence, left_body) = parts(left);
    let (right_fence, right_body) = parts(right);
    Node::new(left_fence, pack::join(left_body, right_body, right_fence))
}

fn make(env: &mut Env<'_>, level: u8, fence: &Key, body: &Body, cost: usize) -> Result<Child, Stop> {
    let number = env.take()?;
    let (bytes, entries, overflow) = match body {
        Body::Leaf(entries) => {
            let overflow = entries.iter().any(|e| matches!(e.value, page::Value::Big(_)));
            (page::make_leaf(env.shard, env.at, number, entries), entries.len() as u64, overflow)
        }
        Body::Inner(children) => {
            let entries = children.iter().map(|c| c.entries).sum();
            let overflow = children.iter().any(|c| c.overflow);
            (page::make_inner(env.shard, env.at, number, level, children), entries, overflow)
        }
    };
    let page_level = page::level(&bytes);
    let child = Child {
        fence: fence.clone(),
        page: number,
        digest: page::content_digest(&bytes),
        birth: env.at,
        entries,
        size: cost as u16,
        count: page::count(&bytes) as u16,
        overflow,
    };
    env.emit(number, bytes, Some(Meaning::node(child.digest, page_level)));
    Ok(child)
}

/// The children of an old inner page; `fence` is the page's own.
fn children_of(bytes: &[u8], fence: &Key) -> Vec<Child> {
    let mut children: Vec<Child> = (0..page::count(bytes)).map(|i| page::child(bytes, i)).collect();
    children[0].fence = fence.clone();
    children
}

fn body_of(bytes: &[u8], fence: &Key) -> Body {
    if page::level(bytes) > 0 {
        return Body::Inner(children_of(bytes, fence));
    }
    Body::Leaf((0..page::count(bytes)).map(|i| page::leaf_entry(bytes, i)).collect())
}

/// The long values that a leaf names, with their keys.
pub(super) fn bigs_of(bytes: &[u8]) -> impl Iterator<Item = (Key, Big)> + '_ {
    (0..page::count(bytes)).filter_map(|i| match page::leaf_value(bytes, i) {
        page::ValueAt::Big(big) => Some((Key::from(page::leaf_key(bytes, i)), big)),
        page::ValueAt::Inline(_) => None,
    })
}

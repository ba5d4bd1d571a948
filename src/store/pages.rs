//! Pages as the rest of the store asks for them: cached, on their way, or to be asked for. The one door through which
//! bytes from the disk come in, judged by what their parent said.

use std::collections::BTreeMap;

use super::cache::{Cache, FrameIndex, Meaning};
use super::key::Key;
use super::page::{self, Big, Kind, ValueAt};
use super::space::Space;
use super::superblock::Root;
use super::{Miss, PageDamage, PageNo};
use crate::base::{Digest, ShardId};

/// What a page must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Want {
    Node { level: u8, digest: Digest },
    BigHead(Big),
    BigRest { head: PageNo, check: u64, digest: Digest, len: u32 },
}

/// A read that is under way, as far as the store knows.
#[derive(Debug)]
pub(super) struct Expect {
    pub shard: ShardId,
    pub want: Want,
    /// Where it stands in its tree: the fence of a tree page, the key of a long value. Other nodes find it by this.
    pub key: Key,
    /// A look-up missed it: it goes to the cache.
    reader: bool,
    /// A merge asked for it: it goes to the inbox, so that the smallest cache cannot starve it.
    worker: bool,
}

#[derive(Debug)]
pub(super) struct Pages {
    pub cache: Cache,
    pub space: Space,
    expected: BTreeMap<PageNo, Expect>,
    /// Pages whose bytes were refused, with whoever waits for them. They are not read again: good bytes come from
    /// memory or from another node, through [`Pages::page_read`].
    pub damaged: BTreeMap<PageNo, Expect>,
    inbox: BTreeMap<PageNo, (Want, Vec<u8>)>,
    /// Pages that the worker has asked for since the last [`Pages::take_asks`].
    asks: Vec<PageNo>,
}

impl Pages {
    pub fn new(cache_bytes: usize, frontier: u64) -> Pages {
        Pages {
            cache: Cache::new(cache_bytes),
            space: Space::new(frontier),
            expected: BTreeMap::new(),
            damaged: BTreeMap::new(),
            inbox: BTreeMap::new(),
            asks: Vec::new(),
        }
    }

    /// Frees a page for reuse; nothing points to it any more.
    pub fn free(&mut self, page: PageNo) {
        self.cache.remove(page);
        self.inbox.remove(&page);
        self.damaged.remove(&page);
        let being_read = self.expected.contains_key(&page);
        self.space.give_back(page, being_read);
    }

    /// A write of `page` has come back.
    pub fn settle(&mut self, page: PageNo) {
        let being_read = self.expected.contains_key(&page);
        self.space.settle(page, being_read);
    }

    // ---- for readers ----

    fn miss(&mut self, shard: ShardId, page: PageNo, want: Want, key: Key) -> Miss {
        if let Some(expect) = self.expect(shard, page, want, key) {
            expect.reader = true;
        }
        Miss { shard, page }
    }

    /// Whoever waits for a page; a damaged one keeps its own list. `None` while somebody else waits for another meaning of
    /// the same number: one of the two has a wrong link, and the later one asks again when the first is done.
    fn expect(&mut self, shard: ShardId, page: PageNo, want: Want, key: Key) -> Option<&mut Expect> {
        let fresh = Expect { shard, want, key, reader: false, worker: false };
        let expect = match self.damaged.contains_key(&page) {
            true => self.damaged.get_mut(&page).expect("just seen"),
            false => self.expected.entry(page).or_insert(fresh),
        };
        (expect.want == want && expect.shard == shard).then_some(expect)
    }

    /// The fence of page `stop` on the way from the root to `key`. All pages above it are in memory.
    fn fence_of(&self, root: &Root, key: &[u8], stop: PageNo) -> Key {
        let (mut number, mut meaning, mut fence) =
            (root.page, Meaning::node(root.digest, root.level), Key::EMPTY);
        let mut level = root.level;
        while number != stop && level > 0 {
            let Some(bytes) = self.cache.peek(number, meaning) else { return Key::from(key) };
            let i = page::inner_search(bytes, key);
            if i > 0 {
                fence = Key::from(page::child_fence(bytes, i));
            }
            level -= 1;
            let (child, digest) = page::child_link(bytes, i);
            (number, meaning) = (child, Meaning::node(digest, level));
        }
        fence
    }

    /// The leaf whose range holds `key`; `None` in an empty tree.
    pub fn leaf(&mut self, shard: ShardId, root: &Root, key: &[u8]) -> Result<Option<FrameIndex>, Miss> {
        if root.is_empty() {
            return Ok(None);
        }
        let (mut number, mut digest, mut level) = (root.page, root.digest, root.level);
        loop {
            let Some(frame) = self.cache.find(number, Meaning::node(digest, level)) else {
                let fence = self.fence_of(root, key, number);
                return Err(self.miss(shard, number, Want::Node { level, digest }, fence));
            };
            if level == 0 {
                return Ok(Some(frame));
            }
            let bytes = self.cache.bytes_of(frame);
            (number, digest) = page::child_link(bytes, page::inner_search(bytes, key));
            level -= 1;
        }
    }

    /// The page of `level` on the way to `key`, if it has this digest.
    pub fn node_at(
        &mut self,
        shard: ShardId,
        root: &Root,
        key: &[u8],
        level: u8,
        digest: Digest,
    ) -> Result<Option<FrameIndex>, Miss> {
        let (mut number, mut here, mut at) = (root.page, root.digest, root.level);
        while at > level {
            let Some(frame) = self.cache.find(number, Meaning::node(here, at)) else {
                let fence = self.fence_of(root, key, number);
                return Err(self.miss(shard, number, Want::Node { level: at, digest: here }, fence));
            };
            let bytes = self.cache.bytes_of(frame);
            (number, here) = page::child_link(bytes, page::inner_search(bytes, key));
            at -= 1;
        }
        if at != level || here != digest {
            return Ok(None);
        }
        match self.cache.find(number, Meaning::node(digest, level)) {
            Some(frame) => Ok(Some(frame)),
            None => {
                let fence = self.fence_of(root, key, number);
                Err(self.miss(shard, number, Want::Node { level, digest }, fence))
            }
        }
    }

    /// Like [`Pages::leaf`], with the fence at which the next leaf begins.
    pub fn leaf_and_end(
        &mut self,
        shard: ShardId,
        root: &Root,
        key: &[u8],
    ) -> Result<Option<(FrameIndex, Option<Key>)>, Miss> {
        if root.is_empty() {
            return Ok(None);
        }
        let (mut number, mut digest, mut level) = (root.page, root.digest, root.level);
        let mut end = None;
        loop {
            let Some(frame) = self.cache.find(number, Meaning::node(digest, level)) else {
                let fence = self.fence_of(root, key, number);
                return Err(self.miss(shard, number, Want::Node { level, digest }, fence));
            };
            if level == 0 {
                return Ok(Some((frame, end)));
            }
            let bytes = self.cache.bytes_of(frame);
            let i = page::inner_search(bytes, key);
            (number, digest) = page::child_link(bytes, i);
            if i + 1 < page::count(bytes) {
                end = Some(Key::from(page::child_fence(bytes, i + 1)));
            }
            level -= 1;
        }
    }

    /// The value at place `i` of a leaf, as the page says it.
    pub fn value_at(&self, leaf: FrameIndex, i: usize) -> ValueAt<'_> {
        page::leaf_value(self.cache.bytes_of(leaf), i)
    }

    /// A long value, whole.
    pub fn big(&mut self, shard: ShardId, big: &Big, key: &[u8]) -> Result<FrameIndex, Miss> {
        if let Some(frame) = self.cache.find(big.page, Meaning::value(big.digest)) {
            return Ok(frame);
        }
        let (head, digest, len) = (big.page, big.digest, big.len);
        match self.cache.assembly(head, digest).and_then(|a| a.missing.first_key_value()) {
            Some((page, (_, check))) => {
                let (page, want) = (*page, Want::BigRest { head, check: *check, digest, len });
                Err(self.miss(shard, page, want, Key::from(key)))
            }
            None => Err(self.miss(shard, head, Want::BigHead(*big), Key::from(key))),
        }
    }

    /// Every page known to be needed by the look-up behind `miss`.
    pub fn wanted(&mut self, miss: Miss) -> Vec<PageNo> {
        let mut pages = vec![miss.page];
        if let Some(Expect { want: Want::BigRest { head, digest, len, .. }, key, .. }) =
            self.expected.get(&miss.page)
            && let Some(assembly) = self.cache.assembly(*head, *digest)
        {
            let (head, digest, len, key) = (*head, *digest, *len, key.clone());
            let shard = assembly.shard;
            let rest: Vec<_> = assembly.missing.iter().map(|(page, (_, check))| (*page, *check)).collect();
            for (page, check) in rest.into_iter().filter(|(page, _)| *page != miss.page) {
                self.miss(shard, page, Want::BigRest { head, check, digest, len }, key.clone());
                pages.push(page);
            }
        }
        pages
    }

    // ---- for workers ----

    /// The bytes of a page, when they are here. Otherwise it is asked for. `fresh`: only the disk is believed.
    pub fn fetch(
        &mut self,
        shard: ShardId,
        page: PageNo,
        want: Want,
        key: &Key,
        fresh: bool,
    ) -> Option<Vec<u8>> {
        if let Some((_, bytes)) = self.inbox.remove(&page).filter(|(here, _)| *here == want) {
            return Some(bytes);
        }
        if !fresh
            && let Want::Node { level, digest } = want
            && let Some(bytes) = self.cache.peek(page, Meaning::node(digest, level))
        {
            return Some(bytes.to_vec());
        }
        self.foresee(shard, page, want, key, fresh);
        None
    }

    /// Asks for a page that will be fetched soon.
    pub fn foresee(&mut self, shard: ShardId, page: PageNo, want: Want, key: &Key, fresh: bool) {
        let cached = !fresh
            && matches!(want, Want::Node { level, digest }
                if self.cache.peek(page, Meaning::node(digest, level)).is_some());
        if cached || self.inbox.get(&page).is_some_and(|(here, _)| *here == want) {
            return;
        }
        let damaged = self.damaged.contains_key(&page);
        let Some(expect) = self.expect(shard, page, want, key.clone()) else { return };
        if !expect.worker {
            expect.worker = true;
            if !damaged {
                self.asks.push(page);
            }
        }
    }

    pub fn take_asks(&mut self) -> Vec<PageNo> {
        std::mem::take(&mut self.asks)
    }

    /// The worker is gone: what it asked for comes back to nobody.
    pub fn forget_worker(&mut self) {
        self.inbox.clear();
        self.asks.clear();
        self.expected.values_mut().chain(self.damaged.values_mut()).for_each(|e| e.worker = false);
    }

    // ---- bytes from the disk ----

    /// Judges a page and delivers it to whoever waits for it. Bytes that nobody expects are dropped.
    pub fn page_read(&mut self, page: PageNo, bytes: &[u8]) -> Result<(), PageDamage> {
        let expected = self.expected.remove(&page);
        let resting = self.space.is_resting(page);
        self.space.settle(page, false);
        let Some(expect) = expected.or_else(|| self.damaged.remove(&page)) else { return Ok(()) };
        if resting {
            return Ok(());
        }
        let result =
            judge(page, bytes, expect.shard, &expect.want).and_then(|()| self.deliver(page, bytes, &expect));
        result.map_err(|what| {
            let shard = expect.shard;
            self.damaged.insert(page, expect);
            PageDamage { shard, page, what }
        })
    }

    /// Notes that a page of the tree is not what its parent says, found by somebody who did not ask for it here.
    pub fn note_damage(&mut self, shard: ShardId, page: PageNo, want: Want, key: Key) {
        if !self.expected.contains_key(&page) {
            self.expect(shard, page, want, key);
            if let Some(expect) = self.expected.remove(&page) {
                self.damaged.insert(page, expect);
            }
        }
    }

    fn deliver(&mut self, page: PageNo, bytes: &[u8], expect: &Expect) -> Result<(), &'static str> {
        if expect.worker {
            self.inbox.insert(page, (expect.want, bytes.to_vec()));
        }
        if !expect.reader {
            return Ok(());
        }
        match expect.want {
            Want::Node { level, digest } => {
                self.cache.insert(page, Meaning::node(digest, level), bytes, true);
                Ok(())
            }
            Want::BigHead(big) => self.cache.start_assembly(expect.shard, &big, bytes),
            Want::BigRest { head, .. } => self.cache.add_part(head, page, bytes),
        }
    }
}

/// Whether `bytes` are the page that its parent describes, written for this place.
pub(super) fn judge(number: PageNo, bytes: &[u8], shard: ShardId, want: &Want) -> Result<(), &'static str> {
    page::verify(bytes, number)?;
    if page::shard(bytes) != shard {
        return Err("page of another shard");
    }
    match *want {
        Want::Node { level, digest } => {
            let kind = if level == 0 { Kind::Leaf } else { Kind::Inner };
            if !page::kind_is(bytes, kind) || page::level(bytes) != level {
                return Err("page of another kind or level");
            }
            if page::content_digest(bytes) != digest {
                return Err("page content differs from the digest in its parent");
            }
        }
        Want::BigHead(big) => {
            if !page::kind_is(bytes, Kind::BigHead) || page::check_of(bytes) != big.check {
                return Err("overflow head differs from its link");
            }
            if page::total(bytes) != u64::from(big.len) {
                return Err("overflow head of a wrong length");
            }
        }
        Want::BigRest { check, .. } => {
            if !page::kind_is(bytes, Kind::BigRest) || page::check_of(bytes) != check {
                return Err("overflow page differs from its link");
            }
        }
    }
    Ok(())
}

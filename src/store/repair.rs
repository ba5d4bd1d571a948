//! Damaged pages: what is known of them, how another node names them, and how good bytes become the same page again.
//!
//! A page is asked for by what it means: its shard, a checkpoint, the place in the tree (the fence of a tree page, the
//! key of a long value), and the digest that its parent holds. Every node that has a tree with that digest at that
//! place has the same content, whatever its page numbers are. Only the local part, which says where this node keeps
//! the children, is found here: in the damaged bytes when the rest of them proves it, otherwise by looking for the
//! children's digests in the page file (protocol 7.3).

use std::collections::BTreeMap;

use super::cache::Meaning;
use super::page::{self, Kind, ValueAt};
use super::pages::{Want, judge};
use super::{Miss, PageNo, Store};
use crate::base::limits::PAGE_BYTES;
use crate::base::{Digest, Lsn, ShardId};

/// Pages read together by a search for lost children.
pub const SEARCH_PAGES: u64 = 64;
/// The write of a repaired page belongs to no merge.
pub(super) const REPAIR_JOB: u64 = u64::MAX;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// The content of a tree page.
    Node { level: u8, digest: Digest },
    /// A long value.
    Value { digest: Digest, len: u32 },
}

/// A page or value as every node would recognise it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageAsk {
    pub shard: ShardId,
    /// The asker's checkpoint; others are looked through when it is gone.
    pub checkpoint: Lsn,
    /// The fence of a tree page, the key of a long value.
    pub key: Vec<u8>,
    pub wanted: Wanted,
}

/// What a node that has it answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The checkpoint that wrote a long value; zero for a tree page.
    pub birth: Lsn,
    pub bytes: Vec<u8>,
}

/// What became of bytes that another node sent.
#[derive(Debug)]
pub enum Rebuilt {
    /// The page, ready to be written in its place.
    Page(Vec<u8>),
    /// The content is good, but where its children are must be found out.
    Search(Box<ChildSearch>),
    /// Not what was asked for.
    Refused(&'static str),
    /// This node cannot make the page again, whatever others send.
    Lost(&'static str),
    /// Nobody needs the page any more.
    Gone,
}

/// A look through the page file for the children of one inner page.
#[derive(Debug)]
pub struct ChildSearch {
    page: PageNo,
    shard: ShardId,
    level: u8,
    content: Vec<u8>,
    children: Vec<Digest>,
    found: BTreeMap<Digest, PageNo>,
    /// Some child's content stands in two pages.
    twice: bool,
    next: u64,
}

impl ChildSearch {
    pub fn page(&self) -> PageNo {
        self.page
    }
}

impl Store {
    /// Pages that failed their check and are still needed.
    pub fn damaged_pages(&self) -> impl Iterator<Item = PageNo> + '_ {
        self.pages.damaged.keys().copied()
    }

    pub fn is_damaged(&self, page: PageNo) -> bool {
        self.pages.damaged.contains_key(&page)
    }

    /// The shard of a damaged page.
    pub fn damaged_shard(&self, page: PageNo) -> Option<ShardId> {
        self.pages.damaged.get(&page).map(|d| d.shard)
    }

    /// A page could not be read at all. Says whether anybody needs it.
    pub fn page_unreadable(&mut self, page: PageNo) -> bool {
        self.page_read(page, &[]).is_err()
    }

    /// How another node is asked for a damaged page.
    pub fn repair_ask(&self, page: PageNo) -> Option<PageAsk> {
        let damaged = self.pages.damaged.get(&page)?;
        let wanted = match damaged.want {
            Want::Node { level, digest } => Wanted::Node { level, digest },
            Want::BigHead(big) => Wanted::Value { digest: big.digest, len: big.len },
            Want::BigRest { digest, len, .. } => Wanted::Value { digest, len },
        };
        let (shard, key) = (damaged.shard, damaged.key.to_vec());
        Some(PageAsk { shard, checkpoint: self.checkpoint_lsn(shard), key, wanted })
    }

    /// A good copy of a damaged page that is still in memory.
    pub fn repair_from_memory(&self, page: PageNo) -> Option<Vec<u8>> {
        let damaged = self.pages.damaged.get(&page)?;
        let Want::Node { level, digest } = damaged.want else { return None };
        let bytes = self.pages.cache.peek(page, Meaning::node(digest, level))?;
        judge(page, bytes, damaged.shard, &damaged.want).ok()?;
        Some(bytes.to_vec())
    }

    /// Makes a damaged page again out of what another node sent. `on_disk`: the bytes that failed, as far as they can
    /// be read.
    pub fn rebuild(&self, page: PageNo, sent: &Found, on_disk: &[u8]) -> Rebuilt {
        let Some(damaged) = self.pages.damaged.get(&page) else { return Rebuilt::Gone };
        if page.0 >= self.pages.space.file_pages() {
            return Rebuilt::Lost("a link to a page behind the end of the file");
        }
        let made = match damaged.want {
            Want::Node { level, digest } => {
                if Digest::of(&sent.bytes) != digest {
                    return Rebuilt::Refused("the content sent has another digest");
                }
                self.remake_node(page, damaged.shard, level, &sent.bytes, on_disk)
            }
            Want::BigHead(big) => {
                if sent.bytes.len() != big.len as usize || Digest::of(&sent.bytes) != big.digest {
                    return Rebuilt::Refused("the value sent has another digest");
                }
                remake_head(page, damaged.shard, sent, on_disk)
            }
            Want::BigRest { check, digest, len, .. } => {
                if sent.bytes.len() != len as usize || Digest::of(&sent.bytes) != digest {
                    return Rebuilt::Refused("the value sent has another digest");
                }
                let parts = 1..page::pages_of_big(sent.bytes.len());
                let mut made = parts
                    .map(|i| page::make_big(damaged.shard, sent.birth, page, &sent.bytes, i, &[]))
                    .filter(|bytes| page::check_of(bytes) == check);
                made.next().map_or(Rebuilt::Lost("no part of the value fits its link"), Rebuilt::Page)
            }
        };
        match &made {
            Rebuilt::Page(bytes) => match judge(page, bytes, damaged.shard, &damaged.want) {
                Ok(()) => made,
                Err(what) => Rebuilt::Lost(what),
            },
            _ => made,
        }
    }

    fn remake_node(
        &self,
        page: PageNo,
        shard: ShardId,
        level: u8,
        content: &[u8],
        on_disk: &[u8],
    ) -> Rebuilt {
        let Some(local_len) = page::local_bytes(content) else {
            return Rebuilt::Refused("the content sent is no tree page");
        };
        if local_len == 0 {
            return Rebuilt::Page(page::remake(content, page, &[]));
        }
        // The damaged bytes' own checksum proves their local part, if the damage lies in the content.
        if let Some(local) = page::salvaged_local(on_disk, local_len) {
            let made = page::remake(content, page, local);
            if page::checksum_in(&made) == page::checksum_in(on_disk) {
                return Rebuilt::Page(made);
            }
        }
        if level == 0 {
            return Rebuilt::Lost("a leaf whose links to long values are gone");
        }
        let children: Option<Vec<Digest>> =
            (0..page::count(content)).map(|i| page::child_digest(content, i)).collect();
        let Some(children) = children else { return Rebuilt::Refused("the content sent is no tree page") };
        Rebuilt::Search(Box::new(ChildSearch {
            page,
            shard,
            level: level - 1,
            content: content.to_vec(),
            children,
            found: BTreeMap::new(),
            twice: false,
            next: 1,
        }))
    }

    /// The next pages that a search wants to see: the first and their number. `None`: the file was looked through.
    pub fn search_next(&self, search: &ChildSearch) -> Option<(PageNo, u64)> {
        let end = self.pages.space.file_pages();
        // While it is not known what is free, the whole file is looked through: content may stand twice.
        let all = !self.walking() && search.children.iter().all(|digest| search.found.contains_key(digest));
        (!all && search.next < end).then(|| (PageNo(search.next), SEARCH_PAGES.min(end - search.next)))
    }

    /// Looks at the pages that [`Store::search_next`] named. A free page may hold the same content from an earlier life:
    /// it is none of the tree's.
    pub fn search_read(&self, search: &mut ChildSearch, bytes: &[u8]) {
        let count = (bytes.len() / PAGE_BYTES) as u64;
        for (i, bytes) in bytes.chunks_exact(PAGE_BYTES).enumerate() {
            let number = PageNo(search.next + i as u64);
            let space = &self.pages.space;
            if space.is_free(number) || space.is_resting(number) || !page::is_page(bytes) {
                continue;
            }
            if page::shard(bytes) != search.shard || page::level(bytes) != search.level {
                continue;
            }
            let kind = if search.level == 0 { Kind::Leaf } else { Kind::Inner };
            if !page::kind_is(bytes, kind) || page::verify(bytes, number).is_err() {
                continue;
            }
            let digest = page::content_digest(bytes);
            if search.children.contains(&digest) && self.may_be_child(search.page, number) {
                search.twice |= search.found.insert(digest, number).is_some();
            }
        }
        search.next += count.max(1);
    }

    /// The page whose children a search looked for.
    pub fn search_done(&self, search: &ChildSearch) -> Rebuilt {
        let Some(damaged) = self.pages.damaged.get(&search.page) else { return Rebuilt::Gone };
        let numbers: Option<Vec<PageNo>> =
            search.children.iter().map(|digest| search.found.get(digest).copied()).collect();
        let Some(numbers) = numbers else {
            return Rebuilt::Lost("an inner page whose children are damaged as well");
        };
        // Links are given anew: whatever a newer tree has taken over from the old ones must not be swept up as free.
        if search.twice && self.walk.as_ref().is_some_and(|walk| !self.is_as_opened(walk, damaged.shard)) {
            return Rebuilt::Lost("an inner page, one of whose children stands twice in the page file");
        }
        let space = &self.pages.space;
        let known = |number: &PageNo| {
            self.may_be_child(search.page, *number) && !space.is_free(*number) && !space.is_resting(*number)
        };
        if !numbers.iter().all(known) {
            return Rebuilt::Lost("an inner page whose children are not all known yet");
        }
        let local = page::local_of_children(&numbers);
        let made = page::remake(&search.content, search.page, &local);
        match judge(search.page, &made, damaged.shard, &damaged.want) {
            Ok(()) => Rebuilt::Page(made),
            Err(what) => Rebuilt::Lost(what),
        }
    }

    fn may_be_child(&self, parent: PageNo, child: PageNo) -> bool {
        self.walk.as_ref().is_none_or(|walk| walk.may_be_child(parent, child))
    }

    /// No checkpoint of the shard was begun since the store was opened.
    fn is_as_opened(&self, walk: &super::walk::Walk, shard: ShardId) -> bool {
        !self.merging(shard) && walk.starts_from(shard, &self.shards[shard.index()].roots[0])
    }

    /// The repaired page is on its way to the disk: until [`Store::repair_written`] its place is not reused. Says
    /// whether it is still needed.
    pub fn repair_started(&mut self, page: PageNo) -> bool {
        let needed = self.pages.damaged.contains_key(&page) && !self.pages.space.in_write(page);
        if needed {
            self.pages.space.write_started(page, 1, REPAIR_JOB);
        }
        needed
    }

    /// The repaired page is durable in its place; whoever waits for it gets it.
    pub fn repair_written(&mut self, page: PageNo, bytes: &[u8]) -> bool {
        self.pages.space.write_ended(page).expect("only writes under way end");
        self.pages.settle(page);
        if let Some(walk) = &mut self.walk {
            walk.repaired(page);
        }
        self.pages.damaged.contains_key(&page) && self.pages.page_read(page, bytes).is_ok()
    }

    /// Looks for what another node asks for, in every retained tree of the shard. `Ok(None)`: it is not here.
    pub fn find(&mut self, ask: &PageAsk) -> Result<Option<Found>, Miss> {
        let Some(state) = self.shards.get(ask.shard.index()) else { return Ok(None) };
        let mut roots = state.roots.clone();
        roots.sort_by_key(|root| root.at != ask.checkpoint);
        for root in roots.into_iter().filter(|root| !root.is_empty()) {
            let found = match ask.wanted {
                Wanted::Node { level, digest } => {
                    let frame = self.pages.node_at(ask.shard, &root, &ask.key, level, digest)?;
                    frame.map(|frame| {
                        let bytes = page::canonical(self.pages.cache.bytes_of(frame)).to_vec();
                        (Lsn::ZERO, digest, bytes)
                    })
                }
                Wanted::Value { digest, len } => self.find_value(ask, &root, digest, len)?,
            };
            // What stands in this node's memory is judged once more before it spreads.
            if let Some((birth, digest, bytes)) = found
                && Digest::of(&bytes) == digest
            {
                return Ok(Some(Found { birth, bytes }));
            }
        }
        Ok(None)
    }

    fn find_value(
        &mut self,
        ask: &PageAsk,
        root: &super::superblock::Root,
        digest: Digest,
        len: u32,
    ) -> Result<Option<(Lsn, Digest, Vec<u8>)>, Miss> {
        let Some(leaf) = self.pages.leaf(ask.shard, root, &ask.key)? else { return Ok(None) };
        let (i, met) = page::leaf_search(self.pages.cache.bytes_of(leaf), &ask.key);
        if !met {
            return Ok(None);
        }
        let ValueAt::Big(big) = self.pages.value_at(leaf, i) else { return Ok(None) };
        if big.digest != digest || big.len != len {
            return Ok(None);
        }
        let frame = self.pages.big(ask.shard, &big, &ask.key)?;
        let (birth, value) = (self.pages.cache.birth_of(frame), self.pages.cache.bytes_of(frame).to_vec());
        Ok(Some((birth, digest, value)))
    }

    /// Flips one bit of a value in memory, as a bad memory module would: for the simulator.
    #[cfg(any(test, feature = "planted"))]
    pub fn flip_bit_in_delta(&mut self, shard: ShardId, key: &[u8]) -> bool {
        let slot = self.shards[shard.index()].top.active.map.get_mut(key);
        match slot.and_then(|slot| slot.value.as_mut()).and_then(|value| value.last_mut()) {
            Some(byte) => {
                *byte ^= 1;
                true
            }
            None => false,
        }
    }
}

/// The first page of a long value. Its links stand nowhere but in itself.
fn remake_head(page: PageNo, shard: ShardId, sent: &Found, on_disk: &[u8]) -> Rebuilt {
    let rests = page::pages_of_big(sent.bytes.len()) - 1;
    if rests == 0 {
        return Rebuilt::Page(page::make_big(shard, sent.birth, page, &sent.bytes, 0, &[]));
    }
    match page::salvaged_links(on_disk, rests) {
        Some(rest) => Rebuilt::Page(page::make_big(shard, sent.birth, page, &sent.bytes, 0, &rest)),
        None => Rebuilt::Lost("the first page of a long value, whose links are gone"),
    }
}

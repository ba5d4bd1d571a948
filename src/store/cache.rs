//! The page cache: verified tree pages and assembled long values, second-chance (CLOCK) eviction within a budget of
//! bytes. Held pages are never evicted and may exceed the budget.
//!
//! The table from page number to frame is a plain array (4 bytes per page of the file), so that a look-up costs one
//! index and no hash.

use std::collections::BTreeMap;

use super::PageNo;
use super::page::{self, Big};
use crate::base::limits::PAGE_BYTES;
use crate::base::{Digest, Lsn, ShardId};

const NONE: u32 = u32::MAX;
/// Long values under assembly at once, besides held ones; older ones start again.
const ASSEMBLIES_MAX: usize = 8;
/// Page buffers kept for reuse.
const SPARES_MAX: usize = 64;

/// What a cached page or value is. A parent that means something else by the page's number must not get it: its link is
/// wrong, and what it wants is missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Meaning {
    digest: Digest,
    /// Of a tree page.
    level: Option<u8>,
}

impl Meaning {
    pub fn node(digest: Digest, level: u8) -> Meaning {
        Meaning { digest, level: Some(level) }
    }

    pub fn value(digest: Digest) -> Meaning {
        Meaning { digest, level: None }
    }
}

#[derive(Debug)]
struct Frame {
    page: PageNo,
    meaning: Meaning,
    bytes: Vec<u8>,
    referenced: bool,
    /// Of a long value: the checkpoint that wrote it.
    birth: Lsn,
}

/// A long value on its way into memory.
#[derive(Debug)]
pub(super) struct Assembly {
    pub shard: ShardId,
    digest: Digest,
    birth: Lsn,
    value: Vec<u8>,
    /// Rest page -> its index and check.
    pub missing: BTreeMap<PageNo, (usize, u64)>,
    order: u64,
}

#[derive(Debug)]
pub(super) struct Cache {
    budget: usize,
    bytes: usize,
    /// Page number -> frame index.
    table: Vec<u32>,
    frames: Vec<Option<Frame>>,
    vacant: Vec<u32>,
    hand: usize,
    spares: Vec<Vec<u8>>,
    holds: BTreeMap<PageNo, u32>,
    /// By head page.
    assemblies: BTreeMap<PageNo, Assembly>,
    assemblies_made: u64,
}

/// Index of a frame; good until the cache changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameIndex(u32);

impl Cache {
    pub fn new(budget: usize) -> Cache {
        Cache {
            budget,
            bytes: 0,
            table: Vec::new(),
            frames: Vec::new(),
            vacant: Vec::new(),
            hand: 0,
            spares: Vec::new(),
            holds: BTreeMap::new(),
            assemblies: BTreeMap::new(),
            assemblies_made: 0,
        }
    }

    /// Bytes of pages and values, those under assembly included.
    pub fn bytes(&self) -> usize {
        self.bytes + self.assemblies.values().map(|a| a.value.len()).sum::<usize>()
    }

    /// Finds a page (or, under its head page, a long value) and marks it as used.
    pub fn find(&mut self, page: PageNo, meaning: Meaning) -> Option<FrameIndex> {
        let index = *self.table.get(page.0 as usize)?;
        let frame = self.frames.get_mut(index as usize)?.as_mut().filter(|frame| frame.meaning == meaning)?;
        debug_assert_eq!(frame.page, page);
        frame.referenced = true;
        Some(FrameIndex(index))
    }

    pub fn bytes_of(&self, index: FrameIndex) -> &[u8] {
        &self.frames[index.0 as usize].as_ref().expect("a found frame is filled").bytes
    }

    /// Of a long value: the checkpoint that wrote it.
    pub fn birth_of(&self, index: FrameIndex) -> Lsn {
        self.frames[index.0 as usize].as_ref().expect("a found frame is filled").birth
    }

    /// The page without marking it as used.
    pub fn peek(&self, page: PageNo, meaning: Meaning) -> Option<&[u8]> {
        let index = *self.table.get(page.0 as usize)?;
        let frame = self.frames.get(index as usize)?.as_ref();
        frame.filter(|frame| frame.meaning == meaning).map(|frame| &frame.bytes[..])
    }

    /// Whether anything is kept under this number.
    #[cfg(test)]
    pub fn has(&self, page: PageNo) -> bool {
        self.table.get(page.0 as usize).is_some_and(|index| *index != NONE)
    }

    /// Keeps a copy of a verified page. `warm` pages survive the next pass of the hand.
    pub fn insert(&mut self, page: PageNo, meaning: Meaning, bytes: &[u8], warm: bool) {
        let mut copy = self.spares.pop().unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(bytes);
        self.insert_owned(page, meaning, copy, warm, Lsn::ZERO);
    }

    fn insert_owned(&mut self, page: PageNo, meaning: Meaning, bytes: Vec<u8>, warm: bool, birth: Lsn) {
        self.remove(page);
        self.make_room(bytes.len());
        self.bytes += bytes.len();
        let frame = Frame { page, meaning, bytes, referenced: warm, birth };
        let index = match self.vacant.pop() {
            Some(index) => {
                self.frames[index as usize] = Some(frame);
                index
            }
            None => {
                self.frames.push(Some(frame));
                u32::try_from(self.frames.len() - 1).expect("fewer frames than a u32 counts")
            }
        };
        let at = usize::try_from(page.0).expect("page numbers index memory");
        if at >= self.table.len() {
            self.table.resize(at + 1, NONE);
        }
        self.table[at] = index;
    }

    /// Forgets a page, whoever holds it: its number gets another meaning.
    pub fn remove(&mut self, page: PageNo) {
        self.assemblies.remove(&page);
        let Some(slot) = self.table.get_mut(page.0 as usize) else { return };
        let index = std::mem::replace(slot, NONE);
        if index != NONE {
            self.drop_frame(index as usize);
        }
    }

    fn drop_frame(&mut self, index: usize) {
        let frame = self.frames[index].take().expect("the table points to filled frames");
        self.bytes -= frame.bytes.len();
        self.vacant.push(index as u32);
        if frame.bytes.len() == PAGE_BYTES && self.spares.len() < SPARES_MAX {
            self.spares.push(frame.bytes);
        }
    }

    fn make_room(&mut self, wanted: usize) {
        // Two rounds: the first takes second chances away, the second evicts. What is left then is held.
        let mut steps = 2 * self.frames.len();
        while self.bytes + wanted > self.budget && steps > 0 {
            steps -= 1;
            self.hand = if self.hand + 1 < self.frames.len() { self.hand + 1 } else { 0 };
            let Some(frame) = &mut self.frames[self.hand] else { continue };
            if frame.referenced {
                frame.referenced = false;
            } else if !self.holds.contains_key(&frame.page) {
                let page = frame.page;
                self.table[page.0 as usize] = NONE;
                self.drop_frame(self.hand);
            }
        }
    }

    pub fn hold(&mut self, page: PageNo) {
        *self.holds.entry(page).or_default() += 1;
    }

    pub fn release(&mut self, page: PageNo) {
        let count = self.holds.get_mut(&page).expect("a release answers a hold");
        *count -= 1;
        if *count == 0 {
            self.holds.remove(&page);
        }
    }

    // ---- long values ----

    pub fn assembly(&self, head: PageNo, digest: Digest) -> Option<&Assembly> {
        self.assemblies.get(&head).filter(|assembly| assembly.digest == digest)
    }

    /// Starts to assemble `big` from its verified head page. Says whether the value is complete and right.
    pub fn start_assembly(&mut self, shard: ShardId, big: &Big, head: &[u8]) -> Result<(), &'static str> {
        let len = big.len as usize;
        let mut value = vec![0; len];
        let part = page::big_part(len, 0);
        value[part].copy_from_slice(page::big_data(head));
        let missing = page::big_rest(head).enumerate().map(|(i, (page, check))| (page, (i + 1, check)));
        let missing: BTreeMap<_, _> = missing.collect();
        self.assemblies_made += 1;
        let order = self.assemblies_made;
        let (digest, birth) = (big.digest, page::birth(head));
        self.assemblies.insert(big.page, Assembly { shard, digest, birth, value, missing, order });
        self.limit_assemblies(big.page);
        self.finish_assembly(big.page)
    }

    /// Adds a verified rest page to its value, if that is still being assembled.
    pub fn add_part(&mut self, head: PageNo, page_no: PageNo, page: &[u8]) -> Result<(), &'static str> {
        let Some(assembly) = self.assemblies.get_mut(&head) else { return Ok(()) };
        let Some((index, _)) = assembly.missing.get(&page_no) else { return Ok(()) };
        let part = page::big_part(assembly.value.len(), *index);
        let data = page::big_data(page);
        if data.len() != part.len() {
            return Err("overflow page of a wrong length");
        }
        assembly.value[part].copy_from_slice(data);
        assembly.missing.remove(&page_no);
        self.finish_assembly(head)
    }

    fn finish_assembly(&mut self, head: PageNo) -> Result<(), &'static str> {
        if self.assemblies.get(&head).is_none_or(|a| !a.missing.is_empty()) {
            return Ok(());
        }
        let assembly = self.assemblies.remove(&head).expect("just seen");
        if Digest::of(&assembly.value) != assembly.digest {
            return Err("long value differs from its digest");
        }
        let meaning = Meaning::value(assembly.digest);
        self.insert_owned(head, meaning, assembly.value, true, assembly.birth);
        Ok(())
    }

    fn limit_assemblies(&mut self, newest: PageNo) {
        if self.assemblies.len() <= ASSEMBLIES_MAX {
            return;
        }
        let loose =
            self.assemblies.iter().filter(|(head, _)| **head != newest && !self.holds.contains_key(head));
        if let Some((head, _)) = loose.min_by_key(|(_, a)| a.order) {
            let head = *head;
            self.assemblies.remove(&head);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEANING: Meaning = Meaning { digest: Digest(1), level: Some(0) };

    fn bytes(tag: u8) -> Vec<u8> {
        vec![tag; PAGE_BYTES]
    }

    #[test]
    fn a_page_is_found_only_by_whoever_means_it() {
        let mut cache = Cache::new(4 * PAGE_BYTES);
        cache.insert(PageNo(1), MEANING, &bytes(1), false);
        for other in [Meaning::node(Digest(2), 0), Meaning::node(Digest(1), 1), Meaning::value(Digest(1))] {
            assert!(cache.find(PageNo(1), other).is_none() && cache.peek(PageNo(1), other).is_none());
        }
        assert!(cache.find(PageNo(1), MEANING).is_some() && cache.peek(PageNo(1), MEANING).is_some());
    }

    #[test]
    fn used_pages_get_a_second_chance_and_held_pages_stay() {
        let mut cache = Cache::new(4 * PAGE_BYTES);
        for i in 1..=4 {
            cache.insert(PageNo(i), MEANING, &bytes(i as u8), false);
        }
        cache.hold(PageNo(3));
        cache.find(PageNo(1), MEANING).unwrap();
        cache.insert(PageNo(5), MEANING, &bytes(5), false);
        assert!(cache.peek(PageNo(1), MEANING).is_some() && cache.peek(PageNo(3), MEANING).is_some());
        for i in 6..40 {
            cache.insert(PageNo(i), MEANING, &bytes(i as u8), true);
            assert!(cache.bytes() <= 4 * PAGE_BYTES);
            assert_eq!(cache.peek(PageNo(i), MEANING).unwrap()[0], i as u8);
        }
        assert_eq!(cache.peek(PageNo(3), MEANING).unwrap()[0], 3);
        cache.release(PageNo(3));
        (40..60).for_each(|i| cache.insert(PageNo(i), MEANING, &bytes(1), true));
        assert!(cache.peek(PageNo(3), MEANING).is_none());
    }

    #[test]
    fn a_cache_of_held_pages_exceeds_its_budget_and_shrinks_again() {
        let mut cache = Cache::new(PAGE_BYTES);
        for i in 1..=6 {
            cache.hold(PageNo(i));
            cache.insert(PageNo(i), MEANING, &bytes(i as u8), true);
        }
        assert_eq!(cache.bytes(), 6 * PAGE_BYTES);
        (1..=6).for_each(|i| cache.release(PageNo(i)));
        cache.insert(PageNo(9), MEANING, &bytes(9), true);
        assert_eq!(cache.bytes(), PAGE_BYTES);
    }
}

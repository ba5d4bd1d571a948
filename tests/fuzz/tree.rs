//! Trees over damaged pages. A small store is made once; the script damages its pages and superblock, and makes as many of
//! the sums right again as it likes: none, each page's own, or every digest up to the superblock.
//!
//! Damage that a sum does not cover up must never be shown: what is read is what was written, or it is missed and repaired
//! from a peer. A lie with all its sums right may be believed, but nothing panics and everything ends.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::OnceLock;

use baton::base::limits::PAGE_BYTES;
use baton::base::{Digest, Lsn, ShardId, Stamp};
use baton::store::{MergeStep, Miss, PageNo, Rebuilt, Scrubbed, Store, StoreConfig, WalkStep};

use super::script::Script;
use super::targets::{CLUSTER, seal_superblock, way};

const SHARDS: u16 = 2;
/// Work after which the store counts as going in circles.
const STEPS_MAX: usize = 4000;
/// As in a node.
const REPAIRED_MAX: u32 = 3;
/// The layout of a page, as `docs/format.md` draws it.
const HEADER: usize = 32;
const LOCAL_END: usize = PAGE_BYTES - 32;
const CHECKSUM_AT: usize = PAGE_BYTES - 16;
const SLOT_HEADER: usize = 64;
const ROOT_BYTES: usize = 48;
const ROOTS: usize = 3;

/// Keys with their values.
type Entries = Vec<(Vec<u8>, Vec<u8>)>;
type Contents = Vec<Entries>;

/// What the store left on its disk, and what it held.
struct Image {
    pages: Vec<Vec<u8>>,
    slots: [Vec<u8>; 2],
    contents: Contents,
}

fn config() -> StoreConfig {
    StoreConfig { cluster: CLUSTER, shards: SHARDS, cache_bytes: 0, delta_bytes: 1 << 20 }
}

fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut store = Store::create(config());
        let mut disk = Disk { pages: Vec::new(), held: Vec::new(), peer: None, repaired: BTreeMap::new() };
        let mut slots = store.initial_superblocks().map(|image| image.data.to_vec());
        let mut contents: Contents = vec![Vec::new(); usize::from(SHARDS)];
        for (round, stamp) in [(0u64, Stamp(1)), (1, Stamp(2))] {
            for n in 0..260u64 {
                let shard = ShardId((n % 5 == 0) as u16);
                let len = match n {
                    7 => 5_000,
                    8 => 40_000,
                    9 => 16_000,
                    _ => 200 + n as usize % 90,
                };
                if round == 0 || n % 40 < 10 {
                    let value = vec![(n + round) as u8; len];
                    store.put(shard, key(n).as_slice(), &value, round == 0, stamp);
                    contents[shard.index()].retain(|(old, _)| *old != key(n));
                    contents[shard.index()].push((key(n), value));
                }
            }
            let at = Lsn(4096 + round * 4096);
            (0..SHARDS).for_each(|shard| store.freeze(ShardId(shard), at, stamp));
            store.commit_through(stamp);
            disk.merge(&mut store).expect("a good disk");
            while let Some(token) = store.wants_flush() {
                store.pages_flushed(token);
            }
            let image = store.superblock(at).expect("all shards are merged");
            slots[usize::from(image.slot_offset != 0)] = image.data.to_vec();
            store.superblock_durable();
        }
        contents.iter_mut().for_each(|shard| shard.sort());
        Image { pages: disk.pages, slots, contents }
    })
}

fn key(n: u64) -> Vec<u8> {
    let mut key = Vec::new();
    baton::record::key::meta_key(format!("key:{n:05}").as_bytes(), &mut key);
    key
}

/// The file of pages, and the pages that the present look-up holds.
struct Disk {
    pages: Vec<Vec<u8>>,
    held: Vec<PageNo>,
    /// Asked for good pages, from the first damaged one on.
    peer: Option<Peer>,
    /// How often a page was repaired: one that is bad again each time is given up.
    repaired: BTreeMap<PageNo, u32>,
}

/// A page that could neither be read nor repaired.
#[derive(Debug)]
struct Lost;

impl Disk {
    fn page(&self, page: PageNo) -> &[u8] {
        let place = page.0.checked_mul(PAGE_BYTES as u64).expect("a page has a place in a file");
        self.pages.get((place / PAGE_BYTES as u64) as usize).map_or(&[], Vec::as_slice)
    }

    /// Hands a page to the store; a damaged one is asked for elsewhere.
    fn read(&mut self, store: &mut Store, page: PageNo) -> Result<(), Lost> {
        match store.page_read(page, self.page(page)) {
            Ok(()) => Ok(()),
            Err(damage) => {
                assert!(damage.page == page && store.is_damaged(page));
                self.repair(store, page)
            }
        }
    }

    fn repair(&mut self, store: &mut Store, page: PageNo) -> Result<(), Lost> {
        let Some(ask) = store.repair_ask(page) else { return Err(Lost) };
        let times = self.repaired.entry(page).or_default();
        *times += 1;
        if *times > REPAIRED_MAX {
            return Err(Lost);
        }
        let found = self.peer.get_or_insert_with(Peer::new).find(&ask).ok_or(Lost)?;
        let mut made = store.rebuild(page, &found, self.page(page));
        if let Rebuilt::Search(mut search) = made {
            while let Some((first, count)) = store.search_next(&search) {
                let bytes: Vec<u8> = (first.0..first.0 + count).flat_map(|n| self.whole(PageNo(n))).collect();
                store.search_read(&mut search, &bytes);
            }
            made = store.search_done(&search);
        }
        let Rebuilt::Page(bytes) = made else { return Err(Lost) };
        if !store.repair_started(page) {
            return Err(Lost);
        }
        if let Some(place) = usize::try_from(page.0).ok().and_then(|at| self.pages.get_mut(at)) {
            place.clone_from(&bytes);
        }
        if store.repair_written(page, &bytes) { Ok(()) } else { Err(Lost) }
    }

    fn whole(&self, page: PageNo) -> Vec<u8> {
        let mut bytes = self.page(page).to_vec();
        bytes.resize(PAGE_BYTES, 0);
        bytes
    }

    fn bring(&mut self, store: &mut Store, miss: Miss) -> Result<(), Lost> {
        if store.is_damaged(miss.page) {
            return Err(Lost);
        }
        for page in store.wanted(miss) {
            store.hold(page);
            self.held.push(page);
            self.read(store, page)?;
        }
        Ok(())
    }

    fn release(&mut self, store: &mut Store) {
        self.held.drain(..).for_each(|page| store.release(page));
    }

    fn merge(&mut self, store: &mut Store) -> Result<(), Lost> {
        for _ in 0..STEPS_MAX {
            match store.merge_step(8) {
                MergeStep::NeedPages(pages) => {
                    pages.into_iter().try_for_each(|page| self.read(store, page))?
                }
                MergeStep::Write(runs) => {
                    for (first, data) in runs {
                        for (i, page) in data.chunks_exact(PAGE_BYTES).enumerate() {
                            self.pages[first.0 as usize + i] = page.to_vec();
                        }
                        store.page_written(first);
                    }
                }
                MergeStep::Grow { to_pages } => {
                    self.pages.resize(to_pages as usize, vec![0; PAGE_BYTES]);
                    store.pages_grown(to_pages);
                }
                MergeStep::Merged { .. } | MergeStep::Working => {}
                MergeStep::Waiting => return Err(Lost),
                MergeStep::Idle => return Ok(()),
            }
        }
        panic!("a merge that does not end");
    }

    fn walk(&mut self, store: &mut Store) -> Result<(), Lost> {
        store.pages_grown(self.pages.len() as u64);
        for _ in 0..STEPS_MAX {
            match store.walk_step(8) {
                WalkStep::Read(pages) => {
                    // One that cannot be had must not keep the others: some roots are given up for it.
                    for page in pages {
                        if store.walk_read(page, self.page(page)).is_err() && store.is_damaged(page) {
                            drop(self.repair(store, page));
                        }
                    }
                }
                WalkStep::Waiting => return Err(Lost),
                WalkStep::Working => {}
                WalkStep::Done => return Ok(()),
            }
        }
        panic!("a walk that does not end");
    }

    /// Everything in a shard, or as far as it can be read.
    fn contents(&mut self, store: &mut Store, shard: ShardId, whole: bool) -> (Entries, bool) {
        let mut all: Entries = Vec::new();
        let mut from: Option<Vec<u8>> = None;
        for _ in 0..STEPS_MAX {
            let mut part = Vec::new();
            let bound = from.as_ref().map_or(Bound::Unbounded, |key| Bound::Included(key.as_slice()));
            let mut visit = |key: &[u8], value: &[u8]| part.push((key.to_vec(), value.to_vec()));
            let next = match whole {
                true => store.scan(shard, bound, 50, &mut visit),
                false => store.scan_heads(shard, bound, 50, &mut visit),
            };
            match next {
                Err(miss) => {
                    if self.bring(store, miss).is_err() {
                        self.release(store);
                        return (all, false);
                    }
                }
                Ok(next) => {
                    self.release(store);
                    all.append(&mut part);
                    match next {
                        Some(next) => from = Some(next),
                        None => return (all, true),
                    }
                }
            }
        }
        panic!("a scan that does not end");
    }

    fn get(&mut self, store: &mut Store, shard: ShardId, key: &[u8]) -> Result<Option<Vec<u8>>, Lost> {
        for _ in 0..STEPS_MAX {
            match store.get(shard, key) {
                Ok(seen) => {
                    let value = seen.value.map(<[u8]>::to_vec);
                    self.release(store);
                    return Ok(value);
                }
                Err(miss) => {
                    if self.bring(store, miss).is_err() {
                        self.release(store);
                        return Err(Lost);
                    }
                }
            }
        }
        panic!("a look-up that does not end");
    }

    fn scrub(&mut self, store: &mut Store) {
        for _ in 0..STEPS_MAX {
            match store.scrub_step(4) {
                Scrubbed::Read(pages) => {
                    for page in pages {
                        if store.scrub_read(page, self.page(page)).is_err() && store.is_damaged(page) {
                            let _ = self.repair(store, page);
                        }
                    }
                }
                Scrubbed::Waiting => panic!("every read was answered"),
                Scrubbed::Done => return,
            }
        }
        panic!("a pass of the scrubber that does not end");
    }
}

/// Another node, with good pages.
struct Peer {
    store: Store,
}

impl Peer {
    fn new() -> Peer {
        let image = image();
        let slot = |i: usize| Some(image.slots[i].as_slice());
        Peer { store: Store::open(config(), slot(0), slot(1)).expect("a good superblock") }
    }

    fn find(&mut self, ask: &baton::store::PageAsk) -> Option<baton::store::Found> {
        for _ in 0..STEPS_MAX {
            match self.store.find(ask) {
                Ok(found) => return found,
                Err(miss) => {
                    for page in self.store.wanted(miss) {
                        self.store.hold(page);
                        let bytes = &image().pages[page.0 as usize];
                        self.store.page_read(page, bytes).expect("a good disk");
                    }
                }
            }
        }
        panic!("a search that does not end");
    }
}

fn u32_at(page: &[u8], at: usize) -> usize {
    u32::from_le_bytes(page[at..at + 4].try_into().expect("four bytes")) as usize
}

fn u64_at(page: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(page[at..at + 8].try_into().expect("eight bytes"))
}

fn content(page: &[u8]) -> Digest {
    Digest::of(&page[..u32_at(page, 12).min(PAGE_BYTES)])
}

fn seal_page(page: &mut [u8], number: u64) {
    let sum = Digest::seeded(&page[..CHECKSUM_AT], number);
    page[CHECKSUM_AT..].copy_from_slice(&sum.0.to_le_bytes());
}

/// Makes every sum above the pages right again, level by level, up to the slots.
fn seal_up(pages: &mut [Vec<u8>], slots: &mut [Vec<u8>; 2]) {
    // Rests before their heads, these before leaves, leaves before what is above them.
    let rank = |page: &[u8]| match page[6] {
        4 => 0,
        3 => 1,
        1 => 2,
        _ => 3 + usize::from(page[7]),
    };
    let mut order: Vec<usize> = (1..pages.len()).collect();
    order.sort_by_key(|at| rank(&pages[*at]));
    for at in order {
        let mut page = std::mem::take(&mut pages[at]);
        let local = LOCAL_END - u32_at(&page, LOCAL_END + 8).min(LOCAL_END);
        if page[6] == 2 {
            let count = usize::from(u16::from_le_bytes([page[10], page[11]]));
            for i in 0..count.min((LOCAL_END - local) / 8) {
                let slot = HEADER + 2 * i;
                let place = usize::from(u16::from_le_bytes([page[slot], page[slot + 1]])) + 21;
                let child = usize::try_from(u64_at(&page, local + 8 * i)).ok().and_then(|n| pages.get(n));
                if let Some(child) = child.filter(|child| !child.is_empty())
                    && place + 16 <= LOCAL_END
                {
                    let digest = content(child);
                    page[place..place + 16].copy_from_slice(&digest.0.to_le_bytes());
                }
            }
        } else {
            let links: Vec<usize> =
                (local..LOCAL_END).step_by(16).filter(|at| at + 16 <= LOCAL_END).collect();
            for place in links {
                let child = usize::try_from(u64_at(&page, place)).ok().and_then(|n| pages.get(n));
                if let Some(child) = child.filter(|child| !child.is_empty()) {
                    page[place + 8..place + 16].copy_from_slice(&child[CHECKSUM_AT..CHECKSUM_AT + 8]);
                }
            }
        }
        seal_page(&mut page, at as u64);
        pages[at] = page;
    }
    for slot in slots {
        for i in 0..usize::from(SHARDS) * ROOTS {
            let at = SLOT_HEADER + i * ROOT_BYTES;
            let root = usize::try_from(u64_at(slot, at)).ok().filter(|n| *n != 0).and_then(|n| pages.get(n));
            if let Some(root) = root {
                let digest = content(root);
                slot[at + 8..at + 24].copy_from_slice(&digest.0.to_le_bytes());
            }
        }
    }
}

/// Input: how much is made right again, what is done, then the damage: (page, edit) again and again. The last page number
/// names the superblock.
pub fn tree(data: &[u8]) -> u64 {
    let image = image();
    let mut script = Script::new(data);
    let (sealing, what) = (script.byte() % 3, script.byte());
    let mut pages = image.pages.clone();
    let mut slots = image.slots.clone();
    let mut slots_changed = false;
    for _ in 0..24 {
        if script.is_over() {
            break;
        }
        let at = 1 + script.below(pages.len());
        match pages.get_mut(at) {
            Some(page) => {
                script.edit(page);
                if sealing > 0 {
                    seal_page(page, at as u64);
                }
            }
            None => {
                let slot = script.below(2);
                script.edit(&mut slots[slot]);
                slots_changed = true;
            }
        }
    }
    if sealing == 2 {
        seal_up(&mut pages, &mut slots);
    }
    if sealing > 0 {
        let both = slots[0].len().max(slots[1].len());
        let mut joined: Vec<u8> =
            slots.iter().flat_map(|slot| slot.iter().copied().chain(vec![0; both - slot.len()])).collect();
        seal_superblock(&mut joined);
        slots = [joined[..both].to_vec(), joined[both..].to_vec()];
    }
    let opened = Store::open(config(), Some(&slots[0]), Some(&slots[1]));
    let Ok(mut store) = opened else { return way(0) };
    let mut disk = Disk { pages, held: Vec::new(), peer: None, repaired: BTreeMap::new() };
    let honest = sealing < 2 && !(slots_changed && sealing > 0);
    let walked = disk.walk(&mut store).is_ok();
    let mut ways = Vec::new();
    for shard in (0..SHARDS).map(ShardId) {
        let (seen, all) = disk.contents(&mut store, shard, what & 1 == 0);
        ways.push((seen.len(), all));
        let good = &image.contents[shard.index()];
        if honest && what & 1 == 0 && !slots_changed {
            assert_eq!(seen[..], good[..seen.len()], "damage was shown");
            assert!(!all || seen.len() == good.len(), "entries are missing and nobody says so");
        }
        for (key, value) in good.iter().step_by(9) {
            match disk.get(&mut store, shard, key) {
                Ok(found) if honest && !slots_changed => {
                    assert_eq!(found.as_ref(), Some(value), "damage was shown")
                }
                _ => {}
            }
        }
    }
    if walked && what & 2 == 0 {
        disk.scrub(&mut store);
    }
    let mut merged = None;
    if walked && what & 4 == 0 && honest {
        (0..40).for_each(|n| store.put(ShardId(n % SHARDS), &key(u64::from(n) * 7), b"new", false, Stamp(1)));
        (0..SHARDS).for_each(|shard| store.freeze(ShardId(shard), Lsn(1 << 20), Stamp(1)));
        store.commit_through(Stamp(1));
        merged = Some(disk.merge(&mut store).is_ok());
    }
    way((sealing, walked, ways, merged, store.damaged_pages().count().min(4)))
}

/// Seeds: each kind of sealing, over edits of each page.
pub fn seeds() -> Vec<Vec<u8>> {
    let pages = image().pages.len() as u8;
    let mut all = vec![vec![0, 0], vec![1, 0], vec![2, 0]];
    for page in 0..=pages {
        for sealing in 0..3 {
            all.push(vec![sealing, page % 8, page, 40, 0, 0, page % 8, page.wrapping_add(3), 12, 0, 1, 7]);
            // A child, a link or a root that names another page.
            all.push(vec![sealing, 0, page, 0xd8, 0x3f, 1, page.wrapping_mul(7) % pages]);
        }
    }
    all
}

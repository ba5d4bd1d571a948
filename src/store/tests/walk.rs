//! The walk beside everything else: no page that anybody needs is ever handed out, whatever happens meanwhile.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::world::*;
use crate::base::limits::PAGE_BYTES;
use crate::base::{Lsn, ShardId};
use crate::record::key::meta_key;
use crate::store::page;
use crate::store::*;

const SHARD: ShardId = ShardId(0);

fn key(n: u32) -> Vec<u8> {
    let mut key = Vec::new();
    meta_key(format!("key:{n:06}").as_bytes(), &mut key);
    key
}

impl World {
    /// One piece of the walk: a page arrives, is repaired, or is asked for.
    pub(super) fn walk_work(&mut self) {
        if !self.walk_reads.is_empty() && self.rng.chance(0.6) {
            let i = self.rng.below(self.walk_reads.len() as u64) as usize;
            let page = self.walk_reads.swap_remove(i);
            return self.walk_page(page);
        }
        if self.rng.chance(0.3) {
            self.mend();
        }
        let max = 1 + self.rng.below(5) as usize;
        match self.store.walk_step(max) {
            WalkStep::Read(pages) => {
                assert!(pages.len() <= max);
                self.walk_reads.extend(pages);
            }
            WalkStep::Waiting => {
                assert_eq!(self.store.walk_waits(), self.walk_reads.is_empty());
                self.mend();
            }
            WalkStep::Working => self.check_protected(),
            WalkStep::Done => {
                assert!(!self.store.walking());
                self.check_protected();
            }
        }
    }

    fn walk_page(&mut self, page: PageNo) {
        let mut bytes = self.disk.page(page).to_vec();
        let bad = self.shape.decay && self.rng.chance(0.1);
        bytes[40] ^= u8::from(bad);
        assert_eq!(
            self.store.walk_read(page, &bytes).is_err(),
            bad,
            "what a superblock names is whole on the disk"
        );
    }

    /// Repairs what is damaged, from the disk, which is good in truth.
    fn mend(&mut self) {
        for page in self.store.damaged_pages().collect::<Vec<_>>() {
            let bytes = self.disk.page(page).to_vec();
            self.store.page_read(page, &bytes).unwrap();
        }
    }

    /// Opens the store again, as after a clean end.
    fn reopen(&mut self) {
        self.settle();
        self.walk_reads.clear();
        self.open();
    }

    fn walk_to_end(&mut self) {
        while self.store.walking() {
            self.walk_work();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn no_page_that_is_needed_is_handed_out_at_any_point_of_the_walk(
        seed: u64,
        cache_pages in prop::sample::select(vec![0usize, 3, 40]),
        keys in prop::sample::select(vec![20u64, 200, 1000]),
        long_keys: bool,
        rollbacks: bool,
        decay: bool,
        walks in prop::sample::select(vec![1u64, 5, 20, 60]),
    ) {
        let shape = Shape { cache_pages, keys, long_keys, crashes: true, rollbacks, decay, walks };
        let mut world = World::new(seed, shape);
        for round in 0..8 {
            for _ in 0..250 {
                world.step();
            }
            if round % 2 == 0 {
                world.crash();
            }
        }
        world.settle();
        world.check_all();
        world.check_against_replay();
    }
}

/// Two levels, short, inline and long values.
fn world(seed: u64) -> World {
    let mut world = World::new(seed, Shape { cache_pages: 4, ..Shape::default() });
    for round in 0..5u8 {
        for n in (0..400).filter(|n| round == 0 || n % 5 == u32::from(round)) {
            let len = [10, 300, 4000, 40_000][if n % 40 == 0 { 3 } else { n as usize % 3 }];
            world.put(SHARD, key(n), vec![round; len]);
        }
        world.checkpoint_now(SHARD);
    }
    world
}

#[test]
fn what_was_free_is_found_and_what_older_roots_alone_name_is_garbage() {
    let mut world = world(31);
    world.reopen();
    let (pages, free) = world.store.file_pages();
    let known = world.store.slots.iter().flatten().map(|slot| slot.file_pages).max().unwrap();
    assert_eq!(pages, (world.disk.now.len() / PAGE_BYTES) as u64);
    assert_eq!(free, pages - known, "only what no superblock can name");
    world.walk_to_end();
    let mut current = BTreeSet::new();
    for root in world.store.shards.iter().map(|s| s.roots[0]).filter(|root| !root.is_empty()) {
        world.reach_one(&root, &mut current);
    }
    let garbage: usize = world.store.shards.iter().flat_map(|s| &s.garbage).map(|(_, p)| p.len()).sum();
    assert_eq!(
        current.len() + garbage,
        world.protected.len(),
        "older roots' own pages are garbage in waiting"
    );
    let (pages, free) = world.store.file_pages();
    assert_eq!(1 + free + world.protected.len() as u64, pages);
}

#[test]
fn checkpoints_go_on_beside_a_walk_that_waits_for_a_repair() {
    let mut world = world(32);
    world.reopen();
    let start = world.store.shards[0].roots[0];
    let bad = match world.store.walk_step(1) {
        WalkStep::Read(pages) => pages[0],
        step => panic!("{step:?}"),
    };
    assert_eq!(bad, start.page, "the newest root comes first");
    assert!(world.store.walk_read(bad, &[]).is_err() && world.store.is_damaged(bad));
    // It is good on the disk, but nobody has looked there again.
    let mut held = BTreeSet::new();
    world.reach_one(&start, &mut held);
    let opened = world.store.file_pages().0;
    let image: Vec<Vec<u8>> = held.iter().map(|page| world.disk.page(*page).to_vec()).collect();
    world.shape.walks = 0;
    for round in 0..30u8 {
        if round == 0 {
            // Whoever merges needs the page too: it gets it, and the walk is still to read it again.
            world.mend();
        }
        for n in 0..400 {
            world.put(SHARD, key(n), vec![100 + round; 500 + n as usize]);
        }
        world.checkpoint(SHARD);
        world.commit(world.log.len());
        while world.store.merging(SHARD) {
            world.disk_work();
        }
        world.check_all();
    }
    assert!(world.store.walking());
    for (page, bytes) in held.iter().zip(&image) {
        assert_eq!(world.disk.page(*page), &bytes[..], "what the walk has not met is left alone");
    }
    let grown = world.store.file_pages().0 - opened;
    assert!(grown < 400, "pages made since the start are used again: {grown}");
    world.shape.walks = 50;
    world.walk_to_end();
    assert!(held.iter().all(|page| world.store.pages.space.is_free(*page)), "nobody needs them any more");
    world.settle();
    world.check_all();
}

#[test]
fn a_bad_page_of_a_root_kept_as_evidence_is_given_up_unless_somebody_reads_it() {
    for pinned in [false, true] {
        let mut world = world(33);
        world.reopen();
        let roots = world.store.shards[0].roots.clone();
        let current = world.store.slots.iter().flatten().map(|slot| slot.roots[0][0].at).min().unwrap();
        let evidence = *roots.iter().find(|root| root.at < current).expect("older roots are kept");
        if pinned {
            assert!(world.store.recompute_start(SHARD, evidence.at, Lsn(u64::MAX)));
        }
        let mut needed = BTreeSet::new();
        for root in roots.iter().filter(|root| root.at >= current) {
            world.reach_one(root, &mut needed);
        }
        let mut all = BTreeSet::new();
        world.reach_one(&evidence, &mut all);
        let (mut refused, mut checkpoints) = (0, 0);
        loop {
            match world.store.walk_step(64) {
                WalkStep::Done => break,
                WalkStep::Working => {}
                WalkStep::Waiting if pinned => {
                    assert!(world.store.is_damaged(evidence.page));
                    world.mend();
                }
                WalkStep::Waiting => {
                    // As long as a superblock names the root, none of its pages is free.
                    assert!(all.iter().all(|page| !world.store.pages.space.is_free(*page)));
                    assert!(world.store.walk_waits() && world.store.walk_shards_left() == 1);
                    world.shape.walks = 0;
                    world.checkpoint(SHARD);
                    world.commit(world.log.len());
                    while world.store.merging(SHARD) {
                        world.disk_work();
                    }
                    checkpoints += 1;
                }
                WalkStep::Read(pages) => {
                    for page in pages {
                        let bad = page == evidence.page && refused == 0;
                        refused += usize::from(bad);
                        let bytes = if bad { Vec::new() } else { world.disk.page(page).to_vec() };
                        assert_eq!(world.store.walk_read(page, &bytes).is_err(), bad);
                    }
                }
            }
        }
        assert_eq!(checkpoints, if pinned { 0 } else { 2 }, "both superblocks are written anew");
        assert_eq!(refused, 1);
        let kept = world.store.shards[0].roots.iter().any(|root| root.at == evidence.at);
        assert_eq!(kept, pinned);
        assert!(needed.iter().all(|page| !world.store.pages.space.is_free(*page)));
        assert!(pinned || !world.store.recompute_start(SHARD, evidence.at, Lsn(u64::MAX)));
    }
}

/// What a lost inner page becomes when another node sends its content, its children looked for in the page file.
fn remade_by_search(world: &mut World, lost: PageNo, content: &[u8]) -> Rebuilt {
    let sent = Found { birth: Lsn::ZERO, bytes: content.to_vec() };
    let Rebuilt::Search(mut search) = world.store.rebuild(lost, &sent, &[]) else {
        panic!("its links are gone")
    };
    while let Some((first, pages)) = world.store.search_next(&search) {
        let at = first.0 as usize * PAGE_BYTES;
        let bytes = world.disk.now[at..at + pages as usize * PAGE_BYTES].to_vec();
        world.store.search_read(&mut search, &bytes);
    }
    world.store.search_done(&search)
}

#[test]
fn a_lost_inner_page_is_not_given_children_that_the_walk_may_free() {
    // When the page is lost: before the walk has come to it, after that, or when newer trees may share its children.
    for when in ["before", "after", "merging"] {
        let mut world = world(34);
        world.reopen();
        let root = world.store.shards[0].roots[0];
        let content = page::canonical(world.disk.page(root.page)).to_vec();
        let child = page::child(world.disk.page(root.page), 0).page;
        // The content of a child stands in another page too, from a checkpoint that a crash cut short.
        let known = world.store.pages.space.taken_end();
        let stray =
            (1..child.0).map(PageNo).find(|page| !world.protected.contains(page)).expect("some page is free");
        assert!(stray.0 < known && !world.store.pages.space.is_free(stray));
        let copy = page::canonical(world.disk.page(child)).to_vec();
        let local =
            page::salvaged_local(world.disk.page(child), page::local_bytes(&copy).unwrap()).unwrap().to_vec();
        let at = stray.0 as usize * PAGE_BYTES;
        world.disk.now[at..at + PAGE_BYTES].copy_from_slice(&page::remake(&copy, stray, &local));
        let WalkStep::Read(asked) = world.store.walk_step(1) else { panic!("the walk begins") };
        assert_eq!(asked, [root.page]);
        let whole = world.disk.page(root.page).to_vec();
        match when {
            "after" => {
                world.store.walk_read(root.page, &whole).unwrap();
                let want = pages::Want::Node { level: root.level, digest: root.digest };
                world.store.pages.note_damage(SHARD, root.page, want, key::Key::EMPTY);
                let early = remade_by_search(&mut world, root.page, &content);
                assert!(matches!(early, Rebuilt::Lost(_)), "its children are not known yet: {early:?}");
                let children: Vec<PageNo> =
                    (0..page::count(&whole)).map(|i| page::child(&whole, i).page).collect();
                let unknown = |world: &World| {
                    let walk = world.store.walk.as_ref().expect("it goes on");
                    children.iter().any(|child| !walk.may_be_child(root.page, *child))
                };
                while unknown(&world) {
                    let WalkStep::Read(pages) = world.store.walk_step(64) else { panic!("leaves are read") };
                    for page in pages {
                        let bytes = world.disk.page(page).to_vec();
                        world.store.walk_read(page, &bytes).unwrap();
                    }
                }
            }
            _ => assert!(world.store.walk_read(root.page, &[]).is_err()),
        }
        if when == "merging" {
            world.put(SHARD, key(1), vec![9; 9]);
            world.checkpoint(SHARD);
        }
        let made = remade_by_search(&mut world, root.page, &content);
        let Rebuilt::Page(bytes) = made else {
            assert_eq!(when, "merging", "{made:?}");
            continue;
        };
        assert_ne!(when, "merging", "which of the two a newer tree shares is not known");
        let chosen = page::child(&bytes, 0).page;
        assert!(chosen == child || when == "before" && chosen == stray);
        assert!(world.store.repair_started(root.page));
        let at = root.page.0 as usize * PAGE_BYTES;
        world.disk.now[at..at + PAGE_BYTES].copy_from_slice(&bytes);
        assert!(world.store.repair_written(root.page, &bytes));
        world.walk_to_end();
        assert!(!world.store.pages.space.is_free(chosen), "{when}");
        assert!(when == "before" || world.store.pages.space.is_free(stray), "{when}");
        world.check_all();
    }
}

//! Damaged pages made whole from another node's tree, the scrubber, and checkpoints made once more.

use std::collections::BTreeSet;

use super::world::*;
use crate::base::limits::PAGE_BYTES;
use crate::base::{Lsn, Prng, ShardId};
use crate::record::key::meta_key;
use crate::store::repair::SEARCH_PAGES;
use crate::store::*;

const SHARD: ShardId = ShardId(0);
const KEYS: u32 = 600;

fn key(n: u32) -> Vec<u8> {
    let mut key = Vec::new();
    meta_key(format!("key:{n:06}").as_bytes(), &mut key);
    key
}

/// One of two nodes with the same log. `other`: its page numbers differ, because it made more checkpoints of the other
/// shard.
fn node(other: bool) -> World {
    let mut world = World::new(if other { 21 } else { 20 }, Shape { cache_pages: 8, ..Shape::default() });
    let mut rng = Prng::new(9);
    if other {
        for n in 0..50 {
            world.put(ShardId(1), key(n), vec![1; 3000]);
        }
        world.checkpoint_now(ShardId(1));
    }
    // The same positions on both: the log of the other shard is not the same, that of this one is.
    world.next_at(Lsn(1 << 20));
    for round in 0..5u8 {
        for n in 0..KEYS {
            let len = match n % 50 {
                0 => 40_000,
                1 => 12_000,
                _ => 100 + rng.below(900) as usize,
            };
            world.put(SHARD, key(n), vec![round; len]);
        }
        world.next_at(Lsn((2 + u64::from(round)) << 20));
        world.checkpoint_now(SHARD);
    }
    world
}

/// Every page of the current tree of the shard.
fn live(world: &World) -> BTreeSet<PageNo> {
    let mut pages = BTreeSet::new();
    let root = world.store.shards[0].roots[0];
    world.reach_one(&root, &mut pages);
    pages
}

fn serve(world: &mut World, ask: &PageAsk) -> Option<Found> {
    loop {
        match world.store.find(ask) {
            Ok(found) => return found,
            Err(miss) => {
                for page in world.store.wanted(miss) {
                    let bytes = world.disk.page(page).to_vec();
                    world.store.hold(page);
                    world.store.page_read(page, &bytes).unwrap();
                }
            }
        }
    }
}

/// Repairs everything that is known to be damaged; says how many pages were found again only by a search, and which
/// could not be made again.
fn repair(world: &mut World, peer: &mut World) -> (usize, BTreeSet<PageNo>) {
    let (mut searched, mut lost) = (0, BTreeSet::new());
    for page in world.store.damaged_pages().collect::<Vec<_>>() {
        let ask = world.store.repair_ask(page).expect("it is damaged");
        let found = serve(peer, &ask).expect("the other node has it");
        let mut forged = found.clone();
        forged.bytes[0] ^= 1;
        let on_disk = world.disk.page(page).to_vec();
        assert!(matches!(world.store.rebuild(page, &forged, &on_disk), Rebuilt::Refused(_)));
        let mut made = world.store.rebuild(page, &found, &on_disk);
        if let Rebuilt::Search(mut search) = made {
            searched += 1;
            while let Some((first, pages)) = world.store.search_next(&search) {
                assert!(pages <= SEARCH_PAGES);
                let at = first.0 as usize * PAGE_BYTES;
                let bytes = world.disk.now[at..at + pages as usize * PAGE_BYTES].to_vec();
                world.store.search_read(&mut search, &bytes);
            }
            made = world.store.search_done(&search);
        }
        match made {
            Rebuilt::Page(bytes) => {
                assert!(world.store.repair_started(page) && !world.store.repair_started(page));
                let at = page.0 as usize * PAGE_BYTES;
                world.disk.now[at..at + PAGE_BYTES].copy_from_slice(&bytes);
                assert!(world.store.repair_written(page, &bytes));
            }
            Rebuilt::Lost(_) => drop(lost.insert(page)),
            other => panic!("{other:?}"),
        }
    }
    (searched, lost)
}

/// One pass of the scrubber; the pages that it read and those that it found bad.
fn scrub(world: &mut World) -> (BTreeSet<PageNo>, BTreeSet<PageNo>) {
    let (mut read, mut bad) = (BTreeSet::new(), BTreeSet::new());
    loop {
        match world.store.scrub_step(7) {
            Scrubbed::Read(pages) => {
                for page in pages {
                    assert!(read.insert(page), "a page is read once");
                    let bytes = world.disk.page(page).to_vec();
                    if world.store.scrub_read(page, &bytes).is_err() {
                        bad.insert(page);
                    }
                }
            }
            Scrubbed::Waiting => unreachable!("all reads come back at once"),
            Scrubbed::Done => return (read, bad),
        }
    }
}

#[test]
fn the_scrubber_reads_every_live_page_and_finds_what_is_bad() {
    let mut world = node(true);
    let mut all = live(&world);
    let root = world.store.shards[1].roots[0];
    world.reach_one(&root, &mut all);
    let whole = world.disk.now.clone();
    assert_eq!(scrub(&mut world), (all.clone(), BTreeSet::new()));
    let mut rng = Prng::new(2);
    for page in &all {
        world.disk.now.clone_from(&whole);
        world.disk.now[page.0 as usize * PAGE_BYTES + rng.below(PAGE_BYTES as u64) as usize] ^= 1;
        let (_, bad) = scrub(&mut world);
        assert_eq!(bad, BTreeSet::from([*page]));
        assert!(world.store.is_damaged(*page));
        world.store.page_read(*page, page_of(&whole, *page)).unwrap();
    }
    assert!(world.store.pins.is_empty());
}

#[test]
fn flipped_bits_are_repaired_byte_for_byte() {
    let (mut world, mut peer) = (node(false), node(true));
    assert_eq!(world.store.root(SHARD), peer.store.root(SHARD), "the same log, the same root");
    let (ours, theirs) = (live(&world), live(&peer));
    assert_ne!(ours, theirs, "page numbers are local");
    let whole = world.disk.now.clone();
    let mut rng = Prng::new(3);
    for round in 0..12 {
        for page in &ours {
            let at = page.0 as usize * PAGE_BYTES + rng.below(400) as usize;
            world.disk.now[at] ^= 1 << rng.below(8);
        }
        // What lies below a damaged page is found once that page is whole.
        let mut passes = 0;
        loop {
            let (_, bad) = scrub(&mut world);
            if bad.is_empty() {
                break;
            }
            let (searched, lost) = repair(&mut world, &mut peer);
            assert_eq!((searched, lost), (0, BTreeSet::new()), "round {round}");
            passes += 1;
            assert!(passes < 10);
        }
        assert!(world.disk.now == whole, "every page is what it was, local parts included");
    }
    world.check_all();
}

#[test]
fn a_page_that_is_gone_is_made_again() {
    let (mut world, mut peer) = (node(false), node(true));
    let whole = world.disk.now.clone();
    let (mut searched, mut lost) = (0, 0);
    for page in live(&world) {
        world.disk.now.clone_from(&whole);
        let at = page.0 as usize * PAGE_BYTES;
        world.disk.now[at..at + PAGE_BYTES].fill(0);
        assert_eq!(scrub(&mut world).1, BTreeSet::from([page]));
        let (by_search, gone) = repair(&mut world, &mut peer);
        searched += by_search;
        if gone.is_empty() {
            assert!(world.disk.now == whole, "page {page:?} is what it was");
        } else {
            // Links to overflow pages stand nowhere else: such a page needs a build.
            lost += 1;
            world.store.page_read(page, page_of(&whole, page)).unwrap();
        }
    }
    world.disk.now.clone_from(&whole);
    assert!(searched > 0 && lost > 0 && lost < live(&world).len() / 2, "{searched} searched, {lost} lost");
    world.check_all();
}

#[test]
fn a_look_up_of_a_damaged_page_goes_on_when_it_is_whole() {
    let (mut world, mut peer) = (node(false), node(true));
    let mut rng = Prng::new(8);
    let mut damaged = 0;
    for n in (0..KEYS).map(|n| n * 7 % KEYS) {
        loop {
            let miss = match world.store.get(SHARD, &key(n)) {
                Ok(seen) => {
                    assert_eq!(seen.value, world.models[0].get(&key(n)).map(|v| &v[..]));
                    break;
                }
                Err(miss) => miss,
            };
            world.store.hold(miss.page);
            let mut bytes = world.disk.page(miss.page).to_vec();
            bytes[rng.below(400) as usize] ^= 8;
            world.store.page_read(miss.page, &bytes).expect_err("damage is found");
            assert_eq!(world.store.get(SHARD, &key(n)), Err(miss), "nothing wrong is ever shown");
            let ask = world.store.repair_ask(miss.page).unwrap();
            let found = serve(&mut peer, &ask).expect("the other node has it");
            let Rebuilt::Page(made) = world.store.rebuild(miss.page, &found, &bytes) else { panic!() };
            assert!(made == world.disk.page(miss.page));
            assert!(world.store.repair_started(miss.page) && world.store.repair_written(miss.page, &made));
            damaged += 1;
        }
    }
    assert!(damaged > 50, "{damaged}");
}

#[test]
fn a_page_that_nobody_needs_any_more_is_not_repaired() {
    let mut world = node(false);
    let page = world.store.shards[0].roots[0].page;
    world.store.pages.cache = cache::Cache::new(PAGE_BYTES);
    world.store.get(SHARD, &key(1)).expect_err("nothing is cached");
    world.store.page_read(page, &[]).expect_err("it cannot be read");
    assert!(world.store.repair_started(page));
    let good = world.disk.page(page).to_vec();
    // Its trees go while it is being written: it rests until that has come back.
    for page in world.store.damaged_pages().collect::<Vec<_>>() {
        world.store.pages.free(page);
    }
    assert!(!world.store.pages.space.is_free(page));
    assert!(!world.store.repair_written(page, &good));
    assert!(world.store.pages.space.is_free(page) && world.store.repair_ask(page).is_none());
}

fn recompute(world: &mut World, from: Lsn, at: Lsn) -> crate::base::Digest {
    assert!(world.store.recompute_start(SHARD, from, at));
    for logged in world.log.iter().filter(|l| l.at > from && l.at < at && l.shard == SHARD) {
        match &logged.rec {
            Rec::Put { key, value, created } => world.store.recompute_put(key, value, *created),
            Rec::Delete { key } => world.store.recompute_delete(key, true),
            other => panic!("{other:?}"),
        }
    }
    let free = world.store.file_pages().1;
    loop {
        match world.store.recompute_step(3) {
            RecomputeStep::NeedPages(pages) => {
                for page in pages {
                    let bytes = world.disk.page(page).to_vec();
                    world.store.page_read(page, &bytes).unwrap();
                }
            }
            RecomputeStep::Waiting => panic!("every page was brought"),
            RecomputeStep::Working => {}
            RecomputeStep::Done(digest) => {
                world.store.recompute_end();
                assert_eq!(world.store.file_pages().1, free, "nothing is written");
                assert!(world.store.pins.is_empty());
                return digest;
            }
        }
    }
}

#[test]
fn a_checkpoint_made_once_more_tells_who_is_wrong() {
    let (mut world, mut sick) = (node(false), node(false));
    for world in [&mut world, &mut sick] {
        for n in 0..KEYS {
            match n % 3 {
                0 => world.put(SHARD, key(n), vec![77; 60 + n as usize * 20]),
                1 => world.delete(SHARD, key(n)),
                _ => {}
            }
        }
        world.put(SHARD, key(KEYS + 1), vec![3; 9_000]);
    }
    assert!(sick.store.flip_bit_in_delta(SHARD, &key(3)));
    world.next_at(Lsn(100 << 20));
    sick.next_at(Lsn(100 << 20));
    world.checkpoint_now(SHARD);
    sick.checkpoint_now(SHARD);
    let (at, sound) = world.store.root(SHARD);
    let (_, wrong) = sick.store.root(SHARD);
    assert_ne!(sound, wrong, "one flipped bit in memory shows at the next checkpoint");
    let (from, _) = world.store.root_before(SHARD, at).unwrap();
    assert_eq!(recompute(&mut world, from, at), sound);
    assert_eq!(recompute(&mut sick, from, at), sound, "the sick node's own log says otherwise");
    // A cached page that decays in memory is not believed either.
    assert!(world.store.root_before(SHARD, Lsn(1)).is_none_or(|(at, _)| at == Lsn::ZERO));
    assert!(!world.store.recompute_start(SHARD, Lsn(12345), at), "that root is not kept");
}

//! The shape of trees and of the file: growth, shrinking, reuse.

use super::world::*;
use crate::base::{Digest, Lsn, ShardId, Stamp};
use crate::record::key::meta_key;
use crate::store::*;

const SHARD: ShardId = ShardId(1);

fn key(n: u32) -> Vec<u8> {
    let mut key = Vec::new();
    meta_key(format!("key:{n:06}").as_bytes(), &mut key);
    key
}

fn world(cache_pages: usize) -> World {
    World::new(9, Shape { cache_pages, ..Shape::default() })
}

fn level(world: &World) -> u8 {
    world.store.shards[SHARD.index()].roots[0].level
}

#[test]
fn deletes_shrink_the_tree_to_nothing() {
    let mut world = world(2);
    // Fences share a long prefix: few children per inner page, many levels.
    let long = |n: u32| [&[b'f'; 3000][..], &key(n)].concat();
    for n in 0..300 {
        world.put(SHARD, long(n), vec![7; 100]);
    }
    world.checkpoint_now(SHARD);
    assert!(level(&world) >= 3);
    world.check_all();
    let mut levels = vec![level(&world)];
    for step in [2, 4, 8, 16, 32, 64, 128, 256] {
        for n in (0..300).filter(|n| n % step != 0 && n % (step / 2) == 0) {
            world.delete(SHARD, long(n));
        }
        world.checkpoint_now(SHARD);
        world.check_all();
        levels.push(level(&world));
    }
    assert!(levels.is_sorted_by(|a, b| a >= b), "{levels:?}");
    assert_eq!(level(&world), 0, "a few keys fit one leaf: {levels:?}");
    world.delete(SHARD, long(0));
    world.delete(SHARD, long(256));
    (0..5).for_each(|_| world.checkpoint_now(SHARD));
    assert!(world.store.shards[SHARD.index()].roots[0].is_empty());
    let (pages, free) = world.store.file_pages();
    assert_eq!(free + 1, pages, "an empty store keeps no page");
}

#[test]
fn a_sparse_delete_leaves_no_tree_of_crumbs() {
    let mut world = world(64);
    for n in 0..6000 {
        world.put(SHARD, key(n), vec![1; 100]);
    }
    world.checkpoint_now(SHARD);
    let full = world.protected.len();
    for n in (0..6000).filter(|n| n % 40 != 0) {
        world.delete(SHARD, key(n));
    }
    (0..4).for_each(|_| world.checkpoint_now(SHARD));
    assert!(world.protected.len() * 8 < full, "{} pages of {full}", world.protected.len());
    world.check_all();
}

#[test]
fn pages_are_well_filled_after_random_inserts() {
    let mut world = world(64);
    let mut rng = crate::base::Prng::new(1);
    let mut bytes = 0;
    for _ in 0..20 {
        for _ in 0..400 {
            let key = key(rng.below(1 << 20) as u32);
            bytes += key.len() + 107;
            world.put(SHARD, key, vec![1; 100]);
        }
        world.checkpoint_now(SHARD);
    }
    let root = &world.store.shards[SHARD.index()].roots[0];
    let mut pages = std::collections::BTreeSet::new();
    world.reach_one(root, &mut pages);
    let filled = bytes as f64 / (pages.len() * 16384) as f64;
    assert!(filled > 0.6, "pages are {filled:.2} full");
}

#[test]
fn the_file_stays_bounded_under_churn() {
    let mut world = world(16);
    let mut rng = crate::base::Prng::new(2);
    let mut sizes = Vec::new();
    for round in 0..120 {
        for _ in 0..60 {
            let key = key(rng.below(400) as u32);
            if rng.chance(0.3) && world.models[SHARD.index()].contains_key(&key) {
                world.delete(SHARD, key);
            } else {
                let len = if rng.chance(0.05) { 30_000 } else { 400 };
                world.put(SHARD, key, vec![round; len]);
            }
        }
        world.checkpoint_now(SHARD);
        sizes.push(world.store.file_pages().0);
    }
    assert_eq!(sizes[40], sizes[119], "the file grew after it had reached its size: {sizes:?}");
}

#[test]
fn an_unchanged_delta_makes_no_page() {
    let mut world = world(64);
    for n in 0..500 {
        world.put(SHARD, key(n), vec![1; if n == 9 { 50_000 } else { 100 }]);
    }
    world.checkpoint_now(SHARD);
    let before = world.store.shards[SHARD.index()].roots[0];
    for n in 0..500 {
        world.put(SHARD, key(n), vec![1; if n == 9 { 50_000 } else { 100 }]);
    }
    world.delete(SHARD, key(10_000));
    world.checkpoint_now(SHARD);
    let after = world.store.shards[SHARD.index()].roots[0];
    assert_eq!((after.page, after.digest), (before.page, before.digest));
    assert!(after.at > before.at);
}

#[test]
fn a_pinned_root_keeps_its_pages() {
    let mut world = world(8);
    for n in 0..300 {
        world.put(SHARD, key(n), vec![1; 500]);
    }
    world.checkpoint_now(SHARD);
    let at = world.store.pin(SHARD);
    let root = world.store.shards[SHARD.index()].roots[0];
    for round in 2..12 {
        for n in 0..300 {
            world.put(SHARD, key(n), vec![round; 500]);
        }
        world.checkpoint_now(SHARD);
        // The pinned tree is still whole.
        world.reach_one(&root, &mut std::collections::BTreeSet::new());
    }
    let (_, free) = world.store.file_pages();
    world.store.unpin(SHARD, at);
    assert!(world.store.file_pages().1 > free, "unpinning frees");
}

#[test]
fn stamps_follow_what_a_reader_could_have_seen() {
    let mut store = Store::create(config(4));
    let s = ShardId(0);
    let key = key(1);
    assert_eq!(store.get(s, &key).unwrap(), Seen { value: None, stamp: Stamp(0) });
    store.put(s, &key, b"v", true, Stamp(3));
    assert_eq!(store.get(s, &key).unwrap(), Seen { value: Some(b"v"), stamp: Stamp(3) });
    assert_eq!(store.count(s), (1, Stamp(3)));
    store.delete(s, &key, true, Stamp(4));
    assert_eq!(store.get(s, &key).unwrap(), Seen { value: None, stamp: Stamp(4) });
    let mark = store.mark();
    store.clear_shard(s, Stamp(6));
    assert_eq!(store.get(s, b"other").unwrap(), Seen { value: None, stamp: Stamp(6) });
    assert_eq!((store.count(s), store.last_stamp(s)), ((0, Stamp(6)), Stamp(6)));
    store.undo_to(mark);
    assert_eq!((store.get(s, b"other").unwrap().stamp, store.last_stamp(s)), (Stamp(0), Stamp(4)));
    store.freeze(s, Lsn(500), Stamp(7));
    assert_eq!(store.get(s, &key).unwrap().stamp, Stamp(4), "a frozen tombstone keeps its stamp");
    store.commit_through(Stamp(3));
    store.rollback_above(Stamp(3));
    assert!(!store.merging(s), "the uncommitted checkpoint is gone");
    assert_eq!(store.get(s, &key).unwrap(), Seen { value: Some(b"v"), stamp: Stamp(3) });
    assert_eq!(store.count(s), (1, Stamp(3)));
    let memory = store.memory();
    assert_eq!((memory.undo_bytes, memory.frozen_bytes), (0, 0));
}

#[test]
fn back_pressure_counts_active_and_frozen_deltas() {
    let mut world = world(4);
    let value = vec![0; 1000];
    let mut n = 0;
    while !world.store.delta_full() {
        world.put(SHARD, key(n), value.clone());
        n += 1;
    }
    assert!((800..1100).contains(&n), "one MiB in {n} puts");
    world.checkpoint(SHARD);
    assert!(world.store.delta_full(), "frozen bytes count");
    world.settle();
    assert!(!world.store.delta_full());
    assert_eq!(world.store.memory().frozen_bytes + world.store.memory().delta_bytes, 0);
    assert_eq!(world.digests.len(), 1);
    assert_ne!(world.store.root(SHARD).1, Digest::ZERO);
    while let MergeStep::Working = world.store.merge_step(1) {}
    assert!(world.store.rubbish.is_empty(), "an idle store has dropped its finished deltas");
}

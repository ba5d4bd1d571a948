//! What is under way when something is taken back: late writes, late reads, half-made merges.

use std::collections::BTreeSet;

use super::world::*;
use crate::base::{Lsn, ShardId, Stamp};
use crate::record::key::{TAG_ELEMENT, meta_key, prefix};
use crate::store::*;

const SHARD: ShardId = ShardId(0);

fn key(n: u32) -> Vec<u8> {
    let mut key = Vec::new();
    meta_key(format!("key:{n:06}").as_bytes(), &mut key);
    key
}

fn element(n: u32) -> Vec<u8> {
    let mut key = Vec::new();
    prefix(b"collection", &mut key);
    key.push(TAG_ELEMENT);
    key.extend_from_slice(&n.to_be_bytes());
    key
}

fn world(cache_pages: usize) -> World {
    let mut world = World::new(11, Shape { cache_pages, ..Shape::default() });
    for n in 0..300 {
        world.put(SHARD, key(n), vec![1; if n % 50 == 0 { 40_000 } else { 500 }]);
    }
    world.checkpoint_now(SHARD);
    world
}

/// Runs a merge until `writes` writes are under way, which are returned and not carried out.
fn start_writes(world: &mut World, writes: usize) -> Vec<(PageNo, u64)> {
    let mut out = Vec::new();
    while out.len() < writes {
        match world.store.merge_step(3) {
            MergeStep::Write(runs) => {
                out.extend(runs.iter().map(|(first, data)| (*first, data.len() as u64 / 16384)));
            }
            MergeStep::NeedPages(pages) => {
                for page in pages {
                    let bytes = world.disk.page(page).to_vec();
                    world.store.page_read(page, &bytes).unwrap();
                }
            }
            MergeStep::Grow { to_pages } => world.grow(to_pages),
            MergeStep::Merged { .. } => return out,
            MergeStep::Working | MergeStep::Waiting | MergeStep::Idle => {}
        }
    }
    out
}

#[test]
fn pages_of_a_dropped_merge_come_back_when_their_writes_have() {
    for writes in [0, 1, 5, 1000] {
        let mut world = world(4);
        let (pages_before, free_before) = world.store.file_pages();
        for n in 0..300 {
            world.put(SHARD, key(n), vec![2; if n % 50 == 0 { 39_000 } else { 450 }]);
        }
        world.checkpoint(SHARD);
        let late = start_writes(&mut world, writes);
        world.rollback();
        assert!(!world.store.merging(SHARD));
        world.check_all();
        let in_write: u64 = late.iter().map(|(_, pages)| pages).sum();
        let (pages, free) = world.store.file_pages();
        assert_eq!(
            free + in_write,
            free_before + pages - pages_before,
            "all but the pages in write are free"
        );
        // Another merge under the same positions, while the old writes are still out.
        for n in 0..300 {
            world.put(SHARD, key(n), vec![3; 470]);
        }
        world.checkpoint(SHARD);
        let again = start_writes(&mut world, 1000);
        let set = |runs: &[(PageNo, u64)]| -> BTreeSet<u64> {
            runs.iter().flat_map(|(first, pages)| first.0..first.0 + pages).collect()
        };
        assert!(set(&late).is_disjoint(&set(&again)), "a late write would land on a new page");
        assert!(world.store.superblock(Lsn::MAX).is_none());
        late.iter().for_each(|(first, _)| world.store.page_written(*first));
        assert!(world.store.wants_flush().is_none(), "the old writes are not the new ones");
        world.rollback();
        again.iter().for_each(|(first, _)| world.store.page_written(*first));
        let (pages, free) = world.store.file_pages();
        assert_eq!(free, free_before + pages - pages_before);
        world.check_all();
        world.settle();
    }
}

#[test]
fn a_page_is_not_reused_while_a_read_of_it_is_out() {
    let mut world = World::new(12, Shape { cache_pages: 0, ..Shape::default() });
    for n in 0..300 {
        world.put(SHARD, key(n), vec![1; 500]);
    }
    world.checkpoint_now(SHARD);
    let miss = world.store.get(SHARD, &key(7)).unwrap_err();
    assert_eq!(
        page::level(world.disk.page(miss.page)),
        0,
        "the root is the page made last: it is in the cache"
    );
    let old = world.disk.page(miss.page).to_vec();
    // A cleared tree's plain leaves go without being read, so the reader's read is the only one.
    world.store.clear_shard(SHARD, Stamp(1 << 20));
    world.log_one(SHARD, Rec::Clear);
    world.log.last_mut().unwrap().stamp = Stamp(1 << 20);
    world.settle();
    for round in 0..12 {
        for n in 0..300 {
            world.put(SHARD, key(n), vec![round; 480]);
        }
        world.checkpoint_now(SHARD);
        assert!(!world.store.pages.space.is_free(miss.page));
        assert_eq!(world.disk.page(miss.page), &old[..], "the page rests");
    }
    assert!(world.store.pages.space.is_resting(miss.page));
    // The late bytes, good or bad, are nobody's any more.
    let mut bytes = old;
    bytes[77] ^= 1;
    assert_eq!(world.store.page_read(miss.page, &bytes), Ok(()));
    assert!(!world.store.pages.cache.has(miss.page));
    assert!(world.store.pages.space.is_free(miss.page));
}

#[test]
fn bytes_that_nobody_expects_change_nothing() {
    let mut world = world(2);
    for page in 0..world.store.file_pages().0 {
        let bytes = world.disk.page(PageNo(page)).to_vec();
        assert_eq!(world.store.page_read(PageNo(page), &bytes), Ok(()));
        assert_eq!(world.store.page_read(PageNo(page), &[]), Ok(()));
    }
    world.check_all();
}

#[test]
fn what_is_put_into_a_deleted_range_survives_the_merge() {
    let mut world = world(2);
    for n in 0..2000 {
        world.put(SHARD, element(n), vec![4; if n == 700 { 20_000 } else { 100 }]);
    }
    world.checkpoint_now(SHARD);
    for n in 0..2000 {
        if n % 500 == 0 {
            world.delete_range(SHARD, element(10 + n), element(490 + n));
        }
        if n % 100 == 50 {
            world.put(SHARD, element(n), vec![5; 10]);
        }
    }
    world.check_all();
    world.checkpoint(SHARD);
    world.check_all();
    world.settle();
    world.check_all();
    world.check_against_replay();
    // Whole subtrees went unread: nothing of them stays behind.
    (0..4).for_each(|_| world.checkpoint_now(SHARD));
    assert!(world.store.shards[SHARD.index()].garbage.iter().all(|(_, pages)| pages.is_empty()));
}

#[test]
fn a_checkpoint_waits_for_commit_write_and_flush_in_this_order() {
    let mut world = world(64);
    let before = world.store.checkpoint_lsn(SHARD);
    world.put(SHARD, key(1), b"new".to_vec());
    world.checkpoint(SHARD);
    let at = world.log.last().unwrap().at;
    let writes = start_writes(&mut world, 1000);
    assert!(!writes.is_empty());
    assert!(world.store.wants_flush().is_none(), "not written");
    let (last, first) = writes.split_last().unwrap();
    first.iter().for_each(|(page, _)| world.store.page_written(*page));
    assert!(world.store.wants_flush().is_none(), "not all written");
    world.store.page_written(last.0);
    let token = world.store.wants_flush().expect("all written");
    assert!(world.store.wants_flush().is_none(), "one flush is enough");
    let stamp = world.log.last().unwrap().stamp;
    assert!(world.store.superblock(Lsn::MAX).is_none(), "not flushed, not committed");
    world.store.pages_flushed(token);
    assert!(world.store.superblock(Lsn::MAX).is_none(), "its stamp is not committed");
    world.store.commit_through(stamp);
    assert!(world.store.superblock(Lsn(at.0 - 1)).is_none(), "its position is not committed");
    let image = world.store.superblock(at).expect("all is there");
    assert_eq!(image.covers.iter().map(|c| (c.0, c.1)).collect::<Vec<_>>(), [(SHARD, at)]);
    assert!(world.store.superblock(at).is_none(), "one superblock at a time");
    assert_eq!(world.store.checkpoint_lsn(SHARD), before);
    assert!(world.store.merging(SHARD));
    world.store.superblock_durable();
    assert_eq!(world.store.checkpoint_lsn(SHARD), at);
    assert_eq!(world.store.root(SHARD), (at, image.covers[0].2));
    assert!(!world.store.merging(SHARD));
    // The older slot still needs the log from the checkpoint before; the other shard never had one.
    assert_eq!(world.store.redo_from(), Lsn::ZERO);
}

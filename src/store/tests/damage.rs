//! Bytes from the disk that are not what they should be: every kind is found, none panics, good bytes help.

use super::world::*;
use crate::base::limits::PAGE_BYTES;
use crate::base::{ClusterId, Prng, ShardId};
use crate::record::key::meta_key;
use crate::store::key::Key;
use crate::store::*;

const SHARD: ShardId = ShardId(0);

fn key(n: u32) -> Vec<u8> {
    let mut key = Vec::new();
    meta_key(format!("key:{n:06}").as_bytes(), &mut key);
    key
}

/// Two levels, short, inline and long values, and an older version of the disk.
fn world() -> (World, Disk) {
    let mut world = World::new(5, Shape { cache_pages: 1, ..Shape::default() });
    for round in 0..8u8 {
        for n in 0..400 {
            let len = [10, 300, 4000, 40_000][if n % 40 == 0 { 3 } else { n as usize % 3 }];
            world.put(SHARD, key(n), vec![round; len]);
        }
        if round >= 4 {
            world.checkpoint_now(SHARD);
        }
    }
    let old = world.disk.clone();
    for round in 10..16u8 {
        for n in 0..400 {
            let len = [11, 280, 3900, 39_000][if n % 40 == 0 { 3 } else { n as usize % 3 }];
            world.put(SHARD, key(n), vec![round; len]);
        }
        world.checkpoint_now(SHARD);
    }
    (world, old)
}

/// A page number becomes an offset: one that no page file can have is refused before anybody multiplies it.
#[test]
fn a_page_that_links_to_an_impossible_place_is_damage() {
    use crate::base::Digest;
    use crate::base::limits::PAGE_FILE_PAGES_MAX;
    use crate::store::page::{Big, Child, Entry, Value, make_big, make_inner, make_leaf, verify};

    let child = |page: PageNo| Child {
        fence: Key::EMPTY,
        page,
        digest: Digest(1),
        birth: Lsn(1),
        entries: 1,
        size: 100,
        count: 1,
        overflow: false,
    };
    let long = |page: PageNo| {
        let big = Big { len: 5000, digest: Digest(1), head: [0; HEAD_BYTES], page, check: 1 };
        [Entry { key: Key::from(&b"k"[..]), value: Value::Big(big) }]
    };
    let value = vec![7; 20_000];
    let number = PageNo(3);
    for (page, good) in [(0, false), (PAGE_FILE_PAGES_MAX, false), (u64::MAX, false), (9, true)] {
        let page = PageNo(page);
        let inner = make_inner(SHARD, Lsn(1), number, 1, &[child(page)]);
        let leaf = make_leaf(SHARD, Lsn(1), number, &long(page));
        let head = make_big(SHARD, Lsn(1), number, &value, 0, &[(page, 1)]);
        for made in [inner, leaf, head] {
            assert_eq!(verify(&made, number).is_ok(), good, "{page:?}");
        }
    }
}

/// What a superblock declares becomes neither memory nor work: the file is measured.
#[test]
fn a_superblock_that_declares_a_huge_file_is_not_believed() {
    use crate::base::limits::PAGE_FILE_PAGES_MAX;
    use crate::store::superblock::{Root, Slot};

    let config = StoreConfig { cluster: ClusterId(1), shards: 1, cache_bytes: 0, delta_bytes: 1 << 16 };
    let slot = Slot { sequence: 2, file_pages: PAGE_FILE_PAGES_MAX, roots: vec![vec![Root::EMPTY]] };
    let mut store = Store::open(config.clone(), Some(&slot.encode(config.cluster)), None).unwrap();
    store.pages_grown(10);
    while store.walk_step(64) != WalkStep::Done {}
    assert_eq!(store.file_pages(), (10, 9));
    // Where the superblock says that more pages were, none is given away before a start has looked at them.
    store.pages_grown(20);
    assert_eq!(store.file_pages(), (20, 9));
}

/// Looks all keys up; each page is first offered in the forms `bad` makes of it, which must all be refused.
fn look_at_all(world: &mut World, mut bad: impl FnMut(PageNo, &[u8]) -> Vec<Vec<u8>>) -> usize {
    let (mut refused, mut pages) = (0, 0);
    for n in (0..400).map(|n| n * 37 % 400) {
        let mut held = Vec::new();
        loop {
            let miss = match world.store.get(SHARD, &key(n)) {
                Ok(seen) => {
                    assert_eq!(seen.value, world.models[0].get(&key(n)).map(|v| &v[..]));
                    break;
                }
                Err(miss) => miss,
            };
            world.store.hold(miss.page);
            held.push(miss.page);
            let good = world.disk.page(miss.page).to_vec();
            for bytes in bad(miss.page, &good) {
                let damage = world.store.page_read(miss.page, &bytes).expect_err("damage is found");
                assert_eq!((damage.shard, damage.page), (SHARD, miss.page));
                refused += 1;
                // The page is asked for again.
                assert_eq!(world.store.get(SHARD, &key(n)), Err(miss));
            }
            world.store.page_read(miss.page, &good).unwrap();
            pages += 1;
        }
        held.into_iter().for_each(|page| world.store.release(page));
    }
    assert!(pages > 400, "nearly every look-up reads: {pages}");
    refused
}

#[test]
fn every_kind_of_flipped_byte_is_found() {
    let (mut world, _) = world();
    let mut rng = Prng::new(3);
    let mut turn = 0;
    let refused = look_at_all(&mut world, |_, good| {
        turn += 1;
        // Header and trailer byte by byte over the run, body and local part at random places.
        let places =
            [turn % 32, PAGE_BYTES - 32 + turn % 32, rng.below(PAGE_BYTES as u64) as usize, PAGE_BYTES - 40];
        let mut forms: Vec<Vec<u8>> = places
            .into_iter()
            .map(|at| {
                let mut bytes = good.to_vec();
                bytes[at] ^= 1 << rng.below(8);
                bytes
            })
            .collect();
        forms.push(vec![0; PAGE_BYTES]);
        forms.push(good[..PAGE_BYTES - 512].to_vec());
        forms.push(Vec::new());
        forms
    });
    assert!(refused > 1000);
}

#[test]
fn misdirected_and_stale_pages_are_found() {
    let (mut world, old) = world();
    let all: Vec<PageNo> = world.protected.iter().copied().collect();
    let now = world.disk.now.clone();
    let mut rng = Prng::new(4);
    let mut stale = 0;
    look_at_all(&mut world, |page, good| {
        let other = all[rng.below(all.len() as u64) as usize];
        let mut forms = vec![page_of(&now, other).to_vec(), old.page(page).to_vec()];
        forms.retain(|bytes| bytes != good);
        // The same bytes in another place do not even pass their own checksum.
        assert!(page::verify(good, page).is_ok() && page::verify(good, other).is_err() == (other != page));
        stale += usize::from(old.page(page)[..4] == *b"BTNP");
        forms
    });
    assert!(stale > 100, "most pages had an earlier, valid life");
}

#[test]
fn bytes_with_a_right_checksum_but_wrong_structure_do_not_panic() {
    // Whoever makes the page also makes its checksum: only the structure is judged.
    let (world, _) = world();
    let mut rng = Prng::new(6);
    for page in world.protected.iter().copied() {
        for _ in 0..40 {
            let mut bytes = world.disk.page(page).to_vec();
            for _ in 0..1 + rng.below(3) {
                let at = if rng.chance(0.7) { rng.below(600) } else { rng.below(PAGE_BYTES as u64 - 16) };
                bytes[at as usize] = rng.next_u64() as u8;
            }
            let sum = crate::base::Digest::seeded(&bytes[..PAGE_BYTES - 16], page.0);
            bytes[PAGE_BYTES - 16..].copy_from_slice(&sum.0.to_le_bytes());
            if page::verify(&bytes, page).is_ok() {
                let count = page::count(&bytes);
                if page::kind_is(&bytes, page::Kind::Leaf) {
                    (0..count).for_each(|i| drop(page::leaf_entry(&bytes, i)));
                    page::leaf_search(&bytes, &key(7));
                } else if page::kind_is(&bytes, page::Kind::Inner) {
                    (0..count).for_each(|i| drop(page::child(&bytes, i)));
                    page::inner_search(&bytes, &key(7));
                } else {
                    page::big_data(&bytes);
                    page::big_rest(&bytes).count();
                }
            }
        }
    }
}

#[test]
fn a_superblock_torn_at_any_sector_falls_back_to_the_other() {
    let (world, old) = world();
    let newest = world.store.slots.iter().flatten().max_by_key(|s| s.sequence).unwrap().clone();
    let place = (newest.sequence % 2) as usize;
    let other = world.store.slots[1 - place].clone().unwrap();
    let (new, before) = (&world.disk.slots[place], &old.slots[place]);
    assert_ne!(new, before);
    let sectors = new.len().div_ceil(512);
    for torn in 0..1u64 << sectors.min(10) {
        let mut slot = before.clone();
        for (i, sector) in new.chunks(512).enumerate().filter(|(i, _)| torn & (1 << i) != 0) {
            slot[i * 512..i * 512 + sector.len()].copy_from_slice(sector);
        }
        let mut slots = [Some(&world.disk.slots[1 - place][..]); 2];
        slots[place] = Some(&slot[..]);
        let store = Store::open(config(4), slots[0], slots[1]).unwrap();
        let root = store.shards[0].roots[0];
        // A slot that is as it was before is older than the other.
        let expected = if &slot == new { newest.roots[0][0] } else { other.roots[0][0] };
        assert_eq!(root, expected, "sectors {torn:b}");
    }
}

#[test]
fn a_store_without_a_whole_slot_does_not_open_and_is_not_empty() {
    let (world, _) = world();
    let [a, b] = world.disk.slots.clone();
    let open = |a: Option<&[u8]>, b: Option<&[u8]>| Store::open(config(4), a, b).map(|s| s.redo_from());
    let zero = vec![0; SLOT_BYTES as usize];
    assert_eq!(open(None, None), Err(StoreError::BothSlotsBad));
    assert_eq!(open(Some(&zero), Some(&zero[..100])), Err(StoreError::BothSlotsBad));
    assert_eq!(open(Some(&b), Some(&a)), Err(StoreError::BothSlotsBad), "slots in each other's place");
    assert!(open(Some(&a), None).is_ok() && open(None, Some(&b)).is_ok());
    let strange = StoreConfig { cluster: ClusterId(1), ..config(4) };
    let error = Store::open(strange, Some(&a), Some(&b)).map(|s| s.redo_from());
    assert_eq!(error, Err(StoreError::OtherCluster(CLUSTER)));
}

#[test]
fn a_damaged_page_stops_a_merge_until_it_is_repaired() {
    let (mut world, _) = world();
    for n in 0..400 {
        world.put(SHARD, key(n), vec![99; 20]);
    }
    world.checkpoint(SHARD);
    world.commit(world.log.len());
    let (mut repaired, mut waited, mut steps) = (0, 0, 0);
    while repaired < 50 {
        match world.store.merge_step(4) {
            MergeStep::NeedPages(pages) => {
                for page in pages {
                    let mut bytes = world.disk.page(page).to_vec();
                    bytes[5000] ^= 4;
                    world.store.page_read(page, &bytes).expect_err("damage is found");
                    assert!(world.store.is_damaged(page));
                }
            }
            MergeStep::Waiting => {
                // Good bytes let it go on.
                waited += 1;
                for page in world.store.damaged_pages().collect::<Vec<_>>() {
                    world.store.page_read(page, page_of(&world.disk.now, page)).unwrap();
                    repaired += 1;
                }
            }
            MergeStep::Working => {}
            MergeStep::Write(runs) => {
                for (first, data) in runs {
                    world.write_now(first, &data);
                }
            }
            step => panic!("a merge went on without its pages: {step:?}"),
        }
        steps += 1;
        assert!(steps < 1000);
    }
    assert!(waited > 0 && world.store.merging(SHARD));
    assert_eq!(world.store.damaged_pages().count(), 0);
    world.settle();
    world.check_all();
}

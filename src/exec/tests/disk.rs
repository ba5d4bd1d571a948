//! The real store with a file of pages in memory and a cache too small for anything.

use std::ops::Bound;

use super::world::TestStore;
use crate::base::limits::PAGE_BYTES;
use crate::base::{ClusterId, Lsn, ShardId, Stamp};
use crate::exec::Shards;
use crate::store::{MergeStep, Miss, PageNo, Store, StoreConfig};

pub struct DiskStore {
    store: Store,
    file: Vec<u8>,
    held: Vec<PageNo>,
    next_at: Lsn,
    shards: u16,
}

impl DiskStore {
    pub fn new(shards: u16) -> DiskStore {
        let store = Store::create(StoreConfig {
            cluster: ClusterId(1),
            shards,
            cache_bytes: 0,
            delta_bytes: 1 << 20,
        });
        DiskStore { store, file: Vec::new(), held: Vec::new(), next_at: Lsn(144), shards }
    }

    /// Demotion.
    pub fn rollback_above(&mut self, stamp: Stamp) {
        self.store.rollback_above(stamp);
    }

    fn page(&self, page: PageNo) -> Vec<u8> {
        let at = page.0 as usize * PAGE_BYTES;
        self.file[at..at + PAGE_BYTES].to_vec()
    }

    fn read(&mut self, page: PageNo) {
        let bytes = self.page(page);
        self.store.page_read(page, &bytes).expect("the file is sound");
    }

    fn grow(&mut self, to_pages: u64) {
        self.file.resize(to_pages as usize * PAGE_BYTES, 0);
        self.store.pages_grown(to_pages);
    }
}

impl TestStore for DiskStore {
    fn shards(&mut self) -> &mut dyn Shards {
        &mut self.store
    }

    fn picture(&mut self) -> String {
        let mut all = Vec::new();
        for shard in (0..self.shards).map(ShardId) {
            all.push(format!("{:?} {:?}", self.store.count(shard), self.store.last_stamp(shard)));
            let mut from: Option<Vec<u8>> = None;
            loop {
                let bound = from.as_ref().map_or(Bound::Unbounded, |key| Bound::Included(key.as_slice()));
                let mut part = Vec::new();
                match self
                    .store
                    .scan(shard, bound, 100, &mut |key, value| part.push(format!("{key:?}={value:?}")))
                {
                    Err(miss) => self.bring(miss),
                    Ok(next) => {
                        all.append(&mut part);
                        from = next;
                        if from.is_none() {
                            break;
                        }
                    }
                }
            }
        }
        all.join("\n")
    }

    fn contents(&mut self) -> Vec<(usize, Vec<u8>, Vec<u8>)> {
        unreachable!("the model answers this")
    }

    fn bring(&mut self, miss: Miss) {
        for page in self.store.wanted(miss) {
            self.store.hold(page);
            self.held.push(page);
            self.read(page);
        }
        assert!(self.held.len() < 10_000, "a command gets further with each run");
    }

    fn release(&mut self) {
        self.held.drain(..).for_each(|page| self.store.release(page));
    }

    /// Commits everything and moves it from the deltas into the tree.
    fn commit(&mut self, stamp: Stamp) {
        for shard in (0..self.shards).map(ShardId) {
            self.store.freeze(shard, self.next_at, stamp);
            self.next_at = self.next_at + 100;
        }
        self.store.commit_through(stamp);
        loop {
            match self.store.merge_step(8) {
                MergeStep::NeedPages(pages) => pages.into_iter().for_each(|page| self.read(page)),
                MergeStep::Write(runs) => {
                    for (first, data) in runs {
                        let at = first.0 as usize * PAGE_BYTES;
                        self.file[at..at + data.len()].copy_from_slice(&data);
                        self.store.page_written(first);
                    }
                }
                MergeStep::Grow { to_pages } => self.grow(to_pages),
                MergeStep::Merged { .. } | MergeStep::Working | MergeStep::Waiting => {}
                MergeStep::Idle => break,
            }
        }
        while let Some(token) = self.store.wants_flush() {
            self.store.pages_flushed(token);
        }
        if self.store.superblock(self.next_at).is_some() {
            self.store.superblock_durable();
        }
        assert!((0..self.shards).all(|shard| !self.store.merging(ShardId(shard))));
    }
}

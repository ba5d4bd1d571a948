//! A store with a simulated node around it: a disk with a volatile cache, a log, a model of every shard, crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::base::limits::PAGE_BYTES;
use crate::base::{ClusterId, Digest, Lsn, Prng, ShardId, SharedSlice, Stamp};
use crate::record::key::{TAG_ELEMENT, meta_key, prefix};
use crate::record::{MERGE_VERSION, Record};
use crate::redo::{Applied, Redo};
use crate::store::merge::bigs_of;
use crate::store::page::{self, Big};
use crate::store::superblock::{Root, Slot};
use crate::store::*;

pub const SHARDS: u16 = 2;
pub const CLUSTER: ClusterId = ClusterId(77);

pub type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// An owned log record.
#[derive(Clone, Debug)]
pub enum Rec {
    Put { key: Vec<u8>, value: Vec<u8>, created: bool },
    Delete { key: Vec<u8> },
    Range { start: Vec<u8>, end: Vec<u8> },
    Clear,
    Checkpoint,
}

#[derive(Clone, Debug)]
pub struct Logged {
    pub at: Lsn,
    pub stamp: Stamp,
    pub shard: ShardId,
    pub rec: Rec,
}

impl Logged {
    fn record(&self) -> Record<'_> {
        let shard = self.shard;
        match &self.rec {
            Rec::Put { key, value, created } => Record::Put { shard, key, value, created: *created },
            Rec::Delete { key } => Record::Delete { shard, key },
            Rec::Range { start, end } => Record::DeleteRange { shard, start, end },
            Rec::Clear => Record::ClearShard { shard },
            Rec::Checkpoint => Record::Checkpoint { shard, merge_version: MERGE_VERSION, at: self.at },
        }
    }

    fn apply(&self, models: &mut [Map]) {
        let model = &mut models[self.shard.index()];
        match &self.rec {
            Rec::Put { key, value, .. } => {
                model.insert(key.clone(), value.clone());
            }
            Rec::Delete { key } => {
                model.remove(key);
            }
            Rec::Range { start, end } => model.retain(|k, _| !(start <= k && k < end)),
            Rec::Clear => model.clear(),
            Rec::Checkpoint => {}
        }
    }
}

/// The files `pages` and `superblock`. Writes reach `now` when they complete, `durable` when they are flushed.
#[derive(Clone, Default)]
pub struct Disk {
    pub now: Vec<u8>,
    durable: Vec<u8>,
    unflushed: Vec<(PageNo, SharedSlice)>,
    pub slots: [Vec<u8>; 2],
}

impl Disk {
    pub fn page(&self, page: PageNo) -> &[u8] {
        page_of(&self.now, page)
    }

    fn grow(&mut self, pages: u64) {
        self.now.resize(pages as usize * PAGE_BYTES, 0);
        self.durable.resize(pages as usize * PAGE_BYTES, 0);
    }

    fn write(&mut self, first: PageNo, data: &SharedSlice) {
        let at = first.0 as usize * PAGE_BYTES;
        self.now[at..at + data.len()].copy_from_slice(data);
        self.unflushed.push((first, data.clone()));
    }

    fn flush(&mut self, writes: usize) {
        for (first, data) in self.unflushed.drain(..writes) {
            let at = first.0 as usize * PAGE_BYTES;
            self.durable[at..at + data.len()].copy_from_slice(&data);
        }
    }

    /// Power is lost: of what was not flushed any sectors may have reached the disk.
    fn crash(&mut self, in_flight: Vec<(PageNo, SharedSlice)>, rng: &mut Prng) {
        for (first, data) in self.unflushed.drain(..).chain(in_flight) {
            for (i, sector) in data.chunks(512).enumerate().filter(|_| rng.chance(0.5)) {
                let at = first.0 as usize * PAGE_BYTES + i * 512;
                self.durable[at..at + 512].copy_from_slice(sector);
            }
        }
        self.now.clone_from(&self.durable);
    }
}

pub fn page_of(file: &[u8], page: PageNo) -> &[u8] {
    &file[page.0 as usize * PAGE_BYTES..(page.0 as usize + 1) * PAGE_BYTES]
}

/// What the run may do, and how small things are.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub cache_pages: usize,
    pub keys: u64,
    /// Mostly keys with a long common prefix: few children per inner page.
    pub long_keys: bool,
    pub crashes: bool,
    pub rollbacks: bool,
    /// Pages that the walk reads are bad at times, until they are repaired.
    pub decay: bool,
    /// Out of a hundred pieces of disk work, how many belong to the walk.
    pub walks: u64,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            cache_pages: 4,
            keys: 1,
            long_keys: false,
            crashes: false,
            rollbacks: false,
            decay: false,
            walks: 20,
        }
    }
}

pub struct World {
    pub shape: Shape,
    pub rng: Prng,
    pub store: Store,
    pub disk: Disk,
    pub log: Vec<Logged>,
    pub models: Vec<Map>,
    /// Records of the log that are committed.
    committed: usize,
    next_at: Lsn,
    stamp: Stamp,
    reads: Vec<PageNo>,
    pub(super) walk_reads: Vec<PageNo>,
    writes: Vec<(PageNo, SharedSlice)>,
    flush: Option<(FlushToken, usize)>,
    superblock: Option<SuperblockImage>,
    /// Root digest of every checkpoint that was ever merged and not rolled back.
    pub digests: BTreeMap<(ShardId, Lsn), Digest>,
    /// Pages that a retained root names.
    pub protected: BTreeSet<PageNo>,
    /// Whether most commands delete, so that trees shrink.
    shrinking: bool,
    pub misses: u64,
    pub crashes: u64,
    pub rollbacks: u64,
    pub peak_level: u8,
}

pub fn config(cache_pages: usize) -> StoreConfig {
    StoreConfig {
        cluster: CLUSTER,
        shards: SHARDS,
        cache_bytes: cache_pages * PAGE_BYTES,
        delta_bytes: 1 << 20,
    }
}

impl World {
    pub fn new(seed: u64, shape: Shape) -> World {
        let store = Store::create(config(shape.cache_pages));
        let mut disk = Disk::default();
        for image in store.initial_superblocks() {
            disk.slots[(image.slot_offset / SLOT_BYTES) as usize] = image.data.to_vec();
        }
        disk.grow(1);
        World {
            shape,
            rng: Prng::new(seed),
            store,
            disk,
            log: Vec::new(),
            models: vec![Map::new(); usize::from(SHARDS)],
            committed: 0,
            next_at: Lsn(144),
            stamp: Stamp(1),
            reads: Vec::new(),
            walk_reads: Vec::new(),
            writes: Vec::new(),
            flush: None,
            superblock: None,
            digests: BTreeMap::new(),
            protected: BTreeSet::new(),
            shrinking: false,
            misses: 0,
            crashes: 0,
            rollbacks: 0,
            peak_level: 0,
        }
    }

    // ---- what a client does ----

    /// Short keys, keys of collections' elements, and a family with a long common prefix, whose fences are long too.
    fn key(&mut self) -> Vec<u8> {
        let n = self.rng.below(self.shape.keys);
        let mut key = Vec::new();
        let kind = if self.shape.long_keys && n % 8 > 2 { 0 } else { n % 8 };
        match kind {
            0 => meta_key(&[&[b'p'; 3000][..], &n.to_be_bytes()].concat(), &mut key),
            1 | 2 => {
                prefix(b"collection", &mut key);
                key.push(TAG_ELEMENT);
                key.extend_from_slice(&n.to_be_bytes());
            }
            _ => meta_key(format!("key:{n:08}").as_bytes(), &mut key),
        }
        key
    }

    fn value(&mut self) -> Vec<u8> {
        let len = match self.rng.below(100) {
            0..60 => self.rng.below(64),
            60..85 => self.rng.below(2000),
            85..96 => 4096 + self.rng.below(3) - 1,
            96..98 => 16_320 + self.rng.below(3) - 1,
            _ => self.rng.below(90_000),
        };
        let mut value = vec![0; len as usize];
        self.rng.fill(&mut value);
        value
    }

    fn counted(key: &[u8]) -> bool {
        crate::record::key::split(key).unwrap().1 == crate::record::key::TAG_META
    }

    pub fn log_one(&mut self, shard: ShardId, rec: Rec) {
        let logged = Logged { at: self.next_at, stamp: self.stamp, shard, rec };
        self.next_at = self.next_at + 16 + self.rng.below(100);
        logged.apply(&mut self.models);
        self.log.push(logged);
    }

    /// The next record stands here or later.
    pub fn next_at(&mut self, at: Lsn) {
        self.next_at = self.next_at.max(at);
    }

    pub fn get(&mut self, shard: ShardId, key: &[u8]) -> Option<Vec<u8>> {
        let mut held = Vec::new();
        let value = loop {
            match self.store.get(shard, key) {
                Ok(seen) => break seen.value.map(<[u8]>::to_vec),
                Err(miss) => self.bring(miss, &mut held),
            }
        };
        held.into_iter().for_each(|page| self.store.release(page));
        value
    }

    /// Reads what a look-up missed; held so that the next run gets further.
    fn bring(&mut self, miss: Miss, held: &mut Vec<PageNo>) {
        self.misses += 1;
        let pages = if self.rng.chance(0.5) { vec![miss.page] } else { self.store.wanted(miss) };
        assert_eq!(pages[0], miss.page);
        for page in pages {
            self.store.hold(page);
            held.push(page);
            let bytes = self.disk.page(page).to_vec();
            self.store.page_read(page, &bytes).unwrap();
        }
        assert!(held.len() < 1000, "a command gets further with each run");
    }

    /// A command that changes things before and after it reads: a miss in between takes the first part back.
    fn command(&mut self) {
        let shard = ShardId(self.rng.below(u64::from(SHARDS)) as u16);
        let (first, second) = (self.key(), self.key());
        let (value, later) = (self.value(), self.value());
        let deletes = self.rng.chance(0.45);
        let created = !self.models[shard.index()].contains_key(&first) && World::counted(&first);
        let stamp = self.stamp;
        let mut held = Vec::new();
        let mark = self.store.mark();
        let before = self.store.count(shard);
        let seen = loop {
            self.store.put(shard, &first, &value, created, stamp);
            match self.store.get(shard, &second) {
                Ok(seen) => break seen.value.map(<[u8]>::to_vec),
                Err(miss) => {
                    self.store.undo_to(mark);
                    assert_eq!(self.store.count(shard), before);
                    self.bring(miss, &mut held);
                }
            }
        };
        held.into_iter().for_each(|page| self.store.release(page));
        self.log_one(shard, Rec::Put { key: first, value, created });
        let model = &self.models[shard.index()];
        assert_eq!(seen.as_ref(), model.get(&second), "the store and the model differ");
        if seen.is_some() && deletes {
            self.store.delete(shard, &second, World::counted(&second), stamp);
            self.log_one(shard, Rec::Delete { key: second });
        } else if seen.is_none() {
            let created = World::counted(&second);
            self.store.put(shard, &second, &later, created, stamp);
            self.log_one(shard, Rec::Put { key: second, value: later, created });
        }
        self.check_count(shard);
    }

    /// Deletes some key that exists.
    fn delete_command(&mut self) {
        let shard = ShardId(self.rng.below(u64::from(SHARDS)) as u16);
        let from = self.key();
        let Some(key) = self.models[shard.index()].range(from..).next().map(|(k, _)| k.clone()) else {
            return;
        };
        self.delete(shard, key);
        self.check_count(shard);
    }

    pub fn put(&mut self, shard: ShardId, key: Vec<u8>, value: Vec<u8>) {
        let created = !self.models[shard.index()].contains_key(&key) && World::counted(&key);
        self.store.put(shard, &key, &value, created, self.stamp);
        self.log_one(shard, Rec::Put { key, value, created });
    }

    pub fn delete(&mut self, shard: ShardId, key: Vec<u8>) {
        self.store.delete(shard, &key, World::counted(&key), self.stamp);
        self.log_one(shard, Rec::Delete { key });
    }

    pub fn delete_range(&mut self, shard: ShardId, start: Vec<u8>, end: Vec<u8>) {
        self.store.delete_range(shard, &start, &end, self.stamp);
        self.log_one(shard, Rec::Range { start, end });
    }

    /// A checkpoint of one shard, with everything that follows from it.
    pub fn checkpoint_now(&mut self, shard: ShardId) {
        self.checkpoint(shard);
        self.settle();
    }

    fn wide_command(&mut self) {
        let shard = ShardId(self.rng.below(u64::from(SHARDS)) as u16);
        if self.rng.chance(0.15) {
            self.store.clear_shard(shard, self.stamp);
            self.log_one(shard, Rec::Clear);
        } else {
            let mut start = Vec::new();
            prefix(b"collection", &mut start);
            start.push(TAG_ELEMENT);
            let mut end = start.clone();
            let low = self.rng.below(self.shape.keys);
            start.extend_from_slice(&low.to_be_bytes());
            end.extend_from_slice(&(low + 1 + self.rng.below(self.shape.keys)).to_be_bytes());
            self.delete_range(shard, start, end);
        }
        self.check_count(shard);
    }

    fn check_count(&self, shard: ShardId) {
        let counted = self.models[shard.index()].keys().filter(|k| World::counted(k)).count();
        assert_eq!(self.store.count(shard).0, counted as u64, "the key count is exact");
    }

    pub fn checkpoint(&mut self, shard: ShardId) {
        if !self.store.merging(shard) {
            self.store.freeze(shard, self.next_at, self.stamp);
            self.log_one(shard, Rec::Checkpoint);
        }
    }

    /// Reads everything by scans of random length and compares it with the model.
    pub fn check_all(&mut self) {
        for shard in (0..SHARDS).map(ShardId) {
            let whole = self.rng.chance(0.7);
            let mut all = Vec::new();
            let mut from: Option<Vec<u8>> = None;
            let mut held = Vec::new();
            loop {
                let mut part = Vec::new();
                let bound = from.as_ref().map_or(Bound::Unbounded, |key| Bound::Included(&key[..]));
                let limit = 1 + self.rng.below(20) as usize;
                let mut visit = |k: &[u8], v: &[u8]| part.push((k.to_vec(), v.to_vec()));
                let result = match whole {
                    true => self.store.scan(shard, bound, limit, &mut visit),
                    false => self.store.scan_heads(shard, bound, limit, &mut visit),
                };
                match result {
                    Err(miss) => self.bring(miss, &mut held),
                    Ok(next) => {
                        assert!(part.len() <= limit);
                        all.append(&mut part);
                        held.drain(..).for_each(|page| self.store.release(page));
                        match next {
                            None => break,
                            next => from = next,
                        }
                    }
                }
            }
            let model = &self.models[shard.index()];
            assert_eq!(all.len(), model.len());
            for ((key, value), (model_key, model_value)) in all.iter().zip(model) {
                assert_eq!(key, model_key);
                let same = if whole { value == model_value } else { model_value.starts_with(value) };
                assert!(same && (value.len() == model_value.len() || value.len() == HEAD_BYTES));
            }
            self.check_count(shard);
        }
    }

    // ---- what the node does ----

    fn committed_lsn(&self) -> Lsn {
        // A frame ends behind its last record.
        self.committed.checked_sub(1).map_or(Lsn::ZERO, |last| self.log[last].at + 1)
    }

    pub fn commit(&mut self, records: usize) {
        let Some(last) = self.log.get(records.wrapping_sub(1)) else { return };
        let stamp = last.stamp;
        let group_end = self.log.iter().rposition(|l| l.stamp <= stamp).map_or(0, |i| i + 1);
        if group_end > self.committed {
            self.committed = group_end;
            self.store.commit_through(stamp);
        }
        // Nothing joins a group that is committed.
        self.stamp = self.stamp.max(Stamp(stamp.0 + 1));
    }

    fn merge(&mut self) {
        let budget = 1 + self.rng.below(8) as usize;
        match self.store.merge_step(budget) {
            MergeStep::NeedPages(pages) => self.reads.extend(pages),
            MergeStep::Write(runs) => {
                for (first, data) in &runs {
                    for page in first.0..first.0 + (data.len() / PAGE_BYTES) as u64 {
                        assert!(!self.protected.contains(&PageNo(page)), "a retained page is overwritten");
                    }
                }
                self.writes.extend(runs);
            }
            MergeStep::Grow { to_pages } => self.grow(to_pages),
            MergeStep::Merged { shard, at, digest } => {
                let known = *self.digests.entry((shard, at)).or_insert(digest);
                assert_eq!(known, digest, "the same checkpoint has one digest");
            }
            MergeStep::Working | MergeStep::Waiting | MergeStep::Idle => {}
        }
        if let Some(to_pages) = self.store.grow_wanted() {
            self.grow(to_pages);
        }
    }

    /// A write of the store that completes at once.
    pub fn write_now(&mut self, first: PageNo, data: &SharedSlice) {
        self.disk.write(first, data);
        self.store.page_written(first);
    }

    pub fn grow(&mut self, to_pages: u64) {
        self.disk.grow(to_pages);
        self.store.pages_grown(to_pages);
    }

    fn take<T>(rng: &mut Prng, items: &mut Vec<T>) -> Option<T> {
        (!items.is_empty()).then(|| items.swap_remove(rng.below(items.len() as u64) as usize))
    }

    /// One random piece of disk work.
    pub(super) fn disk_work(&mut self) {
        if self.store.walking() && self.rng.below(100) < self.shape.walks {
            return self.walk_work();
        }
        match self.rng.below(5) {
            0 => {
                if let Some(page) = World::take(&mut self.rng, &mut self.reads) {
                    let bytes = self.disk.page(page).to_vec();
                    self.store.page_read(page, &bytes).unwrap();
                }
            }
            1 => {
                if let Some((first, data)) = World::take(&mut self.rng, &mut self.writes) {
                    self.disk.write(first, &data);
                    self.store.page_written(first);
                }
            }
            2 => match self.flush.take() {
                Some((token, writes)) => {
                    self.disk.flush(writes);
                    self.store.pages_flushed(token);
                }
                None => {
                    let writes = self.disk.unflushed.len();
                    self.flush = self.store.wants_flush().map(|token| (token, writes));
                }
            },
            3 => self.superblock_work(),
            _ => self.merge(),
        }
    }

    fn superblock_work(&mut self) {
        match self.superblock.take() {
            Some(image) => {
                let slot = &mut self.disk.slots[(image.slot_offset / SLOT_BYTES) as usize];
                *slot = image.data.to_vec();
                self.store.superblock_durable();
                let level = self.store.shards.iter().map(|s| s.roots[0].level).max();
                self.peak_level = self.peak_level.max(level.unwrap_or(0));
                self.protect();
            }
            None => {
                let committed = self.committed_lsn();
                self.superblock = self.store.superblock(committed);
                let covers = self.superblock.iter().flat_map(|image| &image.covers);
                for (shard, at, digest) in covers {
                    assert!(*at <= committed, "an uncommitted checkpoint in a superblock");
                    assert_eq!(self.digests[&(*shard, *at)], *digest);
                }
            }
        }
    }

    /// Lists the pages of all retained roots from the durable image, judging each by its parent.
    fn protect(&mut self) {
        self.protected.clear();
        for bytes in &self.disk.slots {
            let Some(slot) = Slot::decode(bytes, CLUSTER, SHARDS).unwrap() else { continue };
            for root in slot.roots.iter().flatten().filter(|root| !root.is_empty()) {
                reach(&self.disk.durable, root.page, root.level, root.digest, &mut self.protected);
                let bytes = page_of(&self.disk.durable, root.page);
                assert!(
                    root.level == 0 || page::count(bytes) > 1,
                    "a root with a single child gives way to it"
                );
            }
        }
        self.check_protected();
    }

    /// Nothing that a superblock names may be handed out.
    pub(super) fn check_protected(&self) {
        for page in &self.protected {
            assert!(!self.store.pages.space.is_free(*page), "a retained page is free");
        }
    }

    /// Collects the pages of one tree from the durable image, judging each by its parent.
    pub fn reach_one(&self, root: &Root, pages: &mut BTreeSet<PageNo>) {
        reach(&self.disk.durable, root.page, root.level, root.digest, pages);
    }

    /// All disk work until nothing is left to do.
    pub fn settle(&mut self) {
        self.commit(self.log.len());
        let mut rounds = 0;
        let busy = |world: &World| (0..SHARDS).any(|s| world.store.merging(ShardId(s)));
        while busy(self) || self.superblock.is_some() || self.store.walking() {
            self.disk_work();
            if self.store.walk_waits() && !busy(self) && self.superblock.is_none() {
                // What was given up leaves the superblocks with the next checkpoints.
                self.checkpoint(ShardId(0));
                self.commit(self.log.len());
            }
            rounds += 1;
            assert!(rounds < 1_000_000, "checkpoints come to an end");
        }
        while !self.writes.is_empty() || !self.reads.is_empty() {
            self.disk_work();
        }
        // Nothing leaks: what no retained root names is free. A page whose read never came back rests.
        let (pages, free) = self.store.file_pages();
        let made_unused = 1 + self.protected.len() as u64 + free;
        assert!(made_unused <= pages);
        let garbage: usize = self.store.shards.iter().flat_map(|s| &s.garbage).map(|(_, p)| p.len()).sum();
        assert!(made_unused + garbage as u64 >= pages, "{pages} pages, {free} free, pages leak");
    }

    fn rebuild_models(&mut self) {
        self.models = vec![Map::new(); usize::from(SHARDS)];
        self.log.iter().for_each(|logged| logged.apply(&mut self.models));
    }

    /// Demotion: the uncommitted tail goes; its positions will be written again with something else.
    pub fn rollback(&mut self) {
        self.rollbacks += 1;
        self.log.truncate(self.committed);
        let last = self.log.last();
        let stamp = last.map_or(Stamp(0), |l| l.stamp);
        self.next_at = last.map_or(Lsn(144), |l| l.at + 16);
        let next = self.next_at;
        self.digests.retain(|(_, at), _| *at < next);
        self.store.rollback_above(stamp);
        self.rebuild_models();
        self.check_count(ShardId(0));
        self.stamp = Stamp(self.stamp.0 + 1);
    }

    pub fn crash(&mut self) {
        self.crashes += 1;
        if let Some(image) = self.superblock.take() {
            // The slot under write is torn at any sector, or whole.
            let slot = &mut self.disk.slots[(image.slot_offset / SLOT_BYTES) as usize];
            for (i, sector) in image.data.chunks(512).enumerate().filter(|_| self.rng.chance(0.7)) {
                slot[i * 512..i * 512 + sector.len()].copy_from_slice(sector);
            }
        } else if self.rng.chance(0.3) {
            // The newest slot decays: log and pages are still there for the older one.
            let both = self.disk.slots.clone().map(|s| Slot::decode(&s, CLUSTER, SHARDS).unwrap());
            if let [Some(a), Some(b)] = both {
                self.disk.slots[usize::from(b.sequence > a.sequence)][100] ^= 1;
            }
        }
        self.disk.crash(std::mem::take(&mut self.writes), &mut self.rng);
        self.reads.clear();
        self.walk_reads.clear();
        self.flush = None;
        // Of the uncommitted tail any prefix survives and is committed by the next term.
        let keep = self.rng.between(self.committed as u64, self.log.len() as u64) as usize;
        self.log.truncate(keep);
        self.next_at = self.log.last().map_or(Lsn(144), |l| l.at + 16);
        let next = self.next_at;
        self.digests.retain(|(_, at), _| *at < next);
        self.committed = self.log.len();
        self.rebuild_models();
        self.open();
        self.redo();
        self.check_all();
    }

    pub fn open(&mut self) {
        let [a, b] = &self.disk.slots;
        self.store = Store::open(config(self.shape.cache_pages), Some(a), Some(b)).unwrap();
        self.store.pages_grown((self.disk.now.len() / PAGE_BYTES) as u64);
        self.protect();
    }

    fn redo(&mut self) {
        let redo = Redo::new(&self.store);
        let from = self.store.redo_from();
        self.stamp = Stamp(1);
        self.log.iter_mut().for_each(|l| l.stamp = Stamp::COMMITTED);
        for i in 0..self.log.len() {
            let logged = self.log[i].clone();
            let applied = redo.apply_record(&mut self.store, logged.record(), logged.at).unwrap();
            if logged.at < from {
                assert_eq!(applied, Applied::Skipped, "redo_from names the first record that is needed");
            }
            if let Applied::Checkpoint { shard, .. } = applied {
                while self.store.merging(shard) {
                    self.disk_work();
                }
                self.store.freeze(shard, logged.at, Stamp::COMMITTED);
            }
            if self.rng.chance(0.2) {
                self.disk_work();
            }
        }
    }

    pub fn step(&mut self) {
        if self.rng.chance(0.3) {
            self.stamp = Stamp(self.stamp.0 + 1);
        }
        if self.rng.chance(0.004) {
            self.shrinking = !self.shrinking;
        }
        match self.rng.below(1000) {
            0..350 if self.shrinking && self.rng.chance(0.8) => self.delete_command(),
            0..350 => self.command(),
            350..360 => self.wide_command(),
            360..460 => {
                let shard = ShardId(self.rng.below(u64::from(SHARDS)) as u16);
                let key = self.key();
                assert_eq!(self.get(shard, &key).as_ref(), self.models[shard.index()].get(&key));
            }
            460..465 => self.check_all(),
            465..490 => {
                let shard = ShardId(self.rng.below(u64::from(SHARDS)) as u16);
                self.checkpoint(shard);
            }
            490..580 => {
                let upto = self.rng.between(self.committed as u64, self.log.len() as u64) as usize;
                self.commit(upto);
            }
            580..584 if self.shape.rollbacks => self.rollback(),
            584..587 if self.shape.crashes => self.crash(),
            _ => self.disk_work(),
        }
    }

    /// A node with a large cache and large slices that replays the log must get the same roots.
    pub fn check_against_replay(&mut self) {
        let shape = Shape { cache_pages: 4096, ..Shape::default() };
        let mut other = World::new(self.rng.next_u64(), shape);
        other.log.clone_from(&self.log);
        other.committed = other.log.len();
        other.redo();
        other.settle();
        other.models.clone_from(&self.models);
        other.check_all();
        for (at, digest) in &self.digests {
            assert_eq!(other.digests.get(at), Some(digest), "nodes disagree about {at:?}");
        }
    }
}

fn reach(file: &[u8], number: PageNo, level: u8, digest: Digest, out: &mut BTreeSet<PageNo>) {
    let bytes = page_of(file, number);
    page::verify(bytes, number).expect("a retained page is whole on the disk");
    assert_eq!(page::content_digest(bytes), digest);
    if !out.insert(number) {
        return;
    }
    if level == 0 {
        bigs_of(bytes).for_each(|(_, big)| reach_big(file, &big, out));
        return;
    }
    for child in (0..page::count(bytes)).map(|i| page::child(bytes, i)) {
        reach(file, child.page, level - 1, child.digest, out);
    }
}

fn reach_big(file: &[u8], big: &Big, out: &mut BTreeSet<PageNo>) {
    let head = page_of(file, big.page);
    page::verify(head, big.page).expect("a retained page is whole on the disk");
    assert_eq!(page::check_of(head), big.check);
    out.insert(big.page);
    for (rest, check) in page::big_rest(head) {
        let bytes = page_of(file, rest);
        page::verify(bytes, rest).expect("a retained page is whole on the disk");
        assert_eq!(page::check_of(bytes), check);
        out.insert(rest);
    }
}

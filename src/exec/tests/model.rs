//! A store of versions in ordinary maps, with misses on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::world::TestStore;
use crate::base::{Digest, ShardId, Stamp};
use crate::exec::Shards;
use crate::store::{Miss, PageNo, Seen, UndoMark};

type Versions = Vec<(Stamp, Option<Vec<u8>>)>;

#[derive(Clone, Default, Debug, PartialEq)]
struct Shard {
    entries: BTreeMap<Vec<u8>, Versions>,
    /// What an absent key without versions was cleared by.
    cleared: Stamp,
    count: u64,
    last: Stamp,
}

/// What a change found: the entries it touched, and the rest of the shard.
#[derive(Clone, Debug)]
struct Undo {
    shard: usize,
    entries: Vec<(Vec<u8>, Option<Versions>)>,
    cleared: Stamp,
    count: u64,
    last: Stamp,
}

#[derive(Clone, Default, Debug)]
pub struct ModelStore {
    shards: Vec<Shard>,
    undo: Vec<Undo>,
    /// Every look-up misses until its page was read.
    pub misses: bool,
    held: BTreeSet<PageNo>,
}

impl ModelStore {
    pub fn new(shards: u16) -> ModelStore {
        ModelStore { shards: vec![Shard::default(); usize::from(shards)], ..ModelStore::default() }
    }

    fn page(&self, shard: ShardId, what: &[u8]) -> Result<(), Miss> {
        let page = PageNo(Digest::seeded(what, u64::from(shard.0)).0 as u64);
        match self.misses && !self.held.contains(&page) {
            true => Err(Miss { shard, page }),
            false => Ok(()),
        }
    }

    fn change(&mut self, shard: ShardId, keys: &[&[u8]], stamp: Stamp, change: impl FnOnce(&mut Shard)) {
        let index = shard.index();
        let shard = &mut self.shards[index];
        let entries = keys.iter().map(|key| (key.to_vec(), shard.entries.get(*key).cloned())).collect();
        let (cleared, count, last) = (shard.cleared, shard.count, shard.last);
        self.undo.push(Undo { shard: index, entries, cleared, count, last });
        change(shard);
        shard.last = stamp;
    }

    fn visible(&self, shard: ShardId, key: &[u8]) -> bool {
        let versions = self.shards[shard.index()].entries.get(key);
        versions.and_then(|v| v.last()).is_some_and(|(_, value)| value.is_some())
    }
}

impl TestStore for ModelStore {
    fn shards(&mut self) -> &mut dyn Shards {
        self
    }

    fn picture(&mut self) -> String {
        format!("{:?}", self.shards)
    }

    fn contents(&mut self) -> Vec<(usize, Vec<u8>, Vec<u8>)> {
        let mut all = Vec::new();
        for (index, shard) in self.shards.iter().enumerate() {
            for (key, versions) in &shard.entries {
                if let Some((_, Some(value))) = versions.last() {
                    all.push((index, key.clone(), value.clone()));
                }
            }
        }
        all
    }

    fn bring(&mut self, miss: Miss) {
        self.held.insert(miss.page);
    }

    fn release(&mut self) {
        self.held.clear();
    }

    fn commit(&mut self, _: Stamp) {
        for shard in &mut self.shards {
            shard.entries.retain(|_, versions| {
                let last = versions.pop().expect("an entry has versions");
                *versions = vec![(Stamp::COMMITTED, last.1)];
                versions[0].1.is_some()
            });
            shard.cleared = Stamp::COMMITTED;
            shard.last = Stamp::COMMITTED;
        }
        self.undo.clear();
    }
}

impl Shards for ModelStore {
    fn get(&mut self, shard: ShardId, key: &[u8]) -> Result<Seen<'_>, Miss> {
        self.page(shard, key)?;
        let shard = &self.shards[shard.index()];
        Ok(match shard.entries.get(key).and_then(|versions| versions.last()) {
            Some((stamp, value)) => Seen { value: value.as_deref(), stamp: *stamp },
            None => Seen { value: None, stamp: shard.cleared },
        })
    }

    fn head(&mut self, shard: ShardId, key: &[u8]) -> Result<Seen<'_>, Miss> {
        let seen = self.get(shard, key)?;
        Ok(Seen { value: seen.value.map(|value| &value[..value.len().min(16)]), stamp: seen.stamp })
    }

    fn put(&mut self, shard: ShardId, key: &[u8], value: &[u8], created: bool, stamp: Stamp) {
        assert_eq!(created, !self.visible(shard, key), "the log must know what a put creates");
        self.change(shard, &[key], stamp, |shard| {
            shard.entries.entry(key.to_vec()).or_default().push((stamp, Some(value.to_vec())));
            shard.count += u64::from(created);
        });
    }

    fn delete(&mut self, shard: ShardId, key: &[u8], counted: bool, stamp: Stamp) {
        assert!(self.visible(shard, key), "only what exists is deleted");
        self.change(shard, &[key], stamp, |shard| {
            shard.entries.entry(key.to_vec()).or_default().push((stamp, None));
            shard.count -= u64::from(counted);
        });
    }

    fn clear_shard(&mut self, shard: ShardId, stamp: Stamp) {
        let keys: Vec<Vec<u8>> = self.shards[shard.index()].entries.keys().cloned().collect();
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        self.change(shard, &keys, stamp, |shard| {
            for versions in shard.entries.values_mut() {
                versions.push((stamp, None));
            }
            shard.cleared = stamp;
            shard.count = 0;
        });
    }

    fn count(&self, shard: ShardId) -> (u64, Stamp) {
        let shard = &self.shards[shard.index()];
        (shard.count, shard.last)
    }

    fn last_stamp(&self, shard: ShardId) -> Stamp {
        self.shards[shard.index()].last
    }

    fn scan_heads(
        &mut self,
        shard: ShardId,
        from: Bound<&[u8]>,
        limit: usize,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<Option<Vec<u8>>, Miss> {
        self.page(shard, format!("scan {from:?}").as_bytes())?;
        let live = self.shards[shard.index()]
            .entries
            .range::<[u8], _>((from, Bound::Unbounded))
            .filter_map(|(key, versions)| Some((key, versions.last()?.1.as_ref()?)));
        for (seen, (key, value)) in live.enumerate() {
            if seen == limit {
                return Ok(Some(key.clone()));
            }
            visit(key, &value[..value.len().min(16)]);
        }
        Ok(None)
    }

    fn mark(&self) -> UndoMark {
        UndoMark(self.undo.len() as u64)
    }

    fn undo_to(&mut self, mark: UndoMark) {
        while self.undo.len() as u64 > mark.0 {
            let undo = self.undo.pop().expect("longer than the mark");
            let shard = &mut self.shards[undo.shard];
            (shard.cleared, shard.count, shard.last) = (undo.cleared, undo.count, undo.last);
            for (key, versions) in undo.entries {
                match versions {
                    Some(versions) => shard.entries.insert(key, versions),
                    None => shard.entries.remove(&key),
                };
            }
        }
    }
}

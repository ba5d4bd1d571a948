//! A checkpoint made once more, from an earlier root and the log between, to find out whether this node's own result is
//! the one that its own input gives (protocol 7.2). Nothing is written, and no page in memory is believed: what this
//! node holds in memory is what is in doubt.

use super::delta::Delta;
use super::merge::{Env, Job, Output, Stop};
use super::superblock::Root;
use super::{PageNo, Store};
use crate::base::{Digest, Lsn, ShardId, Stamp};

/// What one page of work counts, as in a merge.
const PAGE_WORK: usize = 8;

/// The checkpoint under way.
#[derive(Debug)]
pub(super) struct Recompute {
    shard: ShardId,
    base: Root,
    at: Lsn,
    delta: Delta,
    /// Live user keys; `None` once the log said what cannot be.
    keys: Option<u64>,
    job: Job,
    output: Output,
}

/// One slice of it.
#[derive(Debug)]
pub enum RecomputeStep {
    /// Read these pages and hand them over with [`Store::page_read`].
    NeedPages(Vec<PageNo>),
    Waiting,
    Working,
    /// What the checkpoint comes to; comparable with [`Store::root`].
    Done(Digest),
}

impl Store {
    /// The root to start from: the newest retained one before `at`.
    pub fn root_before(&self, shard: ShardId, at: Lsn) -> Option<(Lsn, Digest)> {
        let roots = &self.shards[shard.index()].roots;
        roots.iter().filter(|root| root.at < at).max_by_key(|root| root.at).map(|r| (r.at, r.summary(shard)))
    }

    /// Begins to make the checkpoint of `shard` at `at` again from the root at `from`, which is pinned meanwhile. Says
    /// whether that root is still here. One at a time.
    pub fn recompute_start(&mut self, shard: ShardId, from: Lsn, at: Lsn) -> bool {
        assert!(self.recompute.is_none(), "one checkpoint is made again at a time");
        let Some(base) = self.shards[shard.index()].roots.iter().find(|root| root.at == from).copied() else {
            return false;
        };
        *self.pins.entry((shard, from)).or_default() += 1;
        let (delta, keys) = (Delta::default(), Some(base.keys));
        let (job, output) = (Job::new(base), Output::default());
        self.recompute = Some(Recompute { shard, base, at, delta, keys, job, output });
        true
    }

    /// Ends it, finished or not.
    pub fn recompute_end(&mut self) {
        let Some(Recompute { shard, base, delta, .. }) = self.recompute.take() else { return };
        self.rubbish.push(delta.map);
        self.unpin(shard, base.at);
    }

    fn recomputing(&mut self) -> &mut Recompute {
        self.recompute.as_mut().expect("a checkpoint is being made again")
    }

    pub fn recompute_put(&mut self, key: &[u8], value: &[u8], created: bool) {
        let again = self.recomputing();
        again.delta.set(key, Some(value), Stamp::COMMITTED, false);
        again.keys = again.keys.map(|keys| keys + u64::from(created));
    }

    pub fn recompute_delete(&mut self, key: &[u8], counted: bool) {
        let again = self.recomputing();
        again.delta.set(key, None, Stamp::COMMITTED, false);
        again.keys = again.keys.and_then(|keys| keys.checked_sub(u64::from(counted)));
    }

    pub fn recompute_delete_range(&mut self, start: &[u8], end: &[u8]) {
        if start < end {
            self.recomputing().delta.delete_range(start, end, Stamp::COMMITTED);
        }
    }

    pub fn recompute_clear(&mut self) {
        let again = self.recomputing();
        let old = again.delta.clear(Stamp::COMMITTED);
        again.keys = Some(0);
        self.rubbish.push(old.map);
    }

    /// One slice, once all of the log was handed over: about `budget_pages` pages read or made.
    pub fn recompute_step(&mut self, budget_pages: usize) -> RecomputeStep {
        let again = self.recompute.as_mut().expect("a checkpoint is being made again");
        let mut env = Env {
            pages: &mut self.pages,
            delta: &again.delta,
            shard: again.shard,
            at: again.at,
            output: &mut again.output,
            work: 0,
            dry: true,
        };
        while env.work < budget_pages.max(1) * PAGE_WORK {
            env.work += 1;
            match again.job.step(&mut env) {
                Ok(false) => {}
                Ok(true) => {
                    let root = again.job.root(again.at, again.keys.unwrap_or(u64::MAX));
                    return RecomputeStep::Done(root.summary(again.shard));
                }
                Err(Stop::Page) => {
                    return match self.pages.take_asks() {
                        asks if asks.is_empty() => RecomputeStep::Waiting,
                        asks => RecomputeStep::NeedPages(asks),
                    };
                }
                Err(Stop::Space) => unreachable!("a dry merge takes no space"),
            }
        }
        RecomputeStep::Working
    }
}

//! Checkpoints: freeze, merge, write, flush, superblock, and what is freed after that (protocol 7.1).

use super::delta::Delta;
use super::merge::{Env, Job, Output, Stop};
use super::superblock::{ROOTS_KEPT, Root, Slot};
use super::{FlushToken, MergeStep, PageNo, Shard, Store, SuperblockImage};
use crate::base::limits::PAGE_BYTES;
use crate::base::{AlignedBuf, Digest, Lsn, ShardId, SharedSlice, Stamp};

/// Pages joined into one write at most.
const RUN_PAGES_MAX: usize = 64;
/// Entries of a finished delta dropped in one slice.
const RUBBISH_ENTRIES: usize = 1024;
/// What one page of work counts; cheap steps count one.
const PAGE_WORK: usize = 8;

/// A delta that takes no more changes, until its tree is durable.
#[derive(Debug)]
pub(super) struct Frozen {
    pub delta: Delta,
    pub at: Lsn,
    stamp: Stamp,
    /// Live user keys at the freeze.
    keys: u64,
    /// The merge that works on it; zero before it starts.
    job: u64,
    /// Pages handed out for writing and not reported yet.
    unwritten: u64,
    merged: Option<Merged>,
}

/// A finished merge.
#[derive(Debug)]
struct Merged {
    root: Root,
    made: Vec<PageNo>,
    dropped: Vec<PageNo>,
    flush: Flush,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flush {
    Needed,
    UnderWay(FlushToken),
    Done,
}

/// The merge under way.
#[derive(Debug)]
pub(super) struct Active {
    shard: ShardId,
    id: u64,
    job: Job,
    output: Output,
}

/// A superblock on its way to the disk.
#[derive(Debug)]
pub(super) struct Pending {
    pub slot: Slot,
    covers: Vec<ShardId>,
}

impl Store {
    /// Whether the shard has a checkpoint under way that is not durable yet: no other may start.
    pub fn merging(&self, shard: ShardId) -> bool {
        self.shards[shard.index()].frozen.is_some()
    }

    /// Freezes the shard. `at` is the log position of the first byte of the checkpoint record; no change of this
    /// shard may stand between that record and this call.
    pub fn freeze(&mut self, shard: ShardId, at: Lsn, stamp: Stamp) {
        assert!(!self.merging(shard), "one checkpoint of a shard at a time");
        assert_eq!(self.tops_out, 0, "a shard is frozen whole");
        assert!(at > self.shards[shard.index()].roots[0].at, "checkpoints go forward");
        self.undo_freeze(shard, stamp);
        let state = &mut self.shards[shard.index()];
        let delta = std::mem::take(&mut state.top.active);
        self.active_bytes -= delta.bytes();
        self.frozen_bytes += delta.bytes();
        state.frozen =
            Some(Frozen { delta, at, stamp, keys: state.top.keys, job: 0, unwritten: 0, merged: None });
        self.frozen_shards += 1;
        self.queue.push_back(shard);
    }

    /// Takes a freeze back: drops its merge and puts the delta where it was.
    pub(super) fn thaw(&mut self, shard: ShardId) {
        let pending = self.pending.as_ref().is_some_and(|p| p.covers.contains(&shard));
        assert!(!pending, "an uncommitted checkpoint is in no superblock");
        let state = &mut self.shards[shard.index()];
        let frozen = state.frozen.take().expect("an uncommitted checkpoint is not durable");
        self.frozen_shards -= 1;
        assert!(state.top.active.is_empty(), "later changes were taken back first");
        self.frozen_bytes -= frozen.delta.bytes();
        self.active_bytes += frozen.delta.bytes();
        state.top.active = frozen.delta;
        self.queue.retain(|waiting| *waiting != shard);
        let mut made = frozen.merged.map_or_else(Vec::new, |merged| merged.made);
        if let Some(active) = self.merge.take_if(|active| active.shard == shard) {
            self.pages.forget_worker();
            made.extend(active.output.made);
        }
        made.into_iter().for_each(|page| self.pages.free(page));
    }

    /// One slice of the oldest unfinished merge: about `budget_pages` pages read or made.
    pub fn merge_step(&mut self, budget_pages: usize) -> MergeStep {
        self.drop_rubbish();
        if !self.start_merge() {
            return if self.rubbish.is_empty() { MergeStep::Idle } else { MergeStep::Working };
        }
        let active = self.merge.as_mut().expect("just started");
        let state = &mut self.shards[active.shard.index()];
        let frozen = state.frozen.as_mut().expect("a merge works on a frozen delta");
        let mut env = Env {
            pages: &mut self.pages,
            delta: &frozen.delta,
            shard: active.shard,
            at: frozen.at,
            output: &mut active.output,
            work: 0,
            dry: false,
        };
        let end = loop {
            if env.work >= budget_pages.max(1) * PAGE_WORK {
                break Ok(false);
            }
            env.work += 1;
            match active.job.step(&mut env) {
                Ok(false) => {}
                end => break end,
            }
        };
        if !active.output.fresh.is_empty() {
            let runs = runs_of(std::mem::take(&mut active.output.fresh));
            for (first, data) in &runs {
                let pages = (data.len() / PAGE_BYTES) as u64;
                self.pages.space.write_started(*first, pages, active.id);
                frozen.unwritten += pages;
            }
            return MergeStep::Write(runs);
        }
        match end {
            Ok(false) => MergeStep::Working,
            Ok(true) => self.finish_merge(),
            Err(Stop::Page) => match self.pages.take_asks() {
                asks if asks.is_empty() => MergeStep::Waiting,
                asks => MergeStep::NeedPages(asks),
            },
            Err(Stop::Space) => match self.pages.space.ask_growth() {
                Some(to_pages) => MergeStep::Grow { to_pages },
                None => MergeStep::Waiting,
            },
        }
    }

    /// A large delta takes long to drop: a slice of it at a time.
    fn drop_rubbish(&mut self) {
        let Some(entries) = self.rubbish.last_mut() else { return };
        for _ in 0..RUBBISH_ENTRIES {
            if entries.pop_first().is_none() {
                self.rubbish.pop();
                return;
            }
        }
    }

    fn start_merge(&mut self) -> bool {
        if self.merge.is_some() {
            return true;
        }
        let Some(shard) = self.queue.pop_front() else { return false };
        self.merges_started += 1;
        let id = self.merges_started;
        let state = &mut self.shards[shard.index()];
        state.frozen.as_mut().expect("a queued shard is frozen").job = id;
        self.merge = Some(Active { shard, id, job: Job::new(state.roots[0]), output: Output::default() });
        true
    }

    fn finish_merge(&mut self) -> MergeStep {
        let active = self.merge.take().expect("a merge is under way");
        let shard = active.shard;
        self.pages.forget_worker();
        let frozen = self.shards[shard.index()].frozen.as_mut().expect("a merge works on a frozen delta");
        let root = active.job.root(frozen.at, frozen.keys);
        let flush = if active.output.made.is_empty() { Flush::Done } else { Flush::Needed };
        let (made, dropped) = (active.output.made, active.job.dropped);
        frozen.merged = Some(Merged { root, made, dropped, flush });
        MergeStep::Merged { shard, at: frozen.at, digest: root.summary(shard) }
    }

    /// The write that starts at `first` (one slice of [`MergeStep::Write`]) has completed.
    pub fn page_written(&mut self, first: PageNo) {
        let run = self.pages.space.write_ended(first).expect("only writes under way end");
        for page in first.0..first.0 + run.pages {
            self.pages.settle(PageNo(page));
        }
        let mut frozen = self.shards.iter_mut().filter_map(|state| state.frozen.as_mut());
        if let Some(frozen) = frozen.find(|frozen| frozen.job == run.job) {
            frozen.unwritten -= run.pages;
        }
    }

    /// A flush of `pages` would make progress now: submit it, then report it with [`Store::pages_flushed`].
    pub fn wants_flush(&mut self) -> Option<FlushToken> {
        // Asked in every turn: the usual answer looks at no shard.
        if self.frozen_shards == 0 {
            return None;
        }
        let token = FlushToken(self.flushes_started + 1);
        let mut wanted = false;
        for frozen in self.shards.iter_mut().filter_map(|state| state.frozen.as_mut()) {
            if let (0, Some(merged)) = (frozen.unwritten, &mut frozen.merged)
                && merged.flush == Flush::Needed
            {
                merged.flush = Flush::UnderWay(token);
                wanted = true;
            }
        }
        wanted.then(|| {
            self.flushes_started += 1;
            token
        })
    }

    /// The flush has succeeded: what it covered may be named by a superblock.
    pub fn pages_flushed(&mut self, token: FlushToken) {
        for frozen in self.shards.iter_mut().filter_map(|state| state.frozen.as_mut()) {
            if let Some(merged) = &mut frozen.merged
                && merged.flush == Flush::UnderWay(token)
            {
                merged.flush = Flush::Done;
            }
        }
    }

    /// How many pages the file should have soon, when that is more than it has. Says each size once.
    pub fn grow_wanted(&mut self) -> Option<u64> {
        self.pages.space.ask_growth_ahead()
    }

    /// The file now has this many zero-written pages. Also tells the length of the file after [`Store::open`].
    pub fn pages_grown(&mut self, pages: u64) {
        if let Some(walk) = &mut self.walk {
            walk.measured(pages);
        }
        self.pages.space.grown(pages);
    }

    /// The file could not be grown: the same growth may be asked for again.
    pub fn growth_failed(&mut self) {
        self.pages.space.growth_failed();
    }

    /// Pages of the file, and how many of them are free.
    pub fn file_pages(&self) -> (u64, u64) {
        (self.pages.space.file_pages(), self.pages.space.free_count())
    }

    /// The next superblock, when at least one flushed checkpoint lies within the committed log. Call
    /// [`Store::commit_through`] first. One superblock is under way at a time.
    pub fn superblock(&mut self, committed: Lsn) -> Option<SuperblockImage> {
        let nothing = self.frozen_shards == 0;
        if nothing || self.pending.is_some() || !self.any_ready(committed) {
            return None;
        }
        let mut slot = Slot {
            sequence: self.newest().sequence + 1,
            file_pages: self.pages.space.taken_end(),
            roots: Vec::with_capacity(self.shards.len()),
        };
        let (mut covers, mut shards) = (Vec::new(), Vec::new());
        for (i, state) in self.shards.iter().enumerate() {
            let mut roots = Vec::with_capacity(ROOTS_KEPT);
            if let Some(root) = state.ready(committed, self.undo.committed) {
                let shard = ShardId(i as u16);
                covers.push((shard, root.at, root.summary(shard)));
                shards.push(shard);
                roots.push(root);
            }
            roots.extend(state.roots.iter().take(ROOTS_KEPT - roots.len()));
            slot.roots.push(roots);
        }
        assert!(!covers.is_empty(), "a checkpoint was ready");
        let data = slot.encode(self.config.cluster);
        let slot_offset = slot.offset();
        self.pending = Some(Pending { slot, covers: shards });
        Some(SuperblockImage { slot_offset, data, covers })
    }

    fn any_ready(&self, committed: Lsn) -> bool {
        self.shards.iter().any(|state| state.ready(committed, self.undo.committed).is_some())
    }

    /// The last image is on stable storage: its roots become current, their deltas go, and pages that only forgotten
    /// roots named are free.
    pub fn superblock_durable(&mut self) {
        let Pending { slot, covers } = self.pending.take().expect("a superblock was under way");
        for shard in covers {
            let state = &mut self.shards[shard.index()];
            let frozen = state.frozen.take().expect("a covered shard stays frozen");
            self.frozen_shards -= 1;
            let merged = frozen.merged.expect("a covered shard is merged");
            self.frozen_bytes -= frozen.delta.bytes();
            self.rubbish.push(frozen.delta.map);
            state.roots.insert(0, merged.root);
            // The old tree's pages are read by nobody but a reader of old roots.
            merged.dropped.iter().for_each(|page| self.pages.cache.remove(*page));
            state.garbage.push_back((frozen.at, merged.dropped));
        }
        let place = (slot.sequence % 2) as usize;
        self.slots[place] = Some(slot);
        (0..self.config.shards).for_each(|shard| self.collect_garbage(ShardId(shard)));
    }

    fn newest(&self) -> &Slot {
        self.slots.iter().flatten().max_by_key(|slot| slot.sequence).expect("one slot is whole")
    }

    /// Position of the oldest root of a shard that must stay readable.
    fn oldest_needed(&self, shard: ShardId) -> Lsn {
        let slots = self.slots.iter().flatten().map(|slot| slot.oldest(shard.index()));
        let pins = self.pins.range((shard, Lsn::ZERO)..=(shard, Lsn::MAX)).map(|((_, at), _)| *at);
        slots.chain(pins).min().expect("one slot is whole")
    }

    pub(super) fn collect_garbage(&mut self, shard: ShardId) {
        let oldest = self.oldest_needed(shard);
        let state = &mut self.shards[shard.index()];
        state.roots.retain(|root| root.at >= oldest);
        while let Some((at, _)) = state.garbage.front()
            && *at <= oldest
        {
            let (_, pages) = state.garbage.pop_front().expect("just seen");
            for page in pages {
                let withheld = self.walk.as_mut().is_some_and(|walk| walk.withhold(shard, page));
                if !withheld {
                    self.pages.free(page);
                }
            }
        }
    }

    /// Keeps the shard's current root and its pages until [`Store::unpin`], counted, and names it.
    pub fn pin(&mut self, shard: ShardId) -> Lsn {
        let at = self.checkpoint_lsn(shard);
        *self.pins.entry((shard, at)).or_default() += 1;
        at
    }

    pub fn unpin(&mut self, shard: ShardId, at: Lsn) {
        let count = self.pins.get_mut(&(shard, at)).expect("an unpin answers a pin");
        *count -= 1;
        if *count == 0 {
            self.pins.remove(&(shard, at));
            self.collect_garbage(shard);
        }
    }

    /// Position of the shard's current durable checkpoint.
    pub fn checkpoint_lsn(&self, shard: ShardId) -> Lsn {
        self.shards[shard.index()].roots[0].at
    }

    /// The log is needed from here on, also if only the older superblock slot survives.
    pub fn redo_from(&self) -> Lsn {
        let current = |slot: &Slot| slot.roots.iter().map(|roots| roots[0].at).min();
        self.slots.iter().flatten().filter_map(current).min().expect("one slot is whole")
    }

    /// Everything below was committed, and so it was durable in this node's log: a superblock names no checkpoint before.
    pub fn proves_committed(&self) -> Lsn {
        let roots = self.slots.iter().flatten().flat_map(|slot| &slot.roots);
        roots.map(|roots| roots[0].at).max().expect("one slot is whole")
    }

    /// Position and digest of the shard's current durable root, comparable between nodes.
    pub fn root(&self, shard: ShardId) -> (Lsn, Digest) {
        let root = &self.shards[shard.index()].roots[0];
        (root.at, root.summary(shard))
    }

    /// The retained roots, newest first.
    pub fn roots(&self, shard: ShardId) -> Vec<(Lsn, Digest)> {
        self.shards[shard.index()].roots.iter().map(|root| (root.at, root.summary(shard))).collect()
    }
}

impl Shard {
    /// The root of a checkpoint that may be named by a superblock now.
    fn ready(&self, committed: Lsn, committed_stamp: Stamp) -> Option<Root> {
        let frozen = self.frozen.as_ref()?;
        let merged = frozen.merged.as_ref()?;
        let committed = frozen.at <= committed && frozen.stamp <= committed_stamp;
        (committed && frozen.unwritten == 0 && merged.flush == Flush::Done).then_some(merged.root)
    }
}

/// Groups pages that lie next to each other into one write each.
fn runs_of(mut pages: Vec<(PageNo, Vec<u8>)>) -> Vec<(PageNo, SharedSlice)> {
    pages.sort_by_key(|(page, _)| *page);
    let mut runs = Vec::new();
    let mut rest = &pages[..];
    while let Some((first, _)) = rest.first() {
        let in_run = |i: &usize| rest.get(*i).is_some_and(|(page, _)| page.0 == first.0 + *i as u64);
        let len = (0..RUN_PAGES_MAX).take_while(in_run).count();
        let mut run = AlignedBuf::zeroed(len * PAGE_BYTES);
        for (i, (_, bytes)) in rest[..len].iter().enumerate() {
            run[i * PAGE_BYTES..(i + 1) * PAGE_BYTES].copy_from_slice(bytes);
        }
        runs.push((*first, run.share()));
        rest = &rest[len..];
    }
    runs
}

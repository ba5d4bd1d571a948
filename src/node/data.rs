//! Shards, pages and checkpoints: merges in slices, page reads and writes, the superblock.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;

use crate::base::limits::PAGE_BYTES;
use crate::base::{AlignedBuf, AppliedLsn, Lsn, Mono, ShardId, WallMs};
use crate::io::{ConnId, FileId, Op, Seam};
use crate::record::{MERGE_VERSION, Record};
use crate::store::{FlushToken, MergeStep, Miss, PageNo, Store};

use super::redo::Replay;
use super::{Node, token};

/// Pages read or made by merges in one turn.
const MERGE_PAGES: usize = 8;
/// One piece of growing the page file.
const GROW_BYTES: u64 = 1 << 20;

/// The store and what is under way for it.
pub struct Data {
    pub store: Store,
    pub redo: Replay,
    pub applied: AppliedLsn,
    /// The leader's clock as carried by frames and heartbeats: standbys expire by it.
    pub clock: WallMs,
    pages: FileId,
    superblock: FileId,
    pub reading: BTreeSet<PageNo>,
    /// Clients whose command waits for a page.
    pub parked: BTreeMap<PageNo, Vec<ConnId>>,
    growing: Option<Growing>,
    /// The page file could not grow for want of space. Nothing was lost: its new end was not in use yet.
    pub starved: bool,
    superblock_busy: bool,
    /// The next frame is too young for this delayed standby; it is looked at again then.
    pub delayed_until: Option<Mono>,
    /// Position at which the last checkpoint record was logged by this primary, and the shard it named.
    last_checkpoint: Lsn,
    pub more_merges: bool,
    /// Roots of finished checkpoints not yet compared with other nodes.
    pub fresh_roots: Vec<(ShardId, Lsn, crate::base::Digest)>,
}

#[derive(Debug)]
struct Growing {
    at: u64,
    to: u64,
    pages: u64,
    /// A piece is being written.
    asked: bool,
}

impl Data {
    pub fn new(
        store: Store,
        redo: Replay,
        applied: Lsn,
        clock: WallMs,
        pages: FileId,
        superblock: FileId,
    ) -> Data {
        Data {
            store,
            redo,
            applied: AppliedLsn(applied),
            clock,
            pages,
            superblock,
            reading: BTreeSet::new(),
            parked: BTreeMap::new(),
            growing: None,
            starved: false,
            superblock_busy: false,
            delayed_until: None,
            last_checkpoint: applied,
            more_merges: true,
            fresh_roots: Vec::new(),
        }
    }

    pub fn pages_file(&self) -> FileId {
        self.pages
    }

    pub fn leader_clock(&mut self, clock: WallMs) {
        self.clock = self.clock.max(clock);
    }
}

impl<S: Seam> Node<S> {
    /// On the primary: logs a checkpoint when enough log or delta has gathered. Only between groups: the record stands
    /// in front of everything else in its frame.
    pub(super) fn log_checkpoints(&mut self) {
        if !self.serving || self.writes_held || !self.log.wal.writer().is_empty() {
            return;
        }
        let end = self.log.wal.end().end;
        let shards = self.control_shards();
        let share = (self.checkpoint_bytes / u64::from(shards)).max(1);
        let pressed = self.data.store.memory().delta_bytes > self.delta_budget / 2;
        if end.since(self.data.last_checkpoint) < share && !pressed {
            return;
        }
        let store = &self.data.store;
        let shard = match pressed {
            true => (0..shards).map(ShardId).max_by_key(|s| store.delta_bytes(*s)),
            // The one that a restart would replay the most log for. Not in turns: a leader that begins each time with the
            // same shard, and leads for a short time only, would never come to the others.
            false => (0..shards)
                .map(ShardId)
                .filter(|s| !store.merging(*s))
                .filter(|s| {
                    let old = end.since(store.checkpoint_lsn(*s)) >= self.checkpoint_bytes;
                    old || store.delta_bytes(*s) > 0
                })
                .min_by_key(|s| store.checkpoint_lsn(*s)),
        };
        self.data.last_checkpoint = end;
        let Some(shard) = shard.filter(|shard| !store.merging(*shard)) else { return };
        self.checkpoint_shard(shard);
    }

    fn checkpoint_shard(&mut self, shard: ShardId) {
        let at = self.log.wal.end().end;
        let stamp = self.log.wal.open_stamp();
        let writer = self.log.wal.writer();
        writer.push(Record::Checkpoint { shard, merge_version: MERGE_VERSION, at });
        writer.end_transaction();
        self.data.store.freeze(shard, at, stamp);
        self.data.more_merges = true;
    }

    /// Moves merges, page writes and the superblock along. Says whether more can be done at once.
    pub(super) fn merge_some(&mut self) -> bool {
        let mut budget = MERGE_PAGES;
        let mut more = false;
        while self.data.more_merges && budget > 0 {
            budget -= 1;
            match self.data.store.merge_step(1) {
                MergeStep::NeedPages(pages) => pages.into_iter().for_each(|p| self.read_page(p)),
                MergeStep::Write(writes) => {
                    self.metrics.count.pages_written += writes.len() as u64;
                    for (page, data) in writes {
                        let (file, offset) = (self.data.pages, page.0 * PAGE_BYTES as u64);
                        let token = token::page_write(page.0);
                        self.seam.submit(Op::Write { token, file, offset, data, durable: false });
                    }
                }
                MergeStep::Grow { to_pages } => {
                    self.grow_pages(to_pages);
                    self.data.more_merges = false;
                }
                MergeStep::Merged { shard, at, digest } => {
                    self.metrics.count.checkpoints_done += 1;
                    tracing::debug!(%shard, %at, %digest, "checkpoint merged");
                    self.data.fresh_roots.push((shard, at, digest));
                }
                MergeStep::Working => {}
                MergeStep::Waiting | MergeStep::Idle => self.data.more_merges = false,
            }
            more = self.data.more_merges;
        }
        if let Some(flush) = self.data.store.wants_flush() {
            self.seam.submit(Op::Flush { token: token::page_flush(flush.0), file: self.data.pages });
        }
        if !self.data.superblock_busy
            && let Some(image) = self.data.store.superblock(self.committed.lsn())
        {
            self.data.superblock_busy = true;
            let file = self.data.superblock;
            let (offset, data) = (image.slot_offset, image.data);
            self.seam.submit(Op::Write { token: token::superblock(), file, offset, data, durable: true });
        }
        more
    }

    fn grow_pages(&mut self, to_pages: u64) {
        if self.data.growing.is_some() {
            return;
        }
        let at = self.seam.file_len(self.data.pages).unwrap_or(0);
        self.data.growing =
            Some(Growing { at, to: to_pages * PAGE_BYTES as u64, pages: to_pages, asked: false });
        self.grow_on();
    }

    /// Writes the next piece of zeroes behind the page file's end.
    fn grow_on(&mut self) {
        let Some(growing) = &mut self.data.growing else { return };
        if growing.at >= growing.to {
            let pages = growing.pages;
            self.data.growing = None;
            self.data.store.pages_grown(pages);
            self.data.more_merges = true;
            return;
        }
        let piece = (growing.to - growing.at).min(GROW_BYTES);
        let data = AlignedBuf::zeroed(piece as usize).share();
        let (file, offset) = (self.data.pages, growing.at);
        growing.asked = true;
        self.seam.submit(Op::Write { token: token::page_grow(), file, offset, data, durable: false });
    }

    pub(super) fn grown(&mut self, result: std::io::Result<()>) {
        let Some(growing) = &mut self.data.growing else { return };
        growing.asked = false;
        match result {
            Ok(()) => {
                growing.at = (growing.at + GROW_BYTES).min(growing.to);
                if std::mem::take(&mut self.data.starved) {
                    tracing::info!("disk has room again: the page file grows");
                }
                self.grow_on();
            }
            // Space that was never in use may be asked for again; the timers do.
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                if !std::mem::replace(&mut self.data.starved, true) {
                    tracing::error!(%error, "disk full: the page file cannot grow, writes are refused");
                }
            }
            Err(error) => self.data_failed("growing the page file", &error),
        }
    }

    /// Asks again for space that was not there.
    pub(super) fn retry_growing(&mut self) {
        if self.data.starved && self.data.growing.as_ref().is_some_and(|growing| !growing.asked) {
            self.grow_on();
        }
    }

    /// Pages were found free: room to grow is not needed before they are used up.
    pub(super) fn stop_starving(&mut self) {
        let waits = self.data.growing.as_ref().is_some_and(|growing| !growing.asked);
        if self.data.starved && waits && self.data.store.file_pages().1 > 0 {
            self.data.starved = false;
            self.data.growing = None;
            self.data.store.growth_failed();
            tracing::info!("the page file has room again: free pages were found in it");
        }
    }

    /// No room for more log, or for more pages. While the free pages are being found, merges wait for them, and writes for
    /// merges when delta memory is used up.
    pub(super) fn disk_full(&self) -> bool {
        let store = &self.data.store;
        self.log_starved || (self.data.starved && (!store.walking() || store.walk_waits()))
    }

    pub(super) fn read_page(&mut self, page: PageNo) {
        // A damaged page is not read again: its repair brings it.
        if self.data.store.is_damaged(page) || !self.data.reading.insert(page) {
            return;
        }
        let (file, offset) = (self.data.pages, page.0 * PAGE_BYTES as u64);
        self.seam.submit(Op::Read { token: token::page_read(page.0), file, offset, len: PAGE_BYTES });
    }

    pub(super) fn page_arrived(&mut self, page: u64, result: std::io::Result<AlignedBuf>) {
        let page = PageNo(page);
        self.data.reading.remove(&page);
        self.data.more_merges = true;
        let damage = match result {
            Ok(bytes) => self.data.store.page_read(page, &bytes).err().map(|d| d.what.to_string()),
            Err(error) => self.data.store.page_unreadable(page).then(|| error.to_string()),
        };
        match damage {
            // Whoever waits goes on waiting: for the repair, or for its failure.
            Some(what) => self.page_is_damaged(page, &what),
            None => self.page_settled(page),
        }
    }

    /// A command needs a page: read it, and everything known to be needed with it.
    pub(super) fn park(&mut self, conn: ConnId, miss: Miss) {
        for page in self.data.store.wanted(miss) {
            self.read_page(page);
        }
        self.read_page(miss.page);
        self.data.parked.entry(miss.page).or_default().push(conn);
    }

    pub(super) fn page_written(&mut self, page: u64, result: std::io::Result<()>) {
        match result {
            Ok(()) => {
                self.data.store.page_written(PageNo(page));
                self.data.more_merges = true;
            }
            Err(error) => self.data_failed("writing a page", &error),
        }
    }

    pub(super) fn pages_flushed(&mut self, round: u64, result: std::io::Result<()>) {
        match result {
            Ok(()) => {
                self.data.store.pages_flushed(FlushToken(round));
                self.data.more_merges = true;
            }
            Err(error) => self.data_failed("flushing pages", &error),
        }
    }

    pub(super) fn superblock_written(&mut self, result: std::io::Result<()>) {
        match result {
            Ok(()) => {
                self.data.superblock_busy = false;
                self.data.store.superblock_durable();
                self.data.more_merges = true;
                self.retain_log();
            }
            Err(error) => self.data_failed("writing the superblock", &error),
        }
    }

    /// A failed write or flush is never retried: nobody knows any more what is on the disk (protocol 5.6).
    pub(super) fn data_failed(&mut self, what: &str, error: &std::io::Error) {
        tracing::error!(what, %error, "the data disk failed");
        self.fail("a write to the data files failed");
    }
}

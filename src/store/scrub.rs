//! The scrubber: reads every page of every current tree and judges it by its parent, shard after shard.
//!
//! It keeps its own list of what to read next and pins the root of the shard it works on, so that no page changes its
//! meaning before its bytes have come. What it finds to be damaged is noted like any other damage; the subtree below
//! is left to the next pass.

use std::collections::BTreeMap;

use super::key::Key;
use super::merge::bigs_of;
use super::page::{self, Big};
use super::pages::{Want, judge};
use super::{PageDamage, PageNo, Store};
use crate::base::{Lsn, ShardId};

#[derive(Debug, Clone)]
struct Item {
    want: Want,
    /// The fence of a tree page, the key of a long value.
    key: Key,
}

/// A pass under way.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    /// The shard at work, and its pinned checkpoint.
    pinned: Option<(ShardId, Lsn)>,
    next_shard: u16,
    stack: Vec<(PageNo, Item)>,
    reading: BTreeMap<PageNo, Item>,
}

/// What the scrubber wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scrubbed {
    /// Read these pages and hand each to [`Store::scrub_read`].
    Read(Vec<PageNo>),
    /// Reads are under way.
    Waiting,
    /// Every shard was read: a whole pass is over. The next call begins another one.
    Done,
}

impl Store {
    /// The next pages to read, `max` at most.
    pub fn scrub_step(&mut self, max: usize) -> Scrubbed {
        loop {
            let scrub = &mut self.scrub;
            if !scrub.stack.is_empty() {
                let mut pages = Vec::new();
                while pages.len() < max
                    && let Some((page, item)) = scrub.stack.pop()
                {
                    scrub.reading.insert(page, item);
                    pages.push(page);
                }
                return Scrubbed::Read(pages);
            }
            if !scrub.reading.is_empty() {
                return Scrubbed::Waiting;
            }
            if let Some((shard, at)) = scrub.pinned.take() {
                self.unpin(shard, at);
                continue;
            }
            if scrub.next_shard >= self.config.shards {
                scrub.next_shard = 0;
                return Scrubbed::Done;
            }
            let shard = ShardId(scrub.next_shard);
            scrub.next_shard += 1;
            let root = self.shards[shard.index()].roots[0];
            if !root.is_empty() {
                let at = self.pin(shard);
                self.scrub.pinned = Some((shard, at));
                let want = Want::Node { level: root.level, digest: root.digest };
                self.scrub.stack.push((root.page, Item { want, key: Key::EMPTY }));
            }
        }
    }

    /// Judges one page that [`Store::scrub_step`] asked for; no bytes at all for a page that could not be read.
    pub fn scrub_read(&mut self, page: PageNo, bytes: &[u8]) -> Result<(), PageDamage> {
        let Some(Item { want, key }) = self.scrub.reading.remove(&page) else { return Ok(()) };
        let Some((shard, _)) = self.scrub.pinned else { return Ok(()) };
        if let Err(what) = judge(page, bytes, shard, &want) {
            self.pages.note_damage(shard, page, want, key);
            return Err(PageDamage { shard, page, what });
        }
        let stack = &mut self.scrub.stack;
        match want {
            Want::Node { level: 0, .. } => {
                let bigs =
                    bigs_of(bytes).map(|(key, big)| (big.page, Item { want: Want::BigHead(big), key }));
                stack.extend(bigs);
            }
            Want::Node { level, .. } => {
                for (i, child) in (0..page::count(bytes)).map(|i| page::child(bytes, i)).enumerate() {
                    let want = Want::Node { level: level - 1, digest: child.digest };
                    let key = if i == 0 { key.clone() } else { child.fence };
                    stack.push((child.page, Item { want, key }));
                }
            }
            Want::BigHead(Big { page: head, digest, len, .. }) => {
                for (page, check) in page::big_rest(bytes) {
                    let want = Want::BigRest { head, check, digest, len };
                    stack.push((page, Item { want, key: key.clone() }));
                }
            }
            Want::BigRest { .. } => {}
        }
        Ok(())
    }
}

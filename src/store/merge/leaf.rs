//! The range of one old leaf, merged with the frozen delta in key order.

use std::ops::Bound::{Excluded, Included, Unbounded};

use super::pack::{Node, Packer};
use super::{Env, Stop};
use crate::base::Digest;
use crate::store::delta::Slot;
use crate::store::key::Key;
use crate::store::page::{self, Big, Child, Entry, INLINE_MAX, Value};
use crate::store::{HEAD_BYTES, PageNo};

/// Entries looked at in one slice.
const SLICE_ENTRIES: usize = 256;

/// A leaf under way.
#[derive(Debug)]
pub(super) struct LeafWork {
    /// The old leaf and its bytes; `None` where there was none.
    pub old: Option<(Child, Vec<u8>)>,
    fence: Key,
    high: Option<Key>,
    next_old: usize,
    /// The last delta key that has been taken.
    done_through: Option<Key>,
    packer: Packer,
    changed: bool,
    /// A long value on its way to overflow pages.
    big: Option<BigWork>,
    /// Old long values that the new tree no longer names.
    pub dropped: Vec<(Key, Big)>,
}

#[derive(Debug)]
struct BigWork {
    key: Key,
    digest: Digest,
    rest: Vec<(PageNo, u64)>,
}

/// What a slice of a leaf brought.
pub(super) enum LeafStep {
    /// A new leaf for the parent.
    Made(Node),
    /// More is to do.
    Working,
    /// All is handed out, and whether anything changed.
    Done { changed: bool },
}

impl LeafWork {
    pub fn new(old: Option<(Child, Vec<u8>)>, fence: Key, high: Option<Key>) -> LeafWork {
        LeafWork {
            old,
            packer: Packer::new(fence.clone()),
            fence,
            high,
            next_old: 0,
            done_through: None,
            changed: false,
            big: None,
            dropped: Vec::new(),
        }
    }

    fn old_key(&self) -> Option<&[u8]> {
        let (_, page) = self.old.as_ref()?;
        (self.next_old < page::count(page)).then(|| page::leaf_key(page, self.next_old))
    }

    fn old_entry(&self) -> Entry {
        let (_, page) = self.old.as_ref().expect("an old entry lies in an old leaf");
        page::leaf_entry(page, self.next_old)
    }

    /// One slice: up to one new page or [`SLICE_ENTRIES`] entries.
    pub fn step(&mut self, env: &mut Env<'_>) -> Result<LeafStep, Stop> {
        if self.big.is_some() {
            return self.big_step(env);
        }
        let delta = env.delta;
        let low = self.done_through.clone();
        let low = low.as_deref().map_or(Included(&self.fence[..]), Excluded);
        let high = self.high.clone();
        let mut changes =
            delta.map.range::<[u8], _>((low, high.as_deref().map_or(Unbounded, Excluded))).peekable();
        for i in 0..SLICE_ENTRIES {
            env.work += usize::from(i % 32 == 0);
            let order = match (self.old_key(), changes.peek()) {
                (None, None) => return Ok(self.finish()),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(old), Some((key, _))) => old.cmp(key),
            };
            let made = if order.is_lt() {
                let key = self.old_key().expect("just seen");
                let survives = delta.hides(key).is_none();
                let entry = self.old_entry();
                self.next_old += 1;
                if survives {
                    self.packer.push(entry)
                } else {
                    self.lose(entry);
                    None
                }
            } else {
                let (key, slot) = changes.next().expect("just seen");
                let entry = self.change(key, slot, order.is_eq());
                if self.big.is_some() {
                    return Ok(LeafStep::Working);
                }
                self.done_through = Some(key.clone());
                entry.and_then(|entry| self.packer.push(entry))
            };
            if let Some(node) = made {
                return Ok(LeafStep::Made(node));
            }
        }
        Ok(LeafStep::Working)
    }

    fn finish(&mut self) -> LeafStep {
        if !self.changed {
            assert!(!self.packer.made, "an unchanged leaf fits its page");
            return LeafStep::Done { changed: false };
        }
        match self.packer.finish() {
            Some(node) => LeafStep::Made(node),
            None => LeafStep::Done { changed: true },
        }
    }

    /// What stands under `key` in the new leaf, or a long value that must be written out first. `met` says whether
    /// the next old entry has the same key.
    fn change(&mut self, key: &Key, slot: &Slot, met: bool) -> Option<Entry> {
        let Some(value) = &slot.value else {
            if met {
                self.lose_old();
            }
            return None;
        };
        let digest = (value.len() > INLINE_MAX).then(|| Digest::of(value));
        if met {
            let old = self.old_entry();
            let same = match (&old.value, digest) {
                (Value::Inline(bytes), None) => bytes == value,
                (Value::Big(big), Some(digest)) => big.digest == digest && big.len as usize == value.len(),
                _ => false,
            };
            if same {
                self.next_old += 1;
                return Some(old);
            }
        }
        if let Some(digest) = digest {
            self.big = Some(BigWork { key: key.clone(), digest, rest: Vec::new() });
            return None;
        }
        if met {
            self.lose_old();
        }
        self.changed = true;
        Some(Entry { key: key.clone(), value: Value::Inline(value.clone()) })
    }

    /// Makes one overflow page; with the last one, the head, the entry is ready.
    fn big_step(&mut self, env: &mut Env<'_>) -> Result<LeafStep, Stop> {
        let work = self.big.as_mut().expect("a long value is under way");
        let slot = &env.delta.map[&work.key];
        let value = slot.value.as_deref().expect("a long value is a value");
        let rest = page::pages_of_big(value.len()) - 1;
        if work.rest.len() < rest {
            let (i, number) = (work.rest.len() + 1, env.take()?);
            let bytes = page::make_big(env.shard, env.at, number, value, i, &[]);
            work.rest.push((number, page::check_of(&bytes)));
            env.emit(number, bytes, None);
            return Ok(LeafStep::Working);
        }
        let number = env.take()?;
        let bytes = page::make_big(env.shard, env.at, number, value, 0, &work.rest);
        let mut head = [0; HEAD_BYTES];
        head.copy_from_slice(&value[..HEAD_BYTES]);
        let (len, check) = (value.len() as u32, page::check_of(&bytes));
        let big = Big { len, digest: work.digest, head, page: number, check };
        env.emit(number, bytes, None);
        let key = self.big.take().expect("just seen").key;
        if self.old_key() == Some(&*key) {
            self.lose_old();
        }
        self.changed = true;
        self.done_through = Some(key.clone());
        let made = self.packer.push(Entry { key, value: Value::Big(big) });
        Ok(made.map_or(LeafStep::Working, LeafStep::Made))
    }

    fn lose_old(&mut self) {
        let entry = self.old_entry();
        self.next_old += 1;
        self.lose(entry);
    }

    fn lose(&mut self, entry: Entry) {
        self.changed = true;
        if let Value::Big(big) = entry.value {
            self.dropped.push((entry.key, big));
        }
    }
}

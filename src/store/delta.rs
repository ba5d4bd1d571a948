//! A delta: the ordered changes of one shard since a checkpoint, over whatever lies below.
//!
//! Three kinds of change, newest first by construction: an entry in `map` (a value or a tombstone) is always newer
//! than a range that covers it, and a range is always newer than `cleared`, because a range delete removes the
//! entries it covers and a clear removes everything.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound::{Excluded, Included, Unbounded};

use super::Seen;
use super::key::Key;
use crate::base::Stamp;

/// A value, or `None` for a tombstone, and who wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub value: Option<Box<[u8]>>,
    pub stamp: Stamp,
}

/// What a map entry costs besides its bytes: node share, two allocations' overhead.
const ENTRY_BYTES: usize = 96;

fn cost(key: &Key, slot: &Slot) -> usize {
    ENTRY_BYTES + key.heap_bytes() + slot.value.as_ref().map_or(0, |v| v.len())
}

#[derive(Default, Debug)]
pub(super) struct Delta {
    pub map: BTreeMap<Key, Slot>,
    /// Start of a deleted range -> its end (excluded) and stamp. Disjoint, never adjacent.
    ranges: BTreeMap<Key, (Key, Stamp)>,
    cleared: Option<Stamp>,
    bytes: usize,
}

type Ranges = Vec<(Key, (Key, Stamp))>;

/// What a range delete replaced, to be put back by undo.
#[derive(Debug)]
pub(super) struct Replaced {
    /// Start of the range that now stands there.
    at: Key,
    pub entries: Vec<(Key, Slot)>,
    ranges: Ranges,
}

impl Delta {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty() && self.ranges.is_empty() && self.cleared.is_none()
    }

    pub fn cleared(&self) -> bool {
        self.cleared.is_some()
    }

    /// What this delta says about `key`; `None` when it says nothing and the layer below decides.
    pub fn look(&self, key: &[u8]) -> Option<Seen<'_>> {
        if let Some(slot) = self.slot(key) {
            return Some(Seen { value: slot.value.as_deref(), stamp: slot.stamp });
        }
        self.hides(key).map(|stamp| Seen { value: None, stamp })
    }

    /// The entry under `key`. Short keys are compared as numbers.
    fn slot(&self, key: &[u8]) -> Option<&Slot> {
        match Key::is_free(key.len()) {
            true => self.map.get(&Key::from(key)),
            false => self.map.get(key),
        }
    }

    /// Whether a range delete or a clear hides the layers below at `key`.
    pub fn hides(&self, key: &[u8]) -> Option<Stamp> {
        if !self.ranges.is_empty() {
            let below = self.ranges.range::<[u8], _>((Unbounded, Included(key))).next_back();
            if let Some((_, (end, stamp))) = below
                && key < &**end
            {
                return Some(*stamp);
            }
        }
        self.cleared
    }

    /// Whether anything in `low..high` changes (`high` = `None`: no end).
    pub fn touches(&self, low: &[u8], high: Option<&[u8]>) -> bool {
        self.cleared.is_some() || self.has_entries(low, high) || self.has_ranges(low, high)
    }

    pub fn has_entries(&self, low: &[u8], high: Option<&[u8]>) -> bool {
        self.map.range::<[u8], _>((Included(low), high.map_or(Unbounded, Excluded))).next().is_some()
    }

    fn has_ranges(&self, low: &[u8], high: Option<&[u8]>) -> bool {
        let last = self.ranges.range::<[u8], _>((Unbounded, high.map_or(Unbounded, Excluded))).next_back();
        last.is_some_and(|(_, (end, _))| low < &**end)
    }

    /// Whether one deleted range covers all of `low..high`.
    pub fn covers(&self, low: &[u8], high: Option<&[u8]>) -> bool {
        let below = self.ranges.range::<[u8], _>((Unbounded, Included(low))).next_back();
        match (below, high) {
            (Some((_, (end, _))), Some(high)) => high <= &**end,
            _ => false,
        }
    }

    /// Sets a value or a tombstone. With `keep` it returns the key and what stood there, for undo.
    pub fn set(
        &mut self,
        key: &[u8],
        value: Option<&[u8]>,
        stamp: Stamp,
        keep: bool,
    ) -> Option<(Key, Option<Slot>)> {
        if Key::is_free(key.len()) {
            return match self.map.entry(Key::from(key)) {
                Entry::Occupied(mut entry) => {
                    let shared = entry.key().clone();
                    Self::replace(&mut self.bytes, shared, entry.get_mut(), value, stamp, keep)
                }
                Entry::Vacant(entry) => {
                    let slot = Slot { value: value.map(Box::from), stamp };
                    self.bytes += cost(entry.key(), &slot);
                    let shared = entry.key().clone();
                    entry.insert(slot);
                    keep.then_some((shared, None))
                }
            };
        }
        // A long key is only allocated when it is new.
        if let Some((shared, slot)) = self.map.range_mut::<[u8], _>((Included(key), Included(key))).next() {
            return Self::replace(&mut self.bytes, shared.clone(), slot, value, stamp, keep);
        }
        let (shared, slot) = (Key::from(key), Slot { value: value.map(Box::from), stamp });
        self.bytes += cost(&shared, &slot);
        self.map.insert(shared.clone(), slot);
        keep.then_some((shared, None))
    }

    fn replace(
        bytes: &mut usize,
        key: Key,
        slot: &mut Slot,
        value: Option<&[u8]>,
        stamp: Stamp,
        keep: bool,
    ) -> Option<(Key, Option<Slot>)> {
        *bytes -= cost(&key, slot);
        let old = if !keep && slot.value.as_ref().map(|v| v.len()) == value.map(<[u8]>::len) {
            // Redo overwrites in place: nobody can ask for the old bytes again.
            if let (Some(old), Some(new)) = (&mut slot.value, value) {
                old.copy_from_slice(new);
            }
            slot.stamp = stamp;
            None
        } else {
            let old = std::mem::replace(slot, Slot { value: value.map(Box::from), stamp });
            keep.then_some(old)
        };
        *bytes += cost(&key, slot);
        old.map(|old| (key, Some(old)))
    }

    /// Puts back what [`Delta::set`] returned.
    pub fn restore(&mut self, key: Key, slot: Option<Slot>) {
        match slot {
            Some(slot) => {
                self.bytes += cost(&key, &slot);
                let now = self.map.insert(key.clone(), slot).expect("undo meets the entry that it undoes");
                self.bytes -= cost(&key, &now);
            }
            None => {
                let now = self.map.remove(&*key).expect("undo meets the entry that it undoes");
                self.bytes -= cost(&key, &now);
            }
        }
    }

    /// Deletes `start..end`: takes the covered entries and the overlapped ranges out and returns them.
    pub fn delete_range(&mut self, start: &[u8], end: &[u8], stamp: Stamp) -> Replaced {
        assert!(start < end, "an empty range is the caller's error");
        let mut entries = Vec::new();
        while let Some((key, _)) = self.map.range::<[u8], _>((Included(start), Excluded(end))).next() {
            let key = key.clone();
            let slot = self.map.remove(&*key).expect("just seen");
            self.bytes -= cost(&key, &slot);
            entries.push((key, slot));
        }
        let (mut low, mut high, mut latest) = (Key::from(start), Key::from(end), stamp);
        let mut old = Ranges::new();
        // Ranges are disjoint, so walking down from `end` meets every overlapping or adjacent one.
        while let Some((key, range)) = self.ranges.range::<[u8], _>((Unbounded, Included(end))).next_back() {
            if &*range.0 < start {
                break;
            }
            let (key, range) = (key.clone(), range.clone());
            low = low.min(key.clone());
            high = high.max(range.0.clone());
            latest = latest.max(range.1);
            self.ranges.remove(&*key);
            old.push((key, range));
        }
        self.bytes += ENTRY_BYTES;
        self.bytes -= old.len() * ENTRY_BYTES;
        self.ranges.insert(low.clone(), (high, latest));
        Replaced { at: low, entries, ranges: old }
    }

    /// Puts back what [`Delta::delete_range`] returned.
    pub fn restore_range(&mut self, replaced: Replaced) {
        let Replaced { at, entries, ranges } = replaced;
        self.ranges.remove(&*at).expect("undo meets the range that it undoes");
        self.bytes += ranges.len() * ENTRY_BYTES;
        self.bytes -= ENTRY_BYTES;
        self.ranges.extend(ranges);
        for (key, slot) in entries {
            self.bytes += cost(&key, &slot);
            self.map.insert(key, slot);
        }
    }

    /// Hides everything below and forgets its own changes, which it returns.
    pub fn clear(&mut self, stamp: Stamp) -> Delta {
        let cleared = Delta { cleared: Some(stamp), ..Delta::default() };
        std::mem::replace(self, cleared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Change {
        Set(u8, Option<u8>),
        Range(u8, u8),
        Clear,
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let one = prop_oneof![
            6 => (0u8..24, any::<Option<u8>>()).prop_map(|(k, v)| Change::Set(k, v)),
            3 => (0u8..24, 1u8..8).prop_map(|(s, n)| Change::Range(s, s + n)),
            1 => Just(Change::Clear),
        ];
        prop::collection::vec(one, 0..40)
    }

    /// What a reader sees for each key: `None` = the layer below shows through.
    fn picture(delta: &Delta) -> Vec<Option<Option<u8>>> {
        (0u8..40).map(|k| delta.look(&[k]).map(|seen| seen.value.map(|v| v[0]))).collect()
    }

    proptest! {
        #[test]
        fn a_delta_agrees_with_a_plain_model(changes in changes()) {
            let mut delta = Delta::default();
            let mut model: Vec<Option<Option<u8>>> = vec![None; 40];
            for (i, change) in changes.into_iter().enumerate() {
                let stamp = Stamp(i as u64 + 1);
                match change {
                    Change::Set(k, v) => {
                        delta.set(&[k], v.as_ref().map(std::slice::from_ref), stamp, i % 2 == 0);
                        model[usize::from(k)] = Some(v);
                    }
                    Change::Range(s, e) => {
                        delta.delete_range(&[s], &[e], stamp);
                        model[usize::from(s)..usize::from(e)].fill(Some(None));
                    }
                    Change::Clear => {
                        delta.clear(stamp);
                        model.fill(Some(None));
                    }
                }
                prop_assert_eq!(picture(&delta), model.clone());
                for low in 0u8..39 {
                    for high in low + 1..40 {
                        let part = &model[usize::from(low)..usize::from(high)];
                        let any = part.iter().any(Option::is_some);
                        prop_assert_eq!(delta.touches(&[low], Some(&[high])), any, "{}..{}", low, high);
                        if delta.covers(&[low], Some(&[high])) && !delta.has_entries(&[low], Some(&[high])) {
                            prop_assert!(part.iter().all(|p| *p == Some(None)));
                        }
                    }
                }
            }
        }
    }
}

//! Which keys will expire soon: a hint, so that expiry is prompt, never a truth. Every entry is checked against the
//! store before anything is deleted, so entries may be wrong, and when memory is short the latest are left out.

use std::collections::BTreeSet;

use crate::base::limits::{DUE_KEY_BYTES_MAX, DUE_KEYS_MAX};
use crate::base::{ShardId, WallMs};

#[derive(Debug, Default)]
pub struct DueKeys {
    keys: BTreeSet<(WallMs, ShardId, Box<[u8]>)>,
    bytes: usize,
}

impl DueKeys {
    pub fn add(&mut self, at: WallMs, shard: ShardId, store_key: &[u8]) {
        if self.keys.insert((at, shard, store_key.into())) {
            self.bytes += store_key.len();
        }
        while self.keys.len() > DUE_KEYS_MAX || self.bytes > DUE_KEY_BYTES_MAX {
            let (_, _, latest) = self.keys.pop_last().expect("too many keys are some keys");
            self.bytes -= latest.len();
        }
    }

    /// The first key that is due by `now`; it stays until [`DueKeys::remove_first`].
    pub fn first_due(&self, now: WallMs) -> Option<(ShardId, &[u8])> {
        let (at, shard, key) = self.keys.first()?;
        (*at <= now).then_some((*shard, key))
    }

    pub fn remove_first(&mut self) {
        if let Some((_, _, key)) = self.keys.pop_first() {
            self.bytes -= key.len();
        }
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soonest_are_kept_within_the_limits() {
        let mut due = DueKeys::default();
        let key = |n: usize| vec![n as u8; DUE_KEY_BYTES_MAX / 4];
        for n in [5, 1, 4, 2, 3, 6] {
            due.add(WallMs(n as u64), ShardId(0), &key(n));
            due.add(WallMs(n as u64), ShardId(0), &key(n));
        }
        assert_eq!((due.len(), due.bytes), (4, DUE_KEY_BYTES_MAX));
        assert!(due.first_due(WallMs(0)).is_none());
        for n in 1..=4 {
            assert_eq!(due.first_due(WallMs(9)), Some((ShardId(0), key(n).as_slice())));
            due.remove_first();
        }
        assert_eq!((due.len(), due.bytes), (0, 0));
    }
}

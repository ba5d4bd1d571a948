//! WATCH: which connections must not run their EXEC.
//!
//! A connection is marked by every change of a key that it watches, at the moment of the change. That holds whatever
//! the value becomes (the same bytes written again, deleted and created anew, flushed, expired) and wherever the store
//! keeps the entry. Keys are known by the common prefix of all their entries, so an element marks its collection.

use std::collections::BTreeMap;

use crate::base::{ShardId, Stamp};
use crate::record::{Record, RecordReader, key};

/// All watched keys of a node.
#[derive(Debug, Default)]
pub struct WatchTable {
    by_key: BTreeMap<Box<[u8]>, Watchers>,
    sessions: BTreeMap<u64, Watching>,
}

#[derive(Debug)]
struct Watchers {
    shard: ShardId,
    sessions: Vec<u64>,
}

#[derive(Debug, Default)]
struct Watching {
    keys: Vec<Watched>,
    /// The last change of a watched key, by its stamp.
    changed: Option<Stamp>,
}

#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub user_key: Box<[u8]>,
    /// It could be seen when WATCH was called: if it has expired since, it has changed.
    pub was_live: bool,
}

impl WatchTable {
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    pub(super) fn watch(&mut self, session: u64, shard: ShardId, watched: Watched) {
        let mut prefix = Vec::new();
        key::prefix(&watched.user_key, &mut prefix);
        let watchers = self
            .by_key
            .entry(prefix.into_boxed_slice())
            .or_insert_with(|| Watchers { shard, sessions: Vec::new() });
        if !watchers.sessions.contains(&session) {
            watchers.sessions.push(session);
            self.sessions.entry(session).or_default().keys.push(watched);
        }
    }

    /// UNWATCH, EXEC, DISCARD, the end of a connection.
    pub fn forget(&mut self, session: u64) {
        let Some(watching) = self.sessions.remove(&session) else { return };
        let mut prefix = Vec::new();
        for watched in watching.keys {
            prefix.clear();
            key::prefix(&watched.user_key, &mut prefix);
            let watchers = self.by_key.get_mut(prefix.as_slice()).expect("a watched key is listed");
            watchers.sessions.retain(|id| *id != session);
            if watchers.sessions.is_empty() {
                self.by_key.remove(prefix.as_slice());
            }
        }
    }

    pub(super) fn count(&self, session: u64) -> usize {
        self.sessions.get(&session).map_or(0, |watching| watching.keys.len())
    }

    pub(super) fn watched(&self, session: u64) -> Vec<Watched> {
        self.sessions.get(&session).map_or(Vec::new(), |watching| watching.keys.clone())
    }

    /// The stamp of the last change of a key that `session` watches, if any changed.
    pub(super) fn changed_since_watch(&self, session: u64) -> Option<Stamp> {
        self.sessions.get(&session).and_then(|watching| watching.changed)
    }

    /// Every watched key.
    pub(super) fn keys(&self) -> Vec<Box<[u8]>> {
        self.by_key.keys().cloned().collect()
    }

    fn touch(&mut self, prefix: &[u8], stamp: Stamp) {
        let Some(watchers) = self.by_key.get(prefix) else { return };
        for id in &watchers.sessions {
            let watching = self.sessions.get_mut(id).expect("a watcher is listed");
            watching.changed = watching.changed.max(Some(stamp));
        }
    }

    /// A transaction of this node pushed `records`; its flushes made the watched keys `flushed` disappear.
    pub(super) fn changed(&mut self, records: &[u8], flushed: &[Box<[u8]>], stamp: Stamp) {
        if self.by_key.is_empty() {
            return;
        }
        for record in RecordReader::new(records) {
            let (record, _) = record.expect("records just written are whole");
            if !matches!(record, Record::ClearShard { .. }) {
                self.note(&record, stamp);
            }
        }
        for prefix in flushed {
            self.touch(prefix, stamp);
        }
    }

    /// A record was applied that no command of this node pushed: a standby follows its primary.
    pub fn note(&mut self, record: &Record<'_>, stamp: Stamp) {
        if self.by_key.is_empty() {
            return;
        }
        match record {
            Record::Put { key, .. } | Record::Delete { key, .. } | Record::DeleteRange { start: key, .. } => {
                self.touch(user_prefix(key), stamp);
            }
            Record::ClearShard { shard } => {
                let cleared: Vec<Box<[u8]>> = self
                    .by_key
                    .iter()
                    .filter(|(_, watchers)| watchers.shard == *shard)
                    .map(|(prefix, _)| prefix.clone())
                    .collect();
                cleared.iter().for_each(|prefix| self.touch(prefix, stamp));
            }
            Record::Checkpoint { .. }
            | Record::TermStart { .. }
            | Record::Policy { .. }
            | Record::Op { .. } => {}
        }
    }

    /// The node took changes back or changed its role: no EXEC may rely on what was watched.
    pub fn change_all(&mut self, stamp: Stamp) {
        for watching in self.sessions.values_mut() {
            watching.changed = watching.changed.max(Some(stamp));
        }
    }
}

/// The part of a store key that all entries of its user key share.
pub(super) fn user_prefix(store_key: &[u8]) -> &[u8] {
    match store_key.windows(2).position(|pair| pair == [0x00, 0x01]) {
        Some(at) => &store_key[..at + 2],
        None => store_key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(user_key: &[u8]) -> Watched {
        Watched { user_key: user_key.into(), was_live: true }
    }

    fn stored(user_key: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        key::meta_key(user_key, &mut out);
        out
    }

    #[test]
    fn a_change_marks_its_watchers_and_no_others() {
        let mut table = WatchTable::default();
        table.watch(1, ShardId(1), live(b"a"));
        table.watch(1, ShardId(2), live(b"b\x00\x01"));
        table.watch(2, ShardId(2), live(b"b\x00\x01"));
        let key = stored(b"b\x00\x01");
        table.note(&Record::Delete { shard: ShardId(2), key: &key }, Stamp(7));
        assert_eq!(table.changed_since_watch(1), Some(Stamp(7)));
        assert_eq!(table.changed_since_watch(2), Some(Stamp(7)));
        table.forget(1);
        table.watch(1, ShardId(1), live(b"a"));
        assert_eq!(table.changed_since_watch(1), None);
        table.note(&Record::ClearShard { shard: ShardId(2) }, Stamp(8));
        assert_eq!(table.changed_since_watch(1), None);
        table.note(&Record::ClearShard { shard: ShardId(1) }, Stamp(8));
        assert_eq!(table.changed_since_watch(1), Some(Stamp(8)));
        table.forget(1);
        table.forget(2);
        assert!(table.is_empty() && table.sessions.is_empty());
    }

    #[test]
    fn elements_belong_to_their_key() {
        for user_key in [&b"plain"[..], b"", b"\x00", b"\x00\x01", b"a\x00\xFFb"] {
            let mut prefix = Vec::new();
            key::prefix(user_key, &mut prefix);
            assert_eq!(user_prefix(&stored(user_key)), prefix);
            let element = [&prefix[..], &[key::TAG_ELEMENT], b"\x00\x01 element"].concat();
            assert_eq!(user_prefix(&element), prefix);
        }
    }
}

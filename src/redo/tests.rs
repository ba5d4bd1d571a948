use super::*;
use crate::base::{ClusterId, Incarnation, NodeId, Prng, Term};
use crate::record::RecordWriter;
use crate::record::key::{TAG_ELEMENT, meta_key, prefix};
use crate::store::{MergeStep, StoreConfig};

const S: ShardId = ShardId(1);

fn store() -> Store {
    Store::create(StoreConfig {
        cluster: ClusterId(1),
        shards: 4,
        cache_bytes: 1 << 20,
        delta_bytes: 1 << 20,
    })
}

fn meta(user: &[u8]) -> Vec<u8> {
    let mut key = Vec::new();
    meta_key(user, &mut key);
    key
}

fn element(user: &[u8], n: u8) -> Vec<u8> {
    let mut key = Vec::new();
    prefix(user, &mut key);
    key.extend_from_slice(&[TAG_ELEMENT, n]);
    key
}

fn term_start() -> Record<'static> {
    Record::TermStart {
        term: Term { number: 2, id: 3 },
        leader: NodeId(1),
        incarnation: Incarnation(4),
        previous_term: Term::NONE,
        previous_end: Lsn(0),
    }
}

/// Carries a frozen shard to its durable superblock. The test's disk forgets everything, which is enough here.
fn make_durable(store: &mut Store, shard: ShardId) {
    while store.merging(shard) {
        match store.merge_step(100) {
            MergeStep::Write(runs) => runs.iter().for_each(|(first, _)| store.page_written(*first)),
            MergeStep::Grow { to_pages } => store.pages_grown(to_pages),
            MergeStep::NeedPages(_) => panic!("all pages are in the cache"),
            _ => {}
        }
        if let Some(token) = store.wants_flush() {
            store.pages_flushed(token);
        }
        if store.superblock(Lsn::MAX).is_some() {
            store.superblock_durable();
        }
    }
}

/// Frames as a primary writes them: a checkpoint record stands in front and names the end of the data before it.
fn frames(contents: &[&[Record<'_>]]) -> Vec<(Lsn, RecordWriter)> {
    let mut frames = Vec::new();
    for (n, records) in contents.iter().enumerate() {
        let mut writer = RecordWriter::new();
        records.iter().for_each(|record| writer.push(*record));
        frames.push((Lsn(8192 + 4096 * n as u64), writer));
    }
    frames
}

fn checkpoint(at: u64) -> Record<'static> {
    Record::Checkpoint { shard: S, merge_version: MERGE_VERSION, at: Lsn(at) }
}

#[test]
fn a_frame_waits_for_a_checkpoint_that_is_not_durable_yet() {
    let (a, b) = (meta(b"a"), meta(b"b"));
    let log = frames(&[
        &[term_start(), Record::Put { shard: S, key: &a, value: b"1", created: true }],
        &[checkpoint(12288), Record::Put { shard: S, key: &a, value: b"2", created: false }],
        &[
            checkpoint(16384),
            Record::Put { shard: S, key: &b, value: b"3", created: true },
            Record::Delete { shard: S, key: &a },
        ],
    ]);
    let mut store = store();
    let redo = Redo::new(&store);
    let mut control = 0;
    let mut apply = |store: &mut Store, n: usize| {
        let mut count = |record: Record<'_>| control += usize::from(record == term_start());
        let mut cursor = FrameCursor::default();
        let (first, writer) = &log[n];
        redo.apply_frame(store, *first, writer.bytes(), &mut cursor, Stamp::COMMITTED, &mut count).unwrap()
    };
    assert_eq!(apply(&mut store, 0), Progress::Done);
    assert_eq!(apply(&mut store, 1), Progress::Done);
    assert_eq!(apply(&mut store, 2), Progress::Stalled(S));
    assert_eq!(apply(&mut store, 2), Progress::Stalled(S), "nothing is skipped by asking again");
    assert_eq!(store.get(S, &a).unwrap().value, Some(&b"2"[..]));
    assert_eq!(store.get(S, &b).unwrap().value, None);
    make_durable(&mut store, S);
    assert_eq!(apply(&mut store, 2), Progress::Done);
    assert_eq!(store.get(S, &b).unwrap().value, Some(&b"3"[..]));
    assert_eq!(store.get(S, &a).unwrap().value, None);
    assert_eq!(store.count(S).0, 1);
    assert_eq!(control, 1);
    make_durable(&mut store, S);
    assert_eq!(store.checkpoint_lsn(S), Lsn(16384), "the position is the one that the record names");
}

#[test]
fn what_a_checkpoint_holds_is_skipped() {
    let (a, b, z) = (meta(b"a"), meta(b"b"), meta(b"z"));
    let log = frames(&[
        &[
            Record::Put { shard: S, key: &a, value: b"1", created: true },
            Record::Put { shard: ShardId(0), key: &z, value: b"1", created: true },
        ],
        &[checkpoint(12288), Record::Put { shard: S, key: &b, value: b"2", created: true }],
    ]);
    let mut store = store();
    let apply = |store: &mut Store| {
        let redo = Redo::new(store);
        for (first, writer) in &log {
            let mut cursor = FrameCursor::default();
            let done = redo
                .apply_frame(store, *first, writer.bytes(), &mut cursor, Stamp::COMMITTED, &mut |_| {})
                .unwrap();
            assert_eq!(done, Progress::Done);
        }
    };
    apply(&mut store);
    make_durable(&mut store, S);
    let root = store.root(S);
    // As after a restart, the frames come again: only what the checkpoint does not hold counts again.
    store.clear_shard(ShardId(0), Stamp::COMMITTED);
    store.delete(S, &b, true, Stamp::COMMITTED);
    apply(&mut store);
    assert_eq!((store.count(S).0, store.count(ShardId(0)).0), (2, 1));
    assert_eq!(store.root(S), root);
    assert!(!store.merging(S), "the checkpoint record itself is not carried out again");
}

#[test]
fn impossible_records_are_errors() {
    let (a, long) = (meta(b"a"), vec![b'x'; STORE_KEY_BYTES_MAX + 1]);
    let huge = vec![0; STORE_VALUE_BYTES_MAX + 1];
    let (low, high, other) = (element(b"c", 1), element(b"c", 9), element(b"d", 9));
    let bad = [
        Record::Put { shard: S, key: &long, value: b"", created: true },
        Record::Put { shard: S, key: &a, value: &huge, created: true },
        Record::Delete { shard: S, key: b"no end mark" },
        Record::Delete { shard: S, key: &a },
        Record::DeleteRange { shard: S, start: &high, end: &low },
        Record::DeleteRange { shard: S, start: &low, end: &other },
        Record::DeleteRange { shard: S, start: &a, end: &high },
        Record::DeleteRange { shard: S, start: b"", end: &high },
    ];
    let mut store = store();
    let redo = Redo::new(&store);
    for record in bad {
        let result = redo.apply_record(&mut store, record, Lsn(5000), Stamp::COMMITTED);
        assert!(matches!(result, Err(RedoError::Corrupt(_))), "{record:?}");
    }
    let strange = Record::Checkpoint { shard: S, merge_version: MERGE_VERSION + 1, at: Lsn(4096) };
    let unknown = RedoError::UnknownMergeVersion { shard: S, version: MERGE_VERSION + 1 };
    assert_eq!(redo.apply_record(&mut store, strange, Lsn(5000), Stamp::COMMITTED), Err(unknown));
    let elsewhere = Record::ClearShard { shard: ShardId(4) };
    let result = redo.apply_record(&mut store, elsewhere, Lsn(5000), Stamp::COMMITTED);
    assert_eq!(result, Err(RedoError::UnknownShard(ShardId(4))));
    let fine = Record::DeleteRange { shard: S, start: &low, end: &high };
    assert_eq!(redo.apply_record(&mut store, fine, Lsn(5000), Stamp::COMMITTED), Ok(Applied::Changed));
}

#[test]
fn noise_never_panics() {
    let mut writer = RecordWriter::new();
    for n in 0..6u8 {
        writer.push(Record::Put { shard: S, key: &meta(&[n]), value: &[n; 30], created: true });
        writer.push(Record::DeleteRange { shard: S, start: &element(&[n], 1), end: &element(&[n], 5) });
        writer.push(Record::Delete { shard: S, key: &meta(&[n]) });
    }
    let mut rng = Prng::new(8);
    for _ in 0..20_000 {
        let mut noisy = writer.bytes().to_vec();
        let at = rng.below(noisy.len() as u64) as usize;
        noisy[at] = rng.next_u64() as u8;
        let mut store = store();
        let redo = Redo::new(&store);
        let mut cursor = FrameCursor::default();
        let _ = redo.apply_frame(&mut store, Lsn(4096), &noisy, &mut cursor, Stamp::COMMITTED, &mut |_| {});
    }
}

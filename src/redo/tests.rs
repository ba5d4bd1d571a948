use super::*;
use crate::base::{ClusterId, CommittedLsn, Digest, Incarnation, NodeId, Prng, SharedSlice, Term, WallMs};
use crate::record::key::{TAG_ELEMENT, meta_key, prefix};
use crate::record::{FrameHeader, FrameKind, RecordWriter, padded};
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
        redo.apply_frame(store, *first, writer.bytes(), &mut cursor, &mut count).unwrap()
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
            let done = redo.apply_frame(store, *first, writer.bytes(), &mut cursor, &mut |_| {}).unwrap();
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
        let result = redo.apply_record(&mut store, record, Lsn(5000));
        assert!(matches!(result, Err(RedoError::Corrupt(_))), "{record:?}");
    }
    let strange = Record::Checkpoint { shard: S, merge_version: MERGE_VERSION + 1, at: Lsn(4096) };
    let unknown = RedoError::UnknownMergeVersion { shard: S, version: MERGE_VERSION + 1 };
    assert_eq!(redo.apply_record(&mut store, strange, Lsn(5000)), Err(unknown));
    let elsewhere = Record::ClearShard { shard: ShardId(4) };
    let result = redo.apply_record(&mut store, elsewhere, Lsn(5000));
    assert_eq!(result, Err(RedoError::UnknownShard(ShardId(4))));
    let fine = Record::DeleteRange { shard: S, start: &low, end: &high };
    assert_eq!(redo.apply_record(&mut store, fine, Lsn(5000)), Ok(Applied::Changed));
}

/// Frames of random records over all shards, as a primary could have written them.
fn random_log(rng: &mut Prng, frames: usize) -> Vec<(FrameHeader, SharedSlice)> {
    let mut counts = [0u64; 4];
    let mut live: Vec<Vec<Vec<u8>>> = vec![Vec::new(); 4];
    let mut first = Lsn(4096);
    let mut log = Vec::new();
    for _ in 0..frames {
        let mut writer = RecordWriter::new();
        if rng.chance(0.1) {
            let shard = ShardId(rng.below(4) as u16);
            writer.push(Record::Checkpoint { shard, merge_version: MERGE_VERSION, at: first });
        }
        for _ in 0..rng.below(12) {
            let n = rng.below(4) as usize;
            let shard = ShardId(n as u16);
            let user = format!("key {}", rng.below(12));
            let key = meta(user.as_bytes());
            let known = live[n].iter().position(|k| *k == key);
            match (rng.below(20), known) {
                (0, _) => {
                    (counts[n], live[n]) = (0, Vec::new());
                    writer.push(Record::ClearShard { shard });
                }
                (1..3, _) => {
                    let (start, end) = (element(user.as_bytes(), 1), element(user.as_bytes(), 9));
                    writer.push(Record::DeleteRange { shard, start: &start, end: &end });
                }
                (3, _) => writer.push(term_start()),
                (4..7, Some(at)) => {
                    live[n].swap_remove(at);
                    counts[n] -= 1;
                    writer.push(Record::Delete { shard, key: &key });
                }
                (7..9, _) => {
                    let key = element(user.as_bytes(), rng.below(12) as u8);
                    writer.push(Record::Put { shard, key: &key, value: b"e", created: false });
                }
                _ => {
                    let value = vec![b'v'; rng.below(40) as usize];
                    writer.push(Record::Put { shard, key: &key, value: &value, created: known.is_none() });
                    if known.is_none() {
                        live[n].push(key);
                        counts[n] += 1;
                    }
                }
            }
        }
        let mut frame = vec![0; HEADER_BYTES];
        frame.extend_from_slice(writer.bytes());
        let header = FrameHeader {
            version: crate::base::format::FORMAT_VERSION,
            kind: FrameKind::Data,
            cluster: ClusterId(1),
            term: Term::NONE,
            segment: 0,
            first,
            length: padded(writer.len()) as u32,
            payload_len: writer.len() as u32,
            records: writer.records(),
            transactions: 0,
            previous: Digest::ZERO,
            durable: Default::default(),
            commit: CommittedLsn::ZERO,
            clock: WallMs(0),
            digest: Digest::ZERO,
        };
        first = header.end();
        log.push((header, SharedSlice::copy_of(&frame)));
    }
    log
}

/// Everything that a reader or a checkpoint could see.
fn picture(store: &mut Store) -> Vec<String> {
    let mut lines = Vec::new();
    for shard in (0..4).map(ShardId) {
        let mut visit = |key: &[u8], value: &[u8]| lines.push(format!("{shard} {key:?} {value:?}"));
        let rest = store.scan(shard, std::ops::Bound::Unbounded, usize::MAX / 32, &mut visit);
        assert_eq!(rest.expect("all pages are in the cache"), None);
        lines.push(format!("{:?} {} {:?}", store.count(shard), store.delta_bytes(shard), store.root(shard)));
    }
    lines.push(format!("{:?}", store.memory().delta_bytes));
    lines
}

#[test]
fn lanes_change_nothing_but_the_time() {
    for seed in 0..60 {
        let mut rng = Prng::new(seed);
        let log = random_log(&mut rng, 60);
        let mut one = store();
        let redo = Redo::new(&one);
        let mut controls = (0, 0);
        for (header, used) in &log {
            let mut cursor = FrameCursor::default();
            let payload = &used[HEADER_BYTES..];
            let mut count = |_: Record<'_>| controls.0 += 1;
            while let Progress::Stalled(shard) =
                redo.apply_frame(&mut one, header.first, payload, &mut cursor, &mut count).unwrap()
            {
                make_durable(&mut one, shard);
            }
        }
        let mut many = store();
        let lanes = 1 + rng.below(6) as usize;
        let (mut at, mut cursor) = (0, FrameCursor::default());
        while at < log.len() {
            let end = (at + 1 + rng.below(20) as usize).min(log.len());
            let mut count = |_: Record<'_>| controls.1 += 1;
            let mut batch = redo.split(&mut many, &log[at..end], cursor, lanes, &mut count).unwrap();
            // In whatever order the lanes run, and on whatever thread.
            std::thread::scope(|scope| {
                batch.jobs.iter_mut().rev().for_each(|job| drop(scope.spawn(|| job.run())));
            });
            redo.join(&mut many, &mut batch).unwrap();
            (at, cursor) = (at + batch.frames, batch.cursor);
            if let Stop::Stalled(shard) = batch.stop {
                make_durable(&mut many, shard);
            }
        }
        assert_eq!(controls.0, controls.1, "seed {seed}");
        for shard in (0..4).map(ShardId) {
            make_durable(&mut one, shard);
            make_durable(&mut many, shard);
        }
        assert_eq!(picture(&mut many), picture(&mut one), "seed {seed}, {lanes} lanes");
    }
}

#[test]
fn a_bad_record_in_a_lane_is_an_error_and_the_tops_come_home() {
    let a = meta(b"a");
    let mut writer = RecordWriter::new();
    writer.push(Record::Put { shard: ShardId(0), key: &a, value: b"1", created: true });
    writer.push(Record::Delete { shard: S, key: &a });
    let mut log = random_log(&mut Prng::new(1), 1);
    let whole = [&[0; HEADER_BYTES], writer.bytes()].concat();
    log[0].1 = SharedSlice::copy_of(&whole);
    let mut store = store();
    let redo = Redo::new(&store);
    let mut batch = redo.split(&mut store, &log, FrameCursor::default(), 2, &mut |_| {}).unwrap();
    batch.jobs.iter_mut().for_each(Job::run);
    let result = redo.join(&mut store, &mut batch);
    assert_eq!(result, Err(RedoError::Corrupt("a key is deleted that cannot exist")));
    assert_eq!(store.count(ShardId(0)).0, 1);
    log[0].1 = SharedSlice::copy_of(&whole[..whole.len() - 1]);
    assert!(redo.split(&mut store, &log, FrameCursor::default(), 2, &mut |_| {}).is_err());
    assert_eq!(store.count(ShardId(0)).0, 1, "a split that fails gives back what it took");
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
        let _ = redo.apply_frame(&mut store, Lsn(4096), &noisy, &mut cursor, &mut |_| {});
    }
}

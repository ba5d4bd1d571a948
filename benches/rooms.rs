//! The rooms of the write path by themselves, without disk or network. `tools/bench-smoke` runs each once.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use baton::base::limits::GROUP_BYTES_EAGER;
use baton::base::{AlignedBuf, ClusterId, CommittedLsn, Digest, Lsn, Prng, ShardId, Stamp, Term, WallMs};
use baton::record::key::meta_key;
use baton::record::{FrameHeader, FrameKind, HEADER_BYTES, Record, RecordWriter, padded};
use baton::redo::{FrameCursor, Redo};
use baton::resp::{Parse, RequestLimits, RequestParser};
use baton::store::{MergeStep, Store, StoreConfig};
use baton::wal::{LogEnd, Recovered, SealMarks, Wal, WalConfig, WalEffect};

const CLUSTER: ClusterId = ClusterId(1);
const TERM: Term = Term { number: 1, id: 1 };
const SHARDS: u16 = 64;
const SEGMENT: u64 = 64 << 20;

fn store_key(number: u64) -> (ShardId, Vec<u8>) {
    let user = format!("key:{number:012}");
    let mut key = Vec::new();
    meta_key(user.as_bytes(), &mut key);
    (ShardId::of_key(user.as_bytes(), SHARDS), key)
}

fn header(payload: usize) -> FrameHeader {
    FrameHeader {
        version: baton::base::format::FORMAT_VERSION,
        kind: FrameKind::Data,
        cluster: CLUSTER,
        term: TERM,
        segment: 0,
        first: Lsn::ZERO,
        length: padded(payload) as u32,
        payload_len: payload as u32,
        records: 1,
        transactions: 1,
        previous: Digest::ZERO,
        durable: Default::default(),
        commit: CommittedLsn::ZERO,
        clock: WallMs(1),
        digest: Digest::ZERO,
    }
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    for bytes in [4 << 10, 64 << 10] {
        let payload = bytes - HEADER_BYTES;
        let mut frame = AlignedBuf::zeroed(bytes);
        Prng::new(1).fill(&mut frame[HEADER_BYTES..]);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("seal and verify {} KiB", bytes >> 10), |b| {
            b.iter(|| {
                let mut header = header(payload);
                header.seal(&mut frame);
                let read = FrameHeader::decode(&frame).expect("just sealed");
                read.verify(&frame[..read.used()]).expect("just sealed");
                black_box(read.digest)
            });
        });
    }
}

/// Carries out everything that the log wants, at once.
fn complete(wal: &mut Wal) {
    while let Some(effect) = wal.next_effect() {
        match effect {
            WalEffect::Write { id, .. } | WalEffect::Flush { id, .. } => wal.completed(id, Ok(())),
            WalEffect::EnsureSegment { segment } => wal.segment_ready(segment),
        }
    }
}

fn group_commit(c: &mut Criterion) {
    let config = WalConfig {
        cluster: CLUSTER,
        segment_bytes: SEGMENT,
        frames_in_flight: 4,
        eager_bytes: GROUP_BYTES_EAGER,
        durable_writes: true,
        recent_bytes: 16 << 20,
    };
    let mut group = c.benchmark_group("group commit");
    for records in [1u64, 16, 256] {
        let mut wal = Wal::resume(config, &Recovered::empty(LogEnd::GENESIS));
        complete(&mut wal);
        let (shard, key) = store_key(7);
        let value = [7u8; 100];
        group.throughput(Throughput::Elements(records));
        group.bench_function(format!("{records} records"), |b| {
            b.iter(|| {
                for _ in 0..records {
                    wal.writer().push(Record::Put { shard, key: &key, value: &value, created: false });
                    wal.writer().end_transaction();
                }
                let commit = CommittedLsn(wal.flushed().lsn());
                let sealed =
                    wal.seal(SealMarks { term: TERM, commit, clock: WallMs(1) }).expect("a whole log");
                complete(&mut wal);
                black_box(wal.stamp_at(sealed.end))
            });
        });
    }
}

fn requests(c: &mut Criterion) {
    let mut input = Vec::new();
    for number in 0..16 {
        input.extend_from_slice(format!("*3\r\n$3\r\nSET\r\n$16\r\nkey:{number:012}\r\n$100\r\n").as_bytes());
        input.extend_from_slice(&[b'x'; 100]);
        input.extend_from_slice(b"\r\n");
    }
    let mut group = c.benchmark_group("requests");
    group.throughput(Throughput::Elements(16));
    group.bench_function("parse 16 SETs", |b| {
        let mut parser = RequestParser::new();
        b.iter(|| {
            let (mut rest, mut bytes) = (&input[..], 0);
            while let Ok(Parse::Request { consumed }) = parser.parse(rest, &RequestLimits::AUTHENTICATED) {
                bytes += parser.args(rest).at(2).len();
                rest = &rest[consumed..];
            }
            assert_eq!(bytes, 1600);
        });
    });
}

fn empty_store() -> Store {
    let mut store = Store::create(StoreConfig {
        cluster: CLUSTER,
        shards: SHARDS,
        cache_bytes: 1 << 30,
        delta_bytes: 4 << 30,
    });
    store.pages_grown(1);
    store
}

/// Turns the shard's delta into its tree; the pages stay in the cache.
fn merge(store: &mut Store, shard: ShardId, at: Lsn) {
    store.freeze(shard, at, Stamp::COMMITTED);
    while store.merging(shard) {
        match store.merge_step(64) {
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

fn stores(c: &mut Criterion) {
    let keys: u64 = if smoke() { 20_000 } else { 1_000_000 };
    let value = [7u8; 100];
    let mut store = empty_store();
    for number in 0..keys {
        let (shard, key) = store_key(number);
        store.put(shard, &key, &value, true, Stamp::COMMITTED);
    }
    let mut prng = Prng::new(1);
    let mut group = c.benchmark_group(format!("store of {keys} keys"));
    group.throughput(Throughput::Elements(1));
    let mut some_key = || store_key(prng.below(keys));
    group.bench_function("put over the delta", |b| {
        b.iter_batched(
            &mut some_key,
            |(shard, key)| store.put(shard, &key, &value, false, Stamp::COMMITTED),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("get from the delta", |b| {
        b.iter_batched(
            &mut some_key,
            |(shard, key)| assert!(store.get(shard, &key).expect("in memory").value.is_some()),
            BatchSize::SmallInput,
        );
    });
    (0..SHARDS).for_each(|shard| merge(&mut store, ShardId(shard), Lsn(4096)));
    group.bench_function("get from the cached tree", |b| {
        b.iter_batched(
            &mut some_key,
            |(shard, key)| assert!(store.get(shard, &key).expect("in the cache").value.is_some()),
            BatchSize::SmallInput,
        );
    });
}

fn redo(c: &mut Criterion) {
    let keys: u64 = if smoke() { 10_000 } else { 100_000 };
    let value = [7u8; 100];
    let mut writer = RecordWriter::new();
    let mut prng = Prng::new(1);
    for _ in 0..256 {
        let (shard, key) = store_key(prng.below(keys));
        writer.push(Record::Put { shard, key: &key, value: &value, created: false });
        writer.end_transaction();
    }
    let mut store = empty_store();
    for number in 0..keys {
        let (shard, key) = store_key(number);
        store.put(shard, &key, &value, true, Stamp::COMMITTED);
    }
    let redo = Redo::new(&store);
    let mut at = Lsn(4096);
    let mut group = c.benchmark_group("redo");
    group.throughput(Throughput::Elements(256));
    group.bench_function("apply 256 records", |b| {
        b.iter(|| {
            let mut cursor = FrameCursor::default();
            redo.apply_frame(&mut store, at, writer.bytes(), &mut cursor, &mut |_| {})
                .expect("records of our own");
            at = Lsn(at.0 + padded(writer.len()) as u64);
        });
    });
}

/// `cargo bench -- --test` only proves that the benchmarks run: small data then.
fn smoke() -> bool {
    std::env::args().any(|arg| arg == "--test")
}

criterion_group!(rooms, frames, group_commit, requests, stores, redo);
criterion_main!(rooms);

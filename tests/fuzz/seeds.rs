//! Valid encodings to begin with, made by our own encoders, so that they follow the formats.

use std::fs;
use std::path::PathBuf;

use baton::base::{CommittedLsn, Digest, FlushedLsn, Incarnation, Lsn, NodeId, ShardId, Term, WallMs};
use baton::record::key::{Meta, meta_key};
use baton::record::{FrameHeader, FrameKind, HEADER_BYTES, Record, RecordWriter, padded};
use baton::replication::LogTip;
use baton::replication::wire::{
    Challenge, FramesHead, GoodbyeReason, HANDSHAKE_VERSION, Hello, Message, Path, Stamped, StreamRequest,
    StreamStart, encode,
};
use baton::resp::write_request;
use baton::role::{
    ControlState, DataStatus, Deed, Generation, History, OpMark, OpRecord, RoleMessage, SyncPolicy,
};
use baton::store::{Store, StoreConfig};
use bytes::Bytes;

use super::targets::{CLUSTER, SEGMENT, SHARDS, TERM, head};

/// What a fuzzer has found, many small inputs in one file: each behind its length, four bytes.
pub const PACK: &str = "found.pack";

fn unpacked(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let (input, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        all.push(input.to_vec());
        bytes = rest;
    }
    all
}

/// What lies in `corpus/NAME`: inputs that once broke something, inputs written by hand, and what coverage has found.
pub fn kept(name: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("the corpus can be listed").path()).collect();
    paths.sort();
    let inputs = paths.iter().map(|path| {
        let bytes = fs::read(path).expect("the corpus can be read");
        if path.ends_with(PACK) { unpacked(&bytes) } else { vec![bytes] }
    });
    inputs.flatten().collect()
}

pub fn seeds(name: &str) -> Vec<Vec<u8>> {
    match name {
        "resp-request" => requests(),
        "resp-reply" => texts(&[
            "+OK\r\n:42\r\n$5\r\nhello\r\n$-1\r\n*-1\r\n-ERR no\r\n",
            "*3\r\n$1\r\na\r\n*2\r\n:1\r\n:2\r\n%1\r\n+k\r\n,1.5\r\n",
            "%2\r\n+server\r\n+baton\r\n+proto\r\n:3\r\n_\r\n#t\r\n(12345678901234567890\r\n",
            "~2\r\n+a\r\n+b\r\n>2\r\n+message\r\n+x\r\n=7\r\ntxt:abc\r\n!5\r\nERR x\r\n|1\r\n+a\r\n+b\r\n:1\r\n",
        ]),
        "wire" => {
            let mut whole = Vec::new();
            let mut all: Vec<Vec<u8>> = messages().iter().map(encoded).collect();
            all.iter().skip(4).for_each(|message| whole.extend_from_slice(message));
            all.push(whole);
            all
        }
        "role-message" => role_messages(),
        "log" => vec![segment(1), segment(7), Vec::new()],
        "records" => vec![payload(1), payload(12), value()],
        "stream" => vec![batch()],
        "control" => vec![control(1), [control(1), control(2)].concat()],
        "superblock" => vec![superblock()],
        "config" => texts(&[
            "cluster = \"a\"\nnode = 1\n",
            "cluster = \"a\"\nnode = 1\nmemory = \"1GiB\"\ncommit_timeout = \"10s\"\nsync = \"ANY 1 (1, 2)\"\ncommit = \"on\"\n\
             peer_secret = \"0123456789abcdef\"\nclient_listen = \"127.0.0.1:7379\"\nlog_retention = \"20GiB\"\nshards = 8\n\
             [[member]]\nnode = 1\npeer = \"127.0.0.1:1\"\nhost = \"a\"\n[[member]]\nnode = 2\npeer = \"127.0.0.1:2\"\n",
            "cluster = \"a\"\nnode = 1\nsync = \"FIRST 1 (*)\"\nstaleness_bound = \"1s\"\nreads = \"local\"\nwal_sync = \"dsync\"\n",
        ]),
        "admin" => texts(&[
            "{\"v\":1,\"op\":\"a\",\"verb\":\"status\"}\n{\"v\":1,\"op\":\"b\",\"verb\":\"ping\"}\r\n",
            "{\"v\":1,\"op\":\"c\",\"verb\":\"failover\",\"dry_run\":true,\"alone\":false}\n",
            "{\"v\":1,\"op\":\"d\",\"verb\":\"stop\",\"mode\":\"fast\"}\n{\"ok\":true,\"result\":{}}\n",
        ]),
        "commands" => super::more_seeds::commands(),
        "recovery" => super::more_seeds::recoveries(),
        "tree" => super::tree::seeds(),
        "handshake" => super::links::seeds(),
        "folder" => super::folder::seeds(),
        "mark" => super::more_seeds::marks(),
        "tail" => vec![segment(1), segment(7), [segment(2), segment(3)].concat(), last_frame()],
        "history" => super::more_seeds::histories(),
        "stored" => super::more_seeds::stored(policy()),
        other => panic!("there are no seeds for {other}"),
    }
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn requests() -> Vec<Vec<u8>> {
    let mut all = texts(&["PING\r\nset a \"b c\\x00\\n\" 'd'\r\n\r\n", "*0\r\n*1\r\n$0\r\n\r\n*-1\r\n"]);
    let mut pipeline = Vec::new();
    for args in [&["SET", "key", "value", "EX", "10"][..], &["MGET", "a", "b", "c"], &["EXEC"]] {
        write_request(args, &mut pipeline);
    }
    all.push(pipeline);
    all
}

fn tip() -> LogTip {
    LogTip { end: Lsn(8192), term: TERM, digest: Digest(5) }
}

fn history() -> History {
    let entries = vec![(Term { number: 1, id: 1 }, Lsn::ZERO), (TERM, Lsn(4096))];
    History::from_entries(entries).expect("they ascend")
}

fn messages() -> Vec<Message> {
    let (node, incarnation) = (NodeId(1), Incarnation(7));
    let nonce = [9; 32];
    let frames = Bytes::from(batch().split_off(1));
    let frames_head = FramesHead { end: Lsn(4096), count: 1, ..head() };
    vec![
        Message::Hello(Hello {
            node,
            incarnation,
            run: 3,
            wants: NodeId(2),
            version_min: 1,
            version_max: 1,
            nonce,
        }),
        Message::Challenge(Challenge {
            node,
            incarnation,
            run: 3,
            version_min: 1,
            version_max: 1,
            version: 1,
            nonce,
        }),
        Message::Proof(nonce),
        Message::Goodbye { reason: GoodbyeReason::from_number(1).expect("it exists"), text: "go".into() },
        Message::StreamRequest(StreamRequest {
            tip: tip(),
            committed: CommittedLsn(Lsn(4096)),
            cascade: false,
            history: history(),
        }),
        Message::StreamStart(StreamStart {
            from: Lsn(8192),
            commit: CommittedLsn(Lsn(4096)),
            end: Lsn(12288),
            path: Path::of(NodeId(1)),
            history: history(),
        }),
        Message::Frames { head: frames_head, bytes: frames.clone() },
        Message::FetchedFrames { head: frames_head, bytes: frames },
        Message::Commit(CommittedLsn(Lsn(4096))),
        Message::LeaseRelease,
        Message::LogFetch { from: Lsn::ZERO, to: Lsn(8192) },
        Message::FetchDone { end: Lsn(8192) },
        Message::Role(role_messages().swap_remove(0)),
        Message::StatusRequest(b"{}".to_vec()),
        Message::Build(Bytes::from_static(b"build")),
    ]
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&Stamped { cluster: CLUSTER, session: TERM, version: HANDSHAKE_VERSION }, message, &mut out);
    out
}

fn role_messages() -> Vec<Vec<u8>> {
    // The first byte chooses the message: every kind, with bytes enough behind it.
    let mut all: Vec<Vec<u8>> = (0..32u8).map(|kind| [vec![kind], vec![0; 300]].concat()).collect();
    let mut dry = Vec::new();
    RoleMessage::Dry { attempt: 7 }.encode(&mut dry);
    all.insert(0, dry);
    all
}

pub fn payload(count: u64) -> Vec<u8> {
    let mut writer = RecordWriter::new();
    for n in 0..count {
        let (shard, mut key) = (ShardId(n as u16 % SHARDS), Vec::new());
        meta_key(format!("key:{n}").as_bytes(), &mut key);
        match n % 7 {
            0 => writer.push(Record::Put { shard, key: &key, value: &value(), created: true }),
            1 => writer.push(Record::Delete { shard, key: &key }),
            2 => writer.push(Record::DeleteRange { shard, start: &key, end: b"\xff" }),
            3 => writer.push(Record::ClearShard { shard }),
            4 => writer.push(Record::TermStart {
                term: TERM,
                leader: NodeId(1),
                incarnation: Incarnation(7),
                previous_term: Term::NONE,
                previous_end: Lsn::ZERO,
            }),
            5 => writer.push(Record::Op { op: &op() }),
            _ => writer.push(Record::Policy { generation: &generation() }),
        }
        writer.end_transaction();
    }
    writer.bytes().to_vec()
}

fn value() -> Vec<u8> {
    let mut out = Vec::new();
    Meta::string(b"a value", Some(WallMs(1_700_000_000_000))).encode(&mut out);
    out
}

fn generation() -> Vec<u8> {
    let mut out = Vec::new();
    policy().encode(&mut out);
    out
}

fn op() -> Vec<u8> {
    let mut out = Vec::new();
    let deed = Deed::Led { leader: NodeId(1), term: TERM };
    OpRecord { mark: OpMark::new("an op", b"a request"), deed }.encode(&mut out);
    out
}

fn policy() -> Generation {
    let sync = SyncPolicy::parse("ANY 1 (1, 2)").expect("it is a rule");
    Generation::seed(&[NodeId(1), NodeId(2)], &sync).expect("it names members")
}

/// Frames that follow each other, the last one behind a hole when there are many.
fn segment(count: u64) -> Vec<u8> {
    let mut out = vec![0; SEGMENT as usize];
    let (mut at, mut previous) = (0usize, Digest::ZERO);
    for n in 0..count {
        let payload = payload(n % 9 + 1);
        let length = padded(payload.len());
        if n + 1 == count && n > 2 {
            at += length;
        }
        let mut header = frame(at, length, payload.len(), previous);
        header.records = (n % 9 + 1) as u32;
        header.transactions = header.records;
        out[at + HEADER_BYTES..at + HEADER_BYTES + payload.len()].copy_from_slice(&payload);
        header.seal(&mut out[at..at + length]);
        previous = header.digest;
        at += length;
    }
    out
}

fn frame(at: usize, length: usize, payload_len: usize, previous: Digest) -> FrameHeader {
    FrameHeader {
        version: baton::base::format::FORMAT_VERSION,
        kind: FrameKind::Data,
        cluster: CLUSTER,
        term: TERM,
        segment: 0,
        first: Lsn(at as u64),
        length: length as u32,
        payload_len: payload_len as u32,
        records: 1,
        transactions: 1,
        previous,
        durable: FlushedLsn(Lsn::ZERO),
        commit: CommittedLsn(Lsn::ZERO),
        clock: WallMs(1),
        digest: Digest::ZERO,
    }
}

/// The last frame that a log could ever have.
fn last_frame() -> Vec<u8> {
    let payload = payload(2);
    let mut bytes = vec![0; padded(payload.len())];
    bytes[HEADER_BYTES..HEADER_BYTES + payload.len()].copy_from_slice(&payload);
    let first = Lsn(0u64.wrapping_sub(bytes.len() as u64));
    let header = frame(0, bytes.len(), payload.len(), Digest::ZERO);
    FrameHeader { first, segment: first.segment(SEGMENT), ..header }.seal(&mut bytes);
    bytes
}

/// The declared length in blocks, and one frame without its padding.
fn batch() -> Vec<u8> {
    let payload = payload(1);
    let mut bytes = vec![0; padded(payload.len())];
    bytes[HEADER_BYTES..HEADER_BYTES + payload.len()].copy_from_slice(&payload);
    let mut header = frame(0, bytes.len(), payload.len(), Digest::ZERO);
    header.seal(&mut bytes);
    bytes.truncate(header.used());
    [vec![1], bytes].concat()
}

fn control(generation: u64) -> Vec<u8> {
    let node = (NodeId(1), Incarnation(7));
    let mut state = ControlState::fresh((CLUSTER, "a"), node, SHARDS, SEGMENT, policy(), DataStatus::Whole);
    state.generation = generation;
    state.history = history();
    state.promised = TERM;
    state.encode()
}

fn superblock() -> Vec<u8> {
    let config = StoreConfig { cluster: CLUSTER, shards: SHARDS, cache_bytes: 1 << 16, delta_bytes: 1 << 16 };
    let images = Store::create(config).initial_superblocks();
    images.iter().flat_map(|image| image.data.to_vec()).collect()
}

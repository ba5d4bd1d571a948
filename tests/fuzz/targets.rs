//! Every decoder that reads what others wrote. A target panics when a promise is broken; what it returns names the way
//! the input took, so that inputs that take a new way are kept and changed further.

use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;

use baton::admin::{LineSplitter, decode_request, decode_response};
use baton::base::limits::SEGMENT_BYTES_MIN;
use baton::base::{AlignedBuf, ClusterId, CommittedLsn, Digest, Lsn, SharedSlice, Term};
use baton::record::key::{Meta, split};
use baton::record::{HEADER_BYTES, RecordReader, RecordWriter};
use baton::replication::wire::{ENVELOPE_BYTES, FramesHead, Kind, Message, encode};
use baton::replication::{Chain, Decoder, Envelope, LogTip};
use baton::resp::{Parse, ReplyLimits, ReplyParser, RequestLimits, RequestParser, decode, write_request};
use baton::role::control::{CONTROL_BYTES, choose};
use baton::role::{ControlState, Generation, History, OpRecord, RoleMessage};
use baton::store::{Store, StoreConfig};
use baton::wal::{FrameScan, Geometry, LogReader, RecoverParams, inspect_segment, recover};
use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::commands::commands;
use super::files::{history, mark, seal_mark, seal_stored, stored, tail};
use super::folder::folder;
use super::links::handshake;
use super::recovery::recovery;
use super::tree::tree;

pub const CLUSTER: ClusterId = ClusterId(0x1234_5678_9abc_def0);
pub const SHARDS: u16 = 4;
pub const SEGMENT: u64 = SEGMENT_BYTES_MIN;

/// One decoder under test.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]) -> u64,
    /// Makes checksums right again, so that mutations reach what lies behind them.
    pub reseal: fn(&mut [u8]),
    /// What it may allocate, all allocations of one run added: so many times the input, and so much in any case.
    pub bytes_each: usize,
    pub bytes_once: usize,
}

pub fn no_seal(_: &mut [u8]) {}

pub const TARGETS: &[Target] = &[
    Target { name: "resp-request", run: resp_request, reseal: no_seal, bytes_each: 96, bytes_once: 64 << 10 },
    Target { name: "resp-reply", run: resp_reply, reseal: no_seal, bytes_each: 128, bytes_once: 64 << 10 },
    Target { name: "wire", run: wire, reseal: seal_envelopes, bytes_each: 96, bytes_once: 64 << 10 },
    Target { name: "role-message", run: role_message, reseal: no_seal, bytes_each: 64, bytes_once: 16 << 10 },
    Target { name: "log", run: log, reseal: seal_frames, bytes_each: 96, bytes_once: 2 << 20 },
    Target { name: "records", run: records, reseal: no_seal, bytes_each: 64, bytes_once: 16 << 10 },
    Target { name: "stream", run: stream, reseal: seal_frames, bytes_each: 32, bytes_once: 64 << 10 },
    Target { name: "control", run: control, reseal: seal_control, bytes_each: 16, bytes_once: 256 << 10 },
    Target {
        name: "superblock",
        run: superblock,
        reseal: seal_superblock,
        bytes_each: 16,
        bytes_once: 256 << 10,
    },
    Target { name: "config", run: config, reseal: no_seal, bytes_each: 4096, bytes_once: 1 << 20 },
    Target { name: "admin", run: admin, reseal: no_seal, bytes_each: 96, bytes_once: 64 << 10 },
    Target { name: "commands", run: commands, reseal: no_seal, bytes_each: 4096, bytes_once: 8 << 20 },
    Target { name: "recovery", run: recovery, reseal: no_seal, bytes_each: 4096, bytes_once: 16 << 20 },
    Target { name: "tree", run: tree, reseal: no_seal, bytes_each: 1 << 20, bytes_once: 64 << 20 },
    Target { name: "handshake", run: handshake, reseal: no_seal, bytes_each: 96, bytes_once: 64 << 10 },
    Target { name: "folder", run: folder, reseal: no_seal, bytes_each: 1 << 20, bytes_once: 256 << 20 },
    Target { name: "mark", run: mark, reseal: seal_mark, bytes_each: 16, bytes_once: 64 << 10 },
    Target { name: "tail", run: tail, reseal: seal_frames, bytes_each: 96, bytes_once: 64 << 10 },
    Target { name: "history", run: history, reseal: no_seal, bytes_each: 256, bytes_once: 64 << 10 },
    Target { name: "stored", run: stored, reseal: seal_stored, bytes_each: 32, bytes_once: 64 << 10 },
];

/// A number for a way through the code.
pub fn way(parts: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

/// The name of an error without the numbers in it.
pub fn word(error: &impl Debug) -> String {
    format!("{error:?}").chars().filter(|c| !c.is_ascii_digit()).take(48).collect()
}

/// How an input is cut into pieces: at once, byte by byte, or in between.
fn pieces(data: &[u8], size: usize) -> impl Iterator<Item = &[u8]> {
    data.chunks(size.max(1))
}

// ---- RESP ----

type Requests = (Vec<Vec<Vec<u8>>>, Option<String>);

/// Requests as a client's connection sees them: bytes arrive in pieces, whole requests are taken off the front.
fn requests(data: &[u8], size: usize, limits: &RequestLimits) -> Requests {
    let mut parser = RequestParser::new();
    let (mut buffer, mut found) = (Vec::new(), Vec::new());
    for piece in pieces(data, size) {
        buffer.extend_from_slice(piece);
        loop {
            match parser.parse(&buffer, limits) {
                Err(error) => return (found, Some(word(&error))),
                Ok(Parse::Incomplete) => break,
                Ok(Parse::Request { consumed }) => {
                    assert!(consumed > 0 && consumed <= buffer.len());
                    found.push(parser.args(&buffer).iter().map(<[u8]>::to_vec).collect());
                    buffer.drain(..consumed);
                    if buffer.is_empty() {
                        break;
                    }
                }
            }
        }
    }
    (found, None)
}

fn resp_request(data: &[u8]) -> u64 {
    let data = &data[..data.len().min(4096)];
    let mut ways = Vec::new();
    for limits in [RequestLimits::AUTHENTICATED, RequestLimits::UNAUTHENTICATED] {
        let whole = requests(data, data.len(), &limits);
        assert_eq!(whole, requests(data, 1, &limits), "byte by byte it reads something else");
        assert_eq!(whole, requests(data, 7, &limits), "in pieces it reads something else");
        ways.push((
            whole.0.len().min(8),
            whole.0.iter().map(Vec::len).max().map(|n| n.min(8)),
            whole.1.clone(),
        ));
        for args in whole.0.iter().filter(|args| !args.is_empty()).take(4) {
            let mut again = Vec::new();
            write_request(args, &mut again);
            let read = requests(&again, again.len(), &RequestLimits::AUTHENTICATED);
            assert_eq!(read, (vec![args.clone()], None), "a written request reads differently");
        }
    }
    way(ways)
}

fn resp_reply(data: &[u8]) -> u64 {
    let data = &data[..data.len().min(4096)];
    let limits = ReplyLimits { bytes_max: 2048, values_max: 200, depth_max: 8 };
    let replies = |size: usize| {
        let mut parser = ReplyParser::new();
        let (mut buffer, mut found) = (Vec::new(), Vec::new());
        for piece in pieces(data, size) {
            buffer.extend_from_slice(piece);
            loop {
                match parser.parse(&buffer, &limits) {
                    Err(error) => return (found, Some(word(&error))),
                    Ok(None) => break,
                    Ok(Some(len)) => {
                        assert!(len > 0 && len <= buffer.len());
                        found.push(buffer.drain(..len).collect::<Vec<u8>>());
                        if buffer.is_empty() {
                            break;
                        }
                    }
                }
            }
        }
        (found, None)
    };
    let whole = replies(data.len());
    assert_eq!(whole, replies(1), "byte by byte it reads something else");
    assert_eq!(whole, replies(7), "in pieces it reads something else");
    let kinds: Vec<String> = whole
        .0
        .iter()
        .take(6)
        .map(|reply| match decode(reply) {
            Ok(value) => format!("{value:?}").chars().filter(|c| c.is_ascii_alphabetic()).take(24).collect(),
            Err(error) => word(&error),
        })
        .collect();
    way((kinds, whole.1))
}

// ---- the peer port ----

fn wire_messages(data: &[u8], size: usize, authenticated: bool) -> (Vec<Envelope>, Option<String>) {
    let mut decoder = Decoder::new();
    if authenticated {
        decoder.authenticated(CLUSTER, 1);
    }
    let mut found = Vec::new();
    for piece in pieces(data, size) {
        if let Err(error) = decoder.push(piece) {
            return (found, Some(format!("{error:?}")));
        }
        loop {
            match decoder.next() {
                Ok(Some(envelope)) => found.push(envelope),
                Ok(None) => break,
                Err(error) => return (found, Some(format!("{error:?}"))),
            }
        }
    }
    assert!(decoder.buffered() <= data.len());
    (found, None)
}

fn wire(data: &[u8]) -> u64 {
    let data = &data[..data.len().min(16 << 10)];
    let mut ways = Vec::new();
    for authenticated in [false, true] {
        let whole = wire_messages(data, data.len(), authenticated);
        assert_eq!(whole, wire_messages(data, 61, authenticated), "in pieces it reads something else");
        if data.len() <= 1024 {
            assert_eq!(whole, wire_messages(data, 1, authenticated), "byte by byte it reads something else");
        }
        for envelope in &whole.0 {
            let mut again = Vec::new();
            encode(&envelope.stamped, &envelope.message, &mut again);
            let read = wire_messages(&again, again.len(), authenticated);
            assert_eq!(read, (vec![envelope.clone()], None), "a written message reads differently");
            if let Message::Role(bytes) = &envelope.message {
                role_message(bytes);
            }
        }
        let kinds: Vec<u8> = whole.0.iter().take(8).map(|envelope| envelope.message.kind() as u8).collect();
        ways.push((kinds, whole.1.map(|error| word(&error))));
    }
    way(ways)
}

pub fn seal_envelopes(data: &mut [u8]) {
    let mut at = 0;
    while data.len() - at >= ENVELOPE_BYTES {
        let body = u32::from_le_bytes(data[at + 8..at + 12].try_into().expect("four bytes")) as usize;
        let end = (at + ENVELOPE_BYTES + body.min(1 << 20)).min(data.len());
        // The frames behind a frames head have digests of their own.
        let is_frames = [Kind::Frames, Kind::FetchedFrames].iter().any(|kind| *kind as u8 == data[at + 6]);
        let covered = if is_frames { end.min(at + ENVELOPE_BYTES + 32) } else { end };
        let mut hasher = Xxh3::new();
        hasher.update(&data[at..at + ENVELOPE_BYTES - 16]);
        hasher.update(&data[at + ENVELOPE_BYTES..covered]);
        let digest = hasher.digest128().to_le_bytes();
        data[at + ENVELOPE_BYTES - 16..at + ENVELOPE_BYTES].copy_from_slice(&digest);
        at = end;
    }
}

pub fn head() -> FramesHead {
    FramesHead { first: Lsn::ZERO, end: Lsn::ZERO, commit: CommittedLsn::ZERO, count: 0, eager_acks: false }
}

fn role_message(data: &[u8]) -> u64 {
    let Some(message) = RoleMessage::decode(data) else { return way(data.first()) };
    let mut again = Vec::new();
    message.encode(&mut again);
    assert_eq!(RoleMessage::decode(&again).as_ref(), Some(&message), "a written message reads differently");
    way((1, word(&message)))
}

// ---- the log ----

/// One segment in memory, as long as the input.
struct Segment<'a>(&'a [u8]);

impl LogReader for Segment<'_> {
    fn segments(&mut self) -> io::Result<Vec<u64>> {
        Ok(vec![0])
    }

    fn read(&mut self, segment: u64, offset: u64, len: usize) -> io::Result<Option<AlignedBuf>> {
        if segment != 0 {
            return Ok(None);
        }
        let rest = &self.0[self.0.len().min(offset as usize)..];
        let mut buf = AlignedBuf::zeroed(len.min(rest.len().next_multiple_of(4096)));
        let len = buf.len().min(rest.len());
        buf[..len].copy_from_slice(&rest[..len]);
        buf.set_len(len);
        Ok(Some(buf))
    }
}

pub const TERM: Term = Term { number: 3, id: 77 };

fn log(data: &[u8]) -> u64 {
    let data = &data[..data.len().min(SEGMENT as usize)];
    let geometry = Geometry::new(CLUSTER, SEGMENT);
    let rows = inspect_segment(&mut Segment(data), geometry, 0, true).map_err(|error| word(&error));
    let term_at = |_: Lsn| Some(TERM);
    let params = RecoverParams {
        cluster: CLUSTER,
        segment_bytes: SEGMENT,
        from: Lsn::ZERO,
        before: None,
        term_at: &term_at,
        known_commit: Lsn::ZERO,
        own_mark: Lsn::ZERO,
        own_term: None,
        repair_mark: Lsn::ZERO,
    };
    let found = recover(&mut Segment(data), &params);
    let mut reader = Segment(data);
    let mut scanned = 0u64;
    for frame in FrameScan::new(&mut reader, geometry, Lsn::ZERO, Lsn(SEGMENT), None)
        .judged_by(&term_at)
        .map_while(Result::ok)
    {
        scanned += 1;
        assert!(frame.records().count() <= frame.payload().len());
    }
    if let Ok(found) = &found {
        assert!(found.end.end.0 <= SEGMENT && found.known_committed.lsn() <= found.end.end);
        assert_eq!(found.frames, scanned, "recovery and a plain scan see different frames");
    }
    let parsed = geometry.parse(Lsn::ZERO, &SharedSlice::copy_of(data));
    let parsed = parsed.map(|frames| frames.frames.len()).map_err(|error| word(&error));
    way((
        rows.map(|rows| rows.len().min(20)),
        found.map(|found| word(&found.verdict)).map_err(|error| word(&error)),
        parsed,
    ))
}

/// Frames: each where its first LSN or the one before says.
pub fn seal_frames(data: &mut [u8]) {
    let mut at = 0;
    while data.len() - at >= HEADER_BYTES {
        let length = u32::from_le_bytes(data[at + 64..at + 68].try_into().expect("four bytes")) as usize;
        let payload = u32::from_le_bytes(data[at + 68..at + 72].try_into().expect("four bytes")) as usize;
        let used = HEADER_BYTES.saturating_add(payload);
        if at + used > data.len() {
            return;
        }
        let mut hasher = Xxh3::new();
        hasher.update(&data[at..at + HEADER_BYTES - 16]);
        hasher.update(&data[at + HEADER_BYTES..at + used]);
        let digest = hasher.digest128().to_le_bytes();
        data[at + HEADER_BYTES - 16..at + HEADER_BYTES].copy_from_slice(&digest);
        let step = length.max(used).max(HEADER_BYTES);
        if at + step > data.len() {
            return;
        }
        at += step;
        // The next frame carries this one's digest.
        if data.len() - at >= HEADER_BYTES {
            data[at + 80..at + 96].copy_from_slice(&digest);
        }
    }
}

fn records(data: &[u8]) -> u64 {
    let mut reader = RecordReader::new(data);
    let mut writer = RecordWriter::new();
    let (mut read, mut kinds) = (Vec::new(), Vec::new());
    let end = loop {
        match reader.next() {
            Some(Ok((record, last))) => {
                writer.push(record);
                if last {
                    writer.end_transaction();
                }
                kinds.push(word(&record).chars().take(6).collect::<String>());
                read.push((record, last));
            }
            Some(Err(error)) => break word(&error),
            None => break String::new(),
        }
    };
    let again: Vec<_> = RecordReader::new(writer.bytes()).map_while(Result::ok).collect();
    assert_eq!(again, read, "written records read differently");
    let key = split(data).map_err(|error| word(&error)).map(|(key, kind)| (key.len().min(9), kind));
    let meta = Meta::decode(data).map_err(|error| word(&error)).map(|meta| {
        let mut out = Vec::new();
        meta.encode(&mut out);
        assert_eq!(out, data, "a written value reads differently");
    });
    kinds.truncate(5);
    way((kinds, end, key, meta))
}

/// What a standby's receiver does with a batch of frames.
fn stream(data: &[u8]) -> u64 {
    let history = History::from_entries(vec![(TERM, Lsn::ZERO)]).expect("one entry is in order");
    let mut chain = Chain::new(CLUSTER, history, LogTip::default());
    let before = chain.tip();
    let declared = u64::from(data.first().copied().unwrap_or(0)) * 4096;
    let rest = data.get(1..).unwrap_or(&[]);
    let head = FramesHead { end: Lsn(declared), count: 1, ..head() };
    match chain.accept(&head, Bytes::copy_from_slice(rest)) {
        Ok(frames) => {
            assert_eq!(frames.len(), 1);
            way((frames.len(), frames[0].header.payload_len.min(3)))
        }
        Err(error) => {
            assert_eq!(chain.tip(), before, "a refused batch moved the chain");
            way(word(&error))
        }
    }
}

// ---- files ----

fn control(data: &[u8]) -> u64 {
    let decoded = ControlState::decode(data);
    let both = choose(Some(data), data.get(CONTROL_BYTES..), Some(CLUSTER), None);
    if let Ok(state) = &decoded {
        assert_eq!(
            ControlState::decode(&state.encode()).as_ref(),
            Ok(state),
            "a written image reads differently"
        );
    }
    if let Some(generation) = Generation::decode(data) {
        let mut out = Vec::new();
        generation.encode(&mut out);
        assert_eq!(Generation::decode(&out), Some(generation));
    }
    if let Some(op) = OpRecord::decode(data) {
        let mut out = Vec::new();
        op.encode(&mut out);
        assert_eq!(OpRecord::decode(&out), Some(op));
    }
    let found = decoded.map(|state| {
        let shape = (state.history.entries().len(), !state.pending.is_empty(), state.cluster_name.len());
        (shape, state.policy.members().count(), state.shards.min(9), word(&state.status))
    });
    way((found.map_err(|error| word(&error)), both.is_ok()))
}

pub fn seal_control(data: &mut [u8]) {
    for image in data.chunks_exact_mut(CONTROL_BYTES) {
        let digest = Digest::of(&image[..CONTROL_BYTES - 16]);
        image[CONTROL_BYTES - 16..].copy_from_slice(&digest.0.to_le_bytes());
    }
}

fn superblock(data: &[u8]) -> u64 {
    let config = StoreConfig { cluster: CLUSTER, shards: SHARDS, cache_bytes: 1 << 16, delta_bytes: 1 << 16 };
    let (a, b) = data.split_at(data.len() / 2);
    match Store::open(config, Some(a), Some(b)) {
        Ok(store) => way(store.memory().delta_bytes),
        Err(error) => way(word(&error)),
    }
}

pub fn seal_superblock(data: &mut [u8]) {
    let half = data.len() / 2;
    let (a, b) = data.split_at_mut(half);
    for slot in [a, b] {
        if slot.len() < 80 {
            continue;
        }
        let used = u32::from_le_bytes(slot[12..16].try_into().expect("four bytes")) as usize;
        if (80..=slot.len()).contains(&used) {
            let digest = Digest::of(&slot[..used - 16]);
            slot[used - 16..used].copy_from_slice(&digest.0.to_le_bytes());
        }
    }
}

fn config(data: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(&data[..data.len().min(2048)]);
    match baton::config::parse(&text, Path::new("/data")) {
        Ok(config) => {
            assert!(config.show().is_object() && !config.describe().is_empty());
            way((1, config.members.len()))
        }
        Err(mistakes) => {
            assert!(!mistakes.0.is_empty(), "refused without a reason");
            let shown = mistakes.to_string();
            assert!(!shown.is_empty());
            way(word(&shown))
        }
    }
}

fn admin(data: &[u8]) -> u64 {
    let data = &data[..data.len().min(4096)];
    let lines = |size: usize| {
        let mut splitter = LineSplitter::new();
        let mut found = Vec::new();
        for piece in pieces(data, size) {
            match splitter.push(piece) {
                Ok(lines) => found.extend(lines),
                Err(_) => return (found, true),
            }
        }
        (found, false)
    };
    let whole = lines(data.len());
    assert_eq!(whole, lines(1), "byte by byte it reads something else");
    let mut ways = Vec::new();
    for line in whole.0.iter().take(8) {
        let request = decode_request(line).map(|request| {
            let again = baton::admin::encode_request(&request);
            assert!(decode_request(again.trim_ascii_end()).is_ok(), "a written request is refused");
            request.verb.name()
        });
        ways.push((request.map_err(|response| word(&response)), decode_response(line).is_ok()));
    }
    way((ways, whole.1))
}

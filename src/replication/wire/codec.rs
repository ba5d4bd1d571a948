//! Byte layouts: little-endian, no padding. `docs/format.md` shows the same tables.
//!
//! Envelope, 72 bytes, in front of every body:
//!
//! ```text
//!  at size field
//!   0   4  magic "BTNP"
//!   4   2  protocol version of the link (1 in handshake messages, for ever)
//!   6   1  kind
//!   7   1  flags, zero
//!   8   4  body length; each kind has its own limit
//!  12   4  reserved, zero
//!  16  16  cluster id (zero: the sender belongs to none yet; handshake only)
//!  32   8  session term, number
//!  40  16  session term, id
//!  56  16  xxh3-128 over bytes 0..56 and the body (of Frames and FetchedFrames: the first 32 bytes of the body)
//! ```
//!
//! Bodies by kind; sizes in bytes, in the order of the fields:
//!
//! ```text
//!  1 Hello           node 2, wanted node 2, version min 2, version max 2, incarnation 16, run 16, nonce 32
//!  2 Challenge       node 2, chosen version 2, version min 2, version max 2, incarnation 16, run 16, nonce 32
//!  3 Proof           HMAC-SHA256 32
//!  4 Welcome         HMAC-SHA256 32
//!  5 Goodbye         reason 2, text length 2, text
//! 16 StreamRequest   end 8, last term number 8, last term id 16, last digest 16, committed 8, cascade 1, zero 1,
//!                    history entries 2, history
//! 17 StreamStart     from 8, commit 8, end 8, path length 2, history entries 2, path, history
//! 18 StreamRefuse    value 8, id 16, reason 2, text length 2, text
//! 19 Frames          first 8, end 8, commit 8, frames 4, eager acks 4 (0 or 1); frames without padding, back to back
//! 20 Ack             written 8, flushed 8, applied 8, matched 8, committed 8
//! 21 Commit          LSN 8
//! 32 Heartbeat       sequence 8, sent 8, commit 8, end 8, clock 8, wants grant 8 (0 or 1), tip 8, path length 2,
//!                    path
//! 33 HeartbeatAck    sequence 8, sent 8, granted 8 (0 or 1)
//! 34 LeaseRelease    -
//! 48 LogFetch        from 8, to 8
//! 49 FetchedFrames   as Frames
//! 50 FetchDone       end 8
//! 51 FetchRefuse     as StreamRefuse
//! 64 CheckpointRoots per root: LSN 8, digest 16, shard 2
//! 65 to 67           shards and pages: drawn in `pages`
//! 80 Role            the role room's bytes
//! 81 Build           the rebuild room's bytes
//! 96 StatusRequest   JSON
//! 97 StatusReply     JSON
//!
//! path: node 2 each, from the leader down to the sender, nobody twice
//! history: per entry term number 8, term id 16, start LSN 8; both terms and starts strictly ascend
//! refusal reasons (value, id): 1 not upstream (leader or 0), 2 diverged (fork), 3 WAL removed (oldest),
//!   4 chain mismatch (position), 5 behind (end), 6 other term (number, id), 7 too many (0), 8 unhealthy (0),
//!   9 loop (0), 10 left for another upstream (0)
//! ```
//!
//! Positions that must be frame borders are multiples of 4096. Whatever is accepted has one encoding only.

use bytes::Bytes;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{
    Ack, Challenge, ENVELOPE_BYTES, FramesHead, GoodbyeReason, Heartbeat, HeartbeatAck, Hello, Kind, LogTip,
    Message, Path, Refusal, RefuseReason, RootEvidence, Stamped, StreamRequest, StreamStart, TEXT_BYTES_MAX,
    WireError, pages,
};
use crate::base::limits::{BLOCK_BYTES, HISTORY_MAX, SHARDS_MAX};
use crate::base::{
    AppliedLsn, ClusterId, CommittedLsn, Digest, FlushedLsn, Incarnation, Lsn, Mono, NodeId, ShardId, Term,
    WallMs,
};
use crate::role::History;

pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"BTNP");
/// The checksum covers the envelope in front of it and the covered part of the body.
pub(crate) const DIGEST_AT: usize = ENVELOPE_BYTES - 16;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawEnvelope {
    pub magic: U32,
    pub version: U16,
    pub kind: u8,
    pub flags: u8,
    pub body_len: U32,
    pub reserved: U32,
    pub cluster: U128,
    pub term_number: U64,
    pub term_id: U128,
    pub digest: U128,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHello {
    node: U16,
    wants: U16,
    version_min: U16,
    version_max: U16,
    incarnation: U128,
    run: U128,
    nonce: [u8; 32],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawChallenge {
    node: U16,
    version: U16,
    version_min: U16,
    version_max: U16,
    incarnation: U128,
    run: U128,
    nonce: [u8; 32],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawText {
    reason: U16,
    len: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawStreamRequest {
    end: U64,
    last_term_number: U64,
    last_term_id: U128,
    last_digest: U128,
    committed: U64,
    cascade: u8,
    reserved: u8,
    history: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawStreamStart {
    from: U64,
    commit: U64,
    end: U64,
    path: U16,
    history: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHistoryEntry {
    term_number: U64,
    term_id: U128,
    start: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRefusal {
    /// Position or term number, by reason.
    value: U64,
    /// Term id, by reason.
    id: U128,
    code: U16,
    text_len: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawFramesHead {
    first: U64,
    end: U64,
    commit: U64,
    count: U32,
    eager_acks: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawAck {
    written: U64,
    flushed: U64,
    applied: U64,
    matched: U64,
    committed: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeartbeat {
    seq: U64,
    sent: U64,
    commit: U64,
    end: U64,
    clock: U64,
    wants_grant: U64,
    tip: U64,
    path: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeartbeatAck {
    seq: U64,
    sent: U64,
    granted: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRoot {
    lsn: U64,
    digest: U128,
    shard: U16,
}

/// Raw bytes of one history entry.
pub(crate) const HISTORY_ENTRY_BYTES: usize = size_of::<RawHistoryEntry>();
/// What stands in front of raw frames; covered by the envelope's checksum.
pub(crate) const FRAMES_HEAD_BYTES: usize = size_of::<RawFramesHead>();
/// Raw bytes of one root.
pub(crate) const ROOT_BYTES: usize = size_of::<RawRoot>();

const _: () = assert!(size_of::<RawEnvelope>() == ENVELOPE_BYTES);
const _: () = assert!(size_of::<RawHello>() == 72 && size_of::<RawChallenge>() == 72);
const _: () = assert!(size_of::<RawStreamRequest>() == 60 && size_of::<RawStreamStart>() == 28);
const _: () = assert!(HISTORY_ENTRY_BYTES == 32 && FRAMES_HEAD_BYTES == 32 && ROOT_BYTES == 26);
const _: () = assert!(size_of::<RawAck>() == 40 && size_of::<RawHeartbeat>() == 58);

/// Nearly every body is smaller.
const BODY_BYTES_USUAL: usize = 128;

/// Appends the whole message to `out`. Our own messages always respect their limits: breaking one is a bug here.
pub fn encode(stamped: &Stamped, message: &Message, out: &mut Vec<u8>) {
    let at = open(out);
    encode_body(message, out);
    seal(stamped, message.kind(), 0, out, at);
}

/// Appends the envelope and head of a message whose raw frames, `frame_bytes` in all, the caller sends behind it.
/// `kind` is [`Kind::Frames`] or [`Kind::FetchedFrames`].
pub fn encode_frames_head(
    stamped: &Stamped,
    kind: Kind,
    head: &FramesHead,
    frame_bytes: usize,
    out: &mut Vec<u8>,
) {
    assert!(matches!(kind, Kind::Frames | Kind::FetchedFrames));
    let at = open(out);
    push_frames_head(head, out);
    seal(stamped, kind, frame_bytes, out, at);
}

fn open(out: &mut Vec<u8>) -> usize {
    let at = out.len();
    // Most bodies are small: one allocation for all of it.
    out.reserve(ENVELOPE_BYTES + BODY_BYTES_USUAL);
    out.resize(at + ENVELOPE_BYTES, 0);
    at
}

fn seal(stamped: &Stamped, kind: Kind, follows: usize, out: &mut [u8], at: usize) {
    let body_len = out.len() - at - ENVELOPE_BYTES + follows;
    assert!(body_len <= kind.body_bytes_max(), "{kind:?} of {body_len} bytes");
    let raw = RawEnvelope {
        magic: U32::new(MAGIC),
        version: U16::new(stamped.version),
        kind: kind as u8,
        flags: 0,
        body_len: U32::new(body_len as u32),
        reserved: U32::ZERO,
        cluster: U128::new(stamped.cluster.0),
        term_number: U64::new(stamped.session.number),
        term_id: U128::new(stamped.session.id),
        digest: U128::ZERO,
    };
    out[at..at + ENVELOPE_BYTES].copy_from_slice(raw.as_bytes());
    let (envelope, body) = out[at..].split_at(ENVELOPE_BYTES);
    let digest = digest(envelope, kind.covered(body));
    out[at + DIGEST_AT..at + ENVELOPE_BYTES].copy_from_slice(&digest.0.to_le_bytes());
}

/// Checksum over the envelope in front of its digest field, and the covered bytes.
pub(crate) fn digest(envelope: &[u8], covered: &[u8]) -> Digest {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.update(&envelope[..DIGEST_AT]);
    hasher.update(covered);
    Digest(hasher.digest128())
}

fn push_frames_head(head: &FramesHead, out: &mut Vec<u8>) {
    let raw = RawFramesHead {
        first: U64::new(head.first.0),
        end: U64::new(head.end.0),
        commit: U64::new(head.commit.lsn().0),
        count: U32::new(head.count),
        eager_acks: U32::new(u32::from(head.eager_acks)),
    };
    out.extend_from_slice(raw.as_bytes());
}

fn push_history(history: &History, out: &mut Vec<u8>) {
    for (term, start) in history.entries() {
        let raw = RawHistoryEntry {
            term_number: U64::new(term.number),
            term_id: U128::new(term.id),
            start: U64::new(start.0),
        };
        out.extend_from_slice(raw.as_bytes());
    }
}

fn push_path(path: &Path, out: &mut Vec<u8>) {
    path.nodes().iter().for_each(|node| out.extend_from_slice(U16::new(node.0).as_bytes()));
}

/// The longest prefix of `text` that fits and ends at a character.
pub(crate) fn clipped(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn push_text(reason: u16, text: &str, out: &mut Vec<u8>) {
    let text = clipped(text);
    out.extend_from_slice(RawText { reason: U16::new(reason), len: U16::new(text.len() as u16) }.as_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn push_refusal(refusal: &Refusal, out: &mut Vec<u8>) {
    let (code, value, id) = match refusal.reason {
        RefuseReason::NotUpstream { leader } => (1, leader.map_or(0, |node| u64::from(node.0)), 0),
        RefuseReason::Diverged { fork } => (2, fork.0, 0),
        RefuseReason::WalRemoved { oldest } => (3, oldest.0, 0),
        RefuseReason::ChainMismatch { at } => (4, at.0, 0),
        RefuseReason::Behind { end } => (5, end.0, 0),
        RefuseReason::OtherTerm { term } => (6, term.number, term.id),
        RefuseReason::TooMany => (7, 0, 0),
        RefuseReason::Unhealthy => (8, 0, 0),
        RefuseReason::Loop => (9, 0, 0),
        RefuseReason::Left => (10, 0, 0),
    };
    let text = clipped(&refusal.text);
    let raw = RawRefusal {
        value: U64::new(value),
        id: U128::new(id),
        code: U16::new(code),
        text_len: U16::new(text.len() as u16),
    };
    out.extend_from_slice(raw.as_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn encode_body(message: &Message, out: &mut Vec<u8>) {
    match message {
        Message::Hello(hello) => push_hello(hello, out),
        Message::Challenge(challenge) => push_challenge(challenge, out),
        Message::Proof(mac) | Message::Welcome(mac) => out.extend_from_slice(mac),
        Message::Goodbye { reason, text } => push_text(*reason as u16, text, out),
        Message::StreamRequest(request) => push_stream_request(request, out),
        Message::StreamStart(start) => {
            let raw = RawStreamStart {
                from: U64::new(start.from.0),
                commit: U64::new(start.commit.lsn().0),
                end: U64::new(start.end.0),
                path: U16::new(start.path.nodes().len() as u16),
                history: U16::new(start.history.entries().len() as u16),
            };
            out.extend_from_slice(raw.as_bytes());
            push_path(&start.path, out);
            push_history(&start.history, out);
        }
        Message::StreamRefuse(refusal) | Message::FetchRefuse(refusal) => push_refusal(refusal, out),
        Message::Frames { head, bytes } | Message::FetchedFrames { head, bytes } => {
            push_frames_head(head, out);
            out.extend_from_slice(bytes);
        }
        Message::Ack(ack) => push_ack(ack, out),
        Message::Commit(lsn) => out.extend_from_slice(U64::new(lsn.lsn().0).as_bytes()),
        Message::Heartbeat(beat) => push_heartbeat(beat, out),
        Message::HeartbeatAck(ack) => push_heartbeat_ack(ack, out),
        Message::LeaseRelease => {}
        Message::LogFetch { from, to } => {
            out.extend_from_slice(U64::new(from.0).as_bytes());
            out.extend_from_slice(U64::new(to.0).as_bytes());
        }
        Message::FetchDone { end } => out.extend_from_slice(U64::new(end.0).as_bytes()),
        Message::CheckpointRoots(roots) => push_roots(roots, out),
        Message::RootVerdict(verdict) => pages::push_verdict(verdict, out),
        Message::PageFetch(fetch) => pages::push_fetch(fetch, out),
        Message::PageReply(reply) => pages::push_reply(reply, out),
        Message::Role(bytes) | Message::StatusRequest(bytes) | Message::StatusReply(bytes) => {
            out.extend_from_slice(bytes);
        }
        Message::Build(bytes) => out.extend_from_slice(bytes),
    }
}

fn push_hello(hello: &Hello, out: &mut Vec<u8>) {
    let raw = RawHello {
        node: U16::new(hello.node.0),
        wants: U16::new(hello.wants.0),
        version_min: U16::new(hello.version_min),
        version_max: U16::new(hello.version_max),
        incarnation: U128::new(hello.incarnation.0),
        run: U128::new(hello.run),
        nonce: hello.nonce,
    };
    out.extend_from_slice(raw.as_bytes());
}

fn push_challenge(challenge: &Challenge, out: &mut Vec<u8>) {
    let raw = RawChallenge {
        node: U16::new(challenge.node.0),
        version: U16::new(challenge.version),
        version_min: U16::new(challenge.version_min),
        version_max: U16::new(challenge.version_max),
        incarnation: U128::new(challenge.incarnation.0),
        run: U128::new(challenge.run),
        nonce: challenge.nonce,
    };
    out.extend_from_slice(raw.as_bytes());
}

fn push_stream_request(request: &StreamRequest, out: &mut Vec<u8>) {
    let raw = RawStreamRequest {
        end: U64::new(request.tip.end.0),
        last_term_number: U64::new(request.tip.term.number),
        last_term_id: U128::new(request.tip.term.id),
        last_digest: U128::new(request.tip.digest.0),
        committed: U64::new(request.committed.lsn().0),
        cascade: u8::from(request.cascade),
        reserved: 0,
        history: U16::new(request.history.entries().len() as u16),
    };
    out.extend_from_slice(raw.as_bytes());
    push_history(&request.history, out);
}

fn push_ack(ack: &Ack, out: &mut Vec<u8>) {
    let raw = RawAck {
        written: U64::new(ack.written.0),
        flushed: U64::new(ack.flushed.lsn().0),
        applied: U64::new(ack.applied.lsn().0),
        matched: U64::new(ack.matched.0),
        committed: U64::new(ack.committed.lsn().0),
    };
    out.extend_from_slice(raw.as_bytes());
}

fn push_heartbeat(beat: &Heartbeat, out: &mut Vec<u8>) {
    let raw = RawHeartbeat {
        seq: U64::new(beat.seq),
        sent: U64::new(beat.sent.0),
        commit: U64::new(beat.commit.lsn().0),
        end: U64::new(beat.end.0),
        clock: U64::new(beat.clock.0),
        wants_grant: U64::new(u64::from(beat.wants_grant)),
        tip: U64::new(beat.tip.0),
        path: U16::new(beat.path.nodes().len() as u16),
    };
    out.extend_from_slice(raw.as_bytes());
    push_path(&beat.path, out);
}

fn push_heartbeat_ack(ack: &HeartbeatAck, out: &mut Vec<u8>) {
    let raw = RawHeartbeatAck {
        seq: U64::new(ack.seq),
        sent: U64::new(ack.sent.0),
        granted: U64::new(u64::from(ack.granted)),
    };
    out.extend_from_slice(raw.as_bytes());
}

fn push_roots(roots: &[RootEvidence], out: &mut Vec<u8>) {
    assert!(roots.len() <= usize::from(SHARDS_MAX));
    for root in roots {
        let raw = RawRoot {
            lsn: U64::new(root.lsn.0),
            digest: U128::new(root.digest.0),
            shard: U16::new(root.shard.0),
        };
        out.extend_from_slice(raw.as_bytes());
    }
}

type Fault = &'static str;

/// Decodes a body whose envelope was already checked. The raw frames stay inside `body`'s memory.
pub(crate) fn decode_body(kind: Kind, body: Bytes) -> Result<Message, WireError> {
    parse(kind, body).map_err(|what| WireError::Malformed { kind, what })
}

fn parse(kind: Kind, body: Bytes) -> Result<Message, Fault> {
    match kind {
        Kind::Hello => whole(&body).and_then(hello).map(Message::Hello),
        Kind::Challenge => whole(&body).and_then(challenge).map(Message::Challenge),
        Kind::Proof => whole(&body).map(Message::Proof),
        Kind::Welcome => whole(&body).map(Message::Welcome),
        Kind::Goodbye => goodbye(&body),
        Kind::StreamRequest => stream_request(&body).map(Message::StreamRequest),
        Kind::StreamStart => stream_start(&body).map(Message::StreamStart),
        Kind::StreamRefuse => refusal(&body).map(Message::StreamRefuse),
        Kind::Frames => frames(body).map(|(head, bytes)| Message::Frames { head, bytes }),
        Kind::Ack => whole(&body).map(ack),
        Kind::Commit => whole::<U64>(&body).map(|lsn| Message::Commit(CommittedLsn(Lsn(lsn.get())))),
        Kind::Heartbeat => heartbeat(&body).map(Message::Heartbeat),
        Kind::HeartbeatAck => whole(&body).and_then(heartbeat_ack).map(Message::HeartbeatAck),
        Kind::LeaseRelease if body.is_empty() => Ok(Message::LeaseRelease),
        Kind::LeaseRelease => Err("no body expected"),
        Kind::LogFetch => {
            let [from, to] = whole::<[U64; 2]>(&body)?;
            Ok(Message::LogFetch { from: border(from)?, to: Lsn(to.get()) })
        }
        Kind::FetchedFrames => frames(body).map(|(head, bytes)| Message::FetchedFrames { head, bytes }),
        Kind::FetchDone => whole::<U64>(&body).map(|end| Message::FetchDone { end: Lsn(end.get()) }),
        Kind::FetchRefuse => refusal(&body).map(Message::FetchRefuse),
        Kind::CheckpointRoots => roots(&body).map(Message::CheckpointRoots),
        Kind::RootVerdict => pages::verdict(&body).map(Message::RootVerdict),
        Kind::PageFetch => pages::fetch(&body).map(Message::PageFetch),
        Kind::PageReply => pages::reply(body).map(Message::PageReply),
        Kind::Role => Ok(Message::Role(body.to_vec())),
        Kind::Build => Ok(Message::Build(body)),
        Kind::StatusRequest => Ok(Message::StatusRequest(body.to_vec())),
        Kind::StatusReply => Ok(Message::StatusReply(body.to_vec())),
    }
}

/// The body is exactly one `T`.
fn whole<T: FromBytes + Unaligned>(body: &[u8]) -> Result<T, Fault> {
    T::read_from_bytes(body).map_err(|_| "body of a wrong size")
}

/// The body begins with a `T`.
fn prefix<T: FromBytes + Unaligned>(body: &[u8]) -> Result<(T, &[u8]), Fault> {
    T::read_from_prefix(body).map_err(|_| "body is cut off")
}

fn border(lsn: U64) -> Result<Lsn, Fault> {
    if lsn.get().is_multiple_of(BLOCK_BYTES as u64) {
        Ok(Lsn(lsn.get()))
    } else {
        Err("a position that is no frame border")
    }
}

fn flag(byte: u64) -> Result<bool, Fault> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err("a flag that is neither 0 nor 1"),
    }
}

fn text(bytes: &[u8], len: U16) -> Result<String, Fault> {
    if bytes.len() != usize::from(len.get()) || bytes.len() > TEXT_BYTES_MAX {
        return Err("text of a wrong length");
    }
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "text is not UTF-8")
}

fn hello(raw: RawHello) -> Result<Hello, Fault> {
    if raw.version_min.get() > raw.version_max.get() {
        return Err("versions in a wrong order");
    }
    Ok(Hello {
        node: NodeId(raw.node.get()),
        incarnation: Incarnation(raw.incarnation.get()),
        run: raw.run.get(),
        wants: NodeId(raw.wants.get()),
        version_min: raw.version_min.get(),
        version_max: raw.version_max.get(),
        nonce: raw.nonce,
    })
}

fn challenge(raw: RawChallenge) -> Result<Challenge, Fault> {
    if raw.version_min.get() > raw.version_max.get() {
        return Err("versions in a wrong order");
    }
    Ok(Challenge {
        node: NodeId(raw.node.get()),
        incarnation: Incarnation(raw.incarnation.get()),
        run: raw.run.get(),
        version_min: raw.version_min.get(),
        version_max: raw.version_max.get(),
        version: raw.version.get(),
        nonce: raw.nonce,
    })
}

fn goodbye(body: &[u8]) -> Result<Message, Fault> {
    let (raw, rest) = prefix::<RawText>(body)?;
    let reason = GoodbyeReason::from_number(raw.reason.get()).ok_or("unknown reason")?;
    Ok(Message::Goodbye { reason, text: text(rest, raw.len)? })
}

fn history(bytes: &[u8], count: U16) -> Result<History, Fault> {
    let count = usize::from(count.get());
    if count > HISTORY_MAX || bytes.len() != count * HISTORY_ENTRY_BYTES {
        return Err("history of a wrong length");
    }
    let entries = bytes.chunks_exact(HISTORY_ENTRY_BYTES).map(|chunk| {
        let raw = whole::<RawHistoryEntry>(chunk)?;
        Ok((Term { number: raw.term_number.get(), id: raw.term_id.get() }, border(raw.start)?))
    });
    History::from_entries(entries.collect::<Result<_, Fault>>()?).ok_or("history that does not ascend")
}

/// The path at the start of `bytes`, and what follows it.
fn path(bytes: &[u8], count: U16) -> Result<(Path, &[u8]), Fault> {
    let nodes = usize::from(count.get()) * size_of::<U16>();
    let (path, rest) = bytes.split_at_checked(nodes).ok_or("body is cut off")?;
    let nodes = path.chunks_exact(2).map(|id| NodeId(u16::from_le_bytes([id[0], id[1]])));
    Ok((Path::from_nodes(nodes).ok_or("a path with a loop")?, rest))
}

fn stream_request(body: &[u8]) -> Result<StreamRequest, Fault> {
    let (raw, rest) = prefix::<RawStreamRequest>(body)?;
    if raw.reserved != 0 {
        return Err("reserved byte is set");
    }
    Ok(StreamRequest {
        tip: LogTip {
            end: border(raw.end)?,
            term: Term { number: raw.last_term_number.get(), id: raw.last_term_id.get() },
            digest: Digest(raw.last_digest.get()),
        },
        committed: CommittedLsn(Lsn(raw.committed.get())),
        cascade: flag(u64::from(raw.cascade))?,
        history: history(rest, raw.history)?,
    })
}

fn stream_start(body: &[u8]) -> Result<StreamStart, Fault> {
    let (raw, rest) = prefix::<RawStreamStart>(body)?;
    let (way, rest) = path(rest, raw.path)?;
    Ok(StreamStart {
        from: border(raw.from)?,
        commit: CommittedLsn(Lsn(raw.commit.get())),
        end: border(raw.end)?,
        path: way,
        history: history(rest, raw.history)?,
    })
}

fn refusal(body: &[u8]) -> Result<Refusal, Fault> {
    let (raw, rest) = prefix::<RawRefusal>(body)?;
    let (value, id) = (raw.value.get(), raw.id.get());
    if raw.code.get() != 6 && id != 0 {
        return Err("an id that the reason does not have");
    }
    let reason = match raw.code.get() {
        1 => {
            let node = u16::try_from(value).map_err(|_| "node id too large")?;
            RefuseReason::NotUpstream { leader: (node != 0).then_some(NodeId(node)) }
        }
        2 => RefuseReason::Diverged { fork: border(raw.value)? },
        3 => RefuseReason::WalRemoved { oldest: border(raw.value)? },
        4 => RefuseReason::ChainMismatch { at: border(raw.value)? },
        5 => RefuseReason::Behind { end: border(raw.value)? },
        6 => RefuseReason::OtherTerm { term: Term { number: value, id } },
        7 if value == 0 => RefuseReason::TooMany,
        8 if value == 0 => RefuseReason::Unhealthy,
        9 if value == 0 => RefuseReason::Loop,
        10 if value == 0 => RefuseReason::Left,
        _ => return Err("unknown reason"),
    };
    Ok(Refusal { reason, text: text(rest, raw.text_len)? })
}

fn frames(body: Bytes) -> Result<(FramesHead, Bytes), Fault> {
    let (raw, _) = prefix::<RawFramesHead>(&body)?;
    let head = FramesHead {
        first: border(raw.first)?,
        end: border(raw.end)?,
        commit: CommittedLsn(Lsn(raw.commit.get())),
        count: raw.count.get(),
        eager_acks: flag(u64::from(raw.eager_acks.get()))?,
    };
    if head.end <= head.first || head.count == 0 {
        return Err("no frames");
    }
    Ok((head, body.slice(FRAMES_HEAD_BYTES..)))
}

fn ack(raw: RawAck) -> Message {
    Message::Ack(Ack {
        written: Lsn(raw.written.get()),
        flushed: FlushedLsn(Lsn(raw.flushed.get())),
        applied: AppliedLsn(Lsn(raw.applied.get())),
        matched: Lsn(raw.matched.get()),
        committed: CommittedLsn(Lsn(raw.committed.get())),
    })
}

fn heartbeat(body: &[u8]) -> Result<Heartbeat, Fault> {
    let (raw, rest) = prefix::<RawHeartbeat>(body)?;
    let (way, rest) = path(rest, raw.path)?;
    if !rest.is_empty() {
        return Err("body of a wrong size");
    }
    Ok(Heartbeat {
        seq: raw.seq.get(),
        sent: Mono(raw.sent.get()),
        commit: CommittedLsn(Lsn(raw.commit.get())),
        end: Lsn(raw.end.get()),
        clock: WallMs(raw.clock.get()),
        wants_grant: flag(raw.wants_grant.get())?,
        tip: Lsn(raw.tip.get()),
        path: way,
    })
}

fn heartbeat_ack(raw: RawHeartbeatAck) -> Result<HeartbeatAck, Fault> {
    Ok(HeartbeatAck { seq: raw.seq.get(), sent: Mono(raw.sent.get()), granted: flag(raw.granted.get())? })
}

fn roots(body: &[u8]) -> Result<Vec<RootEvidence>, Fault> {
    if !body.len().is_multiple_of(ROOT_BYTES) || body.len() / ROOT_BYTES > usize::from(SHARDS_MAX) {
        return Err("roots of a wrong length");
    }
    body.chunks_exact(ROOT_BYTES)
        .map(|chunk| {
            let raw = whole::<RawRoot>(chunk)?;
            Ok(RootEvidence {
                shard: ShardId(raw.shard.get()),
                lsn: Lsn(raw.lsn.get()),
                digest: Digest(raw.digest.get()),
            })
        })
        .collect()
}

/// The cluster id and session of an envelope.
pub(crate) fn stamped(raw: &RawEnvelope) -> Stamped {
    Stamped {
        cluster: ClusterId(raw.cluster.get()),
        session: Term { number: raw.term_number.get(), id: raw.term_id.get() },
        version: raw.version.get(),
    }
}

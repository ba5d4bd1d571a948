//! The words that peers exchange. Layout: [`codec`]; reading from a stream: [`decoder`].
//!
//! Every message stands in an envelope: cluster, session term, checksum. All messages are small and owned, except
//! that the log frames of [`Message::Frames`] and [`Message::FetchedFrames`] follow their envelope as raw bytes,
//! each with its own digest, so that a sender can gather them from the log's memory without a copy.

pub mod codec;
pub mod decoder;
mod pages;
mod path;

use std::fmt;

use bytes::Bytes;

use crate::base::format::FORMAT_VERSION;
use crate::base::limits::{
    ADMIN_LINE_BYTES_MAX, HISTORY_MAX, KEY_BYTES_MAX, PEER_MESSAGE_BYTES_MAX, SHARDS_MAX, VALUE_BYTES_MAX,
};
use crate::base::{
    AppliedLsn, ClusterId, CommittedLsn, Digest, FlushedLsn, Incarnation, Lsn, Mono, NodeId, ShardId, Term,
    WallMs,
};
use crate::role::History;
use crate::wal::LogEnd;

pub use codec::{encode, encode_frames_head};
pub use decoder::Decoder;
pub use path::Path;

/// The oldest and the newest protocol version of this build; what is offered to a peer is [`crate::base::format`]'s.
pub const VERSION_MIN: u16 = if VERSION_MAX > 1 { VERSION_MAX - 1 } else { 1 };
pub const VERSION_MAX: u16 = FORMAT_VERSION;
/// The version in the envelope of handshake messages: fixed for ever, so that two builds without a common version
/// can still tell each other so.
pub const HANDSHAKE_VERSION: u16 = 1;
/// Bytes of the envelope in front of every body.
pub const ENVELOPE_BYTES: usize = 72;
/// The largest body before both sides are authenticated.
pub const HANDSHAKE_BODY_BYTES_MAX: usize = 512;
/// The longest text in a refusal or a goodbye.
pub const TEXT_BYTES_MAX: usize = 256;
/// The largest message of the role room.
pub const ROLE_BYTES_MAX: usize = 64 << 10;

/// The place of a page in a tree: an escaped key, its end mark, tag and a short element.
pub const PAGE_KEY_BYTES_MAX: usize = 2 * KEY_BYTES_MAX + 64;
/// The content of a page, or the longest value.
pub const PAGE_REPLY_BYTES_MAX: usize = VALUE_BYTES_MAX + 64;

const _: () = assert!(PAGE_REPLY_BYTES_MAX + 1024 < PEER_MESSAGE_BYTES_MAX);
const _: () = assert!(HISTORY_MAX * codec::HISTORY_ENTRY_BYTES + 1024 <= ROLE_BYTES_MAX);
const _: () = assert!(TEXT_BYTES_MAX + 64 <= HANDSHAKE_BODY_BYTES_MAX);

/// Message kinds as they stand in the envelope. Numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Kind {
    Hello = 1,
    Challenge = 2,
    Proof = 3,
    Welcome = 4,
    Goodbye = 5,
    StreamRequest = 16,
    StreamStart = 17,
    StreamRefuse = 18,
    Frames = 19,
    Ack = 20,
    Commit = 21,
    Heartbeat = 32,
    HeartbeatAck = 33,
    LeaseRelease = 34,
    LogFetch = 48,
    FetchedFrames = 49,
    FetchDone = 50,
    FetchRefuse = 51,
    CheckpointRoots = 64,
    RootVerdict = 65,
    PageFetch = 66,
    PageReply = 67,
    Role = 80,
    Build = 81,
    StatusRequest = 96,
    StatusReply = 97,
}

impl Kind {
    pub const ALL: [Kind; 26] = [
        Kind::Hello,
        Kind::Challenge,
        Kind::Proof,
        Kind::Welcome,
        Kind::Goodbye,
        Kind::StreamRequest,
        Kind::StreamStart,
        Kind::StreamRefuse,
        Kind::Frames,
        Kind::Ack,
        Kind::Commit,
        Kind::Heartbeat,
        Kind::HeartbeatAck,
        Kind::LeaseRelease,
        Kind::LogFetch,
        Kind::FetchedFrames,
        Kind::FetchDone,
        Kind::FetchRefuse,
        Kind::CheckpointRoots,
        Kind::RootVerdict,
        Kind::PageFetch,
        Kind::PageReply,
        Kind::Role,
        Kind::Build,
        Kind::StatusRequest,
        Kind::StatusReply,
    ];

    pub fn from_number(number: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    /// Whether the kind is legal before both sides are authenticated.
    pub fn is_handshake(self) -> bool {
        matches!(self, Kind::Hello | Kind::Challenge | Kind::Proof | Kind::Welcome | Kind::Goodbye)
    }

    /// The largest body of this kind: the decoder refuses a longer one from its declared length alone.
    pub fn body_bytes_max(self) -> usize {
        match self {
            Kind::Hello | Kind::Challenge | Kind::Proof | Kind::Welcome | Kind::Goodbye => {
                HANDSHAKE_BODY_BYTES_MAX
            }
            Kind::Frames | Kind::FetchedFrames | Kind::Build => PEER_MESSAGE_BYTES_MAX - ENVELOPE_BYTES,
            Kind::StatusRequest | Kind::StatusReply => ADMIN_LINE_BYTES_MAX,
            Kind::RootVerdict => pages::VERDICT_BYTES,
            Kind::PageFetch => pages::FETCH_BYTES + PAGE_KEY_BYTES_MAX,
            Kind::PageReply => pages::REPLY_BYTES + PAGE_REPLY_BYTES_MAX,
            Kind::CheckpointRoots => codec::ROOT_BYTES * SHARDS_MAX as usize + 16,
            _ => ROLE_BYTES_MAX,
        }
    }

    /// Bytes of the body that the envelope's checksum covers: all of it, but for the raw log frames.
    pub(crate) fn covered(self, body: &[u8]) -> &[u8] {
        match self {
            Kind::Frames | Kind::FetchedFrames => &body[..body.len().min(codec::FRAMES_HEAD_BYTES)],
            _ => body,
        }
    }
}

/// What every message of a link carries besides its body. The session term is the *sender's* at sending time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamped {
    pub cluster: ClusterId,
    pub session: Term,
    /// The version that the handshake chose; [`HANDSHAKE_VERSION`] before.
    pub version: u16,
}

/// A decoded message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Envelope {
    pub stamped: Stamped,
    pub message: Message,
}

/// First message of a dialer: who it is, whom it wants, a fresh nonce.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// Random per process: tells a reconnect from a copied data folder.
    pub run: u128,
    /// Whom the dialer believes to reach.
    pub wants: NodeId,
    pub version_min: u16,
    pub version_max: u16,
    pub nonce: [u8; 32],
}

/// The acceptor's half of the transcript.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Challenge {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub run: u128,
    pub version_min: u16,
    pub version_max: u16,
    /// The version chosen for the link.
    pub version: u16,
    pub nonce: [u8; 32],
}

/// A position in the log with everything needed to recognise it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogTip {
    /// End of the whole log prefix (written or not yet flushed; never with a hole).
    pub end: Lsn,
    /// Term of the last frame, [`Term::NONE`] when the log is empty.
    pub term: Term,
    /// Digest of the last frame, zero when the log is empty.
    pub digest: Digest,
}

impl From<LogEnd> for LogTip {
    fn from(end: LogEnd) -> LogTip {
        LogTip { end: end.end, term: end.last_term, digest: end.last_digest }
    }
}

impl From<LogTip> for LogEnd {
    fn from(tip: LogTip) -> LogEnd {
        LogEnd { end: tip.end, last_term: tip.term, last_digest: tip.digest }
    }
}

/// A standby asks its upstream for the stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamRequest {
    pub tip: LogTip,
    /// What the standby knows to be committed: it can never go back below it.
    pub committed: CommittedLsn,
    /// A cascaded standby is never a voter of the stream's leader through this link.
    pub cascade: bool,
    pub history: History,
}

/// The upstream agrees: the standby's log is a prefix of its own, the stream goes on at `from`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamStart {
    pub from: Lsn,
    pub commit: CommittedLsn,
    /// The upstream's end of log when it agreed.
    pub end: Lsn,
    /// From the leader down to this upstream.
    pub path: Path,
    pub history: History,
}

/// Why there is no stream, or no log range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefuseReason {
    /// Not (or no longer) a node that streams; `leader` is its best guess, if it has one.
    NotUpstream { leader: Option<NodeId> },
    /// The asker's log is not a prefix: its part behind `fork` is another truth and must be dropped.
    Diverged { fork: Lsn },
    /// The log below `oldest` is gone: Need repair (WAL segment removed), a build is due.
    WalRemoved { oldest: Lsn },
    /// Same term, same position, other bytes: Need repair (the asker's log or ours is damaged).
    ChainMismatch { at: Lsn },
    /// The asker is ahead of this upstream in the same term; it may ask again later.
    Behind { end: Lsn },
    /// A session of the other side's term is not served or accepted: this node follows or promised `term`.
    OtherTerm { term: Term },
    /// As many direct standbys as are served are connected.
    TooMany,
    /// The log of this upstream is itself damaged there, or in dispute.
    Unhealthy,
    /// This upstream streams from the asker, directly or through others.
    Loop,
    /// Said by a standby: it streams from another upstream from now on.
    Left,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub reason: RefuseReason,
    /// For an operator; at most [`TEXT_BYTES_MAX`] bytes.
    pub text: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// In front of raw frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FramesHead {
    /// Where the first frame begins.
    pub first: Lsn,
    /// Where the last frame ends, padding included.
    pub end: Lsn,
    /// The sender's commit watermark.
    pub commit: CommittedLsn,
    pub count: u32,
    /// Somebody waits for more than flushes (remote_write, remote_apply, WAIT): acknowledge every move at once.
    pub eager_acks: bool,
}

/// What a standby holds. `matched` is where this session's stream began plus all that it received since.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ack {
    /// Handed to the disk (the write completed), not necessarily durable.
    pub written: Lsn,
    pub flushed: FlushedLsn,
    pub applied: AppliedLsn,
    pub matched: Lsn,
    /// Commit watermark that the standby has seen; shows a stuck redo.
    pub committed: CommittedLsn,
}

/// The leader is alive; asks for a grant of the read lease. A standby passes it on to the nodes below it, in the leader's
/// words, with its own commit index, tip and path, and asks for no grant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heartbeat {
    pub seq: u64,
    /// The leader's own clock at sending: comes back in the answer, means nothing to anyone else.
    pub sent: Mono,
    pub commit: CommittedLsn,
    /// The leader's end of log.
    pub end: Lsn,
    pub clock: WallMs,
    /// Whether the leader wants the answer to grant its read lease.
    pub wants_grant: bool,
    /// End of the log of the node that sends this: of the leader, `end` again.
    pub tip: Lsn,
    /// From the leader down to the node that sends this; empty in a mere sign of life.
    pub path: Path,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeartbeatAck {
    pub seq: u64,
    pub sent: Mono,
    /// The read lease is granted, counted from `sent` on the leader's clock.
    pub granted: bool,
}

/// Evidence about one shard at one checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootEvidence {
    pub shard: ShardId,
    pub lsn: Lsn,
    pub digest: Digest,
}

/// What a node found when it made a disputed checkpoint once more out of an earlier root and its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finding {
    /// The same as it had published.
    Sound,
    /// Something else: this node's copy of the shard is wrong.
    Sick,
    /// The earlier root or the log between is not here any more.
    Unable,
}

/// One side's finding about a disputed root, with what it was made from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootVerdict {
    pub shard: ShardId,
    pub finding: Finding,
    /// The disputed checkpoint, and what it came to the second time.
    pub lsn: Lsn,
    pub digest: Digest,
    /// The root that it was made from.
    pub base: Lsn,
    pub base_digest: Digest,
    /// Digest over the digests of the log frames between.
    pub log_digest: Digest,
}

/// What of a tree is asked for. The digest is what its parent holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageWanted {
    /// The content of a page of this level; 0 is a leaf.
    Node { level: u8, digest: Digest },
    /// A long value of so many bytes.
    Value { digest: Digest, len: u32 },
}

/// A node asks for a page, or a long value, that is damaged on its own disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageFetch {
    pub id: u64,
    pub shard: ShardId,
    /// The asker's newest checkpoint of the shard.
    pub checkpoint: Lsn,
    pub wanted: PageWanted,
    /// The place in the tree: the fence of a page, the key of a value. At most [`PAGE_KEY_BYTES_MAX`] bytes.
    pub key: Vec<u8>,
}

/// Why there is no page in an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoPage {
    /// No tree that this node keeps has it, or its own copy is damaged too.
    NotHere,
    /// As many requests as are served at once are being served.
    Busy,
}

/// The answer to a [`PageFetch`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageReply {
    pub id: u64,
    /// The checkpoint that wrote a long value (zero for a page), and the bytes.
    pub found: Result<(Lsn, Bytes), NoPage>,
}

/// Why a side closes the link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum GoodbyeReason {
    /// The process stops in order.
    Shutdown = 1,
    BadProof = 2,
    OtherCluster = 3,
    NoCommonVersion = 4,
    UnknownNode = 5,
    /// The dialer wanted another node than the one that answered.
    WrongNode = 6,
    SelfConnection = 7,
    /// The same incarnation is connected from another process, or belongs to another node: a copied data folder.
    DuplicateIncarnation = 8,
    /// A message that was not expected here, or that could not be read.
    Protocol = 9,
    TooSlow = 10,
    /// The other side fell silent.
    Silent = 11,
    /// A newer link of the same peer replaces this one.
    Replaced = 12,
    /// The node left the membership.
    Dropped = 13,
    /// The session's term is over.
    TermOver = 14,
}

impl GoodbyeReason {
    pub const ALL: [GoodbyeReason; 14] = [
        GoodbyeReason::Shutdown,
        GoodbyeReason::BadProof,
        GoodbyeReason::OtherCluster,
        GoodbyeReason::NoCommonVersion,
        GoodbyeReason::UnknownNode,
        GoodbyeReason::WrongNode,
        GoodbyeReason::SelfConnection,
        GoodbyeReason::DuplicateIncarnation,
        GoodbyeReason::Protocol,
        GoodbyeReason::TooSlow,
        GoodbyeReason::Silent,
        GoodbyeReason::Replaced,
        GoodbyeReason::Dropped,
        GoodbyeReason::TermOver,
    ];

    pub fn from_number(number: u16) -> Option<GoodbyeReason> {
        GoodbyeReason::ALL.into_iter().find(|reason| *reason as u16 == number)
    }
}

/// Everything peers say to each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    Hello(Hello),
    Challenge(Challenge),
    /// The dialer's HMAC over the transcript.
    Proof([u8; 32]),
    /// The acceptor's HMAC over the transcript: the link stands.
    Welcome([u8; 32]),
    Goodbye {
        reason: GoodbyeReason,
        text: String,
    },

    StreamRequest(StreamRequest),
    StreamStart(StreamStart),
    /// From an upstream: no stream. From a standby: it does not accept this upstream's session (`OtherTerm`).
    StreamRefuse(Refusal),
    /// `bytes` are `head.count` frames back to back, each without its padding.
    Frames {
        head: FramesHead,
        bytes: Bytes,
    },
    Ack(Ack),
    /// The commit watermark moved and no frame was there to carry it.
    Commit(CommittedLsn),

    Heartbeat(Heartbeat),
    HeartbeatAck(HeartbeatAck),
    /// The leader gives its lease back, so that grantors may promise at once.
    LeaseRelease,

    /// The log from `from` (a frame border) up to `to`.
    LogFetch {
        from: Lsn,
        to: Lsn,
    },
    FetchedFrames {
        head: FramesHead,
        bytes: Bytes,
    },
    /// All of the range up to `end` was sent.
    FetchDone {
        end: Lsn,
    },
    FetchRefuse(Refusal),

    CheckpointRoots(Vec<RootEvidence>),
    RootVerdict(RootVerdict),
    PageFetch(PageFetch),
    PageReply(PageReply),
    /// Encoded by the role room.
    Role(Vec<u8>),
    /// Encoded by the rebuild room.
    Build(Bytes),
    /// JSON.
    StatusRequest(Vec<u8>),
    StatusReply(Vec<u8>),
}

impl Message {
    pub fn kind(&self) -> Kind {
        match self {
            Message::Hello(_) => Kind::Hello,
            Message::Challenge(_) => Kind::Challenge,
            Message::Proof(_) => Kind::Proof,
            Message::Welcome(_) => Kind::Welcome,
            Message::Goodbye { .. } => Kind::Goodbye,
            Message::StreamRequest(_) => Kind::StreamRequest,
            Message::StreamStart(_) => Kind::StreamStart,
            Message::StreamRefuse(_) => Kind::StreamRefuse,
            Message::Frames { .. } => Kind::Frames,
            Message::Ack(_) => Kind::Ack,
            Message::Commit(_) => Kind::Commit,
            Message::Heartbeat(_) => Kind::Heartbeat,
            Message::HeartbeatAck(_) => Kind::HeartbeatAck,
            Message::LeaseRelease => Kind::LeaseRelease,
            Message::LogFetch { .. } => Kind::LogFetch,
            Message::FetchedFrames { .. } => Kind::FetchedFrames,
            Message::FetchDone { .. } => Kind::FetchDone,
            Message::FetchRefuse(_) => Kind::FetchRefuse,
            Message::CheckpointRoots(_) => Kind::CheckpointRoots,
            Message::RootVerdict(_) => Kind::RootVerdict,
            Message::PageFetch(_) => Kind::PageFetch,
            Message::PageReply(_) => Kind::PageReply,
            Message::Role(_) => Kind::Role,
            Message::Build(_) => Kind::Build,
            Message::StatusRequest(_) => Kind::StatusRequest,
            Message::StatusReply(_) => Kind::StatusReply,
        }
    }
}

/// Bytes that are no message. The link is closed: after one of these nothing that follows can be trusted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WireError {
    /// The other side speaks something else.
    NoMagic,
    /// A version that the handshake did not choose.
    OtherVersion {
        got: u16,
        want: u16,
    },
    OtherCluster {
        got: ClusterId,
        want: ClusterId,
    },
    UnknownKind(u8),
    /// Legal only after authentication.
    NotAuthenticated(Kind),
    /// A handshake message on an established link.
    AlreadyAuthenticated(Kind),
    TooLong {
        kind: Kind,
        bytes: u64,
    },
    /// The checksum does not match.
    Damaged(Kind),
    Malformed {
        kind: Kind,
        what: &'static str,
    },
    /// More bytes were pushed than one message can hold, without reading any.
    Unread,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::NoMagic => write!(f, "the other side does not speak the peer protocol"),
            WireError::OtherVersion { got, want } => {
                write!(f, "message of protocol version {got} on a link of version {want}")
            }
            WireError::OtherCluster { got, want } => {
                write!(f, "message of cluster {got} on a link of cluster {want}")
            }
            WireError::UnknownKind(number) => write!(f, "unknown message kind {number}"),
            WireError::NotAuthenticated(kind) => write!(f, "{kind:?} before authentication"),
            WireError::AlreadyAuthenticated(kind) => write!(f, "{kind:?} on an established link"),
            WireError::TooLong { kind, bytes } => write!(f, "{kind:?} of {bytes} bytes is over its limit"),
            WireError::Damaged(kind) => write!(f, "checksum of {kind:?} does not match"),
            WireError::Malformed { kind, what } => write!(f, "malformed {kind:?}: {what}"),
            WireError::Unread => write!(f, "more bytes arrived than one message can hold"),
        }
    }
}

impl std::error::Error for WireError {}

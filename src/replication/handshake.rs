//! Mutual authentication of a link: both sides prove the shared secret over one transcript.
//!
//! ```text
//! dialer                                  acceptor
//!   Hello(ids, versions, nonce)   ->
//!                                 <-  Challenge(ids, versions, chosen version, nonce)
//!   Proof = HMAC("dialer", T)     ->
//!                                 <-  Welcome = HMAC("acceptor", T)
//! ```
//!
//! T holds both messages in full, both envelopes' cluster and session term included. The acceptor proves nothing
//! before the dialer did, the two labels differ, and each nonce is fresh: neither an old conversation nor our own
//! proof sent back to us opens a link. The proof is HMAC-SHA256; comparison takes constant time.
//!
//! A node that is not yet part of a cluster says cluster zero and adopts the other side's; two such nodes do not talk.
//! How long a handshake may take is the driver's business.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::wire::{Challenge, GoodbyeReason, Hello, Message, Stamped, VERSION_MAX, VERSION_MIN};
use crate::base::{ClusterId, Incarnation, NodeId, Term};

/// The shared secret of a cluster's peers. Never shown.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// `None` for an empty secret unless the configuration allows it (loopback only).
    pub fn new(bytes: &[u8], empty_allowed: bool) -> Option<Secret> {
        (!bytes.is_empty() || empty_allowed).then(|| Secret(bytes.to_vec()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What this node says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Zero while the node belongs to no cluster yet.
    pub cluster: ClusterId,
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// Random per process.
    pub run: u128,
    /// The term of this node's messages: the highest that it promised or follows.
    pub session: Term,
}

impl Identity {
    /// The envelope of handshake messages.
    pub fn stamped(&self) -> Stamped {
        Stamped { cluster: self.cluster, session: self.session, version: VERSION_MIN }
    }
}

/// The other side, as authenticated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Peer {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub run: u128,
}

/// An established link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Session {
    pub peer: Peer,
    pub cluster: ClusterId,
    pub version: u16,
    /// This side dialled.
    pub dialed: bool,
    /// The other side belongs to no cluster yet: it may fetch a build, it counts for nothing.
    pub joining: bool,
    /// The term that the other side named in its handshake.
    pub peer_term: Term,
}

/// The driver's opinion of an authenticated peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    Admitted,
    /// Not in the membership.
    Unknown,
    /// This incarnation belongs to another node, or is connected from another live process.
    Duplicate,
}

/// What the driver knows when a peer asks to come in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Roster<'a> {
    /// Members; a member that has no incarnation yet has never connected.
    pub members: &'a [(NodeId, Option<Incarnation>)],
    /// Peers of live links (heard within the silence limit), either direction.
    pub live: &'a [Peer],
}

impl Roster<'_> {
    pub fn admit(&self, peer: &Peer) -> Admission {
        if !self.members.iter().any(|(node, _)| *node == peer.node) {
            return Admission::Unknown;
        }
        let elsewhere = |node: NodeId| node != peer.node;
        let owned = self.members.iter().any(|(n, inc)| elsewhere(*n) && *inc == Some(peer.incarnation));
        let copied = self.live.iter().any(|other| {
            other.incarnation == peer.incarnation && (elsewhere(other.node) || other.run != peer.run)
        });
        if owned || copied { Admission::Duplicate } else { Admission::Admitted }
    }
}

/// Why there is no link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HandshakeError {
    /// The peer does not know our secret (or we not its).
    BadProof,
    OtherCluster {
        ours: ClusterId,
        theirs: ClusterId,
    },
    NoCommonVersion {
        theirs: (u16, u16),
    },
    UnknownNode(NodeId),
    /// The address leads to another node than the membership says.
    WrongNode {
        wanted: NodeId,
        found: NodeId,
    },
    /// The address leads back to this node.
    SelfConnection,
    /// A copied data folder.
    DuplicateIncarnation(Peer),
    /// Something else than the next handshake message.
    Unexpected(&'static str),
    /// The peer said why it does not want us.
    Refused {
        reason: GoodbyeReason,
        text: String,
    },
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandshakeError::BadProof => write!(f, "peer_secret differs between the two nodes"),
            HandshakeError::OtherCluster { ours, theirs } => {
                write!(f, "the peer belongs to cluster {theirs}, this node to {ours}")
            }
            HandshakeError::NoCommonVersion { theirs: (min, max) } => write!(
                f,
                "the peer speaks protocol versions {min}..{max}, this node {VERSION_MIN}..{VERSION_MAX}"
            ),
            HandshakeError::UnknownNode(node) => write!(f, "node {node} is not a member of this cluster"),
            HandshakeError::WrongNode { wanted, found } => {
                write!(f, "node {found} answered where node {wanted} was expected: check the addresses")
            }
            HandshakeError::SelfConnection => write!(f, "the address leads back to this node"),
            HandshakeError::DuplicateIncarnation(peer) => write!(
                f,
                "incarnation {} of node {} is in use elsewhere: a copied data folder must be rebuilt",
                peer.incarnation, peer.node
            ),
            HandshakeError::Unexpected(what) => write!(f, "unexpected message in the handshake: {what}"),
            HandshakeError::Refused { reason, text } => write!(f, "the peer refused ({reason:?}): {text}"),
        }
    }
}

impl std::error::Error for HandshakeError {}

impl HandshakeError {
    /// What to tell the other side before closing.
    pub fn goodbye(&self) -> Option<Message> {
        let reason = match self {
            HandshakeError::BadProof => GoodbyeReason::BadProof,
            HandshakeError::OtherCluster { .. } => GoodbyeReason::OtherCluster,
            HandshakeError::NoCommonVersion { .. } => GoodbyeReason::NoCommonVersion,
            HandshakeError::UnknownNode(_) => GoodbyeReason::UnknownNode,
            HandshakeError::WrongNode { .. } => GoodbyeReason::WrongNode,
            HandshakeError::SelfConnection => GoodbyeReason::SelfConnection,
            HandshakeError::DuplicateIncarnation(_) => GoodbyeReason::DuplicateIncarnation,
            HandshakeError::Unexpected(_) => GoodbyeReason::Protocol,
            HandshakeError::Refused { .. } => return None,
        };
        Some(Message::Goodbye { reason, text: self.to_string() })
    }
}

/// What a handshake message led to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Turn {
    /// Send this and wait.
    Send(Message),
    /// Send this, if any; then the link stands. Tell the decoder: [`super::Decoder::authenticated`].
    Established { session: Session, send: Option<Message> },
    /// Send this, if any; then close.
    Failed { error: HandshakeError, send: Option<Message> },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DialerState {
    AwaitChallenge,
    AwaitWelcome { challenge: Challenge, theirs: Stamped },
    Over,
}

/// The side that connected.
#[derive(Debug)]
pub struct Dialer {
    identity: Identity,
    hello: Hello,
    secret: Secret,
    state: DialerState,
}

impl Dialer {
    /// `nonce` comes from the operating system's randomness.
    pub fn new(identity: Identity, wants: NodeId, secret: Secret, nonce: [u8; 32]) -> Dialer {
        let hello = Hello {
            node: identity.node,
            incarnation: identity.incarnation,
            run: identity.run,
            wants,
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            nonce,
        };
        Dialer { identity, hello, secret, state: DialerState::AwaitChallenge }
    }

    /// The first message.
    pub fn hello(&self) -> Message {
        Message::Hello(self.hello)
    }

    /// The envelope of this side's handshake messages.
    pub fn stamped(&self) -> Stamped {
        self.identity.stamped()
    }

    /// `admit` is asked once, for an authenticated peer.
    pub fn on_message(
        &mut self,
        _stamped: &Stamped,
        _message: Message,
        _admit: &dyn Fn(&Peer) -> Admission,
    ) -> Turn {
        unreachable!("the body follows")
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AcceptorState {
    AwaitHello,
    AwaitProof { hello: Hello, theirs: Stamped, challenge: Challenge },
    Over,
}

/// The side that was connected to.
#[derive(Debug)]
pub struct Acceptor {
    identity: Identity,
    nonce: [u8; 32],
    secret: Secret,
    state: AcceptorState,
}

impl Acceptor {
    /// `nonce` comes from the operating system's randomness.
    pub fn new(identity: Identity, secret: Secret, nonce: [u8; 32]) -> Acceptor {
        Acceptor { identity, nonce, secret, state: AcceptorState::AwaitHello }
    }

    /// The envelope of this side's handshake messages.
    pub fn stamped(&self) -> Stamped {
        self.identity.stamped()
    }

    /// `admit` is asked once, for an authenticated peer.
    pub fn on_message(
        &mut self,
        _stamped: &Stamped,
        _message: Message,
        _admit: &dyn Fn(&Peer) -> Admission,
    ) -> Turn {
        unreachable!("the body follows")
    }
}

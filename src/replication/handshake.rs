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

use super::wire::{
    Challenge, ENVELOPE_BYTES, GoodbyeReason, HANDSHAKE_VERSION, Hello, Message, Stamped, encode,
};
use crate::base::{ClusterId, Incarnation, NodeId, Term, format};

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
        Stamped { cluster: self.cluster, session: self.session, version: HANDSHAKE_VERSION }
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

impl Session {
    /// The envelope of this link's messages while this node is in the session of `term`.
    pub fn stamped(&self, term: Term) -> Stamped {
        Stamped { cluster: self.cluster, session: term, version: self.version }
    }
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
    /// The incarnation (or the node id) is in use elsewhere: a copied data folder.
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
                "the peer speaks protocol versions {min}..{max}, this node {}..{}: upgrade one version at a time",
                format::oldest(),
                format::newest()
            ),
            HandshakeError::UnknownNode(node) => write!(f, "node {node} is not a member of this cluster"),
            HandshakeError::WrongNode { wanted, found } => {
                write!(f, "node {found} answered where node {wanted} was expected: check the addresses")
            }
            HandshakeError::SelfConnection => write!(f, "the address leads back to this node"),
            HandshakeError::DuplicateIncarnation(peer) => write!(
                f,
                "incarnation {} or node id {} is in use elsewhere: a copied data folder must be rebuilt",
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
#[allow(clippy::large_enum_variant, reason = "one value per handshake, which lives for milliseconds")]
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
            version_min: format::oldest(),
            version_max: format::newest(),
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
        stamped: &Stamped,
        message: Message,
        admit: &dyn Fn(&Peer) -> Admission,
    ) -> Turn {
        match (std::mem::replace(&mut self.state, DialerState::Over), message) {
            (DialerState::Over, _) => failed(HandshakeError::Unexpected("the handshake is over")),
            (_, Message::Goodbye { reason, text }) => failed(HandshakeError::Refused { reason, text }),
            (DialerState::AwaitChallenge, Message::Challenge(challenge)) => {
                match self.judge(stamped, &challenge) {
                    Ok(()) => {
                        let proof = self.transcript(stamped, &challenge).prove(&self.secret, DIALER);
                        self.state = DialerState::AwaitWelcome { challenge, theirs: *stamped };
                        Turn::Send(Message::Proof(proof))
                    }
                    Err(error) => failed(error),
                }
            }
            (DialerState::AwaitWelcome { challenge, theirs }, Message::Welcome(mac)) => {
                if *stamped != theirs {
                    return failed(HandshakeError::Unexpected("the envelope changed"));
                }
                if !self.transcript(&theirs, &challenge).holds(&self.secret, ACCEPTOR, &mac) {
                    return failed(HandshakeError::BadProof);
                }
                let peer =
                    Peer { node: challenge.node, incarnation: challenge.incarnation, run: challenge.run };
                match refused(admit(&peer), peer) {
                    Some(error) => failed(error),
                    None => Turn::Established {
                        session: session(&self.identity, &theirs, peer, challenge.version, true),
                        send: None,
                    },
                }
            }
            _ => failed(HandshakeError::Unexpected("not the next message for a dialer")),
        }
    }

    fn judge(&self, theirs: &Stamped, challenge: &Challenge) -> Result<(), HandshakeError> {
        same_cluster(&self.identity, theirs)?;
        let peer = Peer { node: challenge.node, incarnation: challenge.incarnation, run: challenge.run };
        not_myself(&self.identity, &peer)?;
        if challenge.node != self.hello.wants {
            return Err(HandshakeError::WrongNode { wanted: self.hello.wants, found: challenge.node });
        }
        let range = (challenge.version_min, challenge.version_max);
        if common_version((self.hello.version_min, self.hello.version_max), range) != Some(challenge.version)
        {
            return Err(HandshakeError::NoCommonVersion { theirs: range });
        }
        Ok(())
    }

    fn transcript(&self, theirs: &Stamped, challenge: &Challenge) -> Transcript {
        Transcript::new(&self.identity.stamped(), &self.hello, theirs, challenge)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::large_enum_variant, reason = "one value per handshake, which lives for milliseconds")]
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
        stamped: &Stamped,
        message: Message,
        admit: &dyn Fn(&Peer) -> Admission,
    ) -> Turn {
        match (std::mem::replace(&mut self.state, AcceptorState::Over), message) {
            (AcceptorState::Over, _) => failed(HandshakeError::Unexpected("the handshake is over")),
            (_, Message::Goodbye { reason, text }) => failed(HandshakeError::Refused { reason, text }),
            (AcceptorState::AwaitHello, Message::Hello(hello)) => match self.judge(stamped, &hello) {
                Ok(challenge) => {
                    self.state = AcceptorState::AwaitProof { hello, theirs: *stamped, challenge };
                    Turn::Send(Message::Challenge(challenge))
                }
                Err(error) => failed(error),
            },
            (AcceptorState::AwaitProof { hello, theirs, challenge }, Message::Proof(mac)) => {
                if *stamped != theirs {
                    return failed(HandshakeError::Unexpected("the envelope changed"));
                }
                let transcript = Transcript::new(&theirs, &hello, &self.identity.stamped(), &challenge);
                if !transcript.holds(&self.secret, DIALER, &mac) {
                    return failed(HandshakeError::BadProof);
                }
                let peer = Peer { node: hello.node, incarnation: hello.incarnation, run: hello.run };
                match refused(admit(&peer), peer) {
                    Some(error) => failed(error),
                    None => Turn::Established {
                        session: session(&self.identity, &theirs, peer, challenge.version, false),
                        send: Some(Message::Welcome(transcript.prove(&self.secret, ACCEPTOR))),
                    },
                }
            }
            _ => failed(HandshakeError::Unexpected("not the next message for an acceptor")),
        }
    }

    fn judge(&self, theirs: &Stamped, hello: &Hello) -> Result<Challenge, HandshakeError> {
        same_cluster(&self.identity, theirs)?;
        let peer = Peer { node: hello.node, incarnation: hello.incarnation, run: hello.run };
        not_myself(&self.identity, &peer)?;
        if hello.wants != self.identity.node {
            return Err(HandshakeError::WrongNode { wanted: hello.wants, found: self.identity.node });
        }
        let range = (hello.version_min, hello.version_max);
        let version = common_version((format::oldest(), format::newest()), range)
            .ok_or(HandshakeError::NoCommonVersion { theirs: range })?;
        Ok(Challenge {
            node: self.identity.node,
            incarnation: self.identity.incarnation,
            run: self.identity.run,
            version_min: format::oldest(),
            version_max: format::newest(),
            version,
            nonce: self.nonce,
        })
    }
}

const DIALER: &[u8] = b"baton peer link, dialer\0";
const ACCEPTOR: &[u8] = b"baton peer link, acceptor\0";

/// Everything that both sides said before they proved anything.
struct Transcript(Vec<u8>);

impl Transcript {
    fn new(dialer: &Stamped, hello: &Hello, acceptor: &Stamped, challenge: &Challenge) -> Transcript {
        // Both messages have a fixed size, so no two conversations give the same bytes.
        let mut bytes = Vec::with_capacity(2 * (ENVELOPE_BYTES + 72));
        encode(dialer, &Message::Hello(*hello), &mut bytes);
        encode(acceptor, &Message::Challenge(*challenge), &mut bytes);
        Transcript(bytes)
    }

    fn mac(&self, secret: &Secret, label: &[u8]) -> Hmac<Sha256> {
        let mac = Hmac::<Sha256>::new_from_slice(&secret.0).expect("HMAC takes a key of any length");
        mac.chain_update(label).chain_update(&self.0)
    }

    fn prove(&self, secret: &Secret, label: &[u8]) -> [u8; 32] {
        self.mac(secret, label).finalize().into_bytes().into()
    }

    /// Constant time in the proof's content.
    fn holds(&self, secret: &Secret, label: &[u8], proof: &[u8; 32]) -> bool {
        self.mac(secret, label).verify_slice(proof).is_ok()
    }
}

fn failed(error: HandshakeError) -> Turn {
    let send = error.goodbye();
    Turn::Failed { error, send }
}

/// The newest version that both sides speak.
fn common_version(a: (u16, u16), b: (u16, u16)) -> Option<u16> {
    let version = a.1.min(b.1);
    (version >= a.0.max(b.0)).then_some(version)
}

/// Equal clusters, or exactly one side that has none yet.
fn same_cluster(own: &Identity, theirs: &Stamped) -> Result<(), HandshakeError> {
    let none = ClusterId(0);
    let joins = (own.cluster == none) != (theirs.cluster == none);
    if joins || (own.cluster == theirs.cluster && own.cluster != none) {
        return Ok(());
    }
    Err(HandshakeError::OtherCluster { ours: own.cluster, theirs: theirs.cluster })
}

fn not_myself(own: &Identity, peer: &Peer) -> Result<(), HandshakeError> {
    if peer.run == own.run && peer.node == own.node {
        return Err(HandshakeError::SelfConnection);
    }
    if peer.node == own.node || peer.incarnation == own.incarnation {
        return Err(HandshakeError::DuplicateIncarnation(*peer));
    }
    Ok(())
}

fn refused(admission: Admission, peer: Peer) -> Option<HandshakeError> {
    match admission {
        Admission::Admitted => None,
        Admission::Unknown => Some(HandshakeError::UnknownNode(peer.node)),
        Admission::Duplicate => Some(HandshakeError::DuplicateIncarnation(peer)),
    }
}

fn session(own: &Identity, theirs: &Stamped, peer: Peer, version: u16, dialed: bool) -> Session {
    let none = ClusterId(0);
    let cluster = if own.cluster == none { theirs.cluster } else { own.cluster };
    Session { peer, cluster, version, dialed, joining: theirs.cluster == none, peer_term: theirs.session }
}

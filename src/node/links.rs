//! Connections between nodes: dialling, accepting, the handshake, silence. What is said on them is decided elsewhere.
//!
//! Every node dials every other member and keeps that link; what it asks, it asks there. Role messages use whichever
//! link to the peer stands.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::base::limits::{CONNECT_MAX, HANDSHAKE_MAX, PEER_SILENCE_MAX, REDIAL_MAX, REDIAL_MIN};
use crate::base::{Incarnation, Mono, NodeId, Prng, SharedSlice, Term};
use crate::io::{CloseReason, ConnId, Op, Outgoing, ReceivedBytes, Seam};
use crate::replication::handshake::{Admission, HandshakeError, Turn};
use crate::replication::wire::{GoodbyeReason, encode};
use crate::replication::{
    Acceptor, Decoder, Dialer, Envelope, Identity, Message, Peer, Roster, Secret, Session, Stamped,
};

use super::outbox::Outbox;
use super::token;

/// Half-open accepted connections kept at once; more are closed at once.
const UNPROVEN_MAX: usize = 64;
/// An idle dialled link is probed this often.
const PING_EVERY: std::time::Duration = std::time::Duration::from_millis(1000);

#[derive(Debug)]
enum Phase {
    Dialing(Dialer),
    Accepting(Acceptor),
    Up(Session),
    /// Goodbye was said by one side; waits for its end. With the session that stood, if one did.
    Closing(Option<Session>),
}

#[derive(Debug)]
struct Link {
    outbox: Outbox,
    decoder: Decoder,
    phase: Phase,
    /// The member this link was dialled to.
    dialed: Option<NodeId>,
    opened: Mono,
    heard: Mono,
    said: Mono,
}

#[derive(Debug)]
struct Dial {
    addr: SocketAddr,
    /// Since when a dial is under way.
    connecting: Option<Mono>,
    conn: Option<ConnId>,
    retry_at: Mono,
    wait: std::time::Duration,
    /// Why the last try failed, for `query`.
    last_error: Option<String>,
    /// What the newest try or end says about the process over there.
    absence: Absence,
}

/// What is known of a member without a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Absence {
    /// It may run: nothing comes through, or it was not tried yet.
    Silent,
    /// Nobody listens at its address, or its process ended the connection.
    Gone,
    /// It answers, and says that another process is this node.
    SaysCopy,
}

/// What a link tells the node.
#[derive(Debug)]
pub enum LinkEvent {
    Up { session: Session },
    Message { conn: ConnId, session: Session, envelope: Envelope },
    Down { conn: ConnId, session: Session, process_gone: bool },
}

/// All peer connections of one node.
pub struct Links {
    identity: Identity,
    secret: Secret,
    links: BTreeMap<ConnId, Link>,
    dials: BTreeMap<NodeId, Dial>,
    rng: Prng,
}

impl Links {
    pub fn new(identity: Identity, secret: Secret, members: &[(NodeId, SocketAddr)], seed: u64) -> Links {
        let dials = members
            .iter()
            .filter(|(node, _)| *node != identity.node)
            .map(|(node, addr)| {
                let dial = Dial {
                    addr: *addr,
                    connecting: None,
                    conn: None,
                    retry_at: Mono(0),
                    wait: REDIAL_MIN,
                    last_error: None,
                    absence: Absence::Silent,
                };
                (*node, dial)
            })
            .collect();
        Links { identity, secret, links: BTreeMap::new(), dials, rng: Prng::new(seed) }
    }

    /// The term named in handshakes: the highest that this node promised or follows.
    pub fn set_session(&mut self, term: Term) {
        self.identity.session = term;
    }

    pub fn owns(&self, conn: ConnId) -> bool {
        self.links.contains_key(&conn)
    }

    /// Starts due dials, drops slow handshakes and silent links, probes idle ones.
    pub fn tick<S: Seam>(&mut self, seam: &mut S, now: Mono) {
        for (node, dial) in &mut self.dials {
            // A dial that never ends must not keep this node from its peer for ever.
            if dial.connecting.is_some_and(|since| now.since(since) > CONNECT_MAX) {
                dial.connecting = None;
                dial.last_error = Some("the address does not answer".to_string());
                dial.absence = Absence::Silent;
            }
            if dial.conn.is_none() && dial.connecting.is_none() && now >= dial.retry_at {
                dial.connecting = Some(now);
                seam.submit(Op::Connect { token: token::dial(*node), addr: dial.addr });
            }
        }
        let mut ping = Vec::new();
        let mut drop = Vec::new();
        for (conn, link) in &self.links {
            match &link.phase {
                Phase::Up(_) if now.since(link.heard) > PEER_SILENCE_MAX => drop.push(*conn),
                // What this side says may be answered on another link: silence over here asks for a sign of life too.
                Phase::Up(_)
                    if link.dialed.is_some()
                        && (now.since(link.said) >= PING_EVERY || now.since(link.heard) >= PING_EVERY) =>
                {
                    ping.push(*conn)
                }
                Phase::Up(_) => {}
                _ if now.since(link.opened) > HANDSHAKE_MAX => drop.push(*conn),
                _ => {}
            }
        }
        for conn in drop {
            seam.submit(Op::Close { conn });
        }
        for conn in ping {
            let beat = crate::replication::wire::Heartbeat {
                seq: 0,
                sent: now,
                commit: Default::default(),
                end: Default::default(),
                clock: Default::default(),
                wants_grant: false,
                tip: Default::default(),
                path: Default::default(),
            };
            self.send(seam, conn, now, &Message::Heartbeat(beat));
        }
    }

    pub fn connected<S: Seam>(
        &mut self,
        seam: &mut S,
        node: NodeId,
        result: std::io::Result<ConnId>,
        now: Mono,
        nonce: [u8; 32],
    ) {
        let Some(dial) = self.dials.get_mut(&node) else { return };
        dial.connecting = None;
        match result {
            // A dial that was given up has come through after all, beside its successor.
            Ok(conn) if dial.conn.is_some() => seam.submit(Op::Close { conn }),
            Ok(conn) => {
                dial.conn = Some(conn);
                let dialer = Dialer::new(self.identity, node, self.secret.clone(), nonce);
                let hello = (dialer.stamped(), dialer.hello());
                self.adopt(seam, conn, Phase::Dialing(dialer), Some(node), now);
                self.send_stamped(seam, conn, now, &hello.0, &hello.1);
            }
            Err(_) if dial.conn.is_some() => {}
            Err(error) => {
                let refused = error.kind() == std::io::ErrorKind::ConnectionRefused;
                dial.absence = if refused { Absence::Gone } else { Absence::Silent };
                dial.last_error =
                    Some(if refused { "nobody listens there".into() } else { error.to_string() });
                self.redial_later(node, now);
            }
        }
    }

    pub fn accepted<S: Seam>(&mut self, seam: &mut S, conn: ConnId, now: Mono, nonce: [u8; 32]) {
        let unproven = self.links.values().filter(|l| !matches!(l.phase, Phase::Up(_))).count();
        let acceptor = Acceptor::new(self.identity, self.secret.clone(), nonce);
        self.adopt(seam, conn, Phase::Accepting(acceptor), None, now);
        if unproven >= UNPROVEN_MAX {
            seam.submit(Op::Close { conn });
        }
    }

    fn adopt<S: Seam>(
        &mut self,
        seam: &mut S,
        conn: ConnId,
        phase: Phase,
        dialed: Option<NodeId>,
        now: Mono,
    ) {
        let link = Link {
            outbox: Outbox::new(conn),
            decoder: Decoder::new(),
            phase,
            dialed,
            opened: now,
            heard: now,
            said: now,
        };
        self.links.insert(conn, link);
        seam.submit(Op::Receive { conn });
    }

    fn redial_later(&mut self, node: NodeId, now: Mono) {
        let Some(dial) = self.dials.get_mut(&node) else { return };
        // A little chance keeps two nodes from knocking in step for ever.
        let spread = dial.wait.as_millis() as u64 / 4 + 1;
        dial.retry_at = now + dial.wait + std::time::Duration::from_millis(self.rng.below(spread));
        dial.wait = (dial.wait * 2).min(REDIAL_MAX);
    }

    /// Received bytes become link events. `incarnations` knows which incarnation a member is bound to.
    pub fn received<S: Seam>(
        &mut self,
        seam: &mut S,
        conn: ConnId,
        bytes: &ReceivedBytes,
        now: Mono,
        members: &[(NodeId, Option<Incarnation>)],
        out: &mut Vec<LinkEvent>,
    ) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        link.heard = now;
        if matches!(link.phase, Phase::Closing(_)) {
            return;
        }
        if let Err(error) = link.decoder.push(bytes) {
            return self.fail(seam, conn, now, error.to_string());
        }
        loop {
            let Some(link) = self.links.get_mut(&conn) else { return };
            let envelope = match link.decoder.next() {
                Ok(Some(envelope)) => envelope,
                Ok(None) => return,
                Err(error) => return self.fail(seam, conn, now, error.to_string()),
            };
            match &link.phase {
                Phase::Closing(_) => return,
                Phase::Up(session) => {
                    if let Message::Goodbye { reason, text } = &envelope.message {
                        tracing::info!(peer = %session.peer.node, ?reason, text, "peer said goodbye");
                        seam.submit(Op::Close { conn });
                        link.phase = Phase::Closing(Some(*session));
                        return;
                    }
                    out.push(LinkEvent::Message { conn, session: *session, envelope });
                }
                Phase::Dialing(_) | Phase::Accepting(_) => {
                    self.shake(seam, conn, envelope, now, members, out)
                }
            }
        }
    }

    fn shake<S: Seam>(
        &mut self,
        seam: &mut S,
        conn: ConnId,
        envelope: Envelope,
        now: Mono,
        members: &[(NodeId, Option<Incarnation>)],
        out: &mut Vec<LinkEvent>,
    ) {
        let live: Vec<Peer> = self.sessions().map(|(_, session)| session.peer).collect();
        let admit = |peer: &Peer| -> Admission { Roster { members, live: &live }.admit(peer) };
        let link = self.links.get_mut(&conn).expect("the caller holds it");
        let Envelope { stamped, message } = envelope;
        let (turn, own) = match &mut link.phase {
            Phase::Dialing(dialer) => (dialer.on_message(&stamped, message, &admit), dialer.stamped()),
            Phase::Accepting(acceptor) => {
                (acceptor.on_message(&stamped, message, &admit), acceptor.stamped())
            }
            _ => return,
        };
        match turn {
            Turn::Send(message) => self.send_stamped(seam, conn, now, &own, &message),
            Turn::Established { session, send } => {
                link.phase = Phase::Up(session);
                link.decoder.authenticated(session.cluster, session.version);
                if let Some(node) = link.dialed
                    && let Some(dial) = self.dials.get_mut(&node)
                {
                    dial.wait = REDIAL_MIN;
                    dial.last_error = None;
                    dial.absence = Absence::Silent;
                }
                if let Some(message) = send {
                    self.send_stamped(seam, conn, now, &own, &message);
                }
                out.push(LinkEvent::Up { session });
            }
            Turn::Failed { error, send } => {
                tracing::warn!(%error, "peer handshake failed");
                if let Some(node) = link.dialed
                    && let Some(dial) = self.dials.get_mut(&node)
                {
                    let copy = GoodbyeReason::DuplicateIncarnation;
                    dial.absence = match &error {
                        HandshakeError::Refused { reason, .. } if *reason == copy => Absence::SaysCopy,
                        _ => Absence::Silent,
                    };
                    dial.last_error = Some(error.to_string());
                    dial.wait = REDIAL_MAX;
                }
                link.phase = Phase::Closing(None);
                if let Some(message) = send {
                    self.send_stamped(seam, conn, now, &own, &message);
                }
                self.close_when_sent(seam, conn);
            }
        }
    }

    fn fail<S: Seam>(&mut self, seam: &mut S, conn: ConnId, now: Mono, text: String) {
        tracing::warn!(error = text, "peer link broke the protocol");
        let Some(link) = self.links.get_mut(&conn) else { return };
        let session = match link.phase {
            Phase::Up(session) => Some(session),
            _ => None,
        };
        if session.is_some() {
            // At most a goodbye: what came cannot be trusted.
            self.send(
                seam,
                conn,
                now,
                &Message::Goodbye { reason: GoodbyeReason::Protocol, text: cut(text) },
            );
        }
        seam.submit(Op::Close { conn });
        let Some(link) = self.links.get_mut(&conn) else { return };
        // What is still on its way in is not looked at, so that a stranger gets one line of the log and no more.
        link.phase = Phase::Closing(session);
        if let Some(dial) = link.dialed.and_then(|node| self.dials.get_mut(&node)) {
            dial.absence = Absence::Silent;
        }
    }

    /// Ends a link after telling the peer why. The session that stood is returned: for this node the link is down from
    /// here on, before the peer can notice.
    pub fn goodbye<S: Seam>(
        &mut self,
        seam: &mut S,
        conn: ConnId,
        now: Mono,
        reason: GoodbyeReason,
        text: &str,
    ) -> Option<Session> {
        self.send(seam, conn, now, &Message::Goodbye { reason, text: cut(text.to_string()) });
        seam.submit(Op::Close { conn });
        let link = self.links.get_mut(&conn)?;
        match std::mem::replace(&mut link.phase, Phase::Closing(None)) {
            Phase::Up(session) => Some(session),
            _ => None,
        }
    }

    fn close_when_sent<S: Seam>(&mut self, seam: &mut S, conn: ConnId) {
        if self.links.get(&conn).is_some_and(|l| l.outbox.is_drained()) {
            seam.submit(Op::Close { conn });
        }
    }

    pub fn sent<S: Seam>(&mut self, seam: &mut S, conn: ConnId, data: Outgoing) {
        if let Some(link) = self.links.get_mut(&conn) {
            link.outbox.sent(data);
            link.outbox.pump(seam, token::SEND);
            if matches!(link.phase, Phase::Closing(_)) {
                self.close_when_sent(seam, conn);
            }
        }
    }

    /// The connection is gone. Links that stood become [`LinkEvent::Down`].
    pub fn closed(&mut self, conn: ConnId, reason: CloseReason, now: Mono) -> Option<LinkEvent> {
        let link = self.links.remove(&conn)?;
        if let Some(node) = link.dialed {
            if let Some(dial) = self.dials.get_mut(&node) {
                dial.conn = None;
                let ended = matches!(reason, CloseReason::Finished | CloseReason::Reset);
                match &link.phase {
                    Phase::Up(_) if ended => dial.absence = Absence::Gone,
                    Phase::Up(_) | Phase::Dialing(_) => dial.absence = Absence::Silent,
                    Phase::Accepting(_) | Phase::Closing(_) => {}
                }
                if dial.last_error.is_none() {
                    let text = if ended { "it ended the connection" } else { "nothing comes from there" };
                    dial.last_error = Some(text.into());
                }
            }
            self.redial_later(node, now);
        }
        match link.phase {
            Phase::Up(session) => {
                let process_gone = matches!(reason, CloseReason::Finished | CloseReason::Reset);
                Some(LinkEvent::Down { conn, session, process_gone })
            }
            // A goodbye comes from a process that lives: its end proves nothing about what it may still do.
            Phase::Closing(Some(session)) => Some(LinkEvent::Down { conn, session, process_gone: false }),
            _ => None,
        }
    }

    /// Links that stand.
    pub fn sessions(&self) -> impl Iterator<Item = (ConnId, &Session)> {
        self.links.iter().filter_map(|(conn, link)| match &link.phase {
            Phase::Up(session) => Some((*conn, session)),
            _ => None,
        })
    }

    pub fn session(&self, conn: ConnId) -> Option<&Session> {
        match &self.links.get(&conn)?.phase {
            Phase::Up(session) => Some(session),
            _ => None,
        }
    }

    /// The standing link that this node dialled to `node`.
    pub fn dialed_to(&self, node: NodeId) -> Option<ConnId> {
        let conn = self.dials.get(&node)?.conn?;
        self.session(conn).map(|_| conn)
    }

    /// Any standing link to `node`, the dialled one first.
    pub fn any_to(&self, node: NodeId) -> Option<ConnId> {
        self.dialed_to(node)
            .or_else(|| self.sessions().find(|(_, s)| s.peer.node == node).map(|(conn, _)| conn))
    }

    pub fn last_error(&self, node: NodeId) -> Option<&str> {
        self.dials.get(&node)?.last_error.as_deref()
    }

    /// What is known of a member that no link leads to.
    pub fn absence(&self, node: NodeId) -> Absence {
        self.dials.get(&node).map_or(Absence::Silent, |dial| dial.absence)
    }

    /// A member that says that another process is this node.
    pub fn says_copy(&self) -> Option<NodeId> {
        self.dials.iter().find(|(_, dial)| dial.absence == Absence::SaysCopy).map(|(node, _)| *node)
    }

    /// Bytes waiting on a link.
    pub fn unsent(&self, conn: ConnId) -> usize {
        self.links.get(&conn).map_or(0, |l| l.outbox.unsent())
    }

    /// The envelope of this side's messages on `conn` in the current session.
    pub fn stamped(&self, conn: ConnId) -> Option<Stamped> {
        let session = self.session(conn)?;
        Some(Stamped { cluster: session.cluster, session: self.identity.session, version: session.version })
    }

    pub fn send<S: Seam>(&mut self, seam: &mut S, conn: ConnId, now: Mono, message: &Message) {
        if let Some(stamped) = self.stamped(conn) {
            self.send_stamped(seam, conn, now, &stamped, message);
        }
    }

    /// Sends with a chosen session term: acks name the term of the session that they belong to.
    pub fn send_in<S: Seam>(
        &mut self,
        seam: &mut S,
        conn: ConnId,
        now: Mono,
        session: Term,
        message: &Message,
    ) {
        if let Some(stamped) = self.stamped(conn) {
            self.send_stamped(seam, conn, now, &Stamped { session, ..stamped }, message);
        }
    }

    fn send_stamped<S: Seam>(
        &mut self,
        seam: &mut S,
        conn: ConnId,
        now: Mono,
        stamped: &Stamped,
        message: &Message,
    ) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        let mut bytes = Vec::with_capacity(256);
        encode(stamped, message, &mut bytes);
        link.said = now;
        link.outbox.append(&bytes);
        link.outbox.pump(seam, token::SEND);
    }

    /// Sends a prepared head with log slices behind it.
    pub fn send_frames<S: Seam>(
        &mut self,
        seam: &mut S,
        conn: ConnId,
        now: Mono,
        head: Vec<u8>,
        slices: Vec<SharedSlice>,
    ) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        link.said = now;
        link.outbox.append_shared(head, slices);
        link.outbox.pump(seam, token::SEND);
    }
}

/// A goodbye's text within its limit.
fn cut(mut text: String) -> String {
    let mut end = crate::replication::wire::TEXT_BYTES_MAX.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ClusterId;
    use crate::io::sim::{SimConfig, World};
    use std::time::Duration;

    /// One node that knows one peer, on a seam whose answers nobody waits for.
    fn links() -> (Links, crate::io::sim::SimSeam) {
        let world = World::new(1, SimConfig::default());
        let host = world.add_host("10.0.0.1".parse().expect("an address"));
        let (me, peer) = (NodeId(1), NodeId(2));
        let identity = Identity {
            cluster: ClusterId(1),
            node: me,
            incarnation: Incarnation(1),
            run: 1,
            session: Term::NONE,
        };
        let secret = Secret::new(b"secret", false).expect("a secret");
        let members = [me, peer].map(|node| (node, SocketAddr::new([10, 0, 0, node.0 as u8].into(), 8379)));
        (Links::new(identity, secret, &members, 7), world.seam(host))
    }

    #[test]
    fn a_dial_that_never_ends_is_begun_anew() {
        let (mut links, mut seam) = links();
        let (peer, begun) = (NodeId(2), Mono(1_000_000_000));
        links.tick(&mut seam, begun);
        assert_eq!(links.dials[&peer].connecting, Some(begun));
        let patient = begun + CONNECT_MAX;
        links.tick(&mut seam, patient);
        assert_eq!(links.dials[&peer].connecting, Some(begun), "it may still come");
        let later = patient + Duration::from_millis(50);
        links.tick(&mut seam, later);
        assert_eq!(links.dials[&peer].connecting, Some(later), "a second dial");
        assert!(links.last_error(peer).is_some());

        // Both come through: one link, whichever was first.
        links.connected(&mut seam, peer, Ok(ConnId(71)), later, [1; 32]);
        links.connected(&mut seam, peer, Ok(ConnId(72)), later, [2; 32]);
        assert_eq!(links.dials[&peer].conn, Some(ConnId(71)));
        assert!(links.owns(ConnId(71)) && !links.owns(ConnId(72)));
        // And a late failure of one takes nothing from the other.
        links.connected(&mut seam, peer, Err(std::io::ErrorKind::TimedOut.into()), later, [3; 32]);
        assert_eq!(links.dials[&peer].conn, Some(ConnId(71)));
    }
}
